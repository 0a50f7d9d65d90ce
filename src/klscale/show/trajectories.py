"""What `klscale trajectory` shows: each run step by step, then exponents, laws, stabilisation and shape of all runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from klscale.inputs.texts import TextSet
from klscale.science import diffusion
from klscale.science.estimates import Estimate
from klscale.science.kl import KL
from klscale.show import cautions, files, sentences
from klscale.show.cautions import BY_KEY, Around, Measured
from klscale.show.columns import (
    ESTIMATE,
    HEAD,
    INTERVAL,
    Column,
    estimate,
    flat,
    interval,
    number,
    record,
    table,
    unit,
    within,
)
from klscale.show.pairs import KL_COLUMNS, kl, print_units
from klscale.show.terminal import describe_texts, out, plain
from klscale.studies.directional import Directional
from klscale.studies.trajectories import Checkpoint, Exponent, Motion, Seeds, Shape, Trajectory

ROWS, FEW_ROWS = 40, 8
"""Largest number of a run's checkpoints in the terminal, with all tables and in short; of more, some are left out."""
NO_WEIGHTS = "Weights were not compared: the checkpoints' files are not here."
NO_THRESHOLD = "No threshold of stabilisation: no two seeds are measured on these texts. Give one: --threshold X"
SQUARED = "squared distance"
PROBABILITY = "probability_that_c_q_is_below_c_w"


@dataclass(frozen=True)
class _Row:
    """A checkpoint of a run, with its KLs."""

    run: str
    checkpoint: Checkpoint
    from_previous: Measured | None
    from_first: Measured | None
    from_last: Measured | None


def rows(one: Trajectory) -> list[_Row]:
    around, names = Around(one.run.vectors), one.run.names

    def measured(name: str, other: str, found: KL | None) -> Measured | None:
        return None if found is None else around.pair(name, other)

    return [
        _Row(
            one.run.name,
            row,
            measured(row.ref, names[t - 1], row.kl_from_previous),
            measured(row.ref, names[0], row.kl_from_first),
            measured(row.ref, names[-1], row.kl_from_last),
        )
        for t, row in enumerate(one.checkpoints)
    ]


def _weights(key: str, meaning: str, title: str = "") -> Column:
    """The column of a squared distance of weights; `?` where weights were not compared."""

    def cell(row: _Row) -> str:
        value = getattr(row.checkpoint, key)
        return "" if value is None else "?" if math.isnan(value) else f"{value:.4g}"

    return Column(key, meaning, SQUARED, lambda it: getattr(it.checkpoint, key), title, cell)


RUN = Column("run", "Name of the run.", title="run", cell=lambda it: plain(it.run), words=True)
CHECKPOINT = (
    Column("model", "The checkpoint.", value=lambda it: it.checkpoint.ref),
    Column(
        "step",
        "Its training step.",
        "steps",
        lambda it: it.checkpoint.step,
        "step",
        lambda it: f"{it.checkpoint.step:,}",
    ),
    estimate(
        "bits_per_byte",
        "How well it predicts the texts.",
        value=lambda it: it.checkpoint.bits_per_byte,
        title="bits/byte",
    ),
    kl("kl_from_previous", "KL from the checkpoint before.", lambda it: it.from_previous, title="KL from previous"),
    kl("kl_from_first", "KL from the first checkpoint.", lambda it: it.from_first, title="from first", importance=0),
    kl("kl_from_last", "KL from the last checkpoint.", lambda it: it.from_last, title="from last"),
    _weights("weights_from_previous", "Weight distance from the checkpoint before.", "weights from previous"),
    _weights("weights_from_first", "Weight distance from the first checkpoint.", "from first"),
    _weights("weights_from_last", "Weight distance from the last checkpoint."),
)
"""Of a `_Row`."""


def _exponent(it: Exponent) -> str:
    heavy = BY_KEY["heavy_tails"]
    return number(it.value) + (f" {heavy.mark}" if it.heavy_tails else "")


def _slopes(it: Exponent) -> str:
    known = it.slopes[~np.isnan(it.slopes)]
    return f"{known.min():.2f} to {known.max():.2f} ({len(known)})"


AVERAGES = (
    Column("lag", "Lags.", "steps"),
    Column("mean_squared_distance", "Mean squared distance over starts at each lag.", "as the space"),
    Column("n_pairs", "Pairs of checkpoints behind each.", "pairs"),
    Column("exponent", "Slope of ln(mean squared distance) on ln(lag)."),
    Column("intercept", "Intercept of that line."),
    Column("r_squared", "R² of that line."),
)
EXPONENT = (
    estimate(
        "c",
        "Diffusion exponent: squared distance grows as lag^c; mean slope over starts.",
        "",
        lambda it: it.value,
        title="exponent c",
        cell=_exponent,
    ),
    Column("", title="95 %", cell=lambda it: interval(it.value)),
    estimate("time_averaged", "Slope of the mean over starts.", "", title="time-averaged", importance=0),
    Column(
        "lags",
        "Shortest and longest lag of the fits.",
        "steps",
        title="lags, steps",
        cell=lambda it: f"{it.lags[0]:,} to {it.lags[1]:,}",
    ),
    Column("starts", "Steps that the fits start from.", "steps"),
    Column("slopes", "The slope from each start.", title="slopes over starts (how many)", cell=_slopes, importance=0),
    Column(
        "r_squared",
        "R² of each fit.",
        title="R²",
        cell=lambda it: f"{it.r_squared[~np.isnan(it.r_squared)].mean():.2f}",
    ),
    estimate("dimension", "2 / c.", "", title="D = 2/c"),
    Column("kurtosis", "Median kurtosis of the log-likelihood differences; null for weights."),
    Column("averages", "The mean over starts, lag by lag.", within=AVERAGES),
    Column(
        "law_errors",
        "By law, the root mean square error of ln(squared distance) at the longer lags.",
        within=ESTIMATE,
        many=True,
    ),
    Column("best_law", "By law, the share of samples of the texts in which it is the best.", "share"),
)
STABILISATION = (
    Column("thresholds", "Thresholds of the curve.", "as the space"),
    Column("steps", "The settling step by threshold.", "steps"),
    Column("low", "Lower ends of its 95 % intervals over texts; null for weights.", "steps"),
    Column("high", "Upper ends of them.", "steps"),
    Column("total", "Squared distance from the first checkpoint to the last.", "as the space"),
    Column("threshold", "The threshold asked for; null: none.", "as the space"),
    Column("step", f"{sentences.SETTLED.capitalize()}; null without a threshold.", "steps"),
    *INTERVAL,
)
NULL = (
    Column("share", "Mean share of variance on each principal component.", "share"),
    Column("winding", "Mean winding.", "turns"),
    Column("winding_range", "Central 95 % of it.", "turns"),
    Column("path", "One draw of the path in the plane of the first two components."),
)
SHAPE = (
    Column("steps", "Steps of the path, past warm-up.", "steps"),
    Column("pca", "Its points by principal components.", "root of the space"),
    Column("tsne", "Its points by t-SNE in the plane."),
    Column("tsne3", "Its points by t-SNE in space."),
    Column("share", "Share of the variance on each principal component.", "share"),
    Column("walk_share", "The same for a long random walk, 6 / (π²k²).", "share"),
    Column("speed", "Distance from the checkpoint before, by the steps between.", "root of the space a step"),
    Column("turning", "Angles between displacements; 90: a random walk.", "degrees"),
    estimate("winding", "Turns about the mean point in the plane of the first two components.", "turns"),
    Column("nulls", "By name, the same for a path without direction.", within=NULL, many=True),
    Column("spiral", "Whether the path winds more than 97.5 % of both nulls."),
)
MOTION = (
    Column("space", "`log-likelihood` or `weights`."),
    Column("unit", "Unit of squared distances in this space."),
    Column("squared_distance", "Between all checkpoints.", "as the space"),
    Column("exponent", "Growth of distance with lag; null for too few checkpoints.", within=EXPONENT),
    Column("stabilisation", "The step from which the run has settled, by threshold.", within=STABILISATION),
    Column("shape", "The path past warm-up; null for too few checkpoints.", within=SHAPE),
)
TRAJECTORY = (
    Column("run", "Name of the run.", value=lambda it: it.run.name),
    Column("steps", "Its steps.", "steps", lambda it: it.run.steps),
    Column("warmup", "Where warm-up ends.", "steps", lambda it: it.run.warmup),
    Column("warmup_known", "Whether that is known; else it is one spacing.", value=lambda it: it.run.warmup_known),
    Column("notes", "Cautions about the run.", value=lambda it: it.run.notes),
    Column("checkpoints", "Each checkpoint.", value=rows, within=CHECKPOINT, many=True),
    Column("n_parameters", "Parameters whose distances were summed; null: weights were not compared.", "parameters"),
    Column("log_likelihood", "The run in log-likelihood space.", value=lambda it: it.behaviour, within=MOTION),
    Column("weights", "The run in weight space; null where weights were not compared.", within=MOTION),
    estimate("alpha", "c_q / c_w, the exponent in log-likelihoods over that in weights.", ""),
    Column(PROBABILITY, "Probability that c_q is below c_w.", "probability", lambda it: it.probability),
    kl(
        "noise_floor",
        "Run-to-run noise: KL between a run and a repeat run of the last checkpoint; null where not measured.",
        lambda it: None if it.noise_floor is None else Measured.of_whole_texts(it.noise_floor, it.noise_floor.n_texts),
    ),
    Column("noise_subtracted", "Whether it was subtracted from squared distances."),
)
SEEDS = (
    Column("runs", "Runs that differ only in their seed."),
    estimate("c_q", "Mean exponent in log-likelihoods; error over texts.", ""),
    estimate("c_q_over_seeds", "The same; error over seeds.", ""),
    estimate("c_w", "Mean exponent in weights; error over seeds.", ""),
    estimate("alpha", "c_q / c_w; error over seeds.", ""),
    Column(PROBABILITY, "Probability that c_q is below c_w.", "probability", lambda it: it.probability),
)


def _slope_range(it: Directional) -> str:
    slopes = [slope.value for slope in it.local_slopes if not math.isnan(slope.value)]
    return f"{min(slopes):.2f} to {max(slopes):.2f}" if slopes else ""


def _floor(it: Directional) -> Measured:
    return Measured.of_whole_texts(it.noise_floor, it.noise_floor.n_texts)


DIRECTIONAL = (
    Column("model", "The checkpoint.", "", lambda it: it.ref, "checkpoint", lambda it: plain(it.ref), words=True),
    Column(
        "towards",
        "The checkpoint that it is moved towards; null: a random direction.",
        title="direction",
        cell=lambda it: "random" if it.towards is None else f"to {plain(it.towards)}",
        words=True,
    ),
    estimate("exponent", "a, the slope of ln √KL on ln ε; 1: a smooth map.", "", title="exponent a"),
    Column("", title="95 %", cell=lambda it: interval(it.exponent)),
    Column(
        "r_squared",
        "R² of the fit.",
        title="R²",
        cell=lambda it: "" if math.isnan(it.r_squared) else f"{it.r_squared:.3f}",
    ),
    Column(
        "local_slopes",
        "Slopes between neighbouring scales.",
        title="local slopes",
        cell=_slope_range,
        within=ESTIMATE,
        many=True,
    ),
    kl("noise_floor", "KL between two runs of the checkpoint.", _floor, title="run-to-run noise, bits/byte"),
    Column("scales", "The scales ε of the direction."),
    Column(
        "kl_at_scales",
        "KL between the checkpoint and itself moved by each scale.",
        value=lambda it: [Measured.of_whole_texts(one, one.n_texts, ("", ""), it.noise_floor.value) for one in it.kl],
        within=KL_COLUMNS,
        many=True,
    ),
    Column("lost", "Share of the norm of each step that rounding to float32 loses.", "share"),
    Column("used", "Which scales are fitted."),
)
TRAJECTORIES = (
    *HEAD,
    Column("n_texts", "Texts of the set.", "texts", lambda it: len(it.texts)),
    unit(),
    Column("unit_of_weights", "Unit of weight distances.", value=lambda _: "squared distance of the parameters"),
    Column("threshold_source", "The source of the threshold of stabilisation."),
    Column("runs", "Each run.", within=TRAJECTORY, many=True),
    Column("over_seeds", "Runs that differ only in their seed, together.", within=SEEDS, many=True),
    Column("directional", "Directional exponents, with --directional.", within=DIRECTIONAL, many=True),
)


def trajectories_record(
    found: Sequence[Trajectory],
    seeds: Sequence[Seeds],
    moved: Sequence[Directional],
    texts: TextSet,
    threshold_source: str,
) -> dict[str, Any]:
    """The record of all results, with squared distances between all checkpoints."""
    return record(
        TRAJECTORIES,
        SimpleNamespace(
            texts=texts, threshold_source=threshold_source, runs=found, over_seeds=seeds, directional=moved
        ),
    )


def save_trajectories(found: Sequence[Trajectory], file: Path) -> None:
    """Write a table with a row for each checkpoint, or the picture of all runs, by the file's ending."""
    from klscale.show.pictures import training_trajectories

    def checkpoints() -> list[dict[str, Any]]:
        return [flat((RUN, *CHECKPOINT), row) for one in found for row in rows(one)]

    files.save(file, checkpoints, lambda: training_trajectories(found))


# ---------------------------------------------------------------------------------------------------- for a person


def print_trajectories(
    found: Sequence[Trajectory],
    seeds: Sequence[Seeds],
    moved: Sequence[Directional],
    texts: TextSet,
    threshold_source: str,
    *,
    whole: bool = False,
) -> None:
    """A few checkpoints of each run, its exponents and its stabilisation. `whole`: all checkpoints that a table holds,
    then tables of exponents, laws, stabilisation and shape."""
    out.print(describe_texts(texts))
    shown = [row for one in found for row in _print_checkpoints(one, ROWS if whole else FEW_ROWS)]
    weights = "; weights: squared distance, the sum over all parameters" if any(one.weights for one in found) else ""
    kls = [kl for row in shown for kl in (row.from_previous, row.from_first, row.from_last) if kl is not None]
    print_units(kls, weights)
    cautions.print_footnotes(texts, kls)
    if whole:
        print_motion(found, seeds, moved, threshold_source)
    else:
        _print_summary(found, seeds, moved, threshold_source)


def _print_summary(
    found: Sequence[Trajectory], seeds: Sequence[Seeds], moved: Sequence[Directional], threshold_source: str
) -> None:
    """Exponents and stabilisation in sentences."""
    out.print()
    for sentence in sentences.of_trajectories(found, seeds, threshold_source, plain):
        out.print(sentence)
    moving = [one for one in found if one.behaviour.exponent]
    pooled = {name for group in seeds for name in group.runs}
    for row in alphas([one for one in moving if one.run.name not in pooled], ()):
        out.print(f"{plain(row.run)}: alpha = c_q / c_w is {row.alpha} (± over texts).")
    if not moving:
        _print_no_exponent(found)
    elif not any(one.weights for one in moving):
        out.print(NO_WEIGHTS, style="dim")
    if any(one.behaviour.exponent and one.behaviour.exponent.heavy_tails for one in moving):
        out.print(BY_KEY["heavy_tails"].note, style="yellow")
    if _lacks_threshold(found):
        out.print(NO_THRESHOLD, style="dim")
    _print_directions(moved)
    _print_notes(found)
    more = ["more checkpoints"] if any(len(one.run) > FEW_ROWS for one in found) else []
    more += ["tables of exponents, laws, stabilisation and shape"] if moving or not _lacks_threshold(found) else []
    if more:
        out.print(f"{', and '.join(more).capitalize()}: --all", style="dim")


def print_motion(
    found: Sequence[Trajectory], seeds: Sequence[Seeds], moved: Sequence[Directional], threshold_source: str
) -> None:
    """Exponents, laws, stabilisation and shape of all runs."""
    _print_exponents(found, seeds)
    _print_directions(moved)
    _print_stabilisation(found, threshold_source)
    _print_shapes(found)
    _print_notes(found)


def _print_notes(found: Sequence[Trajectory]) -> None:
    for one in found:
        for note in one.run.notes:
            out.print(f"{plain(one.run.name)}: {plain(note)}", style="yellow")


def _print_checkpoints(one: Trajectory, n_rows: int) -> list[_Row]:
    """Print at most `n_rows` checkpoints of a run. Returns the rows that are shown."""
    run = one.run
    known = "" if run.warmup_known else " (taken as one checkpoint spacing; --warmup STEP sets it)"
    out.print(
        f"\n[bold]{plain(run.name)}[/bold]: {len(run)} checkpoints, steps {run.steps[0]:,} to {run.steps[-1]:,}; "
        f"warm-up until step {run.warmup:,}{known}"
    )
    kept = set(np.linspace(0, len(run) - 1, min(len(run), n_rows)).round().astype(int).tolist())
    shown = [row for t, row in enumerate(rows(one)) if t in kept]
    columns = [column for column in CHECKPOINT if one.weights is not None or not column.key.startswith("weights")]
    out.print(table(columns, shown))
    if len(kept) < len(run):
        out.print(f"{len(kept)} of {len(run)} checkpoints are shown; all: --json, or --out FILE.csv", style="dim")
    return shown


@dataclass(frozen=True)
class Moving:
    """A run in one space."""

    run: str
    motion: Motion

    @property
    def exponent(self) -> Exponent:
        assert self.motion.exponent is not None
        return self.motion.exponent

    @property
    def shape(self) -> Shape:
        assert self.motion.shape is not None
        return self.motion.shape


SPACE = Column("space", "`log-likelihood` or `weights`.", "", lambda it: it.motion.space, "space", words=True)


def in_both_spaces(found: Sequence[Trajectory]) -> list[Moving]:
    """Each run in each space where it has an exponent."""
    return [Moving(one.run.name, motion) for one in found for motion in one.motions if motion.exponent is not None]


def _print_no_exponent(found: Sequence[Trajectory]) -> None:
    fewest = diffusion.FEWEST_LAGS + 1
    enough = any(len(one.run) >= fewest for one in found)  # with an earlier end of warm-up
    more = "Save more of them, or set where warm-up ends: --warmup STEP" if enough else "Save more of them."
    out.print(f"No exponent: a fit needs {fewest} checkpoints past warm-up. {more}", style="yellow")


def _print_exponents(found: Sequence[Trajectory], seeds: Sequence[Seeds]) -> None:
    moving = [one for one in found if one.behaviour.exponent]
    if not moving:
        out.print()
        _print_no_exponent(found)
        return
    in_spaces = in_both_spaces(moving)
    columns = (RUN, SPACE, *within(EXPONENT, lambda it: it.exponent))
    out.print(table(columns, in_spaces, "\nDiffusion exponents: squared distance grows as lag^c"))
    windows = sorted({it.exponent.window for it in in_spaces})
    over = " or ".join(map(str, windows)) + (
        f" (published: {diffusion.WINDOW})" if windows[0] < diffusion.WINDOW else ""
    )
    out.print(
        f"c: mean slope over the starts past warm-up, each over the next {over} checkpoints. ± and 95 %: over texts; "
        "weights have none within one run. The spread of slopes over starts is no confidence interval: their windows "
        "overlap.",
        style="dim",
    )
    if any(one.behaviour.exponent and one.behaviour.exponent.heavy_tails for one in moving):
        out.print(BY_KEY["heavy_tails"].note, style="yellow")
    _print_laws(in_spaces)
    _print_alpha(moving, seeds)
    for one in moving:
        if one.noise_floor is not None:
            taken = "subtracted" if one.noise_subtracted else "--subtract-noise subtracts it"
            out.print(
                f"{plain(one.run.name)}: run-to-run noise is KL {number(one.noise_floor)} bits/byte (a repeat run of "
                f"its last checkpoint, in batches of another shape and order; {taken}).",
                style="dim",
            )


@dataclass(frozen=True)
class _Alpha:
    """The exponents in both spaces, of a run or of several seeds."""

    run: str
    c_q: Estimate
    c_w: str
    alpha: Estimate
    probability: float | None


ALPHA = (
    Column("", title="runs", cell=lambda it: plain(it.run), words=True),
    Column("", title="c_q (log-likelihood)", cell=lambda it: number(it.c_q)),
    Column("", title="c_w (weights)", cell=lambda it: it.c_w),
    Column("", title="alpha = c_q / c_w", cell=lambda it: number(it.alpha)),
    Column("", title="probability that c_q < c_w", cell=lambda it: _probability(it.probability)),
)


def alphas(moving: Sequence[Trajectory], seeds: Sequence[Seeds]) -> list[_Alpha]:
    """The exponents of each run whose weights were compared, and of several seeds together."""
    found = []
    for one in moving:
        if one.alpha and one.weights and one.weights.exponent and one.behaviour.exponent:
            c_q, c_w = one.behaviour.exponent.value, one.weights.exponent.value
            found.append(_Alpha(one.run.name, c_q, f"{c_w.value:.3g}", one.alpha, one.probability))
    for group in seeds:
        name = (
            f"{len(group.runs)} seeds: {', '.join(group.runs)}" if len(seeds) > 1 else f"these {len(group.runs)} seeds"
        )
        found.append(_Alpha(name, group.c_q, number(group.c_w), group.alpha, group.probability))
    return found


def _print_alpha(moving: Sequence[Trajectory], seeds: Sequence[Seeds]) -> None:
    rows = alphas(moving, seeds)
    if rows:
        out.print(table(ALPHA, rows, "\nLog-likelihood space against weight space"))
        over = " For several seeds, ± of c_w and alpha is over seeds, that of c_q over texts." if seeds else ""
        out.print(
            f"For one run, ± is over texts, with the c_w of this run: it does not include the seed.{over}", style="dim"
        )
        for group in seeds:
            low, high = group.c_w.interval
            alpha_low, alpha_high = group.alpha.interval
            out.print(
                f"95 % over {len(group.runs)} seeds: c_w {low:.3g} to {high:.3g}, alpha {alpha_low:.3g} to "
                f"{alpha_high:.3g}; c_q over seeds {number(group.c_q_over_seeds)}.",
                style="dim",
            )
    elif not any(one.weights for one in moving):
        out.print(NO_WEIGHTS, style="dim")


def _probability(value: float | None) -> str:
    """A probability as a cell; within 0.001 of 0 or 1 only as a bound."""
    return "" if value is None else "> 0.999" if value > 0.999 else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _print_directions(moved: Sequence[Directional]) -> None:
    if not moved:
        return
    out.print(table(DIRECTIONAL, moved, "\nDirectional exponent: ‖f(W + εδ) - f(W)‖ grows as ε^a"))
    fitted = [float(scale) for one in moved for scale in one.scales[one.used]]
    between = f"ε from {min(fitted):.2g} to {max(fitted):.2g}" if fitted else "no ε: KL does not rise above the noise"
    out.print(
        f"Fitted over {between}; ε = 1 is the whole step, or 1 % of each tensor's norm. a is 1 where the map from "
        "weights to log-likelihoods is smooth, however small or large alpha is along the run.",
        style="dim",
    )


def _print_laws(rows: Sequence[Moving]) -> None:
    def error(law: str) -> Column:
        return Column("", title=law, cell=lambda it: number(it.exponent.law_errors[law]))

    def best(it: Moving) -> str:
        exponent = it.exponent
        known = {law: error.value for law, error in exponent.law_errors.items() if not math.isnan(error.value)}
        name = min(known, key=known.__getitem__, default="")
        return name + (f" (in {exponent.best_law[name]:.0%} of samples)" if name and exponent.best_law else "")

    laws = map(error, rows[0].exponent.law_errors)
    columns = (RUN, SPACE, *laws, Column("", title="best", cell=best, words=True, importance=2))
    out.print(table(columns, rows, "\nIs it a power law? Error in predicting longer lags from the shorter 60 %"))
    out.print(
        "Root mean square of ln(predicted / observed), mean over starts; samples are bootstrap samples of the texts. "
        "An exponent describes the growth over these lags, even where another law is the best.",
        style="dim",
    )


SETTLED = (
    Column("", title="run", cell=lambda it: plain(it.run.name), words=True),
    Column("", title="settled from step", cell=lambda it: _settled(it)),
    Column(
        "", title="95 % over texts", cell=lambda it: "{:,.0f} to {:,.0f}".format(*it.behaviour.stabilisation.interval)
    ),
    Column("", title="weights from step", cell=lambda it: _weights_from(it)),
    Column("", title="first to last", cell=lambda it: _of_total(it)),
)


def _settled(one: Trajectory) -> str:
    step = one.behaviour.stabilisation.step if one.behaviour.stabilisation else None
    ends = {one.run.steps[0]: " (its first)", one.run.steps[-1]: " (only the last)"}
    return f"{step:,}{ends.get(step, '')}"


def _weights_from(one: Trajectory) -> str:
    step = one.weights.stabilisation.step if one.weights and one.weights.stabilisation else None
    return "" if step is None else f"{step:,}"


def _of_total(one: Trajectory) -> str:
    curve = one.behaviour.stabilisation
    return f"{curve.threshold / curve.total:.2%}" if curve and curve.threshold is not None and curve.total > 0 else ""


def _lacks_threshold(found: Sequence[Trajectory]) -> bool:
    return all(one.behaviour.stabilisation is None or one.behaviour.stabilisation.threshold is None for one in found)


def _print_stabilisation(found: Sequence[Trajectory], source: str) -> None:
    if _lacks_threshold(found):
        out.print(f"\n{NO_THRESHOLD}", style="dim")
        return
    rows = [one for one in found if sentences.has_settled(one.behaviour.stabilisation)]
    levels = [one.behaviour.stabilisation.threshold for one in rows if one.behaviour.stabilisation]
    out.print(table(SETTLED, rows, "\nStabilisation"))
    out.print(
        f"Settled: {sentences.SETTLED}. "
        f"Threshold: {levels[-1] if levels else 0.0:.3g} bits/byte ({plain(source)}). Weights: the same fraction "
        f"('first to last') of the squared distance from the first checkpoint to the last.",
        style="dim",
    )


def _print_shapes(found: Sequence[Trajectory]) -> None:
    rows = [Moving(one.run.name, motion) for one in found for motion in one.motions if motion.shape is not None]
    if not rows:
        return
    nulls = list(rows[0].shape.nulls)

    def share(null: str) -> Column:
        return Column("", title=null, cell=lambda it: _shares(it.shape.nulls[null].share), importance=0)

    def winding(null: str) -> Column:
        span = "{:.2f} to {:.2f}"
        return Column("", title=null, cell=lambda it: span.format(*it.shape.nulls[null].winding_range), importance=0)

    columns = (
        RUN,
        SPACE,
        Column("", title="variance on PC1, PC2, PC3", cell=lambda it: _shares(it.shape.share)),
        *map(share, nulls),
        Column("", title="turning angle", cell=lambda it: f"{np.median(it.shape.turning):.0f}°"),
        Column("", title="winding, turns", cell=lambda it: number(it.shape.winding)),
        *map(winding, nulls),
        Column(
            "",
            title="spiral?",
            cell=lambda it: "beyond both nulls" if it.shape.spiral else "no",
            words=True,
            importance=2,
        ),
    )
    out.print(table(columns, rows, "\nShape of the path past warm-up, with two nulls"))
    out.print(
        f"A long random walk in many dimensions has {_shares(rows[0].shape.walk_share)} (6 / (π²k²)) and winds 0.65 "
        "turns. A spiral winds more than 97.5 % of both nulls. Turning angle: the median; 90° is a random walk, above "
        "90° the path steps back.",
        style="dim",
    )


def _shares(share: Any) -> str:
    return ", ".join(f"{value:.0%}" for value in share[:3])
