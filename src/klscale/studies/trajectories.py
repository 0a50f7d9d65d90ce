"""Trajectories: how a training run moves, in log-likelihood space and in weight space.

Log-likelihoods settle early while weights keep drifting (Kishino et al., arXiv 2505.15353v1). A run is its checkpoints
in order of steps. Both spaces are described by squared distances between checkpoints: KL in bits per byte, and the sum
over all parameters of (W_a - W_b)**2. `docs/trajectories.md` explains each number and its limits.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import scipy

from klscale.errors import InputError
from klscale.inputs.attributes import clashing_steps, run_key
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science import diffusion
from klscale.science.arrays import Floats, Integers
from klscale.science.bootstrap import RESAMPLES, estimate_from_resamples, text_draws
from klscale.science.estimates import Estimate
from klscale.science.kl import HEAVY_TAILS, KL, kl_pairs
from klscale.store.store import Entry, Store
from klscale.studies import maps
from klscale.sweep.repeat_noise import noise_floor
from klscale.sweep.runs import weigh
from klscale.vectors.vectors import Vectors

THRESHOLDS = 60
"""Number of points of the curve of stabilisation."""
COMPONENTS = 5
"""Number of principal components whose share of variance is reported."""
FEWEST_OF_A_SHAPE = 8
"""Fewest checkpoints past warm-up for a shape."""
LOG_LIKELIHOOD, WEIGHTS = "log-likelihood", "weights"
"""The two spaces."""

Estimator = Callable[[float, Floats], Estimate]
"""(value, its values (R,) in bootstrap samples of the texts) -> estimate."""


@dataclass(frozen=True, eq=False)
class Run:
    """Checkpoints of one training run: T `vectors` in order of `steps` (T,).

    `warmup` is the step where warm-up ends. Where it is not known of the run, it is one checkpoint spacing after the
    start, and `warmup_known` is false. `notes` name checkpoints that are missing or left out.
    """

    name: str
    vectors: Vectors
    steps: Integers
    warmup: int
    warmup_known: bool
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def names(self) -> tuple[str, ...]:
        """The checkpoints as references."""
        return self.vectors.names

    def attribute(self, name: str) -> Any:
        """An attribute of the last checkpoint; None where it is not known."""
        value = self.vectors.attributes[name].iloc[-1]
        return None if pd.isna(value) else value


def find_runs(vectors: Vectors, *, warmup: int | None = None) -> list[Run]:
    """The training runs among these models: two or more checkpoints that differ only in their step.

    Two checkpoints of the same step count once where they are equal; else neither counts. Layers and quantized models
    are no checkpoints. `warmup` replaces the known step where warm-up ends.
    """
    return _with_names([run for run in _all_runs(vectors, warmup) if len(run) > 1])


def _all_runs(vectors: Vectors, warmup: int | None) -> list[Run]:
    """The runs, those too of which fewer than two checkpoints are left, and then their notes say why."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, (ref, known) in enumerate(zip(vectors.models, vectors.known, strict=True)):
        if "step" in known and ref.layer is None and "quantization" not in known:
            groups.setdefault((*run_key(vectors.runs[place], known), known.get("convention")), []).append(place)
    return [_run(vectors, places, warmup) for places in groups.values()]


def _run(vectors: Vectors, places: Sequence[int], warmup: int | None) -> Run:
    steps = vectors.attributes["step"].to_numpy()
    order = sorted(places, key=lambda place: (steps[place], vectors.names[place]))
    kept, notes = list[int](), list[str]()
    for step in dict.fromkeys(int(steps[place]) for place in order):
        alike = [(place, vectors.models[place]) for place in order if steps[place] == step]
        same = list({(os.path.normpath(ref.name), ref.revision): place for place, ref in alike}.values())
        rows, listed = vectors.log_likelihood[same], " and ".join(vectors.names[place] for place in same)
        if len(same) > 1:
            equal = all(np.array_equal(rows[0], row, equal_nan=True) for row in rows[1:])
            which = "they are equal, the first is used" if equal else "they differ, and none is used"
            notes.append(f"{listed} have the same step, {step:,}: {which}.")
            same = same[:1] if equal else []
        kept += same
    chosen = vectors.subset([vectors.models[place] for place in kept])
    of_run = [int(steps[place]) for place in kept]
    spacings = Counter(b - a for a, b in pairwise(of_run))
    spacing = spacings.most_common(1)[0][0] if spacings else 0
    if missing := _missing(of_run, spacing):
        listed = ", ".join(f"{step:,}" for step in missing[:5]) + (", ..." if len(missing) > 5 else "")
        notes.append(f"No checkpoint at step {listed}: the run is otherwise saved every {spacing:,} steps.")
    known = [int(value) for value in chosen.attributes["warmup"].dropna()]
    if warmup is not None:
        known = [warmup]
    first = of_run[0] if of_run else 0
    return Run(
        vectors.runs[places[0]],
        chosen,
        np.array(of_run, dtype=np.int64),
        max(known, default=first + spacing),
        bool(known),
        tuple(notes),
    )


def _missing(steps: Sequence[int], spacing: int) -> list[int]:
    """Steps without a checkpoint, between the first and the last two checkpoints that are `spacing` steps apart."""
    regular = [n for n, (a, b) in enumerate(pairwise(steps)) if b - a == spacing]
    if not regular:
        return []
    stretch = steps[regular[0] : regular[-1] + 2]
    return [step for a, b in pairwise(stretch) if (b - a) % spacing == 0 for step in range(a + spacing, b, spacing)]


def _with_names(runs: Sequence[Run]) -> list[Run]:
    """The runs; those of one directory or hub name get the attributes in which they differ as part of their names."""
    named = []
    for run in runs:
        namesakes = [other for other in runs if other.name == run.name]
        label = ", ".join(
            f"{key} {run.attribute(key)}"
            for key in ("seed", "family", "dtype", "parent")
            if run.attribute(key) is not None and len({other.attribute(key) for other in namesakes}) > 1
        )
        named.append(replace(run, name=f"{run.name} ({label})") if label else run)
    return named


# ------------------------------------------------------------------------------------------------------ the results


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a run: KLs in bits per byte, weights as squared distances (a pure number). None where there is
    no other checkpoint, NaN where weights were not compared."""

    ref: str
    step: int
    bits_per_byte: Estimate
    kl_from_first: KL | None
    kl_from_previous: KL | None
    kl_from_last: KL | None
    weights_from_first: float | None
    weights_from_previous: float | None
    weights_from_last: float | None


@dataclass(frozen=True, eq=False)
class Exponent:
    """The diffusion exponent c, a pure number: the squared distance from a checkpoint grows as lag**c, lags in steps.

    `value` is c by the published rule: the mean of the `slopes` (S,) of the log-log fits over the `starts` (S,).
    `time_averaged` is the slope of `averages`, the mean over starts. Their standard errors are over texts; weights have
    none, because one run has only one weight vector. The spread of the slopes over starts is no confidence interval:
    windows overlap. Each fit used `window` later checkpoints; `lags` are the smallest and the largest lag in steps.
    `dimension` is 2 / c.

    `kurtosis` is the median over pairs of the kurtosis of log-likelihood differences (NaN for weights). Where tails are
    heavy, intervals cover too rarely. `law_errors` has the out-of-sample error of each law over lags: the root mean
    square of ln(predicted / observed squared distance). `best_law` has the share of samples of the texts in which the
    law was the best.
    """

    value: Estimate
    time_averaged: Estimate
    dimension: Estimate
    starts: Integers
    slopes: Floats
    r_squared: Floats
    lags: tuple[int, int]
    window: int
    kurtosis: float
    averages: diffusion.TimeAveraged
    law_errors: Mapping[str, Estimate]
    best_law: Mapping[str, float]
    resampled: Floats = field(repr=False)
    """`value` (R,) in bootstrap samples of the texts; empty for weights."""

    @property
    def heavy_tails(self) -> bool:
        return self.kurtosis > HEAVY_TAILS


@dataclass(frozen=True, eq=False)
class Stabilisation:
    """The first step from which every later checkpoint stays within a threshold of the last one.

    It is a curve over `thresholds` (M,): `steps` (M,), with the ends `low` and `high` (M,) of its 95 % intervals over
    texts (NaN for weights). `step` and `interval` belong to the given `threshold`; they are None without one.
    Thresholds of log-likelihoods are in bits per byte. A threshold of weights is the same fraction of the squared
    distance from the first checkpoint to the last.
    """

    thresholds: Floats
    steps: Integers
    low: Floats
    high: Floats
    total: float
    """The squared distance from the first checkpoint to the last, in the unit of the thresholds."""
    threshold: float | None
    step: int | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Null:
    """Shape of a path without direction, over `RESAMPLES` draws: the mean `share` (n,) of variance of the first
    principal components, the median `winding` in turns with its central 95 %, and one draw of the `path` (T, 2)."""

    share: Floats
    winding: float
    winding_range: tuple[float, float]
    path: Floats


@dataclass(frozen=True, eq=False)
class Shape:
    """The path of a run past warm-up, `steps` (T,), in one space.

    `squared_distance` (T, T) is between its checkpoints, and `pca` (T, 3) are its points. `share` (n,) is the fraction
    of variance on the first components. `walk_share` (n,) is that of a pure random walk, 6 / (pi**2 k**2)
    (Antognini and Sohl-Dickstein, arXiv 1806.08805). `speed` (T - 1,) is the root of the squared distance from the
    previous checkpoint, over the steps between. `turning` (T - 2,) is the angle between consecutive displacements in
    degrees: 90 for a random walk in many dimensions. `winding` counts turns about the mean point, in the plane of the
    first two components.

    There are two `nulls`: an isotropic random walk with the same step lengths, and the run's own steps in random order
    and with random signs. The path is a `spiral` if the lower end of its winding's interval exceeds 97.5 % of both.
    """

    steps: Integers
    squared_distance: Floats
    pca: Floats
    share: Floats
    walk_share: Floats
    speed: Floats
    turning: Floats
    winding: Estimate
    nulls: Mapping[str, Null]
    spiral: bool

    @cached_property
    def tsne(self) -> Floats:
        """Its points (T, 2; no unit) by t-SNE in the plane."""
        return maps.tsne(self.squared_distance)

    @cached_property
    def tsne3(self) -> Floats:
        """Its points (T, 3; no unit) by t-SNE in space."""
        return maps.tsne(self.squared_distance, 3)


@dataclass(frozen=True, eq=False)
class Motion:
    """A run in one space: squared distances (T, T) between its checkpoints in `unit`, and results from them. `exponent`
    and `shape` are None where too few checkpoints lie past warm-up."""

    space: str
    unit: str
    squared_distance: Floats
    exponent: Exponent | None
    stabilisation: Stabilisation | None
    shape: Shape | None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A run in log-likelihood space (`behaviour`) and, where weights were compared, in weight space.

    `alpha` = c_q / c_w is the effective Hölder exponent of the map from weights to log-likelihoods along the run. It is
    None where c_w is not positive. `probability` is that of c_q < c_w. The errors of both are over texts alone, with
    the c_w of this run.

    `noise_floor` is the run-to-run noise, where it was measured: KL in bits per byte between a run and a repeat run of
    the last checkpoint, in batches of different shape and order. `noise_subtracted` says whether it was subtracted from
    the squared distances behind exponent, stabilisation and shape.
    """

    run: Run
    checkpoints: tuple[Checkpoint, ...]
    behaviour: Motion
    weights: Motion | None
    alpha: Estimate | None
    probability: float | None
    n_parameters: int | None
    noise_floor: KL | None
    noise_subtracted: bool

    @property
    def motions(self) -> tuple[Motion, ...]:
        """The run in each space where it was measured."""
        return (self.behaviour,) if self.weights is None else (self.behaviour, self.weights)


@dataclass(frozen=True)
class Seeds:
    """Mean exponents of S runs that differ only in their seed, pure numbers.

    `c_w`, `alpha` and `c_q_over_seeds` have standard errors over seeds. That of `c_q` is over texts, of the mean over
    seeds. `probability` is that of c_q < c_w, by Student's t with S - 1 degrees of freedom: the mean of c_w - c_q over
    its standard error. This combines the error of c_w - c_q over seeds and the error of c_q over texts. The sampling
    error of the texts is in both, so the probability is rather too close to 0.5.
    """

    runs: tuple[str, ...]
    c_q: Estimate
    c_q_over_seeds: Estimate
    c_w: Estimate
    alpha: Estimate
    probability: float


# ------------------------------------------------------------------------------------------------------ the analysis


def analyse_run(
    run: Run,
    weights: Floats | None = None,
    *,
    n_parameters: int | None = None,
    threshold: float | None = None,
    noise_floor: KL | None = None,
    subtract_noise: bool = False,
    lags: int | None = None,
    resamples: int = RESAMPLES,
) -> Trajectory:
    """The trajectory of one run from its vectors: KL in bits per byte along training, exponents with standard errors,
    the step of stabilisation, the shape of the path. `klscale.trajectory` does this for the runs of a store.

    `weights` (T, T): squared distances between the checkpoints' parameters, NaN where they were not compared;
    `n_parameters` is the number of parameters. `threshold`: the run has settled within so many bits per byte of its
    last checkpoint. `noise_floor`: KL between a run and a repeat run of the last checkpoint; `subtract_noise` subtracts
    it. `resamples`: number of bootstrap samples of the texts for the standard errors.

    `lags`: number of later checkpoints for each fit of an exponent, at least 5. None: the published 10, or all later
    checkpoints of a run with 6 to 10 of them past warm-up.

    Exponents and shapes use the checkpoints past warm-up and the texts that all of these have, with the clip for all or
    none (`Vectors.on_common_texts`). Raises InputError where the vectors were made by different conventions.
    """
    floor = noise_floor.value if noise_floor is not None and subtract_noise else 0.0
    past = np.flatnonzero(run.steps >= run.warmup)
    window = window_of(len(past)) if lags is None else lags
    if window < diffusion.FEWEST_LAGS:
        why = f"Three lags are fitted, two judge the fit: {diffusion.FEWEST_LAGS} at least."
        raise InputError(f"--lags {window} is too few.", why, "Give more.")
    behaviour = _behaviour(run, past, threshold, floor, window, resamples)
    moved = _weights(run, weights, n_parameters, threshold, window, behaviour.squared_distance)
    alpha = probability = None
    if moved is not None and moved.exponent is not None and behaviour.exponent is not None:
        c_q, c_w = behaviour.exponent.value, moved.exponent.value.value
        low, high = c_q.interval
        if c_w > 0:
            alpha = Estimate(c_q.value / c_w, c_q.standard_error / c_w, (low / c_w, high / c_w), c_q.n_texts, unit="")
        probability = float(scipy.stats.norm.cdf(c_w, c_q.value, c_q.standard_error))
    return Trajectory(
        run, _checkpoints(run, weights), behaviour, moved, alpha, probability, n_parameters, noise_floor,
        noise_floor is not None and subtract_noise,
    )  # fmt: skip


def window_of(n_checkpoints: int) -> int:
    """Number of later checkpoints for each fit of an exponent, of a run with `n_checkpoints` past warm-up."""
    fewer = min(diffusion.WINDOW, n_checkpoints - 1)
    return fewer if fewer >= diffusion.FEWEST_LAGS else diffusion.WINDOW


def analyse_runs(
    store: Store,
    texts: TextSet,
    entries: Sequence[Entry] | None = None,
    *,
    threshold: float | None = None,
    warmup: int | None = None,
    subtract_noise: bool = False,
    lags: int | None = None,
    device: str | None = None,
    from_store_only: bool = False,
    progress: Progress = SILENT,
) -> list[Trajectory]:
    """The trajectory of each run among these entries of a store (default: all entries on these texts).

    Where the checkpoints' files are present, weights are compared and run-to-run noise is measured, unless the store
    has them or `from_store_only` is true. `progress` notes checkpoints that cannot be compared. The rest is as in
    `analyse_run`.
    """
    known = store.entries(texts.id) if entries is None else entries
    entry_of = {str(entry.ref): entry for entry in known if entry.metadata["attributes"].get("step") is not None}
    vectors = store.vectors(texts, list(entry_of.values()))
    runs = _all_runs(vectors, warmup)
    lost = [note for run in runs if len(run) < 2 for note in run.notes]
    for problem in lost + clashing_steps(vectors.models, vectors.known):
        progress.note(problem)
    found = []
    for run in _with_names([run for run in runs if len(run) > 1]):
        last = entry_of[run.names[-1]]
        if from_store_only:
            floor = store.noise_floor(texts.id, last.key)
        else:
            here = [ref for ref in run.vectors.models if ref.path and ref.path.is_dir()]
            for failure in weigh(here, store, progress=progress).values():
                progress.note(str(failure))
            floor = noise_floor(last, texts, store, device=device, progress=progress)
        identities = [str(entry_of[name].metadata.get("identity", name)) for name in run.names]
        weights, n_parameters = store.weight_distances(identities)
        progress.begin(f"analysing {run.name}")
        found.append(
            analyse_run(
                run, weights, n_parameters=n_parameters, threshold=threshold, noise_floor=floor,
                subtract_noise=subtract_noise, lags=lags,
            )
        )  # fmt: skip
    return found


def _checkpoints(run: Run, weights: Floats | None) -> tuple[Checkpoint, ...]:
    kl, last = run.vectors.kl(), len(run) - 1

    def between(a: int, b: int) -> KL | None:
        return kl[a, b] if a != b and a >= 0 else None

    def moved(a: int, b: int) -> float | None:
        return None if a == b or a < 0 else math.nan if weights is None else float(weights[a, b])

    return tuple(
        Checkpoint(
            name, int(run.steps[t]), run.vectors.bits_per_byte(name),
            between(0, t), between(t - 1, t), between(last, t), moved(0, t), moved(t - 1, t), moved(last, t),
        )
        for t, name in enumerate(run.names)
    )  # fmt: skip


def _behaviour(run: Run, past: Integers, threshold: float | None, floor: float, window: int, resamples: int) -> Motion:
    texts, last = run.vectors.texts, len(run) - 1
    to_last = np.stack([np.arange(len(run)), np.full(len(run), last)], axis=1)
    draws = text_draws(len(texts), texts.document, resamples=resamples)
    pairs = kl_pairs(
        run.vectors.log_likelihood, texts.bytes, to_last, clip=texts.clip, documents=texts.document, draws=draws
    )
    whole = diffusion.subtract_noise(run.vectors.kl().value, floor)
    settled = _stabilisation(run.steps, whole[:, last], threshold, (pairs["resampled"].T - floor).clip(min=0.0))
    unmoved = Motion(LOG_LIKELIHOOD, "bits/byte", whole, None, settled, None)
    if len(past) < 2:
        return unmoved
    alike = run.vectors.subset([run.vectors.models[t] for t in past]).on_common_texts()
    common = ~np.isnan(alike.log_likelihood[0])
    if (n_texts := int(common.sum())) < 2:
        return unmoved
    kl = alike.kl()
    kurtosis = float(np.median(kl.kurtosis[np.triu_indices(len(past), k=1)]))
    distance = diffusion.subtract_noise(kl.value, floor)
    resampled = diffusion.subtract_noise(alike.resampled_kl(resamples), floor)
    estimate = partial(estimate_from_resamples, n_texts=n_texts, documents=texts.documents_of(common), unit="")
    exponent = _exponent(run.steps[past], distance, resampled, run.warmup, window, kurtosis, estimate)
    shape = _shape(run.steps[past], distance, resampled, n_texts - 1, estimate)
    return Motion(LOG_LIKELIHOOD, "bits/byte", whole, exponent, settled, shape)


def _weights(
    run: Run, weights: Floats | None, n_parameters: int | None, threshold: float | None, window: int, behaviour: Floats
) -> Motion | None:
    if weights is None or np.isnan(weights[~np.eye(len(run), dtype=bool)]).all():
        return None
    known = np.flatnonzero((~np.isnan(weights)).sum(axis=1) > 1)
    steps, distance = run.steps[known], weights[np.ix_(known, known)]
    past = np.flatnonzero(steps >= run.warmup)
    beyond = distance[np.ix_(past, past)]
    settled = shape = None
    ends = known[0] == 0 and known[-1] == len(run) - 1
    if ends and not np.isnan(distance[:, -1]).any() and behaviour[0, -1] > 0:
        fraction = None if threshold is None else threshold / behaviour[0, -1]
        settled = _stabilisation(steps, distance[:, -1], None if fraction is None else fraction * distance[0, -1])
    none = np.empty((0, len(past), len(past)))
    if not np.isnan(beyond).any():
        shape = _shape(steps[past], beyond, none, n_parameters or 10**9, _no_texts)
    exponent = _exponent(steps[past], beyond, none, run.warmup, window, math.nan, _no_texts)
    return Motion(WEIGHTS, "squared distance", weights, exponent, settled, shape)


def _no_texts(value: float, resampled: Floats) -> Estimate:
    """An estimate from the weights of one run. Its standard error would be over seeds: one run does not give it."""
    return Estimate(value, math.nan, (math.nan, math.nan), 0, unit="")


def _exponent(
    steps: Integers,
    distance: Floats,
    resampled: Floats,
    warmup: int,
    window: int,
    kurtosis: float,
    estimate: Estimator,
) -> Exponent | None:
    fits = diffusion.fits(steps, distance, after=warmup, window=window)
    if not len(fits.starts) or math.isnan(float(fits.exponent)):
        return None
    averaged = diffusion.time_averaged(steps, distance, after=warmup, window=window)
    errors = diffusion.laws(steps, distance, after=warmup, window=window)
    again = diffusion.fits(steps, resampled, after=warmup, window=window).exponent
    averaged_again = diffusion.time_averaged(steps, resampled, after=warmup, window=window).exponent
    errors_again = diffusion.laws(steps, resampled, after=warmup, window=window)
    judged = np.stack([errors_again[law] for law in errors])
    best = judged[:, ~np.isnan(judged).any(axis=0)].argmin(axis=0)
    c = float(fits.exponent)
    lags = steps[fits.starts[:, None] + np.arange(1, window + 1)] - steps[fits.starts, None]
    return Exponent(
        value=estimate(c, again),
        time_averaged=estimate(float(averaged.exponent), averaged_again),
        dimension=estimate(float(diffusion.fractal_dimension(c)), diffusion.fractal_dimension(again)),
        starts=steps[fits.starts],
        slopes=fits.slope,
        r_squared=fits.r_squared,
        lags=(int(lags.min()), int(lags.max())),
        window=window,
        kurtosis=kurtosis,
        averages=averaged,
        law_errors={law: estimate(float(errors[law]), errors_again[law]) for law in errors},
        best_law={law: float((best == n).mean()) for n, law in enumerate(errors)} if len(best) else {},
        resampled=again,
    )


def _stabilisation(
    steps: Integers, to_last: Floats, threshold: float | None, resampled: Floats | None = None
) -> Stabilisation:
    """The curve from squared distances to the last checkpoint (T,), and from those in samples of the texts (R, T)."""
    positive = to_last[to_last > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1.0, 1.0)
    thresholds = np.geomspace(low, high, THRESHOLDS)
    asked = thresholds if threshold is None else np.append(thresholds, threshold)
    found = settled_from(steps, to_last, asked)
    ends = np.full((2, len(asked)), math.nan)
    if resampled is not None and len(resampled := resampled[~np.isnan(resampled).any(axis=1)]):
        ends = np.quantile(settled_from(steps, resampled, asked), [0.025, 0.975], axis=0, method="nearest")
    last = None if threshold is None else (float(ends[0, -1]), float(ends[1, -1]))
    return Stabilisation(
        thresholds, found[:THRESHOLDS], ends[0, :THRESHOLDS], ends[1, :THRESHOLDS], float(to_last[0]), threshold,
        None if threshold is None else int(found[-1]), last,
    )  # fmt: skip


def settled_from(steps: Integers, to_last: Floats, thresholds: Floats) -> Integers:
    """The first step (..., M) from which every checkpoint is within a threshold of the last one, from squared distances
    `to_last` (..., T) and `thresholds` (M,) in one unit."""
    farthest = np.maximum.accumulate(to_last[..., ::-1], axis=-1)[..., ::-1]  # of this checkpoint and all later ones
    return np.asarray(steps[(farthest[..., None, :] <= thresholds[:, None]).argmax(axis=-1)])


# -------------------------------------------------------------------------------------------------------- the shape


def _shape(
    steps: Integers, distance: Floats, resampled: Floats, n_dimensions: int, estimate: Estimator
) -> Shape | None:
    T = len(steps)
    if T < FEWEST_OF_A_SHAPE or not (np.diagonal(distance, 1) > 0).all():
        return None
    path = maps.principal_components(maps.gram_matrix(distance), T)
    moves = _displacements(distance)
    length = np.sqrt(np.diagonal(moves))
    cosine = np.diagonal(moves, 1) / (length[1:] * length[:-1])
    again = _winding(maps.principal_components(maps.gram_matrix(resampled), 2).points)
    winding = estimate(float(_winding(path.points)), again)
    surely = winding.value if math.isnan(winding.interval[0]) else winding.interval[0]
    generator = np.random.default_rng(0)
    nulls = {
        "random walk": _null(_random_walk(length, n_dimensions, generator)),
        "shuffled steps": _null(_shuffled(moves, generator)),
    }
    k = np.arange(1, COMPONENTS + 1)
    return Shape(
        steps=steps,
        squared_distance=distance,
        pca=path.points[:, :3],
        share=path.share[:COMPONENTS],
        walk_share=6 / (math.pi * k) ** 2,
        speed=length / np.diff(steps),
        turning=np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))),
        winding=winding,
        nulls=nulls,
        spiral=all(surely > null.winding_range[1] for null in nulls.values()),
    )


def _displacements(distance: Floats) -> Floats:
    """Gram matrix (T - 1, T - 1) of the displacements from checkpoint to checkpoint, from squared distances (T, T)."""
    return 0.5 * (distance[:-1, 1:] + distance[1:, :-1] - distance[:-1, :-1] - distance[1:, 1:])


def _winding(points: Floats) -> Floats:
    """Turns (...,) of paths (..., T, n) about the origin, the mean of their points, in the plane of the first two
    axes."""
    angle = np.arctan2(points[..., 1], points[..., 0])
    turn = (np.diff(angle, axis=-1) + math.pi) % (2 * math.pi) - math.pi
    return np.asarray(np.abs(turn.sum(axis=-1)) / (2 * math.pi))


def _random_walk(length: Floats, n_dimensions: int, generator: np.random.Generator) -> Floats:
    """Gram matrices (R, T - 1, T - 1) of displacements with these lengths in independent isotropic directions."""
    p = len(length)
    if n_dimensions >= p:
        drawn = np.reshape(scipy.stats.wishart.rvs(n_dimensions, np.eye(p), RESAMPLES, generator), (RESAMPLES, p, p))
    else:
        z = generator.normal(size=(RESAMPLES, p, n_dimensions))
        drawn = z @ z.transpose(0, 2, 1)
    scale = length / np.sqrt(np.diagonal(drawn, axis1=-2, axis2=-1))
    return np.asarray(drawn * scale[:, :, None] * scale[:, None, :])


def _shuffled(moves: Floats, generator: np.random.Generator) -> Floats:
    """Gram matrices (R, T - 1, T - 1) of a run's own displacements in random order and with random signs."""
    found = []
    for _ in range(RESAMPLES):
        order, sign = generator.permutation(len(moves)), generator.choice([-1.0, 1.0], len(moves))
        found.append(moves[np.ix_(order, order)] * np.outer(sign, sign))
    return np.stack(found)


def _null(moves: Floats) -> Null:
    """The shape of paths with these displacements (R, T - 1, T - 1; Gram matrices)."""
    T = moves.shape[-1] + 1
    walk = np.tri(T, T - 1, k=-1)  # position = sum of the displacements before it
    walk -= walk.mean(axis=0)
    found = maps.principal_components(walk @ moves @ walk.T, COMPONENTS)
    winding = _winding(found.points)
    low, middle, high = np.quantile(winding, [0.025, 0.5, 0.975])
    return Null(found.share.mean(axis=0), float(middle), (float(low), float(high)), found.points[0, :, :2])


# --------------------------------------------------------------------------------------------------- several seeds


def over_seeds(trajectories: Iterable[Trajectory]) -> list[Seeds]:
    """The mean exponents of each group of runs that differ only in their seed, with standard errors over seeds.

    A run counts if it has exponents in both spaces. Runs of unknown family count as seeds of each other only if they
    have the same name. Of two runs with one seed the first counts.
    """
    groups: dict[tuple[Any, ...], dict[Any, Trajectory]] = {}
    for found in trajectories:
        if found.alpha is not None and (seed := found.run.attribute("seed")) is not None:
            family = found.run.attribute("family") or found.run.vectors.models[-1].run
            key = tuple(found.run.attribute(name) for name in ("type", "parameters", "dtype", "parent"))
            groups.setdefault((family, *key, found.run.steps[-1]), {}).setdefault(seed, found)
    return [_seeds([*group.values()]) for group in groups.values() if len(group) > 1]


def _seeds(group: Sequence[Trajectory]) -> Seeds:
    behaviour = [found.behaviour.exponent for found in group if found.behaviour.exponent is not None]
    weights = [found.weights.exponent for found in group if found.weights and found.weights.exponent]
    c_q = np.array([exponent.value.value for exponent in behaviour])
    c_w = np.array([exponent.value.value for exponent in weights])
    n_texts = behaviour[0].value.n_texts
    # The samples of the texts are the same for all runs: errors over texts do not average out.
    over_texts = float(np.std(np.mean([exponent.resampled for exponent in behaviour], axis=0), ddof=1))
    mean, alpha = float(c_q.mean()), float(c_q.mean() / c_w.mean())
    gap = _over_units(c_w - c_q)
    error = math.hypot(gap.standard_error, over_texts)
    one = behaviour[0].value
    half = over_texts * (one.interval[1] - one.value) / one.standard_error  # by documents where texts share them
    return Seeds(
        runs=tuple(found.run.name for found in group),
        c_q=Estimate(mean, over_texts, (mean - half, mean + half), n_texts, unit=""),
        c_q_over_seeds=_over_units(c_q),
        c_w=_over_units(c_w),
        alpha=_over_units((c_q - alpha * c_w) / c_w.mean(), alpha),
        probability=float(scipy.stats.t.cdf(gap.value / error, len(group) - 1)),
    )


def _over_units(values: Floats, centre: float | None = None) -> Estimate:
    """The mean of independent values (S,) with its standard error and Student's interval. With `centre`, the estimate
    is that number, and the values are its influences (a ratio of means, linearised)."""
    S = len(values)
    value = float(values.mean()) if centre is None else centre
    error = float(values.std(ddof=1) / math.sqrt(S))
    return Estimate.normal(value, error, 0, n_documents=S, unit="")
