"""Commands for those who quantize: sensitivity, card, check-card, kld."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from klscale.cli.options import DeviceOptions, JsonOption, MeasuringOptions, ScoringOptions, SweepOptions, at_work
from klscale.cli.results import show
from klscale.cli.status import failure_status
from klscale.errors import InputError
from klscale.show.files import require_ending
from klscale.show.scoring import print_failures
from klscale.show.terminal import err, plain


def sensitivity(
    base: Annotated[str, typer.Argument(metavar="REF", help="The model, not quantized.")],
    quantize: Annotated[
        str, typer.Option(metavar="KIND,...", help="Kinds of weights alone: int8, nf4, fp4, int4, int8-torchao.")
    ],
    by: Annotated[
        str,
        typer.Option(
            metavar="PART", help="A part: a linear layer (module), an attention or MLP (layer), a block, or an expert."
        ),
    ] = "module",
    n_texts: Annotated[int, typer.Option("--sample", min=2, metavar="N", help="Texts, drawn at random.")] = 32,
    control: Annotated[
        bool, typer.Option("--control", help="Measure normal noise of the same norm in each part too.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(metavar="BITS", help="Find the mix of these kinds that costs least in so many bits per weight."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Write the mix for llama.cpp and bitsandbytes. Goes with --budget."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write all parts (.csv, .parquet) or a picture (.png, .svg, .pdf)."),
    ] = None,
    *,
    options: MeasuringOptions,
    as_json: JsonOption = False,
) -> None:
    """What each part of a model costs when it alone is quantized: exact next-token KL with standard errors."""
    from klscale.inputs.suites import parse_kinds
    from klscale.show.sensitivity import print_costs, save_recipe, save_sensitivity, sensitivity_record
    from klscale.studies.budget import parse_budget
    from klscale.studies.verbs.sensitivity import sensitivity

    if file is not None:
        require_ending(file)
    if recipe is not None:
        require_ending(recipe, (".json",))
        if budget is None:
            raise InputError("--recipe goes with --budget.", "It is the mix that is written.", "--budget 4.5bpw")
    bits, kinds = None if budget is None else parse_budget(budget), parse_kinds(quantize)
    with at_work(options) as how:
        found = sensitivity(base, kinds, by=by, n_texts=n_texts, control=control, budget=bits, options=how)
    if recipe is not None:
        save_recipe(found, recipe)
        err.print(f"Wrote {plain(recipe)}.")
    show(
        as_json,
        lambda: sensitivity_record(found),
        lambda: print_costs(found),
        file,
        lambda path: save_sensitivity(found.found, path),
    )


# -------------------------------------------------------------------------------------------------------------- cards


def card(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that the others are compared with.")],
    variants: Annotated[list[str], typer.Argument(metavar="VARIANT...", help="Models that were made from it.")],
    file: Annotated[
        Path,
        typer.Option("--out", metavar="FILE.md", help="The card; its numbers go beside it, as FILE.parquet."),
    ] = Path("klscale-card.md"),
    n_texts: Annotated[
        int,
        typer.Option(
            "--sample", min=0, metavar="N", help="Texts for exact KL of next tokens, drawn at random; 0: without."
        ),
    ] = 200,
    *,
    options: SweepOptions,
    as_json: JsonOption = False,
) -> None:
    """A card for a model page: KL, its quantiles over tokens, bits per byte, size, with the numbers to check it by."""
    from klscale.show.cards import card, card_record, print_card

    with at_work(options) as how:
        made = card(base, variants, file, n_texts=n_texts, options=how)
    print_failures(made.outcomes)
    show(as_json, lambda: card_record(made), lambda: print_card(made))
    raise typer.Exit(failure_status(made.outcomes))


def check_card(
    file: Annotated[Path, typer.Argument(metavar="FILE.md", help="A card, or the page that it stands on.")],
    again: Annotated[
        bool, typer.Option("--rescore", help="Score the models again too, and compare: they and the texts are needed.")
    ] = False,
    *,
    options: ScoringOptions,
    as_json: JsonOption = False,
) -> None:
    """Compute a card again from the numbers beside it; exit 1 where a value or a line does not agree."""
    from klscale.show.card_checks import check_card, check_record, print_check

    with at_work(options) as how:
        found = check_card(file, rescore=again, options=how)
    show(as_json, lambda: check_record(found), lambda: print_check(found))
    raise typer.Exit(int(not found.agrees))


# --------------------------------------------------------------------------------------------------------------- kld


def kld(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Log-probabilities as llama-perplexity keeps them.")],
    models: Annotated[list[str], typer.Argument(metavar="REF...", help="Models with the same token ids.")],
    n_chunks: Annotated[
        int | None, typer.Option("--chunks", min=2, metavar="N", help="The first N chunks alone. Default: all.")
    ] = None,
    *,
    options: DeviceOptions,
    as_json: JsonOption = False,
) -> None:
    """KL from a model whose log-probabilities llama.cpp has kept to others, with standard errors over chunks."""
    from klscale.show.stored_logits import print_stored_kl, stored_kl_record
    from klscale.studies.verbs.kld import kld

    with at_work(options) as how:
        found = kld(file, models, n_chunks=n_chunks, options=how)
    show(as_json, lambda: stored_kl_record(found), lambda: print_stored_kl(found))
