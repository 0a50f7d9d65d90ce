"""The bars and notices of other libraries, held back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from logging import ERROR, getLogger

_NOTICES = ("accelerate.big_modeling", "torchao", "torch.utils._pytree")
"""Loggers that report placement, and kernels that are not built for this machine."""
_LOCK = threading.Lock()
_inside: list[Callable[[], None]] = []
"""What gives the settings back, once for each thread inside; only the first has something to do."""


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and notices of transformers while it reads and saves: klscale tells what matters. Models are read in
    several threads at a time: the last to leave gives the settings back."""
    with _LOCK:
        _inside.append((lambda: None) if _inside else _held_back())
    try:
        yield
    finally:
        with _LOCK:
            _inside.pop()()  # the first in the list is the last to go


def _held_back() -> Callable[[], None]:
    """Sets everything to silent. Returns what gives the settings back."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    notices = [getLogger(name) for name in _NOTICES]
    levels = [logger.level for logger in notices]
    for logger in notices:
        logger.setLevel(ERROR)

    def give_back() -> None:
        logging.set_verbosity(verbosity)
        for logger, level in zip(notices, levels, strict=True):
            logger.setLevel(level)
        if bar:
            logging.enable_progress_bar()

    return give_back
