"""Quantized weights as their formats define them, packed and dequantized by loops over single weights in float64.

Written from the published layouts: GPTQModel (`gptq`, `gptq_v2`, `gptq_p`), AutoAWQ (`gemm`), compressed-tensors, HQQ,
and the OCP Microscaling Formats 1.0. Nothing here is vectorised or shared with klscale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

E2M1 = {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0, 5: 3.0, 6: 4.0, 7: 6.0}
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns lies at each place of a word, the lowest first."""


def bits_of(values: Any, bits: int) -> list[int]:
    """Unsigned 32-bit words of these codes, without gaps, the lowest bits first."""
    whole = 0
    for n, value in enumerate(values):
        whole |= (int(value) & (2**bits - 1)) << (n * bits)
    n_words = -(-len(values) * bits // 32)
    return [(whole >> (32 * n)) & 0xFFFFFFFF for n in range(n_words)]


def planes_of(values: Any, bits: int) -> list[int]:
    """The same of a format that cuts each code: 32 codes at a time, all of their low bits before the higher ones."""
    found = []
    for start in range(0, len(values), 32):
        first = 0
        for width in {2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1], 8: [8]}[bits]:
            found += bits_of([(int(value) >> first) & (2**width - 1) for value in values[start : start + 32]], width)
            first += width
    return found


def whole_codes_of(values: Any, bits: int) -> list[int]:
    """The same of a format whose words hold whole codes, with unused bits at the end of a word."""
    each = 32 // bits
    return [bits_of(values[start : start + each], bits)[0] for start in range(0, len(values), each)]


def words(rows: list[list[int]]) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.uint32).astype(np.int64).astype(np.int32))


def gptq(
    generator: np.random.Generator,
    shape: tuple[int, int],
    bits: int,
    group: int,
    *,
    version: int = 1,
    symmetric: bool = False,
    order: bool = False,
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Random codes of a weight (outputs, inputs) as GPTQ packs them, and the weight in float64. With `order` the group
    of each input is a random one. `version` 3 is `gptq_p`."""
    outputs, inputs = shape
    n_groups = -(-inputs // group)
    groups = np.arange(inputs) // group
    if order:
        generator.shuffle(groups)
    codes = generator.integers(0, 2**bits, size=(inputs, outputs))
    least = 1 if version == 1 else 0
    pack = planes_of if version == 3 else bits_of
    zeros = generator.integers(least, 2**bits, size=(n_groups, outputs))
    if symmetric:
        zeros[:] = 2 ** (bits - 1)
    scales = torch.from_numpy(generator.uniform(0.001, 0.02, size=(n_groups, outputs))).half()
    weight = np.empty(shape)
    for o in range(outputs):
        for i in range(inputs):
            weight[o, i] = (int(codes[i, o]) - int(zeros[groups[i], o])) * float(scales[groups[i], o])
    stored = zeros - (1 if version == 1 else 0)
    return {
        "qweight": words([pack(codes[:, o], bits) for o in range(outputs)]).T.contiguous(),
        "qzeros": words([pack(row, bits) for row in stored]),
        "scales": scales,
        "g_idx": torch.from_numpy(groups.astype(np.int32)),
    }, weight


def awq(
    generator: np.random.Generator, shape: tuple[int, int], group: int, bits: int = 4
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    outputs, inputs = shape
    codes = generator.integers(0, 2**bits, size=(inputs, outputs))
    zeros = generator.integers(0, 2**bits, size=(inputs // group, outputs))
    scales = torch.from_numpy(generator.uniform(0.001, 0.02, size=zeros.shape)).half()
    weight = np.empty(shape)
    for o in range(outputs):
        for i in range(inputs):
            weight[o, i] = (int(codes[i, o]) - int(zeros[i // group, o])) * float(scales[i // group, o])

    def packed(rows: np.ndarray) -> torch.Tensor:
        if bits != 4:
            return words([bits_of(row, bits) for row in rows])
        return words([[bits_of([row[8 * n + k] for k in AWQ_PLACES], 4)[0] for n in range(len(row) // 8)]
                      for row in rows])  # fmt: skip

    return {"qweight": packed(codes), "qzeros": packed(zeros), "scales": scales}, weight


def pack_quantized(
    generator: np.random.Generator,
    shape: tuple[int, int],
    bits: int,
    group: int,
    *,
    symmetric: bool = True,
    pack: Any = bits_of,
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Integers of compressed-tensors; `group` -1 for one scale a row."""
    outputs, inputs = shape
    size = inputs if group == -1 else group
    half = 2 ** (bits - 1)
    codes = generator.integers(-half, half, size=shape)
    zeros = np.zeros((outputs, inputs // size), dtype=int)
    if not symmetric:
        zeros = generator.integers(-half, half, size=zeros.shape)
    scales = torch.from_numpy(generator.uniform(0.001, 0.02, size=zeros.shape)).bfloat16()
    weight = np.empty(shape)
    for o in range(outputs):
        for i in range(inputs):
            weight[o, i] = (int(codes[o, i]) - int(zeros[o, i // size])) * float(scales[o, i // size])
    parts = {
        "weight_packed": words([pack(row + half, bits) for row in codes]),
        "weight_scale": scales,
        "weight_shape": torch.tensor(shape),
    }
    if not symmetric:
        parts["weight_zero_point"] = words([pack(column + half, bits) for column in zeros.T]).T.contiguous()
    return parts, weight


def eight_bits(
    generator: np.random.Generator, shape: tuple[int, int], kind: str, scales_of: str
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """`int8` or `fp8`, with scales of a `tensor`, each `row`, each `block` of 32 x 32, or of 40 x 40 (`uneven`)."""
    outputs, inputs = shape
    rows, width = {"tensor": shape, "row": (1, inputs), "block": (32, 32), "uneven": (40, 40)}[scales_of]
    scales = torch.from_numpy(generator.uniform(0.001, 0.02, size=(-(-outputs // rows), -(-inputs // width)))).float()
    if kind == "int8":
        codes = torch.from_numpy(generator.integers(-128, 128, size=shape)).to(torch.int8)
    else:
        codes = torch.from_numpy(generator.normal(0, 60, size=shape)).to(torch.float8_e4m3fn)
    weight = np.empty(shape)
    for o in range(outputs):
        for i in range(inputs):
            weight[o, i] = float(codes[o, i]) * float(scales[o // rows, i // width])
    return {"weight": codes, "weight_scale": scales.reshape(1) if scales_of == "tensor" else scales}, weight


def mxfp8(generator: np.random.Generator, shape: tuple[int, int]) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    outputs, inputs = shape
    codes = torch.from_numpy(generator.normal(0, 60, size=shape)).to(torch.float8_e4m3fn)
    exponents = generator.integers(110, 120, size=(outputs, inputs // 32))
    weight = np.empty(shape)
    for o in range(outputs):
        for i in range(inputs):
            weight[o, i] = float(codes[o, i]) * 2.0 ** (int(exponents[o, i // 32]) - 127)
    return {"weight": codes, "weight_scale": torch.from_numpy(exponents).to(torch.uint8)}, weight


def four_bit_floats(
    generator: np.random.Generator, shape: tuple[int, int], kind: str
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """`nvfp4` or `mxfp4` of compressed-tensors."""
    outputs, inputs = shape
    codes = generator.integers(0, 16, size=shape)
    size = 16 if kind == "nvfp4" else 32
    if kind == "nvfp4":
        total = float(np.float32(generator.uniform(800, 2000)))
        stored = torch.from_numpy(generator.uniform(1, 30, size=(outputs, inputs // size))).to(torch.float8_e4m3fn)
        scales = stored.double().numpy() / total
    else:
        exponents = generator.integers(115, 124, size=(outputs, inputs // size))
        stored, scales = torch.from_numpy(exponents).to(torch.uint8), 2.0 ** (exponents - 127)
    weight, packed = np.empty(shape), np.empty((outputs, inputs // 2), dtype=np.uint8)
    for o in range(outputs):
        for i in range(inputs):
            code = int(codes[o, i])
            weight[o, i] = E2M1[code & 7] * (-1 if code & 8 else 1) * scales[o, i // size]
            if i % 2:
                packed[o, i // 2] = int(codes[o, i - 1]) | code << 4
    parts = {"weight_packed": torch.from_numpy(packed), "weight_scale": stored}
    if kind == "nvfp4":
        parts["weight_global_scale"] = torch.tensor([total])
    return parts, weight


def hqq(
    generator: np.random.Generator,
    shape: tuple[int, int],
    bits: float,
    group: int,
    axis: int,
    *,
    as_floats: bool = False,
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Codes of HQQ, and its settings as tensors: of `axis` 1 a group is a row of the matrix of codes, else a column."""
    outputs, inputs = shape
    n_groups = outputs * inputs // group
    rows, columns = (n_groups, group) if axis else (group, n_groups)
    codes = generator.integers(0, 3 if bits == 1.58 else 2 ** int(bits), size=(rows, columns))
    per_group = (n_groups, 1) if axis else (1, n_groups)
    scales = torch.from_numpy(generator.uniform(0.001, 0.02, size=per_group)).half()
    zeros = torch.from_numpy(generator.uniform(0, 2**bits, size=per_group)).half()
    packing, width, each = {
        8: ("8bit_u8", 8, 1), 6: ("8bit_u8", 8, 1), 5: ("8bit_u8", 8, 1), 4: ("4bit_u8", 4, 2), 3: ("3bit_32", 3, 10),
        2: ("2bit_u8", 2, 4), 1.58: ("2bit_u8", 2, 4), 1: ("1bit_u8", 1, 8),
    }[bits]  # fmt: skip
    step = -(-rows // each)
    held, weight = np.zeros((step, columns), dtype=np.int64), np.empty(shape)
    for place in range(outputs * inputs):
        row, column = divmod(place, columns)
        held[row % step, column] |= int(codes[row, column]) << (width * (each - 1 - row // step))
        one = row if axis else column
        value = (int(codes[row, column]) - float(zeros.flatten()[one])) * float(scales.flatten()[one])
        weight[divmod(place, inputs)] = value
    packed = torch.from_numpy(held).to(torch.int32 if bits == 3 else torch.uint8)
    settings = {"group_size": group, "axis": axis, "offload_meta": 0, "quant_scale": 0, "quant_zero": 0,
                "view_as_float": int(as_floats), "channel_wise": 1, "optimize": 1, "round_zero": 0,
                "stores_quant_config": 1, "encoded_state_dict": 1}  # fmt: skip
    return {
        "W_q": packed.view(torch.float16) if as_floats else packed,
        "scale": scales,
        "zero": zeros,
        "nbits": torch.tensor(bits, dtype=torch.float32 if bits == 1.58 else torch.int32),
        "shape": torch.tensor(shape),
        "packing": torch.tensor(list(packing.encode()), dtype=torch.uint8),
        "compute_dtype": torch.tensor(list(b"torch.float16"), dtype=torch.uint8),
        "unpack_view_dtype": torch.tensor(list(b"torch.uint8"), dtype=torch.uint8),
        **{name: torch.tensor(value, dtype=torch.int32) for name, value in settings.items()},
    }, weight


def mxfp4_experts(generator: np.random.Generator, n: int, rows: int, width: int) -> tuple[Any, Any, np.ndarray]:
    """Blocks (n, rows, width / 32, 16) and scales of gpt-oss, and the weights (n, width, rows) as its layers hold
    them."""
    blocks = generator.integers(0, 256, size=(n, rows, width // 32, 16))
    exponents = generator.integers(117, 124, size=(n, rows, width // 32))
    weight = np.empty((n, width, rows))
    for e in range(n):
        for r in range(rows):
            for i in range(width):
                byte = int(blocks[e, r, i // 32, i % 32 // 2])
                code = byte >> 4 if i % 2 else byte & 15
                value = E2M1[code & 7] * (-1 if code & 8 else 1)
                weight[e, i, r] = value * 2.0 ** (int(exponents[e, r, i // 32]) - 127)
    return torch.from_numpy(blocks).to(torch.uint8), torch.from_numpy(exponents).to(torch.uint8), weight


def fp8_experts(generator: np.random.Generator, shape: tuple[int, int, int], block: int) -> tuple[Any, Any, np.ndarray]:
    """Codes of all experts in one tensor, with scales of the blocks of each; the last blocks may be smaller."""
    n, rows, width = shape
    scales = torch.from_numpy(generator.uniform(0.001, 0.02, size=(n, -(-rows // block), -(-width // block)))).float()
    codes = torch.from_numpy(generator.normal(0, 60, size=shape)).to(torch.float8_e4m3fn)
    weight = np.empty(shape)
    for e in range(n):
        for r in range(rows):
            for i in range(width):
                weight[e, r, i] = float(codes[e, r, i]) * float(scales[e, r // block, i // block])
    return codes, scales, weight


def repack(directory: Path, make: Any, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """Put codes from `make(name, shape)` (parts, weight) in the place of all projections of a saved model, with
    `settings` in its config.json. Returns the weights in float64 by name."""
    file = directory / "model.safetensors"
    saved, expected = {}, {}
    for name, tensor in load_file(file).items():
        if "proj" not in name or not name.endswith("weight"):
            saved[name] = tensor
            continue
        parts, expected[name] = make(name, tuple(tensor.shape))
        saved |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}
    save_file(saved, file, metadata={"format": "pt"})
    config = directory / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": settings}))
    return expected
