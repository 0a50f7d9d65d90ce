"""The scale: how large KL is between checkpoints, seeds, sizes and relatives, measured and as published.

`settings` says in what two models differ, `relatives` finds the pairs. Published values hold for pile-10k with its clip
and are never mixed with measured ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

import numpy as np
import yaml

from klscale.inputs.texts import PILE_CLIP, TextSet
from klscale.science.arrays import Floats
from klscale.science.bootstrap import (
    RESAMPLES,
    interval_over_models,
    median_over_pairs,
    standard_deviation,
    text_draws,
)
from klscale.science.estimates import cluster_codes, ratio_of_sums
from klscale.science.kl import LOG_2, kl_pairs
from klscale.science.reported import LARGEST_BY_SPANS, SPANS, WHOLE_TEXTS, ReportedKL
from klscale.studies.relatives import Pairs, find_pairs
from klscale.studies.settings import setting_of
from klscale.vectors.vectors import Vectors

PILE_MEAN_BYTES = 972.3188
MOST_BY_SPANS = 100
"""Largest number of pairs on which a setting is measured by spans: each takes 50 times as long as by whole texts."""

PUBLISHED_AS = {
    "8-bit (int8)": "8-bit",
    "8-bit (int8-kernel)": "8-bit",
    "4-bit (fp4)": "4-bit",
    "4-bit (fp4-kernel)": "4-bit",
}
"""Measured setting -> published setting with another name: the published kinds are those of bitsandbytes."""
UNSPECIFIC = ("same type", "random")
"""Settings of models that have little in common. A KL is compared with them only if it exceeds every other setting."""


@dataclass(frozen=True)
class Setting:
    """KL of one setting in bits per byte: `values` and `standard_errors` (over texts) of its `pairs`, in that order.

    `median` and `quartiles` are over pairs. `standard_error` is that of the median over texts (bootstrap; for a single
    pair its own).

    `interval` is a 95 % interval of the median over models (`interval_kind` is `models`): independent units are
    resampled. Pairs that share a model, a run (its checkpoints), or a name (its layers and quantizations) depend on
    each other; linked pairs form a group. With five groups or more, groups are drawn. With fewer, models are drawn, and
    a pair counts as often as both its models were drawn. Below six models the interval is the range over pairs
    (`interval_kind` is `range`). Models, here and in `n_models`, are names: a run counts once.

    `in_range` marks the pairs whose value is a KL rather than a distance. `n_available` pairs exist; the measured ones
    are drawn from them at random where they are fewer.

    All of this is by the published estimator, from whole texts. `by_spans` is the same setting by spans, of the pairs
    that have them; at most 100, drawn at random.
    """

    setting: str
    median: float
    standard_error: float
    quartiles: tuple[float, float]
    interval: tuple[float, float]
    interval_kind: str
    pairs: tuple[tuple[str, str], ...]
    values: tuple[float, ...]
    standard_errors: tuple[float, ...]
    in_range: tuple[bool, ...]
    n_models: int
    n_in_range: int
    n_available: int
    by_spans: Setting | None = None

    def by(self, estimator: str) -> Setting | None:
        """The setting by one of the estimators that the scale has; None where it is not known."""
        return self if estimator == WHOLE_TEXTS else self.by_spans


@dataclass(frozen=True)
class NoiseFloor:
    """Run-to-run noise: KL in bits per byte between two runs of one model, over the `n_models` models where it is
    known. Smaller differences cannot be measured. `largest_of` is the model with the largest noise."""

    median: float
    smallest: float
    largest: float
    largest_of: str
    n_models: int

    @property
    def sentence(self) -> str:
        """The same in words."""
        return (
            f"Run-to-run noise, KL between two runs of one model: median {self.median:.2g} bits/byte of "
            f"{self.n_models:,} models (from {self.smallest:.2g} to {self.largest:.2g}, that of {self.largest_of})."
        )


@dataclass(frozen=True)
class PublishedSetting:
    """A published median in bits per byte, over `pairs` pairs, with its source."""

    setting: str
    median: float
    pairs: int | None
    compared: str
    source: str


@dataclass(frozen=True)
class PublishedPair:
    """A published KL between two models, or a kind of pair, in bits per byte, with its standard error over texts."""

    compared: str
    kl: float
    standard_error: float
    source: str


@cache
def _published() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(files("klscale").joinpath("data/published.yaml").read_text(encoding="utf-8"))
    return data


def published() -> tuple[PublishedSetting, ...]:
    """The published scale in bits per byte, smallest median first (Kishino et al., arXiv 2505.15353v3). It holds for
    the text set pile-10k with its clip."""
    rows = sorted(_published()["settings"], key=lambda row: float(row["median"]))
    return tuple(PublishedSetting(**row) for row in rows)


def published_pairs() -> tuple[PublishedPair, ...]:
    """Published values of single pairs (Kishino et al., arXiv 2505.15353v1)."""
    return tuple(PublishedPair(**row) for row in _published()["pairs"])


def published_holds(texts: TextSet) -> bool:
    """Whether values on these texts may be placed on the published scale: the published texts with their clip."""
    same = len(texts) == 10_000 and abs(texts.mean_bytes - PILE_MEAN_BYTES) < 1e-3
    return same and texts.clip == PILE_CLIP


def published_beside(setting: str) -> PublishedSetting | None:
    """The published setting of the same name as a measured one; for quantizations, of the same kind. None where there
    is none."""
    name = PUBLISHED_AS.get(setting, setting)
    return next((row for row in published() if row.setting == name), None)


def worth_of_a_seed(measured: Iterable[Setting], texts: TextSet) -> tuple[float, str] | None:
    """The KL between two seeds in bits per byte, and its source in words: the median measured on these texts, else the
    published one where that holds. None where neither is known."""
    for row in measured:
        if row.setting == "seed" and row.median > 0:
            return row.median, "the median between seeds, measured on these texts"
    known = published_beside("seed")
    if known is None or not published_holds(texts):
        return None
    return known.median, f"the published median between seeds, {known.source}"


def not_measured(measured: Iterable[Setting]) -> list[PublishedSetting]:
    """The published settings that are not among the measured ones."""
    there = {PUBLISHED_AS.get(row.setting, row.setting) for row in measured}
    return [row for row in published() if row.setting not in there]


# ------------------------------------------------------------------------------------------------------ the numbers


def measure(vectors: Vectors, *, resamples: int = RESAMPLES) -> list[Setting]:
    """KL in bits per byte of each setting among these models, with standard errors; smallest median first.

    `resamples`: number of bootstrap samples of the texts for the standard errors of medians; with 0 these are NaN, in
    half the time. Raises InputError where the vectors were made by different conventions.
    """
    vectors.require_one_convention()
    found = find_pairs(vectors)
    if not found:
        return []
    texts = vectors.texts
    kl = kl_pairs(
        vectors.log_likelihood,
        texts.bytes,
        np.concatenate([pairs.places for pairs in found.values()]),
        clip=texts.clip,
        documents=texts.document,
        draws=(draws := text_draws(len(texts), texts.document, resamples=resamples)),
    )
    ends = np.cumsum([len(pairs.places) for pairs in found.values()])
    settings = []
    for (setting, pairs), end in zip(found.items(), ends, strict=True):
        part = {name: values[end - len(pairs.places) : end] for name, values in kl.items()}
        known = ~np.isnan(part["value"])  # pairs with texts in common
        if known.any():
            part = {name: values[known] for name, values in part.items()}
            pairs = pairs.of(known)
            found_here = _measured(vectors.names, setting, pairs, part)
            settings.append(replace(found_here, by_spans=_by_spans(vectors, setting, pairs, draws)))
    return sorted(settings, key=lambda row: row.median)


def _by_spans(vectors: Vectors, setting: str, pairs: Pairs, draws: Floats) -> Setting | None:
    """A setting by spans, of those of its pairs that have them."""
    known = np.array([row for row, spans in enumerate(vectors.spans or ()) if spans is not None], dtype=np.int64)
    chosen = np.flatnonzero(np.isin(pairs.places, known).all(axis=1))
    pairs, texts = pairs.of(np.sort(np.random.default_rng(0).permutation(chosen)[:MOST_BY_SPANS])), vectors.texts
    terms = np.zeros((2, len(pairs.places), len(texts)))
    for n, (a, b) in enumerate(pairs.places):
        terms[:, n] = vectors.span_terms(vectors.models[a], vectors.models[b])
    pairs, terms = pairs.of(usable := (terms[1] > 0).sum(axis=1) > 1), terms[:, usable]
    if not len(pairs.places):
        return None
    variances, size = terms[0], terms[1] * LOG_2
    kl: dict[str, Any] = {"value": np.empty(len(size)), "standard_error": np.empty(len(size))}
    for n, there in enumerate(size > 0):
        clusters = cluster_codes(texts.document, there)
        kl["value"][n], kl["standard_error"][n] = ratio_of_sums(variances[n, there], size[n, there], clusters)
    kl["in_range"] = (kl["value"] <= LARGEST_BY_SPANS) & ~vectors.far[pairs.places].any(axis=1)
    drawn = size @ draws.T
    kl["resampled"] = (variances @ draws.T) / np.where(drawn > 0, drawn, np.nan)
    return _measured(vectors.names, setting, pairs, kl)


def noise_floor(vectors: Vectors) -> NoiseFloor | None:
    """Run-to-run noise, the lowest rung of the scale, in bits per byte; None where it is known of no model."""
    floor = vectors.noise_floor
    known = floor[~np.isnan(floor)]
    if not len(known):
        return None
    largest_of = vectors.names[int(np.nanargmax(floor))]
    return NoiseFloor(float(np.median(known)), float(known.min()), float(known.max()), largest_of, len(known))


def _measured(labels: Sequence[str], setting: str, pairs: Pairs, kl: Mapping[str, Any]) -> Setting:
    value: Floats = kl["value"]
    error = standard_deviation(median_over_pairs(kl["resampled"]))
    low, high = np.quantile(value, [0.25, 0.75])
    interval = interval_over_models(value, pairs.names)
    return Setting(
        setting=setting,
        median=float(np.median(value)),
        standard_error=error if len(value) > 1 else float(kl["standard_error"][0]),
        quartiles=(float(low), float(high)),
        interval=interval or (float(value.min()), float(value.max())),
        interval_kind="models" if interval else "range",
        pairs=tuple((labels[a], labels[b]) for a, b in pairs.places),
        values=tuple(value.tolist()),
        standard_errors=tuple(kl["standard_error"].tolist()),
        in_range=tuple(kl["in_range"].tolist()),
        n_models=len(np.unique(pairs.names)),
        n_in_range=int(kl["in_range"].sum()),
        n_available=pairs.n_available,
    )


# --------------------------------------------------------------------------------------------------------- in words


@dataclass(frozen=True)
class Yardstick:
    """A setting with its median in bits per byte. `up_to` is the largest value whose nearest setting it is, on a log
    axis."""

    setting: str
    median: float
    source: str
    up_to: float

    def places(self, value: float, *, shown: bool) -> str:
        """The place of a value on the scale, in words, which name the value where it is not the KL that is `shown`."""
        ratio = value / self.median
        times = f"{ratio:.1f} times" if 0.1 <= ratio < 10 else f"{ratio:.2g} times"
        both = (
            f"{self.median:.3g}, {self.source}"
            if shown
            else f"{value:.3g} against {self.median:.3g}, both {self.source}"
        )
        return f"{times} the median of '{self.setting}' ({both})"


def yardsticks(
    texts: TextSet,
    measured: Iterable[Setting] = (),
    pair: tuple[str, str] = ("", ""),
    estimator: str = WHOLE_TEXTS,
) -> list[Yardstick]:
    """The settings that a value by one estimator is compared with, smallest first: those measured on the same texts by
    the same estimator, without settings that consist of the given `pair` alone. Else, for whole texts, the published
    scale where it holds, or none.

    Random pairs, and pairs of one type, are used only for values above every other setting. Layers, which are no
    models, are never used.
    """
    rows = filter(None, (row.by(estimator) for row in measured))
    itself = pair, pair[::-1]
    own = [(row.median, row.setting) for row in rows if row.median > 0 and any(one not in itself for one in row.pairs)]
    holds = estimator == WHOLE_TEXTS and published_holds(texts)
    known = [(row.median, row.setting) for row in published()] if holds else []
    scale = sorted((row for row in own or known if row[1] != "layer"), key=lambda row: row[0])
    specific = [row for row in scale if row[1] not in UNSPECIFIC]
    if specific:
        scale = specific + [row for row in scale if row[1] in UNSPECIFIC and row[0] > specific[-1][0]]
    ends = [*(math.sqrt(a * b) for (a, _), (b, _) in pairwise(scale)), math.inf][: len(scale)]
    source = f"by {estimator}, measured on these texts" if own else "published"
    return [Yardstick(setting, median, source, end) for (median, setting), end in zip(scale, ends, strict=True)]


def place(
    kl: ReportedKL,
    texts: TextSet,
    measured: Sequence[Setting] = (),
    pair: tuple[str, str] = ("", ""),
    setting: str | None = None,
) -> str | None:
    """The place of a pair's KL in words: among the pairs of its own `setting`, where this has others, else by the
    nearest of its `yardsticks`; None where there is none. Spans are compared with spans where both are known, else
    whole texts with whole texts."""
    for estimator, value in ((SPANS, kl.by_spans), (WHOLE_TEXTS, kl.whole_texts.value)):
        if value > 0 and (rows := yardsticks(texts, measured, pair, estimator)):
            own, shown = _own(setting, rows, pair, measured), kl.estimator == estimator
            if own is None:
                return next(row for row in rows if value <= row.up_to).places(value, shown=shown)
            others = _others(own.setting, pair, estimator, measured)
            above = sum(other < value for other in others)
            return own.places(value, shown=shown) + (f", above {above:,} of {len(others):,} others" if others else "")
    return None


def _own(
    setting: str | None, rows: Sequence[Yardstick], pair: tuple[str, str], measured: Iterable[Setting]
) -> Yardstick | None:
    """The yardstick of a setting; for a pair of checkpoints, that of the half of training that has it."""
    itself = {pair, pair[::-1]}
    halves = [row.setting for row in measured if not itself.isdisjoint(row.pairs)] if setting == "checkpoint" else []
    names = {setting, PUBLISHED_AS.get(str(setting)), *halves} - {*UNSPECIFIC}
    return next((row for row in rows if row.setting in names), None)


def _others(setting: str, pair: tuple[str, str], estimator: str, measured: Iterable[Setting]) -> list[float]:
    """The KL of the other pairs of a setting, in bits per byte."""
    found = next((row.by(estimator) for row in measured if row.setting == setting), None)
    if found is None:
        return []
    return [value for own, value in zip(found.pairs, found.values, strict=True) if own not in (pair, pair[::-1])]


def setting_between(vectors: Vectors, a: str, b: str) -> str | None:
    """The setting that two of these models instance; see `setting_of`."""
    i, j = vectors.position(a), vectors.position(b)
    return setting_of(vectors.known[i], vectors.known[j], vectors.models[i], vectors.models[j])
