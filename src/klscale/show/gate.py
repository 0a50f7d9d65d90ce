"""What `klscale compare --fail-above` says."""

from __future__ import annotations

from collections.abc import Mapping

from klscale.show.terminal import err, plain
from klscale.studies.gate import Verdict


def print_verdicts(verdicts: Mapping[tuple[str, str], Verdict], limit: float, confidence: float | None) -> None:
    """A line for each pair: within the limit, not within it, not decided, or not to be told."""
    by = "" if confidence is None else f" at {100 * confidence:.4g} %"
    for (a, b), found in verdicts.items():
        pair, interval = f"{plain(a)} and {plain(b)}", found.interval
        between = "" if interval is None else f", {interval[0]:.3g} to {interval[1]:.3g}{by}"
        if not found.measured:
            why = "have no KL on these texts, or none with a standard error"
            err.print(f"Cannot be told: {pair} {why}.", style="bold red")
        elif found.within is None:
            decide = "" if found.texts is None else f" About {found.texts:,} texts like these would decide."
            err.print(f"Undecided, {limit} bits/byte lies in the interval: {pair}{between}.{decide}", style="yellow")
        elif found.within:
            err.print(f"Within {limit} bits/byte: {pair}{between}.")
        else:
            err.print(f"Not within {limit} bits/byte: {pair}{between}.", style="bold red")
