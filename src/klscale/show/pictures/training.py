"""Pictures of training runs: KL along training, displacement in both spaces, and the path."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from klscale.errors import InputError, counted
from klscale.science.estimates import Estimate, format_estimate
from klscale.science.kl import KL
from klscale.science.reported import ReportedKL
from klscale.show.names import short_names, shortened
from klscale.show.pictures.style import (
    DOUBLE,
    FAINT,
    GREY,
    SMALL,
    describe,
    headline,
    in_points,
    looks,
    new_figure,
    plain_ticks,
    step_axis,
    styled,
)  # fmt: skip
from klscale.studies.series import Point, Series
from klscale.studies.trajectories import Checkpoint, Motion, Shape, Trajectory, over_seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Ends = tuple[float, float, float, float]
"""Of a line: x1, y1, x2, y2."""
ROOT = "√(bits/byte)"
FROM: dict[str, Callable[[Checkpoint | Point], KL | ReportedKL | None]] = {
    "first": lambda row: row.kl_from_first,
    "previous": lambda row: row.kl_from_previous,
    "last": lambda row: row.kl_from_last,
}
"""What KL is taken from along training, or along an attribute."""


@styled
def kl_along_training(found: Sequence[Trajectory]) -> Figure:
    """KL of each checkpoint of these runs from the first, the previous and the last one, in bits per byte with 95 %
    intervals over texts. Steps are on a log scale that has a place for step 0. The threshold of stabilisation is drawn,
    where there is one. Raises InputError where there is no run."""
    colours = _colours(found)
    figure = new_figure(DOUBLE, 2.45 + _legend_height(found))
    headline(figure, _texts(found))
    panels = figure.subplots(1, len(FROM), sharey=True)
    for axes, which in zip(panels, FROM, strict=True):
        _draw_along(axes, found, colours, which)
    for axes in panels[1:]:
        axes.set_ylabel("")
    plain_ticks(panels[0].yaxis)
    _finish(figure, found, colours)
    return figure


@styled
def kl_along_attribute(found: Sequence[Series], attribute: str) -> Figure:
    """KL of each model of these series from the first, the previous and the last one along a numeric attribute, in bits
    per byte with 95 % intervals over texts. Values that span a decade are on a log scale, with a place for 0. Raises
    InputError where there is no series."""
    if not found:
        raise InputError("There is no series to draw.", f"It is two models or more with {attribute}.")
    colours = {name: look.colour for name, look in looks(one.name for one in found).items()}
    values = [value for one in found for value in one.values]
    figure = new_figure(DOUBLE, 2.45 + _legend_height(found) * (len(found) > 1))
    n_models = sum(map(len, found))
    headline(figure, f"{n_models:,} models, {describe(found[0].vectors.texts)}")
    panels = figure.subplots(1, len(FROM), sharey=True)
    for axes, (which, kl_of) in zip(panels, FROM.items(), strict=True):
        for one in found:
            _draw_kl(axes, [(point.value, kl_of(point)) for point in one.points], colours[one.name])
        axes.set_title(f"KL from the {which} model")
        axes.set_yscale("log")
        positive = [value for value in values if value > 0]
        if min(values) >= 0 and positive and max(positive) >= 10 * min(positive):
            step_axis(axes.xaxis, values)
        axes.set_xlabel(shortened(attribute, 40))
    panels[0].set_ylabel("KL, bits/byte (95 % interval)")
    plain_ticks(panels[0].yaxis)
    if len(found) > 1:
        _legend(figure, [one.name for one in found], colours)
    return figure


@styled
def displacement(found: Sequence[Trajectory]) -> Figure:
    """Mean squared distance over starts against lag in both spaces, with the time-averaged fit of each run and ordinary
    diffusion (c = 1). A third panel has the squared distance of log-likelihoods against that of weights at the same
    lags, with the slope alpha = c_q / c_w. A slope's ± is over texts; weights have none within one run. Raises
    InputError where no run has an exponent."""
    if all(one.behaviour.exponent is None for one in found):
        raise InputError("There is no displacement to draw.", "Too few checkpoints lie past warm-up.", "Save more.")
    colours = _colours(found)
    figure = new_figure(DOUBLE, 2.6 + _legend_height(found))
    headline(figure, _texts(found))
    panels = figure.subplots(1, 3)
    _draw_displacement(panels, found, colours)
    _finish(figure, found, colours)
    return figure


@styled
def training_trajectories(found: Sequence[Trajectory]) -> Figure:
    """Training runs on one page. All of them: `kl_along_training`, `displacement`, stabilisation, and the variance on
    principal components. Then the path of the first run in both spaces, and a random walk with the same step lengths.
    Raises InputError where there is no run."""
    colours = _colours(found)
    figure = new_figure(DOUBLE, 8.6 + _legend_height(found))
    headline(figure, _texts(found))
    along, moved, settled, paths = figure.subplots(4, 3)
    for axes, which in zip(along, FROM, strict=True):
        _draw_along(axes, found, colours, which)
        plain_ticks(axes.yaxis, most=6)
    _draw_displacement(moved, found, colours)
    _draw_settling(settled[0], found, colours)
    _draw_shares(settled[1], found, colours)
    one = found[0]
    name = short_names([run.run.name for run in found], 22)[0]
    behaviour, weights = one.behaviour.shape, None if one.weights is None else one.weights.shape
    _draw_path(settled[2], f"{name}: t-SNE", behaviour, behaviour and behaviour.tsne, "t-SNE 1 (no unit)")
    _draw_path(paths[0], f"{name}: components", behaviour, behaviour and behaviour.pca, f"component 1, {ROOT}")
    _draw_path(paths[1], "… of its weights", weights, weights and weights.pca, "component 1, distance of weights")
    walk = behaviour and behaviour.nulls["random walk"].path
    _draw_path(paths[2], "a random walk with its step lengths", behaviour, walk, f"component 1, {ROOT}")
    _finish(figure, found, colours)
    return figure


def checkpoint_marks(figure: Figure, one: Trajectory) -> list[list[Ends | None]]:
    """Where each checkpoint lies in the panels of `training_trajectories` of one run: the ends of a line, or twice the
    same point, in points from the upper left corner; None where a panel does not show the checkpoint."""
    panels, steps = figure.axes, one.run.steps

    def line(axes: Any, place: float, *, level: bool = False) -> Ends:
        (left, bottom), (right, top) = axes.transAxes.transform([(0, 0), (1, 1)])
        x, y = axes.transData.transform((axes.get_xlim()[0], place) if level else (place, axes.get_ylim()[0]))
        return in_points(figure, *((left, y, right, y) if level else (x, bottom, x, top)))

    def path(axes: Any, shape: Shape | None, points: Any) -> list[Ends | None]:
        at = {} if shape is None or points is None else dict(zip(shape.steps.tolist(), points, strict=True))
        known = {step: axes.transData.transform(point[:2]) for step, point in at.items()}
        return [in_points(figure, *known[step], *known[step]) if step in known else None for step in steps.tolist()]

    behaviour, weights = one.behaviour.shape, None if one.weights is None else one.weights.shape
    settled, marks = panels[6], list[list[Ends | None]]()
    for axes in panels[:3]:
        marks.append([line(axes, step) for step in steps])
    marks.append([line(settled, step, level=True) if settled.lines else None for step in steps])
    marks.append(path(panels[8], behaviour, behaviour and behaviour.tsne))
    marks.append(path(panels[9], behaviour, behaviour and behaviour.pca))
    marks.append(path(panels[10], weights, weights and weights.pca))
    return marks


def _colours(found: Sequence[Trajectory]) -> dict[str, str]:
    """Of each run. Raises InputError where there is none."""
    if not found:
        raise InputError("There is no run to draw.", "A run is two checkpoints or more.", "klscale score RUN")
    return {run: look.colour for run, look in looks(one.run.name for one in found).items()}


def _texts(found: Sequence[Trajectory]) -> str:
    runs = counted(len(found), "training run")
    return f"{runs}, {describe(found[0].run.vectors.texts)}"


def _legend_height(found: Sequence[Trajectory] | Sequence[Series]) -> float:
    return 0.14 * -(-len(found) // 3)


def _finish(figure: Figure, found: Sequence[Trajectory], colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for level in _thresholds(found):
        label = f"threshold of stabilisation: {level:.3g} bits/byte"
        handles.append(Line2D([], [], color=GREY, linestyle=":", linewidth=0.8, label=label))
    _legend(figure, [one.run.name for one in found], colours, handles)


def _legend(figure: Figure, lines: Sequence[str], colours: Mapping[str, str], more: Sequence[Any] = ()) -> None:
    """The names of lines below the panels, and `more` of them."""
    from matplotlib.lines import Line2D

    for axes in figure.axes:
        axes.tick_params(labelsize=SMALL, which="both")
    names = short_names(lines, 40)
    handles = [
        Line2D([], [], color=colours[line], marker="o", label=name) for line, name in zip(lines, names, strict=True)
    ]
    handles += more
    figure.legend(
        handles=handles, loc="outside lower left", ncols=min(len(handles), 4 if max(map(len, names)) < 24 else 3)
    )


# ---------------------------------------------------------------------------------------------- panels: along training


def _draw_along(axes: Any, found: Sequence[Trajectory], colours: Mapping[str, str], which: str) -> None:
    for one in found:
        _draw_kl(axes, [(row.step, FROM[which](row)) for row in one.checkpoints], colours[one.run.name])
    axes.set_title(f"KL from the {which} checkpoint")
    axes.set_yscale("log")
    step_axis(axes.xaxis, [step for one in found for step in one.run.steps.tolist()])
    axes.set_xlabel("step")
    axes.set_ylabel("KL, bits/byte (95 % interval)")
    for level in _thresholds(found):
        axes.axhline(level, color=GREY, linestyle=":", linewidth=0.8, zorder=0)


def _draw_kl(axes: Any, kls: Iterable[tuple[float, KL | ReportedKL | None]], colour: str) -> None:
    """A line through these KLs, with their intervals as a band."""
    known = [(place, kl) for place, kl in kls if kl is not None and kl.value > 0]
    places = [place for place, _ in known]
    axes.plot(places, [kl.value for _, kl in known], "o-", color=colour, markersize=2.2)
    low, high = np.array([kl.interval for _, kl in known]).reshape(-1, 2).T
    axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def _thresholds(found: Sequence[Trajectory]) -> list[float]:
    """Of stabilisation, in bits per byte: mostly one."""
    settled = (one.behaviour.stabilisation for one in found)
    return sorted({one.threshold for one in settled if one is not None and one.threshold})


# ------------------------------------------------------------------------------------------------ panels: displacement


def _draw_displacement(panels: Sequence[Any], found: Sequence[Trajectory], colours: Mapping[str, str]) -> None:
    """Growth of the squared distance with lag in both spaces, and of the one with the other."""
    behaviour, weights, both = panels
    unit = "mean squared distance"
    title = "Log-likelihoods (± over texts)"
    _draw_growth(behaviour, found, colours, lambda one: one.behaviour, title, f"{unit}, bits/byte")
    title = "Weights (one run: no error)"
    _draw_growth(weights, found, colours, lambda one: one.weights, title, f"{unit} of weights")
    _draw_alpha(both, found, colours)


def _draw_growth(
    axes: Any,
    found: Sequence[Trajectory],
    colours: Mapping[str, str],
    motion_of: Callable[[Trajectory], Motion | None],
    title: str,
    unit: str,
) -> None:
    ends: list[tuple[float, float, str, str]] = []
    for one in found:
        motion = motion_of(one)
        if motion is None or motion.exponent is None:
            continue
        colour, averages, slope = colours[one.run.name], motion.exponent.averages, motion.exponent.time_averaged
        axes.plot(averages.lag, averages.mean_squared_distance, "o", color=colour)
        fitted = np.exp(float(averages.intercept)) * averages.lag**slope.value
        axes.plot(averages.lag, fitted, color=colour)
        ends.append((float(averages.lag[-1]), float(fitted[-1]), _slope(slope), colour))
    axes.set_title(title)
    if not ends:
        _say(axes, "not measured")
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    lag = np.concatenate([line.get_xdata() for line in axes.lines])
    start = math.exp(np.mean([math.log(line.get_ydata()[0]) for line in axes.lines[1::2]]))
    reach = np.array([lag.min(), lag.max()])
    axes.plot(reach, start * reach / reach[0], color="#aaaaaa", zorder=0, label="c = 1: diffusion")
    axes.set_xlabel("lag, steps")
    axes.set_ylabel(unit)
    _name_ends(axes, ends)
    axes.legend(loc="upper left")
    plain_ticks(axes.xaxis, most=5)
    plain_ticks(axes.yaxis)


def _draw_alpha(axes: Any, found: Sequence[Trajectory], colours: Mapping[str, str]) -> None:
    """The squared distance in log-likelihood space against that in weight space at the same lags."""
    axes.set_title("One against the other")
    ends: list[tuple[float, float, str, str]] = []
    for one in found:
        behaviour, weights = one.behaviour.exponent, one.weights and one.weights.exponent
        if behaviour is None or not weights or one.alpha is None:
            continue
        _, q, w = np.intersect1d(behaviour.averages.lag, weights.averages.lag, return_indices=True)
        x, y = weights.averages.mean_squared_distance[w], behaviour.averages.mean_squared_distance[q]
        known = (x > 0) & (y > 0)
        if not known.any():
            continue
        x, y, colour = x[known], y[known], colours[one.run.name]
        axes.plot(x, y, "o", color=colour)
        line = np.exp(np.log(y).mean() + one.alpha.value * (np.log(x) - np.log(x).mean()))
        axes.plot(x, line, color=colour)
        ends.append((float(x[-1]), float(line[-1]), _slope(one.alpha), colour))
    if not ends:
        _say(axes, "weights were not compared")
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("mean squared distance of weights")
    axes.set_ylabel("… of log-likelihoods, bits/byte")
    _name_ends(axes, ends)
    said = "slope: alpha = c_q / c_w"
    for row in over_seeds(found):
        said += f"\n{len(row.runs)} seeds: {format_estimate(row.alpha.value, row.alpha.standard_error)}"
    axes.annotate(said, (0.02, 0.99), xycoords="axes fraction", va="top", fontsize=SMALL, color=GREY)
    plain_ticks(axes.xaxis, most=5)
    plain_ticks(axes.yaxis)


def _slope(estimate: Estimate) -> str:
    """A slope with its standard error over texts, where it has one."""
    if math.isfinite(estimate.standard_error):
        return f"slope {format_estimate(estimate.value, estimate.standard_error)}"
    return f"slope {estimate.value:.2f}"


def _name_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """The slopes one below the other at the lower right, in the order of the lines' ends."""
    for n, (_, _, label, colour) in enumerate(sorted(ends, key=lambda end: end[1])):
        axes.annotate(
            label, (1, 0), (0, 3 + 9 * n), xycoords="axes fraction", textcoords="offset points", ha="right",
            fontsize=SMALL, color=colour,
        )  # fmt: skip
    low, high = axes.get_ylim()
    # room for them below the lines, and for the legend above
    below, above = 0.085 * len(ends), 0.2
    room = math.log(high / low) / (1 - below - above)
    axes.set_ylim(low * math.exp(-below * room), high * math.exp(above * room))


def _say(axes: Any, what: str) -> None:
    axes.set_axis_off()
    axes.annotate(what, (0.5, 0.5), xycoords="axes fraction", ha="center", fontsize=SMALL, color="#777777")


# ------------------------------------------------------------------------------------------- panels: shape of the path


def _draw_settling(axes: Any, found: Sequence[Trajectory], colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    axes.set_title("Stabilisation")
    for one in found:
        colour = colours[one.run.name]
        for motion, style in zip(one.motions, ("-", "--"), strict=False):
            settled = motion.stabilisation
            if settled is None or not settled.total > 0:
                continue
            fraction = settled.thresholds / settled.total
            axes.plot(fraction, settled.steps, style, color=colour, drawstyle="steps-post")
            if not np.isnan(settled.low).any():
                axes.fill_between(
                    fraction, settled.low, settled.high, color=colour, alpha=0.15, linewidth=0, step="post"
                )
            if settled.threshold and motion is one.behaviour:
                axes.axvline(settled.threshold / settled.total, color=colour, linewidth=0.6, linestyle=":")
    if not axes.lines:
        _say(axes, "not measured")
        return
    axes.set_xscale("log")
    plain_ticks(axes.xaxis, most=5)
    axes.set_xlabel("threshold, share of first to last")
    axes.set_ylabel("settled from step")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))
    look: dict[str, Any] = {"color": GREY}
    solid, dashed = Line2D([], [], label="log-likelihoods", **look), Line2D([], [], label="weights", ls="--", **look)
    axes.legend(handles=[solid, dashed], loc="upper right")


def _draw_shares(axes: Any, found: Sequence[Trajectory], colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    axes.set_title("Variance on components")
    shapes = [(one, motion, motion.shape) for one in found for motion in one.motions if motion.shape is not None]
    if not shapes:
        _say(axes, "too few checkpoints past warm-up")
        return
    for one, motion, shape in shapes:
        k = np.arange(1, len(shape.share) + 1)
        white = {} if motion is one.behaviour else {"markerfacecolor": "white"}
        axes.plot(k, shape.share, "o-" if not white else "s--", color=colours[one.run.name], **white)
    walk = shapes[0][2].walk_share
    k = np.arange(1, len(walk) + 1)
    axes.plot(k, walk, color="#bbbbbb", linewidth=2.5, zorder=0)
    axes.set_xticks(k)
    axes.set_xlabel("principal component")
    axes.set_ylabel("share of variance")
    look: dict[str, Any] = {"color": GREY}
    handles = [
        Line2D([], [], marker="o", label="log-likelihoods", **look),
        Line2D([], [], marker="s", linestyle="--", markerfacecolor="white", label="weights", **look),
        Line2D([], [], color="#bbbbbb", linewidth=2.5, label="random walk: 6/(π²k²)"),
    ]
    axes.legend(handles=handles, loc="upper right")


def _draw_path(axes: Any, title: str, shape: Shape | None, points: Any, label: str) -> None:
    axes.set_title(title)
    if shape is None:
        _say(axes, "not measured")
        return
    from matplotlib.patheffects import withStroke

    axes.plot(*points[:, :2].T, color="#bbbbbb", zorder=1)
    axes.scatter(*points[:, :2].T, c=shape.steps, cmap="cividis", s=9, zorder=2)
    for t in (0, len(points) - 1):
        offset: dict[str, Any] = {"xytext": (3, 3), "textcoords": "offset points"}
        axes.annotate(f"step {shape.steps[t]:,}" if t == 0 else f"{shape.steps[t]:,}", points[t, :2], fontsize=SMALL,
                      path_effects=[withStroke(linewidth=1.6, foreground="white", alpha=0.85)], **offset)  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.12)
    axes.set_xlabel(label)
    axes.set_ylabel(label.replace("1", "2"))
    axes.grid(color=FAINT, linewidth=0.3)
