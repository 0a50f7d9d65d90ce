"""Importance sampling of texts compared with uniform sampling: how well KL on a few texts estimates KL on all.

    python benchmarks/text_choice.py [klscale-demo]     # --quick: tests only that it runs

Oyama et al. (arXiv 2505.15428) draw texts with replacement, with probabilities from the log-likelihoods of a set of
models on all texts. There are two ways: length-squared, pi_s ∝ sum_i Q_is**2, and KL sampling,
pi_s ∝ (sum_ij (q_is - q_js)**4)**(1/2). A text has weight 1 / (m pi_s) each time that it is drawn. They are tested
pure, mixed half and half with uniform, and as this mixture without replacement. Every way of drawing has the same
number n of different texts (in expectation, with replacement), because the cost depends on it.

KL of each pair on the drawn texts is compared with its KL on all N. There are four kinds of pairs. Seen: both models
were used for the probabilities. New model: one was held out. New family: one is of a family that was held out as a
whole. Two new: both are of such a family. RMSE: relative, over draws and pairs, ± its jackknife error over held-out
models and over draws. Saved: 1 minus n over the number of texts that uniform drawing without replacement needs for the
same RMSE (its squared error is proportional to 1/n - 1/N); negative where it needs fewer. Cover: the share of 95 %
intervals from the drawn texts that hold KL on all texts (without replacement: with the finite population correction).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from klscale import read_log_likelihoods
from klscale.science.arrays import Floats, Integers
from klscale.science.estimates import critical_value, log_interval
from klscale.science.moments import double_centre
from klscale.store.store import Store
from klscale.vectors.vectors import Vectors

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "pile-trained-14.csv"
FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)
SHOWN = 0.3
MOST_PAIRS, MOST_BLOCKS = 400, 20
"""Of one hold-out; and hold-outs of one model each."""
BATCHES = 10
"""Of draws, for their part of the errors."""
WARM_UP = 40


@dataclass(frozen=True)
class Matrix:
    """Log-likelihoods `L` (K, N) in nats of models of these `families` (K,), and the lengths of the N texts where they
    have any."""

    name: str
    L: Floats
    families: Sequence[str]
    bytes: Integers | None = None


# -------------------------------------------------------------------------------------------------- ways of drawing


def uniform(L: Floats) -> Floats:
    return np.ones(L.shape[1])


def length_squared(L: Floats) -> Floats:
    return np.asarray((double_centre(L) ** 2).sum(axis=0))


def kl_sampling(L: Floats) -> Floats:
    s1, s2, s3, s4 = ((double_centre(L) ** k).sum(axis=0) for k in (1, 2, 3, 4))
    return np.asarray(np.sqrt(np.maximum(0.0, 2 * len(L) * s4 + 6 * s2**2 - 8 * s1 * s3)))


def half(importance: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    """Mixed half and half with uniform."""

    def mixed(L: Floats) -> Floats:
        weight = importance(L)
        return np.asarray(weight / weight.sum() + 1 / L.shape[1])

    return mixed


WAYS: dict[str, tuple[Callable[[Floats], Floats], bool]] = {
    # name: (what probabilities are proportional to, whether texts are replaced)
    "uniform, without replacement": (uniform, False),
    "uniform, with replacement": (uniform, True),
    "length-squared": (length_squared, True),
    "length-squared, half uniform": (half(length_squared), True),
    "KL sampling": (kl_sampling, True),
    "KL sampling, half uniform": (half(kl_sampling), True),
    "KL, half uniform, without replacement": (half(kl_sampling), False),
}
TODAY = next(iter(WAYS))


@dataclass(frozen=True)
class Drawn:
    """`texts` (n,) with a `weight` (n,), about 1 in sum. The variance of the weighted sum of values y is
    `factor` (squares @ y**2 - (products @ y)**2 / size)."""

    texts: NDArray[np.int64]
    weight: Floats
    squares: Floats
    products: Floats
    size: float
    factor: float


def replaced(importance: Floats, n: int, generator: np.random.Generator) -> Drawn:
    """Draws with replacement, with n different texts in expectation (Hansen and Hurwitz)."""
    probability, N = importance / importance.sum(), len(importance)
    m = round(brentq(lambda m: -np.expm1(m * np.log1p(-probability)).sum() - n, 1, 1000 * N))
    times = generator.multinomial(m, probability)
    texts = np.flatnonzero(times)
    weight = times[texts] / (N * m * probability[texts])
    return Drawn(texts, weight, weight**2 / times[texts], weight, m, m / (m - 1))


def unreplaced(importance: Floats, n: int, generator: np.random.Generator) -> Drawn:
    """n texts in random order at even steps of their cumulated probability of inclusion, weighted by its inverse. The
    variance is Hájek's for large entropy; with equal probabilities it is that of simple random sampling."""
    N, included = len(importance), np.zeros(len(importance))
    while True:  # texts with a probability of 1 or more are always drawn
        rest = included < 1
        included[rest] = importance[rest] * (n - N + rest.sum()) / importance[rest].sum()
        if included.max() <= 1 + 1e-12:
            break
        included = np.where(included >= 1, 1.0, 0.0)
    order = generator.permutation(N)
    hits = np.floor(np.cumsum(included[order]) + generator.random())
    texts = order[np.diff(hits, prepend=0.0) > 0]
    chance = np.minimum(included[texts], 1.0)
    weight, left = 1 / (N * chance), 1 - chance
    return Drawn(texts, weight, weight**2 * left, weight * left, left.sum(), len(texts) / (len(texts) - 1))


# ---------------------------------------------------------------------------------------------------------- measuring


HoldOut = tuple[list[int], list[tuple[int, int]]]
"""Models that are held out (none: seen), and pairs whose KL is estimated."""


@dataclass(frozen=True)
class Errors:
    """Means over the pairs and draws of each held-out model, (BATCHES, H): relative error, its square, coverage."""

    bias: Floats
    square: Floats
    cover: Floats


def measured(matrix: Matrix, way: str, n: int, hold_outs: Sequence[HoldOut], draws: int) -> Errors:
    importance, replace = WAYS[way]
    K = len(matrix.L)
    sums, counts = np.zeros((3, BATCHES, K)), np.zeros(K)
    for number, (held, pairs) in enumerate(hold_outs):
        generator = np.random.default_rng([number, n])
        i, j = np.array(pairs).T
        d = matrix.L[i] - matrix.L[j]
        exact, of_texts = d.var(axis=1), importance(np.delete(matrix.L, held, axis=0))
        found = np.zeros((3, BATCHES, len(pairs)))
        for batch in range(draws):
            drawn = (replaced if replace else unreplaced)(of_texts, n, generator)
            y = d[:, drawn.texts]
            y -= (y @ drawn.weight / drawn.weight.sum())[:, None]
            y *= y
            value, product = y @ drawn.weight, y @ drawn.products
            y *= y
            variance = drawn.factor * (y @ drawn.squares - product**2 / drawn.size)
            low, high = log_interval(value, np.sqrt(variance), critical_value())
            error = value / exact - 1
            found[:, batch % BATCHES] += [error, error**2, (low <= exact) & (exact <= high)]
        for pair, values in zip(pairs, (found / (draws / BATCHES)).transpose(2, 0, 1), strict=True):
            for model in {*pair} & {*(held or pair)}:
                sums[:, :, model] += values
                counts[model] += 1
    return Errors(*(sums[:, :, counts > 0] / counts[counts > 0]))


def hold_outs(matrix: Matrix) -> dict[str, list[HoldOut]]:
    generator, K = np.random.default_rng(0), len(matrix.L)

    def some(pairs: Iterator[tuple[int, int]] | list[tuple[int, int]]) -> list[tuple[int, int]]:
        listed = list(pairs)
        if len(listed) > MOST_PAIRS:
            listed = [listed[k] for k in np.sort(generator.choice(len(listed), MOST_PAIRS, replace=False))]
        return listed

    alone = np.sort(generator.permutation(K)[:MOST_BLOCKS]).tolist()
    families = [[k for k in range(K) if matrix.families[k] == name] for name in dict.fromkeys(matrix.families)]
    across = [(held, some([(h, j) for h in held for j in range(K) if j not in held])) for held in families]
    within = [(held, some(combinations(held, 2))) for held in families if len(held) > 1]
    return {
        "seen": [([], some(combinations(range(K), 2)))],
        "new model": [([h], [(h, j) for j in range(K) if j != h]) for h in alone],
        "new family": across,
        "two new": within,
    }


def jackknife(statistic: Callable[..., float], *of: Floats) -> tuple[float, float]:
    """A statistic of arrays (BATCHES, H), and its standard error over models and draws."""
    variance = 0.0
    for axis, n in enumerate(of[0].shape):
        left = [statistic(*(np.delete(array, k, axis) for array in of)) for k in range(n)]
        variance += (n - 1) * float(np.var(left))
    return statistic(*of), math.sqrt(variance)


def root_mean_square(square: Floats) -> float:
    return math.sqrt(square.mean())


def saved(errors: Errors, today: Errors, n: int, N: int) -> tuple[float, float]:
    """Share of texts saved, and its standard error."""

    def share(square: Floats, of_today: Floats) -> float:
        return 1 - n * (1 / N + float(square.mean() / of_today.mean()) * (1 / n - 1 / N))

    return jackknife(share, errors.square, today.square)


def report(matrix: Matrix, draws: int) -> None:
    N = matrix.L.shape[1]
    print(f"\n## {matrix.name}: {len(matrix.L)} models x {N:,} texts, {draws:,} draws\n")
    print(f"| n = {SHOWN:.0%} of N | drawn texts | RMSE, % | bias, % | saved, % | cover, % |\n{'|---' * 6}|")
    curves = dict[str, list[tuple[float, float]]]()
    for what, held in hold_outs(matrix).items():
        today = dict[float, Errors]()
        for way in WAYS:
            found = {f: measured(matrix, way, round(f * N), held, draws) for f in FRACTIONS}
            today = today or found
            shares = {f: saved(found[f], today[f], round(f * N), N) for f in FRACTIONS}
            at = found[SHOWN]
            rmse, cells = jackknife(root_mean_square, at.square), [what, way]
            cells += [percent(*rmse, decimals=1), f"{100 * at.bias.mean():+.1f}"]
            cells += ["" if found is today else percent(*shares[SHOWN]), f"{100 * at.cover.mean():.0f}"]
            print(f"| {' | '.join(cells)} |", flush=True)
            if found is not today:
                curves[f"{what}: {way}"] = [*shares.values()]
    print(f"\n| saved, % | {' | '.join(f'n = {f:.0%} of N' for f in FRACTIONS)} |\n{'|---' * (1 + len(FRACTIONS))}|")
    for name, row in curves.items():
        print(f"| {name} | {' | '.join(percent(*one) for one in row)} |")
    if matrix.bytes is not None:
        n, longer = round(SHOWN * N), list[str]()
        for way, (importance, replace) in WAYS.items():
            generator, of_texts = np.random.default_rng(0), importance(matrix.L)
            drawn = [(replaced if replace else unreplaced)(of_texts, n, generator).texts for _ in range(draws)]
            longer.append(f"{way} {matrix.bytes[np.concatenate(drawn)].mean() / matrix.bytes.mean() - 1:+.1%}")
        print(f"\nDrawn texts are longer than all are in the mean by: {'; '.join(longer)}.")


def percent(value: float, error: float, decimals: int = 0) -> str:
    return f"{100 * value:.{decimals}f} ± {100 * error:.{decimals}f}"


# --------------------------------------------------------------------------------------------------------------- data


def synthetic(name: str, own_tails: bool, K: int = 100, N: int = 10_000, n_families: int = 5) -> Matrix:
    """A factor model. Texts separate models by different amounts (Student's t with 5 degrees of freedom): the same
    texts for all models, or different texts for the models of each family."""
    generator = np.random.default_rng(0)
    family = np.arange(K) % n_families
    spread = np.sqrt(5 / generator.chisquare(5, size=(n_families, N)))
    spread = spread if own_tails else np.repeat(spread[:1], n_families, axis=0)
    factors = generator.normal(size=(K, 10)) + generator.normal(size=(n_families, 10))[family]
    L = -900 + spread[family] * (factors @ generator.normal(size=(10, N)) + generator.normal(size=(K, N)))
    return Matrix(name, L, [f"family {f}" for f in family])


def pocket(demo: Path) -> Iterator[Matrix]:
    """The models of `klscale demo` that are not quantized and past warm-up; and only their last checkpoints. A family
    has one size and architecture."""
    store = Store(demo / "store")
    whole = store.vectors(store.resolve_texts(None))
    rows = whole.attributes
    plain = [n for n, kind, step in zip(whole.names, rows["quantization"], rows["step"], strict=True)
             if kind is None and (step is None or step > WARM_UP)]  # fmt: skip

    def matrix(name: str, vectors: Vectors) -> Matrix:
        of = vectors.attributes
        families = [*map(str, zip(of["type"], of["parameters"], strict=True))]
        return Matrix(name, vectors.log_likelihood, families, vectors.texts.bytes)

    yield matrix("pocket suite, checkpoints", whole.subset(plain))
    last = max(step for step in rows["step"] if step is not None)
    yield matrix("pocket suite, last", whole.subset([n for n in plain if rows.loc[n, "step"] in (None, last)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", nargs="?", type=Path, help="what klscale demo has left")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="few draws, and small synthetic matrices")
    options = parser.parse_args()
    draws = BATCHES if options.quick else options.draws
    example = read_log_likelihoods(EXAMPLE)
    families = [*example.attributes["family"]]
    pile = Matrix("Pile-trained models", example.log_likelihood, families, example.texts.bytes)
    report(pile, draws if options.quick else 5 * draws)
    if options.demo:
        for matrix in pocket(options.demo):
            report(matrix, draws)
    small = {"K": 20, "N": 500} if options.quick else {}
    report(synthetic("synthetic, the same texts set all apart", False, **small), max(BATCHES, draws // 20))
    report(synthetic("synthetic, each family has such texts of its own", True, **small), max(BATCHES, draws // 20))


if __name__ == "__main__":
    main()
