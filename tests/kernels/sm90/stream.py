"""Decode attention as one stream of keys, in the variants that models use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dodona.kernels.attention.arguments import AttentionShape, NewTokens, PagedSequences, QKNorm
from dodona.kernels.attention.decode import decode_attention_from_qkv, paged_decode_attention
from dodona.kernels.attention.decode_plan import DecodePlan, plan_decode_attention


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def make_plan(
    dtype: torch.dtype, sequences: PagedSequences, shape: AttentionShape, *, includes_new_key: bool
) -> DecodePlan:
    plan = plan_decode_attention(
        sequences=sequences, shape=shape, row_bytes=shape.head_size * dtype.itemsize,
        includes_new_key=includes_new_key, num_multiprocessors=132, can_stream=True,
    )  # fmt: skip
    assert plan.tiles.streams
    return plan


def attention(
    dtype: torch.dtype,
    head_size: int,
    group: int,
    batch: int = 3,
    norm: bool = True,
    window: int | None = None,
) -> None:
    weight = torch.zeros(head_size, dtype=dtype)
    sequences = PagedSequences(ints(batch, 32), ints(batch), ints(batch))
    shape = AttentionShape(2 * group, 2, head_size, 0.1, window)
    kv_cache = torch.zeros(2, 2, 2, 16, head_size, dtype=dtype)
    decode_attention_from_qkv(
        qkv=torch.zeros(batch, (2 * group + 4) * head_size, dtype=dtype),
        tokens=NewTokens(ints(batch), ints(batch), torch.zeros(8, head_size)),
        norm=QKNorm(weight, weight, 1e-6) if norm else None,
        kv_cache=kv_cache,
        sequences=sequences,
        shape=shape,
        plan=make_plan(dtype, sequences, shape, includes_new_key=False),
    )
    paged_decode_attention(
        q=torch.zeros(batch, 2 * group, head_size, dtype=dtype),
        kv_cache=kv_cache,
        sequences=sequences,
        shape=shape,
        plan=make_plan(dtype, sequences, shape, includes_new_key=True),
    )


BF16 = torch.bfloat16
CASES: dict[str, Callable[[], None]] = {
    "hundreds of sequences": partial(attention, BF16, 128, 2, 200),
    "no norm": partial(attention, BF16, 128, 4, norm=False),
    "window": partial(attention, BF16, 128, 2, window=4096),
    "float16": partial(attention, torch.float16, 128, 2),
}
for head_size in (64, 128):
    for group in (1, 3, 8):
        CASES[f"head size {head_size}, group {group}"] = partial(attention, BF16, head_size, group)
