"""What `klscale kld` shows: KL of single next tokens from a model whose log-probabilities llama.cpp has kept."""

from __future__ import annotations

from typing import Any

from klscale.show.cards import EXACT, QUANTILE_NAMES, TOKENS
from klscale.show.columns import Column, estimate, number, percent, record, table
from klscale.show.terminal import out, plain, say
from klscale.studies.calibration import QUANTILES
from klscale.studies.verbs.kld import StoredKL


def _quantile(place: int) -> Column:
    title = QUANTILE_NAMES[QUANTILES[place]]
    return Column("", title=title, cell=lambda it: number(it.figures.quantiles[place]), importance=int(title != "95 %"))


FROM_STORED = (
    Column("model", "The model.", title="model", words=True, cell=lambda it: plain(it.model), importance=2),
    Column("n_chunks", "Chunks that were read.", "chunks"),
    Column("exact", "KL of next tokens from the stored model to this one.", value=lambda it: it.figures, within=EXACT),
    Column("", title="mean, nats/token", cell=lambda it: number(it.figures.mean), importance=2),
    *map(_quantile, range(len(QUANTILES))),
    Column("", title="largest", cell=lambda it: f"{it.figures.maximum:.3g}", importance=0),
    Column("", title="same top token", cell=lambda it: percent(it.figures.same_top)),
    estimate("difference", "Loss of the actual tokens, model less stored: above 0, the model is worse.", TOKENS,
             title="more loss, nats/token", cell=lambda it: number(it.difference, sign=True)),
)  # fmt: skip
"""Of a `FromStored`."""
STORED_KL = (
    Column("file", "The file of the stored log-probabilities."),
    Column("quantiles_of_tokens", "Which quantiles of single tokens are given.", "share", lambda _: QUANTILES),
    Column("models", "Each model.", value=lambda it: it.found, within=FROM_STORED, many=True),
)


def stored_kl_record(found: StoredKL) -> dict[str, Any]:
    """The same for a machine."""
    return record(STORED_KL, found)


def print_stored_kl(found: StoredKL) -> None:
    """A row for each model, and what the numbers are of."""
    first = found.found[0]
    out.print(f"{plain(found.file)}: {first.n_chunks:,} chunks, {first.figures.n_tokens:,} positions", soft_wrap=True)
    out.print(table(FROM_STORED, found.found, "\nKL of single next tokens from the stored model, nats/token"))
    say("± is over chunks, whose tokens are not independent. Stored log-probabilities are rounded to 16 bits.", "dim")
