"""The scale: which pairs belong to which setting, and their medians with errors over texts and over models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from klscale import scales
from klscale.models import ModelRef
from klscale.texts import PILE_CLIP, TextSet
from klscale.vectors import ATTRIBUTES, CONVENTION, Vectors


def vectors_of(rows, spread=None, n_texts=400, **texts):
    """Vectors of models given as {name: attributes}; each is noise of its own spread around common values."""
    generator = np.random.default_rng(0)
    common = -200 + 60 * generator.normal(size=n_texts)
    spread = spread or [5.0] * len(rows)
    L = common + np.array(spread)[:, None] * generator.normal(size=(len(rows), n_texts))
    columns = [*ATTRIBUTES, "dtype", "convention"]
    frame = pd.DataFrame(
        [[{"dtype": "float32", "convention": CONVENTION, **row}.get(c) for c in columns] for row in rows.values()],
        index=list(rows), columns=columns, dtype=object,
    )  # fmt: skip
    text_set = TextSet.from_texts("t", ["x" * 100] * n_texts, **texts)
    return Vectors(np.minimum(L, -1.0), tuple(map(ModelRef.parse, rows)), frame, text_set)


RUN = {f"p/s{seed}/checkpoint-{step}": {"family": "p", "parameters": 10, "seed": seed, "step": step}
       for seed in (1, 2, 3) for step in (0, 1, 2, 4, 10, 20, 30, 40)}  # fmt: skip


def test_pairs_of_each_setting():
    rows = {
        **RUN,
        "p/big": {"family": "p", "parameters": 99, "seed": 1, "step": 40},
        "p/tuned": {"family": "p", "parameters": 10, "seed": 1, "parent": "p/s1/checkpoint-40"},
        "p/s1/checkpoint-40+nf4": {"family": "p", "parameters": 10, "seed": 1, "step": 40, "quantization": "nf4"},
        "other/model": {"family": "q", "parameters": 10, "seed": 1, "step": 40},
        "nameless": {},
    }
    pairs = scales.setting_pairs(vectors_of(rows))
    assert pairs["early training"] == [(f"p/s{s}/checkpoint-10", f"p/s{s}/checkpoint-20") for s in (1, 2, 3)]
    assert pairs["later training"] == [
        (f"p/s{s}/checkpoint-{a}", f"p/s{s}/checkpoint-{b}") for s in (1, 2, 3) for a, b in ((20, 30), (30, 40))
    ]
    assert pairs["seed"] == [
        ("p/s1/checkpoint-40", "p/s2/checkpoint-40"),
        ("p/s1/checkpoint-40", "p/s3/checkpoint-40"),
        ("p/s2/checkpoint-40", "p/s3/checkpoint-40"),
    ]
    assert pairs["size"] == [("p/s1/checkpoint-40", "p/big")]
    assert pairs["fine-tuning"] == [("p/s1/checkpoint-40", "p/tuned")]
    assert pairs["4-bit"] == [("p/s1/checkpoint-40", "p/s1/checkpoint-40+nf4")]
    assert set(pairs) == {"early training", "later training", "seed", "size", "fine-tuning", "4-bit"}


def test_runs_of_no_known_family_are_told_apart_by_their_directory():
    rows = {f"{run}/checkpoint-{step}": {"step": step} for step in (100, 200, 300) for run in ("./a", "./b")}
    pairs = scales.setting_pairs(vectors_of(rows))
    assert pairs == {
        "later training": [(f"{run}/checkpoint-{a}", f"{run}/checkpoint-{b}") for run in ("./a", "./b")
                           for a, b in ((100, 200), (200, 300))],
    }  # fmt: skip


def test_a_missing_attribute_is_no_difference():
    a, b = ModelRef("p/a"), ModelRef("p/b")
    assert scales.setting_of({"family": "p", "seed": 1}, {"family": "p", "seed": 2, "step": 5}, a, b) == "seed"
    assert scales.setting_of({"family": "p", "seed": 1}, {"family": "p"}, a, b) is None
    assert scales.setting_of({"family": "p", "seed": 1, "step": 1}, {"family": "p", "seed": 2, "step": 2}, a, b) is None
    assert scales.setting_of({"seed": 1}, {"seed": 2}, a, b) is None, "models of unknown family are no relatives"


def test_relatives_are_not_mistaken():
    rows = {
        "o/x-1b@step10": {"family": "x", "parameters": 1000, "step": 10},
        "o/x-1b-deduped@step10": {"family": "x", "parameters": 1000, "step": 10},
        "o/x-2b": {"family": "x", "parameters": 2000},
        "o/x-1b-chat": {"family": "x", "parameters": 1001},
        "o/x-3b": {"family": "x", "parameters": 3000, "parent": "o/x+y"},
    }
    assert scales.setting_pairs(vectors_of(rows)) == {"size": [("o/x-2b", "o/x-1b-chat")]}


def test_medians_and_their_errors():
    vectors = vectors_of(RUN)
    row = next(row for row in scales.measure(vectors) if row.setting == "seed")
    values = [vectors.kl()[pair].value for pair in row.pairs]
    assert row.median == pytest.approx(np.median(values))
    assert row.interval == (min(values), max(values))
    assert (row.interval_kind, row.n_models) == ("range", 3)
    # the standard error of a median of three pairs lies below that of one pair, and is of its size
    single = vectors.kl()[row.pairs[0]].standard_error
    assert single / 3 < row.standard_error < single


def test_the_standard_error_over_texts_is_right():
    """One pair: the bootstrap of the median is that of the pair, and so its delta-method error."""
    vectors = vectors_of({"p/a": {"family": "p", "seed": 1}, "p/b": {"family": "p", "seed": 2}}, n_texts=2000)
    (row,) = scales.measure(vectors)
    assert row.standard_error == pytest.approx(vectors.kl()["p/a", "p/b"].standard_error, rel=0.15)


def test_models_are_resampled_from_five_on():
    rows = {f"p/{n}": {"family": "p", "seed": n} for n in range(8)}
    (row,) = scales.measure(vectors_of(rows, spread=[1, 2, 3, 4, 5, 6, 7, 8]))
    values = [vectors_of(rows, spread=[1, 2, 3, 4, 5, 6, 7, 8]).kl()[pair].value for pair in row.pairs]
    assert row.interval_kind == "models"
    assert min(values) <= row.interval[0] < row.median < row.interval[1] <= max(values)


def test_published_values_are_those_of_the_paper():
    rows = {row.setting: row.median for row in scales.published()}
    assert rows == {
        "later training": 0.011, "early training": 0.067, "seed": 0.12, "fine-tuning": 0.40, "8-bit": 0.44,
        "size": 0.48, "4-bit": 0.49, "same type": 0.95, "random": 2.2, "layer": 3.0,
    }  # fmt: skip
    assert all(row.source in ("P1v1", "P1v3") for row in scales.published())


def test_published_values_hold_for_the_published_texts_only():
    lengths = np.full(10_000, 972, dtype=np.int64)
    lengths[:3188] += 1
    pile = TextSet(name="pile-10k", bytes=lengths, id="x", clip=PILE_CLIP)
    assert pile.mean_bytes == pytest.approx(972.3188)
    assert scales.published_holds(pile)
    assert not scales.published_holds(pile.with_clip(None))
    assert not scales.published_holds(TextSet.from_texts("pile-10k", ["x"] * 10_000, clip=PILE_CLIP))
    assert scales.place(0.12, pile) == "1.0 times the median of 'seed' (0.12, published)"
    assert scales.place(0.12, pile.with_clip(None)) is None


def test_a_pair_is_not_placed_on_itself():
    vectors = vectors_of({"p/a": {"family": "p", "seed": 1}, "p/b": {"family": "p", "seed": 2}})
    measured = scales.measure(vectors)
    assert scales.place(0.1, vectors.texts, measured, pair=("p/b", "p/a")) is None
    assert "measured on these texts" in scales.place(0.1, vectors.texts, measured, pair=("p/a", "p/c"))
