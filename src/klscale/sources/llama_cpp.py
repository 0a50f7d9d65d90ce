"""llama.cpp as a source: GGUF files as they are deployed, with its own kernels and tokenizer, by llama-cpp-python.

An address is the path of a file, `llamacpp://models/model.Q4_K_M.gguf`; of a model in parts, the first. One option may
follow a `?`:

    cache=f32     the type of the key-value cache: f16 (llama.cpp's default), bf16, q8_0, q4_0, or f32, with which
                  attention is computed in float32, too
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from klscale.errors import InputError, KlscaleError, UnavailableError, nearest
from klscale.inputs.attributes import attributes_of
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats, Integers
from klscale.science.sampled_tokens import draw_tokens
from klscale.sources.digests import file_digest
from klscale.sources.source import (
    REPEAT_RUNS,
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
from klscale.sources.tokens import Tokens, loss_of, segments_of
from klscale.vectors.scores import Scores

CACHES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
"""Types of the key-value cache, by the numbers that ggml has for them."""
CHUNK, FEWEST, LOGITS = 512, 64, 2**25
"""Tokens of a forward pass: llama.cpp's own number, or fewer, so that their logits are at most 128 MB of float32."""
BLOCK = 8192
"""Tokens of the texts in a block of scores."""
ROWS = 64
"""Positions at which tokens are drawn at a time, in float64."""
_PART = re.compile(r"-00001-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class Address:
    """What a reference asks for: the file, and the type of the key-value cache."""

    path: Path
    cache: str = "f16"

    @classmethod
    def of(cls, ref: ModelRef) -> Address:
        """From `llamacpp://FILE?cache=TYPE`. Raises InputError for another option or another type."""
        path, _, query = ref.name.removeprefix("llamacpp://").partition("?")
        cache = options_of(query, ["cache"], ref, "Write llamacpp://FILE.gguf?cache=f32, say.").get("cache", "f16")
        if cache not in CACHES:
            raise InputError(f"{ref}: cache={cache} is not known.", nearest(cache, CACHES))
        return cls(Path(unquote(path)).expanduser(), cache)

    @property
    def files(self) -> list[Path]:
        """The file, or all parts of a model in parts."""
        match = _PART.search(self.path.name)
        if match is None:
            return [self.path]
        start = self.path.name[: match.start()]
        return [self.path.with_name(f"{start}-{n:05}-of-{match[1]}.gguf") for n in range(1, int(match[1]) + 1)]


class LlamaCpp(Source):
    """GGUF files, as llama.cpp computes them."""

    name = "llama.cpp"
    capabilities = frozenset({REPEAT_RUNS, SAMPLED_TOKENS})

    def __init__(self, progress: Progress = SILENT) -> None:
        super().__init__(progress)
        self._tokens: dict[tuple[str, str, bool], Tokens] = {}

    def pin(self, ref: ModelRef) -> Pinned:
        address, engine = Address.of(ref), _library(ref)
        for file in address.files:
            if not file.is_file():
                raise UnavailableError(f"{ref}: there is no file {file}.", remedy="Check the path.", exit_status=2)
            with file.open("rb") as opened:
                if opened.read(4) != b"GGUF":
                    raise InputError(f"{ref}: {file} is no GGUF file.", "Its first four bytes are not GGUF.")
        digest = " ".join(file_digest(file).hex() for file in address.files)
        return Pinned(ref, f"llama-cpp-python {engine.__version__} cache {address.cache} gguf {digest}")

    def open(
        self, pinned: Any, options: ReaderOptions = ReaderOptions(), *, alone: threading.Event | None = None
    ) -> LlamaCppReader:
        return LlamaCppReader(self, pinned, options)

    def prepare(self, options: ReaderOptions) -> None:
        if options.device not in (None, "cpu", "gpu"):
            what = f"--device {options.device}: llama.cpp has no such device."
            raise InputError(what, "It runs on the CPU, or on each GPU that it was built for.", "Give cpu or gpu.")

    def bytes_in_memory(self, pinned: Pinned) -> int:
        return sum(file.stat().st_size for file in Address.of(pinned.ref).files)

    def is_here(self, ref: ModelRef) -> bool:
        return Address.of(ref).path.is_file()

    def tokens(self, reader: LlamaCppReader, texts: TextSet) -> Tokens:
        """All texts as the tokenizer of a file reads them; kept."""
        key = texts.id, reader.pinned.identity, reader.options.split_special_tokens
        if key not in self._tokens:
            self._tokens[key] = reader.model.tokenize(texts, split=reader.options.split_special_tokens)
        return self._tokens[key]


class LlamaCppReader(Reader):
    """Reads texts with one file."""

    source: LlamaCpp

    def __init__(self, source: LlamaCpp, pinned: Pinned, options: ReaderOptions) -> None:
        super().__init__(source, pinned, options)
        address = Address.of(pinned.ref)
        self.model = Model(pinned.ref, address, on_gpu=options.device != "cpu")
        self.window, self.device = self.model.window, "gpu" if self.model.on_gpu else "cpu"
        most = options.batch_tokens or min(CHUNK, max(FEWEST, LOGITS // self.model.n_vocabulary))
        self.chunk = min(most, self.model.window)
        told = self.model.metadata("general.architecture"), self.model.metadata("general.basename")
        known = {"type": told[0], "family": told[1], "parameters": self.model.n_parameters}
        kind = re.search(r"[.-](I?Q\d\w*|MXFP4|BF16|F16)$", address.path.stem, re.IGNORECASE)
        self.attributes = attributes_of(pinned.ref, {**known, "quantization": kind and kind[1].upper()})

    def tokens(self, texts: TextSet) -> Tokens:
        return self.source.tokens(self, texts)

    def score(self, texts: TextSet, positions: Sequence[int] | Integers) -> Iterator[Scores]:
        tokens = self.tokens(texts)
        kept = within_window(self.ref, self.window, tokens.lengths, positions, self.options.long_texts)
        order = kept[np.argsort(-tokens.lengths[kept], kind="stable")]
        block, size = list[int](), 0
        for text in order.tolist():
            block.append(text)
            size += int(tokens.lengths[text])
            if size >= BLOCK:
                yield self.read(tokens, block, self.chunk)
                block, size = [], 0
        if block:
            yield self.read(tokens, block, self.chunk)

    def read(self, tokens: Tokens, texts: Sequence[int], chunk: int) -> Scores:
        """Log-likelihoods of some texts, in forward passes of so many tokens."""
        longest = min(self.window or self.model.window, int(tokens.lengths[texts].max()))
        chosen, found = np.array(texts, dtype=np.int64), np.zeros(len(texts))
        own, sampled, top = list[Floats](), dict[int, Floats](), dict[int, Integers]()
        for n, text in enumerate(texts):
            values, drawn, best = list[Floats](), list[Floats](), list[Integers]()
            fresh = list[tuple[NDArray[np.int32], Floats]]()
            wanted = self.sampling if self.sampling is not None and text in self.sampling.wanted else None
            generator = None if wanted is None or text in wanted.draws.of else wanted.generator(text)
            ids = tokens.of(text)
            for part in segments_of(text, len(ids), self.window):
                for first, logits in self.model.logits(ids[part.start : part.stop], longest, chunk):
                    skipped = max(0, part.first - 1 - part.start - first)  # scored in the window before
                    logits, place = logits[skipped:], part.start + first + skipped
                    if not len(logits):
                        continue
                    rows = np.arange(len(logits))
                    mass = _log_sum_exp(logits)
                    target = ids[place + 1 : place + 1 + len(logits)]
                    values.append((logits[rows, target] - mass).astype(np.float64))
                    if wanted is None:
                        continue
                    if generator is not None:
                        seen = wanted.seen(tokens.ids, self.model.n_vocabulary)
                        for at in range(0, len(logits), ROWS):
                            fresh.append(draw_tokens([logits[at : at + ROWS]], seen, generator, wanted.draws.m))
                        drawn_ids = np.concatenate([one for one, _ in fresh])[place:]
                    else:
                        drawn_ids = wanted.draws.of[text].ids[place : place + len(logits)]
                    inside = drawn_ids < self.model.n_vocabulary
                    own_logits = logits[rows[:, None], np.where(inside, drawn_ids, 0)]
                    drawn.append(np.where(inside, own_logits - mass[:, None], np.nan).astype(np.float64))
                    best.append(logits.argmax(axis=1))
            if generator is not None and wanted is not None:
                wanted.add(text, *(np.concatenate(part) for part in zip(*fresh, strict=True)))
            if wanted is not None:
                sampled[text], top[text] = np.concatenate(drawn), np.concatenate(best)
            of_text = np.concatenate([*values, np.empty(0)])
            own.append(of_text)
            found[n] = of_text.sum()
            if not np.isfinite(found[n]):
                why = f"Its log-likelihood of text {text} is not finite."
                raise KlscaleError(f"{self.ref} cannot be scored.", why, "Check the file: its weights may be damaged.")
        parts = tokens.parts(chosen, np.concatenate(own), found)
        if self.sampling is not None:
            parts |= self.sampling.parts(chosen, sampled, top)
        return Scores(chosen, found, tokens.lengths[chosen], parts)

    def facts(self, texts: TextSet) -> dict[str, Any]:
        tokens = self.tokens(texts)
        return {
            "dtype": self.model.description,
            "device": self.device,
            "cache": self.model.address.cache,
            "batch_tokens": self.chunk,
            "window": self.window,
            "system": self.model.system,
            "not_round_trip": tokens.not_round_trip,
            "not_round_trip_kinds": dict(tokens.lost),
            "special_token_texts": tokens.special,
            "versions": dict(versions("llama-cpp-python", "numpy")),
        }

    def repeat_runs(self, texts: TextSet, positions: Integers, *, padded: bool = True) -> LlamaCppRepeatRuns:
        return LlamaCppRepeatRuns(self, texts, positions)


class LlamaCppRepeatRuns(RepeatRuns):
    """Forward passes of half the tokens: kernels then sum in another order. Texts are read one by one, so that their
    order changes nothing."""

    def __init__(self, reader: LlamaCppReader, texts: TextSet, positions: Integers) -> None:
        self._reader, self._tokens = reader, reader.tokens(texts)
        self._positions, self.bytes = positions, texts.bytes[positions]

    def read(self, *, batches: bool = False, order: bool = False) -> Scores:
        reader = self._reader
        reader.sampling = None
        chunk = max(1, reader.chunk // 2 - 1) if batches else reader.chunk  # not even: the kernels block by 2**n
        return Scores.concatenate([reader.read(self._tokens, [int(text)], chunk) for text in self._positions])


class Model:
    """A file in memory, by the functions of llama.cpp that llama-cpp-python gives. `window` in tokens.

    Raises KlscaleError for a file that llama.cpp does not read, and for one that is no causal language model.
    """

    def __init__(self, ref: ModelRef, address: Address, *, on_gpu: bool) -> None:
        self.ref, self.address = ref, address
        self._lib = lib = _library(ref)
        self.on_gpu = on_gpu and bool(lib.llama_supports_gpu_offload())
        how = lib.llama_model_default_params()
        how.n_gpu_layers = 2**31 - 1 if self.on_gpu else 0
        how.check_tensors = True
        _said.clear()
        self._model = lib.llama_model_load_from_file(str(address.path).encode(), how)
        if not self._model:
            raise KlscaleError(
                f"{ref}: llama.cpp cannot read this file.",
                next(iter(_said), "It does not say why."),
                "The file may be damaged, or newer than it: pip install -U llama-cpp-python",
            )
        self._free = weakref.finalize(self, lib.llama_model_free, self._model)
        if lib.llama_model_has_encoder(self._model) or not lib.llama_model_has_decoder(self._model):
            raise KlscaleError(f"{ref} is no causal language model.", "It has an encoder.")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.n_vocabulary = int(lib.llama_vocab_n_tokens(self._vocab))
        self.window = int(lib.llama_model_n_ctx_train(self._model))
        self.n_parameters = int(lib.llama_model_n_params(self._model))
        self.system = lib.llama_print_system_info().decode().strip()
        text = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._model, text, len(text))
        self.description = text.value.decode(errors="replace")
        self._context: Any = None
        self._close: Any = None
        self._shape = (0, 0)

    def metadata(self, key: str) -> str | None:
        """What the file says of itself under a key."""
        text = ctypes.create_string_buffer(256)
        size = self._lib.llama_model_meta_val_str(self._model, key.encode(), text, len(text))
        return text.value.decode(errors="replace") if size > 0 else None

    def logits(self, ids: NDArray[np.int32], longest: int, chunk: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The position of the first row, and logits (t, V) of the next token at so many positions, for each forward
        pass over some tokens but the last; valid until the next one. No text is longer than `longest` tokens."""
        lib, context = self._lib, self._opened(longest, chunk)
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        for first in range(0, len(ids) - 1, chunk):
            part = ids[first : min(first + chunk, len(ids) - 1)]
            batch = lib.llama_batch_init(len(part), 0, 1)
            try:
                batch.n_tokens = len(part)
                for n, token in enumerate(part.tolist()):
                    batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.seq_id[n][0] = token, first + n, 1, 0
                    batch.logits[n] = True
                _said.clear()
                status = lib.llama_decode(context, batch)
            finally:
                lib.llama_batch_free(batch)
            if status != 0:
                why = next(iter(_said), f"llama_decode returns {status}.")
                raise KlscaleError(f"{self.ref}: llama.cpp fails in a forward pass.", why, "Try --batch-tokens 64.")
            pointer = lib.llama_get_logits(context)
            yield first, np.ctypeslib.as_array(pointer, (len(part), self.n_vocabulary))

    def _opened(self, longest: int, chunk: int) -> Any:
        """A context for texts of so many tokens and forward passes of `chunk`; kept until other ones are needed."""
        lib = self._lib
        if self._context is None or self._shape[0] < longest or self._shape[1] != chunk:
            if self._context is not None:
                self._close()
            how = lib.llama_context_default_params()
            how.n_ctx, how.n_batch, how.n_ubatch, how.n_seq_max = longest, chunk, chunk, 1
            how.type_k = how.type_v = CACHES[self.address.cache]
            if self.address.cache == "f32":  # flash attention computes in float16, also with such a cache
                how.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            how.offload_kqv = how.op_offload = self.on_gpu
            how.no_perf = True
            how.n_threads = how.n_threads_batch = _threads()
            _said.clear()
            self._context = lib.llama_init_from_model(self._model, how)
            if not self._context:
                self._context = None
                why = next(iter(_said), "It does not say why.")
                raise KlscaleError(f"{self.ref}: llama.cpp cannot make a context of {longest:,} tokens.", why)
            self._close = weakref.finalize(self, lib.llama_free, self._context)
            self._shape = longest, chunk
        return self._context

    # -------------------------------------------------------------------------------------------------- tokens

    def tokenize(self, texts: TextSet, *, split: bool) -> Tokens:
        """All texts with the special tokens that the file asks for, with offsets. `split`:
        a string such as `<s>` in a text is text, not a special token. Raises KlscaleError for a text without tokens.
        """
        assert texts.texts is not None
        lib, vocab = self._lib, self._vocab
        special = np.array([lib.llama_vocab_is_control(vocab, n) for n in range(self.n_vocabulary)], dtype=bool)
        pieces = [self._piece(n) for n in range(self.n_vocabulary)]
        rows, begins, ends, lost, n_special = list[Integers](), list[Integers](), list[Integers](), dict[str, int](), 0
        for s, text in enumerate(texts.texts):
            data = text.encode()
            ids = self._ids(data, parse=not split)
            if not len(ids):
                remedy = "Leave that text out of the set."
                raise KlscaleError(f"Text {s} of {texts.name} has no tokens under {self.ref}.", "", remedy)
            own = np.zeros(len(ids), dtype=bool)
            own[0] |= bool(lib.llama_vocab_get_add_bos(vocab)) and ids[0] == lib.llama_vocab_bos(vocab)
            own[-1] |= bool(lib.llama_vocab_get_add_eos(vocab)) and ids[-1] == lib.llama_vocab_eos(vocab)
            n_special += bool((special[ids] & ~own).any())
            of_text = [b"" if skip else pieces[n] for n, skip in zip(ids.tolist(), own.tolist(), strict=True)]
            back, size = b"".join(of_text), np.array([len(piece) for piece in of_text], dtype=np.int64)
            begin, end = np.cumsum(size) - size, np.cumsum(size)
            if back == b" " + data:  # the mark of a word's beginning, which a SentencePiece vocabulary adds
                begin, end = np.maximum(begin - 1, 0), np.maximum(end - 1, 0)
            elif back != data:
                kind = loss_of(text, back.decode(errors="replace"), unknown=False)
                lost[kind] = lost.get(kind, 0) + 1
                begin, end = np.zeros_like(begin), np.where(own, 0, len(data))  # nobody knows where a token begins
            rows.append(ids)
            begins.append(begin)
            ends.append(end)
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in rows])])
        flat = np.concatenate(rows).astype(np.int32)
        not_round_trip = sum(lost.values()) / len(rows)
        return Tokens.with_offsets(
            texts, flat, starts, not_round_trip, np.concatenate(begins), np.concatenate(ends),
            lost=lost, special=n_special,
        )  # fmt: skip

    def _ids(self, text: bytes, *, parse: bool) -> Integers:
        room = len(text) + 8
        found = (ctypes.c_int32 * room)()
        n = self._lib.llama_tokenize(self._vocab, text, len(text), found, room, True, parse)
        if n < 0:
            found = (ctypes.c_int32 * -n)()
            n = self._lib.llama_tokenize(self._vocab, text, len(text), found, -n, True, parse)
        return np.array(found[:n], dtype=np.int64)

    def _piece(self, token: int) -> bytes:
        """The bytes of a token."""
        room = 64
        while True:
            text = ctypes.create_string_buffer(room)
            n = self._lib.llama_token_to_piece(self._vocab, token, text, room, 0, True)
            if n >= 0:
                return text.raw[:n]
            room = -n


def _threads() -> int:
    """Threads of a forward pass: as OMP_NUM_THREADS says, else one for each CPU that this process may use. With more,
    as llama.cpp has them by default, they wait for each other."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """(t,) of logits (t, V), in float32; a few rows at a time, for the cache."""
    found = np.empty(len(logits), dtype=np.float32)
    for n, row in enumerate(logits):
        most = row.max()
        found[n] = most + np.log(np.exp(row - most).sum())
    return found


_said: deque[str] = deque(maxlen=8)
"""The last errors that llama.cpp has written, the first of them first."""
_listeners: list[Any] = []


def _library(ref: ModelRef) -> Any:
    """llama-cpp-python, which writes nothing. Raises InputError where it is not installed."""
    if find_spec("llama_cpp") is None:
        why = "llama.cpp is called by the package llama-cpp-python, which is not installed."
        raise InputError(f"{ref} cannot be read.", why, "pip install 'klscale[llama-cpp]'")
    import llama_cpp

    if not _listeners:

        def listen(level: int, text: bytes, _: object) -> None:
            if level == 4 and (line := text.decode(errors="replace").strip()):
                _said.append(line)

        _listeners.append(llama_cpp.llama_log_callback(listen))
        llama_cpp.llama_log_set(_listeners[0], ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp
