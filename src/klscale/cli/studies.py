"""Commands that study what is scored: trajectory, kl, scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from klscale.cli.options import (
    STORE,
    BatchOption,
    DeviceOption,
    JsonOption,
    KeepOption,
    LongOption,
    StoreOption,
    TextsOption,
)
from klscale.cli.steps import failure_status, measured_scale, stored_vectors
from klscale.errors import InputError, nearest
from klscale.show.tables import (
    err,
    plain,
    print_failures,
    print_json,
    print_matrix,
    print_published,
    print_scale,
    progress_bar,
    require_ending,
    save_matrix,
    save_scale,
    scale_record,
)

if TYPE_CHECKING:
    from klscale.inputs.references import ModelRef
    from klscale.inputs.texts import TextSet
    from klscale.progress import Progress
    from klscale.store.store import Entry, Store
    from klscale.studies.directional import Directional
    from klscale.studies.trajectories import Trajectory


# -------------------------------------------------------------------------------------------------------- trajectory


def trajectory(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...",
            help="Directories of checkpoints, 'NAME@step*' of the hub, or runs of the store. Default: all of these.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, help="Settled: within X bits/byte of the last. Default: a seed's worth."),
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(metavar="STEP", min=0, help="Where warm-up ends. Default: what is known of the run.")
    ] = None,
    directional: Annotated[
        int | None,
        typer.Option(metavar="STEP", help="The directional exponent too, at this checkpoint: another look at alpha."),
    ] = None,
    subtract_noise: Annotated[
        bool, typer.Option("--subtract-noise", help="Take the noise floor off the distances that exponents come from.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Keep it: .csv or .parquet (checkpoints), .png, .svg or .pdf."),
    ] = None,
    store: StoreOption = STORE,
    texts: TextsOption = None,
    device: DeviceOption = None,
    batch_tokens: BatchOption = None,
    long_texts: LongOption = "error",
    keep_downloads: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """How training runs move: KL along training, exponents c_q and c_w, stabilisation. Scores what the store lacks."""
    from klscale.inputs.references import ModelRef
    from klscale.show.trajectory_tables import print_trajectories, save_trajectories, trajectories_record
    from klscale.store.store import Store
    from klscale.studies import scales, trajectories
    from klscale.sweep.runs import checkpoints, is_run
    from klscale.sweep.score import score as score_models

    if file is not None:
        require_ending(file)
    place, named = Store(store), [ModelRef.parse(run) for run in runs or ()]
    if not named and texts is None and not place.text_sets():
        raise InputError(
            f"{place.location} is empty.", remedy="klscale trajectory RUN  scores the checkpoints of a run."
        )
    with progress_bar() as progress:
        text_set = place.resolve_texts(texts, progress=progress)
        here = [ref for ref in named if (ref.path and ref.path.is_dir()) or is_run(ref)]
        refs = [checkpoint for ref in here for checkpoint in checkpoints(ref)]
        outcomes = score_models(
            refs, text_set, place, device=device, batch_tokens=batch_tokens, long_texts=long_texts, weigh=True,
            keep_downloads=keep_downloads, progress=progress,
        )  # fmt: skip
        entries = [outcome.entry for outcome in outcomes if outcome.entry is not None]
        if len(here) < len(named) or not named:
            entries += entries_of_runs(place, text_set, [ref for ref in named if ref not in here])
        print_failures(outcomes)
        seed = None if threshold is None else (threshold, "--threshold")
        seed = seed or scales.worth_of_a_seed(measured_scale(place, text_set), text_set)
        found = trajectories.analyse_runs(
            place, text_set, entries, threshold=seed and seed[0], warmup=warmup, subtract_noise=subtract_noise,
            device=device, progress=progress,
        )  # fmt: skip
        if not found:
            if outcomes and not entries:
                raise typer.Exit(failure_status(outcomes))
            raise InputError(
                f"There is no run among {len(entries)} models on {text_set.name}.",
                "A run is two checkpoints or more, not quantized, whose names or revisions tell different steps.",
                "Give a directory of checkpoint-*, or 'NAME@step*'.",
            )
        moved = [] if directional is None else directions(found, directional, text_set, device, progress)
    source = "" if seed is None else seed[1]
    seeds = trajectories.over_seeds(found)
    if as_json:
        print_json(trajectories_record(found, seeds, moved, text_set, source))
    else:
        print_trajectories(found, seeds, moved, text_set, source)
    if file is not None:
        save_trajectories(found, file)
        err.print(f"Wrote {plain(file)}.")
    raise typer.Exit(failure_status(outcomes))


def entries_of_runs(store: Store, texts: TextSet, runs: Sequence[ModelRef]) -> list[Entry]:
    """The newest entry of each checkpoint of these runs in the store; of all, where none is named."""
    newest = {entry.ref: entry for entry in store.entries(texts.id)}
    if not runs:
        return list(newest.values())
    known = {ref.run for ref in newest}
    for run in runs:
        if run.run not in known:
            remedy = [nearest(run.run, known)] if known else []
            if run.path is None:
                remedy.append(f"From the hub: klscale trajectory '{run.name}@step*'")
            what = f"{store.location} holds no run {run.run} on {texts.name}."
            raise InputError(what, "Nor is there a directory of that name.", " ".join(remedy))
    return [entry for ref, entry in newest.items() if ref.run in {run.run for run in runs}]


def directions(
    found: Sequence[Trajectory], step: int, texts: TextSet, device: str | None, progress: Progress
) -> list[Directional]:
    """The directional exponents at a step of each run that has it: along the step to the next checkpoint, and a random
    direction."""
    from klscale.studies.directional import directional_exponent

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
            raise InputError(f"{models[at]} is no directory here.", remedy="--directional takes local checkpoints.")
        moved += [
            directional_exponent(models[at], texts, towards=towards, device=device, progress=progress)
            for towards in (*models[at + 1 : at + 2], None)
        ]
    return moved


# ---------------------------------------------------------------------------------------------------------------- kl


def kl(
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Keep it: .csv or .parquet (all pairs), .png, .svg or .pdf."),
    ] = None,
    store: StoreOption = STORE,
    texts: TextsOption = None,
    as_json: JsonOption = False,
) -> None:
    """KL between all pairs of models in the store, with standard errors."""
    from dataclasses import asdict

    from klscale.show.pictures import kl_heat_map
    from klscale.store.store import Store

    place = Store(store)
    vectors = stored_vectors(place, texts)
    matrix = vectors.kl()
    if file is not None:
        save_matrix(vectors, file, kl_heat_map)
        err.print(f"Wrote {plain(file)}: {len(vectors) * (len(vectors) - 1) // 2:,} pairs.")
    if as_json:
        print_json([{"a": a, "b": b, **asdict(kl), "unit": "bits/byte"} for a, b, kl in matrix.pairs()])
    elif file is None:
        print_matrix(vectors)


# ------------------------------------------------------------------------------------------------------------- scale


def scale(
    published: Annotated[bool, typer.Option("--published", help="Only the published values, with sources.")] = False,
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Keep it: .png, .svg or .pdf, or all pairs as .csv or .parquet."),
    ] = None,
    store: StoreOption = STORE,
    texts: TextsOption = None,
    as_json: JsonOption = False,
) -> None:
    """KL of each setting (checkpoint, seed, size, quantization, ...) in the store, beside the published values."""
    from dataclasses import asdict

    from klscale.store.store import Store
    from klscale.studies import scales

    if published:
        if as_json:
            rows, pairs = scales.published(), scales.published_pairs()
            record = {"settings": [asdict(row) for row in rows], "pairs": [asdict(pair) for pair in pairs]}
            print_json({"texts": "pile-10k", "unit": "bits/byte", **record})
        else:
            print_published()
        return
    vectors = stored_vectors(Store(store), texts, layers=True)
    measured = scales.measure(vectors)
    if file is not None:
        save_scale(measured, vectors.texts, file, scales.noise_floor(vectors))
        err.print(f"Wrote {plain(file)}.")
    if as_json:
        print_json(scale_record(vectors, measured))
    elif file is None:
        print_scale(vectors, measured)
