"""Benchmark scores from log-likelihood space: ridge regression, with errors on groups of models that are held out.

Coordinates are log-likelihoods in nats on the texts that all models have, with the text set's clip, double-centred
(arXiv 2502.16173). Models of one type, such as all Llamas, are held out together: a model's score is never predicted
from its relatives. Penalties are chosen in the same way, within the models that are not held out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from klscale.errors import InputError, counted, near_names, printable
from klscale.inputs.references import canonical
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats, Integers
from klscale.science.estimates import Estimate, critical_value, fisher_interval
from klscale.science.moments import double_centre
from klscale.science.ridge import fit_ridge, held_out
from klscale.vectors.vectors import Vectors

FEWEST_MODELS, FEWEST_GROUPS = 10, 3
"""Fewest models with a score, and groups of them, that a prediction is made from."""
SPACE, MEAN_LOG_LIKELIHOOD, MEAN_SCORE = "log-likelihood space", "mean log-likelihood", "mean score"
"""What scores are predicted from: the coordinates of a model, one number of it, or nothing of it."""
RANGES = (1.0, 100.0)
"""Scores that all lie between 0 and one of these are shares, or percentages: predictions stay within."""


@dataclass(frozen=True)
class Method:
    """How well scores are predicted `by` something, on models whose group was held out.

    All estimates are over models, with standard errors over groups. The root mean squared and the mean absolute error
    are in the unit of the score. `pearson` and `spearman` correlate scores and predictions; None where a prediction
    says nothing of the model. `worse` is the root mean squared error less that of log-likelihood space.
    """

    by: str
    root_mean_squared_error: Estimate
    mean_absolute_error: Estimate
    pearson: Estimate | None
    spearman: Estimate | None
    worse: Estimate | None


@dataclass(frozen=True)
class HeldOut:
    """A model with its `score`, and the score `predicted` from models of other groups, whose errors give the standard
    error and the 95 % interval. `nats` is its mean log-likelihood of a text."""

    model: str
    group: str
    nats: float
    score: float
    predicted: Estimate


@dataclass(frozen=True)
class NewScore:
    """A model without a score: the `predicted` one, whose standard error and 95 % interval are those of a new model of
    a new group. `is_far`: the model is farther from all with a score than any of these is from other groups."""

    model: str
    group: str
    predicted: Estimate
    is_far: bool


@dataclass(frozen=True)
class Prediction:
    """Predicted scores of one `benchmark`. `methods`: by log-likelihood space, mean log-likelihood, the mean score.

    `alpha` is the penalty in squared nats that the folds chose. `covered` is the share of held-out models within the
    95 % interval. `limits` are those of the score; None: it has none.
    """

    benchmark: str
    limits: tuple[float, float] | None
    alpha: float
    n_groups: int
    methods: tuple[Method, ...]
    covered: Estimate
    held_out: tuple[HeldOut, ...]
    new: tuple[NewScore, ...]

    @property
    def is_told(self) -> bool:
        """Whether log-likelihood space predicts the score better than the mean score does."""
        space, mean = self.methods[0], self.methods[-1]
        return space.root_mean_squared_error.value < mean.root_mean_squared_error.value


def predict_scores(
    vectors: Vectors, scores: Mapping[str, Mapping[str, float]], *, progress: Progress = SILENT
) -> tuple[Prediction, ...]:
    """Each of the `scores` ({benchmark: {model: score}}) predicted from the coordinates of models, with errors on
    models whose group is held out; and the scores of models that have none. A group is what `groups_of` says.

    A benchmark is left out, with a note, where fewer than `FEWEST_MODELS` models have a score, or fewer than
    `FEWEST_GROUPS` groups, and where all scores are equal. Raises InputError where this leaves none, for models without
    common texts, and for vectors of different conventions.
    """
    vectors.require_one_convention()
    whole = vectors.without_layers()
    rows = {name: row for row, name in enumerate(whole.names)}
    groups = groups_of(whole)
    columns: dict[str, Floats] = {}
    wrong: list[InputError] = []
    for name, known in scores.items():
        y = np.full(len(whole), np.nan)
        for model, number in known.items():
            if (row := rows.get(canonical(model))) is not None and math.isfinite(number):
                y[row] = number
        try:
            _require_enough(name, y, groups, known, whole)
            columns[name] = y
        except InputError as error:
            wrong.append(error)
    if not columns:
        raise wrong[0] if wrong else InputError("no scores are given.", remedy="{benchmark: {model: score}}")
    for reason in wrong:
        progress.note(f"Left out: {printable(reason.what)}")
    L, texts = whole.complete()
    if texts.sum() < 2:
        what = "The models have no two texts in common."
        raise InputError(what, "Coordinates are on the texts that all have.", "`klscale score REF` adds missing texts.")
    space = _Space(whole.names, groups, np.unique(groups, return_inverse=True)[1], L.mean(axis=1), double_centre(L))
    Y = np.stack([*columns.values()], axis=1)
    found: dict[str, Prediction] = {}
    masks, of_mask = np.unique(np.isfinite(Y), axis=1, return_inverse=True)
    for n, has_score in enumerate(masks.T):
        alike = np.flatnonzero(of_mask.ravel() == n)
        made = space.predictions([[*columns][column] for column in alike], Y[:, alike], has_score)
        found |= {one.benchmark: one for one in made}
    return tuple(found[name] for name in columns)


def groups_of(vectors: Vectors) -> tuple[str, ...]:
    """The group of each model: its type or else its family, as it or another model of its run has it; or else those of
    its parent; or else the name of the parent, or of its run."""
    of_run: dict[str, str] = {}
    for known, run in zip(vectors.known, vectors.runs, strict=True):
        if label := known.get("type") or known.get("family"):
            of_run.setdefault(run, str(label))
    of_model = dict(zip(vectors.names, vectors.runs, strict=True))
    found = []
    for known, run in zip(vectors.known, vectors.runs, strict=True):
        parent = str(known.get("parent") or run)
        others = of_run.get(run) or of_run.get(of_model.get(parent, parent)) or parent
        found.append(str(known.get("type") or known.get("family") or others))
    return tuple(found)


def _require_enough(name: str, y: Floats, groups: Sequence[str], known: Mapping[str, float], vectors: Vectors) -> None:
    has = np.isfinite(y)
    if has.sum() < FEWEST_MODELS:
        missing = next((model for model in known if canonical(model) not in vectors.names), None)
        raise InputError(
            f"{name}: {has.sum():,} of {len(vectors):,} models have a score; {FEWEST_MODELS} are needed.",
            "" if missing is None else f"No vector of {missing}. {near_names(missing, vectors.names)}".rstrip(),
            "klscale score REF...  scores texts with more models; `klscale ls` lists those of the store.",
        )
    n_groups = len({group for group, one in zip(groups, has, strict=True) if one})
    if n_groups < FEWEST_GROUPS:
        raise InputError(
            f"{name}: models with a score are of {counted(n_groups, 'type')}; {FEWEST_GROUPS} are needed.",
            "Errors are measured on types that are held out.",
            "More models, or their types: klscale import --attributes, or `type` in a suite file.",
        )
    if np.ptp(y[has]) == 0:
        raise InputError(f"{name}: all {has.sum():,} models have the score {y[has][0]:g}.", remedy="Leave it out.")


@dataclass(frozen=True, eq=False)
class _Space:
    """Models with what predicts their scores: mean log-likelihoods `nats` (K,) of a text, and coordinates `points`
    (K, N) in nats. `codes` (K,) number the groups."""

    names: tuple[str, ...]
    groups: tuple[str, ...]
    codes: Integers
    nats: Floats
    points: Floats

    def predictions(self, names: Sequence[str], Y: Floats, has_score: NDArray[np.bool_]) -> list[Prediction]:
        """The predictions of scores (K, T) that the same models have."""
        known, new = np.flatnonzero(has_score), np.flatnonzero(~has_score)
        y, codes, nats = Y[known], self.codes[known], self.nats[known]
        gram = self.points[[*known, *new]] @ self.points[known].T
        limits = [_limits(column) for column in y.T]
        low, high = np.array([(-np.inf, np.inf) if one is None else one for one in limits]).T
        ways: dict[str, Callable[[Integers, Integers], Floats]] = {
            SPACE: lambda train, test: fit_ridge(gram, y, codes, train, test)[0],
            MEAN_LOG_LIKELIHOOD: lambda train, test: _line(nats, y, train, test),
            MEAN_SCORE: lambda train, test: np.broadcast_to(y[train].mean(axis=0), (len(test), y.shape[1])),
        }
        without = {by: np.clip(held_out(way, codes, y.shape[1]), low, high) for by, way in ways.items()}
        predicted, alphas = fit_ridge(gram, y, codes, np.arange(len(known)), np.arange(len(known), len(gram)))
        is_far = self._far(gram, known, new)
        made = []
        for t, name in enumerate(names):
            errors = {by: values[:, t] - y[:, t] for by, values in without.items()}
            methods = tuple(_method(by, without[by][:, t], y[:, t], errors, codes) for by in ways)
            n_groups, ends = len(np.unique(codes)), (low[t], high[t])
            kept = []
            for n, k in enumerate(known):
                of_others = errors[SPACE][codes != codes[n]]
                value = _within(without[SPACE][n, t], of_others, n_groups - 1, ends, self.points.shape[1])
                kept.append(HeldOut(self.names[k], self.groups[k], float(self.nats[k]), float(Y[k, t]), value))
            lacking = []
            for n, k in enumerate(new):
                value = _within(predicted[n, t], errors[SPACE], n_groups, ends, self.points.shape[1])
                lacking.append(NewScore(self.names[k], self.groups[k], value, bool(is_far[n])))
            covered = _covered(kept, codes)
            made.append(
                Prediction(name, limits[t], float(alphas[t]), n_groups, methods, covered, tuple(kept), tuple(lacking))
            )
        return made

    def _far(self, gram: Floats, known: Integers, new: Integers) -> NDArray[np.bool_]:
        """Whether each new model is farther from all known ones than any of these is from those of other groups. `gram`
        holds the products of the known and then the new models with the known ones."""
        squares = np.einsum("kn,kn->k", self.points, self.points)
        kept = squares[known, None] + squares[known] - 2 * gram[: len(known)]
        kept[self.codes[known, None] == self.codes[known]] = np.inf
        nearest = (squares[new, None] + squares[known] - 2 * gram[len(known) :]).min(axis=1)
        return np.asarray(nearest > kept.min(axis=1).max())


def _limits(y: Floats) -> tuple[float, float] | None:
    """0 and the smallest of `RANGES` that the scores lie between; None where they do not."""
    return next(((0.0, top) for top in RANGES if y.min() >= 0 and y.max() <= top), None)


def _line(x: Floats, y: Floats, train: Integers, test: Integers) -> Floats:
    """Scores (M, T) of the `test` rows by least squares on one number x (K,)."""
    d = x[train] - x[train].mean()
    slope = d @ (y[train] - y[train].mean(axis=0)) / max(float(d @ d), np.finfo(np.float64).tiny)
    return np.asarray(y[train].mean(axis=0) + np.outer(x[test] - x[train].mean(), slope))


def _within(value: float, errors: Floats, n_groups: int, limits: tuple[float, float], n_texts: int) -> Estimate:
    """A prediction with the root mean square of these errors as its own, and an interval by Student's t with one degree
    of freedom less than there are groups."""
    error = float(np.sqrt((errors**2).mean()))
    half = float(critical_value(n_groups)) * error
    value, low, high = np.clip([value, value - half, value + half], *limits).tolist()
    return Estimate(value, error, (low, high), n_texts, "")


def _covered(held_out: Sequence[HeldOut], codes: Integers) -> Estimate:
    """The share of models whose score is in its interval, with an error over groups."""
    inside = np.array([one.predicted.interval[0] <= one.score <= one.predicted.interval[1] for one in held_out])
    over = _over_groups(lambda rows: float(inside[rows].mean()), codes)
    return Estimate.normal(*over, 0, n_documents=len(np.unique(codes)), unit="")


def _method(by: str, predicted: Floats, y: Floats, errors: Mapping[str, Floats], codes: Integers) -> Method:
    n_groups = len(np.unique(codes))

    def root(error: Floats) -> Callable[[Integers], float]:
        return lambda rows: float(np.sqrt((error[rows] ** 2).mean()))

    def positive(statistic: Callable[[Integers], float]) -> Estimate:
        return Estimate.positive(*_over_groups(statistic, codes), 0, n_documents=n_groups, unit="")

    def correlated(of: Callable[[Floats], Floats]) -> Estimate | None:
        if by == MEAN_SCORE:
            return None
        value, error = _over_groups(lambda rows: _correlation(of(predicted[rows]), of(y[rows])), codes)
        if math.isnan(value) or math.isnan(error):
            return None
        return Estimate(value, error, fisher_interval(value, error, n_groups), 0, "")

    own, space = root(errors[by]), root(errors[SPACE])
    worse = None
    if by != SPACE:
        difference = _over_groups(lambda rows: own(rows) - space(rows), codes)
        worse = Estimate.normal(*difference, 0, n_documents=n_groups, unit="")
    return Method(
        by,
        positive(own),
        positive(lambda rows: float(np.abs(errors[by][rows]).mean())),
        correlated(np.asarray),
        correlated(scipy.stats.rankdata),
        worse,
    )


def _correlation(x: Floats, y: Floats) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def _over_groups(statistic: Callable[[Integers], float], codes: Integers) -> tuple[float, float]:
    """A statistic of rows, and its standard error by the jackknife over groups."""
    rows = np.arange(len(codes))
    without = np.array([statistic(rows[codes != group]) for group in np.unique(codes)])
    G = len(without)
    return statistic(rows), float(np.sqrt((G - 1) / G * ((without - without.mean()) ** 2).sum()))
