"""`ServedModel`: what V1's steps need of a loaded model, packed or row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Protocol

import torch

from dodona.runners.interface import LayerKVSpec
from dodona.runners.kv_transfer.block_layout import LayerKV
from dodona.runners.v1.state_slots import StateSlots
from dodona.runners.v1.step_layout import StepLayout


class StepCache(Protocol):
    """What a model keeps of its requests from step to step."""

    block_size: int
    num_blocks: int

    def layers(self) -> list[LayerKV]:
        """The cache block by block, for KV transfer; nothing where it isn't paged."""

    def free_rows(self, rows: Sequence[int]) -> None:
        """Release what belongs to these state rows alone."""


class ServedModel(Protocol):
    """A Hugging Face causal LM that computes steps. `PackedModel` and `RowModel` are the two ways."""

    @property
    def model(self) -> Any:
        """The module."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def kv_dtype(self) -> torch.dtype:
        """Type of keys and values."""

    @property
    def layers(self) -> tuple[LayerKVSpec, ...]:
        """What a token adds to the cache."""

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Name of the module that computes with each of `layers`; empty where it is the whole model."""

    @property
    def state_bytes_per_row(self) -> int:
        """Bytes that a request takes whatever its length."""

    @property
    def packs_rows(self) -> bool:
        """Whether one forward pass computes all rows of a step."""

    @property
    def has_states(self) -> bool:
        """Whether `forward` is given inner states of `make_state_slots`."""

    @property
    def shares_prefixes(self) -> bool:
        """Whether requests with equal beginnings can share KV blocks."""

    @property
    def name(self) -> str:
        """Name of the model's class."""

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding: input ids are below this."""

    def make_cache(
        self, num_blocks: int, block_size: int, window_blocks: Sequence[tuple[Sequence[int], int]] = ()
    ) -> Any:
        """A `StepCache` for `forward`."""

    def make_state_slots(self, num_rows: int, *, num_drafts: int = 0) -> StateSlots:
        """Slots for inner states, for `forward`; see `StateSlots`."""

    def forward(
        self,
        token_ids: torch.Tensor,
        layout: StepLayout,
        cache: Any,
        positions: torch.Tensor,
        states: Any = None,
        window_layouts: Mapping[int, StepLayout] = MappingProxyType({}),
    ) -> torch.Tensor:
        """Compute a step's tokens [T] int64. Returns logits [n, vocab] at `positions` [n] int64, ascending
        packed indices. states: the step's, of the slots (`StepStates`), or None."""

    def plain(self) -> AbstractContextManager[torch.nn.Module]:
        """The module as transformers runs it."""
