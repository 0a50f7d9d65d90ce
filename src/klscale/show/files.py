"""Files that a result is kept in: tables, pictures, pages; each whole or not there."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.text import Text

from klscale.errors import InputError, StorageError, nearest
from klscale.show.markdown import escaped, markdown_table
from klscale.show.tables import Table
from klscale.show.terminal import for_json, out

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from klscale.vectors.vectors import Vectors

TABLES, PICTURES, PAGES = (".csv", ".parquet"), (".png", ".svg", ".pdf"), (".html", ".htm")
DOCUMENTS = (".md", ".tex")
"""Endings of files; the ending says what is written."""


def require_ending(file: Path, endings: Sequence[str] = (*TABLES, *PICTURES)) -> None:
    """Raises InputError for a file that does not end as one of these, by default a table or a picture."""
    if file.suffix not in endings:
        example = f"Name it {file.stem or 'klscale'}{endings[0]}, for example."
        raise InputError(
            f"{file}: unknown ending {file.suffix!r}." if file.suffix else f"{file} has no ending.",
            f"It says what is written: {', '.join(endings)}.",
            nearest(file.suffix, endings) if file.suffix else example,
        )


def save(
    file: Path,
    rows: Callable[[], Sequence[Mapping[str, Any]] | Mapping[str, Any]],
    picture: Callable[[], Figure],
) -> None:
    """A table (.csv, .parquet) of rows or arrays, or a picture (.png, .svg, .pdf), by the file's ending."""
    require_ending(file)
    if file.suffix in TABLES:
        save_table(file, rows())
    else:
        save_picture(file, picture())


def save_table(file: Path, rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> None:
    """Rows, or arrays by key, as CSV or Parquet."""
    import pandas as pd

    from klscale.vectors.spreadsheets import guarded

    made = pd.DataFrame(rows)
    if file.suffix == ".csv":
        words = made.select_dtypes(exclude=["number", "bool"]).map(guarded)
        safe = made.assign(**{str(name): cells for name, cells in words.items()}).rename(columns=guarded)
        # Python quotes no carriage return by itself, and readers take it for the end of a line.
        returns = any("\r" in cell for _, cells in words.items() for cell in cells if isinstance(cell, str))
        quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
        whole(file, lambda temporary: safe.to_csv(temporary, index=False, quoting=quoting, errors="backslashreplace"))
    else:
        whole(file, lambda temporary: made.to_parquet(temporary, index=False))


def save_document(file: Path, show: Callable[[], None]) -> None:
    """What `show` prints, as Markdown or LaTeX (tables of booktabs), by the file's ending. Tables have all their
    columns; in LaTeX other lines are comments."""
    require_ending(file, DOCUMENTS)
    with out.recorded() as printed:
        show()
    write = _markdown if file.suffix == ".md" else _latex
    text = "\n\n".join(part for part in map(write, printed) if part) + "\n"
    whole(file, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def _markdown(printed: Any) -> str:
    if not isinstance(printed, Table):
        return "\n".join(map(escaped, _plain(printed).splitlines()))
    title = f"**{escaped(_plain(printed.title))}**\n\n" if printed.title else ""
    return title + "\n".join(markdown_table(printed))


def _latex(printed: Any) -> str:
    if not isinstance(printed, Table):
        return "\n".join(f"% {line}" for line in _plain(printed).splitlines())
    rows = [[column.title for column in printed.columns]]
    rows += [[*row] for row in zip(*(column.cells for column in printed.columns), strict=True)]
    titles, *cells = [" & ".join(cell.translate(_LATEX) for cell in row) + r" \\" for row in rows]
    kinds = "".join("l" if column.words else "r" for column in printed.columns)
    head = [_latex(printed.title)] if printed.title else []
    begin, end = rf"\begin{{tabular}}{{{kinds}}}", r"\end{tabular}"
    return "\n".join([*head, begin, r"\toprule", titles, r"\midrule", *cells, r"\bottomrule", end])


def _plain(printed: Any) -> str:
    return (Text.from_markup(printed) if isinstance(printed, str) else printed).plain.strip()


_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "∞": r"$\infty$",
    "‖": r"$\Vert$", **{mark: f"\\{mark}" for mark in "{}$&#_%"},
})  # fmt: skip
"""Characters that LaTeX would not print as they are."""


def save_picture(file: Path, figure: Figure) -> None:
    """A figure as PNG, SVG or PDF."""
    from klscale.show import pictures

    whole(file, lambda temporary: pictures.save(figure, temporary))


def save_json(file: Path, value: Any) -> None:
    """A result as JSON."""
    text = json.dumps(for_json(value), indent=2, allow_nan=False) + "\n"
    whole(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_samples(directory: Path, vectors: Vectors, models: Sequence[str]) -> dict[str, Path]:
    """A sample log for each model, `DIR/org__model/samples_TEXTS.jsonl`; the file of each. Raises InputError for a
    model that is not there, for texts that are not here, and for two models of one directory; and StorageError."""
    from klscale.vectors.samples import samples

    texts = re.sub(r"[^\w.-]+", "_", vectors.texts.name)[:60].strip(".") or vectors.texts.id
    files = {model: directory / _directory_of(model) / f"samples_{texts}.jsonl" for model in models}
    if twice := [model for model, file in files.items() if [*files.values()].count(file) > 1]:
        raise InputError(f"{' and '.join(twice[:2])} would be written to one file.", remedy="Write them one at a time.")
    for model, file in files.items():
        lines = [line.encode("utf-8", "replace") + b"\n" for line in samples(vectors, model)]
        whole(file, lambda temporary, lines=lines: temporary.write_bytes(b"".join(lines)))  # type: ignore[misc]
    return files


def _directory_of(model: str) -> str:
    """The name of a model as one directory."""
    return re.sub(r"[^\w.+@%-]+", "__", model)[:200].strip(".") or "model"


def whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` write a file, whole or not at all; what killed processes have left beside it is cleared. Raises
    StorageError where it cannot be written."""
    from klscale.store.whole import clear_abandoned, write_whole

    clear_abandoned(file.parent)
    try:
        write_whole(file, write)
    except OSError as error:
        raise StorageError(
            f"{file} could not be written.", f"{error.strerror or error}.", "Name another place."
        ) from error
