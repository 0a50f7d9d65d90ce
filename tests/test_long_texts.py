"""Long texts: no tensor grows faster than the text, whatever the vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import SMALL, MakeModel
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.sources.source import ReaderOptions, Sources
from klscale.sources.transformers import engine, pieces

LONG = 4096
"""Tokens, and bytes, of the longest text here."""
VOCABULARY = SMALL["vocab_size"]


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            # an expanded tensor needs no memory of its own
            if (
                isinstance(one, torch.Tensor)
                and (held := one.untyped_storage().nbytes() // one.itemsize) > self.elements
            ):
                self.elements = held
        return found


def long_text(n_bytes: int) -> str:
    generator = np.random.default_rng(n_bytes)
    words = ["tree", "house", "and", "the", "of", "runs", "7", "garden,"]
    return " ".join(generator.choice(words, size=n_bytes))[:n_bytes]


def largest(model: Any, n_bytes: int) -> int:
    """Elements of the largest tensor while one text of so many tokens is scored."""
    texts = TextSet.from_texts("long", [long_text(n_bytes)])
    sources = Sources()
    reader = sources.open(sources.pin(ModelRef.parse(str(model))), ReaderOptions())
    [*reader.score(TextSet.from_texts("short", ["a b c d"]), [0])]  # the head is found
    with Largest() as seen:
        [found] = reader.score(texts, [0])
    assert found.n_tokens[0] == n_bytes
    return seen.elements


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt-neox", {}),
        ("llama, grouped queries", {}),
        ("gemma3", {}),
        ("gemma2, soft cap", {"sliding_window": 16}),
        ("bloom", {}),
    ],
)
def test_memory_grows_as_the_text_does(kind, changes, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch):
    """Pieces of 64 tokens, so that a matrix of piece by text is smaller than one of vocabulary by text."""
    for module in (engine, pieces):
        monkeypatch.setattr(module, "PIECE", 64)
    model = make_model("model", kind, max_position_embeddings=LONG, **changes)
    short, long = largest(model, LONG // 4), largest(model, LONG)
    assert long <= 4.1 * short
    assert long < LONG * VOCABULARY
    assert long < LONG**2
