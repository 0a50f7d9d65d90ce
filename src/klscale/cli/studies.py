"""Commands that study what is scored: trajectory, kl, scale, place, predict, changes, drift."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from klscale.cli.options import JsonOption, PMIOption, RunOptions, ScoringOptions, TextsOptions, at_work
from klscale.cli.results import show
from klscale.cli.status import failure_status, gate_status
from klscale.errors import InputError
from klscale.show.files import DOCUMENTS, PAGES, PICTURES, TABLES, require_ending
from klscale.show.scoring import print_failures
from klscale.studies.verbs.options import Options

SAVED = "Write all pairs (.csv, .parquet), a picture (.png, .svg, .pdf), or what is printed (.md, .tex)."

# -------------------------------------------------------------------------------------------------------- trajectory


def trajectory(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...",
            help="Directories of checkpoints, 'NAME@step*' of the hub, or runs of the store. Default: all of these. "
            "With --by: parts of names, as of `ls`.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="ATTRIBUTE",
            help="Models of the store in the order of this number instead of steps: learning_rate, data_tokens.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0,
            help="Settled: within X bits/byte of the last one. Default: the median KL between seeds.",
        ),
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(metavar="STEP", min=0, help="Where warm-up ends. Default: what is known of the run.")
    ] = None,
    directional: Annotated[
        int | None,
        typer.Option(metavar="STEP", help="Measure the directional exponent too, at this checkpoint."),
    ] = None,
    subtract_noise: Annotated[
        bool,
        typer.Option("--subtract-noise", help="Subtract run-to-run noise from the distances behind the exponents."),
    ] = False,
    lags: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=5, help="Later checkpoints that each exponent is fitted over. Default: 10, or all."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write all checkpoints (.csv, .parquet) or a picture (.png, .svg, .pdf)."
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--all", help="More checkpoints, and tables of exponents, laws, stabilisation and shape.")
    ] = False,
    *,
    options: RunOptions,
    as_json: JsonOption = False,
) -> None:
    """How training runs move: KL along training, exponents c_q and c_w, stabilisation. Scores what the store lacks."""
    from klscale.show.trajectories import print_trajectories, save_trajectories, trajectories_record
    from klscale.studies.verbs.trajectory import trajectory

    if file is not None:
        require_ending(file)
    if by is not None:
        of_runs = {"--threshold": threshold, "--warmup": warmup, "--directional": directional, "--lags": lags,
                   "--subtract-noise": subtract_noise or None}  # fmt: skip
        if given := [option for option, value in of_runs.items() if value is not None]:
            raise InputError(f"--by and {given[0]} exclude each other.", f"{given[0]} is for steps.", "Keep one.")
        _show_along(by, runs or [], file, as_json, whole, options)
        return
    with at_work(options) as how:
        found = trajectory(
            runs or (), threshold=threshold, warmup=warmup, directional=directional, subtract_noise=subtract_noise,
            lags=lags, options=how,
        )  # fmt: skip
    print_failures(found.outcomes)
    shown = found.runs, found.seeds, found.directions, found.texts, found.threshold_source
    show(
        as_json,
        lambda: trajectories_record(*shown),
        lambda: print_trajectories(*shown, whole=whole),
        file,
        lambda path: save_trajectories(found.runs, path),
    )
    raise typer.Exit(failure_status(found.outcomes))


def _show_along(
    attribute: str, models: list[str], file: Path | None, as_json: bool, whole: bool, options: Options
) -> None:
    from klscale.show.series import print_series, save_series, series_record
    from klscale.studies.verbs.trajectory_by import trajectory_by

    with at_work(options) as how:
        found = trajectory_by(attribute, models, options=how)
    show(
        as_json,
        lambda: series_record(found),
        lambda: print_series(found, whole=whole),
        file,
        lambda path: save_series(found, path),
    )


# ---------------------------------------------------------------------------------------------------------------- kl


def kl(
    of: Annotated[
        str | None, typer.Option(metavar="REF", help="Only the pairs with this model of the store, nearest first.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help=SAVED),
    ] = None,
    by_pmi: PMIOption = False,
    *,
    options: TextsOptions,
    as_json: JsonOption = False,
) -> None:
    """KL between all pairs of models in the store, or from one model to all others, with standard errors."""
    from klscale.show.pairs import matrix_record, print_matrix, save_matrix
    from klscale.studies.verbs.score import stored_vectors

    if by_pmi:
        from klscale.show.pmi import pmi_records, print_pmi, save_pmi
        from klscale.studies.verbs.pmi import pmi

        if of is not None:
            raise InputError("--of and --pmi exclude each other.", remedy="klscale kl --pmi --out FILE.csv")
        if file is not None:
            require_ending(file, (*TABLES, *DOCUMENTS))
        with at_work(options) as how:
            found = pmi(options=how)
        show(as_json, lambda: pmi_records(found), lambda: print_pmi(found), file, lambda path: save_pmi(found, path))
        return
    if file is not None:
        require_ending(file, (*TABLES, *(() if of else PICTURES), *DOCUMENTS))
    with at_work(options) as how:
        vectors = stored_vectors(how.opened(), how, holding=of)
    if of is not None:
        of = vectors.names[vectors.position(of)]

    def save(path: Path) -> None:
        from klscale.show.pictures import kl_heat_map

        save_matrix(vectors, path, kl_heat_map, of)

    show(as_json, lambda: matrix_record(vectors, of), lambda: print_matrix(vectors, of), file, save, alone=True)


# ------------------------------------------------------------------------------------------------------------- scale


def scale(
    published: Annotated[bool, typer.Option("--published", help="Show the published values, with sources.")] = False,
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help=SAVED),
    ] = None,
    *,
    options: TextsOptions,
    as_json: JsonOption = False,
) -> None:
    """KL of each setting (checkpoint, seed, size, quantization, ...) in the store, beside the published values."""
    from klscale.show.scale import print_published, print_scale, published_record, save_scale, scale_record
    from klscale.studies.verbs.scale import scale

    if published:
        show(as_json, published_record, print_published)
        return
    if file is not None:
        require_ending(file, (*TABLES, *PICTURES, *DOCUMENTS))
    with at_work(options) as how:
        found = scale(options=how)
    show(
        as_json,
        lambda: scale_record(found.vectors, found.settings),
        lambda: print_scale(found.vectors, found.settings),
        file,
        lambda path: save_scale(found.vectors, found.settings, path),
        alone=True,
    )


# ------------------------------------------------------------------------------------------------------------- place


def place(
    model: Annotated[str, typer.Argument(metavar="REF", help="The model; it is scored where the store lacks it.")],
    among: Annotated[
        str | None, typer.Option(metavar="DIR", help="A store with the other models. Default: the same store.")
    ] = None,
    *,
    options: ScoringOptions,
    as_json: JsonOption = False,
) -> None:
    """Where a model stands among others: the nearest, its family, what it derives from, how far off it is."""
    from klscale.show.placing import placement_record, print_placement
    from klscale.studies.verbs.place import place

    with at_work(options) as how:
        found = place(model, among=among, options=how)
    show(as_json, lambda: placement_record(found), lambda: print_placement(found))


# ----------------------------------------------------------------------------------------------------------- predict


def predict(
    scores: Annotated[
        str,
        typer.Option("--scores", metavar="FILE", help="CSV or Parquet: a column of models, and columns of scores."),
    ],
    file: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write all models (.csv, .parquet) or a picture (.png, .svg, .pdf)."
        ),
    ] = None,
    *,
    options: TextsOptions,
    as_json: JsonOption = False,
) -> None:
    """Benchmark scores from log-likelihoods: errors on types of models held out, and scores of models without any."""
    from klscale.show.predicting import predictions_record, print_predictions, save_predictions
    from klscale.studies.verbs.predict import predict

    if file is not None:
        require_ending(file)
    with at_work(options) as how:
        found = predict(scores, options=how)
    show(
        as_json,
        lambda: predictions_record(found),
        lambda: print_predictions(found),
        file,
        lambda path: save_predictions(found, path),
    )


# ----------------------------------------------------------------------------------------------------------- changes


def changes(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that the others were made from.")],
    variants: Annotated[
        list[str], typer.Argument(metavar="VARIANT...", help="Pruned, distilled, merged or edited models.")
    ],
    most: Annotated[int, typer.Option("--most", min=1, metavar="N", help="Texts and spans that are named.")] = 10,
    exact: Annotated[
        bool, typer.Option("--exact", help="Read these texts again, for exact KL of each next token; one tokenizer.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write every span (.csv, .parquet), or the texts in colours (.html)."
        ),
    ] = None,
    *,
    options: ScoringOptions,
    as_json: JsonOption = False,
) -> None:
    """What changed most from a model to others: KL by domain, and the texts and spans that are predicted otherwise."""
    from klscale.show.changes import changes_record, print_changes, save_changes
    from klscale.studies.verbs.changes import changes

    if file is not None:
        require_ending(file, (*TABLES, *PAGES))  # before hours of scoring
    with at_work(options) as how:
        found = changes(base, variants, most=most, exact=exact, options=how)
    print_failures(found.outcomes)
    show(
        as_json,
        lambda: changes_record(found),
        lambda: print_changes(found),
        file,
        lambda path: save_changes(found, path),
    )
    raise typer.Exit(failure_status(found.outcomes))


# ------------------------------------------------------------------------------------------------------------- drift


def drift(
    a: Annotated[str, typer.Argument(metavar="A", help="A model.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same in another engine or dtype, or on another day.")],
    fail_above: Annotated[
        float | None, typer.Option(metavar="X", min=0, help="Exit 3 if the KL is above X bits/byte.")
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, metavar="N", help="Positions that are named.")] = 10,
    alarm: Annotated[
        str | None,
        typer.Option(
            metavar="P%",
            help="B is stored runs of a server, as 'http://HOST/v1?label=*#M'. Exit 3 where one differs from the first."
            " Without a change the chance of that is at most P %, however often one looks.",
        ),
    ] = None,
    *,
    options: ScoringOptions,
    as_json: JsonOption = False,
) -> None:
    """Do two engines, dtypes or days compute the same model? KL beside run-to-run noise, by depth, and where."""
    if alarm is not None:
        from klscale.show.alarm import alarm_record, print_alarm
        from klscale.studies.alarm import parse_level
        from klscale.studies.verbs.drift import drift_alarm

        if fail_above is not None:
            why = "A limit judges one KL, an alarm all runs together."
            raise InputError("--alarm and --fail-above exclude each other.", why, "Keep one of them.")
        level = parse_level(alarm)
        with at_work(options) as how:
            looks = drift_alarm(a, b, level=level, options=how)
        show(as_json, lambda: alarm_record(looks), lambda: print_alarm(looks))
        raise typer.Exit(0 if looks.found.first_alarm is None else 3)
    from klscale.show.drift import drift_record, print_drift
    from klscale.show.gate import print_verdicts
    from klscale.studies.gate import verdict
    from klscale.studies.verbs.drift import drift

    with at_work(options) as how:
        found = drift(a, b, most=most, options=how)
    print_failures(found.outcomes)
    show(as_json, lambda: drift_record(found), lambda: print_drift(found))
    status = 0
    if fail_above is not None:
        verdicts = {(found.found.a, found.found.b): verdict(found.found.kl, fail_above)}
        print_verdicts(verdicts, fail_above, None)
        status = gate_status(verdicts.values())
    raise typer.Exit(status)
