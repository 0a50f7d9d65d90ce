"""Where a model stands among others: its nearest models, its family, what it derives from, how far off it is.

Every statement is calibrated on the others, each left out in turn. The checkpoints and quantized variants of a model
count as one, by the nearest of them. Distances for this are KL by whole texts, on the texts that all models have.

    weight of model j        KL(x, j)**-b          b and r: of the largest likelihood on models that are left out
    weight of a new family   r**-b
    P(family of x = f)       sum of the weights of f / sum of all weights

This is a distance-dependent Chinese restaurant process (Blei and Frazier, JMLR 12, 2011) with a power law. Squared
distances of models that change independently add along a tree. So the place where the other models branch off from the
path between a model and its nearest (Farris, Kluge and Eckardt, Systematic Zoology 19, 1970) tells what derives from
what. For a fine-tuned model it is the parent itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from klscale.errors import InputError
from klscale.science.arrays import Floats, Integers
from klscale.science.clip import common_texts
from klscale.science.estimates import Estimate, cluster_codes, n_clusters, standard_error_of_mean
from klscale.science.kl import kl_pairs
from klscale.science.reported import ReportedKL
from klscale.studies.maps import unexplained
from klscale.vectors.vectors import Vectors

NEAREST = 10
"""Neighbours of a model that are listed."""
FEWEST = 5
"""Fewest other models that a statement about the model is calibrated on."""
MOST = 1000
"""Most models that are left out in turn; of more, so many are drawn."""
SURE = 0.05
"""Largest p-value at which a model counts as derived from another, or as a copy of it; with few models, the smallest
that there can be."""
NEAR, FAR, AT_PARENT = 0.5, 2.0, 1 / 3
"""Beside that: KL to the nearest, in typical ones, of a copy (at most) and of a model far from all (at least); and the
largest `Relation.branch` of a derived model."""
FOLDS = 5
SMALLEST = 1e-12
"""KL in bits per byte below which models count as equally near."""
NEW = ""
"""Stands for a group that none of the others belong to."""


@dataclass(frozen=True)
class Neighbour:
    """A model with its KL from the placed model, and the `difference` in bits per byte, placed model less neighbour."""

    model: str
    kl: ReportedKL
    difference: Estimate


@dataclass(frozen=True)
class Grouping:
    """Which `family` (or `type`: the `attribute`) a model belongs to: `probability` by group, the largest first; that
    of a group without another model is at "".

    Held out in turn, `n_models` models belonged to the most probable group in the share `right`, a mean over models
    with its standard error. The mean probability of that group was `claimed`. `score` is the mean logarithm (base 2) of
    the probability of the right group, and `score_of_shares` the same of the groups' shares of the models. Where that
    is larger, neighbours do not tell the group: `probability` and the rest are then by the shares.
    """

    attribute: str
    probability: dict[str, float]
    n_models: int
    right: Estimate
    claimed: float
    score: float
    score_of_shares: float

    @property
    def is_told(self) -> bool:
        """Whether neighbours tell more of the group than the shares do."""
        return self.score > self.score_of_shares


@dataclass(frozen=True)
class Relation:
    """What a model may derive from: `of`, its nearest model.

    `kl` is KL to that name, by whole texts, and `lead` KL to the nearest model of another name less KL to `of`, in bits
    per byte. `branch` is how far from `of` another model, the first to do so, branches off from the path to the model,
    in bits per byte: near 0 for what derives from `of`, about half of `typical` for two models of common origin.

    `as_near`, `as_derived` and `as_far` are p-values, exact where the model is one more independent model: the shares
    of these that are as near to their nearest, branch off as near to it, and are as far from it. Independent models are
    those without a known parent. NaN where they are fewer than `FEWEST`. `typical` is their median KL to the nearest.
    """

    of: str
    kl: float
    lead: Estimate | None
    branch: Estimate | None
    n_independent: int
    typical: float
    as_near: float
    as_derived: float
    as_far: float

    @property
    def limit(self) -> float:
        """The largest p-value at which a relation is named."""
        return max(SURE, 1 / (self.n_independent + 1))

    @property
    def kind(self) -> str:
        """`near copy` (quantized, or another checkpoint), `derived` (fine-tuned, say), `far from all`, `independent`,
        or `not known`."""
        if math.isnan(self.as_near):
            return "not known"
        if self.as_near <= self.limit and self.kl <= NEAR * self.typical:
            return "near copy"
        far = AT_PARENT * self.typical
        at_parent = self.branch is not None and -far <= self.branch.value <= self.branch.interval[1] <= far
        if self.as_derived <= self.limit and at_parent:
            return "derived"
        return "far from all" if self.as_far <= self.limit and self.kl >= FAR * self.typical else "independent"

    @property
    def sentence(self) -> str:
        """The same in words."""
        n = self.n_independent
        if self.kind == "not known":
            return f"What it derives from is not known: {n} independent models are too few, {FEWEST} are needed."
        share = {"near copy": self.as_near, "derived": self.as_derived, "far from all": self.as_far}.get(self.kind, 1.0)
        chance = f"At most {share:.0%} of independent models would look so ({n} are known)."
        if self.kind == "near copy":
            return f"It looks like a copy of {self.of}: quantized, or trained a little further. {chance}"
        if self.kind == "derived":
            return f"It looks derived from {self.of}, as a fine-tuned model is. {chance}"
        if self.kind == "far from all":
            return f"It is farther from all models than they are from each other. {chance}"
        return f"It looks like one more independent model, as near to {self.of} as others to their nearest."


@dataclass(frozen=True, eq=False)
class Placement:
    """Where `model` stands among the models of `vectors`, which hold it too. `neighbours` are the nearest models.
    `unexplained` is its squared distance in bits per byte from the nearest combination of the others."""

    model: str
    vectors: Vectors
    neighbours: tuple[Neighbour, ...]
    groupings: tuple[Grouping, ...]
    relation: Relation
    unexplained: Estimate


def place_model(vectors: Vectors, model: str) -> Placement:
    """Where one of the models of `vectors` stands among the others: KL to the nearest in bits per byte, its family
    with a probability, what it derives from, how far off all others it is.

    Raises InputError for fewer than two other models, for one without texts in common with them, and for vectors of
    different conventions.
    """
    vectors.require_one_convention()
    place = vectors.position(model)
    others = [n for n, ref in enumerate(vectors.models) if n != place and ref.layer is None]
    if len(others) < 2:
        raise InputError(f"{model} can be placed among two other models or more.", remedy="klscale score REF...")
    pairs = np.stack([np.full(len(others), place), others], axis=1)
    texts = vectors.texts
    kl = kl_pairs(vectors.log_likelihood, texts.bytes, pairs, clip=texts.clip, documents=texts.document)["value"]
    if np.isnan(kl).all():
        raise InputError(f"{model} has no texts in common with the other models.", remedy="Score them on its texts.")
    # By whole texts 10 may not be the nearest by what is reported; of twice as many they are.
    candidates = [others[n] for n in np.argsort(kl, kind="stable")[: 2 * NEAREST] if not math.isnan(kl[n])]
    found: list[Neighbour] = []
    for other in candidates:
        pair = vectors.subset([model, vectors.models[other]])
        found.append(Neighbour(pair.names[1], pair.reported_kl(*pair.names), pair.bits_per_byte(*pair.names)))
    found = sorted(found, key=lambda one: float(one.kl.value))[:NEAREST]
    among = _Among(vectors, place, others)
    groupings = [one for name in ("family", "type") if (one := among.grouping(name)) is not None]
    if len(groupings) == 2 and among.alike("family", "type"):
        groupings = groupings[:1]
    return Placement(
        model,
        vectors,
        tuple(found),
        tuple(groupings),
        among.relation([one.model for one in found]),
        among.unexplained(),
    )


class _Among:
    """A model (row `place`) among `others`: distances on the texts that all have."""

    def __init__(self, vectors: Vectors, place: int, others: Sequence[int]) -> None:
        self.vectors = vectors
        self.rows = np.array([place, *others])
        whole = vectors.subset([vectors.models[row] for row in self.rows])
        self.texts = common_texts(whole.log_likelihood)
        if self.texts.sum() < 2:
            remedy = "`klscale score REF` adds missing texts."
            raise InputError("The models have no two texts in common.", "Placing uses the texts that all have.", remedy)
        self.points = whole.coordinates()
        self.squares = np.einsum("kn,kn->k", self.points, self.points)
        attributes = whole.attributes
        self.attributes, self.names = attributes, whole.names
        steps = pd.to_numeric(attributes["step"]).fillna(np.inf).to_numpy()
        unit_names = [*zip(whole.runs, attributes["seed"], strict=True)]
        numbered = {name: n for n, name in enumerate(dict.fromkeys(unit_names[1:]))}
        self.unit = np.array([numbered[name] for name in unit_names[1:]])
        """(K,) which name each other model has."""
        plain = attributes["quantization"].isna().to_numpy()[1:]
        self.members = [np.flatnonzero(self.unit == n) + 1 for n in range(len(numbered))]
        """Rows of `points` of each name."""
        by_step = [max(rows, key=lambda row: (plain[row - 1], steps[row])) for rows in self.members]
        self.last = np.array(by_step)
        """The row that stands for a name: its last checkpoint, not quantized if there is such a one."""
        self.is_child = attributes["parent"].notna().to_numpy()[self.last]

    @cached_property
    def held_out(self) -> Integers:
        """The names that are left out in turn."""
        names = np.arange(len(self.last))
        return names if len(names) <= MOST else np.sort(np.random.default_rng(0).permutation(names)[:MOST])

    def _to_units(self, rows: Integers) -> tuple[Floats, Integers]:
        """KL (R, U) from some rows to each name, that of the nearest of its models; and which row (R, U) that is."""
        kl = np.maximum(self.squares[rows, None] + self.squares - 2 * self.points[rows] @ self.points.T, 0.0)
        order = np.argsort(self.unit, kind="stable") + 1
        starts = np.cumsum([0, *map(len, self.members[:-1])])
        smallest = np.minimum.reduceat(kl[:, order], starts, axis=1)
        nearest = np.empty(smallest.shape, dtype=np.int64)
        for n, members in enumerate(self.members):
            nearest[:, n] = members[kl[:, members].argmin(axis=1)]
        return smallest, nearest

    @cached_property
    def of_model(self) -> tuple[Floats, Integers]:
        """KL (U,) from the placed model to each name, and the row of the nearest model of each."""
        kl, nearest = self._to_units(np.zeros(1, dtype=np.int64))
        return kl[0], nearest[0]

    @cached_property
    def of_held_out(self) -> tuple[Floats, Integers]:
        """The same (H, U) of each name that is left out; infinite to itself."""
        kl, nearest = self._to_units(self.last[self.held_out])
        kl[np.arange(len(kl)), self.held_out] = np.inf
        return kl, nearest

    # ------------------------------------------------------------------------------------------------------- family

    def alike(self, first: str, second: str) -> bool:
        """Whether two attributes group the models alike."""
        both = self.attributes[[first, second]].iloc[1:]
        return (
            len(both.drop_duplicates()) == len(both[[first]].drop_duplicates()) == len(both[[second]].drop_duplicates())
        )

    def grouping(self, attribute: str) -> Grouping | None:
        """The probability of each group; None where groups are fewer than two, or too few models have one."""
        labels = self.attributes[attribute].to_numpy()[self.last]
        known = np.array([isinstance(label, str) and bool(label) for label in labels])
        groups, codes = np.unique(labels[known].astype(str), return_inverse=True)
        if len(groups) < 2 or known.sum() < FEWEST or np.bincount(codes).max() < 2:
            return None
        held_out = np.flatnonzero(known[self.held_out])
        kl = _logarithms(self.of_held_out[0][held_out][:, known])
        own = codes[np.searchsorted(np.flatnonzero(known), self.held_out[held_out])]
        truth = np.where(np.bincount(codes)[own] > 1, own, len(groups))
        shares = _shares(codes, len(groups), own)
        order = np.random.default_rng(0).permutation(len(truth))
        probability = np.empty((len(truth), len(groups) + 1))
        for part in np.array_split(order, min(FOLDS, len(order))):
            rest = np.setdiff1d(order, part)
            law = _fit(kl[rest], codes, truth[rest], shares[rest])
            probability[part] = _probabilities(kl[part], codes, law, shares[part])
        rows = np.arange(len(truth))
        score, of_shares = (float(np.log2(found[rows, truth]).mean()) for found in (probability, shares))
        mine = _shares(codes, len(groups), None)
        if score > of_shares:
            law = _fit(kl, codes, truth, shares)
            mine = _probabilities(_logarithms(self.of_model[0][None, known]), codes, law, mine)
        else:
            probability = shares
        right = (probability.argmax(axis=1) == truth).astype(np.float64)
        named = dict(zip([*groups.tolist(), NEW], mine[0].tolist(), strict=True))
        return Grouping(
            attribute,
            dict(sorted(named.items(), key=lambda pair: -pair[1])),
            len(truth),
            Estimate.normal(float(right.mean()), float(standard_error_of_mean(right)), 0, unit=""),
            float(probability.max(axis=1).mean()),
            score,
            of_shares,
        )

    # ----------------------------------------------------------------------------------------------------- relation

    def relation(self, by_reported: Sequence[str]) -> Relation:
        """What the model may derive from: of the checkpoints and variants of the nearest name, the first of those that
        are in order of the reported KL."""
        kl, nearest = self.of_model
        first = int(kl.argmin())
        same = {self.names[row]: int(row) for row in self.members[first]}
        of = next((same[name] for name in by_reported if name in same), int(nearest[first]))
        second = np.flatnonzero(np.arange(len(kl)) != first)
        lead = None
        if len(second):
            other = int(nearest[second[kl[second].argmin()]])
            model, a, b = (self.names[row] for row in (0, of, other))
            lead = self.vectors.subset([model, a, b]).on_common_texts().kl_difference((model, b), (model, a))
        branch = self._branch(of, first)
        independent = ~self.is_child[self.held_out]
        distance, rows = (part[independent] for part in self.of_held_out)
        n, mine = len(distance), float(kl[first])
        typical = as_near = as_derived = as_far = math.nan
        if n:
            typical = float(np.median(distance.min(axis=1)))
        if n >= FEWEST and branch is not None:
            theirs = distance.min(axis=1)
            as_near, as_far = ((1 + float(there.sum())) / (n + 1) for there in (theirs <= mine, theirs >= mine))
            ends = zip(self.held_out[independent], distance.argmin(axis=1), rows, strict=True)
            branches = [self._branches(self.last[one], row[unit], (one, unit)).max() for one, unit, row in ends]
            as_derived = (1 + float((np.array(branches) <= branch.value).sum())) / (n + 1)
        return Relation(self.names[of], mine, lead, branch, n, typical, as_near, as_derived, as_far)

    def _branches(self, model: int, of: int, without: Sequence[int]) -> Floats:
        """How far from the row `of` each other name branches off from the path to the row `model`, in bits per byte.
        Without some names, and without children of any model."""
        x = self.points[model] - self.points[of]
        return np.asarray((self.points[self._others(without)] - self.points[of]) @ x)

    def _others(self, without: Sequence[int]) -> Integers:
        kept = ~self.is_child
        kept[list(without)] = False
        return self.last[kept]

    def _branch(self, of: int, unit: int) -> Estimate | None:
        """The largest of these for the placed model, with its standard error over texts."""
        x = self.points[0] - self.points[of]
        others = self._others([unit])
        if len(others) < 2:
            return None
        y = self.points[others[self._branches(0, of, [unit]).argmax()]] - self.points[of]
        clusters = cluster_codes(self.vectors.texts.document, self.texts)
        terms = len(x) * x * y
        error = float(standard_error_of_mean(terms, clusters))
        return Estimate.normal(float(terms.mean()), error, len(x), n_documents=n_clusters(clusters))

    def unexplained(self) -> Estimate:
        """Squared distance from the nearest combination of the others, in bits per byte."""
        rows = np.unique([*self.last, int(self.of_model[1][self.of_model[0].argmin()])])
        centre = self.points[rows].mean(axis=0)
        documents = self.vectors.texts.documents_of(np.flatnonzero(self.texts))
        return unexplained(self.points[rows] - centre, self.points[:1] - centre, documents)[0]


# --------------------------------------------------------------------------------------- probabilities from distances


def _logarithms(kl: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(kl, SMALLEST)))


def _shares(codes: Integers, n_groups: int, own: Integers | None) -> Floats:
    """The share (H, G + 1) of each group among the others, and of a new one: as many as there are groups of a single
    model (Good, Biometrika 40, 1953), and half a model more. `own` (H,): the group of each model that is left out."""
    counts = np.bincount(codes, minlength=n_groups).astype(np.float64)
    counts = counts[None] if own is None else counts - np.eye(n_groups)[own]
    new = (counts == 1).sum(axis=1, keepdims=True) + 0.5
    whole = np.concatenate([counts, new], axis=1)
    return np.asarray(whole / whole.sum(axis=1, keepdims=True))


def _probabilities(log_kl: Floats, codes: Integers, law: Floats, shares: Floats) -> Floats:
    """Probability (H, G + 1) of each group and of a new one, from the logarithm of KL (H, U) to each other model.

    `law` is (b, log r). As n models cannot tell a probability from 1 by less than 1 / (n + 1), so much is given to the
    groups by their shares.
    """
    b, log_r = law
    weight = np.concatenate([-b * log_kl, np.full((len(log_kl), 1), -b * log_r)], axis=1)
    weight = np.exp(weight - scipy.special.logsumexp(weight, axis=1, keepdims=True))
    groups = np.concatenate([codes, [shares.shape[1] - 1]])
    found = weight @ np.eye(shares.shape[1])[groups]
    least = 1 / (log_kl.shape[1] + 1)
    return np.asarray((1 - least) * found + least * shares)


def _fit(log_kl: Floats, codes: Integers, truth: Integers, shares: Floats) -> Floats:
    """(b, log r) of the largest likelihood of the right groups (H,)."""
    rows = np.arange(len(truth))
    nearest = float(np.median(log_kl.min(axis=1)))

    def loss(law: NDArray[np.float64]) -> float:
        return -float(np.log(_probabilities(log_kl, codes, law, shares)[rows, truth]).mean())

    bounds = [(1e-3, 30.0), (nearest - 10, nearest + 10)]
    starts = [np.array([b, nearest + shift]) for b, shift in ((1.0, 0.5), (8.0, 0.5))]
    found = [scipy.optimize.minimize(loss, start, method="Nelder-Mead", bounds=bounds) for start in starts]
    return np.asarray(min(found, key=lambda one: float(one.fun)).x)
