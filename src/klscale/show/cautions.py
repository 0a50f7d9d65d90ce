"""What keeps the KL of a pair from being read plainly. Each caution is declared once, and shown alike everywhere: in
tables by its mark, in JSON by its key, on the page by its bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.inputs.texts import TextSet
from klscale.science.arrays import Integers
from klscale.science.kl import KL
from klscale.science.reported import FAR_MODEL, LARGEST_BY_SPANS, ReportedKL
from klscale.show.terminal import out
from klscale.vectors.vectors import NOISE_LIMIT, Vectors


@dataclass(frozen=True)
class Measured:
    """A `ReportedKL` with what cautions need to know of it: the texts of the set, the dtypes of both models (empty: not
    known), and what rounding `noise` adds to the KL by whole texts, in bits per byte (`Vectors.noise`, NaN: not known).
    Of many pairs, arrays."""

    kl: Any
    n_texts: int
    dtypes: tuple[Any, Any] = ("", "")
    noise: Any = math.nan

    @classmethod
    def of_whole_texts(cls, kl: Any, *known: Any) -> Measured:
        """The same of a KL by whole texts."""
        return cls(ReportedKL.of_whole_texts(kl), *known)

    @property
    def by_whole_texts(self) -> Measured:
        """The published estimate of the same pair."""
        return replace(self, kl=ReportedKL.of_whole_texts(self.kl.whole_texts))

    @property
    def cautions(self) -> tuple[Caution, ...]:
        """Those that hold for one pair."""
        with np.errstate(invalid="ignore"):
            return tuple(one for one in CAUTIONS if one.condition(self))


@dataclass(frozen=True)
class Caution:
    """`holds` where `condition` does. `mark` stands behind a number; `footnote` explains it below a table; `sentence`
    says it of one pair, with the figures."""

    key: str
    mark: str
    footnote: str
    condition: Callable[[Measured], Any]
    sentence: Callable[[Measured], str]

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        return self.key.replace("_", " ")

    @property
    def note(self) -> str:
        """Its line below a table."""
        return f"{self.mark} {self.footnote}"

    def holds(self, measured: Measured) -> NDArray[np.bool_]:
        """Where it holds: of one pair (), or of many."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.condition(measured), dtype=bool)


def _differing_dtypes(measured: Measured) -> Any:
    a, b = (np.asarray(side, dtype=object) for side in measured.dtypes)
    return (a != b) & (a != "") & (b != "")


def _below_the_noise(measured: Measured) -> Any:
    value = measured.kl.whole_texts.value  # what the noise is of
    return (value > 0) & (measured.noise >= value)


def _of_whole_texts(condition: Callable[[Any], Any]) -> Callable[[Measured], Any]:
    """A condition on the KL by whole texts, which holds where that is what is reported."""
    return lambda it: np.logical_and(it.kl.is_published, condition(it.kl.whole_texts))


def _range(kl: ReportedKL) -> tuple[str, str]:
    """The largest KL that the estimator gives, and the largest bits per byte of a model for it."""
    return ("100 nats/text", "2") if kl.is_published else (f"{LARGEST_BY_SPANS} bits/byte", f"{FAR_MODEL}")


CAUTIONS = (
    Caution(
        "out_of_range",
        "*",
        "out of the range of its estimator (docs/validity.md): a distance, no KL",
        lambda it: np.logical_not(it.kl.in_range) & ~np.isnan(it.kl.value),
        lambda it: (
            f"out of range: the models are far apart (above {_range(it.kl)[0]}) or far from the texts (above "
            f"{_range(it.kl)[1]} bits/byte); read the value as a distance, no KL"
        ),
    ),
    Caution(
        "unclipped",
        "u",
        "not clipped: the clip would move more than 5 % of a vector",
        _of_whole_texts(lambda kl: kl.left_unclipped),
        lambda it: f"not clipped: the clip would move {it.kl.whole_texts.clipped:.0%} of a vector",
    ),
    Caution(
        "heavy_tails",
        "!",
        "heavy tails (kurtosis above 10): the interval covers less often than 95 %",
        _of_whole_texts(lambda kl: kl.heavy_tails),
        lambda it: f"heavy tails (kurtosis {it.kl.whole_texts.kurtosis:.0f}): the interval covers less often than 95 %",
    ),
    Caution(
        "some_texts",
        "t",
        "some texts were not scored with both models",
        lambda it: (it.n_texts > 1) & np.less(it.kl.whole_texts.n_texts, it.n_texts),
        lambda it: f"only {it.kl.whole_texts.n_texts:,} of {it.n_texts:,} texts were scored with both models",
    ),
    Caution(
        "different_dtypes",
        "d",
        "different dtypes: their rounding is part of the value",
        _differing_dtypes,
        lambda it: f"different dtypes ({', '.join(map(str, it.dtypes))}): their rounding is part of the value",
    ),
    Caution(
        "rounding_noise",
        "~",
        "rounding noise is more than 10 % of the value by whole texts",
        lambda it: (
            (it.noise > NOISE_LIMIT * it.kl.whole_texts.value)
            & (it.kl.whole_texts.value > 0)
            & np.logical_not(_below_the_noise(it))
        ),
        lambda it: (
            f"rounding noise is about {it.noise:.2g} bits/byte of the KL by whole texts, "
            f"{it.noise / it.kl.whole_texts.value:.0%} of it"
        ),
    ),
    Caution(
        "below_noise_floor",
        "~~",
        "below run-to-run noise: rounding alone gives equal models such a value",
        _below_the_noise,
        lambda it: (
            f"below run-to-run noise: rounding alone adds about {it.noise:.2g} bits/byte, the KL by whole texts is "
            f"{it.kl.whole_texts.value:.2g}"
        ),
    ),
    Caution(
        "poor_draws",
        "p",
        "few of the sampled tokens carry the value: its standard error may be too small",
        lambda it: it.kl.poor,
        lambda it: "few of the sampled tokens carry the value: its standard error may be too small",
    ),
)
"""In the order in which they are shown."""

BITS = {caution.key: 1 << place for place, caution in enumerate(CAUTIONS)}
"""The bit of each caution in `flags`."""

BY_KEY = {caution.key: caution for caution in CAUTIONS}


# ------------------------------------------------------------------------------------------------------- many and one


@dataclass(frozen=True)
class Around:
    """What the cautions of any pair of `vectors` need beside its KL. `of_all`: every KL is that of the matrix of all
    pairs, with the cuts that all models keep; else a pair's own."""

    vectors: Vectors
    of_all: bool = False
    dtypes: NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        dtypes = [dtype if isinstance(dtype, str) else "" for dtype in self.vectors.attributes["dtype"]]
        object.__setattr__(self, "dtypes", np.array(dtypes, dtype=object))

    def pair(self, a: str, b: str, kl: KL | ReportedKL | None = None) -> Measured:
        """The KL of two models that is reported, or another estimate of it."""
        i, j = self.vectors.position(a), self.vectors.position(b)
        if kl is None:
            kl = self.vectors.reported_kl_matrix().at(i, j) if self.of_all else self.vectors.reported_kl(a, b)
        reported = kl if isinstance(kl, ReportedKL) else ReportedKL.of_whole_texts(kl)
        return self._measured(reported, i, j)

    def pairs(self, i: Any, j: Any, *, by_whole_texts: bool = False) -> Measured:
        """The KLs of many pairs, of the models at these places, as arrays: those reported, or the published ones."""
        vectors = self.vectors
        whole = ReportedKL.of_whole_texts(vectors.kl().at(i, j)) if by_whole_texts else None
        return self._measured(whole or vectors.reported_kl_matrix().at(i, j), i, j)

    def from_model(self, model: str) -> tuple[Integers, Measured]:
        """The places of the other models, and the reported KLs from a model to each, as arrays."""
        others, reported = self.vectors.reported_kl_from(model)
        return others, self._measured(reported, np.full(len(others), self.vectors.position(model)), others)

    def _measured(self, reported: ReportedKL, i: Any, j: Any) -> Measured:
        noise = self.vectors.noise(i, j)
        n_texts = len(self.vectors.texts)
        return Measured(reported, n_texts, (self.dtypes[i], self.dtypes[j]), noise if np.ndim(noise) else float(noise))


def flags(measured: Measured) -> NDArray[np.uint16]:
    """The bits of the cautions that hold for each of many pairs."""
    found = [np.where(caution.holds(measured), BITS[caution.key], 0) for caution in CAUTIONS]
    return np.asarray(np.bitwise_or.reduce(np.broadcast_arrays(*found)), dtype=np.uint16)


def keys(measured: Measured) -> Any:
    """The keys of the cautions that hold: a list of one pair; of many pairs an array of words, or None."""
    if not np.ndim(measured.kl.value):
        return [caution.key for caution in measured.cautions]
    values, places = np.unique(flags(measured), return_inverse=True)
    words = [" ".join(key for key, bit in BITS.items() if value & bit) or None for value in values]
    return np.array(words, dtype=object)[places]


def marks(measured: Measured) -> str:
    """The marks behind a number, after a space; nothing where no caution holds."""
    found = "".join(caution.mark for caution in measured.cautions)
    return f" {found}" if found else ""


def warnings(measured: Measured, texts: TextSet) -> list[str]:
    """What keeps a pair's number from being read plainly, with the figures; one short sentence each."""
    return [caution.sentence(measured) for caution in measured.cautions] + of_documents(texts)


def of_documents(texts: TextSet) -> list[str]:
    """What keeps the standard errors of all numbers on these texts from being read plainly."""
    count = len(set(texts.document or ()))
    if count == 1:
        return ["all texts are of one document: they are not independent, and the standard error is too small"]
    if 1 < count < min(20, len(texts)):
        return [f"only {count} documents: the standard error is itself uncertain"]
    return []


def footnotes(shown: Iterable[Measured | None]) -> list[str]:
    """A line for each mark of the KLs that a table has shown."""
    there = {caution.key for measured in shown if measured is not None for caution in measured.cautions}
    return [caution.note for caution in CAUTIONS if caution.key in there]


def print_footnotes(texts: TextSet | None, shown: Iterable[Measured | None]) -> None:
    """These lines; and what to know of the `texts`, unless that is said elsewhere."""
    for line in footnotes(shown):
        out.print(line, style="yellow")
    for warning in of_documents(texts) if texts is not None else ():
        out.print(f"Note: {warning}.", style="yellow")
