"""Drawing a token per row: temperature, Gumbel noise and argmax in one pass over the logits.

The noise is a pure function of (seed, position, token); `reference.gumbel_noise` defines it. Two
launches: blocks of the vocabulary, then a reduction over a row's blocks, which can also end the step. Both
read only device tensors, so they can be captured in a graph.
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
from dodona.kernels.sampling import reference
from dodona.kernels.sampling.common import load_scores, vocab_block


def gumbel_sample(
    logits: Tensor,
    *,
    idx_mapping: Tensor,
    positions: Tensor,
    seeds: Tensor,
    inverse_temperatures: Tensor,
    fallback: Tensor,
    cuts: Tensor | None = None,
    entry_fallback: Tensor | None = None,
    vocabulary: Tensor | None = None,
    ahead: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """One token per batch row: argmax of logit / temperature + noise, or of the logit where the row is
    greedy.

    Equal sums: the lowest id. A row with nothing above -inf yields its fallback token.

    Args:
        logits: [n, vocab], any floating dtype, unit stride along the vocabulary; not modified.
        idx_mapping: [n] integer, state row of each batch row; negative = padding, whose result is
            unspecified.
        positions: [n] integer, absolute position of the token to be drawn, less `ahead`.
        seeds: [rows] int64, per state row.
        inverse_temperatures: [rows] fp32, per state row; 0 = greedy.
        fallback: [rows] int64, per state row.
        cuts: [n] fp32, per batch row, or None: only tokens whose tempered logit is >= the row's are drawn.
        entry_fallback: [n] int64, per batch row, in place of `fallback`; None for that.
        vocabulary: [vocab] int64: the token of each logit, in rising order; None: its place. Noise belongs to
            tokens.
        out: [n] int32, contiguous, to write into; None for a new one.
    Returns: [n] int32.
    """
    if out is None:
        out = torch.empty(logits.shape[0], dtype=torch.int32, device=logits.device)
    if len(out):
        best, token = _draw_blocks(
            logits, idx_mapping, positions, seeds, inverse_temperatures, cuts, vocabulary, ahead
        )
        if entry_fallback is None:
            _reduce_blocks(best, token, idx_mapping, fallback, out)
        else:
            _reduce_blocks(best, token, idx_mapping, entry_fallback, out, fallback_by_entry=True)
    return out


def gumbel_sample_and_append(
    logits: Tensor,
    *,
    idx_mapping: Tensor,
    positions: Tensor,
    seeds: Tensor,
    inverse_temperatures: Tensor,
    fallback: Tensor,
    num_computed: Tensor,
    token_ids: Tensor,
    ring: Tensor,
    turn: Tensor,
) -> None:
    """`gumbel_sample` without cuts, then `step_state.update_state` of the rows drawn for, in no more launches
    than the first alone.

    Args: those of `gumbel_sample`, `n` not 0, and
        num_computed: [state rows], int32, written: `positions` of the rows drawn for.
        token_ids: [state rows, max_model_len], int32, written: the token at its position (where there is
            room).
        ring: [slots, n or more], int32: the first n of one slot are written, the token of each batch row.
        turn: [1], int32: that slot.
    """
    best, token = _draw_blocks(logits, idx_mapping, positions, seeds, inverse_temperatures, None)
    _reduce_blocks(
        best, token, idx_mapping, fallback, ring,
        turn=turn, positions=positions, num_computed=num_computed, token_ids=token_ids,
    )  # fmt: skip


def _draw_blocks(
    logits: Tensor,
    idx_mapping: Tensor,
    positions: Tensor,
    seeds: Tensor,
    inverse_temperatures: Tensor,
    cuts: Tensor | None,
    vocabulary: Tensor | None = None,
    ahead: int = 0,
) -> tuple[Tensor, Tensor]:
    """Of each row and block of the vocabulary the greatest sum and its token: two [n, blocks]."""
    n, vocab = logits.shape
    block = vocab_block(n, vocab)
    num_blocks = triton.cdiv(vocab, block)
    best = torch.empty(n, num_blocks, dtype=torch.float32, device=logits.device)
    token = torch.empty(n, num_blocks, dtype=torch.int32, device=logits.device)
    dependent = supports_dependent_launch(logits.device)
    _draw_blocks_kernel[(n, num_blocks)](
        logits, logits.stride(0), idx_mapping, positions, ahead, seeds, inverse_temperatures, cuts,
        vocabulary, best, token, vocab, num_blocks, BLOCK=block, HAS_CUTS=cuts is not None,
        HAS_VOCABULARY=vocabulary is not None,
        FAST_LOG=not triton.knobs.runtime.interpret, DEPENDENT=dependent,
        num_warps=8 if block > 1024 else 4, **launch_options(dependent),
    )  # fmt: skip
    return best, token


def _reduce_blocks(
    best: Tensor,
    token: Tensor,
    idx_mapping: Tensor,
    fallback: Tensor,
    out: Tensor,
    *,
    fallback_by_entry: bool = False,
    turn: Tensor | None = None,
    positions: Tensor | None = None,
    num_computed: Tensor | None = None,
    token_ids: Tensor | None = None,
) -> None:
    """The token of each row into `out`; where the others are given, `out` is a ring, and the step ends."""
    n, num_blocks = best.shape
    dependent = supports_dependent_launch(best.device)
    _reduce_blocks_kernel[(n,)](
        best,
        token,
        idx_mapping,
        fallback,
        out,
        turn,
        positions,
        num_computed,
        token_ids,
        num_blocks,
        stride_ring=out.stride(0),
        stride_tokens=0 if token_ids is None else token_ids.stride(0),
        max_model_len=0 if token_ids is None else token_ids.shape[1],
        APPENDS=token_ids is not None,
        BY_ENTRY=fallback_by_entry,
        WIDTH=triton.next_power_of_2(num_blocks),
        DEPENDENT=dependent,
        num_warps=1,
        **launch_options(dependent),
    )


def gumbel_sample_reference(
    logits: Tensor,
    *,
    idx_mapping: Tensor,
    positions: Tensor,
    seeds: Tensor,
    inverse_temperatures: Tensor,
    fallback: Tensor,
    cuts: Tensor | None = None,
    entry_fallback: Tensor | None = None,
    vocabulary: Tensor | None = None,
) -> Tensor:
    """What `gumbel_sample` computes, in plain torch."""
    state = idx_mapping.long()
    inverse = inverse_temperatures[state]
    scores = reference.sanitize(logits)
    if vocabulary is not None:
        whole = scores.new_full((len(scores), int(vocabulary.max()) + 1), -torch.inf)
        scores = whole.index_copy(1, vocabulary, scores)
    if cuts is not None:
        drawn = (scores * inverse[:, None] >= cuts[:, None]) | (inverse == 0)[:, None]
        scores = scores.masked_fill(~drawn, -torch.inf)
    tokens = reference.gumbel_argmax(
        scores,
        inverse,
        seeds[state],
        positions.long(),
        fallback[state] if entry_fallback is None else entry_fallback,
    )
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


@triton.jit(do_not_specialize=["ahead"])
def _draw_blocks_kernel(
    logits_ptr,  # [n, vocab]
    logits_stride,
    idx_mapping_ptr,  # [n]
    positions_ptr,  # [n]
    ahead,
    seeds_ptr,  # [rows]
    inverse_ptr,  # [rows]
    cuts_ptr,  # [n] or None
    vocabulary_ptr,  # [vocab] or None
    best_ptr,  # [n, num_blocks]
    token_ptr,  # [n, num_blocks]
    vocab,
    num_blocks,
    BLOCK: tl.constexpr,
    HAS_CUTS: tl.constexpr,
    HAS_VOCABULARY: tl.constexpr,
    FAST_LOG: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
    row = tl.program_id(0)
    block = tl.program_id(1)
    state = tl.load(idx_mapping_ptr + row)
    places = block * BLOCK + tl.arange(0, BLOCK)
    tokens = places
    if HAS_VOCABULARY:
        tokens = tl.load(vocabulary_ptr + places, mask=places < vocab, other=0).to(tl.int32)
    inverse = tl.load(inverse_ptr + state, mask=state >= 0, other=0.0)
    noise = tl.zeros((BLOCK,), tl.float32)
    # What requests ask for was there before the step: the noise is made while the logits still are.
    if inverse > 0.0:
        position = tl.load(positions_ptr + row) + ahead
        noise = gumbel_noise(tl.load(seeds_ptr + state), position, tokens, FAST_LOG)
    if DEPENDENT:
        wait_for_inputs()
    if state < 0:
        return
    scores = load_scores(logits_ptr + row.to(tl.int64) * logits_stride, places, places < vocab)
    if inverse > 0.0:
        scores *= inverse
        if HAS_CUTS:
            scores = tl.where(scores >= tl.load(cuts_ptr + row), scores, float("-inf"))
        scores += noise
    best, index = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(best_ptr + row * num_blocks + block, best)
    token = block * BLOCK + index
    if HAS_VOCABULARY:
        token = tl.load(vocabulary_ptr + token, mask=token < vocab, other=0).to(tl.int32)
    tl.store(token_ptr + row * num_blocks + block, token)


@triton.jit(do_not_specialize=["max_model_len"])
def _reduce_blocks_kernel(
    best_ptr,  # [n, num_blocks]
    token_ptr,  # [n, num_blocks]
    idx_mapping_ptr,  # [n]
    fallback_ptr,  # [rows], or [n] if BY_ENTRY
    out_ptr,  # [n], or [slots, n or more] if APPENDS
    turn_ptr,  # [1]; this and the next three: None if not APPENDS
    positions_ptr,  # [n]
    num_computed_ptr,  # [rows]
    token_ids_ptr,  # [rows, max_model_len]
    num_blocks,
    stride_ring,
    stride_tokens,
    max_model_len,
    APPENDS: tl.constexpr,
    BY_ENTRY: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    row = tl.program_id(0)
    state = tl.load(idx_mapping_ptr + row).to(tl.int64)
    if state < 0:
        return
    blocks = tl.arange(0, WIDTH)
    inside = blocks < num_blocks
    best = tl.load(best_ptr + row * num_blocks + blocks, mask=inside, other=float("-inf"))
    # Blocks are in order of ids, so the leftmost of equals has the lowest id.
    greatest, block = tl.max(best, 0, return_indices=True, return_indices_tie_break_left=True)
    token = tl.load(token_ptr + row * num_blocks + block)
    if greatest == float("-inf"):
        token = tl.load(fallback_ptr + (row if BY_ENTRY else state)).to(tl.int32)
    if APPENDS:
        tl.store(out_ptr + tl.load(turn_ptr) * stride_ring + row, token)
        position = tl.load(positions_ptr + row)
        tl.store(num_computed_ptr + state, position)
        if position < max_model_len:
            tl.store(token_ids_ptr + state * stride_tokens + position, token)
    else:
        tl.store(out_ptr + row, token)
