"""Beginnings that texts share are read once: what is grouped, what is read, and that the numbers are the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from klscale.inputs.references import ModelRef
from klscale.sources.tokens import Segment, Tokens
from klscale.sources.transformers import engine as engine_module
from klscale.sources.transformers import prefixes
from klscale.sources.transformers.engine import Engine
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load
from klscale.sources.transformers.prefixes import Group, Prefix, groups_of
from klscale.vectors.draws import Sampling, TokenDraws
from klscale.vectors.scores import DRAWS, SAMPLED, TOP, Scores


def responses(n_prompts=3, n_each=6, prompt=90, seed=0):
    """Tokens of responses of 5 to 40 tokens to a few prompts, in random order."""
    generator = np.random.default_rng(seed)
    prompts = [generator.integers(1, 250, size=prompt + 7 * n) for n in range(n_prompts)]
    rows = [
        np.concatenate([prompts[n % n_prompts], generator.integers(1, 250, size=generator.integers(5, 40))])
        for n in generator.permutation(n_prompts * n_each)
    ]
    prompt_of = np.array([next(len(p) for p in prompts if (row[: len(p)] == p).all()) for row in rows])
    tokens = Tokens.from_rows([row.astype(np.int32) for row in rows])
    return Tokens(tokens.ids, tokens.starts, 0.0, prompt=prompt_of)


@torch.no_grad()
def plain(model, tokens):
    """A loop over whole texts, in float64 from the logits on."""
    found = []
    for s in range(len(tokens.lengths)):
        ids, first = torch.from_numpy(tokens.of(s).astype(np.int64)), int(tokens.before[s])
        logits = model(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(1)
        found.append(sum(logits[p - 1, ids[p]].item() for p in range(first, len(ids))))
    return np.array(found)


def read(engine, tokens):
    values = np.full(len(tokens.lengths), np.nan)
    for block in engine.score(tokens, range(len(values))):
        values[block.text] = block.log_likelihood
    return values


def engine_of(directory, **options):
    return Engine(load(resolve(ModelRef(str(directory)))), device="cpu", **options)


@pytest.fixture
def passes(monkeypatch):
    """(rows, columns) of each forward pass."""
    seen, whole = [], Engine._forward

    def watch(self, inputs, cache=None):
        seen.append(tuple(inputs.shape))
        return whole(self, inputs, cache)

    monkeypatch.setattr(Engine, "_forward", watch)
    return seen


def n_read(passes):
    return sum(rows * columns for rows, columns in passes)


# ---------------------------------------------------------------------------------------------------------- grouping


def test_runs_spare_the_most(monkeypatch):
    """By trying all ways to cut; runs of more than five texts are not looked for."""
    monkeypatch.setattr(prefixes, "LONGEST_RUN", 5)
    generator = np.random.default_rng(0)
    for _ in range(60):
        shared, cost = generator.integers(0, 6, size=8), int(generator.integers(0, 8))

        def spared(cuts, shared=shared, cost=cost):
            ends = [0, *(n + 1 for n, cut in enumerate(cuts) if cut), 9]
            sizes = [(stop - start, shared[start : stop - 1]) for start, stop in itertools.pairwise(ends)]
            if any(size > 5 for size, _ in sizes):
                return -1
            return sum((size - 1) * min(inside) - cost for size, inside in sizes if size > 1)

        runs, found = prefixes.runs_that_spare_most(shared, cost)
        assert found == max(map(spared, itertools.product([False, True], repeat=8)))
        assert found == sum((stop - start - 1) * n - cost for start, stop, n in runs)
        assert all(n == min(shared[start : stop - 1]) > 0 for start, stop, n in runs)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(runs))
    assert prefixes.runs_that_spare_most(np.empty(0, dtype=np.int64), 0) == ([], 0)


@pytest.mark.parametrize("within", [False, True])
def test_groups_begin_alike(within):
    """Texts over two letters, some equal, some the beginning of another; a text keeps a token of its own, and behind a
    prompt the last token of that."""
    generator = np.random.default_rng(0)
    grouped = 0
    for _ in range(30):
        rows = [generator.integers(1, 3, size=generator.integers(2, 9)).astype(np.int32) for _ in range(12)]
        first = [int(generator.integers(1, len(row))) for row in rows]
        parts = [Segment(s, 0, len(row), first[s]) for s, row in enumerate(rows)]
        groups = groups_of(Tokens.from_rows(rows), parts, 2, within_prompts=within)
        assert sorted(part.text for group in groups for part in group.parts) == list(range(12))
        for group in groups:
            assert len({tuple(rows[part.text][: group.n]) for part in group.parts}) == 1 or not group.n
            for part in group.parts:
                assert part.behind == group.n < (first[part.text] if within else part.length)
            grouped += group.n > 0
    assert grouped > 10


def test_texts_that_share_little_are_read_whole():
    """They all begin with one token; windows of a long text have no beginning."""
    generator = np.random.default_rng(0)
    rows = [np.append(0, generator.integers(1, 250, size=40)).astype(np.int32) for _ in range(30)]
    tokens = Tokens.from_rows(rows)
    (group,) = groups_of(tokens, [Segment(s, 0, 41, 1) for s in range(30)], 10)
    assert (group.n, len(group.parts)) == (0, 30)
    twice = Tokens.from_rows([rows[0], rows[0]])
    (group,) = groups_of(twice, [Segment(s, 8, 41, 20) for s in range(2)], 10)
    assert group.n == 0


# ----------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "architecture",
    ["gpt-neox", "llama, grouped queries", "gemma3", "mpt, alibi", "deepseek v3, latent attention", "opt, projected"],
)
def test_each_prompt_is_read_once(architecture, make_model, passes):
    """18 responses to 3 prompts of 90 to 104 tokens, six times the window of Gemma's local layers."""
    tokens = responses()
    engine = engine_of(make_model("model", architecture), batch_tokens=500)
    values = read(engine, tokens)
    prompts, lengths = np.unique(tokens.before), tokens.lengths
    longest = lengths.max()  # read whole and behind its prompt, to see that both agree
    checked = 2 * longest + 3 * 19
    assert n_read(passes) <= 1.1 * ((lengths - tokens.before).sum() + prompts.sum()) + checked
    assert n_read(passes) < 0.6 * lengths.sum()
    assert engine.shared_tokens == 5 * prompts.sum()
    with torch.inference_mode():
        np.testing.assert_allclose(values, plain(engine.model, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ["recurrent gemma", "jamba, hybrid with experts", "mamba", "rwkv, recurrent"])
def test_a_model_with_another_state_than_keys_and_values_reads_texts_whole(architecture, make_model):
    tokens = responses()
    engine = engine_of(make_model("model", architecture), batch_tokens=500)
    values = read(engine, tokens)
    assert engine.shared_tokens == 0
    np.testing.assert_allclose(values, plain(engine.model, tokens), atol=1e-4, rtol=0)


def test_a_cache_that_changes_the_numbers_is_not_used(make_model, monkeypatch):
    """Keys moved by a little."""
    whole = Prefix.cache

    def moved(self, n_rows):
        for layer in self._layers:
            layer.keys = layer.keys * 1.01
        return whole(self, n_rows)

    monkeypatch.setattr(Prefix, "cache", moved)
    tokens = responses()
    engine = engine_of(make_model(), batch_tokens=500)
    values = read(engine, tokens)
    assert engine.shared_tokens == 0
    np.testing.assert_allclose(values, plain(engine.model, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("budget", [1, 300, 5000])
def test_plain_texts_with_one_beginning(budget, make_model):
    """Tokens of the beginning are scored too; some texts are equal, and one is the beginning of others."""
    tokens = responses()
    tokens = Tokens.from_rows([tokens.of(s) for s in range(18)] + [tokens.of(3), tokens.of(3)[:60]])
    engine = engine_of(make_model(), batch_tokens=budget)
    values = read(engine, tokens)
    assert engine.shared_tokens > 1000
    np.testing.assert_allclose(values, plain(engine.model, tokens), atol=1e-4, rtol=0)


def test_layers_and_sampled_tokens_are_those_of_whole_texts(make_model, monkeypatch):
    """The ids are drawn from whole texts, and read behind prompts."""
    directory, tokens, draws = make_model(), responses(), TokenDraws("0" * 12)

    def scored(layers):
        engine = engine_of(directory, batch_tokens=500, layers=layers)
        engine.sampling = Sampling("0123456789ab", range(0, 18, 2), draws)
        found = Scores.concatenate([*engine.score(tokens, range(18))]).at(np.arange(18))
        return engine.shared_tokens, {name: getattr(part, "values", part) for name, part in found.parts.items()}

    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "groups_of", lambda _, parts, *__, **___: [Group(0, parts)])
        (none, expected), (_, without) = scored(True), scored(False)
    for layers, whole in ((True, expected), (False, without)):
        shared, found = scored(layers)
        assert (none, shared) == (0, 5 * np.unique(tokens.before - layers).sum())
        assert {*found} == {*whole} >= {DRAWS.name, SAMPLED.name, TOP.name}
        for name, values in whole.items():
            np.testing.assert_allclose(found[name], values, atol=1e-4, rtol=0)


def test_a_batch_behind_a_beginning_keeps_its_budget(make_model, passes):
    """The beginning takes memory in every row."""
    tokens = responses(prompt=150)
    engine = engine_of(make_model(), batch_tokens=600)
    read(engine, tokens)
    assert engine.shared_tokens
    for rows, columns in passes[5:]:
        assert rows * columns + (rows > 1) * rows * 150 <= 600


def test_out_of_memory_behind_a_beginning_loses_nothing(make_model, monkeypatch):
    whole = Engine._hidden_states

    def small_memory(self, inputs, cache=None):
        if inputs.numel() > 130:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, inputs, cache)

    tokens = responses(prompt=60)
    engine = engine_of(make_model(), batch_tokens=5000)
    monkeypatch.setattr(Engine, "_hidden_states", small_memory)
    values = read(engine, tokens)
    assert (engine.shared_tokens > 0, engine.batch_tokens < 1000) == (True, True)
    np.testing.assert_allclose(values, plain(engine.model, tokens), atol=1e-4, rtol=0)
