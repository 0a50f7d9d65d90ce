"""Is a KL within a limit? Decided by its value, or by its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from scipy import special

from klscale.errors import InputError


class Measured(Protocol):
    """A KL in bits per byte, with the numbers of its texts and of their documents."""

    @property
    def value(self) -> float: ...
    @property
    def standard_error(self) -> float: ...
    @property
    def n_texts(self) -> int: ...
    @property
    def n_documents(self) -> int | None: ...


@dataclass(frozen=True)
class Verdict:
    """`within` the limit or not; None where the interval holds the limit: `texts` texts like these would then decide.
    `measured` is False for a KL that cannot be told. The `interval` in bits per byte is that of the confidence."""

    within: bool | None
    measured: bool = True
    interval: tuple[float, float] | None = None
    texts: int | None = None


def parse_confidence(text: str) -> float:
    """`95%`, `95 %` and `0.95`. Raises InputError for what is not between 50 and 100 %."""
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0.5 <= value < 1:
        why = "It is how often the interval holds the true value."
        raise InputError(f"--confidence {text}: not between 50 and 100 %.", why, "Give a percentage (95%).")
    return value


def verdict(kl: Measured, limit: float, confidence: float | None = None) -> Verdict:
    """Whether a KL is at most `limit` bits per byte: by its value, or by its interval at a `confidence`.

    The interval is value x exp(± t SE / value), with Student's t over documents. Its half width on the log scale falls
    as one over the root of the number of texts, which tells how many would decide.
    """
    if math.isnan(kl.value):
        return Verdict(False, measured=False)
    if confidence is None or kl.value == 0:
        return Verdict(kl.value <= limit)
    freedom = kl.n_documents - 1 if kl.n_documents else math.inf
    half = float(special.stdtrit(freedom, (1 + confidence) / 2)) * kl.standard_error / kl.value
    if math.isnan(half):
        return Verdict(False, measured=False)
    factor = math.exp(min(half, 700.0))
    interval = kl.value / factor, kl.value * factor
    if interval[1] <= limit or interval[0] > limit:
        return Verdict(interval[1] <= limit, interval=interval)
    distance = abs(math.log(limit / kl.value))
    enough = math.ceil(kl.n_texts * (half / distance) ** 2) if distance > 1e-3 else None
    return Verdict(None, interval=interval, texts=enough)
