"""The report: one self-contained HTML page with everything that a store holds on one text set.

`gather` takes everything from the store alone: nothing is scored. `render` makes the page of it and of `page/`, with
styles, scripts and plotly inlined, so that it opens from disk and asks no network for anything. What a reader does with
the page (choose models, search, sort, download) is in its scripts; its tables and figures are in `sections`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from klscale.errors import InputError, printable
from klscale.inputs.attributes import are_amounts, is_free, runs_of
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.bootstrap import RESAMPLES
from klscale.science.estimates import critical_value, log_interval
from klscale.science.kl import bits_per_byte_differences
from klscale.science.reported import ESTIMATORS, SPANS, WHOLE_TEXTS
from klscale.show import cautions, sections, sentences
from klscale.show.columns import Column, number
from klscale.show.files import whole
from klscale.show.maps import map_rows
from klscale.show.markup import csv_text
from klscale.show.names import common_prefix, short_names
from klscale.show.pictures import looks
from klscale.show.pictures.model_maps import SPREAD
from klscale.show.pictures.style import amount
from klscale.show.terminal import for_json, out, plain
from klscale.store.store import Entry, Store, now
from klscale.studies import lens, maps, relatives, scales, trajectories
from klscale.studies.lens import Layer
from klscale.studies.maps import ModelMap
from klscale.studies.scales import Setting
from klscale.studies.trajectories import Seeds, Trajectory
from klscale.studies.verbs.scale import KeptScale, fit_layers
from klscale.vectors.vectors import Vectors

SECTIONS = ("summary", "scale", "map", "pairs", "trajectories", "layers", "quantization", "models", "method")
TITLES = {
    "summary": "Findings",
    "scale": "The scale",
    "map": "The map",
    "pairs": "All pairs",
    "trajectories": "Training runs",
    "layers": "Layers",
    "quantization": "Quantization",
    "models": "Models",
    "method": "Method",
}  # fmt: skip
PLACED = 5_000
"""Pairs, some hundred bytes each, beyond which no sentence is written for each: its place among those of its own
setting, and which of the two models is better."""
MAP = ("map", "pairs", "models", "method")
"""The sections of a page of a map alone."""
SCRIPTS = (
    "numbers", "dom", "data", "selection", "plots", "tables", "panel", "ruler", "map", "heat", "runs", "downloads",
    "main",
)  # fmt: skip
"""Modules of the page, each after those that it imports."""
TSNE_FROM = 30
"""Models from which on t-SNE is the first view of the map; principal components keep distances."""
ROUND_TRIP_LIMIT = 0.001
ATTRIBUTES = {
    "family": "category", "type": "category", "run": "category", "parameters": "log", "seed": "category",
    "step": "steps", "tokens": "log", "stage": "category", "ingredient": "category", "quantization": "category",
    "parent": "text", "dtype": "category",
}  # fmt: skip
"""Attributes on the page, and how each colours: categories apart, numbers by their log."""
LABEL = 24
"""Characters of a name beside a mark."""
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


def read(store: Store, texts: TextSet, *, progress: Progress = SILENT) -> Contents:
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
        what = f"{store.location} holds {len(vectors)} models on {texts.name} that can be compared."
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


def of_map(store: Store, vectors: Vectors, found: ModelMap) -> Contents:
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


def gather(contents: Contents, wanted: Sequence[str] = SECTIONS) -> dict[str, Any]:
    """The page's data, of the `wanted` sections as far as there is anything in them. No number of the page is from
    elsewhere.

    A *column* is an array packed as base64 of little-endian values, or one constant; pairs are the upper triangle by
    rows. `parts` are sections as HTML, `files` tables as CSV. A number that is not known is null.
    """
    vectors, texts = contents.vectors, contents.texts
    there = {
        "scale": bool(contents.measured), "map": contents.map is not None, "trajectories": bool(contents.runs),
        "layers": len(contents.layers) > 0, "quantization": bool(contents.ladders),
    }  # fmt: skip
    shown = [name for name in wanted if there.get(name, True)]
    summary, said = [*_summary(contents, shown)], _method(contents)
    ruler = sections.ruler(contents) if "scale" in shown else None
    runs, slides = sections.runs(contents) if "trajectories" in shown else ("", [])
    makers = {
        "scale": sections.scale, "layers": sections.layers, "quantization": sections.quantization,
        "models": sections.models,
    }  # fmt: skip
    tables = {
        "scale": sections.scale_files, "map": _map_files, "trajectories": sections.run_files,
        "layers": sections.layer_files, "quantization": sections.quantization_files, "models": sections.model_files,
    }  # fmt: skip
    parts = {name: make(contents) for name, make in makers.items() if name in shown}
    parts |= {
        "trajectories": runs,
        "ruler": ruler[0] if ruler else "",
        "ruler_note": sections.ruler_note(contents),
        "method": sections.method(said),
    }
    parts["summary"] = sections.findings(summary, TITLES)
    words = [_word(name) for name in vectors.names]
    end = [" --"] if any(name.startswith("-") for name in vectors.names) else []
    return {
        "title": printable(f"{_counted_models(contents)} models on {texts.name}"),
        "version": version("klscale"),
        "date": now(),
        "facts": _facts(contents),
        "sections": shown,
        "summary": summary,
        "parts": parts,
        "files": dict(file for name, make in tables.items() if name in shown for file in make(contents))
        | dict(sections.method_files(said))
        | {"findings": csv_text(summary)},
        "names": [printable(name) for name in contents.labels.values()][: len(vectors)],
        "brief": [printable(contents.shown(name)) for name in vectors.names],
        "refs": vectors.names,
        "labels": short_names([contents.labels[name] for name in vectors.names], LABEL),
        "words": words,
        "command": " ".join(["klscale compare", *map(_word, _options(contents))]) + "".join(end),
        "chosen": _chosen(contents),
        "models": _models(contents),
        "place": _place(contents),
        "better": _better(contents.vectors),
        "settings": _settings(contents),
        "ruler": ruler[1] if ruler else None,
        "map": _map(contents) if "map" in shown else None,
        "runs": slides,
        "pairs": _pairs(contents),
        "others": None if contents.others is None else {
            "names": [printable(ModelRef.parse(name).label) for name in contents.others.names],
            "nearest": _column(contents.others.nearest),
            "kl": _column(contents.others.kl),
            "standard_error": _column(contents.others.standard_error),
        },
    }  # fmt: skip


def _counted_models(contents: Contents) -> str:
    n = len(contents.vectors)
    return f"{n:,}" if contents.others is None else f"{n:,} of {n + len(contents.others.names):,}"


def _chosen(contents: Contents) -> list[int]:
    """The pair that the page opens with: the two models that predict the texts best, of those that are neither
    quantized nor earlier checkpoints; else a model and its nearest variant."""
    vectors = contents.vectors
    earlier = {name for one in contents.runs for name in one.run.names[:-1]}
    kinds = vectors.attributes["quantization"]
    names = [name for name in vectors.names if kinds[name] is None and name not in earlier]
    if len(names) < 2:
        names = next(([base, variants[0]] for base, variants in contents.ladders.items()), [*vectors.names[-2:]])
    best = sorted(names, key=lambda name: vectors.bits_per_byte(name).value)[:2]
    return [vectors.position(name) for name in best]


def _settings(contents: Contents) -> list[dict[str, Any]]:
    """The pairs of each setting between models that a pair can be named by, in words; with the median where pairs are
    too many for a place of each."""
    found, vectors = [], contents.vectors
    few = _few(vectors)
    for row in contents.measured:
        if row.setting == "layer" or row.setting in scales.UNSPECIFIC:
            continue
        ends = np.array([[vectors.position(a), vectors.position(b)] for a, b in row.pairs])
        many = f": the median KL of {len(row.pairs):,} such pairs here is {row.median:.3g} bits/byte"
        beside = ": the only such pair here" if len(row.pairs) == 1 else "" if few else many
        found.append({
            "words": f"{sentences.of_setting(row.setting)}{beside}.",
            "a": _column(ends[:, 0]), "b": _column(ends[:, 1]),
        })  # fmt: skip
    return found


def _facts(contents: Contents) -> list[str]:
    """What the page is of, in a line."""
    texts = contents.texts
    documents = f" of {len(set(texts.document)):,} documents" if texts.document else ""
    clip = "no clip" if texts.clip is None else f"clip {texts.clip:.4g} nats"
    return [
        f"{len(texts):,} texts{documents}, mean {texts.mean_bytes:.1f} bytes, {clip}",
        f"text set {texts.id}", f"store {_public(contents.store.location)}",
        f"klscale {version('klscale')}, {now()[:10]}",
    ]  # fmt: skip


def _word(text: str) -> str:
    """`text` as one word of a shell command; what is not printable by its number."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = "".join(
        f"\\{mark}" if mark in "'\\" else mark if mark.isprintable() else f"\\U{ord(mark):08x}" for mark in text
    )
    return f"$'{escaped}'"


# ------------------------------------------------------------------------------------------------ packing of numbers


def _column(values: NDArray[Any]) -> dict[str, Any]:
    """An array for the page; one value where all are equal."""
    values = np.asarray(values)
    if len(values) and (values == values[0]).all():
        return {"constant": values[0].item(), "length": len(values)}
    for kind in ("uint8", "uint16", "uint32"):
        if values.dtype.kind in "biu" and int(values.max(initial=0)) <= np.iinfo(kind).max:
            return {kind: base64.b64encode(values.astype(np.dtype(kind).newbyteorder("<")).tobytes()).decode()}
    return {"float32": base64.b64encode(values.astype("<f4").tobytes()).decode()}


# ---------------------------------------------------------------------------------------------------------- sections


def _summary(contents: Contents, there: Sequence[str]) -> Iterator[dict[str, str]]:
    vectors, texts, shown = contents.vectors, contents.texts, contents.shown
    summary: dict[str, Iterable[str]] = {
        "models": sentences.of_models(vectors, shown),
        "pairs": sentences.of_pairs(vectors, shown),
        "scale": sentences.of_scale(contents.measured, texts),
        "trajectories": sentences.of_trajectories(contents.runs, contents.seeds, contents.threshold_source, shown),
        "layers": sentences.of_layers(contents.found_layers, shown),
        "quantization": sentences.of_ladders(vectors, contents.ladders, shown),
        "method": [f"Careful: {warning}." for warning in cautions.of_documents(texts)]
        + [f"{what.capitalize()}: {text}" for what, text in contents.notes.items() if text],
    }
    for section, found in summary.items():
        if section in there:
            yield from ({"section": section, "text": text} for text in found)


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


def _models(contents: Contents) -> dict[str, Any]:
    """What is known of each model, and the look of each category in every picture."""
    columns = contents.attribute_columns
    categories = {column["key"]: column["values"] for column in columns if column["kind"] == "category"}
    kept = ("key", "title", "kind", "values", "shown")
    return {
        "length": len(contents.vectors),
        "columns": [{key: column[key] for key in kept} for column in columns],
        "looks": {
            key: {
                str(value): {"colour": look.colour, "dark": look.dark, "symbol": look.symbol}
                for value, look in looks(v for v in values if v is not None).items()
            }
            for key, values in categories.items()
        },
    }


def _pairs(contents: Contents) -> dict[str, Any]:
    vectors, matrix = contents.vectors, contents.vectors.reported_kl_matrix()
    upper = np.triu_indices(len(vectors), k=1)
    flags = cautions.flags(cautions.Around(vectors).pairs(*upper))
    known = not np.isnan(matrix.value).any()  # else two models have no texts in common, and nothing is a tree
    clustering = maps.cluster(matrix) if known else None
    by = [ESTIMATORS.index(estimator) for estimator in matrix.estimator[upper]]
    whole = vectors.kl()
    return {
        "value": _column(matrix.value[upper]),
        "standard_error": _column(matrix.standard_error[upper]),
        "critical_value": _column(critical_value(matrix.n_documents[upper])),
        "widest": math.log(float(log_interval(1.0, math.inf, 1.0)[1])),
        "estimators": ESTIMATORS,
        "estimator": _column(np.array(by)),
        "whole_texts": _column(whole.value[upper]),
        "on_scale": _column(matrix.by_spans[upper] if contents.scale_by == SPANS else whole.value[upper]),
        "whole_texts_standard_error": _column(whole.standard_error[upper]),
        "n_texts": _column(matrix.n_texts[upper]),
        "flags": _column(flags),
        "flag_texts": [
            [bit, cautions.BY_KEY[key].footnote] for key, bit in cautions.BITS.items() if (flags & bit).any()
        ],
        "order": np.arange(len(vectors)) if clustering is None else clustering.order,
        "merges": [] if clustering is None else clustering.merges[:, :3],
    }


def _place(contents: Contents) -> dict[str, Any]:
    """What values are held against. Pairs of a setting are held against the others of it, among up to PLACED pairs;
    among more, only those that make up a setting alone are."""
    vectors, texts, measured = contents.vectors, contents.texts, contents.measured
    matrix, own = vectors.reported_kl_matrix(), dict[str, str | None]()
    alone = {row.pairs[0] for row in measured if len(row.pairs) == 1}
    for i, j in combinations(range(len(vectors)), 2) if _few(vectors) else _positions(vectors, alone):
        pair = vectors.names[i], vectors.names[j]
        setting = scales.setting_between(vectors, *pair)
        if setting is not None or not alone.isdisjoint({pair, pair[::-1]}):
            own[f"{i},{j}"] = scales.place(matrix.at(i, j), texts, measured, pair, setting)
    yardsticks = scales.yardsticks(texts, measured, estimator=contents.scale_by)
    by = contents.scale_by
    return {"holds": bool(yardsticks), "by": by, "yardsticks": [asdict(row) for row in yardsticks], "own": own}


def _few(vectors: Vectors) -> bool:
    """Whether sentences are written for each pair."""
    return len(vectors) * (len(vectors) - 1) // 2 <= PLACED


def _better(vectors: Vectors) -> list[tuple[int | None, str]]:
    """Which of two models is better, of each pair in the order of pairs; nothing where pairs are many."""
    pairs = np.stack(np.triu_indices(len(vectors) if _few(vectors) else 0, k=1), axis=1)
    texts = vectors.texts
    found = bits_per_byte_differences(vectors.log_likelihood, texts.bytes, pairs, documents=texts.document)
    return [(None, "") if one is None else sentences.which_is_better(one) for one in found]


def _positions(vectors: Vectors, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[int, int]]:
    """Where those of these pairs are whose models are both there, the first of the two first."""
    known = {name: n for n, name in enumerate(vectors.names)}
    for a, b in pairs:
        if a in known and b in known:
            i, j = sorted((known[a], known[b]))
            yield i, j


def _map(contents: Contents) -> dict[str, Any] | None:
    if contents.map is None:
        return None
    matrix, vectors = contents.vectors.reported_kl_matrix(), contents.vectors
    found = contents.map.subset(vectors.names)
    threads = []
    for one in contents.runs:
        places = [vectors.position(name) for name in one.run.names]
        threads.append({"models": places, "kl": [float(matrix.value[a, b]) for a, b in pairwise(places)]})
    return {
        "method": "tsne" if found.tsne is not None and len(vectors) >= TSNE_FROM else "pca",
        "pca": found.pca,
        "share": found.share,
        "unit": "√(bits/byte)",
        "tsne2": found.tsne,
        "tsne3": found.tsne3,
        "perplexity": found.perplexity,
        "notes": found.notes,
        "added": np.flatnonzero(found.added),
        "off_map": {vectors.position(name): off.sentence for name, off in found.off_map.items()},
        "threads": threads,
    }


def _map_files(contents: Contents) -> Iterator[tuple[str, str]]:
    assert contents.map is not None
    rows = map_rows(contents.map, contents.vectors)
    yield "map", csv_text(rows)


# ------------------------------------------------------------------------------------------- how the numbers were made


def _method(contents: Contents) -> dict[str, Any]:
    texts, vectors, known = contents.texts, contents.vectors, [entry.metadata for entry in contents.entries]
    documents = len(set(texts.document or ()))
    odd = [str(row["ref"]) for row in known if (row.get("not_round_trip") or 0) > ROUND_TRIP_LIMIT]
    versions = (row.get("versions") or {} for row in known)
    rows = {
        "texts": f"{texts.name} (id {texts.id}): {len(texts):,} texts, mean {texts.mean_bytes:.1f} bytes",
        "documents": f"{documents:,}; standard errors are clustered by document"
        if documents
        else "not known; texts count as independent of each other",
        "clip": _clip(vectors),
        "convention": "; ".join(sorted(set(map(str, vectors.attributes["convention"])))),
        "source of the log-likelihoods": _counted(row.get("source") for row in known),
        "dtype": _counted(row.get("dtype") for row in known),
        "device": _counted(row.get("device") for row in known),
        "scored": _between(str(row.get("date", ""))[:10] for row in known),
        "versions": _counted(", ".join(f"{name} {number}" for name, number in row.items()) for row in versions),
        "texts left out because too long": _counted(f"{len(row['skipped']):,}" for row in known if row.get("skipped")),
        "tokenizers that change more than 0.1 % of the texts": ", ".join(odd),
        **contents.notes,
        "bootstrap": f"{RESAMPLES} samples of the texts, of whole documents where texts share them",
        "this page": f"klscale {version('klscale')}; KL and standard errors to seven digits (float32)",
    }
    store = shlex.join(_options(contents))
    commands = ("kl {} --out kl.csv", "scale {} --json", "map {} --out map.csv", "report {}")
    said: dict[str, Any] = yaml.safe_load(files("klscale").joinpath("data/method.yaml").read_text(encoding="utf-8"))
    return {
        "rows": [[what, text] for what, text in rows.items() if text],
        "formulas": [[row["what"], row["formula"], row["source"]] for row in said["formulas"]],
        "footguns": said["footguns"],
        "commands": [f"klscale {command.format(store)}" for command in commands],
        "sources": [[row["title"], row["address"]] for row in said["sources"]],
    }


def _options(contents: Contents) -> list[str]:
    """What a command needs to mean these texts of this store."""
    return ["--store", _public(contents.store.location), "--texts", contents.texts.id]


def _public(location: str) -> str:
    """Where a store is, without the secrets that a URL may hold: the page is made to be sent."""
    return re.sub(r"://[^/]*@", "://", location)  # to the last @: a password may hold others


def _clip(vectors: Vectors) -> str:
    """What the clip is, and how many models it changes too much."""
    if (clip := vectors.texts.clip) is None:
        return "none: no value is frozen for these texts"
    moved = vectors.n_moved_by_clip()
    most = f", as it would for {moved} of {len(vectors)} models" if moved else ""
    return f"{clip:.6g} nats; pairs are left unclipped where it would move more than 5 % of a vector{most}"


def _counted(values: Iterable[Any]) -> str:
    """Each value with how many models have it."""
    counts = Counter(str(value) for value in values if value not in (None, ""))
    return "; ".join(f"{value} ({count:,})" for value, count in counts.most_common())


def _between(dates: Iterable[str]) -> str:
    known = sorted(filter(None, dates))
    return "" if not known else known[0] if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


# ---------------------------------------------------------------------------------------------------------- the page


def render(data: Mapping[str, Any]) -> str:
    """The page with these data, complete in itself. Its content security policy forbids every request, and every script
    but its own."""
    from plotly.offline import get_plotlyjs

    page, shown = files("klscale").joinpath("show/page"), data["sections"]

    def part(name: str) -> str:
        return page.joinpath(name).read_text(encoding="utf-8")

    plotly: str = get_plotlyjs()
    script = _bundle({name: part(f"{name}.js") for name in SCRIPTS})
    text = json.dumps(for_json({key: data[key] for key in data if key != "parts"}), ensure_ascii=False, allow_nan=False)
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in (plotly, script))
    parts = {
        "title": html.escape(data["title"]),
        "facts": "".join(f"<li>{html.escape(printable(fact))}</li>" for fact in data["facts"]),
        "policy": f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'",
        "styles": part("page.css"),
        "links": "".join(f'<a href="#{name}">{TITLES[name]}</a>' for name in shown if name != "map"),
        "data": text.replace("<", "\\u003c"),  # in a script element: no end tag, no comment
        "plotly": f"<script>{plotly}</script>",
        "scripts": f"<script>{script}</script>",
        **data["parts"],
    }
    template = re.sub(
        r"<!-- if (\w+) -->\n(.*?)<!-- end \1 -->\n",
        lambda match: match[2] if match[1] in shown or (data["parts"].get(match[1]) and match[1] not in TITLES) else "",
        part("page.html"),
        flags=re.DOTALL,
    )
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _bundle(modules: Mapping[str, str]) -> str:
    """Modules as one script: a function for each, which gives what the module exports to those that come later."""
    made = ['"use strict";', "const modules = {};"]
    for name, text in modules.items():
        names = re.findall(r"^export (?:async )?(?:function|const) (\w+)", text, flags=re.MULTILINE)
        text = re.sub(
            r"^import (\{[^}]*\}) from \"\./(\w+)\.js\";$", r"const \1 = modules.\2;", text, flags=re.MULTILINE
        )
        text = re.sub(r"^export ", "", text, flags=re.MULTILINE)
        made.append(f"modules.{name} = (() => {{\n{text}\nreturn {{ {', '.join(names)} }};\n}})();")
    return "\n".join(made)


REPORT = (
    Column("file", "The page."),
    Column("bytes", "Its size.", "bytes", lambda it: it.size),
    Column("sections", "The sections that it has.", value=lambda it: it.data["sections"]),
    Column("summary", "The findings, each with its section.", value=lambda it: it.data["summary"]),
)
"""Of a `Report`."""


def print_report(data: Mapping[str, Any], file: Path, size: int) -> None:
    """The findings of a report, and how to open it."""
    for row in data["summary"]:
        out.print(f"{plain(row['section'])}: {plain(row['text'])}")
    out.print(f"\nWrote {plain(file)} ({size / 1e6:.1f} MB). Open it in a browser:")
    out.print(file.resolve().as_uri(), soft_wrap=True)


def write(data: Mapping[str, Any], file: Path) -> int:
    """Write the page, whole or not at all; its size in bytes."""
    page = render(data).encode(errors="replace")
    whole(file, lambda temporary: temporary.write_bytes(page))
    return len(page)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
