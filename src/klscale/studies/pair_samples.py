"""Pairs of models and their KL on the texts of a set: what studies of text sets are made on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from klscale.errors import InputError
from klscale.science.arrays import Floats, Integers
from klscale.science.clip import beyond_clip_limit, common_texts, moved_by_clip
from klscale.science.estimates import cluster_codes
from klscale.science.kl import kl_pairs
from klscale.studies.maps import ROUNDING
from klscale.studies.relatives import MOST_PAIRS
from klscale.vectors.vectors import Vectors

FEWEST_TEXTS, FEWEST_DOCUMENTS = 20, 5
"""Smallest block or domain with a KL: the logarithm of an estimate from fewer texts or documents is far from normal."""
FOLLOWED = 200
"""Largest number of pairs of models for a slope and its standard error."""


@dataclass(frozen=True, eq=False)
class PairSample:
    """Pairs of models on the texts that all have.

    `rows` (R, N; nats) are unclipped, then clipped; `places` (P, 2) are the rows of each pair's reported value.
    `models` (P, 2) are numbers of names, one for each run. `units` (N,) are numbers of the units that are drawn as a
    whole: documents or texts.
    """

    rows: Floats
    bytes: Integers
    documents: Any
    domain: Any
    units: Integers
    places: Integers
    models: Integers
    labels: tuple[tuple[str, str], ...]
    kl: Floats
    standard_error: Floats
    n_available: int
    n_identical: int

    @property
    def n_texts(self) -> int:
        return len(self.bytes)

    @property
    def n_units(self) -> int:
        return int(self.units.max()) + 1

    @property
    def clustered(self) -> bool:
        return self.n_units < self.n_texts

    def splits_into(self, n_blocks: int) -> bool:
        """Whether each of so many blocks has enough texts, and documents where these are shared."""
        return self.n_texts >= n_blocks * FEWEST_TEXTS and self.n_units >= n_blocks * FEWEST_DOCUMENTS

    def kl_of(self, draws: Floats, which: Any = slice(None)) -> Floats:
        """KL (P, R) in bits per byte of each pair, or of `which`; each text counts as often as `draws` (R, N) say."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found = kl_pairs(self.rows, self.bytes, self.places[which], draws=draws)
        return np.asarray(found["resampled"], dtype=np.float64)

    def some(self, most: int) -> Integers:
        """Positions of at most so many pairs, spread evenly."""
        count = len(self.labels)
        return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def pair_sample(vectors: Vectors, pairs: Integers, models: Integers) -> PairSample:
    """The sample of those `pairs` (P, 2) of these vectors that differ; `models` (K,) are the numbers of the names."""
    L, texts = vectors.log_likelihood, vectors.texts
    common = common_texts(L)
    if common.sum() < 2:
        least = vectors.names[int((~np.isnan(L)).sum(axis=1).argmin())]
        raise InputError(
            f"No two texts of {texts.name} were scored with all {len(vectors)} models.",
            f"{least} has the fewest.",
            "Score the rest of its texts, or leave it out.",
        )
    rows, size, documents = L[:, common], texts.bytes[common], texts.documents_of(common)
    places = pairs
    if (clip := texts.clip) is not None:
        serves = ~beyond_clip_limit(moved_by_clip(rows, clip))
        rows = np.concatenate([rows, np.maximum(rows, clip)])
        places = pairs + len(L) * serves[pairs].all(axis=1, keepdims=True)
    found = kl_pairs(rows, size, places, documents=documents)
    differ = found["value"] > ROUNDING
    clusters = cluster_codes(documents)
    names = vectors.names
    return PairSample(
        rows=rows,
        bytes=size,
        documents=documents,
        domain=None if texts.domain is None else np.asarray(texts.domain)[common],
        units=np.arange(len(size)) if clusters is None else clusters,
        places=places[differ],
        models=models[pairs[differ]],
        labels=tuple((names[a], names[b]) for a, b in pairs[differ]),
        kl=found["value"][differ],
        standard_error=found["standard_error"][differ],
        n_available=len(names) * (len(names) - 1) // 2,
        n_identical=int((~differ).sum()),
    )


def drawn_pairs(vectors: Vectors, seed: int) -> tuple[Integers, Integers]:
    """All pairs (P, 2) of models, or a random sample of them, and the number of each model's name (K,)."""
    if len(vectors) < 2:
        raise InputError(f"{len(vectors)} model: there is no pair.", remedy="Score another model on the same texts.")
    vectors.require_one_convention()
    order = np.argsort(np.array(vectors.names, dtype=object), kind="stable")  # the order of the models does not matter
    K = len(order)
    starts = np.concatenate([[0], np.cumsum(np.arange(K - 1, 0, -1))])
    codes = np.arange(starts[-1])
    if len(codes) > MOST_PAIRS:
        codes = np.sort(np.random.default_rng(seed).choice(starts[-1], MOST_PAIRS, replace=False))
    first = np.searchsorted(starts, codes, side="right") - 1
    pairs = np.sort(order[np.stack([first, codes - starts[first] + first + 1], axis=1)], axis=1)
    seeds = vectors.attributes["seed"].astype(object).tolist()
    runs = [f"{run} {number}" for run, number in zip(vectors.runs, seeds, strict=True)]
    return pairs, np.unique(runs, return_inverse=True)[1]
