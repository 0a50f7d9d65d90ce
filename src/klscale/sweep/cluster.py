"""Score on a Ray cluster: the process of the command looks up what the store lacks, and gives it to workers.

A worker is a process on some node, with the GPUs and the memory that its models need. It sweeps over a few models at a
time, as any process does, and writes to the store through claims. A worker that dies leaves what another one resumes.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from klscale.errors import InputError, KlscaleError
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.store.store import Store
from klscale.sweep.jobs import Job, Outcome, by_files
from klscale.sweep.worker import REPORT_S, Counts, Worker

TRIES = 3
"""Workers that may die over one model before it is given up, and workers that may die while they start."""
PROCESS_BYTES = 2**30
"""Memory of a worker without weights: its program, texts and batches."""
IN_MEMORY = 2
"""Models in the memory of a worker: one is scored while the next is read."""
RESIDENT = 0.8
"""Share of a GPU's memory that weights may take."""
SHARES = 2
"""A worker is given an even share of what is left, divided by this, so that all end at about the same time."""
LOOK_S = 5.0
"""Seconds between two looks at the nodes of the cluster."""
PATIENCE_S = 60.0
"""Seconds without any worker after which a note says so."""
GRACE_S = 15.0
"""Seconds that workers have after Ctrl-C to keep what they have scored."""
REACH_S = 10.0
"""Seconds that a machine has to answer at the address that is given."""
OBJECT_BYTES = 2**27
"""Memory of Ray's object store on this machine, which holds next to nothing."""


@dataclass(frozen=True, order=True)
class Need:
    """What a worker takes of a node: GPUs, bytes of memory, cores."""

    gpus: int
    memory: int
    cores: int

    def fits(self, node: Mapping[str, float]) -> int:
        """How many such workers a node (Ray's resources) has room for."""
        wanted = {"GPU": self.gpus, "memory": self.memory, "CPU": self.cores}
        return min(int(node.get(name, 0) // amount) for name, amount in wanted.items() if amount)


def need_of(weights: int | None, nodes: Sequence[Mapping[str, float]], gpu_bytes: int | None) -> Need:
    """What a worker needs for models of so many bytes of weights (None: not known), and at most what the largest of the
    `nodes` has. `gpu_bytes`: memory of a GPU; None where none is used.

    Memory is rounded up to a power of two: models of about one size share workers. Without GPUs, a worker takes the
    same share of the cores of a node as of its memory.
    """
    largest = max(nodes, key=lambda node: (node.get("GPU", 0) if gpu_bytes else 0, node.get("memory", 0)))
    there, cores = int(largest.get("memory", 0)), int(largest.get("CPU", 0))
    wanted = 2 ** math.ceil(math.log2(PROCESS_BYTES + IN_MEMORY * (weights or 0)))
    memory, one = min(wanted, there), min(1, cores)
    if gpu_bytes and weights != 0:
        gpus = max(1, math.ceil((weights or 0) / (RESIDENT * gpu_bytes)))
        return Need(min(gpus, int(largest["GPU"])), memory, one)
    share = int(cores * memory / there) if there and wanted > PROCESS_BYTES else one
    return Need(0, memory, max(one, share))


@dataclass(eq=False)
class Unit:
    """A model to score, the repository that it is from, and how many workers have died over it."""

    job: Job
    repository: str
    tries: int = 0


@dataclass(eq=False)
class Queue:
    """The models that have one need, by repository. All revisions of one go to one worker as long as others have a
    repository to begin with, so that what revisions share is fetched once."""

    need: Need
    waiting: dict[str, deque[Unit]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.waiting.values()))

    def add(self, unit: Unit) -> None:
        """Put a model at the end of its repository."""
        self.waiting.setdefault(unit.repository, deque()).append(unit)

    def take(self, n: int, mine: str | None = None, others: Iterable[str | None] = ()) -> list[Unit]:
        """The next models, `n` at most, for a worker that was at the repository `mine` while the `others` are at
        theirs. A model that a worker has died over comes alone."""
        taken: list[Unit] = []
        while len(taken) < n and self.waiting:
            if mine not in self.waiting:
                free = [name for name in self.waiting if name not in others]
                mine = free[0] if free else max(self.waiting, key=lambda name: len(self.waiting[name]))
            if taken and self.waiting[mine][0].tries:
                break
            taken.append(self.waiting[mine].popleft())
            if not self.waiting[mine]:
                del self.waiting[mine]
            if taken[0].tries:
                break
        return taken


@dataclass(eq=False)
class _Hired:
    """A worker as the command sees it: where its models come from, its process, and what it will say next."""

    queue: Queue
    actor: Any
    said: Any
    started: bool = False
    repository: str | None = None
    units: dict[int, Unit] = field(default_factory=dict)
    """Place among the models that it was given -> the model, until that is done."""
    counts: Counts = (0.0, 0, 0)
    megabytes: float = 0.0
    """What it has done of the model that it is at."""


class Cluster:
    """Scores jobs on the Ray cluster at `address`; `local` is this machine alone, with all of its GPUs. A cluster that
    this process is connected to already is used as it is.

    `how`: the options of `score` for every worker. Raises InputError for a device by number, and without the package
    ray.
    """

    def __init__(self, address: str, texts: TextSet, store: Store, how: Mapping[str, Any]) -> None:
        device = how.get("device") or ""
        if ":" in device:
            remedy = f"Give --device {device.split(':')[0]}."
            raise InputError(f"--device {device} does not go with --ray.", "Ray chooses the GPUs of a worker.", remedy)
        if address.startswith("ray://"):
            remedy = "Start the same on a node of the cluster, with --ray auto (`ray job submit` does that)."
            raise InputError(f"--ray {address} is an address for clients of Ray.", "They hear no progress.", remedy)
        try:
            import ray
        except ImportError as error:
            raise InputError("--ray needs the package ray.", remedy="pip install 'klscale[ray]'") from error
        self._ray, self._address, self._device = ray, address, device
        self._texts, self._store, self._how = texts, store, dict(how)
        self._progress: Progress = self._how.pop("progress", SILENT)
        self._queues: list[Queue] = []
        self._workers: list[_Hired] = []
        self._megabytes = float(texts.bytes[texts.sample(how.get("first"))].sum()) / 1e6
        self._n_done = self._deaths = self._texts_scored = self._tokens = 0
        self._noted: set[str] = set()
        self._looked = -math.inf

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """(place, outcome) of each job, as soon as a worker has done it. Raises InputError for an address where no
        cluster answers."""
        self._store.keep_texts(self._texts)
        with self._connected():
            self._line_up(jobs)
            self._progress.begin(f"scoring {len(jobs)} models", self._megabytes * len(jobs), "MB")
            self._began = self._active = time.monotonic()
            try:
                while self._n_done < len(jobs):
                    self._hire()
                    yield from self._hear()
                    self._show(len(jobs))
            except BaseException:  # Ctrl-C too
                self._stop()
                raise

    # ----------------------------------------------------------------------------------------------------- the cluster

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        ray, main = self._ray, threading.current_thread() is threading.main_thread()
        if ray.is_initialized():
            yield
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_BYTES}
        terminated = signal.getsignal(signal.SIGTERM)
        with contextlib.ExitStack() as stack:
            # Ray prints what its nodes say on standard output, which is for results.
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.callback(ray.shutdown)
            try:
                if ":" in self._address:  # Ray itself would try for minutes
                    host, _, port = self._address.rpartition(":")
                    socket.create_connection((host, int(port)), timeout=REACH_S).close()
                ray.init(self._address, **options)
            except Exception as error:  # Ray has no class for all that can happen
                remedy = "Give HOST:PORT of its head, `auto` on one of its nodes, or `local` for this machine alone."
                if self._address == "local":
                    remedy = "Run it again: on a busy machine Ray may give up too soon."
                what = f"No Ray cluster can be used at {self._address}."
                raise InputError(what, str(error).split("\n")[0], remedy) from error
            if main:
                signal.signal(signal.SIGTERM, terminated)  # Ray has set its own
            yield

    def _nodes(self) -> list[Mapping[str, float]]:
        """Resources of each living node."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _line_up(self, jobs: Sequence[Job]) -> None:
        """Put the jobs into queues, one for each need, the largest first."""
        nodes = self._nodes()
        cores, gpus = (int(sum(node.get(name, 0) for node in nodes)) for name in ("CPU", "GPU"))
        self._note(f"Nodes of Ray: {len(nodes)}, with {cores} cores and {gpus} GPUs.")
        jobs = by_files(jobs)
        weights = [job.source.bytes_in_memory(job.pinned) for job in jobs]
        gpu_bytes = self._gpu_bytes() if gpus and self._device != "cpu" and any(size != 0 for size in weights) else None
        queues: dict[Need, Queue] = {}
        repositories: dict[str, str] = {}
        for job, size in zip(jobs, weights, strict=True):
            need = need_of(size, nodes, gpu_bytes)
            repository = repositories.setdefault(job.pinned.files, job.ref.name)
            queues.setdefault(need, Queue(need)).add(Unit(job, repository))
        self._queues = [queues[need] for need in sorted(queues, reverse=True)]

    def _gpu_bytes(self) -> int | None:
        """Memory of one GPU; all are taken to have as much."""
        self._progress.begin("waiting for a GPU, to see its memory")
        ask = self._ray.remote(gpu_bytes).options(num_gpus=1, num_cpus=0)
        try:
            found: int | None = self._ray.get(ask.remote())
        except self._ray.exceptions.RayError:
            return None
        return found

    # --------------------------------------------------------------------------------------------------------- workers

    def _hire(self) -> None:
        """Ask Ray for as many workers as there are models for, and room on the nodes. It starts them as it can."""
        now = time.monotonic()
        if any(worker.started for worker in self._workers):
            self._active = now
        elif now - self._active > PATIENCE_S:
            self._note(f"No worker has started for {PATIENCE_S:.0f} seconds: the nodes are busy with other work.")
        if now - self._looked < LOOK_S:
            return
        nodes, self._looked = self._nodes(), now
        about = self._store.location, self._texts.id, str(Path.cwd()), self._how
        for queue in self._queues:
            mine = [worker for worker in self._workers if worker.queue is queue]
            room = sum(map(queue.need.fits, nodes)) - len(mine)
            need = {"num_gpus": queue.need.gpus, "memory": queue.need.memory, "num_cpus": queue.need.cores}
            for _ in range(min(len(queue) - sum(not worker.units for worker in mine), room)):
                actor = self._ray.remote(Worker).options(**need, max_concurrency=2).remote(*about)
                self._workers.append(_Hired(queue, actor, actor.start.remote(version("klscale"))))

    def _hear(self) -> Iterator[tuple[int, Outcome]]:
        """Take what a worker says, and act on it."""
        ray, saying = self._ray, {worker.said: worker for worker in self._workers}
        if not saying:
            time.sleep(REPORT_S)
            return
        for said in ray.wait([*saying], timeout=REPORT_S)[0]:
            worker = saying[said]
            try:
                if worker.started:
                    new, counts = ray.get(next(said))
                    yield from self._take(worker, new, counts)
                else:
                    if (error := ray.get(said)) is not None:
                        raise error
                    worker.started, self._deaths = True, 0
                    self._give(worker)
            except StopIteration:
                self._give(worker)
            except ray.exceptions.RayTaskError:  # a fault of the program
                raise
            except ray.exceptions.RayError as error:
                yield from self._lost(worker, error)

    def _give(self, worker: _Hired) -> None:
        """Give a worker its next models; end it where there are none, since others may need its place."""
        queue = worker.queue
        others = [other.repository for other in self._workers if other.queue is queue and other is not worker]
        share = len(queue) // (SHARES * (len(others) + 1))
        units = queue.take(max(1, share), worker.repository, others)
        if not units:
            self._workers.remove(worker)
            self._ray.kill(worker.actor)
            return
        worker.units, worker.repository, worker.counts = dict(enumerate(units)), units[-1].repository, (0.0, 0, 0)
        sweep = worker.actor.sweep.options(num_returns="streaming")
        worker.said = sweep.remote([unit.job.model for unit in units])

    def _take(self, worker: _Hired, new: Any, counts: Counts) -> Iterator[tuple[int, Outcome]]:
        """What a worker says: `new`, and what it has done of the models that it was given."""
        megabytes, texts, tokens = (now - before for now, before in zip(counts, worker.counts, strict=True))
        worker.counts = counts
        worker.megabytes += megabytes
        self._texts_scored += int(texts)
        self._tokens += int(tokens)
        if isinstance(new, KlscaleError):
            raise new
        if isinstance(new, str):
            self._note(new)
        elif new is not None and (unit := worker.units.pop(new[0], None)) is not None:
            worker.megabytes = 0.0
            yield self._done(unit, new[1])

    def _done(self, unit: Unit, outcome: Outcome) -> tuple[int, Outcome]:
        self._n_done += 1
        return unit.job.place, outcome

    def _lost(self, worker: _Hired, error: Exception) -> Iterator[tuple[int, Outcome]]:
        """A worker is dead: its models are given to others, but those that too many have died over."""
        self._workers.remove(worker)
        self._looked = -math.inf  # another is hired at once
        why = " ".join(str(error).split())[:300]
        if not worker.started:
            self._deaths += 1
            if self._deaths == TRIES:
                remedy = (
                    "Is klscale installed on every node? What happened is below /tmp/ray/session_latest/logs there."
                )
                raise KlscaleError(f"{TRIES} workers died while they started.", why, remedy)
            return
        names = [str(unit.job.ref) for unit in worker.units.values()]
        self._note(f"A worker died while it had {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}.")
        for unit in worker.units.values():
            unit.tries += 1
            if unit.tries < TRIES:
                worker.queue.add(unit)
                continue
            what = f"{unit.job.ref}: {TRIES} workers died over it."
            remedy = "The same command tries it again. With --device cpu, or on a node with more memory, it may fit."
            yield self._done(unit, Outcome.failed(unit.job.model, KlscaleError(what, why, remedy)))

    def _stop(self) -> None:
        """Let the workers keep what they have scored, for GRACE_S at most."""
        self._progress.now("stopping workers, which keep what they have scored")
        ray, until = self._ray, time.monotonic() + GRACE_S
        working = [worker for worker in self._workers if worker.units]
        with contextlib.suppress(ray.exceptions.RayError):
            for worker in working:
                worker.actor.stop.remote()
        for worker in working:
            with contextlib.suppress(StopIteration, ray.exceptions.RayError):
                while ray.wait([worker.said], timeout=max(0.0, until - time.monotonic()))[0]:
                    ray.get(next(worker.said))

    # -------------------------------------------------------------------------------------------------------- progress

    def _note(self, message: str) -> None:
        """Say it once, however many workers do."""
        if message not in self._noted:
            self._noted.add(message)
            self._progress.note(message)

    def _show(self, n_jobs: int) -> None:
        """How far all workers are, in one line."""
        done = self._megabytes * self._n_done + sum(worker.megabytes for worker in self._workers)
        self._progress.advance(done - self._progress.done)
        rate = self._tokens / (time.monotonic() - self._began)
        self._progress.now(
            f"{self._n_done}/{n_jobs} models, {_short(self._texts_scored)} texts, {_short(rate)} tokens/s"
        )


def gpu_bytes() -> int | None:
    """Memory of the GPU that this process was given; None where torch does not see it."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _short(number: float) -> str:
    """Three digits: 812, 15.3k, 4.07M."""
    if number < 999.5:
        return f"{number:.3g}"
    return f"{number / 1e3:.3g}k" if number < 999_500 else f"{number / 1e6:.3g}M"
