"""What `klscale place` shows: the nearest models, the family, what the model derives from, how far off it is."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from klscale.show import cautions
from klscale.show.cautions import Around, Measured
from klscale.show.columns import BITS, HEAD, Column, estimate, number, record, table, unit, within
from klscale.show.pairs import KL_COLUMNS, print_estimators
from klscale.show.terminal import describe_texts, out, plain, say
from klscale.studies.placing import NEW, Grouping, Neighbour
from klscale.studies.verbs.place import Placed


@dataclass(frozen=True)
class _Near:
    """A neighbour with what its cautions need."""

    found: Neighbour
    measured: Measured


NEIGHBOUR = (
    Column("model", "The other model.", title="model", value=lambda it: it.found.model, words=True),
    *within(KL_COLUMNS, lambda it: it.measured),
    estimate(
        "difference",
        "Bits per byte of the placed model less those of the other one.",
        value=lambda it: it.found.difference,
        title="bits/byte less its own",
        cell=lambda it: number(it.found.difference, sign=True),
    ),
)
"""Of a `_Near`."""

GROUPING = (
    Column("attribute", "What is told: `family`, or `type`."),
    Column("probability", "Probability of each group; of one without another model at the empty name."),
    Column("n_models", "Models that were left out in turn.", "models"),
    Column("is_told", "Whether KL tells more of the group than the groups' shares do; else these are shown."),
    Column("right", "Share of these models whose group was the most probable one.", "share", lambda it: it.right.value),
    Column("right_standard_error", "Its standard error over models.", "share", lambda it: it.right.standard_error),
    Column("claimed", "Mean probability of the group that was the most probable one.", "share"),
    Column("score", "Mean log2 of the probability of the right group, by KL.", "bits"),
    Column("score_of_shares", "The same by the groups' shares of the models.", "bits"),
)
"""Of a `Grouping`."""

RELATION = (
    Column("kind", "`near copy`, `derived`, `far from all`, `independent` or `not known`."),
    Column("of", "The nearest model: of the name that is nearest by whole texts, the nearest by the reported KL."),
    Column("kl", "KL to that name, by whole texts.", BITS),
    Column("typical_nearest_kl", "Median KL of an independent model to its nearest.", BITS, lambda it: it.typical),
    estimate("lead", "KL to the nearest model of another name less KL to the nearest."),
    estimate("branch", "How far from the nearest the first other model branches off from the path to the model."),
    Column("n_independent", "Other models without a known parent.", "models"),
    Column("as_near", "Share of one more independent model than there are that is as near to its nearest.", "share"),
    Column("as_derived", "Share of these that branch off as near to their nearest.", "share"),
    Column("as_far", "Share of these that are as far from their nearest.", "share"),
    Column("sentence", "The same in words."),
)
"""Of a `Relation`."""

PLACEMENT = (
    Column("model", "The model that is placed.", value=lambda it: it.found.model),
    *HEAD,
    unit(),
    Column("nearest", "The nearest models, nearest first.", value=lambda it: it.near, within=NEIGHBOUR, many=True),
    Column("groups", "Which group it belongs to.", value=lambda it: it.found.groupings, within=GROUPING, many=True),
    Column("relation", "What it derives from.", value=lambda it: it.found.relation, within=RELATION),
    estimate(
        "unexplained",
        "Squared distance from the nearest point that combinations of the others reach.",
        value=lambda it: it.found.unexplained,
    ),
    Column("on_scale", "The place of the nearest's KL on the scale, in words; null: no scale is known."),
)


def _near(placed: Placed) -> list[_Near]:
    made = []
    for one in placed.placement.neighbours:
        pair = placed.placement.vectors.subset([placed.placement.model, one.model])
        made.append(_Near(one, Around(pair).pair(pair.names[0], pair.names[1], one.kl)))
    return made


def placement_record(placed: Placed) -> dict[str, Any]:
    """The place of a model."""
    found = placed.placement
    return record(
        PLACEMENT,
        SimpleNamespace(found=found, near=_near(placed), texts=found.vectors.texts, on_scale=placed.on_scale),
    )


def print_placement(placed: Placed) -> None:
    """The nearest models as a table; then a sentence each: family, what it derives from, how far off it is."""
    found, near = placed.placement, _near(placed)
    out.print(describe_texts(found.vectors.texts))
    shown = [
        column for column in NEIGHBOUR if column.title in ("model", "KL ± SE, bits/byte", "by", NEIGHBOUR[-1].title)
    ]
    out.print(table(shown, near, f"\nNearest to {plain(found.model)}, among {len(found.vectors) - 1:,} models"))
    print_estimators(one.measured for one in near)
    cautions.print_footnotes(found.vectors.texts, (one.measured for one in near))
    out.print()
    if placed.on_scale:
        say(f"KL to the nearest: {plain(placed.on_scale)}.")
    say(plain(found.relation.sentence))
    say(
        f"No combination of the others explains {found.unexplained} of its squared distance. By whole texts, its "
        f"nearest is at {found.relation.kl:.2g}; an independent model's at {found.relation.typical:.2g} (median)."
    )
    if found.relation.kind == "far from all" and found.groupings:
        say("None of the models that were left out is as far off: what follows is not calibrated for such a model.")
    for grouping in found.groupings:
        say(_sentence(grouping))


def _sentence(grouping: Grouping) -> str:
    first = list(grouping.probability.items())[:3]
    listed = ", ".join(f"{plain(group) if group != NEW else 'none of these'} {share:.0%}" for group, share in first)
    held_out = f"{grouping.n_models} models, each left out"
    if not grouping.is_told:
        return f"KL does not tell the {grouping.attribute} here ({held_out}). By the shares of the groups: {listed}."
    right = f"{grouping.right.value:.0%} ± {grouping.right.standard_error:.0%}"
    return (
        f"Its {grouping.attribute}: {listed}. On {held_out}: right in {right}, with a mean probability of "
        f"{grouping.claimed:.0%}."
    )
