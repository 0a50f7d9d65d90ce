"""The directional exponent: against models saved with the moved weights, and where the map is known to be smooth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from conftest import plain_log_likelihoods
from klscale.errors import InputError
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.studies.directional import directional_exponent


def ref(directory, **changes):
    return ModelRef(str(directory), **changes)


def save_between(first, second, share, directory):
    """A model whose weights lie between those of two others."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, other = (AutoModelForCausalLM.from_pretrained(place) for place in (first, second))
    with torch.no_grad():
        for weights, end in zip(model.parameters(), other.parameters(), strict=True):
            weights += share * (end - weights)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(first).save_pretrained(directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt-neox", "gpt2, tied"])
def test_kl_is_that_of_models_saved_on_the_way(architecture, make_model, texts, tmp_path):
    """At every scale, to the end of the step; the exponent and its standard error from these by a bootstrap loop."""
    first, last = (make_model(f"step{seed}", architecture, seed=seed) for seed in (1, 2))
    scales = (0.05, 0.1, 0.2, 1.0)
    found = directional_exponent(ref(first), texts, towards=ref(last), scales=scales, device="cpu")
    at = plain_log_likelihoods(first, texts)
    moved = [
        plain_log_likelihoods(save_between(first, last, scale, tmp_path / f"at{scale}"), texts) - at
        for scale in scales[:-1]
    ]
    difference = np.stack([*moved, plain_log_likelihoods(last, texts) - at])
    expected = difference.var(axis=1) / (2 * texts.bytes.mean() * math.log(2))
    np.testing.assert_allclose([one.value for one in found.kl], expected, rtol=1e-4)
    assert found.used.all()

    def exponent(sample):
        return np.polyfit(np.log(scales), np.log(difference[:, sample].std(axis=1)), 1)[0]

    generator = np.random.default_rng(8)
    spread = np.std([exponent(generator.integers(40, size=40)) for _ in range(1000)])
    assert found.exponent.value == pytest.approx(exponent(np.arange(40)), rel=1e-4)
    assert found.exponent.standard_error == pytest.approx(spread, rel=0.2)
    for n, local in enumerate(found.local_slopes):
        slope = np.log(expected[n + 1] / expected[n]) / np.log(scales[n + 1] / scales[n]) / 2
        assert local.value == pytest.approx(slope, rel=1e-3)


def test_the_clip_is_used_where_it_serves_every_reading(make_model, texts):
    first, last = (make_model(f"step{seed}", seed=seed) for seed in (1, 2))
    a, b = (plain_log_likelihoods(place, texts) for place in (first, last))
    serves = min(np.sort(a)[2], np.sort(b)[2]) - 0.01  # moves two texts of 40 at most, which is 5 %
    for clip, used in ((serves, True), (np.median(b), False)):
        clipped = texts.with_clip(float(clip))
        kl = directional_exponent(ref(first), clipped, towards=ref(last), scales=(1.0,), device="cpu").kl[0]
        difference = np.maximum(a, clip) - np.maximum(b, clip) if used else a - b
        assert kl.uses_clip == used
        assert kl.value == pytest.approx(difference.var() / (2 * texts.bytes.mean() * math.log(2)), rel=1e-4)


def test_a_smooth_map_has_exponent_one(make_model, texts):
    """In a random direction, which the seed fixes, on a grid of scales that is small enough."""
    directory = make_model()
    one, same, other = (
        directional_exponent(ref(directory), texts, seed=seed, scales=2.0 ** np.arange(-6, -1), device="cpu")
        for seed in (0, 0, 1)
    )
    for found in (one, other):
        assert found.exponent.value == pytest.approx(1, abs=0.02)
        assert found.exponent.interval[0] <= found.exponent.value <= found.exponent.interval[1]
        assert found.r_squared > 0.9999
        assert found.noise_floor.value < 1e-3 * found.kl[0].value
        assert found.exponent.unit == ""
    assert [kl.value for kl in one.kl] == [kl.value for kl in same.kl]
    assert one.kl[0].value != pytest.approx(other.kl[0].value, rel=0.01)


def test_a_random_direction_has_one_percent_of_each_tensor():
    from klscale.studies.directional import _random_step

    start = {"wide": torch.randn(30, 40), "bias": torch.full((7,), 1e-3), "zero": torch.zeros(5)}
    for name, step in _random_step(start, seed=3).items():
        assert step.norm().item() == pytest.approx(0.01 * start[name].norm().item(), rel=1e-5)


def test_scales_below_the_noise_or_lost_to_rounding_are_not_fitted(make_model, texts):
    """At 1e-5 of 1 % float32 keeps little of a step, and its KL is noise; the exponent is that of the other scales."""
    directory = make_model()
    scales = (0.125, 0.25, 0.5)
    found = directional_exponent(ref(directory), texts, scales=(1e-6, 1e-5, *scales), device="cpu")
    assert found.used.tolist() == [False, False, True, True, True]
    assert found.lost[0] > 0.5 > 0.01 > found.lost[2]
    alone = directional_exponent(ref(directory), texts, scales=scales, device="cpu")
    assert found.exponent.value == pytest.approx(alone.exponent.value, rel=1e-9)
    assert np.isnan([local.value for local in found.local_slopes]).tolist() == [True, True, False, False]
    few = directional_exponent(ref(directory), texts, scales=(1e-6, 0.25, 0.5), device="cpu")
    assert np.isnan([few.exponent.value, few.exponent.standard_error, few.r_squared]).all()


def test_the_noise_floor_is_of_two_readings(make_model, texts):
    """Rounding differs between batches of different shapes: there is a floor, far below what is measured."""
    found = directional_exponent(ref(make_model()), texts, scales=(1.0,), device="cpu")
    assert 0 < found.noise_floor.value < 1e-9


def test_what_cannot_be_moved_is_refused(make_model, texts):
    directory = make_model("model")
    whole = ref(directory)
    for wrong in ({"dtype": "bfloat16"}, {"quantization": "nf4"}, {"layer": 1}):
        with pytest.raises(InputError, match="cannot be moved by small steps"):
            directional_exponent(ref(directory, **wrong), texts)
    with pytest.raises(InputError, match="has the weights of"):
        directional_exponent(whole, texts, towards=whole)
    with pytest.raises(InputError, match="has other parameters than"):
        directional_exponent(whole, texts, towards=ref(make_model("wide", hidden_size=64)))
    for scales in ((), (0.0, 1.0), (1.0, 0.5), (0.5, math.inf)):
        with pytest.raises(InputError, match="do not ascend from above 0"):
            directional_exponent(whole, texts, scales=scales)
    numbers = TextSet("elsewhere", texts.bytes, id="0123")
    with pytest.raises(InputError, match="no texts to score on"):
        directional_exponent(whole, numbers)
