"""What results say, in sentences: the summary of a report, and what keeps a number from being read plainly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.inputs.texts import TextSet
from klscale.science.arrays import Floats
from klscale.science.estimates import format_estimate
from klscale.science.kl import KL, KLMatrix
from klscale.show.cautions import CAUTIONS
from klscale.studies import scales
from klscale.studies.lens import Layer
from klscale.studies.scales import Setting
from klscale.studies.trajectories import Seeds, Trajectory
from klscale.vectors.vectors import NOISE_LIMIT, Vectors


def cautions(matrix: KLMatrix, texts: TextSet, dtypes: Sequence[Any], noise: Floats) -> NDArray[np.uint8]:
    """The bits of `CAUTIONS` that hold for each pair (K, K); `noise` is that of `Vectors.noise`."""
    some, most = noisy(matrix.value, noise)
    known = np.array([dtype or "" for dtype in dtypes], dtype=str)
    with np.errstate(invalid="ignore"):
        holds = {
            1: ~matrix.in_range & ~np.isnan(matrix.value),
            2: matrix.left_unclipped,
            4: matrix.heavy_tails,
            8: matrix.n_texts < len(texts),
            16: (known[:, None] != known) & (known[:, None] != "") & (known != ""),
            32: some & ~most,
            64: most,
        }
    found = np.zeros(matrix.value.shape, dtype=np.uint8)
    for bit, where in holds.items():
        found |= np.where(where, bit, 0).astype(np.uint8)
    return found


def noisy(value: Floats | float, noise: Floats | float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where rounding `noise` is more than 10 % of a KL, and where it is all of it; nowhere where it is not known, and
    not where two readings agree on every text."""
    value, noise = np.asarray(value), np.asarray(noise)
    return (value > 0) & (noise > NOISE_LIMIT * value), (value > 0) & (noise >= value)


def warnings_of(kl: KL, texts: TextSet, a_dtype: Any, b_dtype: Any, noise: float = math.nan) -> list[str]:
    """What keeps a pair's number from being read plainly, with the figures behind it; one short sentence each. `noise`
    is what rounding adds to the KL (`Vectors.noise`), NaN where not known."""
    found = []
    if not kl.in_range and not math.isnan(kl.value):
        found.append(CAUTIONS[1])
    if kl.left_unclipped:
        found.append(f"not clipped: the clip would move {kl.clipped:.0%} of a vector")
    if kl.heavy_tails:
        found.append(f"heavy tails (kurtosis {kl.kurtosis:.0f}): the interval covers less often than 95 %")
    if kl.n_texts < len(texts):
        found.append(f"only {kl.n_texts:,} of {len(texts):,} texts were scored with both models")
    found += warnings_of_documents(texts)
    if a_dtype and b_dtype and a_dtype != b_dtype:
        found.append(f"different dtypes ({a_dtype}, {b_dtype}): their rounding is part of the value")
    some, most = noisy(kl.value, noise)
    if most:
        found.append(
            f"below the noise floor: rounding alone adds about {noise:.2g} bits/byte, the KL is {kl.value:.2g}"
        )
    elif some:
        found.append(f"rounding noise is about {noise:.2g} bits/byte of the KL, {noise / kl.value:.0%} of it")
    return found


def warnings_of_documents(texts: TextSet) -> list[str]:
    """What keeps the standard errors of all numbers on these texts from being read plainly."""
    count = len(set(texts.document or ()))
    if count == 1:
        return ["all texts are of one document: they are not independent, and the standard error is too small"]
    if 1 < count < min(20, len(texts)):
        return [f"only {count} documents: the standard error is itself uncertain"]
    return []


# -------------------------------------------------------------------------------------------- summary of a report


Shown = Callable[[str], str]
"""A model or a run, by the name that the rest of the program has for it, as a reader sees it."""
MOST = 3
"""Sentences of one kind before the rest is counted."""


def of_models(vectors: Vectors, shown: Shown) -> Iterator[str]:
    """Which model predicts the texts best; of those that are not quantized and have all texts."""
    whole: list[bool] = np.asarray(~np.isnan(vectors.log_likelihood).any(axis=1)).tolist()
    kinds = vectors.attributes["quantization"]
    names = [
        name for name, kind, all_texts in zip(vectors.names, kinds, whole, strict=True) if kind is None and all_texts
    ]
    levels = {name: vectors.bits_per_byte(name) for name in names}
    if len(names) < 2 or len({level.value for level in levels.values()}) < 2:
        return
    best, second = sorted(names, key=lambda name: levels[name].value)[:2]
    behind = vectors.bits_per_byte(second, best)
    told = "" if behind.interval[0] > 0 else ", which is within the error"
    more = format_estimate(behind.value, behind.standard_error)
    yield (
        f"{_of_which(vectors, names)}{shown(best)} predicts the texts best, with {levels[best]}; next is "
        f"{shown(second)}, behind by {more}{told}."
    )


def of_pairs(vectors: Vectors, shown: Shown) -> Iterator[str]:
    """The nearest and the farthest pair of the models that are not quantized."""
    places = np.flatnonzero([kind is None for kind in vectors.attributes["quantization"]])
    if len(places) < 3:
        return
    names, matrix = vectors.names, vectors.kl()
    i, j = (places[ends] for ends in np.triu_indices(len(places), k=1))
    value = matrix.value[i, j]
    order, n_known = np.argsort(value), int((~np.isnan(value)).sum())  # what is not known comes last
    if n_known < 2 or value[order[n_known - 1]] == 0:
        return
    which = _of_which(vectors, [names[place] for place in places])
    for what, pair in (("nearest to each other", order[0]), ("farthest apart", order[n_known - 1])):
        a, b = int(i[pair]), int(j[pair])
        kl = matrix[a, b]
        yield f"{which}{shown(names[a])} and {shown(names[b])} are {what}: {kl}{_mark(kl)}."


def _of_which(vectors: Vectors, names: Sequence[str]) -> str:
    """Words for a part of the models, none for all of them."""
    if len(names) == len(vectors):
        return ""
    quantized = sum(kind is not None for kind in vectors.attributes["quantization"])
    which = ["are not quantized"] if quantized else []
    which += ["have all texts"] if len(names) + quantized < len(vectors) else []
    return f"Of the models that {' and '.join(which)}, "


def of_scale(measured: Sequence[Setting], texts: TextSet) -> Iterator[str]:
    """The scale in one sentence, smallest setting first."""
    rows = [row for row in measured if row.setting != "layer"]
    if rows:
        medians = (f"{row.setting} {format_estimate(row.median, row.standard_error)}" for row in rows)
        yield f"Median KL of each setting on these texts, bits/byte ± standard error over texts: {'; '.join(medians)}."
    out = [row.setting for row in rows if row.n_in_range < len(row.pairs) / 2]
    if out:
        which = "all of these" if len(out) == len(rows) else ", ".join(out)
        yield f"Out of range, distances rather than KL: {which}."
    if rows and not scales.published_holds(texts):
        yield "Published values hold for pile-10k only: they stand beside these, and are not comparable with them."


def of_trajectories(found: Sequence[Trajectory], seeds: Sequence[Seeds], source: str, shown: Shown) -> Iterator[str]:
    """How the runs move: exponents, over seeds where there are several, and from which step they have settled."""
    for group in seeds:
        yield (
            f"Over {len(group.runs)} seeds, squared distance grows with lag as its {group.c_q} power in "
            f"log-likelihoods (± over texts; {group.c_q_over_seeds} over seeds) and its {group.c_w} power in weights "
            f"(± over seeds; 1: diffusion); alpha {group.alpha} (± over seeds)."
        )
    pooled = {name for group in seeds for name in group.runs}
    alone = [one for one in found if one.run.name not in pooled and one.behaviour.exponent is not None]
    yield from _first([_growth(one, shown) for one in alone])
    settled, level = [], 0.0
    for one in found:
        curve = one.behaviour.stabilisation
        if curve is None or curve.threshold is None or curve.step is None or curve.interval is None:
            continue
        level, (low, high) = curve.threshold, curve.interval
        when = f"step {curve.step:,} ({low:,.0f} to {high:,.0f})"
        if curve.step == one.run.steps[-1]:
            when = f"only its last, step {curve.step:,}"
        elif curve.step == one.run.steps[0]:
            when = f"by its first, step {curve.step:,}"
        settled.append(f"{shown(one.run.name)} {when}")
    if settled:
        yield (
            f"First step (95 % interval over texts) from which a run stays within {level:.3g} bits/byte of its last "
            f"checkpoint, {source}: {'; '.join(settled)}."
        )


def _growth(one: Trajectory, shown: Shown) -> str:
    exponent, weights = one.behaviour.exponent, one.weights.exponent if one.weights else None
    assert exponent is not None
    also = "" if weights is None else f", in weights as its {weights.value} power"
    return (
        f"{shown(one.run.name)}: squared distance in log-likelihoods grows with lag as its {exponent.value} "
        f"power{also} (1: diffusion)."
    )


def of_layers(found: Mapping[str, Sequence[Layer]], shown: Shown) -> Iterator[str]:
    """Where the layers of each model change the most."""
    said = []
    for model, rows in found.items():
        steps = [(row.from_previous, row.layer) for row in rows if row.from_previous is not None]
        if steps:
            (most, into), (least, other) = (choose(steps, key=lambda step: step[0].value) for choose in (max, min))
            said.append(
                f"{shown(model)}: KL from layer to layer is largest into layer {into}, {most}{_mark(most)}, and "
                f"smallest into layer {other}, {least}{_mark(least)}."
            )
    yield from _first(said)


def of_ladders(vectors: Vectors, ladders: Mapping[str, Sequence[str]], shown: Shown) -> Iterator[str]:
    """The quantized variants of each model, nearest first."""
    said, matrix = [], vectors.kl()
    for base, variants in ladders.items():
        rungs, costly = [], []
        for name in variants:
            kl, kind = matrix[vectors.position(base), vectors.position(name)], vectors.attributes["quantization"][name]
            rungs.append(f"{kind} {format_estimate(kl.value, kl.standard_error)}{_mark(kl)}")
            if vectors.bits_per_byte(name, base).interval[0] > 0:
                costly.append(str(kind))
        worse = f"; worse than it beyond the error: {', '.join(costly)}" if costly else ""
        said.append(
            f"Quantized variants of {shown(base)}, KL from it in bits/byte, nearest first: {', '.join(rungs)}{worse}."
        )
    yield from _first(said)


def _first(sentences: Sequence[str]) -> Iterator[str]:
    yield from sentences[:MOST]
    if len(sentences) > MOST:
        yield f"Likewise for {len(sentences) - MOST:,} more, below."


def _mark(kl: KL) -> str:
    return "" if kl.in_range else " (out of range)"
