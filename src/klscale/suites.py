"""Suite files: what a study scores, in YAML, so that it can be rerun and cited. Read and checked before any loading."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from klscale.errors import InputError, nearest
from klscale.models import Model, ModelRef, parse_parameters

ATTRIBUTE_KEYS = ("family", "type", "parameters", "seed", "step", "parent")
MODEL_KEYS = ("name", "revision", "revisions", "quantize", "dtype", *ATTRIBUTE_KEYS)
_RANGE = re.compile(r"(\d+)\.\.(\d+)(?:/(\d+))?")


@dataclass(frozen=True)
class Suite:
    """`texts`: the name or file of the text set, or None. `models`: what to score, in order."""

    texts: str | None
    models: tuple[Model, ...]


def read_suite(path: str | Path) -> Suite:
    """Read a suite file. Names and parents that begin with `.` are relative to the file.

    Each model has a `name` and may have attributes. A list (or a range, "1000..143000/1000") under an attribute that
    the name or the revision pattern holds in braces stands for one model each; `quantize` adds variants.
    Raises InputError that names the line.
    """
    path = Path(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The suite file {path} cannot be read.", f"{error}.", "Give a file in UTF-8.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(
            f"{path}{line}: not YAML.", str(getattr(error, "problem", error)), "Mend that line."
        ) from error
    if not isinstance(data, dict) or not isinstance(data.get("models"), list) or not data["models"]:
        raise InputError(f"{path} lists no models.", "A suite file has a list under 'models'.", "See the recipes.")
    _check_keys(path, data, ("texts", "models"))
    models: list[Model] = []
    for n, item in enumerate(data["models"], 1):
        if not isinstance(item, dict):
            raise InputError(f"{path}, model {n}: {item!r} is not a model.", "Each model is a mapping with a 'name'.")
        _check_keys(path, item, MODEL_KEYS)
        models += _expand(path, item)
    texts = data.get("texts")
    if texts is not None and not isinstance(texts, str):
        raise InputError(f"{path}: texts cannot be {texts!r}.", remedy="Give the name or the file of a text set.")
    if texts is not None and texts.startswith("."):
        texts = str(path.parent / texts)
    return Suite(texts, tuple(models))


class _Loader(yaml.SafeLoader):
    """A safe loader whose mappings know their line and have no key twice."""

    def lined(self, node: Any) -> dict[Any, Any]:
        mapping = self.construct_mapping(node, deep=True)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return {**mapping, "__line__": node.start_mark.line + 1}


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.lined)


def _check_keys(path: Path, item: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in item:
        if key != "__line__" and key not in known:
            raise InputError(f"{path}, line {item['__line__']}: unknown key {key!r}.", nearest(str(key), known))


def _expand(path: Path, item: Mapping[str, Any]) -> list[Model]:
    """The models of one entry: every combination of its lists."""
    place = f"{path}, line {item['__line__']}"
    name = item.get("name")
    if not isinstance(name, str) or not name:
        raise InputError(f"{place}: a model without a name.", remedy="Give 'name': a hub id or a directory.")
    revisions = item.get("revisions") or {}
    if not isinstance(revisions, dict) or (revisions and not isinstance(revisions.get("pattern"), str)):
        raise InputError(f"{place}: 'revisions' needs a 'pattern', such as \"step{{step}}\".")
    _check_keys(path, {**revisions, "__line__": item["__line__"]}, ("pattern", *ATTRIBUTE_KEYS))
    pattern = revisions.get("pattern", item.get("revision"))
    pattern = None if pattern is None else str(pattern)
    given = {k: v for k, v in {**item, **revisions}.items() if k in ATTRIBUTE_KEYS}
    lists = {key: _values(place, key, value) for key, value in given.items()}
    try:
        holes = {field for text in (name, pattern) if text for _, field, _, _ in string.Formatter().parse(text)} - {
            None
        }
    except ValueError as error:
        raise InputError(f"{place}: a brace too many or too few in {name!r}.", f"{error}.") from error
    if unfilled := holes - set(lists):
        raise InputError(
            f"{place}: nothing fills {{{sorted(map(str, unfilled))[0]}}}.", remedy="Give a list under that key."
        )
    if loose := [key for key, values in lists.items() if len(values) > 1 and key not in holes]:
        raise InputError(f"{place}: {loose[0]!r} has several values, but the name has no {{{loose[0]}}}.")
    variants = [None, *_values(place, "quantize", item["quantize"])] if "quantize" in item else [None]
    models = []
    for values in itertools.product(*lists.values()):
        attributes = dict(zip(lists, values, strict=True))
        filled = {key: value for key, value in attributes.items() if key in holes}
        if "parent" in attributes:
            attributes["parent"] = str(_reference(path, place, str(attributes["parent"])))
        for quantization in variants:
            text = name.format(**filled)
            text += "@" + pattern.format(**filled) if pattern else ""
            text += f"+{quantization}" if quantization else ""
            text += f"%{item['dtype']}" if "dtype" in item else ""
            models.append(Model(_reference(path, place, text), _typed(place, attributes)))
    return models


def _reference(path: Path, place: str, text: str) -> ModelRef:
    """A reference; a name that begins with `.` is relative to the suite file, whatever characters its path has."""
    try:
        ref = ModelRef.parse(text)
    except InputError as error:
        raise InputError(f"{place}: {error.what}", error.why, error.remedy) from error
    if not ref.name.startswith("."):
        return ref
    joined = (path.parent / ref.name).as_posix()
    return replace(ref, name=joined if joined.startswith(("/", ".")) else f"./{joined}")


def _values(place: str, key: str, value: Any) -> list[Any]:
    """A scalar, a list, or ranges "first..last/step" as a flat list."""
    flat: list[Any] = []
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, str) and (match := _RANGE.fullmatch(part)):
            numbers = range(int(match[1]), int(match[2]) + 1, max(1, int(match[3] or 1)))
            if not numbers or match[3] == "0":
                raise InputError(f"{place}: {key!r} has the empty range {part!r}.", remedy="Write first..last/step.")
            flat += numbers
        elif isinstance(part, str | int):
            flat.append(part)
        else:
            raise InputError(
                f"{place}: {key!r} cannot be {part!r}.", remedy="Give a number, a word, or a list of them."
            )
    return flat


def _typed(place: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with numbers where numbers belong: `parameters: 410M`."""
    typed = dict(attributes)
    for key in ("parameters", "seed", "step"):
        if isinstance(value := typed.get(key), str):
            typed[key] = parse_parameters(value)
            if typed[key] is None:
                raise InputError(f"{place}: {key} {value!r} is not a number.", remedy="Write 410M, 6.9B or 410000000.")
    return typed
