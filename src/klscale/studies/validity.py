"""How far KL depends on the text set: random halves of it, the growth of the error, its domains.

    found = text_sensitivity(store.vectors(texts))

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

from klscale.science.arrays import Floats, Integers
from klscale.science.estimates import Estimate
from klscale.science.kl import kl_pairs
from klscale.science.reported import SAMPLED_TOKENS, SPANS, WHOLE_TEXTS
from klscale.studies.correlations import Correlation, correlation, draw_models
from klscale.studies.domains import Domains, by_domain
from klscale.studies.maps import ROUNDING
from klscale.studies.pair_samples import FEWEST_DOCUMENTS, FEWEST_TEXTS, FOLLOWED, PairSample, drawn_pairs, pair_sample
from klscale.vectors.vectors import Vectors

MOST_MODELS = 45
"""Models whose pairs are looked at by sampled tokens and by spans: 990 pairs."""
BLOCKS = (2, 4, 8, 16, 32, 64)
RELATIVE_ERRORS = (0.10, 0.05, 0.02)
COMPARISONS = 200
"""Number of pairs of disjoint blocks of each size; for halves, of random splits."""
CORRELATED = 50
"""Number of random splits whose correlations over pairs are averaged."""
GROUPS = 10
"""Number of groups of texts, each left out once (jackknife)."""
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
    return (*nearer, *_texts_needed(pair_sample(vectors, *drawn_pairs(vectors, seed))))


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


def _texts_needed(sample: PairSample) -> tuple[TextsNeeded, ...]:
    if not sample.labels or not sample.splits_into(1):
        return ()
    needed = sample.n_texts * (sample.standard_error / sample.kl) ** 2
    return tuple(_rows_needed(WHOLE_TEXTS, list(zip(needed.tolist(), sample.labels, strict=True))))


def text_sensitivity(vectors: Vectors, *, seed: int = 0) -> TextSensitivity:
    """How far the KL of all pairs of these models, in bits per byte, depends on their texts: halves, number of texts,
    domains. Of more than 1,000 pairs, 1,000 are drawn with this seed.

    Raises InputError for fewer than two models, for vectors of different conventions, and where the models have fewer
    than two common texts.
    """
    sample = pair_sample(vectors, *drawn_pairs(vectors, seed))
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
    domains, more = by_domain(sample, generator)
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
    sample: PairSample, sizes: Sequence[int], generator: np.random.Generator
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


def _document_effect(sample: PairSample) -> float | None:
    if not sample.clustered:
        return None
    alone = kl_pairs(sample.rows, sample.bytes, sample.places)["standard_error"]
    known = alone > 0
    return float(np.median((sample.standard_error[known] / alone[known]) ** 2)) if known.any() else None


def _split_halves(sample: PairSample, halves: Floats) -> SplitHalves:
    ratios = np.minimum(np.median(np.abs(_log_ratios(halves)), axis=1), 700.0)  # a larger exponential overflows
    worst = int(ratios.argmax())
    low, middle, high = np.expm1(np.quantile(ratios, [0.25, 0.5, 0.75])).tolist()
    whole = (halves > ROUNDING).all(axis=1)
    x, y = (np.log(halves[whole, side : 2 * CORRELATED : 2]) for side in (0, 1))
    pearson = spearman = None
    if len(x) >= 3:
        draws = draw_models(sample.models[whole])
        pearson, spearman = (correlation(x, y, draws, kind) for kind in ("pearson", "spearman"))
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
