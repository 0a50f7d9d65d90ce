"""KL divergence between language models from their log-likelihoods of the same texts.

Plain NumPy. `L` is a log-likelihood matrix, K models x N texts, in nats; texts have a length in bytes, B on average.

    KL(i, j) = Var_s(l_i - l_j) / (2 B ln 2)                        bits per byte
    SE(KL)   = sqrt((m4 - m2**2) / N) / (2 B ln 2)                  delta method; m2, m4: moments of l_i - l_j, centred

The estimate is symmetric by construction, exact to second order when both models are near the distribution of the
texts, and for a Gaussian log-ratio (Oyama et al., arXiv 2502.16173, Section 3; Kishino et al., arXiv 2505.15353,
Section 2). The variance is the population variance (ddof 0).

Beside this file: moments of all pairs (`moments`), the clip and the texts in common (`clip`), errors and intervals
(`estimates`), the bootstrap (`bootstrap`), robust variances (`robust`), intervals for repeated looks (`sequential`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from klscale.science.arrays import Documents, Floats, Integers
from klscale.science.clip import beyond_clip_limit, clip_of_pairs, moved_by_clip, on_common_texts, pairs_by_texts
from klscale.science.estimates import (
    Estimate,
    cluster_codes,
    cluster_variance,
    correlation,
    critical_value,
    fisher_interval,
    format_estimate,
    log_interval,
    n_clusters,
    standard_error_of_mean,
)
from klscale.science.moments import double_centre, pairwise_moments, pairwise_variances

LOG_2 = math.log(2.0)

HEAVY_TAILS = 10.0
"""Sample kurtosis of a log-likelihood difference above which the interval of its KL covers too rarely."""

RANGE_LIMIT = 100.0
"""KL in nats per text above which the estimate is a distance rather than a KL divergence. On texts drawn from the
models themselves it equals exact KL up to 10 nats, and mostly agrees within a factor of 2 up to this limit
(`docs/whole-texts.md`). The limit is per text because the second-order expansion is in the probability of a whole text:
for texts of 972 bytes it is 0.148 bits per byte."""

POOR_MODEL = 2.0
"""Bits per byte above which a model is far from the texts: a good general-purpose compressor does better. There the
estimate overstates KL at any size (1.3 to 19 times for models above 2.6, see `docs/whole-texts.md`)."""


def nats2_per_bit_per_byte(mean_bytes: float | Floats) -> Any:
    """Variance over texts in nats**2 that equals 1 bit per byte: 2 B ln 2 (1,347.92 for B = 972.3188)."""
    return 2.0 * mean_bytes * LOG_2


def coordinates(log_likelihood: Floats, mean_bytes: float) -> Floats:
    """Points (K, N) whose squared Euclidean distances are KL in bits per byte: Q / sqrt(2 N B ln 2)."""
    points = double_centre(log_likelihood)
    points /= math.sqrt(log_likelihood.shape[1] * nats2_per_bit_per_byte(mean_bytes))  # in place: K may be 20,000
    return points


# --------------------------------------------------------------------------------------------------------- results

Number = TypeVar("Number", float, Floats)
Count = TypeVar("Count", int, Integers)
CountOrNone = TypeVar("CountOrNone", int | None, Integers)
Flag = TypeVar("Flag", bool, NDArray[np.bool_])


@dataclass(frozen=True, eq=False, kw_only=True)
class PairQuantities(Generic[Number, Count, CountOrNone, Flag]):
    """Everything that is computed for a pair of models, listed once: numbers in a `KL`, (K, K) arrays in a `KLMatrix`.

    The reported value uses the text set's clip unless that moves more than 5 % of either vector (`clip.CLIP_LIMIT`).
    """

    value: Number
    """KL in bits per byte, the reported value."""
    standard_error: Number
    """Of `value`, in bits per byte; clustered by document where texts share documents."""
    n_texts: Count
    """Texts that both models have."""
    mean_bytes: Number
    """Mean length of these texts in bytes."""
    value_unclipped: Number
    """KL in bits per byte without the clip."""
    standard_error_unclipped: Number
    """Of `value_unclipped`, in bits per byte."""
    clipped: Number
    """The fraction of the values that the clip moves, in the vector where it moves more."""
    uses_clip: Flag
    """Whether `value` is clipped."""
    kurtosis: Number
    """Sample kurtosis of the log-likelihood difference behind `value` (3 for a Gaussian)."""
    in_range: Flag
    """False where `value` is a distance rather than a KL divergence: above `RANGE_LIMIT`, or with a `POOR_MODEL`."""
    n_documents: CountOrNone
    """Documents of the texts where texts share documents; else 0 in a matrix, None in a `KL`."""

    @property
    def nats_per_text(self) -> Any:
        """The same KL in nats for a text of mean length: value x B ln 2."""
        return self.value * self.mean_bytes * LOG_2

    @property
    def heavy_tails(self) -> Any:
        """Whether the kurtosis is above `HEAVY_TAILS`."""
        return self.kurtosis > HEAVY_TAILS

    @property
    def left_unclipped(self) -> Any:
        """Whether `value` is unclipped because the clip moves more than 5 % of a vector."""
        return beyond_clip_limit(self.clipped)


QUANTITIES = tuple(entry.name for entry in fields(PairQuantities))


@dataclass(frozen=True, kw_only=True)
class KL(PairQuantities[float, int, int | None, bool]):
    """KL divergence between two models in bits per byte, as estimated from texts; see `PairQuantities`."""

    interval: tuple[float, float]
    """95 % interval of `value` in bits per byte, on the log scale: never negative."""

    def __str__(self) -> str:
        return f"{format_estimate(self.value, self.standard_error)} bits/byte"


@dataclass(frozen=True, eq=False, kw_only=True)
class KLPairs(PairQuantities[Floats, Integers, Integers, NDArray[np.bool_]]):
    """The KLs of many pairs: arrays of each quantity, and of both ends of the intervals. Index with a place for one."""

    interval: tuple[Floats, Floats]

    @classmethod
    def of(cls, quantities: Mapping[str, Any]) -> KLPairs:
        """The pairs with these `QUANTITIES`, by name."""
        found = {name: quantities[name] for name in QUANTITIES}
        critical = critical_value(found["n_documents"])
        return cls(**found, interval=log_interval(found["value"], found["standard_error"], critical))

    def __getitem__(self, place: int) -> KL:
        found = {name: getattr(self, name)[place].item() for name in QUANTITIES}
        low, high = (float(end[place]) for end in self.interval)
        return KL(**{**found, "n_documents": found["n_documents"] or None, "interval": (low, high)})


@dataclass(frozen=True, eq=False, kw_only=True)
class KLMatrix(PairQuantities[Floats, Integers, Integers, NDArray[np.bool_]]):
    """KL between all pairs of K models, symmetric (K, K) arrays in bits per byte; see `PairQuantities`.

    Index with two labels or two positions to get one pair: `matrix["gpt2", "gpt2-medium"]`.
    """

    labels: tuple[str, ...]

    def position(self, label: str | int) -> int:
        """Row of a model."""
        return label if isinstance(label, int) else self.labels.index(label)

    def __getitem__(self, pair: tuple[str | int, str | int]) -> KL:
        i, j = map(self.position, pair)
        return self.at([i], [j])[0]

    def at(self, i: Any, j: Any) -> KLPairs:
        """The pairs of the models at the positions `i` and `j`, as arrays of their shape."""
        return KLPairs.of({name: getattr(self, name)[i, j] for name in QUANTITIES})

    def pairs(self) -> Iterator[tuple[str, str, KL]]:
        """Every pair once, in order of rows."""
        for i, a in enumerate(self.labels):
            for j in range(i + 1, len(self.labels)):
                yield a, self.labels[j], self[i, j]

    def columns(self) -> dict[str, NDArray[Any]]:
        """Every pair once, in order of rows, as columns (K (K - 1) / 2,) of a table: `a`, `b`, the quantities, and the
        ends of the interval."""
        i, j = np.triu_indices(len(self.labels), k=1)
        names, pairs = np.array(self.labels, dtype=object), self.at(i, j)
        found = {name: getattr(pairs, name) for name in QUANTITIES}
        low, high = pairs.interval
        return {"a": names[i], "b": names[j], **found, "interval_low": low, "interval_high": high}


# ------------------------------------------------------------------------------------------------------ KL of pairs


def kl(a: Floats, b: Floats, text_bytes: Integers, *, clip: float | None = None, documents: Documents = None) -> KL:
    """KL between two models in bits per byte, with its standard error, from their log-likelihoods `a`, `b` (N,; nats)
    of the same texts. The other arguments are those of `kl_matrix`.

        kl = klscale.kl(a, b, text_bytes)
        print(kl, kl.interval, kl.in_range)
    """
    return kl_matrix(np.stack([a, b]), text_bytes, clip=clip, documents=documents)[0, 1]


def kl_matrix(
    log_likelihood: Floats,
    text_bytes: Integers,
    *,
    clip: float | None = None,
    documents: Documents = None,
    labels: Sequence[str] | None = None,
) -> KLMatrix:
    """KL with standard errors between all pairs of rows of `log_likelihood` (K, N; nats, NaN where not scored).

    Each pair uses the texts that both models have, and the mean of their `text_bytes` (N,). `clip` (nats) is the
    text set's frozen lower limit. Texts that share a label in `documents` (N,) are treated as one cluster in the
    standard errors. Pairs with fewer than two texts in common are NaN, and standard errors with fewer than three.
    """
    L = np.asarray(log_likelihood, dtype=np.float64)
    K = len(L)
    names = tuple(labels) if labels is not None else tuple(map(str, range(K)))
    if L.shape[1] > 1 and not np.isnan(L).any():
        return KLMatrix(labels=names, **_quantities(L, text_bytes, clip, documents))

    of_no_pair = _quantities(np.zeros((K, 2)), np.ones(2, dtype=np.int64), None, None)
    whole = {name: np.full_like(kind, np.nan if kind.dtype == np.float64 else 0) for name, kind in of_no_pair.items()}
    pairs = np.stack(np.triu_indices(K), axis=1)
    for members, texts in pairs_by_texts(L, pairs):
        rows, places = np.unique(pairs[members], return_inverse=True)
        group = None if documents is None else np.asarray(documents)[texts]
        (i, j), (p, q) = pairs[members].T, places.reshape(-1, 2).T
        for name, values in _quantities(L[np.ix_(rows, texts)], text_bytes[texts], clip, group).items():
            whole[name][i, j], whole[name][j, i] = values[p, q], values[q, p]
    return KLMatrix(labels=names, **whole)


def _quantities(L: Floats, text_bytes: Integers, clip: float | None, documents: Documents) -> dict[str, NDArray[Any]]:
    """The `QUANTITIES` (K, K) of all pairs of rows of L (K, N), which has no missing values."""
    K, N = L.shape
    clusters = cluster_codes(documents)
    mean_bytes = float(text_bytes.mean())
    scale = nats2_per_bit_per_byte(mean_bytes)
    plain = m2, m4, spread = pairwise_moments(L, clusters)
    value_unclipped, error_unclipped = m2 / scale, _error(spread, N) / scale
    moved = moved_by_clip(L, clip)
    clipped, uses_clip = clip_of_pairs(moved[:, None], moved, clip)
    if clip is not None and moved.any():
        with_clip = pairwise_moments(np.maximum(L, clip), clusters)
        m2, m4, spread = (np.where(uses_clip, c, p) for c, p in zip(with_clip, plain, strict=True))
    poor = _poor(L, mean_bytes)
    return {
        "value": m2 / scale,
        "standard_error": _error(spread, N) / scale,
        "n_texts": np.full((K, K), N),
        "mean_bytes": np.full((K, K), mean_bytes),
        "value_unclipped": value_unclipped,
        "standard_error_unclipped": error_unclipped,
        "clipped": clipped,
        "uses_clip": uses_clip,
        "kurtosis": _kurtosis(m2, m4),
        "in_range": _in_range(m2, poor[:, None], poor),
        "n_documents": np.full((K, K), n_clusters(clusters)),
    }


def kl_values(log_likelihood: Floats, text_bytes: Integers, *, clip: float | None = None) -> Floats:
    """The values (K, K) of `kl_matrix` in bits per byte, without standard errors, in a fifth of its time: to order many
    models by. Nearly equal models have few correct digits (`pairwise_variances`)."""
    L = np.asarray(log_likelihood, dtype=np.float64)
    if np.isnan(L).any() or L.shape[1] < 2:
        return kl_matrix(L, text_bytes, clip=clip).value
    m2, moved = pairwise_variances(L), moved_by_clip(L, clip)
    if clip is not None and moved.any():
        _, uses_clip = clip_of_pairs(moved[:, None], moved, clip)
        m2 = np.where(uses_clip, pairwise_variances(np.maximum(L, clip)), m2)
    return np.asarray(m2 / nats2_per_bit_per_byte(float(text_bytes.mean())))


def _error(spread: Floats, n_texts: int) -> Floats:
    """Standard error of m2 from `spread`, the root of N times its variance. NaN for two texts: both are equally far
    from their mean, however far apart models are."""
    return spread / math.sqrt(n_texts) if n_texts > 2 else np.full_like(spread, np.nan)


def _kurtosis(m2: Floats, m4: Floats) -> Floats:
    """Sample kurtosis, a pure number, from central moments; NaN where all values are equal."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(m4 / m2**2)


def _poor(L: Floats, mean_bytes: float) -> NDArray[np.bool_]:
    """Which rows of L (K, N) are of models far from the texts."""
    return np.asarray(-L.mean(axis=1) / (LOG_2 * mean_bytes) > POOR_MODEL)


def _in_range(m2: Floats, a_is_poor: NDArray[np.bool_], b_is_poor: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where the estimate is a KL divergence; `m2` is the variance in nats**2, twice the KL in nats per text."""
    return (m2 / 2 <= RANGE_LIMIT) & ~(a_is_poor | b_is_poor)


def kl_pairs(
    log_likelihood: Floats,
    text_bytes: Integers,
    pairs: Integers,
    *,
    clip: float | None = None,
    documents: Documents = None,
    draws: Floats | None = None,
) -> dict[str, NDArray[Any]]:
    """KL of `pairs` (P, 2) of rows in bits per byte, by direct differences: each of the `QUANTITIES` (P,).

    The same numbers as `kl_matrix`, for few pairs of many models; pairs with fewer than two texts in common are NaN.
    `draws` (R, N) counts how often each text is drawn in each of R bootstrap samples; `resampled` (P, R) is then the
    KL of each pair in each sample, NaN in one without any text that both models have.
    """
    L = np.asarray(log_likelihood, dtype=np.float64)
    P, draws = len(pairs), np.empty((0, L.shape[1])) if draws is None else draws
    none = _quantities(np.zeros((1, 2)), np.ones(2, dtype=np.int64), None, None)
    found = {name: np.full(P, np.nan if one.dtype == np.float64 else 0, dtype=one.dtype) for name, one in none.items()}
    found["resampled"] = np.full((P, len(draws)), np.nan)
    for members, texts in pairs_by_texts(L, pairs):
        rows, places = np.unique(pairs[members], return_inverse=True)
        block = L[rows] if len(texts) == L.shape[1] else L[np.ix_(rows, texts)]
        size, weights = text_bytes[texts].astype(np.float64), draws[:, texts].T
        clusters = cluster_codes(documents, texts)
        mean_bytes = float(size.mean())
        moved, poor = moved_by_clip(block, clip), _poor(block, mean_bytes)
        scale = nats2_per_bit_per_byte(mean_bytes)
        drawn = weights.sum(axis=0)
        drawn[drawn == 0] = np.nan
        drawn_scale = nats2_per_bit_per_byte(size @ weights / drawn)
        for part in np.array_split(np.arange(len(members)), -(-len(members) // 128)):  # what fits into memory
            i, j = places.reshape(-1, 2)[part].T
            a, b = block[i], block[j]
            clipped, uses_clip = clip_of_pairs(moved[i], moved[j], clip)
            plain = None
            if clip is not None and clipped.any():
                plain = _direct_moments(a - b, clusters, weights[:, :0], drawn[:0])
                limit = np.where(uses_clip, clip, -np.inf)[:, None]
                np.maximum(a, limit, out=a)
                np.maximum(b, limit, out=b)
            a -= b
            m2, m4, variance, resampled = _direct_moments(a, clusters, weights, drawn)
            m2_unclipped, _, variance_unclipped, _ = plain or (m2, m4, variance, resampled)
            for name, values in {
                "value": m2 / scale,
                "standard_error": _error(np.sqrt(variance), len(texts)) / scale,
                "n_texts": len(texts),
                "mean_bytes": mean_bytes,
                "value_unclipped": m2_unclipped / scale,
                "standard_error_unclipped": _error(np.sqrt(variance_unclipped), len(texts)) / scale,
                "clipped": clipped,
                "uses_clip": uses_clip,
                "kurtosis": _kurtosis(m2, m4),
                "in_range": _in_range(m2, poor[i], poor[j]),
                "n_documents": n_clusters(clusters),
                "resampled": resampled / drawn_scale,
            }.items():
                found[name][members[part]] = values
    return found


def _direct_moments(
    d: Floats, clusters: Integers | None, weights: Floats, drawn: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """m2 (nats**2), m4 (nats**4) and N times the variance of m2 (nats**4), each (P,), of differences d (P, N), which
    are overwritten; and m2 (P, R) with `weights` (N, R) of the texts, whose sums are `drawn` (R,)."""
    d -= d.mean(axis=1, keepdims=True)
    first = d @ weights / drawn
    np.square(d, out=d)
    m2, m4 = d.mean(axis=1), np.einsum("pn,pn->p", d, d) / d.shape[1]
    resampled = d @ weights / drawn - first**2
    d -= m2[:, None]
    variance = (d * d).mean(axis=1) if clusters is None else cluster_variance(d, clusters)
    return m2, m4, np.asarray(variance), resampled


# ------------------------------------------------------------------------------- bits per byte, and pairs of pairs


def bits_per_byte(log_likelihood: Floats, text_bytes: Integers, *, documents: Documents = None) -> Estimate:
    """Bits per byte of one model: -sum of log-likelihoods / (ln 2 x sum of bytes), a ratio of sums over texts.

    `log_likelihood` (N,) is in nats, NaN where a text was not scored. The difference of two models' log-likelihoods
    gives the paired difference of their bits per byte. The standard error is that of a ratio (delta method).
    """
    known = ~np.isnan(log_likelihood)
    bits, clusters = -log_likelihood[known] / LOG_2, cluster_codes(documents, known)
    return Estimate.ratio(bits, text_bytes[known], clusters, on_log_scale=False)


def bits_per_byte_differences(
    log_likelihood: Floats, text_bytes: Integers, pairs: Integers, *, documents: Documents = None
) -> list[Estimate | None]:
    """Difference in bits per byte, first - second, of each of `pairs` (P, 2) of rows of `log_likelihood` (K, N; nats).

    The same numbers as `bits_per_byte` of the difference of the two rows; None for pairs with fewer than two texts in
    common.
    """
    found: list[Estimate | None] = [None] * len(pairs)
    for members, texts in pairs_by_texts(log_likelihood, pairs):
        size, clusters = text_bytes[texts].astype(np.float64), cluster_codes(documents, texts)
        for part in np.array_split(members, -(-len(members) // 128)):  # what fits into memory
            a, b = pairs[part].T
            bits = (log_likelihood[b] - log_likelihood[a])[:, texts] / LOG_2
            value = bits.sum(axis=1) / size.sum()
            error = standard_error_of_mean(bits - value[:, None] * size, clusters) / size.mean()
            for at, mean, spread in zip(part, value.tolist(), error.tolist(), strict=True):
                found[at] = Estimate.normal(mean, spread, len(texts), n_documents=n_clusters(clusters))
    return found


def kl_difference(
    first: tuple[Floats, Floats],
    second: tuple[Floats, Floats],
    text_bytes: Integers,
    *,
    clip: float | None = None,
    documents: Documents = None,
) -> Estimate:
    """KL(first pair) - KL(second pair) in bits per byte, with a paired standard error: the two KLs share texts, so
    their errors are correlated.

    Each pair is two vectors (N,) in nats. Both KLs use the texts that all four vectors have, and the clip for all of
    the vectors or for none (`clip.on_common_texts`). NaN for fewer than two texts.
    """
    rows, texts = on_common_texts(np.stack([*first, *second]), clip)
    if len(texts) < 2:
        return Estimate.unknown(len(texts))
    d = rows[[0, 2]] - rows[[1, 3]]
    d -= d.mean(axis=1, keepdims=True)
    influence = (d[0] ** 2 - d[1] ** 2) / nats2_per_bit_per_byte(float(text_bytes[texts].mean()))
    clusters = cluster_codes(documents, texts)
    value, error = float(influence.mean()), float(standard_error_of_mean(influence, clusters))
    return Estimate.normal(value, error, len(texts), n_documents=n_clusters(clusters))


def shift_cosine(
    base: Floats, first: Floats, second: Floats, *, clip: float | None = None, documents: Documents = None
) -> Estimate:
    """Cosine between the shifts q_first - q_base and q_second - q_base, a pure number: 1 where two changes of a model
    move it the same way (Kishino et al., arXiv 2505.15353v1, on quantization).

    It is the correlation of the two differences over texts. The standard error is by the delta method, the interval on
    Fisher's scale; texts and clip as in `kl_difference`.
    """
    rows, texts = on_common_texts(np.stack([base, first, second]), clip)
    if len(texts) < 2:
        return Estimate.unknown(len(texts), unit="")
    d = rows[1:] - rows[0]
    value, influence = correlation(d[0], d[1])
    clusters = cluster_codes(documents, texts)
    error = float(standard_error_of_mean(influence, clusters))
    low, high = fisher_interval(value, error, n_clusters(clusters))
    return Estimate(value, error, (low, high), len(texts), unit="")
