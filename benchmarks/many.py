"""Commands on a store of very many models, each in a process of its own: seconds and peak memory.

    python benchmarks/many.py               # 1,000 and 10,000 models on 2,000 texts
    python benchmarks/many.py --models 100000 --keep DIR        # --quick: tests only that it runs

Synthetic log-likelihoods of families in five sizes, with seeds; every fourth model is fine-tuned from the one before.
They are written as compact files, as `klscale compact` writes them. Files come from the page cache.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from interactive import SIZES, TYPES, measured

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.science.arrays import Floats
from klscale.store import compact, vector_records
from klscale.store.store import Store
from klscale.store.vector_records import Packed
from klscale.vectors.scores import Scores
from klscale.vectors.vectors import IMPORTED

TEXTS, QUICK = 2_000, (300, 100)
DIRECTIONS = 30
FAMILY = 250
"""Models of a family."""
BLOCK = 500
TEXT_SET = "b" * 12


def name_of(k: int, n_families: int) -> str:
    return f"family-{k // 4 % n_families}/m{k}"


def log_likelihoods(K: int, N: int, n_families: int) -> Iterator[tuple[int, Floats]]:
    """Blocks of rows in nats, with the number of the first."""
    generator = np.random.default_rng(0)
    common = -900 + 300 * generator.normal(size=N)
    centres = 40 * generator.normal(size=(n_families, N))
    directions = generator.normal(size=(DIRECTIONS, N)) * np.geomspace(20, 2, DIRECTIONS)[:, None]
    for start in range(0, K, BLOCK):
        k = np.arange(start, min(start + BLOCK, K))
        rows = common + centres[k // 4 % n_families]
        rows += generator.normal(size=(len(k), DIRECTIONS)) @ directions
        children = np.flatnonzero(k % 4 == 3)
        rows[children] = rows[children - 1]
        rows += np.where(k % 4 == 3, 3.0, 5.0)[:, None] * generator.normal(size=rows.shape)
        yield start, np.minimum(rows, -1.0)


def vectors(texts: TextSet, K: int) -> Iterator[Packed]:
    """The same as a compact file holds them."""
    n_families = max(20, K // FAMILY)
    for start, rows in log_likelihoods(K, len(texts), n_families):
        for k, row in enumerate(rows, start):
            name, family = name_of(k, n_families), k // 4 % n_families
            known = {"family": f"family-{family}", "type": f"type-{family % TYPES}"}
            within = k // 4 // n_families
            known |= {"parameters": SIZES[within % len(SIZES)], "seed": within // len(SIZES) * 4 + k % 4}
            if k % 4 == 3:
                known["parent"] = name_of(k - 1, n_families)
            scores = Scores(np.arange(len(row)), row, np.zeros(len(row), dtype=np.int64))
            key = hashlib.sha256(name.encode()).hexdigest()[:12]
            about = {
                "ref": name, "key": key, "attributes": known, "convention": IMPORTED, "source": "synthetic",
                "date": "2026-01-01T00:00:00", "n_layers": 0, "parts": [], "checksum": scores.checksum,
                "text_set": texts.id,
            }  # fmt: skip
            yield Packed(f"{ModelRef.parse(name).slug}-{key}.parquet", vector_records.scores_to_table(scores), about)


def write_store(directory: Path, K: int, N: int) -> None:
    """A store of K models on N texts."""
    store = Store(directory)
    sizes = np.random.default_rng(1).integers(257, 1025, size=N)
    texts = TextSet("many", sizes, id=TEXT_SET)
    store.put_texts(texts)
    compact.put(store, texts.id, vectors(texts, K))


def commands(directory: Path, K: int) -> dict[str, list[str]]:
    """What to measure -> the arguments of klscale."""
    n_families = max(20, K // FAMILY)
    a, b = name_of(0, n_families), name_of(K // 2, n_families)
    page, table = str(directory / "report.html"), str(directory / "map.parquet")
    return {
        "ls": ["ls"],
        "ls, again": ["ls"],
        "ls PATTERN": ["ls", b],
        "kl --of A": ["kl", "--of", a],
        "scale": ["scale"],
        "scale, again": ["scale"],
        "compare two": ["compare", a, b],
        "map": ["map"],
        "map, again": ["map"],
        "map --out FILE.parquet": ["map", "--out", table],
        "report": ["report", "--out", page],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 models on 100 texts alone")
    parser.add_argument("--models", nargs="+", type=int, default=[1_000, 10_000])
    parser.add_argument("--only", metavar="WHAT;...", help="measure these alone")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make stores and outputs here, and keep them")
    options = parser.parse_args()
    sizes = [QUICK] if options.quick else [(K, TEXTS) for K in options.models]
    only = options.only and options.only.split(";")
    print("| models x texts | command | s | processor s | peak GiB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for K, N in sizes:
            directory = (options.keep or Path(temporary)) / str(K)
            store = directory / "store"
            if not store.exists():
                with ProcessPoolExecutor(1) as other:  # a process hands its peak memory on to those that it starts
                    other.submit(write_store, store, K, N).result()
            for what, arguments in commands(directory, K).items():
                if only and what not in only:
                    continue
                output = directory / f"{what.replace(' ', '_').replace(',', '')}.txt"
                seconds, cpu, peak = measured(arguments, store, output)
                print(f"| {K:,} x {N:,} | `{what}` | {seconds:.2f} | {cpu:.2f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
