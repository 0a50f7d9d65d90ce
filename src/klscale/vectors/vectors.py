"""Log-likelihood vectors with their labels: K models x N texts, the object that every study starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from klscale.errors import InputError, nearest
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet, content_id
from klscale.science.arrays import Floats, Integers
from klscale.science.bootstrap import RESAMPLES, resampled_kl
from klscale.science.clip import beyond_clip_limit, clip_for_all, common_texts, moved_by_clip
from klscale.science.estimates import Estimate
from klscale.science.kl import KLMatrix, bits_per_byte, coordinates, kl_difference, kl_matrix, shift_cosine

CONVENTION = "default special tokens; tokens 2 to n; float64 sum of float32 token log-probabilities"
"""How klscale scores a text. Vectors of different conventions are never compared."""

ATTRIBUTES = (
    "family", "type", "parameters", "seed", "step", "warmup", "tokens", "stage", "ingredient", "parent", "quantization",
    "layer",
)  # fmt: skip

NOISE_LIMIT = 0.1
"""Part of a KL from which on it is said that rounding has added it."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-likelihoods of some texts under one model: `text` (n,) positions in the text set, `log_likelihood` (n,) in
    nats, `n_tokens` (n,) tokens of each text as the model reads it (0 where unknown); `layers` (n, L + 1) the same in
    nats after the embedding and each block, through the logit lens, where they were asked for."""

    text: Integers
    log_likelihood: Floats
    n_tokens: Integers
    layers: Floats | None = None

    @classmethod
    def concatenate(cls, parts: Sequence[Scores]) -> Scores:
        """All parts as one, in order of texts, each text once (the first part that has it wins); with layers where
        every part that is not empty has them."""
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))
        text, first = np.unique(np.concatenate([part.text for part in parts]), return_index=True)
        layers = [part.layers for part in parts if len(part)]
        return cls(
            text,
            np.concatenate([part.log_likelihood for part in parts])[first],
            np.concatenate([part.n_tokens for part in parts])[first],
            np.concatenate([part for part in layers if part is not None])[first]
            if layers and all(part is not None for part in layers)
            else None,
        )

    def __len__(self) -> int:
        return len(self.text)

    def at(self, texts: Integers) -> Scores:
        """Those of these texts that are there."""
        kept = np.isin(self.text, texts)
        layers = None if self.layers is None else self.layers[kept]
        return Scores(self.text[kept], self.log_likelihood[kept], self.n_tokens[kept], layers)

    @property
    def checksum(self) -> str:
        """Changes with any value or its place."""
        arrays = [self.text.astype("<i8"), self.log_likelihood.astype("<f8")]
        arrays += [] if self.layers is None else [self.layers.astype("<f8")]
        return content_id(array.tobytes() for array in arrays)


@dataclass(frozen=True, eq=False)
class Vectors:
    """`log_likelihood` (K, N) in nats, NaN where a text was not scored; K `models`; N `texts`.

    `attributes` has one row a model (index: the reference as a string) and the columns `family`, `type`,
    `parameters`, `seed`, `step`, `warmup`, `parent`, `quantization`, `layer`, `dtype`, `convention`, and from a store
    `noise_floor`: KL in bits per byte between two readings of the model.
    """

    log_likelihood: Floats
    models: tuple[ModelRef, ...]
    attributes: pd.DataFrame
    texts: TextSet

    def __post_init__(self) -> None:
        shape = (len(self.models), len(self.texts))
        if self.log_likelihood.shape != shape or len(self.attributes) != shape[0]:
            raise ValueError(f"log_likelihood has shape {self.log_likelihood.shape}, models x texts is {shape}")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The references as strings, in order."""
        return tuple(map(str, self.models))

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.models)

    @cached_property
    def n_scored(self) -> Integers:
        """How many texts (K,) each model was scored on."""
        return np.asarray((~np.isnan(self.log_likelihood)).sum(axis=1))

    def subset(self, models: Sequence[str | ModelRef]) -> Vectors:
        """The vectors of these models, in this order. Raises InputError for one that is not there."""
        positions = [self.position(model) for model in models]
        return replace(
            self,
            log_likelihood=self.log_likelihood[positions],
            models=tuple(self.models[p] for p in positions),
            attributes=self.attributes.iloc[positions],
        )

    def joined(self, others: Vectors) -> Vectors:
        """These models and then the others. Raises InputError where their texts, or the clips of these, differ."""
        if (self.texts.id, self.texts.clip) != (others.texts.id, others.texts.clip):
            mine, theirs = (f"{texts.name} ({texts.id}), clip {texts.clip}" for texts in (self.texts, others.texts))
            raise InputError(f"{mine}, and {theirs}: not the same texts.", remedy="Score all models on one text set.")
        return replace(
            self,
            log_likelihood=np.concatenate([self.log_likelihood, others.log_likelihood]),
            models=self.models + others.models,
            attributes=pd.concat([self.attributes, others.attributes]),
        )

    def position(self, model: str | ModelRef) -> int:
        """Row of a model."""
        if str(model) not in self._positions:
            raise InputError(f"No vector of {model} on {self.texts.name}.", nearest(str(model), self.names))
        return self._positions[str(model)]

    def of_one_convention(self) -> tuple[Vectors, list[str]]:
        """The models of the convention that most have, and the names of the others: the two are never compared."""
        conventions = self.attributes["convention"]
        if len(set(conventions)) < 2:
            return self, []
        whole = [ref.layer is None for ref in self.models]
        most = conventions[whole].value_counts().index[0]
        kept = [name for name, convention in zip(self.names, conventions, strict=True) if convention == most]
        left_out = set(self.names) - {*kept}
        return self.subset(kept), [name for name in self.names if name in left_out]

    def kl(self) -> KLMatrix:
        """KL between all pairs of models, in bits per byte with standard errors; computed once.

        Raises InputError where the vectors were made by different conventions.
        """
        return self._kl

    @cached_property
    def _kl(self) -> KLMatrix:
        self.require_one_convention()
        return kl_matrix(
            self.log_likelihood,
            self.texts.bytes,
            clip=self.texts.clip,
            documents=self.texts.document,
            labels=self.names,
        )

    @property
    def noise_floor(self) -> Floats:
        """KL (K,) in bits per byte between two readings of each model, which differ by rounding; NaN where unknown."""
        floor = self.attributes.get("noise_floor", pd.Series(None, self.attributes.index, dtype=object))
        return np.asarray(pd.to_numeric(floor), dtype=np.float64)

    def noise(self) -> Floats:
        """What rounding adds to the KL of each pair (K, K) in expectation, in bits per byte; NaN where not known.

        Let a reading of model i be l_i + e_i, with rounding errors e_i of variance s_i**2 over texts. Two readings of
        one model differ by e_i - e_i', of variance 2 s_i**2: that is its noise floor. Those of two models differ by
        l_i - l_j + e_i - e_j; if the errors are independent of each other and of the models, the variance is that of
        l_i - l_j plus s_i**2 + s_j**2: half the sum of both floors. Errors that two models share, as those of one
        model quantized in two ways may be, add less. What a coarser dtype makes of the weights is no such noise: it is
        the same at every reading, and part of the KL. So is what rounding does alike at every reading.
        """
        floor = self.noise_floor
        return (floor[:, None] + floor) / 2

    def on_common_texts(self) -> Vectors:
        """These models on the texts that all have, with the clip where it serves all, else without a clip: then the
        KLs of two pairs differ by their `kl_difference`."""
        common = common_texts(self.log_likelihood)
        clip = clip_for_all(self.log_likelihood[:, common], self.texts.clip)
        rows = np.where(common, self.log_likelihood, np.nan)
        return replace(self, log_likelihood=rows, texts=self.texts.with_clip(clip))

    def n_moved_by_clip(self) -> int:
        """How many models the text set's clip does not serve, because it moves more than 5 % of their values."""
        return int(beyond_clip_limit(moved_by_clip(self.log_likelihood, self.texts.clip)).sum())

    def kl_difference(self, first: tuple[str, str], second: tuple[str, str]) -> Estimate:
        """KL(first pair) - KL(second pair) with the standard error of the paired difference."""
        self.require_one_convention()
        a, b, c, d = (self.log_likelihood[self.position(model)] for model in (*first, *second))
        return kl_difference((a, b), (c, d), self.texts.bytes, clip=self.texts.clip, documents=self.texts.document)

    def shift_cosine(self, base: str, first: str, second: str) -> Estimate:
        """Cosine between the shifts of two models from a third: do they differ from it in the same way?"""
        self.require_one_convention()
        x, y, z = (self.log_likelihood[self.position(model)] for model in (base, first, second))
        return shift_cosine(x, y, z, clip=self.texts.clip, documents=self.texts.document)

    def bits_per_byte(self, model: str | ModelRef, other: str | ModelRef | None = None) -> Estimate:
        """Bits per byte of a model; with `other`, by how much it exceeds that of `other` (paired standard error)."""
        row = self.log_likelihood[self.position(model)]
        if other is not None:
            self.require_one_convention()
            row = row - self.log_likelihood[self.position(other)]
        return bits_per_byte(row, self.texts.bytes, documents=self.texts.document)

    def coordinates(self) -> Floats:
        """Points (K, n) whose squared distances are KL in bits per byte, on the n texts that all models have, with
        the text set's clip."""
        rows, texts = self._complete()
        return coordinates(rows, float(self.texts.bytes[texts].mean()))

    def resampled_kl(self, resamples: int = RESAMPLES) -> Floats:
        """KL between all pairs (resamples, K, K) in bits per byte in each bootstrap sample of the texts that all models
        have (of whole documents, where texts share them), with the text set's clip."""
        rows, texts = self._complete()
        documents = self.texts.documents_of(texts)
        return resampled_kl(rows, self.texts.bytes[texts], documents=documents, resamples=resamples)

    def _complete(self) -> tuple[Floats, NDArray[np.bool_]]:
        """Rows (K, n) on the texts that all models have, with the clip, and which texts (N,) these are."""
        self.require_one_convention()
        texts = common_texts(self.log_likelihood)
        rows: Floats = self.log_likelihood if texts.all() else self.log_likelihood[:, texts]
        return (rows if self.texts.clip is None else np.maximum(rows, self.texts.clip)), texts

    def require_one_convention(self) -> None:
        """Raises InputError where the vectors were made by different conventions: they are never compared."""
        conventions = self.attributes["convention"]
        if len(set(conventions)) > 1:
            odd = self.attributes.index[conventions != conventions.iloc[0]][0]
            raise InputError(
                f"{self.names[0]} and {odd} were scored by different conventions.",
                f"{conventions.iloc[0]!r} against {conventions[odd]!r}: their difference is not that of the models.",
                "Score both the same way.",
            )
