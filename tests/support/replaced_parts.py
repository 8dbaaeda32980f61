"""Which parts of models runner V1 replaces by kernels, by family of `tests.support.tiny_models`.

A part whose trial fails is left as it is, whatever the cause, so that a kernel which fails by a mistake would
only make a model slower: tests compare with this table, on a CPU and on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
