"""How long work tells what it is doing. The base class is silent; the command line shows a bar."""

from __future__ import annotations


class Progress:
    """One task at a time: `begin` names it and its size, `advance` counts, `note` says a line to a person."""

    done = 0.0
    """Units of the present task that are done."""

    def begin(self, what: str, total: float | None = None, unit: str = "") -> None:
        """Start the task `what`, of `total` units (unknown: None). Ends the task before it."""
        self.done = 0.0

    def advance(self, amount: float = 1.0) -> None:
        """`amount` more units are done."""
        self.done += amount

    def scored(self, texts: int, tokens: int) -> None:
        """So many more texts are scored, of so many tokens together."""

    def now(self, what: str) -> None:
        """The task goes on, at another part of it."""

    def note(self, message: str) -> None:
        """Say something worth keeping on the screen: a choice made, a model skipped."""


SILENT = Progress()
"""For callers who show nothing."""
