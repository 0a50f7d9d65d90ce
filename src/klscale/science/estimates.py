"""Estimates with standard errors: intervals, errors for texts in clusters, and how an estimate is printed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from klscale.science.arrays import Documents, Floats, Integers

CONFIDENCE = 0.95
"""Confidence level of every interval."""
NORMAL_95 = 1.9599639845400538
"""The two-sided quantile of the normal distribution at that level, as SciPy computes it."""


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error and 95 % interval, all in `unit`. It is empty for a pure number."""

    value: float
    standard_error: float
    interval: tuple[float, float]
    n_texts: int
    unit: str = "bits/byte"

    @classmethod
    def normal(
        cls, value: float, standard_error: float, n_texts: int, *, n_documents: int = 0, unit: str = "bits/byte"
    ) -> Estimate:
        """The estimate with the interval value ± z SE; by Student's t where texts share documents (0: they do not)."""
        half = float(critical_value(n_documents)) * standard_error
        return cls(value, standard_error, (value - half, value + half), n_texts, unit)

    @classmethod
    def positive(
        cls, value: float, standard_error: float, n_texts: int, *, n_documents: int = 0, unit: str = "bits/byte"
    ) -> Estimate:
        """The estimate with an interval on the log scale: see `log_interval`."""
        low, high = log_interval(value, standard_error, critical_value(n_documents))
        return cls(value, standard_error, (float(low), float(high)), n_texts, unit)

    @classmethod
    def unknown(cls, n_texts: int, unit: str = "bits/byte") -> Estimate:
        """What so many texts do not tell: all is NaN."""
        return cls(math.nan, math.nan, (math.nan, math.nan), n_texts, unit)

    @classmethod
    def ratio(
        cls,
        values: Floats,
        size: Floats | Integers,
        clusters: Integers | None = None,
        *,
        unit: str = "bits/byte",
        on_log_scale: bool = True,
    ) -> Estimate:
        """The sum of `values` (N,) over that of `size` (N,), a ratio over texts or their `clusters` (N,): see
        `ratio_of_sums`. The interval is on the log scale, or value ± z SE. All is infinite where one of `values` is."""
        if np.isposinf(values).any():
            return cls(math.inf, math.inf, (math.inf, math.inf), len(values), unit)
        make = cls.positive if on_log_scale else cls.normal
        value, error = ratio_of_sums(values, size, clusters)
        return make(value, error, len(values), n_documents=n_clusters(clusters), unit=unit)

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


# ------------------------------------------------------------------------------------------------------- intervals


def critical_value(n_documents: int | Integers = 0, confidence: float = CONFIDENCE) -> Any:
    """Two-sided quantile (default: 95 %): normal, or Student's t with G - 1 degrees of freedom for G > 0 clusters of
    texts."""
    if confidence == CONFIDENCE and not np.any(n_documents):
        return np.full(np.shape(n_documents), NORMAL_95)[()]  # SciPy takes a fifth of a second to load
    freedom = np.where(np.asarray(n_documents) > 0, np.asarray(n_documents) - 1.0, np.inf)
    return scipy.special.stdtrit(freedom, (1 + confidence) / 2)


def log_interval(value: float | Floats, standard_error: float | Floats, critical: Any) -> tuple[Any, Any]:
    """Ends of an interval on the log scale: value x exp(± critical x SE / value), in the unit of the value.

    It is never negative, and covers more often than value ± z SE. It has no width where the value is 0: the models
    agree on every text.
    """
    positive = np.where(value > 0, value, 1.0)
    exponent = np.where(value > 0, critical * standard_error / positive, 0.0)
    factor = np.exp(np.minimum(exponent, 700.0))
    return value / factor, value * factor


def fisher_interval(value: float, standard_error: float, n_documents: int = 0) -> tuple[float, float]:
    """Ends of the 95 % interval of a correlation, by Fisher's z scale: between -1 and 1."""
    inside = 1 - value**2
    half = float(critical_value(n_documents)) * standard_error / inside if inside > 1e-12 else 0.0
    if half == 0:
        return value, value
    low, high = np.tanh(np.arctanh(value) + np.array([-half, half]))
    return float(low), float(high)


# --------------------------------------------------------------------------------- errors of means and correlations


def cluster_codes(documents: Documents, texts: NDArray[Any] | slice = slice(None)) -> Integers | None:
    """Cluster number (n,) of each of these texts (a mask or positions), from document labels (N,).

    None where texts count as independent: no two share a document, or all come from one.
    """
    if documents is None:
        return None
    unique, codes = np.unique(np.asarray(documents, dtype=str)[texts], return_inverse=True)
    return codes.astype(np.int64) if 1 < len(unique) < len(codes) else None


def n_clusters(clusters: Integers | None) -> int:
    """Number of clusters; 0 for independent texts."""
    return 0 if clusters is None else int(clusters.max()) + 1


def standard_error_of_mean(values: Floats, clusters: Integers | None = None) -> Floats:
    """Standard error (...) of the mean of `values` (..., N) over texts, in their unit; NaN for fewer than two texts.
    Texts of one cluster may be correlated."""
    n = values.shape[-1]
    if n < 2:
        return np.full(values.shape[:-1], np.nan)
    deviation = values - values.mean(axis=-1, keepdims=True)
    if clusters is None:
        return np.asarray(np.sqrt((deviation**2).mean(axis=-1) / n))
    return np.asarray(np.sqrt(cluster_variance(deviation, clusters) / n))


def cluster_variance(deviation: Floats, clusters: Integers) -> Floats:
    """N times the variance (...) of a mean, from the sums of deviations (..., N) over clusters.

    This is the linearised cluster bootstrap, with the factor G / (G - 1) for G clusters.
    """
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    sums = np.add.reduceat(deviation[..., order], starts, axis=-1)
    return np.asarray((sums**2).sum(axis=-1) / deviation.shape[-1] * small_sample_factor(len(starts)))


def small_sample_factor(n_clusters: int) -> float:
    """G / (G - 1): it makes a variance over G clusters unbiased."""
    return n_clusters / (n_clusters - 1) if n_clusters > 1 else math.nan


def ratio_of_sums(values: Floats, size: Floats | Integers, clusters: Integers | None = None) -> tuple[float, float]:
    """Sum of `values` (N,) over the sum of `size` (N,), and its standard error (delta method), clustered where texts
    share documents. NaN where that sum is 0, as of no texts."""
    if not size.any():
        return math.nan, math.nan
    value = float(values.sum() / size.sum())
    return value, float(standard_error_of_mean(values - value * size, clusters) / size.mean())


def correlation(x: Floats, y: Floats) -> tuple[float, Floats]:
    """Pearson's correlation of x and y (N,), and its influence function at each text (N,).

    The standard error of the mean of the influences is that of the correlation. NaN where x or y is constant.
    """
    d = np.stack([x, y])
    d -= d.mean(axis=1, keepdims=True)
    spread = np.sqrt((d**2).mean(axis=1, keepdims=True))
    if not spread.all():
        return math.nan, np.full(len(x), math.nan)
    a, b = d / spread
    value = float((a * b).mean())
    return value, a * b - value / 2 * (a**2 + b**2)
