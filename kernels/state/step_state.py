"""A step's inputs from the requests' state on the device, and the state's update after it.

Requests keep their state in stable rows; a batch is a list of rows in any order (`rows[batch entry] -> state
row`, -1 where the batch is padded). Positions and input ids come from that state, never from the host: a
token sampled in one step is the next step's input without leaving the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import launch_options, supports_dependent_launch, wait_for_inputs


@triton.jit(do_not_specialize=["max_model_len", "num_tokens"])
def _prepare_inputs_kernel(
    rows,
    query_start,
    num_computed,
    token_ids,
    block_table,
    input_ids,
    positions,
    slots,
    seq_lens,
    offsets,
    embedding,
    hidden,
    turn,
    stride_tokens,
    stride_table,
    max_model_len,
    num_tokens,
    BLOCK_SIZE: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TURNS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    entry = tl.program_id(0)
    if TURNS > 0:
        tl.store(turn, (tl.load(turn) + 1) % TURNS, mask=entry == 0)
    row = tl.load(rows + entry).to(tl.int64)
    start = tl.load(query_start + entry)
    length = tl.load(query_start + entry + 1) - start
    live = row >= 0
    computed = tl.load(num_computed + row, mask=live, other=0)
    if HAS_OFFSETS:
        computed += tl.load(offsets + entry)
    tl.store(seq_lens + entry, tl.where(live, computed + length, 0))
    # The last entry's program also writes the padding after it.
    span = tl.where(entry == tl.num_programs(0) - 1, num_tokens - start, length)
    for offset in range(0, span, BLOCK):
        i = offset + tl.arange(0, BLOCK)
        mask = i < span
        position = computed + i
        # A request that ended in an unread step may be scheduled once more than its row has room for. The
        # result is discarded, but the step must not access memory of other requests.
        inside = (i < length) & live & (position < max_model_len)
        # -1 where no token could be drawn: that request ends, and this step's result is discarded.
        token = tl.maximum(tl.load(token_ids + row * stride_tokens + position, mask=inside, other=0), 0)
        block = tl.load(block_table + row * stride_table + position // BLOCK_SIZE, mask=inside, other=0)
        slot = tl.where(inside, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
        tl.store(input_ids + start + i, token, mask=mask)
        tl.store(positions + start + i, tl.where(inside, position, 0), mask=mask)
        tl.store(slots + start + i, slot, mask=mask)
    if HIDDEN > 0:
        inside = live & (computed < max_model_len)
        token = tl.maximum(tl.load(token_ids + row * stride_tokens + computed, mask=inside, other=0), 0)
        column = tl.arange(0, BLOCK_HIDDEN)
        vector = tl.load(embedding + token.to(tl.int64) * HIDDEN + column, mask=column < HIDDEN)
        tl.store(hidden + start.to(tl.int64) * HIDDEN + column, vector, mask=column < HIDDEN)


def prepare_inputs(
    *,
    rows: torch.Tensor,
    query_start: torch.Tensor,
    num_computed: torch.Tensor,
    token_ids: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    seq_lens: torch.Tensor,
    offsets: torch.Tensor | None = None,
    embedding: torch.Tensor | None = None,
    hidden: torch.Tensor | None = None,
    turn: torch.Tensor | None = None,
    num_turns: int = 0,
) -> None:
    """Gather a step's packed inputs from the state rows.

    Args:
        rows: [batch], int32: each batch entry's state row, or -1 for a padded entry (then: token 0, position
            0, slot -1, sequence length 0).
        query_start: [batch + 1], int32: where each entry's tokens start in the packed step, and the end.
            Tokens from there on are padding: token 0, position 0, slot -1.
        num_computed: [state rows], int32: tokens of each row computed before this step.
        token_ids: [state rows, max_model_len], int32: all tokens known of each row.
        block_table: [state rows, max blocks], int32.
        block_size: tokens of a KV block.
        input_ids, positions: [tokens], int32 or int64, written: token, and position in its sequence.
        slots: [tokens], int32, written: KV slot (block id * block_size + offset).
        seq_lens: [batch], int32, written: tokens of each entry after this step.
        offsets: [batch], int32: tokens of the row in the step before each entry, where a row has several
            entries; None where none has.
        embedding: [vocab, hidden], contiguous, for a step with one token per entry: its rows for the tokens
            are gathered, too; None for not.
        hidden: [batch, hidden], contiguous, written with them; None exactly where `embedding` is.
        turn: [1], int32, in [0, num_turns), moved on by one around that circle, or None. Whatever else reads
            it must begin after this launch has ended, and end before the next one begins.
        num_turns: length of the circle; 0 exactly where `turn` is None.
    """
    hidden_size = 0 if embedding is None else embedding.shape[1]
    small = input_ids.shape[0] <= rows.shape[0]
    _prepare_inputs_kernel[(rows.shape[0],)](
        rows=rows,
        query_start=query_start,
        num_computed=num_computed,
        token_ids=token_ids,
        block_table=block_table,
        input_ids=input_ids,
        positions=positions,
        slots=slots,
        seq_lens=seq_lens,
        offsets=offsets,
        embedding=embedding,
        hidden=hidden,
        turn=turn,
        stride_tokens=token_ids.stride(0),
        stride_table=block_table.stride(0),
        max_model_len=token_ids.shape[1],
        num_tokens=input_ids.shape[0],
        BLOCK_SIZE=block_size,
        HAS_OFFSETS=offsets is not None,
        HIDDEN=hidden_size,
        TURNS=num_turns,
        BLOCK=16 if small else 1024,
        BLOCK_HIDDEN=triton.next_power_of_2(hidden_size) if hidden_size else 1,
        num_warps=1 if small and not hidden_size else 4,
    )


def prepare_inputs_reference(
    rows: torch.Tensor,
    query_start: torch.Tensor,
    num_computed: torch.Tensor,
    token_ids: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    num_tokens: int,
    offsets: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`prepare_inputs` in torch, for `num_tokens` packed tokens: (input_ids, positions, slots, seq_lens)."""
    starts = query_start.tolist()
    input_ids, positions, slots = (torch.zeros(num_tokens, dtype=torch.int32) for _ in range(3))
    slots[starts[-1] :] = -1
    seq_lens = torch.zeros(len(rows), dtype=torch.int32)
    for entry, row in enumerate(rows.tolist()):
        computed = int(num_computed[row]) + (0 if offsets is None else int(offsets[entry]))
        if row >= 0:
            seq_lens[entry] = computed + starts[entry + 1] - starts[entry]
        for i in range(starts[entry], starts[entry + 1]):
            position = computed + i - starts[entry]
            if row < 0 or position >= token_ids.shape[1]:
                slots[i] = -1
                continue
            input_ids[i] = max(0, int(token_ids[row, position]))
            positions[i] = position
            slots[i] = block_table[row, position // block_size] * block_size + position % block_size
    return input_ids, positions, slots, seq_lens


@triton.jit(do_not_specialize=["max_model_len"])
def _update_state_kernel(
    rows,
    seq_lens,
    sample_index,
    sampled,
    num_kept,
    num_computed,
    token_ids,
    ring,
    turn,
    stride_tokens,
    stride_ring,
    max_model_len,
    HAS_INDEX: tl.constexpr,
    HAS_DRAFTS: tl.constexpr,
    HAS_RING: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    entry = tl.program_id(0)
    if DEPENDENT:
        wait_for_inputs()
    row = tl.load(rows + entry).to(tl.int64)
    if row < 0:
        return
    seq_len = tl.load(seq_lens + entry)
    index = entry
    if HAS_INDEX:
        index = tl.load(sample_index + entry)
        if index < 0:
            tl.store(num_computed + row, seq_len)
            return
    kept = 1
    if HAS_DRAFTS:
        kept = tl.load(num_kept + index)
    if HAS_RING:
        place = ring + tl.load(turn) * stride_ring + 2 * entry
        tl.store(place, tl.load(sampled + index))
        tl.store(place + 1, kept)
    if HAS_DRAFTS and kept == 0:
        return
    end = seq_len + kept - 1
    tl.store(num_computed + row, end)
    if end < max_model_len:
        token = tl.load(sampled + index + kept - 1)
        tl.store(token_ids + row * stride_tokens + end, token.to(tl.int32))


def update_state(
    *,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    sample_index: torch.Tensor | None,
    sampled: torch.Tensor,
    num_computed: torch.Tensor,
    token_ids: torch.Tensor,
    num_kept: torch.Tensor | None = None,
    ring: torch.Tensor | None = None,
    turn: torch.Tensor | None = None,
) -> None:
    """Advance the rows of a step, and append the tokens it sampled.

    Args:
        rows: [batch], int32: each entry's state row, or -1 for a padded one. A row that verifies drafts has
            an entry for its last token and one for each draft.
        seq_lens: [batch], int32: tokens of each entry after the step.
        sample_index: [batch], int32: each entry's place in `sampled`, or -1 where it sampled nothing; None
            when entry i sampled `sampled[i]`.
        sampled: [samples], int32 or int64: token ids.
        num_computed: [state rows], int32, written: tokens of the step's rows whose KV is computed and kept:
            `seq_lens`, or less where drafts are rejected.
        token_ids: [state rows, max_model_len], int32, written: the last kept token at its position (where
            there is room). Those before it are in their places, since they equal the drafts.
        num_kept: [samples], int32, after a step that verified drafts: at a row's first entry the tokens that
            are kept of it, >= 1; 0 at the others (`sampling.acceptance.count_kept_tokens`).
        ring: [slots, at least batch, 2] int32, written, with `turn` and `num_kept`: tokens go there too, with
            what is kept of each beside it.
        turn: see `gumbel.gumbel_sample_and_append`; both or none.
    """
    dependent = supports_dependent_launch(rows.device)
    _update_state_kernel[(rows.shape[0],)](
        rows=rows,
        seq_lens=seq_lens,
        sample_index=sample_index,
        sampled=sampled,
        num_kept=num_kept,
        num_computed=num_computed,
        token_ids=token_ids,
        ring=ring,
        turn=turn,
        stride_tokens=token_ids.stride(0),
        stride_ring=0 if ring is None else ring.stride(0),
        max_model_len=token_ids.shape[1],
        HAS_INDEX=sample_index is not None,
        HAS_DRAFTS=num_kept is not None,
        HAS_RING=ring is not None,
        DEPENDENT=dependent,
        num_warps=1,
        **launch_options(dependent),
    )


def update_state_reference(
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    sample_index: torch.Tensor | None,
    sampled: torch.Tensor,
    num_computed: torch.Tensor,
    token_ids: torch.Tensor,
    num_kept: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`update_state` in torch: new (num_computed, token_ids)."""
    num_computed, token_ids = num_computed.clone(), token_ids.clone()
    index = list(range(len(rows))) if sample_index is None else sample_index.tolist()
    for row, seq_len, j in zip(rows.tolist(), seq_lens.tolist(), index, strict=True):
        kept = 1 if num_kept is None or j < 0 else int(num_kept[j])
        if row < 0 or not kept:
            continue
        end = seq_len + kept - 1
        num_computed[row] = end
        if j >= 0 and end < token_ids.shape[1]:
            token_ids[row, end] = sampled[j + kept - 1]
    return num_computed, token_ids
