"""Score some models where a store lacks their vectors, and find the vectors that it holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from klscale.display import Displayed
from klscale.errors import InputError, ScoringError, counted, printable
from klscale.inputs.references import Model, ModelRef, parse_all
from klscale.inputs.texts import TextSet
from klscale.store.store import Store
from klscale.studies.verbs.options import Options
from klscale.sweep import score as sweeps
from klscale.sweep.cluster import Cluster
from klscale.sweep.jobs import Outcome
from klscale.vectors.vectors import Vectors

SHOWN = 3
"""Largest number of names in a sentence."""


@dataclass(frozen=True, eq=False)
class Scored(Displayed):
    """The outcome of scoring for each of some models on one text set, in order.

    The status of an outcome is `scored`, `present` (the store had it), `missing` (a dry run) or `failed`, with an
    error. `str` has a line for each model.
    """

    store: Store
    texts: TextSet
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The outcomes of models that could not be scored."""
        return tuple(outcome for outcome in self.outcomes if outcome.error is not None)

    def vectors(self, *, layers: bool = False) -> Vectors:
        """Log-likelihood vectors (K, N) in nats of the models that did not fail, by the given names. With `layers`, the
        layers of a model follow it, where it was scored at them."""
        found = [(outcome.entry, outcome.ref) for outcome in self.outcomes if outcome.entry is not None]
        if layers and self.texts.external:  # imported layers are vectors of their own
            models = {ref for _, ref in found}
            newest = {one.ref: one for one in self.store.entries(self.texts.id) if one.ref.layer is not None}
            found += [(one, ref) for ref, one in newest.items() if replace(ref, layer=None) in models]
        return self.store.vectors(self.texts, [entry for entry, _ in found], [ref for _, ref in found], layers=layers)

    def __str__(self) -> str:
        return "\n".join(map(outcome_line, self.outcomes))


def outcome_line(outcome: Outcome) -> str:
    """The outcome of a model, in a line."""
    if outcome.error is not None:
        return f"{outcome.ref}: failed: {outcome.error.what}"
    return f"{outcome.ref}: {outcome.status}" + (f", {outcome.seconds:.1f} s" if outcome.status == "scored" else "")


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each model that failed: the end of a result in print."""
    return [outcome_line(outcome) for outcome in outcomes if outcome.error is not None]


def score(
    models: Sequence[str | ModelRef | Model],
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    layers: bool = False,
    dry_run: bool = False,
    ray: str | None = None,
    options: Options = Options(),
) -> Scored:
    """The outcome of each model. Models whose vector the store lacks are scored on the texts, and the store keeps their
    log-likelihoods (nats).

    `models`: references (`NAME[@REVISION][+QUANT][%DTYPE]`), or models with attributes from `read_suite`. A directory
    of `checkpoint-*`, or `NAME@step*`, names every checkpoint of a run; `DIR/*.gguf` names every GGUF file. `layers`:
    score every layer too, through the logit lens, in the same pass. `dry_run`: score nothing; the outcomes have what
    would be scored, and the bytes that would be fetched. `ray`: the address of a Ray cluster that scores them; `local`
    is this machine, with all of its GPUs.

    A model that fails has its error in its outcome; the others are scored. An interrupted call keeps its finished
    texts, also within a model. Raises InputError for texts or options that cannot be used, and StorageError where the
    store cannot be written.

        scored = klscale.score(["./runs/a/checkpoint-500", "gpt2+nf4"], "my-texts.jsonl", "klscale-store")
        print(scored, scored.vectors().kl()[0, 1])
    """
    options = options.at(texts, store)
    place = options.opened()
    chosen = options.chosen(place)
    wanted = [one for model in models for one in ([model] if isinstance(model, Model) else parse_all([model]))]
    if options.limit is not None and options.limit < len(chosen) and not chosen.external:
        options.progress.note(
            f"Only {options.limit:,} of {len(chosen):,} texts are scored, drawn at random. "
            "The same without a limit adds the rest."
        )
    how = {"layers": layers, "first": options.limit, **options.scoring()}
    cluster = None if ray is None else Cluster(ray, chosen, place, how)
    outcomes = sweeps.score(wanted, chosen, place, dry_run=dry_run, elsewhere=cluster, **how)
    return Scored(place, chosen, tuple(outcomes))


def scored_vectors(
    models: Sequence[str | ModelRef], options: Options, *, layers: bool = False
) -> tuple[Vectors, tuple[Outcome, ...]]:
    """The vectors of these models, scored where the store lacks them, and the outcome of each. Raises ScoringError
    where none could be scored, and InputError where none is given."""
    if not models:
        raise InputError("No model is given.", remedy="klscale score REF...")
    found = score(models, layers=layers, options=options)
    if len(found.failed) == len(found.outcomes):
        raise ScoringError(found.outcomes)
    return found.vectors(layers=layers), found.outcomes


def stored_vectors(store: Store, options: Options, *, layers: bool = False, holding: str | None = None) -> Vectors:
    """All vectors of a text set in the store with the most frequent convention; vectors that are left out are noted.
    Raises InputError where there are fewer than two, and, before any is read, where none is of the model `holding`."""
    note, texts = options.progress.note, options.stored(store)
    if holding is not None:
        store.newest_of(holding, texts)
    vectors, left_out = store.vectors(texts, layers=layers).of_one_convention()
    if left_out:
        names = ", ".join(left_out[:SHOWN]) + (", ..." if len(left_out) > SHOWN else "")
        note(f"Left out, scored by another convention: {printable(names)}.")
    if len(vectors) < 2:
        raise InputError(
            f"{store.location} holds {counted(len(vectors), 'model')} on {vectors.texts.name}.",
            "KL needs two.",
            "klscale score REF...",
        )
    if some := int((vectors.n_scored < len(vectors.texts)).sum()):
        fewest = f"one {vectors.n_scored.min():,} of {len(vectors.texts):,}"
        note(
            f"Not all texts were scored with {some:,} of {len(vectors):,} vectors, with {fewest}. A pair uses the "
            "common texts of both models, a map those of all. `klscale score REF` adds the missing texts."
        )
    return vectors
