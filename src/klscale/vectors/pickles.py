"""Pickles read without ever running what they ask for: arrays, dictionaries, lists, strings and numbers only."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from typing import Any

import numpy as np

from klscale.errors import InputError
from klscale.limits import PICKLE_CONTAINERS

SAVE_AS = "Save the values as .csv or .parquet: one row a text, one column a model."


class _RefusedError(Exception):
    """What a pickle asked for and does not get."""


class _Dtype:
    """Stands for `numpy.dtype`, whose own reading of a pickled state trusts it."""

    text = ""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch("b1|[iu][1248]|f[248]", code):
            raise _RefusedError(f"an array of dtype {code!r}")
        self.text = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.text = {"<": "<", ">": ">", "|": "|"}[state[1]] + self.text


class _Array:
    """Stands for `numpy.ndarray`: a view of bytes that are in the file."""

    values: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, _, raw = state
        self.values = _view(raw, dtype, shape).values


def _view(raw: Any, dtype: _Dtype, shape: Any, *_: Any) -> _Array:
    array = _Array()
    array.values = np.frombuffer(raw, dtype.text).reshape(shape)
    return array


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),  # shape and values come as its state
    ("numpy._core.multiarray", "scalar"): lambda dtype, raw: _view(raw, dtype, ()).values.item(),
    ("numpy._core.numeric", "_frombuffer"): _view,
    ("collections", "OrderedDict"): dict,
}


class _Unpickler(pickle.Unpickler):
    """Imports nothing: each name that data need is answered by a stand-in from this file, all others are refused."""

    def __init__(self, data: bytearray) -> None:
        super().__init__(io.BytesIO(data))
        self._left = len(data)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        key = (module.replace("numpy.core.", "numpy._core."), name)  # NumPy 1 and 2
        if key not in _ALLOWED:
            raise _RefusedError(f"{module}.{name}")
        return _ALLOWED[key]

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError(f"the persistent object {pid!r}")

    def _encode(self, text: str, encoding: str) -> bytes:
        """Bytes as protocols 0 to 2 write them: all together no more than the file is long."""
        self._left -= len(text)
        if encoding != "latin1" or self._left < 0:
            raise _RefusedError(f"_codecs.encode to {encoding!r}, or of the same bytes again and again")
        return text.encode("latin1")


def load_pickle(data: bytearray) -> Any:
    """What a pickle holds: dictionaries, lists, strings, numbers, and arrays as objects with `values`.

    Raises InputError, naming what it asks for, where it holds anything else.
    """
    containers = 0
    try:
        for opcode, argument, _ in pickletools.genops(data):  # checks every length against what the file holds, too
            if opcode.name.startswith("EXT"):
                raise _RefusedError(f"code {argument} of the extension registry")
            if opcode.name.endswith(("DICT", "LIST", "SET", "TUPLE", "OBJ", "REDUCE")):
                containers += 1
                if containers > PICKLE_CONTAINERS.value:
                    PICKLE_CONTAINERS.require(containers, "the file")
            if opcode.name.endswith("PUT") and (argument or 0) > len(data):
                raise _RefusedError(f"a memo of {argument:,} entries")
        return _Unpickler(data).load()
    except InputError:
        raise
    except _RefusedError as refused:
        why = "A pickle can run any program; only arrays, numbers, strings, lists and dictionaries are read."
        raise InputError(f"refused, it asks for {refused}.", why, SAVE_AS) from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError("not a readable pickle.", f"{type(error).__name__}: {error}", SAVE_AS) from error
