"""Anytime-valid intervals and tests: they hold at all sequential looks together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

import numpy as np
import scipy

from klscale.science.arrays import Floats, Integers
from klscale.science.estimates import CONFIDENCE, log_interval
from klscale.science.kl import KL
from klscale.science.reported import ReportedKL

Reported = TypeVar("Reported", KL, ReportedKL)


def anytime_critical_value(n_texts: float, planned: float, n_documents: int = 0) -> float:
    """Half-width, in standard errors, of an anytime-valid 95 % interval of a mean at `n_texts` texts.

    The intervals at all numbers of texts hold together, so one may look at any of them and stop at any. The half-width
    is smallest (3.03) at the `planned` number of texts.

    This is the asymptotic confidence sequence of Waudby-Smith et al. (arXiv 2103.06476, Theorem 2.2), from Robbins'
    mixture. For a sum S of n terms of mean 0 and variance 1, exp(b S - b**2 n / 2) is averaged over b ~ N(0, r**2):

        M = exp(r**2 S**2 / (2 + 2 n r**2)) / sqrt(1 + n r**2)

    By Ville's inequality M exceeds 1 / 0.05 at any n with a probability of at most 0.05. With x = n r**2, M stays below
    while |S| / sqrt(n) < sqrt((1 + 1/x) (ln(1 + x) - 2 ln 0.05)). This bound is smallest where
    x = ln(1 + x) - 2 ln 0.05. Hence 1 + x = -W(-0.05**2 / e), with the branch of Lambert's W below -1.

    With G documents it is the quantile of Student's t with G - 1 degrees of freedom, at the same probability. Documents
    with several texts make the means at two numbers of texts more alike; this can only raise the coverage.
    """
    error = 1 - CONFIDENCE
    x = n_texts / planned * (-float(scipy.special.lambertw(-(error**2) / math.e, -1).real) - 1)
    normal = math.sqrt((1 + 1 / x) * (math.log1p(x) - 2 * math.log(error)))
    return float(scipy.special.stdtrit(n_documents - 1.0, float(scipy.special.ndtr(normal)))) if n_documents else normal


def with_anytime_interval(kl: Reported, planned: float) -> Reported:
    """The same KL with an anytime-valid interval on the log scale; see `anytime_critical_value`."""
    critical = anytime_critical_value(kl.n_texts, planned, kl.n_documents or 0)
    low, high = log_interval(kl.value, kl.standard_error, critical)
    return replace(kl, interval=(float(low), float(high)))


def signed_rank_p_value(values: Floats, clusters: Integers | None = None) -> float:
    """Two-sided p-value of independent values (N,), each symmetric around 0; a bound for any N and any distributions.

    Each value counts as r, the rank of its absolute value with its sign (Wilcoxon's signed ranks), so that few large
    values do not decide. Given the absolute values the signs are fair coins. So by Hoeffding's inequality (JASA 58,
    1963, Theorem 2)

        P(|sum r| >= z sqrt(sum r**2)) <= 2 exp(-z**2 / 2)

    Values of one cluster may depend on each other: the sum of their r is then one value. 1 where all values are 0.
    """
    ranks = np.sign(values) * scipy.stats.rankdata(np.abs(values))
    sums = ranks if clusters is None else np.bincount(clusters, ranks)
    squares = float(np.square(sums).sum())
    return min(1.0, 2 * math.exp(-(float(sums.sum()) ** 2) / (2 * squares))) if squares > 0 else 1.0


def anytime_p_value(p_value: float, look: int) -> float:
    """The p-value of one look (1, 2, ...), adjusted for all looks ever: p t (t + 1), at most 1.

    Level alpha is spent as alpha / (t (t + 1)) at look t, which sums to alpha. By the union bound the chance that an
    adjusted p-value is ever at most alpha is at most alpha, however the looks depend on each other.
    """
    return min(1.0, p_value * look * (look + 1))
