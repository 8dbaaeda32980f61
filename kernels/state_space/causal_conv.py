"""Depthwise causal convolutions of packed sequences, which go on from the inputs that a slot keeps."""

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
def _keep_last(inputs, kept, count, exists, has_state, stride_token, KEPT: tl.constexpr):
    """Leave the last KEPT of a sequence's inputs in its slot, of which the first may be there already."""
    values = ()
    for i in tl.static_range(KEPT):
        place = count - KEPT + i
        value = tl.load(inputs + place * stride_token, mask=exists & (place >= 0), other=0.0)
        value += tl.load(kept + KEPT + place, mask=exists & (place < 0) & has_state, other=0.0)
        values = values + (value,)  # noqa: RUF005 - kernels can't unpack tuples
    tl.debug_barrier()
    for i in tl.static_range(KEPT):
        tl.store(kept + i, values[i], mask=exists)


@triton.jit
def _causal_conv_kernel(
    x,
    weight,
    bias,
    state,
    query_start,
    slots,
    begins,
    out,
    stride_token,
    stride_channel,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    KEPT: tl.constexpr,
    SILU: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    sequence = tl.program_id(1)
    first = tl.load(query_start + sequence).to(tl.int64)
    count = tl.load(query_start + sequence + 1) - first
    start = tl.program_id(0) * BLOCK_T
    if start < count:
        c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
        exists = c < CHANNELS
        t = start + tl.arange(0, BLOCK_T)
        has_state = tl.load(begins + sequence) == 0
        kept = state + tl.load(slots + sequence).to(tl.int64) * (CHANNELS * KEPT) + c * KEPT
        total = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
        if bias is not None:
            total += tl.load(bias + c, mask=exists, other=0.0).to(tl.float32)[None, :]
        for j in tl.static_range(WIDTH):
            source = t - (WIDTH - 1) + j
            value = tl.load(
                x + (first + source)[:, None] * stride_token + c[None, :] * stride_channel,
                mask=((source >= 0) & (source < count))[:, None] & exists[None, :],
                other=0.0,
            )
            value += tl.load(
                kept[None, :] + (KEPT + source)[:, None],
                mask=((source < 0) & has_state)[:, None] & exists[None, :],
                other=0.0,
            )
            factor = tl.load(weight + c * WIDTH + j, mask=exists, other=0.0).to(tl.float32)
            total += factor[None, :] * value.to(tl.float32)
        if SILU:
            total = total * tl.sigmoid(total)
        tl.store(
            out + (first + t)[:, None] * CHANNELS + c[None, :],
            total.to(out.dtype.element_ty),
            mask=(t < count)[:, None] & exists[None, :],
        )
        if start == 0:
            # The sequence's first program is the only one that reads the old state, and writes the new one.
            _keep_last(
                x + first * stride_token + c * stride_channel,
                kept, count, exists, has_state, stride_token, KEPT,
            )  # fmt: skip


def causal_conv(
    *,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor,
    sequences: SlotSequences,
    silu: bool,
) -> torch.Tensor:
    """Each channel's convolution over its sequence's inputs up to each token, in fp32.

    Args:
        x: [tokens, channels], float, of any strides.
        weight: [channels, width], contiguous.
        bias: [channels], or None.
        state: [slots, channels, kept], contiguous, dtype of `x`: the last inputs of each sequence before
            these, the latest at the end; `kept` is at least `width - 1`. Changed in place.
        sequences: of the tokens.
        silu: apply SiLU to the result.

    Returns:
        [tokens, channels], contiguous, dtype of `x`.
    """
    tokens, channels = x.shape
    out = torch.empty((tokens, channels), dtype=x.dtype, device=x.device)
    block_t = 1 if sequences.longest == 1 else 16
    block_c = min(128, triton.next_power_of_2(channels))
    dependent = supports_dependent_launch(x.device)
    grid = (triton.cdiv(sequences.longest, block_t), len(sequences.slots), triton.cdiv(channels, block_c))
    _causal_conv_kernel[grid](
        x=x,
        weight=weight,
        bias=bias,
        state=state,
        query_start=sequences.query_start,
        slots=sequences.slots,
        begins=sequences.begins,
        out=out,
        stride_token=x.stride(0),
        stride_channel=x.stride(1),
        CHANNELS=channels,
        WIDTH=weight.shape[1],
        KEPT=state.shape[2],
        SILU=silu,
        DEPENDENT=dependent,
        BLOCK_T=block_t,
        BLOCK_C=block_c,
        num_warps=4,
        **launch_options(dependent),
    )
    return out


def causal_conv_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor,
    sequences: SlotSequences,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`causal_conv` in torch: the result, and the new state."""
    out, new_state = torch.empty_like(x), state.clone()
    starts = sequences.query_start.tolist()
    for i, (slot, begins) in enumerate(zip(sequences.slots.tolist(), sequences.begins.tolist(), strict=True)):
        own = x[starts[i] : starts[i + 1]].T
        before = torch.zeros_like(state[slot]) if begins else state[slot]
        inputs = torch.cat([before, own], 1)
        wide = inputs[:, inputs.shape[1] - own.shape[1] - weight.shape[1] + 1 :].float()
        result = torch.nn.functional.conv1d(
            wide[None], weight.float()[:, None], None if bias is None else bias.float(), groups=len(weight)
        )[0]
        if silu:
            result = torch.nn.functional.silu(result)
        out[starts[i] : starts[i + 1]] = result.T.to(x.dtype)
        new_state[slot] = inputs[:, -state.shape[2] :]
    return out, new_state
