"""The alarm for a server that may change in silence: its error rate at all looks together, and what it detects."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import scipy
from typer.testing import CliRunner

from conftest import write_texts
from klscale.cli import app
from klscale.errors import InputError
from klscale.inputs.texts import TextSet
from klscale.science.sequential import anytime_p_value, signed_rank_p_value
from klscale.studies.alarm import drift_alarm, parse_level
from klscale.vectors.vectors import Vectors
from served import serve


def test_the_p_value_bounds_that_of_all_signs():
    """Against the exact p-value of Wilcoxon's test, by all 2**n signs."""
    generator = np.random.default_rng(0)
    for n in (1, 4, 10):
        values = generator.standard_t(2, n) + generator.choice([0.0, 1.5])
        signs = np.array(list(itertools.product((-1, 1), repeat=n)))
        ranks = 1 + np.argsort(np.argsort(np.abs(values)))
        exact = np.mean(np.abs(signs @ ranks) >= abs(np.sign(values) @ ranks))
        assert exact == pytest.approx(scipy.stats.wilcoxon(values, method="exact").pvalue)
        assert exact <= signed_rank_p_value(values) <= 1
    assert signed_rank_p_value(np.ones(9)) == pytest.approx(2 * math.exp(-4.5))
    assert signed_rank_p_value(np.zeros(9)) == 1
    assert signed_rank_p_value(np.ones(9), np.repeat([0, 1, 2], 3)) == pytest.approx(2 * math.exp(-1.5))  # documents


def test_the_level_is_spent_over_all_looks():
    """P(p <= alpha / (t (t + 1))) summed over looks is alpha."""
    spent = sum(0.05 / (look * (look + 1)) for look in range(1, 100_000))
    assert spent == pytest.approx(0.05, rel=1e-4)
    assert anytime_p_value(0.05 / (7 * 8), 7) == pytest.approx(0.05)
    assert anytime_p_value(0.5, 3) == 1


@pytest.mark.slow
def test_the_error_rate_holds_at_all_looks_and_a_change_is_found():
    """Servers with heavy-tailed noise that differs between texts, 40 texts, against another engine; one reference and
    one first run for all of 40 looks. A t-test at each look would alarm more than twice as often as it may."""
    generator, servers, level, n_looks = np.random.default_rng(1), 300, 0.2, 40
    alarms = naive = found = 0
    for _ in range(servers):
        noise = generator.gamma(0.5, size=40)
        gap = generator.normal(size=40) * generator.choice([0.0, 2.0])
        first = np.abs(gap + noise * generator.standard_t(2, 40))
        later = np.abs(gap + noise * generator.standard_t(2, (n_looks, 40)))
        x = later - first
        p = [anytime_p_value(signed_rank_p_value(row), look) for look, row in enumerate(x, 1)]
        alarms += min(p) <= level
        naive += (np.abs(x.mean(axis=1)) > 1.3 * x.std(axis=1) / math.sqrt(40)).any()
        moved = np.abs(gap + 10 * generator.normal(size=40) + noise * generator.standard_t(2, 40)) - first
        found += anytime_p_value(signed_rank_p_value(moved), 10) <= level
    assert alarms <= level * servers
    assert naive > 2 * level * servers
    assert found > 0.8 * servers


def vectors_of(rows, documents=None):
    names = [f"run{n}" for n in range(len(rows))]
    texts = TextSet.from_texts("t", [f"text {n}" for n in range(len(rows[0]))], document=documents)
    return Vectors.from_arrays(rows, names, texts)


def test_each_look_is_of_distances_from_the_reference():
    generator = np.random.default_rng(2)
    reference = -50 - generator.random(30)
    first, later, changed = (reference + scale * generator.normal(size=30) for scale in (0.1, 0.1, 3))
    it = drift_alarm(vectors_of([reference, first, later, changed]), ["monday", "friday"])
    assert (it.reference, it.first, it.first_alarm) == ("run0", "run1", "run3")
    x = np.abs(changed - reference) - np.abs(first - reference)
    ranks = np.sign(x) * (1 + np.argsort(np.argsort(np.abs(x))))
    p = 2 * math.exp(-(ranks.sum() ** 2) / (2 * (ranks**2).sum()))
    assert it.looks[1].p_value == pytest.approx(p * 2 * 3)
    assert it.looks[1].farther.value == pytest.approx(x.mean())
    documents = tuple(f"d{n // 2}" for n in range(30))
    clustered = drift_alarm(vectors_of([reference, first, later, changed], documents), ["monday", "friday"])
    farther = clustered.looks[1].farther
    half = scipy.stats.t.ppf(0.975, 14) * farther.standard_error  # over documents of two texts
    assert (farther.n_texts, farther.interval[1]) == (30, pytest.approx(farther.value + half))
    assert [look.alarm for look in it.looks] == [False, True]
    assert [look.date for look in it.looks] == ["monday", "friday"]


def test_an_alarm_needs_runs_texts_and_a_level():
    rows = -1.0 - np.random.default_rng(3).random((3, 8))
    with pytest.raises(InputError, match="8 texts or documents are too few"):
        drift_alarm(vectors_of(rows), ["later"])
    rows[2, 1:] = np.nan
    with pytest.raises(InputError, match="run2, run1 and run0 have fewer than two texts in common"):
        drift_alarm(vectors_of(rows), ["later"])
    with pytest.raises(InputError, match="2 runs"):
        drift_alarm(vectors_of(rows[:2]), [])
    assert parse_level("5 %") == parse_level("0.05") == 0.05
    for wrong in ("0", "50%", "x", "-1%"):
        with pytest.raises(InputError, match="not between 0 and 50 %"):
            parse_level(wrong)


@pytest.mark.slow
def test_a_server_under_watch(tmp_path):
    """Scored under a label each day; on the fourth day it has other weights."""
    call = CliRunner().invoke
    where = ["--texts", str(write_texts(tmp_path / "texts.jsonl", 20)), "--store", str(tmp_path / "store")]
    with serve() as served:
        days = [f"{served.url}?label=day{n}#model" for n in range(4)]
        watch = ["drift", days[0], f"{served.url}?label=*#model", "--alarm", "5%", *where]
        assert call(app, ["score", *days[:3], *where]).exit_code == 0
        quiet = call(app, watch)
        assert quiet.exit_code == 0, quiet.output
        assert "No alarm in 1 looks" in quiet.output
        served.log_p[:] = type(served)(seed=8).log_p
        assert call(app, ["score", days[3], *where]).exit_code == 0
        alarmed = call(app, [*watch, "--json"])
    assert alarmed.exit_code == 3, alarmed.output
    record = json.loads(alarmed.stdout)
    assert (record["first"], record["first_alarm"]) == (days[1], days[3])
    assert [look["model"] for look in record["looks"]] == days[2:]
    assert [look["alarm"] for look in record["looks"]] == [False, True]
    assert "is not what the first run was" in call(app, watch).output
    assert call(app, ["drift", "mock://3", days[1], "--alarm", "5%", *where]).exit_code == 2
    assert call(app, ["drift", days[0], days[1], "--alarm", "5%", *where]).exit_code == 2
    assert call(app, [*watch, "--fail-above", "1"]).exit_code == 2
