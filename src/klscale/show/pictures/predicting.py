"""Pictures of predicted scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from klscale.show.names import shortened
from klscale.show.pictures.style import DOUBLE, GREY, SINGLE, looks, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from klscale.studies.predicting import Prediction

MOST, MOST_GROUPS = 9, 8
"""Scores that are drawn, and groups that are named."""


@styled
def predicted_scores(predictions: Sequence[Prediction]) -> Figure:
    """A panel for each score, the first nine: the score against the prediction of each model whose group was held out,
    with a bar of one standard error, coloured by group. The line is where both are equal."""
    drawn = predictions[:MOST]
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    width = SINGLE if columns == 1 else DOUBLE
    figure = new_figure(width, width / columns * lines)
    known = looks(row.group for one in drawn for row in one.held_out)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, one in zip(panels, drawn, strict=False):
        rows = [(row.predicted.value, row.score, row.predicted.standard_error) for row in one.held_out]
        values, groups = np.array(rows), np.array([row.group for row in one.held_out])
        for group in sorted({*groups.tolist()}, key=[*known].index):
            predicted, score, error = values[groups == group].T
            axes.errorbar(
                predicted, score, xerr=error, marker=known[group].marker, color=known[group].colour, markersize=3.2,
                elinewidth=0.4, linestyle="none", label=shortened(group, 24),
            )  # fmt: skip
        reach = [values[:, :2].min(), values[:, :2].max()]
        axes.plot(reach, reach, color=GREY, linewidth=0.6, zorder=0)
        axes.set_title(f"{shortened(one.benchmark, 30)}, {len(one.held_out):,} models")
        axes.set_xlabel("predicted without its type")
        axes.set_ylabel("score")
    for axes in panels[len(drawn) :]:
        axes.set_visible(False)
    if len(known) <= MOST_GROUPS:
        panels[0].legend(loc="upper left")
    return figure
