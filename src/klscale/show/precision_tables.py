"""What `klscale compare --precision` prints beside a comparison."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from klscale.show.tables import out

if TYPE_CHECKING:
    from klscale.studies.precision import SequentialComparison


def precision_record(found: SequentialComparison, a: str, b: str) -> dict[str, Any]:
    """What a pair's record says more where a precision was asked for, its interval instead of the usual one."""
    from klscale.studies.precision import relative_error

    kl = found.pairs[a, b]
    return {
        "interval": list(kl.interval),
        "interval_kind": "confidence sequence" if (a, b) in found.anytime else "all texts",
        "precision": found.precision,
        "relative_error": relative_error(kl),
        "reached": relative_error(kl) <= found.precision,
        "n_texts_of_set": len(found.vectors.texts),
        "looks": [asdict(look) for look in found.looks],
    }


def print_precision(found: SequentialComparison) -> None:
    """How many texts were used, whether that was enough, and what the intervals are."""
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
        out.print(f"{100 * found.precision:.3g} % was asked for and not reached: it takes more texts.", style="yellow")
    if found.anytime:
        out.print("Intervals from some of the texts allow for stopping by what was seen (a confidence sequence).")
