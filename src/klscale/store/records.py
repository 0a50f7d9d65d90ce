"""What all records of a store have in common: versions, seals, fields, and results as JSON holds them. The files named
`*_records` say what each kind of record holds, how it is written, and the one function that reads it.

A record names its kind and version (`record`: `vector/2`) and is sealed: any changed bit is found. Files of klscale
0.1.0 (version 1) do neither; they are read as they are, and `klscale check --seal` writes them anew. A reader ignores
unknown fields, takes missing ones at their defaults, and raises one of UNREADABLE for anything else that is wrong.
"""

from __future__ import annotations

import io
import json
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from klscale.errors import InputError, UnreadableError
from klscale.inputs.references import ModelRef
from klscale.limits import VECTOR_BYTES, VECTOR_LAYERS
from klscale.store.files import SEAL, require_seal, sealed

T = TypeVar("T")
UNREADABLE = (pa.ArrowException, KeyError, TypeError, ValueError, OSError, OverflowError, RecursionError)
VERSION = 2
UNSEALED = "texts", "vector", "partial", "weights", "map", "noise", "exact"
"""Kinds of records of klscale 0.1.0, whose files have no seal. All others have one."""
MOST_DRAWS = 1024
"""Token ids at a position, more than which no file holds."""
ROUNDING = 1e-3
"""Nats by which rounding may lift a log-likelihood above 0."""
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
    return data.rfind(SEAL.encode()) >= 0  # it is near the end


def _require_seal_of(kind: str, data: bytes) -> None:
    """Raise UnreadableError for a file without a seal of a kind that always has one."""
    if kind not in UNSEALED and not is_sealed(data):
        raise UnreadableError("has no seal")


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
    _require_seal_of(kind, data)
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
        with pq.ParquetWriter(
            buffer, table.schema, compression="zstd", use_dictionary=_repeating(table.schema)
        ) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({SEAL: seal})
        return buffer.getvalue()

    return sealed(write)


def _repeating(schema: Any) -> list[str]:
    """The columns whose values repeat. A dictionary of the others would take three times as long, and more bytes."""
    found = []
    for column in schema:
        many = pa.types.is_nested(column.type)
        if column.name != "text" and not pa.types.is_floating(column.type.value_type if many else column.type):
            found.append(f"{column.name}.list.element" if many else column.name)
    return found


def from_parquet(
    kind: str, data: bytes, *, most_rows: int | None = None, without: Sequence[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """The table and metadata that `to_parquet` was given, `without` some of its columns; raises one of UNREADABLE, also
    above so many rows."""
    _require_seal_of(kind, data)
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


def is_finite(value: Any) -> bool:
    return _is_number(value) and abs(value) < math.inf


def is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 0


def is_key(value: Any) -> bool:
    """Whether a value is twelve hexadecimal digits, as the ids of text sets and the keys of vectors are."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{12}", value) is not None


@cache
def parsed(text: str) -> ModelRef:
    """A reference: of thousands of vectors, each is read once. Raises InputError."""
    return ModelRef.parse(text)


def is_reference(value: Any) -> bool:
    """Whether a value is a reference to a model."""
    try:
        return isinstance(value, str) and bool(parsed(value))
    except InputError:
        return False


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return value.isascii() or value.encode("utf-8", "replace").decode() == value  # no lone surrogate


TEXT, KEY = Field("a string", _is_text), Field("twelve hexadecimal digits", is_key)
COUNT, NUMBER = Field("a whole number of at least 0", is_count), Field("a finite number", is_finite)
FEW = Field(f"a whole number from 1 to {MOST_DRAWS}", lambda value: is_count(value) and 1 <= value <= MOST_DRAWS)
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


def require_own(record: Mapping[str, Any], **own: str) -> None:
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


def require_table(table: Any, schema: Any) -> None:
    """Raise UnreadableError for other columns, or a cell without a value."""
    if not table.schema.equals(schema) or any(column.null_count for column in table.columns):
        raise UnreadableError(f"does not have the columns {', '.join(schema.names)} throughout")


def lists(rows: list[NDArray[Any]], kind: Any) -> Any:
    """Arrays as an Arrow column of lists."""
    offsets = np.cumsum([0, *(row.size for row in rows)])
    flat = np.concatenate([row.ravel() for row in rows]) if rows else np.empty(0)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(flat, kind))
