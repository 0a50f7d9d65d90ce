"""Scores: log-likelihoods of some texts under one model, with the named parts that a source may give beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.inputs.texts import content_id
from klscale.science.arrays import Floats, Integers

LOWEST = -1e12
"""Nats below which no text's log-likelihood can be: squares of smaller values would overflow."""


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths: `values` (total,), row after row, and the `lengths` (n,) of the rows."""

    values: NDArray[Any]
    lengths: Integers

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: NDArray[Any]) -> Ragged:
        """These rows, by positions (m,) or a mask (n,)."""
        chosen = np.arange(len(self))[rows]
        starts = np.cumsum(self.lengths) - self.lengths
        lengths = self.lengths[chosen]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return Ragged(self.values[np.repeat(starts[chosen], lengths) + within], lengths)


Values = NDArray[Any] | Ragged


@dataclass(frozen=True)
class Part:
    """What a vector may hold for each text beside its log-likelihood, declared once.

    `column` is its name in a Parquet file, `dtype` the little-endian type of its numbers, `unit` theirs. A `ragged`
    part has as many values for a text as that needs (`Ragged`); any other has as many for each: an array (n, width).
    Where it has `gaps`, NaN stands for what is not known.
    """

    name: str
    column: str
    dtype: str
    ragged: bool = False
    unit: str = "nats"
    gaps: bool = False

    def concatenate(self, blocks: Sequence[Values]) -> Values:
        """The rows of all blocks, one block after the other."""
        if not self.ragged:
            return np.concatenate([block for block in blocks if not isinstance(block, Ragged)])
        ragged = [block for block in blocks if isinstance(block, Ragged)]
        values, lengths = ([getattr(block, name) for block in ragged] for name in ("values", "lengths"))
        return Ragged(np.concatenate(values), np.concatenate(lengths))

    def content(self, values: Values) -> list[bytes]:
        """What a checksum covers: the numbers; of a ragged part its name and the lengths of its rows too."""
        if not isinstance(values, Ragged):
            return [values.astype(self.dtype).tobytes()]
        numbers = values.values.astype(self.dtype).tobytes()
        return [self.name.encode(), values.lengths.astype("<i8").tobytes(), numbers]


LAYERS = Part("layers", "layer_log_likelihood", "<f8")
"""The log-likelihood (n, L + 1) after the embedding and each block, through the logit lens."""
SPANS = Part("spans", "span_log_likelihood", "<f4", ragged=True, gaps=True)
"""The log-likelihood of each span of a text, as `inputs.spans.pack` makes it; NaN where the tokenizer loses the cut."""
GIVEN = Part("given", "given_bytes", "<i4", unit="bytes")
"""The bytes (n, 1) of each text before its first scored token, where there are spans."""
DRAWS = Part("draws", "draws", "<i8", unit="")
"""What stands for the token ids (n, 1) that were drawn for each text (`draws.TokenDraws.mark`); 0 for none."""
SAMPLED = Part("sampled", "sampled_log_probability", "<f4", ragged=True, gaps=True)
"""The log-probabilities of the drawn ids, position after position; NaN for an id that the vocabulary lacks, below
`sampled_tokens.RULED_OUT` for one of probability 0."""
TOP = Part("top", "top_token", "<i4", ragged=True, unit="token id")
"""The most probable id at each position of a text with draws."""
PARTS = {part.name: part for part in (LAYERS, SPANS, GIVEN, DRAWS, SAMPLED, TOP)}
"""Every part that there is. The order is that of the columns in a file."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-likelihoods of n texts under one model.

    `text` (n,) are positions in the text set, `log_likelihood` (n,) is in nats, `n_tokens` (n,) counts the tokens of
    each text as the model reads it (0 where unknown). `parts` holds what `PARTS` declares, by name, where it was asked
    for.
    """

    text: Integers
    log_likelihood: Floats
    n_tokens: Integers
    parts: Mapping[str, Values] = field(default_factory=dict)

    @classmethod
    def concatenate(cls, blocks: Sequence[Scores]) -> Scores:
        """All blocks as one, in order of texts, each text once (the first block that has it wins); with the parts that
        every block has, empty blocks aside."""
        if not blocks:
            return cls(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))
        text, first = np.unique(np.concatenate([block.text for block in blocks]), return_index=True)
        filled = [block for block in blocks if len(block)]
        return cls(
            text,
            np.concatenate([block.log_likelihood for block in blocks])[first],
            np.concatenate([block.n_tokens for block in blocks])[first],
            {
                name: part.concatenate([block.parts[name] for block in filled])[first]
                for name, part in PARTS.items()
                if filled and all(name in block.parts for block in filled)
            },
        )

    def __len__(self) -> int:
        return len(self.text)

    @property
    def lost_cuts(self) -> float:
        """The share of the cuts of its texts that the tokenizer loses; NaN without spans, 0 without cuts."""
        spans = self.parts.get(SPANS.name)
        if not isinstance(spans, Ragged):
            return math.nan
        n_cuts = len(spans.values) - len(spans)
        return float(np.isnan(spans.values).sum() / n_cuts) if n_cuts else 0.0

    def without(self, *parts: str) -> Scores:
        """The same without these parts."""
        return replace(self, parts={name: values for name, values in self.parts.items() if name not in parts})

    @property
    def layers(self) -> Floats | None:
        """The log-likelihood (n, L + 1) in nats after the embedding and each block; None where it was not asked for."""
        layers = self.parts.get(LAYERS.name)
        return None if layers is None else np.asarray(layers)

    def at(self, texts: Integers) -> Scores:
        """Those of these texts that are there."""
        kept = np.isin(self.text, texts)
        parts = {name: values[kept] for name, values in self.parts.items()}
        return Scores(self.text[kept], self.log_likelihood[kept], self.n_tokens[kept], parts)

    @cached_property
    def checksum(self) -> str:
        """Changes with any value of a text or a part, or its place."""
        content = [self.text.astype("<i8").tobytes(), self.log_likelihood.astype("<f8").tobytes()]
        for name, part in PARTS.items():
            content += part.content(self.parts[name]) if name in self.parts else []
        return content_id(content)
