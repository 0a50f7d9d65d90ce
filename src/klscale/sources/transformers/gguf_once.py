"""A GGUF file is read once while its model is loaded, whoever asks for it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Within it, gguf opens each file once, and makes each table of tensor names once. No bar is shown.

    transformers opens the file for the configuration, the tokenizer and the weights, and makes the table again for
    every module of the model: on a model of 135M parameters both took 20 of 25 seconds.
    """
    import gguf
    from gguf.gguf_reader import GGUFReader
    from gguf.tensor_mapping import get_tensor_name_map
    from transformers import modeling_gguf_pytorch_utils as reading

    bar: Any = reading.tqdm
    opened = functools.cache(GGUFReader)
    gguf.GGUFReader = lambda path: opened(str(path))
    gguf.get_tensor_name_map = functools.cache(get_tensor_name_map)
    reading.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map, reading.tqdm = GGUFReader, get_tensor_name_map, bar
        opened.cache_clear()
