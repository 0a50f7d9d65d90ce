"""Suite files: a few lines stand for many models; what is wrong is named with its line."""

from __future__ import annotations

import pytest

from klscale.errors import InputError
from klscale.models import ModelRef
from klscale.suites import read_suite

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
        ("models:\n  - name: a\n    famly: x\n", r"line 2: unknown key 'famly'.\nDid you mean 'family'"),
        ("modles: []\n", "lists no models"),
        ("models:\n  - name: [\n", "line 3: not YAML"),
        ("models:\n  - family: x\n", "line 2: a model without a name"),
        ("models:\n  - name: a\n  - name: a-{seed}\n", "line 3: nothing fills {seed}"),
        ("models:\n  - name: a\n    seed: [1, 2]\n", "line 2: 'seed' has several values"),
        ("models:\n  - name: a\n    quantize: [int5]\n", r"line 2: 'a\+int5': unknown quantization"),
        ("models:\n  - name: a\n    parameters: many\n", "line 2: parameters 'many' is not a number"),
        ("models:\n  - name: a\n    name: b\n", "a key stands twice"),
        ("models:\n  - name: a\n    revisions: step1\n", "needs a 'pattern'"),
        ("models:\n  - !!python/object/apply:os.system [ls]\n", "not YAML"),
        ("models:\n  - just-a-name\n", "model 1: 'just-a-name' is not a model"),
        ("models:\n  - name: 'a{'\n", "line 2: a brace too many or too few"),
        ("models:\n  - name: 'a{}'\n", "line 2: nothing fills {}"),
        ("models:\n  - name: a{step}\n    step: 1..5/0\n", "line 2: 'step' has the empty range"),
        ("models:\n  - name: a{step}\n    step: 5..1\n", "line 2: 'step' has the empty range"),
        ("models:\n  - name: a\n    parameters: 1.2.3M\n", "line 2: parameters '1.2.3M' is not a number"),
        ("models:\n  - name: a\n    quantize: 8\n", "line 2: 'a[+]8': unknown quantization"),
        ("texts: 5\nmodels:\n  - name: a\n", "texts cannot be 5"),
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
