"""How often the printed 95 % intervals of klscale hold the true value, in simulations.

    python benchmarks/coverage.py          # --quick: tests only that it runs

The simulations are those of the tests (`tests/simulated.py`); the tests run a small part of them. Texts are drawn from
a population where every true value is known. A scale for each text multiplies all differences between models, so that
they are Gaussian, Laplace, or of kurtosis 10. Where texts share documents, each document has five.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from simulated import QUICK, SLOW, TAILS, Sample, coverage, of_placing, of_seeds

SIZES = (100, 500, 2000)
MANY = partial(of_placing, K=97)
"""Number of models, as `klscale demo` makes; for more than 100 texts."""


def percent(share: float) -> str:
    return f"{100 * share:.0f}"


def print_table(shared: bool, rounds: int) -> None:
    print(f"\n## {'Five texts a document' if shared else 'Independent texts'}\n")
    print(f"| | {' | '.join(f'{tails}, N = {n:,}' for tails in TAILS for n in SIZES)} |\n{'|---' * 10}|")

    for simulate in (*QUICK, MANY, *SLOW):
        held: dict[str, list[str]] = {}
        for tails in TAILS:
            for n in SIZES:
                if simulate is MANY and n <= 100:
                    continue
                found = coverage(
                    lambda generator, simulate=simulate, n=n, tails=tails: simulate(
                        Sample(generator, n, tails, shared)
                    ),
                    rounds if simulate in QUICK else rounds // 5,
                )
                for what, share in found.items():
                    held.setdefault(what, []).append(percent(share))
        for what, cells in held.items():
            if simulate is MANY:
                cells = [cell for k in range(0, len(cells), 2) for cell in ("", *cells[k : k + 2])]
            print(f"| {what} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000, help="simulations a cell; a fifth of it for bootstraps")
    parser.add_argument("--quick", action="store_true", help="5 simulations a cell")
    options = parser.parse_args()
    rounds = 5 if options.quick else options.rounds
    print(f"NumPy {np.__version__}; {rounds:,} simulations a cell, {max(1, rounds // 5):,} of what is slow.")
    print("\n## Over seeds\n\n| seeds | c_q | c_w | alpha |\n|---|---|---|---|")
    for S in (2, 3, 5, 10):
        found = coverage(lambda generator, S=S: of_seeds(generator, S), 5 * rounds)
        print(f"| {S} | {' | '.join(map(percent, found.values()))} |", flush=True)
    for shared in (False, True):
        print_table(shared, rounds)


if __name__ == "__main__":
    main()
