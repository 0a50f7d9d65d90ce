"""Which texts models have in common, and whether the text set's clip serves them: the one place for both rules.

The clip is a lower limit of log-likelihoods in nats, frozen with the text set. It serves a vector if it moves at most
5 % of its values. A pair is clipped where the clip serves both vectors. Several pairs that are compared with each other
are clipped where it serves all of their vectors. Otherwise the values stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.science.arrays import Floats, Integers

CLIP_LIMIT = 0.05
"""The clip serves a vector if it moves at most this fraction of its values."""


def moved_by_clip(L: Floats, clip: float | None) -> Floats:
    """Fraction (...,) of the values in each row of L (..., N; nats) that the clip moves; NaN does not count."""
    if clip is None:
        return np.zeros(L.shape[:-1])
    return np.asarray((L < clip).sum(axis=-1) / np.maximum((~np.isnan(L)).sum(axis=-1), 1))


def beyond_clip_limit(moved: Any) -> Any:
    """Whether the clip moves too large a fraction `moved` of a vector; shape as given. It then stays unclipped."""
    return moved > CLIP_LIMIT


def clip_of_pairs(a: Floats, b: Floats, clip: float | None) -> tuple[Floats, NDArray[np.bool_]]:
    """For pairs of vectors of which the clip moves the fractions `a` and `b`: the larger fraction, and whether the pair
    is clipped; shapes as of a - b."""
    larger = np.maximum(a, b)
    return larger, ~beyond_clip_limit(larger) & (clip is not None)


def common_texts(L: Floats) -> NDArray[np.bool_]:
    """Boolean mask (N,) of the texts that all rows of L (K, N) have."""
    return np.asarray(~np.isnan(L).any(axis=0))


def clip_for_all(L: Floats, clip: float | None) -> float | None:
    """The clip in nats where it serves all rows of L (K, N), or None."""
    return None if beyond_clip_limit(moved_by_clip(L, clip)).any() else clip


def on_common_texts(L: Floats, clip: float | None) -> tuple[Floats, Integers]:
    """Rows (K, n; nats) on the n texts that all rows of L (K, N) have, and the positions (n,) of these texts. The rows
    are clipped where the clip serves all of them."""
    texts = np.flatnonzero(common_texts(L))
    L = L[:, texts]
    clip = clip_for_all(L, clip)
    return L if clip is None else np.maximum(L, clip), texts


def pairs_by_texts(L: Floats, pairs: Integers) -> Iterator[tuple[Integers, Integers]]:
    """Groups of `pairs` (P, 2) of rows of L (K, N) that have the same common texts.

    Each group is the positions of its pairs in `pairs`, and the positions of the texts. Pairs with fewer than two
    common texts are left out.
    """
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
