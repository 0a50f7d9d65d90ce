"""Commands that show all models at once: map, report, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from klscale.cli.options import JsonOption, PMIOption, ScoringOptions, TextsOptions, at_work
from klscale.cli.results import show
from klscale.cli.status import failure_status
from klscale.errors import InputError
from klscale.show.columns import record
from klscale.show.files import PAGES, PICTURES, TABLES, require_ending
from klscale.show.scoring import print_failures
from klscale.show.terminal import out, plain


def map_command(
    file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write a page (.html), picture (.png, .svg, .pdf) or table (.csv, .parquet).",
        ),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(metavar="REF", help="Place this model on the kept map; no other moves. Repeat for more."),
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Make a new map of all models, even if one is kept.")] = False,
    method: Annotated[Literal["tsne", "pca"], typer.Option(help="What a picture shows.")] = "tsne",
    colour_by: Annotated[str, typer.Option("--colour", metavar="ATTRIBUTE", help="What colours a picture.")] = "family",
    *,
    by_pmi: PMIOption = False,
    options: ScoringOptions,
    as_json: JsonOption = False,
) -> None:
    """All models as points: principal components, t-SNE, and the nearest models. The store keeps the map."""
    if by_pmi:
        from klscale.show.pmi import pmi_map_record, print_pmi_map, save_pmi_map
        from klscale.studies.verbs.pmi import pmi_map

        if add or anew:
            raise InputError(
                "--pmi goes without --add and --anew.", "A map of PMI vectors is not kept.", "Leave them out."
            )
        if file is not None:
            require_ending(file, (*PICTURES, *TABLES))
        with at_work(options) as how:
            of_pmi = pmi_map(options=how)
        show(
            as_json,
            lambda: pmi_map_record(of_pmi),
            lambda: print_pmi_map(of_pmi),
            file,
            lambda path: save_pmi_map(of_pmi, path, colour_by, method),
            alone=True,
        )
        return

    from klscale.show.maps import map_record, print_map, save_map
    from klscale.studies.verbs.map import map_models

    if file is not None:
        require_ending(file, (*PAGES, *PICTURES, *TABLES))
    with at_work(options) as how:
        found = map_models(add=add or (), anew=anew, options=how)
    print_failures(found.outcomes)

    def save(path: Path) -> None:
        if path.suffix in PAGES:
            from klscale.show import pages, reports
            from klscale.show.contents import contents_of_map

            contents = contents_of_map(found.store, found.vectors, found.map)
            pages.write(reports.gather(contents, reports.MAP), path)
        else:
            save_map(found.map, found.vectors, path, colour_by, method)

    show(
        as_json,
        lambda: map_record(found.map, found.vectors),
        lambda: print_map(found.map, found.vectors),
        file,
        save,
        alone=True,
    )
    raise typer.Exit(failure_status(found.outcomes))


def report(
    file: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="Where to write it.")] = Path("report.html"),
    *,
    options: TextsOptions,
    as_json: JsonOption = False,
) -> None:
    """Everything that the store holds as one page: a single file that opens without a network and can be sent."""
    from klscale.show.reports import REPORT, print_report
    from klscale.show.verbs import report

    require_ending(file, PAGES)
    with at_work(options) as how:
        found = report(file, options=how)
    show(as_json, lambda: record(REPORT, found), lambda: print_report(found.data, found.file, found.size))


def serve(
    host: Annotated[str, typer.Option(metavar="HOST", help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 8765,
    expose: Annotated[bool, typer.Option("--expose", help="Allow a host that other machines can reach.")] = False,
    *,
    options: TextsOptions,
) -> None:
    """The same page on this machine, current at each load. Ctrl-C ends it."""
    from klscale.show import server
    from klscale.studies.verbs.score import stored_vectors

    with at_work(options) as how:
        place = how.opened()
        texts = stored_vectors(place, how).texts.id  # two models, or there is nothing to show
        application = server.application(place, texts, host=host, progress=how.progress)
        listening = server.listen(host, port, expose=expose)
        name, at, *_ = listening.getsockname()
        out.print(
            f"http://{f'[{name}]' if ':' in name else name}:{at}/  shows {plain(place.location)}. Ctrl-C ends it."
        )
        try:
            server.run(application, listening)
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error
