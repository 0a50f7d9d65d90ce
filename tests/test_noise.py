"""The noise floor: what two readings of one model differ by, what that adds to a KL, and where it is said."""

from __future__ import annotations

import itertools
import json
import math
import struct
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import whole_tables
from klscale.errors import InputError, KlscaleError, StorageError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import Progress
from klscale.science.kl import kl
from klscale.show import cautions, compare, pairs, scale
from klscale.show.noise import noise_record, print_noise
from klscale.show.pictures.rulers import NOISE, scale_ruler
from klscale.show.terminal import out
from klscale.sources.mock import MockRepeatRuns
from klscale.sources.source import Sources
from klscale.sources.tokens import Segment
from klscale.sources.transformers import engine as engine_module
from klscale.sources.transformers import load as loading
from klscale.sources.transformers.engine import BATCH_COST, Engine, cuts
from klscale.store.store import Store
from klscale.studies import scales
from klscale.studies.noise import half_precision_floor, in_half_precision, noise_study
from klscale.sweep import score as sweeps
from klscale.sweep.repeat_noise import noise_floor, noise_texts
from klscale.vectors.scores import Scores
from klscale.vectors.vectors import CONVENTION, Vectors
from mocks import count_scored

BYTES = 100
SCALE = 2 * BYTES * math.log(2)


def made(rows, floors=None):
    """Vectors of models {name: values (N,)}, with noise floors where given."""
    n_texts = len(next(iter(rows.values())))
    texts = TextSet(name="made", id="0123456789ab", bytes=np.full(n_texts, BYTES))
    plain = {"dtype": "float32", "convention": CONVENTION}
    floors = [None] * len(rows) if floors is None else floors
    known = {name: {**plain, "noise_floor": floor} for name, floor in zip(rows, floors, strict=True)}
    return Vectors.from_arrays([*rows.values()], [*rows], texts, known)


def plain_kl(a, b, mean_bytes):
    """By a loop: the population variance of the difference over 2 B ln 2."""
    difference = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(difference) / len(difference)
    return sum((d - mean) ** 2 for d in difference) / len(difference) / (2 * mean_bytes * math.log(2))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def many():
    """300 texts of 5 to 80 bytes."""
    generator = np.random.default_rng(0)
    return TextSet.from_texts(
        "many", ["".join(generator.choice([*"abcde "], n)) for n in generator.integers(5, 80, 300)]
    )


@pytest.fixture
def batches(monkeypatch):
    """What goes through a model: (shuffled, texts) of each batch."""
    seen = []
    whole = Engine._score_batch

    def watch(self, tokens, batch):
        seen.append((self.shuffled, tuple(part.text for part in batch)))
        return whole(self, tokens, batch)

    monkeypatch.setattr(engine_module.Engine, "_score_batch", watch)
    return seen


# ---------------------------------------------------------------------------------------------- what noise adds


def test_rounding_adds_half_the_sum_of_both_floors():
    """400 readings of two models, each with noise of its own size: the mean KL is that of the models and the noise."""
    generator = np.random.default_rng(0)
    n, readings = 300, 400
    models = -100 + 3 * generator.standard_normal((2, n))
    spread = np.array([0.5, 2.0])
    noisy = models[:, None] + spread[:, None, None] * generator.standard_normal((2, readings, n))
    floor = [
        np.mean([kl(one, other, np.full(n, BYTES)).value for one, other in zip(row[::2], row[1::2], strict=True)])
        for row in noisy
    ]
    measured = np.array([kl(a, b, np.full(n, BYTES)).value for a, b in zip(*noisy, strict=True)])
    added = made({"a": models[0], "b": models[1]}, floor).noise()[0, 1]
    assert measured.mean() - plain_kl(*models, BYTES) == pytest.approx(added, rel=0.04)
    assert added == pytest.approx((0.5**2 + 2.0**2) / SCALE, rel=0.03)
    assert added > 4 * measured.std() / math.sqrt(readings), "the simulation can tell"


def test_unknown_floors_are_unknown_noise():
    rows = {name: -np.arange(4.0) for name in "abc"}
    assert np.isnan(made(rows).noise()).all()
    noise = made(rows, [0.1, None, 0.3]).noise()
    np.testing.assert_allclose(noise[[0, 2], [2, 2]], [0.2, 0.3])
    assert np.isnan(noise[1]).all()
    assert scales.noise_floor(made(rows)) is None
    found = scales.noise_floor(made(rows, [0.1, None, 0.3]))
    assert (found.median, found.smallest, found.largest, found.largest_of, found.n_models) == (0.2, 0.1, 0.3, "c", 2)


# ----------------------------------------------------------------------------------------------- half precision


def test_half_precision_is_that_of_ieee_754():
    """Against the 16-bit floats of `struct`, one value at a time; what they cannot hold is refused."""
    generator = np.random.default_rng(0)
    values = -(10 ** generator.uniform(-3, 4.8, 2000))
    expected = [struct.unpack("<e", struct.pack("<e", value))[0] for value in values]
    np.testing.assert_array_equal(in_half_precision(values), expected)
    with pytest.raises(InputError, match="-66000 nats is no number of float16"):
        in_half_precision(np.array([-1.0, -66000.0]))


@pytest.mark.parametrize("clip", [None, -900.0])
def test_the_floor_of_half_precision_is_what_rounding_makes(clip):
    """By a loop that rounds every text of two readings, which lie far apart against the spacing; with its error."""
    generator = np.random.default_rng(0)
    n = 20_000
    first = -(10 ** generator.uniform(2, 3.3, n))
    second = first - generator.uniform(0, 64, n)  # another place between two numbers of float16
    size = np.full(n, BYTES)
    error = []
    for value, other in zip(first, second, strict=True):
        a, b = (struct.unpack("<e", struct.pack("<e", x))[0] - x for x in (value, other))
        error.append(0.0 if clip is not None and value < clip else a - b)
    squares = np.square(error) / SCALE
    found = half_precision_floor(first, size, clip=clip)
    assert found.value == pytest.approx(squares.mean(), abs=5 * squares.std() / math.sqrt(n), rel=0.05)
    units = [2 ** (math.floor(math.log2(-x)) - 10) if clip is None or x >= clip else 0.0 for x in first]
    variance = np.square(units) / 6 / SCALE
    assert found.value == pytest.approx(variance.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(variance.std() / math.sqrt(n), rel=1e-9)
    assert half_precision_floor(first, size, documents=np.arange(n) // 50).standard_error > 0
    alike = half_precision_floor(np.linspace(-100, -65, n), size)  # one spacing of float16
    assert (alike.standard_error, str(alike)) == (0, f"{alike.value:.3g} bits/byte")


# ------------------------------------------------------------------------------------------- kept with every vector


@pytest.mark.parametrize(("n", "again"), [(5, 5), (40, 20), (1000, 20), (2500, 50), (10_000, 100), (50_000, 100)])
def test_two_percent_of_the_texts_are_read_again(n, again):
    texts = np.arange(3, n + 3)
    chosen = noise_texts(texts)
    assert len(chosen) == len({*chosen}) == again
    assert {*chosen} <= {*texts}
    assert (np.diff(chosen) > 0).all()


@pytest.mark.slow
def test_every_model_that_is_scored_has_its_noise_floor(make_model, many, store, batches, monkeypatch):
    """Of 300 texts a few are read again, in other batches and another order, and not again where that is known."""
    texts, directory = many, str(make_model())
    (outcome,) = sweeps.score([directory], texts, store, batch_tokens=1000)
    first, again = ([batch for flag, batch in batches if flag == shuffled] for shuffled in (False, True))
    assert sorted(s for batch in first for s in batch) == list(range(300))
    n = sum(map(len, again))
    assert not {frozenset(batch) for batch in again} & {frozenset(batch) for batch in first}
    kept = store.noise_floor(texts.id, outcome.entry.key)
    assert (kept.n_texts, 0 < kept.value < 1e-9) == (n, True)
    monkeypatch.setattr(loading, "load", None)
    assert noise_floor(outcome.entry, texts, store) == kept, "what is kept is not read again"
    sweeps.score([directory], texts, store)
    assert len(batches) == len(first) + len(again)
    assert store.vectors(texts).attributes["noise_floor"].tolist() == [kept.value]
    other = Store(store.location + "-2")
    (entry,) = other.import_vectors(store.vectors(texts), "another store")
    assert "noise_floor" not in entry.metadata["attributes"], "it is of the machine that read it"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "size", "least"), [(20, 130, 0), (60, 130, 0), (200, 130, 3), (200, 25, 0), (1000, 130, 15), (1000, 25, 9)]
)
def test_a_repeat_run_takes_two_percent_of_the_tokens(n, size, least, make_model, store, monkeypatch):
    """Whatever the number of texts, padding and checks counted. Of too few texts, or of short ones to which padding
    adds much, there is none, and that is said."""
    generator = np.random.default_rng(0)
    rows = ["".join(generator.choice([*"abcde "], generator.integers(size // 3, size))) for _ in range(n)]
    read, said, whole = {False: 0, True: 0}, [], Engine._forward

    def watch(self, inputs, cache=None):
        read[self.padded] += inputs.numel()
        return whole(self, inputs, cache)

    class Told(Progress):
        def note(self, message):
            said.append(message)

    monkeypatch.setattr(Engine, "_forward", watch)
    texts = TextSet.from_texts("some", rows)
    name = str(make_model())
    model = f"{name}%bfloat16"
    (outcome,) = sweeps.score([model], texts, store, progress=Told())
    assert read[True] <= 0.02 * read[False]
    found = store.repeat_run(texts.id, outcome.entry.key)
    if least:
        assert (found.n_texts >= least, said) == (True, [])
        assert read[True] > 0.01 * read[False]
    else:
        assert (read[True], found.failed) == (0, False)
        why = f"{model}: its run-to-run noise is not known. A repeat run of 3 texts takes more than 2% of reading {n}."
        assert said == [f"{why}\nklscale validate --noise {name} measures it."]
        assert [one.status for one in sweeps.score([model], texts, store, progress=Told())] == ["present"]
        sweeps.score([name], texts, store, progress=Told())
        assert len(said) == 1, "float32 has no noise that matters"
        assert noise_floor(outcome.entry, texts, store).n_texts == 20, "it is measured where it is asked for"
        assert store.noise_floor(texts.id, outcome.entry.key).n_texts == 20


def test_a_model_that_cannot_be_read_again_is_scored_all_the_same(texts, store, monkeypatch):
    said = []

    def breaks(self, **_):
        raise KlscaleError("No kernel for this shape.")

    class Told(Progress):
        def note(self, message):
            said.append(message)

    monkeypatch.setattr(MockRepeatRuns, "read", breaks)
    (outcome,) = sweeps.score(["mock://1"], texts, store, progress=Told())
    assert (outcome.status, len(store.scores(outcome.entry))) == ("scored", len(texts))
    assert store.noise_floor(texts.id, outcome.entry.key) is None
    why = (
        f"mock://1: its run-to-run noise is not known. No kernel for this shape.\n"
        f"Its repeat run failed with klscale {version('klscale')}: --rescore scores it and tries again."
    )
    assert said == [why]
    opened, whole = [], Sources.open
    monkeypatch.setattr(Sources, "open", lambda *a, **k: opened.append(a) or whole(*a, **k))
    sweeps.score(["mock://1"], texts, store, progress=Told())
    assert (said, opened) == ([why, why], []), "it is said again, and not tried again"
    assert [problem for _, problem in store.check() if problem] == []
    monkeypatch.undo()
    sweeps.score(["mock://1"], texts, store, rescore=True, progress=Told())
    assert store.noise_floor(texts.id, outcome.entry.key).value == 0
    assert said == [why, why]


@pytest.mark.parametrize("model", ["mock://1?noise=0.01", "directory"])
def test_a_vector_that_was_cut_off_from_its_noise_floor_gets_it_by_the_next_score(
    model, many, store, make_model, monkeypatch
):
    """Killed, or on a full disk, after the vector: it is completed to what it would have been, and not scored again."""
    texts = many
    ref = str(make_model()) if model == "directory" else model
    whole = Store(store.location + "-whole")
    (undisturbed,) = sweeps.score([ref], texts, whole)

    def full(*_):
        raise StorageError("The disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write_noise_floor", full)
        with pytest.raises(StorageError):
            sweeps.score([ref], texts, store)
    (entry,) = store.entries(texts.id)
    assert store.noise_floor(texts.id, entry.key) is None
    (planned,) = sweeps.score([ref], texts, store, dry_run=True)
    assert (planned.status, planned.download_bytes) == ("present", 0)
    scored = count_scored(monkeypatch, type(Sources().open(Sources().pin(ModelRef.parse(ref)))))
    (outcome,) = sweeps.score([ref], texts, store)
    assert (outcome.status, scored) == ("present", [])
    kept, expected = (place.noise_floor(texts.id, entry.key) for place in (store, whole))
    assert kept == expected
    assert kept.value > 0
    assert outcome.entry.key == undisturbed.entry.key
    assert not store.files.list("partial", texts.id), "its claim is released"
    monkeypatch.setattr(Sources, "open", None)
    assert [one.status for one in sweeps.score([ref], texts, store)] == ["present"], "and is not opened again"


def test_the_noise_floor_of_a_dead_process_is_completed_by_the_one_that_waited(texts, store, monkeypatch):
    """It died between the two while this one waited for its vector."""
    died, take = [], sweeps._Sweep._take

    def dies(self, queue):
        if not died:
            died.append(True)
            with monkeypatch.context() as patched:
                patched.setattr(Store, "write_noise_floor", lambda *_: None)
                sweeps.score(["mock://1"], texts, Store(store.location))
        return take(self, queue)

    monkeypatch.setattr(sweeps._Sweep, "_take", dies)
    (outcome,) = sweeps.score(["mock://1"], texts, store)
    assert outcome.status == "present"
    assert store.noise_floor(texts.id, outcome.entry.key) is not None


def test_the_noise_floor_is_the_kl_of_both_readings(texts, store, monkeypatch):
    """Readings that really differ: each text of the second by a known amount."""
    whole = MockRepeatRuns.read

    def shifted(self, *, batches=False, order=False):
        found = whole(self)
        return replace(found, log_likelihood=found.log_likelihood + (batches and order) * 0.01 * (found.text % 7))

    monkeypatch.setattr(MockRepeatRuns, "read", shifted)
    (outcome,) = sweeps.score(["mock://1"], texts, store)
    chosen = noise_texts(np.arange(40))
    expected = plain_kl(0.01 * (chosen % 7), np.zeros(20), texts.bytes[chosen].mean())
    assert store.noise_floor(texts.id, outcome.entry.key).value == pytest.approx(expected, rel=1e-9)
    # with a clip above one of the texts, and texts that share documents
    first = store.scores(outcome.entry).log_likelihood[chosen]
    values = np.sort(first)
    clipped = replace(texts, clip=float(values[:2].mean()), document=tuple(str(s // 4) for s in range(40)))
    (outcome,) = sweeps.score(["mock://1"], clipped, store, rescore=True)
    rows = [np.maximum(row, clipped.clip) for row in (first, first + 0.01 * (chosen % 7))]
    expected_clipped = plain_kl(*rows, texts.bytes[chosen].mean())
    assert abs(expected_clipped / expected - 1) > 0.01
    found = store.noise_floor(texts.id, outcome.entry.key)
    assert found.value == pytest.approx(expected_clipped, rel=1e-9), "and scored again it is read again"
    assert found.n_documents == len({s // 4 for s in chosen})


def test_a_model_that_reads_one_text_at_a_time_has_no_noise(make_model, many, store, monkeypatch):
    texts, made_engine = many, Engine.__init__

    def alone(self, *arguments, **options):
        made_engine(self, *arguments, **options)
        self.alone = True

    monkeypatch.setattr(Engine, "__init__", alone)
    (outcome,) = sweeps.score([str(make_model())], texts, store)
    assert store.noise_floor(texts.id, outcome.entry.key).value == 0


@pytest.mark.parametrize(("shuffled", "fewest"), [(False, False), (True, False), (True, True)])
def test_batches_take_the_least_in_sum_and_keep_their_budget_in_any_order(shuffled, fewest):
    """By trying every way to cut; texts longer than where embeddings stretch are among their equals alone."""
    generator = np.random.default_rng(0)
    for _ in range(60):
        lengths = generator.integers(5, 15, size=9) if generator.random() < 0.5 else generator.integers(5, 60, size=9)
        lengths = lengths if shuffled else np.sort(lengths)[::-1]
        budget, beyond = int(generator.integers(10, 300)), generator.choice([None, 10, 40])
        engine = Engine.__new__(Engine)
        engine.own_logits = engine.alone = engine.padded = False
        engine.fewest = fewest
        engine.batch_tokens, engine.stretches_beyond = budget, beyond
        engine.shuffled, engine.device = shuffled, torch.device("cpu")

        def allowed(part, budget=budget, beyond=beyond):
            stretched = beyond is not None and max(part) > beyond and len({*part}) > 1
            return len(part) == 1 or (len(part) * max(part) <= budget and not stretched)

        def cost(inner, lengths=lengths, budget=budget, allowed=allowed):
            ends = [0, *(n + 1 for n, cut in enumerate(inner) if cut), len(lengths)]
            parts = [list(lengths[i:j]) for i, j in itertools.pairwise(ends)]
            if not all(map(allowed, parts)):
                return math.inf
            return sum(len(part) * max(part) + (budget if fewest else BATCH_COST["cpu"]) for part in parts)

        queue = [Segment(s, 0, int(length), 1) for s, length in enumerate(lengths)]
        rows = cuts([engine], queue)
        assert sum(rows) == 9
        taken = [place + 1 in np.cumsum(rows) for place in range(8)]
        assert cost(taken) == min(map(cost, itertools.product([False, True], repeat=8)))
        assert cuts([engine], queue[rows[0] :]) == rows[1:], "what is left after a kill is cut as without one"


@pytest.mark.parametrize(
    ("window", "beyond", "longest", "width"),
    [(None, None, 256, 288), (None, None, 40, 56), (2048, None, 300, 337), (256, None, 227, 255), (256, None, 250, 256),
     (256, None, 256, 256), (2048, 128, 113, 128), (2048, 128, 300, 300)],
)  # fmt: skip
def test_another_reading_is_wider_where_it_may_be(window, beyond, longest, width):
    """By an eighth and at least 16 tokens; never beyond the window, nor to where embeddings stretch."""
    engine = Engine.__new__(Engine)
    engine.loaded, engine.stretches_beyond, engine.padded, engine.alone = (
        SimpleNamespace(window=window),
        beyond,
        True,
        False,
    )
    assert engine.widths(np.array([longest])) == width
    limit = min([n for n in (window, beyond) if n is not None], default=None)
    if limit is None:
        assert engine.longest_padded is None
    else:
        room = engine.longest_padded
        assert (
            engine.widths(np.array([room])) == room + max(16, room // 8) <= limit < room + 4 + max(16, (room + 4) // 8)
        )
    for name, value in (("padded", False), ("alone", True)):
        setattr(engine, name, value)
        assert engine.widths(np.array([longest])) == longest


def test_texts_that_fill_the_window_are_cut_and_read_twice(make_model, store, monkeypatch):
    """Each token of the second reading moved by a known amount: the floor is that of the tokens that were read, for the
    bytes that they are of; of the vector nothing is cut."""
    seen, whole = [], Engine._score_batch

    def shifted(self, tokens, batch):
        seen.extend((self.padded, part.text, part.length) for part in batch)
        step = np.array([[0.01 * (part.text % 3) * part.length] for part in batch])
        read = whole(self, tokens, batch)
        return replace(read, log_likelihood=read.log_likelihood + self.padded * step)

    monkeypatch.setattr(Engine, "_score_batch", shifted)
    lengths = [64] * 250 + [20] * 350
    generator = np.random.default_rng(0)
    texts = TextSet.from_texts("full", ["".join(generator.choice([*"abcdefghij"], size)) for size in lengths])
    (outcome,) = sweeps.score([str(make_model(max_position_embeddings=64))], texts, store)
    assert outcome.entry.metadata["skipped"] == []
    again = {text: length for padded, text, length in seen if padded}
    chosen, kept = np.array([*again]), np.array([*again.values()])
    assert kept.tolist() == [min(lengths[s], 48) for s in chosen]
    assert len(seen) == 600 + 2 * len(chosen) > 606
    expected = plain_kl(0.01 * (chosen % 3) * kept, np.zeros(len(chosen)), kept.mean())
    assert store.noise_floor(texts.id, outcome.entry.key).value == pytest.approx(expected, rel=1e-3)


def test_another_reading_rounds_anew_where_all_texts_are_of_one_length(make_model, store):
    """In bfloat16 the noise would be missed, were the batches not wider."""
    generator = np.random.default_rng(0)
    texts = TextSet.from_texts("even", ["".join(generator.choice(list("abcdef "), 200)) for _ in range(20)])
    (outcome,) = sweeps.score([str(make_model()) + "%bfloat16"], texts, store)
    assert noise_floor(outcome.entry, texts, store).value > 1e-11


def test_a_store_without_noise_and_one_with_damage(make_model, texts, store, tmp_path):
    """What cannot be read is as good as not there, and is measured again where it is asked for."""
    directory = make_model("m")
    (outcome,) = sweeps.score([str(directory)], texts, store)
    assert noise_floor(outcome.entry, texts, store) is not None
    (file,) = (tmp_path / "store" / "noise").rglob("*.json")
    whole = file.read_text()
    bare = {name: value for name, value in json.loads(whole).items() if name not in ("record", "klscale-seal")}
    wrong = [json.dumps({**bare, "value": value}) for value in ("much", None, -1, math.inf, math.nan, 10**400)]
    wrong += [json.dumps({**bare, "standard_error": "small"})]
    for damage in ("", whole[: len(whole) // 2], "[]", whole.replace('"value":', '"worth":'), *wrong, "[" * 100_000):
        file.write_text(damage)
        assert store.noise_floor(texts.id, outcome.entry.key) is None, damage
        assert store.vectors(texts).attributes["noise_floor"].tolist() == [None], damage
        assert dict(store.check())[str(file)], damage
    file.write_text(json.dumps(bare))  # as klscale 0.1.0 wrote it
    assert store.noise_floor(texts.id, outcome.entry.key) is not None
    file.write_text(whole)
    assert dict(store.check())[str(file)] == ""
    file.unlink()
    assert store.vectors(texts).attributes["noise_floor"].tolist() == [None]
    found = noise_floor(outcome.entry, texts, store)
    assert found == store.noise_floor(texts.id, outcome.entry.key)
    assert found.value == pytest.approx(json.loads(whole)["value"], rel=1)
    file.unlink()
    file.parent.rmdir()
    assert np.isnan(store.vectors(texts).noise()).all()


def test_a_layer_has_no_noise_floor_of_its_own(make_model, texts, store):
    (outcome,) = sweeps.score([str(make_model())], texts, store, layers=True)
    noise_floor(outcome.entry, texts, store)
    known = store.vectors(texts, layers=True).attributes["noise_floor"]
    assert [value is None for value in known] == [False, True, True, True]


# ----------------------------------------------------------------------------------------------------- where it is said


NOISE_BITS = cautions.BITS["rounding_noise"] | cautions.BITS["below_noise_floor"]


def pair(kl, floor):
    """Two models so far apart, with floors whose mean is as given."""
    wave = np.tile([-1.0, 1.0], 200)
    return made({"a": 0 * wave - 50, "b": math.sqrt(kl * SCALE) * wave - 50}, [0.5 * floor, 1.5 * floor])


@pytest.mark.parametrize(
    ("kl", "floor", "key", "mark", "words"),
    [
        (0.01, 0.0009, "", "", None),
        (
            0.01,
            0.0011,
            "rounding_noise",
            " ~",
            "rounding noise is about 0.0011 bits/byte of the KL by whole texts, 11% of it",
        ),
        (
            0.01,
            0.011,
            "below_noise_floor",
            " ~~",
            "below run-to-run noise: rounding alone adds about 0.011 bits/byte, the KL by whole texts is 0.01",
        ),
        (0.0, 0.01, "", "", None),
    ],
)
def test_a_kl_that_rounding_makes_is_marked(kl, floor, key, mark, words):
    vectors = pair(kl, floor)
    (record,) = compare.records(compare.rows(vectors, {("a", "b"): vectors.kl()["a", "b"]}, []))
    assert record["noise"] == pytest.approx(floor)
    told = [warning for warning in record["warnings"] if "nois" in warning]
    assert told == ([words] if words else [])
    assert [one for one in record["cautions"] if "nois" in one] == ([key] if key else [])
    around = cautions.Around(vectors)
    assert (cautions.flags(around.pairs([0], [1])) & NOISE_BITS).tolist() == [cautions.BITS.get(key, 0)]
    assert cautions.marks(around.pair("a", "b")) == mark
    with out.capture() as captured:
        pairs.print_matrix(vectors)
    assert ("rounding" in captured.get()) == bool(key)
    assert mark in captured.get()


def test_without_a_floor_nothing_is_said_of_noise():
    vectors = pair(0.01, math.nan)
    (record,) = compare.records(compare.rows(vectors, {("a", "b"): vectors.kl()["a", "b"]}, []))
    assert record["noise"] is None
    assert not record["warnings"]
    assert not record["cautions"]


def test_the_scale_shows_its_lowest_rung():
    """In its table, its record, and as a hairline where it lies in view."""
    generator = np.random.default_rng(0)
    rows = {f"f-10m-seed{n}": -50 + generator.standard_normal(400) for n in range(4)}
    for floors, line, marked in (([1e-4, 2e-4, 3e-4, 9e-3], False, " ~"), ([0.01, 0.011, 0.012, 0.5], True, " ~"),
                                 ([1e-5] * 4, False, ""), (None, False, "")):  # fmt: skip
        vectors = made(rows, floors)
        measured = scales.measure(vectors)
        assert "seed" in {row.setting for row in measured}
        with out.capture() as captured:
            scale.print_scale(vectors, measured)
        record = scale.scale_record(vectors, measured)["noise_floor"]
        if floors is None:
            assert record is None
            assert "Run-to-run noise" not in captured.get()
        else:
            assert record == {"median": np.median(floors), "smallest": min(floors), "largest": max(floors),
                              "largest_of": f"f-10m-seed{np.argmax(floors)}", "n_models": 4}  # fmt: skip
            assert f"median {np.median(floors):.2g} bits/byte of 4 models" in captured.get()
        assert ("~ rounding noise is" in captured.get()) == bool(marked)
        axes = scale_ruler(measured, vectors.texts, scales.noise_floor(vectors)).axes[0]
        assert any(one.get_color() == NOISE for one in axes.lines) == line


# -------------------------------------------------------------------------------------------------------- the study


@pytest.mark.slow
def test_a_study_reads_a_model_in_every_way(make_model, texts, store):
    """All texts: three vectors are kept, and each KL is that of their values by a loop."""
    directory = str(make_model())
    (found,) = noise_study([directory], texts, store)
    names = [(reading.reading, reading.against) for reading in found.readings]
    assert names == [
        ("float32, other batches", "float32"), ("float32, other order", "float32"),
        ("float32, other batches and order", "float32"), ("bfloat16", "float32"),
        ("bfloat16, other batches and order", "bfloat16"), ("float16", "float32"),
        ("float16, other batches and order", "float16"), ("float16, sums in half precision", "float32"),
    ]  # fmt: skip
    assert all(reading.error is None and reading.kl.n_texts == 40 for reading in found.readings)
    vectors = store.vectors(texts)
    row = dict(zip(vectors.attributes["dtype"], vectors.log_likelihood, strict=True))
    row["half"] = np.array([struct.unpack("<e", struct.pack("<e", value))[0] for value in row["float16"]])
    for place, name in ((3, "bfloat16"), (5, "float16"), (7, "half")):
        reading = found.readings[place]
        expected = plain_kl(row["float32"], row[name], texts.bytes.mean())
        assert reading.kl.value == pytest.approx(expected, rel=1e-9)
        assert reading.largest == max(abs(x - y) for x, y in zip(row["float32"], row[name], strict=True))
    values = [reading.kl.value for reading in found.readings]
    assert max(values[:3]) < 1e-9 < values[5] < values[3], "float32 below float16 below bfloat16"
    assert store.noise_floor(texts.id, store.entries(texts.id)[0].key).n_texts == 40
    with whole_tables() as captured:
        print_noise([found], texts)
    assert "float16, sums in half precision" in captured.get()
    record = noise_record([found], texts)["models"][0]
    assert record["readings"][3]["kl"] == values[3]
    json.dumps(record, allow_nan=False)


@pytest.mark.slow
def test_a_study_of_some_texts_keeps_the_floors_alone(make_model, texts, store, tmp_path):
    (found,) = noise_study([str(make_model())], texts, store, n_texts=30, seed=1)
    assert {reading.kl.n_texts for reading in found.readings} == {found.n_texts} == {30}
    assert not store.entries(texts.id)
    assert len([*Path(tmp_path / "store").rglob("*.*")]) == 3
    (again,) = noise_study([str(tmp_path / "model")], texts, store, n_texts=30, seed=2)
    assert again.readings[3].kl.value != found.readings[3].kl.value
    with pytest.raises(InputError, match="no variance"):
        noise_study([], texts, store, n_texts=1)


def test_what_cannot_be_read_is_said_and_the_rest_goes_on(make_model, texts, store, tmp_path, monkeypatch):
    directory, load = str(make_model()), loading.load

    def without_half(resolved, *arguments, **options):
        if resolved.ref.dtype == "float16":
            raise KlscaleError("No float16 here.", "This machine has none.")
        return load(resolved, *arguments, **options)

    monkeypatch.setattr(loading, "load", without_half)
    refs = [str(tmp_path / "none"), directory + "%bfloat16", directory]
    missing, coarse, found = noise_study(refs, texts, store, n_texts=30)
    assert "none" in str(missing.error)
    assert coarse.error.remedy == directory
    assert [reading.reading for reading in found.readings if reading.error] == ["float16"]
    assert len(found.readings) == 6
    with whole_tables() as captured:
        print_noise([missing, coarse, found], texts)
    assert "cannot be run so" in captured.get()
    assert "This machine has none" in captured.get()
    assert noise_record([missing], texts)["models"][0]["error"] == str(missing.error)


def test_imported_values_are_judged_by_their_spacing(store):
    generator = np.random.default_rng(0)
    values = -800 + 100 * generator.standard_normal((2, 50))
    values[1] = in_half_precision(values[1])
    vectors = made({"a/exact": values[0], "a/half": values[1]})
    store.import_vectors(vectors, "values.csv")
    exact, half = noise_study(["a/exact", "a/half"], vectors.texts, store)
    assert (exact.is_half, half.is_half) == (False, True)
    assert exact.half_precision == half_precision_floor(values[0], vectors.texts.bytes)
    (missing,) = noise_study(["a/hlaf"], vectors.texts, store)
    assert "a/half" in str(missing.error)
    with out.capture() as captured:
        print_noise([exact, half], vectors.texts)
    assert captured.get().count("its values are such sums") == 1


def test_scores_of_some_texts_are_theirs():
    scores = Scores(
        np.array([1, 4, 6]), np.array([0.1, 0.4, 0.6]), np.array([2, 3, 4]), {"layers": np.arange(6.0).reshape(3, 2)}
    )
    some = scores.at(np.array([1, 6]))
    assert (some.text.tolist(), some.log_likelihood.tolist(), some.n_tokens.tolist()) == ([1, 6], [0.1, 0.6], [2, 4])
    assert some.layers.tolist() == [[0, 1], [4, 5]]
    assert replace(scores, parts={}).at(np.array([4])).layers is None
