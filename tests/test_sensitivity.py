"""What each module costs, against a naive loop: a deep copy of the model, one weight changed, a full forward pass of
each text alone, and KL of both softmax distributions in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import klscale
from klscale.errors import InputError
from klscale.inputs.references import ModelRef
from klscale.progress import Progress
from klscale.sources.transformers import quantization
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load
from klscale.sources.transformers.tokens import tokenize

pytest.importorskip("bitsandbytes", reason="needs the package bitsandbytes: pip install klscale[quant]")
pytest.importorskip("torchao", reason="needs the package torchao: pip install klscale[quant]")


def naive(directory, texts, positions, changed):
    """KL in nats (n,) of each text; `changed` maps names of modules to a function of their weight (outputs, inputs)."""
    loaded = load(resolve(ModelRef(str(directory))))
    other = copy.deepcopy(loaded.model)
    for name, way in changed.items():
        layer = other.get_submodule(name)
        turned = not isinstance(layer, torch.nn.Linear)
        weight = layer.weight.data.T.contiguous() if turned else layer.weight.data
        back = way(weight)
        layer.weight.data = back.T.contiguous() if turned else back
    tokens, found = tokenize(loaded.tokenizer, texts), []
    with torch.inference_mode():
        for s in positions:
            ids = torch.from_numpy(tokens.of(int(s)).astype(np.int64))[None]
            log_p, log_q = (model(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(1)
                            for model in (loaded.model, other))  # fmt: skip
            found.append(float((log_p.exp() * (log_p - log_q)).sum()))
    return np.array(found)


@pytest.fixture
def small(make_model):
    return make_model(architecture="llama, grouped queries", hidden_size=64, intermediate_size=96)


def positions_of(texts, n):
    return np.sort(texts.random_order[:n])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama, grouped queries", "gpt2, tied"])
def test_each_module_costs_what_a_naive_loop_says(architecture, make_model, texts, tmp_path):
    wide = {"n_embd": 64} if "gpt2" in architecture else {"hidden_size": 64, "intermediate_size": 96}
    small = make_model(architecture=architecture, **wide)
    found = klscale.sensitivity(str(small), ["nf4", "int4"], texts, tmp_path / "store", n_texts=4).found
    chosen = positions_of(texts, 4)
    n_bytes = texts.bytes[chosen].sum()
    for one, way in zip(found.kinds, (quantization._WAYS["nf4"], quantization._WAYS["int4"]), strict=True):
        total = 0.0
        assert len(one.parts) == len({part.name for part in one.parts}) >= 8
        for part in one.parts:
            expected = naive(small, texts, chosen, {part.name: lambda weight, way=way: way(weight)[0]})
            assert part.kl.value == pytest.approx(expected.sum() / n_bytes / np.log(2), rel=1e-6)
            total += part.kl.value
        everything = {part.name: lambda weight, way=way: way(weight)[0] for part in one.parts}
        whole = naive(small, texts, chosen, everything).sum() / n_bytes / np.log(2)
        assert one.whole.value == pytest.approx(whole, rel=1e-6)
        assert one.total.value == pytest.approx(total)
        assert one.additivity.value == pytest.approx(whole / total, rel=1e-5)


@pytest.mark.parametrize("architecture", ["qwen3, experts", "gpt-oss, attention sinks"])
def test_an_expert_costs_what_a_naive_loop_says(architecture, make_model, texts, tmp_path):
    directory = make_model(architecture=architecture, hidden_size=64, intermediate_size=96)
    found = klscale.sensitivity(str(directory), "nf4", texts, tmp_path / "store", n_texts=4, by="expert").found
    parts = {part.name: part for part in found.kinds[0].parts}
    assert len(parts) == 2 * (4 + 1), "experts and attention of two blocks"
    part = parts["model.layers.1.mlp.experts.2"]
    assert part.short == "mlp.experts.2"
    assert {name.rpartition(".")[2] for name in part.modules} == {"gate_up_proj", "down_proj"}
    loaded = load(resolve(ModelRef(str(directory))))
    other, tokens, nats = copy.deepcopy(loaded.model), tokenize(loaded.tokenizer, texts), 0.0
    held = other.model.layers[1].mlp.experts
    for weight in (held.gate_up_proj.data[2], held.down_proj.data[2]):
        turned = weight.T if held.is_transposed else weight
        back = quantization._WAYS["nf4"](turned.contiguous())[0]
        weight.copy_(back.T if held.is_transposed else back)
    chosen = positions_of(texts, 4)
    with torch.inference_mode():
        for s in chosen:
            ids = torch.from_numpy(tokens.of(int(s)).astype(np.int64))[None]
            log_p, log_q = (model(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(1)
                            for model in (loaded.model, other))  # fmt: skip
            nats += float((log_p.exp() * (log_p - log_q)).sum())
    assert part.kl.value == pytest.approx(nats / texts.bytes[chosen].sum() / np.log(2), rel=1e-5)
    by_layer = klscale.sensitivity(str(directory), "nf4", texts, tmp_path / "store", n_texts=4, by="layer").found
    assert {part.short for part in by_layer.kinds[0].parts} == {"self_attn", "mlp.experts"}
    assert by_layer.kinds[0].whole.value == pytest.approx(found.kinds[0].whole.value)


def test_a_model_without_experts_has_no_such_parts(small, texts, tmp_path):
    with pytest.raises(InputError, match="has no experts"):
        klscale.sensitivity(str(small), "nf4", texts, tmp_path / "store", n_texts=4, by="expert")


def test_standard_errors_are_over_documents(small, texts, tmp_path):
    """Of a ratio of sums, by a jackknife over documents."""
    from dataclasses import replace

    texts = replace(texts, document=tuple(f"d{n // 2}" for n in range(len(texts))))
    found = klscale.sensitivity(str(small), "nf4", texts, tmp_path / "store", n_texts=40).found
    part = found.kinds[0].parts[0]
    nats = naive(small, texts, range(40), {part.name: lambda weight: quantization._WAYS["nf4"](weight)[0]})
    document = np.arange(40) // 2
    without = [nats[document != d].sum() / texts.bytes[document != d].sum() / np.log(2) for d in range(20)]
    jackknife = np.sqrt(19 * np.var(without))
    assert part.kl.standard_error == pytest.approx(jackknife, rel=0.1)


def test_noise_has_the_norm_of_the_error(small, texts, tmp_path):
    found = klscale.sensitivity(str(small), "nf4", texts, tmp_path / "store", n_texts=6, by="block", control=True).found
    from klscale.sources.transformers.changes import _noise

    error = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)) ** 3
    drawn = _noise(error, "a name")
    assert drawn.norm() == pytest.approx(float(error.norm()), rel=1e-5)
    assert abs(float((drawn * error).sum() / error.norm() ** 2)) < 0.1
    for part in found.kinds[0].parts:
        assert part.over_noise.value == pytest.approx(part.kl.value / part.noise.value)


def test_the_model_is_left_as_it_was_and_work_is_kept(small, texts, tmp_path):
    class Stop(Progress):
        def advance(self, amount=1.0):
            super().advance(amount)
            if self.done > 30:
                raise KeyboardInterrupt

    options = klscale.Options(progress=Stop(), batch_tokens=64)
    with pytest.raises(KeyboardInterrupt):
        klscale.sensitivity(str(small), "nf4", texts, tmp_path / "cut", n_texts=8, options=options)

    class Count(Progress):
        total = 0.0

        def begin(self, what, total=None, unit=""):
            super().begin(what, total, unit)
            self.total = total

    count = Count()
    options = klscale.Options(progress=count, batch_tokens=64)
    again = klscale.sensitivity(str(small), "nf4", texts, tmp_path / "cut", n_texts=8, options=options).found
    whole = klscale.sensitivity(str(small), "nf4", texts, tmp_path / "whole", n_texts=8).found
    assert count.total < 8 * (len(whole.kinds[0].parts) + 1) - 20
    for one, other in zip(again.kinds[0].parts, whole.kinds[0].parts, strict=True):
        assert one.kl.value == pytest.approx(other.kl.value, rel=1e-4)
    assert [*klscale.Store(tmp_path / "cut").check()]
    assert not [problem for _, problem in klscale.Store(tmp_path / "cut").check() if problem]


def test_parts_nest(small, texts, tmp_path):
    shared = (str(small), "nf4", texts, tmp_path / "store")
    every = {by: klscale.sensitivity(*shared, n_texts=2, by=by).found for by in ("module", "layer", "block")}
    parts = {by: found.kinds[0].parts for by, found in every.items()}
    assert [part.block for part in parts["block"]] == [0, 1]
    assert {len(part.modules) for part in parts["module"]} == {1}
    assert len(parts["layer"]) == 4, "attention and MLP of two blocks"
    for some in parts.values():
        assert sum(part.n_weights for part in some) == sum(part.n_weights for part in parts["module"])


def test_wrong_arguments_are_named(small, texts, tmp_path):
    for arguments, message in (
        ({"quantize": "int5"}, "no kind of weights alone"),
        ({"quantize": "nf4", "by": "head"}, "--by 'head'"),
        ({"quantize": "nf4", "n_texts": 1}, "too few"),
    ):
        with pytest.raises(InputError, match=message):
            klscale.sensitivity(str(small), texts=texts, store=tmp_path / "store", **arguments)
    with pytest.raises(InputError, match="has no changed modules"):
        klscale.sensitivity("mock://1", "nf4", texts, tmp_path / "store")
    with pytest.raises(InputError, match="quantized already"):
        klscale.sensitivity(f"{small}+nf4", "int4", texts, tmp_path / "store")


def test_the_command_prints_and_writes_what_is_measured(small, texts, run, tmp_path):
    import json

    import pandas as pd

    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts.texts), encoding="utf-8")
    shared = (small, "--texts", file, "--store", tmp_path / "store", "--sample", 3, "--quantize", "nf4")
    record = json.loads(run("sensitivity", *shared, "--json", "--out", tmp_path / "parts.csv").stdout)
    (one,) = record["kinds"]
    assert record["n_texts"] == 3
    assert sum(part["kl"]["value"] for part in one["parts"]) == pytest.approx(one["total"]["value"])
    table = pd.read_csv(tmp_path / "parts.csv")
    assert table["kl"].tolist() == pytest.approx([part["kl"]["value"] for part in one["parts"]])
    shown = run("sensitivity", *shared, "--out", tmp_path / "parts.svg").stdout
    assert "together they cost" in shown
    assert "down_proj" in (tmp_path / "parts.svg").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_budget_is_spent_best(small, texts, run, tmp_path):
    """Against every assignment, enumerated; the check is that of a naive loop on texts that chose nothing."""
    import json
    from itertools import product

    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts.texts), encoding="utf-8")
    kinds = ["nf4", "int8"]
    shared = (small, "--texts", file, "--store", tmp_path / "store", "--sample", 4, "--quantize", ",".join(kinds))
    arguments = ("--by", "layer", "--budget", "6.5bpw", "--recipe", tmp_path / "mix.json")
    record = json.loads(run("sensitivity", *shared, *arguments, "--json").stdout)
    mix, parts = record["mix"], [one["parts"] for one in record["kinds"]]
    weights = [part["n_weights"] for part in parts[0]]
    best = np.inf
    for places in product(range(3), repeat=len(weights)):
        size = sum(16 * n if place == 2 else 8 * parts[place][p]["stored_bytes"]
                   for p, (place, n) in enumerate(zip(places, weights, strict=True)))  # fmt: skip
        cost = sum(0 if place == 2 else parts[place][p]["kl"]["value"] for p, place in enumerate(places))
        if size <= 6.5 * sum(weights):
            best = min(best, cost)
    assert mix["promised"]["value"] == pytest.approx(best)
    assert mix["bits"] <= 6.5
    assert mix["held_out"]
    chosen = np.sort(texts.random_order[4:8])
    changed = {name: (lambda weight, kind=kind: quantization._WAYS[kind](weight)[0])
               for name, kind in mix["kinds"].items() if kind}  # fmt: skip
    own, n_bytes = naive(small, texts, chosen, changed), texts.bytes[chosen]
    assert mix["got"]["value"] == pytest.approx(own.sum() / n_bytes.sum() / np.log(2), rel=1e-5)
    # The same budget without looking at costs: nf4, and int8 dealt in random order while there is room.
    names, dealt, bits = [part["part"] for part in parts[0]], np.zeros(4), []
    for seed in range(3):
        kind_of = dict.fromkeys(names, 0)
        for name in np.random.default_rng(seed).permutation(names):
            size = sum(8 * parts[{**kind_of, name: 1}[part]][p]["stored_bytes"] for p, part in enumerate(names))
            if size <= 6.5 * sum(weights):
                kind_of[name] = 1
        changed = {module: (lambda weight, kind=kinds[kind_of[name]]: quantization._WAYS[kind](weight)[0])
                   for p, name in enumerate(names) for module in parts[0][p]["modules"]}  # fmt: skip
        dealt += naive(small, texts, chosen, changed) / 3
        bits.append(sum(8 * parts[kind_of[part]][p]["stored_bytes"] for p, part in enumerate(names)) / sum(weights))
    assert mix["dealt"]["kind"] == "nf4, int8 at random"
    assert mix["dealt"]["bits"] == pytest.approx(np.mean(bits))
    assert mix["dealt"]["kl"]["value"] == pytest.approx(dealt.sum() / n_bytes.sum() / np.log(2), rel=1e-5)
    less, found = own - dealt, mix["dealt"]["difference"]
    assert found["value"] == pytest.approx(less.sum() / n_bytes.sum() / np.log(2), rel=1e-3)
    residual = less / np.log(2) - found["value"] * n_bytes  # of a ratio of sums, by the delta method
    error = np.sqrt((residual**2).sum()) / n_bytes.sum()
    assert found["standard_error"] == pytest.approx(error, rel=1e-3)
    recipe = json.loads((tmp_path / "mix.json").read_text(encoding="utf-8"))
    assert recipe["kinds"] == mix["kinds"]
    assert r"^blk\.1\.ffn_down\.weight$=" in " ".join(recipe["llama_cpp"])
    shown = run("sensitivity", *shared, *arguments).stdout
    assert "The mix" in shown
    assert "mixes of its size that look at no costs (mean of 3)" in " ".join(shown.split())
    refused = run("sensitivity", *shared, "--budget", "3bpw", status=2)
    assert "smallest of these kinds has" in refused.output
    assert "no number of bits" in run("sensitivity", *shared, "--budget", "small", status=2).output
