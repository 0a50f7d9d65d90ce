"""Results in sentences: the summary of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from klscale.inputs.texts import TextSet
from klscale.science.estimates import Estimate, format_estimate
from klscale.show.cautions import Around, Measured
from klscale.studies import scales
from klscale.studies.lens import Layer
from klscale.studies.scales import Setting
from klscale.studies.trajectories import Seeds, Stabilisation, Trajectory
from klscale.vectors.vectors import Vectors

SETTLED = "the first step from which every later checkpoint lies within the threshold of the last"
"""The definition of stabilisation, for tables, documents and the page."""

Shown = Callable[[str], str]
"""Name of a model or run -> the name that a reader sees."""
MOST = 3
"""Largest number of sentences of one kind; the rest is counted."""


_KINDS = {
    "checkpoint": "Two checkpoints of one run",
    "early training": "Neighbouring checkpoints in the first half of training",
    "later training": "Neighbouring checkpoints in the second half of training",
    "seed": "Two seeds of one recipe",
    "size": "Two sizes of one family",
    "architecture": "Different architectures of about equal size",
    "fine-tuning": "A model and its fine-tuned child",
    "layer": "Neighbouring layers of a model",
}


def of_setting(setting: str) -> str:
    """What two models of a setting are to each other."""
    if setting.startswith("attention"):
        return f"A model and itself with its attention computed otherwise, {setting}"
    return _KINDS.get(setting, f"A model and its quantized variant, {setting}")


def which_is_better(difference: Estimate) -> tuple[int | None, str]:
    """Which of two models is better on these texts, by the first's bits per byte less the second's: its place, 0 or 1,
    None where this cannot be told, and what it is, in words."""
    value, error, (low, high) = difference.value, difference.standard_error, difference.interval
    if error == 0 and value == 0:
        return None, "identical on every text"
    if not math.isfinite(error):
        return None, "which is better cannot be told from so few texts"
    if low <= 0 <= high:
        return None, f"neither is better within the error ({format_estimate(abs(value), error)} bits/byte)"
    return int(value > 0), f"is better by {format_estimate(abs(value), error)} bits/byte"


def of_models(vectors: Vectors, shown: Shown) -> Iterator[str]:
    """The model that predicts the texts best, of those that are not quantized and have all texts, in a sentence."""
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
    within = " (the 95 % interval includes 0)" if behind.interval[0] <= 0 else ""
    more = format_estimate(behind.value, behind.standard_error)
    yield (
        f"{_of_which(vectors, names)}{shown(best)} predicts the texts best, with {levels[best]}; next is "
        f"{shown(second)}, with {more} more{within}."
    )


def of_pairs(vectors: Vectors, shown: Shown) -> Iterator[str]:
    """The nearest and the farthest pair of the models that are not quantized, in a sentence each."""
    places = np.flatnonzero([kind is None for kind in vectors.attributes["quantization"]])
    if len(places) < 3:
        return
    names, matrix, around = vectors.names, vectors.reported_kl_matrix(), Around(vectors, of_all=True)
    i, j = (places[ends] for ends in np.triu_indices(len(places), k=1))
    value = matrix.value[i, j]
    order, n_known = np.argsort(value), int((~np.isnan(value)).sum())  # unknown values come last
    if n_known < 2 or value[order[n_known - 1]] == 0:
        return
    which = _of_which(vectors, [names[place] for place in places])
    for what, pair in (("nearest to each other", order[0]), ("farthest apart", order[n_known - 1])):
        a, b = int(i[pair]), int(j[pair])
        found = around.pair(names[a], names[b])
        yield f"{which}{shown(names[a])} and {shown(names[b])} are {what}: {found.kl}{_minding(found)}."


def _of_which(vectors: Vectors, names: Sequence[str]) -> str:
    """Words that name a part of the models; empty for all models."""
    if len(names) == len(vectors):
        return ""
    quantized = sum(kind is not None for kind in vectors.attributes["quantization"])
    which = ["are not quantized"] if quantized else []
    which += ["have all texts"] if len(names) + quantized < len(vectors) else []
    return f"Of the models that {' and '.join(which)}, "


def of_scale(measured: Sequence[Setting], texts: TextSet) -> Iterator[str]:
    """The scale in one sentence, smallest setting first, then its limits."""
    rows = [row for row in measured if row.setting != "layer"]
    if rows:
        medians = (f"{row.setting} {format_estimate(row.median, row.standard_error)}" for row in rows)
        yield f"Median KL of each setting on these texts, bits/byte ± standard error over texts: {'; '.join(medians)}."
    out = [row.setting for row in rows if row.n_in_range < len(row.pairs) / 2]
    if out:
        which = "all of these" if len(out) == len(rows) else ", ".join(out)
        yield f"Out of range, distances rather than KL: {which}."
    if rows and not scales.published_holds(texts):
        yield "Published values hold for pile-10k only: they are not comparable with these."


def of_trajectories(found: Sequence[Trajectory], seeds: Sequence[Seeds], source: str, shown: Shown) -> Iterator[str]:
    """The exponents of the runs, over seeds where there are several, and the steps where they have settled."""
    for group in seeds:
        yield (
            f"Over {len(group.runs)} seeds, squared distance grows as lag^c, with c_q = {group.c_q} in log-likelihood "
            f"space (± over texts; {group.c_q_over_seeds} over seeds) and c_w = {group.c_w} in weight space (± over "
            f"seeds; 1: ordinary diffusion). alpha = c_q / c_w is {group.alpha} (± over seeds)."
        )
    pooled = {name for group in seeds for name in group.runs}
    alone = [one for one in found if one.run.name not in pooled and one.behaviour.exponent is not None]
    yield from _first([_growth(one, shown) for one in alone])
    settled, level = [], 0.0
    for one in found:
        curve = one.behaviour.stabilisation
        if has_settled(curve):
            level = curve.threshold or 0.0
            settled.append(f"{shown(one.run.name)} {settling_step(curve, one.run.steps)}")
    if settled:
        yield (
            f"Stabilisation, {SETTLED} ({level:.3g} bits/byte, {source}; 95 % interval over texts): "
            f"{'; '.join(settled)}."
        )


def has_settled(curve: Stabilisation | None) -> TypeGuard[Stabilisation]:
    """Whether the curve has a threshold and its settling step."""
    return curve is not None and None not in (curve.threshold, curve.step, curve.interval)


def settling_step(curve: Stabilisation, steps: Any) -> str:
    """The step from which a run with these `steps` has settled, in words, with its 95 % interval over texts."""
    if curve.step == steps[-1]:
        return f"only its last, step {curve.step:,}"
    if curve.step == steps[0]:
        return f"by its first, step {curve.step:,}"
    assert curve.interval is not None
    low, high = curve.interval
    known = "" if np.isnan(low) else f" ({low:,.0f} to {high:,.0f})"
    return f"step {curve.step:,}{known}"


def _growth(one: Trajectory, shown: Shown) -> str:
    exponent, weights = one.behaviour.exponent, one.weights.exponent if one.weights else None
    assert exponent is not None
    also = "" if weights is None else f" and c_w = {weights.value} in weight space"
    return (
        f"{shown(one.run.name)}: squared distance grows as lag^c, with c_q = {exponent.value} in log-likelihood "
        f"space{also} (1: ordinary diffusion)."
    )


def of_layers(found: Mapping[str, Sequence[Layer]], shown: Shown) -> Iterator[str]:
    """The layers of each model with the largest and the smallest change, in a sentence."""
    made = []
    for model, rows in found.items():
        steps = [(row.from_previous, row.layer) for row in rows if row.from_previous is not None]
        if steps:
            (most, into), (least, other) = (choose(steps, key=lambda step: step[0].value) for choose in (max, min))
            made.append(
                f"{shown(model)}: KL from layer to layer is largest into layer {into}, {most}"
                f"{_minding(Measured.of_whole_texts(most, most.n_texts))}, and smallest into layer {other}, {least}"
                f"{_minding(Measured.of_whole_texts(least, least.n_texts))}."
            )
    yield from _first(made)


def of_ladders(vectors: Vectors, ladders: Mapping[str, Sequence[str]], shown: Shown) -> Iterator[str]:
    """The quantized variants of each model, nearest first, in a sentence."""
    made, around = [], Around(vectors, of_all=True)
    for base, variants in ladders.items():
        rungs, costly = [], []
        for name in variants:
            found, kind = around.pair(base, name), vectors.attributes["quantization"][name]
            value = format_estimate(found.kl.value, found.kl.standard_error)
            rungs.append(f"{kind} {value}{_minding(found)}")
            if vectors.bits_per_byte(name, base).interval[0] > 0:
                costly.append(str(kind))
        worse = f"; predict the texts worse (95 % interval above 0): {', '.join(costly)}" if costly else ""
        made.append(
            f"Quantized variants of {shown(base)}, KL from it in bits/byte, nearest first: {', '.join(rungs)}{worse}."
        )
    yield from _first(made)


def _first(sentences: Sequence[str]) -> Iterator[str]:
    yield from sentences[:MOST]
    if len(sentences) > MOST:
        yield f"{len(sentences) - MOST:,} more: see below."


def _minding(found: Measured) -> str:
    """The cautions of a KL, in brackets."""
    words = ", ".join(caution.words for caution in found.cautions)
    return f" ({words})" if words else ""
