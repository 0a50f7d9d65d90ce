"""What `klscale compact` did to a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from klscale.show.columns import Column
from klscale.show.terminal import out, plain
from klscale.store.compact import Compacted

COMPACTED = (
    Column("text_set", "Id of the text set."),
    Column("vectors", "Vectors that were put into other files."),
    Column("files_before", "Files that held the vectors of the text set before."),
    Column("files_after", "Files that hold them now."),
)
"""Of a `Compacted`."""


def print_compacted(found: Sequence[Compacted], names: Mapping[str, str], *, undo: bool) -> None:
    """A line for each text set."""
    for one in found:
        what = "vectors have files of their own again" if undo else "vectors put into compact files"
        files = f"{one.files_before:,} files before, {one.files_after:,} now"
        out.print(f"{plain(names[one.text_set])} ({one.text_set}): {one.vectors:,} {what}; {files}.", soft_wrap=True)
