"""Tokenizers: what a file holds is what is read, whatever class it names; what a text loses; special-token strings."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from conftest import byte_tokenizer, plain_log_likelihoods
from klscale.errors import KlscaleError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import Progress
from klscale.sources.source import SPLIT
from klscale.sources.transformers.files import ResolvedModel
from klscale.sources.transformers.tokens import LastTokenizer, read_tokenizer, tokenize
from klscale.store.store import Store
from klscale.sweep.score import score

CORPUS = ["Hello world, it's 1234 o'clock  now\n\n  indented()\r\n", "the quick brown fox " * 3, "naïve café 日本"] * 9
STRANGE = [*CORPUS[:3], " leading", "  two", " \n x", "a</s> b", "x <|endoftext|>y", "1234567", "tail  ", "ﬁne ２３"]


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    made.train_from_iterator(CORPUS, trainer)
    return made


def sentence_pieces() -> Tokenizer:
    """As the files of Llama 2 have it: a space before each text, and characters without a token as bytes."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_of = [f"<0x{value:02X}>" for value in range(256)]
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *bytes_of])
    )
    record = json.loads(made.to_str())
    record["added_tokens"] = record["added_tokens"][:3]
    made = Tokenizer.from_str(json.dumps(record))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def saved(folder, named, kind="llama"):
    """A directory with a configuration and the class that a tokenizer is said to be of; as a pinned model."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named} if named else {}))
    return ResolvedModel(ModelRef(str(folder)), "files:0")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "deepseek_v2"])
@pytest.mark.parametrize("named", [None, "LlamaTokenizer", "GPT2Tokenizer", "T5Tokenizer", "NoSuchTokenizer"])
@pytest.mark.parametrize("made", [byte_level, sentence_pieces])
def test_whatever_class_is_named_the_file_is_read(tmp_path, made, named, kind):
    original, pinned = made(), saved(tmp_path / "m", named, kind)
    original.save(str(tmp_path / "m" / "tokenizer.json"))
    tokenizer, how = read_tokenizer(pinned, {"local_files_only": True})
    assert [tokenizer(text)["input_ids"] for text in STRANGE] == [original.encode(text).ids for text in STRANGE]
    assert how["named"] == named
    assert how["files"] == ["tokenizer.json"]
    assert tokenize(tokenizer, TextSet.from_texts("plain", STRANGE[:6])).not_round_trip == 0


def test_without_a_whole_file_a_class_reads_the_same(tmp_path):
    original, pinned = byte_level(), saved(tmp_path / "m", "GPT2Tokenizer", "gpt2")
    original.model.save(str(tmp_path / "m"))
    tokenizer, how = read_tokenizer(pinned, {"local_files_only": True})
    assert how == {"files": ["vocab.json", "merges.txt"], "named": "GPT2Tokenizer", "loaded": "GPT2Tokenizer"}
    assert [tokenizer(text)["input_ids"] for text in STRANGE] == [original.encode(text).ids for text in STRANGE]


def test_checkpoints_share_a_tokenizer_where_its_files_are_equal(tmp_path):
    tokenizers = LastTokenizer()

    def read(name, template=None, kind="llama", **config):
        pinned = saved(tmp_path / name, None, kind)
        byte_level().save(str(tmp_path / name / "tokenizer.json"))
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config))
        if template:
            (tmp_path / name / "chat_template.jinja").write_text(template)
        return tokenizers.read(pinned, {"local_files_only": True})

    first, how = read("a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "trainer_state.json").write_text("{}")  # no part of a tokenizer
    assert read("b") == (first, how)
    last = first
    for name, other in (("c", {"kind": "qwen2"}), ("d", {"template": "{{ messages }}"}), ("e", {"bos_token": "<s>"})):
        tokenizer, _ = read(name, **other)
        assert tokenizer is not last
        last = tokenizer
    changed, _ = read("a", "{{ messages }}")
    assert changed.chat_template == "{{ messages }}", "files that changed since"


def test_a_class_that_finds_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(KlscaleError, match="has no vocabulary"):
        read_tokenizer(saved(tmp_path / "m", "LlamaTokenizer"), {"local_files_only": True})


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Trains a `tokenizer.model` of SentencePiece, and reads it: (tokenizer, SentencePiece's own processor)."""
    trainer = pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install 'klscale[sentencepiece]'")
    place = tmp_path_factory.mktemp("pieces")
    lines = [line for text in CORPUS[:3] for line in text.splitlines()]
    (place / "corpus.txt").write_text("\n".join([*lines, "one two three", "a an and", "lead leading"] * 30))

    def made(named="LlamaTokenizer", config=None, **options):
        folder = place / f"m{len([*place.iterdir()])}"
        pinned = saved(folder, named)
        trainer.SentencePieceTrainer.train(
            input=str(place / "corpus.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=330, minloglevel=2,
            hard_vocab_limit=False, **{"byte_fallback": True, "normalization_rule_name": "identity", **options},
        )  # fmt: skip
        (folder / "tokenizer.vocab").unlink()
        if config:
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer, how = read_tokenizer(pinned, {"local_files_only": True})
        assert how["files"] == ["tokenizer.model"]
        return tokenizer, trainer.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))

    return made


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("prefix", [True, False], ids=["a space in front", "none"])
@pytest.mark.parametrize("collapsed", [True, False], ids=["spaces collapsed", "kept"])
@pytest.mark.parametrize("named", ["LlamaTokenizer", "GemmaTokenizer"])
def test_a_sentencepiece_file_is_read_by_what_it_holds(pieces, kind, prefix, collapsed, named):
    """The class that it names has defaults of its own; the file decides."""
    tokenizer, original = pieces(
        named, model_type=kind, add_dummy_prefix=prefix, remove_extra_whitespaces=collapsed,
        user_defined_symbols="<|im_start|>",
    )  # fmt: skip
    texts = [text for text in STRANGE if "</s>" not in text] + ["日本語 ½ é", "\n\nnew"]
    if not prefix and not collapsed:  # beside a symbol both are done once more, and such a text is refused
        texts.append("a <|im_start|> b")
    for text in texts:
        assert tokenizer(text)["input_ids"] == [original.bos_id(), *original.encode(text)]
    kept = tokenize(tokenizer, TextSet.from_texts("plain", ["one two", "Hello world"]))
    assert kept.not_round_trip == 0


def test_special_and_added_tokens_of_a_sentencepiece_file(pieces):
    config = {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": True,
        "added_tokens_decoder": {"100000": {"content": "<extra>", "special": True}},
    }  # fmt: skip
    with pytest.raises(KlscaleError, match="should have the id 100000"):
        pieces(config=config)
    tokenizer, original = pieces(config={**config, "added_tokens_decoder": {}})
    assert tokenizer("one two")["input_ids"] == [*original.encode("one two"), original.eos_id()]
    assert tokenizer.eos_token == "</s>"


def test_a_sentencepiece_file_needs_its_package(tmp_path, monkeypatch):
    pinned = saved(tmp_path / "m", "LlamaTokenizer")
    (tmp_path / "m" / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(KlscaleError, match="of SentencePiece") as raised:
        read_tokenizer(pinned, {"local_files_only": True})
    assert raised.value.remedy == "pip install 'klscale[sentencepiece]'"


def test_what_sentencepiece_reads_otherwise_is_refused(pieces):
    """It normalizes each character of a cluster, the library of fast tokenizers the cluster as one."""
    tokenizer, original = pieces(
        model_type="unigram", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=False
    )
    texts = TextSet.from_texts("plain", ["ﬁne ＡＢ", "tail  "])
    for s, text in enumerate(texts.texts):
        assert tokenize(tokenizer, texts).of(s).tolist() == [original.bos_id(), *original.encode(text)]
    with pytest.raises(KlscaleError, match="1 of 2 texts of lines become other tokens than under SentencePiece"):
        tokenize(tokenizer, TextSet.from_texts("lines", ["one", "two\r\nthree"]))


# ---------------------------------------------------------------------------------------------------- special tokens


@pytest.mark.parametrize("made", [byte_level, sentence_pieces])
def test_strings_of_special_tokens_are_counted_and_split(tmp_path, made):
    original, pinned = made(), saved(tmp_path / "m", None)
    original.save(str(tmp_path / "m" / "tokenizer.json"))
    tokenizer, _ = read_tokenizer(pinned, {"local_files_only": True})
    name = "<|endoftext|>" if made is byte_level else "</s>"
    texts = TextSet.from_texts("strings", ["plain", f"before {name} after", name * 2, f"{name[:-1]} >", "plain <b>"])
    as_they_are, split = tokenize(tokenizer, texts), tokenize(tokenizer, texts, split=True)
    number = original.token_to_id(name)
    assert [list(as_they_are.of(s)).count(number) for s in range(5)] == [0, 1, 2, 0, 0]
    assert (as_they_are.special, as_they_are.lost) == (2, {"special tokens": 2})
    assert number not in split.ids
    assert (split.special, split.lost, split.not_round_trip) == (0, {}, 0)
    assert [list(split.of(s)) for s in (0, 3, 4)] == [list(as_they_are.of(s)) for s in (0, 3, 4)]


class Notes(Progress):
    def __init__(self):
        self.said = []

    def note(self, message):
        self.said.append(message)


def test_both_readings_are_kept_and_never_mixed(make_model, tmp_path):
    model, store, notes = make_model(bos=True), Store(tmp_path / "store"), Notes()
    written = ["one text", "with <s> inside", "and a third"]
    texts = TextSet.from_texts("strings", written)
    (plain,) = score([str(model)], texts, store, progress=notes)
    assert any("in 1 texts a string such as <s>" in note and "--split-special-tokens" in note for note in notes.said)
    (split,) = score([str(model)], texts, store, split_special_tokens=True)
    assert [plain.status, split.status] == ["scored", "scored"]
    assert plain.entry.key != split.entry.key
    assert [one.entry.metadata["special_token_texts"] for one in (plain, split)] == [1, 0]
    assert split.entry.metadata["convention"] == plain.entry.metadata["convention"] + SPLIT
    assert split.entry.metadata["tokenizer"]["files"] == ["tokenizer.json"]
    read = [store.scores(one.entry).log_likelihood for one in (plain, split)]
    np.testing.assert_allclose(read[0], plain_log_likelihoods(model, texts), atol=1e-3)
    assert (abs(read[0] - read[1]) < 1e-3).tolist() == [True, False, True]
    for options, there in (({}, plain), ({"split_special_tokens": True}, split)):
        (again,) = score([str(model)], texts, store, **options)
        assert (again.status, again.entry.key) == ("present", there.entry.key)


# ------------------------------------------------------------------------------------------------- what a text loses


@pytest.mark.parametrize(
    ("normalizer", "text", "loss"),
    [
        (normalizers.Lowercase(), "One Capital", "letter case"),
        (normalizers.NFKC(), "ﬁne ２３", "Unicode normalization (NFKC)"),
        (normalizers.NFC(), "cafe\u0301", "Unicode normalization (NFC)"),
        (normalizers.Replace("\r\n", "\n"), "two\r\nlines", "line ends"),
        (normalizers.Replace("  ", " "), "two  spaces", "white space"),
        (normalizers.Replace("x", ""), "without x", "other"),
    ],
)
def test_what_a_text_loses_is_named(normalizer, text, loss):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizer
    tokens = tokenize(tokenizer, TextSet.from_texts("cases", ["nothing lost", text]))
    assert (tokens.lost, tokens.not_round_trip) == ({loss: 1}, 0.5)


def test_unknown_characters_are_named():
    from transformers import PreTrainedTokenizerFast

    original = Tokenizer(models.WordLevel({"<unk>": 0, "known": 1, "words": 2}, unk_token="<unk>"))
    original.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=original, unk_token="<unk>")
    tokens = tokenize(tokenizer, TextSet.from_texts("cases", ["known words", "known others"]))
    assert tokens.lost == {"unknown characters": 1}
