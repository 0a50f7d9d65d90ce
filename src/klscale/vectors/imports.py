"""Log-likelihoods that were computed elsewhere: CSV and Parquet tables, sample logs, and the published pickles, read
without ever running what a pickle asks for.

    vectors = read_log_likelihoods("examples/pile-trained-14.csv", id_column="text_id")
    vectors = read_log_likelihoods("raw_log-likelihood_1018.pkl", texts=load_texts("pile-10k"))
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from klscale.errors import InputError, near_names, nearest, printable
from klscale.inputs.attributes import ATTRIBUTES, NUMBERS, number_of, require_free
from klscale.inputs.references import ModelRef, canonical
from klscale.inputs.texts import TextSet
from klscale.limits import TABLE_BYTES
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats, Integers
from klscale.vectors.dialects import Table, read_csv, read_parquet
from klscale.vectors.long_tables import is_long, to_wide
from klscale.vectors.pickles import SAVE_AS, load_pickle
from klscale.vectors.samples import SCORED_DOCUMENTS, model_of, read_samples, read_scored_documents
from klscale.vectors.vectors import IMPORTED, Vectors, external_id, require_log_likelihoods

PUBLISHED = "published: default special tokens; tokens 2 to n; fp16"
"""The convention of the published pickles, whose sums were taken in fp16 (arXiv 2502.16173)."""

UNITS, PER = ("nats", "bits"), ("text", "byte", "token")
"""What values may be in, and what they may be of."""

PLAUSIBLE = (0.2, 12.0)
"""Bits per byte that language models have on nearly all texts, from the best on code to one before training."""

FEWEST_TO_JUDGE = 20
"""Texts below which nothing is concluded from bits per byte."""

FORMATS = (".csv", ".csv.gz", ".jsonl", ".parquet", ".pkl", ".pickle")
_COUNTS = re.compile(r"n_tokens(?: (.+))?")
_FORMAT = re.compile(r"([^/\\]*)\.(csv|jsonl|parquet|pkl|pickle)(\.gz)?(?:\?.*)?$", re.IGNORECASE)


def read_log_likelihoods(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    id_column: str | None = None,
    texts: TextSet | None = None,
    attributes: str | os.PathLike[str] | None = None,
    unit: str = "nats",
    per: str = "text",
    negate: bool = False,
    decimal: str | None = None,
    duplicates: str | None = None,
    force: bool = False,
    model: str | None = None,
    progress: Progress = SILENT,
) -> Vectors:
    """Vectors (K, N) from a file or fsspec URL that holds log-likelihoods.

    `.csv` (also `.gz`) and `.parquet`, wide: one row a text. A model column holds floats, none of them positive; its
    name is the model. `bytes` are the texts' UTF-8 lengths (not needed where the file has the texts, under `text`),
    `document` and `domain` label them. Other columns are kept as labels of the text set, `id_column` as `id`.
    With `texts` the rows are those texts, in that order; else `name` (the file's own by default) names a new set.

    Long: one row a model and text, with the columns `model` and `log_likelihood` (or `value`), a column that names the
    text (`id_column`, or `text`, `id`, `text_id`, `document_id`), and perhaps `step` and `seed` of the model.

    `unit` (`nats` or `bits`), `per` (`text`, `byte` or `token`, with token counts in a column `n_tokens`) and `negate`
    (the file holds losses) say what the values are; they become nats per text. A file whose values are implausible, by
    bits per byte of most texts, is refused unless `force`. `decimal` is the decimal mark of a CSV file, found where
    None; `duplicates` (`first`, `number`) says what to do with columns of one name. `progress` notes how a file was
    read.

    `.jsonl`: a sample log of lm-evaluation-harness (`--log_samples`): one model, with its texts; a request with a
    context is a response to it. `.parquet` with the columns `text`, `per_byte_loss`, `token_byte_starts` and
    `token_byte_ends`: documents as levanter and marin score them, one model with its texts and spans. `model` names
    the model; by default the directory of the file does.

    `.pkl`: the published pickles, a dictionary from model to array, or a list of dictionaries with `model_name` and
    `log-likelihood-10k`. They need `texts`. Nothing in them is run: what is not plain data is refused.

    `attributes`: a CSV file with a row a model, named under `model`, and columns `family`, `type`, `parameters`,
    `seed`, `step`, `warmup`, `parent`, `quantization` for what names do not tell, or tell wrongly. Any other column is
    kept as a free attribute, as numbers where all its cells are; an empty cell says nothing.

    Raises InputError for a file that cannot be used as it is; rows are counted from 1, without the header.
    """
    source = os.fspath(path)
    given = {} if attributes is None else read_attributes(attributes)
    measure = _Measure(unit, per, negate, force)
    try:
        _require_known(unit, per, decimal, duplicates)
        if not (match := _FORMAT.search(source)):
            extension = source[source.rfind(".") :] if "." in source else ""
            raise InputError("this format cannot be imported.", nearest(extension, FORMATS), SAVE_AS)
        stem, kind, gz = match[1], match[2].lower(), match[3]
        named = (name or stem, model or model_of(source), given)
        if kind == "jsonl":
            return _of_documents(read_samples(_read(source, gz), *named), texts, measure)
        if kind in ("csv", "parquet"):
            table = _table(kind, _read(source, gz), id_column, decimal=decimal, duplicates=duplicates)
            if kind == "parquet" and {*SCORED_DOCUMENTS} <= table.columns.keys():
                return _of_documents(read_scored_documents(table.columns, *named), texts, measure)
            vectors = _from_table(table, name or stem, id_column, texts, given, measure)
            for note in table.notes:
                progress.note(note)
            return vectors
        if texts is None:
            why = "A pickle carries neither the texts nor their lengths in bytes."
            raise InputError("which texts?", why, "Name them: --texts pile-10k for the published files.")
        return _from_pickle(load_pickle(_read(source, gz)), texts, given)
    except InputError as error:
        raise error.at(source) from error


def _of_documents(vectors: Vectors, texts: TextSet | None, measure: _Measure) -> Vectors:
    """The vector of a file that holds its texts; on `texts` where these are given. Raises InputError for others."""
    if measure != _Measure(force=measure.force):
        raise InputError("its values are log-likelihoods in nats.", remedy="Leave --unit, --per and --negate out.")
    (row,) = vectors.log_likelihood
    measure.require_plausible(f"model {vectors.names[0]!r}", row, vectors.texts.bytes)
    if texts is None:
        return vectors
    if texts.id != vectors.texts.id:
        what = f"its texts are not those of {texts.name}, in the same order."
        raise InputError(
            what, f"It has {len(vectors.texts):,} texts, {texts.name} {len(texts):,}.", "Leave --texts out."
        )
    return replace(vectors, texts=texts)


def _require_known(unit: str, per: str, decimal: str | None, duplicates: str | None) -> None:
    allowed = {"--unit": UNITS, "--per": PER, "--decimal": (".", ","), "--duplicates": ("first", "number")}
    for (option, known), value in zip(allowed.items(), (unit, per, decimal, duplicates), strict=True):
        if value is not None and value not in known:
            raise InputError(f"{option} {value!r} is not known.", remedy=nearest(value, known))


def _read(source: str, gz: str | None) -> bytearray:
    data = bytearray()
    try:
        with fsspec.open(source, "rb", compression="gzip" if gz else None) as file:
            while block := file.read(1 << 24):
                data += block
                TABLE_BYTES.require(len(data), "the file")
    except (OSError, EOFError, ValueError, ImportError, zlib.error) as error:
        known = f"{error.strerror}." if isinstance(error, OSError) and error.strerror else ""
        why = known or f"{type(error).__name__}: {error}"
        raise InputError("cannot be read.", why, "Check the path.") from error
    if not data:
        raise InputError("the file is empty.", remedy="Was it downloaded, or written, to its end?")
    return data


# ---------------------------------------------------------------------------------------------------------- tables


def _table(
    kind: str, data: bytearray, id_column: str | None, *, decimal: str | None = None, duplicates: str | None = None
) -> Table:
    if kind == "csv":
        strings = [column for column in ("document", "domain", "text", "model", id_column) if column]
        return read_csv(data, strings, decimal=decimal, duplicates=duplicates)
    try:
        return read_parquet(parquet.read_table(pa.BufferReader(data)))
    except (pa.ArrowException, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError("not a readable parquet file.", why, "Mend it, or write it again.") from error


@dataclass(frozen=True)
class _Measure:
    """What the values of a file are: see `read_log_likelihoods`."""

    unit: str = "nats"
    per: str = "text"
    negate: bool = False
    force: bool = False

    def nats_per_text(self, values: Floats, text_bytes: Integers, n_tokens: Floats | None) -> Floats:
        """Log-likelihoods (N,) in nats per text from the values (N,) of a file."""
        factor = (-1 if self.negate else 1) * (math.log(2) if self.unit == "bits" else 1.0)
        count: Any = {"text": 1, "byte": text_bytes, "token": n_tokens}[self.per]
        return values * factor * count if self != _Measure(force=self.force) else values

    def require_plausible(self, place: str, values: Floats, text_bytes: Integers) -> None:
        """Raise InputError where most texts have a number of bits per byte that no language model has."""
        middle = _median_bits_per_byte(values, text_bytes)
        if self.force or len(values) < FEWEST_TO_JUDGE or PLAUSIBLE[0] <= middle <= PLAUSIBLE[1]:
            return
        low, high = PLAUSIBLE
        raise InputError(
            f"{place}: {middle:.4g} bits/byte, median over texts.",
            f"Language models have {low:g} to {high:g} on nearly all texts. Are the values nats per text?",
            "Say what they are: --unit bits, --per byte|token, --negate; or take them as they are: --force.",
        )

    def require_no_model(self, label: str, cells: Any, text_bytes: Integers) -> None:
        """Raise InputError for a label whose values are those of a model but for their sign."""
        if self.force or self.per == "token" or not pa.types.is_floating(cells.type) or len(cells) < FEWEST_TO_JUDGE:
            return
        values = _numbers(cells)
        if not np.isfinite(values).all() or (values % 1 == 0).all():  # log-likelihoods are no whole numbers
            return
        turned = replace(self, negate=not self.negate).nats_per_text(values, text_bytes, None)
        middle = _median_bits_per_byte(turned, text_bytes)
        if (turned < 0).all() and PLAUSIBLE[0] <= middle <= PLAUSIBLE[1]:
            raise InputError(
                f"column {label!r} has another sign than the models.",
                f"With its sign turned it would be a model of {middle:.3g} bits/byte, median over texts.",
                "Turn its sign, or drop it; --force keeps it as a label of the texts.",
            )


def _median_bits_per_byte(values: Floats, text_bytes: Integers) -> float:
    """The median over texts, from log-likelihoods (N,) in nats."""
    return float(np.median(-values / text_bytes / math.log(2)))


def _from_table(
    table: Table,
    name: str,
    id_column: str | None,
    texts: TextSet | None,
    given: Mapping[str, dict[str, Any]],
    measure: _Measure,
) -> Vectors:
    columns: Mapping[str, Any] = table.columns
    if id_column is not None and id_column not in columns:
        raise InputError(f"no column {id_column!r}.", nearest(id_column, columns)[:200], "Choose another with --id.")
    if is_long(columns):
        columns, id_column, more = to_wide(columns, id_column)
        given = {model: {**more.get(model, {}), **given.get(model, {})} for model in {**more, **given}}
        table.notes.append(f"Read as a long table: a row is one model and one text; {len(more):,} models.")
    n_rows = len(next(iter(columns.values()))) if columns else 0
    if n_rows < 2:
        why = "One row is one text, and KL is estimated from differences between texts."
        raise InputError(f"{n_rows} rows; at least 2 are needed.", why, "Import more texts.")
    if texts is not None and n_rows != len(texts):
        what = f"{n_rows:,} rows; the text set {texts.name} has {len(texts):,} texts."
        raise InputError(what, "One row is one text, in the text set's order.", "Give the texts that were scored.")

    found, counts, labels = _by_kind(columns, id_column, measure)
    lengths = _byte_counts(columns["bytes"]) if "bytes" in columns else None
    strings = _strings("text", columns) if "text" in columns and id_column != "text" else None
    if texts is not None:
        text_bytes = texts.bytes
    elif strings is not None:
        text_bytes = np.array([len(string.encode()) for string in strings])
    elif lengths is not None:
        text_bytes = lengths
    else:
        why = f"KL is in bits per byte: each text's UTF-8 length is needed. {nearest('bytes', columns)[:200]}"
        raise InputError("no column 'bytes'.", why, "Add it, or the texts as 'text', or give --texts.")
    models = {}
    for column, values in found.items():
        n_tokens = counts.get(column, counts.get(""))
        if measure.per == "token" and n_tokens is None:
            why = "Values per token need the number of tokens of each text."
            raise InputError(f"no token counts for {column!r}.", why, f"Add a column n_tokens, or 'n_tokens {column}'.")
        models[column] = measure.nats_per_text(values, text_bytes, n_tokens)
        measure.require_plausible(f"column {column!r}", models[column], text_bytes)
    for label in labels:
        if label in columns:  # and not the id of the rows
            measure.require_no_model(label, columns[label], text_bytes)
    if texts is None:
        known: dict[str, Any] = {
            label: _strings(label, columns) for label in ("document", "domain") if label in columns
        }
        if strings is not None:
            texts = TextSet.from_texts(name, strings, **known, labels=labels)
        else:
            matrix = np.stack(list(models.values()))
            text_set = external_id(text_bytes, matrix, list(models))
            texts = TextSet(name=name, bytes=text_bytes, id=text_set, labels=labels, **known)
    _require_same(texts, lengths, strings)
    return _vectors(models, texts, IMPORTED, given)


def _by_kind(
    columns: Mapping[str, Any], id_column: str | None, measure: _Measure
) -> tuple[dict[str, Floats], dict[str, Floats], dict[str, tuple[Any, ...]]]:
    """The values (N,) of the model columns, token counts (N,) by model ("" for all), and the labels of the texts.
    Raises InputError for no model column, and for an `id_column` that names two rows alike."""
    found: dict[str, Floats] = {}
    counts: dict[str, Floats] = {}
    labels: dict[str, tuple[Any, ...]] = {}
    for column, cells in columns.items():
        if column in ("bytes", "text", "document", "domain", id_column):
            continue
        if measure.per == "token" and (match := _COUNTS.fullmatch(column)):
            counts[match[1] or ""] = _token_counts(column, cells)
        elif (values := _model_values(column, cells, measure.negate)) is not None:
            found[column] = values
        else:  # as what JSON can write
            written = (c if c is None or isinstance(c, str | int | float) else str(c) for c in cells.to_pylist())
            labels[column] = tuple(written)
    if not found:
        raise _no_model(columns, measure.negate)
    if id_column is not None:
        labels["id"] = _strings(id_column, columns)
        if repeated := [value for value, count in Counter(labels["id"]).items() if count > 1]:
            rows = [str(row) for row, value in enumerate(labels["id"], 1) if value == repeated[0]]
            why = f"{repeated[0]!r} is in rows {', '.join(rows)[:200]}."
            raise InputError(f"column {id_column!r} does not identify the rows.", why, "Choose another with --id.")
    return found, counts, labels


def _no_model(columns: Mapping[str, Any], negate: bool) -> InputError:
    """That no column holds log-likelihoods, and what to do where they have the other sign."""
    for column, cells in columns.items():
        if column == "bytes" or not pa.types.is_floating(cells.type):
            continue
        if negate and (_numbers(cells) < 0).all():
            what = f"no model column: every value of {column!r} is negative."
            return InputError(what, "--negate is for losses, which are positive.", "Leave --negate out.")
        if not negate and (_numbers(cells) > 0).all():
            what = f"no model column: every value of {column!r} is positive."
            return InputError(what, "Log-likelihoods are at most 0. Are these losses?", "If they are: --negate")
    why = f"It is a column of floats without a positive value. Columns: {', '.join(map(repr, columns))[:300]}."
    return InputError("no model column.", why, "Commas between columns, decimal points, nats (at most 0).")


def _token_counts(column: str, cells: Any) -> Floats:
    values = _numbers(cells)
    if not (values > 0).all():
        row = int((values > 0).argmin())
        what = f"column {column!r}, row {row + 1}: {cells[row].as_py()!r} is not a number of tokens."
        raise InputError(what, remedy="Mend or drop that row.")
    return values


def _require_same(texts: TextSet, lengths: Integers | None, strings: tuple[str, ...] | None) -> None:
    """Raise InputError where `bytes` or `text` of the file contradict the texts: most often, rows in another order."""
    differs = np.zeros(len(texts), dtype=bool) if lengths is None else lengths != texts.bytes
    if strings is not None and texts.texts is not None:
        differs |= np.array([a != b for a, b in zip(strings, texts.texts, strict=True)])
    if differs.any():
        row = int(differs.argmax())
        what = f"row {row + 1} is not text {row + 1} of {texts.name}, which has {texts.bytes[row]} bytes."
        raise InputError(what, "'bytes' or 'text' differ.", "Order the rows as the texts, or drop that column.")


def _model_values(column: str, cells: Any, negate: bool = False) -> Floats | None:
    """The values of a model column (N,) as they are, None for a column that is a label.

    Floats that are never positive, or mostly negative, are meant as log-likelihoods; integers (positions, codes, -1
    for unknown) only if they are all negative and not all the same. `negate`: all of that for the opposite sign.
    """
    as_written = _numbers(cells)
    values = -as_written if negate else as_written
    negative, known = int((values < 0).sum()), int((~np.isnan(values)).sum())
    if pa.types.is_integer(cells.type):
        meant = negative == len(values) and bool((values != values[0]).any())
    elif pa.types.is_floating(cells.type):
        meant = negative > 0 and (2 * negative > known or not (values > 0).any())
    else:
        meant = 2 * negative > len(values)
    if not meant:
        return None
    for row in np.flatnonzero(np.isnan(values)):
        if isinstance(cell := cells[int(row)].as_py(), str) and cell.strip():
            what = f"column {column!r}, row {row + 1}: {cell[:40]!r} is not a number."
            raise InputError(what, "The other cells are log-likelihoods.", "Mend the cell, or drop the column.")
    _require_log_likelihoods(f"column {column!r}", "row", values)
    return as_written


def _require_log_likelihoods(place: str, unit: str, values: Floats) -> None:
    if (missing := np.isnan(values)).any():
        what = f"{place}: {missing.sum():,} missing values, the first in {unit} {missing.argmax() + 1}."
        raise InputError(what, "Every model needs a value for every text.", "Score those texts, or drop them.")
    require_log_likelihoods(place, unit, values)


def _numbers(cells: Any) -> Floats:
    """A column as float64, NaN where a cell holds no number."""
    if pa.types.is_temporal(cells.type) or pa.types.is_nested(cells.type):
        return np.full(len(cells), np.nan)
    if pa.types.is_floating(cells.type):
        return np.asarray(cells.to_numpy(), dtype=np.float64)
    numbers = pd.to_numeric(cells.to_pandas().astype(object), errors="coerce")
    return np.asarray(numbers, dtype=np.float64)


def _byte_counts(cells: Any) -> Integers:
    values = _numbers(cells)
    good = (values > 0) & (values < 2**53) & (values == np.floor(values))
    if not good.all():
        row = int(good.argmin())
        what = f"column 'bytes', row {row + 1}: {cells[row].as_py()!r} is not a positive whole number."
        raise InputError(what, "It is the length of the text in UTF-8 bytes.", "Mend or drop that row.")
    return values.astype(np.int64)


def _strings(column: str, table: Mapping[str, Any]) -> tuple[str, ...]:
    cells = table[column].to_pylist()
    for row, cell in enumerate(cells, 1):
        if cell is None or cell == "" or cell != cell:
            why = f"Where there is a {column!r}, every text needs its own."
            raise InputError(f"column {column!r}, row {row}: empty.", why, "Fill it in, or drop the column.")
    return tuple(map(str, cells))


# --------------------------------------------------------------------------------------------------------- pickles


def _from_pickle(loaded: Any, texts: TextSet, given: Mapping[str, dict[str, Any]]) -> Vectors:
    rows, known = loaded, dict[str, dict[str, Any]]()
    if isinstance(loaded, list) and all(isinstance(r, dict) and isinstance(r.get("model_name"), str) for r in loaded):
        rows = {r["model_name"]: r.get("raw_log-likelihood-10k", r.get("log-likelihood-10k")) for r in loaded}
        known = {r["model_name"]: _metadata(r) for r in loaded}
    if not isinstance(rows, dict) or not rows or not all(isinstance(model, str) for model in rows):
        why = "Expected: a dictionary from model name to array, or a list of dictionaries with 'model_name'."
        raise InputError("no log-likelihoods by model.", why, SAVE_AS)
    if len(rows) < len(loaded):
        raise InputError(f"{len(loaded)} entries, {len(rows)} models.", "Models repeat.", "Drop all but one of each.")
    TABLE_BYTES.require(len(rows) * len(texts) * 8, f"{len(rows):,} models")
    models = {model: _row(f"model {model!r}", values, texts) for model, values in rows.items()}
    lowest = min(values.min() for values in models.values())
    clipped = texts.clip is not None and math.isclose(lowest, texts.clip, rel_tol=1e-9)  # two published files are
    known |= {model: {**known.get(model, {}), **more} for model, more in given.items()}
    return _vectors(models, texts, f"{PUBLISHED}; clipped" if clipped else PUBLISHED, known)


def _row(place: str, values: Any, texts: TextSet) -> Floats:
    if isinstance(values, list) and all(isinstance(value, float | int) for value in values):
        values = np.array(values, dtype=np.float64)
    shape = getattr(values := getattr(values, "values", values), "shape", "no array of numbers")
    if shape != (len(texts),):
        what = f"{place}: {shape}; the text set {texts.name} has {len(texts):,} texts."
        raise InputError(what, "One value is one text, in the text set's order.", "Give the texts that were scored.")
    row: Floats = values.astype(np.float64)
    _require_log_likelihoods(place, "text", row)
    return row


def _metadata(record: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes from the published metadata: `model_size` is in units of 1e9; the hub's tags name the parent."""
    kind, tags = record.get("model_type"), record.get("tags")
    size: Any = record.get("model_size")
    known: dict[str, Any] = {"type": kind if isinstance(kind, str) else None}
    if isinstance(size, float | int) and 0 < (parameters := size * 1e9) < math.inf:
        known["parameters"] = round(parameters)
    for tag in tags if isinstance(tags, list) else ():
        if isinstance(tag, str) and tag.startswith("base_model:finetune:"):
            known["parent"] = tag.removeprefix("base_model:finetune:")
    return known


# ------------------------------------------------------------------------------------------------------ attributes


def read_attributes(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """What a CSV file says of models, by name; see `read_log_likelihoods`. Raises InputError that names the row."""
    source = os.fspath(path)
    try:
        table = _table("csv", _read(source, gz=None), "model")
        if "model" not in table.columns:
            raise InputError("no column 'model'.", "It names the model that a row is about.", "Add it.")
        columns = {*ATTRIBUTES, "model"} - {"layer"}  # part of a name: `gpt2#3`
        free = [name for name in table.columns if name not in columns]
        for name in free:
            require_free(name, "column")
        found: dict[str, dict[str, Any]] = {}
        for row, record in enumerate(pa.table(table.columns).to_pylist(), 1):
            cells = {name: str(cell).strip() for name, cell in record.items() if cell is not None}
            cells = {name: cell for name, cell in cells.items() if cell}
            if (model := cells.pop("model", "")) in found or not model:
                what = f"row {row}: {f'{model!r} again' if model else 'no model'}."
                raise InputError(what, "A model has one row.", "Mend or drop that row.")
            found[model] = {name: _typed(name, cell, row) for name, cell in cells.items()}
        for name in free:
            known = {model: row[name] for model, row in found.items() if name in row}
            for model, number in _as_numbers(known).items():
                found[model][name] = number
        return found
    except InputError as error:
        raise error.at(source) from error


def _as_numbers(cells: Mapping[str, str]) -> dict[str, float]:
    """The cells of a column as numbers, whole ones as such; empty where one is no finite number."""
    try:
        numbers = {model: float(cell) for model, cell in cells.items()}
    except ValueError:
        return {}
    if not all(map(math.isfinite, numbers.values())):
        return {}
    return {model: int(x) if x.is_integer() and abs(x) < 2**53 else x for model, x in numbers.items()}


def _typed(name: str, cell: str, row: int) -> Any:
    try:
        if name == "parent":
            return str(ModelRef.parse(cell))
        return number_of(name, cell) if name in NUMBERS else cell
    except InputError as error:
        raise error.at(f"row {row}") from error


# ---------------------------------------------------------------------------------------------------------- scores


def read_scores(
    path: str | os.PathLike[str], models: Iterable[str], *, progress: Progress = SILENT
) -> dict[str, dict[str, float]]:
    """Scores of models, {column: {model: number}}, from a CSV or Parquet file with a row a model. The column that names
    most of these `models` names them; every other column of numbers is a score. An empty cell says nothing.

    `progress` notes what was left out. Raises InputError for a file that names none of the models, that names one
    twice, or that has no numbers.
    """
    source, known = os.fspath(path), {*models}
    try:
        kind = "parquet" if source.lower().endswith(".parquet") else "csv"
        table = _table(kind, _read(source, "gz" if source.lower().endswith(".gz") else None), None)
        named: dict[str, list[str]] = {}
        for name, cells in table.columns.items():
            if pa.types.is_string(cells.type):
                words = [str(cell or "").strip() for cell in cells.to_pylist()]
                named[name] = [canonical(word) if word else "" for word in words]
        column = max(named, key=lambda name: len(known & {*named[name]}), default="")
        if not column or not known & {*named[column]}:
            first = next((cell for cell in named.get(column, ()) if cell), "")
            why = f"{first!r} is none of them. {near_names(first, known)}".rstrip() if first else ""
            raise InputError("no column names a model of the store.", why, "`klscale ls` lists the models.")
        names = named[column]
        seen: set[str] = set()
        for row, name in enumerate(names, 1):
            if name in seen:
                raise InputError(f"row {row}: {name!r} again.", "A model has one row.", "Mend or drop that row.")
            seen |= {name} & known
        scores: dict[str, dict[str, float]] = {}
        for name, cells in table.columns.items():
            if pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type):
                numbers = zip(names, _numbers(cells).tolist(), strict=True)
                scores[name] = {model: number for model, number in numbers if model and math.isfinite(number)}
        if not scores:
            raise InputError("no column of numbers.", "Scores are numbers.", "Write them as 61.7, without a sign of %.")
    except InputError as error:
        raise error.at(source) from error
    left_out = [name for name in table.columns if name not in scores and name != column]
    unknown = [name for name in dict.fromkeys(names) if name and name not in known]
    for note in table.notes:
        progress.note(note)
    if left_out:
        progress.note(f"Columns that are no numbers, left out: {_listed(left_out)}.")
    if unknown:
        progress.note(f"{len(unknown):,} of {len(names):,} models have no vector here: {_listed(unknown)}.")
    return scores


def _listed(names: Sequence[str]) -> str:
    return printable(", ".join(names[:5]) + (", ..." if len(names) > 5 else ""))


# --------------------------------------------------------------------------------------------------------- vectors


def _vectors(
    models: Mapping[str, Floats], texts: TextSet, convention: str, known: Mapping[str, dict[str, Any]]
) -> Vectors:
    attributes = {**known, **{name: {**known.get(name, {}), "convention": convention} for name in models}}
    return Vectors.from_arrays(np.stack(list(models.values())), list(models), texts, attributes)
