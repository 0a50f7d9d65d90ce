"""The seam: references to sources, what a source must give, what is refused; the mock source, whose KL is exact."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from conftest import write_texts
from klscale.errors import InputError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet, load_texts
from klscale.sources.mock import PAIRS, Chain, Parameters, exact_kl, tokenize, vocabulary
from klscale.sources.source import SOURCES, ReaderOptions, Sources
from klscale.store.store import Store
from klscale.studies.calibration import calibrate
from klscale.studies.noise import noise_study
from klscale.sweep.repeat_noise import noise_texts
from klscale.sweep.score import score
from klscale.vectors.scores import Scores
from klscale.vectors.vectors import CONVENTION
from mocks import plain_mock


@pytest.fixture
def texts(tmp_path) -> TextSet:
    return load_texts(write_texts(tmp_path / "texts.jsonl", 60))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


# ------------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("text", "name", "quantization", "dtype"),
    [
        ("mock://7", "mock://7", None, ""),
        ("mock://7?shift=0.1&window=9+nf4%bfloat16", "mock://7?shift=0.1&window=9", "nf4", "bfloat16"),
        ("mock://7%float32", "mock://7", None, "float32"),
        ("http://host:8000/v1#model", "http://host:8000/v1#model", None, ""),
        ("http://host:8000/v1#3", "http://host:8000/v1#3", None, ""),
        ("https://u@host/v1?a=%2f#org/m", "https://u@host/v1?a=%2F#org/m", None, ""),
        ("llamacpp://dir/model.q4.gguf", "llamacpp://dir/model.q4.gguf", None, ""),
        ("llamacpp:///a%20b%bfloat16", "llamacpp:///a%20b", None, "bfloat16"),
    ],
)
def test_an_address_belongs_to_its_source(text, name, quantization, dtype):
    ref = ModelRef.parse(text)
    assert (ref.name, ref.quantization, ref.dtype) == (name, quantization, dtype)
    assert (ref.revision, ref.file, ref.layer, ref.path) == (None, None, None, None)
    assert ref.scheme == text.split(":")[0]
    assert ModelRef.parse(str(ref)) == ref
    assert ref.run == name
    assert "/" not in ref.slug


@pytest.mark.parametrize(
    "name", ["http://x y+z", "mock://7%float32", "mock://7%bfloat16", "mock://ü$(ls)", "http://a'b"]
)
def test_any_name_that_is_an_address_is_printed_as_one(name):
    ref = ModelRef(name)
    assert ModelRef.parse(str(ref)) == ref
    assert not {*str(ref)} & {*" +$()'"}


def test_plain_names_are_read_as_before():
    assert ModelRef.parse("gpt2#3") == ModelRef("gpt2", layer=3)
    assert ModelRef.parse("./models:x.gguf") == ModelRef("./models", file="x.gguf")
    assert ModelRef("gpt2").dtype == "float32"
    assert str(ModelRef.parse("gpt2%float32")) == "gpt2"
    with pytest.raises(InputError, match="is not a model"):
        ModelRef.parse("mock://")


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("mock://1+nf4", ["the source mock has no quantization nf4", "no choice of quantization", "Give mock://1"]),
        ("mock://1%float32", ["the source mock has no dtype float32", "no choice of dtype"]),
        ("moc://1", ["there is no source of the scheme 'moc'", "Did you mean 'mock'?"]),
        ("mock://one", ["'one' is not a seed"]),
        ("mock://1?shfit=1", ["no option 'shfit'", "Did you mean 'shift'?"]),
        ("mock://1?shift=far", ["shift=far is not a number"]),
        ("mock://1?window=1", ["out of range"]),
        ("mock://1?tokens=words", ["tokens=words is not known"]),
    ],
)
def test_what_a_source_does_not_know_is_refused(ref, words, texts, store):
    (outcome,) = score([ref], texts, store)
    assert isinstance(outcome.error, InputError)
    assert all(word in str(outcome.error) for word in words), outcome.error


def test_capabilities_are_asked_for_by_name(texts, store):
    (outcome,) = score(["mock://1"], texts, store, layers=True)
    assert "the source mock has no layers" in str(outcome.error)
    assert "It offers: next-token probabilities, repeat runs, sampled tokens." in outcome.error.why
    sources, ref = Sources(), ModelRef.parse("mock://1")
    with pytest.raises(InputError, match="no layers"):
        sources.open(sources.pin(ref), ReaderOptions(parts=frozenset({"layers"})))
    with pytest.raises(InputError, match="no weights in memory"):
        sources.open(sources.pin(ref)).weights()


# --------------------------------------------------------------------------------------------------- one more source

COIN = '''
"""Every bit of a text is as probable as the other."""

import math

import numpy as np

from klscale.sources.source import Pinned, Reader, Source, within_window
from klscale.vectors.scores import Scores


class Coin(Source):
    name = "coin"
    dtypes = ("float16", "bfloat16")

    def pin(self, ref):
        return Pinned(ref, f"coin {ref.name}")

    def open(self, pinned, options, *, alone=None):
        return CoinReader(self, pinned, options)


class CoinReader(Reader):
    def score(self, texts, positions):
        for s in positions:
            size = np.array([texts.bytes[s]])
            yield Scores(np.array([s]), -8 * math.log(2) * size, size)

    def facts(self, texts):
        return {"dtype": self.ref.dtype, "device": "none", "window": None, "not_round_trip": 0.0, "versions": {}}
'''


def test_a_source_is_one_file_and_one_line(texts, store, tmp_path, monkeypatch):
    (tmp_path / "coin_source.py").write_text(COIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SOURCES, "coin", "coin_source:Coin")
    refs = ["coin://penny", "coin://penny%float16", "mock://1"]
    assert [outcome.status for outcome in score(refs, texts, store)] == ["scored"] * 3
    assert [outcome.status for outcome in score(refs, texts, store)] == ["present"] * 3
    vectors = store.vectors(texts)
    assert vectors.attributes["dtype"].tolist() == ["", "float16", "float64"]
    assert vectors.bits_per_byte("coin://penny").value == pytest.approx(8, rel=1e-12)
    assert [entry.metadata["source"] for entry in store.entries(texts.id)] == ["coin", "coin", "mock"]
    assert not [problem for _, problem in store.check() if problem]
    assert store.noise_floor(texts.id, store.entries(texts.id)[0].key) is None, "it has no repeat runs"
    outcomes = score(["coin://penny%float32", "coin://penny+int8"], texts, store)
    assert "It knows: float16, bfloat16." in str(outcomes[0].error)
    assert "no quantization int8" in str(outcomes[1].error)
    (study,) = noise_study(["coin://penny"], texts, store)
    assert "the source coin has no repeat runs" in str(study.error)
    with pytest.raises(InputError, match="no next-token probabilities"):
        calibrate([("coin://penny", "mock://1")], texts, store)


def test_the_source_is_part_of_the_key(make_model, texts, store):
    """By the formula that stores rely on, with a hash of its own."""
    directory = str(make_model())
    for outcome, source, dtype in zip(score([directory, "mock://3"], texts, store), ["transformers", "mock"],
                                      ["float32", ""], strict=True):  # fmt: skip
        metadata = outcome.entry.metadata
        parts = [metadata["identity"], "", dtype, "", CONVENTION, source]
        assert metadata["key"] == hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


# ---------------------------------------------------------------------------------------------------- the mock source


@pytest.mark.parametrize("kind", ["bytes", "pairs"])
def test_tokens_of_a_mock_cover_the_text_from_their_offsets(kind):
    texts = TextSet.from_texts("t", ["the end er", "é – th", "x"])
    tokens, words = tokenize(texts, kind), vocabulary(kind)
    for s, text in enumerate(texts.texts):
        ids, begins = tokens.of(s), tokens.offsets[tokens.starts[s] : tokens.starts[s + 1]]
        assert (ids[0], begins[0]) == (len(words), 0), "the start"
        for token, begin in zip(ids[1:], begins[1:], strict=True):
            assert text.encode()[begin:].startswith(words[token])
        assert b"".join(words[token] for token in ids[1:]) == text.encode()
        assert begins[1:].tolist() == [sum(len(words[token]) for token in ids[1:n]) for n in range(1, len(ids))]
    assert (tokens.lengths < texts.bytes + 1).tolist() == [kind == "pairs", kind == "pairs", False]
    short = tokens.cut(3)
    assert short.lengths.tolist() == [3, 3, 2]
    assert [short.of(s).tolist() for s in range(3)] == [tokens.of(s)[:3].tolist() for s in range(3)]
    assert short.offsets[short.starts[1] : short.starts[2]].tolist() == tokens.offsets[tokens.starts[1] :][:3].tolist()
    assert len({*PAIRS}) == len(PAIRS)


def test_a_mock_is_scored_as_a_plain_loop_does(texts, store):
    refs = ["mock://1", "mock://1?shift=0.05"]
    outcomes = score(refs, texts, store, batch_tokens=200)
    assert [outcome.status for outcome in outcomes] == ["scored"] * 2
    vectors = store.vectors(texts)
    for ref, row in zip(refs, vectors.log_likelihood, strict=True):
        np.testing.assert_allclose(row, plain_mock(ref, texts), rtol=1e-12)
    assert vectors.attributes["seed"].tolist() == [1, 1]
    assert vectors.attributes["parent"].tolist() == [None, "mock://1"]


def test_exact_kl_of_mocks_is_that_over_all_texts():
    """By every text of two tokens."""
    a, b = (Chain.of(Parameters(1, shift)) for shift in (0.0, 0.3))
    p, q = (chain.p[-1][:, None] * chain.p[:-1] for chain in (a, b))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert exact_kl("mock://1", "mock://1?shift=0.3", 2) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-10)
    assert exact_kl("mock://1", "mock://1", 5) == 0
    near, far = (exact_kl("mock://1", f"mock://1?shift={shift}", 50) for shift in (0.01, 0.02))
    assert far / near == pytest.approx(4, rel=0.02), "KL grows with the square of a small shift"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "pairs"])
def test_calibration_of_mocks_finds_their_exact_kl(kind, store):
    """Exact KL along drawn texts against that over all texts of the same lengths."""
    letters = np.random.default_rng(0).choice(list("the cat sat on "), (400, 60))
    texts = TextSet.from_texts("drawn", ["".join(row) for row in letters])
    refs = [f"mock://1?tokens={kind}", f"mock://1?tokens={kind}&shift=0.1"]
    score(refs, texts, store)
    (found,) = calibrate([tuple(refs)], texts, store, n_texts=400)
    tokens = tokenize(texts, kind)
    chains = [Chain.of(Parameters(1, shift, tokens=kind)) for shift in (0.0, 0.1)]
    for n, (drawn, (p, q)) in enumerate(((found.from_a, chains), (found.from_b, chains[::-1]))):
        # A drawn text begins as its text does; the KL of the first token is counted all the same.
        after, expected = p.kl_after(q), 0.0
        for s in range(len(texts)):
            context, ids = np.zeros(len(after)), tokens.of(s)
            expected += after[ids[0]]
            context[ids[1]] = 1.0
            for _ in ids[2:]:
                expected += context @ after
                context = np.append(context @ p.p, 0.0)
        nats = found.sums.drawn_exact[n]
        assert nats.sum() == pytest.approx(expected, abs=4 * nats.std() * math.sqrt(len(nats)))
        assert nats.sum() == pytest.approx(expected, rel=0.05)
        assert drawn.ratio.value == pytest.approx(1, abs=4 * drawn.ratio.standard_error)


def test_repeat_runs_of_a_mock_differ_by_its_noise(texts, store):
    outcomes = score(["mock://1?noise=0.01", "mock://2"], texts, store)
    noisy, quiet = (store.noise_floor(texts.id, outcome.entry.key) for outcome in outcomes)
    assert quiet.value == 0
    chosen = noise_texts(np.arange(len(texts)))
    expected = 0.01**2 / (2 * texts.bytes[chosen].mean() * math.log(2))
    assert noisy.value == pytest.approx(expected, abs=4 * expected * math.sqrt(2 / len(chosen)))
    (study,) = noise_study(["mock://1?noise=0.01"], texts, store, n_texts=50)
    assert [reading.reading for reading in study.readings] == [
        "mock, other batches", "mock, other order", "mock, other batches and order",
    ]  # fmt: skip
    assert len({reading.kl.value for reading in study.readings}) == 3


def test_a_window_of_a_mock(store):
    texts = TextSet.from_texts("mixed", ["a" * 30, "b" * 31, "c" * 40])
    ref = "mock://1?window=32"
    (outcome,) = score([ref], texts, store)
    assert "1 texts are longer than the window" in str(outcome.error)
    (outcome,) = score([ref], texts, store, long_texts="skip")
    assert outcome.entry.metadata["skipped"] == [2]
    (outcome,) = score([ref], texts, store, long_texts="window")
    assert outcome.entry.metadata["convention"] == f"{CONVENTION}; half-overlapping windows"
    np.testing.assert_allclose(store.scores(outcome.entry).log_likelihood, plain_mock(ref, texts), rtol=1e-12)


@pytest.mark.slow
def test_mocks_need_no_torch(tmp_path):
    """`score` and `compare` from start to end."""
    write_texts(tmp_path / "my.jsonl")
    program = """
import sys
from typer.testing import CliRunner
from klscale.cli import app
run = CliRunner().invoke
assert run(app, ["score", "mock://1", "mock://2", "--texts", "my.jsonl"]).exit_code == 0
result = run(app, ["compare", "mock://1", "mock://2", "mock://1?shift=0.01", "--texts", "my.jsonl", "--json"])
assert "torch" not in sys.modules and "transformers" not in sys.modules
print(result.stdout)
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    records = json.loads(result.stdout)
    texts = load_texts(tmp_path / "my.jsonl")
    difference = plain_mock("mock://1", texts) - plain_mock("mock://2", texts)
    expected = difference.var() / (2 * texts.bytes.mean() * math.log(2))
    assert records[0]["whole_texts_kl"] == pytest.approx(expected, rel=1e-9)
    assert records[1]["kl"] < records[0]["kl"] / 10


def test_blocks_of_a_mock_keep_their_budget(texts):
    sources = Sources()
    reader = sources.open(sources.pin(ModelRef.parse("mock://1")), ReaderOptions(batch_tokens=200))
    blocks = [*reader.score(texts, np.arange(len(texts)))]
    assert len(blocks) > 5
    assert all(block.n_tokens.sum() <= 200 for block in blocks)
    whole = Scores.concatenate(blocks)
    assert whole.text.tolist() == [*range(len(texts))]
    assert whole.n_tokens.tolist() == (texts.bytes + 1).tolist()
