"""Rotary embedding of queries and keys by cosines and sines that are given for each token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)


@triton.jit
def _rotate_kernel(
    q,
    k,
    cos,
    sin,
    out_q,
    out_k,
    stride_q_token,
    stride_q_head,
    stride_k_token,
    stride_k_head,
    stride_cos,
    stride_sin,
    NUM_Q_HEADS: tl.constexpr,
    NUM_K_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    SIZE: tl.constexpr = HEAD_SIZE // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    half = tl.arange(0, HALF)[None, :]
    inside = half < SIZE
    cos_first = tl.load(cos + token * stride_cos + half, mask=inside).to(tl.float32)
    cos_second = tl.load(cos + token * stride_cos + SIZE + half, mask=inside).to(tl.float32)
    sin_first = tl.load(sin + token * stride_sin + half, mask=inside).to(tl.float32)
    sin_second = tl.load(sin + token * stride_sin + SIZE + half, mask=inside).to(tl.float32)
    is_q = head < NUM_Q_HEADS
    k_head = head - NUM_Q_HEADS
    is_k = (k_head >= 0) & (k_head < NUM_K_HEADS)
    from_q = q + token * stride_q_token + head * stride_q_head + half
    from_k = k + token * stride_k_token + k_head * stride_k_head + half
    first = tl.load(from_q, mask=is_q & inside, other=0.0).to(tl.float32)
    second = tl.load(from_q + SIZE, mask=is_q & inside, other=0.0).to(tl.float32)
    first += tl.load(from_k, mask=is_k & inside, other=0.0).to(tl.float32)
    second += tl.load(from_k + SIZE, mask=is_k & inside, other=0.0).to(tl.float32)
    rotated_first = (first * cos_first - second * sin_first).to(out_q.dtype.element_ty)
    rotated_second = (second * cos_second + first * sin_second).to(out_q.dtype.element_ty)
    to_q = out_q + (token * NUM_Q_HEADS + head) * HEAD_SIZE + half
    to_k = out_k + (token * NUM_K_HEADS + k_head) * HEAD_SIZE + half
    tl.store(to_q, rotated_first, mask=is_q & inside)
    tl.store(to_q + SIZE, rotated_second, mask=is_q & inside)
    tl.store(to_k, rotated_first, mask=is_k & inside)
    tl.store(to_k + SIZE, rotated_second, mask=is_k & inside)


def rotate(
    *, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x * cos + swapped(x) * sin` for queries and keys, where `swapped` gives the second half of a head's
    dimensions, negated, and then the first; computed in fp32.

    Args:
        q: [tokens, num_q_heads, head_size]; the last dimension is contiguous.
        k: [tokens, num_kv_heads, head_size], likewise, dtype of `q`.
        cos, sin: [tokens, head_size], any floating dtype; the last dimension is contiguous.

    Returns:
        Rotated queries and keys, contiguous, dtype of `q`.
    """
    tokens, num_q_heads, head_size = q.shape
    num_k_heads = k.shape[1]
    out_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    out_k = torch.empty(k.shape, dtype=q.dtype, device=q.device)
    half = triton.next_power_of_2(head_size // 2)
    heads = min(triton.next_power_of_2(num_q_heads + num_k_heads), max(1, 1024 // half))
    dependent = supports_dependent_launch(q.device)
    _rotate_kernel[(tokens, triton.cdiv(num_q_heads + num_k_heads, heads))](
        q=q,
        k=k,
        cos=cos,
        sin=sin,
        out_q=out_q,
        out_k=out_k,
        stride_q_token=q.stride(0),
        stride_q_head=q.stride(1),
        stride_k_token=k.stride(0),
        stride_k_head=k.stride(1),
        stride_cos=cos.stride(0),
        stride_sin=sin.stride(0),
        NUM_Q_HEADS=num_q_heads,
        NUM_K_HEADS=num_k_heads,
        HEAD_SIZE=head_size,
        HALF=half,
        HEADS=heads,
        DEPENDENT=dependent,
        num_warps=4,
        **launch_options(dependent),
    )
    return out_q, out_k


def rotate_reference(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rotate` in torch."""

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.float().chunk(2, dim=-1)
        swapped = torch.cat([-second, first], dim=-1)
        return (x.float() * cos.float()[:, None] + swapped * sin.float()[:, None]).to(x.dtype)

    return rotated(q), rotated(k)
