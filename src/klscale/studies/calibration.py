"""Calibration: the estimate of KL from log-likelihoods, compared with exact KL of models that share a tokenizer.

Exact KL is the mean over texts of the sum over positions of KL(p_a(. | x_<t) || p_b(. | x_<t)) over the whole
vocabulary, in bits per byte (divided by B ln 2, without the 2 of the estimate). Over texts drawn from p_a it is
KL(p_a || p_b) of the text after its first token, by the chain rule. Over a text set it is the KL that llama.cpp
reports per token. The estimate Var(l_a - l_b) / (2 B ln 2) (Oyama et al., arXiv 2502.16173) differs from it for three
reasons: it is of second order, it is symmetric, and the texts are from neither model. Drawn texts remove the last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from klscale.errors import InputError, KlscaleError, StorageError, nearest
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats, Integers
from klscale.science.bootstrap import RESAMPLES, estimate_from_resamples, text_draws
from klscale.science.clip import common_texts
from klscale.science.estimates import Estimate, cluster_codes, n_clusters, standard_error_of_mean
from klscale.science.kl import KL, bits_per_byte, kl
from klscale.sources.source import NEXT_TOKENS, NextTokens, Reader, ReaderOptions, Sources, require_one_tokenizer
from klscale.sources.tokens import Tokens, decoded_bytes
from klscale.store.store import Entry, Store
from klscale.vectors.vectors import Vectors

N_TEXTS = 500
"""Largest number of texts for exact KL."""
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
"""Quantiles of the KL of single tokens."""
TOP = (0.0, 0.1, 0.5, 0.9, 1.0)
"""Limits of the buckets of positions: by the probability that the first model gives to its most probable token."""


@dataclass(frozen=True)
class Drawn:
    """A pair of models on texts drawn from one of them, in bits per byte.

    `exact` is KL from that model to the other, with its Monte Carlo standard error. `estimate` is the variance estimate
    on the same texts, and `ratio` is estimate / exact, a pure number.
    """

    exact: Estimate
    estimate: KL
    ratio: Estimate


@dataclass(frozen=True)
class Bucket:
    """Positions where the most probable token of a has a probability above `low`, up to `high`: their `share` of all,
    the `mean` KL(p_a || p_b) in nats, and the share of them with the same most probable token, `same_top`. NaN where
    there are none."""

    low: float
    high: float
    share: Estimate
    mean: Estimate
    same_top: Estimate


@dataclass(frozen=True)
class PerToken:
    """KL(p_a || p_b) of single next tokens in nats: `mean`, quantiles (those of `QUANTILES`) and `maximum`. `same_top`
    is the fraction of positions where both models have the same most probable token. `by_top` has a bucket for each of
    the ranges of `TOP`."""

    mean: Estimate
    quantiles: tuple[Estimate, ...]
    maximum: float
    same_top: Estimate
    n_tokens: int
    by_top: tuple[Bucket, ...]


@dataclass(frozen=True, eq=False)
class Sums:
    """The measured sums of a pair, in nats over the scored tokens of each of n texts of the set; they are kept.

    `text` (n,) are the positions of the texts. `forward` and `backward` (n,) sum the KL of next tokens; `same_top` (n,)
    counts tokens. Three arrays (2, n) belong to the texts drawn from a and from b: `drawn_bytes`, `drawn_exact` (KL
    from the model that they were drawn from to the other) and `drawn_difference` (log-likelihood under a minus under
    b). `quantiles` (Q,) and `maximum` are of the forward KL of single tokens; `resampled_quantiles` (Q, R) are its
    quantiles in R bootstrap samples of the texts. Of the positions in each bucket of `TOP`, `by_top` (3, B, n) holds
    their number, their `forward` and their `same_top`.
    """

    text: Integers
    n_tokens: Integers
    forward: Floats
    backward: Floats
    same_top: Floats
    drawn_bytes: Integers
    drawn_exact: Floats
    drawn_difference: Floats
    quantiles: Floats
    resampled_quantiles: Floats
    by_top: Floats
    maximum: float
    left_out: float
    n_available: int

    def record(self) -> dict[str, Any]:
        """The fields as numbers and lists, for JSON."""
        return {name: np.asarray(value).tolist() for name, value in vars(self).items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Sums:
        """The sums from their `record`. Raises KeyError, TypeError or ValueError where it is something else."""
        values: dict[str, Any] = {entry.name: record[entry.name] for entry in fields(cls)}
        values |= {name: np.array(value) for name, value in values.items() if isinstance(value, list)}
        if any(np.asarray(value).dtype.kind not in "if" for value in values.values()):
            raise TypeError("not numbers")
        return cls(**values)


@dataclass(frozen=True)
class Calibration:
    """Estimated and exact KL of models `a` and `b`, in bits per byte.

    Exact KL is computed on `n_texts` texts. They are drawn with `seed` from the `n_available` texts that both models
    have and that fit their windows. `forward` is exact KL(a || b), `backward` KL(b || a), and `symmetrised` their mean.
    `estimate` uses the same texts, `estimate_all` all common texts. `ratio` is the unclipped estimate over
    `symmetrised`, a pure number.

    `from_a` and `from_b` are the comparison on as many texts drawn from each model; `drawn` is the mean of their exact
    values. `left_out` is the largest probability that either model gives to token ids that the other does not have.
    Standard errors are over texts, clustered by document; that of `ratio` is by the delta method, paired.
    """

    a: str
    b: str
    n_texts: int
    n_available: int
    seed: int
    estimate: KL
    estimate_all: KL
    forward: Estimate
    backward: Estimate
    symmetrised: Estimate
    ratio: Estimate
    from_a: Drawn
    from_b: Drawn
    drawn: Estimate
    per_token: PerToken
    left_out: float
    sums: Sums = field(repr=False, compare=False)
    """The sums of each text behind these values: a subset of them gives the calibration on a subset of the texts."""


def calibrate(
    pairs: Iterable[tuple[str | ModelRef, str | ModelRef]],
    texts: TextSet,
    store: Store,
    *,
    n_texts: int = N_TEXTS,
    seed: int = 0,
    device: str | None = None,
    batch_tokens: int | None = None,
    progress: Progress = SILENT,
) -> list[Calibration]:
    """Estimated and exact KL of each pair of models in bits per byte, on at most `n_texts` of the texts and on as many
    drawn from each model.

    The store has the vectors of the models on `texts`, and their files are present. At most two models are in memory at
    a time; each is sampled once. The store keeps a finished pair, and it is not computed again.

    `progress` notes a pair that cannot be compared; where no pair can be, the first error is raised. Raises InputError
    for a model without a vector, or of another convention than the others, and for texts that are not present.
    """
    names = [(str(a), str(b)) for a, b in pairs]
    if texts.external:
        what = f"The texts of {texts.name} are not here, only their log-likelihoods."
        raise InputError(what, remedy="Exact KL needs the texts: score the models on a text set.")
    if n_texts < 2:
        raise InputError(
            f"{n_texts} texts are too few.", remedy="A standard error needs two texts, a good one hundreds."
        )
    entries = store.newest(texts.id)
    used = list(dict.fromkeys(sum(names, ())))
    if missing := [name for name in used if name not in entries]:
        raise InputError(
            f"No vector of {missing[0]} on {texts.name}.", nearest(missing[0], entries), f"klscale score {missing[0]}"
        )
    vectors = store.vectors(texts, [entries[name] for name in used])
    vectors.require_one_convention()
    bench = _Bench(texts, store, n_texts, seed, device, batch_tokens, progress, keep=len(names) > 1)
    progress.begin("exact KL", len(names), "pairs")
    found, problems = [], list[KlscaleError]()
    for n, (a, b) in enumerate(names):
        progress.now(f"exact KL of {a} and {b} ({n + 1} of {len(names)})")
        pair = vectors.subset([a, b])
        try:
            sums = bench.sums(entries[a], entries[b], pair)
        except StorageError:
            raise
        except KlscaleError as problem:
            problems.append(problem)
        else:
            found.append(calibration(pair, sums, seed))
        progress.advance(n + 1 - progress.done)
    if problems and not found:
        raise problems[0]
    for left_out in problems:
        progress.note(str(left_out))
    return found


def calibration(pair: Vectors, sums: Sums, seed: int = 0) -> Calibration:
    """The calibration of the estimate from the vectors of a `pair` of models, by the pair's sums."""
    texts = pair.texts
    size, documents = texts.bytes[sums.text], texts.documents_of(sums.text)
    clusters = cluster_codes(documents)
    rows, both = pair.log_likelihood[:, sums.text], (sums.forward + sums.backward) / 2

    def exact(nats: Floats, over: Integers = size) -> Estimate:
        return bits_per_byte(-nats, over, documents=documents)

    def drawn(n: int) -> Drawn:
        difference, nats, over = sums.drawn_difference[n], sums.drawn_exact[n], sums.drawn_bytes[n]
        estimate = kl(difference, 0 * difference, over, documents=documents)
        return Drawn(exact(nats, over), estimate, ratio(difference, nats, documents))

    def per_token(counted: Floats, unit: str) -> Estimate:
        return Estimate.ratio(counted, sums.n_tokens, clusters, unit=unit, on_log_scale=False)

    def bucket(b: int) -> Bucket:
        n, forward, same = sums.by_top[:, b]
        there = n > 0

        def over(values: Floats, unit: str) -> Estimate:
            if there.sum() < 2:
                return Estimate.unknown(int(there.sum()), unit)
            some = cluster_codes(documents, there)
            return Estimate.ratio(values[there], n[there], some, unit=unit, on_log_scale=False)

        return Bucket(TOP[b], TOP[b + 1], per_token(n, ""), over(forward, "nats/token"), over(same, ""))

    def quantile(value: float, resampled: Floats) -> Estimate:
        return estimate_from_resamples(value, resampled, len(size), documents=documents, unit="nats/token")

    from_a, from_b = drawn(0), drawn(1)
    return Calibration(
        a=pair.names[0],
        b=pair.names[1],
        n_texts=len(sums.text),
        n_available=sums.n_available,
        seed=seed,
        estimate=kl(rows[0], rows[1], size, clip=texts.clip, documents=documents),
        estimate_all=pair.kl()[0, 1],
        forward=exact(sums.forward),
        backward=exact(sums.backward),
        symmetrised=exact(both),
        ratio=ratio(rows[0] - rows[1], both, documents),
        from_a=from_a,
        from_b=from_b,
        drawn=_mean_of_both(from_a.exact, from_b.exact, documents),
        per_token=PerToken(
            mean=per_token(sums.forward, "nats/token"),
            quantiles=tuple(map(quantile, sums.quantiles, sums.resampled_quantiles)),
            maximum=sums.maximum,
            same_top=per_token(sums.same_top, ""),
            n_tokens=int(sums.n_tokens.sum()),
            by_top=tuple(map(bucket, range(len(TOP) - 1))),
        ),
        left_out=sums.left_out,
        sums=sums,
    )


def ratio(difference: Floats, nats: Floats, documents: Any = None) -> Estimate:
    """Estimated over exact KL of the same texts, a pure number: (Var_s(d) / 2) / mean_s(k).

    `difference` d (n,) is that of log-likelihoods, and `nats` k (n,) is exact KL, both in nats a text. The standard
    error is by the delta method, paired over texts; the interval is on the log scale. NaN for equal models.
    """
    squares = (difference - difference.mean()) ** 2 / 2
    if not (squares.any() and nats.any()):
        return Estimate.unknown(len(nats), "")
    value = float(squares.mean() / nats.mean())
    clusters = cluster_codes(documents)
    relative = standard_error_of_mean(squares / squares.mean() - nats / nats.mean(), clusters)
    error = float(value * relative)
    return Estimate.positive(value, error, len(nats), n_documents=n_clusters(clusters), unit="")


def _mean_of_both(a: Estimate, b: Estimate, documents: Any) -> Estimate:
    """The mean of two estimates from independent texts, in bits per byte."""
    error = math.hypot(a.standard_error, b.standard_error) / 2
    n_documents = n_clusters(cluster_codes(documents))
    return Estimate.positive((a.value + b.value) / 2, error, a.n_texts, n_documents=n_documents)


# ---------------------------------------------------------------------------------------------------------- measuring


class _Bench:
    """The two models that are compared, and the texts drawn from each model so far."""

    def __init__(
        self, texts: TextSet, store: Store, n_texts: int, seed: int, device: str | None, batch_tokens: int | None,
        progress: Progress, keep: bool,
    ) -> None:  # fmt: skip
        self.keep = keep
        self.texts, self.store, self.n_texts, self.seed, self.progress = texts, store, n_texts, seed, progress
        self.sources, self.options = Sources(progress), ReaderOptions(device, batch_tokens)
        self.readers: dict[str, Reader] = {}
        self.drawn: dict[tuple[str, bytes, int], Tokens] = {}

    def sums(self, a: Entry, b: Entry, pair: Vectors) -> Sums:
        """The sums of a pair: from the store, or measured and then kept."""
        what = json.dumps([a.key, b.key, self.n_texts, self.seed])
        key = hashlib.sha256(what.encode()).hexdigest()[:12]
        if (kept := self.store.exact(self.texts.id, key)) is not None:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                return Sums.of(kept)
        found = self._measure(a, b, pair)
        self.store.write_exact(self.texts.id, key, {"a": str(a.ref), "b": str(b.ref), **found.record()})
        return found

    def _measure(self, a: Entry, b: Entry, pair: Vectors) -> Sums:
        first, second = readers = self._readers(a, b)
        require_one_tokenizer(first, second)
        tokens = first.tokens(self.texts)
        text, n_available = self._chosen(tokens, pair)

        def advance(done: int) -> None:
            self.progress.advance(done / (5 * len(text)))  # three comparisons, two models to draw from

        def per_text(which: Integers, values: Any) -> Floats:
            return np.bincount(which, values, len(text)).astype(np.float64)

        n_ids = min(reader.n_vocabulary for reader in readers)
        there = first.compare_next_tokens(second, tokens, text, advance, keep=self.keep)
        which = np.searchsorted(text, there.text)
        drawn_bytes, drawn_exact, drawn_difference = [], list[Floats](), list[Floats]()
        for n, (entry, reader) in enumerate(zip((a, b), readers, strict=True)):
            drawn = self._draw(entry, reader, tokens, text, n_ids, advance)
            along = first.compare_next_tokens(second, drawn, range(len(text)), advance, keep=self.keep)
            drawn_bytes.append(decoded_bytes(reader.decode(drawn)))
            drawn_exact.append(per_text(along.text, (along.forward, along.backward)[n]))
            drawn_difference.append(per_text(along.text, np.subtract(*along.log_likelihood)))
        draws = text_draws(len(text), self.texts.documents_of(text), resamples=RESAMPLES)
        quantiles = weighted_quantiles(there.forward, which, np.vstack([np.ones(len(text)), draws]))
        return Sums(
            text=text,
            n_tokens=np.bincount(which),
            forward=per_text(which, there.forward),
            backward=per_text(which, there.backward),
            same_top=per_text(which, there.same_top),
            drawn_bytes=np.stack(drawn_bytes),
            drawn_exact=np.stack(drawn_exact),
            drawn_difference=np.stack(drawn_difference),
            quantiles=quantiles[:, 0],
            resampled_quantiles=quantiles[:, 1:],
            by_top=_by_top(there, which, len(text)),
            maximum=float(there.forward.max()),
            left_out=there.left_out,
            n_available=n_available,
        )

    def _readers(self, a: Entry, b: Entry) -> tuple[Reader, Reader]:
        """Both models, opened if they are not yet; no third is kept open."""
        self.readers = {entry.key: self.readers[entry.key] for entry in (a, b) if entry.key in self.readers}
        for entry in (a, b):
            if entry.key in self.readers:
                continue
            self.sources.of(entry.ref).require(entry.ref, NEXT_TOKENS)
            pinned = self.sources.pin(entry.ref)
            if pinned.identity != entry.metadata.get("identity"):
                raise InputError(
                    f"{entry.ref} is not the model whose vector the store has.",
                    "Its files have changed since, or the vector came from elsewhere.",
                    f"klscale score {entry.ref}",
                )
            self.readers[entry.key] = self.sources.open(pinned, self.options)
        return self.readers[a.key], self.readers[b.key]

    def _chosen(self, tokens: Tokens, pair: Vectors) -> tuple[Integers, int]:
        """Positions of the texts for exact KL, and the number of texts to choose from: those that both vectors have,
        with two tokens or more, that fit both windows. Of more than `n_texts`, a random subset."""
        window = min(reader.window or np.inf for reader in self.readers.values())
        fit = (tokens.lengths > 1) & (tokens.lengths <= window) & common_texts(pair.log_likelihood)
        order = np.random.default_rng(self.seed).permutation(len(fit))
        chosen = order[fit[order]][: self.n_texts]
        if len(chosen) < 2:
            raise InputError(
                f"{' and '.join(pair.names)} have fewer than two texts in common that fit their windows.",
                remedy="Use shorter texts, or score both on the same ones.",
            )
        return np.sort(chosen), int(fit.sum())

    def _draw(
        self, entry: Entry, reader: Reader, tokens: Tokens, text: Integers, n_ids: int, advance: Callable[[int], None]
    ) -> Tokens:
        """Texts drawn from a model, one for each of these `text`; drawn once, then kept in memory."""
        key = entry.key, text.tobytes(), n_ids
        if key not in self.drawn:
            # Another seed for every model: with one seed, texts drawn from two similar models would be almost equal.
            seed = int(hashlib.sha256(f"{entry.key} {self.seed}".encode()).hexdigest()[:12], 16)
            self.drawn[key] = reader.sample(tokens, text, seed, n_ids, lambda *_: advance(1))
        return self.drawn[key]


def _by_top(there: NextTokens, which: Integers, n_texts: int) -> Floats:
    """`Sums.by_top` of all positions, whose texts are `which` (T,)."""
    bucket, B = np.searchsorted(TOP[1:-1], there.top), len(TOP) - 1
    place = bucket * n_texts + which
    counted = (None, there.forward, there.same_top)
    return np.stack([np.bincount(place, one, B * n_texts).reshape(B, n_texts) for one in counted]).astype(np.float64)


def weighted_quantiles(values: Floats, text: Integers, draws: Floats) -> Floats:
    """QUANTILES (Q, R) of T values; each counts as often as a row of `draws` (R, n) draws its `text` (T,)."""
    order = np.argsort(values)
    values, text = values[order], text[order]
    found = np.empty((len(QUANTILES), len(draws)))
    for r, drawn in enumerate(draws):
        total = np.cumsum(drawn[text])
        found[:, r] = values[np.searchsorted(total, np.array(QUANTILES) * total[-1])]
    return found
