"""A mixture of experts begun from a trained dense model ("sparse upcycling", Komatsuzaki et al., 2022)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

REDRAWN_SHARE = 0.25
"""Of each second copy's hidden units, as many are drawn afresh ("drop-upcycling", Nakamura et al., 2025)."""


@torch.no_grad()
def upcycle_qwen3(model: Any, dense: Path) -> None:
    """Fill the Qwen3MoeForCausalLM `model` from the Qwen3ForCausalLM checkpoint `dense`, whose attention and
    embeddings have the same shapes.

    The model has four experts, two for each token, each half as wide as the dense MLP: experts 0 and 1 are
    the halves of the dense MLP, 2 and 3 copies of them with some hidden units redrawn. The router's
    rows of one pair begin almost equal, so a token begins with a whole pair.
    """
    from transformers import Qwen3ForCausalLM

    old = Qwen3ForCausalLM.from_pretrained(dense, dtype=torch.float32)
    mlps = [layer.mlp for layer in old.model.layers]
    missing, _ = model.load_state_dict(old.state_dict(), strict=False)
    assert all(".mlp." in name for name in missing), missing
    for layer, mlp in zip(model.model.layers, mlps, strict=True):
        experts, router = layer.mlp.experts, layer.mlp.gate.weight
        half = experts.intermediate_dim
        spread = {p: p.std().item() for p in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)}
        for expert in range(experts.num_experts):
            units = slice(expert % 2 * half, (expert % 2 + 1) * half)
            gate, up = mlp.gate_proj.weight[units].clone(), mlp.up_proj.weight[units].clone()
            # Two experts of weight 1/2 stand for the whole.
            down = 2 * mlp.down_proj.weight[:, units]
            if expert >= 2:
                redrawn = torch.randperm(half)[: int(half * REDRAWN_SHARE)]
                gate[redrawn] = torch.randn_like(gate[redrawn]) * spread[mlp.gate_proj.weight]
                up[redrawn] = torch.randn_like(up[redrawn]) * spread[mlp.up_proj.weight]
                down[:, redrawn] = torch.randn_like(down[:, redrawn]) * spread[mlp.down_proj.weight]
            experts.gate_up_proj[expert].copy_(torch.cat((gate, up)))
            experts.down_proj[expert].copy_(down)
        pairs = 0.1 * torch.randn(2, router.shape[1])
        router.copy_(pairs.repeat_interleave(2, 0) + 0.005 * torch.randn_like(router))
