"""Do two text sets agree on the same models: values, ranks, maps, nearest models?

both = compare_text_sets(store.vectors(first), store.vectors(second))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from klscale.errors import InputError
from klscale.science.arrays import Floats
from klscale.science.bootstrap import interval_over_models
from klscale.studies.correlations import CORRELATIONS, Correlation, correlation, draw_models
from klscale.studies.domains import PERMUTATIONS
from klscale.studies.maps import pca
from klscale.studies.pair_samples import drawn_pairs, pair_sample
from klscale.vectors.vectors import Vectors


@dataclass(frozen=True, eq=False)
class TextSetComparison:
    """The same models on two text sets: `kl` (P, 2) in bits per byte of the same `pairs`, with standard errors.

    Values of two text sets are not expected to be equal: KL is an average over texts of a kind. `ratio` is the median
    over pairs of second over first, with its interval over models (None below five) and its range. `spread` is the
    robust standard deviation over pairs of the log ratio; `spread_by_error` is its value from standard errors alone.

    Correlations are over pairs: `pearson` of log KL, `spearman`, `kendall`; None below three pairs. `procrustes` is the
    disparity of two principal components after rotation and scaling (scipy.spatial.procrustes): 0 for the same shape, 1
    for nothing in common. `procrustes_p_value` is the share of random matchings of the models with at most this
    disparity. `nearest` of `n_models` have the same nearest model on both sets; the share 1 / (K - 1) is expected by
    chance. Its interval treats models as independent (Wilson).
    """

    names: tuple[str, str]
    n_texts: tuple[int, int]
    n_models: int
    unmatched: tuple[tuple[str, ...], tuple[str, ...]]
    pairs: tuple[tuple[str, str], ...]
    kl: Floats
    standard_error: Floats
    n_available: int
    n_identical: int
    ratio: float
    ratio_interval: tuple[float, float] | None
    ratio_range: tuple[float, float]
    spread: float
    spread_by_error: float
    pearson: Correlation | None
    spearman: Correlation | None
    kendall: Correlation | None
    procrustes: float | None
    procrustes_by_chance: float | None
    procrustes_p_value: float | None
    nearest: int
    nearest_interval: tuple[float, float]
    nearest_by_chance: float
    notes: tuple[str, ...]


def compare_text_sets(first: Vectors, second: Vectors, *, seed: int = 0) -> TextSetComparison:
    """KL in bits per byte of the same pairs of models on two text sets, with standard errors, and their agreement.
    Models are matched by reference. Of more than 1,000 pairs, 1,000 are drawn with this seed.

    Raises InputError where fewer than two models have vectors on both, or where the two sets and their clips are the
    same.
    """
    if (first.texts.id, first.texts.clip) == (second.texts.id, second.texts.clip):
        raise InputError(f"{first.texts.name} was given twice.", remedy="Name two text sets.")
    there = set(second.names)
    shared = [name for name in first.names if name in there]
    unmatched = tuple(name for name in first.names if name not in there), tuple(sorted(there - set(shared)))
    if len(shared) < 2:
        raise InputError(
            f"{len(shared)} model has vectors on both {first.texts.name} and {second.texts.name}.",
            "KL needs a pair.",
            "Score the same models on both.",
        )
    sets = [first.subset(shared), second.subset(shared)]
    pairs, models = drawn_pairs(sets[0], seed)
    sets[1].require_one_convention()
    samples = [pair_sample(vectors, pairs, models) for vectors in sets]
    known = [{label: n for n, label in enumerate(sample.labels)} for sample in samples]
    both = [label for label in samples[0].labels if label in known[1]]
    if not both:
        raise InputError("No two models differ on both text sets.", remedy="Compare other models.")
    places = [[positions[label] for label in both] for positions in known]
    kl, error = (
        np.stack([getattr(sample, field)[place] for sample, place in zip(samples, places, strict=True)], axis=1)
        for field in ("kl", "standard_error")
    )
    named = samples[0].models[places[0]]
    ratio = kl[:, 1] / kl[:, 0]
    logs = np.log(ratio)
    median_log = float(np.median(logs))
    draws = draw_models(named) if len(both) >= 3 else None
    x, y = np.log(kl).T[:, :, None]
    pearson, spearman, kendall = (
        (correlation(x, y, draws, kind) for kind in CORRELATIONS) if len(both) >= 3 else (None, None, None)
    )
    shape = _procrustes(sets[0], sets[1], seed)
    nearest, n_nearest = _same_nearest(*sets)
    low, high = scipy.stats.binomtest(nearest, n_nearest).proportion_ci(method="wilson") if n_nearest else (0.0, 1.0)
    return TextSetComparison(
        names=(first.texts.name, second.texts.name),
        n_texts=(samples[0].n_texts, samples[1].n_texts),
        n_models=len(shared),
        unmatched=unmatched,
        pairs=tuple(both),
        kl=kl,
        standard_error=error,
        n_available=samples[0].n_available,
        n_identical=len(pairs) - len(both),
        ratio=float(np.median(ratio)),
        ratio_interval=interval_over_models(ratio, named),
        ratio_range=(float(ratio.min()), float(ratio.max())),
        spread=float(np.median(np.abs(logs - median_log)) / scipy.special.ndtri(0.75)),
        spread_by_error=float(np.median(np.sqrt(((error / kl) ** 2).sum(axis=1)))),
        pearson=pearson,
        spearman=spearman,
        kendall=kendall,
        procrustes=shape and shape[0],
        procrustes_by_chance=shape and shape[1],
        procrustes_p_value=shape and shape[2],
        nearest=nearest,
        nearest_interval=(float(low), float(high)),
        nearest_by_chance=1 / (len(shared) - 1),
        notes=_notes_of_two(*sets),
    )


def _procrustes(first: Vectors, second: Vectors, seed: int) -> tuple[float, float, float] | None:
    """Disparity of two maps, its mean over random matchings of the models, and the share of matchings with at most this
    disparity. None where a map has fewer than two dimensions."""
    a, b = (pca(vectors, 2) for vectors in (first, second))
    if min(a.share[-1], b.share[-1]) == 0 or len(first) < 4:  # three points have hardly a shape
        return None
    generator = np.random.default_rng(seed)
    found = float(scipy.spatial.procrustes(a.points, b.points)[2])
    random = np.array(
        [scipy.spatial.procrustes(a.points, generator.permutation(b.points))[2] for _ in range(PERMUTATIONS)]
    )
    p_value = (1 + (random <= found + 1e-12).sum()) / (1 + PERMUTATIONS)
    return found, float(random.mean()), float(p_value)


def _same_nearest(first: Vectors, second: Vectors) -> tuple[int, int]:
    """The number of models with the same nearest model on both sets, and the number of models with a nearest one."""
    nearest = []
    for vectors in (first, second):
        value = vectors.kl().value.copy()
        np.fill_diagonal(value, np.inf)
        nearest.append(np.where(np.isfinite(value).any(axis=1), np.nanargmin(value, axis=1), -1))
    known = (nearest[0] >= 0) & (nearest[1] >= 0)
    return int((nearest[0] == nearest[1])[known].sum()), int(known.sum())


def _notes_of_two(first: Vectors, second: Vectors) -> tuple[str, ...]:
    notes = []
    if first.attributes["convention"].iloc[0] != second.attributes["convention"].iloc[0]:
        notes.append("The two sets were scored by different conventions; this changes KL too.")
    if first.texts.texts and second.texts.texts:
        common = len(set(first.texts.texts) & set(second.texts.texts))
        if common:
            notes.append(f"{common:,} texts are in both sets; this raises the agreement.")
    return tuple(notes)
