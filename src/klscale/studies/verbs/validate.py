"""How much the numbers depend on the texts, the clip, the tails and rounding, and how far they are from exact KL."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from klscale.errors import InputError, ScoringError
from klscale.inputs.references import ModelRef, parse_all
from klscale.inputs.texts import TextSet
from klscale.store.store import Store
from klscale.studies.calibration import Calibration, calibrate
from klscale.studies.noise import NoiseStudy, noise_study
from klscale.studies.tails import PairTails, Tails, examine_pair, examine_tails
from klscale.studies.text_set_agreement import TextSetComparison, compare_text_sets
from klscale.studies.validity import TextSensitivity, text_sensitivity
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.score import failures, scored_vectors, stored_vectors
from klscale.sweep.jobs import Outcome
from klscale.vectors.vectors import Vectors

N_TEXTS = 500
"""Number of texts for exact KL and run-to-run noise."""


@dataclass(frozen=True, eq=False)
class Validation:
    """The result of one study on `texts`, a text set or two; the parts of other studies are None or empty.

    `sensitivity` and `tails` (of a single pair: `PairTails`) are of one text set, `agreement` is of two. `exact` has
    the exact KL and the estimate of each pair. `noise` has KL between repeat runs of each model. `outcomes` has the
    status of each model that was scored for the study. `complete` is false where a part of the study failed. `vectors`
    are those of the models, except for `agreement` and `noise`.
    """

    texts: tuple[TextSet, ...]
    sensitivity: TextSensitivity | None = None
    tails: Tails | PairTails | None = None
    vectors: Vectors | None = None
    agreement: TextSetComparison | None = None
    exact: tuple[Calibration, ...] = ()
    noise: tuple[NoiseStudy, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    complete: bool = True

    def __str__(self) -> str:
        lines: list[str] = []
        if self.sensitivity is not None:
            relative = self.sensitivity.standard_error / self.sensitivity.kl
            lines.append(
                f"A KL is known to {np.median(relative):.0%} (median of {len(relative):,} pairs), to "
                f"{relative.max():.0%} in the worst of them."
            )
        if self.agreement is not None:
            first, second = self.agreement.names
            lines.append(f"KL on {second} over KL on {first}: {self.agreement.ratio:.2g}, the median over pairs")
        lines += [f"{one.a} and {one.b}: exact KL {one.symmetrised}, the estimate {one.estimate}" for one in self.exact]
        for study in self.noise:
            lines += [f"{study.ref}: {one.reading}: {one.kl or one.error}" for one in study.readings]
        return "\n".join([*lines, *failures(self.outcomes)])


def validate(
    models: Sequence[str | ModelRef] = (),
    texts: TextSet | str | Sequence[TextSet | str] | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    exact: bool = False,
    noise: bool = False,
    n_texts: int = N_TEXTS,
    options: Options = Options(),
) -> Validation:
    """How much each KL (bits per byte) depends on the texts, their domains, the clip and the tails; for two models, the
    texts that make most of their KL. It uses all models of the store, or `models`; those that the store lacks are
    scored.

    There are three other studies, one at a time. `exact`: exact next-token KL and the estimate of each pair, for models
    with one tokenizer. `noise`: KL between repeat runs of each model. With two text sets in `texts`: the agreement of
    both on the same models. `exact` and `noise` use `n_texts` random texts.

    Raises InputError for more than one study, more than two text sets, and too few models; ScoringError where too few
    of them could be scored.

        print(klscale.validate(store="klscale-store"))
        print(klscale.validate(["gpt2", "gpt2+nf4"], exact=True).exact[0].ratio)  # estimate / exact
    """
    sets = [*texts] if texts is not None and not isinstance(texts, str | TextSet) else [texts]
    if len(sets) > 2:
        raise InputError(f"{len(sets)} text sets are too many.", remedy="--texts takes one, or two to compare.")
    if exact + noise + (len(sets) > 1) > 1:
        raise InputError(
            "One study at a time: --exact, --noise, or two --texts.",
            "Each is a study of its own.",
            "Run klscale validate once for each.",
        )
    refs = parse_all(models)
    each = [options.at(one, store) for one in sets or [None]]
    if noise:
        return _noise(refs, n_texts, each[0])
    if exact:
        return _exact(refs, n_texts, each[0])
    if len(each) == 2:
        return _two_text_sets(refs, each[0], each[1])
    vectors, outcomes = _wanted(refs, each[0])
    tails = examine_pair(vectors, *vectors.names) if len(vectors) == 2 else examine_tails(vectors)
    return Validation(
        (vectors.texts,), sensitivity=text_sensitivity(vectors), tails=tails, vectors=vectors, outcomes=outcomes
    )


def _wanted(refs: Sequence[ModelRef], options: Options) -> tuple[Vectors, tuple[Outcome, ...]]:
    """The vectors of these models, scored where they are missing; of all models in the store, where none is named."""
    if not refs:
        return stored_vectors(options.opened(), options), ()
    vectors, outcomes = scored_vectors(refs, options)
    if len(vectors) < 2:
        if failures(outcomes):
            raise ScoringError(outcomes)
        raise InputError("KL needs two models.", f"{refs[0]} is one.", "klscale validate REF REF...")
    return vectors, outcomes


def _two_text_sets(refs: Sequence[ModelRef], one: Options, other: Options) -> Validation:
    (first, some), (second, more) = (_wanted(refs, options) for options in (one, other))
    found = compare_text_sets(first, second)
    return Validation((first.texts, second.texts), agreement=found, outcomes=(*some, *more))


def _exact(refs: Sequence[ModelRef], n_texts: int, options: Options) -> Validation:
    if len(refs) < 2:
        raise InputError("--exact needs two models.", "Both models run again.", "klscale validate --exact REF REF...")
    vectors, outcomes = _wanted(refs, options)
    there = [str(outcome.entry.ref) for outcome in outcomes if outcome.entry is not None]
    pairs = [*combinations(dict.fromkeys(there), 2)]
    reading = options.scoring("device", "batch_tokens", "progress")
    found = calibrate(pairs, vectors.texts, options.opened(), n_texts=n_texts, **reading)
    complete = len(found) == len(pairs)
    return Validation((vectors.texts,), exact=tuple(found), vectors=vectors, outcomes=outcomes, complete=complete)


def _noise(refs: Sequence[ModelRef], n_texts: int, options: Options) -> Validation:
    if not refs:
        raise InputError("--noise needs a model.", "The model runs again.", "klscale validate --noise REF...")
    place = options.opened()
    chosen = options.chosen(place)
    found = noise_study(refs, chosen, place, n_texts=n_texts, **options.scoring("device", "progress"))
    return Validation((chosen,), noise=tuple(found), complete=all(one.error is None for one in found))
