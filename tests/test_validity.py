"""Text-set sensitivity: closed forms on simulated texts, naive loops beside every number, and what intervals and
p-values promise, checked by simulation."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from conftest import EXAMPLE
from klscale.errors import InputError
from klscale.inputs.texts import TextSet
from klscale.show import pictures, text_sets
from klscale.show.terminal import for_json, out
from klscale.studies import correlations, domains, text_set_agreement, validity
from klscale.studies.correlations import CORRELATIONS
from klscale.studies.domains import PERMUTATIONS
from klscale.studies.text_set_agreement import compare_text_sets
from klscale.studies.validity import text_sensitivity, texts_needed
from klscale.studies.verbs.score import score
from klscale.vectors.imports import read_log_likelihoods
from klscale.vectors.vectors import CONVENTION, Vectors

LN2 = np.log(2)


def vectors_of(L, sizes=100, names=None, convention=CONVENTION, name="made", **texts):
    """Vectors of these log-likelihoods (K, N) less 500 nats, on texts of these bytes."""
    K, N = L.shape
    names = names or [f"org/m{k:03d}" for k in range(K)]
    known = {name: {"dtype": "float32", "convention": convention} for name in names}
    lengths = np.broadcast_to(np.asarray(sizes), N).astype(np.int64)
    text_set = TextSet(name=name, bytes=lengths, id=f"{name}-{N}", **texts)
    return Vectors.from_arrays(L - 500.0, names, text_set, known)


def labels(numbers):
    return tuple(map(str, numbers))


def naive_kl(d, sizes):
    return float(np.mean(d**2) - np.mean(d) ** 2) / (2 * np.mean(sizes) * LN2)


def distinct(K, N, seed=0):
    """Rows whose differences are normal, with pairs of very different KL."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(K, N)) * np.exp(0.6 * generator.normal(size=(K, 1)))


# ------------------------------------------------------------------------------------------------- how many texts


def test_texts_needed_are_those_of_the_standard_error_of_each_pair():
    generator = np.random.default_rng(1)
    L = generator.standard_t(6, size=(4, 200))
    needed = {}
    for i, j in combinations(range(4), 2):
        d = L[i] - L[j]
        d = d - d.mean()
        needed[i, j] = (np.mean(d**4) - np.mean(d**2) ** 2) / np.mean(d**2) ** 2
    found = texts_needed(vectors_of(L))
    assert [row.relative_error for row in found] == [0.10, 0.05, 0.02]
    for row in found:
        assert row.median == np.ceil(np.median([*needed.values()]) / row.relative_error**2)
        assert row.worst == np.ceil(max(needed.values()) / row.relative_error**2)
        worst = max(needed, key=needed.get)
        assert row.worst_pair == (f"org/m{worst[0]:03d}", f"org/m{worst[1]:03d}")


def test_texts_needed_count_documents_where_texts_share_them():
    """Ten texts of each document alike: as many documents are needed as texts would be."""
    L = np.random.default_rng(2).normal(size=(2, 60))
    one, ten = vectors_of(L), vectors_of(np.repeat(L, 10, axis=1), document=labels(np.repeat(np.arange(60), 10)))
    for a, b in zip(texts_needed(one), texts_needed(ten), strict=True):
        assert b.median == pytest.approx(10 * a.median * 60 / 59, rel=0.01)


# ------------------------------------------------------------------------------------- halves, and growth of the error


@pytest.mark.slow
def test_errors_of_normal_differences_are_those_of_a_sample_variance():
    """Relative standard deviation sqrt(2 / (n - 1)); two halves differ by the F distribution's upper quartile."""
    found = text_sensitivity(vectors_of(distinct(25, 1200)))
    growth = found.growth
    assert growth.n_texts.tolist() == [600, 300, 150, 75, 38]
    np.testing.assert_allclose(growth.standard_deviation, np.sqrt(2 / (growth.n_texts - 1)), rtol=0.06)
    np.testing.assert_allclose(growth.predicted, np.sqrt(2 / growth.n_texts), rtol=0.04)
    np.testing.assert_allclose(growth.typical, np.sqrt(2 / growth.n_texts), rtol=0.08)
    assert found.halves.typical == pytest.approx(stats.f.ppf(0.75, 599, 599) - 1, rel=0.08)
    assert growth.slope.interval[0] < growth.slope_normal < growth.slope.interval[1]
    assert growth.slope_normal == pytest.approx(-0.5, abs=0.01)
    assert growth.document_effect is None


def test_documents_are_never_torn_apart():
    """Every document has the same differences, so that blocks of as many whole documents have the same KL."""
    inside = np.random.default_rng(3).normal(size=(3, 5))
    texts = {"document": labels(np.repeat(np.arange(80), 5))}
    whole = text_sensitivity(vectors_of(np.tile(inside, 80), **texts))
    np.testing.assert_allclose(whole.growth.standard_deviation, 0, atol=1e-9)
    assert whole.halves.typical == pytest.approx(0, abs=1e-9)
    torn = text_sensitivity(vectors_of(np.tile(inside, 80)))
    assert torn.growth.standard_deviation.min() > 0.03
    assert whole.growth.document_effect == pytest.approx(0, abs=1e-9)


def test_texts_that_repeat_inside_documents_multiply_the_variance():
    L = np.repeat(distinct(12, 300), 4, axis=1)
    found = text_sensitivity(vectors_of(L, document=labels(np.repeat(np.arange(300), 4))))
    assert found.growth.document_effect == pytest.approx(4 * 300 / 299, rel=1e-6)
    np.testing.assert_allclose(
        found.growth.standard_deviation[:3], np.sqrt(2 / (found.growth.n_texts[:3] / 4)), rtol=0.1
    )


def test_heavy_tails_make_the_typical_difference_fall_slower():
    generator = np.random.default_rng(4)
    L = generator.normal(size=(6, 3000)) * np.exp(1.2 * generator.normal(size=3000))
    slope = text_sensitivity(vectors_of(L)).growth.slope
    assert slope.interval[1] < -0.05
    assert slope.value > -0.42


@pytest.mark.slow
def test_the_interval_of_the_slope_covers_that_of_ever_new_texts(monkeypatch):
    """Heavy-tailed texts; the true slope from sets that were never cut from one another."""
    monkeypatch.setattr(validity, "CORRELATED", 1)
    generator = np.random.default_rng(5)
    sizes = np.array([120.0, 60.0, 30.0])

    def draw(*shape):
        return generator.normal(size=shape) * np.exp(0.7 * generator.normal(size=shape[-2:]))

    def typical(n):
        kl = (generator.normal(size=(6000, 2, n)) * np.exp(0.7 * generator.normal(size=(6000, 2, n)))).var(axis=2)
        return np.median(np.abs(np.log(kl[:, 0] / kl[:, 1])))

    logs, x = np.log([typical(int(n)) for n in sizes]), np.log(sizes)
    truth = float(np.polyfit(x, logs, 1)[0])
    intervals = []
    for seed in range(50):
        L = generator.normal(size=(4, 240)) * np.exp(0.7 * generator.normal(size=240))
        growth = text_sensitivity(vectors_of(L), seed=seed).growth
        assert growth.n_texts.tolist() == sizes.tolist()
        intervals.append(growth.slope.interval)
    assert sum(low <= truth <= high for low, high in intervals) >= 43


@pytest.mark.slow
def test_halves_stepped_up_correlate_as_two_whole_sets_do(monkeypatch):
    generator = np.random.default_rng(6)
    spread = np.exp(0.15 * generator.normal(size=(10, 1)))
    stepped, actual = [], []
    monkeypatch.setattr(correlations, "MODEL_RESAMPLES", 20)
    for _ in range(25):
        first, second = (vectors_of(spread * generator.normal(size=(10, 150)), name=name) for name in "ab")
        stepped.append(text_sensitivity(first).halves.pearson_whole.value)
        actual.append(compare_text_sets(first, second).pearson.value)
    assert 0.5 < np.mean(actual) < 0.95
    assert np.mean(stepped) == pytest.approx(np.mean(actual), abs=0.04)


def test_below_five_models_correlations_have_the_range_over_splits():
    halves = text_sensitivity(vectors_of(distinct(4, 200))).halves
    few = halves.pearson
    assert (halves.pearson_whole.interval, halves.spearman_whole.interval) == (None, None)
    more = text_sensitivity(vectors_of(distinct(5, 200))).halves.pearson
    assert (few.interval_kind, more.interval_kind) == ("splits", "models")
    assert few.interval[0] < few.value < few.interval[1]
    assert text_sensitivity(vectors_of(distinct(2, 200))).halves.pearson is None


# --------------------------------------------------------------------------------------------------- correlations


@pytest.mark.parametrize(
    ("kind", "naive"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr), ("kendall", stats.kendalltau)]
)
def test_a_weighted_correlation_is_that_of_repeated_values(kind, naive):
    generator = np.random.default_rng(7)
    x = generator.integers(0, 8, size=15).astype(float)  # with ties
    y = x + generator.normal(size=15).round(1)
    weights = generator.integers(0, 4, size=(5, 15)).astype(float)
    found = CORRELATIONS[kind](x, y, weights)
    for r, counts in zip(found, weights.astype(int), strict=True):
        assert r == pytest.approx(naive(np.repeat(x, counts), np.repeat(y, counts))[0])


@pytest.mark.slow
def test_intervals_over_models_cover_the_correlation_of_all_models(monkeypatch):
    """Models drawn from a population in which two text sets weigh three directions differently."""
    monkeypatch.setattr(text_set_agreement, "PERMUTATIONS", 1)
    generator = np.random.default_rng(8)
    weigh = np.array([[1.0, 1.0, 0.1], [0.2, 1.0, 1.0]])
    a, b = generator.normal(size=(2, 100_000, 3))
    logs = np.log((a - b) ** 2 @ weigh.T)
    truth = {"pearson": stats.pearsonr(*logs.T)[0], "spearman": stats.spearmanr(*logs.T)[0]}
    truth["kendall"] = stats.kendalltau(*logs[:5000].T)[0]
    covered = dict.fromkeys(truth, 0)
    for _ in range(60):
        models = generator.normal(size=(10, 3))
        first, second = (np.sqrt(w) * models @ generator.normal(size=(3, 400)) for w in weigh)
        found = compare_text_sets(vectors_of(first, name="a"), vectors_of(second, name="b"))
        for kind, value in truth.items():
            low, high = getattr(found, kind).interval
            covered[kind] += low <= value <= high
    assert min(covered.values()) >= 51, covered


# -------------------------------------------------------------------------------------------------------- by domain


def test_domains_are_what_naive_loops_find():
    generator = np.random.default_rng(9)
    N, domain = 150, np.repeat(["b", "a", "c"], [70, 50, 30])
    L = generator.normal(size=(5, N)) + (domain == "a") * generator.normal(size=(5, 1))
    sizes = generator.integers(50, 200, size=N)
    found = text_sensitivity(vectors_of(L, sizes, domain=labels(domain)))
    by = found.domains
    assert [row.name for row in by.domains] == ["a", "b", "c"]
    between = []
    for p, (i, j) in enumerate(combinations(range(5), 2)):
        d = L[i] - L[j]
        assert found.kl[p] == pytest.approx(naive_kl(d, sizes))
        for g, name in enumerate("abc"):
            own = d[domain == name] - d[domain == name].mean()
            scale = 2 * sizes[domain == name].mean() * LN2
            assert by.kl[p, g] == pytest.approx(np.mean(own**2) / scale)
            error = np.sqrt((np.mean(own**4) - np.mean(own**2) ** 2) / len(own)) / scale
            assert by.standard_error[p, g] == pytest.approx(error)
        means = np.array([d[domain == name].mean() for name in domain])
        between.append(means.var() / d.var())
    assert by.between == pytest.approx(np.median(between))
    assert by.between_by_chance == pytest.approx(2 / 149, rel=0.5)
    for g, row in enumerate(by.domains):
        rest = domain != row.name
        without = np.array([naive_kl((L[i] - L[j])[rest], sizes[rest]) for i, j in combinations(range(5), 2)])
        changes = without / found.kl - 1
        assert row.change == pytest.approx(np.median(changes))
        assert row.largest_change == pytest.approx(changes[np.abs(changes).argmax()])
        assert row.ranking == pytest.approx(stats.spearmanr(without, found.kl)[0])
        assert row.agreement == pytest.approx(stats.spearmanr(without, by.kl[:, g])[0])
        assert row.kl.value == pytest.approx(np.median(by.kl[:, g]))
        assert row.ratio == pytest.approx(np.median(by.kl[:, g] / found.kl))


def test_change_by_chance_is_that_of_leaving_out_random_texts():
    generator = np.random.default_rng(10)
    L = generator.normal(size=(2, 400))
    d, sizes = L[0] - L[1], np.full(400, 100)
    found = text_sensitivity(vectors_of(L, domain=labels(np.arange(400) % 4 == 0)))
    left = [naive_kl(d[generator.permutation(400)[:300]], sizes[:300]) / found.kl[0] - 1 for _ in range(2000)]
    row = next(row for row in found.domains.domains if row.name == "True")
    assert row.by_chance == pytest.approx(np.std(left), rel=0.06)


def domain_test(generator, monkeypatch, spread=(1.0, 1.0, 1.0), n_documents=60, each=1, K=2, tail=0.6):
    """The test of three domains that differ in their means and their lengths, and in KL by `spread`**2."""
    monkeypatch.setattr(domains, "PERMUTATIONS", 99)
    monkeypatch.setattr(validity, "COMPARISONS", 2)
    monkeypatch.setattr(validity, "CORRELATED", 1)
    monkeypatch.setattr(validity, "GROUPS", 2)
    monkeypatch.setattr(domains, "RESAMPLES", 2)
    domain = np.arange(n_documents) % 3
    unit = np.repeat(np.arange(n_documents), each)
    scale = np.exp(tail * generator.normal(size=n_documents)) * np.asarray(spread)[domain]
    L = generator.normal(size=(K, n_documents * each)) + (each > 1) * generator.normal(size=(K, n_documents))[:, unit]
    L = L * scale[unit] + generator.normal(size=(K, 3))[:, domain[unit]]
    texts = {"domain": labels(domain[unit]), **({"document": labels(unit)} if each > 1 else {})}
    return text_sensitivity(vectors_of(L, generator.integers(60, 140, size=n_documents)[unit], **texts)).domains.test


@pytest.mark.slow
@pytest.mark.parametrize("each", [1, 3])
def test_p_values_of_equal_domains_are_uniform(monkeypatch, each):
    generator = np.random.default_rng(11)
    found = [domain_test(generator, monkeypatch, each=each, n_documents=75).p_values[0] for _ in range(120)]
    spread = np.array(found) - generator.uniform(0, 0.01, size=120)  # they are multiples of 1 %
    assert stats.kstest(spread, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) <= 0.05) <= 0.11


@pytest.mark.slow
def test_adjusted_p_values_hold_for_all_pairs_together(monkeypatch):
    generator = np.random.default_rng(12)
    tests = [domain_test(generator, monkeypatch, K=4, tail=0.4) for _ in range(60)]
    assert np.mean([test.p_value <= 0.05 for test in tests]) <= 0.11
    for test in tests[:5]:
        assert all(together >= alone for alone, together in zip(test.p_values, test.adjusted, strict=True))
        assert test.p_value == min(test.adjusted)


def test_domains_that_differ_are_found(monkeypatch):
    generator = np.random.default_rng(13)
    test = domain_test(generator, monkeypatch, spread=(1.0, 1.0, 2.5), n_documents=300, K=4, tail=0.3)
    assert test.n_different == len(test.pairs) == 6
    assert test.p_value == 0.01


def test_where_nothing_can_be_said_by_domain_this_is_said():
    L, N = distinct(4, 100), 100
    for texts, said in (
        ({}, "have no domains"),
        ({"domain": ("a",) * N}, "are of one domain"),
        ({"domain": labels(np.arange(N) < 5)}, "Fewer than two domains"),
    ):
        found = text_sensitivity(vectors_of(L, **texts))
        assert found.domains is None
        assert any(said in note for note in found.notes)
    across = {"domain": labels(np.arange(N) % 2), "document": labels(np.arange(N) // 4)}
    found = text_sensitivity(vectors_of(L, **across))
    assert found.domains.test is None
    assert any("belong to several domains" in note for note in found.notes)
    small = text_sensitivity(vectors_of(L, domain=("a",) * 50 + ("b",) * 45 + ("c",) * 5)).domains
    assert small.small == ("c",)
    assert [row.name for row in small.domains] == ["a", "b"]


# ------------------------------------------------------------------------------------------------ odd and bad vectors


def test_too_few_texts_are_said_and_not_split():
    found = text_sensitivity(vectors_of(distinct(4, 3), domain=("a", "b", "b")))
    assert (found.halves, found.growth, found.domains, found.needed) == (None, None, None, ())
    assert any("Too few texts to split" in note for note in found.notes)


def test_models_that_agree_on_every_text_have_no_relative_error():
    L = distinct(3, 100)
    found = text_sensitivity(vectors_of(L[[0, 0, 1, 2]]))
    assert (found.n_identical, len(found.pairs), found.n_available) == (1, 5, 6)
    same = text_sensitivity(vectors_of(L[[0, 0]]))
    assert (same.n_identical, same.halves, same.needed) == (1, None, ())
    assert any("differs by the same amount on every text" in note for note in same.notes)


def test_texts_that_a_model_lacks_are_left_out():
    L = distinct(4, 120)
    holes = L.copy()
    holes[0, :20], holes[2, 10:30] = np.nan, np.nan
    found, whole = text_sensitivity(vectors_of(holes)), text_sensitivity(vectors_of(L[:, 30:]))
    np.testing.assert_allclose(found.kl, whole.kl)
    assert found.n_texts == 90
    assert "30 texts are left out: not all models have them." in found.notes
    holes[3, 5:] = np.nan
    with pytest.raises(InputError, match=r"org/m003 has the fewest"):
        text_sensitivity(vectors_of(holes))


def test_vectors_that_cannot_be_compared_are_refused():
    L = distinct(3, 60)
    with pytest.raises(InputError, match="1 model"):
        text_sensitivity(vectors_of(L[:1]))
    mixed = vectors_of(L)
    mixed.attributes.loc["org/m001", "convention"] = "another"
    with pytest.raises(InputError, match="different conventions"):
        text_sensitivity(mixed)


def test_the_clip_is_that_of_the_headline_value():
    """Used for the pairs that it serves, and not for those of a model that it would move too much."""
    L = distinct(4, 200)
    L[:3, :4] -= 40
    L[3, :50] -= 40
    vectors = vectors_of(L, clip=-520.0)
    matrix = vectors.kl()
    assert matrix.uses_clip[0, 1]
    assert not matrix.uses_clip[0, 3]
    found = text_sensitivity(vectors)
    for (a, b), kl, error in zip(found.pairs, found.kl, found.standard_error, strict=True):
        assert kl == pytest.approx(matrix[a, b].value)
        assert error == pytest.approx(matrix[a, b].standard_error)


def test_of_many_pairs_the_same_thousand_are_drawn_whatever_the_order_of_models(monkeypatch):
    monkeypatch.setattr(validity, "CORRELATED", 1)
    vectors = vectors_of(distinct(60, 50))
    found = text_sensitivity(vectors)
    assert (len(found.pairs), found.n_available) == (1000, 60 * 59 // 2)
    turned = text_sensitivity(vectors.subset(vectors.names[::-1]))
    assert {frozenset(pair) for pair in turned.pairs} == {frozenset(pair) for pair in found.pairs}
    assert text_sensitivity(vectors, seed=1).pairs != found.pairs
    matrix = vectors.kl()
    for place in (0, 500, 999):
        assert found.kl[place] == pytest.approx(matrix[found.pairs[place]].value)


# ---------------------------------------------------------------------------------------------------- two text sets


def test_two_text_sets_are_compared_as_naive_loops_do():
    generator = np.random.default_rng(14)
    L, M = distinct(7, 120, seed=1), distinct(7, 90, seed=1) + 0.3 * generator.normal(size=(7, 90))
    found = compare_text_sets(vectors_of(L, name="a"), vectors_of(M, 150, name="b"))
    x = np.array([naive_kl(L[i] - L[j], 100) for i, j in combinations(range(7), 2)])
    y = np.array([naive_kl(M[i] - M[j], 150) for i, j in combinations(range(7), 2)])
    np.testing.assert_allclose(found.kl, np.stack([x, y], axis=1))
    assert found.ratio == pytest.approx(np.median(y / x))
    assert found.ratio_range == pytest.approx(((y / x).min(), (y / x).max()))
    assert found.pearson.value == pytest.approx(stats.pearsonr(np.log(x), np.log(y))[0])
    assert found.spearman.value == pytest.approx(stats.spearmanr(x, y)[0])
    assert found.kendall.value == pytest.approx(stats.kendalltau(x, y)[0])
    assert found.spread == pytest.approx(stats.median_abs_deviation(np.log(y / x), scale="normal"))
    nearest = [
        [min((naive_kl(rows[i] - rows[j], 1), j) for j in range(7) if j != i)[1] for i in range(7)] for rows in (L, M)
    ]
    assert found.nearest == sum(a == b for a, b in zip(*nearest, strict=True))
    assert found.nearest_by_chance == pytest.approx(1 / 6)


def test_a_rotated_and_scaled_map_is_the_same_map():
    """A reflection of texts that leaves the mean where it is keeps every distance."""
    generator = np.random.default_rng(15)
    L = generator.normal(size=(9, 40))
    across = generator.normal(size=40)
    across -= across.mean()
    across /= np.linalg.norm(across)
    turned = 3 * (L - 2 * np.outer(L @ across, across))
    found = compare_text_sets(vectors_of(L, name="a"), vectors_of(turned, name="b"))
    assert found.procrustes == pytest.approx(0, abs=1e-9)
    assert found.procrustes_p_value == 1 / (1 + PERMUTATIONS)
    assert found.ratio == pytest.approx(9)
    assert found.spread == pytest.approx(0, abs=1e-9)
    assert found.pearson.value == pytest.approx(1)
    assert found.nearest == 9


@pytest.mark.slow
def test_two_sets_of_one_population_agree_and_unrelated_ones_do_not(monkeypatch):
    monkeypatch.setattr(domains, "PERMUTATIONS", 99)
    generator = np.random.default_rng(16)
    spread = np.exp(generator.normal(size=(12, 1)))
    inside, p_values = 0, []
    for _ in range(40):
        first, second, other = (
            vectors_of(scale * generator.normal(size=(12, 200)), name=name)
            for scale, name in ((spread, "a"), (spread, "b"), (generator.permutation(spread), "c"))
        )
        same = compare_text_sets(first, second)
        inside += same.ratio_interval[0] <= 1 <= same.ratio_interval[1]
        assert same.spearman.value > 0.9
        assert same.spread < 2 * same.spread_by_error
        p_values.append(compare_text_sets(first, other).procrustes_p_value)
    assert inside >= 36
    assert np.mean(np.array(p_values) <= 0.1) <= 0.25


def test_models_are_matched_by_reference():
    L, M = distinct(5, 60), distinct(5, 50)
    first = vectors_of(L, names=[f"org/{name}" for name in "abcde"], name="a")
    second = vectors_of(M[::-1], names=[f"org/{name}" for name in "fedcb"], name="b", convention="another")
    found = compare_text_sets(first, second)
    assert (found.n_models, found.unmatched) == (4, (("org/a",), ("org/f",)))
    place = found.pairs.index(("org/b", "org/c"))
    assert found.kl[place] == pytest.approx([naive_kl(L[1] - L[2], 100), naive_kl(M[0] - M[1], 100)])
    assert any("different conventions" in note for note in found.notes)
    assert found.ratio_interval is None
    assert found.spearman.interval is None
    with pytest.raises(InputError, match="given twice"):
        compare_text_sets(first, first)
    with pytest.raises(InputError, match="1 model has vectors on both"):
        compare_text_sets(first, second.subset(["org/f", "org/b"]))
    with pytest.raises(InputError, match="No two models differ"):
        compare_text_sets(vectors_of(L[[0, 0]], name="a"), vectors_of(M[:2], name="b"))


def test_texts_in_both_sets_are_pointed_out():
    texts = [f"text {n}" for n in range(60)]
    first, second = (
        Vectors(vectors.log_likelihood, vectors.models, vectors.attributes, TextSet.from_texts("s", chosen))
        for vectors, chosen in ((vectors_of(distinct(3, 40)), texts[:40]), (vectors_of(distinct(3, 30)), texts[30:]))
    )
    assert "10 texts are in both sets; this raises the agreement." in compare_text_sets(first, second).notes


# ------------------------------------------------------------------------------------------------ printed and drawn


@pytest.fixture(scope="module")
def example():
    vectors = read_log_likelihoods(EXAMPLE, id_column="text_id")
    texts = vectors.texts
    known = TextSet(
        name=texts.name, bytes=texts.bytes, id=texts.id, document=texts.document, domain=texts.labels["corpus"]
    )
    return Vectors(vectors.log_likelihood, vectors.models, vectors.attributes, known)


@pytest.fixture(scope="module")
def by_corpus(example):
    """The example's two corpora as two text sets."""
    halves = []
    for name in sorted(set(example.texts.domain)):
        inside = np.array(example.texts.domain) == name
        texts = TextSet(name=name, bytes=example.texts.bytes[inside], id=name)
        halves.append(Vectors(example.log_likelihood[:, inside], example.models, example.attributes, texts))
    return halves


def test_the_example_is_printed_and_recorded_whole(example):
    found = text_sensitivity(example)
    with out.capture() as captured:
        text_sets.print_sensitivity(found)
    said = captured.get()
    assert f"{found.needed[1].median:,}" in said
    assert f"{found.halves.pearson.value:.3f}" in said
    for row in found.domains.domains:
        assert row.name in said
    assert max(len(line.rstrip()) for line in said.split("\n") if "  " in line) <= 100  # the tables
    record = json.loads(json.dumps(for_json(text_sets.sensitivity_record(found, example.texts))))
    assert record["unit"] == "bits/byte"
    assert len(record["pairs"]) == 91
    assert record["pairs"][3]["standard_error"] == found.standard_error[3]
    assert record["growth"]["slope"]["standard_error"] == found.growth.slope.standard_error
    assert len(record["domains"]["kl_of_pairs"]) == 91


def test_two_sets_are_printed_and_recorded_whole(by_corpus):
    found = compare_text_sets(*by_corpus)
    with out.capture() as captured:
        text_sets.print_text_set_comparison(found, *(vectors.texts for vectors in by_corpus))
    said = captured.get()
    assert "not expected to be equal" in said
    assert f"{found.spearman.value:.3f}" in said
    assert f"{found.nearest} of 14 models" in said
    record = json.loads(json.dumps(for_json(text_sets.comparison_record(found))))
    assert [record["pairs"][0][which]["kl"] for which in ("first", "second")] == found.kl[0].tolist()
    assert (record["ratio_interval_low"], record["ratio_interval_high"]) == found.ratio_interval


def test_what_is_not_there_is_not_printed():
    for L in (distinct(2, 3), distinct(2, 60)[[0, 0]], distinct(2, 60)):
        vectors = vectors_of(L)
        found = text_sensitivity(vectors)
        with out.capture() as captured:
            text_sets.print_sensitivity(found)
        assert "nan" not in captured.get()
        json.dumps(for_json(text_sets.sensitivity_record(found, vectors.texts)), allow_nan=False)


def points(axes):
    return np.concatenate([line.get_xydata() for line in axes.lines if line.get_linestyle() == "None"])


@pytest.mark.slow
def test_pictures_hold_the_errors_the_domains_and_every_pair(example, by_corpus, tmp_path):
    found = text_sensitivity(example)
    figure = pictures.text_set_sensitivity(found, example.texts)
    growth, domains = figure.axes
    drawn = points(growth)
    for error in (found.growth.standard_deviation, found.growth.typical):
        for point in zip(found.growth.n_texts, error, strict=True):
            assert np.isclose(drawn, point).all(axis=1).any()
    assert len(points(domains)) == 2 * 91
    both = pictures.two_text_sets(compare_text_sets(*by_corpus))
    (axes,) = both.axes
    assert len(points(axes)) == 91
    low, high = axes.get_xlim()
    assert low < points(axes).min() < points(axes).max() < high
    for name, drawing in (("one.png", figure), ("two.png", both)):
        pictures.save(drawing, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 10_000
    alone = pictures.text_set_sensitivity(text_sensitivity(vectors_of(distinct(3, 60))), example.texts)
    assert len(alone.axes) == 1
    with pytest.raises(InputError, match="Too few texts"):
        pictures.text_set_sensitivity(text_sensitivity(vectors_of(distinct(3, 10))), example.texts)


# ------------------------------------------------------------------------------------------------------- by estimator


def test_texts_needed_by_each_estimator(tmp_path):
    """As the standard errors of single pairs say; models of another tokenizer have no sampled tokens in common."""
    words = np.random.default_rng(3).choice(["the", "tree", "runs", "and", "house", "green"], size=(60, 50))
    texts = TextSet.from_texts("words", [" ".join(row) for row in words])
    names = ["mock://1", "mock://1?shift=0.2", "mock://2", "mock://2?tokens=pairs"]
    vectors = score(names, texts, tmp_path / "store").vectors()
    found = texts_needed(vectors)
    assert [row.estimator for row in found[::3]] == ["sampled tokens", "spans", "whole texts"]
    tokens = [vectors.sampled_kl(a, b).symmetric for a, b in combinations(names[:3], 2)]
    spans = vectors.span_kl_matrix()
    i, j = np.triu_indices(4, k=1)
    by_tokens = np.array([kl.standard_error / kl.value for kl in tokens])
    for row, n, relative, pairs in (
        (found[0], 60, by_tokens, [*combinations(names[:3], 2)]),
        (found[3], spans.n_texts[i, j], spans.standard_error[i, j] / spans.value[i, j], [*combinations(names, 2)]),
    ):
        needed = n * relative**2
        assert row.median == np.ceil(np.median(needed) / 0.01)
        assert row.worst == np.ceil(needed.max() / 0.01)
        assert row.worst_pair == pairs[int(needed.argmax())]
    assert found[0].median < found[3].median < found[6].median
