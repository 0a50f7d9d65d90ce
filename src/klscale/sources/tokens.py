"""Texts as one tokenizer reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
    read as a special token.
    """

    ids: NDArray[np.int32]
    starts: Integers
    not_round_trip: float
    offsets: Integers | None = None
    spans: TokenSpans | None = None
    lost: Mapping[str, int] = field(default_factory=dict)
    special: int = 0

    @classmethod
    def with_offsets(
        cls,
        texts: TextSet,
        ids: NDArray[np.int32],
        starts: Integers,
        not_round_trip: float,
        begin: Integers,
        end: Integers,
        **counted: Any,
    ) -> Tokens:
        """The tokens of all texts of a set, from the bytes `begin` to `end` (T,) that each covers in its text; with
        what is `counted`."""
        assert texts.cuts is not None
        return cls(ids, starts, not_round_trip, begin, assign_tokens(texts.cuts, starts, begin, end), **counted)

    @classmethod
    def from_rows(cls, rows: Sequence[NDArray[np.int32]]) -> Tokens:
        """The tokens of texts of which nothing else is known, a row for each."""
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        return cls(np.concatenate([*rows, np.empty(0, np.int32)]).astype(np.int32), starts, 0.0)

    @cached_property
    def key(self) -> str:
        """A hash of all token ids: equal for models that read every text as the same tokens."""
        return content_id([self.starts.astype("<i8").tobytes(), self.ids.astype("<i4").tobytes()])

    @property
    def lengths(self) -> Integers:
        """Tokens of each text (N,), special tokens included."""
        return np.diff(self.starts)

    def cut(self, longest: int) -> Tokens:
        """The same texts, each with its first `longest` tokens at most."""
        lengths = np.minimum(self.lengths, longest)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        kept = np.arange(starts[-1]) + np.repeat(self.starts[:-1] - starts[:-1], lengths)
        offsets = None if self.offsets is None else self.offsets[kept]
        return Tokens(self.ids[kept], starts, self.not_round_trip, offsets)

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
