"""What a command shows of its result: JSON or tables, and the file that --out names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from klscale.errors import KlscaleError
from klscale.show.files import DOCUMENTS, save_document
from klscale.show.terminal import err, plain, print_json


def show(
    as_json: bool,
    record: Callable[[], Any],
    tables: Callable[[], None],
    file: Path | None = None,
    save: Callable[[Path], object] | None = None,
    *,
    alone: bool = False,
) -> None:
    """Show a result as JSON, or as what `tables` prints; and write the `file`: what is printed (.md, .tex), else what
    `save` writes. With `alone` the file stands for the tables.

    The file comes first: who reads but the first lines of a table (`| head`) has it too. A file that cannot be written
    is an error after the tables are shown; one that a wrong argument asks for is an error alone.
    """
    problem: KlscaleError | None = None
    if file is not None:
        try:
            if file.suffix in DOCUMENTS:
                save_document(file, tables)
            elif save is not None:
                save(file)
            err.print(f"Wrote {plain(file)}.")
        except KlscaleError as error:
            problem = error
    if as_json:
        print_json(record())
    elif file is None or not alone or (problem is not None and problem.exit_status != 2):
        tables()
    if problem is not None:
        raise problem
