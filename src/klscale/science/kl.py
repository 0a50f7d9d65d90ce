"""KL divergence between language models from their log-likelihoods of the same texts.

Plain NumPy. `L` is a log-likelihood matrix, K models x N texts, in nats; texts have a length in bytes, B on average.

    KL(i, j) = Var_s(l_i - l_j) / (2 B ln 2)                        bits per byte
    SE(KL)   = sqrt((m4 - m2**2) / N) / (2 B ln 2)                  delta method; m2, m4: moments of l_i - l_j, centred

The estimate is symmetric by construction, exact to second order when both models are near the distribution of the
texts, and for a Gaussian log-ratio (Oyama et al., arXiv 2502.16173, Section 3; Kishino et al., arXiv 2505.15353,
Section 2). The variance is the population variance (ddof 0).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.science.arrays import Floats, Integers
from klscale.science.clip import CLIP_LIMIT, moved_by_clip, on_common_texts, pairs_by_texts
from klscale.science.estimates import (
    Estimate,
    cluster_codes,
    cluster_variance,
    correlation,
    fisher_interval,
    format_estimate,
    log_interval,
    n_clusters,
    standard_error_of_mean,
)
from klscale.science.moments import double_centre, pairwise_moments

LOG_2 = math.log(2.0)

HEAVY_TAILS = 10.0
"""Sample kurtosis of a log-likelihood difference above which the delta-method interval is known to cover too rarely."""

RANGE_LIMIT = 100.0
"""KL in nats per text above which the estimate is a distance rather than a KL divergence. On texts drawn from the
models themselves it is exact KL up to 10 nats, and mostly within a factor of 2 up to this (`docs/validity.md`). What
counts is the whole text, whose probabilities the second-order expansion is of: of 972 bytes, 0.148 bits per byte."""

POOR_MODEL = 2.0
"""Bits per byte above which a model is far from the texts, being worse than a good general-purpose compressor; there
the estimate overstates KL at any size (1.3 to 19 times for models above 2.6, see `docs/validity.md`)."""


def nats2_per_bit_per_byte(mean_bytes: float | Floats) -> Any:
    """Text-level variance in nats**2 that equals 1 bit per byte: 2 B ln 2 (1,347.92 for B = 972.3188)."""
    return 2.0 * mean_bytes * LOG_2


def coordinates(log_likelihood: Floats, mean_bytes: float) -> Floats:
    """Points (K, N) whose squared Euclidean distances are KL in bits per byte: Q / sqrt(2 N B ln 2)."""
    points = double_centre(log_likelihood)
    points /= math.sqrt(log_likelihood.shape[1] * nats2_per_bit_per_byte(mean_bytes))  # of 20,000 models no second copy
    return points


@dataclass(frozen=True)
class KL:
    """KL divergence between two models in bits per byte, as estimated from N texts.

    `value`, `standard_error` and `interval` (95 %, on the log scale, so never negative) are the headline: with the
    text set's clip, unless it moves more than 5 % of either vector; then the unclipped value (`uses_clip` is false).
    `clipped` is the largest fraction of either vector that the clip moves. `kurtosis` is that of the log-likelihood
    difference behind the headline. `n_documents` is set where texts share documents, and the standard error is then
    clustered by document. `in_range` is false where the number is a distance rather than a KL divergence: above 100
    nats per text, or where either model is far from the texts (above 2 bits per byte).
    """

    value: float
    standard_error: float
    interval: tuple[float, float]
    n_texts: int
    mean_bytes: float
    value_unclipped: float
    standard_error_unclipped: float
    clipped: float
    uses_clip: bool
    kurtosis: float
    in_range: bool
    n_documents: int | None = None

    @property
    def nats_per_text(self) -> float:
        """The same KL in nats for a text of mean length: value x B ln 2."""
        return self.value * self.mean_bytes * LOG_2

    @property
    def heavy_tails(self) -> bool:
        return self.kurtosis > HEAVY_TAILS

    def __str__(self) -> str:
        return f"{format_estimate(self.value, self.standard_error)} bits/byte"


@dataclass(frozen=True, eq=False)
class KLMatrix:
    """KL between all pairs of K models: each field a (K, K) array, symmetric; see `KL` for what it holds.

    Index with two labels or two positions to get one pair: `matrix["gpt2", "gpt2-medium"]`.
    """

    labels: tuple[str, ...]
    value: Floats
    standard_error: Floats
    n_texts: Integers
    mean_bytes: Floats
    value_unclipped: Floats
    standard_error_unclipped: Floats
    clipped: Floats
    uses_clip: NDArray[np.bool_]
    kurtosis: Floats
    in_range: NDArray[np.bool_]
    n_documents: Integers
    """0 where every text is a document of its own."""

    def position(self, label: str | int) -> int:
        return label if isinstance(label, int) else self.labels.index(label)

    def __getitem__(self, pair: tuple[str | int, str | int]) -> KL:
        i, j = self.position(pair[0]), self.position(pair[1])
        value, error, documents = self.value[i, j], self.standard_error[i, j], int(self.n_documents[i, j])
        low, high = log_interval(value, error, documents)
        return KL(
            value=float(value),
            standard_error=float(error),
            interval=(float(low), float(high)),
            n_texts=int(self.n_texts[i, j]),
            mean_bytes=float(self.mean_bytes[i, j]),
            value_unclipped=float(self.value_unclipped[i, j]),
            standard_error_unclipped=float(self.standard_error_unclipped[i, j]),
            clipped=float(self.clipped[i, j]),
            uses_clip=bool(self.uses_clip[i, j]),
            kurtosis=float(self.kurtosis[i, j]),
            in_range=bool(self.in_range[i, j]),
            n_documents=documents or None,
        )

    def pairs(self) -> Iterator[tuple[str, str, KL]]:
        """Every pair once, in order of rows."""
        for i, a in enumerate(self.labels):
            for j in range(i + 1, len(self.labels)):
                yield a, self.labels[j], self[i, j]

    def columns(self) -> dict[str, NDArray[Any]]:
        """Every pair once, in order of rows, as arrays (K (K - 1) / 2,) for a table: `a`, `b`, the fields, the ends of
        the interval."""
        i, j = np.triu_indices(len(self.labels), k=1)
        names = np.array(self.labels, dtype=object)
        fields = {name: getattr(self, name)[i, j] for name in _FIELDS}
        low, high = log_interval(fields["value"], fields["standard_error"], fields["n_documents"])
        return {"a": names[i], "b": names[j], **fields, "interval_low": low, "interval_high": high}


_FIELDS = {
    "value": np.float64,
    "standard_error": np.float64,
    "n_texts": np.int64,
    "mean_bytes": np.float64,
    "value_unclipped": np.float64,
    "standard_error_unclipped": np.float64,
    "clipped": np.float64,
    "uses_clip": np.bool_,
    "kurtosis": np.float64,
    "in_range": np.bool_,
    "n_documents": np.int64,
}


def bits_per_byte(
    log_likelihood: Floats, text_bytes: Integers, *, documents: Sequence[Any] | NDArray[Any] | None = None
) -> Estimate:
    """Bits per byte of one model: -sum of log-likelihoods / (ln 2 x sum of bytes), a ratio of sums over texts.

    `log_likelihood` (N,) in nats, NaN where a text was not scored. Pass the difference of two models for the paired
    difference of their bits per byte. The standard error is that of a ratio estimator (delta method).
    """
    both = ~np.isnan(log_likelihood)
    bits, size = -log_likelihood[both] / LOG_2, text_bytes[both].astype(np.float64)
    clusters = cluster_codes(documents, both)
    value = float(bits.sum() / size.sum())
    error = float(standard_error_of_mean(bits - value * size, clusters) / size.mean())
    return Estimate.normal(value, error, int(both.sum()), n_documents=n_clusters(clusters))


def kl(
    a: Floats,
    b: Floats,
    text_bytes: Integers,
    *,
    clip: float | None = None,
    documents: Sequence[Any] | NDArray[Any] | None = None,
) -> KL:
    """KL between two models from their log-likelihoods `a`, `b` (N,) of the same texts; see `kl_matrix`."""
    return kl_matrix(np.stack([a, b]), text_bytes, clip=clip, documents=documents)[0, 1]


def kl_matrix(
    log_likelihood: Floats,
    text_bytes: Integers,
    *,
    clip: float | None = None,
    documents: Sequence[Any] | NDArray[Any] | None = None,
    labels: Sequence[str] | None = None,
) -> KLMatrix:
    """KL with standard errors between all pairs of rows of `log_likelihood` (K, N; nats, NaN where not scored).

    Each pair uses the texts that both models have, and the mean of their `text_bytes` (N,). `clip` (nats) is the
    text set's frozen lower limit. Texts that share a label in `documents` (N,) are treated as one cluster in the
    standard errors. Pairs with fewer than two texts in common are NaN.
    """
    L = np.asarray(log_likelihood, dtype=np.float64)
    K = len(L)
    names = tuple(labels) if labels is not None else tuple(map(str, range(K)))
    present = ~np.isnan(L)
    if present.all():
        return KLMatrix(names, **_complete_block(L, text_bytes, clip, documents))

    # Models that have the same texts are computed together, and each pair of such groups on the texts of both.
    whole: dict[str, NDArray[Any]] = {
        name: np.full((K, K), 0 if kind in (np.int64, np.bool_) else np.nan, dtype=kind)
        for name, kind in _FIELDS.items()
    }
    patterns, pattern_of = np.unique(present, axis=0, return_inverse=True)
    for p in range(len(patterns)):
        for q in range(p, len(patterns)):
            texts = np.flatnonzero(patterns[p] & patterns[q])
            if len(texts) < 2:
                continue
            rows = np.flatnonzero((pattern_of == p) | (pattern_of == q))
            group = None if documents is None else np.asarray(documents)[texts]
            block = _complete_block(L[np.ix_(rows, texts)], text_bytes[texts], clip, group)
            i, j = (np.flatnonzero(pattern_of[rows] == pattern) for pattern in (p, q))
            for name, values in block.items():
                whole[name][np.ix_(rows[i], rows[j])] = values[np.ix_(i, j)]
                whole[name][np.ix_(rows[j], rows[i])] = values[np.ix_(j, i)]
    return KLMatrix(names, **whole)


def _complete_block(
    L: Floats, text_bytes: Integers, clip: float | None, documents: Sequence[Any] | NDArray[Any] | None
) -> dict[str, NDArray[Any]]:
    """The fields of a `KLMatrix` for a matrix L (K, N) without missing values."""
    K, N = L.shape
    clusters = cluster_codes(documents)
    mean_bytes = float(text_bytes.mean())
    scale = nats2_per_bit_per_byte(mean_bytes)
    plain = m2, m4, spread = pairwise_moments(L, clusters)
    fields: dict[str, NDArray[Any]] = {
        "value_unclipped": m2 / scale,
        "standard_error_unclipped": spread / (math.sqrt(N) * scale),
        "n_texts": np.full((K, K), N),
        "n_documents": np.full((K, K), n_clusters(clusters)),
        "mean_bytes": np.full((K, K), mean_bytes),
    }
    moved = moved_by_clip(L, clip)
    fields["clipped"] = np.maximum(moved[:, None], moved[None, :])
    fields["uses_clip"] = (fields["clipped"] <= CLIP_LIMIT) & (clip is not None)
    if clip is not None and moved.any():
        clipped = pairwise_moments(np.maximum(L, clip), clusters)
        m2, m4, spread = (np.where(fields["uses_clip"], c, p) for c, p in zip(clipped, plain, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        fields["kurtosis"] = m4 / m2**2
    fields["value"], fields["standard_error"] = m2 / scale, spread / (math.sqrt(N) * scale)
    poor = _poor(L, mean_bytes)
    fields["in_range"] = (m2 / 2 <= RANGE_LIMIT) & ~(poor[:, None] | poor[None, :])
    return fields


def _poor(L: Floats, mean_bytes: float) -> NDArray[np.bool_]:
    """Which rows of L (K, N) are of models far from the texts."""
    return np.asarray(-L.mean(axis=1) / (LOG_2 * mean_bytes) > POOR_MODEL)


def kl_pairs(
    log_likelihood: Floats,
    text_bytes: Integers,
    pairs: Integers,
    *,
    clip: float | None = None,
    documents: Sequence[Any] | NDArray[Any] | None = None,
    draws: Floats | None = None,
) -> dict[str, NDArray[Any]]:
    """KL of some `pairs` (P, 2) of rows, as `kl_matrix` has it, by direct difference: `value`, `standard_error` and
    `in_range` (P,). For few pairs of many models; pairs with fewer than two texts in common are NaN.

    `draws` (R, N) says how often each text is drawn in each of R bootstrap samples; `resampled` (P, R) is then the KL
    of each pair in each sample.
    """
    L = np.asarray(log_likelihood, dtype=np.float64)
    P, draws = len(pairs), np.empty((0, L.shape[1])) if draws is None else draws
    found = {"value": np.full(P, np.nan), "standard_error": np.full(P, np.nan), "in_range": np.zeros(P, dtype=bool)}
    found["resampled"] = np.full((P, len(draws)), np.nan)
    for members, texts in pairs_by_texts(L, pairs):
        rows, places = np.unique(pairs[members], return_inverse=True)
        complete = len(texts) == L.shape[1]
        block = L[rows] if complete else L[np.ix_(rows, texts)]
        size, weights = text_bytes[texts].astype(np.float64), draws[:, texts].T
        clusters = cluster_codes(documents, texts)
        moved, poor = moved_by_clip(block, clip), _poor(block, float(size.mean()))
        scale = nats2_per_bit_per_byte(float(size.mean()))
        drawn = weights.sum(axis=0)
        drawn_scale = nats2_per_bit_per_byte(size @ weights / drawn)
        for part in np.array_split(np.arange(len(members)), -(-len(members) // 128)):
            i, j = places.reshape(-1, 2)[part].T
            a, b = block[i], block[j]
            if clip is not None:
                clipped = np.maximum(moved[i], moved[j]) <= CLIP_LIMIT
                limit = np.where(clipped, clip, -np.inf)[:, None]
                np.maximum(a, limit, out=a)
                np.maximum(b, limit, out=b)
            a -= b
            a -= a.mean(axis=1, keepdims=True)
            first = a @ weights / drawn
            np.square(a, out=a)
            m2, at = a.mean(axis=1), members[part]
            found["resampled"][at] = (a @ weights / drawn - first**2) / drawn_scale
            found["value"][at] = m2 / scale
            a -= m2[:, None]
            variance = (a * a).mean(axis=1) if clusters is None else cluster_variance(a, clusters)
            found["standard_error"][at] = np.sqrt(variance / len(texts)) / scale
            found["in_range"][at] = (m2 / 2 <= RANGE_LIMIT) & ~(poor[i] | poor[j])
    return found


def kl_difference(
    first: tuple[Floats, Floats],
    second: tuple[Floats, Floats],
    text_bytes: Integers,
    *,
    clip: float | None = None,
    documents: Sequence[Any] | NDArray[Any] | None = None,
) -> Estimate:
    """KL(first pair) - KL(second pair) with a paired standard error: both are computed on the texts that all four have.

    The two values share texts, so their errors are correlated, and two overlapping bars say little. The clip is used
    for both pairs or, where it moves more than 5 % of any of the vectors, for neither.
    """
    rows, texts = on_common_texts([*first, *second], clip)
    d = rows[[0, 2]] - rows[[1, 3]]
    d -= d.mean(axis=1, keepdims=True)
    influence = (d[0] ** 2 - d[1] ** 2) / nats2_per_bit_per_byte(float(text_bytes[texts].mean()))
    clusters = cluster_codes(documents, texts)
    value, error = float(influence.mean()), float(standard_error_of_mean(influence, clusters))
    return Estimate.normal(value, error, len(texts), n_documents=n_clusters(clusters))


def shift_cosine(
    base: Floats,
    first: Floats,
    second: Floats,
    text_bytes: Integers,
    *,
    clip: float | None = None,
    documents: Sequence[Any] | NDArray[Any] | None = None,
) -> Estimate:
    """Cosine between the shifts q_first - q_base and q_second - q_base: 1 where two changes of a model move it the same
    way (Kishino et al., arXiv 2505.15353v1, on quantization). It is the correlation of the two differences over texts.

    The standard error is by the delta method, the interval on Fisher's scale; the clip as in `kl_difference`.
    """
    rows, texts = on_common_texts([base, first, second], clip)
    d = rows[1:] - rows[0]
    value, influence = correlation(d[0], d[1])
    clusters = cluster_codes(documents, texts)
    error = float(standard_error_of_mean(influence, clusters))
    low, high = fisher_interval(value, error, n_clusters(clusters))
    return Estimate(value, error, (low, high), len(texts), unit="")
