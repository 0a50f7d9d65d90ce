"""Attention as one of transformers' implementations computes it: asked for by name, and never another in its place."""

from __future__ import annotations

from typing import Any

from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ATTENTIONS, ModelRef
from klscale.sources.transformers.placement import device_of


def attention_options(config: Any, ref: ModelRef, device: str | None) -> dict[str, Any]:
    """How transformers is asked for the attention of a reference; empty where it names none.

    Raises KlscaleError for what this model or this machine cannot compute. transformers would take another
    implementation in its place, or code from the hub.
    """
    if ref.quantization not in ATTENTIONS:
        return {}
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import is_flash_attn_2_available

    name = ATTENTIONS[ref.quantization]
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    others = ", ".join(f"+{kind}" for kind in ATTENTIONS if kind != ref.quantization)
    what, remedy = f"{ref} cannot be computed.", f"Take another: {others}."
    known = {"sdpa": model._supports_sdpa, "flash_attention_2": model._supports_flash_attn}
    if not (model._can_set_attn_implementation() and known.get(name, True)):
        raise KlscaleError(what, f"transformers has no {name} attention for {config.model_type}.", remedy)
    if name == "flash_attention_2":
        if device_of(device).type != "cuda" or not is_flash_attn_2_available():
            raise KlscaleError(what, "It needs the package flash-attn, and a GPU on which that runs.", remedy)
        if ref.dtype == "float32":
            raise InputError(what, "Flash attention computes in half precision.", f"Write {ref}%bfloat16.")
    return {"attn_implementation": name}


def require_attention(model: Any, ref: ModelRef) -> None:
    """Raises KlscaleError for a model that does not have the attention which its reference asks for."""
    if ref.quantization not in ATTENTIONS:
        return
    config, name = model.config.get_text_config(), ATTENTIONS[ref.quantization]
    if config._attn_implementation != name:
        why = f"transformers took {config._attn_implementation} in the place of {name}."
        raise KlscaleError(f"{ref} cannot be computed.", why)
    if not any("attention" in type(module).__name__.lower() for module in model.modules()):
        raise KlscaleError(f"{ref} cannot be computed.", "The model has no attention.", f"Score {ref.name}.")
