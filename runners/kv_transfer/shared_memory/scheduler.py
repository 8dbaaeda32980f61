"""The scheduler's side of SharedMemoryConnector: prompts are announced when they are begun."""

from __future__ import annotations

from collections.abc import Sequence

from dodona.runners.interface import KVConnectorMetadata
from dodona.runners.kv_transfer.block_transfers import BlockTransferScheduler
from dodona.runners.kv_transfer.connector import KVRequest
from dodona.runners.kv_transfer.shared_memory.arena import Arena
from dodona.runners.kv_transfer.shared_memory.index import SharedMemoryIndex


class SharedMemoryScheduler(BlockTransferScheduler):
    """Announces the blocks of a prompt once it has blocks, and takes back what its request leaves
    unwritten."""

    def __init__(self, index: SharedMemoryIndex, arena: Arena | None, *, block_size: int) -> None:
        """arena: that of this engine, which ends with it."""
        super().__init__(index, block_size=block_size)
        self._announcements = index
        self._arena = arena
        self._announced: dict[str, list[bytes]] = {}
        """By request, what it announced."""

    def get_num_new_matched_tokens(
        self, request: KVRequest, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Blocks that another engine has announced; the load waits for them."""
        self._announcements.begin_search()
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(
        self, request: KVRequest, block_ids: Sequence[int], num_external_tokens: int
    ) -> None:
        """Also announce the prompt's full blocks."""
        super().update_state_after_alloc(request, block_ids, num_external_tokens)
        full = (len(request.token_ids) - 1) // self._block_size
        new = self._announcements.announce(request.block_hashes[:full])
        if new:
            self._announced[request.kv_transfer_id] = new

    def build_connector_meta(
        self, preempted_req_ids: Sequence[str], finished_req_ids: Sequence[str]
    ) -> KVConnectorMetadata | None:
        """Also take back what preempted and ended requests leave unwritten."""
        metadata = super().build_connector_meta(preempted_req_ids, finished_req_ids)
        for name in (*preempted_req_ids, *finished_req_ids):  # what they still store has places now
            self._announcements.withdraw(self._announced.pop(name, ()))
        return metadata

    def shutdown(self) -> None:
        """Remove the arena. Idempotent."""
        self._announcements.close()
        if self._arena is not None:
            self._arena.close(remove=True)
