"""Kills, fuzzed inputs, damaged files and hostile stores: how many of each, and what they brought about.

    python benchmarks/attack.py                     # the table of docs/security.md: an hour or two on 2 cores
    python benchmarks/attack.py --part 0.02         # the same attacks, fewer of each
    python benchmarks/attack.py --forever --seed 7  # until interrupted (`make fuzz`)

A kill stops a command (`score`, `import`, `map`, `texts`, `rm`, `check --seal`, `kl`) at one of its file events, by
SIGKILL, SIGTERM or a full disk. The same command then runs once more, and all must be as if it had never been stopped.
The attacks are in `tests/attacks.py` and `tests/fuzzed.py`; a failure is printed with what repeats it.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import attacks
import fuzzed

ATTACKS = {
    "kills": (attacks.kills, 1_000),
    "fuzzed inputs": (fuzzed.fuzz, 10_000),
    "damaged files": (attacks.damages, 2_000),
    "hostile stores": (attacks.hostile_stores, 50),
}
COUNTED = ("traceback", "hang", "writes outside", "silent changes", "vectors lost")


def complain(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def attacked(seed: int, part: float, only: list[str]) -> dict[str, attacks.Tally]:
    """What each attack found."""
    found = {}
    for name in only or ATTACKS:
        attack, budget = ATTACKS[name]
        with tempfile.TemporaryDirectory() as place:
            found[name] = attack(Path(place), max(1, round(budget * part)), seed, said=complain)
    return found


def table(found: dict[str, attacks.Tally]) -> str:
    """The table of docs/security.md, as Markdown."""
    head = ["attack", "tries", "tracebacks", "hangs above 20 s", "writes outside", "silent changes", "vectors lost"]
    rows = [[name, f"{tally.tries:,}", *(str(tally.count(kind)) for kind in COUNTED)] for name, tally in found.items()]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=float, default=1.0, help="share of the full number of tries")
    parser.add_argument("--only", action="append", choices=[*ATTACKS], default=[])
    parser.add_argument("--forever", action="store_true", help="until interrupted, or something is found")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # notes on files that are left out, thousands of them
    attacks.load()
    for seed in itertools.count(arguments.seed):
        found = attacked(seed, min(arguments.part, 0.01) if arguments.forever else arguments.part, arguments.only)
        print(table(found), flush=True)
        if any(tally.found for tally in found.values()):
            sys.exit(1)
        if not arguments.forever:
            return


if __name__ == "__main__":
    main()
