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
    HEADS_PER_PROGRAM: tl.constexpr,
):
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
    positions: torch.Tensor,
    slots: torch.Tensor,
    cos_sin: torch.Tensor,
    kv_cache: torch.Tensor,
    num_q_heads: int,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
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
        positions: [tokens], int32 or int64: each token's position in its sequence.
        slots: [tokens], int32: block id * block_size + offset in the block, or -1: then nothing is written to
            the cache for the token.
        cos_sin: [max positions, head_size], float32: cosines in the first half of a row, sines in the second.
        kv_cache: [num_blocks, 2, num_kv_heads, block_size, head_size], contiguous after the first dimension,
            dtype of `qkv`.
        num_q_heads: query heads.
        q_weight: [head_size], the query norm's weight, or None for no query and key norms.
        k_weight: [head_size], the key norm's weight; None exactly where `q_weight` is.
        eps: the norms' epsilon.
        keys_in_place: also overwrite the keys in `qkv`, for `fresh_prefill_attention`.

    Returns:
        The query part: a view [tokens, num_q_heads, head_size] of `qkv`.
    """
    tokens = qkv.shape[0]
    _, _, num_kv_heads, block_size, head_size = kv_cache.shape
    num_heads = num_q_heads + 2 * num_kv_heads
    heads_per_program = min(triton.next_power_of_2(num_heads), max(1, 1024 // head_size))
    _qk_norm_rope_kv_write_kernel[(tokens, triton.cdiv(num_heads, heads_per_program))](
        qkv=qkv,
        q_weight=q_weight,
        k_weight=k_weight,
        cos_sin=cos_sin,
        positions=positions,
        slots=slots,
        kv_cache=kv_cache,
        stride_kv_block=kv_cache.stride(0),
        eps=eps,
        NUM_Q_HEADS=num_q_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=block_size,
        HAS_QK_NORM=q_weight is not None,
        KEYS_IN_PLACE=keys_in_place,
        HEADS_PER_PROGRAM=heads_per_program,
        num_warps=4,
    )
    return qkv.view(tokens, num_heads, head_size)[:, :num_q_heads]


def qk_norm_rope_kv_write_reference(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cos_sin: torch.Tensor,
    kv_cache: torch.Tensor,
    num_q_heads: int,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    keys_in_place: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`qk_norm_rope_kv_write` in torch: (queries, new KV cache), nothing in place; a token without a slot has
    zeros. Where `keys_in_place`, (queries and keys along dimension 1, new KV cache)."""
    tokens = qkv.shape[0]
    _, _, num_kv_heads, block_size, head_size = kv_cache.shape
    heads = qkv.view(tokens, -1, head_size)
    q, k, v = heads.split([num_q_heads, num_kv_heads, num_kv_heads], dim=1)

    def norm(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        x = x.float()
        if weight is None:
            return x
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()

    def rotate(x: torch.Tensor) -> torch.Tensor:
        cos, sin = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(qkv.dtype)

    live = slots >= 0
    overwritten = rotate(norm(q, q_weight)).masked_fill(~live[:, None, None], 0)
    keys = rotate(norm(k, k_weight))
    cache = kv_cache.clone()
    slot = slots[live].long()
    cache[slot // block_size, 0, :, slot % block_size] = keys[live]
    cache[slot // block_size, 1, :, slot % block_size] = v[live]
    if keys_in_place:
        overwritten = torch.cat([overwritten, keys.masked_fill(~live[:, None, None], 0)], dim=1)
    return overwritten, cache
