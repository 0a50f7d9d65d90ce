"""The picture of the scale: how large KL is between checkpoints, seeds, sizes and relatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from klscale.errors import InputError
from klscale.inputs.texts import TextSet
from klscale.science.estimates import format_estimate
from klscale.show.pictures.style import (
    COLOURS,
    GREY,
    SINGLE,
    SMALL,
    TEXT,
    describe,
    headline,
    new_figure,
    plain_ticks,
    styled,
)
from klscale.studies.scales import NoiseFloor, PublishedSetting, Setting, published_beside, published_holds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOT, PUBLISHED = COLOURS[:2]
NOISE = COLOURS[3]
ROW = 0.40
"""Inches: a line of text, and the pairs below it."""
STRIP = 0.2
"""Inches of a row without text of its own."""
MOST_DOTS = 200
"""Pairs of a setting that are drawn in little height."""


@styled
def scale_ruler(measured: Sequence[Setting], texts: TextSet, noise_floor: NoiseFloor | None = None) -> Figure:
    """The scale: a row for each setting, smallest median on top, KL in bits/byte on a log axis; see `scales.measure`.

    Every pair is a dot, hollow where it is out of range. A box spans the quartiles, a tick marks the median with its
    interval over models, a diamond the published median, a hairline the median run-to-run noise if it lies in view.
    Raises InputError where no setting has a positive median.
    """
    rows = [row for row in measured if row.median > 0]
    if not rows:
        raise InputError("There is no scale to draw.", "No two models of one setting differ.", "Score more models.")
    beside = [published_beside(row.setting) for row in rows]
    lines = ["Each row: median ± standard error over texts, bits/byte"]
    if any(beside) and not published_holds(texts):
        lines.append("published: pile-10k, other texts: not comparable")
    figure = new_figure(SINGLE, 0.92 + 0.12 * len(lines) + ROW * len(rows))
    headline(figure, "\n".join([describe(texts), *lines]))
    axes = figure.add_subplot()
    for y, (row, known) in enumerate(zip(rows, beside, strict=True)):
        _draw_setting(axes, row, known, y)
    axes.set_xscale("log")
    axes.set_ylim(len(rows) - 0.45, -0.55)
    low, high = axes.get_xlim()
    room = (high / low) ** 0.04  # for the labels of the outermost diamonds
    axes.set_xlim(low / room, high * room)
    noise = noise_floor is not None and low / room < noise_floor.median < high * room
    if noise_floor is not None and noise:
        axes.axvline(noise_floor.median, color=NOISE, linewidth=0.6, linestyle=(0, (4, 2)), zorder=1)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=SMALL, which="both")
    plain_ticks(axes.xaxis)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("KL divergence, bits/byte")
    handles = _legend(any(row.n_in_range < len(row.pairs) for row in rows), any(beside), noise)
    figure.legend(handles=handles, loc="outside lower left", ncols=3)
    return figure


def _draw_setting(axes: Any, row: Setting, known: PublishedSetting | None, y: float) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.0, foreground="white")]
    if y % 2:
        axes.axhspan(y - 0.5, y + 0.5, color="#f4f4f4", zorder=0)
    value, whole = np.array(row.values), np.array(row.in_range)
    value, whole = value[value > 0], whole[value > 0]  # a log axis has no zero
    # Golden-section steps spread neighbours, and the same pairs lie at the same place.
    middle = y + 0.17
    height = middle + 0.4 * ((np.arange(len(value)) * 0.618034 + 0.5) % 1 - 0.5)
    alpha = float(np.clip(8 / len(value) ** 0.6, 0.15, 0.8))
    low, high = row.quartiles
    if len(value) > 1:
        box = (low, middle - 0.25), high - low, 0.5
        axes.add_patch(Rectangle(*box, facecolor=DOT, edgecolor="none", alpha=0.16, zorder=1))
        axes.add_patch(Rectangle(*box, facecolor="none", edgecolor=GREY, linewidth=0.4, zorder=3))
    dots: dict[str, Any] = {"s": 7, "linewidths": 0.6, "alpha": alpha, "zorder": 2 if len(value) > 10 else 5.5}
    axes.scatter(value[whole], height[whole], color=DOT, **dots | {"linewidths": 0})
    axes.scatter(value[~whole], height[~whole], facecolors="white", edgecolors=DOT, **dots)
    if row.interval_kind == "models":
        axes.plot(row.interval, (middle,) * 2, color="black", linewidth=1.0, solid_capstyle="butt", zorder=4)
    tick = (middle - 0.27, middle + 0.27)
    axes.plot((row.median,) * 2, tick, color="black", linewidth=2.0, solid_capstyle="butt", zorder=5)
    heading: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
    axes.annotate(str(row.setting), (0, y - 0.29), (2, 0), weight="bold", fontsize=SMALL, **heading)
    count = f"{len(row.pairs):,} pair{'s' if len(row.pairs) > 1 else ''}"
    estimate = f"{format_estimate(row.median, row.standard_error)}  ({count})"
    axes.annotate(estimate, (1, y - 0.29), (-2, 0), fontsize=SMALL, ha="right", **heading)
    if known:
        axes.plot(known.median, middle, "D", markersize=4.5, markerfacecolor="white", color=PUBLISHED, zorder=6)
        side = -1 if known.median < row.median else 1  # away from the pairs
        look: dict[str, Any] = {"textcoords": "offset points", "va": "center", "zorder": 7, "fontsize": SMALL}
        look |= {"color": PUBLISHED, "path_effects": halo, "ha": "right" if side < 0 else "left"}
        axes.annotate(f"{known.median:#.2g}", (known.median, middle), (4.5 * side, 0), **look)


def _legend(hollow: bool, published: bool, noise: bool) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    dot: dict[str, Any] = {"color": DOT, "marker": "o", "markersize": 3.2, "linestyle": ""}
    median: dict[str, Any] = {"marker": "|", "markersize": 7, "markeredgewidth": 2.0, "linewidth": 1.0}
    handles: list[Any] = [Line2D([], [], markeredgewidth=0, label="pair", **dot)]
    if hollow:
        handles.append(Line2D([], [], markerfacecolor="none", label="out of range", **dot))
    handles.append(Patch(facecolor="#d6e7f3", edgecolor=GREY, linewidth=0.4, label="quartiles"))
    handles.append(Line2D([], [], color="black", label="median, 95 % over models", **median))
    if published:
        diamond: dict[str, Any] = {"marker": "D", "markerfacecolor": "white", "markersize": 4, "linestyle": ""}
        handles.append(Line2D([], [], color=PUBLISHED, label="published", **diamond))
    if noise:
        handles.append(Line2D([], [], color=NOISE, linewidth=0.6, linestyle=(0, (4, 2)), label="noise, median"))
    return handles


@styled
def scale_strip(measured: Sequence[Setting], texts: TextSet) -> Figure:
    """The scale in little height: a row for each setting between models, smallest median on top, KL in bits/byte on a
    log axis. Dots are pairs, a box spans their quartiles, a tick marks their median, which is also written out. Where
    the published values hold for these texts, diamonds are the published medians. Raises InputError where no setting
    has a positive median."""
    rows = [row for row in measured if row.median > 0 and row.setting != "layer"]
    if not rows:
        raise InputError("There is no scale to draw.", "No two models of one setting differ.", "Score more models.")
    figure = new_figure(SINGLE, 0.62 + STRIP * len(rows))
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        _draw_row(axes, row, y)
        known = published_beside(row.setting) if published_holds(texts) else None
        if known:
            axes.plot(known.median, y, "D", markersize=3.6, markerfacecolor="white", color=PUBLISHED, zorder=6)
    axes.set_xscale("log")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    low, high = axes.get_xlim()
    if high < 3 * low:  # one pair alone
        axes.set_xlim(low / 2, high * 2)
    axes.set_yticks(range(len(rows)), [row.setting for row in rows])
    axes.tick_params(axis="y", length=0)
    plain_ticks(axes.xaxis, most=6)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("KL divergence, bits/byte")
    axes.set_title(" ", fontsize=TEXT)  # room for what is written over the axes
    for y, row in enumerate(rows):
        place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
        axes.annotate(f"{row.median:.3g}", (1, y), (3, 0), va="center", fontsize=SMALL, **place)
    return figure


def _draw_row(axes: Any, row: Setting, y: int) -> None:
    """The pairs of a setting, their quartiles and their median."""
    from matplotlib.patches import Rectangle

    value, whole = np.array(row.values), np.array(row.in_range)
    value, whole = value[value > 0][:MOST_DOTS], whole[value > 0][:MOST_DOTS]  # a log axis has no zero
    height = y + 0.5 * ((np.arange(len(value)) * 0.618034 + 0.5) % 1 - 0.5)  # golden-section steps spread neighbours
    dots: dict[str, Any] = {"s": 6, "linewidths": 0.6, "alpha": float(np.clip(8 / len(value) ** 0.6, 0.25, 0.8))}
    axes.scatter(value[whole], height[whole], color=DOT, **dots | {"linewidths": 0})
    axes.scatter(value[~whole], height[~whole], facecolors="white", edgecolors=DOT, **dots)
    low, high = row.quartiles
    if len(value) > 1:
        box = Rectangle((low, y - 0.3), high - low, 0.6, facecolor=DOT, edgecolor="none", alpha=0.16, zorder=1)
        axes.add_patch(box)
    axes.plot((row.median,) * 2, (y - 0.33, y + 0.33), color="black", linewidth=2.0, solid_capstyle="butt", zorder=5)
