"""KL of next tokens from a model whose log-probabilities llama.cpp has kept to any model of the same tokenizer.

    KL(base, model) = sum over ids with log p > -16 of p (log p - log q), in nats, as llama.cpp computes it

p is rounded to 16 bits on a scale of 16 nats. The unit of standard errors is the chunk: its tokens are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ModelRef
from klscale.inputs.stored_logits import StoredLogits
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats
from klscale.science.estimates import Estimate
from klscale.sources.source import NEXT_TOKENS, Reader, ReaderOptions, Sources
from klscale.sources.tokens import Tokens, decoded_bytes
from klscale.store.card_numbers import NextTokenKL
from klscale.studies.cards import NextTokenFigures, figures
from klscale.vectors.scores import Ragged

NEGLIGIBLE = -16.0
"""Log-probabilities of the base, in nats, up to which llama.cpp leaves a token out."""
LEFT_OUT = 1e-3
"""Largest probability that ids which the other vocabulary lacks may have."""


@dataclass(frozen=True, eq=False)
class FromStored:
    """KL from the stored model to `model`: the `figures` of single next tokens, standard errors over chunks.
    `difference` is the loss of the actual tokens in nats, model less stored: above 0, the model is worse."""

    model: str
    n_chunks: int
    figures: NextTokenFigures
    difference: Estimate


def measure(
    stored: StoredLogits,
    models: Sequence[ModelRef],
    *,
    n_chunks: int | None = None,
    device: str | None = None,
    batch_tokens: int | None = None,
    progress: Progress = SILENT,
) -> list[FromStored]:
    """KL from the stored model to each of these models, on the first `n_chunks` chunks (None: all).

    Raises InputError for a source without next-token probabilities, for chunks beyond the window, for fewer than two
    chunks, and for another vocabulary; KlscaleError for a model that cannot be used.
    """
    n = min(n_chunks or len(stored.tokens), len(stored.tokens))
    if n < 2:
        raise InputError(f"{n} chunk is too few.", "A standard error needs two.", "Store more, or --chunks 2.")
    sources = Sources(progress)
    for ref in models:
        sources.of(ref).require(ref, NEXT_TOKENS)
    found = []
    for ref in models:
        reader = sources.open(sources.pin(ref), ReaderOptions(device, batch_tokens))
        progress.begin(f"KL to {ref}", n, "chunks")
        found.append(_of_one(stored, reader, n, progress))
    return found


def _of_one(stored: StoredLogits, reader: Reader, n: int, progress: Progress) -> FromStored:
    chunks: NDArray[np.int32] = stored.tokens[:n].copy()
    window = reader.window or np.inf
    if chunks.shape[1] > window:
        what = f"A chunk has {chunks.shape[1]:,} tokens, the window of {reader.ref} {window:,.0f}."
        raise InputError(what, remedy="Store with fewer: llama-perplexity -c N")
    if reader.n_vocabulary <= int(chunks.max()):
        what = f"{reader.ref} has {reader.n_vocabulary:,} token ids, and the file the id {chunks.max():,}."
        raise InputError(what, "It has another tokenizer.")
    if reader.is_special(chunks[0, :1])[0]:  # llama.cpp begins every chunk with it, and keeps it of the first alone
        chunks[:, 0] = chunks[0, 0]
    starts = np.arange(n + 1) * chunks.shape[1]
    scored = np.full(n, stored.first + 1)
    tokens = Tokens(chunks.ravel(), starts, 0.0, prompt=scored)
    kl, loss = np.empty((n, stored.n_positions), dtype=np.float32), np.empty((n, stored.n_positions))
    same = np.empty(kl.shape, dtype=bool)
    for chunk in range(n):
        log_p, target = stored.log_probabilities(chunk), stored.tokens[chunk, stored.first + 1 :]

        def take(
            first: int, log_q: Floats, chunk: int = chunk, log_p: NDArray[np.float32] = log_p,
            target: NDArray[np.integer[Any]] = target,
        ) -> None:  # fmt: skip
            part = slice(first, first + len(log_q))
            kl[chunk, part], same[chunk, part], loss[chunk, part] = _compared(log_p[part], log_q, target[part])

        reader.next_token_log_probabilities(tokens, chunk, take)
        progress.advance()
    if not np.isfinite(kl).all():
        raise KlscaleError(f"The KL from {stored.path.name} to {reader.ref} is not finite.", "Its logits are not.")
    size = decoded_bytes(reader.decode(Tokens.from_rows([row[stored.first + 1 :] for row in chunks])))
    texts = TextSet(name=stored.path.name, bytes=np.maximum(size, 1), id="0" * 12)
    lengths = np.full(n, stored.n_positions)
    exact = NextTokenKL(np.arange(n), Ragged(np.maximum(kl, 0).ravel(), lengths), Ragged(same.ravel(), lengths))
    difference = Estimate.ratio(loss.sum(axis=1), lengths, unit="nats/token", on_log_scale=False)
    return FromStored(str(reader.ref), n, figures(exact, texts), difference)


def _compared(
    log_p: NDArray[np.float32], log_q: Floats, target: NDArray[np.integer[Any]]
) -> tuple[Floats, NDArray[np.bool_], Floats]:
    """KL (t,) in nats, whether the most probable tokens agree, and the loss of the actual token, model less stored."""
    common = min(log_p.shape[1], log_q.shape[1])
    for rows in (log_p, log_q):
        if rows.shape[1] > common and (left_out := float(np.exp(rows[:, common:]).sum(axis=1).max())) > LEFT_OUT:
            what = "The model and the stored one do not have the same vocabulary."
            raise InputError(what, f"Ids that only one of them has take up to {left_out:.2g} of its probability.")
    p, q = log_p[:, :common].astype(np.float64), log_q[:, :common]
    kl = np.where(p > NEGLIGIBLE, np.exp(p) * (p - q), 0.0).sum(axis=1)
    each = np.arange(len(p))
    return kl, p.argmax(axis=1) == q.argmax(axis=1), p[each, target] - q[each, target]
