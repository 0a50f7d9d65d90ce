"""The terminal: the two consoles, tables, errors in three lines, JSON, and a bar for long work."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.segment import Segment

from klscale.errors import KlscaleError, printable
from klscale.progress import Progress

if TYPE_CHECKING:
    from klscale.inputs.texts import TextSet

PROSE = 100
"""Characters of a line of sentences."""
PIPED = 200
"""Characters of a line of anything but a table where the output is no terminal."""
ENDLESS = 100_000
"""Characters of a line that is never broken."""

for _stream in ("stdout", "stderr"):
    if getattr(sys, _stream) is None:  # closed by who started the program: what is printed is for nobody
        setattr(sys, _stream, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


class Terminal(Console):
    """A console that only the program gives orders to: what a text holds of them is escaped, whoever wrote it."""

    wide = False
    """Whether tables have all their columns, and lines any length."""
    _record: list[Any] | None = None

    def widen(self, wide: bool) -> None:
        """Print tables in full from now on, or in the width that there is."""
        self.wide, self._width = wide, ENDLESS if wide else None if sys.stdout.isatty() else PIPED

    def on_broken_pipe(self) -> None:
        """Nobody reads it any more. `klscale.cli` knows how a command ends then; rich would end it with 1."""
        raise BrokenPipeError

    def print(self, *objects: Any, **how: Any) -> None:
        if self._record is None:
            super().print(*objects, **{"crop": False, **how})  # all fits; rich would measure each line anew
        else:
            self._record += objects

    @contextmanager
    def recorded(self) -> Iterator[list[Any]]:
        """What is printed goes into a list instead: tables, and sentences with their markup."""
        before, self._record = self._record, []
        try:
            yield self._record
        finally:
            self._record = before

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else _escaped(text), style, control)


def _escaped(text: str) -> str:
    lines = text.split("\n")
    return text if all(map(str.isprintable, lines)) else "\n".join(map(printable, lines))


out = Terminal(highlight=False, emoji=False, width=None if sys.stdout.isatty() else PIPED)
err = Terminal(stderr=True, highlight=False, emoji=False, width=None if sys.stderr.isatty() else PIPED)


def print_error(error: KlscaleError) -> None:
    """What, why, remedy: one line each."""
    lines = [line for line in (error.what, error.why, error.remedy) if line]
    err.print("Error: ", style="bold red", end="")
    err.print("\n".join(lines), markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """A result as JSON on standard output."""
    sys.stdout.write(json.dumps(for_json(value), indent=2, allow_nan=False) + "\n")


def for_json(value: Any) -> Any:
    """The value as JSON has it: arrays and tuples as lists, names and errors as strings, null for NaN and infinity."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): for_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(one) for one in value]
    return for_json(value.tolist()) if hasattr(value, "tolist") else str(value)


def plain(text: object) -> str:
    """Names from files and hubs are text, never markup."""
    from rich.markup import escape

    return escape(printable(text))


def rounded(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


class Bar(Progress):
    """A bar on standard error: what, how many, how long yet."""

    def __init__(self, shown: Any) -> None:
        self.shown = shown
        self.task: Any = None
        self.total: float | None = None
        self.unit = ""

    def begin(self, what: str, total: float | None = None, unit: str = "") -> None:
        super().begin(what, total, unit)
        if self.task is not None:
            self.shown.remove_task(self.task)
        self.total, self.unit = total, unit
        self.task = self.shown.add_task(plain(what), total=total, count="")

    def advance(self, amount: float = 1.0) -> None:
        super().advance(amount)
        if self.task is not None:
            of = f" of {rounded(self.total)}" if self.total else ""
            count = f"{rounded(self.done)}{of} {self.unit}" if self.unit != "%" else ""
            self.shown.update(self.task, advance=amount, count=count)

    def now(self, what: str) -> None:
        if self.task is not None:
            self.shown.update(self.task, description=plain(what))

    def note(self, message: str) -> None:
        self.shown.console.print(message, markup=False, soft_wrap=True)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Progress on standard error; on something that is no terminal, only its notes."""
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.TaskProgressColumn(),
        rich_progress.TextColumn("{task.fields[count]}"),
        rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
    )
    with rich_progress.Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as shown:
        yield Bar(shown)


def say(sentence: str, style: str | None = None) -> None:
    """A sentence, wrapped where it is long."""
    out.print(sentence, style=style, width=PROSE)


def name_texts(texts: TextSet) -> str:
    what = "texts" if texts.prompts is None else "responses to prompts"
    return f"{plain(texts.name)} ({texts.id}): {len(texts):,} {what}, mean {texts.mean_bytes:.1f} bytes"


def describe_texts(texts: TextSet) -> str:
    clip = "no clip" if texts.clip is None else f"clipped at {texts.clip:.1f} nats"
    return f"{name_texts(texts)}, {clip}"
