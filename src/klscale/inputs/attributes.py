"""What is known of a model beside its vector: family, type, size, seed, step; read off its reference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from klscale.errors import InputError
from klscale.inputs.checkpoint_names import MOST_DIGITS, read_checkpoint, without_step
from klscale.inputs.references import ModelRef

NUMBERS = ("parameters", "seed", "step", "warmup", "tokens", "stage", "ingredient")
"""Attributes that are numbers."""
_SIZE = re.compile(r"(?<![\w.])(\d{1,15}(?:\.\d{1,15})?)([mMbB])(\d{0,15})(?![a-zA-Z0-9])")
_ACTIVE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?[mMbB])-(?=\d+(?:\.\d+)?[mMbB](?![a-zA-Z0-9]))")
"""Active parameters in front of all of them: `OLMoE-1B-7B`."""
_TYPE = re.compile(r"(?:meta[-_])?((?:(?:gpt|open)[-_])?[a-z]+(?:[-_]?\d+(?:\.\d+)?)?)(?![a-z0-9])")


def parse_parameters(text: str) -> int | None:
    """`410M`, `6.9B`, `125000` as a number of parameters."""
    match = re.fullmatch(rf"(\d{{1,{MOST_DIGITS}}}(?:\.\d{{1,{MOST_DIGITS}}})?)\s*([kKmMbB]?)", text.strip())
    return round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[match[2].lower()]) if match else None


def number_of(attribute: str, value: str | int) -> int:
    """An attribute among `NUMBERS`, as a file gives it. Raises InputError for what is no number, or below 0."""
    number = parse_parameters(value) if isinstance(value, str) else value
    if number is None or not 0 <= number < 10**MOST_DIGITS:
        why = f"It has a limit of {MOST_DIGITS} digits."
        raise InputError(f"{attribute} {value!r:.40} is not a number.", why, "Write 410M, 6.9B or 410000000.")
    return number


def attributes_of(ref: ModelRef, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is known of a model beside its vector: `family`, `type`, `parameters`, `seed`, `step`, `warmup`, `tokens`,
    `stage`, `ingredient`, `parent`, `quantization`. Read from the reference itself; `known` (from a config, a suite
    file) wins.

    `type` is the first word of the family with its generation: `pythia`, `rwkv-4`, `llama-3`, `qwen2.5`, `gpt-neo`.
    `parameters` are all parameters, of a mixture of experts too: 7B for `OLMoE-1B-7B`.
    """
    last = ref.name.rstrip("/").rsplit("/", 1)[-1]
    attributes: dict[str, Any] = dict(read_checkpoint(ref.name, ref.revision))
    if "step" in attributes:
        attributes["warmup"] = next((run["warmup"] for run in _runs() if fnmatchcase(ref.name, run["names"])), None)
    if seed := re.search(rf"seed[-_]?(\d{{1,{MOST_DIGITS}}})(?!\d)", ref.name):
        attributes["seed"] = int(seed[1])
    bare = without_step(last)
    named = _ACTIVE.sub("", bare)
    size = _SIZE.search(named)
    if size or bare != last:
        # pythia-410m-deduped-seed3 is of the family pythia-deduped
        rest = named[: size.start()] + named[size.end() :] if size else named
        rest = re.sub(r"[-_.]?seed[-_]?\d+", "", rest)
        attributes["family"] = re.sub(r"[-_]{2,}", "-", rest).strip("-_. ") or None
        lineage = _TYPE.match((attributes["family"] or "").lower())
        attributes["type"] = lineage[1] if lineage else None
    if size:  # 1b5 is 1.5b
        attributes["parameters"] = parse_parameters(size[1] + (f".{size[3]}" if size[3] else "") + size[2])
    if ref.quantization:
        attributes["quantization"] = ref.quantization
    attributes.update({key: value for key, value in (known or {}).items() if value is not None})
    return {key: value for key, value in attributes.items() if value is not None}


def run_key(ref: ModelRef, attributes: Mapping[str, Any]) -> tuple[Any, ...]:
    """Equal for the checkpoints of one training run."""
    return (ref.run, *(attributes.get(name) for name in ("seed", "family", "dtype", "parent", "stage", "ingredient")))


@cache
def _runs() -> list[dict[str, Any]]:
    """Published training runs, of which more is known than their files say."""
    runs: list[dict[str, Any]] = yaml.safe_load(files("klscale").joinpath("data/runs.yaml").read_text(encoding="utf-8"))
    return runs
