"""Several batches at once on a CPU, each with its share of torch's threads.

Two threads in one forward pass wait for each other at every operation, and most operations of a small model leave
little to share. Two forward passes side by side do not wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import is_
from typing import Any

import torch

STREAMS = 4
"""Forward passes at once, at most: Python itself runs in one of them at a time. Two were measured."""


def n_streams() -> int:
    """How many forward passes this thread may run at once."""
    return min(STREAMS, torch.get_num_threads())


@contextlib.contextmanager
def streams(n: int) -> Iterator[Callable[..., Callable[[], Any]]]:
    """Within, begins a call, and gives the function that waits for its result: n calls at once, each with its share of
    this thread's threads of torch; with n = 1 a call waits until its result is asked for. Leaving does not wait for
    calls that still run."""
    if n == 1:
        yield partial
        return
    threads = torch.get_num_threads()
    workers = ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(threads // n,))
    try:
        yield lambda *call: workers.submit(*call).result
    finally:
        workers.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(threads)  # part of the workers' setting holds for the whole process


def held_by(model: Any) -> list[Any]:
    """What the modules of a model hold beside parameters: the same objects after a forward pass, unless a module keeps
    something of it."""
    return [value for module in model.modules() for held in (vars(module), module._buffers) for value in held.values()]


def same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether these are the same objects, one by one."""
    return len(some) == len(others) and all(map(is_, some, others))
