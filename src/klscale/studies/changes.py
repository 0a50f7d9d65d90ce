"""What changed most from a model to one that was made from it, by pruning, distilling, merging or editing: the domains,
texts and spans of the text set that the second model predicts otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from klscale.inputs.texts import TextSet
from klscale.science.estimates import Estimate
from klscale.science.reported import ReportedKL
from klscale.science.spans import SpanChanges
from klscale.studies.tails import Text, describe_text
from klscale.vectors.vectors import Vectors

LISTED = 10
"""Texts and spans that are named."""


@dataclass(frozen=True)
class ChangedDomain:
    """KL on the texts of one domain, and the difference in bits per byte there, variant less base: above 0, the variant
    is worse. NaN for a domain of one text."""

    domain: str
    n_texts: int
    kl: ReportedKL
    difference: Estimate


@dataclass(frozen=True)
class ChangedText:
    """A text, and the `change` of its log-likelihood from the base to the variant in nats: below 0, the variant
    predicts it worse. `per_byte` is that in bits per byte, as a loss: above 0 is worse."""

    text: Text
    change: float
    per_byte: float


@dataclass(frozen=True)
class ChangedSpan:
    """A span of a text: its first byte there, its length in `bytes`, what it says, the `change` of its log-likelihood
    in nats given all before it, and its share of KL by spans."""

    text: Text
    start: int
    bytes: int
    excerpt: str
    change: float
    share: float


@dataclass(frozen=True, eq=False)
class Changes:
    """What changed from `base` to `variant`: KL and the difference in bits per byte, over all texts and by domain, the
    texts and the spans that changed most. `all_spans` holds every span; None where a model
    has none, and then no span is named. A single text or span has no standard error, and was chosen for being
    extreme."""

    base: str
    variant: str
    texts: TextSet
    kl: ReportedKL
    difference: Estimate
    domains: tuple[ChangedDomain, ...]
    changed_texts: tuple[ChangedText, ...]
    spans: tuple[ChangedSpan, ...]
    all_spans: SpanChanges | None

    @property
    def share_of_spans(self) -> float | None:
        """The share of KL by spans that the named spans carry."""
        return None if self.all_spans is None else sum(span.share for span in self.spans)


def changes(vectors: Vectors, base: str, variant: str, *, most: int = LISTED) -> Changes:
    """What changed most from one model to another, `most` texts and spans of it. Raises InputError for a model that is
    not there, and for vectors that were made by different conventions."""
    pair, texts = vectors.subset([base, variant]), vectors.texts
    change = np.diff(pair.log_likelihood, axis=0)[0]
    per_byte = -change / texts.bytes / np.log(2)
    order = np.argsort(-np.abs(change), kind="stable")  # NaN comes last
    spans = pair.span_changes(base, variant) if all(map(pair.has_spans, (base, variant))) else None
    return Changes(
        base=base,
        variant=variant,
        texts=texts,
        kl=pair.reported_kl(base, variant),
        difference=pair.bits_per_byte(variant, base),
        domains=tuple(_by_domain(pair, base, variant)),
        changed_texts=tuple(
            ChangedText(describe_text(texts, int(s)), float(change[s]), float(per_byte[s]))
            for s in order[:most]
            if not np.isnan(per_byte[s])
        ),
        spans=() if spans is None else tuple(_spans(texts, spans, most)),
        all_spans=spans,
    )


def _by_domain(pair: Vectors, base: str, variant: str) -> list[ChangedDomain]:
    """From the domain with the largest KL on; none where the texts have no domains."""
    if pair.texts.domain is None:
        return []
    of, scored = np.asarray(pair.texts.domain), ~np.isnan(pair.log_likelihood).any(axis=0)
    found = []
    for name in sorted({*of[scored].tolist()}):
        inside = (of == name) & scored
        there = pair.among(inside)
        kl, difference = there.reported_kl(base, variant), there.bits_per_byte(variant, base)
        found.append(ChangedDomain(name, int(inside.sum()), kl, difference))
    return sorted(found, key=lambda one: -np.nan_to_num(one.kl.value, nan=-1.0))


def _spans(texts: TextSet, found: SpanChanges, most: int) -> list[ChangedSpan]:
    order = np.argsort(-np.abs(found.change), kind="stable")[:most]
    return [
        ChangedSpan(
            describe_text(texts, int(found.text[s])),
            int(found.start[s]),
            int(found.stop[s] - found.start[s]),
            excerpt(texts, int(found.text[s]), int(found.start[s]), int(found.stop[s])),
            float(found.change[s]),
            float(found.share[s]),
        )
        for s in order
    ]


def excerpt(texts: TextSet, text: int, start: int, stop: int) -> str:
    """What a text says from one byte to another; nothing where the texts are not here."""
    return "" if texts.texts is None else texts.texts[text].encode()[start:stop].decode("utf-8", "replace")
