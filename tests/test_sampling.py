"""Sampled tokens of scored vectors: against full distributions, kept, resumed, read, and compared."""

from __future__ import annotations

import itertools
import json
import math
import threading

import numpy as np
import pyarrow as pa
import pytest

from conftest import Interrupt
from klscale.errors import InputError, UnreadableError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import Progress
from klscale.science.estimates import format_estimate
from klscale.science.sampled_tokens import MIXTURE
from klscale.sources.mock import Chain, Parameters
from klscale.sources.source import ReaderOptions, Sources
from klscale.store import drawn_records, records, vector_records
from klscale.store.store import Store
from klscale.sweep import draws as sweep_draws
from klscale.sweep import jobs
from klscale.sweep.score import score
from klscale.vectors.draws import Sampling, TextDraws, TokenDraws
from klscale.vectors.scores import Ragged, Scores

REFS = ("mock://1", "mock://1?shift=0.3", "mock://2")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def rows_of(ragged):
    return np.split(ragged.values, np.cumsum(ragged.lengths)[:-1])


def proposal(log_p, ids, n_vocabulary):
    """Log-probabilities (..., V) of the proposal, from the sums that define it."""
    half = np.exp(log_p / 2)
    seen = np.bincount(ids[ids < n_vocabulary], minlength=n_vocabulary) + 1.0
    a, b, c = MIXTURE
    return np.log(a * np.exp(log_p) + b * half / half.sum(axis=-1, keepdims=True) + c * seen / seen.sum())


def draws_of(store, texts):
    (path,) = store.files.list("draws", texts.id)
    return store.draws(texts.id, path.rsplit("/", 1)[-1].removesuffix(".parquet"))


# ------------------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("width", [8, 30, 64])
def test_tiles_draw_from_the_proposal(width):
    """Frequencies over many positions with one distribution: 4 standard errors; and the probabilities themselves."""
    torch = pytest.importorskip("torch")
    from klscale.sources.transformers.head import log_sum_exp
    from klscale.sources.transformers.sampling import TileSampler, Wanted

    V, P, m = 64, 20_000, 2
    generator = np.random.default_rng(0)
    logits = 3 * generator.normal(size=V)
    logits[[5, 40]] = -np.inf
    logits[8:16] = -np.inf  # a whole tile
    ids = generator.integers(V, size=500).astype(np.int32)
    sampling = Sampling("0123456789ab", [7], TokenDraws("0" * 12))
    seen = sampling.seen(ids, V)
    wanted = Wanted.of(sampling, 7, P, seen, -(-V // width))
    sampler = TileSampler(np.arange(P), wanted, seen, width, torch.device("cpu"))
    whole = torch.tensor(logits).float().expand(P, -1)
    for rows, start in itertools.product((slice(0, 9000), slice(9000, P)), range(0, V, width)):
        tile = whole[rows, start : start + width]
        sampler.see(rows, start, tile, log_sum_exp(tile) if tile.isfinite().any() else tile.logsumexp(dim=1))
    found = sampler.found()
    log_p = logits - np.log(np.exp(logits).sum())
    log_r = proposal(log_p, ids, V)
    np.testing.assert_allclose(found.log_proposal, log_r[found.ids], atol=1e-5)
    np.testing.assert_allclose(found.log_probability, log_p[found.ids], atol=1e-5)
    assert (found.top == logits.argmax()).all()
    share, r = np.bincount(found.ids.ravel(), minlength=V) / (P * m), np.exp(log_r)
    assert (np.abs(share - r) < 4 * np.sqrt(r * (1 - r) / (P * m))).all()
    both = (found.ids[:, 0] == found.ids[:, 1]).mean()  # the draws of a position are independent
    assert both == pytest.approx((r**2).sum(), abs=4 * math.sqrt((r**2).sum() / P))


def full_log_p(directory, texts, dtype="float64"):
    """Log-probabilities (P, V) of each text, one at a time, from the model's own logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        for text in texts.texts:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            yield model(ids, use_cache=False).logits[0, :-1].double().log_softmax(dim=-1).numpy()


WHICH = {
    "neox": {},
    "bias": {"architecture": "phi, head bias"},
    "soft cap": {"architecture": "gemma2, soft cap"},
    "scale": {"architecture": "cohere, logit scale"},
    "BOS": {"bos": True},
    "large vocabulary": {"vocab_size": 2500},
}


@pytest.mark.slow
@pytest.mark.parametrize("which", [*WHICH, "own logits"])
def test_values_are_those_of_the_models_own_logits(which, make_model, texts, store, monkeypatch):
    if which == "own logits":
        from klscale.sources.transformers import engine

        monkeypatch.setattr(engine, "candidate_heads", lambda model: [])
    how = WHICH.get(which, {})
    first, second = make_model("a", **how), make_model("b", seed=1, **how)
    plain = Store(store.location + "-plain")
    outcomes = score([str(first), str(second)], texts, store, batch_tokens=700, sampled_tokens=25)
    without = score([str(first), str(second)], texts, plain, batch_tokens=700, sampled_tokens=0)
    drawn, chosen = draws_of(store, texts), texts.sample(25)
    assert sorted(drawn.of) == chosen.tolist()
    ids = Sources().of(ModelRef.parse(str(first)))
    reader = ids.open(ids.pin(ModelRef.parse(str(first))), ReaderOptions(device="cpu"))
    tokens = reader.tokens(texts)
    for place, (directory, outcome, bare) in enumerate(zip((first, second), outcomes, without, strict=True)):
        scores = store.scores(outcome.entry)
        assert scores.log_likelihood.tobytes() == plain.scores(bare.entry).log_likelihood.tobytes()
        assert "sampled" not in plain.scores(bare.entry).parts
        assert outcome.entry.metadata["sampled"] == {"tokens": tokens.key, "texts": 25}
        values, top = rows_of(scores.parts["sampled"]), rows_of(scores.parts["top"])
        for s, log_p in enumerate(full_log_p(directory, texts)):
            if s not in chosen:
                assert len(values[s]) == len(top[s]) == scores.parts["draws"][s, 0] == 0
                continue
            own = np.take_along_axis(log_p, drawn.of[s].ids, axis=1)
            np.testing.assert_allclose(values[s].reshape(own.shape), own, atol=2e-4)
            assert (top[s] == log_p.argmax(axis=1)).mean() > 0.95  # rounding may settle a tie
            assert scores.parts["draws"][s, 0] == drawn.mark(s)
            if place == 0:
                log_r = np.take_along_axis(proposal(log_p, tokens.ids, log_p.shape[1]), drawn.of[s].ids, axis=1)
                np.testing.assert_allclose(drawn.of[s].log_proposal, log_r, atol=2e-4)
    assert not store.files.list("partial", texts.id)
    assert not plain.files.list("draws")


def exact(log_p, log_q, texts):
    """KL both ways in bits per byte, total variation and the share of equal tops, over the whole vocabulary."""
    pairs = list(zip(log_p, log_q, strict=True))
    size = texts.bytes.sum() * math.log(2)
    forward = sum((np.exp(p) * (p - q)).sum() for p, q in pairs) / size
    backward = sum((np.exp(q) * (q - p)).sum() for p, q in pairs) / size
    variation = np.concatenate([np.abs(np.exp(p) - np.exp(q)).sum(axis=1) / 2 for p, q in pairs]).mean()
    same = np.concatenate([p.argmax(axis=1) == q.argmax(axis=1) for p, q in pairs]).mean()
    return forward, backward, variation, same


def close_to(estimate, value, spread=4.0):
    return abs(estimate.value - value) < spread * estimate.standard_error


def test_kl_is_that_of_the_whole_vocabulary(make_model, texts, store):
    directories = [make_model(name, seed=seed) for name, seed in (("a", 0), ("b", 1), ("c", 2))]
    score([str(directory) for directory in directories], texts, store)
    vectors, log_p = store.vectors(texts), [list(full_log_p(directory, texts)) for directory in directories]
    matrix = vectors.sampled_kl_matrix()
    for i, j in itertools.combinations(range(3), 2):
        found = vectors.sampled_kl(*(vectors.names[k] for k in (i, j)))
        forward, backward, variation, same = exact(log_p[i], log_p[j], texts)
        assert close_to(found.forward, forward)
        assert close_to(found.backward, backward)
        assert close_to(found.symmetric, (forward + backward) / 2)
        assert close_to(found.total_variation, variation)
        assert found.same_top.value == pytest.approx(same, abs=0.01)
        n = sum(map(len, log_p[i]))
        per_token = (found.forward_per_token, forward), (found.backward_per_token, backward)
        for estimate, kl in per_token:
            assert close_to(estimate, kl * texts.bytes.sum() * math.log(2) / n)
        assert found.forward.standard_error < 0.2 * forward
        assert found.outside == 0
        assert matrix.forward[i, j] == pytest.approx(found.forward.value, rel=1e-6)
        assert matrix.forward[j, i] == pytest.approx(found.backward.value, rel=1e-6)
        assert matrix.symmetric_error[i, j] == pytest.approx(found.symmetric.standard_error, rel=1e-6)


def test_mocks_have_the_kl_of_their_chains(texts, store):
    score(REFS, texts, store)
    vectors, chains = store.vectors(texts), [Chain.of(Parameters.of(ModelRef.parse(ref))) for ref in REFS]
    for i, j in itertools.combinations(range(3), 2):
        found = vectors.sampled_kl(REFS[i], REFS[j])
        before = [np.array([256, *text.encode()[:-1]]) for text in texts.texts]
        log_p, log_q = ([chains[k].log_p[rows] for rows in before] for k in (i, j))
        forward, backward, variation, same = exact(log_p, log_q, texts)
        assert close_to(found.forward, forward)
        assert close_to(found.backward, backward)
        assert close_to(found.total_variation, variation)
        assert found.same_top.value == pytest.approx(same, abs=1e-12)
    assert vectors.subset(REFS[:1]).joined(vectors.subset(REFS[1:])).sampled_kl(*REFS[:2]) == vectors.sampled_kl(
        *REFS[:2]
    )


# -------------------------------------------------------------------------------------------------------- vocabularies


@pytest.mark.slow
def test_padded_vocabularies_compare(make_model, texts, store):
    """The first has ids that the second lacks: what is drawn there is left out, and its probability is said."""
    small, large = make_model("small"), make_model("large", seed=1, vocab_size=400)
    score([str(large), str(small)], texts, store)
    found = store.vectors(texts).sampled_kl(str(large), str(small))
    values = {entry.ref.name: store.scores(entry).parts["sampled"].values for entry in store.entries(texts.id)}
    outside = np.concatenate([draws.ids.ravel() for draws in draws_of(store, texts).of.values()]) >= 300
    assert outside.any()
    assert not np.isnan(values[str(large)]).any()
    assert np.isnan(values[str(small)]).sum() == outside.sum()
    left = np.concatenate([np.exp(log_p)[:, 300:].sum(axis=1) for log_p in full_log_p(large, texts)]).mean()
    assert found.outside == pytest.approx(left, rel=0.2)
    assert np.isfinite(found.symmetric.value)
    assert store.vectors(texts).sampled_kl_matrix().outside == pytest.approx(found.outside, rel=1e-4)
    assert [problem for _, problem in store.check() if problem] == []


def test_a_vocabulary_of_which_a_whole_tile_is_ruled_out(make_model, texts, store):
    import torch
    from transformers import AutoModelForCausalLM

    plain = make_model("a", architecture="phi, head bias")
    padded = make_model("b", architecture="phi, head bias", vocab_size=3000)
    model, source = (AutoModelForCausalLM.from_pretrained(place) for place in (padded, plain))
    with torch.no_grad():
        for name, weight in source.state_dict().items():
            model.state_dict()[name][: len(weight)] = weight
        model.lm_head.bias[300:] = -torch.inf
    model.save_pretrained(padded)
    score([str(plain), str(padded)], texts, store)
    vectors = store.vectors(texts)
    np.testing.assert_allclose(*vectors.log_likelihood, atol=1e-3)
    found = vectors.sampled_kl(str(plain), str(padded))
    assert found.symmetric.value == pytest.approx(0, abs=1e-9)
    assert found.same_top.value == pytest.approx(1, abs=0.01)


def test_tokens_that_a_model_rules_out_make_no_nan(make_model, texts, store):
    import torch
    from transformers import AutoModelForCausalLM

    a, b = make_model("a", architecture="phi, head bias"), make_model("b", architecture="phi, head bias", seed=1)
    model = AutoModelForCausalLM.from_pretrained(b)
    with torch.no_grad():
        model.lm_head.bias[256:] = -torch.inf  # ids that no text has
    model.save_pretrained(b)
    for refs in ((a, b), (b, a)):
        place = Store(f"{store.location}-{refs[0].name}")
        score([*map(str, refs)], texts, place)
        values = {entry.ref.name: place.scores(entry).parts["sampled"].values for entry in place.entries(texts.id)}
        drawn = np.concatenate([draws.ids.ravel() for draws in draws_of(place, texts).of.values()])
        assert (values[str(b)][drawn >= 256] <= -1e4).all()
        assert np.isfinite(values[str(b)]).all()
        found = place.vectors(texts).sampled_kl(str(a), str(b))
        assert found.forward.value == math.inf  # a may say what b rules out
        assert math.isfinite(found.backward.value)
        assert math.isfinite(found.total_variation.value)


@pytest.mark.slow
def test_another_tokenizer_has_its_own_draws(make_model, texts, store):
    refs = ["mock://1", "mock://1?tokens=pairs", "mock://2", "mock://2?tokens=pairs"]
    score(refs, texts, store)
    with_bos = make_model("bos", bos=True)
    score([str(with_bos), str(make_model("bos2", bos=True, seed=3)), str(make_model("none"))], texts, store)
    assert len(store.files.list("draws", texts.id)) == 4
    vectors = store.vectors(texts)
    assert vectors.has_sampled_tokens(*refs[::2])
    assert vectors.has_sampled_tokens(*refs[1::2])
    assert not vectors.has_sampled_tokens(*refs)
    assert vectors.sampled_kl(*refs[1::2]).symmetric.value > 0
    with pytest.raises(InputError, match="different tokens"):
        vectors.sampled_kl(*refs[:2])
    with pytest.raises(InputError, match="different tokens"):
        vectors.subset(refs).sampled_kl_matrix()


# ------------------------------------------------------------------------------------------------------------- sweeps


def killed(*arguments, texts, **how):
    with pytest.raises(KeyboardInterrupt):
        score(*arguments, progress=Interrupt(texts.bytes.sum() / 2e6), **how)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["mock", "model"])
def test_a_killed_first_model_goes_on_with_what_it_drew(which, make_model, texts, store):
    refs = list(REFS[:2]) if which == "mock" else [str(make_model(name, seed=n)) for n, name in enumerate("ab")]
    whole = Store(store.location + "-whole")
    score(refs, texts, whole, batch_tokens=300)
    killed(refs, texts, store, texts=texts, batch_tokens=300)
    some = draws_of(store, texts)
    assert 0 < len(some.of) < len(texts)
    assert store.entries(texts.id) == []
    outcomes = score(refs, texts, store, batch_tokens=300)
    drawn = draws_of(store, texts)
    assert {s: some.mark(s) for s in some.of}.items() <= {s: drawn.mark(s) for s in drawn.of}.items()
    assert [problem for _, problem in store.check() if problem] == []
    for outcome, entry in zip(outcomes, whole.entries(texts.id), strict=True):
        assert store.scores(outcome.entry).checksum == whole.scores(entry).checksum
    assert store.vectors(texts).sampled_kl(*refs) == whole.vectors(texts).sampled_kl(*refs)


def test_unfinished_work_without_the_draws_that_are_kept_is_done_again(texts, store):
    """Killed as first, resumed as second: another model has drawn meanwhile, or the draws are gone."""
    killed(REFS[:1], texts, store, texts=texts, batch_tokens=300)
    (path,) = store.files.list("draws", texts.id)
    store.files.remove(path)
    score(REFS[2:], texts, store)
    score(REFS[:2], texts, store)
    assert [problem for _, problem in store.check() if problem] == []
    assert store.vectors(texts).sampled_kl(*REFS[::2]).symmetric.n_texts == len(texts)


def test_more_texts_get_more_draws(texts, store):
    """With `first`, as a comparison to a wanted precision does: what was drawn stays."""
    marks = {}
    for first in (10, 25, None):
        score(REFS[:2], texts, store, first=first, sampled_tokens=30)
        drawn = draws_of(store, texts)
        assert len(drawn.of) == min(first or 30, 30)
        found = {s: drawn.mark(s) for s in drawn.of}
        assert marks.items() <= found.items()
        marks = found
        assert store.vectors(texts).sampled_kl(*REFS[:2]).symmetric.n_texts == len(found)
    assert [problem for _, problem in store.check() if problem] == []


def test_a_vector_without_sampled_tokens_stays_as_it_is(texts, store):
    score(REFS[:1], texts, store, sampled_tokens=0)
    outcomes = score(REFS[:2], texts, store)
    assert [outcome.status for outcome in outcomes] == ["present", "scored"]
    vectors = store.vectors(texts)
    assert not vectors.has_sampled_tokens(*REFS[:2])
    with pytest.raises(InputError, match="no sampled tokens"):
        vectors.sampled_kl(*REFS[:2])
    score(REFS[:1], texts, store, rescore=True)
    assert store.vectors(texts).sampled_kl(*REFS[:2]).symmetric.value > 0


@pytest.mark.slow
def test_layers_stay_beside_them(make_model, texts, store):
    refs = [str(make_model(name, seed=n)) for n, name in enumerate("ab")]
    outcomes = score(refs, texts, store, layers=True)
    plain = Store(store.location + "-plain")
    score(refs, texts, plain, layers=True, sampled_tokens=0)
    for outcome, entry in zip(outcomes, plain.entries(texts.id), strict=True):
        with_, without = store.scores(outcome.entry), plain.scores(entry)
        assert with_.layers.tobytes() == without.layers.tobytes()
    vectors = store.vectors(texts, layers=True)
    assert vectors.sampled_kl(*refs).symmetric.value > 0
    assert not vectors.has_sampled_tokens(f"{refs[0]}#0", refs[1])


def test_windows_have_draws_at_each_token(make_model, store):
    refs = [str(make_model(name, seed=n, max_position_embeddings=64)) for n, name in enumerate("ab")]
    texts = TextSet.from_texts("mixed", ["the red ball rolls over the hill " * n for n in (1, 3, 5)])
    score(refs, texts, store, long_texts="window")
    drawn = draws_of(store, texts)
    assert [len(drawn.of[s].ids) for s in range(3)] == (texts.bytes - 1).tolist()
    found = store.vectors(texts).sampled_kl(*refs)
    assert found.n_positions == (texts.bytes - 1).sum()
    # The first window is that of a text cut short, whose distributions are known.
    short = TextSet.from_texts("short", [text[:64] for text in texts.texts])
    scores = store.scores(store.entries(texts.id)[0])
    for s, log_p in enumerate(full_log_p(refs[0], short)):
        own = np.take_along_axis(log_p, drawn.of[s].ids[: len(log_p)], axis=1)
        np.testing.assert_allclose(rows_of(scores.parts["sampled"])[s][: own.size], own.ravel(), atol=2e-4)


def test_a_process_waits_for_what_another_draws(texts, store, monkeypatch):
    """It scores the texts without draws first."""
    monkeypatch.setattr(jobs, "LOOK_AGAIN_S", 0.05)
    drawing = Store(store.location)
    drawing.keep_texts(texts)
    reader = Sources().of(ModelRef.parse(REFS[0])).open(Sources().pin(ModelRef.parse(REFS[0])))
    claim = drawing.claim(texts.id, f"draws-{reader.tokens(texts).key}")
    order, noted = [], threading.Event()

    class Told(Progress):
        def note(self, message):
            order.append(sorted(read))
            noted.set()

    read = set()
    plain = sweep_draws.blocks

    def watched(*arguments):
        for scores in plain(*arguments):
            read.update(scores.text.tolist())
            yield scores

    monkeypatch.setattr("klscale.sweep.score.blocks", lambda *how: plain_generator(watched(*how)))
    worker = threading.Thread(
        target=score, args=(REFS[:1], texts, store), kwargs={"sampled_tokens": 15, "progress": Told()}
    )
    worker.start()
    assert noted.wait(60)
    sampled = texts.sample(15).tolist()
    assert order[0] == sorted({*range(len(texts))} - {*sampled})
    claim.release()
    worker.join()
    assert read == {*range(len(texts))}
    assert sorted(draws_of(store, texts).of) == sampled


def plain_generator(iterator):
    yield from iterator


# ------------------------------------------------------------------------------------------------------------- damage


def test_draws_that_a_store_has_lost_are_no_draws(texts, store):
    score(REFS[:2], texts, store)
    drawn = draws_of(store, texts)
    some = {s: one for s, one in drawn.of.items() if s > 3}
    changed = some | {9: TextDraws(some[9].ids, some[9].log_proposal - np.float32(0.5))}
    damaged = drawn_records.draws_to_parquet(TokenDraws(drawn.tokens, 2, changed), texts.id)
    store.files.write(store.draws_file(texts.id, drawn.tokens), damaged)
    again = Store(store.location)
    assert again.vectors(texts).sampled_kl(*REFS[:2]).symmetric.n_texts == len(texts) - 5
    problems = [problem for _, problem in again.check() if problem]
    assert problems == ["has sampled tokens of 5 texts whose draws are not in the store"] * 2
    store.files.remove(store.draws_file(texts.id, drawn.tokens))
    vectors = Store(store.location).vectors(texts)
    found, matrix = vectors.sampled_kl(*REFS[:2]), vectors.sampled_kl_matrix()
    assert math.isnan(found.symmetric.value)
    assert not found.poor
    assert np.isnan(matrix.symmetric[0, 1])
    assert matrix.n_texts == found.n_positions == 0


def hostile(**changes):
    """A file of draws with something wrong in it."""
    columns = {"text": [0, 1], "token": [[1, 2], [3, 4]], "log_proposal": [[-1.0, -2.0], [-1.0, -0.5]]}
    metadata = {"text_set": "a" * 12, "tokens": "b" * 12, "m": 2}
    for name, value in changes.items():
        (columns if name in columns else metadata)[name] = value
    table = pa.table([columns[name] for name in drawn_records.DRAWN.names], schema=drawn_records.DRAWN)
    return records.to_parquet("draws", table, metadata)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": [0, 0]}, "texts twice"),
        ({"text": [0, 5]}, "does not have"),
        ({"text": [-1, 0]}, "does not have"),
        ({"token": [[1, 2], [3]]}, "belong to no position"),
        ({"token": [[1, -2], [3, 4]]}, "negative id"),
        ({"token": [[1, None], [3, 4]]}, "without an id"),
        ({"log_proposal": [[-1.0, 0.5], [-1.0, -0.5]]}, "without a probability"),
        ({"log_proposal": [[-1.0, math.nan], [-1.0, -0.5]]}, "without a probability"),
        ({"log_proposal": [[-1.0, -math.inf], [-1.0, -0.5]]}, "without a probability"),
        ({"m": 0}, "'m'"),
        ({"m": 3}, "belong to no position"),
        ({"m": 10**9}, "'m'"),
        ({"tokens": "c" * 12}, "another tokens"),
        ({"text_set": "c" * 12}, "another text set"),
        ({"m": None}, "'m'"),
    ],
)
def test_draws_that_cannot_be_are_refused(changes, said):
    with pytest.raises(UnreadableError, match=said):
        drawn_records.draws_from_parquet(hostile(**changes), "a" * 12, "b" * 12, 2)


def test_draws_without_a_seal_are_refused(texts, store):
    score(REFS[:1], texts, store)
    (path,) = store.files.list("draws", texts.id)
    data = store.files.read(path)
    place = len(data) // 2
    store.files.write(path, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert any(file == path and problem for file, problem in Store(store.location).check())
    import io

    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(data))
    buffer = io.BytesIO()
    metadata = {b"klscale": b'{"text_set": "%s", "tokens": "%s", "m": 2}' % (texts.id.encode(), b"b" * 12)}
    pq.write_table(table.replace_schema_metadata(metadata), buffer)
    with pytest.raises(UnreadableError, match="no seal"):
        drawn_records.draws_from_parquet(buffer.getvalue(), texts.id, "b" * 12, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parts: parts.pop("top"), "not all"),
        (lambda parts: parts.update(draws=parts["draws"][:, [0, 0]]), "no single number"),
        (lambda parts: parts.update(draws=np.zeros_like(parts["draws"])), "belong to no position"),
        (lambda parts: parts.update(top=Ragged(-1 - parts["top"].values, parts["top"].lengths)), "negative id"),
        (lambda parts: parts.update(sampled=Ragged(parts["sampled"].values + 90, parts["sampled"].lengths)), "above 0"),
        (lambda parts: parts.update(sampled=Ragged(parts["sampled"].values[:-2], shorter(parts["sampled"].lengths, 2)),
                                    top=Ragged(parts["top"].values[:-1], shorter(parts["top"].lengths, 1))),
         "at each position"),
    ],
)  # fmt: skip
def test_sampled_tokens_that_cannot_be_are_refused(change, said, texts, store):
    (outcome,) = score(REFS[:1], texts, store)
    scores = store.scores(outcome.entry)
    parts = dict(scores.parts)
    change(parts)
    with pytest.raises(UnreadableError, match=said):
        vector_records.require_scores(Scores(scores.text, scores.log_likelihood, scores.n_tokens, parts), len(texts))


def shorter(lengths, by):
    return np.append(lengths[:-1], lengths[-1] - by)


# ------------------------------------------------------------------------------------------------------------- compare


def test_compare_shows_next_tokens_of_quantized_variants(make_model, texts, tmp_path, run):
    base = str(make_model("base"))
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(record) + "\n" for record in texts.records()))
    how = ("--texts", tmp_path / "my.jsonl", "--store", tmp_path / "store")
    shown = run("compare", base, f"{base}%bfloat16", "mock://1", *how).stdout
    assert "Next tokens of variants" not in shown
    pytest.importorskip("bitsandbytes")
    shown = run("compare", base, f"{base}+int8", f"{base}+nf4", *how).stdout
    assert "Next tokens of variants" in shown
    vectors = Store(tmp_path / "store").vectors(texts)
    for variant in ("+int8", "+nf4"):
        found = vectors.sampled_kl(base, base + variant)
        line = next(line for line in shown.split("Next tokens of")[1].splitlines() if variant in line)
        assert format_estimate(found.forward_per_token.value, found.forward_per_token.standard_error) in line
        assert format_estimate(100 * found.same_top.value, 100 * found.same_top.standard_error) in line
