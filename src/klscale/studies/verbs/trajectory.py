"""The trajectories of training runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from klscale.display import Displayed
from klscale.errors import InputError, ScoringError, nearest
from klscale.inputs.attributes import runs_of
from klscale.inputs.references import ModelRef, parse_all
from klscale.inputs.texts import TextSet
from klscale.store import vector_records
from klscale.store.store import Entry, Store
from klscale.studies import scales, trajectories
from klscale.studies.directional import Directional, directional_exponent
from klscale.studies.trajectories import Seeds, Trajectory
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.scale import scale_beside
from klscale.studies.verbs.score import failures
from klscale.sweep import score as sweeps
from klscale.sweep.jobs import Outcome
from klscale.sweep.runs import checkpoints, is_run


@dataclass(frozen=True, eq=False)
class Trajectories(Displayed):
    """The trajectory of each of `runs`, and mean exponents of runs that differ only in their seed (`seeds`).

    `directions` are the directional exponents, if `directional` was given. `threshold_source` names the source of the
    threshold of stabilisation; it is empty where there is none. `outcomes` has the status of each checkpoint.
    """

    texts: TextSet
    runs: tuple[Trajectory, ...]
    seeds: tuple[Seeds, ...]
    directions: tuple[Directional, ...]
    threshold_source: str
    outcomes: tuple[Outcome, ...]

    def __str__(self) -> str:
        return "\n".join([*map(_line, self.runs), *failures(self.outcomes)])


def _line(one: Trajectory) -> str:
    parts = [f"{len(one.run)} checkpoints"]
    for symbol, motion in zip(("c_q", "c_w"), one.motions, strict=False):
        if motion.exponent is not None:
            parts.append(f"{symbol} {motion.exponent.value}")
    if one.alpha is not None:
        parts.append(f"alpha {one.alpha}")
    settled = one.behaviour.stabilisation
    if settled is not None and settled.step is not None:
        parts.append(f"within {settled.threshold:.2g} bits/byte of the last from step {settled.step:,}")
    return f"{one.run.name}: {'; '.join(parts)}"


def trajectory(
    runs: Sequence[str | ModelRef] = (),
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    threshold: float | None = None,
    warmup: int | None = None,
    directional: int | None = None,
    subtract_noise: bool = False,
    lags: int | None = None,
    options: Options = Options(),
) -> Trajectories:
    """The trajectories of training runs: KL in bits per byte along training, weight distances, the exponents c_q and
    c_w of both with standard errors, and the step of stabilisation. Checkpoints that the store lacks are scored.

    `runs`: directories of checkpoints, `NAME@step*` of the hub, or runs of the store; by default all runs of the store.
    `threshold`: a run has settled within so many bits per byte of its last checkpoint; by default the median KL between
    seeds. `warmup`: the step where warm-up ends, instead of the known one. `directional`: compute the directional
    exponent too, at this step of each run that has it. `subtract_noise`: subtract run-to-run noise from the squared
    distances behind exponents. `lags`: number of later checkpoints for each fit of an exponent, at least 5; by default
    10 as published, or all later checkpoints of a run that has fewer.

    A checkpoint that fails has its error in `outcomes`. Raises InputError where there is no run, and ScoringError where
    there is none because checkpoints could not be scored.

        found = klscale.trajectory(["./runs/a"], "my-texts.jsonl", threshold=0.1)
        print(found.runs[0].alpha, found.runs[0].behaviour.stabilisation.step)
    """
    options = options.at(texts, store)
    place, named, progress = options.opened(), parse_all(runs), options.progress
    remedy = "klscale trajectory RUN  scores the checkpoints of a run."
    chosen = options.chosen(place) if named else options.stored(place, remedy)
    here = [ref for ref in named if (ref.path and ref.path.is_dir()) or is_run(ref)]
    refs = [checkpoint for ref in here for checkpoint in checkpoints(ref)]
    outcomes = tuple(sweeps.score(refs, chosen, place, weigh=True, **options.scoring()))
    entries = [outcome.entry for outcome in outcomes if outcome.entry is not None]
    if len(here) < len(named) or not named:
        entries += _entries_of(place, chosen, [ref for ref in named if ref not in here])
    seed = None if threshold is None else (threshold, "--threshold")
    seed = seed or scales.worth_of_a_seed(scale_beside(place, chosen, progress), chosen)
    found = trajectories.analyse_runs(
        place, chosen, entries, threshold=seed and seed[0], warmup=warmup, subtract_noise=subtract_noise,
        lags=lags, device=options.device, progress=progress,
    )  # fmt: skip
    if not found:
        if failures(outcomes):
            raise ScoringError(outcomes)
        raise InputError(
            f"There is no run among {len(entries)} models on {chosen.name}.",
            "A run is two checkpoints or more, not quantized, with different steps in their names or attributes.",
            "Give a directory of checkpoint-*, or 'NAME@step*', or import with --attributes: family, seed, step.",
        )
    moved = () if directional is None else _directions(found, directional, chosen, options)
    seeds = trajectories.over_seeds(found)
    return Trajectories(chosen, tuple(found), tuple(seeds), tuple(moved), "" if seed is None else seed[1], outcomes)


def _entries_of(store: Store, texts: TextSet, runs: Sequence[ModelRef]) -> list[Entry]:
    """The newest entry of each checkpoint of these runs in the store; of all runs, where none is named."""
    newest = [*store.newest(texts.id).values()]
    if not runs:
        return newest
    of = runs_of([entry.ref for entry in newest], [vector_records.attributes_of(entry.metadata) for entry in newest])
    for run in runs:
        if run.run not in of:
            remedy = [nearest(run.run, of)] if of else []
            if run.path is None:
                remedy.append(f"From the hub: klscale trajectory '{run.name}@step*'")
            what = f"{store.location} holds no run {run.run} on {texts.name}."
            raise InputError(what, "Nor is there a directory of that name.", " ".join(remedy))
    wanted = {run.run for run in runs}
    return [entry for run, entry in zip(of, newest, strict=True) if run in wanted]


def _directions(found: Sequence[Trajectory], step: int, texts: TextSet, options: Options) -> list[Directional]:
    """The directional exponents at a step of each run that has it: along the training step to the next checkpoint, and
    along a random direction."""
    runs = [one.run for one in found if step in one.run.steps]
    if not runs:
        steps = sorted({int(known) for one in found for known in one.run.steps})
        raise InputError(
            f"{found[0].run.name} has no checkpoint at step {step}.",
            f"The checkpoints are of steps {steps[0]:,} to {steps[-1]:,}.",
            f"The nearest: --directional {min(steps, key=lambda known: abs(known - step))}",
        )
    moved = []
    for run in runs:
        models, at = run.vectors.models, run.steps.tolist().index(step)
        if models[at].path is None or not models[at].path.is_dir():
            raise InputError(f"{models[at]} is no directory here.", remedy="--directional needs local checkpoints.")
        moved += [
            directional_exponent(models[at], texts, towards=towards, **options.scoring("device", "progress"))
            for towards in (*models[at + 1 : at + 2], None)
        ]
    return moved
