"""Second and fourth moments of the differences of all pairs of rows, by matrix products."""

from __future__ import annotations

import numpy as np

from klscale.science.arrays import Floats, Integers
from klscale.science.estimates import cluster_variance, small_sample_factor

CLOSE = 1e-6
"""Smallest ratio of a pair's fourth moment to that of its rows. Below it products lose digits, and the pair is
recomputed by direct difference."""


def double_centre(log_likelihood: Floats) -> Floats:
    """Q (K, N; nats): L minus the mean of each row, then of each column. Row differences keep their variance."""
    centred: Floats = log_likelihood - log_likelihood.mean(axis=1, keepdims=True)
    centred -= centred.mean(axis=0, keepdims=True)
    return centred


def pairwise_moments(L: Floats, clusters: Integers | None = None) -> tuple[Floats, Floats, Floats]:
    """m2 (nats**2), m4 (nats**4) and spread (nats**2), each (K, K), of d = l_i - l_j for all pairs of rows of L (K, N).

    d is centred; L has no missing values. The spread is sqrt(N) times the standard error of m2: sqrt(m4 - m2**2) for
    independent texts, else over `clusters` (N,). The moments are matrix products of double-centred rows, which is exact
    for differences, in blocks of texts. Pairs that are too close for products are recomputed from L.
    """
    K, N = L.shape
    Q = double_centre(L)
    s11, s22, s31 = np.zeros((K, K)), np.zeros((K, K)), np.zeros((K, K))
    fourth = np.zeros(K)
    for start in range(0, N, 2048):
        a = Q[:, start : start + 2048]
        a2 = a * a
        s11 += a @ a.T
        s22 += a2 @ a2.T
        s31 += (a2 * a) @ a.T
        fourth += (a2 * a2).sum(axis=1)
    second = np.diagonal(s11)
    m2 = (second[:, None] + second[None, :] - 2 * s11) / N
    m4 = (fourth[:, None] + fourth[None, :] - 4 * (s31 + s31.T) + 6 * s22) / N
    variance = m4 - m2**2 if clusters is None else _pairwise_cluster_variance(Q, m2, clusters)

    close = np.triu(m4 < CLOSE * (fourth[:, None] + fourth[None, :]) / N, k=1)
    for i in np.flatnonzero(close.any(axis=1)):
        for js in np.array_split(np.flatnonzero(close[i]), -(-int(close[i].sum()) // 64)):
            d = L[i] - L[js]
            d -= d.mean(axis=1, keepdims=True)
            d2 = d * d
            direct = d2.mean(axis=1)
            m2[i, js] = m2[js, i] = direct
            m4[i, js] = m4[js, i] = (d2 * d2).mean(axis=1)
            d2 -= direct[:, None]
            variance[i, js] = variance[js, i] = (
                (d2 * d2).mean(axis=1) if clusters is None else cluster_variance(d2, clusters)
            )
    for matrix in (m2, m4, variance):
        np.fill_diagonal(matrix, 0.0)
        np.maximum(matrix, 0.0, out=matrix)
    return m2, m4, np.sqrt(variance)


def pairwise_variances(L: Floats) -> Floats:
    """m2 (K, K; nats**2) of `pairwise_moments` alone, in a fifth of its time. Pairs that are too close for products are
    not recomputed: an m2 that is 1e-10 of the rows' own has a relative error of 1e-5."""
    Q = double_centre(L)
    products = Q @ Q.T
    second = np.diagonal(products)
    m2 = np.maximum(second[:, None] + second[None, :] - 2 * products, 0.0) / L.shape[1]
    np.fill_diagonal(m2, 0.0)
    return np.asarray(m2)


def _pairwise_cluster_variance(Q: Floats, m2: Floats, clusters: Integers) -> Floats:
    """`cluster_variance` (K, K) of d**2 - m2: sum_g (q_g - n_g m2)**2 / N, where q_g is the sum of d**2 over cluster g.

    With A_g = sum a**2 and C_g = sum a b over cluster g, q_g = A_g(i) + A_g(j) - 2 C_g(i, j). All sums are matrix
    products but that of C_g**2; over texts that are alone in their cluster, it is one too.
    """
    order = np.argsort(clusters, kind="stable")
    Q = Q[:, order]
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    counts = np.diff(starts, append=Q.shape[1]).astype(np.float64)
    N, weight = Q.shape[1], np.repeat(counts, counts.astype(np.int64))
    squares = Q * Q
    A = np.add.reduceat(squares, starts, axis=1)
    diagonal = (A * A).sum(axis=1)
    cross = (np.repeat(A, counts.astype(np.int64), axis=1) * Q) @ Q.T
    sum_c2 = squares[:, weight == 1] @ squares[:, weight == 1].T
    for start, count in zip(starts[counts > 1], counts[counts > 1].astype(np.int64), strict=True):
        member = Q[:, start : start + count]
        sum_c2 += (member @ member.T) ** 2
    q2 = diagonal[:, None] + diagonal[None, :] + 2 * (A @ A.T) - 4 * (cross + cross.T) + 4 * sum_c2
    weighted = (weight * Q) @ Q.T
    n_q = np.diagonal(weighted)[:, None] + np.diagonal(weighted)[None, :] - 2 * weighted
    total = q2 - 2 * m2 * n_q + m2**2 * (counts**2).sum()
    return np.asarray(total / N * small_sample_factor(len(starts)))
