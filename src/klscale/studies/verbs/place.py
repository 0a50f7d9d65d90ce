"""Where a model stands among those of a store."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from klscale.display import Displayed
from klscale.errors import InputError
from klscale.inputs.references import ModelRef, parse_all
from klscale.inputs.texts import TextSet
from klscale.science.reported import ReportedKL
from klscale.store.store import Store
from klscale.studies import scales
from klscale.studies.placing import NEW, Placement, place_model
from klscale.studies.scales import Setting
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.scale import scale_beside
from klscale.studies.verbs.score import scored_vectors, stored_vectors


@dataclass(frozen=True, eq=False)
class Placed(Displayed):
    """Where a model stands among the models of a store (`placement`), and the scale that the store `measured`."""

    placement: Placement
    measured: tuple[Setting, ...]

    @property
    def nearest_kl(self) -> ReportedKL:
        """KL to the nearest model, in bits per byte."""
        return self.placement.neighbours[0].kl

    @property
    def on_scale(self) -> str | None:
        """The place of that KL on the scale, in words; None where no scale is known for these texts."""
        vectors, pair = self.placement.vectors, (self.placement.model, self.placement.neighbours[0].model)
        setting = scales.setting_between(vectors, *pair)
        return scales.place(self.nearest_kl, vectors.texts, self.measured, pair, setting)

    def __str__(self) -> str:
        found = self.placement
        lines = [f"{found.model} and {one.model}: KL {one.kl}" for one in found.neighbours]
        for grouping in found.groupings:
            group, share = next(iter(grouping.probability.items()))
            lines.append(
                f"{grouping.attribute}: {'a new one' if group == NEW else group}, with probability {share:.2f}"
            )
        return "\n".join([*lines, found.relation.sentence])


def place(
    model: str | ModelRef,
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    among: Store | str | os.PathLike[str] | None = None,
    options: Options = Options(),
) -> Placed:
    """The place of a model among those of a store: the nearest with KL in bits per byte and standard errors, its family
    with a probability, what it derives from, how far it is from all. A model that the store lacks is scored.

    `among`: the models of another store on the same texts, instead of those of `store`.

    Raises ScoringError where the model cannot be scored, and InputError for fewer than two other models, a pattern that
    stands for several models, and texts or options that cannot be used.

        placed = klscale.place("runs/a/checkpoint-500", store="klscale-store")
        print(placed.placement.relation.sentence)
    """
    options = options.at(texts, store)
    options = replace(options, store=options.opened())
    others = options if among is None else replace(options, store=among)
    if options.texts is None:
        options = others = replace(options, texts=others.stored(others.opened()))
        others = replace(others, store=others.opened() if among is None else among)
    scored, _ = scored_vectors(parse_all([model]), options)
    if len(scored) != 1:
        raise InputError(f"{model} stands for {len(scored):,} models.", remedy="Place one at a time.")
    (name,) = scored.names
    known = stored_vectors(others.opened(), replace(others, texts=scored.texts))
    if name in known.names:
        known = known.subset([ref for ref, other in zip(known.models, known.names, strict=True) if other != name])
    measured = scale_beside(others.opened(), scored.texts, options.progress)
    return Placed(place_model(scored.joined(known), name), measured)
