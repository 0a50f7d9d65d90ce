"""The records of a store: what each kind of file holds, how it is written, and the one function that reads it.

A record names its kind and version (`record`: `vector/2`) and is sealed: any changed bit is found. Files of klscale
0.1.0 (version 1) do neither; they are read as they are, and `klscale check --seal` writes them anew. A reader ignores
unknown fields, takes missing ones at their defaults, and raises one of UNREADABLE for whatever else is not right.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from klscale.errors import InputError, UnreadableError
from klscale.inputs.attributes import NUMBERS, is_free
from klscale.inputs.conversations import conversation_of
from klscale.inputs.references import ModelRef
from klscale.inputs.spans import are_packed
from klscale.inputs.texts import TextSet, content_id, is_prompt, text_set_id
from klscale.limits import VECTOR_BYTES, VECTOR_LAYERS
from klscale.science.kl import KL
from klscale.store.files import SEAL, require_seal, sealed
from klscale.vectors.draws import SampledValues, TextDraws, TokenDraws
from klscale.vectors.scores import DRAWS, GIVEN, LOWEST, PARTS, SAMPLED, SPANS, TOP, Part, Ragged, Scores, Values
from klscale.vectors.vectors import COLUMNS, PackedSpans

T = TypeVar("T")
UNREADABLE = (pa.ArrowException, KeyError, TypeError, ValueError, OSError, OverflowError, RecursionError)
VERSION = 2
VECTOR = pa.schema([("text", pa.int32()), ("log_likelihood", pa.float64()), ("n_tokens", pa.int32())])
DRAWN = pa.schema(
    [("text", pa.int32()), ("token", pa.large_list(pa.int32())), ("log_proposal", pa.large_list(pa.float32()))]
)
DRAWING = pa.schema([("text", pa.int32()), ("token", pa.large_list(pa.int32())), ("ended", pa.bool_())])
MOST_DRAWS = 1024
"""Token ids at a position, more than which no file holds."""
ENTRIES = pa.schema([("file", pa.string()), ("stamp", pa.string()), ("metadata", pa.string())])
PACKS = pa.schema(
    [("pack", pa.string()), ("stamp", pa.string()), ("n_bytes", pa.int64()), ("file", pa.string()),
     ("metadata", pa.string())]
)  # fmt: skip
WEIGHTS = pa.schema([("other", pa.string()), ("squared_distance", pa.float64())])
ROUNDING = 1e-3
"""Nats by which rounding may lift a log-likelihood above 0."""
NONE = "no_repeat_run"
"""The field of a record of run-to-run noise that says why there is none."""
CHANGED = "does not hold the values that it was written with"


def problem(error: Exception) -> str:
    """What is wrong with a file, in words that follow its name."""
    if isinstance(error, UnreadableError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "is not there"
    known = error.strerror if isinstance(error, OSError) else None
    return f"does not read: {known or str(error).splitlines()[0] if str(error) else type(error).__name__}"


# ------------------------------------------------------------------------------------------------- versions and seals


def is_sealed(data: bytes) -> bool:
    """Whether a file that reads holds a seal: one of klscale 0.1.0 does not."""
    return SEAL.encode() in data


def _require_record(kind: str, version: Any, seal: Any, data: bytes) -> None:
    """Raise UnreadableError for a broken or missing seal, and for a record of another kind or a later version."""
    if version is None and seal is None:  # klscale 0.1.0
        return
    require_seal(data, seal)
    if version != f"{kind}/{VERSION}":
        raise UnreadableError(f"holds a record {version!r}, and this version of klscale reads {kind}/{VERSION}")


def to_json(kind: str, record: Mapping[str, Any]) -> bytes:
    """A record as sealed JSON."""
    named = {"record": f"{kind}/{VERSION}", **record}
    return sealed(lambda seal: json.dumps({**named, SEAL: seal}, indent=1).encode())


def from_json(kind: str, data: bytes) -> dict[str, Any]:
    """What `to_json` was given; raises one of UNREADABLE."""
    found = json.loads(data)
    if not isinstance(found, dict):
        raise UnreadableError("holds no record")
    _require_record(kind, found.pop("record", None), found.pop(SEAL, None), data)
    return found


def to_parquet(kind: str, table: Any, metadata: Mapping[str, Any]) -> bytes:
    """A table as sealed Parquet, with metadata (JSON) under the key `klscale`."""
    named = json.dumps({"record": f"{kind}/{VERSION}", **metadata}, ensure_ascii=False)
    table = table.replace_schema_metadata({"klscale": named})

    def write(seal: str) -> bytes:
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, table.schema, compression="zstd") as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({SEAL: seal})
        return buffer.getvalue()

    return sealed(write)


def from_parquet(
    kind: str, data: bytes, *, most_rows: int | None = None, without: Sequence[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """The table and metadata that `to_parquet` was given, `without` some of its columns; raises one of UNREADABLE, also
    above so many rows."""
    file = pq.ParquetFile(pa.BufferReader(data))
    stored = file.metadata.metadata or {}
    metadata = json.loads(stored[b"klscale"])
    if not isinstance(metadata, dict):
        raise UnreadableError("holds no record")
    seal = stored.get(SEAL.encode())
    _require_record(kind, metadata.pop("record", None), None if seal is None else seal.decode(), data)
    if most_rows is not None and file.metadata.num_rows > most_rows:
        raise UnreadableError(f"has {file.metadata.num_rows:,} rows where there can be {most_rows:,}")
    _require_bounded(file)
    columns = [name for name in file.schema_arrow.names if name not in without]
    return file.read(columns, use_threads=False), metadata  # threads of the reader may outlive the interpreter


def _require_bounded(file: Any) -> None:
    """Raise UnreadableError for a file that would take more memory than any record, by what it says of itself."""
    # A description of a column that does not fit its type aborts the process in `column`, but raises here.
    next(iter(file.reader.iter_batches(0, [*range(file.num_row_groups)], use_threads=False)), None)
    groups = (file.metadata.row_group(n) for n in range(file.metadata.num_row_groups))
    chunks = (group.column(n) for group in groups for n in range(group.num_columns))
    n_bytes = sum(max(8 * chunk.num_values, chunk.total_uncompressed_size) for chunk in chunks)
    lists = (field.type for field in file.schema_arrow if pa.types.is_fixed_size_list(field.type))
    try:
        VECTOR_BYTES.require(n_bytes, "it")
        for kind in lists:
            VECTOR_LAYERS.require(kind.list_size, "it")
            VECTOR_BYTES.require(8 * kind.list_size * file.metadata.num_rows, "it")
    except InputError as error:
        raise UnreadableError(f"would take {error.what.removeprefix('it: ').rstrip('.')}. {error.why}") from error


# -------------------------------------------------------------------------------------------------------------- fields


@dataclass(frozen=True)
class Field:
    """A field of a record: what its value is, in words, and whether a value is that. It may be absent or null unless it
    is `required`."""

    what: str
    holds: Callable[[Any], bool]
    required: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_finite(value: Any) -> bool:
    return _is_number(value) and abs(value) < math.inf


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 0


def is_key(value: Any) -> bool:
    """Whether a value is twelve hexadecimal digits, as the ids of text sets and the keys of vectors are."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{12}", value) is not None


def _is_reference(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(ModelRef.parse(value))
    except InputError:
        return False


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.encode("utf-8", "replace").decode() == value  # no lone surrogate


TEXT, KEY = Field("a string", _is_text), Field("twelve hexadecimal digits", is_key)
COUNT, NUMBER = Field("a whole number of at least 0", _is_count), Field("a finite number", _is_finite)
FEW = Field(f"a whole number from 1 to {MOST_DRAWS}", lambda value: _is_count(value) and 1 <= value <= MOST_DRAWS)
MAPPING = Field("an object", lambda value: isinstance(value, dict) and all(map(_is_text, value)))
LIST = Field("a list", lambda value: isinstance(value, list))
FILE = Field(
    "the name of a file", lambda value: _is_text(value) and re.fullmatch(r"[^./\\\0][^/\\\0]*", value) is not None
)


def required(field: Field) -> Field:
    """The same field, where a record must have it."""
    return Field(field.what, field.holds, required=True)


def require_fields(record: Mapping[str, Any], known: Mapping[str, Field]) -> None:
    """Raise UnreadableError for a required field that is missing and for a value that is not what its field says."""
    for name, field in known.items():
        value = record.get(name)
        if value is None:
            if field.required:
                raise UnreadableError(f"has no {name!r}")
        elif not field.holds(value):
            raise UnreadableError(f"has {name!r} {str(value)[:40]!r}, which is not {field.what}")


def _require_own(record: Mapping[str, Any], **own: str) -> None:
    """Raise UnreadableError where a record names another text set, key or checkpoint than the name of its file."""
    for name, value in own.items():
        if record.get(name, value) != value:
            raise UnreadableError(f"is the record of another {name.replace('_', ' ')}, {str(record[name])[:40]!r}")


def to_record(result: Any) -> dict[str, Any]:
    """A frozen result (`KL`, `Estimate`) as JSON holds it."""
    return asdict(result)


def from_record(kind: type[T], record: Any) -> T:
    """A frozen result from what `to_record` gave. Fields that `kind` does not have are ignored, missing ones take its
    defaults, or None where that is allowed. Raises UnreadableError where that cannot be."""
    if not isinstance(record, dict):
        raise UnreadableError(f"holds no {kind.__name__}")
    hints, values = _types_of(kind), dict[str, Any]()
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in record:
            values[field.name] = _as_typed(record[field.name], hints[field.name], field.name)
        elif type(None) in get_args(hints[field.name]) and field.default is MISSING:
            values[field.name] = None
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UnreadableError(f"has no {field.name!r}")
    return kind(**values)


def _types_of(kind: type) -> dict[str, Any]:
    """The type of each field, with what a class gives for the type variables of a generic base."""
    bases = [base for base in getattr(kind, "__orig_bases__", ()) if hasattr(get_origin(base), "__parameters__")]
    given = {
        name: of for base in bases for name, of in zip(get_origin(base).__parameters__, get_args(base), strict=True)
    }
    return {name: given.get(hint, hint) for name, hint in get_type_hints(kind).items()}


def _as_typed(value: Any, hint: Any, name: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        return from_record(hint, value)
    if get_origin(hint) is tuple and isinstance(value, list) and get_args(hint)[1:] == (...,):
        of = get_args(hint)[0]
        return tuple(value if {*map(type, value)} == {of} else (_as_typed(one, of, name) for one in value))
    if get_origin(hint) is tuple and isinstance(value, list) and len(value) == len(get_args(hint)):
        return tuple(_as_typed(one, of, name) for one, of in zip(value, get_args(hint), strict=True))
    if get_origin(hint) in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        (hint,) = (of for of in get_args(hint) if of is not type(None))
        return _as_typed(value, hint, name)
    if hint is float and _is_number(value):
        return float(value)
    if (hint is int and _is_whole(value)) or (hint in (bool, str) and isinstance(value, hint)):
        return value
    raise UnreadableError(f"has {name!r} {str(value)[:40]!r}, which is of another type")


# ----------------------------------------------------------------------------------------------------------- text sets

HEAD = {
    "id": required(KEY),
    "name": required(TEXT),
    "n_texts": required(Field("a whole number of at least 1", lambda value: _is_count(value) and value > 0)),
    "mean_bytes": required(NUMBER),
    "clip": Field("a finite number below 0", lambda value: _is_finite(value) and value < 0),
    "external": required(Field("true or false", lambda value: isinstance(value, bool))),
    "drawn": MAPPING,
}
"""What a store says of a text set beside its texts."""


def head_of(texts: TextSet) -> dict[str, Any]:
    """The fields of HEAD."""
    return {
        "id": texts.id,
        "name": texts.name,
        "n_texts": len(texts),
        "mean_bytes": texts.mean_bytes,
        "clip": texts.clip,
        "external": texts.external,
        "drawn": None if texts.drawn is None else dict(texts.drawn),
    }


def head_to_json(head: Mapping[str, Any]) -> bytes:
    """The head of a text set: the fields of HEAD, and `lines`: the SHA-256 of the file with its lines; two while that
    is being replaced."""
    return to_json("texts", head)


def head_from_json(data: bytes, text_set: str) -> dict[str, Any]:
    """The fields of HEAD, and `lines`: the SHA-256 that its lines may have (empty: not known)."""
    found = from_json("texts", data)
    require_fields(found, HEAD)
    _require_own(found, id=text_set)
    lines = found.get("lines", [])
    if not isinstance(lines, list):
        raise UnreadableError("has 'lines' that are no list")
    return {**{name: found.get(name) for name in HEAD}, "lines": lines}


def lines_of(texts: TextSet) -> bytes:
    """The lines of a text set: one JSON object a text."""
    return "".join(json.dumps(record) + "\n" for record in texts.records()).encode()


def digest(data: bytes) -> str:
    """The SHA-256 of a file's content, as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def texts_from_lines(data: bytes, head: Mapping[str, Any]) -> TextSet:
    """A text set from its head and lines; raises one of UNREADABLE."""
    if head["lines"] and digest(data) not in head["lines"]:
        raise UnreadableError("does not hold the lines that it was written with")
    records = [_as_response(json.loads(line)) for line in data.split(b"\n") if line]
    if len(records) != head["n_texts"]:
        raise UnreadableError(f"has {len(records):,} lines where {head['n_texts']:,} texts belong")
    names = _require_lines(records, external=head["external"])
    columns = {name: tuple(record[name] for record in records) for name in names}
    sizes, texts = columns.pop("bytes"), columns.pop("text", None)
    given = columns.pop("prompt_bytes", None) if texts is not None else None
    if given is not None and not all(map(is_prompt, given, texts or ())):
        raise UnreadableError("has 'prompt_bytes' that are no places in the texts")
    prompt_bytes = None if given is None else np.array(given, dtype=np.int64)
    prompts = columns.pop("messages") if isinstance(records[0].get("messages"), tuple) else None
    if texts is not None and text_set_id(texts, prompt_bytes, prompts) != head["id"]:
        raise UnreadableError("does not hold the texts that its id stands for")
    if texts is not None and (wrong := [s for s, text in enumerate(texts) if len(text.encode()) != sizes[s]]):
        raise UnreadableError(f"gives text {wrong[0] + 1} a length that is not its own")
    return TextSet(
        name=head["name"],
        id=head["id"],
        clip=head["clip"],
        bytes=np.array(sizes, dtype=np.int64),
        texts=texts,
        domain=columns.pop("domain", None),
        document=columns.pop("document", None),
        labels=columns,
        prompt_bytes=prompt_bytes,
        drawn=head["drawn"],
        prompts=prompts,
    )


def _as_response(record: Any) -> Any:
    """A line of messages with the response under `text`, and those before it under `messages`; another line as it is.
    Raises ValueError for messages that are none."""
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        return record
    if (found := conversation_of(record)) is None:
        raise UnreadableError("has a line without a response")
    return {"text": found[1], **record, "messages": found[0]}


def _require_lines(records: list[Any], *, external: bool) -> list[str]:
    """The names that each line has. Raises UnreadableError for a line that is no text, or not like the first."""
    names = [*records[0]] if isinstance(records[0], dict) else []
    labels = {label: type(records[0][label]) for label in ("domain", "document") if label in names}
    for n, record in enumerate(records, 1):
        if not isinstance(record, dict) or record.keys() != {*names} or ("text" in record) == external:
            raise UnreadableError(f"has a line {n} that is not like the others")
        if not (_is_count(record.get("bytes")) and 0 < record["bytes"] < 2**53):
            raise UnreadableError(f"has no length of text {n} in 'bytes'")
        if not external and not isinstance(record["text"], str):
            raise UnreadableError(f"has no text in line {n}")
        if any(type(record[label]) is not kind or kind not in (str, int) for label, kind in labels.items()):
            raise UnreadableError(f"has a label in line {n} that is no string")
        if any(isinstance(value, dict | list) for value in record.values()):
            raise UnreadableError(f"has a label in line {n} that is no single value")
    return names


# ------------------------------------------------------------------------------------------------------------- vectors

ENTRY = {
    "ref": required(Field("a reference to a model", _is_reference)),
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
    "first": Field("a whole number of at least 1", lambda value: _is_count(value) and value > 0),
    "skipped": Field("a list of texts", lambda value: isinstance(value, list) and all(map(_is_count, value))),
    "n_layers": COUNT,
    "not_round_trip": NUMBER,
    "not_round_trip_kinds": Field(
        "counts", lambda value: isinstance(value, dict) and all(map(_is_count, value.values()))
    ),
    "special_token_texts": COUNT,
    "template": MAPPING,
    "versions": MAPPING,
    "weights": LIST,
    "size": Field("an object of counts", lambda it: isinstance(it, dict) and all(map(_is_count, it.values()))),
    "spans": MAPPING,
    "sampled": Field("an object that names its 'tokens'", lambda it: isinstance(it, dict) and is_key(it.get("tokens"))),
}
"""What is kept beside a vector; `ATTRIBUTE` says what its attributes are. Other fields are kept as they are."""
ATTRIBUTE = {
    **dict.fromkeys(("family", "type", "parent", "quantization", "dtype"), TEXT),
    **dict.fromkeys(NUMBERS, Field("a number from 0 to 2**63", lambda value: _is_finite(value) and 0 <= value < 2**63)),
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
    if not is_sealed(data):
        raise UnreadableError("has no seal")
    table, about = from_parquet("pack", data, without=("model", "key"))
    require_fields(about, {"text_set": required(KEY), "vectors": required(LIST)})
    _require_own(about, text_set=text_set)
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
    if not is_sealed(data):
        raise UnreadableError("has no seal")
    table, about = from_parquet("entries", data)
    _require_table(table, ENTRIES)
    require_fields(about, {"text_set": required(KEY)})
    _require_own(about, text_set=text_set)
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
    if not is_sealed(data):
        raise UnreadableError("has no seal")
    table, about = from_parquet("packs", data)
    _require_table(table, PACKS)
    require_fields(about, {"text_set": required(KEY)})
    _require_own(about, text_set=text_set)
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
    _require_own(metadata, text_set=text_set)
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
    _require_own(metadata, key=key)
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
    text, log_likelihood, n_tokens = (table.column(name).to_numpy() for name in VECTOR.names)
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
    values = lists.flatten().to_numpy()
    if not part.ragged:
        return np.asarray(values.reshape(len(lists), lists.type.list_size))
    return Ragged(values, np.diff(lists.offsets.to_numpy()).astype(np.int64))


# --------------------------------------------------------------------------------------------------------------- draws


def draws_to_parquet(draws: TokenDraws, text_set: str) -> bytes:
    """The token ids that are drawn for some texts of a set under one tokenizer: one row a text."""
    return to_parquet("draws", draws_to_table(draws), {"text_set": text_set, "tokens": draws.tokens, "m": draws.m})


def draws_to_table(draws: TokenDraws) -> Any:
    """What was drawn as an Arrow table, one row a text."""
    texts = sorted(draws.of)
    columns = [lists([draws.of[text].ids for text in texts], pa.int32()),
               lists([draws.of[text].log_proposal for text in texts], pa.float32())]  # fmt: skip
    return pa.table([pa.array(texts, pa.int32()), *columns], schema=DRAWN)


def _require_table(table: Any, schema: Any) -> None:
    """Raise UnreadableError for other columns, or a cell without a value."""
    if not table.schema.equals(schema) or any(column.null_count for column in table.columns):
        raise UnreadableError(f"does not have the columns {', '.join(schema.names)} throughout")


def lists(rows: list[NDArray[Any]], kind: Any) -> Any:
    """Arrays as an Arrow column of lists."""
    offsets = np.cumsum([0, *(row.size for row in rows)])
    flat = np.concatenate([row.ravel() for row in rows]) if rows else np.empty(0)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(flat, kind))


def draws_from_parquet(data: bytes, text_set: str, tokens: str, n_texts: int | None) -> TokenDraws:
    """What `draws_to_parquet` was given, from a file of this name; raises one of UNREADABLE."""
    if not is_sealed(data):
        raise UnreadableError("has no seal")
    table, metadata = from_parquet("draws", data, most_rows=n_texts)
    require_fields(metadata, {"text_set": required(KEY), "tokens": required(KEY), "m": required(FEW)})
    _require_own(metadata, text_set=text_set, tokens=tokens)
    return draws_from_table(table, tokens, metadata["m"], n_texts)


def draws_from_table(table: Any, tokens: str, m: int, n_texts: int | None) -> TokenDraws:
    """What `draws_to_table` was given, `m` ids a position; raises UnreadableError where it is none."""
    _require_table(table, DRAWN)
    text, ids, log_proposal = (column.combine_chunks() for column in table.columns)
    texts, lengths = text.to_numpy(), np.diff(ids.offsets.to_numpy())
    if len(np.unique(texts)) < len(texts) or (texts < 0).any() or (texts >= (n_texts or math.inf)).any():
        raise UnreadableError("has texts twice, or that its text set does not have")
    if (lengths != np.diff(log_proposal.offsets.to_numpy())).any() or (lengths % m).any():
        raise UnreadableError("has draws that belong to no position")
    values, chances = ids.flatten(), log_proposal.flatten()
    if values.null_count or chances.null_count:
        raise UnreadableError("has draws without an id or a probability")
    values, chances = values.to_numpy(), chances.to_numpy()
    if (values < 0).any() or not (np.isfinite(chances) & (chances <= ROUNDING)).all():
        raise UnreadableError("has draws with a negative id, or without a probability")
    places, shape = np.cumsum(lengths)[:-1], (-1, m)
    rows = zip(texts.tolist(), np.split(values, places), np.split(chances, places), strict=True) if len(texts) else ()
    drawn = {text: TextDraws(token.reshape(shape), chance.reshape(shape)) for text, token, chance in rows}
    return TokenDraws(tokens, m, drawn)


# ------------------------------------------------------------------------------------------------------------- drawing

Drawing = dict[int, tuple[NDArray[np.int32], bool]]
"""Of a text set that a model is writing: number of a text -> its token ids (n,) so far, and whether it has ended."""


def drawing_to_parquet(drawing: Drawing, key: str) -> bytes:
    """The texts of a drawing that is not finished: one row a text."""
    columns = [
        pa.array([*drawing], pa.int32()),
        lists([ids for ids, _ in drawing.values()], pa.int32()),
        pa.array([ended for _, ended in drawing.values()], pa.bool_()),
    ]
    return to_parquet("drawing", pa.table(columns, schema=DRAWING), {"key": key})


def drawing_from_parquet(data: bytes, key: str) -> Drawing:
    """What `drawing_to_parquet` was given; raises one of UNREADABLE."""
    if not is_sealed(data):
        raise UnreadableError("has no seal")
    table, metadata = from_parquet("drawing", data)
    require_fields(metadata, {"key": required(KEY)})
    _require_own(metadata, key=key)
    _require_table(table, DRAWING)
    text, token, ended = (column.combine_chunks() for column in table.columns)
    texts, values = text.to_numpy(), token.flatten()
    if len(np.unique(texts)) < len(texts) or (texts < 0).any():
        raise UnreadableError("has texts twice, or below 0")
    if values.null_count or (values.to_numpy() < 0).any():
        raise UnreadableError("has tokens that are no ids")
    rows = np.split(values.to_numpy(), np.cumsum(np.diff(token.offsets.to_numpy()))[:-1]) if len(texts) else []
    return dict(zip(texts.tolist(), zip(rows, ended.to_pylist(), strict=True), strict=True))


# ------------------------------------------------------------------------------------------------------------- weights


def weights_to_parquet(squared_distances: Mapping[str, float], metadata: Mapping[str, Any]) -> bytes:
    """Squared distances of a checkpoint's weights to those of others, by identity."""
    table = pa.table([[*squared_distances], [*squared_distances.values()]], schema=WEIGHTS)
    return to_parquet("weights", table, {**metadata, "checksum": _weights_checksum(squared_distances)})


def weights_from_parquet(data: bytes, file: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Squared distances to other checkpoints, by identity, and metadata; raises one of UNREADABLE."""
    table, metadata = from_parquet("weights", data)
    _require_table(table, WEIGHTS)
    found = dict(zip(*(table.column(name).to_pylist() for name in WEIGHTS.names), strict=True))
    if _weights_checksum(found) != metadata["checksum"]:
        raise UnreadableError(CHANGED)
    wanted = {"ref": required(TEXT), "identity": required(TEXT), "n_parameters": required(COUNT), "date": TEXT}
    require_fields(metadata, wanted)
    if not file.endswith(weights_name(metadata["identity"])):
        raise UnreadableError("has the name of another checkpoint")
    if not all(0 <= value < math.inf for value in found.values()):
        raise UnreadableError("has distances that are negative or not finite")
    return found, metadata


def weights_name(identity: str) -> str:
    """How the name of the file of a checkpoint's weights ends."""
    return f"-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.parquet"


def _weights_checksum(squared_distances: Mapping[str, float]) -> str:
    values = np.array([*squared_distances.values()], dtype="<f8")
    return content_id([*(other.encode() for other in squared_distances), values.tobytes()])


# ---------------------------------------------------------------------------------------------------------------- maps

Columns = dict[str, NDArray[Any]]


def map_to_parquet(columns: Mapping[str, Any], metadata: Mapping[str, Any]) -> bytes:
    """A kept map: `columns` of strings and numbers, one row a model."""
    table = pa.table(dict(columns))
    arrays = {name: table.column(name).to_numpy() for name in table.column_names}
    return to_parquet("map", table, {**metadata, "checksum": _map_checksum(arrays, metadata)})


def map_from_parquet(data: bytes, text_set: str, key: str) -> tuple[Columns, dict[str, Any]]:
    """Columns and metadata of a kept map; raises one of UNREADABLE."""
    table, metadata = from_parquet("map", data)
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    if _map_checksum(columns, metadata) != metadata["checksum"]:
        raise UnreadableError(CHANGED)
    require_fields(
        metadata,
        {
            "text_set": required(KEY),
            "key": required(KEY),
            "date": TEXT,
            "vectors": MAPPING,
            "off_map": MAPPING,
            "notes": LIST,
        },
    )
    _require_own(metadata, text_set=text_set, key=key)
    if not all(np.isfinite(array).all() for array in columns.values() if array.dtype != object):
        raise UnreadableError("has values that are not finite")
    return columns, metadata


def _map_checksum(columns: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> str:
    about = json.dumps({name: value for name, value in metadata.items() if name != "checksum"}, sort_keys=True)
    numbers = [array.astype("<f8").tobytes() for array in columns.values() if array.dtype != object]
    words = json.dumps([[*array] for array in columns.values() if array.dtype == object])
    return content_id([about.encode(), words.encode(), json.dumps([*columns]).encode(), *numbers])


# ---------------------------------------------------------------------------------------------------- noise, exact KL


@dataclass(frozen=True)
class NoRepeatRun:
    """Why a vector has no run-to-run noise: the repeat run `failed`, or would have taken too long. `version` of klscale
    found it so."""

    why: str
    failed: bool
    version: str


def noise_to_json(found: KL | NoRepeatRun, text_set: str, key: str) -> bytes:
    """The record of the KL between two runs of the model with the vector `key`, or why there is none."""
    record = to_record(found)
    return to_json("noise", {"text_set": text_set, "key": key, **(record if isinstance(found, KL) else {NONE: record})})


def noise_from_json(data: bytes, text_set: str, key: str) -> KL | NoRepeatRun:
    """What `noise_to_json` was given; raises one of UNREADABLE."""
    found = from_json("noise", data)
    _require_own(found, text_set=text_set, key=key)
    if NONE in found:
        return from_record(NoRepeatRun, found[NONE])
    kl = from_record(KL, found)
    if not all(0 <= number < math.inf for number in (kl.value, kl.standard_error, *kl.interval)):
        raise UnreadableError(f"has a run-to-run noise of {kl.value:.3g} ± {kl.standard_error:.3g} bits/byte")
    return kl


def scale_to_json(settings: list[dict[str, Any]], text_set: str, key: str, resamples: int) -> bytes:
    """The record of a scale: its settings, measured with so many bootstrap samples on what `key` stands for."""
    return to_json("scale", {"text_set": text_set, "key": key, "resamples": resamples, "settings": settings})


def scale_from_json(data: bytes, text_set: str) -> tuple[list[Any], str, int]:
    """What `scale_to_json` was given: the settings, `key` and `resamples`; raises one of UNREADABLE."""
    if not is_sealed(data):
        raise UnreadableError("has no seal")
    found = from_json("scale", data)
    require_fields(
        found,
        {"text_set": required(KEY), "key": required(TEXT), "resamples": required(COUNT), "settings": required(LIST)},
    )
    _require_own(found, text_set=text_set)
    return found["settings"], found["key"], found["resamples"]


def exact_to_json(record: Mapping[str, Any], text_set: str, key: str) -> bytes:
    """What was measured of the exact KL of two models."""
    checksum = {"checksum": _record_checksum(record)}
    return to_json("exact", {"text_set": text_set, "key": key, **record, **checksum})


def exact_from_json(data: bytes, text_set: str, key: str) -> dict[str, Any]:
    """What `exact_to_json` was given; raises one of UNREADABLE."""
    found = from_json("exact", data)
    _require_own(found, text_set=text_set, key=key)
    own = {name: value for name, value in found.items() if name not in ("text_set", "key", "checksum")}
    if found.get("checksum") != _record_checksum(own):
        raise UnreadableError(CHANGED)
    return own


def _record_checksum(record: Mapping[str, Any]) -> str:
    return content_id([json.dumps(record, sort_keys=True).encode()])
