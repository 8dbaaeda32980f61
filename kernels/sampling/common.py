"""What the sampling kernels share: how a logit is read, and the block sizes of passes over the vocabulary."""

from __future__ import annotations

import triton
import triton.language as tl

from dodona.kernels.sampling import reference

LOGIT_CAP = tl.constexpr(reference.LOGIT_CAP)
NOTHING = tl.constexpr(float("-inf"))

WIDE_BLOCK = 4096
NARROW_BLOCK = 1024
PROGRAMS_THAT_FILL_A_GPU = 256


def vocab_block(num_rows: int, vocab: int) -> int:
    """Tokens per program of a pass with grid (rows, vocabulary blocks): fewer where rows are few."""
    programs = num_rows * triton.cdiv(vocab, WIDE_BLOCK)
    return WIDE_BLOCK if programs >= PROGRAMS_THAT_FILL_A_GPU else NARROW_BLOCK


@triton.jit
def load_scores(row_ptr, tokens, inside):
    """Logits of `tokens` as fp32: NaN and whatever is not `inside` read as -inf, the rest capped."""
    scores = tl.load(row_ptr + tokens, mask=inside, other=float("-inf")).to(tl.float32)
    scores = tl.where(scores == scores, scores, float("-inf"))
    return tl.minimum(scores, LOGIT_CAP)


@triton.jit
def order_keys(scores, tokens):
    """int64 keys that order scores as numbers and, among equals, the lower token id as the greater key."""
    # -0.0 equals 0.0, so both must give one key.
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    monotone = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (monotone.to(tl.int64) << 32) | (0xFFFFFFFF - tokens.to(tl.int64))
