"""`klscale trajectory`: from a directory of checkpoints, or the store, to tables, records and pictures."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from conftest import ROOT, write_texts
from klscale.cli import app
from test_hub import here, hub, klscale  # noqa: F401

STEPS = tuple(range(10, 140, 10))


@pytest.fixture
def make_run(tmp_path, make_model):
    """Checkpoints of a random walk of weights, as a training run saves them."""

    def make(name: str = "runs/a", seed: int = 0, steps: tuple[int, ...] = STEPS) -> Path:
        return walk(make_model(f"{name}-start", seed=seed), tmp_path / name, seed, steps)

    return make


def walk(start: Path, place: Path, seed: int, steps: tuple[int, ...]) -> Path:
    """Checkpoints in `place`, from the model in `start`."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(start / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for step in steps:
        directory = place / f"checkpoint-{step}"
        shutil.copytree(start, directory)
        for tensor in weights.values():
            tensor += 0.02 * torch.randn(tensor.shape, generator=generator)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return place


@pytest.fixture
def texts(tmp_path):
    write_texts(tmp_path / "texts.jsonl")
    return "texts.jsonl"


@pytest.fixture(scope="module")
def analysed_once(models_made, tmp_path_factory):
    """A directory with a run in `runs/a`, texts, and the store that `klscale trajectory runs/a` made of them; and what
    it said in JSON. Not to be changed."""
    place = tmp_path_factory.mktemp("analysed")
    walk(models_made("gpt-neox", 0, False, False, {}), place / "runs" / "a", 0, STEPS)
    write_texts(place / "texts.jsonl")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        patched.setenv("KLSCALE_CACHE", str(place / "cache"))
        patched.delenv("KLSCALE_STORE", raising=False)
        words = ["trajectory", "runs/a", "--texts", "texts.jsonl", "--threshold", "0.05", "--json"]
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return place, json.loads(result.stdout)


@pytest.fixture
def analysed(analysed_once, tmp_path):
    """A copy of it in the directory of this test; what it said."""
    place, found = analysed_once
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    return found


@pytest.mark.slow
def test_a_directory_is_scored_and_analysed(run, analysed):
    """Each number is that of `compare`; weights that of NumPy; what is there is not done again."""
    from safetensors.numpy import load_file

    found = analysed
    (one,) = found["runs"]
    assert one["run"] == "runs/a"
    assert one["steps"] == list(STEPS)
    assert (one["warmup"], one["warmup_known"]) == (20, False)
    rows = one["checkpoints"]
    for a, b, name in ((0, 4, "kl_from_first"), (3, 4, "kl_from_previous"), (12, 4, "kl_from_last")):
        (pair,) = json.loads(run("compare", rows[a]["model"], rows[b]["model"], "--json").stdout)
        assert rows[4][name]["kl"] == pytest.approx(pair["kl"], rel=1e-9)
        assert rows[4][name]["standard_error"] == pytest.approx(pair["standard_error"], rel=1e-9)
        first, second = (load_file(Path(rows[place]["model"]) / "model.safetensors") for place in (a, b))
        expected = sum(((first[key].astype(float) - second[key]) ** 2).sum() for key in first)
        assert rows[4][name.replace("kl", "weights")] == pytest.approx(expected, rel=1e-9)
    assert 0.5 < one["weights"]["exponent"]["c"]["value"] < 1.5
    assert one["log_likelihood"]["stabilisation"]["threshold"] == 0.05
    assert one["noise_floor"]["kl"] < 1e-6
    files = {path: path.stat().st_mtime_ns for path in Path("klscale-store").rglob("*.*")}
    again = json.loads(run("trajectory", "runs/a", "--threshold", 0.05, "--json").stdout)
    assert again == found
    assert {path: path.stat().st_mtime_ns for path in Path("klscale-store").rglob("*.*")} == files


@pytest.mark.slow
def test_the_store_alone_will_do(run, analysed):
    """Where the checkpoints are gone, vectors and weight distances are still there."""
    shutil.rmtree("runs")
    for command in (["trajectory", "--json"], ["trajectory", "runs/a", "--json"]):
        assert json.loads(run(*command, "--threshold", 0.05).stdout)["runs"] == analysed["runs"]


@pytest.mark.slow
def test_a_run_is_one_run_however_its_directory_is_written(run, make_run, texts):
    """What a suite says of it stands, and nothing is kept twice."""
    folder = make_run(steps=STEPS[:6])
    lines = [
        "models:",
        "  - name: ./runs/a/checkpoint-{step}",
        f"    step: {list(STEPS[:6])}",
        "    warmup: 30",
        "    seed: 7",
    ]
    Path("suite.yaml").write_text("\n".join(lines))
    run("score", "--suite", "suite.yaml", "--texts", texts)
    held = sorted(Path("klscale-store/vectors").rglob("*.parquet"))
    for name in ("./runs/a", "runs/a", "runs/../runs/a/", str(folder)):
        (one,) = json.loads(run("trajectory", name, "--json").stdout)["runs"]
        assert (one["run"], one["warmup"], one["warmup_known"]) == ("runs/a", 30, True)
    assert sorted(Path("klscale-store/vectors").rglob("*.parquet")) == held


@pytest.mark.slow
def test_tables_say_what_they_are(run, make_run, analysed):
    make_run("runs/b", seed=1)
    shown = run("trajectory", "runs/a", "runs/b", "--threshold", 0.05, "--all", "--out", "runs.csv").output
    for words in (
        "Diffusion exponents",
        "Is it a power law?",
        "Log-likelihood space against weight space",
        "Stabilisation",
        "two nulls",
    ):
        assert words in shown
    assert "runs/b: 13 checkpoints, steps 10 to 130" in shown
    short = run("trajectory", "runs/a", "--threshold", 0.05).stdout.splitlines()
    assert len(short) <= 25
    assert sum(line.startswith(" ") and line.split()[0].isdigit() for line in short) == 8, "checkpoints"
    for words in ("c_q = ", "c_w = ", "alpha = ", "Stabilisation", "--all"):
        assert any(words in line for line in short)
    table = pd.read_csv("runs.csv")
    assert len(table) == 26
    assert table.kl_from_previous.isna().sum() == 2
    run("trajectory", "--out", "runs.png")
    assert Path("runs.png").read_bytes()[:4] == b"\x89PNG"
    run("trajectory", "--out", "runs.txt", status=2)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_rest_is_analysed(run, make_run, texts):
    folder = make_run(steps=STEPS[:8])
    whole = (folder / "checkpoint-50" / "model.safetensors").read_bytes()
    (folder / "checkpoint-50" / "model.safetensors").write_bytes(whole[:-1000])
    (folder / "checkpoint-60" / "model.safetensors").unlink()
    result = run("trajectory", "runs/a", "--texts", texts, status=1)
    assert "checkpoint-50" in result.stderr
    assert "checkpoint-60 holds no weights" in result.stderr
    assert "6 checkpoints, steps 10 to 80" in result.stdout
    assert "No checkpoint at step 50, 60" in result.stdout


@pytest.mark.slow
def test_two_checkpoints_of_one_step(run, make_run, texts):
    folder = make_run(steps=STEPS[:6])
    shutil.copytree(folder / "checkpoint-30", folder / "step-30")
    shutil.copytree(folder / "checkpoint-50", folder / "step-40")
    result = run("trajectory", "runs/a", "--texts", texts)
    assert "the same step, 30: they are equal, the first is used" in result.stdout
    assert "the same step, 40: they differ, and none is used" in result.stdout
    assert "5 checkpoints" in result.stdout


@pytest.mark.slow
def test_a_changed_vocabulary_has_no_weight_distance(run, make_run, make_model, texts):
    folder = make_run(steps=STEPS[:8])
    shutil.rmtree(folder / "checkpoint-70")
    shutil.move(make_model("other", vocab_size=310), folder / "checkpoint-70")
    result = run("trajectory", "runs/a", "--texts", texts)
    assert "permutations of their units" in " ".join(result.stderr.split())
    assert "checkpoint-70" in result.stderr
    found = json.loads(run("trajectory", "runs/a", "--json").stdout)["runs"][0]["checkpoints"]
    assert found[6]["weights_from_first"] is None
    assert found[6]["kl_from_first"]["kl"] > 0
    assert found[7]["weights_from_first"] > 0


@pytest.mark.slow
def test_the_directional_exponent_of_a_smooth_map(run, make_run, texts):
    make_run(steps=(10, 20, 30))
    moved = json.loads(run("trajectory", "runs/a", "--texts", texts, "--directional", 20, "--json").stdout)[
        "directional"
    ]
    assert [one["towards"] for one in moved] == ["runs/a/checkpoint-30", None]
    assert all(one["local_slopes"][0]["value"] == pytest.approx(1, abs=0.05) for one in moved)
    make_run("runs/b", seed=1, steps=(10, 30))
    both = json.loads(run("trajectory", "runs/a", "runs/b", "--directional", 20, "--json").stdout)
    assert [one["model"] for one in both["directional"]] == ["runs/a/checkpoint-20"] * 2
    result = run("trajectory", "runs/a", "--directional", 25, status=2)
    assert "no checkpoint at step 25" in result.stderr


def test_imported_vectors_whose_names_carry_steps(run, tmp_path):
    """Log-likelihoods alone: no weights, an exponent all the same."""
    generator = np.random.default_rng(0)
    walk = -300 + 20 * generator.normal(size=200) + np.cumsum(generator.normal(size=(14, 200)), axis=0)
    frame = pd.DataFrame({f"org/model-70m@step{1000 * n}": row for n, row in enumerate(walk, 1)})
    frame.assign(bytes=100).to_csv("walk.csv", index=False)
    run("import", "walk.csv")
    found = json.loads(run("trajectory", "org/model-70m", "--json").stdout)["runs"]
    assert found[0]["weights"] is None
    assert found[0]["noise_floor"] is None
    assert found[0]["log_likelihood"]["exponent"]["c"]["value"] == pytest.approx(1, abs=0.2)
    assert "Weights were not compared" in run("trajectory").stdout
    assert "Did you mean 'org/model-70m'" in run("trajectory", "org/model-71m", status=2).stderr


def test_imported_vectors_whose_attributes_carry_steps(run, tmp_path):
    """Any names, by family, seed and step; the final model joins the revisions of its name. One step twice: no run."""
    generator = np.random.default_rng(0)
    names = [f"v{n}" for n in range(6)] + ["o/m-1b@step1", "o/m-1b@step2", "o/m-1b", "z1", "z2"]
    rows = -300 + generator.normal(size=(len(names), 50)).cumsum(axis=0)
    pd.DataFrame(dict(zip(names, rows, strict=True))).assign(bytes=100).to_csv("any.csv", index=False)
    lines = [f"v{n},own,{n % 2},{1 + n // 2},10M" for n in range(6)]
    lines += [f"o/m-1b{at},other,,{step}," for at, step in (("@step1", 1), ("@step2", 2), ("", 3))]
    lines += [f"z{n},alike,0,5,10M" for n in (1, 2)]
    (tmp_path / "more.csv").write_text("\n".join(["model,family,seed,step,parameters", *lines]))
    run("import", "any.csv", "--attributes", tmp_path / "more.csv")
    found = {one["run"]: one for one in json.loads(run("trajectory", "--json").stdout)["runs"]}
    checkpoints = {name: [row["model"] for row in one["checkpoints"]] for name, one in found.items()}
    assert checkpoints == {
        "own-10M (seed 0)": ["v0", "v2", "v4"],
        "own-10M (seed 1)": ["v1", "v3", "v5"],
        "o/m-1b": ["o/m-1b@step1", "o/m-1b@step2", "o/m-1b"],
    }
    alone = json.loads(run("trajectory", "own-10M", "--json").stdout)["runs"]
    assert [one["run"] for one in alone] == ["own-10M (seed 0)", "own-10M (seed 1)"]
    assert "Did you mean 'own-10M'" in run("trajectory", "own-11M", status=2).stderr
    clash = "z1 and z2 have one step, 5, and the same family, parameters and seed: these 2 models are no run."
    assert clash in run("trajectory").stderr


def test_advice_helps_the_run_that_is_there(run, tmp_path):
    """More tables and checkpoints where there are any, and an end of warm-up where an earlier one would do."""
    generator = np.random.default_rng(0)

    def shown(n, *options):
        rows = -300 + generator.normal(size=(n, 50)).cumsum(axis=0)
        names = [f"o/m@step{k}" for k in range(1, n + 1)]
        pd.DataFrame(dict(zip(names, rows, strict=True))).assign(bytes=100).to_csv(f"{n}.csv", index=False)
        run("import", f"{n}.csv", "--store", str(n))
        return run("trajectory", "--store", str(n), *options).stdout

    few = shown(5, "--warmup", "0")
    assert "Save more of them." in few
    assert "--warmup STEP" not in few.split("No exponent")[1]
    assert "--all" not in few
    assert "set where warm-up ends: --warmup STEP" in shown(6, "--warmup", "6").split("No exponent")[1]
    assert "Tables of exponents, laws, stabilisation and shape: --all" in shown(8, "--warmup", "0")
    assert "More checkpoints, and tables of exponents" in shown(9, "--warmup", "0")


def test_nothing_to_follow(run, make_model, texts):
    make_model("runs/only")
    assert "is empty" in run("trajectory", status=2).stderr
    run("score", "runs/only", "--texts", texts)
    assert "There is no run" in run("trajectory", status=2).stderr
    assert "holds no checkpoints" in run("trajectory", "runs/only", status=2).stderr


@pytest.mark.slow
def test_a_run_of_the_hub(hub, klscale, run, make_run, texts, tmp_path):  # noqa: F811
    """Fetched one by one, weighed in a window, and dropped: the exponents are those of the same run here."""
    folder = make_run()
    hub.models["org/model"] = {f"step{step}": folder / f"checkpoint-{step}" for step in STEPS}
    asked = klscale("trajectory", "org/model@step*", "--texts", texts, "--store", "hub", "--json")
    assert asked.exit_code == 0, asked.stderr
    (one,) = json.loads(asked.stdout)["runs"]
    (local,) = json.loads(run("trajectory", "runs/a", "--texts", texts, "--store", "here", "--json").stdout)["runs"]
    for space in ("log_likelihood", "weights"):
        c, expected = (each[space]["exponent"]["c"]["value"] for each in (one, local))
        assert c == pytest.approx(expected, rel=1e-9)
    moved = [[row[f"weights_from_{other}"] for row in one["checkpoints"]] for other in ("first", "previous", "last")]
    assert None not in [*moved[0][1:], *moved[1][1:]]
    assert moved[2][1] is None, "step 20 and step 130 were never on disk together"
    assert one["weights"]["stabilisation"] is None
    assert not list((tmp_path / "hf").rglob("*.safetensors"))
    again = klscale("trajectory", "org/model", "--store", "hub", "--json", silent=True)
    assert json.loads(again.stdout)["runs"] == [one]
    missing = klscale("trajectory", "org/other", "--store", "hub")
    assert "klscale trajectory 'org/other@step*'" in missing.stderr


@pytest.mark.slow
def test_what_the_documentation_shows_in_python(run, analysed, tmp_path, monkeypatch, capsys):
    document = (ROOT / "docs" / "trajectories.md").read_text()
    block, along_a_number = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    write_texts(tmp_path / "my-texts.jsonl")
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    _, plus_minus, _, step = capsys.readouterr().out.split()
    assert plus_minus == "±"
    assert int(step) in STEPS
    run("import", ROOT / "examples" / "pile-trained-14.csv", "--id", "text_id", "--store", "pile")
    monkeypatch.setenv("KLSCALE_STORE", "pile")
    exec(f"import klscale\n{along_a_number}", {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1].endswith(
        "pythia-2.8b, 0.836 ± 0.024 bits/byte, KL from the first 0.492 ± 0.045 bits/byte (by whole texts)"
    )
