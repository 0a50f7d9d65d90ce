"""`klscale map`: what it draws, what it keeps, and what a model that is added does to it."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from conftest import plain_log_likelihoods, write_texts
from klscale.inputs.texts import load_texts
from klscale.show import reports
from klscale.store.files import Files
from klscale.store.store import Store
from klscale.vectors.vectors import CONVENTION, Vectors

K = 8


@pytest.fixture
def vectors(tmp_path, run):
    """Vectors of eight models in two families, in a store that the command finds by itself."""
    texts = load_texts(str(write_texts(tmp_path / "texts.jsonl")))
    generator = np.random.default_rng(0)
    centres = 9 * generator.standard_normal((2, len(texts)))
    values = -150 + centres[np.arange(K) % 2] + 3 * generator.standard_normal((K, len(texts)))
    names = [f"org/m{k}" for k in range(K)]
    plain = {"dtype": "float32", "convention": CONVENTION}
    known = {name: {"family": f"family{k % 2}", **plain} for k, name in enumerate(names)}
    made = Vectors.from_arrays(values, names, texts, known)
    Store(tmp_path / "klscale-store").import_vectors(made, "made")
    return made


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)[1])


@pytest.mark.slow
def test_models_are_added_and_the_others_do_not_move(run, vectors, make_model, tmp_path):
    """Scored, placed, told and drawn: in the record, the page and the table; later commands have them too."""
    before = {row["model"]: row for row in json.loads(run("map", "--json").stdout)["models"]}
    first, second = make_model("first"), make_model("second", seed=1)
    record = json.loads(run("map", "--add", first, "--out", "map.html", "--json").stdout)
    names = [*vectors.names, str(first)]
    assert [row["model"] for row in record["models"]] == names
    assert [row["added"] for row in record["models"]] == [False] * K + [True]
    for row in record["models"][:K]:
        assert [row[key] for key in ("pca", "tsne", "tsne3", "off_map")] == [
            before[row["model"]][key] for key in ("pca", "tsne", "tsne3", "off_map")
        ]

    own = plain_log_likelihoods(first, vectors.texts)
    everything = np.vstack([vectors.log_likelihood, own])
    to = ((everything[:K] - own).var(axis=1)) / (2 * vectors.texts.mean_bytes * np.log(2))
    added = record["models"][K]
    assert [row["model"] for row in added["nearest"]] == [names[k] for k in np.argsort(to)]
    assert added["nearest"][0]["kl"] == pytest.approx(to.min(), rel=1e-3)
    assert added["off_map"]["nearest"] == names[to.argmin()]
    Q = everything - everything.mean(axis=1, keepdims=True)
    differences = Q[1:K] - Q[0]
    left = Q[K] - Q[0] - np.linalg.lstsq(differences.T, Q[K] - Q[0], rcond=None)[0] @ differences
    basis, _ = np.linalg.qr(np.vstack([differences, np.ones(len(own))]).T)
    left_out = left / (1 - (basis**2).sum(axis=1))  # as it is of a text that the fit was not made of
    assert added["off_map"]["unexplained"]["value"] == pytest.approx(
        (left * left_out).mean() / (2 * vectors.texts.mean_bytes * np.log(2)), rel=1e-3
    )

    page = data_of(tmp_path / "map.html")
    assert page["sections"] == list(reports.MAP) == ["map", "pairs", "models", "method"]
    assert not page.keys() & {"scale", "trajectories", "layers", "quantization"}
    assert {row["section"] for row in page["summary"]} <= {*reports.MAP}
    assert page["refs"] == names
    assert page["map"]["added"] == [K]
    assert page["map"]["pca"] == [row["pca"] for row in record["models"]]
    assert page["map"]["tsne2"] == [row["tsne"] for row in record["models"]]
    assert names[to.argmin()].rpartition("/")[2] in page["map"]["off_map"][str(K)]

    result = run("map", "--add", second, "--add", first, "--out", "deep/map.csv")
    assert "first is on the kept map already" in " ".join(result.output.split())
    frame = pd.read_csv(tmp_path / "deep" / "map.csv")
    assert frame["model"].tolist() == [*names, str(second)]
    assert frame["added"].tolist() == [False] * K + [True] * 2
    was = np.array([row["tsne"] for row in record["models"]])
    np.testing.assert_array_equal(frame[["tsne_1", "tsne_2"]].to_numpy()[: K + 1], was)
    assert [row["added"] for row in json.loads(run("map", "--json").stdout)["models"]] == [False] * K + [True] * 2
    anew = json.loads(run("map", "--anew", "--json").stdout)["models"]
    assert not any(row["added"] for row in anew)
    assert anew == json.loads(run("map", "--json").stdout)["models"]


def test_what_is_not_there_is_not_added_and_nothing_is_drawn(run, vectors, make_model, tmp_path):
    run("map")
    (kept,) = (tmp_path / "klscale-store" / "maps").glob("*/*.parquet")
    before = kept.read_bytes()
    result = run("map", "--add", "./nowhere", "--out", "map.html", status=2)
    assert "nowhere is not a directory" in result.output
    assert "Wrote" not in result.output
    assert not (tmp_path / "map.html").exists()
    assert [path.read_bytes() for path in kept.parent.iterdir()] == [before]
    there = make_model("there")
    run("map", "--add", "./nowhere", "--add", there, "--out", "map.html", status=1)
    assert data_of(tmp_path / "map.html")["refs"] == [*vectors.names, str(there)], "what is there is"


def test_adding_and_making_anew_exclude_each_other(run, vectors, tmp_path):
    result = run("map", "--add", "./nowhere", "--anew", "--out", "map.html", status=2)
    assert "exclude each other" in result.output
    assert not [*tmp_path.glob("map.html"), *tmp_path.glob("klscale-store/maps")]


@pytest.mark.slow
def test_a_map_is_drawn_and_listed(run, vectors, tmp_path):
    run("map", "--out", "map.png")
    run("map", "--out", "components.png", "--method", "pca")
    run("map", "--out", "map.csv")
    run("map", "--out", "page.htm")
    run("map", "--out", "map.svg", "--colour", "family")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (tmp_path / "map.png").read_bytes() != (tmp_path / "components.png").read_bytes()
    assert pd.read_csv(tmp_path / "map.csv")["model"].tolist() == list(vectors.names)
    assert data_of(tmp_path / "page.htm")["map"]["added"] == []
    assert len([*(tmp_path / "klscale-store" / "maps").glob("*/*.parquet")]) == 1
    for name, hint in (("familie", "Did you mean 'family'?"), ("seed", "No model here has it.")):
        refused = run("map", "--out", "map.png", "--colour", name, status=2)
        assert hint in refused.stderr
        assert not refused.stdout, "the error is not at the end of a long table"
    result = run("map", "--out", "map", status=2)
    assert all(ending in result.output for ending in (".html", ".htm", ".png", ".svg", ".pdf", ".csv", ".parquet"))
    assert not (tmp_path / "map").exists()


def test_a_map_that_cannot_be_kept_is_drawn_and_said(run, vectors, tmp_path, monkeypatch):
    from klscale.errors import StorageError

    def full(self, path, data):
        raise StorageError(f"{path} could not be written.", "No space left on device.")

    monkeypatch.setattr(Files, "write", full)
    result = run("map", "--out", "map.html")
    assert "The map is not kept" in " ".join(result.output.split())
    assert data_of(tmp_path / "map.html")["refs"] == list(vectors.names)
    assert not (tmp_path / "klscale-store" / "maps").exists()
