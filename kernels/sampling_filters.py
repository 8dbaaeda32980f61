"""min-p, top-k and top-p as one number per row: the least tempered logit that is kept.

The row is never sorted. The kernel halves the interval of values in which the threshold lies and streams the
row once per step, counting (top-k) or weighing (top-p) what lies above the middle; both ends move on to
logits that occur, so a search ends when they meet, after about log2(range / gap) passes, at exactly the logit
that a sort would give. The draw (`sampling_gumbel`) then passes over smaller logits. **Ties are kept**, see
`dodona.runners.sampling`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dodona.kernels.sampling_common import load_scores
from dodona.runners import sampling


def filter_cuts(
    logits: Tensor,
    *,
    idx_mapping: Tensor,
    inverse_temperatures: Tensor,
    log_min_p: Tensor,
    top_k: Tensor,
    top_p: Tensor,
) -> Tensor:
    """The threshold of each batch row, for logits times inverse temperature; -inf where nothing is filtered.

    top-k and min-p are exact. top-p compares fp32 sums, so a token on the very edge (within 1e-6 of p) can
    fall on either side.

    Args:
        logits: [n, vocab], any floating dtype, unit stride along the vocabulary.
        idx_mapping: [n] integer, state row of each batch row; negative = padding.
        inverse_temperatures: [rows] fp32; 0 = greedy, which filters don't change.
        log_min_p: [rows] fp32, -inf = off.
        top_k: [rows] int64, 0 = off.
        top_p: [rows] fp32, 1 = off.
    Returns: [n] fp32.
    """
    n, vocab = logits.shape
    cuts = torch.empty(n, dtype=torch.float32, device=logits.device)
    if n == 0:
        return cuts
    block = min(8192, triton.next_power_of_2(vocab))
    _cuts_kernel[(n,)](
        logits, logits.stride(0), idx_mapping, inverse_temperatures, log_min_p, top_k, top_p, cuts, vocab,
        BLOCK=block, num_warps=16 if block == 8192 else 4,
    )  # fmt: skip
    return cuts


def filter_cuts_reference(
    logits: Tensor,
    *,
    idx_mapping: Tensor,
    inverse_temperatures: Tensor,
    log_min_p: Tensor,
    top_k: Tensor,
    top_p: Tensor,
) -> Tensor:
    """Thresholds that keep the same tokens as those of `filter_cuts`, by sorting."""
    state = idx_mapping.long()
    inverse = inverse_temperatures[state]
    tempered = sampling.sanitize(logits) * torch.where(inverse > 0, inverse, 1.0)[:, None]
    cuts = sampling.thresholds(tempered, log_min_p[state], top_k[state], top_p[state])
    return torch.where(inverse > 0, cuts, -torch.inf)


@triton.jit
def _above(row_ptr, vocab, inverse, middle, greatest, WEIGH: tl.constexpr, BLOCK: tl.constexpr):
    """Of scores >= middle: how many (if WEIGH: their summed exp(score - greatest)) and the least; and the
    greatest score below it."""
    amount = tl.zeros([BLOCK], dtype=tl.float32)
    least = tl.full([BLOCK], float("inf"), dtype=tl.float32)
    below = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    for first in range(0, vocab, BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        scores = load_scores(row_ptr, tokens, tokens < vocab) * inverse
        kept = scores >= middle
        if WEIGH:
            amount += tl.where(kept, tl.exp(scores - greatest), 0.0)
        else:
            amount += tl.where(kept, 1.0, 0.0)
        least = tl.minimum(least, tl.where(kept, scores, float("inf")))
        below = tl.maximum(below, tl.where(kept, float("-inf"), scores))
    return tl.sum(amount, 0), tl.min(least, 0), tl.max(below, 0)


@triton.jit
def _search(row_ptr, vocab, inverse, low, greatest, enough, WEIGH: tl.constexpr, BLOCK: tl.constexpr):
    """The greatest score with at least `enough` at or above it; `low` is known to have that."""
    high = greatest  # the answer is in [low, high]
    while low < high:
        middle = 0.5 * low + 0.5 * high
        middle = tl.where(middle > low, middle, high)
        amount, least, below = _above(row_ptr, vocab, inverse, middle, greatest, WEIGH, BLOCK)
        if amount >= enough:
            low = least
        else:
            high = below
        if amount == enough:
            high = low
    return low


@triton.jit
def _cuts_kernel(
    logits_ptr,  # [n, vocab]
    logits_stride,
    idx_mapping_ptr,  # [n]
    inverse_ptr,  # [rows]
    log_min_p_ptr,  # [rows]
    top_k_ptr,  # [rows]
    top_p_ptr,  # [rows]
    cuts_ptr,  # [n]
    vocab,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    state = tl.load(idx_mapping_ptr + row)
    if state < 0:
        return
    inverse = tl.load(inverse_ptr + state)
    log_min_p = tl.load(log_min_p_ptr + state)
    top_k = tl.load(top_k_ptr + state).to(tl.float32)
    top_p = tl.load(top_p_ptr + state)
    asks = (log_min_p > float("-inf")) | (top_k > 0.0) | (top_p < 1.0)
    if (inverse <= 0.0) | (asks == 0):
        tl.store(cuts_ptr + row, float("-inf"))
        return
    row_ptr = logits_ptr + row * logits_stride
    # Nothing exceeds the cap, so that what is below infinity gives the greatest.
    _, _, greatest = _above(row_ptr, vocab, inverse, float("inf"), 0.0, False, BLOCK)
    if greatest == float("-inf"):
        tl.store(cuts_ptr + row, float("-inf"))
        return
    cut = tl.maximum(greatest + log_min_p, -3.4028234663852886e38)  # all finite scores
    if top_k > 0.0:
        kept, cut, _ = _above(row_ptr, vocab, inverse, cut, greatest, False, BLOCK)
        if kept > top_k:
            cut = _search(row_ptr, vocab, inverse, cut, greatest, top_k, False, BLOCK)
    if top_p < 1.0:
        mass, cut, _ = _above(row_ptr, vocab, inverse, cut, greatest, True, BLOCK)
        cut = _search(row_ptr, vocab, inverse, cut, greatest, top_p * mass, True, BLOCK)
    tl.store(cuts_ptr + row, cut)
