"""Responses to prompts: files, templates, tokens, values against a loop that renders and slices by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import Interrupt, MakeModel
from klscale.errors import InputError
from klscale.inputs.conversations import Message, Template
from klscale.inputs.texts import TextSet, load_texts
from klscale.sources.tokens import Segment, segments_of
from klscale.sources.transformers.tokens import tokenize
from klscale.store.store import Store
from klscale.sweep.repeat_noise import noise_floor
from klscale.sweep.score import score
from klscale.vectors.vectors import Vectors

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OTHER = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "
ROWS: list[dict[str, Any]] = [
    {"prompt": "What is π?", "response": "A number, about 3.14: the ratio of a circle's length to its width."},
    {"prompt": " Sum up. ", "response": " It begins with a space and has some words more than one span holds."},
    {"prompt": "What does <|im_end|> mean?", "response": "That <|im_end|> ends a turn, and <|im_start|> begins one."},
    {"messages": [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "One and one?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "And two?"},
        {"role": "assistant", "content": "Four 🙂"},
    ]},
]  # fmt: skip
START = 256
"""The token <s>, which begins a text."""
Make = Any


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def chat(tmp_path: Path) -> TextSet:
    return load_texts(write(tmp_path / "chat.jsonl", ROWS))


@pytest.fixture
def make_chat_model(make_model: MakeModel) -> Make:
    """A tiny model whose tokenizer has the special tokens and, unless None, the template of a chat model."""
    from transformers import AutoTokenizer

    def make(name: str = "model", template: str | None = CHATML, **changes: Any) -> Path:
        model = make_model(name, **changes)
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = template
        tokenizer.save_pretrained(model)
        return model

    return make


def messages_of(row: dict[str, Any]) -> tuple[list[dict[str, str]], str]:
    if "messages" in row:
        return row["messages"][:-1], row["messages"][-1]["content"]
    return [{"role": "user", "content": row["prompt"]}], row["response"]


def by_hand(model: Path, rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """log p(response | prompt) in nats, and that of each token: every byte of what is said is a token, and only the
    marks that ChatML places are special."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    start, end = (tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>"))
    alphabet = tokenizer.backend_tokenizer.pre_tokenizer.alphabet()
    assert len(alphabet) == 256
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def said(text: str) -> list[int]:
        return [i for piece in text.split("<|im") for i in tokenizer(piece)["input_ids"]] if "<|im" not in text else [
            i for n, piece in enumerate(text.split("|")) for i in (*tokenizer("|" * (n > 0))["input_ids"],
            *tokenizer(piece)["input_ids"])]  # fmt: skip

    values, tokens = [], []
    for row in rows:
        before, response = messages_of(row)
        ids = list[int]()
        for message in before:
            ids += [start, *said(f"{message['role']}\n{message['content'].strip()}"), end, *said("\n")]
        ids += [start, *said("assistant\n")]
        first, ids = len(ids), ids + said(response)
        assert len(ids) - first == len(response.encode())
        with torch.no_grad():
            log_p = network(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(dim=-1)
        found = [log_p[n - 1, ids[n]].item() for n in range(first, len(ids))]
        values.append(sum(found))
        tokens.append(found)
    return values, tokens


# --------------------------------------------------------------------------------------------------------------- files


def test_prompt_and_response_are_messages(tmp_path: Path, chat: TextSet) -> None:
    rows = [{"messages": [*before, {"role": "assistant", "content": said}]} for before, said in map(messages_of, ROWS)]
    same = load_texts(write(tmp_path / "same.jsonl", rows))
    pd.DataFrame(rows).to_parquet(tmp_path / "same.parquet")
    kept = load_texts(write(tmp_path / "kept.jsonl", [*chat.records()]))
    assert chat.id == same.id == load_texts(str(tmp_path / "same.parquet")).id == kept.id
    assert chat.bytes.tolist() == [len(messages_of(row)[1].encode()) for row in ROWS]
    assert chat.prompts is not None
    assert chat.prompts[0] == (Message("user", "What is π?"),)
    plain = TextSet.from_texts("plain", chat.texts or ())
    assert len({chat.id, plain.id, chat.responses_alone().id}) == 3


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a", "messages": [{"role": "assistant", "content": "b"}]}, "both 'messages' and 'text'"),
        ({"text": "a", "prompt": "b", "response": "c"}, "both 'response' and 'text'"),
        ({"prompt": "a", "messages": [{"role": "assistant", "content": "b"}]}, "both 'messages' and 'prompt'"),
        ({"prompt": "a", "response": ""}, "response is empty"),
        ({"prompt": 3, "response": "b"}, "its prompt is no string"),
        ({"messages": [{"role": "asistant", "content": "b"}]}, "'asistant'. Did you mean 'assistant'?"),
        ({"messages": [{"role": "user", "content": "b"}]}, "last message is of 'user'"),
        ({"messages": [{"role": "assistant", "content": ["b"]}]}, "content of message 1 is no string"),
        ({"messages": [{"role": "assistant", "content": "b", "tool_calls": [1]}]}, "message 1 has 'tool_calls'"),
        ({"messages": "hello"}, "no list of messages"),
        ({"text": "plain"}, "a text without a prompt, unlike the first"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match="line 2") as caught:
        load_texts(write(tmp_path / "wrong.jsonl", [ROWS[0], row]))
    assert says in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- values


def test_scores_are_those_of_a_loop_by_hand(tmp_path: Path, chat: TextSet, make_chat_model: Make) -> None:
    model, store = make_chat_model(), Store(tmp_path / "store")
    (outcome,) = score([str(model)], chat, store)
    assert outcome.entry is not None, outcome.error
    scores, (wanted, tokens) = store.scores(outcome.entry), by_hand(model, ROWS)
    np.testing.assert_allclose(scores.log_likelihood, wanted, atol=1e-3)
    assert scores.n_tokens.tolist() == [len(found) + 1 for found in tokens]
    assert outcome.entry.metadata["special_token_texts"] == 0
    # every byte is a token, and all of them are scored: spans are sums between the cuts
    vectors, cuts = store.vectors(store.texts(chat.id)), chat.cuts
    assert vectors.spans is not None
    assert vectors.spans[0] is not None
    assert cuts is not None
    spans = vectors.spans[0].kept
    assert (spans.given == 0).all()
    edges = [[0, *cuts.of(s).tolist(), int(chat.bytes[s])] for s in range(len(chat))]
    by_cut = [sum(tokens[s][a:b]) for s in range(len(chat)) for a, b in zip(edges[s], edges[s][1:], strict=False)]
    np.testing.assert_allclose(spans.values, by_cut, atol=1e-3)


def test_without_special_strings_the_prompt_is_what_transformers_makes_of_it(make_chat_model: Make) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_chat_model())
    rows = [row for row in ROWS if "<|im" not in json.dumps(row)]
    pairs = [messages_of(row) for row in rows]
    prompts = tuple(tuple(Message(m["role"], m["content"]) for m in before) for before, _ in pairs)
    texts = TextSet.from_texts("chat", [said for _, said in pairs], prompts=prompts)
    found = tokenize(tokenizer, texts, template=Template("own"))
    for s, (before, _) in enumerate(pairs):
        wanted = tokenizer.apply_chat_template(before, add_generation_prompt=True)["input_ids"]
        assert found.of(s)[: found.before[s]].tolist() == wanted


def test_templates_are_never_compared_silently(tmp_path: Path, chat: TextSet, make_chat_model: Make) -> None:
    model, bare, store = make_chat_model(), make_chat_model("bare", None, seed=1), Store(tmp_path / "store")
    file = tmp_path / "other.jinja"
    file.write_text(OTHER)
    (failed,) = score([str(bare)], chat, store)
    assert failed.error is not None
    assert "--template none" in str(failed.error)
    assert "FILE" in str(failed.error)
    (own,), made = score([str(model)], chat, store), score([str(model), str(bare)], chat, store, template=str(file))
    assert own.entry is not None
    assert made[0].entry is not None
    assert made[1].entry is not None
    assert own.entry.key != made[0].entry.key
    assert made[0].entry.metadata["template"]["source"] == OTHER
    with pytest.raises(InputError, match="different conventions"):
        store.vectors(chat, [own.entry, made[1].entry]).kl()
    both = store.vectors(chat, [made[0].entry, made[1].entry])
    assert both.kl()[0, 1].value > 0
    assert both.has_sampled_tokens(str(model), str(bare))
    with pytest.raises(InputError, match="messages, and no template"):
        raise score([str(model)], chat, store, template="none")[0].error or AssertionError


def test_a_changed_template_is_another_vector(tmp_path: Path, chat: TextSet, make_chat_model: Make) -> None:
    from transformers import AutoTokenizer

    model, store = make_chat_model(), Store(tmp_path / "store")
    (first,) = score([str(model)], chat, store)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = OTHER
    tokenizer.save_pretrained(model)
    (second,) = score([str(model)], chat, store)
    (again,) = score([str(model)], chat, store)
    assert first.entry is not None
    assert second.entry is not None
    assert (second.status, again.status) == ("scored", "present")
    assert first.entry.key != second.entry.key
    assert not np.allclose(store.scores(first.entry).log_likelihood, store.scores(second.entry).log_likelihood)


def test_a_repeat_run_reads_the_prompts_too(tmp_path: Path, chat: TextSet, make_chat_model: Make) -> None:
    store, file = Store(tmp_path / "store"), tmp_path / "other.jinja"
    file.write_text(OTHER)
    (outcome,) = score([str(make_chat_model())], chat, store, template=str(file))
    assert outcome.entry is not None
    file.unlink()
    for path in (tmp_path / "store" / "noise").rglob("*.json"):
        path.unlink()
    floor = noise_floor(outcome.entry, chat, store)
    assert floor is not None
    assert floor.n_texts == len(chat)
    assert floor.value < 1e-9


def test_responses_alone_stand_behind_the_start_token(tmp_path: Path, chat: TextSet, make_chat_model: Make) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, store, alone = make_chat_model(), Store(tmp_path / "store"), chat.responses_alone()
    (outcome,) = score([str(model)], alone, store)
    assert outcome.entry is not None
    assert "no template" in outcome.entry.metadata["convention"]
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    said = (alone.texts or ())[0].encode()
    found = tokenize_bytes(model, said)
    ids = torch.tensor([[256, *found]])  # <s>
    with torch.no_grad():
        log_p = network(ids, use_cache=False).logits[0].double().log_softmax(dim=-1)
    wanted = log_p[torch.arange(len(said)), ids[0, 1:]].sum().item()
    assert store.scores(outcome.entry).log_likelihood[0] == pytest.approx(wanted, abs=1e-3)


def test_pmi_is_what_the_prompt_adds(chat: TextSet) -> None:
    given = Vectors.from_arrays([[-1.0, -2, -3, -4], [-5, -6, -7, -8]], ["a", "b"], chat)
    alone = Vectors.from_arrays([[-9.0, -9, -9, np.nan], [-8, -8, -8, -8]], ["b", "a"], chat.responses_alone())
    np.testing.assert_array_equal(given.pmi(alone), [[7, 6, 5, 4], [4, 3, 2, np.nan]])
    with pytest.raises(InputError, match="are not the responses"):
        given.pmi(given)


def var_bits(a: Any, b: Any, sizes: Sequence[int]) -> float:
    """Var(a - b) / (2 B ln 2)."""
    return float(np.var(np.subtract(a, b)) / (2 * np.mean(sizes) * np.log(2)))


def test_pmi_on_the_command_line(tmp_path: Path, make_chat_model: Make, run: Any) -> None:
    """Distances against conditional and marginal log-likelihoods that loops by hand sum."""
    models = [str(make_chat_model(name, seed=n)) for n, name in enumerate(("one", "two"))]
    write(tmp_path / "chat.jsonl", [{**row, "document": "xxyz"[n]} for n, row in enumerate(ROWS)])
    (row,) = json.loads(run("compare", *models, "--pmi", "--texts", "chat.jsonl", "--json").stdout)
    given, alone = (np.array(found) for found in zip(*(values_both_ways(Path(m), ROWS) for m in models), strict=True))
    sizes = [len(messages_of(one)[1].encode()) for one in ROWS]
    pmi = given - alone
    assert row["pmi_distance"]["value"] == pytest.approx(var_bits(*pmi, sizes), rel=1e-4)
    assert row["given"]["kl"] == pytest.approx(var_bits(*given, sizes), rel=1e-4)
    assert row["alone"]["kl"] == pytest.approx(var_bits(*alone, sizes), rel=1e-4)
    means = pmi.sum(axis=1) / (sum(sizes) * np.log(2))
    assert row["pmi_a"]["value"] == pytest.approx(means[0], rel=1e-4)
    assert row["pmi_difference"]["value"] == pytest.approx(means[1] - means[0], rel=1e-3)
    # the store's own set is that with the prompts, and `kl` reads what `compare` has scored
    assert json.loads(run("kl", "--pmi", "--json").stdout) == [row]
    shown = run("kl", "--pmi", "--out", "pmi.md").output + run("kl", "--pmi", "--out", "pmi.csv").output
    assert "no KL" in shown
    assert pd.read_csv("pmi.csv")["pmi_distance"][0] == row["pmi_distance"]["value"]
    assert "no KL" in Path("pmi.md").read_text()
    made = json.loads(run("map", "--pmi", "--json").stdout)
    places = np.array([one["pca"] for one in made["models"]])
    assert np.sum((places[0] - places[1]) ** 2) == pytest.approx(row["pmi_distance"]["value"], rel=0.2)  # N, not N - 1
    assert made["models"][0]["nearest"][0]["pmi_distance"] == row["pmi_distance"]
    assert [one["pmi"]["value"] for one in made["models"]] == [row["pmi_a"]["value"], row["pmi_b"]["value"]]
    shown = run("map", "--pmi").output + run("map", "--pmi", "--out", "map.csv").output
    assert "no KL" in shown
    assert pd.read_csv("map.csv")["pmi"].tolist() == [row["pmi_a"]["value"], row["pmi_b"]["value"]]
    run("map", "--pmi", "--method", "pca", "--out", "map.svg")
    assert "PMI vectors (no KL)" in Path("map.svg").read_text()
    assert "is not kept" in run("map", "--pmi", "--anew", status=2).output
    for more in (["--fail-above", "1"], ["--precision", "10%"], ["--limit", "2"]):
        assert "Leave" in run("compare", *models, "--pmi", *more, status=2).output
    run("compare", *models, "--pmi", "--out", "pmi.png", status=2)


def test_pmi_needs_prompts_and_both_vectors(tmp_path: Path, make_chat_model: Make, run: Any) -> None:
    plain, chat = write(tmp_path / "plain.jsonl", [{"text": "a"}, {"text": "b"}]), write(tmp_path / "c.jsonl", ROWS)
    assert "has no prompts" in run("compare", "mock://1", "mock://2", "--pmi", "--texts", plain, status=2).output
    models = [str(make_chat_model(name, seed=n)) for n, name in enumerate(("one", "two"))]
    run("score", *models, "--texts", chat)
    assert "compare REF REF... --pmi" in run("kl", "--pmi", status=2).output


def values_both_ways(model: Path, rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """log p(response | prompt) and log p(response) in nats."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    alone = []
    for row in rows:
        ids = [START, *by_bytes(model, messages_of(row)[1])]
        with torch.no_grad():
            log_p = network(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(dim=-1)
        alone.append(sum(log_p[n - 1, ids[n]].item() for n in range(1, len(ids))))
    return by_hand(model, rows)[0], alone


def by_bytes(model: Path, said: str) -> list[int]:
    """A token a byte, also of what looks like a special token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return [int(i) for i in tokenizer(said, split_special_tokens=True)["input_ids"]]


def test_templates_on_the_command_line(tmp_path: Path, make_chat_model: Make, run: Any) -> None:
    """`own` by default; `none` puts the response right behind the prompt; a file is one template for all models."""
    model, bare = make_chat_model(), make_chat_model("bare", None, seed=1)
    chat, file = write(tmp_path / "chat.jsonl", ROWS[:3]), tmp_path / "other.jinja"
    file.write_text(OTHER)
    assert "--template none" in run("score", bare, "--texts", chat, status=2).output
    for template in ("none", file):
        run("score", model, bare, "--texts", chat, "--template", template)
    run("score", model, "--texts", chat, "--template", "own")
    texts, store = load_texts(chat), Store("klscale-store")
    entries = {(one.ref.name, one.metadata["convention"]): one for one in store.entries(texts.id)}
    assert len(entries) == 5
    (unrendered,) = [one for (name, how), one in entries.items() if name == str(bare) and "no template" in how]
    wanted = [log_p_behind(bare, by_bytes(bare, row["prompt"]), by_bytes(bare, row["response"])) for row in ROWS[:3]]
    np.testing.assert_allclose(store.scores(unrendered).log_likelihood, wanted, atol=1e-3)
    (rendered,) = [one for (name, how), one in entries.items() if name == str(bare) and "no template" not in how]
    behind = [f"[user] {row['prompt']}\n[assistant] " for row in ROWS[:3]]
    wanted = [
        log_p_behind(bare, by_bytes(bare, prompt), by_bytes(bare, row["response"]))
        for prompt, row in zip(behind, ROWS[:3], strict=True)
    ]
    np.testing.assert_allclose(store.scores(rendered).log_likelihood, wanted, atol=1e-3)
    assert "no template" in run("score", model, "--texts", chat, "--template", "missing.jinja", status=2).output


def log_p_behind(model: Path, prompt: list[int], response: list[int]) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    network, ids = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), prompt + response
    with torch.no_grad():
        log_p = network(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(dim=-1)
    return sum(log_p[n - 1, ids[n]].item() for n in range(len(prompt), len(ids)))


def test_interrupted_conversations_resume(tmp_path: Path, make_chat_model: Make, run: Any) -> None:
    """Ctrl-C half way keeps finished texts; the command scores the rest, to the values of an undisturbed run."""
    model, chat = str(make_chat_model()), write(tmp_path / "chat.jsonl", ROWS * 4)
    texts, store = load_texts(chat), Store("klscale-store")
    with pytest.raises(KeyboardInterrupt):
        score([model], texts, store, batch_tokens=100, progress=Interrupt(float(texts.bytes.sum()) / 2e6))
    (partial,) = store.files.list("partial", texts.id)
    done = store.read_partial(texts.id, partial.rsplit("/", 1)[-1])
    assert 0 < len(done) < len(texts)
    run("score", model, "--texts", chat)
    run("score", model, "--texts", chat, "--store", "whole")
    (resumed,), (undisturbed,) = (place.entries(texts.id) for place in (store, Store("whole")))
    assert resumed.key == undisturbed.key
    found, wanted = store.scores(resumed), Store("whole").scores(undisturbed)
    np.testing.assert_allclose(found.log_likelihood, wanted.log_likelihood, atol=1e-4)
    kept = np.searchsorted(found.text, done.text)
    np.testing.assert_array_equal(found.log_likelihood[kept], done.log_likelihood)
    assert store.files.list("partial", texts.id) == []


def tokenize_bytes(model: Path, said: bytes) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(model)(said.decode())["input_ids"])


def test_other_sources_and_plain_texts_refuse(tmp_path: Path, chat: TextSet, texts: TextSet) -> None:
    (outcome,) = score(["mock://1"], chat, Store(tmp_path / "store"))
    assert outcome.error is not None
    assert "no responses to prompts" in str(outcome.error)
    with pytest.raises(InputError, match="has no prompts"):
        score(["mock://1"], texts, Store(tmp_path / "store"), template="own")
    with pytest.raises(InputError, match="no template"):
        Template.of(str(tmp_path / "missing.jinja"))


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}", "{{ messages.foo.bar }}", "{{ raise_exception('no') }}"]
)
def test_a_template_that_fails_is_named_with_the_text(
    tmp_path: Path, chat: TextSet, make_chat_model: Make, template: str
) -> None:
    (outcome,) = score([str(make_chat_model("model", template))], chat, Store(tmp_path / "store"))
    assert outcome.error is not None
    assert "text 0 of chat" in str(outcome.error)


def test_todays_date_is_the_same_every_day(chat: TextSet, make_chat_model: Make) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_chat_model("model", "{{ strftime_now('%d %b %Y') }}"))
    found = tokenize(tokenizer, chat, template=Template("own"))
    assert tokenizer.decode(found.of(0)[: found.before[0]]) == "01 Jan 2025"


def test_windows_behind_a_prompt_score_each_token_once() -> None:
    for first in (1, 3, 7, 8, 9, 20, 29):
        parts = segments_of(0, 30, 8, first)
        assert [n for part in parts for n in range(part.first, part.stop)] == [*range(first, 30)]
        assert all(part.length == 8 and part.start < part.first for part in parts)
    assert segments_of(0, 8, 8, 5) == [Segment(0, 0, 8, 5)]


def test_the_window_is_of_prompt_and_response(tmp_path: Path, chat: TextSet, make_chat_model: Make) -> None:
    model, store = make_chat_model("short", max_position_embeddings=64), Store(tmp_path / "store")
    assert chat.bytes.max() < 100
    (outcome,) = score([str(model)], chat, store)
    assert outcome.error is not None
    assert "longer than the window" in str(outcome.error)
    (outcome,) = score([str(model)], chat, store, long_texts="window")
    assert outcome.entry is not None
    assert outcome.entry.metadata["convention"].endswith("windows")
    assert len(store.scores(outcome.entry)) == len(chat)
