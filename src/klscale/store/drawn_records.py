"""What is drawn, as a store keeps it: token ids at positions of texts, and texts that a model is still writing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from klscale.errors import UnreadableError
from klscale.store.records import (
    FEW,
    KEY,
    ROUNDING,
    from_parquet,
    lists,
    require_fields,
    require_own,
    require_table,
    required,
    to_parquet,
)
from klscale.vectors.draws import TextDraws, TokenDraws

DRAWN = pa.schema(
    [("text", pa.int32()), ("token", pa.large_list(pa.int32())), ("log_proposal", pa.large_list(pa.float32()))]
)
DRAWING = pa.schema([("text", pa.int32()), ("token", pa.large_list(pa.int32())), ("ended", pa.bool_())])


# --------------------------------------------------------------------------------------------------------------- draws


def draws_to_parquet(draws: TokenDraws, text_set: str) -> bytes:
    """The token ids that are drawn for some texts of a set under one tokenizer: one row a text."""
    return to_parquet("draws", draws_to_table(draws), {"text_set": text_set, "tokens": draws.tokens, "m": draws.m})


def draws_to_table(draws: TokenDraws) -> Any:
    """What was drawn as an Arrow table, one row a text."""
    texts = sorted(draws.of)
    columns = [lists([draws.of[text].ids for text in texts], pa.int32()),
               lists([draws.of[text].log_proposal for text in texts], pa.float32())]  # fmt: skip
    return pa.table([pa.array(texts, pa.int32()), *columns], schema=DRAWN)


def draws_from_parquet(data: bytes, text_set: str, tokens: str, n_texts: int | None) -> TokenDraws:
    """What `draws_to_parquet` was given, from a file of this name; raises one of UNREADABLE."""
    table, metadata = from_parquet("draws", data, most_rows=n_texts)
    require_fields(metadata, {"text_set": required(KEY), "tokens": required(KEY), "m": required(FEW)})
    require_own(metadata, text_set=text_set, tokens=tokens)
    return draws_from_table(table, tokens, metadata["m"], n_texts)


def draws_from_table(table: Any, tokens: str, m: int, n_texts: int | None) -> TokenDraws:
    """What `draws_to_table` was given, `m` ids a position; raises UnreadableError where it is none."""
    require_table(table, DRAWN)
    text, ids, log_proposal = (column.combine_chunks() for column in table.columns)
    texts, lengths = text.to_numpy(), np.diff(ids.offsets.to_numpy())
    if len(np.unique(texts)) < len(texts) or (texts < 0).any() or (texts >= (n_texts or math.inf)).any():
        raise UnreadableError("has texts twice, or that its text set does not have")
    if (lengths != np.diff(log_proposal.offsets.to_numpy())).any() or (lengths % m).any():
        raise UnreadableError("has draws that belong to no position")
    values, chances = ids.flatten(), log_proposal.flatten()
    if values.null_count or chances.null_count:
        raise UnreadableError("has draws without an id or a probability")
    values, chances = values.to_numpy(), chances.to_numpy()
    if (values < 0).any() or not (np.isfinite(chances) & (chances <= ROUNDING)).all():
        raise UnreadableError("has draws with a negative id, or without a probability")
    places, shape = np.cumsum(lengths)[:-1], (-1, m)
    rows = zip(texts.tolist(), np.split(values, places), np.split(chances, places), strict=True) if len(texts) else ()
    drawn = {text: TextDraws(token.reshape(shape), chance.reshape(shape)) for text, token, chance in rows}
    return TokenDraws(tokens, m, drawn)


# ------------------------------------------------------------------------------------------------------------- drawing

Drawing = dict[int, tuple[NDArray[np.int32], bool]]
"""Of a text set that a model is writing: number of a text -> its token ids (n,) so far, and whether it has ended."""


def drawing_to_parquet(drawing: Drawing, key: str) -> bytes:
    """The texts of a drawing that is not finished: one row a text."""
    columns = [
        pa.array([*drawing], pa.int32()),
        lists([ids for ids, _ in drawing.values()], pa.int32()),
        pa.array([ended for _, ended in drawing.values()], pa.bool_()),
    ]
    return to_parquet("drawing", pa.table(columns, schema=DRAWING), {"key": key})


def drawing_from_parquet(data: bytes, key: str) -> Drawing:
    """What `drawing_to_parquet` was given; raises one of UNREADABLE."""
    table, metadata = from_parquet("drawing", data)
    require_fields(metadata, {"key": required(KEY)})
    require_own(metadata, key=key)
    require_table(table, DRAWING)
    text, token, ended = (column.combine_chunks() for column in table.columns)
    texts, values = text.to_numpy(), token.flatten()
    if len(np.unique(texts)) < len(texts) or (texts < 0).any():
        raise UnreadableError("has texts twice, or below 0")
    if values.null_count or (values.to_numpy() < 0).any():
        raise UnreadableError("has tokens that are no ids")
    rows = np.split(values.to_numpy(), np.cumsum(np.diff(token.offsets.to_numpy()))[:-1]) if len(texts) else []
    return dict(zip(texts.tolist(), zip(rows, ended.to_pylist(), strict=True), strict=True))
