"""Diffusion exponents and laws of growth: against naive loops, closed forms, and processes whose exponent is known."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from scipy import optimize, stats

from klscale.errors import InputError
from klscale.science import diffusion
from klscale.science.bootstrap import estimate_from_resamples, resampled_kl
from klscale.science.kl import kl_matrix

REGULAR = np.arange(1, 41) * 1000
IRREGULAR = np.cumsum(np.random.default_rng(5).integers(1, 5, size=40)) * 500
RULES = (diffusion.fits, diffusion.time_averaged)


def distances(steps, law):
    """D (T, T) that is a function of the lag alone."""
    lag = np.abs(np.subtract.outer(steps, steps)).astype(np.float64)
    np.fill_diagonal(lag, 1.0)
    return law(lag) * (1 - np.eye(len(steps)))


def noisy(steps, seed=0, leading=()):
    """D that no law fits."""
    factor = np.exp(0.3 * np.random.default_rng(seed).normal(size=(*leading, len(steps), len(steps))))
    return distances(steps, lambda lag: 0.01 * lag**0.3) * factor


# ------------------------------------------------------------------------------------------------------- the two rules


@pytest.mark.parametrize("steps", [REGULAR, IRREGULAR])
@pytest.mark.parametrize("rule", RULES)
def test_a_power_law_gives_its_exponent_exactly(rule, steps):
    for exponent in (0.15, 1.0):
        found = rule(steps, distances(steps, lambda lag, c=exponent: 3e-4 * lag**c), after=5000)
        # Lags that are put together blur any exponent but 1, a little.
        tolerance = 1e-12 if rule is diffusion.fits or steps is REGULAR or exponent == 1 else 1e-4
        assert found.exponent == pytest.approx(exponent, abs=tolerance)
        np.testing.assert_allclose(found.r_squared, 1.0, atol=1e-6 if tolerance > 1e-12 else 1e-12)
        np.testing.assert_allclose(np.exp(found.intercept), 3e-4, rtol=1e-3 if tolerance > 1e-12 else 1e-9)


@pytest.mark.parametrize("steps", [REGULAR, IRREGULAR])
def test_fits_equal_polyfit_start_by_start(steps):
    D = noisy(steps, leading=(2, 3))
    found = diffusion.fits(steps, D, after=int(steps[4]) - 1, window=7)
    assert found.starts.tolist() == list(range(4, 33))
    assert found.exponent.shape == (2, 3)
    for place in np.ndindex(2, 3):
        slopes = []
        for n, start in enumerate(found.starts):
            later = slice(start + 1, start + 8)
            x, y = np.log(steps[later] - steps[start]), np.log(D[place][start, later])
            slope, intercept = np.polyfit(x, y, 1)
            slopes.append(slope)
            assert found.slope[place][n] == pytest.approx(slope, rel=1e-12, abs=1e-12)
            assert found.intercept[place][n] == pytest.approx(intercept, rel=1e-12, abs=1e-11)
            assert found.r_squared[place][n] == pytest.approx(stats.pearsonr(x, y)[0] ** 2, abs=1e-12)
        assert found.exponent[place] == pytest.approx(np.mean(slopes), rel=1e-12)
        assert np.isfinite(found.slope[place]).sum() == 29


@pytest.mark.parametrize("steps", [REGULAR, IRREGULAR])
def test_the_time_average_equals_a_loop_over_lags(steps):
    D = noisy(steps, leading=(2,))
    found = diffusion.time_averaged(steps, D, after=int(steps[2]))
    pairs = [(i, i + k) for i in range(2, 30) for k in range(1, 11)]
    by_lag = defaultdict(list)
    for i, j in pairs:
        by_lag[steps[j] - steps[i]].append((i, j))
    groups, first = [], -math.inf
    for lag in sorted(by_lag):
        if lag >= first * 1.1 - 1e-6:
            groups.append([])
            first = lag
        groups[-1] += by_lag[lag]
    assert found.n_pairs.tolist() == [len(group) for group in groups]
    if steps is REGULAR:
        assert found.lag.tolist() == list(range(1000, 11000, 1000))
        assert found.n_pairs.tolist() == [28] * 10
    for r in range(2):
        mean = [np.mean([D[r][pair] for pair in group]) for group in groups]
        lag = [np.mean([steps[j] - steps[i] for i, j in group]) for group in groups]
        np.testing.assert_allclose(found.mean_squared_distance[r], mean, rtol=1e-12)
        np.testing.assert_allclose(found.lag, lag, rtol=1e-12)
        slope, intercept = np.polyfit(np.log(lag), np.log(mean), 1)
        assert found.exponent[r] == pytest.approx(slope, rel=1e-10)
        assert found.intercept[r] == pytest.approx(intercept, rel=1e-10)


@pytest.mark.parametrize("window", [3, 10, 30])
def test_regular_spacing_keeps_every_lag_apart(window):
    steps = np.arange(60) * 7
    lag = diffusion.time_averaged(steps, noisy(steps), after=0, window=window).lag
    assert lag.tolist() == [7.0 * k for k in range(1, window + 1)]


def test_distances_of_zero_are_left_out():
    """One lag of one start; all but two lags of another; a NaN of a third. Then every pair at one lag."""
    D = distances(REGULAR, lambda lag: 2e-3 * lag**0.7)
    D[0, 3] = 0.0
    D[1, 2:10] = 0.0
    D[2, 4] = np.nan
    found = diffusion.fits(REGULAR, D, after=0)
    assert np.flatnonzero(np.isnan(found.slope)).tolist() == [1]
    assert np.isfinite(found.slope).sum() == 29
    assert found.exponent == pytest.approx(0.7, abs=1e-12)
    D[np.arange(38), np.arange(2, 40)] = 0.0
    averaged = diffusion.time_averaged(REGULAR, D, after=3000)
    assert averaged.mean_squared_distance[1] == 0.0
    assert averaged.exponent == pytest.approx(0.7, abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_too_few_checkpoints_have_no_exponent():
    for count in (0, 1, 5, 10):
        steps = np.arange(1, count + 1) * 1000
        D = np.ones((2, count, count))
        found, averaged = diffusion.fits(steps, D, after=0), diffusion.time_averaged(steps, D, after=0)
        assert len(found.starts) == len(averaged.lag) == 0
        for exponent in (found.exponent, averaged.exponent, *diffusion.laws(steps, D, after=0).values()):
            assert exponent.shape == (2,)
            assert np.isnan(exponent).all()
        assert np.isnan(found.slope).all()


@pytest.mark.filterwarnings("error")
def test_a_run_that_stands_still_has_exponent_zero_or_none():
    steps = np.arange(20)
    still = diffusion.fits(steps, np.ones((20, 20)), after=0)
    assert (still.exponent, np.isfinite(still.slope).sum()) == (0.0, 10)
    assert np.isnan(still.r_squared).all()
    assert np.isnan(diffusion.fits(steps, np.zeros((20, 20)), after=0).exponent)
    assert np.isnan(diffusion.time_averaged(steps, np.zeros((20, 20)), after=0).exponent)


@pytest.mark.parametrize("steps", [[0, 2, 1, 3], [0, 1, 1, 2]])
def test_steps_that_do_not_ascend_are_refused(steps):
    for function in (*RULES, diffusion.laws):
        with pytest.raises(InputError, match=f"Step {steps[2]} comes after step {steps[1]}"):
            function(steps, np.ones((4, 4)), after=0)


def test_fractal_dimension_is_that_of_the_textbook():
    assert diffusion.fractal_dimension([1.0, 2.0, 0.5]).tolist() == [2.0, 1.0, 4.0]
    assert np.isnan(diffusion.fractal_dimension([0.0, -0.1])).all()


def test_independent_noise_adds_the_floor_once():
    """Two checkpoints and two readings of the first, each with noise of its own."""
    generator = np.random.default_rng(0)
    checkpoints = generator.normal(size=(2, 200_000)) * 0.3
    readings = checkpoints[[0, 0, 1]] + 0.1 * generator.normal(size=(3, 200_000))
    measured = kl_matrix(readings, np.full(200_000, 900)).value
    exact = kl_matrix(checkpoints, np.full(200_000, 900)).value[0, 1]
    found = diffusion.subtract_noise(measured, measured[0, 1])
    assert found[0, 2] == pytest.approx(exact, rel=0.02)
    assert measured[0, 2] > 1.1 * exact
    assert (found[0, 0], found[0, 1]) == (0.0, 0.0)


# --------------------------------------------------------------------------------------------- coverage by simulation


def fractional_brownian_motion(steps, exponent, generator, n=1000):
    """n independent coordinates (T, n) with E (x_t - x_s)² = |t - s|**exponent: exact, from their covariance."""
    since = (steps[1:] - steps[0]).astype(np.float64)
    lag = np.abs(np.subtract.outer(since, since))
    covariance = (since[:, None] ** exponent + since**exponent - lag**exponent) / 2
    walk = np.linalg.cholesky(covariance) @ generator.normal(size=(len(since), n))
    return np.vstack([np.zeros(n), walk])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "exponent"), [(REGULAR, 0.2), (REGULAR, 0.5), (REGULAR, 1.0), (REGULAR, 1.5), (IRREGULAR, 0.5)]
)
def test_intervals_over_texts_cover_the_exponent(steps, exponent):
    """Fractional Brownian motion, a text each coordinate: the interval of either rule covers at least 90 %, and its
    standard error is the spread over simulations."""
    generator, size, n_simulations = np.random.default_rng(2030), np.full(1000, 970), 80
    estimates = {rule: [] for rule in RULES}
    for n in range(n_simulations):
        L = fractional_brownian_motion(steps, exponent, generator)
        value, resampled = kl_matrix(L, size).value, resampled_kl(L, size, resamples=100, seed=n)
        for rule, found in estimates.items():
            at, spread = (rule(steps, D, after=int(steps[0])).exponent for D in (value, resampled))
            found.append(estimate_from_resamples(float(at), spread, 1000, unit=""))
    for found in estimates.values():
        covered = sum(one.interval[0] <= exponent <= one.interval[1] for one in found)
        assert stats.binomtest(covered, n_simulations, 0.9, alternative="less").pvalue > 0.02
        spread = np.std([one.value for one in found], ddof=1)
        assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.25)


# ---------------------------------------------------------------------------------------------------------------- laws


LAWS = {
    "power": (lambda lag: 0.02 * lag**0.3, lambda lag: 4 * lag**1.2),
    "logarithmic": (lambda lag: 0.1 + 0.03 * np.log(lag / 100), lambda lag: 2 * np.log(lag / 90)),
    "saturating": (lambda lag: 1 - np.exp(-lag / 4000), lambda lag: 0.3 * (1 - np.exp(-lag / 2000))),
}


@pytest.mark.parametrize("steps", [REGULAR, IRREGULAR])
@pytest.mark.parametrize("law", LAWS)
def test_each_law_wins_on_data_of_its_own(law, steps):
    for made in LAWS[law]:
        errors = diffusion.laws(steps, distances(steps, made), after=int(steps[3]))
        assert errors.pop(law) < 1e-3
        assert min(errors.values()) > 0.005


@pytest.mark.slow
def test_errors_of_laws_equal_a_search_by_scipy():
    """Each law fitted in its own parameters, by another optimiser, from several beginnings."""
    D = noisy(IRREGULAR, seed=1)[None] ** 0.3
    found = diffusion.laws(IRREGULAR, D, after=0)
    formulas = {
        "power": lambda lag, c: lag ** np.exp(c),
        "logarithmic": lambda lag, b: 1 + np.exp(b) * np.log(lag),
        "saturating": lambda lag, t: 1 - np.exp(-lag * np.exp(t)),
    }
    for name, formula in formulas.items():
        errors = []
        for start in range(30):
            lag = (IRREGULAR[start + 1 : start + 11] - IRREGULAR[start]) / (IRREGULAR[start + 1] - IRREGULAR[start])
            y = np.log(D[0, start, start + 1 : start + 11])

            def residual(shape, formula=formula, lag=lag, y=y):
                r = np.log(formula(lag, shape)) - y
                return r - r[:6].mean()

            bounds = math.log(1e-4), math.log(1e2)
            tried = np.linspace(*bounds, 2000)
            best = tried[np.argmin([(residual(shape)[:6] ** 2).sum() for shape in tried])]
            around = max(best - 0.01, bounds[0]), min(best + 0.01, bounds[1])
            shape = optimize.minimize_scalar(
                lambda shape, r=residual: (r(shape)[:6] ** 2).sum(), bounds=around, method="bounded"
            ).x
            errors.append(math.sqrt((residual(shape)[6:] ** 2).mean()))
        assert found[name] == pytest.approx([np.mean(errors)], rel=2e-3)


def gaussian_process(distance, generator, n=1000):
    """n coordinates (T, n) whose expected squared distances are these, centred at their mean."""
    centre = np.eye(len(distance)) - 1 / len(distance)
    values, axes = np.linalg.eigh(-centre @ distance @ centre / 2)
    assert values.min() > -1e-9 * values.max(), "no points have these distances"
    return (axes * np.sqrt(values.clip(min=0))) @ generator.normal(size=(len(distance), n))


@pytest.mark.parametrize(
    ("law", "distance"),
    [
        ("power", lambda lag: lag**0.5),
        ("logarithmic", lambda lag: 1 + 0.3 * np.log(lag / 1000)),
        ("saturating", lambda lag: 1 - np.exp(-lag / 6000)),
    ],
)
def test_the_true_law_is_found_through_noise(law, distance):
    """1,000 texts: it wins, and by more than two standard errors of the paired difference over texts."""
    exact = distances(REGULAR, distance)
    L = gaussian_process(exact, np.random.default_rng(3))
    size = np.full(1000, 970)
    value = diffusion.laws(REGULAR, kl_matrix(L, size).value, after=0)
    resampled = diffusion.laws(REGULAR, resampled_kl(L, size, resamples=50), after=0)
    for other in value.keys() - {law}:
        assert value[other] - value[law] > 2 * np.std(resampled[other] - resampled[law], ddof=1)


def test_starts_without_all_lags_do_not_judge():
    D = distances(REGULAR, LAWS["power"][0])
    D[4, 6:9] = 0.0
    D[7, 8] = np.nan
    assert diffusion.laws(REGULAR, D, after=0)["power"] < 1e-3
    with pytest.raises(InputError, match="too short"):
        diffusion.laws(REGULAR, D, after=0, window=4)
