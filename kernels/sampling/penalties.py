"""Repetition, frequency and presence penalties from per-row token statistics that live on the device.

A state row has one bit per token of its prompt and one count per token it generated. Counts are updated on
the device right after a token is drawn, so that the host may be steps behind.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dodona.kernels.sampling import reference
from dodona.kernels.sampling.common import LOGIT_CAP, vocab_block
from dodona.kernels.sampling.masks import unpack_token_bits


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
    """
    n, vocab = scores.shape
    if n == 0:
        return
    block = vocab_block(n, vocab)
    _penalties_kernel[(n, triton.cdiv(vocab, block))](
        scores, idx_mapping, is_penalized, repetition, frequency, presence,
        prompt_bits, prompt_bits.shape[1], output_counts, vocab, BLOCK=block,
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
) -> None:
    """What `apply_penalties` does, in plain torch."""
    state = idx_mapping.long()
    counts = output_counts[state].float()
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
    BLOCK: tl.constexpr,
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
