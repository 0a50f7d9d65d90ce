"""Commands on a store of a thousand models, each in a process of its own: seconds, processor seconds, peak memory.

    python benchmarks/interactive.py        # 1,018 models on 10,000 texts; --size MODELS TEXTS; --quick: that it runs

Synthetic log-likelihoods of 20 families with 10 types, 5 sizes and seeds, imported from one Parquet file. Files come
from the page cache. The package is compiled first, as it is where it is installed: with PYTHONDONTWRITEBYTECODE each
command would compile it anew. Processor seconds count all threads; on a busy machine they are the steadier figure.
`again`: the same command a second time, where the store keeps what the first one found.
"""

from __future__ import annotations

import argparse
import compileall
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from maps import PUBLISHED, QUICK, synthetic

import klscale

ADDED = 5
TYPES = 10
SIZES = (70e6, 160e6, 410e6, 1e9, 2.8e9)


def write_files(directory: Path, K: int, N: int) -> list[str]:
    """`models.parquet` of K models and `new.parquet` of some more on the same texts, each with its attributes in a CSV
    file; the names of all models."""
    vectors, place = synthetic(K + ADDED, N), np.arange(K + ADDED)
    family = place % 20
    attributes = pd.DataFrame(
        {
            "model": vectors.names,
            "family": [f"family-{n}" for n in family],
            "type": [f"type-{n % TYPES}" for n in family],
            "parameters": np.array(SIZES)[place // 20 % len(SIZES)],
            "seed": place // 20 // len(SIZES),
        }
    )
    for name, rows in (("models", slice(K)), ("new", slice(K, None))):
        columns = dict(zip(vectors.names[rows], vectors.log_likelihood[rows], strict=True))
        pq.write_table(pa.table({"bytes": vectors.texts.bytes, **columns}), directory / f"{name}.parquet")
        attributes[rows].to_csv(directory / f"{name}.csv", index=False)
    return list(vectors.names)


def commands(directory: Path, names: list[str]) -> dict[str, list[str]]:
    """What to measure -> the arguments of klscale."""
    models, more = ([str(directory / f"{name}.parquet"), "--attributes", str(directory / f"{name}.csv")]
                    for name in ("models", "new"))  # fmt: skip
    a, b, *new = names[0], names[len(names) // 2], *names[-ADDED:]
    return {
        "help": ["--help"],
        "import": ["import", *models],
        "ls": ["ls"],
        "ls, again": ["ls"],
        "compare two": ["compare", a, b],
        "compare two, again": ["compare", a, b],
        "kl": ["kl"],
        "kl --out FILE.parquet": ["kl", "--out", str(directory / "kl.parquet")],
        "scale": ["scale"],
        "scale, again": ["scale"],
        "map": ["map"],
        "map, again": ["map"],
        "import of 5 more": ["import", *more, "--texts", "models"],
        "map --add of 5": ["map", *(argument for name in new for argument in ("--add", name))],
        "report": ["report", "--out", str(directory / "report.html")],
        "report, again": ["report", "--out", str(directory / "report.html")],
    }


def measured(arguments: list[str], store: Path, output: Path) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak GiB of a command."""
    environment = {**os.environ, "KLSCALE_STORE": str(store)}
    start = time.perf_counter()
    with output.open("w") as out:
        files = [(os.POSIX_SPAWN_DUP2, out.fileno(), descriptor) for descriptor in (1, 2)]
        command = [sys.executable, "-m", "klscale", *arguments]
        process = os.posix_spawn(sys.executable, command, environment, file_actions=files)
        _, status, used = os.wait4(process, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"klscale {' '.join(arguments)} failed:\n{output.read_text()}")
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 models on 300 texts alone")
    parser.add_argument("--size", nargs=2, type=int, metavar=("MODELS", "TEXTS"), default=PUBLISHED)
    parser.add_argument("--only", metavar="WHAT;...", help="measure these alone; the others run where they are needed")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make files, store and outputs here, and keep them")
    options = parser.parse_args()
    size = QUICK if options.quick else tuple(options.size)
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(1) as other:  # a process hands its peak memory on to those that it starts
            names = other.submit(write_files, directory, *size).result()
        only = options.only and options.only.split(";")
        compileall.compile_dir(Path(klscale.__file__).parent, quiet=1)
        print(f"{size[0]:,} models on {size[1]:,} texts\n\n| command | s | processor s | peak GiB |\n|---|---|---|---|")
        for what, arguments in commands(directory, names).items():
            if only and what not in only and not what.startswith("import"):
                continue
            output = directory / f"{what.replace(' ', '_').replace(',', '')}.txt"
            seconds, cpu, peak = measured(arguments, directory / "store", output)
            print(f"| `{what}` | {seconds:.2f} | {cpu:.2f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
