"""The command that puts the numbers themselves to the test: validate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from klscale.cli.options import JsonOption, TwoTextsOptions, at_work
from klscale.cli.results import show
from klscale.cli.status import failure_status
from klscale.errors import InputError
from klscale.show.files import PICTURES, require_ending, save_picture
from klscale.show.scoring import print_failures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from klscale.studies.verbs.validate import Validation


def validate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF...",
            help="Only these models; of two, the texts that carry their KL. Default: all.",
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Compare each estimate with exact next-token KL; one tokenizer only."),
    ] = False,
    noise: Annotated[
        bool,
        typer.Option(
            "--noise",
            help="Measure run-to-run noise: other batches, other orders, other dtypes.",
        ),
    ] = False,
    n_texts: Annotated[
        int,
        typer.Option("--sample", min=2, metavar="N", help="Texts for --exact and --noise, drawn at random."),
    ] = 500,
    texts: Annotated[
        list[str] | None,
        typer.Option("--texts", metavar="NAME|FILE", help="Text set. Twice: do two sets agree on the same models?"),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write a picture to .png, .svg or .pdf.")
    ] = None,
    *,
    options: TwoTextsOptions,
    as_json: JsonOption = False,
) -> None:
    """How much the numbers depend on texts, domains, clip, tails and precision; the estimate against exact KL."""
    from klscale.studies.verbs.validate import validate

    if file is not None:
        require_ending(file, PICTURES)
        if noise:
            raise InputError("--noise makes no picture.", "It is a table of a few numbers.", "Keep it with --json.")
    with at_work(options) as how:
        found = validate(models or (), texts, exact=exact, noise=noise, n_texts=n_texts, options=how)
    print_failures(found.outcomes)
    shown = _shown(found)
    draw = shown.picture
    save = None if draw is None else lambda path: save_picture(path, draw())
    show(as_json, shown.record, shown.tables, file, save)
    raise typer.Exit(failure_status(found.outcomes) or int(not found.complete))


class _Shown(NamedTuple):
    """A study for a machine, for a person, as a picture."""

    record: Callable[[], dict[str, Any]]
    tables: Callable[[], None]
    picture: Callable[[], Figure] | None = None


def _shown(found: Validation) -> _Shown:
    from klscale.show import pictures
    from klscale.show.calibration import calibration_record, print_calibration
    from klscale.show.noise import noise_record, print_noise
    from klscale.show.tails import pair_tails_record, print_pair_tails, print_summary, print_tails, tails_record
    from klscale.show.text_sets import (
        comparison_record,
        print_sensitivity,
        print_text_set_comparison,
        sensitivity_record,
    )
    from klscale.studies.tails import PairTails

    texts, sensitivity, tails, agreement = found.texts[0], found.sensitivity, found.tails, found.agreement
    if agreement is not None:
        return _Shown(
            lambda: comparison_record(agreement),
            lambda: print_text_set_comparison(agreement, *found.texts),
            lambda: pictures.two_text_sets(agreement),
        )
    if found.vectors is None:
        return _Shown(lambda: noise_record(found.noise, texts), lambda: print_noise(found.noise, texts))
    vectors = found.vectors
    if sensitivity is None or tails is None:
        return _Shown(
            lambda: calibration_record(found.exact, vectors),
            lambda: print_calibration(found.exact, vectors),
            lambda: pictures.estimate_against_exact(found.exact),
        )

    def record() -> dict[str, Any]:
        of_tails = pair_tails_record(tails, vectors) if isinstance(tails, PairTails) else tails_record(tails, vectors)
        return {"texts": sensitivity_record(sensitivity, texts), "tails": of_tails}

    def tables() -> None:
        print_summary(sensitivity, tails, vectors)
        print_sensitivity(sensitivity)
        if isinstance(tails, PairTails):
            print_pair_tails(tails)
        else:
            print_tails(tails)

    def picture() -> Figure:
        if isinstance(tails, PairTails):
            return pictures.text_contributions(tails)
        return pictures.text_set_sensitivity(sensitivity, texts)

    return _Shown(record, tables, picture)
