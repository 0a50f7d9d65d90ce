"""Log-likelihoods by document: what lm-evaluation-harness and levanter write is read as it is meant, what is written is
read back, and broken files are errors with words."""

from __future__ import annotations

import copy
import json

import numpy as np
import pandas as pd
import pytest

import klscale
from conftest import write_texts
from klscale.errors import InputError
from klscale.vectors.samples import model_of, read_samples

A, B = "mock://1", "mock://1?shift=0.2"


def rolling(texts, values, **more):
    """Lines as `lm_eval --log_samples` writes them: everything but the document as strings."""
    lines = []
    for n, (text, value) in enumerate(zip(texts, values, strict=True)):
        sample = {
            "doc_id": n, "doc": {"page": text}, "target": text, "arguments": {"gen_args_0": {"arg_0": text}},
            "resps": [[str(value)]], "filtered_resps": [str(value)], "filter": "none",
            "metrics": ["word_perplexity"], "word_perplexity": [value, len(text.split())], **more,
        }  # fmt: skip
        lines.append(json.dumps(sample))
    return "\n".join(lines) + "\n"


TEXTS = ["a tree in a house", "grün und 日本", "the house runs and runs"]
VALUES = [-21.5, -30.25, -18.0]


def choices():
    """Two questions with three choices each, as a multiple-choice task is logged."""
    lines = []
    for n in range(2):
        asked = [(f"Question {n}:", f" answer {c}") for c in "abc"]
        lines.append(
            {
                "doc_id": n,
                "doc": {"question": str(n)},
                "target": "0",
                "arguments": {f"gen_args_{i}": {"arg_0": q, "arg_1": a} for i, (q, a) in enumerate(asked)},
                "resps": [[[str(-5.0 - n - i), "False"]] for i in range(3)],
                "filtered_resps": [[str(-5.0 - n - i), "False"] for i in range(3)],
                "filter": "none",
                "metrics": ["acc"],
                "acc": 1.0,
            }
        )
    return lines


def test_rolling_log_likelihoods(run, tmp_path):
    place = tmp_path / "org__model"
    place.mkdir()
    (place / "samples_wikitext.jsonl").write_text(rolling(TEXTS, VALUES))
    found = klscale.read_log_likelihoods(place / "samples_wikitext.jsonl", force=True)
    assert found.names == ("org/model",)
    assert found.texts.texts == tuple(TEXTS)
    assert found.log_likelihood[0].tolist() == VALUES
    assert found.texts.id == klscale.TextSet.from_texts("x", TEXTS).id
    shown = run("import", place / "samples_wikitext.jsonl", "--force", "--model", "other").stdout
    assert "Imported 1 model into" in shown
    (tmp_path / "b.jsonl").write_text(rolling(TEXTS, [2 * value for value in VALUES]))
    run("import", "b.jsonl", "--model", "second", "--force", "--name", "samples_wikitext")
    record = json.loads(run("compare", "other", "second", "--json").stdout)[0]
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    assert record["kl"] == pytest.approx(np.var(VALUES) / (2 * n_bytes / 3 * np.log(2)))


def test_requests_with_a_context_are_responses():
    found = read_samples("\n".join(map(json.dumps, choices())).encode(), "arc", "m")
    assert found.log_likelihood[0].tolist() == [-5, -6, -7, -6, -7, -8]
    assert found.texts.texts[:3] == (" answer a", " answer b", " answer c")
    assert found.texts.document == ("0", "0", "0", "1", "1", "1")
    assert found.texts.prompts[3][0].content == "Question 1:"


def test_numbers_lists_and_filters_are_read_alike():
    as_numbers = choices()
    for sample in as_numbers:
        sample["arguments"] = [[*one.values()] for one in sample["arguments"].values()]
        sample["resps"] = [[[float(x[0][0]), False]] for x in sample["resps"]]
        sample["filtered_resps"] = [[float(x[0]), False] for x in sample["filtered_resps"]]
    other = [{**sample, "filter": "second"} for sample in as_numbers]
    first = read_samples("\n".join(map(json.dumps, choices())).encode(), "arc", "m")
    again = read_samples("\n".join(map(json.dumps, [*as_numbers, *other])).encode(), "arc", "m")
    assert (first.log_likelihood == again.log_likelihood).all()
    assert first.texts.id == again.texts.id


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.update(arguments=3), lambda it: it.pop("arguments"), lambda it: it.update(filtered_resps=["x"]),
        lambda it: it.update(filtered_resps=[[]]), lambda it: it.update(filtered_resps=["nan"]),
        lambda it: it.update(filtered_resps=["inf"]), lambda it: it.update(filtered_resps=[5.0]),
        lambda it: it.update(filtered_resps=["-1", "-2"]), lambda it: it.update(arguments={"a": {"b": ""}}),
        lambda it: it.update(arguments={"a": {"b": 1}}), lambda it: it.update(filtered_resps=[True]),
        lambda it: it.update(arguments={"a": {"b": "x", "c": {"until": []}}}), lambda it: it.update(model="other"),
        lambda it: it.update(arguments={"a": {"b": "x", "c": "y"}}),
        lambda it: it.update(filtered_resps=[[[[[["-1"]]]]]]),
    ],
)  # fmt: skip
def test_what_is_no_sample_is_an_error(change):
    lines = [json.loads(line) for line in rolling(TEXTS, VALUES).splitlines()]
    change(lines[1])
    with pytest.raises(InputError):
        read_samples("\n".join(map(json.dumps, lines)).encode(), "x", "m")


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"doc_id": 1}\n' * 3])
def test_broken_logs(data, run, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(data)
    assert "Error" in run("import", "x.jsonl", status=2).stderr


def test_what_is_exported_is_imported(run, tmp_path):
    write_texts(tmp_path / "t.jsonl", 30)
    run("score", A, B, "--texts", "t.jsonl")
    shown = run("export", "out", "--texts", "t.jsonl").stdout
    assert shown.count("samples_t.jsonl") == 2
    files = sorted((tmp_path / "out").rglob("*.jsonl"))
    sample = json.loads(files[0].read_text().splitlines()[0])
    assert sample["arguments"] == {"gen_args_0": {"arg_0": sample["doc"]["text"]}}
    assert sample["bits_per_byte"][1] == len(sample["target"].encode())
    for file in files:
        run("import", file, "--store", "second", "--force")
    first = klscale.compare([A, B], "t.jsonl", "klscale-store")
    second = klscale.compare([A, B], "t.jsonl", "second")
    assert second.pairs[A, B].whole_texts == first.pairs[A, B].whole_texts
    assert (second.vectors.log_likelihood == first.vectors.log_likelihood).all()
    assert "no vector" in run("export", "out", "none", "--texts", "t.jsonl", status=2).stderr.lower()


def test_what_cannot_be_exported(run, fourteen):
    assert "are not here" in run("export", "out", "--store", fourteen, status=2).stderr


def test_a_file_is_no_directory_to_export_to(run, tmp_path):
    write_texts(tmp_path / "t.jsonl")
    (tmp_path / "out").write_text("mine")
    run("score", "mock://1", "--texts", "t.jsonl")
    found = run("export", "out", "--texts", "t.jsonl", status=1).stderr.replace("\n", " ")
    assert "samples_t.jsonl could not be written. Not a directory. Name another place." in found
    assert (tmp_path / "out").read_text() == "mine"


def test_places_name_models():
    assert model_of("out/org__model/samples_x_2024.jsonl") == "org/model"
    assert model_of("gs://bucket/run-a/step-0100/scored_documents.parquet") == "run-a@step100"
    assert model_of("x.jsonl") == "x"


# ----------------------------------------------------------------------------------------------------- losses by byte


def scored(ref, texts, tmp_path, tokens=4):
    """Documents as levanter scores them: tokens of a few bytes, the loss of each spread over its bytes."""
    from klscale.inputs.references import ModelRef
    from klscale.sources.mock import Chain, Parameters

    log_p = Chain.of(Parameters.of(ModelRef.parse(ref))).log_p
    rows = []
    for n, text in enumerate(texts.texts):
        data = text.encode()
        each = np.array([-log_p[256 if i == 0 else data[i - 1], data[i]] for i in range(len(data))])
        begins = [*range(0, len(data), tokens)]
        ends = [min(begin + tokens, len(data)) for begin in begins]
        spread = np.concatenate([[each[b:e].mean()] * (e - b) for b, e in zip(begins, ends, strict=True)])
        rows.append(
            {
                "dataset_name": f"set/{n % 2}",
                "tags": ["set"],
                "shard_name": "docs",
                "row_index": n,
                "text": text,
                "token_ids": [*range(len(begins))],
                "per_byte_loss": spread.tolist(),
                "token_byte_starts": begins,
                "token_byte_ends": ends,
                "num_bytes": len(data),
            }
        )
    return pd.DataFrame(rows)


@pytest.fixture
def texts(tmp_path):
    return klscale.load_texts(write_texts(tmp_path / "t.jsonl", 40))


def test_tokens_of_one_byte_give_the_spans_of_a_source(texts, run, tmp_path):
    """Scored documents of a model over bytes are what the store has of it: values, spans, KL by spans."""
    for place, ref in (("a", A), ("b", B)):
        (tmp_path / place).mkdir()
        scored(ref, texts, tmp_path, tokens=1).to_parquet(tmp_path / place / "scored_documents.parquet")
        run("import", f"{place}/scored_documents.parquet", "--store", "s", "--name", "t")
    run("score", A, B, "--texts", "t.jsonl", "--store", "s2")
    here, there = klscale.compare(["a", "b"], store="s"), klscale.compare([A, B], "t.jsonl", "s2")
    np.testing.assert_allclose(here.vectors.log_likelihood, there.vectors.log_likelihood, atol=1e-9)
    mine, other = here.pairs["a", "b"], there.pairs[A, B].spans
    assert mine.estimator == "spans"
    assert (mine.spans.value, mine.spans.lost) == pytest.approx((other.value, other.lost), rel=1e-6)
    assert here.vectors.texts.domain[:2] == ("set/0", "set/1")
    run("check", "--store", "s")


def test_a_cut_inside_a_token_is_lost(texts, tmp_path):
    scored(A, texts, tmp_path, tokens=5).to_parquet(tmp_path / "x.parquet")
    found = klscale.read_log_likelihoods(tmp_path / "x.parquet", model="m")
    values = found.spans[0].kept.values
    cuts, place, lost = texts.cuts, 0, []
    for s in range(len(texts)):
        lost += [False, *(offset % 5 != 0 for offset in cuts.of(s).tolist())]
    assert np.isnan(values).tolist() == lost
    assert place == 0
    starts = cuts.spans.starts
    np.testing.assert_allclose(np.add.reduceat(np.nan_to_num(values), starts[:-1]), found.log_likelihood[0], atol=1e-4)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("per_byte_loss", [1.0]), ("per_byte_loss", None),
        ("token_byte_starts", [-1]), ("token_byte_starts", [10**9]), ("token_byte_ends", None), ("text", ""),
        ("text", None), ("per_byte_loss", "nan"), ("per_byte_loss", "negative"),
    ],
)  # fmt: skip
def test_broken_documents(texts, tmp_path, column, value):
    rows = scored(A, texts, tmp_path).to_dict("records")
    changed = copy.deepcopy(rows)
    length = len(rows[3]["per_byte_loss"])
    special = {"nan": [float("nan")] * length, "negative": [-1.0] * length}
    changed[3][column] = special.get(value, value) if isinstance(value, str) else value
    pd.DataFrame(changed).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError):
        klscale.read_log_likelihoods(tmp_path / "x.parquet", force=True)


def test_parts_of_documents_are_refused(texts, tmp_path):
    rows = scored(A, texts, tmp_path)
    rows["score_byte_start"], rows["score_byte_end"] = 0, rows["num_bytes"]
    rows.to_parquet(tmp_path / "x.parquet")
    assert len(klscale.read_log_likelihoods(tmp_path / "x.parquet").texts) == len(texts)
    with pytest.raises(InputError, match="in nats"):
        klscale.read_log_likelihoods(tmp_path / "x.parquet", negate=True)
    rows["score_byte_start"] = 2
    rows.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="only a part"):
        klscale.read_log_likelihoods(tmp_path / "x.parquet")
