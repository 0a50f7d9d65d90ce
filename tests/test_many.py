"""What commands do where models are many: the same numbers by ways that need no matrix of all pairs."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from klscale.studies import scales
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
    found = pairs_of(scales._find_pairs(strangers))
    step = ["step" in row for row in strangers.known]
    expected = {"seed": set(), "size": set(), "fine-tuning": set()}
    for a, b in combinations(range(len(strangers)), 2):
        setting = scales.setting_between(strangers, strangers.names[a], strangers.names[b])
        if setting in expected and (step[a] == step[b] or setting == "fine-tuning"):
            expected[setting].add(frozenset((a, b)))
    assert min(map(len, expected.values())) > 10
    assert {setting: found[setting] for setting in expected} == expected


def test_of_more_pairs_than_can_be_listed_some_are_drawn_and_all_are_counted(strangers, monkeypatch):
    listed = scales._find_pairs(strangers)
    times = Counter()
    for seed in range(40):
        with monkeypatch.context() as patched:
            patched.setattr(scales, "MOST_LISTED", 30)
            patched.setattr(scales, "MOST_PAIRS", 20)
            patched.setattr(scales, "BLOCK", 64)
            generator = np.random.default_rng
            patched.setattr(np.random, "default_rng", lambda _, seed=seed: generator(seed))  # noqa: B023
            drawn = scales._find_pairs(strangers)
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
