"""What results say in sentences, against numbers that are worked out by hand or by a plain loop."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from klscale.inputs.texts import TextSet
from klscale.science.estimates import Estimate, format_estimate
from klscale.show import cautions, sentences
from klscale.studies import lens, scales
from klscale.studies.scales import Setting
from klscale.vectors.vectors import CONVENTION, Vectors

BYTES, N = 100, 400
SCALE = 2 * BYTES * math.log(2)
WAVE = np.tile([-1.0, 1.0], N // 2)
ACROSS = np.tile([-1.0, -1.0, 1.0, 1.0], N // 4)
"""Two patterns without a mean, at right angles: of x WAVE, KL is x² / SCALE."""


def made(rows, dtypes=None, clip=None):
    """Vectors of models {name: values (N,)}; what is quantized is told by the name."""
    each = dtypes or ["float32"] * len(rows)
    known = {name: {"dtype": dtype, "convention": CONVENTION} for name, dtype in zip(rows, each, strict=True)}
    texts = TextSet(name="made", id="0123456789ab", bytes=np.full(N, BYTES), clip=clip)
    return Vectors.from_arrays([*rows.values()], [*rows], texts, known)


def shown(name):
    return f"<{name}>"


def kl_by_hand(a, b):
    """`0.0231 ± 0.0012` of two rows, with the error of a mean of squares over texts."""
    squares = (a - b - (a - b).mean()) ** 2 / SCALE
    return format_estimate(squares.mean(), squares.std() / math.sqrt(N))


# ------------------------------------------------------------------------------------------------------- what to mind


def test_each_caution_is_that_of_its_pairs():
    """By a plain loop over pairs: what is out of range, unclipped, heavy-tailed, incomplete, of another dtype,
    what rounding has added a part of, and what it may have made alone."""
    generator = np.random.default_rng(1)
    base = -100 + 3 * generator.standard_normal(N)
    rows = {
        name: base + generator.standard_normal(N)
        for name in ("a", "b", "low", "few", "spike", "short", "half", "early", "late", "far")
    }
    rows["low"][: N // 10] = -150.0  # a tenth of the vector below the clip
    rows["few"][: N // 25] = -150.0  # 4 %: clipped like any other
    rows["spike"][3] = -60.0
    rows["short"][7] = np.nan
    rows["early"][N // 2 :] = rows["late"][: N // 2] = np.nan
    rows["far"] -= 45  # 2.1 bits/byte
    dtypes = ["float32"] * 6 + ["bfloat16"] + [None] * 3
    vectors = made(rows, dtypes, clip=-148.0)
    noise = np.full((len(rows),) * 2, np.nan)
    for a, b, level in ((0, 1, 0.002), (0, 6, 0.03), (1, 6, 0.0001)):  # of a KL of about 0.014
        noise[a, b] = noise[b, a] = level
    object.__setattr__(vectors, "noise", lambda i, j: noise[i, j])
    around = cautions.Around(vectors)
    places = np.indices((len(rows),) * 2)
    found = cautions.flags(around.pairs(*places))
    np.testing.assert_array_equal(found, found.T)
    seen = set()
    for i, (a, one) in enumerate(rows.items()):
        for j, (b, other) in enumerate(rows.items()):
            if i >= j:
                continue
            common = ~np.isnan(one - other)
            below = max((row[common] < -148).mean() for row in (one, other)) if common.any() else 0
            kept = (one - other if below > 0.05 else np.maximum(one, -148) - np.maximum(other, -148))[common]
            level = max(-np.nanmean(row) for row in (one, other)) / (BYTES * math.log(2))
            wanted = {"unclipped"} if below > 0.05 else set()
            if kept.size:
                wanted |= {"out_of_range"} if kept.var() / 2 > 100 or level > 2 else set()
                wanted |= {"heavy_tails"} if stats.kurtosis(kept, fisher=False) > 10 else set()
            wanted |= {"some_texts"} if kept.size < N else set()
            wanted |= {"different_dtypes"} if "half" in (a, b) and None not in (dtypes[i], dtypes[j]) else set()
            if kept.size and not np.isnan(noise[i, j]):
                share = noise[i, j] / (kept.var() / SCALE)
                wanted |= {"below_noise_floor"} if share >= 1 else {"rounding_noise"} if share > 0.1 else set()
            assert {key for key, bit in cautions.BITS.items() if found[i, j] & bit} == wanted, (a, b)
            told = cautions.warnings(around.pair(a, b), vectors.texts)
            assert len(told) == len(wanted), (a, b, told)
            for key, words in (
                ("unclipped", f"the clip would move {below:.0%} of a vector"),
                ("heavy_tails", "heavy tails"), ("different_dtypes", "dtypes"),
                ("rounding_noise", "rounding noise is about 0.002 bits/byte"),
                ("below_noise_floor", "below run-to-run noise"),
            ):  # fmt: skip
                assert any(words in sentence for sentence in told) == (key in wanted), (a, b, told)
            assert any(f"only {kept.size:,} of {N:,} texts" in sentence for sentence in told) == (
                "some_texts" in wanted
            )
            seen |= wanted
    assert seen == {*cautions.BITS} - {"poor_draws"}, "without sampled tokens"


@pytest.mark.parametrize(("count", "words"), [(1, "one document"), (19, "only 19 documents"), (20, ""), (0, "")])
def test_few_documents_are_said(count, words):
    documents = tuple(n % count for n in range(N)) if count else None
    texts = TextSet(name="made", id="0123456789ab", bytes=np.full(N, BYTES), document=documents)
    assert [words in sentence for sentence in cautions.of_documents(texts)] == [True] * bool(words)


# ------------------------------------------------------------------------------------------------- models and pairs


def test_the_best_model_is_that_of_all_texts():
    """By how much the next is behind, from hand; whether that is beyond the error; and of which models that is said."""
    generator = np.random.default_rng(2)
    base = -100 + 5 * generator.standard_normal(N)
    rows = {"poor": base - 4, "good": base - 1 + WAVE, "best": base.copy()}
    (told,) = sentences.of_models(made(rows), shown)
    behind = (rows["best"] - rows["good"]) / (BYTES * math.log(2))
    more = format_estimate(behind.mean(), behind.std() / math.sqrt(N))
    level = -base / (BYTES * math.log(2))
    assert told == (
        f"<best> predicts the texts best, with {format_estimate(level.mean(), level.std() / math.sqrt(N))} bits/byte; "
        f"next is <good>, with {more} more."
    )
    (told,) = sentences.of_models(made({**rows, "good": base - 0.01 + 3 * generator.standard_normal(N)}), shown)
    assert told.endswith(" (the 95 % interval includes 0).")
    lacking = {**rows, "short": base + 9}
    lacking["short"][0] = np.nan  # better on those that it has, and easier ones may be missing
    quantized = {**rows, "best+int8": base + 9}
    for models, which in (
        (lacking, "Of the models that have all texts, <best>"),
        (quantized, "Of the models that are not quantized, <best>"),
        ({**lacking, **quantized}, "Of the models that are not quantized and have all texts, <best>"),
    ):
        (told,) = sentences.of_models(made(models), shown)
        assert told.startswith(which)
    assert not [*sentences.of_models(made({"one": base, "one+int8": base - 1}), shown)]
    assert not [*sentences.of_models(made({"one": base, "same": base}), shown)]


def test_the_nearest_and_the_farthest_pair_are_told():
    """Four models on a line: 0, 3, 4 and 19; a fifth that is quantized does not count; nor a pair without texts."""
    base = -100 + 2 * ACROSS
    place = {"a": 0, "b": 3, "c": 4, "d": 19}
    rows = {name: base + x * WAVE + 0.1 * x * x * ACROSS for name, x in place.items()}
    near, far = sentences.of_pairs(made(rows), shown)
    assert (
        near == f"<b> and <c> are nearest to each other: {kl_by_hand(rows['b'], rows['c'])} bits/byte (by whole texts)."
    )
    farthest = f"{kl_by_hand(rows['a'], rows['d'])} bits/byte (by whole texts) (out of range)"
    assert far == f"<a> and <d> are farthest apart: {farthest}."
    near, far = sentences.of_pairs(made({**rows, "a+int8": base - 30 * WAVE}), shown)
    assert near.startswith("Of the models that are not quantized, <b> and <c>")
    assert far.startswith("Of the models that are not quantized, <a> and <d>")
    for name, part in (("a", slice(N // 2)), ("d", slice(N // 2, N))):
        rows[name] = rows[name].copy()
        rows[name][part] = np.nan
    _, far = sentences.of_pairs(made(rows), shown)
    assert far.startswith("<b> and <d> are farthest apart")
    assert not [*sentences.of_pairs(made({"a": base, "b": base + WAVE}), shown)]
    assert not [*sentences.of_pairs(made(dict.fromkeys("abc", base)), shown)]


# ------------------------------------------------------------------------------------------------------------- scale


def setting(name, median, in_range):
    n = len(in_range)
    pairs = tuple((f"a{k}", f"b{k}") for k in range(n))
    return Setting(
        name, median, median / 10, (median, median), (median, median), "range", pairs, (median,) * n,
        (median / 10,) * n, tuple(in_range), n, sum(in_range), n,
    )  # fmt: skip


def test_the_scale_is_told_and_what_of_it_is_no_kl():
    """Half of the pairs in range is enough; layers are not in the sentence."""
    texts = made({"a": WAVE - 50}).texts
    rows = [
        setting("seed", 0.05, (True, True, False)), setting("size", 0.5, (True, False)),
        setting("family", 2.0, (True, False, False)), setting("layer", 9.0, (False,)),
    ]  # fmt: skip
    medians, out, published = sentences.of_scale(rows, texts)
    assert medians.endswith(": seed 0.0500 ± 0.0050; size 0.500 ± 0.050; family 2.00 ± 0.20.")
    assert out == "Out of range, distances rather than KL: family."
    assert "are not comparable" in published
    assert [*sentences.of_scale(rows[:2], texts)] == [medians.split("; family")[0] + ".", published]
    assert [*sentences.of_scale(rows[2:], texts)][1] == "Out of range, distances rather than KL: all of these."
    assert not [*sentences.of_scale(rows[3:], texts)]
    ten_thousand = replace(texts, bytes=np.full(10_000, scales.PILE_MEAN_BYTES), clip=scales.PILE_CLIP)
    assert [*sentences.of_scale(rows[:1], ten_thousand)] == [medians.split("; size")[0] + "."]


# ------------------------------------------------------------------------------------------------------ trajectories


def pure(value, error):
    return Estimate(value, error, (value - 2 * error, value + 2 * error), 0, unit="")


def moved(name, c_q, c_w=None, settled=None, steps=(0, 100, 2000)):
    """As much of a trajectory as sentences need; `settled` is its step and interval."""
    curve = settled and SimpleNamespace(threshold=0.04, step=settled[0], interval=settled[1])
    exponent = None if c_q is None else SimpleNamespace(value=c_q)
    return SimpleNamespace(
        run=SimpleNamespace(name=name, steps=steps),
        behaviour=SimpleNamespace(exponent=exponent, stabilisation=curve),
        weights=None if c_w is None else SimpleNamespace(exponent=SimpleNamespace(value=c_w)),
    )


def test_how_runs_move_is_told_with_each_number_in_its_place():
    c_q, over_seeds, c_w, alpha = pure(0.41, 0.01), pure(0.42, 0.02), pure(0.83, 0.03), pure(0.54, 0.04)
    group = SimpleNamespace(runs=("s1", "s2"), c_q=c_q, c_q_over_seeds=over_seeds, c_w=c_w, alpha=alpha)
    runs = [
        moved("s1", pure(0.1, 0.01), settled=(100, (0.0, 2000.0))),
        moved("s2", pure(0.1, 0.01), settled=(2000, (100.0, 2000.0))),
        moved("alone", pure(0.25, 0.05), pure(0.75, 0.06), settled=(0, (0.0, 0.0))),
        moved("bare", pure(0.35, 0.05)),
        moved("short", None),
    ]
    of_seeds, alone, bare, settled = sentences.of_trajectories(runs, [group], "the median between seeds", shown)
    assert of_seeds == (
        "Over 2 seeds, squared distance grows as lag^c, with c_q = 0.410 ± 0.010 in log-likelihood space (± over "
        "texts; 0.420 ± 0.020 over seeds) and c_w = 0.830 ± 0.030 in weight space (± over seeds; 1: ordinary "
        "diffusion). alpha = c_q / c_w is 0.540 ± 0.040 (± over seeds)."
    )
    grows, where = "squared distance grows as lag^c, with c_q =", "in log-likelihood space"
    in_weights = "and c_w = 0.750 ± 0.060 in weight space"
    assert alone == f"<alone>: {grows} 0.250 ± 0.050 {where} {in_weights} (1: ordinary diffusion)."
    assert bare == f"<bare>: {grows} 0.350 ± 0.050 {where} (1: ordinary diffusion)."
    assert settled == (
        "Stabilisation, the first step from which every later checkpoint lies within the threshold of the last (0.04 "
        "bits/byte, the median between seeds; 95 % interval over texts): <s1> step 100 (0 to 2,000); <s2> "
        "only its last, step 2,000; <alone> by its first, step 0."
    )
    many = [moved(f"r{n}", pure(0.1, 0.01)) for n in range(sentences.MOST + 2)]
    told = [*sentences.of_trajectories(many, [], "", shown)]
    assert len(told) == sentences.MOST + 1
    assert told[-1] == "2 more: see below."
    assert len([*sentences.of_trajectories(many[: sentences.MOST], [], "", shown)]) == sentences.MOST


# --------------------------------------------------------------------------------------------- layers and variants


def test_where_layers_change_most_is_told():
    """From layer to layer by 5, 1, 3 and 20: of the last, KL is out of range."""
    base = -100 + 2 * ACROSS
    for places, most, least in (((0, 5, 6, 9), 1, 2), ((0, 5, 6, 26), 3, 2), ((0, 1, 6, 9), 2, 1)):
        rows = {f"m#{n}": base + x * WAVE + 0.1 * x * x * ACROSS for n, x in enumerate(places)}
        values = [*rows.values()]
        (told,) = sentences.of_layers(lens.layers(made(rows)), shown)
        large, small = (kl_by_hand(values[n - 1], values[n]) for n in (most, least))
        beyond = " (out of range)" if 26 in places else ""
        assert told == (
            f"<m>: KL from layer to layer is largest into layer {most}, {large} bits/byte{beyond}, and smallest into "
            f"layer {least}, {small} bits/byte."
        )
    found = lens.layers(made(rows))
    many = {f"m{n}": found["m"] for n in range(sentences.MOST + 1)}
    assert [*sentences.of_layers(many, shown)][-1] == "1 more: see below."


def test_variants_are_told_nearest_first_and_only_those_are_worse_that_are_beyond_the_error():
    """One that is better, one that is worse, one that is worse but within the error, one that is far."""
    generator = np.random.default_rng(4)
    base = -100 + 2 * generator.standard_normal(N)
    noise = generator.standard_normal(N)
    noise -= noise.mean()
    shift = {"m+int8": (-0.2, 1), "m+nf4": (1, 2), "m+fp4": (-0.1, 8), "m+int4": (-5, 20)}
    rows = {"m": base, **{name: base + mean + size * noise for name, (mean, size) in shift.items()}}
    ladder = {"m": [f"m+{kind}" for kind in ("int8", "nf4", "fp4", "int4")]}
    vectors = made(rows)
    (told,) = sentences.of_ladders(vectors, ladder, shown)
    error = rows["m"] - rows["m+fp4"]
    assert 0 < error.mean() < error.std() / math.sqrt(N), "worse, within the error"
    rungs = ", ".join(
        f"{name.removeprefix('m+')} {kl_by_hand(base, rows[name])}{' (out of range)' if name == 'm+int4' else ''}"
        for name in ladder["m"]
    )
    assert told == (
        f"Quantized variants of <m>, KL from it in bits/byte, nearest first: {rungs}; predict the texts worse "
        "(95 % interval above 0): int8, int4."
    )
    (told,) = sentences.of_ladders(vectors, {"m": ["m+nf4", "m+fp4"]}, shown)
    assert "worse" not in told
    many = {**{f"m{n}": [] for n in range(sentences.MOST)}, **ladder}
    assert [*sentences.of_ladders(vectors, many, shown)][-1] == "1 more: see below."
