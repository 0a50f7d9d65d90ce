"""What quantizing one part of a model costs: exact next-token KL from the model to itself with that part quantized.

KL(base || changed) is summed over the scored tokens of each text and given in bits per byte, with its standard error
over texts. It is exact on these texts: both distributions are known over the whole vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from klscale.errors import InputError, nearest
from klscale.inputs.references import WEIGHTS_ONLY, ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats, Integers
from klscale.science.estimates import Estimate, cluster_codes
from klscale.science.kl import LOG_2
from klscale.sources.source import CHANGED_MODULES, Change, Module, Reader, ReaderOptions, Sources
from klscale.store.store import Store

N_TEXTS = 32
"""Number of texts, drawn at random."""
BY = ("module", "layer", "block", "expert")
"""What is quantized at a time: one linear layer, or one matrix of an expert; those of one attention or MLP layer, all
its experts together; those of one block; or those of one expert, and the others by layer."""
KEEP_EVERY_S = 10.0
"""Seconds of work that a killed command may lose."""
WHOLE = "*"
"""The name of all parts together."""


@dataclass(frozen=True)
class Part:
    """One part of a model, quantized alone: `kl` from the model to that, bits per byte. `noise` is the KL with normal
    noise of the same norm in its place, and `over_noise` their ratio. `n_weights` and `stored_bytes` (codes and scales)
    are of the quantized weights."""

    name: str
    kind: str
    block: int | None
    modules: tuple[str, ...]
    n_weights: int
    stored_bytes: int
    kl: Estimate
    noise: Estimate | None = None
    over_noise: Estimate | None = None

    @property
    def change(self) -> Change:
        """What it is measured by."""
        return change_of(self.name, dict.fromkeys(self.modules, self.kind))

    @property
    def short(self) -> str:
        """The name inside its block: `mlp.down_proj`; the whole name where it is in none, empty for a whole block."""
        return self.name if self.block is None else self.name.partition(f".{self.block}.")[2]


@dataclass(frozen=True)
class OfKind:
    """The parts of a model under one kind of quantization. `whole` is the KL with all parts quantized, `total` the sum
    of the KLs of the parts, both in bits per byte; `additivity` is whole / total with its paired standard error.
    `left` are the modules that the kind cannot hold."""

    kind: str
    parts: tuple[Part, ...]
    whole: Estimate
    total: Estimate
    additivity: Estimate
    left: tuple[str, ...] = ()

    @property
    def change(self) -> Change:
        """All parts together."""
        return change_of(WHOLE, {module: self.kind for part in self.parts for module in part.modules})


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What each part of the model `base` costs under each kind, on `n_texts` of the `n_available` texts that fit its
    window. `by` says what a part is; `seconds` is the time of what was measured now, and not kept from before."""

    base: str
    by: str
    texts: TextSet
    n_texts: int
    n_available: int
    kinds: tuple[OfKind, ...]
    seconds: float
    bench: Bench = field(repr=False)

    def __str__(self) -> str:
        lines = []
        for one in self.kinds:
            worst = max(one.parts, key=lambda part: part.kl.value)
            lines.append(
                f"{self.base}+{one.kind}: {one.whole}; parts add up to {one.total}; most: {worst.name}, {worst.kl}"
            )
        return "\n".join(lines)


def measure(
    base: str | ModelRef,
    kinds: Sequence[str],
    texts: TextSet,
    store: Store,
    *,
    by: str = "module",
    n_texts: int = N_TEXTS,
    control: bool = False,
    device: str | None = None,
    batch_tokens: int | None = None,
    split_special_tokens: bool = False,
    progress: Progress = SILENT,
) -> Sensitivity:
    """What each part of a model costs under each of these weights-only kinds, in bits per byte.

    `by`: a part is a `module`, a `layer`, a `block` or an `expert`. `n_texts` of the texts are drawn at random.
    `control`: measure noise of equal norm too. The store keeps what is measured of each text, also after an
    interruption.

    Raises InputError for an unknown kind or `by`, for texts that are not here, for fewer than two that fit the window,
    and for a model of a source without such changes; KlscaleError where a model or a kind cannot be used.
    """
    ref = base if isinstance(base, ModelRef) else ModelRef.parse(base)
    if by not in BY:
        raise InputError(f"--by {by!r} is not known.", nearest(by, BY))
    for kind in kinds:
        if kind not in WEIGHTS_ONLY:
            why = nearest(kind, WEIGHTS_ONLY)
            raise InputError(f"{kind!r} is no kind of weights alone.", why, f"Kinds: {', '.join(WEIGHTS_ONLY)}.")
    if not kinds:
        raise InputError("No kind of quantization is given.", remedy="--quantize int4")
    if texts.external:
        what = f"The texts of {texts.name} are not here, only their log-likelihoods."
        raise InputError(what, remedy="Exact KL needs the texts: choose another text set with --texts.")
    if n_texts < 2:
        raise InputError(f"{n_texts} texts are too few.", remedy="A standard error needs two texts.")
    sources = Sources(progress)
    sources.of(ref).require(ref, CHANGED_MODULES)
    options = ReaderOptions(device, batch_tokens, split_special_tokens=split_special_tokens)
    bench = Bench(sources.open(sources.pin(ref), options), texts, store, progress)
    chosen = bench.texts_at(0, n_texts)
    parts = {kind: bench.parts(kind, by) for kind in kinds}
    noises = (False, True) if control else (False,)
    changes = [change for kind in kinds for noise in noises for change in _changes(parts[kind], kind, noise)]
    started = time.monotonic()
    bench.measure(changes, chosen, f"quantizing parts of {ref}")
    made = tuple(_of_kind(bench, kind, parts[kind], chosen, control) for kind in dict.fromkeys(kinds))
    seconds = time.monotonic() - started
    return Sensitivity(str(ref), by, texts, len(chosen), len(bench.order), made, seconds, bench)


def _changes(parts: Mapping[str, Sequence[Module]], kind: str, noise: bool) -> list[Change]:
    """Each part alone, then all of them together; one part is all of them."""
    listed = {**parts, **({} if noise else {WHOLE: [module for some in parts.values() for module in some]})}
    return [change_of(name, {module.name: kind for module in some}, noise) for name, some in listed.items()]


def change_of(name: str, kinds: Mapping[str, str], noise: bool = False) -> Change:
    """The change of these modules to these kinds."""
    return Change(name, tuple(kinds.items()), noise)


def _of_kind(bench: Bench, kind: str, parts: Mapping[str, Sequence[Module]], chosen: Integers, control: bool) -> OfKind:
    *one_by_one, together = _changes(parts, kind, False)
    alone = {change.name: bench.nats(change, chosen) for change in one_by_one}
    whole, total = bench.nats(together, chosen), np.sum([*alone.values()], axis=0)
    noise = _changes(parts, kind, True) if control else []
    drawn = {change.name: bench.nats(change, chosen) for change in noise}

    def part(name: str, modules: Sequence[Module]) -> Part:
        return Part(
            name,
            kind,
            modules[0].block,
            tuple(module.name for module in modules),
            sum(module.n_weights for module in modules),
            sum(module.stored_bytes[kind] for module in modules),
            bench.kl(alone[name], chosen),
            bench.kl(drawn[name], chosen) if control else None,
            bench.ratio(alone[name], drawn[name], chosen) if control else None,
        )

    left = tuple(module.name for module in bench.modules if kind not in module.stored_bytes)
    return OfKind(
        kind,
        tuple(part(name, modules) for name, modules in parts.items()),
        bench.kl(whole, chosen),
        bench.kl(total, chosen),
        bench.ratio(whole, total, chosen),
        left,
    )


class Bench:
    """One model, its texts in random order, and what is known of the KL of its changes on each text."""

    def __init__(self, reader: Reader, texts: TextSet, store: Store, progress: Progress) -> None:
        self.reader, self.texts, self.progress = reader, texts, progress
        self.store, self.modules = store, reader.modules()
        self.tokens = reader.tokens(texts)
        lengths = self.tokens.lengths
        fit = (lengths > 1) & (lengths <= (reader.window or np.inf))
        self.order: Integers = texts.random_order[fit[texts.random_order]]
        self.known: dict[str, dict[int, float]] = {}
        if len(self.order) < 2:
            why = f"Fewer than two texts of {texts.name} fit its window."
            raise InputError(f"{reader.ref} cannot be measured on these texts.", why, "Use shorter texts.")
        store.keep_texts(texts)

    def texts_at(self, first: int, n: int) -> Integers:
        """n texts of the random order from place `first` on."""
        return np.sort(self.order[first : first + n])

    def parts(self, kind: str, by: str) -> dict[str, list[Module]]:
        """The modules that a kind can hold, by the name of the part that they are of. Raises InputError for none."""
        found: dict[str, list[Module]] = {}
        for module in self.modules:
            if kind in module.stored_bytes:
                found.setdefault(part_of(module, by), []).append(module)
        if by == "expert" and not any(map(_EXPERT.match, found)):
            raise InputError(f"{self.reader.ref} has no experts.", remedy="Take --by layer.")
        if not found:
            raise InputError(f"{self.reader.ref}: no layer can be quantized as {kind}.", remedy="Take another kind.")
        return found

    def measure(self, changes: Iterable[Change], chosen: Integers, what: str) -> None:
        """Have the KL of these changes on these texts (n,), computed or kept; what is computed is kept."""
        changes = list(dict.fromkeys(changes))
        for change in changes:
            kept = self.store.exact(self.texts.id, self._key(change)) or {}
            nats = {int(text): float(value) for text, value in kept.get("nats", [])}
            self.known[self._key(change)] = nats | self.known.get(self._key(change), {})
        unsaved, saved_at = dict[str, Change](), time.monotonic()

        def lacks(change: Change) -> int:
            return sum(int(text) not in self.known[self._key(change)] for text in chosen)

        def known(change: Change, some: Integers) -> bool:
            return self.known[self._key(change)].keys() >= set(some.tolist())

        def report(change: Change, some: Integers, nats: Floats) -> None:
            nonlocal saved_at
            self.known[self._key(change)] |= dict(zip(some.tolist(), nats.tolist(), strict=True))
            unsaved[self._key(change)] = change
            self.progress.advance(len(some))
            if time.monotonic() - saved_at > KEEP_EVERY_S:
                self._save(unsaved)
                saved_at = time.monotonic()

        total = sum(map(lacks, changes))
        if not total:
            return
        self.progress.begin(what, total, "passes of a text")
        try:
            self.reader.changed_kl(changes, self.tokens, chosen, known, report)
        finally:  # also after Ctrl-C
            self._save(unsaved)

    def _save(self, unsaved: dict[str, Change]) -> None:
        for key, change in unsaved.items():
            about = {"sensitivity": 1, "base": str(self.reader.ref), "change": change.name, "noise": change.noise}
            self.store.write_exact(self.texts.id, key, {**about, "nats": sorted(self.known[key].items())})
        unsaved.clear()

    def _key(self, change: Change) -> str:
        about = [self.reader.pinned.identity, self.reader.ref.dtype, self.tokens.key, change.kinds, change.noise]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]

    def nats(self, change: Change, chosen: Integers) -> Floats:
        """KL in nats (n,) of each of these texts, which was measured."""
        known = self.known[self._key(change)]
        return np.array([known[int(text)] for text in chosen])

    def kl(self, nats: Floats, chosen: Integers) -> Estimate:
        """KL in bits per byte of texts (n,) with these sums in nats."""
        return self._ratio(nats / LOG_2, self.texts.bytes[chosen], chosen)

    def ratio(self, nats: Floats, others: Floats, chosen: Integers) -> Estimate:
        """The ratio of two KLs of the same texts, with its paired standard error; NaN where the second is 0."""
        return self._ratio(nats, others, chosen, unit="")

    def difference(self, nats: Floats, chosen: Integers) -> Estimate:
        """The same as `kl` for a difference, which may be negative."""
        return self._ratio(nats / LOG_2, self.texts.bytes[chosen], chosen, on_log_scale=False)

    def _ratio(self, values: Floats, size: Floats | Integers, chosen: Integers, **how: Any) -> Estimate:
        return Estimate.ratio(values, size, cluster_codes(self.texts.document, chosen), **how)


_EXPERT = re.compile(r"(.*\bexperts)\.\d+(?=\.|$)")


def part_of(module: Module, by: str) -> str:
    """The name of the part that a module is of, one of `BY`. Outside blocks it is itself."""
    if by == "module" or module.block is None:
        return module.name
    before, mark, _ = module.name.partition(f".{module.block}.")
    if by == "block" and mark:
        return f"{before}.{module.block}"
    if expert := _EXPERT.match(module.name):
        return expert[0] if by == "expert" else expert[1]
    return module.name.rpartition(".")[0]
