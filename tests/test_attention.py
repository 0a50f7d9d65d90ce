"""Attention by name: computed so, beside the model as transformers has it by default; what cannot be is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from conftest import values_of
from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load


def test_attention_is_computed_as_it_is_asked_for(make_model, texts, monkeypatch):
    """An eager attention that attends twice as sharply changes one variant, and no other."""
    from transformers.models.llama import modeling_llama

    directory = str(make_model(architecture="llama, grouped queries"))
    texts = TextSet.from_texts("few", texts.texts[:6])
    kinds = (None, "attention-eager", "attention-sdpa")
    before = {kind: values_of(ModelRef(directory, quantization=kind), texts) for kind in kinds}
    eager = modeling_llama.eager_attention_forward

    def sharper(module, query, *arguments, **keywords):
        return eager(module, 2 * query, *arguments, **keywords)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", sharper)
    after = {kind: values_of(ModelRef(directory, quantization=kind), texts)[0] for kind in kinds}
    for kind, (values, loaded) in before.items():
        np.testing.assert_allclose(values, before[None][0], atol=1e-3)  # kernels differ by rounding alone
        assert (np.abs(after[kind] - values).max() > 0.01) == (kind == "attention-eager")
        assert loaded.attributes.get("quantization") == kind
        assert loaded.quantization is None
        assert loaded.size == before[None][1].size


def test_saved_codes_and_an_attention_go_together(make_model):
    import test_formats

    directory = make_model(**test_formats.LLAMA)
    test_formats.packed(directory, *test_formats.FORMATS["awq"][:2])
    loaded = load(resolve(ModelRef(str(directory), quantization="attention-eager")))
    assert loaded.attributes["quantization"] == "awq-4bit attention-eager"
    assert loaded.model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("architecture", "kind", "why"),
    [
        ("mamba2", "attention-eager", "no attention"),
        ("mpt, alibi", "attention-sdpa", "no sdpa attention for mpt"),
        ("gpt-oss, attention sinks", "attention-sdpa", "no sdpa attention for gpt_oss"),
        ("llama, grouped queries", "attention-flash", "the package flash-attn, and a GPU"),
    ],
)
def test_attention_that_cannot_be_is_refused(architecture, kind, why, make_model):
    with pytest.raises(KlscaleError, match=why):
        load(resolve(ModelRef(str(make_model(architecture=architecture)), quantization=kind)), device="cpu")


def test_flash_attention_is_in_half_precision(make_model, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr("klscale.sources.transformers.attention.device_of", lambda _: torch.device("cuda"))
    with pytest.raises(InputError, match="half precision") as raised:
        load(resolve(ModelRef(str(make_model()), quantization="attention-flash")))
    assert "+attention-flash%bfloat16" in str(raised.value)


def test_compare_shows_kl_by_depth_and_the_setting(make_model, texts, tmp_path, run):
    base = str(make_model("base"))
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(record) + "\n" for record in texts.records()))
    how = ("--texts", tmp_path / "my.jsonl", "--store", tmp_path / "store", "--reference", base)
    shown = run("compare", base, f"{base}+attention-eager", *how).stdout
    assert "KL by depth of context" in shown
    assert "quantized variant" not in shown
    (record,) = json.loads(run("compare", base, f"{base}+attention-eager", "--json", *how).stdout)
    assert record["setting"] == "attention (eager)"
    assert record["kl"] < 1e-6
    assert record["by_depth"]
