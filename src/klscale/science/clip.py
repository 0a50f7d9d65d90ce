"""Which texts models have in common, and whether the text set's clip serves them: the one place for both rules.

The clip is a lower limit of log-likelihoods in nats, frozen with the text set. It serves a vector of which it moves at
most 5 % of the values. A pair is clipped where the clip serves both vectors; several pairs that are compared with each
other are clipped where it serves all of their vectors. Otherwise the values stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.science.arrays import Floats, Integers

CLIP_LIMIT = 0.05
"""The largest fraction of a vector's values that a clip may move and still serve it."""


def moved_by_clip(L: Floats, clip: float | None) -> Floats:
    """Fraction (...,) of the values in each row of L (..., N) that the clip moves; NaN does not count."""
    if clip is None:
        return np.zeros(L.shape[:-1])
    return np.asarray((L < clip).sum(axis=-1) / np.maximum((~np.isnan(L)).sum(axis=-1), 1))


def beyond_clip_limit(moved: Any) -> Any:
    """Whether the clip moves too much, a fraction `moved` of a vector: the vector then stays unclipped."""
    return moved > CLIP_LIMIT


def common_texts(L: Floats) -> NDArray[np.bool_]:
    """Which texts (N,) all rows of L (K, N) have."""
    return np.asarray(~np.isnan(L).any(axis=0))


def clip_for_all(L: Floats, clip: float | None) -> float | None:
    """The clip where it serves all rows of L (K, N), or None."""
    return None if beyond_clip_limit(moved_by_clip(L, clip)).any() else clip


def on_common_texts(L: Floats, clip: float | None) -> tuple[Floats, Integers]:
    """Rows (K, n) on the n texts that all rows of L (K, N) have, clipped where the clip serves all; and the positions
    (n,) of these texts."""
    texts = np.flatnonzero(common_texts(L))
    L = L[:, texts]
    clip = clip_for_all(L, clip)
    return L if clip is None else np.maximum(L, clip), texts


def pairs_by_texts(L: Floats, pairs: Integers) -> Iterator[tuple[Integers, Integers]]:
    """Groups of `pairs` (P, 2) of rows of L (K, N) that have the same texts in common: the places of the pairs in
    `pairs`, and the positions of the texts. Pairs with fewer than two texts in common are left out."""
    if not len(pairs):
        return
    present = ~np.isnan(L)
    if present.all():
        patterns, pattern_of = present[:1], np.zeros(len(L), dtype=np.int64)
    else:
        patterns, pattern_of = np.unique(present, axis=0, return_inverse=True)
    low, high = np.sort(pattern_of[pairs], axis=1).T
    combination = low * len(patterns) + high
    order = np.argsort(combination, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(combination[order])) + 1):
        p, q = divmod(int(combination[members[0]]), len(patterns))
        texts = np.flatnonzero(patterns[p] & patterns[q])
        if len(texts) > 1:
            yield members, texts
