"""Long texts in pieces, for models whose attention over a whole text holds a matrix of tokens by tokens.

transformers' sdpa attention holds none for a causal model. For a sliding window it makes one, as a mask; `eager`
attention (soft caps, ALiBi) holds one for each head. In pieces, each behind the keys and values of those before, the
matrix is piece by text, and a layer with a sliding window keeps its window only.
"""

from __future__ import annotations

import math
from typing import Any

PIECE = 1024
"""Tokens of a piece. The matrix of a text of 128k tokens then has 2**27 elements, and half a gigabyte in float32."""


def empty_cache(config: Any) -> Any:
    """A cache of transformers for the layers of a model, in which those with a sliding window keep that alone."""
    from transformers import DynamicCache

    return DynamicCache(config=config)


def windows_of(config: Any) -> list[int]:
    """Tokens of the sliding window of each layer that has one."""
    try:
        layers = empty_cache(config).layers
    except Exception:  # a model without a cache of keys and values
        return []
    return [int(layer.sliding_window) for layer in layers if hasattr(layer, "sliding_window")]


def longest_without_matrix(config: Any) -> float:
    """Tokens of the longest text over which a model's attention holds no matrix of tokens by tokens, or only one of two
    pieces by two pieces. Infinite for attention that never does."""
    attention = str(config.get_text_config()._attn_implementation)
    if "flash" in attention:
        return math.inf
    shortest = min(windows_of(config), default=math.inf) if attention == "sdpa" else 0
    return max(shortest, 2 * PIECE)
