"""`klscale validate` as it is used: every option, wrong arguments, what fails, what is interrupted."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from conftest import write_texts
from klscale.show import terminal
from klscale.studies import calibration

MARKUP = "[bold]m0"


def plain_words(result):
    return " ".join(result.output.split())


@pytest.fixture
def imported(run, tmp_path):
    """Import a table of log-likelihoods (K, N) into a store of that name."""

    def make(store, L, name="set", **columns):
        values = {f"m{k}" if k else MARKUP: row for k, row in enumerate(L)}
        pd.DataFrame({**columns, **values}).to_csv(tmp_path / f"{name}.csv", index=False)
        run("import", f"{name}.csv", "--store", store)

    return make


def log_likelihoods(K=4, N=120, seed=0, spread=3.0):
    generator = np.random.default_rng(seed)
    return -np.abs(generator.uniform(120, 240, N) + generator.normal(0, spread, (K, N)) * np.arange(1, K + 1)[:, None])


@pytest.fixture
def models(make_model, tmp_path):
    """Two models and twelve texts, whose store is at `s`."""
    write_texts(tmp_path / "t.jsonl", 12)
    return [make_model(f"m{seed}", seed=seed, num_hidden_layers=1) for seed in range(2)]


HOW = ("--texts", "t.jsonl", "--store", "s", "--sample", 8)


def test_the_answer_comes_first_and_fits_a_screen(run, imported):
    size, domain = np.arange(120) % 50 + 100, ["[red]a", "b"] * 60
    imported("s", log_likelihoods(), bytes=size, domain=domain)
    result = run("validate", "--store", "s")
    lines = result.output.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    record = json.loads(run("validate", "--store", "s", "--json").stdout)
    relative = [row["standard_error"] / row["kl"] for row in record["texts"]["pairs"]]
    summary = " ".join(line for line in lines[:14])
    assert f"A KL is known to {np.median(relative):.0%}" in summary
    assert f"worst pair {max(relative):.0%}" in summary
    assert "[red]a" in result.output
    assert sum(line.startswith("- ") for line in lines) == 5
    assert lines[0].startswith("set (")
    assert not any(line.startswith("set (") for line in lines[1:])


def test_a_pair_is_not_told_of_medians_over_pairs(run, imported):
    L = log_likelihoods(N=200)
    imported("s", L, bytes=np.full(200, 150))
    result = run("validate", "m1", "m2", "--store", "s")
    for words in ("over pairs", "worst pair", "median pair", "klscale texts clip"):
        assert words not in plain_words(result)
    d = L[1] - L[2]
    assert f"{d.var() / (2 * 150 * np.log(2)):.2g}" in result.output
    assert "KL of %5Bbold%5Dm0 and m1" in run("validate", MARKUP, "m1", "--store", "s").output
    record = json.loads(run("validate", "m1", "m2", "--store", "s", "--json").stdout)["tails"]
    assert record["estimates"]["headline"]["value"] == pytest.approx(d.var() / (2 * 150 * np.log(2)), rel=1e-9)
    squares = np.sort((d - d.mean()) ** 2)[::-1]
    assert record["share_of_ten_largest_texts"] == pytest.approx(squares[:10].sum() / squares.sum())


def test_models_that_differ_by_one_number_have_no_tails(run, imported):
    base = log_likelihoods(1)[0]
    imported("s", np.stack([base, base - 1.1]), bytes=np.arange(120) + 100)
    result = run("validate", "--store", "s")
    assert "their KL is 0" in plain_words(result)
    assert "e+" not in result.output
    assert "text length explains" not in result.output.lower()
    imported("three", np.stack([base] * 3), bytes=np.arange(120) + 100)
    said = plain_words(run("validate", "--store", "three"))
    assert "one length" not in said
    assert "every estimate is the reported value" in said


@pytest.mark.slow
def test_pictures_of_all_and_of_a_pair(run, imported, tmp_path):
    imported("s", log_likelihoods(), bytes=np.full(120, 150))
    for n, names in enumerate(((), ("m1", "m2"))):
        run("validate", *names, "--store", "s", "--out", f"new/{n}.svg")
        assert (tmp_path / "new" / f"{n}.svg").stat().st_size > 5000


@pytest.mark.slow
def test_two_text_sets_agree_as_far_as_they_do(run, imported, tmp_path):
    L = log_likelihoods(6, 160)
    imported("s", L[:, :80], "one", bytes=np.full(80, 150))
    imported("s", 2 * L[:, :80], "two", bytes=np.full(80, 150))
    both = ("validate", "--texts", "one", "--texts", "two", "--store", "s")
    record = json.loads(run(*both, "--json").stdout)
    assert record["ratio"] == pytest.approx(4)  # twice the differences on as many bytes
    assert record["spearman"]["value"] == pytest.approx(1)
    result = run(*both, "--out", "both.png")
    assert "not expected to be equal" in plain_words(result)
    assert (tmp_path / "both.png").exists()
    assert "given twice" in run("validate", "--texts", "one", "--texts", "one", "--store", "s", status=2).output
    three = ("--texts", "one", "--texts", "two", "--texts", "one")
    assert "one, or two" in run("validate", *three, "--store", "s", status=2).output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--exact", "--noise", "m1", "m2"), "One study at a time"),
        (("--exact", "--texts", "set", "--texts", "other", "m1", "m2"), "One study at a time"),
        (("--exact",), "--exact needs two models"),
        (("--exact", "m1", "m1"), "--exact needs two models"),
        (("--noise",), "--noise needs a model"),
        (("--noise", "m1", "--out", "a.png"), "makes no picture"),
        (("--out", "a.docx"), "unknown ending"),
        (("--texts", "nowhere"), "nowhere"),
        (("m1",), "KL needs two models"),
        (("--exact", "m1", "m2"), "only their log-likelihoods"),
        (("--exact", "m1", "m2", "--sample", "1"), "--sample"),
    ],
)
def test_wrong_arguments_are_explained(run, imported, arguments, said):
    imported("s", log_likelihoods(N=40), bytes=np.full(40, 150))
    assert said in plain_words(run("validate", *arguments, "--store", "s", status=2))


def test_stores_without_a_pair(run, imported):
    assert "is empty" in run("validate", "--store", "nothing", status=2).output
    imported("one", log_likelihoods(1), bytes=np.full(120, 150))
    assert "KL needs two" in run("validate", "--store", "one", status=2).output


def test_a_few_texts_are_said_to_be_too_few(run, imported):
    imported("s", log_likelihoods(N=5), bytes=np.arange(5) + 100)
    said = plain_words(run("validate", "--store", "s"))
    assert "5 texts are too few to tell how well a KL is known" in said
    assert "Too few texts to split" in said


@pytest.mark.slow
def test_exact_kl_is_interrupted_and_goes_on(run, models, monkeypatch):
    exact = ("validate", "--exact", *models, f"{models[1]}%bfloat16", *HOW)
    measure, measured = calibration._Bench._measure, []

    def stopped(self, a, b, pair):
        if measured:
            raise KeyboardInterrupt
        measured.append((a, b))
        return measure(self, a, b, pair)

    with monkeypatch.context() as context:
        context.setattr(calibration._Bench, "_measure", stopped)
        assert "goes on from there" in run(*exact, status=130).output
    again = []
    monkeypatch.setattr(calibration._Bench, "_measure", lambda *one: again.append(one) or measure(*one))
    result = run(*exact, "--out", "exact.png")
    assert len(again) == 2  # of three pairs
    assert "times exact KL on the texts" in plain_words(result)
    record = json.loads(run(*exact, "--json").stdout)
    assert len(again) == 2
    assert len(record["pairs"]) == 3
    assert record["pairs"][0]["n_texts"] == 8


def test_pairs_of_different_tokenizers_fail_and_the_others_are_told(run, models, make_model):
    other = make_model("other", bos=True, num_hidden_layers=1)
    result = run("validate", "--exact", models[0], other, *HOW, status=2)
    assert "tokenizer" in result.output
    result = run("validate", "--exact", *models, other, *HOW, status=1)
    assert "tokenizer" in result.output
    assert "KL(A‖B)" in result.output


def test_a_model_that_fails_does_not_hide_the_others(run, models):
    result = run("validate", *models, "missing/model-of-none", *HOW, status=1)
    assert "missing/model-of-none" in result.output
    assert "2 models, 1 pair" in result.output
    result = run("validate", "--noise", models[0], f"{models[1]}%float16", *HOW, status=1)
    assert "float32, other batches" in result.output
    assert "which is run in every dtype" in plain_words(result)
    record = json.loads(run("validate", "--noise", models[0], *HOW, "--json").stdout)
    assert [one["n_texts"] for one in record["models"]] == [8]


def test_sentences_are_wrapped_and_names_are_text(capsys):
    terminal.say(terminal.plain("[red]" + "word " * 60))
    said = capsys.readouterr().out
    assert said.startswith("[red]word")
    assert max(map(len, said.splitlines())) <= terminal.PROSE
