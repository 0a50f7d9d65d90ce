"""How long work tells what it is doing. The base class is silent; the command line shows a bar."""

from __future__ import annotations


class Progress:
    """One task at a time: `begin` names it and its size, `advance` counts, `note` says a line to a person."""

    def begin(self, what: str, total: float | None = None, unit: str = "") -> None:
        """Start the task `what`, of `total` units (unknown: None). Ends the task before it."""

    def advance(self, amount: float = 1.0) -> None:
        """`amount` more units are done."""

    def note(self, message: str) -> None:
        """Say something worth keeping on the screen: a choice made, a model skipped."""


SILENT = Progress()
