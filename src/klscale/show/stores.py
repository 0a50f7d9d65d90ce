"""What the commands on a store show: import, export, ls, rm, check, compact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from klscale.errors import counted
from klscale.inputs.attributes import is_free
from klscale.show.columns import TEXTS, Column, printed, table
from klscale.show.scoring import print_lost_cuts
from klscale.show.sizes import printed_columns
from klscale.show.terminal import describe_texts, out, plain
from klscale.vectors.sizes import Size

if TYPE_CHECKING:
    from klscale.store.compact import Compacted
    from klscale.store.store import Entry, Store

IMPORTED = (
    *TEXTS,
    Column("models", "The models that were taken in.", value=lambda it: [entry.ref for entry in it.entries]),
)
EXPORTED = (
    Column("model", "The model."),
    Column("file", "Its sample log."),
)
LISTED = (
    Column("id", "Id of the text set."),
    Column("name", "Its name."),
    Column("n_texts", "Its texts.", "texts"),
    Column("mean_bytes", "Mean length of a text.", "bytes"),
    Column("clip", "Lower limit of log-likelihoods that is frozen for these texts; null: none.", "nats"),
    Column("external", "Whether log-likelihoods alone are known, and not the texts."),
    Column("drawn", "Which model wrote the texts, and how; null: none did."),
    Column("models", "The metadata of each vector, as its file has them under `klscale`."),
)
REMOVED = (
    Column("model", "The model.", value=lambda it: it.ref),
    Column("key", "Key of the vector that was taken out.", value=lambda it: it.key),
    Column("file", "The file that held it.", value=lambda it: it.path),
)
"""Of an `Entry`."""
CHECKED = (
    Column("file", "A file of the store."),
    Column("problem", "What is wrong with it; null: nothing."),
    Column("sealed", "Whether it has a seal; files of klscale 0.1.0 have none."),
    Column("lost_cuts", "Share of the cuts between spans that the tokenizer loses; null: it holds no spans.", "share"),
)
COMPACTED = (
    Column("text_set", "Id of the text set."),
    Column("vectors", "Vectors that were put into other files."),
    Column("files_before", "Files that held the vectors of the text set before."),
    Column("files_after", "Files that hold them now."),
)
"""Of a `Compacted`."""
ENTRY = (
    Column("", title="model", cell=lambda it: plain(it.ref), words=True, importance=2),
    Column("", title="key", cell=lambda it: it.key, words=True, importance=2),
    *printed_columns(lambda it: Size.of(it.metadata.get("size") or {})),
    Column("", title="scored", cell=lambda it: plain(str(it.metadata.get("date", ""))[:16]), words=True),
    Column("", title="source", cell=lambda it: plain(_source(it)), words=True, importance=0),
)
"""Of an `Entry`, for the terminal alone."""


def _source(entry: Entry) -> str:
    return str(entry.metadata.get("source", "")) + (f", {entry.first:,} texts" if entry.first else "")


def _attribute(name: str) -> Column:
    """A free attribute of an `Entry`."""
    return Column("", title=plain(name), cell=lambda it: printed(it.metadata["attributes"].get(name)), importance=0)


Listed = Sequence[tuple[Mapping[str, Any], Sequence["Entry"]]]
"""The head of each text set, with those of its vectors that are listed."""


def listed_rows(listed: Listed) -> list[SimpleNamespace]:
    """The text sets as `LISTED` takes them."""
    return [SimpleNamespace(**head, models=[entry.metadata for entry in some]) for head, some in listed]


def print_listed(listed: Listed, store: Store) -> None:
    """A table of the vectors of each text set, with the free attributes that any of them has."""
    if not listed:
        out.print(f"{plain(store.location)} is empty.")
    names = [name for _, some in listed for entry in some for name in entry.metadata["attributes"]]
    columns = (*ENTRY[:-2], *map(_attribute, dict.fromkeys(filter(is_free, names))), *ENTRY[-2:])
    for head, some in listed:
        title = f"{plain(head['name'])} ({head['id']}): {head['n_texts']:,} texts, {counted(len(some), 'model')}"
        out.print(table(columns, some, title))


def print_imported(imported: SimpleNamespace, store: Store) -> None:
    """The texts and the number of models, and what to do next."""
    out.print(describe_texts(imported.texts))
    out.print(f"Imported {counted(len(imported.entries), 'model')} into {plain(store.location)}.")
    out.print("Next: klscale kl, klscale scale, klscale compare.", style="dim")


def checked_rows(found: Sequence[tuple[str, str]], store: Store) -> list[SimpleNamespace]:
    """The files of a store, each with its problem, as `CHECKED` takes them."""
    return [
        SimpleNamespace(
            file=path,
            problem=problem or None,
            sealed=path not in store.unsealed,
            lost_cuts=store.lost_cuts.get(path),
        )
        for path, problem in found
    ]


def print_checked(found: Sequence[tuple[str, str]], store: Store, n_sealed: int | None) -> None:
    """The files with a problem; how many were checked, and sealed now (None: that was not asked for)."""
    bad = [(path, problem) for path, problem in found if problem]
    for path, problem in bad:
        out.print(f"{plain(path)}: {plain(problem)}", style="red")
    if n_sealed is not None:
        out.print(f"{n_sealed} files sealed as they were.")
    out.print(f"{len(found)} files checked, {len(bad)} with a problem.")
    print_lost_cuts(store.lost_cuts)
    if store.unsealed:
        out.print(
            f"{len(store.unsealed)} of them have no seal: klscale 0.1.0 wrote them. A changed clip, length, label"
            " or attribute cannot be seen in them. `klscale check --seal` seals them as they are.",
            style="yellow",
        )


def print_compacted(found: Sequence[Compacted], store: Store, *, undo: bool) -> None:
    """A line for each text set."""
    if not found:
        out.print(f"{plain(store.location)} is empty.")
        return
    names = {head["id"]: head["name"] for head in store.text_sets()}
    for one in found:
        what = "vectors have files of their own again" if undo else "vectors put into compact files"
        files = f"{one.files_before:,} files before, {one.files_after:,} now"
        out.print(f"{plain(names[one.text_set])} ({one.text_set}): {one.vectors:,} {what}; {files}.", soft_wrap=True)
