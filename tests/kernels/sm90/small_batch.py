"""The kernels of one token and of small batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dodona.kernels.attention.arguments import AttentionShape, NewTokens, PagedSequences, QKNorm
from dodona.kernels.attention.attended_linear import attended_linear
from dodona.kernels.attention.small_batch import (
    SmallBatchTiles,
    small_batch_attention,
    small_batch_attention_parts,
)
from dodona.kernels.linear.single_token_linear import Tiles, single_token_linear
from dodona.kernels.linear.small_batch_linear import small_batch_linear
from dodona.kernels.state.step_state import prepare_inputs


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def attention(
    dtype: torch.dtype, head_size: int, group: int, batch: int, norm: bool = True, window: int | None = None,
    tiles: SmallBatchTiles | None = None,
) -> None:  # fmt: skip
    weight = torch.zeros(head_size, dtype=dtype)
    case = {
        "qkv": torch.zeros(batch, (2 * group + 4) * head_size, dtype=dtype),
        "tokens": NewTokens(ints(batch), ints(batch), torch.zeros(8, head_size)),
        "norm": QKNorm(weight, weight, 1e-6) if norm else None,
        "kv_cache": torch.zeros(2, 2, 2, 16, head_size, dtype=dtype),
        "sequences": PagedSequences(ints(batch, 32), ints(batch), ints(batch)),
        "shape": AttentionShape(2 * group, 2, head_size, 0.1, window),
        "tiles": tiles,
    }
    small_batch_attention(**case)
    small_batch_attention(**case, offsets=ints(batch), max_offset=2)
    if batch == 1:
        parts = small_batch_attention_parts(**case)
        attended_linear(
            parts=parts,
            weight=torch.zeros(64, 2 * group * head_size, dtype=dtype),
            residual=torch.zeros(1, 64, dtype=dtype),
        )


def one_row(dtype: torch.dtype, warps: int) -> None:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    tiles = Tiles(n=4, k=256 * warps, num_warps=warps, ahead=4)
    single_token_linear(x=zeros(1, 1024), weight=zeros(4096, 1024), norm_weight=zeros(1024), tiles=tiles)
    single_token_linear(x=zeros(1, 3072), weight=zeros(1024, 3072), residual=zeros(1, 1024), tiles=tiles)
    single_token_linear(
        x=zeros(1, 1024), weight=zeros(6144, 1024), norm_weight=zeros(1024), silu_mul=True, tiles=tiles
    )


def small_batch(tokens: int, hidden: int, size: int) -> None:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16)

    small_batch_linear(x=zeros(tokens, hidden), weight=zeros(4096, hidden), norm_weight=zeros(hidden))
    small_batch_linear(x=zeros(tokens, size), weight=zeros(hidden, size), residual=zeros(tokens, hidden))
    small_batch_linear(
        x=zeros(tokens, hidden), weight=zeros(2 * size, hidden), norm_weight=zeros(hidden), silu_mul=True
    )


def inputs_with_embeddings(batch: int) -> None:
    prepare_inputs(
        rows=ints(batch), query_start=ints(batch + 1), num_computed=ints(2), token_ids=ints(2, 4096),
        block_table=ints(2, 256), block_size=16, input_ids=ints(batch), positions=ints(batch),
        slots=ints(batch), seq_lens=ints(batch), embedding=torch.zeros(64, 1024, dtype=torch.bfloat16),
        hidden=torch.zeros(batch, 1024, dtype=torch.bfloat16),
    )  # fmt: skip


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES: dict[str, Callable[[], None]] = {
    "inputs with embeddings": partial(inputs_with_embeddings, 2),
    "window": partial(attention, BF16, 128, 2, 1, True, 4096),
    "no norm": partial(attention, BF16, 128, 4, 1, False),
    "float16": partial(attention, FP16, 128, 2, 1),
    "float32": partial(attention, FP32, 128, 2, 1),
    "batch 8": partial(attention, BF16, 128, 2, 8),
}
for group in (1, 2, 5):
    CASES[f"group {group}"] = partial(attention, BF16, 128, group, 1)
for head_size in (16, 64, 256):
    CASES[f"head size {head_size}"] = partial(attention, BF16, head_size, 2, 1)
for dtype in (BF16, FP16, FP32):
    for warps in (1, 2):
        CASES[f"one row {dtype}, {warps} warps"] = partial(one_row, dtype, warps)
for tokens in (3, 16):
    for hidden, size in ((1024, 3072), (2048, 8192), (4096, 12288)):
        CASES[f"{tokens} rows, hidden size {hidden}"] = partial(small_batch, tokens, hidden, size)
