"""Run-to-run noise: a model is read twice on some texts, and the KL of both is kept."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from klscale.errors import KlscaleError, StorageError
from klscale.inputs.conversations import Template
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Integers
from klscale.science.kl import KL, kl
from klscale.sources.source import REPEAT_RUNS, SPLIT, Reader, ReaderOptions, RepeatRuns, Sources
from klscale.store.measured_records import NoRepeatRun
from klscale.store.store import Entry, Store
from klscale.vectors.scores import Scores

NOISE_PART, NOISE_TEXTS = 0.02, (20, 100)
"""Share of a model's texts in a repeat run that is asked for, and the smallest and the largest number of them."""
FEWEST_TEXTS = 3
"""Texts of a repeat run beside a vector, which takes at most `NOISE_PART` of the tokens of that: with fewer there is
none."""


def noise_floor(
    entry: Entry, texts: TextSet, store: Store, *, device: str | None = None, progress: Progress = SILENT
) -> KL | None:
    """KL in bits per byte between two runs of one scored model, in batches of another shape and order: what rounding
    alone adds to a squared distance. Where the store does not have it, the model is read now, twice, on 2 % of the
    texts, at least 20 and at most 100. None for a model that is not on this machine, on texts that are not, and for a
    source without repeat runs."""
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
    chosen = noise_texts(np.arange(len(texts)))
    if len(chosen) < 2 or REPEAT_RUNS not in reader.source.capabilities:
        return None
    progress.begin(f"repeat run of {entry.ref}")
    return _keep(entry.key, reader.repeat_runs(texts, chosen), texts, chosen, store)


def noise_texts(texts: Integers) -> Integers:
    """Random texts among these for the repeat run, in order: 2 %, at least 20 and at most 100."""
    n = int(np.clip(NOISE_PART * len(texts), *NOISE_TEXTS))
    return np.sort(np.random.default_rng(0).permutation(texts)[:n])


def keep_noise_floor(key: str, reader: Reader, texts: TextSet, store: Store, known: Scores) -> KL | NoRepeatRun | None:
    """Run-to-run noise of the vector `key`, whose values are `known`: KL in bits per byte between these and another run
    on some of its texts, in batches of another shape and order. The store keeps it, or why there is none. None for one
    text, and for a source without repeat runs.

    The other run reads at most 2 % of the tokens that the vector took, on at least three random texts; so there is none
    for a short text set. A source that does not count its tokens (a server, llama.cpp) is read again on 2 % of the
    texts, at least 20. Texts that leave no room for padding are cut short, and both runs are made anew.
    """
    if len(known) < 2 or REPEAT_RUNS not in reader.source.capabilities:
        return None
    try:
        found = _affordable(reader, texts, known.text)
        if found is None:
            why = f"A repeat run of {FEWEST_TEXTS} texts takes more than {NOISE_PART:.0%} of reading {len(known)}."
            missing = NoRepeatRun(why, False, version("klscale"))
        else:
            return _keep(key, found[0], texts, found[1], store, known)
    except KlscaleError as error:
        if isinstance(error, StorageError):
            raise
        missing = NoRepeatRun(error.what, True, version("klscale"))
    store.write_noise_floor(texts.id, key, missing)
    return missing


def _affordable(reader: Reader, texts: TextSet, known: Integers) -> tuple[RepeatRuns, Integers] | None:
    """Repeat runs on as many of the known texts as 2 % of their tokens pay for, and these texts; None for too few."""
    total = reader.n_read(texts, known)
    if total is None:
        chosen = noise_texts(known)
        return reader.repeat_runs(texts, chosen), chosen
    order = np.random.default_rng(0).permutation(known)
    for n in range(min(int(NOISE_PART * len(known)), NOISE_TEXTS[1]), FEWEST_TEXTS - 1, -1):
        runs = reader.repeat_runs(texts, np.sort(order[:n]))
        if runs.n_read <= NOISE_PART * total:
            return runs, np.sort(order[:n])
    return None


def _keep(
    key: str, runs: RepeatRuns, texts: TextSet, chosen: Integers, store: Store, known: Scores | None = None
) -> KL:
    first = runs.read() if known is None or runs.cut else known.at(chosen)
    again = runs.read(batches=True, order=True)
    found = kl(
        first.log_likelihood, again.log_likelihood, runs.bytes, clip=texts.clip, documents=texts.documents_of(chosen)
    )
    store.write_noise_floor(texts.id, key, found)
    return found
