"""Runs: distances between the weights of their checkpoints, as files come and go."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.torch import load_file

from klscale.inputs.references import ModelRef
from klscale.sources.transformers import files
from klscale.store.store import Store
from klscale.sweep import runs
from klscale.sweep import score as sweeps
from test_hub import Hub, Notes, cached, here, hub  # noqa: F401 - fixtures


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "klscale-store")


def squared_distance(one, other):
    """One tensor after the other, in float64."""
    a, b = (load_file(directory / "model.safetensors") for directory in (one, other))
    return sum(((a[name].double() - b[name].double()) ** 2).sum().item() for name in a)


def expected(directories, window=None):
    """(T, T); NaN where one is neither the first nor within the window of the other."""
    T = len(directories)
    found = np.full((T, T), np.nan)
    for i in range(T):
        for j in range(i + 1):
            if window is None or j in (0, i) or i - j <= window:
                found[i, j] = found[j, i] = squared_distance(directories[i], directories[j])
    return found


def identities(refs):
    return [files.resolve(ref).identity for ref in refs]


@pytest.mark.slow
def test_all_pairs_of_a_run_on_this_machine(make_model, store, tmp_path, monkeypatch):
    directories = [make_model(f"run/checkpoint-{step}", seed=step) for step in (2, 4, 16)]
    refs = runs.checkpoints(ModelRef(f"{tmp_path}/run"))
    assert runs.weigh(refs, store) == {}
    found, n_parameters = store.weight_distances(identities(refs))
    np.testing.assert_allclose(found, expected(directories), rtol=1e-12)
    assert n_parameters == sum(tensor.numel() for tensor in load_file(directories[0] / "model.safetensors").values())

    monkeypatch.setattr(runs, "squared_distances", None)
    assert runs.weigh(refs, store) == {}, "nothing is read again"


def test_a_run_that_grows_is_completed(make_model, store, tmp_path):
    directories = [make_model(f"run/checkpoint-{step}", seed=step) for step in (2, 4)]
    runs.weigh(runs.checkpoints(ModelRef(f"{tmp_path}/run")), store)
    directories.append(make_model("run/checkpoint-8", seed=8))
    refs = runs.checkpoints(ModelRef(f"{tmp_path}/run"))
    runs.weigh(refs, store)
    np.testing.assert_allclose(store.weight_distances(identities(refs))[0], expected(directories), rtol=1e-12)


def test_checkpoints_that_cannot_be_weighed_are_named_and_the_others_are(make_model, store, tmp_path, monkeypatch):
    directories = [make_model(f"run/checkpoint-{step}", seed=step) for step in (2, 4, 16)]
    make_model("run/checkpoint-5", vocab_size=301)
    (tmp_path / "run" / "checkpoint-6").mkdir()
    shutil.copytree(directories[0], tmp_path / "run" / "checkpoint-7")
    (tmp_path / "run" / "checkpoint-7" / "model.safetensors").write_bytes(b"no weights")
    refs = runs.checkpoints(ModelRef(f"{tmp_path}/run"))
    others = [ModelRef(f"{directories[0]}", quantization="int8"), ModelRef("org/model")]
    problems = runs.weigh([*refs, *others], store)
    bad = [ref for ref in refs if ref.name.endswith(("-5", "-6", "-7"))]
    assert sorted(map(str, problems)) == sorted(map(str, [*bad, *others]))
    assert "other shapes" in problems[bad[0]].what
    assert "holds no config.json" in problems[bad[1]].what
    assert "cannot be compared" in problems[others[0]].what
    kept = [ref for ref in refs if ref not in bad]
    np.testing.assert_allclose(store.weight_distances(identities(kept))[0], expected(directories), rtol=1e-12)
    monkeypatch.setattr(runs, "squared_distances", None)
    again = runs.weigh([*refs, *others], store)
    assert {str(ref): str(error) for ref, error in again.items()} == {
        str(ref): str(error) for ref, error in problems.items()
    }, "headers tell it, and the weights are not read again"


@pytest.fixture
def run(hub, make_model, monkeypatch):  # noqa: F811
    """A hub run of six checkpoints, of which each is compared with the first and the two before it."""
    monkeypatch.setattr(runs, "WINDOW", 2)
    directories = [make_model(f"m{n}", seed=n) for n in range(6)]
    hub.models["org/model"] = {f"step{10 * n}": directory for n, directory in enumerate(directories)}
    return directories


def refs():
    return [ModelRef("org/model", f"step{10 * n}") for n in range(6)]


@pytest.mark.slow
def test_a_hub_run_is_weighed_while_its_files_are_there(hub, here, run, store, tmp_path):  # noqa: F811
    """Each is fetched once, and what no later one is compared with is dropped."""
    hub.models["org/model"] |= {"main": run[-1]}
    held = []
    hub.watch = lambda: held.append(len(set(cached(tmp_path))))
    models = ["org/model@main", "org/model@step*%bfloat16", "org/model@step*"]
    outcomes = sweeps.score(models, here, store, keep_downloads=False, weigh=True)
    assert [outcome.status for outcome in outcomes] == ["present"] + ["scored"] * 12, "main is the last step"
    assert [str(outcome.ref) for outcome in outcomes][:2] == ["org/model@main", "org/model@step0%bfloat16"]
    np.testing.assert_allclose(store.weight_distances(identities(refs()))[0], expected(run, window=2), rtol=1e-12)
    weights = [revision for revision, file in hub.downloads if file == "model.safetensors"]
    assert weights == [f"step{10 * n}" for n in range(6)] + ["main"] * (len(weights) - 6)
    assert max(held) <= 4, "the first, the window, and the one that is scored"
    assert cached(tmp_path) == []


@pytest.mark.slow
def test_what_was_scored_before_is_fetched_to_be_weighed(hub, here, run, store, tmp_path):  # noqa: F811
    sweeps.score(["org/model@step*"], here, store, keep_downloads=False)
    hub.downloads.clear()
    outcomes = sweeps.score(["org/model@step*"], here, store, keep_downloads=False, weigh=True)
    assert [outcome.status for outcome in outcomes] == ["present"] * 6
    np.testing.assert_allclose(store.weight_distances(identities(refs()))[0], expected(run, window=2), rtol=1e-12)
    assert sorted(hub.downloads) == sorted((f"step{10 * n}", "model.safetensors") for n in range(6))
    hub.downloads.clear()
    sweeps.score(["org/model@step*"], here, store, keep_downloads=False, weigh=True)
    assert not hub.downloads, "nothing is read that is known"
    assert cached(tmp_path) == []


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_weighed_is_scored(hub, here, run, store, make_model, tmp_path):  # noqa: F811
    hub.models["org/model"]["step20"] = make_model("other", vocab_size=301)
    progress = Notes()
    outcomes = sweeps.score(["org/model@step*"], here, store, keep_downloads=False, weigh=True, progress=progress)
    assert [outcome.status for outcome in outcomes] == ["scored"] * 6
    (note,) = progress.notes
    assert "other shapes" in note
    assert "Their weights are not compared." in note
    kept = [0, 1, 3, 4, 5]
    found, _ = store.weight_distances(identities([refs()[n] for n in kept]))
    wanted = expected(run, window=2)[np.ix_(kept, kept)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
