"""From the fused qkv projection to attention's inputs in one launch.

Queries and keys are normalised per head (where the model has such norms) and rotated; queries stay where they
are, keys and values go to their slots of the paged KV cache, keys on request to where they were, too.

A layer's KV cache is [num_blocks, 2, num_kv_heads, block_size, head_size]: keys at index 0 of the second
dimension, values at 1. One head's share of a block is contiguous, which is what attention reads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dodona.kernels.attention.arguments import AttentionShape, NewTokens, QKNorm
from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)


@triton.jit
def _qk_norm_rope_kv_write_kernel(
    qkv,
    q_weight,
    k_weight,
    cos_sin,
    positions,
    slots,
    kv_cache,
    stride_kv_block,
    eps,
    NUM_Q_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_QK_NORM: tl.constexpr,
    KEYS_IN_PLACE: tl.constexpr,
    DEPENDENT: tl.constexpr,
    HEADS_PER_PROGRAM: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    token = tl.program_id(0)
    slot = tl.load(slots + token)
    HALF: tl.constexpr = HEAD_SIZE // 2
    NUM_HEADS: tl.constexpr = NUM_Q_HEADS + 2 * NUM_KV_HEADS
    head = tl.program_id(1) * HEADS_PER_PROGRAM + tl.arange(0, HEADS_PER_PROGRAM)[:, None]
    half = tl.arange(0, HALF)[None, :]
    exists = head < NUM_HEADS
    is_q = head < NUM_Q_HEADS
    is_v = head >= NUM_Q_HEADS + NUM_KV_HEADS

    source = qkv + token.to(tl.int64) * (NUM_HEADS * HEAD_SIZE) + head * HEAD_SIZE + half
    if slot < 0:
        nothing = tl.zeros((HEADS_PER_PROGRAM, HALF), qkv.dtype.element_ty)
        tl.store(source, nothing, mask=exists)
        tl.store(source + HALF, nothing, mask=exists)
        return
    first = tl.load(source, mask=exists, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=exists, other=0.0).to(tl.float32)

    normed_first, normed_second = first, second
    if HAS_QK_NORM:
        square = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        inverse = tl.rsqrt(square / HEAD_SIZE + eps)[:, None]
        weight_first = tl.where(is_q, tl.load(q_weight + half), tl.load(k_weight + half)).to(tl.float32)
        weight_second = tl.where(is_q, tl.load(q_weight + HALF + half), tl.load(k_weight + HALF + half)).to(
            tl.float32
        )
        normed_first = first * inverse * weight_first
        normed_second = second * inverse * weight_second

    angle = cos_sin + tl.load(positions + token).to(tl.int64) * HEAD_SIZE + half
    cos = tl.load(angle)
    sin = tl.load(angle + HALF)
    dtype = qkv.dtype.element_ty
    rotated_first = tl.where(is_v, first, normed_first * cos - normed_second * sin).to(dtype)
    rotated_second = tl.where(is_v, second, normed_second * cos + normed_first * sin).to(dtype)

    in_place = head < NUM_Q_HEADS + (NUM_KV_HEADS if KEYS_IN_PLACE else 0)
    tl.store(source, rotated_first, mask=in_place)
    tl.store(source + HALF, rotated_second, mask=in_place)

    # (key or value, KV head) counts on through both: that is the order of the cache's second and third
    # dimensions.
    which = head - NUM_Q_HEADS
    target = (
        kv_cache
        + (slot // BLOCK_SIZE).to(tl.int64) * stride_kv_block
        + which * (BLOCK_SIZE * HEAD_SIZE)
        + (slot % BLOCK_SIZE) * HEAD_SIZE
        + half
    )
    to_cache = exists & (which >= 0)
    tl.store(target, rotated_first, mask=to_cache)
    tl.store(target + HALF, rotated_second, mask=to_cache)


def qk_norm_rope_kv_write(
    *,
    qkv: torch.Tensor,
    tokens: NewTokens,
    norm: QKNorm | None,
    kv_cache: torch.Tensor,
    shape: AttentionShape,
    keys_in_place: bool = False,
) -> torch.Tensor:
    """Normalise and rotate queries in place; normalise and rotate keys, and write keys and values to their
    slots.

    The rotation pairs dimension i with i + head_size / 2 (the "half" layout of Hugging Face checkpoints).

    Args:
        qkv: [tokens, (num_q_heads + 2 * num_kv_heads) * head_size], contiguous: queries, keys, values. The
            query part is overwritten, and the key part where `keys_in_place`; the rest is left as it was.
            All of a token without a slot becomes zeros: attention reads tiles that reach past a sequence's
            end, and what padding comes to be, layer after layer, need not be finite.
        tokens: where they are in their sequences and in the cache.
        norm: the layer's norm of queries and keys; None where the model has none.
        kv_cache: [num_blocks, 2, num_kv_heads, block_size, head_size], contiguous after the first dimension,
            dtype of `qkv`.
        shape: the model's attention.
        keys_in_place: also overwrite the keys in `qkv`, for `fresh_prefill_attention`.

    Returns:
        The query part: a view [tokens, num_q_heads, head_size] of `qkv`.
    """
    num_tokens, head_size = qkv.shape[0], shape.head_size
    num_heads = shape.num_q_heads + 2 * shape.num_kv_heads
    heads_per_program = min(triton.next_power_of_2(num_heads), max(1, 1024 // head_size))
    dependent = supports_dependent_launch(qkv.device)
    _qk_norm_rope_kv_write_kernel[(num_tokens, triton.cdiv(num_heads, heads_per_program))](
        qkv=qkv,
        q_weight=None if norm is None else norm.q_weight,
        k_weight=None if norm is None else norm.k_weight,
        cos_sin=tokens.cos_sin,
        positions=tokens.positions,
        slots=tokens.slots,
        kv_cache=kv_cache,
        stride_kv_block=kv_cache.stride(0),
        eps=0.0 if norm is None else norm.eps,
        NUM_Q_HEADS=shape.num_q_heads,
        NUM_KV_HEADS=shape.num_kv_heads,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=kv_cache.shape[3],
        HAS_QK_NORM=norm is not None,
        KEYS_IN_PLACE=keys_in_place,
        DEPENDENT=dependent,
        HEADS_PER_PROGRAM=heads_per_program,
        num_warps=4,
        **launch_options(dependent),
    )
    return qkv.view(num_tokens, num_heads, head_size)[:, : shape.num_q_heads]


def qk_norm_rope_kv_write_reference(
    qkv: torch.Tensor,
    tokens: NewTokens,
    norm: QKNorm | None,
    kv_cache: torch.Tensor,
    shape: AttentionShape,
    keys_in_place: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`qk_norm_rope_kv_write` in torch: (queries, new KV cache), nothing in place; a token without a slot has
    zeros. Where `keys_in_place`, (queries and keys along dimension 1, new KV cache)."""
    block_size = kv_cache.shape[3]
    heads = qkv.view(qkv.shape[0], -1, shape.head_size)
    q, k, v = heads.split([shape.num_q_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1)
    q, k = q.float(), k.float()
    if norm is not None:
        q, k = (
            x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * weight.float()
            for x, weight in ((q, norm.q_weight), (k, norm.k_weight))
        )

    def rotate(x: torch.Tensor) -> torch.Tensor:
        cos, sin = tokens.cos_sin[tokens.positions.long()].unsqueeze(1).chunk(2, dim=-1)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(qkv.dtype)

    live = tokens.slots >= 0
    overwritten = rotate(q).masked_fill(~live[:, None, None], 0)
    keys = rotate(k)
    cache = kv_cache.clone()
    slot = tokens.slots[live].long()
    cache[slot // block_size, 0, :, slot % block_size] = keys[live]
    cache[slot // block_size, 1, :, slot % block_size] = v[live]
    if keys_in_place:
        overwritten = torch.cat([overwritten, keys.masked_fill(~live[:, None, None], 0)], dim=1)
    return overwritten, cache
