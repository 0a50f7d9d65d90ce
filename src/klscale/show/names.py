"""Names of models as a reader sees them: one rule of shortening for tables, pictures and the page."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence

from klscale.errors import printable

TAILS = (0.5, 0.67, 0.33, 0.8)
"""Shares of a shortened name that its end has, the first that tells all names apart."""
CHECKPOINT = re.compile(r"(?:checkpoint|step)[-_]\d")
"""What the last part of a name begins with that says nothing without the part before."""


def shortened(name: object, longest: int = 32, tail: float = 0.5) -> str:
    """A name as plain text of at most `longest` characters, its middle left out: both ends tell models apart. `tail` is
    the share of the end in what is left."""
    text = printable(name)
    if len(text) <= longest:
        return text
    end = int((longest - 1) * tail)
    return f"{text[: longest - 1 - end]}…{text[len(text) - end :]}"


def short_names(names: Sequence[str], longest: int = 32) -> list[str]:
    """Names without the directory or organisation that all of them share. The last part alone, where it tells them
    apart and is no mere checkpoint."""
    last = [name.rsplit("/", 1)[-1] for name in names]
    if len(set(last)) == len(names) and not any(map(CHECKPOINT.match, last)):
        return told_apart(last, longest)
    shared = len(common_prefix(names))
    return told_apart([name[shared:] for name in names], longest)


def told_apart(names: Sequence[str], longest: int) -> list[str]:
    """Names of at most `longest` characters, different ones different still, as far as so few characters can tell:
    without their middle; else without what those that would look alike begin with, or with only a little of it."""
    for tail in TAILS:
        short = [shortened(name, longest, tail) for name in names]
        if len(set(short)) == len(set(names)):
            return short
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(shortened(name, longest), []).append(name)
    made: dict[str, str] = {}
    for head in (0, longest // 4):
        for text, group in alike.items():
            shared = len(os.path.commonprefix(group))  # noqa: RUF071 (characters are meant, no paths)
            begin = shortened(group[0][: min(head, shared)], head) + "…"
            room = longest - len(begin)
            if len(group) == 1 or not shared or room < 2:
                made |= dict.fromkeys(group, text)
                continue
            rest = told_apart([name[shared:] for name in group], room)
            made |= {name: begin + end for name, end in zip(group, rest, strict=True)}
        if len(set(made.values())) == len(made):
            break
    return [made[name] for name in names]


def common_prefix(names: Sequence[str]) -> str:
    """The directories, or the organisation, that every name begins with, as `a/b/`; a checkpoint keeps its run."""
    parts = [name.split("/") for name in names]
    above = [part[: -2 if CHECKPOINT.match(part[-1]) else -1] for part in parts]
    shared = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*above, strict=False))
    return "".join(f"{level[0]}/" for level in shared)
