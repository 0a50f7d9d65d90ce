"""KL divergence from spans: how log-ratios differ inside texts, nearer to KL than how whole texts differ.

A text of B bytes is cut into spans c of b_c bytes. With d_c the log-ratio l_i - l_j of a span given all before it:

    D_c = d_c - b_c (sum d / sum b)                        how far a span is from the text's own rate
    x_c = D_c / sqrt(k_c),  k_c = max(1, b_c / 3)          its part of each token, if a token has 3 bytes
    V   = sum k_c x_c tanh(x_c / 2) / (1 - sum b_c**2 / B**2)   nats; n equal spans have the divisor (n - 1) / n
    KL  = sum_s V_s / (sum_s B_s ln 2)                     bits per byte; standard error of a ratio, over texts

If a token comes from either of two models, each half of the time, x tanh(x / 2) of its log-ratio x is the symmetrised
KL in expectation: the probabilities (p + q) / 2 times tanh(x / 2) = (p - q) / (p + q) leave sum (p - q) x / 2. For
close models it is x**2 / 2, so V is half the variance of log-ratios; rare tokens, which texts hold more of than models
write, add |x| and not x**2 / 2.

Whole texts differ by more than KL: one model fits a whole text better than the other does. This drift grows with the
square of the length. The drift share is 1 - KL(spans) / KL(whole texts). The divisor makes V unbiased where models are
close, log-ratios independent and their variances in proportion to bytes, however long the spans are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.science.arrays import Documents, Floats, Integers
from klscale.science.estimates import (
    Estimate,
    cluster_codes,
    critical_value,
    log_interval,
    n_clusters,
    ratio_of_sums,
    standard_error_of_mean,
)
from klscale.science.kl import LOG_2
from klscale.science.pair_sums import Between, PairSums, batches, texts_of_units

TOKEN = 3
"""Bytes of a token. Tokenizers have 3 to 4.5 for English and code; of 2, 3, 4 and 6, this one is nearest to exact KL
without falling below 0.9 times it on pretrained models (docs/validity.md)."""

CLOSE = 1e-4
"""Pairs are computed directly, in float64, where their V is this small against those of either model from the mean of
all."""

DRIFT_ERROR = 0.5
"""Largest standard error of a drift share that is reported: 50 percentage points."""

BATCH = 512
"""Spans of a batch of texts for all pairs."""

ROWS = 32
"""Spans that all pairs of two tiles of models are computed for at a time: they fit the cache of a processor."""

MOST_TERMS = 2**34
"""Pairs times spans that are computed for all pairs. Where there are more, every second text is used, or every third,
and so on: the standard error grows, the time does not."""


@dataclass(frozen=True, eq=False)
class Spans:
    """How N texts are cut: `bytes` (S,) of all spans in order; those of text s are `starts[s]:starts[s + 1]`."""

    bytes: Integers
    starts: Integers


@dataclass(frozen=True)
class SpanKL:
    """KL divergence between two models in bits per byte, from spans of N texts.

    `interval` is at 95 %, on the log scale. `n_texts` counts the texts of at least two spans: shorter ones tell
    nothing; `n_spans` their spans. `lost` is the share of the cuts that either tokenizer loses. `drift_share` (no unit)
    is 1 - KL(spans) / KL(whole texts), of the same texts without a clip; NaN where its standard error is above 0.5, as
    on few or short texts. `n_documents` is set where texts share documents, and the standard errors are then clustered
    by document.
    """

    value: float
    standard_error: float
    interval: tuple[float, float]
    n_texts: int
    n_documents: int | None
    n_spans: int
    lost: float
    drift_share: Estimate


@dataclass(frozen=True, eq=False)
class SpanKLMatrix:
    """KL between all pairs of K models, each field a (K, K) array, symmetric; see `SpanKL`.

    All pairs use the cuts that all models keep. `lost` is the share of the cuts that any of them loses.
    """

    labels: tuple[str, ...]
    value: Floats
    standard_error: Floats
    n_texts: Integers
    n_documents: Integers
    lost: float

    def interval(self) -> tuple[Floats, Floats]:
        """Lower and upper ends (K, K) of the 95 % intervals, on the log scale."""
        return log_interval(self.value, self.standard_error, critical_value(self.n_documents))


# ------------------------------------------------------------------------------------------------------- common spans


@dataclass(frozen=True, eq=False)
class CommonSpans:
    """The spans that some models have in common, of the texts that all have scored.

    `texts` (n,) numbers of these texts and `size` (n,) their bytes; `first` (n + 1,) where the spans of each begin.
    `starts` and `stops` (s,) are the ranges of the text set's spans that each of these spans holds, and `bytes` (s,)
    what is scored of it. A first span in which the models score different bytes, as a BOS token makes them, or none,
    has 0 bytes and takes no part. Each text has two spans or more that take part.
    """

    texts: Integers
    size: Floats
    first: Integers
    starts: Integers
    stops: Integers
    bytes: Floats

    @classmethod
    def of(
        cls,
        values: NDArray[np.floating[Any]],
        spans: Spans,
        given: Integers | None = None,
        kept: NDArray[np.bool_] | None = None,
    ) -> CommonSpans:
        """Of the rows of `values` (R, S), span log-likelihoods in nats; NaN where a cut is lost, and in all spans of a
        text that is not scored. `given` (R, N) bytes of each text before its first scored token (None: 0). `kept` (S,)
        the spans that may be used, where not all cuts of these rows are."""
        first = spans.starts[:-1]
        scored = ~np.isnan(values[:, first]).any(axis=0)
        kept = kept_by_all(values, spans) if kept is None else kept
        agree = np.ones(len(first), bool) if given is None else (given == given[0]).all(axis=0)
        usable = np.add.reduceat(kept, first, dtype=np.int64) >= 2
        texts = np.flatnonzero(scored & usable)
        owner = np.repeat(np.arange(len(first)), np.diff(spans.starts))
        starts = np.flatnonzero(kept & (scored & usable)[owner])
        is_first = np.isin(starts, first[texts], assume_unique=True)
        stops = np.roll(starts, -1)
        stops[np.roll(is_first, -1)] = spans.starts[texts + 1]  # at the last span of each text
        edges = np.concatenate([[0], np.cumsum(spans.bytes)])
        size = (edges[stops] - edges[starts]).astype(np.float64)
        begins = np.append(np.flatnonzero(is_first), len(starts))
        whole = np.add.reduceat(size, begins[:-1]) if len(texts) else np.empty(0)
        if len(texts) and given is not None:
            left_out = ~agree[texts]
            whole -= np.where(left_out, size[begins[:-1]], 0.0)
            size[begins[:-1]] = np.where(left_out, 0.0, np.maximum(size[begins[:-1]] - given[0, texts], 0.0))
        found = cls(texts, whole, begins, starts, stops, size)
        telling = np.add.reduceat(size > 0, begins[:-1], dtype=np.int64) > 1 if len(texts) else usable[:0]
        return found if telling.all() else found.part(np.flatnonzero(telling))

    def part(self, texts: Integers) -> CommonSpans:
        """Only some of the texts, by their positions in `texts`, in this order."""
        counts = np.diff(self.first)[texts]
        first = np.concatenate([[0], np.cumsum(counts)])
        spans = np.arange(first[-1]) + np.repeat(self.first[texts] - first[:-1], counts)
        return CommonSpans(
            self.texts[texts], self.size[texts], first, self.starts[spans], self.stops[spans], self.bytes[spans]
        )

    def log_likelihoods(self, values: NDArray[np.floating[Any]]) -> Floats:
        """Of each row of `values` (R, S), and of each of these spans, the sum (R, s) in nats."""
        length = self.stops - self.starts
        sums = values[:, self.starts].astype(np.float64)
        for behind in range(1, int(length.max(initial=1))):
            longer = np.flatnonzero(length > behind)
            sums[:, longer] += np.nan_to_num(values[:, self.starts[longer] + behind])
        return sums

    @cached_property
    def _inside(self) -> tuple[Floats, Floats]:
        """Bytes (n,) of each text in its spans, and the divisor (n,) of V."""
        total = np.add.reduceat(self.bytes, self.first[:-1])
        return total, 1 - np.add.reduceat(self.bytes**2, self.first[:-1]) / total**2

    @cached_property
    def tokens(self) -> Floats:
        """How many tokens (s,) each span has, about."""
        return np.maximum(1.0, self.bytes / TOKEN)

    @cached_property
    def weights(self) -> Floats:
        """What x tanh(x / 2) of a span counts (s,) in V of its text."""
        return self.tokens / np.repeat(self._inside[1], np.diff(self.first))

    def deviations(self, log_ratios: Floats) -> Floats:
        """x (R, s) in nats of log-ratios (R, s), or the part of it that is of one model of log-likelihoods."""
        used = np.where(self.bytes > 0, log_ratios, 0.0)
        rate = np.add.reduceat(used, self.first[:-1], axis=1) / self._inside[0]
        drift = np.repeat(rate, np.diff(self.first), axis=1)
        drift *= self.bytes
        used -= drift
        used /= np.sqrt(self.tokens)
        return used

    def terms(self, log_ratios: Floats) -> Floats:
        """The parts (R, s) in nats of V that each span has, from log-ratios (R, s)."""
        x = self.deviations(log_ratios)
        return np.asarray(self.weights * x * np.tanh(x / 2))

    def divergences(self, log_ratios: Floats) -> Floats:
        """V (R, n) in nats of each text, from log-ratios (R, s)."""
        return np.asarray(np.add.reduceat(self.terms(log_ratios), self.first[:-1], axis=1))


def kept_by_all(values: NDArray[np.floating[Any]], spans: Spans) -> NDArray[np.bool_]:
    """Which spans (S,) begin at a cut that each model keeps, of those that have scored the text."""
    kept = np.ones(len(spans.bytes), dtype=bool)
    counts = np.diff(spans.starts)
    for row in values:
        lost = np.isnan(row)
        kept &= ~lost | np.repeat(lost[spans.starts[:-1]], counts)
    return kept


def _lost(kept: NDArray[np.bool_], spans: Spans) -> float:
    n_cuts = len(spans.bytes) - len(spans.starts) + 1
    return float((~kept).sum() / n_cuts) if n_cuts else 0.0


# ---------------------------------------------------------------------------------------------------------- estimates


def span_kl(
    a: NDArray[np.floating[Any]],
    b: NDArray[np.floating[Any]],
    spans: Spans,
    *,
    given: Integers | None = None,
    documents: Documents = None,
) -> SpanKL:
    """KL between two models from their span log-likelihoods `a`, `b` (S,) in nats, NaN where a cut is lost.

    `given` (2, N) bytes of each text before the first scored token of either model; `documents` (N,) labels of texts
    that are not independent. NaN for fewer than two texts in common.
    """
    values = np.stack([a, b])
    kept = kept_by_all(values, spans)
    common = CommonSpans.of(values, spans, given, kept)
    n = len(common.texts)
    lost = _lost(kept, spans)
    if n < 2:
        none = Estimate.unknown(n, "")
        return SpanKL(math.nan, math.nan, (math.nan, math.nan), n, None, len(common.bytes), lost, none)
    clusters = cluster_codes(documents, common.texts)
    rows = common.log_likelihoods(values)
    d = rows[:1] - rows[1:]
    V = common.divergences(d)[0]
    kl = Estimate.ratio(V, common.size * LOG_2, clusters)
    drift = _drift_share(V, common.size, np.add.reduceat(d[0], common.first[:-1]), _whole(common, spans), clusters)
    n_documents = n_clusters(clusters) or None
    return SpanKL(kl.value, kl.standard_error, kl.interval, n, n_documents, len(common.bytes), lost, drift)


def _whole(common: CommonSpans, spans: Spans) -> Floats:
    return np.add.reduceat(spans.bytes, spans.starts[:-1])[common.texts].astype(np.float64)


def _drift_share(V: Floats, size: Floats, d: Floats, whole: Floats, clusters: Integers | None) -> Estimate:
    """1 - rho, with rho the ratio of (sum V / sum size) to Var(d) / (2 mean bytes); standard error by the delta method,
    on the common influence of all four means. NaN where that is above `DRIFT_ERROR`."""
    unknown = Estimate.unknown(len(d), "")
    squares = (d - d.mean()) ** 2
    if not squares.any():
        return unknown
    rho = V.mean() / size.mean() * 2 * whole.mean() / squares.mean()
    relative = whole / whole.mean() - size / size.mean() - squares / squares.mean()
    influence = rho * relative + (rho / V.mean() * V if V.any() else 0.0)
    error = float(standard_error_of_mean(influence, clusters))
    if not error <= DRIFT_ERROR:
        return unknown
    return Estimate.normal(1 - float(rho), error, len(d), n_documents=n_clusters(clusters), unit="")


def span_terms(
    a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]], spans: Spans, *, given: Integers | None = None
) -> tuple[Floats, Floats]:
    """V (N,) in nats of each text and the bytes (N,) that it is of, 0 in texts that tell nothing: KL is sum V over
    ln 2 sum bytes, in any sample of the texts. Arguments as in `span_kl`."""
    values = np.stack([a, b])
    common = CommonSpans.of(values, spans, given)
    found = np.zeros((2, len(spans.starts) - 1))
    if len(common.texts):
        rows = common.log_likelihoods(values)
        found[:, common.texts] = common.divergences(rows[:1] - rows[1:])[0], common.size
    return found[0], found[1]


@dataclass(frozen=True, eq=False)
class SpanChanges:
    """What two models say of each span that both have: `text` (s,) its text, `start` and `stop` (s,) its bytes there,
    `change` (s,) the log-likelihood under the second less that under the first in nats, and `share` (s,) its part of V,
    so of KL from spans."""

    text: Integers
    start: Integers
    stop: Integers
    change: Floats
    share: Floats


def span_changes(
    a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]], spans: Spans, *, given: Integers | None = None
) -> SpanChanges:
    """The spans (s,) of all texts by how much a second model changes them. Arguments as in `span_kl`."""
    values = np.stack([a, b])
    common = CommonSpans.of(values, spans, given)
    rows = common.log_likelihoods(values)
    change = rows[1] - rows[0]
    terms = common.terms(change[None])[0] if len(common.texts) else np.empty(0)
    text = np.repeat(common.texts, np.diff(common.first))
    edges = np.concatenate([[0], np.cumsum(spans.bytes)])
    begin = edges[spans.starts[text]]
    start, stop, share = edges[common.starts] - begin, edges[common.stops] - begin, terms / (terms.sum() or 1.0)
    used = common.bytes > 0
    return SpanChanges(text[used], start[used], stop[used], change[used], share[used])


def span_kl_difference(
    first: tuple[Floats, Floats],
    second: tuple[Floats, Floats],
    spans: Spans,
    *,
    given: Integers | None = None,
    documents: Documents = None,
) -> Estimate:
    """KL(first pair) - KL(second pair) in bits per byte with a paired standard error, from the spans that all four
    models have; `given` (4, N) as in `span_kl`. NaN for fewer than two texts of at least two spans."""
    values = np.stack([*first, *second])
    common = CommonSpans.of(values, spans, given)
    if len(common.texts) < 2:
        return Estimate.unknown(len(common.texts))
    rows = common.log_likelihoods(values)
    V = common.divergences(rows[[0, 2]] - rows[[1, 3]])
    clusters = cluster_codes(documents, common.texts)
    return Estimate.ratio(V[0] - V[1], common.size * LOG_2, clusters, on_log_scale=False)


def span_kl_matrix(
    values: NDArray[np.floating[Any]],
    spans: Spans,
    *,
    given: Integers | None = None,
    documents: Documents = None,
    labels: Sequence[str] | None = None,
) -> SpanKLMatrix:
    """KL with standard errors between all pairs of rows of `values` (K, S), span log-likelihoods in nats.

    Float32 values are read as they are, a few texts at a time. Each pair uses the texts that both have (of many models
    on many texts a part of them, see `MOST_TERMS`), and all use the cuts that all models keep; `given` (K, N) and the
    rest as in `span_kl`.
    """
    K = len(values)
    value, error = np.full((2, K, K), np.nan)
    n_texts, n_documents = np.zeros((2, K, K), dtype=np.int64)
    kept = kept_by_all(values, spans)
    scored = np.packbits(~np.isnan(values[:, spans.starts[:-1]]), axis=1)
    patterns, pattern_of = np.unique(scored, axis=0, return_inverse=True)
    for p in range(len(patterns)):
        for q in range(p, len(patterns)):
            rows = np.flatnonzero((pattern_of == p) | (pattern_of == q))
            block = values if len(rows) == K else values[rows]
            common = CommonSpans.of(block, spans, None if given is None else given[rows], kept)
            every = math.ceil(len(rows) ** 2 / 2 * len(common.bytes) / MOST_TERMS)
            if every > 1:
                common = common.part(np.arange(0, len(common.texts), every))
            if len(common.texts) < 2:
                continue
            clusters = cluster_codes(documents, common.texts)
            found = _all_pairs(block, common, clusters)
            i, j = (np.flatnonzero(pattern_of[rows] == pattern) for pattern in (p, q))
            for x, y in ((i, j), (j, i)):
                at = np.ix_(rows[x], rows[y])
                value[at], error[at] = (matrix[np.ix_(x, y)] for matrix in found)
                n_texts[at], n_documents[at] = len(common.texts), n_clusters(clusters)
    names = tuple(labels) if labels is not None else tuple(map(str, range(K)))
    return SpanKLMatrix(names, value, error, n_texts, n_documents, _lost(kept, spans))


def _all_pairs(
    values: NDArray[np.floating[Any]], common: CommonSpans, clusters: Integers | None
) -> tuple[Floats, Floats]:
    """Value and standard error (K, K). x of a pair is the difference of what either model deviates from the mean of
    all; close pairs, whose digits float32 loses, are computed one by one."""
    K = len(values)
    codes = np.arange(len(common.texts)) if clusters is None else clusters
    members = texts_of_units(codes)
    lengths = np.bincount(codes, np.diff(common.first)).astype(np.int64)
    size = np.bincount(codes, common.size * LOG_2).astype(np.float64)

    def read(units: Integers) -> tuple[Between, Floats]:
        part = common.part(np.concatenate([members[u] for u in units]))
        rows = part.log_likelihoods(values)
        rows -= rows.mean(axis=0)
        edges = np.concatenate([[0], np.cumsum(lengths[units])])
        return _between(part.deviations(rows).astype(np.float32), part.weights.astype(np.float32), edges), size[units]

    sums = PairSums.over(K, list(batches(lengths, BATCH)), read, symmetric=True)
    value, error = sums.ratio(n_clusters(clusters))
    total = sums.total.sum(axis=1)
    own = (total - total.sum() / (2 * K)) / K  # of each model's deviations alone, as their mean is 0
    close = np.triu(sums.total < CLOSE * (own[:, None] + own), k=1)
    for i, j in np.argwhere(close):
        pair = common.log_likelihoods(values[[i, j]])
        found = ratio_of_sums(common.divergences(pair[:1] - pair[1:])[0], common.size * LOG_2, clusters)
        (value[i, j], error[i, j]) = (value[j, i], error[j, i]) = found
    np.fill_diagonal(value, 0.0)
    np.fill_diagonal(error, 0.0)
    return value, error


def _between(x: NDArray[np.float32], weights: NDArray[np.float32], edges: Integers) -> Between:
    """V of units between models, from x (K, s) of each model and the weights (s,) of the spans; those of unit u are
    `edges[u]:edges[u + 1]`."""
    half, ones, twice = x.T / 2, np.ones_like(x.T), 2 * weights
    plus, minus = np.stack([half, ones], axis=2), np.stack([ones, -half], axis=1)  # whose product is x / 2 of a pair

    def between(i: slice, j: slice) -> Floats:
        a, b = plus[:, i], minus[:, :, j]
        found = np.zeros((len(edges) - 1, a.shape[1], b.shape[2]))
        halves, tanh = np.empty((2, ROWS, *found.shape[1:]), dtype=np.float32)
        for unit, (start, stop) in enumerate(pairwise(edges)):
            for low in range(start, stop, ROWS):
                at = slice(low, min(low + ROWS, stop))
                n = at.stop - at.start
                np.matmul(a[at], b[at], out=halves[:n])
                np.tanh(halves[:n], out=tanh[:n])
                tanh[:n] *= halves[:n]
                found[unit] += np.tensordot(twice[at], tanh[:n], axes=1)
        return found

    return between
