"""Maps of models: seconds and peak memory of each step, at the size of the published map and at 20,000 models.

    python benchmarks/maps.py              # --large: 20,000 models too; --quick: tests only that it runs

Synthetic log-likelihoods: families of models, a few directions along which members differ, and noise. The placed new
models are of the same kind. Every size has its own process; peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from klscale.inputs.texts import TextSet
from klscale.studies import maps
from klscale.vectors.vectors import Vectors

PUBLISHED, LARGE, QUICK = (1018, 10_000), (20_000, 10_000), (60, 300)
ADDED = 5
ALL_PAIRS = 2000
"""Largest number of models whose KL of all pairs is computed and clustered."""


def synthetic(K: int, N: int, n_families: int = 20, n_directions: int = 30) -> Vectors:
    """Log-likelihoods (K, N) in nats, made in blocks, so that no second matrix of that size exists."""
    generator = np.random.default_rng(0)
    common = -900 + 300 * generator.normal(size=N)
    centres = 40 * generator.normal(size=(n_families, N))
    directions = generator.normal(size=(n_directions, N)) * np.geomspace(20, 2, n_directions)[:, None]
    L = np.empty((K, N))
    for start in range(0, K, 500):
        block = L[start : start + 500]
        block[:] = common + centres[np.arange(start, start + len(block)) % n_families]
        block += generator.normal(size=(len(block), n_directions)) @ directions
        block += 5 * generator.normal(size=block.shape)
        np.minimum(block, -1.0, out=block)  # log-likelihoods are at most 0
    names = [f"family-{k % n_families}/m{k}" for k in range(K)]
    texts = TextSet("benchmark", generator.integers(257, 1025, size=N), id="benchmark")
    return Vectors.from_arrays(L, names, texts)


def measure(K: int, N: int) -> None:
    """One row for each step."""
    whole = synthetic(K + ADDED, N)
    old, new = (
        Vectors(whole.log_likelihood[rows], whole.models[rows], whole.attributes[rows], whole.texts)  # no copies
        for rows in (slice(K), slice(K, None))
    )

    def step(name: str, compute: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = compute(*arguments)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {K:,} x {N:,} | {name} | {seconds:,.2f} | {peak:.2f} |", flush=True)
        return result

    step("the log-likelihoods (input)", lambda: None)
    points = step("coordinates", old.coordinates)
    found = step("3 principal components", maps._pca, points, 3)
    near = step("nearest neighbours, exact", maps._Neighbours, points, maps.perplexity(K))
    del points
    plane = step("t-SNE, 2-D", maps._tsne, near, found.points[:, :2])
    space = step("t-SNE, 3-D", maps._raised, near, plane, found.points[:, 2])
    kept = maps.ModelMap(
        models=old.names,
        pca=found.points,
        share=found.share,
        tsne=plane,
        tsne3=space,
        perplexity=near.perplexity,
        typical=float(np.median(near.distances[:, 0] ** 2)),
        n_texts=N,
        added=np.zeros(K, dtype=bool),
    )
    step(f"{ADDED} new models placed", maps.place, kept, old, new)
    if K <= ALL_PAIRS:
        matrix = step("KL of all pairs", old.kl)
        step("clusters", maps.cluster, matrix)
        step("10 nearest of each", maps.nearest, matrix, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="20,000 models on 10,000 texts too")
    parser.add_argument("--quick", action="store_true", help="60 models on 300 texts alone")
    parser.add_argument("--size", nargs=2, type=int, metavar=("MODELS", "TEXTS"), help="this size alone")
    options = parser.parse_args()
    if options.size:
        measure(*options.size)
        return
    threads = os.environ.get("OMP_NUM_THREADS", f"{os.cpu_count()} (all)")
    print(f"NumPy {np.__version__}, {platform.machine()}, threads: {threads}\n")
    print("| models x texts | step | seconds | peak memory of the process, GiB |\n|---|---|---|---|", flush=True)
    for size in [QUICK] if options.quick else [PUBLISHED, LARGE] if options.large else [PUBLISHED]:
        subprocess.run([sys.executable, __file__, "--size", *map(str, size)], check=True)


if __name__ == "__main__":
    main()
