"""A GGUF file is read once while its model is loaded, whoever asks for it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Within it, gguf opens each file once, each value is parsed once, and each table of tensor names is made once. No
    bar is shown.

    transformers opens the file for the configuration, the tokenizer and the weights, parses all values for each, and
    makes the table again for every module of the model. Of 262,144 tokens that takes ten times as long as the weights.
    """
    import gguf
    from gguf.gguf_reader import GGUFReader
    from gguf.tensor_mapping import get_tensor_name_map
    from transformers import modeling_gguf_pytorch_utils as reading

    class Reader(GGUFReader):  # type: ignore[misc]
        """Reads the mapped file as a plain array: NumPy makes a `memmap` anew for each of millions of values."""

        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = mapped.view(np.ndarray)

    bar, parse = reading.tqdm, reading._gguf_parse_value
    opened, parsed = functools.cache(Reader), dict[int, Any]()

    def parsed_once(value: Any, kind: Any) -> Any:
        if id(value) not in parsed:  # it lives as long as the reader, so no other has its id
            parsed[id(value)] = parse(value, kind)
        return parsed[id(value)]

    gguf.GGUFReader = lambda path: opened(str(path))
    gguf.get_tensor_name_map = functools.cache(get_tensor_name_map)
    reading.tqdm, reading._gguf_parse_value = functools.partial(bar, disable=True), parsed_once
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = GGUFReader, get_tensor_name_map
        reading.tqdm, reading._gguf_parse_value = bar, parse
        opened.cache_clear()
