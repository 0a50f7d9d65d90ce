"""The numbers of docs/footguns.md that need models of their own: what a mistake costs, in bits per byte.

Each function returns a row or several: what is done, and the KL that it makes. Small models are fine-tuned here on the
texts themselves, or on a chat template, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet, chunk, is_held_out, load_texts, pocket_corpus
from klscale.science.arrays import Floats
from klscale.science.estimates import Estimate
from klscale.science.kl import KL, bits_per_byte, kl
from klscale.sources.tokens import Tokens
from klscale.sources.transformers.engine import Engine
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import LoadedModel, load
from klscale.sources.transformers.tokens import tokenize
from klscale.vectors.scores import Scores

CHAT = "<|user|>\nWrite a piece of text.\n<|assistant|>\n"
STEPS = 80


def log_likelihood(loaded: LoadedModel, tokens: Tokens) -> Floats:
    """(N,) nats of tokens 2 to n of each text."""
    scores = Scores.concatenate([*Engine(loaded).score(tokens, np.arange(len(tokens.lengths)))])
    return scores.log_likelihood


def without_first_token(tokens: Tokens) -> Tokens:
    kept = np.ones(len(tokens.ids), dtype=bool)
    kept[tokens.starts[:-1]] = False
    starts = tokens.starts - np.arange(len(tokens.starts))
    return replace(tokens, ids=tokens.ids[kept], starts=starts)


def conventions(shared: Path, n_texts: int = 500) -> dict[str, KL]:
    """One model read by two conventions, and its texts in lower case, as a tokenizer that loses case would see them."""
    texts = first(load_texts(shared / "texts" / "public-domain-short-3k.jsonl"), n_texts)
    loaded = load(resolve(ModelRef.parse(str(shared / "models" / "stories260K"))))
    tokens = tokenize(loaded.tokenizer, texts)
    usual = log_likelihood(loaded, tokens)
    assert texts.texts is not None
    lower = tokenize(loaded.tokenizer, replace(texts, texts=tuple(text.lower() for text in texts.texts)))
    return {
        "the special token at the beginning left out": kl_of(
            usual, log_likelihood(loaded, without_first_token(tokens)), texts
        ),
        "the text in lower case": kl_of(usual, log_likelihood(loaded, lower), texts),
    }


def first(texts: TextSet, n: int) -> TextSet:
    assert texts.texts is not None
    documents = None if texts.document is None else texts.document[:n]
    return TextSet.from_texts(texts.name, texts.texts[:n], document=documents)


def kl_of(a: Floats, b: Floats, texts: TextSet, rows: Any = slice(None)) -> KL:
    documents = None if texts.document is None else np.asarray(texts.document)[rows]
    return kl(a[rows], b[rows], texts.bytes[rows], documents=documents)


def gain(a: Floats, b: Floats, texts: TextSet, rows: Any = slice(None)) -> Estimate:
    """By how many bits per byte b is better than a."""
    documents = None if texts.document is None else np.asarray(texts.document)[rows]
    return bits_per_byte((a - b)[rows], texts.bytes[rows], documents=documents)


def seen(models: Path, texts: TextSet) -> dict[str, tuple[KL, Estimate]]:
    """A model, and the same after it has read half of the documents of the text set: KL and gain on that half, and on
    the half that it has not read."""
    assert texts.texts is not None
    assert texts.document is not None
    names = sorted(set(texts.document))
    read = np.isin(texts.document, names[::2])
    parent = load(resolve(ModelRef.parse(str(models / "pocket-130k-seed1" / "checkpoint-800"))))
    tokens = tokenize(parent.tokenizer, texts)
    before = log_likelihood(parent, tokens)
    fine_tune(parent, [texts.texts[s] for s in np.flatnonzero(read)])
    after = log_likelihood(parent, tokens)
    return {
        name: (kl_of(before, after, texts, rows), gain(before, after, texts, rows))
        for name, rows in (("texts that it has read", read), ("texts that it has not read", ~read))
    }


def chat(models: Path, texts: TextSet) -> dict[str, KL]:
    """A model, and the same after it has learned to write documentation behind a chat template, and source code as
    before without: KL on raw text, and behind the template, which is the same for all texts and so cancels."""
    assert texts.texts is not None
    parent = load(resolve(ModelRef.parse(str(models / "pocket-130k-seed1" / "checkpoint-800"))))
    fits = 256 - len(CHAT.encode())
    short = TextSet.from_texts(texts.name, [cut(text, fits) for text in texts.texts], document=texts.document)
    assert short.texts is not None
    readings = {"raw text": short.texts, "behind its template": tuple(CHAT + text for text in short.texts)}
    tokens = {name: tokenize(parent.tokenizer, replace(short, texts=read)) for name, read in readings.items()}
    before = {name: log_likelihood(parent, read) for name, read in tokens.items()}
    known = [(text, domain) for name, text, domain in pocket_corpus() if not is_held_out(name, domain)]
    written = [CHAT + piece for text, domain in known if domain == "documentation" for piece in chunk(text, fits, 64)]
    source = [piece for text, domain in known if domain == "source" for piece in chunk(text, fits, 64)]
    both = np.random.default_rng(0)
    fine_tune(parent, [*written, *(source[s] for s in both.integers(len(source), size=len(written)))])
    return {name: kl_of(before[name], log_likelihood(parent, read), short) for name, read in tokens.items()}


def cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def fine_tune(loaded: LoadedModel, texts: Sequence[str], steps: int = STEPS, rate: float = 3e-4) -> None:
    """Some steps of AdamW on batches of 16 texts, padded on the right."""
    torch.manual_seed(0)
    model, order = loaded.model.train(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        rows = [list(texts[s].encode()[:256]) for s in order.integers(len(texts), size=16)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        target = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
        logits = model(input_ids=ids, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
