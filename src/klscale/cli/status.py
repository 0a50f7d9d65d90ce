"""What a command exits with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from klscale.errors import KlscaleError

if TYPE_CHECKING:
    from klscale.studies.gate import Verdict
    from klscale.sweep.jobs import Outcome


def failure_status(outcomes: Sequence[Outcome], problems: Sequence[KlscaleError] = ()) -> int:
    """0; 2 where nothing but bad arguments came; 1 where some models failed, or entries of a suite."""
    errors = [*problems, *(outcome.error for outcome in outcomes if outcome.error)]
    of_all = len(errors) == len(problems) + len(outcomes)
    if errors and of_all and all(error.exit_status == 2 for error in errors):
        return 2
    return 1 if errors else 0


def gate_status(verdicts: Iterable[Verdict], failed: int = 0) -> int:
    """3 where a KL is not within the limit, whatever else `failed`; that status, or 1 where a KL cannot be told; 4
    where one is not decided; 0 where all are within the limit."""
    found = list(verdicts)
    if any(one.within is False for one in found):
        return 3
    if failed or not all(one.measured for one in found):
        return failed or 1
    return 4 if any(one.within is None for one in found) else 0
