"""What `klscale map` prints: each model with its place and its nearest, then what to know of the map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from klscale.errors import InputError
from klscale.science.kl import KL
from klscale.show.tables import describe_texts, marks, number, out, plain, print_marks, table
from klscale.studies.maps import AXES, Clustering, ModelMap, cluster, nearest
from klscale.vectors.vectors import Vectors

ROWS = 40
"""Models beyond which a table for a person leaves some out."""
NEAREST = 10
"""Neighbours of each model in a record for a machine."""
ALL_PAIRS = 5000
"""Models beyond which KL of all pairs, and what comes from it, is left out: it would take gigabytes."""


def map_record(found: ModelMap, vectors: Vectors) -> dict[str, Any]:
    """The map for a machine. `vectors` hold its models, and may hold others."""
    vectors = vectors.subset(found.models)
    near, clusters, notes = _neighbourhood(vectors, NEAREST)
    return {
        "texts": vectors.texts.name,
        "text_set": vectors.texts.id,
        "n_texts": found.n_texts,
        "clip": vectors.texts.clip,
        "unit": "bits/byte",
        "unit_of_pca": "root bits/byte",
        "share": found.share.tolist(),
        "perplexity": found.perplexity,
        "typical_nearest_kl": found.typical,
        "notes": [*found.notes, *notes],
        "models": [
            {
                "model": name,
                "attributes": _attributes(vectors, name),
                "added": bool(found.added[k]),
                "pca": found.pca[k].tolist(),
                "tsne": None if found.tsne is None else found.tsne[k].tolist(),
                "tsne3": None if found.tsne3 is None else found.tsne3[k].tolist(),
                "nearest": [_neighbour(other, kl) for other, kl in near.get(name, ())],
                "off_map": _off_map(found, name),
            }
            for k, name in enumerate(found.models)
        ],
        "cluster_order": None if clusters is None else [found.models[k] for k in clusters.order],
        "cluster_merges": None if clusters is None else clusters.merges.tolist(),
    }


def _neighbourhood(
    vectors: Vectors, n: int
) -> tuple[Mapping[str, tuple[tuple[str, KL], ...]], Clustering | None, list[str]]:
    """The nearest of each model, the clusters, and what was left out."""
    if len(vectors) > ALL_PAIRS:
        return {}, None, [f"Neighbours and clusters are left out: {len(vectors):,} models have too many pairs."]
    matrix = vectors.kl()
    try:
        return nearest(matrix, n), cluster(matrix), []
    except InputError as error:  # two that were added at different times may share no texts
        return nearest(matrix, n), None, [f"No clusters. {error.what} {error.why}"]


def _attributes(vectors: Vectors, name: str) -> dict[str, Any]:
    return {str(key): value for key, value in vectors.attributes.loc[name].dropna().items()}


def _neighbour(name: str, kl: KL) -> dict[str, Any]:
    return {
        "model": name, "kl": kl.value, "standard_error": kl.standard_error, "interval": list(kl.interval),
        "uses_clip": kl.uses_clip, "in_range": kl.in_range,
    }  # fmt: skip


def _off_map(found: ModelMap, name: str) -> dict[str, Any] | None:
    off_map = found.off_map.get(name)
    return None if off_map is None else {**asdict(off_map), "sentence": off_map.sentence}


def map_columns(found: ModelMap, vectors: Vectors) -> dict[str, Any]:
    """A row a model, as columns for a table; `vectors` as in `map_record`. NaN where there is nothing."""
    vectors = vectors.subset(found.models)
    near, _, _ = _neighbourhood(vectors, 1)
    first = [near[name][0] if near.get(name) else None for name in found.models]
    off_map = [found.off_map.get(name) for name in found.models]
    columns: dict[str, Any] = {"model": list(found.models)}
    columns |= {str(name): values.tolist() for name, values in vectors.attributes.items()}
    columns["added"] = found.added
    for name, points, n in (("pca", found.pca, AXES), ("tsne", found.tsne, 2), ("tsne3", found.tsne3, 3)):
        places = np.full((len(found), n), np.nan) if points is None else points
        columns |= {f"{name}_{axis}": places[:, axis - 1] for axis in range(1, n + 1)}
    columns["nearest"] = [None if one is None else one[0] for one in first]
    columns["nearest_kl"] = [math.nan if one is None else one[1].value for one in first]
    columns["nearest_kl_standard_error"] = [math.nan if one is None else one[1].standard_error for one in first]
    columns["unexplained"] = [math.nan if one is None else one.unexplained.value for one in off_map]
    columns["unexplained_standard_error"] = [
        math.nan if one is None else one.unexplained.standard_error for one in off_map
    ]
    return columns


# ---------------------------------------------------------------------------------------------------- for a person


def print_map(found: ModelMap, vectors: Vectors) -> None:
    """Each model with its place and its nearest, in the order of clusters; `vectors` as in `map_record`."""
    vectors = vectors.subset(found.models)
    near, clusters, notes = _neighbourhood(vectors, 1)
    out.print(describe_texts(vectors.texts))
    places = ("t-SNE 1", "t-SNE 2") if found.tsne is not None else ()
    neighbour = ("nearest", "KL ± SE, bits/byte") if near else ()
    title = f"\n{len(found):,} models, those that are near each other side by side"
    columns = ("model", "PC 1", "PC 2", *places, *neighbour)
    right = [n for n, column in enumerate(columns) if column not in ("model", "nearest")]
    shown, shown_marks = table(*columns, right=right, title=title), ""
    order = np.arange(len(found)) if clusters is None else clusters.order
    kept = _shown(found, order)
    for k in kept:
        row = [plain(found.models[k]) + (" (added)" if found.added[k] else "")]
        row += [f"{value:.3f}" for value in found.pca[k, :2]]
        row += [] if found.tsne is None else [f"{value:.1f}" for value in found.tsne[k]]
        for other, kl in near.get(found.models[k], ()):
            row += [plain(other), number(kl) + marks(kl)]
            shown_marks += marks(kl)
        shown.add_row(*row)
    out.print(shown)
    if len(kept) < len(found):
        out.print(f"{len(kept)} of {len(found):,} models are shown; all: --json, or --out FILE.csv", style="dim")
    shares = " and ".join(f"{share:.0%}" for share in found.share[:2])
    of = "" if found.added.sum() == 0 else " of the models that the map was made of"
    out.print(
        f"PC 1 and 2: principal components, √(bits/byte), {shares} of the variance{of}; distances on them are at most "
        "those of the models." + (" t-SNE has no unit: it shows who is near whom." if places else ""),
        style="dim",
    )
    print_marks(vectors.texts, shown_marks)
    for note in (*found.notes, *notes):
        out.print(plain(note), style="yellow")
    for name, off_map in found.off_map.items():
        out.print(f"{plain(name)} was added. {plain(off_map.sentence)}", soft_wrap=True)


def _shown(found: ModelMap, order: Any) -> list[int]:
    """Which models a person is shown, in order: those that were added, and others spread evenly."""
    added = [int(k) for k in order if found.added[k]][:ROWS]
    others = [int(k) for k in order if not found.added[k]]
    places = np.linspace(0, len(others) - 1, min(len(others), ROWS - len(added))).round().astype(int)
    wanted = {*added, *(others[place] for place in places)}
    return [int(k) for k in order if k in wanted]
