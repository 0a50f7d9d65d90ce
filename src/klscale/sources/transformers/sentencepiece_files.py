"""A `tokenizer.model` of SentencePiece read as it is, where no `tokenizer.json` stands beside it.

The classes of transformers take the vocabulary from such a file and everything else from their own defaults: whether a
space is put in front, how texts are normalized, even whether pieces are merged (BPE) or chosen (unigram). Here all of
it comes from the file, and every text is compared with what SentencePiece itself makes of it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from klscale.errors import KlscaleError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet

FILE = "tokenizer.model"
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
"""What else decides how texts are read: special tokens, and whether they are put in front or behind."""
SPACE = "\u2581"
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Kinds of pieces."""
UNIGRAM, BPE = 1, 2
"""Kinds of models."""
LONGEST = 1_000
"""Characters of a piece. Real ones have up to a hundred; the pairs that make a piece are as many as its characters."""


def is_sentencepiece(file: Path) -> bool:
    """Whether it is a model of SentencePiece: other tokenizers use the same name for lines of base64 or JSON."""
    with file.open("rb") as opened:
        return opened.read(1) == b"\n"  # field 1 of a protocol buffer, the first piece


def read(ref: ModelRef, files: dict[str, Path]) -> Any:
    """A fast tokenizer that cuts texts as SentencePiece does with this file; `files` by name. `original` is
    SentencePiece's own processor, and `around` how many special tokens stand before and behind a text, for
    `require_equal`.

    Raises KlscaleError where sentencepiece or protobuf is missing, and for a model that is neither BPE nor unigram, one
    that takes spaces for suffixes, or added tokens whose ids are not those of the file.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
    from transformers import TokenizersBackend

    try:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    except ImportError as error:
        raise KlscaleError(
            f"The tokenizer of {ref} is a {FILE} of SentencePiece.",
            f"It is read by the packages sentencepiece and protobuf, which are not here ({error}).",
            "pip install 'klscale[sentencepiece]'",
        ) from error
    content = files[FILE].read_bytes()
    found = sentencepiece_model_pb2.ModelProto.FromString(content)
    trained, normalizer, pieces = found.trainer_spec, found.normalizer_spec, found.pieces
    unknown, model = pieces[trained.unk_id].piece, cast(Any, None)
    if trained.model_type == UNIGRAM:
        scored = [(piece.piece, piece.score) for piece in pieces]
        model = models.Unigram(scored, trained.unk_id, trained.byte_fallback)
    elif trained.model_type == BPE:
        ids = {piece.piece: n for n, piece in enumerate(pieces)}
        how = {"unk_token": unknown, "fuse_unk": True, "byte_fallback": trained.byte_fallback}
        model = models.BPE(ids, _merges(pieces, ids), **how)
    if (
        model is None
        or max(len(piece.piece) for piece in pieces) > LONGEST
        or trained.treat_whitespace_as_suffix
        or found.denormalizer_spec.name
    ):
        raise KlscaleError(
            f"The tokenizer of {ref} cannot be read from its {FILE} alone.",
            "It is neither BPE nor unigram, takes spaces for suffixes, normalizes what it decodes, or has a piece of "
            f"more than {LONGEST:,} characters.",
            "Put the model's own tokenizer.json beside its weights.",
        )
    tokenizer = Tokenizer(model)
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if (charsmap := normalizer.precompiled_charsmap) else []
    if normalizer.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(around), within) for around, within in ((" {2,}", " "), (r"\A | \z", ""))]
    if normalizer.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if normalizer.add_dummy_prefix else []
    decode = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(decode)
    tokenizer.add_tokens([
        AddedToken(piece.piece, normalized=False, special=piece.type == CONTROL)
        for piece in pieces if piece.type in (CONTROL, USER_DEFINED)
    ])  # fmt: skip

    settings = {name: json.loads(files[name].read_text()) for name in BESIDE[:3] if name in files}
    config = settings.get("tokenizer_config.json", {})
    for token, n in _added(settings):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != n:
            raise KlscaleError(
                f"The tokenizer of {ref} cannot be read from its {FILE}.",
                f"The added token {token.content!r} should have the id {n}, which is not the next one.",
                "Put the model's own tokenizer.json beside its weights.",
            )
    # What the classes that read such files do where their files do not say.
    around = {"bos": config.get("add_bos_token", True), "eos": config.get("add_eos_token", False)}
    named = {n: _content(config.get(f"{n}_token")) or pieces[getattr(trained, f"{n}_id")].piece for n in around}
    used = {n: named[n] for n, there in around.items() if there}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(filter(None, [used.get("bos"), "$A", used.get("eos")])),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in used.values()],
    )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(str(Path(folder, "tokenizer.json")))
        for name in BESIDE:
            if name in files:
                shutil.copyfile(files[name], Path(folder, name))
        made = TokenizersBackend.from_pretrained(
            folder,
            trust_remote_code=False,
            local_files_only=True,
            **{f"{n}_token": token for n, token in named.items()},
        )
    made.backend_tokenizer.post_processor = tokenizer.post_processor
    made.original = SentencePieceProcessor(model_proto=content)
    made.around = tuple(int(n in used) for n in around)
    return made


def require_equal(tokenizer: Any, texts: TextSet, encoded: Sequence[list[int]], special: set[int]) -> None:
    """Raises KlscaleError where a text has become other tokens (`encoded`) than under SentencePiece itself, which
    normalizes some sequences of characters that belong together (an accent after its letter, a carriage return before a
    line feed) one by one. `special`: texts in which a string is read as a special token, as SentencePiece does not."""
    assert texts.texts is not None
    plain = [s for s in range(len(texts.texts)) if s not in special]
    before, behind = tokenizer.around
    original = tokenizer.original.encode([texts.texts[s] for s in plain])
    found = (encoded[s][before : len(encoded[s]) - behind] for s in plain)
    differ = [s for s, one, other in zip(plain, found, original, strict=True) if one != other]
    if differ:
        raise KlscaleError(
            f"{len(differ)} of {len(texts.texts)} texts of {texts.name} become other tokens than under SentencePiece.",
            f"The first is text {differ[0]}, {texts.texts[differ[0]][:40]!r}.",
            "Put the model's own tokenizer.json beside its weights, or leave these texts out of the set.",
        )


def _merges(pieces: Any, ids: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs that make each piece, the piece with the highest score first."""
    made = [
        (-piece.score, n, ids[piece.piece[:cut]], piece.piece[:cut], piece.piece[cut:])
        for n, piece in enumerate(pieces)
        if piece.type in (NORMAL, USER_DEFINED)
        for cut in range(1, len(piece.piece))
        if piece.piece[:cut] in ids and piece.piece[cut:] in ids
    ]
    return [(left, right) for *_, left, right in sorted(made)]


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _added(settings: dict[str, Any]) -> list[tuple[Any, int]]:
    """Tokens that are added to those of the file, in the order of their ids."""
    from tokenizers import AddedToken

    flags = ("lstrip", "rstrip", "normalized", "special", "single_word")
    decoder = settings.get("tokenizer_config.json", {}).get("added_tokens_decoder", {})
    found = {
        int(n): AddedToken(token["content"], **{flag: bool(token.get(flag, False)) for flag in flags})
        for n, token in decoder.items()
    }
    for token, n in settings.get("added_tokens.json", {}).items():
        found.setdefault(int(n), AddedToken(token, normalized=False))
    return [(found[n], n) for n in sorted(found)]
