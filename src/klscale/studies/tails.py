"""Tails: whether the clip, or a few texts, or the length of the texts make a KL, and which texts those are.

KL is a variance over texts, and a variance hangs on its largest values. Here each KL stands beside what it is with the
clip, without it, without its most extreme texts, and by Huber's estimate, which hardly sees them. Where these disagree
the tails make the number. They are in it by right: KL is about the whole variance, and a robust value is a diagnosis
of a KL, not a better one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from klscale.errors import InputError
from klscale.inputs.texts import TextSet
from klscale.science.arrays import Floats, Integers
from klscale.science.bootstrap import RESAMPLES, estimate_from_resamples, text_draws
from klscale.science.clip import beyond_clip_limit, common_texts, moved_by_clip, pairs_by_texts
from klscale.science.estimates import (
    Estimate,
    cluster_codes,
    correlation,
    fisher_interval,
    n_clusters,
    standard_error_of_mean,
)
from klscale.science.kl import KL, kl, kl_pairs, nats2_per_bit_per_byte
from klscale.science.robust import TRIMMED, huber_variance, trimmed_variance, variance
from klscale.studies import scales
from klscale.studies.maps import ROUNDING
from klscale.studies.trajectories import Run, find_runs
from klscale.vectors.vectors import Vectors

CLIP_QUANTILE = 0.02
"""Of all log-likelihoods, pooled: the clip of the publication (Oyama et al., arXiv 2502.16173), and what `klscale texts
clip` freezes."""

ESTIMATORS = {
    "headline": "as everywhere else: with the text set's clip where that moves at most 5 % of either vector",
    "clipped": "with the clip, however much it moves",
    "unclipped": "without the clip",
    "trimmed": "unclipped, without the 1 % of texts farthest from the median, consistent for a Gaussian",
    "huber": "unclipped, Huber's Proposal 2, consistent for a Gaussian: the bulk of the texts alone",
}
"""Estimates of the variance behind a KL."""
ALTERNATIVES = tuple(name for name in ESTIMATORS if name != "headline")

FEWEST_LEFT_OUT = 30
"""Texts left out by trimming below which its difference to the headline has no interval, as these few texts make it: by
simulation value ± z SE covers 60 to 83 % with three of them, 79 to 90 % with ten, 84 to 92 % with 30."""

FILTERED = 0.03
"""Share of texts that the publication leaves out of training runs (Kishino et al., arXiv 2505.15353)."""

MOST_PAIRS = 5000
"""Of a store with more pairs, this many are examined, drawn at random, and those of the scale's settings."""
LISTED = 10
"""Texts that are named, of a pair or of a store."""
MOVED = 5
"""Pairs whose rank changes most that are named."""
BLOCK = 1 << 19
"""Log-likelihoods of pairs that are worked on at once."""


@dataclass(frozen=True)
class Text:
    """A text of a text set: its `position`, counted from 0, and what is known of it. `beginning` is its first 60
    characters, None in an external set."""

    position: int
    bytes: int
    domain: str | None
    document: str | None
    beginning: str | None


def describe_text(texts: TextSet, position: int) -> Text:
    """What is known of the text at a position."""
    return Text(
        position,
        int(texts.bytes[position]),
        None if texts.domain is None else texts.domain[position],
        None if texts.document is None else texts.document[position],
        None if texts.texts is None else texts.texts[position][:60],
    )


def pooled_clip(vectors: Vectors, quantile: float = CLIP_QUANTILE) -> float:
    """The pooled 2 % quantile of all log-likelihoods, in nats: what `klscale texts clip` freezes."""
    return float(np.nanquantile(vectors.log_likelihood, quantile))


def _clip_of(vectors: Vectors) -> tuple[float, bool]:
    """The clip, and whether it is the text set's own."""
    clip = vectors.texts.clip
    return (pooled_clip(vectors), False) if clip is None else (clip, True)


# ---------------------------------------------------------------------------------------------- pairs, many at once


@dataclass(frozen=True, eq=False)
class PairEstimates:
    """KL of P `pairs` in bits/byte by each of E `ESTIMATORS`, in that order.

    `value`, `standard_error`, and against the headline `difference` with its paired `difference_standard_error` are (E,
    P); standard errors are over texts, by influence functions, with the clip taken as given. `resampled` (E, P, R) are
    the values in bootstrap samples of the texts, to first order. By simulation the 95 % intervals of values cover 90 to
    96 % for 336 texts with a kurtosis below 10, those of Huber's difference 86 to 95 %. `kurtosis` (P,) is that of the
    log-likelihood difference behind the headline, NaN where that is 0. `n_left_out` (P,) is by trimming.

    `length` (2, P) are signed square roots: the correlation of a pair's log-likelihood difference d with the lengths of
    the texts, and (mean of d per byte) SD(bytes) / SD(d); `length_standard_error`, `length_resampled` likewise. NaN
    where all texts are of one length.
    """

    pairs: tuple[tuple[str, str], ...]
    value: Floats
    standard_error: Floats
    difference: Floats
    difference_standard_error: Floats
    resampled: Floats
    uses_clip: NDArray[np.bool_]
    kurtosis: Floats
    n_texts: Integers
    n_documents: Integers
    n_left_out: Integers
    length: Floats
    length_standard_error: Floats
    length_resampled: Floats

    def estimate(self, estimator: str, pair: int) -> Estimate:
        """KL by an estimator, with its interval on the log scale."""
        at = list(ESTIMATORS).index(estimator), pair
        value, error, documents = float(self.value[at]), float(self.standard_error[at]), int(self.n_documents[pair])
        return Estimate.positive(value, error, int(self.n_texts[pair]), n_documents=documents)

    def against_headline(self, estimator: str, pair: int) -> Estimate:
        """By how much an estimator's KL exceeds the headline, with a paired standard error. Of a trimmed value that
        leaves out fewer than 30 texts the interval is NaN, and the standard error a lower bound."""
        at = list(ESTIMATORS).index(estimator), pair
        value, error = float(self.difference[at]), float(self.difference_standard_error[at])
        found = Estimate.normal(value, error, int(self.n_texts[pair]), n_documents=int(self.n_documents[pair]))
        return _without_interval(found) if _rests_on_few(estimator, self.n_left_out[pair]) else found

    def length_share(self, kind: int, pair: int) -> Estimate:
        """The square of a row of `length`, a share of a pair's KL: 0 what a straight line in the length of the texts
        explains (R²), 1 what one difference per byte makes alone. Its interval comes from that of the root: Fisher's
        scale for 0, ± z SE for 1."""
        root, error = float(self.length[kind, pair]), float(self.length_standard_error[kind, pair])
        documents = int(self.n_documents[pair])
        if kind == 0:
            ends = fisher_interval(root, error, documents)
        else:
            ends = Estimate.normal(root, error, 0, n_documents=documents).interval
        squares = sorted((ends[0] ** 2, ends[1] ** 2))
        low = 0.0 if ends[0] <= 0 <= ends[1] else squares[0]
        return Estimate(root**2, 2 * abs(root) * error, (low, squares[1]), int(self.n_texts[pair]), unit="")


def _rests_on_few(estimator: str, n_left_out: int) -> bool:
    """Whether an estimator differs from the headline by too few texts to say how well the difference is known."""
    return estimator == "trimmed" and n_left_out < FEWEST_LEFT_OUT


def _without_interval(estimate: Estimate) -> Estimate:
    return replace(estimate, interval=(math.nan, math.nan))


def estimate_pairs(vectors: Vectors, pairs: Integers, *, resamples: int = RESAMPLES) -> PairEstimates:
    """KL of some `pairs` (P, 2) of rows by each estimator; see `PairEstimates`. Pairs with fewer than two texts in
    common are NaN. Raises InputError where the vectors were made by different conventions."""
    vectors.require_one_convention()
    texts, (clip, frozen) = vectors.texts, _clip_of(vectors)
    E, P, R = len(ESTIMATORS), len(pairs), resamples
    value, error, difference, difference_error = np.full((4, E, P), np.nan)
    length, length_error = np.full((2, 2, P), np.nan)
    resampled, length_resampled = np.full((E, P, R), np.nan), np.full((2, P, R), np.nan)
    counts = np.zeros((3, P), dtype=np.int64)
    uses_clip, kurtosis = np.zeros(P, dtype=bool), np.full(P, np.nan)
    draws = text_draws(len(texts), texts.document, resamples=R)
    for at, common in _blocks(vectors.log_likelihood, pairs):
        rows = vectors.log_likelihood[np.ix_(pairs[at].ravel(), common)].reshape(len(at), 2, len(common))
        clusters = cluster_codes(texts.document, common)
        size = texts.bytes[common].astype(np.float64)
        scale = nats2_per_bit_per_byte(float(size.mean()))
        drawn = draws[:, common].T / draws[:, common].sum(axis=1)
        cut = np.maximum(rows, clip)
        uses_clip[at] = frozen & ~beyond_clip_limit(moved_by_clip(rows, clip)).any(axis=1)
        plain, clipped = (_differences(pair, scale) for pair in (rows, cut))
        headline = np.where(uses_clip[at, None], clipped, plain)
        found = [*map(variance, (headline, clipped, plain))]
        found += [trimmed_variance(plain), huber_variance(plain)]
        for e, (squared, influence) in enumerate(found):
            value[e, at] = squared / scale
            error[e, at] = standard_error_of_mean(influence / scale, clusters)
            resampled[e, at] = (squared[:, None] + influence @ drawn) / scale
            difference[e, at] = (squared - found[0][0]) / scale
            beyond = (influence - found[0][1]) / scale
            difference_error[e, at] = standard_error_of_mean(beyond, clusters)
        centred = headline - headline.mean(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            kurtosis[at] = (centred**4).mean(axis=1) / found[0][0] ** 2
        left_out = int(TRIMMED * len(common))
        counts[:, at] = np.reshape([len(common), n_clusters(clusters), left_out], (3, 1))
        for kind, of_length in enumerate((correlation, _per_byte)):
            roots, influences = zip(*(of_length(d, size) for d in headline), strict=True)
            length[kind, at] = roots
            length_error[kind, at] = standard_error_of_mean(np.stack(influences), clusters)
            length_resampled[kind, at] = length[kind, at, None] + np.stack(influences) @ drawn
    n_texts, n_documents, n_left_out = counts
    names = vectors.names
    return PairEstimates(
        pairs=tuple((names[a], names[b]) for a, b in pairs),
        value=value,
        standard_error=error,
        difference=difference,
        difference_standard_error=difference_error,
        resampled=resampled,
        uses_clip=uses_clip,
        kurtosis=kurtosis,
        n_texts=n_texts,
        n_documents=n_documents,
        n_left_out=n_left_out,
        length=length,
        length_standard_error=length_error,
        length_resampled=length_resampled,
    )


def _blocks(L: Floats, pairs: Integers) -> Iterator[tuple[Integers, Integers]]:
    """`clip.pairs_by_texts`, few pairs at a time."""
    for members, common in pairs_by_texts(L, pairs):
        for part in np.array_split(members, -(-len(members) * len(common) // BLOCK)):
            yield part, common


def _differences(rows: Floats, scale: float) -> Floats:
    """Differences (P, N) of pairs of rows (P, 2, N), of which those that vary by rounding alone are 0: tails and length
    would explain that."""
    d = np.asarray(rows[:, 0] - rows[:, 1])
    return np.where(d.var(axis=1, keepdims=True) > ROUNDING * scale, d, 0.0)


def _per_byte(d: Floats, size: Floats) -> tuple[float, Floats]:
    """r = (sum d / sum bytes) SD(bytes) / SD(d) and its influence function (N,). r**2 is the share of Var(d) that texts
    of these lengths would have if d were one number of nats per byte; it may exceed 1, where the rest of d works
    against it."""
    (spread, of_spread), (own, of_own) = variance(size), variance(d)
    if spread == 0 or own == 0:
        return math.nan, np.full(len(d), math.nan)
    slope = d.sum() / size.sum()
    root = math.sqrt(spread / own)
    influence = root * (d - slope * size) / size.mean() + slope * root / 2 * (of_spread / spread - of_own / own)
    return float(slope * root), influence


# --------------------------------------------------------------------------------------------- which texts carry a KL


@dataclass(frozen=True)
class CarriedText:
    """A text with its share of a pair's KL, what leaving it out does to that KL (bits/byte, B of the other texts), and
    the log-likelihoods of both models in nats as they enter the KL."""

    text: Text
    share: float
    change_without: float
    log_likelihood_a: float
    log_likelihood_b: float


@dataclass(frozen=True)
class CarriedDocument:
    """A document with the share of a pair's KL that its `n_texts` texts have."""

    document: str
    share: float
    n_texts: int


@dataclass(frozen=True, eq=False)
class PairTails:
    """What a pair's KL is made of.

    `estimates` by each estimator, `differences` to the headline. `clip` is the text set's, or where it has none
    (`clip_is_frozen` is false) the pooled 2 % quantile. `largest` are the texts with the largest share of the headline,
    of which `contributions` (N,), largest first, are all; `largest_document` is that of the largest share, where texts
    share documents. `share_of_percent` of it lies with the largest 1 % of
    texts, `share_of_ten` with the largest ten. `effective_texts` is N / kurtosis: as many texts of equal share would
    give the same relative standard error. These describe the texts at hand and carry no error. NaN where KL is 0.

    `length_explains` (R² of d on the length of texts) and `length_alone` (one difference per byte) are shares of KL.
    """

    a: str
    b: str
    texts: TextSet
    kl: KL
    clip: float
    clip_is_frozen: bool
    n_left_out: int
    estimates: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    largest: tuple[CarriedText, ...]
    largest_document: CarriedDocument | None
    contributions: Floats
    share_of_percent: float
    share_of_ten: float
    effective_texts: float
    length_explains: Estimate
    length_alone: Estimate


def examine_pair(vectors: Vectors, a: str, b: str) -> PairTails:
    """The KL of two models in bits per byte by several estimators, with standard errors: with and without the clip, the
    largest texts, and their length; and which texts carry it.

    Raises InputError for a model that is not there, or where the two have fewer than two texts in common.
    """
    places = np.array([[vectors.position(a), vectors.position(b)]])
    clip, frozen = _clip_of(vectors)
    found = estimate_pairs(vectors, places, resamples=0)
    if not found.n_texts[0]:
        raise InputError(f"{a} and {b} have fewer than two texts in common.", remedy="Score both on all texts.")
    two = vectors.subset([a, b]).log_likelihood
    common = np.flatnonzero(common_texts(two))
    rows = np.maximum(two[:, common], clip) if found.uses_clip[0] else two[:, common]
    squares = (rows[0] - rows[1] - (rows[0] - rows[1]).mean()) ** 2
    N, total = len(common), float(squares.sum()) if found.value[0, 0] > 0 else 0.0
    share = squares / total if total > 0 else np.full(N, math.nan)
    order = np.argsort(-squares, kind="stable")
    change = _without_each(squares, vectors.texts.bytes[common]) - found.value[0, 0]
    cumulative = np.cumsum(share[order])
    return PairTails(
        a=a,
        b=b,
        texts=vectors.texts,
        kl=kl(two[0], two[1], vectors.texts.bytes, clip=vectors.texts.clip, documents=vectors.texts.document),
        clip=clip,
        clip_is_frozen=frozen,
        n_left_out=int(found.n_left_out[0]),
        estimates={name: found.estimate(name, 0) for name in ESTIMATORS},
        differences={name: found.against_headline(name, 0) for name in ALTERNATIVES},
        largest=tuple(
            CarriedText(
                describe_text(vectors.texts, int(common[s])),
                float(share[s]),
                float(change[s]),
                float(rows[0, s]),
                float(rows[1, s]),
            )
            for s in (order[:LISTED] if total > 0 else ())
        ),
        largest_document=_largest_document(share, vectors.texts, common) if total > 0 else None,
        contributions=share[order],
        share_of_percent=float(cumulative[-(-N // 100) - 1]),
        share_of_ten=float(cumulative[min(LISTED, N) - 1]),
        effective_texts=total**2 / float((squares**2).sum()) if total > 0 else math.nan,
        length_explains=found.length_share(0, 0),
        length_alone=found.length_share(1, 0),
    )


def _largest_document(share: Floats, texts: TextSet, common: Integers) -> CarriedDocument | None:
    documents = texts.documents_of(common)
    if documents is None or (codes := cluster_codes(documents)) is None:
        return None
    shares = np.bincount(codes, weights=share)
    largest = int(np.argmax(shares))
    members = codes == largest
    return CarriedDocument(str(documents[members][0]), float(shares[largest]), int(members.sum()))


def _without_each(squares: Floats, text_bytes: Integers) -> Floats:
    """KL (N,) without each text in turn, from the squares of d centred: the mean moves by d / (N - 1), and with it the
    sum of squares loses d**2 N / (N - 1). NaN for two texts, of which one would be left."""
    N = len(squares)
    if N < 3:
        return np.full(N, math.nan)
    variance = (squares.sum() - squares * N / (N - 1)) / (N - 1)
    mean_bytes = (text_bytes.sum() - text_bytes) / (N - 1)
    return np.asarray(np.maximum(variance, 0.0) / nats2_per_bit_per_byte(mean_bytes))


# ----------------------------------------------------------------------------------- every conclusion, with and without


@dataclass(frozen=True)
class Moved:
    """A pair with its rank among all pairs, 1 the nearest, by the headline and by another estimator."""

    pair: tuple[str, str]
    headline: Estimate
    estimate: Estimate
    rank_headline: int
    rank: int


@dataclass(frozen=True)
class Agreement:
    """How far the pairs are ordered alike by an estimator and by the headline.

    `spearman` is the rank correlation, with a standard error over texts and no interval, as noise lowers it; `swapped`
    the share of pairs of pairs that stand in the other order, (1 - Kendall's tau) / 2. `ratio` is the median over pairs
    of the KL to the headline, `quartiles` of that ratio over pairs. `n_other_place` of `n_pairs` are nearest to another
    setting of the scale, where both scales are measured by their own estimator; None where there is no scale.
    `most_moved` changed rank most.
    """

    estimator: str
    n_pairs: int
    spearman: Estimate
    swapped: float
    ratio: Estimate
    quartiles: tuple[float, float]
    n_other_place: int | None
    most_moved: tuple[Moved, ...]


@dataclass(frozen=True)
class SettingTails:
    """The median KL of a setting's pairs in bits/byte by each estimator, and its difference to the headline's median,
    with standard errors over texts. By simulation, 28 pairs of eight models on 500 texts with a kurtosis of 3 to 17,
    the intervals of medians cover 89 to 93 %, and of the difference by Huber's estimate 93 %."""

    setting: str
    n_pairs: int
    medians: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]


@dataclass(frozen=True)
class FilteredRun:
    """KL between consecutive checkpoints past warm-up in bits/byte, with `all_texts` and `filtered`: without the
    `n_dropped` of `n_texts` texts whose log-likelihood changed most between any two of them, and with B of those kept.

    One of each for every step (from, to); `difference` is filtered less all, paired. `median` and `median_filtered` are
    over steps. Standard errors are over texts, with the texts that were dropped taken as given. The clip is used for
    the whole run or, where it moves more than 5 % of a checkpoint, for none of it (`uses_clip`).
    """

    run: str
    n_texts: int
    n_dropped: int
    mean_bytes: float
    mean_bytes_kept: float
    uses_clip: bool
    steps: tuple[tuple[int, int], ...]
    all_texts: tuple[Estimate, ...]
    filtered: tuple[Estimate, ...]
    difference: tuple[Estimate, ...]
    median: Estimate
    median_filtered: Estimate
    median_difference: Estimate


@dataclass(frozen=True)
class Leverage:
    """A text with its share of the sum of KL over all pairs of models, and the model that stands out most on it."""

    text: Text
    share: float
    model: str


@dataclass(frozen=True)
class LengthOverPairs:
    """What text length explains of the KL of pairs: `median` of the shares over pairs, the pair with the largest, and
    its share, whose interval does not know that it was chosen as the largest."""

    median: Estimate
    largest: Estimate
    pair: tuple[str, str]


@dataclass(frozen=True, eq=False)
class Tails:
    """What the clip and the tails do to the numbers of a store; see the parts.

    `n_available` pairs exist, of which `n_pairs` are compared: drawn at random where they are fewer. `moved_by_clip` is
    the fraction of each model's values that the clip moves. `leverage` are the texts with the largest share of ‖Q‖²,
    of the `n_common` that all models have, and `leverage_of_percent` the share of the largest 1 % of them (of one text
    at least). `length_explains` and `length_alone` are None where all texts are of one length, or no pair has a KL.
    """

    texts: TextSet
    clip: float
    clip_is_frozen: bool
    n_pairs: int
    n_available: int
    pairs: PairEstimates
    in_range: NDArray[np.bool_]
    agreement: tuple[Agreement, ...]
    settings: tuple[SettingTails, ...]
    moved_by_clip: Mapping[str, float]
    runs: tuple[FilteredRun, ...]
    n_common: int
    leverage: tuple[Leverage, ...]
    leverage_of_percent: float
    length_explains: LengthOverPairs | None
    length_alone: LengthOverPairs | None

    @property
    def n_unserved(self) -> int:
        """Models of which the clip would move more than 5 % of the values."""
        return sum(map(beyond_clip_limit, self.moved_by_clip.values()))


def examine_tails(vectors: Vectors, *, resamples: int = RESAMPLES, seed: int = 0) -> Tails:
    """The order of pairs, the scale and the runs, with and without the clip and the tails; which texts carry the KL of
    all models, and what their length explains. KL is in bits per byte, with standard errors.

    All pairs of models, or 5,000 of them, drawn at random. Raises InputError where fewer than two models have texts in
    common, or where vectors were made by different conventions.
    """
    vectors.require_one_convention()
    clip, frozen = _clip_of(vectors)
    drawn, n_available = _some_pairs(len(vectors), seed)
    measured = scales.measure(vectors, resamples=0)
    in_settings = [sorted((vectors.position(a), vectors.position(b))) for row in measured for a, b in row.pairs]
    places = np.array([*dict.fromkeys(map(tuple, [*drawn.tolist(), *in_settings]))], dtype=np.int64).reshape(-1, 2)
    known = _have_texts(vectors.log_likelihood, places)
    if not known[: len(drawn)].any():
        raise InputError(f"No two models on {vectors.texts.name} have two texts in common.", remedy="Score two models.")
    places, n_pairs = places[known], int(known[: len(drawn)].sum())
    found = estimate_pairs(vectors, places, resamples=resamples)
    settings = _settings(found, measured)
    explains, alone = (_length(found, kind, n_pairs) for kind in (0, 1))
    leverage, of_percent = _leverage(vectors)
    return Tails(
        texts=vectors.texts,
        clip=clip,
        clip_is_frozen=frozen,
        n_pairs=n_pairs,
        n_available=n_available,
        pairs=found,
        in_range=kl_pairs(
            vectors.log_likelihood, vectors.texts.bytes, places, clip=vectors.texts.clip
        )["in_range"],
        agreement=tuple(_agreement(found, name, n_pairs, measured, settings, vectors.texts) for name in ALTERNATIVES),
        settings=settings,
        moved_by_clip=dict(
            zip(vectors.names, moved_by_clip(vectors.log_likelihood, clip).tolist(), strict=True)
        ),
        runs=tuple(filtered for run in find_runs(vectors) if (filtered := filter_run(run, resamples=resamples))),
        n_common=int(common_texts(vectors.log_likelihood).sum()),
        leverage=leverage,
        leverage_of_percent=of_percent,
        length_explains=explains,
        length_alone=alone,
    )  # fmt: skip


def _some_pairs(n_models: int, seed: int) -> tuple[Integers, int]:
    """All pairs (P, 2) of models, or some at random, and how many there are."""
    i, j = np.triu_indices(n_models, k=1)
    n = len(i)
    if n > MOST_PAIRS:
        chosen = np.sort(np.random.default_rng(seed).choice(n, MOST_PAIRS, replace=False))
        i, j = i[chosen], j[chosen]
    return np.stack([i, j], axis=1), n


def _have_texts(L: Floats, pairs: Integers) -> NDArray[np.bool_]:
    """Which pairs (P, 2) have two texts or more in common."""
    found = np.zeros(len(pairs), dtype=bool)
    for members, _ in pairs_by_texts(L, pairs):
        found[members] = True
    return found


def _over_texts(
    value: float, resampled: Floats, found: PairEstimates, unit: str = "bits/byte", *, against: str = ""
) -> Estimate:
    """A number made of many pairs, with the standard deviation of its values (R,) in samples of the texts; its interval
    is value ± z SE. One that sets an estimator against the headline has none where that has none of a pair."""
    error = float(np.std(resampled, ddof=1)) if len(resampled) > 1 else math.nan
    n_texts, n_documents = int(found.n_texts.min()), int(found.n_documents.min())
    over = Estimate.normal(float(value), error, n_texts, n_documents=n_documents, unit=unit)
    return _without_interval(over) if _rests_on_few(against, found.n_left_out.min()) else over


def _settings(found: PairEstimates, measured: Sequence[scales.Setting]) -> tuple[SettingTails, ...]:
    place = {frozenset(pair): n for n, pair in enumerate(found.pairs)}
    settings = []
    for row in measured:
        at = [place[frozenset(pair)] for pair in row.pairs]
        medians, resampled = np.median(found.value[:, at], axis=1), np.median(found.resampled[:, at], axis=1)
        of, less = dict[str, Estimate](), dict[str, Estimate]()
        for name, value, samples in zip(ESTIMATORS, medians, resampled, strict=True):
            of[name] = _over_texts(value, samples, found)
            less[name] = _over_texts(value - medians[0], samples - resampled[0], found, against=name)
        less.pop("headline")
        settings.append(SettingTails(row.setting, len(at), of, less))
    return tuple(settings)


def _agreement(
    found: PairEstimates,
    estimator: str,
    n_pairs: int,
    measured: Sequence[scales.Setting],
    settings: Sequence[SettingTails],
    texts: TextSet,
) -> Agreement:
    e = list(ESTIMATORS).index(estimator)
    known = np.flatnonzero(~np.isnan(found.value[e, :n_pairs]))
    headline, value = found.value[0, known], found.value[e, known]
    ranks = [stats.rankdata(values) for values in (headline, value)]
    differ = known[headline > 0]  # a ratio to 0 says nothing
    ratios = found.value[e, differ] / found.value[0, differ]
    ratio, quartiles = _over_texts(math.nan, np.empty(0), found, unit=""), (math.nan, math.nan)
    if differ.size:
        resampled = np.median(found.resampled[e, differ] / found.resampled[0, differ], axis=0)
        ratio = _over_texts(float(np.median(ratios)), resampled, found, unit="", against=estimator)
        quartiles = float(np.quantile(ratios, 0.25)), float(np.quantile(ratios, 0.75))
    moved = np.argsort(-np.abs(ranks[1] - ranks[0]), kind="stable")[:MOVED]
    return Agreement(
        estimator=estimator,
        n_pairs=len(known),
        spearman=_spearman(found, e, known),
        swapped=(1 - float(stats.kendalltau(headline, value).statistic)) / 2 if len(known) > 1 else math.nan,
        ratio=ratio,
        quartiles=quartiles,
        n_other_place=_other_places(headline, value, estimator, measured, settings, texts),
        most_moved=tuple(
            Moved(
                found.pairs[int(known[n])],
                found.estimate("headline", int(known[n])),
                found.estimate(estimator, int(known[n])),
                int(ranks[0][n]),
                int(ranks[1][n]),
            )
            for n in moved
            if ranks[0][n] != ranks[1][n]
        ),
    )


def _spearman(found: PairEstimates, e: int, known: Integers) -> Estimate:
    """Rank correlation of an estimator's KLs with the headline's over the pairs that are `known`. It has no interval:
    the error of the texts shuffles ranks, which lowers the correlation by about as much as its standard error (by
    simulation value ± z SE on Fisher's scale covers 73 %)."""
    values = np.concatenate([found.value[..., None], found.resampled], axis=2)[[0, e]][:, known]
    ranks = stats.rankdata(values, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = (ranks[0] * ranks[1]).sum(axis=0) / np.sqrt((ranks**2).sum(axis=1).prod(axis=0))
    return _without_interval(_over_texts(float(rho[0]), rho[1:], found, unit=""))


def _other_places(
    headline: Floats,
    value: Floats,
    estimator: str,
    measured: Sequence[scales.Setting],
    settings: Sequence[SettingTails],
    texts: TextSet,
) -> int | None:
    """How many values have another nearest setting, each on the scale of its own estimator."""
    nearest = []
    for name, values in (("headline", headline), (estimator, value)):
        own = [replace(row, median=of.medians[name].value) for row, of in zip(measured, settings, strict=True)]
        marks = scales.yardsticks(texts, own) if own else []
        ends = np.array([mark.up_to for mark in marks])
        nearest.append(np.array([mark.setting for mark in marks])[np.searchsorted(ends, values)] if marks else None)
    return None if nearest[0] is None or nearest[1] is None else int((nearest[0] != nearest[1]).sum())


def _length(found: PairEstimates, kind: int, n_pairs: int) -> LengthOverPairs | None:
    shares = found.length[kind, :n_pairs] ** 2
    known = np.flatnonzero(~np.isnan(shares))
    if not known.size:
        return None
    largest = int(known[np.argmax(shares[known])])
    resampled = np.median(found.length_resampled[kind, known] ** 2, axis=0)
    return LengthOverPairs(
        _over_texts(float(np.median(shares[known])), resampled, found, unit=""),
        found.length_share(kind, largest),
        found.pairs[largest],
    )


def _leverage(vectors: Vectors) -> tuple[tuple[Leverage, ...], float]:
    """Texts with the largest share of ‖Q‖², which is that of the sum of KL over all pairs: of the texts that all models
    have, with the text set's clip, as in maps."""
    common = np.flatnonzero(common_texts(vectors.log_likelihood))
    if len(common) < 2:
        return (), math.nan
    squares = vectors.coordinates() ** 2
    total = float(squares.sum())
    if total == 0:
        return (), math.nan
    share = squares.sum(axis=0) / total
    order = np.argsort(-share, kind="stable")
    found = tuple(
        Leverage(
            describe_text(vectors.texts, int(common[s])), float(share[s]), vectors.names[int(np.argmax(squares[:, s]))]
        )
        for s in order[:LISTED]
    )
    return found, float(share[order[: -(-len(common) // 100)]].sum())


def filter_run(run: Run, *, resamples: int = RESAMPLES) -> FilteredRun | None:
    """KL along a run with all texts, and without the 3 % that change most: those with the largest |change of
    log-likelihood| between any two consecutive checkpoints past warm-up, as is published for Pythia past step 2,000
    (Kishino et al., arXiv 2505.15353). None where there are no two such checkpoints, or where 3 % is no text."""
    past = np.flatnonzero(run.steps >= run.warmup)
    alike = run.vectors.subset([run.vectors.models[t] for t in past]).on_common_texts()
    common = np.flatnonzero(common_texts(alike.log_likelihood))
    n_dropped = int(FILTERED * len(common))
    if len(past) < 2 or not n_dropped:
        return None
    texts, L = alike.texts, alike.log_likelihood[:, common]
    d = np.diff(L if texts.clip is None else np.maximum(L, texts.clip), axis=0)
    kept = np.ones(len(common), dtype=bool)
    kept[np.argsort(-np.abs(d).max(axis=0), kind="stable")[:n_dropped]] = False
    size, clusters = texts.bytes[common], cluster_codes(texts.document, common)
    mean_bytes, mean_kept = float(size.mean()), float(size[kept].mean())
    scale, scale_kept = map(nats2_per_bit_per_byte, (mean_bytes, mean_kept))
    (value, influence), (value_kept, of_kept) = variance(d), variance(d[:, kept])
    value, influence, value_kept = value / scale, influence / scale, value_kept / scale_kept
    influence_kept = np.zeros_like(influence)
    influence_kept[:, kept] = of_kept / scale_kept / kept.mean()
    draws = text_draws(len(common), texts.documents_of(common), resamples=resamples)
    drawn = draws.T / draws.sum(axis=1)
    n_documents = n_clusters(clusters)

    def estimates(values: Floats, influences: Floats, make: Callable[..., Estimate]) -> tuple[Estimate, ...]:
        errors = standard_error_of_mean(influences, clusters)
        both = zip(values.tolist(), errors.tolist(), strict=True)
        return tuple(make(value, error, len(common), n_documents=n_documents) for value, error in both)

    medians = [float(np.median(values)) for values in (value, value_kept)]
    resampled = [
        np.median(values[:, None] + influences @ drawn, axis=0)
        for values, influences in ((value, influence), (value_kept, influence_kept))
    ]

    def median(number: float, samples: Floats) -> Estimate:
        return estimate_from_resamples(number, samples, len(common), documents=texts.documents_of(common))

    return FilteredRun(
        run=run.name,
        n_texts=len(common),
        n_dropped=n_dropped,
        mean_bytes=mean_bytes,
        mean_bytes_kept=mean_kept,
        uses_clip=texts.clip is not None,
        steps=tuple(zip(run.steps[past][:-1].tolist(), run.steps[past][1:].tolist(), strict=True)),
        all_texts=estimates(value, influence, Estimate.positive),
        filtered=estimates(value_kept, influence_kept, Estimate.positive),
        difference=estimates(value_kept - value, influence_kept - influence, Estimate.normal),
        median=median(medians[0], resampled[0]),
        median_filtered=median(medians[1], resampled[1]),
        median_difference=median(medians[1] - medians[0], resampled[1] - resampled[0]),
    )
