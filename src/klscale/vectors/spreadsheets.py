"""Texts in CSV that a spreadsheet would run as formulas: guarded where they are written, as they were where read."""

from __future__ import annotations

import re
from typing import Any

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_GUARDED = r"^'('*[=+\-@\t\r\n])"


def guarded(cell: Any) -> Any:
    """A cell behind an apostrophe where it is a text that a spreadsheet would compute, or that looks guarded."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """The text that `guarded` was given."""
    return re.sub(_GUARDED, r"\1", cell)


def unguarded_cells(cells: Any) -> Any:
    """The same of an Arrow column of strings."""
    from pyarrow import compute

    return compute.replace_substring_regex(cells, _GUARDED, r"\1")
