"""Repetition, frequency and presence penalties from per-row token statistics that live on the device.

A state row has one bit per token of its prompt and one count per token it generated. Counts are updated on
the device right after a token is drawn, so that the host may be steps behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dodona.kernels.sampling import reference
from dodona.kernels.sampling.common import LOGIT_CAP, vocab_block
from dodona.kernels.sampling.masks import unpack_token_bits


@dataclass(frozen=True, slots=True, eq=False)
class DraftsBefore:
    """The drafts before each token to be drawn: the last tokens before its position."""

    offsets: Tensor
    """[n] int32: how many."""
    positions: Tensor
    """[n] integer: absolute position of the token to be drawn."""
    history: Tensor
    """[rows, max_model_len] int32: each row's tokens, and its drafts in their places."""


def apply_penalties(
    scores: Tensor,
    *,
    idx_mapping: Tensor,
    is_penalized: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
    prompt_bits: Tensor,
    output_counts: Tensor,
    drafts: DraftsBefore | None = None,
) -> None:
    """Penalise, in place, tokens that occurred: first by repetition, then by frequency and presence.

    Repetition divides positive and multiplies other scores of tokens in the prompt or the output; frequency
    (times the count) and presence are subtracted from tokens of the output.

    Args:
        scores: [n, vocab] fp32.
        idx_mapping: [n] integer, state row of each batch row.
        is_penalized: [rows] integer; rows with 0 are left alone.
        repetition, frequency, presence: [rows] fp32.
        prompt_bits: [rows, ceil(vocab / 32)] int32, see `masks.pack_token_bits`.
        output_counts: [rows, vocab] int16 or int32.
        drafts: what comes before each token to be drawn and is not counted yet; None for nothing.
    """
    n, vocab = scores.shape
    if n == 0:
        return
    block = vocab_block(n, vocab)
    _penalties_kernel[(n, triton.cdiv(vocab, block))](
        scores, idx_mapping, is_penalized, repetition, frequency, presence,
        prompt_bits, prompt_bits.shape[1], output_counts, vocab,
        None if drafts is None else drafts.offsets,
        None if drafts is None else drafts.positions,
        None if drafts is None else drafts.history,
        0 if drafts is None else drafts.history.stride(0),
        BLOCK=block, HAS_DRAFTS=drafts is not None,
    )  # fmt: skip


def apply_penalties_reference(
    scores: Tensor,
    *,
    idx_mapping: Tensor,
    is_penalized: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
    prompt_bits: Tensor,
    output_counts: Tensor,
    drafts: DraftsBefore | None = None,
) -> None:
    """What `apply_penalties` does, in plain torch."""
    state = idx_mapping.long()
    counts = output_counts[state].float()
    if drafts is not None:
        for i, offset in enumerate(drafts.offsets.tolist()):
            end = int(drafts.positions[i])
            for token in drafts.history[state[i], end - offset : end].tolist():
                counts[i, token] += 1
    seen = unpack_token_bits(prompt_bits[state], scores.shape[1]) | (counts > 0)
    factor = repetition[state, None]
    repeated = torch.where(scores > 0, scores / factor, scores * factor).clamp(max=reference.LOGIT_CAP)
    result = torch.where(seen, repeated, scores)
    result = result - frequency[state, None] * counts - presence[state, None] * (counts > 0)
    scores.copy_(torch.where(is_penalized[state, None] != 0, result, scores))


def count_tokens(
    output_counts: Tensor, *, idx_mapping: Tensor, token_ids: Tensor, is_penalized: Tensor
) -> None:
    """Add one to the count of each penalised row's token, in place; batch rows have distinct state rows.

    Args:
        output_counts: [rows, vocab] int16 or int32.
        idx_mapping: [n] integer, state row of each batch row; negative = padding.
        token_ids: [n] int32, the tokens drawn.
        is_penalized: [rows] integer; rows with 0 keep no counts.
    """
    n = idx_mapping.shape[0]
    if n == 0:
        return
    _count_tokens_kernel[(triton.cdiv(n, 128),)](
        output_counts, output_counts.shape[1], idx_mapping, token_ids, is_penalized, n, BLOCK=128
    )


def count_kept_tokens(
    output_counts: Tensor,
    *,
    idx_mapping: Tensor,
    token_ids: Tensor,
    num_kept: Tensor,
    is_penalized: Tensor,
    max_offset: int,
) -> None:
    """`count_tokens` after a step that verified drafts: count the tokens that are kept, in place.

    Args:
        output_counts, idx_mapping, token_ids, is_penalized: see `count_tokens`; a row's batch rows follow one
            another.
        num_kept: [n] int32, see `acceptance.count_kept_tokens`.
        max_offset: most drafts of a row, on the host.
    """
    n = idx_mapping.shape[0]
    if n:
        _count_kept_tokens_kernel[(n,)](
            output_counts, output_counts.shape[1], idx_mapping, token_ids, num_kept, is_penalized,
            WIDTH=triton.next_power_of_2(max_offset + 1), num_warps=1,
        )  # fmt: skip


def count_kept_tokens_reference(
    output_counts: Tensor, *, idx_mapping: Tensor, token_ids: Tensor, num_kept: Tensor, is_penalized: Tensor
) -> None:
    """What `count_kept_tokens` does, in plain Python."""
    for i, (state, kept) in enumerate(zip(idx_mapping.tolist(), num_kept.tolist(), strict=True)):
        for token in token_ids[i : i + kept].tolist():
            if state >= 0 and token >= 0 and is_penalized[state] != 0:
                output_counts[state, token] += 1


def count_tokens_reference(
    output_counts: Tensor, *, idx_mapping: Tensor, token_ids: Tensor, is_penalized: Tensor
) -> None:
    """What `count_tokens` does, in plain torch."""
    for state, token in zip(idx_mapping.tolist(), token_ids.tolist(), strict=True):
        if state >= 0 and token >= 0 and is_penalized[state] != 0:
            output_counts[state, token] += 1


@triton.jit
def _penalties_kernel(
    scores_ptr,  # [n, vocab]
    idx_mapping_ptr,  # [n]
    is_penalized_ptr,  # [rows]
    repetition_ptr,  # [rows]
    frequency_ptr,  # [rows]
    presence_ptr,  # [rows]
    bits_ptr,  # [rows, words]
    words,
    counts_ptr,  # [rows, vocab]
    vocab,
    offsets_ptr,  # [n]; this and the next two: None if not HAS_DRAFTS
    positions_ptr,  # [n]
    history_ptr,  # [rows, max_model_len]
    stride_history,
    BLOCK: tl.constexpr,
    HAS_DRAFTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    state = tl.load(idx_mapping_ptr + row).to(tl.int64)
    if state < 0:
        return
    if tl.load(is_penalized_ptr + state) == 0:
        return
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < vocab
    places = scores_ptr + row * vocab + tokens
    scores = tl.load(places, mask=inside, other=0.0)
    counts = tl.load(counts_ptr + state * vocab + tokens, mask=inside, other=0).to(tl.float32)
    if HAS_DRAFTS:
        end = history_ptr + state * stride_history + tl.load(positions_ptr + row)
        for i in range(tl.load(offsets_ptr + row)):
            counts += (tokens == tl.load(end - 1 - i)).to(tl.float32)
    word = tl.load(bits_ptr + state * words + tokens // 32, mask=inside, other=0)
    seen = (((word >> (tokens % 32)) & 1) != 0) | (counts > 0.0)
    repetition = tl.load(repetition_ptr + state)
    repeated = tl.where(scores > 0.0, tl.div_rn(scores, repetition), scores * repetition)
    scores = tl.where(seen, tl.minimum(repeated, LOGIT_CAP), scores)
    scores -= tl.load(frequency_ptr + state) * counts
    scores = tl.where(counts > 0.0, scores - tl.load(presence_ptr + state), scores)
    tl.store(places, scores, mask=inside)


@triton.jit(do_not_specialize=["n"])
def _count_tokens_kernel(
    counts_ptr,  # [rows, vocab]
    vocab,
    idx_mapping_ptr,  # [n]
    token_ids_ptr,  # [n]
    is_penalized_ptr,  # [rows]
    n,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    state = tl.load(idx_mapping_ptr + rows, mask=rows < n, other=-1).to(tl.int64)
    counted = (state >= 0) & (tl.load(is_penalized_ptr + state, mask=state >= 0, other=0) != 0)
    token = tl.load(token_ids_ptr + rows, mask=counted, other=-1)
    counted &= token >= 0  # -1 where no token could be drawn
    places = counts_ptr + state * vocab + token
    tl.store(places, tl.load(places, mask=counted, other=0) + 1, mask=counted)


@triton.jit
def _count_kept_tokens_kernel(
    counts_ptr,  # [rows, vocab]
    vocab,
    idx_mapping_ptr,  # [n]
    token_ids_ptr,  # [n]
    num_kept_ptr,  # [n]
    is_penalized_ptr,  # [rows]
    WIDTH: tl.constexpr,
):
    first = tl.program_id(0)
    kept = tl.load(num_kept_ptr + first)
    if kept == 0:
        return
    state = tl.load(idx_mapping_ptr + first).to(tl.int64)
    if tl.load(is_penalized_ptr + state) == 0:
        return
    lane = tl.arange(0, WIDTH)
    token = tl.load(token_ids_ptr + first + lane, mask=lane < kept, other=-1)
    # A token may be kept twice: each of its lanes stores the same count.
    times = tl.sum((token[:, None] == token[None, :]).to(tl.int32), axis=1)
    places = counts_ptr + state * vocab + token
    counted = token >= 0  # -1 where no token could be drawn
    counts = tl.load(places, mask=counted, other=0) + times
    tl.debug_barrier()
    tl.store(places, counts, mask=counted)
