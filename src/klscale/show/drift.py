"""What `klscale drift` shows: KL beside run-to-run noise, by depth of context, and the positions that differ most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from klscale.science.reported import PUBLISHED
from klscale.show.cautions import Around, Measured, print_footnotes
from klscale.show.changes import SPANS
from klscale.show.columns import BITS, HEAD, Column, estimate, interval, lines, number, record, table, within
from klscale.show.pairs import KL_COLUMNS, marked
from klscale.show.terminal import describe_texts, out, plain, say
from klscale.studies.drift import Depth, Drift
from klscale.studies.verbs.drift import ModelDrift

MANY_TIMES = 1000
"""A larger ratio to noise is not told: noise that small is hardly known."""


@dataclass(frozen=True)
class _Drift:
    """A drift, with what cautions need of its KL."""

    it: Drift
    measured: Measured


def _bytes(depth: Depth) -> str:
    return f"{depth.start:,} on" if depth.stop is None else f"{depth.start:,} to {depth.stop:,}"


DEPTHS = (
    Column("", title="bytes of context", cell=_bytes),
    Column("start", "Bytes of the text before the first of these spans.", "bytes"),
    Column("stop", "Bytes before the first that is not one of them; null: no limit.", "bytes"),
    Column("n_spans", "Spans that begin there.", "spans", title="spans"),
    estimate("kl", "KL by these spans.", title="KL ± SE, bits/byte"),
    Column("", title="95 % interval", cell=lambda it: interval(it.kl)),
    Column("largest", "Largest change of the log-likelihood of one span.", "nats", title="largest, nats"),
)
DRIFT = (
    Column("a", "The first model.", value=lambda it: it.it.a),
    Column("b", "The second model.", value=lambda it: it.it.b),
    *within(HEAD, lambda it: it.it),
    *within(KL_COLUMNS, lambda it: it.measured),
    Column("noise_a", "Run-to-run noise of a: KL by whole texts between two runs; null: not known.", BITS,
           lambda it: it.it.noise_a),
    Column("noise_b", "The same of b.", BITS, lambda it: it.it.noise_b),
    Column("times_noise", "KL over `noise`: by whole texts, or by spans where there are unlike texts.",
           value=lambda it: it.it.times_noise),
    Column("unlike_texts", "Texts in which the two score different bytes: the first token is given to one alone.",
           "texts", lambda it: it.it.n_unlike),
    estimate("bits_per_byte_difference", "Difference in bits/byte, b less a, paired: above 0, a is better.",
             value=lambda it: it.it.difference),
    Column("largest", "Largest difference of one text.", "nats", lambda it: it.it.largest),
    Column("depths", "KL by spans, by depth of context.", value=lambda it: it.it.depths, within=DEPTHS, many=True),
    Column("spans", "The positions that differ most.", value=lambda it: it.it.spans, within=SPANS, many=True),
)  # fmt: skip


def drift_record(found: ModelDrift) -> dict[str, Any]:
    """The JSON of a drift."""
    return record(DRIFT, _row(found))


def _row(found: ModelDrift) -> _Drift:
    it = found.found
    return _Drift(it, Around(found.vectors).pair(it.a, it.b, it.kl))


def print_drift(found: ModelDrift) -> None:
    """KL by each estimator and the noise of each side; by depth; the positions that differ most; what that means."""
    row = _row(found)
    it = row.it
    out.print(describe_texts(it.texts))
    say(f"\n{plain(it.a)} to {plain(it.b)}")
    print_values(row)
    if it.depths:
        out.print(table(DEPTHS, it.depths, "\nBy depth of context"))
    if it.spans and not it.is_equal:
        out.print(table(SPANS, it.spans, "\nThe positions that differ most"))
        say("nats: log-likelihood, second less first. These were chosen for being extreme.", "dim")
    out.print()
    say(verdict(it))
    if it.n_unlike:
        say(
            f"In {it.n_unlike:,} texts the first token is scored by one and given to the other: whole texts and bits "
            "per byte differ by that. KL by spans leaves it out.",
            "yellow",
        )
    elif not math.isnan(it.difference.standard_error) and not it.is_equal:
        say(f"Bits per byte, second less first: {number(it.difference, sign=True)}.")
    print_footnotes(it.texts, [row.measured, row.measured.by_whole_texts])


def print_values(row: _Drift) -> None:
    """KL by each estimator that is known, and the run-to-run noise of each model."""
    kl, it = row.measured.kl, row.it
    rows = [(kl.estimator, marked(row.measured), interval(kl))]
    if kl.sampled_tokens is not None and kl.spans is not None:
        rows.append(("spans", number(kl.spans), interval(kl.spans)))
    if not kl.is_published:
        rows.append((PUBLISHED, marked(row.measured.by_whole_texts), interval(kl.whole_texts)))
    for name, noise in ((it.a, it.noise_a), (it.b, it.noise_b)):
        rows.append((f"two runs of {name}", "not known" if math.isnan(noise) else f"{noise:.2g}", ""))
    columns = lines("KL by", f"KL ± SE, {BITS}", "95 % interval")
    out.print(table(columns, rows))


def verdict(it: Drift) -> str:
    """What the KL is beside run-to-run noise, in a sentence."""
    if it.is_equal:
        return "Every log-likelihood is the same to the last digit."
    found = it.beside_noise
    if math.isnan(it.noise):
        return "Run-to-run noise is not known of both models: it cannot be told whether this is more than rounding."
    adds = f"run-to-run noise adds to a KL by whole texts ({it.noise:.2g} bits/byte)"
    if found.value <= it.noise:
        return f"No more than {adds}."
    times = f"{it.times_noise:.{0 if it.times_noise >= 10 else 1}f} times what"
    if not it.times_noise < MANY_TIMES:
        times = f"More than {MANY_TIMES:,} times what"
    if found.interval[0] <= it.noise:
        return f"{times} {adds}: within the error this may be noise."
    return f"{times} {adds}: they do not compute the same."
