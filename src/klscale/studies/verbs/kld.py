"""KL from a model whose log-probabilities llama.cpp has kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from klscale.errors import InputError
from klscale.inputs.references import ModelRef, parse_all
from klscale.inputs.stored_logits import read_stored_logits
from klscale.studies.stored_logits import FromStored, measure
from klscale.studies.verbs.options import Options


@dataclass(frozen=True, eq=False)
class StoredKL:
    """KL from the model of `file` to each of some models."""

    file: str
    found: tuple[FromStored, ...]

    def __str__(self) -> str:
        return "\n".join(f"{one.model}: KL {one.figures.mean}, {one.difference} more" for one in self.found)


def kld(
    file: str | os.PathLike[str],
    models: Sequence[str | ModelRef],
    *,
    n_chunks: int | None = None,
    options: Options = Options(),
) -> StoredKL:
    """KL in nats a token, with quantiles and standard errors over chunks, from the model whose log-probabilities
    `llama-perplexity --kl-divergence-base` has kept in `file` to each of `models`, on its first `n_chunks` chunks
    (None: all). They need the same token ids.

    Raises InputError for a file that is none, or not whole, and for a model of another vocabulary.

        print(klscale.kld("base.kld", ["org/model+nf4"]))
    """
    if not (refs := parse_all(models)):
        raise InputError("No model is given.", remedy="klscale kld FILE REF...")
    how = options.scoring("device", "batch_tokens", "progress")
    return StoredKL(os.fspath(file), tuple(measure(read_stored_logits(file), refs, n_chunks=n_chunks, **how)))
