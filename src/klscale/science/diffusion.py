"""How squared distances grow along a training run: diffusion exponents (Kishino et al., arXiv 2505.15353).

    D(t0, t) ∝ (t - t0)**c          c = 1 ordinary diffusion, c < 1 subdiffusion, c > 1 superdiffusion

Plain NumPy. `steps` (T,) are those of the checkpoints, ascending. `squared_distance` (..., T, T) holds D between them:
KL in bits per byte for log-likelihoods, the sum over parameters of (W_t - W_t0)**2 for weights; of its rows only
entries to the right of the diagonal are read. All functions work over leading axes, so that one call evaluates a stack
of bootstrap resamples (`bootstrap.resampled_kl`); `bootstrap.estimate_from_resamples` makes intervals of them.

An exponent describes growth over the lags that it was fitted to; it is no proof of a power law. `laws` tells what
other laws predict as well. Windows of neighbouring starts overlap, so that the spread of slopes over starts is no
confidence interval: intervals are over texts, or over seeds.
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
"""Points that a line needs: through two it would fit whatever they are."""

FEWEST_LAGS = 5
"""Later checkpoints that a comparison of laws needs at least: three to fit, two to judge."""

FITTED = 0.6
"""Fraction of the lags that laws are fitted to; the others judge. With half of them, a process that relaxes within
three of ten lags was taken for logarithmic in 36 of 60 simulations; with 0.6, in 9."""


@dataclass(frozen=True, eq=False)
class Fits:
    """The line ln D = intercept + slope x ln(lag) of each start: positions `starts` (S,) among the checkpoints, and
    (..., S) `slope`, `intercept` and `r_squared`, NaN where fewer than three lags could be used."""

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
    """The mean squared distance over starts (..., M) at each of M lags, in steps, with the number of pairs of
    checkpoints behind it; and the line of its logarithm on ln(lag), each value of which is (...,)."""

    lag: Floats
    mean_squared_distance: Floats
    n_pairs: Integers
    exponent: Floats
    intercept: Floats
    r_squared: Floats


def fits(steps: ArrayLike, squared_distance: Floats, *, after: int, window: int = WINDOW) -> Fits:
    """The published rule: for each start t0 >= `after`, the step where warm-up ends, ordinary least squares of
    ln D(t0, t) on ln(t - t0) over the next `window` checkpoints (Kishino et al., arXiv 2505.15353). Starts with fewer
    later checkpoints are left out; there may be none.

    Lags are the true ones, however the checkpoints are spaced. A lag whose D is zero (equal checkpoints, or all of it
    noise) or NaN is left out of the fit. Raises InputError for steps that do not ascend.
    """
    starts, later, lag = _windows(steps, after, window)
    return Fits(starts, *line(np.log(lag), log_distance(squared_distance[..., starts[:, None], later])))


def time_averaged(steps: ArrayLike, squared_distance: Floats, *, after: int, window: int = WINDOW) -> TimeAveraged:
    """The time-averaged mean squared displacement: the mean of D over the pairs of checkpoints that `fits` uses, at
    each lag, and one line of its logarithm on ln(lag).

    With regular spacing each lag is its own. Else lags hardly repeat, and are put together from the shortest up: those
    less than a factor 1 + 1/window longer than the first of a group join it, and the group stands at its mean lag (for
    which ordinary diffusion is exact). Where spacing grows along the run, short lags are of early starts and long lags
    of late ones: if a run slows down, that lowers this exponent, and `fits`, whose starts stand alone, is the one to
    read. A lag at which all D are zero, or one is NaN, is left out of the line. Raises InputError as `fits` does.
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
"""ln of each law but for its level, by the lag in units of the shortest. All grow; each has a constant as a limit."""

_SHAPES = np.linspace(np.log(1e-4), np.log(1e2), 601)
"""ln of the shape parameters that are tried: 100 a decade."""


def laws(steps: ArrayLike, squared_distance: Floats, *, after: int, window: int = WINDOW) -> dict[str, Floats]:
    """How badly each of three laws predicts longer lags from shorter ones: law -> error (...,), which is about the
    relative error of D (0.05: 5 %).

        power         D = A tau**c
        logarithmic   D = a + b ln(tau)
        saturating    D = A (1 - exp(-tau / tau0)), the relaxation to a plateau: linear at first, then constant

    Each has two parameters and never falls (c, b >= 0). Each is fitted to the shorter 60 % of the lags of each start
    that `fits` uses (six of ten), and judged on the longer ones, since laws that agree where they are fitted part
    beyond. One loss does both, for all: the root mean square of ln(predicted / observed), under which no fitted law
    predicts D <= 0. The level (A) is then a mean, and the shape (c, b/a, tau0) is found on a grid, refined on the
    parabola through its best three points.

    The error is the mean over starts; a start with a D that is zero or NaN is left out, and with none left it is NaN.
    Sampling noise is in the error of all three, so compare their differences, resample by resample. Raises InputError
    as `fits` does, and for a window of fewer than five lags.
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
    """ln of the shape (..., S) whose curve (S, lags, shapes) is nearest to what is observed (..., S, lags), whatever
    the level of either."""
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
    """Squared distances without the noise of reading the checkpoints, and never below zero.

    `floor` is the squared distance of two readings of one checkpoint (the same texts in batches of another shape, say).
    Independent noise adds to the squared distance of two checkpoints what it adds to that of two readings: the floor.
    """
    return np.asarray(np.maximum(squared_distance - floor, 0.0))


def fractal_dimension(exponent: ArrayLike) -> Floats:
    """D = 2 / c (...,) of a trajectory with diffusion exponent c (Kishino et al., arXiv 2505.15353): 2 for ordinary
    diffusion, 1 for a straight line. NaN where the exponent is not positive."""
    c = np.asarray(exponent, dtype=np.float64)
    return 2.0 / np.where(c > 0, c, np.nan)


# ------------------------------------------------------------------------------------------------------- least squares


def line(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Slope, intercept and R² (...,) of the least-squares line of `y` (..., n) on `x` (n,) or (..., n), without the
    points at which y is NaN; NaN for fewer than three points. R² is NaN where y is constant."""
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
    """ln D, for `line`: NaN where D is not positive."""
    positive = squared_distance > 0
    return np.asarray(np.log(np.where(positive, squared_distance, np.nan)))


def _mean_of_known(values: Floats) -> Floats:
    """The mean over the last axis of what is not NaN; NaN where nothing is."""
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
