"""Experts of a step with few tokens: two launches that read the chosen experts' weights and no others.

A pair is a token with one of its experts. The first launch has programs for each pair: its part of the gate
and of the up projection, and the activation. The second has programs for each token: their part of the down
projections of all of the token's experts, weighted and added up in fp32, so that the sum is the same each
time. Weights stream through registers into plain multiply-adds, as in `single_token_linear`. Tokens with the
same expert read its weights again, most often from the L2 cache.
"""

# ruff: noqa: RUF005 - kernels can't unpack tuples
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)
from dodona.kernels.linear.activation import activate
from dodona.kernels.linear.single_token_linear import Tiles, as_words, first_of, second_of


@triton.jit
def _gate_up_kernel(
    x,
    weight,
    experts,
    out,
    num_experts,
    TOP_K: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pair = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    if DEPENDENT:
        wait_for_inputs()
        # Not before: the next kernel reads `experts` before it waits.
        let_next_start()
    expert = tl.load(experts + pair)
    expert = tl.where((expert >= 0) & (expert < num_experts), expert, 0)
    tile = weight + expert.to(tl.int64) * (2 * N * K) + n[:, None] * K + k[None, :]
    row = x + (pair // TOP_K) * K + k
    products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    products_up = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for i in tl.static_range((K + BLOCK_K - 1) // BLOCK_K):
        exists = i * BLOCK_K + k < K
        inside = (n < N)[:, None] & exists[None, :]
        gates = tl.load(tile + i * BLOCK_K, mask=inside, other=0)
        ups = tl.load(tile + (N * K + i * BLOCK_K), mask=inside, other=0)
        words = tl.load(row + i * BLOCK_K, mask=exists, other=0)
        first_x = first_of(words, PAIRS)[None, :]
        products += first_x * first_of(gates, PAIRS)
        products_up += first_x * first_of(ups, PAIRS)
        if PAIRS:
            second_x = second_of(words)[None, :]
            products += second_x * second_of(gates)
            products_up += second_x * second_of(ups)
    result = activate(tl.sum(products, axis=1), ACTIVATION) * tl.sum(products_up, axis=1)
    tl.store(out + pair * N + n, result.to(out.dtype.element_ty), mask=n < N)


@triton.jit
def _down_kernel(
    h,
    weight,
    experts,
    routing_weights,
    out,
    num_experts,
    TOP_K: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    DEPENDENT: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
    token = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    TILES: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    tiles = ()
    for j in tl.static_range(TOP_K):
        # Written before the kernel before this one began: see there. Not from a cache that may be older.
        expert = tl.load(experts + token * TOP_K + j, cache_modifier=".cg")
        expert = tl.where((expert >= 0) & (expert < num_experts), expert, 0)
        tiles = tiles + (weight + expert.to(tl.int64) * (N * K) + n[:, None] * K + k[None, :],)
    fetched = ()
    for i in tl.static_range(AHEAD):
        inside = (n < N)[:, None] & ((i % TILES) * BLOCK_K + k < K)[None, :]
        fetched = fetched + (tl.load(tiles[i // TILES] + (i % TILES) * BLOCK_K, mask=inside, other=0),)
    if DEPENDENT:
        wait_for_inputs()
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for j in tl.static_range(TOP_K):
        pair = token * TOP_K + j
        products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for i in tl.static_range(TILES):
            exists = i * BLOCK_K + k < K
            if j * TILES + i < AHEAD:
                w = fetched[j * TILES + i]
            else:
                w = tl.load(tiles[j] + i * BLOCK_K, mask=(n < N)[:, None] & exists[None, :], other=0)
            words = tl.load(h + pair * K + i * BLOCK_K + k, mask=exists, other=0)
            products += first_of(words, PAIRS)[None, :] * first_of(w, PAIRS)
            if PAIRS:
                products += second_of(words)[None, :] * second_of(w)
        expert = tl.load(experts + pair)
        share = tl.load(routing_weights + pair).to(tl.float32)
        total += products * tl.where((expert >= 0) & (expert < num_experts), share, 0.0)
    tl.store(out + token * N + n, tl.sum(total, axis=1).to(out.dtype.element_ty), mask=n < N)


@dataclass(frozen=True, slots=True)
class FewTokensTiles:
    """How the two products are cut up; in both, `k` counts elements."""

    gate_up: Tiles
    down: Tiles


FEW_TOKENS_TILES = FewTokensTiles(
    gate_up=Tiles(n=8, k=512, num_warps=2), down=Tiles(n=2, k=256, num_warps=1, ahead=12)
)
"""As measured on an H200, for the experts of Qwen3-30B-A3B."""


def few_tokens_experts(
    *,
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    chosen: torch.Tensor,
    routing_weights: torch.Tensor,
    activation: str,
    tiles: FewTokensTiles = FEW_TOKENS_TILES,
) -> torch.Tensor:
    """As `experts.experts`. tiles: how to cut the work up."""
    (tokens, hidden), (num_experts, double, _), top_k = x.shape, gate_up.shape, chosen.shape[1]
    size = double // 2
    between = torch.empty((tokens * top_k, size), dtype=x.dtype, device=x.device)
    out = torch.empty_like(x)
    dependent = supports_dependent_launch(x.device)
    pairs = x.dtype == torch.bfloat16 and hidden % 2 == 0 and size % 2 == 0
    per_word = 2 if pairs else 1
    options = launch_options(dependent)
    _gate_up_kernel[(triton.cdiv(size, tiles.gate_up.n), tokens * top_k)](
        x=as_words(x, pairs),
        weight=as_words(gate_up, pairs),
        experts=chosen,
        out=between,
        num_experts=num_experts,
        TOP_K=top_k,
        N=size,
        K=hidden // per_word,
        PAIRS=pairs,
        ACTIVATION=activation,
        DEPENDENT=dependent,
        BLOCK_N=tiles.gate_up.n,
        BLOCK_K=min(tiles.gate_up.k, triton.next_power_of_2(hidden)) // per_word,
        num_warps=tiles.gate_up.num_warps,
        **options,
    )
    block_k = min(tiles.down.k, triton.next_power_of_2(size)) // per_word
    _down_kernel[(triton.cdiv(hidden, tiles.down.n), tokens)](
        h=as_words(between, pairs),
        weight=as_words(down, pairs),
        experts=chosen,
        routing_weights=routing_weights,
        out=out,
        num_experts=num_experts,
        TOP_K=top_k,
        N=hidden,
        K=size // per_word,
        PAIRS=pairs,
        DEPENDENT=dependent,
        AHEAD=min(tiles.down.ahead, top_k * triton.cdiv(size // per_word, block_k)),
        BLOCK_N=tiles.down.n,
        BLOCK_K=block_k,
        num_warps=tiles.down.num_warps,
        **options,
    )
    return out
