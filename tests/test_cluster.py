"""Scoring on a Ray cluster: the vectors of one process, whatever dies; what does not need Ray is tested without it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from importlib.metadata import version
from types import SimpleNamespace

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
from klscale.sweep.worker import Worker
from mocks import count_scored

GB = 2**30
LAPTOP = {"CPU": 8.0, "memory": 16.0 * GB}
SERVER = {"CPU": 64.0, "memory": 512.0 * GB, "GPU": 8.0}


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


def test_an_address_where_nothing_answers(texts, tmp_path, monkeypatch):
    """Said at once; where Ray is not installed, its part is played."""
    connected: list[str] = []
    played = SimpleNamespace(is_initialized=lambda: False, init=lambda *a, **k: connected.append(a), shutdown=lambda: 0)
    monkeypatch.setitem(sys.modules, "ray", played)
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = "{}:{}".format(*server.getsockname())
    for address in (nobody, "head:port"):
        with pytest.raises(InputError, match=f"No Ray cluster can be used at {address}"):
            klscale.score(["mock://1"], texts, tmp_path / "store", ray=address)
    assert not connected


# --------------------------------------------------------------------------------------- a worker, in this process


@pytest.fixture
def worker(texts, tmp_path, monkeypatch):
    """One that has started, on texts that a store holds."""
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "store")
    store.keep_texts(texts)
    made = Worker("store", texts.id, str(tmp_path), {"sampled_tokens": 0, "batch_tokens": 300})
    assert made.start(version("klscale")) is None
    return made, store


def models_of(*refs):
    return [Model(ModelRef.parse(ref)) for ref in refs]


def test_a_worker_says_what_is_new_and_what_it_has_done(worker, texts):
    """Also of a model that fails, and of one that needs no work."""
    said = [*worker[0].sweep(models_of("mock://1", "mock://2?window=4", "mock://3"))]
    told = {new[0]: new[1] for new, _ in said if isinstance(new, tuple)}
    assert [told[place].status for place in range(3)] == ["scored", "failed", "scored"]
    assert "longer than the window" in told[1].error.what
    megabytes, n_texts, n_tokens = said[-1][1]
    assert (n_texts, n_tokens) == (80, 2 * (texts.bytes.sum() + len(texts)))  # a byte a token, and the start
    assert megabytes == pytest.approx(3 * texts.bytes.sum() / 1e6)  # what failed is done, too
    (again,) = {new[1].status for new, _ in worker[0].sweep(models_of("mock://1")) if new is not None}
    assert again == "present"


def test_a_worker_that_is_stopped_keeps_what_it_has_scored(worker, texts, monkeypatch):
    made, store = worker
    for new, (_, n_texts, _) in made.sweep(models_of("mock://1?speed=4000")):
        assert new is None
        if n_texts:
            made.stop()
    kept = sum(
        len(store.read_partial(texts.id, path.rsplit("/", 1)[-1])) for path in store.files.list("partial", texts.id)
    )
    assert 0 < kept < 40
    assert not store.claims(texts.id)
    forwards = count_scored(monkeypatch)
    sweeps.score(["mock://1"], texts, store, sampled_tokens=0)
    assert len(forwards) == 40 - kept


def test_a_worker_that_cannot_start_says_why(worker, texts):
    made, store = worker
    assert "has 99." in made.start("99").what
    store.files.forget(store.files.path("texts"), recursive=True)
    assert "all nodes share" in made.start(version("klscale")).remedy


# ------------------------------------------------------------------------------------------------------ with a cluster


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """The address of a cluster with room for two workers, which this process is connected to."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'klscale[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLSCALE_CACHE", str(tmp_path_factory.mktemp("cache")))  # the workers have it from here
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)  # or Ray writes one into the home directory
        before = signal.getsignal(signal.SIGTERM)
        for last in (False, False, True):  # Ray gives its node 30 seconds to start, however busy the machine is
            try:
                ray.init(
                    "local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
                    logging_level="ERROR", object_store_memory=cluster.OBJECT_BYTES, _memory=4 * GB,
                )  # fmt: skip
                break
            except Exception as error:
                ray.shutdown()
                if last:
                    pytest.skip(f"Ray does not start here: {error}")
        signal.signal(signal.SIGTERM, before)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


class Watching(Progress):
    """Calls `watch` whenever the command hears from its workers, and keeps its notes."""

    def __init__(self, watch):
        self.watch, self.notes = watch, []

    def now(self, what):
        self.watch()

    def note(self, message):
        self.notes.append(message)


@pytest.mark.slow
def test_workers_that_die_change_no_vector(two_workers, texts, tmp_path, monkeypatch):
    """A worker is killed over one model until that is given up, and one model fails. All others have the vectors of one
    process, to the bit; and so has that one when the command is run again."""
    monkeypatch.setattr(cluster, "TRIES", 2)
    refs = [*(f"mock://{n}?speed=12000" for n in range(5)), "mock://9?window=4"]
    one = Store(tmp_path / "one")
    alone = sweeps.score([f"mock://{n}" for n in range(5)], texts, one, sampled_tokens=0)
    doomed, killed, store = alone[2].entry.key, [], Store(tmp_path / "store")

    def kill():
        if process := store.claims(texts.id).get(doomed):  # process N on HOST
            killed.append(int(process.split()[1]))
            os.kill(killed[-1], signal.SIGKILL)
            wait_until(lambda: doomed not in store.claims(texts.id))

    progress = Watching(kill)
    options = Options(store=store, sampled_tokens=0, batch_tokens=300, progress=progress)
    found = klscale.score(refs, texts, ray=two_workers, options=options)
    assert len({*killed}) == 2
    assert os.getpid() not in killed
    assert [outcome.ref.name for outcome in found.failed] == [refs[2], refs[5]]
    assert "2 workers died over it" in found.failed[0].error.what
    assert "longer than the window" in found.failed[1].error.what
    assert any("A worker died" in note for note in progress.notes)
    assert not store.claims(texts.id)
    again = sweeps.score(refs[:5], texts, store, sampled_tokens=0)
    assert {outcome.status for outcome in again if outcome.ref.name != refs[2]} == {"present"}
    for mine, theirs in zip(again, alone, strict=True):
        assert store.scores(mine.entry).checksum == one.scores(theirs.entry).checksum


@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_the_same_command_resumes(two_workers, run, tmp_path):
    """As a terminal sends it, to all processes of the command: exit status 130, and nothing stays claimed."""
    texts = write_texts(tmp_path / "mine.jsonl")
    arguments = ["score", "mock://1", "mock://2?speed=500", "--texts", str(texts), "--batch-tokens", "300"]
    command = [sys.executable, "-m", "klscale", *arguments, "--ray", two_workers]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: list(tmp_path.glob("klscale-store/vectors/*/*.parquet")))
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "the same command goes on from there" in errors
    assert not list(tmp_path.rglob("*.claim"))
    arguments[2] = "mock://2"  # the same model, which waits for nothing
    assert [one["status"] for one in json.loads(run(*arguments, "--json").stdout)] == ["present", "scored"]
