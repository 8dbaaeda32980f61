"""What a KV connector does, on the scheduler's side and on the worker's.

The classes here are the connector that does nothing, which an engine has where none is configured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dodona.runners.interface import KVConnectorMetadata, KVConnectorOutput, KVPart

if TYPE_CHECKING:
    from dodona.runners.kv_transfer.block_layout import LayerKV


class KVRequest(Protocol):
    """What a connector may read of a request."""

    kv_transfer_id: str
    """Its name in transfers: another one each time it gets blocks, so that what is reported late of an
    earlier life is not mistaken."""
    token_ids: list[int]
    block_ids: list[int]
    """Its blocks, as long as it has any."""
    block_hashes: list[bytes]
    """Chained hashes of its leading full blocks; at least those that are asked about."""
    num_remembered_blocks: int
    """Leading blocks of `block_ids` that are full, with hashes, and whose KV exists once the steps scheduled
    so far are done."""


class KVConnectorScheduler:
    """The side that decides. Only the engine's thread calls it. This one finds nothing and keeps nothing."""

    needs_block_hashes: ClassVar[bool] = False
    """Whether requests have block hashes even without prefix caching."""

    def get_num_new_matched_tokens(
        self, request: KVRequest, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """How many tokens beyond the first `num_computed_tokens` (found in the cache) can be loaded, a
        multiple of the block size that leaves at least one token to compute; and whether they come between
        steps.

        (None, False): not known yet, ask again in a later step. May be called several times before the
        request gets blocks, and changes nothing.
        """
        return 0, False

    def update_state_after_alloc(
        self, request: KVRequest, block_ids: Sequence[int], num_external_tokens: int
    ) -> None:
        """The request has blocks. `num_external_tokens`, as many as were matched, are to be loaded into
        `block_ids`, which hold what comes after the cached tokens; the request runs once the worker reports
        it in `finished_recving`."""

    def build_connector_meta(
        self, preempted_req_ids: Sequence[str], finished_req_ids: Sequence[str]
    ) -> KVConnectorMetadata | None:
        """What the worker has to do in the step that was just scheduled.

        preempted_req_ids: requests that lost their blocks since the last step; others may write them in this
        one. finished_req_ids: those that ended.
        """
        return None

    def request_finished(self, request: KVRequest) -> tuple[bool, dict[str, Any] | None]:
        """The request ended. True: its blocks stay until the worker reports it in `finished_sending`.

        Also returns what the caller needs to fetch its KV elsewhere (`kv_transfer_params`), or None.
        """
        return False, None

    def update_connector_output(self, output: KVConnectorOutput) -> None:
        """What the worker reported with a step's result."""

    def fingerprint(self, weights: Path | None) -> str | None:
        """What stands for these weights in a directory (None: random ones) where engines share KV; None where
        they don't."""
        return None

    def reset_cache(self, fingerprint: str | None = None) -> None:
        """Weights changed: KV that was computed before is of no use. No request holds blocks.

        fingerprint: what stands for the new weights; None: not known, so that no other engine can have them.
        """

    def shutdown(self) -> None:
        """The engine ends. Idempotent."""


class KVConnectorWorker:
    """The side that moves KV, in the runner's process; this one moves nothing. The calls of a step, in their
    order:

    `handle_preemptions`, `start_load_kv`, `wait_for_layer_load` for each layer, the forward pass,
    `save_kv_layer` for each layer, `wait_for_save`, `get_finished`, `get_block_ids_with_load_errors`.

    A forward pass may be a captured graph, so the calls for layers come before and after it as a whole.
    """

    def register_kv_caches(self, kv_caches: Sequence[LayerKV], part: KVPart) -> None:
        """The cache to load into and save from, in the order of the layers; and which part of the model's
        KV this is."""

    def release_kv_caches(self) -> None:
        """Wait for transfers and let go of the cache, whose memory is given back; another one may come."""

    def handle_preemptions(self, metadata: KVConnectorMetadata) -> None:
        """Make sure that blocks of `metadata.preempted_req_ids` may be written by what follows."""

    def start_load_kv(self, metadata: KVConnectorMetadata) -> None:
        """Begin the step's loads; their blocks are not read before they are reported."""

    def wait_for_layer_load(self, layer: int) -> None:
        """Return when what the step reads of this layer is there."""

    def save_kv_layer(self, layer: int) -> None:
        """The layer's KV of this step is written (in the order of the device's stream)."""

    def wait_for_save(self, metadata: KVConnectorMetadata) -> None:
        """Begin the step's saves; return when the step's blocks may be written again, or are known to stay
        as they are until the request is reported as sent."""

    def get_finished(self, finished_req_ids: Sequence[str]) -> tuple[set[str], set[str]]:
        """Transfers that ended, by `KVRequest.kv_transfer_id`: (sent, received); each is named once.

        finished_req_ids: requests that ended. One whose `request_finished` said True is named as sent when
        its blocks are not read any more.
        """
        return set(), set()

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks whose load failed since the last call; their request is named as received now or before."""
        return set()

    def shutdown(self) -> None:
        """End transfers and give back memory. Idempotent."""
