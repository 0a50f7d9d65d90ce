"""Weak scaling of scoring on a Ray cluster that is simulated on one machine: as many models more as workers.

    python benchmarks/cluster.py            # 1 to 32 workers, 4 models each; --most N; --quick: that it runs

The models are mocks that sleep: they take LOAD_S to open, and read SPEED tokens a second. So workers need next to no
processor while they score, and what one of them cannot do faster than alone is the part of klscale and Ray. Ray is told
that this machine has as many cores as there are workers. Processor seconds are those of the command itself.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
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
    """Of a sweep over so many models each, without the start of Ray: seconds, seconds until the first text, and
    processor seconds of this process."""
    ray.init(
        "local", num_cpus=workers, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        _memory=workers * GB, object_store_memory=2**27,
    )  # fmt: skip
    watch, refs = Watch(), [f"mock://{n}?load={LOAD_S}&speed={SPEED}" for n in range(workers * each)]
    with tempfile.TemporaryDirectory() as place:
        options = Options(store=Path(place) / "store", sampled_tokens=0, batch_tokens=1000, progress=watch)
        begun, mine = time.monotonic(), time.process_time()
        found = klscale.score(refs, texts, ray="local", options=options)
        seconds, mine = time.monotonic() - begun, time.process_time() - mine
        assert not found.failed
    ray.shutdown()
    return seconds, (watch.first or begun) - begun, mine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one and two workers, one model each")
    parser.add_argument("--most", type=int, default=32, help="the largest number of workers")
    given = parser.parse_args()
    most, each = (2, 1) if given.quick else (given.most, MODELS)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    generator = np.random.default_rng(0)
    texts = TextSet.from_texts("random", ["".join(generator.choice(list("abc de"), BYTES)) for _ in range(N_TEXTS)])
    alone = None
    print("| workers | models | seconds | to the first text | efficiency | processor seconds |")
    print("|---|---|---|---|---|---|")
    workers = 1
    while workers <= most:
        seconds, first, mine = measure(workers, each, texts)
        alone = alone or seconds
        print(
            f"| {workers} | {workers * each} | {seconds:.1f} | {first:.1f} | {alone / seconds:.0%} | {mine:.2f} |",
            flush=True,
        )
        workers *= 2


if __name__ == "__main__":
    main()
