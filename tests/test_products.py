"""Products by oneDNN: the same numbers as in float64, and as the layers that transformers makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conftest import plain_log_likelihoods, values_of
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import build_texts, pocket_corpus
from klscale.sources.transformers import products
from klscale.sources.transformers.products import Linear, prepare, product


@pytest.fixture
def asked(monkeypatch):
    """The shapes of the weights whose products oneDNN was asked for."""
    if not products._runs():
        pytest.skip("oneDNN is not asked for on this CPU")
    shapes, own = [], torch.ops.mkldnn._linear_pointwise

    def watch(states, weight, *others):
        shapes.append(tuple(weight.shape))
        return own(states, weight, *others)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", watch)
    return shapes


@pytest.fixture
def forgotten():
    """What is known of this CPU is found again, before and after."""
    products._runs.cache_clear()
    yield
    products._runs.cache_clear()


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 7, 600])
@pytest.mark.parametrize("bias", [None, numbers(130)], ids=["plain", "bias"])
def test_a_product_is_the_one_in_float64(asked, rows, bias):
    states, weight = numbers(2, rows, 48), numbers(140, 48)[10:]
    exact = states.double() @ weight.double().T + (0 if bias is None else bias.double())
    torch.testing.assert_close(product(states, weight, bias).double(), exact, atol=1e-4, rtol=0)
    aside = states.transpose(0, 1)  # as what attention gives back: not contiguous
    torch.testing.assert_close(product(aside, weight, bias).double(), exact.transpose(0, 1), atol=1e-4, rtol=0)
    for strided in (numbers(48, 130).T, numbers(130, 96)[:, ::2], numbers(1, 48).expand(130, 48)):
        exact = states.double() @ strided.double().T + (0 if bias is None else bias.double())
        torch.testing.assert_close(product(states, strided, bias).double(), exact, atol=1e-4, rtol=0)
    assert asked == [(130, 48)] * 5


@pytest.mark.parametrize(
    ("states", "weight", "bias"),
    [
        (numbers(0, 48), numbers(130, 48), None),
        (numbers(48), numbers(130, 48), None),
        (numbers(7, 48).double(), numbers(130, 48).double(), None),
        (numbers(7, 48).bfloat16(), numbers(130, 48).bfloat16(), numbers(130).bfloat16()),
        (numbers(7, 48), numbers(130, 48), numbers(260)[::2]),
    ],
    ids=["none", "one", "float64", "bfloat16", "strided bias"],
)
def test_what_onednn_is_not_asked_for_is_torchs_own(asked, states, weight, bias):
    with torch.inference_mode():
        assert torch.equal(product(states, weight, bias), nn.functional.linear(states, weight, bias))
    assert not asked


def test_gradients_are_torchs_own(asked):
    layer, plain = Linear(24, 40), nn.Linear(24, 40)
    plain.load_state_dict(layer.state_dict())
    for one in (layer, plain):
        one(numbers(5, 24)).square().sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    assert not asked


@pytest.mark.parametrize("fault", ["no vectors", "no operator", "another operator", "wrong numbers"])
def test_a_torch_or_a_cpu_that_does_not_have_them(monkeypatch, forgotten, fault):
    def other(*_):
        raise RuntimeError("expected at most 3 arguments")

    operators = {"another operator": other, "wrong numbers": lambda states, weight, *_: states @ weight.T + 1}
    if fault == "no vectors":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    elif fault == "no operator":
        monkeypatch.setattr(torch.ops, "mkldnn", object())
    else:
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operators[fault])
    states, weight = numbers(7, 48), numbers(130, 48)
    with torch.inference_mode():
        assert torch.equal(product(states, weight), nn.functional.linear(states, weight))


def test_only_plain_layers_are_prepared():
    class Quantized(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(24, 40), Quantized(40, 24), nn.Embedding(5, 24))
    prepare(model)
    assert [type(layer) for layer in model] == [Linear, Quantized, nn.Embedding]
    assert isinstance(model[0], nn.Linear)  # what looks for linear layers finds it


@pytest.mark.parametrize("architecture", ["gpt-neox", "qwen3", "gemma3"])
def test_a_model_scores_as_with_the_layers_of_torch(make_model, request, architecture):
    path = make_model(architecture=architecture)
    texts = build_texts("some", pocket_corpus(), 20, max_bytes=300)
    values, _ = values_of(ModelRef(str(path)), texts)
    np.testing.assert_allclose(values, plain_log_likelihoods(path, texts), atol=1e-3, rtol=0)
    asked = request.getfixturevalue("asked")  # watched only now: libraries look at torch's operators as they load
    again, loaded = values_of(ModelRef(str(path)), texts)
    assert (again == values).all()
    n_vocabulary = len(loaded.model.get_output_embeddings().weight)
    layers = {tuple(layer.weight.shape) for layer in loaded.model.modules() if type(layer) is Linear}
    assert len(layers) > 2
    assert layers - {shape for shape in layers if shape[0] == n_vocabulary} <= set(asked)
