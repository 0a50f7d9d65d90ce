"""Formats of quantized files: what is read equals loops over single weights (`packing.py`); the rest is refused."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import packing
from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ModelRef
from klscale.sources.transformers import packed as formats
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.layouts import LayoutError
from klscale.sources.transformers.load import load

LLAMA = {"architecture": "llama, grouped queries", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def compressed(saved_as, *, activations=None, **weights):
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors", "format": saved_as, "quantization_status": "compressed",
        "config_groups": {"group_0": scheme}, "ignore": ["lm_head"], "kv_cache_scheme": None,
    }  # fmt: skip


def gptq(bits, group, **more):
    settings = {**GPTQ, "bits": bits, "group_size": group}
    if (version := more.get("version", 1)) > 1:
        settings["checkpoint_format"] = {2: "gptq_v2", 3: "gptq_p"}[version]
    size = 64 if group == -1 else group

    def make(generator, shape):
        return packing.gptq(generator, shape, bits, shape[1] if group == -1 else size, **more)

    return make, settings, f"gptq-{bits}bit", f"int{bits}"


def awq(bits, group):
    make = partial(packing.awq, bits=bits, group=group)
    return make, {**AWQ, "bits": bits, "group_size": group}, f"awq-{bits}bit", f"int{bits}"


def hqq(bits, group, axis, **more):
    weights = {"nbits": bits, "group_size": group, "axis": axis}
    settings = {"quant_method": "hqq", "quant_config": {"weight_quant_params": weights}, "skip_modules": ["lm_head"]}
    make = partial(packing.hqq, bits=bits, group=group, axis=axis, **more)
    return make, settings, f"hqq-{bits}bit", f"int{bits}"


def integers(bits, group, symmetric, **more):
    make = partial(packing.pack_quantized, bits=bits, group=group, symmetric=symmetric, **more)
    settings = compressed("pack-quantized", num_bits=bits, group_size=group, symmetric=symmetric)
    return make, settings, f"compressed-tensors-int{bits}", f"int{bits}"


def eight_bits(kind, scales_of):
    make = partial(packing.eight_bits, kind=kind, scales_of=scales_of)
    weights = {"num_bits": 8, "strategy": scales_of, "type": "float" if kind == "fp8" else "int"}
    if scales_of == "block":
        weights["block_structure"] = [32, 32]
    settings = compressed(
        "float-quantized" if kind == "fp8" else "int-quantized", **weights, activations={"dynamic": True}
    )
    return make, settings, f"compressed-tensors-{kind}", kind


def floats(kind):
    settings = compressed(f"{kind}-pack-quantized", num_bits=4, type="float", group_size=16 if kind == "nvfp4" else 32)
    return partial(packing.four_bit_floats, kind=kind), settings, f"compressed-tensors-{kind}", kind


def fp8(block, method="fp8"):
    def make(generator, shape):
        if method == "mxfp8":
            parts, weight = packing.mxfp8(generator, shape)
        else:
            parts, weight = packing.eight_bits(generator, shape, "fp8", block)
        return {"weight": parts["weight"], "weight_scale_inv": parts["weight_scale"]}, weight

    size = {"tensor": None, "block": [32, 32], "uneven": [40, 40], "mx": [1, 32]}[block]
    return make, {"quant_method": method, "activation_scheme": "dynamic", "weight_block_size": size}, method, "fp8"


def auto_round(saved_as):
    return {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "packing_format": saved_as}


FORMATS = {
    "gptq": gptq(4, 32),
    "gptq, 2 bits, act-order": gptq(2, 32, order=True),
    "gptq, 3 bits": gptq(3, 32),
    "gptq, 8 bits, symmetric, by row": gptq(8, -1, symmetric=True),
    "gptq v2, act-order": gptq(4, 16, version=2, order=True),
    "gptq v2, 3 bits": gptq(3, 32, version=2),
    "awq": awq(4, 32),
    "hqq": hqq(4, 32, 1),
    "auto-round": (gptq(4, 32)[0], auto_round("auto_round:auto_gptq"), "auto-round-4bit", "int4"),
    "auto-round, gptq v2": (gptq(4, 32, version=2)[0], auto_round("auto_round"), "auto-round-4bit", "int4"),
    "auto-round, awq": (partial(packing.awq, group=32), auto_round("auto_round:auto_awq"), "auto-round-4bit", "int4"),
    "compressed-tensors, int4": integers(4, 32, True),
    "compressed-tensors, int4, asymmetric": integers(4, 32, False),
    "compressed-tensors, int8 by row": integers(8, -1, True),
    "compressed-tensors, w8a8": eight_bits("int8", "row"),
    "compressed-tensors, fp8 by tensor": eight_bits("fp8", "tensor"),
    "compressed-tensors, fp8 by block": eight_bits("fp8", "block"),
    "compressed-tensors, nvfp4": floats("nvfp4"),
    "compressed-tensors, mxfp4": floats("mxfp4"),
    "fp8": fp8("block"),
    "fp8, uneven blocks": fp8("uneven"),
    "fp8 by tensor": fp8("tensor"),
    "mxfp8": fp8("mx", "mxfp8"),
}
ODD = {
    **{f"gptq_p, {bits} bits": gptq(bits, 32, version=3, order=bits == 5) for bits in (3, 4, 5, 6, 7)},
    **{f"awq, {bits} bits": awq(bits, 32) for bits in (3, 5, 8)},
    **{f"compressed-tensors, int{bits}": integers(bits, 32, bits == 6) for bits in (1, 3, 5, 6, 7)},
    **{f"compressed-tensors, int{bits}, old": integers(bits, 32, bits == 3, pack=packing.whole_codes_of)
       for bits in (3, 5)},
    **{f"hqq, {bits} bits, axis {axis}": hqq(bits, 32, axis)
       for bits, axis in [(8, 1), (6, 0), (5, 1), (4, 0), (3, 1), (3, 0), (2, 1), (1.58, 1), (1, 0)]},
    "hqq, 4 bits as floats": hqq(4, 64, 1, as_floats=True),
    "hqq, 3 bits as floats": hqq(3, 64, 1, as_floats=True),
}  # fmt: skip
"""Ways to pack that differ from those above in the codes of a weight alone."""


def packed(directory, make, settings):
    generator = np.random.default_rng(0)
    return packing.repack(directory, lambda _name, shape: make(generator, shape), settings)


@pytest.fixture(scope="session")
def packed_once(models_made, tmp_path_factory):
    """The directory of a model in one of the formats, and its weights in float64; not to be changed."""
    made = {}

    def once(name):
        if name not in made:
            small = {key: value for key, value in LLAMA.items() if key != "architecture"}
            plain = models_made(LLAMA["architecture"], 0, False, False, small)
            directory = shutil.copytree(plain, tmp_path_factory.mktemp("packed") / "model")
            made[name] = directory, packed(directory, *FORMATS[name][:2])
        return made[name]

    return once


@pytest.fixture
def packed_model(packed_once, tmp_path):
    """A copy of it, which a test may change, and its weights."""

    def copy(name):
        directory, expected = packed_once(name)
        return shutil.copytree(directory, tmp_path / "model", dirs_exist_ok=True), expected

    return copy


def read(directory, **options):
    return load(resolve(ModelRef(str(directory), **options)), device="cpu")


def change_file(directory, change):
    """`change` the tensors (a dictionary) of a saved model."""
    file = Path(directory) / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_settings(directory, **settings):
    file = Path(directory) / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= settings
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("name", FORMATS)
def test_codes_stand_for_what_their_format_says(name, packed_once):
    *_, kind, type_ = FORMATS[name]
    directory, expected = packed_once(name)
    loaded = read(directory)
    n_weights = sum(parameter.numel() for parameter in loaded.model.parameters())
    assert len(expected) == 7
    for weight_of, weight in expected.items():
        there = loaded.model.get_parameter(weight_of).data
        assert there.dtype == torch.float32
        torch.testing.assert_close(there.double(), torch.from_numpy(weight), rtol=3e-7, atol=0)
    assert loaded.attributes["quantization"] == kind
    assert loaded.quantization.types == (type_,)
    assert loaded.quantization.saved
    assert loaded.quantization.weights_only
    # Size: the files as they are, over weights as the model has them.
    file = directory / "model.safetensors"
    assert loaded.size.file_bytes == file.stat().st_size
    assert loaded.size.n_weights == n_weights
    codes = sum(value.numel() * value.element_size() for key, value in load_file(file).items() if "_proj." in key)
    rest = n_weights - sum(weight.size for weight in expected.values())
    assert loaded.size.memory_bytes == codes + 4 * rest


@pytest.mark.parametrize("name", ODD)
def test_codes_of_any_number_of_bits(name, tmp_path):
    make, settings, kind, type_ = ODD[name]
    parts, expected = make(np.random.default_rng(0), (32, 64))
    save_file({f"layer.{part}": tensor for part, tensor in parts.items()}, tmp_path / "model.safetensors")
    found = formats.read("m", [tmp_path / "model.safetensors"], settings)
    weight = found.tensors["layer.weight"]
    assert weight.shape == (32, 64)
    torch.testing.assert_close(weight[...].double(), torch.from_numpy(expected), rtol=3e-7, atol=0)
    assert (found.quantization.kind, found.quantization.types) == (kind, (type_,))


def test_scores_are_those_of_the_dequantized_weights(packed_once, make_model, texts):
    from conftest import plain_log_likelihoods
    from test_quantization import values_of

    plain, (directory, expected) = make_model("plain", **LLAMA), packed_once("gptq v2, act-order")
    change_file(plain, lambda tensors: tensors.update({k: torch.from_numpy(v).float() for k, v in expected.items()}))
    values, loaded = values_of(ModelRef(str(directory)), texts)
    np.testing.assert_allclose(values, plain_log_likelihoods(plain, texts), atol=1e-3)
    assert loaded.quantization.groups == ("16",)
    half, _ = values_of(ModelRef(str(directory), dtype="bfloat16"), texts)
    assert 1e-3 < np.abs(half - values).max() < 5


def test_zero_points_of_zero_in_gptq_v1(make_model):
    """They are stored as -1, which borrows from the next zero point of the word (GPTQModel, 0.9 and later)."""
    make, settings, *_ = gptq(4, 32, version=2)
    directory = make_model(**LLAMA)
    expected = packed(directory, make, {**settings, "checkpoint_format": "gptq"})

    def less_one(tensors):
        for name, words in tensors.items():
            if name.endswith("qzeros"):
                tensors[name] = (words.long() - 0x11111111).to(torch.int32)

    change_file(directory, less_one)
    loaded = read(directory)
    for name, weight in expected.items():
        torch.testing.assert_close(
            loaded.model.get_parameter(name).double(), torch.from_numpy(weight), rtol=3e-7, atol=0, check_stride=False
        )


def test_gpt_oss_in_mxfp4(make_model):
    directory = make_model(architecture="gpt-oss, attention sinks", hidden_size=32, intermediate_size=64)
    generator, expected = np.random.default_rng(0), {}

    def change(tensors):
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            n, width, rows = tensors.pop(name).shape
            blocks, scales, expected[name] = packing.mxfp4_experts(generator, n, rows, width)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}

    change_file(directory, change)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (directory / "config.json").write_text(json.dumps(config))
    loaded = read(directory)
    assert expected
    for name, weight in expected.items():
        torch.testing.assert_close(loaded.model.get_parameter(name).double(), torch.from_numpy(weight), rtol=0, atol=0)
    assert loaded.attributes["quantization"] == "mxfp4"
    assert loaded.size.bits_per_weight < 20


def test_fp8_experts_in_one_tensor(make_model):
    """Each expert has its own blocks, the last of which are smaller."""
    directory = make_model(architecture="gpt-oss, attention sinks")
    generator, expected = np.random.default_rng(0), {}

    def change(tensors):
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            codes, scales, expected[name] = packing.fp8_experts(generator, tuple(tensors.pop(name).shape), 24)
            tensors |= {name: codes, f"{name}_scale_inv": scales}

    change_file(directory, change)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [24, 24]}
    (directory / "config.json").write_text(json.dumps(config))
    loaded = read(directory)
    assert expected
    for name, weight in expected.items():
        there = loaded.model.get_parameter(name).double()
        torch.testing.assert_close(there, torch.from_numpy(weight), rtol=3e-7, atol=0)
    assert loaded.attributes["quantization"] == "fp8"
    change_file(
        directory, lambda tensors: tensors.update({f"{name}_scale_inv": torch.ones(1, 1, 1) for name in expected})
    )
    with pytest.raises(KlscaleError, match="_scale_inv is"):
        read(directory)


def test_experts_are_packed_one_by_one(make_model):
    """As published: codes of each expert under a name of its own; transformers holds all of them in one tensor."""
    directory = make_model(architecture="mixtral, experts", hidden_size=64, intermediate_size=96)
    generator, expected = np.random.default_rng(0), {}

    def change(tensors):
        for name in [name for name in tensors if ".experts." in name]:
            parts, expected[name] = packing.gptq(generator, tuple(tensors.pop(name).shape), 4, 32)
            tensors |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}

    change_file(directory, change)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": GPTQ}))
    model = read(directory).model
    assert expected
    for name, weight in expected.items():
        before, _, after = name.partition(".experts.")
        expert, matrix, _ = after.split(".")
        held = model.get_submodule(before.replace("block_sparse_moe", "mlp")).experts
        half = held.gate_up_proj.shape[1] // 2
        there = {"w1": held.gate_up_proj[int(expert), :half], "w3": held.gate_up_proj[int(expert), half:],
                 "w2": held.down_proj[int(expert)]}[matrix]  # fmt: skip
        torch.testing.assert_close(there.double(), torch.from_numpy(weight), rtol=3e-7, atol=0)


def test_what_is_for_activations_is_named(packed_model):
    """Scales of activations and of the cache have no part in the weights."""
    directory, _ = packed_model("compressed-tensors, fp8 by tensor")
    more = {"model.layers.0.mlp.up_proj.input_scale": torch.ones(1),
            "model.layers.0.self_attn.k_scale": torch.ones(1)}  # fmt: skip
    change_file(directory, lambda tensors: tensors.update(more))
    loaded = read(directory)
    assert loaded.unused_tensors == tuple(sorted(more))
    assert loaded.quantization.not_applied == ("activations",)


LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gptq", lambda t: t.pop(f"{LAYER}.scales"), "has no scales"),
        ("gptq", lambda t: t.pop(f"{LAYER}.qzeros"), "has no qzeros"),
        ("gptq", lambda t: t[f"{LAYER}.g_idx"].fill_(7), "a group that has no scale"),
        ("gptq", lambda t: t[f"{LAYER}.g_idx"].fill_(-1), "a group that has no scale"),
        ("gptq", lambda t: t.update({f"{LAYER}.g_idx": torch.zeros(3, dtype=torch.int32)}), r"g_idx is \(3,\)"),
        ("gptq", lambda t: t.update({f"{LAYER}.qweight": t[f"{LAYER}.qweight"].long()}), "qweight holds I64"),
        ("gptq", lambda t: t.update({f"{LAYER}.qweight": t[f"{LAYER}.qweight"][:, :8].clone()}), "scales is"),
        ("gptq", lambda t: t.update({f"{LAYER}.weight": torch.ones(96, 64)}), "both codes and plain weights"),
        ("gptq", lambda t: t.update({f"{LAYER}.extra": torch.ones(3)}), "no place for 1 tensors"),
        ("gptq", lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}), "holds I8"),
        ("awq", lambda t: t.update({f"{LAYER}.scales": t[f"{LAYER}.scales"][:1].clone()}), "in groups of 32"),
        ("awq", lambda t: t.pop(f"{LAYER}.qweight"), "are missing|holds I32"),
        ("compressed-tensors, int4", lambda t: t.pop(f"{LAYER}.weight_scale"), "no weight_scale"),
        ("compressed-tensors, int4", lambda t: t[f"{LAYER}.weight_shape"].fill_(-5), "weight_shape is"),
        ("compressed-tensors, int4", lambda t: t[f"{LAYER}.weight_shape"].fill_(2**40), "weight_shape is"),
        ("compressed-tensors, fp8 by block",
         lambda t: t.update({f"{LAYER}.weight_scale": torch.ones(7, 7)}), "no group of config.json fits"),
        ("compressed-tensors, nvfp4", lambda t: t.pop(f"{LAYER}.weight_global_scale"), "no weight_global_scale"),
        ("compressed-tensors, fp8 by tensor", lambda t: t.pop(f"{LAYER}.weight_scale"), "holds F8_E4M3"),
        ("fp8", lambda t: t.pop(f"{LAYER}.weight_scale_inv"), "holds F8_E4M3"),
        ("hqq", lambda t: t.pop(f"{LAYER}.zero"), "no zero"),
        ("hqq", lambda t: t.pop(f"{LAYER}.shape"), "no shape of two numbers"),
        ("hqq", lambda t: t[f"{LAYER}.quant_scale"].fill_(1), "quant_scale is set"),
        ("hqq", lambda t: t[f"{LAYER}.nbits"].fill_(7), "nbits is 7"),
        ("hqq", lambda t: t[f"{LAYER}.nbits"].fill_(8), "packing is '4bit_u8' for 8 bits"),
        ("hqq", lambda t: t[f"{LAYER}.axis"].fill_(0), "scale is"),
        ("hqq", lambda t: t[f"{LAYER}.shape"].fill_(2**30), "W_q is|do not divide"),
        ("hqq", lambda t: t.update({f"{LAYER}.zero_q": torch.ones(3, dtype=torch.uint8)}), "holds U8"),
    ],
)  # fmt: skip
def test_files_that_contradict_their_format_are_refused(name, change, message, packed_model):
    directory, _ = packed_model(name)
    change_file(directory, change)
    with pytest.raises(KlscaleError, match=message):
        read(directory)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gptq", {"bits": 5}, "bits is 5"),
        ("gptq", {"bits": 2}, "It has 4 bits, and config.json says 2"),
        ("gptq", {"bits": True}, "bits is True"),
        ("gptq", {"bits": [4] * 10**5}, r"bits is \[4, 4"),
        ("gptq", {"group_size": 0}, "group_size is 0"),
        ("gptq", {"group_size": 2**70}, "group_size is"),
        ("gptq", {"group_size": 48}, "in groups of 48"),
        ("gptq", {"checkpoint_format": "marlin"}, "packed as 'marlin'"),
        ("awq", {"version": "gemv"}, "packed as 'gemv'"),
        ("auto-round", {"packing_format": ["auto_round"]}, "packed as "),
        ("auto-round, awq", {"bits": 8}, "as AWQ only 4 are read"),
        ("auto-round", {"packing_format": "auto_round:llm_compressor"}, "packed as 'auto_round:llm_compressor'"),
        ("compressed-tensors, int4", {"config_groups": {}}, "no config_groups"),
        ("compressed-tensors, int4", {"config_groups": {"W4A16": ["Linear"]}}, "preset"),
        ("compressed-tensors, int4", {"format": "marlin-24"}, "packed as 'marlin-24'"),
        ("compressed-tensors, int4", {"quantization_status": "frozen"}, "holds no codes"),
        ("compressed-tensors, int4", {"transform_config": {"R1": 1}}, "transform_config"),
        ("compressed-tensors, int4", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        ("compressed-tensors, int4", {"sparsity_config": 3}, "sparsity_config"),
        ("compressed-tensors, fp8 by block",
         {"config_groups": {"a": {"weights": {"block_structure": ["x", 0]}}}}, "Its blocks are"),
        ("fp8", {"weight_block_size": [128]}, "Its blocks are"),
        ("fp8", {"weight_block_size": [-1, 128]}, "Its blocks are"),
        ("fp8", {"weight_block_size": [64, 64]}, "no group of config.json fits"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(name, settings, message, packed_model):
    directory, _ = packed_model(name)
    change_settings(directory, **settings)
    with pytest.raises(KlscaleError, match=message) as raised:
        read(directory)
    assert len(str(raised.value)) < 1500


@pytest.mark.parametrize(
    ("method", "needs"),
    [
        ("eetq", "the order of its codes depends on it"), ("quanto", "optimum-quanto"), ("aqlm", "aqlm"),
        ("modelopt", "ModelOpt"), ("invented", "a library of its own"),
    ],
)  # fmt: skip
def test_other_formats_name_what_they_need(method, needs, make_model):
    directory = make_model()
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    with pytest.raises(KlscaleError, match=f"by '{method}', which is not read here") as raised:
        read(directory)
    assert needs in str(raised.value)


def test_a_packed_model_is_not_quantized_again(packed_once):
    directory, _ = packed_once("awq")
    with pytest.raises(InputError, match="quantized already"):
        read(directory, quantization="nf4")


@pytest.mark.parametrize(
    "name", ["gptq", "awq", "auto-round", "compressed-tensors, int4", "compressed-tensors, nvfp4", "fp8", "hqq"]
)
def test_broken_settings_and_tensors_end_in_an_error_that_names_them(name, tmp_path):
    """Any JSON in the place of any setting, any tensor in the place of another: read, or refused by a KlscaleError."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as some

    make, config, *_ = FORMATS[name]
    parts, expected = make(np.random.default_rng(0), (32, 64))
    json_values = some.recursive(
        some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=5),
        lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
    dtypes = [torch.int32, torch.int8, torch.uint8, torch.float16, torch.float32, torch.int64, torch.float8_e4m3fn]
    tensors = some.builds(
        lambda shape, dtype: torch.ones(shape).to(dtype),
        some.lists(some.integers(0, 9), max_size=3),
        some.sampled_from(dtypes),
    )
    file, n_read = tmp_path / "model.safetensors", 0

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
    @given(some.data())
    def attack(data):
        nonlocal n_read
        told, held = json.loads(json.dumps(config)), dict(parts)
        table = told
        while isinstance(nested := table.get("config_groups", table.get("group_0", table.get("weights"))), dict):
            if data.draw(some.booleans()):
                break
            table = nested
        if (key := data.draw(some.sampled_from([*table, "new"]))) != "quant_method" and data.draw(some.booleans()):
            table[key] = data.draw(json_values)
        elif part := data.draw(some.sampled_from([*held])):
            held[part] = data.draw(tensors)
        save_file({f"layer.{part}": tensor for part, tensor in held.items()}, file)
        try:
            found = formats.read("m", [file], told)
            weight = found.tensors["layer.weight"][...]
        except (KlscaleError, LayoutError):
            return
        n_read += 1
        assert weight.shape[1] * weight.shape[0] <= expected.size * 64

    attack()
    assert n_read > 0
