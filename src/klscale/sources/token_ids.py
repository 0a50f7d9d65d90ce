"""Servers that take token ids, as vLLM's does: its tokenizer, log-probabilities of token sequences, and of chosen ids.

vLLM documents `/tokenize` and `/detokenize`, token ids as the `prompt` of `completions` with `prompt_logprobs`; and for
a server that was started with `--enable-scale-out`, `/inference/v1/generate` with `prompt_logprob_token_ids` (0.33).
So windows begin at tokens, prompt and response are put together token by token, and ids that another model has drawn
have log-probabilities.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from klscale.errors import InputError, KlscaleError
from klscale.inputs.conversations import Prompt, Template
from klscale.science.arrays import Floats, Integers
from klscale.sources.transformers.prompts import one_message, rendered

OF_TOKENIZER = re.compile(r"\b(?:bos|eos|pad|unk|sep|cls|mask)_token\b")
"""What a template may ask a tokenizer for, and a server does not tell."""


class Asked(Protocol):
    """A server: a path that begins with / is of its root, any other of its API."""

    def post(self, path: str, body: Mapping[str, Any]) -> Any: ...


class WrongAnswerError(Exception):
    """An answer is not what is documented."""


@dataclass(frozen=True, eq=False)
class Told:
    """What a server says of the tokens behind the first of a sequence of n: `log_p` (n - 1,) in nats, `words`, each as
    text, and `top` (n - 1,), the most probable ids."""

    log_p: Floats
    words: list[str]
    top: Integers


class TokenIds:
    """A server that takes token ids. `longest` is its longest sequence. Raises WrongAnswerError and KlscaleError where
    it does not."""

    def __init__(self, server: Asked, model: str) -> None:
        self._server, self._model = server, model
        self._words: dict[int, str] = {}
        answer = self._tokenized("a b", special=True)
        found = answer.get("max_model_len")
        if type(found) is not int or found < 3:
            raise WrongAnswerError("It does not say how long a text may be.")
        self.longest = found - 1  # behind it, it wants room for a token
        self._start: list[int] | None = None
        self.read(_ids_of(answer))

    def _tokenized(self, text: str, *, special: bool) -> Mapping[str, Any]:
        body = {"model": self._model, "prompt": text, "add_special_tokens": special}
        answer = self._server.post("/tokenize", body)
        _ids_of(answer)
        return answer  # type: ignore[no-any-return]

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds where asked for."""
        return _ids_of(self._tokenized(text, special=special))

    def word(self, token: int) -> str:
        """A token as text."""
        if token not in self._words:
            answer = self._server.post("/detokenize", {"model": self._model, "tokens": [token]})
            self._words[token] = str(answer["prompt"]) if isinstance(answer, Mapping) and "prompt" in answer else ""
        return self._words[token]

    def read(self, ids: Sequence[int]) -> Told:
        """What the server says of a sequence of two tokens or more."""
        body = {"model": self._model, "prompt": [*ids], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 1}
        answer = self._server.post("completions", body)
        try:
            told = answer["choices"][0]["prompt_logprobs"]
            if not isinstance(told, list) or len(told) != len(ids):
                raise WrongAnswerError("It returns log-probabilities of other tokens than those that it was given.")
            own = [of[str(token)] for token, of in zip(ids[1:], told[1:], strict=True)]
            log_p = np.array([float(one["logprob"]) for one in own])
            top = [int(max(of, key=lambda token: float(of[token]["logprob"]))) for of in told[1:]]
            return Told(log_p, [str(one.get("decoded_token") or "") for one in own], np.array(top, dtype=np.int64))
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise WrongAnswerError("It returns no log-probabilities of the token ids that it was given.") from error

    def chosen(self, ids: Sequence[int], drawn: NDArray[np.int32], first: int) -> Floats:
        """Log-probabilities (t, m) in nats of the ids `drawn` (t, m) at the tokens from `first` on."""
        about = {
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprob_token_ids": drawn.tolist(),
            "prompt_logprob_start": first - 1,
        }
        body = {"model": self._model, "token_ids": [*ids], "sampling_params": about}
        answer = self._server.post("/inference/v1/generate", body)
        try:
            found = np.load(io.BytesIO(base64.b64decode(answer["prompt_token_id_logprobs"])), allow_pickle=False)
            values = np.asarray(found, dtype=np.float64)
        except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
            raise WrongAnswerError("It returns no log-probabilities of chosen ids.") from error
        if values.shape != drawn.shape or np.isnan(values).any() or (values > 1e-4).any():
            raise WrongAnswerError("What it returns is not the log-probabilities of the ids that were chosen.")
        return values

    def gives_chosen(self, tolerance: float) -> bool:
        """Whether it gives log-probabilities of chosen ids: those of a text's own tokens must be the usual ones."""
        ids = self.tokenize("One, two, three, four", special=True)
        if len(ids) < 3:
            return False
        try:
            values = self.chosen(ids, np.array([ids[1:]], dtype=np.int32).T, 1)[:, 0]
            return bool(np.abs(values - self.read(ids).log_p).max() <= tolerance)
        except (KlscaleError, WrongAnswerError):
            return False

    def prompt(self, prompt: Prompt, template: Template, place: str) -> list[int]:
        """Token ids of a prompt. Raises InputError for several messages without a template; KlscaleError where the
        template fails, and for a response that stands alone where the tokenizer adds no token in front."""
        if template.kind == "none" or not prompt:
            text = one_message(prompt, place) if prompt else ""
            found = self._with_front(text) if text else []
        else:
            found = self.tokenize(_rendered(prompt, template.source, place), special=False)
        return found or self._start_tokens()

    def _with_front(self, text: str) -> list[int]:
        """Token ids of a text with the special tokens that the tokenizer puts in front, without those behind."""
        bare, whole = self.tokenize(text, special=False), self.tokenize(text, special=True)
        for n in range(len(whole) - len(bare) + 1):
            if whole[n : n + len(bare)] == bare:
                return whole[: n + len(bare)]
        return bare

    def _start_tokens(self) -> list[int]:
        if self._start is None:
            whole = self._with_front("a")
            self._start = whole[: len(whole) - len(self.tokenize("a", special=False))]
        if not self._start:
            raise KlscaleError(
                "A response stands alone, and the server's tokenizer adds no token that begins a text.",
                "Its first token would have nothing before it.",
                "Give every response a prompt.",
            )
        return self._start


def _ids_of(answer: Any) -> list[int]:
    found = answer.get("tokens") if isinstance(answer, Mapping) else None
    if not isinstance(found, list) or not all(type(n) is int and 0 <= n < 2**31 for n in found):
        raise WrongAnswerError("It returns no token ids of a text.")
    return found


def _rendered(prompt: Prompt, source: str, place: str) -> str:
    if asked := OF_TOKENIZER.search(source):
        raise InputError(
            f"The template asks for {asked[0]}, and a server does not tell what that is.",
            remedy="Write the token itself into the template.",
        )
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(messages: list[dict[str, str]], template: str) -> str:
        return str(render_jinja_template([messages], chat_template=template, add_generation_prompt=True)[0][0])

    return rendered(prompt, source, place, render)
