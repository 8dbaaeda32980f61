"""Routers and stacked experts that kernels compute; found as `fusions` finds its parts.

transformers holds the experts of a layer in one module: `gate_up_proj` [experts, 2 * size, hidden] and
`down_proj` [experts, hidden, size], called with hidden states, the experts of each token and their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from dodona.kernels.linear.activation import ACTIVATIONS
from dodona.kernels.linear.single_token_linear import single_token_linear
from dodona.kernels.moe.experts import MOST_FEW_TOKENS, experts
from dodona.kernels.moe.grouped import MOST_EXPERTS
from dodona.kernels.moe.routing import MOST_ROUTED_EXPERTS, route
from dodona.runners.v1.agreement import ROUNDING, close, random, reaching_far

_ROUTED_ROWS = 256
"""Rows that a router is tried with; those count whose largest logits can't change places by rounding."""


def fused_experts(module: Any) -> Callable[..., Any] | None:
    """For a module of stacked experts with gates: the same by `experts`."""
    parameters = dict(module.named_parameters())
    if set(parameters) != {"gate_up_proj", "down_proj"}:
        return None
    gate_up, down = parameters["gate_up_proj"], parameters["down_proj"]
    if gate_up.ndim != 3 or gate_up.dtype not in ROUNDING or gate_up.dtype != down.dtype:
        return None
    num_experts, double, hidden = gate_up.shape
    if down.shape != (num_experts, hidden, double // 2) or num_experts > MOST_EXPERTS:
        return None
    if not gate_up.is_contiguous() or not down.is_contiguous():
        return None

    def make(activation: str) -> Callable[..., Any]:
        def forward(
            hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
        ) -> torch.Tensor:
            return experts(
                x=hidden_states.contiguous(),
                gate_up=module.gate_up_proj,
                down=module.down_proj,
                chosen=top_k_index.contiguous(),
                routing_weights=top_k_weights.contiguous(),
                activation=activation,
            )

        return forward

    top_k = min(2, num_experts)
    inputs = []
    for tokens in (2, MOST_FEW_TOKENS + 1):
        scores = random(tokens, num_experts, like=gate_up).float().softmax(-1)
        weights, chosen = scores.topk(top_k)
        x = random(tokens, hidden, like=gate_up)
        far = reaching_far(x, gate_up[chosen[0, 0]])
        inputs += [(each, chosen, weights.to(gate_up.dtype)) for each in (x, far)]
    try:
        expected = [module(*arguments) for arguments in inputs]
        for activation in ACTIVATIONS:
            forward = make(activation)
            if all(close(r, forward(*arguments)) for r, arguments in zip(expected, inputs, strict=True)):
                return forward
    except Exception:  # it takes other arguments, or the GPU can't run the kernels
        return None
    return None


def fused_router(module: Any) -> Callable[..., Any] | None:
    """For a module with a weight [experts, hidden] that gives logits, routing weights and the experts of each
    token: the same by `route`, where the weights are those of a softmax."""
    parameters = dict(module.named_parameters())
    weight = parameters.get("weight")
    if len(parameters) != 1 or weight is None or weight.ndim != 2 or weight.dtype not in ROUNDING:
        return None
    num_experts, hidden = weight.shape
    if type(module) is nn.Linear or num_experts > MOST_ROUTED_EXPERTS:
        return None
    if next(module.buffers(), None) is not None:
        return None  # such as a bias of the choice, which may be zeros until weights are reloaded
    x = random(_ROUTED_ROWS, hidden, like=weight)
    try:
        logits, weights, chosen = module(x)
        top_k = chosen.shape[1]
        clear = _clear_rows(x.float() @ weight.float().T, top_k, weight.dtype)
    except Exception:  # it is something else
        return None
    if not 0 < top_k < num_experts or logits.dtype != weight.dtype or weights.dtype not in ROUNDING:
        return None
    dtype = weights.dtype

    def make(normalise: bool) -> Callable[..., Any]:
        def forward(hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            rows = hidden_states.reshape(-1, hidden).contiguous()
            if len(rows) == 1:
                logits = single_token_linear(x=rows, weight=module.weight)
            else:
                logits = nn.functional.linear(rows, module.weight)
            return logits, *route(logits=logits, top_k=top_k, normalise=normalise, dtype=dtype)

        return forward

    if len(clear) < 2:
        return None
    for normalise in (True, False):
        forward = make(normalise)
        if _routes_alike((logits[clear], weights[clear], chosen[clear]), forward, x[clear]):
            return forward
    return None


def _routes_alike(expected: Sequence[torch.Tensor], forward: Callable[..., Any], x: torch.Tensor) -> bool:
    """Whether `forward` gives what is expected for all rows, and for the first one by itself."""
    try:
        pairs = [*zip(expected, forward(x), strict=True)]
        pairs += [(every[:1], single) for every, single in zip(expected, forward(x[:1]), strict=True)]
    except Exception:  # the GPU can't run the kernel
        return False
    return all(close(a, b) if a.is_floating_point() else torch.equal(a, b) for a, b in pairs)


def _clear_rows(logits: torch.Tensor, top_k: int, dtype: torch.dtype) -> torch.Tensor:
    """Indices of the rows of fp32 logits whose first `top_k` stay in order when rounded to `dtype`."""
    first = logits.topk(top_k + 1).values
    gaps = (first[:, :-1] - first[:, 1:]).min(1).values
    # Neighbours farther apart than this stay in order when each is rounded.
    return (gaps > 1.25 * torch.finfo(dtype).eps * logits.abs().amax(1)).nonzero()[:, 0]
