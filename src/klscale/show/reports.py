"""What the report shows: tables and figures of `sections`, sentences, and the numbers that the page's scripts use."""

from __future__ import annotations

import base64
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.resources import files
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from klscale.errors import printable
from klscale.inputs.references import ModelRef
from klscale.science.bootstrap import RESAMPLES
from klscale.science.estimates import critical_value, log_interval
from klscale.science.kl import bits_per_byte_differences
from klscale.science.reported import ESTIMATORS, SPANS
from klscale.show import cautions, sections, sentences
from klscale.show.columns import Column
from klscale.show.contents import Contents
from klscale.show.maps import map_rows
from klscale.show.markup import csv_text
from klscale.show.names import short_names, told_apart
from klscale.show.pictures import group_looks, others_line
from klscale.show.sections import TITLES
from klscale.show.terminal import out, plain
from klscale.store.store import now
from klscale.studies import maps, scales
from klscale.vectors.vectors import Vectors

PLACED = 5_000
"""Pairs, some hundred bytes each, beyond which no sentence is written for each: its place among those of its own
setting, and which of the two models is better."""
MAP = ("map", "pairs", "models", "method")
"""The sections of a page of a map alone."""
TSNE_FROM = 30
"""Models from which on t-SNE is the first view of the map; principal components keep distances."""
ROUND_TRIP_LIMIT = 0.001
LABEL = 24
"""Characters of a name beside a mark."""


def gather(contents: Contents, wanted: Sequence[str] = (*TITLES,)) -> dict[str, Any]:
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
    parts["summary"] = sections.findings(summary)
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


def _models(contents: Contents) -> dict[str, Any]:
    """What is known of each model, and the look of each category in every picture."""
    columns = contents.attribute_columns
    categories = {column["key"]: column["values"] for column in columns if column["kind"] == "category"}
    kept = ("key", "title", "kind", "values", "shown")
    return {
        "length": len(contents.vectors),
        "columns": [{key: column[key] for key in kept} for column in columns],
        "legends": {
            key: _legend([value for value in values if value is not None]) for key, values in categories.items()
        },
    }


def _legend(groups: Sequence[Any]) -> dict[str, Any]:
    """The look of each group that the legend names, and its name there; and the line of all others."""
    known = [group for group in groups if group is not None]
    looks = group_looks(known)
    names = told_apart([str(group) for group in looks], 24 if len(looks) > 6 else 40)
    return {
        "looks": {
            str(group): {"colour": look.colour, "dark": look.dark, "symbol": look.symbol, "name": name}
            for (group, look), name in zip(looks.items(), names, strict=True)
        },
        "others": others_line(known, looks),
    }


def _pairs(contents: Contents) -> dict[str, Any]:
    vectors, matrix = contents.vectors, contents.vectors.reported_kl_matrix()
    upper = np.triu_indices(len(vectors), k=1)
    flags = cautions.flags(cautions.Around(vectors).pairs(*upper))
    known = not np.isnan(matrix.value).any()  # else two models have no texts in common, and nothing is a tree
    clustering = maps.cluster(matrix.value, vectors.names) if known else None
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
