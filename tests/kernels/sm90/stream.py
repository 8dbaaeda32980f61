"""Decode attention as one stream of keys, in the variants that models use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dodona.kernels.attention.decode import decode_attention_from_qkv, paged_decode_attention
from dodona.kernels.attention.decode_plan import DecodePlan, plan_decode_attention


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def make_plan(dtype: torch.dtype, head_size: int, batch: int, window: int | None, new: bool) -> DecodePlan:
    plan = plan_decode_attention(
        rows=ints(batch), seq_lens=ints(batch), row_bytes=head_size * dtype.itemsize, num_kv_heads=2,
        window=window, includes_new_key=new, num_multiprocessors=132, can_stream=True,
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
    weight = torch.zeros(head_size, dtype=dtype) if norm else None
    case = {
        "kv_cache": torch.zeros(2, 2, 2, 16, head_size, dtype=dtype), "block_table": ints(batch, 32),
        "rows": ints(batch), "seq_lens": ints(batch), "scale": 0.1,
    }  # fmt: skip
    decode_attention_from_qkv(
        **case, qkv=torch.zeros(batch, (2 * group + 4) * head_size, dtype=dtype), positions=ints(batch),
        slots=ints(batch), cos_sin=torch.zeros(8, head_size), q_weight=weight, k_weight=weight, eps=1e-6,
        num_q_heads=2 * group, plan=make_plan(dtype, head_size, batch, window, False),
    )  # fmt: skip
    paged_decode_attention(
        **case, q=torch.zeros(batch, 2 * group, head_size, dtype=dtype),
        plan=make_plan(dtype, head_size, batch, window, True),
    )  # fmt: skip


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
