"""Trajectories: how a training run moves, in log-likelihood space and in weight space.

Behaviour settles early while weights keep drifting (Kishino et al., arXiv 2505.15353v1). A run is its checkpoints in
order of steps; both spaces are seen through squared distances between them: KL in bits per byte, and the sum over all
parameters of (W_a - W_b)**2. `docs/trajectories.md` says what each number is and what it is not.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from klscale.errors import InputError
from klscale.inputs.attributes import run_key
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
"""Points of the curve of stabilisation."""
COMPONENTS = 5
"""Principal components whose share of variance is told."""
FEWEST_OF_A_SHAPE = 8
"""Checkpoints past warm-up that a shape takes."""
LOG_LIKELIHOOD, WEIGHTS = "log-likelihood", "weights"
"""The two spaces."""

Estimator = Callable[[float, Floats], Estimate]
"""A number and its values in samples of the texts (R,), to an estimate."""


@dataclass(frozen=True, eq=False)
class Run:
    """Checkpoints of one training run: T `vectors` in order of `steps` (T,).

    `warmup` is the step where warm-up ends, as is known of the run, else one checkpoint spacing after the start
    (`warmup_known` is false). `notes` say what is wrong with the run: checkpoints that are missing or left out.
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
        """An attribute of the last checkpoint, None where it is not known."""
        value = self.vectors.attributes[name].iloc[-1]
        return None if pd.isna(value) else value


def find_runs(vectors: Vectors, *, warmup: int | None = None) -> list[Run]:
    """The training runs among these models: checkpoints that differ in their step alone; two or more make a run.

    Two checkpoints of one step count once where they are equal; else neither counts. Layers and quantized models are
    no checkpoints. `warmup`: the step where warm-up ends, instead of what is known of the run.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, (ref, row) in enumerate(zip(vectors.models, vectors.attributes.to_dict("records"), strict=True)):
        known = {str(key): value for key, value in row.items() if not pd.isna(value)}
        if "step" in known and ref.layer is None and "quantization" not in known:
            groups.setdefault((*run_key(ref, known), known.get("convention")), []).append(place)
    found = [_run(vectors, places, warmup) for places in groups.values()]
    return _with_names([run for run in found if len(run) > 1])


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
            which = "they are equal, the first is taken" if equal else "which is of the run cannot be told: left out"
            notes.append(f"{listed} are of one step, {step:,}: {which}.")
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
        chosen.models[0].run if kept else "",
        chosen,
        np.array(of_run, dtype=np.int64),
        max(known, default=first + spacing),
        bool(known),
        tuple(notes),
    )


def _missing(steps: Sequence[int], spacing: int) -> list[int]:
    """Steps that are left out between the first and the last two checkpoints that are `spacing` steps apart."""
    regular = [n for n, (a, b) in enumerate(pairwise(steps)) if b - a == spacing]
    if not regular:
        return []
    stretch = steps[regular[0] : regular[-1] + 2]
    return [step for a, b in pairwise(stretch) if (b - a) % spacing == 0 for step in range(a + spacing, b, spacing)]


def _with_names(runs: Sequence[Run]) -> list[Run]:
    """Runs of one directory or hub name are told apart by what they differ in."""
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
    """One checkpoint of a run. KLs in bits per byte, weights as squared distances; None where there is no other
    checkpoint, NaN where weights were not compared."""

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
    """How the squared distance from a checkpoint grows with the number of steps after it: as lag**c.

    `value` is c by the published rule, the mean over `starts` (S,) of the slopes (S,) of the log-log fits;
    `time_averaged` the slope of the mean over starts, `averages`. Their standard errors are over texts; weights have
    none, since one run has but one weight vector. The spread of the slopes over starts is no confidence interval:
    windows overlap. `window`: how many later checkpoints each fit used; `lags` their smallest and largest lag in steps.
    `dimension` is 2 / c. `kurtosis`: the median of those of the log-likelihood differences behind it (NaN for weights);
    where tails are heavy, intervals cover too rarely. `law_errors`: of each law its out-of-sample error over lags (root
    mean square of the ln of predicted by observed squared distance); `best_law` how often it was the best one over
    samples of the texts.
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
    """Of `value`, (R,), over texts; empty for weights."""

    @property
    def heavy_tails(self) -> bool:
        return self.kurtosis > HEAVY_TAILS


@dataclass(frozen=True, eq=False)
class Stabilisation:
    """The first step from which every later checkpoint stays within a threshold of the last one, on a curve over
    `thresholds` (M,): `steps` (M,), `low` and `high` (M,) its 95 % interval over texts (NaN for weights).

    `threshold` is the one asked for, and `step` what belongs to it with its interval; None without one. For weights
    thresholds are the same fractions of the first-to-last squared distance.
    """

    thresholds: Floats
    steps: Integers
    low: Floats
    high: Floats
    total: float
    """The squared distance from the first checkpoint to the last, of which weights take the same fraction."""
    threshold: float | None
    step: int | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Null:
    """What a path without direction gives, over `RESAMPLES` draws: `share` (n,) of variance of the first principal
    components, `winding` in turns with its 95 % range, and one draw of the path, (T, 2)."""

    share: Floats
    winding: float
    winding_range: tuple[float, float]
    path: Floats


@dataclass(frozen=True, eq=False)
class Shape:
    """The path of a run past warm-up, `steps` (T,), in one space.

    `pca` (T, 3) and `tsne` (T, 2), `tsne3` (T, 3) are its points. `share` (n,): of the
    variance on the first components, `walk_share` that of a pure random walk, 6 / (pi**2 k**2) (Antognini and
    Sohl-Dickstein, arXiv 1806.08805). `speed` (T - 1,): root of the squared distance from the previous checkpoint by
    the steps between; `turning` (T - 2,) the angle between consecutive displacements in degrees: 90 for a random walk
    in many dimensions. `winding`: turns about the mean point, in the plane of the first two components.
    `nulls`: an isotropic random walk with the same step lengths, and the run's own steps in random order and with
    random signs. `spiral`: whether the run winds, by the lower end of its interval, more than 97.5 % of either null.
    """

    steps: Integers
    pca: Floats
    tsne: Floats
    tsne3: Floats
    share: Floats
    walk_share: Floats
    speed: Floats
    turning: Floats
    winding: Estimate
    nulls: Mapping[str, Null]
    spiral: bool


@dataclass(frozen=True, eq=False)
class Motion:
    """A run in one space: squared distances (T, T) between its checkpoints in `unit`, and what they say. `exponent` and
    `shape` are None where too few checkpoints lie past warm-up."""

    space: str
    unit: str
    squared_distance: Floats
    exponent: Exponent | None
    stabilisation: Stabilisation | None
    shape: Shape | None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A run, seen in log-likelihood space (`behaviour`) and, where weights were compared, in weight space.

    `alpha` = c_q / c_w is the effective Hölder exponent of the map from weights to log-likelihoods along the run; its
    standard error is over texts alone, with c_w as this run has it; None where c_w is not positive. `probability` that
    c_q < c_w, likewise.
    `noise_floor`: KL in bits per byte between two readings of the last checkpoint, in batches of different shape and
    order, where it was measured; `noise_subtracted` says whether it was taken off the squared distances behind
    exponent, stabilisation and shape.
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
        """The spaces that it was seen in."""
        return (self.behaviour,) if self.weights is None else (self.behaviour, self.weights)


@dataclass(frozen=True)
class Seeds:
    """Runs that differ in their seed alone. `c_w` and `alpha` with standard errors over seeds, `c_q` over texts (of the
    mean over seeds) and `c_q_over_seeds`.

    `probability` that c_q < c_w: Student's, of the mean of c_w - c_q by its error over seeds and that of c_q over
    texts. What differs between seeds because of the texts is in both, so that it is rather too far from certainty.
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
    """How one run moves, from its vectors: KL in bits per byte along training, exponents with standard errors, the step
    of stabilisation, the shape of the path. `klscale.trajectory` does this for the runs of a store.

    `weights` (T, T): squared distances between the checkpoints' parameters, NaN where they were not compared;
    `n_parameters` is their number. `threshold`: the run has settled within so many bits per byte of its last
    checkpoint. `noise_floor`: KL between two readings of the last checkpoint, which `subtract_noise` takes off.
    `resamples` of the texts give the standard errors.

    `lags`: over how many later checkpoints each exponent is fitted, 5 at least; None: the published 10, or all later
    ones of a run that has 6 to 10 checkpoints past warm-up.

    Exponents and shapes are of the checkpoints past warm-up, on the texts that all of these have and with the clip for
    all or none (`Vectors.on_common_texts`). Raises InputError where the vectors were made by different conventions.
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
        probability = float(stats.norm.cdf(c_w, c_q.value, c_q.standard_error))
    return Trajectory(
        run, _checkpoints(run, weights), behaviour, moved, alpha, probability, n_parameters, noise_floor,
        noise_floor is not None and subtract_noise,
    )  # fmt: skip


def window_of(n_checkpoints: int) -> int:
    """Over how many later checkpoints exponents are fitted, of a run with so many past warm-up."""
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
    """How each run among these entries of a store moves (default: all entries on these texts).

    Where the checkpoints' files are here, weights are compared and the noise floor is measured, unless the store has
    them or `from_store_only` forbids it; `progress` tells what cannot be compared. The rest is as in `analyse_run`.
    """
    entry_of = {str(entry.ref): entry for entry in (store.entries(texts.id) if entries is None else entries)}
    found = []
    for run in find_runs(store.vectors(texts, list(entry_of.values())), warmup=warmup):
        last = entry_of[run.names[-1]]
        if from_store_only:
            floor = store.noise_floor(texts.id, last.key)
        else:
            here = [ref for ref in run.vectors.models if ref.path and ref.path.is_dir()]
            for problem in weigh(here, store, progress=progress).values():
                progress.note(str(problem))
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
    """A number of the weights of one run: its error is over seeds, and not known from one."""
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
    """From squared distances to the last checkpoint (T,), and in samples of the texts (R, T)."""
    positive = to_last[to_last > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1.0, 1.0)
    thresholds = np.geomspace(low, high, THRESHOLDS)
    asked = thresholds if threshold is None else np.append(thresholds, threshold)
    found = settled_from(steps, to_last, asked)
    ends = np.full((2, len(asked)), math.nan)
    if resampled is not None and len(resampled):
        ends = np.quantile(settled_from(steps, resampled, asked), [0.025, 0.975], axis=0, method="nearest")
    last = None if threshold is None else (float(ends[0, -1]), float(ends[1, -1]))
    return Stabilisation(
        thresholds, found[:THRESHOLDS], ends[0, :THRESHOLDS], ends[1, :THRESHOLDS], float(to_last[0]), threshold,
        None if threshold is None else int(found[-1]), last,
    )  # fmt: skip


def settled_from(steps: Integers, to_last: Floats, thresholds: Floats) -> Integers:
    """The first step from which every checkpoint is within a threshold of the last one: squared distances `to_last`
    (..., T) and `thresholds` (M,) in one unit give (..., M)."""
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
        pca=path.points[:, :3],
        tsne=maps.tsne(distance),
        tsne3=maps.tsne(distance, 3),
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
    """Turns about the origin, the mean of the points, of paths (..., T, n) in the plane of their first two axes."""
    angle = np.arctan2(points[..., 1], points[..., 0])
    turn = (np.diff(angle, axis=-1) + math.pi) % (2 * math.pi) - math.pi
    return np.asarray(np.abs(turn.sum(axis=-1)) / (2 * math.pi))


def _random_walk(length: Floats, n_dimensions: int, generator: np.random.Generator) -> Floats:
    """Gram matrices (R, T - 1, T - 1) of displacements of these lengths in independent isotropic directions."""
    p = len(length)
    if n_dimensions >= p:
        drawn = np.reshape(stats.wishart.rvs(n_dimensions, np.eye(p), RESAMPLES, generator), (RESAMPLES, p, p))
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
    """Paths with these displacements (R, T - 1, T - 1; Gram matrices)."""
    T = moves.shape[-1] + 1
    walk = np.tri(T, T - 1, k=-1)  # position = sum of the displacements before it
    walk -= walk.mean(axis=0)
    found = maps.principal_components(walk @ moves @ walk.T, COMPONENTS)
    winding = _winding(found.points)
    low, middle, high = np.quantile(winding, [0.025, 0.5, 0.975])
    return Null(found.share.mean(axis=0), float(middle), (float(low), float(high)), found.points[0, :, :2])


# --------------------------------------------------------------------------------------------------- several seeds


def over_seeds(trajectories: Iterable[Trajectory]) -> list[Seeds]:
    """The mean exponents of runs that differ in their seed alone, with standard errors over seeds; for each group of
    such runs that have both exponents. Runs of unknown family and of two names are never taken for seeds of one
    another; of two runs of one seed the first counts."""
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
    # The samples of the texts are the same for all runs, so that their errors do not average out.
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
        probability=float(stats.t.cdf(gap.value / error, len(group) - 1)),
    )


def _over_units(values: Floats, centre: float | None = None) -> Estimate:
    """The mean of independent values (S,) with its standard error and Student's interval; with `centre`, that number,
    of which the values are the influences (a ratio of means, linearised)."""
    S = len(values)
    value = float(values.mean()) if centre is None else centre
    error = float(values.std(ddof=1) / math.sqrt(S))
    return Estimate.normal(value, error, 0, n_documents=S, unit="")
