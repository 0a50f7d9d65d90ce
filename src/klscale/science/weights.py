"""Squared distances between the parameters of checkpoints, streamed from their safetensors files.

    D(i, j) = sum over all parameters of (W_i - W_j)**2         a pure number; float64; no permutation alignment

This is the squared distance in weight space of Kishino et al. (arXiv 2505.15353), whose growth along a run gives the
exponent c_w. All pairs come from one pass over the files and one matrix product: D(i, j) sums the block i..j-1 of the
Gram matrix of the steps W_(t+1) - W_t. Products of the weights themselves would lose every digit of D where late
checkpoints of a run are nearly equal.

Permuting the units of a layer does not change the function of a network. Two networks trained separately differ by such
permutations: a distance between checkpoints of two runs is no distance between functions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from klscale.errors import InputError, KlscaleError
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats, Integers

CHUNK = 2**15
"""Parameters of each checkpoint that are in memory at a time: T checkpoints take 16 x T x CHUNK bytes."""

DETOUR = 300.0
"""A pair is recomputed by direct difference where its path along the steps is this many times its distance. A block sum
has an error of about 1e-16 of the squared path; with this limit it is at most 1e-10 of the distance."""

_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_NO_WEIGHTS = frozenset(("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"))
_PICKLES = frozenset((".bin", ".pt", ".pth", ".ckpt"))
_BEGINNING = 1024


@dataclass(frozen=True, eq=False)
class WeightDistances:
    """`squared_distance` (T, T), symmetric, a pure number, between the checkpoints `names` (T,) that could be used.

    `problems` says why each other checkpoint could not. `n_parameters` counts the compared numbers: all floating-point
    tensors of a checkpoint, tied ones once.
    """

    names: tuple[str, ...]
    squared_distance: Floats
    n_parameters: int
    problems: dict[str, KlscaleError] = field(default_factory=dict)


def squared_distances(checkpoints: Mapping[str, Sequence[Path]], *, progress: Progress = SILENT) -> WeightDistances:
    """Squared distances (T, T) between all pairs of checkpoints: name -> its safetensors files, in the order of a run.

    Every file is read once, CHUNK parameters at a time; one file is open at a time. Files are read again for pairs that
    are much nearer than the path between them (DETOUR), and tensors that look tied are read once before.

    The dtypes may be any mix of float16, bfloat16, float32 and float64. Other tensors (masks, counters) are left out;
    so would be weights packed into integers. A checkpoint is left out, with the reason in `problems`, if it cannot
    be read, holds values that are not finite, or has other shapes than most. Where two sets of shapes are equally
    frequent, that of the latest checkpoint counts.
    """
    usable, problems = _comparable(checkpoints)
    names, used = list(usable), list(usable.values())
    tensors = _without_copies(used)
    lost: dict[int, KlscaleError] = {}
    distance = _all_pairs(used, tensors, lost, progress)
    kept = [t for t in range(len(names)) if t not in lost]
    problems |= {names[t]: error for t, error in lost.items()}
    return WeightDistances(
        names=tuple(names[t] for t in kept),
        squared_distance=distance[np.ix_(kept, kept)],
        n_parameters=_count(used, tensors) if kept else 0,
        problems={name: problems[name] for name in checkpoints if name in problems},
    )


def unusable(checkpoints: Mapping[str, Sequence[Path]]) -> dict[str, KlscaleError]:
    """Name -> reason, of the checkpoints that `squared_distances` would leave out by the headers of their files."""
    return _comparable(checkpoints)[1]


def distances_to(new: Sequence[Path], others: Mapping[str, Sequence[Path]]) -> dict[str, float]:
    """Squared distance of one checkpoint to each of a few others, name -> a pure number, by direct differences: for a
    run that keeps only some of its files. Raises KlscaleError where a checkpoint cannot be read, holds values that are
    not finite, or has other shapes."""
    used = [_weights(new)]
    for name, files in others.items():
        used.append(_weights(files))
        if _shapes(used[-1]) != _shapes(used[0]):
            raise _other_shapes(name, used[-1], str(new[0]), used[0])
    pairs = np.array([(0, t) for t in range(1, len(used))], dtype=np.int64).reshape(-1, 2)
    found = _direct(used, _without_copies(used), pairs, SILENT)
    return dict(zip(others, found.tolist(), strict=True))


def count_parameters(checkpoint: Sequence[Path]) -> int:
    """How many numbers the floating-point tensors of a checkpoint hold, tied ones counted once."""
    used = [_weights(checkpoint)]
    return _count(used, _without_copies(used))


# ---------------------------------------------------------------------------------------------------------- the files


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor lies: in a file, from byte `offset` on."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def stored(self, start: int, stop: int) -> NDArray[Any]:
        """Elements `start` to `stop` as the file holds them; bfloat16 as unsigned 16-bit integers."""
        dtype = np.dtype(_FLOATS[self.dtype])
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset + start * dtype.itemsize)
                data = file.read((stop - start) * dtype.itemsize)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if len(data) < (stop - start) * dtype.itemsize:
            raise KlscaleError(f"{self.path} became shorter while it was read.", remedy="Let its writer finish first.")
        return np.frombuffer(data, dtype)

    def values(self, start: int, stop: int) -> NDArray[np.floating[Any]]:
        stored = self.stored(start, stop)
        return (stored.astype(np.uint32) << 16).view(np.float32) if self.dtype == "BF16" else stored

    def content(self) -> tuple[str, bytes]:
        """Dtype and SHA-256 of the values: equal for tensors with equal values."""
        digest = hashlib.sha256()
        for start in range(0, self.size, CHUNK):
            digest.update(self.stored(start, min(start + CHUNK, self.size)).tobytes())
        return self.dtype, digest.digest()


_Weights = dict[str, _Tensor]


def _comparable(checkpoints: Mapping[str, Sequence[Path]]) -> tuple[dict[str, _Weights], dict[str, KlscaleError]]:
    """The checkpoints that can be read and have the most frequent shapes, and the problems of the others."""
    problems: dict[str, KlscaleError] = {}
    readable: dict[str, _Weights] = {}
    for name, files in checkpoints.items():
        try:
            readable[name] = _weights(files)
        except KlscaleError as error:
            problems[name] = error
    latest = dict(reversed(readable.items()))
    counts = Counter(_shapes(weights) for weights in latest.values())
    shapes = max(counts, key=counts.__getitem__, default=None)
    usual = next((name for name, weights in latest.items() if _shapes(weights) == shapes), "")
    for name, weights in readable.items():
        if _shapes(weights) != shapes:
            problems[name] = _other_shapes(name, weights, usual, readable[usual])
    return {name: weights for name, weights in readable.items() if name not in problems}, problems


def _weights(files: Sequence[Path]) -> _Weights:
    """The floating-point tensors of a checkpoint, in the order of its files and of the data in each."""
    found: _Weights = {}
    for path in files:
        for name, tensor in _header(path).items():
            if name in found:
                raise InputError(
                    f"{path}: {name} is also in {found[name].path}.",
                    "The files of a checkpoint share its tensors among them.",
                    "Give one model.safetensors, or its parts, but not both.",
                )
            found[name] = tensor
    if not found:
        where = ", ".join(map(str, files)) or "A checkpoint of no files"
        raise InputError(f"{where} holds no weights.", "There is no floating-point tensor.", "Check the download.")
    return found


def _header(path: Path) -> _Weights:
    """The floating-point tensors of one file. safetensors checks the header, and that the tensors cover the rest of the
    file without gaps or overlaps."""
    if path.suffix in _PICKLES:
        raise InputError(
            f"{path} is a pickle.",
            "Weights are read from safetensors only: a pickle can run any code.",
            "Convert it: load the model with transformers' from_pretrained and write it with save_pretrained.",
        )
    try:
        with path.open("rb") as file, safe_open(path, "numpy"):
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except OSError as error:
        raise _unreadable(path, error) from error
    except SafetensorError as error:
        raise KlscaleError(
            f"{path} is not a whole safetensors file.", f"{error}.", "Download or save it again."
        ) from error
    header.pop("__metadata__", None)
    unknown = [name for name, entry in header.items() if entry["dtype"] not in _NO_WEIGHTS | _FLOATS.keys()]
    if unknown:
        raise InputError(
            f"{path}: {unknown[0]} is of dtype {header[unknown[0]]['dtype']}.",
            f"Weights are read as {', '.join(_FLOATS)}.",
            "Save the model in one of these.",
        )
    tensors = {
        name: _Tensor(path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
        if entry["dtype"] in _FLOATS
    }
    return dict(sorted(tensors.items(), key=lambda item: item[1].offset))


def _unreadable(path: Path, error: OSError) -> KlscaleError:
    return KlscaleError(f"{path} cannot be read.", f"{error.strerror or error}.", "Check the path and the download.")


def _shapes(weights: _Weights) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((name, tensor.shape) for name, tensor in weights.items())


def _other_shapes(name: str, weights: _Weights, usual: str, expected: _Weights) -> KlscaleError:
    mine, theirs = ({key: f"is {tensor.shape}" for key, tensor in each.items()} for each in (weights, expected))
    tensor = min(key for key in mine | theirs if mine.get(key) != theirs.get(key))
    here, there = mine.get(tensor, "is missing"), theirs.get(tensor, "is missing")
    return KlscaleError(
        f"The weights of {name} have other shapes than those of {usual}: {tensor} {here}, there it {there}.",
        "Weights of two networks can be compared number by number only if they have the same shapes; even then two "
        "separately trained networks differ by permutations of their units, so that a distance between two runs is no "
        "distance between functions.",
        "Compare what the models do: `klscale compare`.",
    )


def _without_copies(checkpoints: Sequence[_Weights]) -> list[str]:
    """Names of the tensors, without tied weights that were saved twice: those that repeat another in every checkpoint.

    Only matrices are tied. Equal vectors are parameters of their own. In a GPT-NeoX block the output biases of
    attention and MLP are both added to the residual stream: they have the same gradient, and stay equal. A tensor that
    begins with one constant, as before training, is no sign of a tie either. The beginnings of the other tensors are
    compared first, in the last checkpoint, so that hardly more than copies is read whole.
    """
    if not checkpoints:
        return []
    names, last = list(checkpoints[0]), checkpoints[-1]
    groups = _alike([name for name in names if len(last[name].shape) > 1], lambda name: last[name].shape)
    beginnings = {name: last[name].stored(0, min(_BEGINNING, last[name].size)) for group in groups for name in group}
    telling = [name for name, values in beginnings.items() if (values != values[:1]).any()]
    groups = _alike(telling, lambda name: (last[name].shape, last[name].dtype, beginnings[name].tobytes()))
    for weights in reversed(checkpoints):
        contents = {name: weights[name].content() for group in groups for name in group}
        groups = [part for group in groups for part in _alike(group, contents.__getitem__)]
    copies = {name for group in groups for name in group[1:]}
    return [name for name in names if name not in copies]


def _alike(names: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Groups of two names or more that share a key."""
    groups: dict[Hashable, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _count(checkpoints: Sequence[_Weights], tensors: Iterable[str]) -> int:
    return sum(checkpoints[0][name].size for name in tensors)


# -------------------------------------------------------------------------------------------------------- the numbers


def _all_pairs(
    checkpoints: Sequence[_Weights], tensors: Sequence[str], lost: dict[int, KlscaleError], progress: Progress
) -> Floats:
    """D (T, T). Rows and columns of checkpoints that are `lost` on the way have no meaning."""
    T = len(checkpoints)
    gram, steps = np.zeros((max(T - 1, 0),) * 2), np.empty((max(T - 1, 0), CHUNK))
    for block in _blocks(checkpoints, tensors, lost, progress):
        step = np.subtract(block[1:], block[:-1], out=steps[:, : block.shape[1]])
        gram += step @ step.T
    distance, path = _block_sums(gram)
    near = path > DETOUR * np.sqrt(distance)
    near[list(lost)] = near[:, list(lost)] = False
    if near.any():
        pairs = np.argwhere(near)
        rows, places = np.unique(pairs, return_inverse=True)
        again = _direct([checkpoints[t] for t in rows], tensors, places.reshape(-1, 2), progress)
        distance[pairs[:, 0], pairs[:, 1]] = again
    return distance + distance.T


def _block_sums(gram: Floats) -> tuple[Floats, Floats]:
    """D(i, j) and the length of the path from i to j along the steps, for all i < j (T, T; 0 elsewhere), from the Gram
    matrix of the T - 1 steps. D(i, j) is the sum of block i..j-1.

    Each block is summed from its own entries, from the diagonal outward. Differences of cumulative sums would be
    shorter to write, but wrong where early steps are huge and late ones are tiny.
    """
    T = len(gram) + 1
    total, path = np.zeros((T, T)), np.zeros((T, T))
    for j in range(1, T):
        column = np.cumsum(gram[j - 1 :: -1, j - 1])[::-1]
        total[:j, j] = total[:j, j - 1] + 2 * column - gram[j - 1, j - 1]
        path[:j, j] = path[:j, j - 1] + math.sqrt(gram[j - 1, j - 1])
    return np.maximum(total, 0.0), path


def _direct(checkpoints: Sequence[_Weights], tensors: Sequence[str], pairs: Integers, progress: Progress) -> Floats:
    """D (P,) of these pairs of places (P, 2), by direct differences. Raises KlscaleError where a checkpoint is lost."""
    total, lost = np.zeros(len(pairs)), dict[int, KlscaleError]()
    for block in _blocks(checkpoints, tensors, lost, progress):
        if lost:
            break
        for p, (i, j) in enumerate(pairs):
            difference = block[i] - block[j]
            total[p] += difference @ difference
    if lost:
        raise next(iter(lost.values()))
    return total


def _blocks(
    checkpoints: Sequence[_Weights], tensors: Sequence[str], lost: dict[int, KlscaleError], progress: Progress
) -> Iterator[Floats]:
    """The parameters of T checkpoints, (T, up to CHUNK) at a time, in an array that is used again.

    A checkpoint that cannot be read further, or holds values that are not finite, is entered in `lost`. From then on
    its row holds another checkpoint's values: the steps across it still sum to the distances between the others.
    """
    if not checkpoints:
        return
    sizes = {name: checkpoints[0][name].size for name in tensors}
    progress.begin("comparing weights", len(checkpoints) * sum(sizes.values()) / 1e6, "million parameters")
    block = np.empty((len(checkpoints), CHUNK))
    for chunk in _chunks(sizes):
        filled = sum(stop - start for _, start, stop in chunk)
        for t, weights in enumerate(checkpoints):
            try:
                if t not in lost:
                    _fill(block[t], weights, chunk)
            except KlscaleError as error:
                lost[t] = error
        kept = [t for t in range(len(checkpoints)) if t not in lost]
        if not kept:
            return
        for t in lost:
            block[t] = block[max((k for k in kept if k < t), default=kept[0])]
        yield block[:, :filled]
        progress.advance(len(checkpoints) * filled / 1e6)


def _chunks(sizes: Mapping[str, int]) -> Iterator[list[tuple[str, int, int]]]:
    """All tensors in pieces (name, start, stop): lists with CHUNK elements in all, the last list with fewer."""
    chunk, room = list[tuple[str, int, int]](), CHUNK
    for name, size in sizes.items():
        start = 0
        while start < size:
            stop = min(size, start + room)
            chunk.append((name, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield chunk
                chunk, room = [], CHUNK
    if chunk:
        yield chunk


def _fill(row: Floats, weights: _Weights, chunk: Iterable[tuple[str, int, int]]) -> None:
    place = 0
    for name, start, stop in chunk:
        piece = row[place : place + stop - start]
        piece[:] = weights[name].values(start, stop)
        place += stop - start
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(piece.sum())
        if not finite:
            raise KlscaleError(
                f"{weights[name].path}: {name} holds values that are not finite.",
                "The run diverged, or the file is damaged.",
                "Leave this checkpoint out, or download it again.",
            )
