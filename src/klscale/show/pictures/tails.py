"""Pictures of tails: how a pair's KL is shared among the texts, and what the tails make of every pair of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from klscale.errors import InputError
from klscale.show.names import short_names
from klscale.show.pictures.style import (
    COLOURS,
    DOUBLE,
    GREY,
    SINGLE,
    SMALL,
    describe,
    headline,
    new_figure,
    plain_ticks,
    styled,
)
from klscale.studies.tails import ESTIMATORS, PairTails, Tails

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def text_contributions(found: PairTails) -> Figure:
    """The shares of the texts in a pair's KL, largest first: the share of each (log-log), and their cumulated sum, with
    the ten largest and the largest 1 % marked. A line has the expected shares of as many Gaussian differences. Raises
    InputError for a KL of 0."""
    from scipy import special

    if not found.largest:
        raise InputError(
            "There is no KL to share among texts.", f"{found.a} and {found.b} differ by the same on every text."
        )
    N = len(found.contributions)
    place = np.arange(1, N + 1)
    figure = new_figure(DOUBLE, 2.45)
    a, b = short_names([found.a, found.b], 40)
    headline(figure, f"{a} and {b}\nKL {found.kl}; {describe(found.texts)}")
    each, together = figure.subplots(1, 2)
    gaussian = special.gammaincinv(0.5, 1 - (place - 0.5) / N)  # half a chi-squared quantile of one degree of freedom
    gaussian /= gaussian.sum()
    for axes, own, beside in (
        (each, found.contributions, gaussian),
        (together, np.cumsum(found.contributions), np.cumsum(gaussian)),
    ):
        axes.plot(place, 100 * beside, color=GREY, linewidth=0.8, linestyle="--", label="Gaussian differences")
        axes.plot(place, 100 * own, color=COLOURS[0], label="this pair")
        axes.set_xscale("log")
        axes.set_xlim(0.9, N * 1.1)
        plain_ticks(axes.xaxis)
        axes.set_xlabel("texts, those of the largest share first")
        axes.grid()
        axes.tick_params(labelsize=SMALL, which="both")
    each.plot(place[:10], 100 * found.contributions[:10], "o", color=COLOURS[0])
    each.set_yscale("log")
    each.set_ylim(100 * max(found.contributions[min(N - 1, int(0.9 * N))], 1e-7), 200 * found.contributions[0])
    plain_ticks(each.yaxis)
    each.set_ylabel("share of the KL, %")
    each.legend(loc="lower left")
    together.set_ylim(0, 103)
    together.set_ylabel("share of the KL up to here, %")
    marks = {10: found.share_of_ten, -(-N // 100): found.share_of_percent}
    for n, share in marks.items():
        if n <= N:
            together.plot([n], [100 * share], "o", color=COLOURS[1], zorder=5)
            look = {"textcoords": "offset points", "ha": "right", "fontsize": SMALL, "color": COLOURS[1]}
            text = f"{n} text{'s' if n > 1 else ''}: {share:.0%}"
            together.annotate(text, (n, 100 * share), (-4, 3), **look)
    return figure


PANELS = {"clipped": "with the clip", "trimmed": "trimmed, 1 %", "huber": "Huber's Proposal 2"}
"""Estimates with a panel each; and the one without the clip, where that is not the reported value itself."""


@styled
def tails_of_pairs(found: Tails) -> Figure:
    """KL of each pair by the other estimators against the reported value, in bits per byte on log axes; hollow where
    the pair is out of range. Raises InputError where no two models differ."""
    value = found.pairs.value[:, : found.n_pairs]
    shown = np.flatnonzero(value[0] > 0)
    if not shown.size:
        raise InputError("There is no KL to draw.", "No two models differ.", "Score more models.")
    names = list(ESTIMATORS)
    unclipped = value[names.index("unclipped"), shown]
    panels = ({} if (unclipped == value[0, shown]).all() else {"unclipped": "without the clip"}) | PANELS
    figure = new_figure(DOUBLE if len(panels) > 1 else SINGLE, 2.5 if len(panels) == 3 else 2.1)
    in_range = found.in_range[shown]
    hollow = "" if in_range.all() else ", hollow where out of range"
    headline(figure, f"{describe(found.texts)}; {found.n_pairs:,} pairs{hollow}")
    ends = value[0, shown].min() / 1.5, value[0, shown].max() * 1.5
    alpha = float(np.clip(8 / len(shown) ** 0.6, 0.15, 0.8))
    for axes, (name, label) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        other = value[names.index(name), shown]
        axes.plot(ends, ends, color=GREY, linewidth=0.6, zorder=0)
        for which, face in ((in_range, COLOURS[0]), (~in_range, "none")):
            axes.scatter(
                value[0, shown][which], other[which], s=7, alpha=alpha, facecolors=face, edgecolors=COLOURS[0],
                linewidths=0.0 if face != "none" else 0.5, rasterized=len(shown) > 2000,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axes.set_title(label)
        plain_ticks(axes.xaxis, 4)
        plain_ticks(axes.yaxis, 6)
        axes.set_xlabel("reported KL, bits/byte")
        axes.grid()
        axes.tick_params(labelsize=SMALL, which="both")
    figure.axes[0].set_ylabel("KL, bits/byte")
    return figure
