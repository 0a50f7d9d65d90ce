"""The scale: how large KL is between checkpoints, seeds, sizes and relatives, measured and as published.

Two models instance a setting when they differ in exactly that attribute; an attribute that is not known never counts as
a difference. Published values hold for pile-10k with its clip and are never mixed with measured ones.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
import yaml

from klscale import divergence
from klscale.divergence import Floats
from klscale.errors import InputError
from klscale.models import ModelRef
from klscale.texts import PILE_CLIP, TextSet
from klscale.vectors import Vectors

PILE_MEAN_BYTES = 972.3188
IDENTITY = ("family", "type", "parameters", "seed", "step", "parent", "quantization", "dtype")
BITS = {"8-bit": {"int8"}, "4-bit": {"nf4", "fp4", "int4"}}
FEWEST_MODELS = 5
"""Below this many models the spread of a median over models is shown as the range of its pairs."""
RESAMPLES = 200


@dataclass(frozen=True)
class Setting:
    """KL of one setting, in bits per byte: the median over `pairs`.

    `standard_error` is over texts (bootstrap). `interval`: 95 % over models (resampled) or, below five models, the
    range over pairs (`interval_kind`: `models` or `range`). `n_in_range` pairs are KL rather than mere distances.
    """

    setting: str
    median: float
    standard_error: float
    interval: tuple[float, float]
    interval_kind: str
    pairs: tuple[tuple[str, str], ...]
    n_models: int
    n_in_range: int


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
    """The published scale, smallest first (Kishino et al., arXiv 2505.15353v3)."""
    rows = sorted(_published()["settings"], key=lambda row: float(row["median"]))
    return tuple(PublishedSetting(**row) for row in rows)


def published_pairs() -> tuple[PublishedPair, ...]:
    """Published values of single pairs (Kishino et al., arXiv 2505.15353v1)."""
    return tuple(PublishedPair(**row) for row in _published()["pairs"])


def published_holds(texts: TextSet) -> bool:
    """Whether values on these texts may be placed on the published scale: the published texts with their clip."""
    same = len(texts) == 10_000 and abs(texts.mean_bytes - PILE_MEAN_BYTES) < 1e-3
    return same and texts.clip == PILE_CLIP


# ------------------------------------------------------------------------------------------------ which pairs are what


def setting_of(a: Mapping[str, Any], b: Mapping[str, Any], a_ref: ModelRef, b_ref: ModelRef) -> str | None:
    """The setting that two models instance by their attributes: `seed`, `size`, `checkpoint`, `fine-tuning`, `8-bit`,
    `4-bit`; None for anything else."""
    if str(a_ref) == parent_of(b) or str(b_ref) == parent_of(a):
        return "fine-tuning"
    differing = [name for name in IDENTITY if _both(a, b, name) and not _alike(_known(a, name), _known(b, name), name)]
    if len(differing) != 1 or not _same_origin(a, b, a_ref, b_ref):
        return None
    if differing == ["quantization"]:
        kinds = {a.get("quantization"), b.get("quantization")}
        return next((name for name, known in BITS.items() if None in kinds and kinds - {None} <= known), None)
    return {"seed": "seed", "parameters": "size", "step": "checkpoint"}.get(differing[0])


def _known(attributes: Mapping[str, Any], name: str) -> Any:
    """An attribute; that a model is derived from no other and not quantized is said by saying nothing."""
    value = attributes.get(name)
    return "none" if name in ("quantization", "parent") and value is None else value


def _alike(a: Any, b: Any, name: str) -> bool:
    """Equal; for parameters, within 10 %: a fine-tune with a few more tokens is not another size."""
    return bool(abs(a - b) <= 0.1 * max(a, b)) if name == "parameters" else bool(a == b)


def parent_of(attributes: Mapping[str, Any]) -> str | None:
    """The parent as a reference is printed; None where there is none, or it is none that can be read."""
    try:
        return str(ModelRef.parse(str(attributes["parent"])))
    except (KeyError, InputError):
        return None


def _both(a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> bool:
    return _known(a, name) is not None and _known(b, name) is not None


def _same_origin(a: Mapping[str, Any], b: Mapping[str, Any], a_ref: ModelRef, b_ref: ModelRef) -> bool:
    """One family, or one name: models of unknown family are never taken for relatives."""
    return (a.get("family") is not None and a.get("family") == b.get("family")) or a_ref.name == b_ref.name


def setting_pairs(vectors: Vectors) -> dict[str, list[tuple[str, str]]]:
    """The pairs of each setting among these models.

    Checkpoint pairs are consecutive at the run's most common spacing, in the first half of the run (`early training`)
    and the second (`later training`). Seed and size pairs are between last checkpoints only.
    """
    rows: list[dict[str, Any]] = [
        {str(k): v for k, v in row.items() if not pd.isna(v)} for row in vectors.attributes.to_dict("records")
    ]
    runs: dict[tuple[Any, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if "step" in row and "parent" not in row:
            kept = (row.get(name) for name in ("family", "seed", "quantization", "dtype"))
            # Checkpoints of one run lie in one directory, or are revisions of one name.
            name = os.path.normpath(re.sub(r"/(?:checkpoint|step)[-_]\d+/?$", "", vectors.models[place].name))
            runs.setdefault((name, *kept), []).append(place)
    found: dict[str, list[tuple[str, str]]] = {}
    last = set(range(len(rows))) - {place for run in runs.values() for place in run}
    for run in runs.values():
        run.sort(key=lambda place: rows[place]["step"])
        last.add(run[-1])
        steps = [rows[place]["step"] for place in run]
        spacing = Counter(b - a for a, b in pairwise(steps) if b > a).most_common(1)
        for a, b in pairwise(run):
            if spacing and rows[b]["step"] - rows[a]["step"] == spacing[0][0]:
                half = "early training" if rows[b]["step"] <= steps[-1] / 2 else "later training"
                found.setdefault(half, []).append((vectors.names[a], vectors.names[b]))
    for a, b in _related(vectors, rows):
        setting = setting_of(rows[a], rows[b], vectors.models[a], vectors.models[b])
        if setting in ("seed", "size") and (not {a, b} <= last or ("step" in rows[a]) != ("step" in rows[b])):
            continue  # of last checkpoints only, and a model of unknown step may be any
        if setting is not None and setting != "checkpoint":
            found.setdefault(setting, []).append((vectors.names[a], vectors.names[b]))
    return found


def _related(vectors: Vectors, rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Places of the pairs that may instance a setting: of one family or name, or parent and child."""
    groups: dict[tuple[str, str], list[int]] = {}
    for place, (ref, row) in enumerate(zip(vectors.models, rows, strict=True)):
        groups.setdefault(("name", ref.name), []).append(place)
        if "family" in row:
            groups.setdefault(("family", row["family"]), []).append(place)
    pairs = {pair for group in groups.values() for pair in combinations(group, 2)}
    for child, row in enumerate(rows):
        if (parent := parent_of(row)) in vectors.names:
            a = vectors.position(parent)
            pairs.add((min(a, child), max(a, child)))
    return sorted(pairs)


# ------------------------------------------------------------------------------------------------------ the numbers


def measure(vectors: Vectors) -> list[Setting]:
    """The KL of each setting that these models instance, smallest median first."""
    return sorted(
        (_measure(vectors, setting, pairs) for setting, pairs in setting_pairs(vectors).items()),
        key=lambda row: row.median,
    )


def _measure(vectors: Vectors, setting: str, pairs: Sequence[tuple[str, str]]) -> Setting:
    matrix = vectors.kl()
    values = np.array([matrix[pair].value for pair in pairs])
    models = sorted({name for pair in pairs for name in pair})
    if len(models) < FEWEST_MODELS:
        interval, kind = (float(values.min()), float(values.max())), "range"
    else:
        interval, kind = _over_models(pairs, values, models), "models"
    in_range = sum(matrix[pair].in_range for pair in pairs)
    median, error = float(np.median(values)), _over_texts(vectors, pairs)
    return Setting(setting, median, error, interval, kind, tuple(pairs), len(models), in_range)


def _over_models(
    pairs: Sequence[tuple[str, str]], values: Floats, models: Sequence[str], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the median over pairs when models are drawn with replacement: a pair counts as often
    as its two models were drawn together."""
    places = np.array([[models.index(name) for name in pair] for pair in pairs])
    generator = np.random.default_rng(seed)
    order = np.argsort(values)
    medians = []
    for _ in range(RESAMPLES):
        drawn = np.bincount(generator.integers(len(models), size=len(models)), minlength=len(models))
        weight = (drawn[places[:, 0]] * drawn[places[:, 1]])[order]
        if weight.sum():
            medians.append(values[order][np.searchsorted(np.cumsum(weight), weight.sum() / 2)])
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def _over_texts(vectors: Vectors, pairs: Sequence[tuple[str, str]], seed: int = 0) -> float:
    """Standard error of the median over pairs, by drawing texts (whole documents, where texts share them) anew."""
    rows, texts, matrix = vectors.log_likelihood, vectors.texts, vectors.kl()
    clipped = rows if texts.clip is None else np.maximum(rows, texts.clip)
    places = [(vectors.position(a), vectors.position(b)) for a, b in pairs]
    both = np.asarray(~np.isnan(rows[sorted({place for pair in places for place in pair})]).any(axis=0))
    size = texts.bytes[both].astype(np.float64)
    clusters = divergence.cluster_codes(texts.document, both)
    codes = np.arange(len(size)) if clusters is None else clusters
    draws = np.stack(list(divergence.bootstrap_draws(codes, RESAMPLES, seed)))[:, codes].astype(np.float64)
    n = draws.sum(axis=1)
    variance = np.empty((len(pairs), RESAMPLES))
    for place, (i, j) in enumerate(places):
        used = clipped if matrix.uses_clip[i, j] else rows
        d = (used[i] - used[j])[both]
        d -= d.mean()
        first, second = draws @ d / n, draws @ (d * d) / n
        variance[place] = second - first**2
    medians = np.median(variance, axis=0) / divergence.nats2_per_bit_per_byte(draws @ size / n)
    return float(np.std(medians, ddof=1))


# --------------------------------------------------------------------------------------------------------- in words


def place(
    value: float, texts: TextSet, measured: Iterable[Setting] = (), pair: tuple[str, str] = ("", "")
) -> str | None:
    """Where the KL of a pair lies, in words: on the scale measured on the same texts, less settings that this very
    pair makes up alone; else on the published scale where that holds; None where neither does."""
    own = [(row.setting, row.median) for row in measured if row.median > 0 and {*row.pairs} - {pair, pair[::-1]}]
    if own:
        scale, name = own, "measured on these texts"
    elif published_holds(texts):
        scale, name = [(row.setting, row.median) for row in published()], "published"
    else:
        return None
    if not value > 0:
        return None
    setting, median = min(scale, key=lambda row: abs(np.log(value / row[1])))
    ratio = value / median
    times = f"{ratio:.1f} times" if 0.1 <= ratio < 10 else f"{ratio:.2g} times"
    return f"{times} the median of '{setting}' ({median:.3g}, {name})"
