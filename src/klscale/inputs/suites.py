"""Suite files: what a study scores, in YAML, so that it can be rerun and cited. Read and checked before any loading."""

from __future__ import annotations

import itertools
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from klscale.errors import InputError, KlscaleError, nearest
from klscale.inputs.attributes import NUMBERS, is_free, near_miss, number_of
from klscale.inputs.references import QUANTIZATIONS, Model, ModelRef
from klscale.limits import SUITE_BYTES, SUITE_DEPTH, SUITE_MERGED, SUITE_MODELS

ATTRIBUTE_KEYS = ("family", "type", *NUMBERS, "parent", "quantization")
NO_ATTRIBUTES = ("name", "revision", "revisions", "quantize", "dtype", "layers")
MODEL_KEYS = (*NO_ATTRIBUTES, *ATTRIBUTE_KEYS)
_RANGE = re.compile(r"(\d{1,15})\.\.(\d{1,15})(?:/(\d{1,15}))?")
_FORMAT = re.compile(r"0?\d{0,3}d?")


@dataclass(frozen=True)
class Suite:
    """`texts`: the name or file of the text set, or None. `models`: what to score, in order. `problems`: the entries
    that are left out, each an error that names its line."""

    texts: str | None
    models: tuple[Model, ...]
    problems: tuple[KlscaleError, ...] = ()


def read_suite(path: str | Path) -> Suite:
    """Read a suite file. Names and parents that begin with `.` are relative to the file.

    Each model has a `name` and may have attributes, free ones too (`learning_rate: 0.001`). A list (or a range,
    "1000..143000/1000") under an attribute that the name or the revision pattern holds in braces stands for one model
    each; `quantize` adds variants; `layers` asks for every layer, of the unquantized model. An entry that is wrong is
    one of the suite's `problems`, and the others are read. Raises InputError where the whole file is wrong, or every
    entry.
    """
    path = Path(path)
    try:
        SUITE_BYTES.require(path.stat().st_size, str(path))
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=BoundedLoader)  # noqa: S506 - a SafeLoader
    except InputError as error:
        raise error if error.what.startswith(str(path)) else error.at(str(path)) from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply.", remedy="A suite file has a few levels.") from error
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError):
            raise InputError(f"The suite file {path} cannot be read.", f"{error}.", "Give a file in UTF-8.") from error
        raise InputError(f"{path}: a value cannot be read.", f"{error}."[:200], "Mend that value.") from error
    except OSError as error:
        raise InputError(f"The suite file {path} cannot be read.", f"{error}.", "Give a file in UTF-8.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(
            f"{path}{line}: not YAML.", str(getattr(error, "problem", error)), "Mend that line."
        ) from error
    if isinstance(data, _Mapping):
        _check_keys(path, data, ("texts", "models"))
    if not isinstance(data, _Mapping) or not isinstance(data.get("models"), _List) or not data["models"]:
        raise InputError(f"{path} lists no models.", "A suite file has a list under 'models'.", "See the recipes.")
    texts = data.get("texts")
    if texts is not None and not isinstance(texts, str):
        place = f"{path}, line {data.lines['texts']}"
        raise InputError(f"{place}: texts cannot be {texts!r}.", remedy="Give the name or the file of a text set.")
    if texts is not None and texts.startswith("."):
        texts = str(path.parent / texts)
    models: dict[ModelRef, Model] = {}
    bases: set[ModelRef] = set()  # there for their quantized variants: another entry may ask for them in its own right
    problems: list[KlscaleError] = []
    for line, item in zip(data["models"].lines, data["models"], strict=True):
        place, twice = f"{path}, line {line}", list[ModelRef]()
        try:
            expanded = _expand(path, place, item)
        except InputError as problem:
            problems.append(problem)
            continue
        for model in expanded:
            base = "quantize" in item and model.ref.quantization is None
            if model.ref not in models or model.ref in bases:
                SUITE_MODELS.require(len(models) + 1, place)
                models[model.ref] = model
                bases = bases | {model.ref} if base else bases - {model.ref}
            elif not base:
                twice.append(model.ref)
        if twice:
            more = f" (and {len(twice) - 1:,} more)" if len(twice) > 1 else ""
            why = f"It is in {models[twice[0]].line} too."
            problems.append(
                InputError(f"{place}: {twice[0]}{more} stands here again.", why, "Take out one of the two.")
            )
    if not models:
        raise problems[0]
    return Suite(texts, tuple(models.values()), tuple(problems))


def parse_kinds(text: str | None) -> list[str]:
    """The kinds of quantization in `int8,nf4`."""
    return [kind.strip() for kind in (text or "").split(",") if kind.strip()]


def with_quantized(models: Sequence[Model], kinds: Sequence[str]) -> list[Model]:
    """The models, each followed by its variants of these kinds that are not among them; one that is quantized already,
    or a GGUF file, stays as it is. Raises InputError for an unknown kind, with the nearest known one."""
    for kind in kinds:
        if kind not in QUANTIZATIONS:
            raise InputError(f"Unknown quantization {kind!r}.", remedy=nearest(kind, QUANTIZATIONS))
    there, found = {model.ref for model in models}, list[Model]()
    for model in models:
        found.append(model)
        if model.ref.quantization is None and model.ref.file is None and "quantization" not in model.attributes:
            refs = [replace(model.ref, quantization=kind) for kind in dict.fromkeys(kinds)]
            found += [replace(model, ref=ref, layers=False) for ref in refs if ref not in there]
    return found


class _Mapping(dict[Any, Any]):
    """A mapping of the file; `lines`: that of each key."""

    lines: dict[Any, int]


class _List(list[Any]):
    """A list of the file; `lines`: that of each item."""

    lines: list[int]


class BoundedLoader(yaml.SafeLoader):
    """A safe loader whose mappings and lists know their lines, and whose mappings have no key twice; bounded in depth
    and in what merges (<<) multiply."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One level deeper."""
        self.depth += 1
        SUITE_DEPTH.require(self.depth, f"line {self.peek_event().start_mark.line + 1}")  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: Any) -> None:
        """Merge what `<<` names into a mapping."""
        super().flatten_mapping(node)
        SUITE_MERGED.require(len(node.value), f"line {node.start_mark.line + 1}")

    def mapping(self, node: Any) -> _Mapping:
        own = [str(key.value) for key, _ in node.value]
        if len(set(own)) < len(own):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        made = _Mapping(self.construct_mapping(node, deep=True))  # what is merged in (<<) comes first
        made.lines = {self.construct_object(key): key.start_mark.line + 1 for key, _ in node.value}
        return made

    def sequence(self, node: Any) -> _List:
        made = _List(self.construct_sequence(node, deep=True))
        made.lines = [item.start_mark.line + 1 for item in node.value]
        return made

    def integer(self, node: Any) -> int:
        """A whole number; Python refuses to read one of thousands of digits."""
        try:
            return int(self.construct_yaml_int(node))
        except ValueError as error:
            what = f"a number of {len(node.value):,} characters"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error


BoundedLoader.add_constructor("tag:yaml.org,2002:int", BoundedLoader.integer)
BoundedLoader.add_constructor("tag:yaml.org,2002:map", BoundedLoader.mapping)
BoundedLoader.add_constructor("tag:yaml.org,2002:seq", BoundedLoader.sequence)


def _check_keys(path: Path, item: _Mapping, known: tuple[str, ...], *, free: bool = False) -> None:
    """Raise InputError for a key that is not known; with `free`, for a near miss of one, and for no word."""
    for key, line in item.lines.items():
        near = not isinstance(key, str) or not is_free(key) or near_miss(key, known)
        if key not in known and (near or not free):
            raise InputError(f"{path}, line {line}: unknown key {key!r}.", nearest(str(key), known))


def _expand(path: Path, place: str, item: Any) -> list[Model]:
    """The models of one entry: every combination of its lists."""
    if not isinstance(item, _Mapping):
        raise InputError(f"{place}: {item!r} is not a model.", "Each model is a mapping with a 'name'.")
    _check_keys(path, item, MODEL_KEYS, free=True)
    name, layers, revisions = item.get("name"), item.get("layers", False), item.get("revisions") or _Mapping()
    if not isinstance(name, str) or not name:
        raise InputError(f"{place}: a model without a name.", remedy="Give 'name': a hub id or a directory.")
    if not isinstance(layers, bool):
        raise InputError(f"{place}: 'layers' cannot be {layers!r}.", remedy="Give true or false.")
    if not isinstance(revisions, _Mapping) or (revisions and not isinstance(revisions.get("pattern"), str)):
        raise InputError(f"{place}: 'revisions' needs a 'pattern', such as \"step{{step}}\".")
    if revisions:
        _check_keys(path, revisions, ("pattern", *ATTRIBUTE_KEYS))
    pattern = revisions.get("pattern", item.get("revision"))
    pattern = None if pattern is None else str(pattern)
    given = {k: v for k, v in {**item, **revisions}.items() if k not in ("pattern", *NO_ATTRIBUTES)}
    if "quantize" in item and "quantization" in given:
        why = "'quantization' says what the checkpoint is already, 'quantize' what is made of it."
        raise InputError(f"{place}: 'quantize' and 'quantization' exclude each other.", why, "Keep one of them.")
    lists = {key: _values(place, key, value) for key, value in given.items()}
    try:
        parsed = [part for text in (name, pattern) if text for part in string.Formatter().parse(text)]
        holes = {field for _, field, _, _ in parsed} - {None}
    except ValueError as error:
        raise InputError(f"{place}: a brace too many or too few in {name!r}.", f"{error}.") from error
    if wide := [spec for _, _, spec, _ in parsed if spec and not _FORMAT.fullmatch(spec)]:
        why = "What stands after a colon is a width of at most three digits, such as {step:06}."
        raise InputError(f"{place}: {{...:{wide[0][:20]}}} is no format.", why, "Shorten it.")
    if unfilled := holes - set(lists):
        raise InputError(
            f"{place}: nothing fills {{{sorted(map(str, unfilled))[0]}}}.", remedy="Give a list under that key."
        )
    if loose := [key for key, values in lists.items() if len(values) > 1 and key not in holes]:
        raise InputError(f"{place}: {loose[0]!r} has several values, but the name has no {{{loose[0]}}}.")
    variants = [None, *_values(place, "quantize", item["quantize"])] if "quantize" in item else [None]
    SUITE_MODELS.require(math.prod(map(len, lists.values())) * len(variants), place)
    models = []
    for values in itertools.product(*lists.values()):
        attributes = dict(zip(lists, values, strict=True))
        filled = {key: value for key, value in attributes.items() if key in holes}
        if "parent" in attributes:
            attributes["parent"] = str(_reference(path, place, str(attributes["parent"])))
        try:
            whole = name.format(**filled) + ("@" + pattern.format(**filled) if pattern else "")
        except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            raise InputError(f"{place}: {name!r} or its pattern cannot be filled.", f"{error}.") from error
        for quantization in variants:
            text = whole
            text += f"+{quantization}" if quantization else ""
            text += f"%{item['dtype']}" if "dtype" in item else ""
            ref = _reference(path, place, text)
            models.append(Model(ref, _typed(place, attributes), layers and ref.quantization is None, place))
    return models


def _reference(path: Path, place: str, text: str) -> ModelRef:
    """A reference; a name that begins with `.` is relative to the suite file, whatever characters its path has."""
    try:
        ref = ModelRef.parse(text)
    except InputError as error:
        raise error.at(place) from error
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
            SUITE_MODELS.require(len(numbers), f"{place}: {key!r}")
            if not numbers or match[3] == "0":
                raise InputError(f"{place}: {key!r} has the empty range {part!r}.", remedy="Write first..last/step.")
            flat += numbers
        elif (isinstance(part, str | int) and not isinstance(part, bool)) or (
            isinstance(part, float) and is_free(key, part)
        ):
            flat.append(part)
        else:
            raise InputError(
                f"{place}: {key!r} cannot be {part!r}.", remedy="Give a number, a word, or a list of them."
            )
    return flat


def _typed(place: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with numbers where numbers belong: `parameters: 410M`."""
    typed = dict(attributes)
    try:
        typed |= {key: number_of(key, typed[key]) for key in NUMBERS if key in typed}
    except InputError as error:
        raise error.at(place) from error
    return typed
