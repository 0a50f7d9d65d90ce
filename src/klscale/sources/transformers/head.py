"""The output head, read off hidden states in tiles of tokens x vocabulary, so that full logits never exist.

A token's log-probability is its logit less the log-sum-exp over the vocabulary. The log-sum-exp runs over tiles of the
vocabulary in float32; the tile that holds the target gives its logit.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klscale.science.arrays import Floats
from klscale.sources.transformers.products import product

TOKENS, VOCABULARY = 2048, 1024
"""Tile shape: as many tokens as a batch on a CPU has, so that the weights are read once; no wider than the cache is
large (on a GPU 4 times both)."""


See = Callable[[slice, int, Tensor, Tensor], None]
"""What looks at tiles: given the rows of the batch, the first token id of the tile, the tile of logits, and the
log-sum-exp of each of its rows."""


@dataclass(frozen=True)
class OutputHead:
    """`weight` (V, H), `bias` (V,) or None; logits = soft_cap(scale x (hidden @ weight.T + bias))."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def logits(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """Logits (T, stop - start) of hidden states (T, H) for a slice of the vocabulary, `widened`."""
        bias = None if self.bias is None else self.bias[start:stop]
        tile = widened(product(hidden, self.weight[start:stop], bias))
        if self.scale != 1.0:
            tile = tile * self.scale
        if self.soft_cap is not None:
            tile = torch.tanh(tile / self.soft_cap) * self.soft_cap
        return tile

    @property
    def width(self) -> int:
        """Columns of a tile."""
        return VOCABULARY * self._factor

    @cached_property
    def _ruled_out(self) -> frozenset[int]:
        """Where tiles begin in which the bias rules out every id, as it may the padding of a vocabulary."""
        if self.bias is None or not (never := self.bias == -torch.inf).any():
            return frozenset()
        tiles = torch.split(never, self.width)
        return frozenset(n * self.width for n, tile in enumerate(tiles) if tile.all())

    @property
    def _factor(self) -> int:
        return 1 if self.weight.device.type == "cpu" else 4

    def log_likelihood(self, hidden: Tensor, target: Tensor, see: See | None = None) -> Tensor:
        """Log-probability (T,) in float32 of `target` (T,) token ids after `hidden` states (T, H). `see` is shown every
        tile."""
        # A model spread over accelerators ends on any of them.
        hidden, target = hidden.to(self.weight.device), target.to(self.weight.device)
        size, rows = TOKENS * self._factor, []
        for first in range(0, len(target), size):
            part = slice(first, min(first + size, len(target)))
            rows.append(self._tile_row(hidden[part], target[part], see and partial(see, part)))
        return torch.cat(rows)

    def _tile_row(self, hidden: Tensor, target: Tensor, see: Callable[[int, Tensor, Tensor], None] | None) -> Tensor:
        size, width = self.weight.shape[0], self.width
        total = target_logit = hidden.new_empty(0, dtype=torch.float32)
        for start in range(0, size, width):
            tile = self.logits(hidden, start, min(start + width, size))
            place = target - start
            inside = (place >= 0) & (place < tile.shape[1])
            found = tile.gather(1, place.clamp(0, tile.shape[1] - 1)[:, None])[:, 0]
            part = tile.logsumexp(dim=1) if start in self._ruled_out else log_sum_exp(tile)
            if see is not None:
                see(start, tile, part)
            if start == 0:
                total, target_logit = part, found
            else:
                total = torch.logaddexp(total, part)
                target_logit = torch.where(inside, found, target_logit)
        return target_logit - total


def widened(logits: Tensor) -> Tensor:
    """In float32, or as they are in float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def in_float64(values: Tensor) -> Floats:
    """The same values in NumPy."""
    return np.asarray(values.cpu().double().numpy())


def log_sum_exp(tile: Tensor) -> Tensor:
    """Over the columns of (T, V), as logit - log_softmax of one column: one pass through the cache, where torch's
    logsumexp takes four. The column is one that counts: the largest of the first row, never a masked one."""
    column = tile[0].argmax()[None]
    return (tile.index_select(1, column) - tile.log_softmax(dim=1).index_select(1, column))[:, 0]


def candidate_heads(model: Any) -> Iterator[OutputHead]:
    """Heads that this model may have, likeliest first: its output embedding, with a scale and a soft cap from its
    configuration: those that are named so, then none, then any other number there. The engine keeps the first that
    reproduces the model's own logits."""
    embedding = model.get_output_embeddings()
    weight = getattr(embedding, "weight", None)
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        return
    bias = getattr(embedding, "bias", None)
    config = model.config.get_text_config().to_dict()
    numbers = {name: float(n) for name, n in config.items() if type(n) in (int, float) and n > 0 and n != 1}
    caps: list[float | None] = [n for name, n in numbers.items() if re.search("logit.*cap", name)]
    scales = [s for name, n in numbers.items() if re.search("logit.*scal|head.*multiplier", name) for s in (n, 1 / n)]
    for scale, cap in itertools.product([*scales, 1.0], [*caps, None]):
        yield OutputHead(weight, bias, scale, cap)
    for number in set(numbers.values()):
        for scale, cap in ((number, None), (1 / number, None), (1.0, number)):
            yield OutputHead(weight, bias, scale, cap)
