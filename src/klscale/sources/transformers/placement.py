"""Which device a model runs on, and how one that is larger than memory is spread over devices and disk."""

from __future__ import annotations

import gc
import json
import tempfile
import threading
from typing import Any

import torch

from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import KERNELS, ModelRef
from klscale.inputs.texts import cache_directory
from klscale.limits import free_memory

_RESIDENT = 0.8
"""Share of the free memory that weights may take; the rest is for batches and other programs."""


def device_of(name: str | None) -> torch.device:
    """The device of this name, or the fastest that is there. Raises InputError for one that cannot be used."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        why = str(error).split("\n")[0]
        raise InputError(f"The device {name!r} cannot be used.", why, "Use --device cpu.") from error


def available_memory(device: torch.device) -> int:
    """Free bytes where a device keeps its tensors."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


def placement_of(
    config: Any, ref: ModelRef, device: str | None, alone: threading.Event | None
) -> tuple[dict[str, Any], tempfile.TemporaryDirectory[str] | None]:
    """Options for transformers that spread weights over devices and disk where they do not fit into memory, and a
    folder for weights that it must write anew. Nothing where they fit. Raises KlscaleError for a model whose buffers do
    not fit: those of GPT-Neo are as large as its positions squared, and no file holds them."""
    if getattr(config, "quantization_config", None) is not None or ref.file or ref.quantization in KERNELS:
        return {}, None  # their size in memory is another
    itemsize = getattr(torch, ref.dtype).itemsize
    n_weights, n_head, buffers = _parts(config)
    size, head = itemsize * n_weights + buffers, itemsize * n_head
    cpu, places = torch.device("cpu"), {device_of(device), torch.device("cpu")}

    if buffers > _RESIDENT * available_memory(cpu):
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        said = "" if positions is None else f", for {positions:,} positions"
        what, why = f"{ref} does not fit into memory.", f"Its buffers would take {buffers / 1e9:,.0f} GB{said}."
        raise KlscaleError(what, why, "Check max_position_embeddings in its config.json.")

    def fits() -> bool:
        return all(size <= _RESIDENT * available_memory(place) for place in places)

    if not fits() and alone is not None:
        alone.wait()
        gc.collect()
    if fits():
        return {}, None
    # The output embedding is held beside the layers, wherever those are.
    memory: dict[int | str, int] = {"cpu": int(_RESIDENT * available_memory(cpu) - head)}
    if device_of(device).type == "cuda":
        for n in (device_of(device).index,) if ":" in (device or "") else range(torch.cuda.device_count()):
            memory[n] = int(_RESIDENT * available_memory(torch.device("cuda", n)) - head)
    cache = cache_directory() / "offload"
    cache.mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(dir=cache)
    return {"device_map": "auto", "max_memory": memory, "offload_folder": folder.name}, folder


_COUNTED: dict[str, tuple[int, int, int]] = {}


def _parts(config: Any) -> tuple[int, int, int]:
    """Weights of a model, those of its output embedding, and bytes of its buffers, without loading any; once for all
    checkpoints of a run."""
    from transformers import AutoModelForCausalLM

    key = json.dumps([type(config).__name__, config.to_dict()], sort_keys=True, default=str)
    if key not in _COUNTED:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        head = getattr(model.get_output_embeddings(), "weight", None)
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
        _COUNTED[key] = sum(p.numel() for p in model.parameters()), 0 if head is None else head.numel(), buffers
    return _COUNTED[key]
