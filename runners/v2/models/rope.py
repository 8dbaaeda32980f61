"""The table of rotary angles."""

from __future__ import annotations

import math

import torch

from dodona.runners.v2.models.spec import RopeSpec


def inverse_frequencies(rope: RopeSpec, head_size: int) -> torch.Tensor:
    """[head_size / 2] float32: radians per position of each pair of dimensions.

    "llama3" (Llama 3.1's report and reference code): wavelengths beyond original length / low_freq_factor are
    stretched by `factor`, those under original length / high_freq_factor stay, and between them the two are
    mixed linearly.
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
    frequencies = 1.0 / rope.theta**exponents
    if rope.rope_type == "default":
        return frequencies
    if rope.rope_type != "llama3":
        raise ValueError(f"rope type {rope.rope_type!r}: expected 'default' or 'llama3'")
    periods_in_original = rope.original_max_position_embeddings / (2 * math.pi / frequencies)
    span = rope.high_freq_factor - rope.low_freq_factor
    keep = ((periods_in_original - rope.low_freq_factor) / span).clamp(0.0, 1.0)
    return (1.0 - keep) * frequencies / rope.factor + keep * frequencies


def cos_sin_table(rope: RopeSpec, head_size: int, length: int) -> torch.Tensor:
    """[length, head_size] float32: cosines of each position's angles, then their sines."""
    positions = torch.arange(length, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies(rope, head_size))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
