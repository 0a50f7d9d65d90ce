"""Commands for those who quantize: sensitivity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from klscale.cli.options import JsonOption, MeasuringOptions, at_work
from klscale.errors import InputError
from klscale.show.files import require_ending
from klscale.show.terminal import err, plain, print_json


def sensitivity(
    base: Annotated[str, typer.Argument(metavar="REF", help="The model, not quantized.")],
    quantize: Annotated[
        str, typer.Option(metavar="KIND,...", help="Kinds of weights alone: int8, nf4, fp4, int4, int8-torchao.")
    ],
    by: Annotated[
        str, typer.Option(metavar="module|layer|block", help="A part: a linear layer, an attention or MLP, a block.")
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
    from klscale.show.sensitivity import (
        print_mix,
        print_sensitivity,
        save_recipe,
        save_sensitivity,
        sensitivity_record,
    )
    from klscale.studies.budget import parse_budget
    from klscale.studies.verbs.sensitivity import sensitivity

    if file is not None:
        require_ending(file)
    if recipe is not None:
        require_ending(recipe, (".json",))
        if budget is None:
            raise InputError("--recipe goes with --budget.", "It is the mix that is written.", "--budget 4.5bpw")
    bits = None if budget is None else parse_budget(budget)
    kinds = [kind.strip() for kind in quantize.split(",") if kind.strip()]
    with at_work(options) as how:
        found = sensitivity(base, kinds, by=by, n_texts=n_texts, control=control, budget=bits, options=how)
    if as_json:
        print_json(sensitivity_record(found))
    else:
        print_sensitivity(found.found)
        if found.mix is not None:
            print_mix(found.mix)
    if file is not None:
        save_sensitivity(found.found, file)
        err.print(f"Wrote {plain(file)}.")
    if recipe is not None:
        save_recipe(found, recipe)
        err.print(f"Wrote {plain(recipe)}.")
