"""Vectors as a store keeps them, whole, unfinished or many in a file, and lists of what is known of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from klscale.errors import UnreadableError
from klscale.inputs.attributes import NUMBERS, is_free
from klscale.inputs.spans import are_packed
from klscale.inputs.texts import TextSet
from klscale.store.records import (
    CHANGED,
    COUNT,
    FILE,
    KEY,
    LIST,
    MAPPING,
    MOST_DRAWS,
    NUMBER,
    ROUNDING,
    TEXT,
    UNREADABLE,
    Field,
    from_parquet,
    is_count,
    is_finite,
    is_key,
    is_reference,
    problem,
    require_fields,
    require_own,
    require_table,
    required,
    to_parquet,
)
from klscale.vectors.draws import SampledValues
from klscale.vectors.scores import DRAWS, GIVEN, LOWEST, PARTS, SAMPLED, SPANS, TOP, Part, Ragged, Scores, Values
from klscale.vectors.vectors import COLUMNS, PackedSpans

VECTOR = pa.schema([("text", pa.int32()), ("log_likelihood", pa.float64()), ("n_tokens", pa.int32())])
ENTRIES = pa.schema([("file", pa.string()), ("stamp", pa.string()), ("metadata", pa.string())])
PACKS = pa.schema(
    [("pack", pa.string()), ("stamp", pa.string()), ("n_bytes", pa.int64()), ("file", pa.string()),
     ("metadata", pa.string())]
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- vectors

ENTRY = {
    "ref": required(Field("a reference to a model", is_reference)),
    "key": required(KEY),
    "attributes": required(MAPPING),
    "convention": required(TEXT),
    "checksum": required(TEXT),
    "text_set": KEY,
    "source": TEXT,
    "dtype": TEXT,
    "device": TEXT,
    "identity": TEXT,
    "content": TEXT,
    "date": TEXT,
    "first": Field("a whole number of at least 1", lambda value: is_count(value) and value > 0),
    "skipped": Field("a list of texts", lambda value: isinstance(value, list) and all(map(is_count, value))),
    "n_layers": COUNT,
    "not_round_trip": NUMBER,
    "not_round_trip_kinds": Field(
        "counts", lambda value: isinstance(value, dict) and all(map(is_count, value.values()))
    ),
    "special_token_texts": COUNT,
    "template": MAPPING,
    "versions": MAPPING,
    "weights": LIST,
    "size": Field("an object of counts", lambda it: isinstance(it, dict) and all(map(is_count, it.values()))),
    "spans": MAPPING,
    "sampled": Field("an object that names its 'tokens'", lambda it: isinstance(it, dict) and is_key(it.get("tokens"))),
}
"""What is kept beside a vector; `ATTRIBUTE` says what its attributes are. Other fields are kept as they are."""
ATTRIBUTE = {
    **dict.fromkeys(("family", "type", "parent", "quantization", "dtype"), TEXT),
    **dict.fromkeys(NUMBERS, Field("a number from 0 to 2**63", lambda value: is_finite(value) and 0 <= value < 2**63)),
}


def require_entry(metadata: Mapping[str, Any]) -> None:
    """Raise UnreadableError for metadata that no vector can have."""
    require_fields(metadata, ENTRY)
    require_fields(metadata["attributes"], ATTRIBUTE)


def attributes_of(
    metadata: Mapping[str, Any], noise_floor: float | None = None, layer: int | None = None
) -> dict[str, Any]:
    """What is known of a model from its vector's metadata: a row for `vectors.attribute_table`."""
    given = metadata["attributes"]
    free = {key: value for key, value in given.items() if is_free(key, value)}
    known = {key: {**given, **metadata}.get(key) for key in COLUMNS}
    return {**known, **free, **(metadata.get("size") or {}), "layer": layer, "noise_floor": noise_floor}


def vector_to_parquet(scores: Scores, metadata: Mapping[str, Any]) -> bytes:
    """A vector with its metadata; the checksum of its values is added to that."""
    return _scores_to_parquet("vector", scores, metadata)


def vector_from_parquet(data: bytes, text_set: str, file: str, n_texts: int | None) -> tuple[Scores, dict[str, Any]]:
    """A vector and its metadata, from a file of this name under this text set; raises one of UNREADABLE."""
    table, metadata = from_parquet("vector", data, most_rows=n_texts)
    _require_vector(metadata, text_set, file)
    return vector_from_table(table, metadata, n_texts), metadata


def vector_from_table(table: Any, metadata: Mapping[str, Any], n_texts: int | None) -> Scores:
    """The values of a vector with this metadata; raises UnreadableError where the table does not hold them."""
    scores = scores_from_table(table, metadata.get("checksum"), n_texts)
    layers = scores.layers
    if metadata.get("n_layers", 0) != (0 if layers is None else layers.shape[1]):
        raise UnreadableError("does not hold the layers that it names")
    return scores


@dataclass(frozen=True)
class Packed:
    """One of many vectors in a file: the name of the file that it had, its values (one row a text), its metadata."""

    file: str
    table: Any
    metadata: dict[str, Any]


def vector_of(one: Packed, n_texts: int | None) -> Scores:
    """The values of a vector in a file of many; raises UnreadableError where it does not hold them."""
    try:
        return vector_from_table(one.table, one.metadata, n_texts)
    except UNREADABLE as error:
        raise UnreadableError(problem(error)) from error


def pack_to_parquet(members: Sequence[Packed], text_set: str) -> bytes:
    """Vectors with the same columns in one file, one after another. `model` and `key` stand before their columns."""
    tables = []
    for one in members:
        names = [pa.repeat(pa.scalar(str(one.metadata[name])), len(one.table)) for name in ("ref", "key")]
        tables.append(pa.table([*names, *one.table.columns], names=["model", "key", *one.table.column_names]))
    about = [{"file": one.file, "n_texts": len(one.table), "metadata": one.metadata} for one in members]
    return to_parquet("pack", pa.concat_tables(tables).combine_chunks(), {"text_set": text_set, "vectors": about})


def pack_from_parquet(data: bytes, text_set: str) -> dict[str, Packed]:
    """What `pack_to_parquet` was given, by the names of the files; raises one of UNREADABLE. Values are not checked
    before `vector_from_table` takes them."""
    table, about = from_parquet("pack", data, without=("model", "key"))
    require_fields(about, {"text_set": required(KEY), "vectors": required(LIST)})
    require_own(about, text_set=text_set)
    found, start = dict[str, Packed](), 0
    for one in about["vectors"]:
        if not isinstance(one, dict):
            raise UnreadableError("has a vector that says nothing of itself")
        require_fields(one, {"file": required(FILE), "n_texts": required(COUNT), "metadata": required(MAPPING)})
        _require_vector(one["metadata"], text_set, one["file"])
        found[one["file"]] = Packed(one["file"], table.slice(start, one["n_texts"]), one["metadata"])
        start += one["n_texts"]
    if start != len(table) or len(found) < len(about["vectors"]):
        raise UnreadableError("has rows of no vector, or a vector twice")
    return found


def about_spans(texts: TextSet, scores: Scores) -> dict[str, Any]:
    """What is kept of a vector's spans beside their values: the rule of the cuts, and the share that is lost."""
    assert texts.cuts is not None
    return {"rule": texts.cuts.rule, "mean_bytes": texts.cuts.mean_bytes, "lost_cuts": scores.lost_cuts}


def entries_to_parquet(known: Mapping[str, tuple[str, Mapping[str, Any]]], text_set: str) -> bytes:
    """What the files of vectors say of themselves: name of a file -> its stamp, and its metadata."""
    stamps, metadata = [stamp for stamp, _ in known.values()], [json.dumps(about) for _, about in known.values()]
    return to_parquet("entries", pa.table([[*known], stamps, metadata], schema=ENTRIES), {"text_set": text_set})


def entries_from_parquet(data: bytes, text_set: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """What `entries_to_parquet` was given; raises one of UNREADABLE."""
    table, about = from_parquet("entries", data)
    require_table(table, ENTRIES)
    require_fields(about, {"text_set": required(KEY)})
    require_own(about, text_set=text_set)
    found = {}
    for file, stamp, metadata in zip(*(column.to_pylist() for column in table.columns), strict=True):
        found[file] = stamp, json.loads(metadata)
        _require_vector(found[file][1], text_set, file)
    return found


def packs_to_parquet(known: Mapping[str, tuple[str, int, Mapping[str, Any]]], text_set: str) -> bytes:
    """What compact files say of their vectors: name of a compact file -> its stamp, the bytes of its values, and the
    metadata of each vector by the name of the file that it had."""
    rows = [
        (pack, stamp, n_bytes, file, json.dumps(about))
        for pack, (stamp, n_bytes, vectors) in known.items()
        for file, about in vectors.items()
    ]
    table = pa.table([[*column] for column in zip(*rows, strict=True)] or [[]] * len(PACKS), schema=PACKS)
    return to_parquet("packs", table, {"text_set": text_set})


def packs_from_parquet(data: bytes, text_set: str) -> dict[str, tuple[str, int, dict[str, Any]]]:
    """What `packs_to_parquet` was given; raises one of UNREADABLE."""
    table, about = from_parquet("packs", data)
    require_table(table, PACKS)
    require_fields(about, {"text_set": required(KEY)})
    require_own(about, text_set=text_set)
    found = dict[str, tuple[str, int, dict[str, Any]]]()
    for pack, stamp, n_bytes, file, text in zip(*(column.to_pylist() for column in table.columns), strict=True):
        metadata = json.loads(text)
        _require_vector(metadata, text_set, file)
        found.setdefault(pack, (stamp, n_bytes, {}))[2][file] = metadata
    return found


def _require_vector(metadata: Any, text_set: str, file: str) -> None:
    """Raise UnreadableError for metadata that is not that of a vector in a file of this name under this text set."""
    if not isinstance(metadata, dict):
        raise UnreadableError("holds no record")
    require_entry(metadata)
    require_own(metadata, text_set=text_set)
    if not file.endswith(f"-{metadata['key']}.parquet"):
        raise UnreadableError(f"is the vector {metadata['key']} under another name")


def spans_of(scores: Scores, metadata: Mapping[str, Any], texts: TextSet) -> PackedSpans | None:
    """The spans of a vector for all texts of its set; None where it has none by the rule of today. Raises
    UnreadableError where they are not those of the set's cuts."""
    spans, given = (scores.parts.get(part.name) for part in (SPANS, GIVEN))
    cuts, rule = texts.cuts, (metadata.get("spans") or {}).get("rule")
    if cuts is None or rule != cuts.rule or not isinstance(spans, Ragged) or given is None:
        return None
    first, before = np.asarray(given)[:, 0], np.zeros(len(texts), dtype=np.int64)
    counts = np.diff(cuts.spans.starts)
    if (spans.lengths != counts[scores.text]).any() or (first > texts.bytes[scores.text]).any():
        raise UnreadableError("has spans that are not those of its texts")
    values = np.full(len(cuts.spans.bytes), np.nan, dtype=np.float32)
    scored = np.zeros(len(texts), dtype=bool)
    scored[scores.text], before[scores.text] = True, first
    values[np.repeat(scored, counts)] = spans[np.argsort(scores.text)].values
    return PackedSpans(values, before)


def sampled_of(scores: Scores) -> SampledValues | None:
    """What a vector says of sampled tokens; None where it says nothing."""
    marks, values, top = (scores.parts.get(part.name) for part in (DRAWS, SAMPLED, TOP))
    if marks is None or not isinstance(values, Ragged) or not isinstance(top, Ragged):
        return None
    marked = np.asarray(marks)[:, 0]
    chosen = np.flatnonzero(marked)
    chosen = chosen[np.argsort(scores.text[chosen])]
    return SampledValues(scores.text[chosen], marked[chosen], values[chosen], top[chosen])


def partial_to_parquet(scores: Scores, key: str) -> bytes:
    """A piece of unfinished work on a vector."""
    return _scores_to_parquet("partial", scores, {"key": key})


def partial_from_parquet(data: bytes, key: str, n_texts: int | None) -> Scores:
    """A piece of unfinished work on the vector `key`; raises one of UNREADABLE."""
    scores, metadata = _scores_from_parquet("partial", data, n_texts)
    require_own(metadata, key=key)
    return scores


def _scores_to_parquet(kind: str, scores: Scores, metadata: Mapping[str, Any]) -> bytes:
    return to_parquet(kind, scores_to_table(scores), {**metadata, "checksum": scores.checksum})


def _scores_from_parquet(kind: str, data: bytes, n_texts: int | None) -> tuple[Scores, dict[str, Any]]:
    table, metadata = from_parquet(kind, data, most_rows=n_texts)
    return scores_from_table(table, metadata.get("checksum"), n_texts), metadata


def scores_to_table(scores: Scores) -> Any:
    """Values with their parts as an Arrow table, one row a text."""
    table = pa.table([scores.text, scores.log_likelihood, scores.n_tokens], schema=VECTOR)
    for name, part in PARTS.items():
        if name in scores.parts:
            table = table.append_column(part.column, _part_to_arrow(part, scores.parts[name]))
    return table


def scores_from_table(table: Any, checksum: Any, n_texts: int | None) -> Scores:
    """What `scores_to_table` was given; other columns are ignored. Raises UnreadableError for values with another
    checksum, and for what no model can have given."""
    for name, column_type in zip(VECTOR.names, VECTOR.types, strict=True):
        column = table.column(name)
        if column.type != column_type or column.null_count:
            raise UnreadableError(f"has a column {name!r} that is not {column_type} throughout")
    text, log_likelihood, n_tokens = (_numbers(table.column(name).combine_chunks()) for name in VECTOR.names)
    parts = {
        name: _part_from_arrow(part, table.column(part.column).combine_chunks())
        for name, part in PARTS.items()
        if part.column in table.column_names
    }
    scores = Scores(text.astype(np.int64), log_likelihood, n_tokens.astype(np.int64), parts)
    if scores.checksum != checksum:
        raise UnreadableError(CHANGED)
    require_scores(scores, n_texts)
    return scores


def require_scores(scores: Scores, n_texts: int | None = None) -> None:
    """Raise UnreadableError for values that no model can have given to a set of so many texts."""
    in_order = (np.diff(scores.text) > 0).all()  # as they are kept; a sort takes longer than all else here
    if not (in_order or len(np.unique(scores.text)) == len(scores)) or (len(scores) and scores.text.min() < 0):
        raise UnreadableError("has texts twice, or before the first")
    if n_texts is not None and len(scores) and scores.text.max() >= n_texts:
        raise UnreadableError("has texts that its text set does not have")
    if not np.isfinite(scores.log_likelihood).all() or (scores.log_likelihood < LOWEST).any():
        raise UnreadableError(f"has log-likelihoods that are not finite, or below {LOWEST:g} nats")
    if (scores.log_likelihood > ROUNDING).any():
        raise UnreadableError("has log-likelihoods above 0")
    if (scores.n_tokens < 0).any():
        raise UnreadableError("has negative numbers of tokens")
    for name, values in scores.parts.items():
        numbers = values.values if isinstance(values, Ragged) else values
        wrong = np.isinf(numbers) if PARTS[name].gaps else ~np.isfinite(numbers)
        if len(values) != len(scores) or wrong.any():
            raise UnreadableError(f"has {name} that are not finite")
    _require_spans(scores)
    _require_sampled(scores)


def _require_sampled(scores: Scores) -> None:
    """Raise UnreadableError for sampled tokens that do not belong to the positions of their texts."""
    marks, values, top = (scores.parts.get(part.name) for part in (DRAWS, SAMPLED, TOP))
    if marks is None and values is None and top is None:
        return
    if not isinstance(values, Ragged) or not isinstance(top, Ragged) or marks is None or isinstance(marks, Ragged):
        raise UnreadableError("has some of the columns of sampled tokens, not all")
    if marks.shape[1:] != (1,):
        raise UnreadableError("has no single number for the draws of a text")
    there = marks[:, 0] != 0
    m = values.lengths.sum() // max(int(top.lengths.sum()), 1)
    if (top.lengths[~there] > 0).any() or (values.lengths != m * top.lengths).any() or m > MOST_DRAWS:
        raise UnreadableError("has log-probabilities of sampled tokens that belong to no position")
    counted = there & (scores.n_tokens > 0)
    if (top.lengths[counted] != scores.n_tokens[counted] - 1).any():
        raise UnreadableError("does not have sampled tokens at each position of a text")
    if (values.values > ROUNDING).any() or (top.values < 0).any():
        raise UnreadableError("has sampled tokens with a log-probability above 0, or a negative id")


def _require_spans(scores: Scores) -> None:
    """Raise UnreadableError for spans that do not add up to the log-likelihoods of their texts."""
    spans, given = (scores.parts.get(part.name) for part in (SPANS, GIVEN))
    if (spans is None) != (given is None):
        raise UnreadableError("has spans without the bytes before them, or the reverse")
    if not isinstance(spans, Ragged) or given is None or isinstance(given, Ragged):
        return
    if given.shape[1:] != (1,) or (given < 0).any():
        raise UnreadableError("has spans whose first byte is not known")
    if (spans.lengths < 1).any():
        raise UnreadableError("has texts without a span")
    starts = np.concatenate([[0], np.cumsum(spans.lengths)])
    wrong = np.flatnonzero(~are_packed(spans.values, scores.log_likelihood, starts))
    if len(wrong):
        raise UnreadableError(f"has spans of text {scores.text[wrong[0]]} that do not add up to its log-likelihood")


def _part_to_arrow(part: Part, values: Values) -> Any:
    kind = pa.from_numpy_dtype(np.dtype(part.dtype))
    if isinstance(values, Ragged):
        return ragged_to_arrow(Ragged(values.values.astype(part.dtype), values.lengths), kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(part.dtype).ravel(), kind), values.shape[1])


def ragged_to_arrow(values: Ragged, kind: Any) -> Any:
    """Rows of different lengths as an Arrow column of lists of this type."""
    offsets = np.concatenate([[0], np.cumsum(values.lengths)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values.values, kind))


def _part_from_arrow(part: Part, lists: Any) -> Values:
    kind = pa.from_numpy_dtype(np.dtype(part.dtype))
    wanted = pa.types.is_large_list(lists.type) if part.ragged else pa.types.is_fixed_size_list(lists.type)
    if not wanted or lists.type.value_type != kind or lists.null_count or lists.flatten().null_count:
        raise UnreadableError(f"has a column {part.column!r} that is not lists of {kind} throughout")
    values = _numbers(lists.flatten())
    if not part.ragged:
        return np.asarray(values.reshape(len(lists), lists.type.list_size))
    return Ragged(values, np.diff(_numbers(lists.offsets)).astype(np.int64))


def _numbers(column: Any) -> Any:
    """An Arrow array without nulls as NumPy has it. `to_numpy` would load pandas, which takes a third of a second."""
    return np.from_dlpack(column)
