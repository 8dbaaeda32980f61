"""Prefill context parallelism: the ranks of a group share the tokens of prompt chunks.

Each rank computes its tokens of a chunk through all layers. In attention the ranks gather the chunk's keys
and values, so that the KV cache of each is whole, and each attends for its own tokens. Decodes, and chunks
too short to share, are computed on all ranks. The result is exact: nothing is left out or approximated.

A chunk is cut into twice as many pieces as there are ranks, and a rank takes one from the front and one from
the back: the later a token, the more it attends to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dodona.runners.distributed.mesh import Group
from dodona.runners.v1.attention import ForwardState
from dodona.runners.v1.kv_cache import PagedKVCache
from dodona.runners.v1.patterns import AttentionPattern
from dodona.runners.v1.step_layout import StepLayout, to_device


@dataclass(frozen=True, slots=True)
class _Piece:
    """Consecutive tokens of a row: packed tokens from `start` on, at positions from `num_computed` on."""

    row: int
    start: int
    num_tokens: int
    num_computed: int


@dataclass(frozen=True, slots=True)
class ContextShare:
    """A rank's share of a step."""

    layout: StepLayout
    """Of the tokens that the rank computes: those of all ranks first, then its own."""
    tokens: torch.Tensor
    """[t] int64: their packed indices in the whole step."""
    num_common: int
    """How many of them all ranks compute."""
    own: Sequence[torch.Tensor]
    """By rank, [.] int64: the packed indices of its own tokens."""
    slots: Sequence[torch.Tensor]
    """By rank, the KV slots of its own tokens."""
    kept: torch.Tensor
    """[k] int64, at least one: the tokens, counted in `layout`, whose logits the rank computes."""
    places: torch.Tensor
    """[p] int64, p <= k: where the first p of these logits are among the step's."""
    exchanged: torch.Tensor
    """Where the logits are that only one rank computes."""


def share_of(layout: StepLayout, positions: torch.Tensor, group: Group) -> ContextShare:
    """The share of the group's rank. positions: [n] int64, packed indices whose logits are wanted."""
    common, own = _pieces(layout, group.size)
    mine = [*common, *own[group.rank]]
    indices = [_packed(pieces) for pieces in (common, *own)]
    tokens = _packed(mine)
    wanted = positions.cpu().numpy()
    local = np.full(layout.total_tokens, -1, dtype=np.int64)
    local[tokens] = np.arange(len(tokens))
    is_common = np.zeros(layout.total_tokens, dtype=bool)
    is_common[indices[0]] = True
    places = np.flatnonzero(local[wanted] >= 0)
    # The head must be given a position.
    kept = local[wanted][places] if len(places) else np.zeros(1, dtype=np.int64)
    device = layout.device
    slots = layout.slots.cpu().numpy()
    return ContextShare(
        layout=StepLayout(
            [piece.num_tokens for piece in mine],
            [piece.num_computed for piece in mine],
            layout.block_tables[[piece.row for piece in mine]],
            layout.block_size,
            device,
        ),
        tokens=to_device(tokens, device),
        num_common=len(indices[0]),
        own=[to_device(each, device) for each in indices[1:]],
        slots=[to_device(slots[each], device) for each in indices[1:]],
        kept=to_device(kept, device),
        places=to_device(places, device),
        exchanged=to_device(np.flatnonzero(~is_common[wanted]), device),
    )


def _pieces(layout: StepLayout, ranks: int) -> tuple[list[_Piece], list[list[_Piece]]]:
    """The pieces that all ranks compute, and those of each rank."""
    common: list[_Piece] = []
    own: list[list[_Piece]] = [[] for _ in range(ranks)]
    for row, (start, count, computed) in enumerate(
        zip(layout.starts.tolist(), layout.num_tokens.tolist(), layout.num_computed.tolist(), strict=True)
    ):
        if count < 2 * ranks:
            common.append(_Piece(row, start, count, computed))
            continue
        cuts = [count * number // (2 * ranks) for number in range(2 * ranks + 1)]
        for rank in range(ranks):
            for number in (rank, 2 * ranks - 1 - rank):
                begin, end = cuts[number], cuts[number + 1]
                own[rank].append(_Piece(row, start + begin, end - begin, computed + begin))
    return common, own


def _packed(pieces: Sequence[_Piece]) -> np.ndarray:
    spans = [np.arange(piece.start, piece.start + piece.num_tokens) for piece in pieces]
    return np.concatenate(spans) if spans else np.empty(0, dtype=np.int64)


class SharedForwardState(ForwardState):
    """A forward pass over a rank's share of a step."""

    def __init__(
        self, share: ContextShare, cache: PagedKVCache, patterns: Sequence[AttentionPattern], group: Group
    ) -> None:
        super().__init__(share.layout, cache, patterns)
        self._share = share
        self._group = group
        self._longest = max(len(slots) for slots in share.slots)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `Forward.attend`; keys and values of the other ranks' tokens are stored too."""
        if self._longest:
            for slots, (k, v) in zip(self._share.slots, self._gather(key, value), strict=True):
                self.cache.write(self.calls, slots, k[: len(slots)], v[: len(slots)])
        return super().attend(query, key, value, scaling, softcap, sinks)

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        """What each rank has of its tokens, [t, size] -> [T, size] of all tokens of the step, packed."""
        share = self._share
        found = values.new_empty(share.num_common + sum(map(len, share.own)), values.shape[-1])
        found[share.tokens] = values
        if self._longest:
            for own, theirs in zip(share.own, self._gather_own(values), strict=True):
                found[own] = theirs[: len(own)]
        return found

    def _gather(self, key: torch.Tensor, value: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values [longest, Hkv, D] of each rank's own tokens, padded."""
        width = key.shape[-1]
        gathered = self._gather_own(torch.cat([key, value], dim=-1))
        return [(each[..., :width], each[..., width:]) for each in gathered]

    def _gather_own(self, values: torch.Tensor) -> Sequence[torch.Tensor]:
        """[longest, ...] by rank, padded: the values [t, ...] of each rank's own tokens."""
        own = values[self._share.num_common :]
        padded = own.new_zeros(self._longest, *own.shape[1:])
        padded[: len(own)] = own
        return self._group.all_gather(padded)


def whole_logits(share: ContextShare, logits: torch.Tensor, count: int, group: Group) -> torch.Tensor:
    """[count, vocab]: the step's logits, from the ranks' shares [k, vocab] of them."""
    whole = logits.new_zeros(count, logits.shape[-1])
    whole[share.places] = logits[: len(share.places)]
    if len(share.exchanged):
        whole[share.exchanged] = group.all_reduce(whole[share.exchanged])
    return whole
