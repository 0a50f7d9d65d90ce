"""How far models differ in what prompts add to their responses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from klscale.display import Displayed
from klscale.errors import InputError, ScoringError, counted, printable
from klscale.inputs.conversations import WITH_TEMPLATE
from klscale.inputs.references import ModelRef, parse_all
from klscale.inputs.texts import TextSet
from klscale.store.store import Entry, Store
from klscale.studies.maps import ModelMap
from klscale.studies.pmi import PMIPair, PMIVectors
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.score import SHOWN, failures, score, stored_vectors
from klscale.sweep.jobs import Outcome


@dataclass(frozen=True, eq=False)
class PMIComparison(Displayed):
    """PMI vectors of some models, and each of the `pairs` that were asked for. `outcomes` has the status of each model
    that was asked for: first given the prompts, then of those that were scored so, on the responses alone."""

    vectors: PMIVectors
    pairs: tuple[PMIPair, ...]
    outcomes: tuple[Outcome, ...] = ()

    def __str__(self) -> str:
        lines = [f"{name}: mean PMI {self.vectors.mean(name)}" for name in self.vectors.given.names]
        lines += [f"{it.a} and {it.b}: squared PMI distance {it.distance}, no KL" for it in self.pairs]
        return "\n".join([*lines, *failures(self.outcomes)])


@dataclass(frozen=True, eq=False)
class PMIMap(Displayed):
    """PMI vectors of models, and these as points: `map.pca` (K, 3) in root bits per byte and `map.tsne` (K, 2) without
    a unit, in the order of `map.models`."""

    vectors: PMIVectors
    map: ModelMap

    def __str__(self) -> str:
        shares = ", ".join(f"{share:.0%}" for share in self.map.share)
        first = f"{len(self.map):,} models by PMI vectors, no KL; the axes hold {shares} of the variance."
        return "\n".join([first, *self.map.notes])


def pmi(
    models: Sequence[str | ModelRef] = (),
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    reference: str | ModelRef | None = None,
    options: Options = Options(),
) -> PMIComparison:
    """PMI vectors of models on prompts and responses, and their squared distances in bits per byte (arXiv 2603.18593).
    These are no KL. Models that the store lacks are scored, given the prompts and on the responses alone.

    Without `models`, all of the store that are scored both ways. All pairs are compared; with a `reference`, only the
    pairs with it.

    A model that fails has its error in `outcomes`. Raises ScoringError where fewer than two could be scored, or the
    reference could not. Raises InputError for texts without prompts, fewer than two models, and a limit.

        found = klscale.pmi(["org/base", "org/chat"], "chat.jsonl", options=klscale.Options(template="none"))
        print(found.pairs[0].distance, found.vectors.values)
    """
    options = options.at(texts, store)
    place = options.opened()
    chosen = _with_prompts(place, options)
    refs = parse_all([*((reference,) if reference is not None else ()), *models])
    if refs:
        vectors, outcomes = _scored(refs, chosen, options)
        if len(vectors.given) < 2 or (reference is not None and vectors.given.names[0] != str(refs[0])):
            raise ScoringError(outcomes)
    else:
        vectors, outcomes = _stored(place, chosen, options), ()
    names = vectors.given.names
    pairs = combinations(names, 2) if reference is None else ((names[0], name) for name in names[1:])
    return PMIComparison(vectors, tuple(vectors.pairs(pairs)), outcomes)


def pmi_map(
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    options: Options = Options(),
) -> PMIMap:
    """All models of a store that are scored given the prompts and on the responses alone, as points by their PMI
    vectors: principal components in root bits per byte, and t-SNE (arXiv 2603.18593). Distances are no KL. The map is
    not kept.

    Raises InputError for texts without prompts, fewer than two models, and a limit.

        found = klscale.pmi_map(store="klscale-store")
        print(found.map.models, found.map.pca)
    """
    options = options.at(texts, store)
    place = options.opened()
    vectors = _stored(place, _with_prompts(place, options), options)
    return PMIMap(vectors, vectors.map())


def _with_prompts(place: Store, options: Options) -> TextSet:
    """The texts that are chosen, which have prompts."""
    if options.limit is not None:
        why = "The first texts of a set and of its responses alone are other texts."
        raise InputError("PMI and a limit exclude each other.", why, "Leave the limit out.")
    chosen = options.stored(place)
    if not any(chosen.prompts or ()):
        why = "PMI is log p(response | prompt) - log p(response)."
        raise InputError(f"{chosen.name} has no prompts.", why, "docs/conversations.md  says how to write them.")
    return chosen


def _scored(refs: Sequence[ModelRef], texts: TextSet, options: Options) -> tuple[PMIVectors, tuple[Outcome, ...]]:
    """The PMI vectors of the models that could be scored both ways, and the outcomes."""
    if len(refs) < 2:
        raise InputError("Two different models are needed.", remedy="klscale compare REF REF... --pmi")
    given = score(refs, texts, options=options)
    there = [outcome.ref for outcome in given.outcomes if outcome.entry is not None]
    if len(there) < 2:
        raise ScoringError(given.outcomes)
    alone = score(there, texts.responses_alone(), options=options)
    both = [str(outcome.ref) for outcome in alone.outcomes if outcome.entry is not None]
    outcomes = given.outcomes + alone.outcomes
    if len(both) < 2:
        raise ScoringError(outcomes)
    return PMIVectors(given.vectors().subset(both), alone.vectors().subset(both)), outcomes


def _stored(place: Store, texts: TextSet, options: Options) -> PMIVectors:
    """The PMI vectors of all models of a store that are scored both ways, with the same files. Others are noted."""
    given = stored_vectors(place, options)
    responses = texts.responses_alone()
    alone = {_what(entry): entry for entry in place.entries(responses.id)}
    newest = place.newest(texts.id)
    both = [name for name in given.names if _what(newest[name]) in alone]
    if lacking := [name for name in given.names if name not in both]:
        names = ", ".join(lacking[:SHOWN]) + (", ..." if len(lacking) > SHOWN else "")
        options.progress.note(f"Left out, not scored on the responses alone: {printable(names)}.")
    if len(both) < 2:
        what = f"{place.location} holds {counted(len(both), 'model')} on the responses of {texts.name} alone."
        raise InputError(what, "PMI of two models needs both.", "klscale compare REF REF... --pmi  scores them.")
    return PMIVectors(given.subset(both), place.vectors(responses, [alone[_what(newest[name])] for name in both]))


def _what(entry: Entry) -> tuple[object, ...]:
    """The reference and the files of a model, without a template: responses alone need none."""
    content = str(entry.metadata.get("content")).partition(WITH_TEMPLATE)[0]
    return str(entry.ref), content, entry.metadata.get("source")
