"""What `klscale trajectory --by` shows: models in the order of a numeric attribute, and KL along it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from klscale.show import cautions, files
from klscale.show.cautions import Around, Measured
from klscale.show.columns import HEAD, Column, estimate, flat, record, table, unit
from klscale.show.pairs import kl, print_units
from klscale.show.terminal import describe_texts, out, plain
from klscale.studies.series import Point, Series
from klscale.studies.verbs.trajectory_by import AttributeTrajectories

ROWS, FEW_ROWS = 200, 15
"""Largest number of models in the terminal, with --all and without; of more, some of each series are left out."""


@dataclass(frozen=True)
class _Row:
    """A model of a series, with its KLs."""

    series: str
    point: Point
    from_previous: Measured | None
    from_first: Measured | None
    from_last: Measured | None

    @property
    def measured(self) -> list[Measured]:
        """The KLs that are known."""
        return [one for one in (self.from_previous, self.from_first, self.from_last) if one is not None]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


VALUE = Column("value", "Its value of the attribute.", "", lambda it: it.point.value, "value",
               lambda it: _number(it.point.value))  # fmt: skip
POINT = (
    Column("series", "What tells its series from the others, as `seed 1`; null: there is one.", "",
           lambda it: it.series or None, "series", lambda it: plain(it.series), words=True),
    VALUE,
    Column("model", "The model.", "", lambda it: it.point.model, "model", lambda it: plain(it.point.model), words=True,
           importance=0),
    estimate(
        "bits_per_byte", "How well it predicts the texts.", value=lambda it: it.point.bits_per_byte, title="bits/byte"
    ),
    kl("kl_from_previous", "KL from the model before.", lambda it: it.from_previous, title="KL from previous"),
    kl("kl_from_first", "KL from the first model of the series.", lambda it: it.from_first, title="from first"),
    kl("kl_from_last", "KL from the last model of the series.", lambda it: it.from_last, title="from last"),
)  # fmt: skip
"""Of a `_Row`."""
BY = Column("", title="by", cell=lambda it: ", ".join({one.kl.estimator: None for one in it.measured}), words=True,
            importance=2)  # fmt: skip
"""The same: what its KLs are by."""
SERIES = (
    *HEAD,
    unit(),
    Column("attribute", "The attribute that orders the models."),
    Column("models", "Each model, series by series, in the order of its value.", value=lambda it: _rows(it),
           within=POINT, many=True),
)  # fmt: skip
"""Of `AttributeTrajectories`."""


def _rows(found: AttributeTrajectories) -> list[_Row]:
    return [row for one in found.series for row in _rows_of(one)]


def _rows_of(one: Series) -> list[_Row]:
    around, names = Around(one.vectors), one.vectors.names

    def measured(point: Point, t: int, kl_of: Callable[[Point], Any]) -> Measured | None:
        return None if (found := kl_of(point)) is None else around.pair(point.model, names[t], found)

    return [
        _Row(
            one.name,
            point,
            measured(point, t - 1, lambda it: it.kl_from_previous),
            measured(point, 0, lambda it: it.kl_from_first),
            measured(point, -1, lambda it: it.kl_from_last),
        )
        for t, point in enumerate(one.points)
    ]


def series_record(found: AttributeTrajectories) -> dict[str, Any]:
    """All models."""
    return record(SERIES, found)


def save_series(found: AttributeTrajectories, file: Path) -> None:
    """Write a table with a row for each model, or the picture, by the file's ending."""
    from klscale.show.pictures import kl_along_attribute

    files.save(
        file,
        lambda: [{"attribute": found.attribute, **flat(POINT, row)} for row in _rows(found)],
        lambda: kl_along_attribute(found.series, found.attribute),
    )


def print_series(found: AttributeTrajectories, *, whole: bool = False) -> None:
    """The models in a table; a few of many, unless `whole`."""
    name, most = plain(found.attribute), max(2, (ROWS if whole else FEW_ROWS) // len(found.series))
    shown = [row for one in found.series for row in _some(_rows_of(one), most)]
    kls = [measured for row in shown for measured in row.measured]
    values = [value for one in found.series for value in one.values]
    out.print(describe_texts(found.texts))
    title = f"\n{name}: {len(values):,} models, {_number(min(values))} to {_number(max(values))}"
    columns = [replace(column, title=name) if column is VALUE else column for column in POINT]
    if len({measured.kl.estimator for measured in kls}) > 1:
        columns.append(BY)
    out.print(table(columns, shown, title))
    if len(shown) < len(values):
        more = "--json, --out FILE.csv" if whole else "--all, --json, --out FILE.csv"
        out.print(f"{len(shown)} of {len(values):,} models are shown; more: {more}", style="dim")
    print_units(kls)
    cautions.print_footnotes(found.texts, kls)


def _some(rows: list[_Row], most: int) -> list[_Row]:
    """At most so many rows, the first and the last among them."""
    return [rows[place] for place in np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int)]
