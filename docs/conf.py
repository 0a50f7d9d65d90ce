"""The documentation as a site: `make docs`. Sources are the documents of the repository as they are, links included."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

project = "klscale"
author = "the authors of klscale"
copyright = "Apache-2.0"
release = version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[1]

extensions = ["myst_parser"]
needs_sphinx = "8.0"
root_doc = "docs/index"
source_suffix = {".md": "markdown"}
include_patterns = ["docs/**.md", "benchmarks/*.md", "recipes/README.md", "examples/**.md", "CHANGELOG.md"]
exclude_patterns = [".*", "node_modules", "klscale-*", "src", "tests", "dist", "build"]
html_extra_path = ["site/index.html"]
html_static_path = ["site/static"]
html_css_files = ["wide.css"]

myst_heading_anchors = 4
myst_enable_extensions = ["html_image"]

html_theme = "furo"
html_title = f"klscale {release}"
html_theme_options = {
    "footer_icons": [],
    "light_css_variables": {"font-stack": "system-ui, sans-serif", "color-brand-primary": "#1f5fa8"},
}
html_copy_source = False
html_show_sphinx = False
