"""The command line. Each command parses, calls one function, and prints: a table for a person, JSON for a machine.

Heavy modules are imported inside the commands, so that `klscale --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from klscale.errors import InputError, KlscaleError, nearest
from klscale.tables import (
    beside,
    describe_texts,
    err,
    layers_record,
    out,
    outcome_record,
    pair_record,
    plain,
    print_comparison,
    print_error,
    print_failures,
    print_json,
    print_layers,
    print_matrix,
    print_outcomes,
    print_plan,
    print_published,
    print_report,
    print_scale,
    problem_record,
    progress_bar,
    require_ending,
    save_as,
    save_matrix,
    save_scale,
    scale_record,
    table,
)

if TYPE_CHECKING:
    from klscale.directional import Directional
    from klscale.models import ModelRef
    from klscale.progress import Progress
    from klscale.scales import Setting
    from klscale.store import Entry, Store
    from klscale.sweeps import Outcome
    from klscale.texts import TextSet
    from klscale.trajectories import Trajectory
    from klscale.vectors import Vectors


class _Commands(TyperGroup):
    """Errors that a user can mend are printed in their three lines; Ctrl-C says what is kept."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KlscaleError as error:
            print_error(error)
            raise typer.Exit(error.exit_status) from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            print_error(KlscaleError(f"{error.filename or 'A file'} cannot be used.", f"{error.strerror or error}."))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            err.print("\nInterrupted. What was finished is kept; the same command goes on from there.", style="yellow")
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How far apart are two language models, and is that a lot? KL divergence in bits per byte, with error bars.",
)
texts_app = typer.Typer(cls=_Commands, no_args_is_help=True, help="Text sets: list, inspect, build, freeze a clip.")
app.add_typer(texts_app, name="texts")

StoreOption = Annotated[
    str, typer.Option("--store", envvar="KLSCALE_STORE", metavar="DIR", help="Directory or URL of the store.")
]
TextsOption = Annotated[
    str | None,
    typer.Option("--texts", metavar="NAME|FILE", help="Text set: a name, an id, or a file. Default: the store's own."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. Default: the fastest there is.")]
BatchOption = Annotated[
    int | None, typer.Option(min=1, metavar="TOKENS", help="Tokens in a batch, padding included. Default: found.")
]
KeepOption = Annotated[
    bool,
    typer.Option(
        "--keep-downloads",
        help="Keep what is fetched from the hub. Default: dropped once scored; what the cache held before stays.",
    ),
]
LongOption = Annotated[str, typer.Option(metavar="error|skip|window", help="Texts beyond a model's window.")]
STORE = "./klscale-store"
PAGES = (".html", ".htm")


def main() -> None:
    """Entry point of the `klscale` command."""
    try:
        app(prog_name="klscale")
    except SystemExit as end:
        if end.code == 130:  # a thread may still download or read a model: nobody waits for it
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        raise


def version_callback(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"klscale {version('klscale')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=version_callback, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# -------------------------------------------------------------------------------------------------------------- demo


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where everything goes.")] = Path(
        "klscale-demo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter runs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a small suite of models on this machine's own text, score it, print the scale, and write the report. No
    download."""
    from importlib.util import find_spec

    from klscale import reports, scales, sweeps, trajectories
    from klscale.diffusion import WINDOW
    from klscale.pocket import train_pocket_suite
    from klscale.store import Store
    from klscale.suites import read_suite
    from klscale.trajectory_tables import print_motion, save_trajectories

    with progress_bar() as progress:
        suite = read_suite(train_pocket_suite(directory / "models", quick=quick, progress=progress))
        models = [model for model in suite.models if model.ref.quantization is None or find_spec("bitsandbytes")]
        if len(models) < len(suite.models):
            progress.note("Without quantized variants, which need: pip install 'klscale[quant]'.")
        store = Store(directory / "store")
        texts = store.resolve_texts(suite.texts, progress=progress)
        outcomes = sweeps.score(models, texts, store, progress=progress)
        vectors = vectors_of(store, texts, outcomes, layers=True)
        measured = scales.measure(vectors)
        seed = scales.worth_of_a_seed(measured, texts)
        entries = [outcome.entry for outcome in outcomes if outcome.entry is not None]
        saved = Counter(entry.ref.run for entry in entries if entry.ref.quantization is None)
        followed = [entry for entry in entries if saved[entry.ref.run] > WINDOW]  # else no exponent can be fitted
        runs = trajectories.analyse_runs(store, texts, followed, threshold=seed and seed[0], progress=progress)
        page = directory / "report.html"
        reports.write(reports.gather(reports.read(store, texts, progress=progress)), page)
    seeds = trajectories.over_seeds(runs)
    record = scale_record(vectors, measured)
    (directory / "scale.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    save_scale(measured, texts, directory / "scale.png")
    if runs:
        save_trajectories(runs, directory / "trajectory.png")
    print_failures(outcomes)
    if as_json:
        print_json(record)
    else:
        print_scale(vectors, measured)
        if runs:
            print_motion(runs, seeds, [], "" if seed is None else seed[1])
        where, plainly = f"--store {plain(store.location)}", [ref for ref in vectors.models if ref.layer is None]
        last = next(plain(ref) for ref in reversed(plainly) if ref.quantization is None)
        pictures = "the pictures scale.png and trajectory.png" if runs else "the picture scale.png"
        out.print(f"\n{len(plainly)} models; {plain(directory)} holds {pictures}, scale.json, and the report.")
        out.print(f"Open it in a browser: {page.resolve().as_uri()}", soft_wrap=True)
        out.print("Look closer:")
        for command in (
            f"klscale serve {where}",
            f"klscale kl {where} --out {plain(directory)}/kl.png",
            f"klscale compare {where} {plain(plainly[0])} {last}",
            f"klscale layers {where} {last}",
            f"klscale trajectory {where} {plain(plainly[0].name.rpartition('/')[0])}",
        ):
            out.print(f"  {command}", style="dim", soft_wrap=True)
    raise typer.Exit(failure_status(outcomes))


# ------------------------------------------------------------------------------------------------------------- score


@app.command()
def score(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF...",
            help="Hub ids or directories; a directory of checkpoints, or 'NAME@step*', for all of a run.",
        ),
    ] = None,
    suite: Annotated[Path | None, typer.Option(metavar="FILE", help="A suite file (YAML) instead of models.")] = None,
    store: StoreOption = STORE,
    texts: TextsOption = None,
    device: DeviceOption = None,
    batch_tokens: BatchOption = None,
    long_texts: LongOption = "error",
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,...",
            help="Each model's quantized variants too: int8, nf4, ... In a suite, of each that is not quantized.",
        ),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="At every layer too, through the logit lens, in the same pass.")
    ] = False,
    rescore: Annotated[bool, typer.Option("--rescore", help="Score even what the store has.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be scored and downloaded, and do nothing.")
    ] = False,
    keep_downloads: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score models on the texts: their log-likelihood vectors go into the store. Resumes what was interrupted."""
    from klscale import sweeps
    from klscale.models import Model, ModelRef
    from klscale.store import Store
    from klscale.suites import read_suite, with_quantized

    if bool(models) == bool(suite):
        raise InputError("Give either models or a suite file.", remedy="klscale score REF...  or  --suite FILE")
    kinds, problems = [kind.strip() for kind in (quantize or "").split(",") if kind], tuple[KlscaleError, ...]()
    if suite:
        study = read_suite(suite)
        wanted, texts, problems = list(study.models), texts or study.texts, study.problems
    else:
        wanted = [Model(ModelRef.parse(model)) for model in dict.fromkeys(models or ())]
        for model in wanted:
            if kinds and (model.ref.quantization or model.ref.file):
                what, remedy = f"--quantize is not for {model.ref}.", "Give the model itself, or leave --quantize out."
                raise InputError(what, "What is quantized is not quantized again.", remedy)
    wanted = with_quantized(wanted, kinds)
    for problem in problems:
        print_error(problem)
    place = Store(store)
    with progress_bar() as progress:
        text_set = place.resolve_texts(texts, progress=progress)
        outcomes = sweeps.score(
            wanted, text_set, place, device=device, batch_tokens=batch_tokens, long_texts=long_texts, layers=layers,
            rescore=rescore, dry_run=dry_run, keep_downloads=keep_downloads, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json([*map(problem_record, problems), *map(outcome_record, outcomes)])
    elif dry_run:
        print_plan(outcomes, len(problems), text_set)
    else:
        print_outcomes(outcomes, len(problems), text_set, place)
    raise typer.Exit(failure_status(outcomes, problems))


def failure_status(outcomes: Sequence[Outcome], problems: Sequence[KlscaleError] = ()) -> int:
    """0; 2 where nothing but bad arguments came; 1 where some models failed, or entries of a suite."""
    errors = [*problems, *(outcome.error for outcome in outcomes if outcome.error)]
    of_all = len(errors) == len(problems) + len(outcomes)
    if errors and of_all and all(error.exit_status == 2 for error in errors):
        return 2
    return 1 if errors else 0


def score_missing(
    refs: Sequence[ModelRef], store: Store, texts: str | None, *, layers: bool = False, **how: Any
) -> tuple[Vectors, list[Outcome]]:
    """Score what the store lacks of these models, and say what fails; the vectors of the others."""
    from klscale import sweeps

    with progress_bar() as progress:
        text_set = store.resolve_texts(texts, progress=progress)
        outcomes = sweeps.score(refs, text_set, store, layers=layers, progress=progress, **how)
    print_failures(outcomes)
    return vectors_of(store, text_set, outcomes, layers=layers), outcomes


def vectors_of(store: Store, texts: TextSet, outcomes: Sequence[Outcome], *, layers: bool = False) -> Vectors:
    """The vectors of the models that did not fail, by the names that they were asked for by."""
    found = [(outcome.entry, outcome.ref) for outcome in outcomes if outcome.entry is not None]
    return store.vectors(texts, [entry for entry, _ in found], [ref for _, ref in found], layers=layers)


# ----------------------------------------------------------------------------------------------------------- compare


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(metavar="REF REF...", help="Two models or more.")],
    reference: Annotated[str | None, typer.Option(metavar="REF", help="Compare each model with this one only.")] = None,
    fail_above: Annotated[
        float | None, typer.Option(metavar="X", min=0, help="Exit 1 if any KL is above X bits/byte.")
    ] = None,
    store: StoreOption = STORE,
    texts: TextsOption = None,
    device: DeviceOption = None,
    batch_tokens: BatchOption = None,
    long_texts: LongOption = "error",
    as_json: JsonOption = False,
) -> None:
    """KL between models with standard errors, which is better and by how much. Scores what the store lacks."""
    from klscale.models import ModelRef
    from klscale.store import Store

    refs = list(dict.fromkeys(ModelRef.parse(model) for model in (*((reference,) if reference else ()), *models)))
    if len(refs) < 2:
        raise InputError("Two different models are needed.", remedy="klscale compare REF REF...")
    place = Store(store)
    vectors, outcomes = score_missing(
        refs, place, texts, device=device, batch_tokens=batch_tokens, long_texts=long_texts
    )
    if len(vectors) < 2 or (reference and outcomes[0].entry is None):
        raise typer.Exit(failure_status(outcomes))
    names = vectors.names
    pairs = [(names[0], b) for b in names[1:]] if reference else [(a, b) for a, b, _ in vectors.kl().pairs()]
    measured = measured_scale(place, vectors.texts)
    if as_json:
        alike = vectors.on_one_footing()
        print_json([{**pair_record(vectors, a, b, measured), "beside": beside(alike, a, b)} for a, b in pairs])
    else:
        print_comparison(vectors, pairs, measured)
    # a KL that cannot be told passes no gate
    above = [(a, b) for a, b in pairs if fail_above is not None and not vectors.kl()[a, b].value <= fail_above]
    for a, b in above:
        what = f"Not within {fail_above} bits/byte: {plain(a)} and {plain(b)}, {vectors.kl()[a, b]}."
        err.print(what, style="bold red")
    raise typer.Exit(failure_status(outcomes) or (1 if above else 0))


def measured_scale(store: Store, texts: TextSet) -> list[Setting]:
    """The scale measured on these texts by what the store holds, medians only; empty where it holds no setting."""
    from klscale import scales

    try:
        vectors, _ = store.vectors(texts).of_one_convention()
    except KlscaleError as error:  # of a model that was not asked for
        err.print(f"No scale is shown: {plain(error.what)}", style="yellow")
        return []
    return scales.measure(vectors, resamples=0)


# ------------------------------------------------------------------------------------------------------------ layers


@app.command(name="layers")
def layers_command(
    models: Annotated[list[str], typer.Argument(metavar="REF...", help="Models, each with all of its layers.")],
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Keep it: .csv or .parquet (all pairs), .png, .svg or .pdf."),
    ] = None,
    store: StoreOption = STORE,
    texts: TextsOption = None,
    device: DeviceOption = None,
    batch_tokens: BatchOption = None,
    long_texts: LongOption = "error",
    as_json: JsonOption = False,
) -> None:
    """KL from each layer to the next and to the output, through the logit lens. Scores what the store lacks."""
    from klscale.models import ModelRef
    from klscale.pictures import layer_threads
    from klscale.store import Store

    if file is not None:
        require_ending(file)  # before hours of scoring
    refs = list(dict.fromkeys(ModelRef.parse(model) for model in models))
    place = Store(store)
    vectors, outcomes = score_missing(
        refs, place, texts, layers=True, device=device, batch_tokens=batch_tokens, long_texts=long_texts
    )
    if not len(vectors):
        raise typer.Exit(failure_status(outcomes))
    vectors = vectors.subset([ref for ref in vectors.models if ref.layer is not None])
    if as_json:
        print_json(layers_record(vectors))
    else:
        print_layers(vectors)
    if file is not None:
        save_matrix(vectors, file, layer_threads)
        err.print(f"Wrote {plain(file)}.")
    raise typer.Exit(failure_status(outcomes))


# -------------------------------------------------------------------------------------------------------- trajectory


@app.command(name="trajectory")
def trajectory_command(
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
    from klscale import scales, sweeps, trajectories
    from klscale.models import ModelRef
    from klscale.runs import checkpoints, is_run
    from klscale.store import Store
    from klscale.trajectory_tables import print_trajectories, save_trajectories, trajectories_record

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
        outcomes = sweeps.score(
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
    from klscale.directional import directional_exponent

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


@app.command(name="kl")
def kl_command(
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

    from klscale.pictures import kl_heat_map
    from klscale.store import Store

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


def stored_texts(store: Store, texts: str | None) -> TextSet:
    """The text set that is meant. Raises InputError for an empty store."""
    if texts is None and not store.text_sets():
        raise InputError(f"{store.location} is empty.", remedy="klscale score REF...  or  klscale import FILE")
    return store.resolve_texts(texts)


def stored_vectors(store: Store, texts: str | None, *, layers: bool = False) -> Vectors:
    """All vectors of a text set in the store. Raises InputError where there are fewer than two."""
    vectors, left_out = store.vectors(stored_texts(store, texts), layers=layers).of_one_convention()
    if left_out:
        names = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        err.print(f"Left out, scored by another convention: {plain(names)}.", style="yellow")
    if len(vectors) < 2:
        raise InputError(
            f"{store.location} holds {len(vectors)} models on {vectors.texts.name}.",
            "KL needs two.",
            "klscale score REF...",
        )
    return vectors


# ------------------------------------------------------------------------------------------------------------- scale


@app.command()
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

    from klscale import scales
    from klscale.store import Store

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
        save_scale(measured, vectors.texts, file)
        err.print(f"Wrote {plain(file)}.")
    if as_json:
        print_json(scale_record(vectors, measured))
    elif file is None:
        print_scale(vectors, measured)


# ---------------------------------------------------------------------------------------------- map, report and serve


@app.command(name="map")
def map_command(
    file: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Keep it: .html (interactive), .png, .svg, .pdf, or .csv and .parquet."
        ),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(metavar="REF", help="Place a model on the kept map and move no other. Again for more."),
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Make the map of all models anew, whatever is kept.")] = False,
    method: Annotated[Literal["tsne", "pca"], typer.Option(help="Of a .png, .svg or .pdf.")] = "tsne",
    colour_by: Annotated[
        str, typer.Option("--colour", metavar="ATTRIBUTE", help="Of a .png, .svg or .pdf.")
    ] = "family",
    store: StoreOption = STORE,
    texts: TextsOption = None,
    device: DeviceOption = None,
    batch_tokens: BatchOption = None,
    long_texts: LongOption = "error",
    as_json: JsonOption = False,
) -> None:
    """All models as points: principal components and t-SNE, and who is near whom. The store keeps the map."""
    from klscale import maps, reports
    from klscale.map_tables import map_columns, map_record, print_map
    from klscale.models import ModelRef
    from klscale.pictures import model_map
    from klscale.store import Store

    if file is not None:
        require_ending(file, PAGES)
    if add and anew:
        raise InputError(
            "--add and --anew exclude each other.", "One keeps every model where it is, the other does not."
        )
    place, outcomes, added = Store(store), list[Any](), list[str]()
    if add:
        refs = list(dict.fromkeys(map(ModelRef.parse, add)))
        _, outcomes = score_missing(refs, place, texts, device=device, batch_tokens=batch_tokens, long_texts=long_texts)
        added = [str(outcome.ref) for outcome in outcomes if outcome.entry is not None]
        if not added:
            raise typer.Exit(failure_status(outcomes))
    vectors = stored_vectors(place, texts)
    with progress_bar() as progress:
        if added:
            found = maps.extend_map(place, vectors, added, progress=progress)
        else:
            found = maps.kept_map(place, vectors, anew=anew, progress=progress)
    if as_json:
        print_json(map_record(found, vectors))
    elif file is None:
        print_map(found, vectors)
    if file is not None:
        if file.suffix in PAGES:
            reports.write(reports.gather(reports.of_map(place, vectors, found), reports.MAP), file)
        else:
            save_as(
                file,
                lambda: map_columns(found, vectors),
                lambda: model_map(found, vectors, colour_by=colour_by, method=method),
            )
        err.print(f"Wrote {plain(file)}.")
    raise typer.Exit(failure_status(outcomes))


@app.command()
def report(
    file: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="Where to write it.")] = Path("report.html"),
    store: StoreOption = STORE,
    texts: TextsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Everything that the store holds as one page: a single file that opens without a network and can be sent."""
    from klscale import reports
    from klscale.store import Store

    if file.suffix not in PAGES:
        raise InputError(f"{file}: a report is an HTML page.", remedy="--out FILE.html")
    place = Store(store)
    with progress_bar() as progress:
        contents = reports.read(place, stored_texts(place, texts), progress=progress)
        data = reports.gather(contents)
        size = reports.write(data, file)
    if as_json:
        print_json({"file": str(file), "bytes": size, "sections": data["sections"], "summary": data["summary"]})
    else:
        print_report(data, file, size)


@app.command()
def serve(
    host: Annotated[str, typer.Option(metavar="HOST", help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    expose: Annotated[bool, typer.Option("--expose", help="Allow a host that other machines can reach.")] = False,
    store: StoreOption = STORE,
    texts: TextsOption = None,
) -> None:
    """The same page on this machine, current at each load. Ctrl-C ends it."""
    from klscale import server
    from klscale.store import Store

    place = Store(store)
    texts = stored_vectors(place, texts).texts.id  # two models, or nothing is to be shown
    with progress_bar() as progress:
        application = server.application(place, texts, host=host, progress=progress)
        listening = server.listen(host, port, expose=expose)
        name, at, *_ = listening.getsockname()
        out.print(
            f"http://{f'[{name}]' if ':' in name else name}:{at}/  shows {plain(place.location)}. Ctrl-C ends it."
        )
        try:
            server.run(application, listening)
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error


# ------------------------------------------------------------------------------------------------------------ import


@app.command(name="import")
def import_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="CSV, Parquet, or one of the published pickles.")],
    name: Annotated[str | None, typer.Option(help="Name of the text set. Default: the file's.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", metavar="COL", help="Column that names the rows.")] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV: 'model', and 'type', 'family', 'seed', ... where names do not tell."),
    ] = None,
    store: StoreOption = STORE,
    texts: TextsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take in log-likelihoods from elsewhere: one row a text, one column of nats a model."""
    from klscale.imports import read_log_likelihoods
    from klscale.store import Store

    place = Store(store)
    with progress_bar() as progress:
        known = place.resolve_texts(texts, progress=progress) if texts is not None else None
        vectors = read_log_likelihoods(file, name=name, id_column=id_column, texts=known, attributes=attributes)
        entries = place.import_vectors(vectors, source=file, progress=progress)
    if as_json:
        print_json({"text_set": vectors.texts.id, "texts": vectors.texts.name, "models": [str(e.ref) for e in entries]})
        return
    out.print(describe_texts(vectors.texts))
    out.print(f"Imported {len(entries)} models into {plain(place.location)}.")
    out.print("Next: klscale kl, klscale scale, klscale compare.", style="dim")


# -------------------------------------------------------------------------------------------------- ls, rm and check


@app.command()
def ls(store: StoreOption = STORE, texts: TextsOption = None, as_json: JsonOption = False) -> None:
    """What the store holds."""
    from klscale.store import Store

    place = Store(store)
    heads = [head for head in place.text_sets() if texts in (None, head["id"], head["name"])]
    if texts is not None and not heads:
        raise InputError(f"{store} holds no text set {texts!r}.", remedy="klscale ls")
    listed = [(head, place.entries(head["id"])) for head in heads]
    if as_json:
        print_json([{**head, "models": [dict(entry.metadata) for entry in entries]} for head, entries in listed])
        return
    if not heads:
        out.print(f"{plain(place.location)} is empty.")
    for head, entries in listed:
        title = f"{plain(head['name'])} ({head['id']}): {head['n_texts']:,} texts, {len(entries)} models"
        shown = table("model", "key", "scored", "source", title=title)
        for entry in entries:
            source = str(entry.metadata.get("source", ""))
            shown.add_row(plain(entry.ref), entry.key, str(entry.metadata.get("date", ""))[:16], plain(source))
        out.print(shown)


@app.command()
def rm(
    models: Annotated[list[str], typer.Argument(metavar="REF...", help="References or keys, as `ls` shows them.")],
    store: StoreOption = STORE,
    texts: TextsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take models out of the store."""
    from klscale.store import Store

    place = Store(store)
    heads = [head for head in place.text_sets() if texts in (None, head["id"], head["name"])]
    entries = [entry for head in heads for entry in place.entries(head["id"])]
    found: list[Entry] = []
    for model in models:
        named = [entry for entry in entries if model in (str(entry.ref), entry.key, entry.metadata["ref"])]
        if not named:
            raise InputError(f"{store} holds no {model!r}.", nearest(model, {str(entry.ref) for entry in entries}))
        if len({entry.text_set for entry in named}) > 1:
            raise InputError(f"{model!r} is there on several text sets.", remedy="Choose one with --texts.")
        found += named
    unique = list({entry.path: entry for entry in found}.values())
    for entry in unique:
        place.remove(entry)
    if as_json:
        print_json([{"model": str(entry.ref), "key": entry.key, "file": entry.path} for entry in unique])
        return
    for entry in unique:
        out.print(f"Removed {plain(entry.ref)} ({entry.key}).")


@app.command()
def check(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """Is every file of the store whole?"""
    from klscale.store import Store

    found = list(Store(store).check())
    bad = [(path, problem) for path, problem in found if problem]
    if as_json:
        print_json([{"file": path, "problem": problem or None} for path, problem in found])
    else:
        for path, problem in bad:
            out.print(f"{plain(path)}: {plain(problem)}", style="red")
        out.print(f"{len(found)} files checked, {len(bad)} with a problem.")
    raise typer.Exit(1 if bad else 0)


# ------------------------------------------------------------------------------------------------------------- texts


@texts_app.command("list")
def texts_list(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """The named text sets, and those in the store."""
    from klscale.store import Store
    from klscale.texts import NAMED

    heads = Store(store).text_sets()
    if as_json:
        print_json({"named": NAMED, "store": heads})
        return
    shown = table("name", "id", "texts", "mean bytes", "clip, nats", "", right=(2, 3, 4))
    for head in heads:
        clip = "" if head["clip"] is None else f"{head['clip']:.1f}"
        kind = "log-likelihoods only" if head["external"] else "in the store"
        shown.add_row(plain(head["name"]), head["id"], f"{head['n_texts']:,}", f"{head['mean_bytes']:.1f}", clip, kind)
    for name, what in NAMED.items():
        shown.add_row(name, "", "", "", "", what)
    out.print(shown)


@texts_app.command("info")
def texts_info(
    texts: Annotated[str | None, typer.Argument(metavar="NAME|FILE", help="Default: the store's own set.")] = None,
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """What a text set holds: size, lengths, domains, documents, clip."""
    import numpy as np

    from klscale.store import Store

    with progress_bar() as progress:
        found = Store(store).resolve_texts(texts, progress=progress)
    low, middle, high = (int(q) for q in np.quantile(found.bytes, [0.0, 0.5, 1.0]))
    domains = {d: sum(x == d for x in found.domain) for d in sorted(set(found.domain))} if found.domain else {}
    documents = len(set(found.document)) if found.document else None
    if as_json:
        print_json(
            {"name": found.name, "id": found.id, "n_texts": len(found), "mean_bytes": found.mean_bytes,
             "min_bytes": low, "median_bytes": middle, "max_bytes": high, "clip": found.clip,
             "external": found.external, "domains": domains, "n_documents": documents}
        )  # fmt: skip
        return
    out.print(describe_texts(found))
    out.print(f"bytes: {low:,} to {high:,}, median {middle:,}; {int(found.bytes.sum()):,} in all")
    if documents is not None:
        shared = "; standard errors are clustered by document" if documents < len(found) else ""
        out.print(f"documents: {documents:,}{shared}")
    if found.name.startswith("pocket-python-"):
        out.print("Made from this Python installation: another Python version makes another set, with another id.")
    if domains:
        shown = table("domain", "texts", right=(1,))
        for domain, count in domains.items():
            shown.add_row(plain(domain), f"{count:,}")
        out.print(shown)


@texts_app.command("build")
def texts_build(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Documents: text files, or .jsonl.")],
    file: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="Where to write the set.")],
    n_texts: Annotated[
        int | None, typer.Option("--sample", min=2, metavar="N", help="How many. Default: all chunks.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=4, help="Longest chunk in UTF-8 bytes.")] = 1024,
    min_bytes: Annotated[int, typer.Option(min=0, help="Chunks must be longer than this.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 42,
    as_json: JsonOption = False,
) -> None:
    """Cut documents into chunks, as the published set was, and sample a text set from them."""
    from klscale.texts import build_texts, read_documents

    if file.suffix != ".jsonl" or file.resolve() in [path.resolve() for path in files]:
        raise InputError(f"--out {file}: not a new .jsonl file.", remedy="A text set is written as JSON lines.")
    built = build_texts(file.stem, read_documents(files), n_texts, max_bytes=max_bytes, min_bytes=min_bytes, seed=seed)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in built.records())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(lines, encoding="utf-8")
    if as_json:
        print_json({"file": str(file), "id": built.id, "n_texts": len(built), "mean_bytes": built.mean_bytes})
        return
    out.print(describe_texts(built))
    out.print(f"Wrote {plain(file)}. Next: klscale score REF... --texts {plain(file)}")


@texts_app.command("clip")
def texts_clip(
    texts: Annotated[str | None, typer.Argument(metavar="NAME|ID", help="Default: the store's own set.")] = None,
    value: Annotated[float | None, typer.Option(metavar="NATS", help="This value instead of the quantile.")] = None,
    quantile: Annotated[float, typer.Option(min=0, max=0.5, help="Of all values in the store, pooled.")] = 0.02,
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Freeze a lower limit for log-likelihoods, by default the pooled 2 % quantile of what the store holds now."""
    import numpy as np

    from klscale.store import Store

    place = Store(store)
    if texts is None and not place.text_sets():
        raise InputError(f"{store} is empty.", "A clip comes from scored models.", "klscale score REF...")
    found = place.resolve_texts(texts)
    if value is None:
        vectors = place.vectors(found)
        if not len(vectors):
            raise InputError(
                f"{store} holds no model on {found.name}.",
                "A clip comes from scored models.",
                "Give --value NATS, or score some first.",
            )
        value = float(np.nanquantile(vectors.log_likelihood, quantile))
    if not value < 0:
        raise InputError(f"A clip of {value} nats would move every value.", remedy="Log-likelihoods are negative.")
    place.put_texts(found.with_clip(value))
    if as_json:
        print_json({"texts": found.name, "text_set": found.id, "clip": value})
        return
    out.print(f"{plain(found.name)} is now clipped at {value:.4f} nats; KL values before and after are not comparable.")
