"""Variants with quantized keys and values, against a model whose own functions are made to round by loops."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from conftest import values_of
from klscale.errors import KlscaleError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.science.estimates import format_estimate
from klscale.sources.transformers.cache import rounded
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load
from klscale.store.store import Store


def rounded_by_loops(numbers, bits, group):
    """One head of one token (d,): each group in equal steps from its least to its largest value."""
    back = np.empty(len(numbers))
    for start in range(0, len(numbers), group):
        part = numbers[start : start + group].astype(np.float64)
        step = (part.max() - part.min()) / (2**bits - 1)
        for n, value in enumerate(part):
            back[start + n] = part.min() + (round((value - part.min()) / step) * step if step else 0.0)
    return back


@pytest.mark.parametrize(("bits", "head", "group"), [(8, 128, 64), (4, 64, 64), (4, 80, 80), (4, 8, 8)])
def test_codes_are_equal_steps_of_each_group(bits, head, group):
    states = torch.from_numpy(np.random.default_rng(0).standard_t(3, size=(2, 2, 3, head))).float()
    states[0, 0, 0] = 0.25
    back = rounded(states, bits)
    for one, by_us in zip(states.reshape(-1, head).numpy(), back.reshape(-1, head).numpy(), strict=True):
        np.testing.assert_allclose(by_us, rounded_by_loops(one, bits, group), atol=1e-5)
    assert rounded(states.bfloat16(), bits).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["kv-int8", "kv-int4"])
def test_every_token_reads_rounded_keys_and_values(kind, make_model, texts, monkeypatch):
    """Keys are rounded behind the rotary embedding, values behind their projection."""
    from transformers.models.llama import modeling_llama

    from conftest import plain_log_likelihoods, values_of

    directory, bits = make_model(architecture="llama, grouped queries"), int(kind[-1])
    texts = TextSet.from_texts("few", texts.texts[:6])
    values, loaded = values_of(ModelRef(str(directory), quantization=kind), texts)
    plain, _ = values_of(ModelRef(str(directory)), texts)
    head = loaded.model.config.head_dim
    rotate, project = modeling_llama.apply_rotary_pos_emb, torch.nn.Linear.forward

    def by_loops(states):
        flat = states.reshape(-1, head).numpy()
        return (
            torch.from_numpy(np.array([rounded_by_loops(one, bits, head) for one in flat])).float().view(states.shape)
        )

    def rotated(queries, keys, *more):
        queries, keys = rotate(queries, keys, *more)
        return queries, by_loops(keys)

    def projected(layer, inputs):
        found = project(layer, inputs)
        return by_loops(found) if layer in values_layers else found

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rotated)
    monkeypatch.setattr(torch.nn.Linear, "forward", projected)
    values_layers = set()
    made = modeling_llama.LlamaAttention.__init__

    def noting(attention, *arguments, **keywords):
        made(attention, *arguments, **keywords)
        values_layers.add(attention.v_proj)

    monkeypatch.setattr(modeling_llama.LlamaAttention, "__init__", noting)
    expected = plain_log_likelihoods(directory, texts)
    assert np.abs(values - expected).max() < 0.02 * np.abs(plain - expected).max()
    assert loaded.attributes["quantization"] == kind
    assert loaded.cache_bits == bits
    assert loaded.quantization is None
    assert loaded.size == load(resolve(ModelRef(str(directory)))).size


@pytest.mark.parametrize(
    "architecture", ["gpt2, tied", "mpt, alibi", "gpt-oss, attention sinks", "deepseek v3, latent attention",
                     "jamba, hybrid with experts"]
)  # fmt: skip
def test_more_bits_change_less(architecture, make_model, texts):
    """On every kind of attention."""
    directory = make_model(architecture=architecture)
    plain, eight, four = (
        values_of(ModelRef(str(directory), quantization=kind), texts)[0] for kind in (None, "kv-int8", "kv-int4")
    )
    assert 0 < np.var(eight - plain) < np.var(four - plain) / 4 < np.inf


def test_a_model_without_keys_and_values_is_refused(make_model, texts):
    with pytest.raises(KlscaleError, match="keeps no keys and values"):
        values_of(ModelRef(str(make_model(architecture="mamba2")), quantization="kv-int8"), texts)


def test_saved_codes_and_a_quantized_cache_go_together(make_model, texts):
    import test_formats

    directory = make_model(**test_formats.LLAMA)
    test_formats.packed(directory, *test_formats.FORMATS["awq"][:2])
    values, loaded = values_of(ModelRef(str(directory), quantization="kv-int4"), texts)
    plain, _ = values_of(ModelRef(str(directory)), texts)
    assert loaded.attributes["quantization"] == "awq-4bit kv-int4"
    assert loaded.quantization.kind == "awq-4bit"
    assert np.abs(values - plain).max() > 1e-3


def test_compare_shows_kl_by_depth(make_model, texts, tmp_path, run):
    base = str(make_model("base"))
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(record) + "\n" for record in texts.records()))
    how = ("--texts", tmp_path / "my.jsonl", "--store", tmp_path / "store")
    shown = run("compare", base, f"{base}+kv-int8", f"{base}+kv-int4", "--reference", base, *how).stdout
    lines, vectors = shown.split("KL by depth of context")[1].splitlines()[2:], Store(tmp_path / "store").vectors(texts)
    rows = {kind: vectors.kl_by_depth(base, f"{base}+{kind}") for kind in ("kv-int8", "kv-int4")}
    for kind, found in rows.items():
        for one in found:
            line = lines.pop(0)
            assert f"{kind} " in line
            assert f"{one.first} to {one.last} " in line
            assert format_estimate(one.kl.value, one.kl.standard_error) in line
    record, _ = json.loads(run("compare", base, f"{base}+kv-int8", f"{base}+kv-int4", "--json", "--reference", base,
                               *how).stdout)  # fmt: skip
    assert [one["n_positions"] for one in record["by_depth"]] == [one.n_positions for one in rows["kv-int8"]]
