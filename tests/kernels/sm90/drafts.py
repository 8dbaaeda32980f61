"""Launches of the kernels that draft on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from dodona.kernels.linear.joined_norms import joined_norms
from dodona.kernels.sampling.gumbel import gumbel_sample
from dodona.kernels.state import draft_state
from dodona.kernels.state.copy_rows import copy_rows


def _ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def _state(rows: int, drafts: int) -> None:
    draft_state.step_ends(
        first_samples=_ints(rows), rows=_ints(5 * rows), seq_lens=_ints(5 * rows), num_kept=_ints(5 * rows)
    )
    history = _ints(8, 4096)
    draft_state.following_tokens(rows=_ints(5 * rows), positions=_ints(5 * rows), token_ids=history)
    draft_state.following_tokens(rows=_ints(1).expand(300), positions=_ints(300), token_ids=history)
    draft_state.draft_places(
        rows=_ints(rows), positions=_ints(rows), first=1, count=drafts, block_table=_ints(8, 256),
        block_size=16,
    )  # fmt: skip
    draft_state.append_drafts(
        drafts=_ints(drafts, rows).t(), rows=_ints(rows), positions=_ints(rows), token_ids=history,
        out=_ints(rows, drafts),
    )  # fmt: skip


def _norms(dtype: torch.dtype, size: int) -> None:
    joined_norms(
        token_ids=_ints(5), embedding=torch.zeros(64, size, dtype=dtype),
        features=torch.zeros(5, size, dtype=dtype), embedding_norm=torch.zeros(size, dtype=dtype),
        features_norm=torch.zeros(size, dtype=dtype), eps=1e-5,
    )  # fmt: skip


def _draw(dtype: torch.dtype) -> None:
    gumbel_sample(
        torch.zeros(1, 32_000, dtype=dtype), idx_mapping=_ints(1), positions=_ints(1),
        seeds=torch.zeros(8, dtype=torch.int64), inverse_temperatures=torch.zeros(8),
        fallback=torch.zeros(8, dtype=torch.int64), vocabulary=torch.arange(32_000), out=_ints(1),
        as_drafts=True,
    )  # fmt: skip


def _kept(dtype: torch.dtype, size: int) -> None:
    wide = torch.zeros(8, 3 * size, dtype=dtype)
    copy_rows(source=torch.zeros(5, size, dtype=dtype), target=wide[:5, size : 2 * size])
    copy_rows(source=torch.zeros(5, size, dtype=dtype), target=wide[:1, :size], index=_ints(1))


CASES: dict[str, Callable[[], None]] = {
    "state-1": functools.partial(_state, 1, 4),
    "state-8": functools.partial(_state, 8, 3),
    "norms": functools.partial(_norms, torch.bfloat16, 4096),
    "norms-small": functools.partial(_norms, torch.float16, 1024),
    "kept": functools.partial(_kept, torch.bfloat16, 4096),
    "draw": functools.partial(_draw, torch.bfloat16),
}
