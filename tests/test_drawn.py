"""Texts drawn from a model, and KL from it to others: against enumeration of all texts, exact next-token KL, and plain
loops over the models' own logits."""

from __future__ import annotations

import itertools
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, PreTrainedTokenizerFast

from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ModelRef
from klscale.inputs.spans import cut_texts
from klscale.inputs.texts import TextSet, load_texts
from klscale.science.drawn import LOG_RATIOS
from klscale.science.reported import SAMPLED_TOKENS
from klscale.sources.tokens import Tokens
from klscale.sources.transformers import next_token
from klscale.sources.transformers.engine import Engine
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load
from klscale.store.store import Store
from klscale.studies.verbs import draw
from klscale.studies.verbs.compare import compare
from klscale.studies.verbs.draw import draw_texts
from klscale.studies.verbs.options import Options

LETTERS, DRAWN = "abcde", 4
"""Of the toy models. Texts are `e` and four letters that are drawn."""
EVERY = ["e" + "".join(rest) for rest in itertools.product(LETTERS, repeat=DRAWN)]


def save_toy(directory, seed, merges=(), end=None):
    """A random transformer of five letters, of the `merges` of two of them, and perhaps of an `end` of text."""
    from tokenizers import Tokenizer, decoders, models

    words = [*LETTERS, *map("".join, merges), *([end] if end else [])]
    tokenizer = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=list(merges)))
    tokenizer.decoder = decoders.Fuse()
    config = GPTNeoXConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end).save_pretrained(directory)
    return str(directory)


def log_probabilities(directory, texts, begin):
    """Log-probability (N,) of each text's tokens from the place `begin` (N,) on, by the model's own logits."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    found = []
    with torch.no_grad():
        for text, place in zip(texts, begin, strict=True):
            ids = tokenizer(text)["input_ids"]
            offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            log_p = model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(dim=-1)
            found.append(sum(log_p[n - 1, ids[n]].item() for n in range(1, len(ids)) if offsets[n][0] >= place))
    return np.array(found)


@pytest.fixture
def make_writer(make_model):
    """Makes random models over bytes that write letters and spaces alone."""

    def make(name, seed, bos):
        directory = make_model(name, "phi, head bias", seed, bos)
        model, tokenizer = (kind.from_pretrained(directory) for kind in (AutoModelForCausalLM, AutoTokenizer))
        letters = tokenizer.convert_tokens_to_ids([*"abcdefgh", "Ġ"])
        with torch.no_grad():
            model.lm_head.bias[:] = -60.0
            model.lm_head.bias[letters] = 0.0
        model.save_pretrained(directory)
        return str(directory)

    return make


def prompts_of(path, *texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def near(estimate, value, spread=4.0):
    assert estimate.standard_error < 0.3 * abs(value), "too uncertain to tell anything"
    assert abs(estimate.value - value) < spread * estimate.standard_error
    return True


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """The author, a model of its tokenizer, and one whose tokens are pairs of letters too."""
    place = tmp_path_factory.mktemp("toys")
    pairs = [("a", "b"), ("c", "d")]
    return [save_toy(place / "p", 0), save_toy(place / "q", 1), save_toy(place / "pairs", 2, pairs)]


@pytest.mark.slow
def test_kl_from_the_author_is_that_of_all_texts(toys, tmp_path):
    """To a model of its tokenizer, and to one of another: sum p log p/q over all 625 texts, by their canonical
    tokens."""
    given = prompts_of(tmp_path / "prompts.jsonl", "e")
    drawn = draw_texts(toys[0], given, tmp_path / "store", whole_prompts=True, n_texts=1500, n_bytes=5)
    assert (drawn.changed, drawn.ended, len(drawn.texts)) == (0, 0, 1500)
    found = compare(toys, drawn.texts, tmp_path / "store", options=Options(sampled_tokens=1500))
    rows = [log_probabilities(directory, EVERY, [1] * len(EVERY)) for directory in toys]
    p = np.exp(rows[0])
    assert p.sum() == pytest.approx(1, abs=1e-6)
    author, near_one, other = found.vectors.names
    for name, row in ((near_one, rows[1]), (other, rows[2])):
        exact = float((p * (rows[0] - row)).sum()) / (DRAWN * math.log(2))
        kl = found.drawn[author, name]
        assert near(kl.log_ratios, exact)
        assert kl.by == (SAMPLED_TOKENS if name == near_one else LOG_RATIOS)
        assert near(kl.estimate, exact)
    assert found.drawn[author, near_one].estimate.standard_error < (
        0.7 * found.drawn[author, near_one].log_ratios.standard_error
    )
    assert set(found.drawn) == {(author, near_one), (author, other)}


def test_an_end_of_text_ends_a_text(tmp_path):
    """Texts against their probabilities: those that end at once are left out, and no text holds the end."""
    model = save_toy(tmp_path / "ends", 3, end="<end>")
    given = prompts_of(tmp_path / "prompts.jsonl", "e")
    drawn = draw_texts(model, given, tmp_path / "store", whole_prompts=True, n_texts=600, n_bytes=4)
    one = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    with torch.no_grad():
        first = one(torch.tensor([[4]])).logits[0, -1].softmax(-1)
        ends = {a: one(torch.tensor([[4, a]])).logits[0, -1].softmax(-1)[5].item() for a in range(5)}
    p = first[5].item()
    assert abs(drawn.ended - 600 * p) < 4 * math.sqrt(600 * p * (1 - p))
    short = sum(first[a].item() * ends[a] for a in ends)
    n_short = sum(len(text) == 2 for text in drawn.texts.texts)
    assert abs(n_short - 600 * short) < 4 * math.sqrt(600 * short * (1 - short))
    assert all(set(text) <= {*LETTERS} and len(text) <= 4 for text in drawn.texts.texts)


def test_a_prompt_does_not_count(make_writer, tmp_path):
    """Prompts of several tokens, with BOS in front and without: the drawn part alone, as a plain loop has it."""
    words = "the tree runs and the house of green wood is"
    given = prompts_of(tmp_path / "prompts.jsonl", *(f"{n} {words[: 9 * n]}" for n in range(2, 5)))
    models = [make_writer("author", 0, True), make_writer("like", 1, True), make_writer("plain", 2, False)]
    drawn = draw_texts(models[0], given, tmp_path / "store", whole_prompts=True, n_texts=30, n_bytes=48)
    texts = drawn.texts
    assert len(texts) == 30
    assert all(text.startswith(prompt) for text, prompt in zip(texts.texts, prompts(texts), strict=True))
    found = compare(models, texts, tmp_path / "store", options=Options(sampled_tokens=0))
    rows = [log_probabilities(model, texts.texts, [len(prompt) for prompt in prompts(texts)]) for model in models]
    size = (texts.bytes - texts.prompt_bytes).sum() * math.log(2)
    for name, row in zip(found.vectors.names[1:], rows[1:], strict=True):
        kl = found.drawn[found.vectors.names[0], name].estimate
        assert kl.value == pytest.approx((rows[0] - row).sum() / size, rel=1e-4)


def prompts(texts):
    return [text.encode()[:n].decode() for text, n in zip(texts.texts, texts.prompt_bytes, strict=True)]


def test_a_seed_draws_the_same_texts_in_any_batch(toys, tmp_path):
    given = prompts_of(tmp_path / "prompts.jsonl", "e", "abc")

    def drawn(seed, batch_tokens=None):
        made = draw_texts(
            toys[2], given, tmp_path / "store", whole_prompts=True, n_texts=40, n_bytes=9, seed=seed,
            options=Options(batch_tokens=batch_tokens),
        )  # fmt: skip
        return made.texts.texts

    assert drawn(1) == drawn(1, 40)
    assert drawn(1) != drawn(2)
    assert all(9 <= len(text) <= 10 for text in drawn(1)), "a text ends with the token that reaches the length"


def test_an_interrupted_drawing_goes_on(toys, tmp_path, monkeypatch):
    """Seven texts are drawn before Ctrl-C: the next call draws the others, and the set is that of one call."""
    given = prompts_of(tmp_path / "prompts.jsonl", "e", "abc")
    store = Store(tmp_path / "store")
    plain, calls = draw._ended, []

    def ended(*args, most):
        calls.append(args)
        if len(calls) > most:
            raise KeyboardInterrupt
        return plain(*args)

    def drawn(place, most=math.inf):
        calls.clear()
        monkeypatch.setattr(draw, "_ended", partial(ended, most=most))
        return draw_texts(toys[2], given, place, whole_prompts=True, n_texts=40, n_bytes=9).texts.id

    whole = drawn(tmp_path / "other")
    n_calls = len(calls)
    with pytest.raises(KeyboardInterrupt):
        drawn(store, 7)
    assert [problem for _, problem in store.check()] == [""]
    assert drawn(store) == whole
    assert len(calls) == n_calls - 7
    assert not store.files.list("drawing")
    assert len([*store.check()]) == 2

    with pytest.raises(KeyboardInterrupt):
        drawn(store, 7)
    (path,) = store.files.list("drawing")
    store.files.write(path, store.files.read(path)[:-40])
    assert sum(bool(problem) for _, problem in store.check()) == 1
    assert drawn(Store(store.location)) == whole
    assert len(calls) == n_calls, "a damaged file counts as not there"


@pytest.mark.parametrize("spread", [0, 2, 32])
def test_prompts_of_many_lengths_are_drawn_together(toys, spread, monkeypatch):
    """As each is alone, in as few batches as their lengths allow."""
    monkeypatch.setattr(next_token, "SPREAD", spread)
    engine = Engine(load(resolve(ModelRef.parse(toys[0]))))
    rows = [np.arange(n, dtype=np.int32) % 5 for n in (1, 3, 2, 5, 3, 4)]
    tokens, more = Tokens.from_rows(rows), np.array([6, 4, 5, 3, 7, 6])
    plain, calls = engine.model.generate, []
    monkeypatch.setattr(engine.model, "generate", lambda *args, **how: calls.append(args) or plain(*args, **how))
    found = next_token.sample_texts(engine, tokens, range(6), 3, 5, more=more)
    assert len(calls) == {0: 5, 2: 2, 32: 1}[spread]
    for n in range(6):
        own = next_token.sample_texts(engine, tokens, [n], 3, 5, more=more[n : n + 1]).of(0)
        assert found.of(n).tolist() == own.tolist()
        assert found.of(n)[: len(rows[n])].tolist() == rows[n].tolist()
        assert len(own) == len(rows[n]) + more[n]


def test_texts_begin_as_the_texts_of_a_set(make_writer, tmp_path):
    """With their first spans, and with their documents; a text that has one span alone begins none."""
    long = [f"one text of some {n} words and then some more of them, as it goes on and on" for n in range(6)]
    given = TextSet.from_texts("given", [*long, "short"], document=(*"aabbcc", "d"))
    drawn = draw_texts(make_writer("author", 0, False), given, tmp_path / "store", n_texts=12, n_bytes=36).texts
    begin = {text.encode()[: given.cuts.of(s)[0]].decode(): given.document[s] for s, text in enumerate(long)}
    assert [begin[prompt] for prompt in prompts(drawn)] == [*drawn.document]
    assert drawn.drawn["prompts"] == f"given ({given.id})"


def test_texts_of_another_author_have_no_such_kl(toys, tmp_path):
    given = prompts_of(tmp_path / "prompts.jsonl", "e")
    drawn = draw_texts(toys[0], given, tmp_path / "store", whole_prompts=True, n_texts=20, n_bytes=5).texts
    found = compare(toys[1:], drawn, tmp_path / "store")
    assert not found.drawn
    whole = TextSet.from_texts("whole", drawn.texts)
    assert whole.id != drawn.id, "a set with prompts is another"
    other = compare(toys[:2], whole, tmp_path / "store")
    assert not other.drawn
    with pytest.raises(InputError, match="not drawn from a model"):
        other.vectors.drawn_kl(*other.vectors.names)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"n_texts": 1}, "1 texts"),
        ({"n_bytes": 0}, "0 bytes"),
        ({"prompts": "short"}, "no text that is long enough"),
        ({"whole_prompts": True, "prompts": "fills"}, "fills the window"),
    ],
)
def test_what_cannot_be_drawn(how, said, toys, tmp_path):
    texts = {"short": ["e"], "fills": ["e" * 20]}
    given = TextSet.from_texts("given", texts[how.get("prompts", "short")])
    with pytest.raises(KlscaleError, match=said):
        draw_texts(
            toys[0], given, tmp_path / "store", **{name: value for name, value in how.items() if name != "prompts"}
        )


def test_bytes_that_are_no_text_are_left_out(make_model, tmp_path):
    given = prompts_of(tmp_path / "prompts.jsonl", "the tree")
    with pytest.raises(KlscaleError, match="0 of 20 texts drawn") as raised:
        draw_texts(str(make_model()), given, tmp_path / "store", whole_prompts=True, n_texts=20, n_bytes=40)
    assert raised.value.why == "20 are read again as other tokens, 0 ended at once."
    assert Store(tmp_path / "store").is_empty


def test_the_commands(toys, tmp_path, run):
    """From prompts to the comparison: the set says who wrote it, and only the pair with its author has that KL."""
    given = prompts_of(tmp_path / "prompts.jsonl", "e")
    where = ("--store", tmp_path / "store")
    run("texts", "draw", toys[0], *where, status=2)
    run("texts", "draw", toys[0], "--prompts", given, "--texts-of", given, *where, status=2)
    made = run("texts", "draw", toys[0], "--prompts", given, "-n", 40, "--bytes", 5, "--name", "own", *where)
    assert "40 drawn; left out: 0 that are read again as other tokens, 0 that ended at once." in made.output
    assert "written by" in run("texts", "list", *where).output
    (head,) = json.loads(run("texts", "list", "--json", *where).stdout)["store"]
    assert (head["drawn"]["author"], head["drawn"]["seed"]) == (toys[0], 0)
    run("check", *where)
    printed = run("compare", *toys, *where)
    assert "From the model that wrote the texts" in printed.output
    rows = {(row["a"], row["b"]): row for row in json.loads(run("compare", *toys, "--json", *where).stdout)}
    assert [row["author"] for row in rows.values()] == [toys[0], toys[0], None]
    assert rows[toys[1], toys[2]]["drawn_kl"] is None
    near_one = rows[toys[0], toys[1]]
    assert near_one["drawn_by"] in (SAMPLED_TOKENS, LOG_RATIOS)
    assert near_one["drawn_log_ratios"]["n_texts"] == 40


# ---------------------------------------------------------------------------------------------------- sets with prompts


def test_the_first_cut_is_behind_the_prompt():
    texts = ["a prompt and then a text that goes on for more than one span of bytes", "grün und so weiter"]
    cuts = cut_texts(texts, np.array([8, 0]))
    assert cuts.of(0)[0] == 8
    rest = cut_texts([texts[0][8:]]).of(0) + 8
    assert cuts.of(0)[1:].tolist() == rest.tolist()
    assert not len(cuts.of(1))


def test_a_set_with_prompts_is_kept_and_read(tmp_path):
    made = TextSet.from_texts(
        "d", ["grün wie", "and so on"], prompt_bytes=np.array([4, 4]), labels={"prompt_tokens": (1, 1)},
        drawn={"author": "x", "seed": 3},
    )  # fmt: skip
    store = Store(tmp_path / "store")
    store.put_texts(made)
    found = Store(tmp_path / "store").texts(made.id)
    assert found.prompt_bytes.tolist() == [4, 4]
    assert (found.labels, found.drawn) == (made.labels, made.drawn)
    lines = tmp_path / "store" / "texts" / f"{made.id}.jsonl"
    (tmp_path / "copy.jsonl").write_text(lines.read_text())
    assert load_texts(str(tmp_path / "copy.jsonl")).id == made.id
    for wrong in ("1", "3", "-1", '"2"', "true", "null"):  # inside a character, behind the text, no number
        (tmp_path / "bad.jsonl").write_text(f'{{"text": "\u00fcx", "prompt_bytes": {wrong}}}\n')
        if wrong == "null":
            assert load_texts(str(tmp_path / "bad.jsonl")).prompt_bytes is None
            continue
        with pytest.raises(InputError, match="no place in the text"):
            load_texts(str(tmp_path / "bad.jsonl"))
