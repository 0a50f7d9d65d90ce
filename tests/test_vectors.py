"""Vectors from arrays: what they hold, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from klscale import InputError, Vectors, limits
from klscale.inputs.texts import TextSet

L = -50.0 - np.random.default_rng(0).gamma(2.0, 9.0, size=(3, 40))
BYTES = np.arange(100, 140)
NAMES = ["org/toy-10m@step20", "org/toy-10m@step40+nf4", "a%%b"]


def test_kl_of_arrays_is_that_of_their_differences():
    values = L.copy()
    values[1, 30:] = np.nan
    vectors = Vectors.from_arrays(values.tolist(), NAMES, BYTES.tolist())
    found = vectors.kl()[NAMES[0], NAMES[1]]
    d = values[0, :30] - values[1, :30]
    assert found.value == pytest.approx(d.var() / (2 * BYTES[:30].mean() * np.log(2)), rel=1e-12)
    assert found.n_texts == 30
    assert vectors.texts.external
    assert vectors.texts.id != Vectors.from_arrays(L, NAMES, BYTES).texts.id


def test_attributes_are_of_the_names_and_of_what_is_given():
    known = {NAMES[0]: {"family": "mine", "noise_floor": 0.25}, NAMES[2]: {"dtype": "float16", "convention": "other"}}
    vectors = Vectors.from_arrays(L, NAMES, BYTES, known)
    table = vectors.attributes
    assert table["step"].tolist() == [20, 40, None]
    assert table["family"].tolist() == ["mine", "toy", None]
    assert table["quantization"].tolist() == [None, "nf4", None]
    assert table["dtype"].tolist() == [None, None, "float16"]
    assert table["convention"].tolist() == ["imported", "imported", "other"]
    assert np.array_equal(vectors.noise_floor, [0.25, np.nan, np.nan], equal_nan=True)
    assert vectors.names[2] == "a%25%25b", "no reference, so a literal name"
    assert [model.revision for model in vectors.models] == ["step20", "step40", None]


def test_a_text_set_brings_its_clip_and_documents():
    texts = TextSet("mine", BYTES, id="mine", clip=-60.0, document=tuple("abcd" * 10))
    found = Vectors.from_arrays(L, NAMES, texts).kl()[0, 1]
    assert found.n_documents == 4
    assert found.clipped == max((row < -60).mean() for row in L[:2])


def wrong(values=L, names=NAMES, sizes=BYTES, attributes=None):
    with pytest.raises(InputError) as caught:
        Vectors.from_arrays(values, names, sizes, attributes)
    return str(caught.value)


def changed(value):
    values = L.copy()
    values[1, 6] = value
    return values


def test_what_is_no_log_likelihood_is_refused_with_its_place():
    for value, problem in ((3.5, "3.5 is positive"), (-np.inf, "-inf is infinite"), (-1e13, "-1e+13 is below -1e+12")):
        assert f"model {NAMES[1]!r}, text 7: {problem}." in wrong(changed(value))


def test_what_does_not_agree_is_refused():
    assert "shape (3, 40); 2 names and 40 texts are given" in wrong(names=NAMES[:2])
    assert "shape (40, 3); 3 names and 40 texts are given" in wrong(L.T)
    assert "shape (40,); 3 names and 40 texts are given" in wrong(L[0])
    assert "'a b' and 'a%20b' are one model" in wrong(names=["a b", "a%20b", "c"])
    assert "a model has no name" in wrong(names=["a", " ", "b"])
    for size in (0, 10.5, np.nan):
        assert f"bytes, text 4: {size:g} is not a positive whole number." in wrong(sizes=[*BYTES[:3], size, *BYTES[4:]])
    assert "no model 'org/toy'" in wrong(attributes={"org/toy": {}})
    assert "unknown attribute 'famly'.\nDid you mean 'family'?" in wrong(attributes={NAMES[0]: {"famly": "x"}})


def test_all_models_in_order_are_the_same_vectors():
    vectors = Vectors.from_arrays(-np.ones((3, 4)), ["a", "b", "c"], [1, 2, 3, 4])
    assert vectors.subset(vectors.names) is vectors
    assert vectors.subset(["b", "a", "c"]).names == ("b", "a", "c")


def test_a_matrix_beyond_memory_is_an_error_at_once(monkeypatch):
    vectors = Vectors.from_arrays(-np.ones((3, 4)), ["a", "b", "c"], [1, 2, 3, 4])
    monkeypatch.setattr(limits, "free_memory", lambda: 1000)
    with pytest.raises(InputError, match="all 3 pairs of 3 models"):
        vectors.kl()
    monkeypatch.setattr(limits, "free_memory", lambda: 10**6)
    assert vectors.kl().value.shape == (3, 3)
