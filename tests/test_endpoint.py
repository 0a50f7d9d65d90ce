"""Servers as a source: their numbers, faults found before anything is scored, tokens, retries, resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from conftest import write_texts
from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ModelRef
from klscale.inputs.suites import read_suite
from klscale.inputs.texts import load_texts
from klscale.sources import endpoint
from klscale.sources.endpoint import Address, place_tokens
from klscale.sources.token_ids import TokenIds
from klscale.store.store import Store
from klscale.sweep.score import score
from klscale.vectors.scores import DRAWS, GIVEN, SAMPLED, SPANS, TOP
from served import serve

ODD = ["Grüße aus Zürich, 東京 und 🙂! " * 5, "The end: é", "a"]


@pytest.fixture
def texts(tmp_path):
    path = write_texts(tmp_path / "texts.jsonl", 30)
    path.write_text(path.read_text() + "".join(json.dumps({"text": text}) + "\n" for text in ODD))
    return load_texts(path)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(endpoint, "BACK_OFF_S", 0.01)
    monkeypatch.delenv(endpoint.TOKEN, raising=False)


def scored(ref, texts, store):
    (outcome,) = score([ref], texts, store)
    if outcome.error is not None:
        raise outcome.error
    return store.scores(outcome.entry)


@pytest.mark.parametrize("parts", ["", "\N{REPLACEMENT CHARACTER}"])
@pytest.mark.parametrize("shape", ["listed", "hidden"])
def test_a_server_gives_the_numbers_of_its_model(shape, parts, texts, store):
    with serve(shape=shape, parts=parts) as served:
        found = scored(served.ref, texts, store)
        assert 1 < served.most <= endpoint.CONCURRENT
    exact = scored("mock://7?tokens=pairs", texts, store)
    np.testing.assert_array_equal(found.text, np.arange(len(texts)))
    np.testing.assert_allclose(found.log_likelihood, exact.log_likelihood, atol=1e-9)
    np.testing.assert_array_equal(found.n_tokens, exact.n_tokens)
    np.testing.assert_array_equal(found.parts[GIVEN.name], exact.parts[GIVEN.name])
    ascii_texts = np.arange(30)
    np.testing.assert_array_equal(found.parts[SPANS.name][ascii_texts].values,
                                  exact.parts[SPANS.name][ascii_texts].values)  # fmt: skip


def test_a_first_token_that_is_not_scored_is_given(texts, store):
    with serve(shape="unscored") as served:
        found = scored(served.ref, texts, store)
        first = [served.log_p[256 + 18, served.tokenize(text)[0]] for text in texts.texts]
    exact = scored("mock://7?tokens=pairs", texts, store)
    np.testing.assert_allclose(found.log_likelihood, exact.log_likelihood - first, atol=1e-9)
    assert (found.parts[GIVEN.name] > 0).all()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no log-probabilities", "no log-probabilities of the prompt"),
        ("no echo", "`echo` is ignored"),
        ("shifted", "the echo is shifted"),
        ("temperature", "change with the temperature"),
        ("top-p", "change with the temperature or top-p"),
        ("first token", "nothing stands before it"),
        ("restless", "two answers to the same text"),
        ("top few", "no log-probability for some tokens"),
        ("filler", "a filler, such as -9999"),
        ("floor", "it knows only the most probable ones"),
        ("cut", "the text is cut short"),
        ("not a distribution", "above 1"),
        ("other text", "not those of the text"),
        ("not JSON", "not JSON"),
    ],
)
def test_a_fault_is_named_and_nothing_is_scored(fault, words, texts, store):
    with serve(fault=fault) as served:
        (outcome,) = score([served.ref], texts, store)
        assert outcome.error is not None
        assert words in str(outcome.error), outcome.error
        assert "nothing is scored" in str(outcome.error)
        assert not set(texts.texts) & set(served.asked)
    assert not store.entries(texts.id)


def test_a_text_that_is_cut_later_is_an_error(texts, store, monkeypatch):
    monkeypatch.setattr(endpoint.Server, "test", lambda self: None)
    with serve(fault="cut") as served:
        (outcome,) = score([served.ref], texts, store)
    assert "cannot be scored" in str(outcome.error)
    assert not store.entries(texts.id)


def test_a_busy_server_is_asked_again_and_a_dead_one_is_not_there(texts, store):
    with serve(busy=3) as served:
        scored(served.ref, texts, store)
    (outcome,) = score([served.ref], texts, store, rescore=True)
    assert outcome.error is not None
    (outcome,) = score([served.ref], texts, store)  # the vector of before
    assert outcome.status == "present"
    with serve(busy=10**6) as served:
        (outcome,) = score([served.ref], texts, store)
        assert f"({endpoint.TRIES} tries)" in str(outcome.error)
        assert "HTTP 503: busy" in str(outcome.error)


def test_the_token_is_sent_and_never_shown_or_kept(texts, store, monkeypatch, tmp_path):
    secret = "s3cret-token-of-a-user"
    monkeypatch.setenv(endpoint.TOKEN, secret)
    with serve(token=secret) as served:
        scored(served.ref, texts, store)
        served.token = "another"
        (outcome,) = score([served.ref], texts, store, rescore=True)
        assert "HTTP 401: The token Bearer ... is not known." in str(outcome.error)
        assert secret not in str(outcome.error) + repr(outcome.error)
    kept = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(kept) > 3
    assert not any(secret.encode() in path.read_bytes() or secret in path.name for path in kept)


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("http://me:pass@host/v1#m", "holds no user name"),
        ("http://host/v1?key=pass#m", "no option 'key'"),
        ("http://:80/v1#m", "no address of a server"),
        ("http://host:x/v1#m", "no address of a server"),
    ],
)
def test_what_is_no_address_is_refused_without_its_secrets(ref, words):
    with pytest.raises(InputError, match=words) as caught:
        Address.of(ModelRef.parse(ref))
    assert "pass" not in str(caught.value).replace("password", "")


def test_a_model_that_is_not_served_is_named(texts, store):
    with serve() as served:
        for asked in (f"{served.url}#modle", served.url):
            (outcome,) = score([asked], texts, store)
            assert isinstance(outcome.error, InputError)
            assert f"{served.url}#model" in str(outcome.error)


def test_a_long_text_is_an_error_or_left_out(texts, store):
    with serve(window=120) as served:  # the first of ODD is longer
        (outcome,) = score([served.ref], texts, store)
        assert isinstance(outcome.error, InputError)
        assert "maximum context length" in str(outcome.error)
        (outcome,) = score([served.ref], texts, store, long_texts="skip")
        assert outcome.entry is not None
        assert outcome.entry.metadata["skipped"] == [30]
        (outcome,) = score([served.ref], texts, store, long_texts="window", rescore=True)
        assert isinstance(outcome.error, InputError)
        assert "reads no windows (--long-texts window)" in str(outcome.error)


def test_a_label_is_another_vector_and_a_suite_may_name_a_server(texts, store, tmp_path):
    with serve() as served:
        suite = tmp_path / "suite.yaml"
        suite.write_text(
            f"models:\n  - name: {served.ref}\n    family: mine\n  - name: {served.url}?label={{seed}}#model\n"
            "    seed: [1, 2]\n"
        )
        outcomes = score(read_suite(suite).models, texts, store)
    assert [outcome.status for outcome in outcomes] == ["scored"] * 3
    entries = [outcome.entry for outcome in outcomes]
    assert len({entry.key for entry in entries}) == 3
    assert entries[0].metadata["attributes"]["family"] == "mine"


def test_tokens_find_their_places():
    assert place_tokens("ab cd", ["<s>", "ab", " cd", "x"]) == [(0, 0), (0, 2), (2, 5)]
    assert place_tokens("ab cd", [" ab", "cd"]) == [(0, 2), (2, 5)]
    assert place_tokens("aéb", ["a", "", "", "b"]) == [(0, 1), (1, 2), (1, 2), (2, 3)]
    assert place_tokens("a�b", ["a", "�", "b"]) == [(0, 1), (1, 2), (2, 3)]
    assert place_tokens("abc", ["a", "b"]) is None
    assert place_tokens("abc", ["a", "c"]) is None
    assert place_tokens("日é", ["日", "�", "�"]) == [(0, 1), (1, 2), (1, 2)]


def test_tokens_of_vllm_find_their_places():
    """As its server 0.32 answers: a character comes with its last part, but for that of the first token."""
    tokens = ["�", "", "n", "é", "", "", " 👩", "", "\u200d", "", "", "👩", "", "\u200d", "", "", "👧", " end", " more"]
    places = [(0, 1), (0, 1), (1, 2), (2, 3), (3, 5), (3, 5), (3, 5), (5, 6), (5, 6), (6, 7), (6, 7), (6, 7), (7, 8)]
    places += [(7, 8), (8, 9), (8, 9), (8, 9), (9, 13)]
    assert place_tokens("Üné 👩\u200d👩\u200d👧 end", tokens) == places
    places = [(0, 1), (0, 1), (0, 1), (1, 2), (2, 3), (2, 3), (3, 4)]
    assert place_tokens("🙂🙂🙂!", ["�", "", "", "🙂", "", "🙂", "!"]) == places


class Recorded:
    """What vLLM's server 0.32 answered for SmolLM2, without the keys that are null."""

    own = ({"logprob": -15.137284278869629, "rank": 15720, "decoded_token": " father"},
           {"logprob": -10.732477188110352, "rank": 1051, "decoded_token": " two"})  # fmt: skip
    best = ({"logprob": -0.6618991494178772, "rank": 1, "decoded_token": "-"},
            {"logprob": -0.975249707698822, "rank": 1, "decoded_token": " of"})  # fmt: skip

    def post(self, path, body):
        if path == "/tokenize":
            return {"count": 3, "max_model_len": 1024, "tokens": [3970, 4083, 827], "token_strs": None}
        assert (path, body["prompt"]) == ("completions", [3970, 4083, 827])
        told = [None, {"4083": self.own[0], "29": self.best[0]}, {"827": self.own[1], "282": self.best[1]}]
        choice = {"index": 0, "text": ",", "logprobs": None, "finish_reason": "length", "prompt_logprobs": told}
        return {"object": "text_completion", "model": "smol", "choices": [choice], "usage": {"prompt_tokens": 3}}


def test_token_ids_of_vllm():
    by_ids = TokenIds(Recorded(), "smol")
    told = by_ids.read([3970, 4083, 827])
    assert by_ids.longest == 1023
    assert told.log_p.tolist() == [-15.137284278869629, -10.732477188110352]
    assert told.words == [" father", " two"]
    assert told.top.tolist() == [29, 282]


@pytest.mark.slow
def test_what_a_killed_sweep_had_is_not_asked_for_again(texts, store, tmp_path, monkeypatch):
    program = (
        "import sys, time\n"
        "from klscale.sweep import score as sweep\n"
        "from klscale.sources import endpoint\n"
        "from klscale.inputs.texts import load_texts\n"
        "from klscale.store.store import Store\n"
        "sweep.KEEP_EVERY_S = 0.0\n"
        "whole = endpoint.Server.echo\n"
        "def slow(self, text):\n    time.sleep(0.5)\n    return whole(self, text)\n"
        "endpoint.Server.echo = slow\n"
        "sweep.score([sys.argv[1]], load_texts(sys.argv[2]), Store(sys.argv[3]))\n"
    )
    path = str(tmp_path / "store")
    with serve() as served:
        child = subprocess.Popen([sys.executable, "-c", program, served.ref, str(tmp_path / "texts.jsonl"), path])
        end = time.monotonic() + 300
        while time.monotonic() < end and not [*(tmp_path / "store" / "partial").rglob("*.parquet")]:
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert not store.entries(texts.id)
        served.asked.clear()
        monkeypatch.setattr("klscale.sweep.score.keep_noise_floor", lambda *_, **__: None)
        found = scored(served.ref, texts, store)
        asked = set(served.asked)
    exact = scored("mock://7?tokens=pairs", texts, store)
    np.testing.assert_allclose(found.log_likelihood, exact.log_likelihood, atol=1e-9)
    assert max(texts.texts, key=lambda text: len(text.encode())) not in asked  # the longest come first


def test_an_interrupted_sweep_goes_on_where_it_was(texts, store, monkeypatch):
    monkeypatch.setattr("klscale.sweep.score.KEEP_EVERY_S", 0.0)
    whole, n = endpoint.EndpointReader.read, [0]

    def read(self, *arguments):
        for block in whole(self, *arguments):
            yield block
            n[0] += 1
            if n[0] == 1:
                raise KlscaleError("The cable is out.")

    monkeypatch.setattr(endpoint.EndpointReader, "read", read)
    with serve() as served:
        (outcome,) = score([served.ref], texts, store)
        assert "The cable" in str(outcome.error)
        done = set(store.read_partial(texts.id, store.files.list("partial", texts.id)[0].rsplit("/", 1)[-1]).text)
        assert 0 < len(done) < len(texts)
        monkeypatch.setattr("klscale.sweep.score.keep_noise_floor", lambda *a, **k: None)
        served.asked.clear()
        scored(served.ref, texts, store)
        asked = [text for text in served.asked if text in set(texts.texts)]
    assert sorted(asked) == sorted(texts.texts[n] for n in range(len(texts)) if n not in done)


def test_a_server_that_takes_token_ids_gives_drawn_tokens(texts, store):
    with serve(by_ids=True) as served:
        nothing = scored(served.ref, texts, store)  # a server cannot draw
        exact = scored("mock://7?tokens=pairs", texts, store)
        (outcome,) = score([served.ref], texts, store, rescore=True)
        found = store.scores(outcome.entry)
    assert DRAWS.name not in nothing.parts
    np.testing.assert_allclose(found.log_likelihood, exact.log_likelihood, atol=1e-9)
    np.testing.assert_allclose(nothing.log_likelihood, exact.log_likelihood, atol=1e-9)
    np.testing.assert_array_equal(found.parts[GIVEN.name], exact.parts[GIVEN.name])
    np.testing.assert_array_equal(found.parts[DRAWS.name], exact.parts[DRAWS.name])
    np.testing.assert_array_equal(found.parts[TOP.name].values, exact.parts[TOP.name].values)
    np.testing.assert_allclose(found.parts[SAMPLED.name].values, exact.parts[SAMPLED.name].values, atol=1e-6)
    ascii_texts = np.arange(30)
    np.testing.assert_allclose(found.parts[SPANS.name][ascii_texts].values,
                               exact.parts[SPANS.name][ascii_texts].values, atol=1e-6)  # fmt: skip


def test_windows_of_a_server_score_each_token_once(texts, store):
    """A token of the mock depends on the one before it alone: windows change nothing."""
    exact = scored("mock://7?tokens=pairs", texts, store)
    with serve(by_ids=True, window=110) as served:
        (outcome,) = score([served.ref], texts, store, long_texts="window")
        (skipping,) = score([served.ref], texts, store, long_texts="skip", rescore=True)
    found = store.scores(outcome.entry)
    assert exact.n_tokens.max() > 165  # three windows or more
    assert "windows" in outcome.entry.metadata["convention"]
    np.testing.assert_array_equal(found.n_tokens, exact.n_tokens)
    np.testing.assert_allclose(found.log_likelihood, exact.log_likelihood, atol=1e-9)
    np.testing.assert_allclose(found.parts[SAMPLED.name].values, exact.parts[SAMPLED.name].values, atol=1e-6)
    assert set(skipping.entry.metadata["skipped"]) == set(np.flatnonzero(exact.n_tokens > 110).tolist())


def test_responses_of_a_server_are_scored_behind_their_prompts(store, tmp_path):
    rows = [{"prompt": f"And {n}?", "response": f"the {n} é."} for n in range(3)]
    talk = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "on the sea")]
    more = {"messages": [{"role": role, "content": said} for role, said in talk]}
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] ")

    def texts_of(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_texts(path)

    few, chat = texts_of("few.jsonl", rows), texts_of("chat.jsonl", [*rows, more])

    with serve(by_ids=True) as served:

        def by_hand(before, said):
            ids = [*before, *served.tokenize(said)]
            return sum(served.log_p[ids[n - 1], ids[n]] for n in range(len(before), len(ids)))

        def found(texts, **how):
            (outcome,) = score([served.ref], texts, store, **how)
            return str(outcome.error) if outcome.error else store.scores(outcome.entry).log_likelihood

        start = len(served.words)
        prompts = [f"[user] {row['prompt']}\n[assistant] " for row in rows]
        prompts.append("[user] a\n[assistant] b\n[user] c\n[assistant] ")
        expected = [by_hand(served.tokenize(p), said) for p, said in zip(prompts, chat.texts, strict=True)]
        np.testing.assert_allclose(found(chat, template=str(template)), expected, atol=1e-9)
        expected = [by_hand([start, *served.tokenize(row["prompt"])], row["response"]) for row in rows]
        np.testing.assert_allclose(found(few, template="none"), expected, atol=1e-9)
        expected = [by_hand([start], row["response"]) for row in rows]
        np.testing.assert_allclose(found(few.responses_alone()), expected, atol=1e-9)
        assert "a server does not tell what chat template" in found(chat)
        template.write_text("{{ bos_token }}{{ messages[0].content }}")
        assert "asks for bos_token" in found(chat, template=str(template))
    with serve() as served:
        assert "no responses to prompts, since it takes no token ids" in found(few, template="none")


def test_a_server_is_not_asked_to_split_special_tokens(texts, store):
    """Its vectors would say that it had."""
    with serve() as served:
        (outcome,) = score([served.ref], texts, store, split_special_tokens=True)
    assert "Leave out --split-special-tokens" in str(outcome.error)
    assert not store.entries(texts.id)


def test_answers_about_other_tokens_are_refused(texts, store):
    with serve(by_ids=True, fault="short") as served:
        (outcome,) = score([served.ref], texts, store, long_texts="window")
        assert "log-probabilities of other tokens" in str(outcome.error)
