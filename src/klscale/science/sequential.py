"""Intervals that hold however often one looks."""

from __future__ import annotations

import math
from dataclasses import replace

from scipy import special

from klscale.science.estimates import CONFIDENCE, log_interval_by
from klscale.science.kl import KL


def anytime_critical_value(n_texts: float, planned: float, n_documents: int = 0) -> float:
    """Standard errors to either side of a mean that hold it with 95 % confidence at all numbers of texts at once: one
    may look as often as one likes, and stop by what one sees. Narrowest (3.03) at the number `planned`.

    The asymptotic confidence sequence of Waudby-Smith et al. (arXiv 2103.06476, Theorem 2.2), from Robbins' mixture:
    for a sum S of n terms of mean 0 and variance 1, exp(b S - b**2 n / 2) averaged over b ~ N(0, r**2) is
    exp(r**2 S**2 / (2 + 2 n r**2)) / sqrt(1 + n r**2), and by Ville's inequality is above 1 / 0.05 at some n with a
    probability of at most 0.05. With x = n r**2 it is below that while
    |S| / sqrt(n) < sqrt((1 + 1/x) (ln(1 + x) - 2 ln 0.05)), which is least where x = ln(1 + x) - 2 ln 0.05, that is
    1 + x = -W(-0.05**2 / e), of Lambert's W the branch below -1.

    With G documents it is the quantile of Student's t, G - 1 degrees of freedom, that is as rare. Documents that have
    several texts make the means at two numbers of texts more alike, which can only add to the confidence.
    """
    error = 1 - CONFIDENCE
    x = n_texts / planned * (-float(special.lambertw(-(error**2) / math.e, -1).real) - 1)
    normal = math.sqrt((1 + 1 / x) * (math.log1p(x) - 2 * math.log(error)))
    return float(special.stdtrit(n_documents - 1.0, float(special.ndtr(normal)))) if n_documents else normal


def at_any_time(kl: KL, planned: float) -> KL:
    """The same KL with an interval on the log scale that holds at whatever number of texts one stops: see
    `anytime_critical_value`."""
    critical = anytime_critical_value(kl.n_texts, planned, kl.n_documents or 0)
    low, high = log_interval_by(kl.value, kl.standard_error, critical)
    return replace(kl, interval=(float(low), float(high)))
