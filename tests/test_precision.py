"""Precision-targeted scoring: as few texts as a standard error takes, intervals that bear the looking."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats

from conftest import EXAMPLE, Interrupt, write_texts
from klscale.errors import InputError
from klscale.inputs.texts import TextSet
from klscale.science import kl as estimator
from klscale.science.estimates import ratio_of_sums
from klscale.science.kl import LOG_2, nats2_per_bit_per_byte
from klscale.science.reported import SAMPLED_TOKENS, SPANS, WHOLE_TEXTS, ReportedKL
from klscale.science.sequential import anytime_critical_value, with_anytime_interval
from klscale.sources.mock import MockReader
from klscale.store.store import Store
from klscale.studies import precision
from klscale.studies.precision import (
    PLANNED,
    compare_to_precision,
    first_look,
    look_times,
    next_look,
    parse_precision,
    relative_error,
)
from klscale.sweep import score as sweeps
from klscale.vectors.imports import read_log_likelihoods
from klscale.vectors.vectors import Vectors
from mocks import count_scored, plain_mock


def kl(*arguments, **options):
    """The published estimate, as it is reported where there is no other."""
    return ReportedKL.of_whole_texts(estimator.kl(*arguments, **options))


def changed(found, **values):
    """The same with other values of the published estimate."""
    return ReportedKL.of_whole_texts(replace(found.whole_texts, **values))


# ------------------------------------------------------------------------------------------------ confidence sequence


@pytest.mark.parametrize("ratio", [0.2, 1.0, 7.0])
def test_the_boundary_is_where_the_mixture_martingale_reaches_twenty(ratio):
    """Robbins' mixture summed numerically, its width found by a search: no closed form of the code is used."""
    planned = 50.0

    def boundary(n, width):
        b = np.linspace(-8 * width, 8 * width, 4001)
        weight = stats.norm.pdf(b, scale=width) * (b[1] - b[0])
        over = optimize.brentq(
            lambda s: np.log((weight * np.exp(b * s - b * b * n / 2)).sum()) - math.log(20), 0, 6 * math.sqrt(n)
        )
        return over / math.sqrt(n)

    width = optimize.minimize_scalar(lambda w: boundary(planned, w), bounds=(0.05, 3), method="bounded").x
    found = anytime_critical_value(ratio * planned, planned)
    assert found == pytest.approx(boundary(ratio * planned, width), rel=1e-4)


@pytest.mark.slow
def test_a_random_walk_stays_within_the_sequence_and_leaves_the_usual_interval():
    walks = np.random.default_rng(0).normal(size=(1000, 3000)).cumsum(axis=1)
    n = np.arange(1, 3001)
    standardised = np.abs(walks) / np.sqrt(n)
    bounds = np.array([anytime_critical_value(k, 100) for k in n])
    left = (standardised > bounds).any(axis=1).mean()
    assert 0.01 < left < 0.05
    assert (standardised > 1.96).any(axis=1).mean() > 0.5


def test_few_documents_widen_the_interval_by_the_quantile_of_students_t():
    normal = anytime_critical_value(100, 100)
    few, many = (anytime_critical_value(100, 100, G) for G in (10, 10**6))
    assert stats.t.sf(few, df=9) == pytest.approx(stats.norm.sf(normal), rel=1e-6)
    assert many == pytest.approx(normal, rel=1e-4)


def draws(name, generator, size):
    """Differences of log-likelihoods, their variance and kurtosis."""
    if name == "gaussian":
        return generator.normal(size=size), 1.0, 3.0
    if name == "laplace":
        return generator.laplace(size=size), 2.0, 6.0
    if name == "variance-gamma":
        return np.sqrt(generator.gamma(3 / 7, 7 / 3, size=size)) * generator.normal(size=size), 1.0, 10.0
    far = np.where(generator.random(size) < 0.05, 4.0, 1.0)
    return far * generator.normal(size=size), 1.75, 3 * (0.95 + 0.05 * 256) / 1.75**2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian", "laplace", "variance-gamma", "contaminated"])
def test_ten_per_cent_is_reached_with_the_texts_it_needs_and_intervals_cover(name):
    """250 simulated comparisons: the median within 1.5 times the ideal number, 9 of 10 too, 95 % of intervals cover."""
    generator, N, p = np.random.default_rng(1), 6000, 0.1
    times, sizes = look_times(N), np.ones(N, dtype=np.int64)
    used, covered, n_looks = [], [], []
    for _ in range(250):
        d, variance, kurtosis = draws(name, generator, N)
        n, looks = first_look(WHOLE_TEXTS, p, times), 1
        while relative_error(found := kl(d[:n], np.zeros(n), sizes[:n])) > p and n < N:
            n, looks = next_look(found, n, p, times), looks + 1
        low, high = with_anytime_interval(found, PLANNED[WHOLE_TEXTS] / p**2).interval
        used.append(n / ((kurtosis - 1) / p**2))
        covered.append(low <= variance / nats2_per_bit_per_byte(1.0) <= high)
        n_looks.append(looks)
    assert 0.8 < np.median(used) < 1.5
    assert np.mean(np.array(used) <= 1.5) >= 0.9
    assert np.mean(covered) >= (0.93 if name == "contaminated" else 0.97)
    assert np.mean(n_looks) < 4.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "needs"),
    [(SPANS, 1.0, 100), (SPANS, 0.5, 200), (SAMPLED_TOKENS, 6.0, 17), (SAMPLED_TOKENS, 2.0, 50)],
)
def test_spans_and_sampled_tokens_take_fewer_texts_and_their_intervals_cover(name, shape, needs):
    """500 simulated comparisons of texts with gamma distributed parts of KL and lognormal lengths. What models need is
    measured: `needs` texts for 10 %."""
    generator, N, p = np.random.default_rng(2), 4000, 0.1
    times, used, covered = look_times(N), [], []
    for _ in range(500):
        size = np.exp(0.3 * generator.normal(size=N)) * 500
        V = generator.gamma(shape, size / shape) * 0.01

        def at(n, V=V, size=size):
            value, error = ratio_of_sums(V[:n], size[:n] * LOG_2, None)
            whole = estimator.kl(np.arange(n) % 2, np.zeros(n), np.ones(n, dtype=np.int64))
            return replace(
                ReportedKL.of_whole_texts(whole), estimator=name, value=value, standard_error=error, n_texts=n
            )

        n = first_look(name, p, times)
        while relative_error(found := at(n)) > p:
            n = next_look(found, n, p, times)
        low, high = with_anytime_interval(found, PLANNED[name] / p**2).interval
        used.append(n)
        covered.append(low <= 0.01 / LOG_2 <= high)
    assert np.quantile(used, 0.9) <= max(1.6 * needs, first_look(name, p, times))
    assert np.mean(covered) >= 0.97


def test_two_models_that_agree_are_as_precise_as_can_be():
    same = kl(np.ones(50), np.ones(50), np.ones(50, dtype=np.int64))
    assert relative_error(same) == 0
    one = np.ones(1, dtype=np.int64)
    assert relative_error(kl(one * 2.0, one * 3.0, one)) == math.inf, "one text tells nothing"
    assert with_anytime_interval(same, 500).interval == (0.0, 0.0)


# ----------------------------------------------------------------------------------------------------------- looking


def test_looks_lie_on_one_fixed_grid():
    times = look_times(10_000)
    assert times[0] == 40
    assert 100 in times
    assert times[-1] == 10_000
    steps = np.array(times[1:]) / times[:-1]
    assert steps.max() <= 1.3
    assert set(look_times(2000)[:-1]) < set(times)
    assert look_times(60) == [40, 50, 60]
    assert look_times(30) == [30]


def test_the_next_look_is_where_the_precision_is_expected():
    d = np.random.default_rng(0).laplace(size=500)
    found = kl(d, np.zeros(500), np.ones(500, dtype=np.int64))
    centred = d - d.mean()
    needed = ((centred**4).mean() / (centred**2).mean() ** 2 - 1) / 0.08**2
    times = look_times(10_000)
    assert 500 < needed < 1000
    assert next_look(found, 500, 0.08, times) == min(time for time in times if time >= needed)
    assert next_look(found, 500, 0.001, times) == min(time for time in times if time >= 1000)
    assert next_look(found, 500, 0.001, look_times(600)) == 600


def test_texts_that_share_documents_need_more():
    """A document's texts are alike: the number told is one at which the clustered standard error is small enough."""
    generator, G, size = np.random.default_rng(0), 700, 4
    document = np.repeat(np.arange(G), size)
    spread = np.repeat(generator.gamma(1.5, size=G), size)
    d = spread * generator.normal(size=G * size)
    texts = TextSet(name="t", bytes=np.ones(G * size, dtype=np.int64), id="x", document=tuple(map(str, document)))
    order = texts.random_order

    def at(n):
        return kl(d[order[:n]], np.zeros(n), texts.bytes[:n], documents=document[order[:n]])

    times = look_times(G * size)
    first = at(700)
    alone = next_look(first, 700, 0.1, times)
    clustered = next_look(first, 700, 0.1, times, precision.companions_of(texts))
    assert alone < clustered
    assert relative_error(at(alone)) > 0.1
    assert relative_error(at(clustered)) == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize(("excess", "wanted", "texts"), [(0.5, 0.0115, 308), (-0.2, 0.007, 286)])
def test_companions_that_grow_are_foreseen_and_less_error_than_of_independent_texts_is_luck(excess, wanted, texts):
    """Of kurtosis 3 at 200 texts: squared error (2 + 0.01 excess n) / n of n texts, and 2 / n where there is none."""
    d = np.random.default_rng(0).normal(size=200)
    found = kl(d, np.zeros(200), np.ones(200, dtype=np.int64))
    found = changed(found, kurtosis=3.0, standard_error=found.value * math.sqrt(0.01 * (1 + excess)))
    assert next_look(found, 200, math.sqrt(wanted), range(100, 401), lambda n: n / 50) == texts


def test_a_look_may_take_twice_the_texts_and_no_more():
    d = np.random.default_rng(0).laplace(size=100)
    found = kl(d, np.zeros(100), np.ones(100, dtype=np.int64))
    assert next_look(found, 100, 0.001, [100, 150, 200, 300]) == 200


def test_the_first_look_that_counts_depends_on_the_estimator():
    times = look_times(10_000)
    assert first_look(WHOLE_TEXTS, 0.5, times) == min(time for time in times if time >= 200)
    assert first_look(WHOLE_TEXTS, 0.1, times) == min(time for time in times if time >= 250)
    assert first_look(SAMPLED_TOKENS, 0.1, times) <= 60
    assert first_look(SPANS, 0.1, times) <= 100


def test_companions_are_how_many_others_are_of_a_texts_document():
    texts = TextSet(name="t", bytes=np.ones(5, dtype=np.int64), id="x", document=("a", "b", "a", "b", "c"))
    assert precision.companions_of(texts)(5) == pytest.approx(4 / 5)
    assert precision.companions_of(replace(texts, document=None))(5) == 0


def test_an_interval_at_any_time_allows_for_few_documents():
    d = np.random.default_rng(0).normal(size=60)
    found = kl(d, np.zeros(60), np.ones(60, dtype=np.int64), documents=np.repeat(np.arange(6), 10))
    low, high = with_anytime_interval(found, 500).interval
    critical = anytime_critical_value(60, 500, 6)
    assert critical > 2 * anytime_critical_value(60, 500)
    assert math.log(high / found.value) == pytest.approx(critical * found.standard_error / found.value)
    assert low * high == pytest.approx(found.value**2)


def test_a_random_order_is_the_sets_own_and_nested():
    texts = [TextSet.from_texts("t", [f"text {s}" for s in range(300)]) for _ in range(2)]
    order = texts[0].random_order
    np.testing.assert_array_equal(order, texts[1].random_order)
    assert sorted(order) == list(range(300))
    assert abs(stats.spearmanr(order, np.arange(300))[0]) < 0.2
    other = TextSet.from_texts("t", [f"other {s}" for s in range(300)])
    assert (other.random_order != order).mean() > 0.9


@pytest.mark.parametrize(("given", "value"), [("10%", 0.1), (" 10 % ", 0.1), ("0.1", 0.1), ("2.5%", 0.025)])
def test_a_precision_is_a_percentage_or_a_fraction(given, value):
    assert parse_precision(given) == pytest.approx(value)


@pytest.mark.parametrize("given", ["0", "0%", "200%", "10", "100%", "-5%", "nan", "inf", "ten", "1e-200", "1e-9", ""])
def test_what_is_no_precision_is_refused(given):
    with pytest.raises(InputError, match=r"not between 0\.0001 and 100 %"):
        parse_precision(given)


# ----------------------------------------------------------------------------------------------------------- scoring


@pytest.fixture
def by_whole_texts(monkeypatch):
    """Vectors as if they had neither spans nor sampled tokens."""
    for known in ("has_spans", "has_sampled_tokens"):
        monkeypatch.setattr(Vectors, known, lambda *_: False, raising=False)


@pytest.fixture
def many(by_whole_texts) -> TextSet:
    """500 short texts."""
    generator = np.random.default_rng(0)
    return TextSet.from_texts("many", [f"{s} " + "ab cd "[: generator.integers(1, 6)] for s in range(500)])


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def forwards(monkeypatch):
    """The texts that are really scored."""
    return count_scored(monkeypatch)


@pytest.fixture
def pair():
    return ["mock://1", "mock://2"]


def held(store, texts):
    return [(entry.first, len(store.scores(entry))) for entry in store.entries(texts.id)]


@pytest.mark.slow
def test_only_what_a_precision_takes_is_scored_and_more_is_added_to_it(pair, many, store, forwards):
    found = compare_to_precision(pair, many, store, 0.5)
    n = found.looks[-1].n_texts
    assert [look.n_texts for look in found.looks] == [40, first_look(WHOLE_TEXTS, 0.5, look_times(500))]
    assert (found.reached, held(store, many)) == (True, [(n, n)] * 2)
    assert sorted(forwards) == sorted([*many.random_order[:n]] * 2)
    assert not [problem for _, problem in store.check() if problem]

    # the estimate and its error, from the definition
    first, plain = np.sort(many.random_order[:n]), [plain_mock(ref, many) for ref in pair]
    d = (plain[0] - plain[1])[first]
    d -= d.mean()
    kl = found.pairs[tuple(pair)].whole_texts
    assert kl.value == pytest.approx((d**2).mean() / (2 * many.bytes[first].mean() * math.log(2)), rel=1e-4)
    error = math.sqrt(((d**4).mean() / (d**2).mean() ** 2 - 1) / n)
    assert found.looks[-1].relative_error == pytest.approx(error, rel=1e-4)
    assert math.log(found.pairs[tuple(pair)].interval[1] / kl.value) > 3 * error
    assert found.anytime == {tuple(pair)}

    forwards.clear()
    assert compare_to_precision(pair, many, store, 0.5).pairs == found.pairs
    assert not forwards
    more = compare_to_precision(pair, many, store, error / 1.2)
    last = more.looks[-1].n_texts
    assert n < last
    assert len(forwards) == 2 * (last - n), "no text goes through a model twice"
    sweeps.score(pair, many, store)
    assert len(forwards) == 2 * (500 - n)
    assert held(store, many) == [(None, 500)] * 2
    vectors = store.vectors(many)
    for ref, values in zip(pair, plain, strict=True):
        np.testing.assert_allclose(vectors.log_likelihood[vectors.position(ref)], values, rtol=1e-12)
    assert not [problem for _, problem in store.check() if problem]


def test_the_first_look_is_at_what_a_gaussian_difference_needs(pair, many, store, forwards):
    found = compare_to_precision(pair, many, store, 0.1)
    assert found.looks[1].n_texts == min(time for time in look_times(500) if time >= 2.5 / 0.1**2)


def test_what_cannot_be_reached_ends_with_all_texts_and_the_usual_interval(pair, many, store, forwards):
    found = compare_to_precision(pair, many, store, 0.001)
    assert (found.reached, found.looks[-1].n_texts, len(forwards)) == (False, 500, 1000)
    assert found.pairs[tuple(pair)].whole_texts == store.vectors(many).kl()[tuple(pair)]
    assert not found.anytime
    assert held(store, many) == [(None, 500)] * 2
    forwards.clear()
    assert compare_to_precision(pair, many, store, 0.5).pairs == found.pairs, "all texts that are there are used"
    assert not forwards


@pytest.mark.slow
def test_only_the_models_of_pairs_that_need_it_get_more_texts(many, store, monkeypatch):
    """Two models that are one agree on every text."""
    asked = []
    score = sweeps.score

    def watched(models, *arguments, **options):
        asked.append(list(map(str, models)))
        return score(models, *arguments, **options)

    monkeypatch.setattr(sweeps, "score", watched)
    monkeypatch.setitem(precision.FIRST, WHOLE_TEXTS, 0.0)  # a first look that counts at few texts
    monkeypatch.setitem(precision.FEWEST, SAMPLED_TOKENS, 200)
    monkeypatch.setitem(precision.FIRST, SAMPLED_TOKENS, 0.0)
    names = ["mock://1", "mock://1?noise=0", "mock://2"]
    found = compare_to_precision(names, many, store, 0.06, reference=sweeps.ModelRef.parse(names[0]))
    assert [*found.pairs] == [(names[0], names[1]), (names[0], names[2])]
    assert len(asked) == len(found.looks) > 1
    assert asked[0] == names
    assert all(models == [names[0], names[2]] for models in asked[1:])
    assert found.pairs[names[0], names[1]].value == 0
    assert found.pairs[names[0], names[1]].n_texts == found.looks[0].n_texts
    assert found.looks[-1].relative_error == relative_error(found.pairs[names[0], names[2]]) > 0


@pytest.mark.slow
def test_a_look_is_at_what_the_pair_that_needs_most_needs(many, store, monkeypatch):
    needed, asked, score = iter([230, 400, 310, *[500] * 3]), [], sweeps.score

    def watched(*arguments, first, **options):
        asked.append(first)
        return score(*arguments, first=first, **options)

    monkeypatch.setattr(sweeps, "score", watched)
    monkeypatch.setitem(precision.FIRST, WHOLE_TEXTS, 0.0)  # a first look that counts at few texts
    monkeypatch.setitem(precision.FEWEST, SAMPLED_TOKENS, 200)
    monkeypatch.setitem(precision.FIRST, SAMPLED_TOKENS, 0.0)
    monkeypatch.setattr(precision, "next_look", lambda *_: next(needed))
    compare_to_precision(["mock://1", "mock://2", "mock://3"], many, store, 0.01)
    assert asked == [212, 400, 500]


def test_an_interrupted_look_resumes(pair, many, store, forwards):
    sweeps.score(pair[:1], many, store, first=150)
    few = float(many.bytes[many.random_order[:150]].sum()) / 1e6
    with pytest.raises(KeyboardInterrupt):
        sweeps.score(pair[:1], many, store, first=400, batch_tokens=300, progress=Interrupt(1.5 * few))
    assert held(store, many) == [(150, 150)], "what was finished is there"
    done = len(forwards)
    assert 150 < done < 400
    sweeps.score(pair[:1], many, store, first=400)
    assert (len(forwards), held(store, many)) == (400, [(400, 400)])
    assert store.files.list("partial", many.id) == []


def test_work_on_all_texts_that_was_cut_short_is_not_lost_to_a_look_at_some(pair, many, store, forwards):
    with pytest.raises(KeyboardInterrupt):
        sweeps.score(pair[:1], many, store, batch_tokens=300, progress=Interrupt(float(many.bytes.sum()) / 2e6))
    sweeps.score(pair[:1], many, store, first=200)
    assert held(store, many) == [(200, 200)]
    sweeps.score(pair[:1], many, store)
    assert sorted(forwards) == list(range(500)), "each text once"


@pytest.mark.slow
def test_layers_are_extended_with_the_rest(make_model, many, store):
    model = str(make_model())
    sweeps.score([model], many, store, first=120, layers=True)
    sweeps.score([model], many, store, first=250)
    (entry,) = store.entries(many.id)
    scores = store.scores(entry)
    assert (entry.first, entry.n_layers, scores.layers.shape) == (250, 3, (250, 3))
    np.testing.assert_allclose(scores.layers[:, -1], scores.log_likelihood, atol=1e-3)


def test_layers_of_some_texts_do_not_replace_all_texts(make_model, many, store):
    model = str(make_model())
    sweeps.score([model], many, store)
    (outcome,) = sweeps.score([model], many, store, first=120, layers=True)
    assert (outcome.status, outcome.entry.first, outcome.entry.n_layers) == ("scored", None, 3)
    assert sweeps.score([model], many, store, first=120, rescore=True)[0].entry.first is None


@pytest.mark.slow
def test_more_texts_that_another_process_wrote_meanwhile_stay(pair, many, store, tmp_path, monkeypatch):
    elsewhere = Store(tmp_path / "elsewhere")
    sweeps.score(pair[:1], many, elsewhere)
    (whole,) = elsewhere.entries(many.id)
    score = MockReader.score

    def meanwhile(self, *arguments):
        store.write(many, elsewhere.scores(whole), whole.metadata)
        yield from score(self, *arguments)

    monkeypatch.setattr(MockReader, "score", meanwhile)
    (outcome,) = sweeps.score(pair[:1], many, store, first=150)
    assert (outcome.entry.first, held(store, many)) == (None, [(None, 500)])


def test_texts_that_are_skipped_count_as_looked_at(store, by_whole_texts):
    texts = TextSet.from_texts("mixed", [f"{s} " + "x" * (40 if s % 10 == 0 else 5) for s in range(300)])
    models = [f"mock://{seed}?window=32" for seed in (1, 2)]
    found = compare_to_precision(models, texts, store, 0.5, long_texts="skip")
    n = found.looks[-1].n_texts
    long = sum(s % 10 == 0 for s in texts.random_order[:n])
    assert found.pairs[tuple(models)].n_texts == n - long
    assert [entry.metadata["skipped"] for entry in store.entries(texts.id)] == [
        sorted(s for s in texts.random_order[:n].tolist() if s % 10 == 0)
    ] * 2
    assert not [problem for _, problem in store.check() if problem]


@pytest.mark.slow
def test_some_texts_by_one_convention_do_not_take_all_of_another(store, forwards):
    """All texts but the long ones were scored before; cut into windows is another vector, of as many as asked for."""
    texts = TextSet.from_texts("mixed", [f"{s} " + "x" * (40 if s % 10 == 0 else 5) for s in range(300)])
    model = "mock://1?window=32"
    sweeps.score([model], texts, store, long_texts="skip")
    forwards.clear()
    (outcome,) = sweeps.score([model], texts, store, first=100, long_texts="window")
    first = np.sort(texts.random_order[:100])
    assert (outcome.status, outcome.entry.first, sorted({*forwards})) == ("scored", 100, [*first])
    assert len(store.entries(texts.id)) == 2
    (outcome,) = sweeps.score([model], texts, store, first=150, long_texts="window")
    assert len(store.scores(outcome.entry)) == 150
    other = Store(store.location + "-2")
    in_one = sweeps.score([model], texts, other, long_texts="window")[0].entry
    whole = other.scores(in_one).at(store.scores(outcome.entry).text)
    np.testing.assert_allclose(store.scores(outcome.entry).log_likelihood, whole.log_likelihood, rtol=1e-5)


def test_a_vector_that_lost_texts_is_damaged(pair, many, store):
    sweeps.score(pair[:1], many, store, first=150)
    (entry,) = store.entries(many.id)
    store.write(many, store.scores(entry).at(many.random_order[:140]), entry.metadata)
    assert [problem for _, problem in store.check() if problem] == ["lacks 10 texts"]


@pytest.mark.slow
def test_a_model_that_is_gone_keeps_what_it_has(make_model, many, store):
    pair = [str(make_model(name, seed=seed)) for seed, name in enumerate("ab")]
    sweeps.score(pair, many, store, first=150)
    shutil.rmtree(pair[0])
    found = compare_to_precision(pair, many, store, 0.05)
    assert not found.reached
    assert found.pairs[tuple(pair)].n_texts == 150
    assert found.anytime


def test_no_texts_at_all_are_refused(pair, many, store):
    with pytest.raises(InputError, match="first=0"):
        sweeps.score(pair, many, store, first=0)


@pytest.mark.slow
def test_a_model_that_fails_leaves_the_others(pair, many, store):
    found = compare_to_precision([*pair, "no-such-dir:x"], many, store, 0.5)
    assert [outcome.status for outcome in found.outcomes] == ["scored", "scored", "failed"]
    assert [*found.pairs] == [tuple(pair)]


@pytest.mark.slow
def test_imported_values_are_looked_at_as_they_are(store):
    vectors = read_log_likelihoods(EXAMPLE, id_column="text_id")
    store.import_vectors(vectors, "example")
    texts = store.resolve_texts(None)
    names = vectors.names[:2]
    found = compare_to_precision(names, texts, store, 0.01)
    assert (len(found.looks), found.reached, found.anytime) == (1, False, frozenset())
    assert found.pairs[names] == ReportedKL.of_whole_texts(store.vectors(texts).subset(names).kl()[names])


# ------------------------------------------------------------------------------------------------------ command line


@pytest.mark.slow
def test_compare_to_a_precision_and_then_to_all_texts(run, make_model, tmp_path, by_whole_texts):
    for seed, name in enumerate("ab"):
        make_model(name, seed=seed)
    texts = write_texts(tmp_path / "texts.jsonl", 400)
    told = run("compare", "a", "b", "--precision", "40 %", "--texts", texts)
    n = next(time for time in look_times(400) if time >= 200)
    assert f"{n} of 400 texts used (looks at 40, {n})" in told.stdout
    assert "not reached" not in told.stdout
    assert "40 % alone would need fewer. But a standard error needs at least 200 by whole texts" in told.stdout
    assert "confidence sequence" in told.stdout
    assert f"{n} texts" in run("ls").stdout
    assert "Not all texts were scored with 2 of 2" in run("kl").stderr
    run("check")
    (record,) = json.loads(run("compare", "a", "b", "--precision", "0.4", "--json").stdout)
    assert (record["n_texts"], record["n_texts_of_set"], record["reached"]) == (n, 400, True)
    assert record["looks"] == [{"n_texts": n, "relative_error": record["relative_error"]}]
    assert record["fewest_texts"] == 200
    assert record["relative_error"] == pytest.approx(record["standard_error"] / record["kl"])
    assert record["interval_kind"] == "confidence sequence"
    (whole,) = json.loads(run("compare", "a", "b", "--json").stdout)
    assert (whole["n_texts"], "looks" in whole) == (400, False)
    usual, wide = (math.log(r["interval_high"] / r["kl"]) / (r["standard_error"] / r["kl"]) for r in (whole, record))
    assert usual == pytest.approx(1.96, abs=0.01)
    assert wide > 3
    rest = run("compare", "a", "b", "--precision", "0.1%")
    assert "0.1 % was asked for and not reached" in rest.stdout
    assert "alone would need fewer" not in rest.stdout
    assert "confidence sequence" not in rest.stdout


def test_a_limit_is_recorded_and_the_rest_is_added_later(run, tmp_path):
    """The first texts of the random order; a comparison without a limit completes both vectors."""
    texts = write_texts(tmp_path / "texts.jsonl", 120)
    told = run("compare", "mock://1", "mock://2", "--texts", texts, "--limit", "30", "--json")
    assert "Only 30 of 120 texts are scored" in told.stderr
    (some,) = json.loads(told.stdout)
    store = Store("klscale-store")
    (head,) = store.text_sets()
    chosen = store.texts(head["id"])
    for entry in store.entries(head["id"]):
        assert entry.first == 30
        np.testing.assert_array_equal(store.scores(entry).text, np.sort(chosen.random_order[:30]))
    assert some["n_texts"] == 30
    run("score", "mock://1", "--limit", "10")
    assert {entry.first for entry in store.entries(head["id"])} == {30}, "what is there stays"
    (whole,) = json.loads(run("compare", "mock://1", "mock://2", "--json").stdout)
    assert whole["n_texts"] == 120
    assert {entry.first for entry in Store("klscale-store").entries(head["id"])} == {None}
    clash = run("compare", "mock://1", "mock://2", "--limit", "30", "--precision", "10%", status=2)
    assert "limit and precision exclude each other" in clash.stderr


def test_a_precision_that_is_none_is_refused_before_anything_else(run):
    result = run("compare", "a", "b", "--precision", "200%", status=2)
    assert "not between 0.0001 and 100 %" in result.output
