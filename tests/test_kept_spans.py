"""Spans of scored vectors: against loops over tokens, kept, resumed, read, and compared."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from conftest import ROOT, Interrupt
from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ModelRef
from klscale.inputs.spans import RULE, byte_offsets, cut_texts, unpack
from klscale.inputs.texts import TextSet
from klscale.progress import Progress
from klscale.science.reported import SAMPLED_TOKENS, SPANS, ReportedKL
from klscale.science.spans import span_kl
from klscale.sources.mock import Chain, Parameters, vocabulary
from klscale.store import vector_records
from klscale.store.store import Store
from klscale.studies import scales
from klscale.sweep.score import score
from klscale.vectors.scores import Ragged
from klscale.vectors.vectors import ATTRIBUTES, Vectors
from test_spans import naive_kl, naive_sums, naive_texts, odd_texts

OLD = ROOT / "tests" / "data" / "store-0.1.0"
STEP = 2**-20
"""Nats to which spans are rounded, for texts whose spans are above -16 nats."""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def long_texts():
    """Texts of several spans, with odd ones among them, in documents of two."""
    made = [text for text in odd_texts(11, 12) if text]
    made += ["Once upon a time there was a little girl who had a red ball and a small dog. " * n for n in (1, 2, 3)]
    return TextSet.from_texts("long", made, document=tuple(str(n // 2) for n in range(len(made))))


def _of_at_most(size, texts):
    """The texts of at most so many bytes."""
    chosen = np.flatnonzero(texts.bytes <= size)
    document = tuple(texts.document[s] for s in chosen)
    return TextSet.from_texts("short", [texts.texts[s] for s in chosen], document=document)


def rows_of(part):
    assert isinstance(part, Ragged)
    return np.split(part.values, np.cumsum(part.lengths)[:-1])


def naive_spans(directory, texts, window=None):
    """Spans of each text by the model's own full logits, one text at a time, in float64; and the bytes given."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    cuts, spans, given = cut_texts(texts.texts), [], []
    for s, text in enumerate(texts.texts):
        found = tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor(found["input_ids"])
        start, end = byte_offsets([text], np.array([0, len(ids)]), np.array(found["offset_mapping"])).T
        with torch.no_grad():
            log_p = model(ids[None], use_cache=False).logits[0, :-1].double().log_softmax(dim=-1)
        own = [math.nan, *log_p[torch.arange(len(ids) - 1), ids[1:]].tolist()]
        spans.append(naive_sums(cuts.of(s).tolist(), text, start, end, own))
        given.append(end[0])
    return spans, given


# ------------------------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize("which", ["bytes", "bytes, BOS", "stories", "bytes, layers"])
def test_spans_are_those_of_a_loop_over_tokens(which, make_model, stories, long_texts, store):
    directory = stories if which == "stories" else make_model(bos="BOS" in which, max_position_embeddings=1024)
    texts = _of_at_most(500, long_texts)  # each within the window of 512 tokens that stories has
    (outcome,) = score([str(directory)], texts, store, batch_tokens=700, layers="layers" in which)
    entry, scores = outcome.entry, store.scores(outcome.entry)
    expected, given = naive_spans(directory, texts)
    assert scores.parts["given"][:, 0].tolist() == given
    starts = np.cumsum([0, *map(len, expected)])
    kept = unpack(scores.parts["spans"].values, scores.log_likelihood, starts)
    n_cuts = 0
    for s, (found, wanted) in enumerate(zip(rows_of(scores.parts["spans"]), expected, strict=True)):
        np.testing.assert_allclose(found, wanted, atol=5e-3, rtol=1e-4)  # the model's own rounding in batches
        mine = kept[starts[s] : starts[s + 1]]
        assert math.fsum(mine[~np.isnan(mine)]) == pytest.approx(scores.log_likelihood[s], rel=1e-14)
        n_cuts += len(wanted) - 1
    about = entry.metadata["spans"]
    cuts = cut_texts(texts.texts)
    assert (about["rule"], about["mean_bytes"]) == (RULE, texts.bytes.sum() / (n_cuts + len(texts)))
    assert about["lost_cuts"] == sum(np.isnan(row).sum() for row in expected) / len(cuts.offsets)
    assert entry.metadata["parts"] == (["layers"] if "layers" in which else []) + [
        "spans",
        "given",
        "draws",
        "sampled",
        "top",
    ]


def test_long_texts_in_windows_have_spans(make_model, store):
    directory = make_model(max_position_embeddings=64)
    texts = TextSet.from_texts("mixed", ["the red ball rolls over the hill " * n for n in (1, 3, 5)])
    (outcome,) = score([str(directory)], texts, store, long_texts="window")
    scores = store.scores(outcome.entry)
    assert scores.parts["spans"].lengths.tolist() == np.diff(cut_texts(texts.texts).spans.starts).tolist()
    sums = [np.nansum(row.astype(np.float64)) for row in rows_of(scores.parts["spans"])]
    np.testing.assert_allclose(sums, scores.log_likelihood, atol=2e-6)
    alone = Store(store.location + "-alone")  # the first span lies in the first window, whatever comes behind it
    short = TextSet.from_texts("short", [text[:64] for text in texts.texts[1:2]])
    (outcome,) = score([str(directory)], short, alone)
    first = rows_of(alone.scores(outcome.entry).parts["spans"])[0][0]
    assert rows_of(scores.parts["spans"])[1][0] == pytest.approx(first, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["mock", "model"])
def test_an_interrupted_sweep_has_the_spans_of_one_that_was_not(which, make_model, long_texts, store):
    ref = "mock://1?tokens=pairs" if which == "mock" else str(make_model(max_position_embeddings=1024))
    whole = Store(store.location + "-whole")
    (undisturbed,) = score([ref], long_texts, whole, batch_tokens=900)
    with pytest.raises(KeyboardInterrupt):
        score([ref], long_texts, store, batch_tokens=900, progress=Interrupt(long_texts.bytes.sum() / 2e6))
    assert store.entries(long_texts.id) == []
    (resumed,) = score([ref], long_texts, store, batch_tokens=900)
    a, b = whole.scores(undisturbed.entry), store.scores(resumed.entry)
    assert a.parts["spans"].values.tobytes() == b.parts["spans"].values.tobytes()
    assert a.checksum == b.checksum
    (more,) = score([ref], long_texts, Store(store.location + "-first"), batch_tokens=900, first=7)
    few = Store(store.location + "-first")
    assert len(few.scores(more.entry)) == 7
    (grown,) = score([ref], long_texts, few, batch_tokens=900)
    assert {*few.scores(grown.entry).parts} >= {"spans", "given"}


def test_spans_do_not_depend_on_the_texts_beside_them(long_texts, store):
    """Of a source whose tokens do not, whatever the batches."""
    found = []
    for n, budget in enumerate((50, 700, 100_000)):
        place = Store(f"{store.location}-{n}")
        (outcome,) = score(["mock://3"], long_texts, place, batch_tokens=budget)
        found.append(place.scores(outcome.entry).parts["spans"].values.tobytes())
    assert len({*found}) == 1


def test_a_tokenizer_without_offsets_has_no_spans(make_model, texts, store, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    said = []

    class Told(Progress):
        def note(self, message):
            said.append(message)

    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda _: False))
    models = [str(make_model(name, seed=seed)) for seed, name in enumerate("ab")]
    outcomes = score(models, texts, store, sampled_tokens=0, progress=Told())
    assert [{*store.scores(outcome.entry).parts} for outcome in outcomes] == [set(), set()]
    assert sum("no offsets" in message for message in said) == 1
    vectors = store.vectors(texts)
    assert vectors.kl()[0, 1].value > 0
    with pytest.raises(InputError, match="has no log-likelihoods of spans"):
        vectors.span_kl(*models)


# ------------------------------------------------------------------------------------------------------------- reading


def mock_spans(ref, texts):
    """Spans (S,) of a mock, by a loop over its tokens; NaN where a cut is lost."""
    parameters = Parameters.of(ModelRef.parse(ref))
    words, log_p = vocabulary(parameters.tokens), Chain.of(parameters).log_p
    ids, cuts, found = {word: n for n, word in enumerate(words)}, cut_texts(texts.texts), []
    for s, text in enumerate(texts.texts):
        data, place, before = text.encode(), 0, len(words)
        start, end, own = [0], [0], [math.nan]
        while place < len(data):
            word = data[place : place + 2]
            word = word if len(word) == 2 and word in ids else data[place : place + 1]
            own.append(log_p[before, ids[word]])
            start.append(place)
            place += len(word)
            end.append(place)
            before = ids[word]
        found += naive_sums(cuts.of(s).tolist(), text, start, end, own)
    return np.array(found)


REFS = ("mock://1", "mock://1?shift=0.2", "mock://2?tokens=pairs")


@pytest.fixture(scope="module")
def compared_once(long_texts, tmp_path_factory):
    """A store with all of them; not to be changed."""
    store = Store(tmp_path_factory.mktemp("compared") / "store")
    score(REFS, long_texts, store)
    return store


@pytest.fixture
def compared(compared_once, long_texts, store):
    """The texts, and a copy of it."""
    shutil.copytree(compared_once.location, store.location)
    return long_texts, store


def naive_pair(a, b, texts):
    values = np.stack([mock_spans(ref, texts) for ref in (a, b)])
    spans = cut_texts(texts.texts).spans
    chosen, V, size, *_ = naive_texts(values, *values, spans)
    value, error = naive_kl(V, size, np.array(texts.document)[chosen])
    lost = np.isnan(values).any(axis=0).sum() / (len(spans.bytes) - len(texts))
    return value, error, lost


def test_vectors_give_kl_by_spans(compared):
    texts, store = compared
    vectors = store.vectors(texts)
    for a, b in itertools.combinations(REFS, 2):
        value, error, lost = naive_pair(a, b, texts)
        found = vectors.span_kl(a, b)
        assert found.value == pytest.approx(value, rel=1e-5)
        assert found.standard_error == pytest.approx(error, rel=1e-5)
        assert found.lost == pytest.approx(lost, abs=1e-12)
        assert found.n_documents is not None
    assert vectors.span_kl(REFS[0], REFS[2]).lost > 0
    two = vectors.subset(REFS[:2])
    matrix, pair = two.span_kl_matrix(), two.span_kl(*REFS[:2])
    assert matrix.value[0, 1] == pytest.approx(pair.value, rel=1e-5)
    assert matrix.standard_error[0, 1] == pytest.approx(pair.standard_error, rel=1e-5)
    again = vectors.subset(REFS[:1]).joined(vectors.subset(REFS[1:]))
    assert again.span_kl(*REFS[1:]) == vectors.span_kl(*REFS[1:])


def test_spans_are_read_when_they_are_asked_for(compared, monkeypatch):
    texts, store = compared
    whole, read = vector_records.spans_of, []
    monkeypatch.setattr(vector_records, "spans_of", lambda *how: read.append(how) or whole(*how))
    vectors = store.vectors(texts)
    vectors.kl()
    assert all(vectors.has_spans(ref) for ref in REFS)
    assert not read
    vectors.span_kl(*REFS[:2])
    vectors.subset(REFS[:2]).span_kl(*REFS[:2])
    assert len(read) == 2


def test_texts_without_a_log_likelihood_have_no_spans(compared):
    texts, store = compared
    fewer = store.vectors(texts).subset(REFS[:2])
    fewer.log_likelihood[0, ::3] = np.nan
    found = fewer.span_kl(*REFS[:2])
    values = np.stack([mock_spans(ref, texts) for ref in REFS[:2]])
    spans = cut_texts(texts.texts).spans
    values[0, np.repeat(np.arange(len(texts)) % 3 == 0, np.diff(spans.starts))] = np.nan
    _, V, size, *_ = naive_texts(values, *values, spans)
    assert found.n_texts == len(V)
    assert found.value == pytest.approx(naive_kl(V, size)[0], rel=1e-5)
    assert found == fewer.on_common_texts().span_kl(*REFS[:2])


def test_an_old_vector_beside_a_new_one(tmp_path):
    shutil.copytree(OLD, tmp_path / "store")
    store = Store(tmp_path / "store")
    texts = store.texts("817faccc080f")
    before = {entry.path: entry.metadata["date"] for entry in store.entries(texts.id)}
    score(["mock://1", "mock://2"], texts, store)
    vectors = store.vectors(texts)
    old = [name for name in vectors.names if not name.startswith("mock://")]
    assert before.items() <= {entry.path: entry.metadata["date"] for entry in store.entries(texts.id)}.items()
    assert [vectors.has_spans(name) for name in vectors.names] == [name not in old for name in vectors.names]
    assert vectors.kl()[old[0], "mock://1"].value > 0
    with pytest.raises(InputError, match="has no log-likelihoods of spans"):
        vectors.span_kl(old[0], "mock://1")
    with pytest.raises(InputError, match="has no log-likelihoods of spans"):
        vectors.subset([old[0], "mock://1"]).span_kl_matrix()
    assert [problem for _, problem in store.check() if problem] == []


# ------------------------------------------------------------------------------------------------------------- damage


def damaged(scores, change):
    values = scores.parts["spans"].values.copy()
    change(values)
    return Ragged(values, scores.parts["spans"].lengths)


def test_spans_that_do_not_add_up_are_refused(compared):
    texts, store = compared
    entry = store.entries(texts.id)[0]
    scores = store.scores(entry)

    def written(**parts):
        changed = type(scores)(scores.text, scores.log_likelihood, scores.n_tokens, {**scores.parts, **parts})
        return store.write(texts, changed, entry.metadata)

    def move(values):
        values[1] += 8 * STEP

    def hide(values):
        values[0] = np.nan

    for change in (move, hide):
        with pytest.raises(InputError, match="do not add up"):
            written(spans=damaged(scores, change))
    with pytest.raises(InputError, match="not finite"):
        written(spans=damaged(scores, lambda values: values.__setitem__(0, -np.inf)))
    with pytest.raises(InputError, match="first byte"):
        written(given=scores.parts["given"] - 1)
    bare = scores.without("given")
    with pytest.raises(InputError, match="without the bytes"):
        store.write(texts, bare, entry.metadata)


def test_check_knows_the_cuts_of_a_text_set(compared):
    texts, store = compared
    entry = next(entry for entry in store.entries(texts.id) if str(entry.ref) == REFS[0])
    scores = store.scores(entry)
    whole = Ragged(scores.log_likelihood.astype("<f4"), np.ones(len(scores), dtype=np.int64))
    rounded = whole.values.astype(np.float64)  # texts of one span each, which add up
    changed = type(scores)(scores.text, rounded, scores.n_tokens, {**scores.parts, "spans": whole})
    store.write(texts, changed, entry.metadata)
    wrong = {path: problem for path, problem in Store(store.location).check() if problem}
    assert wrong == {entry.path: "has spans that are not those of its texts"}
    with pytest.raises(KlscaleError, match="not those of its texts"):
        Store(store.location).vectors(texts).span_kl(*REFS[:2])


def test_spans_by_another_rule_are_not_compared(compared):
    texts, store = compared
    entry = next(entry for entry in store.entries(texts.id) if str(entry.ref) == REFS[0])
    other = {**entry.metadata["spans"], "rule": "another"}
    store.write(texts, store.scores(entry), {**entry.metadata, "spans": other})
    vectors = Store(store.location).vectors(texts)
    assert [vectors.has_spans(ref) for ref in REFS] == [False, True, True]
    assert [problem for _, problem in store.check() if problem] == []


@pytest.mark.parametrize(
    ("kl", "level", "in_range"), [(0.7, 2.0, True), (0.8, 2.0, False), (0.4, 3.4, True), (0.4, 3.6, False)]
)
def test_spans_have_a_range_of_their_own(kl, level, in_range):
    """KL by spans up to 0.75 bits/byte, between models of at most 3.5 bits/byte; sampled tokens have none."""
    long = "a word or two and then some of the others that are here, and on it goes for a while "
    texts = TextSet.from_texts("long", [f"{n} {long * 6}" for n in range(40)])
    spans = cut_texts(texts.texts).spans
    d = np.random.default_rng(0).normal(size=len(spans.bytes)) * np.sqrt(spans.bytes)
    low, high = 0.0, 100.0
    for _ in range(60):  # the factor of d that gives this KL
        factor = (low + high) / 2
        _, V, size, *_ = naive_texts(np.stack([factor * d, 0 * d]), factor * d, 0 * d, spans)
        low, high = (factor, high) if V.sum() < kl * math.log(2) * size.sum() else (low, factor)
    d *= factor
    rows = -level * math.log(2) * spans.bytes + np.stack([d, 0 * d])
    vectors = Vectors.from_arrays(np.add.reduceat(rows, spans.starts[:-1], axis=1), ["a", "b"], texts)
    whole = vectors.kl()["a", "b"]
    found = ReportedKL.nearest(whole, span_kl(*rows, spans), None, far=bool(vectors.far.any()))
    assert found.value == pytest.approx(kl, rel=1e-6)
    assert (found.estimator, found.in_range) == (SPANS, in_range)
    assert replace(found, estimator=SAMPLED_TOKENS).in_range


# ------------------------------------------------------------------------------------------------------------- compare


def test_score_and_check_report_the_share_of_lost_cuts(run, compared):
    texts, store = compared
    lost = {}
    for ref in REFS:
        values = mock_spans(ref, texts)
        lost[ref] = np.isnan(values).sum() / (len(values) - len(texts))
    assert lost[REFS[2]] > 0.1 > lost[REFS[0]] == 0
    where = ["--store", store.location]
    shown = f"0.0% to {lost[REFS[2]]:.1%} over 3 models"
    found = json.loads(run("score", *REFS, *where, "--json").stdout)
    assert {one["model"]: one["lost_cuts"] for one in found} == pytest.approx(lost)
    assert shown in " ".join(run("score", *REFS, *where).stdout.split())
    files = {entry.path: lost[str(entry.ref)] for entry in store.entries(texts.id)}
    found = json.loads(run("check", *where, "--json").stdout)
    assert {one["file"]: one["lost_cuts"] for one in found if one["file"] in files} == pytest.approx(files)
    assert all(one["lost_cuts"] is None for one in found if one["file"] not in files)
    assert shown in " ".join(run("check", *where).stdout.split())
    assert "lost to tokens" not in run("score", *REFS[:2], *where).stdout


def test_compare_prints_spans_and_the_published_estimator_beside(run, compared):
    texts, store = compared
    how = ["compare", *REFS, "--texts", texts.id, "--store", store.location]
    whole = store.vectors(texts).kl()
    for record in json.loads(run(*how, "--json").stdout):
        value, error, lost = naive_pair(record["a"], record["b"], texts)
        assert record["spans_kl"] == pytest.approx(value, rel=1e-5)
        assert record["spans_standard_error"] == pytest.approx(error, rel=1e-5)
        assert record["lost_cuts"] == pytest.approx(lost, abs=1e-12)
        assert record["drift_share"]["value"] < 1
        assert record["estimator"] in ("spans", "sampled tokens")
        if record["estimator"] == "spans":
            assert (record["kl"], record["standard_error"]) == (record["spans_kl"], record["spans_standard_error"])
            assert record["interval_low"] < record["kl"] < record["interval_high"]
        assert record["whole_texts_kl"] == whole[record["a"], record["b"]].value
        assert record["whole_texts_kl"] != record["kl"]
    shown = " ".join(run(*how, "--wide").stdout.split())
    assert "whole texts (published" in shown
    assert "Drift is" in shown


def test_a_vector_without_spans_is_compared_by_whole_texts():
    store = Store(OLD)
    vectors = store.vectors(store.texts("817faccc080f"))
    a, b = vectors.names[:2]
    found = vectors.reported_kl(a, b)
    assert found.is_published
    assert found.value == found.whole_texts.value == vectors.kl()[a, b].value
    assert (found.spans, found.sampled_tokens) == (None, None)
    assert math.isnan(found.by_spans)


def without_sampled_tokens(vectors):
    """The same, where sampled tokens are kept, without them."""
    return replace(vectors, sampled=None) if hasattr(vectors, "sampled") else vectors


def test_the_matrix_of_all_pairs_has_each_pair_by_its_own_estimator(compared):
    """Two models with spans and one without: by spans between the first two, else by whole texts."""
    texts, store = compared
    vectors = without_sampled_tokens(store.vectors(texts).subset(REFS))
    bare = replace(vectors, spans=(*vectors.spans[:2], None))
    matrix, whole = bare.reported_kl_matrix(), bare.kl()
    assert matrix.estimator[0, 1] == matrix.estimator[1, 0] == "spans"
    assert [matrix.estimator[place] for place in ((0, 0), (0, 2), (2, 1))] == ["whole texts"] * 3
    pair = bare.reported_kl(*REFS[:2])
    assert matrix.at(0, 1).value == pytest.approx(pair.value, rel=1e-5)
    assert matrix.at(0, 1).interval == pytest.approx(pair.interval, rel=1e-4)
    assert matrix.at(0, 2).value == whole[0, 2].value
    many = matrix.at(np.array([0, 0]), np.array([1, 2]))
    assert many.value.tolist() == [matrix.value[0, 1], matrix.value[0, 2]]
    assert many.is_published.tolist() == [False, True]
    assert many.whole_texts.value.tolist() == [whole.value[0, 1], whole.value[0, 2]]


def test_a_paired_difference_by_spans_is_that_of_both_kls(compared):
    texts, store = compared
    vectors = store.vectors(texts)
    first, second = (REFS[0], REFS[1]), (REFS[0], REFS[2])
    values = np.stack([mock_spans(ref, texts) for ref in (*first, *second)])
    spans = cut_texts(texts.texts).spans
    kls = [naive_kl(*naive_texts(values, *values[at], spans)[1:3])[0] for at in ([0, 1], [2, 3])]
    difference, estimator = vectors.paired_difference()
    assert estimator == "spans"
    assert difference(first, second).value == pytest.approx(kls[0] - kls[1], rel=1e-5)


def test_a_paired_difference_of_short_texts_is_by_whole_texts(tmp_path):
    """Texts of one span tell nothing by spans."""
    texts = TextSet.from_texts("short", [f"text {n}" for n in range(20)])
    score(REFS, texts, Store(tmp_path / "store"))
    vectors = Store(tmp_path / "store").vectors(texts)
    assert all(row is not None for row in vectors.spans)
    difference, estimator = vectors.paired_difference()
    assert estimator == "whole texts"
    assert difference((REFS[0], REFS[1]), (REFS[0], REFS[2])).standard_error > 0


def test_a_scale_by_spans_places_spans(compared):
    """Two seeds of one family beside a pair that is neither: its spans are held against theirs, not its whole texts."""
    texts, store = compared
    vectors = store.vectors(texts).subset(REFS)
    about = dict.fromkeys(ATTRIBUTES) | {"family": "m", "seed": [1, 2, None]}
    vectors = replace(vectors, attributes=vectors.attributes.assign(**about).astype(object))
    (seed,) = [row for row in scales.measure(vectors) if row.setting == "seed"]
    own = vectors.span_kl(*REFS[:2])
    assert seed.pairs == seed.by_spans.pairs == (REFS[:2],)
    assert seed.by_spans.median == pytest.approx(own.value, rel=1e-12)
    assert seed.by_spans.standard_errors[0] == pytest.approx(own.standard_error, rel=1e-12)
    assert seed.median == pytest.approx(vectors.kl()[REFS[:2]].value, rel=1e-9)
    placed = scales.place(vectors.reported_kl(REFS[0], REFS[2]), texts, [seed])
    ratio = vectors.span_kl(REFS[0], REFS[2]).value / own.value
    assert placed.startswith(f"{ratio:.1f} times" if 0.1 <= ratio < 10 else f"{ratio:.2g} times")
    assert f"({own.value:.3g}, by spans, measured on these texts)" in placed
    other = replace(vectors.reported_kl(REFS[0], REFS[2]), estimator="sampled tokens")
    third = f"({other.by_spans:.3g} against {own.value:.3g}, both by spans, measured on these texts)"
    assert third in scales.place(other, texts, [seed])
