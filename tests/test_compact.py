"""Vectors in compact files are what they were in files of their own, in each state that a killed command may leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import attacks
from klscale.store import compact, vector_records
from klscale.store.store import Store
from klscale.vectors.scores import PARTS, Scores
from mixed_store import mixed_store
from test_store import metadata, scores_of

MOCKS = ("mock://1", "mock://2?shift=0.1", "mock://3")


@pytest.fixture
def store(tmp_path, texts):
    made = Store(tmp_path / "store")
    for n, name in enumerate(("a/one", "a/two", "b/three"), 1):
        made.write(texts, scores_of(n), metadata(name, f"2026-01-0{n}"))
    return made


def files_of(store, kind):
    return sorted(path for path in (Path(store.location) / kind).rglob("*") if path.is_file())


def values_of(store, texts):
    """Of each model, as a new process reads the store."""
    vectors = Store(store.location).vectors(texts)
    return dict(zip(vectors.names, map(np.ndarray.tolist, vectors.log_likelihood), strict=True))


@pytest.mark.slow
def test_every_command_prints_the_same_and_each_file_comes_back_to_the_bit(run, texts, tmp_path):
    """Layers, texts that are lacking, noise, spans and sampled tokens; two text sets."""
    mixed_store(tmp_path / "s")
    lines = [json.dumps({"text": text}) for text in texts.texts]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    run("score", *MOCKS, "--texts", "t.jsonl", "--store", "s", "--sampled-tokens", "10")
    commands = [
        ["ls", "--json"], ["ls"], ["kl", "--json", "--texts", "0123456789ab"], ["kl", "--json", "--texts", "t"],
        ["compare", *MOCKS, "--json", "--texts", "t"], ["scale", "--json", "--texts", "0123456789ab"],
    ]  # fmt: skip

    def printed():
        return [run(*command, "--store", "s").stdout for command in commands]

    def checksums():
        made = Store(tmp_path / "s")
        entries = [entry for head in made.text_sets() for entry in made.entries(head["id"])]
        parts = {part for entry in entries for part in made.scores(entry).parts}
        assert parts == {part.name for part in PARTS.values()}
        return {entry.key: made.scores(entry).checksum for entry in entries}

    before, values, kept = printed(), checksums(), attacks.tree(tmp_path / "s" / "vectors")
    found = json.loads(run("compact", "--store", "s", "--json").stdout)
    moved = sum(path.endswith(".parquet") for path in kept)
    assert sum(one["vectors"] for one in found) == sum(one["files_before"] for one in found) == moved
    assert not [*(tmp_path / "s" / "vectors").rglob("*.parquet")]
    assert len([*(tmp_path / "s" / "compact").rglob("*.parquet")]) == sum(one["files_after"] for one in found) < moved
    assert (printed(), checksums()) == (before, values)
    assert ", 0 with a problem." in run("check", "--store", "s").output
    run("compact", "--store", "s", "--undo")
    assert attacks.tree(tmp_path / "s" / "vectors") == kept
    assert checksums() == values
    assert not [path for path in (tmp_path / "s" / "compact").rglob("*") if path.is_file()]


def test_a_compact_file_is_a_table_of_models_and_texts(store, texts):
    before = values_of(store, texts)
    store.compact(texts.id)
    (file,) = files_of(store, "compact")
    table = pq.read_table(file)
    assert table.schema.field("model").type == pa.string()
    for name, values in before.items():
        assert table.filter(pa.compute.field("model") == name)["log_likelihood"].to_pylist() == values


def test_a_file_of_its_own_counts_before_a_compact_one(store, texts):
    store.compact(texts.id)
    written = store.write(texts, scores_of(9), metadata("a/two", "2026-02-01"))
    assert store.scores(written).checksum == scores_of(9).checksum
    for _ in range(2):
        values = values_of(store, texts)
        assert values["a/two"] == scores_of(9).log_likelihood.tolist()
        assert values["a/one"] == scores_of(1).log_likelihood.tolist()
        done = Store(store.location).compact(texts.id)
    assert (done.vectors, done.files_after, len(files_of(store, "vectors"))) == (0, 1, 0)


def test_a_model_that_is_taken_out_is_out_of_every_file(store, texts):
    first = store.entries(texts.id)
    store.compact(texts.id)
    two = store.entries(texts.id)[1]
    store.write(texts, scores_of(9), metadata("a/two", "2026-02-01"))
    store.remove(two, store.entries(texts.id)[0])
    assert [entry.ref for entry in Store(store.location).entries(texts.id)] == [first[2].ref]
    store.remove(*store.entries(texts.id))
    assert (files_of(store, "compact"), files_of(store, "vectors"), store.entries(texts.id)) == ([], [], [])


@pytest.mark.parametrize("undo", [False, True])
def test_what_a_process_works_on_stays(store, texts, undo):
    if undo:
        store.compact(texts.id)
    before, entry = values_of(store, texts), store.entries(texts.id)[1]
    claim = store.claim(texts.id, entry.key)
    (store.expand if undo else store.compact)(texts.id)
    assert Path(entry.path).exists() != undo
    assert len(files_of(store, "compact")) == 1
    claim.release()
    assert values_of(store, texts) == before


def test_a_vector_that_changes_meanwhile_is_not_lost(store, texts, monkeypatch):
    """Written anew after it was read for the compact file, before its file would be removed."""
    write = store.files.write

    def written(path, data):
        write(path, data)
        if "/compact/" in path:
            Store(store.location).write(texts, scores_of(9), metadata("a/two", "2026-02-01"))

    monkeypatch.setattr(store.files, "write", written)
    store.compact(texts.id)
    assert [path.name.startswith("a-two") for path in files_of(store, "vectors")] == [True]
    assert values_of(store, texts)["a/two"] == scores_of(9).log_likelihood.tolist()


def test_many_vectors_make_files_of_a_size_and_a_later_one_fills_the_last(store, texts, monkeypatch):
    monkeypatch.setattr(compact, "BYTES", int(2.5 * vector_records.scores_to_table(scores_of(1)).nbytes))
    assert store.compact(texts.id).files_after == 2
    whole = {path: path.read_bytes() for path in files_of(store, "compact")}
    store.write(texts, scores_of(4), metadata("b/four", "2026-01-04"))
    before = values_of(store, texts)
    assert (store.compact(texts.id).files_after, len(before)) == (2, 4)
    assert values_of(store, texts) == before
    assert sum(whole.get(path) == path.read_bytes() for path in files_of(store, "compact")) == 1


def test_a_reader_finds_vectors_that_move_under_it(store, texts):
    before, other = values_of(store, texts), Store(store.location)
    entries = other.entries(texts.id)
    for change in (store.compact, store.expand, store.compact):
        change(texts.id)
        vectors = other.vectors(texts, entries)
        assert dict(zip(vectors.names, map(np.ndarray.tolist, vectors.log_likelihood), strict=True)) == before


def test_a_damaged_file_is_said_and_a_damaged_copy_is_not_kept_alone(store, texts, caplog):
    before = values_of(store, texts)
    kept = {path: path.read_bytes() for path in files_of(store, "vectors")}
    store.compact(texts.id)
    (file,) = files_of(store, "compact")
    whole = file.read_bytes()
    for path, data in kept.items():  # as a command leaves them that was killed between writing and removing
        path.write_bytes(data[:-40] if "a-two" in path.name else data)
    for change in ("expand", "compact"):
        getattr(Store(store.location), change)(texts.id)
        assert [path for path in kept if path.exists() and "a-two" in path.name]
        assert len(files_of(store, "compact")) == 1
    for path in files_of(store, "vectors"):
        path.unlink()
    assert values_of(store, texts) == before
    (file,) = files_of(store, "compact")
    file.write_bytes(whole[:200] + bytes(20) + whole[220:])
    assert values_of(store, texts) == {}
    assert str(file) in caplog.text
    other = Store(store.location)
    assert [path for path, problem in other.check() if problem] == [str(file)]
    assert other.vector_files(texts.id) == [str(file)]


def test_a_compact_file_that_names_what_no_vector_has_is_left_out(store, texts, tmp_path):
    table, about = vector_records.scores_to_table(scores_of(1)), {**store.entries(texts.id)[0].metadata}
    for file, values in ((f"../../x-{about['key']}.parquet", table), (f"x-{about['key']}.parquet", table.slice(0, 9))):
        place = tmp_path / "stranger" / file.replace("/", "_")
        shutil.copytree(Path(store.location) / "texts", place / "texts")
        (place / "compact" / texts.id).mkdir(parents=True)
        one = vector_records.Packed(file, values, about)
        (place / "compact" / texts.id / "0.parquet").write_bytes(vector_records.pack_to_parquet([one], texts.id))
        stranger = Store(place)
        assert [problem for _, problem in stranger.check() if problem]
        assert len(stranger.vectors(texts)) == 0


def test_scores_of_other_columns_lie_in_other_files(store, texts):
    layers = np.tile(scores_of(1).log_likelihood[:, None], 3)
    for n in (2, 3):
        values = Scores(np.arange(40), layers[:, 0], np.full(40, 30), {"layers": layers[:, :n]})
        store.write(texts, values, metadata(f"c/layers-{n}"))
    before = Store(store.location).vectors(texts, layers=True)
    assert store.compact(texts.id).files_after == 3
    more = Scores(np.arange(40), layers[:, 0], np.full(40, 30), {"layers": layers})
    store.remove(store.write(texts, more, metadata("c/gone")))
    store.write(texts, more, metadata("c/layers-3"))
    assert store.compact(texts.id).files_after == 3
    after = Store(store.location).vectors(texts, layers=True)
    assert after.names == before.names
    np.testing.assert_array_equal(after.log_likelihood, before.log_likelihood)


class StoppedError(BaseException):
    """What ends a command at once, as a signal does."""


def stop_at(store, event):
    """Count the files that a store writes and removes, and stop before one of them."""
    count = 0

    def watched(change):
        def call(*arguments):
            nonlocal count
            count += 1
            if count == event:
                raise StoppedError
            return change(*arguments)

        return call

    for name in ("write", "create", "remove"):
        setattr(store.files, name, watched(getattr(store.files, name)))
    return lambda: count


@pytest.mark.parametrize("command", ["compact", "expand", "remove"])
def test_stopped_at_each_file_event_nothing_is_lost_or_doubled(store, texts, tmp_path, command):
    """The start has files of their own newer than their copies in a compact file, and one vector in that alone."""
    store.compact(texts.id)
    for n, name in ((9, "a/two"), (8, "b/three"), (7, "b/four")):
        store.write(texts, scores_of(n), metadata(name, f"2026-02-0{n}"))
    before, start = values_of(store, texts), Path(store.location)
    (gone,) = (entry for entry in store.entries(texts.id) if str(entry.ref) == "a/two")
    kept = {name: values for name, values in before.items() if name != "a/two"}
    wanted = kept if command == "remove" else before

    def change(made):
        if command == "remove":
            made.remove(*(entry for entry in made.entries(texts.id) if entry.key == gone.key))
        else:
            getattr(made, command)(texts.id)

    for event in range(1, 20):
        place = tmp_path / f"stopped-{event}"
        shutil.copytree(start, place)
        made = Store(place)
        events = stop_at(made, event)
        try:
            change(made)
        except StoppedError:
            found = values_of(made, texts)
            assert found in (before, wanted)
            assert len(Store(place).entries(texts.id)) == len(found)
            assert not [problem for _, problem in Store(place).check() if problem]
            change(Store(place))
            assert values_of(made, texts) == wanted
        else:
            assert events() == event - 1 >= 2
            assert values_of(made, texts) == wanted
            return
    raise AssertionError("it never ended")
