"""Run-to-run noise: KL between repeat runs of one model, by batches, order of texts, dtype and sums.

It adds half the sum of both models' run-to-run noise to their KL: see `Vectors.noise`.
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
"""Largest number of texts of a study."""
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Reading:
    """KL in bits per byte between two runs of one model, `reading` and `against`, both in words.

    `kl` uses the text set's clip. `largest` is the largest difference of one text in nats, without the clip. Where the
    machine cannot run the model so, `kl` is None and `error` says why.
    """

    reading: str
    against: str
    kl: KL | None = None
    largest: float = np.nan
    error: KlscaleError | None = None


@dataclass(frozen=True)
class NoiseStudy:
    """Run-to-run noise of one model in bits per byte, on `n_texts` texts.

    `readings` are the repeat runs. `half_precision` is the noise from float16 sums alone, by `half_precision_floor`;
    `is_half` says whether the values are such sums already. Imported values without a model have only these two.
    `error` says why a study has no values.
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
    """Run-to-run noise of each model in bits per byte: KL between runs on the same `n_texts` random texts that fit its
    window.

    A model is run in float32; with batches of another shape, another order of texts, and both; and in bfloat16 and
    float16, each also with a repeat run. Last, its float16 sums are rounded to half precision, as the published values
    are. In repeat runs, texts that leave no room for padding are cut short. Imported values have no model: for them the
    noise of half-precision sums is computed in closed form.

    If `n_texts` covers all texts, the runs in three dtypes are vectors, and the store keeps them as `score` does; else
    it keeps only the run-to-run noise. The study of a model that fails has an error, and so has the reading of a dtype
    that this machine cannot run; the others go on. Raises InputError for fewer than two texts.
    """
    if n_texts < 2:
        raise InputError(f"{n_texts} texts have no variance.", remedy="Use two or more.")
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
        found = self.store.scores(self.store.newest_of(str(ref), self.texts))
        return NoiseStudy(ref, len(found), **self._half_precision(found.log_likelihood, found.text))

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
            raise InputError(f"The noise of {ref} is that of {whole}, which is run in every dtype.", remedy=f"{whole}")
        variants = {dtype: replace(ref, dtype=dtype) for dtype in dtypes}
        scored: dict[ModelRef, Scores] = {}
        if len(self.texts) <= self.n_texts:
            refs = [*variants.values()]
            outcomes = score(refs, self.texts, self.store, device=self.device, progress=self.progress)
            # Vectors that the store had before may come from another machine.
            scored = {one.ref: self.store.scores(one.entry) for one in outcomes if one.entry and one.status == "scored"}
        self.progress.begin(f"repeat runs of {ref}", 2 + 2 * len(variants), "runs")
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
        """The usual run of a model, its KL to repeat runs of `every` kind or of the last kind only, and the device. The
        store keeps the last as the model's run-to-run noise."""
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
        """KL in bits per byte between two runs that read `text_bytes` (n,) of the same texts (None: all bytes)."""
        size = self.texts.bytes[first.text] if text_bytes is None else text_bytes
        found = kl(
            first.log_likelihood, again.log_likelihood, size, clip=self.texts.clip,
            documents=self.texts.documents_of(first.text),
        )  # fmt: skip
        return Reading(reading, against, found, float(np.abs(again.log_likelihood - first.log_likelihood).max()))


# ----------------------------------------------------------------------------------------------------- half precision


def in_half_precision(log_likelihood: Floats) -> Floats:
    """Log-likelihoods of texts (N,) in nats, rounded to float16. Raises InputError beyond its largest number,
    65,504."""
    if (beyond := np.abs(log_likelihood) > LARGEST_HALF).any():
        value = log_likelihood[beyond][0]
        raise InputError(f"{value:.6g} nats is no number of float16: its largest is 65,504.")
    return log_likelihood.astype(np.float16).astype(np.float64)


def half_precision_floor(
    log_likelihood: Floats,
    text_bytes: Integers,
    *,
    clip: float | None = None,
    documents: Sequence[Any] | NDArray[Any] | None = None,
) -> Estimate:
    """Run-to-run noise in bits per byte from rounding the sums of texts to half precision alone.

    float16 has 10 bits after the first. A value x of `log_likelihood` (N,; nats) is rounded to a multiple of
    u = 2**(floor(log2 |x|) - 10), for |x| of at least 2**-14. Where values spread over many u, the error is uniform
    from -u/2 to u/2 and has variance u**2 / 12 (the model of pseudo quantization noise: Widrow and Kollár, Quantization
    Noise, 2008).

    The difference of two runs with independent errors has twice that variance, on average over texts; it is 0 for texts
    below `clip`. One rounding of one model adds half of this, and so does each model of a pair. Raises InputError as
    `in_half_precision` does.
    """
    in_half_precision(log_likelihood)
    _, exponent = np.frexp(log_likelihood)  # one above floor(log2 |x|)
    unit = np.ldexp(1.0, np.maximum(exponent - 11, -24))
    kept = np.ones(len(unit), dtype=bool) if clip is None else log_likelihood >= clip
    variance = np.where(kept, 2 * unit**2 / 12, 0.0) / nats2_per_bit_per_byte(float(text_bytes.mean()))
    clusters = cluster_codes(documents)
    error = float(standard_error_of_mean(variance, clusters)) if np.ptp(variance) else 0.0  # not that of rounding
    return Estimate.normal(float(variance.mean()), error, len(variance), n_documents=n_clusters(clusters))
