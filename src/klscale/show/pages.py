"""The page of a report: its data with `page/`, styles, scripts and plotly in one HTML file, so that it opens from disk
and asks no network for anything. What a reader does with it (choose models, search, sort, download) is in its
scripts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from klscale.errors import printable
from klscale.show.files import whole
from klscale.show.sections import TITLES
from klscale.show.terminal import for_json

SCRIPTS = (
    "numbers", "dom", "data", "selection", "plots", "tables", "panel", "ruler", "map", "heat", "runs", "downloads",
    "main",
)  # fmt: skip
"""Modules of the page, each after those that it imports."""


def render(data: Mapping[str, Any]) -> str:
    """The page with these data, complete in itself. Its content security policy forbids every request, and every script
    but its own."""
    from plotly.offline import get_plotlyjs

    page, shown = files("klscale").joinpath("show/page"), data["sections"]

    def part(name: str) -> str:
        return page.joinpath(name).read_text(encoding="utf-8")

    plotly: str = get_plotlyjs()
    script = _bundle({name: part(f"{name}.js") for name in SCRIPTS})
    text = json.dumps(for_json({key: data[key] for key in data if key != "parts"}), ensure_ascii=False, allow_nan=False)
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in (plotly, script))
    parts = {
        "title": html.escape(data["title"]),
        "facts": "".join(f"<li>{html.escape(printable(fact))}</li>" for fact in data["facts"]),
        "policy": f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'",
        "styles": part("page.css"),
        "links": "".join(f'<a href="#{name}">{TITLES[name]}</a>' for name in shown if name != "map"),
        "data": text.replace("<", "\\u003c"),  # in a script element: no end tag, no comment
        "plotly": f"<script>{plotly}</script>",
        "scripts": f"<script>{script}</script>",
        **data["parts"],
    }
    template = re.sub(
        r"<!-- if (\w+) -->\n(.*?)<!-- end \1 -->\n",
        lambda match: match[2] if match[1] in shown or (data["parts"].get(match[1]) and match[1] not in TITLES) else "",
        part("page.html"),
        flags=re.DOTALL,
    )
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _bundle(modules: Mapping[str, str]) -> str:
    """Modules as one script: a function for each, which gives what the module exports to those that come later."""
    made = ['"use strict";', "const modules = {};"]
    for name, text in modules.items():
        names = re.findall(r"^export (?:async )?(?:function|const) (\w+)", text, flags=re.MULTILINE)
        text = re.sub(
            r"^import (\{[^}]*\}) from \"\./(\w+)\.js\";$", r"const \1 = modules.\2;", text, flags=re.MULTILINE
        )
        text = re.sub(r"^export ", "", text, flags=re.MULTILINE)
        made.append(f"modules.{name} = (() => {{\n{text}\nreturn {{ {', '.join(names)} }};\n}})();")
    return "\n".join(made)


def write(data: Mapping[str, Any], file: Path) -> int:
    """Write the page, whole or not at all; its size in bytes."""
    page = render(data).encode(errors="replace")
    whole(file, lambda temporary: temporary.write_bytes(page))
    return len(page)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
