"""Is a KL within a limit? Decided by its value, or by its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

from klscale.errors import InputError
from klscale.inputs.shares import parse_share
from klscale.science.estimates import critical_value, log_interval
from klscale.science.reported import ReportedKL


@dataclass(frozen=True)
class Verdict:
    """`within` the limit or not; None where the interval holds the limit: `texts` texts like these would then decide.
    `measured` is False, and `within` None, for a KL that cannot be told. The `interval` in bits per byte is that of the
    confidence."""

    within: bool | None
    measured: bool = True
    interval: tuple[float, float] | None = None
    texts: int | None = None


def parse_confidence(text: str) -> float:
    """`95%`, `95 %` and `0.95`. Raises InputError for what is not between 50 and 100 %."""
    value = parse_share(text)
    if not 0.5 <= value < 1:
        why = "It is how often the interval holds the true value."
        raise InputError(f"--confidence {text}: not between 50 and 100 %.", why, "Give a percentage (95%).")
    return value


def verdict(kl: ReportedKL, limit: float, confidence: float | None = None) -> Verdict:
    """Whether a KL is at most `limit` bits per byte: by its value, or by its interval at a `confidence`.

    The half width of the interval on the log scale falls as one over the root of the number of texts, which tells how
    many would decide.
    """
    if math.isnan(kl.value):
        return Verdict(None, measured=False)
    if confidence is None or kl.value == 0:
        return Verdict(kl.value <= limit)
    critical = float(critical_value(kl.n_documents or 0, confidence))
    low, high = map(float, log_interval(kl.value, kl.standard_error, critical))
    if math.isnan(high):
        return Verdict(None, measured=False)
    if high <= limit or low > limit:
        return Verdict(high <= limit, interval=(low, high))
    half, distance = critical * kl.standard_error / kl.value, abs(math.log(limit / kl.value))
    known = math.isfinite(half) and distance > 1e-3
    enough = math.ceil(kl.n_texts * (half / distance) ** 2) if known else None
    return Verdict(None, interval=(low, high), texts=enough)
