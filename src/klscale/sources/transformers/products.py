"""Products with the weights of a model on a CPU in float32, by the oneDNN that torch brings.

What torch itself takes for them on x86, MKL, is slow beside oneDNN on processors of AMD (benchmarks/scoring.md). In
bfloat16 torch takes oneDNN.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear layer whose product is `product`."""

    def forward(self, input: Tensor) -> Tensor:
        return product(input, self.weight, self.bias)


def product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """states (..., inputs) @ weight (outputs, inputs).T + bias (outputs,): (..., outputs). Where oneDNN is not asked
    for it, as where gradients are recorded, it is torch's own."""
    if not _suits(states, weight, bias):
        return nn.functional.linear(states, weight, bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return found


def prepare(model: Any) -> None:
    """Let the linear layers of a model take their products here. Layers of other kinds, which may compute more than a
    product, and weights that are no plain numbers stay as they are."""
    for layer in model.modules():
        if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter:
            layer.__class__ = Linear


def _suits(states: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN is asked for this product."""
    given = (states, weight) if bias is None else (states, weight, bias)
    return (
        not torch.is_grad_enabled()
        and all(one.device.type == "cpu" and one.dtype == torch.float32 for one in given)
        and states.ndim > 1
        and states.numel() > 0
        and (bias is None or bias.is_contiguous())  # oneDNN would take what lies between its values
        and _runs()
    )


@cache
def _runs() -> bool:
    """Whether this torch on this CPU gives oneDNN's products, by one of them: the operator is for torch's own compiler,
    and may change."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    with torch.inference_mode():
        states, weight = torch.arange(64.0).view(4, 16), torch.eye(16)[:3]
        try:
            found = torch.ops.mkldnn._linear_pointwise(states, weight, None, "none", [], "")
        except (AttributeError, RuntimeError, TypeError):
            return False
    return torch.equal(found, states[:, :3])
