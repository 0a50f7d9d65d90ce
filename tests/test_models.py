"""References are parsed and printed without loss, and attributes are read off them."""

from __future__ import annotations

import shlex

import pytest

from klscale.errors import InputError
from klscale.inputs.attributes import attributes_of, parse_parameters, run_key, runs_of
from klscale.inputs.references import ModelRef


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("EleutherAI/pythia-410m@step1000", ModelRef("EleutherAI/pythia-410m", "step1000")),
        ("runs/a/checkpoint-500", ModelRef("runs/a/checkpoint-500")),
        ("gpt2+nf4", ModelRef("gpt2", quantization="nf4")),
        ("gpt2%bfloat16", ModelRef("gpt2", dtype="bfloat16")),
        ("o/m@refs%2Fpr%2F3+int8%float16", ModelRef("o/m", "refs/pr/3", "int8", "float16")),
        ("models/x:file.gguf", ModelRef("models/x", file="file.gguf")),
        ("gpt2#0", ModelRef("gpt2", layer=0)),
        ("o/m@r+int8-torchao%bfloat16#12", ModelRef("o/m", "r", "int8-torchao", "bfloat16", layer=12)),
        ("o/m%233", ModelRef("o/m#3")),
        ("./a%20b%2Bc%40d%25e%3Af", ModelRef("./a b+c@d%e:f")),
        ("./a b", ModelRef("./a b")),
        ("./caf%C3%A9", ModelRef("./café")),
        ("x%25bfloat16", ModelRef("x%bfloat16")),
    ],
)
def test_references_round_trip(text, ref):
    assert ModelRef.parse(text) == ref
    assert ModelRef.parse(str(ref)) == ref
    assert str(ModelRef.parse(str(ref))) == str(ref)
    assert shlex.split(str(ref)) == [str(ref)]


def test_every_character_survives():
    for code in [*range(1, 0x250), 0x65E5, 0x1F642]:
        ref = ModelRef(f"a{chr(code)}b", f"r{chr(code)}")
        assert ModelRef.parse(str(ref)) == ref
        assert shlex.split(str(ref)) == [str(ref)]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("gpt2+nf5", "Did you mean 'nf4'?"),
        ("gpt2%bfloat17", "Did you mean 'bfloat16'?"),
        ("gpt2%float8", "Did you mean 'float32'?"),
        ("@main", "NAME"),
        ("gpt2@", "NAME"),
        ("", "NAME"),
    ],
)
def test_what_is_wrong_is_named(text, hint):
    with pytest.raises(InputError) as caught:
        ModelRef.parse(text)
    assert hint in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        (
            "EleutherAI/pythia-1.4b@step2000",
            {"family": "pythia", "type": "pythia", "parameters": 1_400_000_000, "step": 2000, "warmup": 1430},
        ),
        (
            "EleutherAI/pythia-410m-seed3",
            {"family": "pythia", "type": "pythia", "parameters": 410_000_000, "seed": 3},
        ),
        ("RWKV/rwkv-4-1b5-pile", {"family": "rwkv-4-pile", "type": "rwkv-4", "parameters": 1_500_000_000}),
        (
            "EleutherAI/pythia-410m-deduped@step1000",
            {"family": "pythia-deduped", "type": "pythia", "parameters": 410_000_000, "step": 1000, "warmup": 1430},
        ),
        ("Qwen/Qwen2.5-7B-Instruct", {"family": "Qwen2.5-Instruct", "type": "qwen2.5", "parameters": 7_000_000_000}),
        ("microsoft/Phi-3-mini-128k-instruct", {}),
        ("runs/a/checkpoint-500", {"step": 500}),
        ("gpt2+nf4", {"quantization": "nf4"}),
    ],
)
def test_attributes_of_names(name, attributes):
    assert attributes_of(ModelRef.parse(name)) == attributes
    assert attributes_of(ModelRef.parse(name), {"seed": 9, "step": None})["seed"] == 9


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("state-spaces/mamba-130m-hf", "mamba"),
        ("RWKV/rwkv-4-169m-pile", "rwkv-4"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3"),
        ("meta-llama/Llama-2-7b-hf", "llama-2"),
        ("EleutherAI/gpt-neo-1.3B", "gpt-neo"),
        ("EleutherAI/gpt-j-6b", "gpt-j"),
        ("mistralai/Mistral-7B-v0.1", "mistral"),
        ("google/gemma-2-9b-it", "gemma-2"),
        ("Qwen/Qwen3-0.6B-Base", "qwen3"),
        ("7b", None),
        ("o/h2o-danube-1.8b", None),
        ("gpt2", None),
    ],
)
def test_types_of_names(name, kind):
    """Of the family and its generation; rather none than a wrong one. What a config says wins."""
    assert attributes_of(ModelRef.parse(name)).get("type") == kind
    assert attributes_of(ModelRef.parse(name), {"type": "gpt_neox"})["type"] == "gpt_neox"


def test_parameters_are_numbers():
    assert [parse_parameters(t) for t in ("410M", "6.9B", "130k", "125000", "many")] == [
        410_000_000, 6_900_000_000, 130_000, 125_000, None,
    ]  # fmt: skip


def test_slugs_are_file_names():
    assert ModelRef("runs/a").slug != ModelRef("runs-a").slug
    for name in ("../../x", "a b/c:d", "<img src=x>", "x" * 300, "."):
        slug = ModelRef(name).slug
        assert slug
        assert len(slug) <= 80
        assert not set(slug) & set('/\\<>:"|?* ')
        assert not slug.startswith(".")


LABORATORIES = {
    "allenai/OLMo-7B@step1000-tokens4B": {"step": 1000, "tokens": 4 * 10**9, "parameters": 7 * 10**9},
    "allenai/OLMo-2-1124-7B@stage1-step150-tokens1B": {"stage": 1, "step": 150, "tokens": 10**9},
    "allenai/OLMo-2-1124-7B@stage2-ingredient1-step1000-tokens5B": {
        "stage": 2, "ingredient": 1, "step": 1000, "tokens": 5 * 10**9,
    },
    "HuggingFaceTB/SmolLM3-3B-checkpoints@stage1-step-40000": {"stage": 1, "step": 40_000},
    "o/model@step-001000-2BT": {"step": 1000, "tokens": 2 * 10**9},
    "LLM360/Amber@ckpt_358": {"step": 358},
    "o/model@checkpoint-1000": {"step": 1000},
    "o/model@iter_0001000": {"step": 1000},
    "o/model@iter-100": {"step": 100},
    "o/model@epoch-3": {"step": 3},
    "runs/a/global_step500": {"step": 500},
    "TinyLlama/TinyLlama-1.1B-intermediate-step-50K-105b": {
        "step": 50_000, "tokens": 105 * 10**9, "parameters": 1_100_000_000, "family": "TinyLlama", "type": "tinyllama",
    },
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": {"step": 1_431_000, "tokens": 3 * 10**12},
    "google/multiberts-seed_0-step_20k": {"seed": 0, "step": 20_000, "family": "multiberts"},
    "allenai/OLMoE-1B-7B-0924": {"parameters": 7 * 10**9, "step": None},
    "allenai/OLMoE-1B-7B-0924@step5000-tokens20B": {"parameters": 7 * 10**9, "step": 5000},
    "Qwen/Qwen3-30B-A3B": {"parameters": 30 * 10**9},
    # Names of models, not of checkpoints.
    "stepfun-ai/Step-3.5-Flash": {"step": None},
    "stepfun-ai/step3": {"step": None},
    "o/Llama-3-8B-SPPO-Iter3": {"step": None},
    "o/zephyr-7b-sft-full-SPIN-iter3": {"step": None},
    "o/model@main": {"step": None},
    "o/stepwise-7b": {"step": None},
}  # fmt: skip


@pytest.mark.parametrize("name", LABORATORIES)
def test_checkpoint_names_of_laboratories(name):
    known = attributes_of(ModelRef.parse(name))
    assert {key: known.get(key) for key in LABORATORIES[name]} == LABORATORIES[name]


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("runs/a/checkpoint-500", "runs/a"),
        ("runs/a/global_step500/", "runs/a"),
        ("iter_0001000", "."),
        ("TinyLlama/TinyLlama-1.1B-intermediate-step-50K-105b", "TinyLlama/TinyLlama-1.1B"),
        ("google/multiberts-seed_0-step_20k", "google/multiberts-seed_0"),
        ("EleutherAI/pythia-410m", "EleutherAI/pythia-410m"),
    ],
)
def test_the_run_of_a_name(name, run):
    assert ModelRef(name).run == run


def test_a_final_model_joins_the_run_that_its_attributes_tell():
    """Whose checkpoints have other names; not at a step that the run has, and not where it has another seed."""
    refs = [*map(ModelRef, ("ck-1", "ck-2", "EleutherAI/pythia-160m", "EleutherAI/pythia-160m-seed1"))]
    known = {"family": "pythia", "parameters": 160e6, "seed": 0}
    rows = [{**known, "step": step} for step in (1000, 2000, 143000)] + [{**known, "seed": 1, "step": 143000}]
    assert runs_of(refs, rows) == ["pythia-160M"] * 3 + [refs[3].run]
    rows[2]["step"] = 2000
    assert runs_of(refs, rows) == ["pythia-160M"] * 2 + [refs[2].run, refs[3].run]
    rows[2] = {**known, "step": 143000}
    rows[3] = {**known, "step": 143000}  # two at one step: neither joins, and the checkpoints stay a run
    assert runs_of(refs, rows) == ["pythia-160M"] * 2 + [refs[2].run, refs[3].run]


def test_stages_are_runs_of_their_own():
    refs = [ModelRef("o/m", revision) for revision in ("stage1-step10", "stage1-step20", "stage2-step10")]
    first, second, other = (run_key(ref.run, attributes_of(ref)) for ref in refs)
    assert first == second != other
