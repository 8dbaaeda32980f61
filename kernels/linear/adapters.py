"""What LoRA adapters add to a linear layer's products of a few tokens, in one launch.

    out[t] += B[slots[t]] (A[slots[t]] x[t])

Each program computes A x of its token anew: A is small and comes from the L2 cache, and a second launch would
take longer. A token without an adapter costs no more than the launch. Punica (Chen et al., 2023) names the
task.
"""

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

FEW_TOKENS = 8
"""Most tokens for which reading A in each program is cheap."""

_TILE = 16_384
"""Elements of A or B that a program holds."""


@triton.jit
def _add_adapters_kernel(
    out,
    x,
    a,
    b,
    slots,
    N: tl.constexpr,
    K: tl.constexpr,
    RANK: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    token = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    r = tl.arange(0, BLOCK_R)
    row = slot.to(tl.int64) * RANK + r
    k = tl.arange(0, BLOCK_K)
    products = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    for start in range(0, K, BLOCK_K):
        exists = start + k < K
        weights = tl.load(
            a + row[:, None] * K + (start + k)[None, :],
            mask=(r < RANK)[:, None] & exists[None, :],
            other=0.0,
        )
        values = tl.load(x + token * K + start + k, mask=exists, other=0.0)
        products += weights.to(tl.float32) * values.to(tl.float32)[None, :]
    inner = tl.sum(products, axis=1)
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    weights = tl.load(
        b + n[:, None] * COLUMNS + row[None, :], mask=(n < N)[:, None] & (r < RANK)[None, :], other=0.0
    )
    added = tl.sum(weights.to(tl.float32) * inner[None, :], axis=1)
    here = out + token * N + n
    before = tl.load(here, mask=n < N, other=0.0).to(tl.float32)
    tl.store(here, (before + added).to(out.dtype.element_ty), mask=n < N)


def add_adapters(
    *, out: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, slots: torch.Tensor, rank: int
) -> None:
    """Add to `out`, in place, what each token's adapter adds; sums in fp32, rounded once.

    Args:
        out: [tokens, columns], contiguous, float.
        x: [tokens, inner], contiguous, float.
        a: [slots * rank, inner], contiguous: A of each slot's adapter.
        b: [columns, slots * rank], contiguous: B of each slot's adapter, its scale included.
        slots: [tokens] int32: of each token's adapter; below 0 for none.
        rank: columns of a slot.
    """
    tokens, inner = x.shape
    columns = out.shape[1]
    block_r = triton.next_power_of_2(rank)
    block_n = min(256 if columns > 16_384 else 64, max(1, _TILE // block_r))
    dependent = supports_dependent_launch(x.device)
    _add_adapters_kernel[(triton.cdiv(columns, block_n), tokens)](
        out=out,
        x=x,
        a=a,
        b=b,
        slots=slots,
        N=columns,
        K=inner,
        RANK=rank,
        COLUMNS=b.shape[1],
        DEPENDENT=dependent,
        BLOCK_N=block_n,
        BLOCK_K=min(triton.next_power_of_2(inner), max(1, _TILE // block_r)),
        BLOCK_R=block_r,
        num_warps=8,
        **launch_options(dependent),
    )


def add_adapters_reference(
    out: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, slots: torch.Tensor, rank: int
) -> torch.Tensor:
    """`add_adapters` in torch, in fp64; nothing in place."""
    wide = out.double()
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            own = slice(slot * rank, (slot + 1) * rank)
            wide[token] += b[:, own].double() @ (a[own].double() @ x[token].double())
    return wide.to(out.dtype)
