"""Commands that score models: demo, score, compare, layers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

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
from klscale.cli.steps import failure_status, measured_scale, score_missing, vectors_of
from klscale.errors import InputError, KlscaleError
from klscale.show.precision_tables import precision_record, print_precision
from klscale.show.tables import (
    beside,
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
    print_outcomes,
    print_plan,
    print_scale,
    problem_record,
    progress_bar,
    require_ending,
    save_matrix,
    save_scale,
    scale_record,
)

# -------------------------------------------------------------------------------------------------------------- demo


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

    from klscale.inputs.suites import read_suite
    from klscale.science.diffusion import WINDOW
    from klscale.show import reports
    from klscale.show.trajectory_tables import print_motion, save_trajectories
    from klscale.store.store import Store
    from klscale.studies import scales, trajectories
    from klscale.studies.pocket import train_pocket_suite
    from klscale.sweep.score import score as score_models

    with progress_bar() as progress:
        suite = read_suite(train_pocket_suite(directory / "models", quick=quick, progress=progress))
        models = [model for model in suite.models if model.ref.quantization is None or find_spec("bitsandbytes")]
        if len(models) < len(suite.models):
            progress.note("Without quantized variants, which need: pip install 'klscale[quant]'.")
        store = Store(directory / "store")
        texts = store.resolve_texts(suite.texts, progress=progress)
        outcomes = score_models(models, texts, store, progress=progress)
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
    save_scale(measured, texts, directory / "scale.png", scales.noise_floor(vectors))
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
            f"klscale validate {where}",
            f"klscale layers {where} {last}",
            f"klscale trajectory {where} {plain(plainly[0].name.rpartition('/')[0])}",
        ):
            out.print(f"  {command}", style="dim", soft_wrap=True)
    raise typer.Exit(failure_status(outcomes))


# ------------------------------------------------------------------------------------------------------------- score


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
    from klscale.inputs.references import Model, ModelRef
    from klscale.inputs.suites import read_suite, with_quantized
    from klscale.store.store import Store
    from klscale.sweep.score import score as score_models

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
        outcomes = score_models(
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


# ----------------------------------------------------------------------------------------------------------- compare


def compare(
    models: Annotated[list[str], typer.Argument(metavar="REF REF...", help="Two models or more.")],
    reference: Annotated[str | None, typer.Option(metavar="REF", help="Compare each model with this one only.")] = None,
    fail_above: Annotated[
        float | None, typer.Option(metavar="X", min=0, help="Exit 1 if any KL is above X bits/byte.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="P%", help="Score only as many random texts as give each KL a standard error of P % of its value."
        ),
    ] = None,
    store: StoreOption = STORE,
    texts: TextsOption = None,
    device: DeviceOption = None,
    batch_tokens: BatchOption = None,
    long_texts: LongOption = "error",
    as_json: JsonOption = False,
) -> None:
    """KL between models with standard errors, which is better and by how much. Scores what the store lacks."""
    from klscale.inputs.references import ModelRef
    from klscale.store.store import Store
    from klscale.studies.precision import compare_to_precision, parse_precision

    wanted = None if precision is None else parse_precision(precision)
    refs = list(dict.fromkeys(ModelRef.parse(model) for model in (*((reference,) if reference else ()), *models)))
    if len(refs) < 2:
        raise InputError("Two different models are needed.", remedy="klscale compare REF REF...")
    place, found = Store(store), None
    how: dict[str, Any] = {"device": device, "batch_tokens": batch_tokens, "long_texts": long_texts}
    if wanted is None:
        vectors, outcomes = score_missing(refs, place, texts, **how)
    else:
        with progress_bar() as progress:
            text_set, only = place.resolve_texts(texts, progress=progress), refs[0] if reference else None
            found = compare_to_precision(refs, text_set, place, wanted, reference=only, progress=progress, **how)
        vectors, outcomes = found.vectors, list(found.outcomes)
        print_failures(outcomes)
    if len(vectors) < 2 or (reference and outcomes[0].entry is None):
        raise typer.Exit(failure_status(outcomes))
    names = vectors.names
    pairs = [(names[0], b) for b in names[1:]] if reference else [(a, b) for a, b, _ in vectors.kl().pairs()]
    measured = measured_scale(place, vectors.texts)
    records = [pair_record(vectors, a, b, measured) for a, b in pairs]
    if found is not None:
        records = [{**record, **precision_record(found, record["a"], record["b"])} for record in records]
    if as_json:
        alike = vectors.on_one_footing()
        print_json([{**record, "beside": beside(alike, record["a"], record["b"])} for record in records])
    else:
        print_comparison(vectors, records)
        if found is not None:
            print_precision(found)
    # a KL that cannot be told passes no gate
    above = [(a, b) for a, b in pairs if fail_above is not None and not vectors.kl()[a, b].value <= fail_above]
    for a, b in above:
        what = f"Not within {fail_above} bits/byte: {plain(a)} and {plain(b)}, {vectors.kl()[a, b]}."
        err.print(what, style="bold red")
    raise typer.Exit(failure_status(outcomes) or (1 if above else 0))


# ------------------------------------------------------------------------------------------------------------ layers


def layers(
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
    from klscale.inputs.references import ModelRef
    from klscale.show.pictures import layer_threads
    from klscale.store.store import Store

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
