"""Prompts and responses: a text may be the response to a prompt, and is then scored given that prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from klscale.errors import InputError, nearest
from klscale.limits import TEMPLATE_BYTES

ROLES = ("system", "user", "assistant", "tool")
"""Who may speak in a conversation."""

WITH_TEMPLATE = " chat template "
"""In what identifies a model, between the model itself and the template that renders prompts."""


@dataclass(frozen=True)
class Message:
    """What one role says."""

    role: str
    content: str


Prompt = tuple[Message, ...]
"""The messages before a response, in order; none for a response that stands alone."""


def conversation_of(record: Mapping[str, Any]) -> tuple[Prompt, str] | None:
    """The prompt and the response of a record of a text-set file; None for a record of a plain text.

    The record has `messages`, of which the last is the assistant's and is the response; or `response` and `prompt`,
    which is then one message of the user. Raises ValueError, in words that follow the record's place.
    """
    given = {name for name in ("text", "response", "messages") if _is_given(record.get(name))}
    if given <= {"text"}:
        return None
    if len(given) > 1:
        raise ValueError(f"both {' and '.join(map(repr, sorted(given)))}")
    if given == {"response"}:
        said = _content(record["response"], "response")
        prompt = record.get("prompt")
        return ((Message("user", _content(prompt, "prompt")),) if _is_given(prompt) else ()), _some(said)
    if _is_given(record.get("prompt")):
        raise ValueError("both 'messages' and 'prompt'")
    *before, last = messages_of(record["messages"])
    if last.role != "assistant":
        raise ValueError(f"its last message is of {last.role!r}: the response is that of 'assistant'")
    return tuple(before), _some(last.content)


def messages_of(found: Any) -> Prompt:
    """The messages of a list of objects with `role` and `content`. Raises ValueError where it is none."""
    messages = []
    for n, message in enumerate(found if isinstance(found, Sequence) and not isinstance(found, str) else (), 1):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {n} is no object")
        role, more = message.get("role"), [key for key, value in message.items() if _is_given(value)]
        if role not in ROLES:
            hint = nearest(str(role), ROLES)
            raise ValueError(f"message {n} has the role {str(role)[:40]!r}. {hint or 'Known: ' + ', '.join(ROLES)}")
        if unread := [key for key in more if key not in ("role", "content")]:
            raise ValueError(f"message {n} has {unread[0]!r}: only 'role' and 'content' are read")
        messages.append(Message(str(role), _content(message.get("content"), f"content of message {n}")))
    if not messages:
        raise ValueError("'messages' is no list of messages")
    return tuple(messages)


def _is_given(value: Any) -> bool:
    """Whether a field is there: Parquet has None or NaN, or an empty list, for one that is not."""
    return not (value is None or value != value or value == [])


def _content(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"its {what} is no string")
    return value


def _some(response: str) -> str:
    if not response:
        raise ValueError("its response is empty")
    return response


def as_messages(prompt: Prompt, response: str) -> list[dict[str, str]]:
    """A conversation as a text-set file has it under `messages`."""
    said = (*prompt, Message("assistant", response))
    return [{"role": message.role, "content": message.content} for message in said]


def content_of(prompts: Sequence[Prompt]) -> Iterator[bytes]:
    """What the id of a text set hashes of its prompts, after its texts; nothing that can be a text."""
    yield b"\xffprompts"
    for prompt in prompts:
        yield json.dumps([[said.role, said.content] for said in prompt], ensure_ascii=False).encode()


@dataclass(frozen=True)
class Template:
    """How a prompt becomes what a model reads before the response.

    `kind`: `own` (the chat template that comes with each model), `none` (the prompt as it is), or `file`: the Jinja
    template `source`, the same for all models.
    """

    kind: str
    source: str = ""

    @classmethod
    def of(cls, given: str) -> Self:
        """From `own`, `none` or the path of a file. Raises InputError for a file that cannot be read."""
        if given in ("own", "none"):
            return cls(given)
        path = Path(given)
        try:
            TEMPLATE_BYTES.require(path.stat().st_size, given)
            return cls("file", path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = (error.strerror if isinstance(error, OSError) else f"Not UTF-8: {error.reason}") or str(error)
            raise InputError(
                f"--template {given}: no template.", f"{why}.", "Give own, none, or a file with a Jinja template."
            ) from error

    @classmethod
    def of_record(cls, record: Any) -> Self | None:
        """From what is kept with a vector; None where that is no template."""
        if not isinstance(record, Mapping) or record.get("kind") not in ("own", "none", "file"):
            return None
        return cls(record["kind"], str(record.get("source", "")))

    @property
    def convention(self) -> str:
        """How a response is scored with it. Vectors of different conventions are never compared."""
        name = {"own": "own chat template", "none": "no template"}.get(self.kind) or f"template {digest(self.source)}"
        return f"response given its prompt, {name}; tokenized apart; float64 sum of float32 token log-probabilities"


def digest(template: str) -> str:
    """12 hexadecimal digits that stand for a template."""
    return hashlib.sha256(template.encode("utf-8", "replace")).hexdigest()[:12]
