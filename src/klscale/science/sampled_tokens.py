"""KL divergence between next-token distributions from a few sampled tokens: exact in expectation, without any logits.

At each position t of some texts, m token ids v are drawn once from a proposal r. Every model that has the tokenizer
keeps l(v), its log-probability of each. With p = exp l_i and q = exp l_j, the mean over the draws of a position is an
unbiased estimate of a sum over the whole vocabulary:

    KL(i, j)                     p/r (l_i - l_j) - p/r + q/r          no term is negative
    (KL(i, j) + KL(j, i)) / 2    (p - q)/r (l_i - l_j) / 2
    total variation              |p - q| / (2 r)                      1 less it: acceptance rate of speculative decoding

KL is summed over positions, and divided by the bytes of the texts and ln 2: bits per byte. Standard errors are those of
ratios over texts or documents, and so include what the draws add (Amini, Vieira and Cotterell, arXiv 2504.10637, and
importance-sampled distillation, arXiv 2503.16870, use the same identities).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from klscale.science.arrays import Documents, Floats, Integers
from klscale.science.estimates import Estimate, cluster_codes, n_clusters
from klscale.science.kl import LOG_2
from klscale.science.pair_sums import Between, PairSums, batches, products, texts_of_units

MIXTURE = 0.6, 0.3, 0.1
"""Shares of the proposal: the reference model's p, p**(1/2) normalised, and how often tokens are seen in the texts."""

FEW_EFFECTIVE, HEAVY_WEIGHT = 0.2, 0.01
"""The draws are poor for a pair below this effective share, or where one weight is above this share of all."""

HEAVY_TAIL = 0.5
"""Pareto index of the terms of KL from which on their variance is infinite, and no standard error can be trusted."""

CLOSE = 1e-6
"""Pairs are computed directly where their KL is this small against those of either model from the mean of all."""

BATCH = 1 << 20
"""Log-probabilities of a batch of texts for all pairs, as numbers."""

DEPTHS = 0, 16, 64, 256, 1024, 4096, 16384, 65536, 262144
"""Tokens before a position from which on it counts as deeper."""

RULED_OUT = -1e4
"""Log-probabilities below this, in nats, are those of tokens that a model rules out, as if they were -inf."""


@dataclass(frozen=True, eq=False)
class Draws:
    """What was drawn at P positions of N texts, m ids each: `log_proposal` (P, m) in nats, `text` (P,) the text of each
    position, in order, and `text_bytes` (N,). The ids themselves are not needed here."""

    log_proposal: Floats
    text: Integers
    text_bytes: Integers

    @cached_property
    def depth(self) -> Integers:
        """(P,) how many positions of its text come before each."""
        return np.arange(len(self.text)) - np.repeat(self.starts[:-1], np.diff(self.starts))

    @cached_property
    def starts(self) -> Integers:
        """(n + 1,) where the positions of each text that has some begin."""
        changes = np.flatnonzero(np.diff(self.text, prepend=-1))
        return np.append(changes, len(self.text))

    @property
    def texts(self) -> Integers:
        """(n,) numbers of the texts that have positions."""
        return self.text[self.starts[:-1]]

    def by_text(self, values: NDArray[Any]) -> Floats:
        """Sums over the positions of each text: (n,) of (P,)."""
        return np.add.reduceat(values.astype(np.float64), self.starts[:-1])


@dataclass(frozen=True)
class SampledKL:
    """KL divergence between two models by sampled tokens, in bits per byte with intervals on the log scale.

    `symmetric` is the mean of both directions, `forward` KL(a, b), `backward` KL(b, a). `forward_per_token` and
    `backward_per_token` are these in nats, as means over positions. `total_variation` is a mean over positions, too;
    `same_top` the share of positions where both have the same most probable token (None: not kept). `effective` is the
    effective sample size as a share of the draws, for weights (p + q) / 2r, and `largest_weight` the largest p/r or
    q/r. `tail_index` is the Pareto index of the largest terms of the symmetrised KL: below 0.5 their variance is finite
    (Vehtari et al., arXiv 1507.02646, Section 2). `outside` is the probability, in the mean over positions, of drawn
    ids that one of the vocabularies lacks: what concerns these is left out. KL is infinite where a model rules out what
    the other may say. Of the KL of single positions there are means alone: from a few draws each, their quantiles would
    be those of the draws. `n_documents` is what the standard errors are clustered by (0: texts are independent).
    """

    symmetric: Estimate
    forward: Estimate
    backward: Estimate
    forward_per_token: Estimate
    backward_per_token: Estimate
    total_variation: Estimate
    same_top: Estimate | None
    n_positions: int
    effective: float
    largest_weight: float
    tail_index: float
    outside: float
    n_draws: int
    n_documents: int

    @property
    def poor(self) -> bool:
        """Whether the proposal is too far from one of the models for the standard errors to be trusted."""
        heavy = self.largest_weight > HEAVY_WEIGHT * self.n_draws or self.tail_index > HEAVY_TAIL
        return heavy or self.effective < FEW_EFFECTIVE


@dataclass(frozen=True, eq=False)
class SampledKLMatrix:
    """KL between all pairs of K models by sampled tokens, each field (K, K); see `SampledKL`.

    `forward[i, j]` is KL(i, j), `symmetric` the mean of both directions. `outside` is that of the draws that any
    vocabulary lacks: all pairs leave out the same.
    """

    labels: tuple[str, ...]
    symmetric: Floats
    symmetric_error: Floats
    forward: Floats
    forward_error: Floats
    effective: Floats
    largest_weight: Floats
    outside: float
    n_texts: int
    n_documents: int
    n_draws: int

    @property
    def poor(self) -> NDArray[np.bool_]:
        return (self.effective < FEW_EFFECTIVE) | (self.largest_weight > HEAVY_WEIGHT * self.n_draws)


def directed_terms(a: Floats, b: Floats, log_proposal: Floats) -> tuple[Floats, Floats, Floats]:
    """Terms of KL(a, b), of KL(b, a) and of the total variation at each draw, from log-probabilities under both models
    and the proposal, all of one shape. -inf is a probability of 0; there is no NaN in what comes back."""
    p, q = np.exp(a - log_proposal), np.exp(b - log_proposal)
    with np.errstate(invalid="ignore"):
        d = np.where(np.isneginf(a) & np.isneginf(b), 0.0, a - b)

    def one_way(p: Floats, q: Floats, d: Floats) -> Floats:
        near = np.clip(d, -1, 1)
        with np.errstate(invalid="ignore"):
            far = np.where(p > 0, p * d - p + q, q)
        return np.where(np.abs(d) < 1, p * (np.expm1(-near) + near), far)

    variation = np.where(np.abs(d) < 1, q * np.abs(np.expm1(np.clip(d, -1, 1))), np.abs(p - q)) / 2
    return one_way(p, q, d), one_way(q, p, -d), variation


def sampled_kl(
    a: NDArray[np.floating[Any]],
    b: NDArray[np.floating[Any]],
    draws: Draws,
    *,
    top: tuple[NDArray[Any], NDArray[Any]] | None = None,
    documents: Documents = None,
) -> SampledKL:
    """KL between two models from their log-probabilities `a`, `b` (P, m) in nats of the drawn ids; -inf for a token
    that a model rules out, NaN for an id that its vocabulary lacks.

    `top` the most probable ids (P,) of both, where kept; `documents` (N,) labels of texts that are not independent. NaN
    for fewer than two texts.
    """
    if len(draws.texts) < 2:
        return _unknown(len(draws.texts))
    both, lacking = _both(a, b)
    outside = np.exp(lacking - draws.log_proposal).mean()
    clusters = cluster_codes(documents, draws.texts)
    size = (draws.text_bytes[draws.texts] * LOG_2).astype(np.float64)
    positions = np.diff(draws.starts).astype(np.float64)
    terms = directed_terms(both[0], both[1], draws.log_proposal)
    forward, backward, variation = (draws.by_text(term.mean(axis=1)) for term in terms)

    ratio = partial(Estimate.ratio, clusters=clusters)
    same_top = None
    if top is not None:
        same_top = ratio(draws.by_text(top[0] == top[1]), positions, unit="", on_log_scale=False)
    weights = np.exp(both - draws.log_proposal)
    mean = weights.mean(axis=0)
    return SampledKL(
        symmetric=ratio((forward + backward) / 2, size),
        forward=ratio(forward, size),
        backward=ratio(backward, size),
        forward_per_token=ratio(forward, positions, unit="nats/token"),
        backward_per_token=ratio(backward, positions, unit="nats/token"),
        total_variation=ratio(variation, positions, unit=""),
        same_top=same_top,
        n_positions=len(a),
        effective=float(mean.sum() ** 2 / (mean.size * (mean**2).sum())),
        largest_weight=float(weights.max()),
        tail_index=tail_index((terms[0] + terms[1]).ravel()),
        outside=float(outside),
        n_draws=mean.size,
        n_documents=n_clusters(clusters),
    )


def _both(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> tuple[Floats, Floats]:
    """Log-probabilities (2, P, m), -inf also for an id that either vocabulary lacks, and those (P, m) of such ids."""
    both: Floats = np.stack([a, b]).astype(np.float64)
    missing = np.isnan(both).any(axis=0)
    lacking = np.where(missing, np.nan_to_num(np.fmax(*both), nan=-np.inf), -np.inf)
    both[:, missing] = -np.inf
    both[both < RULED_OUT] = -np.inf
    return both, lacking


@dataclass(frozen=True)
class DepthKL:
    """KL(a, b) of next tokens in nats per token, mean over the `n_positions` that have from `first` to `last` scored
    tokens of their text before them."""

    first: int
    last: int
    n_positions: int
    kl: Estimate


def kl_by_depth(
    a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]], draws: Draws, *, documents: Documents = None
) -> tuple[DepthKL, ...]:
    """KL(a, b) of next tokens by how much of its text comes before a position, with standard errors over texts; the
    arguments are those of `sampled_kl`. Depths that fewer than two texts reach are left out."""
    both, _ = _both(a, b)
    terms, found = directed_terms(both[0], both[1], draws.log_proposal)[0].mean(axis=1), []
    for first, beyond in pairwise((*DEPTHS, np.inf)):
        inside = (draws.depth >= first) & (draws.depth < beyond)
        texts, n = np.unique(draws.text[inside], return_counts=True)
        if len(texts) < 2:
            continue
        nats: Floats = np.bincount(draws.text[inside], terms[inside])[texts].astype(np.float64)
        kl = Estimate.ratio(nats, n, cluster_codes(documents, texts), unit="nats/token")
        found.append(DepthKL(int(first), int(draws.depth[inside].max()), int(inside.sum()), kl))
    return tuple(found)


def _unknown(n_texts: int) -> SampledKL:
    """What nothing is known of."""
    bits, nats, none = (Estimate.unknown(n_texts, unit) for unit in ("bits/byte", "nats/token", ""))
    return SampledKL(bits, bits, bits, nats, nats, none, None, 0, math.nan, math.nan, math.nan, 0.0, 0, 0)


_PENALTY = 100 * math.log(np.finfo(np.float64).max)
"""Nats for a value where a distribution has none, as in SciPy."""


def tail_index(terms: Floats) -> float:
    """Index k of a generalised Pareto distribution fitted to the largest of these terms (n,), no unit; NaN where fewer
    than five are told apart. Moments of order 1/k and above are infinite (Vehtari et al., arXiv 1507.02646)."""
    n = int(min(0.2 * len(terms), 3 * math.sqrt(len(terms))))
    largest = np.partition(terms, len(terms) - n - 1)[len(terms) - n - 1 :] if n >= 5 else np.empty(0)
    if not len(largest) or np.isinf(largest).any():
        return math.nan
    excess = largest - largest.min()
    excess = excess[excess > 0]
    if len(excess) < 5:
        return math.nan
    return float(scipy.optimize.fmin(_pareto_loss, (1.0, 1.0), args=(excess / excess.mean(),), disp=False)[0])


def _pareto_loss(parameters: Floats, x: Floats) -> float:
    """Minus the log-likelihood in nats of a generalised Pareto distribution (index, scale), with a penalty for each x
    beyond its end. The steps of `scipy.stats.genpareto.fit`, which takes five times as long."""
    k, scale = parameters
    if scale <= 0:
        return math.inf
    inside = x / scale
    if k < 0:
        inside = inside[inside * -k < 1]
    loss = scipy.special.xlog1py(k + 1, k * inside) / k if k else inside
    return float(loss.sum() + (len(x) - len(inside)) * _PENALTY + len(x) * math.log(scale))


def sampled_kl_matrix(
    log_probability: NDArray[np.floating[Any]],
    draws: Draws,
    *,
    documents: Documents = None,
    labels: Sequence[str] | None = None,
) -> SampledKLMatrix:
    """KL with standard errors between all pairs of K models, from `log_probability` (K, P, m) in nats of the drawn ids;
    see `sampled_kl`. Read a few texts at a time. NaN for fewer than two texts.

    With P = p/r and L as matrices of models by draws, sum (p_i - p_j)(l_i - l_j)/r is made of P L^T alone.
    """
    (K, P, m), log_r = log_probability.shape, draws.log_proposal.ravel()
    names = tuple(labels) if labels is not None else tuple(map(str, range(K)))
    if len(draws.texts) < 2:
        none = np.where(np.eye(K, dtype=bool), 0.0, np.nan)
        return SampledKLMatrix(names, none, none, none, none, none, none, 0.0, len(draws.texts), 0, 0)
    flat = log_probability.reshape(K, -1)
    missing, ruled_out = np.zeros((2, len(log_r)), dtype=bool)
    for row in flat:
        missing |= np.isnan(row)
        ruled_out |= row < RULED_OUT
    own_outside, largest, mass = np.zeros((3, K))
    for k, row in enumerate(flat):
        weights = np.exp(row.astype(np.float64) - log_r)
        own_outside[k] = np.nansum(weights[missing]) / len(log_r)
        largest[k], mass[k] = weights[~missing].max(initial=0.0), weights[~missing].sum()

    clusters = cluster_codes(documents, draws.texts)
    codes = np.arange(len(draws.texts)) if clusters is None else clusters
    members = texts_of_units(codes)
    size = np.bincount(codes, draws.text_bytes[draws.texts] * LOG_2).astype(np.float64)
    lengths = np.bincount(codes, np.diff(draws.starts) * m).astype(np.int64)

    def matrices(units: Integers) -> tuple[Floats, Floats]:
        """P / m and L (U, n, K) of some units, L less the mean over models, both 0 behind shorter units."""
        P, L = np.zeros((2, len(units), int(lengths[units].max()), K))
        for u, unit in enumerate(units):
            ranges = [np.arange(draws.starts[s] * m, draws.starts[s + 1] * m) for s in members[unit]]
            columns = np.concatenate(ranges)
            columns = columns[~missing[columns]]
            rows = flat[:, columns].T.astype(np.float64)
            P[u, : len(columns)] = np.exp(rows - log_r[columns, None]) / m
            never = rows < RULED_OUT
            rows[never] = 0.0
            rows -= rows.sum(axis=1, keepdims=True) / np.maximum((~never).sum(axis=1, keepdims=True), 1)
            rows[never] = 0.0  # what goes with a probability of 0; `infinite` has the pairs where only one of them is
            L[u, : len(columns)] = rows
        return P, L

    def one_way(units: Integers) -> tuple[Between, Floats]:
        """KL(i, j) = p_i . l_i - sum p_i  -  p_i . l_j  +  sum p_j."""
        P, L = matrices(units)
        total = P.sum(axis=1, keepdims=True)
        left = np.concatenate([P, (P * L).sum(axis=1, keepdims=True) - total, np.ones_like(total)], axis=1)
        return products(left, np.concatenate([-L, np.ones_like(total), total], axis=1)), size[units]

    def both_ways(units: Integers) -> tuple[Between, Floats]:
        """(p_i - p_j) . (l_i - l_j) / 2, of centred p and l."""
        P, L = matrices(units)
        P -= P.mean(axis=2, keepdims=True)
        own = (P * L).sum(axis=1, keepdims=True)
        left = np.concatenate([P, L, own, np.ones_like(own)], axis=1)
        return products(left, np.concatenate([-L, -P, np.ones_like(own), own], axis=1) / 2), size[units]

    def squares(units: Integers) -> tuple[Between, Floats]:
        P, _ = matrices(units)
        return products(P, P), size[units]

    work = list(batches(lengths, max(1, BATCH // K)))
    one, both, square = (
        PairSums.over(K, work, read, symmetric=read is not one_way) for read in (one_way, both_ways, squares)
    )
    documents_ = n_clusters(clusters)
    (forward, forward_error), (symmetric, symmetric_error) = one.ratio(documents_), both.ratio(documents_)
    total = both.total.sum(axis=1)
    own = (total - total.sum() / (2 * K)) / K  # as centred rows have the mean 0
    for i, j in np.argwhere(np.triu(both.total < CLOSE * (own[:, None] + own), k=1)):
        a, b = (np.where(missing, -np.inf, flat[k]).reshape(P, m) for k in (i, j))
        pair = sampled_kl(a, b, draws, documents=documents)
        for matrix, errors, x, y, found in (
            (symmetric, symmetric_error, i, j, pair.symmetric), (symmetric, symmetric_error, j, i, pair.symmetric),
            (forward, forward_error, i, j, pair.forward), (forward, forward_error, j, i, pair.backward),
        ):  # fmt: skip
            matrix[x, y], errors[x, y] = found.value, found.standard_error
    possible = flat[:, ruled_out & ~missing] >= RULED_OUT
    infinite = possible.astype(np.float32) @ (~possible).T.astype(np.float32) > 0
    for matrix, at in ((forward, infinite), (forward_error, infinite),
                       (symmetric, infinite | infinite.T), (symmetric_error, infinite | infinite.T)):  # fmt: skip
        matrix[at] = np.inf
    for matrix in (forward, forward_error, symmetric, symmetric_error):
        np.fill_diagonal(matrix, 0.0)
    own_squares = np.diagonal(square.total)
    mean_squares = (own_squares[:, None] + own_squares + 2 * square.total) * m**2 / 4
    return SampledKLMatrix(
        labels=names,
        symmetric=symmetric,
        symmetric_error=symmetric_error,
        forward=forward,
        forward_error=forward_error,
        effective=((mass[:, None] + mass) / 2) ** 2 / (len(log_r) * mean_squares),
        largest_weight=np.maximum(largest[:, None], largest),
        outside=float(own_outside.max(initial=0.0)),
        n_texts=len(draws.texts),
        n_documents=documents_,
        n_draws=len(log_r),
    )


# ------------------------------------------------------------------------------------------------------------ drawing


def unigram(ids: NDArray[np.integer[Any]], n_vocabulary: int) -> Floats:
    """How often each id occurs among `ids`, as a distribution (V,) in which each has been seen once more."""
    counts = np.bincount(ids, minlength=n_vocabulary) + 1.0
    return np.asarray(counts / counts.sum())


def draw_tokens(
    tiles: Iterable[NDArray[np.floating[Any]]], seen: Floats, generator: np.random.Generator, m: int = 2
) -> tuple[NDArray[np.int32], Floats]:
    """m token ids and their log-probability under the proposal, both (T, m), at T positions: from the mixture
    0.6 p + 0.3 p**(1/2) / Z + 0.1 `seen`, p being softmax of the logits, and `seen` (V,) the unigram distribution.

    `tiles` are the logits (T, v) of one part of the vocabulary after another; each is looked at once, and no more is
    kept than one number a draw. A draw from p has the largest of log p + Gumbel noise. The largest of a tile is
    log sum p + Gumbel noise, and which token has it is independent of how large it is: so one number a tile will do,
    and a token is drawn within the tile only where its largest is the largest so far.
    """
    shares = np.log(MIXTURE)
    n_rows, start = 0, 0
    for tile in map(np.asarray, tiles):
        logits = tile.astype(np.float64)
        if start == 0:
            n_rows = len(logits)
            part = generator.choice(3, size=(n_rows, m), p=MIXTURE)
            ids = np.searchsorted(np.cumsum(seen)[:-1], generator.random((n_rows, m)), side="right")
            from_seen, power = part == 2, np.where(part == 1, 0.5, 1.0)
            best, own = np.full((2, n_rows, m), -np.inf)
            whole, whole_half = np.full((2, n_rows), -np.inf)
        mass, half = scipy.special.logsumexp(logits, axis=1), scipy.special.logsumexp(logits / 2, axis=1)
        whole, whole_half = np.logaddexp(whole, mass), np.logaddexp(whole_half, half)
        score = np.where(power == 1.0, mass[:, None], half[:, None]) + generator.gumbel(size=(n_rows, m))
        within = generator.random((n_rows, m))
        rows, columns = np.nonzero((score > best) & ~from_seen)
        best[rows, columns] = score[rows, columns]
        scaled = logits[rows] * power[rows, columns, None]
        running = np.cumsum(np.exp(scaled - scaled.max(axis=1, keepdims=True)), axis=1)
        found = (running <= within[rows, columns, None] * running[:, -1:]).sum(axis=1)
        ids[rows, columns] = start + found
        own[rows, columns] = logits[rows, found]
        rows, columns = np.nonzero(from_seen & (ids >= start) & (ids < start + logits.shape[1]))
        own[rows, columns] = logits[rows, ids[rows, columns] - start]
        start += logits.shape[1]
    parts = np.stack([own - whole[:, None], own / 2 - whole_half[:, None], np.log(seen[ids])])
    return ids.astype(np.int32), scipy.special.logsumexp(parts + shares[:, None, None], axis=0)
