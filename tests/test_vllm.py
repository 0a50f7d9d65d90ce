"""vLLM as a source, over a stand-in that has its types: against transformers, windows, drawn tokens, what is
refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import MakeModel, write_texts
from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet, load_texts
from klscale.progress import Progress
from klscale.sources.source import SAMPLED_TOKENS, ReaderOptions, Sources
from klscale.sources.vllm import Address, VllmReader
from klscale.store.store import Store
from klscale.sweep.score import score
from klscale.vectors.scores import DRAWS, SAMPLED, SPANS, TOP, Scores


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, under the name vllm."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "stand_ins"))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    import vllm

    yield vllm
    del sys.modules["vllm"]


@pytest.fixture
def texts(tmp_path: Path) -> TextSet:
    return load_texts(write_texts(tmp_path / "texts.jsonl", 8))


@pytest.fixture
def model(make_model: MakeModel) -> Path:
    return make_model("model", bos=True)


def opened(ref: str, options: ReaderOptions = ReaderOptions()) -> VllmReader:
    sources = Sources()
    reader = sources.open(sources.pin(ModelRef.parse(ref)), options)
    assert isinstance(reader, VllmReader)
    return reader


def stored(refs: list[str], texts: TextSet, store: Store, **how: Any) -> list[Scores]:
    outcomes = score(refs, texts, store, **how)
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [store.scores(outcome.entry) for outcome in outcomes if outcome.entry is not None]


class Notes(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_it_gives_the_numbers_of_transformers_drawn_tokens_included(engine, model, texts, tmp_path):
    store, notes = Store(tmp_path / "store"), Notes()
    theirs, ours = stored([str(model), f"vllm://{model}"], texts, store, progress=notes)
    np.testing.assert_allclose(ours.log_likelihood, theirs.log_likelihood, atol=1e-3)
    np.testing.assert_array_equal(ours.n_tokens, theirs.n_tokens)
    np.testing.assert_array_equal(ours.parts[DRAWS.name], theirs.parts[DRAWS.name])
    np.testing.assert_array_equal(ours.parts[TOP.name].values, theirs.parts[TOP.name].values)
    for part in (SPANS, SAMPLED):
        np.testing.assert_allclose(ours.parts[part.name].values, theirs.parts[part.name].values, atol=1e-3)
    entries = store.entries(texts.id)
    assert len({entry.key for entry in entries}) == 2
    runs = opened(f"vllm://{model}").repeat_runs(texts, np.arange(len(texts)))
    for how in ({}, {"batches": True}, {"order": True}):
        np.testing.assert_allclose(runs.read(**how).log_likelihood, ours.log_likelihood, atol=1e-3)
    assert sum("has not run on a GPU yet" in note for note in notes.said) == 1
    how = engine.asked[0]
    assert (how["trust_remote_code"], how["enable_prefix_caching"]) == (False, False)
    assert (how["load_format"], how["logprobs_mode"]) == ("safetensors", "raw_logprobs")


def test_nothing_is_drawn_by_an_engine_that_cannot(engine, model, texts, tmp_path):
    notes = Notes()
    [found] = stored([f"vllm://{model}"], texts, Store(tmp_path / "store"), progress=notes)
    assert DRAWS.name not in found.parts
    assert any("nothing is drawn for its tokenizer yet" in note for note in notes.said)


def test_an_engine_without_chosen_ids_scores_all_the_same(engine, model, texts, tmp_path, monkeypatch):
    store, notes = Store(tmp_path / "store"), Notes()
    monkeypatch.setattr(engine, "faults", {"no chosen ids"})
    theirs, ours = stored([str(model), f"vllm://{model}"], texts, store, progress=notes)
    np.testing.assert_allclose(ours.log_likelihood, theirs.log_likelihood, atol=1e-3)
    assert DRAWS.name not in ours.parts
    assert any("No KL by sampled tokens" in note for note in notes.said)


@pytest.mark.slow
def test_windows_and_ids_that_the_vocabulary_lacks(engine, model, texts, tmp_path):
    """By hand: each token with the longest context that a window leaves it."""
    import torch
    from transformers import AutoModelForCausalLM

    window, text = 16, 3
    reader = opened(f"vllm://{model}?max_model_len={window + 1}", ReaderOptions(long_texts="window"))
    assert reader.window == window
    ids = reader.tokens(texts).of(text).astype(np.int64)
    assert len(ids) > 2 * window
    [found] = reader.score(texts, [text])
    plain = AutoModelForCausalLM.from_pretrained(model)

    def log_p(start: int, stop: int, first: int) -> float:
        with torch.inference_mode():
            rows = torch.log_softmax(plain(torch.tensor(ids[None, start:stop])).logits[0].double(), dim=-1)
        return float(sum(rows[n - 1 - start, ids[n]] for n in range(first, stop)))

    expected, scored = log_p(0, window, 1), window
    while scored < len(ids):
        stop = min(scored + window // 2, len(ids))
        expected += log_p(stop - window, stop, scored)
        scored = stop
    assert found.log_likelihood[0] == pytest.approx(expected, abs=1e-3)
    with pytest.raises(InputError, match="longer than the window"):
        [*opened(f"vllm://{model}?max_model_len=17").score(texts, [text])]

    store = Store(tmp_path / "store")
    theirs, ours = stored([str(model), f"vllm://{model}?max_model_len={window + 1}"], texts, store, long_texts="window")
    assert ours.parts[SAMPLED.name].lengths.tolist() == theirs.parts[SAMPLED.name].lengths.tolist()
    reader._n_vocabulary = 40  # as if it were a model with fewer embeddings
    tokens = reader.tokens(texts)
    drawn = np.array([[3, 50], [41, 2]])
    part = opened(f"vllm://{model}", ReaderOptions(parts=frozenset({SAMPLED_TOKENS})))
    asked = reader._drawn({0: drawn}, _segment(0, 3), tokens)
    assert asked.tolist() == [[3, -1], [-1, 2]]
    [read] = part._generate([_asked(tokens.of(0)[:3], asked)])
    assert np.isnan(read.drawn).tolist() == [[False, True], [True, False]]


def _segment(text: int, stop: int) -> Any:
    from klscale.sources.tokens import Segment

    return Segment(text, 0, stop, 1)


def _asked(ids: Any, drawn: Any) -> Any:
    from klscale.sources.vllm import _Asked

    return _Asked(_segment(0, len(ids)), ids, drawn)


def test_responses_are_scored_behind_their_prompts(engine, model, tmp_path):
    path = tmp_path / "chat.jsonl"
    rows = [{"prompt": f"What is {n}?", "response": f"It is {n}, a number."} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store, chat = Store(tmp_path / "store"), load_texts(path)
    theirs, ours = stored([str(model), f"vllm://{model}"], chat, store, template="none")
    np.testing.assert_allclose(ours.log_likelihood, theirs.log_likelihood, atol=1e-3)
    np.testing.assert_allclose(ours.parts[SAMPLED.name].values, theirs.parts[SAMPLED.name].values, atol=1e-3)


def test_what_is_wrong_is_named(engine, model, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "faults", {"other tokens"})
    with pytest.raises(KlscaleError, match="other tokens than those"):
        [*opened(f"vllm://{model}").score(texts, [0])]
    monkeypatch.setattr(engine, "faults", {"no memory"})
    with pytest.raises(KlscaleError, match="cannot be loaded by vLLM") as caught:
        opened(f"vllm://{model}")
    assert "No available memory" in caught.value.why
    with pytest.raises(InputError, match="--device cuda: vLLM chooses"):
        score([f"vllm://{model}"], texts, Store(tmp_path / "store"), device="cuda")


def test_addresses_and_a_missing_package(model, texts, tmp_path):
    found = Address.of(
        ModelRef.parse("vllm://EleutherAI/pythia-410m@step1000?kv_cache_dtype=fp8&tensor_parallel_size=2")
    )
    assert (found.model.name, found.model.revision) == ("EleutherAI/pythia-410m", "step1000")
    assert (found.kv_cache_dtype, found.tensor_parallel_size, found.max_model_len) == ("fp8", 2, 0)
    for ref, words in (
        ("vllm://a/b?max_len=3", "no option 'max_len'"),
        ("vllm://a/b?max_model_len=many", "no whole number"),
        ("vllm://a/b:c.gguf", "whole models"),
    ):
        with pytest.raises(InputError, match=words):
            Address.of(ModelRef.parse(ref))
    if "vllm" not in sys.modules:
        (outcome,) = score([f"vllm://{model}"], texts, Store(tmp_path / "store"))
        assert "klscale[vllm]" in str(outcome.error)
