"""Run-to-run noise: every model is read twice on some texts, and the KL of both is kept."""

from __future__ import annotations

import numpy as np

from klscale.inputs.conversations import Template
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Integers
from klscale.science.kl import KL, kl
from klscale.sources.source import REPEAT_RUNS, SPLIT, Reader, ReaderOptions, Sources
from klscale.store.store import Entry, Store
from klscale.vectors.scores import Scores

NOISE_PART, NOISE_TEXTS = 0.02, (20, 100)
"""Share of a model's texts in a repeat run, and the smallest and the largest number of them."""


def noise_floor(
    entry: Entry, texts: TextSet, store: Store, *, device: str | None = None, progress: Progress = SILENT
) -> KL | None:
    """KL in bits per byte between two runs of one scored model, in batches of another shape and order: what rounding
    alone adds to a squared distance. The store keeps it when a model is scored; where it does not have it, the model is
    read now. None for a model that is not on this machine, on texts that are not, and for a source without repeat
    runs."""
    if (kept := store.noise_floor(texts.id, entry.key)) is not None:
        return kept
    sources = Sources(progress)
    if texts.external or not sources.of(entry.ref).is_here(entry.ref):
        return None
    options = ReaderOptions(
        device=device,
        split_special_tokens=SPLIT in entry.metadata["convention"],
        template=Template.of_record(entry.metadata.get("template")),
    )
    reader = sources.open(sources.pin(entry.ref), options)
    progress.begin(f"repeat run of {entry.ref}")
    return keep_noise_floor(entry.key, reader, texts, store)


def noise_texts(texts: Integers) -> Integers:
    """Random texts among these for the repeat run, in order: 2 %, at least 20 and at most 100."""
    n = int(np.clip(NOISE_PART * len(texts), *NOISE_TEXTS))
    return np.sort(np.random.default_rng(0).permutation(texts)[:n])


def keep_noise_floor(
    key: str, reader: Reader, texts: TextSet, store: Store, *, known: Scores | None = None
) -> KL | None:
    """Run-to-run noise of the vector `key`: KL in bits per byte between two runs on some texts, the second in batches
    of another shape and in another order. The store keeps it. None for fewer than two texts, and for a source without
    repeat runs.

    `known` holds values of the model already: the texts are chosen from it, and it is the first run. Texts that leave
    no room for padding are cut short, and both runs are made anew.
    """
    chosen = noise_texts(np.arange(len(texts)) if known is None else known.text)
    if len(chosen) < 2 or REPEAT_RUNS not in reader.source.capabilities:
        return None
    runs = reader.repeat_runs(texts, chosen)
    first = runs.read() if known is None or runs.cut else known.at(chosen)
    again = runs.read(batches=True, order=True)
    found = kl(
        first.log_likelihood, again.log_likelihood, runs.bytes, clip=texts.clip, documents=texts.documents_of(chosen)
    )
    store.write_noise_floor(texts.id, key, found)
    return found
