"""Errors and warnings that a user reads: what happened, why, and what to do about it."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Self


class KlscaleError(Exception):
    """Something that was asked for failed. Printed in at most three lines, without a traceback; exit status 1.

    `what` names the file, model or value; `why` gives the reason; `remedy` the way out.
    """

    exit_status = 1

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        self.what, self.why, self.remedy = what, why, remedy
        super().__init__(what, why, remedy)

    def __str__(self) -> str:
        return "\n".join(line for line in (self.what, self.why, self.remedy) if line)

    def at(self, place: str) -> Self:
        """The same error, of what a file asks for at `place`."""
        error = copy.copy(self)
        error.what = f"{place}: {self.what}"
        return error


class InputError(KlscaleError):
    """An argument, or a file that an argument names, cannot be used as it is; exit status 2."""

    exit_status = 2


class UnavailableError(KlscaleError):
    """A model is not where it was: its directory is gone, or the hub does not have it or does not answer."""

    def __init__(self, what: str, why: str = "", remedy: str = "", *, exit_status: int = 1) -> None:
        super().__init__(what, why, remedy)
        self.exit_status = exit_status


class StorageError(KlscaleError):
    """The store cannot be written: nothing that would be computed now could be kept."""


class UnreadableError(ValueError):
    """A file of a store that cannot be used; says why, in words that follow the file's name."""


class ScoringError(KlscaleError):
    """Too few of the models could be scored. `outcomes` tell what became of each of them."""

    def __init__(self, outcomes: Sequence[Any]) -> None:
        self.outcomes = tuple(outcomes)
        errors = [outcome.error for outcome in self.outcomes if outcome.error is not None]
        more = f" ({len(errors) - 1:,} more failed.)" if len(errors) > 1 else ""
        super().__init__(f"{errors[0].what}{more}", errors[0].why, errors[0].remedy)
        self.args = (self.outcomes,)  # what a copy is made from


def nearest(word: str, known: Iterable[str]) -> str:
    """`Did you mean ...?` where a known word is close to the one given, else the list of known words."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(options[:8])}{', ...' if len(options) > 8 else '.'}" if options else ""


def near_names(word: str, known: Iterable[str]) -> str:
    """`Did you mean ...?` with up to three names of models that are close to the one given, whatever their case, or
    that end as it does; empty where there are none."""
    folded = {name.casefold(): name for name in sorted(known)}
    last = {name.rpartition("/")[2]: name for name in reversed(folded)}
    close = difflib.get_close_matches(word.casefold(), folded, cutoff=0.8)
    close += [last[end] for end in difflib.get_close_matches(word.casefold().rpartition("/")[2], last, cutoff=0.8)]
    names = [folded[name] for name in dict.fromkeys(close)][:3]
    return f"Did you mean {' or '.join(map(repr, names))}?" if names else ""


def counted(n: int, what: str) -> str:
    """So many of something, in words: `1 model`, `2,000 models`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def printable(text: object) -> str:
    """A name from a file or a hub as text; what would change how the rest is read is escaped, as Python writes it."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
