"""What the command line prints: tables for a person, records for a machine, and a bar while it works."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from klscale.errors import InputError, KlscaleError, nearest, printable
from klscale.progress import Progress
from klscale.show.cautions import HEAVY, NOISY, OUT_OF_RANGE, UNCLIPPED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from klscale.inputs.texts import TextSet
    from klscale.science.arrays import Floats
    from klscale.science.estimates import Estimate
    from klscale.science.kl import KL
    from klscale.store.store import Store
    from klscale.studies.scales import NoiseFloor, Setting
    from klscale.sweep.jobs import Outcome
    from klscale.vectors.vectors import Vectors

FEW = 3
"""Errors of one kind that are printed in full."""
MANY = 8
"""Models beyond which not all pairs of shifts are listed."""
DATA, PICTURES = (".csv", ".parquet"), (".png", ".svg", ".pdf")
"""Endings of files that a result is kept in."""
PROSE = 100
"""Columns that sentences fill at most."""
WIDE = 200
"""Columns where the output is no terminal: a file or a pipe does not wrap."""

out = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True, highlight=False, emoji=False, width=None if sys.stderr.isatty() else WIDE)


def print_error(error: KlscaleError) -> None:
    """What, why, remedy: one line each."""
    lines = [line for line in (error.what, error.why, error.remedy) if line]
    err.print("Error: ", style="bold red", end="")
    err.print("\n".join(lines), markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(*columns: str, right: Sequence[int] = (), title: str | None = None) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for n, column in enumerate(columns):
        made.add_column(column, justify="right" if n in right else "left", header_style="dim", overflow="fold")
    return made


def plain(text: object) -> str:
    """Names from files and hubs are text, never markup."""
    from rich.markup import escape

    return escape(printable(text))


def number(result: KL | Estimate) -> str:
    """Value ± standard error, where the column names the unit."""
    from klscale.science.estimates import format_estimate

    return format_estimate(result.value, result.standard_error)


def short(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


class Bar(Progress):
    """A bar on standard error: what, how many, how long yet."""

    def __init__(self, shown: Any) -> None:
        self.shown = shown
        self.task: Any = None
        self.total: float | None = None
        self.unit = ""

    def begin(self, what: str, total: float | None = None, unit: str = "") -> None:
        super().begin(what, total, unit)
        if self.task is not None:
            self.shown.remove_task(self.task)
        self.total, self.unit = total, unit
        self.task = self.shown.add_task(plain(what), total=total, count="")

    def advance(self, amount: float = 1.0) -> None:
        super().advance(amount)
        if self.task is not None:
            of = f" of {short(self.total)}" if self.total else ""
            count = f"{short(self.done)}{of} {self.unit}" if self.unit != "%" else ""
            self.shown.update(self.task, advance=amount, count=count)

    def now(self, what: str) -> None:
        if self.task is not None:
            self.shown.update(self.task, description=plain(what))

    def note(self, message: str) -> None:
        self.shown.console.print(message, markup=False, soft_wrap=True)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Progress on standard error; on something that is no terminal, only its notes."""
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.TaskProgressColumn(),
        rich_progress.TextColumn("{task.fields[count]}"),
        rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
    )
    with rich_progress.Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as shown:
        yield Bar(shown)


WORDS = {"present": "in the store already", "missing": "to be scored"}
"""What becomes of a model, for a person."""


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    record: dict[str, Any] = {"model": str(outcome.ref), "status": outcome.status}
    if outcome.entry:
        record |= {"key": outcome.entry.key, "file": outcome.entry.path, "seconds": round(outcome.seconds, 3)}
        record["skipped_texts"] = len(outcome.entry.metadata.get("skipped", ()))
    if outcome.status == "missing" or outcome.download_bytes is not None:
        record["download_bytes"] = outcome.download_bytes
    if outcome.error:
        record["error"] = str(outcome.error)
    return record


def problem_record(problem: KlscaleError) -> dict[str, Any]:
    """An entry of a suite that stands for no model, beside `outcome_record`."""
    return {"model": None, "status": "failed", "error": str(problem)}


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
    shown = table("model", "", "to download", right=(2,))
    for outcome in outcomes:
        to_fetch = "" if outcome.status == "failed" else size(outcome.download_bytes)
        shown.add_row(plain(outcome.ref), WORDS.get(outcome.status, outcome.status), to_fetch)
    out.print(shown)
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
    shown = table("model", "", "seconds", right=(2,))
    for outcome in outcomes:
        if outcome.error is None:
            seconds = f"{outcome.seconds:.1f}" if outcome.status == "scored" else ""
            skipped = len(outcome.entry.metadata.get("skipped", ())) if outcome.entry else 0
            status = WORDS.get(outcome.status, outcome.status) + (f", {skipped:,} texts skipped" if skipped else "")
            shown.add_row(plain(outcome.ref), status, seconds)
    if shown.row_count:
        out.print(shown)
    print_failures(outcomes)
    failed = sum(outcome.error is not None for outcome in outcomes)
    if n_problems or 0 < failed < len(outcomes):
        out.print(f"{failed:,} of {len(outcomes):,} models failed{entries_failed(n_problems)}")
    if any(outcome.status == "scored" for outcome in outcomes):
        out.print(f"Kept in {plain(store.location)}. Next: klscale kl, klscale compare, klscale scale.", style="dim")


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


def say(sentence: str, style: str | None = None) -> None:
    """A sentence, wrapped where it is long."""
    out.print(sentence, style=style, width=PROSE)


def print_notes(texts: TextSet, *marked: tuple[bool, str]) -> None:
    """The notes below a table: those of its marks that are there, and those of the texts."""
    from klscale.show.findings import warnings_of_documents

    notes = [note for there, note in marked if there]
    for note in [*notes, *(f"Note: {warning}." for warning in warnings_of_documents(texts))]:
        out.print(note, style="yellow")


def print_marks(texts: TextSet, shown: str) -> None:
    """The notes below a table that has shown these `marks`, and those of the texts."""
    notes = {"*": OUT_OF_RANGE, "u": UNCLIPPED, "!": HEAVY, "~": NOISY}
    print_notes(texts, *((mark in shown, note) for mark, note in notes.items()))


def pair_record(vectors: Vectors, a: str, b: str, measured: Sequence[Setting]) -> dict[str, Any]:
    from dataclasses import asdict

    from klscale.show.findings import warnings_of
    from klscale.studies import scales

    kl = vectors.kl()[a, b]
    noise = float(vectors.noise()[vectors.position(a), vectors.position(b)])
    rows = [{str(k): v for k, v in vectors.attributes.loc[name].dropna().items()} for name in (a, b)]
    refs = [vectors.models[vectors.position(name)] for name in (a, b)]
    difference = vectors.bits_per_byte(b, a)
    return {
        "a": a,
        "b": b,
        "kl": kl.value,
        "standard_error": kl.standard_error,
        "interval": list(kl.interval),
        "unit": "bits/byte",
        "kl_unclipped": kl.value_unclipped,
        "standard_error_unclipped": kl.standard_error_unclipped,
        "clipped": kl.clipped,
        "uses_clip": kl.uses_clip,
        "kl_nats_per_text": kl.nats_per_text,
        "n_texts": kl.n_texts,
        "n_documents": kl.n_documents,
        "mean_bytes": kl.mean_bytes,
        "kurtosis": kl.kurtosis,
        "in_range": kl.in_range,
        "noise": noise,
        "setting": scales.setting_of(rows[0], rows[1], refs[0], refs[1]),
        "placed": scales.place(kl.value, vectors.texts, measured, pair=(a, b)),
        "bits_per_byte_a": asdict(vectors.bits_per_byte(a)),
        "bits_per_byte_b": asdict(vectors.bits_per_byte(b)),
        "bits_per_byte_difference": asdict(difference),
        "texts": vectors.texts.name,
        "text_set": vectors.texts.id,
        "clip": vectors.texts.clip,
        "warnings": warnings_of(kl, vectors.texts, rows[0].get("dtype"), rows[1].get("dtype"), noise),
    }


def name_texts(texts: TextSet) -> str:
    return f"{plain(texts.name)} ({texts.id}): {len(texts):,} texts, mean {texts.mean_bytes:.1f} bytes"


def describe_texts(texts: TextSet) -> str:
    clip = "no clip" if texts.clip is None else f"clipped at {texts.clip:.1f} nats"
    return f"{name_texts(texts)}, {clip}"


def print_comparison(vectors: Vectors, records: Sequence[dict[str, Any]]) -> None:
    """KL of each pair, one record each; bits per byte of each model; what that amounts to; what to be wary of."""
    from klscale.inputs.references import WEIGHTS_ONLY
    from klscale.science.estimates import format_estimate

    out.print(describe_texts(vectors.texts))
    shown = table("model", "model", "KL ± SE, bits/byte", "95 % interval", "unclipped", right=(2, 3, 4), title="\nKL")
    clip = vectors.texts.clip is not None
    for r in records:
        low, high = r["interval"]
        unclipped = format_estimate(r["kl_unclipped"], r["standard_error_unclipped"]) if clip else ""
        mark = "" if r["uses_clip"] or not clip else " *"
        kl = format_estimate(r["kl"], r["standard_error"]) + mark
        shown.add_row(plain(r["a"]), plain(r["b"]), kl, f"{low:.3g} to {high:.3g}", unclipped)
    if not clip:
        shown.columns.pop()
    out.print(shown)
    first = vectors.names[0]
    shown = table("model", "bits/byte ± SE", f"less {plain(first)}", right=(1, 2), title="\nHow good each model is")
    for name in vectors.names:
        own, more = vectors.bits_per_byte(name), vectors.bits_per_byte(name, first)
        against = "" if name == first else format_estimate(more.value, more.standard_error, sign=True)
        shown.add_row(plain(name), number(own), against)
    out.print(shown)
    if has_ladder(vectors, [(r["a"], r["b"]) for r in records]):
        print_ladder(vectors)
    out.print()
    alone = sorted({ref.quantization for ref in vectors.models if ref.quantization in WEIGHTS_ONLY})
    if alone:
        out.print(
            f"{', '.join(alone)}: of the weights only; what a kernel or quantized activations add is not in it.\n"
        )
    for r in records:
        out.print(f"{plain(r['a'])} and {plain(r['b'])}: {verdict(r)}.")
        if placed := r["placed"]:
            out.print(f"  Their KL is {placed}.")
        for warning in r["warnings"]:
            out.print(f"  Note: {warning}.", style="yellow")
    if all(r["placed"] is None and r["kl"] != 0 for r in records):
        out.print(
            "No scale is known for these texts: published values hold for pile-10k only. "
            "Score seeds, sizes or checkpoints here to have one.",
            style="dim",
        )


def has_ladder(vectors: Vectors, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether three models or more are compared with the first: by request, or as its variants."""
    variants = all(ref.name == vectors.models[0].name for ref in vectors.models)
    return len(vectors) > 2 and (variants or all(pair[0] == vectors.names[0] for pair in pairs))


def beside(vectors: Vectors, a: str, b: str) -> list[dict[str, Any]]:
    """A pair of the first model and another beside its pairs with every third: by how much KL is more there (paired
    standard error), and the cosine between the two shifts from the first. `vectors` are on one footing."""
    from dataclasses import asdict

    if a != vectors.names[0]:
        return []
    return [
        {
            "model": other,
            "uses_clip": vectors.texts.clip is not None,
            "kl_difference": asdict(vectors.kl_difference((a, other), (a, b))),
            "shift_cosine": asdict(vectors.shift_cosine(a, b, other)),
        }
        for other in vectors.names
        if other not in (a, b)
    ]


def verdict(record: dict[str, Any]) -> str:
    """Which of the two is better on these texts, by how much, or that this cannot be told."""
    from klscale.science.estimates import format_estimate

    difference = record["bits_per_byte_difference"]
    value, error = difference["value"], difference["standard_error"]
    if error == 0 and value == 0:
        return "identical on every text"
    low, high = difference["interval"]
    if not math.isfinite(error):
        return "which is better cannot be told from so few texts"
    if low <= 0 <= high:
        return f"neither is better within the error ({format_estimate(value, error, sign=True)} bits/byte)"
    better = record["a"] if value > 0 else record["b"]
    return f"{plain(better)} is better by {format_estimate(abs(value), error)} bits/byte"


def print_ladder(vectors: Vectors) -> None:
    """The models from the nearest to the first to the farthest, each step with its paired standard error, and whether
    they differ from the first in the same way."""
    clip, vectors = vectors.texts.clip, vectors.on_one_footing()
    first, matrix = vectors.names[0], vectors.kl()
    order = sorted(vectors.names[1:], key=lambda name: matrix[first, name].value)
    shown = table("model", "KL, bits/byte", "more than the one above", right=(1, 2), title=f"\nFrom {plain(first)}")
    for n, name in enumerate(order):
        step = "" if n == 0 else number(vectors.kl_difference((first, name), (first, order[n - 1])))
        shown.add_row(plain(name), number(matrix[first, name]), step)
    out.print(shown)
    if vectors.texts.clip != clip:
        out.print("Not clipped here: the clip would move more than 5 % of a vector.", style="yellow")
    if len(order) > MANY:
        return
    shown = table(
        "model", "model", "cosine", right=(2,), title=f"\nDo they shift {plain(first)} the same way? (1: yes)"
    )
    for a, b in combinations(order, 2):
        shown.add_row(plain(a), plain(b), number(vectors.shift_cosine(first, a, b)))
    out.print(shown)


def save_matrix(vectors: Vectors, file: Path, picture: Callable[[Vectors], Figure]) -> None:
    """All pairs as a table, or a picture of them; by the file's ending."""
    save_as(file, vectors.kl().columns, lambda: picture(vectors))


def save_scale(measured: Sequence[Setting], texts: TextSet, file: Path, noise_floor: NoiseFloor | None = None) -> None:
    """The pairs of every setting as a table, or the picture of the scale; by the file's ending."""
    from klscale.show.pictures import scale_ruler

    require_settings(measured)

    def columns() -> dict[str, Any]:
        rows = [
            (row.setting, *pair, *values)
            for row in measured
            for pair, *values in zip(row.pairs, row.values, row.standard_errors, row.in_range, strict=True)
        ]
        names = ("setting", "a", "b", "kl", "standard_error", "in_range")
        return dict(zip(names, zip(*rows, strict=True), strict=True))

    save_as(file, columns, lambda: scale_ruler(measured, texts, noise_floor))


def require_ending(file: Path, endings: Sequence[str] = (*DATA, *PICTURES)) -> None:
    """Raises InputError for a file that does not end as one of these, by default a table or a picture."""
    if file.suffix not in endings:
        raise InputError(
            f"{file}: unknown ending {file.suffix!r}.",
            f"It says what is written: {', '.join(endings)}.",
            nearest(file.suffix, endings),
        )


def save_as(file: Path, columns: Callable[[], Mapping[str, Any]], picture: Callable[[], Figure]) -> None:
    """A table (.csv, .parquet) or a picture (.png, .svg, .pdf), by the file's ending."""
    import pandas as pd

    from klscale.show.pictures import save

    require_ending(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix in DATA:
        frame = pd.DataFrame(columns())
        frame.to_csv(file, index=False) if file.suffix == ".csv" else frame.to_parquet(file, index=False)
    else:
        save(picture(), file)


def layers_record(vectors: Vectors) -> list[dict[str, Any]]:
    """Each layer of each model, as `print_layers` shows them."""
    from dataclasses import asdict

    from klscale.studies import lens

    return [
        {
            "model": model,
            "layer": row.layer,
            "bits_per_byte": asdict(row.bits_per_byte),
            "kl_from_previous": row.from_previous and asdict(row.from_previous),
            "kl_to_output": asdict(row.to_output),
            "unit": "bits/byte",
            "texts": vectors.texts.name,
            "text_set": vectors.texts.id,
        }
        for model, rows in lens.layers(vectors).items()
        for row in rows
    ]


def print_layers(vectors: Vectors) -> None:
    """KL of each layer from the one before and to the output, and how good it is by itself."""
    from klscale.studies import lens

    found = lens.layers(vectors)
    out.print(describe_texts(vectors.texts))
    for model, rows in found.items():
        shown = table(
            "layer", "bits/byte ± SE", "KL from the layer before", "KL to the output", right=(0, 1, 2, 3),
            title=f"\n{plain(model)}: the logit lens",
        )  # fmt: skip
        for row in rows:
            name = "embedding" if row.layer == 0 else str(row.layer)
            last = row is rows[-1]
            before = "" if row.from_previous is None else number(row.from_previous) + marks(row.from_previous)
            shown.add_row(
                name, number(row.bits_per_byte), before, "" if last else number(row.to_output) + marks(row.to_output)
            )
        out.print(shown)
    steps = [row.from_previous for rows in found.values() for row in rows if row.from_previous]
    shown_marks = "".join(map(marks, [*steps, *(row.to_output for rows in found.values() for row in rows[:-1])]))
    out.print("KL in bits/byte ± standard error over texts; the last layer is the model itself.", style="dim")
    print_marks(vectors.texts, shown_marks)


def marks(kl: KL, noise: float = math.nan) -> str:
    """`*` for a value out of range, `u` for one that could not be clipped, `!` for heavy tails, `~` for one of which
    rounding `noise` (`Vectors.noise`) is more than 10 %, `~~` for one that it does not exceed."""
    from klscale.science.clip import CLIP_LIMIT
    from klscale.show.findings import noisy

    unclipped = not kl.uses_clip and kl.clipped > CLIP_LIMIT
    some, most = noisy(kl.value, noise)
    found = "*" * (not kl.in_range) + "u" * unclipped + "!" * kl.heavy_tails + "~" * bool(some) + "~" * bool(most)
    return f" {found}" if found else ""


def print_matrix(vectors: Vectors) -> None:
    """The whole matrix where it fits a screen, else its nearest and farthest pairs."""
    import numpy as np

    matrix, noise = vectors.kl(), vectors.noise()
    out.print(describe_texts(vectors.texts))
    i, j = np.triu_indices(len(vectors), k=1)
    order = np.argsort(matrix.value[i, j])
    if len(order) > 120:
        out.print(f"{len(vectors):,} models, {len(order):,} pairs; the nearest and the farthest (all: --out FILE.csv)")
        order = np.concatenate([order[:10], order[-10:]])
    names = vectors.names
    pairs = [(int(i[n]), int(j[n]), matrix[int(i[n]), int(j[n])]) for n in order]
    shown = table("model", "model", "KL ± SE, bits/byte", "95 % interval", "kurtosis", right=(2, 3, 4), title="\nKL")
    shown_marks = ""
    for a, b, kl in pairs:
        low, high = kl.interval
        mark = marks(kl, noise[a, b])
        shown.add_row(
            plain(names[a]), plain(names[b]), number(kl) + mark, f"{low:.3g} to {high:.3g}", f"{kl.kurtosis:.1f}"
        )
        shown_marks += mark
    out.print(shown)
    print_marks(vectors.texts, shown_marks)


def scale_record(vectors: Vectors, measured: Sequence[Setting]) -> dict[str, Any]:
    """The measured scale and, apart from it, the published one."""
    from dataclasses import asdict

    from klscale.studies import scales

    return {
        "texts": vectors.texts.name,
        "text_set": vectors.texts.id,
        "n_texts": len(vectors.texts),
        "mean_bytes": vectors.texts.mean_bytes,
        "clip": vectors.texts.clip,
        "unit": "bits/byte",
        "noise_floor": None if (floor := scales.noise_floor(vectors)) is None else asdict(floor),
        "measured": [asdict(row) for row in measured],
        "published": {"texts": "pile-10k", "settings": [asdict(row) for row in scales.published()]},
        "published_holds_here": scales.published_holds(vectors.texts),
    }


def print_published() -> None:
    from klscale.studies import scales

    shown = table("setting", "median, bits/byte", "pairs", "compared", "source", right=(1, 2))
    for row in scales.published():
        shown.add_row(row.setting, f"{row.median:#.2g}", str(row.pairs or ""), row.compared, row.source)
    out.print(shown)
    shown = table("pair", "KL ± SE, bits/byte", "source", right=(1,), title="\nSingle pairs")
    for pair in scales.published_pairs():
        shown.add_row(pair.compared, f"{pair.kl:#.2g} ± {pair.standard_error:#.2g}", pair.source)
    out.print(shown)
    out.print(
        "\nP1v3: Kishino et al., arXiv 2505.15353v3, medians second-hand and without standard errors; P1v1: its first "
        "version. They hold for the text set pile-10k with its clip.",
        style="dim",
    )


TO_SCORE = {
    "early training": "checkpoints of a run",
    "later training": "checkpoints of a run",
    "seed": "another seed",
    "size": "another size",
    "fine-tuning": "a parent or child",
    "8-bit": "NAME+int8",
    "4-bit": "NAME+fp4",
    "layer": "--layers NAME",
    "same type": "two models of one type",
    "random": "two models",
}
"""What gives a store a pair of a published setting."""


def require_settings(measured: Sequence[Setting]) -> None:
    """Raises InputError where a store instances no setting."""
    if not measured:
        raise InputError(
            "No setting can be measured among these models.",
            "Seeds, sizes, checkpoints and fine-tunes are told apart by attributes of the models.",
            "Score models of one family, or name the attributes in a suite file; see also: klscale scale --published",
        )


def print_scale(vectors: Vectors, measured: Sequence[Setting]) -> None:
    from klscale.science.estimates import format_estimate
    from klscale.studies import scales

    require_settings(measured)
    out.print(describe_texts(vectors.texts))
    shown = table(
        "setting", "median ± SE, bits/byte", "quartiles", "95 % over models", "pairs", "models", "published",
        right=(1, 2, 3, 4, 5), title="\nThe scale",
    )  # fmt: skip
    noise = vectors.noise()
    noisy_rows = [_is_noisy(vectors, noise, row) for row in measured]
    for row, noisy in zip(measured, noisy_rows, strict=True):
        low, high = (f"{value:.3g}" for value in row.interval)
        spread = f"{low} to {high}" + (" (range)" if row.interval_kind == "range" else "")
        many, mark = len(row.pairs) > 1, " *" * (row.n_in_range < len(row.pairs)) + " ~" * noisy
        drawn = f" of {row.n_available:,}" if len(row.pairs) < row.n_available else ""
        known = scales.published_beside(row.setting)
        shown.add_row(
            plain(row.setting),
            format_estimate(row.median, row.standard_error) + mark,
            "{:.3g} to {:.3g}".format(*row.quartiles) if many else "",
            spread if many else "one pair",
            f"{len(row.pairs):,}{drawn}",
            str(row.n_models),
            f"{known.median:#.2g} {known.source}" if known else "",
        )
    out.print(shown)
    out.print(
        "± is the standard error over texts; (range): over the pairs, for too few models. A run counts as one model.",
        style="dim",
    )
    if floor := scales.noise_floor(vectors):
        out.print(plain(floor.sentence))
    print_notes(
        vectors.texts,
        (any(row.n_in_range < len(row.pairs) for row in measured), OUT_OF_RANGE),
        (any(noisy_rows), "~ rounding noise is more than 10 % of the KL of some pairs"),
    )
    if not scales.published_holds(vectors.texts):
        out.print("The published values are for other texts (pile-10k): beside, not comparable.", style="dim")
    wanting: dict[str, list[str]] = {}
    for known in scales.not_measured(measured):
        wanting.setdefault(TO_SCORE[known.setting], []).append(known.setting)
    if wanting:
        listed = "; ".join(f"{', '.join(settings)} ({what})" for what, settings in wanting.items())
        out.print(f"No pair yet (what to score): {listed}.", style="dim")


def _is_noisy(vectors: Vectors, noise: Floats, row: Setting) -> bool:
    """Whether rounding `noise` (K, K) is more than 10 % of the KL of any pair of a setting."""
    import numpy as np

    from klscale.show.findings import noisy

    a, b = ([vectors.position(name) for name in side] for side in zip(*row.pairs, strict=True))
    return bool(noisy(np.array(row.values), noise[a, b])[0].any())


def print_report(data: Mapping[str, Any], file: Path, size: int) -> None:
    """The findings of a report, and how to open it."""
    for row in data["summary"]:
        out.print(f"{plain(row['section'])}: {plain(row['text'])}")
    out.print(f"\nWrote {plain(file)} ({size / 1e6:.1f} MB). Open it in a browser:")
    out.print(file.resolve().as_uri(), soft_wrap=True)
