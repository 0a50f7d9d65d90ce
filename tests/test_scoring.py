"""The engine against a plain loop: one unpadded text at a time, full logits, float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import klscale
from conftest import ARCHITECTURES, byte_tokenizer, plain_log_likelihoods
from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet, build_texts, load_texts, pocket_corpus
from klscale.sources.tokens import Segment, segments_of
from klscale.sources.transformers import engine as engine_module
from klscale.sources.transformers import tokens as tokens_module
from klscale.sources.transformers.engine import Engine, cuts, queued
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.head import OutputHead
from klscale.sources.transformers.load import load
from klscale.sources.transformers.tokens import TokenCache, tokenize


def score(directory, texts, *, dtype="float32", batch_tokens=None, which=None, **options):
    loaded = load(resolve(ModelRef(str(directory), dtype=dtype)))
    engine = Engine(loaded, device="cpu", batch_tokens=batch_tokens)
    tokens = tokenize(loaded.tokenizer, texts)
    values = np.full(len(texts), np.nan)
    for block in engine.score(tokens, range(len(texts)) if which is None else which, **options):
        assert np.isnan(values[block.text]).all()
        values[block.text] = block.log_likelihood
        assert (block.n_tokens == tokens.lengths[block.text]).all()
    return values, engine


CAUSAL = [name for name in ARCHITECTURES if "bidirectional" not in name]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CAUSAL)
def test_architectures_agree_with_a_plain_loop(architecture, make_model, few_texts):
    directory = make_model(architecture, architecture=architecture)
    values, engine = score(directory, few_texts, batch_tokens=300)
    np.testing.assert_allclose(values, plain_log_likelihoods(directory, few_texts), atol=1e-3, rtol=0)
    assert not engine.own_logits, "the tiled head must serve this architecture"
    assert np.ptp(values) > 1


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_any_batch_budget_and_order(batch_tokens, make_model, texts):
    directory = make_model(bos=True)
    expected = plain_log_likelihoods(directory, texts)
    order = np.random.default_rng(0).permutation(len(texts))
    values, _ = score(directory, texts, batch_tokens=batch_tokens, which=order)
    np.testing.assert_allclose(values, expected, atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CAUSAL)
def test_bfloat16_is_as_good_as_the_models_own(architecture, make_model, texts):
    """Within 0.1 nats a text (80 tokens in the mean, about 6 nats each) of the model's own bfloat16 logits, and no
    farther than those from the same rounded weights in float32: what is left is the model's arithmetic, not ours."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = make_model(architecture, architecture=architecture)
    values, engine = score(directory, texts, dtype="bfloat16", batch_tokens=700)
    assert engine.model.dtype == torch.bfloat16
    assert not engine.own_logits
    plain = plain_log_likelihoods(directory, texts, "bfloat16")
    np.testing.assert_allclose(values, plain, atol=0.1, rtol=0)

    rounded = directory.parent / "rounded"
    AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).float().save_pretrained(rounded)
    AutoTokenizer.from_pretrained(directory).save_pretrained(rounded)
    exact = plain_log_likelihoods(rounded, texts)
    assert np.square(values - exact).mean() <= 1.5 * np.square(plain - exact).mean()


@pytest.mark.slow
def test_real_model_agrees_with_a_plain_loop(stories, shared):
    """A real model on real texts to 1e-3 nats a text, whatever the batch budget and the order."""
    full = load_texts(shared / "texts" / "public-domain-short-3k.jsonl")
    texts = TextSet.from_texts("part", full.texts[:60])
    expected = plain_log_likelihoods(stories, texts)
    for batch_tokens in (1, 2000, 50_000):
        values, engine = score(stories, texts, batch_tokens=batch_tokens)
        np.testing.assert_allclose(values, expected, atol=1e-3, rtol=0)
    assert not engine.own_logits


def test_tiles_equal_a_full_log_softmax():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1100, 24, generator=generator)
    weight = torch.randn(9000, 24, generator=generator) * 3
    bias = torch.randn(9000, generator=generator)
    target = torch.randint(9000, (1100,), generator=generator)
    target[:3] = torch.tensor([0, 4096, 8999])  # on the edges of tiles
    for head in (OutputHead(weight), OutputHead(weight, bias), OutputHead(weight, bias, 0.1, 30.0)):
        logits = hidden.double() @ weight.double().T + (0 if head.bias is None else bias.double())
        logits = logits * head.scale
        if head.soft_cap:
            logits = torch.tanh(logits / head.soft_cap) * head.soft_cap
        exact = logits.log_softmax(1)[torch.arange(1100), target]
        torch.testing.assert_close(head.log_likelihood(hidden, target).double(), exact, atol=1e-4, rtol=0)


def test_an_unknown_head_falls_back_to_the_models_own_logits(make_model, texts, monkeypatch):
    directory = make_model(architecture="gemma2, soft cap")
    monkeypatch.setattr(
        engine_module, "candidate_heads", lambda model: [OutputHead(model.get_output_embeddings().weight, scale=5.0)]
    )
    values, engine = score(directory, texts, batch_tokens=500)
    assert engine.own_logits
    assert engine.head is None
    np.testing.assert_allclose(values, plain_log_likelihoods(directory, texts), atol=1e-3, rtol=0)


def test_a_bidirectional_model_is_refused(make_model, texts):
    """AutoModelForCausalLM takes BERT; its tokens see what follows them."""
    with pytest.raises(KlscaleError, match="is not a causal language model"):
        score(make_model(architecture="bert, bidirectional"), texts)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_stretching_positions_do_not_see_the_neighbours(kind, make_model, texts):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 8.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope["original_max_position_embeddings"] = 64
    options = {"architecture": "llama, grouped queries", "rope_parameters": rope, "max_position_embeddings": 512}
    directory = make_model(kind, **options)
    assert 10 < (texts.bytes > 64).sum() < 35
    expected = plain_log_likelihoods(directory, texts)
    values, engine = score(directory, texts, batch_tokens=4096)
    assert engine.stretches_beyond == 64
    np.testing.assert_allclose(values, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("n", "shortest", "longest"), [(40, 129, 512), (400, 129, 512), (400, 65, 256)])
@pytest.mark.parametrize("per_byte", [1.0, 0.3])
def test_padding_of_real_texts_is_small(n, shortest, longest, per_byte):
    """Bytes, as the models of the demo read them, and tokens of about three bytes, more in some texts than in others:
    columns of all batches, counted. Batches that fill the budget pad more, where lengths differ."""
    texts = build_texts("real", pocket_corpus(), n, max_bytes=longest, min_bytes=shortest - 1)
    spread = 0.0 if per_byte == 1 else 0.05
    lengths = np.rint(texts.bytes * per_byte * np.random.default_rng(0).normal(1, spread, n)).astype(int)
    engine = Engine.__new__(Engine)
    engine.own_logits = engine.alone = engine.padded = engine.fewest = engine.shuffled = False
    engine.batch_tokens, engine.stretches_beyond, engine.device = 8192, None, torch.device("cpu")

    def wasted():
        queue, columns = queued((engine,), [Segment(s, 0, int(size), 1) for s, size in enumerate(lengths)]), 0
        for rows in cuts((engine,), queue):
            columns += rows * queue[0].length
            del queue[:rows]
        return columns / lengths.sum() - 1

    best = wasted()
    assert 0 <= best < (0.01 if per_byte == 1 or n > 40 else 0.02)
    engine.fewest = True
    assert best <= wasted()
    assert per_byte == 1 or wasted() > 0.01


# ------------------------------------------------------------------------------------------------------- long texts


def test_windows_score_each_token_once_with_the_longest_context():
    for length in (1, 5, 8, 9, 12, 13, 100):
        scored = [p for part in segments_of(0, length, 8) for p in range(part.first, part.stop)]
        assert scored == list(range(1, length))
        assert all(part.length <= 8 for part in segments_of(0, length, 8))
        assert all(part.first - part.start >= 4 for part in segments_of(0, length, 8)[1:])


def test_long_texts_are_an_error_skipped_or_windowed(make_model):
    directory = make_model(max_position_embeddings=64)
    texts = TextSet.from_texts("mixed", ["short enough", "x" * 63 + "é", "fits" * 16, "long " * 40])
    with pytest.raises(InputError, match=r"2 texts are longer than the window of .* \(64 tokens\)"):
        score(directory, texts)
    skipped, _ = score(directory, texts, long_texts="skip")
    assert np.isnan(skipped).tolist() == [False, True, False, True]
    windowed, _ = score(directory, texts, long_texts="window")
    np.testing.assert_allclose(windowed[[0, 2]], skipped[[0, 2]], atol=1e-4)

    # by hand: every token from the window that gives it the most context
    loaded = load(resolve(ModelRef(str(directory))))
    ids = torch.tensor(loaded.tokenizer(texts.texts[3])["input_ids"])
    total, scored, start = 0.0, 1, 0
    with torch.no_grad():
        while scored < len(ids):
            stop = min(len(ids), scored + 32 if scored > 1 else 64)
            start = max(0, stop - 64)
            log_probabilities = loaded.model(ids[None, start:stop]).logits[0].double().log_softmax(-1)
            total += sum(log_probabilities[p - 1 - start, ids[p]].item() for p in range(scored, stop))
            scored = stop
    assert windowed[3] == pytest.approx(total, abs=1e-3)


# ---------------------------------------------------------------------------------------------- when something is wrong


def test_out_of_memory_halves_the_batch_and_loses_nothing(make_model, texts, monkeypatch):
    directory = make_model()
    whole = Engine._hidden_states

    def small_memory(self, inputs, cache=None):
        if inputs.numel() > 800:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, inputs, cache)

    monkeypatch.setattr(Engine, "_hidden_states", small_memory)
    values, engine = score(directory, texts, batch_tokens=100_000)
    assert engine.batch_tokens <= 800
    np.testing.assert_allclose(values, plain_log_likelihoods(directory, texts), atol=1e-3)


def test_out_of_memory_with_one_text_is_an_error(make_model, texts, monkeypatch):
    def no_memory(self, inputs):
        raise torch.OutOfMemoryError("out of memory")

    directory = make_model()
    monkeypatch.setattr(Engine, "find_head", lambda *_: None)
    monkeypatch.setattr(Engine, "_own_logits", no_memory)
    with pytest.raises(KlscaleError, match="out of memory on cpu with one text"):
        score(directory, texts)


def test_values_that_are_not_finite_are_refused(make_model, texts):
    directory = make_model()
    loaded = load(resolve(ModelRef(str(directory))))
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(KlscaleError, match="gives a log-likelihood of nan"):
        list(Engine(loaded, device="cpu").score(tokenize(loaded.tokenizer, texts), range(len(texts))))


def test_a_tokenizer_of_another_model_is_said(make_model, texts):
    """Token ids beyond the model's vocabulary."""
    with pytest.raises(KlscaleError, match=r"the forward pass failed.\n.*\nDoes the tokenizer belong to the model"):
        score(make_model(vocab_size=40), texts)


def test_a_device_that_is_not_there(make_model):
    loaded = load(resolve(ModelRef(str(make_model()))))
    with pytest.raises(InputError, match="The device 'nonsense' cannot be used"):
        Engine(loaded, device="nonsense")


# ----------------------------------------------------------------------------------------------------------- tokens


def test_special_tokens_are_the_tokenizers_own(texts):
    without, with_bos = tokenize(byte_tokenizer(), texts), tokenize(byte_tokenizer(bos=True), texts)
    assert (without.lengths == texts.bytes).all()
    assert (with_bos.lengths == texts.bytes + 1).all()
    assert without.not_round_trip == with_bos.not_round_trip == 0


def test_tokenizers_that_lose_something_are_noticed():
    tokenizer = byte_tokenizer()
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    texts = TextSet.from_texts("cases", ["all small", "One Capital", "none here", "two of Four"])
    assert tokenize(tokenizer, texts).not_round_trip == 0.5


def test_texts_are_tokenized_once_for_each_tokenizer(texts):
    cache = TokenCache()
    assert cache.get(byte_tokenizer(), texts) is cache.get(byte_tokenizer(), texts)
    assert cache.get(byte_tokenizer(), texts) is not cache.get(byte_tokenizer(bos=True), texts)
    others = TextSet.from_texts("others", ["another"])
    assert len(cache.get(byte_tokenizer(), others).lengths) == 1


def test_a_tokenizer_is_read_and_written_out_once(make_model, texts, tmp_path, monkeypatch):
    """It is written out for its id: of a large vocabulary that takes as long as some batches."""
    written, plain = list[int](), tokens_module._id_of
    monkeypatch.setattr(tokens_module, "_id_of", lambda tokenizer: written.append(1) or plain(tokenizer))
    klscale.score([str(make_model()), str(make_model("other", seed=1))], texts, tmp_path / "store")
    assert len(written) == 1


# ---------------------------------------------------------------------------------------------------------- loading


def test_fingerprint_follows_what_scoring_reads(make_model, tmp_path):
    directory = make_model()
    before = resolve(ModelRef(str(directory))).identity
    (directory / "README.md").write_text("notes")
    (directory / "optimizer.pt").write_bytes(b"state")
    assert resolve(ModelRef(str(directory))).identity == before
    other = make_model("other", seed=1)
    (directory / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert resolve(ModelRef(str(directory))).identity != before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "holds no config.json"),
        (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x00" * 50), "cannot be loaded as a causal language model"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "tokenizer of .* cannot be loaded"),
        (lambda d: (d / "config.json").write_text('{"model_type": "t5"}'), "is an encoder-decoder model"),
    ],
)
def test_broken_directories(spoil, message, make_model):
    directory = make_model()
    spoil(directory)
    with pytest.raises(KlscaleError, match=message):
        load(resolve(ModelRef(str(directory))))


def test_missing_weights_are_never_random(make_model):
    from safetensors.torch import load_file, save_file

    directory = make_model()
    weights = load_file(directory / "model.safetensors")
    name = next(key for key in weights if "mlp" in key)
    save_file({k: v for k, v in weights.items() if k != name}, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(KlscaleError, match="1 tensors are missing"):
        load(resolve(ModelRef(str(directory))))


def test_code_from_a_repository_is_never_run(make_model, tmp_path):
    import json

    directory = make_model()
    config = json.loads((directory / "config.json").read_text())
    config["model_type"] = "unknown_kind"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(KlscaleError):
        load(resolve(ModelRef(str(directory))))
    assert not (tmp_path / "ran").exists()
