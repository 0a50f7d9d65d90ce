"""What `klscale sensitivity` shows: the KL of each part of a model quantized alone, and of all parts together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from klscale.show import files
from klscale.show.columns import TEXTS, Column, estimate, flat, number, record, table, unit, within
from klscale.show.terminal import describe_texts, out, plain, say
from klscale.studies.budget import N_DEALT, Mix, Uniform, fits
from klscale.studies.sensitivity import OfKind, Sensitivity
from klscale.studies.verbs.sensitivity import PartCosts

MOST = 20
"""Parts that the terminal shows, the costliest first."""


PART = (
    Column("part", "The part that is quantized.", value=lambda it: it.name, title="part", words=True),
    Column("block", "Number of its block; null: it is in none."),
    Column("modules", "Its linear layers."),
    Column("n_weights", "Weights that are quantized.", "weights", title="weights"),
    Column("stored_bytes", "Codes and scales of these.", "bytes"),
    estimate("kl", "KL from the model to itself with this part quantized.", title="KL ± SE, bits/byte"),
    estimate("kl_noise", "The same with normal noise of the same norm.", value=lambda it: it.noise, title="noise"),
    estimate("kl_over_noise", "Their ratio.", "", lambda it: it.over_noise, title="KL / noise"),
)

OF_KIND = (
    Column("kind", "How the parts are quantized."),
    estimate("whole", "KL with all parts quantized."),
    estimate("total", "Sum of the KLs of the parts."),
    estimate("additivity", "whole / total, with the paired standard error.", ""),
    Column("left", "Layers that this kind cannot hold: they are in no part."),
    Column("parts", "Each part.", within=PART, many=True),
)

SENSITIVITY = (
    Column("base", "The model."),
    Column("by", "What a part is: a module, a layer (attention or MLP), a block or an expert."),
    *TEXTS,
    Column("n_texts", "Texts that were read.", "texts"),
    Column("n_available", "Texts that fit the window, from which these are drawn at random.", "texts"),
    Column("seconds", "Time of what was measured now; the rest was kept from before.", "s"),
    unit(),
    Column("kinds", "Each kind of quantization.", within=OF_KIND, many=True),
)


UNIFORM = (
    Column("kind", "All parts as this kind.", title="quantized as", words=True),
    Column("bits", "Bits of a weight of the linear layers.", "bits", title="bits/weight"),
    estimate("kl", "KL from the model.", title="KL ± SE, bits/byte"),
    estimate(
        "difference",
        "KL of the mix less this, paired.",
        title="mix less this",
        cell=lambda it: number(it.difference, sign=True),
    ),
)
MIX = (
    Column("budget", "Bits of a weight of the linear layers, at most; embeddings are not counted.", "bits"),
    Column("bits", "Bits of a weight that the mix takes.", "bits"),
    Column("kinds", "The kind of each linear layer; null: left in 16 bits."),
    estimate("promised", "Sum of the KLs of the parts of the mix, on the texts that chose them."),
    estimate("got", "KL of the whole mix, on the texts that check it."),
    Column("n_texts", "Texts that check it.", "texts"),
    Column("held_out", "Whether these are other texts than those that chose the mix."),
    Column("uniform", "Each kind alone, on the same texts.", within=UNIFORM, many=True),
    Column(
        "dealt",
        "The budget spent without looking at costs: a second kind dealt to parts in random order, mean of 3 draws.",
        within=UNIFORM,
    ),
)
COSTS = (
    *within(SENSITIVITY, lambda it: it.found),
    Column("mix", "The mix within the budget; null: none was asked for.", within=MIX),
)
"""Of a `PartCosts`."""


def sensitivity_record(costs: PartCosts) -> dict[str, Any]:
    """The JSON of the result."""
    return record(COSTS, costs)


def save_recipe(costs: PartCosts, file: Path) -> None:
    """The mix as JSON for other tools."""
    from klscale.show.recipes import recipe

    assert costs.mix is not None
    files.save_json(file, recipe(costs.mix, str(costs.found.bench.reader.attributes.get("type", ""))))


def print_costs(costs: PartCosts) -> None:
    """The costs of the parts, and the mix where one was asked for."""
    print_sensitivity(costs.found)
    if costs.mix is not None:
        print_mix(costs.mix)


def print_mix(mix: Mix) -> None:
    """Which kinds the mix has, what it promised and got, and the kinds alone beside it."""
    counts = Counter(kind or "16 bits" for kind in mix.kinds.values())
    out.print(
        f"\nWithin {mix.budget:g} bits per weight of the linear layers: a mix of {mix.bits:.2f} bits", style="bold"
    )
    say(", ".join(f"{count:,} modules as {kind}" for kind, count in counts.most_common()) + ".")
    where = f"{mix.n_texts:,} other texts" if mix.held_out else "the same texts, for want of others"
    say(f"Promised, as the sum of parts: {number(mix.promised)} bits/byte. Measured on {where}: {number(mix.got)}.")
    out.print(table(UNIFORM, [*mix.uniform, *([mix.dealt] if mix.dealt else [])]))
    if mix.dealt is None:
        say("No kind alone fits this budget.")
        return
    best = min((one for one in mix.uniform if fits(one.bits, mix.budget)), key=lambda one: one.kl.value)
    say(f"{_nearer(best)} {best.kind} alone, the best kind that fits the budget.")
    say(f"{_nearer(mix.dealt)} mixes of its size that look at no costs (mean of {N_DEALT}).")


def _nearer(other: Uniform) -> str:
    """Whether the mix is nearer to the model than another, beyond the error; the words before its name."""
    low, high = other.difference.interval
    if low <= 0 <= high:
        return "Within the error the mix is as near to the model as"
    return f"The mix is {'nearer to' if high < 0 else 'farther from'} the model than"


def save_sensitivity(found: Sensitivity, file: Path) -> None:
    """A row for each kind and part (.csv, .parquet), or the picture (.png, .svg, .pdf)."""
    from klscale.show.pictures import sensitivity_grid

    files.save(file, lambda: _rows(found), lambda: sensitivity_grid(found))


def _rows(found: Sensitivity) -> list[dict[str, Any]]:
    return [{"kind": one.kind, **flat(PART, part)} for one in found.kinds for part in one.parts]


def print_sensitivity(found: Sensitivity) -> None:
    """The costliest parts of each kind, and how the parts add up."""
    out.print(describe_texts(found.texts))
    out.print(f"Exact next-token KL on {found.n_texts:,} of {found.n_available:,} texts, drawn at random.")
    for one in found.kinds:
        ordered = sorted(one.parts, key=lambda part: -part.kl.value)
        out.print(table(PART, ordered[:MOST], f"\n{plain(found.base)}, one {found.by} at a time as {one.kind}"))
        if len(ordered) > MOST:
            rest = sum(part.kl.value for part in ordered[MOST:]) / one.total.value
            out.print(
                f"{len(ordered) - MOST:,} more, which add {rest:.0%} of the sum. All: --out FILE.csv", style="dim"
            )
        _print_sums(one)
    out.print(f"\nMeasured in {found.seconds:,.0f} s.", style="dim")


def _print_sums(one: OfKind) -> None:
    say(
        f"All {len(one.parts):,} together: {number(one.whole)} bits/byte. The parts add up to {number(one.total)}: "
        f"together they cost {number(one.additivity)} times their sum."
    )
    if one.left:
        first: Sequence[str] = one.left[:1]
        say(f"{len(one.left)} layers, first of them {plain(first[0])}, have no shape for {one.kind}.", "yellow")
