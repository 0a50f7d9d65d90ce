"""The report's data against the store they come from, and the page as a file. What the page does: test_page.py."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from klscale import reports, scales
from klscale.errors import InputError
from klscale.store import Store
from mixed_store import HOSTILE, STEPS, mixed_store


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    store = mixed_store(tmp_path_factory.mktemp("mixed") / "store")
    return reports.read(store, store.resolve_texts(None))


@pytest.fixture(scope="module")
def data(contents):
    return json.loads(json.dumps(reports._finite(reports.gather(contents))))


@pytest.fixture(scope="module")
def page(data):
    return reports.render(data)


def unpacked(column, length):
    """What the page's scripts do with a column."""
    if "constant" in column:
        assert column["length"] == length
        return np.full(length, column["constant"])
    ((kind, text),) = column.items()
    values = np.frombuffer(base64.b64decode(text), dtype=np.dtype(kind).newbyteorder("<"))
    assert len(values) == length
    return values


def test_every_pair_is_that_of_the_store(data, contents):
    matrix, K = contents.vectors.kl(), len(contents.vectors)
    n = K * (K - 1) // 2
    value, error = (unpacked(data["pairs"][name], n) for name in ("value", "standard_error"))
    critical, n_texts = (unpacked(data["pairs"][name], n) for name in ("critical_value", "n_texts"))
    flags = unpacked(data["pairs"]["flags"], n)
    for i, (a, b, kl) in enumerate(matrix.pairs()):
        assert value[i] == np.float32(kl.value)
        assert error[i] == np.float32(kl.standard_error)
        assert n_texts[i] == kl.n_texts
        high = kl.value * np.exp(critical[i] * kl.standard_error / kl.value)
        assert high == pytest.approx(kl.interval[1], rel=1e-6)
        assert bool(flags[i] & 1) == (not kl.in_range)
        assert bool(flags[i] & 4) == kl.heavy_tails
        assert bool(flags[i] & 8) == ("org/short" in (a, b))
        assert bool(flags[i] & 16) == (("bfloat16" in a) != ("bfloat16" in b))
    assert {bit for bit, _ in data["pairs"]["flag_texts"]} == {bit for bit in (1, 2, 4, 8, 16) if (flags & bit).any()}
    assert sorted(data["pairs"]["order"]) == list(range(K))


def test_pairs_are_placed_as_compare_does(data, contents):
    matrix, texts = contents.vectors.kl(), contents.texts
    for i in range(len(contents.vectors)):
        for j in range(i + 1, len(contents.vectors)):
            kl = matrix[i, j]
            wanted = scales.place(
                kl.value, texts, contents.measured, (contents.vectors.names[i], contents.vectors.names[j])
            )
            if (key := f"{i},{j}") in data["place"]["own"]:
                assert data["place"]["own"][key] == wanted
                continue
            row = next(row for row in data["place"]["yardsticks"] if row["up_to"] is None or kl.value <= row["up_to"])
            assert f"'{row['setting']}' ({row['median']:.3g}, {row['source']})" in wanted
            times = kl.value / row["median"]
            assert wanted.startswith(f"{times:.1f} times" if 0.1 <= times < 10 else f"{times:.2g} times")


def test_what_each_section_holds(data, contents):
    assert data["sections"] == list(reports.SECTIONS)
    names = data["names"]
    assert names[: len(contents.vectors)] == [ref.label for ref in contents.vectors.models]
    measured = {row.setting: row for row in contents.measured}
    for row in data["scale"]["settings"]:
        setting = measured[row["setting"]]
        n = len(setting.pairs)
        assert np.allclose(unpacked(row["values"], n), setting.values, rtol=1e-7, atol=0)
        ends = zip(unpacked(row["a"], n), unpacked(row["b"], n), strict=True)
        refs = [*contents.vectors.names, *contents.layers.names]
        assert [(refs[a], refs[b]) for a, b in ends] == list(setting.pairs)
    runs = {run["run"]: run for run in data["trajectories"]["runs"]}
    assert runs.keys() == {"runs/seed1", "runs/seed2"}
    run, matrix = runs["runs/seed2"], contents.vectors.kl()
    assert run["steps"] == list(STEPS)
    for t in range(1, len(STEPS)):
        kl = matrix[f"runs/seed2@step{STEPS[t - 1]}", f"runs/seed2@step{STEPS[t]}"]
        assert run["from_previous"][t]["value"] == pytest.approx(kl.value, rel=1e-12)
        assert run["from_previous"][t]["interval"] == pytest.approx(kl.interval, rel=1e-12)
        assert names[run["models"][t]] == f"runs/seed2@step{STEPS[t]}"
    assert {row["space"] for row in run["exponents"]} == {"log-likelihood", "weights"}
    (ladder,) = data["quantization"]["ladders"]
    assert [row["kind"] for row in ladder["rows"]] == ["int8", "nf4", "fp4"]
    assert ladder["rows"][0]["kl"]["value"] == matrix[ladder["base"], ladder["rows"][0]["name"]].value
    (layered,) = data["layers"]["models"]
    assert layered["layer"] == [0, 1, 2, 3]
    assert layered["to_output"][-1] is None
    (thread, _) = data["map"]["threads"]
    assert thread["kl"][0] == matrix["runs/seed1@step0", "runs/seed1@step20"].value
    said = {row["section"] for row in data["summary"]}
    assert said >= {"models", "scale", "trajectories", "layers", "quantization"}


def test_sections_that_hold_nothing_are_left_out(tmp_path):
    from conftest import EXAMPLE
    from klscale.imports import read_log_likelihoods

    store = Store(tmp_path / "store")
    store.import_vectors(read_log_likelihoods(EXAMPLE, id_column="text_id"), "example")
    data = reports.gather(reports.read(store, store.resolve_texts(None)))
    assert data["sections"] == ["summary", "scale", "map", "pairs", "models", "method"]
    assert {row["section"] for row in data["summary"]} <= {*data["sections"]}


def test_the_same_store_gives_the_same_data(contents, data):
    again = json.loads(json.dumps(reports._finite(reports.gather(contents))))
    assert {**again, "date": ""} == {**data, "date": ""}


def test_one_model_is_no_report(tmp_path, contents):
    store = Store(tmp_path / "store")
    entry = contents.entries[0]
    store.write(contents.texts, contents.store.scores(entry), entry.metadata)
    with pytest.raises(InputError, match="holds 1 models"):
        reports.read(store, contents.texts)


# --------------------------------------------------------------------------------------------------------- the file


def test_the_page_asks_for_nothing_and_runs_only_its_own_scripts(page):
    """No address but the sources' links; every script is in the policy by its hash, and nothing else is."""
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert hashes == set(re.findall(r"'sha256-([^']+)'", policy))
    assert "unsafe-eval" not in policy
    own = re.sub(r'id="data">.*?</script>', "", page.replace(get_plotlyjs(), ""), flags=re.DOTALL)
    assert not re.search(r"<(?:img|iframe|object|embed)\b|\bsrc\s*=|@import|url\((?!data:|#)", own)
    assert re.findall(r"<link\b[^>]*>", own) == ['<link rel="icon" href="data:,">']


def test_names_cannot_leave_the_data(page):
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in data
    assert HOSTILE in json.loads(data)["names"]
    assert HOSTILE not in page
    assert "<b>mixed</b>" not in page


def test_the_page_is_written_whole_or_not_at_all(tmp_path, data, monkeypatch):
    file = tmp_path / "deep" / "report.html"
    size = reports.write(data, file)
    assert file.stat().st_size == size
    before = file.read_bytes()
    monkeypatch.setattr(reports, "render", lambda data: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        reports.write(data, file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]


def test_report_command(run, tmp_path):
    mixed_store(tmp_path / "store")
    result = run("report", "--store", "store", "--out", "page.html")
    assert "page.html" in result.output
    assert (tmp_path / "page.html").as_uri() in result.output.replace("\n", "")
    record = json.loads(run("report", "--store", "store", "--out", "page.html", "--json").stdout)
    assert record["bytes"] == (tmp_path / "page.html").stat().st_size
    assert "is an HTML page" in run("report", "--store", "store", "--out", "page.pdf", status=2).output
    assert "is empty" in run("report", "--store", "nowhere", status=2).output
