"""Trajectories along a numeric attribute of the models of a store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from klscale.display import Displayed
from klscale.errors import InputError, nearest
from klscale.inputs.references import is_named_like
from klscale.inputs.texts import TextSet
from klscale.store.store import Store
from klscale.studies.series import SHOWN, Series, in_order
from klscale.studies.verbs.options import Options


@dataclass(frozen=True, eq=False)
class AttributeTrajectories(Displayed):
    """Models of a store in the order of a numeric `attribute`: one of the `series`, or one for each seed."""

    attribute: str
    texts: TextSet
    series: tuple[Series, ...]

    def __str__(self) -> str:
        return "\n".join(
            f"{one.name}{one.name and ': '}{self.attribute} {point.value:g}: {point.model}, {point.bits_per_byte}"
            + (f", KL from the first {point.kl_from_first}" if point.kl_from_first else "")
            for one in self.series
            for point in one.points
        )


def trajectory_by(
    attribute: str,
    models: Sequence[str] = (),
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    options: Options = Options(),
) -> AttributeTrajectories:
    """Models of a store in the order of a numeric attribute (learning rate, data, temperature): bits per byte, and KL
    in bits per byte with standard errors from the first, the previous and the last.

    `models`: only those whose name holds one of these patterns (`*` stands for any text); by default all that have the
    attribute. Models with one value are told apart by their seed, or another attribute: each has a series then.

    Raises InputError for an attribute that no model has, values that are no finite numbers, fewer than two models, and
    models with one value that nothing tells apart.

        found = klscale.trajectory_by("learning_rate", ["sweep/*"], store="klscale-store")
        print(found.series[0].values, found.series[0].points[1].kl_from_first)
    """
    options = options.at(texts, store)
    place = options.opened()
    chosen = options.stored(place)
    newest = {name: entry for name, entry in place.newest(chosen.id).items() if entry.ref.layer is None}
    entries = [entry for name, entry in newest.items() if not models or is_named_like(name, models)]
    if not entries:
        what = f"{place.location} holds no model like {models[0]!r}." if models else f"No model is on {chosen.name}."
        raise InputError(what, remedy=nearest(models[0], newest) if models else "klscale ls")
    known = {name for entry in entries for name in entry.metadata["attributes"]}
    if attribute not in known:
        what = f"None of {len(entries):,} models on {chosen.name} has an attribute {attribute!r}."
        raise InputError(what, nearest(attribute, known), "klscale import FILE --attributes FILE  gives attributes.")
    have = [entry for entry in entries if entry.metadata["attributes"].get(attribute) is not None]
    without = [str(entry.ref) for entry in entries if entry.metadata["attributes"].get(attribute) is None]
    if models and without:
        more = ", ..." if len(without) > SHOWN else ""
        options.progress.note(f"Left out, without {attribute}: {', '.join(without[:SHOWN])}{more}")
    return AttributeTrajectories(attribute, chosen, tuple(in_order(place.vectors(chosen, have), attribute)))
