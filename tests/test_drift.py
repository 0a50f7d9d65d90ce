"""Two engines or days of one model: KL beside run-to-run noise, by depth, where they differ, and the gate."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from conftest import write_texts
from klscale.cli import app
from klscale.errors import InputError
from klscale.inputs.texts import load_texts
from klscale.show.drift import print_drift, verdict
from klscale.studies.drift import DEPTHS
from klscale.studies.verbs.drift import drift
from served import serve

A, B = "mock://1", "mock://1?shift=0.1&noise=0.01"


@pytest.fixture
def file(tmp_path):
    path = write_texts(tmp_path / "texts.jsonl", 120)
    lines = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({"text": " ".join(lines[n : n + 6])}) + "\n" for n in range(0, 120, 4)))
    return path


@pytest.fixture
def found(file, tmp_path):
    return drift(A, B, str(file), tmp_path / "store")


def test_kl_by_depth_is_kl_by_spans_in_parts(found):
    by_spans, it = found.vectors.span_kl(A, B), found.found
    total = sum(depth.n_spans for depth in it.depths)
    assert total == by_spans.n_spans
    changes, bytes_of = found.vectors.span_changes(A, B), []
    for depth in it.depths:
        inside = (changes.start >= depth.start) & (changes.start < (depth.stop or math.inf))
        bytes_of.append((changes.stop - changes.start)[inside].sum())
        assert depth.largest == np.abs(changes.change[inside]).max()
    mean = np.average([depth.kl.value for depth in it.depths], weights=bytes_of)
    assert mean == pytest.approx(by_spans.value, rel=1e-9)
    assert [depth.start for depth in it.depths] == list(DEPTHS[: len(it.depths)])


def test_kl_of_one_depth_by_a_loop(found):
    """k x tanh(x / 2) / (1 - sum b**2 / B**2) of the spans of the bucket, over ln 2 and their bytes."""
    changes, depth = found.vectors.span_changes(A, B), found.found.depths[1]
    V = size = 0.0
    for text in np.unique(changes.text):
        own = changes.text == text
        d, b = changes.change[own], (changes.stop - changes.start)[own]
        inside = (changes.start[own] >= 64) & (changes.start[own] < 256)
        D = d - b * d.sum() / b.sum()
        tokens = np.maximum(1, b / 3)
        x = D / np.sqrt(tokens)
        V += (tokens * x * np.tanh(x / 2))[inside].sum() / (1 - (b**2).sum() / b.sum() ** 2)
        size += b[inside].sum()
    assert depth.kl.value == pytest.approx(V / size / math.log(2), rel=1e-6)
    assert 0 < depth.kl.interval[0] < depth.kl.value < depth.kl.interval[1]


def test_noise_of_each_side_and_what_it_means(found):
    it = found.found
    assert it.noise_a == 0 < it.noise_b
    assert it.noise == it.noise_b / 2
    assert "do not compute the same" in verdict(it)
    assert it.spans[0].change == pytest.approx(max(found.vectors.span_changes(A, B).change, key=abs))


def test_whole_texts_have_their_marks_too(found, capsys):
    """A mock has more than 2 bits/byte: by whole texts it is out of range, by sampled tokens it is not."""
    print_drift(found)
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("whole texts")]
    assert "* " in line
    assert "\n* out of the range" in shown


def test_runs_of_one_model_are_no_drift(file, tmp_path):
    it = drift("mock://1?noise=0.01", "mock://1?noise=0.02", str(file), tmp_path / "store").found
    assert it.is_equal  # the noise is of repeat runs alone
    assert "the same to the last digit" in verdict(it)
    with pytest.raises(InputError, match="different references"):
        drift(A, A, str(file), tmp_path / "store")


@pytest.mark.slow
def test_a_server_that_changes_in_silence(file, tmp_path):
    """Scored under a label each day; on the third it has other weights."""
    run = CliRunner().invoke
    where = ["--texts", str(file), "--store", str(tmp_path / "store")]
    with serve() as served:
        days = [f"{served.url}?label={day}#model" for day in ("monday", "tuesday", "friday")]
        same = run(app, ["drift", days[0], days[1], "--fail-above", "0.001", *where])
        assert same.exit_code == 0, same.output
        assert "the same to the last digit" in same.output
        served.log_p[:] = type(served)(seed=8).log_p
        changed = run(app, ["drift", days[0], days[2], "--fail-above", "0.001", "--json", *where])
    assert changed.exit_code == 3, changed.output
    record = json.loads(changed.stdout)
    assert record["kl"] > 0.001
    assert record["noise_a"] == record["noise_b"] == 0
    texts = load_texts(file)
    for span in record["spans"]:
        data = texts.texts[span["text"]["position"]].encode()
        assert data[span["start"] : span["start"] + span["bytes"]].decode(errors="replace") == span["excerpt"]


def test_a_first_token_that_one_scores_is_left_out(file, tmp_path):
    """The same model, whose server does not score the first token: by spans they are equal."""
    with serve(shape="unscored") as served:
        it = drift("mock://7?tokens=pairs", served.ref, str(file), tmp_path / "store").found
    assert it.n_unlike == len(it.texts)
    assert it.kl.whole_texts.value > 1e-6  # all texts begin with one letter
    assert it.kl.value == pytest.approx(0, abs=1e-9)
    assert not it.depths or max(depth.kl.value for depth in it.depths) < 1e-9
