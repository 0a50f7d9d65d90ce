"""Sweeps: only what is missing is scored, what was interrupted resumes, what fails does not stop the rest."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest

from conftest import PATIENCE_S, Interrupt, plain_log_likelihoods
from klscale.errors import InputError, StorageError
from klscale.inputs.references import Model, ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import Progress
from klscale.sources.mock import Mock
from klscale.sources.source import Sources
from klscale.sources.transformers.source import TransformersReader
from klscale.store.store import Store
from klscale.sweep import score as sweeps
from klscale.sweep.jobs import OneAhead
from klscale.sweep.runs import checkpoints
from mocks import count_scored, plain_mock


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def forwards(monkeypatch):
    """The texts that are really scored by mocks."""
    return count_scored(monkeypatch)


def statuses(outcomes):
    return [outcome.status for outcome in outcomes]


def test_a_sweep_scores_what_is_missing(texts, store, forwards):
    models = [f"mock://{n}" for n in range(3)]
    assert statuses(sweeps.score(models[:2], texts, store)) == ["scored"] * 2
    assert len(forwards) == 80
    assert statuses(sweeps.score(models, texts, store)) == ["present", "present", "scored"]
    assert len(forwards) == 120
    vectors = store.vectors(texts)
    for ref, row in zip(models, vectors.log_likelihood, strict=True):
        np.testing.assert_allclose(row, plain_mock(ref, texts), rtol=1e-12)
    assert vectors.attributes["type"].tolist() == ["mock"] * 3
    assert statuses(sweeps.score(models[:1], texts, store, rescore=True)) == ["scored"]
    assert len(forwards) == 160


def test_models_of_transformers_are_scored_as_they_are(make_model, texts, store, monkeypatch):
    directory, forwards = str(make_model()), count_scored(monkeypatch, TransformersReader)
    for status in ("scored", "present"):
        assert statuses(sweeps.score([directory], texts, store)) == [status]
    assert sorted(forwards) == list(range(40))
    vectors = store.vectors(texts)
    np.testing.assert_allclose(vectors.log_likelihood[0], plain_log_likelihoods(directory, texts), atol=1e-3)
    assert vectors.attributes["type"].tolist() == ["gpt_neox"]


def test_dtypes_are_other_vectors(make_model, texts, store):
    directory = str(make_model())
    refs = [directory, directory + "%bfloat16", directory]
    assert statuses(sweeps.score(refs[:2], texts, store)) == ["scored", "scored"]
    vectors = store.vectors(texts)
    assert vectors.attributes["dtype"].tolist() == ["float32", "bfloat16"]
    assert 0 < vectors.kl()[0, 1].value < 0.05
    assert statuses(sweeps.score(refs, texts, store)) == ["present"] * 3


def test_an_overwritten_directory_is_scored_again(make_model, texts, store):
    directory = make_model("m", seed=0)
    sweeps.score([str(directory)], texts, store)
    shutil.copy(make_model("other", seed=1) / "model.safetensors", directory)
    assert statuses(sweeps.score([str(directory)], texts, store)) == ["scored"]
    np.testing.assert_allclose(
        store.vectors(texts).log_likelihood[0], plain_log_likelihoods(directory, texts), atol=1e-3
    )


def test_a_model_that_broke_does_not_pass_for_what_it_was(make_model, texts, store):
    directory = make_model("m")
    sweeps.score([str(directory)], texts, store)
    (directory / "model.safetensors").unlink()
    (outcome,) = sweeps.score([str(directory)], texts, store)
    assert "holds no weights" in str(outcome.error)


def test_attributes_of_a_suite_reach_models_that_are_there(texts, store, forwards):
    ref = "mock://1"
    sweeps.score([ref], texts, store)
    before = store.vectors(texts)
    for _ in range(2):
        sweeps.score([Model(ModelRef(ref), {"family": "f", "seed": 3})], texts, store)
    after = store.vectors(texts)
    assert (after.names, len(store.entries(texts.id)), len(forwards)) == (before.names, 1, 40)
    assert after.attributes[["family", "seed", "type"]].to_numpy().tolist() == [["f", 3, "mock"]]


def test_names_that_look_alike_as_files_stay_apart(make_model, texts, store, tmp_path, monkeypatch):
    make_model("runs/a")
    shutil.copytree(tmp_path / "runs" / "a", tmp_path / "runs-a")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        sweeps.score(["runs/a", "runs-a"], texts, store)
    assert store.vectors(texts).names == ("runs/a", "runs-a")


def test_the_same_files_under_another_name_are_not_scored_again(make_model, texts, store, monkeypatch):
    directory, forwards = make_model("m"), count_scored(monkeypatch, TransformersReader)
    shutil.copytree(directory, directory.parent / "copy-seed7")
    sweeps.score([str(directory)], texts, store)
    (outcome,) = sweeps.score([Model(ModelRef(str(directory.parent / "copy-seed7")), {"family": "f"})], texts, store)
    assert (outcome.status, len(forwards)) == ("present", 40)
    vectors = store.vectors(texts)
    assert vectors.attributes["family"].tolist() == [None, "f"]
    assert vectors.attributes["type"].tolist() == ["gpt_neox", "gpt_neox"]
    assert vectors.kl()[0, 1].value == 0


def test_a_vector_outlives_its_model(make_model, texts, store):
    directory = make_model("m")
    sweeps.score([str(directory)], texts, store)
    shutil.rmtree(directory)
    assert statuses(sweeps.score([str(directory)], texts, store)) == ["present"]
    assert statuses(sweeps.score([str(directory)], texts, store, rescore=True)) == ["failed"]


def test_a_directory_of_checkpoints_stands_for_each_in_order(make_model, texts, store, tmp_path):
    for n, name in enumerate(("checkpoint-20", "checkpoint-100", "step_3", "checkpoint_20", "best", "checkpoint-x")):
        make_model(f"runs/a/{name}", seed=n)
    (tmp_path / "runs/a/checkpoint-50").mkdir()
    (tmp_path / "runs/a/checkpoint-60").write_text("a file")
    (tmp_path / "runs/a/step_3/model.safetensors").unlink()
    outcomes = sweeps.score([f"{tmp_path}/runs/a/%bfloat16"], texts, store)
    listed = ["step_3", "checkpoint-20", "checkpoint_20", "checkpoint-50", "checkpoint-100"]
    assert [str(outcome.ref) for outcome in outcomes] == [f"{tmp_path}/runs/a/{name}%bfloat16" for name in listed]
    assert statuses(outcomes) == ["failed", "scored", "scored", "failed", "scored"]
    assert "holds no weights" in str(outcomes[0].error)
    assert "checkpoint-50 holds no config.json" in str(outcomes[3].error)
    assert store.vectors(texts).attributes["step"].tolist() == [20, 20, 100]


def test_a_model_with_checkpoints_is_scored_itself(make_model, texts, store, tmp_path):
    make_model("run")
    for step in (9, 10):
        make_model(f"run/checkpoint-{step}", seed=step)
    run = ModelRef(f"{tmp_path}/run")
    assert [outcome.ref for outcome in sweeps.score([run], texts, store, dry_run=True)] == [run]
    assert [ref.name for ref in checkpoints(run)] == [f"{run}/checkpoint-9", f"{run}/checkpoint-10"]


def test_a_pattern_of_directories(make_model, texts, store, tmp_path, monkeypatch):
    for step in (9, 10):
        make_model(f"run/checkpoint-{step}", seed=step)
    monkeypatch.chdir(tmp_path)
    refs = ["run/checkpoint-*", "./run/checkpoint-1?", "run/step-*", "run/*+int8", "none/checkpoint-*"]
    outcomes = sweeps.score(refs, texts, store, dry_run=True)
    assert [str(outcome.ref) for outcome in outcomes if outcome.error is None] == [
        "run/checkpoint-9", "run/checkpoint-10", "./run/checkpoint-10", "run/checkpoint-9+int8",
        "run/checkpoint-10+int8",
    ]  # fmt: skip
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    assert [error.what for error in errors] == [
        "No directory matches 'run/step-*'.", "No directory matches 'none/checkpoint-*'.",
    ]  # fmt: skip
    assert errors[0].why == "There are: checkpoint-9, checkpoint-10."


def test_a_directory_without_checkpoints_is_no_run(make_model, tmp_path):
    make_model("run/final")
    with pytest.raises(InputError, match="run holds no checkpoints") as caught:
        checkpoints(ModelRef(f"{tmp_path}/run"))
    assert caught.value.why == "There are: final."
    with pytest.raises(InputError, match="Did you mean one of its directories: final"):
        raise sweeps.score([f"{tmp_path}/run"], TextSet.from_texts("t", ["a"]), Store(tmp_path / "s"))[0].error


def test_an_interrupted_model_resumes(texts, store, forwards):
    ref = "mock://1"
    half = float(texts.bytes.sum()) / 2e6
    with pytest.raises(KeyboardInterrupt):
        sweeps.score([ref], texts, store, batch_tokens=300, progress=Interrupt(half))
    assert store.entries(texts.id) == []
    done = len(store.read_partial(texts.id, next(iter(_partial_keys(store, texts)))))
    assert 0 < done < 40
    forwards.clear()
    assert statuses(sweeps.score([ref], texts, store)) == ["scored"]
    assert len(forwards) == 40 - done
    np.testing.assert_allclose(store.vectors(texts).log_likelihood[0], plain_mock(ref, texts), rtol=1e-12)
    assert _partial_keys(store, texts) == []


def _partial_keys(store, texts):
    return [path.rsplit("/", 1)[-1] for path in store.files.list("partial", texts.id)]


def test_one_model_that_fails_does_not_stop_the_others(make_model, texts, store, tmp_path):
    good, bad = make_model("good"), make_model("bad", seed=1)
    (bad / "model.safetensors").write_bytes(b"\x00" * 100)
    outcomes = sweeps.score([str(tmp_path / "none"), str(bad), str(good), "no-such-dir:x"], texts, store)
    assert statuses(outcomes) == ["failed", "failed", "scored", "failed"]
    assert all(0 < len(str(outcome.error).splitlines()) <= 3 for outcome in outcomes if outcome.error)


def test_long_texts_skipped_are_asked_for_again(make_model, store):
    directory = str(make_model(max_position_embeddings=32))
    texts = TextSet.from_texts("mixed", ["a" * 30, "b" * 31, "c" * 40])
    (outcome,) = sweeps.score([directory], texts, store, long_texts="skip")
    assert outcome.entry.metadata["skipped"] == [2]
    assert statuses(sweeps.score([directory], texts, store, long_texts="skip")) == ["present"]
    (outcome,) = sweeps.score([directory], texts, store)
    assert "1 texts are longer than the window" in str(outcome.error)
    assert statuses(sweeps.score([directory], texts, store, long_texts="window")) == ["scored"]
    assert not store.entries(texts.id)[-1].metadata["skipped"]
    with pytest.raises(InputError, match="Did you mean 'window'"):
        sweeps.score([directory], texts, store, long_texts="windows")


def test_conventions_are_never_mixed(store):
    one, other = "mock://1", "mock://2?window=32"
    texts = TextSet.from_texts("t", ["a" * 30, "b" * 31, "c" * 40])
    sweeps.score([one], texts, store, long_texts="window")
    assert statuses(sweeps.score([one], texts, store)) == ["present"], "nothing was cut into windows"
    sweeps.score([other], texts, store, long_texts="window")
    assert statuses(sweeps.score([other], texts, store, long_texts="window")) == ["present"]
    with pytest.raises(InputError, match="different conventions"):
        store.vectors(texts).kl()


def test_a_dry_run_does_nothing(make_model, texts, store, tmp_path):
    outcomes = sweeps.score([str(make_model()), "mock://1"], texts, store, dry_run=True, rescore=True)
    assert [(outcome.status, outcome.download_bytes) for outcome in outcomes] == [("missing", 0)] * 2
    assert not (tmp_path / "store").exists()


def test_nothing_can_be_scored_on_imported_texts(make_model, store):
    external = TextSet(name="imported", bytes=np.array([10, 20]), id="abc")
    (outcome,) = sweeps.score([str(make_model())], external, store)
    assert "has no texts to score it on" in str(outcome.error)


def test_what_was_resolved_is_recorded(make_model, texts, store):
    (outcome,) = sweeps.score([str(make_model())], texts, store)
    metadata = outcome.entry.metadata
    for key in (
        "ref",
        "key",
        "identity",
        "convention",
        "dtype",
        "device",
        "batch_tokens",
        "versions",
        "date",
        "checksum",
    ):
        assert metadata[key], key
    assert metadata["head"] == "tiles"


@pytest.fixture
def opened(monkeypatch):
    """The mocks that were opened, in order; one that is read ahead, not before somebody waits for it. And a function
    that says: a sweep that waits for its thread from now on is leaving."""
    read, whole, wait, waited = [], Mock.open, OneAhead._wait, threading.Event()

    def opens(self, pinned, options, *, alone=None):
        if alone is not None:
            assert waited.wait(PATIENCE_S)
        read.append(str(pinned))
        return whole(self, pinned, options, alone=alone)

    def waits(self):
        waited.set()
        wait(self)

    monkeypatch.setattr(Mock, "open", opens)
    return read, lambda: monkeypatch.setattr(OneAhead, "_wait", waits)


def test_no_thread_outlives_a_sweep(texts, store, opened, monkeypatch):
    """A model read ahead that another process scores meanwhile: the thread that reads it is waited for."""
    models, (read, leaving) = ["mock://1", "mock://2"], opened
    take, others = sweeps._Sweep._take, [models[1]]

    def taken_by_another(self, queue):
        if len(queue) == 1 and others:
            sweeps.score([others.pop()], texts, Store(store.location))
            leaving()
        return take(self, queue)

    monkeypatch.setattr(sweeps._Sweep, "_take", taken_by_another)
    assert statuses(sweeps.score(models, texts, store)) == ["scored", "present"]
    assert read.count(models[1]) == 2, "read ahead in vain, and by the other"


def test_a_store_that_fails_between_two_models_leaves_no_thread_behind(texts, store, opened, monkeypatch):
    models, claim, (read, leaving) = ["mock://1", "mock://2"], Store.claim, opened

    def full(self, text_set, key):
        if self.entries(text_set):
            leaving()
            raise StorageError("The claim could not be written.")
        return claim(self, text_set, key)

    monkeypatch.setattr(Store, "claim", full)
    with pytest.raises(StorageError):
        sweeps.score(models, texts, store)
    assert read == models
    assert store.vectors(texts).names == (models[0],)


# ------------------------------------------------------------------------------------------------------- equal content


def renamed(directory, name, **changes):
    """A copy of a model's directory, with other values in its configuration."""
    there = directory.parent / name
    shutil.copytree(directory, there)
    if changes:
        config = json.loads((there / "config.json").read_text())
        (there / "config.json").write_text(json.dumps({**config, **changes}))
    return there


def test_equal_weights_are_scored_once_and_said(make_model, texts, store, monkeypatch):
    """Under another name, and under another step with another line of where it was saved; not with another setting."""
    model = make_model("checkpoint-10")
    twin = renamed(model, "other-name")
    later = renamed(model, "checkpoint-20", _name_or_path="elsewhere", transformers_version="4.0")
    changed = renamed(model, "checkpoint-30", layer_norm_eps=0.1)
    opened, notes, really = [], [], Sources.open
    monkeypatch.setattr(Sources, "open", lambda *a, **options: opened.append(1) or really(*a, **options))
    progress = Progress()
    progress.note = notes.append
    outcomes = sweeps.score([str(one) for one in (model, twin, later, changed)], texts, store, progress=progress)
    assert [one.status for one in outcomes] == ["scored", "present", "present", "scored"]
    assert len(opened) == 2
    first, *others = (store.scores(one.entry).log_likelihood for one in outcomes)
    assert [np.array_equal(first, other) for other in others] == [True, True, False]
    assert [one.entry.ref.name for one in outcomes] == [str(one) for one in (model, twin, later, changed)]
    assert [one.entry.metadata["attributes"].get("step") for one in outcomes] == [10, None, 20, 30]
    assert len({one.entry.key for one in outcomes}) == 3
    (said,) = [note for note in notes if "scored once" in note]
    assert f"{later} is {model}" in said
    assert f"{twin} is {model}" in said
    assert store.repeat_run(texts.id, outcomes[2].entry.key) is not None
    (again,) = sweeps.score([str(renamed(model, "checkpoint-40", _name_or_path="a"))], texts, store)
    assert again.status == "present"
    assert len(opened) == 2
