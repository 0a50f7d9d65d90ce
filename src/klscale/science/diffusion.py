"""How squared distances grow along a training run: diffusion exponents (Kishino et al., arXiv 2505.15353).

    D(t0, t) ∝ (t - t0)**c          c = 1 ordinary diffusion, c < 1 subdiffusion, c > 1 superdiffusion

Plain NumPy. `steps` (T,) are the training steps of the checkpoints, ascending. `squared_distance` (..., T, T) holds D
between them: KL in bits per byte for log-likelihoods, the sum over parameters of (W_t - W_t0)**2 for weights. Only
entries to the right of the diagonal are read. All functions work over leading axes, so that one call evaluates a stack
of bootstrap resamples (`bootstrap.resampled_kl`); `bootstrap.estimate_from_resamples` makes intervals of them.

An exponent describes growth over the lags that it was fitted to; it is no proof of a power law. `laws` compares it
with two other laws. Windows of neighbouring starts overlap, so the spread of slopes over starts is no confidence
interval: intervals are over texts, or over seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from klscale.errors import InputError
from klscale.science.arrays import Floats, Integers

WINDOW = 10
"""Later checkpoints that each fit uses (Kishino et al.)."""

FEWEST = 3
"""Fewest points of a line: any two lie on one."""

FEWEST_LAGS = 5
"""Fewest later checkpoints of a comparison of laws: three to fit, two to judge."""

FITTED = 0.6
"""Fraction of the lags that laws are fitted to; the other lags judge. The test is a process that relaxes within three
of ten lags, in 60 simulations. With laws fitted to half of the lags, 36 were taken for logarithmic; with 0.6, 9."""


@dataclass(frozen=True, eq=False)
class Fits:
    """The line ln D = intercept + slope x ln(lag) of each start.

    `starts` (S,) are positions among the checkpoints. `slope`, `intercept` and `r_squared` are (..., S); they are NaN
    where fewer than three lags could be used.
    """

    starts: Integers
    slope: Floats
    intercept: Floats
    r_squared: Floats

    @property
    def exponent(self) -> Floats:
        """c (...,): the mean slope over the starts that have one; NaN where none has."""
        return _mean_of_known(self.slope)


@dataclass(frozen=True, eq=False)
class TimeAveraged:
    """The mean squared distance over starts (..., M) at each of M lags, and the line of its logarithm on ln(lag).

    `lag` (M,) is in steps; `n_pairs` (M,) counts the pairs of checkpoints behind each mean. `exponent` is the slope of
    the line; it, `intercept` and `r_squared` are (...,).
    """

    lag: Floats
    mean_squared_distance: Floats
    n_pairs: Integers
    exponent: Floats
    intercept: Floats
    r_squared: Floats


def fits(steps: ArrayLike, squared_distance: Floats, *, after: int, window: int = WINDOW) -> Fits:
    """The line of each start by the published rule (Kishino et al., arXiv 2505.15353): ordinary least squares of
    ln D(t0, t) on ln(t - t0) over the next `window` checkpoints.

    Starts are the steps t0 >= `after`, where warm-up ends. Starts with fewer later checkpoints are left out; there may
    be none. Lags are the true ones, however the checkpoints are spaced. A lag is left out of the fit where its D is NaN
    or zero: the checkpoints are equal, or their distance is all noise. Raises InputError for steps that do not ascend.
    """
    starts, later, lag = _windows(steps, after, window)
    return Fits(starts, *line(np.log(lag), log_distance(squared_distance[..., starts[:, None], later])))


def time_averaged(steps: ArrayLike, squared_distance: Floats, *, after: int, window: int = WINDOW) -> TimeAveraged:
    """The time-averaged mean squared displacement: the mean of D over the pairs of checkpoints that `fits` uses, at
    each lag, and one line of its logarithm on ln(lag).

    With regular spacing each lag is its own group. Else lags hardly repeat, and are grouped from the shortest up. A lag
    joins a group if it is shorter than 1 + 1/window times the group's first lag. A group is placed at its mean lag,
    where ordinary diffusion is exact.

    Where spacing grows along the run, short lags come from early starts and long lags from late ones. If the run slows
    down, this exponent is then too low: prefer `fits`, which fits each start alone. A lag is left out of the line where
    all D are zero, or one is NaN. Raises InputError as `fits` does.
    """
    starts, later, lag = _windows(steps, after, window)
    order = np.argsort(lag, axis=None, kind="stable")
    ascending = lag.ravel()[order]
    firsts: list[int] = []
    for place, value in enumerate(ascending.tolist()):
        if not firsts or window * value >= (window + 1) * int(ascending[firsts[-1]]):
            firsts.append(place)
    n_pairs = np.diff(firsts, append=len(order)).astype(np.int64)
    distance = squared_distance[..., starts[:, None], later]
    distance = distance.reshape(*distance.shape[:-2], lag.size)[..., order]
    mean = np.add.reduceat(distance, firsts, axis=-1) / n_pairs if firsts else distance
    mean_lag = np.add.reduceat(ascending, firsts) / n_pairs if firsts else np.empty(0)
    return TimeAveraged(mean_lag, mean, n_pairs, *line(np.log(mean_lag), log_distance(mean)))


_LAWS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "power": lambda ratio, shape: shape * np.log(ratio),
    "logarithmic": lambda ratio, shape: np.log1p(shape * np.log(ratio)),
    "saturating": lambda ratio, shape: np.log(-np.expm1(-shape * ratio)),
}
"""ln of each law without its level, as a function of (lag / shortest lag, shape). All grow, and each can tend to a
constant."""

_SHAPES = np.linspace(np.log(1e-4), np.log(1e2), 601)
"""ln of the shape parameters of the grid: 100 a decade."""


def laws(steps: ArrayLike, squared_distance: Floats, *, after: int, window: int = WINDOW) -> dict[str, Floats]:
    """Prediction error of each of three laws on longer lags: law -> error (...,), about the relative error of D (0.05:
    5 %).

        power         D = A tau**c
        logarithmic   D = a + b ln(tau)
        saturating    D = A (1 - exp(-tau / tau0)): linear at first, then a plateau

    Each law has two parameters and never falls (c, b >= 0). For each start that `fits` uses, the law is fitted to the
    shorter 60 % of the lags (six of ten). It is judged on the longer ones, because laws that agree where they are
    fitted differ beyond. Fit and judgement use the same loss for all laws: the root mean square of
    ln(predicted / observed). Under it no fitted law predicts D <= 0. The level (A) is then a mean. The shape (c, b/a,
    tau0) is found on a grid, and refined on the parabola through the best three points.

    The error is the mean over starts, without starts where some D is zero or NaN; with no start left it is NaN.
    The errors of all three contain the same sampling noise, so compare their differences, resample by resample. Raises
    InputError as `fits` does, and for a window of fewer than five lags.
    """
    fitted = round(FITTED * window)
    if fitted < FEWEST:
        raise InputError(f"A window of {window} lags is too short to compare laws.", remedy="Use at least 5.")
    starts, later, lag = _windows(steps, after, window)
    observed = log_distance(squared_distance[..., starts[:, None], later])
    ratio = lag / lag[:, :1]
    errors = {}
    for name, law in _LAWS.items():
        shape = np.exp(_best_shape(law(ratio[:, :fitted, None], np.exp(_SHAPES)), observed[..., :fitted]))
        residual = law(ratio, shape[..., None]) - observed
        residual -= residual[..., :fitted].mean(axis=-1, keepdims=True)
        errors[name] = _mean_of_known(np.sqrt((residual[..., fitted:] ** 2).mean(axis=-1)))
    return errors


def _best_shape(curves: Floats, observed: Floats) -> Floats:
    """ln of the shape (..., S) whose curve (S, lags, shapes) is nearest to `observed` (..., S, lags) by least squares.
    The levels of both are ignored."""
    curves = curves - curves.mean(axis=1, keepdims=True)
    observed = observed - observed.mean(axis=-1, keepdims=True)
    loss = (curves**2).sum(axis=1) - 2 * (observed[..., None, :] @ curves)[..., 0, :]
    middle = loss.argmin(axis=-1).clip(1, len(_SHAPES) - 2)[..., None]
    below, at, above = (np.take_along_axis(loss, middle + side, axis=-1)[..., 0] for side in (-1, 0, 1))
    bend = below - 2 * at + above
    offset = np.where(bend > 0, (below - above) / np.where(bend > 0, 2 * bend, 1.0), 0.0)
    found: Floats = _SHAPES[middle[..., 0]] + offset.clip(-1, 1) * (_SHAPES[1] - _SHAPES[0])
    return found


def subtract_noise(squared_distance: Floats, floor: float) -> Floats:
    """Squared distances without run-to-run noise, never below zero; shape and unit as given.

    `floor` is the squared distance between a run and a repeat run of one checkpoint (for example the same texts in
    batches of another shape). Independent noise adds the same amount to the squared distance of two checkpoints.
    """
    return np.asarray(np.maximum(squared_distance - floor, 0.0))


def fractal_dimension(exponent: ArrayLike) -> Floats:
    """D = 2 / c (...,) of a trajectory with diffusion exponent c (Kishino et al., arXiv 2505.15353): 2 for ordinary
    diffusion, 1 for a straight line. NaN where the exponent is not positive."""
    c = np.asarray(exponent, dtype=np.float64)
    return 2.0 / np.where(c > 0, c, np.nan)


# ------------------------------------------------------------------------------------------------------- least squares


def line(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Slope, intercept and R² (...,) of the least-squares line of `y` (..., n) on `x` (n,) or (..., n).

    Points where y is NaN are left out. All are NaN for fewer than three points; R² also where y is constant.
    """
    known = ~np.isnan(y)
    n = known.sum(axis=-1)
    count = np.where(n >= FEWEST, n, np.nan)
    x_mean, y_mean = (np.where(known, values, 0.0).sum(axis=-1) / count for values in (x, y))
    dx = np.where(known, x - x_mean[..., None], 0.0)
    dy = np.where(known, y - y_mean[..., None], 0.0)
    xx, xy, yy = (dx * dx).sum(axis=-1), (dx * dy).sum(axis=-1), (dy * dy).sum(axis=-1)
    slope = xy / np.where(xx > 0, xx, np.nan)
    return slope, y_mean - slope * x_mean, slope * xy / np.where(yy > 0, yy, np.nan)


def log_distance(squared_distance: Floats) -> Floats:
    """ln D, in the shape of D; NaN where D is not positive, as `line` needs it."""
    positive = squared_distance > 0
    return np.asarray(np.log(np.where(positive, squared_distance, np.nan)))


def _mean_of_known(values: Floats) -> Floats:
    """The mean (...,) of the values (..., n) that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    n = known.sum(axis=-1)
    return np.asarray(np.where(known, values, 0.0).sum(axis=-1) / np.where(n > 0, n, np.nan))


def _windows(steps: ArrayLike, after: int, window: int) -> tuple[Integers, NDArray[np.intp], Integers]:
    """Positions of the starts (S,), positions of their later checkpoints (S, window), and the lags of these in steps
    (S, window)."""
    at = np.asarray(steps, dtype=np.int64)
    if (fall := np.flatnonzero(np.diff(at) <= 0)).size:
        before, behind = at[fall[0]], at[fall[0] + 1]
        why = "Lags are differences of steps that ascend, each there once."
        raise InputError(f"Step {behind} comes after step {before}.", why, "Sort the checkpoints by step.")
    starts = np.flatnonzero(at >= after)
    starts = starts[starts + window < len(at)]
    later = starts[:, None] + np.arange(1, window + 1)
    return starts, later, at[later] - at[starts, None]
