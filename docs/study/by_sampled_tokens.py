"""Spans and whole texts beside sampled tokens, on models whose exact KL takes too long: a row a pair.

    python docs/study/by_sampled_tokens.py CACHE --shared SHARED --model gemma3 --texts 20 --out FILE.csv

Models, variants, pairs and the public-domain books are those of `real_models.py`, whose CACHE is used. Scored is what
its store lacks.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from jackknife import standard_error
from numpy.typing import NDArray
from real_models import ESTIMATES, PACKAGES, PAIRS, directory, text_sets, variants

from klscale.science.arrays import Floats
from klscale.store.store import Store
from klscale.sweep.score import score
from klscale.vectors.vectors import Vectors

WITHOUT = ("fp4",)


def ratios(pair: Vectors, kept: NDArray[np.bool_]) -> Floats:
    """KL by sampled tokens in bits per byte, and over it that by spans and by whole texts, on some of the texts."""
    part = replace(pair, log_likelihood=np.where(kept, pair.log_likelihood, np.nan))
    sampled = ESTIMATES["sampled_tokens"](part)
    return np.array([sampled, ESTIMATES["spans"](part) / sampled, ESTIMATES["whole_texts"](part) / sampled])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--model", default="gemma3", choices=PACKAGES)
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    *_, books = text_sets(options.shared, options.texts)
    models, store = variants(directory(options.model, options.cache), WITHOUT), Store(options.cache / "store")
    outcomes = score([*models.values()], books, store)
    if failed := [str(outcome.error) for outcome in outcomes if outcome.error is not None]:
        raise SystemExit("\n".join(failed))
    vectors, rows = store.vectors(store.texts(books.id)), []
    for a, b in PAIRS:
        if {a, b} & {*WITHOUT}:
            continue
        pair = vectors.subset([models[a], models[b]])
        value = ratios(pair, np.ones(len(books), dtype=bool))
        error = standard_error(books, lambda kept, pair=pair: ratios(pair, kept))
        row = {"model": options.model, "texts": books.name, "n_texts": len(books), "a": a, "b": b}
        for name, one, its_error in zip(("sampled_tokens", "spans", "whole_texts"), value, error, strict=True):
            row |= {name: one, f"{name}_se": its_error}
        sampled = pair.sampled_kl(*pair.names)
        rows.append({**row, "effective": sampled.effective, "largest_weight": sampled.largest_weight})
    found = pd.DataFrame(rows)
    found.to_csv(options.out, index=False, float_format="%.5g")
    print(found.to_string(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main()
