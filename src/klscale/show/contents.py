"""What a report is made of: everything that a store holds on one text set, or a map of it alone. Of very many models
it is a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from klscale.errors import InputError, counted, printable
from klscale.inputs.attributes import are_amounts, is_free, runs_of
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.reported import SPANS, WHOLE_TEXTS
from klscale.show.columns import number
from klscale.show.names import common_prefix
from klscale.show.pictures.model_maps import SPREAD
from klscale.show.pictures.style import amount
from klscale.store.store import Entry, Store
from klscale.studies import lens, maps, relatives, scales, trajectories
from klscale.studies.lens import Layer
from klscale.studies.maps import ModelMap
from klscale.studies.scales import Setting
from klscale.studies.trajectories import Seeds, Trajectory
from klscale.studies.verbs.scale import KeptScale, fit_layers
from klscale.vectors.vectors import Vectors

ATTRIBUTES = {
    "family": "category", "type": "category", "run": "category", "parameters": "log", "seed": "category",
    "step": "steps", "tokens": "log", "stage": "category", "ingredient": "category", "quantization": "category",
    "parent": "text", "dtype": "category",
}  # fmt: skip
"""Attributes on the page, and how each colours: categories apart, numbers by their log."""
MOST_MODELS = 5000
"""Beyond, the page would be larger than a browser opens: it is of a sample."""
SAMPLE = 1000
"""Models of a sample; the search finds the others too."""
AT_ONCE = 2000
"""Others that are read together."""


@dataclass(frozen=True, eq=False)
class Others:
    """Models (M,) that are not on a page of a sample: their `names`, the place of the `nearest` model that is, and the
    KL to it by whole texts in bits per byte with its standard error."""

    names: tuple[str, ...]
    nearest: NDArray[np.int64]
    kl: NDArray[np.float64]
    standard_error: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Contents:
    """What a report is made of: models and their layers, the map or none, the scale, and the training runs. `notes` say
    what is missing. Of very many models these are a sample, and `others` has the rest."""

    store: Store
    entries: Sequence[Entry]
    vectors: Vectors
    vectors_and_layers: Vectors
    map: ModelMap | None
    measured: Sequence[Setting]
    runs: Sequence[Trajectory]
    notes: Mapping[str, str]
    others: Others | None = None

    @cached_property
    def layers(self) -> Vectors:
        return self.vectors_and_layers.subset([ref for ref in self.vectors_and_layers.models if ref.layer is not None])

    @property
    def texts(self) -> TextSet:
        return self.vectors.texts

    @cached_property
    def labels(self) -> dict[str, str]:
        """Every model and layer as a reader sees it."""
        return {str(ref): ref.label for ref in (*self.vectors.models, *self.layers.models)}

    @cached_property
    def prefix(self) -> str:
        """What the names of all models begin with."""
        return common_prefix([self.labels[name] for name in self.vectors.names])

    @cached_property
    def attribute_columns(self) -> list[dict[str, Any]]:
        """What is known of each model, in columns."""
        return _attributes(self)

    @cached_property
    def found_layers(self) -> dict[str, list[Layer]]:
        """The layers of each model that was scored at them."""
        return lens.layers(self.layers) if len(self.layers) else {}

    @cached_property
    def ladders(self) -> dict[str, list[str]]:
        """The quantized variants of each model that has any."""
        return relatives.ladders(self.vectors)

    @cached_property
    def scale_by(self) -> str:
        """The estimator by which pairs are held against the scale: spans where all have them, else whole texts."""
        known = ~np.isnan(self.vectors.kl().value) & ~np.eye(len(self.vectors), dtype=bool)
        whole = np.isnan(self.vectors.reported_kl_matrix().by_spans[known]).any()
        return WHOLE_TEXTS if whole or all(row.by_spans is None for row in self.measured) else SPANS

    @cached_property
    def seeds(self) -> list[Seeds]:
        """The runs that differ in their seed alone."""
        return trajectories.over_seeds(self.runs)

    @cached_property
    def threshold_source(self) -> str:
        """Where the threshold of stabilisation is from."""
        seed = scales.worth_of_a_seed(self.measured, self.texts)
        return "" if seed is None else seed[1]

    def shown(self, name: str) -> str:
        """A model, or a run, without that."""
        if name in self.labels:
            return self.labels[name].removeprefix(self.prefix)
        return name.removeprefix(self.prefix.removeprefix("./"))  # the name of a run has no ./


def read_contents(store: Store, texts: TextSet, *, progress: Progress = SILENT) -> Contents:
    """Everything that a store holds on these texts; the kept map, where there is one of all of its models. No map is
    written. Of more than 5,000 models it holds a sample. Raises InputError for fewer than two models."""
    progress.begin("reading the store")
    known = store.entries(texts.id)
    newest, rest = {str(entry.ref): entry for entry in known}, list[Entry]()
    if len(newest) > MOST_MODELS:
        newest, rest = _sample(newest)
    layers = fit_layers(newest.values(), texts, progress)
    kept = None if rest else KeptScale(store, texts, layers=layers)
    everything, left_out = store.vectors(texts, [*newest.values()], layers=layers).of_one_convention()
    vectors = everything.without_layers()
    if len(vectors) < 2:
        what = f"{store.location} holds {counted(len(vectors), 'model')} on {texts.name} that can be compared."
        raise InputError(what, "A report compares two or more.", "klscale score REF...")
    entries = [newest[name] for name in vectors.names]
    progress.begin("KL of all pairs, and the scale")
    vectors.reported_kl_matrix()
    measured = scales.measure(everything) if kept is None else kept.of(everything)
    seed = scales.worth_of_a_seed(measured, texts)
    runs = trajectories.analyse_runs(
        store, texts, entries, threshold=seed and seed[0], from_store_only=True, progress=progress
    )
    notes = {"left out, of another convention": ", ".join(left_out)}
    damaged = len(store.vector_files(texts.id)) - len(known)
    if damaged:
        notes["files that cannot be read"] = f"{damaged:,}, left out; klscale check names them"
    model_map = None
    try:
        model_map = maps.kept_map(store, vectors, keep=False, progress=progress)
    except InputError as error:
        notes["no map"] = f"{error.what} {error.why}"
    others = _others(store, vectors, rest, progress) if rest else None
    notes |= _of_a_sample(vectors, rest)
    return Contents(store, entries, vectors, everything, model_map, measured, runs, notes, others)


def _sample(newest: Mapping[str, Entry]) -> tuple[dict[str, Entry], list[Entry]]:
    """Models for a page, by name: those of runs that are drawn at random; and the rest, of the same convention."""
    conventions = Counter(entry.metadata["convention"] for entry in newest.values())
    most = conventions.most_common(1)[0][0]
    entries = [newest[name] for name in sorted(newest) if newest[name].metadata["convention"] == most]
    known = [entry.metadata["attributes"] for entry in entries]
    groups: dict[Any, list[Entry]] = {}
    for entry, run, row in zip(entries, runs_of([entry.ref for entry in entries], known), known, strict=True):
        groups.setdefault((run, row.get("seed")), []).append(entry)
    chosen, names = list[Entry](), [*groups]
    for place in np.random.default_rng(0).permutation(len(names)):
        if len(chosen) + len(group := groups[names[place]]) <= SAMPLE:
            chosen += group
    found = {str(entry.ref): entry for entry in (chosen or entries[:SAMPLE])}
    return found, [entry for entry in entries if str(entry.ref) not in found]


def _of_a_sample(vectors: Vectors, rest: Sequence[Entry]) -> dict[str, str]:
    """What must be said where `vectors` are a sample and there is a `rest`."""
    said = (
        f"everything on this page is of {len(vectors):,} of {len(vectors) + len(rest):,} models, of runs and their "
        "variants as a whole, drawn at random; the search finds the others too, and klscale scale is of all"
    )
    return {"a sample": said} if rest else {}


def _others(store: Store, vectors: Vectors, rest: Sequence[Entry], progress: Progress) -> Others:
    """The nearest of `vectors` to each other model, which are read some at a time: by the texts that all of these have,
    and the KL by those of each two."""
    progress.begin("the other models", len(rest), "models")
    rest = sorted(rest, key=lambda entry: store.packs.of.get(entry.path, ""))
    parts, K = list[Others](), len(vectors)
    for start in range(0, len(rest), AT_ONCE):
        block = store.vectors(vectors.texts, rest[start : start + AT_ONCE])
        together = vectors.joined(block)
        points = together.coordinates()
        near = (np.einsum("kn,kn->k", points[:K], points[:K]) - 2 * (points[K:] @ points[:K].T)).argmin(axis=1)
        found = together.kl_pairs(np.stack([np.arange(K, len(together)), near], axis=1))
        parts.append(Others(block.names, near, found.value, found.standard_error))
        progress.advance(len(block))
    order = np.argsort(names := np.array([name for part in parts for name in part.names], dtype=object))
    near, kl, error = (
        np.concatenate([getattr(part, name) for part in parts])[order] for name in ("nearest", "kl", "standard_error")
    )
    return Others(tuple(names[order]), near, kl, error)


def contents_of_map(store: Store, vectors: Vectors, found: ModelMap) -> Contents:
    """What a page of one map alone shows; `vectors` are those of its models, and may be more. Of more than 5,000 models
    these are a sample, and those that were added to the map with the nearest of each."""
    newest = store.newest(vectors.texts.id)
    entries, rest = {name: newest[name] for name in found.models}, list[Entry]()
    if len(found) > MOST_MODELS:
        whole, (entries, rest) = entries, _sample(entries)
        entries |= {name: whole[name] for added, off in found.off_map.items() for name in (added, off.nearest)}
        rest = [entry for entry in rest if str(entry.ref) not in entries]
        found = found.subset([*entries])
    vectors = vectors.subset(found.models)
    others = _others(store, vectors, rest, SILENT) if rest else None
    measured, notes = scales.measure(vectors), _of_a_sample(vectors, rest)
    return Contents(store, [*entries.values()], vectors, vectors, found, measured, (), notes, others)


def _attributes(contents: Contents) -> list[dict[str, Any]]:
    """The attributes that any model has, in columns; bits per byte and the date last. `values` colour, sort and are
    searched, `shown` is what is read, where that differs."""
    vectors = contents.vectors
    run_of = {name: contents.shown(one.run.name) for one in contents.runs for name in one.run.names}
    runs = pd.Series([run_of.get(name) for name in vectors.names], vectors.attributes.index, dtype=object)
    attributes = vectors.attributes.assign(run=runs)
    columns: list[dict[str, Any]] = []
    free = {key: _kind(attributes[key]) for key in map(str, vectors.attributes) if is_free(key)}
    for key, kind in {**ATTRIBUTES, **free}.items():
        values = [None if pd.isna(value) else value for value in attributes[key]]
        if all(value is None for value in values):
            continue
        words = kind in ("category", "text")
        values = [printable(value) if words and value is not None else value for value in values]
        numbers = None if words else [None if value is None else amount(float(value)) for value in values]
        columns.append({"key": key, "title": key, "heading": key, "kind": kind, "values": values, "shown": numbers})
    levels = [vectors.bits_per_byte(name) for name in vectors.names]
    columns.append({
        "key": "bits_per_byte", "title": "bits/byte", "heading": "bits/byte ± SE", "kind": "estimate",
        "values": [level.value for level in levels], "standard_errors": [level.standard_error for level in levels],
        "shown": [number(level) for level in levels],
    })  # fmt: skip
    scored = [str(entry.metadata.get("date", ""))[:10] for entry in contents.entries]
    columns.append(
        {"key": "scored", "title": "scored", "heading": "scored", "kind": "text", "values": scored, "shown": None}
    )
    return columns


def _kind(values: pd.Series[Any]) -> str:
    """How a free attribute colours the page: words apart, numbers by their value, or its log where they differ much."""
    if not are_amounts(str(values.name), values):
        return "category"
    numbers = values.dropna()
    return "log" if min(numbers) > 0 and max(numbers) > SPREAD * min(numbers) else "number"
