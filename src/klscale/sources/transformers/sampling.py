"""Sampled tokens, read off the tiles of the output head while log-likelihoods are: no logits are kept.

A position's ids are given, or drawn here from the proposal of `science.sampled_tokens`, by one pass over the tiles: a
tile takes the place of those before it with the probability that it has among them, and the id is then drawn in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klscale.science.arrays import Floats, Integers
from klscale.science.sampled_tokens import MIXTURE
from klscale.sources.transformers.head import in_float64
from klscale.vectors.draws import Sampling

WHOLE, ROOT, SEEN = range(3)
"""The parts of the proposal: the model's own p, the square root of p, and how often ids occur in the texts."""

ROWS, IN_CACHE = 1024, 128
"""Rows of a tile in which ids are drawn at a time, and those that fit the cache of a CPU."""


class _Positions:
    """A dataclass of arrays that have a row for each position."""

    def at(self, positions: slice) -> Self:
        """Some of the positions."""
        return type(self)(*(getattr(self, entry.name)[positions] for entry in fields(self)))  # type: ignore[arg-type]

    @classmethod
    def joined(cls, pieces: Sequence[Self]) -> Self:
        """The positions of all pieces, one piece after the other."""
        names = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]
        return cls(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in names))


@dataclass(frozen=True, eq=False)
class Wanted(_Positions):
    """What is to be read at R positions: `ids` (R, m), and `part` (R, m) of the proposal to draw from; -1 where the id
    is given. `uniform` (R, m, tiles) are random numbers."""

    ids: Integers
    part: NDArray[np.int8]
    uniform: Floats

    @classmethod
    def of(cls, sampling: Sampling, text: int, n_positions: int, seen: Floats, n_tiles: int) -> Wanted:
        """Of all scored tokens of a text; `seen` (V,) is how often each id occurs, as a distribution."""
        m = sampling.draws.m
        if text in sampling.draws.of:
            ids = sampling.draws.of[text].ids.astype(np.int64)
            return cls(ids, np.full(ids.shape, -1, np.int8), np.zeros((*ids.shape, n_tiles)))
        generator = sampling.generator(text)
        part = generator.choice(3, size=(n_positions, m), p=MIXTURE).astype(np.int8)
        ids = np.searchsorted(np.cumsum(seen)[:-1], generator.random((n_positions, m)), side="right")
        return cls(ids, part, generator.random((n_positions, m, n_tiles)))


@dataclass(frozen=True, eq=False)
class Sampled(_Positions):
    """What was read at R positions: `ids` (R, m), their `log_proposal` (R, m), NaN where they were given, and
    `log_probability` (R, m) in nats, -inf for a token that is ruled out and NaN for an id that the vocabulary lacks;
    `top` (R,) the most probable id."""

    ids: Integers
    log_proposal: Floats
    log_probability: Floats
    top: Integers


class TileSampler:
    """Reads what is `wanted` at the `places` (R,) of a batch's rows, in order, as their tiles go by. `seen` (V,) as in
    `Wanted.of`; `width` the columns of a tile."""

    def __init__(self, places: Integers, wanted: Wanted, seen: Floats, width: int, device: torch.device) -> None:
        self._kind = torch.float32 if device.type == "mps" else torch.float64
        self._starts, self._width, self._device = places, width, device
        self._places = torch.from_numpy(places).to(device)
        self._ids = torch.from_numpy(wanted.ids).to(device)
        self._part = torch.from_numpy(wanted.part).to(device)
        self._uniform = torch.from_numpy(wanted.uniform).to(self._kind).to(device)
        self._draws = bool((wanted.part >= 0).any())
        self._log_seen = torch.from_numpy(np.log(seen)).to(self._kind).to(device) if self._draws else None
        self._given = (self._part < 0) | (self._part == SEEN)
        n = len(places)
        self._own = torch.full(wanted.ids.shape, math.nan, dtype=torch.float32, device=device)
        self._whole, self._root = (torch.full((n,), -math.inf, dtype=self._kind, device=device) for _ in range(2))
        self._best = torch.full((n,), -math.inf, dtype=torch.float32, device=device)
        self._top = torch.zeros(n, dtype=torch.int64, device=device)

    def see(self, rows: slice, start: int, tile: Tensor, mass: Tensor) -> None:
        """Take what is wanted from a tile of logits (T, v) of these rows, which begins at the token id `start`; `mass`
        (T,) is the log-sum-exp of each row."""
        first, stop = np.searchsorted(self._starts, [rows.start, rows.stop])
        if first == stop:
            return
        here, tile = slice(int(first), int(stop)), tile.float()
        if stop - first < len(tile):
            chosen = self._places[here] - rows.start
            tile, mass = tile.index_select(0, chosen), mass.index_select(0, chosen)
        largest = tile.amax(dim=1)
        better = (largest > self._best[here]).nonzero()[:, 0]
        self._best[here.start + better] = largest[better]
        self._top[here.start + better] = tile[better].argmax(dim=1) + start
        place = self._ids[here] - start
        inside = self._given[here] & (place >= 0) & (place < tile.shape[1])
        found = tile.gather(1, place.clamp(0, tile.shape[1] - 1))
        self._own[here] = torch.where(inside, found, self._own[here])
        mass = mass.to(self._kind)
        self._whole[here] = torch.logaddexp(self._whole[here], mass)
        if self._draws:
            self._draw(here, start, tile, mass, largest)

    def _draw(self, here: slice, start: int, tile: Tensor, mass: Tensor, largest: Tensor) -> None:
        root = _root_mass(tile, largest).to(self._kind)
        self._root[here] = torch.logaddexp(self._root[here], root)
        by_root = self._part[here] == ROOT
        chance = torch.where(
            by_root, (root - self._root[here]).exp()[:, None], (mass - self._whole[here]).exp()[:, None]
        )
        uniform = self._uniform[here, :, start // self._width]
        taken = (uniform < chance) & ~self._given[here]
        within = uniform / chance
        power = torch.where(by_root, 0.5, 1.0)
        for part in torch.split(taken.nonzero(), ROWS):
            r, c = part.T
            logits = tile[r]
            scaled = logits * power[r, c, None]
            running = (scaled - scaled.amax(dim=1, keepdim=True)).exp().cumsum(dim=1)
            passed = running <= within[r, c, None].to(running.dtype) * running[:, -1:]
            chosen = passed.sum(dim=1).clamp(max=tile.shape[1] - 1)
            self._ids[here.start + r, c] = chosen + start
            self._own[here.start + r, c] = logits.gather(1, chosen[:, None])[:, 0]

    def found(self) -> Sampled:
        """What was read, after the last tile."""
        own = self._own.to(self._kind)
        log_p = own - self._whole[:, None]
        log_r = torch.full_like(log_p, math.nan)
        if self._log_seen is not None:
            seen = self._log_seen[self._ids.clamp(max=len(self._log_seen) - 1)]
            parts = torch.stack([log_p, own / 2 - self._root[:, None], seen])
            shares = torch.tensor(MIXTURE, dtype=self._kind, device=self._device).log()
            log_r = torch.where(self._part >= 0, (parts + shares[:, None, None]).logsumexp(dim=0), log_r)
        return Sampled(self._ids.cpu().numpy(), in_float64(log_r), in_float64(log_p), self._top.cpu().numpy())


def _root_mass(tile: Tensor, largest: Tensor) -> Tensor:
    """The log-sum-exp (T,) of half the logits (T, v) of a tile, whose largest are given; a few rows at a time on a CPU,
    for its cache."""
    found, size = [], IN_CACHE if tile.device.type == "cpu" else len(tile)
    top = largest.clamp(min=torch.finfo(largest.dtype).min) / 2  # a tile that is ruled out as a whole has none
    for part, most in zip(torch.split(tile, size), torch.split(top, size), strict=True):
        found.append((part / 2).sub_(most[:, None]).exp_().sum(dim=1).log_() + most)
    return torch.cat(found)
