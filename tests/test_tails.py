"""Tails: robust variances against closed forms and naive iterations, texts left out one by one, intervals by
simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from conftest import EXAMPLE
from klscale.errors import InputError
from klscale.inputs.texts import TextSet
from klscale.science.estimates import critical_value, log_interval, standard_error_of_mean
from klscale.science.kl import kl, nats2_per_bit_per_byte
from klscale.science.robust import huber_variance, trimmed_consistency, trimmed_variance, variance
from klscale.show import pictures
from klscale.show import tails as shown
from klscale.show.terminal import for_json
from klscale.studies import scales, tails
from klscale.studies.tails import ESTIMATORS, estimate_pairs, examine_pair, examine_tails, filter_run
from klscale.studies.trajectories import find_runs
from klscale.vectors.imports import read_log_likelihoods
from klscale.vectors.vectors import CONVENTION, Vectors

VARIANCES = {
    "headline": variance,
    "trimmed": trimmed_variance,
    "huber": huber_variance,
}


def made(L, size=None, rows=None, **texts):
    """Vectors of models m0, m1, ... with log-likelihoods L."""
    K, N = L.shape
    names = [f"o/m{k}" for k in range(K)] if rows is None else list(rows)
    plain = {"dtype": "float32", "convention": CONVENTION}
    known = {name: {**plain, **(rows[name] if rows else {})} for name in names}
    size = np.full(N, 100) if size is None else size
    if "texts" not in texts:
        texts["id"] = "made"
    return Vectors.from_arrays(L, names, TextSet("made", bytes=size, **texts), known)


def heavy(seed=0, K=4, N=300):
    generator = np.random.default_rng(seed)
    return np.minimum(-300 + 40 * generator.normal(size=N) + 6 * generator.standard_t(4, size=(K, N)), -1.0)


@pytest.fixture(scope="module")
def example():
    return read_log_likelihoods(EXAMPLE, id_column="text_id")


# ------------------------------------------------------------------------------------------------- robust variances


def naive_huber(values, k=1.5, divisor=None):
    """Location and scale of Proposal 2 by plain iteration; `divisor` of the mean square: N unless given."""
    beta = integrate.quad(lambda z: min(z * z, k * k) * stats.norm.pdf(z), -10, 10, points=(-k, k))[0]
    m, s = sorted(values)[len(values) // 2], stats.median_abs_deviation(values, scale="normal")
    before = 0.0
    while abs(s - before) > 1e-12 * s:
        before = s
        cut = [min(max(x, m - k * s), m + k * s) for x in values]
        m = math.fsum(cut) / len(cut)
        s = math.sqrt(math.fsum((x - m) ** 2 for x in cut) / (divisor or len(cut)) / beta)
    return m, s


def test_huber_is_the_published_value_of_known_data():
    """24 determinations of copper (Analytical Methods Committee, 1989): 3.2055 and 0.6737 with a divisor of N - 1, as
    textbooks have it; ours, of a population variance, is the same iteration with N."""
    chem = [2.2, 2.2, 2.4, 2.4, 2.5, 2.7, 2.8, 2.9, 3.03, 3.03, 3.1, 3.37, 3.4, 3.4, 3.4, 3.5, 3.6, 3.7, 3.7, 3.7, 3.7,
            3.77, 5.28, 28.95]  # fmt: skip
    assert naive_huber(chem, divisor=23) == pytest.approx((3.2055, 0.6737), abs=1e-4)
    assert huber_variance(np.array(chem))[0] == pytest.approx(naive_huber(chem)[1] ** 2, rel=1e-8)


def test_huber_equals_a_naive_iteration_for_many_rows_at_once():
    d = np.random.default_rng(1).standard_t(2, size=(2, 3, 101)) * 7 + 50
    found = huber_variance(d)[0]
    assert found.shape == (2, 3)
    for place in np.ndindex(2, 3):
        assert found[place] == pytest.approx(naive_huber(d[place].tolist())[1] ** 2, rel=1e-7)


def test_trimmed_variance_is_that_of_the_values_kept():
    """300 values: the 3 farthest from the median go, the rest is divided by what a Gaussian would keep."""
    d = np.random.default_rng(2).laplace(size=300)
    median = np.median(d)
    kept = sorted(d, key=lambda x: abs(x - median))[:297]
    q = stats.norm.ppf(0.995)
    left = 1 - 2 * q * stats.norm.pdf(q) / 0.99
    assert trimmed_consistency(0.99) == pytest.approx(left, rel=1e-9)
    assert trimmed_variance(d)[0] == pytest.approx(np.var(kept) / left, rel=1e-9)
    assert trimmed_variance(d[:99])[0] == pytest.approx(np.var(d[:99]), rel=1e-12), "of 99 none is left out"


def contaminated(share=0.03, spread=5.0):
    """What each estimator is for a normal law of which a share is as many times wider, by its own equations."""

    def density(x):
        return (1 - share) * stats.norm.pdf(x) + share * stats.norm.pdf(x / spread) / spread

    def mean(function, *kinks):
        return 2 * integrate.quad(lambda x: function(x) * density(x), 0, 60, points=kinks, limit=400)[0]

    def beyond(c):
        return 2 * ((1 - share) * stats.norm.sf(c) + share * stats.norm.sf(c / spread))

    cut = optimize.brentq(lambda c: beyond(c) - 0.01, 1, 30)
    q = stats.norm.ppf(0.995)
    trimmed = mean(lambda x: x * x * (x < cut), cut) / (0.99 - 2 * q * stats.norm.pdf(q))
    beta = integrate.quad(lambda z: min(z * z, 2.25) * stats.norm.pdf(z), -12, 12, points=(-1.5, 1.5))[0]
    huber = optimize.brentq(lambda s: mean(lambda x: min(x * x / s**2, 2.25), 1.5 * s) - beta, 0.5, 3) ** 2
    return {"headline": 1 + share * (spread**2 - 1), "trimmed": trimmed, "huber": huber}


@pytest.mark.parametrize("law", ["normal", "contaminated"])
def test_each_estimator_is_consistent(law):
    """All are the variance of a Gaussian; of a contaminated one each is what its equations say."""
    generator = np.random.default_rng(3)
    d = generator.normal(size=(4, 500_000))
    truth = dict.fromkeys(VARIANCES, 1.0)
    if law == "contaminated":
        d *= np.where(generator.random(d.shape) < 0.03, 5.0, 1.0)
        truth = contaminated()
        assert truth["huber"] < truth["trimmed"] < truth["headline"]
    for name, estimator in VARIANCES.items():
        value, influence = estimator(d)
        error = standard_error_of_mean(influence) / 2
        assert value.mean() == pytest.approx(truth[name], abs=4 * error.mean())
        np.testing.assert_allclose(influence.mean(axis=1), 0, atol=1e-9)


LAWS = {
    "normal": lambda generator, size: generator.normal(size=size),
    "laplace": lambda generator, size: generator.laplace(size=size),
    "skewed": lambda generator, size: generator.gamma(4, size=size),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_intervals_cover(law):
    """2,000 samples of 336 values: intervals of each estimate, and of what Huber's is less than the variance; the
    difference of the trimmed value, made by three texts, is not covered, which is why it has no interval."""
    generator = np.random.default_rng(4)
    big, d = LAWS[law](generator, (1, 2_000_000)), LAWS[law](generator, (2000, 336))
    value, influence = {}, {}
    for name, estimator in VARIANCES.items():
        truth = float(estimator(big)[0][0])
        value[name], influence[name] = estimator(d)
        low, high = log_interval(value[name], standard_error_of_mean(influence[name]), critical_value())
        assert 0.91 < np.mean((low < truth) & (truth < high)) < 0.975, name
        if name == "headline":
            continue
        truth -= float(np.var(big))
        error = standard_error_of_mean(influence[name] - influence["headline"])
        covered = np.mean(np.abs(value[name] - value["headline"] - truth) < 1.96 * error)
        assert 0.89 < covered < 0.97 if name == "huber" else covered < 0.85
    if law == "skewed":
        return
    spread = {name: found.std() for name, found in value.items()}
    for name, found in influence.items():  # the standard error is the standard deviation over samples
        assert standard_error_of_mean(found).mean() == pytest.approx(spread[name], rel=0.06)


def test_the_trimmed_difference_is_covered_where_it_has_an_interval():
    """30 texts left out of 3,000 and more: value ± z SE covers about as often as that of the variance itself."""
    generator = np.random.default_rng(5)
    d = generator.normal(size=(400, 10_000))
    (plain, of_plain), (value, influence) = variance(d), trimmed_variance(d)
    error = standard_error_of_mean(influence - of_plain)
    assert 0.92 < np.mean(np.abs(value - plain) < 1.96 * error) < 0.975


def test_equal_values_and_values_mostly_equal():
    d = np.zeros((3, 200))
    d[1] = np.random.default_rng(6).normal(size=200)
    d[2, :3] = 5.0, -7.0, 100.0
    value, influence = huber_variance(d)
    assert value[0] == 0
    assert (influence[0] == 0).all()
    assert value[1] > 0.5
    assert math.isnan(value[2]), "there is no such scale"
    assert trimmed_variance(d)[0][[0, 2]] == pytest.approx([0, 37 / 198 * 2 - (2 / 198) ** 2], rel=0.7)


# ------------------------------------------------------------------------------------------------- pairs of a store


@pytest.mark.parametrize("clip", [None, -395.0])
def test_pairs_are_the_headline_and_the_variances_of_their_differences(clip):
    L = heavy()
    L[2, :60] = np.nan
    L[3] -= 60  # clipped too much
    size = np.random.default_rng(7).integers(50, 200, size=300)
    vectors = made(L, size, clip=clip)
    at = np.stack(np.triu_indices(4, k=1), axis=1)
    found, matrix = estimate_pairs(vectors, at), vectors.kl()
    limit = float(np.nanquantile(L, 0.02)) if clip is None else clip
    for n, (i, j) in enumerate(at):
        both = ~np.isnan(L[i]) & ~np.isnan(L[j])
        scale = 2 * size[both].mean() * math.log(2)
        expected = {
            "headline": matrix[int(i), int(j)].value,
            "clipped": np.var(np.maximum(L[i], limit)[both] - np.maximum(L[j], limit)[both]) / scale,
            "unclipped": matrix[int(i), int(j)].value_unclipped,
            "huber": naive_huber((L[i] - L[j])[both].tolist())[1] ** 2 / scale,
        }
        for name, value in expected.items():
            assert found.estimate(name, n).value == pytest.approx(value, rel=1e-7), name
            assert found.against_headline(name, n).value == pytest.approx(value - expected["headline"], abs=1e-9)
        headline = found.estimate("headline", n)
        assert headline.standard_error == pytest.approx(matrix[int(i), int(j)].standard_error, rel=1e-9)
        assert headline.interval == pytest.approx(matrix[int(i), int(j)].interval, rel=1e-9)
        assert found.uses_clip[n] == matrix.uses_clip[i, j]
    assert (found.uses_clip.any(), found.uses_clip.all()) == (clip is not None, False)


def test_resampled_values_spread_as_their_standard_errors():
    found = estimate_pairs(made(heavy(N=500)), np.array([[0, 1], [2, 3]]), resamples=4000)
    np.testing.assert_allclose(found.resampled.std(axis=2), found.standard_error, rtol=0.05)
    documents = tuple(str(s // 5) for s in range(500))
    clustered = estimate_pairs(made(heavy(N=500), document=documents), np.array([[0, 1], [2, 3]]), resamples=4000)
    np.testing.assert_allclose(clustered.resampled.std(axis=2), clustered.standard_error, rtol=0.05)
    assert (clustered.n_documents == 100).all()


def test_trimming_few_texts_gives_no_interval_of_the_difference():
    few, many = (examine_pair(made(heavy(N=n)), "o/m0", "o/m1").differences["trimmed"] for n in (300, 3000))
    assert math.isnan(few.interval[0])
    assert few.standard_error > 0
    assert many.interval[0] < many.value < many.interval[1]


# ----------------------------------------------------------------------------------------------- which texts carry a KL


@pytest.mark.parametrize("clip", [None, -395.0])
def test_texts_left_out_one_by_one(clip):
    """Shares, and the change of KL without a text, against KL computed without it."""
    L, generator = heavy(8), np.random.default_rng(8)
    size = generator.integers(50, 200, size=300)
    L[1, 7] = np.nan
    vectors = made(L, size, clip=clip, document=tuple(f"d{s % 40}" for s in range(300)))
    found = examine_pair(vectors, "o/m0", "o/m1")
    rows = L[:2] if clip is None else np.maximum(L[:2], clip)
    assert found.kl.uses_clip == (clip is not None)
    both = [s for s in range(300) if s != 7]
    whole = kl(rows[0], rows[1], size)
    d = rows[0] - rows[1] - np.mean((rows[0] - rows[1])[both])
    total = sum(d[s] ** 2 for s in both)
    largest = sorted(both, key=lambda s: -(d[s] ** 2))
    assert [row.text.position for row in found.largest] == largest[:10]
    for row, s in zip(found.largest, largest, strict=False):
        others = [t for t in both if t != s]
        without = kl(rows[0, others], rows[1, others], size[others])
        assert row.share == pytest.approx(d[s] ** 2 / total, rel=1e-10)
        assert row.change_without == pytest.approx(without.value - whole.value, rel=1e-7)
        assert (row.log_likelihood_a, row.log_likelihood_b) == tuple(rows[:, s])
        assert (row.text.bytes, row.text.document, row.text.beginning) == (size[s], f"d{s % 40}", None)
    assert found.share_of_ten == pytest.approx(sum(d[s] ** 2 for s in largest[:10]) / total, rel=1e-10)
    assert found.share_of_percent == pytest.approx(sum(d[s] ** 2 for s in largest[:3]) / total, rel=1e-10)
    assert found.effective_texts == pytest.approx(299 / found.kl.kurtosis, rel=1e-9)
    shares = {f"d{k}": sum(d[s] ** 2 for s in both if s % 40 == k) / total for k in range(40)}
    best = max(shares, key=shares.get)
    assert found.largest_document is not None
    assert (found.largest_document.document, found.largest_document.share) == (best, pytest.approx(shares[best]))


def test_leverage_is_the_share_of_the_sum_of_all_pairs():
    L, size = heavy(9), np.full(300, 80)
    found = examine_tails(made(L, size))
    pairs = [L[i] - L[j] for i in range(4) for j in range(i)]
    share = sum((d - d.mean()) ** 2 for d in pairs)
    share /= share.sum()
    for row in found.leverage:
        assert row.share == pytest.approx(share[row.text.position], rel=1e-9)
    assert found.leverage[0].share == pytest.approx(share.max(), rel=1e-9)
    assert found.leverage_of_percent == pytest.approx(np.sort(share)[-3:].sum(), rel=1e-9)
    assert sum(row.value for _, _, row in made(L, size).kl().pairs()) == pytest.approx(
        found.pairs.value[0].sum(), rel=1e-9
    )


# -------------------------------------------------------------------------------------------------------- text length


def length_law(generator, N):
    """A KL of which length makes a known part: d = 0.05 (bytes - 200) + 2 + noise, bytes uniform on 50 to 350."""
    size = generator.integers(50, 351, size=N)
    d = 0.05 * (size - 200) + 2 + 6 * generator.laplace(size=N)
    return np.stack([-3.0 * size + d, -3.0 * size]), size


SPREAD2 = (301**2 - 1) / 12
"""Variance of the lengths."""
SLOPE_SHARE = 0.05**2 * SPREAD2 / (0.05**2 * SPREAD2 + 72)
ALONE = (2 / 200) ** 2 * SPREAD2 / (0.05**2 * SPREAD2 + 72)


def test_length_shares_are_covered():
    covered, values = np.zeros(2), []
    for seed in range(300):
        L, size = length_law(np.random.default_rng(seed), 400)
        found = estimate_pairs(made(L, size), np.array([[0, 1]]), resamples=0)
        shares = [found.length_share(kind, 0) for kind in (0, 1)]
        values.append([one.value for one in shares])
        for kind, truth in enumerate((SLOPE_SHARE, ALONE)):
            covered[kind] += shares[kind].interval[0] <= truth <= shares[kind].interval[1]
    assert (covered / 300 > 0.92).all()
    assert (covered / 300 < 0.985).all()
    assert np.mean(values, axis=0) == pytest.approx([SLOPE_SHARE, ALONE], rel=0.15)


def test_length_shares_equal_a_regression():
    L, size = length_law(np.random.default_rng(1), 400)
    found = examine_pair(made(L, size), "o/m0", "o/m1")
    d = L[0] - L[1]
    line = stats.linregress(size, d)
    assert found.length_explains.value == pytest.approx(line.rvalue**2, rel=1e-9)
    assert found.length_alone.value == pytest.approx((d.sum() / size.sum()) ** 2 * np.var(size) / np.var(d), rel=1e-9)
    one = examine_tails(made(L, size))
    assert one.length_explains is not None
    assert one.length_explains.median.value == pytest.approx(line.rvalue**2, rel=1e-9)
    assert one.length_explains.median.standard_error == pytest.approx(found.length_explains.standard_error, rel=0.2)


# --------------------------------------------------------------------------------------------- conclusions of a store


def test_agreement_on_real_models(example):
    found = examine_tails(example)
    k = example.kl()
    i, j = np.triu_indices(14, k=1)
    headline = k.value[i, j]
    assert (found.n_pairs, found.n_available, found.clip_is_frozen) == (91, 91, False)
    assert found.clip == np.quantile(example.log_likelihood, 0.02)
    L = example.log_likelihood
    huber = np.array([naive_huber((L[a] - L[b]).tolist())[1] ** 2 for a, b in zip(i[:8], j[:8], strict=True)])
    assert found.pairs.value[4, :8] * nats2_per_bit_per_byte(280) == pytest.approx(huber, rel=1e-7)
    for row in found.agreement:
        other = found.pairs.value[list(ESTIMATORS).index(row.estimator)]
        assert row.spearman.value == pytest.approx(stats.spearmanr(headline, other).statistic, abs=1e-12)
        swapped = sum(
            (headline[a] - headline[b]) * (other[a] - other[b]) < 0 for a in range(91) for b in range(a)
        )  # fmt: skip
        assert row.swapped == pytest.approx(swapped / (91 * 45), abs=1e-12)
        assert row.ratio.value == pytest.approx(np.median(other / headline), rel=1e-12)
        ranks = stats.rankdata(other) - stats.rankdata(headline)
        if row.most_moved:
            first = row.most_moved[0]
            assert abs(first.rank - first.rank_headline) == np.abs(ranks).max()
    measured = {row.setting: row for row in scales.measure(example)}
    for setting in found.settings:
        assert setting.medians["headline"].value == pytest.approx(measured[setting.setting].median, rel=1e-9)
        assert setting.medians["headline"].standard_error == pytest.approx(
            measured[setting.setting].standard_error, rel=0.25
        )
        assert setting.differences["unclipped"].value == 0
    assert found.moved_by_clip[example.names[0]] == np.mean(L[0] < found.clip)


@pytest.mark.slow
def test_the_rank_correlation_spreads_as_its_standard_error():
    """Six models with tails of their own, and so pairs in another order by Huber's estimate, 60 times."""
    levels, weights = np.linspace(2, 5, 6)[:, None], np.random.default_rng(10).normal(size=(6, 2)) * 2
    found = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        d = levels * generator.normal(size=(6, 800)) + weights @ generator.laplace(size=(2, 800))
        found.append(examine_tails(made(-300 + d, clip=-1000.0), resamples=100).agreement[3].spearman)
    assert np.mean([one.standard_error for one in found]) == pytest.approx(
        np.std([one.value for one in found]), rel=0.4
    )
    assert all(math.isnan(one.interval[0]) for one in found)


RUN = {f"p/s/checkpoint-{step}": {"family": "p", "step": step, "warmup": 10} for step in (0, 10, 20, 30)}


def test_the_published_filter_of_runs():
    generator = np.random.default_rng(11)
    L = -300 + np.cumsum(generator.standard_t(3, size=(4, 200)) * 4, axis=0)
    size = generator.integers(50, 400, size=200)
    (run,) = find_runs(made(L, size, RUN))
    found = filter_run(run)
    change = [max(abs(L[t + 1, s] - L[t, s]) for t in (1, 2)) for s in range(200)]
    kept = sorted(range(200), key=lambda s: change[s])[:194]
    assert (found.n_texts, found.n_dropped, found.steps) == (200, 6, ((10, 20), (20, 30)))
    assert found.mean_bytes_kept == pytest.approx(size[kept].mean(), rel=1e-12)
    for n, t in enumerate((1, 2)):
        whole = kl(L[t], L[t + 1], size)
        part = kl(L[t, kept], L[t + 1, kept], size[kept])
        assert found.all_texts[n].value == pytest.approx(whole.value, rel=1e-10)
        assert found.all_texts[n].standard_error == pytest.approx(whole.standard_error, rel=1e-10)
        assert found.filtered[n].value == pytest.approx(part.value, rel=1e-10)
        assert found.filtered[n].standard_error == pytest.approx(part.standard_error, rel=0.02)
        assert found.difference[n].value == pytest.approx(part.value - whole.value, rel=1e-9)
    assert found.median_filtered.value == pytest.approx(np.mean([one.value for one in found.filtered]), rel=1e-12)
    assert filter_run(find_runs(made(L[:, :30], size[:30], RUN))[0]) is None, "3 % of 30 texts is no text"


@pytest.mark.slow
def test_the_filtered_kl_is_covered():
    """Values of 150 runs on 400 texts against one of 400,000, both with their own 3 % left out."""

    def run(seed, N):
        generator = np.random.default_rng(seed)
        L = -300 + np.cumsum(4 * generator.laplace(size=(4, N)), axis=0)
        return filter_run(find_runs(made(L, generator.integers(90, 111, size=N), RUN))[0], resamples=50)

    truth = run(0, 400_000)
    runs = [run(seed, 400) for seed in range(1, 151)]
    for which in ("all_texts", "filtered"):
        expected = getattr(truth, which)[0].value
        ends = np.array([getattr(one, which)[0].interval for one in runs])
        assert 0.88 < np.mean((ends[:, 0] < expected) & (expected < ends[:, 1])) < 0.99, which


# ------------------------------------------------------------------------------------------------------- edges, print


def test_identical_models():
    L = heavy(12)
    L[1] = L[0]
    vectors = made(L, np.random.default_rng(0).integers(50, 99, size=300))
    found = examine_pair(vectors, "o/m0", "o/m1")
    assert [one.value for one in found.estimates.values()] == [0] * 5
    assert found.largest == ()
    assert math.isnan(found.effective_texts)
    shown.print_pair_tails(found)
    with pytest.raises(InputError, match="no KL"):
        pictures.text_contributions(found)
    whole = examine_tails(vectors)
    assert all(row.n_pairs == 6 for row in whole.agreement)
    shown.print_tails(whole)
    same = examine_tails(made(np.stack([L[0]] * 3)))
    assert math.isnan(same.agreement[0].ratio.value)
    shown.print_tails(same)
    json.dumps(for_json(shown.tails_record(same, made(np.stack([L[0]] * 3)))), allow_nan=False)
    with pytest.raises(InputError, match="no KL"):
        pictures.tails_of_pairs(same)


@pytest.mark.parametrize("n_texts", [2, 3])
def test_a_few_texts(n_texts):
    vectors = made(heavy(13, N=n_texts), np.arange(n_texts) + 50)
    found = examine_pair(vectors, "o/m0", "o/m3")
    assert found.kl.n_texts == n_texts
    assert math.isnan(found.largest[0].change_without) == (n_texts == 2)
    shown.print_pair_tails(found)
    shown.print_tails(examine_tails(vectors))


def test_a_constant_difference_is_no_tail():
    """What rounding leaves of it has no kurtosis, no length, and no text that carries it."""
    L = heavy(17)
    L[1] = L[0] - 1.1
    vectors = made(L, np.random.default_rng(0).integers(50, 99, size=300))
    found = examine_pair(vectors, "o/m0", "o/m1")
    assert [found.estimates[name].value for name in ("headline", "unclipped", "trimmed", "huber")] == [0] * 4
    assert found.largest == ()
    assert math.isnan(found.length_alone.value)
    pairs = estimate_pairs(vectors, np.array([[0, 1], [0, 2]]))
    assert math.isnan(pairs.kurtosis[0])
    assert pairs.kurtosis[1] == pytest.approx(stats.kurtosis(L[0] - L[2], fisher=False))


def test_texts_that_some_model_lacks_are_no_equals():
    L = heavy(18)
    L[0, :40] = np.nan
    found = examine_tails(made(L))
    assert found.n_common == 260
    Q = L[:, 40:] - L[:, 40:].mean(axis=1, keepdims=True)
    shares = ((Q - Q.mean(axis=0)) ** 2).sum(axis=0)
    assert found.leverage_of_percent == pytest.approx(np.sort(shares)[-3:].sum() / shares.sum())


def test_models_without_common_texts():
    L = heavy(14, K=2)
    L[0, :200] = np.nan
    L[1, 201:] = np.nan
    with pytest.raises(InputError, match="two texts in common"):
        examine_pair(made(L), "o/m0", "o/m1")
    with pytest.raises(InputError, match="two texts in common"):
        examine_tails(made(L))


def test_many_models_are_sampled_and_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr(tails, "MOST_PAIRS", 7)
    found = examine_tails(made(heavy(15, K=9)))
    assert (found.n_pairs, found.n_available) == (7, 36)
    assert all(row.n_pairs == 7 for row in found.agreement)
    shown.print_tails(found)
    assert "7 pairs of models of 36, drawn at random" in capsys.readouterr().out


def test_hostile_texts_are_printed_as_text(capsys):
    hostile = "[bold red]\x1b[31m\x00a\r\n\u202eb $x_1$"
    strings = [hostile + str(s) for s in range(120)]
    L = heavy(16, N=120)
    vectors = made(
        L, np.array([len(text.encode()) for text in strings]), texts=tuple(strings), document=("[/x]\x1b", "d") * 60
    )
    found = examine_pair(vectors, "o/m0", "o/m1")
    shown.print_pair_tails(found)
    shown.print_tails(examine_tails(vectors))
    said = capsys.readouterr().out
    assert "[bold red]" in said
    assert not {"\x1b", "\x00", "\u202e", "\r"} & set(said)
    assert found.largest[0].text.beginning == strings[found.largest[0].text.position][:60]
    json.dumps(for_json(shown.pair_tails_record(found, vectors)), allow_nan=False)


def test_what_is_printed_of_real_models(example, capsys, monkeypatch):
    monkeypatch.setattr(shown.out, "width", 100)
    found = examine_tails(example)
    shown.print_tails(found)
    shown.print_pair_tails(examine_pair(example, *example.names[:2]))
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100
    for part in ("pooled 2 % quantile", "bits/byte", "Spearman ± SE", "one length", "3 texts, too few"):
        assert part in " ".join(said.split()), part
    record = shown.tails_record(found, example)
    assert (len(record["pairs"]), record["unit"], record["clip_is_frozen"]) == (91, "bits/byte", False)
    json.dumps(for_json(record), allow_nan=False)


def test_pictures_hold_every_pair_and_every_text(example):
    figure = pictures.tails_of_pairs(examine_tails(example))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["with the clip", "trimmed, 1 %", "Huber's Proposal 2"]
    assert all(sum(len(dots.get_offsets()) for dots in axes.collections) == 91 for axes in figure.axes)
    found = examine_pair(example, *example.names[:2])
    each, together = pictures.text_contributions(found).axes
    assert each.lines[1].get_ydata() == pytest.approx(100 * found.contributions)
    assert together.lines[1].get_ydata()[-1] == pytest.approx(100)
    assert together.lines[0].get_ydata()[-1] == pytest.approx(100)
