"""Does the estimator change what is found? Exponents, the scale's order and quantization by each estimator of KL; and
how far spans are from sampled tokens.

    klscale demo && python docs/study/estimators.py klscale-demo

Reads the store that `klscale demo` left. Standard errors are those of a jackknife over documents.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jackknife import standard_error
from numpy.typing import NDArray

from klscale.science import diffusion
from klscale.science.arrays import Floats
from klscale.store.store import Store
from klscale.studies import trajectories
from klscale.studies.settings import setting_of
from klscale.vectors.vectors import Vectors

MATRICES: dict[str, Callable[[Vectors], Floats]] = {
    "whole texts": lambda vectors: vectors.kl().value,
    "spans": lambda vectors: vectors.span_kl_matrix().value,
    "sampled tokens": lambda vectors: vectors.sampled_kl_matrix().symmetric,
}
"""KL (K, K) in bits per byte between all pairs."""


def jackknifed(vectors: Vectors, statistic: Callable[[Vectors], Floats]) -> tuple[Floats, Floats]:
    """A statistic (n,) and its standard errors."""

    def of(kept: NDArray[np.bool_]) -> Floats:
        return statistic(replace(vectors, log_likelihood=np.where(kept, vectors.log_likelihood, np.nan)))

    return statistic(vectors), standard_error(vectors.texts, of)


def exponents(vectors: Vectors) -> Iterator[dict[str, Any]]:
    """c_q of each run by each estimator, on the same texts."""
    for run in trajectories.find_runs(vectors):
        row: dict[str, Any] = {"run": run.name, "checkpoints": len(run)}
        for name, matrix in MATRICES.items():

            def exponent(some: Vectors, matrix: Callable[[Vectors], Floats] = matrix, run: Any = run) -> Floats:
                return np.atleast_1d(diffusion.fits(run.steps, matrix(some), after=run.warmup).exponent)

            value, error = jackknifed(run.vectors, exponent)
            row |= {name: float(value[0]), f"{name}, SE": float(error[0])}
        if not math.isnan(row["whole texts"]):
            yield row


def settings(vectors: Vectors) -> Iterator[dict[str, Any]]:
    """Median KL of each setting by each estimator, over the pairs that differ in it alone."""
    rows = vectors.attributes.to_dict("records")
    known = [{str(key): value for key, value in row.items() if not pd.isna(value)} for row in rows]
    pairs: dict[str, list[tuple[int, int]]] = {}
    for i, j in zip(*np.triu_indices(len(vectors), k=1), strict=True):
        setting = setting_of(known[i], known[j], vectors.models[i], vectors.models[j])
        if setting is not None:
            pairs.setdefault(setting, []).append((i, j))

    def medians(some: Vectors, matrix: Callable[[Vectors], Floats]) -> Floats:
        value = matrix(some)
        return np.array([np.median([value[pair] for pair in at]) for at in pairs.values()])

    found = {name: jackknifed(vectors, lambda some, m=matrix: medians(some, m)) for name, matrix in MATRICES.items()}
    for place, (setting, at) in enumerate(pairs.items()):
        row: dict[str, Any] = {"setting": setting, "pairs": len(at)}
        for name, (value, error) in found.items():
            row |= {name: float(value[place]), f"{name}, SE": float(error[place])}
        yield row


def ranges(vectors: Vectors) -> Iterator[dict[str, Any]]:
    """KL by spans over that by sampled tokens, of all pairs whose sampled tokens have a standard error of 10 % at most,
    by the size of the value by spans and by whether both models are near the texts."""
    sampled, spans = vectors.sampled_kl_matrix(), vectors.span_kl_matrix().value
    i, j = np.triu_indices(len(vectors), k=1)
    known = sampled.symmetric_error[i, j] <= 0.1 * sampled.symmetric[i, j]
    i, j = i[known], j[known]
    found = pd.DataFrame({
        "far": vectors.far[i] | vectors.far[j],
        "by spans, bits/byte": pd.cut(spans[i, j], [0, 0.1, 0.3, 0.5, 0.75, 1, 2, np.inf]),
        "ratio": spans[i, j] / sampled.symmetric[i, j],
    })  # fmt: skip
    for (far, size), part in found.groupby(["far", "by spans, bits/byte"], observed=True):
        quantiles = {f"{q:.0%}": part["ratio"].quantile(q) for q in (0, 0.05, 0.5, 0.95, 1)}
        yield {"far": far, "by spans, bits/byte": size, "pairs": len(part)} | quantiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    store = Store(parser.parse_args().demo / "store")
    vectors = store.vectors(store.resolve_texts(None))
    for found in (exponents, settings, ranges):
        print(pd.DataFrame(found(vectors)).to_string(index=False, float_format="%.4g"), flush=True)


if __name__ == "__main__":
    main()
