"""The report: one self-contained HTML page with everything that a store holds on one text set.

`gather` makes the page's data, from the store alone: nothing is scored. `render` puts them into the page of `page/`,
with styles, scripts and plotly inlined once, so that it opens from disk and asks no network for anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import shlex
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from klscale.errors import InputError, StorageError, printable
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.bootstrap import RESAMPLES
from klscale.science.estimates import Estimate, critical_value
from klscale.science.kl import KL
from klscale.show import cautions, sentences
from klscale.show.names import common_prefix, short_names
from klscale.show.pictures import COLOURS, looks
from klscale.store.store import Entry, Store, now
from klscale.studies import lens, maps, scales, trajectories
from klscale.studies.lens import Layer
from klscale.studies.maps import ModelMap
from klscale.studies.scales import Setting
from klscale.studies.trajectories import Motion, Seeds, Trajectory
from klscale.vectors.vectors import Vectors

SECTIONS = ("summary", "scale", "map", "pairs", "trajectories", "layers", "quantization", "models", "method")
MAP = ("map", "pairs", "models", "method")
"""The sections of a page of a map alone."""
SCRIPTS = (
    "numbers", "dom", "data", "selection", "plots", "table", "summary", "scale", "map", "panel", "pairs",
    "trajectories", "layers", "quantization", "models", "downloads", "main",
)  # fmt: skip
"""Of the page, in the order in which they build on each other."""
ROUND_TRIP_LIMIT = 0.001
LABEL = 24
"""Characters of a name beside a mark."""
MOST_MODELS = 5000
"""Beyond, the page would be larger than a browser opens."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What a report is made of: models, their layers too, their map or why there is none, the scale, and the training
    runs among them. `notes` say what is not in it."""

    store: Store
    entries: Sequence[Entry]
    vectors: Vectors
    layers: Vectors
    map: ModelMap | None
    measured: Sequence[Setting]
    runs: Sequence[Trajectory]
    notes: Mapping[str, str]

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
    def found_layers(self) -> dict[str, list[Layer]]:
        """The layers of each model that was scored at them."""
        return lens.layers(self.layers) if len(self.layers) else {}

    @cached_property
    def ladders(self) -> dict[str, list[str]]:
        """The quantized variants of each model that has any."""
        return scales.ladders(self.vectors)

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
    """Everything that a store holds on these texts; the kept map, where there is one of all of its models. Nothing is
    written. Raises InputError for fewer than two models, and for too many."""
    progress.begin("reading the store")
    known = store.entries(texts.id)
    newest = {str(entry.ref): entry for entry in known}
    if len(newest) > MOST_MODELS:
        what = f"{store.location} holds {len(newest):,} models on {texts.name}."
        raise InputError(what, f"A report is of {MOST_MODELS:,} at most.", "klscale map --out FILE.csv  is of more.")
    everything, left_out = store.vectors(texts, [*newest.values()], layers=True).of_one_convention()
    vectors = everything.subset([ref for ref in everything.models if ref.layer is None])
    if len(vectors) < 2:
        what = f"{store.location} holds {len(vectors)} models on {texts.name} that can be compared."
        raise InputError(what, "A report compares two or more.", "klscale score REF...")
    entries = [newest[name] for name in vectors.names]
    progress.begin("KL of all pairs, and the scale")
    vectors.kl()
    measured = scales.measure(everything)
    seed = scales.worth_of_a_seed(measured, texts)
    runs = trajectories.analyse_runs(
        store, texts, entries, threshold=seed and seed[0], from_store_only=True, progress=progress
    )
    layers = everything.subset([ref for ref in everything.models if ref.layer is not None])
    notes = {"left out, of another convention": ", ".join(left_out)}
    damaged = len(store.vector_files(texts.id)) - len(known)
    if damaged:
        notes["files that cannot be read"] = f"{damaged:,}, left out; klscale check names them"
    model_map = None
    try:
        model_map = maps.kept_map(store, vectors, keep=False, progress=progress)
    except InputError as error:
        notes["no map"] = f"{error.what} {error.why}"
    return Contents(store, entries, vectors, layers, model_map, measured, runs, notes)


def of_map(store: Store, vectors: Vectors, found: ModelMap) -> Contents:
    """What a page of one map alone shows; `vectors` are those of its models, and may be more."""
    vectors = vectors.subset(found.models)
    newest = {str(entry.ref): entry for entry in store.entries(vectors.texts.id)}
    entries = [newest[name] for name in vectors.names]
    return Contents(store, entries, vectors, vectors.subset([]), found, scales.measure(vectors), (), {})


def gather(contents: Contents, sections: Sequence[str] = SECTIONS) -> dict[str, Any]:
    """The page's data, of these sections as far as there is anything in them. No number of the page is from elsewhere.

    A *column* is an array packed as base64 of little-endian values, or one constant; pairs are the upper triangle by
    rows. Everything else is plain JSON; a number that is not known is null.
    """
    vectors, texts = contents.vectors, contents.texts
    made = {name: make(contents) for name, make in _MAKERS.items() if name in sections}
    shown = [name for name in sections if made.get(name, ()) is not None]
    return {
        "title": f"{len(vectors):,} models on {texts.name}",
        "version": version("klscale"),
        "date": now(),
        "store": _public(contents.store.location),
        "options": _options(contents),
        "sections": shown,
        "texts": {
            "name": texts.name,
            "id": texts.id,
            "n_texts": len(texts),
            "mean_bytes": texts.mean_bytes,
            "clip": texts.clip,
            "n_documents": len(set(texts.document)) if texts.document else None,
            "external": texts.external,
        },
        "summary": [*_summary(contents, shown)],
        "prefix": contents.prefix,
        "names": list(contents.labels.values()),
        "refs": vectors.names,
        "labels": short_names([contents.labels[name] for name in vectors.names], LABEL),
        "palette": COLOURS,
        "models": _models(contents),
        "place": _place(contents),
        **made,
        "pairs": _pairs(contents),
    }


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


def _estimate(value: Estimate | KL | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"value": value.value, "standard_error": value.standard_error, "interval": list(value.interval)}


def _finite(value: Any) -> Any:
    """The same for JSON, which has no NaN and no NumPy."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, list | tuple | range):
        return [_finite(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------------------------------------------------- sections


def _summary(contents: Contents, sections: Sequence[str]) -> Iterator[dict[str, str]]:
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
        if section in sections:
            yield from ({"section": section, "text": text} for text in found)


def _models(contents: Contents) -> dict[str, Any]:
    """The attributes that any model has, in columns; and the look of each category in every picture."""
    vectors = contents.vectors
    run_of = {name: contents.shown(one.run.name) for one in contents.runs for name in one.run.names}
    runs = pd.Series([run_of.get(name) for name in vectors.names], vectors.attributes.index, dtype=object)
    attributes = vectors.attributes.assign(run=runs)
    kinds = {
        "family": "category", "type": "category", "run": "category", "parameters": "log", "seed": "category",
        "step": "steps", "tokens": "log", "stage": "category", "ingredient": "category",
        "quantization": "category", "parent": "text", "dtype": "category",
    }  # fmt: skip
    columns: list[dict[str, Any]] = []
    for key, kind in kinds.items():
        values = [None if pd.isna(value) else value for value in attributes[key]]
        if any(value is not None for value in values):
            values = [str(v) if v is not None and kind in ("category", "text") else v for v in values]
            columns.append({"key": key, "title": key, "kind": kind, "values": values})
    levels = [vectors.bits_per_byte(name) for name in vectors.names]
    columns.append({
        "key": "bits_per_byte", "title": "bits/byte", "kind": "estimate", "unit": "bits/byte",
        "values": [level.value for level in levels], "standard_errors": [level.standard_error for level in levels],
    })  # fmt: skip
    scored = [str(entry.metadata.get("date", ""))[:10] for entry in contents.entries]
    columns.append({"key": "scored", "title": "scored", "kind": "text", "values": scored})
    categories = {column["key"]: column["values"] for column in columns if column["kind"] == "category"}
    return {
        "length": len(vectors),
        "columns": columns,
        "looks": {
            key: {str(value): look._asdict() for value, look in looks(v for v in values if v is not None).items()}
            for key, values in categories.items()
        },
    }


def _pairs(contents: Contents) -> dict[str, Any]:
    vectors, matrix = contents.vectors, contents.vectors.kl()
    upper = np.triu_indices(len(vectors), k=1)
    flags = cautions.flags(cautions.Around(vectors).pairs(*upper))
    known = not np.isnan(matrix.value).any()  # else two models have no texts in common, and nothing is a tree
    clustering = maps.cluster(matrix) if known else None
    return {
        "value": _column(matrix.value[upper]),
        "standard_error": _column(matrix.standard_error[upper]),
        "critical_value": _column(critical_value(matrix.n_documents[upper])),
        "n_texts": _column(matrix.n_texts[upper]),
        "flags": _column(flags),
        "flag_texts": [
            [bit, cautions.BY_KEY[key].footnote] for key, bit in cautions.BITS.items() if (flags & bit).any()
        ],
        "order": range(len(vectors)) if clustering is None else clustering.order,
        "dendrogram": None if clustering is None else {"merges": clustering.merges[:, :3]},
    }


def _place(contents: Contents) -> dict[str, Any]:
    """What values are held against; pairs that make up a setting alone are held against the others."""
    vectors, texts, measured = contents.vectors, contents.texts, contents.measured
    matrix, own = vectors.kl(), {}
    for pair in {row.pairs[0] for row in measured if len(row.pairs) == 1}:
        if {*pair} <= {*vectors.names}:
            i, j = sorted(vectors.position(name) for name in pair)
            own[f"{i},{j}"] = scales.place(float(matrix.value[i, j]), texts, measured, pair)
    yardsticks = scales.yardsticks(texts, measured)
    return {"holds": bool(yardsticks), "yardsticks": [asdict(row) for row in yardsticks], "own": own}


def _scale(contents: Contents) -> dict[str, Any] | None:
    texts, measured = contents.texts, contents.measured
    if not measured:
        return None
    at = {name: place for place, name in enumerate([*contents.vectors.names, *contents.layers.names])}
    settings = []
    for row in measured:
        known = scales.published_beside(row.setting)
        ends = np.array([[at[a], at[b]] for a, b in row.pairs])
        settings.append({
            "setting": row.setting, "median": row.median, "standard_error": row.standard_error,
            "quartiles": row.quartiles, "interval": row.interval, "interval_kind": row.interval_kind,
            "n_models": row.n_models, "n_available": row.n_available,
            "a": _column(ends[:, 0]), "b": _column(ends[:, 1]),
            "values": _column(np.array(row.values)), "standard_errors": _column(np.array(row.standard_errors)),
            "in_range": _column(np.array(row.in_range)),
            "published": known and asdict(known),
        })  # fmt: skip
    floor = scales.noise_floor(contents.vectors)
    return {
        "settings": settings,
        "noise_floor": floor and replace(floor, largest_of=contents.shown(floor.largest_of)).sentence,
        "comparable": scales.published_holds(texts),
        "not_measured": [asdict(row) for row in scales.not_measured(measured)],
    }


def _map(contents: Contents) -> dict[str, Any] | None:
    if (found := contents.map) is None:
        return None
    matrix, vectors = contents.vectors.kl(), contents.vectors
    row_of = {name: row for row, name in enumerate(found.models)}
    at = [row_of[name] for name in vectors.names]
    threads = []
    for one in contents.runs:
        places = [vectors.position(name) for name in one.run.names]
        steps = [float(matrix.value[a, b]) for a, b in pairwise(places)]
        threads.append({"run": contents.shown(one.run.name), "models": places, "steps": one.run.steps, "kl": steps})
    off_map = {
        vectors.position(name): {
            "sentence": off.sentence, "unexplained": _estimate(off.unexplained), "nearest": contents.shown(off.nearest),
            "kl": _estimate(off.kl), "typical": off.typical,
        }
        for name, off in found.off_map.items()
    }  # fmt: skip
    return {
        "pca": {"points": found.pca[at], "share": found.share, "unit": "√(bits/byte)"},
        "tsne2": None if found.tsne is None else {"points": found.tsne[at]},
        "tsne3": None if found.tsne3 is None else {"points": found.tsne3[at]},
        "perplexity": found.perplexity,
        "notes": found.notes,
        "added": np.flatnonzero(found.added[at]),
        "off_map": off_map,
        "threads": threads,
    }


def _trajectories(contents: Contents) -> dict[str, Any] | None:
    if not contents.runs:
        return None
    at = {name: place for place, name in enumerate(contents.vectors.names)}
    return {
        "runs": [
            {"run": contents.shown(one.run.name), **_trajectory(one, at, contents.threshold_source)}
            for one in contents.runs
        ],
        "seeds": [
            {
                "runs": [contents.shown(name) for name in group.runs], "c_q": _estimate(group.c_q),
                "c_q_over_seeds": _estimate(group.c_q_over_seeds), "c_w": _estimate(group.c_w),
                "alpha": _estimate(group.alpha), "probability": group.probability,
            }
            for group in contents.seeds
        ],
    }  # fmt: skip


def _trajectory(one: Trajectory, at: Mapping[str, int], threshold_source: str) -> dict[str, Any]:
    rows, exponents, settled, paths = one.checkpoints, [], [], []
    for motion, name in zip(one.motions, ("c_q", "c_w"), strict=False):
        if motion.exponent is not None:
            exponents.append(_exponent(motion, name))
        if (found := motion.stabilisation) is not None:
            fields = ("step", "interval", "threshold", "thresholds", "steps", "low", "high", "total")
            settled.append({
                "space": motion.space,
                "threshold_source": threshold_source
                if motion is one.behaviour
                else "the same fraction of the squared distance from the first to the last",
                "unit": motion.unit,
                "first": found.step is not None and found.step == one.run.steps[0],
                **{field: getattr(found, field) for field in fields},
            })  # fmt: skip
        if motion.shape is not None:
            paths.append(_path(motion))
    return {
        "models": [at[name] for name in one.run.names],
        "steps": one.run.steps,
        "warmup": one.run.warmup,
        "warmup_known": one.run.warmup_known,
        "notes": one.run.notes,
        "bits_per_byte": [_estimate(row.bits_per_byte) for row in rows],
        "from_first": [_estimate(row.kl_from_first) for row in rows],
        "from_previous": [_estimate(row.kl_from_previous) for row in rows],
        "from_last": [_estimate(row.kl_from_last) for row in rows],
        "weights_from_first": [row.weights_from_first for row in rows],
        "weights_from_previous": [row.weights_from_previous for row in rows],
        "exponents": exponents,
        "alpha": _estimate(one.alpha),
        "probability": one.probability,
        "stabilisation": settled,
        "paths": paths,
    }


def _exponent(motion: Motion, name: str) -> dict[str, Any]:
    found = motion.exponent
    assert found is not None
    return {
        "space": motion.space, "name": name, "estimate": _estimate(found.value),
        "time_averaged": _estimate(found.time_averaged), "dimension": _estimate(found.dimension), "lags": found.lags,
        "lag": found.averages.lag, "mean_squared_distance": found.averages.mean_squared_distance,
        "intercept": found.averages.intercept, "heavy_tails": found.heavy_tails,
    }  # fmt: skip


def _path(motion: Motion) -> dict[str, Any]:
    shape = motion.shape
    assert shape is not None
    walk = shape.nulls["random walk"]
    return {
        "space": motion.space, "unit": f"√({motion.unit})", "steps": shape.steps, "pca": shape.pca, "tsne": shape.tsne,
        "share": shape.share, "walk_share": shape.walk_share, "winding": _estimate(shape.winding),
        "walk_winding_range": walk.winding_range, "walk": walk.path, "spiral": shape.spiral,
    }  # fmt: skip


def _layers(contents: Contents) -> dict[str, Any] | None:
    layers = contents.layers
    if not len(layers):
        return None
    found = contents.found_layers
    looked = looks(found)
    common = (~np.isnan(layers.log_likelihood)).all(axis=0).sum()
    points = maps.pca(layers) if common > 1 else None  # else no map shows them all
    models = []
    for model, rows in found.items():
        outputs = [row.to_output if row.layer < len(rows) - 1 else None for row in rows]
        models.append({
            "model": contents.labels.get(model, model),
            "look": looked[model]._asdict(),
            "layer": [row.layer for row in rows],
            "bits_per_byte": [_estimate(row.bits_per_byte) for row in rows],
            "from_previous": [_estimate(row.from_previous) for row in rows],
            "to_output": [_estimate(kl) for kl in outputs],
            "previous_in_range": [row.from_previous and row.from_previous.in_range for row in rows],
            "output_in_range": [kl and kl.in_range for kl in outputs],
            "points": points and points.points[[layers.position(row.ref) for row in rows]],
        })  # fmt: skip
    return {"models": models, "share": points and points.share}


def _quantization(contents: Contents) -> dict[str, Any] | None:
    vectors, around = contents.vectors, cautions.Around(contents.vectors)
    ladders = []
    for base, variants in contents.ladders.items():
        alike = vectors.subset([base, *variants]).on_common_texts()
        rows = []
        for n, name in enumerate(variants):
            measured = around.pair(base, name)
            step = None if n == 0 else alike.kl_difference((base, name), (base, variants[n - 1]))
            rows.append({
                "name": name,
                "kind": vectors.attributes["quantization"][name],
                "kl": _estimate(measured.kl),
                "more_than_previous": _estimate(step),
                "bits_per_byte_difference": _estimate(vectors.bits_per_byte(name, base)),
                "placed": scales.place(measured.kl.value, contents.texts, contents.measured, (base, name)),
                "flags": cautions.warnings(measured, contents.texts),
            })  # fmt: skip
        ladders.append({"base": base, "base_bits_per_byte": _estimate(vectors.bits_per_byte(base)), "rows": rows})
    return {"ladders": ladders} if ladders else None


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


_MAKERS: dict[str, Callable[[Contents], dict[str, Any] | None]] = {
    "scale": _scale,
    "map": _map,
    "trajectories": _trajectories,
    "layers": _layers,
    "quantization": _quantization,
    "method": _method,
}


# ---------------------------------------------------------------------------------------------------------- the page


def render(data: Mapping[str, Any]) -> str:
    """The page with these data, complete in itself. Its content security policy forbids every request, and every script
    but its own."""
    from plotly.offline import get_plotlyjs

    page = files("klscale").joinpath("show/page")

    def part(name: str) -> str:
        return page.joinpath(name).read_text(encoding="utf-8")

    scripts = [part(f"{name}.js") for name in SCRIPTS]
    plotly: str = get_plotlyjs()
    text = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False)
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in (plotly, *scripts))
    parts = {
        "title": html.escape(printable(f"klscale: {data['title']}")),
        "policy": f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'",
        "styles": part("page.css"),
        "data": text.replace("<", "\\u003c"),  # in a script element: no end tag, no comment
        "plotly": f"<script>{plotly}</script>",
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], part("page.html"))


def write(data: Mapping[str, Any], file: Path) -> int:
    """Write the page, whole or not at all; its size in bytes."""
    page = render(data).encode(errors="replace")
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(page)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{file} could not be written.", f"{error.strerror}.", "Another place: --out FILE"
        ) from error
    return len(page)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
