"""The host's memory for offloaded blocks, and the copies to it and from it.

On a GPU the memory is pinned, and copies run on two streams of their own, one for each way; a step's stream
waits for them only where a preemption needs it. On a CPU the same copies are done when they are asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from dodona.runners.errors import EngineSetupError
from dodona.runners.kv_transfer.block_layout import BlockLayout
from dodona.runners.limits import allocating

STAGING_BYTES = 128 << 20
"""Bytes of GPU memory, for each way, in which blocks are gathered from all layers: one copy then moves whole
blocks, and a block of many layers is one piece on the host."""


class Copy(Protocol):
    """A copy that may still run on the device."""

    def query(self) -> bool:
        """Whether it has ended."""


class _Done:
    def query(self) -> bool:
        return True


DONE = _Done()


class HostMemory(Protocol):
    """Slots of one block each, packed (`block_layout`)."""

    def store(self, block_ids: Sequence[int], slots: Sequence[int]) -> Copy:
        """Copy blocks of the cache into slots, each named once, after all that the device was told before and
        the loads from these slots."""

    def load(self, block_ids: Sequence[int], slots: Sequence[int]) -> Copy:
        """Copy slots into blocks of the cache, each named once, after the stores into these slots."""

    def order_before_steps(self, copies: Sequence[Copy]) -> None:
        """Let what the device is told from here on come after these copies."""

    def rebind(self, layout: BlockLayout | None) -> None:
        """Wait for copies, then copy to and from another cache of the same shapes, or from none; what is in
        the slots stays."""

    def close(self) -> None:
        """Wait for copies and give the memory back. Idempotent."""


class PlainHostMemory:
    """`HostMemory` on a CPU."""

    def __init__(self, layout: BlockLayout, num_slots: int) -> None:
        self._cache: BlockLayout | None = layout
        self._memory = _allocate(layout, num_slots)

    def store(self, block_ids: Sequence[int], slots: Sequence[int]) -> Copy:
        """See `HostMemory`."""
        packed = self._layout.empty(len(block_ids))
        self._layout.pack(torch.tensor(block_ids), packed)
        self._memory.index_copy_(0, torch.tensor(slots), packed)
        return DONE

    def load(self, block_ids: Sequence[int], slots: Sequence[int]) -> Copy:
        """See `HostMemory`."""
        self._layout.unpack(torch.tensor(block_ids), self._memory.index_select(0, torch.tensor(slots)))
        return DONE

    def order_before_steps(self, copies: Sequence[Copy]) -> None:
        """Nothing: copies have ended."""

    def rebind(self, layout: BlockLayout | None) -> None:
        """See `HostMemory`."""
        self._cache = layout

    def close(self) -> None:
        """Give the memory back."""
        self._memory = self._memory[:0].clone()

    @property
    def _layout(self) -> BlockLayout:
        return bound(self._cache)


class PinnedHostMemory:
    """`HostMemory` of a GPU. Raises EngineSetupError where the memory can't be pinned."""

    def __init__(self, layout: BlockLayout, num_slots: int) -> None:
        self._cache: BlockLayout | None = layout
        self._device = layout.device
        self._memory = _allocate(layout, num_slots)
        size = self._memory.numel() * self._memory.itemsize
        # Not torch's pinned allocator, which rounds sizes up to a power of two.
        status = torch.cuda.cudart().cudaHostRegister(self._memory.data_ptr(), size, 0)  # type: ignore[no-untyped-call]
        if int(status) != 0:
            raise EngineSetupError(
                f"{size / 2**30:.1f} GiB of host memory can't be pinned for offloaded KV blocks (CUDA error "
                f"{int(status)}); lower kv_offloading_size"
            )
        self._is_open = True
        # Half of it is packed or unpacked while the other half is copied.
        self._chunk = max(1, min(num_slots, STAGING_BYTES // 2 // layout.bytes_per_block))
        self._storing = _Staging(layout, self._chunk)
        self._loading = _Staging(layout, self._chunk)
        self._stores: list[tuple[torch.cuda.Event, frozenset[int]]] = []
        """Stores under way and their slots, the oldest first."""
        self._loads: list[tuple[torch.cuda.Event, frozenset[int]]] = []
        """Loads, likewise."""

    @torch.inference_mode()
    def store(self, block_ids: Sequence[int], slots: Sequence[int]) -> Copy:
        """See `HostMemory`."""
        staging = self._storing
        staging.cache_stream.wait_stream(torch.cuda.current_stream(self._device))
        _wait_for_slots(staging.host_stream, self._loads, slots)
        for turn, (ids, part) in enumerate(self._chunks(block_ids, slots, staging)):
            half = staging.halves[turn % 2]
            staging.wait_for_half(turn, staging.cache_stream)
            with torch.cuda.stream(staging.cache_stream):
                self._layout.pack(ids, half[: len(part)])
            staging.host_stream.wait_stream(staging.cache_stream)
            with torch.cuda.stream(staging.host_stream):
                for slot, first, length in _runs(part):
                    self._memory[slot : slot + length].copy_(half[first : first + length], non_blocking=True)
            staging.leave_half(turn, staging.host_stream)
        event: torch.cuda.Event = staging.host_stream.record_event()
        self._stores = [*filter(_is_under_way, self._stores), (event, frozenset(slots))]
        return event

    @torch.inference_mode()
    def load(self, block_ids: Sequence[int], slots: Sequence[int]) -> Copy:
        """See `HostMemory`."""
        staging = self._loading
        staging.cache_stream.wait_stream(torch.cuda.current_stream(self._device))
        _wait_for_slots(staging.host_stream, self._stores, slots)
        for turn, (ids, part) in enumerate(self._chunks(block_ids, slots, staging)):
            half = staging.halves[turn % 2]
            staging.wait_for_half(turn, staging.host_stream)
            with torch.cuda.stream(staging.host_stream):
                for slot, first, length in _runs(part):
                    half[first : first + length].copy_(self._memory[slot : slot + length], non_blocking=True)
            staging.cache_stream.wait_stream(staging.host_stream)
            with torch.cuda.stream(staging.cache_stream):
                self._layout.unpack(ids, half[: len(part)])
            staging.leave_half(turn, staging.cache_stream)
        done: torch.cuda.Event = staging.cache_stream.record_event()
        self._loads = [*filter(_is_under_way, self._loads), (done, frozenset(slots))]
        return done

    def order_before_steps(self, copies: Sequence[Copy]) -> None:
        """See `HostMemory`; the host does not wait."""
        stream = torch.cuda.current_stream(self._device)
        for copy in copies:
            if isinstance(copy, torch.cuda.Event):
                stream.wait_event(copy)

    def rebind(self, layout: BlockLayout | None) -> None:
        """See `HostMemory`."""
        self._storing.synchronize()
        self._loading.synchronize()
        self._cache = layout

    def close(self) -> None:
        """Wait for copies and give the memory back. Idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        self._storing.synchronize()
        self._loading.synchronize()
        torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())  # type: ignore[no-untyped-call]
        self._memory = self._memory[:0].clone()
        self._storing.halves = self._loading.halves = ()

    @property
    def _layout(self) -> BlockLayout:
        return bound(self._cache)

    def _chunks(
        self, block_ids: Sequence[int], slots: Sequence[int], staging: _Staging
    ) -> Iterator[tuple[torch.Tensor, Sequence[int]]]:
        """Block ids on the device, in the order of the stream that reads them, and slots, of each part that
        half of the staging memory holds."""
        with torch.cuda.stream(staging.cache_stream):
            ids = torch.tensor(block_ids).pin_memory().to(self._device, non_blocking=True)
        for start in range(0, len(block_ids), self._chunk):
            part = slots[start : start + self._chunk]
            yield ids[start : start + len(part)], part


class _Staging:
    """Two halves of staging memory for one way, the stream on which they are packed or unpacked, and the one
    on which they are copied."""

    def __init__(self, layout: BlockLayout, num_blocks: int) -> None:
        """num_blocks: of each half."""
        self.halves: Sequence[torch.Tensor] = (layout.empty(num_blocks), layout.empty(num_blocks))
        self.cache_stream = torch.cuda.Stream(layout.device)  # type: ignore[no-untyped-call]
        self.host_stream = torch.cuda.Stream(layout.device)  # type: ignore[no-untyped-call]
        self._left: list[torch.cuda.Event | None] = [None, None]
        """By half, after which it may be filled again."""

    def wait_for_half(self, turn: int, stream: torch.cuda.Stream) -> None:
        """Let the stream fill the turn's half once what was in it is where it belongs."""
        event = self._left[turn % 2]
        if event is not None:
            stream.wait_event(event)

    def leave_half(self, turn: int, stream: torch.cuda.Stream) -> None:
        """What the stream was told so far empties the turn's half."""
        self._left[turn % 2] = stream.record_event()

    def synchronize(self) -> None:
        """Wait for both streams."""
        self.cache_stream.synchronize()
        self.host_stream.synchronize()


def _is_under_way(copy: tuple[Copy, frozenset[int]]) -> bool:
    return not copy[0].query()


def _wait_for_slots(
    stream: torch.cuda.Stream,
    copies: Sequence[tuple[torch.cuda.Event, frozenset[int]]],
    slots: Sequence[int],
) -> None:
    """Let the stream come after those of the copies that concern any of the slots."""
    for event, theirs in copies:
        if not theirs.isdisjoint(slots):
            stream.wait_event(event)


def bound(layout: BlockLayout | None) -> BlockLayout:
    """The layout; RuntimeError where there is no cache at present."""
    if layout is None:
        raise RuntimeError("there is no KV cache: call register_kv_caches first")
    return layout


def _runs(slots: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of consecutive slots: (first slot, its place in `slots`, length)."""
    start = 0
    for here, (slot, following) in enumerate(itertools.pairwise([*slots, -1]), start=1):
        if following != slot + 1:
            yield slots[start], start, here - start
            start = here


def _allocate(layout: BlockLayout, num_slots: int) -> torch.Tensor:
    """Memory of the host for packed blocks. Raises EngineSetupError."""
    what = f"{num_slots * layout.bytes_per_block / 2**30:.1f} GiB of host memory for offloaded KV blocks"
    with allocating(what, "lower kv_offloading_size, or cpu_bytes_to_use"):
        return torch.empty(num_slots, layout.block_elements, dtype=layout.dtype)


def allocate_host_memory(layout: BlockLayout, num_slots: int) -> HostMemory:
    """Memory for `num_slots` blocks beside the cache's device."""
    if layout.device.type == "cuda":
        return PinnedHostMemory(layout, num_slots)
    return PlainHostMemory(layout, num_slots)
