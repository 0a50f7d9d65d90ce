"""Spend a size budget over the parts of a model: the kind of each part that makes the sum of their KLs least.

The sum is minimised exactly, by integer programming. It promises what the mix would cost if parts added up, on the
texts by which the kinds were chosen. So the mix is measured as a whole on other texts, beside each kind alone, and
beside mixes of the same size that were made without looking at the costs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from klscale.errors import InputError
from klscale.science.arrays import Floats
from klscale.science.estimates import Estimate
from klscale.studies.sensitivity import OfKind, Part, Sensitivity, change_of

PLAIN_BITS = 16
"""Bits of a weight that is not quantized."""
N_DEALT = 3
"""Mixes of the same size whose kinds are dealt at random."""


@dataclass(frozen=True)
class Uniform:
    """All parts as one kind, or as two kinds dealt at random: `bits` per weight, `kl` in bits per byte, and that of the
    mix less it, paired."""

    kind: str
    bits: float
    kl: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Mix:
    """A kind for each module, None where it stays in 16 bits. `bits` and `budget` are per weight of the linear layers:
    embeddings are not counted. `promised` is the sum of the KLs of the parts, on the texts that chose the kinds; `got`
    is the KL of the whole mix on `n_texts` texts, which are others where `held_out`. `uniform` has the kinds alone, on
    the same texts as `got`. `dealt` is the mean of mixes of the same size: each part as the best kind that fits alone,
    and parts in random order as the best that does not, while the budget lasts. None where no kind fits alone."""

    budget: float
    kinds: Mapping[str, str | None]
    bits: float
    promised: Estimate
    got: Estimate
    uniform: tuple[Uniform, ...]
    dealt: Uniform | None
    n_texts: int
    held_out: bool


def parse_budget(text: str) -> float:
    """`4.5bpw` or `4.5` as bits per weight. Raises InputError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:bpw)?", text.strip())
    if match is None or not 0 < float(match[1]) <= PLAIN_BITS:
        raise InputError(
            f"--budget {text!r:.40} is no number of bits.", f"It is above 0, up to {PLAIN_BITS}.", "Write 4.5bpw."
        )
    return float(match[1])


def spend(found: Sensitivity, budget: float) -> Mix:
    """The mix of the measured kinds that costs least within `budget` bits per weight of the linear layers, checked.
    Raises InputError where no mix fits."""
    weights = {module.name: module.n_weights for module in found.bench.modules}
    n_weights, options = sum(weights.values()), dict[str, list[Part]]()
    for one in found.kinds:
        for part in one.parts:
            options.setdefault(part.name, []).append(part)
    plain = {name: max(part.n_weights for part in some) * PLAIN_BITS for name, some in options.items()}  # bits
    costs = [[0.0, *(part.kl.value for part in some)] for some in options.values()]
    bits = [[plain[name], *(_bits(part, plain[name]) for part in some)] for name, some in options.items()]
    others = n_weights * PLAIN_BITS - sum(plain.values())
    places = _least(costs, bits, budget * n_weights - others)
    if places is None:
        least = (sum(map(min, bits)) + others) / n_weights
        raise InputError(
            f"No mix has {budget:g} bits per weight.",
            f"The smallest of these kinds has {least:.2f}.",
            f"A larger budget, or a smaller kind: --budget {np.ceil(least * 10) / 10:.1f}bpw",
        )
    picked = [some[place - 1] for some, place in zip(options.values(), places, strict=True) if place]
    kinds: dict[str, str | None] = dict.fromkeys(weights)
    for part in picked:
        kinds |= dict.fromkeys(part.modules, part.kind)
    chosen = found.bench.texts_at(0, found.n_texts)
    alone = [found.bench.nats(part.change, chosen) for part in picked]
    promised = found.bench.kl(np.sum([np.zeros(len(chosen)), *alone], axis=0), chosen)
    total = sum(own[place] for own, place in zip(bits, places, strict=True)) + others
    return _checked(found, budget, kinds, total / n_weights, promised)


def _bits(part: Part, plain: int) -> int:
    """Of a part under its kind; what this cannot hold is left in 16 bits."""
    return 8 * part.stored_bytes + plain - PLAIN_BITS * part.n_weights


def _least(costs: Sequence[Sequence[float]], bits: Sequence[Sequence[int]], room: float) -> list[int] | None:
    """The place that is chosen in each row: the sum of costs is least, and the bits fit. None where none fits."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    cost, size = np.concatenate([*map(np.array, costs)]), np.concatenate([*map(np.array, bits)]).astype(np.float64)
    row = np.repeat(np.arange(len(costs)), [len(own) for own in costs])
    one_each = LinearConstraint(csr_array((np.ones(len(row)), (row, np.arange(len(row))))), 1, 1)
    fits = LinearConstraint(size[None] / size.sum(), -np.inf, room / size.sum())
    scale = cost.max() or 1.0  # tolerances of the solver are absolute
    found = milp(
        cost / scale, integrality=np.ones(len(row), dtype=np.int64), bounds=Bounds(0, 1), constraints=[one_each, fits]
    )
    if found.x is None:
        return None
    start = np.searchsorted(row, np.arange(len(costs)))
    return [int(np.argmax(own)) for own in np.split(found.x, start[1:])]


def _checked(
    found: Sensitivity, budget: float, kinds: Mapping[str, str | None], bits: float, promised: Estimate
) -> Mix:
    """The mix as it is measured on texts that had no part in its choice, beside each kind alone."""
    bench = found.bench
    texts = bench.texts_at(found.n_texts, found.n_texts)
    held_out = len(texts) >= 2
    texts = texts if held_out else bench.texts_at(0, found.n_texts)
    mix = change_of("the mix", {name: kind for name, kind in kinds.items() if kind is not None})
    sizes = {one.kind: _bits_of(found, one.parts) for one in found.kinds}
    by_kl = sorted(found.kinds, key=lambda one: one.whole.value)
    low = next((one for one in by_kl if fits(sizes[one.kind], budget)), None)
    high = next((one for one in by_kl if not fits(sizes[one.kind], budget)), None)
    drawn = [] if low is None else [_dealt(found, budget, low, high, seed) for seed in range(N_DEALT)]
    changes = [
        change_of(f"dealt at random, {seed}", {name: part.kind for part in some for name in part.modules})
        for seed, some in enumerate(drawn)
    ]
    bench.measure([mix, *(one.change for one in found.kinds), *changes], texts, "checking the mix")
    got = bench.nats(mix, texts)

    def beside(kind: str, size: float, nats: Floats) -> Uniform:
        return Uniform(kind, size, bench.kl(nats, texts), bench.difference(got - nats, texts))

    rows = tuple(beside(one.kind, sizes[one.kind], bench.nats(one.change, texts)) for one in found.kinds)
    dealt = None
    if low is not None:
        names = f"{low.kind}, {high.kind if high else f'{PLAIN_BITS} bits'} at random"
        size = float(np.mean([_bits_of(found, some) for some in drawn]))
        dealt = beside(names, size, np.mean([bench.nats(change, texts) for change in changes], axis=0))
    return Mix(budget, kinds, bits, promised, bench.kl(got, texts), rows, dealt, len(texts), held_out)


def fits(bits: float, budget: float) -> bool:
    """Whether so many bits per weight are within the budget."""
    return bits <= budget + 1e-9


def _bits_of(found: Sensitivity, quantized: Sequence[Part]) -> float:
    """Bits per weight of the linear layers with these parts quantized."""
    n_weights = sum(module.n_weights for module in found.bench.modules)
    held = sum(part.n_weights for part in quantized)
    return (8 * sum(part.stored_bytes for part in quantized) + PLAIN_BITS * (n_weights - held)) / n_weights


def _dealt(found: Sensitivity, budget: float, low: OfKind, high: OfKind | None, seed: int) -> list[Part]:
    """The parts as one kind, but in random order as another one (None: not quantized) while the budget lasts."""
    chosen: dict[str, Part | None] = {part.name: part for part in low.parts}
    others: dict[str, Part | None] = {part.name: part for part in high.parts} if high else dict.fromkeys(chosen)
    for name in np.random.default_rng(seed).permutation([*others]).tolist():
        changed = {**chosen, name: others[name]}
        if fits(_bits_of(found, [part for part in changed.values() if part]), budget):
            chosen = changed
    return [part for part in chosen.values() if part]
