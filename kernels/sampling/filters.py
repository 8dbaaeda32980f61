"""min-p, top-k and top-p as one number per row: the least tempered logit that is kept.

The row is never sorted, and seldom read twice. One kernel notes the greatest logit of each group of tokens.
If k of these, or enough of them for top-p, reach a value, the threshold does too, and what is at or above it
lies in the groups whose greatest is. The second kernel copies that, and searches the copy. It reads all of a
row again only if that is more than `ROOM` logits, or if there is no such value: to narrow the interval of the
threshold until what is inside can be copied.

A search weighs (top-p) or counts (top-k) what is above the quarters of the interval. Its ends move on to
logits that occur, so it ends when they meet, at exactly the logit that a sort would give. The draw
(`gumbel.py`) then passes over smaller logits. **Ties are kept**, see `dodona.runners.sampling.reference`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dodona.kernels.sampling.common import load_scores, vocab_block
from dodona.runners.sampling import reference as sampling

GROUP = tl.constexpr(64)
"""Tokens that share a maximum: a 128-byte line of 16-bit logits."""
ROOM = 8192
"""Logits of a row that can be copied."""
SMALL = tl.constexpr(1024)
"""Block of passes over less than a row."""


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
    tempered = sampling.sanitize(logits) * torch.where(inverse > 0, inverse, 1.0)[:, None]
    cuts = sampling.thresholds(tempered, log_min_p[state], top_k[state], top_p[state])
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
def _weights(scores, greatest, scale):
    """exp(scale * (score - greatest)).

    The greatest score weighs 1 whatever its size: a GPU may fuse the product that a score is with the
    difference, and does not round it then.
    """
    # An infinite difference would make NaN of a scale of 0.
    weights = tl.exp(scale * tl.maximum(scores - greatest, -200.0))
    return tl.where(scores >= greatest, 1.0, weights)


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
        masses = tl.sum(_weights(logits * inverse, greatest[:, None], 1.0), 1)
        tl.store(masses_ptr + row * groups + places, masses, mask=places < groups)


# Below, logits are (pointer, how many, inverse temperature): a row's, its groups' greatest, or those copied.
# Sought, by (enough, greatest, scale), is the greatest score such that all at or above it weigh at least
# `enough`; a score weighs exp(scale * (score - greatest)), so that it counts if the scale is 0.
# Scratch is (groups' greatest logits, where to list groups, where to copy logits to).


@triton.jit
def _weigh(logits, middles, low, end, sought, BLOCK: tl.constexpr):
    """The weight at or above each of three middles; the least score >= low; the greatest < end."""
    ptr, length, inverse = logits
    _, greatest, scale = sought
    first = tl.zeros([BLOCK], dtype=tl.float32)
    second = tl.zeros([BLOCK], dtype=tl.float32)
    third = tl.zeros([BLOCK], dtype=tl.float32)
    least = tl.full([BLOCK], float("inf"), dtype=tl.float32)
    most = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    # A row is read ahead; what is less fits in few blocks.
    for start in tl.range(0, length, BLOCK, num_stages=4 if BLOCK > SMALL else 1):
        places = start + tl.arange(0, BLOCK)
        scores = load_scores(ptr, places, places < length) * inverse
        weights = _weights(scores, greatest, scale)
        first += tl.where(scores >= middles[0], weights, 0.0)
        second += tl.where(scores >= middles[1], weights, 0.0)
        third += tl.where(scores >= middles[2], weights, 0.0)
        least = tl.minimum(least, tl.where(scores >= low, scores, float("inf")))
        most = tl.maximum(most, tl.where(scores < end, scores, float("-inf")))
    return (tl.sum(first, 0), tl.sum(second, 0), tl.sum(third, 0)), tl.min(least, 0), tl.max(most, 0)


@triton.jit
def _amount(logits, low, sought, BLOCK: tl.constexpr):
    """The weight of the scores >= low."""
    above, _, _ = _weigh(logits, (low, low, low), low, low, sought, BLOCK)
    return above[0]


@triton.jit
def _narrow(logits, interval, sought, room, BLOCK: tl.constexpr):
    """Narrow an interval until at most `room` scores can be inside, or low >= high: low then keeps the same
    scores as the answer.

    An interval is (low, high, end, reach, over): the answer is in [low, high] and below end; what is at or
    above low weighs at most `reach`, what is at or above end `over`.
    """
    low, high, end, reach, over = interval
    enough, greatest, scale = sought
    inside = float("inf")
    while (low < high) & (inside > room):
        last = 0.25 * low + 0.75 * high
        middles = (0.75 * low + 0.25 * high, 0.5 * low + 0.5 * high, tl.where(last > low, last, high))
        above, least, most = _weigh(logits, middles, low, end, sought, BLOCK)
        low = tl.where(least < end, least, low)
        for i in tl.static_range(3):
            low = tl.where(above[i] >= enough, tl.maximum(low, middles[i]), low)
            reach = tl.where(above[i] >= enough, above[i], reach)
        for i in tl.static_range(2, -1, -1):
            end = tl.where(above[i] < enough, middles[i], end)
            over = tl.where(above[i] < enough, above[i], over)
        high = tl.where(reach == enough, low, tl.minimum(most, end))
        # None of those inside weighs less than low would.
        weight = tl.exp(tl.where(scale > 0.0, tl.maximum(low - greatest, -80.0), 0.0))
        inside = tl.maximum(reach - over, 0.0) / weight
    return low, high, end, reach, over


@triton.jit
def _append(ptr, count, values, wanted, room):
    """Write the wanted values after the `count` that are there, as far as there is room; the new count."""
    ones = wanted.to(tl.int32)
    places = count + tl.cumsum(ones, 0) - ones
    tl.store(ptr + places, values, mask=wanted & (places < room))
    return count + tl.sum(ones, 0)


@triton.jit
def _copy(row, scratch, low, end, BLOCK: tl.constexpr, ROOM: tl.constexpr):
    """Copy the logits whose scores are in [low, end): how many there are, copied or not."""
    row_ptr, vocab, inverse = row
    maxima, listed_ptr, near_ptr = scratch
    num_listed = 0
    for start in range(0, maxima[1], BLOCK):
        places = start + tl.arange(0, BLOCK)
        scores = load_scores(maxima[0], places, places < maxima[1]) * inverse
        num_listed = _append(listed_ptr, num_listed, places, scores >= low, maxima[1])
    tl.debug_barrier()
    count = 0
    TILE: tl.constexpr = BLOCK // GROUP
    for start in tl.range(0, num_listed, TILE, num_stages=3):
        places = start + tl.arange(0, TILE)
        there = places < num_listed
        groups = tl.load(listed_ptr + places, mask=there, other=0)
        tokens = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        logits = tl.reshape(load_scores(row_ptr, tokens, there[:, None] & (tokens < vocab)), [BLOCK])
        scores = logits * inverse
        count = _append(near_ptr, count, logits, (scores >= low) & (scores < end), ROOM)
    tl.debug_barrier()
    return count


@triton.jit
def _find(row, scratch, count, low, reach, sought, BLOCK: tl.constexpr, ROOM: tl.constexpr):
    """What is sought, in a row that has `count` scores >= low, copied if there was room.

    They weigh at most `reach`, and at least what is enough.
    """
    enough, greatest, scale = sought
    high, end, over, room = greatest, float("inf"), 0.0, 1.0 * ROOM
    while low < high:
        if count > ROOM:
            low, high, end, reach, over = _narrow(row, (low, high, end, reach, over), sought, room, BLOCK)
            if low < high:
                count = _copy(row, scratch, low, end, BLOCK, ROOM)
        if count <= ROOM:
            near, interval = (scratch[2], count, row[2]), (low, high, end, reach - over, 0.0)
            low, high, _, _, _ = _narrow(near, interval, (enough - over, greatest, scale), -1.0, SMALL)
        room = -1.0  # rounding can let more inside than there is room for: then to the end in the row
    return low


@triton.jit
def _total(maxima, masses_ptr, greatest, BLOCK: tl.constexpr):
    """The summed exp(score - greatest) of a row, from its groups' masses."""
    maxima_ptr, groups, inverse = maxima
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, groups, BLOCK):
        places = start + tl.arange(0, BLOCK)
        scores = load_scores(maxima_ptr, places, places < groups) * inverse
        masses = tl.load(masses_ptr + places, mask=places < groups, other=0.0)
        total += masses * _weights(scores, greatest, 1.0)
    return tl.sum(total, 0)


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
        _, _, greatest = _weigh(maxima, (0.0, 0.0, 0.0), 0.0, float("inf"), (0.0, 0.0, 0.0), SMALL)
    if greatest == float("-inf"):
        tl.store(cuts_ptr + i, float("-inf"), mask=state >= 0)
        return
    cut = tl.maximum(greatest + log_min_p, -3.4028234663852886e38)  # all finite scores
    by_count = top_k > 0.0
    if by_count | (top_p < 1.0):
        whole = (by_count == 0) & (log_min_p == float("-inf"))  # top-p is of all tokens
        mass, enough = 0.0, tl.where(by_count, top_k, float("inf"))
        if whole:
            mass = _total(maxima, masses_ptr + i * groups, greatest, SMALL)
            enough = top_p * mass
        low, count = cut, ROOM + 1
        sought = (enough, greatest, tl.where(by_count, 0.0, 1.0))
        reach = _amount(maxima, cut, sought, SMALL)
        if reach >= enough:
            interval = (cut, greatest, float("inf"), reach, 0.0)
            low, _, _, _, _ = _narrow(maxima, interval, sought, -1.0, SMALL)
        if (reach >= enough) | (whole == 0):
            count = _copy(row, scratch, low, float("inf"), BLOCK, ROOM)
        cut = tl.where(by_count, low, cut)  # right already unless more than k are there
        if by_count & (count > top_k):
            sought = (top_k, greatest, 0.0)
            cut = _find(row, scratch, count, low, count.to(tl.float32), sought, BLOCK, ROOM)
        if top_p < 1.0:
            if (whole == 0) & (count <= ROOM):
                mass = _amount((scratch[2], count, inverse), cut, (0.0, greatest, 1.0), SMALL)
            elif whole == 0:
                mass = _amount(row, cut, (0.0, greatest, 1.0), BLOCK)
            low = tl.maximum(low, cut)
            if count > ROOM:
                # All tokens together, were each below this, would weigh less than 1 - p.
                low = tl.maximum(low, greatest + tl.log(0.9 * (1.0 - top_p) * mass / vocab))
            sought = (top_p * mass, greatest, 1.0)
            cut = _find(row, scratch, count, low, mass, sought, BLOCK, ROOM)
    tl.store(cuts_ptr + i, cut)
