"""Several batches at once on a CPU: the values, the memory, and what forbids it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from klscale.errors import KlscaleError
from klscale.inputs.references import ModelRef
from klscale.sources.transformers.engine import Engine
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load
from klscale.sources.transformers.tokens import tokenize
from klscale.vectors.draws import Sampling, TokenDraws

BUDGET = 300
"""Tokens of a batch: the texts of the tests are a dozen batches."""


@pytest.fixture
def threads():
    """Sets how many threads torch has."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def told(monkeypatch):
    """Sets how many threads torch says that it has. It has one: beside other tests two would wait for each other."""
    numbers = {}
    here = threading.get_ident
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers.get(here(), 1))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: numbers.__setitem__(here(), n))
    return torch.set_num_threads


@pytest.fixture
def passes(monkeypatch):
    """(columns, rows, thread, torch's threads there) of each batch that is scored."""
    seen, whole = [], Engine._final_states

    def watch(self, packed, cache):
        seen.append((*packed.inputs.shape, threading.current_thread().name, torch.get_num_threads()))
        return whole(self, packed, cache)

    monkeypatch.setattr(Engine, "_final_states", watch)
    return seen


def made(directory, **options):
    return Engine(load(resolve(ModelRef(str(directory)))), device="cpu", **{"batch_tokens": BUDGET} | options)


def blocks(engine, texts):
    return [*engine.score(tokenize(engine.loaded.tokenizer, texts), range(len(texts)))]


def by_text(found):
    return np.concatenate([block.log_likelihood for block in found])[
        np.concatenate([block.text for block in found]).argsort()
    ]


@pytest.mark.parametrize("architecture", ["gpt-neox", "gemma3"])
def test_values_and_order_do_not_depend_on_the_threads(architecture, make_model, texts, threads, passes):
    directory = make_model(architecture, architecture=architecture)
    found = {}
    for n in (1, 2):
        threads(n)
        passes.clear()
        found[n] = blocks(made(directory), texts)
        where = {name for *_, name, _ in passes}
        assert len(passes) > 6
        assert where == {"MainThread"} if n == 1 else "MainThread" not in where
        assert {n_threads for *_, n_threads in passes} == {1}
        assert torch.get_num_threads() == n
    assert [block.text.tolist() for block in found[2]] == [block.text.tolist() for block in found[1]]
    assert (by_text(found[2]) == by_text(found[1])).all()


def test_more_threads_than_batches_at_once_are_shared_among_them(make_model, texts, told, passes):
    told(9)
    blocks(made(make_model()), texts)
    assert {n_threads for *_, n_threads in passes} == {2}


def test_threads_that_begin_later_have_all_threads_of_torch(make_model, texts, threads):
    threads(3)
    blocks(made(make_model()), texts)
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [3]


def test_the_same_tokens_are_drawn(make_model, texts, told):
    directory, found = make_model(), []
    for n in (1, 3):
        told(n)
        engine = made(directory)
        engine.sampling = Sampling(texts.id, range(0, len(texts), 2), TokenDraws("tokens", 2))
        blocks(engine, texts)
        found.append({text: drawn.ids.tolist() for text, drawn in engine.sampling.draws.of.items()})
    assert len(found[0]) == (len(texts) + 1) // 2
    assert found[0] == found[1]


@pytest.mark.parametrize("what", ["layers", "a module that keeps a state", "own logits"])
def test_what_is_read_one_batch_at_a_time(what, make_model, texts, told, passes, monkeypatch):
    told(2)
    engine = made(make_model(), layers=what == "layers")
    if what == "a module that keeps a state":
        module = next(iter(engine.model.gpt_neox.layers))
        module.register_forward_hook(lambda module, _, output: setattr(module, "last", output))
    if what == "own logits":
        monkeypatch.setattr(engine, "_candidate_heads", list)
    assert len(np.concatenate([block.text for block in blocks(engine, texts)])) == len(texts)
    assert {name for *_, name, _ in passes} <= {"MainThread"}
    assert engine.own_logits == (what == "own logits")


def test_a_text_beyond_the_budget_is_read_alone(make_model, texts, told, passes):
    told(2)
    longest = int(texts.bytes.max())
    blocks(made(make_model(), batch_tokens=longest - 10), texts)
    alone = [(rows, columns) for rows, columns, name, n in passes if (name, n) == ("MainThread", 2)]
    assert alone
    assert all(rows == 1 and columns > longest - 10 for rows, columns in alone)
    assert len(alone) < len(passes)


def test_out_of_memory_beside_other_batches_is_tried_alone(make_model, texts, told, passes, monkeypatch):
    """None is halved."""
    directory, whole = make_model(), Engine._score_batch

    def small(self, tokens, batch):
        if threading.current_thread() is not threading.main_thread():
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, tokens, batch)

    expected = by_text(blocks(made(directory), texts))
    monkeypatch.setattr(Engine, "_score_batch", small)
    told(2)
    engine = made(directory)
    assert by_text(blocks(engine, texts)) == pytest.approx(expected, abs=1e-3)
    assert engine.batch_tokens == BUDGET
    assert "MainThread" in {name for *_, name, _ in passes}


def test_a_pass_that_fails_in_a_thread_is_an_error_that_names_the_model(make_model, texts, told, monkeypatch):
    def fails(self, packed, cache):
        raise RuntimeError("mat1 and mat2")

    told(2)
    monkeypatch.setattr(Engine, "_final_states", fails)
    with pytest.raises(KlscaleError, match="the forward pass failed") as error:
        blocks(made(make_model()), texts)
    assert "model" in str(error.value)
    assert "RuntimeError: mat1 and mat2" in str(error.value)


def test_who_stops_asking_ends_the_passes(make_model, texts, told, passes):
    told(2)
    engine = made(make_model(), batch_tokens=1)
    asked = engine.score(tokenize(engine.loaded.tokenizer, texts), range(len(texts)))
    next(asked)
    asked.close()
    assert len(passes) < len(texts) - 10
