"""docs/reference/ is what docstrings and help make of it, and nothing that users call is without words."""

from __future__ import annotations

import inspect
import re
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
try:
    import make_reference
finally:
    sys.path.pop(0)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["python.md", "commands.md"])
def test_the_reference_is_current(page):
    kept = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    assert kept == make_reference.pages()[page], "run: make reference"


def test_every_exported_name_and_its_methods_say_what_they_are():
    found = make_reference.exports()
    without = [name for name, value in found.items() if not make_reference.docstring(value)]
    for name, value in found.items():
        if inspect.isclass(value):
            methods = make_reference.members(value)
            without += [f"{name}.{method}" for method, _, function in methods if not make_reference.docstring(function)]
    assert not without
    page = make_reference.python_page()
    assert all(f"### `klscale.{name}`" in page for name in found)


def test_the_reference_has_the_options_that_help_shows(run):
    """Against the help that typer prints, which the reference is not made from."""
    found = make_reference.commands()
    assert len(found) >= 20
    for words, (_, parameters) in found.items():
        shown = run(*words.split()[1:], "--help").output
        listed = {option for one in parameters if one.is_option for option in re.findall(r"--[\w-]+", one.call)}
        assert listed == set(re.findall(r"^│ \*? *(--[\w-]+)", shown, re.MULTILINE)) - {"--help"}, words
