"""What goes wrong for users, made to happen on the command line: three lines that name the thing, the reason and the
remedy, the right exit status, and what was scored before is kept."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import byte_tokenizer, plain_log_likelihoods, write_texts
from klscale.errors import near_names
from klscale.inputs.texts import load_texts
from klscale.sources.transformers.engine import Engine
from klscale.store.store import Store


def spoil_weights(directory, change):
    from safetensors.torch import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def with_nan(directory):
    spoil_weights(directory, lambda weights: weights["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"].fill_(float("nan")))


def too_large(directory):
    """Finite in half precision, with logits that are not."""
    spoil_weights(directory, lambda weights: weights["embed_out.weight"].mul_(5e4))


def short_window(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))


def odd_window(directory):
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": {}}))


CASES = {
    "a window of another type": (odd_window, "", "model_max_length is {}, which is no number", "whole"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "", "holds no weights", "Check that the download"),
    "half a file": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:5000]),
        "", "cannot be loaded as a causal language model", "is whole",
    ),
    "a long text": (short_window, "", "longer than the window of", "--long-texts window"),
    "damaged weights": (with_nan, "", "first in gpt_neox.layers.1.mlp.dense_4h_to_h.weight", "use %float32"),
    "overflow": (too_large, "%float16", "its logits overflow in float16", "%bfloat16"),
    "another shape": (
        lambda d: spoil_weights(d, lambda w: w.update({"gpt_neox.embed_in.weight": w["gpt_neox.embed_in.weight"][:9]})),
        "", "weights do not fit the model", "config.json belongs to them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_cannot_be_scored(case, run, make_model, tmp_path):
    spoil, suffix, message, remedy = CASES[case]
    good, bad = make_model("good"), make_model("bad", seed=1)
    spoil(bad)
    write_texts(tmp_path / "mine.jsonl", 12)
    result = run("score", good, f"{bad}{suffix}", "--texts", "mine.jsonl", status=1)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 3, result.stderr
    assert message in result.stderr
    assert str(bad) in result.stderr
    assert remedy in lines[2]
    texts = load_texts(tmp_path / "mine.jsonl")
    vectors = Store(tmp_path / "klscale-store").vectors(texts)
    assert vectors.names == (str(good),)
    np.testing.assert_allclose(vectors.log_likelihood[0], plain_log_likelihoods(good, texts), atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (("score", "{model}+nf5"), "unknown quantization 'nf5'", "Did you mean 'nf4'"),
        (("score", "{model}%float46"), "unknown dtype 'float46'", "Did you mean 'float16'"),
        (("score", "{model}", "--long-texts", "windw"), "'windw' is not known", "Did you mean 'window'"),
        (("score", "{model}", "--long-text", "skip"), "No such option: --long-text", "--long-texts"),
        (("score", "{model}", "--device", "cuda:77"), "'cuda:77' cannot be used", "--device cpu"),
        (("score", "{model}", "--texts", "broken.jsonl"), "broken.jsonl, line 3: not JSON", "Mend or delete"),
        (("score", "{model}", "--texts", "mine.json"), "mine.json", ""),
        (("score", "./nothing"), "nothing is not a directory", "Check the path"),
        (("compare", "{model}", "{model}"), "Two different models are needed", "klscale compare"),
    ],
)
def test_wrong_arguments(arguments, message, remedy, run, make_model, tmp_path):
    model = make_model()
    write_texts(tmp_path / "mine.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "thr\n')
    words = [word.format(model=model) for word in arguments]
    result = run(*words, *(() if "--texts" in words else ("--texts", "mine.jsonl")), status=2)
    assert message in result.stderr
    assert remedy in result.stderr
    assert not (tmp_path / "klscale-store").exists()


def test_a_tokenizer_that_loses_something(run, make_model, tmp_path):
    from tokenizers import normalizers

    model = make_model()
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(model)
    (tmp_path / "mine.jsonl").write_text('{"text": "all small"}\n{"text": "One Capital"}\n')
    result = run("score", model, "--texts", "mine.jsonl")
    assert "does not give back 50.0% of the texts" in result.stderr
    assert "Compare it with models of its own tokenizer" in result.stderr


def test_a_full_disk_stops_the_sweep_and_keeps_what_was_scored(run, make_model, tmp_path, monkeypatch):
    models = [str(make_model(name, seed=n)) for n, name in enumerate("abc")]
    write_texts(tmp_path / "mine.jsonl")
    sync, disk, full = os.fsync, [True, False], []  # room for one vector

    def no_space(file):
        if Path(f"/proc/self/fd/{file}").readlink().match("*/vectors/*/*") and (full or disk.pop()):
            full.append(file)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", no_space)
    result = run("score", *models, "--texts", "mine.jsonl", status=1)
    assert len(full) == 1, "not tried again for every model"
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 3, result.stderr
    assert "could not be written" in lines[0]
    assert "No space left on device" in lines[1]
    assert "Make room" in lines[2]
    monkeypatch.setattr(os, "fsync", sync)
    texts = load_texts(tmp_path / "mine.jsonl")
    assert Store(tmp_path / "klscale-store").vectors(texts).names == (models[0],)
    result = run("score", *models, "--texts", "mine.jsonl", "--json")
    assert [outcome["status"] for outcome in json.loads(result.stdout)] == ["present", "scored", "scored"]
    assert not list(tmp_path.glob("klscale-store/**/.*"))


def test_out_of_memory_with_one_text(run, make_model, tmp_path, monkeypatch):
    """The allocator's own refusal."""
    write_texts(tmp_path / "mine.jsonl")
    monkeypatch.setattr(Engine, "_hidden_states", lambda *_: torch.empty(10**15))
    result = run("score", make_model(), "--texts", "mine.jsonl", status=1)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 3, result.stderr
    assert "out of memory on cpu with one text of" in lines[0]
    assert "%bfloat16" in lines[2]


def test_names_of_models_that_are_near_are_suggested(run, make_model, tmp_path):
    """Those of the store, and directories beside the missing one, for each command that scores."""
    texts = write_texts(tmp_path / "texts.jsonl", 40)
    model = make_model("runs/checkpoint-500")
    told = run("compare", model, Path(model).parent / "chekpoint-500", "--texts", texts, status=None)
    assert f"Did you mean '{model}'? Check the path." in " ".join(told.stderr.split())
    assert near_names("PYTHIA-410m", ["EleutherAI/pythia-410m", "gpt2"]) == "Did you mean 'EleutherAI/pythia-410m'?"
    assert near_names("llama", ["gpt2", "mamba"]) == ""
