"""Pictures of quantization: how far each variant of a model is from it, and how large it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from klscale.errors import InputError
from klscale.show.names import short_names, shortened
from klscale.show.pictures.style import (
    DOUBLE,
    GREY,
    SMALL,
    bars,
    describe,
    headline,
    looks,
    new_figure,
    plain_ticks,
    styled,
)  # fmt: skip
from klscale.studies import relatives
from klscale.studies.scales import Setting
from klscale.studies.sensitivity import Sensitivity
from klscale.vectors.vectors import Vectors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS: dict[str, Any] = {"later training": "--", "seed": ":"}
"""Settings whose median is drawn with a ladder, from the finest, with the line of each."""


@styled
def quantization_ladder(vectors: Vectors, measured: Sequence[Setting] = ()) -> Figure:
    """The quantized variants of each model, nearest first. One panel has KL from the model in bits per byte on a log
    axis, the other the difference in bits/byte to the model, both with 95 % intervals over texts. Lines are the medians
    between neighbouring checkpoints and between seeds, from the scale `measured` on these texts. Raises InputError
    where there is no model with a variant."""
    from matplotlib.lines import Line2D

    ladders, matrix = relatives.ladders(vectors), vectors.reported_kl_matrix()
    if not ladders:
        raise InputError(
            "There is no ladder to draw.", "No model has a quantized variant.", "klscale score NAME --quantize int8,nf4"
        )
    kind = {variant: _kind(vectors, variant) for rungs in ladders.values() for variant in rungs}
    look = looks(kind.values())
    short = dict(zip(ladders, short_names(list(ladders), 40), strict=True))
    rows = sum(len(rungs) + 1 for rungs in ladders.values())
    figure = new_figure(DOUBLE, 0.85 + 0.15 * rows)
    headline(figure, describe(vectors.texts))
    divergences, differences = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    place, labels, headings = 0, dict[int, str](), list[int]()
    for base, rungs in ladders.items():
        headings.append(place)
        labels[place] = short[base]
        for variant in rungs:
            place += 1
            labels[place] = shortened(kind[variant], 24)
            dot: dict[str, Any] = {"fmt": look[kind[variant]].marker, "color": look[kind[variant]].colour}
            dot |= {"elinewidth": 0.8, "markersize": 3.5}
            if (
                away := matrix.at(vectors.position(base), vectors.position(variant))
            ).value > 0:  # a log axis has no zero
                divergences.errorbar([away.value], [place], xerr=bars([away]), **dot)
            else:
                divergences.annotate("0", (0.01, place), xycoords=divergences.get_yaxis_transform(), va="center")
            worse = vectors.bits_per_byte(variant, base)
            differences.errorbar([worse.value], [place], xerr=bars([worse]), **dot)
        place += 1
    divergences.set_yticks(list(labels), list(labels.values()))
    for tick in divergences.get_yticklabels():
        tick.set_parse_math(False)
    for tick, at in zip(divergences.get_yticklabels(), labels, strict=True):
        if at in headings:
            tick.set_weight("bold")
    divergences.set_ylim(place - 0.3, -0.7)
    levels = _levels(measured)
    for label, value in levels.items():
        divergences.axvline(value, color=GREY, linewidth=0.8, linestyle=LEVELS[label], zorder=0)
    divergences.set_xscale("log")
    plain_ticks(divergences.xaxis)
    divergences.set_xlabel("KL to the model itself, bits/byte (95 % interval)")
    differences.axvline(0, color=GREY, linewidth=0.6, zorder=0)
    differences.set_xlabel("more bits/byte than the model\n(95 % interval)")
    differences.xaxis.get_major_locator().set_params(nbins=5)
    for axes in (divergences, differences):
        axes.tick_params(labelsize=SMALL, which="both")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        for at in headings[1:]:
            axes.axhline(at - 0.5, color=GREY, linewidth=0.3)
    if levels:
        lines = [
            Line2D(
                [],
                [],
                color=GREY,
                linewidth=0.8,
                linestyle=LEVELS[label],
                label=f"median of '{label}': {value:.3g} bits/byte",
            )
            for label, value in levels.items()
        ]
        figure.legend(handles=lines, loc="outside lower left", ncols=len(lines))
    return figure


@styled
def kl_against_size(vectors: Vectors) -> Figure:
    """KL of every other model from the first, in bits per byte with 95 % intervals, against the size of its files. The
    line joins the models that no other is both nearer and smaller than (the Pareto front). Models of unknown size, and
    those that are equal to the first, are left out. Raises InputError where none is left."""
    first, *others = vectors.names
    sizes = {name: size for name in others if (size := vectors.size(name)) is not None}
    away = {name: kl for name in sizes if (kl := vectors.reported_kl(first, name)).value > 0}
    if not away:
        why = "Sizes are recorded when a model is scored; those of older vectors are not known."
        raise InputError("There is no KL against size to draw.", why, "klscale score REF... --rescore")
    look = looks(away)
    figure = new_figure(DOUBLE / 2 + 1, 2.6)
    headline(figure, f"KL from {shortened(first, 40)}, {describe(vectors.texts)}")
    axes = figure.subplots()
    front = pareto_front({name: (sizes[name].file_bytes, kl.value) for name, kl in away.items()})
    corner = [(sizes[name].file_bytes / 1e6, away[name].value) for name in front]
    axes.step(*zip(*corner, strict=True), where="post", color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    middle = (min(size.file_bytes for size in sizes.values()) + max(size.file_bytes for size in sizes.values())) / 2e6
    for (name, kl), label in zip(away.items(), short_names(list(away), 32), strict=True):
        dot: dict[str, Any] = {"fmt": look[name].marker, "color": look[name].colour, "elinewidth": 0.8}
        at = sizes[name].file_bytes / 1e6
        axes.errorbar([at], [kl.value], yerr=bars([kl]), markersize=3.5, **dot)
        text, right = f"{label} ({sizes[name].bits_per_weight:.2f} bits)", at > middle
        beside: dict[str, Any] = {"xytext": (-4 if right else 4, 3), "ha": "right" if right else "left"}
        axes.annotate(text, (at, kl.value), textcoords="offset points", fontsize=SMALL, **beside)
    axes.set_yscale("log")
    plain_ticks(axes.yaxis)
    axes.margins(x=0.25)
    axes.set_xlabel("size of the weights in files, MB (embeddings counted)")
    axes.set_ylabel("KL, bits/byte (95 % interval)")
    axes.grid(axis="both")
    return figure


@styled
def sensitivity_grid(found: Sensitivity) -> Figure:
    """KL of each part of a model quantized alone, in bits per byte on a log scale of colours. Blocks are from left to
    right, parts of a block from top to bottom. A panel for each kind. Parts in no block are not drawn. Raises
    InputError where no part is in a block."""
    from matplotlib.colors import LogNorm

    inside = {one.kind: [part for part in one.parts if part.block is not None] for one in found.kinds}
    values = [part.kl.value for parts in inside.values() for part in parts if part.kl.value > 0]
    if not values:
        raise InputError("There is no part of a block to draw.", remedy="Write a table: --out FILE.csv")
    names = list(dict.fromkeys(part.short for parts in inside.values() for part in parts))
    n_blocks = 1 + max(part.block or 0 for parts in inside.values() for part in parts)
    figure = new_figure(DOUBLE, 0.75 + len(inside) * (0.45 + 0.16 * len(names)))
    headline(figure, f"{shortened(found.base, 40)}, {found.n_texts:,} texts of {shortened(found.texts.name, 36)}")
    panels = figure.subplots(len(inside), 1, squeeze=False, sharex=True)[:, 0]
    norm = LogNorm(min(values), max(values) if max(values) > min(values) else 2 * min(values))
    for axes, (kind, parts) in zip(panels, inside.items(), strict=True):
        grid = np.full((len(names), n_blocks), np.nan)
        for part in parts:
            grid[names.index(part.short), part.block] = part.kl.value or np.nan
        axes.imshow(grid, norm=norm, cmap="viridis", aspect="auto", interpolation="nearest")
        axes.set_yticks(range(len(names)), [name or "block" for name in names], fontsize=SMALL)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(f"one {found.by} at a time as {kind}")
        axes.tick_params(length=0)
    panels[-1].set_xlabel("block")
    colours = figure.colorbar(panels[0].images[0], ax=list(panels), pad=0.01)
    colours.set_label("KL, bits/byte")
    plain_ticks(colours.ax.yaxis)
    return figure


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points (size, KL) that no other point is at or below in both, smallest first."""
    found, least = list[str](), math.inf
    for name, (_, value) in sorted(points.items(), key=lambda item: item[1]):
        if value < least:
            found.append(name)
            least = value
    return found


def _kind(vectors: Vectors, variant: str) -> str:
    """How a variant is quantized."""
    return str(vectors.attributes["quantization"].iloc[vectors.position(variant)])


def _levels(measured: Sequence[Setting]) -> dict[str, float]:
    known = {row.setting: row.median for row in measured if row.median > 0}
    return {label: known[label] for label in LEVELS if label in known}
