"""The jobs of a sweep: which model under which keys, in which order, and the thread that reads one ahead."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from klscale.errors import KlscaleError
from klscale.inputs.references import Model, ModelRef
from klscale.sources.source import Pinned, Source
from klscale.store.store import Entry, Store
from klscale.sweep.runs import windows

T = TypeVar("T")
LOOK_AGAIN_S = 1.0
"""Seconds between two looks whether another process has finished."""


@dataclass(frozen=True)
class Outcome:
    """The result for one model: `scored`, `present` (nothing to do), `missing` (a dry run) or `failed`, with the error;
    and the store's entry where there is one. Only a dry run has `download_bytes`: what would be fetched for this model
    and not for one before it; None where that is not known."""

    ref: ModelRef
    status: str
    entry: Entry | None = None
    error: KlscaleError | None = None
    seconds: float = 0.0
    download_bytes: int | None = None

    @classmethod
    def failed(cls, model: Model, error: KlscaleError, seconds: float = 0.0) -> Outcome:
        """One that could not be scored; the error names the line of the suite that asks for it."""
        return cls(model.ref, "failed", error=error.at(model.line) if model.line else error, seconds=seconds)


@dataclass(frozen=True)
class Job:
    """A pinned model to score, with the keys that its vector may have, and the store's entry where there is one.
    `others` are the models whose weights are compared with its own. `unrepeated`: the entry has no run-to-run noise."""

    place: int
    model: Model
    source: Source
    pinned: Pinned
    keys: tuple[str, ...]
    layers: bool = False
    entry: Entry | None = None
    others: tuple[Pinned, ...] = ()
    unrepeated: bool = False

    @property
    def ref(self) -> ModelRef:
        return self.model.ref

    @property
    def content(self) -> tuple[str, str, str]:
        """What its values depend on besides the convention: equal for models of other names whose files hold the
        same."""
        return self.pinned.content, self.ref.quantization or "", self.ref.dtype

    @property
    def key(self) -> str:
        """The key that the work on it is claimed by."""
        return self.keys[-1]

    @property
    def partial(self) -> str:
        """The key that unfinished work is kept by: work with layers and without is never mixed."""
        return self.key + ("-layers" if self.layers else "")

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.entry is not None and not self.others and not self.unrepeated

    @property
    def opens(self) -> bool:
        """Whether the model itself is read."""
        return self.entry is None or self.unrepeated

    @property
    def reads(self) -> tuple[Pinned, ...]:
        """The models whose files it needs."""
        return (self.pinned, *self.others)


def wait_for_others() -> None:
    """Sleep for about LOOK_AGAIN_S, not as long as other processes do."""
    time.sleep(random.uniform(0.5, 1.5) * LOOK_AGAIN_S)


def with_windows(jobs: Sequence[Job], store: Store) -> list[Job]:
    """The jobs in the order of their runs, each with the checkpoints whose weights its own are to be compared with."""
    found = windows((job.pinned for job in jobs), store)
    order = {one.identity: n for n, (one, _) in enumerate(found)}
    others = {one.ref: tuple(near) for one, near in found}
    ordered = sorted(jobs, key=lambda job: order.get(job.pinned.identity, len(order)))
    return [replace(job, others=others.pop(job.ref, ())) for job in ordered]


def by_files(jobs: Sequence[Job]) -> list[Job]:
    """The jobs in an order where those that read the same files (quantized variants, adapters of one model) follow the
    first of them."""
    first: dict[str, int] = {}
    for n, job in enumerate(jobs):
        first.setdefault(job.pinned.files, n)
    return sorted(jobs, key=lambda job: first[job.pinned.files])


class OneAhead:
    """Does one thing at a time in a thread. Leaving waits for it, since a thread that is cut off while it builds a
    model takes the process down with it; but not after Ctrl-C, when a download may have long to go."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[..., T], *arguments: Any, **options: Any) -> Future[T]:
        """Begin, as soon as what was submitted before has ended."""
        self._wait()
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(function(*arguments, **options))
            except BaseException as error:
                future.set_exception(error)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        return future

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> OneAhead:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not KeyboardInterrupt:
            self._wait()


def without_frames(error: KlscaleError) -> KlscaleError:
    """The same error without its traceback: the frames of a failed forward pass hold the model in memory."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return error
