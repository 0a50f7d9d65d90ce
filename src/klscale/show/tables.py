"""Tables of the terminal: no row is wider than the line. Names lose their middle, then the least columns go.

A file or a pipe has lines of `terminal.PROSE` characters; `--wide` prints every column and every name in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from klscale.errors import counted
from klscale.show import terminal
from klscale.show.names import CHECKPOINT, common_prefix, told_apart

GAP = 2
"""Characters between two columns."""
SHORT, SHORTEST = 24, 12
"""Characters of a name, at least, while there are columns to leave out; and when there are none."""


@dataclass(frozen=True)
class Shown:
    """One column as it is printed: its heading and a cell for each row, as plain text. `importance` as in `Column`."""

    title: str
    cells: Sequence[str]
    words: bool
    importance: int

    @cached_property
    def width(self) -> int:
        """Characters of the widest cell and of the longest word of the heading, which may take several lines."""
        return max(map(_length, (*self.title.split(), *self.cells)), default=0)

    @property
    def full_width(self) -> int:
        return max(self.width, _length(self.title))


class Table:
    """Rows below headings, printed in the width that there is."""

    def __init__(self, columns: Sequence[Shown], title: str | None = None) -> None:
        self.columns, self.title = columns, title

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        if not (console.is_terminal or terminal.out.wide):
            width = min(width, terminal.PROSE)
        columns, prefix = fitted(self.columns, width)
        if self.title:
            yield Text.from_markup(self.title, style="bold")
        made = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
        spare, rooms = width - _total([column.width for column in columns]), list[int]()
        whole = spare >= 0 and not any("\n" in cell for column in columns for cell in column.cells)
        for column in columns:
            room = min(column.full_width, column.width + max(spare, 0))
            spare -= room - column.width
            rooms.append(room)
            made.add_column(
                Text(column.title, style="dim"),
                justify="left" if column.words else "right",
                overflow="fold",
                min_width=room if whole else None,
                max_width=max(room, 1),
            )
        rows = zip(*(column.cells for column in columns), strict=True)
        if whole:  # no cell is folded: rich would take seconds for a thousand rows
            yield made
            for row in rows:
                yield Segment((" " * GAP).join(map(_set, row, rooms, (column.words for column in columns))) + "\n")
        else:
            for row in rows:
                made.add_row(*map(Text, row))
            yield made
        said = []
        if prefix:
            said.append(f"Names without the {prefix} that they begin with.")
        left_out = [column.title for column in self.columns]
        for column in columns:
            left_out.remove(column.title)
        if left_out:
            many = counted(len(left_out), "column")
            said.append(f"{many} more with --wide: {', '.join(left_out)}.")
        for line in said:
            yield Text(line, style="dim")


def fitted(columns: Sequence[Shown], width: int) -> tuple[list[Shown], str]:
    """The columns that fit into `width` characters, their names shortened; and what all names lost at their beginning.

    In this order, until the rows fit: names without the directories that all share; `…-800` for `checkpoint-800`; names
    without their middle, at least 24 characters long; the column of the least importance, of equal ones the last. Names
    that would look alike stay longer. A column of importance 2 is never left out: names then go down to 12 characters,
    and beyond that cells are folded.
    """
    kept, prefix = list(columns), ""
    if _fits(kept, width):
        return kept, prefix
    kept, prefix = _without_prefix(kept)
    if _fits(kept, width):
        return kept, prefix
    kept = [replace(column, cells=[*map(_step, column.cells)]) if column.words else column for column in kept]
    while True:
        for limit in _limits(kept, SHORT, width):
            if _fits(made := _shortened(kept, limit), width):
                return made, prefix
        spare = [column for column in kept[1:] if column.importance < 2]
        if not spare:
            break
        least = min(column.importance for column in spare)
        kept.remove([column for column in spare if column.importance == least][-1])
    for limit in _limits(kept, SHORTEST, width):
        if _fits(made := _shortened(kept, limit), width):
            break
    return made, prefix


def _length(text: str) -> int:
    """Characters that a text takes in a line; rich counts them one by one."""
    return len(text) if text.isascii() and text.isprintable() else cell_len(text)


def _set(cell: str, room: int, left: bool) -> str:
    """A cell in its room, to the left or to the right."""
    spaces = " " * (room - _length(cell))
    return cell + spaces if left else spaces + cell


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _fits(columns: Sequence[Shown], width: int) -> bool:
    return _total([column.width for column in columns]) <= width


def _limits(columns: Sequence[Shown], shortest: int, width: int) -> Iterator[int]:
    """Lengths of names that would fit, the longest first."""
    longest = max((column.width for column in columns if column.words), default=0)
    for limit in range(max(longest, shortest), shortest - 1, -1):
        if limit == shortest or _total([min(it.width, limit) if it.words else it.width for it in columns]) <= width:
            yield limit


def _without_prefix(columns: Sequence[Shown]) -> tuple[list[Shown], str]:
    """Names without the directories that all begin with. A column of words without any `/` holds no names."""
    names = [column for column in columns if column.words and any("/" in cell for cell in column.cells)]
    prefix = common_prefix([cell for column in names for cell in column.cells if cell]) if names else ""
    cut = {id(column) for column in names} if prefix else set()
    return [
        replace(column, cells=[cell.removeprefix(prefix) for cell in column.cells]) if id(column) in cut else column
        for column in columns
    ], prefix


def _step(name: str) -> str:
    """A name with its checkpoint as a step alone."""
    run, slash, last = name.rpartition("/")
    return f"{run}/…-{last[found.end() - 1 :]}" if slash and (found := CHECKPOINT.match(last)) else name


def _shortened(columns: Sequence[Shown], limit: int) -> list[Shown]:
    """The columns with words of at most `limit` characters; a column stays as it is where two would look alike."""
    made = []
    for column in columns:
        if column.words and column.width > limit:
            short = told_apart(column.cells, limit)
            if len(set(short)) == len(set(column.cells)) and max(map(_length, short)) <= limit:
                column = replace(column, cells=short)
        made.append(column)
    return made
