"""What keeps the KL of a pair from being read plainly: the sentences and the marks, wherever they are shown."""

from __future__ import annotations

CAUTIONS = {
    1: "far apart (above 100 nats/text), or far from the texts (above 2 bits/byte): the approximation is out of its "
    "range, read the value as a distance that overstates KL",
    2: "not clipped: the clip would move more than 5 % of a vector",
    4: "heavy tails (kurtosis above 10): the interval covers less often than 95 %",
    8: "not all texts were scored with both models",
    16: "different dtypes: their rounding is part of the value",
    32: "rounding noise is more than 10 % of the value, by the noise floors of both models",
    64: "below the noise floor: the value is no more than what rounding alone makes of equal models",
}
"""A sentence for each, by its bit in `findings.cautions`."""

OUT_OF_RANGE = f"* {CAUTIONS[1]}"
UNCLIPPED = f"u {CAUTIONS[2]}"
HEAVY = f"! {CAUTIONS[4]}"
NOISY = f"~ {CAUTIONS[32]}; ~~ {CAUTIONS[64]}"
"""What the marks of a table mean: the notes below it."""
