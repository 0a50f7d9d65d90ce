"""A GGUF file is read once while its model is loaded, whoever asks for it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Within it, gguf opens each file once, and makes each table of tensor names once.

    transformers opens the file for the configuration, the tokenizer and the weights, and makes the table again for
    every module of the model: on a model of 135M parameters both took 20 of 25 seconds.
    """
    try:
        import gguf
        from gguf.gguf_reader import GGUFReader
        from gguf.tensor_mapping import get_tensor_name_map
    except ImportError:  # what needs it says so
        yield
        return
    opened = functools.cache(GGUFReader)
    gguf.GGUFReader = lambda path: opened(str(path))  # type: ignore[misc,assignment]
    gguf.get_tensor_name_map = functools.cache(get_tensor_name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = GGUFReader, get_tensor_name_map  # type: ignore[misc]
        opened.cache_clear()
