"""The size of a model, wherever it is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from klscale.show.columns import Column
from klscale.vectors.sizes import Size

UNKNOWN = "–"
"""A size that was not recorded."""
COUNTED = "Size: the files of the weights, embeddings and scales counted; bits: those bytes over all weights."
"""Below a table of sizes."""

SIZE = (
    Column("bits_per_weight", "Bits in files for each weight, embeddings and scales counted.", "bits"),
    Column(
        "file_bytes",
        "Files of the weights; of a variant quantized here codes, scales, and the other weights as the model's files "
        "hold them.",
        "bytes",
    ),
    Column("memory_bytes", "The same, but the other weights in the dtype of the reference.", "bytes"),
    Column("n_weights", "Weights, embeddings included; those that two layers share count once.", "weights"),
    Column("n_embedding_weights", "Weights of the embeddings and the output embedding.", "weights"),
)
"""Of a `Size`."""


def size_column(key: str, meaning: str, value: Callable[[Any], Size | None]) -> Column:
    """A column of sizes, for JSON."""
    return Column(key, f"{meaning} null: not recorded.", "", value, within=SIZE)


def printed_columns(size: Callable[[Any], Size | None]) -> tuple[Column, ...]:
    """Bits per weight and size in files, for the terminal."""

    def cell(write: Callable[[Size], str]) -> Callable[[Any], str]:
        return lambda source: UNKNOWN if (found := size(source)) is None else write(found)

    return (
        Column("", title="bits/weight", cell=cell(lambda found: f"{found.bits_per_weight:.2f}")),
        Column("", title="size", cell=cell(lambda found: megabytes(found.file_bytes))),
    )


def megabytes(n_bytes: float) -> str:
    """`271 MB`, `1.52 GB`."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.3g} MB"
