"""What `klscale layers` shows: KL from each layer to the next and to the output, through the logit lens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from klscale.inputs.texts import TextSet
from klscale.science.estimates import Estimate
from klscale.science.kl import KL
from klscale.science.reported import PUBLISHED
from klscale.show import cautions
from klscale.show.cautions import Measured
from klscale.show.columns import TEXTS, Column, estimate, records, table, unit
from klscale.show.pairs import kl, marked
from klscale.show.terminal import describe_texts, out, plain
from klscale.studies import lens
from klscale.vectors.vectors import Vectors


@dataclass(frozen=True)
class _Row:
    """One layer of a model."""

    model: str
    layer: int
    bits_per_byte: Estimate
    from_previous: Measured | None
    to_output: Measured
    is_output: bool
    texts: TextSet


LAYER = (
    Column("model", "The model."),
    Column(
        "layer",
        "0 is the embedding, the last is the model itself.",
        title="layer",
        cell=lambda it: str(it.layer) if it.layer else "embedding",
    ),
    estimate("bits_per_byte", "How well the layer predicts the texts.", title="bits/byte ± SE"),
    kl(
        "kl_from_previous",
        "KL from the layer before; null for the embedding.",
        lambda it: it.from_previous,
        title="KL from the layer before",
    ),
    kl("kl_to_output", "KL to the last layer.", lambda it: it.to_output),
    Column("", title="KL to the output", cell=lambda it: "" if it.is_output else marked(it.to_output)),
    unit(),
    *TEXTS,
)


def rows(vectors: Vectors) -> Mapping[str, list[_Row]]:
    """The layers of each model. The run-to-run noise of a model is that of its output. That of earlier layers is not
    known: for a pair with the output, half of the output's noise is a lower bound."""
    floors = dict(zip(vectors.names, vectors.noise_floor.tolist(), strict=True))
    n_texts = len(vectors.texts)

    def measured(found: KL | None, noise: float) -> Measured | None:
        return None if found is None else Measured.of_whole_texts(found, n_texts, ("", ""), noise)

    made = {}
    for model, found in lens.layers(vectors).items():
        floor, last = floors.get(model, math.nan) / 2, len(found) - 1
        made[model] = [
            _Row(
                model,
                layer.layer,
                layer.bits_per_byte,
                measured(layer.from_previous, floor if n == last else math.nan),
                Measured.of_whole_texts(layer.to_output, n_texts, ("", ""), floor),
                n == last,
                vectors.texts,
            )
            for n, layer in enumerate(found)
        ]
    return made


def layers_record(vectors: Vectors) -> list[dict[str, Any]]:
    """Each layer of each model. `vectors` hold the layers, and the models too, of which the noise is known."""
    return records(LAYER, (row for found in rows(vectors).values() for row in found))


def print_layers(vectors: Vectors) -> None:
    """KL of each layer from the one before and to the output, and how well it predicts; `vectors` as in
    `layers_record`."""
    found = rows(vectors)
    out.print(describe_texts(vectors.texts))
    for model, layers in found.items():
        out.print(table(LAYER, layers, f"\n{plain(model)}: the logit lens"))
    everything = [row for layers in found.values() for row in layers]
    shown = [row.from_previous for row in everything] + [row.to_output for row in everything if not row.is_output]
    out.print(
        f"KL in bits/byte ± standard error over texts, by {PUBLISHED}: layers keep no spans. "
        "The last layer is the model itself.",
        style="dim",
    )
    cautions.print_footnotes(vectors.texts, shown)
