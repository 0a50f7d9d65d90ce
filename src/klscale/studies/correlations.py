"""Correlations over pairs of models, with intervals over the models that they share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from klscale.science.arrays import Floats, Integers
from klscale.science.bootstrap import expanded_percentiles, pair_draws

FEWEST_MODELS = 5
"""Fewest models for an interval over models of a correlation or a ratio. With five it covers 95 to 100 %."""
MODEL_RESAMPLES = 400


@dataclass(frozen=True)
class Correlation:
    """A correlation over pairs of models. With five models, `interval` (95 %) is over models (`interval_kind` is
    `models`). With fewer, it is the central 95 % of the random splits (`splits`), or None (`none`)."""

    value: float
    interval: tuple[float, float] | None
    interval_kind: str


@dataclass(frozen=True, eq=False)
class _ModelDraws:
    """How often each pair counts (R, P) in each sample of `n_models` models drawn with replacement."""

    weights: Floats
    n_models: int

    def interval(self, resampled: Floats) -> tuple[float, float]:
        """The 95 % interval over models of a number, from its value in each sample (R,)."""
        return expanded_percentiles(resampled[np.isfinite(resampled)], self.n_models)


def draw_models(models: Integers) -> _ModelDraws | None:
    """Bootstrap samples of the models of these pairs (P, 2); None below five models."""
    models = np.unique(models, return_inverse=True)[1].reshape(-1, 2)
    n = int(models.max()) + 1
    if n < FEWEST_MODELS:
        return None
    weights = pair_draws(models, n, MODEL_RESAMPLES).astype(np.float64)
    return _ModelDraws(weights[(weights > 0).sum(axis=1) >= 3], n)


def correlation(x: Floats, y: Floats, draws: _ModelDraws | None, kind: str) -> Correlation | None:
    """Mean over S splits of the correlation over pairs of x and y (P, S); None where all values are equal."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    once = np.ones((1, len(x)))
    values = np.array([CORRELATIONS[kind](a, b, once)[0] for a, b in zip(x.T, y.T, strict=True)])
    value = float(values.mean())
    if draws is not None:
        resampled = [CORRELATIONS[kind](a, b, draws.weights) for a, b in zip(x.T, y.T, strict=True)]
        return Correlation(value, draws.interval(np.mean(resampled, axis=0)), "models")
    if len(values) == 1:
        return Correlation(value, None, "none")
    low, high = np.quantile(values, [0.025, 0.975])
    return Correlation(value, (float(low), float(high)), "splits")


def _pearson(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Correlation (R,) of x and y, (P,) or (R, P), with these weights (R, P)."""
    total = weights.sum(axis=1, keepdims=True)
    x, y = (v - (weights * v).sum(axis=1, keepdims=True) / total for v in (x, y))
    xy, xx, yy = ((weights * product).sum(axis=1) for product in (x * y, x * x, y * y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(xy / np.sqrt(xx * yy))


def _spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    return _pearson(_ranks(x, weights), _ranks(y, weights), weights)


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Middle ranks (R, P) of values (P,); each value counts as often as `weights` (R, P) say."""
    order = np.argsort(values)
    below = np.zeros((len(weights), len(values) + 1))
    np.cumsum(weights[:, order], axis=1, out=below[:, 1:])
    ends = (np.searchsorted(values[order], values, side=side) for side in ("left", "right"))
    return np.asarray(sum(below[:, end] for end in ends) / 2)


def _kendall(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Kendall's tau-b (R,) of x and y (P,): concordant minus discordant pairs, over the pairs without ties."""
    signs = [np.sign(v[:, None] - v[None, :]) for v in (x, y)]

    def total(matrix: Floats) -> Floats:
        return np.asarray(((weights @ matrix) * weights).sum(axis=1))

    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total(signs[0] * signs[1]) / np.sqrt(total(signs[0] ** 2) * total(signs[1] ** 2)))


CORRELATIONS = {"pearson": _pearson, "spearman": _spearman, "kendall": _kendall}


def rank_correlation(x: Floats, y: Floats) -> float:
    return float(_spearman(x, y, np.ones((1, len(x))))[0]) if len(x) >= 3 else math.nan
