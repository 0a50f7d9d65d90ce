"""The science against naive loops, closed forms and simulation."""

from __future__ import annotations

import csv
import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from conftest import EXAMPLE
from klscale.science.bootstrap import estimate_from_resamples, resampled_kl
from klscale.science.estimates import critical_value, format_estimate
from klscale.science.kl import (
    QUANTITIES,
    bits_per_byte,
    coordinates,
    kl,
    kl_difference,
    kl_matrix,
    kl_pairs,
    kl_values,
    nats2_per_bit_per_byte,
    shift_cosine,
)
from klscale.science.moments import double_centre


@pytest.mark.parametrize("few", [1, 2])
def test_too_few_texts_have_no_kl_and_no_standard_error(few):
    """One text has no variance. Two are equally far from their mean, which would be an error of 0."""
    L, size = np.array([[-300.0, -200.0], [-310.0, -202.0]])[:, :few], np.array([100, 80])[:few]
    direct = kl_pairs(L, size, np.array([[0, 1]]))
    for value, error in (
        (kl(*L, size).value, kl(*L, size).standard_error),
        (direct["value"][0], direct["standard_error"][0]),
    ):
        assert math.isnan(error)
        assert math.isnan(value) if few == 1 else value == pytest.approx(16 / (2 * 90 * math.log(2)))
    assert np.isnan(kl(*L, size).interval).all()


def naive_kl(a, b, mean_bytes):
    """KL and standard error as SCIENCE writes them, in Python's exact float arithmetic."""
    d = [x - y for x, y in zip(a, b, strict=True)]
    n = len(d)
    mean = math.fsum(d) / n
    m2 = math.fsum((x - mean) ** 2 for x in d) / n
    m4 = math.fsum((x - mean) ** 4 for x in d) / n
    scale = 2 * mean_bytes * math.log(2)
    return m2 / scale, math.sqrt((m4 - m2**2) / n) / scale


@pytest.fixture
def matrix():
    generator = np.random.default_rng(1)
    L = -900 + 300 * generator.normal(size=500) + 40 * generator.laplace(size=(7, 500)) + generator.normal(size=(7, 1))
    return L, generator.integers(257, 1025, size=500)


def test_all_pairs_equal_a_naive_loop(matrix):
    L, size = matrix
    result = kl_matrix(L, size)
    for i, j in itertools.combinations(range(7), 2):
        value, error = naive_kl(L[i], L[j], size.mean())
        assert result[i, j].value == pytest.approx(value, rel=1e-12)
        assert result[i, j].standard_error == pytest.approx(error, rel=1e-11)
    assert np.array_equal(result.value, result.value.T)
    assert (np.diag(result.value) == 0).all()


def test_one_bit_per_byte_is_the_published_number_of_nats2():
    assert nats2_per_bit_per_byte(972.3188) == pytest.approx(1347.92, abs=0.005)


def test_gaussian_tilt_gives_the_exact_kl():
    """Texts from p, log q/p Gaussian with variance v and mean -v/2 (so that q is normalised): KL(p||q) = v/2 nats."""
    generator = np.random.default_rng(2)
    v, n, mean_bytes = 30.0, 400_000, 100
    ratio = generator.normal(-v / 2, math.sqrt(v), size=n)
    exact = -ratio.mean() / mean_bytes / math.log(2)
    result = kl(np.zeros(n), ratio, np.full(n, mean_bytes))
    assert result.value == pytest.approx(exact, rel=0.02)
    assert result.value == pytest.approx(v / 2 / mean_bytes / math.log(2), abs=4 * result.standard_error)
    assert result.nats_per_text == pytest.approx(v / 2, rel=0.01)


def test_coordinates_reproduce_kl_as_squared_distances(matrix):
    L, size = matrix
    points = coordinates(L, float(size.mean()))
    distances = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(distances, kl_matrix(L, size).value, rtol=1e-10, atol=1e-14)


def test_close_pairs_keep_their_digits():
    """Two rows 1e-3 nats apart against a spread of 300, among others: value and standard error to 6 digits."""
    generator = np.random.default_rng(3)
    L = -1000 + 300 * generator.normal(size=(5, 2000))
    L[1] = L[0] + 1e-3 * generator.laplace(size=2000)
    size = np.full(2000, 900)
    value, error = naive_kl(L[0], L[1], 900)
    pair = kl_matrix(L, size)[0, 1]
    assert pair.value == pytest.approx(value, rel=1e-9)
    assert pair.standard_error == pytest.approx(error, rel=1e-9)
    # The product form alone would not: this is what the recomputation is for.
    Q = double_centre(L)
    products = Q @ Q.T
    assert abs((products[0, 0] + products[1, 1] - 2 * products[0, 1]) / 2000 / (value * 1800 * math.log(2)) - 1) > 1e-9


def test_identical_rows_are_at_zero(matrix):
    L, size = matrix
    pair = kl(L[0], L[0] + 5.0, size)
    assert pair.value == pytest.approx(0, abs=1e-25)
    assert pair.interval[0] >= 0
    assert str(kl(L[0], L[0], size)) == "0 bits/byte"


def test_the_real_matrix_equals_a_direct_computation():
    """All 91 KLs of 14 real models to 1e-9 relative."""
    with EXAMPLE.open() as file:
        rows = list(csv.DictReader(file))
    models = [name for name in rows[0] if "/" in name]
    L = np.array([[float(row[name]) for row in rows] for name in models])
    size = np.array([int(row["bytes"]) for row in rows])
    result = kl_matrix(L, size, labels=models)
    pairs = list(result.pairs())
    assert len(pairs) == 91
    for a, b, found in pairs:
        direct = np.var(L[models.index(a)] - L[models.index(b)]) / (2 * size.mean() * np.log(2))
        assert found.value == pytest.approx(direct, rel=1e-9)


def test_columns_hold_what_the_pairs_hold(matrix):
    L, size = matrix
    L[1] = L[0]
    L[2, :7] = np.nan
    documents = np.random.default_rng(4).integers(90, size=500).astype(str)
    result = kl_matrix(L, size, clip=float(np.nanquantile(L, 0.02)), documents=documents)
    columns = result.columns()
    for n, (a, b, pair) in enumerate(result.pairs()):
        assert (columns["a"][n], columns["b"][n]) == (a, b)
        assert (columns["interval_low"][n], columns["interval_high"][n]) == pytest.approx(pair.interval, rel=1e-12)
        for name in ("value", "standard_error", "n_texts", "clipped", "in_range"):
            assert columns[name][n] == getattr(pair, name)


# ------------------------------------------------------------------------------------------- missing, clip, clusters


def test_pairs_use_the_texts_that_both_have(matrix):
    L, size = matrix
    L[1, :100] = np.nan
    L[2, 50:60] = np.nan
    L[5, 3:] = np.nan
    result = kl_matrix(L, size)
    for i, j in itertools.combinations(range(7), 2):
        both = ~np.isnan(L[i]) & ~np.isnan(L[j])
        assert result[i, j].n_texts == both.sum()
        if both.sum() < 2:
            assert math.isnan(result[i, j].value)
            continue
        value, error = naive_kl(L[i, both], L[j, both], size[both].mean())
        assert result[i, j].value == pytest.approx(value, rel=1e-11)
        assert result[i, j].standard_error == pytest.approx(error, rel=1e-10)


def test_the_clip_is_used_unless_it_moves_more_than_five_percent(matrix):
    L, size = matrix
    clip = float(np.quantile(L[:5], 0.02))
    L[6] -= 1000  # a poor model: the clip would flatten it
    result = kl_matrix(L, size, clip=clip)
    near, far = result[0, 1], result[0, 6]
    clipped = np.maximum(L, clip)
    assert near.uses_clip
    assert near.value == pytest.approx(naive_kl(clipped[0], clipped[1], size.mean())[0], rel=1e-11)
    assert near.value_unclipped == pytest.approx(naive_kl(L[0], L[1], size.mean())[0], rel=1e-11)
    assert near.clipped == max((L[0] < clip).mean(), (L[1] < clip).mean())
    assert not far.uses_clip
    assert far.clipped > 0.05
    assert far.value == far.value_unclipped


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("clipped", [False, True])
def test_values_alone_equal_a_naive_loop(matrix, clipped, missing):
    L, size = matrix
    clip = float(np.quantile(L[:5], 0.02)) if clipped else None
    L[6] -= 1000  # the clip serves all vectors but this
    if missing:
        L[2, :7] = np.nan
    found = kl_values(L, size, clip=clip)
    for i, j in itertools.product(range(7), repeat=2):
        limit = clip if clipped and 6 not in (i, j) else -math.inf
        both = ~np.isnan(L[i] - L[j])
        a, b = (np.maximum(L[k, both], limit) for k in (i, j))
        assert found[i, j] == pytest.approx(naive_kl(a, b, size[both].mean())[0], rel=1e-9, abs=1e-25)


def test_range_is_left_far_apart_and_far_from_the_texts(matrix):
    L, size = matrix
    alike = L.mean(axis=0) + 0.2 * (L - L.mean(axis=0))
    good = alike * (0.9 * size.sum() * math.log(2) / -alike.sum(axis=1))[:, None]  # 0.9 bits per byte each
    assert kl(good[0], good[1], size).in_range
    assert not kl(3 * good[0], 3 * good[1], size).in_range, "2.7 bits per byte"
    near = np.random.default_rng(0).normal(size=500)
    near /= near.std()
    for deviation, in_range in ((14.0, True), (14.3, False)):  # half of the variance is KL in nats per text: 98, 102
        apart = np.stack([good[1], good[1] + deviation * near])
        assert kl(*apart, size).in_range is in_range
        assert kl_pairs(apart, size, np.array([[0, 1]]))["in_range"][0] == in_range
    # of texts twice as long half the bits per byte, but as many nats per text
    assert not kl(*apart, 2 * size).in_range


@pytest.mark.parametrize("n_groups", [30, 200])
def test_clustered_standard_errors_equal_sums_over_documents(matrix, n_groups):
    L, size = matrix
    L[1] = L[0] + 1e-4 * np.random.default_rng(0).normal(size=500)  # a close pair too
    documents = np.random.default_rng(4).integers(n_groups, size=500).astype(str)
    result = kl_matrix(L, size, documents=documents)
    scale = 2 * size.mean() * math.log(2)
    for i, j in itertools.combinations(range(7), 2):
        d = L[i] - L[j]
        d = d - d.mean()
        influence = d**2 - (d**2).mean()
        sums = [influence[documents == g].sum() for g in sorted(set(documents))]
        n_documents = len(sums)
        variance = sum(s**2 for s in sums) / 500**2 * n_documents / (n_documents - 1)
        assert result[i, j].standard_error == pytest.approx(math.sqrt(variance) / scale, rel=1e-8)
        assert result[i, j].n_documents == n_documents


def test_texts_of_one_document_are_taken_as_independent(matrix):
    L, size = matrix
    assert kl_matrix(L, size, documents=["x"] * 500)[0, 1] == kl_matrix(L, size)[0, 1]


def test_one_text_a_document_is_no_clustering(matrix):
    L, size = matrix
    alone = kl_matrix(L, size, documents=[str(s) for s in range(500)])
    assert alone[0, 1] == kl_matrix(L, size)[0, 1]


def bootstrap(a, b, size, documents=None):
    """KL of 2,000 samples of the texts, or of whole documents."""
    generator = np.random.default_rng(0)
    labels = np.arange(len(a)) if documents is None else documents
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    values = []
    for _ in range(2000):
        drawn = np.concatenate([groups[g] for g in generator.integers(len(groups), size=len(groups))])
        values.append(np.var(a[drawn] - b[drawn]) / (2 * size[drawn].mean() * math.log(2)))
    return np.array(values)


def test_bootstrap_spread_agrees_with_the_standard_error(matrix):
    L, size = matrix
    pair = kl(L[0], L[1], size)
    assert bootstrap(L[0], L[1], size).std() == pytest.approx(pair.standard_error, rel=0.1)
    documents = np.random.default_rng(4).integers(60, size=500).astype(str)
    clustered = kl(L[0], L[1], size, documents=documents)
    # Texts differ in length, and the bootstrap draws lengths too: agreement, not equality.
    assert bootstrap(L[0], L[1], size, documents).std() == pytest.approx(clustered.standard_error, rel=0.2)


def test_difference_of_two_kls_is_paired(matrix):
    L, size = matrix
    L[2] = L[1] + 3 * np.random.default_rng(5).normal(size=500)  # nearly the same model as L[1]
    result = kl_matrix(L, size)
    difference = kl_difference((L[0], L[2]), (L[0], L[1]), size)
    assert difference.value == pytest.approx(result[0, 2].value - result[0, 1].value, rel=1e-9)
    unpaired = math.hypot(result[0, 2].standard_error, result[0, 1].standard_error)
    assert difference.standard_error < unpaired / 3
    # and by resampling texts
    generator, draws = np.random.default_rng(6), []
    for _ in range(2000):
        s = generator.integers(500, size=500)
        draws.append((np.var(L[0, s] - L[2, s]) - np.var(L[0, s] - L[1, s])) / (2 * size.mean() * math.log(2)))
    assert difference.standard_error == pytest.approx(np.std(draws), rel=0.1)


def test_of_models_without_common_texts_nothing_is_known(matrix):
    L, size = matrix
    first, second = np.where(np.arange(500) < 250, L[:1], np.nan)[0], np.where(np.arange(500) < 250, np.nan, L[:1])[0]
    for found in (kl_difference((first, second), (L[0], L[1]), size), shift_cosine(first, second, L[1])):
        assert (math.isnan(found.value), math.isnan(found.interval[0]), found.n_texts) == (True, True, 0)


def test_bits_per_byte_is_a_ratio_of_sums(matrix):
    L, size = matrix
    found = bits_per_byte(L[0], size)
    assert found.value == pytest.approx(-L[0].sum() / math.log(2) / size.sum())
    generator, draws = np.random.default_rng(7), []
    for _ in range(2000):
        s = generator.integers(500, size=500)
        draws.append(-L[0, s].sum() / math.log(2) / size[s].sum())
    assert found.standard_error == pytest.approx(np.std(draws), rel=0.1)
    none = bits_per_byte(np.full(500, np.nan), size)
    assert (math.isnan(none.value), math.isnan(none.standard_error), none.n_texts) == (True, True, 0)


def test_estimates_are_printed_to_the_digits_of_their_error():
    assert format_estimate(0.023114, 0.000421) == "0.02311 ± 0.00042"
    assert format_estimate(1.70492, 0.0604) == "1.705 ± 0.060"
    assert format_estimate(123.4, 17.0) == "123 ± 17"
    assert format_estimate(-0.5, 0.011, sign=True) == "-0.500 ± 0.011"
    assert format_estimate(3e-12, 2e-13) == "3e-12 ± 2.0e-13"
    assert format_estimate(0.0, 0.0) == "0"


# --------------------------------------------------------------------------------------------- coverage by simulation


def mixture(generator, shape):
    """1 % of the texts ten times as far out: kurtosis near 76."""
    return generator.normal(size=shape) * np.where(generator.random(shape) < 0.01, 10.0, 1.0)


FAMILIES = {
    # name: (draw, variance, least coverage, most coverage, the warning must fire in this share of the samples)
    "Gaussian": (lambda g, s: g.normal(size=s), 1.0, 0.93, 0.97, 0.0),
    "Laplace": (lambda g, s: g.laplace(size=s), 2.0, 0.93, 0.97, 0.0),
    "variance-gamma, kurtosis 10": (
        lambda g, s: g.normal(size=s) * np.sqrt(g.gamma(3 / 7, 7 / 3, size=s)), 1.0, 0.93, 0.97, 0.0,
    ),
    "Student t, 3 degrees of freedom": (lambda g, s: g.standard_t(3, size=s), 3.0, 0.70, 0.90, 0.9),
    "two-component mixture": (mixture, 1.99, 0.85, 0.95, 0.99),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_coverage_of_the_printed_interval(family):
    """At N = 2,000 texts: nominal for light and moderate tails, short for heavy ones, where the warning fires."""
    draw, variance, least, most, warned = FAMILIES[family]
    generator = np.random.default_rng(2026)
    exact = variance / nats2_per_bit_per_byte(1.0)
    covered, heavy, n_samples = 0, 0, 2000
    for _ in range(n_samples // 250):
        for row in draw(generator, (250, 2000)):
            found = kl(row, np.zeros(2000), np.ones(2000, dtype=np.int64))
            covered += found.interval[0] <= exact <= found.interval[1]
            heavy += found.heavy_tails
    assert least <= covered / n_samples <= most
    assert heavy / n_samples >= warned


@pytest.mark.slow
def test_coverage_with_texts_of_shared_documents():
    """40 documents of 25 correlated texts: clustered intervals cover, intervals that ignore documents do not."""
    generator = np.random.default_rng(2027)
    documents = np.repeat(np.arange(40), 25)
    exact = 1.0 / nats2_per_bit_per_byte(1.0)
    covered = {"clustered": 0, "ignored": 0}
    for _ in range(1000):
        spread = np.sqrt(generator.gamma(4, 1 / 4, size=40))  # each document has a spread of its own
        d = generator.normal(size=1000) * spread[documents]
        for name, labels in (("clustered", documents), ("ignored", None)):
            low, high = kl(d, np.zeros(1000), np.ones(1000, dtype=np.int64), documents=labels).interval
            covered[name] += low <= exact <= high
    assert 0.92 <= covered["clustered"] / 1000 <= 0.97
    assert covered["ignored"] / 1000 < 0.75


def test_the_cosine_of_shifts_and_its_error():
    """Against the cosine of centred differences written out, and the spread of the estimate over many draws."""
    generator = np.random.default_rng(3)

    def draw():
        base, common = -200 + 30 * generator.normal(size=400), generator.standard_t(8, size=400)
        return base, base + common + generator.normal(size=400), base + 2 * common + generator.normal(size=400)

    base, first, second = draw()
    u, v = first - base - (first - base).mean(), second - base - (second - base).mean()
    found = shift_cosine(base, first, second)
    assert found.value == pytest.approx(u @ v / np.sqrt((u @ u) * (v @ v)), rel=1e-12)
    assert found.unit == ""
    drawn = [shift_cosine(*draw()) for _ in range(400)]
    assert np.mean([e.standard_error for e in drawn]) == pytest.approx(np.std([e.value for e in drawn]), rel=0.15)
    truth = shift_cosine(*(np.concatenate(rows) for rows in zip(*(draw() for _ in range(500)), strict=True))).value
    assert 0.91 < np.mean([e.interval[0] <= truth <= e.interval[1] for e in drawn]) < 0.98
    same = shift_cosine(base, first, first)
    assert same.value == pytest.approx(1)
    assert np.isnan(shift_cosine(base, base, first).value)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("missing", [False, True])
def test_some_pairs_are_as_in_the_matrix(documents, missing):
    """By another way than the matrix goes; the bootstrap is that of a loop over samples."""
    generator = np.random.default_rng(3)
    L = -200 + 60 * generator.normal(size=150) + 8 * generator.normal(size=(7, 150))
    L[6] -= 400  # far from the texts, and beyond what may be clipped
    if missing:
        L[2, 5:30] = L[4, 100:] = np.nan
        L[5, 1:] = np.nan
    size = generator.integers(60, 140, size=150)
    labels = generator.integers(40, size=150) if documents else None
    pairs, draws = (
        np.array([(0, 1), (4, 2), (6, 3), (5, 1), (2, 0)]),
        generator.poisson(1.0, size=(6, 150)).astype(float),
    )
    clip = float(np.nanquantile(L[:6], 0.02))
    found = kl_pairs(L, size, pairs, clip=clip, documents=labels, draws=draws)
    matrix = kl_matrix(L, size, clip=clip, documents=labels)
    for field in QUANTITIES:
        np.testing.assert_allclose(found[field], getattr(matrix, field)[tuple(pairs.T)], rtol=1e-10)
    for n, (i, j) in enumerate(pairs):
        if not matrix.n_texts[i, j]:
            continue
        a, b = (np.maximum(L[k], clip) if matrix.uses_clip[i, j] else L[k] for k in (i, j))
        both = ~np.isnan(a) & ~np.isnan(b)
        for r, times in enumerate(draws[:, both].astype(int)):
            d = np.repeat((a - b)[both], times)
            expected = d.var() / (2 * np.repeat(size[both], times).mean() * np.log(2))
            assert found["resampled"][n, r] == pytest.approx(expected, rel=1e-9)


# ---------------------------------------------------------------------------------------------- resamples of all pairs


@pytest.mark.parametrize("documents", [False, True])
def test_resampled_pairs_equal_a_loop_over_samples(documents):
    """Nearly equal rows, 1e-3 nats apart against a spread of 300, keep their digits."""
    generator = np.random.default_rng(6)
    L = -900 + 300 * generator.normal(size=120) + 40 * generator.laplace(size=(5, 120))
    L[3] = L[1] + 1e-3 * generator.normal(size=120)
    size = generator.integers(257, 1025, size=120)
    labels = generator.integers(30, size=120) if documents else None
    found = resampled_kl(L, size, documents=labels, resamples=4, seed=7)
    assert found.shape == (4, 5, 5)
    codes = np.unique(labels.astype(str), return_inverse=True)[1] if documents else np.arange(120)
    drawing = np.random.default_rng(7)
    for kl_of in found:
        drawn = drawing.integers(codes.max() + 1, size=codes.max() + 1)
        sample = np.concatenate([np.flatnonzero(codes == cluster) for cluster in drawn])
        for i, j in itertools.product(range(5), repeat=2):
            value, _ = naive_kl(L[i, sample], L[j, sample], size[sample].mean())
            assert kl_of[i, j] == pytest.approx(value, rel=1e-9)


def test_estimates_from_resamples_have_their_spread(matrix):
    """Of a KL, whose standard error is known by the delta method too; with documents by Student's t."""
    L, size = matrix
    documents = np.arange(500) // 50
    for labels, quantile in ((None, 1.959964), (documents, 2.262157)):
        pair = kl_matrix(L, size, documents=labels)[0, 1]
        resampled = resampled_kl(L[:2], size, documents=labels, resamples=2000)[:, 0, 1]
        found = estimate_from_resamples(pair.value, resampled, 500, documents=labels)
        assert found.standard_error == pytest.approx(pair.standard_error, rel=0.1)
        assert found.interval[1] - found.value == pytest.approx(quantile * found.standard_error, rel=1e-6)
        assert (found.value, found.n_texts, found.unit) == (pair.value, 500, "bits/byte")


def test_equal_resamples_have_no_error():
    """Of values that tie, a quantile is the same in every sample; their mean is rounded."""
    resampled = np.full(999, 0.1234567)
    assert np.std(resampled, ddof=1) > 0
    assert estimate_from_resamples(0.1234567, resampled, 500).standard_error == 0


def test_quantiles_are_those_of_scipy():
    """The one that is written down has all digits of what SciPy gives at infinite degrees of freedom."""
    assert critical_value() == special.stdtrit(np.inf, 0.975) == pytest.approx(stats.norm.ppf(0.975), rel=1e-15)
    np.testing.assert_array_equal(critical_value(np.array([0, 0])), special.stdtrit(np.inf, [0.975, 0.975]))
    np.testing.assert_allclose(critical_value(np.array([0, 5])), [stats.norm.ppf(0.975), stats.t.ppf(0.975, 4)])
    assert critical_value(0, 0.9) == pytest.approx(stats.norm.ppf(0.95))
