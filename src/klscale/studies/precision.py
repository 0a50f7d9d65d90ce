"""KL to a given precision, with as few texts as possible, in the fixed random order of the text set.

The number of texts depends on the estimator that is reported. By whole texts, the variance of a log-likelihood
difference of kurtosis k has a relative standard error of sqrt((k - 1) / n) over n texts. A precision p therefore needs
n = (k - 1) / p**2 texts: 200 for a Gaussian difference and 10 %, 500 for a Laplace one. Spans and sampled tokens need
fewer. k is not known beforehand. So the models are scored on some texts, and more are added by the standard errors, at
numbers of texts on a fixed grid (sequential looks). Stopping by the results makes the usual interval too narrow: the
interval here is that of a confidence sequence. benchmarks/precision.md measures this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, combinations
from typing import Any

import numpy as np

from klscale.errors import InputError
from klscale.inputs.references import ModelRef
from klscale.inputs.shares import parse_share
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.estimates import cluster_codes
from klscale.science.reported import SAMPLED_TOKENS, SPANS, WHOLE_TEXTS, ReportedKL
from klscale.science.sequential import with_anytime_interval
from klscale.store.store import Store
from klscale.sweep import score as sweep
from klscale.sweep.jobs import Outcome
from klscale.vectors.vectors import Vectors

PRECISION = 0.1
"""Default precision, standard error / KL."""
FEWEST = {SAMPLED_TOKENS: 40, SPANS: 100, WHOLE_TEXTS: 200}
"""Fewest texts for a standard error, by estimator. By whole texts that needs a kurtosis: with 100, intervals cover less
where a few texts in a hundred are extreme."""
FIRST = {SAMPLED_TOKENS: 0.4, SPANS: 1.0, WHOLE_TEXTS: 2.5}
"""The first look that counts is at this many texts / p**2. By whole texts: a Gaussian difference needs 2 / p**2, and
this is a quarter more. By the others: what models of 135M parameters need."""
EARLY = 40, 50, 63, 80
"""Numbers of texts of looks below 100: by sampled tokens they are enough."""
START = 100
"""From here on, each look has a tenth more texts than the one before."""
LEAP = 2
"""Largest ratio of texts between one look and the next: a kurtosis from few texts is uncertain."""
SMALLEST = 1e-6
"""Smallest precision: even a Gaussian difference needs 2 * 10**12 texts. The square of a far smaller one is 0."""
PLANNED = {SAMPLED_TOKENS: 0.5, SPANS: 2.0, WHOLE_TEXTS: 5.0}
"""The interval is narrowest at this many texts / p**2. By whole texts: what a Laplace difference needs."""


@dataclass(frozen=True)
class Look:
    """The least precise pair at one look: `n_texts` scored with both models, skipped texts included, and its
    `relative_error`, standard error / KL."""

    n_texts: int
    relative_error: float


@dataclass(frozen=True, eq=False)
class SequentialComparison:
    """KL of each pair of models in bits per byte, to a given precision: `pairs`, (name, name) -> KL.

    `vectors` are those of the models that could be scored. `anytime` are the pairs from some of the texts: their
    interval is that of a confidence sequence. With all texts it is the usual one. `outcomes` has the status of each
    model.
    """

    vectors: Vectors
    pairs: Mapping[tuple[str, str], ReportedKL]
    anytime: frozenset[tuple[str, str]]
    precision: float
    looks: tuple[Look, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def at_floor(self) -> tuple[str, ...]:
        """The estimators of pairs for which the precision alone would need fewer texts than a standard error does."""
        of = {
            kl.estimator for kl in self.pairs.values() if FIRST[kl.estimator] / self.precision**2 < FEWEST[kl.estimator]
        }
        return tuple(estimator for estimator in FEWEST if estimator in of)

    @property
    def reached(self) -> bool:
        """Whether every pair has the given precision."""
        return all(relative_error(kl) <= self.precision for kl in self.pairs.values())


def parse_precision(text: str) -> float:
    """A precision as a fraction: `10%`, `10 %` and `0.1` are a tenth. Raises InputError for text that is not a number
    from 0.0001 to 100 %."""
    return _valid(parse_share(text), text)


def _valid(precision: float, given: object) -> float:
    if not SMALLEST <= precision < 1:
        raise InputError(
            f"--precision {given}: not between 0.0001 and 100 %.",
            "It is the largest standard error of a KL, relative to its value.",
            "Give a percentage (10%) or a fraction (0.1).",
        )
    return precision


def compare_to_precision(
    models: Sequence[str | ModelRef],
    texts: TextSet,
    store: Store,
    precision: float = PRECISION,
    *,
    reference: ModelRef | None = None,
    progress: Progress = SILENT,
    **how: Any,
) -> SequentialComparison:
    """KL in bits per byte of each pair, each with a standard error of at most `precision` times its value, from as few
    texts as possible, or from all. With a `reference`, one of the models, only its pairs count.

    Stored vectors are not scored again, and are looked at first. New scores are kept in the store; a smaller
    `precision` or `score` adds to them. `how` goes to `score`: `device`, `batch_tokens`, `long_texts`. For an external
    text set, which cannot be scored, there is one look at the stored vectors.

    Raises InputError where `precision` is not from 1e-6 to below 1.
    """
    _valid(precision, precision)
    N = len(texts)
    times, companions = look_times(N), companions_of(texts)
    wanted = first_look(SAMPLED_TOKENS, precision, times)
    outcomes: dict[str, Outcome] = {}
    looks: list[Look] = []
    n_scored: dict[tuple[str, str], int] = {}
    n_used: dict[tuple[str, str], int] = {}
    while True:
        for outcome in sweep.score(models, texts, store, first=wanted, progress=progress, **how):
            outcomes[str(outcome.ref)] = outcome
        entries = {name: outcome.entry for name, outcome in outcomes.items() if outcome.entry is not None}
        vectors = store.vectors(texts, [*entries.values()], [outcomes[name].ref for name in entries])
        pairs = {pair: vectors.reported_kl(*pair) for pair in _pairs(vectors.names, reference)}
        before, n_scored = n_scored, {pair: min(entries[name].first or N for name in pair) for pair in pairs}
        used, n_used = n_used, {pair: kl.n_texts for pair, kl in pairs.items()}
        if pairs:
            worst = max(pairs, key=lambda pair: relative_error(pairs[pair]))
            looks.append(Look(n_scored[worst], relative_error(pairs[worst])))
        # A model that is gone keeps the texts that it has, and no further text has sampled tokens.
        lacking = [
            pair
            for pair, kl in pairs.items()
            if n_scored[pair] < N
            and (relative_error(kl) > precision or n_scored[pair] < first_look(kl.estimator, precision, times))
            and not (n_scored[pair] == before.get(pair) or n_used[pair] == used.get(pair))
        ]
        if not lacking:
            break
        firsts = {pair: first_look(pairs[pair].estimator, precision, times) for pair in lacking}
        wanted = max(
            next_look(pairs[pair], n_scored[pair], precision, times, companions) if n_scored[pair] >= first else first
            for pair, first in firsts.items()
        )
        models = [vectors.models[vectors.position(name)] for name in dict.fromkeys(chain(*lacking))]
    some = frozenset(pair for pair in pairs if n_scored[pair] < N)
    shown = {
        pair: with_anytime_interval(kl, PLANNED[kl.estimator] / precision**2) if pair in some else kl
        for pair, kl in pairs.items()
    }
    return SequentialComparison(vectors, shown, some, precision, tuple(looks), tuple(outcomes.values()))


def _pairs(names: Sequence[str], reference: ModelRef | None) -> list[tuple[str, str]]:
    if reference is None:
        return [*combinations(names, 2)]
    return [(str(reference), name) for name in names if name != str(reference) and str(reference) in names]


def relative_error(kl: ReportedKL) -> float:
    """Standard error / KL, a pure number: 0 for two models that agree on every text, infinite where it is not known, as
    from one text."""
    if kl.value == 0 and kl.n_texts > 1:
        return 0.0
    return kl.standard_error / kl.value if kl.value > 0 and math.isfinite(kl.standard_error) else math.inf


def look_times(n_texts: int) -> list[int]:
    """Numbers of texts of sequential looks: a few below 100, then each a tenth more than the one before; and all."""
    times = [*EARLY, START]
    while times[-1] < n_texts:
        times.append(times[-1] + times[-1] // 10)
    return [time for time in times if time < n_texts] + [n_texts]


def first_look(estimator: str, precision: float, times: Sequence[int]) -> int:
    """The first of these numbers of texts at which an estimator may have the precision, or all texts."""
    fewest = max(FEWEST[estimator], FIRST[estimator] / precision**2)
    return next((time for time in times if time >= fewest), times[-1])


def next_look(
    kl: ReportedKL,
    n_scored: int,
    precision: float,
    times: Sequence[int],
    companions: Callable[[int], float] = lambda n: 0.0,
) -> int:
    """The first of these numbers of texts where a KL, now from `n_scored` texts, is expected to have the precision; at
    most one LEAP away.

    With n texts the squared relative error is in proportion to 1 / n. By whole texts it is (kurtosis - 1) / n for
    independent texts. For texts that share documents it is larger by the design effect 1 + r `companions(n)`. There r
    is the correlation of squared differences within a document.
    """
    error2 = relative_error(kl) ** 2
    independent = (kl.whole_texts.kurtosis - 1) / n_scored if kl.is_published else error2
    excess, here = error2 / independent - 1, companions(n_scored)
    correlation = max(excess / here, 0.0) if here else 0.0
    for time in times:
        expected = independent * n_scored / time * (1 + correlation * companions(time))
        if time > n_scored and (expected <= precision**2 or time >= LEAP * n_scored):
            return time
    return times[-1]


def companions_of(texts: TextSet) -> Callable[[int], float]:
    """n -> mean number of other texts from the same document, among the first n texts of the random order."""

    @cache
    def companions(n: int) -> float:
        codes = cluster_codes(texts.document, texts.random_order[:n])
        return 0.0 if codes is None else float((np.bincount(codes) ** 2).sum() / n - 1)

    return companions
