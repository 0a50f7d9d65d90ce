"""Do two engines, dtypes or days compute the same model? KL beside that of repeat runs, and where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from klscale.errors import InputError
from klscale.inputs.texts import TextSet
from klscale.science.estimates import Estimate, cluster_codes
from klscale.science.kl import LOG_2
from klscale.science.reported import ReportedKL
from klscale.science.spans import SpanChanges
from klscale.studies.changes import LISTED, ChangedSpan, changes
from klscale.vectors.vectors import Vectors

DEPTHS = (0, 64, 256, 1024, 4096, 16384, 65536)
"""Bytes of context at which the buckets of depth begin."""


@dataclass(frozen=True)
class Depth:
    """KL by spans in bits per byte at one depth of context: of the spans that begin `start` bytes or more, and less
    than `stop` (None: no limit), behind the beginning of their text. `largest` is the largest change of one in nats."""

    start: int
    stop: int | None
    n_spans: int
    kl: Estimate
    largest: float


@dataclass(frozen=True, eq=False)
class Drift:
    """How far `b` is from `a` in bits per byte.

    `kl` is by sampled tokens where both models have them, else by spans. `by_spans` and `whole_texts` are KL by these.
    `noise_a` and `noise_b` are the run-to-run noise of each: KL by whole texts between two runs of one model; NaN where
    it is not known. `noise` is half their sum, which they add to `whole_texts`. `difference` is that in bits per byte,
    b less a, paired. `n_unlike` counts the texts in which the two score different bytes (`Vectors.n_unlike`).
    `depths` has KL by depth of context, and `spans` the positions that differ most.
    """

    a: str
    b: str
    texts: TextSet
    kl: ReportedKL
    difference: Estimate
    noise_a: float
    noise_b: float
    noise: float
    largest: float
    n_unlike: int
    depths: tuple[Depth, ...]
    spans: tuple[ChangedSpan, ...]

    @property
    def beside_noise(self) -> Any:
        """The KL that is compared with `noise`, which is of whole texts: that by these, or by spans where the two score
        different bytes."""
        return self.kl.whole_texts if self.n_unlike == 0 or self.kl.spans is None else self.kl.spans

    @property
    def times_noise(self) -> float:
        """That KL over `noise`; NaN where that is not known, or zero."""
        return float(self.beside_noise.value / self.noise) if self.noise > 0 else math.nan

    @property
    def is_equal(self) -> bool:
        """Whether all log-likelihoods are equal to the last digit."""
        return self.largest == 0


def drift(vectors: Vectors, a: str, b: str, *, most: int = LISTED) -> Drift:
    """How far one model is from another, with the `most` positions that differ most. Raises InputError for models
    without common texts, and for vectors that were made by different conventions."""
    pair = vectors.subset([a, b])
    difference = np.abs(np.diff(pair.log_likelihood, axis=0))
    if np.isnan(difference).all():
        raise InputError(f"{a} and {b} have no texts in common.", remedy="Score both on all texts.")
    found = changes(vectors, a, b, most=most)
    return Drift(
        a=a,
        b=b,
        texts=vectors.texts,
        kl=found.kl,
        difference=found.difference,
        noise_a=float(pair.noise_floor[0]),
        noise_b=float(pair.noise_floor[1]),
        noise=float(pair.noise()[0, 1]),
        largest=float(np.nanmax(difference)),
        n_unlike=0 if found.all_spans is None else pair.n_unlike(a, b),
        depths=() if found.all_spans is None else tuple(by_depth(pair, found.all_spans)),
        spans=found.spans,
    )


def by_depth(pair: Vectors, spans: SpanChanges) -> list[Depth]:
    """KL of two models by spans, by the bytes of context before a span: for each bucket what its spans add to V, over
    ln 2 and their bytes (`science.spans`). Their mean, weighted by bytes, is KL by spans. Buckets without two texts are
    left out."""
    a, b = pair.names
    V, size = pair.span_terms(a, b)
    parts, length = spans.share * V.sum(), (spans.stop - spans.start).astype(np.float64)
    length *= size.sum() / (length.sum() or 1.0)  # bytes before the first scored token are in no span's size
    found, n_texts = [], len(pair.texts)
    for start, stop in zip(DEPTHS, (*DEPTHS[1:], None), strict=True):
        inside = (spans.start >= start) & (spans.start < (math.inf if stop is None else stop))
        text = spans.text[inside]
        there = np.unique(text)
        if len(there) < 2:
            continue
        values, weights = (
            np.bincount(text, part[inside], n_texts)[there].astype(np.float64) for part in (parts, length * LOG_2)
        )
        kl = Estimate.ratio(values, weights, cluster_codes(pair.texts.document, there))
        found.append(Depth(start, stop, int(inside.sum()), kl, float(np.abs(spans.change[inside]).max())))
    return found
