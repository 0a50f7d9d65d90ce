"""Is every file of a store whole? Every kind of file is read as the commands read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from klscale.errors import UnreadableError
from klscale.inputs.texts import TextSet
from klscale.store import compact, drawn_records, measured_records, records, text_records, vector_records
from klscale.store.files import name_of, stem_of
from klscale.vectors.scores import Scores

if TYPE_CHECKING:
    from klscale.store.store import Store

KINDS = ("vectors", "compact", "draws", "maps", "noise", "exact", "summaries")
"""Directories of files that belong to a text set."""


def problems(store: Store) -> Iterator[tuple[str, str]]:
    """(file, problem or '') for every file of the store: does it read, and is it what its name and seal say?"""
    sizes: dict[str, int] = {}
    sets: dict[str, TextSet] = {}
    for path, problem, found in _read(store):
        kind, text_set, *_ = _names(store, path)
        if kind == "texts" and isinstance(found, dict):
            sizes[found["id"]] = found["n_texts"]
        if kind == "texts" and isinstance(found, TextSet):
            sets[found.id] = found
        if not problem and kind in KINDS and text_set not in sizes:
            problem = "has a text set that is not in the store"
        if not problem and kind == "vectors":
            scores, metadata = found
            problem = _wrong(store, path, scores, metadata, text_set, sizes[text_set], sets.get(text_set))
        if not problem and kind == "compact":
            wrong = _wrong_of_pack(store, found.values(), text_set, sizes[text_set], sets.get(text_set))
            problem = "; ".join(wrong)
        yield path, problem


def _wrong(
    store: Store,
    path: str,
    scores: Scores,
    metadata: dict[str, Any],
    text_set: str,
    n_texts: int,
    texts: TextSet | None,
) -> str:
    """What is wrong with a vector that reads, or ''."""
    problem = _missing(scores, metadata, n_texts)
    if texts is not None and not problem:
        problem, _ = _tried(partial(vector_records.spans_of, scores, metadata, texts))
    problem = problem or _without_draws(store, scores, metadata, text_set)
    if not problem and not math.isnan(scores.lost_cuts):
        store.lost_cuts[path] = scores.lost_cuts
    return problem


def _wrong_of_pack(
    store: Store, members: Iterable[vector_records.Packed], text_set: str, n_texts: int, texts: TextSet | None
) -> Iterator[str]:
    """What is wrong with each vector of a compact file."""
    for one in members:
        path = store.files.path("vectors", text_set, one.file)
        problem, scores = _tried(partial(vector_records.vector_of, one, n_texts))
        if problem := problem or _wrong(store, path, scores, one.metadata, text_set, n_texts, texts):
            yield f"{one.file} {problem}"


def _missing(scores: Scores, metadata: dict[str, Any], n_texts: int) -> str:
    """What a vector lacks of a set of so many texts."""
    missing = (metadata.get("first") or n_texts) - len(scores) - len(metadata.get("skipped") or ())
    return f"lacks {missing:,} texts" if missing > 0 else ""


def _without_draws(store: Store, scores: Scores, metadata: dict[str, Any], text_set: str) -> str:
    """What is wrong with the sampled tokens of a vector, as the store has the draws."""
    values, tokens = vector_records.sampled_of(scores), (metadata.get("sampled") or {}).get("tokens")
    if values is None:
        return ""
    if tokens is None:
        return "does not say which tokens its draws belong to"
    draws = store.draws(text_set, tokens)
    marks = {} if draws is None else {text: draws.mark(text) for text in draws.of}
    lost = sum(marks.get(text) != mark for text, mark in zip(values.text.tolist(), values.marks.tolist(), strict=True))
    return f"has sampled tokens of {lost:,} texts whose draws are not in the store" if lost else ""


def seal(store: Store) -> Iterator[str]:
    """Write every file that klscale 0.1.0 wrote, and that reads, anew with a seal; the files."""
    for file, problem, found in _read(store):
        kind, *names = _names(store, file)
        if kind == "texts" and not isinstance(found, TextSet):
            continue  # the head of a set is sealed with its lines
        path = store.text_files(found.id)[0] if kind == "texts" else file
        if problem or path not in store.unsealed:
            continue
        key = stem_of(file)
        if kind == "texts":
            store.put_texts(found)
        elif kind == "vectors":
            scores, metadata = found
            whole = {**metadata, "text_set": names[0], "parts": [*scores.parts]}
            store.files.write(path, vector_records.vector_to_parquet(scores, whole))
        elif kind == "weights":
            store.files.write(path, measured_records.weights_to_parquet(*found))
        elif kind == "maps":
            store.files.write(path, measured_records.map_to_parquet(*found))
        elif kind == "noise":
            store.write_noise_floor(names[0], key, found)
        elif kind == "exact":
            store.write_exact(names[0], key, found)
        else:
            store.files.write(path, vector_records.partial_to_parquet(found, names[1]))
        store.unsealed.discard(path)
        yield path


def _names(store: Store, path: str) -> list[str]:
    """The directories of the store that a file lies in, and its own name."""
    return path.removeprefix(store.files.root.rstrip("/") + "/").split("/")


def _read(store: Store) -> Iterator[tuple[str, str, Any]]:
    """(file, problem or '', what it holds) for every file of the store, text sets first."""

    def read(path: str, parse: Callable[..., Any], **own: Any) -> tuple[str, str, Any]:
        return path, *_tried(partial(store.read, path, partial(parse, **own)))

    for path in store.files.list("texts", suffix=".json"):
        yield from _read_texts(store, path, stem_of(path))
    for path, text_set in _by_text_set(store, "vectors", ".parquet"):
        yield path, *_tried(partial(store.read_vector, path, text_set))
    for path, text_set in _by_text_set(store, "compact", ".parquet"):
        yield read(path, vector_records.pack_from_parquet, text_set=text_set)
    for path, text_set in _by_text_set(store, "draws", ".parquet"):
        yield read(path, drawn_records.draws_from_parquet, text_set=text_set, tokens=stem_of(path), n_texts=None)
    for path in store.files.list("drawing", suffix=".parquet"):
        yield read(path, drawn_records.drawing_from_parquet, key=stem_of(path))
    for path in store.files.list("weights", suffix=".parquet"):
        yield read(path, measured_records.weights_from_parquet, file=name_of(path))
    for kind, suffix, parse in (
        ("maps", ".parquet", measured_records.map_from_parquet),
        ("noise", ".json", measured_records.noise_from_json),
        ("exact", ".json", measured_records.exact_from_json),
    ):
        for path, text_set in _by_text_set(store, kind, suffix):
            yield read(path, parse, text_set=text_set, key=stem_of(path))
    for path, text_set in _by_text_set(store, "summaries", ".parquet"):
        of_packs = name_of(path) == compact.SUMMARY
        summary = vector_records.packs_from_parquet if of_packs else vector_records.entries_from_parquet
        yield read(path, summary, text_set=text_set)
    for path, text_set in _by_text_set(store, "summaries", ".json"):
        yield read(path, measured_records.scale_from_json, text_set=text_set)
    for directory in store.files.list("partial"):
        text_set = name_of(directory)
        for work in store.files.list("partial", text_set):
            key = name_of(work)
            for path in store.files.list("partial", text_set, key, suffix=".parquet"):
                yield read(path, vector_records.partial_from_parquet, key=key, n_texts=None)


def _read_texts(store: Store, path: str, text_set: str) -> Iterator[tuple[str, str, Any]]:
    """A text set's head, and its lines where the head can be read."""
    problem, head = _tried(partial(store.read, path, partial(text_records.head_from_json, text_set=text_set)))
    if problem:
        yield path, problem, None
        return
    lines = path.removesuffix(".json") + ".jsonl"
    yield path, "", head
    yield lines, *_tried(partial(store.read, lines, partial(text_records.texts_from_lines, head=head)))


def _by_text_set(store: Store, kind: str, suffix: str) -> Iterator[tuple[str, str]]:
    """(file, text set) of each file of a kind."""
    for directory in store.files.list(kind):
        text_set = name_of(directory)
        for path in store.files.list(kind, text_set, suffix=suffix):
            yield path, text_set


def _tried(read: Callable[[], Any]) -> tuple[str, Any]:
    """(problem or '', what was read)."""
    try:
        return "", read()
    except (FileNotFoundError, UnreadableError) as error:
        return records.problem(error), None
