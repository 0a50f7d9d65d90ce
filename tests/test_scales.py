"""The scale: which pairs belong to which setting, and their medians with errors over texts and over models."""

from __future__ import annotations

import math
import statistics
import warnings
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import klscale
from klscale.inputs.references import QUANTIZATIONS, ModelRef
from klscale.inputs.texts import PILE_CLIP, TextSet
from klscale.science.bootstrap import interval_over_models, text_draws
from klscale.science.reported import ReportedKL
from klscale.store import measured_records
from klscale.store.store import Store
from klscale.studies import relatives, scales
from klscale.studies.settings import quantization_setting, setting_of
from klscale.studies.tails import examine_tails
from klscale.studies.verbs import scale as kept_scales
from klscale.vectors.vectors import CONVENTION, Vectors


def vectors_of(rows, spread=None, n_texts=400, **texts):
    """Vectors of models given as {name: attributes}; each is noise of its own spread around common values."""
    generator = np.random.default_rng(0)
    common = -100 + 20 * generator.normal(size=n_texts)
    spread = spread or [5.0] * len(rows)
    L = common + np.array(spread)[:, None] * generator.normal(size=(len(rows), n_texts))
    known = {name: {"dtype": "float32", "convention": CONVENTION, **row} for name, row in rows.items()}
    text_set = TextSet.from_texts("t", ["x" * 100] * n_texts, **texts)
    return Vectors.from_arrays(np.minimum(L, -1.0), [*rows], text_set, known)


RUN = {f"p/s{seed}/checkpoint-{step}": {"family": "p", "type": "t", "parameters": 10, "seed": seed, "step": step}
       for seed in (1, 2, 3) for step in (0, 1, 2, 4, 10, 20, 30, 40)}  # fmt: skip
LAST = "p/s1/checkpoint-40"
OF_LAST = {"family": "p", "type": "t", "parameters": 10, "seed": 1, "step": 40}


def setting_pairs(vectors):
    return {row.setting: list(row.pairs) for row in scales.measure(vectors)}


def pairs_of(rows, *without):
    """The pairs of each setting but the random ones, and those named."""
    pairs = setting_pairs(vectors_of(rows))
    return {setting: found for setting, found in pairs.items() if setting not in ("random", "same type", *without)}


# ------------------------------------------------------------------------------------------------ which pairs are what


def test_runs_by_attributes_are_runs_by_name():
    """Only the last checkpoint of a run is a model of its own: no more pairs of architectures, nor of seeds."""
    about = [("f", "t", seed, step) for seed in (1, 2) for step in (10, 20, 30)]
    about += [("g", "u", 1, step) for step in (10, 20, 30)] + [("h", "w", None, None)]
    keys = ("family", "type", "seed", "step")
    rows = [{key: value for key, value in zip(keys, row, strict=True) if value is not None} for row in about]
    rows = [{**row, "parameters": 10, "warmup": 10} for row in rows]
    by_name = [f"{family}-s{seed}@step{step}" if step else family for family, _, seed, step in about]
    L = vectors_of(dict(zip(by_name, rows, strict=True))).log_likelihood
    texts = vectors_of({"x": {}}).texts
    anything = [f"x{n:02}" for n in range(len(rows))]
    found = [
        Vectors.from_arrays(
            L, names, texts, {name: {**row, "dtype": "float32"} for name, row in zip(names, rows, strict=True)}
        )
        for names in (by_name, anything)
    ]
    expected, declared = ({row.setting: sorted(row.values) for row in scales.measure(one)} for one in found)
    last = [2, 5, 8, 9]  # f 1, f 2, g 1, h: of these all but f 1 and f 2 differ in type
    assert len(expected["architecture"]) == len([*combinations(last, 2)]) - 1
    assert (
        declared.keys()
        == expected.keys()
        == {"early training", "later training", "seed", "architecture", "same type", "random"}
    )
    for setting in expected.keys() - {"random", "same type"}:
        np.testing.assert_allclose(declared[setting], expected[setting], rtol=1e-12)


def test_pairs_of_each_setting():
    rows = {
        **RUN,
        "p/big": {"family": "p", "type": "t", "parameters": 99, "seed": 1, "step": 40},
        "p/tuned": {"family": "p", "type": "t", "parameters": 10, "seed": 1, "parent": LAST},
        f"{LAST}+nf4": {**OF_LAST, "quantization": "nf4"},
        "p/s2/checkpoint-30+nf4": {**OF_LAST, "seed": 2, "step": 30, "quantization": "nf4"},
        f"{LAST}+int8-torchao": {**OF_LAST, "quantization": "int8-torchao"},
        "other/model": {"family": "q", "type": "u", "parameters": 13, "seed": 1, "step": 7},
        "other/more": {"family": "q", "type": "u", "parameters": 14, "seed": 1, "parent": "x/y"},
        **{f"p/big#{layer}": {"family": "p", "parameters": 99, "layer": layer} for layer in (0, 1, 2, 9, 10)},
        "nameless": {},
    }
    assert pairs_of(rows) == {
        "early training": [(f"p/s{s}/checkpoint-10", f"p/s{s}/checkpoint-20") for s in (1, 2, 3)],
        "later training": [
            (f"p/s{s}/checkpoint-{a}", f"p/s{s}/checkpoint-{b}") for s in (1, 2, 3) for a, b in ((20, 30), (30, 40))
        ],
        "seed": [
            (LAST, "p/s2/checkpoint-40"),
            (LAST, "p/s3/checkpoint-40"),
            ("p/s2/checkpoint-40", "p/s3/checkpoint-40"),
        ],
        "size": [(LAST, "p/big")],
        "fine-tuning": [(LAST, "p/tuned")],
        "4-bit (nf4)": [(LAST, f"{LAST}+nf4"), ("p/s2/checkpoint-30", "p/s2/checkpoint-30+nf4")],
        "8-bit (int8-torchao)": [(LAST, f"{LAST}+int8-torchao")],
        "layer": [("p/big#0", "p/big#1"), ("p/big#1", "p/big#2"), ("p/big#9", "p/big#10")],
        "architecture": [(f"p/s{s}/checkpoint-40", "other/model") for s in (1, 2, 3)],
    }


def test_pairs_do_not_depend_on_the_order_of_models():
    rows = {**RUN, **{f"q/{n}b": {"family": "q", "type": "u", "parameters": 8 + 3 * n} for n in range(12)}}
    shuffled = dict(np.random.default_rng(1).permutation(list(rows.items())).tolist())
    assert list(shuffled) != list(rows)
    assert setting_pairs(vectors_of(shuffled)) == setting_pairs(vectors_of(rows))


def test_halves_are_those_after_warm_up():
    """Warm-up ends where the attribute says, else one spacing after the start; a run may be there in part only."""

    def halves(steps, **known):
        rows = {f"r/checkpoint-{step}": {"step": step, **known} for step in steps}
        return {half: [(int(a[13:]), int(b[13:])) for a, b in pairs] for half, pairs in pairs_of(rows).items()}

    assert halves((100, 200, 300)) == {"early training": [(100, 200)], "later training": [(200, 300)]}
    assert halves((0, 100, 200, 300)) == halves((100, 200, 300)), "what starts from random weights is not counted"
    assert halves((1000, 1100, 1200)) == {"later training": [(1000, 1100), (1100, 1200)]}
    assert halves((0, 100, 200, 300, 400, 500), warmup=150) == {
        "early training": [(200, 300)], "later training": [(300, 400), (400, 500)],
    }  # fmt: skip


def test_runs_are_told_apart():
    """By their directory where no family is known; children, quantized and layer rows are in none."""
    rows = {f"{run}/checkpoint-{step}": {"step": step} for step in (100, 200, 300) for run in ("./a", "./b")}
    others = {
        **{f"./c/checkpoint-{step}": {"step": step, "parent": "./a"} for step in (100, 200)},
        **{f"./a/checkpoint-{step}+fp4": {"step": step, "quantization": "fp4"} for step in (100, 200)},
        **{f"./b/checkpoint-{step}#1": {"step": step, "layer": 1} for step in (100, 200)},
    }
    expected = {
        half: [(f"{run}/checkpoint-{a}", f"{run}/checkpoint-{b}") for run in ("./a", "./b")]
        for half, a, b in (("early training", 100, 200), ("later training", 200, 300))
    }
    assert pairs_of(rows) == expected
    assert pairs_of({**rows, **others}, "4-bit (fp4)") == expected


def test_a_missing_attribute_is_no_difference():
    a, b = ModelRef("p/a"), ModelRef("p/b")
    assert setting_of({"family": "p", "seed": 1}, {"family": "p", "seed": 2, "step": 5}, a, b) == "seed"
    assert setting_of({"family": "p", "seed": 1}, {"family": "p"}, a, b) is None
    assert setting_of({"family": "p", "seed": 1, "step": 1}, {"family": "p", "seed": 2, "step": 2}, a, b) is None
    assert setting_of({"seed": 1}, {"seed": 2}, a, b) is None, "models of unknown family are no relatives"
    assert setting_of({"type": "t", "parameters": 10}, {"type": "u"}, a, b) is None


def test_relatives_are_not_mistaken():
    rows = {
        "o/x-1b@step10": {"family": "x", "parameters": 1000, "step": 10},
        "o/x-1b-deduped@step10": {"family": "x", "parameters": 1000, "step": 10},
        "o/x-2b": {"family": "x", "parameters": 2000},
        "o/x-1b-chat": {"family": "x", "parameters": 1001},
        "o/x-3b": {"family": "x", "parameters": 3000, "parent": "o/x+y"},
    }
    assert pairs_of(rows) == {"size": [("o/x-1b-chat", "o/x-2b")]}


def test_fine_tunes_and_quantizations_are_told_apart():
    rows = {
        "o/base": {"dtype": "float32"},
        "o/base%bfloat16": {"dtype": "bfloat16"},
        "o/chat": {"parent": "o/base"},
        "o/chat+nf4": {"parent": "o/base", "quantization": "nf4"},
        "o/chat%bfloat16": {"parent": "o/base", "dtype": "bfloat16"},
        "o/base-GPTQ": {"parent": "o/base", "quantization": "gptq-4bit"},
        "o/base-AWQ": {"parent": "o/base", "quantization": "awq"},
        "o/base:base.Q8_0.gguf": {"quantization": "gguf-q8_0"},
        "o/loop": {"parent": "o/loop"},
    }
    assert pairs_of(rows) == {
        "fine-tuning": [("o/base", "o/chat"), ("o/base%bfloat16", "o/chat%bfloat16")],
        "4-bit (nf4)": [("o/chat", "o/chat+nf4")],
        "4-bit (gptq-4bit)": [("o/base", "o/base-GPTQ")],
        "quantization (awq)": [("o/base", "o/base-AWQ")],
        "8-bit (gguf-q8_0)": [("o/base", "o/base:base.Q8_0.gguf")],
    }


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        *((kind, f"8-bit ({kind})") for kind in ("int8", "int8-kernel", "gguf-q8_0", "bnb-8bit", "w8bit")),
        *((kind, f"4-bit ({kind})") for kind in ("nf4", "fp4-kernel", "int4", "gguf-q4_k_m", "gptq-4bit")),
        *((kind, f"quantization ({kind})") for kind in ("awq", "gguf-q5_1", "48bit", "int84")),
    ],
)
def test_quantizations_are_settings_of_their_own(kind, setting):
    assert quantization_setting(kind) == setting


def test_published_values_stand_beside_what_was_published():
    beside = {kind: scales.published_beside(quantization_setting(kind)) for kind in QUANTIZATIONS}
    assert {kind: row.setting for kind, row in beside.items() if row} == {
        "int8": "8-bit", "int8-kernel": "8-bit", "fp4": "4-bit", "fp4-kernel": "4-bit",
    }  # fmt: skip
    assert scales.published_beside("seed").median == 0.12
    assert scales.published_beside("architecture") is None


def test_one_pair_is_of_the_setting_that_the_scale_takes_it_for():
    rows = {
        **RUN,
        "p/big": {"family": "p", "type": "t", "parameters": 99, "seed": 1, "step": 40},
        f"{LAST}+nf4": {**OF_LAST, "quantization": "nf4"},
        "other/model": {"family": "q", "type": "u", "parameters": 13, "parent": "x/y"},
        "other/tuned": {"family": "q", "type": "u", "parameters": 13, "parent": "other/model"},
        "p/big#0": {"layer": 0}, "p/big#1": {"layer": 1},
    }  # fmt: skip
    vectors = vectors_of(rows)
    for setting, pairs in pairs_of(rows).items():
        for pair in pairs:
            at = [vectors.position(name) for name in pair]
            known = [vectors.attributes.iloc[n].dropna().to_dict() for n in at]
            refs = [vectors.models[n] for n in at]
            expected = "checkpoint" if "training" in setting else setting
            assert setting_of(*known, *refs) == setting_of(*known[::-1], *refs[::-1]) == expected


def test_random_pairs():
    """Of distinct models: as many as there are fine-tuning pairs, at least 20, none twice, all used alike."""
    rows = {
        **{f"o/{kind}-{n}b": {"type": kind} for kind in ("a", "b") for n in range(20)},
        **{f"o/a-{n}b%bfloat16": {"type": "a", "dtype": "bfloat16"} for n in range(20)},
        **{f"o/a-{n}b+nf4": {"type": "a", "quantization": "nf4"} for n in range(20)},
        "o/a-0b#1": {"type": "a", "layer": 1},
        **{f"r/checkpoint-{step}": {"step": step} for step in (10, 20)},
        "o/only-half%float16": {"dtype": "float16"},
    }
    distinct = {f"o/{kind}-{n}b" for kind in ("a", "b") for n in range(20)} | {"r/checkpoint-20", "o/only-half%float16"}
    measured = {row.setting: row for row in scales.measure(vectors_of(rows))}
    drawn, same = measured["random"].pairs, measured["same type"].pairs
    assert len(drawn) == len(set(map(frozenset, drawn))) == len(same) == len(set(map(frozenset, same))) == 20
    assert {name for pair in (*drawn, *same) for name in pair} <= distinct
    assert all(a[2] == b[2] for a, b in same)
    assert len({name for pair in drawn for name in pair}) == 40, "42 models make 21 pairs before any is used again"
    assert measured["random"].n_available == 42 * 41 // 2
    assert measured["same type"].n_available == 2 * 20 * 19 // 2

    tuned = {f"o/a-{n}b-tuned-{k}": {"parent": f"o/a-{n}b"} for n in range(10) for k in range(3)}
    assert len(setting_pairs(vectors_of({**rows, **tuned}))["random"]) == 30
    few = {f"o/a-{n}b": {"type": "a"} for n in range(6)}
    assert len(set(setting_pairs(vectors_of(few))["random"])) == 15


def test_a_large_setting_is_drawn_from(monkeypatch):
    monkeypatch.setattr(relatives, "MOST_PAIRS", 10)
    rows = {f"o/{kind}-{n}b": {"type": kind, "parameters": 10 + n} for kind in "abc" for n in range(4)}
    row = {row.setting: row for row in scales.measure(vectors_of(rows))}["architecture"]
    naive = {
        frozenset((a, b))
        for a, b in combinations(rows, 2)
        if rows[a]["type"] != rows[b]["type"]
        and max(rows[a]["parameters"], rows[b]["parameters"]) / min(rows[a]["parameters"], rows[b]["parameters"]) <= 1.3
    }
    assert (len(row.pairs), row.n_available) == (10, len(naive))
    assert set(map(frozenset, row.pairs)) < naive


# ---------------------------------------------------------------------------------------------------------- numbers


def naive_kl(vectors, a, b):
    x, y = (vectors.log_likelihood[vectors.position(name)] for name in (a, b))
    return sum((p - q - np.mean(x - y)) ** 2 for p, q in zip(x, y, strict=True)) / len(x) / (200 * np.log(2))


def test_medians_and_quartiles():
    """Against a loop over pairs, and the standard errors against those of the matrix."""
    vectors = vectors_of({**RUN, **{f"p/{n}b": {"family": "p", "parameters": 2**n} for n in range(6)}})
    rows = scales.measure(vectors)
    limit = 100 / (100 * np.log(2))  # 100 nats of texts of 100 bytes
    assert [row.median for row in rows] == sorted(row.median for row in rows)
    for row in rows:
        values = [naive_kl(vectors, *pair) for pair in row.pairs]
        errors = [vectors.kl()[pair].standard_error for pair in row.pairs]
        assert row.values == pytest.approx(values)
        assert row.standard_errors == pytest.approx(errors)
        ordered = sorted(values)
        n = len(ordered)
        assert row.median == pytest.approx((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)
        assert row.quartiles == pytest.approx(
            statistics.quantiles(values, method="inclusive")[::2] if n > 1 else 2 * values
        )
        assert row.n_in_range == sum(row.in_range) == sum(value <= limit for value in values)
    seed = next(row for row in rows if row.setting == "seed")
    assert seed.interval == pytest.approx((min(seed.values), max(seed.values)))
    assert (seed.interval_kind, seed.n_models, seed.n_available) == ("range", 3, 3)


def test_the_standard_error_over_texts_is_right():
    """One pair: its own. Three: that of medians in samples of the texts, drawn here anew; smaller than of one alone."""
    vectors = vectors_of({"p/a": {"family": "p", "seed": 1}, "p/b": {"family": "p", "seed": 2}}, n_texts=2000)
    row = next(row for row in scales.measure(vectors) if row.setting == "seed")
    assert row.standard_error == pytest.approx(vectors.kl()["p/a", "p/b"].standard_error)
    vectors = vectors_of(RUN)
    three = next(row for row in scales.measure(vectors) if row.setting == "seed")
    assert three.standard_errors[0] / 3 < three.standard_error < three.standard_errors[0]
    generator, medians = np.random.default_rng(1), []
    rows = [[vectors.log_likelihood[vectors.position(name)] for name in pair] for pair in three.pairs]
    for _ in range(400):
        drawn = generator.integers(0, len(vectors.texts), len(vectors.texts))
        length = 2 * vectors.texts.bytes[drawn].mean() * np.log(2)
        medians.append(np.median([(a[drawn] - b[drawn]).var() / length for a, b in rows]))
    assert three.standard_error == pytest.approx(np.std(medians, ddof=1), rel=0.2)
    without = next(row for row in scales.measure(vectors, resamples=0) if row.setting == "seed")
    assert without.median == three.median
    assert np.isnan(without.standard_error)


def test_texts_that_models_lack():
    """A pair is measured on the texts of both; one without any in common is left out."""
    vectors = vectors_of({f"p/{n}": {"family": "p", "seed": n} for n in range(4)})
    vectors.log_likelihood[0, :100] = vectors.log_likelihood[1, 100:] = np.nan
    row = next(row for row in scales.measure(vectors) if row.setting == "seed")
    assert ("p/0", "p/1") not in row.pairs
    assert len(row.pairs) == 5
    assert row.values == pytest.approx([vectors.kl()[pair].value for pair in row.pairs])
    assert row.standard_error > 0


# Intervals over models: what is drawn is what is independent.


def test_what_is_drawn_anew():
    """Layers of one model and checkpoints of one run are not independent; from five on, models and runs are drawn."""

    def kinds(n):
        runs = {f"r{k}/checkpoint-{s}": {"seed": k, "step": s} for k in range(n) for s in (10, 20, 30)}
        layers = {f"l{k}#{layer}": {"layer": layer} for k in range(n) for layer in range(20)}
        rows = scales.measure(vectors_of({**runs, **layers}), resamples=0)
        return {row.setting: (row.interval_kind, row.n_models) for row in rows if row.setting != "random"}

    settings = ("early training", "later training", "layer")
    assert kinds(4) == dict.fromkeys(settings, ("range", 4))
    assert kinds(5) == dict.fromkeys(settings, ("models", 5))


def test_seeds_are_drawn_as_models():
    rows = {f"p/{n}": {"family": "p", "seed": n} for n in range(8)}
    row = next(r for r in scales.measure(vectors_of(rows, spread=[1, 2, 3, 4, 5, 6, 7, 8])) if r.setting == "seed")
    assert (row.interval_kind, row.n_models) == ("models", 8)
    assert min(row.values) <= row.interval[0] < row.median < row.interval[1] <= max(row.values)


def test_the_interval_is_about_the_median_that_is_printed():
    """Of an even number of pairs that is the mean of the two in the middle, however far apart these are."""
    values = np.array([1.0, 10.0] * 6)
    low, high = interval_over_models(values, np.array([(n, n) for n in range(6) for _ in range(2)]))
    assert low <= np.median(values) <= high


def test_pairs_of_few_common_texts_leave_the_errors_of_a_setting_known():
    """Some samples of the texts hold neither of the two texts that the last two models have."""
    L = -50 - np.random.default_rng(3).gamma(2, 9, size=(4, 300))
    L[2:, 2:] = np.nan
    known = {f"m{k}": {"family": "m", "seed": k, "parameters": 10**6, "step": 10} for k in range(4)}
    vectors = Vectors.from_arrays(L, [*known], np.full(300, 100), known)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = (row for row in scales.measure(vectors) if row.setting == "seed")
        settings = examine_tails(vectors).settings
    assert found.standard_error == pytest.approx(np.std([*medians_of(vectors, found.pairs)], ddof=1), rel=1e-12)
    assert all(math.isfinite(of.standard_error) for row in settings for of in row.medians.values())


def medians_of(vectors, pairs):
    """The median over these pairs in each sample of the texts, one pair and one sample after the other."""
    for drawn in text_draws(len(vectors.texts), resamples=200):
        values = []
        for a, b in pairs:
            d = vectors.log_likelihood[vectors.position(a)] - vectors.log_likelihood[vectors.position(b)]
            there = ~np.isnan(d) & (drawn > 0)
            if there.any():
                mean = np.average(d[there], weights=drawn[there])
                values.append(np.average((d[there] - mean) ** 2, weights=drawn[there]) / (200 * math.log(2)))
        yield statistics.median(values)


def coverage(pairs, value_of, population, rounds=200):
    """How often the interval over models holds the median of the population; `value_of` draws the pairs' values."""
    generator, hits = np.random.default_rng(0), 0
    for _ in range(rounds):
        low, high = interval_over_models(value_of(generator), np.array(pairs))
        hits += low <= population <= high
    return hits / rounds


@pytest.mark.slow
def test_the_interval_over_models_covers():
    """KL between vectors of independent lengths in many dimensions, r_a + r_b: between all of 6, 7 or 12 models,
    and between the two of each of 6 or 20 pairs; and layers of 8 models, which differ between models only."""
    generator = np.random.default_rng(1)
    population = np.median(np.exp(0.6 * generator.normal(size=(100_000, 2))).sum(axis=1))
    for pairs in (
        list(combinations(range(6), 2)),
        list(combinations(range(7), 2)),
        list(combinations(range(12), 2)),
        [(n, n + 1) for n in range(0, 12, 2)],
        [(n, n + 1) for n in range(0, 40, 2)],
    ):
        a, b = np.array(pairs).T
        n = int(b.max()) + 1

        def lengths(generator, a=a, b=b, n=n):
            r = np.exp(0.6 * generator.normal(size=n))
            return r[a] + r[b]

        assert 0.90 <= coverage(pairs, lengths, population) <= 0.99
    layers = [(model, model) for model in range(8) for _ in range(12)]
    of_models = lambda generator: np.repeat(np.exp(generator.normal(size=8)), 12)  # noqa: E731
    assert 0.90 <= coverage(layers, of_models, 1.0) <= 0.99


# -------------------------------------------------------------------------------------------- published, and in words


def test_published_values_are_those_of_the_paper():
    rows = {row.setting: row.median for row in scales.published()}
    assert rows == {
        "later training": 0.011, "early training": 0.067, "seed": 0.12, "fine-tuning": 0.40, "8-bit": 0.44,
        "size": 0.48, "4-bit": 0.49, "same type": 0.95, "random": 2.2, "layer": 3.0,
    }  # fmt: skip
    assert all(row.source in ("P1v1", "P1v3") for row in scales.published())


def reported(value):
    """A KL by whole texts."""
    kl = SimpleNamespace(value=value, standard_error=0.0, interval=None, n_texts=2, n_documents=None)
    return ReportedKL.of_whole_texts(kl)


def test_published_values_hold_for_the_published_texts_only():
    lengths = np.full(10_000, 972, dtype=np.int64)
    lengths[:3188] += 1
    pile = TextSet(name="pile-10k", bytes=lengths, id="x", clip=PILE_CLIP)
    assert pile.mean_bytes == pytest.approx(972.3188)
    assert scales.published_holds(pile)
    assert not scales.published_holds(pile.with_clip(None))
    assert not scales.published_holds(TextSet.from_texts("pile-10k", ["x"] * 10_000, clip=PILE_CLIP))
    assert scales.place(reported(0.12), pile) == "1.0 times the median of 'seed' (0.12, published)"
    assert scales.place(reported(0.12), pile.with_clip(None)) is None


def test_a_pair_is_not_placed_on_itself():
    vectors = vectors_of({"p/a": {"family": "p", "seed": 1}, "p/b": {"family": "p", "seed": 2}})
    measured = scales.measure(vectors)
    assert scales.place(reported(0.1), vectors.texts, measured, pair=("p/b", "p/a")) is None
    assert "measured on these texts" in scales.place(reported(0.1), vectors.texts, measured, pair=("p/a", "p/c"))


def test_a_pair_is_placed_in_its_own_setting_first():
    """A seed pair far above the other seed pairs is compared with them, and not with what is nearest."""
    rows = {f"p/{n}": {"family": "p", "type": "t", "parameters": 10, "seed": n} for n in range(4)}
    rows |= {f"o/{n}": {"type": f"u{n}", "parameters": 10} for n in range(4)}
    vectors = vectors_of(rows, spread=[1.0, 1.1, 1.2, 20.0] + [20.0] * 4)
    measured, kl = scales.measure(vectors), vectors.reported_kl("p/0", "p/3")
    seeds = next(row for row in measured if row.setting == "seed")
    assert scales.place(kl, vectors.texts, measured, ("p/0", "p/3")).split("'")[1] == "architecture"
    own = scales.place(kl, vectors.texts, measured, ("p/3", "p/0"), scales.setting_between(vectors, "p/3", "p/0"))
    lower = sum(vectors.reported_kl(*pair).value < kl.value for pair in combinations(["p/0", "p/1", "p/2", "p/3"], 2))
    assert own.startswith(f"{kl.value / seeds.median:.1f} times the median of 'seed'")
    assert own.endswith(f", above {lower} of 5 others")


def test_yardsticks():
    """Random pairs are one for what exceeds every other setting; layers never are."""
    rows = {
        **{f"p/{n}": {"family": "p", "type": "t", "seed": n} for n in range(4)},
        **{f"o/{n}": {"type": "u"} for n in range(4)},
        "p/0#0": {"layer": 0}, "p/0#1": {"layer": 1},
    }  # fmt: skip
    vectors = vectors_of(rows, spread=[1.0] * 4 + [20.0] * 4 + [50.0] * 2)
    median = {row.setting: row.median for row in scales.measure(vectors)}
    assert median["seed"] < median["random"] < median["layer"]

    def placed(value):
        return scales.place(reported(value), vectors.texts, scales.measure(vectors)).split("'")[1]

    assert placed(median["seed"] / 50) == "seed"
    assert placed(median["seed"] * 0.99) == "seed"
    assert placed(median["random"]) == "random"
    assert placed(median["layer"]) in ("same type", "random")


def test_the_yardstick_is_the_nearest_median():
    """On a log axis; what is general counts above everything specific only."""
    lengths = np.full(10_000, 972, dtype=np.int64)
    lengths[:3188] += 1
    pile = TextSet(name="pile-10k", bytes=lengths, id="x", clip=PILE_CLIP)
    medians = {row.setting: row.median for row in scales.published() if row.setting != "layer"}
    specific = {name: median for name, median in medians.items() if name not in scales.UNSPECIFIC}
    for value in np.geomspace(1e-4, 1e2, 400):
        among = specific if value <= max(specific.values()) else medians
        least = min(abs(np.log(value / median)) for median in among.values())
        chosen = scales.place(reported(value), pile).split("'")[1]
        assert abs(np.log(value / among[chosen])) == pytest.approx(least)
    ends = [row.up_to for row in scales.yardsticks(pile)]
    assert ends == sorted(ends)
    assert np.isinf(ends[-1])


def test_layers_of_quantized_models_are_in_no_setting():
    rows = {f"m+int8#{n}": {"layer": n, "quantization": "int8"} for n in range(3)}
    assert "layer" not in setting_pairs(vectors_of({"n": {}, **rows}))


def test_ladders_are_of_each_model_its_variants_nearest_first():
    """By reference, by parent, by attributes; other models, other dtypes and layers are on none."""
    rows = {"org/a-1m": {}, "org/a-1m+nf4": {"quantization": "nf4"}, "org/a-1m+int8": {"quantization": "int8"},
            "org/a-1m%bfloat16": {"dtype": "bfloat16"}, "org/a-1m#1": {}, "org/b-1m": {},
            "org/b-1m-AWQ": {"quantization": "awq", "parent": "org/b-1m"},
            "org/c-1m+nf4": {"quantization": "nf4"}}  # fmt: skip
    vectors, names = vectors_of(rows), list(rows)
    L = vectors.log_likelihood
    L[1], L[2] = 0.8 * L[0] + 0.2 * L[1], 0.9 * L[0] + 0.1 * L[2]
    assert relatives.ladders(vectors) == {"org/a-1m": ["org/a-1m+int8", "org/a-1m+nf4"], "org/b-1m": ["org/b-1m-AWQ"]}
    naive = {name: np.var(L[0] - L[names.index(name)]) for name in relatives.ladders(vectors)["org/a-1m"]}
    assert list(naive) == sorted(naive, key=naive.get)
    apart = L.copy()
    apart[1, ::2], apart[0, 1::2] = np.nan, np.nan
    apart[2, 1::2] = np.nan
    assert relatives.ladders(replace(vectors, log_likelihood=apart))["org/a-1m"] == ["org/a-1m+int8"]
    assert relatives.ladders(vectors.subset(["org/a-1m", "org/b-1m"])) == {}


@pytest.fixture
def of_seeds(tmp_path, monkeypatch):
    """A store with six models of two families, which keeps its scale."""
    monkeypatch.setattr(kept_scales, "MANY", 2)
    L = -100 - np.random.default_rng(0).gamma(2, 10, (6, 50))
    names = [f"m{n}" for n in range(6)]
    known = {name: {"family": "abc"[n // 3], "seed": n, "type": "t"} for n, name in enumerate(names)}
    store = Store(tmp_path / "store")
    store.import_vectors(Vectors.from_arrays(L, names, np.full(50, 100), known), "given")
    return store


def counted(monkeypatch):
    """How often a scale is measured from now on."""
    calls, measure = [], kept_scales.scales.measure
    monkeypatch.setattr(kept_scales.scales, "measure", lambda *a, **k: calls.append(1) or measure(*a, **k))
    return calls


def test_a_kept_scale_is_what_is_measured(of_seeds, monkeypatch):
    expected = tuple(kept_scales.scales.measure(of_seeds.vectors(of_seeds.resolve_texts(None))))
    assert expected[0].standard_error > 0
    calls, location = counted(monkeypatch), of_seeds.location
    assert [klscale.scale(store=location).settings for _ in range(2)] == [expected, expected]
    assert klscale.compare(["m0", "m1"], store=location).measured == expected
    assert len(calls) == 1


@pytest.mark.parametrize("change", ["model", "clip", "damage", "format", "fewer values"])
def test_a_kept_scale_of_other_models_or_texts_is_not_taken(of_seeds, monkeypatch, change):
    klscale.compare(["m0", "m1"], store=of_seeds.location)
    calls, texts = counted(monkeypatch), of_seeds.resolve_texts(None)
    (kept,) = Path(of_seeds.location).glob("summaries/*/scale.json")
    if change == "model":
        of_seeds.remove(of_seeds.entries(texts.id)[-1])
    elif change == "clip":
        of_seeds.put_texts(replace(texts, clip=-130.0))
    elif change == "damage":
        kept.write_bytes(kept.read_bytes().replace(b'"n_models": ', b'"n_models": 1'))
    elif change == "fewer values":
        rows, key, resamples = measured_records.scale_from_json(kept.read_bytes(), texts.id)
        of_seeds.keep_scale(texts.id, key, [{**row, "values": row["values"][1:]} for row in rows], resamples)
    else:
        monkeypatch.setattr(kept_scales, "FORMAT", 99)
    found = klscale.compare(["m0", "m1"], store=of_seeds.location).measured
    fresh = Store(of_seeds.location)
    expected = kept_scales.scales.measure(fresh.vectors(fresh.resolve_texts(None)), resamples=0)
    assert [row.values for row in found] == [row.values for row in expected]
    assert len(calls) == 2


def test_an_error_of_medians_is_not_taken_from_a_scale_without(of_seeds, monkeypatch):
    measured = klscale.compare(["m0", "m1"], store=of_seeds.location).measured
    assert np.isnan(measured[0].standard_error)
    assert klscale.scale(store=of_seeds.location).settings[0].standard_error > 0
