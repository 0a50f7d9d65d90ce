"""Pictures of the estimate held against exact KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from klscale.science.arrays import Floats
from klscale.show.pictures.style import GREY, SINGLE, looks, new_figure, plain_ticks, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from klscale.science.estimates import Estimate
    from klscale.science.kl import KL
    from klscale.studies.calibration import Calibration


@styled
def estimate_against_exact(found: Sequence[Calibration], settings: Sequence[str] | None = None) -> Figure:
    """The estimate of each pair against its exact KL on the same texts, log-log, with bars of one standard error; and
    the lines of ratios 1, 2 and 4. Coloured by `settings` where given, hollow where the estimate is out of range."""
    figure = new_figure(SINGLE, SINGLE)
    axes = figure.add_subplot()
    exact, estimate = (
        np.array([one.symmetrised.value for one in found]),
        np.array([one.estimate.value for one in found]),
    )
    names = list(settings) if settings is not None else [""] * len(found)
    known = looks(names)
    for place, (one, name) in enumerate(zip(found, names, strict=True)):
        colour, first = known[name].colour, names.index(name) == place
        axes.errorbar(
            exact[place], estimate[place], xerr=_bars(one.symmetrised), yerr=_bars(one.estimate),
            marker=known[name].marker, color=colour, markerfacecolor=colour if one.estimate_all.in_range else "none",
            markeredgewidth=0.6, markersize=3.2, elinewidth=0.4, linestyle="none",
            label=name if name and first else None,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    both = np.concatenate([exact, estimate])
    reach = np.array([both.min() / 2, both.max() * 2])
    for ratio, style, label in ((1, "-", "equal"), (2, "--", "2 times"), (4, ":", "4 times")):
        axes.plot(reach, ratio * reach, color=GREY, linewidth=0.6, linestyle=style, zorder=0, label=label)
    axes.set_xlim(*reach)
    axes.set_ylim(*reach)
    axes.set_aspect("equal")
    for axis, label in ((axes.xaxis, "exact KL, bits/byte"), (axes.yaxis, "estimate, bits/byte")):
        plain_ticks(axis, most=5)
        axis.set_label_text(label)
    hollow = sum(not one.estimate_all.in_range for one in found)
    axes.set_title(f"{len(found):,} pairs" + (f"; hollow: {hollow:,} out of range" if hollow else ""))
    axes.legend(loc="upper left" if settings is None else "lower right")
    return figure


def _bars(estimate: Estimate | KL) -> Floats:
    """Bars (2, 1) of one standard error, on the log scale: none reaches zero."""
    value = estimate.value
    factor = np.exp(min(estimate.standard_error / value, 5.0))
    return np.array([[value - value / factor], [value * factor - value]])
