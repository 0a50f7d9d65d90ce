"""The documented keys are those of the declarations, and those that the commands print."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping

import pandas as pd
import pytest

from conftest import EXAMPLE, ROOT
from klscale.cli import COMMANDS as COMMANDS_OF_ALL
from klscale.cli import TEXTS_COMMANDS
from klscale.show import keys
from klscale.show.cautions import CAUTIONS
from klscale.show.columns import Column, estimate, flat, record, records, table, within
from mixed_store import mixed_store

DOCUMENT = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
A, B, C = "runs/seed1@step40", "runs/seed1@step80", "org/half%bfloat16"
COMMANDS = {
    "klscale kl": ["kl"],
    "klscale compare": ["compare", A, B, C],
    "klscale changes": ["changes", A, B],
    "klscale card": ["card", A, B],
    "klscale scale": ["scale"],
    "klscale scale --published": ["scale", "--published"],
    "klscale layers": ["layers", "runs/seed1@step300"],
    "klscale map": ["map"],
    "klscale trajectory": ["trajectory"],
    "klscale validate": ["validate"],
    "klscale validate REF REF": ["validate", A, B],
    "klscale ls": ["ls"],
    "klscale check": ["check"],
    "klscale texts list": ["texts", "list"],
    "klscale texts info": ["texts", "info"],
}
"""Those that need no model."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    place = str(tmp_path_factory.mktemp("keys") / "store")
    mixed_store(place)
    return place


def test_the_list_is_as_declared():
    assert DOCUMENT == "\n".join(keys.lines()) + "\n"


def test_every_key_has_one_meaning_in_a_sentence():
    for command, columns in keys.RECORDS.items():
        for path, column in keys.paths(columns):
            assert re.fullmatch(r"\S.*\.", column.meaning), (command, path)
            assert len(column.meaning.split()) <= 25, (command, path)


def documented(section):
    """The keys in a section of the document."""
    text = DOCUMENT.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return {re.split(r"\W+", path)[-1] for path in re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)}


def printed(value, columns):
    """Every key of a value that is printed, held against the declared ones; what is keyed by name is seen through."""
    if isinstance(value, list):
        return set().union(*(printed(one, columns) for one in value))
    if not isinstance(value, Mapping):
        return set()
    known = {column.key: column for column in columns if column.key}
    assert [*value] == [*known]
    found = {*value}
    for key, one in value.items():
        column = known[key]
        if column.within:
            inside = [*one.values()] if column.many and isinstance(one, Mapping) else one
            found |= printed(inside, column.within)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_printed_is_listed(command, run, store, monkeypatch):
    found = json.loads(run(*COMMANDS[command], "--store", store, "--json").stdout)
    listed = documented("Estimate") | documented("KL") | documented(f"`{command}`")
    if command == "klscale validate REF REF":
        listed |= documented("`klscale validate`")
    assert printed(found, keys.RECORDS[command]) <= listed


def test_every_command_with_json_is_listed():
    for group, commands in (("klscale", COMMANDS_OF_ALL), ("klscale texts", TEXTS_COMMANDS)):
        for name, command in commands.items():
            if "as_json" in inspect.signature(command).parameters and name != "demo":
                assert f"{group} {name}" in keys.RECORDS


@pytest.mark.slow
def test_what_is_made_is_listed(run, tmp_path):
    (tmp_path / "words.txt").write_text(" ".join(f"word {n} of some" for n in range(400)))
    (tmp_path / "suite.yaml").write_text("models:\n  - name: mock://1\n  - name: mock://2\n  - nam: x\n")
    build = ["texts", "build", "words.txt", "--out", "set.jsonl", "--min-bytes", "64", "--max-bytes", "128"]
    on, draw = (
        ["--texts", "set.jsonl"],
        ["texts", "draw", "mock://1", "--texts-of", "set.jsonl", "-n", "40", "--bytes", "40"],
    )
    for name, arguments in {
        "texts build": build,
        "score": ["score", "--suite", "suite.yaml", *on],
        "texts clip": ["texts", "clip", "--value", "-300"],
        "texts draw": draw,
        "import": ["import", str(EXAMPLE), "--id", "text_id", "--store", "other"],
        "export": ["export", "logs", "mock://1", *on],
        "rm": ["rm", "mock://2", *on],
        "report": ["report", "--store", "other"],
    }.items():
        found = json.loads(run(*arguments, "--json", status=None).stdout)
        assert found
        assert printed(found, keys.RECORDS[f"klscale {name}"]) <= documented(f"`klscale {name}`"), name


@pytest.mark.slow
def test_files_have_the_keys_of_the_json(run, store, tmp_path):
    run("kl", "--store", store, "--out", tmp_path / "kl.csv")
    found = pd.read_csv(tmp_path / "kl.csv")
    listed = json.loads(run("kl", "--store", store, "--json").stdout)
    assert [*found] == [key for key in listed[0] if key != "unit"]
    assert found["kl"].tolist() == [row["kl"] for row in listed]
    assert found["cautions"].fillna("").tolist() == [" ".join(row["cautions"]) for row in listed]
    run("trajectory", "--store", store, "--out", tmp_path / "t.parquet")
    rows = pd.read_parquet(tmp_path / "t.parquet")
    assert {"run", "step", "kl_from_last", "kl_from_last_standard_error", "kl_from_last_interval_low"} <= {*rows}


def test_marks_keys_and_footnotes_are_told_apart():
    assert len({caution.mark for caution in CAUTIONS}) == len({caution.key for caution in CAUTIONS}) == len(CAUTIONS)
    for caution in CAUTIONS:
        assert "\n" not in caution.footnote
        assert len(f"{caution.mark} {caution.footnote}") <= 100


# ------------------------------------------------------------------------------------------------------------- columns


class Source:
    name = "a[b]"
    count = 1234
    share = float("nan")
    part = None

    def __init__(self, part=None):
        self.part = part


INSIDE = (Column("value", "A."), Column("standard_error", "B."), Column("unit", "C."))
COLUMNS = (
    Column("name", "The name.", title="name", words=True),
    Column("count", "How many.", "texts", title="count"),
    Column("share", "A share.", title="share"),
    Column("part", "A part.", within=INSIDE),
    Column("", title="twice", cell=lambda it: str(2 * it.count)),
)


def test_a_column_is_a_value_a_cell_and_columns_of_a_file():
    part = type("Part", (), {"value": 1.5, "standard_error": 0.5, "unit": "nats"})
    bare, full = Source(), Source(part)
    assert record(COLUMNS, bare) == {"name": "a[b]", "count": 1234, "share": None, "part": None}
    assert records(COLUMNS, [full])[0]["part"] == {"value": 1.5, "standard_error": 0.5, "unit": "nats"}
    assert [*flat(COLUMNS, bare)] == [*flat(COLUMNS, full)] == ["name", "count", "share", "part", "part_standard_error"]
    assert (flat(COLUMNS, full)["part"], flat(COLUMNS, bare)["part"]) == (1.5, None)
    shown = table(COLUMNS, [bare])
    assert [column.title for column in shown.columns] == ["name", "count", "twice"]  # a share is nowhere known
    assert [column.words for column in shown.columns] == [True, False, False]
    assert [*shown.columns[0].cells, *shown.columns[1].cells, *shown.columns[2].cells] == ["a[b]", "1,234", "2468"]
    moved = within(COLUMNS[:2], lambda it: it.part)
    assert record(moved, bare) == {"name": None, "count": None}
    assert estimate("x", "An estimate.").within[0].key == "value"
