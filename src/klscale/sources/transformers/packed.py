"""Weights that quantizers publish as codes, read from safetensors as the numbers that the codes stand for.

GPTQ, AWQ, AutoRound, compressed-tensors, HQQ, and FP8 in blocks: `layouts.py`. Every tensor of the files is used, or
named in an error or among `left_out`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from klscale.errors import KlscaleError
from klscale.sources.transformers.layouts import FLOATS, LAYOUTS, LayoutError, Stored, Weight
from klscale.sources.transformers.quantization import Quantization, method_of, patterns
from klscale.sources.transformers.sizes import ITEM_BYTES


@dataclass(frozen=True)
class Packed:
    """The weights of a model. `tensors` are read one at a time, when they are asked for by `[...]`. `left_out` names
    the tensors that are for quantized activations and caches, which have no part in the weights."""

    tensors: dict[str, Stored | Weight]
    quantization: Quantization
    left_out: tuple[str, ...]


def read(what: str, files: Sequence[Path], config: Any) -> Packed:
    """The weights in these files, whose format is in the quantization `config` of the model.

    Raises KlscaleError, which begins with `what`, for a format, a setting or a tensor that cannot be read.
    """
    method, told = method_of(config), config if isinstance(config, dict) else config.to_dict()
    try:
        layout = LAYOUTS[method](told)
        if not files or any(path.suffix != ".safetensors" for path in files):
            raise LayoutError("Codes are read from safetensors, and this model has none.")
        modules: defaultdict[str, dict[str, Stored]] = defaultdict(dict)
        for stored in _stored(files):
            module, _, part = stored.name.rpartition(".")
            modules[module][part] = stored
    except LayoutError as error:
        raise _refusal(what, method, "", str(error)) from error
    tensors, weights, left_out, n_bytes = dict[str, Stored | Weight](), dict[str, Weight](), list[str](), 0
    for module, parts in modules.items():
        try:
            weight, experts = layout.weight(parts), layout.experts(parts)
        except LayoutError as error:
            raise _refusal(what, method, module, str(error)) from error
        taken = {part for _, its in experts.values() for part in its} | {*(layout.parts if weight is not None else ())}
        for part, stored in parts.items():
            if part in taken:
                n_bytes += stored.n_bytes
            elif part in layout.of_activations:
                left_out.append(stored.name)
            elif stored.dtype in FLOATS:
                tensors[stored.name] = stored
            else:
                raise _refusal(what, method, stored.name, f"It holds {stored.dtype}, which nothing there explains.")
        if weight is not None:
            if f"{module}.weight" in tensors:
                raise _refusal(what, method, module, "It has both codes and plain weights.")
            tensors[f"{module}.weight"] = weights[module] = weight
        for part, (together, _) in experts.items():
            tensors[f"{module}.{part}"] = weights[f"{module}.{part}"] = together
    if not weights:
        raise _refusal(what, method, "", "Its files hold no codes.")
    types, groups = (sorted({getattr(one, key) for one in weights.values()}) for key in ("type", "group"))
    quantization = Quantization(
        layout.kind(types), "klscale", True, patterns(weights),
        n_weights=sum(math.prod(weight.shape) for weight in weights.values()), stored_bytes=n_bytes, saved=True,
        types=tuple(types), groups=tuple(groups), not_applied=layout.not_applied,
    )  # fmt: skip
    return Packed(tensors, quantization, tuple(sorted(left_out)))


def _refusal(what: str, method: str, name: str, why: str) -> KlscaleError:
    remedy = "Check that the download is whole; or score it with its own library, and `klscale import` the result."
    return KlscaleError(f"{what} is quantized by {method}; {name or 'it'} cannot be read.", why, remedy)


def _stored(files: Sequence[Path]) -> list[Stored]:
    found = []
    for path in files:
        file: Any = safe_open(path, "pt")
        for name in file.keys():  # noqa: SIM118 (the file is no mapping)
            part = file.get_slice(name)
            if part.get_dtype() not in ITEM_BYTES:
                raise LayoutError(f"{name} holds {part.get_dtype()}, which is unknown here.")
            found.append(Stored(name, tuple(part.get_shape()), part.get_dtype(), file))
    return found
