"""What drafting on the device takes from the requests' state, and gives back to it, between two steps.

A row that sampled has a *last* token: the last one of the step that is kept, at `positions`. The token that
the step drew follows it, and then the drafts, at `positions + 2` and on.

Attention and draws read what these kernels write before they wait for their inputs (see `dependent_launch`).
So no kernel here lets the next one start before its end, but `step_ends` and `draft_places`: after these a
drafter always launches `following_tokens` or `append_drafts` before such a kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)


def step_ends(
    *, first_samples: Tensor, rows: Tensor, seq_lens: Tensor, num_kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of a step of entries of one token, after it verified drafts.

    Args:
        first_samples: [n] int32: the first entry of each row; -1 for padding.
        rows: [entries] int32: state rows.
        seq_lens: [entries] int32: tokens of each entry after the step.
        num_kept: [entries] int32: at a row's first entry how many of its tokens are kept.

    Returns:
        rows [n], -1 for padding; entry of the last token [n], and its position [n], 0 for padding: int32.
    """
    found = torch.empty((3, first_samples.shape[0]), dtype=torch.int32, device=rows.device)
    dependent = supports_dependent_launch(rows.device)
    if found.numel():
        _step_ends_kernel[(found.shape[1],)](
            first_samples, rows, seq_lens, num_kept, found[0], found[1], found[2], DEPENDENT=dependent,
            num_warps=1, **launch_options(dependent),
        )  # fmt: skip
    return found[0], found[1], found[2]


@triton.jit
def _step_ends_kernel(
    first_samples,
    rows,
    seq_lens,
    num_kept,
    out_rows,
    out_last,
    out_positions,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    i = tl.program_id(0)
    first = tl.load(first_samples + i)
    live = first >= 0
    kept = tl.load(num_kept + first, mask=live, other=1)
    tl.store(out_rows + i, tl.load(rows + first, mask=live, other=-1))
    tl.store(out_last + i, tl.where(live, first + kept - 1, 0))
    tl.store(out_positions + i, tl.load(seq_lens + first, mask=live, other=1) + kept - 2)


def step_ends_reference(
    first_samples: Tensor, rows: Tensor, seq_lens: Tensor, num_kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `step_ends` computes, in plain Python."""
    found = [
        (int(rows[i]), int(i + num_kept[i] - 1), int(seq_lens[i] + num_kept[i] - 2)) if i >= 0 else (-1, 0, 0)
        for i in first_samples.tolist()
    ]
    columns = torch.tensor(found, dtype=torch.int32).reshape(-1, 3).T
    return columns[0], columns[1], columns[2]


def following_tokens(*, rows: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """The token after each token of a step: [tokens] int32; 0 where there is none.

    Args:
        rows: [tokens] int32: state row of each; negative for padding.
        positions: [tokens] int32 or int64.
        token_ids: [state rows, max_model_len] int32.
    """
    count, most = positions.shape[0], token_ids.shape[1]
    out = torch.empty(count, dtype=torch.int32, device=positions.device)
    block = 128
    dependent = supports_dependent_launch(positions.device)
    if count:
        _following_tokens_kernel[(triton.cdiv(count, block),)](
            rows, positions, token_ids, token_ids.stride(0), out, count, most, stride_rows=rows.stride(0),
            DEPENDENT=dependent, BLOCK=block, num_warps=1, **launch_options(dependent),
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["count", "most"])
def _following_tokens_kernel(
    rows,
    positions,
    token_ids,
    stride_tokens,
    out,
    count,
    most,
    stride_rows,
    DEPENDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if DEPENDENT:
        wait_for_inputs()
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    row = tl.load(rows + i * stride_rows, mask=inside, other=-1).to(tl.int64)
    place = tl.load(positions + i, mask=inside, other=0) + 1
    known = inside & (row >= 0) & (place < most)
    token = tl.load(token_ids + row * stride_tokens + place, mask=known, other=0)
    tl.store(out + i, tl.maximum(token, 0), mask=inside)


def following_tokens_reference(rows: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """What `following_tokens` computes, in plain Python."""
    found = [
        max(0, int(token_ids[row, place + 1])) if row >= 0 and place + 1 < token_ids.shape[1] else 0
        for row, place in zip(rows.tolist(), positions.tolist(), strict=True)
    ]
    return torch.tensor(found, dtype=torch.int32)


def draft_places(
    *, rows: Tensor, positions: Tensor, first: int, count: int, block_table: Tensor, block_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Where `count` entries of one token lie that follow one another in each row.

    Args:
        rows: [n] int32: state rows, -1 for padding.
        positions: [n] int32: of each row's last token.
        first: how far the first entry is ahead of these.
        block_table: [state rows, max blocks] int32.
        block_size: tokens of a KV block.

    Returns:
        positions, KV slots (-1 for padding) and sequence lengths, [count, n] int32 each.
    """
    n = rows.shape[0]
    out = torch.empty((3, count, n), dtype=torch.int32, device=rows.device)
    dependent = supports_dependent_launch(rows.device)
    if n and count:
        _draft_places_kernel[(n, count)](
            rows, positions, first, block_table, block_table.stride(0), block_table.shape[1],
            out[0], out[1], out[2], BLOCK_SIZE=block_size, DEPENDENT=dependent, num_warps=1,
            **launch_options(dependent),
        )  # fmt: skip
    return out[0], out[1], out[2]


@triton.jit(do_not_specialize=["first", "max_blocks"])
def _draft_places_kernel(
    rows,
    positions,
    first,
    block_table,
    stride_table,
    max_blocks,
    out_positions,
    out_slots,
    out_lengths,
    BLOCK_SIZE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    i = tl.program_id(0)
    row = tl.load(rows + i).to(tl.int64)
    live = row >= 0
    position = tl.load(positions + i) + first + tl.program_id(1)
    place = position // BLOCK_SIZE
    has_block = live & (place < max_blocks)
    block = tl.load(block_table + row * stride_table + place, mask=has_block, other=0)
    target = tl.program_id(1) * tl.num_programs(0) + i
    tl.store(out_positions + target, tl.where(live, position, 0))
    tl.store(out_slots + target, tl.where(has_block, block * BLOCK_SIZE + position % BLOCK_SIZE, -1))
    tl.store(out_lengths + target, tl.where(live, position + 1, 0))


def draft_places_reference(
    rows: Tensor, positions: Tensor, first: int, count: int, block_table: Tensor, block_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `draft_places` computes, in plain Python."""
    found = []
    for ahead in range(first, first + count):
        for row, last in zip(rows.tolist(), positions.tolist(), strict=True):
            place = last + ahead
            has_block = row >= 0 and place // block_size < block_table.shape[1]
            block = int(block_table[row, place // block_size]) if has_block else 0
            slot = block * block_size + place % block_size if has_block else -1
            found.append((place, slot, place + 1) if row >= 0 else (0, -1, 0))
    parts = torch.tensor(found, dtype=torch.int32).reshape(count, len(rows), 3)
    return parts[..., 0], parts[..., 1], parts[..., 2]


def append_drafts(
    *, drafts: Tensor, rows: Tensor, positions: Tensor, token_ids: Tensor, out: Tensor | None = None
) -> None:
    """Write drafts into the token history, after the token that the step drew.

    Args:
        drafts: [n, k] int32, of any strides; what is negative becomes token 0, which is a guess like others.
        rows: [n] int32: state rows, -1 for padding.
        positions: [n] int32: of each row's last token.
        token_ids: [state rows, max_model_len] int32, written where there is room.
        out: [n, k] int32, contiguous: a copy of `drafts` as they are; None for no copy.
    """
    n, count = drafts.shape
    dependent = supports_dependent_launch(rows.device)
    if n and count:
        _append_drafts_kernel[(n,)](
            drafts, drafts.stride(0), drafts.stride(1), rows, positions, token_ids, token_ids.stride(0),
            token_ids.shape[1], out, COUNT=count, DEPENDENT=dependent, BLOCK=triton.next_power_of_2(count),
            num_warps=1, **launch_options(dependent),
        )  # fmt: skip


@triton.jit(do_not_specialize=["max_model_len"])
def _append_drafts_kernel(
    drafts,
    stride_row,
    stride_depth,
    rows,
    positions,
    token_ids,
    stride_tokens,
    max_model_len,
    out,
    COUNT: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if DEPENDENT:
        wait_for_inputs()
    i = tl.program_id(0)
    row = tl.load(rows + i).to(tl.int64)
    depth = tl.arange(0, BLOCK)
    place = tl.load(positions + i) + 2 + depth
    inside = depth < COUNT
    draft = tl.load(drafts + i * stride_row + depth * stride_depth, mask=inside, other=0)
    target = token_ids + row * stride_tokens + place
    tl.store(target, tl.maximum(draft, 0), mask=inside & (row >= 0) & (place < max_model_len))
    if out is not None:
        tl.store(out + i * COUNT + depth, draft, mask=inside)


def append_drafts_reference(drafts: Tensor, rows: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """The token history after `append_drafts`, in plain Python."""
    found = token_ids.clone()
    for row, last, own in zip(rows.tolist(), positions.tolist(), drafts.tolist(), strict=True):
        for depth, draft in enumerate(own):
            if row >= 0 and last + 2 + depth < found.shape[1]:
                found[row, last + 2 + depth] = max(draft, 0)
    return found
