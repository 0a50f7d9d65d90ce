"""Standard errors by leaving out a twentieth of the documents at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from klscale.inputs.texts import TextSet
from klscale.science.arrays import Floats

FOLDS = 20


def kept_texts(texts: TextSet) -> Iterator[NDArray[np.bool_]]:
    """The texts (N,) that stay where each group of documents is left out; of single texts where none has a document."""
    document = texts.document or tuple(map(str, range(len(texts))))
    fold = pd.factorize(np.array(document))[0] % FOLDS
    for left_out in range(int(fold.max()) + 1):
        yield fold != left_out


def standard_error(texts: TextSet, statistic: Callable[[NDArray[np.bool_]], ArrayLike]) -> Floats:
    """The jackknife's standard error of a statistic (...) of some of the texts (N,)."""
    again = np.stack([np.asarray(statistic(kept)) for kept in kept_texts(texts)])
    n = len(again)
    return np.asarray(np.sqrt((n - 1) / n * ((again - again.mean(axis=0)) ** 2).sum(axis=0)))
