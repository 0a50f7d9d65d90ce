"""What a calibration prints: estimated and exact KL of pairs of models side by side, and the KL of single tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from klscale.inputs.texts import TextSet
from klscale.science.estimates import format_estimate
from klscale.show.cautions import OUT_OF_RANGE
from klscale.show.pictures.style import short_names
from klscale.show.tables import describe_texts, marks, number, out, plain, print_notes, say, table
from klscale.studies.calibration import QUANTILES, Calibration

BLOCKS = 3
"""Pairs beyond which there is one row a pair."""
_QUANTILES = tuple("median" if share == 0.5 else f"{share:.0%}" for share in QUANTILES)
DRAWN = (
    "On the texts: means over the text set. Drawn: over texts drawn from the models themselves, token by token, where "
    "exact KL is KL between distributions over texts, and what keeps the ratio from 1 is the estimate's second order "
    "alone. Ratio: unclipped estimate over exact KL, symmetrised on the texts, on the same texts."
)


def calibration_record(found: Sequence[Calibration], texts: TextSet) -> dict[str, Any]:
    """Each pair for a machine."""
    return {
        "texts": texts.name,
        "text_set": texts.id,
        "clip": texts.clip,
        "unit": "bits/byte",
        "unit_of_tokens": "nats/token",
        "quantiles_of_tokens": list(QUANTILES),
        "pairs": [{name: value for name, value in asdict(one).items() if name != "sums"} for one in found],
    }


def print_calibration(found: Sequence[Calibration], texts: TextSet) -> None:
    """A block for each pair where there are few, else a row; then the KL of single tokens."""
    out.print(describe_texts(texts))
    some = " and ".join(sorted({f"{one.n_texts:,} of {one.n_available:,}" for one in found}))
    drawn_with = f", drawn with seed {found[0].seed}" if any(one.n_texts < one.n_available for one in found) else ""
    out.print(f"Exact KL on {some} texts{drawn_with}, and on as many drawn from each model.\n")
    _print_answer(found)
    if len(found) <= BLOCKS:
        for one in found:
            _print_block(one)
    else:
        _print_rows(found)
    say(f"KL in bits/byte ± standard error. {DRAWN}", "dim")
    most = max(one.left_out for one in found)
    print_notes(
        texts,
        (any(not one.estimate.in_range for one in found), OUT_OF_RANGE),
        (most > 0, f"Vocabularies of different size: at most {most:.1g} of the probability is left out."),
    )


def _print_answer(found: Sequence[Calibration]) -> None:
    """How far the estimate lies from exact KL; of several pairs, the range."""
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


def _print_block(one: Calibration) -> None:
    title = f"\nA: {plain(one.a)}\nB: {plain(one.b)}"
    shown = table("bits/byte", "the texts", "drawn from A", "drawn from B", right=(1, 2, 3), title=title)
    a, b = one.from_a, one.from_b
    shown.add_row("exact KL(A‖B)", number(one.forward), number(a.exact), "")
    shown.add_row("exact KL(B‖A)", number(one.backward), "", number(b.exact))
    shown.add_row("symmetrised", number(one.symmetrised), f"both: {number(one.drawn)}", "")
    shown.add_row("estimate", number(one.estimate) + marks(one.estimate), number(a.estimate), number(b.estimate))
    shown.add_row("ratio", number(one.ratio), number(a.ratio), number(b.ratio))
    out.print(shown)
    out.print(f"estimate on all {one.estimate_all.n_texts:,} texts: {one.estimate_all}{marks(one.estimate_all)}")
    shown = table("KL(A‖B) of single tokens on the texts", "nats/token", right=(1,))
    for name, value in zip(("", *_QUANTILES, "maximum", "same top token"), _of_tokens(one), strict=True):
        shown.add_row(name or f"mean of {one.per_token.n_tokens:,} tokens", value)
    out.print(shown)


def _print_rows(found: Sequence[Calibration]) -> None:
    models = list(dict.fromkeys(name for one in found for name in (one.a, one.b)))
    short = dict(zip(models, short_names(models, 40), strict=True))
    shown = table(
        "models A and B", "estimate", "exact, on the texts", "ratio", "exact, drawn", "ratio: A", "B",
        right=range(1, 7), title="\nEstimated and exact KL, symmetrised",
    )  # fmt: skip
    tokens = table(
        "models A and B", "mean", *_QUANTILES, "maximum", "same top token", right=range(1, 4 + len(_QUANTILES)),
        title="\nKL(A‖B) of single tokens on the texts, nats/token ± SE",
    )  # fmt: skip
    for one in found:
        names = f"{plain(short[one.a])}\n{plain(short[one.b])}"
        estimate = number(one.estimate) + marks(one.estimate)
        exact = (one.symmetrised, one.ratio, one.drawn, one.from_a.ratio, one.from_b.ratio)
        shown.add_row(names, estimate, *map(number, exact))
        tokens.add_row(names, *_of_tokens(one))
    out.print(shown)
    out.print(tokens)


def _of_tokens(one: Calibration) -> list[str]:
    """The KL of single tokens: mean, quantiles, maximum; and how often both have the same top token."""
    tokens, same = one.per_token, one.per_token.same_top
    share = format_estimate(100 * same.value, 100 * same.standard_error)
    return [number(tokens.mean), *map(number, tokens.quantiles), f"{tokens.maximum:.3g}", f"{share} %"]
