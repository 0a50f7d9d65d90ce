"""The verbs in Python: the numbers of the commands, in objects that show themselves."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import klscale
from conftest import EXAMPLE, write_texts
from klscale.progress import Progress
from mixed_store import mixed_store

A, B, C = (f"EleutherAI/pythia-{size}" for size in ("1b", "410m", "160m"))


class Notes(Progress):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture
def imported(run):
    """The example, in the store that commands and verbs take by default."""
    run("import", EXAMPLE, "--id", "text_id")


def test_compare(run, imported):
    found = klscale.compare([A, B, C])
    records = json.loads(run("compare", A, B, C, "--json").stdout)
    assert list(found.pairs) == [(row["a"], row["b"]) for row in records]
    for row in records:
        kl = found.pairs[row["a"], row["b"]]
        assert (kl.value, kl.standard_error, *kl.interval) == (
            row["kl"], row["standard_error"], row["interval_low"], row["interval_high"]
        )  # fmt: skip
        assert found.placed(row["a"], row["b"]) == row["placed"]
        assert f"{row['a']} and {row['b']}: KL {kl}" in str(found)
        assert found.vectors.bits_per_byte(row["a"]).value == row["bits_per_byte_a"]["value"]
    by_reference = klscale.compare([A, B], reference=C)
    assert list(by_reference.pairs) == [(C, A), (C, B)]
    with pytest.raises(klscale.InputError, match="Two different models"):
        klscale.compare([A, A])


@pytest.mark.slow
def test_what_fails_is_told_and_nothing_left_is_an_error(imported, make_model, tmp_path):
    texts = str(write_texts(tmp_path / "t.jsonl", 8))
    models = [make_model(f"m{seed}", seed=seed) for seed in (1, 2)]
    found = klscale.compare([*map(str, models), "./none"], texts, "s")
    assert [outcome.status for outcome in found.outcomes] == ["scored", "scored", "failed"]
    assert "./none: failed: none is not a directory." in str(found)
    with pytest.raises(klscale.ScoringError, match="none is not a directory") as caught:
        klscale.compare([str(models[0]), "./none"], texts, "s")
    assert [outcome.status for outcome in caught.value.outcomes] == ["present", "failed"]
    with pytest.raises(klscale.ScoringError):
        klscale.compare([*map(str, models)], texts, "s", reference="./none")


def test_precision(run, imported):
    found = klscale.compare([A, B], precision=0.2)
    (record,) = json.loads(run("compare", A, B, "--precision", "20%", "--json").stdout)
    assert found.pairs[A, B].value == record["kl"]
    assert found.pairs[A, B].interval == (record["interval_low"], record["interval_high"])
    assert found.sequential.reached == record["reached"]
    with pytest.raises(klscale.InputError, match="exclude each other"):
        klscale.compare([A, B], precision=0.2, options=klscale.Options(rescore=True))


def test_scale(run, imported):
    found = klscale.scale()
    rows = json.loads(run("scale", "--json").stdout)["measured"]
    assert [(row.setting, row.median, row.standard_error) for row in found.settings] == [
        (row["setting"], row["median"], row["standard_error"]) for row in rows
    ]
    assert len(str(found).splitlines()) == len(rows)


def test_map(run, imported):
    found = klscale.map()
    record = json.loads(run("map", "--json").stdout)["models"]
    assert list(found.map.models) == [row["model"] for row in record]
    np.testing.assert_array_equal(found.map.pca, [row["pca"] for row in record])
    np.testing.assert_array_equal(found.map.tsne, [row["tsne"] for row in record])
    assert "14 models on pile-trained-14" in str(found)
    with pytest.raises(klscale.InputError, match="exclude each other"):
        klscale.map(add=[A], anew=True)


def test_report(run, imported, tmp_path):
    found = klscale.report("r.html")
    record = json.loads(run("report", "--out", "s.html", "--json").stdout)
    assert (tmp_path / "r.html").stat().st_size == found.size
    assert abs(found.size - record["bytes"]) < 100, "but for the date"
    assert found.data["summary"] == record["summary"]
    assert all(row["text"] in str(found) for row in record["summary"])
    with pytest.raises(klscale.InputError, match="unknown ending"):
        klscale.report("r.pdf")


def test_validate(run, imported):
    found = klscale.validate()
    record = json.loads(run("validate", "--json").stdout)
    assert found.sensitivity.kl.tolist() == [row["kl"] for row in record["texts"]["pairs"]]
    relative = [row["standard_error"] / row["kl"] for row in record["texts"]["pairs"]]
    assert f"A KL is known to {np.median(relative):.0%}" in str(found)
    pair = klscale.validate([A, B])
    shares = json.loads(run("validate", A, B, "--json").stdout)["tails"]
    assert pair.tails.share_of_ten == shares["share_of_ten_largest_texts"]
    with pytest.raises(klscale.InputError, match="One study at a time"):
        klscale.validate([A, B], exact=True, noise=True)
    with pytest.raises(klscale.InputError, match="too many"):
        klscale.validate(texts=["a", "b", "c"])


def test_two_text_sets(run, tmp_path):
    for name in "ab":
        generator = np.random.default_rng(ord(name))
        rows = [",".join(["100", *(f"{x:.3f}" for x in -100 + 9 * generator.normal(size=3))]) for _ in range(50)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["bytes,m0,m1,m2", *rows]) + "\n")
        run("import", f"{name}.csv")
    found = klscale.validate(texts=["a", "b"])
    record = json.loads(run("validate", "--texts", "a", "--texts", "b", "--json").stdout)
    assert found.agreement.ratio == record["ratio"]
    assert f"KL on b over KL on a: {found.agreement.ratio:.2g}" in str(found)


@pytest.mark.slow
def test_trajectory_of_a_store(run, tmp_path):
    mixed_store(tmp_path / "mixed")
    found = klscale.trajectory(store="mixed", threshold=0.5)
    record = json.loads(run("trajectory", "--store", "mixed", "--threshold", 0.5, "--json").stdout)
    assert [one.run.name for one in found.runs] == [row["run"] for row in record["runs"]]
    for one, row in zip(found.runs, record["runs"], strict=True):
        assert one.alpha.value == row["alpha"]["value"]
        assert one.behaviour.stabilisation.step == row["log_likelihood"]["stabilisation"]["step"]
        assert f"alpha {one.alpha}" in str(found)
    assert found.seeds[0].probability == record["over_seeds"][0]["probability_that_c_q_is_below_c_w"]
    with pytest.raises(klscale.InputError, match="is empty"):
        klscale.trajectory(store="none")


@pytest.mark.slow
def test_score_layers_and_exact(run, make_model, tmp_path):
    """From texts and models on this machine; the options reach the engine and the store."""
    texts = klscale.load_texts(str(write_texts(tmp_path / "t.jsonl", 12)))
    one, two = (str(make_model(f"m{seed}", seed=seed)) for seed in (1, 2))
    options = klscale.Options(texts=texts, store="s", device="cpu", batch_tokens=200)
    plan = klscale.score([one, two], dry_run=True, options=options)
    assert [outcome.status for outcome in plan.outcomes] == ["missing", "missing"]
    scored = klscale.score([one, two], options=options)
    assert (scored.failed, scored.texts.id) == ((), texts.id)
    assert [line.split(",")[0] for line in str(scored).splitlines()] == [f"{one}: scored", f"{two}: scored"]
    entry = scored.outcomes[0].entry.metadata
    assert (entry["device"], scored.store.location) == ("cpu", "s")
    np.testing.assert_array_equal(
        scored.vectors().log_likelihood,
        klscale.Store("s").vectors(texts, [o.entry for o in scored.outcomes]).log_likelihood,
    )

    found = klscale.layers([one], options=options)
    rows = json.loads(run("layers", one, "--store", "s", "--json").stdout)
    assert [row.to_output.value for row in found.layers[one]] == [row["kl_to_output"]["kl"] for row in rows]
    assert len(str(found).splitlines()) == len(rows) == 3

    exact = klscale.validate([one, two], exact=True, n_texts=8, options=options)
    (record,) = json.loads(run("validate", one, two, "--exact", "--sample", 8, "--store", "s", "--json").stdout)[
        "pairs"
    ]
    assert exact.exact[0].symmetrised.value == record["symmetrised"]["value"]
    noise = klscale.validate([one], noise=True, n_texts=8, options=options)
    assert noise.noise[0].n_texts == 8
    assert one in str(noise)


def test_options(run, imported, monkeypatch, tmp_path):
    """A verb's own texts and store go first; a known set keeps the store's clip; what is left out is noted."""
    options = klscale.Options(store="other", texts="nothing")
    assert len(klscale.scale("pile-trained-14", "klscale-store", options=options).settings) == 4
    monkeypatch.setenv("KLSCALE_STORE", "elsewhere")
    with pytest.raises(klscale.InputError, match="elsewhere is empty"):
        klscale.scale()
    monkeypatch.delenv("KLSCALE_STORE")
    texts = klscale.read_log_likelihoods(str(EXAMPLE), id_column="text_id").texts
    run("texts", "clip", "--value", "-900")
    assert texts.clip is None
    assert klscale.compare([A, B], texts).vectors.texts.clip == -900
    mixed_store(tmp_path / "mixed")
    told = Notes()
    klscale.map(store="mixed", options=klscale.Options(progress=told))
    assert any("Not all texts were scored with" in note for note in told.notes)


@pytest.mark.slow
def test_demo(quick_demo, tmp_path):
    """What the command made is taken as it is: a second run trains and scores nothing."""
    place = tmp_path / "demo"
    shutil.copytree(quick_demo, place)
    found = klscale.demo(place, quick=True)
    assert {outcome.status for outcome in found.scored.outcomes} == {"present"}
    rows = json.loads((quick_demo / "scale.json").read_text())["measured"]
    assert {row.setting: row.median for row in found.scale.settings} == {row["setting"]: row["median"] for row in rows}
    assert found.page.is_file()
    assert str(found.page) in str(found)
