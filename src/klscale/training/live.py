"""A model that is being trained, evaluated without any change to the run."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from klscale.errors import KlscaleError
from klscale.inputs.references import DTYPES, ModelRef
from klscale.inputs.texts import TextSet
from klscale.sources.source import Pinned, ReaderOptions
from klscale.sources.tokens import Tokens
from klscale.sources.transformers.load import LoadedModel, window_of
from klscale.sources.transformers.quantization import loaded_so
from klscale.sources.transformers.source import Transformers, TransformersReader
from klscale.sources.transformers.tokens import tokenize


@contextlib.contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Within, the model is in evaluation mode, in its own dtype (autocast is off), and not compiled.

    Afterwards everything is restored: the mode, attributes and buffers of each module, and the random states of Python,
    NumPy and torch. Rotary embeddings that stretch, for example, keep the longest input in buffers.
    """
    kept = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the state that others use)
    devices = [model.device] if model.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.autocast(model.device.type, enabled=False),
        torch.compiler.set_stance("force_eager"),
    ):
        try:
            for module, attributes, _ in kept:
                if "_original_forward" in attributes:  # accelerate has put autocast around it
                    module.forward = attributes["_original_forward"]
            model.eval()
            yield
        finally:
            for module, attributes, buffers in kept:
                for name in vars(module).keys() - attributes.keys():
                    del vars(module)[name]
                vars(module).update(attributes)
                module._buffers.clear()
                module._buffers.update(buffers)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def live_tokens(tokenizer: Any, texts: TextSet) -> Tokens:
    """The tokens of all texts by the tokenizer of a run. A copy of it is used: a call changes the truncation and
    padding of a fast tokenizer."""
    return tokenize(copy.deepcopy(tokenizer), texts)


def live_reader(
    model: Any, ref: ModelRef, identity: str, tokens: Tokens, batch_tokens: int | None = None
) -> TransformersReader:
    """A reader of a live model, for texts with these `tokens`, under this reference and identity. Each measurement
    needs a new reader: it checks its output head once, against the model at that time."""
    config = model.config.get_text_config()
    known = {"type": config.model_type, "parameters": model.num_parameters()}
    loaded = LoadedModel(ref, model, None, window_of(config), known, loaded_so(model, ref))
    options = ReaderOptions(str(model.device), batch_tokens)
    reader = TransformersReader(Transformers(), Pinned(ref, identity), options, loaded, lambda *_: tokens)
    # The layer of an adapter computes more than a product with its weight.
    reader.engine.own_logits = not isinstance(model.get_output_embeddings(), torch.nn.Linear)
    return reader


def require_scorable(model: Any) -> None:
    """Raises KlscaleError for a model that cannot be scored while it trains: it is no model of transformers, it is
    sharded over processes, no reference has its dtype, or evaluation changes it."""
    if not hasattr(model, "get_output_embeddings"):
        kind = type(model).__name__
        raise KlscaleError(f"{kind} is not a model of transformers.", remedy="Only causal language models are scored.")
    if (by := _sharded_by(model)) is not None:
        raise KlscaleError(
            f"A model that {by} has sharded cannot be scored while it trains.",
            "No process holds all of its weights, and gathering them would change the run's memory and timing.",
            "Save checkpoints and score those: klscale score RUN/checkpoint-500 ...",
        )
    if (dtype := str(model.dtype).removeprefix("torch.")) not in DTYPES:
        raise KlscaleError(f"A model in {dtype} cannot be scored.", remedy=f"Train in one of {', '.join(DTYPES)}.")
    if getattr(model.config, "rescale_every", 0):
        raise KlscaleError(
            "This model would change its weights whenever it is scored.",
            f"RWKV rescales them for evaluation (rescale_every={model.config.rescale_every}).",
            "Set model.config.rescale_every = 0: only float16 needs it.",
        )


def _sharded_by(model: Any) -> str | None:
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return "DeepSpeed ZeRO-3"
    if not torch.distributed.is_available():
        return None
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    wrapped = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    in_pieces = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    return "FSDP or tensor parallelism" if wrapped or in_pieces else None
