"""What is known of a model beside its vector: family, type, size, seed, step; read off its reference."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any

from klscale.errors import InputError
from klscale.inputs.checkpoint_names import MOST_DIGITS, read_checkpoint, without_step
from klscale.inputs.references import ModelRef

ATTRIBUTES = (
    "family", "type", "parameters", "seed", "step", "warmup", "tokens", "stage", "ingredient", "parent", "quantization",
    "layer",
)  # fmt: skip
"""Attributes that have a meaning here. A model may have others, which are kept as they are: see `is_free`."""
NUMBERS = ("parameters", "seed", "step", "warmup", "tokens", "stage", "ingredient")
"""Attributes that are numbers."""
_TAKEN = {
    *ATTRIBUTES, "dtype", "convention", "noise_floor", "n_weights", "n_embedding_weights", "file_bytes", "memory_bytes",
    "model", "name", "run", "key", "date", "scored", "added", "bits_per_byte",
}  # fmt: skip
"""Names that a free attribute cannot have: columns of tables have them."""
_SIZE = re.compile(r"(?<![\w.])(\d{1,15}(?:\.\d{1,15})?)([mMbB])(\d{0,15})(?![a-zA-Z0-9])")
_ACTIVE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?[mMbB])-(?=\d+(?:\.\d+)?[mMbB](?![a-zA-Z0-9]))")
"""Active parameters in front of all of them: `OLMoE-1B-7B`."""
_TYPE = re.compile(r"(?:meta[-_])?((?:(?:gpt|open)[-_])?[a-z]+(?:[-_]?\d+(?:\.\d+)?)?)(?![a-z0-9])")


def parse_parameters(text: str) -> int | None:
    """`410M`, `6.9B`, `125000` as a number of parameters."""
    match = re.fullmatch(rf"(\d{{1,{MOST_DIGITS}}}(?:\.\d{{1,{MOST_DIGITS}}})?)\s*([kKmMbB]?)", text.strip())
    if match is None or (not match[2] and not float(match[1]).is_integer()):
        return None
    return round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[match[2].lower()])


def number_of(attribute: str, value: str | int) -> int:
    """An attribute among `NUMBERS`, as a file gives it. Raises InputError for what is no number, or below 0."""
    number = parse_parameters(value) if isinstance(value, str) else value
    if number is None or not 0 <= number < 10**MOST_DIGITS:
        what, why = f"{attribute} {value!r:.40} is no whole number from 0 on.", f"It has at most {MOST_DIGITS} digits."
        remedy = "Write 410M, 6.9B or 410000000." if attribute == "parameters" else "Write it as 1000, or leave it out."
        raise InputError(what, why, remedy)
    return number


def is_free(name: str, value: Any = None) -> bool:
    """Whether an attribute is kept as it is: with a name that nothing else has, and a word or a finite number."""
    usable = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return bool(name.strip()) and name not in _TAKEN and usable


def near_miss(name: str, known: Iterable[str]) -> str | None:
    """The known word that a name is nearly, whatever its case; None where there is none."""
    folded = {word.casefold(): word for word in known}
    close = get_close_matches(name.casefold(), folded, n=1, cutoff=0.8)
    return folded[close[0]] if close else None


def require_free(name: str, what: str = "attribute") -> None:
    """Raise InputError for a name that no free attribute can have, and for a near miss of a known one: `famly`."""
    if (close := near_miss(name, (known for known in ATTRIBUTES if known != "layer"))) is not None:
        raise InputError(f"unknown {what} {name!r}.", f"Did you mean {close!r}?", "Rename or drop it.")
    if not is_free(name):
        raise InputError(f"unknown {what} {name!r}.", "klscale uses this name itself.", "Rename or drop it.")


def are_amounts(name: str, values: Iterable[Any]) -> bool:
    """Whether the known values of a free attribute are all numbers."""
    known = [value for value in values if value is not None and value == value]
    return is_free(name) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)


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


def runs_of(refs: Sequence[ModelRef], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The name of the training run of each model, whose known attributes are its `rows` entry; layers and quantized
    variants have that of their model.

    The name tells it (`ModelRef.run`) where it tells a step, or is that of a run whose checkpoints do: so the final
    model joins them. Else `family`, `parameters` and `seed` name a run, where at least two models have them, a step
    each, and the name of one does not tell that family; those whose names do join it, each at a step of its own.
    Fine-tuned models, which have a `parent`, have runs by name alone.
    """
    runs: dict[ModelRef, str] = {}
    for (parameters, _, seed, family, *_), steps in _declared_runs(refs, rows):
        if 1 < len(steps) == len({*steps.values()}):  # of two at one step, which is of the run?
            name = f"seed-{seed}" if family is None else str(family)
            runs |= dict.fromkeys(steps, name if parameters is None else f"{name}-{_written(parameters)}")
    return [runs.get(_whole(ref), ref.run) for ref in refs]


def clashing_steps(refs: Sequence[ModelRef], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which models would be one run by their attributes (`runs_of`), and have one step: a sentence for each run."""
    found = []
    for _, steps in _declared_runs(refs, rows):
        step, n = Counter(steps.values()).most_common(1)[0]
        if n > 1:
            first, second = [ref for ref, at in steps.items() if at == step][:2]
            found.append(
                f"{first} and {second} have one step, {step:,}, and the same family, parameters and seed: these"
                f" {len(steps):,} models are no run. Give them other steps, or seeds, by --attributes."
            )
    return found


def _declared_runs(
    refs: Sequence[ModelRef], rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[tuple[Any, ...], dict[ModelRef, Any]]]:
    """What makes a run of models whose attributes say so, and the step of each of them."""
    told = {ref.run for ref in refs if read_checkpoint(ref.name, ref.revision)}
    declared: dict[tuple[Any, ...], dict[ModelRef, Any]] = {}
    joining: dict[tuple[Any, ...], dict[ModelRef, Any]] = {}
    for ref, row in zip(refs, rows, strict=True):
        if row.get("step") is not None and row.get("parent") is None and ref.run not in told:
            key = tuple(row.get(name) for name in ("parameters", "convention", *_SAME_IN_A_RUN))
            (declared if _declares_run(ref, row) else joining).setdefault(key, {})[_whole(ref)] = row["step"]
    for key, steps in declared.items():
        others = joining.get(key, {})
        of_step = Counter((*steps.values(), *others.values()))
        yield key, steps | {ref: step for ref, step in others.items() if of_step[step] == 1}


def _declares_run(ref: ModelRef, attributes: Mapping[str, Any]) -> bool:
    """Whether the attributes, and not the name, say which run a model is of."""
    family, own = attributes.get("family"), attributes_of(ref)
    return family != own.get("family") if family is not None else attributes.get("seed") != own.get("seed")


def _whole(ref: ModelRef) -> ModelRef:
    return replace(ref, layer=None, quantization=None)


def _written(parameters: float) -> str:
    """A number of parameters as `parse_parameters` reads it."""
    factor, unit = next((one for one in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if parameters >= one[0]), (1, ""))
    return f"{parameters / factor:g}{unit}"


_SAME_IN_A_RUN = ("seed", "family", "dtype", "parent", "stage", "ingredient")


def run_key(run: str, attributes: Mapping[str, Any]) -> tuple[Any, ...]:
    """Equal for the checkpoints of one training run, whose name is one of `runs_of`."""
    return (run, *(attributes.get(name) for name in _SAME_IN_A_RUN))


@cache
def _runs() -> list[dict[str, Any]]:
    """Published training runs, of which more is known than their files say."""
    import yaml  # not all commands need it

    runs: list[dict[str, Any]] = yaml.safe_load(files("klscale").joinpath("data/runs.yaml").read_text(encoding="utf-8"))
    return runs
