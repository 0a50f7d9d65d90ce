"""A mock source: small models whose KL is known exactly, for tests and for trying klscale out. NumPy alone.

    klscale compare mock://1 mock://2 --texts my.jsonl
    klscale compare mock://1 'mock://1?shift=0.05' --texts my.jsonl

`mock://SEED` is a Markov chain over bytes: after a start token, the probability of each byte depends on the byte before
it. All of them know how common the characters of English prose are; the seed gives each its own preferences.
Options follow a `?`, separated by `&`:

    shift=0.1     another model near `mock://SEED`: preferences moved by this much (nats, SD) in a direction of its own
    tokens=pairs  the common pairs of letters are tokens too, as in a tokenizer that was trained
    window=64     the longest text in tokens
    noise=1e-5    repeat runs differ by this much (nats a text, SD)
    load=2        it takes so long to open (seconds)
    speed=50000   it reads so many tokens a second, at most
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.errors import InputError
from klscale.inputs.attributes import attributes_of
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats, Integers
from klscale.science.sampled_tokens import draw_tokens
from klscale.sources.source import (
    NEXT_TOKENS,
    REPEAT_RUNS,
    SAMPLED_TOKENS,
    Keep,
    NextTokens,
    Pinned,
    Reader,
    ReaderOptions,
    RepeatRuns,
    Source,
    options_of,
    versions,
    within_window,
)
from klscale.sources.tokens import REPLACED, Tokens
from klscale.vectors.draws import Sampling
from klscale.vectors.scores import Scores, Values

COMMON = "etaoinshrdlcumwfgypbvk,.xjqz'\"-;:()!?0123456789"
"""Characters of English prose, the most common first."""
PAIRS = ("e ", "th", " a", "he", " t", "in", "s ", "er", "an", "re", "on", "t ", " s", "at", "d ", "en", "nd", "or")
"""Pairs of letters that are tokens where a reference asks for them."""
SPREAD = 0.5
"""Standard deviation in nats of what a seed adds to the logits."""
BATCH_TOKENS = 8192
VERSION = 1
"""Changes with anything that changes a log-likelihood: it is part of a model's identity."""


@dataclass(frozen=True)
class Parameters:
    """What a reference asks for."""

    seed: int
    shift: float = 0.0
    noise: float = 0.0
    window: int | None = None
    tokens: str = "bytes"
    load: float = field(default=0.0, repr=False)  # not part of what the model is
    speed: float = field(default=math.inf, repr=False)

    @classmethod
    def of(cls, ref: ModelRef) -> Parameters:
        """From `mock://SEED?...`. Raises InputError for what is no seed, and for an option that is not known."""
        seed, _, query = ref.name.removeprefix("mock://").partition("?")
        ways: dict[str, Callable[[str], Any]] = {"shift": float, "noise": float, "window": int, "tokens": str}
        ways |= {"load": float, "speed": float}
        found: dict[str, Any] = {}
        example = "Write mock://7 or mock://7?shift=0.1."
        for name, value in options_of(query, ways, ref, example).items():
            try:
                found[name] = ways[name](value)
            except ValueError as error:
                raise InputError(f"{ref}: {name}={value} is not a number.", remedy=example) from error
        if not (seed.isascii() and seed.isdigit() and len(seed) <= 15):
            why = "A seed is a whole number of at most 15 digits."
            raise InputError(f"{ref}: {seed!r} is not a seed.", why, example)
        made = cls(int(seed), **found)
        if made.tokens not in ("bytes", "pairs"):
            raise InputError(f"{ref}: tokens={made.tokens} is not known.", remedy="Give tokens=bytes or tokens=pairs.")
        if not (math.isfinite(made.shift) and 0 <= made.noise < math.inf and (made.window or 2) > 1):
            what = f"{ref}: shift, noise or window is out of range."
            raise InputError(what, "shift is finite, noise is at least 0, window at least 2 tokens.", example)
        if not (0 <= made.load < math.inf and made.speed > 0):
            raise InputError(f"{ref}: load or speed is out of range.", "load is finite, speed is above 0.", example)
        return made


@dataclass(frozen=True)
class Chain:
    """A Markov chain over V tokens: `log_p` (V + 1, V) in nats, of the next token after each token; the last row is
    that after the start."""

    log_p: Floats

    @classmethod
    def of(cls, parameters: Parameters) -> Chain:
        tokens = vocabulary(parameters.tokens)
        rank = {character.encode(): n for n, character in enumerate(f" {COMMON}")}
        base = np.array([-math.log(1 + sum(rank.get(bytes([b]), 200) for b in token)) for token in tokens])
        shape = (len(tokens) + 1, len(tokens))
        logits = base + SPREAD * np.random.default_rng(parameters.seed).standard_normal(shape)
        if parameters.shift:
            logits += parameters.shift * np.random.default_rng([parameters.seed, 1]).standard_normal(shape)
        logits -= logits.max(axis=1, keepdims=True)
        return cls(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))

    @cached_property
    def p(self) -> Floats:
        return np.exp(self.log_p)

    def kl_after(self, other: Chain) -> Floats:
        """KL(p || other) in nats (V + 1,) of the next token, after each token and after the start."""
        return np.asarray((self.p * (self.log_p - other.log_p)).sum(axis=1))

    def kl(self, other: Chain, n_tokens: int) -> float:
        """Exact KL(p || other) in nats over all texts of so many tokens, by the chain rule: the KL of each next token,
        weighted by how probable its context is."""
        kl, context, total = self.kl_after(other), np.eye(len(self.log_p))[-1], 0.0
        for _ in range(n_tokens):
            total += float(context @ kl)
            context = np.append(context @ self.p, 0.0)
        return total


def vocabulary(kind: str) -> list[bytes]:
    """The tokens by id: all bytes, and for `pairs` common pairs of letters. The start is the id after the last."""
    return [bytes([b]) for b in range(256)] + ([pair.encode() for pair in PAIRS] if kind == "pairs" else [])


def tokenize(texts: TextSet, kind: str) -> Tokens:
    """All texts as tokens, from left to right the longest that fits, each text behind a start token."""
    assert texts.texts is not None
    tokens = vocabulary(kind)
    pairs, start = {token: n for n, token in enumerate(tokens) if len(token) == 2}, len(tokens)
    ids, offsets, starts = list[int](), list[int](), [0]
    for text in texts.texts:
        data, place = text.encode(), 0
        ids.append(start)
        offsets.append(0)
        while place < len(data):
            pair = pairs.get(data[place : place + 2])
            ids.append(data[place] if pair is None else pair)
            offsets.append(place)
            place += 1 if pair is None else 2
        starts.append(len(ids))
    flat, begin = np.array(ids, dtype=np.int32), np.array(offsets)
    size = np.array([*map(len, tokens), 0])
    return Tokens.with_offsets(texts, flat, np.array(starts), 0.0, begin, begin + size[flat])


class Mock(Source):
    """Markov chains over bytes, by seed: `mock://7`."""

    name = "mock"
    capabilities = frozenset({NEXT_TOKENS, REPEAT_RUNS, SAMPLED_TOKENS})

    def __init__(self, progress: Progress = SILENT) -> None:
        super().__init__(progress)
        self._tokens: dict[tuple[str, str], Tokens] = {}

    def pin(self, ref: ModelRef) -> Pinned:
        return Pinned(ref, f"mock {VERSION}: {Parameters.of(ref)}")

    def open(
        self, pinned: Any, options: ReaderOptions = ReaderOptions(), *, alone: threading.Event | None = None
    ) -> MockReader:
        return MockReader(self, pinned, options)

    def is_here(self, ref: ModelRef) -> bool:
        return True

    def tokens(self, texts: TextSet, kind: str) -> Tokens:
        """All texts as tokens; kept."""
        if (texts.id, kind) not in self._tokens:
            self._tokens[texts.id, kind] = tokenize(texts, kind)
        return self._tokens[texts.id, kind]


class MockReader(Reader):
    """Reads texts with one chain."""

    source: Mock

    def __init__(self, source: Mock, pinned: Pinned, options: ReaderOptions) -> None:
        super().__init__(source, pinned, options)
        self.parameters = Parameters.of(pinned.ref)
        time.sleep(self.parameters.load)
        self.chain = Chain.of(self.parameters)
        self.window = self.parameters.window
        parent = f"mock://{self.parameters.seed}" if self.parameters.shift else None
        known = {"family": "mock", "type": "mock", "parameters": self.chain.log_p.size}
        self.attributes = attributes_of(pinned.ref, {**known, "seed": self.parameters.seed, "parent": parent})

    def tokens(self, texts: TextSet) -> Tokens:
        return self.source.tokens(texts, self.parameters.tokens)

    def score(self, texts: TextSet, positions: Sequence[int] | Integers) -> Iterator[Scores]:
        yield from self.read(texts, positions)

    def read(self, texts: TextSet, positions: Sequence[int] | Integers) -> Iterator[Scores]:
        """What `score` gives, for repeat runs too."""
        tokens = self.tokens(texts)
        kept = within_window(self.ref, self.window, tokens.lengths, positions, self.options.long_texts)
        order = kept[np.argsort(-tokens.lengths[kept], kind="stable")]
        budget, size = self.options.batch_tokens or BATCH_TOKENS, 0
        block: list[int] = []
        for text in order.tolist():
            if block and size + tokens.lengths[text] > budget:
                yield self._block(tokens, block)
                block, size = [], 0
            block.append(text)
            size += int(tokens.lengths[text])
        if block:
            yield self._block(tokens, block)

    def _block(self, tokens: Tokens, block: Sequence[int]) -> Scores:
        which, before, target = _transitions(tokens, block)
        time.sleep(len(which) / self.parameters.speed)
        chosen, log_p = np.array(block, dtype=np.int64), self.chain.log_p[before, target]
        found = np.bincount(which, log_p, len(block)).astype(np.float64)
        parts = tokens.parts(chosen, log_p, found)
        if self.sampling is not None:
            parts |= self._sampled(self.sampling, tokens, chosen)
        return Scores(chosen, found, tokens.lengths[block], parts)

    def _sampled(self, sampling: Sampling, tokens: Tokens, texts: Integers) -> dict[str, Values]:
        log_p, found, top = self.chain.log_p, dict[int, Floats](), dict[int, Integers]()
        for text in filter(sampling.wanted.__contains__, texts.tolist()):
            _, before, _ = _transitions(tokens, [text])
            if text not in sampling.draws.of:
                seen, generator = sampling.seen(tokens.ids, self.n_vocabulary), sampling.generator(text)
                sampling.add(text, *draw_tokens([log_p[before]], seen, generator, sampling.draws.m))
            ids = sampling.draws.of[text].ids
            known = np.concatenate([log_p[before], np.full((len(before), 1), np.nan)], axis=1)
            found[text] = np.take_along_axis(known, np.minimum(ids, self.n_vocabulary), axis=1)
            top[text] = log_p[before].argmax(axis=1)
        return sampling.parts(texts, found, top)

    def facts(self, texts: TextSet) -> dict[str, Any]:
        return {
            "dtype": "float64",
            "device": self.device,
            "batch_tokens": self.options.batch_tokens or BATCH_TOKENS,
            "window": self.window,
            "not_round_trip": 0.0,
            "not_round_trip_kinds": {},
            "special_token_texts": 0,
            "versions": dict(versions("numpy")),
        }

    def repeat_runs(self, texts: TextSet, positions: Integers, *, padded: bool = True) -> MockRepeatRuns:
        return MockRepeatRuns(self, texts, positions)

    @property
    def tokenizer_id(self) -> str:
        return self.parameters.tokens

    @property
    def n_vocabulary(self) -> int:
        return len(self.chain.log_p) - 1

    def compare_next_tokens(
        self,
        other: MockReader,
        tokens: Tokens,
        positions: Sequence[int] | Integers,
        advance: Callable[[int], None] = lambda _: None,
        *,
        keep: bool = False,
    ) -> NextTokens:
        which, before, target = _transitions(tokens, positions)
        a, b = self.chain, other.chain
        advance(len(positions))
        return NextTokens(
            text=np.asarray(positions, dtype=np.int64)[which],
            forward=a.kl_after(b)[before],
            backward=b.kl_after(a)[before],
            same_top=(a.log_p.argmax(axis=1) == b.log_p.argmax(axis=1))[before],
            top=a.p.max(axis=1)[before],
            log_likelihood=np.stack([chain.log_p[before, target] for chain in (a, b)]),
            left_out=0.0,
        )

    def next_token_log_probabilities(self, tokens: Tokens, text: int, take: Callable[[int, Floats], None]) -> None:
        ids = tokens.of(text)
        take(0, self.chain.log_p[ids[tokens.before[text] - 1 : -1]])

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
        cumulative = self.chain.p.cumsum(axis=1)
        drawn = []
        for place, position in enumerate(positions):
            ids = tokens.of(int(position))
            first, length = (2, len(ids)) if more is None else (len(ids), len(ids) + int(more[place]))
            ids = np.resize(ids, length)
            uniform = np.random.default_rng([seed, int(position)]).random(length)
            for n in range(first, length):
                ids[n] = np.searchsorted(cumulative[ids[n - 1]], uniform[n] * cumulative[ids[n - 1], -1])
            drawn.append(ids)
            keep(int(position), ids)
        return Tokens.from_rows(drawn)

    def decode(self, tokens: Tokens) -> list[str]:
        words = [*vocabulary(self.parameters.tokens), b""]
        each = (tokens.of(s).tolist() for s in range(len(tokens.lengths)))
        whole = (b"".join(words[n] for n in ids).decode(errors="surrogateescape") for ids in each)
        return [text.translate(dict.fromkeys(range(0xDC80, 0xDD00), REPLACED)) for text in whole]

    def is_special(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        return np.asarray(ids == self.n_vocabulary)


class MockRepeatRuns(RepeatRuns):
    """Repeat runs whose values differ by noise that is drawn from the seed of the model and of the run."""

    def __init__(self, reader: MockReader, texts: TextSet, positions: Integers) -> None:
        self._reader, self._texts, self._positions = reader, texts, positions
        self.bytes = texts.bytes[positions]

    def read(self, *, batches: bool = False, order: bool = False) -> Scores:
        found = Scores.concatenate([*self._reader.read(self._texts, self._positions)])
        parameters = self._reader.parameters
        if parameters.noise and (batches or order):
            generator = np.random.default_rng([parameters.seed, batches, order, 2])
            noise = parameters.noise * generator.standard_normal(len(found))
            found = Scores(found.text, found.log_likelihood + noise, found.n_tokens)
        return found


def _transitions(tokens: Tokens, positions: Sequence[int] | Integers) -> tuple[Integers, Integers, Integers]:
    """Of all scored tokens of some texts: which of the texts it is of (T,), the token before it, and itself."""
    chosen = np.asarray(positions, dtype=np.int64)
    lengths = tokens.lengths[chosen] - 1
    which = np.repeat(np.arange(len(chosen)), lengths)
    place = np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + tokens.starts[chosen][which]
    return which, tokens.ids[place], tokens.ids[place + 1]


def exact_kl(a: str | ModelRef, b: str | ModelRef, n_tokens: int) -> float:
    """Exact KL(a || b) in nats between two mocks of the same tokens, over all texts of so many tokens."""
    chains = [Chain.of(Parameters.of(ModelRef.parse(str(ref)))) for ref in (a, b)]
    return chains[0].kl(chains[1], n_tokens)
