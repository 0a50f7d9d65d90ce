"""A card: how far variants are from the model that they were made from, in the figures of a model page, each made from
numbers that are kept beside it.

KL(base, variant) of single next tokens is exact: both distributions are known over the whole vocabulary. It needs one
tokenizer and both models; else the card has what sampled tokens, spans or whole texts give.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from klscale.errors import InputError, StorageError
from klscale.inputs.conversations import Template
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats, Integers
from klscale.science.bootstrap import RESAMPLES, estimate_from_resamples, text_draws
from klscale.science.clip import common_texts
from klscale.science.estimates import Estimate, cluster_codes
from klscale.science.kl import LOG_2
from klscale.science.reported import ReportedKL
from klscale.sources.source import NEXT_TOKENS, SPLIT, Reader, ReaderOptions, Sources, require_one_tokenizer
from klscale.store.card_numbers import NextTokenKL, Numbers
from klscale.store.store import Entry, Store
from klscale.studies.calibration import weighted_quantiles
from klscale.vectors.scores import Ragged
from klscale.vectors.sizes import Size

N_TEXTS = 200
"""Number of texts for exact KL, drawn at random."""


@dataclass(frozen=True)
class NextTokenFigures:
    """Exact KL(base, variant) of next tokens: `forward` in bits per byte; `mean`, `quantiles` (those of
    `calibration.QUANTILES`) and `maximum` over `n_tokens` single tokens in nats; `same_top`, the share of positions
    where both have the same most probable token."""

    forward: Estimate
    mean: Estimate
    quantiles: tuple[Estimate, ...]
    maximum: float
    same_top: Estimate
    n_tokens: int


@dataclass(frozen=True)
class Variant:
    """A model beside the base: the KL that `compare` reports, exact next-token KL where it was measured (else None),
    `bits_per_byte`, `difference` (that less the base's, paired; above 0 is worse) and `size` (None: not recorded).
    `about` is the metadata of its vector."""

    name: str
    kl: ReportedKL
    exact: NextTokenFigures | None
    bits_per_byte: Estimate
    difference: Estimate
    size: Size | None
    about: Mapping[str, Any]

    @property
    def mean_nats(self) -> Estimate | None:
        """Mean KL(base, variant) of single next tokens in nats: exact, else by sampled tokens; None without either."""
        sampled = self.kl.sampled_tokens
        return self.exact.mean if self.exact else None if sampled is None else sampled.forward_per_token

    @property
    def same_top(self) -> Estimate | None:
        """Share of positions with the same most probable token, from the same."""
        sampled = self.kl.sampled_tokens
        return self.exact.same_top if self.exact else None if sampled is None else sampled.same_top


def variants_of(numbers: Numbers) -> tuple[Variant, ...]:
    """The figures of every model but the first, from the numbers alone. Raises InputError for models that were scored
    by different conventions."""
    vectors, (base, *others) = numbers.vectors, numbers.names
    return tuple(
        Variant(
            name,
            vectors.reported_kl(base, name),
            None if found is None else figures(found, numbers.texts),
            vectors.bits_per_byte(name),
            vectors.bits_per_byte(name, base),
            vectors.size(name),
            about,
        )
        for name, found, about in zip(others, numbers.next_tokens[1:], numbers.metadata[1:], strict=True)
    )


def figures(found: NextTokenKL, texts: TextSet) -> NextTokenFigures:
    """What the KL at single positions amounts to; standard errors are over texts, those of quantiles by bootstrap."""
    documents, n = texts.documents_of(found.text), len(found.text)
    clusters, n_tokens = cluster_codes(documents), found.kl.lengths
    which = np.repeat(np.arange(n), found.kl.lengths)
    kl: Floats = found.kl.values.astype(np.float64)
    nats, agree = (np.bincount(which, values, n).astype(np.float64) for values in (kl, found.same_top.values))

    draws = text_draws(n, documents, resamples=RESAMPLES)
    quantiles = weighted_quantiles(kl, which, np.vstack([np.ones(n), draws]))
    return NextTokenFigures(
        forward=Estimate.ratio(nats / LOG_2, texts.bytes[found.text], clusters),
        mean=Estimate.ratio(nats, n_tokens, clusters, unit="nats/token"),
        quantiles=tuple(
            estimate_from_resamples(row[0], row[1:], n, documents=documents, unit="nats/token") for row in quantiles
        ),
        maximum=float(kl.max()),
        same_top=Estimate.ratio(agree, n_tokens, clusters, unit="", on_log_scale=False),
        n_tokens=len(kl),
    )


# ---------------------------------------------------------------------------------------------------------- measuring


def gather(
    texts: TextSet,
    store: Store,
    models: Sequence[tuple[ModelRef, Entry]],
    *,
    n_texts: int = N_TEXTS,
    device: str | None = None,
    batch_tokens: int | None = None,
    rescore: bool = False,
    progress: Progress = SILENT,
) -> Numbers:
    """The numbers of a card: the vectors that the store has of these models, by the given names, and exact next-token
    KL from the first of them to each other on `n_texts` random texts (0: none). The store keeps what is measured of a
    variant, and it is not measured again unless `rescore`. A variant without exact KL (another tokenizer, a source
    without next-token probabilities) is noted."""
    base, *variants = entries = [entry for _, entry in models]
    floors = store.noise_floors(texts.id, [entry.key for entry in entries])
    bench = Bench(texts, store, device, batch_tokens, progress, keep=len(variants) > 1)
    exact = (
        [bench.next_tokens(base, entry, n_texts, rescore) for entry in variants] if n_texts else [None] * len(variants)
    )
    scores = tuple(map(store.scores, entries))
    tokens = {entry.metadata["sampled"]["tokens"] for entry in entries if "sampled" in entry.metadata}
    draws = {key: found for key in sorted(tokens) if (found := store.draws(texts.id, key)) is not None}
    about = tuple({**entry.metadata, "ref": str(ref), "noise_floor": floors.get(entry.key)} for ref, entry in models)
    return Numbers(texts, scores, about, draws, (None, *exact))


class Bench:
    """The base, opened once, and one variant at a time, on texts that the store has their vectors for. `keep`: the base
    reads each text once for all variants."""

    def __init__(
        self,
        texts: TextSet,
        store: Store,
        device: str | None,
        batch_tokens: int | None,
        progress: Progress,
        *,
        keep: bool = False,
    ) -> None:
        self.keep = keep
        self.texts, self.store, self.progress = texts, store, progress
        self.device, self.batch_tokens, self.sources = device, batch_tokens, Sources(progress)
        self.base: Reader | None = None

    def next_tokens(self, base: Entry, variant: Entry, n_texts: int, rescore: bool) -> NextTokenKL | None:
        """From the store, or measured and then kept; None where it cannot be, which is noted."""
        about = json.dumps(["card", base.key, variant.key, n_texts])
        key = hashlib.sha256(about.encode()).hexdigest()[:12]
        if not rescore and (kept := self.store.exact(self.texts.id, key)) is not None:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                lengths = np.array(kept["n_tokens"], dtype=np.int64)
                kl, same = np.array(kept["kl"], dtype=np.float32), np.array(kept["same_top"], dtype=bool)
                if len(kl) == len(same) == lengths.sum():
                    return NextTokenKL(
                        np.array(kept["text"], dtype=np.int64), Ragged(kl, lengths), Ragged(same, lengths)
                    )
        try:
            found = self._measured(base, variant, n_texts)
        except StorageError:
            raise
        except InputError as error:
            self.progress.note(f"No exact KL of {variant.ref}: {error.what} {error.why}".rstrip())
            return None
        record = {
            "a": str(base.ref),
            "b": str(variant.ref),
            "text": found.text.tolist(),
            "n_tokens": found.kl.lengths.tolist(),
            "kl": found.kl.values.tolist(),
            "same_top": found.same_top.values.astype(int).tolist(),
        }
        self.store.write_exact(self.texts.id, key, record)
        return found

    def _measured(self, base: Entry, variant: Entry, n_texts: int) -> NextTokenKL:
        first, second = self.pair(base, variant)
        tokens = first.tokens(self.texts)
        window = min(reader.window or np.inf for reader in (first, second))
        chosen = self._chosen(base, variant, tokens.lengths, window, n_texts)
        self.progress.begin(f"exact KL from {base.ref} to {variant.ref}", len(chosen), "texts")
        found = first.compare_next_tokens(second, tokens, chosen, self.progress.advance, keep=self.keep)
        text, lengths = np.unique(found.text, return_counts=True)
        kl = np.maximum(found.forward, 0.0).astype(np.float32)
        return NextTokenKL(text, Ragged(kl, lengths), Ragged(found.same_top, lengths))

    def pair(self, base: Entry, variant: Entry) -> tuple[Reader, Reader]:
        """Both models, ready to read. Raises InputError where they have no next tokens to compare."""
        if self.texts.external:
            raise InputError(f"The texts of {self.texts.name} are not here, only their log-likelihoods.")
        for entry in (base, variant):
            self.sources.of(entry.ref).require(entry.ref, NEXT_TOKENS)
        if self.base is None:
            self.base = self._open(base)
        other = self._open(variant)
        require_one_tokenizer(self.base, other)
        return self.base, other

    def _open(self, entry: Entry) -> Reader:
        """The model of a vector, read as it was scored. Raises InputError where it is another by now."""
        pinned, template = self.sources.pin(entry.ref), Template.of_record(entry.metadata.get("template"))
        if template is not None and template.kind == "own":
            pinned = self.sources.of(entry.ref).with_chat_template(pinned)
        if pinned.identity != entry.metadata.get("identity"):
            what = f"{entry.ref} is not the model whose vector the store has."
            raise InputError(what, "Its files have changed since, or the vector came from elsewhere.")
        split = SPLIT in entry.metadata["convention"]
        options = ReaderOptions(self.device, self.batch_tokens, split_special_tokens=split, template=template)
        return self.sources.open(pinned, options)

    def _chosen(self, base: Entry, variant: Entry, lengths: Integers, window: float, n_texts: int) -> Integers:
        """The first `n_texts` of the set's random order that both have and whose tokens fit both windows."""
        rows = np.full((2, len(self.texts)), np.nan)
        for row, entry in zip(rows, (base, variant), strict=True):
            found = self.store.scores(entry)
            row[found.text] = found.log_likelihood
        fit = (lengths > 1) & (lengths <= window) & common_texts(rows)
        order = self.texts.random_order
        chosen = np.sort(order[fit[order]][:n_texts])
        if len(chosen) < 2:
            raise InputError(f"{base.ref} and {variant.ref} have fewer than two texts in common that fit both windows.")
        return chosen
