"""Commands that show all models at once: map, report, serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from klscale.cli.options import (
    STORE,
    BatchOption,
    DeviceOption,
    JsonOption,
    LongOption,
    StoreOption,
    TextsOption,
)
from klscale.cli.steps import failure_status, score_missing, stored_texts, stored_vectors
from klscale.errors import InputError
from klscale.show.files import PAGES, PICTURES, TABLES, require_ending, save
from klscale.show.terminal import err, out, plain, print_json, print_report, progress_bar

if TYPE_CHECKING:
    pass


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
    from klscale.inputs.references import ModelRef
    from klscale.show import reports
    from klscale.show.maps import map_record, map_rows, print_map
    from klscale.show.pictures import model_map
    from klscale.store.store import Store
    from klscale.studies import maps

    if file is not None:
        require_ending(file, (*PAGES, *PICTURES, *TABLES))
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
            save(
                file,
                lambda: map_rows(found, vectors),
                lambda: model_map(found, vectors, colour_by=colour_by, method=method),
            )
        err.print(f"Wrote {plain(file)}.")
    raise typer.Exit(failure_status(outcomes))


def report(
    file: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="Where to write it.")] = Path("report.html"),
    store: StoreOption = STORE,
    texts: TextsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Everything that the store holds as one page: a single file that opens without a network and can be sent."""
    from klscale.show import reports
    from klscale.store.store import Store

    require_ending(file, PAGES)
    place = Store(store)
    with progress_bar() as progress:
        contents = reports.read(place, stored_texts(place, texts), progress=progress)
        data = reports.gather(contents)
        size = reports.write(data, file)
    if as_json:
        print_json({"file": str(file), "bytes": size, "sections": data["sections"], "summary": data["summary"]})
    else:
        print_report(data, file, size)


def serve(
    host: Annotated[str, typer.Option(metavar="HOST", help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    expose: Annotated[bool, typer.Option("--expose", help="Allow a host that other machines can reach.")] = False,
    store: StoreOption = STORE,
    texts: TextsOption = None,
) -> None:
    """The same page on this machine, current at each load. Ctrl-C ends it."""
    from klscale.show import server
    from klscale.store.store import Store

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
