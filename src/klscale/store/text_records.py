"""Text sets as a store keeps them: the head of a set, and its texts, a line each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from klscale.errors import UnreadableError
from klscale.inputs.conversations import conversation_of
from klscale.inputs.texts import TextSet, is_prompt, text_set_id
from klscale.store.records import (
    KEY,
    MAPPING,
    NUMBER,
    TEXT,
    Field,
    from_json,
    is_count,
    is_finite,
    require_fields,
    require_own,
    required,
    to_json,
)

# ----------------------------------------------------------------------------------------------------------- text sets

HEAD = {
    "id": required(KEY),
    "name": required(TEXT),
    "n_texts": required(Field("a whole number of at least 1", lambda value: is_count(value) and value > 0)),
    "mean_bytes": required(NUMBER),
    "clip": Field("a finite number below 0", lambda value: is_finite(value) and value < 0),
    "external": required(Field("true or false", lambda value: isinstance(value, bool))),
    "drawn": MAPPING,
}
"""What a store says of a text set beside its texts."""


def head_of(texts: TextSet) -> dict[str, Any]:
    """The fields of HEAD."""
    return {
        "id": texts.id,
        "name": texts.name,
        "n_texts": len(texts),
        "mean_bytes": texts.mean_bytes,
        "clip": texts.clip,
        "external": texts.external,
        "drawn": None if texts.drawn is None else dict(texts.drawn),
    }


def head_to_json(head: Mapping[str, Any]) -> bytes:
    """The head of a text set: the fields of HEAD, and `lines`: the SHA-256 of the file with its lines; two while that
    is being replaced."""
    return to_json("texts", head)


def head_from_json(data: bytes, text_set: str) -> dict[str, Any]:
    """The fields of HEAD, and `lines`: the SHA-256 that its lines may have (empty: not known)."""
    found = from_json("texts", data)
    require_fields(found, HEAD)
    require_own(found, id=text_set)
    lines = found.get("lines", [])
    if not isinstance(lines, list):
        raise UnreadableError("has 'lines' that are no list")
    return {**{name: found.get(name) for name in HEAD}, "lines": lines}


def lines_of(texts: TextSet) -> bytes:
    """The lines of a text set: one JSON object a text."""
    return "".join(json.dumps(record) + "\n" for record in texts.records()).encode()


def digest(data: bytes) -> str:
    """The SHA-256 of a file's content, as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def texts_from_lines(data: bytes, head: Mapping[str, Any]) -> TextSet:
    """A text set from its head and lines; raises one of UNREADABLE."""
    if head["lines"] and digest(data) not in head["lines"]:
        raise UnreadableError("does not hold the lines that it was written with")
    records = [_as_response(json.loads(line)) for line in data.split(b"\n") if line]
    if len(records) != head["n_texts"]:
        raise UnreadableError(f"has {len(records):,} lines where {head['n_texts']:,} texts belong")
    names = _require_lines(records, external=head["external"])
    columns = {name: tuple(record[name] for record in records) for name in names}
    sizes, texts = columns.pop("bytes"), columns.pop("text", None)
    given = columns.pop("prompt_bytes", None) if texts is not None else None
    if given is not None and not all(map(is_prompt, given, texts or ())):
        raise UnreadableError("has 'prompt_bytes' that are no places in the texts")
    prompt_bytes = None if given is None else np.array(given, dtype=np.int64)
    prompts = columns.pop("messages") if isinstance(records[0].get("messages"), tuple) else None
    if texts is not None and text_set_id(texts, prompt_bytes, prompts) != head["id"]:
        raise UnreadableError("does not hold the texts that its id stands for")
    if texts is not None and (wrong := [s for s, text in enumerate(texts) if len(text.encode()) != sizes[s]]):
        raise UnreadableError(f"gives text {wrong[0] + 1} a length that is not its own")
    return TextSet(
        name=head["name"],
        id=head["id"],
        clip=head["clip"],
        bytes=np.array(sizes, dtype=np.int64),
        texts=texts,
        domain=columns.pop("domain", None),
        document=columns.pop("document", None),
        labels=columns,
        prompt_bytes=prompt_bytes,
        drawn=head["drawn"],
        prompts=prompts,
    )


def _as_response(record: Any) -> Any:
    """A line of messages with the response under `text`, and those before it under `messages`; another line as it is.
    Raises ValueError for messages that are none."""
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        return record
    if (found := conversation_of(record)) is None:
        raise UnreadableError("has a line without a response")
    return {"text": found[1], **record, "messages": found[0]}


def _require_lines(records: list[Any], *, external: bool) -> list[str]:
    """The names that each line has. Raises UnreadableError for a line that is no text, or not like the first."""
    names = [*records[0]] if isinstance(records[0], dict) else []
    labels = {label: type(records[0][label]) for label in ("domain", "document") if label in names}
    for n, record in enumerate(records, 1):
        if not isinstance(record, dict) or record.keys() != {*names} or ("text" in record) == external:
            raise UnreadableError(f"has a line {n} that is not like the others")
        if not (is_count(record.get("bytes")) and 0 < record["bytes"] < 2**53):
            raise UnreadableError(f"has no length of text {n} in 'bytes'")
        if not external and not isinstance(record["text"], str):
            raise UnreadableError(f"has no text in line {n}")
        if any(type(record[label]) is not kind or kind not in (str, int) for label, kind in labels.items()):
            raise UnreadableError(f"has a label in line {n} that is no string")
        if any(isinstance(value, dict | list) for value in record.values()):
            raise UnreadableError(f"has a label in line {n} that is no single value")
    return names
