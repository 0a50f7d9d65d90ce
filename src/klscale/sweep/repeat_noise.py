"""Run-to-run noise: every model is read twice on some texts, and the KL of both is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Integers
from klscale.science.kl import KL, kl
from klscale.store.store import Entry, Store
from klscale.vectors.vectors import Scores

if TYPE_CHECKING:
    from klscale.sources.transformers.engine import Engine
    from klscale.sources.transformers.tokens import Tokens

NOISE_PART, NOISE_TEXTS = 0.02, (20, 100)
"""Part of a model's texts that are read again to tell its noise floor, and how many at least and at most."""


def noise_floor(
    entry: Entry, texts: TextSet, store: Store, *, device: str | None = None, progress: Progress = SILENT
) -> KL | None:
    """KL in bits per byte between two readings of one scored model, in batches of different shape and order: what
    rounding alone makes of a squared distance. Kept in the store when a model is scored; where it is not there it is
    read now. None for a model that is not here, and on texts that are not."""
    from klscale.sources.transformers.engine import Engine
    from klscale.sources.transformers.files import resolve
    from klscale.sources.transformers.load import load
    from klscale.sources.transformers.tokens import tokenize

    if (kept := store.noise_floor(texts.id, entry.key)) is not None:
        return kept
    if texts.external or entry.ref.path is None or not entry.ref.path.is_dir():
        return None
    loaded = load(resolve(entry.ref), device)
    progress.begin(f"reading {entry.ref} twice")
    engine = Engine(loaded, device=device)
    return keep_noise_floor(entry.key, engine, tokenize(loaded.tokenizer, texts), texts, store)


def noise_texts(texts: Integers) -> Integers:
    """The random texts among these that tell the noise floor, in order: 2 %, at least 20 and at most 100."""
    n = int(np.clip(NOISE_PART * len(texts), *NOISE_TEXTS))
    return np.sort(np.random.default_rng(0).permutation(texts)[:n])


def keep_noise_floor(
    key: str, engine: Engine, tokens: Tokens, texts: TextSet, store: Store, *, known: Scores | None = None
) -> KL | None:
    """Read the model of an engine again, in batches of another shape and in another order, and keep the noise floor of
    the vector `key`; None for fewer than two texts. `known`, of which the texts are taken, are its values already: they
    are the first reading. Texts that leave no room for padding are cut short, and then read twice."""
    chosen = noise_texts(np.arange(len(texts)) if known is None else known.text)
    if len(chosen) < 2:
        return None
    short, text_bytes = shortened(engine, tokens, texts, chosen)
    if known is not None and short is tokens:
        first = known.at(chosen)
    else:
        first = Scores.concatenate([*engine.score(short, chosen)])
    again = Scores.concatenate([*other_engine(engine, short, chosen).score(short, chosen)])
    found = kl(
        first.log_likelihood, again.log_likelihood, text_bytes, clip=texts.clip, documents=texts.documents_of(chosen)
    )
    store.write_noise_floor(texts.id, key, found)
    return found


def other_engine(engine: Engine, tokens: Tokens, texts: Integers) -> Engine:
    """The same model, reading these texts in batches of another shape and in another order."""
    from klscale.sources.transformers.engine import Engine

    budget = engine.other_budget(tokens, texts)
    return Engine(engine.loaded, device=str(engine.device), batch_tokens=budget, shuffled=True, padded=True)


def shortened(engine: Engine, tokens: Tokens, texts: TextSet, chosen: Integers) -> tuple[Tokens, Integers]:
    """Tokens of the chosen texts, cut so that they can be padded, and the bytes of each in proportion (n,)."""
    lengths, longest = tokens.lengths[chosen], engine.longest_padded
    if longest is None or (lengths <= longest).all():
        return tokens, texts.bytes[chosen]
    kept = texts.bytes[chosen] * np.minimum(lengths, longest) / lengths
    return tokens.cut(longest), np.rint(kept).astype(np.int64)
