"""Every interval that is printed, and every ± where no interval is, on texts from a population that is known.

Small and with fixed seeds; `benchmarks/coverage.md` has the large table. Beside these: KL of other tails
(`test_kl.py`), exponents of other runs (`test_diffusion.py`), and intervals over models (`test_scales.py`).
The bands: the nominal 95 %, with three standard errors of the simulation to either side.
"""

from __future__ import annotations

import pytest

import simulated
from simulated import QUICK, Sample, coverage

BOOTSTRAPS = tuple(simulate for simulate in simulated.SLOW if simulate is not simulated.of_stabilisation)


@pytest.mark.slow
@pytest.mark.parametrize("simulate", QUICK)
@pytest.mark.parametrize("shared", [False, True])
def test_intervals_over_texts_cover(simulate, shared):
    """500 texts, Gaussian differences, and 100 documents."""
    found = coverage(lambda generator: simulate(Sample(generator, 500, shared=shared)), 500)
    assert found
    for what, held in found.items():
        assert 0.92 <= held <= 0.98, what


@pytest.mark.slow
@pytest.mark.parametrize("simulate", QUICK)
def test_heavy_tails_cost_a_few_percent(simulate):
    """500 texts and a kurtosis of 10, where the warning is just due."""
    found = coverage(lambda generator: simulate(Sample(generator, 500, "variance-gamma, kurtosis 10")), 500)
    for what, held in found.items():
        assert 0.87 <= held <= 0.98, what


@pytest.mark.slow
@pytest.mark.parametrize("simulate", BOOTSTRAPS)
@pytest.mark.parametrize("shared", [False, True])
def test_standard_errors_by_bootstrap_cover(simulate, shared):
    """250 texts, Gaussian differences, and 50 documents."""
    found = coverage(lambda generator: simulate(Sample(generator, 250, shared=shared)), 100)
    assert found
    for what, held in found.items():
        assert 0.88 <= held <= 1.0, what


def test_the_step_of_stabilisation_is_covered():
    """Steps are few: an interval that holds whole ones holds the true one in more than 95 %."""
    found = coverage(lambda generator: simulated.of_stabilisation(Sample(generator, 250)), 100)
    assert found["step of stabilisation"] >= 0.95


def test_the_distance_off_a_map_of_many_models_is_covered():
    """97 models on 500 texts, the size of `klscale demo`: the plain residual would be a fifth too small, and its
    interval would hold the true value in a tenth of the simulations."""
    (held,) = coverage(lambda generator: simulated.of_placing(Sample(generator, 500), 97), 200).values()
    assert 0.89 <= held <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("S", [3, 8])
def test_intervals_over_seeds_cover(S):
    found = coverage(lambda generator: simulated.of_seeds(generator, S), 2000)
    assert set(found) == {"c_q over seeds", "c_w over seeds", "alpha over seeds"}
    for what, held in found.items():
        assert 0.935 <= held <= 0.965, what
