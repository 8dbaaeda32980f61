"""Prefill of fresh prompts, in the variants that models use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dodona.kernels.attention.arguments import AttentionShape, NewTokens, QKNorm
from dodona.kernels.attention.fresh import fresh_prefill_attention
from dodona.kernels.attention.rotary import qk_norm_rope_kv_write


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def prefill(dtype: torch.dtype, head_size: int, group: int) -> None:
    fresh_prefill_attention(
        qkv=torch.zeros(300, (2 * group + 4) * head_size, dtype=dtype),
        query_start=ints(3),
        seq_lens=ints(2),
        max_query_len=200,
        shape=AttentionShape(2 * group, 2, head_size, 0.1),
        num_multiprocessors=132,
    )


def rotary() -> None:
    qk_norm_rope_kv_write(
        qkv=torch.zeros(2, 8 * 128, dtype=torch.bfloat16),
        tokens=NewTokens(ints(2), ints(2), torch.zeros(8, 128)),
        norm=QKNorm(torch.zeros(128, dtype=torch.bfloat16), torch.zeros(128, dtype=torch.bfloat16), 1e-6),
        kv_cache=torch.zeros(2, 2, 2, 16, 128, dtype=torch.bfloat16),
        shape=AttentionShape(4, 2, 128, 0.1),
        keys_in_place=True,
    )


CASES: dict[str, Callable[[], None]] = {"rotary, keys in place": rotary}
for dtype in (torch.bfloat16, torch.float16):
    for head_size in (64, 128):
        for group in (1, 2, 4):
            name = f"{str(dtype).removeprefix('torch.')} {head_size} group {group}"
            CASES[f"fresh prefill {name}"] = partial(prefill, dtype, head_size, group)
