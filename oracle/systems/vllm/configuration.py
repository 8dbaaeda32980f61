"""A configuration of vLLM as it is given: nested sections, from whatever form it has."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import SECTIONS
from dodona.oracle.errors import ConfigError, did_you_mean
from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.overrides import overridden
from dodona.oracle.models.readable import load_readable
from dodona.oracle.systems.vllm.arguments import Arguments, from_command_line, from_flat
from dodona.oracle.systems.vllm.facts import VLLM_FACTS


def read_config(config: object, release: str | None = None) -> Arguments:
    """Nested sections from an EngineConfig, a mapping of sections, a model directory (or hub id), or a
    command line that starts vLLM's server (a text of several words, or a list of words).

    release: whose flags they are; None: the newest that is known. Raises ConfigError.
    """
    if isinstance(config, EngineConfig):
        return Arguments(config.to_mapping())
    if isinstance(config, Mapping):
        return Arguments(_checked(config))
    if isinstance(config, str) and _is_command(config):
        return from_command_line(config, release)
    if isinstance(config, (str, os.PathLike)):
        return from_flat({"model": os.fspath(config)}, release)
    if isinstance(config, Sequence) and all(isinstance(word, str) for word in config):
        return from_command_line(config, release)
    raise ConfigError(
        "expected an EngineConfig, a mapping, a model directory or a `vllm serve` command line, "
        f"got {type(config).__name__}"
    )


def _is_command(text: str) -> bool:
    return len(text.split(maxsplit=1)) > 1 and "vllm" in text and not os.path.isdir(text)


def model_of(sections: Mapping[str, Any]) -> ModelInfo:
    """What the config.json of a configuration's model says, with the configuration's own overrides.

    Raises ConfigError.
    """
    given = sections.get("model_config") or {}
    name = given.get("model")
    if not isinstance(name, str) or not name:
        raise ConfigError("no model: name a model directory or a hub id")
    elsewhere = given.get("hf_config_path")
    if isinstance(elsewhere, str) and elsewhere:
        found = load_readable(locate_or_download(elsewhere))
    else:
        found = load_readable(locate_or_download(name, revision=given.get("revision")))
    return with_overrides(found, sections)


def with_overrides(model: ModelInfo, sections: Mapping[str, Any]) -> ModelInfo:
    """The model with the `hf_overrides` of a configuration. Raises ConfigError."""
    overrides = (sections.get("model_config") or {}).get("hf_overrides")
    if overrides is None:
        return model
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"model_config.hf_overrides: expected a section, got {overrides!r}")
    return overridden(model, overrides)


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of sections in which nothing that rules read looks misspelt. Raises ConfigError."""
    fields: dict[str, set[str]] = {
        section: {field.name for field in dataclasses.fields(cls)} for section, cls in SECTIONS.items()
    }
    for spec in VLLM_FACTS.values():
        for path in spec.reads:
            section, _, rest = path.partition(".")
            fields.setdefault(section, set()).update({rest.split(".")[0]} - {""})
    for section, value in config.items():
        if section not in fields:
            hint = did_you_mean(str(section), fields)
            if hint:
                raise ConfigError(f"{section}: no such section; {hint}")
        elif value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{section}: expected a section, got {value!r}")
        elif value is not None and section in _STRICT:
            for field in value:
                hint = "" if field in fields[section] else did_you_mean(str(field), fields[section])
                if hint:
                    raise ConfigError(f"{section}.{field}: no such field; {hint}")
    return dict(config)


_STRICT: Final = ("model_config", "parallel_config", "cache_config", "scheduler_config", "speculative_config")


def shared_config(sections: Mapping[str, Any]) -> EngineConfig:
    """The part of a configuration that an EngineConfig can hold."""
    shared = {
        section: {f.name: value[f.name] for f in dataclasses.fields(cls) if value.get(f.name) is not None}
        for section, cls in SECTIONS.items()
        if isinstance(value := sections.get(section), Mapping)
    }
    try:
        return EngineConfig.from_mapping(shared)
    except ConfigError:
        # vLLM's values may be ones that this runtime doesn't have
        return EngineConfig.from_flat(sections["model_config"]["model"])
