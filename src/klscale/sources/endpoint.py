"""Servers as a source: an OpenAI-compatible `completions` that echoes a prompt with its log-probabilities (vLLM,
llama-cpp-python's server, and others).

    klscale compare http://localhost:8000/v1#model gpt2 --texts my.jsonl

An address is the server's base URL and, after `#`, the name that the model has there. One option may follow a `?`:

    label=monday  a name of your own, which gives the same server another vector: klscale drift compares two of them

A token is read from the environment variable KLSCALE_TOKEN. It is sent to the server of the reference, and is kept
nowhere. Before a model is scored, its answers to a few texts are tested (`Server.test`).

Of a server that takes token ids (vLLM's: `token_ids.py`), windows, responses to prompts, and tokens that another model
has drawn are scored, too.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
import numpy as np

from klscale.errors import InputError, KlscaleError, UnavailableError, nearest, printable
from klscale.inputs.attributes import attributes_of
from klscale.inputs.references import ModelRef
from klscale.inputs.spans import Cuts, assign_tokens, byte_offsets
from klscale.inputs.texts import TextSet
from klscale.science.arrays import Floats, Integers
from klscale.sources.source import (
    NOTHING_DRAWN,
    REPEAT_RUNS,
    RESPONSES,
    SAMPLED_TOKENS,
    Pinned,
    Reader,
    ReaderOptions,
    RepeatRuns,
    Source,
    options_of,
    versions,
    within_window,
)
from klscale.sources.token_ids import TokenIds, WrongAnswerError
from klscale.sources.tokens import REPLACED, Tokens, segments_of
from klscale.vectors.scores import Scores

TOKEN = "KLSCALE_TOKEN"
"""The environment variable that holds the token."""
CONCURRENT = 8
"""Requests that are under way at the same time."""
TRIES, BACK_OFF_S, LONGEST_WAIT_S = 5, 0.5, 30.0
"""How often a request is tried; the seconds before the second try, doubled for each further one; their limit."""
TIMEOUT = httpx2.Timeout(300.0, connect=10.0)
LARGEST_ANSWER = 1 << 27
"""Bytes of the largest answer that is read."""
BUSY = frozenset({408, 429, 500, 502, 503, 504})
TOO_LONG = ("context length", "context window", "context_length", "maximum model length", "too long")
"""What servers write where a text is longer than the model's window."""

OPENINGS = (
    "The capital of France is Paris, and the capital of Italy is",
    "In the year 1969 people walked for the first time on the",
    "One, two, three, four, five, six, seven,",
)
"""Texts that the server goes on with, by one token: the echo of both must give that token the same probability."""
UNLIKELY = "The purple zebra 7391 qx ate gravel; umbrellas vote BLUE under seventeen kelvin, ~wug fzz @ never tuba."
"""A text whose tokens are not among the most probable ones."""
TOP = 5
"""How many of the most probable tokens a test asks for."""
FILLER = -1000.0
"""Nats at or below which a value stands for a token that the server does not know."""
OTHER_TEXT = "The tokens that it returns are not those of the text."
AS_SPECIAL = "Its tokenizer may change texts, or read a string such as <s> as a special token."
TOLERANCE = 0.1
"""Nats by which two answers about one token may differ: kernels in bfloat16 do, by less."""


@dataclass(frozen=True)
class Address:
    """What a reference asks for: the server's base URL, the model's name there, and the user's label."""

    url: str
    model: str
    label: str = ""

    @classmethod
    def of(cls, ref: ModelRef) -> Address:
        """From `http://HOST:PORT/v1?label=NAME#MODEL`. Raises InputError for another option, for no model, and for a
        user name or password, which would be kept with the vector."""
        parts, example = urlsplit(ref.name), "Write http://HOST:PORT/v1#MODEL."
        if "@" in parts.netloc:
            what = f"{parts.scheme}://...@{parts.netloc.rsplit('@', 1)[1]}: a reference holds no user name or password."
            raise InputError(what, "It is kept with the vector.", f"Give a token in the environment variable {TOKEN}.")
        place = f"{parts.scheme}://{parts.netloc}{parts.path}"
        options = options_of(parts.query, ["label"], place, example)
        try:
            legal = bool(parts.hostname) and parts.port != 0
        except ValueError:
            legal = False
        if not legal:
            raise InputError(f"{ref}: this is no address of a server.", remedy=example)
        return cls(place.rstrip("/"), unquote(parts.fragment), options.get("label", ""))


class Endpoint(Source):
    """Models of servers, by an OpenAI-compatible `completions`."""

    name = "server"
    capabilities = frozenset({REPEAT_RUNS, RESPONSES, SAMPLED_TOKENS})

    def pin(self, ref: ModelRef) -> Pinned:
        address = Address.of(ref)
        with Server(ref) as server:
            about = server.about()
        told = [f"{name} {about[name]}" for name in ("root", "max_model_len") if about.get(name) is not None]
        return Pinned(ref, " ".join([f"server {address.url} model {address.model} label {address.label!r}", *told]))

    def open(
        self, pinned: Any, options: ReaderOptions = ReaderOptions(), *, alone: threading.Event | None = None
    ) -> EndpointReader:
        if options.split_special_tokens:
            what = f"{pinned}: a server reads a string such as <s> as its tokenizer does, often as a special token."
            raise InputError(what, "It cannot be told to read it as text.", "Leave out --split-special-tokens.")
        return EndpointReader(self, pinned, options)

    def with_chat_template(self, pinned: Any) -> Any:
        what = f"{pinned}: a server does not tell what chat template a model has."
        raise InputError(what, remedy="Give --template FILE (the same for all models), or none.")


class EndpointReader(Reader):
    """Reads texts with one model of a server. `by_ids`: how token ids are put to it, where that is needed and the
    server takes them; None where texts are sent as they are."""

    source: Endpoint
    draws_tokens = False

    def __init__(self, source: Endpoint, pinned: Pinned, options: ReaderOptions) -> None:
        super().__init__(source, pinned, options)
        self.device = "server"
        self.attributes = attributes_of(pinned.ref, {})
        self.server = Server(pinned.ref)
        self.server.test()
        self.by_ids = self._by_ids()
        if self.by_ids is not None:
            self.window = self.by_ids.longest
        self._tokens: dict[str, Tokens] = {}

    def _by_ids(self) -> TokenIds | None:
        """How token ids are put to the server. Raises InputError where they are needed and it takes none."""
        options = self.options
        needed = options.long_texts == "window" or options.template is not None
        if not needed and SAMPLED_TOKENS not in options.parts:
            return None
        found, why = None, ""
        try:
            found = TokenIds(self.server, self.server.address.model)
        except (WrongAnswerError, TooLongError) as error:
            why = str(error)
        except KlscaleError as error:
            why = error.why
        if found is None and needed:
            asked = "no windows (--long-texts window)" if options.template is None else "no responses to prompts"
            remedy = "vLLM takes them." + (" Or: --long-texts skip" if options.template is None else "")
            raise InputError(f"{self.ref}: this server reads {asked}, since it takes no token ids.", why, remedy)
        if SAMPLED_TOKENS in options.parts and (found is None or not found.gives_chosen(TOLERANCE)):
            self.options = replace(options, parts=options.parts - {SAMPLED_TOKENS})
            return found if needed else None
        return found

    def score(self, texts: TextSet, positions: Sequence[int] | Integers) -> Iterator[Scores]:
        chosen = np.asarray(positions, dtype=np.int64)
        if self.by_ids is not None:
            lengths = self.tokens(texts).lengths
            chosen = within_window(self.ref, self.window, lengths, positions, self.options.long_texts)
        yield from self.read(texts, chosen[np.argsort(-texts.bytes[chosen], kind="stable")], CONCURRENT)

    def read(self, texts: TextSet, order: Integers, concurrent: int) -> Iterator[Scores]:
        """Log-likelihoods of some texts in this order, by so many requests at a time."""
        assert texts.cuts is not None
        threads = ThreadPoolExecutor(concurrent)
        try:
            for first in range(0, len(order), 2 * CONCURRENT):
                block = order[first : first + 2 * CONCURRENT]
                asked = [threads.submit(self._echo, texts, text) for text in block.tolist()]
                echoes = [future.result() for future in asked]
                kept = [n for n, echo in enumerate(echoes) if echo is not None]
                if kept:
                    yield self._scores(texts.cuts, block[kept], [echo for echo in echoes if echo is not None])
        except BaseException:  # after Ctrl-C, too, nobody waits for answers
            self.server.close()
            raise
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _echo(self, texts: TextSet, text: int) -> Echo | None:
        """The answer for one text; None for one that is left out because the window is shorter."""
        assert texts.texts is not None
        try:
            return self.server.echo(texts.texts[text]) if self.by_ids is None else self._by_tokens(texts, text)
        except (AnswerError, WrongAnswerError) as fault:
            why = f"Text {text} of {texts.name}: {fault}"
            raise KlscaleError(f"{self.ref}: text {text} cannot be scored.", why, "Leave that text out.") from fault
        except TooLongError as error:
            if self.options.long_texts == "skip":
                return None
            what = f"Text {text} of {texts.name} is longer than the window of {self.ref}."
            remedy = "Use --long-texts skip, or window (vLLM)."
            raise InputError(what, f"The server says: {error.why}", remedy) from error

    def tokens(self, texts: TextSet) -> Tokens:
        """All texts as the server's tokenizer reads them, responses behind their prompts; kept."""
        by_ids, template = self.by_ids, self.options.template
        if by_ids is None:
            return super().tokens(texts)
        assert texts.texts is not None
        if texts.id not in self._tokens:

            def tokenized(text: int) -> tuple[list[int], list[int]]:
                assert texts.texts is not None
                own = by_ids.tokenize(texts.texts[text], special=template is None)
                if not own:
                    raise KlscaleError(f"Text {text} of {texts.name} has no tokens under {self.ref}.")
                if template is None or texts.prompts is None:
                    return own, []
                return own, by_ids.prompt(texts.prompts[text], template, f"text {text} of {texts.name}")

            threads = ThreadPoolExecutor(CONCURRENT)
            try:
                own, prompts = zip(*threads.map(tokenized, range(len(texts))), strict=True)
            except (WrongAnswerError, TooLongError) as error:
                raise KlscaleError(f"{self.ref}: the server cannot tokenize these texts.", str(error)) from error
            except BaseException:  # after Ctrl-C, too, nobody waits for answers
                self.server.close()
                raise
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
            found = Tokens.from_rows([np.array(ids, dtype=np.int32) for ids in own])
            self._tokens[texts.id] = found if template is None else found.behind(prompts)
        return self._tokens[texts.id]

    def _by_tokens(self, texts: TextSet, text: int) -> Echo:
        """The tokens of one text with their log-probabilities, from as many windows as it needs. A prompt is one token
        without bytes."""
        by_ids, tokens = self.by_ids, self.tokens(texts)
        assert by_ids is not None
        assert texts.texts is not None
        ids, before, has_prompt = tokens.of(text).tolist(), int(tokens.before[text]), tokens.prompt is not None
        words = [] if has_prompt else [by_ids.word(ids[0])]
        log_p, drawn, top = [np.array([math.nan])], list[Floats](), list[Integers]()
        wanted = None
        if self.sampling is not None and text in self.sampling.wanted:
            wanted = self.sampling.draws.of[text].ids
        for part in segments_of(text, len(ids), self.window, before):
            if part.stop == part.first:
                continue
            piece, first = ids[part.start : part.stop], part.first - part.start
            told = by_ids.read(piece)
            words += told.words[first - 1 :]
            log_p.append(told.log_p[first - 1 :])
            if wanted is not None:
                drawn.append(by_ids.chosen(piece, wanted[part.first - before : part.stop - before], first))
                top.append(told.top[first - 1 :])
        values = np.concatenate(log_p)
        _require_log_probabilities(values[1:])
        if (places := place_tokens(texts.texts[text], words)) is None or len(places) != len(words):
            raise AnswerError(OTHER_TEXT, AS_SPECIAL)
        begin, end = byte_offsets([texts.texts[text]], np.array([0, len(places)]), np.array(places)).T
        if has_prompt:
            begin, end = np.insert(begin, 0, 0), np.insert(end, 0, 0)
        if wanted is None:
            return Echo(begin, end, values)
        empty = np.empty((0, wanted.shape[1]))
        return Echo(begin, end, values, np.concatenate([empty, *drawn]), np.concatenate([np.empty(0, int), *top]))

    def _scores(self, cuts: Cuts, chosen: Integers, echoes: Sequence[Echo]) -> Scores:
        own = [cuts.of(text) for text in chosen.tolist()]
        first = np.cumsum([0, *map(len, own)])
        block = Cuts(np.concatenate(own).astype(np.int64), first, cuts.bytes[chosen], cuts.rule)
        lengths = np.array([len(echo.log_p) for echo in echoes], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        begin, end = (np.concatenate([getattr(echo, side) for echo in echoes]) for side in ("begin", "end"))
        spans = assign_tokens(block, starts, begin, end)
        tokens = Tokens(np.zeros(len(begin), dtype=np.int32), starts, 0.0, begin, spans)
        found = np.array([echo.log_p[1:].sum() for echo in echoes])
        scored = np.concatenate([echo.log_p[1:] for echo in echoes])
        parts = tokens.parts(np.arange(len(chosen)), scored, found)
        if self.sampling is not None:
            drawn, top = dict[int, Floats](), dict[int, Integers]()
            for text, echo in zip(chosen.tolist(), echoes, strict=True):
                if echo.drawn is not None and echo.top is not None:
                    drawn[text], top[text] = echo.drawn, echo.top
            parts |= self.sampling.parts(chosen, drawn, top)
        return Scores(chosen, found, lengths, parts)

    def facts(self, texts: TextSet) -> dict[str, Any]:
        return {
            "dtype": "as served",
            "device": self.device,
            "window": self.window,
            "first_token": self.server.first_token,
            "not_round_trip": 0.0,  # a text that does not come back is an error
            "not_round_trip_kinds": {},
            "versions": dict(versions("httpx2")),
        }

    def notes(self) -> Iterator[str]:
        if SAMPLED_TOKENS in self.options.parts and self.sampling is None:
            yield NOTHING_DRAWN.format(self.ref)

    def repeat_runs(self, texts: TextSet, positions: Integers, *, padded: bool = True) -> EndpointRepeatRuns:
        return EndpointRepeatRuns(self, texts, positions)


class EndpointRepeatRuns(RepeatRuns):
    """The same texts asked for again: one at a time, so that the server's batches have another shape, or in another
    order."""

    def __init__(self, reader: EndpointReader, texts: TextSet, positions: Integers) -> None:
        self._reader, self._texts, self._positions = reader, texts, positions
        self.bytes = texts.bytes[positions]

    def read(self, *, batches: bool = False, order: bool = False) -> Scores:
        self._reader.sampling = None
        chosen = self._positions[::-1] if order else self._positions
        return Scores.concatenate([*self._reader.read(self._texts, chosen, 1 if batches else CONCURRENT)])


# ----------------------------------------------------------------------------------------------------------- answers


class AnswerError(WrongAnswerError):
    """An answer cannot be used: `why` in a sentence, and the `remedy` where there is one."""

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.why, self.remedy = why, remedy


class TooLongError(Exception):
    """The text is longer than the model's window; `why` in the server's words."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, eq=False)
class Echo:
    """The tokens of a text as a server reads them: the bytes from `begin` to `end` (T,) that each covers, and the
    log-probability `log_p` (T,) of each in nats. That of the first is NaN: it is not scored. Of a text that is sampled
    also `drawn` (T - 1, m), the log-probabilities of the drawn ids, and `top` (T - 1,), the most probable ids."""

    begin: Integers
    end: Integers
    log_p: Floats
    drawn: Floats | None = None
    top: Integers | None = None


@dataclass(frozen=True)
class Answer:
    """What an answer says of its tokens: `tokens` (T,) as text, `log_p` (T,) in nats or None, `top`, for each the most
    probable ones; `n_prompt`, the tokens of the prompt as the server counts them, None where it does not."""

    tokens: list[str]
    log_p: list[float | None]
    top: list[Mapping[str, float]]
    n_prompt: int | None

    @classmethod
    def of(cls, answer: Any) -> Answer:
        """From an answer of `completions`. Raises AnswerError for one without log-probabilities."""
        missing = AnswerError(
            "It returns no log-probabilities of the prompt: `echo` with `logprobs` is not supported.",
            "vLLM returns them; llama-cpp-python's server does with --logits_all true.",
        )
        try:
            about = answer["choices"][0]["logprobs"]
            tokens, log_p = about["tokens"], about["token_logprobs"]
            top = about.get("top_logprobs") or [None] * len(tokens)
            n_prompt = (answer.get("usage") or {}).get("prompt_tokens")
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise missing from error
        lists = all(isinstance(one, list) for one in (tokens, log_p, top)) and len(tokens) == len(log_p) == len(top)
        if not lists or not all(isinstance(token, str) for token in tokens):
            raise missing
        if not all(value is None or _is_number(value) for value in log_p):
            raise AnswerError("It returns a log-probability that is not a number.")
        if not all(one is None or (isinstance(one, dict) and all(map(_is_number, one.values()))) for one in top):
            raise AnswerError("It returns a log-probability that is not a number.")
        return cls(tokens, log_p, [one or {} for one in top], n_prompt if type(n_prompt) is int else None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def place_tokens(text: str, tokens: Sequence[str]) -> list[tuple[int, int]] | None:
    """The characters (from, to) that each token covers, up to the end of the text; None where they are not those of the
    text. A first token that is not in the text stands before it.

    This goes by the tokens themselves: a server's `text_offset` counts characters that some of them do not have. Some
    tokens are parts of a character, for which servers return nothing or U+FFFD. They all cover what lies between their
    neighbours. vLLM returns the whole character with its last part, but not that of the first token.
    """
    for n_lost in (0, 1, len(tokens)):
        if (found := _placed(text, tokens, n_lost)) is not None:
            return found
    return None


def _placed(text: str, tokens: Sequence[str], n_lost: int) -> list[tuple[int, int]] | None:
    """The same where the characters of the first `n_lost` runs of parts are never returned."""
    found, place, unknown, runs = list[tuple[int, int]](), 0, 0, 0
    for token in tokens:
        if place == len(text) and not unknown:
            break
        is_part = not token or (REPLACED in token and not text.startswith(token, place))
        if not found and not unknown and (not token or not (is_part or text.startswith(token))):
            stripped = token.startswith(" ") and text.startswith(token[1:])  # the mark of a word's beginning
            place = len(token) - 1 if stripped and len(token) > 1 else 0
            found.append((0, place))
            continue
        if is_part:
            unknown += 1
            continue
        at = place if text.startswith(token, place) else -1
        if at < 0 and not unknown and text.startswith(" " + token, place):  # some servers drop the mark in every token
            token = " " + token
            at = place
        if unknown:
            runs += 1
            behind = text.find(token, place + 1, place + 4 * unknown + len(token))
            at = behind if behind >= 0 and (at < 0 or runs <= n_lost) else at
        if at < 0:
            return None
        end = at if at > place else at + len(token)
        found += [(place, end)] * unknown + [(at, at + len(token))]
        place, unknown = at + len(token), 0
    if unknown:
        found += [(place, len(text))] * unknown
    return found if place == len(text) or unknown else None


# ------------------------------------------------------------------------------------------------------------ server


class Server:
    """A model of a server: requests, and what its answers mean.

    `hidden` counts the tokens before a text that the server counts and does not list, such as BOS; None where it does
    not count. `first_token` says in words which token is not scored.
    """

    def __init__(self, ref: ModelRef) -> None:
        self.ref, self.address = ref, Address.of(ref)
        self.hidden: int | None = None
        self.first_token = ""
        self._token = os.environ.get(TOKEN, "").strip()
        if not (self._token.isascii() and self._token.isprintable()):
            raise InputError(f"{TOKEN} cannot be sent.", "A token is one line of ASCII.")
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        limits = httpx2.Limits(max_connections=CONCURRENT)
        self._client = httpx2.Client(headers=headers, timeout=TIMEOUT, limits=limits)
        self._closed = threading.Event()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the requests that are under way, and their further tries."""
        self._closed.set()
        self._client.close()

    def about(self) -> Mapping[str, Any]:
        """What the server says of the model. Raises UnavailableError where it does not answer, and InputError where it
        does not have the model."""
        try:
            status, answer = self._ask("GET", "models", tries=1)
        except AnswerError as error:
            raise InputError(f"{self.ref}: this is no address of a server.", error.why) from error
        except KlscaleError as error:
            raise UnavailableError(error.what, error.why, error.remedy) from error
        if status == 404:  # some servers list nothing
            served = [{"id": self.address.model}] if self.address.model else []
        else:
            listed = answer.get("data") if isinstance(answer, dict) else None
            listed = listed if isinstance(listed, list) else []
            served = [one for one in listed if isinstance(one, dict) and isinstance(one.get("id"), str)]
        for one in served:
            if one["id"] == self.address.model:
                return one
        names = [printable(one["id"]) for one in served]
        what = f"{self.ref}: the server has no model {self.address.model!r}."
        if not self.address.model:
            what = f"{self.ref}: the name of a model is missing."
        why = nearest(self.address.model, names) if names else "It lists none."
        raise InputError(what, why, f"Write {self.address.url}#{names[0] if names else 'MODEL'}.")

    def complete(self, text: str, *, echo: bool, top: int = 1, temperature: float = 1.0, top_p: float = 1.0) -> Answer:
        """The answer for a text. One token more is asked for, since some servers read 0 as without limit."""
        body = {
            "model": self.address.model,
            "prompt": text,
            "echo": echo,
            "logprobs": top,
            "max_tokens": 1,
            "temperature": temperature,
            "top_p": top_p,
            "seed": 0,
        }
        return Answer.of(self._ask("POST", "completions", body)[1])

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to a request. A path that begins with / is of the server's root."""
        return self._ask("POST", path, body)[1]

    def echo(self, text: str) -> Echo:
        """The log-probabilities of the tokens of a text. Raises AnswerError where the answer is not about this text."""
        return self.read(text, self.complete(text, echo=True))

    def read(self, text: str, answer: Answer) -> Echo:
        """What an answer says of a text, token by token. Raises AnswerError where it is not about this text."""
        if len(answer.tokens) < 2 <= len(text.split()):
            raise AnswerError("It returns no log-probabilities of the prompt: `echo` is ignored.")
        tokens = answer.tokens
        if self.hidden is not None and answer.n_prompt is not None:
            n = answer.n_prompt - self.hidden
            if n > len(tokens):
                raise AnswerError(f"It returns {len(tokens):,} tokens of a text that has {n:,}: the text is cut short.")
            tokens = tokens[:n]
        if (places := place_tokens(text, tokens)) is None:
            part = "".join(tokens[1:-1])
            if part and part in text:
                raise AnswerError("It returns tokens of a part of the text: the text is cut short.")
            raise AnswerError(OTHER_TEXT, AS_SPECIAL)
        if len(places) < len(tokens) and tokens is not answer.tokens:
            raise AnswerError("It counts more tokens than the text has.")
        values = answer.log_p[: len(places)]
        if any(value is None for value in values[1:]):
            raise AnswerError("It returns no log-probability for some tokens: perhaps only for the most probable ones.")
        log_p = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        scored = log_p[1:] if values[:1] == [None] else log_p
        _require_log_probabilities(scored)
        begin, end = byte_offsets([text], np.array([0, len(places)]), np.array(places)).T
        if math.isfinite(log_p[0]):
            if not self.hidden:
                raise AnswerError(
                    f"It gives the first token a log-probability ({log_p[0]:.3g} nats), and nothing stands before it.",
                )
            begin, end = np.insert(begin, 0, 0), np.insert(end, 0, 0)
            log_p = np.insert(log_p, 0, math.nan)
        return Echo(begin, end, log_p)

    # ------------------------------------------------------------------------------------------------------- tests

    def test(self) -> None:
        """Test the numbers of the server on a few texts. Raises KlscaleError that names the fault."""
        try:
            self._test()
        except AnswerError as fault:
            what = f"{self.ref}: the log-probabilities of this server cannot be used, and nothing is scored."
            raise KlscaleError(what, fault.why, fault.remedy) from fault
        except TooLongError as error:
            what = f"{self.ref}: the server reads no text of {len(UNLIKELY)} characters."
            raise KlscaleError(what, error.why) from error

    def _test(self) -> None:
        text = OPENINGS[0]
        answer = self.complete(text, echo=True, top=TOP)
        if answer.n_prompt is not None and (places := place_tokens(text, answer.tokens)) is not None:
            hidden = answer.n_prompt - len(places)
            self.hidden = hidden if 0 <= hidden <= 4 else None
        first = self.read(text, answer)
        self.first_token = (
            "the text's first token is scored" if first.end[0] == 0 else "the text's first token is not scored"
        )
        self._require_probabilities(answer)
        again = self.read(text, self.complete(text, echo=True))
        if not _agree(first, again):
            raise AnswerError(
                f"It gives two answers to the same text, {_apart(first, again):.3g} nats apart at some token.",
                "Ask one machine, not several with different models behind one address.",
            )
        sampled = self.read(text, self.complete(text, echo=True, temperature=0.3, top_p=0.3))
        if not _agree(first, sampled):
            raise AnswerError(
                "Its log-probabilities change with the temperature or top-p of the request.",
                "Start it so that it returns log-probabilities before sampling (vLLM: --logprobs-mode raw_logprobs).",
            )
        unlikely = self.complete(UNLIKELY, echo=True, top=TOP)
        values = self.read(UNLIKELY, unlikely).log_p[1:]
        self._require_probabilities(unlikely)
        lowest = values.min()
        if np.count_nonzero(values == lowest) > 2:
            raise AnswerError(
                f"It gives many unlikely tokens {lowest:.4g} nats alike: it knows only the most probable ones."
            )
        self._require_alignment()

    def _require_probabilities(self, answer: Answer) -> None:
        """The most probable tokens have probabilities that sum to at most 1."""
        for top in answer.top:
            if (total := sum(map(math.exp, (min(value, 700.0) for value in top.values())))) > 1.001:
                raise AnswerError(
                    f"The probabilities of some tokens at one position sum to {total:.3g}, which is above 1."
                )

    def _require_alignment(self) -> None:
        """A token that the server writes behind a text has the same log-probability in the echo of both."""
        tested = False
        for text in OPENINGS:
            answer = self.complete(text, echo=False, temperature=0.0)
            if len(answer.tokens) != 1 or not (token := answer.tokens[0]) or REPLACED in token:
                continue
            value, whole = answer.log_p[0], text + token
            echo = self.read(whole, self.complete(whole, echo=True))
            if (int(echo.begin[-1]), int(echo.end[-1])) != (len(text.encode()), len(whole.encode())):
                continue  # together they are other tokens
            if value is None or not math.isfinite(value):
                raise AnswerError("It returns no log-probability of a token that it writes.")
            tested = True
            if abs(echo.log_p[-1] - value) > TOLERANCE:
                raise AnswerError(
                    f"It gives the token {token!r} {value:.4g} nats where it writes it, and {echo.log_p[-1]:.4g} nats "
                    "in the echo: the echo is shifted, or of another distribution.",
                    "llama-cpp-python's server shifts it by one token for models without a BOS token: see "
                    "docs/engines.md.",
                )
        if not tested:
            raise AnswerError("It writes no token whose log-probability could be compared with the echo.")

    # ---------------------------------------------------------------------------------------------------- requests

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, tries: int = TRIES) -> Any:
        """(status, answer). Tries again, with growing waits, where the server is busy or the connection breaks. Raises
        KlscaleError where it does not answer or refuses, and TooLongError for a text that exceeds the window."""
        place = self.address.url.removesuffix("/v1") if path.startswith("/") else f"{self.address.url}/"
        url, why = place + path, ""
        for attempt in range(tries):
            if self._closed.is_set():
                raise KlscaleError(f"{self.ref}: the requests were ended.")
            asked_s = 0.0
            try:
                with self._client.stream(method, url, json=body) as response:
                    data = self._content(response)
                    asked_s = _seconds(response.headers.get("retry-after", ""))
                status = response.status_code
                if status < 300:
                    return status, _loads(data)
                why = f"HTTP {status}: {self._said(data)}"
                if status in (400, 413, 422) and any(words in why.lower() for words in TOO_LONG):
                    raise TooLongError(why)
                if status == 404 and path == "models":
                    return status, None
                if status not in BUSY or (status == 500 and any(words in why.lower() for words in TOO_LONG)):
                    remedy = f"Set a token in {TOKEN}." if status in (401, 403) else "Check the address and the model."
                    raise KlscaleError(f"{self.ref}: the server refuses the request.", why, remedy)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                why = f"{type(error).__name__}: {self._hidden(str(error))}"
            if attempt + 1 < tries:
                wait = min(LONGEST_WAIT_S, max(asked_s, BACK_OFF_S * 2**attempt * random.uniform(0.7, 1.3)))
                self._closed.wait(wait)
        tried = f" ({tries} tries)" if tries > 1 else ""
        what = f"{self.ref}: the server does not answer{tried}."
        raise KlscaleError(what, why, "Is it running? What is finished is kept: run the command again.")

    def _content(self, response: httpx2.Response) -> bytes:
        found = bytearray()
        for part in response.iter_bytes():
            found += part
            if len(found) > LARGEST_ANSWER:
                raise KlscaleError(f"{self.ref}: an answer exceeds {LARGEST_ANSWER >> 20} MB.", "It is not read.")
        return bytes(found)

    def _said(self, data: bytes) -> str:
        """The message of a server, in one line, without the token."""
        text = data.decode(errors="replace")
        try:
            about = _loads(data)
            error = about.get("error", about)
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except (AnswerError, AttributeError):
            pass
        return self._hidden(" ".join(text.split()))[:200]

    def _hidden(self, text: str) -> str:
        return printable(text.replace(self._token, "...") if self._token else text)


def _require_log_probabilities(values: Floats) -> None:
    if not np.isfinite(values).all() or (values <= FILLER).any():
        raise AnswerError(
            "It returns a filler, such as -9999, in place of a log-probability: perhaps after top-p or top-k.",
            "Start the server without limits on the tokens that it samples from.",
        )
    if (values > 1e-4).any():
        raise AnswerError(f"It returns a log-probability above 0 ({values.max():.3g} nats).")


def _agree(a: Echo, b: Echo) -> bool:
    return len(a.log_p) == len(b.log_p) and _apart(a, b) <= TOLERANCE


def _apart(a: Echo, b: Echo) -> float:
    """The largest difference in nats between two answers about one token."""
    if len(a.log_p) != len(b.log_p):
        return math.inf
    return float(np.abs(a.log_p[1:] - b.log_p[1:]).max(initial=0.0))


def _loads(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AnswerError("Its answer is not JSON: this may be no server of models.") from error


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() else 0.0
