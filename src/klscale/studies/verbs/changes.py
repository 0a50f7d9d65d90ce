"""What changed most from a model to those that were made from it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from klscale.errors import InputError, ScoringError
from klscale.inputs.references import ModelRef, parse_all
from klscale.inputs.texts import TextSet
from klscale.store.store import Store
from klscale.studies import changes as studies
from klscale.studies.cards import Bench
from klscale.studies.changes import LISTED, Changes
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.score import failures, scored_vectors
from klscale.sweep.jobs import Outcome
from klscale.vectors.vectors import Vectors


@dataclass(frozen=True, eq=False)
class ModelChanges:
    """What changed from the first of `vectors` to each other model: `found`, in their order. `outcomes` has the status
    of each model."""

    vectors: Vectors
    found: tuple[Changes, ...]
    outcomes: tuple[Outcome, ...]

    def __str__(self) -> str:
        lines = [f"{one.base} to {one.variant}: KL {one.kl}, {one.difference} more" for one in self.found]
        return "\n".join([*lines, *failures(self.outcomes)])


def changes(
    base: str | ModelRef,
    variants: Sequence[str | ModelRef],
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    most: int = LISTED,
    exact: bool = False,
    options: Options = Options(),
) -> ModelChanges:
    """What changed most from `base` to each of the `variants` (pruned, distilled, merged, edited models): KL in bits
    per byte and the difference in bits per byte, by domain with standard errors; and the `most` texts and spans whose
    log-likelihood (nats) changed most. Models that the store lacks are scored. `exact`: read these texts again with
    both models, for the exact KL of each next token.

    Raises InputError for fewer than two models, and for texts or options that cannot be used; ScoringError where the
    base or every variant could not be scored.

        for span in klscale.changes("org/model", ["./pruned"], "my-texts.jsonl").found[0].spans:
            print(span.change, span.excerpt)
    """
    refs = parse_all([base, *variants])
    if len(refs) < 2:
        raise InputError("Two different models are needed.", remedy="klscale changes BASE VARIANT...")
    if most < 1:
        raise InputError(f"{most} texts and spans are none.", remedy="--most 10")
    options = options.at(texts, store)
    place = options.opened()
    vectors, outcomes = scored_vectors(refs, replace(options, store=place))
    if len(vectors) < 2 or outcomes[0].entry is None:
        raise ScoringError(outcomes)
    first, *others = vectors.names
    found = [studies.changes(vectors, first, name, most=most) for name in others]
    if exact:
        bench = Bench(vectors.texts, place, **options.scoring("device", "batch_tokens", "progress"))
        entries = {str(one.ref): one.entry for one in outcomes if one.entry is not None}
        for n, one in enumerate(found):
            try:
                read = studies.exact_texts(one, entries[first], entries[one.variant], bench)
                found[n] = replace(one, exact=read)
            except InputError as error:
                options.progress.note(f"No exact KL of {one.variant}: {error.what} {error.why}".rstrip())
    return ModelChanges(vectors, tuple(found), outcomes)
