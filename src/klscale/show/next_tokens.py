"""Quantized variants beside the model that they were made from, in the figures that their makers compare by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from klscale.inputs.references import ATTENTIONS, CACHES
from klscale.science.reported import ReportedKL
from klscale.science.sampled_tokens import DepthKL, SampledKL
from klscale.show.columns import Column, estimate, number, percent, table
from klscale.show.terminal import out, plain
from klscale.vectors.vectors import Vectors

EXACT = "Quantiles over tokens, and KL by the top token's probability, of full distributions: klscale validate --exact"
"""Below the table. A quantile of estimates from two draws a token would be that of the draws."""


@dataclass(frozen=True)
class Variant:
    """A quantized variant, and its KL from the model that it was made from."""

    name: str
    found: SampledKL


def variants(vectors: Vectors, pairs: Mapping[tuple[str, str], ReportedKL]) -> dict[str, list[Variant]]:
    """The quantized variants among the second models of these pairs, by the first: the model that each was made from.
    Only those whose sampled tokens are known."""
    found: dict[str, list[Variant]] = {}
    for (a, b), kl in pairs.items():
        base, variant = (vectors.models[vectors.position(name)] for name in (a, b))
        same = (base.name, base.revision, base.file) == (variant.name, variant.revision, variant.file)
        if same and variant.quantization and not base.quantization and kl.sampled_tokens is not None:
            found.setdefault(a, []).append(Variant(b, kl.sampled_tokens))
    return found


COLUMNS = (
    Column("", title="model", cell=lambda it: plain(it.name), words=True),
    Column("", title="KL, nats/token ± SE", cell=lambda it: number(it.found.forward_per_token)),
    Column("", title="same top token", cell=lambda it: percent(it.found.same_top)),
    Column("", title="total variation", cell=lambda it: percent(it.found.total_variation)),
)
"""Of a `Variant`, for the terminal alone."""


BY_DEPTH = (
    Column("first", "Scored tokens of its text before a position, at least.", "tokens"),
    Column("last", "The same, at most.", "tokens"),
    Column("n_positions", "Positions of such a depth."),
    estimate("kl", "KL(a‖b) of next tokens, mean over these positions.", "nats/token"),
)
"""Of a `DepthKL`."""
DEEP = (
    Column("", title="model", cell=lambda it: plain(it[0]), words=True),
    Column("", title="tokens before", cell=lambda it: f"{it[1].first:,} to {it[1].last:,}"),
    Column("", title="positions", cell=lambda it: f"{it[1].n_positions:,}"),
    Column("", title="KL, nats/token ± SE", cell=lambda it: number(it[1].kl)),
)
"""Of a model's name and a `DepthKL`, for the terminal alone."""


def by_depth(vectors: Vectors, a: str, b: str) -> tuple[DepthKL, ...]:
    """KL by depth of context where one of two models reads a quantized cache, or is asked for an attention; nothing for
    others."""
    kinds = {vectors.models[vectors.position(name)].quantization for name in (a, b)}
    return vectors.kl_by_depth(a, b) if kinds & {*CACHES, *ATTENTIONS} and vectors.has_sampled_tokens(a, b) else ()


def print_variants(vectors: Vectors, pairs: Mapping[tuple[str, str], ReportedKL]) -> None:
    """A table for each model that has variants among these pairs; nothing where none has. For those with a quantized
    cache or another attention KL by depth too."""
    found = variants(vectors, pairs)
    for base, its_variants in found.items():
        out.print(table(COLUMNS, its_variants, f"\nNext tokens of variants, from {plain(base)}"))
        deep = [(one.name, depth) for one in its_variants for depth in by_depth(vectors, base, one.name)]
        if deep:
            out.print(table(DEEP, deep, f"\nKL by depth of context, from {plain(base)}"))
    if found:
        out.print(EXACT, style="dim")
