"""Next-token probabilities of a whole vocabulary, as `llama-perplexity --kl-divergence-base FILE` keeps them.

The file is little-endian: `_logits_`, three int32 (tokens of a chunk, ids of the vocabulary, chunks), the token ids of
all chunks as int32; then, of each chunk, a row for each position of its second half but the last. A row has two
float32, the scale and the lowest log-probability, and a uint16 for each id, with one more where their number is odd:

    log p(id) = scale x code + lowest, in nats; whatever is 16 nats below the most probable token has code 0
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.errors import InputError

MAGIC = b"_logits_"
MOST_IDS, MOST_CONTEXT = 1 << 24, 1 << 24
"""Larger numbers are of a damaged file."""
SUM = 0.01
"""By how much probabilities may miss the sum of 1: they are rounded, and the least are cut off."""


@dataclass(frozen=True, eq=False)
class StoredLogits:
    """The file `path`: `tokens` (C, n) ids of C chunks of n tokens, and log-probabilities of `n_vocabulary` ids."""

    path: Path
    n_vocabulary: int
    tokens: NDArray[np.int32]

    @property
    def n_context(self) -> int:
        """Tokens of a chunk."""
        return int(self.tokens.shape[1])

    @property
    def first(self) -> int:
        """The first position of a chunk whose next token is predicted: the second half is scored."""
        return self.n_context // 2

    @property
    def n_positions(self) -> int:
        """Scored positions of a chunk."""
        return self.n_context - 1 - self.first

    @property
    def _width(self) -> int:
        return _width(self.n_vocabulary)

    def log_probabilities(self, chunk: int) -> NDArray[np.float32]:
        """Log-probabilities (P, V) in nats of the next token at each scored position of a chunk. Raises InputError for
        rows that are no probabilities."""
        n_bytes = 2 * self.n_positions * self._width
        start = len(MAGIC) + 12 + self.tokens.nbytes + chunk * n_bytes
        rows = np.memmap(self.path, "<u2", "r", start, (self.n_positions, self._width))
        scale, lowest = rows[:, :4].copy().view("<f4").T
        found: NDArray[np.float32] = rows[:, 4 : 4 + self.n_vocabulary].astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            found *= scale[:, None]
            found += lowest[:, None]
            total = np.exp(found, dtype=np.float32).sum(axis=1, dtype=np.float64)
        wrong = ~(np.abs(total - 1) < SUM)
        if wrong.any():
            what = f"{self.path}, chunk {chunk + 1}: probabilities add up to {total[wrong][0]:.3g}."
            raise InputError(what, "The file is damaged, or was written otherwise.", "Write it anew.")
        return found


def _width(n_vocabulary: int) -> int:
    """Numbers of 16 bits in a row."""
    return 2 * ((n_vocabulary + 1) // 2) + 4


def read_stored_logits(path: str | os.PathLike[str]) -> StoredLogits:
    """What a file of `--kl-divergence-base` holds; its rows are read when they are asked for. Raises InputError for
    another file, and for one that is not whole."""
    place = Path(path)
    try:
        with place.open("rb") as file:
            head = file.read(len(MAGIC) + 12)
            size = place.stat().st_size
            if len(head) < len(MAGIC) + 12 or not head.startswith(MAGIC):
                what, why = f"{place} holds no stored logits.", f"It does not begin with {MAGIC.decode()}."
                raise InputError(what, why, "llama-perplexity -m BASE.gguf -f TEXT --kl-divergence-base FILE")
            n_context, n_vocabulary, n_chunks = map(int, np.frombuffer(head, "<i4", offset=len(MAGIC)))
            if not (2 < n_context < MOST_CONTEXT and 1 < n_vocabulary < MOST_IDS and n_chunks > 0):
                what = f"{place}: {n_chunks:,} chunks of {n_context:,} tokens, {n_vocabulary:,} ids."
                raise InputError(what, "No such file can be.", "Write it anew.")
            row = 2 * _width(n_vocabulary) * (n_context - 1 - n_context // 2)
            wanted = len(head) + n_chunks * (4 * n_context + row)
            if size != wanted:
                why = f"It has {size:,} bytes, {n_chunks:,} chunks take {wanted:,}."
                raise InputError(f"{place} is not whole.", why, "Write it to its end.")
            ids: Any = np.frombuffer(file.read(4 * n_context * n_chunks), "<i4").reshape(n_chunks, n_context)
    except OSError as error:
        raise InputError(f"{place} cannot be read.", f"{error.strerror or error}.") from error
    if ids.min() < 0 or ids.max() >= n_vocabulary:
        raise InputError(f"{place} has token ids that its vocabulary lacks.", remedy="Write it anew.")
    return StoredLogits(place, n_vocabulary, ids)
