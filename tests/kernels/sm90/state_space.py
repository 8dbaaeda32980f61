"""Convolutions and scans of packed sequences, in the variants that models use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dodona.kernels.state_space.causal_conv import causal_conv
from dodona.kernels.state_space.gated_delta import gated_delta
from dodona.kernels.state_space.selective_scan import selective_scan
from dodona.kernels.state_space.sequences import SlotSequences


def sequences(longest: int) -> SlotSequences:
    zeros = torch.zeros(3, dtype=torch.int32)
    return SlotSequences(zeros, torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool), longest)


def conv(dtype: torch.dtype, channels: int, width: int, has_bias: bool, longest: int) -> None:
    causal_conv(
        x=torch.zeros(4, channels, dtype=dtype), weight=torch.zeros(channels, width, dtype=dtype),
        bias=torch.zeros(channels, dtype=dtype) if has_bias else None,
        state=torch.zeros(2, channels, width, dtype=dtype), sequences=sequences(longest), silu=has_bias,
    )  # fmt: skip


def scan(dtype: torch.dtype, heads: int, groups: int, head_size: int, state_size: int) -> None:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    selective_scan(
        x=zeros(4, heads, head_size), dt=zeros(4, heads), a=torch.zeros(heads),
        b=zeros(4, groups, state_size), c=zeros(4, groups, state_size), d=zeros(heads), dt_bias=zeros(heads),
        softplus=True, state=torch.zeros(2, heads, head_size, state_size), sequences=sequences(3),
    )  # fmt: skip


def delta(dtype: torch.dtype, heads: int, key_heads: int, key_size: int, value_size: int) -> None:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    gated_delta(
        q=zeros(4, key_heads, key_size), k=zeros(4, key_heads, key_size), v=zeros(4, heads, value_size),
        g=torch.zeros(4, heads), beta=zeros(4, heads), unit_length=True,
        state=torch.zeros(2, heads, key_size, value_size), sequences=sequences(3),
    )  # fmt: skip


CASES: dict[str, Callable[[], None]] = {}
for dtype in (torch.bfloat16, torch.float32):
    name = str(dtype).removeprefix("torch.")
    for longest in (1, 500):
        CASES[f"conv {longest} {name}"] = partial(conv, dtype, 3584, 4, True, longest)
    CASES[f"delta rule {name}"] = partial(delta, dtype, 32, 16, 128, 128)
    CASES[f"scan {name}"] = partial(scan, dtype, 48, 1, 64, 256)
CASES["short conv"] = partial(conv, torch.bfloat16, 1024, 3, False, 500)
CASES["scan of groups"] = partial(scan, torch.bfloat16, 128, 8, 64, 128)
