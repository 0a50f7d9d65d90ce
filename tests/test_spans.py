"""Cuts, tokens in spans, their storage, and KL from spans: against naive loops, closed forms and simulation."""

from __future__ import annotations

import itertools
import json
import math
import warnings

import numpy as np
import pytest

from conftest import byte_tokenizer
from klscale.inputs.spans import LONGEST, SHORTEST, SPAN, assign_tokens, byte_offsets, cut_texts, pack, unpack
from klscale.science import spans as span_science
from klscale.science.kl import kl
from klscale.science.spans import Spans, span_kl, span_kl_difference, span_kl_matrix

ODD = [
    "",
    "a",
    "no cut in what is short",
    "x" * 500,
    "日本語の文章には空白がないので、文字の境界で切る必要がある。" * 7,
    "two  spaces  stand  between  all  of  these  words,  so  that  none  stands  alone  between  them",
    "line after line\r\n" * 20,
    "\r\n" * 90,
    "e\u0301" * 120,
    "👩\u200d👩\u200d👧 " * 25,
    "\u0301" * 100,
    " " * 200,
    "def f(x):\n        return [y for y in x if y]\n\n\n" * 8,
    "word\u00a0 word " * 30,
]


def odd_texts(seed, n=60):
    generator = np.random.default_rng(seed)
    pieces = [*"ab \n\té日🙂", "  ", "\r\n", "\u0301", "\u200d", "the", " of", "\u3000", " house"]
    return [*ODD, *("".join(generator.choice(pieces, size=generator.integers(0, 300))) for _ in range(n))]


def naive_cuts(text):
    """The rule of `cut_texts`, character by character."""
    edges = [0]
    for character in text:
        edges.append(edges[-1] + len(character.encode()))
    marks = {"\u0301", "\u200d"}
    ties = {
        k for k, c in enumerate(text) if k and (c in marks or text[k - 1] == "\u200d" or text[k - 1 : k + 1] == "\r\n")
    }
    spaces = {k for k in range(1, len(text) - 1)
              if text[k] == " " and not text[k - 1].isspace() and not text[k + 1].isspace()}  # fmt: skip
    cuts, last = [], 0
    while edges[-1] - last >= SPAN + SHORTEST:
        low, high = last + SHORTEST, min(last + LONGEST, edges[-1] - SHORTEST)
        for allowed in (spaces, {*range(len(text))} - ties, {*range(len(text))}):
            places = [edges[k] for k in allowed if low <= edges[k] <= high]
            if places:
                last = min(places, key=lambda place: (abs(place - last - SPAN), place))
                cuts.append(last)
                break
    return cuts


@pytest.mark.parametrize("seed", range(3))
def test_cuts_follow_the_rule(seed):
    texts = odd_texts(seed)
    cuts = cut_texts(texts)
    for s, text in enumerate(texts):
        assert cuts.of(s).tolist() == naive_cuts(text), text
        data = text.encode()
        pieces = np.split(np.frombuffer(data, dtype=np.uint8), cuts.of(s))
        assert "".join(bytes(piece).decode() for piece in pieces) == text  # at character boundaries
        mine = slice(cuts.spans.starts[s], cuts.spans.starts[s + 1])
        assert cuts.spans.bytes[mine].tolist() == list(map(len, pieces))
    assert cuts.bytes.tolist() == [len(text.encode()) for text in texts]


def test_cuts_do_not_depend_on_the_other_texts(monkeypatch):
    texts = odd_texts(7)
    whole = cut_texts(texts)
    monkeypatch.setattr("klscale.inputs.spans.BLOCK", 500)
    apart = cut_texts(texts)
    assert np.array_equal(whole.offsets, apart.offsets)
    assert np.array_equal(whole.first, apart.first)


def test_spans_of_prose_are_about_32_bytes_long(shared):
    lines = (shared / "texts" / "public-domain-3k.jsonl").read_text(encoding="utf-8").splitlines()[:500]
    cuts = cut_texts([json.loads(line)["text"] for line in lines])
    assert 30 < cuts.mean_bytes < 34
    assert cuts.spans.bytes.min() >= SHORTEST
    assert cuts.spans.bytes.max() <= LONGEST


def test_characters_to_bytes():
    texts = odd_texts(3)
    lengths = np.array([len(text) + 1 for text in texts])
    characters = np.concatenate([np.arange(n) for n in lengths])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    expected = [len(text[:k].encode()) for text in texts for k in range(len(text) + 1)]
    assert byte_offsets(texts, starts, characters).tolist() == expected
    both = byte_offsets(texts, starts, np.stack([characters, characters], axis=1))
    assert both.tolist() == [[n, n] for n in expected]


# ------------------------------------------------------------------------------------------------------------- tokens


def tokenized(tokenizer, texts):
    found = tokenizer(texts, return_offsets_mapping=True)
    starts = np.cumsum([0, *map(len, found["input_ids"])])
    offsets = np.array(list(itertools.chain(*found["offset_mapping"])), dtype=np.int64).reshape(-1, 2)
    return starts, byte_offsets(texts, starts, offsets).T


def naive_sums(cuts, text, start, end, log_probability):
    """Of one text: kept cuts, then the sum of the tokens that begin in each span; the first token only loses cuts."""
    reached = [end[0], *np.maximum.accumulate(start)]
    lost = {c for c in cuts if c <= end[0] or any(a < c < b for a, b in zip(start, end, strict=True))}
    edges = [c for c in cuts if c not in lost]
    sums = [0.0] * (len(edges) + 1)
    for a, value in zip(reached[2:], log_probability[1:], strict=True):
        sums[sum(c <= a for c in edges)] += value
    values = dict(zip([0, *edges], sums, strict=True))
    return [values.get(c, math.nan) for c in [0, *cuts]]


@pytest.mark.parametrize("which", ["bytes", "bytes with BOS", "stories"])
def test_tokens_are_summed_to_spans(which, stories):
    from transformers import AutoTokenizer

    texts = [text for text in odd_texts(5, 40) if text]
    texts += ["Once upon a time there was a little girl who had a red ball and a small dog. " * 4]
    tokenizer = AutoTokenizer.from_pretrained(stories) if which == "stories" else byte_tokenizer(bos="BOS" in which)
    starts, (start, end) = tokenized(tokenizer, texts)
    cuts = cut_texts(texts)
    made = assign_tokens(cuts, starts, start, end)
    generator = np.random.default_rng(0)
    log_probability = -generator.exponential(3.0, size=len(start))
    chosen = generator.permutation(len(texts))[: len(texts) // 2]
    scored = np.concatenate([log_probability[starts[s] + 1 : starts[s + 1]] for s in chosen])
    values, begin = made.sums(chosen, scored)
    for n, s in enumerate(chosen):
        tokens = slice(starts[s], starts[s + 1])
        expected = naive_sums(cuts.of(s).tolist(), texts[s], start[tokens], end[tokens], log_probability[tokens])
        np.testing.assert_allclose(values[begin[n] : begin[n + 1]], expected, rtol=1e-12)
        total = log_probability[starts[s] + 1 : starts[s + 1]].sum()
        assert np.nansum(values[begin[n] : begin[n + 1]]) == pytest.approx(total, rel=1e-12)
    layers, _ = made.sums(chosen, np.stack([scored, 2 * scored]))
    np.testing.assert_array_equal(layers, [values, 2 * values])
    first = [0 if "BOS" in which or which == "stories" else len(text[0].encode()) for text in texts]
    if which == "bytes":
        assert (made.given <= first).all()
    else:
        assert not made.given.any()
    if which != "stories":
        assert made.lost == 0


def test_a_token_across_a_cut_loses_it_and_a_special_token_behind_belongs_to_the_last_span():
    text = "aaaa bbbb " * 10
    cuts = cut_texts([text])
    a, b = cuts.of(0)[:2]
    n_spans = len(cuts.of(0)) + 1
    #         first   to the cut    across it       on        a special token at the end of the text
    start = np.array([0, 4, a - 2, a + 3, b, 0])
    end = np.array([4, a - 2, a + 3, b, len(text), 0])
    cuts_only = cut_texts([text, text])
    made = assign_tokens(cuts_only, np.array([0, 6, 12]), np.tile(start, 2), np.tile(end, 2))
    values, begin = made.sums([1], -np.array([1.0, 2.0, 4.0, 8.0, 16.0]))
    assert begin.tolist() == [0, n_spans]
    assert values[0] == -7
    assert math.isnan(values[1])
    assert values[2] == -24 or n_spans == 3
    assert np.isnan(values[3:]).all()  # the long token loses all the cuts behind
    assert made.given.tolist() == [4, 4]
    assert made.lost == (n_spans - 2) / (n_spans - 1)


def test_a_first_token_that_reaches_a_cut_loses_it():
    text = "y" * 100
    (cut, *_), n = cut_texts([text]).of(0), 100
    made = assign_tokens(cut_texts([text]), np.array([0, 2]), np.array([0, cut]), np.array([cut, n]))
    values, _ = made.sums([0], np.array([-5.0]))
    assert values[0] == -5
    assert np.isnan(values[1:]).all()


# ------------------------------------------------------------------------------------------------------------ storing


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 30.0, 5000.0])
def test_float32_spans_sum_to_the_text_exactly(scale):
    generator = np.random.default_rng(1)
    counts = generator.integers(1, 40, size=200)
    starts = np.concatenate([[0], np.cumsum(counts)])
    values = -generator.gamma(0.5, scale, size=starts[-1])
    lost = generator.random(starts[-1]) < 0.1
    lost[starts[:-1]] = False
    for s in range(len(counts)):  # what a lost cut leaves: the span before holds both
        for c in range(starts[s + 1] - 1, starts[s], -1):
            if lost[c]:
                values[c - 1] += values[c]
                values[c] = np.nan
    text = np.array([math.fsum(values[a:b][~np.isnan(values[a:b])]) for a, b in itertools.pairwise(starts)])
    text[7] = np.nan
    packed = pack(values, text, starts)
    assert packed.dtype == np.float32
    assert np.array_equal(np.isnan(packed), lost | np.repeat(np.arange(200) == 7, counts))
    restored = unpack(packed, text, starts)
    for s in range(len(counts)):
        mine = restored[starts[s] : starts[s + 1]]
        mine = mine[~np.isnan(mine)]
        if s != 7:
            for order in (mine, mine[::-1], generator.permutation(mine)):
                assert sum(order.tolist()) == text[s]
    scored = ~np.isnan(packed)
    step = 2.0 ** max(-20, math.frexp(np.nanmax(np.abs(values)))[1] - 24)
    assert np.abs(restored - values)[scored].max() <= 1.01 * step


# ---------------------------------------------------------------------------------------------------------- estimates


def a_world(generator, n_texts=40, n_models=5, lost=0.0):
    """Span log-likelihoods of some models with a drift of their own in each text, and what is lost."""
    counts = generator.integers(1, 12, size=n_texts)
    counts[-1] = 1
    starts = np.concatenate([[0], np.cumsum(counts)])
    size = generator.integers(16, 64, size=starts[-1])
    rate = generator.normal(scale=0.05, size=(n_models, n_texts))
    noise = generator.normal(size=(n_models, starts[-1])) * np.sqrt(size) * 0.3
    values = -0.7 * size + noise + np.repeat(rate, counts, axis=1) * size
    gone = generator.random(values.shape) < lost
    gone[:, starts[:-1]] = False
    for k, s in itertools.product(range(n_models), range(n_texts)):
        for c in range(starts[s + 1] - 1, starts[s], -1):
            if gone[k, c]:
                values[k, c - 1] += values[k, c]
                values[k, c] = np.nan
    return values, Spans(size, starts)


def naive_texts(rows, a, b, spans, given=None):
    """V, bytes and log-ratio of each text that has two spans, in which only cuts that all rows have count."""
    found = []
    for s, (start, stop) in enumerate(itertools.pairwise(spans.starts)):
        if np.isnan(rows[:, start]).any():
            continue
        edges = [c for c in range(start, stop) if not np.isnan(rows[:, c]).any()] + [stop]
        d, size = [], []
        for low, high in itertools.pairwise(edges):
            pieces = [row[low:high][~np.isnan(row[low:high])] for row in (a, b)]
            d.append(math.fsum(pieces[0]) - math.fsum(pieces[1]))
            size.append(float(spans.bytes[low:high].sum()))
        total, whole = sum(d), sum(size)
        scored = whole
        if given is not None:
            if len({*given[:, s].tolist()}) > 1:
                d, size, scored = d[1:], size[1:], whole - size[0]
            else:
                size[0] -= given[0, s]
        if len(d) < 2:
            continue
        B = sum(size)
        V = 0.0
        for difference, length in zip(d, size, strict=True):
            tokens = max(1.0, length / 3)
            x = (difference - length * sum(d) / B) / math.sqrt(tokens)
            V += tokens * x * math.tanh(x / 2)
        V /= 1 - math.fsum((length / B) ** 2 for length in size)
        found.append((s, V, scored, total, whole))
    return [np.array(column) for column in zip(*found, strict=True)]


def naive_kl(V, size, documents=None):
    value = V.sum() / size.sum()
    e = V - value * size
    if documents is not None:
        labels = sorted({*documents})
        e = np.array([sum(x for x, g in zip(e, documents, strict=True) if g == label) for label in labels])
        e = e * math.sqrt(len(labels) / (len(labels) - 1))
    return value / math.log(2), math.sqrt((e**2).sum()) / size.sum() / math.log(2)


@pytest.mark.parametrize("lost", [0.0, 0.2])
@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("with_given", [False, True])
def test_all_pairs_equal_a_naive_loop(lost, clustered, with_given):
    generator = np.random.default_rng(4)
    values, spans = a_world(generator, lost=lost)
    N = len(spans.starts) - 1
    documents = [f"d{s % 13}" for s in range(N)] if clustered else None
    given = None
    if with_given:
        given = np.tile(generator.integers(0, 9, size=N), (5, 1))
        given[2, ::3] += 1
    matrix = span_kl_matrix(values, spans, documents=documents, given=given)
    for i, j in itertools.combinations(range(5), 2):
        texts, V, size, *_ = naive_texts(values, values[i], values[j], spans, given)
        labels = None if documents is None else [documents[s] for s in texts]
        value, error = naive_kl(V, size, labels)
        assert matrix.value[i, j] == pytest.approx(value, rel=1e-6)  # float32
        assert matrix.standard_error[i, j] == pytest.approx(error, rel=1e-6)
        assert matrix.n_texts[i, j] == len(V)

        pair, own_given = values[[i, j]], None if given is None else given[[i, j]]
        texts, V, size, d, whole = naive_texts(pair, *pair, spans, own_given)
        labels = None if documents is None else [documents[s] for s in texts]
        value, error = naive_kl(V, size, labels)
        found = span_kl(*pair, spans, documents=documents, given=own_given)
        assert found.value == pytest.approx(value, rel=1e-12)
        assert found.standard_error == pytest.approx(error, rel=1e-10)
        assert found.n_texts == len(V)
        assert found.interval[0] * found.interval[1] == pytest.approx(value**2)
        of_texts = kl(d, np.zeros(len(d)), whole.astype(np.int64)).value
        assert found.drift_share.value == pytest.approx(1 - value / of_texts, rel=1e-10)
        assert found.lost == pytest.approx(np.isnan(pair).any(axis=0).sum() / (len(spans.bytes) - N))
    assert matrix.lost == pytest.approx(np.isnan(values).any(axis=0).sum() / (len(spans.bytes) - N))
    assert np.array_equal(matrix.value, matrix.value.T)
    assert (np.diag(matrix.value) == 0).all()


def test_models_with_other_texts_use_those_of_both():
    values, spans = a_world(np.random.default_rng(5), lost=0.1)
    counts = np.diff(spans.starts)
    missing = np.repeat(np.arange(len(counts)) % 4 == 0, counts)
    kept = ~np.isnan(values[[0, 2, 3, 4]]).any(axis=0) & (missing | ~np.isnan(values[1]))
    values[1, missing] = np.nan
    matrix = span_kl_matrix(values, spans)
    marked = np.where(kept, values, np.nan)
    for i, j in itertools.combinations(range(5), 2):
        rows = np.stack([marked[i], marked[j]])
        _, V, size, *_ = naive_texts(rows, values[i], values[j], spans)
        assert matrix.value[i, j] == pytest.approx(naive_kl(V, size)[0], rel=1e-6)
        assert matrix.n_texts[i, j] == len(V)
    assert matrix.n_texts[0, 1] < matrix.n_texts[0, 2]


def test_near_pairs_keep_their_digits():
    generator = np.random.default_rng(6)
    values, spans = a_world(generator, n_texts=30, n_models=4)
    tiny = 1e-6 * generator.normal(size=len(spans.bytes))
    values[1] = values[0] + tiny
    matrix = span_kl_matrix(values, spans)
    _, V, size, *_ = naive_texts(values[:2], values[1], values[0], spans)
    value, error = naive_kl(V, size)
    assert matrix.value[0, 1] == pytest.approx(value, rel=1e-9)
    assert matrix.standard_error[0, 1] == pytest.approx(error, rel=1e-9)


def test_more_models_than_a_tile_and_a_batch():
    generator = np.random.default_rng(7)
    values, spans = a_world(generator, n_texts=300, n_models=70)
    matrix = span_kl_matrix(values.astype(np.float32), spans)
    for i, j in [(0, 69), (3, 5), (64, 2)]:
        pair = span_kl(*values[[i, j]].astype(np.float32), spans)
        assert matrix.value[i, j] == pytest.approx(pair.value, rel=1e-6)
        assert matrix.standard_error[i, j] == pytest.approx(pair.standard_error, rel=1e-6)


def test_differences_have_a_paired_error():
    values, spans = a_world(np.random.default_rng(8), n_models=4)
    found = span_kl_difference((values[0], values[1]), (values[2], values[3]), spans)
    _, first, size, *_ = naive_texts(values, values[0], values[1], spans)
    _, second, *_ = naive_texts(values, values[2], values[3], spans)
    value, error = naive_kl(first - second, size)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.standard_error == pytest.approx(error, rel=1e-10)


def test_equal_models_and_texts_too_few():
    values, spans = a_world(np.random.default_rng(9), n_models=2)
    same = span_kl(values[0], values[0], spans)
    assert (same.value, same.standard_error, same.interval) == (0, 0, (0, 0))
    assert math.isnan(same.drift_share.value)
    short = Spans(np.array([20, 20, 30]), np.arange(4))
    assert math.isnan(span_kl(np.ones(3), np.zeros(3), short).value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(span_kl_difference((np.ones(3), np.zeros(3)), (np.ones(3), np.ones(3)), short).value)
    assert np.isnan(span_kl_matrix(np.ones((2, 3)), short).value[0, 1])


def test_a_text_with_one_scored_span_tells_nothing():
    """The first token of both models is all of the first span: of two spans one is left, which has no variance."""
    generator = np.random.default_rng(13)
    spans = Spans(np.full(9, 30), np.array([0, 2, 5, 7, 9]))
    values = -generator.random((3, 9)) * 30
    values[:, 0] = 0
    given = np.tile([30, 5, 5, 5], (3, 1))
    found = span_kl(values[0], values[1], spans, given=given[:2])
    rest = Spans(spans.bytes[2:], spans.starts[1:] - 2)
    alone = span_kl(values[0, 2:], values[1, 2:], rest, given=given[:2, 1:])
    assert (found.value, found.standard_error, found.n_texts) == (alone.value, alone.standard_error, 3)
    every = span_kl_matrix(values, spans, given=given)
    assert every.value[0, 1] == pytest.approx(alone.value, rel=1e-6)
    assert every.n_texts[0, 1] == 3


def test_independent_log_ratios_give_their_variance_however_long_the_spans():
    """Log-ratios with a variance of 0.02 nats² a byte and any drift: of a token of 3 bytes KL is the mean of
    x tanh(x / 2), x normal with a variance of 0.06, whatever the spans."""
    generator = np.random.default_rng(10)
    N, n = 20_000, 4
    spans = Spans(generator.choice([16, 32, 96], size=N * n), np.arange(0, N * n + 1, n))
    d = np.repeat(generator.normal(scale=3.0, size=N), n) * spans.bytes / 100
    d += generator.normal(size=N * n) * np.sqrt(0.02 * spans.bytes)
    found = span_kl(d, np.zeros(N * n), spans)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    x = math.sqrt(0.06) * nodes
    exact = (weights * x * np.tanh(x / 2)).sum() / weights.sum() / (3 * math.log(2))
    assert found.value == pytest.approx(exact, abs=4 * found.standard_error)
    assert found.standard_error < 0.01 * found.value
    assert found.drift_share.value > 0.5


@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_intervals_cover(tails):
    generator = np.random.default_rng(11)
    N, n, held, shares = 120, 12, [], []
    spans = Spans(np.full(N * n, 32), np.arange(0, N * n + 1, n))
    documents = np.arange(N) // 3
    for _ in range(300):
        scale = np.repeat(generator.gamma(4, 0.25, size=N // 3), 3 * n)  # documents differ in how far models are apart
        noise = generator.normal(size=N * n) if tails == "normal" else generator.laplace(size=N * n) / math.sqrt(2)
        drift = np.repeat(generator.normal(size=N), n) * 0.5
        found = span_kl((np.sqrt(scale) * noise + drift) / 10, np.zeros(N * n), spans, documents=documents)
        truth = 0.005 / 32 / math.log(2)
        held.append(found.interval[0] <= truth <= found.interval[1])
        low, high = found.drift_share.interval
        shares.append(low <= 1 - 0.5 / (0.5 * (n + n**2 * 0.25) / n) <= high)
    assert 0.90 <= np.mean(held) <= 0.985
    assert 0.90 <= np.mean(shares) <= 0.99


def test_a_gaussian_tilt_gives_exact_kl_where_whole_texts_do_not():
    """Next-symbol distributions of two bigram models, KL by enumeration over texts of known law; one of them favours
    some texts, which is drift."""
    generator = np.random.default_rng(12)
    V, T, N = 4, 96, 3000
    p = generator.dirichlet(np.full(V, 2.0), size=V)
    tilt = np.exp(0.12 * generator.normal(size=(V, V)))
    q = p * tilt / (p * tilt).sum(axis=1, keepdims=True)
    exact = (p * np.log(p / q)).sum(axis=1)
    law = np.linalg.matrix_power(p, 200)[0]
    kl_symbol = float((law * exact).sum())
    state = generator.choice(V, size=N, p=law)
    log_ratio = np.empty((N, T))
    for t in range(T):
        after = (generator.random(N)[:, None] > np.cumsum(p[state], axis=1)[:, :-1]).sum(axis=1)
        log_ratio[:, t] = np.log(p[state, after] / q[state, after])
        state = after
    pieces = log_ratio.reshape(N, 6, 16).sum(axis=2).ravel()
    spans = Spans(np.full(N * 6, 16), np.arange(0, 6 * N + 1, 6))
    found = span_kl(pieces, np.zeros(len(pieces)), spans)
    assert found.value == pytest.approx(kl_symbol / math.log(2), rel=0.05)
    drift = np.repeat(0.5 * generator.normal(size=N), 6)
    drifting = span_kl(pieces + drift, np.zeros(len(pieces)), spans)
    assert drifting.value == pytest.approx(found.value, rel=1e-12)
    assert drifting.drift_share.value > 0.8


def test_tokens_of_both_models_give_exact_kl_however_far_apart():
    """Tokens drawn from either of two distributions: KL by enumeration, where half the variance is more than twice
    it. The two mirror each other, so that no text favours one."""
    generator = np.random.default_rng(15)
    p = np.exp(3 * generator.normal(size=12))
    p /= p.sum()
    q = p[::-1]
    exact = float(((p - q) * np.log(p / q)).sum() / 2)
    N, n = 400, 200
    log_ratio = np.log(p / q)[generator.choice(12, size=N * n, p=(p + q) / 2)]
    spans = Spans(np.full(N * n, 3), np.arange(0, N * n + 1, n))
    found = span_kl(log_ratio, np.zeros(N * n), spans)
    assert found.value == pytest.approx(exact / (3 * math.log(2)), rel=0.01)
    assert exact > 2
    assert log_ratio.var() / 2 > 2 * exact


def test_all_pairs_of_many_models_use_a_part_of_the_texts(monkeypatch):
    values, spans = a_world(np.random.default_rng(16), n_texts=90, n_models=6)
    documents = [s // 9 for s in range(90)]
    texts, V, size, *_ = naive_texts(values, values[0], values[4], spans)
    monkeypatch.setattr(span_science, "MOST_TERMS", 18 * len(spans.bytes) // 3)
    matrix = span_kl_matrix(values, spans, documents=documents)
    third = slice(None, None, 3)
    value, error = naive_kl(V[third], size[third], [documents[s] for s in texts[third]])
    assert matrix.value[0, 4] == pytest.approx(value, rel=1e-6)
    assert matrix.standard_error[0, 4] == pytest.approx(error, rel=1e-6)
    assert matrix.n_texts[0, 4] == len(V[third])


def test_a_drift_share_that_the_texts_do_not_tell_is_not_reported():
    """Log-ratios that nearly cancel in each of a few short texts: the share would be some -10,000 %."""
    generator = np.random.default_rng(14)
    spans = Spans(np.full(60, 32), np.arange(0, 61, 2))
    step = generator.normal(size=30)
    apart = np.stack([step, -step + 0.05 * generator.standard_t(2, size=30)], axis=1).ravel()
    assert span_kl(apart, np.zeros(60), spans).value > 0
    _, V, size, d, whole = naive_texts(np.stack([apart, 0 * apart]), apart, 0 * apart, spans)
    assert 1 - (V.sum() / size.sum()) / (d.var() / (2 * whole.mean())) < -50
    assert math.isnan(span_kl(apart, np.zeros(60), spans).drift_share.value)


def test_the_error_of_the_drift_share_is_that_of_resamples():
    generator = np.random.default_rng(13)
    values, spans = a_world(generator, n_texts=400, n_models=2)
    found = span_kl(*values, spans).drift_share
    _, V, size, d, whole = naive_texts(values, *values, spans)
    again = []
    for _ in range(1000):
        at = generator.integers(len(V), size=len(V))
        again.append(1 - (V[at].sum() / size[at].sum()) / (d[at].var() / (2 * whole[at].mean())))
    assert found.standard_error == pytest.approx(np.std(again), rel=0.1)
