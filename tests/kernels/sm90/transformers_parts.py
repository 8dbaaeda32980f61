"""Kernels that stand in for parts of transformers' models, in the variants that models use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dodona.kernels.attention.any_pattern import Kind, ScoreRule, any_pattern_attention
from dodona.kernels.attention.arguments import PagedSequences
from dodona.kernels.attention.kv_write import kv_write
from dodona.kernels.attention.rotate import rotate
from dodona.kernels.linear.activation import ACTIVATIONS, gated
from dodona.kernels.linear.adapters import add_adapters
from dodona.kernels.linear.rms_norm import rms_norm_rows
from dodona.kernels.linear.single_token_linear import single_token_linear
from dodona.kernels.linear.single_token_linears import single_token_linears
from tests.kernels.sm90.model import ints


def pattern(
    dtype: torch.dtype, sizes: tuple[int, int], group: int, kind: Kind, longest: int, has_sinks: bool
) -> None:
    k_cache, v_cache = (torch.zeros(2, 2, 16, size, dtype=dtype) for size in sizes)
    any_pattern_attention(
        q=torch.zeros(2, 2 * group, sizes[0], dtype=dtype), k_cache=k_cache, v_cache=v_cache,
        sequences=PagedSequences(ints(2, 32), ints(2), ints(2)), query_start=ints(3), max_query_len=longest,
        rule=ScoreRule(0.1, kind, 0 if kind == "causal" else 128, None if has_sinks else 50.0),
        sinks=torch.zeros(2 * group, dtype=dtype) if has_sinks else None,
    )  # fmt: skip


def parts(dtype: torch.dtype) -> None:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    for hidden in (64, 128, 1152, 8192):
        rms_norm_rows(x=zeros(5, hidden), weight=zeros(hidden), eps=1e-6, offset=1.0)
    for activation in ACTIVATIONS:
        gated(gate=zeros(3, 6912), up=zeros(3, 6912), activation=activation)
    for q_heads, k_heads, size in ((16, 8, 128), (4, 1, 256), (12, 2, 96)):
        rotate(q=zeros(2, q_heads, size), k=zeros(2, k_heads, size), cos=zeros(2, size), sin=zeros(2, size))
        kv_write(
            key=zeros(2, k_heads, size), value=zeros(2, k_heads, size // 2), slots=ints(2),
            k_cache=zeros(2, k_heads, 16, size), v_cache=zeros(2, k_heads, 16, size // 2),
        )  # fmt: skip
    single_token_linear(x=zeros(1, 8960), weight=zeros(1536, 8960))
    for columns, inner in (((4096, 512, 512), 2048), ((3072, 3072), 1024)):
        weights = [zeros(n, inner) for n in columns]
        single_token_linears(
            x=zeros(1, inner), weights=weights, biases=[zeros(columns[0])] + [None] * (len(columns) - 1)
        )


def adapters(dtype: torch.dtype) -> None:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    for columns, inner, rank in ((1024, 3072, 16), (151936, 1024, 8), (4096, 4096, 320)):
        add_adapters(
            out=zeros(2, columns), x=zeros(2, inner), a=zeros(2 * rank, inner), b=zeros(columns, 2 * rank),
            slots=ints(2), rank=rank,
        )  # fmt: skip


CASES: dict[str, Callable[[], None]] = {}
for dtype in (torch.bfloat16, torch.float32):
    name = str(dtype).removeprefix("torch.")
    CASES[f"parts {name}"] = partial(parts, dtype)
    CASES[f"adapters {name}"] = partial(adapters, dtype)
    CASES[f"latent heads {name}"] = partial(pattern, dtype, (192, 128), 1, "causal", 1, False)
    CASES[f"soft cap, window {name}"] = partial(pattern, dtype, (256, 256), 2, "sliding", 500, False)
    CASES[f"sinks {name}"] = partial(pattern, dtype, (64, 64), 8, "sliding", 1, True)
CASES["chunks"] = partial(pattern, torch.bfloat16, (128, 128), 5, "chunked", 500, True)
