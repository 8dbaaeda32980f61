"""Which KV connector a configuration asks for, and whether it takes part."""

from __future__ import annotations

from dodona.oracle.config.engine_config import EngineConfig


def has_active_connector(config: EngineConfig) -> bool:
    """Whether KV blocks are to leave or enter this instance.

    They do where a connector is named and the role makes this instance take part, and where KV offloading has
    a size, which turns a connector on by itself.
    """
    transfer = config.kv_transfer_config
    named = transfer is not None and transfer.kv_connector is not None and transfer.kv_role is not None
    return named or bool(config.cache_config.kv_offloading_size)


def resolved_connector(config: EngineConfig) -> str | None:
    """The KV connector's name: the one configured, else the one that KV offloading turns on.

    "MultiConnector" (vLLM's name for several) where both ask for one, and not for the same. A connector that
    is named without a role takes no part; its name counts only where there is no other.
    """
    transfer = config.kv_transfer_config
    named = None if transfer is None else transfer.kv_connector
    if not config.cache_config.kv_offloading_size:
        return named
    native = config.cache_config.kv_offloading_backend == "native"
    offloading = "OffloadingConnector" if native else "LMCacheConnectorV1"
    if transfer is None or transfer.kv_role is None or named in (None, offloading):
        return offloading
    return "MultiConnector"


def has_connector_module(config: EngineConfig) -> bool:
    """Whether the connector's code is to come from a module of the user's."""
    transfer = config.kv_transfer_config
    return (
        has_active_connector(config)
        and transfer is not None
        and transfer.kv_connector_module_path is not None
    )
