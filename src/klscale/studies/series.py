"""Models in order of a numeric attribute: how far a learning rate, an amount of data or a temperature moves them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from klscale.errors import InputError
from klscale.inputs.attributes import is_free
from klscale.science.estimates import Estimate
from klscale.science.reported import ReportedKL
from klscale.vectors.vectors import Vectors

TELLING_APART = ("seed", "family", "type", "parameters", "parent", "dtype")
"""Attributes that may tell models of one value apart, the first first; free ones follow."""
SHOWN = 3
"""Largest number of models that an error names."""


@dataclass(frozen=True)
class Point:
    """One model of a series at its `value`: bits per byte, and KL in bits per byte from the first, the previous and the
    last model; None where there is no other model."""

    model: str
    value: float
    bits_per_byte: Estimate
    kl_from_first: ReportedKL | None
    kl_from_previous: ReportedKL | None
    kl_from_last: ReportedKL | None


@dataclass(frozen=True, eq=False)
class Series:
    """T models in order of their `values` (T,) of an attribute, which all differ. `name` is what these models share and
    those of other series do not (`seed 1`); empty for the only series."""

    name: str
    values: tuple[float, ...]
    vectors: Vectors

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Each model, in order."""
        names, last = self.vectors.names, len(self) - 1

        def between(a: int, b: int) -> ReportedKL | None:
            return self.vectors.reported_kl(names[a], names[b]) if a != b and a >= 0 else None

        return tuple(
            Point(
                name, value, self.vectors.bits_per_byte(name), between(0, t), between(t - 1, t), between(last, t)
            )
            for t, (name, value) in enumerate(zip(names, self.values, strict=True))
        )  # fmt: skip


def in_order(vectors: Vectors, attribute: str) -> list[Series]:
    """The models that have this attribute, in the order of its values; layers are left out.

    Models with one value are told apart by the first attribute that does so for all of them, mostly `seed`: then each
    of its values has a series. Words that are numbers count as such (YAML reads `3e-4` as a word). Raises InputError
    for a value that is no finite number, for fewer than two models, for models of one value that no attribute tells
    apart, and for vectors that were made by different conventions.
    """
    vectors.require_one_convention()
    known = {
        place: own
        for place, (ref, own) in enumerate(zip(vectors.models, vectors.known, strict=True))
        if attribute in own and ref.layer is None
    }
    values = {place: number_of_value(own[attribute]) for place, own in known.items()}
    if wrong := [place for place, value in values.items() if math.isnan(value)]:
        listed = ", ".join(f"{vectors.names[place]} ({known[place][attribute]!r:.40})" for place in wrong[:SHOWN])
        what = f"{attribute} is no finite number of {listed}{', ...' if len(wrong) > SHOWN else ''}."
        raise InputError(what, remedy="Choose the others by name, or correct it in --attributes.")
    if len(values) < 2:
        have = f"Only {vectors.names[next(iter(values))]}" if values else "No model"
        raise InputError(f"{have} has {attribute}.", "A trajectory needs two models.", "Give it to more: --attributes")
    return [_series(vectors, name, {place: values[place] for place in places})
            for name, places in _groups(vectors, attribute, values, known).items()]  # fmt: skip


def number_of_value(value: Any) -> float:
    """The value of an attribute as a number, NaN where it is none, or not finite."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _series(vectors: Vectors, name: str, values: Mapping[int, float]) -> Series:
    places = sorted(values, key=lambda place: values[place])
    chosen = vectors.subset([vectors.models[place] for place in places])
    return Series(name, tuple(values[place] for place in places), chosen)


def _groups(
    vectors: Vectors, attribute: str, values: Mapping[int, float], known: Mapping[int, Mapping[str, Any]]
) -> dict[str, list[int]]:
    """The models of each series, by its name."""
    if not (tie := _tied(values.values())):
        return {"": [*values]}
    free = dict.fromkeys(name for own in known.values() for name in own if is_free(name))
    for telling in (*TELLING_APART, *free):
        groups: dict[str, list[int]] = {}
        if telling == attribute or not all(telling in own for own in known.values()):
            continue
        for place, own in known.items():
            groups.setdefault(f"{telling} {own[telling]}", []).append(place)
        if all(len(places) > 1 and not _tied(values[place] for place in places) for places in groups.values()):
            return dict(sorted(groups.items(), key=lambda group: _order(known[group[1][0]][telling])))
    a, b, *_ = (vectors.names[place] for place, value in values.items() if value == tie[0])
    raise InputError(
        f"{a} and {b} have the same {attribute}, {tie[0]:g}.",
        "No other attribute tells all such models apart.",
        f"Choose by name: klscale trajectory PATTERN --by {attribute}; or give each a seed in --attributes.",
    )


def _tied(values: Iterable[float]) -> list[float]:
    """The values that are there more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def _order(value: Any) -> tuple[float, str]:
    number = number_of_value(value)
    return (math.inf if math.isnan(number) else number, str(value))
