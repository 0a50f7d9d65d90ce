"""What `klscale predict` shows: how well scores are predicted, and the scores of models that have none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klscale.show.columns import HEAD, Column, estimate, flat, interval, number, record, table
from klscale.show.files import save
from klscale.show.terminal import describe_texts, out, plain, say
from klscale.studies.predicting import Prediction
from klscale.studies.verbs.predict import Predicted

UNIT = "as the score"
FAR = "^"
"""Behind a prediction for a model that is far from all that have a score."""
MOST = 20
"""New models that are printed."""


@dataclass(frozen=True)
class _Of:
    """A row of one `benchmark`."""

    benchmark: str
    row: Any


METHOD = (
    Column("by", "What it is predicted from.", title="predicted from", value=lambda it: it.row.by, words=True),
    estimate(
        "root_mean_squared_error", "Root mean squared error, over models whose group was held out.", UNIT,
        lambda it: it.row.root_mean_squared_error, title="error ± SE", importance=2,
    ),
    estimate(
        "mean_absolute_error", "Mean absolute error.", UNIT, lambda it: it.row.mean_absolute_error,
        title="absolute ± SE", importance=0,
    ),
    estimate("pearson", "Correlation of scores and predictions.", "", lambda it: it.row.pearson, title="r ± SE"),
    estimate("spearman", "Their rank correlation.", "", lambda it: it.row.spearman, title="rank r ± SE"),
    estimate(
        "worse", "The error less that of log-likelihood space.", UNIT, lambda it: it.row.worse,
        title="error less the first",
        cell=lambda it: "" if it.row.worse is None else number(it.row.worse, sign=True),
    ),
)  # fmt: skip
"""Of an `_Of` a `Method`."""

HELD_OUT = (
    Column("model", "A model with a score."),
    Column("group", "The type, or else family, parent or run, that is held out with it."),
    Column("nats", "Its mean log-likelihood of a text.", "nats"),
    Column("score", "Its score.", UNIT),
    estimate("predicted", "The score predicted from models of other groups, whose errors give the interval.", UNIT),
)

NEW = (
    Column("model", "A model without a score.", title="model", value=lambda it: it.row.model, words=True),
    Column("group", "Its group.", title="type", value=lambda it: it.row.group, words=True, importance=0),
    Column("", title="benchmark", cell=lambda it: plain(it.benchmark), words=True),
    estimate(
        "predicted",
        "Its score, with the error and the interval of a new model of a new group.",
        UNIT,
        lambda it: it.row.predicted,
        title="predicted ± SE",
        cell=lambda it: number(it.row.predicted) + (FAR if it.row.is_far else ""),
    ),
    Column("", title="95 % interval", cell=lambda it: interval(it.row.predicted)),
    Column(
        "is_far",
        "Whether it is farther from all models with a score than any of these is from other groups.",
        value=lambda it: it.row.is_far,
    ),
)
"""Of an `_Of` a `NewScore`."""

PREDICTION = (
    Column("benchmark", "What the scores are of."),
    Column("limits", "Limits of the score; predictions stay within. Null: it has none.", UNIT),
    Column("alpha", "Penalty of the regression that the folds chose.", "nats²"),
    Column("n_models", "Models with a score.", "models", lambda it: len(it.held_out)),
    Column("n_groups", "Groups of them.", "groups"),
    Column("is_told", "Whether log-likelihood space predicts it better than the mean score does."),
    estimate("covered", "Share of held-out models within the 95 % interval from the errors of other groups.", "share"),
    Column(
        "methods",
        "Errors and correlations on models whose group was held out; standard errors are over groups.",
        value=lambda it: [_Of(it.benchmark, one) for one in it.methods],
        within=METHOD,
        many=True,
    ),
    Column("held_out", "Each model with a score.", within=HELD_OUT, many=True),
    Column(
        "new",
        "Each model without a score.",
        value=lambda it: [_Of(it.benchmark, one) for one in it.new],
        within=NEW,
        many=True,
    ),
)
"""Of a `Prediction`."""

PREDICTED = (
    *HEAD,
    Column("predictions", "Each score.", within=PREDICTION, many=True),
)

MODEL = (
    Column("benchmark", "What the score is of."),
    Column("model", "The model.", value=lambda it: it.row.model),
    Column("group", "Its type, or else family, parent or run.", value=lambda it: it.row.group),
    Column("score", "Its score; null: it has none.", UNIT, lambda it: getattr(it.row, "score", None)),
    estimate("predicted", "The score predicted from models of other groups, or for a new model.", UNIT,
             lambda it: it.row.predicted),
)  # fmt: skip
"""Of an `_Of` a `HeldOut` or a `NewScore`: a row of the files."""


def predictions_record(found: Predicted) -> dict[str, Any]:
    """All predictions."""
    return record(PREDICTED, found)


def save_predictions(found: Predicted, file: Path) -> None:
    """A row for each model and score (.csv, .parquet), or a picture (.png, .svg, .pdf)."""
    from klscale.show.pictures import predicted_scores

    def rows() -> list[dict[str, Any]]:
        return [flat(MODEL, _Of(one.benchmark, row)) for one in found.predictions for row in (*one.held_out, *one.new)]

    save(file, rows, lambda: predicted_scores(found.predictions))


def print_predictions(found: Predicted) -> None:
    """Errors of each score as a table, with a sentence; then the predictions for models without a score."""
    out.print(describe_texts(found.texts))
    for one in found.predictions:
        title = f"\n{plain(one.benchmark)}: {len(one.held_out):,} models, each predicted without its type"
        out.print(table(METHOD, [_Of(one.benchmark, method) for method in one.methods], title))
        for sentence in _sentences(one):
            say(sentence)
    new = [_Of(one.benchmark, row) for one in found.predictions for row in one.new]
    if not new:
        out.print("\nAll models of the store have a score.")
        return
    out.print(table(NEW, new[:MOST], "\nModels without a score"))
    if len(new) > MOST:
        say(f"{len(new) - MOST:,} more: --json, or --out FILE.csv")
    if any(row.row.is_far for row in new[:MOST]):
        say(f"{FAR} farther from all models with a score than these are from other types: the interval may not cover")


def _sentences(one: Prediction) -> Iterator[str]:
    if not one.is_told:
        yield "Log-likelihoods do not tell this score here: the mean score predicts as well."
    covered = f"{one.covered.value:.0%} ± {one.covered.standard_error:.0%} of the"
    if one.covered.value == 1:
        covered = f"all {len(one.held_out):,}"
    yield (
        f"Error: root mean square, with standard errors over {one.n_groups} types. 95 % intervals covered {covered} "
        "models that were held out."
    )
