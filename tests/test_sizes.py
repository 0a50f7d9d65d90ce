"""Sizes of models, counted here by hand from their shapes."""

from __future__ import annotations

import json

import pytest

from klscale.inputs.references import ModelRef
from klscale.show.pictures.quantization import pareto_front
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load
from klscale.store.store import Store
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.score import score
from klscale.vectors.sizes import Size

pytest.importorskip("bitsandbytes", reason="needs the package bitsandbytes: pip install klscale[quant]")
pytest.importorskip("torchao", reason="needs the package torchao: pip install klscale[quant]")


@pytest.mark.parametrize("kind", ["int8", "nf4", "int4"])
def test_size_of_a_variant_is_that_of_its_codes_and_scales(make_model, kind):
    directory = make_model(architecture="llama, grouped queries", hidden_size=64, intermediate_size=96)
    base, variant = (load(resolve(ModelRef(str(directory), quantization=one))) for one in (None, kind))
    shapes = [tuple(layer.weight.shape) for name, layer in base.model.named_modules()
              if type(layer).__name__ == "Linear" and "head" not in name]  # fmt: skip
    all_weights = sum(weight.numel() for weight in base.model.parameters())
    bits = {"int8": lambda n, k: 8 * n * k + 32 * n, "nf4": lambda n, k: 4 * n * k + 32 * n * k / 64,
            "int4": lambda n, k: 4 * n * k + 32 * n * k / 32}[kind]  # fmt: skip
    coded = sum(bits(*shape) for shape in shapes) / 8
    rest = 4 * (all_weights - sum(n * k for n, k in shapes))
    assert variant.size.file_bytes == variant.size.memory_bytes == pytest.approx(coded + rest, abs=1)
    assert variant.size.n_weights == base.size.n_weights == all_weights
    assert base.size.file_bytes == (directory / "model.safetensors").stat().st_size
    assert base.size.memory_bytes == 4 * all_weights
    embedding = base.model.get_input_embeddings().weight.numel()
    tied = base.model.config.tie_word_embeddings
    assert base.size.n_embedding_weights == embedding * (1 if tied else 2)


def test_other_weights_have_the_dtype_of_the_files(make_model, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = make_model(architecture="llama, grouped queries", hidden_size=64, intermediate_size=96)
    saved = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).save_pretrained(saved)
    AutoTokenizer.from_pretrained(directory).save_pretrained(saved)
    whole, half = (load(resolve(ModelRef(str(place), quantization="int8"))) for place in (directory, saved))
    linear = sum(layer.weight.numel() for name, layer in whole.model.named_modules()
                 if type(layer).__name__ == "Linear" and "head" not in name)  # fmt: skip
    assert whole.size.memory_bytes == half.size.memory_bytes
    assert whole.size.file_bytes - half.size.file_bytes == 2 * (whole.size.n_weights - linear)


def test_sizes_travel_with_vectors_and_older_ones_have_none(make_model, texts, run, tmp_path):
    directory, place = make_model(), str(tmp_path / "store")
    scored = score([f"{directory}", f"{directory}+int8"], options=Options(texts=texts, store=place))
    assert not scored.failed
    entry = scored.outcomes[1].entry
    size = scored.vectors().size(f"{directory}+int8")
    assert size == Size.of(entry.metadata["size"])
    assert size.bits_per_weight == pytest.approx(8 * size.file_bytes / size.n_weights)
    store = Store(place)
    older = {key: value for key, value in entry.metadata.items() if key != "size"}
    store.write(texts, store.scores(entry), older)
    shown = run("ls", "--store", place).stdout
    assert "–" in shown
    assert "32." in shown
    (record,) = json.loads(run("compare", directory, f"{directory}+int8", "--store", place, "--json").stdout)
    assert record["size_a"]["n_weights"] == size.n_weights
    assert record["size_b"] is None


def test_pareto_front():
    points = {"a": (1, 5.0), "b": (2, 5.0), "c": (2, 3.0), "d": (3, 4.0), "e": (4, 1.0)}
    assert pareto_front(points) == ["a", "c", "e"]
