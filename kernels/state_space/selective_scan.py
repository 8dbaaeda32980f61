"""The scan of Mamba 2 over packed sequences, which goes on from the states that slots hold.

For each head, with a state h [head_size, state_size], and token by token:

    dt = softplus(dt + dt_bias)
    h  = exp(dt * A) h + dt * x B^T
    y  = h C + D x

(Dao and Gu 2024, "Transformers are SSMs", section 7, in its recurrent form.) A program has some rows of one
head's state in registers, and walks through the sequence. So a step's decodes, chunks and whole prompts are
one launch, and each state is read and written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)
from dodona.kernels.state_space.sequences import SlotSequences


@triton.jit
def _selective_scan_kernel(
    x,
    dt,
    a,
    b,
    c,
    d,
    dt_bias,
    state,
    query_start,
    slots,
    begins,
    out,
    stride_x,
    stride_dt,
    stride_b,
    stride_c,
    HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    STATE_SIZE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    sequence = tl.program_id(2)
    head = tl.program_id(1)
    first = tl.load(query_start + sequence).to(tl.int64)
    count = (tl.load(query_start + sequence + 1) - first).to(tl.int32)
    if count > 0:
        p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
        n = tl.arange(0, BLOCK_N)
        has_p = p < HEAD_SIZE
        has_n = n < STATE_SIZE
        slot = tl.load(slots + sequence).to(tl.int64)
        tile = state + (slot * HEADS + head) * (HEAD_SIZE * STATE_SIZE) + p[:, None] * STATE_SIZE + n[None, :]
        inside = has_p[:, None] & has_n[None, :]
        h = tl.load(tile, mask=inside & (tl.load(begins + sequence) == 0), other=0.0).to(tl.float32)
        decay = tl.load(a + head).to(tl.float32)
        skip = 0.0
        if d is not None:
            skip = tl.load(d + head).to(tl.float32)
        offset = 0.0
        if dt_bias is not None:
            offset = tl.load(dt_bias + head).to(tl.float32)
        column = (head // HEADS_PER_GROUP) * STATE_SIZE + n
        x_at = x + first * stride_x + head * HEAD_SIZE + p
        dt_at = dt + first * stride_dt + head
        b_at = b + first * stride_b + column
        c_at = c + first * stride_c + column
        next_x = tl.load(x_at, mask=has_p, other=0.0)
        next_dt = tl.load(dt_at)
        next_b = tl.load(b_at, mask=has_n, other=0.0)
        next_c = tl.load(c_at, mask=has_n, other=0.0)
        for i in range(count):
            value = next_x.to(tl.float32)
            step = next_dt.to(tl.float32) + offset
            into = next_b.to(tl.float32)
            from_state = next_c.to(tl.float32)
            # The next token's values are under way while this one's are used.
            x_at += stride_x
            dt_at += stride_dt
            b_at += stride_b
            c_at += stride_c
            more = i + 1 < count
            next_x = tl.load(x_at, mask=has_p & more, other=0.0)
            next_dt = tl.load(dt_at, mask=more, other=0.0)
            next_b = tl.load(b_at, mask=has_n & more, other=0.0)
            next_c = tl.load(c_at, mask=has_n & more, other=0.0)
            if SOFTPLUS:
                step = tl.where(step > 20.0, step, tl.log(1.0 + tl.exp(step)))
            h = h * tl.exp(step * decay) + (step * value)[:, None] * into[None, :]
            y = tl.sum(h * from_state[None, :], axis=1) + skip * value
            target = out + (first + i) * (HEADS * HEAD_SIZE) + head * HEAD_SIZE + p
            tl.store(target, y.to(out.dtype.element_ty), mask=has_p)
        tl.store(tile, h.to(state.dtype.element_ty), mask=inside)


def selective_scan(
    *,
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    softplus: bool,
    state: torch.Tensor,
    sequences: SlotSequences,
) -> torch.Tensor:
    """Each token's output, computed in fp32.

    Args:
        x: [tokens, heads, head_size], float; tokens may be strided, as in all of these.
        dt: [tokens, heads].
        a: [heads]: the decay's rate, negative.
        b, c: [tokens, groups, state_size]; as many heads belong to each group.
        d, dt_bias: [heads], or None.
        softplus: apply it to dt.
        state: [slots, heads, head_size, state_size], contiguous. Changed in place.
        sequences: of the tokens.

    Returns:
        [tokens, heads, head_size] fp32, contiguous.
    """
    tokens, heads, head_size = x.shape
    groups, state_size = b.shape[1:]
    out = torch.empty((tokens, heads, head_size), dtype=torch.float32, device=x.device)
    dependent = supports_dependent_launch(x.device)
    block_n = triton.next_power_of_2(state_size)
    # One warp and about 64 values of the state for each of its threads.
    block_p = min(triton.next_power_of_2(head_size), max(1, 2048 // block_n))
    _selective_scan_kernel[(triton.cdiv(head_size, block_p), heads, len(sequences.slots))](
        x=x,
        dt=dt,
        a=a,
        b=b,
        c=c,
        d=d,
        dt_bias=dt_bias,
        state=state,
        query_start=sequences.query_start,
        slots=sequences.slots,
        begins=sequences.begins,
        out=out,
        stride_x=x.stride(0),
        stride_dt=dt.stride(0),
        stride_b=b.stride(0),
        stride_c=c.stride(0),
        HEADS=heads,
        HEADS_PER_GROUP=heads // groups,
        HEAD_SIZE=head_size,
        STATE_SIZE=state_size,
        SOFTPLUS=softplus,
        DEPENDENT=dependent,
        BLOCK_P=block_p,
        BLOCK_N=block_n,
        num_warps=1,
        **launch_options(dependent),
    )
    return out


def selective_scan_reference(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    softplus: bool,
    state: torch.Tensor,
    sequences: SlotSequences,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`selective_scan` in torch: the result, and the new state."""
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    new_state = state.clone()
    starts = sequences.query_start.tolist()
    repeat = x.shape[1] // b.shape[1]
    steps = dt.float() + (0.0 if dt_bias is None else dt_bias.float())
    if softplus:
        steps = torch.nn.functional.softplus(steps)
    for i, (slot, begins) in enumerate(zip(sequences.slots.tolist(), sequences.begins.tolist(), strict=True)):
        h = torch.zeros_like(state[slot]).float() if begins else state[slot].float()
        for t in range(starts[i], starts[i + 1]):
            value, step = x[t].float(), steps[t]
            into, from_state = (m[t].float().repeat_interleave(repeat, 0) for m in (b, c))
            h = h * (step * a.float()).exp()[:, None, None]
            h = h + (step[:, None] * value)[:, :, None] * into[:, None, :]
            out[t] = (h * from_state[:, None, :]).sum(-1)
            if d is not None:
                out[t] += d.float()[:, None] * value
        new_state[slot] = h.to(state.dtype)
    return out, new_state
