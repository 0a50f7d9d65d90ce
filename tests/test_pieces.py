"""Long texts in pieces: the numbers are those of one pass, and nothing grows faster than the text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import cache_utils

import klscale
from conftest import ARCHITECTURES
from klscale.sources.tokens import Tokens
from klscale.sources.transformers import engine as engine_module
from klscale.sources.transformers import pieces
from klscale.sources.transformers.prefixes import holds_all
from klscale.vectors.draws import Sampling, TokenDraws
from klscale.vectors.scores import DRAWS, SAMPLED, TOP, Scores
from test_prefixes import engine_of, plain, read, responses
from test_prefixes import passes as passes

OTHER_STATE = [name for name in ARCHITECTURES if any(kind in name for kind in ("recurrent", "mamba", "hybrid"))]
DECODERS = [name for name in ARCHITECTURES if not name.startswith("bert")]


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 32 tokens, and for every model, also those whose attention needs none."""
    for module in (engine_module, pieces):
        monkeypatch.setattr(module, "PIECE", 32)
    monkeypatch.setattr(engine_module, "longest_without_matrix", lambda _: 64)


def some_tokens(lengths, seed=0):
    generator = np.random.default_rng(seed)
    return Tokens.from_rows([generator.integers(1, 250, size=n).astype(np.int32) for n in lengths])


@pytest.mark.parametrize("architecture", DECODERS)
def test_numbers_are_those_of_one_pass(architecture, make_model, small_pieces, passes):
    tokens = some_tokens([140, 70, 66, 20])
    changes = {"sliding_window": 16} if architecture.startswith("gemma2") else {}
    engine = engine_of(make_model("model", architecture, **changes), batch_tokens=140)
    values = read(engine, tokens)
    in_pieces = architecture not in OTHER_STATE
    assert (engine.reads_pieces, (1, 140) not in passes) == (in_pieces, in_pieces)
    np.testing.assert_allclose(values, plain(engine.model, tokens), atol=1e-5, rtol=0)


def test_layers_and_sampled_tokens_are_those_of_one_pass(make_model, small_pieces, monkeypatch):
    """The ids are drawn in one pass, and read in pieces; one batch has two rows, and one text is two windows."""
    directory = make_model("model", "gemma3", max_position_embeddings=128)
    tokens, draws = some_tokens([200, 90, 80]), TokenDraws("0" * 12)

    def scored():
        engine = engine_of(directory, batch_tokens=180, layers=True)
        engine.sampling = Sampling("0123456789ab", range(3), draws)
        blocks = engine.score(tokens, range(3), long_texts="window")
        found = Scores.concatenate([*blocks]).at(np.arange(3))
        return engine.reads_pieces, {name: getattr(part, "values", part) for name, part in found.parts.items()}

    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "longest_without_matrix", lambda _: math.inf)
        whole, expected = scored()
    in_pieces, found = scored()
    assert (whole, in_pieces) == (None, True)
    assert {*found} == {*expected} >= {DRAWS.name, SAMPLED.name, TOP.name}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-4, rtol=0)


def test_behind_a_long_prompt(make_model, small_pieces, passes):
    """Prompts of 90 to 104 tokens, and responses of 70 to 99: both are read in pieces."""
    generator = np.random.default_rng(0)
    short = responses(n_prompts=2, n_each=3)
    rows = [np.concatenate([short.of(s), generator.integers(1, 250, size=65)]).astype(np.int32) for s in range(6)]
    longer = Tokens.from_rows(rows)
    tokens = Tokens(longer.ids, longer.starts, 0.0, prompt=short.prompt)
    engine = engine_of(make_model("model", "gemma3"), batch_tokens=600)
    values = read(engine, tokens)
    assert engine.shared_tokens == 2 * np.unique(tokens.before).sum()
    with torch.inference_mode():
        np.testing.assert_allclose(values, plain(engine.model, tokens), atol=1e-4, rtol=0)
    assert max(columns for _, columns in passes[10:]) == 32


def test_pieces_that_change_the_numbers_are_not_used(make_model, small_pieces, monkeypatch):
    """A cache that forgets: windows of half the size."""
    whole = pieces.empty_cache

    def forgets(config):
        cache = whole(config)
        for layer in cache.layers:
            if layer.is_sliding:
                layer.sliding_window //= 2
        return cache

    monkeypatch.setattr(engine_module, "empty_cache", forgets)
    tokens = some_tokens([140])
    engine = engine_of(make_model("model", "mistral, sliding window"))
    values = read(engine, tokens)
    assert engine.reads_pieces is False
    np.testing.assert_allclose(values, plain(engine.model, tokens), atol=1e-5, rtol=0)


def test_what_a_change_costs_is_read_in_one_pass(make_model, texts, tmp_path, small_pieces, monkeypatch):
    """Blocks before the change are skipped, so that each must have read the whole text."""
    pytest.importorskip("bitsandbytes", reason="needs the package bitsandbytes: pip install klscale[quant]")
    directory = make_model("model", "gemma3", hidden_size=64)

    def costs(name):
        (kind,) = klscale.sensitivity(str(directory), "nf4", texts, tmp_path / name, n_texts=6, by="layer").found.kinds
        return [part.kl.value for part in kind.parts]

    found = costs("pieces")
    monkeypatch.setattr(engine_module, "longest_without_matrix", lambda _: math.inf)
    assert found == pytest.approx(costs("whole"))


@pytest.mark.parametrize(
    ("architecture", "changes", "longest"),
    [
        ("llama, grouped queries", {}, math.inf),
        ("gpt-neox", {}, math.inf),
        ("gemma3", {}, 2 * pieces.PIECE),
        ("gemma3", {"sliding_window": 4096}, 4096),
        ("mistral, sliding window", {"sliding_window": 3000}, 3000),
        ("gemma2, soft cap", {"sliding_window": 4096}, 2 * pieces.PIECE),
        ("bloom", {}, 2 * pieces.PIECE),
    ],
)
def test_pieces_are_for_attention_that_holds_a_matrix(architecture, changes, longest, make_model):
    engine = engine_of(make_model("model", architecture, **changes))
    assert pieces.longest_without_matrix(engine.model.config) == longest


def test_layers_that_share_the_keys_of_another_hold_none():
    """As in Gemma 3n and 4. A state of another kind, or one of fewer tokens, is something else."""
    layers = [cache_utils.DynamicLayer(), cache_utils.DynamicSlidingWindowLayer(sliding_window=3)]
    for layer in layers:
        layer.update(torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2))
    assert holds_all([*layers, cache_utils.DummyLayer()], 5)
    assert not holds_all(layers, 6)
    assert not holds_all([*layers, cache_utils.LinearAttentionLayer()], 5)
    assert not holds_all([cache_utils.DummyLayer()], 5)
