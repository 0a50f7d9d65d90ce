"""What changed most from a model to one that was made from it, by pruning, distilling, merging or editing: the domains,
texts and spans of the text set that the second model predicts otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from klscale.errors import InputError
from klscale.inputs.texts import TextSet
from klscale.science.arrays import Floats, Integers
from klscale.science.estimates import Estimate
from klscale.science.reported import ReportedKL
from klscale.science.spans import SpanChanges
from klscale.store.store import Entry
from klscale.studies.cards import Bench
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
class ChangedToken:
    """A token of a text that was read exactly: its first byte there, what it says, and the KL(base, variant) of the
    distributions that predict it, in nats."""

    text: Text
    start: int
    says: str
    kl: float


@dataclass(frozen=True, eq=False)
class ExactText:
    """The P scored tokens of a text: the byte at which each begins, `start` (P,), where it ends, `stop` (P,), and the
    KL(base, variant) of the distributions that predict it, `kl` (P,) in nats."""

    start: Integers
    stop: Integers
    kl: Floats


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
    has none, and then no span is named. `exact` holds the texts that changed most where both models read them again. A
    single text or span has no standard error, and was chosen for being
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
    exact: Mapping[int, ExactText] = field(default_factory=dict)

    def tokens(self, most: int = LISTED) -> list[ChangedToken]:
        """The tokens with the largest KL in the texts that were read exactly; the largest first."""
        each = [
            ChangedToken(
                describe_text(self.texts, text),
                int(found.start[n]),
                excerpt(self.texts, text, int(found.start[n]), int(found.stop[n])),
                float(found.kl[n]),
            )
            for text, found in self.exact.items()
            for n in np.argsort(-found.kl)[:most].tolist()
        ]
        return sorted(each, key=lambda token: -token.kl)[:most]

    @property
    def share_of_spans(self) -> float | None:
        """The share of KL by spans that the named spans carry."""
        return None if self.all_spans is None else sum(span.share for span in self.spans)


def changes(vectors: Vectors, base: str, variant: str, *, most: int = LISTED) -> Changes:
    """What changed most from one model to another, `most` texts and spans of it. Raises InputError for a model that is
    not there, and for vectors that were made by different conventions."""
    pair, texts = vectors.subset([base, variant]), vectors.texts
    change = np.diff(pair.log_likelihood, axis=0)[0]
    per_byte = (0.0 - change) / texts.bytes / np.log(2)  # of no change 0, not -0
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


def exact_texts(found: Changes, base: Entry, variant: Entry, bench: Bench) -> dict[int, ExactText]:
    """Exact KL of next tokens in the texts that changed most, by their positions. Raises InputError for models without
    one tokenizer, or one that says not where tokens begin."""
    first, second = bench.pair(base, variant)
    tokens = first.tokens(found.texts)
    if tokens.offsets is None:
        raise InputError(f"{base.ref} does not say where its tokens begin.", "Its tokenizer has no offsets.")
    window = min(reader.window or np.inf for reader in (first, second))
    chosen = [one.text.position for one in found.changed_texts if tokens.lengths[one.text.position] <= window]
    bench.progress.begin(f"exact KL from {base.ref} to {variant.ref}", len(chosen), "texts")
    read = first.compare_next_tokens(second, tokens, chosen, bench.progress.advance)
    made = {}
    for text in chosen:
        kl = read.forward[read.text == text]
        start = tokens.offsets[tokens.starts[text] : tokens.starts[text + 1]][len(tokens.of(text)) - len(kl) :]
        made[text] = ExactText(start, np.append(start[1:], found.texts.bytes[text]), kl)
    return made


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
