"""The calls of a step on the worker's side, around a runner's forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dodona.runners.interface import KVConnectorMetadata, KVConnectorOutput, PendingOutput, StepOutput
from dodona.runners.kv_transfer.connector import KVConnectorWorker


def before_forward(connector: KVConnectorWorker, metadata: KVConnectorMetadata, *, num_layers: int) -> None:
    """Begin a step's loads."""
    connector.handle_preemptions(metadata)
    connector.start_load_kv(metadata)
    for layer in range(num_layers):
        connector.wait_for_layer_load(layer)


def after_forward(
    connector: KVConnectorWorker, metadata: KVConnectorMetadata, *, num_layers: int
) -> KVConnectorOutput | None:
    """Begin a step's saves, and collect what ended."""
    for layer in range(num_layers):
        connector.save_kv_layer(layer)
    connector.wait_for_save(metadata)
    sent, received = connector.get_finished(metadata.finished_req_ids)
    failed = connector.get_block_ids_with_load_errors()
    if not (sent or received or failed):
        return None
    return KVConnectorOutput(frozenset(sent), frozenset(received), frozenset(failed))


@dataclass(frozen=True, slots=True)
class WithTransfers:
    """A step's pending output with what transfers came to."""

    pending: PendingOutput
    transfers: KVConnectorOutput

    def result(self) -> StepOutput:
        """Both."""
        return replace(self.pending.result(), kv_connector_output=self.transfers)
