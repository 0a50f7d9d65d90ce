"""KL between the layers of a model, each read through the logit lens (Kishino et al., arXiv 2505.15353, Section 5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from klscale.errors import InputError
from klscale.inputs.references import ModelRef
from klscale.science.estimates import Estimate
from klscale.science.kl import KL
from klscale.vectors.vectors import Vectors


@dataclass(frozen=True)
class Layer:
    """One layer of a model, in bits per byte. Layer 0 is the embedding, the last is the model itself. `from_previous`
    is None where the layer before is not known, as for layer 0."""

    ref: ModelRef
    layer: int
    bits_per_byte: Estimate
    from_previous: KL | None
    to_output: KL


def layers(vectors: Vectors) -> dict[str, list[Layer]]:
    """The layers of each model in order: model -> layers, of `vectors` as `Store.vectors(..., layers=True)` gives them.

    Early layers are far from the texts: their KL is marked out of range. As for any pair, it is not clipped where the
    clip would move more than 5 % of either layer's vector. Raises InputError where no model was scored at its layers.
    """
    found = {str(model): _layers(vectors.subset(thread)) for model, thread in threads(vectors)}
    if not found:
        raise InputError(
            f"No model on {vectors.texts.name} was scored at its layers.", remedy="klscale score --layers REF..."
        )
    return found


def threads(vectors: Vectors) -> Iterator[tuple[ModelRef, list[ModelRef]]]:
    """Each model with its layers, in order; the last is its output (`Vectors.with_outputs`)."""
    rows: dict[ModelRef, list[ModelRef]] = {}
    for ref in vectors.models:
        if ref.layer is not None:
            rows.setdefault(replace(ref, layer=None), []).append(ref)
    for model, thread in rows.items():
        yield model, sorted(thread, key=lambda ref: ref.layer or 0)


def _layers(thread: Vectors) -> list[Layer]:
    matrix, last = thread.kl(), len(thread) - 1
    places = [ref.layer or 0 for ref in thread.models]
    return [
        Layer(
            ref,
            layer,
            thread.bits_per_byte(ref),
            matrix[n - 1, n] if n and places[n - 1] == layer - 1 else None,
            matrix[n, last],
        )
        for n, (ref, layer) in enumerate(zip(thread.models, places, strict=True))
    ]
