"""What `klscale validate --noise` prints: how far the readings of one model lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from klscale.inputs.texts import TextSet
from klscale.show.cautions import HEAVY
from klscale.show.tables import describe_texts, number, out, plain, print_error, print_notes, say, table
from klscale.studies.noise import NoiseStudy, Reading


def noise_record(found: Sequence[NoiseStudy], texts: TextSet) -> dict[str, Any]:
    """The studies for a machine."""
    return {
        "texts": texts.name,
        "text_set": texts.id,
        "clip": texts.clip,
        "unit": "bits/byte",
        "models": [
            {
                "model": str(one.ref),
                "n_texts": one.n_texts,
                "device": one.device,
                "readings": [_reading(reading) for reading in one.readings],
                "half_precision_sums": one.half_precision and asdict(one.half_precision),
                "sums_are_in_half_precision": one.is_half,
                "error": one.error and str(one.error),
            }
            for one in found
        ],
    }


def _reading(reading: Reading) -> dict[str, Any]:
    return {
        "reading": reading.reading,
        "against": reading.against,
        "kl": reading.kl and asdict(reading.kl),
        "largest_difference_nats": reading.largest,
        "error": reading.error and str(reading.error),
    }


def print_noise(found: Sequence[NoiseStudy], texts: TextSet) -> None:
    """Each model with its readings, then what half-precision sums add."""
    out.print(describe_texts(texts))
    for one in found:
        if one.error is None:
            _print_study(one)
    if any(one.readings for one in found):
        say(
            "KL between two readings of one model. The largest is the difference of one text, without the clip. What "
            "readings in one dtype differ by is noise: half of it is added to the KL of two models by each. What a "
            "coarser dtype makes of the weights is a change of the model, which every reading repeats.",
            "dim",
        )
    rows = [one for one in found if one.half_precision is not None]
    if rows:
        shown = table(
            "model", "noise floor ± SE, bits/byte", "texts", "", right=(1, 2),
            title="\nIf sums are kept in half precision",
        )  # fmt: skip
        for one in rows:
            assert one.half_precision is not None
            already = "its values are such sums" if one.is_half else ""
            shown.add_row(plain(one.ref), number(one.half_precision), f"{one.n_texts:,}", already)
        out.print(shown)
        out.print("By the spacing of float16 at each value; each model adds half of its own to a KL.", style="dim")
    kls = [reading.kl for one in found for reading in one.readings if reading.kl is not None]
    print_notes(texts, (any(kl.heavy_tails for kl in kls), HEAVY))
    for one in found:
        if one.error is not None:
            print_error(one.error)


def _print_study(one: NoiseStudy) -> None:
    if not one.readings:
        return
    shown = table(
        "reading", "against", "KL ± SE, bits/byte", "95 % interval", "largest, nats", right=(2, 3, 4),
        title=f"\n{plain(one.ref)}: {one.n_texts:,} texts, {one.device}",
    )  # fmt: skip
    for reading in one.readings:
        if (kl := reading.kl) is None:
            shown.add_row(reading.reading, reading.against, "cannot be read so", "", "")
            continue
        low, high = kl.interval
        mark = " !" if kl.heavy_tails else ""
        shown.add_row(
            reading.reading, reading.against, number(kl) + mark, f"{low:.2g} to {high:.2g}", f"{reading.largest:.2g}"
        )
    out.print(shown)
    for reading in one.readings:
        if reading.error is not None:
            say(f"{reading.reading}: {plain(reading.error.what)} {plain(reading.error.why)}", "yellow")
