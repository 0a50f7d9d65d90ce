"""Shares as people write them."""

from __future__ import annotations

import math


def parse_share(text: str) -> float:
    """`10%`, `10 %` and `0.1` are a tenth; NaN for what is no number."""
    number = text.strip()
    try:
        return float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        return math.nan
