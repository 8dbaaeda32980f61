"""Copies between a cache and the host's memory, made by threads beside the steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dodona.runners.kv_transfer.block_layout import BlockLayout


class CacheCopies:
    """Each copy waits for what the device was told before `mark`, and returns when it has ended."""

    def __init__(self, layout: BlockLayout) -> None:
        self.layout = layout
        self._is_cuda = layout.device.type == "cuda"

    def mark(self) -> torch.cuda.Event | None:
        """The place in the steps' stream that a copy must come after."""
        if not self._is_cuda:
            return None
        event: torch.cuda.Event = torch.cuda.current_stream(self.layout.device).record_event()
        return event

    @torch.inference_mode()
    def to_host(self, block_ids: Sequence[int], after: torch.cuda.Event | None) -> torch.Tensor:
        """[n, block_elements] on the host."""
        if after is None:
            return self._pack(block_ids)
        stream = torch.cuda.Stream(self.layout.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            stream.wait_event(after)
            return self._pack(block_ids).cpu()

    @torch.inference_mode()
    def to_cache(
        self, block_ids: Sequence[int], blocks: Sequence[torch.Tensor], after: torch.cuda.Event | None
    ) -> None:
        """Write blocks [block_elements] of the host."""
        packed = torch.stack(list(blocks))
        if after is None:
            self.layout.unpack(torch.tensor(block_ids), packed)
            return
        stream = torch.cuda.Stream(self.layout.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            stream.wait_event(after)
            ids = torch.tensor(block_ids, device=self.layout.device)
            self.layout.unpack(ids, packed.to(self.layout.device))
            stream.synchronize()

    def _pack(self, block_ids: Sequence[int]) -> torch.Tensor:
        packed = self.layout.empty(len(block_ids))
        self.layout.pack(torch.tensor(block_ids, device=self.layout.device), packed)
        return packed
