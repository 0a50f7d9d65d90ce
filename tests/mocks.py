"""Mock models in tests: what goes through them, and what they should give."""

from __future__ import annotations

from typing import Any

import numpy as np

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.sources.mock import Chain, MockReader, Parameters
from klscale.sources.source import Reader


def count_scored(monkeypatch: Any, reader: type[Reader] = MockReader) -> list[int]:
    """The texts that are scored by readers of this kind, as they are scored; repeat runs aside."""
    counted: list[int] = []
    whole = reader.score

    def count(self: Reader, texts: TextSet, positions: Any) -> Any:
        for block in whole(self, texts, positions):
            counted.extend(block.text.tolist())
            yield block

    monkeypatch.setattr(reader, "score", count)
    return counted


def plain_mock(ref: str, texts: TextSet) -> np.ndarray:
    """Log-likelihoods (N,) in nats of a mock over bytes, by a loop over the bytes of each text."""
    log_p = Chain.of(Parameters.of(ModelRef.parse(ref))).log_p
    values = []
    for text in texts.texts or ():
        before, total = 256, 0.0
        for byte in text.encode():
            total += log_p[before, byte]
            before = byte
        values.append(total)
    return np.array(values)
