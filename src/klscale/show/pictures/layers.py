"""The picture of a model's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from klscale.show.names import short_names
from klscale.show.pictures.style import (
    DOUBLE,
    GREY,
    SMALL,
    bars,
    describe,
    headline,
    looks,
    new_figure,
    plain_ticks,
    styled,
)  # fmt: skip
from klscale.studies import lens, maps
from klscale.vectors.vectors import Vectors

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def layer_threads(vectors: Vectors) -> Figure:
    """Layers of models through the logit lens: KL from layer to layer and to the output in bits per byte with 95 %
    intervals. Another panel has all layers on one map (principal components), each model a thread. Raises InputError as
    `lens.layers` does."""
    from matplotlib.lines import Line2D

    found = lens.layers(vectors)
    colour = {model: look.colour for model, look in looks(found).items()}
    rows_of_legend = -(-len(found) // 3)
    figure = new_figure(DOUBLE, 2.9 + 0.13 * rows_of_legend)
    headline(figure, f"The logit lens, {describe(vectors.texts)}")
    steps, plane = figure.subplots(1, 2)
    found_map = maps.pca(vectors)
    dodge = dict(zip(found, np.linspace(-1, 1, len(found)) * 0.12 if len(found) > 1 else (0.0,), strict=True))
    for model, rows in found.items():
        for style, pairs in (
            ({"fmt": "o-"}, [(row.layer, row.from_previous) for row in rows if row.from_previous is not None]),
            ({"fmt": "s--", "markerfacecolor": "white"}, [(row.layer, row.to_output) for row in rows[:-1]]),
        ):
            kls = [kl for _, kl in pairs]
            look: dict[str, Any] = {"color": colour[model], "elinewidth": 0.6, **style}
            beside = [layer + dodge[model] for layer, _ in pairs]  # bars of several models lie over each other
            steps.errorbar(beside, [kl.value for kl in kls], bars(kls), **look)
        thread = found_map.points[[vectors.position(row.ref) for row in rows]]
        plane.plot(*thread.T, "o-", color=colour[model], markersize=2.2)
        plane.plot(*thread[0], "o", color=colour[model], markersize=4, markerfacecolor="white")
        plane.plot(*thread[-1], "D", color=colour[model], markersize=3.5)
        for row, point in zip(rows, thread, strict=True) if len(found) == 1 and len(rows) <= 16 else ():
            offset: dict[str, Any] = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": SMALL}
            plane.annotate(str(row.layer), point, color=colour[model], **offset)
    steps.set_yscale("log")
    steps.set_xlabel("layer (0: embedding)")
    steps.set_ylabel("KL, bits/byte (95 % interval)")
    steps.xaxis.get_major_locator().set_params(integer=True)
    plain_ticks(steps.yaxis)
    share = found_map.share
    plane.set_xlabel(f"first component ({share[0]:.0%} of variance), √(bits/byte)")
    plane.set_ylabel(f"second component ({share[1]:.0%}), √(bits/byte)")
    plane.set_aspect("equal", adjustable="datalim")
    for axes in (steps, plane):
        axes.tick_params(labelsize=SMALL)
    grey: dict[str, Any] = {"color": GREY}
    kinds = [
        Line2D([], [], marker="o", label="from the layer before", **grey),
        Line2D([], [], marker="s", markerfacecolor="white", linestyle="--", label="to the output", **grey),
    ]
    first = "embedding" if all(rows[0].layer == 0 for rows in found.values()) else "first layer"
    ends = [
        Line2D([], [], marker="o", markersize=4, markerfacecolor="white", linestyle="", label=first, **grey),
        Line2D([], [], marker="D", markersize=3.5, linestyle="", label="the model itself", **grey),
    ]
    steps.legend(handles=kinds, loc="best")
    plane.legend(handles=ends, loc="best", handletextpad=0.1)
    names = short_names(list(found), 40)
    models = [
        Line2D([], [], color=colour[model], marker="o", label=name) for model, name in zip(found, names, strict=True)
    ]
    figure.legend(handles=models, loc="outside lower left", ncols=min(len(models), 3))
    return figure
