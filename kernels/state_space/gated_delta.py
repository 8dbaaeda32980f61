"""The gated delta rule over packed sequences, which goes on from the states that slots hold.

For each head, with a state S [key_size, value_size], and token by token, with keys and queries of length 1:

    S = exp(g) S
    S = S + k (beta (v - S^T k))^T
    o = S^T q / sqrt(key_size)

(Yang et al. 2024, "Gated Delta Networks", equation 10.) Columns of a state don't depend on each other: a
program has some of one head's in registers, and walks through the sequence. So a step's decodes, chunks and
whole prompts are one launch, and each state is read and written once.
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
def _gated_delta_kernel(
    q,
    k,
    v,
    g,
    beta,
    state,
    query_start,
    slots,
    begins,
    out,
    stride_q,
    stride_k,
    stride_v,
    stride_g,
    stride_beta,
    scale,
    eps,
    HEADS: tl.constexpr,
    HEADS_PER_KEY: tl.constexpr,
    KEY_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    UNIT_LENGTH: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    sequence = tl.program_id(2)
    head = tl.program_id(1)
    first = tl.load(query_start + sequence).to(tl.int64)
    count = (tl.load(query_start + sequence + 1) - first).to(tl.int32)
    if count > 0:
        columns = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
        rows = tl.arange(0, BLOCK_K)
        has_v = columns < VALUE_SIZE
        has_k = rows < KEY_SIZE
        slot = tl.load(slots + sequence).to(tl.int64)
        # The tile is turned, [columns, rows], so that sums run along the threads of a warp.
        tile = state + (slot * HEADS + head) * (KEY_SIZE * VALUE_SIZE)
        tile = tile + rows[None, :] * VALUE_SIZE + columns[:, None]
        inside = has_v[:, None] & has_k[None, :]
        s = tl.load(tile, mask=inside & (tl.load(begins + sequence) == 0), other=0.0).to(tl.float32)
        key_head = head // HEADS_PER_KEY
        q_at = q + first * stride_q + key_head * KEY_SIZE + rows
        k_at = k + first * stride_k + key_head * KEY_SIZE + rows
        v_at = v + first * stride_v + head * VALUE_SIZE + columns
        g_at = g + first * stride_g + head
        beta_at = beta + first * stride_beta + head
        next_q = tl.load(q_at, mask=has_k, other=0.0)
        next_k = tl.load(k_at, mask=has_k, other=0.0)
        next_v = tl.load(v_at, mask=has_v, other=0.0)
        next_g = tl.load(g_at)
        next_beta = tl.load(beta_at)
        for i in range(count):
            query = next_q.to(tl.float32)
            key = next_k.to(tl.float32)
            value = next_v.to(tl.float32)
            decay = tl.exp(next_g.to(tl.float32))
            rate = next_beta.to(tl.float32)
            # The next token's values are under way while this one's are used.
            q_at += stride_q
            k_at += stride_k
            v_at += stride_v
            g_at += stride_g
            beta_at += stride_beta
            more = i + 1 < count
            next_q = tl.load(q_at, mask=has_k & more, other=0.0)
            next_k = tl.load(k_at, mask=has_k & more, other=0.0)
            next_v = tl.load(v_at, mask=has_v & more, other=0.0)
            next_g = tl.load(g_at, mask=more, other=0.0)
            next_beta = tl.load(beta_at, mask=more, other=0.0)
            if UNIT_LENGTH:
                query = query * tl.rsqrt(tl.sum(query * query, axis=0) + eps)
                key = key * tl.rsqrt(tl.sum(key * key, axis=0) + eps)
            s = s * decay
            delta = (value - tl.sum(s * key[None, :], axis=1)) * rate
            s += delta[:, None] * key[None, :]
            o = tl.sum(s * query[None, :], axis=1) * scale
            target = out + ((first + i) * HEADS + head) * VALUE_SIZE + columns
            tl.store(target, o.to(out.dtype.element_ty), mask=has_v)
        tl.store(tile, s.to(state.dtype.element_ty), mask=inside)


def gated_delta(
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    unit_length: bool,
    eps: float = 1e-6,
    state: torch.Tensor,
    sequences: SlotSequences,
) -> torch.Tensor:
    """Each token's output, computed in fp32.

    Args:
        q, k: [tokens, key_heads, key_size], float; tokens may be strided, as in all of these.
        v: [tokens, heads, value_size]; as many heads belong to each key head.
        g: [tokens, heads]: logarithms of the decay.
        beta: [tokens, heads]: how much of the difference is learnt.
        unit_length: divide queries and keys by their length, with `eps` added to its square.
        state: [slots, heads, key_size, value_size], contiguous. Changed in place.
        sequences: of the tokens.

    Returns:
        [tokens, heads, value_size], contiguous, dtype of `q`.
    """
    tokens, heads, value_size = v.shape
    key_heads, key_size = k.shape[1:]
    out = torch.empty((tokens, heads, value_size), dtype=q.dtype, device=q.device)
    dependent = supports_dependent_launch(q.device)
    block_k = triton.next_power_of_2(key_size)
    # One warp and about 64 values of the state for each of its threads.
    block_v = min(triton.next_power_of_2(value_size), max(1, 2048 // block_k))
    _gated_delta_kernel[(triton.cdiv(value_size, block_v), heads, len(sequences.slots))](
        q=q,
        k=k,
        v=v,
        g=g,
        beta=beta,
        state=state,
        query_start=sequences.query_start,
        slots=sequences.slots,
        begins=sequences.begins,
        out=out,
        stride_q=q.stride(0),
        stride_k=k.stride(0),
        stride_v=v.stride(0),
        stride_g=g.stride(0),
        stride_beta=beta.stride(0),
        scale=key_size**-0.5,
        eps=eps,
        HEADS=heads,
        HEADS_PER_KEY=heads // key_heads,
        KEY_SIZE=key_size,
        VALUE_SIZE=value_size,
        UNIT_LENGTH=unit_length,
        DEPENDENT=dependent,
        BLOCK_K=block_k,
        BLOCK_V=block_v,
        num_warps=1,
        **launch_options(dependent),
    )
    return out


def gated_delta_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    unit_length: bool,
    eps: float,
    state: torch.Tensor,
    sequences: SlotSequences,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`gated_delta` in torch: the result, and the new state."""
    q, k, v, g, beta = (t.float() for t in (q, k, v, g, beta))
    if unit_length:
        q, k = (t * torch.rsqrt(t.square().sum(-1, keepdim=True) + eps) for t in (q, k))
    repeat = v.shape[1] // k.shape[1]
    q, k = (t.repeat_interleave(repeat, 1) for t in (q * q.shape[-1] ** -0.5, k))
    out, new_state = torch.empty_like(v), state.clone()
    starts = sequences.query_start.tolist()
    for i, (slot, begins) in enumerate(zip(sequences.slots.tolist(), sequences.begins.tolist(), strict=True)):
        s = torch.zeros_like(state[slot]).float() if begins else state[slot].float()
        for t in range(starts[i], starts[i + 1]):
            s = s * g[t].exp()[:, None, None]
            delta = (v[t] - torch.einsum("hkv,hk->hv", s, k[t])) * beta[t][:, None]
            s = s + k[t][:, :, None] * delta[:, None, :]
            out[t] = torch.einsum("hkv,hk->hv", s, q[t])
        new_state[slot] = s.to(state.dtype)
    return out, new_state
