"""Gated experts, of which each token has a few: down(activation(gate(x)) * up(x)), weighted and added up."""

from __future__ import annotations

import torch

from dodona.kernels.linear.activation import gated_reference
from dodona.kernels.moe.few_tokens import few_tokens_experts
from dodona.kernels.moe.grouped import MOST_EXPERTS, grouped_experts

MOST_FEW_TOKENS = 3
"""The most tokens that `few_tokens_experts` computes, as measured on an H200."""


def experts(
    *,
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    chosen: torch.Tensor,
    routing_weights: torch.Tensor,
    activation: str,
) -> torch.Tensor:
    """The weighted sum of each token's experts. Nothing of the launches depends on `chosen`, so that a
    captured graph serves any routing.

    Args:
        x: [tokens, hidden], float, contiguous.
        gate_up: [experts, 2 * size, hidden], contiguous, dtype of `x`: the gate's rows, then up's.
        down: [experts, hidden, size], contiguous, dtype of `x`.
        chosen: [tokens, top_k], int, contiguous: experts of each token; a number that is no expert's
            contributes nothing.
        routing_weights: [tokens, top_k], float, contiguous.
        activation: one of `linear.activation.ACTIVATIONS`.

    Returns:
        [tokens, hidden], dtype of `x`: sums in fp32; what is between the projections is rounded to the dtype
        of `x`, and with more than `MOST_FEW_TOKENS` tokens so is what each expert contributes.
    """
    if len(gate_up) > MOST_EXPERTS:
        raise ValueError(f"gate_up: expected at most {MOST_EXPERTS} experts, got {len(gate_up)}")
    compute = few_tokens_experts if len(x) <= MOST_FEW_TOKENS else grouped_experts
    return compute(
        x=x,
        gate_up=gate_up,
        down=down,
        chosen=chosen,
        routing_weights=routing_weights,
        activation=activation,
    )


def experts_reference(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    chosen: torch.Tensor,
    routing_weights: torch.Tensor,
    activation: str,
) -> torch.Tensor:
    """`experts` in torch, in fp32, pair by pair."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for token, (row, weights) in enumerate(zip(chosen.tolist(), routing_weights.tolist(), strict=True)):
        for expert, weight in zip(row, weights, strict=True):
            if 0 <= expert < len(gate_up):
                gate, up = (gate_up[expert].float() @ x[token].float()).chunk(2)
                out[token] += weight * (down[expert].float() @ gated_reference(gate, up, activation))
    return out.to(x.dtype)
