"""Weights that quantizers publish as codes, read from safetensors as the numbers that the codes stand for.

GPTQ (GPTQModel's `gptq` and `gptq_v2`), AWQ (AutoAWQ's `gemm`), AutoRound, compressed-tensors, and FP8 in blocks.
A code is an integer or a small float, and a weight is (code - zero point) * scale in float32. Shapes, dtypes and the
configuration are checked against each other before anything is read. Every tensor of the files is used, or named in an
error or among `left_out`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from klscale.errors import KlscaleError
from klscale.sources.transformers.quantization import Quantization, method_of, patterns
from klscale.sources.transformers.sizes import ITEM_BYTES

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place in its word of each of eight neighbouring columns (AutoAWQ, `gemm`)."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of a 4-bit float without its sign (OCP Microscaling Formats 1.0, table 5)."""
NVFP4_GROUP, MX_GROUP = 16, 32
FLOATS = ("F64", "F32", "F16", "BF16")


class LayoutError(Exception):
    """Why a configuration or a weight is not as its format says."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a file, not read yet."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Any

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def read(self) -> Tensor:
        tensor: Tensor = self.file.get_tensor(self.name)
        return tensor

    def __getitem__(self, index: Any) -> Tensor:
        """What transformers reads a tensor by."""
        return self.read()[index]


@dataclass(frozen=True)
class Weight:
    """A weight (outputs, inputs) held as codes of `type`, e.g. `int4`. `group` says which weights share a scale: a
    number of neighbours in a row, `row`, `tensor`, or a block such as `128x128`."""

    shape: tuple[int, int]
    type: str
    group: str
    decode: Callable[[], Tensor]

    def __getitem__(self, index: Any) -> Tensor:
        return self.decode()[index]


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
            weight = layout.weight(parts)
        except LayoutError as error:
            raise _refusal(what, method, module, str(error)) from error
        taken = layout.parts if weight is not None else ()
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


# ------------------------------------------------------------------------------------------------------------- checks


def _need(condition: object, why: str) -> None:
    if not condition:
        raise LayoutError(why)


def _setting(told: Mapping[str, Any], key: str, default: Any, allowed: Callable[[Any], bool]) -> Any:
    """A setting of the configuration. `allowed` sees a value of the default's type."""
    value = told.get(key)
    value = default if value is None else value
    _need(type(value) is type(default) and allowed(value), f"{key} is {value!r:.60} in config.json.")
    return value


def _matrix(parts: Mapping[str, Stored], part: str, *dtypes: str) -> tuple[int, int]:
    """The shape of a matrix of one of these dtypes."""
    _need(part in parts, f"It has no {part}.")
    stored = parts[part]
    _need(len(stored.shape) == 2 and all(stored.shape), f"{part} is {stored.shape}, and no matrix.")
    _need(stored.dtype in dtypes, f"{part} holds {stored.dtype}, not {' or '.join(dtypes)}.")
    return stored.shape[0], stored.shape[1]


def _shape(parts: Mapping[str, Stored], part: str, *shapes: tuple[int, ...]) -> None:
    _need(parts[part].shape in shapes, f"{part} is {parts[part].shape}, where {shapes[0]} is meant.")


def _group_of(stored: Stored, n_groups: int, width: int) -> Tensor:
    """The group (width,) of each input."""
    groups = stored.read().long()
    _need(groups.shape == (width,), f"{stored.name} is {tuple(groups.shape)}, where ({width},) is meant.")
    _need(0 <= groups.min() and groups.max() < n_groups, f"{stored.name} names a group that has no scale.")
    return groups


# -------------------------------------------------------------------------------------------------------------- codes


def unpack(words: Tensor, bits: int) -> Tensor:
    """Codes (rows, n) of so many bits, packed along each row of 32-bit words (rows, w) without gaps, the lowest bits
    first."""
    n_bytes = math.lcm(bits, 8) // 8  # that hold whole codes
    held = words.contiguous().view(torch.uint8).reshape(len(words), -1, n_bytes)
    if bits == 8:
        return held[..., 0]
    whole = held[..., 0] if n_bytes == 1 else sum(held[..., n].int() << (8 * n) for n in range(n_bytes))
    codes = [((whole >> shift) & (2**bits - 1)).to(torch.uint8) for shift in range(0, 8 * n_bytes, bits)]
    return torch.stack(codes, dim=-1).flatten(1)


def _scaled(codes: Tensor, zeros: Tensor | None, scales: Tensor, spread: Callable[[Tensor], Tensor]) -> Tensor:
    """(code - zero point) * scale (outputs, inputs) in float32; `spread` gives each weight its zero point and scale."""
    weight = codes.float()
    if zeros is not None:
        weight -= spread(zeros.float())
    weight *= spread(scales.float())
    return weight


def _e2m1(packed: Tensor) -> Tensor:
    """4-bit floats (rows, 2 * columns), two a byte, the lower half first."""
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
    return torch.tensor((*E2M1, *(-value for value in E2M1))).index_select(0, codes.flatten().int()).view(codes.shape)


def _power_of_two(codes: Tensor) -> Tensor:
    """Scales that are exponents (E8M0): 2 ** (code - 127)."""
    return torch.exp2(codes.view(torch.uint8).float() - 127)


# ------------------------------------------------------------------------------------------------------------ layouts


class Layout:
    """How a method names and packs what stands for a weight, by the method's part of config.json. `parts` are the
    tensors that a weight is read from, `of_activations` those for quantized activations and caches. `not_applied` says
    in words what the format quantizes besides weights."""

    parts: tuple[str, ...] = ()
    of_activations: tuple[str, ...] = ()
    not_applied: tuple[str, ...] = ()

    def __init__(self, told: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def weight(self, parts: Mapping[str, Stored]) -> Weight | None:
        """The weight of a module with these tensors; None where it has no codes. Raises LayoutError."""
        raise NotImplementedError

    def kind(self, types: Sequence[str]) -> str:
        raise NotImplementedError


class Gptq(Layout):
    """`qweight` (inputs * bits / 32, outputs) packed along the inputs, `qzeros` (groups, outputs * bits / 32) along the
    outputs, `scales` (groups, outputs), and the group of each input in `g_idx` (inputs,)."""

    parts = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.name = str(told["quant_method"])
        self.bits = _setting(told, "bits", 4, lambda bits: bits in (2, 3, 4, 8))
        self.group = _setting(told, "group_size", -1, lambda size: size == -1 or 0 < size < 2**31)
        self.by_module = bool(told.get("dynamic"))  # other settings for some modules, which their shapes tell
        saved = told.get("checkpoint_format") or told.get("format") or "gptq"
        _need(saved in ("gptq", "gptq_v2"), f"It is packed as {saved!r:.40}; gptq and gptq_v2 are read.")
        self.less_one = saved == "gptq"
        for key in ("is_marlin_format", "rotation", "adapter"):
            _need(not told.get(key), f"config.json sets {key}, which is not read.")

    def kind(self, types: Sequence[str]) -> str:
        return f"{self.name}-{self.bits}bit"

    def weight(self, parts: Mapping[str, Stored]) -> Weight | None:
        if "qweight" not in parts:
            return None
        n_words, outputs = _matrix(parts, "qweight", "I32")
        n_groups, _ = _matrix(parts, "scales", "F16", "BF16", "F32")
        _shape(parts, "scales", (n_groups, outputs))
        bits = 32 * _matrix(parts, "qzeros", "I32")[1] // outputs
        _need(bits in (2, 3, 4, 8), f"qzeros {parts['qzeros'].shape} fit no number of bits.")
        _need(bits == self.bits or self.by_module, f"It has {bits} bits, and config.json says {self.bits}.")
        _shape(parts, "qzeros", (n_groups, outputs * bits // 32))
        period = math.lcm(bits, 32) // 32
        _need(outputs * bits % (32 * period) == 0 and n_words % period == 0, "Its words hold no whole codes.")
        inputs = n_words * 32 // bits
        size = inputs if self.group == -1 else self.group
        if self.by_module:
            size = math.ceil(inputs / n_groups)
        _need(math.ceil(inputs / size) == n_groups, f"{inputs} inputs in groups of {size} need other than {n_groups}.")

        def decode() -> Tensor:
            zeros = parts["qzeros"].read()
            if self.less_one and bits != 3:  # a word at a time: a zero point of 0 borrows from its neighbour
                zeros = (zeros.long() + sum(1 << shift for shift in range(0, 32, bits))).to(torch.int32)
            zeros = unpack(zeros, bits)
            if self.less_one and bits == 3:
                zeros = (zeros + 1) & 7
            group = torch.arange(inputs) // size
            if "g_idx" in parts:
                group = _group_of(parts["g_idx"], n_groups, inputs)
            codes = unpack(parts["qweight"].read().T, bits)
            return _scaled(codes, zeros.T, parts["scales"].read().T, lambda held: held[:, group])

        return Weight((outputs, inputs), f"int{bits}", _size(size, inputs), decode)


class Awq(Layout):
    """`qweight` (inputs, outputs / 8) and `qzeros` (groups, outputs / 8), eight columns a word in an order of their
    own, and `scales` (groups, outputs)."""

    parts = ("qweight", "qzeros", "scales")

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.name = str(told["quant_method"])
        _setting(told, "bits", 4, lambda bits: bits == 4)
        self.group = _setting(told, "group_size", 128, lambda size: size == -1 or 0 < size < 2**31)
        saved = told.get("version") or told.get("format") or told.get("checkpoint_format") or "gemm"
        _need(str(saved).lower() == "gemm", f"It is packed as {saved!r:.40}; gemm is read.")

    def kind(self, types: Sequence[str]) -> str:
        return f"{self.name}-4bit"

    def weight(self, parts: Mapping[str, Stored]) -> Weight | None:
        if "qweight" not in parts:
            return None
        inputs, n_words = _matrix(parts, "qweight", "I32")
        n_groups, outputs = _matrix(parts, "scales", "F16", "BF16", "F32")
        size = inputs if self.group == -1 else self.group
        _need(outputs == 8 * n_words, f"qweight {parts['qweight'].shape} does not fit {outputs} scales.")
        _need(inputs == size * n_groups, f"{inputs} inputs in groups of {size} need other than {n_groups}.")
        _matrix(parts, "qzeros", "I32")
        _shape(parts, "qzeros", (n_groups, n_words))

        def columns(part: str) -> Tensor:
            codes = unpack(parts[part].read(), 4)
            return codes.reshape(len(codes), -1, 8)[:, :, list(AWQ_ORDER)].flatten(1).T.contiguous()

        def decode() -> Tensor:
            scales = parts["scales"].read().T
            return _scaled(columns("qweight"), columns("qzeros"), scales, lambda held: held.repeat_interleave(size, 1))

        return Weight((outputs, inputs), "int4", _size(size, inputs), decode)


def auto_round(told: Mapping[str, Any]) -> Layout:
    """AutoRound packs as GPTQ or AWQ do."""
    saved = told.get("packing_format")
    formats = {"auto_round:auto_gptq": "gptq", "auto_round": "gptq_v2", "auto_round:gptqmodel": "gptq_v2"}
    known = isinstance(saved, str) and saved in (*formats, "auto_round:auto_awq")
    _need(known, f"It is packed as {saved!r:.40}; these are read: {', '.join(formats)}, auto_round:auto_awq.")
    about = {**told, "dynamic": told.get("extra_config")}
    layout = Gptq({**about, "checkpoint_format": formats[saved]}) if saved in formats else Awq({**about, "version": ""})
    if isinstance(bits := told.get("act_bits"), int) and bits < 16:
        layout.not_applied = ("activations",)
    return layout


class CompressedTensors(Layout):
    """`weight_packed` (integers in 32-bit words, or two 4-bit floats a byte) or `weight` (8 bits), with `weight_scale`
    for the tensor, each row, each group of a row or each block."""

    parts = (
        "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
        "weight_global_scale",
    )  # fmt: skip
    of_activations = tuple(
        f"{of}_{what}"
        for of in ("input", "output", "q", "k", "v")
        for what in ("scale", "zero_point", "global_scale", "g_idx")
    )
    formats = (
        "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
        "mxfp4-pack-quantized", "mixed-precision",
    )  # fmt: skip

    def __init__(self, told: Mapping[str, Any]) -> None:
        groups = told.get("config_groups")
        _need(isinstance(groups, dict) and groups, "config.json has no config_groups.")
        assert isinstance(groups, dict)
        schemes = [scheme for scheme in groups.values() if isinstance(scheme, dict)]
        _need(len(schemes) == len(groups), "Its config_groups name a preset; only written settings are read.")
        for saved in (told.get("format"), *(scheme.get("format") for scheme in schemes)):
            known = saved is None or saved in self.formats
            _need(known, f"It is packed as {saved!r:.40}; these are read: {', '.join(self.formats)}.")
        status = told.get("quantization_status") or "compressed"
        _need(status == "compressed", f"Its quantization_status is {status!r:.40}: it holds no codes.")
        sparsity = told.get("sparsity_config") or {}
        _need(isinstance(sparsity, dict), "Its sparsity_config is no table.")
        _need(sparsity.get("format", "dense") == "dense", "It is stored as a sparse model, which is not read.")
        _need(not told.get("transform_config"), "It turns activations before a layer (transform_config).")
        weights = [scheme.get("weights") or {} for scheme in schemes]
        _need(all(isinstance(one, dict) for one in weights), "The weights of its config_groups are no table.")
        self.symmetric = {_setting(one, "symmetric", True, lambda _: True) for one in weights}
        self.sizes = {_setting(one, "group_size", -1, lambda size: -1 <= size < 2**31) for one in weights}
        self.blocks = {_block(one["block_structure"]) for one in weights if one.get("block_structure")}
        also = {"activations": any(scheme.get("input_activations") for scheme in schemes),
                "the key-value cache": told.get("kv_cache_scheme")}  # fmt: skip
        self.not_applied = tuple(name for name, is_so in also.items() if is_so)

    def kind(self, types: Sequence[str]) -> str:
        return f"compressed-tensors-{'-'.join(types)}"

    def weight(self, parts: Mapping[str, Stored]) -> Weight | None:
        if "weight_packed" in parts:
            return self._packed(parts) if parts["weight_packed"].dtype == "I32" else self._four_bit_floats(parts)
        if "weight_scale" in parts:
            return self._bytes(parts)
        return None

    def _packed(self, parts: Mapping[str, Stored]) -> Weight:
        rows, n_words = _matrix(parts, "weight_packed", "I32")
        _need("weight_shape" in parts and parts["weight_shape"].shape == (2,), "It has no weight_shape of two numbers.")
        outputs, inputs = map(int, parts["weight_shape"].read().tolist())
        _need(outputs == rows and inputs > 0, f"weight_shape is {(outputs, inputs)}, and it has {rows} rows.")
        fitting = [bits for bits in (2, 4, 8) if math.ceil(inputs * bits / 32) == n_words]
        _need(len(fitting) == 1, f"{n_words} words for {inputs} weights fit neither 2, 4 nor 8 bits.")
        bits = fitting[0]
        group, spread = self._spread(parts, (outputs, inputs))
        n_groups = math.prod(parts["weight_scale"].shape) // outputs
        zero_point = parts.get("weight_zero_point")
        if zero_point is None:
            _need(True in self.symmetric, "It has no weight_zero_point, and is not symmetric.")
        else:
            _matrix(parts, "weight_zero_point", "I32")
            _shape(parts, "weight_zero_point", (math.ceil(outputs * bits / 32), n_groups))

        def decode() -> Tensor:
            codes, scales = unpack(parts["weight_packed"].read(), bits)[:, :inputs], parts["weight_scale"].read()
            if zero_point is None:
                return _scaled(codes.short() - 2 ** (bits - 1), None, scales, spread)  # codes are stored from 0 on
            return _scaled(codes, unpack(zero_point.read().T, bits)[:, :outputs].T, scales, spread)

        return Weight((outputs, inputs), f"int{bits}", group, decode)

    def _bytes(self, parts: Mapping[str, Stored]) -> Weight:
        outputs, inputs = _matrix(parts, "weight", "I8", "F8_E4M3")
        group, spread = self._spread(parts, (outputs, inputs))
        zero_point = parts.get("weight_zero_point")
        if zero_point is not None:
            _need(zero_point.dtype == parts["weight"].dtype, f"weight_zero_point holds {zero_point.dtype}.")
            _shape(parts, "weight_zero_point", parts["weight_scale"].shape)

        def decode() -> Tensor:
            zeros = None if zero_point is None else zero_point.read()
            return _scaled(parts["weight"].read(), zeros, parts["weight_scale"].read(), spread)

        return Weight((outputs, inputs), "int8" if parts["weight"].dtype == "I8" else "fp8", group, decode)

    def _spread(self, parts: Mapping[str, Stored], shape: tuple[int, int]) -> tuple[str, Callable[[Tensor], Tensor]]:
        spread = _spread(parts, "weight_scale", shape, self.sizes, self.blocks)
        _need(parts["weight_scale"].dtype in FLOATS[1:], f"weight_scale holds {parts['weight_scale'].dtype}.")
        return spread

    def _four_bit_floats(self, parts: Mapping[str, Stored]) -> Weight:
        outputs, n_bytes = _matrix(parts, "weight_packed", "U8")
        inputs, _ = 2 * n_bytes, _matrix(parts, "weight_scale", "F8_E4M3", "U8", "F8_E8M0")
        nvidia = parts["weight_scale"].dtype == "F8_E4M3"
        size = NVFP4_GROUP if nvidia else MX_GROUP
        _need(inputs % size == 0, f"{inputs} inputs are no whole groups of {size}.")
        _shape(parts, "weight_scale", (outputs, inputs // size))
        _need("weight_zero_point" not in parts, "It has zero points, which floats of 4 bits do not have.")
        if nvidia:
            _need("weight_global_scale" in parts, "It has no weight_global_scale.")
            _shape(parts, "weight_global_scale", (1,), ())

        def decode() -> Tensor:
            scale = parts["weight_scale"].read()
            scale = scale.float() / parts["weight_global_scale"].read().float() if nvidia else _power_of_two(scale)
            codes = _e2m1(parts["weight_packed"].read())
            return _scaled(codes, None, scale, lambda held: held.repeat_interleave(size, 1))

        return Weight((outputs, inputs), "nvfp4" if nvidia else "mxfp4", str(size), decode)


class Fp8(Layout):
    """`weight` in float8 (e4m3) with `weight_scale_inv` for each block or for the tensor: numbers, or exponents of 2.

    transformers takes the size of a block from the number of scales: where the last block is smaller than the others,
    it can give a weight the scale of its neighbour. And it reads codes without scales as numbers.
    """

    parts = ("weight", "weight_scale_inv")
    of_activations = ("activation_scale", "input_scale")

    def __init__(self, told: Mapping[str, Any]) -> None:
        given = told.get("weight_block_size", [128, 128])
        self.blocks = [] if given is None else [_block(given)]
        self.name = str(told["quant_method"])
        self.not_applied = ("activations",)

    def kind(self, types: Sequence[str]) -> str:
        return self.name

    def weight(self, parts: Mapping[str, Stored]) -> Weight | None:
        if "weight_scale_inv" not in parts:
            return None
        shape = _matrix(parts, "weight", "F8_E4M3")
        scale = parts["weight_scale_inv"]
        _need(scale.dtype in ("F32", "F16", "BF16", "U8", "F8_E8M0"), f"weight_scale_inv holds {scale.dtype}.")
        group, spread = _spread(parts, "weight_scale_inv", shape, [width for rows, width in self.blocks if rows == 1],
                                self.blocks)  # fmt: skip

        def decode() -> Tensor:
            scales = scale.read()
            scales = _power_of_two(scales) if scales.element_size() == 1 else scales
            return _scaled(parts["weight"].read(), None, scales, spread)

        return Weight(shape, "fp8", group, decode)


def _spread(
    parts: Mapping[str, Stored],
    part: str,
    shape: tuple[int, int],
    sizes: Collection[int],
    blocks: Collection[tuple[int, int]],
) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Which weights share a scale of `part`, by its shape, and what gives every weight its scale or zero point. `sizes`
    and `blocks` are those of config.json."""
    _need(part in parts, f"It has no {part}.")
    (outputs, inputs), there, order = shape, parts[part].shape, parts.get("weight_g_idx")
    if order is not None:
        _need(len(there) == 2 and there[0] == outputs, f"{part} is {there} beside weight_g_idx.")
        return _size(math.ceil(inputs / there[1]), inputs), lambda held: held[:, _group_of(order, there[1], inputs)]
    if math.prod(there) == 1:
        return "tensor", lambda held: held.reshape(())
    if there in ((outputs, 1), (outputs,)):
        return "row", lambda held: held.reshape(outputs, 1)
    _need(len(there) == 2 and all(there), f"{part} is {there} for a weight of {shape}.")
    size = inputs // there[1]
    if there[0] == outputs and size * there[1] == inputs and size in sizes:
        return str(size), lambda held: held.repeat_interleave(size, 1)
    for block in blocks:
        if there == tuple(map(math.ceil, np.divide(shape, block))):
            return "x".join(map(str, block)), partial(_in_blocks, shape=shape, block=block)
    raise LayoutError(f"{part} is {there} for a weight of {shape}: no group of config.json fits.")


def _in_blocks(held: Tensor, shape: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """What is held of each block, for every weight; the last blocks may be smaller."""
    return held.repeat_interleave(block[0], 0)[: shape[0]].repeat_interleave(block[1], 1)[:, : shape[1]]


def _block(given: Any) -> tuple[int, int]:
    sides = given.split("x") if isinstance(given, str) else given
    fits = isinstance(sides, list) and len(sides) == 2 and all(re.fullmatch("[1-9][0-9]{0,8}", str(n)) for n in sides)
    _need(fits, f"Its blocks are {given!r:.40} in config.json.")
    return int(sides[0]), int(sides[1])


def _size(size: int, inputs: int) -> str:
    return "row" if size == inputs else str(size)


LAYOUTS: dict[str, Callable[[Mapping[str, Any]], Layout]] = {
    "gptq": Gptq,
    "awq": Awq,
    "auto-round": auto_round,
    "compressed-tensors": CompressedTensors,
    "fp8": Fp8,
    "mxfp8": Fp8,
}
"""The methods that are read here, by their name in config.json."""
