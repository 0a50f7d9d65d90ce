"""Every key of JSON and files, with its unit and meaning. `python -m klscale.show.keys` prints `docs/keys.md`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from klscale.show import (
    alarm,
    calibration,
    card_checks,
    cards,
    changes,
    compare,
    data_sets,
    doctor,
    drift,
    layers,
    maps,
    noise,
    pairs,
    placing,
    pmi,
    precision,
    predicting,
    reports,
    scale,
    scoring,
    sensitivity,
    series,
    stored_logits,
    stores,
    tails,
    text_sets,
    texts,
    trajectories,
)
from klscale.show.cautions import CAUTIONS
from klscale.show.columns import ESTIMATE, Column

KL_RECORD = pairs.KL_COLUMNS
RECORDS: dict[str, tuple[Column, ...]] = {
    "klscale kl": pairs.PAIR,
    "klscale compare": compare.COMPARED,
    "klscale compare --precision 10%": (*compare.COMPARED, *precision.PRECISION),
    "klscale kl --pmi": pmi.PMI,
    "klscale scale": scale.SCALE,
    "klscale scale --published": scale.PUBLISHED_SCALE,
    "klscale layers": layers.LAYER,
    "klscale sensitivity": sensitivity.COSTS,
    "klscale card": cards.CARD,
    "klscale check-card": card_checks.CHECKS,
    "klscale changes": changes.CHANGES,
    "klscale kld": stored_logits.STORED_KL,
    "klscale drift": drift.DRIFT,
    "klscale drift --alarm 5%": alarm.ALARM,
    "klscale map": maps.MAP,
    "klscale map --pmi": pmi.PMI_MAP,
    "klscale place": placing.PLACEMENT,
    "klscale predict": predicting.PREDICTED,
    "klscale trajectory": trajectories.TRAJECTORIES,
    "klscale trajectory --by ATTRIBUTE": series.SERIES,
    "klscale validate": (
        Column("texts", "How far KL depends on the texts.", within=text_sets.SENSITIVITY),
        Column("tails", "What the clip and the tails do to the numbers.", within=tails.TAILS),
    ),
    "klscale validate REF REF": (
        Column("texts", "How far KL depends on the texts.", within=text_sets.SENSITIVITY),
        Column("tails", "What the KL is made of.", within=tails.PAIR_TAILS),
    ),
    "klscale validate --texts NAME --texts NAME": text_sets.TWO_SETS,
    "klscale validate --exact": calibration.CALIBRATIONS,
    "klscale validate --noise": noise.NOISE_STUDIES,
    "klscale score": scoring.OUTCOME,
    "klscale report": reports.REPORT,
    "klscale import": stores.IMPORTED,
    "klscale export": stores.EXPORTED,
    "klscale export --as dataset": data_sets.PART,
    "klscale ls": stores.LISTED,
    "klscale rm": stores.REMOVED,
    "klscale check": stores.CHECKED,
    "klscale compact": stores.COMPACTED,
    "klscale texts list": texts.TEXT_SETS,
    "klscale texts info": texts.KNOWN_TEXTS,
    "klscale texts build": texts.BUILT,
    "klscale texts draw": texts.DRAWN,
    "klscale texts clip": texts.CLIPPED,
    "klscale doctor": doctor.FINDING,
}
"""The columns of what each command prints with --json: of the object, or of each object of the list."""

INTRODUCTION = """# Keys

What `--json` prints, and the columns of the files that `--out` writes, by command. One quantity has one key everywhere.
This list is made from the declarations of the columns: `python -m klscale.show.keys > docs/keys.md`.

- `x[].y` is key `y` of each record of the list `x`; `x.*.y` of each record of `x` by name.
- A record of kind *estimate* or *KL* has the keys of the first two tables.
- What a command with more words shares with the command before it is listed there alone. `klscale demo` prints the keys
  of `klscale scale`.
- `null` is what is not known, or does not exist.
- In a file a nested record is spread: `kl_from_first.standard_error` is the column `kl_from_first_standard_error`, and
  `kl_from_first.kl` is `kl_from_first`. Lists are joined by a space; units are those of this list.
"""


def lines() -> Iterator[str]:
    """The document, line by line."""
    yield from INTRODUCTION.splitlines()
    yield from _table("Estimate", ESTIMATE)
    yield from _table("KL", KL_RECORD)
    yield from ("", "## Cautions", "", "| key | mark | meaning |", "|---|---|---|")
    yield from (f"| `{caution.key}` | `{caution.mark}` | {caution.footnote} |" for caution in CAUTIONS)
    for command, columns in RECORDS.items():
        shorter = [other for other in RECORDS if command.startswith(f"{other} ")]
        known = next((other for other in shorter if {*RECORDS[other]} & {*columns}), None)
        if known is None:
            yield from _table(f"`{command}`", columns)
        else:
            yield from _table(f"`{command}`", [column for column in columns if column not in RECORDS[known]])


def _table(title: str, columns: Sequence[Column]) -> Iterator[str]:
    """A record with all that is in it; a part that an earlier key has too is named alone."""
    yield from ("", f"## {title}", "", "| key | unit | meaning |", "|---|---|---|")
    first: dict[tuple[Column, ...], str] = {}
    inside: tuple[str, ...] = ()
    for path, column in paths(columns):
        if inside and path.startswith(inside):
            continue
        same = ""
        if column.within and not _kind(column):
            if column.within in first:
                inside += tuple(f"{path}{end}" for end in (".", "[]"))
                same = f" Keys as in `{first[column.within]}`."
            first.setdefault(column.within, path)
        yield f"| `{path}` | {column.unit} | {column.meaning}{same}{_kind(column)} |"


def _kind(column: Column) -> str:
    kind = {ESTIMATE: "estimate", KL_RECORD: "KL"}.get(column.within)
    return "" if kind is None else f" *{kind}s*" if column.many else f" *{kind}*"


def paths(columns: Sequence[Column], parent: str = "") -> Iterator[tuple[str, Column]]:
    """Every key with its place, but for those within estimates and KLs."""
    for column in columns:
        if column.key:
            path = f"{parent}{column.key}"
            yield path, column
            if column.within not in (ESTIMATE, KL_RECORD):
                yield from paths(column.within, f"{path}{'[].' if column.many else '.'}")


if __name__ == "__main__":
    print("\n".join(lines()))
