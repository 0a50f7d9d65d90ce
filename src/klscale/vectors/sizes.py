"""How large a model's weights are, as it is recorded with its vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Size:
    """The size of a model's weights. Weights that two layers share count once.

    `n_weights` counts all of them, `n_embedding_weights` those of the embeddings and of the output embedding.
    `file_bytes`: the files of the weights; of a variant that was quantized here, codes and scales as its kind stores
    them, and the other weights as the model's files hold them. `memory_bytes`: the same, but the other weights in the
    dtype of the reference.
    """

    n_weights: int
    n_embedding_weights: int
    file_bytes: int
    memory_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits in files for each weight, embeddings and scales counted."""
        return 8 * self.file_bytes / self.n_weights

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> Size | None:
        """The size among what is `known` of a model; None where that is not whole."""
        values = [known.get(field.name) for field in fields(cls)]
        whole = all(isinstance(value, int | float) and value == value for value in values) and values[0]
        return cls(*map(int, values)) if whole else None  # type: ignore[arg-type]


SIZE = tuple(field.name for field in fields(Size))
"""Names of the numbers of a size."""
