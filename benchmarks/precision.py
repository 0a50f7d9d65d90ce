"""Number of texts for a given precision, and coverage of the intervals, by simulation.

    python benchmarks/precision.py

A comparison is simulated by differences of log-likelihoods from a known distribution, with the sequential looks of
`klscale compare --precision`. The ideal number of texts is (kurtosis - 1) / p**2 of the true distribution; in practice
it is not known beforehand. Coverage is the share of 95 % intervals that hold the true KL. It is given for the
confidence sequence, for the usual interval at the number of texts where the comparison stopped, and for the usual
interval at the ideal number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from klscale.inputs.texts import TextSet
from klscale.science.arrays import Floats
from klscale.science.kl import KL, kl, nats2_per_bit_per_byte
from klscale.science.sequential import with_anytime_interval
from klscale.studies.precision import (
    FEWEST,
    GAUSSIAN,
    TYPICAL_KURTOSIS,
    crowding_of,
    look_times,
    next_look,
    relative_error,
)
from klscale.vectors.imports import read_log_likelihoods

REPEATS = 1000
EXAMPLE = Path(__file__).parent.parent / "examples" / "pile-trained-14.csv"


@dataclass(frozen=True)
class Source:
    """A distribution of differences with this variance and kurtosis; `draw` gives those of n texts."""

    draw: Callable[[np.random.Generator, int], Floats]
    variance: float
    kurtosis: float
    document: tuple[str, ...] | None = None
    """The document of each text, where texts share documents."""


def contaminated(share: float, times: float) -> Source:
    """A Gaussian; for a share of the texts its standard deviation is so many times as large."""
    variance = 1 - share + share * times**2

    def draw(generator: np.random.Generator, n: int) -> Floats:
        return np.where(generator.random(n) < share, times, 1.0) * generator.normal(size=n)

    return Source(draw, variance, 3 * (1 - share + share * times**4) / variance**2)


def of_documents(n_texts: int, size: int) -> Source:
    """A gamma-distributed scale for each document of `size` texts."""
    document = np.arange(n_texts) // size

    def draw(generator: np.random.Generator, n: int) -> Floats:
        return generator.gamma(1.5, size=n)[document] * generator.normal(size=n)

    return Source(draw, 3.75, 3 * 1.5 * 2.5 * 3.5 * 4.5 / 3.75**2, tuple(map(str, document)))


def of_example() -> Iterator[Source]:
    """Each pair of 14 real models, its texts drawn with replacement."""
    vectors = read_log_likelihoods(EXAMPLE, id_column="text_id")
    for a, b in combinations(vectors.log_likelihood, 2):
        d = (a - b)[~np.isnan(a - b)]
        d -= d.mean()
        m2, m4 = float((d**2).mean()), float((d**4).mean())
        yield Source(lambda generator, n, d=d: generator.choice(d, size=n), m2, m4 / m2**2)


SOURCES = {
    "Gaussian": Source(lambda g, n: g.normal(size=n), 1.0, 3.0),
    "Laplace": Source(lambda g, n: g.laplace(size=n), 2.0, 6.0),
    "variance-gamma": Source(lambda g, n: np.sqrt(g.gamma(3 / 7, 7 / 3, size=n)) * g.normal(size=n), 1.0, 10.0),
    "contaminated: 5 % of texts, 4 SD": contaminated(0.05, 4.0),
    "contaminated: 1 % of texts, 4 SD": contaminated(0.01, 4.0),
    "contaminated: 2 % of texts, 5 SD": contaminated(0.02, 5.0),
    "Student's t, 5 degrees": Source(lambda g, n: g.standard_t(5, size=n), 5 / 3, 9.0),
    "Student's t, 3 degrees": Source(lambda g, n: g.standard_t(3, size=n), 3.0, np.inf),
}


def simulate(source: Source, precision: float, n_texts: int, repeats: int = REPEATS) -> Floats:
    """For each repetition: texts / ideal, number of looks, whether each of three intervals covers, whether all texts
    were used."""
    generator = np.random.default_rng(1)
    sizes = np.ones(n_texts, dtype=np.int64)
    texts = TextSet("simulated", sizes, id="simulated", document=source.document)
    times, crowding, order = look_times(n_texts), crowding_of(texts), texts.random_order
    ideal = (source.kurtosis - 1) / precision**2
    true = source.variance / nats2_per_bit_per_byte(1.0)
    drawn = []
    for _ in range(repeats):
        d = source.draw(generator, n_texts)[order]

        def first(n: int, d: Floats = d) -> KL:
            return kl(d[:n], np.zeros(n), sizes[:n], documents=texts.documents_of(order[:n]))

        n, looks = next(time for time in times if time >= min(max(FEWEST, GAUSSIAN / precision**2), n_texts)), 1
        while relative_error(found := first(n)) > precision and n < n_texts:
            n, looks = next_look(found, n, precision, times, crowding), looks + 1
        sequence = with_anytime_interval(found, (TYPICAL_KURTOSIS - 1) / precision**2)
        intervals = [
            (found if n == n_texts else sequence).interval,
            found.interval,
            first(int(min(ideal, n_texts))).interval,
        ]
        drawn.append([n / ideal, looks, *(low <= true <= high for low, high in intervals), n == n_texts])
    return np.array(drawn, dtype=np.float64)


def row(name: str, kurtosis: float, found: Floats) -> str:
    ratio, looks, printed, usual, fixed, whole = found.T
    known = np.isfinite(kurtosis)
    texts = f"{np.median(ratio):.2f} | {np.quantile(ratio, 0.9):.2f} | {np.mean(ratio <= 1.5):.1%}" if known else "| |"
    return (
        f"| {name} | {kurtosis:.1f} | {texts} | {looks.mean():.1f} | {printed.mean():.1%} | {usual.mean():.1%} | "
        f"{fixed.mean():.1%} | {whole.mean():.0%} |"
    )


HEAD = """
| differences | kurtosis | texts / ideal: median | 90 % | at most 1.5 | looks | covers: printed | usual, stopped | \
usual, fixed | all texts used |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    print(f"{REPEATS} simulated comparisons a row.")
    for precision, n_texts in ((0.1, 10_000), (0.05, 10_000), (0.2, 10_000), (0.1, 500)):
        print(f"\n{precision:.0%}, {n_texts:,} texts{HEAD}")
        for name, source in SOURCES.items():
            print(row(name, source.kurtosis, simulate(source, precision, n_texts)), flush=True)
        shared = of_documents(n_texts, 5)
        print(row("5 texts a document, alike", shared.kurtosis, simulate(shared, precision, n_texts)), flush=True)
        real = [(source, simulate(source, precision, n_texts, REPEATS // 50)) for source in of_example()]
        low, middle, high = np.quantile([source.kurtosis for source, _ in real], [0, 0.5, 1])
        every = row("14 real models, all pairs", middle, np.concatenate([found for _, found in real]))
        print(every.replace(f"{middle:.1f}", f"{low:.1f} to {high:.1f}", 1), flush=True)


if __name__ == "__main__":
    main()
