"""Ridge regression of scores on many coordinates, with penalties and errors from folds of whole groups.

Models are K rows, coordinates N columns, and K is much smaller than N. So all is computed from the Gram matrix (K, K)
of the rows, the dual form (Saunders, Gammerman and Vovk, ICML 1998):

    predicted(x) = mean y + (x - mean x)' X' (X X' + alpha I)^-1 (y - mean y)        X, y: rows and scores less means

The grid of penalties is that of arXiv 2502.16173, for rows in nats. The intercept is not penalised.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from klscale.science.arrays import Floats, Integers

ALPHAS: Floats = np.logspace(1, 9, 9)
"""Penalties in squared nats."""
FOLDS = 5


def group_folds(groups: Integers) -> Integers:
    """The fold (K,) of each model; all models of a group are in one. `groups` (K,) are labels of any kind.

    Groups go to the fold with the fewest models, the largest group first. There are `FOLDS`, or as many as groups.
    """
    codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    n_folds = min(FOLDS, len(sizes))
    filled, fold_of = np.zeros(n_folds, dtype=np.int64), np.empty(len(sizes), dtype=np.int64)
    for group in np.argsort(-sizes, kind="stable"):
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += sizes[group]
    return np.asarray(fold_of[codes])


def ridge(gram: Floats, scores: Floats, train: Integers, test: Integers) -> Floats:
    """Predicted scores (A, M, T) of M `test` rows by each of the `ALPHAS`, from `train` rows and `scores` (K, T).

    `gram` (K, n) holds the products of all rows with the first n, in squared nats. `train` rows are among these n.
    """
    of_train = gram[np.ix_(train, train)]
    means = of_train.mean(axis=0)
    to_test = gram[np.ix_(test, train)]
    to_test = to_test - to_test.mean(axis=1, keepdims=True) - means + means.mean()
    values, axes = np.linalg.eigh(of_train - means - means[:, None] + means.mean())
    middle = scores[train].mean(axis=0)
    rotated = axes.T @ (scores[train] - middle)
    shrunk = rotated / (np.maximum(values, 0.0) + ALPHAS[:, None])[:, :, None]
    return np.asarray(middle + (to_test @ axes) @ shrunk)


def best_alphas(gram: Floats, scores: Floats, groups: Integers, rows: Integers) -> Integers:
    """Position (T,) in `ALPHAS` of the penalty with the smallest squared error over the folds of these rows."""
    error = np.zeros((len(ALPHAS), scores.shape[1]))
    for train, test in _parts(groups, rows):
        error += ((ridge(gram, scores, train, test) - scores[test]) ** 2).sum(axis=1)
    return np.asarray(error.argmin(axis=0))


def fit_ridge(gram: Floats, scores: Floats, groups: Integers, train: Integers, test: Integers) -> tuple[Floats, Floats]:
    """Predicted scores (M, T) of the `test` rows from the `train` rows, and the penalties (T,) by folds of these."""
    best = best_alphas(gram, scores, groups, train)
    predicted = ridge(gram, scores, train, test)
    return predicted[best, :, np.arange(len(best))].T, ALPHAS[best]


def held_out(predict: Callable[[Integers, Integers], Floats], groups: Integers, n_scores: int) -> Floats:
    """Scores (K, T) of all rows, each by `predict(train, test)` (M, T) from the folds that its group is not in."""
    predicted = np.empty((len(groups), n_scores))
    for train, test in _parts(groups, np.arange(len(groups))):
        predicted[test] = predict(train, test)
    return predicted


def _parts(groups: Integers, rows: Integers) -> list[tuple[Integers, Integers]]:
    """The rows outside of each fold, and those in it."""
    folds = group_folds(groups[rows])
    return [(rows[folds != fold], rows[folds == fold]) for fold in range(folds.max() + 1)]
