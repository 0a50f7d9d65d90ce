"""Squared distances between the weights of all pairs of 20 checkpoints of 70M parameters: time, memory, error.

    python benchmarks/weights.py                                # needs 6 GB of disk, and as much page cache

A random walk in the shape of Pythia 70M, float32, whose steps shrink from 1 to 1e-4 of the weights. Every way has its
own process; rounds are interleaved, and the first warms up. Memory: peak resident memory minus that before; ways that
map files or load them whole include the files. Error: largest relative error over five pairs, near and far along the
run, compared with float64 differences summed in extended precision.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scoring import forget_peak, memory, spread

from klscale.science.weights import CHUNK, distances_to, squared_distances

Matrix = np.ndarray
CHECKPOINTS, LAYERS, WIDTH, VOCABULARY = 20, 6, 512, 50304


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"embed_in": (VOCABULARY, WIDTH), "embed_out": (VOCABULARY, WIDTH)}
    for n in range(LAYERS):
        for name, out, into in (("qkv", 3, 1), ("dense", 1, 1), ("up", 4, 1), ("down", 1, 4)):
            found[f"{n}.{name}.weight"] = (out * WIDTH, into * WIDTH)
            found[f"{n}.{name}.bias"] = (out * WIDTH,)
        for norm in ("input", "post"):
            found |= {f"{n}.{norm}.{part}": (WIDTH,) for part in ("weight", "bias")}
    return found | {f"norm.{part}": (WIDTH,) for part in ("weight", "bias")}


def save_run(directory: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    tensors = {name: 0.02 * generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes().items()}
    paths = []
    for t, size in enumerate(0.02 * np.geomspace(1, 1e-4, CHECKPOINTS).astype(np.float32)):
        for values in tensors.values():
            values += size * generator.standard_normal(values.shape, dtype=np.float32)
        paths.append(directory / f"step{t}.safetensors")
        save_file(tensors, paths[-1])
    return paths


def streamed(paths: Sequence[Path]) -> Matrix:
    return squared_distances({path.stem: [path] for path in paths}).squared_distance


def one_at_a_time(paths: Sequence[Path]) -> Matrix:
    """The distances of a run that keeps only some of its files: one checkpoint after another."""
    found = np.zeros((len(paths),) * 2)
    for t, path in enumerate(paths):
        row = distances_to([path], {other.stem: [other] for other in paths[:t]})
        found[t, :t] = found[:t, t] = list(row.values())
    return found


def direct(paths: Sequence[Path]) -> Matrix:
    """One pass over mapped files, with the direct difference of every pair in every chunk."""
    maps = [np.memmap(path, "<f4", "r", offset=8 + int(np.fromfile(path, "<u8", 1)[0])) for path in paths]
    found = np.zeros((len(paths),) * 2)
    for start in range(0, len(maps[0]), CHUNK):
        block = np.stack([values[start : start + CHUNK] for values in maps]).astype(np.float64)
        for i, j in combinations(range(len(paths)), 2):
            difference = block[i] - block[j]
            found[i, j] += difference @ difference
    return found + found.T


def pair_by_pair(paths: Sequence[Path]) -> Matrix:
    found = np.zeros((len(paths),) * 2)
    for i, j in combinations(range(len(paths)), 2):
        a, b = load_file(paths[i]), load_file(paths[j])
        found[i, j] = found[j, i] = sum(((a[k].astype(np.float64) - b[k]) ** 2).sum() for k in a)
    return found


WAYS: dict[str, Callable[[Sequence[Path]], Matrix]] = {
    "`squared_distances`": streamed,
    "`distances_to`, one checkpoint after the other": one_at_a_time,
    "one pass, direct differences": direct,
    "pair by pair": pair_by_pair,
}


def reference(paths: Sequence[Path]) -> dict[tuple[int, int], float]:
    last = len(paths) - 1
    pairs = {(0, 1), (0, last), (last // 2, last // 2 + 1), (last // 2, last), (last - 1, last)}
    found = {}
    for i, j in pairs:
        a, b = load_file(paths[i]), load_file(paths[j])
        found[i, j] = float(sum(((a[k].astype(np.float64) - b[k]) ** 2).sum(dtype=np.longdouble) for k in a))
    return found


def work(pipe: multiprocessing.connection.Connection, way: str, paths: Sequence[Path]) -> None:
    forget_peak("cpu")
    before = memory("VmRSS")
    start = time.perf_counter()
    found = WAYS[way](paths)
    pipe.send((time.perf_counter() - start, memory("VmHWM") - before, found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds: int = parser.parse_args().rounds
    spawn = multiprocessing.get_context("spawn")
    times, peaks, errors = ({way: list[float]() for way in WAYS} for _ in range(3))
    with tempfile.TemporaryDirectory() as directory:
        paths = save_run(Path(directory))
        exact = reference(paths)
        for number in range(rounds + 1):
            for way in WAYS:
                near, far = spawn.Pipe()
                process = spawn.Process(target=work, args=(far, way, paths))
                process.start()
                seconds, gigabytes, found = near.recv()
                process.join()
                print(f"  round {number}: {way} {seconds:.1f} s", file=sys.stderr)
                if number:
                    times[way].append(seconds)
                    peaks[way].append(gigabytes)
                    errors[way].append(max(abs(found[pair] / value - 1) for pair, value in exact.items()))
    n_parameters = sum(int(np.prod(shape)) for shape in shapes().values())
    print(f"NumPy {np.__version__}; {CHECKPOINTS} checkpoints of {n_parameters / 1e6:.1f}M parameters, float32\n")
    print("| way | seconds | times `squared_distances` | peak memory, MB | largest relative error |")
    print("|---|---|---|---|---|")
    first = statistics.median(times[next(iter(WAYS))])
    for way in WAYS:
        print(
            f"| {way} | {spread(times[way], '.1f')} | {statistics.median(times[way]) / first:.1f} "
            f"| {1e3 * max(peaks[way]):.0f} | {max(errors[way]):.0e} |"
        )


if __name__ == "__main__":
    main()
