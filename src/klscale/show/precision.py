"""What `klscale compare --precision` adds to a comparison."""

from __future__ import annotations

import math
from typing import Any

from klscale.show.columns import Column
from klscale.show.terminal import out
from klscale.studies.precision import FEWEST, SequentialComparison, relative_error


def _kind(source: Any) -> str:
    return "confidence sequence" if (source.a, source.b) in source.precise.anytime else "all texts"


LOOK = (
    Column("n_texts", "Texts scored with both models of the least precise pair, skipped texts included.", "texts"),
    Column("relative_error", "Its standard error over its KL.", "share"),
)
PRECISION = (
    Column(
        "interval_kind",
        "`confidence sequence`: valid at every sequential look; `all texts`: the usual interval.",
        value=_kind,
    ),
    Column("precision", "The relative error that was asked for.", "share", lambda it: it.precise.precision),
    Column("relative_error", "Standard error over KL.", "share", lambda it: relative_error(it.measured.kl)),
    Column(
        "reached",
        "Whether that is precise enough.",
        value=lambda it: relative_error(it.measured.kl) <= it.precise.precision,
    ),
    Column(
        "fewest_texts",
        "Fewest texts for a standard error by the estimator of this KL, whatever the precision.",
        "texts",
        lambda it: FEWEST[it.measured.kl.estimator],
    ),
    Column("n_texts_of_set", "Texts of the whole set.", "texts", lambda it: len(it.texts)),
    Column("looks", "The sequential looks, first to last.", value=lambda it: it.precise.looks, within=LOOK, many=True),
)
"""Of a `compare.Compared`, where a precision was asked for."""


def print_precision(found: SequentialComparison) -> None:
    """The number of texts used, whether the precision was reached, and the kind of the intervals."""
    counts = sorted({kl.n_texts for kl in found.pairs.values()})
    used = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    n_texts = len(found.vectors.texts)
    error = found.looks[-1].relative_error
    largest = (
        f"the largest standard error is {100 * error:.3g} % of its KL"
        if math.isfinite(error)
        else "a KL has no standard error"
    )
    looks = ", ".join(f"{look.n_texts:,}" for look in found.looks)
    out.print(f"\n{used} of {n_texts:,} texts used (looks at {looks}): {largest}.")
    if not found.reached:
        out.print(
            f"{100 * found.precision:.3g} % was asked for and not reached: that needs more texts.", style="yellow"
        )
    elif found.at_floor:
        least = ", ".join(f"{FEWEST[estimator]} by {estimator}" for estimator in found.at_floor)
        out.print(
            f"{100 * found.precision:.3g} % alone would need fewer. But a standard error needs at least {least}:\n"
            "from fewer texts it is too small where a few texts differ most, and intervals cover too rarely."
        )
    if found.anytime:
        out.print("Intervals from some of the texts are confidence sequences: they hold at every sequential look.")
