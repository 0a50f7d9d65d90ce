"""Quantized variants against codes written down here: quantize, dequantize and score without the libraries."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from conftest import plain_log_likelihoods, values_of
from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import KERNELS, WEIGHTS_ONLY, ModelRef
from klscale.inputs.texts import TextSet, load_texts
from klscale.sources.transformers import quantization
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load
from klscale.store.store import Store
from klscale.sweep.score import score

for package in ("bitsandbytes", "torchao", "gguf"):
    pytest.importorskip(package, reason=f"needs the package {package}: pip install klscale[quant]")

NF4 = [
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip
"""Dettmers et al., arXiv 2305.14314, Appendix E."""
FP4 = sorted({sign * value for sign in (-1, 1) for value in (0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1)})


def dequantized(weight, kind):
    """A weight (outputs, inputs) as float64 after quantization, by the definition of each kind."""
    weight = np.asarray(weight, dtype=np.float16 if kind == "int8" else np.float64).astype(np.float64)
    if kind in ("nf4", "fp4"):
        code = np.array(NF4 if kind == "nf4" else FP4)
        flat = np.append(weight.ravel(), np.zeros(-weight.size % 64)).reshape(-1, 64)
        scale = np.abs(flat).max(axis=1, keepdims=True)
        nearest = np.abs(flat[..., None] / np.where(scale > 0, scale, 1)[..., None] - code).argmin(axis=-1)
        return (code[nearest] * scale).ravel()[: weight.size].reshape(weight.shape)
    if kind == "int8":
        scale = np.abs(weight).max(axis=1, keepdims=True) / 127
        return np.round(weight / scale) * scale
    # In float32: the largest weight of a group lies in the middle between two codes, and rounding decides.
    groups = weight.reshape(len(weight), -1, 32 if kind == "int4" else weight.shape[1]).astype(np.float32)
    half = np.float32(7.5 if kind == "int4" else 127.5)
    scale = np.abs(groups).max(axis=2, keepdims=True) / half
    return (np.clip(np.round(groups * (1 / scale)), -half - 0.5, half - 0.5) * scale).reshape(weight.shape)


def requantized(directory, kind, target):
    """Save the model of `directory` with its linear layers quantized by `dequantized`, the output embedding left."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.pytorch_utils import Conv1D

    model = AutoModelForCausalLM.from_pretrained(directory)
    for module in model.modules():
        if module is model.get_output_embeddings() or not isinstance(module, torch.nn.Linear | Conv1D):
            continue
        weight = module.weight.data.numpy() if isinstance(module, torch.nn.Linear) else module.weight.data.numpy().T
        if kind == "int4" and weight.shape[1] % 32:
            continue
        back = torch.from_numpy(dequantized(weight, kind)).float()
        module.weight.data = back if isinstance(module, torch.nn.Linear) else back.T.contiguous()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(directory).save_pretrained(target)
    return target


@pytest.mark.parametrize("kind", WEIGHTS_ONLY)
@pytest.mark.parametrize("shape", [(96, 64), (50, 96), (7, 160)])
def test_codes_are_those_of_the_definition(kind, shape):
    """Also for widths and sizes that are no multiple of the block of 64."""
    weight = torch.from_numpy(np.random.default_rng(0).standard_t(4, size=shape)).float()
    back, bound = quantization._WAYS[kind](weight)
    expected = dequantized(weight, kind)
    step = np.abs(expected - weight.numpy()).max()
    differs = np.abs(back.numpy() - expected) > 1e-3 * step
    assert differs.mean() < 0.002, "only where a weight lies in the middle between two codes"
    assert (np.abs(back.numpy() - weight.numpy()) <= bound.numpy()).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", WEIGHTS_ONLY)
@pytest.mark.parametrize("architecture", ["llama, grouped queries", "gpt2, tied", "mamba"])
def test_variants_score_as_their_dequantized_weights(kind, architecture, make_model, texts, tmp_path):
    wide = {"n_embd": 64} if "gpt2" in architecture else {"hidden_size": 64}
    wide |= {"intermediate_size": 96} if "llama" in architecture else {}
    directory = make_model(architecture=architecture, **wide)
    values, loaded = values_of(ModelRef(str(directory), quantization=kind), texts)
    expected = plain_log_likelihoods(requantized(directory, kind, tmp_path / "again"), texts)
    plain = plain_log_likelihoods(directory, texts)
    # LLM.int8 rounds in half precision: a few weights take the next code
    assert np.abs(values - expected).mean() < (0.08 if kind == "int8" else 0.02) * np.abs(values - plain).mean()
    assert loaded.attributes["quantization"] == kind
    assert loaded.quantization.weights_only
    assert loaded.quantization.fraction > 0.7
    assert all(".*." in name and count == 2 for name, count in loaded.quantization.modules.items())


@pytest.mark.slow
def test_the_ladder_of_a_real_model(stories, shared, tmp_path):
    """KL and standard errors equal those from weights dequantized here and scored text by text in float64."""
    full = load_texts(shared / "texts" / "public-domain-short-3k.jsonl")
    texts = TextSet.from_texts("part", full.texts[:60])
    kinds = ("int8", "nf4", "fp4", "int4")
    refs = [ModelRef(str(stories)), *(ModelRef(str(stories), quantization=kind) for kind in kinds)]
    store = Store(tmp_path / "store")
    outcomes = score(refs, texts, store)
    assert [outcome.status for outcome in outcomes] == ["scored"] * 5
    vectors = store.vectors(texts)
    base = plain_log_likelihoods(stories, texts)
    for kind in kinds:
        kl = vectors.kl()[str(refs[0]), f"{stories}+{kind}"]
        difference = plain_log_likelihoods(requantized(stories, kind, tmp_path / kind), texts) - base
        difference -= difference.mean()
        unit = 2 * texts.mean_bytes * np.log(2)
        second, fourth = np.mean(difference**2), np.mean(difference**4)
        tolerance = 0.03 if kind == "int8" else 0.002
        assert kl.value == pytest.approx(second / unit, rel=tolerance)
        assert kl.standard_error == pytest.approx(np.sqrt((fourth - second**2) / len(texts)) / unit, rel=2 * tolerance)
    told = {entry.ref.quantization: entry.metadata.get("quantized") for entry in store.entries(texts.id)}
    assert told[None] is None
    assert told["int8"]["library"].startswith("bitsandbytes 0.")
    assert told["nf4"]["fraction"] == pytest.approx(0.997, abs=0.001)
    assert told["int4"]["fraction"] == pytest.approx(0.755, abs=0.001), "172 columns are no multiple of 32"


@pytest.mark.slow
def test_kernels_are_a_kind_of_their_own(stories, texts):
    """LLM.int8's kernel quantizes activations too: farther from the base than its weights alone."""
    base, _ = values_of(ModelRef(str(stories)), texts)
    alone, _ = values_of(ModelRef(str(stories), quantization="int8"), texts)
    kernel, loaded = values_of(ModelRef(str(stories), quantization="int8-kernel"), texts)
    assert np.var(kernel - base) > 1.2 * np.var(alone - base)
    assert not loaded.quantization.weights_only
    assert loaded.attributes["quantization"] == "int8-kernel"


def test_a_kernel_that_does_not_run_says_what_does(stories, texts):
    with contextlib.suppress(KlscaleError):  # some machines have a kernel for every shape
        values_of(ModelRef(str(stories), quantization="nf4-kernel"), texts)
        return
    with pytest.raises(KlscaleError, match=r"[+]nf4 scores the quantized weights without it"):
        values_of(ModelRef(str(stories), quantization="nf4-kernel"), texts)


@pytest.mark.slow
def test_models_saved_quantized_load_as_they_are(make_model, texts, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    directory = make_model(architecture="llama, grouped queries", hidden_size=64, intermediate_size=128)
    config = BitsAndBytesConfig(load_in_8bit=True)
    saved = tmp_path / "saved"
    AutoModelForCausalLM.from_pretrained(directory, quantization_config=config).save_pretrained(saved)
    AutoTokenizer.from_pretrained(directory).save_pretrained(saved)
    values, loaded = values_of(ModelRef(str(saved)), texts)
    kernel, _ = values_of(ModelRef(str(directory), quantization="int8-kernel"), texts)
    np.testing.assert_allclose(values, kernel, atol=1e-3)
    assert loaded.attributes["quantization"] == "int8-kernel"
    with pytest.raises(InputError, match="quantized already"):
        load(resolve(ModelRef(str(saved), quantization="nf4")))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("architecture", ["mixtral, experts", "qwen3, experts", "gpt-oss, attention sinks"])
def test_experts_in_one_tensor_are_quantized_one_by_one(architecture, kind, make_model):
    """gpt-oss holds them as inputs by outputs."""
    directory = make_model(architecture=architecture, hidden_size=64, intermediate_size=96)
    plain, variant = (load(resolve(ModelRef(str(directory), quantization=one))) for one in (None, kind))
    before, after = (dict(loaded.model.named_parameters()) for loaded in (plain, variant))
    turned = architecture.startswith("gpt-oss")
    experts = [name for name, weight in before.items() if weight.ndim == 3]
    assert len(experts) == 4
    for name in experts:
        for weight, back in zip(before[name].data, after[name].data, strict=True):
            weight, back = (weight.T, back.T) if turned else (weight, back)
            expected = dequantized(weight.numpy(), kind)
            step = np.abs(expected - weight.numpy()).max()
            assert (np.abs(back.numpy() - expected) > 1e-2 * step).mean() < 0.01
    assert variant.quantization.fraction > 0.95
    counted = {name: n for name, n in variant.quantization.modules.items() if "experts" in name}
    assert set(counted.values()) == {8}, "two blocks of four experts"
    n = sum(before[name].numel() for name in experts)
    assert variant.quantization.n_weights > n
    assert variant.quantization.stored_bytes < plain.size.memory_bytes / (3 if kind == "int8" else 6)


def test_models_of_which_little_would_be_quantized_are_refused(make_model):
    experts = load(resolve(ModelRef(str(make_model(architecture="mixtral, experts")))))
    for block in experts.model.model.layers:
        del block.mlp.experts.is_transposed  # as if transformers did not say how they are held
    with pytest.raises(KlscaleError, match=r"Only \d+% of the weights outside the embeddings"):
        quantization.quantize_weights(experts.model, ModelRef("m", quantization="nf4"), torch.device("cpu"))
    narrow = make_model("narrow", architecture="llama, grouped queries", hidden_size=48, intermediate_size=40)
    with pytest.raises(KlscaleError, match="no multiple of 32"):
        load(resolve(ModelRef(str(narrow), quantization="int4")))


def test_a_library_that_fails_is_caught(make_model, monkeypatch):
    """What comes back is held against the error that rounding allows."""

    def wrong(weight):
        back, bound = way(weight)
        back[0, 0] += 3 * bound[0, 0]
        return back, bound

    way = quantization._WAYS["nf4"]
    monkeypatch.setitem(quantization._WAYS, "nf4", wrong)
    directory = make_model()
    with pytest.raises(KlscaleError, match="farther away than rounding allows"):
        load(resolve(ModelRef(str(directory), quantization="nf4")))


def test_a_missing_library_is_named(make_model, monkeypatch):
    def gone(name):
        raise ImportError(name)

    monkeypatch.setattr(quantization, "import_module", gone)
    for kind in (*WEIGHTS_ONLY, *KERNELS):
        with pytest.raises(KlscaleError, match=r"klscale\[quant\]"):
            load(resolve(ModelRef(str(make_model()), quantization=kind)))


@pytest.mark.slow
def test_variants_of_an_adapter_are_of_the_merged_weights(make_model, texts, tmp_path):
    pytest.importorskip("peft", reason="needs the package peft: pip install klscale[lora]")
    from test_loading import make_adapter

    base = make_model("base", hidden_size=64)
    adapter = make_adapter(base, tmp_path / "adapter")
    values, _ = values_of(ModelRef(str(adapter), quantization="nf4"), texts)
    merged = load(resolve(ModelRef(str(adapter))))
    merged.model.save_pretrained(tmp_path / "merged")
    merged.tokenizer.save_pretrained(tmp_path / "merged")
    expected = plain_log_likelihoods(requantized(tmp_path / "merged", "nf4", tmp_path / "again"), texts)
    np.testing.assert_allclose(values, expected, atol=0.05)
    with pytest.raises(InputError, match="cannot be merged into quantized weights"):
        load(resolve(ModelRef(str(adapter), quantization="int8-kernel")))


def write_gguf(directory, file, kind):
    """The Llama model of `directory` as llama.cpp lays it out, matrices in `kind` where their width allows."""
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory)
    config, tokenizer = model.config, AutoTokenizer.from_pretrained(directory)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    words = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(n) for n in range(len(words))])
    writer.add_token_types([6 if word.startswith("<0x") else 3 if word in ("<s>", "</s>", "<unk>") else 1
                            for word in words])  # fmt: skip
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    back = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = tensor.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # llama.cpp pairs the rotated halves otherwise
            weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        there = names.get_name(name, try_suffixes=(".weight",))
        if weight.ndim == 2 and weight.shape[1] % 32 == 0:
            type_ = gguf.GGMLQuantizationType[kind]
            data = gguf.quants.quantize(weight, type_)
            writer.add_tensor(there, data, raw_dtype=type_)
            weight = gguf.quants.dequantize(data, type_)
        else:
            writer.add_tensor(there, weight)
        if heads:
            weight = weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        back[name] = torch.from_numpy(np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_state_dict(back, strict=False)
    model.tie_weights()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_gguf_files_are_read_and_named(kind, stories, tmp_path):
    from transformers import AutoTokenizer

    texts = TextSet.from_texts("few", ["Once upon a time there was a tree.", "The dog ran home.", "She said hello."])
    directory = tmp_path / "gguf"
    directory.mkdir()
    model = write_gguf(stories, directory / "model.gguf", kind)
    model.save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(directory, gguf_file="model.gguf").save_pretrained(tmp_path / "plain")
    values, loaded = values_of(ModelRef(str(directory), file="model.gguf"), texts)
    np.testing.assert_allclose(values, plain_log_likelihoods(tmp_path / "plain", texts), atol=1e-3)
    assert loaded.attributes["quantization"] == f"gguf-{kind.lower()}"
    assert loaded.quantization.weights_only
    with pytest.raises(InputError, match="quantized already"):
        load(resolve(ModelRef(str(directory), file="model.gguf", quantization="nf4")))


def test_a_gguf_file_that_is_broken_or_missing(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(KlscaleError, match=r"bad\.gguf"):
        load(resolve(ModelRef(str(tmp_path), file="bad.gguf")))
    with pytest.raises(InputError, match="holds no weights"):
        resolve(ModelRef(str(tmp_path), file="none.gguf"))


def test_tiny_and_huge_weights(make_model):
    """A row below the normal numbers of half precision is sound; a weight beyond its range is not."""

    def quantized(factor):
        loaded = load(resolve(ModelRef(str(make_model(f"m{factor}", hidden_size=64)))))
        module = next(module for module in loaded.model.modules() if isinstance(module, torch.nn.Linear))
        module.weight.data[0] *= factor
        return quantization.quantize_weights(loaded.model, ModelRef("m", quantization="int8"), torch.device("cpu"))

    assert quantized(1e-6).fraction > 0.9
    with pytest.raises(KlscaleError, match="beyond the range of half precision"):
        quantized(1e6)


def saved_with(directory, quantization_config):
    import json

    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantization_config}))


def test_fp8_with_block_scales_is_read_as_its_definition_says(make_model):
    """Weights are codes in float8 (e4m3) times the scale of their block of 128 x 128."""
    from safetensors.torch import load_file, save_file

    directory = make_model(architecture="llama, grouped queries", hidden_size=256, intermediate_size=384)
    saved, expected = {}, {}
    for name, weight in load_file(directory / "model.safetensors").items():
        saved[name] = weight
        if "proj" not in name:
            continue
        rows, width = weight.shape
        if rows % 128 or width % 128:
            pytest.skip("no weights of whole blocks")
        blocks = weight.reshape(rows // 128, 128, width // 128, 128)
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        expected[name] = (codes.float() * scale[:, None, :, None]).reshape(rows, width)
        saved |= {name: codes.reshape(rows, width), f"{name}_scale_inv": scale}
    save_file(saved, directory / "model.safetensors", metadata={"format": "pt"})
    saved_with(directory, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]})
    loaded = load(resolve(ModelRef(str(directory))), device="cpu")
    assert len(expected) == 14
    for name, weight in expected.items():
        torch.testing.assert_close(loaded.model.get_parameter(name).data, weight, rtol=0, atol=0)
    assert loaded.attributes["quantization"] == "fp8"
    assert loaded.quantization.saved
