"""What `--pmi` shows: squared distances of PMI vectors, beside KL given the prompts and of the responses alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from klscale.science.estimates import Estimate
from klscale.show import cautions
from klscale.show.cautions import Around, Measured
from klscale.show.columns import (
    BITS,
    HEAD,
    Column,
    estimate,
    flat,
    interval,
    nested,
    number,
    record,
    records,
    table,
    unit,
    within,
)
from klscale.show.files import save, save_table
from klscale.show.maps import AXES_OF_MAP, NEAREST, PLACE, ROWS, Placed, spread_place, what_axes_are
from klscale.show.pairs import ENDS, MANY, A, B, kl
from klscale.show.terminal import describe_texts, out, plain
from klscale.studies.pmi import PMIPair, PMIVectors
from klscale.studies.verbs.pmi import PMIComparison, PMIMap

NO_KL = "The distance of PMI vectors is no KL: it may be 0 between models whose KL is large."


@dataclass(frozen=True)
class _Pair:
    """Two models, with what cautions need of their KLs."""

    it: PMIPair
    given: Measured
    alone: Measured


PMI = (
    *within((A, B), lambda it: it.it),
    estimate("pmi_distance", "Squared distance of PMI vectors, Var(PMI of a - PMI of b) / (2 B ln 2). It is no KL.",
             value=lambda it: it.it.distance, title="PMI distance ± SE"),
    Column("", title="95 % interval", cell=lambda it: interval(it.it.distance), importance=0),
    kl("given", "KL of the responses given their prompts, from whole texts.", lambda it: it.given,
       title="KL given prompts"),
    kl("alone", "KL of the responses alone, from whole texts.", lambda it: it.alone, title="KL alone"),
    estimate("pmi_a", "Mean PMI of a: what the prompts save of its bits per byte.", value=lambda it: it.it.of_a),
    estimate("pmi_b", "The same of b.", value=lambda it: it.it.of_b),
    estimate("pmi_difference", "Mean PMI, b less a, paired.", value=lambda it: it.it.difference),
    unit(),
    *within(HEAD, lambda it: it.it),
)  # fmt: skip
"""Of a `_Pair`."""


def _rows(found: PMIComparison) -> list[_Pair]:
    given, alone = Around(found.vectors.given), Around(found.vectors.alone)
    return [_Pair(it, given.pair(it.a, it.b, it.given), alone.pair(it.a, it.b, it.alone)) for it in found.pairs]


def pmi_records(found: PMIComparison) -> list[dict[str, Any]]:
    """The JSON of each pair."""
    return records(PMI, _rows(found))


def save_pmi(found: PMIComparison, file: Path) -> None:
    """A row for each pair (.csv, .parquet)."""
    save_table(file, [flat(PMI, row) for row in _rows(found)])


def print_pmi(found: PMIComparison) -> None:
    """Pairs from the nearest to the farthest, both ends where they are many; mean PMI of each model; and what the
    distance is."""
    rows = sorted(_rows(found), key=lambda row: row.it.distance.value)
    out.print(describe_texts(found.vectors.given.texts))
    if len(rows) > MANY:
        out.print(f"{len(rows):,} pairs; the nearest and the farthest (all: --out FILE.csv)")
        rows = rows[:ENDS] + rows[-ENDS:]
    out.print(table(PMI, rows, "\nPMI, bits/byte"))
    _print_means(found.vectors, found.vectors.given.names)
    out.print("PMI: log p(response | prompt) - log p(response). KL by whole texts.", style="dim")
    out.print(NO_KL, style="yellow")
    shown = [measured for row in rows for measured in (row.given, row.alone)]
    cautions.print_footnotes(found.vectors.given.texts, shown)


def _print_means(vectors: PMIVectors, names: Sequence[str]) -> None:
    """Mean PMI of each model, and by how much it exceeds that of the first."""

    def against(name: str) -> str:
        return "" if name == names[0] else number(vectors.mean(name, names[0]), sign=True)

    columns = (
        Column("", title="model", cell=plain, words=True),
        Column("", title="mean PMI ± SE", cell=lambda name: number(vectors.mean(name))),
        Column("", title=f"less {plain(names[0])}", cell=against),
    )
    out.print(table(columns, names, "\nWhat the prompts save, bits/byte"))


# -------------------------------------------------------------------------------------------------------------- the map


@dataclass(frozen=True)
class _Near:
    """A model near another."""

    model: str
    distance: Estimate


@dataclass(frozen=True)
class _Place(Placed):
    """One on a map of PMI vectors."""

    mean: Estimate
    nearest: Sequence[_Near]


NEAR = (
    Column("model", "The other model."),
    estimate("pmi_distance", "Squared distance of the two PMI vectors. It is no KL.", value=lambda it: it.distance),
)
PMI_MODEL = (
    *PLACE,
    estimate("pmi", "Its mean PMI: what the prompts save of its bits per byte.", value=lambda it: it.mean),
    Column("nearest", "The nearest models, nearest first.", title="nearest", words=True, within=NEAR, many=True,
           cell=lambda it: plain(it.nearest[0].model) if it.nearest else "", importance=2),
    Column("", title="PMI distance ± SE, bits/byte",
           cell=lambda it: number(it.nearest[0].distance) if it.nearest else "", importance=2),
)  # fmt: skip
"""Of a `_Place`."""
PMI_MAP = (
    *AXES_OF_MAP,
    Column("typical_nearest_distance", "Median squared distance of a model to its nearest.", BITS,
           lambda it: it.found.typical),
    Column("notes", "What a reader must know of the map.", value=lambda it: [NO_KL, *it.found.notes]),
    Column("models", "Each model.", within=PMI_MODEL, many=True),
)  # fmt: skip


def _places(it: PMIMap) -> list[_Place]:
    near, known = it.vectors.nearest(NEAREST), it.vectors.given.known
    return [
        _Place(it.map, k, known[k], it.vectors.mean(name), [_Near(*one) for one in near[name]])
        for k, name in enumerate(it.map.models)
    ]


def pmi_map_record(it: PMIMap) -> dict[str, Any]:
    """The JSON of a map of PMI vectors."""
    return record(PMI_MAP, SimpleNamespace(texts=it.vectors.given.texts, found=it.map, models=_places(it)))


def save_pmi_map(it: PMIMap, file: Path, colour_by: str, method: Literal["tsne", "pca"]) -> None:
    """A row for each model (.csv, .parquet), or the picture (.png, .svg, .pdf)."""
    from klscale.show.pictures import model_map

    save(
        file,
        lambda: [_spread(row) for row in _places(it)],
        lambda: model_map(it.map, it.vectors.given, colour_by=colour_by, method=method, by_pmi=True),
    )


def _spread(row: _Place) -> dict[str, Any]:
    """A row of a table in a file."""
    first = row.nearest[0] if row.nearest else None
    made = {"model": row.model, **row.attributes, **spread_place(row.found, row.k), **flat(PMI_MODEL[-3:-2], row)}
    made["nearest"] = first and first.model
    return made | {nested("nearest", key): value for key, value in flat(NEAR[1:], first).items()}


def print_pmi_map(it: PMIMap) -> None:
    """Each model with its place, mean PMI and nearest, at most 40 of them."""
    out.print(describe_texts(it.vectors.given.texts))
    rows = _places(it)
    out.print(table(PMI_MODEL, rows[:ROWS], f"\n{len(rows):,} models by PMI vectors, bits/byte"))
    if len(rows) > ROWS:
        out.print(f"{ROWS} of {len(rows):,} models are shown; all: --json, or --out FILE.csv", style="dim")
    out.print(what_axes_are(it.map), style="dim")
    out.print(NO_KL, style="yellow")
    for note in it.map.notes:
        out.print(plain(note), style="yellow")
