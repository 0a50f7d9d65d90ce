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
from klscale.trajectories import Motion, Shape, Trajectory
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


def training_trajectories(found: Sequence[Trajectory]) -> Figure:
    """Training runs. Above, all of them: KL along training, squared distance against lag with the fits of both spaces,
    stabilisation, and the variance on principal components. Below, the path of the first one in both spaces, and a
    random walk with the same step lengths beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 6.6), layout="constrained")
    (along, growth, settling, variance), below = figure.subplots(2, 4)
    names = _without_common_prefix([one.run.name for one in found])
    for one, name, colour in zip(found, names, itertools.cycle(COLOURS)):
        _draw_training(along, one, name, colour)
        for motion, style in zip(one.motions, ("o-", "s--"), strict=False):
            _draw_growth(growth, motion, style, colour)
            _draw_settling(settling, one, motion, style[1:], colour)
            _draw_shares(variance, motion, style, colour)
    shapes = [motion.shape for one in found for motion in one.motions if motion.shape is not None]
    if shapes:
        walk = shapes[0].walk_share
        k = np.arange(1, len(walk) + 1)
        variance.plot(k, walk, color="#aaaaaa", linewidth=2.5, zorder=0, label="random walk: 6/(π²k²)")
        variance.legend(fontsize=6.5, frameon=False)
        variance.set_xticks(k)
    _label_analysis(along, growth, settling, variance)
    _draw_paths(below, found[0], names[0])
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7.5)
    texts = found[0].run.vectors.texts
    figure.suptitle(f"{len(texts):,} texts of {texts.name}", fontsize=8, x=0.01, ha="left")
    handles, labels = along.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=min(len(handles), 4), fontsize=7.5, frameon=False)
    return figure


def _draw_training(axes: Any, one: Trajectory, name: str, colour: str) -> None:
    rows = one.checkpoints
    for style, label, kls in (
        ("o-", name, [(row.step, row.kl_from_previous) for row in rows]),
        ("s--", None, [(row.step, row.kl_from_last) for row in rows]),
    ):
        known = [(step, kl) for step, kl in kls if kl is not None and kl.value > 0]
        steps, value = [step for step, _ in known], np.array([kl.value for _, kl in known])
        low, high = np.array([kl.interval for _, kl in known]).reshape(-1, 2).T
        white = {"markerfacecolor": "white"} if style == "s--" else {}
        axes.plot(steps, value, style, color=colour, markersize=3, linewidth=0.9, label=label, **white)
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)


def _draw_growth(axes: Any, motion: Motion, style: str, colour: str) -> None:
    if (exponent := motion.exponent) is None:
        return
    lag, mean = exponent.averages.lag, exponent.averages.mean_squared_distance
    level = np.exp(float(exponent.averages.intercept)) * lag[0] ** exponent.time_averaged.value
    axes.plot(lag, mean / level, style[0], color=colour, markersize=3.5, markerfacecolor=_inside(style, colour))
    fitted = (lag / lag[0]) ** exponent.time_averaged.value
    slope = f"slope {exponent.time_averaged.value:.2f}"
    axes.plot(lag, fitted, style[1:], color=colour, linewidth=0.9, label=slope)


def _draw_settling(axes: Any, one: Trajectory, motion: Motion, line: str, colour: str) -> None:
    settled = motion.stabilisation
    if settled is None or not settled.total > 0:
        return
    fraction = settled.thresholds / settled.total
    axes.plot(fraction, settled.steps, line, color=colour, linewidth=1, drawstyle="steps-post")
    if not np.isnan(settled.low).any():
        axes.fill_between(fraction, settled.low, settled.high, color=colour, alpha=0.15, linewidth=0, step="post")
    if settled.threshold and motion is one.behaviour:
        axes.axvline(settled.threshold / settled.total, color=colour, linewidth=0.7, linestyle=":")


def _draw_shares(axes: Any, motion: Motion, style: str, colour: str) -> None:
    if (shape := motion.shape) is None:
        return
    k = np.arange(1, len(shape.share) + 1)
    axes.plot(
        k, shape.share, style, color=colour, markersize=3.5, linewidth=0.9, markerfacecolor=_inside(style, colour)
    )


def _name_fits(axes: Any) -> None:
    """The slopes beside the ends of their fits, one above the other where these are near each other."""
    ends = [(line.get_ydata()[-1], line) for line in axes.lines if line.get_label().startswith("slope")]
    low, high = axes.get_ylim()
    height, apart = 0.0, (high / low) ** 0.055
    for value, line in sorted(ends, key=lambda end: float(end[0])):
        height = max(float(value), height * apart)
        place = (line.get_xdata()[-1], height)
        look = {"textcoords": "offset points", "fontsize": 7, "color": line.get_color(), "va": "center"}
        axes.annotate(line.get_label(), place, (5, 0), **look)
    axes.set_ylim(low, max(high, height * apart))  # a name beyond the axes would not be drawn


def _inside(style: str, colour: str) -> str:
    return "white" if style.startswith("s") else colour


def _label_analysis(along: Any, growth: Any, settling: Any, variance: Any) -> None:
    from matplotlib.lines import Line2D

    grey: dict[str, Any] = {"color": "#555555", "markersize": 3.5, "linewidth": 0.9}
    hollow: dict[str, Any] = {"marker": "s", "markerfacecolor": "white", "linestyle": "--"}
    titles = (
        "KL along training",
        "Growth with lag, averaged over starts",
        "Stabilisation",
        "Variance on principal components",
    )
    for axes, title in zip((along, growth, settling, variance), titles, strict=True):
        axes.set_title(title, fontsize=9, loc="left")
    along.set_xscale("symlog", linthresh=1)
    along.set_yscale("log")
    along.set_xlabel("step", fontsize=8)
    along.set_ylabel("KL, bits/byte (95 % over texts)", fontsize=8)
    kinds = [Line2D([], [], marker="o", label="from the checkpoint before", **grey)]
    kinds += [Line2D([], [], label="from the last one", **grey, **hollow)]
    along.legend(handles=kinds, fontsize=6.5, frameon=False)
    growth.set_xscale("log")
    growth.set_yscale("log")
    for axis in (growth.xaxis, growth.yaxis):
        _plain_ticks(axis, dense=True)
    growth.set_xlabel("lag, steps", fontsize=8)
    growth.set_ylabel("mean squared distance (fit at first lag: 1)", fontsize=8)
    low, high = growth.get_xlim()
    spaces = [
        Line2D([], [], marker="o", label="log-likelihoods", **grey),
        Line2D([], [], label="weights", **grey, **hollow),
    ]
    if growth.lines:
        lag = np.concatenate([line.get_xdata() for line in growth.lines])
        ends = np.array([lag.min(), lag.max()])
        spaces += growth.plot(ends, ends / ends[0], color="#aaaaaa", linewidth=0.9, zorder=0, label="c = 1: diffusion")
        growth.set_xlim(low, high * 1.8)
    _name_fits(growth)
    growth.legend(handles=spaces, fontsize=6.5, frameon=False, loc="upper left")
    settling.set_xscale("log")
    settling.set_xlabel("threshold, share of first-to-last distance", fontsize=8)
    settling.set_ylabel("settled from step", fontsize=8)
    variance.set_xlabel("component k", fontsize=8)
    variance.set_ylabel("share of variance", fontsize=8)


def _draw_paths(below: Any, one: Trajectory, name: str) -> None:
    behaviour = one.behaviour.shape
    weights = None if one.weights is None else one.weights.shape
    root = "√(bits/byte)"
    panels: list[tuple[str, Shape | None, Any, str]] = [
        (f"{name}: principal components", behaviour, behaviour and behaviour.pca, root),
        ("t-SNE of the same", behaviour, behaviour and behaviour.tsne, "arbitrary units"),
        ("Principal components of the weights", weights, weights and weights.pca, "distance of weights"),
        ("A random walk with these step lengths", behaviour, behaviour and behaviour.nulls["random walk"].path, root),
    ]
    for axes, (title, shape, points, unit) in zip(below, panels, strict=True):
        axes.set_title(title, fontsize=9, loc="left")
        if shape is None:
            axes.set_axis_off()
            axes.annotate(
                "not measured", (0.5, 0.5), xycoords="axes fraction", ha="center", fontsize=8, color="#777777"
            )
            continue
        axes.plot(*points[:, :2].T, color="#bbbbbb", linewidth=0.9, zorder=1)
        axes.scatter(*points[:, :2].T, c=shape.steps, cmap="cividis", s=14, zorder=2)
        for t in (0, len(points) - 1):
            axes.annotate(f"{shape.steps[t]:,}", points[t, :2], (4, 4), textcoords="offset points", fontsize=7)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel(unit, fontsize=8)


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
