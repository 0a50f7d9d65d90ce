"""The scale of a store: how large KL is between its checkpoints, seeds, sizes and relatives."""

from __future__ import annotations

import os
from dataclasses import dataclass

from klscale.errors import KlscaleError, printable
from klscale.inputs.texts import TextSet
from klscale.progress import Progress
from klscale.science.estimates import format_estimate
from klscale.store.store import Store
from klscale.studies import scales
from klscale.studies.scales import NoiseFloor, Setting
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.score import stored_vectors
from klscale.vectors.vectors import Vectors


@dataclass(frozen=True, eq=False)
class Scale:
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

    Nothing is scored. Raises InputError for a store with fewer than two models on the texts.

        print(klscale.scale(store="klscale-store"))
    """
    options = options.at(texts, store)
    return Scale.of(stored_vectors(options.opened(), options, layers=True))


def scale_beside(store: Store, texts: TextSet, progress: Progress) -> tuple[Setting, ...]:
    """The settings that the store measures on these texts, medians only, in bits per byte. Empty where it has none.
    Empty, with a note, where its vectors cannot be compared."""
    try:
        vectors, _ = store.vectors(texts).of_one_convention()
    except KlscaleError as error:  # of a model that nobody asked for
        progress.note(f"No scale is shown: {printable(error.what)}")
        return ()
    return tuple(scales.measure(vectors, resamples=0))
