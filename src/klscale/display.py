"""How a result shows itself where HTML is shown: in a notebook."""

from __future__ import annotations

from importlib import import_module


class Displayed:
    """A result that a notebook shows as its command prints it, tables as tables, with a picture below."""

    def _repr_html_(self) -> str:
        return str(
            import_module("klscale.show.notebooks").html_of(self)
        )  # above every room: by name, when it is needed
