"""`EngineConfig`: an engine's configuration under vLLM's names, as immutable values.

A section is a frozen dataclass. `lora_config`, `speculative_config`, `compilation_config`,
`kv_transfer_config` and `pooler_config` may be None, which means "not configured"; an empty section is
configured. Unknown fields are refused with the nearest name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

from pydantic import BeforeValidator, TypeAdapter
from pydantic.dataclasses import dataclass

from dodona.oracle.config.flat import nested
from dodona.oracle.config.sections import (
    FROZEN,
    CacheConfig,
    CompilationConfig,
    DeviceConfig,
    KVTransferConfig,
    LoadConfig,
    LoRAConfig,
    ModelConfig,
    ParallelConfig,
    PoolerConfig,
    SchedulerConfig,
    SpeculativeConfig,
    config_errors,
)
from dodona.oracle.errors import ConfigError

T = TypeVar("T")


def _or_default(cls: type[T]) -> BeforeValidator:
    return BeforeValidator(lambda value: cls() if value is None else value)


@config_errors("")
@dataclass(frozen=True, config=FROZEN)
class EngineConfig:
    """An engine's whole configuration: immutable, hashable, and equal after a round trip through JSON.

    Sections may be given as mappings. Raises ConfigError that names section, field and what was expected.

    >>> EngineConfig(model_config={"model": "dir"}, cache_config={"block_size": 32}).cache_config.block_size
    32
    """

    model_config: ModelConfig
    cache_config: Annotated[CacheConfig, _or_default(CacheConfig)] = CacheConfig()
    parallel_config: Annotated[ParallelConfig, _or_default(ParallelConfig)] = ParallelConfig()
    scheduler_config: Annotated[SchedulerConfig, _or_default(SchedulerConfig)] = SchedulerConfig()
    device_config: Annotated[DeviceConfig, _or_default(DeviceConfig)] = DeviceConfig()
    load_config: Annotated[LoadConfig, _or_default(LoadConfig)] = LoadConfig()
    lora_config: LoRAConfig | None = None
    speculative_config: SpeculativeConfig | None = None
    compilation_config: CompilationConfig | None = None
    kv_transfer_config: KVTransferConfig | None = None
    pooler_config: PoolerConfig | None = None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> EngineConfig:
        """From nested sections, as `to_mapping` gives. Raises ConfigError."""
        wrong = [key for key in mapping if not isinstance(key, str)]
        if wrong:
            raise ConfigError(f"section names are strings, got {wrong[0]!r}")
        return cls(**mapping)

    @classmethod
    def from_flat(cls, model: str, **arguments: Any) -> EngineConfig:
        """From vLLM's flat argument names (``tensor_parallel_size=2``), see `dodona.oracle.config.flat`."""
        return cls.from_mapping(nested({"model": model, **arguments}))

    @classmethod
    def from_json(cls, text: str | bytes) -> EngineConfig:
        """From the text that `to_json` gives. Raises ConfigError."""
        try:
            mapping = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"the configuration is not valid JSON: {error}") from None
        if not isinstance(mapping, dict):
            raise ConfigError(f"the configuration must be a JSON object, got {type(mapping).__name__}")
        return cls.from_mapping(mapping)

    def to_mapping(self) -> dict[str, Any]:
        """Nested sections of plain JSON values; sections that are not configured are None."""
        return cast(dict[str, Any], TypeAdapter(EngineConfig).dump_python(self, mode="json"))

    def to_json(self) -> str:
        """`to_mapping` as JSON text."""
        return json.dumps(self.to_mapping())
