"""What several commands do on their way: score what is missing, find what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from klscale.errors import InputError, KlscaleError
from klscale.show.tables import (
    err,
    plain,
    print_failures,
    progress_bar,
)

if TYPE_CHECKING:
    from klscale.inputs.references import ModelRef
    from klscale.inputs.texts import TextSet
    from klscale.store.store import Store
    from klscale.studies.scales import Setting
    from klscale.sweep.jobs import Outcome
    from klscale.vectors.vectors import Vectors


def failure_status(outcomes: Sequence[Outcome], problems: Sequence[KlscaleError] = ()) -> int:
    """0; 2 where nothing but bad arguments came; 1 where some models failed, or entries of a suite."""
    errors = [*problems, *(outcome.error for outcome in outcomes if outcome.error)]
    of_all = len(errors) == len(problems) + len(outcomes)
    if errors and of_all and all(error.exit_status == 2 for error in errors):
        return 2
    return 1 if errors else 0


def score_missing(
    refs: Sequence[ModelRef], store: Store, texts: str | None, *, layers: bool = False, **how: Any
) -> tuple[Vectors, list[Outcome]]:
    """Score what the store lacks of these models, and say what fails; the vectors of the others."""
    from klscale.sweep.score import score as score_models

    with progress_bar() as progress:
        text_set = store.resolve_texts(texts, progress=progress)
        outcomes = score_models(refs, text_set, store, layers=layers, progress=progress, **how)
    print_failures(outcomes)
    return vectors_of(store, text_set, outcomes, layers=layers), outcomes


def vectors_of(store: Store, texts: TextSet, outcomes: Sequence[Outcome], *, layers: bool = False) -> Vectors:
    """The vectors of the models that did not fail, by the names that they were asked for by."""
    found = [(outcome.entry, outcome.ref) for outcome in outcomes if outcome.entry is not None]
    return store.vectors(texts, [entry for entry, _ in found], [ref for _, ref in found], layers=layers)


def measured_scale(store: Store, texts: TextSet) -> list[Setting]:
    """The scale measured on these texts by what the store holds, medians only; empty where it holds no setting."""
    from klscale.studies import scales

    try:
        vectors, _ = store.vectors(texts).of_one_convention()
    except KlscaleError as error:  # of a model that was not asked for
        err.print(f"No scale is shown: {plain(error.what)}", style="yellow")
        return []
    return scales.measure(vectors, resamples=0)


def stored_texts(store: Store, texts: str | None) -> TextSet:
    """The text set that is meant. Raises InputError for an empty store."""
    if texts is None and not store.text_sets():
        raise InputError(f"{store.location} is empty.", remedy="klscale score REF...  or  klscale import FILE")
    return store.resolve_texts(texts)


def stored_vectors(store: Store, texts: str | None, *, layers: bool = False) -> Vectors:
    """All vectors of a text set in the store. Raises InputError where there are fewer than two."""
    vectors, left_out = store.vectors(stored_texts(store, texts), layers=layers).of_one_convention()
    if left_out:
        names = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        err.print(f"Left out, scored by another convention: {plain(names)}.", style="yellow")
    if len(vectors) < 2:
        raise InputError(
            f"{store.location} holds {len(vectors)} models on {vectors.texts.name}.",
            "KL needs two.",
            "klscale score REF...",
        )
    if some := int((vectors.n_scored < len(vectors.texts)).sum()):
        fewest = f"one {vectors.n_scored.min():,} of {len(vectors.texts):,}"
        note = f"Not all texts were scored with {some:,} of {len(vectors):,} vectors, with {fewest}: a pair uses those"
        err.print(f"{note} of both, a map those of all. `klscale score REF` adds what is missing.", style="yellow")
    return vectors
