"""What `klscale trajectory` prints: each run step by step, then what all of them say together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.science import diffusion
from klscale.science.estimates import Estimate, format_estimate
from klscale.science.kl import KL
from klscale.show.cautions import HEAVY, OUT_OF_RANGE, UNCLIPPED
from klscale.show.tables import (
    describe_texts,
    marks,
    number,
    out,
    plain,
    print_notes,
    save_as,
    table,
)
from klscale.studies.directional import Directional
from klscale.studies.trajectories import Checkpoint, Motion, Seeds, Trajectory

ROWS = 40
"""Checkpoints of a run beyond which a table for a person leaves some out."""


def trajectories_record(
    found: Sequence[Trajectory],
    seeds: Sequence[Seeds],
    moved: Sequence[Directional],
    texts: TextSet,
    threshold_source: str,
) -> dict[str, Any]:
    """Everything that was measured, for a machine: arrays as lists, squared distances between all checkpoints too."""
    return {
        "texts": texts.name,
        "text_set": texts.id,
        "n_texts": len(texts),
        "clip": texts.clip,
        "unit": "bits/byte",
        "unit_of_weights": "squared distance of the parameters",
        "threshold_source": threshold_source,
        "runs": [
            {
                "run": one.run.name,
                "steps": one.run.steps.tolist(),
                "warmup": one.run.warmup,
                "warmup_known": one.run.warmup_known,
                "notes": list(one.run.notes),
                "checkpoints": [_plain(row) for row in one.checkpoints],
                "n_parameters": one.n_parameters,
                "behaviour": _plain(one.behaviour),
                "weights": _plain(one.weights),
                "alpha": _plain(one.alpha),
                "probability_that_c_q_is_below_c_w": one.probability,
                "noise_floor": _plain(one.noise_floor),
                "noise_subtracted": one.noise_subtracted,
            }
            for one in found
        ],
        "over_seeds": [asdict(row) for row in seeds],
        "directional": [_plain(one) for one in moved],
    }


def _plain(value: Any) -> Any:
    """A result as dictionaries and lists; what is not shown in print (bootstrap samples) is left out."""
    if is_dataclass(value) and not isinstance(value, ModelRef):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value) if entry.repr}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value) if isinstance(value, ModelRef) else value


def save_trajectories(found: Sequence[Trajectory], file: Path) -> None:
    """A row a checkpoint as a table, or the picture of all runs; by the file's ending."""
    from klscale.show.pictures import training_trajectories

    def columns() -> dict[str, Any]:
        rows = [_flat(one.run.name, row) for one in found for row in one.checkpoints]
        return {name: [row[name] for row in rows] for name in rows[0]}

    save_as(file, columns, lambda: training_trajectories(found))


def _flat(run: str, row: Checkpoint) -> dict[str, Any]:
    estimates: dict[str, KL | Estimate | None] = {
        "bits_per_byte": row.bits_per_byte,
        "kl_from_first": row.kl_from_first,
        "kl_from_previous": row.kl_from_previous,
        "kl_from_last": row.kl_from_last,
    }
    record: dict[str, Any] = {"run": run, "model": row.ref, "step": row.step}
    for name, estimate in estimates.items():
        record[name] = math.nan if estimate is None else estimate.value
        record[f"{name}_standard_error"] = math.nan if estimate is None else estimate.standard_error
    for name in ("weights_from_first", "weights_from_previous", "weights_from_last"):
        record[name] = getattr(row, name)
    return record


# ---------------------------------------------------------------------------------------------------- for a person


def print_trajectories(
    found: Sequence[Trajectory],
    seeds: Sequence[Seeds],
    moved: Sequence[Directional],
    texts: TextSet,
    threshold_source: str,
) -> None:
    """Each run step by step, then what all of them say."""
    out.print(describe_texts(texts))
    for one in found:
        _print_checkpoints(one)
    rows = [row for one in found for row in one.checkpoints]
    shown = "".join(
        marks(kl) for row in rows for kl in (row.kl_from_first, row.kl_from_previous, row.kl_from_last) if kl
    )
    weights = "; weights: squared distance, the sum over all parameters" if any(one.weights for one in found) else ""
    out.print(f"KL in bits/byte ± standard error over texts{weights}.", style="dim")
    print_notes(
        texts,
        ("*" in shown, OUT_OF_RANGE),
        ("u" in shown, UNCLIPPED),
        ("!" in shown, HEAVY),
    )
    print_motion(found, seeds, moved, threshold_source)


def print_motion(
    found: Sequence[Trajectory], seeds: Sequence[Seeds], moved: Sequence[Directional], threshold_source: str
) -> None:
    """Exponents, laws, stabilisation and shape of all runs."""
    _print_exponents(found, seeds)
    _print_directions(moved)
    _print_stabilisation(found, threshold_source)
    _print_shapes(found)
    for one in found:
        for note in one.run.notes:
            out.print(f"{plain(one.run.name)}: {plain(note)}", style="yellow")


def _print_checkpoints(one: Trajectory) -> None:
    run, with_weights = one.run, one.weights is not None
    known = "" if run.warmup_known else " (taken as one checkpoint spacing; --warmup STEP tells it)"
    out.print(
        f"\n[bold]{plain(run.name)}[/bold]: {len(run)} checkpoints, steps {run.steps[0]:,} to {run.steps[-1]:,}; "
        f"warm-up until step {run.warmup:,}{known}"
    )
    weights = ("weights from previous", "from first") if with_weights else ()
    columns = ("step", "bits/byte", "KL from previous", "from first", "from last", *weights)
    shown = table(*columns, right=range(len(columns)))
    kept = set(np.linspace(0, len(run) - 1, min(len(run), ROWS)).round().astype(int).tolist())
    for t, row in enumerate(one.checkpoints):
        if t in kept:
            moved = (_distance(row.weights_from_previous), _distance(row.weights_from_first)) if with_weights else ()
            kls = (_kl(row.kl_from_previous), _kl(row.kl_from_first), _kl(row.kl_from_last))
            shown.add_row(f"{row.step:,}", number(row.bits_per_byte), *kls, *moved)
    out.print(shown)
    if len(kept) < len(run):
        out.print(f"{len(kept)} of {len(run)} checkpoints are shown; all: --json, or --out FILE.csv", style="dim")


def _kl(kl: KL | None) -> str:
    return "" if kl is None else number(kl) + marks(kl)


def _distance(value: float | None) -> str:
    return "" if value is None else "?" if math.isnan(value) else f"{value:.4g}"


def _print_exponents(found: Sequence[Trajectory], seeds: Sequence[Seeds]) -> None:
    moving = [one for one in found if one.behaviour.exponent]
    if not moving:
        out.print(
            f"\nNo exponent: a fit takes {diffusion.WINDOW + 1} checkpoints past warm-up. Save more of them, or tell "
            "where warm-up ends: --warmup STEP",
            style="yellow",
        )
        return
    shown = table(
        "run", "space", "exponent c", "95 %", "time-averaged", "lags, steps", "slopes over starts", "R²", "D = 2/c",
        right=range(2, 9), title="\nDiffusion exponents: squared distance grows as lag^c",
    )  # fmt: skip
    for one in moving:
        for motion in one.motions:
            if motion.exponent is not None:
                shown.add_row(plain(one.run.name), motion.space, *_exponent_row(motion))
    out.print(shown)
    out.print(
        f"c: mean slope over the starts past warm-up (how many), each over the next {diffusion.WINDOW} checkpoints. "
        "± and 95 %: over texts; weights have none within one run. The spread of slopes over starts is no confidence "
        "interval: their windows overlap.",
        style="dim",
    )
    if any(one.behaviour.exponent and one.behaviour.exponent.heavy_tails for one in moving):
        out.print(HEAVY, style="yellow")
    _print_laws(moving)
    together = table(
        "runs", "c_q (log-likelihood)", "c_w (weights)", "alpha = c_q / c_w", "probability that c_q < c_w",
        right=(1, 2, 3, 4), title="\nBehaviour against weights",
    )  # fmt: skip
    for one in moving:
        if one.alpha and one.weights and one.weights.exponent and one.behaviour.exponent:
            c_q, c_w = one.behaviour.exponent.value, one.weights.exponent.value
            together.add_row(
                plain(one.run.name), number(c_q), f"{c_w.value:.3g}", number(one.alpha), _probability(one.probability)
            )
    for row in seeds:
        name = f"{len(row.runs)} seeds: {', '.join(row.runs)}" if len(seeds) > 1 else f"these {len(row.runs)} seeds"
        together.add_row(plain(name), *map(number, (row.c_q, row.c_w, row.alpha)), _probability(row.probability))
    if together.row_count:
        out.print(together)
        over = " Of several seeds: c_w and alpha ± over seeds, c_q ± over texts." if seeds else ""
        out.print(
            f"Of one run: ± over texts, with c_w as this run has it; other seeds would move it.{over}", style="dim"
        )
        for row in seeds:
            low, high = row.c_w.interval
            alpha_low, alpha_high = row.alpha.interval
            out.print(
                f"95 % over {len(row.runs)} seeds: c_w {low:.3g} to {high:.3g}, alpha {alpha_low:.3g} to "
                f"{alpha_high:.3g}; c_q over seeds {number(row.c_q_over_seeds)}.",
                style="dim",
            )
    elif not any(one.weights for one in moving):
        out.print("Weights were not compared: the checkpoints' files are not here.", style="dim")
    for one in moving:
        if one.noise_floor is not None:
            taken = "taken off" if one.noise_subtracted else "--subtract-noise takes it off"
            out.print(
                f"{plain(one.run.name)}: noise floor of KL {number(one.noise_floor)} bits/byte (its last checkpoint "
                f"read again in batches of another shape and order; {taken}).",
                style="dim",
            )


def _print_directions(moved: Sequence[Directional]) -> None:
    if not moved:
        return
    shown = table(
        "checkpoint", "direction", "exponent a", "95 %", "R²", "local slopes", "noise floor, bits/byte",
        right=range(2, 7), title="\nDirectional exponent: ‖f(W + εδ) - f(W)‖ grows as ε^a",
    )  # fmt: skip
    for one in moved:
        low, high = one.exponent.interval
        slopes = [slope.value for slope in one.local_slopes if not math.isnan(slope.value)]
        shown.add_row(
            plain(one.ref),
            "random" if one.towards is None else f"to {plain(one.towards)}",
            number(one.exponent),
            "" if math.isnan(low) else f"{low:.3g} to {high:.3g}",
            "" if math.isnan(one.r_squared) else f"{one.r_squared:.3f}",
            f"{min(slopes):.2f} to {max(slopes):.2f}" if slopes else "",
            number(one.noise_floor),
        )
    out.print(shown)
    fitted = [float(scale) for one in moved for scale in one.scales[one.used]]
    between = f"ε from {min(fitted):.2g} to {max(fitted):.2g}" if fitted else "no ε: KL does not rise above the noise"
    out.print(
        f"Fitted over {between}; ε = 1 is the whole step, or 1 % of each tensor's norm. a = 1 where the map from "
        "weights to log-likelihoods is smooth, whatever alpha is along the run.",
        style="dim",
    )


def _probability(value: float | None) -> str:
    """A probability; what rounds to certainty is not called certain."""
    return "" if value is None else "> 0.999" if value > 0.999 else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _exponent_row(motion: Motion) -> tuple[str, ...]:
    exponent = motion.exponent
    assert exponent is not None
    low, high = exponent.value.interval
    interval = "" if math.isnan(low) else f"{low:.3g} to {high:.3g}"
    slopes, r_squared = (values[~np.isnan(values)] for values in (exponent.slopes, exponent.r_squared))
    spread = f"{slopes.min():.2f} to {slopes.max():.2f} ({len(slopes)})"
    lags = f"{exponent.lags[0]:,} to {exponent.lags[1]:,}"
    value, averaged, dimension = (number(part) for part in (exponent.value, exponent.time_averaged, exponent.dimension))
    mark = " !" if exponent.heavy_tails else ""
    return f"{value}{mark}", interval, averaged, lags, spread, f"{r_squared.mean():.2f}", dimension


def _print_laws(found: Sequence[Trajectory]) -> None:
    motions = [
        (one.run.name, motion, motion.exponent)
        for one in found
        for motion in one.motions
        if motion.exponent is not None
    ]
    laws = list(motions[0][2].law_errors)
    shown = table(
        "run", "space", *laws, "best", right=range(2, 2 + len(laws)),
        title="\nIs it a power law? Error in predicting longer lags from the shorter 60 %",
    )  # fmt: skip
    for name, motion, exponent in motions:
        errors = [format_estimate(e.value, e.standard_error) for e in exponent.law_errors.values()]
        known = {law: error.value for law, error in exponent.law_errors.items() if not math.isnan(error.value)}
        best = min(known, key=known.__getitem__, default="")
        share = f" (in {exponent.best_law[best]:.0%} of samples)" if best and exponent.best_law else ""
        shown.add_row(plain(name), motion.space, *errors, f"{best}{share}")
    out.print(shown)
    out.print(
        "Root mean square of ln(predicted / observed), mean over starts; samples are of the texts. An exponent "
        "describes the growth over these lags, whichever law is the best.",
        style="dim",
    )


def _print_stabilisation(found: Sequence[Trajectory], source: str) -> None:
    if all(one.behaviour.stabilisation is None or one.behaviour.stabilisation.threshold is None for one in found):
        out.print(
            "\nNo threshold of stabilisation: no two seeds are measured on these texts. Give one: --threshold X",
            style="dim",
        )
        return
    shown = table(
        "run", "settled from step", "95 % over texts", "weights from step", "first to last",
        right=(1, 2, 3, 4), title="\nStabilisation: every later checkpoint is within the threshold of the last",
    )  # fmt: skip
    threshold = 0.0
    for one in found:
        settled = one.behaviour.stabilisation
        if settled is None or settled.threshold is None or settled.step is None or settled.interval is None:
            continue
        threshold = settled.threshold
        low, high = settled.interval
        weights = one.weights.stabilisation.step if one.weights and one.weights.stabilisation else None
        ends = {one.run.steps[0]: " (its first)", one.run.steps[-1]: " (only the last)"}
        shown.add_row(
            plain(one.run.name),
            f"{settled.step:,}{ends.get(settled.step, '')}",
            f"{low:,.0f} to {high:,.0f}",
            "" if weights is None else f"{weights:,}",
            f"{settled.threshold / settled.total:.2%}" if settled.total > 0 else "",
        )
    out.print(shown)
    out.print(
        f"Threshold: {threshold:.3g} bits/byte ({plain(source)}). Weights: the same fraction ('first to last') of the "
        "squared distance from the first checkpoint to the last.",
        style="dim",
    )


def _print_shapes(found: Sequence[Trajectory]) -> None:
    shapes = [
        (one.run.name, motion.space, motion.shape)
        for one in found
        for motion in one.motions
        if motion.shape is not None
    ]
    if not shapes:
        return
    shown = table(
        "run", "space", "variance on PC1, PC2, PC3", "random walk", "shuffled steps", "turning angle", "winding, turns",
        "random walk", "shuffled steps", "spiral?", right=range(2, 9),
        title="\nShape of the path past warm-up, beside two nulls",
    )  # fmt: skip
    for name, space, shape in shapes:
        nulls = list(shape.nulls.values())
        spread = [f"{null.winding_range[0]:.2f} to {null.winding_range[1]:.2f}" for null in nulls]
        shown.add_row(
            plain(name), space, _shares(shape.share), *(_shares(null.share) for null in nulls),
            f"{np.median(shape.turning):.0f}°", number(shape.winding), *spread,
            "beyond both nulls" if shape.spiral else "no",
        )  # fmt: skip
    out.print(shown)
    out.print(
        f"A long random walk in many dimensions has {_shares(shapes[0][2].walk_share)} (6 / (π²k²)) and winds 0.65 "
        "turns: only what winds more than 97.5 % of both nulls is called a spiral. Turning angle: the median; 90° is a "
        "random walk, more is stepping back.",
        style="dim",
    )


def _shares(share: Any) -> str:
    return ", ".join(f"{value:.0%}" for value in share[:3])
