"""The map of a store's models, which the store keeps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from klscale.display import Displayed
from klscale.errors import InputError, ScoringError
from klscale.inputs.references import ModelRef, parse_all
from klscale.inputs.texts import TextSet
from klscale.store.store import Store
from klscale.studies import maps
from klscale.studies.maps import ModelMap
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.score import failures, score, stored_vectors
from klscale.sweep.jobs import Outcome
from klscale.vectors.vectors import Vectors


@dataclass(frozen=True, eq=False)
class StoreMap(Displayed):
    """The models of a store as points: `map.pca` (K, 3) in root bits per byte and `map.tsne` (K, 2) without a unit, in
    the order of `map.models`. `vectors` are those of the models, and may be more. `outcomes` has the status of each
    added model."""

    store: Store
    vectors: Vectors
    map: ModelMap
    outcomes: tuple[Outcome, ...] = ()

    def __str__(self) -> str:
        shares = ", ".join(f"{share:.0%}" for share in self.map.share)
        first = f"{len(self.map):,} models on {self.vectors.texts.name}; the axes hold {shares} of the variance."
        return "\n".join([first, *self.map.notes, *failures(self.outcomes)])


def map_models(
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    add: Sequence[str | ModelRef] = (),
    anew: bool = False,
    options: Options = Options(),
) -> StoreMap:
    """All models of a store as points: principal components, whose squared distances approximate KL in bits per byte,
    and t-SNE. The store keeps the map, and the next call returns it.

    `add`: score these models and place them on the kept map; no other model moves. `anew`: make the map of all models
    anew, and replace the kept one.

    Raises InputError for a store with fewer than two models on the texts, or without a map to add to. Raises
    ScoringError where none of `add` could be scored.

        found = klscale.map(store="klscale-store")
        print(found.map.models, found.map.pca)
    """
    if add and anew:
        raise InputError(
            "--add and --anew exclude each other.", "--add keeps the place of every model, --anew does not."
        )
    options = options.at(texts, store)
    place, outcomes = options.opened(), tuple[Outcome, ...]()
    options = replace(options, store=place)
    if add:
        outcomes = score(parse_all(add), options=options).outcomes
    added = [str(outcome.ref) for outcome in outcomes if outcome.entry is not None]
    if add and not added:
        raise ScoringError(outcomes)
    vectors = stored_vectors(place, options)
    if added:
        found = maps.extend_map(place, vectors, added, progress=options.progress)
    else:
        found = maps.kept_map(place, vectors, anew=anew, progress=options.progress)
    return StoreMap(place, vectors, found, outcomes)
