"""Beginnings that several texts share, which a model reads once: one prompt and its responses, above all.

The model reads the shared tokens alone, and their keys and values are kept. Of each text it then reads the rest behind
them. Whether a model has a plain cache of keys and values, so that this gives its own numbers, is for the engine to
check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klscale.science.arrays import Integers
from klscale.sources.tokens import Segment, Tokens

WORTH = 0.05
"""Share of all tokens that must be spared: with less, texts are read whole."""
LONGEST_RUN = 4096
"""Texts of a group at most, so that finding the groups takes little time."""


@dataclass(frozen=True)
class Group:
    """Segments that begin with the same `n` tokens, which are read once; with 0, segments that share nothing."""

    n: int
    parts: Sequence[Segment]


def groups_of(tokens: Tokens, parts: Sequence[Segment], cost: int, *, within_prompts: bool = False) -> list[Group]:
    """These segments in groups, those with the longest text first; one group where too few tokens would be spared.

    The segments are put into the order of their tokens, and this is cut so that the groups spare the most tokens, each
    less its `cost`. `within_prompts`: no scored token is predicted from within what is shared.
    """
    begin = sorted((part for part in parts if part.start == 0), key=lambda part: _in_order(tokens.of(part.text)))
    ids = [tokens.of(part.text) for part in begin]
    most = [(part.first if within_prompts else part.length) - 1 for part in begin]
    shared = [min(_n_equal(ids[n], ids[n + 1]), *most[n : n + 2]) for n in range(len(ids) - 1)]
    runs, spared = runs_that_spare_most(np.array(shared, dtype=np.int64), cost)
    if spared < WORTH * sum(part.length for part in parts):
        return [Group(0, parts)]
    found = [Group(n, [replace(part, behind=n) for part in begin[start:stop]]) for start, stop, n in runs]
    grouped = {part.text for group in found for part in group.parts}
    if rest := [part for part in parts if part.start or part.text not in grouped]:
        found.append(Group(0, rest))
    return sorted(found, key=lambda group: -max(part.length for part in group.parts))


def _in_order(ids: NDArray[np.int32]) -> bytes:
    """Compares as the ids do."""
    return ids.astype(">i4").tobytes()


def _n_equal(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many tokens two texts begin with that are the same."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def runs_that_spare_most(shared: Integers, cost: int) -> tuple[list[tuple[int, int, int]], int]:
    """Runs of texts (start, stop, tokens that all of them share), where each shares `shared` (n - 1,) tokens with the
    next, and the tokens that these spare: of each run all but one reading of what it shares, less `cost`. No other
    runs of up to `LONGEST_RUN` texts spare more."""
    n_texts = len(shared) + 1
    best, taken = np.zeros(n_texts + 1, dtype=np.int64), np.zeros((n_texts + 1, 2), dtype=np.int64)
    for stop in range(2, n_texts + 1):
        best[stop], taken[stop] = best[stop - 1], (stop - 1, 0)
        if shared[stop - 2]:
            least = np.minimum.accumulate(shared[max(0, stop - LONGEST_RUN) : stop - 1][::-1])
            found = least * np.arange(1, len(least) + 1) - cost + best[stop - 1 - len(least) : stop - 1][::-1]
            if found.max() > best[stop]:
                n = int(found.argmax())
                best[stop], taken[stop] = found[n], (stop - 2 - n, least[n])
    runs, stop = [], n_texts
    while stop > 1:
        start, n = map(int, taken[stop])
        if n:
            runs.append((start, stop, n))
        stop = start
    return runs[::-1], int(best[-1])


class Prefix:
    """What a model keeps of the n tokens (1, n) that it has read first: keys and values of each layer, and the `hidden`
    states (n, H) that enter the output embedding. `read` gives these of some inputs, with a cache that it fills."""

    def __init__(self, inputs: Tensor, read: Callable[[Tensor, Any], Tensor]) -> None:
        from transformers import DynamicCache

        cache = DynamicCache()  # without a configuration: layers with a sliding window keep all of it, and mask
        self.hidden = read(inputs, cache)[0]
        self._layers = cache.layers
        self.is_plain = holds_all(self._layers, len(self.hidden))

    def cache(self, n_rows: int, *, keeps: bool = False) -> Any:
        """A cache of transformers for a batch of so many texts, with these tokens in front of each. Nothing is copied,
        and what is read with it is not kept, unless the cache `keeps` it for what comes behind."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        cache = DynamicCache()
        for layer in self._layers:
            row = DynamicLayer()
            row.lazy_initialization(layer.keys, layer.values)
            row.keys, row.values = (kept.expand(n_rows, -1, -1, -1) for kept in (layer.keys, layer.values))
            cache.layers.append(row)
        if keeps:
            return cache

        def update(keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            row = cache.layers[layer]
            return torch.cat([row.keys, keys], dim=-2), torch.cat([row.values, values], dim=-2)

        cache.update = update
        return cache


def holds_all(layers: Sequence[Any], n: int) -> bool:
    """Whether all that the layers of a cache hold is keys and values, of n tokens or of a sliding window of them. A
    layer that shares those of another holds none."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    held = [layer for layer in layers if getattr(layer, "keys", layer) is not None]
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return bool(held) and all(type(layer) in kinds and layer.get_seq_length() == n for layer in held)
