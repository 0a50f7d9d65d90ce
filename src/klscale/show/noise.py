"""What `klscale validate --noise` shows: KL between repeat runs of one model."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from klscale.inputs.texts import TextSet
from klscale.show import cautions
from klscale.show.cautions import Measured
from klscale.show.columns import HEAD, Column, estimate, record, table, unit, within
from klscale.show.pairs import KL_COLUMNS
from klscale.show.terminal import describe_texts, out, plain, print_error, say
from klscale.studies.noise import NoiseStudy, Reading


def _measured(reading: Reading) -> Measured | None:
    return None if reading.kl is None else Measured.of_whole_texts(reading.kl, reading.kl.n_texts)


READING = (
    Column("reading", "How the model was run.", title="repeat run", words=True),
    Column("against", "The run that it is compared with.", title="against", words=True),
    *within(KL_COLUMNS, _measured),
    Column(
        "largest_difference_nats",
        "Largest difference of one text, without the clip.",
        "nats",
        lambda it: it.largest,
        "largest, nats",
        lambda it: "cannot be run so" if it.kl is None else f"{it.largest:.2g}",
    ),
    Column("error", "Why this machine cannot run it so; null where it can."),
)
NOISE = (
    Column(
        "model", "The model.", value=lambda it: str(it.ref), title="model", cell=lambda it: plain(it.ref), words=True
    ),
    Column("n_texts", "Texts of the study.", "texts"),
    Column("device", "Where the model ran."),
    Column("readings", "Each repeat run.", within=READING, many=True),
    estimate(
        "half_precision_sums",
        "Run-to-run noise from float16 sums of texts alone; null: not known.",
        value=lambda it: it.half_precision,
        title="noise ± SE, bits/byte",
    ),
    Column("", title="texts", cell=lambda it: f"{it.n_texts:,}"),
    Column(
        "sums_are_in_half_precision",
        "Whether the stored values are float16 sums.",
        value=lambda it: it.is_half,
    ),
    Column("", title=" ", cell=lambda it: "its values are such sums" if it.is_half else "", words=True),
    Column("error", "Why there is no study of it; null where there is."),
)
NOISE_STUDIES = (*HEAD, unit(), Column("models", "Each model.", within=NOISE, many=True))


def noise_record(found: Sequence[NoiseStudy], texts: TextSet) -> dict[str, Any]:
    """The study of each model."""
    return record(NOISE_STUDIES, SimpleNamespace(texts=texts, models=found))


def print_noise(found: Sequence[NoiseStudy], texts: TextSet) -> None:
    """Each model with its repeat runs, then the noise of half-precision sums."""
    out.print(describe_texts(texts))
    shown = [column for column in READING if column.key != "estimator"]  # one for all: said below
    for one in found:
        if one.error is None and one.readings:
            out.print(table(shown, one.readings, f"\n{plain(one.ref)}: {one.n_texts:,} texts, {one.device}"))
            for reading in one.readings:
                if reading.error is not None:
                    say(f"{reading.reading}: {plain(reading.error.what)} {plain(reading.error.why)}", "yellow")
    if any(one.readings for one in found):
        say(
            "KL between two runs of one model, by whole texts. The largest difference is of one text, without the "
            "clip. Runs in one dtype differ by run-to-run noise: each of two models adds half of its own to their KL. "
            "A coarser dtype changes the model itself; this change is the same in every run.",
            "dim",
        )
    rows = [one for one in found if one.half_precision is not None]
    if rows:
        out.print(table(NOISE, rows, "\nIf sums are kept in half precision"))
        out.print("From the spacing of float16 at each value. Each model adds half of its own to a KL.", style="dim")
    cautions.print_footnotes(texts, (it for one in found for it in map(_measured, one.readings)))
    for one in found:
        if one.error is not None:
            print_error(one.error)
