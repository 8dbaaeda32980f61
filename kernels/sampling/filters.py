"""min-p, top-k and top-p as one number per row: the least tempered logit that is kept.

The row is never sorted, and seldom read twice. One kernel notes the greatest logit of each group of tokens.
If k of these, or enough of them for top-p, reach a value, the threshold does too, and what is at or above it
lies in the groups whose greatest is. The second kernel copies that, and searches the copy (see
`threshold_search`). It reads all of a row again only if that is more than `ROOM` logits, or if there is no
such value: to narrow the interval of the threshold until what is inside can be copied.

The draw (`gumbel.py`) then passes over smaller logits. **Ties are kept**, see `reference.thresholds`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dodona.kernels.sampling import reference
from dodona.kernels.sampling.common import load_scores, vocab_block
from dodona.kernels.sampling.threshold_search import (
    GROUP,
    SMALL,
    copy_near,
    find_threshold,
    narrow,
    score_weights,
    total_mass,
    weigh,
    weight_above,
)

ROOM = 8192
"""Logits of a row that can be copied."""


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
    Returns: [n] fp32; unspecified for padding.
    """
    n, vocab = logits.shape
    group, device = GROUP.value, logits.device
    groups = triton.cdiv(vocab, group)
    cuts = torch.empty(n, dtype=torch.float32, device=device)
    if n == 0:
        return cuts
    maxima = torch.empty(n, groups, dtype=torch.float32, device=device)
    masses = torch.empty_like(maxima)
    listed = torch.empty(n, groups, dtype=torch.int32, device=device)
    near = torch.empty(n, ROOM, dtype=torch.float32, device=device)
    asked = (idx_mapping, inverse_temperatures, log_min_p, top_k, top_p)
    tile = vocab_block(n, vocab) // group
    _groups_kernel[(n, triton.cdiv(groups, tile))](
        logits, logits.stride(0), *asked, maxima, masses, vocab, groups,
        TILE=tile, num_warps=8 if tile * group > 1024 else 4,
    )  # fmt: skip
    block = min(2048, max(group, triton.next_power_of_2(vocab)))
    # Registers for two programs a multiprocessor, or some rows of a large batch would wait for the others.
    _cuts_kernel[(n,)](
        logits, logits.stride(0), *asked, maxima, masses, listed, near, cuts, vocab, groups,
        BLOCK=block, ROOM=ROOM, num_warps=16 if block == 2048 else 4, maxnreg=64,
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
    tempered = reference.sanitize(logits) * torch.where(inverse > 0, inverse, 1.0)[:, None]
    cuts = reference.thresholds(tempered, log_min_p[state], top_k[state], top_p[state])
    return torch.where(inverse > 0, cuts, -torch.inf)


@triton.jit
def _asked(row, idx_mapping_ptr, inverse_ptr, log_min_p_ptr, top_k_ptr, top_p_ptr):
    """A batch row's state row, and its parameters; the inverse temperature is 0 where nothing is filtered."""
    state = tl.load(idx_mapping_ptr + row)
    there = state >= 0
    inverse = tl.load(inverse_ptr + state, mask=there, other=0.0)
    log_min_p = tl.load(log_min_p_ptr + state, mask=there, other=float("-inf"))
    top_k = tl.load(top_k_ptr + state, mask=there, other=0).to(tl.float32)
    top_p = tl.load(top_p_ptr + state, mask=there, other=1.0)
    asks = (log_min_p > float("-inf")) | (top_k > 0.0) | (top_p < 1.0)
    return state, tl.where(asks, inverse, 0.0), log_min_p, top_k, top_p


@triton.jit
def _groups_kernel(
    logits_ptr,  # [n, vocab]
    logits_stride,
    idx_mapping_ptr,  # [n]
    inverse_ptr,  # [rows]
    log_min_p_ptr,  # [rows]
    top_k_ptr,  # [rows]
    top_p_ptr,  # [rows]
    maxima_ptr,  # [n, groups]: the greatest logit of each group
    masses_ptr,  # [n, groups]: summed exp(score - the group's greatest), if only top-p is asked
    vocab,
    groups,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    _, inverse, log_min_p, top_k, top_p = _asked(
        row, idx_mapping_ptr, inverse_ptr, log_min_p_ptr, top_k_ptr, top_p_ptr
    )
    if inverse == 0.0:
        return
    places = tl.program_id(1) * TILE + tl.arange(0, TILE)
    tokens = places[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    logits = load_scores(logits_ptr + row * logits_stride, tokens, tokens < vocab)
    maxima = tl.max(logits, 1)
    tl.store(maxima_ptr + row * groups + places, maxima, mask=places < groups)
    if (top_p < 1.0) & (top_k == 0.0) & (log_min_p == float("-inf")):
        # A group without any finite logit must weigh 0, not NaN.
        greatest = tl.where(maxima > float("-inf"), maxima, 0.0) * inverse
        masses = tl.sum(score_weights(logits * inverse, greatest[:, None], 1.0), 1)
        tl.store(masses_ptr + row * groups + places, masses, mask=places < groups)


@triton.jit
def _cuts_kernel(
    logits_ptr, logits_stride, idx_mapping_ptr, inverse_ptr, log_min_p_ptr, top_k_ptr, top_p_ptr,
    maxima_ptr, masses_ptr,  # these and those before: as above
    listed_ptr,  # [n, groups]: groups that have something to copy
    near_ptr,  # [n, ROOM]: copied logits
    cuts_ptr,  # [n]
    vocab, groups, BLOCK: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    state, inverse, log_min_p, top_k, top_p = _asked(
        i, idx_mapping_ptr, inverse_ptr, log_min_p_ptr, top_k_ptr, top_p_ptr
    )
    row = (logits_ptr + i * logits_stride, vocab, inverse)
    maxima = (maxima_ptr + i * groups, groups, inverse)
    scratch = (maxima, listed_ptr + i * groups, near_ptr + i * ROOM)
    greatest = float("-inf")
    if inverse > 0.0:
        _, _, greatest = weigh(maxima, (0.0, 0.0, 0.0), 0.0, float("inf"), (0.0, 0.0, 0.0), SMALL)
    if greatest == float("-inf"):
        tl.store(cuts_ptr + i, float("-inf"), mask=state >= 0)
        return
    cut = tl.maximum(greatest + log_min_p, -3.4028234663852886e38)  # all finite scores
    by_count = top_k > 0.0
    if by_count | (top_p < 1.0):
        whole = (by_count == 0) & (log_min_p == float("-inf"))  # top-p is of all tokens
        mass, enough = 0.0, tl.where(by_count, top_k, float("inf"))
        if whole:
            mass = total_mass(maxima, masses_ptr + i * groups, greatest, SMALL)
            enough = top_p * mass
        low, count = cut, ROOM + 1
        sought = (enough, greatest, tl.where(by_count, 0.0, 1.0))
        reach = weight_above(maxima, cut, sought, SMALL)
        if reach >= enough:
            interval = (cut, greatest, float("inf"), reach, 0.0)
            low, _, _, _, _ = narrow(maxima, interval, sought, -1.0, SMALL)
        if (reach >= enough) | (whole == 0):
            count = copy_near(row, scratch, low, float("inf"), BLOCK, ROOM)
        cut = tl.where(by_count, low, cut)  # right already unless more than k are there
        if by_count & (count > top_k):
            sought = (top_k, greatest, 0.0)
            cut = find_threshold(row, scratch, count, low, count.to(tl.float32), sought, BLOCK, ROOM)
        if top_p < 1.0:
            if (whole == 0) & (count <= ROOM):
                mass = weight_above((scratch[2], count, inverse), cut, (0.0, greatest, 1.0), SMALL)
            elif whole == 0:
                mass = weight_above(row, cut, (0.0, greatest, 1.0), BLOCK)
            low = tl.maximum(low, cut)
            if count > ROOM:
                # All tokens together, were each below this, would weigh less than 1 - p.
                low = tl.maximum(low, greatest + tl.log(0.9 * (1.0 - top_p) * mass / vocab))
            sought = (top_p * mass, greatest, 1.0)
            cut = find_threshold(row, scratch, count, low, mass, sought, BLOCK, ROOM)
    tl.store(cuts_ptr + i, cut)
