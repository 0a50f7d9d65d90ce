"""The directional exponent of a checkpoint: how fast log-likelihoods move as its weights move along one direction.

    ‖f(W + eps delta) - f(W)‖ ∝ |eps|**a          f(W): the log-likelihood vector; ‖.‖**2: KL in bits per byte

Along a training run, the effective Hölder exponent of f is alpha = c_q / c_w (Kishino et al., arXiv 2505.15353, remark
on alpha). The exponent a is independent of the run: it is 1 where f is smooth, however rough the run was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from klscale.errors import InputError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science import diffusion
from klscale.science.arrays import Floats
from klscale.science.bootstrap import RESAMPLES, estimate_from_resamples, text_draws
from klscale.science.clip import clip_for_all
from klscale.science.estimates import Estimate
from klscale.science.kl import KL, kl, kl_pairs
from klscale.sources.source import WEIGHTS, Reader, ReaderOptions, Sources
from klscale.vectors.scores import Scores

if TYPE_CHECKING:
    from torch import Tensor

SCALES = tuple(2.0**k for k in range(-8, 1))

RANDOM_STEP = 0.01
"""Norm of a random direction in each tensor, as a fraction of the norm of the tensor's weights."""

CLEAR = 10.0
"""A scale is not fitted if its KL is below this multiple of the run-to-run noise: the noise would add more than 5 % to
the root of KL."""

LOST = 0.1
"""A scale is not fitted if rounding to float32 changes the step by more than this fraction of its norm. The rounding is
itself a random step. At this limit it adds a hundredth of the KL, if f is equally smooth in all directions."""


@dataclass(frozen=True, eq=False)
class Directional:
    """KL from a checkpoint along a direction, at E `scales` of the direction, in bits per byte.

    `kl` (E,) is between the checkpoint and the checkpoint moved by each scale. `noise_floor` is between a run and a
    repeat run, in batches of different shapes. `lost` (E,) is the norm of the rounding to float32, as a fraction of the
    step's norm. `used` (E,) marks the scales that are fitted: KL is at least 10 times the run-to-run noise, and at most
    a tenth of the step is lost.

    `exponent` is the slope of ln sqrt(KL) on ln(scale) over the used scales, NaN for fewer than three. `local_slopes`
    (E - 1,) are between neighbouring scales; they show whether one exponent describes all. Standard errors are over
    texts.
    """

    ref: ModelRef
    towards: ModelRef | None
    scales: Floats
    kl: tuple[KL, ...]
    noise_floor: KL
    lost: Floats
    used: NDArray[np.bool_]
    exponent: Estimate
    r_squared: float
    local_slopes: tuple[Estimate, ...]


def directional_exponent(
    ref: ModelRef,
    texts: TextSet,
    *,
    towards: ModelRef | None = None,
    seed: int = 0,
    scales: Sequence[float] = SCALES,
    device: str | None = None,
    progress: Progress = SILENT,
) -> Directional:
    """The directional exponent, from scores of a checkpoint with its weights moved by each of `scales` times a
    direction.

    With `towards`, another checkpoint of the run, the direction is from `ref` to it; scale 1 reaches it. Without, it is
    Gaussian from `seed`; in each tensor its norm is 1 % of the norm of the weights. Copies of weights and direction are
    in the memory of the CPU. The text set's clip is used where it serves every run.

    Raises InputError for scales that do not ascend from above 0, and for a reference that is not a whole float32 model;
    for a `towards` with other parameters or with equal values, and for texts that cannot be scored. Raises
    KlscaleError as scoring does.
    """
    eps = np.array(scales, dtype=np.float64)
    if not (eps.size and np.isfinite(eps).all() and eps[0] > 0 and (np.diff(eps) > 0).all()):
        raise InputError(f"Scales {list(scales)} do not ascend from above 0.", remedy="Use 2**-8, ..., 1/2, 1, say.")
    if texts.external:
        raise InputError(f"{texts.name} has no texts to score on, only imported values.")
    sources, every = Sources(progress), np.arange(len(texts))
    reader, weights = _open(ref, sources, device)
    start = _copy(weights)
    direction = _random_step(start, seed) if towards is None else _step(ref, start, towards, sources, device)
    progress.begin(f"moving {ref}", len(eps) + 2, "runs")

    def advanced(scores: Scores) -> Floats:
        progress.advance()
        return scores.log_likelihood

    here = advanced(Scores.concatenate([*reader.score(texts, every)]))
    again = advanced(reader.repeat_runs(texts, every, padded=False).read(batches=True))
    lost, moved = [], []
    for scale in eps:
        lost.append(_move(reader.weights(), start, direction, float(scale)))
        moved.append(advanced(Scores.concatenate([*reader.score(texts, every)])))
    return _measured(ref, towards, texts, eps, np.stack([here, again, *moved]), np.array(lost))


def _measured(
    ref: ModelRef, towards: ModelRef | None, texts: TextSet, scales: Floats, readings: Floats, lost: Floats
) -> Directional:
    """The result from log-likelihoods `readings` (E + 2, N; nats): the checkpoint, its repeat run, and each scale."""
    clip = clip_for_all(readings, texts.clip)
    noise_floor, *moved = (
        kl(readings[0], row, texts.bytes, clip=clip, documents=texts.document) for row in readings[1:]
    )
    value = np.array([one.value for one in moved])
    used = (value >= CLEAR * noise_floor.value) & (value > 0) & (lost <= LOST)
    pairs = np.array([(0, place) for place in range(2, len(readings))])
    draws = text_draws(len(texts), texts.document, resamples=RESAMPLES)
    resampled = kl_pairs(readings, texts.bytes, pairs, clip=clip, draws=draws)["resampled"].T

    x = np.log(scales)
    y, resampled_y = (diffusion.log_distance(np.where(used, distance, np.nan)) / 2 for distance in (value, resampled))
    slope, _, r_squared = diffusion.line(x, y)

    def estimate(value: Floats, resampled: Floats) -> Estimate:
        return estimate_from_resamples(float(value), resampled, len(texts), documents=texts.document, unit="")

    local, resampled_local = np.diff(y) / np.diff(x), np.diff(resampled_y) / np.diff(x)
    return Directional(
        ref=ref,
        towards=towards,
        scales=scales,
        kl=tuple(moved),
        noise_floor=noise_floor,
        lost=lost,
        used=used,
        exponent=estimate(slope, diffusion.line(x, resampled_y)[0]),
        r_squared=float(r_squared),
        local_slopes=tuple(map(estimate, local, resampled_local.T)),
    )


# ------------------------------------------------------------------------------------------------------------- weights


def _open(ref: ModelRef, sources: Sources, device: str | None) -> tuple[Reader, Mapping[str, Tensor]]:
    """A reader of a model whose weights can be moved, and these weights."""
    sources.of(ref).require(ref, WEIGHTS)
    whole = replace(ref, dtype="float32", quantization=None, layer=None)
    if ref != whole:
        raise InputError(f"{ref} cannot be moved by small steps.", "They vanish in coarser weights.", f"Give {whole}.")
    reader = sources.open(sources.pin(ref), ReaderOptions(device))
    return reader, reader.weights()


def _copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of the weights on the CPU; tied weights once."""
    return {name: values.detach().cpu().clone() for name, values in weights.items()}


def _random_step(start: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A Gaussian step; in each tensor its norm is RANDOM_STEP times that of the weights."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    step = {}
    for name, weights in start.items():
        drawn = torch.randn(weights.shape, generator=generator)
        step[name] = drawn * (RANDOM_STEP * weights.norm() / drawn.norm())
    return step


def _step(
    ref: ModelRef, start: dict[str, Tensor], towards: ModelRef, sources: Sources, device: str | None
) -> dict[str, Tensor]:
    """The step from the weights of `ref` to those of `towards`."""
    end = _copy(_open(towards, sources, device)[1])
    for name in sorted(start.keys() | end.keys()):
        here, there = (tuple(side[name].shape) if name in side else "missing" for side in (start, end))
        if here != there:
            why = f"{name} is {there} there, and {here} in {ref}."
            raise InputError(f"{towards} has other parameters than {ref}.", why, "Give a checkpoint of the same run.")
    step = {name: end[name] - weights for name, weights in start.items()}
    if not any(part.any() for part in step.values()):
        raise InputError(f"{towards} has the weights of {ref}.", "There is no direction from one to the other.")
    return step


def _move(weights: Mapping[str, Tensor], start: dict[str, Tensor], direction: dict[str, Tensor], scale: float) -> float:
    """Set the weights to `start` plus `scale` times the direction. Returns the norm of the rounding, as a fraction of
    the step's norm."""
    import torch

    squares = lost = 0.0
    with torch.no_grad():
        for name, values in weights.items():
            step = scale * direction[name].double()
            exact = start[name].double() + step
            moved = exact.float()
            values.copy_(moved)
            squares += float(step.square().sum())
            lost += float((moved.double() - exact).square().sum())
    return math.sqrt(lost / squares)
