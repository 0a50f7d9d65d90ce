"""Model references: exactly which model, in which weights and precision, as one string."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from klscale.errors import InputError, nearest
from klscale.inputs.checkpoint_names import without_checkpoint

DTYPES = ("float32", "bfloat16", "float16")
WEIGHTS_ONLY = ("int8", "nf4", "fp4", "int4", "int8-torchao")
"""Of the weights alone, by bitsandbytes (int8, nf4, fp4) and torchao: dequantized, then scored as usual."""
KERNELS = ("int8-kernel", "nf4-kernel", "fp4-kernel")
"""What deployment computes: the kernels of bitsandbytes; that of int8 quantizes activations too."""
QUANTIZATIONS = (*WEIGHTS_ONLY, *KERNELS)
_ENCODED = re.compile(r"[^\w./~=,-]", re.ASCII)
_DTYPE = re.compile(r"%([A-Za-z][\w]*)$")
_LAYER = re.compile(r"#(\d+)$")


@dataclass(frozen=True)
class ModelRef:
    """`NAME[@REVISION][+QUANT][%DTYPE][#LAYER]`, e.g. `EleutherAI/pythia-410m@step1000`, `gpt2+nf4`, `gpt2%bfloat16`.

    `name` is a local directory if one exists there, else a hub id (`./gpt2` forces local). `file` names one GGUF file
    inside it (`models/x:file.gguf`). `layer` means what the model would say after that many blocks (`gpt2#0`: after
    its embedding), read through the logit lens; None the model itself. Characters that a shell or this syntax would
    read are percent-encoded in print.
    """

    name: str
    revision: str | None = None
    quantization: str | None = None
    dtype: str = "float32"
    file: str | None = None
    layer: int | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read a reference. Raises InputError for an unknown quantization or dtype, with the nearest known one."""
        rest, dtype, quantization, revision, layer = text.strip(), "float32", None, None, None
        if match := _LAYER.search(rest):
            layer, rest = int(match[1]), rest[: match.start()]
        match = _DTYPE.search(rest)
        if match and (match[1] in DTYPES or not _decodes(match[0])):
            dtype, rest = match[1], rest[: match.start()]
        if dtype not in DTYPES:
            raise InputError(f"{text!r}: unknown dtype {dtype!r}.", remedy=nearest(dtype, DTYPES))
        if "+" in rest:
            rest, quantization = rest.rsplit("+", 1)
            if quantization not in QUANTIZATIONS:
                raise InputError(
                    f"{text!r}: unknown quantization {quantization!r}.",
                    nearest(quantization, QUANTIZATIONS),
                    "A + that belongs to the name itself is written %2B.",
                )
        if "@" in rest:
            rest, revision = rest.split("@", 1)
        name, _, file = rest.partition(":")
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
        return self._text(_encode)

    @property
    def label(self) -> str:
        """As a person reads it: nothing is encoded, so that it need not be shell-safe, nor parse."""
        return self._text(str)

    def _text(self, write: Callable[[str], str]) -> str:
        text = write(self.name)
        if self.file:
            text += ":" + write(self.file)
        if self.revision:
            text += "@" + write(self.revision)
        if self.quantization:
            text += "+" + self.quantization
        if self.dtype != "float32":
            text += "%" + self.dtype
        return text if self.layer is None else f"{text}#{self.layer}"

    @property
    def path(self) -> Path | None:
        """The local directory, or None for a hub id."""
        path = Path(self.name)
        with contextlib.suppress(RuntimeError):  # the home of a user that is not there
            path = path.expanduser()
        return path if path.is_dir() or self.name.startswith((".", "/", "~")) else None

    @property
    def run(self) -> str:
        """The name without its checkpoint: the checkpoints of a training run lie in one directory, are revisions of one
        name, or tell their step in names that are otherwise equal."""
        return os.path.normpath(without_checkpoint(self.name))

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


def _encode(part: str) -> str:
    return _ENCODED.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), part)


def _decodes(text: str) -> bool:
    """Whether every % begins an encoded character."""
    return not re.search(r"%(?![0-9A-Fa-f]{2})", text)
