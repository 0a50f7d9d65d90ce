"""Names of checkpoints as laboratories write them: which step, after how many tokens, in which stage of training."""

from __future__ import annotations

import re
from typing import Any

MOST_DIGITS = 15
"""Of a step, a seed or a size: what has more is no number that a run tells."""
_NUMBER = rf"(\d{{1,{MOST_DIGITS}}}(?:\.\d{{1,{MOST_DIGITS}}})?)"
_COUNT = rf"{_NUMBER}([kKmM]?)"
_TOKENS = rf"(?:[-_](?:tokens?[-_]?)?{_NUMBER}([mMbBtT])T?)?"
_STAGE, _INGREDIENT = r"stage[-_]?(\d{1,6})", r"ingredient[-_]?(\d{1,6})"

_WHOLE = re.compile(
    rf"(?:{_STAGE}[-_])?(?:{_INGREDIENT}[-_])?"
    rf"(?:global[-_]?step|train[-_]?step|step|iteration|iter|checkpoint|ckpt|epoch)(?P<joint>[-_]?){_COUNT}{_TOKENS}"
)
"""A revision, or a directory, that is the name of a checkpoint from start to end."""
_INSIDE = re.compile(rf"[-_](?:intermediate[-_])?(?:step|checkpoint|ckpt)[-_]{_COUNT}{_TOKENS}(?![\w.])")
"""A checkpoint in a longer name. `iter3` or `epoch-2` there are as often the round of a procedure."""
_FACTOR = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def read_checkpoint(name: str, revision: str | None = None) -> dict[str, int]:
    """`step`, `tokens`, `stage` and `ingredient` of a model, as far as its revision or its name tells them.

    An epoch or an iteration counts as a step. Of `name` the last part is read: a directory such as `iter_0001000`, or a
    repository such as `TinyLlama-1.1B-step-50K-105b`. Empty where neither tells a step.
    """
    match = _WHOLE.fullmatch(revision or "")
    if match is None and (match := _of_name(name)) is None:
        return {}
    *before, count, unit, tokens, tokens_unit = match.groups() if match.re is _INSIDE else _groups(match)
    found = {"step": _count(count, unit)}
    if tokens:
        found["tokens"] = _count(tokens, tokens_unit)
    for key, number in zip(("stage", "ingredient"), before, strict=False):
        if number is not None:
            found[key] = int(number)
    return found


def without_checkpoint(name: str) -> str:
    """The name of a run: without the last part where that is a checkpoint, or without the step inside that part."""
    folder, _, last = name.rstrip("/").rpartition("/")
    match = _of_name(name)
    if match is None:
        return name
    return (folder or ".") if match.re is _WHOLE else f"{name.rstrip('/')[: -len(last)]}{without_step(last)}"


def without_step(name: str) -> str:
    """One part of a name without the step inside it."""
    return _INSIDE.sub("", name)


def _of_name(name: str) -> re.Match[str] | None:
    last = name.rstrip("/").rpartition("/")[2]
    whole = _WHOLE.fullmatch(last)
    if whole is not None and (whole["joint"] or last.startswith("global")):  # `step3` is as often the name of a model
        return whole
    return _INSIDE.search(last)


def _groups(match: re.Match[str]) -> list[Any]:
    stage, ingredient, _, *rest = match.groups()
    return [stage, ingredient, *rest]


def _count(number: str, unit: str) -> int:
    return round(float(number) * _FACTOR[unit.lower()]) if unit or "." in number else int(number)
