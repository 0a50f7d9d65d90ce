"""Ratios of sums over texts, for all pairs of models at once, a tile of models against a tile of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from klscale.science.arrays import Floats, Integers
from klscale.science.estimates import small_sample_factor

TILE = 64
"""Models of a tile: what all pairs of two tiles have in a few texts fits the cache of a processor."""

Between = Callable[[slice, slice], Floats]
"""The values V_u(i, j) (U, m, n) of U units between m models and n models, which two slices name."""

LANES = 4
"""Parts that are summed side by side: as many on every machine, so that all add in the same order."""


class PairSums:
    """`estimates.ratio_of_sums` for all pairs of K models of values V_u(i, j).

    A unit u is a text, or all texts of one document. Where V is symmetric, half the pairs are computed.
    """

    def __init__(self, n_models: int, *, symmetric: bool) -> None:
        self.n_models, self.symmetric = n_models, symmetric
        self.total, self._squares, self._products = np.zeros((3, n_models, n_models))
        self._size = self._size_squares = 0.0

    @classmethod
    def over(
        cls,
        n_models: int,
        work: Sequence[Integers],
        read: Callable[[Integers], tuple[Between, Floats]],
        *,
        symmetric: bool,
    ) -> PairSums:
        """Over all units: `read` gives the values between models, and the sizes (U,), of those in one piece of
        `work`."""

        def one_lane(lane: int) -> PairSums:
            sums = cls(n_models, symmetric=symmetric)
            for piece in work[lane::LANES]:
                sums._add(*read(piece))
            return sums

        with ThreadPoolExecutor(LANES) as pool:
            whole, *others = pool.map(one_lane, range(LANES))
        for other in others:
            whole._include(other)
        if symmetric:
            i, j = np.tril_indices(n_models, k=-1)
            for sums in (whole.total, whole._squares, whole._products):
                sums[i, j] = sums[j, i]
        return whole

    def _add(self, between: Between, size: Floats) -> None:
        self._size += float(size.sum())
        self._size_squares += float((size**2).sum())
        weights = np.stack([np.ones_like(size), size])
        for start in range(0, self.n_models, TILE):
            for other in range(start if self.symmetric else 0, self.n_models, TILE):
                tile = slice(start, start + TILE), slice(other, other + TILE)
                V = between(*tile)
                flat = V.reshape(len(size), -1)
                total, products = (weights @ flat).reshape(2, *V.shape[1:])
                self.total[tile] += total
                self._products[tile] += products
                self._squares[tile] += np.einsum("up,up->p", flat, flat).reshape(V.shape[1:])

    def _include(self, other: PairSums) -> None:
        self.total += other.total
        self._squares += other._squares
        self._products += other._products
        self._size += other._size
        self._size_squares += other._size_squares

    def ratio(self, n_clusters: int = 0) -> tuple[Floats, Floats]:
        """The ratios and their standard errors (K, K), over `n_clusters` documents (0: over independent texts)."""
        value = self.total / self._size
        squares = self._squares - 2 * value * self._products + value**2 * self._size_squares
        factor = small_sample_factor(n_clusters) if n_clusters else 1.0
        return value, np.sqrt(np.maximum(squares, 0.0) * factor) / self._size


def products(left: Floats, right: Floats) -> Between:
    """V_u(i, j) = sum_n left_uni right_unj, of arrays (U, n, K)."""
    rows = left.transpose(0, 2, 1)
    return lambda i, j: rows[:, i] @ right[:, :, j]


def texts_of_units(codes: Integers) -> list[Integers]:
    """The texts of each unit, from the unit (N,) of each text; units are numbered from 0."""
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def batches(lengths: Integers, limit: int) -> Iterator[Integers]:
    """Units of similar lengths together, by their numbers, so that little has to be padded: at most `limit` in length
    together, or one alone."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, limit // max(1, int(lengths[order[start]])))
        yield order[start : start + count]
        start += count
