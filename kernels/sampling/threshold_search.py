"""The search for a row's threshold: the greatest score such that what is at or above it weighs enough.

A search weighs (top-p) or counts (top-k) what is at or above the quarters of the interval in which the
threshold is. The interval's ends move on to scores that occur, so the search ends when they meet, at exactly
the score that a sort would give.

Arguments of the functions below:

- logits: (pointer, how many, inverse temperature), of a row, of its groups' greatest, or of those copied.
- sought: (enough, greatest, scale). A score weighs exp(scale * (score - greatest)), which is 1 for a scale of
  0. Sought is the greatest score such that all at or above it weigh at least `enough`.
- interval: (low, high, end, reach, over). The answer is in [low, high] and below `end`; what is at or above
  `low` weighs at most `reach`, what is at or above `end` weighs `over`.
- scratch: (logits of the groups' greatest, where to list groups, where to copy logits to).
"""

from __future__ import annotations

import triton
import triton.language as tl

from dodona.kernels.sampling.common import load_scores

GROUP = tl.constexpr(64)
"""Tokens that share a maximum: a 128-byte line of 16-bit logits."""
SMALL = tl.constexpr(1024)
"""Block of passes over less than a row."""


@triton.jit
def score_weights(scores, greatest, scale):
    """exp(scale * (score - greatest)).

    The greatest score weighs 1 whatever its size: a GPU may fuse the product that a score is with the
    difference, and does not round it then.
    """
    # An infinite difference would make NaN of a scale of 0.
    weights = tl.exp(scale * tl.maximum(scores - greatest, -200.0))
    return tl.where(scores >= greatest, 1.0, weights)


@triton.jit
def weigh(logits, middles, low, end, sought, BLOCK: tl.constexpr):
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
        weights = score_weights(scores, greatest, scale)
        first += tl.where(scores >= middles[0], weights, 0.0)
        second += tl.where(scores >= middles[1], weights, 0.0)
        third += tl.where(scores >= middles[2], weights, 0.0)
        least = tl.minimum(least, tl.where(scores >= low, scores, float("inf")))
        most = tl.maximum(most, tl.where(scores < end, scores, float("-inf")))
    return (tl.sum(first, 0), tl.sum(second, 0), tl.sum(third, 0)), tl.min(least, 0), tl.max(most, 0)


@triton.jit
def weight_above(logits, low, sought, BLOCK: tl.constexpr):
    """The weight of the scores >= low."""
    above, _, _ = weigh(logits, (low, low, low), low, low, sought, BLOCK)
    return above[0]


@triton.jit
def narrow(logits, interval, sought, room, BLOCK: tl.constexpr):
    """Narrow an interval until at most `room` scores can be inside, or low >= high: low then keeps the same
    scores as the answer."""
    low, high, end, reach, over = interval
    enough, greatest, scale = sought
    inside = float("inf")
    while (low < high) & (inside > room):
        last = 0.25 * low + 0.75 * high
        middles = (0.75 * low + 0.25 * high, 0.5 * low + 0.5 * high, tl.where(last > low, last, high))
        above, least, most = weigh(logits, middles, low, end, sought, BLOCK)
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
def copy_near(row, scratch, low, end, BLOCK: tl.constexpr, ROOM: tl.constexpr):
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
def find_threshold(row, scratch, count, low, reach, sought, BLOCK: tl.constexpr, ROOM: tl.constexpr):
    """What is sought, in a row that has `count` scores >= low, copied if there was room.

    They weigh at most `reach`, and at least what is enough.
    """
    enough, greatest, scale = sought
    high, end, over, room = greatest, float("inf"), 0.0, 1.0 * ROOM
    while low < high:
        if count > ROOM:
            low, high, end, reach, over = narrow(row, (low, high, end, reach, over), sought, room, BLOCK)
            if low < high:
                count = copy_near(row, scratch, low, end, BLOCK, ROOM)
        if count <= ROOM:
            near, interval = (scratch[2], count, row[2]), (low, high, end, reach - over, 0.0)
            low, high, _, _, _ = narrow(near, interval, (enough - over, greatest, scale), -1.0, SMALL)
        room = -1.0  # rounding can let more inside than there is room for: then to the end in the row
    return low


@triton.jit
def total_mass(maxima, masses_ptr, greatest, BLOCK: tl.constexpr):
    """The summed exp(score - greatest) of a row, from its groups' masses."""
    maxima_ptr, groups, inverse = maxima
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, groups, BLOCK):
        places = start + tl.arange(0, BLOCK)
        scores = load_scores(maxima_ptr, places, places < groups) * inverse
        masses = tl.load(masses_ptr + places, mask=places < groups, other=0.0)
        total += masses * score_weights(scores, greatest, 1.0)
    return tl.sum(total, 0)
