"""`klscale trajectory --by`: models in the order of a number that they carry."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

import klscale
from conftest import write_texts
from klscale.show.pictures import kl_along_attribute
from klscale.studies.series import in_order

RATES = (1e-2, 1e-4, 3e-2, 3e-4, 1e-3, 3e-3)
"""In no order, and so that names sort otherwise."""
BYTES = np.arange(40, 240)


def log_likelihoods(names):
    generator = np.random.default_rng(3)
    return -0.7 * BYTES + np.cumsum(generator.normal(size=(len(names), len(BYTES))), axis=0)


def expected_kl(a, b):
    """By the definition: the variance over texts of the difference, by twice their mean bytes, in bits; and its
    standard error by leaving out each text in turn."""

    def kl(texts):
        return (a - b)[texts].var() / (2 * BYTES[texts].mean() * math.log(2))

    every = np.arange(len(BYTES))
    without = np.array([kl(every != text) for text in every])
    return kl(every), math.sqrt((len(every) - 1) * without.var())


@pytest.fixture
def imported(run, tmp_path):
    """A sweep over six learning rates and two seeds, and a model without one, in the default store."""
    rows = [
        {
            "model": f"sweep/{n}-s{seed}",
            "learning_rate": rate,
            "seed": seed,
            "data": "web",
            "batch": 32,
            "data_tokens": 10**9 * n,
        }
        for seed in (1, 2)
        for n, rate in enumerate(RATES)
    ]
    names = [*(row["model"] for row in rows), "base"]
    values = dict(zip(names, log_likelihoods(names), strict=True))
    pd.DataFrame({"bytes": BYTES, **values}).to_csv(tmp_path / "sweep.csv", index=False)
    pd.DataFrame(rows).to_csv(tmp_path / "attributes.csv", index=False)
    run("import", "sweep.csv", "--attributes", "attributes.csv")
    return values


def test_models_are_in_order_with_their_kls(run, imported):
    found = json.loads(run("trajectory", "*-s1", "--by", "learning_rate", "--json").stdout)
    assert (found["attribute"], found["texts"], found["unit"]) == ("learning_rate", "sweep", "bits/byte")
    rows = found["models"]
    assert [row["value"] for row in rows] == sorted(RATES)
    names = [f"sweep/{RATES.index(rate)}-s1" for rate in sorted(RATES)]
    assert [row["model"] for row in rows] == names
    assert {row["series"] for row in rows} == {None}
    for t, row in enumerate(rows):
        for key, other in (("first", 0), ("previous", t - 1), ("last", len(rows) - 1)):
            kl = row[f"kl_from_{key}"]
            if other in (-1, t):
                assert kl is None
                continue
            value, error = expected_kl(imported[names[other]], imported[row["model"]])
            assert kl["kl"] == pytest.approx(value, rel=1e-9)
            assert kl["standard_error"] == pytest.approx(error, rel=0.1)
            assert kl["estimator"] == "whole texts"
        own = imported[row["model"]]
        assert row["bits_per_byte"]["value"] == pytest.approx(-own.sum() / BYTES.sum() / math.log(2))


def test_seeds_are_series(run, imported):
    """Each seed is one, in the table, the file, the picture and in Python."""
    found = json.loads(run("trajectory", "--by", "learning_rate", "--json").stdout)["models"]
    assert [(row["series"], row["value"]) for row in found] == [
        (f"seed {seed}", rate) for seed in (1, 2) for rate in sorted(RATES)
    ]
    for row in found[::6]:
        assert row["kl_from_first"] is None
        assert row["kl_from_last"]["kl"] > 0
    same = klscale.trajectory_by("learning_rate")
    assert [one.name for one in same.series] == ["seed 1", "seed 2"]
    assert [point.kl_from_last.value for one in same.series for point in one.points[:-1]] == [
        row["kl_from_last"]["kl"] for row in found if row["kl_from_last"]
    ]
    assert str(same).splitlines()[1].startswith("seed 1: learning_rate 0.0003: sweep/3-s1, ")
    assert "<table>" in same._repr_html_()
    run("trajectory", "--by", "learning_rate", "--out", "all.csv")
    table = pd.read_csv("all.csv")
    assert table["attribute"].unique().tolist() == ["learning_rate"]
    assert table["kl_from_previous"].dropna().tolist() == [
        row["kl_from_previous"]["kl"] for row in found if row["kl_from_previous"]
    ]
    first, *_ = kl_along_attribute(same.series, "learning_rate").axes
    assert first.get_xscale() == "symlog"
    for one, line in zip(same.series, first.lines, strict=True):
        assert line.get_xdata().tolist() == sorted(RATES)[1:]
        assert line.get_ydata().tolist() == [point.kl_from_first.value for point in one.points[1:]]
    narrow = klscale.trajectory_by("data_tokens", ["[45]-s1"])
    assert kl_along_attribute(narrow.series, "data_tokens").axes[0].get_xscale() == "linear"


def test_a_page_of_the_terminal(run, imported):
    shown = run("trajectory", "--by", "data_tokens").stdout.splitlines()
    assert len(shown) <= 25
    assert max(map(len, shown)) <= 100
    assert any("12 models, 0 to 5,000,000,000" in line for line in shown)
    few = [line for line in shown if line.startswith("seed")]
    assert len(few) == 12
    everything = run("trajectory", "--by", "data_tokens", "--wide").stdout
    assert "sweep/5-s2" in everything


def test_of_many_models_the_ends_and_some_between(run, tmp_path):
    names = [f"m{n}" for n in range(40)]
    pd.DataFrame({"bytes": BYTES, **dict(zip(names, log_likelihoods(names), strict=True))}).to_csv("m.csv")
    pd.DataFrame({"model": names, "heat": np.arange(40) / 4}).to_csv("a.csv", index=False)
    run("import", "m.csv", "--attributes", "a.csv")
    shown = run("trajectory", "--by", "heat").stdout
    assert len(shown.splitlines()) <= 25
    assert "15 of 40 models are shown; more: --all" in shown
    assert " m0 " in shown
    assert " m39 " in shown
    everything = run("trajectory", "--by", "heat", "--all").stdout
    assert all(f" {name} " in everything for name in names)


def test_what_cannot_be_ordered(run, imported):
    def error(*arguments):
        return run("trajectory", *arguments, status=2).stderr

    assert "Did you mean 'learning_rate'?" in error("--by", "learning_rat")
    words = error("--by", "data")
    assert "data is no finite number of sweep/0-s1 ('web'), sweep/1-s1 ('web'), sweep/2-s1 ('web'), ..." in words
    assert "holds no model like 'swep'" in error("swep", "--by", "learning_rate")
    tie = error("--by", "batch")
    assert "sweep/0-s1 and sweep/1-s1 have the same batch, 32." in tie
    alone = error("0-s1", "base", "--by", "learning_rate")
    assert "Left out, without learning_rate: base" in alone
    assert "Only sweep/0-s1 has learning_rate." in alone
    assert "--by and --lags exclude each other" in error("--by", "learning_rate", "--lags", 6)
    assert "unknown ending" in error("--by", "learning_rate", "--out", "x.txt")


def test_words_that_are_numbers_and_what_tells_models_apart():
    names = [f"{family}-{rate}" for family in "ab" for rate in ("3e-4", "1e-3", "0.01")]
    attributes = {
        name: {"learning_rate": name.partition("-")[2], "data": name[0], "seed": 1, "notes": n}
        for n, name in enumerate(names)
    }
    vectors = klscale.Vectors.from_arrays(log_likelihoods(names), names, BYTES, attributes)
    found = in_order(vectors, "learning_rate")
    assert [one.name for one in found] == ["data a", "data b"]  # the seeds are equal, the notes all differ
    assert found[0].values == (3e-4, 1e-3, 1e-2)
    assert found[1].vectors.names == ("b-3e-4", "b-1e-3", "b-0.01")
    one = {name: {"heat": heat} for name, heat in (("x", 2), ("y", 0.5), ("z", "1e999"))}
    three = klscale.Vectors.from_arrays(log_likelihoods("xyz"), [*"xyz"], BYTES, one)
    with pytest.raises(klscale.InputError, match="heat is no finite number of z"):
        in_order(three, "heat")
    assert in_order(three.subset(["x", "y"]), "heat")[0].values == (0.5, 2)
    with pytest.raises(klscale.InputError, match="No model has cold"):
        in_order(three, "cold")


def test_scored_models_and_their_estimators(run, tmp_path):
    """A suite's numbers order its models; each KL is by the estimator that `compare` reports."""
    write_texts(tmp_path / "texts.jsonl")
    kinds = {"mock://1": "0", "mock://1?shift=0.1": "3e-4", "mock://1?shift=0.2&tokens=pairs": "0.1"}
    models = "".join(f"  - name: {name}\n    weight_decay: {value}\n" for name, value in kinds.items())
    (tmp_path / "suite.yaml").write_text(f"texts: texts.jsonl\nmodels:\n{models}")
    run("score", "--suite", "suite.yaml")
    rows = json.loads(run("trajectory", "--by", "weight_decay", "--json").stdout)["models"]
    assert [row["value"] for row in rows] == [0, 3e-4, 0.1]
    assert rows[1]["kl_from_previous"]["estimator"] == "sampled tokens"
    assert rows[2]["kl_from_previous"]["estimator"] == "spans"
    for row, other in ((rows[1], rows[0]), (rows[2], rows[1])):
        (pair,) = json.loads(run("compare", other["model"], row["model"], "--json").stdout)
        assert row["kl_from_previous"]["kl"] == pair["kl"]
    shown = run("trajectory", "--by", "weight_decay").stdout
    assert "sampled tokens, spans" in shown
    assert "published estimator" not in shown
