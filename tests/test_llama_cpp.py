"""llama.cpp as a source: against transformers on the same file, the forward passes, tokens, what is refused."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from conftest import write_texts
from klscale.errors import InputError, KlscaleError, UnavailableError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import load_texts
from klscale.sources import llama_cpp as source
from klscale.sources.source import SAMPLED_TOKENS, ReaderOptions, Sources
from klscale.store.store import Store
from klscale.sweep.score import score
from klscale.vectors.scores import SAMPLED, SPANS, TOP, Scores

needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python")
NEAR = 0.2
"""Nats by which attention in float16 moves a log-likelihood at most here; a token out of place moves it by several."""


@pytest.fixture
def texts(tmp_path):
    return load_texts(write_texts(tmp_path / "texts.jsonl", 12))


@pytest.fixture
def file(shared):
    return shared / "cases" / "gguf-rope-scaling" / "linear4.gguf"


def opened(ref, options=ReaderOptions()):
    sources = Sources()
    return sources.open(sources.pin(ModelRef.parse(ref)), options)


def read(reader, texts):
    return Scores.concatenate([*reader.score(texts, np.arange(len(texts)))])


@needs_llama_cpp
def test_it_agrees_with_transformers_on_a_float32_file(file, texts):
    pytest.importorskip("gguf")
    ours = read(opened(f"llamacpp://{file}?cache=f32"), texts)
    theirs = read(opened(f"{file.parent}:{file.name}"), texts)
    np.testing.assert_array_equal(ours.n_tokens, theirs.n_tokens)
    np.testing.assert_allclose(ours.log_likelihood, theirs.log_likelihood, atol=1e-3)
    np.testing.assert_allclose(ours.parts[SPANS.name].values, theirs.parts[SPANS.name].values, atol=1e-3)


@needs_llama_cpp
def test_the_length_of_a_forward_pass_changes_nothing_but_rounding(file, texts):
    whole = read(opened(f"llamacpp://{file}"), texts)
    pieces = read(opened(f"llamacpp://{file}", ReaderOptions(batch_tokens=5)), texts)
    np.testing.assert_allclose(whole.log_likelihood, pieces.log_likelihood, atol=NEAR)


@needs_llama_cpp
def test_windows_score_each_token_once_with_the_longest_context(file, texts):
    reader = opened(f"llamacpp://{file}?cache=f32", ReaderOptions(long_texts="window", batch_tokens=7))
    tokens, text = reader.tokens(texts), 3
    ids, window = tokens.of(text), 16
    reader.window = window
    [found] = reader.score(texts, [text])

    def log_p(start, stop, first):
        """Of tokens first..stop, given those from start on."""
        rows = np.concatenate([rows.copy() for _, rows in reader.model.logits(ids[start:stop], window, 64)])
        rows = rows.astype(np.float64)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return sum(rows[n - 1 - start, ids[n]] for n in range(first, stop))

    expected, scored = log_p(0, window, 1), window
    while scored < len(ids):
        stop = min(scored + window // 2, len(ids))
        expected += log_p(stop - window, stop, scored)
        scored = stop
    assert found.log_likelihood[0] == pytest.approx(expected, abs=1e-3)


@needs_llama_cpp
def test_sampled_tokens_are_those_of_the_tokenizer(file, texts, tmp_path):
    pytest.importorskip("gguf")
    store = Store(tmp_path / "store")
    refs = [f"{file.parent}:{file.name}", f"llamacpp://{file}?cache=f32", f"llamacpp://{file}?cache=f16"]
    entries = [outcome.entry for outcome in score(refs, texts, store)]
    assert len({entry.key for entry in entries}) == 3
    found = [store.scores(entry) for entry in entries]
    first, *others = (scores.parts[SAMPLED.name].values for scores in found)
    np.testing.assert_allclose(others[0], first, atol=1e-3)
    np.testing.assert_array_equal(found[1].parts[TOP.name].values, found[0].parts[TOP.name].values)
    assert 1e-3 < np.abs(others[1] - first).max() < NEAR
    assert store.noise_floor(texts.id, entries[1].key).value < 1e-6


@needs_llama_cpp
def test_drawn_tokens_go_with_the_probabilities_of_the_model(file, texts, tmp_path):
    store = Store(tmp_path / "store")
    reader = opened(f"llamacpp://{file}", ReaderOptions(parts=frozenset({SAMPLED_TOKENS}), batch_tokens=9))
    [outcome] = score([f"llamacpp://{file}"], texts, store, batch_tokens=9)
    tokens, sampled = reader.tokens(texts), store.scores(outcome.entry).parts[SAMPLED.name]
    drawn = store.draws(texts.id, tokens.key).of[4].ids
    logits = np.concatenate([rows.copy() for _, rows in reader.model.logits(tokens.of(4), 64, 64)]).astype(np.float64)
    expected = np.take_along_axis(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), drawn, axis=1)
    of_text = sampled.values[np.cumsum(sampled.lengths)[3] : np.cumsum(sampled.lengths)[4]]
    np.testing.assert_allclose(of_text, expected.ravel(), atol=NEAR)


@needs_llama_cpp
def test_a_file_that_is_damaged_is_an_error(file, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(file.read_bytes()[:4000])
    with pytest.raises(KlscaleError, match=r"damaged\.gguf: llama\.cpp cannot read this file"):
        opened(f"llamacpp://{damaged}")


def test_what_cannot_be_meant_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no option 'cash'"):
        Sources().pin(ModelRef.parse("llamacpp://a.gguf?cash=f32"))
    with pytest.raises(InputError, match="cache=f33 is not known"):
        Sources().pin(ModelRef.parse("llamacpp://a.gguf?cache=f33"))
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"klscale\[llama-cpp\]"):
        Sources().pin(ModelRef.parse("llamacpp://a.gguf"))
    monkeypatch.setattr(source, "_library", lambda ref: None)
    with pytest.raises(UnavailableError, match="no file a-00001-of-00002"):
        Sources().pin(ModelRef.parse("llamacpp://a-00001-of-00002.gguf"))
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\3\4")
    with pytest.raises(InputError, match="no GGUF file"):
        Sources().pin(ModelRef.parse(f"llamacpp://{other}"))
