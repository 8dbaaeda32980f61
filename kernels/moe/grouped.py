"""Experts of a step with many tokens: pairs of a token and an expert in blocks of one expert each.

One launch sorts the pairs by expert and cuts them into blocks (the plan), one has the gate and up projections
with the activation, one the down projection with the routing weights, and one adds up the pairs of each
token, in their order. The plan has room for the most blocks that there can be, so that a captured graph holds
the same launches whatever the routing; programs without a block end at once. The order of the pairs within a
block differs from run to run, which changes no result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)
from dodona.kernels.devices import shared_memory
from dodona.kernels.linear.activation import activate

MOST_EXPERTS = 1024
CHUNKS = (1024, 8192)
"""Pairs that the plan's program looks at together, where these are all, and where there are more."""


@triton.jit
def _histogram(experts, first, last, num_experts, BINS: tl.constexpr, CHUNK: tl.constexpr):
    """How many of the pairs [first, last) each expert has; pairs without one are in the last bin."""
    counts = tl.zeros((BINS,), tl.int32)
    for start in range(first, last, CHUNK):
        pair = start + tl.arange(0, CHUNK)
        expert = tl.load(experts + pair, mask=pair < last, other=-1).to(tl.int32)
        expert = tl.where((expert >= 0) & (expert < num_experts), expert, BINS - 1)
        counts += tl.histogram(expert, BINS)
    return tl.where(tl.arange(0, BINS) < num_experts, counts, 0)


@triton.jit(do_not_specialize=["num_pairs", "num_experts", "max_blocks"])
def _plan_kernel(
    experts,
    order,
    blocks,
    cursors,
    num_pairs,
    num_experts,
    max_blocks,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    counts = _histogram(experts, 0, num_pairs, num_experts, BINS, CHUNK)
    expert = tl.arange(0, BINS)
    starts = tl.cumsum(counts, 0) - counts
    tl.store(cursors + expert, starts)
    own = (counts + BLOCK - 1) // BLOCK
    ends = tl.cumsum(own, 0)
    for i in range(tl.max(own, 0)):
        entry = blocks + 3 * (ends - own + i)
        has = i < own
        tl.store(entry, expert, mask=has)
        tl.store(entry + 1, starts + i * BLOCK, mask=has)
        tl.store(entry + 2, tl.minimum(counts - i * BLOCK, BLOCK), mask=has)
    for start in range(tl.max(ends, 0), max_blocks, CHUNK):
        block = start + tl.arange(0, CHUNK)
        tl.store(blocks + 3 * block + 2, 0, mask=block < max_blocks)
    tl.debug_barrier()
    for start in range(0, num_pairs, CHUNK):
        pair = start + tl.arange(0, CHUNK)
        chosen = tl.load(experts + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
        valid = (chosen >= 0) & (chosen < num_experts)
        place = tl.atomic_add(cursors + tl.where(valid, chosen, 0), 1, mask=valid)
        tl.store(order + place, pair, mask=valid)


@triton.jit
def _gate_up_kernel(
    x,
    weight,
    order,
    blocks,
    out,
    TOP_K: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SWAPPED: tl.constexpr,
    DEPENDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    entry = blocks + 3 * tl.program_id(0)
    count = tl.load(entry + 2)
    if count == 0:
        return
    expert = tl.load(entry).to(tl.int64)
    m = tl.arange(0, BLOCK)
    pair = tl.load(order + tl.load(entry + 1) + m, mask=m < count, other=0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    rows = x + (pair // TOP_K).to(tl.int64)[:, None] * K + k[None, :]
    tile = weight + expert * (2 * N * K) + n[:, None] * K + k[None, :]
    if SWAPPED:
        gate = tl.zeros((BLOCK_N, BLOCK), tl.float32)
    else:
        gate = tl.zeros((BLOCK, BLOCK_N), tl.float32)
    up = gate
    for i in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            values = tl.load(rows + i, mask=(m < count)[:, None], other=0.0)
        else:
            values = tl.load(rows + i, mask=(m < count)[:, None] & (i + k < K)[None, :], other=0.0)
        if K % BLOCK_K == 0 and N % BLOCK_N == 0:
            gates = tl.load(tile + i)
            ups = tl.load(tile + (N * K) + i)
        else:
            inside = (n < N)[:, None] & (i + k < K)[None, :]
            gates = tl.load(tile + i, mask=inside, other=0.0)
            ups = tl.load(tile + (N * K) + i, mask=inside, other=0.0)
        if SWAPPED:
            gate = tl.dot(gates, values.T, gate, input_precision=PRECISION)
            up = tl.dot(ups, values.T, up, input_precision=PRECISION)
        else:
            gate = tl.dot(values, gates.T, gate, input_precision=PRECISION)
            up = tl.dot(values, ups.T, up, input_precision=PRECISION)
    result = (activate(gate, ACTIVATION) * up).to(out.dtype.element_ty)
    target = pair.to(tl.int64) * N
    if SWAPPED:
        tl.store(out + target[None, :] + n[:, None], result, mask=(n < N)[:, None] & (m < count)[None, :])
    else:
        tl.store(out + target[:, None] + n[None, :], result, mask=(m < count)[:, None] & (n < N)[None, :])


@triton.jit
def _down_kernel(
    h,
    weight,
    order,
    blocks,
    routing_weights,
    out,
    N: tl.constexpr,
    K: tl.constexpr,
    SWAPPED: tl.constexpr,
    DEPENDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    entry = blocks + 3 * tl.program_id(0)
    count = tl.load(entry + 2)
    if count == 0:
        return
    expert = tl.load(entry).to(tl.int64)
    m = tl.arange(0, BLOCK)
    pair = tl.load(order + tl.load(entry + 1) + m, mask=m < count, other=0)
    share = tl.load(routing_weights + pair, mask=m < count, other=0.0).to(tl.float32)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    rows = h + pair.to(tl.int64)[:, None] * K + k[None, :]
    tile = weight + expert * (N * K) + n[:, None] * K + k[None, :]
    if SWAPPED:
        product = tl.zeros((BLOCK_N, BLOCK), tl.float32)
    else:
        product = tl.zeros((BLOCK, BLOCK_N), tl.float32)
    for i in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            values = tl.load(rows + i, mask=(m < count)[:, None], other=0.0)
        else:
            values = tl.load(rows + i, mask=(m < count)[:, None] & (i + k < K)[None, :], other=0.0)
        if K % BLOCK_K == 0 and N % BLOCK_N == 0:
            weights = tl.load(tile + i)
        else:
            weights = tl.load(tile + i, mask=(n < N)[:, None] & (i + k < K)[None, :], other=0.0)
        if SWAPPED:
            product = tl.dot(weights, values.T, product, input_precision=PRECISION)
        else:
            product = tl.dot(values, weights.T, product, input_precision=PRECISION)
    target = pair.to(tl.int64) * N
    if SWAPPED:
        result = (product * share[None, :]).to(out.dtype.element_ty)
        tl.store(out + target[None, :] + n[:, None], result, mask=(n < N)[:, None] & (m < count)[None, :])
    else:
        result = (product * share[:, None]).to(out.dtype.element_ty)
        tl.store(out + target[:, None] + n[None, :], result, mask=(m < count)[:, None] & (n < N)[None, :])


@triton.jit
def _sum_kernel(
    parts,
    experts,
    routing_weights,
    out,
    num_experts,
    TOP_K: tl.constexpr,
    N: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(TOP_K):
        pair = token * TOP_K + j
        expert = tl.load(experts + pair)
        has = (expert >= 0) & (expert < num_experts)
        part = tl.load(parts + pair * N + n, mask=(n < N) & has, other=0.0).to(tl.float32)
        if WEIGHTED:
            part *= tl.load(routing_weights + pair).to(tl.float32)
        total += part
    tl.store(out + token * N + n, total.to(out.dtype.element_ty), mask=n < N)


@dataclass(frozen=True, slots=True)
class BlockTiles:
    """How a product of blocks of pairs is cut up."""

    n: int
    """Output columns per program."""
    k: int
    """Inner elements per tile."""
    num_warps: int
    num_stages: int
    swapped: bool = False
    """Weights as the first operand of the matrix instruction: rows of it are output columns."""


@dataclass(frozen=True, slots=True)
class GroupedTiles:
    """How the work of a step is cut up."""

    block: int
    """Pairs per block; at least 16."""
    gate_up: BlockTiles
    down: BlockTiles


def choose_grouped_tiles(
    num_pairs: int, num_experts: int, element_size: int, most_shared: int
) -> GroupedTiles:
    """Tiles for so many pairs and elements of so many bytes, as measured on an H200, with as many tiles under
    way as a program's shared memory holds."""
    each = num_pairs / num_experts
    if element_size == 4:
        block, gate_up, down = 16 if each <= 16 else 64, BlockTiles(32, 64, 4, 2), BlockTiles(64, 64, 4, 2)
    elif each < 1:
        block, gate_up, down = 16, BlockTiles(32, 128, 4, 4), BlockTiles(64, 128, 4, 4)
    elif each <= 8:
        block, gate_up, down = 16, BlockTiles(64, 128, 4, 3, True), BlockTiles(64, 128, 4, 4)
    elif each <= 24:
        block, gate_up, down = 32, BlockTiles(64, 128, 4, 3), BlockTiles(128, 128, 4, 3)
    elif each <= 96:
        block, gate_up, down = 64, BlockTiles(64, 64, 4, 4), BlockTiles(128, 64, 4, 4)
    else:
        block, gate_up, down = 128, BlockTiles(128, 64, 8, 4), BlockTiles(256, 64, 8, 3)

    def fitting(tiles: BlockTiles, weights: int) -> BlockTiles:
        stage = (block + weights * tiles.n) * tiles.k * element_size
        return replace(tiles, num_stages=max(1, min(tiles.num_stages, most_shared // stage)))

    return GroupedTiles(block, fitting(gate_up, 2), fitting(down, 1))


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Pairs by expert, in blocks."""

    order: torch.Tensor
    """[pairs] int32: pairs of one expert lie side by side."""
    blocks: torch.Tensor
    """[max_blocks, 3] int32: expert, first place in `order`, number of pairs; the number is 0 for a block
    that isn't one."""


def plan_blocks(chosen: torch.Tensor, num_experts: int, block: int) -> Plan:
    """The plan of a step with `block` pairs per block. chosen: [tokens, top_k], the experts of each token."""
    num_pairs = chosen.numel()
    max_blocks = min(num_experts, num_pairs) + num_pairs // block
    bins = triton.next_power_of_2(num_experts + 1)
    chunk = CHUNKS[num_pairs > CHUNKS[0]]
    # Each part at a multiple of 16 bytes, whatever the numbers: else Triton compiles kernels anew for some.
    sizes = (num_pairs, 3 * max_blocks, bins)
    padded = [-(-size // 4) * 4 for size in sizes]
    work = torch.empty(sum(padded), dtype=torch.int32, device=chosen.device)
    parts = zip(work.split(padded), sizes, strict=True)
    order, blocks, cursors = (part[:size] for part, size in parts)
    dependent = supports_dependent_launch(chosen.device)
    _plan_kernel[(1,)](
        experts=chosen,
        order=order,
        blocks=blocks,
        cursors=cursors,
        num_pairs=num_pairs,
        num_experts=num_experts,
        max_blocks=max_blocks,
        BINS=bins,
        BLOCK=block,
        CHUNK=chunk,
        DEPENDENT=dependent,
        num_warps=chunk // 256,
        **launch_options(dependent),
    )
    return Plan(order, blocks.view(max_blocks, 3))


def grouped_gate_up(
    x: torch.Tensor,
    weight: torch.Tensor,
    plan: Plan,
    top_k: int,
    activation: str,
    block: int,
    tiles: BlockTiles,
) -> torch.Tensor:
    """[pairs, size]: the activated gate times up, of `weight` [experts, 2 * size, hidden]."""
    size, hidden = weight.shape[1] // 2, weight.shape[2]
    out = torch.empty((x.shape[0] * top_k, size), dtype=x.dtype, device=x.device)
    _gate_up_kernel[(len(plan.blocks), triton.cdiv(size, tiles.n))](
        x=x,
        weight=weight,
        order=plan.order,
        blocks=plan.blocks,
        out=out,
        TOP_K=top_k,
        N=size,
        K=hidden,
        ACTIVATION=activation,
        **_options(x, block, tiles),
    )
    return out


def grouped_down(
    h: torch.Tensor,
    weight: torch.Tensor,
    plan: Plan,
    routing_weights: torch.Tensor,
    block: int,
    tiles: BlockTiles,
) -> torch.Tensor:
    """[pairs, hidden]: the down projection of `weight` [experts, hidden, size], times the routing weight."""
    hidden, size = weight.shape[1:]
    out = torch.empty((len(h), hidden), dtype=h.dtype, device=h.device)
    _down_kernel[(len(plan.blocks), triton.cdiv(hidden, tiles.n))](
        h=h,
        weight=weight,
        order=plan.order,
        blocks=plan.blocks,
        routing_weights=routing_weights,
        out=out,
        N=hidden,
        K=size,
        **_options(h, block, tiles),
    )
    return out


def grouped_experts(
    *,
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    chosen: torch.Tensor,
    routing_weights: torch.Tensor,
    activation: str,
    tiles: GroupedTiles | None = None,
) -> torch.Tensor:
    """As `experts.experts`. tiles: how to cut the work up; None to choose."""
    num_experts, top_k = len(gate_up), chosen.shape[1]
    if tiles is None:
        tiles = choose_grouped_tiles(chosen.numel(), num_experts, x.element_size(), shared_memory(x.device))
    plan = plan_blocks(chosen, num_experts, tiles.block)
    h = grouped_gate_up(x, gate_up, plan, top_k, activation, tiles.block, tiles.gate_up)
    parts = grouped_down(h, down, plan, routing_weights, tiles.block, tiles.down)
    return sum_of_pairs(parts, chosen, num_experts)


def sum_of_pairs(
    parts: torch.Tensor,
    chosen: torch.Tensor,
    num_experts: int,
    routing_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """[tokens, hidden]: what the pairs of each token contribute, added up in fp32.

    Args:
        parts: [pairs, hidden], float, contiguous; those of pairs without an expert don't count.
        chosen: [tokens, top_k], int, contiguous: experts of each token.
        num_experts: a number that is none of theirs is no expert's.
        routing_weights: [tokens, top_k], float, contiguous, by which parts are multiplied; None: they are.
    """
    (tokens, top_k), hidden = chosen.shape, parts.shape[1]
    out = torch.empty((tokens, hidden), dtype=parts.dtype, device=parts.device)
    dependent = supports_dependent_launch(parts.device)
    columns = min(1024, triton.next_power_of_2(hidden))
    _sum_kernel[(tokens, triton.cdiv(hidden, columns))](
        parts=parts,
        experts=chosen,
        routing_weights=routing_weights,
        out=out,
        num_experts=num_experts,
        TOP_K=top_k,
        N=hidden,
        WEIGHTED=routing_weights is not None,
        DEPENDENT=dependent,
        BLOCK=columns,
        num_warps=4,
        **launch_options(dependent),
    )
    return out


def _options(x: torch.Tensor, block: int, tiles: BlockTiles) -> dict[str, Any]:
    dependent = supports_dependent_launch(x.device)
    return {
        "SWAPPED": tiles.swapped,
        "DEPENDENT": dependent,
        "PRECISION": "ieee" if x.dtype == torch.float32 else None,
        "BLOCK": block,
        "BLOCK_N": tiles.n,
        "BLOCK_K": tiles.k,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
        **launch_options(dependent),
    }
