"""Placing a model: families, what derives from what, and how often a statement is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

import klscale
from klscale.errors import InputError, ScoringError
from klscale.store.store import Store
from klscale.studies.placing import place_model
from klscale.sweep.score import score
from klscale.vectors.vectors import Vectors

N = 2000


def vectors_of(points, names, attributes=None):
    """Vectors whose KL is the squared distance of `points` (K, N) over 2 N bytes ln 2."""
    common = np.random.default_rng(9).normal(-600, 40, size=N)
    return Vectors.from_arrays(common + points, names, np.full(N, 200), attributes)


def families(seed, n_families=4, n_each=5, within=1.0, between=2.0):
    """Models around the centre of their family; names, and the family of each."""
    generator = np.random.default_rng(seed)
    centres = between * generator.normal(size=(n_families, N))
    points = np.repeat(centres, n_each, axis=0) + within * generator.normal(size=(n_families * n_each, N))
    names = [f"family{f}-m{m}" for f in range(n_families) for m in range(n_each)]
    return points, names, {name: {"family": name.split("-")[0]} for name in names}


def test_a_copy_a_child_and_an_independent_model():
    """A small shift is a copy. A child is at any distance, since all others branch off at its parent."""
    points, names, known = families(0)
    generator = np.random.default_rng(1)
    of = names.index("family2-m3")
    for kind, shift in (("near copy", 0.1), ("derived", 2.0), ("derived", 4.0)):
        new = points[of] + shift * generator.normal(size=N)
        found = place_model(vectors_of([*points, new], [*names, "new"], known), "new")
        assert (found.relation.kind, found.relation.of) == (kind, "family2-m3")
        assert found.neighbours[0].model == "family2-m3"
        difference = new - points[of]
        assert found.neighbours[0].kl.value == pytest.approx(difference.var() / (2 * 200 * np.log(2)))
        assert found.groupings[0].attribute == "family"
    sibling = points[10:15].mean(axis=0) + generator.normal(size=N)
    found = place_model(vectors_of([*points, sibling], [*names, "new"], known), "new")
    assert found.relation.kind == "independent"
    far = 12 * generator.normal(size=N)
    found = place_model(vectors_of([*points, far], [*names, "new"], known), "new")
    assert found.relation.kind == "far from all"


def test_the_nearest_are_in_order_of_the_kl_that_is_shown(tmp_path):
    """Of models with sampled tokens and without, where whole texts put them in another order."""
    lines = [f"The number {n} comes before {n + 1}, and its square is {n * n}." for n in range(40)]
    texts, store = klscale.TextSet.from_texts("numbers", lines), Store(tmp_path / "store")
    score(["mock://1", "mock://1?shift=0.1", "mock://1?shift=0.3"], texts, store)
    score(["mock://1?shift=0.12", "mock://1?shift=0.15"], texts, store, sampled_tokens=0)
    vectors = store.vectors(texts)
    found = place_model(vectors, "mock://1").neighbours
    assert {one.kl.estimator for one in found} == {"sampled tokens", "spans"}
    shown = [one.kl.value for one in found]
    assert shown == sorted(shown)
    whole = vectors.kl()
    by_whole_texts = [whole["mock://1", one.model].value for one in found]
    assert by_whole_texts != sorted(by_whole_texts)


def test_checkpoints_and_variants_count_as_one():
    """However many checkpoints a run has, it is one model where models are counted."""
    points, names, known = families(0)
    run = points[0] + 0.02 * np.random.default_rng(2).normal(size=(30, N))
    more = vectors_of([*points, *run], [*names, *(f"family0-m0@step{n}" for n in range(1, 31))], known)
    once, many = (place_model(one, "family1-m1") for one in (vectors_of(points, names, known), more))
    assert once.relation.n_independent == many.relation.n_independent == 19
    assert once.relation.as_near == many.relation.as_near


@pytest.mark.slow
def test_probabilities_are_right_as_often_as_they_say():
    """Over models that were never seen: the mean of what is claimed of the right group is how often it is right."""
    claimed, right = [], []
    for seed in range(3):
        points, names, known = families(seed, within=3.0, between=1.0)
        for n in range(0, len(names), 4):
            rest = [k for k in range(len(names)) if k != n]
            new = [points[n], *points[rest]]
            labels = {name: value for name, value in known.items() if name != names[n]}
            found = place_model(vectors_of(new, ["new", *(names[k] for k in rest)], labels), "new")
            group, probability = next(iter(found.groupings[0].probability.items()))
            claimed.append(probability)
            right.append(group == names[n].split("-")[0])
    gap = np.mean(right) - np.mean(claimed)
    assert abs(gap) < 3 * np.sqrt(np.mean(np.array(claimed) * (1 - np.array(claimed))) / len(claimed))


@pytest.mark.slow
def test_an_independent_model_is_seldom_taken_for_a_child():
    """One more independent model is said to derive from another, or to be a copy, in at most the share that is said."""
    wrong = []
    for seed in range(25):
        points, names, known = families(seed)
        kind = place_model(vectors_of(points, names, known), names[seed % len(names)]).relation.kind
        wrong.append(kind in ("near copy", "derived"))
    assert np.mean(wrong) <= 2 * 0.05 + 2 * np.sqrt(0.1 * 0.9 / len(wrong))


@pytest.mark.slow
def test_the_real_fourteen(run, fourteen):
    """Pile-trained models of three architectures: none derives from another, and KL does not tell their families."""
    found = json.loads(run("place", "state-spaces/mamba-790m-hf", "--store", fourteen, "--json").stdout)
    pairs = {
        frozenset((row["a"], row["b"])): row["kl"]
        for row in json.loads(run("kl", "--store", fourteen, "--json").stdout)
    }
    mine = sorted((kl, pair) for pair, kl in pairs.items() if found["model"] in pair)
    assert [row["kl"] for row in found["nearest"]] == pytest.approx([kl for kl, _ in mine[:10]])
    assert found["relation"]["kind"] == "independent"
    (grouping,) = found["groups"]
    assert not grouping["is_told"]
    assert sum(grouping["probability"].values()) == pytest.approx(1)
    shown = run("place", "state-spaces/mamba-790m-hf", "--store", fourteen).stdout
    assert "KL does not tell the family here" in " ".join(shown.split())


@pytest.mark.slow
def test_the_verb_and_what_it_refuses(fourteen, tmp_path):
    name = "EleutherAI/pythia-1b"
    placed = klscale.place(name, store=fourteen)
    assert placed.placement.model == name
    assert name in str(placed)
    assert klscale.place(name, store=fourteen, among=fourteen).nearest_kl.value == placed.nearest_kl.value
    with pytest.raises(ScoringError, match="nothing"):
        klscale.place("nothing", store=fourteen)
    with pytest.raises(InputError, match="is empty"):
        klscale.place(name, store=tmp_path / "empty")
    points, names, _ = families(0)
    few = vectors_of(points[:2], names[:2], {})
    with pytest.raises(InputError, match="two other models"):
        place_model(few, names[0])
    found = place_model(vectors_of(points[:4], names[:4]), names[0])
    assert (found.relation.kind, found.groupings) == ("not known", ())
