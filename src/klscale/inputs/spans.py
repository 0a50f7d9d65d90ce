"""Spans: fixed pieces of texts, about 32 bytes each, whose log-likelihoods every model gives.

A text set fixes the cuts, a tokenizer says which of them it can keep, and a model's token log-probabilities are summed
between those. Spans are numbered text after text: text s has the spans `starts[s]` to `starts[s + 1]`. A span whose
cut a tokenizer loses is NaN, and the span before it holds both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.science.arrays import Floats, Integers
from klscale.science.spans import Spans

RULE = "space-32"
"""Name of the rule below. Another rule gets another name: spans of two rules are never compared."""

SPAN, SHORTEST, LONGEST = 32, 16, 64
"""Bytes of a span: the length aimed at, and the limits."""

BLOCK = 1 << 21
"""Characters that are cut at a time."""

WHITESPACE = np.array(
    [*range(0x09, 0x0E), *range(0x1C, 0x21), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F,
     0x3000], dtype=np.uint32,
)  # fmt: skip
JOINER = 0x200D
MARKS = np.array(
    [(0x300, 0x36F), (0x483, 0x489), (0x591, 0x5BD), (0x610, 0x61A), (0x64B, 0x65F), (0x93A, 0x94F), (0xE31, 0xE3A),
     (0xE47, 0xE4E), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (JOINER, JOINER), (0x20D0, 0x20FF), (0x3099, 0x309A),
     (0xFE00, 0xFE0F), (0xFE20, 0xFE2F), (0x1F3FB, 0x1F3FF), (0xE0100, 0xE01EF)], dtype=np.uint32,
)  # fmt: skip
"""Characters that go with the one before them. Python's own tables differ between its versions, and so would cuts."""


@dataclass(frozen=True, eq=False)
class Cuts:
    """Where N texts are cut, by byte offsets in UTF-8: those of text s are `offsets[first[s]:first[s + 1]]`.

    `bytes` (N,) are the lengths of the texts. A text with n cuts has n + 1 spans.
    """

    offsets: Integers
    first: Integers
    bytes: Integers
    rule: str = RULE

    def of(self, text: int) -> Integers:
        """Byte offsets of the cuts of one text."""
        return self.offsets[self.first[text] : self.first[text + 1]]

    @cached_property
    def spans(self) -> Spans:
        """The lengths of the spans in bytes, text after text."""
        starts = self.first + np.arange(len(self.first))
        edges = np.insert(self.offsets + self.begin[self.owner], self.first[:-1], self.begin)
        return Spans(np.diff(edges, append=self.bytes.sum()), starts)

    @property
    def mean_bytes(self) -> float:
        """Mean length of a span in bytes."""
        return float(self.spans.bytes.mean())

    @cached_property
    def begin(self) -> Integers:
        """(N,) where each text begins, were all texts one."""
        return np.cumsum(self.bytes) - self.bytes

    @cached_property
    def owner(self) -> Integers:
        """(C,) text of each cut."""
        return np.repeat(np.arange(len(self.bytes)), np.diff(self.first))


def cut_texts(texts: Sequence[str], given: Integers | None = None) -> Cuts:
    """The cuts of some texts, the same on every machine: about every 32 bytes, where tokenizers of nearly every kind
    have a boundary (SCIENCE, 10.1).

    From the last cut on, the next is the place nearest to 32 bytes later that is at least 16 and at most 64 away, and
    16 from the end: before a single space between two characters that are no whitespace. Where there is none, it is
    the nearest character boundary, if possible one that separates no accent, no joined emoji and no CR LF. What is
    shorter than 48 bytes is not cut.

    A text whose first `given` bytes (N,) are a prompt has its first cut behind them, and the rule goes on from there.
    """
    lengths, cuts = [np.empty(0, dtype=np.int64)], [np.empty((0, 2), dtype=np.int64)]
    done = 0
    for block in _blocks(texts):
        size, found = _cut(block, np.zeros(len(block), np.int64) if given is None else given[done : done + len(block)])
        lengths.append(size)
        cuts.append(found + np.array([done, 0]))
        done += len(block)
    (owner, offsets), size = np.concatenate(cuts).T, np.concatenate(lengths)
    first = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(size)))])
    return Cuts(offsets, first, size)


def _blocks(texts: Sequence[str]) -> list[Sequence[str]]:
    number = np.array(list(accumulate(map(len, texts))), dtype=np.int64) // BLOCK
    return [texts[part[0] : part[-1] + 1] for part in np.split(np.arange(len(texts)), _changes(number)) if len(part)]


def _changes(values: NDArray[Any]) -> Integers:
    return np.flatnonzero(np.diff(values)) + 1


def _cut(texts: Sequence[str], given: Integers) -> tuple[Integers, Integers]:
    """Lengths in bytes (n,) of some texts, and their cuts (C, 2): text and byte offset, in order. The first of a text
    is behind the bytes that are `given` (n,)."""
    characters, place, begin = _characters(texts)
    begin, end = begin[:-1], begin[1:]
    before, after = np.roll(characters, 1), np.roll(characters, -1)
    space = characters == 0x20
    space[space] = ~np.isin(before[space], WHITESPACE) & ~np.isin(after[space], WHITESPACE)
    number = np.searchsorted(MARKS[:, 0], characters, side="right") - 1
    joined = (number >= 0) & (characters <= MARKS[number, 1])
    joined |= (before == JOINER) | ((characters == 0x0A) & (before == 0x0D))
    kinds = place[space], place[~joined], place  # a place wanted is never the first or last of a text

    prompted = np.flatnonzero(given)
    last, active, found = begin + given, np.arange(len(texts)), [np.stack([prompted, given[prompted]], axis=1)]
    while (active := active[end[active] - last[active] >= SPAN + SHORTEST]).size:
        low, high = last[active] + SHORTEST, np.minimum(last[active] + LONGEST, end[active] - SHORTEST)
        cut = np.full(len(active), -1)
        for places in kinds:
            open_ = np.flatnonzero(cut < 0)
            cut[open_] = _nearest(places, last[active[open_]] + SPAN, low[open_], high[open_])
        found.append(np.stack([active, cut - begin[active]], axis=1))
        last[active] = cut
    cuts = np.concatenate(found)
    return end - begin, cuts[np.argsort(cuts[:, 0], kind="stable")]


def _nearest(places: Integers, wanted: Integers, low: Integers, high: Integers) -> Integers:
    """Of sorted places, the one nearest to each of those wanted that is within its limits, -1 where none is."""
    if not len(places):
        return np.full(len(wanted), -1)
    n = np.searchsorted(places, wanted)
    left, right = places[np.maximum(n - 1, 0)], places[np.minimum(n, len(places) - 1)]
    far = LONGEST + 1
    to_left = np.where((left >= low) & (left < wanted), wanted - left, far)
    to_right = np.where((right <= high) & (right >= wanted), right - wanted, far)
    found = np.where(to_left <= to_right, left, right)
    return np.where(np.minimum(to_left, to_right) < far, found, -1)


def _characters(texts: Sequence[str]) -> tuple[NDArray[np.uint32], Integers, Integers]:
    """Code points of all texts as one, the byte at which each begins, and that at which each text begins, with the end
    of the last."""
    characters = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    width = np.ones(len(characters), dtype=np.int64)
    for limit in (0x80, 0x800, 0x10000):
        width += characters >= limit
    edges = np.concatenate([[0], np.cumsum(width)])
    return characters, edges[:-1], edges[np.cumsum([0, *map(len, texts)])]


def byte_offsets(texts: Sequence[str], token_starts: Integers, offsets: Integers) -> Integers:
    """Byte offsets of tokens in UTF-8, shaped as `offsets` (T, ...), which count characters, as fast tokenizers do.

    The tokens of text s are those from `token_starts[s]` to `token_starts[s + 1]`; offsets are within a text.
    """
    _, place, begin = _characters(texts)
    edges = np.append(place, begin[-1])
    shape = (-1, *[1] * (offsets.ndim - 1))
    owner = np.repeat(np.arange(len(texts)), np.diff(token_starts))
    characters = np.cumsum([0, *map(len, texts)])[owner].reshape(shape)
    return np.asarray(edges[characters + offsets] - begin[owner].reshape(shape))


# --------------------------------------------------------------------------------------------- tokens and their spans


@dataclass(frozen=True, eq=False)
class TokenSpans:
    """The spans in which the tokens of N texts lie, for one tokenizer: made once, used for every model that has it.

    `span` (T,) number of each token's span, counted over all texts. `kept` (S,) is false for a span whose cut is lost:
    its tokens belong to the span before it. `given` (N,) bytes of each text before its first scored token: its first
    token is not scored, and the first span begins behind it. 0 with a BOS token.
    """

    span: NDArray[np.int32]
    kept: NDArray[np.bool_]
    given: Integers
    token_starts: Integers
    starts: Integers

    @property
    def lost(self) -> float:
        """Share of the cuts that this tokenizer loses."""
        n_cuts = len(self.kept) - len(self.given)
        return float((~self.kept).sum() / n_cuts) if n_cuts else 0.0

    def sums(self, texts: Sequence[int] | Integers, log_probability: Floats) -> tuple[Floats, Integers]:
        """Log-likelihoods of the spans of some texts in nats, NaN where a cut is lost, and where each text's begin.

        `log_probability` (..., t) in nats of tokens 2..n of these texts, one text after another in their order. Returns
        (..., s) and (len(texts) + 1,). A text without a scored token has 0 for its span.
        """
        chosen = np.asarray(texts, dtype=np.int64)
        stops = self.token_starts[chosen + 1]
        token, token_begin = _ranges(np.minimum(self.token_starts[chosen] + 1, stops), stops)
        spans, begin = _ranges(self.starts[chosen], self.starts[chosen + 1])
        moved = begin[:-1] - self.starts[chosen]
        place = self.span[token] + np.repeat(moved, np.diff(token_begin))
        rows = log_probability.reshape(math.prod(log_probability.shape[:-1]), len(token))
        summed: Floats = np.stack([np.bincount(place, row, minlength=len(spans)) for row in rows]).astype(np.float64)
        summed[:, ~self.kept[spans]] = np.nan
        return summed.reshape(*log_probability.shape[:-1], len(spans)), begin


def assign_tokens(cuts: Cuts, token_starts: Integers, start: Integers, end: Integers) -> TokenSpans:
    """The spans of all tokens, from the bytes `start` to `end` (T,) that each covers in its text; the tokens of text s
    are those from `token_starts[s]` to `token_starts[s + 1]`.

    Tokens may overlap, as the parts of a character do. A token lies in the span in which it begins; where it goes on
    behind a cut, or is the unscored first token and reaches one, that cut is lost. A special token without bytes lies
    where the token before it does.
    """
    spans, begin = cuts.spans, cuts.begin
    owner = np.repeat(np.arange(len(begin)), np.diff(token_starts))
    low = np.maximum.accumulate(start + begin[owner])
    high = end + begin[owner]
    places = cuts.offsets + begin[cuts.owner]
    given = np.zeros(len(begin), dtype=np.int64)
    some = np.diff(token_starts) > 0
    given[some] = end[token_starts[:-1][some]]

    n = np.searchsorted(places, low, side="right")
    straddled = np.zeros(len(places) + 1, dtype=np.int64)
    behind = np.maximum(np.searchsorted(places, high, side="left"), n)
    np.add.at(straddled, n, 1)
    np.subtract.at(straddled, behind, 1)
    lost = (np.cumsum(straddled)[:-1] > 0) | (cuts.offsets <= given[cuts.owner])
    kept = np.ones(len(spans.bytes), dtype=bool)
    kept[np.flatnonzero(lost) + cuts.owner[lost] + 1] = False
    holder = np.maximum.accumulate(np.where(kept, np.arange(len(kept)), 0))
    return TokenSpans(holder[n + owner].astype(np.int32), kept, given, token_starts, spans.starts)


def _ranges(first: Integers, stop: Integers) -> tuple[Integers, Integers]:
    """The numbers from each first to each stop, one range after another, and where each range begins, with the end."""
    begin = np.concatenate([[0], np.cumsum(stop - first)])
    return np.arange(begin[-1]) + np.repeat(first - begin[:-1], stop - first), begin


# ------------------------------------------------------------------------------------------------------------- storing

FINEST = -20
"""Spans are kept as multiples of 2**-20 nats, or coarser where they are above 16 nats."""


def pack(values: Floats, log_likelihood: Floats, starts: Integers) -> NDArray[np.float32]:
    """Span log-likelihoods `values` (S,) as float32 whose sums over a text never drift from the true ones.

    Each is a difference of sums that are rounded to the text's step: 2**-20 nats, or the last digit of float32 at its
    largest span. So their float64 sums are exact, and `unpack` gives back `log_likelihood` (N,) to the last digit.
    """
    lost = np.isnan(values)
    scored = ~np.isnan(log_likelihood)
    plain = np.where(lost, 0.0, values)
    _, exponent = np.frexp(np.maximum.reduceat(np.abs(plain), starts[:-1])) if len(scored) else (None, np.empty(0, int))
    step = np.repeat(np.ldexp(1.0, np.maximum(exponent - 24, FINEST)), np.diff(starts))
    units = np.round(_running(plain, starts) / step)
    first = np.zeros(len(values), dtype=bool)
    first[starts[:-1]] = True
    steps = np.where(first, units, np.diff(units, prepend=0.0))
    packed: NDArray[np.float32] = (steps * step).astype(np.float32)
    packed[lost | ~np.repeat(scored, np.diff(starts))] = np.nan
    return packed


def _running(values: Floats, starts: Integers) -> Floats:
    """Sums (S,) from the first span of each text on, which do not depend on the texts beside it."""
    counts = np.diff(starts)
    there = np.arange(int(counts.max(initial=0))) < counts[:, None]
    padded = np.zeros(there.shape)
    padded[there] = values
    return np.asarray(np.cumsum(padded, axis=1)[there])


def are_packed(packed: NDArray[np.float32], log_likelihood: Floats, starts: Integers) -> NDArray[np.bool_]:
    """Which texts (N,) have spans that `pack` may have made: a first span, finite, and a sum within a step of their
    `log_likelihood` (N,)."""
    if not len(log_likelihood):
        return np.ones(0, dtype=bool)
    values = np.nan_to_num(packed.astype(np.float64), nan=0.0)
    with np.errstate(invalid="ignore"):
        _, exponent = np.frexp(np.maximum.reduceat(np.abs(values), starts[:-1]))
        off = np.abs(np.add.reduceat(values, starts[:-1]) - log_likelihood)
    limit = np.ldexp(1.0, np.maximum(exponent - 24, FINEST)) + 1e-12 * np.abs(log_likelihood)
    return np.asarray((off <= limit) & np.isfinite(packed[starts[:-1]]))


def unpack(packed: NDArray[np.float32], log_likelihood: Floats, starts: Integers) -> Floats:
    """Span log-likelihoods (S,) in nats from what `pack` made, NaN where a cut is lost.

    Those of a text sum to its `log_likelihood` (N,) exactly, in float64 and any order: the last span of a text is what
    the others leave of it.
    """
    values = packed.astype(np.float64)
    stands = ~np.isnan(values)
    if len(log_likelihood):
        last = np.maximum.reduceat(np.where(stands, np.arange(len(values)), -1), starts[:-1])
        rest = log_likelihood - np.add.reduceat(np.where(stands, values, 0.0), starts[:-1])
        values[last[last >= 0]] += rest[last >= 0]
    return values
