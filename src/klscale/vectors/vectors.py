"""Log-likelihood vectors with their labels: K models x N texts, the object that every study starts from."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from klscale.errors import InputError, nearest
from klscale.inputs.attributes import ATTRIBUTES, attributes_of, is_free, require_free, runs_of
from klscale.inputs.checkpoint_names import MOST_DIGITS
from klscale.inputs.references import ModelRef
from klscale.inputs.spans import unpack
from klscale.inputs.texts import TextSet, content_id
from klscale.limits import require_memory
from klscale.science.arrays import Floats, Integers
from klscale.science.bootstrap import RESAMPLES, resampled_kl
from klscale.science.clip import beyond_clip_limit, clip_for_all, common_texts, moved_by_clip
from klscale.science.drawn import LOG_RATIOS, DrawnKL, log_ratio_kl
from klscale.science.estimates import Estimate, critical_value, log_interval
from klscale.science.kl import (
    LOG_2,
    QUANTITIES,
    KLMatrix,
    KLPairs,
    bits_per_byte,
    coordinates,
    kl_difference,
    kl_matrix,
    kl_pairs,
    kl_values,
    shift_cosine,
)
from klscale.science.reported import FAR_MODEL, SAMPLED_TOKENS, SPANS, WHOLE_TEXTS, ReportedKL
from klscale.science.sampled_tokens import (
    DepthKL,
    Draws,
    SampledKL,
    SampledKLMatrix,
    kl_by_depth,
    sampled_kl,
    sampled_kl_matrix,
)
from klscale.science.spans import (
    SpanChanges,
    SpanKL,
    SpanKLMatrix,
    Spans,
    span_changes,
    span_kl,
    span_kl_difference,
    span_kl_matrix,
    span_terms,
)
from klscale.vectors.draws import SampledValues, TokenDraws
from klscale.vectors.scores import GIVEN, LOWEST, Ragged, Values
from klscale.vectors.scores import SPANS as SPANS_PART
from klscale.vectors.sizes import SIZE, Size

if TYPE_CHECKING:
    import pandas as pd

ALL_PAIRS_BYTES = 200
"""Memory that each pair of models takes, about, while KL is computed between all of them."""
PAIRS_AT_ONCE = 8192
"""Pairs whose vectors are copied together."""
MOST_SAMPLED = 2**28
"""Log-probabilities of sampled tokens that are compared between all pairs at once: 1 GB."""
CONVENTION = "default special tokens; tokens 2 to n; float64 sum of float32 token log-probabilities"
"""How klscale scores a text. Vectors of different conventions are never compared."""

IMPORTED = "imported"
"""The convention of log-likelihoods from elsewhere: how they were scored is not known."""

COLUMNS = (*ATTRIBUTES, "dtype", "convention", "noise_floor", *SIZE)
"""Columns of `Vectors.attributes`; free attributes follow."""

NOISE_LIMIT = 0.1
"""Fraction of a KL above which run-to-run noise is reported with it."""


@dataclass(frozen=True, eq=False)
class PackedSpans:
    """The spans of one model on all texts of a set: `values` (S,) as `inputs.spans.pack` makes them, NaN where a text
    was not scored; `given` (N,) bytes of each text before its first scored token."""

    values: NDArray[np.float32]
    given: Integers


@dataclass(frozen=True, eq=False)
class SpanRow:
    """The spans of one model, which `read` reads from where they are kept."""

    read: Callable[[], PackedSpans]

    @cached_property
    def kept(self) -> PackedSpans:
        """The same, read once."""
        return self.read()


@dataclass(frozen=True, eq=False)
class SampledRow:
    """What one model says of sampled tokens, which `read` reads from where it is kept; `read_draws` reads what was
    drawn. `tokens` stands for the token ids of the text set (`draws.TokenDraws`)."""

    tokens: str
    read: Callable[[], SampledValues]
    read_draws: Callable[[], TokenDraws | None]

    @cached_property
    def kept(self) -> SampledValues:
        """The same, read once."""
        return self.read()


@dataclass(frozen=True, eq=False)
class Vectors:
    """Log-likelihoods (K, N) in nats of N `texts` under K `models`, NaN where a text was not scored.

    `attributes` has a row for each model (index: the reference as a string) and the columns `COLUMNS`, then a column
    for each free attribute (learning rate, data, anything); `noise_floor` is the KL in bits per byte between two runs
    of the model; `size` reads the columns of `Size`. `spans` has a row for each model that has log-likelihoods of
    spans, None for the others; None: no model has them. `sampled` is the same for sampled tokens.
    `Vectors.from_arrays` makes one from arrays.
    """

    log_likelihood: Floats
    models: tuple[ModelRef, ...]
    attributes: pd.DataFrame
    texts: TextSet
    spans: tuple[SpanRow | None, ...] | None = None
    sampled: tuple[SampledRow | None, ...] | None = None

    def __post_init__(self) -> None:
        shape = (len(self.models), len(self.texts))
        if self.log_likelihood.shape != shape or len(self.attributes) != shape[0]:
            raise ValueError(f"log_likelihood has shape {self.log_likelihood.shape}, models x texts is {shape}")

    @classmethod
    def from_arrays(
        cls,
        log_likelihood: ArrayLike,
        names: Sequence[str],
        bytes: ArrayLike | TextSet,
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Vectors:
        """Vectors from log-likelihoods (K, N) in nats of K models `names` on N texts, NaN where a text was not scored.

            vectors = Vectors.from_arrays(L, ["gpt2", "gpt2-medium"], [len(text.encode()) for text in texts])
            print(vectors.kl()["gpt2", "gpt2-medium"])

        `bytes` (N,) are the UTF-8 lengths of the texts; give a `TextSet` instead for texts with documents, domains or a
        clip. `attributes` of some models, by name, add to what the names tell or correct it. Their keys are `COLUMNS`,
        or free attributes: `{"gpt2": {"family": "gpt2", "seed": 1, "learning_rate": 3e-4}}`. The convention is
        `imported` unless given.

        Raises InputError for shapes that do not agree, values that are no log-likelihoods, byte counts that are not
        positive whole numbers, a model that is named twice, and near misses of attributes: `famly`.
        """
        L, known = np.asarray(log_likelihood, dtype=np.float64), attributes or {}
        n_texts = len(bytes) if isinstance(bytes, TextSet) else np.size(bytes)
        if L.shape != (len(names), n_texts):
            what = f"log_likelihood has shape {L.shape}; {len(names):,} names and {n_texts:,} texts are given."
            raise InputError(what, "One row is one model, one column is one text.", "Make them agree.")
        if unknown := sorted(known.keys() - {*names}):
            raise InputError(f"no model {unknown[0]!r}, whose attributes are given.", nearest(unknown[0], names))
        for name, row in known.items():
            for key in row.keys() - {*COLUMNS}:
                require_free(key)
                if not is_free(key, row[key]):
                    what = f"model {name!r}: {key} {row[key]!r:.40} is neither a word nor a finite number."
                    raise InputError(what, remedy="Give one value a model.")
        models = [_reference(name) for name in names]
        same, count = Counter(models).most_common(1)[0] if models else (None, 0)
        if count > 1:
            twice = " and ".join(repr(name) for name, model in zip(names, models, strict=True) if model == same)
            raise InputError(f"{twice} are one model, {same}.", remedy="Rename or drop one.")
        for name, row in zip(names, L, strict=True):
            require_log_likelihoods(f"model {name!r}", "text", row)
        rows = []
        for name, model in zip(names, models, strict=True):
            # a reference without a dtype means float32 where klscale scores; elsewhere it is not known
            dtype = None if model.dtype == "float32" else model.dtype
            given = {"dtype": dtype, "convention": IMPORTED, **known.get(name, {})}
            rows.append({**attributes_of(model, given), "layer": model.layer})
        texts = bytes if isinstance(bytes, TextSet) else _external_texts(bytes, L, names)
        return cls(L, tuple(models), attribute_table(models, rows), texts)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The references as strings, in order."""
        return tuple(map(str, self.models))

    @cached_property
    def known(self) -> tuple[dict[str, Any], ...]:
        """The attributes that each model has, by name."""
        import pandas as pd

        rows = self.attributes.to_dict("records")
        return tuple({str(key): value for key, value in row.items() if not pd.isna(value)} for row in rows)

    @cached_property
    def runs(self) -> tuple[str, ...]:
        """The name of the training run of each model; see `inputs.attributes.runs_of`."""
        return tuple(runs_of(self.models, self.known))

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.models)

    @cached_property
    def n_scored(self) -> Integers:
        """Number of texts (K,) on which each model was scored."""
        return np.asarray((~np.isnan(self.log_likelihood)).sum(axis=1))

    def subset(self, models: Sequence[str | ModelRef]) -> Vectors:
        """The vectors of these models, in this order. Raises InputError for one that is not there."""
        positions = [self.position(model) for model in models]
        if len(positions) == len(self) and positions == [*range(len(self))]:
            return self  # with all that was computed of it
        return replace(
            self,
            log_likelihood=self.log_likelihood[positions],
            models=tuple(self.models[p] for p in positions),
            attributes=self.attributes.iloc[positions],
            spans=None if self.spans is None else tuple(self.spans[p] for p in positions),
            sampled=None if self.sampled is None else tuple(self.sampled[p] for p in positions),
        )

    def without_layers(self) -> Vectors:
        """The vectors of whole models, without those of their layers."""
        return self.subset([ref for ref in self.models if ref.layer is None])

    def with_outputs(self) -> Vectors:
        """The same, where the last layer of each model is its output. Where a model has a row that its last layer does
        not repeat, as where `NAME#0` to `NAME#L-1` and `NAME` were imported, the values of `NAME` are `NAME#L` too."""
        last: dict[ModelRef, int] = {}
        for ref in self.models:
            if ref.layer is not None:
                model = replace(ref, layer=None)
                last[model] = max(ref.layer, last.get(model, 0))
        there, rows, outputs = set(self.models), list[int](), list[ModelRef]()
        for model, layer in last.items():
            if model not in there:
                continue
            own, below = (self.position(ref) for ref in (model, replace(model, layer=layer)))
            if not np.array_equal(self.log_likelihood[own], self.log_likelihood[below], equal_nan=True):
                rows.append(own)
                outputs.append(replace(model, layer=layer + 1))
        if not rows:
            return self
        known = [
            {**self.known[row], "layer": ref.layer, "noise_floor": None} for row, ref in zip(rows, outputs, strict=True)
        ]
        attributes = attribute_table(outputs, known)
        return self.joined(Vectors(self.log_likelihood[rows], tuple(outputs), attributes, self.texts))

    def joined(self, others: Vectors) -> Vectors:
        """These models and then the others. Raises InputError where their texts, or the clips of these, differ."""
        import pandas as pd

        if (self.texts.id, self.texts.clip) != (others.texts.id, others.texts.clip):
            mine, theirs = (f"{texts.name} ({texts.id}), clip {texts.clip}" for texts in (self.texts, others.texts))
            raise InputError(f"{mine}, and {theirs}: not the same texts.", remedy="Score all models on one text set.")
        return replace(
            self,
            log_likelihood=np.concatenate([self.log_likelihood, others.log_likelihood]),
            models=self.models + others.models,
            attributes=pd.concat([self.attributes, others.attributes]),
            spans=self._span_rows + others._span_rows,
            sampled=self._sampled_rows + others._sampled_rows,
        )

    def pmi(self, alone: Vectors) -> Floats:
        """PMI (K, N) in nats of responses and prompts: log p(response | prompt) - log p(response), NaN where either is
        not known (arXiv 2603.18593). Squared distances between its rows are not KL.

        `alone` has the same models on `texts.responses_alone()`. Raises InputError for other texts, for a model that it
        lacks, and for vectors that were made by different conventions.
        """
        if self.texts.prompts is None or alone.texts.id != self.texts.responses_alone().id:
            what = f"{alone.texts.name} are not the responses of {self.texts.name} alone."
            raise InputError(what, remedy="Score texts.responses_alone(), where texts has prompts.")
        self.require_one_convention()
        alone.require_one_convention()
        return self.log_likelihood - alone.log_likelihood[[alone.position(name) for name in self.names]]

    def among(self, texts: NDArray[np.bool_]) -> Vectors:
        """The same with the values of these texts (N,) alone: KL and bits per byte are then those of a part of the set,
        as of a domain."""
        return replace(self, log_likelihood=np.where(texts, self.log_likelihood, np.nan))

    def position(self, model: str | ModelRef) -> int:
        """Row of a model."""
        if str(model) not in self._positions:
            raise InputError(f"No vector of {model} on {self.texts.name}.", nearest(str(model), self.names))
        return self._positions[str(model)]

    def of_one_convention(self) -> tuple[Vectors, list[str]]:
        """The models with the most frequent convention, and the names of the others: they are never compared."""
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

        Raises InputError where the vectors were made by different conventions, and for more models than there is memory
        for.
        """
        return self._kl

    @cached_property
    def _kl(self) -> KLMatrix:
        self.require_one_convention()
        require_memory(
            ALL_PAIRS_BYTES * len(self) ** 2,
            f"KL of all {len(self) * (len(self) - 1) // 2:,} pairs of {len(self):,} models takes",
            "klscale kl --of REF  has the pairs with one model; compare, scale and map need no matrix of all.",
        )
        return kl_matrix(
            self.log_likelihood,
            self.texts.bytes,
            clip=self.texts.clip,
            documents=self.texts.document,
            labels=self.names,
        )

    def kl_values(self) -> Floats:
        """The values (K, K) of `kl` in bits per byte, without standard errors, sooner: to order models by. Raises as
        that does."""
        return self._kl.value if "_kl" in self.__dict__ else self._kl_values

    @cached_property
    def _kl_values(self) -> Floats:
        self.require_one_convention()
        return kl_values(self.log_likelihood, self.texts.bytes, clip=self.texts.clip)

    def kl_pairs(self, pairs: Integers) -> KLPairs:
        """KL by whole texts of `pairs` (P, 2) of models, by their places, in bits per byte with standard errors.

        The numbers are those of `kl`, in memory for some thousands of pairs. Raises InputError where the vectors were
        made by different conventions.
        """
        self.require_one_convention()
        parts = []
        for chunk in np.array_split(pairs, -(-max(len(pairs), 1) // PAIRS_AT_ONCE)):
            rows, places = np.unique(chunk, return_inverse=True)
            texts = self.texts
            parts.append(
                kl_pairs(
                    self.log_likelihood[rows], texts.bytes, places.reshape(-1, 2),
                    clip=texts.clip, documents=texts.document,
                )
            )  # fmt: skip
        return KLPairs.of({name: np.concatenate([part[name] for part in parts]) for name in QUANTITIES})

    def reported_kl_from(self, model: str | ModelRef) -> tuple[Integers, ReportedKL]:
        """The places (K - 1,) of the other models, and the KL (K - 1,) from a model to each that is reported, in bits
        per byte: the numbers of `reported_kl`. Raises as that does."""
        own = self.position(model)
        others = np.flatnonzero(np.arange(len(self)) != own)
        whole = ReportedKL.of_whole_texts(self.kl_pairs(np.stack([np.full(len(others), own), others], axis=1)))
        if self._span_rows[own] is None and self._sampled_rows[own] is None:
            return others, whole
        copied = ("estimator", "value", "standard_error", "n_texts", "n_documents")
        found: dict[str, Any] = {name: np.array(getattr(whole, name)) for name in copied}
        found["by_spans"] = np.full(len(others), np.nan)
        found |= {"poor": np.zeros(len(others), dtype=bool), "far": self.far[own] | self.far[others]}
        for n, other in enumerate(others):
            if self._span_rows[other] is None and self._sampled_rows[other] is None:
                continue
            one = self.subset([self.models[own], self.models[other]]).reported_kl(model, self.models[other])
            for name, values in found.items():
                values[n] = getattr(one, name) or 0
        interval = log_interval(found["value"], found["standard_error"], critical_value(found["n_documents"]))
        return others, ReportedKL(**found, interval=interval, whole_texts=whole.whole_texts)

    @property
    def _span_rows(self) -> tuple[SpanRow | None, ...]:
        return (None,) * len(self) if self.spans is None else self.spans

    def spans_of(self, model: str | ModelRef, texts: Integers) -> dict[str, Values]:
        """The spans of a model on these texts (n,) as parts of `Scores`; none where they are not known."""
        row = self._span_rows[self.position(model)]
        if row is None:
            return {}
        spans = Ragged(row.kept.values, np.diff(self._text_spans.starts))
        return {SPANS_PART.name: spans[texts], GIVEN.name: row.kept.given[texts, None]}

    def has_spans(self, model: str | ModelRef) -> bool:
        """Whether log-likelihoods of spans are known of a model."""
        return self._span_rows[self.position(model)] is not None

    def span_kl(self, a: str | ModelRef, b: str | ModelRef) -> SpanKL:
        """KL between two models in bits per byte from spans of the texts: nearer to next-token KL than whole texts are.
        With its standard error, the share of drift in the KL of whole texts, and the share of cuts that were lost.

        Raises InputError for a model without spans, and for vectors that were made by different conventions.
        """
        (first, second), given = self.subset([a, b])._unpacked_spans()
        return span_kl(first, second, self._text_spans, given=given, documents=self.texts.document)

    def span_terms(self, a: str | ModelRef, b: str | ModelRef) -> tuple[Floats, Floats]:
        """V (N,) in nats of each text and the bytes (N,) that it is of, whose sums make `span_kl` (`spans.span_terms`).
        Raises as `span_kl` does."""
        (first, second), given = self.subset([a, b])._unpacked_spans()
        return span_terms(first, second, self._text_spans, given=given)

    def n_unlike(self, a: str | ModelRef, b: str | ModelRef) -> int:
        """The number of texts that both models have and in which they score different bytes: to one the first token is
        given, as without BOS, and the other scores it. KL by spans leaves these bytes out; whole texts hold them.
        Raises as `span_kl` does."""
        pair = self.subset([a, b])
        _, given = pair._unpacked_spans()
        return int((~np.isnan(pair.log_likelihood).any(axis=0) & (given[0] != given[1])).sum())

    def span_changes(self, a: str | ModelRef, b: str | ModelRef) -> SpanChanges:
        """How much the log-likelihood of each span changes from a to b, in nats (`spans.span_changes`). Raises as
        `span_kl` does."""
        (first, second), given = self.subset([a, b])._unpacked_spans()
        return span_changes(first, second, self._text_spans, given=given)

    def span_kl_difference(self, first: tuple[str, str], second: tuple[str, str]) -> Estimate:
        """KL(first pair) - KL(second pair) from spans, with the standard error of the paired difference. Raises as
        `span_kl` does."""
        names = [*dict.fromkeys((*first, *second))]
        rows, given = self.subset(names)._unpacked_spans()
        places = [names.index(name) for name in (*first, *second)]
        a, b, c, d = (rows[place] for place in places)
        documents = self.texts.document
        return span_kl_difference((a, b), (c, d), self._text_spans, given=given[places], documents=documents)

    def span_kl_matrix(self) -> SpanKLMatrix:
        """The same between all pairs of models, each with the cuts that all of them keep. Raises as `span_kl` does."""
        self.require_one_convention()
        rows, spans = self._require_spans(), self._text_spans
        values = np.empty((len(self), len(spans.bytes)), dtype=np.float32)
        given = np.empty((len(self), len(self.texts)), dtype=np.int64)
        for place, row in enumerate(rows):
            found = row.read()  # not kept: all of them are large
            values[place], given[place] = self._scored_alone(found.values, place), found.given
        return span_kl_matrix(values, spans, given=given, documents=self.texts.document, labels=self.names)

    def reported_kl(self, a: str | ModelRef, b: str | ModelRef) -> ReportedKL:
        """The KL between two models that is reported, in bits per byte: by sampled tokens where both have them, else by
        spans, else by whole texts; computed once. Raises InputError for vectors that were made by different
        conventions."""
        if (pair := (str(a), str(b))) not in self._reported_pairs:
            self._reported_pairs[pair] = self._reported_kl(*pair)
        return self._reported_pairs[pair]

    @cached_property
    def _reported_pairs(self) -> dict[tuple[str, str], ReportedKL]:
        return {}

    def _reported_kl(self, a: str, b: str) -> ReportedKL:
        whole = self.kl()[self.position(a), self.position(b)]
        spans = self.span_kl(a, b) if self.has_spans(a) and self.has_spans(b) else None
        if spans is not None and math.isnan(spans.value):  # fewer than two texts have a cut
            spans = None
        sampled = self.sampled_kl(a, b) if self.has_sampled_tokens(a, b) else None  # NaN without common draws
        far = self.far[[self.position(a), self.position(b)]].any()
        return ReportedKL.nearest(whole, spans, sampled, far=bool(far))

    def reported_kl_matrix(self) -> ReportedKL:
        """The same of all pairs, as (K, K) arrays; computed once. Spans are those whose cuts all models keep that have
        spans, and sampled tokens are of the texts for which all models of a tokenizer have them; `reported_kl` has
        those of the two. Where sampled tokens would take more than 1 GB, spans stand for them."""
        return self._reported

    @cached_property
    def _reported(self) -> ReportedKL:
        whole = self.kl()
        found = {name: getattr(whole, name).copy() for name in ("value", "standard_error", "n_texts", "n_documents")}
        estimator = np.full(whole.value.shape, WHOLE_TEXTS, dtype=object)
        rows = np.flatnonzero([row is not None for row in self._span_rows])
        if len(rows) > 1:
            spans = self.subset([self.models[row] for row in rows]).span_kl_matrix()
            known = ~np.isnan(spans.value) & ~np.eye(len(rows), dtype=bool)
            at = tuple(rows[side] for side in np.nonzero(known))
            estimator[at] = SPANS
            for name, values in found.items():
                values[at] = getattr(spans, name)[known]
        by_spans, poor = np.where(estimator == SPANS, found["value"], np.nan), np.zeros(estimator.shape, dtype=bool)
        for rows, sampled in self.sampled_kl_matrices():
            known = np.isfinite(sampled.symmetric) & ~np.eye(len(rows), dtype=bool)
            at = tuple(rows[side] for side in np.nonzero(known))
            estimator[at], poor[at] = SAMPLED_TOKENS, sampled.poor[known]
            found["value"][at], found["standard_error"][at] = sampled.symmetric[known], sampled.symmetric_error[known]
            found["n_texts"][at], found["n_documents"][at] = sampled.n_texts, sampled.n_documents
        far = self.far[:, None] | self.far
        return ReportedKL(
            estimator=estimator, interval=None, whole_texts=whole, by_spans=by_spans, poor=poor, far=far, **found
        )

    @cached_property
    def far(self) -> NDArray[np.bool_]:
        """Which models (K,) are above `FAR_MODEL` bits per byte on the texts that they have scored."""
        scored = ~np.isnan(self.log_likelihood)
        nats = -np.where(scored, self.log_likelihood, 0.0).sum(axis=1)
        return np.asarray(nats > FAR_MODEL * LOG_2 * (scored * self.texts.bytes).sum(axis=1))

    def sampled_kl_matrices(self) -> Iterator[tuple[Integers, SampledKLMatrix]]:
        """The rows (k,) of the models of each tokenizer that two or more have, and KL between them by sampled tokens;
        without those whose sampled tokens would take more than 1 GB."""
        groups: dict[str, list[int]] = {}
        for place, row in enumerate(self._sampled_rows):
            if row is not None:
                groups.setdefault(row.tokens, []).append(place)
        for rows in groups.values():
            first = self._sampled_rows[rows[0]]
            draws = first.read_draws() if first is not None and len(rows) > 1 else None
            if draws is None or len(rows) * sum(one.ids.size for one in draws.of.values()) > MOST_SAMPLED:
                continue
            yield np.array(rows), self.subset([self.models[row] for row in rows]).sampled_kl_matrix()

    @property
    def _text_spans(self) -> Spans:
        assert self.texts.cuts is not None
        return self.texts.cuts.spans

    def _require_spans(self) -> list[SpanRow]:
        rows = [row for row in self._span_rows if row is not None]
        if len(rows) < len(self):
            without = self.names[self._span_rows.index(None)]
            why = "It was imported, scored by an earlier version, or has a tokenizer without offsets."
            raise InputError(f"{without} has no log-likelihoods of spans.", why, "Score it anew with --rescore.")
        return rows

    def _unpacked_spans(self) -> tuple[list[Floats], Integers]:
        """Log-likelihoods (S,) in nats of the spans of each model, and the bytes (K, N) before the first scored token
        of each text."""
        self.require_one_convention()
        kept, starts = [row.kept for row in self._require_spans()], self._text_spans.starts
        rows = [
            self._scored_alone(unpack(row.values, self.log_likelihood[place], starts), place)
            for place, row in enumerate(kept)
        ]
        return rows, np.stack([row.given for row in kept])

    def _scored_alone(self, values: NDArray[Any], place: int) -> NDArray[Any]:
        """Values (S,) of a row's spans, NaN in the texts that this row has no log-likelihood of."""
        scored = ~np.isnan(self.log_likelihood[place])
        return np.where(np.repeat(scored, np.diff(self._text_spans.starts)), values, np.nan).astype(values.dtype)

    @property
    def _sampled_rows(self) -> tuple[SampledRow | None, ...]:
        return (None,) * len(self) if self.sampled is None else self.sampled

    def has_sampled_tokens(self, *models: str | ModelRef) -> bool:
        """Whether these models keep log-probabilities of sampled tokens, and read the texts as the same tokens."""
        rows = [self._sampled_rows[self.position(model)] for model in models]
        return None not in rows and len({row.tokens for row in rows if row is not None}) == 1

    def sampled_kl(self, a: str | ModelRef, b: str | ModelRef) -> SampledKL:
        """KL between the next-token distributions of two models of one tokenizer in bits per byte, with standard
        errors: both directions, total variation, and how often their most probable tokens agree. Exact in expectation.
        NaN for fewer than two texts for which both have the same draws.

        Raises InputError for models without sampled tokens, or with different tokens, and for vectors that were made by
        different conventions.
        """
        found = self.subset([a, b])._sampled_together(lambda row: row.kept)
        (p, q), (p_top, q_top) = found.log_probability, found.top
        return sampled_kl(p, q, found.draws, top=(p_top, q_top), documents=self.texts.document)

    def kl_by_depth(self, a: str | ModelRef, b: str | ModelRef) -> tuple[DepthKL, ...]:
        """KL(a, b) of next tokens in nats per token, by how many scored tokens of its text come before a position.
        Exact in expectation. Raises as `sampled_kl` does."""
        found = self.subset([a, b])._sampled_together(lambda row: row.kept)
        p, q = found.log_probability
        return kl_by_depth(p, q, found.draws, documents=self.texts.document)

    def sampled_kl_matrix(self) -> SampledKLMatrix:
        """The same KL between all pairs of models, from the texts for which all have the same draws. Raises as
        `sampled_kl` does."""
        found = self._sampled_together(lambda row: row.read())  # not kept: all of them are large
        values = np.stack(found.log_probability)
        return sampled_kl_matrix(values, found.draws, documents=self.texts.document, labels=self.names)

    def drawn_kl(self, author: str | ModelRef, other: str | ModelRef) -> DrawnKL:
        """KL(author, other) in bits per byte with its standard error, on texts that were drawn from `author`. Exact in
        expectation, also between tokenizers. Only what was drawn counts, not the prompts.

        Texts are left out in which one of the tokenizers joins the end of the prompt with what follows. Raises
        InputError for texts that were not drawn, for models without spans, and where fewer than two texts are left.
        """
        if self.texts.prompt_bytes is None:
            what = f"The texts of {self.texts.name} were not drawn from a model."
            raise InputError(what, remedy=f"klscale texts draw {author} --texts-of {self.texts.name}")
        pair = self.subset([author, other])
        size = self.texts.bytes - self.texts.prompt_bytes
        a, b = pair._drawn_parts(self.texts.prompt_bytes)
        left = ~np.isnan(a - b)
        if left.sum() < 2:
            what = f"{author} and {other} have {left.sum()} texts in common whose prompts both can tell from the rest."
            raise InputError(what, remedy="Draw with prompts that end where a word does.")
        by_ratios = log_ratio_kl(a, b, size, documents=self.texts.document)
        if (sampled := pair._drawn_sampled(size)) is not None:
            return DrawnKL(sampled, SAMPLED_TOKENS, by_ratios)
        return DrawnKL(by_ratios, LOG_RATIOS, by_ratios)

    def _drawn_parts(self, prompt_bytes: Integers) -> Floats:
        """Log-likelihoods (K, N) in nats of what follows the prompt of each text, given it; NaN where that is not
        known. A prompt is the first span of its text. It has no scored token where a model's first token is all of
        it."""
        rows, given = self._unpacked_spans()
        first = self._text_spans.starts[:-1]
        behind = np.minimum(first + 1, len(self._text_spans.bytes) - 1)
        found = []
        for row, own, bytes_given in zip(rows, self.log_likelihood, given, strict=True):
            told = np.where((prompt_bytes > 0) & ~np.isnan(row[behind]), own - row[first], np.nan)
            found.append(np.where(bytes_given == prompt_bytes, own, told))
        return np.stack(found)

    def _drawn_sampled(self, drawn_bytes: Integers) -> Estimate | None:
        """KL of next tokens from the first model to the second at the positions that were drawn; None where that is not
        known, or the sampled tokens are too few."""
        prompt = self.texts.labels.get("prompt_tokens")
        if prompt is None or not self.has_sampled_tokens(*self.models):
            return None
        found = self._sampled_together(lambda row: row.kept)
        text = found.draws.text
        # The first position is that of the second token.
        drawn = found.draws.depth >= np.asarray(prompt, dtype=np.int64)[text] - 1
        draws = Draws(found.draws.log_proposal[drawn], text[drawn], drawn_bytes)
        a, b = (values[drawn] for values in found.log_probability)
        kl = sampled_kl(a, b, draws, documents=self.texts.document)
        return kl.forward if math.isfinite(kl.forward.value) and not kl.poor else None

    def _sampled_together(self, read: Callable[[SampledRow], SampledValues]) -> _SampledTogether:
        """What these models say of the tokens that are drawn for all of them; `read` makes the values of a row."""
        self.require_one_convention()
        rows = [row for row in self._sampled_rows if row is not None]
        if len(rows) < len(self):
            without = self.names[self._sampled_rows.index(None)]
            why = "It was imported, scored by an earlier version, or scored with --sampled-tokens 0."
            raise InputError(f"{without} has no sampled tokens.", why, "Score it anew with --rescore.")
        if other := [name for name, row in zip(self.names, rows, strict=True) if row.tokens != rows[0].tokens]:
            why = "Sampled tokens compare distributions over the same next tokens."
            remedy = "Their KL by spans needs no common tokenizer."
            raise InputError(f"{self.names[0]} and {other[0]} read the texts as different tokens.", why, remedy)
        kept, draws = [read(row) for row in rows], rows[0].read_draws()
        draws = TokenDraws(rows[0].tokens) if draws is None else draws
        marks = {text: draws.mark(text) for text in draws.of}
        scored = set(np.flatnonzero(common_texts(self.log_likelihood)).tolist())
        common = {text for text in marks if text in scored and len(draws.of[text].ids)}
        for values in kept:
            own = zip(values.text.tolist(), values.marks.tolist(), values.top.lengths.tolist(), strict=True)
            common &= {text for text, mark, P in own if marks.get(text) == mark and P == len(draws.of[text].ids)}
        texts = np.array(sorted(common), dtype=np.int64)
        drawn = [draws.of[text] for text in texts.tolist()]
        none = np.empty((0, draws.m), dtype=np.float32)
        log_proposal = np.concatenate([none, *(one.log_proposal for one in drawn)]).astype(np.float64)
        position = np.repeat(texts, [len(one.ids) for one in drawn])
        chosen = [(values, np.isin(values.text, texts)) for values in kept]
        return _SampledTogether(
            Draws(log_proposal, position, self.texts.bytes),
            [values.log_probability[rows].values.reshape(-1, draws.m) for values, rows in chosen],
            [values.top[rows].values for values, rows in chosen],
        )

    @cached_property
    def noise_floor(self) -> Floats:
        """KL (K,) in bits per byte between two runs of each model, which differ by rounding; NaN where unknown."""
        return np.asarray(self.attributes["noise_floor"], dtype=np.float64)

    def noise(self, i: Any = None, j: Any = None) -> Any:
        """Expected KL (K, K) in bits per byte that run-to-run noise adds to each pair, or to those of the models at the
        places `i` and `j`; NaN where not known.

        A run of model i gives l_i + e_i, where rounding errors e_i have variance s_i**2 over texts. Two runs of one
        model differ by e_i - e_i', with variance 2 s_i**2: its `noise_floor`. Runs of two models differ by
        l_i - l_j + e_i - e_j. If the errors are independent of each other and of the models, they add s_i**2 + s_j**2
        to the variance: half the sum of both floors. Errors that two models share add less; two quantizations of one
        model may share some. Errors that every run repeats are no noise but part of the KL: a coarser dtype rounds the
        weights in the same way each time.
        """
        floor = self.noise_floor
        return (floor[:, None] + floor) / 2 if i is None else (floor[i] + floor[j]) / 2

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

    def paired_difference(self) -> tuple[Callable[[tuple[str, str], tuple[str, str]], Estimate], str]:
        """`span_kl_difference` where all models have spans and the texts are not too short for them, else
        `kl_difference`; and the estimator that it is by."""
        if all(row is not None for row in self._span_rows) and (np.diff(self._text_spans.starts) > 1).sum() > 1:
            return self.span_kl_difference, SPANS
        return self.kl_difference, WHOLE_TEXTS

    def shift_cosine(self, base: str, first: str, second: str) -> Estimate:
        """Cosine between the shifts of two models from `base`, a pure number: 1 if they differ from it alike."""
        self.require_one_convention()
        x, y, z = (self.log_likelihood[self.position(model)] for model in (base, first, second))
        return shift_cosine(x, y, z, clip=self.texts.clip, documents=self.texts.document)

    def bits_per_byte(self, model: str | ModelRef, other: str | ModelRef | None = None) -> Estimate:
        """Bits per byte of a model, or with `other` the difference model - other with a paired standard error."""
        row = self.log_likelihood[self.position(model)]
        if other is not None:
            self.require_one_convention()
            row = row - self.log_likelihood[self.position(other)]
        return bits_per_byte(row, self.texts.bytes, documents=self.texts.document)

    def size(self, model: str | ModelRef) -> Size | None:
        """Bytes and bits per weight of a model; None where they were not recorded."""
        return Size.of({str(key): value for key, value in self.attributes.iloc[self.position(model)].items()})

    def coordinates(self) -> Floats:
        """Points (K, n) in log-likelihood space whose squared distances are KL in bits per byte.

        They use the n texts that all models have, and the text set's clip for all models.
        """
        rows, texts = self.complete()
        return coordinates(rows, float(self.texts.bytes[texts].mean()))

    def resampled_kl(self, resamples: int = RESAMPLES) -> Floats:
        """KL between all pairs (resamples, K, K) in bits per byte, in each bootstrap sample of the texts.

        It uses the texts that all models have, and the text set's clip for all models. Where texts share documents,
        whole documents are drawn.
        """
        rows, texts = self.complete()
        documents = self.texts.documents_of(texts)
        return resampled_kl(rows, self.texts.bytes[texts], documents=documents, resamples=resamples)

    def complete(self) -> tuple[Floats, NDArray[np.bool_]]:
        """Log-likelihoods (K, n) in nats on the n texts that all models have, with the text set's clip for all models;
        and which texts (N,) these are. Raises InputError for vectors of different conventions."""
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


@dataclass(frozen=True, eq=False)
class _SampledTogether:
    """What K models say of the same draws at P positions: log-probabilities (P, m) in nats, and the most probable ids
    (P,), of each."""

    draws: Draws
    log_probability: list[NDArray[np.float32]]
    top: list[NDArray[np.int32]]


def attribute_table(models: Sequence[ModelRef], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The `attributes` of `Vectors`: a row for each model with the `COLUMNS` and the free attributes of its `rows`
    entry, None where not known; other keys are left out."""
    import pandas as pd  # half a second

    free = {key: None for row in rows for key, value in row.items() if is_free(key, value) and value is not None}
    columns = (*COLUMNS, *free)
    return pd.DataFrame(
        [[row.get(column) for column in columns] for row in rows],
        index=pd.Index(list(map(str, models)), dtype=object),
        columns=pd.Index(columns),
        dtype=object,
    )


def require_log_likelihoods(place: str, unit: str, values: Floats) -> None:
    """Raise InputError for the first of `values` (n,) that is no log-likelihood of a text in nats; NaN passes. The
    error names `place`, and counts the `unit` (`text`, `row`) from 1."""
    for wrong, problem, why in (
        (np.isinf(values), "is infinite", "A text of probability zero has no finite distance."),
        (values > 0, "is positive", "Log-likelihoods are in nats and at most 0."),
        (values < LOWEST, f"is below {LOWEST:g}", "No text has so small a likelihood: squares of it would overflow."),
    ):
        if wrong.any():
            what = f"{place}, {unit} {wrong.argmax() + 1}: {values[wrong][0]:g} {problem}."
            raise InputError(what, why, f"Mend that {unit}, or drop the model.")


def external_id(text_bytes: Integers, log_likelihood: Floats, names: Sequence[str]) -> str:
    """Id of a text set without texts, from its byte counts (N,) and log-likelihoods (K, N) in nats."""
    return content_id(
        [text_bytes.astype("<i8").tobytes(), log_likelihood.astype("<f8").tobytes(), *map(str.encode, names)]
    )


def _external_texts(text_bytes: ArrayLike, log_likelihood: Floats, names: Sequence[str]) -> TextSet:
    lengths = np.asarray(text_bytes, dtype=np.float64).ravel()
    good = (lengths > 0) & (lengths < 2**53) & (lengths == np.floor(lengths))
    if not good.all():
        what = f"bytes, text {good.argmin() + 1}: {lengths[good.argmin()]:g} is not a positive whole number."
        raise InputError(what, "It is the length of the text in UTF-8 bytes.", "Count bytes: len(text.encode()).")
    whole = lengths.astype(np.int64)
    return TextSet(name="given", bytes=whole, id=external_id(whole, log_likelihood, names))


def _reference(name: str) -> ModelRef:
    """A name as the reference it writes (`gpt2+nf4`), else as the literal name of a model."""
    if not name.strip():
        raise InputError("a model has no name.", "Its column or key is blank.", "Name it.")
    if number := re.search(rf"\d{{{MOST_DIGITS + 1},}}", name):
        what = f"model {name[:60]!r}: a number of {len(number[0])} digits."
        raise InputError(what, f"Steps, seeds and sizes have at most {MOST_DIGITS}.", "Rename the model.")
    try:
        ref = ModelRef.parse(name)
    except InputError:
        return ModelRef(name)
    return ref if str(ref) == name else ModelRef(name)
