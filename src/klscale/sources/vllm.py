"""vLLM as a source: models as its offline engine computes them, with its own kernels.

    klscale drift org/model vllm://org/model --texts my.jsonl

An address is a hub id or a directory, with a revision where wanted: `vllm://EleutherAI/pythia-410m@step1000`. The dtype
is the one that vLLM takes by itself, or `%bfloat16`. Options may follow a `?`, separated by `&`, with vLLM's names:

    kv_cache_dtype=fp8        the type of the key-value cache
    max_model_len=8192        the longest text in tokens, where memory is short; the model's own window if not given
    tensor_parallel_size=2    over how many GPUs the model is spread

Texts become tokens here, as for transformers; vLLM is given token ids. It reads safetensors alone, and executes no code
from repositories.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.errors import InputError, KlscaleError
from klscale.inputs.attributes import attributes_of
from klscale.inputs.references import DTYPES, ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats, Integers
from klscale.sources.source import (
    NOTHING_DRAWN,
    REPEAT_RUNS,
    RESPONSES,
    SAMPLED_TOKENS,
    Pinned,
    Reader,
    ReaderOptions,
    RepeatRuns,
    Source,
    options_of,
    versions,
    within_window,
)
from klscale.sources.tokens import Segment, Tokens, segments_of
from klscale.sources.transformers.failures import failure, first_line
from klscale.sources.transformers.files import ResolvedModel, bytes_in_memory, resolve, with_chat_template
from klscale.sources.transformers.hub import Hub
from klscale.sources.transformers.prompts import template_record
from klscale.sources.transformers.tokens import TokenCache, read_tokenizer
from klscale.vectors.scores import Scores

Ids = NDArray[np.int32]
BLOCK, FEW = 2**17, 2**11
"""Tokens that vLLM is given at a time, to be batched as it likes; and for repeat runs in batches of another shape."""
UNVERIFIED = (
    "vLLM as a source was written against its documented interface, and has not run on a GPU yet.\n"
    "Compare it with the same model in transformers before you trust it: klscale drift."
)


@dataclass(frozen=True)
class Address:
    """What a reference asks for: the `model`, and how vLLM runs it. What is 0 is vLLM's own choice."""

    model: ModelRef
    kv_cache_dtype: str = "auto"
    max_model_len: int = 0
    tensor_parallel_size: int = 1

    @classmethod
    def of(cls, ref: ModelRef) -> Address:
        """From `vllm://NAME[@REVISION][?OPTION=VALUE]`. Raises InputError for another option, and for a value that is
        no number where one is needed."""
        name, _, query = ref.name.removeprefix("vllm://").partition("?")
        model = ModelRef.parse(name)
        if model.file is not None or model.layer is not None:
            raise InputError(f"{ref}: vLLM reads whole models.", remedy=f"Write vllm://{model.name}.")
        found: dict[str, Any] = {}
        numbers = ("max_model_len", "tensor_parallel_size")
        known, example = ("kv_cache_dtype", *numbers), "Write vllm://NAME?max_model_len=8192."
        for option, value in options_of(query, known, ref, example).items():
            if option in numbers and not (value.isascii() and value.isdigit() and 0 < int(value) < 2**31):
                raise InputError(f"{ref}: {option}={value} is no whole number above 0.")
            found[option] = int(value) if option in numbers else value
        return cls(model, **found)


@dataclass(frozen=True)
class PinnedVllm(Pinned):
    """A pinned model of vLLM, with the files that it is read from."""

    model: ResolvedModel

    @property
    def weights(self) -> list[str]:
        return self.model.weights

    @property
    def files(self) -> str:
        return self.model.files


class Vllm(Source):
    """Causal language models, as vLLM computes them."""

    name = "vllm"
    dtypes = DTYPES
    capabilities = frozenset({REPEAT_RUNS, RESPONSES, SAMPLED_TOKENS})

    def __init__(self, progress: Progress = SILENT) -> None:
        super().__init__(progress)
        self.hub, self.tokenized = Hub(progress), TokenCache()
        self.noted = False
        """Whether it was said that this source is unverified."""

    def pin(self, ref: ModelRef) -> PinnedVllm:
        address, engine = Address.of(ref), _engine(ref)
        model = resolve(address.model, self.hub)
        if model.base is not None:
            what, remedy = f"{ref} is an adapter, which this source does not read.", "Merge it into its model."
            raise InputError(what, remedy=remedy)
        return PinnedVllm(ref, f"vllm {engine.__version__} cache {address.kv_cache_dtype} {model.identity}", model)

    def with_chat_template(self, pinned: PinnedVllm) -> PinnedVllm:
        model = with_chat_template(pinned.model)
        return replace(pinned, identity=pinned.identity.replace(pinned.model.identity, model.identity), model=model)

    def bytes_in_memory(self, pinned: PinnedVllm) -> int | None:
        return bytes_in_memory(pinned.model)

    def open(
        self, pinned: PinnedVllm, options: ReaderOptions = ReaderOptions(), *, alone: threading.Event | None = None
    ) -> VllmReader:
        if alone is not None:
            alone.wait()  # it takes nearly all of a GPU's memory
        return VllmReader(self, pinned, options)

    def prepare(self, options: ReaderOptions) -> None:
        if options.device is not None:
            why = "Its installation is for one kind of device, which it uses."
            raise InputError(f"--device {options.device}: vLLM chooses the device.", why, "Leave --device out.")

    def is_here(self, ref: ModelRef) -> bool:
        path = Address.of(ref).model.path
        return path is not None and path.is_dir()

    def revisions(self, name: str) -> list[str]:
        return self.hub.revisions(name.removeprefix("vllm://"))


class VllmReader(Reader):
    """Reads texts with one model."""

    source: Vllm
    draws_tokens = False

    def __init__(self, source: Vllm, pinned: PinnedVllm, options: ReaderOptions) -> None:
        super().__init__(source, pinned, options)
        ref, hub = pinned.ref, pinned.model.hub
        what = f"The tokenizer of {ref} cannot be loaded."
        try:
            told: dict[str, Any] = hub.options if hub else {"local_files_only": True}
            self.tokenizer, self._tokenizer_read = read_tokenizer(pinned.model, told)
            what = f"{ref} cannot be loaded by vLLM."
            self._model = _load(pinned, options)
        except KlscaleError:
            raise
        except Exception as error:  # damaged files, memory, devices
            raise failure(ref, what, error) from error
        config = self._model.model_config
        self.window = int(config.max_model_len) - 1  # it wants room for one token behind a text
        self._n_vocabulary = int(config.get_vocab_size())
        self.dtype = str(config.dtype).removeprefix("torch.")
        self.device = "vllm"
        self.attributes = attributes_of(pinned.model.ref, {"type": getattr(config.hf_config, "model_type", None)})
        self._without_ids = False
        if SAMPLED_TOKENS in options.parts and not self._gives_chosen_ids():
            self._without_ids = True
            self.options = replace(options, parts=options.parts - {SAMPLED_TOKENS})

    def tokens(self, texts: TextSet) -> Tokens:
        options = self.options
        return self.source.tokenized.get(
            self.tokenizer, texts, split=options.split_special_tokens, template=options.template
        )

    def score(self, texts: TextSet, positions: Sequence[int] | Integers) -> Iterator[Scores]:
        tokens = self.tokens(texts)
        kept = within_window(self.ref, self.window, tokens.lengths, positions, self.options.long_texts)
        order = kept[np.argsort(-tokens.lengths[kept], kind="stable")]
        yield from self.read(tokens, order, self.options.batch_tokens or BLOCK)

    def read(self, tokens: Tokens, order: Integers, size: int) -> Iterator[Scores]:
        """Log-likelihoods of some texts in this order; vLLM is given about so many tokens at a time."""
        block, n_tokens = list[int](), 0
        for text in order.tolist():
            block.append(text)
            n_tokens += int(tokens.lengths[text])
            if n_tokens >= size or text == order[-1]:
                yield self._scores(tokens, np.array(block, dtype=np.int64))
                block, n_tokens = [], 0

    def _scores(self, tokens: Tokens, texts: Integers) -> Scores:
        sampling, window = self.sampling, self.window
        segments = [
            part
            for text in texts.tolist()
            for part in segments_of(text, int(tokens.lengths[text]), window, int(tokens.before[text]))
            if part.stop > part.first
        ]
        wanted = {text: sampling.draws.of[text].ids for text in texts.tolist() if sampling and text in sampling.wanted}
        asked = [
            _Asked(part, tokens.of(part.text)[part.start : part.stop], self._drawn(wanted, part, tokens))
            for part in segments
        ]
        read: dict[int, list[_Read]] = {text: [] for text in texts.tolist()}
        for one, found in zip(asked, self._generate(asked), strict=True):
            read[one.part.text].append(found)
        values = [np.concatenate([*(one.log_p for one in read[text]), np.empty(0)]) for text in texts.tolist()]
        total = np.array([own.sum() for own in values])
        if not np.isfinite(total).all():
            text = int(texts[np.argmin(np.isfinite(total))])
            why, remedy = f"Its log-likelihood of text {text} is not finite.", "Score it as %bfloat16 or %float32."
            raise KlscaleError(f"{self.ref} cannot be scored.", why, remedy)
        parts = tokens.parts(texts, np.concatenate(values), total)
        if sampling is not None:
            drawn = {text: np.concatenate([one.drawn for one in read[text]]) for text in wanted}
            top = {text: np.concatenate([one.top for one in read[text]]) for text in wanted}
            parts |= sampling.parts(texts, drawn, top)
        return Scores(texts, total, tokens.counts[texts], parts)

    def _drawn(self, wanted: Mapping[int, Ids], part: Segment, tokens: Tokens) -> Ids | None:
        """The ids that were drawn at the scored tokens of a part of a text; -1 for those that the vocabulary lacks."""
        if part.text not in wanted:
            return None
        before = int(tokens.before[part.text])
        ids = wanted[part.text][part.first - before : part.stop - before]
        return np.where(ids < self._n_vocabulary, ids, -1).astype(np.int32)

    def _generate(self, asked: Sequence[_Asked]) -> list[_Read]:
        """What vLLM says of some token sequences."""
        if not asked:
            return []
        from vllm import SamplingParams, TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=one.ids.tolist()) for one in asked]
        options = [SamplingParams(**one.parameters()) for one in asked]
        try:
            outputs = self._model.generate(prompts, options, use_tqdm=False)
            return [one.read(output) for one, output in zip(asked, outputs, strict=True)]
        except KlscaleError:
            raise
        except Exception as error:  # whatever an engine does
            what, remedy = f"{self.ref}: vLLM fails.", "?max_model_len=... and a smaller dtype need less memory."
            raise KlscaleError(what, f"{type(error).__name__}: {first_line(error)}", remedy) from error

    def _gives_chosen_ids(self) -> bool:
        """Whether this engine returns the log-probabilities of chosen ids: only its second model runner does."""
        ids = np.zeros(2, dtype=np.int32)
        try:
            self._generate([_Asked(Segment(0, 0, 2, 1), ids, np.zeros((1, 1), dtype=np.int32))])
        except KlscaleError:
            return False
        return True

    def facts(self, texts: TextSet) -> dict[str, Any]:
        tokens, address, template = self.tokens(texts), Address.of(self.ref), self.options.template
        return {
            **({} if template is None else {"template": template_record(self.tokenizer, template)}),
            "dtype": self.dtype,
            "device": self.device,
            "cache": address.kv_cache_dtype,
            "tensor_parallel_size": address.tensor_parallel_size,
            "batch_tokens": self.options.batch_tokens or BLOCK,
            "window": self.window,
            "tokenizer": self._tokenizer_read,
            "not_round_trip": tokens.not_round_trip,
            "not_round_trip_kinds": dict(tokens.lost),
            "special_token_texts": tokens.special,
            "versions": {**versions("torch", "transformers", "tokenizers"), "vllm": _engine(self.ref).__version__},
        }

    def notes(self) -> Iterator[str]:
        if not self.source.noted:
            self.source.noted = True
            yield UNVERIFIED
        if self._without_ids:
            yield f"{self.ref}: this vLLM gives no log-probabilities of chosen ids. No KL by sampled tokens."
        elif SAMPLED_TOKENS in self.options.parts and self.sampling is None:
            yield NOTHING_DRAWN.format(self.ref)

    def repeat_runs(self, texts: TextSet, positions: Integers, *, padded: bool = True) -> VllmRepeatRuns:
        return VllmRepeatRuns(self, texts, positions)


class VllmRepeatRuns(RepeatRuns):
    """The same texts a few at a time, so that vLLM's batches have another shape, or in another order."""

    def __init__(self, reader: VllmReader, texts: TextSet, positions: Integers) -> None:
        self._reader, self._tokens = reader, reader.tokens(texts)
        self._positions, self.bytes = positions, texts.bytes[positions]

    def read(self, *, batches: bool = False, order: bool = False) -> Scores:
        self._reader.sampling = None
        chosen = self._positions[::-1] if order else self._positions
        return Scores.concatenate([*self._reader.read(self._tokens, chosen, FEW if batches else BLOCK)])


@dataclass(frozen=True, eq=False)
class _Read:
    """What vLLM says at the t scored tokens of a sequence: `log_p` (t,) in nats of the tokens themselves, `drawn` (t,
    m) of the ids that were asked for, NaN for those that the vocabulary lacks, and the most probable ids, `top` (t,);
    the last two are empty where no ids were asked for."""

    log_p: Floats
    drawn: Floats
    top: Integers


@dataclass(frozen=True, eq=False)
class _Asked:
    """A part of a text as one sequence of token `ids` (n,), with the ids `drawn` (t, m) at its scored tokens."""

    part: Segment
    ids: Ids
    drawn: Ids | None

    @property
    def first(self) -> int:
        """The first scored token in the sequence."""
        return self.part.first - self.part.start

    def parameters(self) -> dict[str, Any]:
        """Arguments of `SamplingParams`. One token is generated, the fewest that vLLM can."""
        found = {
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": 0 if self.drawn is None else 1,
            "flat_logprobs": True,
            "detokenize": False,
        }
        if self.drawn is None:
            return found
        return {**found, "prompt_logprob_token_ids": self.drawn, "prompt_logprob_start": self.first - 1}

    def read(self, output: Any) -> _Read:
        """From a `RequestOutput`. Raises KlscaleError where it does not hold what was asked for."""
        told = output.prompt_logprobs
        if list(output.prompt_token_ids) != self.ids.tolist() or told is None or len(told) != len(self.ids):
            raise KlscaleError("vLLM returns other tokens than those that it was given.")
        at = [(int(self.ids[n]), told[n]) for n in range(self.first, len(self.ids))]
        log_p = np.array([of[token].logprob for token, of in at], dtype=np.float64)
        if self.drawn is None:
            return _Read(log_p, np.empty(0), np.empty(0, dtype=np.int64))
        top = np.array([max(of, key=lambda token: of[token].logprob) for _, of in at], dtype=np.int64)
        drawn = np.asarray(output.prompt_token_id_logprobs, dtype=np.float64)
        if drawn.shape != self.drawn.shape:
            raise KlscaleError("vLLM does not return the log-probabilities of all ids that were asked for.")
        return _Read(log_p, np.where(self.drawn < 0, np.nan, drawn), top)


def _load(pinned: PinnedVllm, options: ReaderOptions) -> Any:
    """The model, in an engine of its own."""
    from vllm import LLM

    address, model = Address.of(pinned.ref), pinned.model
    gc.collect()  # the memory of the model before
    return LLM(
        model=model.location,
        revision=model.hub.commit if model.hub else None,
        skip_tokenizer_init=True,
        trust_remote_code=False,
        load_format="safetensors",
        dtype=pinned.ref.dtype or "auto",
        kv_cache_dtype=address.kv_cache_dtype,
        max_model_len=address.max_model_len or None,
        tensor_parallel_size=address.tensor_parallel_size,
        enable_prefix_caching=False,
        logprobs_mode="raw_logprobs",
        seed=0,
    )


def _engine(ref: ModelRef) -> Any:
    """vLLM, which writes errors alone and reports no usage. Raises InputError where it is not installed."""
    if find_spec("vllm") is None:
        why = "Models are read by the package vllm, which is not installed."
        raise InputError(f"{ref} cannot be read.", why, "pip install 'klscale[vllm]'  (Linux, with a GPU)")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    import vllm

    return vllm
