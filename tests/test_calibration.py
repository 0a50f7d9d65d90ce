"""Exact KL against enumeration of all texts and plain float64 loops; drawn texts against enumerated probabilities."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PhiConfig

from conftest import byte_tokenizer
from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.show.calibration import calibration_record, print_calibration
from klscale.sources.source import ReaderOptions, Sources, require_one_tokenizer
from klscale.sources.tokens import Tokens, decoded_bytes
from klscale.sources.transformers import engine as engine_module
from klscale.sources.transformers import next_token
from klscale.sources.transformers.engine import Engine, KeptStates
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import LoadedModel, load
from klscale.sources.transformers.next_token import (
    compare_next_tokens,
    sample_texts,
)
from klscale.sources.transformers.tokens import tokenize
from klscale.store.store import Store
from klscale.studies import calibration, cards
from klscale.studies.calibration import calibrate
from klscale.sweep.score import score
from klscale.vectors.vectors import Vectors

LETTERS, LENGTH = 5, 5
"""Of the toy models: every text is `a` and four more of five letters, 625 in all."""


def letter_tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: n for n, letter in enumerate("abcde")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[])))


def toy(seed, dtype=torch.float64):
    """A random transformer of five letters, whose next letter depends on all before it."""
    config = GPTNeoXConfig(
        vocab_size=LETTERS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    return engine_of(model.to(dtype), f"toy{seed}", letter_tokenizer())


def engine_of(model, name, tokenizer):
    return Engine(LoadedModel(ModelRef(name), model.eval(), tokenizer, 512), device="cpu")


def as_tokens(rows):
    lengths = [len(row) for row in rows]
    return Tokens(np.concatenate(rows).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]), 0.0)


EVERY_TEXT = np.array([(0, *rest) for rest in itertools.product(range(LETTERS), repeat=LENGTH - 1)])


def log_probabilities(engine, ids):
    """Log-softmax (n - 1, V) in float64 of the model's own full logits of one text."""
    with torch.no_grad():
        logits = engine.model(torch.tensor(ids, dtype=torch.long)[None], use_cache=False).logits[0, :-1]
    return logits.double().log_softmax(dim=-1).numpy()


def enumerated(engine):
    """Log-probability of each of all texts, given its first letter."""
    return np.array([log_probabilities(engine, row)[np.arange(LENGTH - 1), row[1:]].sum() for row in EVERY_TEXT])


def naive_kl(a, b, ids):
    """Sum over the positions of a text of KL(p || q), as sum p log(p / q) over the whole vocabulary."""
    log_p, log_q = log_probabilities(a, ids), log_probabilities(b, ids)
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def naive_top(a, b, ids):
    """(2, positions): the largest probability of a, and whether b has the same most probable token."""
    log_p, log_q = log_probabilities(a, ids), log_probabilities(b, ids)
    return np.stack([np.exp(log_p).max(axis=1), log_p.argmax(axis=1) == log_q.argmax(axis=1)])


def per_text(found, values):
    return np.bincount(found.text, weights=values)


@pytest.fixture(scope="module")
def pair():
    return toy(0), toy(1)


# -------------------------------------------------------------------------------------------------------- next tokens


@pytest.mark.slow
def test_the_chain_rule_over_all_texts(pair):
    """sum over texts of p log(p / q) is the mean under p of the summed next-token KL; likewise the other way round."""
    log_p, log_q = map(enumerated, pair)
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)
    found = compare_next_tokens(*pair, as_tokens(EVERY_TEXT), range(len(EVERY_TEXT)))
    for log_own, log_other, exact in ((log_p, log_q, found.forward), (log_q, log_p, found.backward)):
        over_texts = (np.exp(log_own) * (log_own - log_other)).sum()
        assert 0.05 < over_texts
        assert (np.exp(log_own) * per_text(found, exact)).sum() == pytest.approx(over_texts, abs=1e-10)
    np.testing.assert_allclose([per_text(found, row) for row in found.log_likelihood], [log_p, log_q], atol=1e-10)


def test_each_text_equals_a_plain_loop_in_float64(pair):
    found = compare_next_tokens(*pair, as_tokens(EVERY_TEXT), [3, 600, 77])
    assert found.text.tolist() == [3] * 4 + [77] * 4 + [600] * 4
    for s in (3, 77, 600):
        for values, (p, q) in ((found.forward, pair), (found.backward, pair[::-1])):
            assert values[found.text == s].sum() == pytest.approx(naive_kl(p, q, EVERY_TEXT[s]), abs=1e-10)
        tops = [log_probabilities(engine, EVERY_TEXT[s]).argmax(axis=1) for engine in pair]
        assert (found.same_top[found.text == s] == (tops[0] == tops[1])).all()
        np.testing.assert_allclose(found.top[found.text == s], naive_top(*pair, EVERY_TEXT[s])[0], rtol=1e-9)


@pytest.fixture
def engines(make_model):
    def make(*options):
        refs = [ModelRef(str(make_model(f"m{n}", **{"seed": n, **each}))) for n, each in enumerate(options)]
        return [Engine(load(resolve(ref), "cpu"), device="cpu", batch_tokens=700) for ref in refs]

    return make


@pytest.mark.parametrize(
    ("architecture", "other"),
    [("gpt-neox", "llama, tied"), ("gemma2, soft cap", "cohere, logit scale"), ("phi, head bias", "gpt2, tied")],
)
@pytest.mark.parametrize("readable", [True, False])
def test_real_architectures_equal_a_plain_loop(architecture, other, readable, engines, texts, monkeypatch):
    """Padded batches, heads with caps, scales and biases, or the models' own logits: 1e-6 of the KL of each text."""
    if not readable:
        monkeypatch.setattr("klscale.sources.transformers.engine.candidate_heads", lambda _: iter(()))
    a, b = engines({"architecture": architecture, "bos": True}, {"architecture": other, "bos": True})
    tokens = tokenize(a.loaded.tokenizer, texts)
    found = compare_next_tokens(a, b, tokens, range(12))
    assert a.own_logits == b.own_logits == (not readable)
    for s in range(12):
        assert found.forward[found.text == s].sum() == pytest.approx(naive_kl(a, b, tokens.of(s)), rel=1e-6)
        assert found.backward[found.text == s].sum() == pytest.approx(naive_kl(b, a, tokens.of(s)), rel=1e-6)


def test_tiles_of_any_size_give_the_same(engines, texts, monkeypatch):
    a, b = engines({}, {})
    tokens = tokenize(a.loaded.tokenizer, texts)
    whole = compare_next_tokens(a, b, tokens, range(10))
    monkeypatch.setattr(next_token, "TILE", 7 * 300)
    monkeypatch.setattr(next_token, "PIECE", 3 * 300)
    parts = compare_next_tokens(a, b, tokens, range(10))
    np.testing.assert_allclose(parts.forward, whole.forward, rtol=1e-6)
    assert (parts.text == whole.text).all()


@pytest.mark.parametrize(("moved", "within"), [(1e-4, 1e-3), (1e-5, 1e-2)])
def test_near_models_keep_their_digits(moved, within, engines, texts):
    """Weights in float32 moved by a 10,000th and a 100,000th, where KL is near 2e-8 and 2e-10 nats a token: held to
    the same weights in float64; and no token's KL is negative."""
    a, b = engines({}, {})
    b.model.load_state_dict(a.model.state_dict())
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        for parameter in b.model.parameters():
            parameter += moved * parameter.std().nan_to_num(0) * torch.randn_like(parameter)
    tokens = tokenize(a.loaded.tokenizer, texts)
    found = compare_next_tokens(a, b, tokens, range(10))
    assert (found.forward >= 0).all()
    for engine in (a, b):
        engine.model.double()
    for s in range(10):
        log_p, log_q = log_probabilities(a, tokens.of(s)), log_probabilities(b, tokens.of(s))
        second_order = float((np.exp(log_p) * (log_q - log_p) ** 2).sum() / 2)  # what is beyond is a 10,000th of it
        assert second_order < 1e-5
        assert found.forward[found.text == s].sum() == pytest.approx(second_order, rel=within)


def rows_of(a, b):
    """What is found of a pair of logits (t, V)."""
    one, other = (next_token._Distribution.of(logits, logits.shape[1]) for logits in (a, b))
    return next_token._compare(one, other, torch.zeros(len(a), dtype=torch.int64))


def test_far_models_do_not_overflow():
    """Logits thousands apart: p underflows where q does not, and the other way round."""
    p, q = torch.tensor([[0.0, -3000.0, -5.0]]).double(), torch.tensor([[-2000.0, 0.0, -3.0]]).double()
    rows = rows_of(p, q)[:, 0].tolist()
    log_p, log_q = (x[0] - np.logaddexp.reduce(x[0]) for x in (p.numpy(), q.numpy()))
    assert rows[0] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(), rel=1e-12)
    assert rows[1] == pytest.approx((np.exp(log_q) * (log_q - log_p)).sum(), rel=1e-12)


def test_an_id_that_both_models_mask_does_not_matter():
    masked = torch.tensor([[1.0, -math.inf, 0.0], [1.0, 2.0, 0.0]]).double()
    plain = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double()
    other = torch.tensor([[0.0, -math.inf, 0.0], [0.0, 0.0, 0.0]]).double()
    rows = rows_of(masked, other)
    expected = rows_of(plain, torch.zeros_like(plain))
    np.testing.assert_allclose(rows[:2, 0], expected[:2, 0])


def padded(engine, extra, bias):
    """The same model with more ids, of a logit near `bias`."""
    small = engine.model
    model = AutoModelForCausalLM.from_config(PhiConfig(**{**small.config.to_dict(), "vocab_size": 300 + extra}))
    state = model.state_dict()
    with torch.no_grad():
        for name, values in small.state_dict().items():
            state[name][tuple(map(slice, values.shape))] = values
        state["lm_head.bias"][300:] = bias
    model.load_state_dict(state)
    return engine_of(model, "padded", engine.loaded.tokenizer)


def test_vocabularies_padded_to_different_sizes(engines, texts):
    """Both are renormalised on the ids that they share; what that leaves out is told, and too much is an error."""
    a, b = engines({"architecture": "phi, head bias"}, {"architecture": "phi, head bias"})
    wide = padded(b, 20, -15.0)
    tokens = tokenize(a.loaded.tokenizer, texts)
    found = compare_next_tokens(a, wide, tokens, range(5))
    left_out = 0.0
    for s in range(5):
        log_p, log_q = log_probabilities(a, tokens.of(s)), log_probabilities(wide, tokens.of(s))
        left_out = max(left_out, np.exp(log_q[:, 300:]).sum(axis=1).max())
        log_q = log_q[:, :300] - np.logaddexp.reduce(log_q[:, :300], axis=1, keepdims=True)
        forward = float((np.exp(log_p) * (log_p - log_q)).sum())
        assert found.forward[found.text == s].sum() == pytest.approx(forward, rel=1e-6)
    assert 1e-9 < left_out < 1e-3
    assert found.left_out == pytest.approx(left_out, rel=1e-4)
    with pytest.raises(KlscaleError, match=r"m0 and padded do not have the same vocabulary"):
        compare_next_tokens(a, padded(b, 20, 0.0), tokens, range(5))


def test_weights_that_are_not_finite_are_told(engines, texts):
    a, b = engines({}, {})
    tokens = tokenize(a.loaded.tokenizer, texts)
    compare_next_tokens(a, b, tokens, [0])
    with torch.no_grad():
        b.head.weight[3] = math.nan
    with pytest.raises(KlscaleError, match=r"next-token KL of .*m0 and .*m1 is not finite in text 4"):
        compare_next_tokens(a, b, tokens, [4])


def test_different_tokenizers_are_refused(engines):
    sources = Sources()
    refs = [engine.loaded.ref for engine in engines({}, {"bos": True})]
    a, b = (sources.open(sources.pin(ref), ReaderOptions("cpu")) for ref in refs)
    with pytest.raises(InputError, match=r"m0 and .*m1 have different tokenizers"):
        require_one_tokenizer(a, b)
    require_one_tokenizer(a, a)


# ----------------------------------------------------------------------------------------------------------- sampling

HOSTILE = {
    "temperature": 0.1, "top_k": 1, "top_p": 0.1, "repetition_penalty": 5.0, "eos_token_id": 2, "pad_token_id": 2,
    "suppress_tokens": [3], "bad_words_ids": [[1]], "no_repeat_ngram_size": 1, "min_new_tokens": 4, "min_p": 0.5,
    "forced_eos_token_id": 4, "do_sample": True, "num_beams": 3, "typical_p": 0.2, "guidance_scale": 2.0,
}  # fmt: skip


@pytest.mark.slow
def test_samples_have_the_models_own_probabilities():
    """6,000 texts of four letters against their 125 enumerated probabilities (chi-square), whatever the model's
    generation_config.json asks for: an end of text at `c` neither ends one nor is avoided."""
    engine = toy(2, torch.float32)
    engine.model.generation_config.update(**HOSTILE)
    before = engine.model.generation_config.to_dict()
    state = torch.random.get_rng_state()
    tokens = as_tokens([(0, 1, 1, 1)] * 6000)
    drawn = sample_texts(engine, tokens, range(6000), 3, LETTERS)
    engine.batch_tokens //= 3  # the batches change nothing
    assert (sample_texts(engine, tokens, range(100), 3, LETTERS).ids == drawn.ids[:400]).all()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert engine.model.generation_config.to_dict() == before
    rows = drawn.ids.reshape(6000, 4)
    assert (rows[:, 0] == 0).all()
    counts = np.bincount(rows[:, 1:] @ [25, 5, 1], minlength=125)
    every = [(0, *rest) for rest in itertools.product(range(5), repeat=3)]
    log_p = np.array([log_probabilities(engine, row)[range(3), row[1:]].sum() for row in every])
    expected = 6000 * np.exp(log_p)
    rare = expected < 5
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.001
    assert stats.chisquare(counts).pvalue < 1e-9, "the test must be able to fail"


@pytest.mark.slow
def test_samples_begin_as_the_texts_do_and_are_as_long(engines, texts):
    """With the special token in front and the first token of each text; seeded."""
    (engine,) = engines({"bos": True})
    tokens = tokenize(engine.loaded.tokenizer, texts)
    order = [5, 0, 31]
    drawn = sample_texts(engine, tokens, order, 1, 300)
    for n, s in enumerate(order):
        assert drawn.of(n)[:2].tolist() == tokens.of(s)[:2].tolist()
        assert len(drawn.of(n)) == len(tokens.of(s))
    again, other = (sample_texts(engine, tokens, order, seed, 300) for seed in (1, 2))
    assert (again.ids == drawn.ids).all()
    assert (other.ids != drawn.ids).any()


def test_ids_that_the_other_model_does_not_have_are_not_drawn():
    """The first three letters of five, with their probabilities renormalised."""
    engine = toy(2)
    drawn = sample_texts(engine, as_tokens([(0, 1)] * 3000), range(3000), 5, 3)
    probabilities = np.exp(log_probabilities(engine, (0, 1))[0, :3])
    counts = np.bincount(drawn.ids.reshape(3000, 2)[:, 1], minlength=5)
    assert counts[3:].sum() == 0
    assert stats.chisquare(counts[:3], 3000 * probabilities / probabilities.sum()).pvalue > 0.001


def test_a_text_with_nothing_to_draw_is_itself():
    engine = toy(0)
    drawn = sample_texts(engine, as_tokens([(3,), (2, 1)]), [0, 1], 0, LETTERS)
    assert drawn.of(0).tolist() == [3]
    assert drawn.of(1)[0] == 2


def test_bytes_of_decoded_tokens():
    """Characters of one to four bytes, special tokens, and bytes that are no character."""
    tokenizer = byte_tokenizer(bos=True)
    texts = ["tree", "grün 日本 🙂"]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    vocabulary = tokenizer.get_vocab()
    rows.append([*rows[0], vocabulary["ÿ"], vocabulary["ÿ"], vocabulary["<s>"], *rows[0][1:]])  # two bytes 0xFF
    decoded = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert decoded_bytes(decoded).tolist() == [4, 17, 10]


# --------------------------------------------------------------------------------------------------------- calibration


def toy_vectors(engines, log_likelihood, names=("a", "b")):
    """Vectors of all texts of the toy models."""
    texts = TextSet.from_texts("letters", ["".join("abcde"[n] for n in row) for row in EVERY_TEXT])
    return Vectors.from_arrays(np.stack(log_likelihood), names, texts)


@pytest.mark.slow
def test_monte_carlo_intervals_cover_the_enumerated_values(pair):
    """80 draws of 150 texts: KL(a || b) over texts, and the ratio of half the enumerated variance of log p/q to it."""
    log_p, log_q = map(enumerated, pair)
    difference, weights = log_p - log_q, np.exp(log_p)
    nats = (weights * difference).sum()
    expected = nats / LENGTH / math.log(2), (weights * (difference - nats) ** 2).sum() / 2 / nats
    runs, n = 80, 150
    drawn = sample_texts(pair[0], as_tokens(EVERY_TEXT[:1].repeat(runs * n, axis=0)), range(runs * n), 4, LETTERS)
    along = compare_next_tokens(*pair, drawn, range(runs * n))
    exact, own = per_text(along, along.forward), per_text(along, np.subtract(*along.log_likelihood))
    vectors = toy_vectors(pair, [log_p, log_q])
    covered = np.zeros(2)
    for part in np.arange(runs * n).reshape(runs, n):
        sums = calibration.Sums(
            text=np.arange(n), n_tokens=np.full(n, 4), forward=exact[part], backward=exact[part],
            same_top=np.ones(n), drawn_bytes=np.full((2, n), LENGTH), drawn_exact=np.stack([exact[part]] * 2),
            drawn_difference=np.stack([own[part]] * 2), quantiles=np.zeros(5), resampled_quantiles=np.zeros((5, 9)),
            by_top=np.zeros((3, 4, n)), maximum=0.0, left_out=0.0, n_available=625,
        )  # fmt: skip
        from_a = calibration.calibration(vectors, sums).from_a
        intervals = from_a.exact.interval, from_a.ratio.interval
        covered += [low <= value <= high for (low, high), value in zip(intervals, expected, strict=True)]
    assert (covered >= 0.87 * runs).all(), covered
    assert covered.sum() <= 0.98 * 2 * runs, "intervals that always cover are too wide"


def test_standard_errors_of_a_ratio_are_clustered_by_document():
    """Four copies of each text tell no more than one: the standard error stays, where it would halve."""
    generator = np.random.default_rng(0)
    difference, nats = generator.normal(size=300), generator.gamma(3, size=300)
    one = calibration.ratio(difference, nats)
    copies = calibration.ratio(difference.repeat(4), nats.repeat(4), np.arange(300).repeat(4))
    assert copies.value == pytest.approx(one.value, rel=1e-12)
    assert copies.standard_error == pytest.approx(one.standard_error, rel=0.01)
    jackknifed = [calibration.ratio(np.delete(difference, n), np.delete(nats, n)).value for n in range(300)]
    assert one.standard_error == pytest.approx(math.sqrt(299 * np.var(jackknifed)), rel=0.02)


@pytest.fixture
def scored(make_model, tmp_path, texts):
    """Three models in a store, the third with another tokenizer."""
    paths = [str(make_model(name, seed=n, bos=name == "c", num_hidden_layers=1)) for n, name in enumerate("abc")]
    store = Store(tmp_path / "store")
    short = [text[: 8 + n % 9] for n, text in enumerate(texts.texts)]
    texts = TextSet.from_texts("short", short, document=tuple(f"d{n // 2}" for n in range(40)), clip=-100.0)
    assert all(outcome.error is None for outcome in score(paths, texts, store))
    return paths, texts, store


def test_a_pair_from_end_to_end(scored, capsys):
    """Values and standard errors against loops over texts; written down and printed."""
    (a, b, _), texts, store = scored
    (found,) = calibrate([(a, b)], texts, store, n_texts=500)
    assert (found.a, found.b, found.n_texts, found.n_available) == (a, b, 40, 40)
    first, second = (Engine(load(resolve(ModelRef(path)), "cpu")) for path in (a, b))
    tokens = tokenize(first.loaded.tokenizer, texts)
    forward = np.array([naive_kl(first, second, tokens.of(s)) for s in range(40)])
    backward = np.array([naive_kl(second, first, tokens.of(s)) for s in range(40)])
    per_byte = math.log(2) * texts.bytes.sum()
    assert found.forward.value == pytest.approx(forward.sum() / per_byte, rel=1e-6)
    assert found.backward.value == pytest.approx(backward.sum() / per_byte, rel=1e-6)
    both = (forward + backward) / 2
    assert found.symmetrised.value == pytest.approx(both.sum() / per_byte, rel=1e-6)
    residual = (both / math.log(2) - found.symmetrised.value * texts.bytes).reshape(20, 2).sum(axis=1)
    error = math.sqrt((residual**2).sum() * 20 / 19) / texts.bytes.sum()
    assert found.symmetrised.standard_error == pytest.approx(error, rel=1e-6)
    vectors = store.vectors(texts).subset([a, b])
    d = np.subtract(*vectors.log_likelihood)
    assert found.ratio.value == pytest.approx(d.var() / 2 / both.mean(), rel=1e-6)
    assert found.estimate == vectors.kl()[0, 1] == found.estimate_all
    single = compare_next_tokens(first, second, tokens, range(40)).forward
    wanted = np.quantile(single, calibration.QUANTILES, method="inverted_cdf")
    assert [one.value for one in found.per_token.quantiles] == pytest.approx(wanted, rel=1e-6)
    assert found.per_token.mean.value == pytest.approx(single.mean(), rel=1e-6)
    assert found.per_token.maximum == pytest.approx(single.max(), rel=1e-6)
    top, same = np.concatenate([naive_top(first, second, tokens.of(s)) for s in range(40)], axis=1)
    assert len(found.per_token.by_top) == 4
    for bucket in found.per_token.by_top:
        there = (top > bucket.low) & (top <= bucket.high)
        assert bucket.share.value == pytest.approx(there.mean(), abs=1e-9)
        if there.any():
            assert bucket.mean.value == pytest.approx(single[there].mean(), rel=1e-6)
            assert bucket.same_top.value == pytest.approx(same[there].mean(), rel=1e-6)
    assert all(one.standard_error > 0 for one in (found.per_token.mean, *found.per_token.quantiles))
    record = json.loads(json.dumps(calibration_record([found], vectors)))
    assert record["pairs"][0]["symmetrised"]["value"] == found.symmetrised.value
    for many in (1, 5):
        print_calibration([found] * many, vectors)
        shown = capsys.readouterr().out
        assert str(found.symmetrised).split(" bits")[0] in shown
        assert "nats/token" in shown
    tailed = replace(found, from_b=replace(found.from_b, estimate=replace(found.from_b.estimate, kurtosis=50.0)))
    print_calibration([tailed], vectors)
    shown = capsys.readouterr().out
    assert next(line for line in shown.splitlines() if line.startswith("estimate ")).rstrip().endswith("!")
    assert "\n! heavy tails" in shown  # every mark of the block has its line


@pytest.mark.slow
def test_what_is_finished_is_not_computed_again(scored, monkeypatch):
    """Nor from a damaged file; and a clip that is frozen later counts, though the kept sums know of none."""
    (a, b, _), texts, store = scored
    (found,) = calibrate([(a, b)], texts, store, n_texts=20)
    assert (found.n_texts, found.n_available) == (20, 40)
    (file,) = Path(store.location, "exact", texts.id).iterdir()
    with monkeypatch.context() as context:
        context.setattr("klscale.sources.transformers.load.load", lambda *_: pytest.fail("it is there already"))
        assert calibrate([(a, b)], texts, store, n_texts=20) == [found]
        (clipped,) = calibrate([(a, b)], texts.with_clip(-60.0), store, n_texts=20)
        assert clipped.forward == found.forward
        assert clipped.estimate.clipped > found.estimate.clipped
    whole = file.read_text()
    for damaged in (whole[:-40], whole.replace('"maximum": ', '"maximum": 1'), "[]", "{}"):
        file.write_text(damaged)
        assert calibrate([(a, b)], texts, store, n_texts=20) == [found]
        assert file.read_text() == whole
    (other,) = calibrate([(a, b)], texts, store, n_texts=20, seed=1)
    assert other.forward != found.forward


def test_the_other_way_round(scored):
    (a, b, _), texts, store = scored
    (one,), (other,) = calibrate([(a, b)], texts, store), calibrate([(b, a)], texts, store)
    assert other.forward.value == pytest.approx(one.backward.value, rel=1e-9)
    assert other.from_a.exact.value == pytest.approx(one.from_b.exact.value, rel=1e-9)
    assert other.ratio.value == pytest.approx(one.ratio.value, rel=1e-9)


def test_a_model_is_zero_from_itself(scored):
    (a, *_), texts, store = scored
    (found,) = calibrate([(a, a)], texts, store, n_texts=10)
    assert found.symmetrised.value == found.estimate.value == found.from_a.exact.value == 0
    assert math.isnan(found.ratio.value)
    assert found.per_token.same_top.value == 1


def test_what_cannot_be_compared(scored, make_model, tmp_path):
    (a, b, c), texts, store = scored
    notes = []

    class Told(calibration.Progress):
        def note(self, message):
            notes.append(message)

    found = calibrate([(a, c), (a, b)], texts, store, n_texts=10, progress=Told())
    assert [(one.a, one.b) for one in found] == [(a, b)]
    assert "different tokenizers" in notes[0]
    with pytest.raises(InputError, match="different tokenizers"):
        calibrate([(a, c)], texts, store, n_texts=10)
    with pytest.raises(InputError, match="No vector of"):
        calibrate([(a, "elsewhere")], texts, store)
    with pytest.raises(InputError, match="1 texts are too few"):
        calibrate([(a, b)], texts, store, n_texts=1)
    make_model("b", seed=7, num_hidden_layers=1)
    with pytest.raises(InputError, match="is not the model whose vector the store has"):
        calibrate([(a, b)], texts, store, n_texts=12)


def test_log_likelihoods_from_elsewhere_have_no_texts(tmp_path):
    texts = TextSet("outside", np.array([10, 20]), id="0123456789ab")
    with pytest.raises(InputError, match="The texts of outside are not here"):
        calibrate([("a", "b")], texts, Store(tmp_path / "store"))


# --------------------------------------------------------------------------------------------------- base and variants


@pytest.mark.slow
def test_a_base_reads_its_texts_once_for_all_variants(make_model, texts, tmp_path, monkeypatch):
    """By a card, and by all pairs with the base: tokens of its forward passes, the check of its head aside. Its KL to
    each is the one of a pair alone."""
    models = [str(make_model(f"m{seed}", seed=seed, num_hidden_layers=1)) for seed in range(4)]
    store, read, whole = Store(tmp_path / "store"), dict.fromkeys(models, 0), Engine._hidden_states

    def watch(self, inputs, cache=None):
        read[self.loaded.ref.name] += inputs.numel()
        return whole(self, inputs, cache)

    outcomes = score(models, texts, store)
    assert all(outcome.entry for outcome in outcomes)
    monkeypatch.setattr(Engine, "_hidden_states", watch)
    found = cards.gather(texts, store, [(one.ref, one.entry) for one in outcomes], n_texts=12)
    tokens = sum(sorted(texts.bytes[texts.random_order[:12]]))
    check, padding = 2 * 19, 1.3
    for name in models:
        assert tokens <= read[name] - check <= padding * tokens, "the base as often as each variant"
    read.update(dict.fromkeys(models, 0))
    first, last = (load(resolve(ModelRef(models[n])), "cpu") for n in (0, 3))
    exact = compare_next_tokens(*(Engine(one, device="cpu") for one in (first, last)), tokenize(first.tokenizer, texts),
                                np.sort(texts.random_order[:12]))  # fmt: skip
    np.testing.assert_allclose(found.next_tokens[3].kl.values, exact.forward, rtol=1e-4)
    read.update(dict.fromkeys(models, 0))
    calibrate([(models[0], other) for other in models[1:]], texts, store, n_texts=12)
    chosen = np.random.default_rng(0).permutation(len(texts))[:12]
    # the texts, those that the base wrote, and those of each variant, which are as long
    assert read[models[0]] - check <= padding * 5 * texts.bytes[chosen].sum()


def test_what_does_not_fit_is_read_again(engines, texts, monkeypatch):
    a, b = engines({}, {})
    tokens = tokenize(a.loaded.tokenizer, texts)
    expected = compare_next_tokens(a, b, tokens, range(10)).forward
    monkeypatch.setattr(engine_module, "KEPT", 5 * int(tokens.lengths[:10].mean()) * 32 * 4)
    a.kept = KeptStates()
    for _ in range(2):
        np.testing.assert_allclose(compare_next_tokens(a, b, tokens, range(10)).forward, expected, rtol=1e-6)
    assert 1 <= len(a.kept._states) <= 6
    assert compare_next_tokens(a, b, tokens.cut(9), range(10)).forward.sum() < expected.sum(), "other tokens"
