"""A mix of kinds as other tools take it: llama.cpp's `--tensor-type`, and the modules that bitsandbytes skips."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

from klscale.errors import KlscaleError
from klscale.studies.budget import Mix

LLAMA_CPP = {"int8": "q8_0", "int8-torchao": "q8_0", "int4": "q4_0", "nf4": "iq4_nl", "fp4": "iq4_nl", None: "f16"}
"""The type of llama.cpp that is nearest to each kind: as many bits, in blocks of 32."""
BITSANDBYTES: dict[str, dict[str, Any]] = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
}
NEAREST = "Types of llama.cpp are the nearest to what was measured, not the same: compare the file that comes out."


def recipe(mix: Mix, architecture: str) -> dict[str, Any]:
    """The kind of each module; arguments for llama-quantize; and options for transformers' BitsAndBytesConfig. Where a
    tool cannot express the mix, `llama_cpp` or `bitsandbytes` holds the reason in words. `architecture` is the model's
    type (`llama`)."""
    return {
        "bits_per_weight": mix.bits,
        "kinds": dict(mix.kinds),
        "llama_cpp": _llama_cpp(mix, architecture),
        "llama_cpp_note": NEAREST,
        "bitsandbytes": _bitsandbytes(mix),
    }


def _llama_cpp(mix: Mix, architecture: str) -> list[str] | str:
    """Arguments of llama-quantize."""
    if find_spec("gguf") is None:
        raise KlscaleError("Names of GGUF tensors need the package gguf.", remedy="pip install 'klscale[quant]'")
    import gguf

    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        return f"llama.cpp knows no architecture {architecture!r}"
    names = gguf.get_tensor_name_map(known[architecture], 1024)
    found = {module: names.get_name(module) for module in mix.kinds}
    if lost := [module for module, name in found.items() if name is None]:
        return f"llama.cpp has no tensor for {lost[0]}"
    arguments: list[str] = []
    for module, kind in mix.kinds.items():
        pattern = str(found[module]).replace(".", r"\.")
        arguments += ["--tensor-type", f"^{pattern}\\.weight$={LLAMA_CPP[kind]}"]
    return arguments


def _bitsandbytes(mix: Mix) -> dict[str, Any] | str:
    used = {kind for kind in mix.kinds.values() if kind is not None}
    if any(re.search(r"\bexperts\.\d+\.", module) for module in mix.kinds):
        return "it does not quantize experts that a model holds in one tensor"
    if len(used) != 1 or (kind := used.pop()) not in BITSANDBYTES:
        return "it has one kind a model, and modules that it skips: this mix has others"
    skipped = [module for module, own in mix.kinds.items() if own is None]
    return {**BITSANDBYTES[kind], "llm_int8_skip_modules": [*skipped, "lm_head"]}
