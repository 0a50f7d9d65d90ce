"""Log-likelihoods by document as evaluation harnesses keep them: the sample logs of lm-evaluation-harness (JSON lines,
read and written), and the scored documents of levanter and marin (Parquet with a loss for each byte)."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from klscale.errors import InputError
from klscale.inputs.conversations import Message, Prompt
from klscale.inputs.spans import pack
from klscale.inputs.texts import TextSet
from klscale.science.arrays import Floats
from klscale.vectors.vectors import PackedSpans, SpanRow, Vectors

SCORED_DOCUMENTS = ("text", "per_byte_loss", "token_byte_starts", "token_byte_ends")
"""Columns of a file of scored documents."""
_STEP = re.compile(r"step[-_]?(\d{1,15})")


def model_of(path: str) -> str:
    """The model that the place of a file names: `org__model/samples_task.jsonl`, `run/step-100/documents.parquet`."""
    parts = [part for part in re.split(r"[/\\]", path) if part and not part.endswith(":")]
    if len(parts) > 2 and (step := _STEP.fullmatch(parts[-2])):
        return f"{parts[-3]}@step{int(step[1])}"
    named = parts[-2] if len(parts) > 1 else parts[-1].split(".")[0]
    return named.replace("__", "/")


# ---------------------------------------------------------------------------------------- lm-evaluation-harness


@dataclass(frozen=True)
class _Request:
    """One request of a sample: a text, or a continuation after its context."""

    document: str
    context: str | None
    text: str
    log_likelihood: float


def read_samples(
    data: bytes | bytearray, name: str, model: str, attributes: Mapping[str, Mapping[str, Any]] = {}
) -> Vectors:
    """The vector of one model from a sample log, with its texts. A rolling log-likelihood is of a document; a request
    with a context is of its continuation, a response to that, and the requests of a document are one cluster.

    Of several filters the first is read; a key `model` of the lines names the model. Raises InputError that names the
    line.
    """
    found, filters, named = list[_Request](), set[str](), set[str]()
    for n, line in enumerate(bytes(data).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"line {n} is no JSON.", f"{error}."[:200], "Is the file whole?") from error
        if not isinstance(sample, dict):
            raise _wrong(n, "it is no object")
        used = str(sample.get("filter", "none"))
        if filters and used not in filters:
            continue
        filters.add(used)
        named |= {str(sample.get("model", model))}
        found += _requests(n, sample)
    if len(found) < 2:
        raise InputError(f"{len(found)} log-likelihoods; at least 2 are needed.", "One is one text.")
    if len(named) > 1:
        raise InputError(f"the lines name {len(named):,} models.", remedy="One file is of one model.")
    rolling = {request.context is None for request in found}
    if len(rolling) > 1:
        raise InputError("some requests have a context, some have none.", "They are other texts.", "Split the file.")
    texts = [request.text for request in found]
    if rolling == {True}:
        made = TextSet.from_texts(name, texts)
    else:
        prompts: list[Prompt] = [(Message("user", it.context),) if it.context else () for it in found]
        made = TextSet.from_texts(
            name, texts, prompts=tuple(prompts), document=tuple(request.document for request in found)
        )
    (only,) = named
    return _one_model(np.array([request.log_likelihood for request in found]), only, made, attributes)


def _one_model(values: Floats, model: str, texts: TextSet, attributes: Mapping[str, Mapping[str, Any]]) -> Vectors:
    """The vector of one model, with its attributes among those that are given."""
    return Vectors.from_arrays(
        values[None], [model], texts, {model: attributes[model]} if model in attributes else None
    )


def _requests(n: int, sample: Mapping[str, Any]) -> Iterator[_Request]:
    """The requests of a sample on line `n`."""
    arguments = sample.get("arguments")
    if isinstance(arguments, dict):
        arguments = [[*one.values()] if isinstance(one, dict) else one for one in arguments.values()]
    answers = sample.get("filtered_resps") or sample.get("resps")
    if not isinstance(arguments, list) or not isinstance(answers, list) or len(answers) != len(arguments):
        raise _wrong(n, "it has no 'arguments' with as many 'resps'")
    for said, answer in zip(arguments, answers, strict=True):
        given = [said] if isinstance(said, str) else said
        if not isinstance(given, list) or not 1 <= len(given) <= 2 or not all(isinstance(it, str) for it in given):
            raise _wrong(n, "a request is no text, and no context with a continuation")
        if not given[-1]:
            raise _wrong(n, "a request is empty")
        value = _number(answer)
        if value is None:
            raise _wrong(n, f"{str(answer)[:40]!r} is no log-likelihood. Generated text has none")
        yield _Request(str(sample.get("doc_id", n)), given[0] if len(given) == 2 else None, given[-1], value)


def _number(answer: Any) -> float | None:
    """The first number of an answer: `-1.5`, `"-1.5"`, `[[-1.5, false]]`."""
    for _ in range(4):
        if not isinstance(answer, list) or not answer:
            break
        answer = answer[0]
    if isinstance(answer, bool) or not isinstance(answer, int | float | str):
        return None
    try:
        value = float(answer)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) and value <= 0 else None


def _wrong(n: int, why: str) -> InputError:
    return InputError(f"line {n} is no sample with log-likelihoods.", f"{why[0].upper()}{why[1:]}.",
                      "Read: samples_*.jsonl of lm_eval --log_samples, of log-likelihood tasks.")  # fmt: skip


def samples(vectors: Vectors, model: str) -> Iterator[str]:
    """A line for each text that a model was scored on, as `lm_eval --log_samples` writes rolling log-likelihoods: of
    the document, in nats. A response has its prompt as context. `model` is named in every line.

    Raises InputError for texts that are not here, and for prompts of more than one message.
    """
    texts, row = vectors.texts, vectors.log_likelihood[vectors.position(model)]
    if texts.texts is None:
        what = f"The texts of {texts.name} are not here, only their log-likelihoods."
        raise InputError(what, "A sample holds its document.", "klscale kl --out FILE.csv holds the pairs.")
    if texts.prompts is not None and any(len(prompt) > 1 for prompt in texts.prompts):
        what = f"Some prompts of {texts.name} have more than one message."
        raise InputError(what, "A sample has one context.")
    for s in np.flatnonzero(~np.isnan(row)).tolist():
        text, value = texts.texts[s], float(row[s])
        prompt = None if texts.prompts is None else "".join(said.content for said in texts.prompts[s])
        doc = {"text": text, **({"prompt": prompt} if prompt is not None else {})}
        for label, values in (("domain", texts.domain), ("document", texts.document)):
            doc |= {label: values[s]} if values is not None else {}
        arguments = [text] if prompt is None else [prompt, text]
        answer: Any = str(value) if prompt is None else [str(value), None]
        yield json.dumps(
            {
                "doc_id": s,
                "doc": doc,
                "target": text,
                "arguments": {"gen_args_0": {f"arg_{n}": said for n, said in enumerate(arguments)}},
                "resps": [[answer]],
                "filtered_resps": [answer],
                "filter": "none",
                "metrics": ["bits_per_byte"],
                "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
                "prompt_hash": _hash(arguments[0]),
                "target_hash": _hash(text),
                "bits_per_byte": [value, int(texts.bytes[s])],
                "model": model,
            },
            ensure_ascii=False,
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ----------------------------------------------------------------------------------------------------- losses by byte


def read_scored_documents(
    columns: Mapping[str, Any], name: str, model: str, attributes: Mapping[str, Mapping[str, Any]] = {}
) -> Vectors:
    """The vector of one model from documents with a loss in nats for each byte, where a token's loss is spread over its
    bytes: with its texts and, from the bytes at which tokens begin and end, its spans. `dataset_name` is the domain.

    Raises InputError that names the row.
    """
    rows = [columns[key].to_pylist() for key in SCORED_DOCUMENTS]
    domains = columns["dataset_name"].to_pylist() if "dataset_name" in columns else None
    texts, losses = list[str](), list[Floats]()
    for n, (text, loss, begin, end) in enumerate(zip(*rows, strict=True), 1):
        values = _array(loss, np.float64)
        if not isinstance(text, str) or not text or values is None or len(values) != len(text.encode()):
            raise InputError(f"row {n}: 'per_byte_loss' has no value for each byte of 'text'.")
        if not (np.isfinite(values).all() and values.sum() >= 0):
            raise InputError(f"row {n}: 'per_byte_loss' is not finite, or negative.", "It is a loss in nats.")
        places = [_array(side, np.int64) for side in (begin, end)]
        if any(side is None or side.min(initial=0) < 0 or side.max(initial=0) > len(values) for side in places):
            raise InputError(f"row {n}: 'token_byte_starts' or 'token_byte_ends' are no bytes of 'text'.")
        texts.append(text)
        losses.append(values)
    for key, wanted in (("score_byte_start", lambda _: 0), ("score_byte_end", len)):
        there = columns[key].to_pylist() if key in columns else [None] * len(texts)
        for n, (value, loss) in enumerate(zip(there, losses, strict=True), 1):
            if value is not None and value != wanted(loss):
                raise InputError(f"row {n}: only a part of the text was scored.", "Whole documents are read.")
    if len(texts) < 2:
        raise InputError(f"{len(texts)} rows; at least 2 are needed.", "One row is one text.")
    known = {} if domains is None or None in domains else {"domain": tuple(map(str, domains))}
    made = TextSet.from_texts(name, texts, **known)
    total = np.array([-loss.sum() for loss in losses])
    found = _one_model(total, model, made, attributes)
    packed = _packed(made, losses, total, rows[2], rows[3])
    return replace(found, spans=(SpanRow(lambda: packed),))


def _array(value: Any, dtype: Any) -> Any:
    """A list of numbers as an array; None for anything else."""
    if not isinstance(value, list) or any(isinstance(one, bool) or not isinstance(one, int | float) for one in value):
        return None
    try:
        return np.array(value, dtype=dtype)
    except OverflowError:
        return None


def _packed(
    texts: TextSet, losses: Sequence[Floats], total: Floats, begin: Sequence[list[int]], end: Sequence[list[int]]
) -> PackedSpans:
    """The log-likelihoods of the spans: sums over the bytes between cuts, where no token reaches over one."""
    cuts = texts.cuts
    assert cuts is not None
    values, given = list[Floats](), np.zeros(len(texts), dtype=np.int64)
    for s, loss in enumerate(losses):
        running = np.concatenate([[0.0], np.cumsum(loss)])
        starts, stops = np.array(begin[s], dtype=np.int64), np.array(end[s], dtype=np.int64)
        own = np.flatnonzero(stops > starts)
        if len(own) and not loss[starts[own[0]] : stops[own[0]]].any():  # the first token has nothing before it
            given[s] = stops[own[0]]
        places = cuts.of(s)
        order = np.argsort(starts, kind="stable")
        reach = np.concatenate([[0], np.maximum.accumulate(stops[order])])  # of all tokens that begin before a place
        kept = (reach[np.searchsorted(starts[order], places)] <= places) & (places > given[s])
        edges = np.concatenate([[0], places[kept], [len(loss)]])
        row = np.full(len(places) + 1, np.nan)
        row[np.concatenate([[0], np.flatnonzero(kept) + 1])] = -np.diff(running[edges])
        values.append(row)
    return PackedSpans(pack(np.concatenate(values), total, cuts.spans.starts), given)
