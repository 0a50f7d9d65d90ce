"""The map of models: each a point, training runs as threads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from klscale.errors import InputError, counted, nearest
from klscale.inputs.attributes import are_amounts
from klscale.science.arrays import Floats
from klscale.show.names import short_names, told_apart
from klscale.show.pictures.style import (
    DOUBLE,
    GREY,
    MARKERS,
    OTHERS,
    SINGLE,
    SMALL,
    UNKNOWN,
    Look,
    amount,
    describe,
    group_looks,
    headline,
    new_figure,
    others_line,
    plain_ticks,
    styled,
)  # fmt: skip
from klscale.studies.maps import ModelMap
from klscale.studies.trajectories import Run, find_runs
from klscale.vectors.vectors import Vectors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 25
"""Largest number of models that are all named; of more, only the ends of threads."""
LONG = 10
"""A run with at least this many checkpoints has its first one named too, by its step."""
WIDE = 120
"""Largest number of models of a map in one column; of more, it has two."""
NUMBERS = ("parameters", "step", "warmup", "layer")
"""Attributes that are amounts, as free ones of numbers are; all others, seeds among them, are categories."""
LINES = 6
"""Lines of the legend: of more groups than fit it names the commonest."""
NOT_KNOWN = Look(UNKNOWN, "circle")
LINE = 0.16
"""Inches of a line of the legend."""
SPREAD = 30.0
"""Ratio of the largest to the smallest beyond which numbers take a log scale."""
OVER = 1000.0
"""What it costs a name to lie over another one: more than any place."""
WIDEST = 4.0
"""Points: the line of the longest step of a run."""


@styled
def model_map(
    map: ModelMap,
    vectors: Vectors,
    *,
    colour_by: str = "family",
    method: Literal["tsne", "pca"] = "tsne",
    by_pmi: bool = False,
) -> Figure:
    """The models of a map (`maps.ModelMap`) as points, by t-SNE or on principal components, coloured by an attribute:
    categories by `looks`, numbers on a scale. Models that were added to a kept map are hollow.

    `vectors` are those of the map's models, in any order. Checkpoints of a run are joined to a thread, as wide as the
    KL of the step is far: the width is proportional to its square root, the distance. `by_pmi`: it is a map of PMI
    vectors, without threads. Few models are named, of many the ends of threads, where a name has room. Raises
    InputError for an attribute that is not known of any model, for a method that there is not, and for a map without
    t-SNE.
    """
    points = _points(map, method)
    known = vectors.subset(map.models)
    K = len(known)
    runs = [] if by_pmi else find_runs(known)
    width = SINGLE if K <= WIDE else DOUBLE
    room = width - 1.45 * bool(runs)
    colouring = _colouring(known, colour_by, room)
    groups, columns = _groups(colouring, bool(np.any(map.added)), room)
    figure = new_figure(width, 0.86 * width + LINE * max(0, -(-len(groups) // columns) - 3))
    how = " by PMI vectors (no KL)" if by_pmi else ""
    headline(figure, f"{counted(K, 'model')}{how}, {describe(vectors.texts)}")
    axes = figure.add_subplot()
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.1)
    size = float(np.clip(22 * (60 / max(K, 60)) ** 0.5, 6, 22))
    handles = _draw_threads(axes, known, runs, points, colouring)
    _draw_points(axes, points, map.added, colouring, size)
    _label_axes(axes, map, method)
    if colouring.norm is not None:
        _colour_bar(figure, axes, colouring, colour_by)
    _legends(figure, groups, columns, None if colouring.norm else colour_by, handles)
    _write_names(figure, axes, points, _names(known, runs), size)
    return figure


def _points(map: ModelMap, method: str) -> Floats:
    """Points (K, 2)."""
    if method not in ("tsne", "pca"):
        raise InputError(f"There is no map by {method!r}.", nearest(method, ("tsne", "pca")))
    found = map.tsne if method == "tsne" else map.pca[:, :2]
    if found is None or np.isnan(found).any():
        raise InputError("This map has no t-SNE.", "It takes more models.", 'Draw principal components: method="pca"')
    return np.asarray(found, dtype=np.float64)


# -------------------------------------------------------------------------------------------------------------- colours


@dataclass(frozen=True, eq=False)
class _Colouring:
    """`colours` (K,) and `markers` (K,) of the models; a colour scale (`norm`) or None; the lines of the legend."""

    colours: Sequence[str]
    markers: Sequence[str]
    norm: Any
    legend: Sequence[tuple[str, Look]]


def _colouring(vectors: Vectors, attribute: str, room: float) -> _Colouring:
    """By an attribute: of more groups than the legend has room for, in inches, it names the commonest."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize, to_hex

    columns = [str(column) for column in vectors.attributes.columns if vectors.attributes[column].notna().any()]
    if attribute not in columns and attribute != "family":
        raise InputError(f"There is no attribute {attribute!r}.", "No model here has it.", nearest(attribute, columns))
    column = vectors.attributes[attribute]
    unknown = column.isna().to_numpy()
    if not (attribute in NUMBERS or are_amounts(attribute, column)) or unknown.all():
        groups = [None if pd.isna(value) else _word(value) for value in column]
        known = [group for group in groups if group is not None]
        names = dict(zip(known, told_apart(known, 22), strict=True))
        look = group_looks(known, LINES * _columns(names.values(), room))
        legend = [(names[group], one) for group, one in look.items()]
        if (others := others_line(known, look)) is not None:
            legend.append((others, OTHERS))
        if unknown.any():
            legend.append(("not known", NOT_KNOWN))
        each = [NOT_KNOWN if group is None else look.get(group, OTHERS) for group in groups]
        return _Colouring([one.colour for one in each], [one.marker for one in each], None, legend)
    value = column.to_numpy(dtype=np.float64, na_value=math.nan)
    low, high = float(np.nanmin(value)), float(np.nanmax(value))
    norm = LogNorm(low, high) if low > 0 and high > SPREAD * low else Normalize(low, high if high > low else low + 1)
    colours = [
        UNKNOWN if gone else to_hex(colormaps["cividis"](norm(x))) for x, gone in zip(value, unknown, strict=True)
    ]
    return _Colouring(colours, ["o"] * len(value), norm, [("not known", NOT_KNOWN)] if unknown.any() else [])


def _word(value: Any) -> str:
    """A category as a word: seed 1, which a column with gaps holds as 1.0, is 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _colour_bar(figure: Figure, axes: Any, colouring: _Colouring, attribute: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter

    bar = figure.colorbar(ScalarMappable(colouring.norm, "cividis"), ax=axes, aspect=30, pad=0.02, shrink=0.8)
    bar.ax.tick_params(labelsize=SMALL, which="both")
    bar.set_label(attribute)
    if isinstance(colouring.norm, LogNorm):
        plain_ticks(bar.ax.yaxis)
    else:
        bar.ax.yaxis.set_major_formatter(FuncFormatter(amount))


# ---------------------------------------------------------------------------------------------------- points, threads


def _draw_points(axes: Any, points: Floats, added: Any, colouring: _Colouring, size: float) -> None:
    """All points of one marker at once, the hollow ones above."""
    colours, markers, hollow = np.array(colouring.colours), np.array(colouring.markers), np.asarray(added, dtype=bool)
    for marker in dict.fromkeys(MARKERS.values()):
        solid, open_ = (markers == marker) & ~hollow, (markers == marker) & hollow
        if solid.any():
            axes.scatter(*points[solid].T, s=size, marker=marker, c=colours[solid], linewidths=0.3, edgecolors="white",
                         zorder=3)  # fmt: skip
        if open_.any():
            axes.scatter(*points[open_].T, s=1.5 * size, marker=marker, facecolors="white", edgecolors=colours[open_],
                         linewidths=1.0, zorder=4)  # fmt: skip


def _draw_threads(axes: Any, vectors: Vectors, runs: Sequence[Run], points: Floats, colouring: _Colouring) -> list[Any]:
    """The runs' steps as lines, and the lines of the legend that says which width is which KL."""
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    if not runs:
        return []
    places = [np.array([vectors.position(name) for name in run.names]) for run in runs]
    kl = vectors.kl().value
    steps = [kl[at[:-1], at[1:]] for at in places]
    every = np.concatenate(steps)
    every = every[every > 0]
    if not len(every):
        return []
    scale = WIDEST / math.sqrt(float(every.max()))
    for at, away in zip(places, steps, strict=True):
        colour = colouring.colours[at[-1]] if colouring.norm is None else GREY
        widths = np.maximum(scale * np.sqrt(np.nan_to_num(away)), 0.25)
        axes.add_collection(
            LineCollection(list(np.stack([points[at[:-1]], points[at[1:]]], axis=1)), linewidths=widths, colors=colour,
                           alpha=0.45, capstyle="round", zorder=1)
        )  # fmt: skip
    low = max(float(every.min()), float(every.max()) / 250)  # thinner lines look alike
    shown = sorted({_rounded(x) for x in np.geomspace(low, float(every.max()), 3)})
    return [Line2D([], [], color=GREY, alpha=0.6, linewidth=scale * math.sqrt(x), label=amount(x)) for x in shown]


def _rounded(value: float) -> float:
    """To 1, 2 or 5 of its decade, from below."""
    decade = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return float(f"{decade * max(n for n in (1, 2, 5) if n <= value / decade * (1 + 1e-9)):.3g}")


def _label_axes(axes: Any, map: ModelMap, method: str) -> None:
    if method == "pca":
        first, second = map.share[:2]
        axes.set_xlabel(f"first component ({first:.0%} of variance), √(bits/byte)")
        axes.set_ylabel(f"second component ({second:.0%}), √(bits/byte)")
        axes.tick_params(labelsize=SMALL)
        return
    perplexity = "" if map.perplexity is None else f"; perplexity {map.perplexity:.3g}"
    axes.set_xlabel(f"t-SNE 1 (no unit{perplexity})")
    axes.set_ylabel("t-SNE 2 (no unit)")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color("#bbbbbb")


def _columns(names: Iterable[str], room: float) -> int:
    """The columns of a legend with these names in `room` inches."""
    return max(1, int(room / (0.26 + 0.062 * max(map(len, names), default=0))))


def _groups(colouring: _Colouring, hollow: bool, room: float) -> tuple[list[Any], int]:
    """The lines of the legend, and in how many columns they fit into `room` inches."""
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"linestyle": "", "markersize": 4}
    lines: list[tuple[str, Look, dict[str, Any]]] = [(name, look, {}) for name, look in colouring.legend]
    if hollow:
        lines.append(("added later", Look(GREY, "circle"), {"markerfacecolor": "white"}))
    handles = [Line2D([], [], color=look.colour, marker=look.marker, label=name, **dot, **more)
               for name, look, more in lines]  # fmt: skip
    return handles, max(1, min(_columns([name for name, _, _ in lines], room), len(lines)))


def _legends(figure: Figure, groups: Sequence[Any], columns: int, title: str | None, widths: Sequence[Any]) -> None:
    look: dict[str, Any] = {"alignment": "left"}
    if groups:
        figure.legend(handles=groups, loc="outside lower left", ncols=columns, title=title, handletextpad=0.1, **look)
    if widths:
        title = "step's KL, bits/byte"
        figure.legend(handles=widths, loc="outside lower right", ncols=len(widths), title=title, **look)


# --------------------------------------------------------------------------------------------------------------- names


def _names(vectors: Vectors, runs: Sequence[Run]) -> dict[int, str]:
    """What is named, by its place: every model where they are few, else each thread at its last checkpoint, and the
    first one by its step."""
    if len(vectors) <= NAMED:
        return dict(enumerate(short_names(vectors.names, 24)))
    named: dict[int, str] = {}
    for run, name in zip(runs, short_names([run.name for run in runs], 24), strict=True):
        named[vectors.position(run.names[-1])] = name
    for run in runs:
        if len(run) >= LONG:
            named[vectors.position(run.names[0])] = f"step {run.steps[0]:,}"
    return named


def _write_names(figure: Figure, axes: Any, points: Floats, named: Mapping[int, str], size: float) -> None:
    """Write each name next to its point, over no other name and over the fewest points; farther away with a line to the
    point. A name without such a place is not written."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=1.6, foreground="white", alpha=0.85)]
    figure.draw_without_rendering()  # sets the places of all parts
    dots, frame, pixel = axes.transData.transform(points), axes.get_window_extent(), figure.dpi / 72
    look: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL, "ha": "left", "va": "bottom"}
    look |= {"zorder": 6, "annotation_clip": False, "path_effects": halo}
    texts = [axes.annotate(name, points[place], (0, 0), **look) for place, name in named.items()]
    at = dots[list(named)]
    extents = np.array([text.get_window_extent().size for text in texts]).reshape(-1, 2)
    near = (math.sqrt(size) / 2 + 1.0) * pixel
    boxes, fits = _place_names(at, extents, dots, np.array([frame.min + 2 * pixel, frame.max - 2 * pixel]), near, pixel)
    for text, dot, box, fit in zip(texts, at, boxes, fits, strict=True):
        text.set_in_layout(False)
        if not fit:
            text.remove()
            continue
        text.set_position(tuple((box[0] - dot) / pixel))
        end = np.clip(dot, *box)
        if np.linalg.norm(end - dot) > near + 3 * pixel:
            line = axes.transData.inverted().transform(np.stack([end, dot]))
            axes.plot(*line.T, color=GREY, linewidth=0.4, zorder=2, scalex=False, scaley=False)


def _place_names(
    at: Floats, extents: Floats, dots: Floats, frame: Floats, near: float, pixel: float
) -> tuple[Floats, list[bool]]:
    """Boxes (n, 2, 2) of names of these `extents` (n, 2), each at one of the points `at` (n, 2), in pixels; and whether
    each lies over no other. Each takes the best place given those of the others, again and again."""
    from scipy.spatial import KDTree

    angle = np.arange(16) * math.pi / 8
    direction = np.round(np.stack([np.cos(angle), np.sin(angle)], axis=1), 9)
    side = np.sign(direction) * (np.abs(direction) > 0.5)
    ring = np.arange(14)
    away = (near + 6.0 * ring * pixel)[:, None, None] * direction
    n, C = len(at), len(ring) * len(angle)
    corners = at[:, None] + away.reshape(1, C, 2) + extents[:, None] * (np.tile(side, (len(ring), 1)) - 1) / 2
    boxes = np.stack([corners, corners + extents[:, None]], axis=2)  # (n, C, 2, 2)
    outside = ((boxes[:, :, 0] < frame[0]) | (boxes[:, :, 1] > frame[1])).any(axis=2)
    low, high = boxes[:, :, 0] - 1.5 * pixel, boxes[:, :, 1] + 1.5 * pixel
    ends = np.clip(at[:, None], boxes[:, :, 0], boxes[:, :, 1])
    leaders = ends[:, :, None] + np.linspace(0, 1, 20)[:, None] * (at[:, None] - ends)[:, :, None]  # (n, C, 20, 2)
    cost = 1e6 * outside + 0.9 * np.repeat(ring, len(angle)) + 0.02 * np.tile(np.arange(len(angle)), len(ring))
    for k in range(n):
        cost[k] += 6.0 * _inside(dots, low[k], high[k]).sum(axis=1)
        others = dots[((dots - at[k]) ** 2).sum(axis=1) > pixel**2]
        # next to other points it could be taken for theirs
        cost[k] += 0.7 * _inside(others, low[k] - 3 * pixel, high[k] + 3 * pixel).sum(axis=1)
        if len(others):
            cost[k] += 6.0 * (np.asarray(KDTree(others).query(leaders[k])[0]).min(axis=1) < near)
    chosen, placed = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)
    total = np.full(n, np.inf)
    # names may first lie over each other, so that the one moves away that finds another place most easily
    for weight, k in product((2.0, 4.0, 8.0, 16.0, OVER, OVER), range(n)):
        names = boxes[np.arange(n), chosen][placed & (np.arange(n) != k)]
        over = ((boxes[k, :, None, 0] < names[:, 1]) & (names[:, 0] < boxes[k, :, None, 1])).all(axis=2)
        crossing = _inside(leaders[k].reshape(-1, 2), names[:, 0], names[:, 1]).reshape(len(names), C, 20)
        now = cost[k] + weight * over.sum(axis=1) + 8.0 * crossing.any(axis=2).sum(axis=0)
        chosen[k], placed[k], total[k] = now.argmin(), True, now.min()
    return boxes[np.arange(n), chosen], (total < OVER).tolist()


def _inside(points: Floats, low: Floats, high: Floats) -> Any:
    """Boolean mask (B, P) of the points (P, 2) in each of the boxes (B, 2)."""
    return ((points > low[:, None]) & (points < high[:, None])).all(axis=2)
