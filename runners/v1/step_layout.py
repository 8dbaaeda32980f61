"""The layout of a step's rows in a packed batch, and the KV slots that attention reads for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dodona.runners.v1.patterns import AttentionPattern

MAX_GATHERED_TOKENS = 1 << 16
"""Most tokens whose KV one padded decode call gathers, to bound activation memory; a longer row is gathered
alone.
"""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A row that computes several tokens: the packed tokens [start, start + num_tokens), which are at the
    positions from num_computed on.
    """

    row: int
    start: int
    num_tokens: int
    num_computed: int

    @property
    def end(self) -> int:
        """Position after the chunk's last token."""
        return self.num_computed + self.num_tokens


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows of one token each, padded to a common context length L."""

    tokens: torch.Tensor
    """[g] int64: packed index of each row's token."""
    slots: torch.Tensor
    """[g, L] int64: the KV slots that each row sees; padding repeats the row's last slot."""
    mask: torch.Tensor | None
    """[g, 1, 1, L] bool: False for padding; None where no row is padded."""


class StepLayout:
    """A packed step: `positions` and `slots` [T] on the device, rows split into chunks and single tokens.

    Rows are packed in the order given; `rows` [R] are their state rows. `block_tables` [R, N] int64, on the
    host, has each row's block ids; entries beyond a row's length are not read. `prompt_lengths` [R]: tokens
    of each row's prompt; None where that makes no difference.
    """

    def __init__(
        self,
        num_tokens: Sequence[int],
        num_computed_tokens: Sequence[int],
        block_tables: np.ndarray,
        block_size: int,
        device: torch.device,
        rows: Sequence[int] | None = None,
        prompt_lengths: Sequence[int] | None = None,
    ) -> None:
        counts = np.asarray(num_tokens, dtype=np.int64)
        computed = np.asarray(num_computed_tokens, dtype=np.int64)
        starts = np.cumsum(counts) - counts
        row_of_token = np.repeat(np.arange(len(counts)), counts)
        positions = np.arange(int(counts.sum())) - starts[row_of_token] + computed[row_of_token]
        slots = block_tables[row_of_token, positions // block_size] * block_size + positions % block_size

        self.device = device
        self.block_size = block_size
        self.total_tokens = len(positions)
        self.last_tokens: np.ndarray = starts + counts - 1
        """[R]: packed index of each row's last token."""
        self.starts: np.ndarray = starts
        self.num_tokens: np.ndarray = counts
        self.num_computed: np.ndarray = computed
        self.rows: Sequence[int] = range(len(counts)) if rows is None else rows
        self._prompt_lengths = prompt_lengths
        prompts = 1 if prompt_lengths is None else np.asarray(prompt_lengths, dtype=np.int64)
        self.may_verify = bool(((counts > 1) & (computed >= prompts)).any())
        """Whether a row of several tokens may have drafts: it is beyond its prompt, or, where prompts are not
        known, has begun."""
        self.block_tables = block_tables
        self.positions = to_device(positions, device)
        self.slots = to_device(slots, device)
        self.chunks = tuple(
            Chunk(int(r), int(starts[r]), int(counts[r]), int(computed[r]))
            for r in np.flatnonzero(counts > 1)
        )
        self._singles = np.flatnonzero(counts == 1)
        self._lengths = computed + counts
        self._tables = to_device(block_tables, device)
        self._groups: dict[AttentionPattern, tuple[DecodeGroup, ...]] = {}
        self._chunk_slots: dict[tuple[int, int], torch.Tensor] = {}

    def token_lengths(self) -> torch.Tensor:
        """[T] int64: for each token the length of its row's prompt, or, beyond it, up to itself."""
        lengths = self.positions + 1
        if self._prompt_lengths is None:
            return lengths
        prompts = np.repeat(np.asarray(self._prompt_lengths, dtype=np.int64), self.num_tokens)
        return torch.maximum(lengths, to_device(prompts, self.device))

    def decode_groups(self, pattern: AttentionPattern) -> tuple[DecodeGroup, ...]:
        """The rows of one token, grouped so that padding at most doubles the KV that is gathered."""
        if pattern not in self._groups:
            self._groups[pattern] = tuple(self._make_groups(pattern))
        return self._groups[pattern]

    def chunk_slots(self, chunk: Chunk, first: int) -> torch.Tensor:
        """[chunk.end - first] int64: the slots of the row's positions first .. chunk.end - 1."""
        key = (chunk.row, first)
        if key not in self._chunk_slots:
            positions = torch.arange(first, chunk.end, device=self.device)
            self._chunk_slots[key] = self._slots_of(self._tables[chunk.row], positions)
        return self._chunk_slots[key]

    def _slots_of(self, tables: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        blocks = torch.div(positions, self.block_size, rounding_mode="floor")
        return tables.gather(-1, blocks) * self.block_size + positions % self.block_size

    def _make_groups(self, pattern: AttentionPattern) -> list[DecodeGroup]:
        lengths = self._lengths[self._singles]
        first = pattern.first_visible(lengths - 1)
        spans = lengths - first
        groups = []
        for members in _by_size(spans):
            longest = int(spans[members].max())
            low = to_device(first[members], self.device)[:, None]
            length = to_device(lengths[members], self.device)[:, None]
            positions = low + torch.arange(longest, device=self.device)
            padded = bool((spans[members] != longest).any())
            mask = (positions < length)[:, None, None, :] if padded else None
            rows = to_device(self._singles[members], self.device)
            slots = self._slots_of(self._tables[rows], torch.minimum(positions, length - 1))
            tokens = to_device(self.last_tokens[self._singles[members]], self.device)
            groups.append(DecodeGroup(tokens, slots, mask))
        return groups


def _by_size(spans: np.ndarray) -> list[np.ndarray]:
    """Groups of indices into `spans`. A group's longest span is below twice its shortest, or at most 64."""
    order = np.argsort(spans, kind="stable")[::-1]
    groups: list[np.ndarray] = []
    begin = 0
    while begin < len(order):
        longest = int(spans[order[begin]])
        floor = 0 if longest <= 64 else longest // 2
        end = begin + 1
        most = max(1, MAX_GATHERED_TOKENS // longest)
        while end < len(order) and end - begin < most and spans[order[end]] > floor:
            end += 1
        groups.append(order[begin:end])
        begin = end
    return groups


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on the device. On CUDA it is copied from pinned memory, so that the host does not wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
