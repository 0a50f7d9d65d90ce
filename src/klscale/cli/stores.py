"""Commands on the store itself: import, export, ls, rm, check; and doctor."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from klscale.cli.options import JsonOption, StoreOptions, TextsOptions, at_work
from klscale.cli.results import show
from klscale.errors import InputError, nearest
from klscale.show.columns import record, records
from klscale.show.files import DOCUMENTS, require_ending
from klscale.show.terminal import out, plain

if TYPE_CHECKING:
    from klscale.store.store import Entry, Store
    from klscale.studies.verbs.options import Options


def import_command(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="CSV, Parquet, a sample log (.jsonl), or one of the published pickles."),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the text set. Default: the file's.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", metavar="COL", help="Column of row names.")] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV: 'model', and 'type', 'family', 'seed', 'step', ..., or any other column, to keep.",
        ),
    ] = None,
    unit: Annotated[str, typer.Option(metavar="nats|bits", help="Unit of the values.")] = "nats",
    per: Annotated[
        str,
        typer.Option(metavar="text|byte|token", help="What one value stands for; n_tokens counts tokens."),
    ] = "text",
    negate: Annotated[bool, typer.Option("--negate", help="The values are losses: negative log-likelihoods.")] = False,
    decimal: Annotated[
        str | None, typer.Option(metavar=".|,", help="Mark before decimals in a CSV file. Default: found.")
    ] = None,
    duplicates: Annotated[
        str | None,
        typer.Option(metavar="first|number", help="Columns of one name: keep the first, or number them."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="REF", help="The model of a sample log or of scored documents. Default: their directory."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Take values that give implausible bits per byte.")] = False,
    *,
    options: TextsOptions,
    as_json: JsonOption = False,
) -> None:
    """Take in log-likelihoods from elsewhere: one row a text and one column a model, or one row a model and text."""
    from klscale.show.stores import IMPORTED, print_imported
    from klscale.vectors.imports import read_log_likelihoods

    place = options.opened()
    with at_work(options) as how:
        known = None if how.texts is None else how.chosen(place)
        vectors = read_log_likelihoods(
            file, name=name, id_column=id_column, texts=known, attributes=attributes, unit=unit, per=per, negate=negate,
            decimal=decimal, duplicates=duplicates, force=force, model=model, progress=how.progress,
        )  # fmt: skip
        entries = place.import_vectors(vectors, source=file, progress=how.progress)
    imported = SimpleNamespace(texts=vectors.texts, entries=entries)
    show(as_json, lambda: record(IMPORTED, imported), lambda: print_imported(imported, place))


# ------------------------------------------------------------------------------------------------------------ export


def export(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Sample logs of each model go here, or a data set, if it is empty.")
    ],
    models: Annotated[
        list[str] | None, typer.Argument(metavar="REF...", help="Models of the store. Default: all on these texts.")
    ] = None,
    form: Annotated[
        Literal["samples", "dataset"],
        typer.Option(
            "--as",
            help="Sample logs as of lm-evaluation-harness; or compact Parquet files with a card, as the Hugging Face "
            "hub shows them, of all text sets unless --texts names one.",
        ),
    ] = "samples",
    *,
    options: TextsOptions,
    as_json: JsonOption = False,
) -> None:
    """Write log-likelihoods by document as JSON lines, or the store as a data set; klscale reads both."""
    from klscale.show.data_sets import PART, print_data_set, write_data_set
    from klscale.show.files import save_samples
    from klscale.show.stores import EXPORTED

    if form == "dataset":
        with at_work(options) as how:
            place = how.opened()
            ids = _text_sets(place, how)
            parts = write_data_set(place, ids, directory, models or (), how.progress)
        show(as_json, lambda: records(PART, parts), lambda: print_data_set(parts, directory))
        return
    with at_work(options) as how:
        place = how.opened()
        vectors = place.vectors(how.stored(place))
        files = save_samples(directory, vectors, list(dict.fromkeys(models or vectors.names)))
    rows = [SimpleNamespace(model=model, file=file) for model, file in files.items()]

    def tables() -> None:
        for row in rows:
            out.print(f"{plain(row.model)}: {plain(row.file)}", soft_wrap=True)

    show(as_json, lambda: records(EXPORTED, rows), tables)


# -------------------------------------------------------------------------------------------------- ls, rm and check


def _heads(place: Store, how: Options) -> list[dict[str, Any]]:
    """The heads of the text sets of a store, or of those that are asked for by name, id or file. Raises InputError for
    one that the store lacks."""
    heads = place.text_sets()
    if how.texts is None:
        return heads
    texts = str(how.texts)
    asked = how.chosen(place).id if Path(texts).is_file() else texts
    if not (found := [head for head in heads if asked in (head["id"], head["name"])]):
        near = nearest(texts, [head["name"] for head in heads])
        raise InputError(f"{place.location} holds no text set {texts!r}.", near, "klscale ls")
    return found


def _condition(text: str) -> tuple[str, str]:
    """`NAME=VALUE` as both. Raises InputError for anything else."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InputError(f"--where {text!r} is no condition.", remedy="Write NAME=VALUE, for example seed=1.")
    return name, value


def _is(own: Any, asked: str) -> bool:
    """Whether an attribute has a value that is written so: `410M` is 410000000."""
    from klscale.inputs.attributes import parse_parameters

    if isinstance(own, int | float) and not isinstance(own, bool):
        try:
            return own == float(asked)
        except ValueError:
            return own == parse_parameters(asked)
    return fnmatchcase(str(own), asked)


def ls(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATTERN...", help="Only models whose name holds one of these; '*' stands for any text."
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Only models with this attribute; '*' stands for any text. Repeat for more."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write what is printed (.md, .tex).")
    ] = None,
    *,
    options: TextsOptions,
    as_json: JsonOption = False,
) -> None:
    """What the store holds."""
    from klscale.inputs.references import is_named_like
    from klscale.show.stores import LISTED, listed_rows, print_listed

    if file is not None:
        require_ending(file, DOCUMENTS)
    place = options.opened()
    heads = _heads(place, options)
    asked = [_condition(condition) for condition in where or ()]
    entries = {head["id"]: place.entries(head["id"]) for head in heads}
    known = {name for some in entries.values() for entry in some for name in entry.metadata["attributes"]}
    for name, _ in asked:
        if name not in known:
            raise InputError(f"--where: no model has an attribute {name!r}.", nearest(name, known))

    def wanted(entry: Entry) -> bool:
        name, own = str(entry.ref), entry.metadata["attributes"]
        fits = all(attribute in own and _is(own[attribute], value) for attribute, value in asked)
        return fits and (not patterns or is_named_like(name, patterns))

    listed = [(head, list(filter(wanted, entries[head["id"]]))) for head in heads]
    if (patterns or asked) and not any(some for _, some in listed):
        if asked:
            raise InputError(f"{place.location} holds no model with {' and '.join(where or ())}.", remedy="klscale ls")
        names = {str(entry.ref) for some in entries.values() for entry in some}
        first = (patterns or [""])[0]
        raise InputError(f"{place.location} holds no model like {first!r}.", nearest(first, names))
    show(
        as_json,
        lambda: records(LISTED, listed_rows(listed)),
        lambda: print_listed(listed, place),
        file,
        alone=True,
    )


def rm(
    models: Annotated[list[str], typer.Argument(metavar="REF...", help="References or keys, as `ls` shows them.")],
    *,
    options: TextsOptions,
    as_json: JsonOption = False,
) -> None:
    """Take models out of the store. Those that it does not hold are an error, after the others are out."""
    from klscale.show.stores import REMOVED

    place = options.opened()
    entries = [entry for head in _heads(place, options) for entry in place.entries(head["id"])]
    found: list[Entry] = []
    unknown: list[str] = []
    for model in models:
        named = [entry for entry in entries if model in (str(entry.ref), entry.key, entry.metadata["ref"])]
        if not named:
            unknown.append(model)
        if len({entry.text_set for entry in named}) > 1:
            raise InputError(f"{model!r} is there on several text sets.", remedy="Choose one with --texts.")
        found += named
    unique = list({entry.path: entry for entry in found}.values())
    place.remove(*unique)

    def tables() -> None:
        for entry in unique:
            out.print(f"Removed {plain(entry.ref)} ({entry.key}).")

    show(as_json, lambda: records(REMOVED, unique), tables)
    if unknown:  # last: where this was stopped half way, the same command takes out the rest
        near = nearest(unknown[0], {str(entry.ref) for entry in entries})
        raise InputError(f"{place.location} holds no {', '.join(map(repr, unknown))}.", near)


def check(
    seal: Annotated[bool, typer.Option("--seal", help="First seal the files that klscale 0.1.0 wrote.")] = False,
    *,
    options: StoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Is every file of the store whole, and what its name and its seal say?"""
    from klscale.show.stores import CHECKED, checked_rows, print_checked

    place = options.opened()
    n_sealed = len(list(place.seal())) if seal else None
    found = list(place.check())
    show(
        as_json,
        lambda: records(CHECKED, checked_rows(found, place)),
        lambda: print_checked(found, place, n_sealed),
    )
    raise typer.Exit(1 if any(problem for _, problem in found) else 0)


def compact(
    undo: Annotated[bool, typer.Option("--undo", help="Give each vector a file of its own again.")] = False,
    *,
    options: TextsOptions,
    as_json: JsonOption = False,
) -> None:
    """Put the vectors of each text set into few files; every command reads them as before."""
    from klscale.show.stores import COMPACTED, print_compacted

    with at_work(options) as how:
        place = how.opened()
        ids = _text_sets(place, how)
        change = place.expand if undo else place.compact
        found = [change(text_set, progress=how.progress) for text_set in ids]
    show(as_json, lambda: records(COMPACTED, found), lambda: print_compacted(found, place, undo=undo))


def _text_sets(place: Store, how: Options) -> list[str]:
    """The ids of the text set that is asked for, or of all."""
    return [how.stored(place).id] if how.texts is not None else [head["id"] for head in place.text_sets()]


def doctor(*, options: StoreOptions, as_json: JsonOption = False) -> None:
    """Versions, packages, devices, caches and the store, and what is wrong with them. Status 1 where something is."""
    from klscale.show.doctor import FINDING, print_checkup
    from klscale.studies.verbs.doctor import doctor

    with at_work(options) as how:
        found = doctor(options=how)
    show(as_json, lambda: records(FINDING, found.findings), lambda: print_checkup(found))
    raise typer.Exit(1 if found.problems else 0)
