"""Model references: exactly which model, in which weights and precision, as one string."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from klscale.errors import InputError, nearest, printable
from klscale.inputs.checkpoint_names import without_checkpoint

DTYPES = ("float32", "bfloat16", "float16")
WEIGHTS_ONLY = ("int8", "nf4", "fp4", "int4", "int8-torchao")
"""Of the weights alone, by bitsandbytes (int8, nf4, fp4) and torchao: dequantized, then scored as usual."""
KERNELS = ("int8-kernel", "nf4-kernel", "fp4-kernel")
"""What deployment computes: the kernels of bitsandbytes; that of int8 quantizes activations too."""
CACHES = {"kv-int8": 8, "kv-int4": 4}
"""Bits of the keys and values of attention; weights stay as they are."""
ATTENTIONS = {"attention-eager": "eager", "attention-sdpa": "sdpa", "attention-flash": "flash_attention_2"}
"""How attention is computed, by transformers' names; weights stay as they are."""
QUANTIZATIONS = (*WEIGHTS_ONLY, *KERNELS, *CACHES, *ATTENTIONS)
"""What follows the + of a reference."""
_ENCODED = re.compile(r"[^\w./~=,-]", re.ASCII)
_DTYPE = re.compile(r"%([A-Za-z][\w]*)$")
_LAYER = re.compile(r"#(\d+)$")
_SCHEME = re.compile(r"([a-z][a-z0-9]+)://")
_NOT_IN_ADDRESS = re.compile(r"[^\w.~:/?#@!&*,;=%-]|%(?![0-9A-Fa-f]{2})", re.ASCII)


@dataclass(frozen=True)
class ModelRef:
    """`NAME[@REVISION][+QUANT][%DTYPE][#LAYER]`, e.g. `EleutherAI/pythia-410m@step1000`, `gpt2+nf4`, `gpt2%bfloat16`.
    Or `SCHEME://ADDRESS[+QUANT][%DTYPE]` for a model of another source, e.g. `mock://7`, `http://host:8000/v1#model`.

    `name` is a local directory if one exists there, else a hub id (`./gpt2` forces local). `file` names one GGUF file
    inside it (`models/x:file.gguf`). `layer` means what the model would say after that many blocks (`gpt2#0`: after
    its embedding), read through the logit lens; None the model itself. Characters that a shell or this syntax would
    read are percent-encoded in print. An address belongs to its source, which reads `@`, `:`, `#` and `?` in its own
    way; `name` is the whole of it, with its scheme, percent-encoded as a URL is. `dtype` is float32 where it is not
    given, and for an address empty: the one that the source has.
    """

    name: str
    revision: str | None = None
    quantization: str | None = None
    dtype: str = ""
    file: str | None = None
    layer: int | None = None

    def __post_init__(self) -> None:
        if not self.dtype:
            object.__setattr__(self, "dtype", self._default_dtype)
        if self.scheme:
            legal = _NOT_IN_ADDRESS.sub(_percent, self.name)
            object.__setattr__(self, "name", re.sub("%..", lambda match: match[0].upper(), legal))

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read a reference. Raises InputError for an unknown quantization or dtype, with the nearest known one."""
        if any("\ud800" <= character <= "\udfff" for character in text):  # what no file or hub can be called here
            raise InputError(f"{printable(text)} is not a model.", "It holds bytes that are not UTF-8.", "Write %XX.")
        rest, dtype, quantization, revision, layer = text.strip(), "", None, None, None
        is_address = _SCHEME.match(rest) is not None
        if not is_address and (match := _LAYER.search(rest)):
            layer, rest = int(match[1]), rest[: match.start()]
        match = _DTYPE.search(rest)
        if match and (match[1] in DTYPES or not _decodes(match[0])):
            dtype, rest = match[1], rest[: match.start()]
        if dtype and dtype not in DTYPES:
            raise InputError(f"{text!r}: unknown dtype {dtype!r}.", remedy=nearest(dtype, DTYPES))
        if "+" in rest:
            rest, quantization = rest.rsplit("+", 1)
            if quantization not in QUANTIZATIONS:
                raise InputError(
                    f"{text!r}: unknown quantization {quantization!r}.",
                    nearest(quantization, QUANTIZATIONS),
                    "A + that belongs to the name itself is written %2B.",
                )
        if is_address:
            if rest.endswith("://"):
                raise InputError(
                    f"{text!r} is not a model.", "There is no address after the scheme.", "Write mock://7, say."
                )
            return cls(rest, None, quantization, dtype)
        if "@" in rest:
            rest, revision = rest.split("@", 1)
        name, _, file = rest.partition(":")
        if not file and name.endswith(".gguf") and (given := Path(unquote(name))).is_file():  # as a shell names it
            name, file = _encode(_directory(given)), _encode(given.name)
        if not name or revision == "":
            raise InputError(f"{text!r} is not a model.", remedy="Write NAME[@REVISION][+QUANTIZATION][%DTYPE].")
        try:
            return cls(
                unquote(name, errors="strict"),
                unquote(revision, errors="strict") if revision else None,
                quantization,
                dtype,
                unquote(file, errors="strict") if file else None,
                layer,
            )
        except UnicodeDecodeError as error:
            raise InputError(
                f"{text!r} is not a model.",
                "What follows % is neither a dtype nor an encoded character.",
                nearest(text.rsplit("%", 1)[-1], DTYPES),
            ) from error

    def __str__(self) -> str:
        return self._printed

    @cached_property
    def _printed(self) -> str:
        return self._text(_encode)

    @property
    def label(self) -> str:
        """As a person reads it: nothing is encoded, so that it need not be shell-safe, nor parse."""
        return self._text(str)

    def _text(self, write: Callable[[str], str]) -> str:
        text = self.name if self.scheme else write(self.name)
        if self.file:
            text += ":" + write(self.file)
        if self.revision:
            text += "@" + write(self.revision)
        if self.quantization:
            text += "+" + self.quantization
        if self.dtype != self._default_dtype:
            text += "%" + self.dtype
        return text if self.layer is None else f"{text}#{self.layer}"

    @property
    def scheme(self) -> str:
        """The scheme of an address, which names its source: `http`, `mock`; empty for a directory or a hub id."""
        match = _SCHEME.match(self.name)
        return match[1] if match else ""

    @property
    def _default_dtype(self) -> str:
        return "" if self.scheme else "float32"

    @property
    def path(self) -> Path | None:
        """The local directory, or None for a hub id or an address."""
        if self.scheme:
            return None
        path = Path(self.name)
        with contextlib.suppress(RuntimeError):  # the home of a user that is not there
            path = path.expanduser()
        return path if path.is_dir() or self.name.startswith((".", "/", "~")) else None

    @property
    def run(self) -> str:
        """The name without its checkpoint: the checkpoints of a training run lie in one directory, are revisions of one
        name, or tell their step in names that are otherwise equal."""
        return self.name if self.scheme else os.path.normpath(without_checkpoint(self.name))

    @property
    def slug(self) -> str:
        """A name for files: readable, safe on every file system, another for every reference."""
        text = str(self)
        base = re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.")[-70:].lstrip("-.")
        return base if base == text else f"{base or 'model'}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Model:
    """A model to score, with what a suite file says of it: the attributes that are known beforehand, whether at every
    `layers`, and the `line` that asks for it (`FILE, line N`)."""

    ref: ModelRef
    attributes: Mapping[str, Any] = field(default_factory=dict)
    layers: bool = False
    line: str = ""


def parse_all(models: Sequence[str | ModelRef]) -> list[ModelRef]:
    """These models as references, each once. A pattern (`models/*.gguf`), and a directory that holds GGUF files but no
    model of its own, stand for their GGUF files. Raises InputError for a name that is no reference, and for a pattern
    of no files."""
    found: dict[ModelRef, None] = {}
    for model in models:
        for one in [model] if isinstance(model, ModelRef) else _files_of(model) or [ModelRef.parse(model)]:
            found[one] = None
    return [*found]


def is_named_like(name: str, patterns: Sequence[str]) -> bool:
    """Whether the name of a model holds one of these patterns, in which `*` stands for any text."""
    return any(fnmatchcase(name, f"*{pattern}*") for pattern in patterns)


def canonical(name: str) -> str:
    """The reference that a name writes, as references are printed; else that of a model with this literal name."""
    try:
        return str(ModelRef.parse(name))
    except InputError:
        return str(ModelRef(name))


def _files_of(text: str) -> list[ModelRef]:
    """The GGUF files that a pattern or a directory stands for; none for anything else."""
    path = Path(text)
    if path.suffix == ".gguf" and any(mark in text for mark in "*?["):
        files = [Path(one) for one in sorted(glob(text))]  # noqa: PTH207 (of any directory)
        if not files:
            raise InputError(f"There is no file {text}.", remedy="Check the pattern, and quote it: 'DIR/*.gguf'.")
    elif path.is_dir() and not ((path / "config.json").exists() or (path / "adapter_config.json").exists()):
        files = sorted(path.glob("*.gguf"))
    else:
        return []
    return [ModelRef(_directory(file), file=file.name) for file in files]


def _directory(file: Path) -> str:
    """The directory of a file as the name of a local model."""
    return str(file.parent) if file.is_absolute() or str(file.parent) != "." else "."


def _encode(part: str) -> str:
    return _ENCODED.sub(_percent, part)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def _decodes(text: str) -> bool:
    """Whether every % begins an encoded character."""
    return not re.search(r"%(?![0-9A-Fa-f]{2})", text)
