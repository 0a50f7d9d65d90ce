"""Tokenizers, and texts as one sees them; prepared once and reused for every checkpoint that shares the tokenizer."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections import Counter
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from klscale.errors import InputError, KlscaleError
from klscale.inputs.conversations import Template
from klscale.inputs.spans import byte_offsets
from klscale.inputs.texts import TextSet
from klscale.sources.digests import file_digest
from klscale.sources.tokens import Tokens, loss_of
from klscale.sources.transformers import sentencepiece_files
from klscale.sources.transformers.adapters import tokenizer_of
from klscale.sources.transformers.files import CHAT_TEMPLATE, READ_WITH_TOKENIZER, ResolvedModel
from klscale.sources.transformers.hub import cache_folder, fetch
from klscale.sources.transformers.prompts import any_special, special_tokens, tokenized

ORIGINAL = "tokenizer.json"
"""The file that holds a whole tokenizer. Every other file needs a class that knows how to cut texts."""
OTHERS = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "tekken.json")


def read_tokenizer(resolved: ResolvedModel, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of a model, and what it was read from: `files`, the class that they name (None where they name
    none), and the class that was `loaded`. `options` say which revision or which GGUF file.

    A `tokenizer.json` is read as it is, else a `tokenizer.model` of SentencePiece. A class of transformers may build
    another tokenizer from either: a class named by mistake, or one whose defaults are not those of the file, cuts texts
    otherwise without a word.

    Raises KlscaleError for files in which no vocabulary is found, else what transformers raises.
    """
    from transformers import AutoTokenizer, TokenizersBackend
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    where = tokenizer_of(resolved)
    if file := options.get("gguf_file"):
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
        return tokenizer, {"files": [file], "named": None, "loaded": type(tokenizer).__name__}
    folder, hub = Path(where), (resolved.base or resolved).hub
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else hub.files if hub else set()
    tokenizer = None
    if ORIGINAL not in names and sentencepiece_files.FILE in names:
        wanted = [name for name in (sentencepiece_files.FILE, *sentencepiece_files.BESIDE) if name in names]
        ref = (resolved.base or resolved).ref
        paths = {name: fetch(ref, hub, name) if hub and not folder.is_dir() else folder / name for name in wanted}
        if sentencepiece_files.is_sentencepiece(paths[sentencepiece_files.FILE]):
            tokenizer = sentencepiece_files.read(ref, paths)
    if tokenizer is None:
        reader = TokenizersBackend if ORIGINAL in names else AutoTokenizer
        tokenizer = reader.from_pretrained(where, trust_remote_code=False, **options)
    vocabulary = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
    files = [ORIGINAL] if ORIGINAL in names else [name for name in OTHERS if name in names]
    named = get_tokenizer_config(where, **options).get("tokenizer_class")
    if not vocabulary:
        raise KlscaleError(
            f"The tokenizer of {resolved.ref} has no vocabulary.",
            f"{type(tokenizer).__name__} finds none in its files ({', '.join(files) or 'there are none'}).",
            f"Put the model's own {ORIGINAL} beside its weights.",
        )
    return tokenizer, {"files": files, "named": named, "loaded": type(tokenizer).__name__}


def tokenize(tokenizer: Any, texts: TextSet, *, split: bool = False, template: Template | None = None) -> Tokens:
    """All texts with the tokenizer's own default special tokens, neither truncated nor padded; with offsets and spans
    where the tokenizer is a fast one. `split`: a string such as `<s>` in a text is text, not a special token.
    `template`: for a set with prompts; each response then stands behind its prompt, and has no special tokens.

    Raises KlscaleError for a text that has no tokens, and as `prompts.tokenized` does. Raises InputError for responses
    to prompts where there is no template.
    """
    assert texts.texts is not None
    if texts.prompts is not None and template is None:
        raise InputError(
            f"{texts.name} holds responses to prompts; here texts are read without prompts.",
            remedy="Give a set of plain texts.",
        )
    prompts = None if template is None else tokenized(tokenizer, texts, template)
    how: dict[str, Any] = {"truncation": False, "padding": False, "verbose": False}
    how["add_special_tokens"] = prompts is None
    if split or prompts is not None:
        how["split_special_tokens"] = True
    found = tokenizer(list(texts.texts), return_offsets_mapping=tokenizer.is_fast, **how)
    encoded = found["input_ids"]
    lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
    if (lengths == 0).any():
        empty = int(np.argmin(lengths))
        raise KlscaleError(
            f"Text {empty} of {texts.name} has no tokens under this tokenizer.",
            f"It reads {texts.texts[empty][:40]!r}.",
            "Leave that text out of the set.",
        )
    decoded = tokenizer.batch_decode(encoded, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    added = Counter(tokenizer("")["input_ids"] if prompts is None else ())
    special = _with_special_tokens(tokenizer, texts, encoded, added)
    if prompts is None and hasattr(tokenizer, "original"):
        sentencepiece_files.require_equal(tokenizer, texts, encoded, special)
    # A leading space is a tokenizer's own mark of a word's beginning: adding or dropping one loses nothing else.
    lost = Counter(
        "special tokens" if s in special else loss_of(text, back, tokenizer.unk_token_id in encoded[s])
        for s, (back, text) in enumerate(zip(decoded, texts.texts, strict=True))
        if back != text and back.removeprefix(" ") != text.removeprefix(" ")
    )
    flat = np.fromiter((i for ids in encoded for i in ids), dtype=np.int32, count=int(lengths.sum()))
    starts, not_round_trip = np.concatenate([[0], np.cumsum(lengths)]), lost.total() / len(lengths)
    counted: dict[str, Any] = {"lost": dict(lost.most_common()), "special": len(special)}
    if prompts is not None:
        counted["special"] = len(special | prompts.special)
    if not tokenizer.is_fast:
        tokens = Tokens(flat, starts, not_round_trip, **counted)
        return tokens if prompts is None else tokens.behind(prompts.ids)
    edges = chain.from_iterable(chain.from_iterable(found["offset_mapping"]))
    characters = np.fromiter(edges, dtype=np.int64, count=2 * len(flat)).reshape(-1, 2)
    begin, end = byte_offsets(texts.texts, starts, characters).T
    before = None if prompts is None else prompts.ids
    return Tokens.with_offsets(texts, flat, starts, not_round_trip, begin, end, before, **counted)


def _with_special_tokens(tokenizer: Any, texts: TextSet, encoded: list[list[int]], own: Counter[int]) -> set[int]:
    """The texts in which a string is read as a special token: they have more of it than the tokenizer adds itself,
    `own`."""
    assert texts.texts is not None
    special = special_tokens(tokenizer)
    if not special:
        return set()
    any_of, found = any_special(special), set[int]()
    for s, text in enumerate(texts.texts):
        if names := set(any_of.findall(text)):
            counts = Counter(encoded[s])
            if any(counts[n] > own[n] for n, name in special.items() if name in names):
                found.add(s)
    return found


def tokenizer_id(tokenizer: Any) -> str:
    """Equal for tokenizers that read every text alike. Of each it is found once: writing out a large vocabulary takes a
    tenth of a second or more."""
    if tokenizer not in _IDS:
        _IDS[tokenizer] = _id_of(tokenizer)
    return _IDS[tokenizer]


_IDS = weakref.WeakKeyDictionary[Any, str]()


def _id_of(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    body = (
        backend.to_str()
        if backend is not None
        else json.dumps([type(tokenizer).__name__, tokenizer.name_or_path, tokenizer.get_vocab()])
    )
    special = [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token", "bos_token", "eos_token")]
    return hashlib.sha256(f"{body}{special}".encode()).hexdigest()


class LastTokenizer:
    """Reads tokenizers. One whose files equal those of the last is not read again: the checkpoints of a run share
    theirs."""

    def __init__(self) -> None:
        self._last: tuple[frozenset[tuple[str, str]], tuple[Any, dict[str, Any]]] | None = None

    def read(self, resolved: ResolvedModel, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """As `read_tokenizer`. Where the files are equal, those of the hub are fetched all the same: a commit of which
        the local cache holds only a part cannot be read offline."""
        model, where = resolved.base or resolved, Path(tokenizer_of(resolved))
        contents = None if model.ref.file else _contents(where, model)
        if contents is None:
            return read_tokenizer(resolved, options)
        last = self._last  # another thread may replace it
        if last is None or last[0] != contents:
            self._last = last = contents, read_tokenizer(resolved, options)
        elif model.hub is not None and not where.is_dir():
            for name, _ in contents:
                fetch(model.ref, model.hub, name)
        return last[1]


def _contents(where: Path, model: ResolvedModel) -> frozenset[tuple[str, str]] | None:
    """(name, content) of each file that a tokenizer may be read from; None where no file holds it whole, or where the
    hub does not tell."""
    hub = None if where.is_dir() else model.hub
    if hub is None or hub.offline:
        folder = where if hub is None else cache_folder(model.ref.name) / "snapshots" / hub.commit
        held = (path for path in folder.glob("*") if _may_be_read(path.name) and path.is_file())
        found = {path.name: file_digest(path).hex() for path in held}
    else:
        found = {name: content for name, (content, _) in (hub.blobs or {}).items() if _may_be_read(name)}
    return frozenset(found.items()) if ORIGINAL in found else None


def _may_be_read(name: str) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in (*READ_WITH_TOKENIZER, CHAT_TEMPLATE))


class TokenCache:
    """Tokens of the last few tokenizers, so that the checkpoints of a run are prepared for once."""

    def __init__(self, size: int = 4) -> None:
        self._size, self._kept = size, dict[tuple[Any, ...], Tokens]()

    def get(self, tokenizer: Any, texts: TextSet, *, split: bool = False, template: Template | None = None) -> Tokens:
        """All texts as this tokenizer reads them, as `tokenize` has it."""
        own = repr(tokenizer.chat_template) if template is not None and template.kind == "own" else ""
        key = texts.id, tokenizer_id(tokenizer), split, template, own
        if key not in self._kept:
            self._kept[key] = tokenize(tokenizer, texts, split=split, template=template)
            if len(self._kept) > self._size:
                del self._kept[next(iter(self._kept))]
        return self._kept[key]
