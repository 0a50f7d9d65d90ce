"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

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
