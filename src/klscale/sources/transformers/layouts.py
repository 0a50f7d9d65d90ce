"""How formats of quantized weights name and pack what stands for a weight, and how that becomes numbers.

A code is an integer or a small float, and a weight is (code - zero point) * scale in float32. Every layout checks
shapes, dtypes and the configuration against each other before anything is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klscale.sources.transformers.sizes import ITEM_BYTES

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place in its word of each of eight neighbouring columns (AutoAWQ, `gemm`)."""
PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
"""Bits of each plane of codes that are stored as planes, the lowest first (GPTQModel, `gptq_p`)."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of a 4-bit float without its sign (OCP Microscaling Formats 1.0, table 5)."""
HQQ_PACKINGS = {8: "8bit_u8", 6: "8bit_u8", 5: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1.58: "2bit_u8",
                1: "1bit_u8"}  # fmt: skip
"""How HQQ packs codes of so many bits; 1.58 bits are three values."""
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
    """A weight (outputs, inputs), or the weights of all experts in one tensor, held as codes of `type`, e.g. `int4`.
    `group` says which weights share a scale: a number of neighbours in a row, `row`, `tensor`, or a block such as
    `128x128`."""

    shape: tuple[int, ...]
    type: str
    group: str
    decode: Callable[[], Tensor]

    def __getitem__(self, index: Any) -> Tensor:
        return self.decode()[index]


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


def _two_numbers(parts: Mapping[str, Stored], part: str) -> tuple[int, int]:
    """The shape of a weight that is kept as a tensor."""
    fits = part in parts and parts[part].shape == (2,) and parts[part].dtype in ("I32", "I64")
    _need(fits, f"It has no {part} of two numbers.")
    outputs, inputs = parts[part].read().tolist()
    return int(outputs), int(inputs)


def _group_of(stored: Stored, n_groups: int, width: int) -> Tensor:
    """The group (width,) of each input."""
    groups = stored.read().long()
    _need(groups.shape == (width,), f"{stored.name} is {tuple(groups.shape)}, where ({width},) is meant.")
    _need(0 <= groups.min() and groups.max() < n_groups, f"{stored.name} names a group that has no scale.")
    return groups


# -------------------------------------------------------------------------------------------------------------- codes


def unpack(words: Tensor, bits: int) -> Tensor:
    """Codes (rows, n) of so many bits, packed along each row of 32-bit words (rows, w) without gaps, the lowest bits
    first. The last of them may be no codes, where these do not fill the words."""
    n_bytes = math.lcm(bits, 8) // 8  # that hold whole codes
    held = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    held = torch.nn.functional.pad(held, (0, -held.shape[1] % n_bytes)).view(len(words), -1, n_bytes)
    if bits == 8:
        return held[..., 0]
    wide = torch.int32 if n_bytes < 4 else torch.int64
    whole = held[..., 0] if n_bytes == 1 else sum(held[..., n].to(wide) << (8 * n) for n in range(n_bytes))
    codes = [((whole >> shift) & (2**bits - 1)).to(torch.uint8) for shift in range(0, 8 * n_bytes, bits)]
    return torch.stack(codes, dim=-1).flatten(1)


def _unpack_planes(words: Tensor, bits: int) -> Tensor:
    """Codes (rows, n) of which 32 at a time lie in as many words as they have bits: first the low bits of all of them,
    then the higher ones."""
    if bits not in PLANES:
        return unpack(words, bits)
    blocks, codes, done = words.reshape(-1, bits), torch.zeros(words.numel() // bits, 32, dtype=torch.uint8), 0
    for width in PLANES[bits]:
        codes |= unpack(blocks[:, done : done + width], width) << done
        done += width
    return codes.reshape(len(words), -1)


def _n_words(n: int, bits: int, gaps: bool) -> int:
    """Words that hold n codes: without gaps, or each whole codes."""
    return math.ceil(n / (32 // bits)) if gaps else math.ceil(n * bits / 32)


def _unpack_words(words: Tensor, bits: int) -> Tensor:
    """Codes (rows, n) of which each word holds as many as fit, the lowest bits first."""
    return torch.stack([(words >> shift) & (2**bits - 1) for shift in range(0, 33 - bits, bits)], dim=-1).flatten(1)


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

    def experts(self, parts: Mapping[str, Stored]) -> dict[str, tuple[Weight, tuple[str, ...]]]:
        """The weights of all experts in one tensor, by its name among these, each with the tensors that it is read
        from. Raises LayoutError."""
        return {}

    def kind(self, types: Sequence[str]) -> str:
        raise NotImplementedError


class Gptq(Layout):
    """`qweight` (inputs * bits / 32, outputs) packed along the inputs, `qzeros` (groups, outputs * bits / 32) along the
    outputs, `scales` (groups, outputs), and the group of each input in `g_idx` (inputs,). Zero points are stored less
    one in `gptq`; codes are planes in `gptq_p`."""

    parts = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.name = str(told["quant_method"])
        self.bits = _setting(told, "bits", 4, lambda bits: 2 <= bits <= 8)
        self.group = _setting(told, "group_size", -1, lambda size: size == -1 or 0 < size < 2**31)
        self.by_module = bool(told.get("dynamic"))  # other settings for some modules, which their shapes tell
        saved = told.get("checkpoint_format") or told.get("format") or "gptq"
        known = ("gptq", "gptq_v2", "gptq_p")
        _need(saved in known, f"It is packed as {saved!r:.40}; these are read: {', '.join(known)}.")
        self.less_one, self.unpack = saved == "gptq", _unpack_planes if saved == "gptq_p" else unpack
        self.known_bits = (2, 3, 4, 8) if self.unpack is unpack else (2, 3, 4, 5, 6, 7, 8)
        _need(self.bits in self.known_bits, f"bits is {self.bits} in config.json, which is read from gptq_p alone.")
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
        _need(bits in self.known_bits, f"qzeros {parts['qzeros'].shape} fit no number of bits.")
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
            zeros = self.unpack(zeros, bits)
            if self.less_one and bits == 3:
                zeros = (zeros + 1) & 7
            group = torch.arange(inputs) // size
            if "g_idx" in parts:
                group = _group_of(parts["g_idx"], n_groups, inputs)
            codes = self.unpack(parts["qweight"].read().T, bits)
            return _scaled(codes, zeros.T, parts["scales"].read().T, lambda held: held[:, group])

        return Weight((outputs, inputs), f"int{bits}", _size(size, inputs), decode)


class Awq(Layout):
    """`qweight` (inputs, outputs * bits / 32) and `qzeros` (groups, outputs * bits / 32) packed along the outputs, and
    `scales` (groups, outputs). Of 4 bits, eight columns lie in a word in an order of their own."""

    parts = ("qweight", "qzeros", "scales")

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.name = str(told["quant_method"])
        self.bits = _setting(told, "bits", 4, lambda bits: 2 <= bits <= 8)
        self.group = _setting(told, "group_size", 128, lambda size: size == -1 or 0 < size < 2**31)
        saved = told.get("version") or told.get("format") or told.get("checkpoint_format") or "gemm"
        _need(str(saved).lower() == "gemm", f"It is packed as {saved!r:.40}; gemm is read.")

    def kind(self, types: Sequence[str]) -> str:
        return f"{self.name}-{self.bits}bit"

    def weight(self, parts: Mapping[str, Stored]) -> Weight | None:
        if "qweight" not in parts:
            return None
        inputs, n_words = _matrix(parts, "qweight", "I32")
        n_groups, outputs = _matrix(parts, "scales", "F16", "BF16", "F32")
        size = inputs if self.group == -1 else self.group
        fits = n_words == math.ceil(outputs * self.bits / 32) and (self.bits != 4 or outputs % 8 == 0)
        _need(fits, f"qweight {parts['qweight'].shape} does not fit {outputs} scales of {self.bits} bits.")
        _need(inputs == size * n_groups, f"{inputs} inputs in groups of {size} need other than {n_groups}.")
        _matrix(parts, "qzeros", "I32")
        _shape(parts, "qzeros", (n_groups, n_words))

        def columns(part: str) -> Tensor:
            codes = unpack(parts[part].read(), self.bits)[:, :outputs]
            if self.bits == 4:
                codes = codes.reshape(len(codes), -1, 8)[:, :, list(AWQ_ORDER)].flatten(1)
            return codes.T.contiguous()

        def decode() -> Tensor:
            scales = parts["scales"].read().T
            return _scaled(columns("qweight"), columns("qzeros"), scales, lambda held: held.repeat_interleave(size, 1))

        return Weight((outputs, inputs), f"int{self.bits}", _size(size, inputs), decode)


def auto_round(told: Mapping[str, Any]) -> Layout:
    """AutoRound packs as GPTQ or AWQ do."""
    saved = told.get("packing_format")
    formats = {"auto_round:auto_gptq": "gptq", "auto_round": "gptq_v2", "auto_round:gptqmodel": "gptq_v2"}
    known = isinstance(saved, str) and saved in (*formats, "auto_round:auto_awq")
    _need(known, f"It is packed as {saved!r:.40}; these are read: {', '.join(formats)}, auto_round:auto_awq.")
    _need(saved in formats or told.get("bits") == 4, f"bits is {told.get('bits')!r:.20}; as AWQ only 4 are read.")
    about = {**told, "dynamic": told.get("extra_config")}
    layout = Gptq({**about, "checkpoint_format": formats[saved]}) if saved in formats else Awq({**about, "version": ""})
    if isinstance(bits := told.get("act_bits"), int) and bits < 16:
        layout.not_applied = ("activations",)
    return layout


class CompressedTensors(Layout):
    """`weight_packed` (integers in 32-bit words, or two 4-bit floats a byte) or `weight` (8 bits), with `weight_scale`
    for the tensor, each row, each group of a row or each block. Old versions put only whole codes into a word."""

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
        self.bits = {_setting(one, "num_bits", 8, lambda bits: 0 < bits <= 8) for one in weights}
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
        outputs, inputs = _two_numbers(parts, "weight_shape")
        _need(outputs == rows and inputs > 0, f"weight_shape is {(outputs, inputs)}, and it has {rows} rows.")
        ways = [(bits, gaps) for bits in self.bits for gaps in {False, bool(32 % bits)}]
        fitting = [way for way in ways if n_words == _n_words(inputs, *way)]
        told = " or ".join(map(str, sorted(self.bits)))
        _need(len(fitting) == 1, f"{n_words} words for {inputs} weights do not fit {told} bits.")
        bits, gaps = fitting[0]
        unpacked = _unpack_words if gaps else unpack
        group, spread = self._spread(parts, (outputs, inputs))
        n_groups = math.prod(parts["weight_scale"].shape) // outputs
        zero_point = parts.get("weight_zero_point")
        if zero_point is None:
            _need(True in self.symmetric, "It has no weight_zero_point, and is not symmetric.")
        else:
            _matrix(parts, "weight_zero_point", "I32")
            _shape(parts, "weight_zero_point", (_n_words(outputs, bits, gaps), n_groups))

        def decode() -> Tensor:
            codes, scales = unpacked(parts["weight_packed"].read(), bits)[:, :inputs], parts["weight_scale"].read()
            if zero_point is None:
                return _scaled(codes.short() - 2 ** (bits - 1), None, scales, spread)  # codes are stored from 0 on
            return _scaled(codes, unpacked(zero_point.read().T, bits)[:, :outputs].T, scales, spread)

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
        _need("weight_scale" in parts, "It has no weight_scale.")
        scale, order, (outputs, inputs) = parts["weight_scale"], parts.get("weight_g_idx"), shape
        _need(scale.dtype in FLOATS[1:], f"weight_scale holds {scale.dtype}.")
        if order is None:
            return _spread("weight_scale", scale.shape, shape, self.sizes, self.blocks)
        rows, n_groups = _matrix(parts, "weight_scale", *FLOATS)
        _need(rows == outputs, f"weight_scale is {scale.shape} for {outputs} rows.")
        return _size(math.ceil(inputs / n_groups), inputs), lambda held: held[:, _group_of(order, n_groups, inputs)]

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


class Hqq(Layout):
    """`W_q`, codes of a matrix that has a group in each row (`axis` 1) or column (`axis` 0), with `scale` and `zero` of
    each, and settings as tensors. An element of `W_q` holds as many codes as fit, the highest bits first, each of
    another part of the rows: the first codes of all elements are the first rows.
    """

    parts = (
        "W_q", "scale", "zero", "nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float",
        "quant_scale", "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config",
        "channel_wise", "optimize", "round_zero",
    )  # fmt: skip

    def __init__(self, told: Mapping[str, Any]) -> None:
        """Each weight has its own settings."""

    def kind(self, types: Sequence[str]) -> str:
        return f"hqq-{'-'.join(type.removeprefix('int') for type in types)}bit"

    def weight(self, parts: Mapping[str, Stored]) -> Weight | None:
        if "W_q" not in parts:
            return None
        n_bits, axis = round(self._number(parts, "nbits"), 2), self._number(parts, "axis")
        _need(n_bits in HQQ_PACKINGS and axis in (0, 1), f"nbits is {n_bits:g} and axis {axis:g}.")
        for part in ("quant_scale", "quant_zero"):
            _need(part not in parts or not self._number(parts, part), f"{part} is set: its scales are codes too.")
        _need("packing" in parts and parts["packing"].n_bytes < 20, "It has no packing.")
        packing = bytes(parts["packing"].read().flatten().to(torch.uint8).tolist()).decode("ascii", "replace")
        _need(packing == HQQ_PACKINGS[n_bits], f"packing is {packing!r} for {n_bits:g} bits.")
        outputs, inputs = _two_numbers(parts, "shape")
        _need(0 < outputs < 2**31 and 0 < inputs < 2**31, f"shape is {(outputs, inputs)}.")
        groups = _matrix(parts, "scale", *FLOATS)[1 - int(axis)]
        _matrix(parts, "zero", *FLOATS)
        one_each = (groups, 1) if axis else (1, groups)
        _shape(parts, "scale", one_each)
        _shape(parts, "zero", one_each)
        size = outputs * inputs // groups
        _need(size * groups == outputs * inputs, f"{groups} groups do not divide {outputs} by {inputs} weights.")
        rows, columns = (groups, size) if axis else (size, groups)
        width, word = (3, torch.int32) if packing == "3bit_32" else (int(packing[0]), torch.uint8)
        shifts = range(width * (8 * word.itemsize // width) - width, -1, -width)
        _matrix(parts, "W_q", "I32" if word is torch.int32 else "U8", *FLOATS)  # as floats: view_as_float
        height, n_items = parts["W_q"].shape
        n_bytes = columns * word.itemsize
        fits = (height, n_items * ITEM_BYTES[parts["W_q"].dtype]) == (math.ceil(rows / len(shifts)), n_bytes)
        _need(fits, f"W_q is {parts['W_q'].shape} for {rows} by {columns} codes of {n_bits:g} bits.")

        def decode() -> Tensor:
            words = parts["W_q"].read().view(word)
            codes = torch.cat([(words >> shift) & (2**width - 1) for shift in shifts])[:rows]
            weight = _scaled(codes, parts["zero"].read(), parts["scale"].read(), lambda held: held)
            return weight.reshape(outputs, inputs)

        group = _size(size, inputs) if axis and inputs % size == 0 else f"{size} across rows"
        return Weight((outputs, inputs), f"int{n_bits:g}", group, decode)

    def _number(self, parts: Mapping[str, Stored], part: str) -> float:
        """A setting that is kept as a tensor."""
        _need(part in parts and math.prod(parts[part].shape) == 1, f"It has no {part}.")
        return float(parts[part].read().item())


class Fp8(Layout):
    """`weight` in float8 (e4m3) with `weight_scale_inv` for each block or for the tensor: numbers, or exponents of 2.
    Of experts in one tensor each has its scales: `gate_up_proj`, `gate_up_proj_scale_inv`.

    transformers takes the size of a block from the number of scales: where the last block is smaller than the others,
    it can give a weight the scale of its neighbour. And it reads codes without scales as numbers.
    """

    parts = ("weight", "weight_scale_inv")
    of_activations = ("activation_scale", "input_scale", "gate_up_proj_activation_scale", "down_proj_activation_scale")

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
        _matrix(parts, "weight", "F8_E4M3")
        return self._scaled_by("weight", parts["weight"], parts["weight_scale_inv"])

    def experts(self, parts: Mapping[str, Stored]) -> dict[str, tuple[Weight, tuple[str, ...]]]:
        found = dict[str, tuple[Weight, tuple[str, ...]]]()
        for part in parts:
            if part != "weight" and len(parts[part].shape) == 3 and (scale := f"{part}_scale_inv") in parts:
                _need(parts[part].dtype == "F8_E4M3", f"{part} holds {parts[part].dtype}, not F8_E4M3.")
                _need(all(parts[part].shape), f"{part} is {parts[part].shape}.")
                found[part] = self._scaled_by(part, parts[part], parts[scale]), (part, scale)
        return found

    def _scaled_by(self, part: str, codes: Stored, scale: Stored) -> Weight:
        """A weight, or a weight of each expert, with the scales of each."""
        *experts, outputs, inputs = codes.shape
        there = scale.shape
        _need(scale.dtype in ("F32", "F16", "BF16", "U8", "F8_E8M0"), f"{part}_scale_inv holds {scale.dtype}.")
        if experts:
            _need(len(there) == 3 and [there[0]] == experts, f"{part}_scale_inv is {there} for {experts[0]} experts.")
            there = there[1:]
        sizes = [width for rows, width in self.blocks if rows == 1]
        group, spread = _spread(f"{part}_scale_inv", there, (outputs, inputs), sizes, self.blocks)

        def decode() -> Tensor:
            scales = scale.read()
            scales = _power_of_two(scales) if scales.element_size() == 1 else scales
            if not experts:
                return _scaled(codes.read(), None, scales, spread)
            return torch.stack([_scaled(own, None, its, spread) for own, its in zip(codes.read(), scales, strict=True)])

        return Weight(codes.shape, "fp8", group, decode)


def _spread(
    part: str,
    there: tuple[int, ...],
    shape: tuple[int, int],
    sizes: Collection[int],
    blocks: Collection[tuple[int, int]],
) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Which weights share a scale of `part`, by its shape, and what gives every weight its scale or zero point. `sizes`
    and `blocks` are those of config.json."""
    outputs, inputs = shape
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
    "hqq": Hqq,
    "fp8": Fp8,
    "mxfp8": Fp8,
}
"""The methods that are read here, by their name in config.json."""
