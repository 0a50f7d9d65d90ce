"""The picture of all pairs: KL as colours and numbers, with a dendrogram; near models are neighbours."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from klscale.errors import InputError
from klscale.science.arrays import Floats, Integers
from klscale.science.estimates import format_estimate
from klscale.show.names import short_names
from klscale.show.pictures.style import (
    DOUBLE,
    FAINT,
    GREY,
    SINGLE,
    SMALL,
    describe,
    headline,
    new_figure,
    plain_ticks,
    styled,
)  # fmt: skip
from klscale.studies import maps
from klscale.vectors.vectors import Vectors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 60
"""Largest number of models that are all named; of more, those of one run or family that lie together have one name."""
ALL_COLOURS = 20
"""Largest number of models whose colours span all values; of more, the outermost 0.5 % of the pairs are cut off."""
TREE, GAP = 0.55, 0.06
"""Width of the dendrogram, and of the gap between it and the cells, in inches."""
CHARACTER, LINE = 0.62 * SMALL / 72, 1.25 * SMALL / 72
"""Approximate width of a character, and the height of a line, in inches."""
MARGIN = 0.08


@styled
def kl_heat_map(vectors: Vectors) -> Figure:
    """KL between all pairs in bits per byte, ordered by average linkage on sqrt(KL), with the dendrogram at the left.

    The colour is KL on a log scale; cells hold value and standard error where there is room for both. Each name is at
    the end of its model's row and on top of its column. Beyond 60 models neighbours of one training run or family
    share a name, as `Qwen (15)`, the largest groups first, and what has no room is not named. Raises InputError for
    fewer than two models, and where two models have no common texts.
    """
    from matplotlib.colors import ListedColormap, LogNorm

    matrix, K = vectors.reported_kl_matrix(), len(vectors)
    if K < 2:
        raise InputError("There is no pair to draw.", "One model alone has no KL.", "Score another one.")
    clusters = maps.cluster(matrix.value, vectors.names)
    merges, order = clusters.merges, clusters.order
    value, error = (part[np.ix_(order, order)] for part in (matrix.value, matrix.standard_error))
    shown = np.where(np.tri(K, k=-1, dtype=bool), value, np.nan)
    positive = shown[shown > 0]
    low, high = np.quantile(positive, [0, 1] if K <= ALL_COLOURS else [0.005, 0.995]) if positive.size else (0.0, 0.0)

    # The cells take what tree and names leave of the width; few models need no more than one column.
    width = SINGLE if K <= 5 else DOUBLE
    left = MARGIN + TREE + GAP if K > 2 else MARGIN
    names = _names(vectors.subset([vectors.names[k] for k in order]), (width - left - MARGIN) / K)
    lengths = {row: len(name) * CHARACTER + 0.04 for row, name in names.items()}
    cell = min((width - left - MARGIN - length) / (row + 0.1) for row, length in lengths.items() if row)
    cell = min(cell, (width - left - MARGIN) / K, 0.62)
    below = 0.36 if K > 2 else 0.3
    height = below + cell * K + 0.3
    figure = new_figure(width, height)
    figure.set_layout_engine("none")  # every part has its place in inches
    headline(figure, f"{K:,} models, {describe(vectors.texts)}")

    axes = figure.add_axes((left / width, below / height, cell * K / width, cell * K / height))
    norm = LogNorm(low, high) if low < high else None
    # one value alone has nothing to be darker than; a zero is as dark as can be
    colours = ListedColormap(["#e6e6e6"]) if norm is None else "cividis"
    image = axes.imshow(np.maximum(shown, low), cmap=colours, norm=norm, aspect="auto")
    axes.set_axis_off()
    for row, name in names.items():
        end = (math.ceil(row) - 0.5, row)  # of the cells of the row
        axes.annotate(name, end, (2, 0), textcoords="offset points", va="center", fontsize=SMALL)
    if _write_values(axes, value, error, cell, float(np.sqrt(low * high))):
        at = left + 0.5 if K > 2 else left
        figure.text(at / width, 0.08 / height, "cells: KL ± standard error, bits/byte", fontsize=SMALL)
    if K == 2:
        return figure
    tree = figure.add_axes((MARGIN / width, below / height, TREE / width, cell * K / height))
    _draw_tree(tree, merges, order)
    if norm is None:
        return figure
    tall = min(2.2, max(0.45 * cell * K, 0.7))
    bar_left, bar_bottom = max(left + cell * K - 0.09, width - 0.75), below + cell * K - tall  # beyond the names
    bar = figure.add_axes((bar_left / width, bar_bottom / height, 0.09 / width, tall / height))
    below_all, above_all = positive.min() < low, positive.max() > high
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below_all, above_all), "neither")
    figure.colorbar(image, cax=bar, extend=extend)
    bar.yaxis.set_ticks_position("left")
    bar.yaxis.set_label_position("left")
    bar.set_ylabel("KL, bits/byte")
    bar.tick_params(labelsize=SMALL, which="both")
    plain_ticks(bar.yaxis, most=6)
    return figure


def _names(vectors: Vectors, cell: float) -> dict[float, str]:
    """What is named, by its place among the rows: every model where they are few, else neighbours of one training run
    or family, the largest groups first, one by one where no name of before is in the way. `cell` is the height of a row
    in inches."""
    short = short_names(vectors.names)
    if len(vectors) <= NAMED:
        return dict(enumerate(short))
    of_run = Counter(vectors.runs)
    known = zip(vectors.runs, vectors.attributes["family"], strict=True)
    groups = [run if of_run[run] > 1 or pd.isna(family) else str(family) for run, family in known]
    distinct = list(dict.fromkeys(groups))
    shown = dict(zip(distinct, short_names(distinct), strict=True))
    blocks = [[row for row, _ in found] for _, found in itertools.groupby(enumerate(groups), key=lambda it: it[1])]
    named: dict[float, str] = {}
    for rows in sorted(blocks, key=lambda rows: -len(rows)):
        row = (rows[0] + rows[-1]) / 2
        if all(abs(row - other) * cell >= LINE for other in named):
            many = len(rows) > 1
            named[row] = f"{shown[groups[rows[0]]]} ({len(rows):,})" if many else short[rows[0]]
    return named


def _draw_tree(axes: Any, merges: Floats, order: Integers) -> None:
    """The dendrogram, its leaves at the rows; heights are mean distances, √KL."""
    from matplotlib.collections import LineCollection

    K = len(order)
    place = np.empty(2 * K - 1)
    place[order] = np.arange(K)
    height = np.concatenate([np.zeros(K), merges[:, 2]])
    lines = []
    for n, (a, b) in enumerate(merges[:, :2].astype(int), start=K):
        place[n] = (place[a] + place[b]) / 2
        lines.append([(height[a], place[a]), (height[n], place[a]), (height[n], place[b]), (height[b], place[b])])
    axes.add_collection(LineCollection(lines, colors=GREY, linewidths=0.7 if K <= NAMED else 0.4))
    top = height.max() or 1.0
    axes.set_xlim(1.04 * top, 0)
    axes.set_ylim(K - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines[["left", "right"]].set_visible(False)
    digits = 1 - math.floor(math.log10(top))
    rounded = math.floor(top * 10 ** (digits - 1)) / 10 ** (digits - 1)
    axes.set_xticks([0, rounded], ["0", f"{rounded:g}"])
    axes.tick_params(labelsize=SMALL)
    axes.set_xlabel("√KL, √(bits/byte)", loc="left")
    axes.grid(axis="x", color=FAINT)


def _write_values(axes: Any, value: Floats, error: Floats, cell: float, middle: float) -> bool:
    """Value and standard error in each cell of the lower triangle, if all of them have room; whether they have."""
    pairs = [(i, j) for i in range(len(value)) for j in range(i)]
    room = int((cell - 0.01) / (0.64 * SMALL / 72))
    texts = [_in_a_cell(value[pair], error[pair], room) for pair in pairs] if cell >= 0.28 else [None]
    written = [text for text in texts if text is not None]
    if len(written) < len(texts):
        return False
    for (i, j), (digits, plus_minus) in zip(pairs, written, strict=True):
        colour = "black" if value[i, j] >= middle else "white"
        look: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": SMALL}
        axes.annotate(digits, (j, i), (0, 4), color=colour, **look)
        axes.annotate(plus_minus, (j, i), (0, -4), color=colour, **look)
    return True


def _in_a_cell(value: float, error: float, room: int) -> tuple[str, str] | None:
    """Value and standard error in so many characters each: with two digits of the error, else one, else as powers."""
    digits, _, two = format_estimate(value, error).partition(" ± ")
    candidates = [(digits, f"±{two}")] if two else [(digits, "")]
    if two:
        decimals = max(0, -math.floor(math.log10(error)))
        candidates.append((f"{value:.{decimals}f}", f"±{error:.{decimals}f}"))
        candidates.append((f"{value:.1e}".replace("e-0", "e-"), "±" + f"{error:.0e}".replace("e-0", "e-")))
    return next(((a, b) for a, b in candidates if max(len(a), len(b)) <= room), None)
