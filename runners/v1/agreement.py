"""Whether a kernel computes what a part of a model does: compared on random inputs."""

from __future__ import annotations

import torch

ROUNDING = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference between a part and its kernel, relative to the largest value of the part's result."""


def close(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether two results are the same up to rounding. Zeros show nothing: weights of zeros give them
    whatever else a part computes, and other weights may come later."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    largest = float(expected.abs().max())
    difference = float((expected.float() - found.float()).abs().max())
    return largest > 0 and difference <= ROUNDING[expected.dtype] * largest


FAR = 50.0
"""Largest value of a gate with which a part is tried, too, so that a limit on gates would show."""


def reaching_far(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """`x`, [..., inner], so large that its products with the weight [columns, inner] go up to `FAR`."""
    products = x.float() @ gate.detach().float().T
    return x * (FAR / float(products.abs().max().clamp_min(1e-6)))


def random(*shape: int, like: torch.Tensor) -> torch.Tensor:
    """Normal numbers of `like`'s type and device, the same each time."""
    generator = torch.Generator().manual_seed(11)
    return torch.randn(*shape, generator=generator).to(like.device, like.dtype)
