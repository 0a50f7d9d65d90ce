"""How far KL depends on the text set: random halves of it, the growth of the error, its domains, another set.

    found = text_sensitivity(store.vectors(texts))
    both = compare_text_sets(store.vectors(first), store.vectors(second))

KL here is the reported value (the text set's clip where it serves both models), on the texts that all models have.
Whole documents are drawn at random: texts that share a document are never separated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from klscale.errors import InputError
from klscale.science.arrays import Floats, Integers
from klscale.science.bootstrap import RESAMPLES, estimate_from_resamples, text_draws
from klscale.science.clip import beyond_clip_limit, common_texts, moved_by_clip
from klscale.science.estimates import CONFIDENCE, Estimate, cluster_codes
from klscale.science.kl import kl_pairs
from klscale.science.reported import SAMPLED_TOKENS, SPANS, WHOLE_TEXTS
from klscale.studies.maps import ROUNDING, pca
from klscale.studies.scales import MOST_PAIRS, expanded_percentiles, interval_over_models, pair_draws
from klscale.vectors.vectors import Vectors

FEWEST_TEXTS, FEWEST_DOCUMENTS = 20, 5
"""Smallest block or domain with a KL: the logarithm of an estimate from fewer texts or documents is far from normal."""
MOST_MODELS = 45
"""Models whose pairs are looked at by sampled tokens and by spans: 990 pairs."""
FEWEST_MODELS = 5
"""Fewest models for an interval over models of a correlation or a ratio. With five it covers 95 to 100 %."""
BLOCKS = (2, 4, 8, 16, 32, 64)
RELATIVE_ERRORS = (0.10, 0.05, 0.02)
COMPARISONS = 200
"""Number of pairs of disjoint blocks of each size; for halves, of random splits."""
CORRELATED = 50
"""Number of random splits whose correlations over pairs are averaged."""
FOLLOWED = 200
"""Largest number of pairs of models for a slope and its standard error."""
GROUPS = 10
"""Number of groups of texts, each left out once (jackknife)."""
TESTED, PERMUTATIONS = 100, 499
"""Largest number of pairs of models in the test of domains, and number of permutations of the labels."""
MODEL_RESAMPLES = 400
NORMAL = math.sqrt(2) * float(scipy.special.ndtri(0.75))
"""Median difference between two draws from a normal distribution, in its standard deviations."""


@dataclass(frozen=True)
class TextsNeeded:
    """Number of texts of this kind for a relative standard error of KL, for the median pair and for the worst, and the
    estimator that the KL is by."""

    relative_error: float
    median: int
    worst: int
    worst_pair: tuple[str, str]
    estimator: str = WHOLE_TEXTS


@dataclass(frozen=True)
class Correlation:
    """A correlation over pairs of models. With five models, `interval` (95 %) is over models (`interval_kind` is
    `models`). With fewer, it is the central 95 % of the random splits (`splits`), or None (`none`)."""

    value: float
    interval: tuple[float, float] | None
    interval_kind: str


@dataclass(frozen=True)
class SplitHalves:
    """KL on one random half of the texts compared with KL on the other, over many random splits.

    The halves differ by a factor 1 + x in the median split. `typical` is the median of x over pairs, with `quartiles`;
    `largest` is its largest value, for `largest_pair`. `pearson` (of log KL) and `spearman` are correlations over pairs
    between halves, as means over 50 splits. `pearson_whole` and `spearman_whole` extend them to the whole set by
    2 r / (1 + r) (Spearman 1910, Brown 1910): the correlation with another set of as many texts of this kind.
    Correlations are high where pairs differ much, even if the error is large. They are None for fewer than three pairs.
    Those of the whole set have an interval only over models.
    """

    n_splits: int
    typical: float
    quartiles: tuple[float, float]
    largest: float
    largest_pair: tuple[str, str]
    pearson: Correlation | None
    spearman: Correlation | None
    pearson_whole: Correlation | None
    spearman_whole: Correlation | None


@dataclass(frozen=True, eq=False)
class ErrorGrowth:
    """The relative error of KL from `n_texts` (S,) texts, largest first: medians over pairs of models, pure numbers.

    `standard_deviation` (S,) is that of KL / KL of all texts among disjoint random blocks, with `quartiles` (S, 2) over
    pairs. `predicted` (S,) is by the delta method, SE / KL sqrt(N / n). `typical` (S,) comes from the median difference
    of log KL between two blocks: the standard deviation of a normal distribution with this median difference.

    The standard deviation among random blocks falls as 1 / sqrt(n) for any texts, except for parts that are not linear
    in KL (the variance of a mean without replacement). Its agreement with `predicted` checks the formula, not the
    texts. `slope`, of log `typical` on log n, shows tails: it is -1/2 for normal errors. It is nearer to 0 where few
    texts carry most of KL, because small blocks mostly miss them. Its standard error is by jackknife over ten groups of
    texts (of whole documents), its interval by Student's t. It is None with fewer than two sizes. `slope_normal` is the
    slope of normal differences of independent texts at these sizes, a little steeper than -1/2.

    `document_effect` is the design effect of documents: the median over pairs of the variance with clusters over that
    of independent texts. It is None where texts share no documents.
    """

    n_texts: Integers
    standard_deviation: Floats
    quartiles: Floats
    predicted: Floats
    typical: Floats
    slope: Estimate | None
    slope_normal: float
    document_effect: float | None


@dataclass(frozen=True)
class Domain:
    """The KL of pairs on the texts of one domain, in bits per byte.

    `kl` is the median over pairs of KL on these texts alone, with their own mean and mean bytes; its standard error is
    over texts, by bootstrap. `ratio` is KL over KL on all texts (median and quartiles over pairs). `agreement` is the
    rank correlation over pairs with KL on all other texts.

    The last fields describe KL without this domain. It changes by the factor 1 + `change` (median over pairs), and most
    by `largest_change` for `largest_pair`. `by_chance` is the standard deviation of this change if as many random texts
    were left out (median over pairs). `ranking` is the rank correlation over pairs with KL on all texts.
    """

    name: str
    n_texts: int
    n_documents: int
    mean_bytes: float
    kl: Estimate
    ratio: float
    ratio_quartiles: tuple[float, float]
    agreement: float
    change: float
    by_chance: float
    largest_change: float
    largest_pair: tuple[str, str]
    ranking: float


@dataclass(frozen=True)
class DomainTest:
    """Permutation test, for each pair of models, that KL (the ratio of variance to bytes) is the same in every domain.

    The statistic is the weighted sum of squares of log KL over domains about their mean, each over its own variance.
    Its distribution is that under random permutations of the labels of texts, or of whole documents where texts share
    them. The test is studentised, so it is asymptotically valid even if domains differ in other ways (Janssen,
    Statistics & Probability Letters 36:9, 1997; Chung and Romano, Annals of Statistics 41:484, 2013).

    `p_values` are of each pair alone. `adjusted` hold for all pairs together, by the largest statistic in each
    permutation (Westfall and Young 1993); unlike Holm's correction this needs no more permutations for more pairs.
    `n_different` pairs have an adjusted p of at most 5 %. `p_value`, the smallest adjusted p, tests that no pair
    differs.
    """

    pairs: tuple[tuple[str, str], ...]
    p_values: tuple[float, ...]
    adjusted: tuple[float, ...]
    p_value: float
    n_different: int
    n_permutations: int


@dataclass(frozen=True, eq=False)
class Domains:
    """KL by domain: `kl` and `standard_error` (P, D) in bits per byte, of each pair in each of the `domains`.

    `small` domains have too few texts or documents. `between` is the share of the variance of log-likelihood
    differences between the means of domains, median over pairs; `between_by_chance` is that share with random labels.
    `test` is None where documents belong to several domains (`TextSensitivity.notes` say so).
    """

    domains: tuple[Domain, ...]
    small: tuple[str, ...]
    kl: Floats
    standard_error: Floats
    between: float
    between_by_chance: float
    test: DomainTest | None


@dataclass(frozen=True, eq=False)
class TextSensitivity:
    """How far the KL of these `pairs` of models depends on the texts.

    `kl` and `standard_error` (P,) in bits per byte use the `n_texts` that all models have. `n_available` pairs exist;
    `pairs` are drawn from them at random where they are fewer. `n_identical` further pairs have a constant
    log-likelihood difference: KL is 0, and there is no relative error.
    """

    n_texts: int
    n_documents: int | None
    n_models: int
    pairs: tuple[tuple[str, str], ...]
    kl: Floats
    standard_error: Floats
    n_available: int
    n_identical: int
    needed: tuple[TextsNeeded, ...]
    halves: SplitHalves | None
    growth: ErrorGrowth | None
    domains: Domains | None
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TextSetComparison:
    """The same models on two text sets: `kl` (P, 2) in bits per byte of the same `pairs`, with standard errors.

    Values of two text sets are not expected to be equal: KL is an average over texts of a kind. `ratio` is the median
    over pairs of second over first, with its interval over models (None below five) and its range. `spread` is the
    robust standard deviation over pairs of the log ratio; `spread_by_error` is its value from standard errors alone.

    Correlations are over pairs: `pearson` of log KL, `spearman`, `kendall`; None below three pairs. `procrustes` is the
    disparity of two principal components after rotation and scaling (scipy.spatial.procrustes): 0 for the same shape, 1
    for nothing in common. `procrustes_p_value` is the share of random matchings of the models with at most this
    disparity. `nearest` of `n_models` have the same nearest model on both sets; the share 1 / (K - 1) is expected by
    chance. Its interval treats models as independent (Wilson).
    """

    names: tuple[str, str]
    n_texts: tuple[int, int]
    n_models: int
    unmatched: tuple[tuple[str, ...], tuple[str, ...]]
    pairs: tuple[tuple[str, str], ...]
    kl: Floats
    standard_error: Floats
    n_available: int
    n_identical: int
    ratio: float
    ratio_interval: tuple[float, float] | None
    ratio_range: tuple[float, float]
    spread: float
    spread_by_error: float
    pearson: Correlation | None
    spearman: Correlation | None
    kendall: Correlation | None
    procrustes: float | None
    procrustes_by_chance: float | None
    procrustes_p_value: float | None
    nearest: int
    nearest_interval: tuple[float, float]
    nearest_by_chance: float
    notes: tuple[str, ...]


# ------------------------------------------------------------------------------------------------- how many texts


def texts_needed(vectors: Vectors, *, seed: int = 0) -> tuple[TextsNeeded, ...]:
    """Number of texts of this kind for a relative standard error p of KL of 10, 5 and 2 %.

    n = N (SE / KL)**2 / p**2, by the delta method, over the pairs of `text_sensitivity`. Where texts share documents,
    SE is clustered, and n is for documents of as many texts. Empty where no pair has a KL, or where there are fewer
    than 20 texts or five documents. n is as uncertain as SE: with heavy tails it is a lower bound.

    First by sampled tokens, then by spans, then by whole texts; the former two where some models allow them, for all
    pairs of at most 45 of these models, drawn with the seed.
    """
    found = dict[str, list[tuple[float, tuple[str, str]]]]()
    for estimator, part, matrix in _nearer(vectors, seed):
        found.setdefault(estimator, []).extend(_needed_of(part, *matrix))
    nearer = [row for name in (SAMPLED_TOKENS, SPANS) for row in _rows_needed(name, found.get(name, ()))]
    return (*nearer, *_texts_needed(_sample(vectors, *_drawn_pairs(vectors, seed))))


def _nearer(
    vectors: Vectors, seed: int
) -> Iterator[tuple[str, Vectors, tuple[Floats, Floats, Integers | int, Integers | int]]]:
    """The estimators nearer to KL than whole texts: each with the models that allow it, and value, standard error,
    texts and documents (0: texts are independent) of their pairs."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:MOST_MODELS])
    some = vectors.subset([vectors.models[n] for n in chosen])
    with_spans = [name for name in some.names if some.has_spans(name)]
    if len(with_spans) > 1:
        part = some.subset(with_spans)
        spans = part.span_kl_matrix()
        yield SPANS, part, (spans.value, spans.standard_error, spans.n_texts, spans.n_documents)
    for rows, sampled in some.sampled_kl_matrices():
        part = some.subset([some.models[n] for n in rows])
        matrix = sampled.symmetric, sampled.symmetric_error, sampled.n_texts, sampled.n_documents
        yield SAMPLED_TOKENS, part, matrix


def _needed_of(
    vectors: Vectors, value: Floats, error: Floats, n_texts: Integers | int, n_documents: Integers | int
) -> Iterator[tuple[float, tuple[str, str]]]:
    """N (SE / KL)**2 of each pair that has a KL, from texts and documents enough."""
    n, documents = np.broadcast_to(n_texts, value.shape), np.broadcast_to(n_documents, value.shape)
    enough = (n >= FEWEST_TEXTS) & ((documents == 0) | (documents >= FEWEST_DOCUMENTS))
    known = enough & np.isfinite(error) & (error > 0) & (value > 0)
    for i, j in np.argwhere(np.triu(known, k=1)):
        yield float(n[i, j] * (error[i, j] / value[i, j]) ** 2), (vectors.names[i], vectors.names[j])


def _rows_needed(estimator: str, needed: Sequence[tuple[float, tuple[str, str]]]) -> list[TextsNeeded]:
    """A row for each wanted error, from N (SE / KL)**2 of the pairs."""
    if not needed:
        return []
    median, (most, pair) = float(np.median([n for n, _ in needed])), max(needed)
    return [TextsNeeded(p, math.ceil(median / p**2), math.ceil(most / p**2), pair, estimator) for p in RELATIVE_ERRORS]


def _texts_needed(sample: _Sample) -> tuple[TextsNeeded, ...]:
    if not sample.labels or not sample.splits_into(1):
        return ()
    needed = sample.n_texts * (sample.standard_error / sample.kl) ** 2
    return tuple(_rows_needed(WHOLE_TEXTS, list(zip(needed.tolist(), sample.labels, strict=True))))


# ------------------------------------------------------------------------------------------- the pairs and the texts


@dataclass(frozen=True, eq=False)
class _Sample:
    """Pairs of models on the texts that all have.

    `rows` (R, N; nats) are unclipped, then clipped; `places` (P, 2) are the rows of each pair's reported value.
    `models` (P, 2) are numbers of names, one for each run. `units` (N,) are numbers of the units that are drawn as a
    whole: documents or texts.
    """

    rows: Floats
    bytes: Integers
    documents: Any
    domain: Any
    units: Integers
    places: Integers
    models: Integers
    labels: tuple[tuple[str, str], ...]
    kl: Floats
    standard_error: Floats
    n_available: int
    n_identical: int

    @property
    def n_texts(self) -> int:
        return len(self.bytes)

    @property
    def n_units(self) -> int:
        return int(self.units.max()) + 1

    @property
    def clustered(self) -> bool:
        return self.n_units < self.n_texts

    def splits_into(self, n_blocks: int) -> bool:
        """Whether each of so many blocks has enough texts, and documents where these are shared."""
        return self.n_texts >= n_blocks * FEWEST_TEXTS and self.n_units >= n_blocks * FEWEST_DOCUMENTS

    def kl_of(self, draws: Floats, which: Any = slice(None)) -> Floats:
        """KL (P, R) in bits per byte of each pair, or of `which`; each text counts as often as `draws` (R, N) say."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found = kl_pairs(self.rows, self.bytes, self.places[which], draws=draws)
        return np.asarray(found["resampled"], dtype=np.float64)

    def some(self, most: int) -> Integers:
        """Positions of at most so many pairs, spread evenly."""
        count = len(self.labels)
        return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def _sample(vectors: Vectors, pairs: Integers, models: Integers) -> _Sample:
    """The sample of those `pairs` (P, 2) of these vectors that differ; `models` (K,) are the numbers of the names."""
    L, texts = vectors.log_likelihood, vectors.texts
    common = common_texts(L)
    if common.sum() < 2:
        least = vectors.names[int((~np.isnan(L)).sum(axis=1).argmin())]
        raise InputError(
            f"No two texts of {texts.name} were scored with all {len(vectors)} models.",
            f"{least} has the fewest.",
            "Score the rest of its texts, or leave it out.",
        )
    rows, size, documents = L[:, common], texts.bytes[common], texts.documents_of(common)
    places = pairs
    if (clip := texts.clip) is not None:
        serves = ~beyond_clip_limit(moved_by_clip(rows, clip))
        rows = np.concatenate([rows, np.maximum(rows, clip)])
        places = pairs + len(L) * serves[pairs].all(axis=1, keepdims=True)
    found = kl_pairs(rows, size, places, documents=documents)
    differ = found["value"] > ROUNDING
    clusters = cluster_codes(documents)
    names = vectors.names
    return _Sample(
        rows=rows,
        bytes=size,
        documents=documents,
        domain=None if texts.domain is None else np.asarray(texts.domain)[common],
        units=np.arange(len(size)) if clusters is None else clusters,
        places=places[differ],
        models=models[pairs[differ]],
        labels=tuple((names[a], names[b]) for a, b in pairs[differ]),
        kl=found["value"][differ],
        standard_error=found["standard_error"][differ],
        n_available=len(names) * (len(names) - 1) // 2,
        n_identical=int((~differ).sum()),
    )


def _drawn_pairs(vectors: Vectors, seed: int) -> tuple[Integers, Integers]:
    """All pairs (P, 2) of models, or a random sample of them, and the number of each model's name (K,)."""
    if len(vectors) < 2:
        raise InputError(f"{len(vectors)} model: there is no pair.", remedy="Score another model on the same texts.")
    vectors.require_one_convention()
    order = np.argsort(np.array(vectors.names, dtype=object), kind="stable")  # the order of the models does not matter
    K = len(order)
    starts = np.concatenate([[0], np.cumsum(np.arange(K - 1, 0, -1))])
    codes = np.arange(starts[-1])
    if len(codes) > MOST_PAIRS:
        codes = np.sort(np.random.default_rng(seed).choice(starts[-1], MOST_PAIRS, replace=False))
    first = np.searchsorted(starts, codes, side="right") - 1
    pairs = np.sort(order[np.stack([first, codes - starts[first] + first + 1], axis=1)], axis=1)
    seeds = vectors.attributes["seed"].astype(object).tolist()
    runs = [f"{run} {number}" for run, number in zip(vectors.runs, seeds, strict=True)]
    return pairs, np.unique(runs, return_inverse=True)[1]


# ------------------------------------------------------------------------------------------------- the text set alone


def text_sensitivity(vectors: Vectors, *, seed: int = 0) -> TextSensitivity:
    """How far the KL of all pairs of these models, in bits per byte, depends on their texts: halves, number of texts,
    domains. Of more than 1,000 pairs, 1,000 are drawn with this seed.

    Raises InputError for fewer than two models, for vectors of different conventions, and where the models have fewer
    than two common texts.
    """
    sample = _sample(vectors, *_drawn_pairs(vectors, seed))
    generator = np.random.default_rng(seed)
    notes = []
    if missing := len(vectors.texts) - sample.n_texts:
        notes.append(f"{missing:,} texts are left out: not all models have them.")
    halves = growth = None
    sizes = [B for B in BLOCKS if sample.splits_into(B)]
    if not sample.labels:
        notes.append("Every pair of models differs by the same amount on every text: all KLs are 0.")
    elif not sizes:
        notes.append(
            f"Too few texts to split: halves need {2 * FEWEST_TEXTS} texts of {2 * FEWEST_DOCUMENTS} documents."
        )
    else:
        halves, growth = _halves_and_growth(sample, sizes, generator)
    domains, more = _by_domain(sample, generator)
    return TextSensitivity(
        n_texts=sample.n_texts,
        n_documents=sample.n_units if sample.clustered else None,
        n_models=len(vectors),
        pairs=sample.labels,
        kl=sample.kl,
        standard_error=sample.standard_error,
        n_available=sample.n_available,
        n_identical=sample.n_identical,
        needed=_texts_needed(sample),
        halves=halves,
        growth=growth,
        domains=domains,
        notes=(*notes, *more),
    )


def _partitions(units: Integers, n_blocks: int, generator: np.random.Generator) -> Floats:
    """Random partitions into B blocks of whole units, as draws (R B, N). R is the smallest number with at least
    `COMPARISONS` pairs of neighbouring blocks."""
    n = int(units.max()) + 1
    shares = np.arange(n) * n_blocks // n
    count = -(-2 * COMPARISONS // n_blocks)
    block = np.stack([generator.permutation(shares)[units] for _ in range(count)])
    draws = block[:, None, :] == np.arange(n_blocks)[:, None]
    return np.asarray(draws.reshape(-1, len(units)), dtype=np.float64)


def _log_ratios(kl: Floats) -> Floats:
    """Log of the ratio of KL (P, 2 C) in neighbouring blocks (P, C)."""
    logs = np.log(np.maximum(kl, np.finfo(np.float64).tiny))
    return np.asarray(logs[:, 0::2] - logs[:, 1::2])


def _halves_and_growth(
    sample: _Sample, sizes: Sequence[int], generator: np.random.Generator
) -> tuple[SplitHalves, ErrorGrowth]:
    N, relative = sample.n_texts, sample.standard_error / sample.kl
    followed = sample.some(FOLLOWED)
    groups = generator.permutation(np.arange(sample.n_units) % GROUPS)[sample.units]
    deviations, typical, halves, left_out = [], [], np.empty((0, 0)), np.empty((len(sizes), GROUPS))
    on_followed = []
    for s, B in enumerate(sizes):
        draws = _partitions(sample.units, B, generator)
        kl = sample.kl_of(draws)
        halves = kl if B == 2 else halves
        blocks = kl.reshape(len(kl), -1, B)
        deviations.append(np.sqrt(blocks.var(axis=2, ddof=1).mean(axis=1)) / sample.kl)
        medians = np.median(np.abs(_log_ratios(kl)), axis=1) / NORMAL
        typical.append(float(np.median(medians)))
        on_followed.append(float(np.median(medians[followed])))
        for g in range(GROUPS):
            fewer = draws * (groups != g)
            # all documents of a block may be in the group that is left out
            whole = fewer.any(axis=1).reshape(-1, 2).all(axis=1)
            ratios = _log_ratios(sample.kl_of(fewer[np.repeat(whole, 2)], followed))
            left_out[s, g] = np.median(np.median(np.abs(ratios), axis=1)) / NORMAL
    n = N / np.array(sizes)
    growth = ErrorGrowth(
        n_texts=n.round().astype(np.int64),
        standard_deviation=np.array([np.median(deviation) for deviation in deviations]),
        quartiles=np.array([np.quantile(deviation, [0.25, 0.75]) for deviation in deviations]),
        predicted=float(np.median(relative)) * np.sqrt(N / n),
        typical=np.array(typical),
        slope=_slope(n, np.array(on_followed), left_out, N),
        slope_normal=float(_fit(n, np.log(np.log(scipy.stats.f.ppf(0.75, n - 1, n - 1))))) if len(n) > 1 else -0.5,
        document_effect=_document_effect(sample),
    )
    return _split_halves(sample, halves), growth


def _fit(n: Floats, logs: Floats) -> Any:
    """Slope of `logs` (S, ...) on log n (S,), by least squares."""
    x = np.log(n) - np.log(n).mean()
    return np.tensordot(x, logs, axes=1) / (x @ x)


def _slope(n: Floats, typical: Floats, left_out: Floats, n_texts: int) -> Estimate | None:
    if len(n) < 2 or not (typical > 0).all() or not (left_out > 0).all():
        return None
    value, jackknife = float(_fit(n, np.log(typical))), _fit(n, np.log(left_out))
    error = math.sqrt((GROUPS - 1) * float(np.var(jackknife)))
    return Estimate.normal(value, error, n_texts, n_documents=GROUPS, unit="")


def _document_effect(sample: _Sample) -> float | None:
    if not sample.clustered:
        return None
    alone = kl_pairs(sample.rows, sample.bytes, sample.places)["standard_error"]
    known = alone > 0
    return float(np.median((sample.standard_error[known] / alone[known]) ** 2)) if known.any() else None


def _split_halves(sample: _Sample, halves: Floats) -> SplitHalves:
    ratios = np.minimum(np.median(np.abs(_log_ratios(halves)), axis=1), 700.0)  # a larger exponential overflows
    worst = int(ratios.argmax())
    low, middle, high = np.expm1(np.quantile(ratios, [0.25, 0.5, 0.75])).tolist()
    whole = (halves > ROUNDING).all(axis=1)
    x, y = (np.log(halves[whole, side : 2 * CORRELATED : 2]) for side in (0, 1))
    pearson = spearman = None
    if len(x) >= 3:
        draws = _draw_models(sample.models[whole])
        pearson, spearman = (_correlation(x, y, draws, kind) for kind in ("pearson", "spearman"))
    return SplitHalves(
        n_splits=halves.shape[1] // 2,
        typical=middle,
        quartiles=(low, high),
        largest=float(np.expm1(ratios[worst])),
        largest_pair=sample.labels[worst],
        pearson=pearson,
        spearman=spearman,
        pearson_whole=_stepped_up(pearson),
        spearman_whole=_stepped_up(spearman),
    )


def _stepped_up(half: Correlation | None) -> Correlation | None:
    """The correlation for twice as many texts: 2 r / (1 + r). Below 0 nothing is in common, and r stays as it is."""
    if half is None:
        return None

    def up(r: float) -> float:
        return 2 * r / (1 + r) if r > 0 else r

    if half.interval is None or half.interval_kind != "models":  # splits tell how halves vary
        return Correlation(up(half.value), None, "none")
    return Correlation(up(half.value), (up(half.interval[0]), up(half.interval[1])), half.interval_kind)


# --------------------------------------------------------------------------------------------------- correlations


@dataclass(frozen=True, eq=False)
class _ModelDraws:
    """How often each pair counts (R, P) in each sample of `n_models` models drawn with replacement."""

    weights: Floats
    n_models: int

    def interval(self, resampled: Floats) -> tuple[float, float]:
        """The 95 % interval over models of a number, from its value in each sample (R,)."""
        return expanded_percentiles(resampled[np.isfinite(resampled)], self.n_models)


def _draw_models(models: Integers) -> _ModelDraws | None:
    """Bootstrap samples of the models of these pairs (P, 2); None below five models."""
    models = np.unique(models, return_inverse=True)[1].reshape(-1, 2)
    n = int(models.max()) + 1
    if n < FEWEST_MODELS:
        return None
    weights = pair_draws(models, n, MODEL_RESAMPLES).astype(np.float64)
    return _ModelDraws(weights[(weights > 0).sum(axis=1) >= 3], n)


def _correlation(x: Floats, y: Floats, draws: _ModelDraws | None, kind: str) -> Correlation | None:
    """Mean over S splits of the correlation over pairs of x and y (P, S); None where all values are equal."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    once = np.ones((1, len(x)))
    values = np.array([_CORRELATIONS[kind](a, b, once)[0] for a, b in zip(x.T, y.T, strict=True)])
    value = float(values.mean())
    if draws is not None:
        resampled = [_CORRELATIONS[kind](a, b, draws.weights) for a, b in zip(x.T, y.T, strict=True)]
        return Correlation(value, draws.interval(np.mean(resampled, axis=0)), "models")
    if len(values) == 1:
        return Correlation(value, None, "none")
    low, high = np.quantile(values, [0.025, 0.975])
    return Correlation(value, (float(low), float(high)), "splits")


def _pearson(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Correlation (R,) of x and y, (P,) or (R, P), with these weights (R, P)."""
    total = weights.sum(axis=1, keepdims=True)
    x, y = (v - (weights * v).sum(axis=1, keepdims=True) / total for v in (x, y))
    xy, xx, yy = ((weights * product).sum(axis=1) for product in (x * y, x * x, y * y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(xy / np.sqrt(xx * yy))


def _spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    return _pearson(_ranks(x, weights), _ranks(y, weights), weights)


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Middle ranks (R, P) of values (P,); each value counts as often as `weights` (R, P) say."""
    order = np.argsort(values)
    below = np.zeros((len(weights), len(values) + 1))
    np.cumsum(weights[:, order], axis=1, out=below[:, 1:])
    ends = (np.searchsorted(values[order], values, side=side) for side in ("left", "right"))
    return np.asarray(sum(below[:, end] for end in ends) / 2)


def _kendall(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Kendall's tau-b (R,) of x and y (P,): concordant minus discordant pairs, over the pairs without ties."""
    signs = [np.sign(v[:, None] - v[None, :]) for v in (x, y)]

    def total(matrix: Floats) -> Floats:
        return np.asarray(((weights @ matrix) * weights).sum(axis=1))

    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total(signs[0] * signs[1]) / np.sqrt(total(signs[0] ** 2) * total(signs[1] ** 2)))


_CORRELATIONS = {"pearson": _pearson, "spearman": _spearman, "kendall": _kendall}


def _rank_correlation(x: Floats, y: Floats) -> float:
    return float(_spearman(x, y, np.ones((1, len(x))))[0]) if len(x) >= 3 else math.nan


# -------------------------------------------------------------------------------------------------------- by domain


def _by_domain(sample: _Sample, generator: np.random.Generator) -> tuple[Domains | None, list[str]]:
    """KL by domain, and notes."""
    if not sample.labels:
        return None, []
    if sample.domain is None or len(set(sample.domain)) < 2:
        known = "are of one domain" if sample.domain is not None else "have no domains"
        return None, [f"The texts {known}: there is no KL by domain."]
    names, domain_of = np.unique(sample.domain, return_inverse=True)
    inside = (domain_of == np.arange(len(names))[:, None]).astype(np.float64)
    n_documents = np.array([len(np.unique(sample.units[domain_of == g])) for g in range(len(names))])
    large = (inside.sum(axis=1) >= FEWEST_TEXTS) & (n_documents >= FEWEST_DOCUMENTS)
    small = tuple(map(str, names[~large]))
    if large.sum() < 2:
        return None, [f"Fewer than two domains have {FEWEST_TEXTS} texts of {FEWEST_DOCUMENTS} documents."]
    within, without = sample.kl_of(inside), sample.kl_of(1 - inside)
    chosen, errors = [], []
    for g in np.flatnonzero(large):
        domain, error = _domain(sample, str(names[g]), domain_of == g, within[:, g], without[:, g])
        chosen.append(domain)
        errors.append(error)
    test, notes = _test_domains(sample, domain_of, np.flatnonzero(large), generator)
    shuffled = [generator.permutation(_unit_labels(sample.units, domain_of))[sample.units] for _ in range(20)]
    followed = sample.some(FOLLOWED)
    by_chance = [
        np.median(_between(sample, (labels == np.arange(len(names))[:, None]).astype(np.float64), followed))
        for labels in shuffled
    ]
    found = Domains(
        domains=tuple(chosen),
        small=small,
        kl=within[:, large],
        standard_error=np.stack(errors, axis=1),
        between=float(np.median(_between(sample, inside, np.arange(len(sample.labels))))),
        between_by_chance=float(np.mean(by_chance)),
        test=test,
    )
    return found, notes


def _domain(sample: _Sample, name: str, inside: Any, within: Floats, without: Floats) -> tuple[Domain, Floats]:
    """One domain, and the standard error (P,) in bits per byte of the KL of each pair in it."""
    documents = None if sample.documents is None else sample.documents[inside]
    n = int(inside.sum())
    draws = text_draws(n, documents, resamples=RESAMPLES)
    found = kl_pairs(sample.rows[:, inside], sample.bytes[inside], sample.places, documents=documents, draws=draws)
    ratio = within / sample.kl
    low, high = np.quantile(ratio, [0.25, 0.75])
    change = without / sample.kl - 1
    largest = int(np.abs(change).argmax())
    share = n / sample.n_texts
    chance = np.median(sample.standard_error / sample.kl) * math.sqrt(share / (1 - share))
    domain = Domain(
        name=name,
        n_texts=n,
        n_documents=len(np.unique(sample.units[inside])),
        mean_bytes=float(sample.bytes[inside].mean()),
        kl=estimate_from_resamples(
            float(np.median(within)), np.median(found["resampled"], axis=0), n, documents=documents
        ),
        ratio=float(np.median(ratio)),
        ratio_quartiles=(float(low), float(high)),
        agreement=_rank_correlation(within, without),
        change=float(np.median(change)),
        by_chance=float(chance),
        largest_change=float(change[largest]),
        largest_pair=sample.labels[largest],
        ranking=_rank_correlation(sample.kl, without),
    )
    return domain, np.asarray(found["standard_error"])


def _between(sample: _Sample, inside: Floats, which: Integers) -> Floats:
    """Share (P,) of the variance of differences between groups of texts, given as draws (D, N). It is 1 minus the share
    within groups, the sum of KL times bytes of each group."""
    size = inside @ sample.bytes
    within: Floats = np.nan_to_num(sample.kl_of(inside, which)) @ size
    return np.asarray(1 - within / (sample.kl[which] * size.sum()))


def _unit_labels(units: Integers, domain_of: Integers) -> Integers:
    """The domain of each unit (U,): that of its first text."""
    return np.asarray(domain_of[np.unique(units, return_index=True)[1]])


def _test_domains(
    sample: _Sample, domain_of: Integers, large: Integers, generator: np.random.Generator
) -> tuple[DomainTest | None, list[str]]:
    labels = _unit_labels(sample.units, domain_of)
    if (labels[sample.units] != domain_of).any():
        return None, ["Some documents belong to several domains: the difference between domains is not tested."]
    tested = sample.some(TESTED)
    d = sample.rows[sample.places[tested, 0]] - sample.rows[sample.places[tested, 1]]
    for g in range(int(domain_of.max()) + 1):
        d[:, domain_of == g] -= d[:, domain_of == g].mean(axis=1, keepdims=True)
    units = scipy.sparse.csr_array((np.ones(sample.n_texts), (sample.units, np.arange(sample.n_texts))))
    squares, size = (units @ (d * d).T), units @ sample.bytes.astype(np.float64)  # sums (U, T) and (U,)
    kept = np.isin(labels, large)
    squares, size, labels = squares[kept], size[kept], np.unique(labels[kept], return_inverse=True)[1]
    columns = np.concatenate([squares, squares**2, squares * size[:, None]], axis=1)
    actual = _disagreement(columns, size, labels)
    others = [_disagreement(columns, size, generator.permutation(labels)) for _ in range(PERMUTATIONS)]
    random = np.stack(others)
    alone = (1 + (random >= actual).sum(axis=0)) / (1 + PERMUTATIONS)
    together = (1 + (random.max(axis=1)[:, None] >= actual).sum(axis=0)) / (1 + PERMUTATIONS)
    return DomainTest(
        pairs=tuple(sample.labels[place] for place in tested),
        p_values=tuple(alone.tolist()),
        adjusted=tuple(together.tolist()),
        p_value=float(together.min()),
        n_different=int((together <= 1 - CONFIDENCE + 1e-12).sum()),
        n_permutations=PERMUTATIONS,
    ), []


def _disagreement(columns: Floats, size: Floats, labels: Integers) -> Floats:
    """Weighted sum of squares (T,) of log KL over domains, from sums over units.

    `columns` (U, 3 T) are squared differences y, then y**2, then y b; `size` (U,) are the bytes b; `labels` (U,) are
    the domains of the units. KL in a domain is proportional to r = sum y / sum b. The variance of r is
    sum (y - r b)**2 n / (n - 1) / (sum b)**2.
    """
    sums = (labels == np.unique(labels)[:, None]).astype(np.float64)
    y, yy, yb = np.split(sums @ columns, 3, axis=1)
    b, bb, n = ((sums @ v)[:, None] for v in (size, size**2, np.ones(len(size))))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = y / b
        relative = (yy - 2 * ratio * yb + ratio**2 * bb) * n / (n - 1) / y**2
        weight = 1 / relative
        logs = np.log(ratio)
        mean = (weight * logs).sum(axis=0) / weight.sum(axis=0)
        return np.asarray(np.nan_to_num((weight * (logs - mean) ** 2).sum(axis=0), posinf=np.inf))


# ---------------------------------------------------------------------------------------------------- two text sets


def compare_text_sets(first: Vectors, second: Vectors, *, seed: int = 0) -> TextSetComparison:
    """KL in bits per byte of the same pairs of models on two text sets, with standard errors, and their agreement.
    Models are matched by reference. Of more than 1,000 pairs, 1,000 are drawn with this seed.

    Raises InputError where fewer than two models have vectors on both, or where the two sets and their clips are the
    same.
    """
    if (first.texts.id, first.texts.clip) == (second.texts.id, second.texts.clip):
        raise InputError(f"{first.texts.name} was given twice.", remedy="Name two text sets.")
    there = set(second.names)
    shared = [name for name in first.names if name in there]
    unmatched = tuple(name for name in first.names if name not in there), tuple(sorted(there - set(shared)))
    if len(shared) < 2:
        raise InputError(
            f"{len(shared)} model has vectors on both {first.texts.name} and {second.texts.name}.",
            "KL needs a pair.",
            "Score the same models on both.",
        )
    sets = [first.subset(shared), second.subset(shared)]
    pairs, models = _drawn_pairs(sets[0], seed)
    sets[1].require_one_convention()
    samples = [_sample(vectors, pairs, models) for vectors in sets]
    known = [{label: n for n, label in enumerate(sample.labels)} for sample in samples]
    both = [label for label in samples[0].labels if label in known[1]]
    if not both:
        raise InputError("No two models differ on both text sets.", remedy="Compare other models.")
    places = [[positions[label] for label in both] for positions in known]
    kl, error = (
        np.stack([getattr(sample, field)[place] for sample, place in zip(samples, places, strict=True)], axis=1)
        for field in ("kl", "standard_error")
    )
    named = samples[0].models[places[0]]
    ratio = kl[:, 1] / kl[:, 0]
    logs = np.log(ratio)
    median_log = float(np.median(logs))
    draws = _draw_models(named) if len(both) >= 3 else None
    x, y = np.log(kl).T[:, :, None]
    pearson, spearman, kendall = (
        (_correlation(x, y, draws, kind) for kind in _CORRELATIONS) if len(both) >= 3 else (None, None, None)
    )
    shape = _procrustes(sets[0], sets[1], seed)
    nearest, n_nearest = _same_nearest(*sets)
    low, high = scipy.stats.binomtest(nearest, n_nearest).proportion_ci(method="wilson") if n_nearest else (0.0, 1.0)
    return TextSetComparison(
        names=(first.texts.name, second.texts.name),
        n_texts=(samples[0].n_texts, samples[1].n_texts),
        n_models=len(shared),
        unmatched=unmatched,
        pairs=tuple(both),
        kl=kl,
        standard_error=error,
        n_available=samples[0].n_available,
        n_identical=len(pairs) - len(both),
        ratio=float(np.median(ratio)),
        ratio_interval=interval_over_models(ratio, named),
        ratio_range=(float(ratio.min()), float(ratio.max())),
        spread=float(np.median(np.abs(logs - median_log)) / scipy.special.ndtri(0.75)),
        spread_by_error=float(np.median(np.sqrt(((error / kl) ** 2).sum(axis=1)))),
        pearson=pearson,
        spearman=spearman,
        kendall=kendall,
        procrustes=shape and shape[0],
        procrustes_by_chance=shape and shape[1],
        procrustes_p_value=shape and shape[2],
        nearest=nearest,
        nearest_interval=(float(low), float(high)),
        nearest_by_chance=1 / (len(shared) - 1),
        notes=_notes_of_two(*sets),
    )


def _procrustes(first: Vectors, second: Vectors, seed: int) -> tuple[float, float, float] | None:
    """Disparity of two maps, its mean over random matchings of the models, and the share of matchings with at most this
    disparity. None where a map has fewer than two dimensions."""
    a, b = (pca(vectors, 2) for vectors in (first, second))
    if min(a.share[-1], b.share[-1]) == 0 or len(first) < 4:  # three points have hardly a shape
        return None
    generator = np.random.default_rng(seed)
    found = float(scipy.spatial.procrustes(a.points, b.points)[2])
    random = np.array(
        [scipy.spatial.procrustes(a.points, generator.permutation(b.points))[2] for _ in range(PERMUTATIONS)]
    )
    p_value = (1 + (random <= found + 1e-12).sum()) / (1 + PERMUTATIONS)
    return found, float(random.mean()), float(p_value)


def _same_nearest(first: Vectors, second: Vectors) -> tuple[int, int]:
    """The number of models with the same nearest model on both sets, and the number of models with a nearest one."""
    nearest = []
    for vectors in (first, second):
        value = vectors.kl().value.copy()
        np.fill_diagonal(value, np.inf)
        nearest.append(np.where(np.isfinite(value).any(axis=1), np.nanargmin(value, axis=1), -1))
    known = (nearest[0] >= 0) & (nearest[1] >= 0)
    return int((nearest[0] == nearest[1])[known].sum()), int(known.sum())


def _notes_of_two(first: Vectors, second: Vectors) -> tuple[str, ...]:
    notes = []
    if first.attributes["convention"].iloc[0] != second.attributes["convention"].iloc[0]:
        notes.append("The two sets were scored by different conventions; this changes KL too.")
    if first.texts.texts and second.texts.texts:
        common = len(set(first.texts.texts) & set(second.texts.texts))
        if common:
            notes.append(f"{common:,} texts are in both sets; this raises the agreement.")
    return tuple(notes)
