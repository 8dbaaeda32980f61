"""Writes a step's keys and values to their slots of a paged KV cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _kv_write_kernel(
    key,
    value,
    slots,
    k_cache,
    v_cache,
    stride_key_token,
    stride_key_head,
    stride_value_token,
    stride_value_head,
    stride_k_block,
    stride_v_block,
    NUM_HEADS: tl.constexpr,
    SIZE_K: tl.constexpr,
    SIZE_V: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    PADDED_K: tl.constexpr,
    PADDED_V: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    block = (slot // BLOCK_SIZE).to(tl.int64)
    offset = slot % BLOCK_SIZE
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    dim_k = tl.arange(0, PADDED_K)[None, :]
    mask_k = (head < NUM_HEADS) & (dim_k < SIZE_K)
    k = tl.load(key + token * stride_key_token + head * stride_key_head + dim_k, mask=mask_k)
    tl.store(k_cache + block * stride_k_block + (head * BLOCK_SIZE + offset) * SIZE_K + dim_k, k, mask=mask_k)
    dim_v = tl.arange(0, PADDED_V)[None, :]
    mask_v = (head < NUM_HEADS) & (dim_v < SIZE_V)
    v = tl.load(value + token * stride_value_token + head * stride_value_head + dim_v, mask=mask_v)
    tl.store(v_cache + block * stride_v_block + (head * BLOCK_SIZE + offset) * SIZE_V + dim_v, v, mask=mask_v)


def kv_write(
    *,
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
) -> None:
    """Store keys and values at their slots.

    Args:
        key: [tokens, num_kv_heads, head_size_k]; the last dimension is contiguous.
        value: [tokens, num_kv_heads, head_size_v], likewise.
        slots: [tokens], int32: KV block id * block_size + offset in the block, or -1: nothing is written for
            the token.
        k_cache: [num_blocks, num_kv_heads, block_size, head_size_k], contiguous after the first dimension,
            written.
        v_cache: [num_blocks, num_kv_heads, block_size, head_size_v], likewise.
    """
    tokens, num_heads, size_k = key.shape
    size_v = value.shape[2]
    padded_k, padded_v = triton.next_power_of_2(size_k), triton.next_power_of_2(size_v)
    heads = min(triton.next_power_of_2(num_heads), max(1, 2048 // max(padded_k, padded_v)))
    _kv_write_kernel[(tokens, triton.cdiv(num_heads, heads))](
        key=key,
        value=value,
        slots=slots,
        k_cache=k_cache,
        v_cache=v_cache,
        stride_key_token=key.stride(0),
        stride_key_head=key.stride(1),
        stride_value_token=value.stride(0),
        stride_value_head=value.stride(1),
        stride_k_block=k_cache.stride(0),
        stride_v_block=v_cache.stride(0),
        NUM_HEADS=num_heads,
        SIZE_K=size_k,
        SIZE_V=size_v,
        BLOCK_SIZE=k_cache.shape[2],
        HEADS=heads,
        PADDED_K=padded_k,
        PADDED_V=padded_v,
        num_warps=4,
    )


def kv_write_reference(
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`kv_write` in torch: new (k_cache, v_cache), nothing in place."""
    live = slots >= 0
    slot, block_size = slots[live].long(), k_cache.shape[2]
    k_cache, v_cache = k_cache.clone(), v_cache.clone()
    k_cache[slot // block_size, :, slot % block_size] = key[live]
    v_cache[slot // block_size, :, slot % block_size] = value[live]
    return k_cache, v_cache
