"""A store as a data set: klscale and `datasets` read what was published, and nobody trusts it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from klscale.errors import InputError
from klscale.show.data_sets import write_data_set
from klscale.store.files import _stamp
from klscale.store.store import Store
from test_compact import MOCKS, values_of
from test_store import metadata, scores_of


def front_matter(directory):
    _, head, text = (Path(directory) / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


@pytest.fixture
def store(tmp_path, texts):
    made = Store(tmp_path / "store")
    for n, name in enumerate(("a/one", "a/two", "b/three"), 1):
        made.write(texts, scores_of(n), metadata(name, f"2026-01-0{n}"))
    return made


@pytest.mark.slow
def test_what_is_published_is_a_store_with_the_same_numbers(run, texts, tmp_path):
    """With spans, sampled tokens and run-to-run noise; and one model without."""
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts.texts))
    run("score", *MOCKS[:2], "--texts", "t.jsonl", "--store", "s", "--sampled-tokens", "10")
    run("score", MOCKS[2], "--texts", "t.jsonl", "--store", "s", "--sampled-tokens", "0")
    parts = json.loads(run("export", "d", "--as", "dataset", "--store", "s", "--json").stdout)
    assert [len(part["files"]) for part in parts] == [1, 1, 1]
    assert sorted(part["models"] for part in parts) == [0, 1, 2]
    assert run("kl", "--store", "d", "--json").stdout == run("kl", "--store", "s", "--json").stdout
    assert ", 0 with a problem." in run("check", "--store", "d").output
    assert {entry.key for head in Store("d").text_sets() for entry in Store("d").entries(head["id"])} == {
        entry.key for head in Store("s").text_sets() for entry in Store("s").entries(head["id"])
    }


def test_each_part_on_the_card_has_files_of_its_columns(store, texts, tmp_path, run):
    found = run("export", "d", "a/two", "--as", "dataset", "--store", "store").output
    assert "fill in the license" in found
    assert "(1 text sets, in texts/)" in found
    assert values_of(Store("d"), texts) == {"a/two": values_of(store, texts)["a/two"]}
    head, text = front_matter("d")
    vectors, of_texts = head["configs"]
    assert (head["license"], vectors["default"], "default" in of_texts) == ("unknown", True, False)
    (file,) = vectors["data_files"]
    table = pq.read_table(Path("d") / file)
    assert table["log_likelihood"].to_pylist() == scores_of(2).log_likelihood.tolist()
    for column in table.column_names:
        assert f"- `{column}`: " in text
    assert pq.read_table(Path("d") / of_texts["data_files"][0])["text"].to_pylist() == list(texts.texts)
    assert "not an empty directory" in run("export", "d", "--as", "dataset", "--store", "store", status=2).stderr
    assert "no vector" in run("export", "e", "a/twp", "--as", "dataset", "--store", "store", status=2).stderr
    assert not Path("e").exists()


def test_datasets_reads_each_part(store, texts, tmp_path, run):
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    run("export", "d", "--as", "dataset", "--store", "store")
    for one in front_matter("d")[0]["configs"]:
        rows = datasets.load_dataset(str(tmp_path / "d"), one["config_name"], split="train", cache_dir=str(tmp_path))
        assert len(rows) == len(texts) * (3 if "default" in one else 1)


HOSTILE = "a\n---\nlicense: mit\n<img src=x onerror=alert(1)> [x](http://y) `z` | \u202e{{name}}: !!python/none"


def test_names_on_the_card_are_text(texts, tmp_path, run):
    made = Store(tmp_path / "store")
    made.write(replace(texts, name=HOSTILE), scores_of(1), metadata("a/<b>|*c*", "2026-01-01"))
    run("export", "d", "--as", "dataset", "--store", "store")
    head, text = front_matter("d")
    assert set(head) == {"license", "pretty_name", "tags", "configs"}
    assert head["license"] == "unknown"
    assert all(set(one["config_name"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for one in head["configs"])
    named = [line for line in text.splitlines() if line.startswith("- ") and ("img" in line or "*c" in line)]
    assert len(named) == 3
    for line in named:
        assert not {*"<>[]`|*", "\u202e"} & {*re.sub(r"\\.", "", line)}
    assert "\n---\n" not in text
    assert Store("d").text_sets()[0]["name"] == HOSTILE


def test_a_published_file_that_was_changed_is_left_out(store, texts, tmp_path, run):
    run("export", "d", "--as", "dataset", "--store", "store")
    (file,) = Path("d").glob("compact/*/*.parquet")
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    assert Store("d").entries(texts.id) == []
    assert "1 with a problem" in run("check", "--store", "d", status=1).output


def test_a_file_of_the_hub_is_another_when_its_blob_is():
    """Its listing has neither times nor tags."""
    about = {"name": "datasets/a/b/x.parquet", "size": 10, "type": "file"}
    assert _stamp({**about, "blob_id": "a"}) != _stamp({**about, "blob_id": "b"})
    assert _stamp(about) == json.dumps(["10", *["None"] * 5])


def test_a_store_whose_vectors_all_became_unreadable_is_not_published(store, tmp_path, monkeypatch):
    text_set = store.text_sets()[0]["id"]
    monkeypatch.setattr("klscale.store.publish._members", lambda *_: iter(()))
    with pytest.raises(InputError, match="can be read") as error:
        write_data_set(store, [text_set], tmp_path / "d")
    assert "klscale check" in error.value.remedy
    assert not (tmp_path / "d" / "README.md").exists()
