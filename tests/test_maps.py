"""Maps: against singular value decompositions, least squares and plain loops; what is kept stays as it is."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from sklearn.manifold import trustworthiness

from conftest import EXAMPLE
from klscale.errors import InputError, StorageError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import Progress
from klscale.science.estimates import format_estimate
from klscale.show import cautions, files
from klscale.show import maps as shown_maps
from klscale.show.pictures import model_map
from klscale.store.files import Files
from klscale.store.store import Store
from klscale.studies import maps
from klscale.vectors.imports import read_log_likelihoods
from klscale.vectors.vectors import CONVENTION, Vectors

BYTES = 100
SCALE = 2 * BYTES * math.log(2)


def made(L, names=None, convention=CONVENTION, clip=None, **labels):
    """Vectors (K, N) of models with these names, texts of one length; below 0, which changes no KL."""
    L = np.asarray(L, dtype=np.float64)
    L = L - max(0.0, np.nanmax(L))
    names = names or [f"m{k}" for k in range(len(L))]
    known = {name: {"dtype": "float32", "convention": convention} for name in names}
    texts = TextSet.from_texts("made", [f"{n:0{BYTES}}" for n in range(L.shape[1])], clip=clip, **labels)
    return Vectors.from_arrays(L, names, texts, known)


def families(K, N=300, n_families=4, seed=0):
    """Log-likelihoods (K, N) of models in families: centres far apart, members near each other."""
    generator = np.random.default_rng(seed)
    centres = 20 * generator.normal(size=(n_families, N))
    noise = generator.normal(size=(K, 5)) @ generator.normal(size=(5, N)) + generator.normal(size=(K, N))
    return -100 + centres[np.arange(K) % n_families] + noise


def centred(L):
    """Coordinates by hand: squared distances are KL in bits per byte."""
    Q = L - L.mean(axis=1, keepdims=True)
    return (Q - Q.mean(axis=0)) / math.sqrt(L.shape[1] * SCALE)


def without_signs(points):
    return points * np.sign(points[0])


# ---------------------------------------------------------------------------------------------- principal components


@pytest.mark.parametrize(("K", "N"), [(12, 300), (40, 9), (600, 800), (800, 550)])
def test_principal_components_are_those_of_a_singular_value_decomposition(K, N):
    """Fewer models than texts and more; Gram matrices that are factorised and iterated."""
    L = families(K, N)
    u, s, _ = np.linalg.svd(centred(L), full_matrices=False)
    found = maps.pca(made(L), 3)
    np.testing.assert_allclose(without_signs(found.points), without_signs((u * s)[:, :3]), atol=1e-9)
    np.testing.assert_allclose(found.share, (s**2 / (s**2).sum())[:3], rtol=1e-9)
    largest = np.abs(found.points).argmax(axis=0)
    assert (found.points[largest, range(3)] > 0).all()


def test_principal_components_are_the_same_again():
    L = families(600, 700)
    first, again = maps.pca(made(L), 3), maps.pca(made(L.copy()), 3)
    np.testing.assert_array_equal(first.points, again.points)
    np.testing.assert_array_equal(first.share, again.share)


def test_axes_that_models_do_not_fill_are_zero():
    found = maps.pca(made(families(2)), 3)
    assert not found.points[:, 1:].any()
    assert found.share.tolist() == [pytest.approx(1), 0, 0]
    between = (found.points[0] - found.points[1]) ** 2
    assert between.sum() == pytest.approx(made(families(2)).kl()["m0", "m1"].value)
    for K in (4, 8):  # three texts fill a plane, with fewer models or more; nothing new is blown up on what is left
        flat = made(families(K, 3))
        found = maps.place(maps.model_map(flat), flat, made(families(1, 3, seed=9), ["x"]))
        assert found.pca[:, :2].all()
        assert not found.pca[:, 2].any()


# -------------------------------------------------------------------------------------------------- the map of models


@pytest.mark.slow
def test_a_map_is_the_same_again_in_another_process(tmp_path):
    """Two fresh computations, bit for bit."""
    np.save(tmp_path / "L.npy", families(30))
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from test_maps import made
from klscale.studies.maps import model_map
found = model_map(made(np.load({str(tmp_path / "L.npy")!r})))
np.savez({str(tmp_path / "other")!r}, pca=found.pca, tsne=found.tsne, tsne3=found.tsne3)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    here, other = maps.model_map(made(families(30))), np.load(tmp_path / "other.npz")
    for name in ("pca", "tsne", "tsne3"):
        np.testing.assert_array_equal(getattr(here, name), other[name])
        assert np.isfinite(other[name]).all()


def test_a_map_keeps_families_together():
    """The nearest point of every model, on the plane and in space, is of its own family."""
    found = maps.model_map(made(families(40)))
    assert found.tsne.shape == (40, 2)
    assert found.tsne3.shape == (40, 3)
    for points in (found.pca, found.tsne, found.tsne3):
        distance = ((points[:, None] - points) ** 2).sum(axis=-1)
        np.fill_diagonal(distance, np.inf)
        assert (distance.argmin(axis=1) % 4 == np.arange(40) % 4).all()


def test_space_has_the_arrangement_of_the_plane_and_keeps_neighbours_as_a_map_of_its_own():
    """By trustworthiness, of t-SNE in space from principal components (scikit-learn counts the false neighbours)."""
    vectors = made(families(90, n_families=6))
    found = maps.model_map(vectors)
    points = vectors.coordinates()
    squared_distance = ((points[:, None] - points) ** 2).sum(axis=2)
    of_its_own = maps.tsne(squared_distance, 3)
    kept, own = (trustworthiness(points, shown, n_neighbors=10) for shown in (found.tsne3, of_its_own))
    assert kept > own - 0.01
    assert found.tsne3[:, 2].std() > 0.2 * found.tsne3[:, 0].std()  # it is no plane
    for axis in range(2):
        assert np.corrcoef(found.tsne[:, axis], found.tsne3[:, axis])[0, 1] > 0.8


def test_a_lower_perplexity_is_said():
    few, many = maps.model_map(made(families(31))), maps.model_map(made(families(91)))
    assert few.perplexity == 10
    assert any("t-SNE of 31 models has perplexity 10, not the 30" in note for note in few.notes)
    assert (many.perplexity, many.notes) == (30, ())


def test_few_models_have_principal_components_alone():
    for K in (2, 3, 4):
        vectors = made(families(K))
        found = maps.model_map(vectors)
        assert found.tsne is None is found.tsne3 is found.perplexity
        assert any(f"No t-SNE of {K} models: {K - 1} principal" in note for note in found.notes)
        distance = ((found.pca[:, None] - found.pca) ** 2).sum(axis=-1)
        np.testing.assert_allclose(distance, vectors.kl().value, atol=1e-12)
    assert maps.model_map(made(families(5))).tsne is not None


def test_one_model_is_no_map():
    with pytest.raises(InputError, match="two models or more"):
        maps.model_map(made(families(1)))


@pytest.mark.parametrize("K", [2, 6, 100])
def test_identical_models_have_a_map(K):
    L = families(K)
    L[:] = L[0]
    found = maps.model_map(made(L))
    assert not found.pca.any()
    assert not found.share.any()
    assert found.typical == pytest.approx(0, abs=1e-12)
    assert found.tsne is found.tsne3 is None
    assert any("agree on every text" in note for note in found.notes)
    some = families(K)
    some[: K // 2] = some[0]
    assert np.isfinite(maps.model_map(made(some)).pca).all()


def test_the_typical_distance_is_that_to_the_nearest():
    vectors = made(families(12))
    value = vectors.kl().value + np.diag([np.inf] * 12)
    assert maps.model_map(vectors).typical == pytest.approx(np.median(value.min(axis=1)))


def test_texts_that_some_lack_and_a_clip_that_moves_much_are_said():
    L = families(12)
    L[3, :20] = np.nan
    L[5, 100:130] = -900
    vectors = made(L, clip=-500.0)
    found = maps.model_map(vectors)
    assert any(note.startswith("On the 280 of 300 texts") for note in found.notes)
    assert any("more than 5% of the values of 1 of these" in note for note in found.notes)
    assert found.n_texts == 280
    rest = made(np.maximum(L[:, 20:], -500))
    np.testing.assert_allclose(np.abs(found.pca), np.abs(maps.model_map(rest).pca), atol=1e-9)


def test_models_without_texts_in_common_are_no_map():
    L = families(6)
    L[0, :150], L[1, 149:] = np.nan, np.nan
    with pytest.raises(InputError, match=r"6 models have 0 of 300 texts in common.\nm1 has the fewest, 149"):
        maps.model_map(made(L))


def test_conventions_are_never_mixed():
    one, other = made(families(4)), made(families(2, seed=1), ["x", "y"], convention="another")
    with pytest.raises(InputError, match="different conventions"):
        maps.model_map(one.joined(other))
    with pytest.raises(InputError, match="different conventions"):
        maps.place(maps.model_map(one), one, other)


# ------------------------------------------------------------------------------------------------------ added models


# ---------------------------------------------------------------------------------------------------------- hard sets

ROWS = families(12)
FAR = np.random.default_rng(1).normal(scale=4e3, size=300)
HARD = {
    "two": ROWS[:2],
    "four": ROWS[:4],
    "one twice": ROWS[[0, 0]],
    "all equal": ROWS[[0] * 9],
    "two of three equal": ROWS[[0, 0, 1]],
    "shifted by constants": ROWS[[0] * 7] - np.arange(7)[:, None],
    "some shifted, some not": np.concatenate([ROWS, ROWS[[0, 0, 3]] - [[3], [9], [0]]]),
    "more equal ones than neighbours": ROWS[[0] * 60 + [*range(12)]],
    "equal to rounding": np.concatenate([ROWS[[5] * 8] + 1e-9 * FAR[None, :] * np.arange(8)[:, None] / 4e3, ROWS]),
    "one far away": np.concatenate([ROWS, ROWS[:1] + FAR]),
    "one far away, others equal": np.concatenate([ROWS[[0, 0, 1, 1, 2]], ROWS[:1] + FAR]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HARD)
def test_maps_of_hard_sets(name):
    """Models that are equal up to a constant have one place, different ones have different places, nothing is NaN, and
    there is a picture."""
    rows = HARD[name]
    found = maps.model_map(vectors := made(rows))
    Q = rows - rows.mean(axis=1, keepdims=True)
    equal = np.abs(Q[:, None] - Q).max(axis=2) < 1e-6
    for points in (found.pca, found.tsne, found.tsne3):
        if points is not None:
            assert np.isfinite(points).all()
            away = np.abs(points[:, None] - points).max(axis=2)
            assert away[equal].max() < 1e-6
            if points is not found.pca:  # which may have more directions than axes
                assert (away[~equal] > 1e-3).all()
    assert (found.tsne is None) == (len(np.unique(equal, axis=0)) < maps.FEWEST)
    assert np.isfinite([found.typical, *found.share]).all()
    json.dumps(shown_maps.map_record(found, vectors), allow_nan=False)
    model_map(found, vectors, method="pca" if found.tsne is None else "tsne")


def test_a_new_model_that_equals_an_old_one_has_its_place():
    kept = maps.model_map(vectors := made(ROWS))
    found = maps.place(kept, vectors, made(ROWS[[4]] - 2.0, ["again"]))
    for points in (found.tsne, found.tsne3):
        np.testing.assert_array_equal(points[12], points[4])


@pytest.fixture(scope="module")
def ground():
    vectors = made(families(40))
    return vectors, maps.model_map(vectors)


def test_old_points_do_not_move(ground):
    vectors, kept = ground
    found = maps.place(kept, vectors, made(families(5, seed=3), [f"new{n}" for n in range(5)]))
    for name in ("pca", "tsne", "tsne3"):
        np.testing.assert_array_equal(getattr(found, name)[:40], getattr(kept, name))
        assert np.isfinite(getattr(found, name)).all()
    assert found.models == (*kept.models, *(f"new{n}" for n in range(5)))
    assert found.added.tolist() == [False] * 40 + [True] * 5
    assert found.made_of == kept.models
    np.testing.assert_array_equal(found.share, kept.share)


def test_a_new_model_that_equals_an_old_one_lands_on_it():
    """On principal components to rounding; on t-SNE beside it: nearer to it than to any other, and within half of
    the distance that is usual between neighbours."""
    generator = np.random.default_rng(0)
    L = -100 + generator.normal(size=(40, 4)) @ (5 * generator.normal(size=(4, 300))) + generator.normal(size=(40, 300))
    vectors, twins = made(L), made(L[[3, 17, 30]], ["a", "b", "c"])
    kept = maps.model_map(vectors)
    found = maps.place(kept, vectors, twins)
    for new, old in zip((40, 41, 42), (3, 17, 30), strict=True):
        np.testing.assert_allclose(found.pca[new], kept.pca[old], atol=1e-9)
        for points in (found.tsne, found.tsne3):
            between = np.sqrt(((points[:40, None] - points[:40]) ** 2).sum(axis=-1)) + np.diag([np.inf] * 40)
            away = np.sqrt(((points[:40] - points[new]) ** 2).sum(axis=1))
            assert away.argmin() == old
            assert away[old] < 0.5 * np.median(between.min(axis=1))
        off = found.off_map[found.models[new]]
        assert (off.nearest, off.kl.value) == (f"m{old}", 0)
        assert off.unexplained.value == 0


def test_new_models_are_projected(ground):
    vectors, kept = ground
    new = families(3, seed=5)
    found = maps.place(kept, vectors, made(new, ["x", "y", "z"]))
    Q = vectors.log_likelihood - vectors.log_likelihood.mean(axis=1, keepdims=True)
    _, _, axes = np.linalg.svd(centred(vectors.log_likelihood), full_matrices=False)
    moved = (new - new.mean(axis=1, keepdims=True) - Q.mean(axis=0)) / math.sqrt(300 * SCALE)
    np.testing.assert_allclose(np.abs(found.pca[40:]), np.abs(moved @ axes[:3].T), atol=1e-10)


def test_new_models_do_not_depend_on_each_other(ground):
    """At once, one after the other in either order: the same places and the same off-map."""
    vectors, kept = ground
    new = made(families(2, seed=7), ["x", "y"])
    at_once = maps.place(kept, vectors, new)
    for first, second in (("x", "y"), ("y", "x")):
        after = maps.place(maps.place(kept, vectors, new.subset([first])), vectors, new.subset([second]))
        for name in ("x", "y"):
            a, b = at_once.models.index(name), after.models.index(name)
            for points in ("pca", "tsne", "tsne3"):
                np.testing.assert_allclose(getattr(at_once, points)[a], getattr(after, points)[b], atol=1e-6)
            assert at_once.off_map[name].unexplained.value == pytest.approx(after.off_map[name].unexplained.value)


def test_a_far_model_is_placed_too(ground):
    """What no old model explains is a constant in its squared distances, which affinities do not feel: moving a model
    off in a direction that no old one has does not move it on the map."""
    vectors, kept = ground
    new = vectors.log_likelihood[[8]] * 0.5 + vectors.log_likelihood[[12]] * 0.5
    basis = np.vstack([np.ones(300), vectors.log_likelihood])
    away = np.random.default_rng(1).normal(size=300)
    away -= np.linalg.lstsq(basis.T, away, rcond=None)[0] @ basis
    orthonormal, _ = np.linalg.qr(np.vstack([np.ones(300), np.diff(vectors.log_likelihood, axis=0)]).T)
    free = 1 - (orthonormal**2).sum(axis=1)
    found = maps.place(kept, vectors, made(np.vstack([new, new + 300 * away]), ["near", "far"]))
    for points in (found.pca, found.tsne, found.tsne3):
        np.testing.assert_allclose(points[40], points[41], atol=1e-5)
    assert found.off_map["near"].unexplained.value == pytest.approx(0, abs=1e-9)
    assert found.off_map["far"].unexplained.value == pytest.approx(300**2 * (away**2 / free).mean() / SCALE)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("K", "N", "rank"), [(12, 150, 12), (12, 150, 5), (80, 60, 80), (80, 60, 20)])
def test_what_is_unexplained_is_the_least_squares_residual_less_its_bias(K, N, rank, shared):
    """Combinations whose weights add up to 1; models that are combinations of others; more models than texts. The
    jackknife is a loop that fits again without each text, or each document."""
    generator = np.random.default_rng(2)
    L = families(K, N, n_families=K)
    if rank < K:
        L = generator.dirichlet(np.ones(rank), size=K) @ families(rank, N, n_families=rank)
    new = families(2, N, n_families=2, seed=9)
    document = tuple(f"d{generator.integers(40)}" for _ in range(N)) if shared else None
    old, added = (made(rows, names, document=document) for rows, names in ((L, None), (new, ["a", "b"])))
    found = maps.place(maps.model_map(old), old, added)
    groups = [np.array(document) == d for d in sorted({*document})] if shared else [*np.eye(N, dtype=bool)]

    def squares_left(row, texts):  # weights that add up to 1: from the first model along the differences
        Q, q = (part[..., texts] - part[..., texts].mean(axis=-1, keepdims=True) for part in (L, row))
        differences = Q[1:] - Q[0]
        weights = np.linalg.lstsq(differences.T, q - Q[0], rcond=1e-10)[0]
        return ((q - Q[0] - weights @ differences) ** 2).sum() / SCALE

    for name, row in zip("ab", new, strict=True):
        whole = squares_left(row, np.ones(N, dtype=bool))
        each = np.array([whole - squares_left(row, ~group) for group in groups])
        value = each.sum() / N
        off = each - value * np.array([group.sum() for group in groups])
        estimate = found.off_map[name].unexplained
        assert estimate.value == pytest.approx(value, rel=1e-6, abs=1e-9)
        small_sample = len(groups) / (len(groups) - 1) if shared else 1.0
        error = math.sqrt(small_sample * (off**2).sum()) / N
        assert estimate.standard_error == pytest.approx(error, rel=1e-6, abs=1e-9)


def test_what_is_unexplained_keeps_its_digits_beside_large_and_small_models():
    """Old models whose lengths span more than five decades, new ones 10^7 times as far out as what is unexplained:
    against a QR factorisation, with the squares summed by document."""
    generator = np.random.default_rng(3)
    L = -100 + np.logspace(1.5, -4.2, 12)[:, None] * generator.normal(size=(12, 300))
    differences = (L - L.mean(axis=1, keepdims=True))[1:] - (L[0] - L[0].mean())
    long = 10_000 * differences / np.abs(differences).max(axis=1, keepdims=True)
    new = L[0] + generator.normal(size=(3, 11)) @ long + 0.001 * generator.normal(size=(3, 300))
    document = tuple(f"d{n // 7}" for n in range(300))
    old, added = (made(rows, names, document=document) for rows, names in ((L, None), (new, ["x", "y", "z"])))
    found = maps.place(maps.model_map(old), old, added)
    basis, _ = np.linalg.qr(np.vstack([differences, np.ones(300)]).T)
    free = np.eye(300) - basis @ basis.T
    for name, row in zip("xyz", new - new.mean(axis=1, keepdims=True), strict=True):
        left = row - (L[0] - L[0].mean())
        for _ in range(3):
            left = left - basis @ (basis.T @ left)
        groups = [np.array(document) == d for d in sorted({*document})]
        each = np.array([left[g] @ np.linalg.solve(free[np.ix_(g, g)], left[g]) for g in groups]) / SCALE
        estimate = found.off_map[name].unexplained
        assert estimate.value == pytest.approx(each.sum() / 300, rel=1e-7, abs=0)
        off = each - each.sum() / 300 * np.array([g.sum() for g in groups])
        error = math.sqrt(len(off) / (len(off) - 1) * (off**2).sum()) / 300
        assert estimate.standard_error == pytest.approx(error, rel=1e-7, abs=0)


def test_the_nearest_is_told_with_its_kl(ground):
    vectors, kept = ground
    new = made(families(2, seed=11), ["x", "y"])
    found = maps.place(kept, vectors, new)
    both = vectors.joined(new).kl()
    for name in ("x", "y"):
        value = [both[name, other].value for other in vectors.names]
        off = found.off_map[name]
        assert off.nearest == vectors.names[int(np.argmin(value))]
        assert off.kl.value == pytest.approx(min(value))
        assert off.kl.standard_error == pytest.approx(both[name, off.nearest].standard_error)
        assert off.typical == kept.typical
        for part in (off.nearest, str(off.kl), str(off.unexplained), f"{kept.typical:.2g}"):
            assert part in off.sentence


def test_many_models_for_few_texts_are_said_once(ground):
    """Above one model for ten texts, what a fit to all of them leaves has an error that heavy tails make too small."""
    vectors, _ = ground  # 40 models, 300 texts
    for old, many in ((vectors, 1), (vectors.subset(vectors.names[:30]), 0)):
        found = maps.model_map(old)
        for name in "xy":
            found = maps.place(found, old, made(families(1, seed=ord(name)), [name]))
        assert sum("models are many for 300 texts" in note for note in found.notes) == many


def test_a_new_model_that_lacks_texts_is_placed_by_those_it_has(ground):
    vectors, kept = ground
    row = vectors.log_likelihood[[4]].copy()
    row[0, :30] = np.nan
    found = maps.place(kept, vectors, made(row, ["x"]))
    assert any("Placed by 270 of the map's 300 texts, the others lack: x." in note for note in found.notes)
    assert np.abs(found.pca[40] - kept.pca[4]).max() < 0.1 * np.abs(kept.pca).max()
    assert found.off_map["x"].nearest == "m4"
    row[:] = np.nan
    with pytest.raises(InputError, match=r"0 of 300 texts in common.\nx has the fewest"):
        maps.place(kept, vectors, made(row, ["x"]))


def test_what_cannot_be_placed_is_refused(ground):
    vectors, kept = ground
    with pytest.raises(InputError, match="m3 is on the map already"):
        maps.place(kept, vectors, vectors.subset(["m3"]))
    with pytest.raises(InputError, match="not the same texts"):
        maps.place(kept, vectors, made(families(1), ["x"], clip=-300.0))
    with pytest.raises(InputError, match="No vector of m1 "):
        maps.place(kept, vectors.subset(["m0"]), made(families(1), ["x"]))


def test_models_are_placed_on_a_map_of_two():
    vectors = made(families(2))
    found = maps.place(maps.model_map(vectors), vectors, made(families(1, seed=4), ["x"]))
    assert found.tsne is None
    assert found.pca.shape == (3, 3)
    assert found.off_map["x"].unexplained.value > 0


# -------------------------------------------------------------------------------------------- neighbours and clusters


def clusters_of(vectors):
    return maps.cluster(vectors.kl_values(), vectors.names)


def test_clusters_are_those_of_average_linkage():
    """On points of a line, worked out by hand: (0, 1) at 1, (10, 12) at 2, then all at the mean of four distances."""
    position = np.array([10.0, 0.0, 12.0, 1.0])
    L = np.outer(position, np.tile([-1.0, 1.0], 50)) * math.sqrt(SCALE)
    found = clusters_of(made(L - 100))
    np.testing.assert_allclose(found.merges[:, 2], [1, 2, (10 + 12 + 9 + 11) / 4])
    assert "".join(map(str, found.order)) in ("1302", "2031")


def test_clusters_agree_with_scipy():
    vectors = made(families(20))
    distance = squareform(np.sqrt(vectors.kl().value), checks=False)
    expected = hierarchy.linkage(distance, "average", optimal_ordering=True)
    found = clusters_of(vectors)
    np.testing.assert_array_equal(found.merges, expected)
    np.testing.assert_array_equal(found.order, hierarchy.leaves_list(expected))
    assert sorted(found.order) == list(range(20))


def test_few_models_have_clusters():
    one = clusters_of(made(families(1)))
    assert (one.merges.shape, one.order.tolist()) == ((0, 4), [0])
    assert clusters_of(made(families(2))).order.tolist() == [0, 1]


def test_a_pair_without_kl_has_no_clusters_and_is_nobodys_neighbour():
    L = families(4)
    L[1, :150], L[3, 150:] = np.nan, np.nan
    vectors = made(L)
    with pytest.raises(InputError, match="m1 and m3 have no texts in common"):
        clusters_of(vectors)
    assert [name for name, _ in maps.nearest(vectors, 9, range(4))["m1"]] == sorted(
        ["m0", "m2"], key=lambda name: vectors.kl()["m1", name].value
    )


@pytest.mark.parametrize("rows", [range(15), [11, 3]])
def test_the_nearest_are_those_of_a_plain_sort(rows):
    """Of all models by the matrix of all pairs, of two by their own differences."""
    vectors = made(families(15))
    found = maps.nearest(vectors, 4, rows)
    matrix = made(vectors.log_likelihood).kl()
    assert [*found] == [f"m{row}" for row in rows]
    for name, near in found.items():
        pairs = sorted((matrix[name, other].value, other) for other in matrix.labels if other != name)[:4]
        assert [other for _, other in pairs] == [other for other, _ in near]
        for (value, other), (_, kl) in zip(pairs, near, strict=True):
            assert kl.value == pytest.approx(value, rel=1e-9)
            assert kl.standard_error == pytest.approx(matrix[name, other].standard_error, rel=1e-9)


# -------------------------------------------------------------------------------------------------------- kept maps


@pytest.fixture
def store(tmp_path):
    place = Store(tmp_path / "store")
    place.import_vectors(made(families(12)), "made")
    return place


def vectors_of(store):
    return store.vectors(store.resolve_texts(None))


def same(one, other):
    for name in ("pca", "share", "tsne", "tsne3", "added"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("models", "perplexity", "typical", "n_texts", "notes", "off_map"):
        assert getattr(one, name) == getattr(other, name), name


def test_a_kept_map_is_not_computed_again(store, monkeypatch):
    first = maps.kept_map(store, vectors_of(store))
    monkeypatch.setattr(maps, "model_map", lambda vectors: pytest.fail("computed again"))
    same(first, maps.kept_map(Store(store.location), vectors_of(store)))
    same(first, maps.kept_map(store, vectors_of(store).subset([f"m{k}" for k in range(11, -1, -1)])))
    assert all(not problem for _, problem in store.check())


def test_other_models_are_another_map(store):
    vectors = vectors_of(store)
    whole, part = maps.kept_map(store, vectors), maps.kept_map(store, vectors.subset(vectors.names[:8]))
    assert (len(whole), len(part)) == (12, 8)
    assert len(store.maps(vectors.texts.id)) == 2
    clipped = replace(vectors, texts=vectors.texts.with_clip(-110.0))
    assert not np.array_equal(maps.kept_map(store, clipped).pca, whole.pca)
    same(whole, maps.kept_map(store, vectors))


def test_a_model_that_was_scored_anew_is_another_map(store):
    """Of two vectors of one name the newest counts, here as everywhere."""
    whole = maps.kept_map(store, vectors_of(store))
    again = made(families(1, seed=8), ["m4"])
    store.import_vectors(replace(again, texts=vectors_of(store).texts), "made")
    assert len(store.entries(vectors_of(store).texts.id)) == 13
    found = maps.kept_map(store, vectors_of(store))
    assert found.models == whole.models
    assert not np.array_equal(found.pca, whole.pca)


def test_added_models_are_kept_with_the_map(store):
    whole = maps.kept_map(store, vectors_of(store))
    store.import_vectors(replace(made(families(2, seed=8), ["x", "y"]), texts=vectors_of(store).texts), "made")
    found = maps.extend_map(store, vectors_of(store), ["x", "m3", "x"])
    assert found.models == (*whole.models, "x")
    np.testing.assert_array_equal(found.tsne[:12], whole.tsne)
    further = maps.extend_map(store, vectors_of(store), ["y"])
    assert further.models == (*whole.models, "x", "y")
    np.testing.assert_array_equal(further.pca[:13], found.pca)
    same(further, maps.kept_map(store, vectors_of(store)))
    same(further, maps.extend_map(store, vectors_of(store), ["y", "m0"]))
    same(whole, maps.kept_map(store, vectors_of(store).subset(whole.models)))
    assert all(not problem for _, problem in store.check())


class Notes(Progress):
    """What is told to a person."""

    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def test_a_map_is_made_anew_where_that_is_wanted(store):
    """An added model then has its place like any other, and that is what is kept from then on. What was on the map
    already when it was to be added is said."""
    maps.kept_map(store, vectors_of(store).subset([f"m{k}" for k in range(11)]))
    told = Notes()
    placed = maps.extend_map(store, vectors_of(store), ["m11", "m3"], progress=told)
    assert told.notes == ["m3 is on the kept map already."]
    assert placed.added.tolist() == [False] * 11 + [True]
    same(placed, maps.kept_map(store, vectors_of(store)))
    anew = maps.kept_map(store, vectors_of(store), anew=True)
    same(anew, maps.model_map(vectors_of(store)))
    same(anew, maps.kept_map(store, vectors_of(store)))
    assert not anew.added.any()


def test_a_map_that_was_made_meanwhile_is_the_one(store, monkeypatch):
    """What others have seen stays where it is, unless it is wanted anew."""
    make = maps.model_map

    def make_while_another_does(vectors):
        with monkeypatch.context() as other:
            other.setattr(maps, "model_map", lambda vectors: replace(make(vectors), notes=("The other.",)))
            maps.kept_map(Store(store.location), vectors, anew=True)
        return make(vectors)

    monkeypatch.setattr(maps, "model_map", make_while_another_does)
    assert maps.kept_map(store, vectors_of(store)).notes == ("The other.",)
    assert maps.kept_map(store, vectors_of(store), anew=True).notes != ("The other.",)
    monkeypatch.undo()
    assert maps.kept_map(store, vectors_of(store)).notes != ("The other.",)


def test_a_map_that_cannot_be_kept_is_made_and_said(store, monkeypatch):
    def full(self, path, data):
        raise StorageError(f"{path} could not be written.", "No space left on device.")

    before = sorted(Path(store.location).rglob("*"))
    same(maps.kept_map(store, vectors_of(store), keep=False), maps.model_map(vectors_of(store)))
    told = Notes()
    monkeypatch.setattr(Files, "write", full)
    same(maps.kept_map(store, vectors_of(store), progress=told), maps.model_map(vectors_of(store)))
    (note,) = told.notes
    assert note.startswith("The map is not kept: ")
    assert note.endswith("No space left on device.")
    assert sorted(Path(store.location).rglob("*")) == before


@pytest.mark.slow
def test_maps_of_another_clip_values_or_format_are_not_taken(store):
    """Not even where the models are the same: the newest map that fits is extended, or none."""
    vectors = vectors_of(store)
    clipped = replace(vectors, texts=vectors.texts.with_clip(-110.0))
    maps.kept_map(store, clipped.subset(vectors.names[:9]))
    with pytest.raises(InputError, match="keeps no map of models"):
        maps.extend_map(store, vectors, ["m11"])
    fitting = maps.kept_map(store, vectors.subset(vectors.names[:8]))
    maps.kept_map(store, clipped.subset(vectors.names[:10]))
    assert maps.extend_map(store, vectors, ["m11"]).models == (*fitting.models, "m11")

    entry = next(entry for entry in store.entries(vectors.texts.id) if str(entry.ref) == "m2")
    scores = store.scores(entry)
    store.write(vectors.texts, replace(scores, log_likelihood=scores.log_likelihood[::-1].copy()), entry.metadata)
    found = maps.kept_map(store, vectors_of(store).subset(vectors.names[:8]))
    assert not np.array_equal(found.pca, fitting.pca), "of one key, but of other values"
    same(found, maps.model_map(vectors_of(store).subset(vectors.names[:8])))

    kept = store.maps(vectors.texts.id)[-1]
    store.write_map(vectors.texts.id, kept["key"], {"model": ["m0"]}, {"format": 2, "vectors": kept["vectors"]})
    assert all(not problem for _, problem in store.check())
    with pytest.raises(InputError, match="keeps no map of models"):
        maps.extend_map(store, vectors_of(store), ["m11"])
    same(found, maps.kept_map(store, vectors_of(store).subset(vectors.names[:8])))


def test_without_a_kept_map_nothing_is_added(store):
    with pytest.raises(InputError, match="keeps no map of models on made"):
        maps.extend_map(store, vectors_of(store), ["m3"])
    maps.kept_map(store, vectors_of(store).subset(["m0", "m1"]))
    store.remove(next(entry for entry in store.entries(vectors_of(store).texts.id) if str(entry.ref) == "m0"))
    with pytest.raises(InputError, match="klscale map"):
        maps.extend_map(store, vectors_of(store), ["m3"])


def test_models_that_the_store_lacks_have_no_kept_map(store):
    with pytest.raises(InputError, match="holds no vector of x on made"):
        maps.kept_map(store, replace(made(families(2), ["m0", "x"]), texts=vectors_of(store).texts))


def test_layers_are_not_on_a_kept_map(store):
    vectors = vectors_of(store)
    refs = tuple(replace(ref, layer=n) for n, ref in enumerate(vectors.models[:3]))
    frame = vectors.attributes[:3].set_axis([str(ref) for ref in refs])
    layers = replace(vectors, log_likelihood=vectors.log_likelihood[:3], models=refs, attributes=frame)
    assert maps.kept_map(store, vectors.joined(layers)).models == vectors.names


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "values", "notes", "name"])
def test_a_damaged_map_is_found_and_made_anew(store, damage):
    import pyarrow.parquet as pq

    first = maps.kept_map(store, vectors_of(store))
    (file,) = Path(store.location).glob("maps/*/*.parquet")
    table = pq.read_table(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "values":
        spoilt = table["pca_2"].to_numpy() + 1e-9
        pq.write_table(table.set_column(table.column_names.index("pca_2"), "pca_2", [spoilt]), file)
    elif damage == "notes":
        told = json.loads(table.schema.metadata[b"klscale"]) | {"notes": ["All is well."]}
        pq.write_table(table.replace_schema_metadata({"klscale": json.dumps(told)}), file)
    else:
        file.rename(file.with_name("0123456789ab.parquet"))
    ((path, problem),) = [(path, problem) for path, problem in store.check() if problem]
    assert "/maps/" in path
    said = {"cut": "does not read", "name": f"is the record of another key, {file.stem!r}"}
    assert problem.startswith(said.get(damage, "is not as it was written: its seal is broken"))
    again = maps.kept_map(store, vectors_of(store))
    np.testing.assert_array_equal(again.tsne, first.tsne)
    assert again.notes == first.notes


def test_a_killed_write_leaves_nothing_half(store, monkeypatch):
    def killed(path, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        maps.kept_map(store, vectors_of(store))
    monkeypatch.undo()
    assert not [*Path(store.location).glob("maps/**/*.parquet"), *Path(store.location).glob("maps/**/*.tmp")]
    assert len(maps.kept_map(store, vectors_of(store))) == 12


def test_maps_are_kept_in_object_stores(tmp_path):
    store = Store(f"memory://{tmp_path.name}")
    store.import_vectors(made(families(6)), "made")
    first = maps.kept_map(store, vectors_of(store))
    same(first, maps.kept_map(Store(store.location), vectors_of(store)))
    assert [problem for path, problem in store.check() if "/maps/" in path] == [""]


def test_other_tools_read_a_kept_map(store):
    found = maps.kept_map(store, vectors_of(store))
    frame = pd.read_parquet(next(Path(store.location).glob("maps/*/*.parquet")))
    assert frame["model"].tolist() == list(found.models)
    np.testing.assert_array_equal(frame[["pca_1", "pca_2", "pca_3"]].to_numpy(), found.pca)
    np.testing.assert_array_equal(frame[["tsne_1", "tsne_2"]].to_numpy(), found.tsne)
    assert frame["added"].dtype == bool


HOSTILE = ["[red]x[/red]", "<img src=x onerror=alert(1)>", "a\x1b[2Jb\n=1+1", "日本/🙂", "n" * 300, "../../etc/passwd"]


def test_hostile_names_are_names(tmp_path, capsys):
    store = Store(tmp_path / "store")
    names = [str(ModelRef(name)) for name in HOSTILE]
    vectors = made(families(7), [*names, "y"])
    store.import_vectors(vectors, "made")
    part = vectors_of(store).subset(names)
    maps.kept_map(store, part)
    found = maps.extend_map(store, vectors_of(store), ["y"])
    assert found.models == (*names, "y")
    same(found, maps.kept_map(store, vectors_of(store)))
    assert all(not problem for _, problem in store.check())
    assert [path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.parquet")] == ["store"] * 9
    json.dumps(shown_maps.map_record(found, vectors), allow_nan=False)


# ------------------------------------------------------------------------------------------------------ what is shown


@pytest.fixture
def printed(monkeypatch):
    """What is printed, on lines that do not wrap."""
    from rich.console import Console

    console = Console(width=400, record=True, highlight=False, emoji=False, file=io.StringIO())
    monkeypatch.setattr(cautions, "out", console)
    monkeypatch.setattr(shown_maps, "out", console)
    return lambda: console.export_text()


def test_the_example_is_mapped(printed):
    vectors = read_log_likelihoods(EXAMPLE, id_column="text_id")
    found = maps.model_map(vectors)
    shown_maps.print_map(found, vectors)
    text = printed()
    (near, kl), *_ = maps.nearest(vectors, 1, range(len(vectors)))["EleutherAI/pythia-410m"]
    (line,) = [line for line in text.splitlines() if line.startswith("EleutherAI/pythia-410m ")]
    assert near in line
    assert format_estimate(kl.value, kl.standard_error) in line
    assert f"{found.pca[vectors.position('EleutherAI/pythia-410m'), 0]:.3f}" in line
    assert "perplexity 4.33, not the 30" in text
    record = shown_maps.map_record(found, vectors)
    assert record["models"][vectors.position("EleutherAI/pythia-410m")]["attributes"]["parameters"] == 410_000_000
    json.dumps(record, allow_nan=False)
    assert f"{found.share[0]:.0%} and {found.share[1]:.0%} of the variance" in text


def test_added_models_are_told_apart(ground, printed):
    vectors, kept = ground
    new = made(families(2, seed=3), ["x", "y"])
    found = maps.place(kept, vectors, new)
    both = vectors.joined(new)
    shown_maps.print_map(found, both)
    text = printed()
    assert "x (added)" in text
    assert "40 of 42 models are shown" in text
    assert f"x was added. {found.off_map['x'].sentence}" in text
    record = shown_maps.map_record(found, both)
    json.dumps(record, allow_nan=False)
    told = {row["model"]: row for row in record["models"]}
    assert told["x"]["off_map"]["unexplained"]["value"] == found.off_map["x"].unexplained.value
    assert told["m0"]["off_map"] is None
    assert sorted(record["cluster_order"]) == sorted(found.models)
    assert len(told["m0"]["nearest"]) == 10
    first = told["m0"]["nearest"][0]
    assert first["kl"] == np.sort(np.delete(both.kl().value[0], 0))[0]
    assert first["standard_error"] == both.kl()["m0", first["model"]].standard_error


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_map_is_a_table(ground, tmp_path, ending):
    vectors, kept = ground
    new = made(families(1, seed=3), ["x"])
    found, both = maps.place(kept, vectors, new), vectors.joined(new)
    file = tmp_path / f"map.{ending}"
    files.save(file, lambda: shown_maps.map_rows(found, both), lambda: None)
    frame = pd.read_csv(file) if ending == "csv" else pd.read_parquet(file)
    assert frame["model"].tolist() == list(found.models)
    np.testing.assert_allclose(frame[["tsne_1", "tsne_2"]].to_numpy(), found.tsne)
    value = both.kl().value + np.diag([np.inf] * 41)
    np.testing.assert_allclose(frame["nearest_kl"], value.min(axis=1))
    assert np.isnan(frame["unexplained"][:40]).all()
    assert frame["unexplained"][40] == pytest.approx(found.off_map["x"].unexplained.value)


def test_two_models_are_shown(printed):
    vectors = made(families(2))
    found = maps.model_map(vectors)
    shown_maps.print_map(found, vectors)
    assert "No t-SNE of 2 models" in printed()
    rows = shown_maps.map_rows(found, vectors)
    assert np.isnan([row["tsne_1"] for row in rows]).all()
    assert [row["nearest"] for row in rows] == ["m1", "m0"]


def test_models_that_share_no_texts_with_each_other_have_no_clusters(ground, printed):
    """Each was placed by the texts that it shares with the map."""
    vectors, kept = ground
    rows = families(2, seed=3)
    rows[0, :150], rows[1, 150:] = np.nan, np.nan
    new = made(rows, ["x", "y"])
    found = maps.place(maps.place(kept, vectors, new.subset(["x"])), vectors, new.subset(["y"]))
    both = vectors.joined(new)
    record = shown_maps.map_record(found, both)
    assert record["cluster_order"] is None
    assert any("x and y have no texts in common" in note for note in record["notes"])
    shown_maps.print_map(found, both)
    assert "No clusters." in printed()


@pytest.mark.parametrize("nearly", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize(("K", "N", "rank"), [(12, 150, 12), (12, 150, 5), (80, 60, 20)])
def test_a_basis_is_orthonormal_though_models_are_nearly_equal(K, N, rank, nearly):
    """Points that differ from one another by this part of their length: the more equal, the fewer digits a Gram matrix
    leaves of their differences. Some are combinations of others."""
    generator = np.random.default_rng(4)
    points = generator.normal(size=(K, rank)) @ generator.normal(size=(rank, N))
    points = generator.normal(size=(1, N)) + nearly * points
    points -= points.mean(axis=1, keepdims=True)
    basis = maps._orthonormal(points)
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-9)
    left = points - (points @ basis.T) @ basis
    assert np.abs(left).max() <= 1e-5 * np.abs(points).max()
