"""Products of pairs of a token and an expert with the experts' quantized weights, as they are stored.

Pairs lie in blocks of one expert each (`grouped.plan_blocks`), so that nothing of a launch depends on which
experts the tokens have, and a captured graph serves any. Each program widens the tiles that it needs, as
`linear.quantized_linear` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)
from dodona.kernels.linear.quantized_weight import INT4_ZERO, QuantizedWeight, dequantize
from dodona.kernels.linear.round_activations import RoundedActivations
from dodona.kernels.moe.grouped import Plan


@dataclass(frozen=True, slots=True, eq=False)
class ExpertsWeight:
    """A linear layer of all experts of a layer."""

    weight: QuantizedWeight
    """[experts * rows, inner]: expert after expert."""
    num_experts: int
    order: torch.Tensor | None = None
    """[experts, inner] int64: for each expert, its input's elements in the order of the weight's columns;
    None: as they are."""
    bias: torch.Tensor | None = None
    """[experts, rows], float."""

    @property
    def rows(self) -> int:
        """Rows of an expert: elements of its product."""
        return self.weight.rows // self.num_experts


@triton.jit
def _scale(stored, POWERS: tl.constexpr):
    """In fp32. `POWERS`: stored are exponents of two, plus 127."""
    if POWERS:
        bits = stored.to(tl.int32)
        return tl.where(bits == 0, 0x00400000, bits << 23).to(tl.float32, bitcast=True)
    return stored.to(tl.float32)


@triton.jit
def _product_kernel(
    x,
    x_scales,
    data,
    scales,
    zeros,
    input_order,
    bias,
    order,
    blocks,
    out,
    TOP_K: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    NIBBLES: tl.constexpr,
    IS_FP4: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    SPREAD: tl.constexpr,
    POWERS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    ZERO: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    X_SCALED: tl.constexpr,
    X_GROUPS: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of `BLOCK_K` lies in one group of `GROUP` inner elements; or, where `SPREAD`, it has several;
    then weights are scaled before the product. `POWERS`: see `_scale`."""
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    entry = blocks + 3 * tl.program_id(0)
    count = tl.load(entry + 2)
    if count == 0:
        return
    expert = tl.load(entry).to(tl.int64)
    m = tl.arange(0, BLOCK)
    pair = tl.load(order + tl.load(entry + 1) + m, mask=m < count, other=0).to(tl.int64)
    row = pair // TOP_K
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_exists = n < N
    wide_n = expert * N + n
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        exists = start + k < K
        source = start + k
        if HAS_ORDER:
            source = tl.load(input_order + expert * K + start + k, mask=exists, other=0)
        values = tl.load(
            x + row[:, None] * K + source[None, :], mask=(m < count)[:, None] & exists[None, :], other=0.0
        )
        if NIBBLES:
            word = start // 8 + tl.arange(0, BLOCK_K // 8)
            inside = column_exists[:, None] & (word < K // 8)[None, :]
            words = tl.load(data + wide_n[:, None] * (K // 8) + word[None, :], mask=inside, other=0)
            place = tl.arange(0, 8)
            shift = 4 * (place // 2) + 16 * (place % 2)
            w = tl.reshape((words[:, :, None] >> shift[None, None, :]) & 15, (BLOCK_N, BLOCK_K))
            if IS_FP4:
                # Twice the numbers of E2M1: 0, 1, 2, 3, 4, 6, 8, 12.
                size = w & 7
                size = tl.where(size < 4, size, (2 + (size & 1)) << tl.maximum(size // 2 - 1, 0))
                w = tl.where(w < 8, size, -size)
        else:
            inside = column_exists[:, None] & exists[None, :]
            w = tl.load(data + wide_n[:, None] * K + (start + k)[None, :], mask=inside, other=0.0)
        if SPREAD:
            group = start // GROUP + tl.arange(0, BLOCK_K // GROUP)
            places = wide_n[:, None] * GROUPS + group[None, :]
            inside = column_exists[:, None] & (group < GROUPS)[None, :]
            factor = tl.load(scales + places, mask=inside, other=0)
            if HAS_ZEROS:
                zero = tl.load(zeros + places, mask=inside, other=0).to(tl.int32)
        elif GROUPS > 1:
            places = wide_n * GROUPS + start // GROUP
            factor = tl.load(scales + places, mask=column_exists, other=0)
            if HAS_ZEROS:
                zero = tl.load(zeros + places, mask=column_exists, other=0).to(tl.int32)[:, None]
        elif HAS_ZEROS:
            zero = tl.load(zeros + wide_n, mask=column_exists, other=0).to(tl.int32)[:, None]
        if GROUPS > 1:
            factor = _scale(factor, POWERS)
        if HAS_ZEROS:
            w = w.to(tl.int32)
            if SPREAD:
                shape: tl.constexpr = (BLOCK_N, BLOCK_K // GROUP, GROUP)
                zero = tl.reshape(tl.broadcast_to(zero[:, :, None], shape), (BLOCK_N, BLOCK_K))
            w = w - zero
        elif NIBBLES and not IS_FP4:
            w = w - ZERO
        if SPREAD:
            spread: tl.constexpr = (BLOCK_N, BLOCK_K // GROUP, GROUP)
            w = w.to(tl.float32) * tl.reshape(tl.broadcast_to(factor[:, :, None], spread), (BLOCK_N, BLOCK_K))
            w = w.to(values.dtype)
        elif w.dtype != values.dtype:
            w = w.to(tl.float32).to(values.dtype)
        part = tl.dot(values, tl.trans(w), input_precision="ieee")
        if GROUPS > 1 and not SPREAD:
            part *= factor[None, :]
        if X_GROUPS > 1:
            part *= tl.load(x_scales + row * X_GROUPS + start // GROUP, mask=m < count, other=0.0)[:, None]
        total += part
    if GROUPS == 1:
        total *= _scale(tl.load(scales + wide_n, mask=column_exists, other=0), POWERS)[None, :]
    if X_SCALED and X_GROUPS == 1:
        total *= tl.load(x_scales + row, mask=m < count, other=0.0)[:, None]
    if IS_FP4:
        total *= 0.5
    if HAS_BIAS:
        total += tl.load(bias + wide_n, mask=column_exists, other=0.0).to(tl.float32)[None, :]
    target = out + pair[:, None] * N + n[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=(m < count)[:, None] & column_exists[None, :])


class ProductTiles(NamedTuple):
    """How a product is cut up."""

    block: int
    """Pairs per block; at least 16."""
    n: int
    """Output columns per program."""
    k: int
    """Inner elements per tile."""
    num_warps: int
    num_stages: int


def choose_product_tiles(num_pairs: int, num_experts: int, dtype: torch.dtype) -> ProductTiles:
    """Tiles for so many pairs."""
    each = num_pairs / num_experts
    if dtype == torch.float32:
        return ProductTiles(16 if each <= 16 else 32, 32, 32, 4, 2)
    if each <= 8:
        return ProductTiles(16, 32, 128, 4, 4)
    if each <= 24:
        return ProductTiles(32, 64, 128, 4, 3)
    if each <= 96:
        return ProductTiles(64, 64, 64, 4, 4)
    return ProductTiles(128, 128, 64, 8, 3)


def supports_experts_product(weight: QuantizedWeight) -> bool:
    """Whether `experts_product` serves such a weight: its groups, if it has such, have a multiple of 16
    elements."""
    return weight.scales.shape[1] == 1 or weight.size % 16 == 0


def experts_product(
    *, x: torch.Tensor | RoundedActivations, experts: ExpertsWeight, plan: Plan, tiles: ProductTiles
) -> torch.Tensor:
    """`dequantize(weight of the pair's expert) @ x of the pair + bias`, for all pairs.

    Args:
        x: [rows, inner], float, contiguous: a row for each pair, or for each token. Or rounded, and then in
            one group a row, or in the weight's groups.
        experts: as `supports_experts_product` says.
        plan: of the pairs, in blocks of `tiles.block`.
        tiles: how to cut the work up.

    Returns:
        [pairs, rows of an expert]: fp32 sums, rounded once to the dtype of `x`. Those of pairs that no block
        has are undefined.
    """
    rounded = x if isinstance(x, RoundedActivations) else None
    values = x.values if isinstance(x, RoundedActivations) else x
    weight, inner = experts.weight, values.shape[1]
    groups, x_groups = weight.scales.shape[1], 1 if rounded is None else rounded.scales.shape[1]
    if not supports_experts_product(weight):
        raise ValueError(f"experts: {weight.kind} in groups of {weight.size} is not served")
    size = weight.size if groups > 1 else (rounded.group_size or inner) if rounded is not None else inner
    if x_groups > 1 and groups > 1 and rounded is not None and rounded.group_size != weight.group_size:
        raise ValueError(f"x: expected groups of {weight.group_size}, got {rounded.group_size}")
    spread, block_k = False, tiles.k
    if groups > 1 or x_groups > 1:
        # Products of rounded numbers are exact, and are scaled behind.
        spread = rounded is None and groups > 1 and size < block_k and block_k % size == 0
        if not spread:
            block_k = min(block_k, size & -size)  # the largest power of two in it
    pairs, columns = len(plan.order), experts.rows
    out = torch.empty((pairs, columns), dtype=values.dtype, device=values.device)
    powers = weight.scales.dtype == torch.float8_e8m0fnu
    dependent = supports_dependent_launch(values.device)
    _product_kernel[(len(plan.blocks), triton.cdiv(columns, tiles.n))](
        x=values,
        x_scales=None if rounded is None else rounded.scales,
        data=weight.data,
        scales=weight.scales.view(torch.uint8) if powers else weight.scales,
        zeros=weight.zeros,
        input_order=experts.order,
        bias=experts.bias,
        order=plan.order,
        blocks=plan.blocks,
        out=out,
        TOP_K=pairs // len(values),
        N=columns,
        K=inner,
        NIBBLES=weight.kind in ("int4", "fp4"),
        IS_FP4=weight.kind == "fp4",
        GROUP=size,
        GROUPS=groups,
        SPREAD=spread,
        POWERS=powers,
        HAS_ZEROS=weight.zeros is not None,
        ZERO=INT4_ZERO,
        HAS_ORDER=experts.order is not None,
        HAS_BIAS=experts.bias is not None,
        X_SCALED=rounded is not None,
        X_GROUPS=x_groups,
        DEPENDENT=dependent,
        BLOCK=tiles.block,
        BLOCK_N=tiles.n,
        BLOCK_K=block_k,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **launch_options(dependent),
    )
    return out


def experts_product_reference(x: torch.Tensor, experts: ExpertsWeight, chosen: torch.Tensor) -> torch.Tensor:
    """`experts_product` of an `x` that is not rounded, in torch and fp32. chosen: [tokens, top_k]."""
    values = dequantize(experts.weight).view(experts.num_experts, experts.rows, -1)
    rows = x.float().repeat_interleave(chosen.numel() // len(x), 0)
    out = []
    for row, expert in zip(rows, chosen.flatten().tolist(), strict=True):
        taken = row if experts.order is None else row[experts.order[expert]]
        bias = 0.0 if experts.bias is None else experts.bias[expert].float()
        out.append(values[expert] @ taken + bias)
    return torch.stack(out).to(x.dtype)
