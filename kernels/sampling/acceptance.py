"""Which drafts a step accepts: those that equal the token that was drawn in their place.

A row that verifies k drafts is drawn for 1 + k times: after its last token, and after each draft as if all
before it had been accepted. Its batch rows follow one another, and `offsets` counts them from 0.
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


def count_kept_tokens(
    token_ids: Tensor,
    *,
    idx_mapping: Tensor,
    positions: Tensor,
    offsets: Tensor,
    history: Tensor,
    max_offset: int,
    out: Tensor | None = None,
) -> Tensor:
    """How many of the tokens drawn for each row are kept: those after accepted drafts, at least one.

    Args:
        token_ids: [n] int32, the tokens drawn.
        idx_mapping: [n] integer, state row of each batch row; negative = padding.
        positions: [n] integer, absolute position of each token drawn.
        offsets: [n] int32, how many drafts of the row come before each token drawn.
        history: [rows, max_model_len] int32: each row's tokens, and its drafts in their places.
        max_offset: most drafts of a row, on the host.
        out: [n] int32, to write into; None for a new one.
    Returns: [n] int32, at a row's first batch row; 0 at the others and for padding.
    """
    n = token_ids.shape[0]
    kept = torch.empty(n, dtype=torch.int32, device=token_ids.device) if out is None else out
    if n:
        dependent = supports_dependent_launch(token_ids.device)
        _count_kept_kernel[(n,)](
            token_ids, idx_mapping, positions, offsets, history, history.stride(0), history.shape[1], kept, n,
            WIDTH=triton.next_power_of_2(max_offset + 1), DEPENDENT=dependent, num_warps=1,
            **launch_options(dependent),
        )  # fmt: skip
    return kept


def count_kept_tokens_reference(
    token_ids: Tensor, *, idx_mapping: Tensor, positions: Tensor, offsets: Tensor, history: Tensor
) -> Tensor:
    """What `count_kept_tokens` computes, in plain Python."""
    kept = torch.zeros_like(token_ids)
    begins = [i for i, offset in enumerate(offsets.tolist()) if offset == 0]
    for begin, end in zip(begins, [*begins[1:], len(offsets)], strict=True):
        state = int(idx_mapping[begin])
        if state < 0:
            continue
        count = 1
        while begin + count < end:
            place = begin + count - 1
            if int(token_ids[place]) != int(history[state, int(positions[place])]):
                break
            count += 1
        kept[begin] = count
    return kept


@triton.jit(do_not_specialize=["max_model_len", "n"])
def _count_kept_kernel(
    token_ids_ptr,  # [n]
    idx_mapping_ptr,  # [n]
    positions_ptr,  # [n]
    offsets_ptr,  # [n]
    history_ptr,  # [rows, max_model_len]
    stride_history,
    max_model_len,
    kept_ptr,  # [n]
    n,
    WIDTH: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    first = tl.program_id(0)
    state = tl.load(idx_mapping_ptr + first).to(tl.int64)
    offset = tl.load(offsets_ptr + first)
    if (state < 0) | (offset != 0):
        tl.store(kept_ptr + first, 0)
        return
    lane = tl.arange(0, WIDTH)
    following = first + 1 + lane
    # Lane i: whether this row has a draft in the place of the i-th token drawn.
    is_drafted = tl.load(offsets_ptr + following, mask=following < n, other=0) == lane + 1
    position = tl.load(positions_ptr + first) + lane
    draft = tl.load(
        history_ptr + state * stride_history + position,
        mask=is_drafted & (position < max_model_len),
        other=-2,
    )
    drawn = tl.load(token_ids_ptr + first + lane, mask=is_drafted, other=-1)
    rejected = tl.where(is_drafted & (draft == drawn), 0, 1)
    accepted = tl.sum((tl.cumsum(rejected, axis=0) == 0).to(tl.int32), axis=0)
    tl.store(kept_ptr + first, accepted + 1)
