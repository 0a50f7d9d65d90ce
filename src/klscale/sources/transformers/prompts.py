"""Prompts as chat templates render them and tokenizers read them: what stands before a response."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from klscale.errors import InputError, KlscaleError
from klscale.inputs.conversations import Message, Prompt, Template, digest
from klscale.inputs.texts import TextSet
from klscale.limits import PROMPT_CHARACTERS, TEMPLATE_BYTES

TODAY = {
    "%d": "01", "%-d": "1", "%m": "01", "%b": "Jan", "%B": "January", "%y": "25", "%Y": "2025", "%a": "Wed",
    "%A": "Wednesday", "%H": "00", "%M": "00", "%S": "00",
}  # fmt: skip
"""1 January 2025: the date that every template is told. Some write today's date into the prompt, and their vectors
would change from day to day."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Token ids of the prompt of each text, and the texts in whose prompt a string is read as a special token."""

    ids: Sequence[Sequence[int]]
    special: set[int]


def tokenized(tokenizer: Any, texts: TextSet, template: Template) -> Prompts:
    """The prompts of all texts as a template renders them, the beginning of the assistant's turn included.

    A rendered prompt is tokenized as a whole, as transformers does. Where a message holds the string of a special
    token, what the template itself places is a special token, and what is in the message is text. A response without
    a prompt stands behind the start token.

    Raises InputError for a model without a template, a template that is none, and several messages without a template;
    KlscaleError for a prompt that a template cannot render, and for one without tokens.
    """
    assert texts.prompts is not None
    source, special = source_of(tokenizer, template), special_tokens(tokenizer)
    reader = _Reader(tokenizer, source, special)
    start: list[int] | None = None
    found, read_as_special = list[list[int]](), set[int]()
    for s, prompt in enumerate(texts.prompts):
        place = f"text {s} of {texts.name}"
        if source is None or not prompt:
            text = one_message(prompt, place) if prompt else ""
            ids = _plain(tokenizer, text) if text else []
        else:
            ids, kept = reader.read(prompt, place)
            if not kept:
                read_as_special.add(s)
        if not ids:
            start = _start(tokenizer) if start is None else start
            ids = start
        found.append(ids)
    return Prompts(found, read_as_special)


def one_message(prompt: Prompt, place: str) -> str:
    """What the one message of a prompt says. Raises InputError for several, which no template puts together."""
    if len(prompt) > 1:
        why = f"Its prompt has {len(prompt)} messages, and no template puts them together."
        raise InputError(f"--template none cannot serve {place}.", why, "Give --template own, or FILE.")
    return prompt[0].content


def rendered(prompt: Prompt, source: str | None, place: str, render: Callable[[list[dict[str, str]], Any], str]) -> str:
    """A prompt as text, from what renders messages with a template; `source` None for the tokenizer's own. Raises
    KlscaleError where the template fails."""
    if source is not None and "strftime_now" in source:
        dated = "".join(f"|replace('{code}', '{text}')" for code, text in TODAY.items())
        source = f"{{% macro strftime_now(format) %}}{{{{ format{dated} }}}}{{% endmacro %}}{source}"
    try:
        found = render([{"role": said.role, "content": said.content} for said in prompt], source)
    except Exception as error:  # whatever a stranger's template does
        raise KlscaleError(
            f"The chat template cannot render the prompt of {place}.",
            f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
            "Take that text out, or give --template FILE.",
        ) from error
    PROMPT_CHARACTERS.require(len(found), place)
    return found


def source_of(tokenizer: Any, template: Template) -> str | None:
    """The Jinja template that renders prompts; None for none. Raises InputError where a model has none of its own."""
    if template.kind == "none":
        return None
    if template.kind == "file":
        return template.source
    try:
        source: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise InputError(
            "The model has no chat template.",
            "Its tokenizer names none, so that it is not known how a prompt is put to it.",
            "Give --template none (the prompt as it is) or --template FILE (the same for all models).",
        ) from error
    TEMPLATE_BYTES.require(len(source.encode("utf-8", "replace")), "The chat template")
    return source


def template_record(tokenizer: Any, template: Template) -> dict[str, str]:
    """What the store keeps of a template beside a vector: enough to render with it again."""
    source = source_of(tokenizer, template)
    record = {"kind": template.kind, "hash": "" if source is None else digest(source)}
    return record | ({"source": template.source} if template.kind == "file" else {})


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """The special tokens of a tokenizer: id -> string."""
    special = {tokenizer.convert_tokens_to_ids(name): name for name in tokenizer.all_special_tokens}
    return special | {n: str(token) for n, token in tokenizer.added_tokens_decoder.items() if token.special}


def any_special(special: Mapping[int, str]) -> re.Pattern[str]:
    """Matches the string of any of these special tokens, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(special.values(), key=len, reverse=True))))


def _plain(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text with the special tokens that the tokenizer puts in front."""
    found = tokenizer(text, split_special_tokens=True, return_special_tokens_mask=True, verbose=False)
    ids, added = list(found["input_ids"]), found["special_tokens_mask"]
    while added[len(ids) - 1] and sum(added[: len(ids)]) < len(ids):  # those behind
        ids.pop()
    return ids


def _start(tokenizer: Any) -> list[int]:
    """The token that begins a text: the one that the tokenizer puts in front, else its BOS or EOS token."""
    own = tokenizer("")["input_ids"][:1]
    begin = next((n for n in (*own, tokenizer.bos_token_id, tokenizer.eos_token_id) if n is not None), None)
    if begin is None:
        raise KlscaleError(
            "A response stands alone, and the tokenizer has no token that begins a text.",
            "Its first token would have nothing before it.",
            "Give every response a prompt.",
        )
    return [int(begin)]


class _Reader:
    """Renders prompts with one template, and tokenizes what comes out."""

    def __init__(self, tokenizer: Any, source: str | None, special: Mapping[int, str]) -> None:
        self._tokenizer, self._source = tokenizer, source
        self._ids = {name: n for n, name in special.items()}
        self._any = any_special(special) if special else None

    def read(self, prompt: Prompt, place: str) -> tuple[list[int], bool]:
        """Token ids of a prompt, and whether what is in its messages is read as text throughout."""
        whole = self._render(prompt, place)
        if self._any is None or not any(self._any.search(said.content) for said in prompt):
            return self._encode(whole), True
        harmless = tuple(Message(said.role, self._without_special(said.content)) for said in prompt)
        if self._apart(harmless, place) == self._encode(self._render(harmless, place)):
            ids = self._apart(prompt, place)
            if ids is not None:
                return ids, True
        return self._encode(whole), False

    def _without_special(self, text: str) -> str:
        assert self._any is not None
        while self._any.search(text):
            text = self._any.sub("", text)
        return text

    def _render(self, prompt: Prompt, place: str) -> str:
        def render(messages: list[dict[str, str]], template: Any) -> str:
            found: str = self._tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            return found

        return rendered(prompt, self._source, place, render)

    def _encode(self, text: str, *, split: bool = False) -> list[int]:
        how = {"split_special_tokens": True} if split else {}
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False, **how)["input_ids"]
        return ids

    def _apart(self, prompt: Prompt, place: str) -> list[int] | None:
        """Token ids of a prompt in which only what the template places are special tokens; None where its contents
        cannot be found in what is rendered, because the template changes them."""
        whole = self._render(prompt, place)
        marks = [f"\ue000{n}\ue001" for n in range(len(prompt))]
        marked = tuple(Message(said.role, mark) for said, mark in zip(prompt, marks, strict=True))
        pieces, rest = list[str](), self._render(marked, place)
        for mark in marks:
            before, found, rest = rest.partition(mark)
            if not found:
                return None
            pieces.append(before)
        ids, text, at = list[int](), "", 0
        for piece, said in zip([*pieces, rest], [*prompt, Message("", "")], strict=True):
            if not whole.startswith(piece, at):
                return None
            at += len(piece)
            content = next((c for c in (said.content, said.content.strip()) if whole.startswith(c, at)), None)
            if content is None:
                return None
            at += len(content)
            for part in self._pieces(piece):
                if part in self._ids:
                    ids += self._encode(text, split=True) if text else []
                    ids.append(self._ids[part])
                    text = ""
                else:
                    text += part
            text += content
        ids += self._encode(text, split=True) if text else []
        return ids if at == len(whole) else None

    def _pieces(self, text: str) -> list[str]:
        """A text cut at the strings of special tokens."""
        assert self._any is not None
        cuts = [0, *(edge for match in self._any.finditer(text) for edge in match.span()), len(text)]
        return [text[a:b] for a, b in itertools.pairwise(cuts) if a < b]
