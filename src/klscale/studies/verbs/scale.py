"""The scale of a store: how large KL is between its checkpoints, seeds, sizes and relatives."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version

from klscale.display import Displayed
from klscale.errors import KlscaleError, printable
from klscale.inputs.texts import TextSet, content_id
from klscale.limits import free_memory
from klscale.progress import Progress
from klscale.science.bootstrap import RESAMPLES
from klscale.science.estimates import format_estimate
from klscale.store.records import UNREADABLE, from_record, to_record
from klscale.store.store import MANY, Entry, Store
from klscale.studies import scales
from klscale.studies.scales import NoiseFloor, Setting
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.score import stored_vectors
from klscale.vectors.vectors import Vectors

FORMAT = 3
"""Format of a kept scale; one of another format, or another version of klscale, is measured anew. It goes up with any
change of what `scales.measure` gives."""


@dataclass(frozen=True, eq=False)
class Scale(Displayed):
    """The scale of some models: `settings`, each with a median KL in bits per byte and its standard error.

    `noise_floor` is the models' run-to-run noise, where it is known. `vectors` are those of the models, and of each
    layer where they were scored at their layers.
    """

    vectors: Vectors
    settings: tuple[Setting, ...]
    noise_floor: NoiseFloor | None

    @classmethod
    def of(cls, vectors: Vectors) -> Scale:
        """The scale of these models."""
        return cls(vectors, tuple(scales.measure(vectors)), scales.noise_floor(vectors))

    def __str__(self) -> str:
        return "\n".join(
            f"{row.setting}: {format_estimate(row.median, row.standard_error)} bits/byte, the median of "
            f"{len(row.pairs):,} pairs"
            for row in self.settings
        )


def scale(
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    options: Options = Options(),
) -> Scale:
    """KL in bits per byte of each setting (checkpoint, seed, size, quantization, ...) among the models of a store, with
    standard errors; the smallest first. `klscale.published()` has published values to compare with.

    Nothing is scored. Layers of models are left out, with a note, where there is no memory for them. Raises InputError
    for a store with fewer than two models on the texts.

        print(klscale.scale(store="klscale-store"))
    """
    options = options.at(texts, store)
    place = options.opened()
    chosen = options.stored(place)
    layers = fit_layers(place.newest(chosen.id).values(), chosen, options.progress)
    kept = KeptScale(place, chosen, layers=layers)
    vectors = stored_vectors(place, replace(options, texts=chosen), layers=layers)
    return Scale(vectors, kept.of(vectors), scales.noise_floor(vectors))


def fit_layers(entries: Iterable[Entry], texts: TextSet, progress: Progress) -> bool:
    """Whether there is memory for the layers of these models; a note where there is not."""
    needed, free = 8 * len(texts) * sum(entry.n_layers for entry in entries), free_memory()
    if needed > free:
        memory = f"{needed / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} GB are free"
        progress.note(f"Layers of models are left out: they take about {memory}.")
    return needed <= free


def scale_beside(store: Store, texts: TextSet, progress: Progress) -> tuple[Setting, ...]:
    """The settings that the store measures on these texts, medians only, in bits per byte. Empty where it has none.
    Empty, with a note, where its vectors cannot be compared."""
    kept = KeptScale(store, texts, resamples=0)
    if kept.settings is not None:
        return kept.settings
    try:
        vectors, _ = store.vectors(texts).with_outputs().of_one_convention()
    except KlscaleError as error:  # of a model that nobody asked for
        progress.note(f"No scale is shown: {printable(error.what)}")
        return ()
    return kept.of(vectors)


class KeptScale:
    """The scale of a text set's models, which a store of many keeps for the next command. Made before the vectors are
    read. `settings` are those that it keeps, with `resamples` bootstrap samples of the texts or more; None where it
    keeps none of the models as they are now."""

    def __init__(self, store: Store, texts: TextSet, *, layers: bool = False, resamples: int = RESAMPLES) -> None:
        self._store, self._texts, self._resamples = store, texts, resamples
        self._layers = layers and any(entry.n_layers for entry in self._newest())
        self._key = self._of_now()
        self.settings = self._read()

    def of(self, vectors: Vectors) -> tuple[Setting, ...]:
        """The settings of these vectors, all that the store has: those that it keeps, or else measured, and kept."""
        if self.settings is None:
            self.settings = tuple(scales.measure(vectors, resamples=self._resamples))
            lost = any(entry.path in self._store.left_out for entry in self._newest())
            if len(vectors) >= MANY and not lost and self._of_now() == self._key:
                found = [*map(to_record, self.settings)]
                self._store.keep_scale(self._texts.id, self._key, found, self._resamples, layers=self._layers)
        return self.settings

    def _newest(self) -> list[Entry]:
        return [*self._store.newest(self._texts.id).values()]

    def _of_now(self) -> str:
        """Stands for all that the scale depends on."""
        texts = self._texts
        about = [FORMAT, version("klscale"), self._layers, texts.id, texts.clip, texts.document]
        parts = (
            json.dumps(one, sort_keys=True) for one in (about, *(dict(entry.metadata) for entry in self._newest()))
        )
        return content_id(part.encode() for part in parts)

    def _read(self) -> tuple[Setting, ...] | None:
        kept = self._store.kept_scale(self._texts.id, self._key, self._resamples, layers=self._layers)
        try:
            found = None if kept is None else tuple(from_record(Setting, row) for row in kept)
        except UNREADABLE:
            return None
        return found if all(map(_is_whole, found or ())) else None


def _is_whole(row: Setting) -> bool:
    """Whether each pair has its numbers."""
    one_each = len(row.pairs) == len(row.values) == len(row.standard_errors) == len(row.in_range) > 0
    return one_each and (row.by_spans is None or _is_whole(row.by_spans))
