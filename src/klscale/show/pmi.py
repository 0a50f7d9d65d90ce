"""What `--pmi` shows: squared distances of PMI vectors, beside KL given the prompts and of the responses alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klscale.show import cautions
from klscale.show.cautions import Around, Measured
from klscale.show.columns import HEAD, Column, estimate, flat, interval, number, records, table, unit, within
from klscale.show.files import DOCUMENTS, save_document, save_table
from klscale.show.pairs import ENDS, MANY, A, B, kl
from klscale.show.terminal import describe_texts, err, out, plain, print_json
from klscale.studies.pmi import PMIPair, PMIVectors
from klscale.studies.verbs.pmi import PMIComparison

NO_KL = "The distance of PMI vectors is no KL: it may be 0 between models whose KL is large."


@dataclass(frozen=True)
class _Pair:
    """Two models, with what cautions need of their KLs."""

    it: PMIPair
    given: Measured
    alone: Measured


PMI = (
    *within((A, B), lambda it: it.it),
    estimate("pmi_distance", "Squared distance of PMI vectors, Var(PMI of a - PMI of b) / (2 B ln 2). It is no KL.",
             value=lambda it: it.it.distance, title="PMI distance ± SE"),
    Column("", title="95 % interval", cell=lambda it: interval(it.it.distance), importance=0),
    kl("given", "KL of the responses given their prompts, from whole texts.", lambda it: it.given,
       title="KL given prompts"),
    kl("alone", "KL of the responses alone, from whole texts.", lambda it: it.alone, title="KL alone"),
    estimate("pmi_a", "Mean PMI of a: what the prompts save of its bits per byte.", value=lambda it: it.it.of_a),
    estimate("pmi_b", "The same of b.", value=lambda it: it.it.of_b),
    estimate("pmi_difference", "Mean PMI, b less a, paired.", value=lambda it: it.it.difference),
    unit(),
    *within(HEAD, lambda it: it.it),
)  # fmt: skip
"""Of a `_Pair`."""


def _rows(found: PMIComparison) -> list[_Pair]:
    given, alone = Around(found.vectors.given), Around(found.vectors.alone)
    return [_Pair(it, given.pair(it.a, it.b, it.given), alone.pair(it.a, it.b, it.alone)) for it in found.pairs]


def pmi_records(found: PMIComparison) -> list[dict[str, Any]]:
    """The JSON of each pair."""
    return records(PMI, _rows(found))


def show_pmi(found: PMIComparison, file: Path | None, as_json: bool) -> None:
    """What is found as JSON or tables; and a file of it: a table of all pairs, or what is printed, by its ending."""
    if as_json:
        print_json(pmi_records(found))
    else:
        print_pmi(found)
    if file is not None:
        if file.suffix in DOCUMENTS:
            save_document(file, lambda: print_pmi(found))
        else:
            save_table(file, [flat(PMI, row) for row in _rows(found)])
        err.print(f"Wrote {plain(file)}.")


def print_pmi(found: PMIComparison) -> None:
    """Pairs from the nearest to the farthest, both ends where they are many; mean PMI of each model; and what the
    distance is."""
    rows = sorted(_rows(found), key=lambda row: row.it.distance.value)
    out.print(describe_texts(found.vectors.given.texts))
    if len(rows) > MANY:
        out.print(f"{len(rows):,} pairs; the nearest and the farthest (all: --out FILE.csv)")
        rows = rows[:ENDS] + rows[-ENDS:]
    out.print(table(PMI, rows, "\nPMI, bits/byte"))
    _print_means(found.vectors, found.vectors.given.names)
    out.print("PMI: log p(response | prompt) - log p(response). KL by whole texts.", style="dim")
    out.print(NO_KL, style="yellow")
    shown = [measured for row in rows for measured in (row.given, row.alone)]
    cautions.print_footnotes(found.vectors.given.texts, shown)


def _print_means(vectors: PMIVectors, names: Sequence[str]) -> None:
    """Mean PMI of each model, and by how much it exceeds that of the first."""

    def against(name: str) -> str:
        return "" if name == names[0] else number(vectors.mean(name, names[0]), sign=True)

    columns = (
        Column("", title="model", cell=plain, words=True),
        Column("", title="mean PMI ± SE", cell=lambda name: number(vectors.mean(name))),
        Column("", title=f"less {plain(names[0])}", cell=against),
    )
    out.print(table(columns, names, "\nWhat the prompts save, bits/byte"))
