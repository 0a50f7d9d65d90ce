"""Whether two engines, dtypes or days compute the same model."""

from __future__ import annotations

import os
from dataclasses import dataclass

from klscale.errors import InputError, ScoringError
from klscale.inputs.references import ModelRef, parse_all
from klscale.inputs.texts import TextSet
from klscale.store.store import Store
from klscale.studies import drift as studies
from klscale.studies.changes import LISTED
from klscale.studies.drift import Drift
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.score import scored_vectors
from klscale.sweep.jobs import Outcome
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
    vectors, outcomes = scored_vectors(refs, options.at(texts, store))
    if len(vectors) < 2:
        raise ScoringError(outcomes)
    return ModelDrift(vectors, studies.drift(vectors, *vectors.names, most=most), outcomes)
