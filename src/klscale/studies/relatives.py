"""The pairs of each setting among the models of a store: found without looking at all pairs, and drawn where there are
very many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.inputs.attributes import run_key, runs_of
from klscale.inputs.references import ModelRef
from klscale.science.arrays import Floats, Integers
from klscale.studies.settings import (
    EQUAL_SIZE,
    IDENTITY,
    is_child_of,
    known,
    parent_of,
    quantization_between,
    setting_of,
)
from klscale.vectors.vectors import Vectors

FEWEST_RANDOM = 20
MOST_PAIRS = 1000
"""Largest number of pairs on which a setting is measured; of more, so many are drawn at random."""
MOST_LISTED = 5_000 * 4_999 // 2
"""Largest number of pairs of a setting that are listed before these are drawn: all pairs of 5,000 models. Of more, they
are drawn while the pairs are found, and no pair is listed."""
BLOCK = 1 << 21
"""Pairs that are looked at together."""


def ladders(vectors: Vectors) -> dict[str, list[str]]:
    """Each model with quantized variants -> its variants, from the nearest to the farthest by their KL from it (the
    reported value). A variant without common texts is left out.

    Variants are found by reference, parent or attributes, as for the settings of quantization. Raises InputError where
    the vectors were made by different conventions.
    """
    vectors.require_one_convention()
    models = _Models(vectors.models, vectors.known)
    found = [
        (base, variant)
        for base, variant in dict.fromkeys(models.derived())
        if "quantization" in models.rows[variant]
        and quantization_between(models.rows[base], models.rows[variant], models.refs[base], models.refs[variant])
    ]
    if not found:
        return {}
    kl = vectors.reported_kl_matrix().value
    rungs: dict[str, list[str]] = {}
    known = [pair for pair in found if not np.isnan(kl[pair])]
    for base, variant in sorted(known, key=lambda pair: (pair[0], kl[pair], pair[1])):
        rungs.setdefault(vectors.names[base], []).append(vectors.names[variant])
    return rungs


@dataclass(frozen=True)
class Pairs:
    """`places` (P, 2) of models in the vectors; `names` (P, 2), a number for each name; `n_available` before draws."""

    places: Integers
    names: Integers
    n_available: int

    def of(self, chosen: NDArray[Any]) -> Pairs:
        """Some of them."""
        return replace(self, places=self.places[chosen], names=self.names[chosen])


def find_pairs(vectors: Vectors) -> dict[str, Pairs]:
    """The pairs of each setting among these models; those of `random` and `same type` are drawn.

    Checkpoint pairs are consecutive at the run's most common spacing, in the first (`early training`) or the second
    half (`later training`) of training after warm-up. Warm-up ends at the attribute `warmup`, else one spacing after
    the start. Seed, size and architecture pairs, and children, are last checkpoints only. Random pairs are of distinct
    models. There are as many as fine-tuning pairs, at least 20; no model is drawn again before all others were. The
    same models give the same pairs in any order.
    """
    order = np.argsort(np.array(vectors.names, dtype=object), kind="stable")
    models = _Models([vectors.models[place] for place in order], [vectors.known[place] for place in order])
    named = {name: n for n, name in enumerate(dict.fromkeys(models.names))}
    numbers = np.array([named[name] for name in models.names])
    generator, found = np.random.default_rng(0), {}
    for setting, (pairs, n_available) in models.pairs().items():
        if len(pairs) > MOST_PAIRS:
            pairs = pairs[np.sort(generator.choice(len(pairs), MOST_PAIRS, replace=False))]
        found[setting] = Pairs(order[pairs], numbers[pairs], n_available)
    return found


class _Models:
    """The pairs of models of each setting. Models are sorted by name, and given by their positions in that order."""

    def __init__(self, refs: Sequence[ModelRef], rows: Iterable[Mapping[str, Any]]) -> None:
        self.refs = refs
        self.rows = [*rows]
        # all checkpoints of a run have one name, and all layers and quantizations of a model
        runs = runs_of(refs, self.rows)
        self.names = [(run, row.get("seed")) for run, row in zip(runs, self.rows, strict=True)]
        self.at = {str(ref): place for place, ref in enumerate(refs)}
        self.plain = [p for p, row in enumerate(self.rows) if refs[p].layer is None and "quantization" not in row]
        steps = [place for place in self.plain if "step" in self.rows[place]]
        self.runs = self.grouped(steps, lambda place: run_key(runs[place], self.rows[place]))
        for run in self.runs:
            run.sort(key=lambda place: self.rows[place]["step"])
        earlier = {place for run in self.runs for place in run[:-1]}
        self.last = [place for place in self.plain if place not in earlier]

    def grouped(self, places: Iterable[int], key: Callable[[int], Any]) -> list[list[int]]:
        """Groups of the positions that have a key, by key."""
        groups: dict[Any, list[int]] = {}
        for place in places:
            if (value := key(place)) is not None:
                groups.setdefault(value, []).append(place)
        return list(groups.values())

    def setting(self, a: int, b: int) -> str | None:
        return setting_of(self.rows[a], self.rows[b], self.refs[a], self.refs[b])

    def pairs(self) -> dict[str, tuple[Integers, int]]:
        """The pairs (P, 2) of each setting, and how many there are; of very many, some that are drawn."""
        found: dict[str, dict[tuple[int, int], None]] = {}
        for half, a, b in self.checkpoints():
            found.setdefault(half, {})[a, b] = None
        relatives = self.relatives()
        found |= {setting: {} for setting in relatives}
        for a, b in (*self.derived(), *self.layers()):
            setting = self.setting(a, b)
            if setting not in (None, "checkpoint", "architecture"):
                found.setdefault(str(setting), {})[a, b] = None
        made = {}
        for name, pairs in found.items():
            listed = relatives.get(name, _Found())
            listed.add_others(np.array([*pairs], dtype=np.int64).reshape(-1, 2))
            made[name] = (listed.pairs, listed.n)
        pool = self.distinct()
        if (equal := self.architectures(pool)).n:
            made["architecture"] = (equal.pairs, equal.n)
        wanted = max(FEWEST_RANDOM, made["fine-tuning"][1] if "fine-tuning" in made else 0)
        types = self.grouped(pool, lambda place: self.rows[place].get("type"))
        for name, groups in (("same type", types), ("random", [pool])):
            if available := sum(len(group) * (len(group) - 1) // 2 for group in groups):
                made[name] = (_drawn(groups, min(wanted, available)), available)
        return made

    def checkpoints(self) -> Iterator[tuple[str, int, int]]:
        """Consecutive checkpoints after warm-up, with the half that contains their middle."""
        for run in self.runs:
            steps = [self.rows[place]["step"] for place in run]
            spacings = Counter(b - a for a, b in pairwise(steps) if b > a)
            if not spacings or "parent" in self.rows[run[0]]:
                continue
            spacing = spacings.most_common(1)[0][0]
            known = [self.rows[place]["warmup"] for place in run if "warmup" in self.rows[place]]
            start = max(known, default=spacing)
            for a, b in pairwise(run):
                first, second = self.rows[a]["step"], self.rows[b]["step"]
                if second - first == spacing and first >= start:
                    yield "early training" if first + second < start + steps[-1] else "later training", a, b

    def relatives(self) -> dict[str, _Found]:
        """Pairs of last checkpoints of one family or name that are a setting, the smaller model first; a model of
        unknown step may be any of its run. Settings come in the order of their first pair."""
        found = {"seed": _Found(), "size": _Found(), "fine-tuning": _Found()}
        last = np.array(self.last, dtype=np.int64)
        codes = {name: self._codes(last, name) for name in IDENTITY if name != "quantization"}
        names = _coded(self.refs[place].name for place in self.last)
        parameters = self._numbers(last, "parameters")
        of_child = np.array([*self.children()], dtype=np.int64).reshape(-1, 2)
        children = np.sort(np.searchsorted(last, of_child[np.isin(of_child, last).all(axis=1)]), axis=1)
        for code, others in ((codes["family"], None), (names, codes["family"])):
            for members in _members(code):
                for low, high, is_child in _blocks(members, children):
                    kept = (low < high) & ((codes["step"][low] < 0) == (codes["step"][high] < 0))
                    if others is not None:  # pairs of one family have been there
                        kept &= (others[low] != others[high]) | (others[low] < 0)
                    differ = {name: _known_to_differ(part[low], part[high]) for name, part in codes.items()}
                    a, b = parameters[low], parameters[high]
                    differ["parameters"] &= np.abs(a - b) > 0.1 * np.maximum(a, b)
                    alone = kept & ~is_child & (sum(part.astype(np.int8) for part in differ.values()) == 1)
                    at = {"seed": alone & differ["seed"], "size": alone & differ["parameters"],
                          "fine-tuning": kept & is_child}  # fmt: skip
                    for setting, chosen in at.items():
                        i, j = np.nonzero(chosen)
                        found[setting].add(np.stack([low[i, 0], high[0, j]], axis=1))
        first = {setting: tuple(min(one.pairs.tolist())) for setting, one in found.items() if one.n}
        seed = self._numbers(last, "seed")
        return {
            setting: found[setting].in_order(last, parameters, seed) for setting in sorted(first, key=first.__getitem__)
        }

    def _codes(self, places: Integers, name: str) -> Integers:
        """A number (P,) for each value of an attribute; -1 where it is not known."""
        return _coded(known(self.rows[place], name) for place in places)

    def _numbers(self, places: Integers, name: str) -> Floats:
        return np.array([self.rows[place].get(name, 0) for place in places], dtype=np.float64)

    def children(self) -> Iterator[tuple[int, int]]:
        """Each parent with its children, by name."""
        for child, row in enumerate(self.rows):
            if (parent := parent_of(row)) is not None:
                for source in self.named.get(parent, ()):
                    if is_child_of(self.rows[source], row, self.refs[source], self.refs[child]):
                        yield source, child

    @cached_property
    def named(self) -> dict[str, list[int]]:
        """The models that a name may mean."""
        named: dict[str, list[int]] = {}
        for place, ref in enumerate(self.refs):
            for name in {str(ref), str(replace(ref, dtype="float32"))}:
                named.setdefault(name, []).append(place)
        return named

    def derived(self) -> Iterator[tuple[int, int]]:
        """Models with their possible origins: the unquantized model, the parent, a relative."""
        last = set(self.last)
        families, names = (
            {key(group[0]): group for group in self.grouped(self.plain, key)}
            for key in (lambda place: self.rows[place].get("family"), lambda place: self.refs[place].name)
        )
        for child, (ref, row) in enumerate(zip(self.refs, self.rows, strict=True)):
            if ref.layer is not None or ("quantization" not in row and child not in last):
                continue
            if ref.quantization is not None:
                sources = [self.at.get(str(replace(ref, quantization=None)), child)]
            elif parent := parent_of(row):
                sources = self.named.get(parent, [])
            elif "quantization" in row:
                sources = sorted({*families.get(row.get("family"), ()), *names.get(ref.name, ())})
            else:
                sources = []
            yield from ((source, child) for source in sources if source != child)

    def layers(self) -> Iterator[tuple[int, int]]:
        for place, ref in enumerate(self.refs):
            if ref.layer is not None and (above := str(replace(ref, layer=ref.layer + 1))) in self.at:
                yield place, self.at[above]

    def distinct(self) -> list[int]:
        """One last checkpoint of each name, in float32 if the store has it, else in the most common dtype."""
        count = Counter(self.refs[place].dtype for place in self.last)
        by_preference = sorted(
            self.last, key=lambda p: (self.refs[p].dtype != "float32", -count[self.refs[p].dtype], p)
        )
        return sorted(group[0] for group in self.grouped(by_preference, lambda p: (*self.names[p], self.refs[p].file)))

    def architectures(self, pool: Iterable[int]) -> _Found:
        """Pairs of different type and equal size: there may be billions."""
        known = [p for p in pool if {"type", "parameters"} <= self.rows[p].keys() and "parent" not in self.rows[p]]
        known.sort(key=lambda place: self.rows[place]["parameters"])
        places, found = np.array(known, dtype=np.int64), _Found()
        size = self._numbers(places, "parameters")
        kind, dtype = (self._codes(places, name) for name in ("type", "dtype"))
        ends = np.searchsorted(size, size * EQUAL_SIZE * (1 + 1e-9), side="right")
        counts = ends - np.arange(len(known))
        for part in np.split(np.arange(len(known)), np.flatnonzero(np.diff(np.cumsum(counts) // BLOCK)) + 1):
            a = np.repeat(part, counts[part])
            b = np.concatenate([np.arange(n, ends[n]) for n in part] or [a])
            kept = (kind[a] != kind[b]) & ~_known_to_differ(dtype[a], dtype[b])
            found.add(np.stack([places[a[kept]], places[b[kept]]], axis=1))
        return found


class _Found:
    """Pairs of places as they are found: `n` of them, and all (n, 2); of more than `MOST_LISTED`, some that are drawn,
    each as likely as any other."""

    def __init__(self) -> None:
        self.n, self._chunks = 0, [np.empty((0, 2), dtype=np.int64)]
        self._generator, self._numbers = np.random.default_rng(0), np.empty(0)

    @property
    def pairs(self) -> Integers:
        """Those that are kept."""
        return np.concatenate(self._chunks)

    def add(self, pairs: Integers) -> None:
        """More of them."""
        self.n += len(pairs)
        self._chunks.append(pairs)
        if self.n > MOST_LISTED:  # kept are those with the smallest of random numbers, one a pair
            listed = self.pairs
            numbers = np.concatenate([self._numbers, self._generator.random(len(listed) - len(self._numbers))])
            kept = np.sort(np.argpartition(numbers, MOST_PAIRS - 1)[:MOST_PAIRS])
            self._chunks, self._numbers = [listed[kept]], numbers[kept]

    def add_others(self, pairs: Integers) -> None:
        """More of them, where not all have been added before."""
        if 0 < self.n <= MOST_LISTED:
            most = 1 + max(int(self.pairs.max()), int(pairs.max(initial=0)))
            pairs = pairs[~np.isin(pairs @ [most, 1], self.pairs @ [most, 1])]
        if self.n <= MOST_LISTED:
            self.add(pairs)

    def in_order(self, places: Integers, *keys: Floats) -> _Found:
        """The same of `places` (K,), by rows; in each pair the model with the smaller key first."""
        pairs = self.pairs
        pairs = pairs[np.lexsort(pairs.T[::-1])]
        a, b = pairs.T
        turned, equal = np.zeros(len(pairs), dtype=bool), np.ones(len(pairs), dtype=bool)
        for key in keys:
            turned |= equal & (key[b] < key[a])
            equal &= key[b] == key[a]
        pairs[turned] = pairs[turned, ::-1]
        self._chunks = [places[pairs]]
        return self


def _coded(values: Iterable[Any]) -> Integers:
    """A number (n,) for each value, the same for equal ones; -1 for None."""
    numbers: dict[Any, int] = {}
    found = [-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values]
    return np.array(found, dtype=np.int64)


def _known_to_differ(a: Integers, b: Integers) -> NDArray[np.bool_]:
    """Where two codes differ, of values that are both known."""
    return np.asarray((a != b) & (a >= 0) & (b >= 0))


def _members(codes: Integers) -> Iterator[Integers]:
    """The places of each code that two or more have."""
    order = np.argsort(codes, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if len(members) > 1 and codes[members[0]] >= 0:
            yield members


def _blocks(members: Integers, children: Integers) -> Iterator[tuple[Integers, Integers, NDArray[np.bool_]]]:
    """All pairs of ascending places, in blocks: `low` (r, 1) and `high` (1, c), where only `low < high` counts; and
    which of them (r, c) are a parent and its child, of `children` (C, 2), the smaller place first."""
    mine = np.searchsorted(members, children[np.isin(children, members).all(axis=1)])
    rows = max(1, BLOCK // len(members))
    for start in range(0, len(members), rows):
        low, high = members[start : start + rows], members[start:]
        is_child = np.zeros((len(low), len(high)), dtype=bool)
        here = mine[(mine[:, 0] >= start) & (mine[:, 0] < start + rows)] - start
        is_child[here[:, 0], here[:, 1]] = True
        yield low[:, None], high[None], is_child


def _drawn(groups: Sequence[Sequence[int]], n: int) -> Integers:
    """`n` different random pairs (n, 2) within groups, in rounds that pair every model with one other of its group."""
    generator, drawn = np.random.default_rng(0), dict[tuple[int, int], None]()
    while len(drawn) < n:
        around: list[tuple[int, int]] = []
        for group in groups:
            shuffled = generator.permutation(group).tolist()
            around += zip(shuffled[0::2], shuffled[1::2], strict=False)
        for k in generator.permutation(len(around)):
            if len(drawn) < n:
                drawn[min(around[k]), max(around[k])] = None
    return np.array([*drawn])
