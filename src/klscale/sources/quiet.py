"""The bars and notices of other libraries, held back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from logging import ERROR, getLogger

_NOTICES = ("accelerate.big_modeling", "torchao", "torch.utils._pytree")
"""Loggers that report placement, and kernels that are not built for this machine."""


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and notices of transformers while it reads and saves: klscale tells what matters."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    notices = [getLogger(name) for name in _NOTICES]
    levels = [logger.level for logger in notices]
    for logger in notices:
        logger.setLevel(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        for logger, level in zip(notices, levels, strict=True):
            logger.setLevel(level)
        if bar:
            logging.enable_progress_bar()
