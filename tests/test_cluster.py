"""Scoring on a Ray cluster: the vectors of one process, whatever dies; what does not need Ray is tested without it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import uuid

import numpy as np
import pytest

import klscale
from conftest import PATIENCE_S, wait_until, write_texts
from klscale.errors import InputError
from klscale.inputs.references import Model, ModelRef
from klscale.progress import Progress
from klscale.sources.transformers.files import bytes_in_memory, resolve
from klscale.store.store import Store
from klscale.studies.verbs.options import Options
from klscale.sweep import cluster
from klscale.sweep import score as sweeps
from klscale.sweep.cluster import Cluster, Need, Queue, Unit, need_of
from mocks import count_scored

GB = 2**30
LAPTOP = {"CPU": 8.0, "memory": 16.0 * GB}
SERVER = {"CPU": 64.0, "memory": 512.0 * GB, "GPU": 8.0}
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'klscale[ray]'")


# ----------------------------------------------------------------------------------------- what a worker is and gets


def test_a_worker_takes_what_its_models_need():
    assert need_of(0, [LAPTOP], None) == Need(0, GB, 1)
    assert need_of(None, [LAPTOP], None) == Need(0, GB, 1)
    half = need_of(3 * GB, [LAPTOP, {"CPU": 64.0}], None)  # two of 3 GB and 1 GB are 7 GB: half of the largest node
    assert (half, half.fits(LAPTOP), half.fits({"CPU": 64.0})) == (Need(0, 8 * GB, 4), 2, 0)
    assert need_of(100 * GB, [LAPTOP], None) == Need(0, 16 * GB, 8), "what no node has cannot be asked for"


def test_a_worker_takes_as_many_gpus_as_hold_its_model():
    nodes = [LAPTOP, SERVER]
    assert need_of(0, nodes, 80 * GB).gpus == 0, "a mock or a server needs none"
    assert [need_of(size, nodes, 80 * GB).gpus for size in (None, GB, 64 * GB, 65 * GB, 900 * GB)] == [1, 1, 1, 2, 8]
    small = need_of(GB, nodes, 80 * GB)
    assert (small.fits(SERVER), small.fits(LAPTOP)) == (8, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sizes_of_files_tell_the_memory_of_weights(make_model, dtype):
    """At least what the weights take; files of float32 look like twice as many weights of two bytes."""
    from klscale.sources.transformers.load import load

    pinned = resolve(ModelRef(str(make_model()), dtype=dtype))
    weights = sum(one.numel() * one.element_size() for one in load(pinned).model.parameters())
    assert weights < bytes_in_memory(pinned) < 2.5 * weights


def queue_of(*repositories):
    queue = Queue(Need(0, GB, 1))
    for n, name in enumerate(repositories):
        queue.add(Unit(n, name))
    return queue


def taken(units):
    return [(unit.repository, unit.job) for unit in units]


def test_revisions_of_a_repository_go_to_one_worker_while_others_have_their_own():
    queue = queue_of(*"aaabb")
    assert taken(queue.take(2)) == [("a", 0), ("a", 1)]
    assert taken(queue.take(1, None, ["a"])) == [("b", 3)]
    assert taken(queue.take(1, "a", ["b"])) == [("a", 2)]
    assert taken(queue.take(5, "a", ["b"])) == [("b", 4)], "a worker without work helps another"
    assert (queue.take(5, "a", ["b"]), len(queue)) == ([], 0)


def test_a_model_over_which_a_worker_died_comes_alone():
    queue = queue_of(*"ab")
    queue.add(Unit(2, "c", tries=1))
    queue.add(Unit(3, "d"))
    assert taken(queue.take(9)) == [("a", 0), ("b", 1)]
    assert taken(queue.take(9)) == [("c", 2)]
    assert taken(queue.take(9)) == [("d", 3)]
    assert not queue.waiting


def test_what_does_not_go_with_a_cluster(texts, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    for address, how, said in (
        ("local", {"device": "cuda:1"}, "Give --device cuda."),
        ("ray://head:10001", {}, "--ray auto"),
    ):
        with pytest.raises(InputError, match=said):
            Cluster(address, texts, store, how)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"klscale\[ray\]"):
        Cluster("local", texts, store, {})


# ------------------------------------------------------------------------------------------------------ with a cluster


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """This process is connected to a cluster with room for two workers."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'klscale[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLSCALE_CACHE", str(tmp_path_factory.mktemp("cache")))  # the workers have it from here
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)  # or Ray writes one into the home directory
        before = signal.getsignal(signal.SIGTERM)
        ray.init(
            "local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            object_store_memory=cluster.OBJECT_BYTES, _memory=4 * GB,
        )  # fmt: skip
        signal.signal(signal.SIGTERM, before)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


class Watching(Progress):
    """Calls `watch` whenever the command hears from its workers, and keeps its notes."""

    def __init__(self, watch=lambda: None):
        self.watch, self.notes, self.said = watch, [], ""

    def now(self, what):
        self.said = what
        self.watch()

    def note(self, message):
        self.notes.append(message)


def slow(n):
    """About a second of work for a worker, in blocks."""
    return f"mock://{n}?speed=12000"


def options(store, progress, **more):
    return Options(store=store, sampled_tokens=0, batch_tokens=300, progress=progress, **more)


@needs_ray
@pytest.mark.slow
def test_workers_that_die_change_no_vector(two_workers, texts, tmp_path, monkeypatch):
    """A worker is killed over one model until that is given up; all others have the vectors of one process, to the bit,
    and so has that one when the command is run again."""
    monkeypatch.setattr(cluster, "TRIES", 2)
    refs = [slow(n) for n in range(5)]
    one = Store(tmp_path / "one")
    alone = sweeps.score([f"mock://{n}" for n in range(5)], texts, one, sampled_tokens=0)
    doomed, killed, store = alone[2].entry.key, [], Store(tmp_path / "store")

    def kill():
        if process := store.claims(texts.id).get(doomed):  # process N on HOST
            killed.append(int(process.split()[1]))
            os.kill(killed[-1], signal.SIGKILL)
            wait_until(lambda: doomed not in store.claims(texts.id))

    progress = Watching(kill)
    found = klscale.score(refs, texts, ray="local", options=options(store, progress))
    assert len({*killed}) == 2
    assert os.getpid() not in killed
    assert [outcome.ref.name for outcome in found.failed] == [refs[2]]
    assert "2 workers died over it" in str(found.failed[0].error)
    assert any("A worker died" in note for note in progress.notes)
    again = klscale.score(refs, texts, ray="local", options=options(store, Watching()))
    assert {outcome.status for outcome in again.outcomes if outcome.ref.name != refs[2]} == {"present"}
    for mine, theirs in zip(again.outcomes, alone, strict=True):
        assert store.scores(mine.entry).checksum == one.scores(theirs.entry).checksum
    assert not store.claims(texts.id)


@needs_ray
@pytest.mark.slow
def test_ctrl_c_lets_workers_keep_what_they_have_scored(two_workers, texts, tmp_path, monkeypatch):
    store, refs = Store(tmp_path / "store"), [slow(n) for n in range(3)]

    def interrupt():
        if 0.002 < progress.done < 0.1:
            raise KeyboardInterrupt

    progress = Watching(interrupt)
    with pytest.raises(KeyboardInterrupt):
        klscale.score(refs, texts, ray="local", options=options(store, progress))
    assert not store.claims(texts.id), "the workers have ended as a process does"
    kept = sum(len(store.scores(entry)) for entry in store.entries(texts.id))
    for directory in store.files.list("partial", texts.id):
        kept += len(store.read_partial(texts.id, directory.rsplit("/", 1)[-1]))
    assert 0 < kept < 120
    forwards = count_scored(monkeypatch)
    assert all(outcome.entry for outcome in sweeps.score(refs, texts, store, sampled_tokens=0))
    assert len(forwards) == 120 - kept


@needs_ray
@pytest.mark.slow
def test_a_model_that_fails_is_said_as_one_process_says_it(two_workers, texts, tmp_path):
    """Its error, with the line of the suite; the notes of workers are said once."""
    wanted = [Model(ModelRef.parse("mock://9?window=4"), line="suite.yaml, line 7"), slow(1), "mock://8?noise=1e-5"]
    there = klscale.score(wanted, texts, ray="local", options=options(Store(tmp_path / "a"), Watching()))
    here = klscale.score(wanted, texts, options=options(Store(tmp_path / "b"), Watching()))
    assert [(one.status, str(one.error)) for one in there.outcomes] == [
        (one.status, str(one.error)) for one in here.outcomes
    ]
    assert [one.status for one in there.outcomes] == ["failed", "scored", "scored"]
    np.testing.assert_array_equal(there.vectors().log_likelihood, here.vectors().log_likelihood)


@needs_ray
@pytest.mark.slow
def test_nodes_that_do_not_see_the_store(two_workers, texts, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    monkeypatch.setattr(store, "keep_texts", lambda texts: texts)  # kept where the workers do not look
    with pytest.raises(klscale.errors.StorageError, match="does not see the store"):
        klscale.score(["mock://1"], texts, ray="local", options=options(store, Watching()))


@needs_ray
@pytest.mark.slow
def test_the_command_ends_by_ctrl_c(two_workers, tmp_path):
    """As a terminal sends it, to all processes of the command: exit status 130, and nothing is left claimed."""
    texts = write_texts(tmp_path / "mine.jsonl")
    command = [sys.executable, "-m", "klscale", "score", "mock://1?speed=300", "--texts", str(texts)]
    command += ["--batch-tokens", "300", "--ray", two_workers]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: list(tmp_path.glob("klscale-store/partial/*/*.claim")))
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "the same command goes on from there" in errors
    assert not list(tmp_path.rglob("*.claim"))
