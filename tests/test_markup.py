"""Results as HTML: every text is escaped, figures read on both papers, tables sort by their numbers."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest

from klscale.science.estimates import Estimate
from klscale.show import markup
from klscale.show.columns import Column, estimate
from klscale.show.pictures.style import COLOURS, new_figure, styled
from klscale.show.terminal import plain

HOSTILE = "<img src=x onerror=alert(1)> [bold] & \u202e\"'"


@dataclass(frozen=True)
class Row:
    name: str
    kl: Estimate | None


COLUMNS = (
    Column("name", title="model", cell=lambda it: plain(it.name), words=True),
    estimate("kl", "KL.", title="KL ± SE", cell=lambda it: "" if it.kl is None else str(it.kl)),
    Column("", title="nothing", cell=lambda it: ""),
)


def test_a_table_has_the_cells_of_its_columns_and_no_markup_of_names():
    rows = [Row(HOSTILE, Estimate.normal(0.25, 0.0125, 10)), Row("plain", None)]
    made = markup.table(COLUMNS, rows, "A <caption>", identity="t", head="model")
    root = ElementTree.fromstring(made)
    assert [cell.text for cell in root.iter("th") if cell.get("scope") == "col"] == ["model", "KL ± SE"]
    assert ["".join(cell.itertext()) for cell in root.iter("th") if cell.get("scope") == "row"] == [
        HOSTILE.replace("\u202e", "\\u202e"), "plain",
    ]  # fmt: skip
    assert [cell.get("data-sort") for cell in root.iter("td")] == ["0.25", None]
    assert [cell.text for cell in root.iter("td")] == ["0.250 ± 0.013 bits/byte", None]
    assert root.find(".//caption").text == "A <caption>"


def test_csv_gives_back_what_was_written_and_computes_nothing():
    rows = [{"a": "=1+1", "b": 0.1}, {"a": 'x "y", z', "c": True}]
    made = list(csv.DictReader(io.StringIO(markup.csv_text(rows))))
    assert made == [{"a": "'=1+1", "b": "0.1", "c": ""}, {"a": 'x "y", z', "b": "", "c": "true"}]


@styled
def picture(title):
    figure = new_figure(2, 2)
    axes = figure.add_subplot()
    axes.plot([0, 1], color=COLOURS[0])
    axes.plot([1, 0], color="#777777")
    axes.set_title(title)
    return figure


def test_a_drawing_is_of_text_and_of_colours_for_both_papers():
    one, other = (markup.drawing(picture(HOSTILE), name) for name in ("one", "other"))
    root = ElementTree.fromstring(one)
    assert root.get("viewBox") == "0 0 144 144"
    assert HOSTILE.replace("\u202e", "\\u202e")[:20] in "".join(root.itertext())
    assert "light-dark(#0072b2, #4da6dc)" in one
    for colour in re.findall(r"(?<!\()#[0-9a-f]{6}\b(?! *\))", re.sub(r"light-dark\([^)]*\)", "", one)):
        pytest.fail(f"{colour} has no counterpart on dark paper")
    identities = [set(re.findall(r'\bid="([^"]+)"', drawn)) for drawn in (one, other)]
    assert not identities[0] & identities[1], "two figures of one page share no identity"
    assert {*re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', one)} <= {(name, "") for name in identities[0]} | {
        ("", name) for name in identities[0]
    }
