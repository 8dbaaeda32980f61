"""The inner states of mixers (Mamba, linear attention, short convolutions): one slot for each state row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from dodona.runners.v1.step_layout import to_device


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One state tensor of a mixer, for one sequence."""

    kind: Literal["conv", "recurrent"]
    index: int
    """transformers' `state_idx`: a layer may have several states of a kind."""
    shape: tuple[int, ...]
    """Without the dimension of the batch."""
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes for one sequence."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class StateChunk:
    """A row that can't join the batch of decodes: the packed tokens [start, start + num_tokens)."""

    slot: int
    start: int
    num_tokens: int
    fresh: bool
    """Whether nothing of the row was computed before: it begins without a state."""


class MixerStates(Protocol):
    """How a step's rows share the work of a mixer: the decodes as one batch, every other row by itself."""

    @property
    def tensors(self) -> Sequence[Sequence[torch.Tensor]]:
        """The slots: by mixer, then by state, [slots, *shape]."""

    @property
    def num_decodes(self) -> int:
        """Rows that decode."""

    @property
    def decode_slots(self) -> torch.Tensor:
        """[num_decodes] int64."""

    @property
    def decode_tokens(self) -> torch.Tensor:
        """[num_decodes] int64: packed indices."""

    @property
    def chunks(self) -> Sequence[StateChunk]:
        """The other rows."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceStates:
    """`MixerStates` of a step from state on the device, whose decodes come first."""

    tensors: Sequence[Sequence[torch.Tensor]]
    num_decodes: int
    decode_slots: torch.Tensor
    decode_tokens: torch.Tensor
    chunks: Sequence[StateChunk]


class StateSlots:
    """The states of `num_slots` sequences: `tensors[mixer][state]` is [num_slots, *shape].

    A slot's content means nothing before its row's first chunk, which begins without a state and then
    fills the slot.
    """

    def __init__(self, mixers: Sequence[Sequence[StateSpec]], num_slots: int, device: torch.device) -> None:
        self.tensors = tuple(
            tuple(torch.zeros(num_slots, *spec.shape, dtype=spec.dtype, device=device) for spec in states)
            for states in mixers
        )
        self._lengths = [0] * num_slots
        """Tokens that each slot's states stand for."""

    def step(
        self, rows: Sequence[int], num_tokens: Sequence[int], num_computed_tokens: Sequence[int]
    ) -> StepStates | None:
        """The states of a step's rows, in batch order; None where the model has none.

        Raises ValueError where a row goes on from another token than the one that its states stand for: a
        state can't be cut back, and can't be found in a prefix cache.
        """
        if not self.tensors:
            return None
        for row, count, computed in zip(rows, num_tokens, num_computed_tokens, strict=True):
            if computed and computed != self._lengths[row]:
                raise ValueError(
                    f"row {row} goes on at token {computed}, but its inner states stand for "
                    f"{self._lengths[row]} tokens"
                )
            self._lengths[row] = computed + count
        return StepStates(self, rows, num_tokens, num_computed_tokens)


class StepStates:
    """`MixerStates` of a step that the host lays out."""

    def __init__(
        self,
        slots: StateSlots,
        rows: Sequence[int],
        num_tokens: Sequence[int],
        num_computed_tokens: Sequence[int],
    ) -> None:
        counts, computed = np.asarray(num_tokens), np.asarray(num_computed_tokens)
        starts = np.cumsum(counts) - counts
        decodes = (counts == 1) & (computed > 0)
        device = slots.tensors[0][0].device
        self.tensors = slots.tensors
        self.num_decodes = int(decodes.sum())
        self.decode_slots = to_device(np.asarray(rows, dtype=np.int64)[decodes], device)
        """[num_decodes] int64."""
        self.decode_tokens = to_device(starts[decodes].astype(np.int64), device)
        """[num_decodes] int64: packed indices."""
        self.chunks = tuple(
            StateChunk(rows[i], int(starts[i]), int(counts[i]), not computed[i])
            for i in np.flatnonzero(~decodes).tolist()
        )
