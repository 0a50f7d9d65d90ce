"""GGUF files are read right or refused.

transformers' reader leaves out of a file what its tables do not know. Here that is applied where its meaning is known,
and named in an error where it is not. llama.cpp defines the meaning: its loader (`llama-model.cpp`) that of keys and
tensors, its vocabulary (`llama-vocab.cpp`) that of the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from klscale.errors import KlscaleError

READING = "gguf 2"
"""Changes when a file comes to be read otherwise: part of what makes a vector what it is."""
SHAPES = (
    "block_count", "embedding_length", "feed_forward_length", "vocab_size", "expert_count", "shortconv.l_cache",
    "expert_feed_forward_length", "expert_shared_feed_forward_length", "attention.q_lora_rank",
    "attention.kv_lora_rank", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank", "ssm.conv_kernel",
)  # fmt: skip
"""Keys that the shapes of tensors repeat: a model with other values would not take the tensors."""
HARMLESS = ("context_length", "tensor_data_layout", "size_label", "attention.causal", "pooling_type")
"""Keys on which no probability of a text within the window depends, where they have the values checked below."""
VALUES: dict[str, tuple[str, ...]] = {
    "attention.head_count": ("num_attention_heads", "n_head", "num_heads"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.sliding_window": ("sliding_window",),
    "sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "attention.scale": ("attention_multiplier",),
    "attention.clamp_kqv": ("clip_qkv",),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "expert_shared_count": ("n_shared_experts",),
    "leading_dense_block_count": ("first_k_dense_replace",),
    "expert_group_count": ("n_group",),
    "expert_group_used_count": ("topk_group",),
}
"""Keys that change what a model computes, and the names that configurations have for them. What transformers left at
another value is set to that of the file."""
CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "default": DEFAULT,
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "jais", "mpt", "gigachat", "roberta-bpe"), (GPT2,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (r"\p{N}", GPT2)
    ),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe", "pixtral", "lfm2"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "kormo"), (QWEN2,)),
}
"""Regular expressions by `tokenizer.ggml.pre`, each applied to what the one before left."""
IGNORE_MERGES = ("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe", "pixtral", "lfm2")
"""Those whose whole words are looked up before merges are applied."""
BOS_UNLESS_SAID = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2")
"""Byte-pair tokenizers that begin with a BOS where `add_bos_token` is not set."""


@dataclass(frozen=True, eq=False)
class GgufFile:
    """The metadata and the tensor list of one file; no weights."""

    name: str
    fields: Mapping[str, Any]
    tensors: Mapping[str, int]
    """Number of elements of each tensor."""
    n_bytes: int = 0
    """Of all tensors as the file holds them."""

    @classmethod
    def read(cls, path: Path, name: str) -> GgufFile:
        """`name` is how errors call the file. Raises KlscaleError for one part of a split file."""
        import gguf

        reader = gguf.GGUFReader(path)
        long = {"tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}
        fields = {key: None if key in long else field.contents() for key, field in reader.fields.items()}
        tensors = {tensor.name: math.prod(map(int, tensor.shape)) for tensor in reader.tensors}
        if (parts := fields.get("split.count") or 0) > 1:
            why = f"split.count is {parts}: the other tensors are in other files, which are not read."
            raise KlscaleError(f"{name} is one part of a model.", why, "Join them: llama-gguf-split --merge FIRST OUT")
        return cls(name, fields, tensors, sum(int(tensor.n_bytes) for tensor in reader.tensors))

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture", ""))

    @cached_property
    def of_model(self) -> dict[str, Any]:
        """The keys of the architecture, without its name."""
        start = f"{self.architecture}."
        return {key.removeprefix(start): value for key, value in self.fields.items() if key.startswith(start)}

    def refuse(self, key: str, why: str) -> KlscaleError:
        value = self.of_model.get(key, self.fields.get(key))
        where = f"{self.architecture}.{key}" if key in self.of_model else key
        what = f"{self.name}: {where} = {value!r} cannot be applied."
        return KlscaleError(what, why, "Score the model's own directory or hub id instead of the GGUF file.")


# ------------------------------------------------------------------------------------------------------ configuration


def configure(config: Any, file: GgufFile) -> list[str]:
    """Set in a configuration what transformers has left out of the file, and return the keys that were applied.

    Raises KlscaleError for a key that changes what the model computes and that nothing is known of.
    """
    text, applied = config.get_text_config(), list[str]()
    byte_pairs = file.fields.get("tokenizer.ggml.model") == "gpt2"
    if byte_pairs and (file.fields.get("tokenizer.ggml.pre") or "default") not in PRE_TOKENIZERS:
        raise file.refuse("tokenizer.ggml.pre", "How it cuts texts before merges are applied is not known here.")
    width, heads = file.of_model.get("embedding_length", 0), file.of_model.get("attention.head_count")
    if "attention.key_length" not in file.of_model and isinstance(heads, int) and getattr(text, "head_dim", None):
        text.head_dim = int(width) // heads  # transformers takes the rotary dimensions for it
    for key, value in file.of_model.items():
        if key in SHAPES or key.startswith("rope."):
            continue
        if key in HARMLESS:
            if key == "attention.causal" and not value:
                raise file.refuse(key, "The model reads later tokens too: it has no likelihood of a text.")
            continue
        if key not in VALUES:
            raise file.refuse(key, "Nothing is known of this key; the model may compute something else with it.")
        applied += [key] * _set(text, file, key, value)
    _scale_attention(text, file)
    applied += _rope(text, file)
    if "blk.0.attn_q.bias" in file.tensors and getattr(text, "attention_bias", None) is False:
        text.attention_bias = True
        applied.append("attention biases")
    return applied


def _set(config: Any, file: GgufFile, key: str, value: Any) -> bool:
    """Whether a configuration had another value than the file."""
    if isinstance(value, list):
        value = max(value)  # heads by layer, 0 where a layer has no attention
    names = [name for name in VALUES[key] if getattr(config, name, None) is not None or name in config.to_dict()]
    if not names:
        heads = getattr(config, "num_attention_heads", None)
        width = getattr(config, "hidden_size", 0)
        known = {"attention.head_count_kv": heads, "attention.key_length": heads and width // heads,
                 "attention.value_length": heads and width // heads}  # fmt: skip
        if known.get(key) == value or not value:
            return False
        raise file.refuse(key, f"A model of type {config.model_type} has no such setting here.")
    there = getattr(config, names[0])
    if _same(there, value) or (len(names) > 1 and any(_same(getattr(config, name), value) for name in names)):
        return False
    setattr(config, names[0], value or None if there is None or isinstance(there, float) else type(there)(value))
    return True


def _same(there: Any, value: Any) -> bool:
    if not there and not value:
        return True
    return there is not None and math.isclose(float(there), float(value), rel_tol=1e-5)


def _scale_attention(config: Any, file: GgufFile) -> None:
    """Gemma 2 and 3 of 27B divide queries by another number; llama.cpp knows these by their number of layers."""
    if file.architecture in ("gemma2", "gemma3") and hasattr(config, "query_pre_attn_scalar"):
        large = file.of_model.get("block_count") == {"gemma2": 46, "gemma3": 62}[file.architecture]
        heads = config.num_attention_heads
        config.query_pre_attn_scalar = config.hidden_size // heads if large else config.head_dim


def _rope(config: Any, file: GgufFile) -> list[str]:
    """Rotary embeddings: base, dimensions and scaling."""
    keys = {key.removeprefix("rope."): value for key, value in file.of_model.items() if key.startswith("rope.")}
    rope = getattr(config, "rope_parameters", None)
    if not keys:
        return []
    if not rope:
        raise file.refuse(f"rope.{next(iter(keys))}", "The model here has no rotary embeddings that could be set.")
    by_kind = "full_attention" in rope
    full = rope["full_attention"] if by_kind else rope
    applied = []
    base = keys.pop("freq_base", None)
    if base is not None and not _same(full.get("rope_theta"), base):
        full["rope_theta"] = float(base)
        applied.append("rope.freq_base")
    local = keys.pop("freq_base_swa", None)
    if local is not None and not (by_kind and _same(rope["sliding_attention"].get("rope_theta"), local)):
        raise file.refuse("rope.freq_base_swa", "The model here has no such setting.")
    n = keys.pop("dimension_count", None)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    partial = full.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    if n is not None and not _same(head * partial, n):
        if not hasattr(config, "partial_rotary_factor") and "partial_rotary_factor" not in full:
            raise file.refuse("rope.dimension_count", f"The model here turns {head * partial:g} dimensions of a head.")
        full["partial_rotary_factor"] = n / head
        if hasattr(config, "partial_rotary_factor"):
            config.partial_rotary_factor = n / head
        applied.append("rope.dimension_count")
    scaling = {key.removeprefix("scaling."): keys.pop(key) for key in [*keys] if key.startswith("scaling.")}
    for key in keys:
        raise file.refuse(f"rope.{key}", "Nothing is known of this key.")
    kind = scaling.pop("type", "linear" if "factor" in scaling else "none")
    scaling.pop("finetuned", None)
    if kind == "none" or full.get("rope_type") == kind != "default":  # gpt-oss: read by transformers itself
        return applied
    if by_kind and file.architecture != "gemma3":
        raise file.refuse("rope.scaling.type", "It is not known which layers it is meant for.")
    factor, original = float(scaling.pop("factor", 1.0)), scaling.pop("original_context_length", None)
    if kind == "linear":
        more: dict[str, Any] = {}
    elif kind == "yarn":
        more = {"original_max_position_embeddings": int(original or config.max_position_embeddings)}
        original = None
        for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if key in scaling:
                more[name] = float(scaling.pop(key))
        if (attention := scaling.pop("attn_factor", None)) is not None:
            more["attention_factor"] = float(attention) * (0.1 * math.log(factor) + 1.0)
    else:
        raise file.refuse("rope.scaling.type", "Linear scaling and yarn are known.")
    for key in scaling:
        raise file.refuse(f"rope.scaling.{key}", f"It is not known how it changes {kind} scaling.")
    full |= {"rope_type": kind, "factor": factor, **more}
    return [*applied, "rope.scaling"]


# ------------------------------------------------------------------------------------------------------------ tensors


def complete(model: Any, info: Any, file: GgufFile, path: Path) -> list[str]:
    """Put into a loaded model what transformers has left in the file, and return what was; missing output biases of
    attention are 0. Raises KlscaleError where tensors of the file are in no parameter of the model."""
    applied = []
    if "rope_freqs.weight" in file.tensors:
        _divide_frequencies(model, _tensor(path, "rope_freqs.weight"), file)
        applied.append("rope_freqs.weight")
    zero = {name for name in info["missing_keys"] if name.endswith("self_attn.o_proj.bias")}
    if zero and not any(name.endswith("attn_output.bias") for name in file.tensors):
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in zero:
                parameters[name].zero_()
        info["missing_keys"] -= zero
    taken = sum(parameter.numel() for name, parameter in model.named_parameters() if name not in zero)
    there = {name: size for name, size in file.tensors.items() if name != "rope_freqs.weight"}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tied and "output.weight" in there:
        if not np.array_equal(_tensor(path, "output.weight"), _tensor(path, "token_embd.weight")):
            what = f"{file.name}: output.weight is not token_embd.weight, and the model here has one for both."
            raise KlscaleError(what, remedy="Score the model's own directory or hub id instead of the GGUF file.")
        del there["output.weight"]
    if sum(there.values()) != taken:
        raise _dropped(model, file, there, taken)
    return applied


def _dropped(model: Any, file: GgufFile, there: Mapping[str, int], taken: int) -> KlscaleError:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=model.config.to_dict())
    try:
        known = get_gguf_hf_weights_map(model, processor)
    except Exception:  # it only helps to name them
        known = {}
    names = sorted(name for name in there if name not in known)
    why = f"The file has {sum(there.values()):,} weights, the model {taken:,}"
    named = f"; not taken: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names and known else ""
    what = f"{file.name}: the model here does not use all weights of the file."
    return KlscaleError(what, f"{why}{named}.", "Score the model's own directory or hub id instead of the GGUF file.")


def _divide_frequencies(model: Any, factors: Any, file: GgufFile) -> None:
    """Llama 3 scaling: each rotary frequency is divided by a factor of the file."""
    divisor, found = torch.from_numpy(np.array(factors, dtype=np.float32)), 0
    for module in model.modules():
        frequencies = getattr(module, "inv_freq", None)
        if isinstance(frequencies, torch.Tensor):
            if frequencies.shape != divisor.shape:
                raise file.refuse("rope_freqs.weight", f"The model here has {frequencies.numel()} frequencies.")
            for name in ("inv_freq", "original_inv_freq"):
                value = getattr(module, name, None)
                if isinstance(value, torch.Tensor) and not (name != "inv_freq" and value is frequencies):
                    setattr(module, name, value / divisor.to(value.device))
            found += 1
    if not found:
        raise file.refuse("rope_freqs.weight", "The model here has no rotary frequencies that could be set.")


def _tensor(path: Path, name: str) -> Any:
    import gguf

    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    return gguf.dequantize(tensor.data, tensor.tensor_type)


# ---------------------------------------------------------------------------------------------------------- tokenizer


def set_tokenizer(tokenizer: Any, file: GgufFile) -> list[str]:
    """Make a tokenizer that transformers has built cut texts as the file says; returns the keys that were applied."""
    model = file.fields.get("tokenizer.ggml.model")
    made: dict[str, Callable[[Any, GgufFile], list[str]]] = {"gpt2": _byte_pairs, "llama": _sentence_pieces}
    applied = made[model](tokenizer, file) if model in made else []
    return applied + _special_tokens(tokenizer, file)


def _byte_pairs(tokenizer: Any, file: GgufFile) -> list[str]:
    from tokenizers import Regex, pre_tokenizers

    pre = file.fields.get("tokenizer.ggml.pre") or "default"
    backend = tokenizer.backend_tokenizer
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[pre]]
    prefix = bool(file.fields.get("tokenizer.ggml.add_space_prefix", False))
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_of])
    backend.normalizer = None
    backend.model.ignore_merges = pre in IGNORE_MERGES
    return ["tokenizer.ggml.pre"]


def _sentence_pieces(tokenizer: Any, file: GgufFile) -> list[str]:
    from tokenizers import normalizers

    prefix = file.fields.get("tokenizer.ggml.add_space_prefix", True)
    backend = tokenizer.backend_tokenizer
    space = normalizers.Replace(" ", "\u2581")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), space]) if prefix else space
    backend.pre_tokenizer = None
    return ["tokenizer.ggml.add_space_prefix"]


def _special_tokens(tokenizer: Any, file: GgufFile) -> list[str]:
    """BOS in front and EOS behind, as the file says."""
    from tokenizers import processors

    kind = file.fields.get("tokenizer.ggml.model")
    unless_said = kind == "llama" or file.fields.get("tokenizer.ggml.pre") in BOS_UNLESS_SAID
    wanted = {
        "bos": bool(file.fields.get("tokenizer.ggml.add_bos_token", unless_said)),
        "eos": bool(file.fields.get("tokenizer.ggml.add_eos_token", False)),
    }
    ids: dict[str, Any] = {name: file.fields.get(f"tokenizer.ggml.{name}_token_id") for name in wanted}
    if kind not in ("llama", "gpt2"):
        return []
    for name, there in wanted.items():
        if there and ids[name] is None:
            raise file.refuse(f"tokenizer.ggml.add_{name}_token", "The file does not say which token that is.")
    tokens = {name: tokenizer.convert_ids_to_tokens(int(ids[name])) for name, there in wanted.items() if there}
    template = " ".join(filter(None, [tokens.get("bos"), "$A", tokens.get("eos")]))
    special = [(token, int(ids[name])) for name, token in tokens.items()]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return [f"tokenizer.ggml.add_{name}_token" for name in wanted if f"tokenizer.ggml.add_{name}_token" in file.fields]
