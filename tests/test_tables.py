"""Tables of the terminal: no line is wider than there is room, and what is told apart by name stays so."""

import io

import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from klscale.show import terminal
from klscale.show.tables import Shown, Table, fitted
from mixed_store import mixed_store

EXAMPLE = "examples/pile-trained-14.csv"


@pytest.fixture
def tables(monkeypatch):
    """All tables that are printed."""
    made, shown = [], terminal.Terminal.print

    def kept(self, *things, **how):
        made.extend(thing for thing in things if isinstance(thing, Table))
        shown(self, *things, **how)

    monkeypatch.setattr(terminal.Terminal, "print", kept)
    return made


def lines(table, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def long_names(tmp_path, pytestconfig):
    L = pd.read_csv(pytestconfig.rootpath / EXAMPLE)
    names = [name for name in L if "/" in name]
    long = [
        f"an-organisation-with-a-name/{'-'.join([name.partition('/')[2]] * 5)}-{n}-chat" for n, name in enumerate(names)
    ]
    L.rename(columns=dict(zip(names, long, strict=True))).to_csv(tmp_path / "long.csv", index=False)
    return long


@pytest.mark.slow
def test_no_table_of_any_command_is_wider_than_a_hundred_characters(run, tables, tmp_path, pytestconfig):
    a, b, c, *_ = long_names(tmp_path, pytestconfig)
    run("import", "long.csv", "--id", "text_id")
    mixed_store("mixed")
    for command in (
        "ls",
        "kl",
        "scale",
        "map",
        f"compare {a} {b} {c}",
        f"validate {a} {b}",
        "texts list",
        "texts info",
    ):
        run(*command.split())
    for command in ("trajectory --all", "scale", "kl", "map", "ls", "layers deep", "validate"):
        run(*command.split(), "--store", "mixed", status=None)
    run("scale", "--published")
    assert len(tables) > 30
    for table in tables:
        printed = lines(table, 100)
        assert max(map(len, printed)) <= 100, printed
        rows = len(table.columns[0].cells)
        notes = sum("with --wide" in line or line.startswith("Names without") for line in printed)
        assert len(printed) <= rows + 4 + str(table.title).count("\n") + notes, printed  # headings: at most three lines


def test_wide_prints_all(run, tmp_path, pytestconfig):
    long = long_names(tmp_path, pytestconfig)
    run("import", "long.csv", "--id", "text_id")
    short, wide = run("kl").output, run("kl", "--wide").output
    assert long[0] not in short
    assert all(name in wide for name in long)
    assert "column more with --wide" in short or "columns more with --wide" in short
    assert "--wide" not in wide
    assert run("kl").output == short  # it holds for one command


NAMES = [f"/data/models/pocket-{size}k-seed{seed}/checkpoint-{step}{kind}" for size in (40, 130) for seed in (1, 2)
         for step in (0, 800) for kind in ("", "+int8")]  # fmt: skip


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120])
def test_names_that_differ_look_different_at_every_width(width):
    columns = [
        Shown("model", NAMES, True, 1),
        Shown("model", NAMES[::-1], True, 2),
        Shown("KL ± SE, bits/byte", ["0.0000408 ± 0.0000014"] * len(NAMES), False, 2),
        Shown("kurtosis", ["3.0"] * len(NAMES), False, 0),
    ]
    shown, _ = fitted(columns, width)
    assert [column.title for column in shown][:3] == ["model", "model", "KL ± SE, bits/byte"]
    assert all(len(set(column.cells)) == len(NAMES) for column in shown if column.words)
    assert max(map(len, lines(Table(columns), width))) <= width


def test_the_least_columns_go_first_and_the_last_of_equal_ones():
    columns = [Shown("a" * 5, ["x"], True, 1), *(Shown(f"{n}" * 20, ["x"], False, n % 3) for n in range(6))]
    kept = [[column.title[0] for column in fitted(columns, width)[0]] for width in (137, 115, 93, 71, 49)]
    assert kept == [list("a012345"), list("a01245"), list("a1245"), list("a125"), list("a25")]


@pytest.mark.parametrize("width", [64, 200])
def test_rows_are_as_rich_sets_them(width):
    columns = [
        Shown("a model", ["one", "zwölf 模型", ""], True, 1),
        Shown("KL ± SE, bits/byte", ["0.1 ± 0.2", "12", "n/a"], False, 1),
        Shown("scored", ["", "never", "x" * 30], True, 1),
    ]
    expected = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        expected.add_column(Text(column.title), justify="left" if column.words else "right")
    for row in zip(*(column.cells for column in columns), strict=True):
        expected.add_row(*map(Text, row))
    assert lines(Table(columns), width) == lines(expected, width)
