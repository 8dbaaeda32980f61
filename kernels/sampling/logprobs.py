"""Log-probabilities from raw logits: of one token per row with its rank, and of the row's most probable.

Blocks of the vocabulary first (maximum, sum of exponentials, tokens above the row's own, the block's best),
then a reduction over a row's blocks. Among equal logits the lowest id comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dodona.kernels.sampling import reference
from dodona.kernels.sampling.common import load_scores, order_keys, vocab_block

MOST_BY_KERNEL = 64
"""Up to this many best tokens are picked one after another in the kernel; beyond it torch's top-k does it."""


@dataclass(frozen=True, slots=True)
class LogprobTensors:
    """Parallel to m rows, on the logits' device."""

    token_ids: Tensor
    """[m, 1 + top_n] int32: the row's own token, then the most probable ones."""
    logprobs: Tensor
    """[m, 1 + top_n] fp32."""
    ranks: Tensor
    """[m] int32: 1 + the number of tokens with greater logits than the row's own."""


def token_logprobs(
    logits: Tensor, token_ids: Tensor, *, top_n: int, rows: Tensor | None = None
) -> LogprobTensors:
    """Log-probability and rank of one token per row, with the row's `top_n` most probable tokens.

    Args:
        logits: [n, vocab], raw, any floating dtype, unit stride along the vocabulary.
        token_ids: [n] integer, one token per logits row.
        top_n: >= 0; at most the vocabulary is given.
        rows: [m] integer, the rows of `logits` and `token_ids` to report, or None for all n.
    """
    return _logprobs(logits, token_ids, top_n=top_n, rows=rows, by_entry=False)


def given_logprobs(logits: Tensor, *, rows: Tensor, token_ids: Tensor) -> LogprobTensors:
    """Log-probability and rank of any tokens of any rows; a row may come several times, or not at all.

    Args:
        logits: [n, vocab], raw, any floating dtype, unit stride along the vocabulary.
        rows: [m] integer, the row of `logits` of each entry.
        token_ids: [m] integer, the token of each entry.
    Returns: m entries of one token each.
    """
    return _logprobs(logits, token_ids, top_n=0, rows=rows, by_entry=True)


def _logprobs(
    logits: Tensor, token_ids: Tensor, *, top_n: int, rows: Tensor | None, by_entry: bool
) -> LogprobTensors:
    """`by_entry`: `token_ids` are parallel to `rows`, not to the logits' rows."""
    n, vocab = logits.shape
    m = n if rows is None else rows.shape[0]
    top_n = min(top_n, vocab)
    device = logits.device
    ids = torch.empty(m, 1 + top_n, dtype=torch.int32, device=device)
    logprobs = torch.empty(m, 1 + top_n, dtype=torch.float32, device=device)
    ranks = torch.empty(m, dtype=torch.int32, device=device)
    if m == 0:
        return LogprobTensors(ids, logprobs, ranks)
    block = vocab_block(m, vocab)
    num_blocks = triton.cdiv(vocab, block)
    picked = top_n if top_n <= MOST_BY_KERNEL else 0
    partial = torch.empty(3, m, num_blocks, dtype=torch.float32, device=device)
    keys = torch.empty(m, num_blocks, max(picked, 1), dtype=torch.int64, device=device)
    _logprob_blocks_kernel[(m, num_blocks)](
        logits, logits.stride(0), rows, token_ids, partial, keys, vocab, m, num_blocks,
        picked, BLOCK=block, HAS_ROWS=rows is not None, BY_ENTRY=by_entry, num_warps=8 if block > 1024 else 4,
    )  # fmt: skip
    best = keys
    if top_n > picked:
        chosen = logits if rows is None else logits[rows.long()]
        best = torch.topk(reference.order_keys(reference.sanitize(chosen)), top_n, dim=1).values
    _logprob_reduce_kernel[(m,)](
        logits, logits.stride(0), rows, token_ids, partial, best, ids, logprobs, ranks, m, num_blocks,
        top_n, num_blocks * picked if picked else top_n,
        BLOCKS=triton.next_power_of_2(num_blocks), WIDTH=triton.next_power_of_2(num_blocks * _room(picked)),
        SORTED=top_n > picked, HAS_ROWS=rows is not None, BY_ENTRY=by_entry,
    )  # fmt: skip
    return LogprobTensors(ids, logprobs, ranks)


def _room(picked: int) -> int:
    """Room for so many tokens of a block: few different sizes, as each compiles a kernel."""
    return next(size for size in (1, 8, 20, MOST_BY_KERNEL) if picked <= size)


def token_logprobs_reference(
    logits: Tensor, token_ids: Tensor, *, top_n: int, rows: Tensor | None = None
) -> LogprobTensors:
    """What `token_logprobs` computes, in plain torch."""
    if rows is not None:
        logits, token_ids = logits[rows.long()], token_ids[rows.long()]
    ids, logprobs, ranks = reference.logprobs_and_ranks(logits, token_ids.long(), top_n)
    return LogprobTensors(ids.int(), logprobs, ranks.int())


def given_logprobs_reference(logits: Tensor, *, rows: Tensor, token_ids: Tensor) -> LogprobTensors:
    """What `given_logprobs` computes, in plain torch."""
    return token_logprobs_reference(logits[rows.long()], token_ids, top_n=0)


# Requests differ in these, and each kind would be a kernel of its own.
@triton.jit(
    do_not_specialize=["m", "num_blocks", "top_n"],
    do_not_specialize_on_alignment=["rows_ptr", "token_ids_ptr"],
)
def _logprob_blocks_kernel(
    logits_ptr,  # [n, vocab]
    logits_stride,
    rows_ptr,  # [m] or None
    token_ids_ptr,  # [n], or [m] if BY_ENTRY
    partial_ptr,  # [3, m, num_blocks]: maximum, sum of exp(score - maximum), tokens above the row's own
    keys_ptr,  # [m, num_blocks, max(top_n, 1)]
    vocab,
    m,
    num_blocks,
    top_n,
    BLOCK: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BY_ENTRY: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    row = entry
    if HAS_ROWS:
        row = tl.load(rows_ptr + entry).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    # -1 where no token could be drawn: nobody reads this entry
    own = load_scores(row_ptr, tl.maximum(tl.load(token_ids_ptr + (entry if BY_ENTRY else row)), 0), True)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < vocab
    scores = load_scores(row_ptr, tokens, inside)
    greatest = tl.max(scores, 0)
    finite = scores > float("-inf")
    weight = tl.sum(tl.where(finite, tl.exp(scores - greatest), 0.0), 0)
    above = tl.sum(tl.where(scores > own, 1.0, 0.0), 0)
    place = partial_ptr + entry * num_blocks + block
    tl.store(place, greatest)
    tl.store(place + m * num_blocks, weight)
    tl.store(place + 2 * m * num_blocks, above)
    least: tl.constexpr = -9223372036854775808
    keys = tl.where(inside, order_keys(scores, tokens), least)
    for i in range(top_n):
        best = tl.max(keys, 0)
        tl.store(keys_ptr + (entry * num_blocks + block) * top_n + i, best)
        keys = tl.where(keys == best, least, keys)


@triton.jit
def _store_logprob(row_ptr, token, greatest, log_weight, id_ptr, logprob_ptr):
    token = tl.maximum(token, 0)
    score = load_scores(row_ptr, token, True)
    tl.store(id_ptr, token.to(tl.int32))
    # A row without any finite logit has no distribution: -inf for all, not NaN.
    tl.store(logprob_ptr, tl.where(score > float("-inf"), score - greatest - log_weight, float("-inf")))


@triton.jit(
    do_not_specialize=["m", "num_blocks", "top_n", "num_keys"],
    do_not_specialize_on_alignment=["rows_ptr", "token_ids_ptr"],
)
def _logprob_reduce_kernel(
    logits_ptr,  # [n, vocab]
    logits_stride,
    rows_ptr,  # [m] or None
    token_ids_ptr,  # [n], or [m] if BY_ENTRY
    partial_ptr,  # [3, m, num_blocks]
    keys_ptr,  # [m, num_keys]: candidates of all blocks, or the best in order if SORTED
    ids_ptr,  # [m, 1 + top_n]
    logprobs_ptr,  # [m, 1 + top_n]
    ranks_ptr,  # [m]
    m,
    num_blocks,
    top_n,
    num_keys,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    SORTED: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BY_ENTRY: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    row = entry
    if HAS_ROWS:
        row = tl.load(rows_ptr + entry).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    blocks = tl.arange(0, BLOCKS)
    inside = blocks < num_blocks
    parts = partial_ptr + entry * num_blocks + blocks
    maxima = tl.load(parts, mask=inside, other=float("-inf"))
    weights = tl.load(parts + m * num_blocks, mask=inside, other=0.0)
    above = tl.load(parts + 2 * m * num_blocks, mask=inside, other=0.0)
    greatest = tl.max(maxima, 0)
    # A block without a finite score has weight 0; -inf - greatest must not meet a greatest of -inf.
    scale = tl.where(maxima > float("-inf"), tl.exp(maxima - greatest), 0.0)
    log_weight = tl.log(tl.sum(weights * scale, 0))
    tl.store(ranks_ptr + entry, 1 + tl.sum(above, 0).to(tl.int32))

    first = entry * (1 + top_n)
    own = tl.load(token_ids_ptr + (entry if BY_ENTRY else row))
    _store_logprob(row_ptr, own, greatest, log_weight, ids_ptr + first, logprobs_ptr + first)
    columns = tl.arange(0, WIDTH)
    least: tl.constexpr = -9223372036854775808
    keys = tl.full([WIDTH], least, dtype=tl.int64)
    if not SORTED:
        keys = tl.load(keys_ptr + entry * num_keys + columns, mask=columns < num_keys, other=least)
    for i in range(top_n):
        if SORTED:
            best = tl.load(keys_ptr + entry * num_keys + i)
        else:
            best = tl.max(keys, 0)
            keys = tl.where(keys == best, least, keys)
        token = 0xFFFFFFFF - (best & 0xFFFFFFFF)
        place = first + 1 + i
        _store_logprob(row_ptr, token, greatest, log_weight, ids_ptr + place, logprobs_ptr + place)
