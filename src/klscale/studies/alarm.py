"""Has a served model changed since its first run? A test at every later run, whose error rate holds for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from klscale.errors import InputError
from klscale.inputs.shares import parse_share
from klscale.inputs.texts import TextSet
from klscale.science.estimates import Estimate, cluster_codes, n_clusters, standard_error_of_mean
from klscale.science.reported import ReportedKL
from klscale.science.sequential import anytime_p_value, signed_rank_p_value
from klscale.vectors.vectors import Vectors


@dataclass(frozen=True)
class AlarmLook:
    """One later run of the server: its `number` from 1, its KL from the reference in bits per byte, and by how much it
    is `farther` from the reference than the first run was: |difference| of a text's log-likelihood, mean over texts, in
    nats. `p_value` holds for all looks together (`anytime_p_value`)."""

    number: int
    model: str
    date: str
    kl: ReportedKL
    farther: Estimate
    p_value: float
    alarm: bool


@dataclass(frozen=True, eq=False)
class DriftAlarm:
    """The looks at a server, in the order of their dates. Without a change the chance of any alarm, at any number of
    looks, is at most `level`."""

    reference: str
    first: str
    texts: TextSet
    level: float
    looks: tuple[AlarmLook, ...]

    @property
    def first_alarm(self) -> str | None:
        """The first run that differs from the first; None for no alarm."""
        return next((look.model for look in self.looks if look.alarm), None)


def parse_level(text: str) -> float:
    """`5%`, `5 %` and `0.05`. Raises InputError for what is not above 0 and below 50 %."""
    return _valid(parse_share(text), text)


def _valid(level: float, given: object) -> float:
    if not 0 < level < 0.5:
        why = "It is the chance of an alarm without a change."
        raise InputError(f"--alarm {given}: not between 0 and 50 %.", why, "Give a percentage (5%).")
    return level


def drift_alarm(vectors: Vectors, dates: Sequence[str], level: float = 0.05) -> DriftAlarm:
    """Whether later runs of a server differ from its first. The models of `vectors` are the reference, the first run,
    and the later runs in the order of their `dates` (K - 2,).

    For each text x = |later - reference| - |first - reference|, in nats. Where the server has not changed, both runs
    have the same run-to-run noise, so that x is symmetric around 0, for any reference and noise. Texts (or
    documents) must have noise of their own. Each look tests that by `signed_rank_p_value`, with its share of the level.

    Raises InputError for fewer than three models, a level that is not above 0 and below 0.5, texts too few for an
    alarm, and vectors that were made by different conventions.
    """
    _valid(level, level)
    if len(vectors) < 3:
        what = f"{len(vectors)} runs, the reference included: an alarm needs three."
        raise InputError(what, "The first later one shows what no change looks like.", "Score the server once more.")
    vectors.require_one_convention()
    reference, first, *later = vectors.names
    from_reference = np.abs(vectors.log_likelihood[1:] - vectors.log_likelihood[0])
    looks = list[AlarmLook]()
    for number, (name, date) in enumerate(zip(later, dates, strict=True), 1):
        x = from_reference[number] - from_reference[0]
        known = ~np.isnan(x)
        if known.sum() < 2:
            what = f"{name}, {first} and {reference} have fewer than two texts in common."
            raise InputError(what, remedy="Score all runs on the same texts.")
        clusters = cluster_codes(vectors.texts.document, known)
        p_value = anytime_p_value(signed_rank_p_value(x[known], clusters), number)
        mean, error = float(x[known].mean()), float(standard_error_of_mean(x[known], clusters))
        n_texts, n_documents = int(known.sum()), n_clusters(clusters)
        farther = Estimate.normal(mean, error, n_texts, n_documents=n_documents, unit="nats/text")
        kl = vectors.reported_kl(reference, name)
        looks.append(AlarmLook(number, name, date, kl, farther, p_value, p_value <= level))
    found = DriftAlarm(reference, first, vectors.texts, level, tuple(looks))
    n = n_documents or n_texts
    if found.first_alarm is None and anytime_p_value(signed_rank_p_value(np.ones(n)), len(looks)) > level:
        needed = math.ceil(2 * math.log(2 * len(looks) * (len(looks) + 1) / level))
        what = f"{n} texts or documents are too few for an alarm at look {len(looks)}."
        raise InputError(what, f"Level {level:g} needs {needed}, even where all of them differ.", "Use more texts.")
    return found
