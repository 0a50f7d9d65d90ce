"""Texts drawn from a population that is known, and what klscale prints of them: intervals beside the true values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.science import diffusion
from klscale.science.bootstrap import RESAMPLES, estimate_from_resamples, resampled_kl
from klscale.science.estimates import Estimate
from klscale.science.kl import (
    bits_per_byte,
    coordinates,
    kl,
    kl_difference,
    kl_matrix,
    nats2_per_bit_per_byte,
    shift_cosine,
)
from klscale.studies import directional, maps, scales, trajectories
from klscale.vectors.vectors import CONVENTION, Vectors

TAILS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "Gaussian": lambda generator, n: np.ones(n),
    "Laplace": lambda generator, n: generator.exponential(size=n),
    "variance-gamma, kurtosis 10": lambda generator, n: generator.gamma(3 / 7, 7 / 3, size=n),
}
"""How much the models differ on a text: the variance of the differences there, 1 in the mean."""
PER_DOCUMENT, SHARED = 5, 0.3
"""Texts of a document, which have their variance, and this part of their differences, in common."""
BYTES = 300
UNIT = nats2_per_bit_per_byte(BYTES)
"""nats² of variance in 1 bit/byte."""

Found = Iterator[tuple[str, tuple[float, float], float]]
"""What is printed, its 95 % interval, and the true value."""


@dataclass(frozen=True)
class Sample:
    """N texts; `documents` where they share some."""

    generator: np.random.Generator
    n: int
    tails: str = "Gaussian"
    shared: bool = False

    @property
    def documents(self) -> list[str] | None:
        return [str(s // PER_DOCUMENT) for s in range(self.n)] if self.shared else None

    @property
    def bytes(self) -> np.ndarray:
        return np.full(self.n, BYTES)

    def noise(self, k: int) -> np.ndarray:
        """k rows (k, N) of variance 1, uncorrelated; every combination of them has the kurtosis of the tails."""
        g, drawn = self.generator, self.generator.normal(size=(k, self.n))
        if not self.shared:
            return np.sqrt(TAILS[self.tails](g, self.n)) * drawn
        of = np.arange(self.n) // PER_DOCUMENT
        common = g.normal(size=(k, self.n))[:, of]
        return np.sqrt(TAILS[self.tails](g, self.n))[of] * (SHARED**0.5 * common + (1 - SHARED) ** 0.5 * drawn)

    def vectors(self, rows: dict[str, dict[str, Any]], L: np.ndarray, clip: float | None = None) -> Vectors:
        known = {name: {"dtype": "float32", "convention": CONVENTION, **row} for name, row in rows.items()}
        documents = None if self.documents is None else tuple(self.documents)
        texts = TextSet("simulated", self.bytes, id="simulated", clip=clip, document=documents)
        return Vectors.from_arrays(L - 1000, [*rows], texts, known)


def bars(estimate: Any) -> tuple[float, float]:
    """What a reader makes of value ± standard error, where no interval is shown."""
    return estimate.value - 1.96 * estimate.standard_error, estimate.value + 1.96 * estimate.standard_error


def of_a_pair(sample: Sample) -> Found:
    base, d = sample.noise(2) * [[40.0], [8.0]]
    found = kl(base, base + d, sample.bytes, clip=CLIP, documents=sample.documents)
    if found.uses_clip:
        yield "KL, clipped", found.interval, _clipped(sample.tails)
    unclipped = SimpleNamespace(value=found.value_unclipped, standard_error=found.standard_error_unclipped)
    yield "KL beside it, value ± SE", bars(unclipped), 64 / UNIT
    found = kl(base, base + d, sample.bytes, documents=sample.documents)
    yield "KL", found.interval, 64 / UNIT


CLIP = -80.0


@cache
def _clipped(tails: str, n: int = 2_000_000) -> float:
    """The true value of what `of_a_pair` clips, from so many texts that its error is 0.2 %."""
    base, d = Sample(np.random.default_rng(1), n, tails).noise(2) * [[40.0], [8.0]]
    return float((np.maximum(base, CLIP) - np.maximum(base + d, CLIP)).var()) / UNIT


def of_differences(sample: Sample) -> Found:
    """The second pair is farther apart by a fifth, or as far, and half of what sets the two apart is common."""
    base, x, y = sample.noise(3)
    for further in (1.0, 1.1):
        other = further * (0.8 * x + 0.6 * y)
        pairs = (base, base + other), (base, base + x)
        found = kl_difference(*pairs, sample.bytes, documents=sample.documents)
        yield f"KL difference, {'equal' if further == 1 else '21 % more'}", found.interval, (further**2 - 1) / UNIT


def of_shifts(sample: Sample) -> Found:
    base, x, y = sample.noise(3)
    for cosine in (0.0, 0.5, 0.95, 0.999, -0.95):
        second = cosine * x + math.sqrt(1 - cosine**2) * y
        found = shift_cosine(base, base + x, base + second, documents=sample.documents)
        yield f"cosine of shifts, {cosine:g}", found.interval, cosine


def of_bits_per_byte(sample: Sample) -> Found:
    """Texts of 60 to 1,024 bytes at 0.9 bits a byte, long ones with more noise; and a model that needs 0.01 more."""
    size = sample.generator.integers(60, 1025, size=sample.n)
    noise, other = sample.noise(2) * np.sqrt(size)
    L = -math.log(2) * 0.9 * size + 3 * noise
    M = L - math.log(2) * 0.01 * size + 0.4 * other
    yield "bits/byte", bits_per_byte(L, size, documents=sample.documents).interval, 0.9
    yield "bits/byte, difference", bits_per_byte(M - L, size, documents=sample.documents).interval, 0.01


def of_settings(sample: Sample) -> Found:
    """The median KL of 10 pairs of five seeds, of spreads that differ, and of equal ones."""
    base, *own = sample.noise(6)
    for name, spread in (("spread out", [4.0, 5.0, 6.5, 8.0, 10.0]), ("equal", [6.0] * 5)):
        rows = {f"p/{n}": {"family": "p", "seed": n} for n in range(5)}
        L = 40 * base + np.array(spread)[:, None] * np.stack(own)
        seeds = next(row for row in scales.measure(sample.vectors(rows, L)) if row.setting == "seed")
        value = SimpleNamespace(value=seeds.median, standard_error=seeds.standard_error)
        yield (
            f"median of a setting, {name}: value ± SE",
            bars(value),
            float(np.median([a**2 + b**2 for a, b in combinations(spread, 2)]) / UNIT),
        )


# ------------------------------------------------------------------------------------------------------------- runs


STEPS = np.arange(1, 15) * 1000


@cache
def _walk(exponent: float, T: int = len(STEPS)) -> np.ndarray:
    """Cholesky factor (T, T) of fractional Brownian motion at 1, ..., T."""
    t = np.arange(1.0, T + 1)
    covariance = (t[:, None] ** exponent + t**exponent - np.abs(t[:, None] - t) ** exponent) / 2
    return np.linalg.cholesky(covariance)


def of_exponents(sample: Sample, exponent: float = 0.4) -> Found:
    """Fractional Brownian motion, a text each coordinate."""
    L = 3 * _walk(exponent) @ sample.noise(len(STEPS))
    kl = kl_matrix(L, sample.bytes).value
    resampled = resampled_kl(L, sample.bytes, documents=sample.documents)

    def estimate(value: Any, again: Any) -> Estimate:
        return estimate_from_resamples(float(value), again, sample.n, documents=sample.documents, unit="")

    found, again = (diffusion.fits(STEPS, D, after=1000).exponent for D in (kl, resampled))
    yield "exponent c_q", estimate(found, again).interval, exponent
    dimension = estimate(diffusion.fractal_dimension(found), diffusion.fractal_dimension(again))
    yield "dimension 2 / c_q, value ± SE", bars(dimension), 2 / exponent
    averaged = (diffusion.time_averaged(STEPS, D, after=1000).exponent for D in (kl, resampled))
    yield "exponent, time-averaged", estimate(*averaged).interval, exponent


def of_logged(sample: Sample, exponent: float = 0.4) -> Found:
    """What a training callback logs: values with standard errors."""
    from klscale.training.callbacks import TrainingWatch

    rows = 3 * _walk(exponent, diffusion.WINDOW) @ sample.noise(diffusion.WINDOW)
    recent = [(0, np.zeros(sample.n)), *((1000 * (t + 1), row) for t, row in enumerate(rows))]
    texts = SimpleNamespace(clip=None)
    of = SimpleNamespace(bytes=sample.bytes, documents=sample.documents, texts=texts, row=lambda measured: measured)
    watch = SimpleNamespace(_recent=recent)
    yield "logged exponent, value ± SE", bars(TrainingWatch._exponent(watch, of)), exponent  # type: ignore[arg-type]


def of_stabilisation(sample: Sample) -> Found:
    """A run that slows down; thresholds anywhere between its squared distances to the last checkpoint."""
    T = 16
    speed = 6 * 0.8 ** np.arange(T - 1)
    L = np.vstack([np.zeros(sample.n), (speed[:, None] * sample.noise(T - 1)).cumsum(axis=0)])
    exact = np.append((speed**2)[::-1].cumsum()[::-1], 0) / UNIT
    steps = np.arange(T) * 1000
    rows = {f"r@step{step}": {"step": int(step)} for step in steps}
    vectors = sample.vectors(rows, L)
    run = trajectories.Run("r", vectors, steps, 0, True)
    threshold = float(np.exp(sample.generator.uniform(*np.log(exact[[T - 2, 1]]))))
    settled = trajectories._behaviour(
        run, np.empty(0, np.int64), threshold, 0.0, diffusion.WINDOW, RESAMPLES
    ).stabilisation
    assert settled is not None
    assert settled.interval is not None
    truth = float(trajectories.settled_from(steps, exact, np.array([threshold]))[0])
    yield "step of stabilisation", settled.interval, truth


def of_winding(sample: Sample) -> Found:
    """A path that turns once and a half about its mean in two directions, with a random walk in others."""
    T = 24
    angle = np.linspace(0, 3 * math.pi, T)
    turning = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.linspace(12, 5, T)[:, None]
    walk = np.tri(T, T, -1)[:, : T - 1]
    directions = np.hstack([turning, walk])
    L = directions @ sample.noise(directions.shape[1])
    exact = ((directions[:, None] - directions[None]) ** 2).sum(axis=2)
    kl = kl_matrix(L, sample.bytes).value
    resampled = resampled_kl(L, sample.bytes, documents=sample.documents)
    found, again, truth = (
        trajectories._winding(maps.principal_components(maps.gram_matrix(D), 2).points) for D in (kl, resampled, exact)
    )
    estimate = estimate_from_resamples(float(found), again, sample.n, documents=sample.documents, unit="")
    yield "winding", estimate.interval, float(truth)


def of_directions(sample: Sample) -> Found:
    """A map with some curvature along the direction: KL(eps) = eps² Var(g + eps h)."""
    eps = np.array(directional.SCALES)
    g, h, tiny = sample.noise(3)
    moved = eps[:, None] * (6 * g + 6 * eps[:, None] * h)
    readings = np.vstack([np.zeros((1, sample.n)), 1e-4 * tiny, moved]) - 300
    texts = sample.vectors({"m": {}}, readings[:1]).texts
    found = directional._measured(ModelRef("m"), None, texts, eps, readings, np.zeros(len(eps)))
    exact = np.log(eps**2 * (1 + eps**2)) / 2
    truth = diffusion.line(np.log(eps), exact)[0]
    yield "directional exponent", found.exponent.interval, float(truth)
    yield "directional slope, last", found.local_slopes[-1].interval, float((np.diff(exact) / np.diff(np.log(eps)))[-1])


def of_placing(sample: Sample, K: int = 10) -> Found:
    """A model that is a mixture of K others, and something of its own that they do not explain."""
    noise = sample.noise(K + 2)
    L = 6 * noise[: K + 1]
    L[K] = L[:K].mean(axis=0) + 8 * noise[K + 1]
    points = coordinates(L + 40 * noise[K], BYTES)
    points -= points[:K].mean(axis=0)
    (found,) = maps.unexplained(points[:K], points[K:], sample.documents)
    yield f"off the map of {K} models", found.interval, 64 / UNIT


# ------------------------------------------------------------------------------------------------------------ seeds


def of_seeds(generator: np.random.Generator, S: int) -> Found:
    """S runs with exponents of their own, correlated as c_q = alpha c_w + rest would be."""
    c_w = 0.9 + 0.08 * generator.normal(size=S)
    c_q = 0.25 * c_w + 0.03 * generator.normal(size=S)
    over_texts = 0.002 * generator.normal(size=RESAMPLES)
    half = 1.96 * 0.002

    def one(q: float, w: float) -> Any:
        value = Estimate(q, 0.002, (q - half, q + half), 500, unit="")
        exponent = SimpleNamespace(value=value, resampled=q + over_texts)
        return SimpleNamespace(
            run=SimpleNamespace(name="r"),
            behaviour=SimpleNamespace(exponent=exponent),
            weights=SimpleNamespace(exponent=SimpleNamespace(value=SimpleNamespace(value=w))),
        )

    found = trajectories._seeds([one(q, w) for q, w in zip(c_q, c_w, strict=True)])
    yield "c_q over seeds", found.c_q_over_seeds.interval, 0.225
    yield "c_w over seeds", found.c_w.interval, 0.9
    yield "alpha over seeds", found.alpha.interval, 0.25


QUICK: tuple[Callable[[Sample], Found], ...] = (of_a_pair, of_differences, of_shifts, of_bits_per_byte, of_placing)
SLOW: tuple[Callable[[Sample], Found], ...] = (
    of_settings, of_exponents, of_logged, of_stabilisation, of_winding, of_directions,
)  # fmt: skip


def coverage(simulate: Callable[[np.random.Generator], Found], n: int, seed: int = 0) -> dict[str, float]:
    """How often each interval holds the true value, in n simulations; of those in which it is printed."""
    held: dict[str, list[bool]] = {}
    for k in range(n):
        for what, (low, high), truth in simulate(np.random.default_rng([seed, k])):
            held.setdefault(what, []).append(bool(low <= truth <= high))
    return {what: float(np.mean(found)) for what, found in held.items()}
