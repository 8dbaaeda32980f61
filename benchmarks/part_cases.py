"""Kernels that stand in for parts of transformers' models: experts, routers, and scans of inner states."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.kernel_cases import Case, Inputs, Scene
from benchmarks.roofline import Shape
from dodona.kernels.moe.experts import experts, experts_reference
from dodona.kernels.moe.routing import route, route_reference
from dodona.kernels.state_space.selective_scan import selective_scan, selective_scan_reference
from dodona.kernels.state_space.sequences import SlotSequences

ROUTINGS = 8
"""Choices of experts that calls take in turn, so that few experts don't stay in the L2 cache."""


def expert_cases(scene: Scene, label: str, shape: Shape, tokens: Sequence[int]) -> Iterator[Case]:
    """Experts that tokens choose at random, beside transformers' grouped product over the same weights; and
    their routing weights. Bytes are those of the experts that somebody chose."""
    hidden, size, top_k = shape.hidden_size, shape.intermediate_size, shape.experts_per_token
    for count in tokens:
        torch.manual_seed(count)
        chosen = [torch.rand(count, shape.num_experts).topk(top_k).indices for _ in range(ROUTINGS)]

        def make(count: int = count, chosen: Sequence[torch.Tensor] = chosen) -> Inputs:
            module = _transformers_experts(scene, shape)
            x = scene.random(count, hidden)
            weights = torch.rand(count, top_k, device=scene.device).softmax(-1).to(scene.dtype)
            routings = [c.to(scene.device) for c in chosen]
            own, theirs = itertools.cycle(routings), itertools.cycle(routings)
            given = {"x": x, "gate_up": module.gate_up_proj, "down": module.down_proj, "activation": "silu"}

            def kernel(routing: torch.Tensor) -> torch.Tensor:
                return experts(**given, chosen=routing, routing_weights=weights)

            return Inputs(
                lambda: kernel(next(own)),
                lambda: module(x, next(theirs), weights),
                lambda: [
                    (kernel(r), experts_reference(**given, chosen=r, routing_weights=weights))
                    for r in routings[:1]
                ],
            )

        def make_routing(count: int = count) -> Inputs:
            logits = scene.random(count, shape.num_experts)
            given: dict[str, Any] = {"top_k": top_k, "normalise": True, "dtype": scene.dtype}
            return Inputs(
                lambda: route(logits=logits, **given),
                lambda: route_reference(logits, **given),
                lambda: list(
                    zip(route(logits=logits, **given), route_reference(logits, **given), strict=True)
                ),
            )

        distinct = sum(len(c.unique()) for c in chosen) / len(chosen)
        moved = (distinct * 3 * hidden * size + 2 * count * hidden) * scene.dtype.itemsize
        name = f"{label} {count} tokens"
        yield Case("experts", name, int(moved), 6 * count * top_k * hidden * size, make)
        yield Case("route", name, count * shape.num_experts * scene.dtype.itemsize, 0, make_routing)


def _transformers_experts(scene: Scene, shape: Shape) -> Any:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = Qwen3MoeConfig(
        hidden_size=shape.hidden_size,
        moe_intermediate_size=shape.intermediate_size,
        num_experts=shape.num_experts,
        num_experts_per_tok=shape.experts_per_token,
        hidden_act="silu",
    )
    config._experts_implementation = "grouped_mm"
    with torch.device(scene.device):
        module = Qwen3MoeExperts(config).to(scene.dtype).requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    return module


def scan_cases(
    scene: Scene,
    label: str,
    config: dict[str, Any],
    decodes: Sequence[int],
    prompts: Sequence[tuple[int, int]],
) -> Iterator[Case]:
    """Mamba 2 over decodes, beside transformers' reference over gathered states, and over (prompts, tokens of
    each)."""
    heads, head_size, state_size = (config[f"mamba_{n}"] for n in ("n_heads", "d_head", "d_state"))
    groups = config["mamba_n_groups"]
    for count, length in [*((count, 1) for count in decodes), *prompts]:

        def make(count: int = count, length: int = length) -> Inputs:
            tokens = count * length
            given: dict[str, Any] = {
                "x": scene.random(tokens, heads, head_size),
                "dt": scene.random(tokens, heads),
                "a": -torch.rand(heads, device=scene.device) - 0.1,
                "b": scene.random(tokens, groups, state_size) / state_size**0.5,
                "c": scene.random(tokens, groups, state_size),
                "d": scene.random(heads),
                "dt_bias": scene.random(heads),
                "softplus": True,
                "sequences": SlotSequences(
                    torch.arange(count + 1, dtype=torch.int32, device=scene.device) * length,
                    torch.arange(count, device=scene.device),
                    torch.full((count,), length > 1, device=scene.device),
                    length,
                ),
            }
            state = torch.randn(count, heads, head_size, state_size, device=scene.device)

            def verify() -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
                out, new_state = selective_scan_reference(**given, state=state)
                return [(selective_scan(**given, state=state), out), (state, new_state)]

            def theirs() -> object:
                from transformers.models.falcon_h1.modeling_falcon_h1 import mamba2_selective_state_update

                return mamba2_selective_state_update(
                    state,
                    given["x"],
                    given["dt"][:, :, None].expand(-1, -1, head_size),
                    given["a"][:, None, None].expand(-1, head_size, state_size),
                    given["b"],
                    given["c"],
                    given["d"][:, None].expand(-1, head_size),
                    dt_bias=given["dt_bias"][:, None].expand(-1, head_size),
                    dt_softplus=True,
                )

            return Inputs(
                lambda: selective_scan(**given, state=state), theirs if length == 1 else None, verify
            )

        moved = count * heads * head_size * state_size * 4 * 2
        moved += count * length * (heads * head_size + groups * state_size * 2) * scene.dtype.itemsize
        name = f"{label} {count} decodes" if length == 1 else f"{label} {count} x {length}"
        # Products of the recurrence; they take no tensor cores.
        yield Case("selective_scan", name, moved, 0, make)
