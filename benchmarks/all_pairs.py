"""KL with standard errors between all pairs of 1,018 models on 10,000 texts: seconds and peak memory.

    python benchmarks/all_pairs.py           by whole texts
    python benchmarks/all_pairs.py --spans   by spans of 32 bytes, once; needs 2 GB

Synthetic log-likelihoods with Laplace differences, some rows nearly equal; with and without a clip, and documents.
"""

from __future__ import annotations

import platform
import resource
import statistics
import sys
import time

import numpy as np

from klscale.science.kl import kl_matrix
from klscale.science.spans import Spans, span_kl_matrix

MODELS, TEXTS, ROUNDS = 1018, 10_000, 5


def by_spans(generator: np.random.Generator, size: np.ndarray) -> None:
    """The same from float32 span log-likelihoods, as a store keeps them."""
    counts = size // 32
    spans = Spans(np.full(counts.sum(), 32), np.concatenate([[0], np.cumsum(counts)]))
    values = np.empty((MODELS, len(spans.bytes)), dtype=np.float32)
    for row in values:
        row[:] = -30 + 4 * generator.laplace(size=len(row))
    values[1:20] = values[0] + 1e-3 * generator.normal(size=(19, values.shape[1]))
    before, start, work = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    span_kl_matrix(values, spans)
    seconds, work = time.perf_counter() - start, time.process_time() - work
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"{MODELS:,} models x {TEXTS:,} texts, {len(spans.bytes):,} spans: {seconds:.1f} s, {work:.1f} s of CPU, "
        f"at most {peak:.0f} MB above the {values.nbytes / 2**20:.0f} MB of the spans"
    )


def main() -> None:
    generator = np.random.default_rng(0)
    common = -900 + 300 * generator.normal(size=TEXTS)
    L = common + 40 * generator.laplace(size=(MODELS, TEXTS))
    L[1:20] = L[0] + 1e-3 * generator.normal(size=(19, TEXTS))
    size = generator.integers(257, 1025, size=TEXTS)
    documents = np.where(np.arange(TEXTS) < 1000, generator.integers(400, size=TEXTS), np.arange(TEXTS) + 1000)
    if "--spans" in sys.argv:
        by_spans(generator, size)
        return
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
