"""Maps: models as points in few dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from klscale.divergence import Floats
from klscale.errors import InputError
from klscale.vectors import Vectors

PERPLEXITY, SEED = 30.0, 42
"""Of the published maps (Kishino et al., arXiv 2505.15353); fewer models than 91 take a lower perplexity."""


@dataclass(frozen=True, eq=False)
class Map:
    """`points` (K, n), whose squared distances approximate KL in bits per byte; `share` (n,) of the variance that each
    axis holds."""

    points: Floats
    share: Floats


def pca(vectors: Vectors, n: int = 2) -> Map:
    """Principal components of the coordinates, from the eigenvectors of their K x K Gram matrix (Oyama et al.,
    arXiv 2502.16173). The sign of an axis is such that its largest entry is positive."""
    rows = vectors.coordinates()
    return principal_components(rows @ rows.T, n)


def gram_matrix(squared_distance: Floats) -> Floats:
    """The Gram matrix (..., K, K) of centred points with these squared distances (..., K, K): classical scaling."""
    rows = squared_distance.mean(axis=-1, keepdims=True)
    columns = squared_distance.mean(axis=-2, keepdims=True)
    return np.asarray(-0.5 * (squared_distance - rows - columns + rows.mean(axis=-2, keepdims=True)))


def principal_components(gram: Floats, n: int) -> Map:
    """The map with `n` axes of points with this Gram matrix (..., K, K), which are centred."""
    values, axes = np.linalg.eigh(gram)
    values, axes = values[..., ::-1].clip(min=0.0), axes[..., ::-1]
    points = axes[..., :n] * np.sqrt(values[..., None, :n])
    largest = np.take_along_axis(points, np.abs(points).argmax(axis=-2)[..., None, :], axis=-2)
    total = values.sum(axis=-1, keepdims=True)
    return Map(points * np.where(largest < 0, -1.0, 1.0), values[..., :n] / np.where(total > 0, total, 1.0))


def tsne(squared_distance: Floats, n: int = 2) -> Floats:
    """t-SNE (K, n) of points with these squared distances (K, K), initialised by PCA. With fewer than 91 points the
    perplexity is a third of their neighbours. The same distances give the same map. Raises InputError for fewer than
    n + 1 points."""
    from openTSNE import TSNE

    K = len(squared_distance)
    if K <= n:
        raise InputError(f"{K} models are too few for t-SNE in {n} dimensions.", remedy=f"Use {n + 1} or more.")
    points = principal_components(gram_matrix(squared_distance), K).points  # all axes: the distances are exact
    perplexity = min(PERPLEXITY, (K - 1) / 3)
    embedding = TSNE(
        n, perplexity=perplexity, initialization="pca", metric="euclidean", neighbors="exact",
        negative_gradient_method="bh", random_state=SEED, n_jobs=1,
    ).fit(points)  # fmt: skip
    return np.asarray(embedding)
