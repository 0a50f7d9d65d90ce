"""Maps: models as points in few dimensions, their nearest neighbours and clusters.

Squared distances between coordinates are KL in bits per byte. Principal components keep as much of them as few axes
can; t-SNE keeps neighbours. A kept map is not computed again, and new models are placed on it without moving the old
ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from klscale.errors import InputError, StorageError, UnreadableError
from klscale.inputs.texts import TextSet, content_id
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats, Integers
from klscale.science.clip import CLIP_LIMIT, common_texts
from klscale.science.estimates import Estimate, cluster_codes, n_clusters, standard_error_of_mean
from klscale.science.kl import KL, KLPairs
from klscale.store.measured_records import Columns
from klscale.store.records import UNREADABLE, from_record
from klscale.store.store import Store
from klscale.vectors.vectors import Vectors

PERPLEXITY, SEED = 30.0, 42
"""Perplexity and seed of the published maps (Kishino et al., arXiv 2505.15353); fewer than 91 models have a lower
perplexity."""
PLACING = 5.0
"""Perplexity of a model that is placed on a kept map (Policar et al., Machine Learning 112, 2023)."""
FORMAT = 1
"""Format of a kept map; a map of another format is made anew."""
FEWEST = 5
"""Fewest models of a t-SNE map: of fewer, three principal components show all distances as they are."""
AXES = 3
"""Number of principal components of a model map."""
EXACT = 5_000
"""Largest number of models whose neighbours are found among all others, and that have a t-SNE in space; and of rows of
a Gram matrix that is made."""
PROJECTED, CANDIDATES = 256, 2
"""Of more models: random directions that candidates for neighbours are found by, and how many of them for each."""
MOST_TSNE = 10_000
"""Largest number of models that t-SNE moves, in about a minute. Of more, so many are drawn, and the others are placed
among them."""
DRAWN = 1_000
"""Of more models: those whose nearest is looked for, to know how near that is."""
DENSE = 500
"""Largest number of rows of a Gram matrix that is factorised as a whole; of a larger one, the leading eigenvectors are
iterated."""
MANY = 0.1
"""Largest ratio of models to texts. Above it the standard error of `OffMap.unexplained` is too small where tails are
heavy."""
ROUNDING, NEGLIGIBLE = 1e-24, 1e-12
"""Largest variance of a model, in bits per byte, that is only rounding, as of equal models. And the smallest fraction
of the total variance, or of the largest squared length, that an axis has: below it the axis is rounding."""
ORTHONORMAL = 1e-10
"""Largest change of a random vector of unit variance by the Gram matrix of a basis that counts as orthonormal."""
RISE, STEPS = 0.1, 150
"""t-SNE in space goes on from that on the plane: a third axis begins with this part of its width, and so many steps
follow."""
LARGE = 10_000
"""From this number of models on, repulsion on a plane is interpolated (Linderman et al., Nature Methods 16, 2019), not
summed over a tree."""
ORDERED = 500
"""Largest number of models whose dendrogram has its leaves in optimal order: at worst, 2 s."""


@dataclass(frozen=True, eq=False)
class Map:
    """`points` (K, n) in root bits per byte: their squared distances approximate KL. `share` (n,) is the fraction of
    the variance on each axis."""

    points: Floats
    share: Floats


# ---------------------------------------------------------------------------------------------- principal components


def pca(vectors: Vectors, n: int = 2) -> Map:
    """Principal components (K, n) of the coordinates, in root bits per byte (Oyama et al., arXiv 2502.16173).

    The entry of an axis with the largest magnitude is positive. Axes beyond the rank of the coordinates are 0.
    """
    return _pca(vectors.coordinates(), n)


def _pca(points: Floats, n: int) -> Map:
    """The map of centred points (K, N), from the leading eigenvectors of the smaller Gram matrix, K x K or N x N. A
    large one is never made: Lanczos iterations need its products with vectors alone."""
    wide = points.shape[0] <= points.shape[1]
    factor: Any = points if min(points.shape) <= EXACT else scipy.sparse.linalg.aslinearoperator(points)
    gram = factor @ factor.T if wide else factor.T @ factor
    found, share = np.zeros((len(points), n)), np.zeros(n)
    total = float(np.trace(gram) if factor is points else np.einsum("kn,kn->", points, points))
    if total > ROUNDING * len(points):
        values, axes = _leading(gram, n)
        values, axes = (part[..., values > NEGLIGIBLE * total] for part in (values, axes))
        found[:, : len(values)] = axes * np.sqrt(values) if wide else points @ axes
        share[: len(values)] = values / total
    return Map(_signed(found), share)


def _leading(gram: Any, n: int) -> tuple[Floats, Floats]:
    """The `n` largest eigenvalues of a Gram matrix (P, P), or all P, largest first, and their eigenvectors (P, n)."""
    P = gram.shape[0]
    if P <= max(DENSE, n):
        values, axes = scipy.linalg.eigh(gram, subset_by_index=[max(P - n, 0), P - 1])
    else:
        start = np.random.default_rng(SEED).normal(size=P)  # the same vectors again
        values, axes = scipy.sparse.linalg.eigsh(gram, n, v0=start)
    order = np.argsort(values)[::-1]
    return values[order], axes[:, order]


def gram_matrix(squared_distance: Floats) -> Floats:
    """The Gram matrix (..., K, K) of centred points with these squared distances (..., K, K): classical scaling."""
    rows = squared_distance.mean(axis=-1, keepdims=True)
    columns = squared_distance.mean(axis=-2, keepdims=True)
    return np.asarray(-0.5 * (squared_distance - rows - columns + rows.mean(axis=-2, keepdims=True)))


def principal_components(gram: Floats, n: int) -> Map:
    """The map with `n` axes of the centred points with this Gram matrix (..., K, K)."""
    values, axes = np.linalg.eigh(gram)
    values, axes = values[..., ::-1].clip(min=0.0), axes[..., ::-1]
    points = axes[..., :n] * np.sqrt(values[..., None, :n])
    total = values.sum(axis=-1, keepdims=True)
    return Map(_signed(points), values[..., :n] / np.where(total > 0, total, 1.0))


def _signed(points: Floats) -> Floats:
    """Points (..., K, n) with axes turned so that the entry with the largest magnitude is positive."""
    largest = np.take_along_axis(points, np.abs(points).argmax(axis=-2)[..., None, :], axis=-2)
    return np.asarray(points * np.where(largest < 0, -1.0, 1.0))


# ------------------------------------------------------------------------------------------------------------- t-SNE


def tsne(squared_distance: Floats, n: int = 2) -> Floats:
    """t-SNE (K, n; no unit) of points with these squared distances (K, K), initialised by PCA.

    With fewer than 91 points the perplexity is (K - 1) / 3. The same distances give the same map. Raises InputError for
    fewer than n + 1 points.
    """
    K = len(squared_distance)
    if K <= n:
        raise InputError(f"{K} models are too few for t-SNE in {n} dimensions.", remedy=f"Use {n + 1} or more.")
    points = principal_components(gram_matrix(squared_distance), K).points  # all axes: the distances are exact
    return _tsne(_Neighbours(points, perplexity(K)), points[:, :n])


def perplexity(n_models: int) -> float:
    """The published perplexity, or a third of the number of other models if that is smaller."""
    return min(PERPLEXITY, (n_models - 1) / 3)


class _Neighbours:
    """The nearest neighbours of each of K points (K, N), three times the perplexity, nearest first: `indices` and
    `distances`. Up to 5,000 points they are found exactly; of more, among candidates."""

    def __init__(self, points: Floats, perplexity: float) -> None:
        from openTSNE.nearest_neighbors import Sklearn

        self.perplexity = perplexity
        k = max(1, min(len(points) - 1, round(3 * perplexity)))
        if len(points) <= EXACT:
            self.indices, self.distances = Sklearn(points, k, "euclidean").build()
        else:
            self.indices, self.distances = _near(points, k)


def _near(points: Floats, k: int, among: Integers | None = None) -> tuple[Integers, Floats]:
    """The places (K, k) of neighbours of each of K points (K, N), nearest first, and the exact distances to them.

    They are the nearest of 2 k candidates, at least 20, which are nearest in a projection on 256 random directions. It
    keeps each squared distance to 9 % (one standard deviation; Johnson and Lindenstrauss, 1984), so that a neighbour is
    missed where many points are nearly as near.

    With `among` (A,), the places of some points: the neighbours (K - A, k) of the others among these.
    """
    from sklearn.neighbors import NearestNeighbors

    directions = np.random.default_rng(SEED).normal(size=(points.shape[1], PROJECTED))
    shadows = (points @ directions).astype(np.float32)
    every = np.arange(len(points))
    of, base = (every, every) if among is None else (np.setdiff1d(every, among), among)
    n = min(max(CANDIDATES * k, 20), len(base) - (among is None))
    index = NearestNeighbors(n_neighbors=n).fit(shadows[base])
    candidates = base[index.kneighbors(None if among is None else shadows[of], return_distance=False)]
    indices, distances = np.empty((len(of), k), dtype=np.int64), np.empty((len(of), k))
    for row, (place, near) in enumerate(zip(of, candidates, strict=True)):
        apart = points[near]
        apart -= points[place]
        squares = np.einsum("kn,kn->k", apart, apart)
        order = np.argsort(squares, kind="stable")[:k]
        indices[row], distances[row] = near[order], np.sqrt(squares[order])
    return indices, distances


def _nearest(points: Floats, rows: Integers) -> Integers:
    """The place (R,) of the nearest other of K points (K, N) for those of `rows` (R,), by all distances."""
    squares, found = np.einsum("kn,kn->k", points, points), list[Integers]()
    for some in np.array_split(rows, -(-max(len(rows), 1) // 64)):  # 100,000 distances of each take 0.8 MB
        distance = squares - 2 * (points[some] @ points.T)
        distance[np.arange(len(some)), some] = np.inf
        found.append(distance.argmin(axis=1))
    return np.concatenate(found)


def _tsne(neighbours: _Neighbours, components: Floats) -> Floats:
    """t-SNE (K, n) from neighbours, initialised by n principal components (K, n).

    One thread: with more, the order of sums and therefore the map would vary from run to run.
    """
    from openTSNE import TSNE

    K, n = components.shape
    width = float(components[:, 0].std())
    # As openTSNE does: tiny, so that attraction acts first; with noise, so that no two points coincide.
    start = components * (1e-4 / width if width > 0 else 0.0)
    start += np.random.default_rng(SEED).normal(scale=1e-6, size=start.shape)
    method = "fft" if K >= LARGE and n < 3 else "bh"
    model = TSNE(n, initialization=start, negative_gradient_method=method, random_state=SEED, n_jobs=1)
    return np.array(model.fit(affinities=_affinities_among(neighbours)))


def _raised(neighbours: _Neighbours, on_plane: Floats, component: Floats) -> Floats:
    """t-SNE in space (K, 3) that goes on from that on the plane (K, 2), with a principal component (K,) as third axis.

    It has the arrangement of the plane. It keeps neighbours as well as one of 750 steps from principal components, in a
    quarter of the time; the loss is up to 6 % larger (benchmarks/maps.md).
    """
    from openTSNE import TSNEEmbedding

    width, spread = float(on_plane.std()), float(component.std())
    start = np.column_stack([on_plane, component * (RISE * width / spread if spread > 0 else 0.0)])
    start += np.random.default_rng(SEED).normal(scale=1e-3 * width, size=start.shape)  # no axis is flat
    raised = TSNEEmbedding(
        start, _affinities_among(neighbours), negative_gradient_method="bh", random_state=SEED, n_jobs=1
    )
    return np.array(raised.optimize(STEPS, learning_rate="auto", momentum=0.8))


def _affinities_among(neighbours: _Neighbours) -> Any:
    """Symmetric Gaussian affinities (K, K), sparse, of points to their neighbours."""
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    index = PrecomputedNeighbors(neighbours.indices, neighbours.distances)
    return PerplexityBasedNN(knn_index=index, perplexity=neighbours.perplexity)


def _affinities(nearest: Integers, squared_distance: Floats, perplexity: float, K: int) -> Any:
    """Gaussian affinities (M, K), sparse, of new points to K old ones: of each to its `nearest` (M, k), nearest first,
    at these squared distances (M, k).

    Affinities of one perplexity do not change if a constant is added to all squared distances of a point. The part of a
    new point that no old model explains is such a constant: it has no effect. The distance to the nearest point may
    therefore be subtracted, so that nothing underflows.
    """
    from openTSNE.affinity import joint_probabilities_nn

    distance = np.sqrt(squared_distance - squared_distance[:, :1])
    return joint_probabilities_nn(
        nearest, distance, [perplexity], symmetrize=False, normalization="point-wise", n_reference_samples=K
    )


def _placed(old: Floats, squared_distance: Floats, perplexity: float) -> Floats:
    """Places (M, n) of new points on the t-SNE map `old` (K, n), from their squared distances (M, K) to the old points.

    Old points do not move; each new point is placed independently (Policar et al., Machine Learning 112, 2023).
    """
    from openTSNE import PartialTSNEEmbedding, TSNEEmbedding
    from openTSNE.affinity import PrecomputedAffinities

    K = len(old)
    nearest = np.argsort(squared_distance, axis=1, kind="stable")[:, : max(1, min(K, round(3 * perplexity)))]
    affinities = _affinities(nearest, np.take_along_axis(squared_distance, nearest, axis=1), perplexity, K)
    fixed = TSNEEmbedding(old, PrecomputedAffinities(scipy.sparse.csr_matrix((K, K)), normalize=False))
    placed = PartialTSNEEmbedding(affinities @ old, fixed, affinities, negative_gradient_method="bh", theta=0.5)
    found = placed.optimize(250, learning_rate=0.1, exaggeration=1.5, momentum=0.8, max_grad_norm=0.25, n_jobs=1)
    return np.array(found)


# --------------------------------------------------------------------------------------------------- the map of models


@dataclass(frozen=True)
class OffMap:
    """How far a model is from the models that a map was made of, in bits per byte.

    `unexplained` is its squared distance from the nearest combination of their coordinates, with weights that add up to
    1. It is the squared least-squares residual on texts that the weights were not fitted to; 0 where there are as many
    models as texts. `kl` is KL to the `nearest` of the models. `typical` is the median KL between each of the map's own
    models and its nearest.
    """

    unexplained: Estimate
    nearest: str
    kl: KL
    typical: float

    @property
    def sentence(self) -> str:
        """The result in words."""
        return (
            f"Its nearest model on the map is {self.nearest}, at KL {self.kl} by whole texts (median over the map's "
            f"own models: {self.typical:.2g}). No combination of them explains {self.unexplained} of its squared "
            "distance."
        )


@dataclass(frozen=True, eq=False)
class ModelMap:
    """K `models` (names) as points, on `n_texts` texts.

    `pca` (K, 3) are principal components in root bits per byte; `share` (3,) is the fraction of the variance on each.
    `tsne` (K, 2) and `tsne3` (K, 3) have no unit; they are None where models are too few. `typical` is the median KL of
    a model to its nearest, in bits per byte. `notes` are cautions in words.

    Models that were `added` (K,) later did not move the others. `share`, `perplexity`, `typical` and `n_texts` describe
    only the others. `off_map` (name -> OffMap) has the distance of each added model from them.
    """

    models: tuple[str, ...]
    pca: Floats
    share: Floats
    tsne: Floats | None
    tsne3: Floats | None
    perplexity: float | None
    typical: float
    n_texts: int
    added: NDArray[np.bool_]
    off_map: Mapping[str, OffMap] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.models)

    @property
    def made_of(self) -> tuple[str, ...]:
        """The models that were not added later."""
        return tuple(name for name, added in zip(self.models, self.added, strict=True) if not added)

    def subset(self, models: Sequence[str]) -> ModelMap:
        """These of its models, at their places."""
        row_of = {name: row for row, name in enumerate(self.models)}
        rows = [row_of[name] for name in models]
        return replace(
            self,
            models=tuple(models),
            pca=self.pca[rows],
            tsne=None if self.tsne is None else self.tsne[rows],
            tsne3=None if self.tsne3 is None else self.tsne3[rows],
            added=self.added[rows],
            off_map={name: off_map for name, off_map in self.off_map.items() if name in models},
        )


def model_map(vectors: Vectors) -> ModelMap:
    """The map of these models: principal components and t-SNE of their coordinates.

    It uses the common texts and the text set's clip. The same vectors give the same map. Raises InputError for fewer
    than two models, for models without common texts, and for vectors of different conventions.
    """
    K = len(vectors)
    if K < 2:
        raise InputError("A map needs two models or more.", f"{K} given.", "klscale score REF...")
    points = _coordinates(vectors)
    components, notes = _pca(points, AXES), _notes(vectors, points.shape[1])
    chosen = np.random.default_rng(SEED).permutation(K)[:MOST_TSNE] if K > MOST_TSNE else np.arange(K)
    chosen.sort()
    shown = _shown(points[chosen] if len(chosen) < K else points, components.points[chosen])
    on_plane, typical = shown.on_plane, shown.typical
    notes += shown.notes
    if len(chosen) < K:
        drawn = np.sort(np.random.default_rng(SEED).permutation(K)[:DRAWN])
        typical = float(np.median(((points[drawn] - points[_nearest(points, drawn)]) ** 2).sum(axis=1)))
        notes.append(f"The median KL of a model to its nearest is of {len(drawn):,} models, drawn at random.")
        if on_plane is not None:
            on_plane = _all_placed(points, chosen, on_plane)
            notes.append(
                f"t-SNE is of {len(chosen):,} models, drawn at random: the other {K - len(chosen):,} have the mean "
                "place of their nearest of these."
            )
    if K > EXACT:
        notes.append(f"Neighbours of {K:,} models are found by projection, with exact distances; a few may be missed.")
    return ModelMap(
        models=vectors.names,
        pca=components.points,
        share=components.share,
        tsne=on_plane,
        tsne3=shown.in_space,
        perplexity=shown.perplexity,
        typical=typical,
        n_texts=points.shape[1],
        added=np.zeros(K, dtype=bool),
        notes=tuple(notes),
    )


@dataclass(frozen=True, eq=False)
class _Shown:
    """t-SNE of K points `on_plane` (K, 2) and `in_space` (K, 3), and why there is none in `notes`; and the median
    squared distance from a point to its nearest."""

    on_plane: Floats | None
    in_space: Floats | None
    perplexity: float | None
    typical: float
    notes: list[str]


def _shown(points: Floats, components: Floats) -> _Shown:
    """t-SNE of points (K, N) with these principal components (K, 3)."""
    K, notes = len(points), list[str]()
    near = _Neighbours(points, perplexity(K))
    typical = float(np.median(near.distances[:, 0] ** 2))
    first, place_of = _distinct(points, near)
    if (n_distinct := len(first)) < K:
        near = _Neighbours(points[first], perplexity(n_distinct)) if n_distinct >= FEWEST else near
        if n_distinct > 1:
            equal = K - n_distinct
            have = (
                "models have the place of other ones, which they equal"
                if equal > 1
                else "model has the place of another, which it equals"
            )
            notes.append(f"{equal:,} {have} up to a constant.")
    on_plane = in_space = None
    which = f"{n_distinct:,} models" if n_distinct == K else f"{n_distinct:,} different models"
    if not components.any():
        notes.append("All of these models agree on every text: there is no map of them.")
    elif n_distinct < FEWEST:
        n_axes = min(n_distinct - 1, AXES)
        shown = "1 principal component shows" if n_axes == 1 else f"{n_axes} principal components show"
        notes.append(f"No t-SNE of {which}: {shown} all of their distances.")
    else:
        plane = _tsne(near, components[first, :2])
        on_plane = plane[place_of]
        if n_distinct <= EXACT:
            in_space = _raised(near, plane, components[first, 2])[place_of]
        else:
            notes.append(f"t-SNE of {which} is in the plane alone.")
        if near.perplexity < PERPLEXITY:
            notes.append(f"t-SNE of {which} has perplexity {near.perplexity:.3g}, not the {PERPLEXITY:g} of many.")
    return _Shown(on_plane, in_space, None if on_plane is None else near.perplexity, typical, notes)


def _all_placed(points: Floats, chosen: Integers, on_plane: Floats) -> Floats:
    """Places (K, 2) of K points (K, N), of which some have places `on_plane` (C, 2) by t-SNE. The others have the mean
    place of their nearest of these, by their affinities; or the place of one that they coincide with."""
    nearest, distances = _near(points, round(3 * PLACING), chosen)
    squares, of_chosen = distances**2, np.searchsorted(chosen, nearest)
    placed = np.asarray(_affinities(of_chosen, squares, PLACING, len(chosen)) @ on_plane)
    equal = distances[:, 0] <= _rounding(points)
    placed[equal] = on_plane[of_chosen[equal, 0]]
    found = np.empty((len(points), on_plane.shape[1]))
    found[chosen], found[np.setdiff1d(np.arange(len(points)), chosen)] = on_plane, placed
    return found


def _rounding(points: Floats) -> float:
    """The distance below which two of these points (K, N) differ by rounding."""
    return math.sqrt(max(ROUNDING, NEGLIGIBLE * float(np.einsum("kn,kn->k", points, points).max())))


def _distinct(points: Floats, near: _Neighbours) -> tuple[Integers, Integers]:
    """The first of each group of points (K, N) that coincide to rounding (D,), and the group of each point (K,).
    t-SNE would spread the points of a group: to it the nearest neighbours of a point are never at no distance."""
    K = len(points)
    first, group = np.arange(K, dtype=np.int64), np.arange(K, dtype=np.int64)
    limit = _rounding(points)
    while len(first) > 1:
        a, b = np.nonzero(near.distances <= limit)
        links = scipy.sparse.coo_matrix((np.ones(len(a)), (a, near.indices[a, b])), shape=(len(first), len(first)))
        _, kept, found = np.unique(
            scipy.sparse.csgraph.connected_components(links, directed=False)[1], return_index=True, return_inverse=True
        )
        if len(kept) == len(first):
            break
        order = np.argsort(kept)
        first, group = first[kept[order]], np.argsort(order)[found[group]]
        if len(first) > 1:  # a group may be larger than a neighbourhood
            near = _Neighbours(points[first], perplexity(len(first)))
    return first, group


def _coordinates(vectors: Vectors) -> Floats:
    there = ~np.isnan(vectors.log_likelihood)
    if (n := int(there.all(axis=0).sum())) < 2:
        fewest = there.sum(axis=1).argmin()
        raise InputError(
            f"{len(vectors):,} models have {n} of {len(vectors.texts):,} texts in common.",
            f"{vectors.names[fewest]} has the fewest, {there[fewest].sum():,}.",
            "Score the models on all texts, or leave that one out.",
        )
    return vectors.coordinates()


def _notes(vectors: Vectors, n_texts: int) -> list[str]:
    """Cautions about the coordinates of these models, in words."""
    notes, texts = list[str](), vectors.texts
    if n_texts < len(texts):
        notes.append(f"On the {n_texts:,} of {len(texts):,} texts that all of these models have.")
    if heavily := vectors.n_moved_by_clip():
        notes.append(
            f"The clip moves more than {CLIP_LIMIT:.0%} of the values of {heavily:,} of these models: "
            "they seem nearer to others than they are."
        )
    return notes


def place(kept: ModelMap, old: Vectors, new: Vectors) -> ModelMap:
    """A kept map with new models on it; the old points stay the same, to the bit.

    `old` holds the vectors of the models that the map was made of; further models in it are ignored. Principal
    components of a new model are its exact projection. On t-SNE it is placed among the models that the map was made of.

    Both places, and the distance off the map, do not depend on the other new models, with one exception. Texts that one
    of the `new` models lacks are left out for all, with a note. The projection then uses inner products on the rest.

    Raises InputError for a model that is on the map already; for vectors of different texts, clips or conventions; and
    for models without common texts.
    """
    if twice := set(kept.models) & set(new.names):
        raise InputError(
            f"{min(twice)} is on the map already.", remedy="Leave it out, or make the map anew: klscale map --anew"
        )
    if not len(new):
        return kept
    ground = ~kept.added
    if old.names != kept.made_of:
        old = old.subset(kept.made_of)
    points = _coordinates(old.joined(new))
    points -= points[: len(old)].mean(axis=0)  # the centre of the map is that of the old models
    near, far = points[: len(old)], points[len(old) :]
    products = far @ near.T
    length = (kept.pca[ground] ** 2).sum(axis=0)
    components = products @ kept.pca[ground] / np.where(length > 0, length, 1.0)
    far2, near2 = (np.einsum("kn,kn->k", rows, rows) for rows in (far, near))
    distance = (far2[:, None] + near2 - 2 * products).clip(min=0.0)
    limit = max(ROUNDING, NEGLIGIBLE * float(near2.max()))  # below it a distance is rounding

    def tsne_with_new(points: Floats | None) -> Floats | None:
        if points is None or kept.perplexity is None:
            return None
        there, placed = points[ground], _placed(points[ground], distance, min(PLACING, kept.perplexity))
        closest, equal = distance.argmin(axis=1), distance.min(axis=1) <= limit
        placed[equal] = there[closest[equal]]
        return np.concatenate([points, placed])

    common = common_texts(old.log_likelihood) & common_texts(new.log_likelihood)
    left_over = unexplained(near, far, old.texts.documents_of(np.flatnonzero(common)))
    off_map = {}
    for name, row, estimate in zip(new.names, distance, left_over, strict=True):
        pair = old.subset([old.names[int(row.argmin())]]).joined(new.subset([name]))
        off_map[name] = OffMap(estimate, pair.names[0], pair.kl()[0, 1], kept.typical)
    notes = list(kept.notes)
    if points.shape[1] < kept.n_texts:
        listed = ", ".join(new.names[:3]) + (", ..." if len(new) > 3 else "")
        notes.append(f"Placed by {points.shape[1]:,} of the map's {kept.n_texts:,} texts, the others lack: {listed}.")
    if len(old) > MANY * points.shape[1]:
        notes.append(
            f"{len(old):,} models are many for {points.shape[1]:,} texts: where tails are heavy, the standard error of "
            "the unexplained squared distance is too small."
        )
    return replace(
        kept,
        models=kept.models + new.names,
        pca=np.concatenate([kept.pca, components]),
        tsne=tsne_with_new(kept.tsne),
        tsne3=tsne_with_new(kept.tsne3),
        added=np.concatenate([kept.added, np.ones(len(new), dtype=bool)]),
        off_map={**kept.off_map, **off_map},
        notes=tuple(dict.fromkeys(notes)),
    )


def unexplained(old: Floats, new: Floats, documents: Any = None) -> list[Estimate]:
    """Squared residual of each new point (M, N) from a least-squares fit by the old points (K, N), on texts that the
    fit has not used; an estimate in bits per byte. It is 0 for a combination of old points, and where these span every
    direction, as N of them do.

    On the fitted texts the residual is too small, most of all on texts where models differ much. The jackknife removes
    this bias: it leaves out each text s in turn and sums e_s**2 / (1 - h_s), the amount that the text removes from the
    sum of squares. e is the residual and h the diagonal of the hat matrix H; for a document it is e'(1 - H)**-1 e of
    its texts (Belsley, Kuh and Welsch, Regression Diagnostics, 1980, chapter 2).

    In simulations of 97 models on 500 texts its interval covers 89 %, and that of the plain residual 9 %. It covers
    62 % where the same texts separate all models, with a kurtosis of 10.
    """
    N, clusters = old.shape[1], cluster_codes(documents)
    basis = _orthonormal(old)
    left = new.copy() if len(basis) < N - 1 else np.zeros_like(new)
    for _ in range(2):
        left -= (left @ basis.T) @ basis
    left[np.einsum("mn,mn->m", left, left) <= ROUNDING] = 0.0  # a copy, or a combination, of old ones
    influence = N * left * _left_out(left, basis, clusters)
    values, errors = influence.mean(axis=1), standard_error_of_mean(influence, clusters)
    n_documents, both = n_clusters(clusters), zip(values.tolist(), errors.tolist(), strict=True)
    return [Estimate.positive(value, error, N, n_documents=n_documents) for value, error in both]


def _left_out(left: Floats, basis: Floats, clusters: Integers | None) -> Floats:
    """Leave-one-out residuals (M, N) of a least-squares fit with a constant and an orthonormal basis (r, N): at each
    text, of the fit without that text or without its cluster. `left` (M, N) are the residuals of the whole fit. 0 at a
    text that alone determines a direction of the fit."""
    if clusters is None:
        free = 1 - 1 / left.shape[1] - np.einsum("rn,rn->n", basis, basis)
        return np.asarray(np.where(free > NEGLIGIBLE, left / np.maximum(free, NEGLIGIBLE), 0.0))
    found = np.empty_like(left)
    for members in np.split(np.argsort(clusters, kind="stable"), np.bincount(clusters).cumsum()[:-1]):
        part = basis[:, members]
        free = np.eye(len(members)) - 1 / left.shape[1] - part.T @ part
        found[:, members] = left[:, members] @ scipy.linalg.pinvh(free, atol=NEGLIGIBLE)
    return found


def _orthonormal(points: Floats) -> Floats:
    """An orthonormal basis (r, N) of the space that centred points (K, N) span; any basis if that is all, N - 1
    dimensions, or nothing.

    It comes from a pivoted Cholesky factor of the Gram matrix, which leaves out points that are combinations of others.
    A Gram matrix holds only half of the digits: where that shows, this is done twice.
    """
    basis = points if len(points) <= points.shape[1] else _factor(points.T @ points)[0]
    for _ in range(2):
        factor, chosen = _factor(basis @ basis.T)
        basis = basis[chosen]
        if len(chosen) in (0, points.shape[1] - 1):
            break
        triangle = np.asfortranarray(factor[:, chosen])
        basis = scipy.linalg.blas.dtrsm(1.0, triangle, basis.T, side=1, overwrite_b=1).T  # in place
        probe = np.random.default_rng(SEED).normal(size=len(basis))
        if np.abs(basis @ (probe @ basis) - probe).max() < ORTHONORMAL:
            break
    return basis


def _factor(gram: Floats) -> tuple[Floats, Integers]:
    """R (r, P) with R'R equal to the Gram matrix (P, P) of rank r, and the r columns where R is triangular. The Gram
    matrix is overwritten."""
    tolerance = NEGLIGIBLE * gram.diagonal().max()
    packed, order, rank, _ = scipy.linalg.lapack.dpstrf(gram.T, tol=tolerance, overwrite_a=True)  # symmetric: no copy
    order = order.astype(np.int64) - 1
    factor = np.empty((rank, len(gram)))
    factor[:, order] = np.triu(packed[:rank])
    return factor, order[:rank]


# ------------------------------------------------------------------------------------------- neighbours and clusters


@dataclass(frozen=True, eq=False)
class Clustering:
    """`merges` (K - 1, 4) as in scipy's linkage, heights in root bits per byte; `order` (K,) of the leaves."""

    merges: Floats
    order: Integers


def cluster(value: Floats, names: Sequence[str]) -> Clustering:
    """Clusters by average linkage on the roots of KLs `value` (K, K) in bits per byte. Up to 500 models, leaves are in
    optimal order: neighbours are adjacent.

    Raises InputError where the KL of a pair is not known.
    """
    K = len(names)
    if K < 2:
        return Clustering(np.empty((0, 4)), np.arange(K))
    if (unknown := np.argwhere(np.isnan(value))).size:
        a, b = (names[i] for i in unknown[0])
        raise InputError(
            f"{a} and {b} have no texts in common.", "Without their KL there is no order.", "Leave one of them out."
        )
    distance = scipy.spatial.distance.squareform(np.sqrt(value), checks=False)
    merges = scipy.cluster.hierarchy.linkage(distance, "average")
    if 2 < K <= ORDERED:
        merges = scipy.cluster.hierarchy.optimal_leaf_ordering(merges, distance)
    return Clustering(merges, scipy.cluster.hierarchy.leaves_list(merges).astype(np.int64))


def nearest(vectors: Vectors, n: int, rows: Sequence[int]) -> dict[str, tuple[tuple[str, KL], ...]]:
    """The `n` nearest models of each of those in `rows` (R,), nearest first, with the KL to them in bits per byte. Two
    models without common texts, whose KL is not known, are not neighbours."""
    all_pairs = vectors.kl() if n * len(rows) > len(vectors) else None  # of few pairs, differences take less
    value = vectors.kl_values() if all_pairs is None else all_pairs.value
    pairs = list[tuple[int, int]]()
    for i in rows:
        known = np.flatnonzero(~np.isnan(value[i]) & (np.arange(len(vectors)) != i))
        order = known[np.argsort(value[i, known], kind="stable")[:n]]
        pairs += [(i, j) for j in order.tolist()]
    at = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    kl = vectors.kl_pairs(at) if all_pairs is None else all_pairs.at(*at.T)
    found: dict[str, tuple[tuple[str, KL], ...]] = {vectors.names[i]: () for i in rows}
    for place, (i, j) in enumerate(pairs):
        found[vectors.names[i]] += ((vectors.names[j], kl[place]),)
    return found


def nearest_of_many(vectors: Vectors, rows: Integers | None = None) -> tuple[Integers, KLPairs]:
    """The place of the nearest model of each (K,), or of each of those in `rows` (R,), and the KL to it in bits per
    byte. That of some rows is found exactly, that of all as the neighbours of a map of many. It is by the texts that
    all models have, the KL by those of each two."""
    points = _coordinates(vectors)
    if rows is None:
        rows, near = np.arange(len(points)), _near(points, 1)[0][:, 0]
    else:
        near = _nearest(points, rows)
    return near, vectors.kl_pairs(np.stack([rows, near], axis=1))


# ------------------------------------------------------------------------------------------------------- kept maps


def kept_map(
    store: Store, vectors: Vectors, *, anew: bool = False, keep: bool = True, progress: Progress = SILENT
) -> ModelMap:
    """The map of these models of a store: the kept map, to the bit, or a new one. Layers are not on it.

    A kept map counts if it is of exactly these vectors, there from the start or added later, and `anew` is false. A new
    map replaces it unless `keep` is false. If the store cannot be written, `progress` notes it. Raises InputError for a
    model that the store does not have, and as `model_map` does.
    """
    vectors = vectors.without_layers()
    members = _members(store, vectors)
    key = _map_key(vectors.texts, members)
    if not anew and (kept := _read(store, vectors.texts, key)):
        return kept
    progress.begin(f"mapping {len(vectors):,} models")
    found = model_map(vectors)
    if not keep:
        return found
    if not anew and (kept := _read(store, vectors.texts, key)):
        return kept  # made meanwhile, perhaps by placing: points that others have seen do not move
    try:
        _keep(store, vectors.texts, key, found, members)
    except StorageError as error:
        progress.note(f"The map is not kept: {error.what} {error.why}")
    return found


def extend_map(store: Store, vectors: Vectors, new: Sequence[str], *, progress: Progress = SILENT) -> ModelMap:
    """The newest kept map whose models are all among these `vectors`, with the `new` of them placed on it.

    The result is kept too, and replaces another map of exactly these models. Models that are on the map already do not
    move. Raises InputError where no such map is kept, and as `place` does.
    """
    vectors = vectors.without_layers()
    members = _members(store, vectors)
    for metadata in reversed(store.maps(vectors.texts.id)):
        of_map = metadata.get("vectors", {})
        if of_map and of_map.items() <= members.items() and (old := _read(store, vectors.texts, metadata["key"])):
            break
    else:
        raise InputError(
            f"{store.location} keeps no map of models on {vectors.texts.name} as they are now.",
            "New models are placed on a kept map.",
            "klscale map  makes one of all models.",
        )
    added = [name for name in dict.fromkeys(new) if name not in old.models]
    for name in set(new) - {*added}:
        progress.note(f"{name} is on the kept map already.")
    if not added:
        return old
    progress.begin(f"placing {len(added):,} models on a map of {len(old.made_of):,}")
    found = place(old, vectors.subset(old.made_of), vectors.subset(added))
    of_map = {name: members[name] for name in found.models}
    _keep(store, vectors.texts, _map_key(vectors.texts, of_map), found, of_map)
    return found


def _members(store: Store, vectors: Vectors) -> dict[str, str]:
    """Name -> key and checksum of each model's vector: the newest of its name in the store."""
    newest = store.newest(vectors.texts.id)
    if missing := [name for name in vectors.names if name not in newest]:
        raise InputError(f"{store.location} holds no vector of {missing[0]} on {vectors.texts.name}.", "", "klscale ls")
    return {name: f"{newest[name].key}:{newest[name].metadata.get('checksum')}" for name in vectors.names}


def _map_key(texts: TextSet, members: Mapping[str, str]) -> str:
    return content_id(part.encode() for part in (texts.id, repr(texts.clip), *map(repr, sorted(members.items()))))


def _keep(store: Store, texts: TextSet, key: str, found: ModelMap, members: Mapping[str, str]) -> None:
    columns: dict[str, Any] = {"model": found.models, "added": found.added}
    points = {"pca": found.pca, "tsne": found.tsne, "tsne3": found.tsne3}
    for name, array in points.items():
        if array is not None:
            columns |= {f"{name}_{axis}": values for axis, values in enumerate(array.T, start=1)}
    metadata = {
        "format": FORMAT,
        "clip": texts.clip,
        "n_texts": found.n_texts,
        "unit": "pca: root bits/byte; tsne: none",
        "share": found.share.tolist(),
        "perplexity": found.perplexity,
        "typical": found.typical,
        "notes": list(found.notes),
        "off_map": {name: asdict(off_map) for name, off_map in found.off_map.items()},
        "vectors": dict(members),
        "versions": {name: version(name) for name in ("klscale", "numpy", "scipy", "openTSNE")},
    }
    store.write_map(texts.id, key, columns, metadata)


def _read(store: Store, texts: TextSet, key: str) -> ModelMap | None:
    """The kept map of these texts and their present clip; None where it is missing, damaged, or of another version."""
    if (kept := store.read_map(texts.id, key)) is None:
        return None
    columns, metadata = kept
    if metadata.get("format") != FORMAT or metadata.get("clip") != texts.clip:
        return None
    try:
        return _from_record(columns, metadata)
    except UNREADABLE as error:
        store.leave_out(store.map_file(texts.id, key), error)
        return None


def _from_record(columns: Columns, metadata: Mapping[str, Any]) -> ModelMap:
    """The map from its record by `_keep`; raises one of UNREADABLE where it is something else."""

    def points(name: str, n: int) -> Floats | None:
        axes = [columns[f"{name}_{axis}"] for axis in range(1, n + 1) if f"{name}_{axis}" in columns]
        return np.stack(axes, axis=1).astype(np.float64) if axes else None

    pca = points("pca", AXES)
    if pca is None:
        raise UnreadableError("has no points")
    return ModelMap(
        models=tuple(map(str, columns["model"])),
        pca=pca,
        share=np.array(metadata["share"], dtype=np.float64),
        tsne=points("tsne", 2),
        tsne3=points("tsne3", 3),
        perplexity=None if metadata["perplexity"] is None else float(metadata["perplexity"]),
        typical=float(metadata["typical"]),
        n_texts=int(metadata["n_texts"]),
        added=columns["added"].astype(bool),
        off_map={str(name): _off_map(record) for name, record in metadata.get("off_map", {}).items()},
        notes=tuple(map(str, metadata.get("notes", ()))),
    )


def _off_map(record: Mapping[str, Any]) -> OffMap:
    return OffMap(
        unexplained=from_record(Estimate, record["unexplained"]),
        nearest=str(record["nearest"]),
        kl=from_record(KL, record["kl"]),
        typical=float(record["typical"]),
    )
