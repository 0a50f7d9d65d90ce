"""Weak scaling of scoring on a Ray cluster that is simulated on one machine: as many models more as workers.

    python benchmarks/cluster.py            # 1 to 32 workers, 4 models each; --quick: that it runs

The models are mocks that sleep: they take LOAD_S to open, and read SPEED tokens a second. So workers need next to no
processor while they score, and what one of them cannot do faster than alone is the part of klscale and Ray. Ray is told
that this machine has as many cores as there are workers. `busy` is the share of the real cores that was used.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import ray

import klscale
from klscale.inputs.texts import TextSet
from klscale.progress import Progress
from klscale.studies.verbs.options import Options

LOAD_S = 2.0
SPEED = 4000
N_TEXTS, BYTES = 100, 100
MODELS = 4
GB = 2**30


class Watch(Progress):
    """When the first text was scored."""

    first: float | None = None

    def now(self, what: str) -> None:
        if self.first is None and " 0 texts" not in what and "texts" in what:
            self.first = time.monotonic()


def measure(workers: int, each: int, texts: TextSet) -> tuple[float, float, float]:
    """Seconds of a sweep over so many models each, seconds until the first text, and the busy share of the cores."""
    ray.init(
        "local", num_cpus=workers, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        _memory=workers * GB, object_store_memory=2**27,
    )  # fmt: skip
    watch, refs = Watch(), [f"mock://{n}?load={LOAD_S}&speed={SPEED}" for n in range(workers * each)]
    with tempfile.TemporaryDirectory() as place:
        options = Options(store=Path(place) / "store", sampled_tokens=0, batch_tokens=1000, progress=watch)
        psutil.cpu_percent()
        begun = time.monotonic()
        found = klscale.score(refs, texts, ray="local", options=options)
        seconds, busy = time.monotonic() - begun, psutil.cpu_percent() / 100
        assert not found.failed
    ray.shutdown()
    return seconds, (watch.first or begun) - begun, busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one and two workers, one model each")
    quick = parser.parse_args().quick
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    generator = np.random.default_rng(0)
    texts = TextSet.from_texts("random", ["".join(generator.choice(list("abc de"), BYTES)) for _ in range(N_TEXTS)])
    alone = None
    print("| workers | models | seconds | to the first text | efficiency | busy |\n|---|---|---|---|---|---|")
    for workers in (1, 2) if quick else (1, 2, 4, 8, 16, 32):
        each = 1 if quick else MODELS
        seconds, first, busy = measure(workers, each, texts)
        alone = alone or seconds
        print(
            f"| {workers} | {workers * each} | {seconds:.1f} | {first:.1f} | {alone / seconds:.0%} | {busy:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
