"""Results as HTML: tables by their columns, figures as inline SVG that reads on light and on dark paper, and CSV.

Every text is escaped here, and nowhere else: names are data."""

from __future__ import annotations

import colorsys
import csv
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from rich.text import Text

from klscale.errors import printable
from klscale.show.columns import Column
from klscale.show.pictures.style import DARK, house_style
from klscale.vectors.spreadsheets import guarded

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def escape(text: object) -> str:
    """A text as HTML, without what would change how the rest is read."""
    return html.escape(printable(text))


def name(text: object) -> str:
    """A name that others chose, isolated from the direction of what surrounds it."""
    return f'<bdi class="name">{escape(text)}</bdi>'


def listed(sentences: Iterable[str], look: str = "notes") -> str:
    """Sentences as a list; nothing for none."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{look}">{items}</ul>' if items else ""


# --------------------------------------------------------------------------------------------------------------- tables


def table(
    columns: Iterable[Column],
    rows: Sequence[Any],
    caption: str,
    *,
    identity: str = "",
    head: str = "",
    tall: bool = False,
) -> str:
    """A table in a box of its own, a row for each source; without columns that are empty in every row. The cells of the
    column with the title `head` are the headings of rows. Headings sort in the browser."""
    shown = [(column, [_cell(column, row) for row in rows]) for column in columns if column.title]
    shown = [(column, cells) for column, cells in shown if any(text for text, _ in cells)]
    heading = "".join(f'<th scope="col"{_look(column)}>{escape(column.title)}</th>' for column, _ in shown)
    body = "".join(
        "<tr>" + "".join(_tagged(column, *cells[n], is_head=column.title == head) for column, cells in shown) + "</tr>"
        for n in range(len(rows))
    )
    of = f' id="{identity}"' if identity else ""
    return (
        f'<div class="scroll{" tall" if tall else ""}" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="sortable"{of}><caption>{escape(caption)}</caption>'
        f"<thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(column: Column, row: Any) -> tuple[str, str]:
    """The text of a cell as HTML, and the number that it sorts by."""
    text = Text.from_markup(column.printed(row), emoji=False).plain  # columns escape for the terminal
    value = column.raw(row) if column.key else None
    value = getattr(value, "kl", value)  # what was measured of a pair
    value = getattr(value, "value", value)
    sort = "" if column.words or isinstance(value, bool) or not isinstance(value, Real) else f"{float(value):.9g}"
    return (name(text) if column.words and text else escape(text)), sort


def _look(column: Column) -> str:
    return "" if column.words else ' class="number"'


def _tagged(column: Column, text: str, sort: str, *, is_head: bool) -> str:
    tag, scope = ("th", ' scope="row"') if is_head else ("td", "")
    key = f' data-sort="{sort}"' if sort else ""
    return f"<{tag}{scope}{_look(column)}{key}>{text}</{tag}>"


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV, headed by their keys. A text that a spreadsheet would compute gets an apostrophe."""
    rows = list(rows)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows({key: _safe(value) for key, value in row.items()} for row in rows)
    return file.getvalue()


def _safe(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else guarded(value)


# -------------------------------------------------------------------------------------------------------------- figures


def drawing(figure: Figure, identity: str) -> str:
    """A figure as inline SVG. Its identities begin with `identity`, as a page has many; its colours are those of the
    figure on light paper, and lighter ones on dark."""
    file = io.StringIO()
    with house_style():
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{identity}-", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg xmlns="http://www.w3.org/2000/svg" '
                 r'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1">', svg, count=1)  # fmt: skip
    svg = re.sub(r"(?<=[: ])#[0-9a-f]{6}\b", lambda match: _on_both_papers(match[0]), svg)
    return svg.replace("<svg ", '<svg fill="currentColor" ', 1)  # what has no fill of its own is ink


def _on_both_papers(colour: str) -> str:
    """A colour of a figure for light and for dark paper: greys change sides, categories have a lighter colour, and a
    colour map stays as it is."""
    dark = {light.lower(): other for light, other in DARK.items()}.get(colour)
    if dark is None:
        red, green, blue = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
        hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
        if max(red, green, blue) - min(red, green, blue) > 0.08:
            return colour
        inverted = colorsys.hls_to_rgb(hue, 0.08 + 0.82 * (1 - light), saturation)
        dark = "#" + "".join(f"{round(255 * part):02x}" for part in inverted)
    return f"light-dark({colour}, {dark})"
