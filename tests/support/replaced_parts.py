"""Which parts of models runner V1 replaces by kernels, by family of `tests.support.tiny_models`.

A part whose trial fails is left as it is, whatever the cause, so that a kernel which fails by a mistake would
only make a model slower: tests compare with this table, on a CPU and on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dodona.oracle.models.quantization import ActivationScheme, WeightScheme
from dodona.runners.quantization.experts import (
    ExpertPart,
    QuantizedExperts,
    is_expert_stack,
    separate_parts,
    stacked_parts,
)
from dodona.runners.quantization.linear import QuantizedLinear, quantized_from
from tests.support.tiny_models import make_model


def _decoder(prefix: str, *more: str, without: tuple[str, ...] = ()) -> frozenset[str]:
    """The usual parts, whose classes' names begin with the model's."""
    names = ("RMSNorm", "MLP", "Attention", *more)
    return frozenset({"Linear", *(prefix + name for name in names if name not in without)})


REPLACED: Mapping[str, frozenset[str]] = {
    "llama": _decoder("Llama"),
    "mistral": _decoder("Mistral"),
    "qwen2": _decoder("Qwen2"),
    "qwen3": _decoder("Qwen3"),
    "gemma2": _decoder("Gemma2"),
    "gemma3": _decoder("Gemma3"),
    "qwen3-moe": _decoder("Qwen3Moe", "TopKRouter", "Experts", without=("MLP",)),
    "deepseek-v3": _decoder("DeepseekV3", "Experts"),
    "qwen3-next": _decoder("Qwen3Next", "TopKRouter", "Experts"),
    "falcon-h1": _decoder("FalconH1"),
    "lfm2": _decoder("Lfm2", without=("MLP",)),
    "phi3": _decoder("Phi3", without=("MLP",)),
    "glm4": frozenset({"Linear", "Glm4RMSNorm"}),
    "mamba": frozenset({"Linear", "MambaRMSNorm"}),
    "gpt-oss": frozenset({"Linear", "GptOssRMSNorm"}),
    "llama4": frozenset({"Linear", "Llama4TextMLP", "Llama4TextRMSNorm"}),
}
"""Classes of which every module is replaced. Experts with biases and transposed weights, routers other than a
softmax, rotations of neighbouring dimensions and gates stacked with their projections are no case of the
kernels."""

PACKED_MIXERS = (
    "bamba", "falcon-h1", "granite-hybrid", "lfm2", "lfm2-moe", "lfm3", "mamba2", "olmo-hybrid", "qwen3-next",
    "qwen3.5", "qwen3.5-moe",
)  # fmt: skip
"""Families whose mixers compute all rows of a step at once: mixers of a short convolution, of Mamba 2, or of
the gated delta rule."""


def check_replaced(model: Any, fused: set[Any], expected: frozenset[str]) -> None:
    """All modules of the expected classes are replaced, and no others."""
    names = {type(module).__name__ for module in fused}
    assert names == expected
    left = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in expected and module not in fused
    ]
    assert not left


QUANTIZED: Mapping[str, WeightScheme] = {
    "w4a16": WeightScheme("pack-quantized", "int", 4, "group", 128),
    "w4a16-asym": WeightScheme("pack-quantized", "int", 4, "group", 128, symmetric=False),
    "w4a16-act-order": WeightScheme("pack-quantized", "int", 4, "group", 128, act_order=True),
    "w8a16": WeightScheme("plain", "int", 8, "channel"),
    "w8a8-int8": WeightScheme("plain", "int", 8, "channel", activations=ActivationScheme("int8", "token")),
    "fp8": WeightScheme("plain", "float", 8, "tensor", activations=ActivationScheme("fp8", "token")),
    "fp8-block": WeightScheme(
        "plain", "float", 8, "block", 128, 128, activations=ActivationScheme("fp8", "group", group_size=128)
    ),
}
"""Schemes of linear layers that kernels serve."""


EXPERTS: Mapping[str, WeightScheme] = {
    "w4a16": WeightScheme("pack-quantized", "int", 4, "group", 32),
    "w4a16-asym": WeightScheme("pack-quantized", "int", 4, "group", 64, symmetric=False),
    "w4a16-act-order": WeightScheme("pack-quantized", "int", 4, "group", 32, act_order=True),
    "w8a16": WeightScheme("plain", "int", 8, "channel"),
    "w8a16-fp8": WeightScheme("plain", "float", 8, "channel"),
    "w8a8-int8": WeightScheme("plain", "int", 8, "channel", activations=ActivationScheme("int8", "token")),
    "w8a8-int8-asym": WeightScheme(
        "plain", "int", 8, "channel", activations=ActivationScheme("int8", "token", symmetric=False)
    ),
    "w8a8-int8-static": WeightScheme(
        "plain", "int", 8, "channel",
        activations=ActivationScheme("int8", "tensor", dynamic=False, symmetric=False),
    ),
    "w8a8-fp8": WeightScheme("plain", "float", 8, "tensor", activations=ActivationScheme("fp8", "token")),
    "w8a8-fp8-static": WeightScheme(
        "plain", "float", 8, "tensor", activations=ActivationScheme("fp8", "tensor", dynamic=False)
    ),
    "fp8-block": WeightScheme(
        "plain", "float", 8, "block", 32, 32, activations=ActivationScheme("fp8", "group", group_size=32)
    ),
    "mxfp4": WeightScheme("mxfp4", "float", 4, "group", 32),
}  # fmt: skip
"""Schemes of experts: kernels serve all."""


def quantized_experts(
    name: str, *, hidden: int, inner: int, dtype: torch.dtype, device: str
) -> QuantizedExperts:
    """Four random experts in a scheme of `EXPERTS`: gpt-oss's where it is MXFP4, else Qwen3's."""
    is_joined = name == "mxfp4"
    family, size = ("gpt-oss", "intermediate_size") if is_joined else ("qwen3-moe", "moe_intermediate_size")
    model = make_model(family, hidden_size=hidden, **{size: inner}).to(device, dtype)
    stack = next(module for module in model.modules() if is_expert_stack(module))

    def make(
        index: int, part: ExpertPart, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.nn.Module:
        own = None if bias is None else torch.randn_like(bias)
        return quantized_from(weight.data * 10, EXPERTS[name], bias=own)

    return QuantizedExperts(stack, stacked_parts(stack) if is_joined else separate_parts(stack), make)


def quantized_layer(
    name: str, rows: int, inner: int, *, dtype: torch.dtype, device: str, bias: bool = True
) -> QuantizedLinear:
    """A random linear layer in a scheme of `QUANTIZED`."""
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(rows, inner, generator=generator) / inner**0.5
    own = torch.randn(rows, generator=generator).to(device, dtype) if bias else None
    layer = quantized_from(values.to(device, dtype), QUANTIZED[name], bias=own)
    layer.shared_rows = QUANTIZED[name].block_rows or 1
    if layer.shared_rows > 1:  # rows of a block have one scale
        layer.scales = layer.scales[:: layer.shared_rows].repeat_interleave(layer.shared_rows, 0)[:rows]
        layer.scales = layer.scales.contiguous()
    return layer
