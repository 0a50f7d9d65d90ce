"""What commands do where models are many: the same numbers by ways that need no matrix of all pairs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from klscale.vectors.vectors import Vectors
from test_compact import MOCKS


def test_kl_from_one_model_is_that_of_the_matrix_nearest_first(run, fourteen, tmp_path):
    shutil.copytree(fourteen, tmp_path / "s")
    of = "EleutherAI/pythia-1b"
    found = json.loads(run("kl", "--of", of, "--store", "s", "--json").stdout)
    pairs = {frozenset((row["a"], row["b"])): row for row in json.loads(run("kl", "--store", "s", "--json").stdout)}
    assert {row["a"] for row in found} == {of}
    assert len({row["b"] for row in found} - {of}) == len(found) == 13
    assert [row["kl"] for row in found] == sorted(row["kl"] for row in found)
    for row in found:
        pair = pairs[frozenset((row["a"], row["b"]))]
        for key, value in row.items():
            if isinstance(value, float):
                assert value == pytest.approx(pair[key], rel=1e-9), key
            elif key not in "ab":
                assert value == pair[key], key
    printed = run("kl", "--of", of, "--store", "s").stdout
    assert printed.index(found[0]["b"]) < printed.index(found[1]["b"])
    run("kl", "--of", of, "--store", "s", "--out", "kl.csv")
    assert len((tmp_path / "kl.csv").read_text().splitlines()) == 14
    assert "pythia-1b" in run("kl", "--of", "EleutherAI/pythia", "--store", "s", status=2).stderr


def test_kl_from_one_model_is_by_the_estimator_that_each_pair_has(run, texts, tmp_path):
    """Of one with spans and sampled tokens, and one without; as `compare` says of each two."""
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts.texts))
    run("score", *MOCKS, "--texts", "t.jsonl", "--store", "s", "--sampled-tokens", "10")
    run("score", "mock://4", "--texts", "t.jsonl", "--store", "s", "--sampled-tokens", "0")
    found = json.loads(run("kl", "--of", MOCKS[0], "--store", "s", "--json").stdout)
    assert {row["estimator"] for row in found} == {"sampled tokens", "spans"}
    for row in found:
        (pair,) = json.loads(run("compare", row["a"], row["b"], "--store", "s", "--texts", "t", "--json").stdout)
        for key in ("estimator", "kl", "standard_error", "interval_low", "whole_texts_kl", "n_texts", "cautions"):
            assert row[key] == (pytest.approx(pair[key], rel=1e-9) if isinstance(row[key], float) else pair[key]), key


def test_kl_of_too_many_pairs_names_its_size_and_the_way_round(monkeypatch):
    made = Vectors.from_arrays(-np.ones((50, 2)) * np.arange(50)[:, None], [f"m{n}" for n in range(50)], [10, 10])
    monkeypatch.setattr("klscale.vectors.vectors.ALL_PAIRS_BYTES", 1e12)
    with pytest.raises(Exception, match="1,225 pairs of 50 models") as error:
        made.kl()
    assert "--of REF" in error.value.remedy
