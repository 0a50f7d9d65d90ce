"""Tables and texts as Markdown, for cards and papers. Every text is escaped here and nowhere else: names are data."""

from __future__ import annotations

import re

from klscale.errors import printable
from klscale.show.tables import Table


def markdown_table(table: Table) -> list[str]:
    """The lines of a table."""
    rows = zip(*(column.cells for column in table.columns), strict=True)
    return [
        "| " + " | ".join(escaped(column.title) for column in table.columns) + " |",
        "|" + "|".join("---" if column.words else "---:" for column in table.columns) + "|",
        *("| " + " | ".join(map(escaped, row)) + " |" for row in rows),
    ]


def escaped(text: object) -> str:
    """A text that stays what it is: no markup, no HTML, no link."""
    found = re.sub(r"([\\`*_{}\[\]|~#!$])", r"\\\1", printable(text))
    return found.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("://", "&#58;//")
