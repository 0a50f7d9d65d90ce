"""What `klscale drift --alarm` shows: each later run of a server, and whether it has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from klscale.show.cautions import Around, Measured, print_footnotes
from klscale.show.columns import HEAD, Column, estimate, record, table, within
from klscale.show.pairs import KL_COLUMNS, print_estimators
from klscale.show.terminal import describe_texts, out, plain, say
from klscale.studies.alarm import AlarmLook, DriftAlarm
from klscale.studies.verbs.drift import ServerAlarm


@dataclass(frozen=True)
class _Look:
    """A look, with what cautions need of its KL."""

    it: AlarmLook
    measured: Measured


@dataclass(frozen=True)
class _Alarm:
    it: DriftAlarm
    looks: list[_Look]


LOOK = (
    Column("look", "Number of the look, from 1.", value=lambda it: it.it.number, title="look"),
    Column("model", "The run.", value=lambda it: it.it.model, title="run", words=True, importance=2),
    Column("date", "When it was scored.", value=lambda it: it.it.date, title="scored",
           cell=lambda it: it.it.date[:16], words=True, importance=0),
    *within(KL_COLUMNS, lambda it: it.measured),
    estimate("farther", "How much farther from the reference than the first run: mean over texts of the change of "
             "|difference|.", "nats/text", lambda it: it.it.farther, title="farther ± SE, nats/text"),
    Column("p_value", "Probability of such a look without a change, adjusted for all looks.", "probability",
           lambda it: it.it.p_value, "p-value", importance=2),
    Column("alarm", "Whether that is at most the level.", value=lambda it: it.it.alarm, title="alarm",
           cell=lambda it: "yes" if it.it.alarm else "", words=True, importance=2),
)  # fmt: skip
ALARM = (
    Column("reference", "The model that all runs are compared with.", value=lambda it: it.it.reference),
    Column("first", "The first run: what no change looks like.", value=lambda it: it.it.first),
    *within(HEAD, lambda it: it.it),
    Column("level", "Largest chance of any alarm without a change.", "probability", lambda it: it.it.level),
    Column("first_alarm", "The first run with an alarm; null: none.", value=lambda it: it.it.first_alarm),
    Column("looks", "Each later run, in the order of dates.", within=LOOK, many=True),
)


def _row(found: ServerAlarm) -> _Alarm:
    around = Around(found.vectors)
    return _Alarm(
        found.found,
        [_Look(look, around.pair(found.found.reference, look.model, look.kl)) for look in found.found.looks],
    )


def alarm_record(found: ServerAlarm) -> dict[str, Any]:
    """The JSON of the looks at a server."""
    return record(ALARM, _row(found))


def print_alarm(found: ServerAlarm) -> None:
    """Each look, and whether the server has changed."""
    row = _row(found)
    it, shown = row.it, [look.measured for look in row.looks]
    out.print(describe_texts(it.texts))
    say(f"\nReference: {plain(it.reference)}. First run: {plain(it.first)}.")
    out.print(table(LOOK, row.looks, "\nLater runs"))
    print_estimators(shown)
    say("farther: from the reference than the first run was. p-values are adjusted for all looks together.", "dim")
    print_footnotes(it.texts, shown)
    out.print()
    if it.first_alarm is None:
        say(f"No alarm in {len(it.looks):,} looks.")
    else:
        say(f"Alarm: {plain(it.first_alarm)} is not what the first run was.", "bold red")
    say(f"Without a change the chance of any alarm, at any number of looks, is at most {100 * it.level:.4g} %.")
