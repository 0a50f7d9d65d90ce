"""Draw a text set from a model: on such texts its KL to any other model is a mean of log-ratios, across tokenizers."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet, content_id, load_texts
from klscale.science.arrays import Integers
from klscale.sources.source import NEXT_TOKENS, Reader, ReaderOptions, Sources
from klscale.sources.tokens import REPLACED, Tokens, decoded_bytes
from klscale.store.drawn_records import Drawing
from klscale.store.store import Store, vector_key
from klscale.studies.verbs.options import Options

BYTES_A_TOKEN = 4.0
"""Taken for the drawn texts where the prompts are too short to tell."""
KEEP_SECONDS = 10.0
"""A killed command loses at most the draws of so long, and those of the batch at work."""


@dataclass(frozen=True)
class DrawnTexts:
    """A text set that was drawn from a model, kept in the `store`, and how many texts were left out of it: `changed`
    for their tokens, which are others when the text is read again, and `ended` where the model ended at once."""

    store: Store
    texts: TextSet
    n_drawn: int
    changed: int
    ended: int

    def __str__(self) -> str:
        return f"{self.texts!r}: {self.n_drawn:,} drawn, {self.changed:,} changed, {self.ended:,} ended at once"


def draw_texts(
    model: str | ModelRef,
    prompts: TextSet | str | os.PathLike[str],
    store: Store | str | os.PathLike[str] | None = None,
    *,
    whole_prompts: bool = False,
    n_texts: int = 500,
    n_bytes: int = 512,
    seed: int = 0,
    name: str | None = None,
    options: Options = Options(),
) -> DrawnTexts:
    """A text set of at most `n_texts` texts of about `n_bytes` bytes that a model writes, kept in the store.

    Each text is begun by one of the `prompts`, a text set or the name, id or file of one: its first span of about 32
    bytes; with `whole_prompts` all of it. Tokens are drawn at temperature 1 from the whole distribution. A text ends
    with the token that reaches `n_bytes`, before a special token such as an end of text, or at the model's window.
    Texts are left out whose tokens are others when they are read again. With fewer prompts than texts each prompt
    begins several. Texts have the documents of their prompts. The same `seed` draws the same texts. What an interrupted
    call has drawn is kept in the store, and the next one goes on from there.

    Raises InputError for a model that gives no next-token probabilities, and for prompts that cannot be used;
    KlscaleError where fewer than two texts are left.

        drawn = klscale.draw_texts("gpt2", "pocket", "klscale-store", n_texts=200)
        print(klscale.compare(["gpt2", "./other"], drawn.texts, "klscale-store").drawn)
    """
    if n_texts < 2 or n_bytes < 1:
        raise InputError(f"{n_texts} texts of {n_bytes} bytes: a set has two texts, of one byte at least.")
    options = options.at(None, store)
    place = options.opened()
    source_of = load_texts(prompts) if isinstance(prompts, os.PathLike) else prompts
    given = options.at(source_of, None).chosen(place)
    begin, owner = _beginnings(given, whole_prompts)
    sources, ref = Sources(options.progress), model if isinstance(model, ModelRef) else ModelRef.parse(model)
    source = sources.of(ref)
    source.require(ref, NEXT_TOKENS)
    how = ReaderOptions(options.device, options.batch_tokens, split_special_tokens=options.split_special_tokens)
    pinned = sources.pin(ref)
    reader = sources.open(pinned, how)

    which = np.arange(n_texts) % len(begin)
    chosen = TextSet.from_texts(given.name, [begin[n] for n in which])
    first = reader.tokens(chosen)
    if reader.window is not None and first.lengths.max() >= reader.window:
        raise InputError(f"A prompt of {given.name} fills the window of {ref} ({reader.window:,} tokens).")
    author = vector_key(pinned.identity, ref, source.conventions(how)[0], source.name)
    key = content_id([json.dumps([author, given.id, whole_prompts, n_bytes, seed]).encode()])
    drawn = _draw(reader, first, n_bytes, seed, place, key, options)
    written = reader.decode(drawn)
    prompt_bytes = decoded_bytes(reader.decode(first))
    goes_on = (drawn.lengths > first.lengths) & (decoded_bytes(written) > prompt_bytes)
    kept = np.flatnonzero(goes_on)
    kept = kept[_unchanged(reader, [written[n] for n in kept], [drawn.of(int(n)) for n in kept], prompt_bytes[kept])]
    ended, changed = int((~goes_on).sum()), int(goes_on.sum()) - len(kept)
    if len(kept) < 2:
        place.drop_drawing(key)
        raise KlscaleError(
            f"{len(kept)} of {n_texts:,} texts drawn from {ref} can be used.",
            f"{changed:,} are read again as other tokens, {ended:,} ended at once.",
            "Give prompts that end where a word does, more texts, or fewer --bytes.",
        )
    texts = TextSet.from_texts(
        name or f"{ref.slug}-drawn-{seed}",
        [written[n] for n in kept],
        document=given.document and tuple(given.document[n] for n in owner[which[kept]]),
        prompt_bytes=prompt_bytes[kept],
        labels={"prompt_tokens": tuple(first.lengths[kept].tolist())},
        drawn={
            "author": str(ref),
            "key": author,
            "identity": pinned.identity,
            "seed": seed,
            "prompts": f"{given.name} ({given.id})",
            "n_drawn": n_texts,
            "changed": changed,
            "ended": ended,
            "versions": dict(reader.facts(chosen)["versions"]),
        },
    )
    kept_texts = place.keep_texts(texts)
    place.drop_drawing(key)
    return DrawnTexts(place, kept_texts, n_texts, changed, ended)


def _beginnings(given: TextSet, whole: bool) -> tuple[list[str], Integers]:
    """The prompts in the random order of their set, and the text that each is of: whole texts, or their first spans."""
    if given.texts is None or given.cuts is None:
        raise InputError(f"{given.name} has no texts, only log-likelihoods.", remedy="Give prompts that are texts.")
    cuts = [given.cuts.of(s) for s in range(len(given))]
    usable = np.array([s for s in given.random_order if whole or len(cuts[s])], dtype=np.int64)
    if not len(usable):
        why = "A prompt is the first span of a text, and texts below 48 bytes have one alone."
        raise InputError(f"{given.name} has no text that is long enough.", why, "Give them as --prompts.")
    found = [given.texts[s] if whole else given.texts[s].encode()[: cuts[s][0]].decode() for s in usable]
    return found, usable


def _draw(reader: Reader, first: Tokens, n_bytes: int, seed: int, store: Store, key: str, options: Options) -> Tokens:
    """Each text with what the model adds to it until `n_bytes` are reached, a special token or the window. The store
    keeps what is drawn under `key`, and gives what it has."""
    size = decoded_bytes(reader.decode(first))
    rate = size.sum() / first.lengths.sum() if size.mean() > BYTES_A_TOKEN else BYTES_A_TOKEN
    more = max(8, math.ceil(1.2 * n_bytes / rate))
    rows = [first.of(n) for n in range(len(size))]
    kept: Drawing = {}
    longest = math.inf if reader.window is None else reader.window
    for n, (ids, over) in store.read_drawing(key).items():
        begins = n < len(rows) and np.array_equal(ids[: len(rows[n])], rows[n])
        if begins and len(ids) <= longest and ids.max() < reader.n_vocabulary:
            rows[n], kept[n] = ids, (ids, over or len(ids) == longest)
    ended = np.array([n in kept and kept[n][1] for n in range(len(rows))])
    written = time.monotonic()

    def keep(n: int, ids: NDArray[np.int32]) -> None:
        nonlocal written
        rows[n], ended[n] = _ended(reader, ids, len(first.of(n)), n_bytes)
        ended[n] |= len(rows[n]) >= longest
        kept[n] = rows[n], bool(ended[n])
        options.progress.advance(int(ended[n]))
        if time.monotonic() - written > KEEP_SECONDS:
            store.write_drawing(key, kept)
            written = time.monotonic()

    options.progress.begin(f"drawing from {reader.ref}", len(rows), "texts")
    options.progress.advance(int(ended.sum()))
    try:
        while len(going := np.flatnonzero(~ended)):
            tokens = Tokens.from_rows(rows)
            room = np.full(len(going), more)
            if reader.window is not None:
                room = np.minimum(room, reader.window - tokens.lengths[going])
            reader.sample(tokens, going, seed, reader.n_vocabulary, keep, more=room)
    except BaseException:  # Ctrl-C among them
        if kept:
            store.write_drawing(key, kept)
        raise
    return Tokens.from_rows(rows)


def _ended(reader: Reader, ids: np.ndarray, n_given: int, n_bytes: int) -> tuple[np.ndarray, bool]:
    """The tokens of a text up to its end, which no later token decides, and whether there is one."""
    special = np.flatnonzero(reader.is_special(ids[n_given:]))
    stop = n_given + int(special[0]) if len(special) else len(ids)

    def decoded(n: int) -> str:
        return reader.decode(Tokens.from_rows([ids[:n]]))[0]

    def is_long(n: int) -> bool:
        return int(decoded_bytes([decoded(n)])[0]) >= n_bytes

    if stop == n_given or not is_long(stop):
        return ids[:stop], stop < len(ids)
    low, high = n_given, stop  # the first token that reaches the length is above `low`, up to `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_long(middle) else (middle, high)
    while high < stop and decoded(high).endswith(REPLACED):  # inside a character
        high += 1
    return ids[:high], True


def _unchanged(reader: Reader, texts: Sequence[str], rows: Sequence[np.ndarray], prompt_bytes: Integers) -> Integers:
    """Which texts (n,) are read as the tokens that were drawn, with their prompts in front."""
    if not texts:
        return np.empty(0, dtype=np.int64)
    again = reader.tokens(TextSet.from_texts("drawn", texts))
    same = [
        REPLACED not in text and np.array_equal(again.of(n), rows[n]) and _is_cut(text.encode(), int(prompt_bytes[n]))
        for n, text in enumerate(texts)
    ]
    return np.flatnonzero(same)


def _is_cut(data: bytes, place: int) -> bool:
    return data[place] & 0xC0 != 0x80
