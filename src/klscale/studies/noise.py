"""Run-to-run noise: KL between repeat runs of one model, by batches, order of texts, dtype and sums.

What it adds to the KL of two models is half the sum of their noise floors: see `Vectors.noise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.errors import InputError, KlscaleError, StorageError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats, Integers
from klscale.science.estimates import Estimate, cluster_codes, n_clusters, standard_error_of_mean
from klscale.science.kl import KL, kl, nats2_per_bit_per_byte
from klscale.sources.source import REPEAT_RUNS, ReaderOptions, Sources
from klscale.store.store import Store, vector_key
from klscale.sweep.score import score
from klscale.vectors.scores import Scores

STUDY_TEXTS = 500
"""Texts that a study reads at most."""
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Reading:
    """One way to read a model held against another, both in words. `kl` in bits per byte, with the text set's clip;
    `largest` is the largest difference of one text in nats, without it. Where the machine cannot read so, `kl` is None
    and `error` says why."""

    reading: str
    against: str
    kl: KL | None = None
    largest: float = np.nan
    error: KlscaleError | None = None


@dataclass(frozen=True)
class NoiseStudy:
    """How far the readings of one model lie apart, on `n_texts` texts.

    `half_precision` is the noise floor that keeping the sums of its texts in float16 makes by itself, by
    `half_precision_floor`; `is_half` says whether its values are such sums already. Without a model, of imported
    values, there is that alone. `error` says why there is nothing.
    """

    ref: ModelRef
    n_texts: int = 0
    device: str | None = None
    readings: tuple[Reading, ...] = ()
    half_precision: Estimate | None = None
    is_half: bool = False
    error: KlscaleError | None = None


def noise_study(
    refs: Sequence[str | ModelRef],
    texts: TextSet,
    store: Store,
    *,
    n_texts: int = STUDY_TEXTS,
    seed: int = 0,
    device: str | None = None,
    progress: Progress = SILENT,
) -> list[NoiseStudy]:
    """Read each model in float32, in batches of another shape, in another order of texts and both, in bfloat16 and in
    float16 (each against itself too), and with its float16 sums kept in half precision, as the published ones are.

    All on the same `n_texts` random texts that fit the model's window. Where these are all texts, the readings in three
    dtypes are vectors, and the store keeps them as `score` does; else it keeps the noise floors alone. Imported values
    have no model: for those there is the closed form of half-precision sums. Against itself a model is read with texts
    that leave no room for padding cut short, as for its noise floor. A model that fails is reported in its
    study, a dtype that this machine cannot run in its reading; the others go on. Raises InputError for fewer than two
    texts.
    """
    if n_texts < 2:
        raise InputError(f"{n_texts} texts have no variance.", remedy="Read two or more.")
    study = _Study(texts, store, n_texts, seed, device, progress, Sources(progress))
    return [study.of(ModelRef.parse(str(ref))) for ref in refs]


@dataclass(frozen=True)
class _Study:
    """What the studies of all models share."""

    texts: TextSet
    store: Store
    n_texts: int
    seed: int
    device: str | None
    progress: Progress
    sources: Sources

    def of(self, ref: ModelRef) -> NoiseStudy:
        try:
            return self._of_values(ref) if self.texts.external else self._of_model(ref)
        except StorageError:
            raise
        except KlscaleError as error:
            return NoiseStudy(ref, error=error)

    def _of_values(self, ref: ModelRef) -> NoiseStudy:
        row = self.store.vectors(self.texts).subset([ref]).log_likelihood[0]
        there = np.flatnonzero(~np.isnan(row))
        return NoiseStudy(ref, len(there), **self._half_precision(row[there], there))

    def _half_precision(self, values: Floats, chosen: Integers) -> dict[str, Any]:
        floor = half_precision_floor(
            values, self.texts.bytes[chosen], clip=self.texts.clip, documents=self.texts.documents_of(chosen)
        )
        return {"half_precision": floor, "is_half": bool((in_half_precision(values) == values).all())}

    def _of_model(self, ref: ModelRef) -> NoiseStudy:
        source = self.sources.of(ref)
        source.require(ref, REPEAT_RUNS)
        dtypes = source.dtypes or (ref.dtype,)  # a source without dtypes computes in one, its own
        if ref != (whole := replace(ref, dtype=dtypes[0], layer=None)):
            raise InputError(f"The noise of {ref} is that of {whole}, which is read in every dtype.", remedy=f"{whole}")
        variants = {dtype: replace(ref, dtype=dtype) for dtype in dtypes}
        scored: dict[ModelRef, Scores] = {}
        if len(self.texts) <= self.n_texts:
            refs = [*variants.values()]
            outcomes = score(refs, self.texts, self.store, device=self.device, progress=self.progress)
            # What the store had before may be another machine's.
            scored = {one.ref: self.store.scores(one.entry) for one in outcomes if one.entry and one.status == "scored"}
        self.progress.begin(f"reading {ref}", 2 + 2 * len(variants), "readings")
        first, readings, usual, device = dict[str, Scores](), list[Reading](), dtypes[0], None
        for dtype, variant in variants.items():
            try:
                first[dtype], own, ran_on = self._read(variant, scored.get(variant), every=dtype == usual)
            except StorageError:
                raise
            except KlscaleError as error:
                if dtype == usual:
                    raise
                readings.append(Reading(dtype, usual, error=error))
                continue
            device = device or ran_on
            if dtype != usual:
                readings.append(self._compare(dtype, first[dtype], usual, first[usual]))
            readings += own
        if "float16" in first:
            half = first["float16"]
            half = replace(half, log_likelihood=in_half_precision(half.log_likelihood))
            readings.append(self._compare("float16, sums in half precision", half, usual, first[usual]))
        base = first[usual]
        return NoiseStudy(
            ref, len(base), device, tuple(readings), **self._half_precision(base.log_likelihood, base.text)
        )

    def _read(self, ref: ModelRef, scored: Scores | None, *, every: bool) -> tuple[Scores, list[Reading], str]:
        """The usual run of a model; how far repeat runs are from it, of `every` kind or of the last one alone; and the
        device. The last kind is its noise floor, which the store keeps."""
        pinned = self.sources.pin(ref)
        reader = self.sources.open(pinned, ReaderOptions(device=self.device))
        fit = reader.fitting(self.texts)
        chosen = np.sort(np.random.default_rng(self.seed).permutation(fit)[: self.n_texts])
        if len(chosen) < 2:
            raise InputError(
                f"{len(chosen)} texts fit the window of {ref} ({reader.window:,} tokens).",
                remedy="Give shorter texts: `klscale texts build --max-bytes`.",
            )

        def advanced(found: Scores) -> Scores:
            self.progress.advance()
            return found

        first = scored or advanced(Scores.concatenate([*reader.score(self.texts, chosen)]))
        runs = reader.repeat_runs(self.texts, chosen)
        usual = advanced(runs.read()) if runs.cut else first
        ways = {"other batches": (True, False), "other order": (False, True)} if every else {}
        ways["other batches and order"] = (True, True)
        name = ref.dtype or reader.source.name
        found = [
            self._compare(f"{name}, {how}", advanced(runs.read(batches=batches, order=order)), name, usual, runs.bytes)
            for how, (batches, order) in ways.items()
        ]
        if (floor := found[-1].kl) is not None:
            key = vector_key(pinned.identity, ref, reader.convention(self.texts), reader.source.name)
            self.store.write_noise_floor(self.texts.id, key, floor)
        return first, found, reader.device

    def _compare(
        self, reading: str, again: Scores, against: str, first: Scores, text_bytes: Integers | None = None
    ) -> Reading:
        """KL between two runs on the same texts, of which `text_bytes` (n,) were read (None: all bytes)."""
        size = self.texts.bytes[first.text] if text_bytes is None else text_bytes
        found = kl(
            first.log_likelihood, again.log_likelihood, size, clip=self.texts.clip,
            documents=self.texts.documents_of(first.text),
        )  # fmt: skip
        return Reading(reading, against, found, float(np.abs(again.log_likelihood - first.log_likelihood).max()))


# ----------------------------------------------------------------------------------------------------- half precision


def in_half_precision(log_likelihood: Floats) -> Floats:
    """Log-likelihoods of texts (N,) in nats as float16 holds them: rounded to the nearest of its numbers. Raises
    InputError for one beyond its largest, 65,504."""
    if (beyond := np.abs(log_likelihood) > LARGEST_HALF).any():
        value = log_likelihood[beyond][0]
        raise InputError(f"{value:.6g} nats is no number of float16, whose largest is 65,504.")
    return log_likelihood.astype(np.float16).astype(np.float64)


def half_precision_floor(
    log_likelihood: Floats,
    text_bytes: Integers,
    *,
    clip: float | None = None,
    documents: Sequence[Any] | NDArray[Any] | None = None,
) -> Estimate:
    """The noise floor in bits per byte that keeping the sums of texts in half precision makes by itself.

    float16 has 10 bits after the first, so that a value x of `log_likelihood` (N,; nats) is rounded to a multiple of
    u = 2**(floor(log2 |x|) - 10), for |x| of at least 2**-14: by an error that is uniform from -u/2 to u/2, of variance
    u**2 / 12, where values spread over many u (the model of pseudo quantization noise: Widrow and Kollár, Quantization
    Noise, 2008). Two readings with independent errors differ by twice that variance, on average over texts; those below
    `clip` by nothing. One rounding of one model adds half of this, and so does each model of a pair. Raises InputError
    as `in_half_precision` does.
    """
    in_half_precision(log_likelihood)
    _, exponent = np.frexp(log_likelihood)  # one above floor(log2 |x|)
    unit = np.ldexp(1.0, np.maximum(exponent - 11, -24))
    kept = np.ones(len(unit), dtype=bool) if clip is None else log_likelihood >= clip
    variance = np.where(kept, 2 * unit**2 / 12, 0.0) / nats2_per_bit_per_byte(float(text_bytes.mean()))
    clusters = cluster_codes(documents)
    error = float(standard_error_of_mean(variance, clusters))
    return Estimate.normal(float(variance.mean()), error, len(variance), n_documents=n_clusters(clusters))
