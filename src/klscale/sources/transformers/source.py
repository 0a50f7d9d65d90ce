"""transformers as a source: models of the hub, directories and GGUF files, read by this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import DTYPES, QUANTIZATIONS, ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats, Integers
from klscale.sources.source import (
    CHANGED_MODULES,
    LAYERS,
    NEXT_TOKENS,
    REPEAT_RUNS,
    RESPONSES,
    SAMPLED_TOKENS,
    WEIGHT_FILES,
    WEIGHTS,
    Change,
    Keep,
    Module,
    NextTokens,
    Pinned,
    Reader,
    ReaderOptions,
    RepeatRuns,
    Source,
    versions,
)
from klscale.sources.tokens import Tokens
from klscale.sources.transformers import load, next_token
from klscale.sources.transformers.cache import GROUP
from klscale.sources.transformers.changes import Bench, modules_of
from klscale.sources.transformers.downloads import Downloads, is_at_hand, to_fetch
from klscale.sources.transformers.engine import Engine, KeptStates
from klscale.sources.transformers.files import (
    ResolvedModel,
    bytes_in_memory,
    resolve,
    weight_files,
    with_chat_template,
)
from klscale.sources.transformers.hub import Hub
from klscale.sources.transformers.load import LoadedModel
from klscale.sources.transformers.pieces import PIECE
from klscale.sources.transformers.placement import device_of
from klscale.sources.transformers.prompts import special_tokens, template_record
from klscale.sources.transformers.tokens import LastTokenizer, TokenCache, tokenizer_id
from klscale.vectors.scores import Scores

WHOLE = 0.95
"""A quantization of a smaller fraction of the weights is noted."""


class Transformers(Source):
    """Causal language models that transformers can load."""

    name = "transformers"
    dtypes = DTYPES
    quantizations = QUANTIZATIONS
    capabilities = frozenset(
        {CHANGED_MODULES, LAYERS, NEXT_TOKENS, REPEAT_RUNS, RESPONSES, SAMPLED_TOKENS, WEIGHT_FILES, WEIGHTS}
    )

    def __init__(self, progress: Progress = SILENT) -> None:
        super().__init__(progress)
        self._hub, self._last_tokenizer, self._tokenized = Hub(progress), LastTokenizer(), TokenCache()
        self.without_offsets: set[str] = set()
        """Ids of the tokenizers of which it was said that they give no offsets."""

    def pin(self, ref: ModelRef) -> ResolvedModel:
        return resolve(ref, self._hub)

    def open(
        self,
        pinned: ResolvedModel,
        options: ReaderOptions = ReaderOptions(),
        *,
        alone: threading.Event | None = None,
    ) -> TransformersReader:
        loaded = load.load(pinned, options.device, alone=alone, tokenizer_reader=self._last_tokenizer.read)
        tokenize = partial(self._tokenized.get, split=options.split_special_tokens, template=options.template)
        return TransformersReader(self, pinned, options, loaded, tokenize)

    def with_chat_template(self, pinned: ResolvedModel) -> ResolvedModel:
        return with_chat_template(pinned)

    def prepare(self, options: ReaderOptions) -> None:
        device_of(options.device)

    def may_have(self, ref: ModelRef) -> bool:
        return self._hub.may_have(ref)

    def is_here(self, ref: ModelRef) -> bool:
        return ref.path is not None and ref.path.is_dir()

    def is_at_hand(self, pinned: ResolvedModel) -> bool:
        return is_at_hand(pinned)

    def revisions(self, name: str) -> list[str]:
        return self._hub.revisions(name)

    def bytes_in_memory(self, pinned: ResolvedModel) -> int | None:
        return bytes_in_memory(pinned)

    def to_fetch(self, pinned: ResolvedModel) -> Mapping[tuple[str, str], int] | None:
        return to_fetch(pinned)

    def fetched(self, users: Iterable[Collection[ResolvedModel]]) -> Downloads:
        return Downloads(users)

    def weight_files(self, pinned: ResolvedModel) -> list[Path]:
        return weight_files(pinned)


class TransformersReader(Reader):
    """Reads texts with a loaded model. The model stays where it was loaded until it is first used: then it moves to its
    device. `tokenize` gives all texts as a tokenizer reads them."""

    source: Transformers

    def __init__(
        self,
        source: Transformers,
        pinned: Pinned,
        options: ReaderOptions,
        loaded: LoadedModel,
        tokenize: Callable[[Any, TextSet], Tokens],
    ) -> None:
        super().__init__(source, pinned, options)
        self.loaded, self._tokenize = loaded, tokenize
        self.window, self.attributes = loaded.window, loaded.attributes
        self.device = str(device_of(options.device))

    @cached_property
    def engine(self) -> Engine:
        """Puts batches through the model."""
        options = self.options
        layers = LAYERS in options.parts
        return Engine(self.loaded, device=options.device, batch_tokens=options.batch_tokens, layers=layers)

    def tokens(self, texts: TextSet) -> Tokens:
        return self._tokenize(self.loaded.tokenizer, texts)

    def score(self, texts: TextSet, positions: Sequence[int] | Integers) -> Iterator[Scores]:
        self.engine.sampling = self.sampling
        return self.engine.score(self.tokens(texts), positions, long_texts=self.options.long_texts)

    def facts(self, texts: TextSet) -> dict[str, Any]:
        loaded, engine, tokens = self.loaded, self.engine, self.tokens(texts)
        template = self.options.template
        return {
            **({} if template is None else {"template": template_record(loaded.tokenizer, template)}),
            "dtype": loaded.ref.dtype,
            "device": str(engine.device),
            "batch_tokens": engine.batch_tokens,
            "shared_tokens": engine.shared_tokens,
            "piece_tokens": PIECE if engine.reads_pieces else None,
            "head": "own logits" if engine.own_logits else "tiles",
            "quantized": asdict(loaded.quantization) if loaded.quantization else None,
            "attention": loaded.model.config.get_text_config()._attn_implementation,
            "cache": {"bits": loaded.cache_bits, "group": GROUP} if loaded.cache_bits else None,
            "size": asdict(loaded.size) if loaded.size else None,
            "unused_tensors": list(loaded.unused_tensors),
            "applied": list(loaded.applied),
            "window": loaded.window,
            "tokenizer": loaded.tokenizer_read,
            "not_round_trip": tokens.not_round_trip,
            "not_round_trip_kinds": dict(tokens.lost),
            "special_token_texts": tokens.special,
            "versions": dict(versions("torch", "transformers", "tokenizers")),
        }

    def notes(self) -> Iterator[str]:
        if self.loaded.offload is not None:
            yield f"{self.ref} is larger than the free memory: its layers are read again for every batch."
        quantized = self.loaded.quantization
        if quantized and quantized.fraction is not None and quantized.fraction < WHOLE:
            left = "are left as they are: this kind cannot hold their shape"
            yield f"{self.ref}: {1 - quantized.fraction:.0%} of the weights outside the embeddings {left}."
        if quantized and quantized.not_applied:
            also = " and ".join(quantized.not_applied)
            yield f"{self.ref}: its format quantizes {also} too; what is scored are its weights alone."
        if not self.loaded.tokenizer.is_fast and self.tokenizer_id not in self.source.without_offsets:
            self.source.without_offsets.add(self.tokenizer_id)
            yield f"{self.ref}: its tokenizer gives no offsets. No KL by spans, for all models that have it."
        if self.engine.own_logits:
            yield f"{self.ref}: its output head is of an unknown kind; scored by its own logits, slower."

    # ------------------------------------------------------------------------------------------------- capabilities

    def n_read(self, texts: TextSet, positions: Sequence[int] | Integers) -> int:
        return self.engine.n_read(self.tokens(texts), positions)

    def repeat_runs(self, texts: TextSet, positions: Integers, *, padded: bool = True) -> TransformersRepeatRuns:
        return TransformersRepeatRuns(self, texts, positions, padded)

    @property
    def tokenizer_id(self) -> str:
        return tokenizer_id(self.loaded.tokenizer)

    @property
    def n_vocabulary(self) -> int:
        return next_token.n_vocabulary(self.engine)

    def compare_next_tokens(
        self,
        other: TransformersReader,
        tokens: Tokens,
        positions: Sequence[int] | Integers,
        advance: Callable[[int], None] = lambda _: None,
        *,
        keep: bool = False,
    ) -> NextTokens:
        if keep and self.engine.kept is None:
            self.engine.kept = KeptStates()
        return next_token.compare_next_tokens(self.engine, other.engine, tokens, positions, advance)

    def next_token_log_probabilities(self, tokens: Tokens, text: int, take: Callable[[int, Floats], None]) -> None:
        next_token.read_log_probabilities(self.engine, tokens, text, take)

    def sample(
        self,
        tokens: Tokens,
        positions: Sequence[int] | Integers,
        seed: int,
        n_ids: int,
        keep: Keep = lambda *_: None,
        *,
        more: Integers | None = None,
    ) -> Tokens:
        return next_token.sample_texts(self.engine, tokens, positions, seed, n_ids, keep, more=more)

    def decode(self, tokens: Tokens) -> list[str]:
        ids = [tokens.of(s).tolist() for s in range(len(tokens.lengths))]
        found: list[str] = self.loaded.tokenizer.batch_decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return found

    def is_special(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        return np.isin(ids, [*special_tokens(self.loaded.tokenizer)])

    def modules(self) -> list[Module]:
        return modules_of(self.loaded)

    def changed_kl(
        self,
        changes: Sequence[Change],
        tokens: Tokens,
        positions: Sequence[int] | Integers,
        known: Callable[[Change, Integers], bool],
        report: Callable[[Change, Integers, Floats], None],
    ) -> None:
        Bench(self.loaded, changes, self.options, known, report).read(tokens, positions)

    def weights(self) -> Mapping[str, Tensor]:
        if self.loaded.quantization is not None:
            raise InputError(f"{self.ref} cannot be moved by small steps.", "It was saved with quantized weights.")
        if self.loaded.offload is not None:
            raise KlscaleError(f"{self.ref} does not fit into memory, so that its weights cannot be moved.")
        return dict(self.loaded.model.named_parameters())


class TransformersRepeatRuns(RepeatRuns):
    """Batches of half the tokens, wider than their texts need where `padded`, and texts in random order: kernels then
    sum in another order. A text that leaves no room for the padding is cut."""

    def __init__(self, reader: TransformersReader, texts: TextSet, positions: Integers, padded: bool) -> None:
        self._reader, self._positions, self._padded = reader, positions, padded
        self._tokens, self.bytes = reader.tokens(texts), texts.bytes[positions]
        lengths, longest = self._tokens.lengths[positions], reader.engine.longest_padded
        if padded and longest is not None and (lengths > longest).any():
            prompt = 0 if self._tokens.prompt is None else self._tokens.prompt[positions]
            self.cut, self._tokens = True, self._tokens.cut(longest)
            kept = self.bytes * np.maximum(np.minimum(lengths, longest) - prompt, 0) / (lengths - prompt)
            self.bytes = np.rint(kept).astype(np.int64)

    @property
    def n_read(self) -> int:
        first = self._reader.engine.n_read(self._tokens, self._positions) if self.cut else 0
        return first + self._engine(batches=True, order=True).n_read(self._tokens, self._positions, padding=True)

    def read(self, *, batches: bool = False, order: bool = False) -> Scores:
        engine = self._engine(batches, order) if batches or order else self._reader.engine
        return Scores.concatenate([*engine.score(self._tokens, self._positions)])

    def _engine(self, batches: bool, order: bool) -> Engine:
        first = self._reader.engine
        budget = first.other_budget(self._tokens, self._positions) if batches else first.batch_tokens
        return first.again(budget, shuffled=order, padded=batches and self._padded, fewest=batches and not self._padded)
