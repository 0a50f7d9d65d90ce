"""Attacks with a small budget and a seed. `python benchmarks/attack.py` has a large one, `make fuzz` none."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import shutil
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attacks
import fuzzed
from klscale.errors import InputError, KlscaleError, UnreadableError, printable
from klscale.inputs.references import ModelRef
from klscale.inputs.suites import read_suite
from klscale.inputs.texts import TextSet, load_texts
from klscale.store import measured_records, records, text_records, vector_records
from klscale.vectors.imports import read_attributes, read_log_likelihoods
from klscale.vectors.pickles import load_pickle
from klscale.vectors.spreadsheets import guarded, unguarded

bounded = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The same examples every time, however fast the machine is."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(fuzzed.VALUES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [*text_records.HEAD, *vector_records.ENTRY, "model", "text", "name", "seed", "value", "interval"]
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def one_of_klscale(error: BaseException) -> bool:
    """Whether an error is one that a user reads, of at most three lines."""
    return isinstance(error, KlscaleError) and bool(error.what) and len(str(error).splitlines()) <= 8


def reads_or_says(read: Any) -> None:
    try:
        read()
    except Exception as error:
        if not one_of_klscale(error):
            raise


# ------------------------------------------------------------------------------------------------------------ readers


@bounded
@given(data=st.binary(max_size=300) | st.lists(JSON, max_size=4).map(lambda v: "\n".join(map(json.dumps, v)).encode()))
def test_texts_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    """The same bytes under every ending, and compressed too."""
    for ending in (".jsonl", ".txt", ".jsonl.gz", ".jsonl.zip", ".parquet"):
        path = tmp_path / f"x{ending}"
        path.write_bytes(data)
        reads_or_says(functools.partial(load_texts, path))
    (tmp_path / "whole.jsonl.gz").write_bytes(gzip.compress(data))
    reads_or_says(lambda: load_texts(tmp_path / "whole.jsonl.gz"))


@bounded
@given(texts=st.lists(NAMES, min_size=2, max_size=8))
def test_texts_come_back_as_they_were_written(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    read = load_texts(path)
    assert read.texts == tuple(texts)
    assert read.bytes.tolist() == [len(text.encode()) for text in texts]
    kept = text_records.texts_from_lines(text_records.lines_of(read), {**text_records.head_of(read), "lines": []})
    assert kept.texts == read.texts


@bounded
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
@pytest.mark.parametrize("ending", [".csv", ".parquet", ".pkl", ".csv.gz"])
def test_tables_are_read_or_refused(tmp_path: Path, ending: str, data: bytes) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(data)
    texts = TextSet.from_texts("t", ["one", "two"])
    reads_or_says(lambda: read_log_likelihoods(path, texts=texts if ending == ".pkl" else None, force=True))
    if ending == ".csv":
        reads_or_says(lambda: read_attributes(path))


@bounded
@given(
    names=st.lists(
        NAMES.map(str.strip).filter(lambda name: name and "\0" not in name), min_size=1, max_size=3, unique=True
    ),
    values=st.lists(st.floats(-1e6, -1e-3), min_size=2, max_size=6, unique=True),
)
def test_a_table_of_any_names_gives_their_values(tmp_path: Path, names: list[str], values: list[float]) -> None:
    """Written by the standard library, with cells guarded: names and values are what they were, or it says why not."""
    import csv

    path = tmp_path / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(["bytes", *map(guarded, names)])
        writer.writerows([40, *[value] * len(names)] for value in values)
    try:
        vectors = read_log_likelihoods(path, force=True)
    except InputError:
        return
    for row in vectors.log_likelihood:
        assert row.tolist() == values


@bounded
@given(
    data=JSON.map(lambda value: json.dumps(value))
    | st.text(max_size=120)
    | st.dictionaries(
        st.sampled_from(["texts", "models", "name"]), st.lists(st.dictionaries(FIELDS, JSON, max_size=3), max_size=3)
    ).map(json.dumps)
)
def test_suites_are_read_or_refused(tmp_path: Path, data: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(data.encode("utf-8", "surrogatepass"))
    reads_or_says(lambda: read_suite(path))


@bounded
@given(
    text=st.text(max_size=40)
    | st.binary(max_size=9).map(os.fsdecode)
    | st.text(string.ascii_letters + "@+%:#/~.?&=", max_size=20)
)
def test_references_are_read_back_as_they_are_printed(text: str) -> None:
    try:
        ref = ModelRef.parse(text)
    except InputError:
        return
    assert ModelRef.parse(str(ref)) == ref
    assert str(ref).isprintable()
    assert "/" not in ref.slug


@bounded
@given(data=st.binary(max_size=200).map(bytearray))
def test_pickles_are_read_or_refused(data: bytearray) -> None:
    reads_or_says(lambda: load_pickle(data))
    reads_or_says(lambda: load_pickle(bytearray(b"\x80\x04" + data + b".")))


@pytest.mark.slow
@bounded
@given(record=st.dictionaries(FIELDS, JSON, max_size=6))
@pytest.mark.parametrize("kind", ["texts", "noise", "exact", "vector"])
def test_records_are_read_or_refused(kind: str, record: dict[str, Any]) -> None:
    """What somebody wrote and sealed: the only errors are those that leave the file out."""
    read = {
        "texts": lambda data: text_records.head_from_json(data, "0" * 12),
        "noise": lambda data: measured_records.noise_from_json(data, "0" * 12, "k"),
        "exact": lambda data: measured_records.exact_from_json(data, "0" * 12, "k"),
        "vector": lambda _: vector_records.require_entry(record),
    }[kind]
    try:
        read(records.to_json(kind, record))
    except records.UNREADABLE as error:
        if kind == "vector" and not isinstance(error, UnreadableError):
            raise


@bounded
@given(text=st.text())
def test_what_is_printed_is_printable_and_what_is_guarded_comes_back(text: str) -> None:
    assert printable(text).isprintable()
    assert unguarded(guarded(text)) == text
    assert not guarded(text).startswith(("=", "+", "-", "@", "\t", "\r"))


def test_the_broken_inputs_are_those_of_their_number() -> None:
    """A failure is found again by its number."""
    for number in range(40):
        assert fuzzed.made(number, [*fuzzed.KINDS]) == fuzzed.made(number, [*fuzzed.KINDS])
    assert yaml.safe_load(io.StringIO(yaml.safe_dump(fuzzed.SUITE))) == fuzzed.SUITE


# ------------------------------------------------------------------------------------------------------------- attacks


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    attacks.load()


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@forks
def test_a_column_described_as_another_type_does_not_abort(tmp_path: Path) -> None:
    """A histogram of levels that the column does not have ends the process in pyarrow's own listing of columns."""
    shutil.copytree(attacks.OLD, tmp_path / "old")
    (file,) = (tmp_path / "old").rglob("org-m-bfloat16-04581b-946d07ebc1db.parquet")
    data = bytearray(file.read_bytes())
    assert data[571] == 2
    data[571] = 34
    file.write_bytes(data)
    ended = attacks.run(["check", "--store", "old"], tmp_path)
    assert (ended.status, ended.wrong) == (1, "")
    assert "histogram size mismatch" in ended.output


@pytest.mark.slow
@forks
@pytest.mark.parametrize(
    ("attack", "budget"),
    [(attacks.kills, 24), (attacks.damages, 100), (attacks.hostile_stores, 10), (fuzzed.fuzz, 120)],
    ids=["kills", "damaged files", "hostile stores", "fuzzed inputs"],
)
def test_an_attack_finds_nothing(tmp_path: Path, attack: Any, budget: int) -> None:
    tally = attack(tmp_path, budget, 0)
    assert tally.tries == budget
    assert tally.found == {}
