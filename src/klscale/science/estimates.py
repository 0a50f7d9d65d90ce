"""A number with its standard error: intervals, errors over clusters of texts, and how both are printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from klscale.science.arrays import Floats, Integers

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error, both in `unit`, which is empty for a pure number. `interval` covers with 95 %
    confidence."""

    value: float
    standard_error: float
    interval: tuple[float, float]
    n_texts: int
    unit: str = "bits/byte"

    @classmethod
    def normal(
        cls, value: float, standard_error: float, n_texts: int, *, n_documents: int = 0, unit: str = "bits/byte"
    ) -> Estimate:
        """With the interval value ± z SE, by Student's t for documents (0: texts are independent)."""
        half = float(critical_value(n_documents)) * standard_error
        return cls(value, standard_error, (value - half, value + half), n_texts, unit)

    @classmethod
    def positive(
        cls, value: float, standard_error: float, n_texts: int, *, n_documents: int = 0, unit: str = "bits/byte"
    ) -> Estimate:
        """With an interval on the log scale: see `log_interval`."""
        low, high = log_interval(np.array(value), np.array(standard_error), n_documents)
        return cls(value, standard_error, (float(low), float(high)), n_texts, unit)

    def __str__(self) -> str:
        return f"{format_estimate(self.value, self.standard_error)} {self.unit}".rstrip()


def format_estimate(value: float, standard_error: float, *, sign: bool = False) -> str:
    """`0.0231 ± 0.0012`: the standard error to two digits, and the value to the same decimal place."""
    plus = "+" if sign else ""
    if not math.isfinite(value):
        return "n/a"
    if not (math.isfinite(standard_error) and standard_error > 0):
        return f"{value:{plus}.3g}"
    decimals = max(0, 1 - math.floor(math.log10(standard_error)))
    if decimals > 7:
        return f"{value:{plus}.3g} ± {standard_error:.1e}"
    return f"{value:{plus}.{decimals}f} ± {standard_error:.{decimals}f}"


def critical_value(n_documents: int | Integers = 0) -> Any:
    """Two-sided 95 % quantile: normal, or Student's t with G - 1 degrees of freedom for G > 0 clusters of texts."""
    freedom = np.where(np.asarray(n_documents) > 0, np.asarray(n_documents) - 1.0, np.inf)
    return special.stdtrit(freedom, (1 + CONFIDENCE) / 2)


def log_interval(value: Floats, standard_error: Floats, n_documents: int | Integers = 0) -> tuple[Floats, Floats]:
    """95 % interval on the log scale: value x exp(± z SE / value). Covers better than value ± z SE; never negative.
    A value of 0, two models that agree on every text, has no width."""
    return log_interval_by(value, standard_error, critical_value(n_documents))


def log_interval_by(value: Any, standard_error: Any, critical: Any) -> tuple[Any, Any]:
    positive = np.where(value > 0, value, 1.0)
    exponent = np.where(value > 0, critical * standard_error / positive, 0.0)
    factor = np.exp(np.minimum(exponent, 700.0))
    return value / factor, value * factor


def cluster_codes(
    documents: Sequence[Any] | NDArray[Any] | None, texts: NDArray[Any] | slice = slice(None)
) -> Integers | None:
    """Cluster number of each of these texts (a mask or positions); None where no two share a document, or all are of
    one: then they are taken as independent."""
    if documents is None:
        return None
    unique, codes = np.unique(np.asarray(documents, dtype=str)[texts], return_inverse=True)
    return codes.astype(np.int64) if 1 < len(unique) < len(codes) else None


def n_clusters(clusters: Integers | None) -> int:
    """Number of clusters; 0 for texts that are independent."""
    return 0 if clusters is None else int(clusters.max()) + 1


def standard_error_of_mean(values: Floats, clusters: Integers | None = None) -> Floats:
    """Standard error of the mean over the last axis; with clusters, texts of one cluster may be correlated."""
    deviation = values - values.mean(axis=-1, keepdims=True)
    n = values.shape[-1]
    if n < 2:
        return np.full(values.shape[:-1], np.nan)
    if clusters is None:
        return np.asarray(np.sqrt((deviation**2).mean(axis=-1) / n))
    return np.asarray(np.sqrt(cluster_variance(deviation, clusters) / n))


def cluster_variance(deviation: Floats, clusters: Integers) -> Floats:
    """Variance of the mean times N, from sums of deviations over clusters (the linearised cluster bootstrap)."""
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    sums = np.add.reduceat(deviation[..., order], starts, axis=-1)
    return np.asarray((sums**2).sum(axis=-1) / deviation.shape[-1] * small_sample_factor(len(starts)))


def small_sample_factor(count: int) -> float:
    return count / (count - 1) if count > 1 else math.nan


def correlation(x: Floats, y: Floats) -> tuple[float, Floats]:
    """Pearson's correlation of x and y (N,), and its influence function at each of them (N,): the standard error of
    the mean of the influences is that of the correlation. NaN where x or y does not vary."""
    d = np.stack([x, y])
    d -= d.mean(axis=1, keepdims=True)
    spread = np.sqrt((d**2).mean(axis=1, keepdims=True))
    if not spread.all():
        return math.nan, np.full(len(x), math.nan)
    a, b = d / spread
    value = float((a * b).mean())
    return value, a * b - value / 2 * (a**2 + b**2)


def fisher_interval(value: float, standard_error: float, n_documents: int = 0) -> tuple[float, float]:
    """95 % interval of a correlation on Fisher's scale, never beyond -1 and 1."""
    inside = 1 - value**2
    half = float(critical_value(n_documents)) * standard_error / inside if inside > 1e-12 else 0.0
    if half == 0:
        return value, value
    low, high = np.tanh(np.arctanh(value) + np.array([-half, half]))
    return float(low), float(high)
