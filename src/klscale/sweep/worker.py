"""A worker of a cluster: a process that sweeps over the models that it is given, and says how far it is."""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from klscale.errors import InputError, KlscaleError, StorageError
from klscale.inputs.references import Model
from klscale.progress import Progress
from klscale.store.store import Store
from klscale.sweep.jobs import Outcome
from klscale.sweep.score import MEGABYTES, score

REPORT_S = 0.5
"""Seconds between two reports of a worker."""
Counts = tuple[float, int, int]
"""Megabytes and number of the texts that are done, and their tokens."""


class Worker:
    """Scores on the texts `text_set` of the store at `location`, with the options `how` of `score`; in the directory
    that the command was started in, where this node has it."""

    def __init__(self, location: str, text_set: str, directory: str, how: Mapping[str, Any]) -> None:
        self._location, self._text_set, self._how = location, text_set, how
        self._stopped = threading.Event()
        with contextlib.suppress(OSError):
            os.chdir(directory)

    def start(self, expected: str) -> KlscaleError | None:
        """Read the texts. What is wrong with this node, if anything is: klscale must be of the `expected` version."""
        if (here := version("klscale")) != expected:
            what = f"{platform.node()} has klscale {here}, and the machine of the command has {expected}."
            return InputError(what, "All workers score alike.", "Install the same version on all nodes.")
        try:
            self._store = Store(self._location)
            self._texts = self._store.texts(self._text_set)
        except KlscaleError as error:
            what = f"{platform.node()} does not see the store {self._location}."
            remedy = "Give a store that all nodes share: a URL, or a directory of a shared file system."
            return StorageError(what, error.what, remedy)
        return None

    def sweep(self, models: Sequence[Model]) -> Iterator[tuple[Any, Counts]]:
        """Score these models. Yields, at least every REPORT_S, what is new and what has been done so far. New is the
        (place, outcome) of a model, a note, an error that ends the sweep, or None."""
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        reports, ended = _Reports(events, self._stopped), object()

        def tell(place: int, outcome: Outcome) -> None:
            events.put((place, outcome))

        def work() -> None:
            try:
                outcomes = score(models, self._texts, self._store, tell=tell, progress=reports, **self._how)
                for place, outcome in enumerate(outcomes):  # those too that needed no work
                    tell(place, outcome)
            except KeyboardInterrupt:
                pass
            except BaseException as error:
                events.put(error)
            events.put(ended)

        threading.Thread(target=work, daemon=True).start()
        while True:
            event = None
            with contextlib.suppress(queue.Empty):
                event = events.get(timeout=REPORT_S)
            if event is ended:
                return
            if isinstance(event, BaseException) and not isinstance(event, KlscaleError):
                raise event
            yield event, reports.counts

    def stop(self) -> None:
        """Let the sweep keep what it has scored, and end."""
        self._stopped.set()


class _Reports(Progress):
    """Counts what a sweep has done. Ends it as Ctrl-C does where the worker was told to stop."""

    def __init__(self, events: queue.SimpleQueue[Any], stopped: threading.Event) -> None:
        self._events, self._stopped, self._unit = events, stopped, ""
        self.counts: Counts = (0.0, 0, 0)

    def begin(self, what: str, total: float | None = None, unit: str = "") -> None:
        super().begin(what, total, unit)
        self._unit = unit

    def advance(self, amount: float = 1.0) -> None:
        super().advance(amount)
        if self._unit == MEGABYTES:
            megabytes, texts, tokens = self.counts
            self.counts = megabytes + amount, texts, tokens
        if self._stopped.is_set():
            raise KeyboardInterrupt

    def scored(self, texts: int, tokens: int) -> None:
        megabytes, texts_before, tokens_before = self.counts
        self.counts = megabytes, texts_before + texts, tokens_before + tokens

    def note(self, message: str) -> None:
        self._events.put(message)
