"""CSV as people have it: encodings, separators, decimal commas, comments, index columns, totals."""

from __future__ import annotations

import codecs
import csv as standard_csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import compute, csv

from klscale.errors import InputError, counted
from klscale.vectors.spreadsheets import unguarded, unguarded_cells

MISSING = (
    "", "NA", "N/A", "n/a", "#N/A", "#NA", "#NV", "NaN", "nan", "-nan", "null", "NULL", "None", "#VALUE!", "#DIV/0!",
    "#REF!", "#NUM!", "#NAME?", "<NA>", "-",
)  # fmt: skip
"""What spreadsheets and programs write where there is no number."""
TOTALS = re.compile(
    r"(?:grand )?(?:total|sum|mean|average|avg|median|std|summe|gesamt|mittelwert)s?\.?:?", re.IGNORECASE
)
"""The first cell of a row below the table that is about the rows above it."""
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_SEPARATORS = (",", ";", "\t", "|")
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_PLAIN = r"[-+]?\d+"
_EXPONENT = r"(?:[eE][-+]?\d+)?"
_DECIMAL = {mark: re.compile(rf"{_PLAIN}{re.escape(mark)}\d*{_EXPONENT}|{_PLAIN}{_EXPONENT}") for mark in ".,"}
_GROUPED = {
    ".": re.compile(
        rf"[-+]?\d{{1,3}}(?:(?P<mark>[,' \u00a0\u202f])\d{{3}}(?:(?P=mark)\d{{3}})*)?(?:\.\d+)?{_EXPONENT}"
    ),
    ",": re.compile(rf"[-+]?\d{{1,3}}(?:(?P<mark>[.' \u00a0\u202f])\d{{3}}(?:(?P=mark)\d{{3}})*)?(?:,\d+)?{_EXPONENT}"),
}
"""Numbers with thousands separators, by their decimal mark."""
_GROUPING = {".": re.compile(r"[,' \u00a0\u202f]"), ",": re.compile(r"[.' \u00a0\u202f]")}


@dataclass
class Table:
    """Columns as they were read, and in `notes` what had to be understood to read them."""

    columns: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def n_rows(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0


def read_csv(data: bytearray, strings: Sequence[str], *, decimal: str | None, duplicates: str | None) -> Table:
    """The columns of a CSV file; those named in `strings` are never read as numbers.

    `decimal` is the decimal mark; None: found. `duplicates`: `first` or `number` for columns of one name; None:
    refused. Raises InputError that names the line, the cell or the columns.
    """
    notes: list[str] = []
    text = _decoded(data, notes)
    text, separator, n_before = _preamble(text, notes)
    header = _header(text, separator)
    names = _names(header, duplicates, notes)
    encoded = text.encode()
    try:
        table = csv.read_csv(
            pa.BufferReader(encoded),
            # one thread and one block: errors know their row, and a column's type is decided by all its cells
            csv.ReadOptions(
                use_threads=False, block_size=min(len(encoded) + 1, 2**31 - 1),
                column_names=[*map(str, range(len(names)))], skip_rows_after_names=1,
            ),
            csv.ParseOptions(newlines_in_values=True, delimiter=separator),
            csv.ConvertOptions(
                column_types={str(n): pa.string() for n, name in enumerate(names) if name in strings},
                null_values=list(MISSING), strings_can_be_null=False,
            ),
        )  # fmt: skip
    except (pa.ArrowException, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        why = re.sub(r"Row #(\d+)", lambda match: f"line {int(match[1]) + n_before}", why)
        raise InputError("not a readable csv file.", why, "Mend it, or write it again (CSV: as UTF-8).") from error
    columns = {name: table[str(n)] for n, name in enumerate(names) if name is not None}
    tidy = _tidied(columns, strings, decimal, separator, notes)
    tidy.columns = {
        unguarded(name): unguarded_cells(cells) if pa.types.is_string(cells.type) else cells
        for name, cells in tidy.columns.items()
    }
    return tidy


def read_parquet(table: Any) -> Table:
    """The columns of a Parquet file in the types that the rest of the program reads."""
    if twice := [name for name, count in Counter(table.column_names).items() if count > 1]:
        raise _twice(twice[0], [n for n, name in enumerate(table.column_names, 1) if name == twice[0]])
    return Table({name: _simple(table[name]) for name in table.column_names})


def _simple(cells: Any) -> Any:
    """Decimals as float64, dictionaries and string views as what they stand for."""
    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    if pa.types.is_decimal(cells.type):
        return cells.cast(pa.float64())
    view = getattr(pa.types, "is_string_view", lambda _: False)
    return cells.cast(pa.string()) if view(cells.type) or pa.types.is_large_string(cells.type) else cells


# ------------------------------------------------------------------------------------------------- before the table


def _decoded(data: bytearray, notes: list[str]) -> str:
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    sample = data[:4000]
    if encoding == "utf-8" and len(sample) > 3 and sample[1::2].count(0) > len(sample) // 4:
        encoding = "utf-16-le"
    elif encoding == "utf-8" and len(sample) > 3 and sample[0::2].count(0) > len(sample) // 4:
        encoding = "utf-16-be"
    try:
        text = str(data, encoding)
    except UnicodeDecodeError as error:
        why = f"{error}"[:200]
        raise InputError("not a readable csv file.", why, "Mend it, or write it again (CSV: as UTF-8).") from error
    if encoding.startswith(("utf-16", "utf-32")):
        notes.append(f"Read as {encoding.upper()[:6]}.")
    return text


def _preamble(text: str, notes: list[str]) -> tuple[str, str, int]:
    """The text from its header on, its separator, and how many lines stood before the header."""
    separator, start, n_lines, comments = None, 0, 0, 0
    while start < len(text):
        end = text.find("\n", start)
        line = text[start : len(text) if end < 0 else end].strip("\r\n")
        named = re.fullmatch(r'"?sep=(.)"?', line.strip(), re.IGNORECASE)
        if named:
            separator = named[1]
        elif line.lstrip().startswith("#") and not _is_header(line):
            comments += 1
        elif line.strip():
            break
        start, n_lines = (len(text) if end < 0 else end + 1), n_lines + 1
    if comments:
        notes.append(f"{counted(comments, 'line')} of comments before the header left out.")
    text = text[start:]
    if separator is None:
        line = re.sub(r'"[^"]*"', "", text[: text.find("\n") if "\n" in text else len(text)])
        separator = max(_SEPARATORS, key=line.count) if any(map(line.count, _SEPARATORS)) else ","
    if separator != ",":
        notes.append(f"Columns separated by {_NAMES.get(separator, repr(separator))}.")
    return text, separator, n_lines


def _is_header(line: str) -> bool:
    """Whether a line that begins with # is the header all the same: `#id,bytes,model`."""
    return bool(re.match(r"#\s?\w+[,;\t|]\s*[\w\"]", line.lstrip())) and "bytes" in line


def _header(text: str, separator: str) -> list[str]:
    reader = standard_csv.reader(io.StringIO(text[:1_000_000], newline=""), delimiter=separator)
    try:
        header = next(reader)
    except StopIteration as error:
        raise InputError("the file has no header.", remedy="The first line names the columns.") from error
    except standard_csv.Error as error:
        raise InputError("not a readable csv file.", str(error), "Mend the header.") from error
    if any("\0" in name for name in header):
        raise InputError("not a readable csv file.", "Its header holds a NUL character.", "Mend the header.")
    return header


def _names(header: Sequence[str], duplicates: str | None, notes: list[str]) -> list[str | None]:
    """The name of each column, None for one that is left out."""
    names: list[str | None] = [name.strip() for name in header]
    count: Counter[str] = Counter()
    for place, name in enumerate(header):
        count[stripped := name.strip()] += 1
        if not stripped or count[stripped] == 1:
            continue
        places = [n for n, other in enumerate(header, 1) if other.strip() == stripped]
        if duplicates is None:
            raise _twice(stripped, places)
        names[place] = None if duplicates == "first" else f"{stripped}.{count[stripped]}"
        what = "left out" if duplicates == "first" else f"read as {names[place]!r}"
        notes.append(f"Column {place + 1}, another {stripped!r}, is {what}.")
    blank = [n for n, name in enumerate(names) if name == ""]
    for n in blank:
        names[n] = f"\0{n}"
    return names


def _twice(name: str, places: Sequence[int]) -> InputError:
    why = f"They are columns {' and '.join(map(str, places))}. Which is meant?"
    return InputError(f"two columns are called {name!r}.", why, "Rename or drop one, or: --duplicates first|number")


# --------------------------------------------------------------------------------------------------------- cells


def _tidied(
    columns: dict[str, Any], strings: Sequence[str], decimal: str | None, separator: str, notes: list[str]
) -> Table:
    """Without nameless columns and rows below the table; with numbers as numbers."""
    tidy: dict[str, Any] = {}
    for name, cells in columns.items():
        if not name.startswith("\0"):
            tidy[name] = cells
        elif _is_empty(cells):
            notes.append(f"Column {int(name[1:]) + 1} has neither a name nor values: left out.")
        elif name == "\0" + "0" and pa.types.is_integer(cells.type):
            notes.append("The first column has no name: taken for the row's number, and left out.")
        else:
            what = f"column {int(name[1:]) + 1} has no name."
            raise InputError(what, f"It begins {cells[0].as_py()!r}.", "Name it in the header, or drop it.")
    if tidy and (below := _rows_below(tidy)):
        first = next(iter(tidy.values()))
        notes.append(f"The last {'row' if below == 1 else f'{below} rows'} left out: it holds totals, or nothing.")
        tidy = {name: cells.slice(0, len(first) - below) for name, cells in tidy.items()}
    written = {
        name: cells
        for name, cells in tidy.items()
        if name not in strings and pa.types.is_string(cells.type) and _are_numbers(cells)
    }
    if written:
        points = any(pa.types.is_floating(cells.type) for cells in tidy.values())  # were read already
        mark = decimal or ("." if points else _decimal_mark(written, separator))
        for name, cells in written.items():
            tidy[name] = _numbers(cells, mark)
        if mark == ",":
            notes.append("Numbers with decimal commas.")
        elif any(_GROUPING["."].search(cell) for cells in written.values() for cell in _known(cells)):
            notes.append("Numbers with thousands separators.")
    return Table(tidy, notes)


def _is_empty(cells: Any) -> bool:
    return pa.types.is_null(cells.type) or cells.null_count == len(cells) or set(cells.to_pylist()) <= {"", None}


def _rows_below(columns: dict[str, Any]) -> int:
    """How many rows at the end are no texts: empty ones, and those whose first word is `Total` or its like."""
    cells, n = list(columns.values()), len(next(iter(columns.values())))
    found = 0
    for row in range(n - 1, max(n - 6, 0), -1):
        values = [column[row].as_py() for column in cells]
        words = [value.strip() for value in values if isinstance(value, str) and value.strip()]
        filled = [value for value in values if value is not None and value != ""]
        if not filled or (words and TOTALS.fullmatch(words[0])):
            found = n - row
    return found


def _known(cells: Any) -> list[str]:
    """The different cells of a column of strings that are not missing."""
    written = (cell.strip() for cell in compute.unique(cells).to_pylist() if cell is not None)
    return [cell for cell in written if cell not in MISSING]


def _are_numbers(cells: Any) -> bool:
    """Whether a column of strings holds numbers as people write them; all of them with one decimal mark."""
    known = _known(cells)
    return bool(known) and any(all(_fits(mark, cell) for cell in known) for mark in ".,")


def _decimal_mark(columns: Mapping[str, Any], separator: str) -> str:
    """The mark before decimals in all these columns. Raises InputError where both could be it: `-1,234`."""
    known = {name: _known(cells) for name, cells in columns.items()}
    marks = [mark for mark in ".," if all(_fits(mark, cell) for cells in known.values() for cell in cells)]
    if len(marks) == 1:
        return marks[0]
    name, cell = next(((name, c) for name, cells in known.items() for c in cells if "," in c or "." in c), ("", ""))
    if marks and not cell:
        return "."
    if marks and separator == ";" and not any("." in c for cells in known.values() for c in cells):
        return ","  # commas before decimals are why a table is separated by semicolons
    what = f"column {name!r}: {cell!r} can be read in two ways."
    why = "Its mark may stand before decimals, or between thousands; so in every cell, or one cell contradicts another."
    raise InputError(what, why, "Say which mark stands before decimals: --decimal , or --decimal .")


def _numbers(cells: Any, mark: str) -> Any:
    """A column of strings as float64; NaN where a cell holds no number with this decimal mark."""
    values = [
        None
        if cell is None or not _fits(mark, cell.strip())
        else _GROUPING[mark].sub("", cell.strip()).replace(mark, ".")
        for cell in cells.to_pylist()
    ]
    numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    return pa.chunked_array([pa.array(numbers, pa.float64(), from_pandas=True)])


def _fits(mark: str, cell: str) -> bool:
    """Whether a cell is a number with this decimal mark, with separators between thousands or without."""
    return bool(_DECIMAL[mark].fullmatch(cell) or _GROUPED[mark].fullmatch(cell))
