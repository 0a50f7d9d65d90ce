"""What `klscale score` shows: what would be done for each model, what was done, what failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from klscale.errors import KlscaleError
from klscale.show.columns import Column, records, table, within
from klscale.show.terminal import err, name_texts, out, plain, print_error

if TYPE_CHECKING:
    from klscale.inputs.texts import TextSet
    from klscale.store.store import Entry, Store
    from klscale.sweep.jobs import Outcome

FEW = 3
"""Errors of one kind that are printed in full."""
WORDS = {"present": "in the store already", "missing": "to be scored"}
"""What becomes of a model, for a person."""


MODEL = Column("", title="model", cell=lambda it: plain(it.ref), words=True)


def _status(outcome: Outcome) -> str:
    skipped = len(outcome.entry.metadata.get("skipped", ())) if outcome.entry else 0
    return WORDS.get(outcome.status, outcome.status) + (f", {skipped:,} texts skipped" if skipped else "")


_VECTOR = (
    Column("key", "Key of its vector."),
    Column("file", "The file that holds it.", value=lambda it: it.path),
    Column("skipped_texts", "Texts that were left out as too long.", "texts",
           lambda it: len(it.metadata.get("skipped", ()))),
    Column("lost_cuts", "Share of the cuts between spans that its tokenizer loses; null: it has no spans.", "share"),
)  # fmt: skip
OUTCOME = (
    Column("model", "The model; null: an entry of the suite that stands for none.", value=lambda it: it.ref),
    Column("status", "`scored`, `present` (nothing to do), `missing` (a dry run) or `failed`."),
    *within(_VECTOR, lambda it: it.entry),
    Column("seconds", "Time that scoring took; null: there is no vector.", "s",
           lambda it: None if it.entry is None else round(it.seconds, 3)),
    Column("download_bytes", "With --dry-run, what would be fetched; null: not known.", "bytes"),
    Column("error", "What, why and remedy, a line each; null: none."),
)  # fmt: skip
"""Of an `Outcome`."""


def outcome_records(outcomes: Sequence[Outcome], problems: Sequence[KlscaleError] = ()) -> list[dict[str, Any]]:
    """The JSON of each entry of a suite that stands for no model, then of each model."""
    of_none = {"ref": None, "status": "failed", "entry": None, "download_bytes": None}
    return records(OUTCOME, [*(SimpleNamespace(error=problem, **of_none) for problem in problems), *outcomes])


def size(count: int | None) -> str:
    """Bytes for a person."""
    if count is None:
        return "unknown"
    number, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.3g} {units[0]}"


def print_plan(outcomes: Sequence[Outcome], n_problems: int, texts: TextSet) -> None:
    """What a dry run found: what would be done for each model, and what that takes."""
    out.print(name_texts(texts))
    columns = (
        MODEL,
        Column("", title=" ", cell=lambda it: WORDS.get(it.status, it.status), words=True),
        Column("", title="to download", cell=lambda it: "" if it.status == "failed" else size(it.download_bytes)),
    )
    out.print(table(columns, outcomes))
    print_failures(outcomes)
    missing = [outcome for outcome in outcomes if outcome.status == "missing"]
    there = sum(outcome.status == "present" for outcome in outcomes)
    failed = f"{len(outcomes) - len(missing) - there:,} failed" + entries_failed(n_problems)
    out.print(f"\n{len(missing):,} to be scored, {there:,} in the store already, {failed}")
    known = [outcome.download_bytes for outcome in missing if outcome.download_bytes is not None]
    unknown = len(missing) - len(known)
    more = f", and {unknown:,} of unknown size" if unknown and known else ""
    out.print(f"to download: {size(sum(known) if known or not missing else None)}{more}")
    megabytes, times = float(texts.bytes.sum()) / 1e6, len(missing)
    out.print(f"to score: {len(texts) * times:,} texts, {megabytes * times:,.3g} MB")


def entries_failed(count: int) -> str:
    return f", and {count:,} {'entry' if count == 1 else 'entries'} of the suite" if count else ""


def print_outcomes(outcomes: Sequence[Outcome], n_problems: int, texts: TextSet, store: Store) -> None:
    out.print(name_texts(texts))
    columns = (
        MODEL,
        Column("", title=" ", cell=_status, words=True),
        Column("", title="seconds", cell=lambda it: f"{it.seconds:.1f}" if it.status == "scored" else ""),
    )
    if done := [outcome for outcome in outcomes if outcome.error is None]:
        out.print(table(columns, done))
    print_failures(outcomes)
    print_lost_cuts(lost_cuts(outcome.entry for outcome in done if outcome.entry is not None))
    failed = sum(outcome.error is not None for outcome in outcomes)
    if n_problems or 0 < failed < len(outcomes):
        out.print(f"{failed:,} of {len(outcomes):,} models failed{entries_failed(n_problems)}")
    if any(outcome.status == "scored" for outcome in outcomes):
        out.print(f"Kept in {plain(store.location)}. Next: klscale kl, klscale compare, klscale scale.", style="dim")


def lost_cuts(entries: Iterable[Entry]) -> dict[str, float]:
    """The share of the cuts that the tokenizer of each model loses; without vectors that have no spans."""
    return {str(entry.ref): entry.lost_cuts for entry in entries if entry.lost_cuts is not None}


def print_lost_cuts(lost: Mapping[str, float]) -> None:
    """In one line; nothing where none is lost."""
    if not any(lost.values()):
        return
    most = max(lost, key=lambda name: lost[name])
    over = f"{min(lost.values()):.1%} to {lost[most]:.1%} over {len(lost):,} models (most: {plain(most)})"
    out.print(
        f"Cuts between spans lost to tokens that straddle them: {over if len(lost) > 1 else f'{lost[most]:.1%}'}."
    )


def print_failures(outcomes: Sequence[Outcome]) -> None:
    """Each error; of many that say the same of other models, the first few, then the names."""
    alike: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            names = alike.setdefault((outcome.error.why, outcome.error.remedy), [])
            names.append(str(outcome.ref))
            if len(names) <= FEW:
                print_error(outcome.error)
    for names in alike.values():
        if more := names[FEW:]:
            err.print(f"... and likewise {len(more):,} more: {plain(', '.join(more))}", style="red")
