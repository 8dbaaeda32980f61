"""Routing weights of a step's tokens: softmax over all experts, the largest k, and their sum made 1."""

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

MOST_ROUTED_EXPERTS = 4096


@triton.jit
def _route_kernel(
    logits,
    weights,
    chosen,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    SLOTS: tl.constexpr,
    NORMALISE: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK)
    exists = expert < NUM_EXPERTS
    values = tl.load(logits + token * NUM_EXPERTS + expert, mask=exists, other=0.0).to(tl.float32)
    values = tl.where(exists, values, float("-inf"))
    shares = tl.exp(values - tl.max(values, axis=0))
    total = tl.sum(shares, axis=0)
    slot = tl.arange(0, SLOTS)
    best = tl.zeros((SLOTS,), tl.float32)
    best_expert = tl.zeros((SLOTS,), tl.int32)
    left = tl.where(exists, shares, -1.0)
    for i in tl.static_range(TOP_K):
        share, index = tl.max(left, axis=0, return_indices=True)
        # A row of NaN must not name an expert that there is not.
        index = tl.minimum(index, NUM_EXPERTS - 1)
        best = tl.where(slot == i, share, best)
        best_expert = tl.where(slot == i, index, best_expert)
        left = tl.where(expert == index, -1.0, left)
    if NORMALISE:
        total = tl.sum(best, axis=0)
    target = token * TOP_K + slot
    tl.store(weights + target, (best / total).to(weights.dtype.element_ty), mask=slot < TOP_K)
    tl.store(chosen + target, best_expert.to(tl.int64), mask=slot < TOP_K)


def route(
    *, logits: torch.Tensor, top_k: int, normalise: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top_k` largest of `softmax(logits)`, in fp32, and their experts.

    Args:
        logits: [tokens, experts], float, contiguous; at most `MOST_ROUTED_EXPERTS` experts.
        normalise: divide the weights by their sum.
        dtype: of the weights.

    Returns:
        Weights [tokens, top_k], the largest first, and experts [tokens, top_k] int64. Of equal logits, which
        come first is not defined.
    """
    tokens, num_experts = logits.shape
    weights = torch.empty((tokens, top_k), dtype=dtype, device=logits.device)
    chosen = torch.empty((tokens, top_k), dtype=torch.int64, device=logits.device)
    dependent = supports_dependent_launch(logits.device)
    _route_kernel[(tokens,)](
        logits=logits,
        weights=weights,
        chosen=chosen,
        NUM_EXPERTS=num_experts,
        TOP_K=top_k,
        SLOTS=triton.next_power_of_2(top_k),
        NORMALISE=normalise,
        DEPENDENT=dependent,
        BLOCK=triton.next_power_of_2(num_experts),
        num_warps=1 if num_experts <= 256 else 4,
        **launch_options(dependent),
    )
    return weights, chosen


def route_reference(
    logits: torch.Tensor, top_k: int, normalise: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """`route` in torch."""
    weights, chosen = logits.float().softmax(-1).topk(top_k)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(dtype), chosen
