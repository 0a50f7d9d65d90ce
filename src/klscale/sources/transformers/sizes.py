"""How large a loaded model is in files and in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from klscale.sources.transformers.quantization import Quantization, embeddings, is_kernel, stored_bytes
from klscale.vectors.sizes import Size


def size_of(model: Any, files: list[Path], saved: torch.dtype, quantized: Quantization | None) -> Size | None:
    """The size of a model that was read from these `files`; None for a saved kind whose weights cannot be counted.
    `saved` is the dtype of its files where they are not safetensors."""
    held = sum(path.stat().st_size for path in files)
    embedded = {id(weight): weight.numel() for module in embeddings(model) for weight in module.parameters(False)}
    shapes = dict(_kernel_shapes(model)) if quantized is not None and not quantized.weights_only else {}
    if quantized is not None and not (quantized.weights_only or shapes):
        return None
    packed = {id(model.get_submodule(name).weight) for name in shapes}
    plain = {id(weight): weight for weight in model.parameters() if id(weight) not in packed}
    count = sum(weight.numel() for weight in plain.values()) + sum(rows * width for rows, width in shapes.values())
    if quantized is None:
        in_memory = sum(weight.numel() * weight.element_size() for weight in plain.values())
        return Size(count, sum(embedded.values()), held, in_memory)
    kind = quantized.kind.removesuffix("-kernel")
    if quantized.weights_only:
        codes, done = quantized.stored_bytes, quantized.n_weights
    else:
        codes = sum(stored_bytes(kind, shape) for shape in shapes.values())
        done = sum(rows * width for rows, width in shapes.values())
    rest = (count - done) * next(iter(plain.values())).element_size()
    in_files = held if quantized.saved else codes + round((count - done) * _bytes_per_weight(files, saved))
    return Size(count, sum(embedded.values()), in_files, codes + rest)


def size_of_gguf(tensors: Mapping[str, int], n_bytes: int, file: Path) -> Size:
    """The size of a GGUF file, from the number of elements of its `tensors` and their bytes in all."""
    embedded = sum(tensors.get(f"{name}.weight", 0) for name in ("token_embd", "output", "position_embd"))
    return Size(sum(tensors.values()), embedded, file.stat().st_size, n_bytes)


def _kernel_shapes(model: Any) -> Any:
    """(name, (outputs, inputs)) of each layer that a kernel of bitsandbytes runs: codes do not have its shape."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and is_kernel(module):
            yield name, (module.out_features, module.in_features)


def _bytes_per_weight(files: list[Path], saved: torch.dtype) -> float:
    """Mean bytes of a weight in these files."""
    if not all(path.suffix == ".safetensors" for path in files):
        return saved.itemsize
    count = total = 0
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (the file is no mapping)
                part = file.get_slice(name)
                numbers = torch.Size(part.get_shape()).numel()
                count, total = count + numbers, total + numbers * ITEM_BYTES[part.get_dtype()]
    return total / count if count else saved.itemsize


ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
         "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}  # fmt: skip
"""Bytes of a number of each dtype of safetensors."""
