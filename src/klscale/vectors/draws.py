"""Token ids that are drawn once at each position of some texts, and kept: every model of one tokenizer gives its
log-probabilities of the same ids, and so a KL to every other (`science.sampled_tokens`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.science.arrays import Floats, Integers
from klscale.science.sampled_tokens import RULED_OUT, unigram
from klscale.vectors.scores import DRAWS, SAMPLED, TOP, Ragged, Values

SAMPLED_TEXTS = 2000
"""Texts of a set's random order that have draws, unless another number is asked for."""

DRAWS_A_POSITION = 2
"""Token ids that are drawn at each position."""


@dataclass(frozen=True, eq=False)
class TextDraws:
    """What was drawn at the P scored tokens of one text, m ids each: `ids` (P, m), and `log_proposal` (P, m), their
    log-probability in nats under the proposal."""

    ids: NDArray[np.int32]
    log_proposal: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TokenDraws:
    """What was drawn for some texts of a set, by their positions. `tokens` is the hash of the set's token ids
    (`Tokens.key`): equal for models that read every text as the same tokens. `m` ids are drawn at a position."""

    tokens: str
    m: int = DRAWS_A_POSITION
    of: dict[int, TextDraws] = field(default_factory=dict)
    _marks: dict[int, int] = field(default_factory=dict, init=False)

    def mark(self, text: int) -> int:
        """64 bits that stand for a text's tokens and draws: models with the same have the same ids."""
        if text not in self._marks:
            self._marks[text] = self._mark(text)
        return self._marks[text]

    def _mark(self, text: int) -> int:
        found = self.of[text]
        content = (found.ids.astype("<i4").tobytes(), found.log_proposal.astype("<f4").tobytes())
        digest = hashlib.sha256(b"\0".join([self.tokens.encode(), str(text).encode(), *content])).digest()
        return int.from_bytes(digest[:8], "little", signed=True) or 1

    def joined(self, others: TokenDraws) -> TokenDraws:
        """These, and those of the others for texts that have none here."""
        return TokenDraws(self.tokens, self.m, {**others.of, **self.of})


@dataclass(frozen=True, eq=False)
class SampledValues:
    """What one model says of the tokens drawn for n texts: `text` (n,) their positions, `marks` (n,) as in
    `TokenDraws.mark`; `log_probability` of the drawn ids in nats, position after position, NaN for ids that the
    vocabulary lacks; `top` the most probable id at each position."""

    text: Integers
    marks: Integers
    log_probability: Ragged
    top: Ragged


class Sampling:
    """The texts that a reader is to sample, and what was drawn for them. Where nothing is, the reader draws it from its
    own next-token probabilities and adds it. `text_set` (the id) and a text's position seed what is random."""

    def __init__(self, text_set: str, texts: Iterable[int], draws: TokenDraws) -> None:
        self.wanted, self.draws = frozenset(map(int, texts)), draws
        self.fresh: dict[int, TextDraws] = {}
        """What was drawn here and is not kept yet."""
        self._seed = int(text_set, 16)
        self._seen: Floats = np.empty(0)

    def lacking(self, texts: Integers) -> Integers:
        """Which of these texts are to be sampled, and nothing is drawn for them yet."""
        chosen = [text for text in texts.tolist() if text in self.wanted and text not in self.draws.of]
        return np.array(chosen, dtype=np.int64)

    def generator(self, text: int) -> np.random.Generator:
        """Of the random numbers of a text, the same in every batch and process."""
        return np.random.default_rng([self._seed, text])

    def seen(self, ids: NDArray[np.int32], n_vocabulary: int) -> Floats:
        """How often each id (V,) occurs among the tokens of all texts, `ids`."""
        if len(self._seen) != n_vocabulary:
            self._seen = unigram(ids[ids < n_vocabulary], n_vocabulary)
        return self._seen

    def add(self, text: int, ids: NDArray[np.integer[Any]], log_proposal: Floats) -> None:
        """What was drawn for a text."""
        found = TextDraws(ids.astype(np.int32), log_proposal.astype(np.float32))
        self.draws.of[text] = self.fresh[text] = found

    def parts(
        self, texts: Integers, log_probability: Mapping[int, Floats], top: Mapping[int, Integers]
    ) -> dict[str, Values]:
        """The parts of `Scores` of some texts (n,), from what a model says at the P positions of those that are
        sampled: `log_probability` (P, m) in nats of what was drawn, -inf for a token that it rules out and NaN for an
        id that it lacks, and `top` (P,) its most probable ids. The others have none."""
        order = [text for text in texts.tolist() if text in self.wanted]
        marks = [self.draws.mark(text) if text in self.wanted else 0 for text in texts.tolist()]
        lengths = np.array([len(top[text]) if text in self.wanted else 0 for text in texts.tolist()], dtype=np.int64)
        flat = [np.maximum(log_probability[text].ravel(), 2 * RULED_OUT) for text in order]
        values = np.concatenate([*flat, np.empty(0)]).astype(np.float32)
        ids = np.concatenate([*(top[text] for text in order), np.empty(0, np.int32)]).astype(np.int32)
        return {
            DRAWS.name: np.array(marks, dtype=np.int64)[:, None],
            SAMPLED.name: Ragged(values, lengths * self.draws.m),
            TOP.name: Ragged(ids, lengths),
        }
