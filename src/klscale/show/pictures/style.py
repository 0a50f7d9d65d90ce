"""What all pictures share: sizes, type, colours and symbols, names as plain text, and how a figure is written."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from klscale.inputs.texts import TextSet
from klscale.science.arrays import Floats
from klscale.science.estimates import Estimate
from klscale.science.kl import KL
from klscale.science.reported import ReportedKL
from klscale.show.names import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SINGLE, DOUBLE = 3.35, 6.9
"""Widths of one and of two columns of a journal, in inches. Figures are made at their final size."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by colour-blind readers too (Okabe and Ito)."""
DARK = dict(zip(COLOURS, ("#4da6dc", "#f08843", "#2fbf93", "#dd9cc2", "#efb23c", "#7cc8f2", "#e6e8ea"), strict=True))
"""The same on dark paper: lighter, and black is nearly white."""
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "cross": "P"}
"""Symbols as plotly names them, and the marker that matplotlib has for each."""
GREY, FAINT, UNKNOWN = "#555555", "#dddddd", "#999999"
"""Of what belongs to no category; of lines behind the data; of a category that is not known."""

TEXT, SMALL = 7.0, 6.5
"""Points; nothing is smaller than `SMALL`."""
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.titlelocation": "left",
    "axes.titlepad": 4.0,
    "axes.labelsize": TEXT,
    "axes.labelpad": 2.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "figure.titlesize": TEXT,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.constrained_layout.h_pad": 0.03,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "legend.fontsize": SMALL,
    "legend.title_fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "legend.labelspacing": 0.3,
    "legend.borderaxespad": 0.2,
    "lines.linewidth": 0.9,
    "lines.markersize": 3.0,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "text.parse_math": False,  # a $ in a name is a $
    "text.hinting": "no_hinting",  # a text is as long in every format
    "figure.dpi": 300,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "klscale",
}

P = ParamSpec("P")


@contextmanager
def house_style() -> Iterator[None]:
    """matplotlib's defaults with this style, without the user's settings: the same result gives the same bytes."""
    import matplotlib

    settings: Any = STYLE
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function that draws, in the house style. Every part of its figure has its place for good: matplotlib's layout
    would move by a little whenever the figure is written."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with house_style():
            figure = draw(*args, **kwargs)
            if (layout := figure.get_layout_engine()) is not None:
                layout.execute(figure)
            figure.set_layout_engine(None)  # "none" leaves an engine that has every figure drawn twice to be saved
            return figure

    return inside


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, which finds room for all that is put into it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, file: str | Path) -> None:
    """Write a figure; the ending says how (.png, .svg, .pdf). The same figure gives the same bytes."""
    path = Path(file)
    metadata = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None} if path.suffix == ".pdf" else None
    with house_style():
        figure.savefig(path, facecolor="white", metadata=metadata)


def in_points(figure: Figure, *pixels: float) -> tuple[Any, ...]:
    """Pixels of a figure, x and y in turn from its lower left corner, as points from its upper left one, as in SVG."""
    height, scale = figure.get_figheight() * 72, 72 / figure.dpi
    return tuple(round(height - at * scale if n % 2 else at * scale, 2) for n, at in enumerate(map(float, pixels)))


# ------------------------------------------------------------------------------------------------ colours and symbols


class Look(NamedTuple):
    """A colour (`#rrggbb`) and a symbol (`circle`, `square`, `diamond`, `cross`)."""

    colour: str
    symbol: str

    @property
    def dark(self) -> str:
        """The colour on dark paper."""
        return DARK[self.colour]

    @property
    def marker(self) -> str:
        """The symbol as matplotlib has it."""
        return MARKERS[self.symbol]


OTHERS = Look(UNKNOWN, "square")
"""Of the groups that the legend does not name."""
_LOOKS = tuple(Look(colour, symbol) for symbol, colour in product(MARKERS, COLOURS))

Value = TypeVar("Value", bound=Hashable)


def looks(values: Iterable[Value]) -> dict[Value, Look]:
    """The look of each category, wherever it is shown: sorted (numbers in names by their size), the categories take the
    colours in turn, then the same colours with the next symbol. Beyond 28 categories looks repeat."""
    ordered = sorted(set(values), key=_natural)
    return {value: _LOOKS[n % len(_LOOKS)] for n, value in enumerate(ordered)}


def group_looks(groups: Iterable[Value], most: int = len(_LOOKS)) -> dict[Value, Look]:
    """The looks of groups of models, given the group of each model: of more than `most` groups those of the commonest,
    without groups of one model. All others look alike (`OTHERS`)."""
    counts = Counter(groups)

    def kept(most: int) -> list[Value]:
        if len(counts) <= most:
            return list(counts)
        ordered = sorted(counts, key=lambda value: (-counts[value], _natural(value)))
        return [value for value in ordered[: most - 1] if counts[value] > 1]

    # a group has one look, however few of the groups are named
    look, named = looks(kept(len(_LOOKS))), set(kept(most))
    return {value: one for value, one in look.items() if value in named}


def others_line(groups: Iterable[Value], looks: Mapping[Value, Look]) -> str | None:
    """What the legend says of the groups of models that have no look; None where all have one."""
    counts = Counter(group for group in groups if group not in looks)
    if not counts:
        return None
    return f"{'others' if counts.total() > len(counts) else 'one model each'}: {len(counts):,}"


def _natural(value: Any) -> tuple[Any, ...]:
    """`seed2` comes before `seed10`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(value))
    return tuple((float(part), "") if n % 2 else (math.inf, part) for n, part in enumerate(parts)), str(value)


# ------------------------------------------------------------------------------------------------------ texts


def describe(texts: TextSet) -> str:
    """The number of texts and the name of their set."""
    return f"{len(texts):,} texts of {shortened(texts.name, 36)}"


def headline(figure: Figure, line: str) -> None:
    """What a figure is of, on top at the left."""
    figure.suptitle(line, x=0.008, ha="left")


# --------------------------------------------------------------------------------------------------------------- axes


def plain_ticks(axis: Any, most: int = 7) -> None:
    """Plain numbers on a log axis that has its limits: at 1, 2 and 5 of each decade, or at some decades only, so that
    there are no more than `most`."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    low, high = sorted(axis.get_view_interval())
    decades = np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    within = (((1, 2, 3, 4, 6), 1), ((1, 2, 3, 5), 1)) if high < 10 * low else ()
    for subs, apart in (*within, ((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 6)):
        ticks = [sub * 10.0**n for n in decades if n % apart == 0 for sub in subs]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(amount))
    axis.set_minor_formatter(NullFormatter())


def amount(value: float, _: Any = None) -> str:
    """A number on an axis: 0.05, 1,000, 410M."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:,.12g}" if value == 0 or abs(value) >= 1e-4 else f"{value:.0e}".replace("e-0", "e-")


def step_axis(axis: Any, steps: Iterable[float], most: int = 6) -> None:
    """Training steps, or other amounts, on a log scale that has a place for 0."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    known = sorted({*steps})
    first = next((step for step in known if step > 0), 1)
    axis.axes.set_xscale("symlog", linthresh=first, linscale=0.4)
    zero = [0] if known and known[0] == 0 else []
    last = max(known[-1], first) if known else first
    reach = math.log10(last / first) if last > first else 0.3
    ticks: list[float] = []
    decades = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    for subs, apart in (((1, 2, 5), 1), ((1,), 1), ((1,), 2), ((1,), 3)):
        ticks = [sub * 10.0**n for n in decades if n % apart == 0 for sub in subs]
        ticks = [tick for tick in ticks if first * (1 - 1e-9) <= tick <= last * (1 + 1e-9)]
        if len(ticks) + len(zero) <= most:
            break
    axis.set_major_locator(FixedLocator(zero + (ticks or [first])))
    axis.set_major_formatter(FuncFormatter(amount))
    axis.set_minor_locator(NullLocator())
    low = -0.08 * first if zero else first / 10 ** (0.05 * reach)
    axis.axes.set_xlim(low, last * 10 ** (0.06 * reach))


def bars(found: Sequence[KL | ReportedKL | Estimate]) -> Floats:
    """Lengths (2, n) of the error bars that reach the ends of 95 % intervals."""
    value = np.array([one.value for one in found])
    return np.asarray(np.abs(np.array([one.interval for one in found]).reshape(-1, 2).T - value))
