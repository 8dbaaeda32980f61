"""Masks by grammars: bits that the host makes anew for each step, for the rows that have a grammar."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dodona.kernels.sampling.common import vocab_block
from dodona.kernels.sampling.masks import unpack_token_bits


def mask_by_grammar(scores: Tensor, *, batch_rows: Tensor, bitmask: Tensor) -> None:
    """Forbid, in place, what the rows' grammars do not allow.

    Args:
        scores: [n, vocab] fp32, contiguous.
        batch_rows: [m] integer, rows of `scores`.
        bitmask: [m, ceil(vocab / 32)] int32, contiguous: token t may stay where bit t % 32 of word t // 32
            is set.
    """
    m, vocab = batch_rows.shape[0], scores.shape[1]
    if m == 0:
        return
    block = vocab_block(m, vocab)
    _mask_by_grammar_kernel[(m, triton.cdiv(vocab, block))](
        scores, batch_rows, bitmask, bitmask.shape[1], vocab, BLOCK=block
    )


def mask_by_grammar_reference(scores: Tensor, *, batch_rows: Tensor, bitmask: Tensor) -> None:
    """What `mask_by_grammar` does, in plain torch."""
    rows = batch_rows.long()
    scores[rows] = scores[rows].masked_fill(~unpack_token_bits(bitmask, scores.shape[1]), -torch.inf)


@triton.jit
def _mask_by_grammar_kernel(
    scores_ptr,  # [n, vocab]
    batch_rows_ptr,  # [m]
    bitmask_ptr,  # [m, words]
    words,
    vocab,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    row = tl.load(batch_rows_ptr + entry).to(tl.int64)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < vocab
    word = tl.load(bitmask_ptr + entry * words + tokens // 32, mask=inside, other=-1)
    forbidden = ((word >> (tokens % 32)) & 1) == 0
    tl.store(scores_ptr + row * vocab + tokens, float("-inf"), mask=inside & forbidden)
