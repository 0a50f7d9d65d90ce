"""KL to a given precision, with as few texts as possible, in the fixed random order of the text set.

The variance of a log-likelihood difference of kurtosis k has a relative standard error of sqrt((k - 1) / n) over n
texts. A precision p therefore needs n = (k - 1) / p**2 texts: 200 for a Gaussian difference and 10 %, 500 for a Laplace
one. k is not known beforehand. So the models are scored on some texts, and more are added by the standard errors, at
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
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.estimates import cluster_codes
from klscale.science.kl import KL
from klscale.science.sequential import with_anytime_interval
from klscale.store.store import Store
from klscale.sweep import score as sweep
from klscale.sweep.jobs import Outcome
from klscale.vectors.vectors import Vectors

PRECISION = 0.1
"""Default precision, standard error / KL."""
FEWEST = 200
"""Fewest texts for a kurtosis: with 100, intervals cover less where a few texts in a hundred are extreme."""
GAUSSIAN = 2.5
"""The first look is at this many texts / p**2: a Gaussian difference needs 2 / p**2; this is a quarter more."""
START = 100
"""Smallest number of texts of a look."""
LEAP = 2
"""Largest ratio of texts between one look and the next: a kurtosis from few texts is uncertain."""
SMALLEST = 1e-6
"""Smallest precision: even a Gaussian difference needs 2 * 10**12 texts. The square of a far smaller one is 0."""
TYPICAL_KURTOSIS = 6.0
"""Kurtosis of a Laplace difference: the interval is narrowest at the number of texts that it needs."""


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
    pairs: Mapping[tuple[str, str], KL]
    anytime: frozenset[tuple[str, str]]
    precision: float
    looks: tuple[Look, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def reached(self) -> bool:
        """Whether every pair has the given precision."""
        return all(relative_error(kl) <= self.precision for kl in self.pairs.values())


def parse_precision(text: str) -> float:
    """A precision as a fraction: `10%`, `10 %` and `0.1` are a tenth. Raises InputError for text that is not a number
    from 0.0001 to 100 %."""
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        value = math.nan
    return _valid(value, text)


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
    times, crowding = look_times(N), crowding_of(texts)
    wanted = next(time for time in times if time >= min(max(FEWEST, GAUSSIAN / precision**2), N))
    outcomes: dict[str, Outcome] = {}
    looks: list[Look] = []
    n_scored: dict[tuple[str, str], int] = {}
    while True:
        for outcome in sweep.score(models, texts, store, first=wanted, progress=progress, **how):
            outcomes[str(outcome.ref)] = outcome
        entries = {name: outcome.entry for name, outcome in outcomes.items() if outcome.entry is not None}
        vectors = store.vectors(texts, [*entries.values()], [outcomes[name].ref for name in entries])
        pairs = {pair: vectors.kl()[pair] for pair in _pairs(vectors.names, reference)}
        before, n_scored = n_scored, {pair: min(entries[name].first or N for name in pair) for pair in pairs}
        if pairs:
            worst = max(pairs, key=lambda pair: relative_error(pairs[pair]))
            looks.append(Look(n_scored[worst], relative_error(pairs[worst])))
        # A model that cannot be scored any more keeps its texts.
        lacking = [pair for pair, kl in pairs.items() if relative_error(kl) > precision and n_scored[pair] < N]
        if all(n_scored[pair] == before.get(pair) for pair in lacking):
            break
        wanted = max(next_look(pairs[pair], n_scored[pair], precision, times, crowding) for pair in lacking)
        models = [vectors.models[vectors.position(name)] for name in dict.fromkeys(chain(*lacking))]
    some = frozenset(pair for pair in pairs if n_scored[pair] < N)
    planned = (TYPICAL_KURTOSIS - 1) / precision**2
    shown = {pair: with_anytime_interval(kl, planned) if pair in some else kl for pair, kl in pairs.items()}
    return SequentialComparison(vectors, shown, some, precision, tuple(looks), tuple(outcomes.values()))


def _pairs(names: Sequence[str], reference: ModelRef | None) -> list[tuple[str, str]]:
    if reference is None:
        return [*combinations(names, 2)]
    return [(str(reference), name) for name in names if name != str(reference) and str(reference) in names]


def relative_error(kl: KL) -> float:
    """Standard error / KL, a pure number: 0 for two models that agree on every text, infinite where it is not known, as
    from one text."""
    if kl.value == 0 and kl.n_texts > 1:
        return 0.0
    return kl.standard_error / kl.value if kl.value > 0 and math.isfinite(kl.standard_error) else math.inf


def look_times(n_texts: int) -> list[int]:
    """The numbers of texts of sequential looks: 100, then each a tenth more than the one before, and all."""
    times = [START]
    while times[-1] < n_texts:
        times.append(times[-1] + times[-1] // 10)
    return [time for time in times if time < n_texts] + [n_texts]


def next_look(
    kl: KL, n_scored: int, precision: float, times: Sequence[int], crowding: Callable[[int], float] = lambda n: 0.0
) -> int:
    """The first of these numbers of texts where a KL, now from `n_scored` texts, is expected to have the precision; at
    most one LEAP away.

    With n texts the squared relative error is (kurtosis - 1) / n for independent texts. For texts that share documents
    it is larger by the design effect 1 + r `crowding(n)`, where r is the correlation of squared differences within a
    document.
    """
    independent = (kl.kurtosis - 1) / n_scored
    excess, crowded = relative_error(kl) ** 2 / independent - 1, crowding(n_scored)
    correlation = max(excess / crowded, 0.0) if crowded else 0.0
    for time in times:
        expected = independent * n_scored / time * (1 + correlation * crowding(time))
        if time > n_scored and (expected <= precision**2 or time >= LEAP * n_scored):
            return time
    return times[-1]


def crowding_of(texts: TextSet) -> Callable[[int], float]:
    """n -> mean number of other texts from the same document, among the first n texts of the random order."""

    @cache
    def crowding(n: int) -> float:
        codes = cluster_codes(texts.document, texts.random_order[:n])
        return 0.0 if codes is None else float((np.bincount(codes) ** 2).sum() / n - 1)

    return crowding
