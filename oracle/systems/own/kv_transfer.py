"""What a configuration asks of KV transfer, resolved and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dodona.oracle.errors import ConfigError
from dodona.oracle.systems.own.connectors import (
    has_active_connector,
    has_connector_module,
    resolved_connector,
)

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.config.sections import KVTransferConfig

OFFLOADING = "OffloadingConnector"
SHARED_STORAGE = ("SharedStorageConnector", "ExampleConnector")
"""Two names of one connector: vLLM's older and newer one."""

SHARED_MEMORY = "SharedMemoryConnector"
"""Our own: vLLM has no connector with this protocol."""

KV_CONNECTORS = (OFFLOADING, *SHARED_STORAGE, SHARED_MEMORY)
"""The connectors that there are."""

_WAIT_SECONDS = 30.0
MAX_WAIT_SECONDS = 86_400
"""Longest that a request may wait for another engine's blocks."""
MAX_BYTES = 1 << 62
"""More than any memory or file system has."""

_WITHOUT_EFFECT = ("kv_buffer_device", "kv_rank", "kv_parallel_size", "kv_ip", "kv_port", "engine_id")
"""Fields of `kv_transfer_config` that no connector here reads."""


@dataclass(frozen=True, slots=True)
class OffloadingSettings:
    """OffloadingConnector."""

    cpu_bytes: int
    """Host memory for the KV blocks of one rank."""


@dataclass(frozen=True, slots=True)
class SharedStorageSettings:
    """SharedStorageConnector."""

    path: Path
    """Folder of the files."""
    max_bytes: int | None
    """Most bytes of files, of all engines that share the folder; None: no bound."""
    loads: bool
    """Whether blocks are read: not by a kv_producer."""
    stores: bool
    """Whether blocks are written: not by a kv_consumer."""


@dataclass(frozen=True, slots=True)
class SharedMemorySettings:
    """SharedMemoryConnector."""

    path: Path
    """Folder of the engines' memory."""
    memory_bytes: int | None
    """Memory of this engine for blocks that others read; None for a kv_consumer, which has none."""
    wait_seconds: float | None
    """Most seconds that a request waits for blocks that another engine announced; None for a kv_producer,
    which reads none."""


KVTransferSettings = OffloadingSettings | SharedStorageSettings | SharedMemorySettings
"""The settings of a connector."""


def resolve_kv_transfer(config: EngineConfig) -> KVTransferSettings | None:
    """The settings of the configuration's connector, or None where no KV leaves or enters.

    Raises ConfigError for fields that the connector doesn't read, and for values that it can't take.
    """
    if not has_active_connector(config):
        return None
    name = resolved_connector(config)
    if name == OFFLOADING:
        return _offloading(config)
    if name in SHARED_STORAGE and config.kv_transfer_config is not None:
        return _shared_storage(config.kv_transfer_config)
    if name == SHARED_MEMORY and config.kv_transfer_config is not None:
        return _shared_memory(config.kv_transfer_config)
    raise ConfigError(f"kv_connector {name!r} is not known; known: {', '.join(KV_CONNECTORS)}")


def kv_transfer_fault(config: EngineConfig) -> str | None:
    """Why no engine can start with the connector's settings; None where one can, or there is no such
    connector."""
    if lacks_connector(config):
        return None
    try:
        resolve_kv_transfer(config)
    except ConfigError as error:
        return str(error)
    return None


def lacks_connector(config: EngineConfig) -> bool:
    """Whether the configuration asks for a connector that there is none of, or for code from elsewhere."""
    if not has_active_connector(config):
        return False
    return resolved_connector(config) not in KV_CONNECTORS or has_connector_module(config)


def _shared_storage(transfer: KVTransferConfig) -> SharedStorageSettings:
    extra = _extra_config(transfer, SHARED_STORAGE[0], ("shared_storage_path", "max_bytes"))
    max_bytes = extra.get("max_bytes")
    return SharedStorageSettings(
        _folder(extra, "shared_storage_path", SHARED_STORAGE[0], "a folder for its files"),
        None if max_bytes is None else _byte_count("max_bytes", max_bytes),
        loads=transfer.kv_role != "kv_producer",
        stores=transfer.kv_role != "kv_consumer",
    )


def _shared_memory(transfer: KVTransferConfig) -> SharedMemorySettings:
    loads, stores = transfer.kv_role != "kv_producer", transfer.kv_role != "kv_consumer"
    known = ("shared_memory_path", *("memory_bytes",) * stores, *("wait_seconds",) * loads)
    extra = _extra_config(transfer, f"{SHARED_MEMORY} as {transfer.kv_role}", known)
    path = _folder(
        extra,
        "shared_memory_path",
        SHARED_MEMORY,
        "a folder in memory that the engines share, such as /dev/shm/dodona-kv",
    )
    if stores and "memory_bytes" not in extra:
        raise ConfigError(
            f"{SHARED_MEMORY} as {transfer.kv_role} needs memory_bytes in kv_connector_extra_config: the "
            "memory for blocks that other engines read"
        )
    seconds = extra.get("wait_seconds", _WAIT_SECONDS)
    number = not isinstance(seconds, bool) and isinstance(seconds, int | float)
    if not number or not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise ConfigError(
            f"kv_connector_extra_config: wait_seconds must be a number, at least 0 and at most "
            f"{MAX_WAIT_SECONDS}; got {_kind(seconds)}"
        )
    return SharedMemorySettings(
        path,
        _byte_count("memory_bytes", extra["memory_bytes"]) if stores else None,
        float(seconds) if loads else None,
    )


def _byte_count(key: str, given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given < MAX_BYTES:
        raise ConfigError(
            f"kv_connector_extra_config: {key} must be a number of bytes above 0 and below 2^62; got "
            f"{_kind(given)}"
        )
    return given


def _folder(extra: Mapping[str, Any], key: str, connector: str, what: str) -> Path:
    """The folder that `key` names. Raises ConfigError, which does not show a value that may be a
    secret."""
    given = extra.get(key)
    if isinstance(given, str) and given and "://" not in given:
        with suppress(ValueError, RuntimeError):  # no text of a file system; a home that is not known
            path = Path(given).expanduser()
            os.fsencode(path)
            if "\0" not in given:
                return path
    raise ConfigError(
        f"{connector} needs {key} in kv_connector_extra_config: {what}, as a path of this machine; got "
        f"{_kind(given)}"
    )


def _kind(value: Any) -> str:
    """What is said of a value that may be a password or a key."""
    if value is None:
        return "none"
    return "a whole number" if type(value) is int else f"a value of type {type(value).__name__}"


def _offloading(config: EngineConfig) -> OffloadingSettings:
    size, transfer = config.cache_config.kv_offloading_size, config.kv_transfer_config
    extra = _extra_config(transfer, OFFLOADING, ("cpu_bytes_to_use",))
    if transfer is not None and transfer.kv_role not in (None, "kv_both"):
        raise ConfigError(
            f"kv_role {transfer.kv_role!r}: {OFFLOADING} both stores and loads; set kv_role to 'kv_both'"
        )
    given = extra.get("cpu_bytes_to_use")
    if (given is None) == (not size):
        raise ConfigError(
            f"{OFFLOADING} needs one size of the host's memory: kv_offloading_size in GiB, or "
            f"cpu_bytes_to_use in kv_connector_extra_config; got {'both' if size else 'none'}"
        )
    if given is not None:
        total = _byte_count("cpu_bytes_to_use", given)
    elif (size or 0) * 2**30 >= MAX_BYTES:
        raise ConfigError(f"kv_offloading_size must be below {MAX_BYTES >> 30} GiB; got {size}")
    else:
        total = int((size or 0) * 2**30)
    return OffloadingSettings(total // config.parallel_config.world_size)


def _extra_config(
    transfer: KVTransferConfig | None, connector: str, known: tuple[str, ...]
) -> Mapping[str, Any]:
    """`kv_connector_extra_config`, after a check that nothing is configured that nobody reads."""
    if transfer is None:
        return {}
    for field in _WITHOUT_EFFECT:
        if getattr(transfer, field) is not None:
            raise ConfigError(f"kv_transfer_config.{field} has no effect with {connector}; leave it out")
    # The configuration holds it as JSON text, checked to be an object.
    extra: Mapping[str, Any] = json.loads(transfer.kv_connector_extra_config or "{}")
    for key in extra:
        if key not in known:
            raise ConfigError(
                f"kv_connector_extra_config: {connector} doesn't know {key!r}; known: {', '.join(known)}"
            )
    return extra
