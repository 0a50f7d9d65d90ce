"""Robust variances: heavy tails change them less than the variance.

Each function takes d (..., N) and returns the estimate (...) and its influence function (..., N), whose mean is 0. The
standard error of the mean of the influences is that of the estimate. For the difference of two estimates, take the
difference of their influences. The unit of both is that of d, squared.

KL is half of the whole variance, tails included. Where tails are heavier than a Gaussian's, robust variances estimate a
smaller quantity: they diagnose a KL and do not replace it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy

from klscale.science.arrays import Floats

TRIMMED = 0.01
"""Fraction of the texts that the trimmed variance leaves out."""

HUBER, HUBER_STEPS = 1.5, 500
"""Cut-off of Huber's estimate of scale, in units of that scale, and the maximum number of iterations."""


def variance(d: Floats) -> tuple[Floats, Floats]:
    """The population variance, as KL uses it. Its influence is (d - mean)**2 minus the variance."""
    squares = (d - d.mean(axis=-1, keepdims=True)) ** 2
    value = squares.mean(axis=-1)
    return value, squares - value[..., None]


def trimmed_consistency(kept: Floats | float) -> Any:
    """Variance of the middle fraction `kept` of a Gaussian's values, as a fraction of its variance: 0.925 for 99 %.

    It is E[z**2; z**2 < q] / P(z**2 < q), where z**2 is chi-squared and q its quantile at `kept`.
    """
    half_square: Any = scipy.special.gammaincinv(0.5, kept)
    return scipy.special.gammainc(1.5, half_square) / kept


def trimmed_variance(d: Floats) -> tuple[Floats, Floats]:
    """Variance without the fraction `TRIMMED` of values farthest from the median, divided by `trimmed_consistency`:
    equal to the variance for Gaussian values.

    With heavy tails it is the variance of the Gaussian with the same middle 99 %. Of fewer than 100 values none is
    left out. The influence holds for a symmetric distribution: a value that is left out counts as the squared cut.
    """
    N = d.shape[-1]
    median = np.median(d, axis=-1, keepdims=True)
    away = np.abs(d - median)
    last = N - 1 - int(TRIMMED * N)
    cut = np.partition(away, last, axis=-1)[..., last, None]
    left_out = away > cut
    kept = 1 - left_out.mean(axis=-1, keepdims=True)
    mean = np.where(left_out, 0.0, d).mean(axis=-1, keepdims=True) / kept
    squares = (d - mean) ** 2
    squares[left_out] = 0.0
    consistency = trimmed_consistency(kept)
    value = squares.mean(axis=-1) / (kept * consistency)[..., 0]
    influence = np.where(left_out, cut**2 + (median - mean) ** 2, squares)
    influence -= influence.mean(axis=-1, keepdims=True)
    return value, influence / (kept * consistency)


def huber_variance(d: Floats) -> tuple[Floats, Floats]:
    """Square of Huber's M-estimate of scale ("Proposal 2"): equal to the variance for Gaussian values.

    Location m and scale s solve two equations. u = (d - m) / s, cut off at ± 1.5, has mean 0, and the mean square of a
    Gaussian with the same cut-off (Huber, Annals of Mathematical Statistics 35:73, 1964; Robust Statistics, 1981,
    chapter 6). With heavy tails it is about the variance of the bulk, however large the other values are.

    The influence is that of both equations together, so values may be skewed. The estimate is 0 if all values are
    equal. It is NaN if about two thirds of them or more are equal, but not all: the equations then have no solution.
    """
    rows = d.reshape(-1, d.shape[-1])
    k, inside = HUBER, math.erf(HUBER / math.sqrt(2))
    density = math.exp(-(k**2) / 2) / math.sqrt(2 * math.pi)
    expected = inside - 2 * k * density + k**2 * (1 - inside)  # mean square of a Gaussian that is cut off
    m, spread = rows.mean(axis=-1), rows.std(axis=-1)
    s, moving = spread.copy(), np.flatnonzero(spread > 0)
    for _ in range(HUBER_STEPS):
        if not moving.size:
            break
        before, reach = s[moving], k * s[moving]
        cut = np.clip(rows[moving], (m[moving] - reach)[:, None], (m[moving] + reach)[:, None])
        moved = np.abs(cut.mean(axis=-1) - m[moving])
        m[moving], s[moving] = cut.mean(axis=-1), cut.std(axis=-1) / math.sqrt(expected)
        moved += np.abs(s[moving] - before)
        s[s < 1e-9 * spread] = np.nan
        moving = moving[moved > 1e-10 * s[moving]]
    s[moving] = np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        u = (rows - m[:, None]) / s[:, None]
        psi, middle = np.clip(u, -k, k), np.abs(u) < k
        u[~middle] = 0.0
        p, first, second = (part.mean(axis=-1, keepdims=True) for part in (middle, u, u * u))
        influence = (s**2)[:, None] * (p * (psi**2 - expected) - 2 * first * psi) / (p * second - first**2)
    influence[s == 0] = 0.0
    return (s**2).reshape(d.shape[:-1]), influence.reshape(d.shape)
