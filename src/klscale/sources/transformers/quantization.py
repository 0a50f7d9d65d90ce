"""Quantized variants: weights quantized by a library and dequantized again, so that the ordinary engine scores them.

The number then measures the quantization and not a kernel. `int8`, `nf4`, `fp4` are those of bitsandbytes (LLM.int8:
Dettmers et al., arXiv 2208.07339; NF4: Dettmers et al., arXiv 2305.14314), `int4` (groups of 32) and `int8-torchao`
(a scale for each row) those of torchao. Each weight that comes back is held against the error that rounding to its
code allows. The kinds that end in `-kernel` run what deployment runs.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from klscale.errors import KlscaleError
from klscale.inputs.references import KERNELS, WEIGHTS_ONLY, ModelRef
from klscale.sources.quiet import quiet_transformers

BLOCK, GROUP = 64, 32
"""Weights that share a scale: of bitsandbytes' 4-bit types (its default), and of torchao's int4."""
FEWEST = 0.5
"""Least fraction of the weights outside the embeddings that must be quantized for the variant to deserve its name."""
SLACK = 0.01
"""How far beyond its bound a rounding error may be, for the arithmetic of the library itself."""


@dataclass(frozen=True)
class Quantization:
    """What was done to a model, as it is recorded with its vector. `modules` counts the quantized weights by name,
    layer numbers as `*`; `fraction` is their share of the parameters outside the embeddings, where that is known. Of
    weights that klscale quantized or dequantized, `n_weights` is their number and `stored_bytes` what codes and scales
    take; `saved` says that the model's files hold the codes. Of saved codes, `types` are their number formats, and
    `groups` the weights that share a scale; `not_applied` names what the format quantizes besides weights."""

    kind: str
    library: str
    weights_only: bool
    modules: dict[str, int]
    fraction: float | None = None
    n_weights: int = 0
    stored_bytes: int = 0
    saved: bool = False
    types: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    not_applied: tuple[str, ...] = ()


def require(ref: ModelRef) -> None:
    """Raises KlscaleError where the library that a quantized model needs is not here."""
    if ref.quantization in (*WEIGHTS_ONLY, *KERNELS):
        require_kind(str(ref.quantization), str(ref))
    elif ref.file:
        _library("gguf", str(ref))


def require_kind(kind: str, what: str) -> None:
    """Raises KlscaleError, which begins with `what`, where the library of a kind is not here."""
    _library(_package(kind), what)


def _package(kind: str) -> str:
    return "torchao" if kind in ("int4", "int8-torchao") else "bitsandbytes"


def _library(package: str, what: str) -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports every cast in every layer
    try:
        with quiet_transformers():
            return import_module(package)
    except Exception as error:  # whatever a library that does not fit this machine does
        why = f"It is quantized by the package {package}, which cannot be imported ({type(error).__name__})."
        raise KlscaleError(f"{what} cannot be read.", why, "pip install 'klscale[quant]'") from error


# ------------------------------------------------------------------------------------------------- weights alone


@dataclass(frozen=True)
class Matrix:
    """A weight of a linear layer, or of one expert among those that a model holds in one tensor. `module` has it;
    `transposed`: as inputs by outputs."""

    name: str
    module: Any
    parameter: nn.Parameter
    transposed: bool
    expert: int | None = None

    @property
    def held(self) -> Tensor:
        """The weight in the model: what is written here changes the model."""
        return self.parameter.data if self.expert is None else self.parameter.data[self.expert]

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        rows, width = self.held.shape
        return (int(width), int(rows)) if self.transposed else (int(rows), int(width))


def quantize_weights(model: Any, ref: ModelRef, device: torch.device) -> Quantization:
    """Replace the weights of all linear layers and experts, but not of the output embedding, by their dequantized
    values, one by one, so that no second copy of the model exists. The libraries work on `device` where that is CUDA,
    else on the CPU.

    Raises KlscaleError where a weight does not come back within the rounding error of its code, and where less than
    half of the weights can be quantized.
    """
    kind, done, left, stored, n_weights = str(ref.quantization), list[str](), list[str](), 0, 0
    kept = {id(parameter) for module in embeddings(model) for parameter in module.parameters(recurse=False)}
    for matrix in matrices(model):
        if not holds(kind, matrix.shape):
            left.append(matrix.name)
            continue
        matrix.held.copy_(quantized_weight(matrix, kind, device, f"{ref}: {matrix.name}"))
        done.append(matrix.name)
        n_weights += matrix.held.numel()
        stored += stored_bytes(kind, matrix.shape)
    all_of_it = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in kept)
    fraction = n_weights / max(1, all_of_it)
    if fraction < FEWEST:
        why = f"Only {fraction:.0%} of the weights outside the embeddings are those of linear layers and experts."
        if left:
            why = f"The input width of {len(left)} layers, first of {left[0]}, is no multiple of {GROUP}."
        remedy = "Such a variant would be the model itself in all but name; take another kind, or another model."
        raise KlscaleError(f"{ref} cannot be quantized.", why, remedy)
    package = _package(kind)
    return Quantization(kind, f"{package} {version(package)}", True, patterns(done), fraction, n_weights, stored)


def matrices(model: Any) -> Iterator[Matrix]:
    """The weight of each linear layer but the output embedding, and of each expert; of weights that are shared the
    first. Experts in one tensor are those that transformers marks as such: it says how they are turned."""
    seen = {id(parameter) for module in embeddings(model) for parameter in module.parameters(recurse=False)}
    for name, module in model.named_modules():
        if _is_linear(module):
            held = [("weight", module.weight, not isinstance(module, nn.Linear))]
        elif isinstance(turned := getattr(module, "is_transposed", None), bool):
            own = module.named_parameters(recurse=False)
            held = [(part, weight, turned) for part, weight in own if weight.ndim == 3]
        else:
            continue
        for part, weight, turned in held:
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            if weight.ndim == 2:
                yield Matrix(name, module, weight, turned)
            else:
                yield from (Matrix(f"{name}.{n}.{part}", module, weight, turned, n) for n in range(len(weight)))


def holds(kind: str, shape: Sequence[int]) -> bool:
    """Whether a kind can hold a weight (outputs, inputs): groups of int4 divide its width."""
    return kind != "int4" or shape[1] % GROUP == 0


def quantized_weight(matrix: Matrix, kind: str, device: torch.device, name: str) -> Tensor:
    """A weight after quantization, as the model holds it. The library works on `device` where that is CUDA, else on the
    CPU. Raises KlscaleError, which begins with `name`, where the weight does not come back within the rounding error of
    its code."""
    held = matrix.held
    there = (held.T if matrix.transposed else held).contiguous()
    there = there.to(device if device.type == "cuda" else "cpu", torch.float32)
    back, bound = _WAYS[kind](there)
    _verify(name, kind, there, back, bound)
    return (back.T if matrix.transposed else back).to(held.device, held.dtype)


def stored_bytes(kind: str, shape: Sequence[int]) -> int:
    """Bytes that the library stores of a weight (outputs, inputs): codes, and a float32 scale for each row (int8), each
    block of 64 (nf4, fp4) or each group of 32 (int4)."""
    rows, width = shape
    codes, scales = {
        "int8": (rows * width, rows),
        "int8-torchao": (rows * width, rows),
        "int4": (-(-rows * width // 2), rows * width // GROUP),
    }.get(kind, (-(-rows * width // 2), -(-rows * width // BLOCK)))
    return codes + 4 * scales


def embeddings(model: Any) -> Iterator[Any]:
    """What no library quantizes: embeddings, and the output embedding."""
    if (head := model.get_output_embeddings()) is not None:
        yield head
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield module


def _is_linear(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _verify(name: str, kind: str, weight: Tensor, back: Tensor, bound: Tensor) -> None:
    excess = (back - weight).abs() - bound
    if not back.isfinite().all():
        why = "It holds values that are not finite, or beyond the range of half precision."
        raise KlscaleError(f"{name} cannot be quantized.", why, "Check the weights, or take another kind.")
    if back.shape != weight.shape or not excess.max() <= 0:
        raise KlscaleError(
            f"{name} was not quantized as it should be.",
            f"A weight comes back farther away than rounding allows (by {excess.max():.2g}).",
            f"This version of {_package(kind)} fails on this machine; try another.",
        )


def patterns(names: Iterable[str]) -> dict[str, int]:
    """How many of these names there are, layer numbers as `*`."""
    return dict(Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names))


# Each way takes a weight (outputs, inputs) in float32 and returns it dequantized, with the largest error that rounding
# explains.


def _llm_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    from bitsandbytes import functional

    codes, scale, _ = functional.int8_vectorwise_quant(weight.half())  # half: what LLM.int8 makes of any weight first
    half = 2**-11 * scale[:, None] + 2**-25  # of a step of half precision, normal or not
    return functional.int8_vectorwise_dequant(codes, scale), scale[:, None] * ((0.5 + SLACK) / 127) + half


def _four_bit(weight: Tensor, code: str) -> tuple[Tensor, Tensor]:
    from bitsandbytes import functional

    # As one row: a matrix whose width is no multiple of the block does not come back right.
    packed, state = functional.quantize_4bit(weight.reshape(-1), blocksize=BLOCK, quant_type=code)
    back = functional.dequantize_4bit(packed, state).reshape(weight.shape)
    largest = state.absmax.repeat_interleave(BLOCK)[: weight.numel()].reshape(weight.shape)
    return back, largest * (state.code.sort().values.diff().max() / 2 + SLACK)


def _torchao(weight: Tensor, bits: int, group: int | None) -> tuple[Tensor, Tensor]:
    from torchao.quantization import IntxWeightOnlyConfig, PerAxis, PerGroup, quantize_

    width = group or weight.shape[1]
    config = IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), PerGroup(group) if group else PerAxis(0))
    holder: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    holder.weight = nn.Parameter(weight.clone(), requires_grad=False)
    quantize_(holder, config, lambda _module, _name: True)
    largest = weight.reshape(weight.shape[0], -1, width).abs().amax(dim=2).repeat_interleave(width, dim=1)
    return holder.weight.dequantize(), largest * ((0.5 + SLACK) / (2 ** (bits - 1) - 0.5))


_WAYS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "int8": _llm_int8,
    "nf4": partial(_four_bit, code="nf4"),
    "fp4": partial(_four_bit, code="fp4"),
    "int4": partial(_torchao, bits=4, group=GROUP),
    "int8-torchao": partial(_torchao, bits=8, group=None),
}


# ------------------------------------------------------------------------------------- kernels, and what is read so


def kernel_options(ref: ModelRef, device: torch.device) -> dict[str, Any]:
    """How transformers is asked to run a model through the kernels of bitsandbytes."""
    from transformers import BitsAndBytesConfig

    kind = str(ref.quantization).removesuffix("-kernel")
    if kind == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        compute = getattr(torch, ref.dtype)
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=compute)
    return {"quantization_config": config, "device_map": {"": device}}


def loaded_so(model: Any, ref: ModelRef, saved_so: Any = None) -> Quantization | None:
    """What is known of a model that runs through its kernels: asked for, or saved so. What was `saved_so`, by its
    configuration, and comes without one has been dequantized: MXFP4, two codes a byte, 32 of them to a scale."""
    config = getattr(model.config, "quantization_config", None)
    if config is None and saved_so is not None:
        held = [matrix for matrix in matrices(model) if matrix.expert is not None]
        n = sum(matrix.held.numel() for matrix in held)
        return Quantization(
            "mxfp4", f"transformers {version('transformers')}", True, patterns(one.name for one in held), n_weights=n,
            stored_bytes=n // 2 + n // 32, saved=True, types=("mxfp4",), groups=("32",),
        )  # fmt: skip
    if config is None:
        return None
    told = _told(config)
    done = [name for name, module in model.named_modules() if is_kernel(module)]
    if ref.quantization in KERNELS and not done:
        raise KlscaleError(f"{ref}: nothing was quantized.", "The model has no linear layers that bitsandbytes knows.")
    method = method_of(config)
    library = f"{method} {version(method)}" if method == "bitsandbytes" else method
    saved = ref.quantization is None
    return Quantization(_kind_of(told, method), library, False, patterns(done), saved=saved)


READ_BY_TRANSFORMERS = ("mxfp4", "bitsandbytes", "torchao")
NEEDS = {
    "aqlm": "the package aqlm",
    "bitnet": "layers of its own, which transformers runs",
    "eetq": "the package kernels, and a GPU as that which packed it: the order of its codes depends on it",
    "fbgemm_fp8": "the package fbgemm-gpu and a GPU",
    "fouroversix": "the package fouroversix",
    "fp_quant": "the package fp_quant and a GPU",
    "gemma": "layers of its own, which transformers runs",
    "higgs": "the package flute-kernel and a GPU",
    "metal": "the package kernels and a GPU of Apple",
    "modelopt": "NVIDIA's ModelOpt or vLLM, and a GPU",
    "nvfp4": "the package kernels and a Blackwell GPU",
    "quanto": "the package optimum-quanto",
    "quark": "the package amd-quark",
    "sinq": "the package sinq",
    "spqr": "the package spqr_quant and a GPU",
    "vptq": "the package vptq and a GPU",
}
"""What a method that is not read here needs to run."""


def method_of(config: Any) -> str:
    """The method that a configuration of quantization names: `gptq`."""
    method = _told(config).get("quant_method")
    if method is None and any(_told(config).get(key) for key in ("load_in_8bit", "load_in_4bit")):
        return "bitsandbytes"
    return str(getattr(method, "value", method))


def _told(config: Any) -> dict[str, Any]:
    return config if isinstance(config, dict) else dict(config.to_dict())


def is_kernel(module: Any) -> bool:
    """Whether a module is a layer of bitsandbytes."""
    name = type(module).__name__.lower()
    return "4bit" in name or "8bit" in name


def _kind_of(told: dict[str, Any], method: str) -> str:
    """A short name for the quantization in a configuration: `nf4-kernel`, `gptq-4bit`."""
    if method == "bitsandbytes":
        return "int8-kernel" if told.get("load_in_8bit") else f"{told.get('bnb_4bit_quant_type', 'fp4')}-kernel"
    return f"{method}-{told['bits']}bit" if isinstance(told.get("bits"), int) else method


def gguf(file_type: int | None) -> Quantization | None:
    """What a GGUF file says of itself by its `general.file_type`, `gguf-q4_k_m`; None where it holds plain numbers."""
    from gguf import LlamaFileType

    try:
        name = "?" if file_type is None else LlamaFileType(file_type).name.removeprefix("MOSTLY_").lower()
    except ValueError:
        name = "?"
    if name in ("all_f32", "f16", "bf16"):
        return None
    return Quantization("gguf" if name == "?" else f"gguf-{name}", f"gguf {version('gguf')}", True, {}, saved=True)
