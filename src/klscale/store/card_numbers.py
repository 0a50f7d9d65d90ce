"""The numbers behind a card, in one Parquet file: what was measured at every text and position, so that each value of
the card can be computed again. One row a model and text, the base first.

| column | what it holds |
|---|---|
| `model`, `text` | the reference, and the position of the text in its set |
| the columns of a vector in a store | `log_likelihood`, spans, sampled tokens: docs/how-it-works.md |
| `bytes`, `document`, `cuts` | of the text: length, document label, byte offsets between spans; the text is not there |
| `kl`, `same_top` | at each position, KL(base, model) of the next token in nats, and whether the top tokens agree |
| `token`, `log_proposal` | the token ids that were drawn, in the rows of the first model with that tokenizer |

The metadata holds what is known of the text set and of each model, as a store does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from klscale.errors import UnreadableError
from klscale.inputs.references import ModelRef
from klscale.inputs.spans import Cuts
from klscale.inputs.texts import TextSet
from klscale.science.arrays import Integers
from klscale.store import drawn_records, records, text_records, vector_records
from klscale.store.records import FEW, LIST, MAPPING, TEXT, required
from klscale.store.text_records import HEAD
from klscale.vectors.draws import TokenDraws
from klscale.vectors.scores import LAYERS, PARTS, Ragged, Scores
from klscale.vectors.vectors import SampledRow, SpanRow, Vectors, attribute_table

SPARSE = 1000
"""A text set may have so many times the texts that were scored."""


@dataclass(frozen=True, eq=False)
class NextTokenKL:
    """KL(base, model) of the next token at each position of n texts in nats, and whether both have the same most
    probable token: `text` (n,) are positions in the set, in order."""

    text: Integers
    kl: Ragged
    same_top: Ragged


@dataclass(frozen=True, eq=False)
class Numbers:
    """What some models were measured to be on `texts`, the base first: the values and the metadata of each vector, what
    was drawn for each tokenizer, and next-token KL from the base where it is known."""

    texts: TextSet
    scores: tuple[Scores, ...]
    metadata: tuple[Mapping[str, Any], ...]
    draws: Mapping[str, TokenDraws] = field(default_factory=dict)
    next_tokens: tuple[NextTokenKL | None, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The references, as they were given."""
        return tuple(str(about["ref"]) for about in self.metadata)

    @cached_property
    def vectors(self) -> Vectors:
        """The same as vectors, with spans and sampled tokens."""
        matrix = np.full((len(self.scores), len(self.texts)), np.nan)
        for row, scores in zip(matrix, self.scores, strict=True):
            row[scores.text] = scores.log_likelihood
        models = tuple(map(ModelRef.parse, self.names))
        known = [vector_records.attributes_of(about, about.get("noise_floor")) for about in self.metadata]
        places = range(len(models))
        spans, sampled = tuple(map(self._spans, places)), tuple(map(self._sampled, places))
        return Vectors(matrix, models, attribute_table(models, known), self.texts, spans, sampled)

    def _spans(self, place: int) -> SpanRow | None:
        found = vector_records.spans_of(self.scores[place], self.metadata[place], self.texts)
        return None if found is None else SpanRow(lambda: found)

    def _sampled(self, place: int) -> SampledRow | None:
        found, about = vector_records.sampled_of(self.scores[place]), self.metadata[place].get("sampled")
        if found is None or about is None:
            return None
        return SampledRow(about["tokens"], lambda: found, partial(self.draws.get, about["tokens"]))


def numbers_to_parquet(numbers: Numbers) -> bytes:
    """The numbers as a file."""
    blocks, models, drawn, cuts = [], list[dict[str, Any]](), set[str](), numbers.texts.cuts
    for name, scores, about, exact in zip(
        numbers.names, numbers.scores, numbers.metadata, numbers.next_tokens, strict=True
    ):
        scores = scores.without(LAYERS.name)
        models.append({**about, "checksum": scores.checksum})
        tokens = _tokens(about)
        draws = None if tokens in drawn else numbers.draws.get(tokens)
        drawn |= {tokens}
        blocks.append(_block(name, scores, numbers.texts, cuts, exact, draws))
    known = {
        "texts": {**text_records.head_of(numbers.texts), "cuts": None if cuts is None else cuts.rule},
        "models": models,
        "draws": {tokens: found.m for tokens, found in numbers.draws.items()},
    }
    return records.to_parquet("numbers", pa.concat_tables(blocks, promote_options="default"), known)


def _tokens(about: Mapping[str, Any]) -> str:
    """What stands for the tokens of a model, from the metadata of its vector; empty where it has no sampled tokens."""
    return str((about.get("sampled") or {}).get("tokens", ""))


def _block(
    name: str, scores: Scores, texts: TextSet, cuts: Cuts | None, exact: NextTokenKL | None, draws: TokenDraws | None
) -> Any:
    """The rows of one model."""
    table = vector_records.scores_to_table(scores).add_column(0, "model", pa.array([name] * len(scores)))
    table = table.append_column("bytes", pa.array(texts.bytes[scores.text]))
    if texts.document is not None:
        table = table.append_column("document", pa.array([str(texts.document[text]) for text in scores.text]))
    if cuts is not None:
        table = table.append_column("cuts", records.lists([cuts.of(text) for text in scores.text], pa.int64()))
    if exact is not None:
        at = np.searchsorted(scores.text, exact.text)
        for column, values, kind in (("kl", exact.kl, pa.float32()), ("same_top", exact.same_top, pa.bool_())):
            lengths = np.zeros(len(scores), dtype=np.int64)
            lengths[at] = values.lengths
            table = table.append_column(column, vector_records.ragged_to_arrow(Ragged(values.values, lengths), kind))
    if draws is not None:
        of = [draws.of.get(int(text)) for text in scores.text]
        for column, kind in (("ids", pa.int32()), ("log_proposal", pa.float32())):
            rows = [np.empty(0) if one is None else getattr(one, column) for one in of]
            table = table.append_column({"ids": "token"}.get(column, column), records.lists(rows, kind))
    return table


# ------------------------------------------------------------------------------------------------------------- reading


def numbers_from_parquet(data: bytes) -> Numbers:
    """What `numbers_to_parquet` was given; raises one of UNREADABLE."""
    table, about = records.from_parquet("numbers", data)
    wanted = {"texts": required(MAPPING), "models": required(LIST), "draws": MAPPING}
    records.require_fields(about, wanted)
    records.require_fields(about["texts"], {**HEAD, "cuts": TEXT})
    for model in about["models"]:
        if not isinstance(model, dict):
            raise UnreadableError("has a model that is no object")
        vector_records.require_entry(model)
        records.require_fields(model, {"noise_floor": records.NUMBER})
    n_texts, texts = about["texts"]["n_texts"], table.column("text").to_numpy()
    if not len(texts) or n_texts > SPARSE * len(texts):
        raise UnreadableError(f"is said to be of {n_texts:,} texts, and has {len(texts):,} rows")
    blocks = _blocks(table, [model["ref"] for model in about["models"]])
    scores = [
        vector_records.scores_from_table(_with_values(block), model["checksum"], n_texts)
        for block, model in zip(blocks, about["models"], strict=True)
    ]
    if texts.min() < 0 or texts.max() >= n_texts or any((np.diff(one.text) <= 0).any() for one in scores):
        raise UnreadableError("has texts that its text set does not have, or out of order")
    return Numbers(
        _texts(table, about["texts"]),
        tuple(scores),
        tuple(about["models"]),
        _draws(blocks, about),
        tuple(map(_next_tokens, blocks)),
    )


def _blocks(table: Any, names: list[str]) -> list[Any]:
    """The rows of each model."""
    found = table.column("model").combine_chunks()
    if found.type != pa.string() or found.null_count:
        raise UnreadableError("has a row without a model")
    models = found.to_numpy(zero_copy_only=False)
    edges = [0, *(np.flatnonzero(models[1:] != models[:-1]) + 1).tolist(), len(models)]
    if [models[edge] for edge in edges[:-1]] != names or len({*names}) < len(names):
        raise UnreadableError("does not have the rows of each of its models, one after another")
    return [table.slice(start, stop - start) for start, stop in pairwise(edges)]


def _with_values(block: Any) -> Any:
    """The columns of a vector that this model has: those of others are empty in its rows."""
    empty = [part.column for part in PARTS.values() if part.column in block.column_names
             and block.column(part.column).null_count == len(block)]  # fmt: skip
    return block.drop_columns(empty)


def _list_column(table: Any, name: str, kind: Any) -> Ragged | None:
    """A column of lists, empty where a row has none; None where no row has one."""
    if name not in table.column_names or table.column(name).null_count == len(table):
        return None
    column = table.column(name).combine_chunks()
    if not pa.types.is_large_list(column.type) or column.type.value_type != kind or column.flatten().null_count:
        raise UnreadableError(f"has a column {name!r} that is not lists of {kind}")
    lengths = np.nan_to_num(column.value_lengths().to_numpy(zero_copy_only=False).astype(np.float64))
    return Ragged(column.flatten().to_numpy(zero_copy_only=False), lengths.astype(np.int64))


def _texts(table: Any, head: Mapping[str, Any]) -> TextSet:
    """What is known of the texts; one that no model has read has one byte."""
    text, first = np.unique(table.column("text").to_numpy(), return_index=True)
    given = table.column("bytes").to_numpy()
    if given.dtype != np.int64 or (given <= 0).any() or (given >= 2**53).any():
        raise UnreadableError("has a length of a text that is none")
    size = np.ones(head["n_texts"], dtype=np.int64)
    size[text] = given[first]
    document = None
    if "document" in table.column_names:
        labels = table.column("document")
        if labels.type != pa.string() or labels.null_count:
            raise UnreadableError("has a text without a document")
        named = np.array([f"text {n}" for n in range(len(size))], dtype=object)
        named[text] = labels.to_numpy()[first]
        document = tuple(named)
    cuts = None
    if head["cuts"] is not None and (places := _list_column(table, "cuts", pa.int64())) is not None:
        chosen, counts = places[first], np.zeros(len(size), dtype=np.int64)
        counts[text] = chosen.lengths
        owner = np.repeat(text, chosen.lengths)
        steps = np.diff(chosen.values)[owner[1:] == owner[:-1]]
        if (steps <= 0).any() or (chosen.values <= 0).any() or (chosen.values >= size[owner]).any():
            raise UnreadableError("has cuts that are no places in their texts")
        cuts = Cuts(chosen.values, np.concatenate([[0], np.cumsum(counts)]), size, head["cuts"])
    return TextSet(
        name=head["name"], id=head["id"], clip=head["clip"], bytes=size, document=document, known_cuts=cuts,
        drawn=head["drawn"],
    )  # fmt: skip


def _draws(blocks: list[Any], about: Mapping[str, Any]) -> dict[str, TokenDraws]:
    """What was drawn for each tokenizer, in the rows of the first model that has it."""
    found = dict[str, TokenDraws]()
    for block, model in zip(blocks, about["models"], strict=True):
        tokens = _tokens(model)
        m = (about.get("draws") or {}).get(tokens)
        ids, chances = _list_column(block, "token", pa.int32()), _list_column(block, "log_proposal", pa.float32())
        if tokens in found or m is None or ids is None or chances is None:
            continue
        records.require_fields({"m": m}, {"m": required(FEW)})
        rows = np.flatnonzero(ids.lengths)
        text = block.column("text").to_numpy()[rows]
        lists = (
            vector_records.ragged_to_arrow(ids[rows], pa.int32()),
            vector_records.ragged_to_arrow(chances[rows], pa.float32()),
        )
        table = pa.table([pa.array(text, pa.int32()), *lists], schema=drawn_records.DRAWN)
        found[tokens] = drawn_records.draws_from_table(table, tokens, m, about["texts"]["n_texts"])
    return found


def _next_tokens(block: Any) -> NextTokenKL | None:
    kl, same = _list_column(block, "kl", pa.float32()), _list_column(block, "same_top", pa.bool_())
    if kl is None or same is None or not kl.lengths.any():
        return None
    if (kl.lengths != same.lengths).any() or not (np.isfinite(kl.values) & (kl.values >= 0)).all():
        raise UnreadableError("has KL of next tokens that is negative, not finite, or of no position")
    rows = np.flatnonzero(kl.lengths)
    text: NDArray[np.int64] = block.column("text").to_numpy()[rows].astype(np.int64)
    return NextTokenKL(text, kl[rows], same[rows])
