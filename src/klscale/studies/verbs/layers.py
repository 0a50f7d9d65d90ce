"""KL between the layers of some models."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from klscale.display import Displayed
from klscale.errors import InputError
from klscale.inputs.references import ModelRef, parse_all
from klscale.inputs.texts import TextSet
from klscale.store.store import Store
from klscale.studies import lens
from klscale.studies.lens import Layer
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.score import failures, scored_vectors
from klscale.sweep.jobs import Outcome
from klscale.vectors.vectors import Vectors


@dataclass(frozen=True, eq=False)
class Layers(Displayed):
    """The layers of each model, in order: `layers["gpt2"][0]` is the embedding. `vectors` are those of the models
    and of all their layers; `outcomes` has the status of each model."""

    vectors: Vectors
    layers: Mapping[str, Sequence[Layer]]
    outcomes: tuple[Outcome, ...]

    def __str__(self) -> str:
        lines = [f"{row.ref}: KL to the output {row.to_output}" for rows in self.layers.values() for row in rows]
        return "\n".join([*lines, *failures(self.outcomes)])


def layers(
    models: Sequence[str | ModelRef],
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    options: Options = Options(),
) -> Layers:
    """KL in bits per byte, with standard errors, from each layer of a model to the next and to the output, and bits per
    byte of each layer. Layers are read through the logit lens. Models that the store lacks are scored.

    A model that fails has its error in `outcomes`. Raises ScoringError where none could be scored, and InputError for
    texts or options that cannot be used.

        for row in klscale.layers(["gpt2"]).layers["gpt2"]:
            print(row.layer, row.from_previous, row.to_output)
    """
    refs = parse_all(models)
    for ref in refs:
        if ref.layer is not None:
            why = "Layers are compared within a model."
            raise InputError(f"{ref} is one layer.", why, f"klscale layers {replace(ref, layer=None)}")
    vectors, outcomes = scored_vectors(refs, options.at(texts, store), layers=True)
    return Layers(vectors, lens.layers(vectors), outcomes)
