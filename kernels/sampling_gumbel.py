"""Drawing a token per row: temperature, Gumbel noise and argmax in one pass over the logits.

The noise is a pure function of (seed, position, token); `dodona.runners.sampling` describes it. Two launches:
blocks of the vocabulary, then a reduction over a row's blocks. Both read only device tensors, so they can be
captured in a graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)
from dodona.kernels.sampling_common import load_scores, vocab_block
from dodona.runners import sampling


def gumbel_sample(
    logits: Tensor,
    *,
    idx_mapping: Tensor,
    positions: Tensor,
    seeds: Tensor,
    inverse_temperatures: Tensor,
    fallback: Tensor,
    cuts: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One token per batch row: argmax of logit / temperature + noise, or of the logit where the row is
    greedy.

    Equal sums: the lowest id. A row with nothing above -inf yields its fallback token.

    Args:
        logits: [n, vocab], any floating dtype, unit stride along the vocabulary; not modified.
        idx_mapping: [n] integer, state row of each batch row; negative = padding, whose result is
            unspecified.
        positions: [n] integer, absolute position of the token to be drawn.
        seeds: [rows] int64, per state row.
        inverse_temperatures: [rows] fp32, per state row; 0 = greedy.
        fallback: [rows] int64, per state row.
        cuts: [n] fp32, per batch row, or None: only tokens whose tempered logit is >= the row's are drawn.
        out: [n] int32, made if None.
    Returns: [n] int32.
    """
    n, vocab = logits.shape
    block = vocab_block(n, vocab)
    num_blocks = triton.cdiv(vocab, block)
    out = torch.empty(n, dtype=torch.int32, device=logits.device) if out is None else out
    best = torch.empty(n, num_blocks, dtype=torch.float32, device=logits.device)
    token = torch.empty(n, num_blocks, dtype=torch.int32, device=logits.device)
    if n == 0:
        return out
    dependent = supports_dependent_launch(logits.device)
    _draw_blocks_kernel[(n, num_blocks)](
        logits, logits.stride(0), idx_mapping, positions, seeds, inverse_temperatures, cuts,
        best, token, vocab, num_blocks, BLOCK=block, HAS_CUTS=cuts is not None,
        FAST_LOG=not triton.knobs.runtime.interpret, DEPENDENT=dependent,
        num_warps=8 if block > 1024 else 4, **launch_options(dependent),
    )  # fmt: skip
    _reduce_blocks_kernel[(n,)](
        best,
        token,
        idx_mapping,
        fallback,
        out,
        num_blocks,
        WIDTH=triton.next_power_of_2(num_blocks),
        DEPENDENT=dependent,
        num_warps=1,
        **launch_options(dependent),
    )
    return out


def gumbel_sample_reference(
    logits: Tensor,
    *,
    idx_mapping: Tensor,
    positions: Tensor,
    seeds: Tensor,
    inverse_temperatures: Tensor,
    fallback: Tensor,
    cuts: Tensor | None = None,
) -> Tensor:
    """What `gumbel_sample` computes, in plain torch."""
    state = idx_mapping.long()
    inverse = inverse_temperatures[state]
    scores = sampling.sanitize(logits)
    if cuts is not None:
        drawn = (scores * inverse[:, None] >= cuts[:, None]) | (inverse == 0)[:, None]
        scores = scores.masked_fill(~drawn, -torch.inf)
    tokens = sampling.gumbel_argmax(scores, inverse, seeds[state], positions.long(), fallback[state])
    return tokens.int()


@triton.jit
def fmix32(h):
    """murmur3's 32-bit finaliser on uint32."""
    h ^= h >> 16
    h *= 0x85EBCA6B
    h ^= h >> 13
    h *= 0xC2B2AE35
    h ^= h >> 16
    return h


@triton.jit
def gumbel_noise(seed, position, tokens, FAST_LOG: tl.constexpr):
    """Standard Gumbel noise (fp32) for `tokens`, of a row's `seed` (int64) and `position`.

    `FAST_LOG`: by the GPU's approximate logarithm, off by 2**-22 near 1 and relatively elsewhere.
    """
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    key0 = fmix32(low ^ fmix32(position.to(tl.uint32) + 0x9E3779B9))
    key1 = fmix32(high ^ fmix32(key0 + 0x7F4A7C15))
    bits = fmix32(fmix32(tokens.to(tl.uint32) ^ key0) + key1)
    uniform = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2**-32
    uniform = tl.minimum(uniform, 0.999999940395355225)  # 1 - 2**-24
    # 1 - v loses the low bits of small v, and these draws win: there the series of -log(1 - v) is closer.
    series = 1 / 5 + uniform * (1 / 6)
    series = 1 / 2 + uniform * (1 / 3 + uniform * (1 / 4 + uniform * series))
    series = uniform + uniform * uniform * series
    if FAST_LOG:
        exponential = tl.where(uniform < 0.0625, series, -libdevice.fast_logf(1.0 - uniform))
        noise = -libdevice.fast_logf(exponential)
    else:
        exponential = tl.where(uniform < 0.0625, series, -tl.log(1.0 - uniform))
        noise = -tl.log(exponential)
    return noise


@triton.jit
def _draw_blocks_kernel(
    logits_ptr,  # [n, vocab]
    logits_stride,
    idx_mapping_ptr,  # [n]
    positions_ptr,  # [n]
    seeds_ptr,  # [rows]
    inverse_ptr,  # [rows]
    cuts_ptr,  # [n] or None
    best_ptr,  # [n, num_blocks]
    token_ptr,  # [n, num_blocks]
    vocab,
    num_blocks,
    BLOCK: tl.constexpr,
    HAS_CUTS: tl.constexpr,
    FAST_LOG: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
    row = tl.program_id(0)
    block = tl.program_id(1)
    state = tl.load(idx_mapping_ptr + row)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    inverse = tl.load(inverse_ptr + state, mask=state >= 0, other=0.0)
    noise = tl.zeros((BLOCK,), tl.float32)
    # What requests ask for was there before the step: the noise is made while the logits still are.
    if inverse > 0.0:
        noise = gumbel_noise(tl.load(seeds_ptr + state), tl.load(positions_ptr + row), tokens, FAST_LOG)
    if DEPENDENT:
        wait_for_inputs()
    if state < 0:
        return
    scores = load_scores(logits_ptr + row.to(tl.int64) * logits_stride, tokens, tokens < vocab)
    if inverse > 0.0:
        scores *= inverse
        if HAS_CUTS:
            scores = tl.where(scores >= tl.load(cuts_ptr + row), scores, float("-inf"))
        scores += noise
    best, index = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(best_ptr + row * num_blocks + block, best)
    tl.store(token_ptr + row * num_blocks + block, block * BLOCK + index)


@triton.jit
def _reduce_blocks_kernel(
    best_ptr,  # [n, num_blocks]
    token_ptr,  # [n, num_blocks]
    idx_mapping_ptr,  # [n]
    fallback_ptr,  # [rows]
    out_ptr,  # [n]
    num_blocks,
    WIDTH: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    row = tl.program_id(0)
    state = tl.load(idx_mapping_ptr + row)
    if state < 0:
        return
    blocks = tl.arange(0, WIDTH)
    inside = blocks < num_blocks
    best = tl.load(best_ptr + row * num_blocks + blocks, mask=inside, other=float("-inf"))
    # Blocks are in order of ids, so the leftmost of equals has the lowest id.
    greatest, block = tl.max(best, 0, return_indices=True, return_indices_tie_break_left=True)
    token = tl.load(token_ptr + row * num_blocks + block)
    if greatest == float("-inf"):
        token = tl.load(fallback_ptr + state).to(tl.int32)
    tl.store(out_ptr + row, token)
