"""What stands in for the package vllm: the part of its offline interface that klscale uses, with its types and its
refusals (vLLM 0.33), over a plain forward pass of transformers. `faults` change what comes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypedDict

import numpy as np

__version__ = "0.33.0"
faults: set[str] = set()
asked: list[dict[str, Any]] = []
"""The arguments of each model."""
given: list[int] = []
"""How many prompts each call held."""


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


@dataclass
class SamplingParams:
    max_tokens: int | None = 16
    temperature: float = 1.0
    prompt_logprobs: int | None = None
    prompt_logprob_token_ids: Any = None
    prompt_logprob_start: int | None = None
    flat_logprobs: bool = False
    detokenize: bool = True

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError("max_tokens must be at least 1")
        if self.prompt_logprob_start is not None and self.prompt_logprob_token_ids is None:
            raise ValueError("prompt_logprob_start requires prompt_logprob_token_ids.")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class FlatLogprobs(Sequence[Any]):
    """Positions as numbers in lists; the first holds nothing."""

    def __init__(self) -> None:
        self.starts, self.token_ids, self.logprobs, self.ranks = [0, 0], list[int](), list[float](), list[int]()

    def add(self, ids: Sequence[int], values: Sequence[float], ranks: Sequence[int]) -> None:
        self.token_ids += ids
        self.logprobs += values
        self.ranks += ranks
        self.starts.append(len(self.token_ids))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, n: Any) -> dict[int, Logprob]:
        places = range(self.starts[n], self.starts[n + 1])
        return {self.token_ids[i]: Logprob(self.logprobs[i], self.ranks[i]) for i in places}

    def __iter__(self) -> Iterator[dict[int, Logprob]]:
        return (self[n] for n in range(len(self)))


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    prompt_logprobs: FlatLogprobs | None
    prompt_token_id_logprobs: Any
    finished: bool = True


class LLM:
    def __init__(
        self, model: str, *, revision: str | None, skip_tokenizer_init: bool, trust_remote_code: bool, load_format: str,
        dtype: str, kv_cache_dtype: str, max_model_len: int | None, tensor_parallel_size: int,
        enable_prefix_caching: bool, logprobs_mode: str, seed: int,
    ) -> None:  # fmt: skip
        import torch
        from transformers import AutoModelForCausalLM

        asked.append({name: value for name, value in locals().items() if name not in ("self", "torch")})
        if "no memory" in faults:
            raise ValueError("No available memory for the cache blocks.")
        chosen = torch.float32 if dtype == "auto" else getattr(torch, dtype)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=chosen)
        config = self.model.config
        self.vocabulary = int(config.vocab_size)
        self.model_config = SimpleNamespace(
            max_model_len=max_model_len or config.max_position_embeddings,
            dtype=chosen,
            hf_config=config,
            get_vocab_size=lambda: self.vocabulary,
        )

    def generate(self, prompts: Sequence[TokensPrompt], options: Sequence[SamplingParams], *, use_tqdm: bool) -> Any:
        assert len(prompts) == len(options)
        assert not use_tqdm
        given.append(len(prompts))
        return [self.answer(prompt["prompt_token_ids"], how) for prompt, how in zip(prompts, options, strict=True)]

    def answer(self, ids: list[int], how: SamplingParams) -> RequestOutput:
        import torch

        if len(ids) >= self.model_config.max_model_len:
            raise ValueError("The prompt plus the number of requested output tokens is longer than the model length")
        if how.detokenize:
            raise ValueError("there is no tokenizer")
        with torch.inference_mode():
            logits = self.model(torch.tensor([ids])).logits[0].double()
        log_p = torch.log_softmax(logits, dim=-1).numpy()
        told = FlatLogprobs()
        for n, token in enumerate(ids[1:]):
            row = log_p[n]
            best = np.argsort(-row)[: how.prompt_logprobs].tolist()
            both = [token, *best]  # the prompt's own token first, and once more among the best
            told.add(both, [float(row[i]) for i in both], [int((row >= row[i]).sum()) for i in both])
        scores, wanted = None, how.prompt_logprob_token_ids
        if wanted is not None:
            if "no chosen ids" in faults:
                raise ValueError("prompt_logprob_token_ids requires the V2 model runner")
            start = how.prompt_logprob_start or 0
            if wanted.ndim != 2 or len(wanted) != len(ids) - 1 - start or wanted.max() >= self.vocabulary:
                raise ValueError("prompt_logprob_token_ids")
            scores = np.take_along_axis(log_p[start:-1], np.maximum(wanted, 0), axis=1).astype(np.float32)
            scores[wanted < 0] = -np.inf
        if "other tokens" in faults:
            ids = [*ids[1:], 0]
        return RequestOutput(ids, told, scores)
