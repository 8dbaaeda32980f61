"""What a KV connector has under way for a scheduler, and who holds which blocks meanwhile."""

from __future__ import annotations

import itertools
from dataclasses import replace

from dodona.runners.engine.kv_blocks import KVBlocks
from dodona.runners.engine.request import Request
from dodona.runners.interface import KVConnectorMetadata, KVConnectorOutput
from dodona.runners.kv_transfer.connector import KVConnectorScheduler


class KVTransfers:
    """Requests that wait for KV, which have blocks and no row, and blocks of ended requests that are still
    read."""

    def __init__(self, connector: KVConnectorScheduler, blocks: KVBlocks) -> None:
        self.connector = connector
        self._blocks = blocks
        self._loading: dict[str, Request] = {}
        """By transfer id, in the order in which they got their blocks; may hold aborted requests."""
        self._sending: dict[str, list[int]] = {}
        """By the transfer id of an ended request, its blocks."""
        self._preempted: list[str] = []
        self._finished: list[str] = []
        self._is_undecided = False
        """Whether the connector was asked since the last step and didn't know."""
        self._numbers = itertools.count()

    @property
    def under_way(self) -> bool:
        """Whether a step is needed to hear of transfers."""
        return bool(self._loading or self._sending or self._is_undecided)

    @property
    def num_loading(self) -> int:
        """Requests that wait for KV."""
        return len(self._loading)

    def is_loading(self, request: Request) -> bool:
        """Whether blocks of the request are being written."""
        return request.kv_transfer_id in self._loading

    def held_blocks(self) -> list[list[int]]:
        """The block tables of requests that wait for KV, and of those that ended and are still read."""
        return [*(request.block_ids for request in self._loading.values()), *self._sending.values()]

    def find(self, request: Request, num_cached_tokens: int) -> int | None:
        """How many tokens beyond the cached ones can be loaded; None to ask again later."""
        num_external, is_async = self.connector.get_num_new_matched_tokens(request, num_cached_tokens)
        if num_external and not is_async:
            raise RuntimeError(
                f"{type(self.connector).__name__} loads within a step, and loads are served between steps"
            )
        self._is_undecided |= num_external is None
        return num_external

    def give_blocks(self, request: Request, new_block_ids: list[int], num_external_tokens: int) -> None:
        """The request got blocks; with external tokens, it waits for them."""
        request.kv_transfer_id = f"{request.request_id}#{next(self._numbers)}"
        self.connector.update_state_after_alloc(request, new_block_ids, num_external_tokens)
        if num_external_tokens:
            self._loading[request.kv_transfer_id] = request

    def preempt(self, request: Request) -> None:
        """Take the request's blocks for others, at once."""
        self._preempted.append(request.kv_transfer_id)
        self._blocks.release(request.block_ids[request.num_forgotten_blocks :])

    def end(self, request: Request) -> None:
        """Free the blocks of a request that ended, or keep them while they are read."""
        transfer_id = request.kv_transfer_id
        is_sent, _ = self.connector.request_finished(request)
        self._finished.append(transfer_id)
        if is_sent:
            self._sending[transfer_id] = request.block_ids
        else:
            self._blocks.release(request.block_ids[request.num_forgotten_blocks :])

    def metadata(self, *, is_idle: bool) -> KVConnectorMetadata | None:
        """For the step that was just scheduled. is_idle: no request runs."""
        metadata = self.connector.build_connector_meta(self._preempted, self._finished)
        self._preempted, self._finished, self._is_undecided = [], [], False
        return replace(metadata, is_idle=True) if metadata is not None and is_idle else metadata

    def update(self, output: KVConnectorOutput) -> list[Request]:
        """Take what a step's transfers came to. Returns the requests whose load ended, in the order of their
        start; `num_computed_tokens` counts what was loaded before the first block that failed."""
        self.connector.update_connector_output(output)
        for transfer_id in output.finished_sending:
            self._blocks.release(self._sending.pop(transfer_id))
        loaded = [request for name, request in self._loading.items() if name in output.finished_recving]
        for request in loaded:
            del self._loading[request.kv_transfer_id]
            for index, block_id in enumerate(request.block_ids):
                if block_id in output.invalid_block_ids:
                    most = index * self._blocks.block_size
                    request.num_computed_tokens = min(request.num_computed_tokens, most)
                    break
        return loaded
