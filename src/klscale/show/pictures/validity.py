"""Pictures of how far KL depends on the texts: the error against their number, the domains, two text sets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from klscale.errors import InputError
from klscale.inputs.texts import TextSet
from klscale.show.names import shortened
from klscale.show.pictures.style import (
    COLOURS,
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
from klscale.studies.domains import Domains
from klscale.studies.text_set_agreement import TextSetComparison
from klscale.studies.validity import ErrorGrowth, TextSensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCKS, TYPICAL = COLOURS[:2]
BARS = 200
"""Largest number of pairs that are drawn with bars."""
ROW = 0.16
"""Inches of a domain."""


@styled
def text_set_sensitivity(found: TextSensitivity, texts: TextSet) -> Figure:
    """The relative error of KL against the number of texts, and KL within each domain against KL on all texts.

    Left: medians over pairs, log-log, with the line that standard errors predict beyond the texts at hand. Right, where
    there are domains: each pair a dot, a tick at the median. Raises InputError where the texts could not be split.
    """
    if found.growth is None:
        raise InputError("There is no error to draw against texts.", " ".join(found.notes), "Score more texts.")
    rows = 0 if found.domains is None else len(found.domains.domains)
    figure = new_figure(DOUBLE if rows else SINGLE, max(2.7, 0.9 + ROW * rows))
    headline(figure, f"{describe(texts)}; {len(found.pairs):,} pairs of {found.n_models:,} models")
    panels = figure.subplots(1, 2) if rows else [figure.add_subplot()]
    _draw_growth(panels[0], found.growth, found)
    if found.domains is not None:
        _draw_domains(panels[1], found.domains, found)
    for axes in panels:
        axes.tick_params(labelsize=SMALL, which="both")
    return figure


def _draw_growth(axes: Any, growth: ErrorGrowth, found: TextSensitivity) -> None:
    relative = float(np.median(found.standard_error / found.kl))
    n = growth.n_texts.astype(np.float64)
    wanted, most = min((row.relative_error, row.median) for row in found.needed)
    reach = np.array([n.min() / 1.3, max(most, found.n_texts) * 1.3])
    axes.plot(
        reach, relative * np.sqrt(found.n_texts / reach), color=GREY, linewidth=0.8, label="as predicted: SE, 1/√n"
    )
    low, high = growth.quartiles.T
    axes.fill_between(n, low, high, color=BLOCKS, alpha=0.15, linewidth=0, label="quartiles over pairs")
    axes.plot(n, growth.standard_deviation, "o", color=BLOCKS, label="among disjoint blocks")
    axes.plot(n, growth.typical, "D", color=TYPICAL, markerfacecolor="white", label="typical difference")
    axes.plot(found.n_texts, relative, "s", color=GREY, label="these texts")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*reach)
    bottom = min(wanted, relative) / 1.45
    axes.set_ylim(
        bottom,
        max(float(high.max()), float(growth.typical.max()), relative * math.sqrt(found.n_texts / reach[0])) * 1.6,
    )
    for row in found.needed:
        if row.median > found.n_texts:
            place = row.median, row.relative_error
            axes.plot(
                [row.median, row.median, reach[0]],
                [bottom, row.relative_error, row.relative_error],
                color=FAINT,
                linewidth=0.6,
                zorder=0,
            )
            axes.annotate(
                f"{row.median:,} texts", place, (-3, -2), textcoords="offset points", ha="right", va="top",
                fontsize=SMALL, color=GREY,
            )  # fmt: skip
    plain_ticks(axes.xaxis, most=6)
    plain_ticks(axes.yaxis, most=6)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:g} %")
    axes.set_xlabel("texts")
    axes.set_ylabel("relative error of KL (median over pairs)")
    axes.set_title("Error of KL")
    axes.legend(loc="upper right")


def _draw_domains(axes: Any, domains: Domains, found: TextSensitivity) -> None:
    order = np.argsort([row.ratio for row in domains.domains])[::-1]
    for y, d in enumerate(order):
        row, ratio = domains.domains[d], domains.kl[:, d] / found.kl
        ratio = ratio[ratio > 0]  # a log axis has no zero
        # Golden-section steps spread neighbours, and the same pairs lie at the same place.
        height = y + 0.56 * ((np.arange(len(ratio)) * 0.618034 + 0.5) % 1 - 0.5)
        alpha = float(np.clip(8 / len(ratio) ** 0.6, 0.1, 0.7))
        axes.plot(ratio, height, "o", color=BLOCKS, alpha=alpha, markersize=2, markeredgewidth=0)
        axes.plot((row.ratio,) * 2, (y - 0.36, y + 0.36), color="black", linewidth=1.6, solid_capstyle="butt")
    names = [shortened(domains.domains[d].name, 22) for d in order]
    axes.set_yticks(
        range(len(order)), [f"{name}, {domains.domains[d].n_texts:,}" for name, d in zip(names, order, strict=True)]
    )
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.axvline(1, color=GREY, linewidth=0.6, zorder=0)
    low, high = axes.get_xlim()
    if low <= 0 or high > 3 * low:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis, most=6)
    axes.grid(axis="x")
    axes.set_xlabel("KL within the domain / KL on all texts")
    axes.set_title("By domain (and its texts); dots: pairs, ticks: medians")


@styled
def two_text_sets(found: TextSetComparison) -> Figure:
    """KL of each pair on one text set against KL on the other, log-log, with the line of equal values and that of the
    median ratio. Up to 200 pairs have bars of one standard error."""
    figure = new_figure(SINGLE, SINGLE)
    axes = figure.add_subplot()
    x, y = found.kl.T
    alpha = float(np.clip(12 / len(x) ** 0.6, 0.12, 0.9))
    look: dict[str, Any] = {"color": BLOCKS, "alpha": alpha, "elinewidth": 0.4, "markersize": 2.4}
    if len(x) <= BARS:
        factor = np.exp(np.minimum(found.standard_error / found.kl, 5.0))  # on the log scale: no bar reaches below zero
        below, above = (found.kl - found.kl / factor).T, (found.kl * factor - found.kl).T
        look |= {"xerr": (below[0], above[0]), "yerr": (below[1], above[1])}
    axes.errorbar(x, y, fmt="o", markeredgewidth=0, **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    reach = np.array([min(x.min(), y.min()) / 1.4, max(x.max(), y.max()) * 1.4])
    axes.plot(reach, reach, color=GREY, linewidth=0.6, zorder=0, label="equal")
    axes.plot(
        reach, reach * found.ratio, color=TYPICAL, linewidth=0.8, linestyle="--", zorder=3,
        label=f"median ratio {found.ratio:.2f}",
    )  # fmt: skip
    axes.set_xlim(*reach)
    axes.set_ylim(*reach)
    axes.set_aspect("equal")
    for axis, name, count in zip((axes.xaxis, axes.yaxis), found.names, found.n_texts, strict=True):
        plain_ticks(axis, most=5)
        axis.set_label_text(f"KL on {shortened(name, 26)} ({count:,} texts), bits/byte")
    axes.tick_params(labelsize=SMALL, which="both")
    said = f"{len(x):,} pairs of {found.n_models:,} models"
    if found.spearman is not None:
        said += f"\nranking (Spearman): {found.spearman.value:.3f}"
    axes.set_title(said)
    axes.legend(loc="upper left")
    return figure
