"""What a store keeps: a store of klscale 0.1.0 is readable for ever, versions, seals, and parts of a vector."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from conftest import ROOT
from klscale.errors import InputError, UnreadableError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import content_id
from klscale.science.estimates import Estimate
from klscale.science.kl import KL
from klscale.store import records, vector_records
from klscale.store.store import Store, vector_key
from klscale.studies import maps
from klscale.vectors import scores as scores_module
from klscale.vectors.scores import LAYERS, Part, Ragged, Scores
from klscale.vectors.vectors import CONVENTION

OLD = ROOT / "tests" / "data" / "store-0.1.0"
"""Written by klscale 0.1.0: texts with layers, weights, a map, noise floors and exact KL; and an external set."""
NUMBERS = json.loads(OLD.with_name("store-0.1.0.json").read_text(encoding="utf-8"))
"""What klscale 0.1.0 read from it."""
OWN, EXTERNAL = "817faccc080f", "44150156611b"


@pytest.fixture
def old(tmp_path: Path) -> Store:
    shutil.copytree(OLD, tmp_path / "store")
    return Store(tmp_path / "store")


def require_every_number(store: Store) -> None:
    assert {head["id"] for head in store.text_sets()} == {OWN, EXTERNAL}
    for text_set, known in NUMBERS["texts"].items():
        texts = store.texts(text_set)
        assert (texts.name, texts.clip, texts.bytes.tolist()) == (known["name"], known["clip"], known["bytes"])
        assert list(texts.document) == known["document"]
        assert (texts.domain and list(texts.domain)) == known["domain"]
        assert {name: list(values) for name, values in texts.labels.items()} == known["labels"]
        vectors = store.vectors(texts, layers=True)
        assert list(vectors.names) == known["models"]
        expected = np.array(known["log_likelihood"], dtype=np.float64)
        np.testing.assert_array_equal(vectors.log_likelihood, expected)
        assert {name: vectors.attributes[name].tolist() for name in known["attributes"]} == known["attributes"]
        kl = vectors.kl()
        np.testing.assert_allclose(kl.value, known["kl"], rtol=1e-9)
        np.testing.assert_allclose(kl.standard_error, known["standard_error"], rtol=1e-9)
        tokens = {entry.key: store.scores(entry).n_tokens.tolist() for entry in store.entries(text_set)}
        assert tokens == known["n_tokens"]
    distances, n_parameters = store.weight_distances([f"files:runs/a@step{step}" for step in (1, 2, 3)])
    assert {"distances": distances.tolist(), "n_parameters": n_parameters} == NUMBERS["weights"]
    for key, kl in NUMBERS["noise"].items():
        assert json.loads(json.dumps(asdict(store.noise_floor(OWN, key)))) == kl
    assert store.exact(OWN, "0123456789ab") == NUMBERS["exact"]
    found = maps.kept_map(store, store.vectors(store.texts(OWN)))
    assert list(found.models) == NUMBERS["map"]["models"]
    np.testing.assert_array_equal(found.pca, NUMBERS["map"]["pca"])
    np.testing.assert_array_equal(found.share, NUMBERS["map"]["share"])
    assert found.typical == NUMBERS["map"]["typical"]
    assert len(store.maps(OWN)) == 1, "the kept map was read, and no other made"
    assert store.left_out == {}


def test_every_number_of_a_store_of_0_1_0_is_read(old):
    require_every_number(old)
    assert not [problem for _, problem in old.check() if problem]
    assert len(old.unsealed) == 17, "every file but the lines of the texts"


def test_a_store_of_0_1_0_is_sealed_and_holds_the_same_numbers(old):
    sealed = list(old.seal())
    assert len(sealed) == 17
    assert old.unsealed == set()
    again = Store(old.location)
    assert not [problem for _, problem in again.check() if problem]
    assert again.unsealed == set()
    assert list(again.seal()) == []
    require_every_number(Store(old.location))


# ------------------------------------------------------------------------------------------------------------ versions


def test_fields_of_a_later_version_are_ignored_and_missing_ones_take_their_defaults():
    kl = KL(
        value=0.5, standard_error=0.1, interval=(0.4, 0.7), n_texts=10, mean_bytes=60.0, value_unclipped=0.6,
        standard_error_unclipped=0.1, clipped=0.0, uses_clip=True, kurtosis=3.0, in_range=True, n_documents=5,
    )  # fmt: skip
    record = json.loads(json.dumps(records.to_record(kl)))
    assert records.from_record(KL, {**record, "run_to_run": 0.1, "n_documents": 5}) == kl
    del record["n_documents"]
    assert records.from_record(KL, record).n_documents is None
    estimate = {"value": 1, "standard_error": 0.5, "interval": [0, 2], "n_texts": 4}
    assert records.from_record(Estimate, estimate) == Estimate(1.0, 0.5, (0.0, 2.0), 4, "bits/byte")


@pytest.mark.parametrize(
    "change",
    [
        {"value": None},
        {"value": "1"},
        {"value": True},
        {"interval": [1]},
        {"interval": 3},
        {"n_texts": 1.5},
        {"unit": 3},
    ],
)
def test_a_field_of_another_type_is_refused(change):
    record = {"value": 1.0, "standard_error": 0.5, "interval": [0, 2], "n_texts": 4, "unit": ""}
    with pytest.raises(UnreadableError, match=next(iter(change))):
        records.from_record(Estimate, record | change)


def test_a_result_of_optional_and_nested_fields():
    @dataclass(frozen=True)
    class Result:
        name: str
        pair: tuple[float, int] | None = None

    globals()["Result"] = Result
    assert records.from_record(Result, {"name": "a"}) == Result("a")
    assert records.from_record(Result, {"name": "a", "pair": [1, 2]}) == Result("a", (1.0, 2))
    with pytest.raises(UnreadableError, match="pair"):
        records.from_record(Result, {"name": "a", "pair": [1, 2.5]})


def test_a_record_of_a_later_version_is_left_out_and_said(old, monkeypatch, caplog):
    key = next(iter(NUMBERS["noise"]))
    kl = old.noise_floor(OWN, key)
    monkeypatch.setattr(records, "VERSION", 3)
    old.write_noise_floor(OWN, key, kl)
    monkeypatch.setattr(records, "VERSION", 2)
    assert old.noise_floor(OWN, key) is None
    assert f"noise/{OWN}/{key}.json is left out: it holds a record 'noise/3'" in caplog.text


def test_a_record_of_another_kind_is_not_taken_for_one(old):
    (entry, *_) = old.entries(OWN)
    data = vector_records.partial_to_parquet(old.scores(entry), entry.key)
    with pytest.raises(UnreadableError, match="'partial/2'"):
        vector_records.vector_from_parquet(data, OWN, Path(entry.path).name, 24)
    assert len(vector_records.partial_from_parquet(data, entry.key, 24)) == 24
    with pytest.raises(UnreadableError, match="another key"):
        vector_records.partial_from_parquet(data, "0" * 12, 24)


def test_files_are_sealed_to_the_same_bytes(old):
    """The seal is of the file's content alone, so that what is written twice is the same file."""
    (entry, *_) = old.entries(OWN)
    first, second = (vector_records.vector_to_parquet(old.scores(entry), entry.metadata) for _ in range(2))
    assert first == second
    assert vector_records.vector_from_parquet(first, OWN, Path(entry.path).name, 24)[1]["ref"] == entry.metadata["ref"]


# --------------------------------------------------------------------------------------------------------------- parts

PIECES = Part("pieces", "piece_log_likelihood", "<f4", ragged=True)


def ragged(*rows: list[float]) -> Ragged:
    return Ragged(np.concatenate([np.array(row, dtype="<f4") for row in rows]), np.array([len(row) for row in rows]))


def rows_of(values: Ragged) -> list[list[float]]:
    return [row.tolist() for row in np.split(values.values, np.cumsum(values.lengths)[:-1])]


@pytest.fixture
def pieces(monkeypatch):
    monkeypatch.setitem(scores_module.PARTS, "pieces", PIECES)
    first = Scores(
        np.array([4, 0, 2]), np.array([-6.0, -1.0, -3.0]), np.array([3, 1, 2]),
        {"layers": np.array([[-9.0, -6], [-5, -1], [-8, -3]]), "pieces": ragged([-1, -2, -3], [], [-3])},
    )  # fmt: skip
    second = Scores(
        np.array([1, 2]), np.array([-4.0, -7.0]), np.array([2, 2]),
        {"layers": np.array([[-1.0, -4], [-1, -7]]), "pieces": ragged([-2, -2], [-7])},
    )  # fmt: skip
    return first, second


def test_a_ragged_part_goes_where_its_texts_go(pieces):
    whole = Scores.concatenate(pieces)
    assert whole.text.tolist() == [0, 1, 2, 4]
    assert rows_of(whole.parts["pieces"]) == [[], [-2, -2], [-3], [-1, -2, -3]]
    assert whole.layers.tolist() == [[-5, -1], [-1, -4], [-8, -3], [-9, -6]]
    some = whole.at(np.array([4, 0]))
    assert (some.text.tolist(), rows_of(some.parts["pieces"])) == ([0, 4], [[], [-1, -2, -3]])
    assert rows_of(whole.parts["pieces"][np.array([3, 1, 3])]) == [[-1, -2, -3], [-2, -2], [-1, -2, -3]]
    assert len(whole.at(np.array([9])).parts["pieces"]) == 0


def test_a_part_that_one_block_lacks_is_not_of_the_whole(pieces):
    first, second = pieces
    bare = Scores(second.text, second.log_likelihood, second.n_tokens, {LAYERS.name: second.parts["layers"]})
    assert {*Scores.concatenate([first, bare]).parts} == {"layers"}
    empty = Scores.concatenate([])
    assert {*Scores.concatenate([empty, first]).parts} == {"layers", "pieces"}, "an empty block has nothing to lack"


def test_the_checksum_sees_each_part_and_without_new_ones_is_as_it_was(pieces):
    first, _ = pieces
    plain = Scores(first.text, first.log_likelihood, first.n_tokens)
    layered = Scores(first.text, first.log_likelihood, first.n_tokens, {"layers": first.parts["layers"]})
    arrays = [first.text.astype("<i8"), first.log_likelihood, first.layers]
    by_hand = [content_id(array.tobytes() for array in arrays[:n]) for n in (2, 3)]
    assert [plain.checksum, layered.checksum] == by_hand
    moved = Scores(first.text, first.log_likelihood, first.n_tokens, {"pieces": ragged([-1, -2], [-3], [-3])})
    same = Scores(first.text, first.log_likelihood, first.n_tokens, {"pieces": first.parts["pieces"]})
    assert len({plain.checksum, layered.checksum, first.checksum, moved.checksum, same.checksum}) == 5


def test_parts_are_kept_checked_and_read_by_other_tools(pieces, texts, tmp_path):
    store, (first, _) = Store(tmp_path / "s"), pieces
    ref = ModelRef.parse("a/one")
    known = {
        "ref": "a/one",
        "key": vector_key("x", ref, CONVENTION, "mock"),
        "attributes": {},
        "convention": CONVENTION,
    }
    entry = store.write(texts, first, known)
    assert entry.metadata["parts"] == ["layers", "pieces"]
    read = store.scores(store.entries(texts.id)[0])
    assert rows_of(read.parts["pieces"]) == rows_of(first.parts["pieces"])
    assert read.parts["pieces"].values.dtype == np.float32
    np.testing.assert_array_equal(read.layers, first.layers)
    assert read.checksum == first.checksum
    columns = pq.read_table(entry.path).to_pydict()
    assert columns["piece_log_likelihood"] == [[-1, -2, -3], [], [-3]]
    broken = Scores(first.text, first.log_likelihood, first.n_tokens, {"pieces": ragged([-1, np.nan], [], [-3])})
    with pytest.raises(InputError, match="pieces that are not finite"):
        store.write(texts, broken, known)
