"""KL with standard errors between all pairs of 1,018 models on 10,000 texts: seconds and peak memory.

    python benchmarks/all_pairs.py

Synthetic log-likelihoods with Laplace differences, some rows nearly equal; with and without a clip, and documents.
"""

from __future__ import annotations

import platform
import resource
import statistics
import time

import numpy as np

from klscale.science.kl import kl_matrix

MODELS, TEXTS, ROUNDS = 1018, 10_000, 5


def main() -> None:
    generator = np.random.default_rng(0)
    common = -900 + 300 * generator.normal(size=TEXTS)
    L = common + 40 * generator.laplace(size=(MODELS, TEXTS))
    L[1:20] = L[0] + 1e-3 * generator.normal(size=(19, TEXTS))
    size = generator.integers(257, 1025, size=TEXTS)
    documents = np.where(np.arange(TEXTS) < 1000, generator.integers(400, size=TEXTS), np.arange(TEXTS) + 1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"NumPy {np.__version__}, {platform.machine()}, {MODELS:,} models x {TEXTS:,} texts")
    for name, options in {
        "no clip": {},
        "clip that moves values": {"clip": float(np.quantile(L, 0.02))},
        "texts that share documents": {"documents": documents},
    }.items():
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            kl_matrix(L, size, **options)
            seconds.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
        print(
            f"{name:28s} {statistics.median(seconds):.2f} s (of {ROUNDS}: {min(seconds):.2f} to {max(seconds):.2f}), "
            f"at most {peak:.0f} MB above the {L.nbytes / 2**20:.0f} MB of the matrix"
        )


if __name__ == "__main__":
    main()
