"""From a pinned reference to a model in memory. Model code from a repository is never executed."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from klscale.errors import InputError, KlscaleError
from klscale.inputs.attributes import attributes_of
from klscale.inputs.references import ATTENTIONS, CACHES, KERNELS, WEIGHTS_ONLY, ModelRef
from klscale.sources.quiet import quiet_transformers
from klscale.sources.transformers import layouts, packed, products, quantization
from klscale.sources.transformers.adapters import require_peft, with_adapter
from klscale.sources.transformers.attention import attention_options, require_attention
from klscale.sources.transformers.failures import failure
from klscale.sources.transformers.files import ResolvedModel, file_of, weight_files
from klscale.sources.transformers.gguf_files import GgufFile, complete, configure, set_tokenizer
from klscale.sources.transformers.gguf_once import read_once
from klscale.sources.transformers.hub import fetch
from klscale.sources.transformers.placement import device_of, placement_of
from klscale.sources.transformers.quantization import Quantization
from klscale.sources.transformers.sizes import size_of, size_of_gguf
from klscale.sources.transformers.tokens import read_tokenizer
from klscale.vectors.sizes import Size

_BUFFER = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|(^|\.)(position_ids|masked_bias|attn_mask)$")
"""Names of tensors that a model computes itself and does not read from a file."""
_MODALITY = re.compile(r"(^|[._])(vision|visual|audio|image|img|mm|multi_modal|multimodal)[._]")
"""Names of tensors that read images or sound."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A causal language model in evaluation mode with its tokenizer. `window`: the longest text in tokens, or None."""

    ref: ModelRef
    model: Any
    tokenizer: Any
    window: int | None
    attributes: dict[str, Any] = field(default_factory=dict)
    quantization: Quantization | None = None
    """Which weights were quantized, here or before the model was saved."""
    unused_tensors: tuple[str, ...] = ()
    """Tensors of its files that the model does not take: buffers that it computes itself, parts for images."""
    tokenizer_read: Mapping[str, Any] = field(default_factory=dict)
    """What the tokenizer was read from, and the class that its files name."""
    applied: tuple[str, ...] = ()
    """Keys and tensors of a GGUF file that transformers leaves out."""
    size: Size | None = None
    """How large its weights are; None where that is not known."""
    cache_bits: int | None = None
    """Bits of the keys and values of attention; None as they are."""
    offload: tempfile.TemporaryDirectory[str] | None = None
    """For a model larger than memory, whose layers each forward pass reads again: a folder with layers that are not in
    its own files. It is deleted with the model."""


def load(
    resolved: ResolvedModel,
    device: str | None = None,
    *,
    alone: threading.Event | None = None,
    tokenizer_reader: Callable[[ResolvedModel, dict[str, Any]], tuple[Any, dict[str, Any]]] = read_tokenizer,
) -> LoadedModel:
    """The model in evaluation mode and in the reference's dtype: on the CPU, or, where it does not fit there or on
    `device`, spread over accelerators, CPU and disk, from where each forward pass brings its layers in.

    `tokenizer_reader` does as `read_tokenizer`. `alone` is set when no other model is in memory: one that does not fit
    beside another waits for that.
    Raises KlscaleError where the files are not a causal language model, or do not hold all of its weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    ref, base = resolved.ref, resolved.base or resolved
    if resolved.base is not None:
        require_peft(ref)
    quantization.require(ref)
    options: dict[str, Any] = base.hub.options if base.hub else {"local_files_only": True}
    if base.ref.file:
        options["gguf_file"] = base.ref.file
    what = f"{base.ref} cannot be fetched."
    try:
        with quiet_transformers(), read_once() if base.ref.file else contextlib.nullcontext():
            if base.hub:
                fetch(base.ref, base.hub, base.ref.file or "config.json")
            what = f"The configuration of {base.ref} cannot be loaded."
            config = AutoConfig.from_pretrained(base.location, trust_remote_code=False, **options)
            saved = config.dtype or torch.float32  # of the files
            file = GgufFile.read(file_of(base), str(base.ref)) if base.ref.file else None
            applied = configure(config, file) if file is not None else []
            _refuse_kernels(config, base.ref)
            _refuse_others(config, base.ref)
            _refuse_quantized(config, resolved)
            saved_so = getattr(config, "quantization_config", None)
            codes: packed.Packed | None = None
            if saved_so is not None and quantization.method_of(saved_so) in layouts.LAYOUTS:
                codes = packed.read(str(base.ref), weight_files(base), saved_so)
                del config.quantization_config  # what transformers is given are plain weights
            what = f"The tokenizer of {ref} cannot be loaded."
            tokenizer, tokenizer_read = tokenizer_reader(resolved, options)
            if not isinstance(tokenizer.model_max_length, int | float):
                raise ValueError(f"model_max_length is {tokenizer.model_max_length!r:.40}, which is no number")
            if file is not None:
                applied += set_tokenizer(tokenizer, file)
            what = f"{base.ref} cannot be loaded as a causal language model."
            placement, folder = placement_of(config, ref, device, alone)
            if placement:
                _refuse_on_disk(resolved, codes)
            if ref.quantization in KERNELS:
                options |= quantization.kernel_options(ref, device_of(device))
            attention = attention_options(config, ref, device)
            # Building a model in half precision changes torch's default dtype in all threads: never beside another.
            if alone is not None and ref.dtype != "float32":
                alone.wait()
            reader = AutoModelForCausalLM
            options["pretrained_model_name_or_path"] = base.location
            if codes is not None:
                with torch.device("meta"):
                    empty = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
                reader, config = type(empty), empty.config
                options = {"pretrained_model_name_or_path": None, "state_dict": codes.tensors}
            model, info = reader.from_pretrained(
                config=config,
                dtype=getattr(torch, ref.dtype),
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are looked at below, and refused
                **options,
                **placement,
                **attention,
            )
            if file is not None:
                applied += complete(model, info, file, file_of(base))
    except KlscaleError:
        raise
    except Exception as error:  # damaged files fail in any way
        raise failure(ref, what, error) from error
    require_attention(model, ref)
    unused = _refuse_incomplete(model, info, resolved) + (codes.left_out if codes else ())
    if resolved.base is not None:
        model = with_adapter(model, resolved)
    model.eval()
    quantized = _quantized(model, ref, device, file, codes, saved_so)
    products.prepare(model)
    attributes = _attributes(model, resolved, quantized)
    if file is not None:
        size: Size | None = size_of_gguf(file.tensors, file.n_bytes, file_of(base))
    else:
        size = size_of(model, weight_files(base), saved, quantized)
    window, cache_bits = window_of(model.config.get_text_config()), CACHES.get(ref.quantization or "")
    return LoadedModel(
        ref, model, tokenizer, window, attributes, quantized, unused, tokenizer_read, tuple(applied), size, cache_bits,
        folder,
    )  # fmt: skip


def _quantized(
    model: Any, ref: ModelRef, device: str | None, file: GgufFile | None, codes: packed.Packed | None, saved_so: Any
) -> Quantization | None:
    """How its weights are quantized: those of its files, or, where the reference asks for it, here and now."""
    if file is not None:
        return quantization.gguf(file.fields.get("general.file_type"))
    if ref.quantization in WEIGHTS_ONLY:
        return quantization.quantize_weights(model, ref, device_of(device))
    return codes.quantization if codes is not None else quantization.loaded_so(model, ref, saved_so)


def _attributes(model: Any, resolved: ResolvedModel, quantized: Quantization | None) -> dict[str, Any]:
    """What its files, the hub and the loaded model say of it."""
    ref, kind = resolved.ref, model.config.get_text_config().model_type
    known = {"type": kind, "parameters": model.num_parameters(), "step": _trainer_step(resolved)}
    if resolved.base is not None:
        known["parent"] = str(resolved.base.ref)
    elif resolved.hub is not None:
        known["parent"] = resolved.hub.parent
    kinds = [] if quantized is None else [quantized.kind]
    if ref.quantization in CACHES or ref.quantization in ATTENTIONS:
        kinds.append(ref.quantization)
    if kinds:
        known["quantization"] = " ".join(kinds)
    return attributes_of(ref, known)


def _refuse_incomplete(model: Any, info: Any, resolved: ResolvedModel) -> tuple[str, ...]:
    """Tensors of the files that the model rightly does not take, by name. Raises KlscaleError for any other that it
    does not take, and for one that the files lack: transformers makes that up at random."""
    ref, remedy = resolved.ref, "Check that the files are whole and that config.json belongs to them."
    if missing := sorted(info["missing_keys"]):
        why = f"{len(missing)} tensors are missing ({', '.join(missing[:3])}...) and would be random."
        raise KlscaleError(f"{ref}: the weights do not fit the model.", why, remedy)
    if differing := sorted(info["mismatched_keys"]):
        name, there, expected = differing[0]
        why = f"{name} is {tuple(there)} in the files and {tuple(expected)} in the model ({len(differing)} such)."
        raise KlscaleError(f"{ref}: the weights do not fit the model.", why, remedy)
    other = model.config.to_dict().keys() & {"vision_config", "audio_config"}
    unused = sorted(info["unexpected_keys"])
    if wrong := [name for name in unused if not (_BUFFER.search(name) or (other and _MODALITY.search(name)))]:
        why = f"The model has no place for {len(wrong)} tensors ({', '.join(wrong[:3])}{', ...' * (len(wrong) > 3)})."
        what = f"{ref}: the files hold weights that the model does not use."
        raise KlscaleError(what, f"{why} Its values would be another model's.", remedy)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied and head is not None and head.weight.shape == embedding.weight.shape:
        same = head.weight is embedding.weight or torch.equal(head.weight, embedding.weight)
        if not same and head.weight.device.type != "meta":
            why = "config.json ties the output head to the embeddings; the files hold a head with other values."
            raise KlscaleError(f"{ref}: the weights do not fit the model.", why, "Set tie_word_embeddings to false.")
    return tuple(unused)


def _refuse_kernels(config: Any, ref: ModelRef) -> None:
    """A configuration can name attention code of another repository, which would be fetched and run."""
    asked = getattr(config, "_attn_implementation", None)
    if isinstance(asked, str) and "/" in asked:
        raise KlscaleError(
            f"{ref} asks for the attention code {asked!r}.",
            "Code from a repository is never executed.",
            "Take `attn_implementation` out of its config.json.",
        )


def _refuse_quantized(config: Any, resolved: ResolvedModel) -> None:
    """What is quantized is not quantized once more; and an adapter is not merged into what runs through a kernel."""
    ref, saved_so = resolved.ref, getattr(config, "quantization_config", None) is not None
    if ref.quantization in (*WEIGHTS_ONLY, *KERNELS) and (saved_so or ref.file):
        raise InputError(
            f"{ref}: this model is quantized already.",
            "Its files hold quantized weights.",
            f"Score {ref.name} as it is.",
        )
    if resolved.base is not None and (saved_so or ref.quantization in KERNELS):
        what = f"The adapter {ref} cannot be merged into quantized weights."
        raise InputError(what, "They are held as codes, not as numbers.", "Take the unquantized base model.")
    if saved_so:
        _refuse_unread(config.quantization_config, ref)


def _refuse_on_disk(resolved: ResolvedModel, codes: packed.Packed | None) -> None:
    """Of a model larger than memory the layers stay on disk as they are, so that none of them can be changed."""
    ref, base = resolved.ref, resolved.base or resolved
    if resolved.base or codes or ref.quantization in (*WEIGHTS_ONLY, *KERNELS):
        done = "dequantized" if codes else "quantized" if ref.quantization else "merged with the adapter"
        raise KlscaleError(
            f"{base.ref} does not fit into memory, so that it cannot be {done}.",
            "Of a model larger than memory the layers stay on disk as they are.",
            f"Use %bfloat16, or score {ref} on a larger machine.",
        )


def _refuse_unread(config: Any, ref: ModelRef) -> None:
    """Only formats whose numbers are tested are read; transformers reads what it does not know as plain numbers."""
    if not isinstance(config, dict) and not hasattr(config, "to_dict"):
        raise KlscaleError(f"{ref}: the quantization_config of its config.json is no table.")
    method = quantization.method_of(config)
    if method not in (*layouts.LAYOUTS, *quantization.READ_BY_TRANSFORMERS):
        needs = quantization.NEEDS.get(method, "a library of its own")
        raise KlscaleError(
            f"{ref} is quantized by {method!r:.40}, which is not read here.",
            f"It needs {needs}.",
            "Score it where that runs and `klscale import` its log-likelihoods.",
        )
    if method == "mxfp4" and isinstance(config, dict):
        config["dequantize"] = True  # on every device; kernels would be fetched from the hub


def _refuse_others(config: Any, ref: ModelRef) -> None:
    """Only what transformers knows as a decoder has log-likelihoods of texts."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    remedy = "Only decoder models of transformers' AutoModelForCausalLM can be scored."
    if getattr(config, "is_encoder_decoder", False):
        what = f"{ref} is an encoder-decoder model ({config.model_type})."
        raise KlscaleError(what, "It gives the probability of one text after another, not of a text.", remedy)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise KlscaleError(f"{ref} is not a causal language model, but of the kind {config.model_type!r}.", "", remedy)


def window_of(config: Any) -> int | None:
    """The longest input that positions are defined for, or None where there is no such limit."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(limit := getattr(config, name, None), int) and limit > 0:
            return limit
    return None


def _trainer_step(resolved: ResolvedModel) -> int | None:
    """Optimisation steps of a checkpoint that the transformers Trainer saved."""
    state = resolved.ref.path / "trainer_state.json" if resolved.ref.path else None
    if state is None or not state.is_file():
        return None
    with contextlib.suppress(ValueError, AttributeError):
        step = json.loads(state.read_text(encoding="utf-8")).get("global_step")
        return step if isinstance(step, int) else None
    return None
