"""Loading: adapters, models larger than memory, and what is no causal language model."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from conftest import PATIENCE_S, byte_tokenizer, plain_log_likelihoods
from klscale.errors import InputError, KlscaleError, UnavailableError
from klscale.inputs.references import ModelRef
from klscale.sources import digests
from klscale.sources.transformers import files, placement
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load
from test_scoring import score


def refuse(directory, match, error=KlscaleError):
    with pytest.raises(error, match=match) as caught:
        load(resolve(ModelRef(str(directory))))
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


# ----------------------------------------------------------------------------------------- no causal language models


def encoder_decoder(kind):
    import transformers

    small = {"vocab_size": 300, "d_model": 16, "max_position_embeddings": 64}
    if kind == "t5":
        config = transformers.T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        return transformers.T5ForConditionalGeneration(config)
    layers = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in
              (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**small, **layers))


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoder_models_are_refused(kind, tmp_path):
    """Of BART transformers would make a decoder of its own, with half of the weights."""
    encoder_decoder(kind).save_pretrained(tmp_path / kind)
    byte_tokenizer().save_pretrained(tmp_path / kind)
    refuse(tmp_path / kind, f"is an encoder-decoder model \\({kind}\\)")


def test_vision_models_are_refused(tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    refuse(tmp_path / "vit", "is not a causal language model, but of the kind 'vit'")


# --------------------------------------------------------------------------------------------------------- adapters


def make_adapter(base: Path, directory: Path, **options) -> Path:
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        if "prompt" in options:
            config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        else:
            config = peft.LoraConfig(
                task_type="CAUSAL_LM",
                r=4,
                lora_alpha=8,
                target_modules="all-linear",
                init_lora_weights=False,
                **options,
            )
        peft.get_peft_model(model, config).save_pretrained(directory)
    return directory


def adapted_log_likelihoods(base: Path, adapter: Path, texts):
    """Without merging: the base model's own layers with the adapter's beside them, one text at a time, in float64."""
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    tokenizer, values = AutoTokenizer.from_pretrained(base), []
    with torch.no_grad():
        for text in texts.texts:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            log_probabilities = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            values.append(log_probabilities[torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum().item())
    return np.array(values)


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["embed_out"]}], ids=["lora", "lora and a trained head"])
def test_an_adapter_is_applied_to_its_model(options, make_model, texts, tmp_path):
    pytest.importorskip("peft", reason="needs the package peft: pip install klscale[lora]")
    base = make_model("base")
    adapter = make_adapter(base, tmp_path / "adapter", **options)
    values, engine = score(adapter, texts)
    np.testing.assert_allclose(values, adapted_log_likelihoods(base, adapter, texts), atol=1e-3, rtol=0)
    assert np.abs(values - plain_log_likelihoods(base, texts)).min() > 0.1
    assert engine.loaded.attributes["parent"] == str(base)
    assert not engine.own_logits


def test_an_adapter_depends_on_its_model(make_model, tmp_path):
    pytest.importorskip("peft", reason="needs the package peft: pip install klscale[lora]")
    base, other = make_model("base"), make_model("other", seed=1)
    ref = ModelRef(str(make_adapter(base, tmp_path / "adapter")))
    before = resolve(ref).identity
    (base / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert resolve(ref).identity != before


def test_adapters_that_cannot_be_applied(make_model, tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="needs the package peft: pip install klscale[lora]")
    base = make_model("base")
    adapter = make_adapter(base, tmp_path / "adapter")
    config = adapter / "adapter_config.json"
    whole = config.read_text()

    config.write_text(json.dumps(json.loads(whole) | {"base_model_name_or_path": "/nowhere/base"}))
    refuse(adapter, "is an adapter of /nowhere/base, which cannot be used", UnavailableError)
    config.write_text("{}")
    refuse(adapter, "is an adapter without a model", InputError)
    config.write_text(json.dumps(json.loads(whole) | {"base_model_name_or_path": str(adapter)}))
    refuse(adapter, "is an adapter itself", InputError)
    config.write_text(json.dumps(json.loads(whole) | {"base_model_name_or_path": str(make_model("w", hidden_size=64))}))
    refuse(adapter, "cannot be merged into")
    config.write_text(whole)
    (adapter / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    refuse(adapter, "holds both a model and an adapter", InputError)
    (adapter / "model.safetensors").unlink()
    (adapter / "config.json").write_text((base / "config.json").read_text())  # as some trainers leave it
    load(resolve(ModelRef(str(adapter))))
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").unlink()
    refuse(adapter, "holds no weights", InputError)
    (adapter / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
    refuse(adapter, "cannot be merged into")

    refuse(make_adapter(base, tmp_path / "prompts", prompt=True), "prompts and prefixes cannot")
    monkeypatch.setitem(sys.modules, "peft", None)
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    refuse(adapter, r"klscale\[lora\]")


def test_buffers_that_no_machine_holds_are_refused(tmp_path):
    """GPT-Neo has a mask of positions by positions in each layer: a number in config.json asks for a terabyte."""
    config = GPTNeoConfig(vocab_size=259, hidden_size=16, num_layers=1, num_heads=2, attention_types=[[["global"], 1]],
                          max_position_embeddings=64, window_size=16)  # fmt: skip
    directory = tmp_path / "neo"
    GPTNeoForCausalLM(config).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    load(resolve(ModelRef(str(directory))))
    told = json.loads((directory / "config.json").read_text()) | {"max_position_embeddings": 2**20}
    (directory / "config.json").write_text(json.dumps(told))
    assert "1,100 GB, for 1,048,576 positions" in refuse(directory, "does not fit into memory")


def test_adapter_weights_that_are_missing_are_not_passed_over(make_model, tmp_path):
    pytest.importorskip("peft", reason="needs the package peft: pip install klscale[lora]")
    from safetensors.torch import load_file, save_file

    adapter = make_adapter(make_model("base"), tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
    refuse(adapter, "cannot be merged into .*\n.*missing adapter keys")


# ------------------------------------------------------------------------------------------------------ fingerprints


def test_large_files_are_hashed_once_and_again_when_they_change(make_model, monkeypatch):
    monkeypatch.setattr(digests, "LARGE", 1000)
    directory, other = make_model(), make_model("other", seed=1)
    weights, hashed = directory / "model.safetensors", []
    whole = digests.hashlib.file_digest
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda file, *a: hashed.append(file.name) or whole(file, *a))

    def identity(age):
        """Resolve it with weights that were written so many seconds ago."""
        hashed.clear()
        os.utime(weights, (time.time() - age,) * 2)
        return resolve(ModelRef(str(directory))).identity, hashed.count(str(weights))

    before, first = identity(100.7)
    assert first == 1
    stamp = weights.stat().st_mtime
    assert (resolve(ModelRef(str(directory))).identity, hashed.count(str(weights))) == (before, 1)
    weights.write_bytes((other / "model.safetensors").read_bytes())  # of the same size
    after, again = identity(0)
    assert (after != before, again) == (True, 1)
    weights.write_bytes(weights.read_bytes()[::-1])  # at once, within the clock's tick
    os.utime(weights, (stamp, weights.stat().st_mtime))
    assert resolve(ModelRef(str(directory))).identity not in (before, after)


# ------------------------------------------------------------------------------------------------- larger than memory


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt-neox", "llama, tied", "mixtral, experts", "gemma2, soft cap"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_larger_than_memory_is_scored_layer_by_layer(architecture, dtype, make_model, few_texts, monkeypatch):
    directory = make_model(architecture, architecture=architecture, num_hidden_layers=6)
    expected, _ = score(directory, few_texts, dtype=dtype)
    size = sum(p.numel() * p.itemsize for p in load(resolve(ModelRef(str(directory), dtype=dtype))).model.parameters())
    monkeypatch.setattr(placement, "available_memory", lambda device: int(0.8 * size))
    values, engine = score(directory, few_texts, dtype=dtype)
    np.testing.assert_array_equal(values, expected)
    assert any(parameter.is_meta for parameter in engine.model.parameters()), "some layers stay on disk"
    assert not engine.own_logits
    folder = Path(engine.loaded.offload.name)
    assert folder.is_dir()
    del engine
    import gc

    gc.collect()
    assert not folder.exists()


def test_a_model_that_does_not_fit_beside_another_waits_for_it(make_model, monkeypatch):
    directory = make_model()
    memory = [1000]
    monkeypatch.setattr(placement, "available_memory", lambda device: memory[0])
    alone, waits, found = threading.Event(), threading.Event(), []
    wait = alone.wait
    monkeypatch.setattr(alone, "wait", lambda: waits.set() or wait())
    resolved = resolve(ModelRef(str(directory)))
    thread = threading.Thread(target=lambda: found.append(load(resolved, alone=alone)))
    thread.start()
    assert waits.wait(PATIENCE_S)
    memory[0] = 10**9
    alone.set()
    thread.join()
    assert found[0].offload is None


# ---------------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ({"model.safetensors", "pytorch_model.bin", "config.json"}, ["model.safetensors"]),
        ({"pytorch_model.bin", "consolidated.safetensors"}, ["pytorch_model.bin"]),
        (
            {"model.safetensors.index.json", "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors",
             "model.fp16-00001-of-00002.safetensors", "pytorch_model.bin"},
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            {"pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "training_args.bin"},
            ["pytorch_model-00001-of-00001.bin"],
        ),
        ({"config.json", "tf_model.h5"}, []),
    ],
)  # fmt: skip
def test_which_files_hold_the_weights(names, read):
    assert files.weights_read(names) == read


def test_the_weights_of_a_directory(make_model, tmp_path):
    directory = make_model()
    (directory / "pytorch_model.bin").write_bytes(b"older")
    assert resolve(ModelRef(str(directory))).weights == ["model.safetensors"]


class Malicious:
    """Unpickling it runs a command."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_a_pickle_that_runs_code_is_refused(save, make_model, tmp_path):
    directory = make_model()
    (directory / "model.safetensors").unlink()
    save({"gpt_neox.embed_in.weight": Malicious(tmp_path / "ran")}, directory / "pytorch_model.bin")
    said = refuse(directory, "cannot be loaded as a causal language model")
    assert "could run any code: it is not read" in said
    assert not (tmp_path / "ran").exists()
    with contextlib.suppress(RuntimeError):  # after it has run
        torch.load(directory / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists(), "else this test would prove nothing"


# --------------------------------------------------------------------------------- every tensor of the files is used


@pytest.fixture
def rewritten(make_model):
    """A model whose tensors were changed by a function; returns its directory."""
    from safetensors.torch import load_file, save_file

    def rewrite(change, **settings):
        directory = make_model(architecture="llama, grouped queries", **settings)
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    return rewrite


@pytest.mark.parametrize("kind", ["biases", "qnorm"])
def test_tensors_that_the_model_has_no_place_for_are_refused(shared, kind):
    said = refuse(shared / "cases" / "unused-tensors" / kind, "weights that the model does not use")
    assert "self_attn" in said
    assert {"biases": "_proj.bias", "qnorm": "_norm.weight"}[kind] in said


def test_a_layer_more_than_the_configuration_has_is_refused(make_model):
    directory = make_model(architecture="llama, grouped queries")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    assert "model.layers.1" in refuse(directory, "weights that the model does not use")


def test_a_tied_configuration_with_another_head_is_refused(rewritten):
    def untie(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 0.5

    said = refuse(rewritten(untie, tie_word_embeddings=True), "the weights do not fit the model")
    assert "ties the output head" in said
    assert "tie_word_embeddings" in said


def test_a_tied_head_that_is_written_twice_is_fine(rewritten):
    def copy(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    assert load(resolve(ModelRef(str(rewritten(copy, tie_word_embeddings=True))))).unused_tensors == ()


def test_buffers_that_a_model_computes_itself_are_no_weights(rewritten):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    unused = load(resolve(ModelRef(str(rewritten(add))))).unused_tensors
    assert set(unused) <= {"model.layers.0.self_attn.rotary_emb.inv_freq"}


def test_other_libraries_are_quiet_until_the_last_thread_leaves():
    import logging

    from transformers.utils import logging as theirs

    from klscale.sources.quiet import quiet_transformers

    before = theirs.is_progress_bar_enabled(), theirs.get_verbosity(), logging.getLogger("torchao").level
    first, second = quiet_transformers(), quiet_transformers()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not theirs.is_progress_bar_enabled()
    assert logging.getLogger("torchao").level == logging.ERROR
    second.__exit__(None, None, None)
    assert (theirs.is_progress_bar_enabled(), theirs.get_verbosity(), logging.getLogger("torchao").level) == before
