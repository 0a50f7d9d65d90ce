"""GGUF files: each is scored as what it means to llama.cpp, or refused with the key or tensor that is not known."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ModelRef, parse_all
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.gguf_files import PRE_TOKENIZERS
from klscale.sources.transformers.load import load

pytest.importorskip("gguf")

TEXT = "Once upon a time, there was a little girl. She had 1234 trees\nand a dog."


def logits(directory, file=None):
    """Of `TEXT`, in the tokens of the model."""
    loaded = load(resolve(ModelRef(str(directory), file=file)))
    with torch.no_grad():
        return loaded.model(torch.tensor([loaded.tokenizer(TEXT)["input_ids"]])).logits


@pytest.mark.parametrize(
    ("case", "file", "same"),
    [("gguf-rope-scaling", "linear4.gguf", "hf-linear4"), ("gguf-dropped-tensors", "biases.gguf", "hf-biases")],
)
def test_what_transformers_drops_is_applied(shared, case, file, same):
    """Held against the Hugging Face directory of the same model."""
    there = shared / "cases" / case
    torch.testing.assert_close(logits(there, file), logits(there / same), rtol=0, atol=1e-5)


def test_a_file_is_opened_once_and_without_a_bar(shared, monkeypatch, capfd):
    import gguf
    from gguf.gguf_reader import GGUFReader

    opened, open_it = [], GGUFReader.__init__
    monkeypatch.setattr(GGUFReader, "__init__", lambda self, path: [opened.append(path), open_it(self, path)][-1])
    load(resolve(ModelRef(str(shared / "cases" / "gguf-rope-scaling"), file="linear4.gguf")))
    assert len(opened) == 1
    assert "dequant" not in capfd.readouterr().err
    assert gguf.GGUFReader is GGUFReader


@pytest.fixture
def rewritten(shared, tmp_path):
    """The file of the linear case with other keys and more tensors; returns its directory, where it is `model.gguf`."""
    import gguf

    def rewrite(keys=None, tensors=None, without=()):
        source = gguf.GGUFReader(shared / "cases" / "gguf-rope-scaling" / "linear4.gguf")
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
        given = keys or {}
        for name, field in source.fields.items():
            skipped = name.startswith(("GGUF.", "llama.rope.scaling")) or name == "general.architecture"
            if not skipped and name not in given and name not in without:
                kind = field.types[0]
                inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(name, field.contents(), kind, inner)
        for name, value in given.items():
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add[type(value)](name, value)
        for tensor in source.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        for name, values in (tensors or {}).items():
            writer.add_tensor(name, values.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path

    return rewrite


@pytest.fixture
def with_rope(stories, tmp_path):
    """The model as a Hugging Face directory with other rotary parameters."""
    import json

    def write(**rope):
        directory = tmp_path / "plain"
        shutil.copytree(stories, directory, copy_function=shutil.copyfile)
        config = json.loads((directory / "config.json").read_text())
        config["rope_parameters"] = {"rope_theta": 10000.0, **rope}
        config.pop("rope_scaling", None)
        (directory / "config.json").chmod(0o644)
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    return write


def test_yarn(rewritten, with_rope):
    file = rewritten({
        "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 128,
    })  # fmt: skip
    plain = with_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=128)
    torch.testing.assert_close(logits(file, "model.gguf"), logits(plain), rtol=0, atol=1e-5)


def test_the_factors_of_llama_3(rewritten, with_rope):
    """llama.cpp keeps them as a tensor that divides each frequency."""
    frequencies = 10000.0 ** (-np.arange(0, 8, 2) / 8)
    factor, low, high, original = 8.0, 1.0, 4.0, 64
    wavelengths = 2 * math.pi / frequencies
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    divisors = 1 / ((1 - smooth) / factor + smooth)
    assert len(set(divisors)) > 2
    file = rewritten(tensors={"rope_freqs.weight": divisors})
    plain = with_rope(
        rope_type="llama3", factor=factor, low_freq_factor=low, high_freq_factor=high,
        original_max_position_embeddings=original,
    )  # fmt: skip
    torch.testing.assert_close(logits(file, "model.gguf"), logits(plain), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "tensors", "said"),
    [
        ({"llama.attention.sliding_window": 64}, {}, "llama.attention.sliding_window = 64"),
        ({"llama.new_kind_of_norm": 2.0}, {}, "llama.new_kind_of_norm = 2.0"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}, {}, "llama.rope.scaling.type"),
        ({"llama.rope.dimension_count": 4}, {}, "llama.rope.dimension_count = 4"),
        ({"llama.attention.causal": False}, {}, "llama.attention.causal"),
        ({"split.count": 2}, {}, "one part of a model"),
        ({}, {"blk.0.attn_q_norm.weight": np.ones(8)}, "blk.0.attn_q_norm.weight"),
        ({}, {"blk.0.ffn_up.bias": np.ones(172)}, "does not use all weights"),
        ({}, {"rope_freqs.weight": np.ones(3)}, "rope_freqs.weight"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "new-kind"}, {}, "tokenizer.ggml.pre = 'new-kind'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(rewritten, keys, tensors, said):
    directory = rewritten(keys, tensors)
    with pytest.raises(KlscaleError) as caught:
        load(resolve(ModelRef(str(directory), file="model.gguf")))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert "model.gguf" in caught.value.what


@pytest.mark.parametrize(
    ("keys", "without", "bos"),
    [
        ({"tokenizer.ggml.add_bos_token": True}, (), True),
        ({"tokenizer.ggml.add_bos_token": False}, (), False),
        ({}, ("tokenizer.ggml.add_bos_token",), True),
    ],
)
def test_the_first_token_is_as_the_file_says(rewritten, keys, without, bos):
    tokenizer = load(resolve(ModelRef(str(rewritten(keys, without=without)), file="model.gguf"))).tokenizer
    assert (tokenizer(TEXT)["input_ids"][0] == 1) == bos


def test_the_space_in_front_is_as_the_file_says(rewritten):
    with_space = load(resolve(ModelRef(str(rewritten()), file="model.gguf"))).tokenizer
    assert with_space.convert_ids_to_tokens(with_space("the")["input_ids"])[1] == "▁the"
    keys = {"tokenizer.ggml.add_space_prefix": False}
    without = load(resolve(ModelRef(str(rewritten(keys)), file="model.gguf"))).tokenizer
    assert "".join(without.convert_ids_to_tokens(without("the")["input_ids"])[1:]) == "the"


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["Hello", "Ġ", "1", "2", "3", "4", "Ġworld", "'s", "ĊĊ"]),
        ("gpt-2", ["Hello", "Ġ1234", "Ġworld", "'s", "ĊĊ"]),
        ("llama-bpe", ["Hello", "Ġ", "123", "4", "Ġworld", "'s", "ĊĊ"]),
        ("qwen2", ["Hello", "Ġ", "1", "2", "3", "4", "Ġworld", "'s", "ĊĊ"]),
        ("default", ["Hello", "Ġ", "123", "4", "Ġworld", "'", "s", "ĊĊ"]),
    ],
)
def test_how_pre_tokenizers_cut(pre, pieces):
    """Cuts as llama.cpp makes them, by hand."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[pre]]
    whole = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    assert [piece for piece, _ in whole.pre_tokenize_str("Hello 1234 world's\n\n")] == pieces


def test_the_audit_of_all_architectures_is_that_of_the_installed_transformers(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "docs"))
    from make_gguf_audit import audit

    assert audit() == (Path(__file__).parents[1] / "docs" / "gguf-audit.md").read_text(encoding="utf-8")


def test_files_are_named_as_a_shell_names_them(tmp_path, monkeypatch):
    (tmp_path / "some models").mkdir()
    for name in ("b.gguf", "a.Q4_K.gguf"):
        (tmp_path / "some models" / name).touch()
    monkeypatch.chdir(tmp_path)
    both = [ModelRef("some models", file="a.Q4_K.gguf"), ModelRef("some models", file="b.gguf")]
    assert parse_all(["some models/*.gguf"]) == parse_all(["some models"]) == both
    assert parse_all(["some models/b.gguf", "gpt2", "some models/*.gguf"]) == [both[1], ModelRef("gpt2"), both[0]]
    assert [ModelRef.parse(str(ref)) for ref in both] == both
    assert ModelRef.parse("some%20models/b.gguf%bfloat16") == ModelRef("some models", file="b.gguf", dtype="bfloat16")
    with pytest.raises(InputError, match="no file some models/c"):
        parse_all(["some models/c*.gguf"])


def test_a_directory_of_files_is_one_table(shared, run, tmp_path):
    place = tmp_path / "models"
    place.mkdir()
    cases = shared / "cases"
    shutil.copy(cases / "gguf-rope-scaling" / "linear4.gguf", place / "one.gguf")
    shutil.copy(cases / "gguf-dropped-tensors" / "biases.gguf", place / "two.gguf")
    shutil.copy(cases / "gguf-rope-scaling" / "linear4.gguf", place / "three.gguf")
    lines = "".join(json.dumps({"text": f"{TEXT} {n} {TEXT}"}) + "\n" for n in range(6))
    (tmp_path / "texts.jsonl").write_text(lines, encoding="utf-8")
    shared_options = ("--texts", tmp_path / "texts.jsonl", "--store", tmp_path / "store")
    found = run("compare", f"{place}/*.gguf", "--reference", place / "one.gguf", *shared_options, status=None)
    assert f"From {place}:one.gguf" in found.stdout
    assert "bits/weight" in found.stdout
