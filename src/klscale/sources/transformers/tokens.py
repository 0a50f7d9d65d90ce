"""Texts as one tokenizer sees them; prepared once and reused for every checkpoint that shares the tokenizer."""

from __future__ import annotations

import hashlib
import json
from itertools import chain
from typing import Any

import numpy as np

from klscale.errors import KlscaleError
from klscale.inputs.spans import byte_offsets
from klscale.inputs.texts import TextSet
from klscale.sources.tokens import Tokens


def tokenize(tokenizer: Any, texts: TextSet) -> Tokens:
    """All texts with the tokenizer's own default special tokens, neither truncated nor padded; with offsets and spans
    where the tokenizer is a fast one.

    Raises KlscaleError for a text that has no tokens.
    """
    assert texts.texts is not None
    how = {"add_special_tokens": True, "truncation": False, "padding": False, "verbose": False}
    found = tokenizer(list(texts.texts), return_offsets_mapping=tokenizer.is_fast, **how)
    encoded = found["input_ids"]
    lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
    if (lengths == 0).any():
        empty = int(np.argmin(lengths))
        raise KlscaleError(
            f"Text {empty} of {texts.name} has no tokens under this tokenizer.",
            f"It reads {texts.texts[empty][:40]!r}.",
            "Leave that text out of the set.",
        )
    decoded = tokenizer.batch_decode(encoded, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    # A leading space is a tokenizer's own mark of a word's beginning: adding or dropping one loses nothing else.
    lost = sum(a != b and a.removeprefix(" ") != b.removeprefix(" ") for a, b in zip(decoded, texts.texts, strict=True))
    flat = np.fromiter((i for ids in encoded for i in ids), dtype=np.int32, count=int(lengths.sum()))
    starts, not_round_trip = np.concatenate([[0], np.cumsum(lengths)]), lost / len(lengths)
    if not tokenizer.is_fast:
        return Tokens(flat, starts, not_round_trip)
    edges = chain.from_iterable(chain.from_iterable(found["offset_mapping"]))
    characters = np.fromiter(edges, dtype=np.int64, count=2 * len(flat)).reshape(-1, 2)
    begin, end = byte_offsets(texts.texts, starts, characters).T
    return Tokens.with_offsets(texts, flat, starts, not_round_trip, begin, end)


def tokenizer_id(tokenizer: Any) -> str:
    """Equal for tokenizers that read every text alike."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    body = (
        backend.to_str()
        if backend is not None
        else json.dumps([type(tokenizer).__name__, tokenizer.name_or_path, tokenizer.get_vocab()])
    )
    special = [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token", "bos_token", "eos_token")]
    return hashlib.sha256(f"{body}{special}".encode()).hexdigest()


class TokenCache:
    """Tokens of the last few tokenizers, so that the checkpoints of a run are prepared for once."""

    def __init__(self, size: int = 4) -> None:
        self._size, self._kept = size, dict[tuple[str, str], Tokens]()

    def get(self, tokenizer: Any, texts: TextSet) -> Tokens:
        """All texts as this tokenizer reads them."""
        key = texts.id, tokenizer_id(tokenizer)
        if key not in self._kept:
            self._kept[key] = tokenize(tokenizer, texts)
            if len(self._kept) > self._size:
                del self._kept[next(iter(self._kept))]
        return self._kept[key]
