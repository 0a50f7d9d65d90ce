"""The KL of two models, wherever it is shown: its columns, and what `klscale kl` prints and keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from klscale.science.estimates import format_estimate
from klscale.science.reported import ESTIMATORS, PUBLISHED, SAMPLED_TOKENS, SPANS, WHOLE_TEXTS
from klscale.show import cautions, files
from klscale.show.cautions import Around, Measured
from klscale.show.columns import BITS, Column, arrays, interval, number, table, unit, within
from klscale.show.terminal import describe_texts, err, out, plain
from klscale.vectors.vectors import Vectors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY = 120
"""Pairs beyond which the terminal shows the nearest and the farthest alone."""
ENDS = 10
"""How many of each it then shows."""


def marked(measured: Measured) -> str:
    """KL ± standard error with its marks."""
    return number(measured.kl) + cautions.marks(measured)


def _beside(cell: Callable[[Measured], str]) -> Callable[[Measured], str]:
    """A cell on whole texts; nothing where another estimator is reported."""
    return lambda it: cell(it) if it.kl.is_published else ""


def _unclipped(measured: Measured) -> str:
    """Nothing where the text set has no clip."""
    kl = measured.kl.whole_texts
    if not kl.uses_clip and not kl.clipped:
        return ""
    return format_estimate(kl.value_unclipped, kl.standard_error_unclipped)


KL_COLUMNS = (
    Column(
        "kl",
        "KL divergence of the two models: by sampled tokens where both have them, else by spans, else by whole texts.",
        BITS,
        lambda it: it.kl.value,
        "KL ± SE, bits/byte",
        marked,
        importance=2,
    ),
    Column("standard_error", "Its standard error over texts.", BITS, lambda it: it.kl.standard_error),
    Column(
        "estimator",
        f"Which of them: `{'`, `'.join(ESTIMATORS)}`.",
        "",
        lambda it: it.kl.estimator,
        "by",
        words=True,
        importance=2,
    ),
    Column(
        "interval_low",
        "Lower end of the 95 % interval, kl / f with f = exp(z standard_error / kl); the exponent is at most 700.",
        BITS,
        lambda it: it.kl.interval[0],
        "95 % interval",
        lambda it: interval(it.kl),
    ),
    Column("interval_high", "Upper end of that interval, kl f.", BITS, lambda it: it.kl.interval[1]),
    unit(),
    Column(
        "kl_in_range",
        "Whether `kl` is a KL, no mere distance: by spans up to 0.75 bits/byte, by whole texts as `in_range`.",
        "",
        lambda it: it.kl.in_range,
    ),
    Column(
        "whole_texts_kl",
        "KL by the published estimator, from whole texts; with the clip, unless it moves more than 5 % of a vector.",
        BITS,
        lambda it: it.kl.whole_texts.value,
        PUBLISHED,
        lambda it: "" if it.kl.is_published else marked(it.by_whole_texts),
        importance=0,
    ),
    Column(
        "whole_texts_standard_error",
        "Its standard error over texts.",
        BITS,
        lambda it: it.kl.whole_texts.standard_error,
    ),
    Column(
        "whole_texts_interval_low",
        "Lower end of its 95 % interval.",
        BITS,
        lambda it: it.kl.whole_texts.interval[0],
    ),
    Column(
        "whole_texts_interval_high",
        "Upper end of that interval.",
        BITS,
        lambda it: it.kl.whole_texts.interval[1],
    ),
    Column(
        "kl_unclipped",
        "KL from whole texts without the clip.",
        BITS,
        lambda it: it.kl.whole_texts.value_unclipped,
        "unclipped",
        _beside(_unclipped),
        importance=0,
    ),
    Column(
        "standard_error_unclipped",
        "The standard error of that.",
        BITS,
        lambda it: it.kl.whole_texts.standard_error_unclipped,
    ),
    Column(
        "clipped",
        "Largest share of either vector that the clip moves.",
        "share",
        lambda it: it.kl.whole_texts.clipped,
    ),
    Column("uses_clip", "Whether `whole_texts_kl` is with the clip.", "", lambda it: it.kl.whole_texts.uses_clip),
    Column(
        "kl_nats_per_text",
        "The KL from whole texts, for a text of mean length.",
        "nats/text",
        lambda it: it.kl.whole_texts.nats_per_text,
    ),
    Column("n_texts", "Texts behind `kl`.", "texts", lambda it: it.kl.n_texts),
    Column("whole_texts_n_texts", "Texts scored with both models.", "texts", lambda it: it.kl.whole_texts.n_texts),
    Column(
        "n_documents",
        "Documents of these texts, where texts share them: clusters of the standard error; else null.",
        "documents",
        lambda it: it.kl.n_documents,
    ),
    Column(
        "mean_bytes", "Mean length of the texts scored with both.", "bytes", lambda it: it.kl.whole_texts.mean_bytes
    ),
    Column(
        "kurtosis",
        "Kurtosis of the log-likelihood difference of whole texts; 3 for a normal one.",
        "",
        lambda it: it.kl.whole_texts.kurtosis,
        "kurtosis",
        _beside(lambda it: "" if math.isnan(it.kl.whole_texts.kurtosis) else f"{it.kl.whole_texts.kurtosis:.1f}"),
        importance=0,
    ),
    Column(
        "in_range",
        "Whether `whole_texts_kl` is a KL; else it is a distance that overstates KL.",
        "",
        lambda it: it.kl.whole_texts.in_range,
    ),
    Column(
        "noise",
        "What rounding adds to `whole_texts_kl` in expectation, by the run-to-run noise of both; null: not known.",
        BITS,
        lambda it: it.noise,
    ),
    Column("cautions", "What keeps the value from being read plainly: keys of the list below.", "", cautions.keys),
)
"""Of a `Measured`."""
OF_PAIR = tuple(column for column in KL_COLUMNS if column.key != "unit")
"""The same in a record that says its unit itself."""

WHAT_IT_IS = {
    SAMPLED_TOKENS: "exact next-token KL in expectation, mean of both directions",
    SPANS: "from pieces of about 32 bytes, 0.9 to 2.2 times next-token KL where it was measured",
    WHOLE_TEXTS: "the published estimator; above next-token KL where one model fits whole texts better",
}
"""Each estimator in a line."""


def print_units(shown: Sequence[Measured], more: str = "") -> None:
    """The unit of the KLs of a table whose headings do not say it, what they are by, and `more` of other columns."""
    by = f", by {PUBLISHED}" if all(measured.kl.estimator == WHOLE_TEXTS for measured in shown) else ""
    out.print(f"KL in bits/byte ± standard error over texts{by}{more}.", style="dim")
    print_estimators(shown)


def print_estimators(shown: Iterable[Measured]) -> None:
    """What the KLs of a table are by; nothing where all are the published estimates."""
    there = {measured.kl.estimator for measured in shown}
    if there - {WHOLE_TEXTS}:
        said = "; ".join(f"by {estimator}: {WHAT_IT_IS[estimator]}" for estimator in ESTIMATORS if estimator in there)
        out.print(f"KL {said} (docs/validity.md).", style="dim")


PAIR_BYTES = {".csv": 320, ".parquet": 100}
"""Bytes that a pair takes in a table of all, about; more where names are long."""
LARGE_FILE = 5e7
"""Bytes of a file from which on its size is said before it is written."""


@dataclass(frozen=True)
class Pair:
    """Two models and their KL; or many: arrays of these."""

    a: Any
    b: Any
    measured: Measured


A = Column("a", "One model.", title="model", cell=lambda it: plain(it.a), words=True)
B = Column("b", "The other model.", title="model", cell=lambda it: plain(it.b), words=True, importance=2)
PAIR = (A, B, *within(KL_COLUMNS, lambda it: it.measured))
"""Of a `Pair`."""


def kl(
    key: str, meaning: str, value: Callable[[Any], Measured | None], *, title: str = "", importance: int = 1
) -> Column:
    """A column of KLs, each a record of its own."""

    def cell(source: Any) -> str:
        return "" if (measured := value(source)) is None else marked(measured)

    return Column(key, meaning, BITS, value, title, cell, within=KL_COLUMNS, importance=importance)


# ------------------------------------------------------------------------------------------------------- klscale kl


def matrix_record(vectors: Vectors, of: str | None = None) -> list[dict[str, Any]]:
    """Every pair once, in order of rows; or the pairs with a model, nearest first."""
    columns = matrix_arrays(vectors, of)
    size = len(columns["a"])
    listed = {
        key: value.tolist() if isinstance(value, np.ndarray) else [value] * size for key, value in columns.items()
    }
    listed["cautions"] = [(words or "").split() for words in listed["cautions"]]
    return [dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=True)]


def matrix_arrays(vectors: Vectors, of: str | None = None) -> dict[str, Any]:
    """Every pair once, in order of rows, as arrays (K (K - 1) / 2,) by key; or the K - 1 pairs with a model, nearest
    first."""
    names = np.array(vectors.names, dtype=object)
    if of is None:
        i, j = np.triu_indices(len(vectors), k=1)
        columns = arrays(PAIR, Pair(names[i], names[j], Around(vectors).pairs(i, j)))
    else:
        others, measured = Around(vectors).from_model(of)
        columns = arrays(PAIR, Pair(np.full(len(others), of, dtype=object), names[others], measured))
        order = np.argsort(columns["kl"], kind="stable")
        columns = {key: value[order] if np.ndim(value) else value for key, value in columns.items()}
    documents = np.broadcast_to(columns["n_documents"], len(columns["a"])).astype(object)
    documents[documents == 0] = None
    return columns | {"n_documents": documents}


def print_matrix(vectors: Vectors, of: str | None = None) -> None:
    """All pairs, or those with a model, from the nearest to the farthest; both ends where they are many."""
    out.print(describe_texts(vectors.texts))
    if of is None:
        around = Around(vectors, of_all=True)
        i, j = np.triu_indices(len(vectors), k=1)
        value = vectors.reported_kl_matrix().value[i, j]
    else:
        around = Around(vectors)
        j, measured = around.from_model(of)
        i, value = np.full(len(j), vectors.position(of)), measured.kl.value
    order = np.argsort(value, kind=None if of is None else "stable")
    if len(order) > MANY:
        out.print(f"{len(vectors):,} models, {len(order):,} pairs; the nearest and the farthest (all: --out FILE.csv)")
        order = np.concatenate([order[:ENDS], order[-ENDS:]])

    def pairs() -> Iterator[Pair]:
        for place in order:
            a, b = vectors.names[i[place]], vectors.names[j[place]]
            own = None if of is None else vectors.subset([a, b]).reported_kl(a, b)
            yield Pair(a, b, around.pair(a, b, own))

    shown = list(pairs())
    out.print(table(PAIR if of is None else PAIR[1:], shown, f"\nKL from {plain(of)}" if of else "\nKL"))
    print_estimators(pair.measured for pair in shown)
    cautions.print_footnotes(vectors.texts, (pair.measured for pair in shown))


def save_matrix(vectors: Vectors, file: Path, picture: Callable[[Vectors], Figure], of: str | None = None) -> None:
    """All pairs, or those with a model, as a table, or a picture of all; by the file's ending. Of a large table its
    size is said first."""
    n_pairs = len(vectors) * (len(vectors) - 1) // 2 if of is None else len(vectors) - 1
    if (size := n_pairs * PAIR_BYTES.get(file.suffix, 0)) > LARGE_FILE:
        err.print(f"Writing {n_pairs:,} pairs to {plain(file)}: about {size / 1e9:.1f} GB.")

    def columns() -> dict[str, Any]:
        return {key: values for key, values in matrix_arrays(vectors, of).items() if key != "unit"}

    files.save(file, columns, lambda: picture(vectors))
