"""The store: whole files or none, read by others, checked, and texts resolved as the command line means them."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import klscale
from conftest import wait_until
from klscale import limits
from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import Progress
from klscale.store import claims, files, local, records, vector_records, whole
from klscale.store import store as store_module
from klscale.store.store import Store, vector_key
from klscale.studies.trajectories import analyse_runs
from klscale.studies.verbs import scale as verbs_scale
from klscale.vectors.scores import Scores
from klscale.vectors.vectors import CONVENTION, Vectors


def scores_of(seed: int, n: int = 40) -> Scores:
    values = -100 - 50 * np.random.default_rng(seed).random(n)
    return Scores(np.arange(n), values, np.full(n, 30))


def metadata(name: str, date: str = "2026-01-01") -> dict:
    ref = ModelRef.parse(name)
    key = vector_key(f"files:{name}", ref, CONVENTION, "transformers")
    return {
        "ref": name,
        "key": key,
        "convention": CONVENTION,
        "dtype": ref.dtype,
        "date": date,
        "attributes": {"seed": 1},
    }


@pytest.fixture
def store(tmp_path: Path, texts: TextSet) -> Store:
    store = Store(tmp_path / "store")
    store.write(texts, scores_of(1), metadata("a/one"))
    store.write(texts, scores_of(2), metadata("a/two", "2026-01-02"))
    return store


def test_what_is_written_is_read(store, texts):
    vectors = store.vectors(store.resolve_texts(None))
    assert vectors.names == ("a/one", "a/two")
    np.testing.assert_array_equal(vectors.log_likelihood[0], scores_of(1).log_likelihood)
    assert vectors.attributes["seed"].tolist() == [1, 1]
    kept = store.texts(texts.id)
    assert (kept.texts, kept.domain, kept.document) == (texts.texts, texts.domain, None)
    assert kept.id == TextSet.from_texts("again", kept.texts).id


def test_other_tools_read_it(store):
    import duckdb
    import pandas as pd
    import polars as pl

    pattern = f"{store.location}/vectors/*/*.parquet"
    total = sum(scores_of(seed).log_likelihood.sum() for seed in (1, 2))
    assert duckdb.sql(f"select sum(log_likelihood) from '{pattern}'").fetchall()[0][0] == pytest.approx(total)
    assert pl.scan_parquet(pattern).select(pl.col("log_likelihood").sum()).collect().item() == pytest.approx(total)
    frame = pd.read_parquet(next(Path(store.location).glob("vectors/*/*.parquet")))
    assert frame.dtypes.astype(str).to_dict() == {"text": "int32", "log_likelihood": "float64", "n_tokens": "int32"}


@pytest.fixture
def summed(store: Store, texts: TextSet, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The summary of the store's entries."""
    monkeypatch.setattr(store_module, "MANY", 2)
    assert len(store.entries(texts.id)) == 2
    return Path(store.location) / "summaries" / texts.id / "entries.parquet"


def read_from_now(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The vector files that are read from now on."""
    opened, read = [], files.Files.read

    def noted(self: files.Files, path: str) -> bytes:
        opened.extend([path] if "/vectors/" in path else [])
        return read(self, path)

    monkeypatch.setattr(files.Files, "read", noted)
    return opened


def test_entries_come_from_the_summary_until_a_file_changes(store, texts, summed, monkeypatch):
    known = store.entries(texts.id)
    opened, other = read_from_now(monkeypatch), Store(store.location)
    assert other.entries(texts.id) == known
    assert opened == []
    changed = store.write(texts, scores_of(3), metadata("a/two", "2026-01-03"))
    assert [entry.metadata["date"] for entry in Store(store.location).entries(texts.id)] == ["2026-01-01", "2026-01-03"]
    assert opened == [changed.path]
    store.remove(known[0])
    assert [str(entry.ref) for entry in Store(store.location).entries(texts.id)] == ["a/two"]


def test_an_import_keeps_the_summary(store, texts, monkeypatch):
    """After it no vector is read for what it says of itself; what the store had before is in the summary too."""
    monkeypatch.setattr(store_module, "MANY", 2)
    values = np.random.default_rng(1).normal(-90, 9, size=(3, len(texts)))
    made = Vectors.from_arrays(values, ["x", "y@step10", "z"], texts, {"x": {"learning_rate": 0.25, "seed": 3}})
    kept, keep = [], store.keep_summary
    monkeypatch.setattr(store, "keep_summary", lambda *given: (kept.append(given[1]), keep(*given)))
    written = store.import_vectors(made, "elsewhere.csv")
    assert kept == ["entries.parquet"]
    opened, other = read_from_now(monkeypatch), Store(store.location)
    entries = other.entries(texts.id)
    assert opened == []
    assert [str(entry.ref) for entry in entries] == ["a/one", "a/two", "x", "y@step10", "z"]
    assert entries[2:] == written
    assert {entry.path: entry for entry in entries} == {entry.path: other_entry(store, entry) for entry in entries}


def test_vectors_beyond_memory_are_an_error_at_once(store, texts, monkeypatch):
    monkeypatch.setattr(limits, "free_memory", lambda: 15 * len(texts))
    with pytest.raises(InputError, match=f"2 vectors of {len(texts)} texts take about"):
        store.vectors(texts)
    monkeypatch.setattr(limits, "free_memory", lambda: 16 * len(texts))
    assert len(store.vectors(texts)) == 2


def test_layers_without_memory_are_left_out_of_the_scale(store, texts, monkeypatch):
    values = scores_of(3)
    layers = np.stack([2 * values.log_likelihood, values.log_likelihood], axis=1)
    store.write(texts, replace(values, parts={"layers": layers}), metadata("a/three"))
    whole, said = klscale.scale(store=store), []
    assert {row.setting for row in whole.settings} >= {"layer"}
    monkeypatch.setattr(verbs_scale, "free_memory", lambda: 16 * len(texts) - 1)
    progress = type("Told", (Progress,), {"note": lambda _, message: said.append(message)})()
    found = klscale.scale(store=store, options=klscale.Options(progress=progress))
    assert found.settings == tuple(row for row in whole.settings if row.setting != "layer")
    assert "Layers of models are left out" in said[0]


def other_entry(store: Store, entry):
    """The entry of a file as the file itself has it."""
    found = store.read_vector(entry.path, entry.text_set)[1]
    return store_module.Entry(entry.path, entry.text_set, found)


def test_imported_models_keep_their_order(tmp_path):
    names = [f"model{n}" for n in range(60, 0, -1)]
    made = Vectors.from_arrays(np.random.default_rng(1).normal(-90, 9, size=(60, 4)), names, [9, 8, 7, 6])
    store = Store(tmp_path / "imported")
    store.import_vectors(made, "elsewhere.csv")
    assert [str(entry.ref) for entry in Store(store.location).entries(made.texts.id)] == names


def test_numbers_that_do_not_repeat_have_no_dictionary(store, texts):
    (entry, *_) = store.entries(texts.id)
    columns = pq.ParquetFile(entry.path).metadata.row_group(0)
    has = {columns.column(n).path_in_schema: columns.column(n).has_dictionary_page for n in range(columns.num_columns)}
    assert has == {"text": False, "log_likelihood": False, "n_tokens": True}


def test_runs_are_found_without_reading_other_models(store, texts, monkeypatch):
    values = np.random.default_rng(1).normal(-90, 9, size=(3, len(texts)))
    store.import_vectors(Vectors.from_arrays(values, ["run@step1", "run@step2", "alone"], texts), "elsewhere.csv")
    everything, opened = store.entries(texts.id), read_from_now(monkeypatch)
    (found,) = analyse_runs(store, texts, everything, from_store_only=True)
    assert found.run.names == ("run@step1", "run@step2")
    assert sorted(opened) == sorted(entry.path for entry in everything if "step" in str(entry.ref))


def test_texts_are_made_once_and_anew_where_they_change(store, texts):
    first = store.texts(texts.id)
    assert store.texts(texts.id) is first
    Store(store.location).put_texts(texts.with_clip(-50.0))
    assert store.texts(texts.id).clip == -50.0


def test_a_damaged_summary_is_said_and_made_anew(store, texts, summed, caplog):
    whole = summed.read_bytes()
    summed.write_bytes(whole[:-200] + bytes(100) + whole[-100:])
    assert Store(store.location).entries(texts.id) == store.entries(texts.id)
    assert str(summed) in caplog.text
    assert all(not problem for _, problem in Store(store.location).check())


def test_a_summary_names_no_file_that_is_not_there_and_no_metadata_that_no_vector_has(store, texts, summed):
    entries = store.entries(texts.id)
    stamps = store.files.stamps("vectors", texts.id)
    known = {Path(entry.path).name: (stamps[entry.path], {**entry.metadata}) for entry in entries}
    outside = {f"../../texts/x-{entries[0].key}.parquet": ("", {**entries[0].metadata})}
    summed.write_bytes(vector_records.entries_to_parquet({**known, **outside}, texts.id))
    assert Store(store.location).entries(texts.id) == entries
    for change in ({"ref": ""}, {"attributes": 1}, {"key": "0" * 12}, {"text_set": "0" * 12}):
        name, (stamp, about) = next(iter(known.items()))
        summed.write_bytes(vector_records.entries_to_parquet({name: (stamp, {**about, **change})}, texts.id))
        assert Store(store.location).entries(texts.id) == entries


def test_a_store_that_cannot_be_written_has_no_summary(store, texts, monkeypatch):
    monkeypatch.setattr(store_module, "MANY", 2)
    monkeypatch.setattr(local, "write_whole", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no")))
    assert len(store.entries(texts.id)) == 2
    assert not (Path(store.location) / "summaries").exists()


def test_the_newest_vector_of_a_reference_is_read(store, texts):
    store.write(texts, scores_of(9), {**metadata("a/one", "2026-02-01"), "key": "0123456789ab"})
    assert len(store.entries(texts.id)) == 3
    vectors = store.vectors(texts)
    np.testing.assert_array_equal(vectors.log_likelihood[vectors.position("a/one")], scores_of(9).log_likelihood)


def test_check_finds_damage(store, texts):
    assert all(not problem for _, problem in store.check())
    one, two = (Path(entry.path) for entry in store.entries(texts.id))
    data = bytearray(one.read_bytes())
    one.write_bytes(data[: len(data) // 2])
    assert dict(store.check())[str(one)].startswith("does not read")
    # values of another file under this file's metadata
    import pyarrow.parquet as pq

    table = pq.read_table(two)
    spoilt = table.set_column(1, "log_likelihood", [table["log_likelihood"].to_numpy() - 1])
    pq.write_table(spoilt, two)
    assert dict(store.check())[str(two)] == "is not as it was written: its seal is broken"
    assert store.vectors(texts).names == ()
    assert store.left_out == {path: problem for path, problem in store.check() if problem}
    jsonl = Path(store.location) / "texts" / f"{texts.id}.jsonl"
    lines = jsonl.read_text().splitlines()
    jsonl.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    assert dict(store.check())[str(jsonl)] == "does not hold the lines that it was written with"
    with pytest.raises(KlscaleError, match="jsonl does not hold the lines"):
        store.resolve_texts(None)


def test_check_finds_damaged_records(store, texts):
    """Exact KL and noise floors, of these texts and of texts that are not there; a link to nothing too."""
    store.write_exact(texts.id, "pair", {"n_texts": 3, "value": 0.25})
    store.write_exact("0" * 12, "pair", {"n_texts": 3})
    place = Path(store.location) / "exact" / texts.id
    file = place / "pair.json"
    whole = file.read_text()
    told = dict(store.check())
    assert told[str(file)] == ""
    assert told[str(place.parent / ("0" * 12) / "pair.json")] == "has a text set that is not in the store"
    for damage in ("", "{}", "3", '"checksum"', whole[:-2], whole.replace("0.25", "0.5"), "[" * 100_000):
        file.write_text(damage)
        assert dict(store.check())[str(file)], damage
        assert store.exact(texts.id, "pair") is None
    file.write_text(whole)
    assert store.exact(texts.id, "pair") == {"n_texts": 3, "value": 0.25}
    for link in (place / "other.json", Path(store.location) / "noise" / texts.id / "k.json"):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(place / "nothing")
        assert dict(store.check())[str(link)]


def test_partial_work_is_kept_and_forgotten(store, texts):
    first, second = Scores(np.array([3, 1]), np.array([-3.0, -1.0]), np.array([2, 2])), scores_of(3, 2)
    store.write_partial(texts.id, "k", first)
    store.write_partial(texts.id, "k", second)
    there = store.read_partial(texts.id, "k")
    assert there.text.tolist() == [0, 1, 3]
    half = next(Path(store.location).glob("partial/*/k/*.parquet"))
    half.write_bytes(half.read_bytes()[:100])
    assert 0 < len(store.read_partial(texts.id, "k")) < 3
    store.drop_partial(texts.id, "k")
    assert len(store.read_partial(texts.id, "k")) == 0


@pytest.mark.slow
def test_a_killed_writer_leaves_no_half_file(tmp_path):
    """Kill a process in the middle of its fifth write, again and again: every file that is there reads."""
    program = f"""
import numpy as np
from klscale.store.store import Store
from klscale.inputs.texts import TextSet
from klscale.vectors.scores import Scores
texts = TextSet.from_texts("t", [str(s) * 9 for s in range(20000)])
store, n = Store({str(tmp_path / "s")!r}), 0
store.put_texts(texts)
known = {{"attributes": {{}}, "convention": "any"}}
while True:
    scores = Scores(np.arange(20000), -np.random.rand(20000) - n, np.ones(20000, dtype=int))
    print(n, flush=True)
    store.write(texts, scores, known | {{"ref": f"m{{n % 3}}", "key": f"{{n % 3:012x}}", "date": str(n)}})
    n += 1
"""
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert [int(process.stdout.readline()) for _ in range(5)] == [0, 1, 2, 3, 4]
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = list(Store(tmp_path / "s").check())
        assert len(found) == 5, "head and lines of the texts, three vectors"
        assert all(not problem for _, problem in found)


def test_object_stores_work_too(texts):
    store = Store("memory://bucket/store")
    store.write(texts, scores_of(1), metadata("a/one"))
    store.write_partial(texts.id, "k", scores_of(2))
    assert store.vectors(texts).names == ("a/one",)
    assert len(store.read_partial(texts.id, "k")) == 40
    assert all(not problem for _, problem in store.check())
    store.remove(store.entries(texts.id)[0])
    assert store.entries(texts.id) == []


def test_texts_are_resolved(store, texts, tmp_path):
    assert store.resolve_texts("tiny").id == texts.id
    assert store.resolve_texts(texts.id).id == texts.id
    file = tmp_path / "other.jsonl"
    file.write_text('{"text": "one"}\n{"text": "two"}\n')
    other = store.resolve_texts(str(file))
    store.put_texts(other)
    with pytest.raises(InputError, match="holds 2 text sets"):
        store.resolve_texts(None)
    with pytest.raises(InputError, match="was not found") as caught:
        store.resolve_texts("tinny")
    assert "Did you mean 'tiny'?" in str(caught.value)
    # a frozen clip belongs to the store's copy
    store.put_texts(other.with_clip(-5.0))
    assert store.resolve_texts(str(file)).clip == -5.0


def test_texts_are_not_read_again_for_every_vector(store, texts, monkeypatch):
    def read_again(*_):
        raise AssertionError("the whole text set, for one vector")

    monkeypatch.setattr(Store, "texts", read_again)
    store.write(texts, scores_of(3), metadata("a/three"))
    assert len(store.entries(texts.id)) == 3


def test_documents_that_were_not_known_are_added(store, texts):
    named = TextSet.from_texts("tiny", texts.texts, document=tuple(str(n // 2) for n in range(40)))
    assert store.keep_texts(named).document == named.document
    assert store.texts(texts.id).document == named.document
    assert store.keep_texts(texts).document == named.document
    other = TextSet.from_texts("tiny", texts.texts, document=tuple(str(n // 4) for n in range(40)))
    with pytest.raises(InputError, match="with other labels under 'document'"):
        store.keep_texts(other)


def test_names_from_elsewhere_stay_inside_the_store(store, texts):
    entry = store.write(texts, scores_of(5), metadata("../../../etc/passwd"))
    assert Path(entry.path).resolve().is_relative_to(Path(store.location).resolve())
    long = "o/" + "x" * 300
    assert store.write(texts, scores_of(5), metadata(long)).ref.name == long


def test_a_vector_that_would_take_too_much_is_left_out(store, texts, monkeypatch, caplog):
    n = len(texts)
    layers = np.full((n, 30), -9.0)
    scores = Scores(np.arange(n), layers[:, -1], np.full(n, 30), {"layers": layers})
    store.write(texts, scores, metadata("deep/one"))
    assert len(Store(store.location).entries(texts.id)) == 3
    monkeypatch.setenv("KLSCALE_LIMIT_VECTOR_LAYERS", "29")
    assert len(Store(store.location).entries(texts.id)) == 2
    assert "would take 30 layers. The limit is 29" in caplog.text
    monkeypatch.setenv("KLSCALE_LIMIT_VECTOR_LAYERS", "30")
    monkeypatch.setenv("KLSCALE_LIMIT_VECTOR_BYTES", str(8 * n * 30 - 1))
    assert len(Store(store.location).entries(texts.id)) == 2
    assert "bytes, decompressed" in caplog.text


def test_a_directory_is_known_as_fsspec_knows_it(tmp_path, monkeypatch):
    """What older versions kept of a store, by fsspec's sizes and times, still counts; a URL of it is the same store."""
    (tmp_path / "a/inner").mkdir(parents=True)
    (tmp_path / "a/one.json").write_bytes(b"one")
    (tmp_path / "a/inner/two.json").write_bytes(b"2")
    (tmp_path / "a/link.json").symlink_to(tmp_path / "a/inner/two.json")
    (tmp_path / "a/nowhere.json").symlink_to(tmp_path / "gone")
    (tmp_path / "a/directory").symlink_to(tmp_path / "a/inner")
    disk, system = local.Local(tmp_path.as_posix()), fsspec.filesystem("file")

    def known(found):
        return {one["name"]: [one[name] for name in ("size", "mtime", "ino", "created")] for one in found}

    directory = (tmp_path / "a").as_posix()
    assert known(disk.list(directory)) == known(system.ls(directory, detail=True))
    assert known(disk.find(directory).values()) == known(system.find(directory, detail=True).values())
    paths = [f"{directory}/{name}.json" for name in ("one", "link", "nowhere")]
    assert known(about for _, about in disk.infos(directory, paths)) == known(map(system.info, paths[:2]))
    monkeypatch.chdir(tmp_path / "a")
    for location in ("inner", "./inner/", "../a/inner", "~/inner", directory):
        root, expected = files.Files(location).root, fsspec.core.url_to_fs(location)[1]
        assert Path(root).resolve() == Path(expected).resolve()
        assert Path(root).is_absolute()
    assert files.Files(f"file://{directory}").root == files.Files(directory).root


def test_a_store_is_opened_without_what_only_some_commands_need():
    program = "import sys, klscale.store.store; print({'fsspec', 'pandas', 'psutil', 'yaml'} & {*sys.modules})"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output == "set()\n"


@pytest.mark.parametrize("chain", ["a::b", "simplecache::memory://x", "zip::file.zip", "::"])
def test_a_chain_of_urls_is_no_store(chain):
    with pytest.raises(InputError, match="is a chain of URLs"):
        Store(chain)


def test_a_store_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    for below in ("file", "file/store", "file/a/b"):
        with pytest.raises(InputError, match="is a file"):
            Store(tmp_path / below)
    with pytest.raises(InputError, match="has no name"):
        Store("")
    with pytest.raises(InputError, match="cannot be opened"):
        Store("nosuch://bucket")


def test_a_full_disk_is_said_and_leaves_nothing_half(store, texts, monkeypatch):
    before = sorted(Path(store.location).rglob("*"))

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KlscaleError, match="No space left on device"):
        store.write(texts, scores_of(3), metadata("a/three"))
    assert sorted(Path(store.location).rglob("*")) == before


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_what_killed_processes_leave_is_cleared_by_the_next_that_writes(store, texts):
    """Temporary files and claims of a process that is gone, or older than a day; not those of the living."""
    store.put_texts(texts)
    place, host = Path(store.location), whole._HOST
    gone, here, other = 2**22 + 1, os.getpid(), "0" * 8
    names = {
        f".klscale-{host}-{gone}-0123abcd.tmp.parquet": True,
        f".klscale-{host}-{here}-0123abcd.tmp.parquet": False,
        f".klscale-{other}-{gone}-0123abcd.tmp.json": False,
        ".m-0123456789ab.parquet.0123abcd.tmp": False,
        ".gitignore": False,
    }
    old = {f".klscale-{other}-{gone}-0123abcd.tmp": True, ".old.parquet.0123abcd.tmp": True, ".hidden": False}
    folder = place / "noise" / texts.id
    folder.mkdir(parents=True)
    for name in (*names, *old):
        (folder / name).write_bytes(b"half")
    for name in old:
        os.utime(folder / name, (time.time() - 90_000,) * 2)
    claim = {"key": "k", "owner": "o", "host": socket.gethostname(), "beat": time.time()}
    owners = {"gone.o.claim": gone, "here.o.claim": here}
    (place / "partial" / texts.id).mkdir(parents=True)
    for name, pid in owners.items():
        (place / "partial" / texts.id / name).write_text(json.dumps({**claim, "pid": pid}))
    again = Store(store.location)
    again.text_sets()
    assert {*names_in(folder)} == {*names, *old}, "reading clears nothing"
    again.put_texts(texts)
    assert {*names_in(folder)} == {name for name, cleared in {**names, **old}.items() if not cleared}
    assert [*names_in(place / "partial" / texts.id)] == ["here.o.claim"]


def test_a_process_that_is_killed_between_write_and_rename_leaves_nothing_for_long(tmp_path, texts):
    """The next command clears it, wherever it lies."""
    program = """
import os, signal, sys
from pathlib import Path
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from klscale.store.store import Store
from klscale.inputs.texts import TextSet
Store(sys.argv[1]).put_texts(TextSet.from_texts("t", ["a", "b"]))
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "s")])
    assert [path.name[0] for path in (tmp_path / "s").rglob("*.tmp*")] == ["."]
    assert Store(tmp_path / "s").is_empty
    Store(tmp_path / "s").put_texts(texts)
    assert len(names_in(tmp_path / "s" / "texts")) == 2


def test_metadata_is_json_under_one_key(store):
    import pyarrow.parquet as pq

    schema = pq.read_schema(next(Path(store.location).glob("vectors/*/*.parquet")))
    assert json.loads(schema.metadata[b"klscale"])["convention"] == CONVENTION


# ------------------------------------------------------------------------------------------------------------- claims


def test_a_claim_is_exclusive_until_released(store, texts):
    claim = store.claim(texts.id, "k")
    assert store.claim(texts.id, "k") is None
    other = store.claim(texts.id, "other")
    assert set(store.claims(texts.id)) == {"k", "other"}
    assert f"process {os.getpid()} on" in store.claims(texts.id)["k"]
    claim.release()
    other.release()
    again = store.claim(texts.id, "k")
    assert again is not None
    again.release()
    assert not list(Path(store.location).rglob("*.claim"))


def test_a_claim_is_renewed_even_where_unfinished_work_is_dropped(store, texts, monkeypatch):
    monkeypatch.setattr(claims, "CLAIM_BEAT_S", 0.02)
    claim = store.claim(texts.id, "k")
    (path,) = Path(store.location).rglob("*.claim")
    first = json.loads(path.read_text())
    wait_until(lambda: json.loads(path.read_text())["beat"] != first["beat"])
    store.drop_partial(texts.id, "k")
    claim.release()
    assert not path.exists()


@pytest.mark.parametrize(
    ("told", "void"),
    [
        ({"pid": 2**22 + 1}, True),  # more than any process id
        ({"beat": time.time() - 1000}, True),
        ({"host": "elsewhere", "pid": 2**22 + 1}, False),
        ({"host": "elsewhere", "beat": time.time() - 1000}, True),
        ({}, False),
    ],
    ids=["gone", "silent", "another machine", "another machine, silent", "alive"],
)
def test_claims_of_processes_that_are_gone_are_void(told, void, store, texts):
    claim = {"key": "k", "owner": "o", "host": socket.gethostname(), "pid": os.getpid()}
    path = Path(store.location) / "partial" / texts.id / "k.o.claim"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(claim | {"beat": time.time()} | told))
    mine = store.claim(texts.id, "k")
    assert (mine is not None) == void
    assert path.exists() != void
    if mine:
        mine.release()


def test_of_two_claims_at_one_moment_one_stands(store, texts):
    claims = []
    barrier = threading.Barrier(6)

    def take():
        barrier.wait()
        claims.append(store.claim(texts.id, "k"))

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    standing = [claim for claim in claims if claim]
    assert len(standing) <= 1
    for claim in standing:
        claim.release()


# ------------------------------------------------------------------------------------------------------------ weights


def of_weights(store: Store, *steps: int) -> tuple[list[list[float]], int | None]:
    matrix, n_parameters = store.weight_distances([f"commit:run@{step}" for step in steps])
    return np.where(np.isnan(matrix), -1, matrix).tolist(), n_parameters


def put_weights(store: Store, step: int, others: dict[int, float], n_parameters: int = 70) -> None:
    squared = {f"commit:run@{other}": value for other, value in others.items()}
    store.write_weight_distances(ModelRef("run", f"step{step}"), f"commit:run@{step}", n_parameters, squared)


@pytest.mark.parametrize("where", ["local", "memory"])
def test_weight_distances_are_symmetric_whichever_file_has_them(where, tmp_path):
    store = Store(tmp_path / "s" if where == "local" else f"memory://bucket/{tmp_path.name}")
    assert of_weights(store, 0, 1) == ([[0, -1], [-1, 0]], None)
    put_weights(store, 1, {0: 0.1})
    put_weights(store, 0, {2: 0.2})
    assert of_weights(store, 0, 1, 2) == ([[0, 0.1, 0.2], [0.1, 0, -1], [0.2, -1, 0]], 70)
    assert of_weights(store, 2, 0) == ([[0, 0.2], [0.2, 0]], 70)
    assert of_weights(store, 0, 1, 0) == ([[0, 0.1, 0], [0.1, 0, 0.1], [0, 0.1, 0]], 70)
    assert of_weights(store) == ([], None)
    assert [problem for _, problem in store.check()] == ["", ""]


@pytest.mark.parametrize("others", [[None, "b"], [1.5, 2.5]])
def test_weight_distances_of_nameless_checkpoints_are_left_out(others, tmp_path):
    store = Store(tmp_path / "s")
    put_weights(store, 1, {0: 0.1})
    (file,) = (tmp_path / "s").glob("weights/*.parquet")
    table, metadata = records.from_parquet("weights", file.read_bytes())
    table = pa.table({"other": pa.array(others), "squared_distance": [0.1, 0.2]})
    file.write_bytes(records.to_parquet("weights", table, metadata))
    (problem,) = (problem for _, problem in store.check() if problem)
    assert problem.startswith("does not have the columns other, squared_distance")
    assert of_weights(store, 0, 1) == ([[0, -1], [-1, 0]], None)


def test_weight_distances_are_added_to_those_that_are_there(tmp_path):
    store = Store(tmp_path / "s")
    put_weights(store, 0, {1: 1.0, 2: 2.0})
    put_weights(store, 0, {2: 2.5, 3: 3.0})
    assert of_weights(store, 0, 1, 2, 3)[0][0] == [0, 1.0, 2.5, 3.0]
    assert len(list(Path(store.location).rglob("*"))) == 2
    # what was counted otherwise is not mixed
    put_weights(store, 0, {1: 9.0}, n_parameters=71)
    assert of_weights(store, 0, 1, 2) == ([[0, 9.0, -1], [9.0, 0, -1], [-1, -1, 0]], 71)
    put_weights(store, 1, {2: 5.0})
    assert of_weights(store, 0, 1)[1] is None


def test_weights_are_those_of_an_identity_whatever_its_name(tmp_path):
    store = Store(tmp_path / "s")
    store.write_weight_distances(ModelRef("run", "main"), "commit:run@9", 70, {"commit:run@1": 1.0})
    store.write_weight_distances(ModelRef("run", "step9"), "commit:run@9", 70, {"commit:run@2": 2.0})
    assert of_weights(store, 1, 2, 9)[0][2] == [1.0, 2.0, 0]


def test_other_tools_read_weight_distances(tmp_path):
    import duckdb
    import pyarrow.parquet as pq

    store = Store(tmp_path / "s")
    put_weights(store, 0, {1: 1.0, 2: 2.0})
    rows = duckdb.sql(f"select other, squared_distance from '{store.location}/weights/*.parquet'").fetchall()
    assert rows == [("commit:run@1", 1.0), ("commit:run@2", 2.0)]
    (path,) = Path(store.location).glob("weights/run-step0-*.parquet")
    metadata = json.loads(pq.read_schema(path).metadata[b"klscale"])
    assert metadata.keys() == {"ref", "identity", "n_parameters", "date", "checksum", "record"}
    assert (metadata["ref"], metadata["identity"], metadata["n_parameters"]) == ("run@step0", "commit:run@0", 70)


def test_damaged_weight_distances_are_found_left_out_and_replaced(tmp_path):
    import pyarrow.parquet as pq

    store = Store(tmp_path / "s")
    for step in range(4):
        put_weights(store, step, {9: 1.0 + step})
    cut, spoilt, renamed, bad = sorted(Path(store.location).glob("weights/*.parquet"))
    cut.write_bytes(cut.read_bytes()[:-30])
    table = pq.read_table(spoilt)
    pq.write_table(table.set_column(1, "squared_distance", [[7.0]]), spoilt)
    renamed.rename(renamed.with_name("run-step2-0123456789ab.parquet"))
    put_weights(store, 3, {9: float("nan")})
    problems = {Path(path).name: problem for path, problem in store.check()}
    assert problems[cut.name].startswith("does not read")
    assert problems[spoilt.name] == "is not as it was written: its seal is broken"
    assert problems["run-step2-0123456789ab.parquet"] == "has the name of another checkpoint"
    assert problems[bad.name] == "has distances that are negative or not finite"
    assert of_weights(store, 0, 1, 2, 9)[0][3] == [-1, -1, -1, 0]
    put_weights(store, 0, {9: 1.0})
    assert of_weights(store, 0, 9)[0] == [[0, 1.0], [1.0, 0]]


def test_an_unfinished_write_of_weight_distances_leaves_the_old_ones(tmp_path, monkeypatch):
    store = Store(tmp_path / "s")
    put_weights(store, 0, {1: 1.0})

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KlscaleError, match="No space left on device"):
        put_weights(store, 0, {2: 2.0})
    assert of_weights(store, 0, 1, 2)[0][0] == [0, 1.0, -1]
    assert [problem for _, problem in store.check()] == [""]


def test_imported_models_keep_their_order_where_the_clock_is_set_back(tmp_path, monkeypatch):
    class Back(datetime):
        seconds = itertools.count()

        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 1, 1, tzinfo=tz) - timedelta(seconds=next(cls.seconds))

    monkeypatch.setattr("klscale.store.store.datetime", Back)
    values = np.random.default_rng(0).normal(-100, 9, size=(4, 12))
    vectors = Vectors.from_arrays(values, ["c", "a", "d", "b"], np.full(12, 80))
    Store(tmp_path / "s").import_vectors(vectors, "made")
    assert Store(tmp_path / "s").vectors(vectors.texts).names == ("c", "a", "d", "b")
