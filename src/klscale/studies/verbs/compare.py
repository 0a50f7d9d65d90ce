"""KL between some models, which of them predicts the texts better, and the place of each KL on the scale."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from klscale.display import Displayed
from klscale.errors import InputError, ScoringError
from klscale.inputs.references import ModelRef, parse_all
from klscale.inputs.texts import TextSet
from klscale.progress import Progress
from klscale.science.drawn import DrawnKL
from klscale.science.reported import ReportedKL
from klscale.store.store import Store
from klscale.studies import scales
from klscale.studies.precision import SequentialComparison, compare_to_precision
from klscale.studies.scales import Setting
from klscale.studies.verbs.options import READING, Options
from klscale.studies.verbs.scale import scale_beside
from klscale.studies.verbs.score import failures, scored_vectors
from klscale.sweep.jobs import Outcome
from klscale.vectors.vectors import Vectors


@dataclass(frozen=True, eq=False)
class Comparison(Displayed):
    """KL in bits per byte of each pair of models: `pairs`, (name, name) -> KL, with the estimator that it is from.
    `pairs[a, b].whole_texts` is the published estimate.

    `vectors` are those of the models that could be scored, for bits per byte, paired differences and everything else.
    `measured` is the scale of the store on these texts. `outcomes` has the status of each model. `sequential` is not
    None where a precision was given: its intervals from some of the texts are confidence sequences.

    `drawn`, on texts that one of the models wrote: (author, other) -> KL(author, other), exact in expectation, also
    between tokenizers.
    """

    vectors: Vectors
    pairs: Mapping[tuple[str, str], ReportedKL]
    measured: tuple[Setting, ...]
    outcomes: tuple[Outcome, ...]
    sequential: SequentialComparison | None = None
    drawn: Mapping[tuple[str, str], DrawnKL] = field(default_factory=dict)

    def placed(self, a: str, b: str) -> str | None:
        """The place of a pair's KL on the scale, in words: among the pairs of its own setting, where there are others,
        else by the setting with the nearest median. None where no scale is known for these texts."""
        setting = scales.setting_between(self.vectors, a, b)
        return scales.place(self.pairs[a, b], self.vectors.texts, self.measured, (a, b), setting)

    def __str__(self) -> str:
        lines = [f"{name}: {self.vectors.bits_per_byte(name)}" for name in self.vectors.names]
        for (a, b), kl in self.pairs.items():
            placed = self.placed(a, b)
            lines.append(f"{a} and {b}: KL {kl}" + (f", {placed}" if placed else ""))
        for (author, other), from_author in self.drawn.items():
            lines.append(f"from {author}, which wrote the texts, to {other}: KL {from_author}")
        return "\n".join([*lines, *failures(self.outcomes)])


def compare(
    models: Sequence[str | ModelRef],
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    reference: str | ModelRef | None = None,
    precision: float | None = None,
    options: Options = Options(),
) -> Comparison:
    """KL in bits per byte between models with standard errors, and bits per byte of each with paired differences.
    Models that the store lacks are scored.

    All pairs are compared; with a `reference`, only the pairs with it. `precision`: score random texts only until the
    standard error of each KL is at most this fraction of it (0.1: 10 %).

    A model that fails has its error in `outcomes`. Raises ScoringError where fewer than two could be scored, or the
    reference could not. Raises InputError for fewer than two models, a precision that is not from 1e-6 to below 1, and
    texts or options that cannot be used.

        compared = klscale.compare(["gpt2", "gpt2+int8", "gpt2+nf4"], reference="gpt2")
        print(compared.pairs["gpt2", "gpt2+nf4"])  # value ± standard error, bits/byte, and by which estimator
        print(compared.vectors.bits_per_byte("gpt2+nf4", "gpt2"))  # difference to gpt2: above 0 is worse
    """
    refs = parse_all([*((reference,) if reference is not None else ()), *models])
    if len(refs) < 2:
        raise InputError("Two different models are needed.", remedy="klscale compare REF REF...")
    options = options.at(texts, store)
    place, found = options.opened(), None
    options = replace(options, store=place)
    if precision is None:
        vectors, outcomes = scored_vectors(refs, options)
    else:
        if options.rescore:
            raise InputError("rescore and precision exclude each other.", remedy="Score the models anew first.")
        if options.limit is not None:
            why = "A precision finds the number of texts; a limit sets it."
            raise InputError("limit and precision exclude each other.", why, "Keep one of them.")
        how = options.scoring(*READING, "sampled_tokens", "keep_downloads", "progress")
        only = None if reference is None else refs[0]
        found = compare_to_precision(refs, options.chosen(place), place, precision, reference=only, **how)
        vectors, outcomes = found.vectors, found.outcomes
    if len(vectors) < 2 or (reference is not None and outcomes[0].entry is None):
        raise ScoringError(outcomes)
    if found is not None:
        pairs = found.pairs
    elif reference is not None:
        first, *others = vectors.names
        pairs = {(first, name): vectors.reported_kl(first, name) for name in others}
    else:
        pairs = {(a, b): vectors.reported_kl(a, b) for a, b in combinations(vectors.names, 2)}
    measured = scale_beside(place, vectors.texts, options.progress)
    drawn = _from_author(vectors, pairs, outcomes, options.progress)
    return Comparison(vectors, pairs, measured, tuple(outcomes), found, drawn)


def _from_author(
    vectors: Vectors, pairs: Iterable[tuple[str, str]], outcomes: Sequence[Outcome], progress: Progress
) -> dict[tuple[str, str], DrawnKL]:
    """KL from the author of the texts to each model that it is paired with; none for texts that no model here wrote."""
    key = (vectors.texts.drawn or {}).get("key")
    authors = {str(one.ref) for one in outcomes if one.entry is not None and one.entry.key == key}
    found = {}
    for pair in pairs:
        for author, other in (pair, pair[::-1]):
            if author in authors:
                try:
                    found[author, other] = vectors.drawn_kl(author, other)
                except InputError as error:
                    progress.note(f"No KL from {author} to {other}: {error.what} {error.why}".rstrip())
    return found
