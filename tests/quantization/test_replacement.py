"""Which layers of a model are quantized, and what they give to code that reads their weight."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dodona.oracle.models.quantization import WeightScheme, online_quantization
from dodona.runners.quantization.linear import QuantizedLinear, quantized_from
from dodona.runners.quantization.replacement import quantize_layers


@pytest.mark.parametrize(
    "scheme",
    [
        WeightScheme("online", "int", 8, "channel"),
        WeightScheme("gptq", "int", 4, "group", 16, symmetric=False, act_order=True),
    ],
)
def test_code_that_reads_the_weight_computes_what_the_layer_does(scheme):
    generator = torch.Generator().manual_seed(0)
    layer = quantized_from(torch.randn(24, 32, generator=generator), scheme)
    if layer.order is not None:
        layer.order.copy_(torch.randperm(32, generator=generator))
    x = torch.randn(3, 32, generator=generator)
    assert layer.weight.shape == (24, 32)
    torch.testing.assert_close(functional.linear(x, layer.weight), layer(x))


def test_a_layer_that_computes_something_else_is_not_quantized():
    class InGroups(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.view(2, 4, -1).mT

    model = torch.nn.ModuleDict({"plain": torch.nn.Linear(8, 8), "own": InGroups(8, 8)})
    quantize_layers(model, online_quantization("int8"))
    assert isinstance(model["plain"], QuantizedLinear)
    assert type(model["own"]) is InGroups
