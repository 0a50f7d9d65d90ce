"""KL by sampled tokens: against sums over the whole vocabulary, naive loops and simulation."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from klscale.science import sampled_tokens
from klscale.science.kl import kl
from klscale.science.reported import ReportedKL
from klscale.science.sampled_tokens import (
    FEW_EFFECTIVE,
    HEAVY_WEIGHT,
    MIXTURE,
    Draws,
    directed_terms,
    draw_tokens,
    sampled_kl,
    sampled_kl_matrix,
    tail_index,
    unigram,
)


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def exact_kl(log_p, log_q):
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        return np.where(p > 0, p * (log_p - log_q), 0.0).sum(axis=-1)


def proposal(log_p, seen):
    half = np.exp(log_p / 2)
    a, b, c = MIXTURE
    return np.log(a * np.exp(log_p) + b * half / half.sum(axis=-1, keepdims=True) + c * seen)


@pytest.mark.parametrize("apart", [1e-7, 1e-2, 1.0, 8.0])
def test_terms_are_unbiased(apart):
    """Summed over the whole vocabulary with weights r they are KL and total variation."""
    generator = np.random.default_rng(0)
    logits = 2 * generator.normal(size=(3, 50))
    log_p = log_softmax(logits)
    log_q = log_softmax(logits + apart * generator.normal(size=(3, 50)))
    log_r = proposal(log_p, np.full(50, 0.02))
    terms = directed_terms(log_p, log_q, log_r)
    forward, backward, variation = ((np.exp(log_r) * term).sum(axis=1) for term in terms)
    d = (log_q - log_p).astype(np.longdouble)
    p = np.exp(log_p.astype(np.longdouble))
    np.testing.assert_allclose(forward, (p * (np.expm1(d) - d)).sum(axis=1).astype(float), rtol=1e-8)
    q = np.exp(log_q.astype(np.longdouble))
    np.testing.assert_allclose(backward, (q * (np.expm1(-d) + d)).sum(axis=1).astype(float), rtol=1e-8)
    if apart >= 1e-2:
        np.testing.assert_allclose(forward, exact_kl(log_p, log_q), rtol=1e-8)
    np.testing.assert_allclose(variation, np.abs(np.exp(log_p) - np.exp(log_q)).sum(axis=1) / 2, rtol=1e-6)
    assert min(term.min() for term in terms) >= 0


def a_world(generator, K=4, N=30, V=40, m=2, apart=0.3, seen=None):
    """Positions of N texts, K models, ids drawn for the first; the logarithms of all probabilities too."""
    counts = generator.integers(1, 12, size=N)
    text = np.repeat(np.arange(N), counts)
    base = 2 * generator.normal(size=(len(text), V))
    shifts = apart * generator.normal(size=(K, len(text), V))
    shifts[0] = 0
    log_p = log_softmax(base + shifts)
    log_r = proposal(log_p[0], np.full(V, 1 / V))
    ids = np.stack([generator.choice(V, size=m, p=np.exp(row)) for row in log_r])
    at = np.arange(len(text))[:, None]
    draws = Draws(log_r[at, ids], text, generator.integers(40, 90, size=N))
    return log_p[:, at, ids], draws, log_p, ids


def naive(a, b, draws, documents=None):
    """Value and standard error of (symmetric, forward), and the mean total variation, term by term."""
    found = []
    labels = [s if documents is None else documents[s] for s in draws.text]
    names = sorted({*labels})
    size = dict.fromkeys(names, 0.0)
    for s in {*draws.text.tolist()}:
        size[s if documents is None else documents[s]] += draws.text_bytes[s] * math.log(2)
    for kind in ("symmetric", "forward"):
        total = dict.fromkeys(names, 0.0)
        for name, x, y, r in zip(labels, a, b, draws.log_proposal, strict=True):
            for k in range(len(r)):
                p, q, d = math.exp(x[k] - r[k]), math.exp(y[k] - r[k]), x[k] - y[k]
                total[name] += ((p - q) * d / 2 if kind == "symmetric" else p * d - p + q) / len(r)
        value = sum(total.values()) / sum(size.values())
        factor = 1 if documents is None else len(names) / (len(names) - 1)
        residuals = [total[name] - value * size[name] for name in names]
        found.append((value, math.sqrt(factor * sum(x * x for x in residuals)) / sum(size.values())))
    variation = np.mean(np.abs(np.exp(a - draws.log_proposal) - np.exp(b - draws.log_proposal)) / 2)
    return (*found, variation)


@pytest.mark.parametrize("clustered", [False, True])
def test_pairs_and_the_matrix_equal_naive_loops(clustered, monkeypatch):
    monkeypatch.setattr(sampled_tokens, "BATCH", 100)
    kept, draws, _, _ = a_world(np.random.default_rng(1))
    documents = [f"d{s // 3}" for s in range(30)] if clustered else None
    matrix = sampled_kl_matrix(kept, draws, documents=documents)
    for i, j in itertools.permutations(range(4), 2):
        (value, error), (forward, forward_error), variation = naive(kept[i], kept[j], draws, documents)
        pair = sampled_kl(kept[i], kept[j], draws, documents=documents)
        for found, its_error in (
            (pair.symmetric.value, pair.symmetric.standard_error),
            (matrix.symmetric[i, j], matrix.symmetric_error[i, j]),
        ):
            assert found == pytest.approx(value, rel=1e-10)
            assert its_error == pytest.approx(error, rel=1e-9)
        for found, its_error in (
            (pair.forward.value, pair.forward.standard_error),
            (matrix.forward[i, j], matrix.forward_error[i, j]),
        ):
            assert found == pytest.approx(forward, rel=1e-10)
            assert its_error == pytest.approx(forward_error, rel=1e-9)
        assert pair.backward.value == pytest.approx(matrix.forward[j, i], rel=1e-10)
        assert pair.total_variation.value == pytest.approx(variation, rel=1e-10)
        weights = (np.exp(kept[i] - draws.log_proposal) + np.exp(kept[j] - draws.log_proposal)) / 2
        effective = weights.sum() ** 2 / (weights**2).sum() / weights.size
        assert pair.effective == pytest.approx(effective, rel=1e-12)
        assert matrix.effective[i, j] == pytest.approx(effective, rel=1e-12)
        assert matrix.largest_weight[i, j] == pytest.approx(pair.largest_weight, rel=1e-12)
        rule = pair.effective < FEW_EFFECTIVE or pair.largest_weight > HEAVY_WEIGHT * pair.n_draws
        assert bool(matrix.poor[i, j]) == rule <= pair.poor


@pytest.mark.parametrize("clustered", [False, True])
def test_kl_by_depth_equals_naive_loops(clustered):
    """Means over positions, with the error of a ratio of sums over texts or documents."""
    generator = np.random.default_rng(3)
    lengths = np.array([3, 20, 90, 400, 17, 70, 300, 40, 16, 80])
    text = np.repeat(np.arange(2, 12), lengths)  # two texts have no positions
    draws = Draws(generator.normal(-3, 0.1, size=(len(text), 2)), text, np.full(13, 50))
    a, b = draws.log_proposal + generator.normal(0, 0.3, size=(2, *draws.log_proposal.shape))
    b[7, 0] = np.nan
    documents = tuple(f"d{n // 2}" for n in range(13)) if clustered else None
    found = sampled_tokens.kl_by_depth(a, b, draws, documents=documents)
    assert [(one.first, one.last) for one in found] == [(0, 15), (16, 63), (64, 255), (256, 399)]
    for one in found:
        sums, counts = dict[int, float](), dict[int, int]()
        for p in range(len(text)):
            depth = p - int(np.flatnonzero(text == text[p])[0])
            if not one.first <= depth <= one.last:
                continue
            terms = directed_terms(*np.nan_to_num(np.stack([a[p], np.where(np.isnan(b[p]), -np.inf, b[p])]), nan=0.0,
                                                  neginf=-np.inf), draws.log_proposal[p])[0]  # fmt: skip
            if p == 7:  # an id that one vocabulary lacks is left out
                terms[0] = 0.0
            unit = int(text[p]) // 2 if clustered else int(text[p])
            sums[unit] = sums.get(unit, 0.0) + terms.mean()
            counts[unit] = counts.get(unit, 0) + 1
        total, n = sum(sums.values()), sum(counts.values())
        assert one.n_positions == n
        assert one.kl.value == pytest.approx(total / n)
        squares = sum((sums[unit] - total / n * counts[unit]) ** 2 for unit in sums)
        few = len(sums) / (len(sums) - 1) if len(sums) < one.kl.n_texts else 1  # where texts share documents
        assert one.kl.standard_error == pytest.approx(math.sqrt(squares * few) / n)
        assert one.kl.unit == "nats/token"


def test_near_pairs_keep_their_digits():
    generator = np.random.default_rng(2)
    kept, draws, *_ = a_world(generator, K=3, apart=1.0)
    kept[1] = kept[2] + 1e-6 * generator.normal(size=kept[1].shape)
    matrix = sampled_kl_matrix(kept, draws)
    d = kept[1] - kept[2]
    weight = np.exp(kept[2] - draws.log_proposal)
    size = draws.text_bytes.sum() * math.log(2)
    half = (weight * d**2 / 2).mean(axis=1).sum() / size  # to second order, both ways
    assert matrix.symmetric[1, 2] == pytest.approx(half, rel=1e-4)
    assert matrix.forward[1, 2] == pytest.approx(half, rel=1e-4)
    assert matrix.symmetric[1, 2] == pytest.approx(sampled_kl(kept[1], kept[2], draws).symmetric.value, rel=1e-9)


def test_same_top_is_a_share_of_positions():
    kept, draws, log_p, _ = a_world(np.random.default_rng(3))
    tops = log_p.argmax(axis=2)
    found = sampled_kl(kept[0], kept[1], draws, top=(tops[0], tops[1])).same_top
    assert found is not None
    assert found.value == pytest.approx(np.mean(tops[0] == tops[1]))
    assert 0 < found.standard_error < 0.2


def test_what_a_model_rules_out_makes_infinity_and_no_nan():
    kept, draws, *_ = a_world(np.random.default_rng(4))
    plain = sampled_kl(kept[0], kept[1], draws)
    shape = kept[0].shape
    out = np.zeros(shape, dtype=bool)
    out[::5, 0] = True
    both = np.where(out, -np.inf, kept)
    shared = sampled_kl(both[0], both[1], draws)
    assert 0 < shared.symmetric.value < plain.symmetric.value
    for never in (-np.inf, -1e30):
        one = kept.copy()
        one[1][out] = never
        found = sampled_kl(one[0], one[1], draws)
        assert found.forward.value == found.symmetric.value == math.inf
        assert math.isfinite(found.backward.value)
        assert math.isfinite(found.total_variation.value)
        depths = sampled_tokens.kl_by_depth(one[0], one[1], draws)
        assert depths[0].kl.value == depths[0].kl.standard_error == math.inf
        matrix = sampled_kl_matrix(one, draws)
        assert matrix.forward[0, 1] == math.inf
        assert matrix.symmetric[1, 0] == math.inf
        assert matrix.forward[1, 0] == pytest.approx(found.backward.value, rel=1e-10)
        assert matrix.forward[0, 2] == pytest.approx(sampled_kl(one[0], one[2], draws).forward.value, rel=1e-10)
        for values in (matrix.symmetric, matrix.symmetric_error, matrix.forward, matrix.forward_error):
            assert not np.isnan(values).any()
    matrix = sampled_kl_matrix(both, draws)
    assert matrix.symmetric[0, 1] == pytest.approx(shared.symmetric.value, rel=1e-10)
    assert np.isfinite(matrix.symmetric).all()


def test_a_reported_pair_has_the_documents_and_the_caution_of_its_own_estimator():
    kept, draws, *_ = a_world(np.random.default_rng(6))
    documents = np.array([f"d{s // 5}" for s in range(60)])  # only texts of the first six have draws
    L = -np.random.default_rng(7).random((2, 60)) * 50
    whole = kl(*L, np.full(60, 60), documents=documents)
    sampled = sampled_kl(kept[0], kept[1], draws, documents=documents)
    found = ReportedKL.nearest(whole, None, sampled)
    assert (whole.n_documents, found.n_documents, found.n_texts) == (12, 6, 30)
    half = stats.t.ppf(0.975, 5) * found.standard_error / found.value
    assert found.interval == pytest.approx((found.value * math.exp(-half), found.value * math.exp(half)))
    kept[1][::5, 0] = -np.inf
    infinite = sampled_kl(kept[0], kept[1], draws, documents=documents)
    found = ReportedKL.nearest(whole, None, replace(infinite, largest_weight=math.inf))
    assert (found.value, found.n_documents, found.poor) == (whole.value, 12, False)


def test_ids_that_a_vocabulary_lacks_are_left_out_and_said():
    kept, draws, *_ = a_world(np.random.default_rng(5))
    lacking = kept.copy()
    gone = np.zeros(kept[0].shape, dtype=bool)
    gone[3, 1] = gone[10, 0] = True
    lacking[1][gone] = np.nan
    found, matrix = sampled_kl(lacking[0], lacking[1], draws), sampled_kl_matrix(lacking, draws)
    expected = sampled_kl(*np.where(gone, -np.inf, kept[:2]), draws)
    assert found.forward == expected.forward
    assert matrix.forward[0, 1] == pytest.approx(found.forward.value, rel=1e-10)
    assert found.outside == pytest.approx(np.exp(kept[0] - draws.log_proposal)[gone].sum() / gone.size, rel=1e-12)
    assert 0 < found.outside <= matrix.outside
    assert sampled_kl(kept[0], kept[1], draws).outside == 0


@pytest.mark.slow
def test_intervals_cover_exact_kl():
    """Positions are resampled with their exact KL, ids are drawn anew: the interval is of the population's KL."""
    generator = np.random.default_rng(6)
    V, population, N, n = 60, 4000, 300, 4
    base = 2 * generator.normal(size=(population, V))
    log_p = log_softmax(base)
    log_q = log_softmax(base + 0.5 * generator.normal(size=base.shape) * generator.gamma(2, 0.5, size=(population, 1)))
    log_r = proposal(log_p, np.full(V, 1 / V))
    cumulative = np.cumsum(np.exp(log_r), axis=1)
    truth = (exact_kl(log_p, log_q) + exact_kl(log_q, log_p)).mean() / 2 * n / 40 / math.log(2)
    held, ratios = [], []
    for _ in range(250):
        at = generator.integers(population, size=N * n)
        ids = (generator.random((N * n, 2))[:, :, None] > cumulative[at][:, None, :-1]).sum(axis=2)
        rows = at[:, None]
        draws = Draws(log_r[rows, ids], np.repeat(np.arange(N), n), np.full(N, 40))
        found = sampled_kl(log_p[rows, ids], log_q[rows, ids], draws).symmetric
        held.append(found.interval[0] <= truth <= found.interval[1])
        ratios.append(found.value / truth)
    assert np.mean(ratios) == pytest.approx(1, abs=4 * np.std(ratios) / 250**0.5)
    assert 0.91 <= np.mean(held) <= 0.985


# ------------------------------------------------------------------------------------------------------------ drawing


@pytest.mark.parametrize("tile", [7, 16, 100])
def test_draws_follow_the_proposal(tile):
    generator = np.random.default_rng(7)
    V, n = 40, 20_000
    logits = np.array([3 * generator.normal(size=V), generator.normal(size=V)])
    logits[0, 5] = logits[1, :7] = -np.inf  # one id, and at first a whole tile, ruled out
    seen = unigram(generator.integers(V, size=500), V)
    log_r = proposal(log_softmax(logits), seen)
    rows = np.repeat(logits, n, axis=0)
    tiles = [rows[:, start : start + tile] for start in range(0, V, tile)]
    ids, log_proposal = draw_tokens(tiles, seen, np.random.default_rng(8), m=2)
    assert ids.shape == log_proposal.shape == (2 * n, 2)
    np.testing.assert_allclose(log_proposal, log_r.repeat(n, axis=0)[np.arange(2 * n)[:, None], ids], rtol=1e-10)
    for k in range(2):
        for column in range(2):
            counts = np.bincount(ids[k * n : (k + 1) * n, column], minlength=V)
            expected = np.exp(log_r[k]) * n
            assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-4
        first, second = ids[k * n : (k + 1) * n].T
        top = int(log_r[k].argmax())
        both = np.mean((first == top) & (second == top))
        assert both == pytest.approx(np.exp(2 * log_r[k, top]), abs=4 * math.sqrt(0.25 / n))


def test_draws_are_the_same_for_a_seed_and_float32():
    logits = np.random.default_rng(9).normal(size=(50, 30)).astype(np.float32)
    seen = np.full(30, 1 / 30)
    first, again, other = (draw_tokens([logits], seen, np.random.default_rng([s, 3]))[0] for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_unigram_counts_every_id_once_more():
    assert unigram(np.array([1, 1, 3]), 5).tolist() == [1 / 8, 3 / 8, 1 / 8, 2 / 8, 1 / 8]


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_the_index_of_a_tail_is_that_of_its_distribution(k):
    """Of Pareto variables u**-k, whose tail is the same at every threshold."""
    found = [tail_index(np.random.default_rng(seed).random(20_000) ** -k) for seed in range(20)]
    assert np.mean(found) == pytest.approx(k, abs=3 * np.std(found) / np.sqrt(20) + 0.03)


@pytest.mark.parametrize("k", [0.7, 0.0, -0.4])
def test_the_index_of_a_tail_is_that_of_a_fit_by_scipy(k):
    """Heavy, exponential, and one that ends: the 90 largest of 900 terms, by what they exceed the next."""
    terms = stats.genpareto.rvs(k, size=900, random_state=4)
    largest = np.sort(terms)[-91:]
    excess = largest[1:] - largest[0]
    assert tail_index(terms) == pytest.approx(stats.genpareto.fit(excess / excess.mean(), floc=0)[0], rel=1e-9)


def test_terms_that_are_alike_have_no_tail():
    assert math.isnan(tail_index(np.ones(1000)))
    assert math.isnan(tail_index(np.array([1.0, 2.0])))
