"""What `klscale scale` shows: the KL of each setting in the store, beside the published values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from klscale.errors import InputError
from klscale.science.estimates import format_estimate
from klscale.show import cautions, files
from klscale.show.cautions import Around, Measured
from klscale.show.columns import BITS, HEAD, Column, flat, record, table, unit, within
from klscale.show.terminal import describe_texts, out, plain
from klscale.studies import scales
from klscale.studies.scales import Setting
from klscale.vectors.vectors import Vectors

TO_SCORE = {
    "early training": "checkpoints of a run",
    "later training": "checkpoints of a run",
    "seed": "another seed",
    "size": "another size",
    "fine-tuning": "a parent or child",
    "8-bit": "NAME+int8",
    "4-bit": "NAME+fp4",
    "layer": "--layers NAME",
    "same type": "two models of one type",
    "random": "two models",
}
"""What gives a store a pair of a published setting."""


@dataclass(frozen=True)
class _Pair:
    """A pair of a setting, with its KL as far as it is known here: no clip, kurtosis or count of texts."""

    setting: str
    a: str
    b: str
    measured: Measured


@dataclass(frozen=True)
class _Row:
    """A setting with its pairs."""

    setting: Setting
    pairs: tuple[_Pair, ...]

    @property
    def marks(self) -> str:
        """The marks of the cautions that hold for any pair."""
        there = {caution.mark for pair in self.pairs for caution in pair.measured.cautions}
        found = "".join(caution.mark for caution in cautions.CAUTIONS if caution.mark in there)
        return f" {found}" if found else ""


def rows(vectors: Vectors, measured: Sequence[Setting]) -> list[_Row]:
    around, n_texts = Around(vectors), len(vectors.texts)

    def pair(row: Setting, n: int) -> _Pair:
        a, b = row.pairs[n]
        kl: Any = SimpleNamespace(
            value=row.values[n],
            standard_error=row.standard_errors[n],
            in_range=row.in_range[n],
            left_unclipped=False,
            heavy_tails=False,
            n_texts=n_texts,
            n_documents=None,
            interval=None,
        )
        return _Pair(row.setting, a, b, around.pair(a, b, kl))

    return [_Row(row, tuple(pair(row, n) for n in range(len(row.pairs)))) for row in measured]


PAIR = (
    Column("a", "One model."),
    Column("b", "The other model."),
    Column("kl", "KL divergence of the two.", BITS, lambda it: it.measured.kl.whole_texts.value),
    Column(
        "standard_error", "Its standard error over texts.", BITS, lambda it: it.measured.kl.whole_texts.standard_error
    ),
    Column("in_range", "Whether the value is a KL.", value=lambda it: it.measured.kl.whole_texts.in_range),
    Column("noise", "What rounding adds to it; null: not known.", BITS, lambda it: it.measured.noise),
    Column(
        "cautions",
        "What keeps the value from being read plainly: those that range, dtypes and noise tell.",
        value=lambda it: cautions.keys(it.measured),
    ),
)


def _quartiles(row: _Row) -> str:
    return "{:.3g} to {:.3g}".format(*row.setting.quartiles) if len(row.pairs) > 1 else ""


def _interval(row: _Row) -> str:
    if len(row.pairs) == 1:
        return "one pair"
    low, high = row.setting.interval
    return f"{low:.3g} to {high:.3g}" + (" (range)" if row.setting.interval_kind == "range" else "")


def _count(row: _Row) -> str:
    drawn = f" of {row.setting.n_available:,}" if len(row.pairs) < row.setting.n_available else ""
    return f"{len(row.pairs):,}{drawn}"


def median(row: _Row) -> str:
    """The median KL ± standard error of a setting, with its marks."""
    return format_estimate(row.setting.median, row.setting.standard_error) + row.marks


def _by_spans(row: _Row) -> str:
    spans = row.setting.by_spans
    return "" if spans is None else format_estimate(spans.median, spans.standard_error)


def _published(row: _Row) -> str:
    known = scales.published_beside(row.setting.setting)
    return f"{known.median:#.2g} {known.source}" if known else ""


BY_SPANS = (
    Column("spans_median", "Median KL over pairs by spans, which is nearer to KL; null: no pair has them.", BITS,
           lambda it: it.median),
    Column("spans_standard_error", "Its standard error over texts, by bootstrap.", BITS, lambda it: it.standard_error),
    Column("spans_n_pairs", "Pairs behind it: at most 100, drawn at random.", "pairs", lambda it: len(it.pairs)),
)  # fmt: skip
"""Of a setting by spans."""

SETTING = (
    Column(
        "setting",
        "What the models of a pair differ in.",
        "",
        lambda it: it.setting.setting,
        "setting",
        lambda it: plain(it.setting.setting),
        words=True,
    ),
    Column(
        "median",
        "Median KL over pairs.",
        BITS,
        lambda it: it.setting.median,
        "median ± SE, bits/byte",
        median,
        importance=2,
    ),
    Column(
        "standard_error", "Its standard error over texts, by bootstrap.", BITS, lambda it: it.setting.standard_error
    ),
    Column("", title="by spans", cell=_by_spans),
    *within(BY_SPANS, lambda it: it.setting.by_spans),
    Column(
        "quartiles",
        "Quartiles of KL over pairs.",
        BITS,
        lambda it: it.setting.quartiles,
        "quartiles",
        _quartiles,
        importance=0,
    ),
    Column(
        "interval_low",
        "Lower end of the 95 % interval of the median over models.",
        BITS,
        lambda it: it.setting.interval[0],
        "95 % over models",
        _interval,
    ),
    Column("interval_high", "Upper end of it.", BITS, lambda it: it.setting.interval[1]),
    Column(
        "interval_kind",
        "`models`: a 95 % interval over models; `range`: for too few models, the range over pairs.",
        value=lambda it: it.setting.interval_kind,
    ),
    Column("pairs", "The pairs measured.", "", lambda it: it.pairs, "pairs", _count, within=PAIR, many=True),
    Column(
        "n_models", "Models of these pairs; a run counts as one.", "models", lambda it: it.setting.n_models, "models"
    ),
    Column("n_in_range", "How many of the pairs are in range.", "pairs", lambda it: it.setting.n_in_range),
    Column(
        "n_available",
        "Pairs that the store has; more than `pairs` where these are drawn at random.",
        "pairs",
        lambda it: it.setting.n_available,
    ),
    Column("", title="published", cell=_published, words=True, importance=2),
)
"""Of a `_Row`."""

NOISE_FLOOR = (
    Column("median", "Median over models of the KL between two runs of a model.", BITS),
    Column("smallest", "The smallest of them.", BITS),
    Column("largest", "The largest of them.", BITS),
    Column("largest_of", "The model that has the largest."),
    Column("n_models", "Models whose run-to-run noise is known.", "models"),
)
PUBLISHED = (
    Column("setting", "The setting.", title="setting", words=True),
    Column("median", "Median KL over pairs.", BITS, title="median, bits/byte", cell=lambda it: f"{it.median:#.2g}"),
    Column(
        "pairs", "How many pairs; null: not published.", "pairs", title="pairs", cell=lambda it: str(it.pairs or "")
    ),
    Column("compared", "Which models.", title="compared", words=True),
    Column("source", "Short name of the paper.", title="source", words=True),
)
PUBLISHED_PAIR = (
    Column("compared", "Which models.", title="pair", words=True),
    Column(
        "kl",
        "KL divergence as published.",
        BITS,
        title="KL ± SE, bits/byte",
        cell=lambda it: f"{it.kl:#.2g} ± {it.standard_error:#.2g}",
    ),
    Column("standard_error", "Its standard error over texts.", BITS),
    Column("source", "Short name of the paper.", title="source", words=True),
)
PUBLISHED_SCALE = (
    Column("texts", "The texts that these values hold for.", value=lambda _: "pile-10k"),
    unit(),
    Column("settings", "Each setting.", value=lambda _: scales.published(), within=PUBLISHED, many=True),
    Column("pairs", "Single pairs.", value=lambda _: scales.published_pairs(), within=PUBLISHED_PAIR, many=True),
)
SCALE = (
    *HEAD,
    Column("n_texts", "Texts of the set.", "texts", lambda it: len(it.texts)),
    Column("mean_bytes", "Their mean length.", "bytes", lambda it: it.texts.mean_bytes),
    unit(),
    Column("noise_floor", "Run-to-run noise, KL between two runs of one model; null: not known.", within=NOISE_FLOOR),
    Column("measured", "Each setting that the store has a pair of.", within=SETTING, many=True),
    Column(
        "published",
        "The published values, never mixed with measured ones.",
        value=lambda it: it,
        within=tuple(column for column in PUBLISHED_SCALE if column.key in ("texts", "settings")),
    ),
    Column("published_holds_here", "Whether they hold for these texts.", value=lambda it: it.holds),
)


def scale_record(vectors: Vectors, measured: Sequence[Setting]) -> dict[str, Any]:
    """The measured scale and, apart from it, the published one."""
    return record(
        SCALE,
        SimpleNamespace(
            texts=vectors.texts,
            noise_floor=scales.noise_floor(vectors),
            measured=rows(vectors, measured),
            holds=scales.published_holds(vectors.texts),
        ),
    )


def published_record() -> dict[str, Any]:
    """The published values."""
    return record(PUBLISHED_SCALE, None)


def require_settings(measured: Sequence[Setting]) -> None:
    """Raises InputError where a store has no pair of any setting."""
    if not measured:
        raise InputError(
            "No setting can be measured among these models.",
            "Seeds, sizes, checkpoints and fine-tunes are told apart by attributes of the models.",
            "Score models of one family, or name the attributes in a suite file; see also: klscale scale --published",
        )


def print_published() -> None:
    """The published values, with sources."""
    out.print(table(PUBLISHED, scales.published()))
    out.print(table(PUBLISHED_PAIR, scales.published_pairs(), "\nSingle pairs"))
    out.print(
        "\nP1v3: Kishino et al., arXiv 2505.15353v3, medians second-hand and without standard errors; P1v1: its first "
        "version. They hold for the text set pile-10k with its clip.",
        style="dim",
    )


def print_scale(vectors: Vectors, measured: Sequence[Setting]) -> None:
    """Each setting, smallest first, and the settings that the store has no pair of."""
    require_settings(measured)
    out.print(describe_texts(vectors.texts))
    found = rows(vectors, measured)
    out.print(table(SETTING, found, "\nThe scale"))
    if any(row.setting.by_spans for row in found):
        said = "median: by whole texts, which published values are by; by spans: nearer to KL (docs/validity.md)."
        out.print(said, style="dim")
    out.print(
        "± is the standard error over texts; (range): over the pairs, for too few models. A run counts as one model.",
        style="dim",
    )
    if floor := scales.noise_floor(vectors):
        out.print(plain(floor.sentence))
    cautions.print_footnotes(vectors.texts, (pair.measured for row in found for pair in row.pairs))
    if not scales.published_holds(vectors.texts):
        out.print("The published values are of other texts (pile-10k): they are not comparable.", style="dim")
    wanting: dict[str, list[str]] = {}
    for known in scales.not_measured(measured):
        wanting.setdefault(TO_SCORE[known.setting], []).append(known.setting)
    if wanting:
        listed = "; ".join(f"{', '.join(settings)} ({what})" for what, settings in wanting.items())
        out.print(f"No pair yet (what to score): {listed}.", style="dim")


def save_scale(vectors: Vectors, measured: Sequence[Setting], file: Path) -> None:
    """The pairs of every setting as a table, or the picture of the scale; by the file's ending."""
    require_settings(measured)

    def pairs() -> list[dict[str, Any]]:
        found = [pair for row in rows(vectors, measured) for pair in row.pairs]
        return [flat((Column("setting"), *PAIR), pair) for pair in found]

    def picture() -> Any:
        from klscale.show.pictures import scale_ruler

        return scale_ruler(measured, vectors.texts, scales.noise_floor(vectors))

    files.save(file, pairs, picture)
