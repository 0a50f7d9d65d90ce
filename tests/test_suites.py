"""Suite files: a few lines stand for many models; what is wrong is named with its line."""

from __future__ import annotations

import re

import pytest

from conftest import ROOT
from klscale.errors import InputError
from klscale.inputs.references import WEIGHTS_ONLY, ModelRef
from klscale.inputs.suites import read_suite, with_quantized

PYTHIA = """
texts: pile-10k
models:
  - name: EleutherAI/pythia-410m
    revisions: {pattern: "step{step}", step: [0, 1, 512, "1000..4000/1500"]}
    family: pythia
    parameters: 410M
  - name: EleutherAI/pythia-410m-seed{seed}
    seed: [1, 2, 5]
  - name: EleutherAI/pythia-410m
    quantize: [int8, nf4]
    dtype: bfloat16
  - name: ./tuned
    parent: ./base
"""


def test_models_are_expanded(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(PYTHIA)
    suite = read_suite(path)
    assert suite.texts == "pile-10k"
    names = [str(model.ref) for model in suite.models]
    assert names[:6] == [f"EleutherAI/pythia-410m@step{n}" for n in (0, 1, 512, 1000, 2500, 4000)]
    assert suite.models[3].attributes == {"family": "pythia", "parameters": 410_000_000, "step": 1000}
    assert names[6:9] == [f"EleutherAI/pythia-410m-seed{n}" for n in (1, 2, 5)]
    assert names[9:12] == [f"EleutherAI/pythia-410m{q}%bfloat16" for q in ("", "+int8", "+nf4")]
    assert names[12] == str(tmp_path / "tuned")
    assert suite.models[12].attributes == {"parent": str(tmp_path / "base")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models:\n  - name: a\n    famly: x\n", r"line 3: unknown key 'famly'.\nDid you mean 'family'"),
        ("modles: []\n", r"line 1: unknown key 'modles'.\nDid you mean 'models'"),
        ("models: []\n", "lists no models"),
        ("- models\n", "lists no models"),
        ("models:\n  - name: [\n", "line 3: not YAML"),
        ("models:\n  - family: x\n", "line 2: a model without a name"),
        ("models:\n  - name: a-{seed}\n", "line 2: nothing fills {seed}"),
        ("models:\n  - name: a\n    seed: [1, 2]\n", "line 2: 'seed' has several values"),
        ("models:\n  - name: a\n    quantize: [int5]\n", r"line 2: 'a\+int5': unknown quantization"),
        ("models:\n  - name: a\n    parameters: many\n", "line 2: parameters 'many' is no whole number"),
        ("models:\n  - name: a\n    name: b\n", "a key stands twice"),
        ("models:\n  - name: a\n    revisions: step1\n", "needs a 'pattern'"),
        ("models:\n  - !!python/object/apply:os.system [ls]\n", "not YAML"),
        ("models:\n  - just-a-name\n", "line 2: 'just-a-name' is not a model"),
        ("models:\n  - name: 'a{'\n", "line 2: a brace too many or too few"),
        ("models:\n  - name: 'a{}'\n", "line 2: nothing fills {}"),
        ("models:\n  - name: a{step}\n    step: 1..5/0\n", "line 2: 'step' has the empty range"),
        ("models:\n  - name: a{step}\n    step: 5..1\n", "line 2: 'step' has the empty range"),
        ("models:\n  - name: a\n    parameters: 1.2.3M\n", "line 2: parameters '1.2.3M' is no whole number"),
        ("models:\n  - name: a\n    quantize: 8\n", "line 2: 'a[+]8': unknown quantization"),
        ("models:\n  - name: a\n    layers: every\n", "line 2: 'layers' cannot be 'every'"),
        ("models:\n  - name: a\n    warmup: soon\n", "line 2: warmup 'soon' is no whole number"),
        ("models:\n  - name: a\n    warmup: -1\n", "line 2: warmup -1 is no whole number"),
        ("models:\n  - name: a\n    seed: yes\n", "line 2: 'seed' cannot be True"),
        ("models:\n  - name: a\n    quantization: awq\n    quantize: nf4\n", "line 2: .* exclude each other"),
        ('models:\n  - name: a\n    revisions:\n      patern: "{step}"\n      pattern: x\n', "line 4: unknown key"),
        ("models:\n  - name: a\ntexts: 5\n", "line 3: texts cannot be 5"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_suite(path)


def test_paths_with_the_characters_of_references(tmp_path):
    directory = tmp_path / "w@1+x%41"
    directory.mkdir()
    text = "models:\n  - {name: ./m, quantize: int8, revision: 1000, parent: ./base}\n"
    (directory / "suite.yaml").write_text(text)
    plain, quantized = read_suite(directory / "suite.yaml").models
    assert (plain.ref.name, plain.ref.revision) == (str(directory / "m"), "1000")
    assert quantized.ref.quantization == "int8"
    for model in (plain, quantized):
        assert ModelRef.parse(model.attributes["parent"]).name == str(directory / "base")


def test_a_suite_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_suite(tmp_path / "none.yaml")


def written(tmp_path, text):
    (tmp_path / "suite.yaml").write_text(text)
    return tmp_path / "suite.yaml"


def test_a_bad_entry_does_not_stop_the_others(tmp_path):
    path = written(
        tmp_path,
        "models:\n  - name: a\n  - name: b\n    famly: x\n  - c\n  - name: d@{step}\n    step: 9..1\n  - name: e\n",
    )
    suite = read_suite(path)
    assert [str(model.ref) for model in suite.models] == ["a", "e"]
    assert [model.line for model in suite.models] == [f"{path}, line {n}" for n in (2, 8)]
    assert [str(problem).splitlines()[0] for problem in suite.problems] == [
        f"{path}, line 4: unknown key 'famly'.",
        f"{path}, line 5: 'c' is not a model.",
        f"{path}, line 6: 'step' has the empty range '9..1'.",
    ]


def test_what_stands_twice_is_named_with_both_lines(tmp_path):
    path = written(
        tmp_path,
        "models:\n  - name: a\n    revisions: {pattern: 's{step}', step: 1..3}\n"
        "  - name: a\n    revisions: {pattern: 's{step}', step: 2..5}\n",
    )
    suite = read_suite(path)
    assert [str(model.ref) for model in suite.models] == [f"a@s{n}" for n in range(1, 6)]
    (problem,) = suite.problems
    assert problem.what == f"{path}, line 4: a@s2 (and 1 more) stands here again."
    assert problem.why == f"It is in {path}, line 2 too."


@pytest.mark.parametrize("order", [1, -1])
def test_the_base_of_variants_may_be_listed_in_its_own_right(order, tmp_path):
    entries = ["  - name: a\n    family: f\n", "  - name: a\n    quantize: [int8]\n", "  - {name: a, quantize: nf4}\n"]
    suite = read_suite(written(tmp_path, "models:\n" + "".join(entries[::order])))
    assert not suite.problems
    assert {str(model.ref): dict(model.attributes) for model in suite.models} == {
        "a": {"family": "f"}, "a+int8": {}, "a+nf4": {},
    }  # fmt: skip


def test_layers_are_those_of_the_unquantized_model(tmp_path):
    text = "models:\n  - {name: a, layers: true, quantize: nf4}\n  - {name: b, layers: false}\n  - {name: c}\n"
    suite = read_suite(written(tmp_path, text))
    assert {str(m.ref): m.layers for m in suite.models} == {"a": True, "a+nf4": False, "b": False, "c": False}


def test_attributes_set_by_hand(tmp_path):
    text = "models:\n  - {name: 'a-{quantization}', quantization: [AWQ, GPTQ], warmup: 1430}\n"
    suite = read_suite(written(tmp_path, text))
    assert [(str(m.ref), dict(m.attributes)) for m in suite.models] == [
        (f"a-{kind}", {"quantization": kind, "warmup": 1430}) for kind in ("AWQ", "GPTQ")
    ]


def test_variants_are_added_to_what_is_not_quantized(tmp_path):
    text = "models:\n  - {name: a, layers: true, quantize: nf4}\n  - {name: b, quantization: AWQ}\n"
    text += "  - name: c\n  - name: d:d.gguf\n"
    models = with_quantized(read_suite(written(tmp_path, text)).models, ["int8", "nf4", "int8"])
    assert [str(m.ref) for m in models] == ["a", "a+int8", "a+nf4", "b", "c", "c+int8", "c+nf4", "d:d.gguf"]
    assert [str(m.ref) for m in models if m.layers] == ["a"]
    assert models[1].line == models[0].line
    with pytest.raises(InputError, match=r"Unknown quantization 'int9'.\nDid you mean 'int8'"):
        with_quantized([], ["int9"])


# ------------------------------------------------------------------------------------------------------------ recipes


RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_hold_what_their_heads_promise(path):
    suite = read_suite(path)
    assert not suite.problems
    assert suite.texts == "pile-10k"
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", model.ref.name) for model in suite.models)
    head = path.read_text().split("\ntexts:")[0]
    (promised,) = re.findall(r"^# ([\d,]+) vectors[;,]", head, re.MULTILINE)
    (download,) = re.findall(r"about ([\d.]+ [GT]B) to download", head)
    assert f"klscale score --suite recipes/{path.name}" in head
    assert int(promised.replace(",", "")) == len(suite.models)
    (row,) = re.findall(rf"\({path.name}\) \|.*\| ([\d,]+) \| (.*) \|", (path.parent / "README.md").read_text())
    assert row == (promised, download)


def recipe(name):
    return read_suite(ROOT / "recipes" / f"{name}.yaml").models


def test_the_published_trajectory_study():
    models = recipe("pythia-study")
    assert len(models) == 5 * 154 - 1 + 7 * 154
    steps = [0, *(2**n for n in range(10)), *range(1000, 144000, 1000)]
    runs: dict[str, list[int]] = {}
    for model in models:
        assert model.attributes["warmup"] == 1430
        assert model.ref.revision == f"step{model.attributes['step']}"
        runs.setdefault(model.ref.name, []).append(model.attributes["step"])
    assert runs.pop("EleutherAI/pythia-1b") == [step for step in steps if step != 116000]
    assert all(run == steps for run in runs.values())
    seeds = [model.attributes["seed"] for model in models if "seed" in model.attributes]
    assert sorted(set(seeds)) == [1, 2, 5, 6, 7, 8, 9]


def test_the_published_models_are_the_same_in_both_settings():
    quantized, layers = recipe("published-quantization"), recipe("published-layers")
    bases = [model.ref for model in quantized if model.ref.quantization is None]
    assert bases == [model.ref for model in layers]
    assert len(bases) == 50
    assert all(model.layers for model in layers)
    assert [model.ref.quantization for model in quantized] == [None, "int8", "fp4"] * 50


def test_every_fine_tune_has_its_parent_beside_it():
    models = {str(model.ref): model.attributes.get("parent") for model in recipe("fine-tunes")}
    assert set(models.values()) - {None} <= set(models)
    assert list(models.values()).count(None) == 2


def test_the_ladder_has_every_kind_of_weights_alone():
    assert [model.ref.quantization for model in recipe("quantization-ladder")] == [None, *WEIGHTS_ONLY]


def test_patterns_that_cannot_be_filled_are_named(tmp_path):
    path = tmp_path / "suite.yaml"
    for pattern in ("step{step:06d}", "step{step!x}", "step{step.real}"):
        lines = [
            "models:",
            "  - name: good",
            "  - name: m",
            f'    revisions: {{pattern: "{pattern}", step: ["a", "b"]}}',
        ]
        path.write_text("\n".join(lines) + "\n")
        suite = read_suite(path)
        assert [str(model.ref) for model in suite.models] == ["good"]
        assert "line 3" in str(suite.problems[0])


def test_entries_may_be_merged_from_others(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text("models:\n  - &a\n    name: one\n    family: f\n  - <<: *a\n    name: two\n")
    suite = read_suite(path)
    assert not suite.problems
    assert [(str(model.ref), model.attributes["family"]) for model in suite.models] == [("one", "f"), ("two", "f")]


HOSTILE = {
    "deep.yaml": "line 1: 21 levels of nesting",
    "deep_map.yaml": "line 1: 21 levels of nesting",
    "huge_int.yaml": "line 3: ",
    "merge_bomb.yaml": "merged keys",
    "pad.yaml": "line 2: {...:>9999999999} is no format",
    "product.yaml": "line 2: 1,000,000,000 models",
    "range_1e6.yaml": "line 2: 'seed': 1,000,001 models",
    "range_huge.yaml": "line 2: 'seed': 100,000,000,000 models",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_ask_for_too_much_are_refused_at_once(shared, name):
    with pytest.raises(InputError) as caught:
        read_suite(shared / "cases" / "suites" / name)
    assert name in caught.value.what
    assert HOSTILE[name] in str(caught.value)


def test_a_limit_is_raised_by_its_variable(tmp_path, monkeypatch):
    path = tmp_path / "suite.yaml"
    path.write_text('models:\n - name: "x{seed}"\n   seed: "1..30"\n')
    monkeypatch.setenv("KLSCALE_LIMIT_SUITE_MODELS", "29")
    with pytest.raises(InputError, match="KLSCALE_LIMIT_SUITE_MODELS=NUMBER"):
        read_suite(path)
    monkeypatch.setenv("KLSCALE_LIMIT_SUITE_MODELS", "30")
    assert len(read_suite(path).models) == 30
    monkeypatch.setenv("KLSCALE_LIMIT_SUITE_MODELS", "many")
    with pytest.raises(InputError, match="is not a whole number"):
        read_suite(path)


def test_a_width_in_a_pattern_is_kept(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text('models:\n - name: o/m\n   revisions: {pattern: "step{step:06}", step: [10, 200]}\n')
    assert [model.ref.revision for model in read_suite(path).models] == ["step000010", "step000200"]


def test_free_attributes_of_a_suite(tmp_path):
    """Kept as they are, in names too; a near miss of a known key stays an error."""
    (tmp_path / "s.yaml").write_text(
        "models:\n  - name: a-{lr}\n    lr: [0.001, 0.0003]\n    data: web\n  - name: b\n    layer: true\n"
    )
    suite = read_suite(tmp_path / "s.yaml")
    assert [(str(model.ref), dict(model.attributes)) for model in suite.models] == [
        ("a-0.001", {"lr": 0.001, "data": "web"}),
        ("a-0.0003", {"lr": 0.0003, "data": "web"}),
    ]
    assert [problem.what for problem in suite.problems] == [f"{tmp_path / 's.yaml'}, line 6: unknown key 'layer'."]
