"""The command that puts the numbers themselves to the test: validate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from klscale.cli.options import STORE, BatchOption, DeviceOption, JsonOption, LongOption, StoreOption
from klscale.cli.steps import failure_status, score_missing, stored_vectors
from klscale.errors import InputError
from klscale.show.tables import PICTURES, err, plain, print_json, progress_bar, require_ending

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from klscale.inputs.references import ModelRef
    from klscale.store.store import Store
    from klscale.sweep.jobs import Outcome
    from klscale.vectors.vectors import Vectors


class _Study(NamedTuple):
    """What was found: for a machine, for a person, as a picture; and what became of the models that it needed;
    whether some of it failed though they were there."""

    record: dict[str, Any]
    show: Callable[[], None]
    picture: Callable[[], Figure] | None = None
    outcomes: Sequence[Outcome] = ()
    some_failed: bool = False


def validate(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="REF...", help="These only; of two, the texts that carry their KL. Default: all."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Exact next-token KL of each pair beside the estimate; of one tokenizer.")
    ] = False,
    noise: Annotated[
        bool, typer.Option("--noise", help="KL between readings of each model: batches, orders, float32 to float16.")
    ] = False,
    n_texts: Annotated[
        int, typer.Option("--sample", min=2, metavar="N", help="Texts for --exact and --noise, drawn at random.")
    ] = 500,
    texts: Annotated[
        list[str] | None,
        typer.Option("--texts", metavar="NAME|FILE", help="Text set. Twice: do two sets agree on the same models?"),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A picture of it: .png, .svg or .pdf.")
    ] = None,
    store: StoreOption = STORE,
    device: DeviceOption = None,
    batch_tokens: BatchOption = None,
    long_texts: LongOption = "error",
    as_json: JsonOption = False,
) -> None:
    """How much the numbers depend on texts, domains, clip, tails and precision; the estimate against exact KL."""
    from klscale.inputs.references import ModelRef
    from klscale.show.pictures import save
    from klscale.store.store import Store

    if file is not None:
        require_ending(file, PICTURES)
        if noise:
            raise InputError("--noise makes no picture.", "It is a table of a few numbers.", "Keep it with --json.")
    place, refs = Store(store), list(dict.fromkeys(map(ModelRef.parse, models or ())))
    names: list[str | None] = [*(texts or ())] or [None]
    if len(names) > 2:
        raise InputError(f"{len(names)} text sets are too many.", remedy="--texts takes one, or two to compare.")
    if exact + noise + (len(names) > 1) > 1:
        raise InputError(
            "One study at a time: --exact, --noise, or two --texts.",
            "Each is a study of its own.",
            "Run klscale validate once for each.",
        )
    how = {"device": device, "batch_tokens": batch_tokens, "long_texts": long_texts}
    if noise:
        study = noise_floors(place, refs, names[0], n_texts, device)
    elif exact:
        study = calibration(place, refs, names[0], n_texts, how)
    elif len(names) == 2:
        study = two_text_sets(place, refs, names, how)
    else:
        study = one_text_set(place, refs, names[0], how)
    if as_json:
        print_json(study.record)
    else:
        study.show()
    if file is not None and study.picture is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save(study.picture(), file)
        err.print(f"Wrote {plain(file)}.")
    raise typer.Exit(failure_status(study.outcomes) or int(study.some_failed))


def wanted_vectors(
    store: Store, refs: Sequence[ModelRef], texts: str | None, how: dict[str, Any]
) -> tuple[Vectors, Sequence[Outcome]]:
    """The vectors of these models, scored where they are missing; of all in the store, where none is named."""
    if not refs:
        return stored_vectors(store, texts), ()
    vectors, outcomes = score_missing(refs, store, texts, **how)
    if len(vectors) < 2:
        if any(outcome.error for outcome in outcomes):
            raise typer.Exit(failure_status(outcomes))
        raise InputError("KL needs two models.", f"{refs[0]} is one.", "klscale validate REF REF...")
    return vectors, outcomes


def one_text_set(store: Store, refs: Sequence[ModelRef], texts: str | None, how: dict[str, Any]) -> _Study:
    """Other texts of the same kind, domains, clip, tails, length."""
    from klscale.show.pictures import text_contributions, text_set_sensitivity
    from klscale.show.tail_tables import pair_tails_record, print_pair_tails, print_summary, print_tails, tails_record
    from klscale.show.validity_tables import print_sensitivity, sensitivity_record
    from klscale.studies.tails import examine_pair, examine_tails
    from klscale.studies.validity import text_sensitivity

    vectors, outcomes = wanted_vectors(store, refs, texts, how)
    sensitivity = text_sensitivity(vectors)
    if len(vectors) == 2:
        pair = examine_pair(vectors, *vectors.names)

        def show_pair() -> None:
            print_summary(sensitivity, pair)
            print_sensitivity(sensitivity)
            print_pair_tails(pair)

        record = {"texts": sensitivity_record(sensitivity, vectors.texts), "tails": pair_tails_record(pair)}
        return _Study(record, show_pair, lambda: text_contributions(pair), outcomes)
    tails = examine_tails(vectors)

    def show() -> None:
        print_summary(sensitivity, tails)
        print_sensitivity(sensitivity)
        print_tails(tails)

    record = {"texts": sensitivity_record(sensitivity, vectors.texts), "tails": tails_record(tails)}
    return _Study(record, show, lambda: text_set_sensitivity(sensitivity, vectors.texts), outcomes)


def two_text_sets(store: Store, refs: Sequence[ModelRef], names: Sequence[str | None], how: dict[str, Any]) -> _Study:
    """The same models on two text sets."""
    from klscale.show import pictures
    from klscale.show.validity_tables import comparison_record, print_text_set_comparison
    from klscale.studies.validity import compare_text_sets

    (first, some), (second, more) = (wanted_vectors(store, refs, name, how) for name in names)
    found = compare_text_sets(first, second)
    return _Study(
        comparison_record(found),
        lambda: print_text_set_comparison(found, first.texts, second.texts),
        lambda: pictures.two_text_sets(found),
        [*some, *more],
    )


def calibration(store: Store, refs: Sequence[ModelRef], texts: str | None, n_texts: int, how: dict[str, Any]) -> _Study:
    """Exact KL of all pairs of these models."""
    from klscale.show.calibration_tables import calibration_record, print_calibration
    from klscale.show.pictures import estimate_against_exact
    from klscale.studies.calibration import calibrate

    if len(refs) < 2:
        raise InputError("--exact needs two models.", "They are read again.", "klscale validate --exact REF REF...")
    vectors, outcomes = wanted_vectors(store, refs, texts, how)
    reading = {key: value for key, value in how.items() if key != "long_texts"}
    with progress_bar() as progress:
        there = [str(entry.ref) for entry in (outcome.entry for outcome in outcomes) if entry is not None]
        pairs = [*combinations(dict.fromkeys(there), 2)]
        found = calibrate(pairs, vectors.texts, store, n_texts=n_texts, progress=progress, **reading)
    return _Study(
        calibration_record(found, vectors.texts),
        lambda: print_calibration(found, vectors.texts),
        lambda: estimate_against_exact(found),
        outcomes,
        some_failed=len(found) < len(pairs),
    )


def noise_floors(store: Store, refs: Sequence[ModelRef], texts: str | None, n_texts: int, device: str | None) -> _Study:
    """What rounding makes of each of these models."""
    from klscale.show.noise_tables import noise_record, print_noise
    from klscale.studies.noise import noise_study

    if not refs:
        raise InputError("--noise needs a model.", "It is read again.", "klscale validate --noise REF...")
    with progress_bar() as progress:
        text_set = store.resolve_texts(texts, progress=progress)
        found = noise_study(refs, text_set, store, n_texts=n_texts, device=device, progress=progress)
    return _Study(
        noise_record(found, text_set),
        lambda: print_noise(found, text_set),
        some_failed=any(one.error is not None for one in found),
    )
