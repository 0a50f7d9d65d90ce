"""Cards: each figure against a plain loop, every value checked, and nothing that a hostile card or file can do."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import klscale
from conftest import write_texts
from klscale.inputs.references import ModelRef
from klscale.show.card_checks import check_card
from klscale.show.cards import BEGIN
from klscale.show.markdown import escaped
from klscale.sources.mock import Chain, Parameters
from klscale.store import card_numbers as kept_numbers
from klscale.store import records
from klscale.store.card_numbers import numbers_from_parquet, numbers_to_parquet

BASE, NEAR, OTHER = "mock://1", "mock://1?shift=0.05", "mock://1?shift=0.1&tokens=pairs"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A card of two variants, one with another tokenizer; its directory."""
    place = tmp_path_factory.mktemp("card")
    texts = str(write_texts(place / "t.jsonl"))
    klscale.card(BASE, [NEAR, OTHER], place / "card.md", texts, place / "store", n_texts=20)
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it to change."""
    for name in ("card.md", "card.parquet", "t.jsonl"):
        shutil.copy(made / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def metrics(text, model):
    (found,) = [one for one in front(text)["model-index"] if one["name"] == model]
    return {one["type"]: one for one in found["results"][0]["metrics"]}


def loop_over_bytes(texts):
    """KL(base, near) of the next byte at each position of each text, by the sum over all bytes."""
    p, q = (Chain.of(Parameters.of(ModelRef.parse(ref))).log_p for ref in (BASE, NEAR))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    same = p.argmax(axis=1) == q.argmax(axis=1)
    return [[(kl[before], same[before]) for before in [256, *text.encode()[:-1]]] for text in texts]


def test_figures_are_those_of_a_plain_loop(made):
    texts = klscale.load_texts(made / "t.jsonl")
    chosen = [texts.texts[s] for s in sorted(texts.random_order[:20])]
    each = loop_over_bytes(chosen)
    single = np.concatenate([[kl for kl, _ in text] for text in each])
    found = metrics((made / "card.md").read_text(), NEAR)
    n_bytes = sum(len(text.encode()) for text in chosen)
    assert found["forward"]["value"] == pytest.approx(single.sum() / n_bytes / np.log(2), rel=1e-6)
    assert found["mean"]["value"] == pytest.approx(single.mean(), rel=1e-6)
    assert found["mean"]["args"]["n_tokens"] == len(single)
    for share in (50, 90, 95, 99, 99.9):
        expected = np.quantile(single, share / 100, method="inverted_cdf")
        assert found[f"quantile_{share:g}"]["value"] == pytest.approx(expected, rel=1e-6)
    assert found["same_top"]["value"] == pytest.approx(np.mean([same for text in each for _, same in text]))
    sums = np.array([sum(kl for kl, _ in text) for text in each])
    size = np.array([len(text.encode()) for text in chosen])
    error = np.std(sums - sums.sum() / size.sum() * size) / np.sqrt(20) / size.mean() / np.log(2)
    assert found["forward"]["args"]["standard_error"] == pytest.approx(error, rel=1e-5)
    assert "forward" not in metrics((made / "card.md").read_text(), OTHER)  # another tokenizer


def test_the_numbers_give_what_the_store_gives(made):
    numbers = numbers_from_parquet((made / "card.parquet").read_bytes())
    compared = klscale.compare([BASE, NEAR, OTHER], str(made / "t.jsonl"), made / "store", reference=BASE)
    for name in (NEAR, OTHER):
        here, there = numbers.vectors.reported_kl(BASE, name), compared.pairs[BASE, name]
        assert (here.value, here.standard_error, here.estimator) == (there.value, there.standard_error, there.estimator)
        assert here.spans == there.spans
        assert here.whole_texts == there.whole_texts
        assert numbers.vectors.bits_per_byte(name, BASE) == compared.vectors.bits_per_byte(name, BASE)
    assert {numbers.vectors.reported_kl(BASE, name).estimator for name in (NEAR, OTHER)} == {"sampled tokens", "spans"}


def test_the_file_reads_as_it_is_documented(made):
    rows = pq.read_table(made / "card.parquet").to_pandas()
    assert len(rows) == 3 * 60
    near = rows[rows["model"] == NEAR]
    exact = np.concatenate([*near["kl"]])
    found = metrics((made / "card.md").read_text(), NEAR)["mean"]["value"]
    assert exact.astype(np.float64).mean() == pytest.approx(found, rel=1e-9)


def test_the_hub_reads_the_model_index(made):
    from huggingface_hub.repocard_data import model_index_to_eval_results

    for one in front((made / "card.md").read_text())["model-index"]:
        name, results = model_index_to_eval_results([one])
        assert name in (NEAR, OTHER)
        assert results[0].metric_type == "kl"
        assert results[0].dataset_args["n_texts"] == 60


@pytest.mark.slow
def test_of_models_of_transformers(make_model, texts, tmp_path):
    """Two models, every position by their own logits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    a, b = (make_model(name, seed=seed, bos=True) for seed, name in enumerate("ab"))
    card = klscale.card(str(a), [str(b)], tmp_path / "card.md", texts, tmp_path / "store", n_texts=5)
    chosen = [texts.texts[s] for s in sorted(texts.random_order[:5])]
    models, tokenizer = (
        [AutoModelForCausalLM.from_pretrained(m).eval() for m in (a, b)],
        AutoTokenizer.from_pretrained(a),
    )
    single = []
    with torch.no_grad():
        for text in chosen:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            p, q = (model(ids).logits[0, :-1].double().log_softmax(1) for model in models)
            single.append((p.exp() * (p - q)).sum(1).numpy())
    found = card.variants[0].exact
    assert found.mean.value == pytest.approx(np.concatenate(single).mean(), rel=1e-4)
    assert found.maximum == pytest.approx(np.concatenate(single).max(), rel=1e-4)
    assert card.variants[0].size is not None
    assert "bits/weight" in card.file.read_text()
    assert klscale.check_card(card.file).agrees


# ------------------------------------------------------------------------------------------------------------ checking


def test_a_card_agrees_with_its_numbers(run, place):
    assert klscale.check_card("card.md").agrees
    page = "---\nlicense: mit\n" + (place / "card.md").read_text().removeprefix("---\n") + "\n# Use\n\nMore.\n"
    (place / "README.md").write_text(page)
    shown = run("check-card", "README.md").stdout
    assert "values and texts of README.md agree with its numbers" in shown
    assert json.loads(run("check-card", "card.md", "--json").stdout)["agrees"]


@pytest.mark.slow
def test_every_altered_value_is_found(run, place):
    text = (place / "card.md").read_text()
    lines = text.splitlines()
    changed = [n for n, line in enumerate(lines) if re.search(r"(value|standard_error|n_texts|checksum): ", line)]
    changed += [n for n, line in enumerate(lines) if line.startswith("| mock")]
    assert len(changed) > 40
    for n in changed[::2]:
        other = re.sub(r"(\d)(?=\D*$)", lambda digit: str((int(digit[1]) + 1) % 10), lines[n])
        other = lines[n] + "0" if other == lines[n] else other
        (place / "card.md").write_text("\n".join([*lines[:n], other, *lines[n + 1 :]]) + "\n")
        found = check_card("card.md").checks
        digits = re.search(r"\d{7,}", lines[n].split(": ")[-1])
        if not (digits and "e-" not in other):  # a last digit of many is below what is compared
            assert not all(one.agrees for one in found), (lines[n], other)
    (place / "card.md").write_text(text.replace("estimator: sampled tokens", "estimator: exact"))
    shown = run("check-card", "card.md", status=1).stdout
    assert "1 of" in shown
    assert "do not agree" in shown


def test_a_second_value_of_a_name_is_found(place):
    text = (place / "card.md").read_text()
    begin = text.index("    - type: kl\n")
    metric = text[begin : text.index("    - type: forward")]
    false = re.sub("value: .*", "value: 0.0001", metric)
    (place / "card.md").write_text(text[:begin] + false + text[begin:])
    assert not check_card("card.md").agrees


def test_other_numbers_are_found(run, place):
    klscale.card(BASE, ["mock://1?shift=0.06"], "other.md", "t.jsonl", "store", n_texts=10)
    shutil.copy("other.parquet", "card.parquet")
    assert "do not agree" in run("check-card", "card.md", status=1).stdout
    data = bytearray((place / "other.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (place / "other.parquet").write_bytes(data)
    assert "other.parquet" in run("check-card", "other.md", status=1).stderr
    (place / "other.parquet").unlink()
    assert "is not there" in run("check-card", "other.md", status=1).stderr


def test_scored_again(run, place):
    options = ("--texts", "t.jsonl", "--store", "again")
    assert "and with the models scored again" in run("check-card", "card.md", "--rescore", *options).stdout
    run("check-card", "card.md", "--rescore", "--store", "again2", status=2)  # which texts?
    write_texts(place / "others.jsonl", 30)
    refused = run("check-card", "card.md", "--rescore", "--texts", "others.jsonl", status=2)
    assert "are not the texts of the card" in refused.stderr


@pytest.mark.slow
def test_another_model_of_the_same_name_is_found(run, make_model, tmp_path):
    write_texts(tmp_path / "t.jsonl", 12)
    make_model("a", seed=1)
    make_model("b", seed=2)
    run("card", "./a", "./b", "--out", "card.md", "--sample", "4", "--texts", "t.jsonl")
    run("check-card", "card.md", "--rescore", "--texts", "t.jsonl", "--store", "s2")
    make_model("b", seed=3)
    shown = run("check-card", "card.md", "--rescore", "--texts", "t.jsonl", "--store", "s2", "--wide", status=1).stdout
    assert "scored again, ./b, files" in shown
    assert "scored again, ./b, kl" in shown


# ------------------------------------------------------------------------------------------------------------- writing


def test_nothing_else_is_overwritten(run, place):
    (place / "README.md").write_text("# My model\n")
    refused = run("card", BASE, NEAR, "--out", "README.md", "--texts", "t.jsonl", status=2)
    assert "more than a card" in refused.stderr
    assert (place / "README.md").read_text() == "# My model\n"
    (place / "data.parquet").write_bytes(b"mine")
    run("card", BASE, NEAR, "--out", "data.md", "--texts", "t.jsonl", status=2)
    assert (place / "data.parquet").read_bytes() == b"mine"
    run("card", BASE, NEAR, "--out", "card.md", "--texts", "t.jsonl", "--sample", "5")  # a card is written anew
    assert check_card("card.md").agrees
    run("card", BASE, "--texts", "t.jsonl", status=2)
    run("card", BASE, BASE, "--texts", "t.jsonl", status=2)
    run("card", BASE, NEAR, "--out", "card.txt", "--texts", "t.jsonl", status=2)
    run("card", BASE, NEAR, "--sample", "1", "--texts", "t.jsonl", status=2)


def test_a_card_without_exact_kl(run, place):
    found = json.loads(run("card", BASE, NEAR, "--sample", "0", "--texts", "t.jsonl", "--out", "x.md", "--json").stdout)
    assert found["variants"][0]["exact"] is None
    text = (place / "x.md").read_text()
    assert "from sampled tokens" in text
    assert check_card("x.md").agrees


def test_texts_of_one_document_are_named_in_both(run, place):
    rows = [json.loads(line) | {"document": "one"} for line in (place / "t.jsonl").read_text().splitlines()]
    (place / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = run("card", BASE, NEAR, "--texts", "one.jsonl", "--sample", "0", "--out", "one.md").stdout
    for said in (shown, (place / "one.md").read_text()):
        assert "all texts are of one document" in said


def test_what_was_measured_is_not_measured_again(run, place, monkeypatch):
    run("card", BASE, NEAR, "--texts", "t.jsonl", "--sample", "6")
    first = (place / "klscale-card.md").read_text()
    monkeypatch.setattr("klscale.sources.mock.MockReader.compare_next_tokens", None)
    run("card", BASE, NEAR, "--texts", "t.jsonl", "--sample", "6")
    assert (place / "klscale-card.md").read_text() == first


def test_names_are_text_in_markdown():
    name = "a|b`c`<img src=x>[x](http://y)*_&\u202e\n"
    found = escaped(name)
    assert re.fullmatch(r"(\\[\\`*_{}\[\]|~#!$]|&amp;|&lt;|&gt;|&#58;//|[^\\`*_\[\]|~#!$<>&])*", found)
    assert "\n" not in found
    assert "\u202e" not in found


# -------------------------------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    "change",
    [
        ("card: 1", "card: !!python/object/apply:os.system ['touch pwned']"),
        ("card: 1", "card: !tag 1"),
        ("card: 1", "card: &a 1\n  x: *a"),
        ("card: 1", "card: 1\n  card: 1"),
        ("card: 1", "card: 99"),
        ("card: 1", "card: " + "[" * 5000),
        ("card: 1", "card: 1" + "0" * 10_000),
        ("numbers: card.parquet", "numbers: ../card.parquet"),
        ("numbers: card.parquet", "numbers: /etc/passwd"),
        ("numbers: card.parquet", "numbers: C:\\\\x.parquet"),
        ("numbers: card.parquet", "numbers: [card.parquet]"),
        ("numbers: card.parquet", 'numbers: "a\\0.parquet"'),
        ("klscale:", "other:"),
        ("model-index:", "model-index: {a: b}\nx:"),
        ("---\n", "+++\n"),
        (BEGIN, ""),
    ],
)
def test_hostile_cards(run, place, change):
    text = (place / "card.md").read_text()
    assert change[0] in text
    (place / "card.md").write_text(text.replace(*change))
    result = run("check-card", "card.md", status=None)
    assert result.exit_code in (1, 2)
    assert not (place / "pwned").exists()


def test_links_and_sizes(run, place, monkeypatch):
    (place / "inner").mkdir()
    shutil.copy("card.md", "inner")
    (place / "inner" / "card.parquet").symlink_to(place / "card.parquet")
    assert "leads outside" in run("check-card", "inner/card.md", status=1).stderr
    monkeypatch.setenv("KLSCALE_LIMIT_CARD_BYTES", "1000")
    assert "KLSCALE_LIMIT_CARD_BYTES" in run("check-card", "card.md", status=2).stderr
    monkeypatch.undo()
    monkeypatch.chdir(place)
    monkeypatch.setenv("KLSCALE_LIMIT_VECTOR_BYTES", "1000")
    run("check-card", "card.md", status=2)
    run("check-card", "none.md", status=2)
    run("check-card", ".", status=2)


def agrees(file):
    """Whether a card agrees; false, too, where that cannot be told, for a reason that is given."""
    try:
        return check_card(file).agrees
    except klscale.KlscaleError as error:
        return not error.why


def changed_tables(table):
    """Tables that are wrong in one thing each."""
    for name in table.column_names:
        yield f"without {name}", table.drop_columns([name])
        yield (
            f"{name} of strings",
            table.set_column(table.column_names.index(name), name, pa.array([f"x{n}" for n in range(len(table))])),
        )
        yield (
            f"{name} null",
            table.set_column(table.column_names.index(name), name, pa.nulls(len(table), table.column(name).type)),
        )
    for name in ("text", "bytes", "n_tokens"):
        for wrong in (-1, 2**30):
            column = pa.array([wrong] * len(table), table.column(name).type)
            yield f"{name} {wrong}", table.set_column(table.column_names.index(name), name, column)
    for name in ("cuts", "kl", "token", "log_proposal", "span_log_likelihood", "sampled_log_probability"):
        kind = table.column(name).type
        for wrong in (float("nan"), -5, 1 << 20):
            if isinstance(wrong, float) and not pa.types.is_floating(kind.value_type):
                continue
            rows = [None if row is None else [wrong for _ in row] for row in table.column(name).to_pylist()]
            yield f"{name} {wrong}", table.set_column(table.column_names.index(name), name, pa.array(rows, kind))
    yield "rows turned round", table.take(list(range(len(table)))[::-1])
    yield "rows twice", pa.concat_tables([table, table])
    yield "no rows", table.slice(0, 0)


@pytest.mark.slow
def test_hostile_numbers(place):
    """Whatever is wrong with the file is an error with words, or a card that does not agree."""
    data = (place / "card.parquet").read_bytes()
    table, about = records.from_parquet("numbers", data)
    tried = [*changed_tables(table)]
    assert len(tried) > 60
    for what, other in tried:
        made = records.to_parquet("numbers", other, about)
        (place / "card.parquet").write_bytes(made)
        text = (place / "card.md").read_text()
        (place / "card.md").write_text(re.sub("sha256: .*", f"sha256: {hashlib.sha256(made).hexdigest()}", text))
        assert not agrees("card.md"), what
    texts = about["texts"]
    for wrong in (
        {"models": []}, {"models": [1]}, {"models": about["models"][:1]}, {"draws": {"x": 1}}, {"draws": 3},
        {"texts": {**texts, "n_texts": 10**15}}, {"texts": {**texts, "n_texts": 3}}, {"texts": {**texts, "clip": 5}},
        {"texts": {**texts, "cuts": "another rule"}}, {"texts": {}},
        {"models": [{**one, "ref": "../../x"} for one in about["models"]]},
        {"models": [{**one, "sampled": {"tokens": "0" * 12}} for one in about["models"]]},
        {"models": [{**one, "convention": str(n)} for n, one in enumerate(about["models"])]},
    ):  # fmt: skip
        made = records.to_parquet("numbers", table, {**about, **wrong})
        (place / "card.parquet").write_bytes(made)
        assert not agrees("card.md"), wrong


def test_writing_what_was_read_changes_nothing(made):
    data = (made / "card.parquet").read_bytes()
    again = numbers_from_parquet(numbers_to_parquet(numbers_from_parquet(data)))
    first = kept_numbers.numbers_from_parquet(data)
    assert [one.checksum for one in again.scores] == [one.checksum for one in first.scores]
    assert again.next_tokens[1].kl.values.tolist() == first.next_tokens[1].kl.values.tolist()
    assert again.draws.keys() == first.draws.keys()
