"""Which KL of two models is reported: of the estimators that both models allow, the one that is nearest to KL.

    sampled tokens    exact next-token KL in expectation; one tokenizer                        `sampled_tokens`
    spans             0.9 to 2.2 times KL for trained models; any two tokenizers               `spans`
    whole texts       the published estimator; 1.4 to 24 times KL on a fixed text set          `kl`

The last is always known, and it alone is placed on the published scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from klscale.science.estimates import critical_value, format_estimate, log_interval
from klscale.science.kl import KL
from klscale.science.sampled_tokens import SampledKL
from klscale.science.spans import SpanKL

SAMPLED_TOKENS, SPANS, WHOLE_TEXTS = ESTIMATORS = ("sampled tokens", "spans", "whole texts")
"""From the nearest to KL on."""

LARGEST_BY_SPANS, FAR_MODEL = 0.75, 3.5
"""Bits per byte: the largest KL by spans that is a KL, and how well both models must predict the texts for it. Below
both, spans were 0.7 to 2.2 times KL; above, 0.15 to 49 times (docs/validity.md)."""

PUBLISHED = "whole texts (published estimator)"
"""The last estimator, as a table with another one names it."""


@dataclass(frozen=True, kw_only=True)
class ReportedKL:
    """KL between two models in bits per byte, and the estimator that it is from; of all pairs (K, K) arrays.

    `interval` is at 95 %, on the log scale. `n_texts` counts for this estimator. `whole_texts` is the published
    estimate of the same pair, `by_spans` the value by spans (NaN: not known). `spans` and `sampled_tokens` are the
    others in full, where one pair is reported and they are known. `poor`: the value is by sampled tokens,
    too few for the standard error to be trusted. `far`: either model is above `FAR_MODEL` bits per byte on the texts.
    """

    estimator: Any
    value: Any
    standard_error: Any
    interval: Any
    n_texts: Any
    n_documents: Any
    whole_texts: Any
    by_spans: Any = math.nan
    spans: SpanKL | None = None
    sampled_tokens: SampledKL | None = None
    poor: Any = False
    far: Any = False

    @classmethod
    def of_whole_texts(cls, kl: Any) -> ReportedKL:
        """The published estimate, of a pair or of many, as it is."""
        return cls(
            estimator=np.full(np.shape(kl.value), WHOLE_TEXTS, dtype=object) if np.ndim(kl.value) else WHOLE_TEXTS,
            value=kl.value,
            standard_error=kl.standard_error,
            interval=kl.interval,
            n_texts=kl.n_texts,
            n_documents=kl.n_documents,
            whole_texts=kl,
        )

    @classmethod
    def nearest(
        cls, whole_texts: KL, spans: SpanKL | None, sampled_tokens: SampledKL | None, *, far: bool = False
    ) -> ReportedKL:
        """The first of the `ESTIMATORS` that is known of a pair, and finite."""
        if sampled_tokens is not None and math.isnan(sampled_tokens.symmetric.value):  # no draws in common
            sampled_tokens = None
        found: Any = whole_texts
        estimator, n_documents, poor = WHOLE_TEXTS, whole_texts.n_documents, False
        if sampled_tokens is not None and math.isfinite(sampled_tokens.symmetric.value):
            estimator, found, poor = SAMPLED_TOKENS, sampled_tokens.symmetric, sampled_tokens.poor
            n_documents = sampled_tokens.n_documents or None
        elif spans is not None:
            estimator, found, n_documents = SPANS, spans, spans.n_documents
        return cls(
            estimator=estimator,
            value=found.value,
            standard_error=found.standard_error,
            interval=found.interval,
            n_texts=found.n_texts,
            n_documents=n_documents,
            whole_texts=whole_texts,
            by_spans=math.nan if spans is None else spans.value,
            spans=spans,
            sampled_tokens=sampled_tokens,
            poor=poor,
            far=far,
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The models, of all pairs."""
        labels: tuple[str, ...] = self.whole_texts.labels
        return labels

    @property
    def in_range(self) -> Any:
        """Whether the value is a KL, and no mere distance: by whole texts as `KL.in_range` says, by spans up to
        `LARGEST_BY_SPANS` between models that are not `far`; by sampled tokens always, as no limit was found."""
        near = np.less_equal(self.value, LARGEST_BY_SPANS) & np.logical_not(self.far)
        by_spans = np.equal(self.estimator, SPANS)
        found = np.where(self.is_published, self.whole_texts.in_range, np.logical_not(by_spans) | near)
        return found if np.ndim(found) else bool(found)

    @property
    def is_published(self) -> Any:
        """Whether it is the published estimate."""
        found = np.equal(self.estimator, WHOLE_TEXTS)
        return found if np.ndim(found) else bool(found)

    def at(self, i: Any, j: Any) -> ReportedKL:
        """Of all pairs of some models, those at the positions `i` and `j`: of one pair, or arrays of their shape."""
        one = not np.ndim(i)
        value, error, estimator, n_texts, n_documents, by_spans, poor, far = (
            part[i, j].item() if one and part.dtype != object else part[i, j]
            for part in (
                self.value, self.standard_error, self.estimator, self.n_texts, self.n_documents,
                self.by_spans, *(np.broadcast_to(mark, self.value.shape) for mark in (self.poor, self.far)),
            )
        )  # fmt: skip
        low, high = log_interval(value, error, critical_value(n_documents))
        return ReportedKL(
            estimator=estimator,
            value=value,
            standard_error=error,
            interval=(float(low), float(high)) if one else (low, high),
            n_texts=n_texts,
            n_documents=(n_documents or None) if one else n_documents,
            whole_texts=self.whole_texts[i, j] if one else self.whole_texts.at(i, j),
            by_spans=by_spans,
            poor=poor,
            far=far,
        )

    def __str__(self) -> str:
        return f"{format_estimate(self.value, self.standard_error)} bits/byte (by {self.estimator})"
