"""What OffloadingConnector's two sides say to each other with a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dodona.runners.interface import KVConnectorMetadata


@dataclass(frozen=True, slots=True)
class Transfer:
    """Blocks of one request to copy, between `block_ids` of the cache and `slots` of the host's memory."""

    request_id: str
    """`KVRequest.kv_transfer_id`."""
    block_ids: Sequence[int]
    slots: Sequence[int]


@dataclass(frozen=True, slots=True)
class OffloadingMetadata(KVConnectorMetadata):
    """A step's copies. Loads begin before its stores."""

    loads: Sequence[Transfer] = ()
    stores: Sequence[Transfer] = ()
