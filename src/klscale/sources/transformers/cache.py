"""Keys and values as they come back from a quantized key-value cache, in an ordinary forward pass over whole texts.

transformers' attention hands keys and values to a cache, after rotary embeddings, and goes on with what that returns:
here, what 8 or 4 bits leave of them. So each token attends to rounded keys and values of every token up to itself, as
a server computes that reads all of them from its cache (llama.cpp, vLLM). Groups are those of transformers'
QuantizedCache with HQQ along a head (`axis=1`), but its latest 128 tokens are not left unrounded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from klscale.errors import KlscaleError

GROUP = 64
"""Neighbouring numbers of one head of one token that share a scale and a least value; a whole head where 64 does not
divide it."""
CHECKED = 1e-4
"""Largest relative difference of logits that a cache without rounding may make."""


def rounded(states: Tensor, bits: int) -> Tensor:
    """Keys or values (batch, heads, tokens, head) after quantization: in each group to 2**bits equal steps from its
    least to its largest value."""
    head = states.shape[-1]
    groups = states.float().reshape(*states.shape[:-1], -1, GROUP if head % GROUP == 0 else head)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    codes = ((groups - low) / step.where(step > 0, 1)).round()
    back: Tensor = codes * step + low
    return back.reshape(states.shape).to(states.dtype)


def cache_of(model: Any, bits: int | None) -> Any:
    """An empty cache of transformers that returns keys and values rounded, for one forward pass, and keeps nothing.
    None: as they are."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)

    def update(keys: Tensor, values: Tensor, *_arguments: Any, **_keywords: Any) -> tuple[Tensor, Tensor]:
        cache.n_layers = getattr(cache, "n_layers", 0) + 1
        return (keys, values) if bits is None else (rounded(keys, bits), rounded(values, bits))

    cache.update = update
    return cache


@torch.inference_mode()
def require_cache(model: Any, ids: Tensor, ref: Any) -> None:
    """Raises KlscaleError for a model whose keys and values do not go through a cache of transformers, or that computes
    something else with one: by the logits of one text `ids` (n,), with a cache that changes nothing."""
    plain = model(input_ids=ids[None], use_cache=False).logits
    cache = cache_of(model, None)
    try:
        again = model(input_ids=ids[None], past_key_values=cache, use_cache=True).logits
    except Exception as error:  # whatever a model does with a cache that is not its own
        why = f"It does not take a cache of keys and values ({type(error).__name__})."
        raise KlscaleError(f"{ref} cannot be scored with a quantized cache.", why) from error
    if not getattr(cache, "n_layers", 0):
        raise KlscaleError(f"{ref} cannot be scored with a quantized cache.", "It keeps no keys and values.")
    if not (again - plain).abs().max() <= CHECKED * plain[plain.isfinite()].abs().max():
        why = "With a cache that rounds nothing its logits are others."
        raise KlscaleError(f"{ref} cannot be scored with a quantized cache.", why)
