"""Pictures: each function takes a result and returns a matplotlib figure, ready for a paper."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from klscale import lens, maps
from klscale.divergence import Integers, format_estimate
from klscale.errors import InputError
from klscale.scales import Setting, published_beside, published_holds
from klscale.texts import TextSet
from klscale.vectors import Vectors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by colour-blind readers too (Okabe and Ito)."""
DOT, PUBLISHED = COLOURS[:2]


def kl_heat_map(vectors: Vectors, *, annotate_up_to: int = 20) -> Figure:
    """KL between all pairs in bits per byte, nearest models beside each other (average linkage on sqrt(KL)).

    The colour is KL on a log scale; cells hold values and, smaller, standard errors where the models are few enough.
    """
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.figure import Figure
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    matrix = vectors.kl()
    K = len(vectors)
    order: Integers = np.arange(K)
    if K > 2:
        distance = squareform(np.sqrt(matrix.value), checks=False)
        order = leaves_list(optimal_leaf_ordering(linkage(distance, "average"), distance)).astype(np.int64)
    value, error = (part[np.ix_(order, order)] for part in (matrix.value, matrix.standard_error))
    shown = np.where(np.tri(K, k=-1, dtype=bool), value, np.nan)
    positive = shown[shown > 0]
    names = [vectors.names[k] for k in order]
    short = _without_common_prefix(names)

    side = 1.6 + 0.5 * min(K, annotate_up_to)
    figure = Figure(figsize=(max(side + 0.6, 3.6), side), layout="constrained")
    axes = figure.add_subplot()
    norm = LogNorm(positive.min(), positive.max()) if positive.size and positive.min() < positive.max() else None
    # the value of one pair alone has nothing to be darker than
    image = axes.imshow(shown[1:, :-1], cmap="cividis" if K > 2 else ListedColormap(["#e6e6e6"]), norm=norm)
    axes.set_xticks(range(K - 1), short[:-1], rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(K - 1), short[1:], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if annotate_up_to >= K:
        middle = np.sqrt(positive.min() * positive.max()) if positive.size else 0.0
        for i in range(1, K):
            for j in range(i):
                colour = "black" if value[i, j] >= middle else "white"
                digits, _, plus_minus = format_estimate(value[i, j], error[i, j]).partition(" ± ")
                centred: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center"}
                axes.annotate(digits, (j, i - 1), (0, 3), fontsize=7, color=colour, **centred)
                axes.annotate(f"±{plus_minus}", (j, i - 1), (0, -5), fontsize=5, color=colour, **centred)
    label = "KL, bits/byte (± standard error)"
    texts = vectors.texts
    axes.set_title(f"{K} models, {len(texts):,} texts of {texts.name}", fontsize=9, loc="left")
    if K == 2:
        axes.set_xlabel(label, fontsize=8)
        return figure
    free = axes.inset_axes((0.86, 0.55, 0.03, 0.45)) if K > 5 else None  # in the empty triangle, or beside
    bar = figure.colorbar(image, cax=free, ax=axes, aspect=12 if free is None else 20)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7, which="both")
    _plain_ticks(bar.ax.yaxis, dense=norm is not None)
    return figure


def scale_ruler(measured: Sequence[Setting], texts: TextSet) -> Figure:
    """The scale: a row for each setting, smallest median on top, KL in bits/byte on a log axis; see `scales.measure`.

    Every pair is a dot, hollow where it is out of range. A box spans the quartiles, a tick marks the median with its
    interval over models, a diamond the published median. Raises InputError where no setting has a positive median.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.patheffects import withStroke

    rows = [row for row in measured if row.median > 0]
    if not rows:
        raise InputError("There is no scale to draw.", "No two models of one setting differ.", "Score more models.")
    beside = [published_beside(row.setting) for row in rows]
    figure = Figure(figsize=(5.6, 1.35 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    halo = [withStroke(linewidth=2.2, foreground="white")]
    for y, (row, known) in enumerate(zip(rows, beside, strict=True)):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color="#f4f4f4", zorder=0)
        value, whole = np.array(row.values), np.array(row.in_range)
        value, whole = value[value > 0], whole[value > 0]  # a log axis has no zero
        # Golden-section steps spread neighbours, and the same pairs lie at the same place.
        height = y + 0.5 * ((np.arange(len(value)) * 0.618034 + 0.5) % 1 - 0.5)
        alpha = float(np.clip(8 / len(value) ** 0.6, 0.15, 0.8))
        low, high = row.quartiles
        if len(value) > 1:
            box = (low, y - 0.3), high - low, 0.6
            axes.add_patch(Rectangle(*box, facecolor=DOT, edgecolor="none", alpha=0.16, zorder=1))
            axes.add_patch(Rectangle(*box, facecolor="none", edgecolor="#555555", linewidth=0.5, zorder=3))
        dots: dict[str, Any] = {"s": 13, "linewidths": 0.8, "alpha": alpha, "zorder": 2 if len(value) > 10 else 5.5}
        axes.scatter(value[whole], height[whole], color=DOT, **dots | {"linewidths": 0})
        axes.scatter(value[~whole], height[~whole], facecolors="white", edgecolors=DOT, **dots)
        if row.interval_kind == "models":
            axes.plot(row.interval, (y, y), color="black", linewidth=1.2, solid_capstyle="butt", zorder=4)
        axes.plot(
            (row.median,) * 2, (y - 0.34, y + 0.34), color="black", linewidth=2.4, solid_capstyle="butt", zorder=5
        )
        label = format_estimate(row.median, row.standard_error)
        axes.annotate(label, (1.02, y), xycoords=axes.get_yaxis_transform(), va="center", fontsize=8)
        if known:
            axes.plot(known.median, y, "D", markersize=5.5, markerfacecolor="white", color=PUBLISHED, zorder=6)
            above: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "zorder": 7}
            value_label = f"{known.median:#.2g}"
            axes.annotate(value_label, (known.median, y), fontsize=6.5, color=PUBLISHED, path_effects=halo, **above)
    axes.set_xscale("log")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    counts = (f"{len(row.pairs):,} pair{'s' if len(row.pairs) > 1 else ''}" for row in rows)
    axes.set_yticks(range(len(rows)), [f"{row.setting}\n{n}" for row, n in zip(rows, counts, strict=True)], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, which="both")
    low, high = axes.get_xlim()
    _plain_ticks(axes.xaxis, dense=high < 100 * low)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.set_xlabel("KL divergence, bits/byte", fontsize=8.5)
    axes.annotate("median ± SE", (1.02, 1.0), (0, 3), xycoords="axes fraction", textcoords="offset points", fontsize=7)
    title = f"{len(texts):,} texts of {texts.name}"
    if any(beside) and not published_holds(texts):
        title += "\npublished: pile-10k, other texts: beside, not comparable"
    figure.suptitle(title, fontsize=8, x=0.01, ha="left")
    hollow = Line2D(
        [], [], color=DOT, marker="o", markerfacecolor="none", markersize=4, linestyle="", label="out of range"
    )
    shown: list[Any] = [
        Line2D([], [], color=DOT, marker="o", markersize=4, markeredgewidth=0, linestyle="", label="pair"),
        *([hollow] if any(row.n_in_range < len(row.pairs) for row in rows) else []),
        Patch(facecolor="#d6e7f3", edgecolor="#555555", linewidth=0.5, label="quartiles"),
        Line2D(
            [],
            [],
            color="black",
            marker="|",
            markersize=8,
            markeredgewidth=2.4,
            linewidth=1.2,
            label="median, 95 % over models",
        ),
    ]
    if any(beside):
        shown.append(
            Line2D(
                [],
                [],
                color=PUBLISHED,
                marker="D",
                markerfacecolor="white",
                markersize=5,
                linestyle="",
                label="published",
            )
        )
    figure.legend(
        handles=shown,
        loc="outside lower center",
        ncols=len(shown),
        fontsize=7,
        frameon=False,
        columnspacing=1.2,
        handletextpad=0.4,
    )
    return figure


def layer_threads(vectors: Vectors) -> Figure:
    """Layers of models through the logit lens: KL from layer to layer and to the output in bits per byte with 95 %
    intervals, and all layers of all models on one map (principal components), each model a thread."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    found = lens.layers(vectors)
    names = dict(zip(found, _without_common_prefix(list(found)), strict=True))
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    steps, plane = figure.subplots(1, 2)
    found_map = maps.pca(vectors)
    for (model, rows), colour in zip(found.items(), itertools.cycle(COLOURS)):
        for style, pairs in (
            ({"fmt": "o-"}, [(row.layer, row.from_previous) for row in rows if row.from_previous is not None]),
            ({"fmt": "s--", "markerfacecolor": "white"}, [(row.layer, row.to_output) for row in rows[:-1]]),
        ):
            value = np.array([kl.value for _, kl in pairs])
            ends = np.array([kl.interval for _, kl in pairs]).T
            look = {"color": colour, "markersize": 4, "linewidth": 1, "elinewidth": 0.8, **style}
            steps.errorbar([layer for layer, _ in pairs], value, np.abs(ends - value), **look)
        thread = found_map.points[[vectors.position(row.ref) for row in rows]]
        plane.plot(*thread.T, "o-", color=colour, linewidth=1, markersize=4, label=names[model])
        for row, point in zip(rows, thread, strict=True):
            if len(found) == 1 or row in (rows[0], rows[-1]):  # of several threads only the ends
                plane.annotate(str(row.layer), point, (3, 3), textcoords="offset points", fontsize=7, color=colour)
    steps.set_yscale("log")
    steps.set_xlabel("layer (0: embedding)", fontsize=8)
    steps.set_ylabel("KL, bits/byte (95 % interval)", fontsize=8)
    steps.xaxis.get_major_locator().set_params(integer=True)
    low, high = steps.get_ylim()
    _plain_ticks(steps.yaxis, dense=high < 1000 * low)
    kinds = [Line2D([], [], color="#555555", marker="o", markersize=4, linewidth=1, label="from the layer before")]
    kinds += [Line2D([], [], color="#555555", marker="s", markersize=4, markerfacecolor="white", linestyle="--",
                     linewidth=1, label="to the output")]  # fmt: skip
    share = found_map.share
    plane.set_xlabel(f"first component ({share[0]:.0%} of variance), √(bits/byte)", fontsize=8)
    plane.set_ylabel(f"second component ({share[1]:.0%}), √(bits/byte)", fontsize=8)
    plane.set_aspect("equal", adjustable="datalim")
    for axes in (steps, plane):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    models, _ = plane.get_legend_handles_labels()
    look = {"fontsize": 7, "frameon": False}
    figure.legend(handles=kinds, loc="outside lower left", ncols=2, **look)
    figure.legend(handles=models, loc="outside lower right", ncols=min(len(models), 3), **look)
    texts = vectors.texts
    steps.set_title(f"The logit lens, {len(texts):,} texts of {texts.name}", fontsize=9, loc="left")
    return figure


def _plain_ticks(axis: Any, *, dense: bool) -> None:
    """Plain numbers on a log axis; `dense`: at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
    if dense:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _without_common_prefix(names: list[str]) -> list[str]:
    """Names without the directories or organisation that every one of them begins with."""
    parts = [name.split("/") for name in names]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def save(figure: Figure, file: str | Path) -> None:
    """Write a figure; the ending says how (.png, .svg, .pdf). The same figure gives the same bytes."""
    from matplotlib import rc_context

    path = Path(file)
    metadata = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None} if path.suffix == ".pdf" else None
    with rc_context({"svg.hashsalt": "klscale", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=200, facecolor="white", metadata=metadata, bbox_inches="tight", pad_inches=0.06)
