"""What `klscale validate --exact` shows: estimated and exact KL of pairs of models, and the KL of single tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from klscale.science.estimates import Estimate
from klscale.science.kl import KL
from klscale.show import cautions
from klscale.show.cautions import Around, Measured
from klscale.show.columns import ESTIMATE, HEAD, Column, estimate, lines, number, percent, record, table, unit
from klscale.show.names import short_names
from klscale.show.pairs import kl, marked
from klscale.show.terminal import describe_texts, out, plain, say
from klscale.studies.calibration import QUANTILES, Calibration, Drawn, PerToken
from klscale.vectors.vectors import Vectors

BLOCKS = 3
"""Largest number of pairs that are printed as blocks; of more, each has one row."""
LONGEST = 40
"""Characters of a model's name in a row."""
_QUANTILES = tuple("median" if share == 0.5 else f"{100 * share:g}%" for share in QUANTILES)
TOKENS = "nats/token"
DRAWN = (
    "On the texts: means over the text set. Drawn: means over texts that the models themselves generate, token by "
    "token; there exact KL is the KL of distributions over texts. Ratio: unclipped estimate over exact KL, on the same "
    "texts; symmetrised on the texts. The estimate is exact to second order: on drawn texts the ratio shows the error "
    "beyond it."
)


@dataclass(frozen=True)
class _Drawn:
    """The comparison on texts drawn from one of the models."""

    found: Drawn
    estimate: Measured


@dataclass(frozen=True)
class _Row:
    """A pair, with the names of its models in tables."""

    found: Calibration
    estimate: Measured
    estimate_all: Measured
    from_a: _Drawn
    from_b: _Drawn
    names: str = ""


def _rows(found: Sequence[Calibration], vectors: Vectors) -> list[_Row]:
    around = Around(vectors)
    models = list(dict.fromkeys(name for one in found for name in (one.a, one.b)))
    short = dict(zip(models, short_names(models, LONGEST), strict=True))

    def row(one: Calibration) -> _Row:
        def measured(found: KL) -> Measured:
            known = around.pair(one.a, one.b, found)
            return Measured.of_whole_texts(found, found.n_texts, known.dtypes, known.noise)

        return _Row(
            one,
            measured(one.estimate),
            around.pair(one.a, one.b, one.estimate_all),
            _Drawn(one.from_a, measured(one.from_a.estimate)),
            _Drawn(one.from_b, measured(one.from_b.estimate)),
            f"{plain(short[one.a])}\n{plain(short[one.b])}",
        )

    return [row(one) for one in found]


def _estimate(key: str, meaning: str, units: str = "bits/byte", title: str = "") -> Column:
    return estimate(
        key,
        meaning,
        units,
        lambda it: getattr(it.found, key),
        title=title,
        cell=lambda it: number(getattr(it.found, key)),
    )


DRAWN_FROM = (
    _estimate("exact", "Exact KL from the model that the texts are drawn from to the other."),
    kl("estimate", "The estimate on these texts.", lambda it: it.estimate),
    _estimate("ratio", "Unclipped estimate over exact KL.", ""),
)
BUCKET = (
    Column("low", "Lower limit of that probability.", "probability"),
    Column("high", "Upper limit of it.", "probability"),
    estimate("share", "Share of the positions.", "share"),
    estimate("mean", "Mean over them.", TOKENS),
    estimate("same_top", "Share of them where both models have the same most probable token.", "share"),
)
PER_TOKEN = (
    estimate("mean", "Mean over tokens.", TOKENS),
    Column("quantiles", "Quantiles over tokens, at `quantiles_of_tokens`.", TOKENS, within=ESTIMATE, many=True),
    Column("maximum", "The largest.", TOKENS),
    estimate("same_top", "Share of positions where both models have the same most probable token.", "share"),
    Column("n_tokens", "Tokens.", "tokens"),
    Column("by_top", "Positions by the probability of a's most probable token.", within=BUCKET, many=True),
)
CALIBRATION = (
    Column("a", "One model.", value=lambda it: it.found.a),
    Column("b", "The other model.", value=lambda it: it.found.b),
    Column("", title="models A and B", cell=lambda it: it.names, words=True),
    Column("n_texts", "Texts on which exact KL was computed.", "texts", lambda it: it.found.n_texts),
    Column("n_available", "Texts from which they were drawn.", "texts", lambda it: it.found.n_available),
    Column("seed", "Seed of the random texts.", value=lambda it: it.found.seed),
    kl("estimate", "The estimate on these texts.", lambda it: it.estimate, title="estimate"),
    kl("estimate_all", "The estimate on all texts.", lambda it: it.estimate_all),
    _estimate("forward", "Exact KL(a‖b) on these texts."),
    _estimate("backward", "Exact KL(b‖a) on these texts."),
    _estimate("symmetrised", "The mean of both.", title="exact, on the texts"),
    _estimate("ratio", "Unclipped estimate over `symmetrised`.", "", title="ratio"),
    _estimate("drawn", "Mean of the exact KLs on drawn texts.", title="exact, drawn"),
    Column("from_a", "On as many texts drawn from a.", within=DRAWN_FROM),
    Column("from_b", "On as many texts drawn from b.", within=DRAWN_FROM),
    Column("", title="ratio: A", cell=lambda it: number(it.found.from_a.ratio)),
    Column("", title="B", cell=lambda it: number(it.found.from_b.ratio)),
    Column("per_token", "KL(a‖b) of single next tokens.", TOKENS, lambda it: it.found.per_token, within=PER_TOKEN),
    Column(
        "left_out",
        "Largest probability that either model gives to tokens that the other lacks.",
        "probability",
        lambda it: it.found.left_out,
    ),
)
"""Of a `_Row`."""

CALIBRATIONS = (
    *HEAD,
    unit(),
    Column("unit_of_tokens", "Unit of KL of single tokens.", value=lambda _: TOKENS),
    Column("quantiles_of_tokens", "Which quantiles of single tokens are given.", "share", lambda _: QUANTILES),
    Column("pairs", "Each pair.", within=CALIBRATION, many=True),
)


def calibration_record(found: Sequence[Calibration], vectors: Vectors) -> dict[str, Any]:
    """The record of each pair; `vectors` are those of all models, on the whole text set."""
    return record(CALIBRATIONS, SimpleNamespace(texts=vectors.texts, pairs=_rows(found, vectors)))


def print_calibration(found: Sequence[Calibration], vectors: Vectors) -> None:
    """A block for each pair where there are few, else a row; then the KL of single tokens."""
    out.print(describe_texts(vectors.texts))
    some = " and ".join(sorted({f"{one.n_texts:,} of {one.n_available:,}" for one in found}))
    drawn_with = f", drawn with seed {found[0].seed}" if any(one.n_texts < one.n_available for one in found) else ""
    out.print(f"Exact KL on {some} texts{drawn_with}, and on as many drawn from each model.\n")
    _print_answer(found)
    rows = _rows(found, vectors)
    shown = [row.estimate for row in rows]
    if len(rows) <= BLOCKS:
        for row in rows:
            _print_block(row)
            shown += [row.from_a.estimate, row.from_b.estimate, row.estimate_all]
    else:
        _print_rows(rows)
    say(f"KL in bits/byte ± standard error. {DRAWN}", "dim")
    cautions.print_footnotes(vectors.texts, shown)
    if (most := max(one.left_out for one in found)) > 0:
        out.print(f"Vocabularies differ in size: at most a probability of {most:.1g} is left out.", style="yellow")


def _print_answer(found: Sequence[Calibration]) -> None:
    """The ratio of the estimate to exact KL; of several pairs, the range of ratios."""
    on_texts = [one.ratio.value for one in found]
    on_drawn = [drawn.ratio.value for one in found for drawn in (one.from_a, one.from_b)]
    if np.isnan([*on_texts, *on_drawn]).all():
        say("- There is no KL to compare: both models are the same on every text.")
    elif len(found) == 1:
        one = found[0]
        say(
            f"- The estimate is {number(one.ratio)} times exact KL on the texts, {number(one.from_a.ratio)} and "
            f"{number(one.from_b.ratio)} times on texts drawn from the two models."
        )
    else:
        there, drawn = map(_range, (on_texts, on_drawn))
        say(
            f"- The estimate is {there} times exact KL on the texts, {drawn} times on texts drawn from the models "
            f"({len(found):,} pairs; standard errors below)."
        )


def _range(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    return f"{min(known):.2g} to {max(known):.2g}" if known else "n/a"


def _print_block(row: _Row) -> None:
    one, a, b = row.found, row.from_a, row.from_b
    rows = (
        ("exact KL(A‖B)", number(one.forward), number(a.found.exact), ""),
        ("exact KL(B‖A)", number(one.backward), "", number(b.found.exact)),
        ("symmetrised", number(one.symmetrised), f"both: {number(one.drawn)}", ""),
        ("estimate", marked(row.estimate), marked(a.estimate), marked(b.estimate)),
        ("ratio", number(one.ratio), number(a.found.ratio), number(b.found.ratio)),
    )
    columns = lines("bits/byte", "the texts", "drawn from A", "drawn from B")
    out.print(table(columns, rows, f"\nA: {plain(one.a)}\nB: {plain(one.b)}"))
    all_texts = f"{marked(row.estimate_all)} bits/byte"
    out.print(f"estimate on all {one.estimate_all.n_texts:,} texts: {all_texts}")
    tokens = zip((f"mean of {one.per_token.n_tokens:,} tokens", *_TOKENS[1:]), _of_tokens(one.per_token), strict=True)
    out.print(table(lines("KL(A‖B) of single tokens on the texts", TOKENS), list(tokens)))
    buckets = [
        (f"{bucket.low:g} to {bucket.high:g}", _percent(bucket.share), number(bucket.mean), _percent(bucket.same_top))
        for bucket in one.per_token.by_top
    ]
    out.print(table(lines("probability of A's top token", "of the tokens", TOKENS, "same top token"), buckets))


_TOKENS = ("mean", *_QUANTILES, "maximum", "same top token")


def _print_rows(rows: Sequence[_Row]) -> None:
    out.print(table(CALIBRATION, rows, "\nEstimated and exact KL, symmetrised"))
    listed = [(row.names, *_of_tokens(row.found.per_token)) for row in rows]
    title = "\nKL(A‖B) of single tokens on the texts, nats/token ± SE"
    out.print(table(lines("models A and B", *_TOKENS), listed, title))


def _of_tokens(tokens: PerToken) -> list[str]:
    """The KL of single tokens as cells: mean, quantiles, maximum; and the share with the same top token."""
    quantiles = map(number, tokens.quantiles)
    return [number(tokens.mean), *quantiles, f"{tokens.maximum:.3g}", _percent(tokens.same_top)]


def _percent(share: Estimate) -> str:
    return percent(share) if share.n_texts else "n/a"
