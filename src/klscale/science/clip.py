"""Which texts models have in common, and whether the text set's clip serves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from klscale.science.arrays import Floats, Integers

CLIP_LIMIT = 0.05
"""A clip that moves a larger fraction of either vector than this is not used for the headline value."""


def moved_by_clip(L: Floats, clip: float | None) -> Floats:
    """Fraction of each row of L (..., N) that the clip moves, of the values that are there."""
    if clip is None:
        return np.zeros(L.shape[:-1])
    return np.asarray((L < clip).sum(axis=-1) / np.maximum((~np.isnan(L)).sum(axis=-1), 1))


def pairs_by_texts(L: Floats, pairs: Integers) -> Iterator[tuple[Integers, Integers]]:
    """Places in `pairs` (P, 2) of those that have the same texts in common, two at least, and these texts: such pairs
    can be computed together."""
    patterns, pattern_of = np.ones((1, L.shape[1]), dtype=bool), np.zeros(len(L), dtype=np.int64)
    if not (present := ~np.isnan(L)).all():
        patterns, pattern_of = np.unique(present, axis=0, return_inverse=True)
    combinations, kind = np.unique(np.sort(pattern_of[pairs], axis=1), axis=0, return_inverse=True)
    for number, (p, q) in enumerate(combinations):
        texts = np.flatnonzero(patterns[p] & patterns[q])
        if len(texts) > 1:
            yield np.flatnonzero(kind.ravel() == number), texts


def clip_serves_all(rows: Floats, clip: float) -> bool:
    """Whether the clip moves no more than 5 % of any of these rows (K, N), which have no missing values."""
    return not rows.size or bool(moved_by_clip(rows, clip).max() <= CLIP_LIMIT)


def on_common_texts(rows: Sequence[Floats], clip: float | None) -> tuple[Floats, Integers]:
    """Rows (K, n) on the texts that all have, and these; clipped where the clip serves all of them."""
    L = np.stack(rows)
    texts = np.flatnonzero(~np.isnan(L).any(axis=0))
    L = L[:, texts]
    return np.maximum(L, clip) if clip is not None and clip_serves_all(L, clip) else L, texts
