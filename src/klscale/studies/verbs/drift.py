"""Whether two engines, dtypes or days compute the same model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from klscale.errors import InputError, ScoringError, nearest
from klscale.inputs.references import ModelRef, parse_all
from klscale.inputs.texts import TextSet
from klscale.store.store import Store
from klscale.studies import alarm as alarms
from klscale.studies import drift as studies
from klscale.studies.alarm import DriftAlarm
from klscale.studies.changes import LISTED
from klscale.studies.drift import Drift
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.score import score
from klscale.sweep.jobs import Outcome
from klscale.sweep.repeat_noise import noise_floor
from klscale.vectors.vectors import Vectors


@dataclass(frozen=True, eq=False)
class ModelDrift:
    """How far the second of two `vectors` is from the first: `found`. `outcomes` has the status of each model."""

    vectors: Vectors
    found: Drift
    outcomes: tuple[Outcome, ...]

    def __str__(self) -> str:
        it = self.found
        return f"{it.a} to {it.b}: KL {it.kl}; run-to-run noise adds {it.noise:.2g} bits/byte to that by whole texts"


def drift(
    a: str | ModelRef,
    b: str | ModelRef,
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    most: int = LISTED,
    options: Options = Options(),
) -> ModelDrift:
    """KL in bits per byte between the same weights in two engines or dtypes, or a served model on two days, beside the
    run-to-run noise of each; by depth of context; and the `most` positions whose log-likelihood (nats) differs most. A
    model that the store lacks is scored.

    Raises InputError for one model given twice, and for texts or options that cannot be used; ScoringError where either
    could not be scored.

        found = klscale.drift("llamacpp://m.gguf", "http://localhost:8000/v1#m", "my-texts.jsonl").found
        print(found.kl, found.noise, found.spans[0])
    """
    refs = parse_all([a, b])
    if len(refs) != 2:
        what = "Two models are needed, by different references."
        why = "A server is told apart from itself on another day by a label."
        raise InputError(what, why, "klscale drift 'http://HOST/v1?label=monday#M' 'http://HOST/v1?label=friday#M'")
    scored = score(refs, texts, store, options=options)
    if scored.failed:
        raise ScoringError(scored.outcomes)
    for outcome in scored.outcomes:  # of few texts it is not measured beside scoring
        if outcome.entry is not None:
            noise_floor(outcome.entry, scored.texts, scored.store, device=options.device, progress=options.progress)
    vectors = scored.vectors()
    return ModelDrift(vectors, studies.drift(vectors, *vectors.names, most=most), scored.outcomes)


@dataclass(frozen=True, eq=False)
class ServerAlarm:
    """The looks at a server: `found`, from `vectors` of the reference and of the runs in the order of their dates."""

    vectors: Vectors
    found: DriftAlarm

    def __str__(self) -> str:
        it = self.found
        return f"{len(it.looks)} looks, " + (f"first alarm at {it.first_alarm}" if it.first_alarm else "no alarm")


def drift_alarm(
    reference: str | ModelRef,
    runs: str,
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    level: float = 0.05,
    options: Options = Options(),
) -> ServerAlarm:
    """Whether a served model has changed since its first run: a test at each later run of the store, in the order of
    their dates. Without a change the chance of any alarm is at most `level`, however many runs there are. Nothing is
    scored.

    `runs`: the references of the runs, with `*` for any text. The first of them shows what no change looks like. The
    reference may be a run of the same server, and is then no look.

    Raises InputError for fewer than two such runs, a model that the store lacks, and as `studies.alarm.drift_alarm`.

        found = klscale.drift_alarm("http://host/v1?label=day0#m", "http://host/v1?label=*#m", "my-texts.jsonl").found
        print(found.first_alarm, [look.p_value for look in found.looks])
    """
    options = options.at(texts, store)
    place = options.opened()
    chosen, known = options.stored(place), str(ModelRef.parse(str(reference)))
    pattern = re.compile(re.escape(runs).replace(r"\*", ".*"))
    newest = place.newest(chosen.id)
    if known not in newest:
        what = f"{place.location} has no vector of {known} on {chosen.name}."
        raise InputError(what, nearest(known, newest), f"klscale score {known}")
    named = [entry for name, entry in newest.items() if pattern.fullmatch(name) and name != known]
    if len(named) < 2:
        what = f"{place.location} holds {len(named)} runs {runs!r} on {chosen.name}, the reference aside."
        raise InputError(what, "An alarm needs two.", "Score the server under one label more.")
    dates = {str(entry.ref): str(entry.metadata.get("date", "")) for entry in named}
    vectors = place.vectors(chosen, [newest[known], *sorted(named, key=lambda entry: dates[str(entry.ref)])])
    vectors = vectors.subset([known, *(name for name in vectors.names if name != known)])  # a file may be unreadable
    return ServerAlarm(vectors, alarms.drift_alarm(vectors, [dates[name] for name in vectors.names[2:]], level))
