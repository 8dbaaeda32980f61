"""The inner states of mixers (Mamba, linear attention, short convolutions), in slots of each state row."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from dodona.kernels.state_space.sequences import SlotSequences
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
    """A row that can't join a batch of single tokens: the packed tokens [start, start + num_tokens)."""

    source: int
    """Slot of its states before."""
    target: int
    """Slot of its states after; the two may be one."""
    start: int
    num_tokens: int
    fresh: bool
    """Whether nothing of the row was computed before: it begins without a state."""


@dataclass(frozen=True, slots=True, eq=False)
class StateRound:
    """One token of each of n rows, computed as a batch."""

    tokens: torch.Tensor
    """[n] int64: packed indices, ascending."""
    sources: torch.Tensor
    """[n] int64: slots of the states before the tokens."""
    targets: torch.Tensor
    """[n] int64: slots of the states after them."""
    begins: torch.Tensor | None = None
    """[n] bool: sequences that begin here, so that what the slot holds does not count; None for none."""


PackedForward = Callable[[Mapping[str, Any], Sequence[torch.Tensor], SlotSequences], Any]
"""A mixer's forward pass over packed sequences: arguments by parameter without the cache, its slots by state,
and the sequences."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedStates:
    """How mixers compute all rows of a step at once."""

    forwards: Sequence[PackedForward | None]
    """By mixer; None for one that computes rows as `MixerStates` says."""
    sequences: SlotSequences


class MixerStates(Protocol):
    """How a step's rows share the work of a mixer: single tokens as batches, every other row by itself."""

    @property
    def tensors(self) -> Sequence[Sequence[torch.Tensor]]:
        """The slots: by mixer, then by state, [slots, *shape]."""

    @property
    def rounds(self) -> Sequence[StateRound]:
        """In their order: the rows that decode with the first token of those that verify drafts, then the
        first draft of each, the second, and so on."""

    @property
    def chunks(self) -> Sequence[StateChunk]:
        """The other rows."""

    @property
    def packed(self) -> PackedStates | None:
        """For mixers that need neither rounds nor chunks; None where the host lays the step out."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceStates:
    """`MixerStates` of a step from state on the device, whose decodes come first."""

    tensors: Sequence[Sequence[torch.Tensor]]
    rounds: Sequence[StateRound]
    chunks: Sequence[StateChunk]
    packed: PackedStates | None


class StateSlots:
    """The states of `num_rows` sequences: `tensors[mixer][state]` is [num_rows * (1 + num_drafts), *shape].

    A row has a slot for each number of accepted drafts, since a state that has taken in a rejected one can't
    be cut back: a step that verifies drafts leaves the states after its first token in the row's first slot,
    those after the first draft in the second, and so on. The next step goes on from the one whose tokens were
    kept. A slot's content means nothing before its row's first chunk, which begins without a state.

    num_drafts: most drafts of a row in a step.
    """

    def __init__(
        self,
        mixers: Sequence[Sequence[StateSpec]],
        num_rows: int,
        device: torch.device,
        *,
        num_drafts: int = 0,
    ) -> None:
        self.slots_per_row = 1 + num_drafts
        count = num_rows * self.slots_per_row
        self.tensors = tuple(
            tuple(torch.zeros(count, *spec.shape, dtype=spec.dtype, device=device) for spec in states)
            for states in mixers
        )
        self._lengths = [range(1)] * num_rows
        """For each row, how many tokens the states of its leading slots stand for."""

    def step(
        self,
        rows: Sequence[int],
        num_tokens: Sequence[int],
        num_computed_tokens: Sequence[int],
        verifying: Collection[int] = (),
    ) -> StepStates | None:
        """The states of a step's rows, in batch order; None where the model has none.

        verifying: the rows that verify drafts, whose states are kept after each token. Raises ValueError
        where a row goes on from another token than its states stand for: a state can't be found in a prefix
        cache.
        """
        if not self.tensors:
            return None
        sources: list[int] = []
        for row, count, computed in zip(rows, num_tokens, num_computed_tokens, strict=True):
            lengths = self._lengths[row]
            if computed and computed not in lengths:
                raise ValueError(
                    f"row {row} goes on at token {computed}, but its inner states stand for "
                    f"{', '.join(map(str, lengths))} tokens"
                )
            sources.append(row * self.slots_per_row + (lengths.index(computed) if computed else 0))
            end = computed + count
            self._lengths[row] = range(computed + 1 if row in verifying else end, end + 1)
        return StepStates(self, rows, num_tokens, num_computed_tokens, sources, verifying)


class StepStates:
    """`MixerStates` of a step that the host lays out."""

    packed = None

    def __init__(
        self,
        slots: StateSlots,
        rows: Sequence[int],
        num_tokens: Sequence[int],
        num_computed_tokens: Sequence[int],
        sources: Sequence[int],
        verifying: Collection[int] = (),
    ) -> None:
        """sources: the slot of each row's states before the step."""
        counts, computed = np.asarray(num_tokens), np.asarray(num_computed_tokens)
        starts = np.cumsum(counts) - counts
        firsts = np.asarray(rows, dtype=np.int64) * slots.slots_per_row
        verifies = np.asarray([row in verifying for row in rows], dtype=bool)
        alone = ((counts == 1) & (computed > 0)) | verifies
        before = np.asarray(sources, dtype=np.int64)
        device = slots.tensors[0][0].device
        self.tensors = slots.tensors
        self.rounds: list[StateRound] = []
        for depth in range(int(counts[alone].max(initial=0))):
            going = alone & (counts > depth)
            targets = firsts[going] + depth
            parts = (starts[going] + depth, before[going] if depth == 0 else targets - 1, targets)
            self.rounds.append(StateRound(*(to_device(part.astype(np.int64), device) for part in parts)))
        self.chunks = tuple(
            StateChunk(int(before[i]), int(firsts[i]), int(starts[i]), int(counts[i]), not computed[i])
            for i in np.flatnonzero(~alone).tolist()
        )
