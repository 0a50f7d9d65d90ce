"""Texts as one tokenizer reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from klscale.science.arrays import Integers


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of N texts: those of text s are `ids[starts[s]:starts[s + 1]]`.

    `not_round_trip` is the fraction of texts that decoding does not give back: the tokenizer loses something, and the
    model's distribution is over other strings. `offsets` (T,) says at which byte of its text each token begins; None
    where the source does not know.
    """

    ids: NDArray[np.int32]
    starts: Integers
    not_round_trip: float
    offsets: Integers | None = None

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

    def of(self, text: int) -> NDArray[np.int32]:
        """Token ids of one text, in order."""
        return self.ids[self.starts[text] : self.starts[text + 1]]
