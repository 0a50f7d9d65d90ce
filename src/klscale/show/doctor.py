"""What `klscale doctor` found, for a person and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from klscale.show.columns import Column, table
from klscale.show.terminal import out, plain, say

if TYPE_CHECKING:
    from klscale.studies.verbs.doctor import Checkup

FINDING = (
    Column("topic", "versions, packages, devices, cache, store or settings.", title="topic", words=True, importance=2),
    Column("name", "What was looked at.", title="name", words=True, importance=2),
    Column("value", "What was found.", title="found", words=True, importance=2),
    Column("problem", "What is wrong with it; empty where nothing is."),
    Column("remedy", "The way out; empty where nothing is wrong."),
)
"""Of a `Finding`."""


def print_checkup(checkup: Checkup) -> None:
    """Everything but packages as a table; packages as a sentence; then what is wrong."""
    packages = [one for one in checkup.findings if one.topic == "packages"]
    out.print(table(FINDING, [one for one in checkup.findings if one not in packages]))
    there = [f"{one.name} {one.value}" for one in packages if not one.value.startswith("not ")]
    absent = [f"{one.name} ({one.value.split('(')[1]}" for one in packages if one.value.startswith("not ")]
    say(f"\nPackages: {plain(', '.join(there))}.")
    if absent:
        say(f"Not installed: {plain(', '.join(absent))}.")
    out.print()
    for one in checkup.problems:
        out.print(f"{plain(one.problem)}", style="red", soft_wrap=True)
        out.print(f"  {plain(one.remedy)}", soft_wrap=True)
    if not checkup.problems:
        out.print("Nothing is wrong.")
