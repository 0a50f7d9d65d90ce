"""Pictures: each function takes a result and returns a matplotlib figure, ready for a paper."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from klscale import lens, maps
from klscale.divergence import Integers, format_estimate
from klscale.vectors import Vectors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by colour-blind readers too (Okabe and Ito)."""


def kl_heat_map(vectors: Vectors, *, annotate_up_to: int = 20) -> Figure:
    """KL between all pairs in bits per byte, nearest models beside each other (average linkage on sqrt(KL)).

    The colour is KL on a log scale; cells hold values and, smaller, standard errors where the models are few enough.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter
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
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    norm = LogNorm(positive.min(), positive.max()) if positive.size and positive.min() < positive.max() else None
    image = axes.imshow(shown[1:, :-1], cmap="cividis", norm=norm)
    axes.set_xticks(range(K - 1), short[:-1], rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(K - 1), short[1:], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if annotate_up_to >= K:
        middle = np.sqrt(positive.min() * positive.max()) if positive.size else 0.0
        for i in range(1, K):
            for j in range(i):
                colour = "black" if value[i, j] > middle else "white"
                digits, _, plus_minus = format_estimate(value[i, j], error[i, j]).partition(" ± ")
                axes.text(j, i - 1.08, digits, ha="center", va="center", fontsize=7, color=colour)
                axes.text(j, i - 0.76, f"±{plus_minus}", ha="center", va="center", fontsize=5, color=colour)
    bar = figure.colorbar(image, cax=axes.inset_axes((0.86, 0.55, 0.03, 0.45)))  # in the empty triangle
    bar.set_label("KL, bits/byte (± standard error)", fontsize=8)
    bar.ax.tick_params(labelsize=7, which="both")
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    if norm is not None:
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    texts = vectors.texts
    axes.set_title(f"{K} models, {len(texts):,} texts of {texts.name}", fontsize=9, loc="left")
    return figure


def layer_threads(vectors: Vectors) -> Figure:
    """Layers of models through the logit lens: KL from layer to layer and to the output in bits per byte with 95 %
    intervals, and all layers of all models on one map (principal components), each model a thread."""
    from matplotlib.figure import Figure

    found = lens.layers(vectors)
    names = dict(zip(found, _without_common_prefix(list(found)), strict=True))
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    steps, plane = figure.subplots(1, 2)
    for (model, rows), colour in zip(found.items(), itertools.cycle(COLOURS)):
        before = [(row.layer, row.from_previous) for row in rows if row.from_previous is not None]
        output = [(row.layer, row.to_output) for row in rows[:-1]]
        for pairs, style, label in ((before, "o-", "from the layer before"), (output, "s--", "to the output")):
            depth = np.array([layer for layer, _ in pairs])
            value = np.array([kl.value for _, kl in pairs])
            ends = np.array([kl.interval for _, kl in pairs]).T
            steps.errorbar(
                depth, value, np.abs(ends - value), fmt=style, color=colour, markersize=4, linewidth=1, elinewidth=0.8,
                markerfacecolor=colour if style[0] == "o" else "white", label=f"{names[model]}, {label}",
            )  # fmt: skip
    steps.set_yscale("log")
    steps.set_xlabel("layer (0: embedding)", fontsize=8)
    steps.set_ylabel("KL, bits/byte (95 % interval)", fontsize=8)
    steps.xaxis.get_major_locator().set_params(integer=True)
    steps.yaxis.set_major_formatter("{x:g}")
    steps.legend(fontsize=7, frameon=False)
    points, share = (made := maps.pca(vectors)).points, made.share
    for (model, rows), colour in zip(found.items(), itertools.cycle(COLOURS)):
        thread = points[[vectors.position(row.ref) for row in rows]]
        plane.plot(*thread.T, "-", color=colour, linewidth=1)
        plane.scatter(*thread.T, color=colour, s=18, label=names[model], zorder=2)
        for row, point in zip(rows, thread, strict=True):
            if len(found) > 1 and row not in (rows[0], rows[-1]):
                continue  # of several threads only the ends
            plane.annotate(str(row.layer), point, xytext=(3, 3), textcoords="offset points", fontsize=7)
    plane.set_xlabel(f"first component ({share[0]:.0%} of variance), √(bits/byte)", fontsize=8)
    plane.set_ylabel(f"second component ({share[1]:.0%}), √(bits/byte)", fontsize=8)
    plane.set_aspect("equal", adjustable="datalim")
    plane.legend(fontsize=7, frameon=False)
    for axes in (steps, plane):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    texts = vectors.texts
    steps.set_title(f"The logit lens, {len(texts):,} texts of {texts.name}", fontsize=9, loc="left")
    return figure


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
        figure.savefig(path, dpi=200, facecolor="white", metadata=metadata)
