"""Variances that heavy tails move less.

Each takes d (..., N) and gives the estimate (...) and its influence function at each value (..., N), whose mean is 0:
the standard error of the mean of the influences is that of the estimate, and of a difference of two estimates that of
the difference of their influences. KL is about the whole variance, tails included. Where tails are heavier than a
Gaussian's, these estimate something smaller: they diagnose a KL, they are no better estimate of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special

from klscale.science.arrays import Floats

TRIMMED = 0.01
"""Share of texts that the trimmed variance leaves out."""

HUBER, HUBER_STEPS = 1.5, 500
"""Where Huber's estimate of scale cuts off, in units of that scale, and how many steps it may take to settle."""


def variance(d: Floats) -> tuple[Floats, Floats]:
    """The population variance, which KL is made of. Influence: (d - mean)**2 less the variance."""
    squares = (d - d.mean(axis=-1, keepdims=True)) ** 2
    value = squares.mean(axis=-1)
    return value, squares - value[..., None]


def trimmed_consistency(kept: Floats | float) -> Any:
    """What is left of a Gaussian's variance when the fraction `kept` of values nearest to its middle is kept: 0.925 for
    99 %. With q their largest square, E[z**2; z**2 < q] / P(z**2 < q) for z**2 of chi-squared law."""
    half_square: Any = special.gammaincinv(0.5, kept)
    return special.gammainc(1.5, half_square) / kept


def trimmed_variance(d: Floats, share: float = TRIMMED) -> tuple[Floats, Floats]:
    """Variance of what remains when the `share` of values farthest from the median is left out, divided by what the
    same leaves of a Gaussian's (`trimmed_consistency`): equal to the variance for Gaussian values.

    With heavy tails it is the variance of a Gaussian that is as wide in its middle 99 %. Of fewer than 1 / share values
    none is left out. Influence: that of a symmetric law, in which what is left out counts with the square of the cut.
    """
    N = d.shape[-1]
    median = np.median(d, axis=-1, keepdims=True)
    away = np.abs(d - median)
    last = N - 1 - int(share * N)
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
    """Square of Huber's M-estimate of scale, his "Proposal 2": location m and scale s such that u = (d - m) / s, cut
    off at ± 1.5, has mean 0 and the mean square that a Gaussian's has. Equal to the variance for Gaussian values
    (Huber, Annals of Mathematical Statistics 35:73, 1964; Robust Statistics, 1981, chapter 6).

    With heavy tails it is about the variance of the bulk, however large the rest. Influence: that of the two equations
    together, so that values may be skewed. 0 for values that are all equal; NaN where more than about two thirds of
    them are, but not all: there is no such scale.
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
