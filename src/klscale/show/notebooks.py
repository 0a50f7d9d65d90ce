"""Results in a notebook: what the command prints, recorded and written as HTML, and the picture that it draws."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rich.text import Text

from klscale.errors import InputError
from klscale.show.markup import drawing, escape, name
from klscale.show.tables import Shown, Table
from klscale.show.terminal import out

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Way(NamedTuple):
    """How a result is printed, and drawn where it has a picture."""

    show: Callable[[], None]
    draw: Callable[[], Figure | None] = lambda: None


def html_of(result: Any) -> str:
    """A result as HTML: every text escaped, tables, sentences, and the picture as inline SVG."""
    way = WAYS[type(result).__name__](result)
    with out.recorded() as printed:
        try:
            way.show()
        except InputError as error:  # too little to show
            out.print(Text(str(error)))
    parts = [_table(one) if isinstance(one, Table) else _sentence(one) for one in printed]
    try:
        figure = way.draw()
    except InputError:  # too little to draw
        figure = None
    if figure is not None:
        identity = "k" + hashlib.sha256("".join(parts).encode()).hexdigest()[:8]
        width = f"{1.4 * figure.get_figwidth():.2f}in"
        parts.append(f'<div style="{PAPER}; max-width: {width}">{drawing(figure, identity)}</div>')
    return f'<div class="klscale">{"".join(parts)}</div>'


PAPER = "background: #fff; color: #111; color-scheme: light; padding: 0.5em"
"""Pictures are on white, whatever colours the notebook has."""


def _table(table: Table) -> str:
    columns = table.columns
    caption = "" if not table.title else escape(Text.from_markup(table.title).plain.strip())
    head = "".join(f'<th style="{_look(one)}">{escape(one.title)}</th>' for one in columns)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_look(column)}">{_cell(column, n)}</td>' for column in columns) + "</tr>"
        for n in range(len(columns[0].cells) if columns else 0)
    )
    heading = f'<caption style="text-align: left"><b>{caption}</b></caption>' if caption else ""
    return f"<table>{heading}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _look(column: Shown) -> str:
    return f"text-align: {'left' if column.words else 'right'}; white-space: nowrap; padding: 0 0.6em"


def _cell(column: Shown, n: int) -> str:
    return name(column.cells[n]) if column.words else escape(column.cells[n])


def _sentence(printed: Any) -> str:
    text = (Text.from_markup(printed) if isinstance(printed, str) else printed).plain.strip()
    lines = "<br>".join(escape(line) for line in text.splitlines())
    return f'<p style="margin: 0.3em 0"><small>{lines}</small></p>' if lines else ""


# ------------------------------------------------------------------------------------------------- each kind of result


def _comparison(found: Any) -> Way:
    from klscale.show import compare, pictures

    pairs = compare.rows(found.vectors, found.pairs, found.measured, found.sequential, found.drawn)

    def draw() -> Figure | None:
        if compare.has_ladder(found.vectors, list(found.pairs)):
            return pictures.quantization_ladder(found.vectors, found.measured)
        return pictures.kl_heat_map(found.vectors) if len(found.vectors) > 2 else None

    return Way(lambda: compare.print_comparison(found.vectors, pairs), draw)


def _scale(found: Any) -> Way:
    from klscale.show import pictures, scale

    return Way(
        lambda: scale.print_scale(found.vectors, found.settings),
        lambda: pictures.scale_ruler(found.settings, found.vectors.texts, found.noise_floor),
    )


def _trajectories(found: Any) -> Way:
    from klscale.show import pictures, trajectories

    shown = (found.runs, found.seeds, found.directions, found.texts, found.threshold_source)
    return Way(lambda: trajectories.print_trajectories(*shown), lambda: pictures.training_trajectories(found.runs))


def _attribute_trajectories(found: Any) -> Way:
    from klscale.show import pictures, series

    return Way(lambda: series.print_series(found), lambda: pictures.kl_along_attribute(found.series, found.attribute))


def _layers(found: Any) -> Way:
    from klscale.show import layers, pictures

    return Way(lambda: layers.print_layers(found.vectors), lambda: pictures.layer_threads(found.vectors))


def _map(found: Any) -> Way:
    from klscale.show import maps, pictures

    return Way(lambda: maps.print_map(found.map, found.vectors), lambda: pictures.model_map(found.map, found.vectors))


def _placed(found: Any) -> Way:
    from klscale.show.placing import print_placement

    return Way(lambda: print_placement(found))


def _pmi_map(found: Any) -> Way:
    from klscale.show.pictures import model_map
    from klscale.show.pmi import print_pmi_map

    method: Literal["tsne", "pca"] = "pca" if found.map.tsne is None else "tsne"
    given = found.vectors.given
    return Way(lambda: print_pmi_map(found), lambda: model_map(found.map, given, method=method, by_pmi=True))


def _pmi(found: Any) -> Way:
    from klscale.show.pmi import print_pmi

    return Way(lambda: print_pmi(found))


def _predicted(found: Any) -> Way:
    from klscale.show import pictures
    from klscale.show.predicting import print_predictions

    return Way(lambda: print_predictions(found), lambda: pictures.predicted_scores(found.predictions))


def _scored(found: Any) -> Way:
    from klscale.show.scoring import print_outcomes

    return Way(lambda: print_outcomes(found.outcomes, 0, found.texts, found.store))


def _part_costs(found: Any) -> Way:
    from klscale.show import pictures, sensitivity

    return Way(lambda: sensitivity.print_costs(found), lambda: pictures.sensitivity_grid(found.found))


def _checkup(found: Any) -> Way:
    from klscale.show.doctor import print_checkup

    return Way(lambda: print_checkup(found))


WAYS: dict[str, Callable[[Any], Way]] = {
    "Comparison": _comparison, "Scale": _scale, "Trajectories": _trajectories, "Layers": _layers, "StoreMap": _map,
    "Placed": _placed, "Predicted": _predicted, "Scored": _scored, "PartCosts": _part_costs, "PMIComparison": _pmi,
    "PMIMap": _pmi_map, "AttributeTrajectories": _attribute_trajectories,
    "Checkup": _checkup,
}  # fmt: skip
"""Name of a result -> how it is shown."""
