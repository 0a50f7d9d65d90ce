"""The command line as a user meets it: what it prints, what it exits with, what it leaves behind."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conftest import EXAMPLE, PATIENCE_S, ROOT, write_texts
from klscale.inputs.references import ModelRef
from klscale.science.estimates import format_estimate
from klscale.store import whole
from klscale.store.store import Store
from klscale.vectors import spreadsheets
from klscale.vectors.imports import read_log_likelihoods

# ------------------------------------------------------------------------------------------------------ first minutes


def test_help_loads_nothing_heavy():
    program = (
        "import sys\nfrom klscale.cli import main\nsys.argv = ['klscale', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.rstrip().endswith("[]")
    assert "compare" in output


def test_importing_the_package_loads_no_torch():
    program = "import sys, klscale; klscale.Store, klscale.ModelRef; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output == "False\n"


@pytest.mark.slow
def test_every_public_name_is_there():
    import klscale

    assert all(getattr(klscale, name) is not None for name in klscale.__all__)
    with pytest.raises(AttributeError):
        _ = klscale.nothing


def test_version(run):
    assert run("--version").output.startswith("klscale 0.")


# ---------------------------------------------------------------------------------------------------- imported matrix


@pytest.fixture
def imported(fourteen, tmp_path):
    return shutil.copytree(fourteen, tmp_path / "klscale-store")


def test_imported_matrix_end_to_end(run, imported):
    L = pd.read_csv(EXAMPLE)
    for record in json.loads(run("kl", "--json").output):
        d = L[record["a"]] - L[record["b"]]
        assert record["kl"] == pytest.approx(d.var(ddof=0) / (2 * L["bytes"].mean() * np.log(2)), rel=1e-9)
        assert record["n_documents"] == L.groupby(["document"]).ngroups
    a, b = "EleutherAI/pythia-1b", "EleutherAI/pythia-160m"
    (record,) = json.loads(run("compare", a, b, "--json").output)
    assert {"a", "b", "kl", "standard_error", "unit", "kl_unclipped", "clipped", "kl_nats_per_text", "n_texts",
            "kurtosis", "in_range", "setting"} <= set(record)  # fmt: skip
    assert (record["a"], record["b"], record["unit"], record["setting"]) == (a, b, "bits/byte", "size")
    assert record["bits_per_byte_difference"]["value"] == pytest.approx(
        (L[a] - L[b]).sum() / np.log(2) / L["bytes"].sum(), rel=1e-9
    )
    shown = run("compare", a, b).output
    assert f"{a} is better by" in shown
    assert "measured on these texts" in shown
    assert len(json.loads(run("ls", "--json").output)[0]["models"]) == 14
    assert "0 with a problem" in run("check").output


@pytest.mark.slow
def test_matrix_is_saved(run, imported, tmp_path, monkeypatch):
    monkeypatch.setattr("klscale.show.pairs.LARGE_FILE", 20_000)
    assert "Writing 91 pairs" in run("kl", "--out", "deep/kl.csv").stderr
    assert "Writing" not in run("kl", "--out", "kl.parquet").stderr
    frame = pd.read_csv(tmp_path / "deep" / "kl.csv")
    assert len(frame) == 91
    assert frame["kl"].between(frame["interval_low"], frame["interval_high"]).all()
    pd.testing.assert_frame_equal(frame, pd.read_parquet(tmp_path / "kl.parquet"))
    assert_same_pictures_again(run, tmp_path, "kl")
    assert "Did you mean" in run("kl", "--out", "kl.cvs", status=2).output


def assert_same_pictures_again(run, tmp_path, command):
    """Byte for byte. That every ending gives the same bytes of a figure is tested of the figures."""
    for name in (f"{command}.png", f"{command}.pdf", f"{command}.svg", "again.svg"):
        run(command, "--out", name)
    assert (tmp_path / f"{command}.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    assert (tmp_path / f"{command}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / f"{command}.pdf").read_bytes().startswith(b"%PDF")


def test_scale_is_measured_beside_the_published(run, imported):
    record = json.loads(run("scale", "--json").output)
    rows = {row["setting"]: row for row in record["measured"]}
    assert {setting: len(row["pairs"]) for setting, row in rows.items()} == {
        "size": 26, "architecture": 13, "same type": 20, "random": 20,
    }  # fmt: skip
    L = pd.read_csv(EXAMPLE)
    for row in rows.values():
        differences = [L[pair["a"]] - L[pair["b"]] for pair in row["pairs"]]
        values = [d.var(ddof=0) / (2 * L["bytes"].mean() * np.log(2)) for d in differences]
        assert [pair["kl"] for pair in row["pairs"]] == pytest.approx(values)
        assert row["median"] == pytest.approx(np.median(values))
        assert row["quartiles"] == pytest.approx(np.quantile(values, [0.25, 0.75]))
        assert row["interval_low"] < row["median"] < row["interval_high"]
    assert record["published_holds_here"] is False
    shown = run("scale").output
    assert "they are not comparable" in shown
    assert "0.48 P1v3" in shown
    assert "seed (another seed); fine-tuning (a parent or child); 8-bit (NAME+int8)" in shown
    known = json.loads(run("scale", "--published", "--json").output)
    assert (len(known["settings"]), len(known["pairs"])) == (10, 8)
    assert "0.069 ± 0.0011" in run("scale", "--published").output


@pytest.mark.slow
def test_scale_is_saved(run, imported, tmp_path):
    run("scale", "--out", "deep/scale.csv")
    run("scale", "--out", "scale.parquet")
    frame = pd.read_csv(tmp_path / "deep" / "scale.csv")
    assert list(frame) == ["setting", "a", "b", "kl", "standard_error", "in_range", "noise", "cautions"]
    assert dict(frame["setting"].value_counts()) == {"size": 26, "architecture": 13, "same type": 20, "random": 20}
    pd.testing.assert_frame_equal(frame, pd.read_parquet(tmp_path / "scale.parquet"))
    assert_same_pictures_again(run, tmp_path, "scale")
    assert "Did you mean" in run("scale", "--out", "scale.pgn", status=2).output


def test_reference_ladder_and_release_gate(run, imported):
    names = ["EleutherAI/pythia-2.8b", "EleutherAI/pythia-1.4b", "EleutherAI/pythia-410m"]
    shown = run("compare", *names[1:], "--reference", names[0]).output
    assert "From EleutherAI/pythia-2.8b" in shown
    assert len(json.loads(run("compare", *names[1:], "--reference", names[0], "--json").output)) == 2
    run("compare", *names[:2], "--fail-above", "0.2")
    assert "Not within 0.05 bits/byte" in run("compare", *names[:2], "--fail-above", "0.05", status=3).output


def test_a_gate_that_fails_is_not_hidden_by_a_model_that_cannot_be_scored(run, imported):
    names = ["EleutherAI/pythia-2.8b", "EleutherAI/pythia-1.4b", "./not-there"]
    assert "Not within 0.05" in run("compare", *names, "--fail-above", "0.05", status=3).output
    run("compare", *names, "--fail-above", "0.2", status=1)
    run("compare", *names, "--fail-above", "0.12", "--confidence", "95%", status=1)


@pytest.mark.parametrize(("limit", "status"), [(2.0, 0), (0.5, 3), (1.02, 4), (0.98, 4)])
def test_a_gate_with_confidence_decides_by_the_interval(run, imported, limit, status):
    """Of the true value in units of the KL; undecided, the texts that it names would decide."""
    names = ["EleutherAI/pythia-2.8b", "EleutherAI/pythia-1.4b"]
    (found,) = json.loads(run("compare", *names, "--json").output)
    arguments = ["compare", *names, "--fail-above", str(limit * found["kl"]), "--confidence", "95%"]
    output = run(*arguments, status=status).output
    low, high = found["interval_low"], found["interval_high"]
    assert f"{low:.3g} to {high:.3g} at 95 %" in output
    if status == 4:
        texts = int(re.search(r"About ([\d,]+) texts", output)[1].replace(",", ""))
        half = math.log(high / found["kl"]) * math.sqrt(found["n_texts"] / texts)
        assert half == pytest.approx(abs(math.log(limit)), rel=1e-3)
    assert "goes with --fail-above" in run("compare", *names, "--confidence", "95%", status=2).output
    assert "between 50 and 100 %" in run(*arguments[:-1], "5%", status=2).output


def test_a_gate_never_passes_what_cannot_be_told(run, make_model, tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "a" * 30}) + "\n" + json.dumps({"text": "b" * 60}) + "\n")
    one, two = make_model("one"), make_model("two", seed=1, max_position_embeddings=40)
    arguments = ["compare", one, two, "--texts", "t.jsonl", "--long-texts", "skip"]
    output = run(*arguments, "--fail-above", "1000", status=1).output
    assert "cannot be told" in output
    assert "n/a" in output
    (record,) = json.loads(run(*arguments, "--json").output)
    assert (record["kl"], record["interval_low"], record["interval_high"]) == (None, None, None)


def test_a_gate_never_passes_few_texts(run, tmp_path):
    """One has no KL, and two have no standard error of it."""
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "a text of its own"}) + "\n")
    gate = ("--fail-above", "1000", "--confidence", "95%")
    alone = ("compare", "mock://1", "mock://2", "--texts", "one.jsonl", "--store", "one")
    assert "no KL on these texts" in run(*alone, *gate, status=1).output
    run(*alone, *gate[:2], status=1)
    (tmp_path / "m.csv").write_text("bytes,a,b\n10,-5,-5.5\n12,-8,-8.1\n")
    run("import", "m.csv")
    output = run("compare", "a", "b", *gate, status=1).output
    assert "no KL on these texts, or none with a standard error" in output


def test_a_reference_that_fails_is_not_replaced(run, make_model, tmp_path):
    texts = write_texts(tmp_path / "mine.jsonl")
    models = [make_model(f"m{seed}", seed=seed) for seed in (1, 2)]
    result = run("compare", "--reference", "./none", *models, "--texts", texts, "--json", status=1)
    assert result.stdout == ""
    assert "is not a directory" in result.stderr


def test_conventions_are_kept_apart(run, imported, make_model, tmp_path):
    """A model scored on texts that others were imported for is left out, by name."""
    texts = write_texts(tmp_path / "mine.jsonl")
    model = make_model()
    run("score", model, "--texts", texts)
    rows = "bytes,x/one,x/two\n" + "\n".join(
        f"{n},{-n}.5,{-n}.25"
        for n in Store("klscale-store").texts(json.loads(run("texts", "info", texts, "--json").output)["id"]).bytes
    )
    (tmp_path / "more.csv").write_text(rows)
    run("import", "more.csv", "--texts", "mine")
    result = run("kl", "--texts", "mine", "--json")
    assert [(r["a"], r["b"]) for r in json.loads(result.stdout)] == [("x/one", "x/two")]
    assert "scored by another convention" in result.stderr


def test_layers_have_no_vote_on_the_convention(run, make_model, tmp_path):
    """Two whole models of one convention outvote one of another, however many layers that has."""
    texts = write_texts(tmp_path / "mine.jsonl")
    for seed in (1, 2):
        run("score", make_model(f"m{seed}", seed=seed), "--texts", texts)
    run("score", make_model("cut", max_position_embeddings=40), "--texts", texts, "--long-texts", "window", "--layers")
    shown = run("scale", "--json")
    assert "Left out, scored by another convention: " in shown.stderr
    rows = {row["setting"]: row for row in json.loads(shown.stdout)["measured"]}
    assert rows.keys() == {"same type", "random"}
    assert rows["random"]["n_models"] == 2


def test_a_ladder_adds_up_under_a_clip(run, tmp_path):
    """One variant has so much below the clip that its pair is not clipped: then no step of the ladder is, and the
    steps are the differences of what stands in its rows."""
    generator = np.random.default_rng(0)
    base = -200 + 40 * generator.normal(size=400)
    near = base + 2 * generator.normal(size=400)
    far = base + 6 * generator.normal(size=400) - np.where(np.arange(400) < 40, 500.0, 0.0)
    frame = pd.DataFrame({"bytes": 300, "m": base, "m+int8": near, "m+fp4": far})
    frame.to_csv(tmp_path / "l.csv", index=False)
    run("import", "l.csv")
    run("texts", "clip", "--value", "-400")
    output = run("compare", "m", "m+int8", "m+fp4").output
    assert "Not clipped here: the clip would move more than 5 % of a vector." in output
    ladder = output[output.index("From m") :]
    rows = dict(re.findall(r"^(m\+\w+) +([\d.]+) ±", ladder, re.MULTILINE))
    step = float(re.search(r"m\+fp4 +[\d.]+ ± [\d.]+ [*u!td~]* +(-?[\d.]+) ±", ladder)[1])
    assert step == pytest.approx(float(rows["m+fp4"]) - float(rows["m+int8"]), abs=0.02 * step)
    (record, *_) = json.loads(run("compare", "m", "m+int8", "m+fp4", "--json").output)
    (other,) = record["beside"]
    assert (other["model"], other["uses_clip"]) == ("m+fp4", False)
    assert other["kl_difference"]["value"] == pytest.approx(step, rel=0.02)


def test_many_failures_keep_their_names(run, make_model, tmp_path):
    texts = write_texts(tmp_path / "mine.jsonl")
    result = run("score", make_model(), *(f"./none{n}" for n in range(6)), "--texts", texts, status=1)
    assert result.stderr.count("is not a directory") == 3
    assert "likewise 3 more: ./none3, ./none4, ./none5" in result.stderr


def test_a_scale_of_nothing_is_refused(run, make_model, tmp_path):
    texts = write_texts(tmp_path / "mine.jsonl")
    model = make_model()
    run("score", model, f"{model}%bfloat16", "--texts", texts)
    for file in ("s.csv", "s.png"):
        assert "No setting can be measured" in run("scale", "--out", file, status=2).stderr
        assert not (tmp_path / file).exists()


def test_one_document_is_said(run, make_model, tmp_path):
    (tmp_path / "book.txt").write_text("Once upon a time there was a book. " * 300)
    run("texts", "build", "book.txt", "--out", "set.jsonl")
    run("texts", "build", "book.txt", "--out", "set.txt", status=2)
    run("texts", "build", "set.jsonl", "--out", "set.jsonl", status=2)
    one, two = (make_model(f"m{seed}", seed=seed, max_position_embeddings=1024) for seed in (1, 2))
    for command in (("compare", one, two), ("layers", one), ("scale",), ("kl",)):
        assert "all texts are of one document" in run(*command, "--texts", "set.jsonl").output


def test_a_file_in_place_of_a_directory_of_the_store_is_said(run, tmp_path):
    """Not an empty store, and not a whole one."""
    write_texts(tmp_path / "t.jsonl")
    run("score", "mock://1", "--texts", "t.jsonl", "--store", "s")
    shutil.rmtree(tmp_path / "s" / "vectors")
    (tmp_path / "s" / "vectors").write_text("")
    for command in ("ls", "check"):
        assert "vectors is a file" in run(command, "--store", "s", status=1).stderr.replace("\n", "")


def test_ls_shows_the_models_that_a_pattern_names(run, imported):
    names = set(pd.read_csv(EXAMPLE).filter(like="/"))

    def shown(*patterns):
        (head,) = json.loads(run("ls", *patterns, "--json").stdout)
        return {model["ref"] for model in head["models"]}

    assert shown() == names
    assert shown("rwkv", "mamba") == {name for name in names if "rwkv" in name or "mamba" in name}
    assert shown("pythia*0m") == {name for name in names if name.endswith("0m") and "pythia" in name}
    assert "nothing-like-this" in run("ls", "nothing-like-this", status=2).output


@pytest.mark.slow
def test_ls_and_map_know_free_attributes(run, tmp_path):
    """Shown, filtered and coloured by: words and numbers."""
    rows = np.random.default_rng(0).normal(-300, 20, size=(4, 60))
    pd.DataFrame(dict(zip("abcd", rows, strict=True))).assign(bytes=100).to_csv("four.csv", index=False)
    (tmp_path / "more.csv").write_text("model,lr,data\na,0.001,web\nb,0.0003,web\nc,0.0003,books\nd,,books\n")
    run("import", "four.csv", "--attributes", "more.csv")

    def shown(*conditions):
        words = [word for condition in conditions for word in ("--where", condition)]
        return "".join(model["ref"] for model in json.loads(run("ls", *words, "--json").stdout)[0]["models"])

    assert (shown("lr=3e-4"), shown("data=b*"), shown("data=web", "lr=0.0003")) == ("bc", "cd", "b")
    printed = run("ls", "--wide").stdout
    assert all(word in printed for word in ("lr", "0.0003", "data", "books"))
    assert "Did you mean 'data'" in run("ls", "--where", "dat=web", status=2).stderr
    assert "holds no model with data=wbe" in run("ls", "--where", "data=wbe", status=2).stderr
    assert "NAME=VALUE" in run("ls", "--where", "web", status=2).stderr
    run("map", "--out", "map.csv")
    assert pd.read_csv("map.csv").set_index("model")["lr"].dropna().to_dict() == {"a": 0.001, "b": 0.0003, "c": 0.0003}
    for name in ("lr", "data"):
        run("map", "--method", "pca", "--colour", name, "--out", f"{name}.png")
    run("report", "--out", "report.html")
    data = json.loads(re.search(r'id="data">(.*?)</script>', Path("report.html").read_text(), re.DOTALL)[1])
    kinds = {column["key"]: column["kind"] for column in data["models"]["columns"]}
    assert (kinds["lr"], kinds["data"]) == ("number", "category")


def test_markdown_and_latex_hold_what_is_printed(run, tmp_path):
    """Every column and row, with names that both would read as something else."""
    names = ["a_b|c", "50%", "x&y#1", "plain"]
    rows = np.random.default_rng(0).normal(-300, 20, size=(4, 60))
    pd.DataFrame(dict(zip(names, rows, strict=True))).assign(bytes=100).to_csv("odd.csv", index=False)
    run("import", "odd.csv")
    found = json.loads(run("kl", "--json").stdout)
    run("kl", "--out", "kl.md")
    lines = Path("kl.md").read_text().splitlines()
    cells = [line[2:-2].split(" | ") for line in lines if line.startswith("| ")]
    assert cells[0][:3] == ["model", "model", "KL ± SE, bits/byte"]
    printed = {frozenset(re.sub(r"\\(.)", r"\1", cell) for cell in row[:2]) for row in cells[1:]}
    assert printed == {frozenset((row["a"], row["b"])) for row in found}
    assert any(line.startswith("\\* out of the range") for line in lines)
    for command in (("kl",), ("compare", "plain", found[0]["a"], found[0]["b"]), ("ls",)):
        run(*command, "--out", "table.tex")
        tex = Path("table.tex").read_text()
        assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") > 0
        table = tex[tex.index(r"\midrule") : tex.index(r"\bottomrule")]
        assert all(line.endswith(r"\\") for line in table.splitlines()[1:-1])
        assert not re.search(r"(?<!\\)[%#_]", table)
    assert "'.md'" in run("scale", "--out", "scale.mt", status=2).stderr


def test_models_are_removed(run, imported):
    run("rm", "EleutherAI/pythia-1b", "EleutherAI/pythia-1b")
    assert len(json.loads(run("ls", "--json").output)[0]["models"]) == 13
    assert "Did you mean" in run("rm", "EleutherAI/pythia-1bb", status=2).output
    # Stopped after one of two, the same command takes out the other, and says what is not there.
    ended = run("rm", "EleutherAI/pythia-1b", "EleutherAI/pythia-410m", status=2)
    assert "holds no 'EleutherAI/pythia-1b'." in ended.stderr
    assert len(json.loads(run("ls", "--json").output)[0]["models"]) == 12


def test_clip_is_frozen(run, imported):
    run("texts", "clip")
    L = pd.read_csv(EXAMPLE).filter(like="/")
    (head,) = json.loads(run("texts", "list", "--json").output)["store"]
    assert head["clip"] == pytest.approx(np.quantile(L.to_numpy(), 0.02))
    near, poor, _ = json.loads(
        run("compare", "EleutherAI/pythia-1b", "EleutherAI/pythia-410m", "EleutherAI/pythia-160m", "--json").output
    )
    assert near["uses_clip"]
    assert near["kl"] < near["kl_unclipped"]
    assert poor["clipped"] > 0.05
    assert poor["kl"] == poor["kl_unclipped"]
    assert "the clip would move" in poor["warnings"][0]
    run("texts", "clip", "--value", "5", status=2)


def test_names_are_shown_as_text(run, tmp_path):
    L = pd.read_csv(EXAMPLE).filter(like="/").iloc[:, :2]
    L.columns = ["<img src=x onerror=alert(1)>", "[red]o/m[/red]"]
    L.assign(bytes=280).to_csv(tmp_path / "odd.csv", index=False)
    run("import", "odd.csv")
    shown = run("kl", "--wide").output + run("ls", "--wide").output
    assert "[red]o/m[/red]" in shown or "%5Bred%5Do/m%5B/red%5D" in shown
    assert "onerror" in shown


def test_tables_of_identical_models_hold_no_nan(run, tmp_path):
    """They have no spread: nothing is printed where nothing is known."""
    lines = [f"40,{-30 - n},{-30 - n},{-30 - n}" for n in range(24)]
    (tmp_path / "same.csv").write_text("\n".join(["bytes,a,b,c@step1", *lines]))
    run("import", "same.csv")
    for command in ("kl", "scale", "compare a b", "map", "validate", "texts info same"):
        assert "nan" not in run(*command.split()).output.replace("nance", "").lower(), command


ORDERS = "\x1b[31mred\x1b]0;title\x07\x9b2J\r\u202e"
"""What a terminal obeys."""


@pytest.mark.parametrize(
    "command",
    ["ls", "check", "kl", "scale", "map", "compare {a} {b}", "validate", "texts list", "texts info", "rm nothing",
     "import mine.csv --id nope", "import mine.csv --attributes types.csv", "score --suite suite.yaml", "score {a}"],
)  # fmt: skip
def test_nothing_that_is_printed_gives_orders_to_the_terminal(run, tmp_path, monkeypatch, command):
    """Whoever names models, columns, text sets, types and ids writes letters on the screen, and nothing else."""
    L = pd.read_csv(EXAMPLE).filter(like="/").iloc[:40, :3]
    names = [f"{ORDERS}{n}" for n in range(3)]
    L.columns = names
    L.assign(bytes=280, id=[f"{ORDERS}{n}" for n in range(40)]).to_csv(tmp_path / "mine.csv", index=False, quoting=1)
    types = pd.DataFrame({"model": names, "type": [ORDERS] * 3, "family": [ORDERS] * 3})
    types.to_csv(tmp_path / "types.csv", index=False, quoting=1)
    (tmp_path / "suite.yaml").write_text(json.dumps({"models": [{"name": f"x{ORDERS}", "nothing": ORDERS}]}))
    run("import", "mine.csv", "--id", "id", "--name", ORDERS, "--attributes", "types.csv")
    store = Store("klscale-store")
    (entry, *_), (texts,) = store.entries(store.text_sets()[0]["id"]), store.text_sets()
    assert entry.metadata["attributes"]["type"] == ORDERS
    assert texts["name"] == ORDERS
    result = run(*command.format(a=str(store.entries(texts["id"])[0].ref), b="nothing").split(), status=None)
    assert result.output
    assert set(result.output) & {"\x1b", "\x07", "\x9b", "\r", "\u202e"} == set()


@pytest.mark.parametrize("name", ["=1+1", "-x", "@SUM(1)", "'=1", "''-x", "'x", "x=1", "a\rb"])
def test_cells_that_a_spreadsheet_would_run_are_guarded_and_read_as_they_were(run, tmp_path, name):
    """In every table that is written; a file that was guarded is imported as what it was."""
    L = pd.read_csv(EXAMPLE).filter(like="/").iloc[:40, :2]
    L.columns = [spreadsheets.guarded(name), "plain"]
    labels = [f"{name}{n}" for n in range(40)]
    guarded = [*map(spreadsheets.guarded, labels)]
    L.assign(bytes=280, id=guarded, document=guarded).to_csv(tmp_path / "mine.csv", index=False, quoting=2)
    vectors = read_log_likelihoods(tmp_path / "mine.csv", id_column="id")
    assert [ref.name for ref in vectors.models] == [name, "plain"]
    assert vectors.texts.labels["id"] == vectors.texts.document == tuple(labels)
    run("import", "mine.csv", "--id", "id")
    run("kl", "--out", "kl.csv")
    written = pd.read_csv(tmp_path / "kl.csv")["a"][0]
    assert not written.startswith(("=", "+", "-", "@"))
    assert ModelRef.parse(spreadsheets.unguarded(written)).name == name


# ------------------------------------------------------------------------------------------------------------ scoring


def test_score_and_compare_real_models(run, make_model, tmp_path):
    texts = write_texts(tmp_path / "mine.jsonl")
    one, two = make_model("one"), make_model("two", seed=1)
    output = run("score", one, two, "--texts", texts, "--device", "cpu").output
    assert "scored" in output
    assert "in the store already" in run("score", one, two).output
    (record,) = json.loads(run("compare", one, f"{one}%bfloat16", "--json").stdout)
    (dtypes,) = record["warnings"]
    assert (record["estimator"], record["in_range"]) == ("sampled tokens", False), (
        "a random model is far from the texts"
    )
    assert dtypes == "different dtypes (float32, bfloat16): their rounding is part of the value"
    assert 0 < record["kl"] < 0.05
    assert "No pair yet" in run("scale").output
    run("rm", two)
    assert "klscale scale --published" in run("scale", status=2).output


def test_suite_files_are_scored(run, make_model, tmp_path):
    write_texts(tmp_path / "mine.jsonl")
    for seed in (1, 2):
        make_model(f"seed{seed}", seed=seed)
    suite = "texts: ./mine.jsonl\nmodels:\n  - {name: './seed{seed}', seed: [1, 2], family: f}\n  - name: ./none\n"
    (tmp_path / "suite.yaml").write_text(suite)
    assert "to be scored" in run("score", "--suite", "suite.yaml", "--dry-run", status=1).output
    records = json.loads(run("score", "--suite", "suite.yaml", "--json", status=1).stdout)
    assert [record["status"] for record in records] == ["scored", "scored", "failed"]
    rows = json.loads(run("scale", "--json").output)["measured"]
    assert {row["setting"]: len(row["pairs"]) for row in rows}["seed"] == 1


def test_layers_and_quantizations_are_on_the_scale(run, make_model, tmp_path):
    texts = write_texts(tmp_path / "mine.jsonl")
    model = make_model()
    run("score", model, f"{model}+nf4", "--layers", "--texts", texts)
    rows = {row["setting"]: row for row in json.loads(run("scale", "--json").output)["measured"]}
    assert [(row["a"], row["b"]) for row in rows["4-bit (nf4)"]["pairs"]] == [(str(model), f"{model}+nf4")]
    pairs = list(itertools.pairwise(f"{model}#{layer}" for layer in range(3)))
    assert sorted((row["a"], row["b"]) for row in rows["layer"]["pairs"]) == pairs, (
        "of the model itself, not of its quantized variant too"
    )
    assert (rows["layer"]["n_models"], rows["layer"]["interval_kind"]) == (1, "range")
    assert set(rows) == {"4-bit (nf4)", "layer"}
    (record,) = json.loads(run("compare", model, f"{model}+nf4", "--json").output)
    assert (record["setting"], record["placed"]) == ("4-bit (nf4)", None)


def test_a_suite_with_bad_entries_is_scored_all_the_same(run, make_model, tmp_path):
    write_texts(tmp_path / "mine.jsonl")
    for seed in (1, 2):
        make_model(f"seed{seed}", seed=seed)
    suite = "texts: ./mine.jsonl\nmodels:\n  - {name: './seed{seed}', seed: [1, 2]}\n  - name: ./none\n"
    (tmp_path / "suite.yaml").write_text(suite + "  - name: ./seed1\n    famly: f\n  - ./seed2\n")
    planned = run("score", "--suite", "suite.yaml", "--dry-run", status=1)
    assert "2 to be scored, 0 in the store already, 1 failed, and 2 entries of the suite" in planned.stdout
    result = run("score", "--suite", "suite.yaml", status=1)
    assert "1 of 3 models failed, and 2 entries of the suite" in result.stdout
    famly, entry, none = (result.stderr.index(f"Error: suite.yaml, line {n}: ") for n in (6, 7, 4))
    assert famly < entry < none, "what is wrong with the file is said before the work"
    records = json.loads(run("score", "--suite", "suite.yaml", "--json", status=1).stdout)
    assert [record["status"] for record in records] == ["failed", "failed", "present", "present", "failed"]
    assert [record["model"] for record in records[:2]] == [None, None]
    assert records[0]["error"].startswith("suite.yaml, line 6: unknown key 'famly'.\nDid you mean 'family'?")
    assert records[-1]["error"].startswith("suite.yaml, line 4: none is not a directory.")
    (tmp_path / "bad.yaml").write_text("texts: ./mine.jsonl\nmodels:\n  - name: ./none\n  - famly: f\n")
    run("score", "--suite", "bad.yaml", status=2)


def test_quantized_variants_are_added(run, make_model, tmp_path):
    write_texts(tmp_path / "mine.jsonl")
    make_model("a")
    plan = ("--quantize", "int8, nf4", "--dry-run", "--json")
    names = ["./a", "./a+int8", "./a+nf4"]
    records = json.loads(run("score", "./a", "--texts", "mine.jsonl", *plan).stdout)
    assert [record["model"] for record in records] == names
    assert {record["download_bytes"] for record in records} == {0}
    (tmp_path / "s.yaml").write_text("texts: ./mine.jsonl\nmodels:\n  - {name: ./a, quantize: fp4}\n")
    records = json.loads(run("score", "--suite", "s.yaml", *plan).stdout)
    assert [record["model"] for record in records] == [*names, "./a+fp4"]
    error = run("score", "./a", "./a+int8", "--texts", "mine.jsonl", *plan, status=2).stderr
    assert "--quantize is not for ./a+int8." in error
    assert "Did you mean 'nf4'?" in run("score", "./a", "--quantize", "nf5", status=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score"], "Give either models or a suite file"),
        (["score", "./none", "--texts", "T"], "is not a directory"),
        (["score", "gpt2+nf5", "--texts", "T"], "Did you mean 'nf4'?"),
        (["score", "./none", "--texts", "none.jsonl"], "no such file"),
        (["compare", "./none", "--texts", "T"], "Two different models are needed"),
        (["kl"], "is empty"),
        (["kl", "--store", "T"], "is a file"),
        (["texts", "info", "pile10k"], "Did you mean 'pile-10k'?"),
        (["import", "none.csv"], "cannot be read"),
        (["import", "T"], "is no sample with log-likelihoods"),
        (["rm", "x"], "holds no 'x'"),
        (["compare", "--frob"], "No such option"),
        (["nonsense"], "No such command"),
    ],
)
def test_wrong_arguments_exit_with_2(run, tmp_path, arguments, message):
    texts = write_texts(tmp_path / "mine.jsonl")
    result = run(*[str(texts) if argument == "T" else argument for argument in arguments], status=2)
    assert message in result.output


@pytest.mark.slow
def test_errors_are_three_lines(tmp_path):
    """What, why, remedy on standard error, and nothing on standard output."""
    texts = write_texts(tmp_path / "mine.jsonl")
    result = subprocess.run(
        [sys.executable, "-m", "klscale", "compare", "mock://1?window=32", "mock://2?window=32", "--texts", texts],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 6
    assert "texts are longer than the window" in lines[0]
    assert "--long-texts window" in lines[2]


STOPS = """
import signal
import klscale.cli
from klscale.store import files, whole
from klscale.store.store import Store
from klscale.sweep import score as sweeps

sweeps.KEEP_EVERY_S, keep = 0.0, Store.write_partial
def kept(*arguments):
    Store.write_partial = keep
    keep(*arguments)
    print("kept", flush=True)
    signal.pause()
Store.write_partial = kept
klscale.cli.main()
"""
"""A command that waits for a signal as soon as unfinished work is kept."""


def stopped_by(which, arguments, place):
    """Run a command until unfinished work is kept, and end it by this signal: exit status 130, and it says so."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPS, *map(str, arguments)],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "kept\n", process.stderr.read()
    process.send_signal(which)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "the same command goes on from there" in errors


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_the_same_command_resumes(run, tmp_path, make_model):
    """A real interrupt in the middle of a model: exit status 130, partial work kept, the rest scored afterwards."""
    texts = write_texts(tmp_path / "mine.jsonl")
    arguments = ["score", make_model(), "--texts", texts, "--batch-tokens", "300", "--json"]
    stopped_by(signal.SIGINT, arguments, tmp_path)
    store = Store(tmp_path / "klscale-store")
    assert all(not problem for _, problem in store.check())
    kept = list(tmp_path.glob("klscale-store/partial/*/*/*.parquet"))
    assert kept
    assert 0 < sum(len(pd.read_parquet(path)) for path in kept) < 60
    assert json.loads(run(*arguments).stdout)[0]["status"] == "scored"
    assert not list(tmp_path.glob("klscale-store/partial/*/*"))


@pytest.mark.slow
def test_sigterm_ends_as_ctrl_c_does(tmp_path):
    """Schedulers of clusters end jobs with it: the partial work and its words are kept, and no claim is left."""
    texts = write_texts(tmp_path / "mine.jsonl")
    arguments = ["score", "mock://1", "--texts", str(texts), "--batch-tokens", "300"]
    stopped_by(signal.SIGTERM, arguments, tmp_path)
    assert list(tmp_path.glob("klscale-store/partial/*/*/*.parquet"))
    assert not list(tmp_path.rglob("*.claim"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "reader"),
    [
        (command, reader)
        for command in ("kl --json", "--help")
        for reader in ("| head -c 1", "| true", ">&-", ">&- 2>&-")
    ]
    + [("kl", "| true"), ("kl", ">&- 2>&-"), ("ls", "| head -c 1"), ("ls", ">&-")],
)
def test_output_that_nobody_reads_is_no_error(run, imported, tmp_path, command, reader):
    shell = f"{sys.executable} -m klscale {command} {reader} >read"
    result = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True)
    assert result.stderr == ""
    assert result.returncode == 0


def test_a_command_whose_tables_nobody_reads_ends_with_141(imported):
    program = """
import os, sys
from klscale.cli import main
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
sys.argv = ["klscale", "compare", "EleutherAI/pythia-1b", "EleutherAI/pythia-160m", "--out", "c.md"]
main()
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=imported.parent, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (141, "Wrote c.md.\n")
    assert "How good each model is" in (imported.parent / "c.md").read_text()  # the file was first


def test_a_store_is_listed_and_emptied_by_text_set(run, tmp_path):
    write_texts(tmp_path / "mine.jsonl")
    run("score", "mock://1", "--texts", "mine.jsonl")
    for texts in ("mine", "mine.jsonl"):
        assert "mock://1" in run("ls", "--texts", texts).stdout
    for command in (["ls"], ["rm", "mock://1"]):
        error = run(*command, "--texts", "mina", status=2).stderr
        assert error == "Error: ./klscale-store holds no text set 'mina'.\nDid you mean 'mine'?\nklscale ls\n"
    run("rm", "mock://1", "--texts", "mine.jsonl")
    assert "0 models" in run("ls").stdout


def test_a_file_that_cannot_be_made_is_an_error_below_the_tables(run, imported):
    (imported.parent / "a file").touch()
    for command in (["kl"], ["compare", "EleutherAI/pythia-1b", "EleutherAI/pythia-160m"]):
        result = run(*command, "--out", "a file/c.md", status=1)
        assert "336 texts, mean" in result.stdout
        assert "a file/c.md could not be written" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["kl", "kl --json", "--help"])
def test_a_full_disk_behind_standard_output_is_said(run, imported, tmp_path, command):
    with Path("/dev/full").open("w") as full:
        arguments = [sys.executable, "-m", "klscale", *command.split()]
        result = subprocess.run(arguments, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert "No space left" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_two_processes_share_the_models(tmp_path):
    """Each model is scored by one of them, and both end with everything. One that is killed holds nothing up."""
    texts = write_texts(tmp_path / "mine.jsonl")
    models = [f"mock://{n}?noise=0.01" for n in range(4)]
    arguments = ["score", *models, "--texts", str(texts), "--json"]
    waits = """
import sys
import klscale.cli
from klscale.store import files, whole
from klscale.store.store import Store

claim, waited = Store.claim, []
def claims(*arguments):
    found = claim(*arguments)
    if found and not waited:
        waited.append(True)
        print("claimed", flush=True)
        sys.stdin.readline()
    return found
Store.claim = claims
klscale.cli.main()
"""

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", waits, *arguments],
            cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "claimed\n", process.stderr.read()
        return process

    killed = start()
    killed.kill()
    killed.communicate()
    assert list(tmp_path.glob("klscale-store/partial/*/*.claim")), "its claim is left behind"

    processes = [start(), start()]
    for process in processes:  # with a model each
        process.stdin.write("\n")
        process.stdin.flush()
    found = []
    for process in processes:
        output, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
        found.append({record["model"]: record["status"] for record in json.loads(output)})
    scored = [{ref for ref, status in statuses.items() if status == "scored"} for statuses in found]
    assert not scored[0] & scored[1]
    assert all(scored), "both had work to do"
    assert all(set(statuses) == set(models) for statuses in found)
    assert all(set(statuses.values()) <= {"scored", "present"} for statuses in found)
    store = Store(tmp_path / "klscale-store")
    assert len(list(store.check())) == 11, "head and lines of the texts, vectors, draws and noise floors"
    vectors = store.vectors(store.resolve_texts(None))
    assert vectors.sampled_kl_matrix().n_texts == len(vectors.texts), "all have what one of them has drawn"
    assert all(not problem for _, problem in store.check())
    assert not list(tmp_path.glob("klscale-store/partial/*/*"))


# -------------------------------------------------------------------------------------------------------------- texts


def test_texts_are_built_and_inspected(run, tmp_path):
    (tmp_path / "book.txt").write_text("Once upon a time. " * 500)
    run("texts", "build", "book.txt", "--out", "set.jsonl", "--sample", "5")
    record = json.loads(run("texts", "info", "set.jsonl", "--json").output)
    assert (record["n_texts"], record["max_bytes"], record["n_documents"]) == (5, 1024, 1)
    assert "clustered by document" in run("texts", "info", "set.jsonl").output
    assert "pile-10k" in run("texts", "list").output


# --------------------------------------------------------------------------------------------------------------- demo


@pytest.mark.slow
def test_demo_quick(quick_demo):
    """The main job without any download."""
    shown = (quick_demo / "stdout.txt").read_text(encoding="utf-8")
    record = json.loads((quick_demo / "scale.json").read_text())
    rows = {row["setting"]: row for row in record["measured"]}
    settings = {
        "seed",
        "size",
        "architecture",
        "fine-tuning",
        "later training",
        "early training",
        "same type",
        "random",
    }
    quantized = {"8-bit (int8)", "4-bit (nf4)", "4-bit (fp4)"} if find_spec("bitsandbytes") else set()
    assert rows.keys() == settings | {"layer"} | quantized
    for setting, row in rows.items():
        assert setting in shown
        assert format_estimate(row["median"], row["standard_error"]) in shown
    paths = ("/", "klscale ")  # as long as the directory is
    assert len(shown.splitlines()) <= 15
    assert max(len(line) for line in shown.splitlines() if not any(part in line for part in paths)) <= 100
    assert (quick_demo / "report.html").as_uri() in shown
    assert (quick_demo / "scale.png").stat().st_size > 10_000
    assert all(row["median"] > 0 and row["standard_error"] > 0 for row in rows.values())
    assert rows["later training"]["median"] < rows["seed"]["median"]


@pytest.mark.slow
def test_the_pictures_of_the_documentation_are_current(tmp_path):
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from make_pictures import main
    finally:
        sys.path.pop(0)
    for picture in main(tmp_path):
        assert picture.stat().st_size > 10_000
        assert (ROOT / "docs" / "pictures" / picture.name).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        "kl --out x.csv", "kl --out x.parquet", "kl --out x.png", "scale --out x.csv", "scale --out x.svg",
        "map --out x.html", "map --out x.csv", "map --out x.pdf", "report --out x.html",
        "texts build {texts} --out x.jsonl --min-bytes 4",
    ],
)  # fmt: skip
def test_an_output_is_whole_or_not_there(run, imported, tmp_path, monkeypatch, arguments):
    """On a disk that is full at the last moment the old file stays as it was, nothing lies beside it, and that is said;
    a command that is killed leaves a temporary file that the next clears."""
    words = arguments.format(texts=write_texts(tmp_path / "mine.jsonl")).split()
    place = tmp_path / words[words.index("--out") + 1]
    place.write_text("old")
    before = {path.name for path in tmp_path.iterdir()}

    def full(self, target):
        if Path(target).name != place.name:  # a kept map
            return rename(self, target)
        assert self.parent == tmp_path
        assert self.stat().st_size
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    rename = Path.replace
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        result = run(*words, status=1)
    assert "could not be written.\nNo space left on device." in result.output
    assert place.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == before
    left = tmp_path / f".klscale-{whole._HOST}-{2**22 + 1}-0123abcd.tmp{place.suffix}"
    left.write_text("half")
    run(*words)
    assert place.read_bytes() != b"old"
    assert {path.name for path in tmp_path.iterdir()} == before


def test_completion_of_commands_and_options():
    from typer.testing import CliRunner

    from klscale.cli import app

    def completed(words):
        asked = {"_KLSCALE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        return CliRunner().invoke(app, [], prog_name="klscale", env=asked).stdout.split()

    assert completed("klscale sc") == ["score", "scale"]
    assert completed("klscale texts b") == ["build"]
    assert completed("klscale doctor --js") == ["--json"]
