"""Names of models as a reader sees them: one rule of shortening for tables, pictures and the page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from klscale.errors import printable

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
        return [shortened(name, longest) for name in last]
    shared = len(common_prefix(names))
    return [shortened(name[shared:], longest) for name in names]


def common_prefix(names: Sequence[str]) -> str:
    """The directories, or the organisation, that every name begins with, as `a/b/`; a checkpoint keeps its run."""
    parts = [name.split("/") for name in names]
    above = [part[: -2 if CHECKPOINT.match(part[-1]) else -1] for part in parts]
    shared = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*above, strict=False))
    return "".join(f"{level[0]}/" for level in shared)
