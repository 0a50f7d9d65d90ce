"""A result declares its columns once: what a key holds, and how a person sees it. Terminal, JSON and files take them
from there.

A column is of a *source*, the object that one row is about. `record` makes the JSON of a source, `table` the rows of
the terminal, `flat` a row of a CSV or Parquet file. `arrays` makes all rows at once, of a source of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from rich.text import Text

from klscale.show.tables import Shown, Table
from klscale.show.terminal import for_json, plain

BITS = "bits/byte"


@dataclass(frozen=True)
class Column:
    """One column of a result.

    `key` names it in JSON and in files; without a key it is for the terminal alone. `meaning` is one sentence for the
    documentation. `value` takes it from a source, by default the attribute `key`. `title` heads it in the terminal; a
    column without a title is not printed. `cell` prints it, by default `printed` its value. Columns of `words` stand to
    the left and sort as words; the others stand to the right and sort by value. Where a line of the terminal is short,
    columns of `importance` 0 are left out first, then those of 1, each time the last; those of 2 stay. `within` are the
    columns of a nested record; of a list, or a mapping by name, of such records where there are `many`.
    """

    key: str
    meaning: str = ""
    unit: str = ""
    value: Callable[[Any], Any] | None = None
    title: str = ""
    cell: Callable[[Any], str] | None = None
    words: bool = False
    within: tuple[Column, ...] = ()
    many: bool = False
    importance: int = 1

    def raw(self, source: Any) -> Any:
        """The value as the source has it."""
        return getattr(source, self.key) if self.value is None else self.value(source)

    def of(self, source: Any) -> Any:
        """The value for JSON."""
        value = self.raw(source)
        if not self.within or value is None:
            return for_json(value)
        if not self.many:
            return record(self.within, value)
        if isinstance(value, Mapping):
            return {str(name): record(self.within, one) for name, one in value.items()}
        return [record(self.within, one) for one in value]

    def printed(self, source: Any) -> str:
        """The value for a person."""
        return printed(self.raw(source)) if self.cell is None else self.cell(source)


def printed(value: Any) -> str:
    """Numbers to three digits, estimates as value ± standard error, nothing for what is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if hasattr(value, "standard_error"):
        return number(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return plain(value)
    return f"{value:,}" if isinstance(value, Integral) else f"{float(value):.3g}"


def number(estimate: Any, *, sign: bool = False) -> str:
    """Value ± standard error, where the column names the unit; with a plus `sign` where it is a difference."""
    from klscale.science.estimates import format_estimate

    return format_estimate(estimate.value, estimate.standard_error, sign=sign)


def percent(share: Any) -> str:
    """A share ± its standard error in percent."""
    from klscale.science.estimates import format_estimate

    return f"{format_estimate(100 * share.value, 100 * share.standard_error)} %"


def interval(estimate: Any) -> str:
    """The 95 % interval of an estimate; nothing where it is not known."""
    low, high = estimate.interval
    return "" if math.isnan(low) else f"{low:.3g} to {high:.3g}"


# ------------------------------------------------------------------------------------------------------- three outputs


def record(columns: Iterable[Column], source: Any) -> dict[str, Any]:
    """The JSON of one source."""
    return {column.key: column.of(source) for column in columns if column.key}


def records(columns: Sequence[Column], sources: Iterable[Any]) -> list[dict[str, Any]]:
    """The JSON of each source."""
    return [record(columns, source) for source in sources]


def arrays(columns: Iterable[Column], source: Any) -> dict[str, Any]:
    """Every column of a source whose attributes are arrays: an array over rows, or one value for all of them."""
    return {column.key: column.raw(source) for column in columns if column.key}


def table(columns: Iterable[Column], sources: Iterable[Any], title: str | None = None) -> Table:
    """The columns with a title, a row for each source; without those that are empty in every row."""
    rows = list(sources)
    shown = [
        Shown(_text(column.title), [_text(column.printed(row)) for row in rows], column.words, column.importance)
        for column in columns
        if column.title
    ]
    return Table([column for column in shown if any(column.cells) or not rows], title)


def _text(cell: str) -> str:
    return Text.from_markup(cell).plain if any(mark in cell for mark in "[\\:") else cell


def flat(columns: Iterable[Column], source: Any) -> dict[str, Any]:
    """One row of a CSV or Parquet file. A nested record is spread, with the name of its column before its keys; lists
    are joined by a space. Units and lists of records are left out. Without a source all values are null."""
    row: dict[str, Any] = {}
    for column in columns:
        if not column.key or column.key == "unit" or column.many:
            continue
        value = None if source is None else column.raw(source)
        if column.within:
            row |= {nested(column.key, key): one for key, one in flat(column.within, value).items()}
        else:
            simple = value if isinstance(value, float) else for_json(value)
            row[column.key] = (" ".join(map(str, simple)) or None) if isinstance(simple, list) else simple
    return row


def nested(parent: str, key: str) -> str:
    """The name of a nested value in a file: `kl_from_first`, `kl_from_first_standard_error`."""
    return parent if key in ("kl", "value") else f"{parent}_{key}"


# ---------------------------------------------------------------------------------------------- columns of many results


def within(columns: Iterable[Column], part: Callable[[Any], Any]) -> tuple[Column, ...]:
    """The same columns of a part of a source; null where a source lacks it."""

    def moved(column: Column) -> Column:
        return replace(
            column,
            value=lambda source: None if (found := part(source)) is None else column.raw(found),
            cell=lambda source: "" if (found := part(source)) is None else column.printed(found),
        )

    return tuple(map(moved, columns))


def lines(*titles: str, words: bool = True) -> list[Column]:
    """Columns of rows that are tuples of cells, for the terminal alone; the first in `words`."""

    def column(n: int, title: str) -> Column:
        return Column("", title=title, cell=lambda line: str(line[n]), words=words and n == 0)

    return [column(n, title) for n, title in enumerate(titles)]


def _low(source: Any) -> Any:
    return None if source.interval is None else source.interval[0]


def _high(source: Any) -> Any:
    return None if source.interval is None else source.interval[1]


INTERVAL = (
    Column("interval_low", "Lower end of the 95 % interval.", "of the value", _low),
    Column("interval_high", "Upper end of the 95 % interval.", "of the value", _high),
)

ESTIMATE = (
    Column("value", "The estimate.", "as `unit`"),
    Column("standard_error", "Its standard error, over texts where nothing else is said.", "as `unit`"),
    *INTERVAL,
    Column("n_texts", "Texts that it comes from; 0 where it comes from none.", "texts"),
    Column("unit", "Unit of the four numbers; empty for a pure number."),
)
"""Every estimate has this shape."""


def estimate(
    key: str,
    meaning: str,
    unit: str = BITS,
    value: Callable[[Any], Any] | None = None,
    *,
    title: str = "",
    cell: Callable[[Any], str] | None = None,
    importance: int = 1,
) -> Column:
    """A column of estimates."""
    return Column(key, meaning, unit, value, title, cell, within=ESTIMATE, importance=importance)


TEXTS = (
    Column("texts", "Name of the text set.", value=lambda source: source.texts.name),
    Column("text_set", "Its id, which changes with any text.", value=lambda source: source.texts.id),
)
"""Which texts a result is of."""
HEAD = (
    *TEXTS,
    Column(
        "clip",
        "Lower limit of log-likelihoods that is frozen for these texts; null: none.",
        "nats",
        lambda source: source.texts.clip,
    ),
)
"""The same with their clip."""


def unit(name: str = BITS) -> Column:
    """The unit of the values of a record that have none of their own."""
    return Column("unit", "Unit of the values beside it.", value=lambda _: name)
