"""What commands do where models are many: the same numbers by ways that need no matrix of all pairs."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from klscale.store.store import Store
from klscale.studies import maps, relatives, scales
from klscale.vectors.vectors import Vectors
from test_compact import MOCKS


def test_kl_from_one_model_is_that_of_the_matrix_nearest_first(run, fourteen, tmp_path, monkeypatch):
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
    monkeypatch.setattr(Store, "vectors", None)  # none is read before a wrong name is said
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


@pytest.fixture(scope="module")
def strangers():
    """Models of which some things are known and others are not, so that most pairs are of no setting."""
    drawn = random.Random(7)
    known = {}
    for k in range(160):
        known[f"{drawn.choice('ab')}-m{k}"] = {
            name: drawn.choice(values)
            for name, values in {
                "family": ["f", "g", "h"], "type": ["t", "u"], "parameters": [70e6, 71e6, 90e6, 1e9], "seed": [0, 1, 2],
                "step": [10], "parent": ["a-m0", "b-m1"], "dtype": ["float32", "bfloat16"],
            }.items()
            if drawn.random() < {"step": 0.1, "parent": 0.2}.get(name, 0.7)
        }  # fmt: skip
    return Vectors.from_arrays(-np.arange(160.0 * 2).reshape(160, 2), [*known], [10, 10], known)


def pairs_of(found):
    return {setting: {frozenset(pair) for pair in pairs.places.tolist()} for setting, pairs in found.items()}


def test_pairs_of_relatives_are_those_whose_two_models_say_so(strangers):
    found = pairs_of(relatives.find_pairs(strangers))
    step = ["step" in row for row in strangers.known]
    expected = {"seed": set(), "size": set(), "fine-tuning": set()}
    for a, b in combinations(range(len(strangers)), 2):
        setting = scales.setting_between(strangers, strangers.names[a], strangers.names[b])
        if setting in expected and (step[a] == step[b] or setting == "fine-tuning"):
            expected[setting].add(frozenset((a, b)))
    assert min(map(len, expected.values())) > 10
    assert {setting: found[setting] for setting in expected} == expected


def test_of_more_pairs_than_can_be_listed_some_are_drawn_and_all_are_counted(strangers, monkeypatch):
    listed = relatives.find_pairs(strangers)
    times = Counter()
    for seed in range(40):
        with monkeypatch.context() as patched:
            patched.setattr(relatives, "MOST_LISTED", 30)
            patched.setattr(relatives, "MOST_PAIRS", 20)
            patched.setattr(relatives, "BLOCK", 64)
            generator = np.random.default_rng
            patched.setattr(np.random, "default_rng", lambda _, seed=seed: generator(seed))  # noqa: B023
            drawn = relatives.find_pairs(strangers)
        assert {name: pairs.n_available for name, pairs in drawn.items() if name not in scales.UNSPECIFIC} == {
            name: pairs.n_available for name, pairs in listed.items() if name not in scales.UNSPECIFIC
        }
        for setting in ("seed", "architecture"):
            assert len(pairs_of(drawn)[setting]) == len(drawn[setting].places) == 20
            assert pairs_of(drawn)[setting] <= pairs_of(listed)[setting]
        times.update(pairs_of(drawn)["architecture"])
    n = listed["architecture"].n_available
    assert n > 400
    counts = np.array([times[pair] for pair in pairs_of(listed)["architecture"]])
    assert counts.mean() == pytest.approx(40 * 20 / n)
    assert counts.var() < 2 * counts.mean()  # each as likely as any other: as of a Poisson law


@pytest.fixture(scope="module")
def families():
    """600 models of 12 families, that differ along some directions; every fourth is near the one before."""
    generator = np.random.default_rng(5)
    rows = 30 * generator.normal(size=(12, 400))[np.arange(600) // 4 % 12]
    rows += generator.normal(size=(600, 20)) @ (6 * generator.normal(size=(20, 400)))
    rows[3::4] = rows[2::4]
    rows += 2 * generator.normal(size=rows.shape)
    L = -500 + rows - rows.max()
    return Vectors.from_arrays(L, [f"m{n}" for n in range(600)], np.full(400, 300))


@pytest.mark.slow
def test_neighbours_among_candidates_are_those_of_all(families, monkeypatch):
    points = families.coordinates()
    squares = ((points[:, None] - points) ** 2).sum(axis=2)
    np.fill_diagonal(squares, np.inf)
    places, distances = maps._near(points, 10)
    assert distances == pytest.approx(np.sqrt(np.take_along_axis(squares, places, axis=1)), rel=1e-9)
    assert (np.diff(distances) >= 0).all()
    expected = np.argsort(squares, axis=1)[:, :10]
    recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(places.tolist(), expected.tolist(), strict=True)])
    assert recall > 0.9
    assert (places[:, 0] == expected[:, 0]).mean() > 0.98
    rows = np.array([5, 17, 599])
    for near, kl in (maps.nearest_of_many(families), maps.nearest_of_many(families, rows)):
        of = rows if len(near) == 3 else np.arange(600)
        assert near.tolist() == (expected[rows, 0] if len(near) == 3 else places[:, 0]).tolist()
        assert kl.value == pytest.approx(squares[of, near], rel=1e-9)
        pair = families.subset([families.names[of[2]], families.names[near[2]]]).kl()[0, 1]
        assert kl[2].standard_error == pytest.approx(pair.standard_error, rel=1e-9)
        assert kl[2].interval == pytest.approx(pair.interval, rel=1e-9)


@pytest.mark.slow
def test_components_and_map_of_many_are_those_of_few(families, monkeypatch):
    families = families.subset(families.names[:120])
    few = maps.model_map(families)
    monkeypatch.setattr(maps, "EXACT", 100)
    monkeypatch.setattr(maps, "MOST_TSNE", 200)
    monkeypatch.setattr(maps, "DENSE", 100)
    many = maps.model_map(families)
    assert many.pca == pytest.approx(few.pca, abs=1e-9)
    assert many.share == pytest.approx(few.share, rel=1e-9)
    assert many.typical == pytest.approx(few.typical, rel=1e-9)
    assert (few.tsne3 is None, many.tsne3 is None, many.tsne.shape) == (False, True, (120, 2))
    assert [note for note in many.notes if "in the plane alone" in note or "by projection" in note] == [*many.notes]


def test_of_more_models_than_tsne_moves_the_others_have_the_mean_place_of_their_nearest(families, monkeypatch):
    """By a loop over single models; one of the others equals a model that t-SNE moved."""
    monkeypatch.setattr(maps, "MOST_TSNE", 60)
    monkeypatch.setattr(maps, "DRAWN", 100)
    L = families.log_likelihood[:120].copy()
    moved = np.sort(np.random.default_rng(maps.SEED).permutation(121)[:60])
    others = np.setdiff1d(np.arange(121), moved)
    L = np.insert(L, others[7], 0.0, axis=0)
    L[others[7]] = L[moved[11]] - 3
    vectors = Vectors.from_arrays(L, [f"m{n}" for n in range(121)], np.full(400, 300))
    found = maps.model_map(vectors)
    assert any("t-SNE is of 60 models, drawn at random: the other 61" in note for note in found.notes)
    Q = L - L.mean(axis=1, keepdims=True)
    squares = ((Q[:, None] - Q) ** 2).mean(axis=2) / (2 * 300 * np.log(2))
    np.testing.assert_array_equal(found.tsne[others[7]], found.tsne[moved[11]])
    for model in np.delete(others, 7):
        near = moved[np.argsort(squares[model, moved])[:15]]
        sigma = np.geomspace(1e-4, 1e4, 4000)[:, None]
        weight = np.exp(-(squares[model, near] - squares[model, near].min()) / (2 * sigma**2))
        weight /= weight.sum(axis=1, keepdims=True)
        entropy = -np.sum(weight * np.log(np.maximum(weight, 1e-300)), axis=1)
        weight = weight[np.abs(entropy - np.log(maps.PLACING)).argmin()]
        assert found.tsne[model] == pytest.approx(weight @ found.tsne[near], abs=0.02 * np.ptp(found.tsne))
    np.fill_diagonal(squares, np.inf)
    drawn = np.sort(np.random.default_rng(maps.SEED).permutation(121)[:100])
    assert found.typical == pytest.approx(np.median(squares[drawn].min(axis=1)), rel=1e-9)
    assert maps.model_map(vectors).tsne.tolist() == found.tsne.tolist()
