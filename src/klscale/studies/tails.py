"""Tails: whether a KL depends on the clip, on a few texts or on the length of the texts, and on which texts.

KL is a variance over texts, and a variance depends most on its largest values. Here each KL is computed with the clip,
without it, without the most extreme texts, and by Huber's estimate, which they hardly affect. Where these disagree, the
tails make much of the KL. Tails belong to KL, which is about the whole variance: a robust value diagnoses a KL and does
not replace it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from klscale.errors import InputError
from klscale.inputs.texts import TextSet
from klscale.science.arrays import Floats, Integers
from klscale.science.bootstrap import (
    RESAMPLES,
    estimate_from_resamples,
    median_over_pairs,
    standard_deviation,
    text_draws,
)
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
"""Quantile of all pooled log-likelihoods: the published clip (Oyama et al., arXiv 2502.16173), and the one that
`klscale texts clip` freezes."""

ESTIMATORS = {
    "headline": "the reported value: with the text set's clip where it moves at most 5 % of either vector",
    "clipped": "with the clip, however many values it moves",
    "unclipped": "without the clip",
    "trimmed": "unclipped, without the 1 % of texts farthest from the median, consistent for a Gaussian",
    "huber": "unclipped, by Huber's Proposal 2, consistent for a Gaussian: mostly the bulk of the texts",
}
"""Estimators of the variance behind a KL."""
ALTERNATIVES = tuple(name for name in ESTIMATORS if name != "headline")

FEWEST_LEFT_OUT = 30
"""Fewest texts that trimming leaves out for an interval of its difference to the reported value. In simulations value
± z SE covers 60 to 83 % if it leaves out three, 79 to 90 % with ten, 84 to 92 % with 30."""

FILTERED = 0.03
"""Share of texts that the publication leaves out of training runs (Kishino et al., arXiv 2505.15353)."""

MOST_PAIRS = 5000
"""Largest number of examined pairs. Of more, so many are drawn at random, and the pairs of the scale's settings are
added."""
LISTED = 10
"""Number of texts that are named, of a pair or of a store."""
MOVED = 5
"""Number of pairs that are named as those whose rank changes most."""
BLOCK = 1 << 19
"""Number of log-likelihoods that are processed at once."""


@dataclass(frozen=True)
class Text:
    """A text of a text set: its `position`, from 0, its length in bytes and its labels. `beginning` is its first 60
    characters, None in an external set."""

    position: int
    bytes: int
    domain: str | None
    document: str | None
    beginning: str | None


def describe_text(texts: TextSet, position: int) -> Text:
    """The text at a position, with its labels."""
    return Text(
        position,
        int(texts.bytes[position]),
        None if texts.domain is None else texts.domain[position],
        None if texts.document is None else texts.document[position],
        None if texts.texts is None else texts.texts[position][:60],
    )


def pooled_clip(vectors: Vectors, quantile: float = CLIP_QUANTILE) -> float:
    """The pooled 2 % quantile of all log-likelihoods, in nats; `klscale texts clip` freezes it."""
    return float(np.nanquantile(vectors.log_likelihood, quantile))


def _clip_of(vectors: Vectors) -> tuple[float, bool]:
    """The clip in nats, and whether it is the text set's own."""
    clip = vectors.texts.clip
    return (pooled_clip(vectors), False) if clip is None else (clip, True)


# ---------------------------------------------------------------------------------------------- pairs, many at once


@dataclass(frozen=True, eq=False)
class PairEstimates:
    """KL of P `pairs` in bits/byte by each of E `ESTIMATORS`, in that order.

    `value` and `standard_error` are (E, P). `difference` (E, P) is the value minus the reported value, with its paired
    `difference_standard_error`. Standard errors are over texts, by influence functions; the clip is taken as given.
    `resampled` (E, P, R) are the values in bootstrap samples of the texts, to first order; NaN in a sample without any
    of a pair's texts. In simulations of 336 texts with a kurtosis below 10, 95 % intervals of values cover 90 to 96 %,
    those of Huber's difference 86 to 95 %.

    `kurtosis` (P,) is that of the log-likelihood difference behind the reported value, NaN where it is 0. `n_left_out`
    (P,) counts the texts that trimming leaves out.

    `length` (2, P) holds two signed square roots. The first is the correlation of a pair's log-likelihood difference d
    with the lengths of the texts, the second is (mean of d per byte) SD(bytes) / SD(d). `length_standard_error` (2, P)
    and `length_resampled` (2, P, R) belong to them. They are NaN where all texts have one length.
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
        """KL in bits/byte by an estimator, with its interval on the log scale."""
        at = list(ESTIMATORS).index(estimator), pair
        value, error, documents = float(self.value[at]), float(self.standard_error[at]), int(self.n_documents[pair])
        return Estimate.positive(value, error, int(self.n_texts[pair]), n_documents=documents)

    def against_headline(self, estimator: str, pair: int) -> Estimate:
        """An estimator's KL minus the reported value in bits/byte, with a paired standard error. For a trimmed value
        that leaves out fewer than 30 texts, the interval is NaN, and the standard error is a lower bound."""
        at = list(ESTIMATORS).index(estimator), pair
        value, error = float(self.difference[at]), float(self.difference_standard_error[at])
        found = Estimate.normal(value, error, int(self.n_texts[pair]), n_documents=int(self.n_documents[pair]))
        return _without_interval(found) if _rests_on_few(estimator, self.n_left_out[pair]) else found

    def length_share(self, kind: int, pair: int) -> Estimate:
        """A share of a pair's KL, the square of a row of `length`. Kind 0 is the share that a straight line in the
        length of the texts explains (R²); kind 1 is the share that one constant difference per byte would make. The
        interval is that of the root, squared: on Fisher's scale for 0, ± z SE for 1."""
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
    """Whether too few texts make the difference of an estimator to the reported value, so that it has no interval."""
    return estimator == "trimmed" and n_left_out < FEWEST_LEFT_OUT


def _without_interval(estimate: Estimate) -> Estimate:
    return replace(estimate, interval=(math.nan, math.nan))


def estimate_pairs(vectors: Vectors, pairs: Integers, *, resamples: int = RESAMPLES) -> PairEstimates:
    """KL in bits/byte of some `pairs` (P, 2) of rows by each estimator. Pairs with fewer than two common texts are NaN.
    Raises InputError where the vectors were made by different conventions."""
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
        n_drawn = draws[:, common].sum(axis=1)
        drawn = draws[:, common].T / np.where(n_drawn > 0, n_drawn, np.nan)
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
    """Groups of pairs as `clip.pairs_by_texts` makes them, few pairs at a time."""
    for members, common in pairs_by_texts(L, pairs):
        for part in np.array_split(members, -(-len(members) * len(common) // BLOCK)):
            yield part, common


def _differences(rows: Floats, scale: float) -> Floats:
    """Differences (P, N; nats) of pairs of rows (P, 2, N). A difference that varies by rounding alone is set to 0: else
    its tails and its correlation with length would describe rounding."""
    d = np.asarray(rows[:, 0] - rows[:, 1])
    return np.where(d.var(axis=1, keepdims=True) > ROUNDING * scale, d, 0.0)


def _per_byte(d: Floats, size: Floats) -> tuple[float, Floats]:
    """r = (sum d / sum bytes) SD(bytes) / SD(d), a pure number, and its influence function (N,).

    r**2 is the variance over texts of these lengths if d were a constant number of nats per byte, over Var(d). It may
    exceed 1, where the rest of d cancels part of it.
    """
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
    """A text with its `share` of a pair's KL, and both models' log-likelihoods in nats as they enter the KL.

    `change_without` is the change of the KL in bits/byte without this text, with B of the other texts.
    """

    text: Text
    share: float
    change_without: float
    log_likelihood_a: float
    log_likelihood_b: float


@dataclass(frozen=True)
class CarriedDocument:
    """A document with the share of a pair's KL on its `n_texts` texts."""

    document: str
    share: float
    n_texts: int


@dataclass(frozen=True, eq=False)
class PairTails:
    """A pair's KL in bits/byte by each estimator, and the texts that make it.

    `estimates` has a value by each estimator, `differences` its difference to the reported value. `clip` (nats) is the
    text set's; if the set has none, `clip_is_frozen` is false and the clip is the pooled 2 % quantile.

    `contributions` (N,) are the shares of all texts in the reported value, largest first. `largest` are the texts with
    the largest shares, `largest_document` is the document with the largest share, where texts share documents. The
    largest 1 % of texts have `share_of_percent`, the largest ten `share_of_ten`. `effective_texts` is N / kurtosis:
    so many texts of equal share would give the same relative standard error. These values describe the given texts and
    have no standard error. They are NaN where KL is 0.

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
    """The KL of two models in bits per byte by each estimator, with standard errors, and the texts that make it.

    Raises InputError for an unknown model, or where the two have fewer than two common texts.
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
    """KL (N,) in bits/byte without each text in turn, from the squares of the centred d: the sum of squares loses
    d**2 N / (N - 1), because the mean moves by d / (N - 1). NaN for two texts: a variance needs two."""
    N = len(squares)
    if N < 3:
        return np.full(N, math.nan)
    variance = (squares.sum() - squares * N / (N - 1)) / (N - 1)
    mean_bytes = (text_bytes.sum() - text_bytes) / (N - 1)
    return np.asarray(np.maximum(variance, 0.0) / nats2_per_bit_per_byte(mean_bytes))


# ----------------------------------------------------------------------------------- every conclusion, with and without


@dataclass(frozen=True)
class Moved:
    """A pair with its rank among all pairs (1: the nearest) by the reported value and by another estimator."""

    pair: tuple[str, str]
    headline: Estimate
    estimate: Estimate
    rank_headline: int
    rank: int


@dataclass(frozen=True)
class Agreement:
    """Agreement of the order of pairs by an estimator with their order by the reported value.

    `spearman` is the rank correlation. It has a standard error over texts but no interval, because sampling error
    lowers it. `swapped` is the share of discordant pairs of pairs, (1 - Kendall's tau) / 2. `ratio` is the median over
    pairs of the estimator's KL over the reported value; `quartiles` are those of the ratio over pairs.

    `n_other_place` of `n_pairs` are nearest to another setting of the scale, where each scale is measured by its own
    estimator; None where there is no scale. `most_moved` are the pairs whose rank changes most.
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
    """The median KL of a setting's pairs in bits/byte by each estimator, and its difference to the median reported
    value, with standard errors over texts.

    Coverage in simulations of 28 pairs of eight models on 500 texts, with a kurtosis of 3 to 17: 89 to 93 % for the
    intervals of medians, 93 % for that of the difference by Huber's estimate.
    """

    setting: str
    n_pairs: int
    medians: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]


@dataclass(frozen=True)
class FilteredRun:
    """KL between consecutive checkpoints past warm-up in bits/byte, with all texts and without those that change most.

    `filtered` leaves out `n_dropped` of the `n_texts` texts, and uses B of the others. It drops the texts whose
    log-likelihood changed most between any two consecutive checkpoints. `all_texts` and `filtered` have a value for
    each of `steps` (from, to). `difference` is filtered minus all, paired. `median` and `median_filtered` are over
    steps. Standard errors are over texts; the choice of dropped texts is taken as given. The clip is used for the whole
    run or, if it moves more than 5 % of any checkpoint, for none of it (`uses_clip`).
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
    """A text with its share of the squared norm, which is its share of the sum of KL over all pairs of models. `model`
    has the largest part of it."""

    text: Text
    share: float
    model: str


@dataclass(frozen=True)
class LengthOverPairs:
    """The share of KL that text length explains: its `median` over pairs, the pair with the largest share, and that
    share. Its interval ignores that it was chosen as the largest."""

    median: Estimate
    largest: Estimate
    pair: tuple[str, str]


@dataclass(frozen=True, eq=False)
class Tails:
    """The effect of the clip and the tails on the KLs of a store, in bits/byte.

    `n_pairs` of the `n_available` pairs are compared, drawn at random where they are fewer. `moved_by_clip` is the
    fraction of each model's values that the clip moves. `leverage` are the texts with the largest share of the squared
    norm ‖Q‖², among the `n_common` texts that all models have. `leverage_of_percent` is the share of the largest 1 % of
    them, at least one text. `length_explains` and `length_alone` are None where all texts have one length, or no pair
    has a KL.
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
        """Number of models that the clip does not serve: it would move more than 5 % of their values."""
        return sum(map(beyond_clip_limit, self.moved_by_clip.values()))


def examine_tails(vectors: Vectors, *, resamples: int = RESAMPLES, seed: int = 0) -> Tails:
    """The order of pairs, the scale and the runs with and without the clip and the tails, in bits/byte with standard
    errors; the texts that make most of the KL of all pairs, and the share that their length explains.

    It compares all pairs of models, or 5,000 of them drawn at random. Raises InputError where no two models have two
    common texts, or where vectors were made by different conventions.
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
    """All pairs (P, 2) of models, or MOST_PAIRS of them at random, and the number of all pairs."""
    i, j = np.triu_indices(n_models, k=1)
    n = len(i)
    if n > MOST_PAIRS:
        chosen = np.sort(np.random.default_rng(seed).choice(n, MOST_PAIRS, replace=False))
        i, j = i[chosen], j[chosen]
    return np.stack([i, j], axis=1), n


def _have_texts(L: Floats, pairs: Integers) -> NDArray[np.bool_]:
    """Boolean mask (P,) of the pairs (P, 2) with two common texts or more."""
    found = np.zeros(len(pairs), dtype=bool)
    for members, _ in pairs_by_texts(L, pairs):
        found[members] = True
    return found


def _over_texts(
    value: float, resampled: Floats, found: PairEstimates, unit: str = "bits/byte", *, against: str = ""
) -> Estimate:
    """An estimate over many pairs. Its standard error is the standard deviation of its values (R,) in bootstrap samples
    of the texts; its interval is value ± z SE. A comparison of an estimator with the reported value has no interval if
    that of some pair has none."""
    error = standard_deviation(resampled)
    n_texts, n_documents = int(found.n_texts.min()), int(found.n_documents.min())
    over = Estimate.normal(float(value), error, n_texts, n_documents=n_documents, unit=unit)
    return _without_interval(over) if _rests_on_few(against, found.n_left_out.min()) else over


def _settings(found: PairEstimates, measured: Sequence[scales.Setting]) -> tuple[SettingTails, ...]:
    place = {frozenset(pair): n for n, pair in enumerate(found.pairs)}
    settings = []
    for row in measured:
        at = [place[frozenset(pair)] for pair in row.pairs]
        medians, resampled = np.median(found.value[:, at], axis=1), median_over_pairs(found.resampled[:, at])
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
    ranks = [scipy.stats.rankdata(values) for values in (headline, value)]
    differ = known[headline > 0]  # a ratio to 0 has no meaning
    ratios = found.value[e, differ] / found.value[0, differ]
    ratio, quartiles = _over_texts(math.nan, np.empty(0), found, unit=""), (math.nan, math.nan)
    if differ.size:
        resampled = median_over_pairs(found.resampled[e, differ] / found.resampled[0, differ])
        ratio = _over_texts(float(np.median(ratios)), resampled, found, unit="", against=estimator)
        quartiles = float(np.quantile(ratios, 0.25)), float(np.quantile(ratios, 0.75))
    moved = np.argsort(-np.abs(ranks[1] - ranks[0]), kind="stable")[:MOVED]
    return Agreement(
        estimator=estimator,
        n_pairs=len(known),
        spearman=_spearman(found, e, known),
        swapped=(1 - float(scipy.stats.kendalltau(headline, value).statistic)) / 2 if len(known) > 1 else math.nan,
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
    """Rank correlation over the `known` pairs of an estimator's KLs with the reported values.

    It has no interval. The sampling error of the texts shuffles ranks and lowers the correlation by about its standard
    error: in simulations value ± z SE on Fisher's scale covers 73 %.
    """
    values = np.concatenate([found.value[..., None], found.resampled], axis=2)[[0, e]][:, known]
    ranks = scipy.stats.rankdata(values, axis=1)
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
    """Number of pairs with another nearest setting of the scale; each scale is measured by its own estimator."""
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
    resampled = median_over_pairs(found.length_resampled[kind, known] ** 2)
    return LengthOverPairs(
        _over_texts(float(np.median(shares[known])), resampled, found, unit=""),
        found.length_share(kind, largest),
        found.pairs[largest],
    )


def _leverage(vectors: Vectors) -> tuple[tuple[Leverage, ...], float]:
    """Texts with the largest share of the squared norm ‖Q‖², which is their share of the sum of KL over all pairs; and
    the share of the largest 1 % of texts. As in maps, texts are those that all models have, with the text set's
    clip."""
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
    """KL along a run in bits/byte, with all texts and without the 3 % that change most.

    These are the texts with the largest |change of log-likelihood| between any two consecutive checkpoints past
    warm-up. Kishino et al. (arXiv 2505.15353) publish this for Pythia past step 2,000. None where there are fewer than
    two such checkpoints, or where 3 % is less than one text.
    """
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
