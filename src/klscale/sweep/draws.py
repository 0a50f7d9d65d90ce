"""Sampled tokens in a sweep: the first model of a tokenizer draws them, all others read what was drawn.

What is drawn for a text is kept before any value that belongs to it, so that a killed process loses neither. Of several
processes one draws, by a claim; the others score the texts without draws meanwhile, and then wait.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np

from klscale.inputs.texts import TextSet
from klscale.progress import Progress
from klscale.science.arrays import Integers
from klscale.sources.source import Reader
from klscale.store.store import Store
from klscale.sweep.jobs import wait_for_others
from klscale.vectors.draws import Sampling, TokenDraws
from klscale.vectors.scores import DRAWS, Scores


def begin(reader: Reader, texts: TextSet, store: Store, sampled: Integers) -> Sampling | None:
    """What a reader needs to sample these texts, with what the store has drawn for its tokenizer. A reader that cannot
    draw samples those alone for which something is drawn; None where nothing is."""
    known = _known(reader, texts, store)
    if not reader.draws_tokens:
        sampled = np.intersect1d(sampled, [*known.of])
        if not len(sampled):
            return None
    return Sampling(texts.id, sampled, known)


def _known(reader: Reader, texts: TextSet, store: Store) -> TokenDraws:
    """What the store has drawn; without texts whose draws are not those of their tokens."""
    tokens = reader.tokens(texts)
    found = store.draws(texts.id, tokens.key) or TokenDraws(tokens.key)
    positions = tokens.counts - 1
    return TokenDraws(found.tokens, found.m, {s: one for s, one in found.of.items() if len(one.ids) == positions[s]})


def usable(scores: Scores, sampling: Sampling) -> Scores:
    """Those of some unfinished scores that have what the store has drawn of the texts that are to be sampled."""
    marks = scores.parts.get(DRAWS.name)
    if marks is None:
        return scores.at(scores.text[:0])
    fit = [
        text not in sampling.wanted or (text in sampling.draws.of and sampling.draws.mark(text) == mark)
        for text, mark in zip(scores.text.tolist(), np.asarray(marks)[:, 0].tolist(), strict=True)
    ]
    return scores.at(scores.text[np.array(fit, dtype=bool)])


def freeze(reader: Reader, texts: TextSet, store: Store) -> None:
    """Keep what the reader has drawn."""
    sampling = reader.sampling
    if sampling is not None and sampling.fresh:
        store.freeze_draws(texts.id, replace(sampling.draws, of=sampling.fresh))
        sampling.fresh = {}


def blocks(
    reader: Reader, texts: TextSet, positions: Integers, store: Store, progress: Progress
) -> Generator[Scores, None, None]:
    """The blocks of `reader.score`. Texts that another process draws tokens for come last."""
    sampling = reader.sampling
    lacking = positions[:0] if sampling is None else sampling.lacking(positions)
    if sampling is None or not len(lacking):
        yield from reader.score(texts, positions)
        return
    key = f"draws-{sampling.draws.tokens}"
    claim = store.claim(texts.id, key)
    if claim is None:
        yield from reader.score(texts, np.setdiff1d(positions, lacking))
        positions, waiting = lacking, False
        while claim is None and len(sampling.lacking(positions)):
            if not waiting:
                progress.note(f"{reader.ref}: another process draws tokens of its tokenizer: waiting for them.")
                waiting = True
            wait_for_others()
            claim = store.claim(texts.id, key)
            sampling.draws = _known(reader, texts, store).joined(sampling.draws)
    else:  # what was drawn before the claim
        sampling.draws = _known(reader, texts, store)
    try:
        yield from reader.score(texts, positions)
        freeze(reader, texts, store)
    finally:
        if claim is not None:
            claim.release()
