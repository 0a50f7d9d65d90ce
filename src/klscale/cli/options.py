"""Options that several commands share: a command takes those fields of `Options` that it names, as one object."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, get_args

import typer

from klscale.show.terminal import out, progress_bar
from klscale.studies.verbs.options import HELP, READING, STORE, Options

WideOption = Annotated[bool, typer.Option("--wide", help="Tables with all columns and whole names, of any width.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
PMIOption = Annotated[
    bool,
    typer.Option(
        "--pmi", help="Distances of PMI vectors instead: what the prompts add to the responses. They are no KL."
    ),
]

FIELDS: dict[str, tuple[Any, Any]] = {
    "store": (
        Annotated[str, typer.Option("--store", envvar="KLSCALE_STORE", metavar="DIR", help=HELP["store"])],
        STORE,
    ),
    "texts": (Annotated[str | None, typer.Option("--texts", metavar="NAME|FILE", help=HELP["texts"])], None),
    "device": (Annotated[str | None, typer.Option(help=HELP["device"])], None),
    "batch_tokens": (Annotated[int | None, typer.Option(min=1, metavar="TOKENS", help=HELP["batch_tokens"])], None),
    "long_texts": (Annotated[str, typer.Option(metavar="error|skip|window", help=HELP["long_texts"])], "error"),
    "split_special_tokens": (
        Annotated[bool, typer.Option("--split-special-tokens", help=HELP["split_special_tokens"])],
        False,
    ),
    "template": (Annotated[str | None, typer.Option(metavar="own|none|FILE", help=HELP["template"])], None),
    "sampled_tokens": (
        Annotated[int | None, typer.Option(min=0, metavar="TEXTS", help=HELP["sampled_tokens"])],
        None,
    ),
    "limit": (Annotated[int | None, typer.Option(min=2, metavar="N", help=HELP["limit"])], None),
    "rescore": (Annotated[bool, typer.Option("--rescore", help=HELP["rescore"])], False),
    "keep_downloads": (Annotated[bool, typer.Option("--keep-downloads", help=HELP["keep_downloads"])], False),
}
"""Each field of `Options` as a parameter of a command, and its default there."""

_SCORING = ("store", "texts", *READING, "sampled_tokens")
StoreOptions = Annotated[Options, ("store",)]
TextsOptions = Annotated[Options, ("store", "texts")]
ScoringOptions = Annotated[Options, _SCORING]
LimitedOptions = Annotated[Options, (*_SCORING, "limit")]
ScoreOptions = Annotated[Options, (*_SCORING, "limit", "rescore", "keep_downloads")]
RunOptions = Annotated[Options, (*_SCORING, "keep_downloads")]
SweepOptions = Annotated[Options, (*_SCORING, "rescore", "keep_downloads")]
MeasuringOptions = Annotated[Options, ("store", "texts", "device", "batch_tokens", "split_special_tokens")]
DeviceOptions = Annotated[Options, ("device", "batch_tokens")]
DrawOptions = Annotated[Options, ("store", "device", "batch_tokens", "split_special_tokens")]
TwoTextsOptions = Annotated[Options, ("store", "device", "batch_tokens", "long_texts")]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer reads it: with a parameter for each field that its `options` names, in place of that. Each
    that prints tables or JSON has --wide."""
    parameters: list[inspect.Parameter] = []
    names: tuple[str, ...] = ()
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name == "options":
            names = get_args(parameter.annotation)[1]
            parameters += [
                inspect.Parameter(name, parameter.KEYWORD_ONLY, annotation=FIELDS[name][0], default=FIELDS[name][1])
                for name in names
            ]
        else:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
    if any(parameter.name == "as_json" for parameter in parameters):
        parameters.append(
            inspect.Parameter("wide", inspect.Parameter.KEYWORD_ONLY, annotation=WideOption, default=False)
        )

    def run(**given: Any) -> None:
        out.widen(given.pop("wide", False))
        if names:
            given["options"] = Options(**{name: given.pop(name) for name in names})
        command(**given)

    run.__doc__ = command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(run)["__signature__"] = inspect.Signature(parameters)
    return run


@contextmanager
def at_work(options: Options) -> Iterator[Options]:
    """The options with a bar that shows how work goes, while it does."""
    with progress_bar() as progress:
        yield replace(options, progress=progress)
