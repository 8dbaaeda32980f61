"""Which layers of a model are quantized, and what they give to code that reads their weight."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dodona.kernels.linear.quantized_weight import dequantize, quantize_weight
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.quantization import WeightScheme, online_quantization, read_quantization
from dodona.runners.quantization.linear import QuantizedLinear, quantized_from
from dodona.runners.quantization.replacement import quantize_layers
from tests.support.tiny_models import make_model


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


@pytest.mark.parametrize(
    ("kind", "symmetric"), [("fp8", True), ("int8", True), ("int8", False), ("int4", True), ("int4", False)]
)
def test_a_shorter_last_group_is_rounded_by_itself(kind, symmetric):
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))

    def rounded(part: torch.Tensor) -> torch.Tensor:
        return dequantize(quantize_weight(part, kind=kind, group_size=16, symmetric=symmetric))

    by_group = [
        dequantize(quantize_weight(part, kind=kind, symmetric=symmetric)) for part in weight.split(16, dim=1)
    ]
    assert torch.equal(rounded(weight), torch.cat(by_group, dim=1))


def test_random_weights_have_the_shapes_that_stored_ones_have():
    """Blocks of FP8 may end with the weight; words of 4-bit numbers may not."""
    fp8 = read_quantization("fp8", {"weight_block_size": [16, 16], "activation_scheme": "dynamic"})
    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(40, 24)})
    quantize_layers(model, fp8)
    assert model["layer"].scales.shape == (24, 3)
    assert model["layer"](torch.ones(2, 40)).shape == (2, 24)
    gptq = read_quantization("gptq", {"bits": 4, "group_size": 16, "desc_act": False, "sym": True})
    with pytest.raises(ConfigError, match=r"'layer': .* 20 is not a multiple of 8"):
        quantize_layers(torch.nn.ModuleDict({"layer": torch.nn.Linear(40, 20)}), gptq)
    mxfp4 = read_quantization("mxfp4", {})
    with pytest.raises(ConfigError, match=r"experts '.*': their input size 48 is not a multiple of 32"):
        quantize_layers(make_model("gpt-oss", hidden_size=48), mxfp4)
