"""Adapters: files beside a base model, merged into its weights by peft."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from klscale.errors import KlscaleError
from klscale.inputs.references import ModelRef
from klscale.sources.transformers.failures import first_line
from klscale.sources.transformers.files import ResolvedModel
from klscale.sources.transformers.hub import ADAPTER_FILES, fetch


def require_peft(ref: ModelRef) -> Any:
    try:
        import peft
    except ImportError as error:
        raise KlscaleError(
            f"{ref} is an adapter.",
            "Adapters are applied by the package peft, which is not here.",
            "pip install 'klscale[lora]'",
        ) from error
    return peft


def _adapter_folder(resolved: ResolvedModel) -> Path:
    """The directory with the files of an adapter; files of the hub are fetched."""
    if resolved.hub is None:
        return Path(resolved.location)
    names = sorted(resolved.hub.files.intersection(ADAPTER_FILES))
    return [fetch(resolved.ref, resolved.hub, name) for name in names][-1].parent


def tokenizer_of(resolved: ResolvedModel) -> str:
    """Where the tokenizer is: an adapter may have its own, else the base model's is used."""
    if resolved.base is None:
        return resolved.location
    own = _adapter_folder(resolved)
    return str(own) if (own / "tokenizer_config.json").is_file() else resolved.base.location


def with_adapter(model: Any, resolved: ResolvedModel) -> Any:
    """The model with its adapter merged into the weights, in their dtype."""
    peft, what = require_peft(resolved.ref), f"The adapter {resolved.ref} cannot be merged into {resolved.base}."
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = peft.PeftModel.from_pretrained(model, str(_adapter_folder(resolved)), torch_device="cpu")
        merged = model.merge_and_unload(safe_merge=True)
    except Exception as error:  # damaged files fail in any way
        remedy = "Adapters that change weights (LoRA and its kin) can be; prompts and prefixes cannot."
        raise KlscaleError(what, first_line(error), remedy) from error
    if incomplete := [str(warning.message) for warning in said if "missing adapter keys" in str(warning.message)]:
        remedy = "Check that the files are whole and that the adapter belongs to this model."
        raise KlscaleError(what, first_line(incomplete[0]), remedy)
    return merged
