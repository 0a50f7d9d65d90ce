"""Texts as one tokenizer reads them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.inputs.spans import TokenSpans, assign_tokens, pack
from klscale.inputs.texts import TextSet, content_id
from klscale.science.arrays import Floats, Integers
from klscale.vectors.scores import GIVEN, SPANS, Ragged, Values

REPLACED = "\N{REPLACEMENT CHARACTER}"
"""What stands for bytes that are no character, where tokens are decoded."""


def decoded_bytes(texts: Sequence[str]) -> Integers:
    """UTF-8 length (N,) of decoded texts. The mark of a byte that is no character is three bytes long, and counts as
    one."""
    return np.array([len(text.encode()) - 2 * text.count(REPLACED) for text in texts], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of N texts: those of text s are `ids[starts[s]:starts[s + 1]]`.

    `not_round_trip` is the fraction of texts that decoding does not give back: the tokenizer loses something, and the
    model's distribution is over other strings. `offsets` (T,) says at which byte of its text each token begins; None
    where the source does not know. `spans` are those of the text set in which the tokens lie, where it does. `lost`
    counts the texts that do not come back, by what is lost; `special` counts those in which a string such as `<s>` is
    read as a special token. `prompt` (N,) counts the tokens of each text that are its prompt and not scored; None where
    texts have no prompts: then the first token alone is not scored.
    """

    ids: NDArray[np.int32]
    starts: Integers
    not_round_trip: float
    offsets: Integers | None = None
    spans: TokenSpans | None = None
    lost: Mapping[str, int] = field(default_factory=dict)
    special: int = 0
    prompt: Integers | None = None

    @classmethod
    def with_offsets(
        cls,
        texts: TextSet,
        ids: NDArray[np.int32],
        starts: Integers,
        not_round_trip: float,
        begin: Integers,
        end: Integers,
        prompts: Sequence[Sequence[int]] | None = None,
        **counted: Any,
    ) -> Tokens:
        """The tokens of all texts of a set, from the bytes `begin` to `end` (T,) that each covers in its text; with
        what is `counted`. With the token ids of their `prompts`, the texts stand behind these."""
        assert texts.cuts is not None
        if prompts is None:
            return cls(ids, starts, not_round_trip, begin, assign_tokens(texts.cuts, starts, begin, end), **counted)
        # To spans, a prompt is one token without bytes: all tokens behind it are scored.
        begin, end = (np.insert(place, starts[:-1], 0) for place in (begin, end))
        spans = assign_tokens(texts.cuts, starts + np.arange(len(starts)), begin, end)
        return cls(ids, starts, not_round_trip, spans=spans, **counted).behind(prompts)

    def behind(self, prompts: Sequence[Sequence[int]]) -> Tokens:
        """The same texts, each behind the token ids of its prompt. All tokens of the texts are then scored."""
        count = np.array([len(ids) for ids in prompts], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(prompts), dtype=np.int32, count=int(count.sum()))
        ids = np.insert(self.ids, np.repeat(self.starts[:-1], count), flat)
        starts = self.starts + np.concatenate([[0], np.cumsum(count)])
        return replace(self, ids=ids, starts=starts, offsets=None, prompt=count)

    @classmethod
    def from_rows(cls, rows: Sequence[NDArray[np.int32]]) -> Tokens:
        """The tokens of texts of which nothing else is known, a row for each."""
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        return cls(np.concatenate([*rows, np.empty(0, np.int32)]).astype(np.int32), starts, 0.0)

    @cached_property
    def key(self) -> str:
        """A hash of all token ids: equal for models that read every text as the same tokens."""
        prompt = [] if self.prompt is None else [self.prompt.astype("<i8").tobytes()]
        return content_id([self.starts.astype("<i8").tobytes(), self.ids.astype("<i4").tobytes(), *prompt])

    @property
    def lengths(self) -> Integers:
        """Tokens of each text (N,), special tokens included."""
        return np.diff(self.starts)

    @property
    def before(self) -> Integers:
        """Tokens of each text (N,) before its first scored one."""
        return np.ones(len(self.starts) - 1, dtype=np.int64) if self.prompt is None else self.prompt

    @property
    def counts(self) -> Integers:
        """Scored tokens of each text (N,) and one before them: its length where it has no prompt."""
        return self.lengths if self.prompt is None else self.lengths - self.prompt + 1

    def cut(self, longest: int) -> Tokens:
        """The same texts, each with its first `longest` tokens at most."""
        lengths = np.minimum(self.lengths, longest)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        kept = np.arange(starts[-1]) + np.repeat(self.starts[:-1] - starts[:-1], lengths)
        offsets = None if self.offsets is None else self.offsets[kept]
        prompt = None if self.prompt is None else np.minimum(self.prompt, lengths)
        return Tokens(self.ids[kept], starts, self.not_round_trip, offsets, prompt=prompt)

    def parts(self, texts: Integers, token_log_probability: Floats, log_likelihood: Floats) -> dict[str, Values]:
        """The parts of `Scores` that say what some texts (n,) have in their spans; none where no spans are known.

        `token_log_probability` (t,) in nats of tokens 2 to n of these texts, one text after another in their order;
        `log_likelihood` (n,) are the sums.
        """
        if self.spans is None:
            return {}
        values, starts = self.spans.sums(texts, token_log_probability)
        spans = Ragged(pack(values, log_likelihood, starts), np.diff(starts))
        return {SPANS.name: spans, GIVEN.name: self.spans.given[texts, None]}

    def of(self, text: int) -> NDArray[np.int32]:
        """Token ids of one text, in order."""
        return self.ids[self.starts[text] : self.starts[text + 1]]


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `stop` of a text as one input; those from `first` on are scored. A text that fits the window
    is one segment; with no prompt, first is 1: its first token has nothing before it. Its first `behind` tokens are
    read once for several texts."""

    text: int
    start: int
    stop: int
    first: int
    behind: int = 0

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def n_own(self) -> int:
        """Tokens that are read for this segment alone."""
        return self.length - self.behind


def segments_of(text: int, length: int, window: int | None, first: int = 1) -> list[Segment]:
    """One segment, or half-overlapping windows in which each token from `first` on is scored once, with the longest
    context."""
    if window is None or length <= window:
        return [Segment(text, 0, length, first)]
    found, scored = list[Segment](), first
    while scored < length:
        stop = window if scored < window else min(scored + window // 2, length)
        found.append(Segment(text, stop - window, stop, scored))
        scored = stop
    return found


def loss_of(text: str, back: str, unknown: bool) -> str:
    """What a text has lost that comes back otherwise."""
    if unknown:
        return "unknown characters"
    if "".join(text.splitlines()) == "".join(back.splitlines()):
        return "line ends"
    before, after = "".join(text.split()), "".join(back.split())
    if before == after:
        return "white space"
    for form in ("NFC", "NFKC"):
        if unicodedata.normalize(form, before) == unicodedata.normalize(form, after):
            return f"Unicode normalization ({form})"
    return "letter case" if before.casefold() == after.casefold() else "other"
