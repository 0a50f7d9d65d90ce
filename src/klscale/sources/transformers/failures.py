"""What a user can do about an error of transformers or of the hub."""

from __future__ import annotations

import re

from klscale.errors import KlscaleError
from klscale.inputs.references import ModelRef

METHOD = r"(?i)(?:loading an? (\w+) quantized|required for ([\w-]+) quantization|valid (HQQ) version)"
"""How transformers says that the package of a quantization is missing."""


def first_line(error: BaseException | str) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def failure(ref: ModelRef, what: str, error: Exception) -> KlscaleError:
    """What a user can do about an error of transformers."""
    from huggingface_hub.errors import GatedRepoError

    text, why = str(error), first_line(error)
    remedy = "Check that the directory or the download is whole."
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        what, why = f"{ref.name} is gated.", "Its owner asks for consent before a download."
        remedy = f"Accept the terms at https://huggingface.co/{ref.name}, then `hf auth login`."
    elif (method := re.search(METHOD, text)) is not None:
        what = f"{ref} is quantized by {method[method.lastindex or 0]}, which cannot be read on this machine."
        remedy = "Install that package, or score it where it runs and `klscale import` its log-likelihoods."
    elif "Weights only load failed" in text:
        why = "Its .bin file is a pickle that holds more than tensors, and could run any code: it is not read."
        remedy = "Ask its owner for safetensors."
    elif "trust_remote_code" in text:
        why = "It needs code from its repository, which is never executed."
        remedy = "Score it elsewhere and `klscale import` its log-likelihoods."
    elif "Unrecognized configuration class" in text or "does not recognize this architecture" in text:
        remedy = (
            "Only decoder models of transformers' AutoModelForCausalLM are scored; a newer transformers may know more."
        )
    return KlscaleError(what, why, remedy)
