"""Benchmark scores, predicted from the vectors of a store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from klscale.display import Displayed
from klscale.inputs.texts import TextSet
from klscale.store.store import Store
from klscale.studies.predicting import Prediction, predict_scores
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.score import stored_vectors
from klscale.vectors.imports import read_scores
from klscale.vectors.vectors import Vectors


@dataclass(frozen=True, eq=False)
class Predicted(Displayed):
    """What the models of a store (`vectors`) predict of each score: `predictions`, one a score."""

    vectors: Vectors
    predictions: tuple[Prediction, ...]

    @property
    def texts(self) -> TextSet:
        """The texts of the vectors."""
        return self.vectors.texts

    def __str__(self) -> str:
        lines: list[str] = []
        for one in self.predictions:
            lines += [
                f"{one.benchmark} by {method.by}: error {method.root_mean_squared_error}" for method in one.methods
            ]
            lines += [f"{new.model}: {one.benchmark} {new.predicted}" for new in one.new]
        return "\n".join(lines)


def predict(
    scores: str | os.PathLike[str] | Mapping[str, Mapping[str, float]],
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    options: Options = Options(),
) -> Predicted:
    """Scores of models predicted from their coordinates in log-likelihood space, each in its own unit: errors on groups
    of models that are held out, beside those of simpler predictions, and predictions for models without a score.

    `scores` is {benchmark: {model: score}}, or a CSV or Parquet file with a column of models and columns of scores.

    Raises InputError for a file that cannot be used, for fewer than 10 models of a score or 3 types of them, and for
    texts or options that cannot be used. Method: ridge regression, arXiv 2502.16173.

        predicted = klscale.predict("scores.csv", store="klscale-store")
        print(predicted.predictions[0].methods[0].root_mean_squared_error)
    """
    options = options.at(texts, store)
    vectors = stored_vectors(options.opened(), options)
    if not isinstance(scores, Mapping):
        scores = read_scores(scores, vectors.names, progress=options.progress)
    return Predicted(vectors, predict_scores(vectors, scores, progress=options.progress))
