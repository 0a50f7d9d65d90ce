"""Commands that score models: demo, score, compare, layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from klscale.cli.options import JsonOption, LimitedOptions, PMIOption, ScoreOptions, at_work
from klscale.cli.results import show
from klscale.cli.status import failure_status, gate_status
from klscale.errors import InputError, KlscaleError
from klscale.show.files import DOCUMENTS, PICTURES, TABLES, require_ending, save_picture
from klscale.show.scoring import outcome_records, print_failures, print_outcomes, print_plan
from klscale.show.terminal import print_error, progress_bar

# -------------------------------------------------------------------------------------------------------------- demo


def demo(
    directory: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where everything goes.")] = Path(
        "klscale-demo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Shorter runs, fewer checkpoints, 200 texts.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a small suite of models on this machine's own text, score it, print the scale, and write the report. No
    download."""
    from klscale.show import verbs
    from klscale.show.demo import print_demo
    from klscale.show.scale import scale_record

    with progress_bar() as progress:
        found = verbs.demo(directory, quick=quick, progress=progress)
    print_failures(found.scored.outcomes)
    show(as_json, lambda: scale_record(found.scale.vectors, found.scale.settings), lambda: print_demo(found))
    raise typer.Exit(failure_status(found.scored.outcomes))


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
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,...",
            help="Score quantized variants too: int8, nf4, ... In a suite: of each model that is not quantized.",
        ),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Score every layer too, through the logit lens, in the same pass.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be scored and downloaded, and do nothing.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="local|ADDRESS",
            help="Score on the workers of a Ray cluster; 'local' is this machine with all of its GPUs.",
        ),
    ] = None,
    *,
    options: ScoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Score models on the texts: their log-likelihood vectors go into the store. Resumes what was interrupted."""
    from klscale.inputs.references import Model, parse_all
    from klscale.inputs.suites import parse_kinds, read_suite, with_quantized
    from klscale.studies.verbs.score import score

    if bool(models) == bool(suite):
        raise InputError("Give either models or a suite file.", remedy="klscale score REF...  or  --suite FILE")
    kinds, problems = parse_kinds(quantize), tuple[KlscaleError, ...]()
    texts = options.texts
    if suite:
        study = read_suite(suite)
        wanted, texts, problems = list(study.models), texts or study.texts, study.problems
    else:
        wanted = [Model(ref) for ref in parse_all(models or ())]
        for model in wanted:
            if kinds and (model.ref.quantization or model.ref.file):
                what, remedy = f"--quantize is not for {model.ref}.", "Give the model itself, or leave --quantize out."
                raise InputError(what, "What is quantized is not quantized again.", remedy)
    wanted = with_quantized(wanted, kinds)
    for problem in problems:
        print_error(problem)
    with at_work(options) as how:
        found = score(wanted, texts, layers=layers, dry_run=dry_run, ray=ray, options=how)

    def tables() -> None:
        if dry_run:
            print_plan(found.outcomes, len(problems), found.texts)
        else:
            print_outcomes(found.outcomes, len(problems), found.texts, found.store)

    show(as_json, lambda: outcome_records(found.outcomes, problems), tables)
    raise typer.Exit(failure_status(found.outcomes, problems))


# ----------------------------------------------------------------------------------------------------------- compare


def compare(
    models: Annotated[list[str], typer.Argument(metavar="REF REF...", help="Two models or more.")],
    reference: Annotated[str | None, typer.Option(metavar="REF", help="Compare each model with this one only.")] = None,
    fail_above: Annotated[
        float | None, typer.Option(metavar="X", min=0, help="Exit 3 if any KL is above X bits/byte.")
    ] = None,
    confidence: Annotated[
        str | None,
        typer.Option(
            metavar="P%",
            help="Let --fail-above decide by the interval at P %: below X, above it (exit 3), or undecided (exit 4).",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="P%", help="Score only as many random texts as give each KL a standard error of P % of its value."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="KL from the first model against size (.png, .svg, .pdf), or what is printed (.md, .tex).",
        ),
    ] = None,
    by_pmi: PMIOption = False,
    *,
    options: LimitedOptions,
    as_json: JsonOption = False,
) -> None:
    """KL between models with standard errors, which is better and by how much. Scores what the store lacks."""
    from klscale.show.compare import print_comparison, records, rows
    from klscale.show.gate import print_verdicts
    from klscale.studies.gate import parse_confidence, verdict
    from klscale.studies.precision import parse_precision
    from klscale.studies.verbs.compare import compare

    if by_pmi:
        from klscale.show.pmi import pmi_records, print_pmi, save_pmi
        from klscale.studies.verbs.pmi import pmi

        if fail_above is not None or confidence is not None or precision is not None:
            why = "They judge a KL, and the distance of PMI vectors is none."
            raise InputError("--pmi goes without --fail-above, --confidence and --precision.", why, "Leave them out.")
        if file is not None:
            require_ending(file, (*TABLES, *DOCUMENTS))
        with at_work(options) as how:
            distances = pmi(models, reference=reference, options=how)
        print_failures(distances.outcomes)
        show(
            as_json,
            lambda: pmi_records(distances),
            lambda: print_pmi(distances),
            file,
            lambda path: save_pmi(distances, path),
        )
        raise typer.Exit(failure_status(distances.outcomes))
    wanted = None if precision is None else parse_precision(precision)
    if confidence is not None and fail_above is None:
        why = "Without a limit there is nothing to decide."
        raise InputError("--confidence goes with --fail-above.", why, "Give the limit: --fail-above X.")
    certain = None if confidence is None else parse_confidence(confidence)
    if file is not None:
        require_ending(file, (*PICTURES, *DOCUMENTS))  # before hours of scoring
    with at_work(options) as how:
        found = compare(models, reference=reference, precision=wanted, options=how)
    print_failures(found.outcomes)
    compared = rows(found.vectors, found.pairs, found.measured, found.sequential, found.drawn)

    def save(path: Path) -> None:
        from klscale.show.pictures import kl_against_size

        save_picture(path, kl_against_size(found.vectors))

    show(as_json, lambda: records(compared), lambda: print_comparison(found.vectors, compared), file, save)
    status = failure_status(found.outcomes)
    if fail_above is not None:
        verdicts = {pair: verdict(kl, fail_above, certain) for pair, kl in found.pairs.items()}
        print_verdicts(verdicts, fail_above, certain)
        status = gate_status(verdicts.values(), status)
    raise typer.Exit(status)


# ------------------------------------------------------------------------------------------------------------ layers


def layers(
    models: Annotated[list[str], typer.Argument(metavar="REF...", help="Models, each with all of its layers.")],
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write all pairs (.csv, .parquet) or a picture (.png, .svg, .pdf)."),
    ] = None,
    *,
    options: LimitedOptions,
    as_json: JsonOption = False,
) -> None:
    """KL from each layer to the next and to the output, through the logit lens. Scores what the store lacks."""
    from klscale.show.layers import layers_record, print_layers
    from klscale.show.pairs import save_matrix
    from klscale.show.pictures import layer_threads
    from klscale.studies.verbs.layers import layers

    if file is not None:
        require_ending(file)  # before hours of scoring
    with at_work(options) as how:
        found = layers(models, options=how)
    print_failures(found.outcomes)

    def save(path: Path) -> None:
        layers_alone = [ref for ref in found.vectors.models if ref.layer is not None]
        save_matrix(found.vectors.subset(layers_alone), path, layer_threads)

    show(as_json, lambda: layers_record(found.vectors), lambda: print_layers(found.vectors), file, save)
    raise typer.Exit(failure_status(found.outcomes))
