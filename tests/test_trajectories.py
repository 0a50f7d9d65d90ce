"""Trajectories: against plain loops over a run of the pocket suite, paths whose shape is known, and simulated nulls."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats

from conftest import plain_log_likelihoods, whole_tables
from klscale.errors import InputError
from klscale.inputs.suites import read_suite
from klscale.inputs.texts import TextSet
from klscale.science.estimates import format_estimate
from klscale.science.kl import kl
from klscale.science.weights import squared_distances
from klscale.show import cautions
from klscale.show.columns import number
from klscale.show.pictures import training_trajectories
from klscale.show.terminal import out, print_json
from klscale.show.trajectories import print_motion, print_trajectories, save_trajectories, trajectories_record
from klscale.store.store import Store
from klscale.studies import maps, pocket, trajectories
from klscale.studies.trajectories import analyse_run, find_runs, over_seeds, settled_from
from klscale.sweep.score import score
from klscale.vectors.imports import read_log_likelihoods
from klscale.vectors.vectors import CONVENTION, Vectors

N_TEXTS, BYTES = 200, 100
SCALE = 2 * BYTES * math.log(2)
"""nats² of variance in 1 bit/byte."""
STEPS = np.arange(1, 15) * 1000
"""With warm-up until 1,000, four starts."""


# ------------------------------------------------------------------------------------------- made paths, plain loops


def walk(T=len(STEPS), n=N_TEXTS, seed=0):
    """A random walk: T points in n dimensions, of which the first is the origin."""
    moves = np.random.default_rng(seed).normal(size=(T - 1, n))
    return np.vstack([np.zeros(n), moves.cumsum(axis=0)])


def relaxing(T=len(STEPS), n=N_TEXTS, seed=0):
    """Points that forget where they were within two steps: hardly any growth with the lag."""
    generator, points = np.random.default_rng(seed), np.zeros((T, n))
    for t in range(T):
        points[t] = 0.3 * points[t - 1] + generator.normal(size=n)
    return points


def made(names, L, known=None, **labels):
    """Vectors (K, N) of models with these names and, beside what the names say, `known` attributes."""
    rows = {name: {"dtype": "float32", "convention": CONVENTION, **(known or {})} for name in names}
    texts = TextSet.from_texts("made", [f"{n:0{BYTES}}" for n in range(np.shape(L)[1])], **labels)
    below = L - max(0.0, np.nanmax(L))  # no KL changes
    return Vectors.from_arrays(below, names, texts, rows)


def run_of(points, steps=STEPS, name="org/toy", warmup=None, known=None, **labels):
    """The run whose log-likelihoods are these points (T, N), about -100 nats."""
    names = [f"{name}@step{step}" for step in steps]
    (run,) = find_runs(made(names, points - 100, known, **labels), warmup=warmup)
    return run


def on_a_line(positions, spread=None):
    """Log-likelihoods (T, N) along one direction: KL is (a - b)² times the variance of `spread` (N,), here 1."""
    spread = np.tile([-1.0, 1.0], N_TEXTS // 2) if spread is None else spread
    return np.outer(positions, spread) * math.sqrt(SCALE)


def squared(points):
    return np.array([[((a - b) ** 2).sum() for b in points] for a in points])


def plain_kl(L, size):
    return np.array([[np.var(a - b) for b in L] for a in L]) / (2 * np.mean(size) * math.log(2))


def plain_exponent(steps, D, after):
    """The published rule, by polyfit, start by start; lags of no distance are left out."""
    slopes = []
    for s in range(len(steps) - 10):
        if steps[s] >= after:
            later = slice(s + 1, s + 11)
            lag, known = steps[later] - steps[s], D[s, later] > 0
            slopes.append(np.polyfit(np.log(lag[known]), np.log(D[s, later][known]), 1)[0])
    return np.mean(slopes)


def plain_settled(steps, to_last, threshold):
    for t, step in enumerate(steps):
        if all(value <= threshold for value in to_last[t:]):
            return step
    raise AssertionError


def plain_bootstrap(runs, after, groups, resamples=100):
    """c_q of each of some L (T, N), whose groups of texts are drawn with replacement: (resamples, runs)."""
    generator, found = np.random.default_rng(99), []
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for _ in range(resamples):
        drawn = np.concatenate([members[g] for g in generator.integers(len(members), size=len(members))])
        found.append([plain_exponent(STEPS, plain_kl(L[:, drawn], BYTES), after) for L in runs])
    return np.array(found)


def plain_path(points):
    """Shares of variance, and turns about the mean, from the points themselves."""
    u, s, _ = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    angle = np.unwrap(np.arctan2(u[:, 1] * s[1], u[:, 0] * s[0]))
    return (s**2 / (s**2).sum())[:5], abs(angle[-1] - angle[0]) / (2 * math.pi)


# ------------------------------------------------------------------------------------------- a run of the pocket suite


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pocket run of 18 checkpoints, 15 of them past warm-up, with its log-likelihoods and weights as klscale has
    them, and as plain loops have them."""
    import argparse
    import ast
    import json.decoder
    import textwrap

    from safetensors.torch import load_file

    modules = (argparse, ast, json.decoder, textwrap, inspect)
    corpus = [(f"source {n}", inspect.getsource(module), "source") for n, module in enumerate(modules)]
    corpus += [(f"documentation {n}", text, "documentation") for _, text, _ in corpus for n in range(4)]
    recipe = pocket.Recipe(
        sizes=(("tiny", 16),), layers=1, seeds=(1, 2), steps=45, interval=3, followed=1, last=1, warmup=3,
        finetune_steps=1, batch=2, window=64,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("pocket")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pocket, "pocket_corpus", lambda: corpus)
        suite = pocket.train_suite(directory, recipe)
    lines = [line for line in inspect.getsource(pocket).splitlines() if 20 <= len(line) <= 60]
    texts = TextSet.from_texts("short", lines[:40])
    models = [model for model in read_suite(suite).models if model.ref.quantization is None]
    store = Store(directory / "store")
    assert not any(outcome.error for outcome in score(models, texts, store, device="cpu"))
    vectors = store.vectors(texts, layers=True)
    (run,) = find_runs(vectors)
    places = [Path(ref.name) for ref in run.vectors.models]
    compared = squared_distances(
        {name: [place / "model.safetensors"] for name, place in zip(run.names, places, strict=True)}
    )
    weights = [{name: w.double() for name, w in load_file(place / "model.safetensors").items()} for place in places]
    return SimpleNamespace(
        run=run,
        found=analyse_run(run, compared.squared_distance, n_parameters=compared.n_parameters, threshold=0.02),
        kl=plain_kl([plain_log_likelihoods(place, texts) for place in places], texts.bytes),
        weights=np.array([[sum(float(((a[n] - b[n]) ** 2).sum()) for n in a) for b in weights] for a in weights]),
    )


@pytest.mark.slow
def test_a_run_of_the_pocket_suite_is_found(trained):
    """Among its layers, a fine-tuned model, and runs of which one checkpoint was kept."""
    assert trained.run.steps.tolist() == [0, 1, 2, *range(3, 46, 3)]
    assert (trained.run.warmup, trained.run.warmup_known, trained.run.notes) == (3, True, ())
    assert trained.run.name.endswith("pocket-tiny-seed1")
    assert (trained.run.attribute("seed"), trained.run.attribute("parent")) == (1, None)


@pytest.mark.slow
def test_distances_of_a_pocket_run_equal_a_plain_computation(trained):
    np.testing.assert_allclose(trained.found.behaviour.squared_distance, trained.kl, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(trained.found.weights.squared_distance, trained.weights, rtol=1e-9)
    for t, row in enumerate(trained.found.checkpoints):
        assert (row.ref, row.step) == (trained.run.names[t], trained.run.steps[t])
        of = {"first": (0, t), "previous": (t - 1, t), "last": (t, 17)}
        for which, (a, b) in of.items():
            kl, moved = getattr(row, f"kl_from_{which}"), getattr(row, f"weights_from_{which}")
            if a == b or a < 0:
                assert kl is None
                assert moved is None
            else:
                assert kl.value == pytest.approx(trained.kl[a, b], rel=1e-6, abs=1e-6)
                assert moved == pytest.approx(trained.weights[a, b], rel=1e-9)


@pytest.mark.slow
def test_exponents_of_a_pocket_run_equal_a_plain_computation(trained):
    found, steps = trained.found, trained.run.steps
    c_q, c_w = (plain_exponent(steps, D, after=3) for D in (trained.kl, trained.weights))
    behaviour, weights = found.behaviour.exponent, found.weights.exponent
    assert behaviour.starts.tolist() == weights.starts.tolist() == [3, 6, 9, 12, 15]
    assert behaviour.lags == (3, 30)
    assert behaviour.value.value == pytest.approx(c_q, abs=1e-6)
    assert weights.value.value == pytest.approx(c_w, abs=1e-6)
    assert found.alpha.value == pytest.approx(c_q / c_w, abs=1e-6)
    assert behaviour.dimension.value == pytest.approx(2 / c_q, abs=1e-6)
    assert weights.dimension.value == pytest.approx(2 / c_w, abs=1e-6)
    error = behaviour.value.standard_error
    assert error == pytest.approx(np.std(behaviour.resampled, ddof=1))
    assert found.alpha.standard_error == pytest.approx(error / c_w)
    assert math.isnan(weights.value.standard_error)
    assert found.probability == pytest.approx(stats.norm.sf(0, (c_w - c_q) / error))


def test_stabilisation_of_a_pocket_run_equals_a_plain_loop(trained):
    found, steps = trained.found, trained.run.steps
    settled, drift = found.behaviour.stabilisation, found.weights.stabilisation
    share = 0.02 / trained.kl[0, -1]
    assert settled.step == plain_settled(steps, trained.kl[:, -1], 0.02)
    assert 3 < settled.step < 45
    assert drift.step == plain_settled(steps, trained.weights[:, -1], share * trained.weights[0, -1])
    assert drift.threshold / drift.total == pytest.approx(share)
    for curve, D in ((settled, trained.kl), (drift, trained.weights)):
        # Between the thresholds, so that rounding at a distance decides nothing.
        between = np.sqrt(curve.thresholds[:-1] * curve.thresholds[1:])
        assert curve.steps[0] == steps[-2]
        assert settled_from(steps, D[:, -1], between).tolist() == [
            plain_settled(steps, D[:, -1], threshold) for threshold in between
        ]
        assert curve.steps[-1] == 0


# --------------------------------------------------------------------------------------------------- runs are found


def noise(n, seed=0):
    return np.random.default_rng(seed).normal(-100, 10, size=(n, N_TEXTS))


def test_runs_are_told_apart_and_others_left_out():
    """By name, seed and dtype; in order of steps; layers, quantized models, single checkpoints are none."""
    names = [
        "org/a-1m-seed1@step3000", "org/a-1m-seed1@step1000", "org/a-1m-seed1@step2000",
        "org/a-1m-seed2@step1000", "org/a-1m-seed2@step2000",
        "org/a-1m-seed2@step1000%float16", "org/a-1m-seed2@step2000%float16",
        "org/a-1m-seed1@step4000+nf4", "org/a-1m-seed1@step5000#1", "org/b@step7", "org/c",
        "runs/d/checkpoint-20", "runs/d/checkpoint-10",
    ]  # fmt: skip
    vectors = made(names, noise(len(names)))
    vectors.attributes["dtype"] = [ref.dtype for ref in vectors.models]
    found = find_runs(vectors)
    assert [(run.name, run.steps.tolist(), run.warmup) for run in found] == [
        ("org/a-1m-seed1", [1000, 2000, 3000], 2000),
        ("org/a-1m-seed2 (dtype float32)", [1000, 2000], 2000),
        ("org/a-1m-seed2 (dtype float16)", [1000, 2000], 2000),
        ("runs/d", [10, 20], 20),
    ]
    assert found[0].names == ("org/a-1m-seed1@step1000", "org/a-1m-seed1@step2000", "org/a-1m-seed1@step3000")
    np.testing.assert_array_equal(found[0].vectors.log_likelihood, vectors.log_likelihood[[1, 2, 0]])
    assert not any(run.notes or run.warmup_known for run in found)


def test_runs_of_one_name_are_told_apart_by_what_differs():
    """Seed 0 is a seed."""
    vectors = made([f"org/a@step{n}" for n in range(1, 7)], noise(6), {"family": "a"})
    vectors.attributes["seed"] = pd.Series([0, 1, None] * 2, index=vectors.names, dtype=object)
    assert [run.name for run in find_runs(vectors)] == ["org/a (seed 0)", "org/a (seed 1)", "org/a"]


def test_imported_checkpoints_are_a_run(tmp_path):
    names = ["org/model-seed3@step1000", "org/model-seed3@step500", "gpt2"]
    table = pd.DataFrame(noise(3).T, columns=names)
    table.insert(0, "bytes", BYTES)
    table.to_csv(tmp_path / "l.csv", index=False)
    (run,) = find_runs(read_log_likelihoods(tmp_path / "l.csv"))
    assert (run.name, run.attribute("seed"), run.steps.tolist()) == ("org/model-seed3", 3, [500, 1000])
    np.testing.assert_allclose(run.vectors.log_likelihood, table[[names[1], names[0]]].T)


@pytest.mark.parametrize("equal", [True, False])
def test_of_two_checkpoints_of_one_step_one_is_kept_or_none(equal):
    names = ["org/a@step1", "org/a@step2", "org/a@step-2", "org/a@step3"]
    L = noise(4)
    L[:, 5] = np.nan
    if equal:
        L[2] = L[1]
    (run,) = find_runs(made(names, L))
    assert run.names == (("org/a@step1", "org/a@step-2", "org/a@step3") if equal else ("org/a@step1", "org/a@step3"))
    assert run.notes[0].startswith("org/a@step-2 and org/a@step2 have the same step, 2: ")
    assert ("the first is used" if equal else "none is used") in run.notes[0]


@pytest.mark.parametrize(
    ("steps", "missing"),
    [
        ([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *range(1000, 9000, 1000)], ""),
        ([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000], ""),
        ([0, 1, 2, 4, 8], ""),
        ([1000, 2000, 3000, 5000, 6000], "4,000"),
        ([0, 1, 2, 4, 1000, 2000, 3000, 5000, 7000, 8000], "4,000, 6,000"),
        ([0, *range(1000, 5000, 1000), *range(11000, 15000, 1000)], "5,000, 6,000, 7,000, 8,000, 9,000, ..."),
        # Another spacing later on, and a last checkpoint at the end of the run.
        ([*range(20, 420, 20), *range(500, 900, 100), 907], ""),
    ],
)
def test_missing_checkpoints_are_told(steps, missing):
    run = run_of(noise(len(steps)), steps)
    assert run.steps.tolist() == steps
    assert [note.split(":")[0] for note in run.notes] == ([f"No checkpoint at step {missing}"] if missing else [])


def test_the_end_of_warmup_is_known_or_one_spacing_or_given():
    pythia = "EleutherAI/pythia-70m@step{}"
    vectors = made([pythia.format(step) for step in (0, 1000, 2000)], noise(3))
    (known,), (given,) = find_runs(vectors), find_runs(vectors, warmup=7)
    assert [(run.warmup, run.warmup_known) for run in (known, given)] == [(1430, True), (7, True)]
    unknown = run_of(noise(4), [500, 600, 700, 1000])
    assert (unknown.warmup, unknown.warmup_known) == (600, False)
    assert run_of(noise(2), [500, 600], known={"warmup": 550}).warmup == 550


def test_vectors_of_different_conventions_are_refused():
    run = run_of(walk())
    run.vectors.attributes.loc[run.names[3], "convention"] = "another"
    with pytest.raises(InputError, match="different conventions"):
        analyse_run(run)


# ----------------------------------------------------------------------------------------------------- stabilisation


@pytest.mark.parametrize(
    ("threshold", "step"),
    [(1e9, 1000), (26.0, 1000), (24.0, 2000), (10.0, 2000), (8.0, 4000), (1.5, 5000), (1e-9, 6000)],
)
def test_settled_from_is_where_no_later_checkpoint_is_farther(threshold, step):
    """Squared distances to the last: 25, 1, 9, 4, 1, 0; back and forth."""
    run = run_of(on_a_line([5.0, 1.0, 3.0, -2.0, 1.0, 0.0]), np.arange(1, 7) * 1000)
    settled = analyse_run(run, threshold=threshold).behaviour.stabilisation
    assert settled.step == plain_settled(run.steps, [25, 1, 9, 4, 1, 0], threshold) == step
    assert settled.interval == (step, step)  # all samples of the texts are near 1
    assert settled.total == pytest.approx(25)
    assert (settled.thresholds[0], settled.thresholds[-1]) == pytest.approx((1, 25))
    assert (settled.steps[-1], np.diff(settled.steps).max()) == (1000, 0)
    assert analyse_run(run).behaviour.stabilisation.step is None


@pytest.mark.slow
@pytest.mark.parametrize("per_document", [1, 4])
def test_the_interval_of_stabilisation_is_over_texts(per_document):
    """Along one direction whose texts, or documents, weigh differently: its variance v over samples of them is that of
    KL."""
    n = N_TEXTS // per_document
    weight = np.random.default_rng(1).exponential(size=n) * np.tile([-1.0, 1.0], n // 2)
    weight /= weight.std()
    positions = np.linspace(3, 0, 61)
    documents = np.repeat(np.arange(n), per_document)
    labels = tuple(map(str, documents))
    run = run_of(on_a_line(positions, weight[documents]), np.arange(61), warmup=0, document=labels)
    settled = analyse_run(run, threshold=1.0).behaviour.stabilisation
    generator = np.random.default_rng(5)
    v = [weight[generator.integers(n, size=n)].var() for _ in range(2000)]
    expected = [plain_settled(run.steps, positions**2 * np.quantile(v, q), 1.0) for q in (0.025, 0.975)]
    assert settled.interval == pytest.approx(expected, abs=1 if per_document == 1 else 2)
    assert settled.interval[0] < settled.step == 40 < settled.interval[1]
    assert (settled.low <= settled.steps).all()
    assert (settled.steps <= settled.high).all()


def test_weights_settle_within_the_same_fraction_of_their_way():
    positions = np.linspace(10, 0, 11)
    run = run_of(on_a_line(np.sqrt(positions)), np.arange(11), warmup=0)  # KL to the last: 10, 9, ..., 0
    D = squared(7 * positions[:, None])
    found = analyse_run(run, D, threshold=4.5)
    assert found.behaviour.stabilisation.step == 6
    assert found.weights.stabilisation.threshold == pytest.approx(0.45 * 4900)
    assert found.weights.stabilisation.step == plain_settled(run.steps, D[:, -1], 0.45 * 4900) == 4
    assert np.isnan(found.weights.stabilisation.low).all()


# ------------------------------------------------------------------------------------- noise, unknown weights, the clip


def test_the_noise_floor_is_taken_off_every_distance_when_asked():
    points = walk() / 3
    noisy = points + np.random.default_rng(7).normal(size=points.shape)
    run = run_of(noisy)
    again = noisy[-1] + np.random.default_rng(8).normal(scale=math.sqrt(2), size=N_TEXTS)
    floor = kl(noisy[-1], again, run.vectors.texts.bytes)
    left, taken = (analyse_run(run, noise_floor=floor, subtract_noise=flag, threshold=0.01) for flag in (False, True))
    D = plain_kl(noisy, BYTES)
    less = np.maximum(D - floor.value, 0)
    np.testing.assert_allclose(left.behaviour.squared_distance, D, atol=1e-12)
    np.testing.assert_allclose(taken.behaviour.squared_distance, less, atol=1e-12)
    assert taken.behaviour.exponent.value.value == pytest.approx(plain_exponent(STEPS, less, 2000), abs=1e-9)
    assert taken.behaviour.stabilisation.step == plain_settled(STEPS, less[:, -1], 0.01)
    assert (left.noise_subtracted, taken.noise_subtracted) == (False, True)
    assert left.noise_floor is taken.noise_floor is floor
    assert not analyse_run(run, subtract_noise=True).noise_subtracted
    # Without it, noise hides that the points diffuse.
    assert left.behaviour.exponent.value.value < 0.6
    assert taken.behaviour.exponent.value.value == pytest.approx(1, abs=0.25)


def test_the_noise_floor_is_taken_off_samples_of_the_texts_too():
    """For a floor of 3, within 1.2 of the last is within 4.2 of it; exponents lie about their estimate."""
    positions = np.linspace(3, 0, 31)
    run = run_of(on_a_line(positions), np.arange(31), warmup=0)
    floor = replace(run.vectors.kl()[0, 1], value=3.0)
    settled = analyse_run(run, noise_floor=floor, subtract_noise=True, threshold=1.2).behaviour.stabilisation
    assert settled.step == plain_settled(run.steps, positions**2, 4.2)
    assert settled.interval == (settled.step, settled.step)  # all samples of the texts are near 1
    points = relaxing()
    floor = replace(floor, value=0.6 * plain_kl(points, BYTES)[0, 1])
    exponent = analyse_run(run_of(points), noise_floor=floor, subtract_noise=True).behaviour.exponent
    assert exponent.resampled.mean() == pytest.approx(exponent.value.value, abs=exponent.value.standard_error)


def test_noise_above_every_distance_leaves_no_exponent():
    run = run_of(walk())
    floor = kl(*(1e3 * walk(2)), run.vectors.texts.bytes)
    found = analyse_run(run, noise_floor=floor, subtract_noise=True, threshold=0.01).behaviour
    assert found.exponent is found.shape is None
    assert found.stabilisation.step == STEPS[0]


def test_a_band_of_weight_distances_has_exponents_but_no_shape():
    """Each checkpoint compared with ten others and with the first: as where few files are there at a time."""
    steps = np.arange(1, 26) * 1000
    run, D = run_of(walk(25), steps), squared(walk(25, 500, seed=3))
    apart = np.abs(np.subtract.outer(np.arange(25), np.arange(25)))
    band = np.where(apart <= 10, D, np.nan)
    band[0] = band[:, 0] = D[0]
    band[-1, 0] = band[0, -1] = np.nan
    found = analyse_run(run, band, threshold=0.1)
    assert found.weights.exponent.value.value == pytest.approx(plain_exponent(steps, D, 2000), abs=1e-12)
    assert found.alpha.value == pytest.approx(
        plain_exponent(steps, found.behaviour.squared_distance, 2000) / found.weights.exponent.value.value
    )
    assert found.weights.stabilisation is found.weights.shape is None
    assert found.checkpoints[20].weights_from_previous == D[19, 20]
    assert math.isnan(found.checkpoints[5].weights_from_last)


@pytest.mark.parametrize("lost", [0, 6, 19])
def test_a_checkpoint_without_weights_is_passed_over(lost):
    steps = np.arange(1, 21) * 1000
    run, D = run_of(walk(20), steps), squared(walk(20, 500, seed=3))
    kept = np.delete(np.arange(20), lost)
    partly = D.copy()
    partly[lost] = partly[:, lost] = np.nan
    partly[lost, lost] = 0.0
    found = analyse_run(run, partly, threshold=0.1)
    rest = D[np.ix_(kept, kept)]
    assert found.weights.exponent.value.value == pytest.approx(plain_exponent(steps[kept], rest, 2000), abs=1e-12)
    assert found.weights.shape.steps.tolist() == [step for step in steps[kept] if step >= 2000]
    assert math.isnan(found.checkpoints[lost or 1].weights_from_previous)
    # The way from the first to the last is known only where both have weights.
    assert (found.weights.stabilisation is None) == (lost in (0, 19))
    if lost == 6:
        share = 0.1 / found.behaviour.squared_distance[0, -1]
        assert found.weights.stabilisation.step == plain_settled(steps[kept], rest[:, -1], share * D[0, -1])


def test_unknown_weights_are_none():
    run = run_of(walk())
    unknown = np.full((len(STEPS),) * 2, np.nan)
    for weights in (None, unknown, np.where(np.eye(len(STEPS)), 0.0, unknown)):
        found = analyse_run(run, weights)
        assert found.weights is found.alpha is found.probability is None
        assert math.isnan(found.checkpoints[1].weights_from_first)
        assert found.checkpoints[0].weights_from_previous is None


def test_weights_that_come_back_have_no_alpha():
    """Nearer to each start the later, a negative c_w: a ratio would have a negative standard error."""
    lag = np.abs(np.subtract.outer(STEPS, STEPS)).astype(float)
    D = np.where(lag > 0, 1 / np.maximum(lag, 1), 0.0)
    found = analyse_run(run_of(walk()), D)
    assert found.weights.exponent.value.value == pytest.approx(-1)
    assert found.alpha is None
    assert found.probability < 1e-6


def with_tails(share, steps, clip=-140.0):
    """Log-likelihoods of a random walk of which this share of the texts at each checkpoint lies far below the clip;
    at step 0 nearly all do."""
    L = walk(len(steps)) - 100
    generator = np.random.default_rng(4)
    for t in range(1, len(steps)):
        L[t, : round(share[t] * N_TEXTS)] = clip - 100 * generator.exponential(size=round(share[t] * N_TEXTS))
    L[0] -= 150
    return L


@pytest.mark.parametrize("heaviest", [0.04, 0.06])
def test_exponents_are_clipped_for_all_checkpoints_or_for_none(heaviest):
    """By what the checkpoints past warm-up are like: the first one, clipped nearly whole, decides nothing."""
    steps = np.arange(14) * 1000
    share = np.full(14, 0.02)
    share[7] = heaviest
    L = with_tails(share, steps)
    run = run_of(L + 100, steps, clip=-140.0)
    clipped, raw = (plain_exponent(steps, plain_kl(rows, BYTES), 1000) for rows in (np.maximum(L, -140), L))
    assert abs(clipped - raw) > 0.1
    found = analyse_run(run)
    assert found.behaviour.exponent.value.value == pytest.approx(clipped if heaviest < 0.05 else raw, abs=1e-9)
    first = found.checkpoints[3].kl_from_first
    assert (first.uses_clip, first.clipped) == (False, 1.0)
    assert first.value == pytest.approx(np.var(L[3] - L[0]) / SCALE)
    assert found.checkpoints[3].kl_from_last.uses_clip


def test_exponents_are_of_texts_that_all_checkpoints_have():
    steps = np.arange(14) * 1000
    L = walk(14) - 100
    L[0, :150] = np.nan
    L[5, 180:] = np.nan
    found = analyse_run(run_of(L + 100, steps))
    expected = plain_exponent(steps, plain_kl(L[:, :180], BYTES), 1000)
    assert found.behaviour.exponent.value.value == pytest.approx(expected, abs=1e-9)
    assert found.behaviour.exponent.value.n_texts == 180
    assert found.checkpoints[3].kl_from_first.n_texts == 50
    L[6, :180] = np.nan  # past warm-up, no text is left to all
    L[6, 180:] = -90.0
    found = analyse_run(run_of(L + 100, steps)).behaviour
    assert found.exponent is found.shape is None


def test_intervals_are_over_documents_where_texts_share_them():
    """Five texts a document that move alike: the standard error is that of a bootstrap of documents."""
    generator = np.random.default_rng(6)
    documents = np.repeat(np.arange(40), 5)
    points = walk(n=40, seed=2)[:, documents] + 0.05 * generator.normal(size=(len(STEPS), N_TEXTS))
    errors = {}
    for label in (None, tuple(map(str, documents))):
        run = run_of(points, document=label, warmup=4000)
        value = analyse_run(run).behaviour.exponent.value
        groups = np.arange(N_TEXTS) if label is None else documents
        errors[label] = value.standard_error
        spread = np.std(plain_bootstrap([points], 4000, groups), ddof=1)
        assert value.standard_error == pytest.approx(spread, rel=0.25)
        quantile = stats.norm.ppf(0.975) if label is None else stats.t.ppf(0.975, 39)
        assert value.interval[1] - value.value == pytest.approx(quantile * value.standard_error)
    alone, together = errors.values()
    assert together > 1.7 * alone


# --------------------------------------------------------------------------------------------------------- the shape


def shape_of(points, **options):
    """In weight space: the points are given, not a sample of the texts."""
    T = len(points)
    run = run_of(walk(T), np.arange(1, T + 1) * 500, warmup=0)
    return analyse_run(run, squared(points), n_parameters=points.shape[1], resamples=2, **options).weights.shape


def test_principal_components_reproduce_the_distances():
    points = walk(12)
    found = maps.principal_components(maps.gram_matrix(squared(points)), 12)
    np.testing.assert_allclose(squared(found.points), squared(points), atol=1e-8)
    assert found.share.sum() == pytest.approx(1)
    assert (np.diff(found.share) <= 0).all()
    assert (np.take_along_axis(found.points, np.abs(found.points).argmax(axis=0)[None], axis=0) >= 0).all()
    shape = shape_of(points)
    u, s, _ = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(shape.pca), np.abs(u * s)[:, :3], atol=1e-8)
    np.testing.assert_allclose(shape.share, (s**2 / (s**2).sum())[:5], atol=1e-12)
    assert shape.share.sum() < 1


def test_gram_matrices_are_made_in_stacks():
    stack = np.stack([walk(6, 20, seed) for seed in range(3)])
    centred = stack - stack.mean(axis=1, keepdims=True)
    expected = centred @ centred.transpose(0, 2, 1)
    found = maps.gram_matrix(np.stack([squared(points) for points in stack]))
    np.testing.assert_allclose(found, expected, atol=1e-10)
    many, one = maps.principal_components(found, 2), maps.principal_components(found[1], 2)
    np.testing.assert_allclose(many.points[1], one.points, atol=1e-10)
    np.testing.assert_allclose(many.share[1], one.share)


def test_pca_of_vectors_is_that_of_their_coordinates():
    vectors = made([f"m{n}" for n in range(5)], walk(5) - 100)
    assert squared(maps.pca(vectors, 5).points) == pytest.approx(plain_kl(vectors.log_likelihood, BYTES), abs=1e-12)


def test_a_straight_path_does_not_turn_and_a_random_walk_turns_by_90_degrees():
    lengths = np.array([3.0, 1.0, 2.0, 5.0, 1.0, 1.0, 4.0, 2.0])
    straight = shape_of(np.outer(np.cumsum([0.0, *lengths]), [0.6, 0.8]))
    np.testing.assert_allclose(straight.turning, 0, atol=1e-5)
    np.testing.assert_allclose(straight.speed, lengths / 500)
    assert straight.share[0] == pytest.approx(1)
    back = shape_of(np.outer(np.tile([0.0, 1.0], 5), [0.6, 0.8]))
    np.testing.assert_allclose(back.turning, 180, atol=1e-5)
    turning = shape_of(walk(20, 10_000)).turning
    assert turning.mean() == pytest.approx(90, abs=0.6)
    assert np.abs(turning - 90).max() < 3


@pytest.mark.parametrize("turns", [1, -3])
def test_winding_counts_turns(turns):
    angle = np.linspace(0, 2 * math.pi * turns, 49)
    found = shape_of(np.stack([np.cos(angle), np.sin(angle)], axis=1) @ np.random.default_rng(0).normal(size=(2, 9)))
    assert found.winding.value == pytest.approx(abs(turns), abs=1e-6)
    assert math.isnan(found.winding.standard_error)


def spiral(turns=3, T=40, n=1000):
    angle = np.linspace(0, 2 * math.pi * turns, T)
    plane = np.linalg.qr(np.random.default_rng(0).normal(size=(n, 2)))[0]
    points = 30 * np.stack([np.cos(angle), np.sin(angle)], axis=1) @ plane.T
    return points + 0.1 * np.random.default_rng(1).normal(size=(T, n))


def test_a_spiral_is_told_from_its_nulls():
    """In both spaces; of behaviour, by the lower end of the interval over texts."""
    run = run_of(spiral(), np.arange(40) * 100, warmup=0)
    found = analyse_run(run, squared(spiral()), n_parameters=1000)
    for motion in (found.behaviour, found.weights):
        assert motion.shape.winding.value == pytest.approx(3, abs=0.1)
        assert motion.shape.spiral
    winding = found.behaviour.shape.winding
    assert 0 < winding.standard_error < 0.1


@pytest.mark.slow
def test_random_walks_are_no_spirals():
    """At most few of 40, half of them in either space, though on principal components all wind by two thirds of a
    turn."""
    spirals = 0
    for seed in range(20):
        run = run_of(walk(40, 300, seed), np.arange(40) * 100, warmup=0)
        found = analyse_run(run, squared(walk(40, 1000, 100 + seed)), n_parameters=1000, resamples=20)
        for motion in (found.behaviour, found.weights):
            assert motion.shape.winding.value == pytest.approx(0.65, abs=0.06)
            spirals += motion.shape.spiral
    assert stats.binomtest(spirals, 40, 0.025, alternative="greater").pvalue > 0.05


def test_a_long_random_walk_has_the_shares_of_lissajous_curves():
    points = walk(300, 3000)
    share = maps.principal_components(maps.gram_matrix(squared(points)), 5).share
    np.testing.assert_allclose(share, [6 / (math.pi**2 * k**2) for k in range(1, 6)], rtol=0.06)


def test_shares_of_a_random_walk_are_told_beside_the_shape():
    assert shape_of(walk(10)).walk_share == pytest.approx([6 / (math.pi**2 * k**2) for k in range(1, 6)])


@pytest.mark.slow
@pytest.mark.parametrize("n", [2000, 12])
def test_nulls_agree_with_walks_that_are_simulated(n):
    """Means over draws within a few standard errors; n below and above the number of steps."""
    generator = np.random.default_rng(3)
    length = generator.uniform(0.5, 3, size=29)[:, None]
    points = np.vstack([np.zeros(n), (length * unit(generator.normal(size=(29, n)))).cumsum(axis=0)])
    nulls = shape_of(points).nulls
    moves = np.diff(points, axis=0)

    def isotropic():
        return length * unit(generator.normal(size=(29, n)))

    def shuffled():
        return generator.permutation(moves) * generator.choice([-1.0, 1.0], size=(29, 1))

    for name, draw in (("random walk", isotropic), ("shuffled steps", shuffled)):
        drawn = simulated(draw)
        shares, winding = np.array([share for share, _ in drawn]), np.array([turns for _, turns in drawn])
        error = shares.std(axis=0) * math.sqrt(1 / 150 + 1 / trajectories.RESAMPLES)
        assert (np.abs(nulls[name].share - shares.mean(axis=0)) < 4 * error).all()
        ends = np.quantile(winding, [0.025, 0.975])
        spread = 1.25 * winding.std() * math.sqrt(1 / 150 + 1 / trajectories.RESAMPLES)
        assert abs(nulls[name].winding - np.median(winding)) < 4 * spread
        assert nulls[name].winding_range == pytest.approx(ends, abs=4 * winding.std() / math.sqrt(20))
        assert nulls[name].path.shape == (30, 2)


def test_the_walk_beside_behaviour_has_as_many_dimensions_as_texts_give():
    """8 texts, centred: 7 dimensions."""
    shape = analyse_run(run_of(walk(30, 8), np.arange(30), warmup=0)).behaviour.shape
    length = shape.speed[:, None]
    generator = np.random.default_rng(3)
    share = [share[0] for share, _ in simulated(lambda: length * unit(generator.normal(size=(29, 7))))]
    error = np.std(share) * math.sqrt(1 / 150 + 1 / trajectories.RESAMPLES)
    assert abs(shape.nulls["random walk"].share[0] - np.mean(share)) < 4 * error


def simulated(draw):
    """Shares and turns of 150 paths with displacements from `draw()` (T - 1, n)."""
    moves = [draw() for _ in range(150)]
    return [plain_path(np.vstack([np.zeros(move.shape[1]), move.cumsum(axis=0)])) for move in moves]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_nulls_keep_the_step_lengths():
    """And shuffled steps of a straight path stay on its line."""
    points = walk(10)
    moves = trajectories._displacements(squared(points))
    steps = np.diff(points, axis=0)
    np.testing.assert_allclose(moves, steps @ steps.T, atol=1e-9)
    generator = np.random.default_rng(0)
    lengths = np.sqrt(np.diagonal(moves))
    walks = trajectories._random_walk(lengths, 50, generator)
    np.testing.assert_allclose(np.sqrt(np.diagonal(walks, axis1=1, axis2=2)), np.tile(lengths, (len(walks), 1)))
    shuffled = trajectories._shuffled(moves, generator)
    for drawn in shuffled:
        np.testing.assert_array_equal(np.sort(np.diagonal(drawn)), np.sort(np.diagonal(moves)))
        np.testing.assert_allclose(np.linalg.eigvalsh(drawn), np.linalg.eigvalsh(moves), atol=1e-8)
    assert len({tuple(np.diagonal(drawn)) for drawn in shuffled}) > 190


def test_shuffled_steps_of_a_straight_path_stay_on_its_line():
    nulls = shape_of(np.outer(np.arange(9.0), [3.0, 4.0])).nulls
    assert nulls["shuffled steps"].share[0] == pytest.approx(1)
    assert nulls["random walk"].share[0] < 0.95


# -------------------------------------------------------------------------------------------------------------- t-SNE


@pytest.mark.parametrize("n", [2, 3])
def test_the_same_distances_give_the_same_map(n):
    D = squared(walk(40, 500))
    first, again = maps.tsne(D, n), maps.tsne(D.copy(), n)
    assert first.shape == (40, n)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("K", [3, 4, 8])
def test_few_points_have_a_map(K):
    found = maps.tsne(squared(walk(K)))
    assert found.shape == (K, 2)
    assert np.isfinite(found).all()
    assert len(np.unique(found, axis=0)) == K


def test_too_few_points_have_no_map():
    with pytest.raises(InputError, match="3 models are too few for t-SNE in 3 dimensions"):
        maps.tsne(squared(walk(3)), 3)
    with pytest.raises(InputError, match="Use 3 or more"):
        maps.tsne(np.zeros((1, 1)))


def test_a_map_keeps_clusters_apart():
    """Two far groups of 20: every point's nearest neighbour on the map is of its own group."""
    points = np.random.default_rng(0).normal(size=(40, 50))
    points[20:] += 10
    D = squared(maps.tsne(squared(points)))
    np.fill_diagonal(D, np.inf)
    assert ((D.argmin(axis=1) >= 20) == (np.arange(40) >= 20)).all()


# ------------------------------------------------------------------------------------------------------ several seeds


def seeds_of(behave, drift, name="org/toy-1m-seed{}", n=3, **options):
    """Trajectories of n seeds: log-likelihoods and weights from these simulators."""
    found = []
    for seed in range(1, n + 1):
        run = run_of(behave(seed=seed), name=name.format(seed), warmup=4000, **options)
        found.append(analyse_run(run, squared(drift(n=300, seed=10 * seed))))
    return found


@pytest.fixture(scope="module")
def three_seeds():
    """Behaviour that relaxes, weights that diffuse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "tsne", lambda distance, n=2: np.zeros((len(distance), n)))
        return seeds_of(relaxing, walk)


def test_seeds_together_are_a_mean_with_students_interval(three_seeds):
    (found,) = over_seeds(three_seeds)
    assert found.runs == ("org/toy-1m-seed1", "org/toy-1m-seed2", "org/toy-1m-seed3")
    c_q, c_w = (
        [plain_exponent(STEPS, getattr(one, space).squared_distance, 4000) for one in three_seeds]
        for space in ("behaviour", "weights")
    )
    for estimate, values in ((found.c_w, c_w), (found.c_q_over_seeds, c_q)):
        assert estimate.value == pytest.approx(np.mean(values))
        assert estimate.standard_error == pytest.approx(stats.sem(values))
        assert estimate.interval == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95)))
    alpha = np.mean(c_q) / np.mean(c_w)
    cov = np.cov(c_q, c_w)
    error = math.sqrt((cov[0, 0] - 2 * alpha * cov[0, 1] + alpha**2 * cov[1, 1]) / 3) / np.mean(c_w)
    assert found.alpha.value == pytest.approx(alpha)
    assert found.alpha.standard_error == pytest.approx(error)
    assert found.alpha.interval[1] - alpha == pytest.approx(stats.t.ppf(0.975, 2) * error)
    both = math.hypot(stats.sem(np.subtract(c_w, c_q)), found.c_q.standard_error)
    assert 1 - found.probability == pytest.approx(stats.t.sf((np.mean(c_w) - np.mean(c_q)) / both, 2))
    assert found.probability > 0.99


def test_the_error_of_c_q_is_that_of_the_mean_over_seeds_on_the_same_texts(three_seeds):
    (found,) = over_seeds(three_seeds)
    rows = [one.run.vectors.log_likelihood for one in three_seeds]
    spread = np.std(plain_bootstrap(rows, 4000, np.arange(N_TEXTS)).mean(axis=1), ddof=1)
    assert found.c_q.value == pytest.approx(found.c_q_over_seeds.value)
    assert found.c_q.standard_error == pytest.approx(spread, rel=0.25)
    assert found.c_q.interval[1] - found.c_q.value == pytest.approx(stats.norm.ppf(0.975) * found.c_q.standard_error)


def with_exponent(motion, c):
    exponent = replace(motion.exponent, value=replace(motion.exponent.value, value=c))
    return replace(motion, exponent=exponent)


def test_seeds_that_disagree_about_c_q_leave_its_place_open(three_seeds):
    """However small the error over texts, and that of c_w: one test over seeds is the limit."""
    c_q, c_w = (0.2, 0.9, 1.6), 1.1
    found = [
        replace(one, behaviour=with_exponent(one.behaviour, c), weights=with_exponent(one.weights, c_w))
        for one, c in zip(three_seeds, c_q, strict=True)
    ]
    (group,) = over_seeds(found)
    assert group.c_w.standard_error == pytest.approx(0)
    assert 0.5 < group.probability < 1 - stats.ttest_1samp(c_q, c_w, alternative="less").pvalue


def test_probability_is_near_0_where_weights_grow_slower():
    one, *_ = found = seeds_of(walk, relaxing)
    assert one.probability < 1e-3
    assert over_seeds(found)[0].probability < 0.01


def test_only_runs_that_differ_in_their_seed_alone_are_grouped(three_seeds):
    """Not one run; not two of one seed; not other families, other ends; not runs of which the family is unknown."""
    a, b, c = three_seeds
    assert over_seeds([]) == over_seeds([a]) == over_seeds([a, a]) == []
    assert [group.runs for group in over_seeds([a, b, a])] == [(a.run.name, b.run.name)]
    (other,) = seeds_of(relaxing, walk, name="org/other-1m-seed9", n=1)
    assert over_seeds([a, other]) == []
    shorter = analyse_run(run_of(relaxing(seed=2), STEPS - 500, name="org/toy-1m-seed2"), squared(walk()))
    assert over_seeds([a, shorter]) == []
    without = analyse_run(b.run)
    assert [group.runs for group in over_seeds([a, without, c])] == [(a.run.name, c.run.name)]
    assert over_seeds(seeds_of(relaxing, walk, name="org/nameless{0}-seed{0}", n=2)) == []


def test_seeds_of_one_name_are_grouped():
    points = np.concatenate([relaxing(seed=seed) for seed in (1, 2)])
    vectors = made([f"org/toy@step{n}" for n in range(len(points))], points - 100)
    vectors.attributes["step"], vectors.attributes["seed"] = [*STEPS, *STEPS], np.repeat([0, 1], len(STEPS))
    found = [analyse_run(run, squared(walk(seed=seed))) for seed, run in enumerate(find_runs(vectors))]
    assert [group.runs for group in over_seeds(found)] == [("org/toy (seed 0)", "org/toy (seed 1)")]


# ------------------------------------------------------------------------------------------ few checkpoints, and print


def shown(found, seeds=(), source="a test"):
    with whole_tables() as captured:
        print_trajectories(found, seeds, (), found[0].run.vectors.texts, source, whole=True)
    return captured.get()


def record_of(found, seeds, capsys):
    print_json(trajectories_record(found, seeds, (), found[0].run.vectors.texts, "a test"))
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("T", [2, 3, 8, 9, 11, 12])
def test_short_runs_have_what_they_can(T, capsys, tmp_path):
    """One checkpoint of them before the end of warm-up."""
    run = run_of(walk(T), STEPS[:T])
    found = analyse_run(run, squared(walk(T, 50)), threshold=0.5)
    for motion in (found.behaviour, found.weights):
        assert (motion.exponent is not None) == (T >= 7)
        assert (motion.shape is not None) == (T >= 9)
        assert motion.stabilisation.step is not None
    assert (found.alpha is not None) == (found.probability is not None) == (T >= 7)
    assert ("No exponent: a fit needs 6 checkpoints past warm-up" in shown([found])) == (T < 7)
    (record,) = record_of([found], [], capsys)["runs"]
    assert record["steps"] == STEPS[:T].tolist()
    if T in (2, 12):
        save_trajectories([found], tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_stands_still_has_neither_exponent_nor_shape(capsys):
    found = analyse_run(run_of(np.zeros((14, N_TEXTS))), np.zeros((14, 14)), threshold=0.5)
    assert found.behaviour.exponent is found.behaviour.shape is None
    assert found.behaviour.stabilisation.step == STEPS[0]
    assert found.weights.stabilisation is None
    assert "No exponent" in shown([found])
    record_of([found], [], capsys)


def test_the_table_says_what_was_found(three_seeds):
    one = replace(three_seeds[0], run=replace(three_seeds[0].run, notes=("A note.",)))
    settled = replace(one.behaviour.stabilisation, threshold=0.5, step=7000, interval=(6000.0, 8000.0))
    one = replace(one, behaviour=replace(one.behaviour, stabilisation=settled))
    text = shown([one, *three_seeds[1:]], over_seeds(three_seeds))
    c_q, (group,) = one.behaviour.exponent.value, over_seeds(three_seeds)
    for part in (
        "org/toy-1m-seed1: 14 checkpoints, steps 1,000 to 14,000; warm-up until step 4,000",
        f"{c_q.interval[0]:.3g} to {c_q.interval[1]:.3g}",
        "(1)",
        "1,000 to 10,000",
        number(one.alpha),
        f"c_w {group.c_w.interval[0]:.3g} to {group.c_w.interval[1]:.3g}",
        "these 3 seeds",
        "6,000 to 8,000",
        "0.5 bits/byte (a test)",
        "Shape of the path past warm-up, with two nulls",
        "61%, 15%, 7%",
        "org/toy-1m-seed1: A note.",
    ):
        assert part in text


def test_each_run_is_shown_with_its_own_lags():
    runs = [run_of(walk(), STEPS * factor, name=f"org/every{factor}") for factor in (1, 3)]
    rows = [line for line in shown(list(map(analyse_run, runs))).splitlines() if "log-likelihood" in line]
    assert "1,000 to 10,000" in next(row for row in rows if "org/every1 " in row)
    assert "3,000 to 30,000" in next(row for row in rows if "org/every3 " in row)


def test_a_threshold_that_the_first_checkpoint_meets_does_not_date_the_end():
    run = run_of(walk())
    assert "1,000 (its first)" in shown([analyse_run(run, threshold=10 * run.vectors.kl().value.max())])


@pytest.mark.parametrize("heavy", [False, True])
def test_exponents_from_heavy_tails_are_marked(heavy):
    """Few texts on which the models move much more than on the others."""
    points = walk() * np.where(np.arange(N_TEXTS) % 20 == 0, 20.0 if heavy else 1.0, 1.0)
    found = analyse_run(run_of(points))
    exponent, past = found.behaviour.exponent, points[1:]
    kurtosis = np.median([stats.kurtosis(a - b, fisher=False) for n, a in enumerate(past) for b in past[:n]])
    assert exponent.kurtosis == pytest.approx(kurtosis)
    assert exponent.heavy_tails == heavy
    with out.capture() as captured:
        print_motion([found], (), (), "")
    assert (cautions.BY_KEY["heavy_tails"].footnote in captured.get()) == heavy
    assert (f"{number(exponent.value)} !" in captured.get()) == heavy


def test_no_best_law_where_none_could_be_judged():
    """Each start has a lag at which the squared distance is below the noise."""
    D = np.abs(np.subtract.outer(STEPS, STEPS)).astype(float)
    D[np.abs(D) == 3000] = 0.0
    found = analyse_run(run_of(walk()), D)
    assert all(math.isnan(error.value) for error in found.weights.exponent.law_errors.values())
    (row,) = [line for line in shown([found]).splitlines() if "weights" in line and "n/a" in line]
    assert row.split() == ["org/toy", "weights", "n/a", "n/a", "n/a"]


def test_best_laws_are_counted_over_samples_that_judged_them(three_seeds):
    """A floor that the shortest lag of the only start is below in half of them: these say nothing."""
    run = three_seeds[0].run
    assert three_seeds[0].weights.exponent.best_law == {}
    assert sum(three_seeds[0].behaviour.exponent.best_law.values()) == pytest.approx(1)
    floor = replace(run.vectors.kl()[3, 4], value=0.999 * run.vectors.kl().value[3, 4])
    exponent = analyse_run(run, noise_floor=floor, subtract_noise=True).behaviour.exponent
    assert sum(exponent.best_law.values()) == pytest.approx(1)
    assert exponent.best_law["power"] < 0.1  # so far below the others is the first lag in those that remain


def test_records_are_json(three_seeds, capsys):
    found, seeds = three_seeds, over_seeds(three_seeds)
    record = record_of(found, seeds, capsys)
    one = record["runs"][0]
    assert one["log_likelihood"]["exponent"]["c"]["value"] == found[0].behaviour.exponent.value.value
    assert one["log_likelihood"]["squared_distance"] == found[0].behaviour.squared_distance.tolist()
    assert one["weights"]["exponent"]["c"]["standard_error"] is None
    assert "resampled" not in one["log_likelihood"]["exponent"]
    assert one["checkpoints"][0]["kl_from_first"] is None
    assert one["checkpoints"][3]["kl_from_first"]["kl"] == found[0].checkpoints[3].kl_from_first.value
    assert one["log_likelihood"]["shape"]["spiral"] is False
    assert record["over_seeds"][0]["alpha"]["value"] == seeds[0].alpha.value
    assert (record["threshold_source"], record["n_texts"], record["unit"]) == ("a test", N_TEXTS, "bits/byte")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_hold_a_row_a_checkpoint(three_seeds, ending, tmp_path):
    found = [three_seeds[0], analyse_run(three_seeds[1].run)]
    save_trajectories(found, tmp_path / f"table.{ending}")
    read = pd.read_csv if ending == "csv" else pd.read_parquet
    table = read(tmp_path / f"table.{ending}")
    assert table["run"].tolist() == ["org/toy-1m-seed1"] * 14 + ["org/toy-1m-seed2"] * 14
    assert table["step"].tolist() == [*STEPS, *STEPS]
    row = three_seeds[0].checkpoints[5]
    assert table["kl_from_previous"][5] == pytest.approx(row.kl_from_previous.value)
    assert table["kl_from_last_standard_error"][5] == pytest.approx(row.kl_from_last.standard_error)
    assert table["weights_from_first"][5] == pytest.approx(row.weights_from_first)
    assert table["bits_per_byte"][5] == pytest.approx(row.bits_per_byte.value)
    assert table["kl_from_first"].isna().tolist() == [step == 1000 for step in table["step"]]
    assert table["weights_from_last"].isna().sum() == 1 + 14


@pytest.mark.slow
def test_slopes_in_the_picture_are_those_of_its_lines_and_apart(three_seeds):
    """The lines are of the averages over starts, whose slopes are not c."""
    figure = training_trajectories(three_seeds)
    FigureCanvasAgg(figure).draw()
    behaviour = [format_estimate(slope.value, slope.standard_error) for slope in averaged(three_seeds, "behaviour")]
    weights = [f"{slope.value:.2f}" for slope in averaged(three_seeds, "weights")]
    for title, expected in (("Log-likelihoods", behaviour), ("Weights", weights)):
        axes = next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))
        names = [text for text in axes.texts if text.get_text().startswith("slope")]
        assert sorted(text.get_text() for text in names) == sorted(f"slope {slope}" for slope in expected)
        boxes = [text.get_window_extent() for text in names]
        assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
        lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
        points = np.concatenate([line.get_xydata() for line in lines])
        assert axes.transData.transform(points)[:, 1].min() > max(box.y1 for box in boxes), "below all lines"


def averaged(found, space):
    return [getattr(one, space).exponent.time_averaged for one in found]


def test_a_file_of_another_kind_is_refused(three_seeds, tmp_path):
    with pytest.raises(InputError):
        save_trajectories(three_seeds, tmp_path / "a.doc")


def test_long_runs_are_shown_in_part():
    """Weights that were not compared are told of."""
    steps = np.arange(60) * 10
    text = shown([analyse_run(run_of(walk(60, 50), steps))])
    assert "40 of 60 checkpoints are shown" in text
    assert "taken as one checkpoint spacing" in text
    assert "Weights were not compared" in text


@pytest.mark.parametrize("T", [6, 8, 10])
def test_a_run_of_few_checkpoints_is_fitted_over_all_later_ones(T):
    """The exponent is that of a plain line through the logarithms of all later distances from the first checkpoint."""
    steps = np.array([1, 2, 4, 7, 12, 20, 35, 60, 100, 170])[:T] * 1000
    run = run_of(walk(T), steps=steps, warmup=1000)
    found = analyse_run(run, resamples=20).behaviour.exponent
    D = run.vectors.kl().value[0, 1:]
    slope = np.polyfit(np.log(steps[1:] - steps[0]), np.log(D), 1)[0]
    assert found.window == T - 1
    assert found.value.value == pytest.approx(slope, rel=1e-9)
    assert found.starts.tolist() == [1000]
    assert found.lags == (steps[1] - steps[0], steps[-1] - steps[0])


def test_lags_are_as_many_as_asked_for():
    run = run_of(walk())
    D = run.vectors.kl().value
    slopes = [np.polyfit(np.log(np.arange(1, 6)), np.log(D[t, t + 1 : t + 6]), 1)[0] for t in range(len(STEPS) - 5)]
    found = analyse_run(run, lags=5, resamples=20).behaviour.exponent
    past = [slope for slope, step in zip(slopes, STEPS, strict=False) if step >= run.warmup]
    assert found.value.value == pytest.approx(np.mean(past), rel=1e-9)
    assert found.window == 5
    assert analyse_run(run, resamples=20).behaviour.exponent.window == 10
    with pytest.raises(InputError, match="--lags 4 is too few"):
        analyse_run(run, lags=4)
