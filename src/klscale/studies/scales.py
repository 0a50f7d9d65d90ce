"""The scale: how large KL is between checkpoints, seeds, sizes and relatives, measured and as published.

Two models are a pair of a setting when they differ in exactly that attribute; an unknown attribute never counts as a
difference. Published values hold for pile-10k with its clip and are never mixed with measured ones. `docs/scale.md`
defines each setting.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from itertools import pairwise
from typing import Any

import numpy as np
import scipy
import yaml
from numpy.typing import NDArray

from klscale.errors import InputError
from klscale.inputs.attributes import run_key, runs_of
from klscale.inputs.references import ATTENTIONS, ModelRef
from klscale.inputs.texts import PILE_CLIP, TextSet
from klscale.science.arrays import Floats, Integers
from klscale.science.bootstrap import RESAMPLES, text_draws
from klscale.science.estimates import CONFIDENCE, cluster_codes
from klscale.science.kl import LOG_2, kl_pairs
from klscale.science.pair_sums import ratio_of_sums
from klscale.science.reported import LARGEST_BY_SPANS, SPANS, WHOLE_TEXTS, ReportedKL
from klscale.vectors.vectors import Vectors

PILE_MEAN_BYTES = 972.3188
IDENTITY = ("family", "type", "parameters", "seed", "step", "parent", "quantization", "dtype")
EQUAL_SIZE = 1.3
"""Largest ratio of parameters between models of different architecture that count as equal in size."""
FEWEST_GROUPS, FEWEST_MODELS = 5, 6
"""Fewest independent groups of pairs, or else models, for an interval over models; with fewer, the range over pairs is
shown. Between all of five models even that range holds the median of the population only in 85 % of simulations."""
FEWEST_RANDOM = 20
MOST_PAIRS = 1000
"""Largest number of pairs on which a setting is measured; of more, so many are drawn at random."""
MOST_LISTED = 5_000 * 4_999 // 2
"""Largest number of pairs of a setting that are listed before these are drawn: all pairs of 5,000 models. Of more, they
are drawn while the pairs are found, and no pair is listed."""
BLOCK = 1 << 21
"""Pairs that are looked at together."""
MOST_BY_SPANS = 100
"""The same by spans: each pair takes 50 times as long."""
UNIT_RESAMPLES = 2000

PUBLISHED_AS = {
    "8-bit (int8)": "8-bit",
    "8-bit (int8-kernel)": "8-bit",
    "4-bit (fp4)": "4-bit",
    "4-bit (fp4-kernel)": "4-bit",
}
"""Measured setting -> published setting with another name: the published kinds are those of bitsandbytes."""
UNSPECIFIC = ("same type", "random")
"""Settings of models that have little in common. A KL is compared with them only if it exceeds every other setting."""


@dataclass(frozen=True)
class Setting:
    """KL of one setting in bits per byte: `values` and `standard_errors` (over texts) of its `pairs`, in that order.

    `median` and `quartiles` are over pairs. `standard_error` is that of the median over texts (bootstrap; for a single
    pair its own).

    `interval` is a 95 % interval of the median over models (`interval_kind` is `models`): independent units are
    resampled. Pairs that share a model, a run (its checkpoints), or a name (its layers and quantizations) depend on
    each other; linked pairs form a group. With five groups or more, groups are drawn. With fewer, models are drawn, and
    a pair counts as often as both its models were drawn. Below six models the interval is the range over pairs
    (`interval_kind` is `range`). Models, here and in `n_models`, are names: a run counts once.

    `in_range` marks the pairs whose value is a KL rather than a distance. `n_available` pairs exist; the measured ones
    are drawn from them at random where they are fewer.

    All of this is by the published estimator, from whole texts. `by_spans` is the same setting by spans, of the pairs
    that have them; at most 100, drawn at random.
    """

    setting: str
    median: float
    standard_error: float
    quartiles: tuple[float, float]
    interval: tuple[float, float]
    interval_kind: str
    pairs: tuple[tuple[str, str], ...]
    values: tuple[float, ...]
    standard_errors: tuple[float, ...]
    in_range: tuple[bool, ...]
    n_models: int
    n_in_range: int
    n_available: int
    by_spans: Setting | None = None

    def by(self, estimator: str) -> Setting | None:
        """The setting by one of the estimators that the scale has; None where it is not known."""
        return self if estimator == WHOLE_TEXTS else self.by_spans


@dataclass(frozen=True)
class NoiseFloor:
    """Run-to-run noise: KL in bits per byte between two runs of one model, over the `n_models` models where it is
    known. Smaller differences cannot be measured. `largest_of` is the model with the largest noise."""

    median: float
    smallest: float
    largest: float
    largest_of: str
    n_models: int

    @property
    def sentence(self) -> str:
        """The same in words."""
        return (
            f"Run-to-run noise, KL between two runs of one model: median {self.median:.2g} bits/byte of "
            f"{self.n_models:,} models (from {self.smallest:.2g} to {self.largest:.2g}, that of {self.largest_of})."
        )


@dataclass(frozen=True)
class PublishedSetting:
    """A published median in bits per byte, over `pairs` pairs, with its source."""

    setting: str
    median: float
    pairs: int | None
    compared: str
    source: str


@dataclass(frozen=True)
class PublishedPair:
    """A published KL between two models, or a kind of pair, in bits per byte, with its standard error over texts."""

    compared: str
    kl: float
    standard_error: float
    source: str


@cache
def _published() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(files("klscale").joinpath("data/published.yaml").read_text(encoding="utf-8"))
    return data


def published() -> tuple[PublishedSetting, ...]:
    """The published scale in bits per byte, smallest median first (Kishino et al., arXiv 2505.15353v3). It holds for
    the text set pile-10k with its clip."""
    rows = sorted(_published()["settings"], key=lambda row: float(row["median"]))
    return tuple(PublishedSetting(**row) for row in rows)


def published_pairs() -> tuple[PublishedPair, ...]:
    """Published values of single pairs (Kishino et al., arXiv 2505.15353v1)."""
    return tuple(PublishedPair(**row) for row in _published()["pairs"])


def published_holds(texts: TextSet) -> bool:
    """Whether values on these texts may be placed on the published scale: the published texts with their clip."""
    same = len(texts) == 10_000 and abs(texts.mean_bytes - PILE_MEAN_BYTES) < 1e-3
    return same and texts.clip == PILE_CLIP


def published_beside(setting: str) -> PublishedSetting | None:
    """The published setting of the same name as a measured one; for quantizations, of the same kind. None where there
    is none."""
    name = PUBLISHED_AS.get(setting, setting)
    return next((row for row in published() if row.setting == name), None)


def worth_of_a_seed(measured: Iterable[Setting], texts: TextSet) -> tuple[float, str] | None:
    """The KL between two seeds in bits per byte, and its source in words: the median measured on these texts, else the
    published one where that holds. None where neither is known."""
    for row in measured:
        if row.setting == "seed" and row.median > 0:
            return row.median, "the median between seeds, measured on these texts"
    known = published_beside("seed")
    if known is None or not published_holds(texts):
        return None
    return known.median, f"the published median between seeds, {known.source}"


def not_measured(measured: Iterable[Setting]) -> list[PublishedSetting]:
    """The published settings that are not among the measured ones."""
    there = {PUBLISHED_AS.get(row.setting, row.setting) for row in measured}
    return [row for row in published() if row.setting not in there]


# ------------------------------------------------------------------------------------------------ which pairs are what


def setting_of(a: Mapping[str, Any], b: Mapping[str, Any], a_ref: ModelRef, b_ref: ModelRef) -> str | None:
    """The setting that two models instance by their attributes: `checkpoint`, `seed`, `size`, `architecture`,
    `fine-tuning`, `layer`, `8-bit (KIND)`, `4-bit (KIND)`, `quantization (KIND)`, `attention (KIND)`; None for
    anything else.

    It does not depend on the rest of the store: whether these checkpoints are consecutive, or the last of their runs.
    """
    if a_ref.layer is not None or b_ref.layer is not None:
        same = replace(a_ref, layer=None) == replace(b_ref, layer=None)
        whole = a_ref.quantization is None and a.get("quantization") is None
        return (
            "layer" if same and whole and None not in (a_ref.layer, b_ref.layer) and _adjacent(a_ref, b_ref) else None
        )
    if kind := _quantization_between(a, b, a_ref, b_ref):
        return quantization_setting(kind)
    if a.get("quantization") is not None or b.get("quantization") is not None:
        return None
    if _is_child(a, b, a_ref, b_ref) or _is_child(b, a, b_ref, a_ref):
        return "fine-tuning"
    differing = _differing(a, b)
    if _same_origin(a, b, a_ref, b_ref) and len(differing) == 1 and differing[0] in _SETTING_OF:
        return _SETTING_OF[differing[0]]
    sizes = [row["parameters"] for row in (a, b) if row.get("parameters") is not None and row.get("parent") is None]
    equal_size = len(sizes) == 2 and max(sizes) <= EQUAL_SIZE * min(sizes) * (1 + 1e-9)
    return "architecture" if equal_size and "type" in differing and "dtype" not in differing else None


_SETTING_OF = {"seed": "seed", "parameters": "size", "step": "checkpoint"}


def quantization_setting(kind: str) -> str:
    """The setting of a quantization, by the number of bits in its name: `4-bit (nf4)`, `8-bit (gguf-q8_0)`;
    `quantization (awq)` where the name has none. `attention (eager)` for a model whose attention is computed otherwise.
    """
    if kind in ATTENTIONS:
        return f"attention ({kind.removeprefix('attention-')})"
    for bits in (8, 4):
        if re.search(rf"(?:int|nf|fp|q){bits}(?!\d)|(?<!\d){bits}-?bit", kind, re.IGNORECASE):
            return f"{bits}-bit ({kind})"
    return f"quantization ({kind})"


def _adjacent(a: ModelRef, b: ModelRef) -> bool:
    return abs((a.layer or 0) - (b.layer or 0)) == 1


def _quantization_between(a: Mapping[str, Any], b: Mapping[str, Any], a_ref: ModelRef, b_ref: ModelRef) -> str | None:
    """The kind of quantization, where one of two models is the quantized other; else None."""
    if (a.get("quantization") is None) == (b.get("quantization") is None):
        return None
    if b.get("quantization") is None:
        a, b, a_ref, b_ref = b, a, b_ref, a_ref
    kind = str(b["quantization"])
    if b_ref.quantization is not None:  # by klscale: the rest of the reference is the whole model
        return kind if replace(b_ref, quantization=None) == a_ref else None
    if _is_child(a, b, a_ref, b_ref):  # a separate checkpoint, whose parent is the model that was quantized
        return kind
    alone = _differing(a, b) == ["quantization"] and (a.get("step") is None) == (b.get("step") is None)
    return kind if alone and _same_origin(a, b, a_ref, b_ref) else None


def _is_child(parent: Mapping[str, Any], child: Mapping[str, Any], parent_ref: ModelRef, child_ref: ModelRef) -> bool:
    """Whether the child names the parent, and both have the same dtype; the name of a parent need not have one."""
    named = parent_of(child)
    if named is None or named not in (str(parent_ref), str(replace(parent_ref, dtype="float32"))):
        return False
    return not _both(parent, child, "dtype") or parent["dtype"] == child["dtype"]


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [name for name in IDENTITY if _both(a, b, name) and not _alike(_known(a, name), _known(b, name), name)]


def _known(attributes: Mapping[str, Any], name: str) -> Any:
    """An attribute. A missing parent or quantization means none."""
    value = attributes.get(name)
    return "none" if name in ("quantization", "parent") and value is None else value


def _alike(a: Any, b: Any, name: str) -> bool:
    """Whether two values are equal; parameters may differ by 10 %: a fine-tune with a few more tokens is of equal
    size."""
    return bool(abs(a - b) <= 0.1 * max(a, b)) if name == "parameters" else bool(a == b)


def parent_of(attributes: Mapping[str, Any]) -> str | None:
    """The parent as a printed reference; None where there is none, or it cannot be read as one."""
    try:
        return str(ModelRef.parse(str(attributes["parent"])))
    except (KeyError, InputError):
        return None


def _both(a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> bool:
    return _known(a, name) is not None and _known(b, name) is not None


def _same_origin(a: Mapping[str, Any], b: Mapping[str, Any], a_ref: ModelRef, b_ref: ModelRef) -> bool:
    """Whether two models have one family or one name: models of unknown family are never relatives."""
    return (a.get("family") is not None and a.get("family") == b.get("family")) or a_ref.name == b_ref.name


# -------------------------------------------------------------------------------------------- the pairs of a store


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
        and _quantization_between(models.rows[base], models.rows[variant], models.refs[base], models.refs[variant])
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
class _Pairs:
    """`places` (P, 2) of models in the vectors; `names` (P, 2), a number for each name; `n_available` before draws."""

    places: Integers
    names: Integers
    n_available: int

    def of(self, chosen: NDArray[Any]) -> _Pairs:
        """Some of them."""
        return replace(self, places=self.places[chosen], names=self.names[chosen])


def _find_pairs(vectors: Vectors) -> dict[str, _Pairs]:
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
        found[setting] = _Pairs(order[pairs], numbers[pairs], n_available)
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
        return _coded(_known(self.rows[place], name) for place in places)

    def _numbers(self, places: Integers, name: str) -> Floats:
        return np.array([self.rows[place].get(name, 0) for place in places], dtype=np.float64)

    def children(self) -> Iterator[tuple[int, int]]:
        """Each parent with its children, by name."""
        for child, row in enumerate(self.rows):
            if (parent := parent_of(row)) is not None:
                for source in self.named.get(parent, ()):
                    if _is_child(self.rows[source], row, self.refs[source], self.refs[child]):
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


def _drawn(groups: Sequence[Sequence[int]], n: int, seed: int = 0) -> Integers:
    """`n` different random pairs (n, 2) within groups, in rounds that pair every model with one other of its group."""
    generator, drawn = np.random.default_rng(seed), dict[tuple[int, int], None]()
    while len(drawn) < n:
        around: list[tuple[int, int]] = []
        for group in groups:
            shuffled = generator.permutation(group).tolist()
            around += zip(shuffled[0::2], shuffled[1::2], strict=False)
        for k in generator.permutation(len(around)):
            if len(drawn) < n:
                drawn[min(around[k]), max(around[k])] = None
    return np.array([*drawn])


# ------------------------------------------------------------------------------------------------------ the numbers


def measure(vectors: Vectors, *, resamples: int = RESAMPLES) -> list[Setting]:
    """KL in bits per byte of each setting among these models, with standard errors; smallest median first.

    `resamples`: number of bootstrap samples of the texts for the standard errors of medians; with 0 these are NaN, in
    half the time. Raises InputError where the vectors were made by different conventions.
    """
    vectors.require_one_convention()
    found = _find_pairs(vectors)
    if not found:
        return []
    texts = vectors.texts
    kl = kl_pairs(
        vectors.log_likelihood,
        texts.bytes,
        np.concatenate([pairs.places for pairs in found.values()]),
        clip=texts.clip,
        documents=texts.document,
        draws=(draws := text_draws(len(texts), texts.document, resamples=resamples)),
    )
    ends = np.cumsum([len(pairs.places) for pairs in found.values()])
    settings = []
    for (setting, pairs), end in zip(found.items(), ends, strict=True):
        part = {name: values[end - len(pairs.places) : end] for name, values in kl.items()}
        known = ~np.isnan(part["value"])  # pairs with texts in common
        if known.any():
            part = {name: values[known] for name, values in part.items()}
            pairs = pairs.of(known)
            found_here = _measured(vectors.names, setting, pairs, part)
            settings.append(replace(found_here, by_spans=_by_spans(vectors, setting, pairs, draws)))
    return sorted(settings, key=lambda row: row.median)


def _by_spans(vectors: Vectors, setting: str, pairs: _Pairs, draws: Floats) -> Setting | None:
    """A setting by spans, of those of its pairs that have them."""
    known = np.array([row for row, spans in enumerate(vectors.spans or ()) if spans is not None], dtype=np.int64)
    chosen = np.flatnonzero(np.isin(pairs.places, known).all(axis=1))
    pairs, texts = pairs.of(np.sort(np.random.default_rng(0).permutation(chosen)[:MOST_BY_SPANS])), vectors.texts
    terms = np.zeros((2, len(pairs.places), len(texts)))
    for n, (a, b) in enumerate(pairs.places):
        terms[:, n] = vectors.span_terms(vectors.models[a], vectors.models[b])
    pairs, terms = pairs.of(usable := (terms[1] > 0).sum(axis=1) > 1), terms[:, usable]
    if not len(pairs.places):
        return None
    variances, size = terms[0], terms[1] * LOG_2
    kl: dict[str, Any] = {"value": np.empty(len(size)), "standard_error": np.empty(len(size))}
    for n, there in enumerate(size > 0):
        clusters = cluster_codes(texts.document, there)
        kl["value"][n], kl["standard_error"][n] = ratio_of_sums(variances[n, there], size[n, there], clusters)
    kl["in_range"] = (kl["value"] <= LARGEST_BY_SPANS) & ~vectors.far[pairs.places].any(axis=1)
    kl["resampled"] = (variances @ draws.T) / (size @ draws.T)
    return _measured(vectors.names, setting, pairs, kl)


def noise_floor(vectors: Vectors) -> NoiseFloor | None:
    """Run-to-run noise, the lowest rung of the scale, in bits per byte; None where it is known of no model."""
    floor = vectors.noise_floor
    known = floor[~np.isnan(floor)]
    if not len(known):
        return None
    largest_of = vectors.names[int(np.nanargmax(floor))]
    return NoiseFloor(float(np.median(known)), float(known.min()), float(known.max()), largest_of, len(known))


def _measured(labels: Sequence[str], setting: str, pairs: _Pairs, kl: Mapping[str, Any]) -> Setting:
    value: Floats = kl["value"]
    medians = np.median(kl["resampled"], axis=0)
    error = float(np.std(medians, ddof=1)) if len(medians) > 1 else math.nan
    low, high = np.quantile(value, [0.25, 0.75])
    interval = interval_over_models(value, pairs.names)
    return Setting(
        setting=setting,
        median=float(np.median(value)),
        standard_error=error if len(value) > 1 else float(kl["standard_error"][0]),
        quartiles=(float(low), float(high)),
        interval=interval or (float(value.min()), float(value.max())),
        interval_kind="models" if interval else "range",
        pairs=tuple((labels[a], labels[b]) for a, b in pairs.places),
        values=tuple(value.tolist()),
        standard_errors=tuple(kl["standard_error"].tolist()),
        in_range=tuple(kl["in_range"].tolist()),
        n_models=len(np.unique(pairs.names)),
        n_in_range=int(kl["in_range"].sum()),
        n_available=pairs.n_available,
    )


def interval_over_models(value: Floats, models: Integers, *, seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of the median of `value` (P,), the KL of pairs of `models` (P, 2; the same number twice where a
    pair is of one model); None for too few models.

    With five groups of pairs or more that no model links, groups are drawn with replacement. Else models are drawn,
    where there are six, and a pair counts as often as its models were drawn together (`expanded_percentiles`). In
    simulations it covers 91 to 98 %, and more where models are drawn and few pairs share one.
    """
    models = np.unique(models, return_inverse=True)[1].reshape(-1, 2)
    n = int(models.max()) + 1
    links = scipy.sparse.coo_array((np.ones(len(models)), (models[:, 0], models[:, 1])), shape=(n, n))
    n_groups, group_of = scipy.sparse.csgraph.connected_components(links, directed=False)
    if n_groups < FEWEST_GROUPS and n < FEWEST_MODELS:
        return None
    units = group_of[models].astype(np.int64) if n_groups >= FEWEST_GROUPS else models
    n = n_groups if n_groups >= FEWEST_GROUPS else n
    order = np.argsort(value)
    weight = np.cumsum(pair_draws(units[order], n, UNIT_RESAMPLES, seed), axis=1)
    weight = weight[weight[:, -1] > 0]
    # The median of the drawn pairs: for an even number, the mean of the two in the middle.
    middle = np.stack([(2 * weight < weight[:, -1:]).sum(axis=1), (2 * weight <= weight[:, -1:]).sum(axis=1)])
    medians = value[order][middle].mean(axis=0)
    return expanded_percentiles(medians, n)


def pair_draws(units: Integers, n: int, resamples: int, seed: int = 0) -> Integers:
    """How often each pair of `units` (P, 2), numbers below n, counts in each of `resamples` samples of n units, drawn
    with replacement (R, P): as often as both were drawn. A pair of a single unit counts as often as the unit."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    first, second = units.T
    return np.where(first == second, drawn[:, first], drawn[:, first] * drawn[:, second])


def expanded_percentiles(resampled: Floats, n: int) -> tuple[float, float]:
    """95 % interval from the values in samples (R,) of n units: percentiles, widened like Student's t compared with the
    normal (Hesterberg, The American Statistician 69:371, 2015)."""
    tail = scipy.special.ndtr(-math.sqrt(n / (n - 1)) * scipy.special.stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


# --------------------------------------------------------------------------------------------------------- in words


@dataclass(frozen=True)
class Yardstick:
    """A setting with its median in bits per byte. `up_to` is the largest value whose nearest setting it is, on a log
    axis."""

    setting: str
    median: float
    source: str
    up_to: float

    def places(self, value: float) -> str:
        """The place of a value on the scale, in words."""
        ratio = value / self.median
        times = f"{ratio:.1f} times" if 0.1 <= ratio < 10 else f"{ratio:.2g} times"
        return f"{times} the median of '{self.setting}' ({self.median:.3g}, {self.source})"


def yardsticks(
    texts: TextSet,
    measured: Iterable[Setting] = (),
    pair: tuple[str, str] = ("", ""),
    estimator: str = WHOLE_TEXTS,
) -> list[Yardstick]:
    """The settings that a value by one estimator is compared with, smallest first: those measured on the same texts by
    the same estimator, without settings that consist of the given `pair` alone. Else, for whole texts, the published
    scale where it holds, or none.

    Random pairs, and pairs of one type, are used only for values above every other setting. Layers, which are no
    models, are never used.
    """
    rows = filter(None, (row.by(estimator) for row in measured))
    itself = pair, pair[::-1]
    own = [(row.median, row.setting) for row in rows if row.median > 0 and any(one not in itself for one in row.pairs)]
    holds = estimator == WHOLE_TEXTS and published_holds(texts)
    known = [(row.median, row.setting) for row in published()] if holds else []
    scale = sorted((row for row in own or known if row[1] != "layer"), key=lambda row: row[0])
    specific = [row for row in scale if row[1] not in UNSPECIFIC]
    if specific:
        scale = specific + [row for row in scale if row[1] in UNSPECIFIC and row[0] > specific[-1][0]]
    ends = [*(math.sqrt(a * b) for (a, _), (b, _) in pairwise(scale)), math.inf][: len(scale)]
    source = f"by {estimator}, measured on these texts" if own else "published"
    return [Yardstick(setting, median, source, end) for (median, setting), end in zip(scale, ends, strict=True)]


def place(
    kl: ReportedKL,
    texts: TextSet,
    measured: Sequence[Setting] = (),
    pair: tuple[str, str] = ("", ""),
    setting: str | None = None,
) -> str | None:
    """The place of a pair's KL in words: among the pairs of its own `setting`, where this has others, else by the
    nearest of its `yardsticks`; None where there is none. Spans are compared with spans where both are known, else
    whole texts with whole texts."""
    for estimator, value in ((SPANS, kl.by_spans), (WHOLE_TEXTS, kl.whole_texts.value)):
        if value > 0 and (rows := yardsticks(texts, measured, pair, estimator)):
            own = _own(setting, rows, pair, measured)
            if own is None:
                return next(row for row in rows if value <= row.up_to).places(value)
            others = _others(own.setting, pair, estimator, measured)
            above = sum(other < value for other in others)
            return own.places(value) + (f", above {above:,} of {len(others):,} others" if others else "")
    return None


def _own(
    setting: str | None, rows: Sequence[Yardstick], pair: tuple[str, str], measured: Iterable[Setting]
) -> Yardstick | None:
    """The yardstick of a setting; for a pair of checkpoints, that of the half of training that has it."""
    itself = {pair, pair[::-1]}
    halves = [row.setting for row in measured if not itself.isdisjoint(row.pairs)] if setting == "checkpoint" else []
    names = {setting, PUBLISHED_AS.get(str(setting)), *halves} - {*UNSPECIFIC}
    return next((row for row in rows if row.setting in names), None)


def _others(setting: str, pair: tuple[str, str], estimator: str, measured: Iterable[Setting]) -> list[float]:
    """The KL of the other pairs of a setting, in bits per byte."""
    found = next((row.by(estimator) for row in measured if row.setting == setting), None)
    if found is None:
        return []
    return [value for own, value in zip(found.pairs, found.values, strict=True) if own not in (pair, pair[::-1])]


def setting_between(vectors: Vectors, a: str, b: str) -> str | None:
    """The setting that two of these models instance; see `setting_of`."""
    i, j = vectors.position(a), vectors.position(b)
    return setting_of(vectors.known[i], vectors.known[j], vectors.models[i], vectors.models[j])
