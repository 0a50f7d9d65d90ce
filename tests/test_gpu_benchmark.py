"""benchmarks/gpu.py on a CPU with tiny shapes: every part runs, and one that fails ends alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from conftest import PATIENCE_S, ROOT

pytestmark = pytest.mark.slow

BROKEN = """
import os, sys, time

sys.path.insert(0, "benchmarks")
import gpu


def hangs(bench):
    yield gpu.Row("hangs", "a number", 7, "s")
    time.sleep(600)


def raises(bench):
    raise ValueError("a | b")


def dies(bench):
    os._exit(3)


def skips(bench):
    raise gpu.SkippedError("nothing to run")
    yield


broken = {"hangs": (1, hangs), "raises": (99, raises), "dies": (99, dies), "skips": (99, skips)}
gpu.PARTS = broken | {name: (600, work) for name, (_, work) in gpu.PARTS.items() if name != "8B"}  # as 1B
gpu.LIMIT_S = 3600  # however slow the machine is
sys.argv = ["gpu.py", "--tiny"]
sys.exit(gpu.main())
"""


def test_every_part_runs_and_one_that_fails_ends_alone() -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1, done.stderr  # since parts have failed
    table, found = done.stdout.split("```json\n")
    kept = json.loads(found.removesuffix("```\n"))
    ends = {name: (part["end"], part["why"]) for name, part in kept["parts"].items()}
    assert ends.pop("hangs") == ("failed", "not done after 1 s")
    assert ends.pop("raises") == ("failed", "ValueError: a | b")
    assert ends.pop("dies") == ("failed", "its process ended with status 3")
    assert ends.pop("skips") == ("skipped", "nothing to run")
    assert [*ends] == ["check", "recovery", "tiles", "1B", "int8-kernel", "nf4-kernel"]
    for name, (end, why) in ends.items():
        assert end == "done" or (name.endswith("kernel") and why == "bitsandbytes is not installed"), (name, end, why)
    values = {(row["part"], row["what"], row["unit"]): row["value"] for row in kept["rows"]}
    assert values["hangs", "a number", "s"] == 7  # what was measured before the limit is kept
    checks = [row for row in kept["rows"] if row["passed"] is not None]
    assert {row["part"] for row in checks} == {"check", "recovery", "tiles"}
    assert all(row["passed"] for row in checks), checks
    of_the_limit = values["1B", "klscale", "texts/s"] / values["1B", "limit", "texts/s"]
    assert values["1B", "klscale", "of the limit"] == pytest.approx(of_the_limit)  # of one round each
    lines = table.splitlines()
    assert all(line.count("|") == 7 for line in lines if line.startswith("|"))
    assert sum(line.startswith("| check |") for line in lines) == sum(row["part"] == "check" for row in kept["rows"])
