"""Maps: models as points in few dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from klscale.divergence import Floats
from klscale.vectors import Vectors


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
    values, axes = np.linalg.eigh(rows @ rows.T)
    values, axes = values[::-1].clip(min=0.0), axes[:, ::-1]
    points = axes[:, :n] * np.sqrt(values[:n])
    largest = points[np.abs(points).argmax(axis=0), np.arange(points.shape[1])]
    total = values.sum()
    return Map(points * np.where(largest < 0, -1.0, 1.0), values[:n] / (total if total > 0 else 1.0))
