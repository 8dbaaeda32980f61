"""Acceptance of drafts by force, for benchmarks: outputs are wrong, and time is that of a step that accepts
so many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)
from dodona.runners.device.sampling.sampler import DeviceSampler


@contextmanager
def forced_acceptance(accepted: float) -> Iterator[None]:
    """Engines that start inside let each step accept so many drafts of each row, if there are as many,
    whatever the model says; of a fraction, a part of the steps one more. It adds one small launch to a
    step."""
    count_kept = DeviceSampler.count_kept

    def force(
        self: DeviceSampler, token_ids: Any, idx_mapping: Any, positions: Any, drafts: Any, out: Any = None
    ) -> torch.Tensor:
        rows = self._rows
        force_tokens(
            token_ids,
            idx_mapping=idx_mapping,
            positions=positions,
            offsets=drafts.offsets,
            history=rows.token_ids,
            vocab_size=rows.vocab_size,
            accepted=accepted,
        )
        return count_kept(self, token_ids, idx_mapping, positions, drafts, out)

    DeviceSampler.count_kept = force  # type: ignore[method-assign]
    try:
        yield
    finally:
        DeviceSampler.count_kept = count_kept  # type: ignore[method-assign]


def force_tokens(
    token_ids: torch.Tensor,
    *,
    idx_mapping: torch.Tensor,
    positions: torch.Tensor,
    offsets: torch.Tensor,
    history: torch.Tensor,
    vocab_size: int,
    accepted: float,
) -> None:
    """Put drafts in the place of the tokens drawn where they are to be accepted, and other tokens elsewhere.

    Args:
        token_ids: [n] int32, written.
        idx_mapping, positions, offsets, history: those of `acceptance.count_kept_tokens`.
        accepted: drafts of each row.
    """
    n, dependent = len(token_ids), supports_dependent_launch(token_ids.device)
    _force_tokens_kernel[(triton.cdiv(n, 128),)](
        token_ids, idx_mapping, positions, offsets, history, history.stride(0), history.shape[1], n,
        vocab_size, WHOLE=int(accepted), PERCENT=int(100 * (accepted % 1)), DEPENDENT=dependent, BLOCK=128,
        num_warps=1,
        **launch_options(dependent),
    )  # fmt: skip


@triton.jit(do_not_specialize=["max_model_len", "n"])
def _force_tokens_kernel(
    token_ids,
    idx_mapping,
    positions,
    offsets,
    history,
    stride_history,
    max_model_len,
    n,
    vocab_size,
    WHOLE: tl.constexpr,
    PERCENT: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < n
    row = tl.maximum(tl.load(idx_mapping + entry, mask=inside, other=0), 0).to(tl.int64)  # padding
    position = tl.load(positions + entry, mask=inside, other=0)
    offset = tl.load(offsets + entry, mask=inside, other=0)
    place = tl.minimum(position, max_model_len - 1)
    draft = tl.load(history + row * stride_history + place, mask=inside, other=0)
    one_more = ((position - offset) * 37 % 100 < PERCENT).to(tl.int32)
    token = tl.where(offset < WHOLE + one_more, draft, (draft + 1) % vocab_size)
    tl.store(token_ids + entry, token, mask=inside)
