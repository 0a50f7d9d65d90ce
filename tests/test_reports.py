"""The report's data against the store they come from, and the page as a file. What the page does: test_page.py."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import math
import re
import shlex
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from conftest import write_texts
from klscale.errors import InputError, StorageError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.science.estimates import format_estimate
from klscale.show import pages, reports
from klscale.show.contents import _sample, contents_of_map, read_contents
from klscale.show.sections import TITLES
from klscale.show.terminal import for_json
from klscale.store.files import Files
from klscale.store.store import Store, vector_key
from klscale.studies import maps, scales
from klscale.vectors.scores import Scores
from klscale.vectors.vectors import CONVENTION
from mixed_store import BYTES, HOSTILE, NOISE, STEPS, mixed_store


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    store = mixed_store(tmp_path_factory.mktemp("mixed") / "store")
    return read_contents(store, store.resolve_texts(None))


@pytest.fixture(scope="module")
def data(contents):
    return json.loads(json.dumps(for_json(reports.gather(contents))))


@pytest.fixture(scope="module")
def page(data):
    return pages.render(data)


def rows_of(data, name):
    """The rows of one of the page's CSV files."""
    return list(csv.DictReader(io.StringIO(data["files"][name])))


def method(data):
    return {row["what"]: row["text"].removeprefix("'") for row in rows_of(data, "method")}


def unpacked(column, length):
    """What the page's scripts do with a column."""
    if "constant" in column:
        assert column["length"] == length
        return np.full(length, column["constant"])
    ((kind, text),) = column.items()
    values = np.frombuffer(base64.b64decode(text), dtype=np.dtype(kind).newbyteorder("<"))
    assert len(values) == length
    return values


@pytest.mark.slow
def test_every_pair_is_that_of_the_store(data, contents):
    matrix, K = contents.vectors.kl(), len(contents.vectors)
    n = K * (K - 1) // 2
    value, error = (unpacked(data["pairs"][name], n) for name in ("value", "standard_error"))
    critical, n_texts = (unpacked(data["pairs"][name], n) for name in ("critical_value", "n_texts"))
    flags = unpacked(data["pairs"]["flags"], n)
    read_twice, floor = (
        {name for name in matrix.labels if f"seed1@step{STEPS[-1]}" in name},
        NOISE / (2 * BYTES * math.log(2)),
    )
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
        noise = floor if {a, b} <= read_twice else math.nan
        assert bool(flags[i] & 32) == (0.1 * kl.value < noise < kl.value)
        assert bool(flags[i] & 64) == (noise >= kl.value)
    assert {32, 64} <= {bit for bit, _ in data["pairs"]["flag_texts"]}
    assert {bit for bit, _ in data["pairs"]["flag_texts"]} == {
        bit for bit in (1, 2, 4, 8, 16, 32, 64) if (flags & bit).any()
    }
    assert sorted(data["pairs"]["order"]) == list(range(K))


@pytest.mark.slow
def test_pairs_are_placed_as_compare_does(data, contents):
    matrix, texts = contents.vectors.reported_kl_matrix(), contents.texts
    for i in range(len(contents.vectors)):
        for j in range(i + 1, len(contents.vectors)):
            kl = matrix.at(i, j).whole_texts
            pair = contents.vectors.names[i], contents.vectors.names[j]
            setting = scales.setting_between(contents.vectors, *pair)
            wanted = scales.place(matrix.at(i, j), texts, contents.measured, pair, setting)
            if (key := f"{i},{j}") in data["place"]["own"]:
                assert data["place"]["own"][key] == wanted
                continue
            row = next(row for row in data["place"]["yardsticks"] if row["up_to"] is None or kl.value <= row["up_to"])
            assert f"'{row['setting']}' ({row['median']:.3g}, {row['source']})" in wanted
            times = kl.value / row["median"]
            assert wanted.startswith(f"{times:.1f} times" if 0.1 <= times < 10 else f"{times:.2g} times")


def test_which_of_each_pair_is_better_is_what_its_difference_says(data, contents):
    vectors = contents.vectors
    names = [(a, b) for n, a in enumerate(vectors.names) for b in vectors.names[n + 1 :]]
    assert len(data["better"]) == len(names)
    for (a, b), (place, words) in zip(names, data["better"], strict=True):
        low, high = (found := vectors.bits_per_byte(a, b)).interval
        assert place == (1 if low > 0 else 0 if high < 0 else None)
        assert f" {format_estimate(abs(found.value), found.standard_error)} bits/byte" in words.replace("(", " ")


def test_what_each_section_holds(data, contents):
    assert data["sections"] == list(TITLES)
    names = data["names"]
    assert names[: len(contents.vectors)] == [ref.label for ref in contents.vectors.models]
    pairs = [
        (row.setting, a, b, value)
        for row in contents.measured
        for (a, b), value in zip(row.pairs, row.values, strict=True)
    ]
    listed = rows_of(data, "scale-pairs")
    assert [(row["setting"], row["a"], row["b"], float(row["kl"])) for row in listed] == pairs
    medians = {row["setting"]: float(row["median"]) for row in rows_of(data, "scale")}
    assert medians == {row.setting: row.median for row in contents.measured}
    floor = f"median {NOISE / (2 * BYTES * math.log(2)):.2g} bits/byte of 4 models"
    assert floor in data["parts"]["scale"]
    refs = contents.vectors.names
    seeds = next(one for one in data["settings"] if one["words"].startswith("Two seeds"))
    (pair,) = next(row.pairs for row in contents.measured if row.setting == "seed")
    assert [refs[unpacked(seeds[end], 1)[0]] for end in "ab"] == list(pair)
    run, matrix = [row for row in rows_of(data, "checkpoints") if row["run"] == "runs/seed2"], contents.vectors.kl()
    assert [int(row["step"]) for row in run] == list(STEPS)
    for t in range(1, len(STEPS)):
        kl = matrix[f"runs/seed2@step{STEPS[t - 1]}", f"runs/seed2@step{STEPS[t]}"]
        assert float(run[t]["kl_from_previous"]) == pytest.approx(kl.value, rel=1e-12)
        assert float(run[t]["kl_from_previous_interval_low"]) == pytest.approx(kl.interval[0], rel=1e-12)
    assert len(data["runs"]) == 2
    for slide in data["runs"]:
        assert len(slide["readout"]) == len(STEPS)
        assert all(len(panel) == len(STEPS) for panel in slide["marks"])
    assert {row["space"] for row in rows_of(data, "exponents")} == {"log-likelihood", "weights"}
    ladder = rows_of(data, "quantization")
    assert [row["kind"] for row in ladder] == ["int8", "nf4", "fp4"]
    assert float(ladder[0]["kl"]) == matrix[ladder[0]["base"], ladder[0]["variant"]].value
    layered = rows_of(data, "layers")
    assert [int(row["layer"]) for row in layered] == [0, 1, 2, 3]
    assert layered[0]["kl_from_previous"] == ""
    (thread, _) = data["map"]["threads"]
    assert thread["kl"][0] == matrix["runs/seed1@step0", "runs/seed1@step20"].value
    chosen = sorted(refs, key=lambda name: contents.vectors.bits_per_byte(name).value)
    last = [name for name in chosen if "+" not in name and ("@step" not in name or f"@step{STEPS[-1]}" in name)]
    assert [refs[n] for n in data["chosen"]] == last[:2]
    said = {row["section"] for row in data["summary"]}
    assert said >= {"models", "scale", "trajectories", "layers", "quantization"}


def test_each_number_has_its_sign_and_its_place(data, contents):
    """Of runs from the first, from the last; of variants the loss and the step from one to the next; of layers what is
    in range and the way that they go: by hand."""
    vectors = contents.vectors
    L = {
        name: np.maximum(row, vectors.texts.clip)
        for name, row in zip(vectors.names, vectors.log_likelihood, strict=True)
    }
    scale = 2 * BYTES * math.log(2)
    run = [row for row in rows_of(data, "checkpoints") if row["run"] == "runs/seed1"]
    names = [f"runs/seed1@step{step}" for step in STEPS]
    for key, other in (("kl_from_first", names[0]), ("kl_from_last", names[-1])):
        wanted = [np.var(L[name] - L[other]) / scale for name in names]
        for row, value, name in zip(run, wanted, names, strict=True):
            assert row[key] == "" if name == other else float(row[key]) == pytest.approx(value, rel=1e-9)

    ladder = rows_of(data, "quantization")
    assert (ladder[0]["base"], ladder[0]["more_than_previous"]) == (names[-1], "")
    raw = dict(zip(vectors.names, vectors.log_likelihood, strict=True))
    kls = [np.var(L[row["variant"]] - L[names[-1]]) / scale for row in ladder]
    for row, kl, before in zip(ladder[1:], kls[1:], kls, strict=False):
        assert float(row["more_than_previous"]) == pytest.approx(kl - before, rel=1e-9)
        assert float(row["more_than_previous"]) > 0
    for row in ladder:
        worse = (raw[names[-1]] - raw[row["variant"]]).mean() / (BYTES * math.log(2))
        assert float(row["bits_per_byte_difference"]) == pytest.approx(worse, rel=1e-9)

    layered = rows_of(data, "layers")
    rows = contents.layers.log_likelihood[[contents.layers.position(f"{names[-1]}#{n}") for n in range(4)]]
    near = -rows.mean(axis=1) / (BYTES * math.log(2)) <= 2

    def in_range(a, b):
        clipped = np.maximum(rows[[a, b]], vectors.texts.clip)
        unclipped = (rows[[a, b]] < vectors.texts.clip).mean(axis=1).max() > 0.05
        x, y = rows[[a, b]] if unclipped else clipped
        return bool(np.var(x - y) / 2 <= 100 and near[a] and near[b])

    shown = [row["kl_from_previous_in_range"] for row in layered]
    assert shown == ["", *(str(in_range(n - 1, n)).lower() for n in (1, 2, 3))]
    assert {"true", "false"} <= {*shown}
    assert [row["kl_to_output_in_range"] for row in layered[:3]] == [str(in_range(n, 3)).lower() for n in (0, 1, 2)]


# --------------------------------------------------------------------------------------------- stores of a few models


def small(location, L, names=None, clip=None, **metadata):
    """A store with these log-likelihoods (K, N) of models `s/m0`, `s/m1`, ...; metadata of the last one."""
    store, L = Store(str(location)), np.asarray(L, dtype=np.float64)
    texts = TextSet(name="made", id="0123456789ab", bytes=np.full(L.shape[1], BYTES), clip=clip)
    for k, row in enumerate(L):
        name, there = (names or [f"s/m{n}" for n in range(len(L))])[k], np.flatnonzero(~np.isnan(row))
        ref = ModelRef.parse(name)
        identity = f"files:{name}"
        known = {
            "ref": name, "key": vector_key(identity, ref, CONVENTION, "transformers"), "identity": identity,
            "convention": CONVENTION, "source": "transformers", "dtype": "float32", "date": f"2026-01-01T00:{k:02d}:00",
            "attributes": {},
        }  # fmt: skip
        more = metadata if k == len(L) - 1 else {}
        store.write(texts, Scores(there, row[there], np.full(len(there), 30)), {**known, **more})
    return store, texts


def rows(K, n=80, seed=0):
    return -70 + 4 * np.random.default_rng(seed).standard_normal((K, n))


def plain(contents):
    return json.loads(json.dumps(for_json(reports.gather(contents))))


def files_of(store):
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in Path(store.location).rglob("*")}


def test_the_kept_map_is_shown_by_name_with_what_was_added(tmp_path):
    """A map that was made of models in another order than the store's, and grew twice: every point is that of its
    model, to the bit, and off the map are those that were added. Nothing is written."""
    L = rows(8)
    store, texts = small(tmp_path / "store", L)
    vectors = store.vectors(texts)
    made_of = [f"s/m{k}" for k in (5, 2, 7, 0, 3, 6)]
    first = maps.kept_map(store, vectors.subset(made_of))
    maps.extend_map(store, vectors, ["s/m4"])
    whole = maps.extend_map(store, vectors, ["s/m1"])
    assert whole.models == (*made_of, "s/m4", "s/m1")
    before = files_of(store)
    data = plain(read_contents(store, texts))
    assert files_of(store) == before
    assert data["refs"] == [f"s/m{k}" for k in range(8)]
    assert data["map"]["added"] == [1, 4]
    for key, was, of_all in (
        ("pca", first.pca, whole.pca),
        ("tsne2", first.tsne, whole.tsne),
        ("tsne3", first.tsne3, whole.tsne3),
    ):
        points = data["map"][key]
        for k in range(8):
            assert points[k] == of_all[whole.models.index(f"s/m{k}")].tolist()
            assert f"s/m{k}" not in made_of or points[k] == was[made_of.index(f"s/m{k}")].tolist()
    assert data["map"]["off_map"].keys() == {"1", "4"}
    for k in (1, 4):
        kl = {name: np.var(L[k] - L[int(name[-1])]) / (2 * BYTES * math.log(2)) for name in made_of}
        assert whole.off_map[f"s/m{k}"].nearest == min(kl, key=kl.get)
        assert data["map"]["off_map"][str(k)] == whole.off_map[f"s/m{k}"].sentence

    assert data["brief"] == [f"m{k}" for k in range(8)]
    said = [row["text"] for row in data["summary"]]
    assert any(" bits/byte; next is m" in text for text in said)
    assert not [text for text in said if "s/m" in text or "bitbyte" in text], "names without what all begin with"


def test_a_report_writes_nothing_and_needs_no_writable_store(tmp_path, monkeypatch):
    def full(self, path, data):
        raise StorageError(f"{path} could not be written.", "Read-only file system.")

    store, texts = small(tmp_path / "store", rows(6))
    before = files_of(store)
    shown = plain(read_contents(store, texts))
    assert files_of(store) == before
    monkeypatch.setattr(Files, "write", full)
    again = plain(read_contents(store, texts))
    assert {**again, "date": ""} == {**shown, "date": ""}
    assert "map" in shown["sections"]


@pytest.mark.parametrize("common", [0, 1, 2])
def test_too_few_texts_in_common_are_no_map_and_that_is_said(tmp_path, common):
    """Each of three models shares texts with each other, and all three none, one or two."""
    L = rows(3, 60)
    for k in range(3):
        L[k, 20 * k : 20 * (k + 1) - (common if k == 0 else 0)] = np.nan
    store, texts = small(tmp_path / "store", L)
    data = plain(read_contents(store, texts))
    why = f"3 models have {common} of 60 texts in common. s/m{min(common, 1)} has the fewest, 40."
    told = [row["text"] for row in data["summary"] if row["section"] == "method"]
    if common == 2:
        assert "map" in data["sections"]
        assert "no map" not in method(data)
        return
    assert "map" not in data["sections"]
    assert data["map"] is None
    assert method(data)["no map"] == why
    assert f"No map: {why}" in told
    value = unpacked(data["pairs"]["value"], 3)
    for at, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
        d = (L[a] - L[b])[~np.isnan(L[a] - L[b])]
        assert value[at] == pytest.approx(d.var() / (2 * BYTES * math.log(2)), rel=1e-6)
    assert "No map" in pages.render(data)


def test_what_a_reader_must_know_of_the_vectors_is_in_the_method(tmp_path):
    """How many models the clip would change too much, what could not be read, whose tokenizer changes texts."""
    L = rows(4, 100)
    L[:, :] = np.clip(L, -79, -60)
    L[1, :6] = L[3, :40] = -90.0
    L[2, :5] = -90.0  # 5 %, which is not more
    names = ["s/m0", "s/m1", "s/m2", "s/odd"]
    store, texts = small(tmp_path / "store", L, names, clip=-80.0, not_round_trip=0.0011)
    rows_of = method(plain(read_contents(store, texts)))
    told = "-80 nats; pairs are left unclipped where it would move more than 5 % of a vector"
    assert rows_of["clip"] == f"{told}, as it would for 2 of 4 models"
    assert rows_of["tokenizers that change more than 0.1 % of the texts"] == "s/odd"
    assert "files that cannot be read" not in rows_of
    store, texts = small(tmp_path / "other", L[[0, 2, 2]], clip=-80.0, not_round_trip=0.001)
    Path(store.entries(texts.id)[1].path).write_bytes(b"PAR1")
    data = plain(read_contents(store, texts))
    assert data["title"].startswith("2 models")
    rows_of = method(data)
    assert rows_of["clip"] == told
    assert "tokenizers that change more than 0.1 % of the texts" not in rows_of
    assert rows_of["files that cannot be read"] == "1, left out; klscale check names them"
    assert "Files that cannot be read: 1, left out; klscale check names them" in [
        row["text"] for row in data["summary"]
    ]


@pytest.mark.parametrize("secret", ["user:pw", "user:p@w", "token"])
def test_secrets_of_an_address_are_not_on_the_page(tmp_path, secret):
    store, texts = small(f"memory://{secret}@host/{tmp_path.name}", rows(3))
    contents = read_contents(store, texts)
    data = plain(contents)
    assert f"store memory://host/{tmp_path.name}" in data["facts"]
    assert data["command"] == f"klscale compare --store memory://host/{tmp_path.name} --texts {texts.id}"
    page = pages.render(data)
    own = page.replace(get_plotlyjs(), "")
    assert f"{secret}@" not in own
    assert "@host" not in own
    assert "user:p" not in own


def test_names_lose_only_what_all_begin_with(tmp_path):
    store, texts = small(tmp_path / "store", rows(3), ["s/m0", "s/bits/byte", "s/bits/s/m2"])
    contents = read_contents(store, texts)
    assert [contents.shown(name) for name in contents.vectors.names] == ["m0", "bits/byte", "bits/s/m2"]
    assert contents.shown("s/run") == "run"


def test_of_more_models_than_a_browser_opens_a_sample_is_shown_and_all_are_found(fourteen, monkeypatch):
    """Runs are drawn whole; the nearest of the sample to each other model is that of the matrix of all."""
    store = Store(fourteen)
    texts = store.resolve_texts(None)
    every = store.vectors(texts).kl()
    monkeypatch.setattr("klscale.show.contents.MOST_MODELS", 13)
    monkeypatch.setattr("klscale.show.contents.SAMPLE", 6)
    monkeypatch.setattr("klscale.show.contents.AT_ONCE", 3)
    contents = read_contents(store, texts)
    shown, others = contents.vectors.names, contents.others
    assert sorted((*shown, *others.names)) == sorted(every.labels)
    assert (len(shown), len(others.names)) == (6, 8)
    for name, near, value, error in zip(others.names, others.nearest, others.kl, others.standard_error, strict=True):
        kl = min((every[name, other] for other in shown), key=lambda kl: kl.value)
        assert shown[near] in {other for other in shown if every[name, other].value == kl.value}
        assert (value, error) == pytest.approx((kl.value, kl.standard_error), rel=1e-9)
    data = plain(contents)
    assert data["title"] == "6 of 14 models on pile-trained-14"
    assert any("6 of 14 models" in row["text"] for row in data["summary"])
    assert data["others"]["names"] == [*others.names]
    monkeypatch.setattr("klscale.show.contents.MOST_MODELS", 14)
    assert read_contents(store, texts).others is None


def test_a_page_of_a_map_of_many_models_is_of_a_sample_with_those_that_were_added(fourteen, monkeypatch):
    store = Store(fourteen)
    vectors = store.vectors(store.resolve_texts(None))
    of_ten = maps.model_map(vectors.subset(vectors.names[:10]))
    found = maps.place(of_ten, vectors.subset(vectors.names[:10]), vectors.subset(vectors.names[10:]))
    monkeypatch.setattr("klscale.show.contents.MOST_MODELS", 13)
    monkeypatch.setattr("klscale.show.contents.SAMPLE", 3)
    contents = contents_of_map(store, vectors, found)
    shown, others = contents.vectors.names, contents.others.names
    assert len(shown) < 14
    assert {*shown} >= {*vectors.names[10:]}
    assert sorted((*shown, *others)) == sorted(vectors.names)
    data = json.loads(json.dumps(for_json(reports.gather(contents, reports.MAP))))
    places = dict(zip(found.models, found.pca.tolist(), strict=True))
    assert dict(zip(data["refs"], data["map"]["pca"], strict=True)) == {name: places[name] for name in shown}
    assert {data["refs"][int(place)] for place in data["map"]["off_map"]} == {*vectors.names[10:]}
    assert {data["refs"][place] for place in data["map"]["added"]} == {*vectors.names[10:]}
    assert any(f"{len(shown)} of 14 models" in row["text"] for row in data["summary"])


def test_a_sample_holds_whole_runs(tmp_path, monkeypatch):
    names = [f"run{run}@step{step}" for run in range(6) for step in (10, 20, 30)] + ["a", "a+int8"]
    store, _ = small(tmp_path / "store", rows(len(names)), names)
    newest = {str(entry.ref): entry for entry in store.entries(store.text_sets()[0]["id"])}
    monkeypatch.setattr("klscale.show.contents.SAMPLE", 8)
    shown, rest = _sample(newest)
    assert {*shown} | {str(entry.ref) for entry in rest} == {*names}
    runs = Counter(name.split("@")[0].split("+")[0] for name in shown)
    assert runs == {run: 2 if run == "a" else 3 for run in runs}
    assert 6 <= len(shown) <= 8


def test_the_commands_of_the_page_do_what_they_say(run, tmp_path):
    """With a store whose name a shell would split, and two text sets in it."""
    store, texts = small(tmp_path / "my store; ls", rows(3))
    other = replace(texts, id="ba9876543210", name="other")
    entry = store.entries(texts.id)[0]
    store.write(other, store.scores(entry), dict(entry.metadata))
    data = plain(read_contents(store, texts))
    assert shlex.split(data["command"]) == ["klscale", "compare", "--store", store.location, "--texts", texts.id]
    commands = [shlex.split(html.unescape(text)) for text in re.findall(r"<code>(.*?)</code>", data["parts"]["method"])]
    assert [command[:2] for command in commands] == [["klscale", name] for name in ("kl", "scale", "map", "report")]
    for command in commands:
        run(*command[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kl.csv", "map.csv", "my store; ls", "report.html"]
    assert len((tmp_path / "kl.csv").read_text().splitlines()) == 4


def test_sections_that_hold_nothing_are_left_out(tmp_path):
    from conftest import EXAMPLE
    from klscale.vectors.imports import read_log_likelihoods

    store = Store(tmp_path / "store")
    store.import_vectors(read_log_likelihoods(EXAMPLE, id_column="text_id"), "example")
    data = reports.gather(read_contents(store, store.resolve_texts(None)))
    assert data["sections"] == ["summary", "scale", "map", "pairs", "models", "method"]
    assert {row["section"] for row in data["summary"]} <= {*data["sections"]}


@pytest.mark.slow
def test_the_same_store_gives_the_same_data(contents, data):
    again = json.loads(json.dumps(for_json(reports.gather(contents))))
    assert {**again, "date": ""} == {**data, "date": ""}


def test_one_model_is_no_report(tmp_path, contents):
    store = Store(tmp_path / "store")
    entry = contents.entries[0]
    store.write(contents.texts, contents.store.scores(entry), entry.metadata)
    with pytest.raises(InputError, match="holds 1 model"):
        read_contents(store, contents.texts)


# --------------------------------------------------------------------------------------------------------- the file


def test_the_page_asks_for_nothing_and_runs_only_its_own_scripts(page):
    """No address but the sources' links; every script is in the policy by its hash, and nothing else is."""
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', page)[1]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    hashed = directives.pop("script-src").split()
    assert all(source.startswith("'sha256-") for source in hashed)
    assert directives == {
        "default-src": "'none'", "base-uri": "'none'", "form-action": "'none'",
        "style-src": "'unsafe-inline'", "img-src": "data: blob:",
    }  # fmt: skip
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert hashes == set(re.findall(r"'sha256-([^']+)'", policy))
    assert "unsafe-eval" not in policy
    seen = Elements(page)
    assert {*seen.tags}.isdisjoint({"img", "iframe", "object", "embed", "base", "form"})
    assert not [key for key, _ in seen.attributes if key == "src" or key.startswith("on")]
    assert all(
        value.startswith(("#", "data:,", "https://arxiv.org/")) for key, value in seen.attributes if "href" in key
    )
    styles = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"@import|url\((?!data:|#)", styles)


class Elements(HTMLParser):
    """The elements of a page, and all their attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]


def test_names_cannot_leave_the_data(page):
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in data
    assert HOSTILE in json.loads(data)["names"]
    assert HOSTILE not in page
    assert "<b>mixed</b>" not in page


def test_the_page_is_written_whole_or_not_at_all(tmp_path, data, monkeypatch):
    file = tmp_path / "deep" / "report.html"
    size = pages.write(data, file)
    assert file.stat().st_size == size
    before = file.read_bytes()
    monkeypatch.setattr(pages, "render", lambda data: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pages.write(data, file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]


@pytest.mark.slow
def test_report_command(run, tmp_path):
    write_texts(tmp_path / "mine.jsonl")
    run("score", "mock://1", "mock://2", "mock://3", "--texts", "mine.jsonl", "--store", "store")
    result = run("report", "--store", "store", "--out", "page.html")
    assert "page.html" in result.output
    assert (tmp_path / "page.html").as_uri() in result.output.replace("\n", "")
    record = json.loads(run("report", "--store", "store", "--out", "page.html", "--json").stdout)
    assert record["bytes"] == (tmp_path / "page.html").stat().st_size
    assert "unknown ending '.pdf'" in run("report", "--store", "store", "--out", "page.pdf", status=2).output
    assert "is empty" in run("report", "--store", "nowhere", status=2).output


# ------------------------------------------------------------------------------------------------------ the scripts


def test_the_scripts_are_few():
    """At most 2,000 lines; every module of the folder is in the page."""
    folder = Path(pages.__file__).parent / "page"
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.js")}
    assert {*scripts} == {*pages.SCRIPTS}
    assert sum(len(text.splitlines()) for text in scripts.values()) <= 2000
    assert not [name for name, text in scripts.items() if "BigInt" in text or "innerHTML" in text or "eval(" in text]


def test_modules_become_one_script_in_which_each_sees_what_it_imports():
    modules = {
        "one": "export const a = 1;\nconst hidden = 2;\nexport function twice(x) {\n  return 2 * x;\n}\n",
        "two": 'import { a, twice } from "./one.js";\n\nconst hidden = twice(a);\n',
    }
    made = pages._bundle(modules)
    assert "import" not in made
    assert "export" not in made
    assert "const { a, twice } = modules.one;" in made
    assert "return { a, twice };" in made


@pytest.mark.parametrize("word", ["plain/name@step1", "it's", "two words", "-dash", "a\nb\u202ec", "$x `y` \\"])
def test_a_name_is_one_word_of_a_command(word):
    shown = reports._word(word)
    assert shown.isprintable()
    result = subprocess.run(
        ["bash", "-c", f"printf %s {shown}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert result.stdout.decode() == word
