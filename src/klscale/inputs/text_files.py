"""Files, directories and data sets that hold texts, read as records: what stands there, with its place. Everything that
is read is bounded in size, and nothing in it is executed."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import lzma
import re
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from klscale.errors import InputError, nearest
from klscale.limits import TEXT_FILE_BYTES

COLUMNS = (
    "text", "prompt", "response", "messages", "prompt_bytes", "domain", "pile_set_name", "document", "pile_idx",
)  # fmt: skip
"""Columns of a table that are read; others may be anything."""
STDIN = "-"
HUB = "hf://datasets/"
CONVERTED = "refs/convert/parquet"
"""The branch where the hub keeps each data set as Parquet: CONFIG/SPLIT/NUMBER.parquet."""
_COMPRESSED = r"(\.(gz|zst|bz2|xz|zip))?$"
_TABULAR = re.compile(r"\.(jsonl|csv|tsv|parquet)" + _COMPRESSED, re.IGNORECASE)
_UNREADABLE = (
    OSError, EOFError, ValueError, RuntimeError, MemoryError, zlib.error, zipfile.BadZipFile, lzma.LZMAError,
)  # fmt: skip
"""What libraries raise for damaged Parquet, Arrow, CSV and compressed files."""

Placed = tuple[str, Any]
"""A place (`line 3`, `row 3`) and what stands there."""


def read_records(spec: str) -> list[Placed]:
    """What stands in each line or row of a source of texts, in order, with its place.

    `spec` is a path or fsspec URL of a file, a directory of Arrow or Parquet files, `-` for standard input, or
    `hf://datasets/OWNER/NAME[/CONFIG[/SPLIT]]`. Raises FileNotFoundError where there is nothing, InputError for what
    cannot be read or is beyond the limit, naming the place.
    """
    with _said(spec):
        if spec == STDIN:
            return _standard_input()
        if (asked := _hub_name(spec)) is not None:
            return [*_numbered(_bounded_rows(_hub_rows(*asked), spec))]
        filesystem, path, is_directory = _found(spec)
        if is_directory:
            return [*_numbered(_bounded_rows(_directory_rows(filesystem, path, spec), spec))]
        if spec.lower().endswith(".parquet"):
            with filesystem.open(path, "rb") as file:
                return [*_numbered(_bounded_rows(_parquet_rows(file, spec), spec))]
        with _decompressed(spec) as file:
            return _parsed(spec, _bounded(file, spec))


def has_records(spec: str) -> bool:
    """Whether a name is that of several texts, not of one document: a table, a directory, a data set, `-`. Raises
    FileNotFoundError where there is nothing."""
    if spec == STDIN or _hub_name(spec) is not None:
        return True
    is_directory = _found(spec)[2]
    return is_directory or bool(_TABULAR.search(spec))


def read_document(spec: str) -> str:
    """The text of one file, decompressed. Raises InputError where it cannot be read or is not UTF-8."""
    with _said(spec), _decompressed(spec) as file:
        data = _bounded(file, spec)
    try:
        return data.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{spec} is not UTF-8.", str(error.reason), "Convert it to UTF-8.") from error


@contextlib.contextmanager
def _said(spec: str) -> Iterator[None]:
    """What libraries raise for a damaged file, as an error that names it."""
    try:
        yield
    except (InputError, FileNotFoundError):
        raise
    except RecursionError as error:
        raise InputError(f"{spec} cannot be read.", "It is nested too deeply.") from error
    except _UNREADABLE as error:
        raise InputError(f"{spec} cannot be read.", str(error).split("\n")[0][:200], "Is the file whole?") from error


def _found(spec: str) -> tuple[Any, str, bool]:
    """The file system and path of a file or directory, and whether it is a directory."""
    import fsspec  # here and below: a tenth of a second for each command

    try:
        filesystem, path = fsspec.core.url_to_fs(spec)
        is_directory = bool(filesystem.isdir(path))
        if is_directory or filesystem.isfile(path):
            return filesystem, path, is_directory
    except ValueError as error:  # a protocol or name that there cannot be
        raise FileNotFoundError(str(error)) from error
    raise FileNotFoundError


# ------------------------------------------------------------------------------------------------------ lines and CSV


def _decompressed(spec: str) -> IO[bytes]:
    """A file as bytes. zstd is pyarrow's, since fsspec needs another package for it."""
    import fsspec

    if spec.lower().endswith(".zst"):
        import pyarrow as pa

        return io.BufferedReader(_Raw(pa.CompressedInputStream(fsspec.open(spec, "rb").open(), "zstd")))
    opened: IO[bytes] = fsspec.open(spec, "rb", compression="infer").open()
    return opened


class _Raw(io.RawIOBase):
    """A stream of pyarrow as Python reads one."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _bounded(file: IO[bytes], spec: str) -> bytes:
    """All of a file, at most as much as the limit."""
    data = bytearray()
    while block := file.read(1 << 24):
        data += block
        TEXT_FILE_BYTES.require(len(data), spec)
    return bytes(data.removeprefix(codecs.BOM_UTF8))


def _standard_input() -> list[Placed]:
    """JSON lines where the first line is an object, else a text a line."""
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("Standard input is a terminal.", "'-' stands for texts from a pipe.", "cat FILE | klscale ...")
    data = _bounded(sys.stdin.buffer, "standard input")
    ending = ".jsonl" if data.lstrip()[:1] == b"{" else ".txt"
    return _parsed(f"standard input{ending}", data, said="standard input")


def _parsed(spec: str, data: bytes, said: str = "") -> list[Placed]:
    if re.search(r"\.[ct]sv" + _COMPRESSED, spec, re.IGNORECASE):
        return [*_numbered(_csv_rows(data))]
    lines = [(f"line {n}", line) for n, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    is_plain = bool(re.search(r"\.txt" + _COMPRESSED, spec, re.IGNORECASE))
    return [(place, _parse_line(said or spec, place, line, is_plain)) for place, line in lines]


def _parse_line(spec: str, place: str, line: bytes, is_plain: bool) -> Any:
    try:
        return {"text": line.decode().rstrip("\r")} if is_plain else json.loads(line)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{spec}, {place}: not UTF-8 ({error.reason} at byte {error.start}).", remedy="Convert the file to UTF-8."
        ) from error
    except RecursionError as error:
        raise InputError(f"{spec}, {place}: nested too deeply.", remedy="Mend or delete that line.") from error
    except json.JSONDecodeError as error:
        why = f"{error.msg} at column {error.colno}."
        raise InputError(f"{spec}, {place}: not JSON.", why, "Mend or delete that line.") from error


def _csv_rows(data: bytes) -> Iterator[dict[str, Any]]:
    """Rows by the names in the first line; what separates cells is what that line has most of. Cells are texts as they
    stand, `NA` too; an empty one is not there. A row with more or fewer cells is an error: a comma in a text without
    quotes would cut it short."""
    import pyarrow as pa
    from pyarrow import csv

    if data.count(b'"') % 2:
        raise ValueError("A quotation mark is never closed; one in a text is written twice, in quotes.")
    first = data.split(b"\n", 1)[0]
    separator = max(",;\t", key=lambda mark: first.count(mark.encode()))
    table = csv.read_csv(
        pa.BufferReader(data),
        csv.ReadOptions(block_size=min(len(data) + 1, (1 << 31) - 1), use_threads=False),
        csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=False),
    )
    if twice := {name for name in table.column_names if name in COLUMNS and table.column_names.count(name) > 1}:
        raise ValueError(f"Several columns are named {min(twice)!r}.")
    for batch in table.select([name for name in table.column_names if name in COLUMNS]).to_batches():
        yield from ({name: _cell(name, cell) for name, cell in row.items()} for row in _rows(batch))


def _cell(name: str, cell: str) -> Any:
    if not cell:
        return None
    return int(cell) if name == "prompt_bytes" and re.fullmatch(r"\d{1,18}", cell, re.ASCII) else cell


def _numbered(rows: Iterable[Any]) -> Iterator[Placed]:
    return ((f"row {n}", row) for n, row in enumerate(rows, 1))


# -------------------------------------------------------------------------------------------------- Parquet and Arrow


def _bounded_rows(rows: Iterable[Mapping[str, Any]], spec: str) -> Iterator[Mapping[str, Any]]:
    """The rows, until they hold more than the limit: a small file can repeat one large value for ever."""
    total = 0
    for row in rows:
        total += _size(row)
        TEXT_FILE_BYTES.require(total, spec)
        yield row


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8


def _parquet_rows(file: Any, place: str) -> Iterator[dict[str, Any]]:
    """Strings stay in the file's own dictionaries until a row is taken, so that a batch needs no more than they do."""
    from pyarrow import parquet

    with parquet.ParquetFile(file) as found:
        leaves = [found.schema.column(n) for n in range(len(found.schema))]
        taken = [n for n, leaf in enumerate(leaves) if leaf.path.split(".")[0] in COLUMNS]
        strings = [leaves[n].path for n in taken if leaves[n].physical_type == "BYTE_ARRAY"]
        groups = [found.metadata.row_group(n) for n in range(found.num_row_groups)]
        TEXT_FILE_BYTES.require(sum(group.column(n).total_uncompressed_size for group in groups for n in taken), place)
    file.seek(0)
    with parquet.ParquetFile(file, read_dictionary=strings) as found:
        names = [name for name in found.schema_arrow.names if name in COLUMNS]
        for batch in found.iter_batches(1024, columns=names):
            yield from _rows(batch)


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    columns = {name: batch.column(name) for name in batch.schema.names if name in COLUMNS}
    for n in range(batch.num_rows):
        yield {name: column[n].as_py() for name, column in columns.items()}


def _directory_rows(filesystem: Any, path: str, spec: str) -> Iterator[dict[str, Any]]:
    """A data set that `save_to_disk` of Hugging Face `datasets` wrote, or Parquet files in the order of their names."""
    names = {PurePosixPath(entry).name for entry in filesystem.ls(path, detail=False)}
    if "dataset_dict.json" in names:
        splits = _list(filesystem, f"{path}/dataset_dict.json", "splits")
        known = [split for split in splits if isinstance(split, str) and split in names]
        if len(known) != 1:
            raise InputError(
                f"{spec} holds {len(known)} splits: {', '.join(known)}.", remedy=f"Choose one: {spec.rstrip('/')}/SPLIT"
            )
        yield from _directory_rows(filesystem, f"{path}/{known[0]}", spec)
    elif "state.json" in names:
        if _list(filesystem, f"{path}/state.json", "_indices_data_files"):
            raise InputError(
                f"{spec} is a selection that was saved as row numbers.",
                "A version of datasets before 2.0 wrote it.",
                "Save it again with a current one.",
            )
        for part in _list(filesystem, f"{path}/state.json", "_data_files"):
            name = str(part.get("filename") if isinstance(part, Mapping) else part)
            if name not in names:  # which leaves out a path to another place
                raise InputError(f"{spec}: {name[:80]!r}, a file that state.json names, is not in the directory.")
            with filesystem.open(f"{path}/{name}", "rb") as file:
                yield from _arrow_rows(file)
    elif parts := sorted(name for name in names if name.lower().endswith(".parquet")):
        for name in parts:
            with filesystem.open(f"{path}/{name}", "rb") as file:
                yield from _parquet_rows(file, f"{spec.rstrip('/')}/{name}")
    else:
        raise InputError(
            f"{spec} is a directory without texts.",
            "A data set is what `save_to_disk` wrote, or a directory of .parquet files.",
            "Give a file, or such a directory.",
        )


def _list(filesystem: Any, path: str, key: str) -> list[Any]:
    """A list in a JSON object; empty where the object lacks it."""
    with filesystem.open(path, "rb") as file:
        found = json.loads(_bounded(file, path))
    listed = (found.get(key) or []) if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise ValueError(f"{PurePosixPath(path).name} has no list under {key!r}")
    return listed


def _arrow_rows(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow stream, each batch checked before anything in it is followed."""
    import pyarrow as pa

    with pa.ipc.open_stream(file) as stream:
        for batch in stream:
            batch.validate(full=True)
            yield from _rows(batch)


# ------------------------------------------------------------------------------------------------------------- the hub


def _hub_name(spec: str) -> tuple[str, Sequence[str]] | None:
    """The data set, and configuration and split where they are given; None for anything else, a file in one too."""
    parts = spec.removeprefix(HUB).strip("/").split("/")
    if not spec.startswith(HUB) or not 2 <= len(parts) <= 4 or "@" in spec or _TABULAR.search(spec):
        return None
    return "/".join(parts[:2]), parts[2:]


def _hub_rows(name: str, chosen: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of one split, from the Parquet files that the hub makes of every data set."""
    from huggingface_hub import HfApi, errors, hf_hub_download

    spec = f"{HUB}{name}"
    asked: dict[str, Any] = {"repo_type": "dataset", "revision": CONVERTED}
    try:
        listed = HfApi().dataset_info(name, revision=CONVERTED, files_metadata=True).siblings or []
        named = {file.rfilename: file.size or 0 for file in listed}
        files = {file: size for file, size in named.items() if re.fullmatch(r"[^/]+/[^/]+/[^/]+\.parquet", file)}
        configuration = _one_of(spec, {file.split("/")[0] for file in files}, chosen[:1], "configurations", "default")
        inside = {file.split("/")[1] for file in files if file.startswith(f"{configuration}/")}
        split = _one_of(f"{spec}/{configuration}", inside, chosen[1:], "splits")
        parts = sorted(file for file in files if file.startswith(f"{configuration}/{split}/"))
        TEXT_FILE_BYTES.require(sum(files[part] for part in parts), spec)
        paths = [hf_hub_download(name, part, **asked) for part in parts]
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise InputError(
            f"{spec} is no data set of the hub, or the hub has no Parquet files of it.",
            "A private data set looks the same without a login.",
            f"Check the spelling, `hf auth login`, or name a file in it: {spec}/FILE.jsonl",
        ) from error
    except InputError:
        raise
    except Exception as error:  # whatever a network does
        raise InputError(
            f"{spec} could not be fetched.",
            str(error).split("\n")[0][:200],
            "Check the network, or give a file: --texts FILE. A set that the store holds goes by its name.",
        ) from error
    for path in paths:
        with Path(path).open("rb") as file:
            yield from _parquet_rows(file, spec)


def _one_of(spec: str, known: set[str], chosen: Sequence[str], what: str, usual: str = "") -> str:
    """The one that was chosen, or the only one, or the usual one."""
    if not known:
        raise InputError(f"{spec} has no {what}.", remedy="Name a file in it.")
    if chosen and chosen[0] not in known:
        raise InputError(f"{spec} has no {chosen[0]!r} among its {what}.", nearest(chosen[0], known))
    if chosen or len(known) == 1 or usual in known:
        return chosen[0] if chosen else usual if usual in known else next(iter(known))
    listed = sorted(known)
    more = ", ..." if len(listed) > 8 else ""
    raise InputError(f"{spec} has {len(listed)} {what}: {', '.join(listed[:8])}{more}.", "", f"Choose: {spec}/NAME")
