"""What `klscale map` shows: each model with its place and its nearest, then what to know of the map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from klscale.errors import InputError
from klscale.show import cautions
from klscale.show.cautions import Around, Measured
from klscale.show.columns import BITS, HEAD, Column, estimate, flat, nested, record, table, unit, within
from klscale.show.files import save
from klscale.show.pairs import KL_COLUMNS, marked
from klscale.show.terminal import describe_texts, out, plain
from klscale.studies.maps import AXES, Clustering, ModelMap, OffMap, cluster, nearest, nearest_of_many
from klscale.vectors.vectors import Vectors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 40
"""Models beyond which the terminal leaves some out."""
NEAREST = 10
"""Neighbours of each model in the JSON."""
ALL_PAIRS = 5000
"""Models beyond which KL of all pairs would take gigabytes: there are no clusters, and one neighbour of each."""


@dataclass(frozen=True)
class _Neighbour:
    """A model near another."""

    model: str
    measured: Measured


@dataclass(frozen=True)
class _OffMap:
    """How far off the map an added model is."""

    found: OffMap
    measured: Measured


@dataclass(frozen=True)
class Placed:
    """A model on a map, number `k`, and what is known of it."""

    found: ModelMap
    k: int
    attributes: Mapping[str, Any]

    @property
    def model(self) -> str:
        return self.found.models[self.k]

    def place(self, points: Any) -> Any:
        return None if points is None else points[self.k]


@dataclass(frozen=True)
class _Row(Placed):
    """One on a map of log-likelihoods."""

    nearest: Sequence[_Neighbour]
    off_map: _OffMap | None


def _place(part: str, axis: int, digits: int) -> Any:
    return lambda it: "" if (points := getattr(it.found, part)) is None else f"{points[it.k, axis]:.{digits}f}"


def _plane(it: Any) -> str:
    return "" if it.found.tsne is None else "{:.1f}, {:.1f}".format(*it.found.tsne[it.k, :2])


NEIGHBOUR = (Column("model", "The other model."), *within(KL_COLUMNS, lambda it: it.measured))
OFF_MAP = (
    estimate(
        "unexplained",
        "Squared distance from the nearest point that combinations of the map's own models reach.",
        value=lambda it: it.found.unexplained,
    ),
    Column("nearest", "The nearest model of the map's own.", value=lambda it: it.found.nearest),
    *within(KL_COLUMNS, lambda it: it.measured),
    Column(
        "typical_nearest_kl",
        "Median KL, on the map's own models, of a model to its nearest.",
        BITS,
        lambda it: it.found.typical,
    ),
    Column("sentence", "The same in words.", value=lambda it: it.found.sentence),
)
PLACE = (
    Column(
        "model",
        "The model.",
        title="model",
        cell=lambda it: plain(it.model) + (" (added)" if it.found.added[it.k] else ""),
        words=True,
    ),
    Column("attributes", "What is known of it, by name: family, parameters, step, ..."),
    Column("pca", "Its place by principal components.", "√(bits/byte)", lambda it: it.place(it.found.pca)),
    Column("", title="PC 1", cell=_place("pca", 0, 3)),
    Column("", title="PC 2", cell=_place("pca", 1, 3)),
    Column("tsne", "Its place by t-SNE in the plane; null for few models.", "", lambda it: it.place(it.found.tsne)),
    Column("", title="t-SNE", cell=_plane, importance=0),
    Column("tsne3", "Its place by t-SNE in space; null for few models.", "", lambda it: it.place(it.found.tsne3)),
)
"""Of a `Placed`."""
MODEL = (
    *PLACE,
    Column("added", "Whether it was added to a kept map.", value=lambda it: bool(it.found.added[it.k])),
    Column(
        "nearest",
        "The nearest models, nearest first.",
        title="nearest",
        cell=lambda it: plain(it.nearest[0].model) if it.nearest else "",
        words=True,
        importance=2,
        within=NEIGHBOUR,
        many=True,
    ),
    Column(
        "",
        title="KL ± SE, bits/byte",
        cell=lambda it: marked(it.nearest[0].measured) if it.nearest else "",
        importance=2,
    ),
    Column("off_map", "Of an added model, how far it is from the others; else null.", within=OFF_MAP),
)
"""Of a `_Row`."""

AXES_OF_MAP = (
    *HEAD,
    Column("n_texts", "Texts that all models of the map have.", "texts", lambda it: it.found.n_texts),
    unit(),
    Column("unit_of_pca", "Unit of the places by principal components.", value=lambda _: "root bits/byte"),
    Column("share", "Share of the variance on each principal component.", "share", lambda it: it.found.share),
    Column("perplexity", "Perplexity of t-SNE; null where there is none.", "models", lambda it: it.found.perplexity),
)
"""Of any map: its texts and its axes."""
MAP = (
    *AXES_OF_MAP,
    Column(
        "typical_nearest_kl",
        "Median KL of a model to its nearest.",
        BITS,
        lambda it: it.found.typical,
    ),
    Column("notes", "What a reader must know of the map."),
    Column("models", "Each model.", value=lambda it: it.rows, within=MODEL, many=True),
    Column("cluster_order", "Models in the order of clusters; null where there are none."),
    Column(
        "cluster_merges",
        "Merges of clusters, as scipy's linkage has them; heights in √(bits/byte).",
        "√(bits/byte)",
    ),
)


def _rows(
    found: ModelMap, vectors: Vectors, n: int, chosen: Sequence[int] | None = None
) -> tuple[list[_Row], list[str]]:
    """Each model with its n nearest, or those that are `chosen`; and notes. `vectors` are those of the map."""
    around = Around(vectors)
    chosen = range(len(found)) if chosen is None else chosen
    near, notes = _neighbours(vectors, n, chosen)

    def off_map(name: str) -> _OffMap | None:
        if (off := found.off_map.get(name)) is None:
            return None
        pair = name, off.nearest
        return _OffMap(off, around.pair(*pair, vectors.subset(pair).reported_kl(*pair)))

    rows = []
    for k in chosen:
        name = found.models[k]
        neighbours = [_Neighbour(other, around.pair(name, other, kl)) for other, kl in near.get(name, ())]
        rows.append(_Row(found, k, vectors.known[k], neighbours, off_map(name)))
    return rows, notes


def _neighbours(vectors: Vectors, n: int, chosen: Sequence[int]) -> tuple[Mapping[str, Iterable[Any]], list[str]]:
    if len(vectors) <= ALL_PAIRS:
        return nearest(vectors, n, chosen), []
    rows, names = np.array(chosen), vectors.names
    places, kl = nearest_of_many(vectors, rows if len(chosen) < len(vectors) else None)
    near = {names[row]: ((names[place], kl[at]),) for at, (row, place) in enumerate(zip(rows, places, strict=True))}
    return near, [f"No clusters, and one neighbour of each: {len(vectors):,} models have too many pairs."]


def _clusters(vectors: Vectors) -> tuple[Clustering | None, list[str]]:
    if len(vectors) > ALL_PAIRS:
        return None, []
    try:
        return cluster(vectors.kl_values(), vectors.names), []
    except InputError as error:  # two that were added at different times may share no texts
        return None, [f"No clusters. {error.what} {error.why}"]


def map_record(found: ModelMap, vectors: Vectors) -> dict[str, Any]:
    """The map. `vectors` hold its models, and may hold others."""
    rows, notes = _rows(found, vectors := vectors.subset(found.models), NEAREST)
    clusters, unclustered = _clusters(vectors)
    return record(
        MAP,
        SimpleNamespace(
            texts=vectors.texts,
            found=found,
            rows=rows,
            notes=[*found.notes, *notes, *unclustered],
            cluster_order=None if clusters is None else [found.models[k] for k in clusters.order],
            cluster_merges=None if clusters is None else clusters.merges,
        ),
    )


def map_rows(found: ModelMap, vectors: Vectors) -> list[dict[str, Any]]:
    """A row a model, for a table in a file; `vectors` as in `map_record`. Lists are spread: `pca_1`, `tsne_2`, ..."""
    rows, _ = _rows(found, vectors := vectors.subset(found.models), 1)
    names = [str(name) for name in vectors.attributes]

    def spread(row: _Row) -> dict[str, Any]:
        made: dict[str, Any] = {"model": row.model, **{name: row.attributes.get(name) for name in names}}
        made["added"] = bool(found.added[row.k])
        made |= spread_place(found, row.k)
        first = row.nearest[0] if row.nearest else None
        made["nearest"] = first and first.model
        made |= {nested("nearest_kl", key): value for key, value in flat(KL_COLUMNS, first and first.measured).items()}
        return made | flat(OFF_MAP[:1], row.off_map)

    return [spread(row) for row in rows]


def save_map(found: ModelMap, vectors: Vectors, file: Path, colour_by: str, method: Literal["tsne", "pca"]) -> None:
    """Write a table with a row for each model, or the picture, by the file's ending; `vectors` as in `map_record`."""

    def picture() -> Figure:
        from klscale.show.pictures import model_map

        return model_map(found, vectors, colour_by=colour_by, method=method)

    save(file, lambda: map_rows(found, vectors), picture)


def spread_place(found: ModelMap, k: int) -> dict[str, float]:
    """The place of a model as columns of a table in a file: `pca_1`, `tsne_2`, ..."""
    made = dict[str, float]()
    for part, points, n in (("pca", found.pca, AXES), ("tsne", found.tsne, 2), ("tsne3", found.tsne3, 3)):
        place = np.full(n, np.nan) if points is None else points[k]
        made |= {f"{part}_{axis}": float(place[axis - 1]) for axis in range(1, n + 1)}
    return made


def what_axes_are(found: ModelMap) -> str:
    """A sentence on the axes of a map."""
    shares = " and ".join(f"{share:.0%}" for share in found.share[:2])
    of = "" if found.added.sum() == 0 else " of the models that the map was made of"
    return (
        f"PC 1 and 2: principal components, √(bits/byte), {shares} of the variance{of}; distances on them are at most "
        "those of the models."
    ) + ("" if found.tsne is None else " t-SNE has no unit: it shows which models are near each other.")


def print_map(found: ModelMap, vectors: Vectors) -> None:
    """Each model with its place and its nearest, in the order of clusters; `vectors` as in `map_record`."""
    vectors = vectors.subset(found.models)
    out.print(describe_texts(vectors.texts))
    clusters, unclustered = _clusters(vectors)
    order = np.arange(len(found)) if clusters is None else clusters.order
    shown, notes = _rows(found, vectors, 1, _shown(found, order))
    in_order = "" if clusters is None else ", those that are near each other side by side"
    out.print(table(MODEL, shown, f"\n{len(found):,} models{in_order}"))
    if len(shown) < len(found):
        out.print(f"{len(shown)} of {len(found):,} models are shown; all: --json, or --out FILE.csv", style="dim")
    out.print(what_axes_are(found), style="dim")
    cautions.print_footnotes(vectors.texts, (one.measured for row in shown for one in row.nearest[:1]))
    for note in (*found.notes, *notes, *unclustered):
        out.print(plain(note), style="yellow")
    for name, off_map in found.off_map.items():
        out.print(f"{plain(name)} was added. {plain(off_map.sentence)}", soft_wrap=True)


def _shown(found: ModelMap, order: Any) -> list[int]:
    """Which models the terminal shows, in order: those that were added, and others spread evenly."""
    added = [int(k) for k in order if found.added[k]][:ROWS]
    others = [int(k) for k in order if not found.added[k]]
    places = np.linspace(0, len(others) - 1, min(len(others), ROWS - len(added))).round().astype(int)
    wanted = {*added, *(others[place] for place in places)}
    return [int(k) for k in order if k in wanted]
