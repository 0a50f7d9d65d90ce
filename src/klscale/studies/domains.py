"""Does KL depend on the kind of text? KL on each domain of a text set beside the others, and a test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from klscale.science.arrays import Floats, Integers
from klscale.science.bootstrap import RESAMPLES, estimate_from_resamples, text_draws
from klscale.science.estimates import CONFIDENCE, Estimate
from klscale.science.kl import kl_pairs
from klscale.studies.correlations import rank_correlation
from klscale.studies.pair_samples import FEWEST_DOCUMENTS, FEWEST_TEXTS, FOLLOWED, PairSample

TESTED, PERMUTATIONS = 100, 499
"""Largest number of pairs of models in the test of domains, and number of permutations of the labels."""


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


def by_domain(sample: PairSample, generator: np.random.Generator) -> tuple[Domains | None, list[str]]:
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


def _domain(sample: PairSample, name: str, inside: Any, within: Floats, without: Floats) -> tuple[Domain, Floats]:
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
        agreement=rank_correlation(within, without),
        change=float(np.median(change)),
        by_chance=float(chance),
        largest_change=float(change[largest]),
        largest_pair=sample.labels[largest],
        ranking=rank_correlation(sample.kl, without),
    )
    return domain, np.asarray(found["standard_error"])


def _between(sample: PairSample, inside: Floats, which: Integers) -> Floats:
    """Share (P,) of the variance of differences between groups of texts, given as draws (D, N). It is 1 minus the share
    within groups, the sum of KL times bytes of each group."""
    size = inside @ sample.bytes
    within: Floats = np.nan_to_num(sample.kl_of(inside, which)) @ size
    return np.asarray(1 - within / (sample.kl[which] * size.sum()))


def _unit_labels(units: Integers, domain_of: Integers) -> Integers:
    """The domain of each unit (U,): that of its first text."""
    return np.asarray(domain_of[np.unique(units, return_index=True)[1]])


def _test_domains(
    sample: PairSample, domain_of: Integers, large: Integers, generator: np.random.Generator
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
