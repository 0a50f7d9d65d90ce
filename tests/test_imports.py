"""Log-likelihoods from elsewhere: what is read, what is refused and how it is said, and that pickles run nothing."""

from __future__ import annotations

import collections
import csv
import datetime
import gzip
import io
import os
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest

from klscale.errors import InputError
from klscale.inputs.texts import TextSet
from klscale.progress import Progress
from klscale.store.store import Store
from klscale.vectors import imports
from klscale.vectors.imports import IMPORTED, PUBLISHED, read_log_likelihoods
from klscale.vectors.vectors import COLUMNS

EXAMPLE = Path(__file__).parents[1] / "examples" / "pile-trained-14.csv"
TEXTS = TextSet.from_texts("three", ["one text", "another text", "the third"])
ROWS = {"a/model-1b": np.array([-1.5, -2.25, -1e-3]), "b": np.array([-3.0, -1.0, -0.1])}


def write(folder: Path, text: str | bytes, name: str = "values.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path, **options: object) -> InputError:
    with pytest.raises(InputError) as caught:
        read_log_likelihoods(path, **options)  # type: ignore[arg-type]
    error = caught.value
    assert error.what.startswith(f"{path}: ")
    assert error.remedy
    assert len(str(error).splitlines()) <= 3
    return error


# ---------------------------------------------------------------------------------------------------------- tables


def test_the_example_is_read_as_the_csv_module_reads_it() -> None:
    vectors = read_log_likelihoods(EXAMPLE, id_column="text_id")
    with EXAMPLE.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert vectors.names == tuple(header[6:])
    assert vectors.log_likelihood.shape == (14, 336)
    assert vectors.log_likelihood.dtype == np.float64
    np.testing.assert_array_equal(vectors.log_likelihood.T, [[float(cell) for cell in row[6:]] for row in rows])
    texts = vectors.texts
    assert texts.external
    assert texts.name == "pile-trained-14"
    assert texts.document == tuple(row[2] for row in rows)
    assert set(texts.bytes) == {280}
    assert set(texts.labels) == {"id", "corpus", "window", "words"}
    assert texts.labels["id"] == tuple(str(n) for n in range(336))
    assert texts.labels["window"][:3] == (0, 1, 2)
    assert tuple(vectors.attributes.columns) == COLUMNS
    assert set(vectors.attributes["convention"]) == {IMPORTED}
    assert vectors.attributes.loc["EleutherAI/pythia-2.8b", "family"] == "pythia"
    assert vectors.attributes.loc["EleutherAI/pythia-2.8b", "parameters"] == 2_800_000_000
    assert vectors.attributes["dtype"].isna().all()
    assert vectors.kl()["EleutherAI/pythia-2.8b", "EleutherAI/pythia-1.4b"].value > 0


def test_parquet_gzip_and_urls_give_what_csv_gives(tmp_path: Path) -> None:
    plain = read_log_likelihoods(EXAMPLE)
    with EXAMPLE.open(newline="") as file:
        header, *rows = csv.reader(file)
    kinds = dict.fromkeys(("text_id", "window", "words", "bytes"), int) | dict.fromkeys(header[6:], float)
    frame = pd.DataFrame(rows, columns=header).astype(kinds)
    frame.to_parquet(tmp_path / "x.parquet")
    with gzip.open(tmp_path / "x.csv.gz", "wb") as file:
        file.write(EXAMPLE.read_bytes())
    with fsspec.open("memory://imports/x.csv", "wb") as file:
        file.write(EXAMPLE.read_bytes())
    for source in (tmp_path / "x.parquet", str(tmp_path / "x.csv.gz"), "memory://imports/x.csv"):
        other = read_log_likelihoods(source)
        np.testing.assert_array_equal(other.log_likelihood, plain.log_likelihood)
        assert other.texts.id == plain.texts.id
        assert other.texts.name == "x"
        assert other.texts.document == plain.texts.document
        assert other.texts.labels == plain.texts.labels
        pd.testing.assert_frame_equal(other.attributes, plain.attributes)
    assert read_log_likelihoods(tmp_path / "x.csv.gz", name="mine").texts.name == "mine"


def test_parquet_types(tmp_path: Path) -> None:
    frame = pd.DataFrame({"bytes": [10.0, 20.0], "half": np.array([-1.5, -2], np.float16), "date": ["2001", "1901"]})
    frame["date"] = pd.to_datetime(frame["date"])
    frame["kind"] = pd.Categorical(["x", "y"])
    frame["nested"] = [[1, 2], [3]]
    frame.to_parquet(tmp_path / "x.parquet")
    vectors = read_log_likelihoods(tmp_path / "x.parquet")
    assert vectors.names == ("half",)
    assert vectors.texts.labels["kind"] == ("x", "y")
    assert vectors.texts.labels["date"][0].startswith("2001-01-01")
    assert vectors.texts.labels["nested"] == ("[1, 2]", "[3]")


def test_the_id_of_an_external_set_depends_on_bytes_values_and_names(tmp_path: Path) -> None:
    variants = (
        "bytes,m\n5,-1\n6,-2.5\n",
        "bytes,m\n5,-1\n7,-2.5\n",
        "bytes,m\n5,-1\n6,-2.6\n",
        "bytes,n\n5,-1\n6,-2.5\n",
    )
    ids = [read_log_likelihoods(write(tmp_path, text)).texts.id for text in variants]
    assert len(set(ids)) == 4
    assert ids[0] == read_log_likelihoods(write(tmp_path, variants[0], "other.csv")).texts.id


def test_texts_in_the_file_make_a_set_that_is_not_external(tmp_path: Path) -> None:
    path = write(tmp_path, 'text,domain,m\n"two\nlines, é",007,-1.5\n12,7,-2\n')
    texts = read_log_likelihoods(path).texts
    assert texts.texts == ("two\nlines, é", "12")
    assert texts.domain == ("007", "7")
    assert texts.bytes.tolist() == [13, 2]
    assert texts.id == TextSet.from_texts("", ["two\nlines, é", "12"]).id


def test_given_texts_are_kept_and_compared(tmp_path: Path) -> None:
    lengths = ["8", "12", "9"]
    path = write(tmp_path, "bytes,m\n" + "".join(f"{n},-1.5\n" for n in lengths))
    assert read_log_likelihoods(path, texts=TEXTS).texts is TEXTS
    assert read_log_likelihoods(write(tmp_path, "m\n-1.5\n-2.5\n-3\n"), texts=TEXTS).texts is TEXTS
    other_order = write(tmp_path, "bytes,m\n" + "".join(f"{n},-1.5\n" for n in reversed(lengths)))
    assert "row 1 is not text 1 of three, which has 8 bytes" in refusal(other_order, texts=TEXTS).what
    assert "row 2" in refusal(write(tmp_path, "text,m\none text,-1\nother text,-1.5\nthe third,-2\n"), texts=TEXTS).what
    assert "2 rows" in refusal(write(tmp_path, "m\n-1.5\n-2.5\n"), texts=TEXTS).what


def test_names_of_columns_become_references(tmp_path: Path) -> None:
    columns = ["gpt2", "gpt2@step1000", "gpt2+nf4", "gpt2%bfloat16", "my model", "gpt2+odd", "a%float32"]
    path = write(tmp_path, ",".join(["bytes", *columns]) + "\n" + "\n".join(["9" + ",-1.5" * 7] * 2))
    vectors = read_log_likelihoods(path)
    assert [ref.name for ref in vectors.models] == ["gpt2"] * 4 + ["my model", "gpt2+odd", "a%float32"]
    assert vectors.attributes.loc["gpt2@step1000", "step"] == 1000
    assert vectors.attributes.loc["gpt2+nf4", "quantization"] == "nf4"
    assert vectors.attributes.loc["gpt2%bfloat16", "dtype"] == "bfloat16"
    assert vectors.names[4] == "my%20model"
    assert tuple(vectors.attributes.index) == vectors.names
    twice = write(tmp_path, "bytes,my model,my%20model\n9,-1,-1.5\n9,-2,-3\n")
    assert "'my model' and 'my%20model' are one model" in refusal(twice).what


@pytest.mark.parametrize(
    ("column", "is_model"),
    [
        ("-1.5 -2 -3", True),
        ("0.0 -2 -3.5", True),
        ("-1 -2 -3", True),
        ("0 -2 -3", False),
        ("-1 -1 -1", False),
        ("1 2 3", False),
        ("1.5 2.5 3.5", False),
        ("0.5 -0.5 0.0", False),
        ("0.0 0.0 0.5", False),
        ("x y z", False),
        ("-1.5 y z", False),
        ("true false true", False),
        ("1901-01-01 1902-01-01 1903-01-01", False),
        ("  ", False),
    ],
)
def test_which_columns_are_models(tmp_path: Path, column: str, is_model: bool) -> None:
    cells = column.split(" ")[:3]
    path = write(tmp_path, "bytes,known,c\n" + "".join(f"9,-1.5,{cell}\n" for cell in cells))
    vectors = read_log_likelihoods(path)
    assert vectors.names == (("known", "c") if is_model else ("known",))
    assert ("c" in vectors.texts.labels) != is_model


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("", {}, "empty"),
        ("\n\n", {}, "the file has no header"),
        ("bytes,m\n", {}, "0 rows; at least 2"),
        ("bytes,m\n5,-1.5\n", {}, "1 rows; at least 2"),
        ("bytes,m,m\n5,-1.5,-2\n6,-1,-2\n", {}, "two columns are called 'm'"),
        ("bytes,m\n5,-1.5\n6,\n7,nan\n", {}, "column 'm': 2 missing values, the first in row 2"),
        ("bytes,m\n5,-1.5\n6,-2\n7,3.5\n", {}, "column 'm', row 3: 3.5 is positive"),
        ("bytes,m\n5,-1.5\n6,-inf\n7,-3\n", {}, "column 'm', row 2: -inf is infinite"),
        ("bytes,m\n5,-1.5\n6,-2\n7,inf\n", {}, "column 'm', row 3: inf is infinite"),
        ("bytes,m\n5,-1.5\n6,abc\n7,-3\n", {}, "column 'm', row 2: 'abc' is not a number"),
        ("bytes,m\n5,1.5\n6,2.5\n", {}, "no model column"),
        ("byte,m\n5,-1.5\n6,-2\n", {}, "no column 'bytes'"),
        ("bytes,m\n5,-1.5\n0,-2\n", {}, "column 'bytes', row 2: 0 is not a positive whole number"),
        ("bytes,m\n5,-1.5\n-3,-2\n", {}, "column 'bytes', row 2: -3 "),
        ("bytes,m\n5.5,-1.5\n3,-2\n", {}, "column 'bytes', row 1: 5.5 "),
        ("bytes,m\n5,-1.5\n,-2\n", {}, "column 'bytes', row 2: None "),
        ("bytes,m\n5,-1.5\nmany,-2\n", {}, "column 'bytes', row 2: 'many' "),
        ("bytes,m\n5,-1.5\n6,-2,-3\n", {}, "not a readable csv file"),
        ("bytes,m,\0eed\n5,-1.5,1\n", {}, "not a readable csv file"),
        (b"bytes,m,l\n5,-1.5,\xff\n6,-2,x\n", {}, "not a readable csv file"),
        ("bytes,document,m\n5,a,-1.5\n6,,-2\n", {}, "column 'document', row 2: empty"),
        ("text,m\nhello,-1.5\n,-2\n", {}, "column 'text', row 2: empty"),
        ("bytes,text,m\n5,hello,-1.5\n5,four,-2\n", {}, "row 2 is not text 2"),
        ("bytes,key,m\n5,a,-1.5\n6,a,-2\n", {"id_column": "key"}, "'key' does not identify"),
        ("bytes,key,m\n5,a,-1.5\n6,b,-2\n", {"id_column": "kay"}, "no column 'kay'"),
        ("bytes,\n5,-1.5\n6,-2.5\n", {}, "column 2 has no name"),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path: Path, text: str | bytes, options: dict[str, str], said: str) -> None:
    assert said in refusal(write(tmp_path, text), **options).what


def test_errors_offer_the_nearest(tmp_path: Path) -> None:
    assert "Did you mean 'byte'?" in refusal(write(tmp_path, "byte,m\n5,-1.5\n6,-2\n")).why
    assert "line 3" in refusal(write(tmp_path, "bytes,m\n5,-1.5\n6,-2,-3\n")).why
    assert "Did you mean '.parquet'?" in refusal(write(tmp_path, "x", "values.parqet")).why
    assert ".csv.gz" in refusal(write(tmp_path, "x", "values.xlsx")).why


def test_unreadable_files(tmp_path: Path) -> None:
    absent = refusal(tmp_path / "absent.csv")
    assert "cannot be read" in absent.what
    assert absent.why == "No such file or directory."
    assert "cannot be read" in refusal(write(tmp_path, "not gzip", "x.csv.gz")).what
    cut_off = gzip.compress(EXAMPLE.read_bytes())[:2000]
    assert "cannot be read" in refusal(write(tmp_path, cut_off, "x.csv.gz")).what
    assert "not a readable parquet file" in refusal(write(tmp_path, "PAR1 no", "x.parquet")).what
    with pytest.raises(InputError, match="cannot be read"):
        read_log_likelihoods("nosuchprotocol://x.csv")


def test_a_file_that_expands_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLSCALE_LIMIT_TABLE_BYTES", "1000")
    path = write(tmp_path, gzip.compress(EXAMPLE.read_bytes()), "x.csv.gz")
    error = refusal(path)
    assert "bytes, decompressed" in error.what
    assert "KLSCALE_LIMIT_TABLE_BYTES" in error.remedy


VALUES = np.round(-50 - 1000 * np.random.default_rng(5).random((30, 2)), 3)
"""Thirty texts of 100 to 400 bytes, two models, in nats: 0.6 to 12 bits per byte."""
LENGTHS = np.random.default_rng(6).integers(200, 400, 30)


def as_table(separator: str = ",", decimal: str = ".", thousands: str = "", header: str = "") -> str:
    def cell(value: float) -> str:
        text = f"{value:,.3f}".replace(",", "T").replace(".", decimal).replace("T", thousands)
        return f'"{text}"' if separator in text else text

    rows = [
        separator.join([str(length), *map(cell, row)]) for length, row in zip(LENGTHS, VALUES.tolist(), strict=True)
    ]
    return "\n".join([header or separator.join(["bytes", "a", "b"]), *rows]) + "\n"


def check_read(path: Path, *said: str, **options: object) -> None:
    """That the values are read as they are, and how is told."""
    notes: list[str] = []

    class Notes(Progress):
        def note(self, message: str) -> None:
            notes.append(message)

    vectors = read_log_likelihoods(path, progress=Notes(), **options)  # type: ignore[arg-type]
    assert vectors.names[:2] == ("a", "b")
    np.testing.assert_allclose(vectors.log_likelihood[:2].T, VALUES, rtol=1e-12)
    assert vectors.texts.bytes.tolist() == LENGTHS.tolist()
    for words in said:
        assert any(words in note for note in notes), (words, notes)
    assert said or not notes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (as_table(), ()),
        (as_table(";"), ("semicolons",)),
        (as_table("\t"), ("tabs",)),
        (as_table(";", ","), ("semicolons", "decimal commas")),
        (as_table(",", ","), ("decimal commas",)),
        (as_table(";", ",", "."), ("semicolons", "decimal commas")),
        (as_table(",", ".", ","), ("thousands separators",)),
        (as_table(";", ".", " "), ("thousands separators",)),
        ("\ufeff" + as_table(), ()),
        (as_table().encode("utf-16"), ("UTF-16",)),
        (as_table().encode("utf-16-le"), ("UTF-16",)),
        ("sep=;\n" + as_table(";"), ("semicolons",)),
        ("# made by a script\n#\n" + as_table(), ("2 lines of comments",)),
        (as_table().replace("\n", ",\n"), ("neither a name nor values",)),
        (as_table() + "Total,-30000.0,-31000.0\n", ("The last row left out",)),
        (as_table() + ",,\n", ("The last row left out",)),
        (as_table() + "\n\n", ()),
        (as_table().replace("\n", "\r\n"), ()),
    ],
)
def test_tables_as_people_have_them(tmp_path: Path, text: str | bytes, said: tuple[str, ...]) -> None:
    check_read(write(tmp_path, text), *said)


def test_a_nameless_first_column_numbers_the_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"bytes": LENGTHS, "a": VALUES[:, 0], "b": VALUES[:, 1]})
    frame.to_csv(tmp_path / "x.csv")
    check_read(tmp_path / "x.csv", "taken for the row's number")


def test_numbers_that_read_in_two_ways_are_refused_until_said(tmp_path: Path) -> None:
    path = write(tmp_path, "bytes,a\n" + "".join(f'900,"-1,{n}"\n' for n in (234, 567, 891)))
    error = refusal(path)
    assert "column 'a': '-1,234' can be read in two ways" in error.what
    assert "--decimal" in error.remedy
    assert read_log_likelihoods(path, decimal=",").log_likelihood[0].tolist() == [-1.234, -1.567, -1.891]
    assert read_log_likelihoods(path, decimal=".").log_likelihood[0].tolist() == [-1234, -1567, -1891]


def test_columns_of_one_name(tmp_path: Path) -> None:
    path = write(tmp_path, "bytes,m,n,m\n500,-1,-2,-3\n600,-1.5,-2.5,-3.5\n")
    error = refusal(path)
    assert "'m'" in error.what
    assert "columns 2 and 4" in error.why
    assert read_log_likelihoods(path, duplicates="first").names == ("m", "n")
    numbered = read_log_likelihoods(path, duplicates="number")
    assert numbered.names == ("m", "n", "m.2")
    assert numbered.log_likelihood[2].tolist() == [-3, -3.5]


@pytest.mark.parametrize("missing", ["NA", "#N/A", "#NV", "", "nan", "NULL"])
def test_missing_values_in_the_spellings_of_programs(tmp_path: Path, missing: str) -> None:
    error = refusal(write(tmp_path, f"bytes,m\n5,-1.5\n6,{missing}\n7,-2.5\n"))
    assert "column 'm': 1 missing values, the first in row 2" in error.what


@pytest.mark.parametrize(
    ("factor", "options"),
    [
        (1 / np.log(2), {"unit": "bits"}),
        (-1.0, {"negate": True}),
        (-1 / np.log(2) / LENGTHS[:, None], {"unit": "bits", "per": "byte", "negate": True}),
        (1 / LENGTHS[:, None], {"per": "byte"}),
        (1 / (LENGTHS[:, None] // 4), {"per": "token"}),
    ],
)
def test_units(tmp_path: Path, factor: float, options: dict[str, object]) -> None:
    frame = pd.DataFrame(VALUES * factor, columns=["a", "b"])
    frame.insert(0, "bytes", LENGTHS)
    if options.get("per") == "token":
        frame["n_tokens"] = LENGTHS // 4
    frame.to_csv(tmp_path / "x.csv", index=False)
    check_read(tmp_path / "x.csv", **options)
    error = (
        refusal(tmp_path / "x.csv") if (factor is not None and np.size(factor) > 1) or options.get("negate") else None
    )
    if error and not options.get("negate"):
        assert "bits/byte" in error.what
        assert "--force" in error.remedy
        read_log_likelihoods(tmp_path / "x.csv", force=True)
    elif error:
        assert "--negate" in error.remedy


def test_values_per_token_need_counts(tmp_path: Path) -> None:
    assert "no token counts for 'a'" in refusal(write(tmp_path, as_table()), per="token").what
    assert "--per 'word'" in refusal(write(tmp_path, as_table()), per="word").what


def test_long_tables(tmp_path: Path) -> None:
    rows = [
        {"model": model, "text_id": f"t{n}", "bytes": LENGTHS[n], "value": VALUES[n, m], "seed": m + 1}
        for m, model in enumerate("ab")
        for n in range(30)
    ]
    generator = np.random.default_rng(0)
    shuffled = [rows[n] for n in generator.permutation(len(rows))]
    path = tmp_path / "x.csv"
    pd.DataFrame(shuffled).to_csv(path, index=False)
    vectors = read_log_likelihoods(path)
    order = [int(name[1:]) for name in vectors.texts.labels["id"]]
    for m, model in enumerate("ab"):
        np.testing.assert_array_equal(vectors.log_likelihood[vectors.position(model)], VALUES[order, m])
        assert vectors.attributes.loc[model, "seed"] == m + 1
    assert vectors.texts.bytes.tolist() == LENGTHS[order].tolist()
    pd.DataFrame(rows[:-1]).to_csv(path, index=False)
    assert "'b' has no value for the text 't29'" in refusal(path).what
    pd.DataFrame([*rows, rows[3]]).to_csv(path, index=False)
    assert "rows 4 and 61: 'a' has the text 't3' twice" in refusal(path).what
    pd.DataFrame([{**row, "step": 100 * row["seed"]} for row in rows]).to_csv(path, index=False)
    assert read_log_likelihoods(path).names == ("a@step100", "b@step200")
    pd.DataFrame([{**row, "step": f"step{row['seed']}"} for row in rows]).to_csv(path, index=False)
    assert "column 'step', row 1: step 'step1' is no whole number" in refusal(path).what


def test_types_of_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    decimals = pa.array([f"{value:.3f}" for value in VALUES[:, 0]]).cast(pa.decimal128(12, 3))
    strings = pa.array(["x", "y"] * 15, pa.string_view() if hasattr(pa, "string_view") else pa.large_string())
    columns = {
        "bytes": pa.array(LENGTHS), "a": decimals, "b": pa.array(VALUES[:, 1]), "domain": strings,
        "document": pa.array(["p", "q", "r"] * 10).dictionary_encode(),
    }  # fmt: skip
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    check_read(tmp_path / "x.parquet")
    texts = read_log_likelihoods(tmp_path / "x.parquet").texts
    assert texts.domain == ("x", "y") * 15
    assert texts.document == ("p", "q", "r") * 10


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b"])
def test_a_name_may_hold_what_only_python_takes_for_the_end_of_a_line(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path, f"bytes,a{mark}b,c\n5,-1.5,-2\n6,-2.5,-3\n7,-2,-4\n")
    assert [ref.name for ref in read_log_likelihoods(path).models] == [f"a{mark}b", "c"]


def test_numbers_that_no_model_has_are_refused(tmp_path: Path) -> None:
    assert "-1e+13 is below -1e+12" in refusal(write(tmp_path, "bytes,m\n5,-1.5\n6,-1e13\n7,-2\n")).what
    assert "a number of 20 digits" in refusal(write(tmp_path, f"bytes,m@step{10**19}\n5,-1.5\n6,-2.5\n")).what


def test_the_numerical_cases_are_read_or_refused_with_the_cell(shared: Path) -> None:
    """Identical models and constant columns are fine; what would overflow is named."""
    for path in sorted((shared / "cases" / "numerical").glob("*.csv")):
        if re.search("1e1|1e308|huge", path.name):
            assert re.search(r"column .*row \d+|a number of \d+ digits", refusal(path, force=True).what), path.name
        else:
            assert np.isfinite(read_log_likelihoods(path, force=True).kl().value).all(), path.name


@pytest.mark.parametrize("name", ["parameters", "seed", "step", "warmup"])
def test_attributes_beyond_all_numbers(shared: Path, name: str) -> None:
    path = shared / "cases" / "attributes" / f"1e400B-{name}.csv"
    with pytest.raises(InputError, match=f"{name} .* is no whole number"):
        imports.read_attributes(path)


# --------------------------------------------------------------------------------------------------------- pickles


def pickled(folder: Path, value: object, protocol: int = 4, name: str = "values.pkl") -> Path:
    return write(folder, pickle.dumps(value, protocol), name)


def test_a_pickle_of_too_many_dictionaries_is_refused_before_any_is_made(tmp_path, monkeypatch):
    """Two bytes a dictionary of 64: a small file asks for much memory."""
    monkeypatch.setenv("KLSCALE_LIMIT_PICKLE_CONTAINERS", "1000")
    bomb = b"\x80\x04(" + b"}" * 1001 + b"l."
    assert "1,001 dictionaries and lists" in refusal(write(tmp_path, bomb, "v.pkl"), texts=TEXTS).what
    few = refusal(write(tmp_path, b"\x80\x04(" + b"}" * 999 + b"l.", "v.pkl"), texts=TEXTS)
    assert "dictionaries and lists" not in few.what


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("numpy_1", [False, True])
def test_published_dictionaries_of_every_protocol(tmp_path: Path, protocol: int, numpy_1: bool) -> None:
    data = pickle.dumps(ROWS, protocol)
    if numpy_1:  # lengths of framed strings and of the frame are written anew
        for module in (b"numpy._core.multiarray", b"numpy._core.numeric"):
            old = module.replace(b"_core", b"core")
            data = data.replace(b"\x8c" + bytes([len(module)]) + module, b"\x8c" + bytes([len(old)]) + old)
            data = data.replace(b"c" + module + b"\n", b"c" + old + b"\n")
        if protocol >= 4:
            assert data[2:3] == b"\x95"
            data = data[:3] + struct.pack("<Q", len(data) - 11) + data[11:]
        assert b"numpy.core" in data
        assert b"numpy._core" not in data
    vectors = read_log_likelihoods(write(tmp_path, data, "v.pkl"), texts=TEXTS)
    assert vectors.names == ("a/model-1b", "b")
    np.testing.assert_array_equal(vectors.log_likelihood, list(ROWS.values()))
    assert set(vectors.attributes["convention"]) == {PUBLISHED}
    assert vectors.attributes.loc["a/model-1b", "parameters"] == 1_000_000_000
    assert vectors.texts is TEXTS


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8", "<i8", "i1"])
def test_numeric_types_of_arrays(tmp_path: Path, dtype: str) -> None:
    row = np.array([-1, -2, -3]).astype(dtype)
    for protocol in (2, 5):
        path = pickled(tmp_path, collections.OrderedDict(m=row), protocol)
        assert read_log_likelihoods(path, texts=TEXTS).log_likelihood.tolist() == [[-1, -2, -3]]


def test_published_metadata(tmp_path: Path) -> None:
    records = [
        {
            "model_name": "x/tuned-8B",
            "model_type": "llama-3",
            "model_size": 8,
            "created_at": "2024-04-20T00:53:57+00:00",
            "downloads": np.int64(9308),
            "tags": ["license:llama3", "base_model:x/base-8B", "base_model:finetune:x/base-8B"],
            "log-likelihood-10k": np.array([-1.5, -2, -3]),
            "mean_logp": np.float64(-2.1),
            "score_v1_ARC": None,
        },
        {"model_name": "y", "model_size": np.float64(0.41), "log-likelihood-10k": [-1.0, -2.0, -4.5]},
        {
            "model_name": "z",
            "log-likelihood-10k": np.array([-1.0, -2.0, -2.0]),
            "raw_log-likelihood-10k": np.array([-1.0, -2.0, -9.0]),
            "model_size": 1e300,
        },
    ]
    for protocol in (0, 4):
        vectors = read_log_likelihoods(pickled(tmp_path, records, protocol), texts=TEXTS)
        assert vectors.log_likelihood.tolist() == [[-1.5, -2, -3], [-1, -2, -4.5], [-1, -2, -9]]
        first, second = vectors.attributes.iloc[0], vectors.attributes.iloc[1]
        assert (first["type"], first["parameters"], first["parent"]) == ("llama-3", 8_000_000_000, "x/base-8B")
        assert (second["type"], second["parameters"]) == (None, 410_000_000)
        assert pd.isna(vectors.attributes.iloc[2]["parameters"])


def test_values_that_were_clipped_are_another_convention(tmp_path: Path) -> None:
    path = pickled(tmp_path, ROWS)
    assert set(read_log_likelihoods(path, texts=TEXTS.with_clip(-3.0)).attributes["convention"]) == {
        f"{PUBLISHED}; clipped"
    }
    assert set(read_log_likelihoods(path, texts=TEXTS.with_clip(-2.0)).attributes["convention"]) == {PUBLISHED}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "no log-likelihoods by model"),
        (17, "no log-likelihoods by model"),
        ([1, 2], "no log-likelihoods by model"),
        ([{"model_name": ["list"]}], "no log-likelihoods by model"),
        ({1: ROWS["b"]}, "no log-likelihoods by model"),
        ({"": ROWS["b"]}, "a model has no name"),
        ([{"model_name": "m", "log-likelihood-10k": ROWS["b"]}] * 2, "2 entries, 1 models"),
        ([{"model_name": "m"}], "model 'm': no array of numbers"),
        ({"m": "text"}, "model 'm': no array of numbers"),
        ({"m": ["-1", "-2", "-3"]}, "model 'm': no array of numbers"),
        ({"m": ROWS["b"][:2]}, "model 'm': (2,); the text set three has 3 texts"),
        ({"m": ROWS["b"][None]}, "model 'm': (1, 3)"),
        ({"m": np.array([-1, np.nan, -3])}, "model 'm': 1 missing values, the first in text 2"),
        ({"m": np.array([-1, -2, 0.5])}, "model 'm', text 3: 0.5 is positive"),
        ({"m": np.array([-1, -np.inf, -1])}, "model 'm', text 2: -inf is infinite"),
    ],
)
def test_what_is_wrong_with_a_pickle(tmp_path: Path, value: object, said: str) -> None:
    assert said in refusal(pickled(tmp_path, value), texts=TEXTS).what


def test_pickles_need_texts(tmp_path: Path) -> None:
    assert "--texts pile-10k" in refusal(pickled(tmp_path, ROWS)).remedy


def test_more_models_than_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS["b"]
    path = pickled(tmp_path, {f"{k}": row for k in range(400)})  # one array, named 400 times
    monkeypatch.setenv("KLSCALE_LIMIT_TABLE_BYTES", "9000")
    assert "400 models: 9,600 bytes" in refusal(path, texts=TEXTS).what


class Reduced:
    """Pickles as the call of `function(*arguments)`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def objects() -> np.ndarray:  # type: ignore[type-arg]
    array = np.empty(3, dtype=object)
    array[:] = [Reduced(os.system, "touch ran"), None, None]
    return array


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Reduced(os.system, "touch ran"), "system"),
        (Reduced(eval, "open('ran', 'w')"), "eval"),
        (Reduced(exec, "open('ran', 'w')"), "exec"),
        (Reduced(getattr, ROWS["b"], "tofile"), "getattr"),
        (Reduced(subprocess.Popen, ["touch", "ran"]), "Popen"),
        (Reduced(open, "ran", "w"), "open"),
        (Reduced(np.load, "ran"), "load"),
        (Reduced(np.testing.rundocs, "ran"), "rundocs"),
        (Reduced(np.save, "ran", [1]), "save"),
        (Reduced(np.memmap, "ran", "f8", "w+", 0, (3,)), "memmap"),
        (datetime.date(2020, 1, 1), "datetime.date"),
        (ROWS["b"].astype("S3"), "dtype 'S3'"),
        (objects(), "dtype 'O8'"),
    ],
)
def test_hostile_pickles_are_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, named: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal(pickled(tmp_path, {"m": value, **ROWS}, protocol), texts=TEXTS)
    assert "refused, it asks for" in error.what
    assert named in error.what
    assert not Path("ran").exists()


def test_a_pickled_data_frame_is_named(tmp_path: Path) -> None:
    error = refusal(pickled(tmp_path, pd.DataFrame(ROWS)), texts=TEXTS)
    assert "asks for pandas" in error.what
    assert ".parquet" in error.remedy


class Persistent(pickle.Pickler):
    def persistent_id(self, value: object) -> str | None:
        return "secret" if isinstance(value, np.ndarray) else None


def test_persistent_objects_are_refused(tmp_path: Path) -> None:
    for protocol in (0, 4):
        Persistent(buffer := io.BytesIO(), protocol).dump(ROWS)
        error = refusal(write(tmp_path, buffer.getvalue(), "x.pkl"), texts=TEXTS)
        assert "refused, it asks for the persistent object 'secret'" in error.what


@pytest.mark.parametrize(
    ("opcodes", "said"),
    [
        (b"cos\nsystem\n(S'touch ran'\ntR.", "os.system"),
        (b"(cos\nsystem\nS'touch ran'\no.", "os.system"),
        (b"(S'touch ran'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.", "os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x0dstr.__class__\x93.", "builtins.str.__class__"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.", "numpy.ndarray.dumps"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.", "collections.OrderedDict.__init__"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"cnumpy.testing._private.utils\nrunstring\n.", "runstring"),
        (b"cklscale.vectors.imports\nos\n.", "klscale.vectors.imports.os"),
        (b"ccopyreg\n__newobj__\n.", "copyreg.__newobj__"),
        (b"\x82\x01.", "code 1 of the extension registry"),
        (b"\x84\x01\x00\x00\x00.", "code 1 of the extension registry"),
        (b"}r\xff\xff\xff\x7f.", "a memo of 2,147,483,647 entries"),
        (b"}p99999999999\n.", "a memo of 99,999,999,999 entries"),
        (b"c_codecs\nencode\n(S'abc'\nS'rot13'\ntR.", "_codecs.encode to 'rot13'"),
        (
            b"c_codecs\nencode\np0\n0S'" + b"a" * 999 + b"'\np1\n0" + b"g0\n(g1\nS'latin1'\ntR" * 99 + b".",
            "again and again",
        ),
        # shapes and lengths that nothing in the file backs
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00abc.", "not a readable pickle"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00abc.", "not a readable pickle"),
        (b"\x80\x05}\x97.", "not a readable pickle"),
        (b"cnumpy\nndarray\n(I1000000000000\ntR.", "not a readable pickle"),
        (b"cnumpy\ndtype\n(S'f8'\ntR(I3\nS'O'\ntb.", "not a readable pickle"),
        (b"cnumpy\ndtype\n)\x81(I3\nS'<'\ntb.", "no log-likelihoods by model"),
        (b"cnumpy\nndarray\n}S'values'\nI1\nsb.", "not a readable pickle"),
        (b"ccollections\nOrderedDict\n}S'get'\nI1\nsb.", "not a readable pickle"),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}.", "not a readable pickle"),
        (pickle.dumps(ROWS)[:-20], "not a readable pickle"),
        (b"bytes,m\n5,-1\n", "not a readable pickle"),
        (b"0.", "not a readable pickle"),
    ],
)
def test_opcodes_written_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opcodes: bytes, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(write(tmp_path, opcodes, "hostile.pkl"), texts=TEXTS).what
    assert not Path("ran").exists()


def test_an_extension_that_another_program_registered_is_refused(tmp_path: Path) -> None:
    import copyreg

    copyreg.add_extension("os", "system", 240)
    try:
        data = pickle.dumps(os.system, 2)
        assert "extension registry" in refusal(write(tmp_path, b"\x80\x02\x82\xf0.", "x.pkl"), texts=TEXTS).what
        assert "system" in refusal(write(tmp_path, data, "x.pkl"), texts=TEXTS).what
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_arrays_claim_no_more_than_their_bytes(tmp_path: Path) -> None:
    for shape in (b"(I1000000000000\nt", b"(I-1\nI-1\nt", b"(I3\nt"):
        state = b"(I1\n" + shape + b"cnumpy\ndtype\n(S'f8'\ntRI00\nc_codecs\nencode\n(S'12345678'\nS'latin1'\ntRtb"
        call = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntS'b'\ntR"
        path = write(tmp_path, b"(dS'm'\n" + call + state + b"s.", "x.pkl")
        assert "not a readable pickle" in refusal(path, texts=TEXTS).what


def test_nested_lists_are_not_expanded(tmp_path: Path) -> None:
    value: list[object] = [-1.0]
    for _ in range(60):
        value = [value, value]
    assert "no array of numbers" in refusal(pickled(tmp_path, {"m": value}), texts=TEXTS).what


def test_torch_is_not_imported() -> None:
    subprocess.run(
        [sys.executable, "-c", "import klscale.vectors.imports, sys; assert 'torch' not in sys.modules"], check=True
    )


# ------------------------------------------------------------------------------------------------------ attributes


TWO = "bytes,o/a-1b,o/b\n" + "10,-1.5,-2.5\n20,-2.5,-1.5\n"


def test_attributes_are_read(tmp_path):
    """They win over what a name tells; what is left empty does not."""
    (tmp_path / "two.csv").write_text(TWO)
    (tmp_path / "more.csv").write_text(
        "model,type,parameters,seed,parent,quantization\no/a-1b,llama-3,1.2B,3,,\no/b,,410M,,o/a-1b,gptq-4bit\n"
    )
    found = read_log_likelihoods(tmp_path / "two.csv", attributes=tmp_path / "more.csv").attributes
    assert found.loc["o/a-1b"].dropna().to_dict() == {
        "family": "a", "type": "llama-3", "parameters": 1_200_000_000, "seed": 3, "convention": IMPORTED,
    }  # fmt: skip
    assert found.loc["o/b"].dropna().to_dict() == {
        "parameters": 410_000_000, "parent": "o/a-1b", "quantization": "gptq-4bit", "convention": IMPORTED,
    }  # fmt: skip


def test_free_attributes_are_kept(tmp_path):
    """Numbers where all cells of a column are, else words; they stay with the models in a store."""
    (tmp_path / "two.csv").write_text(TWO)
    (tmp_path / "more.csv").write_text("model,lr,data,code,n_layers\no/a-1b,3e-4,web,007,12\no/b,1e-3,books,x1,\n")
    vectors = read_log_likelihoods(tmp_path / "two.csv", attributes=tmp_path / "more.csv")
    store = Store(tmp_path / "store")
    store.import_vectors(vectors, "two.csv")
    for found in (vectors.attributes, store.vectors(vectors.texts).attributes.loc[[*vectors.names]]):
        assert tuple(found.columns) == (*COLUMNS, "lr", "data", "code", "n_layers")
        assert found["lr"].tolist() == [0.0003, 0.001]
        assert found["data"].tolist() == ["web", "books"]
        assert found["code"].tolist() == ["007", "x1"]
        assert found.loc["o/a-1b", "n_layers"] == 12
        assert found.loc["o/b", "n_layers"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model,Step\no/b,1\n", "unknown column 'Step'.\nDid you mean 'step'?"),
        ("model,noise_floor\no/b,1\n", "unknown column 'noise_floor'"),
        ("model,famly\no/b,x\n", "unknown column 'famly'.\nDid you mean 'family'?"),
        ("name,family\no/b,x\n", "no column 'model'"),
        ("family\nx\n", "no column 'model'"),
        ("model,seed\no/b,one\n", "row 1: seed 'one' is no whole number"),
        (
            "model,step\no/b,-5\n",
            "row 1: step '-5' is no whole number from 0 on.\nIt has at most 15 digits.\nWrite it as",
        ),
        ("model,step\no/b,100.5\n", "row 1: step '100.5' is no whole number"),
        ("model,seed\no/b,1\no/b,2\n", "row 2: 'o/b' again"),
        ("model,seed\n,1\n", "row 1: no model"),
        ("model,seed\no/bb,1\n", "no model 'o/bb', whose attributes are given.\nDid you mean 'o/b'?"),
        ("model,parent\no/b,o/a+nf5\n", "row 1: 'o/a+nf5': unknown quantization"),
        ("model,layer\no/b,1\n", "unknown column 'layer'"),
        ("", "the file is empty"),
    ],
)
def test_wrong_attributes_are_named(tmp_path, content, message):
    (tmp_path / "two.csv").write_text(TWO)
    (tmp_path / "more.csv").write_text(content)
    with pytest.raises(InputError) as caught:
        read_log_likelihoods(tmp_path / "two.csv", attributes=tmp_path / "more.csv")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("negate", [False, True])
def test_a_model_of_the_other_sign_is_no_label(tmp_path, negate):
    """It was left out without a word. Whole numbers, unlikely ones and such with gaps are labels as before."""
    generator = np.random.default_rng(0)
    sign = -1.0 if negate else 1.0
    columns = {
        "bytes": np.full(50, 300),
        "a": -sign * generator.uniform(150, 300, 50),
        "n_words": sign * generator.integers(40, 60, 50).astype(float),
        "rate": sign * generator.uniform(0, 1, 50),
        "partly": np.where(np.arange(50) % 2, np.nan, sign * 200.5),
    }
    file = tmp_path / "models.csv"
    pd.DataFrame(columns).to_csv(file, index=False)
    assert read_log_likelihoods(file, negate=negate).names == ("a",)
    flipped = {**columns, "b": -columns["a"]}
    pd.DataFrame(flipped).to_csv(file, index=False)
    with pytest.raises(InputError, match="'b' has another sign than the models"):
        read_log_likelihoods(file, negate=negate)
    vectors = read_log_likelihoods(file, negate=negate, force=True)
    assert vectors.names == ("a",)
    assert "b" in vectors.texts.labels


def test_what_has_no_model_is_told_by_its_sign(tmp_path):
    file, values = tmp_path / "models.csv", np.random.default_rng(0).uniform(150, 300, 30)
    for sign, negate, remedy in ((1, False, "If they are: --negate"), (-1, True, "Leave --negate out.")):
        pd.DataFrame({"bytes": 300, "a": sign * values}).to_csv(file, index=False)
        with pytest.raises(InputError, match="no model column: every value of 'a'") as caught:
            read_log_likelihoods(file, negate=negate)
        assert caught.value.remedy == remedy


def test_two_seeds_are_not_asked_for_where_they_are_compared(tmp_path, run):
    values = -np.random.default_rng(0).uniform(150, 300, (2, 30))
    pd.DataFrame({"bytes": 300, "a": values[0], "b": values[1]}).to_csv(tmp_path / "models.csv", index=False)
    run("import", "models.csv")
    assert "which models are two seeds" in run("compare", "a", "b").stdout
    (tmp_path / "attributes.csv").write_text("model,family,seed\na,f,0\nb,f,1\n")
    run("import", "models.csv", "--attributes", "attributes.csv")
    shown = run("compare", "a", "b").stdout
    assert "Two seeds of one recipe." in shown
    assert "which models are two seeds" not in shown
