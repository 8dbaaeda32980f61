"""The files that describe a model: config.json, and those that tools write beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import read_json

MEND = "correct it or fetch the model again"
"""How to mend a config.json, in error messages."""

MAX_CONFIG_BYTES = 8 << 20
"""A larger config.json is refused."""

MAX_CONFIG_VALUES = 200_000
"""Most values of a config.json, which transformers copies many times. Labels of 20,000 classes are 80,000."""


def read_config_json(file: Path) -> Mapping[str, Any]:
    """The object in a config.json. Raises ConfigError that names the file."""
    try:
        value = read_json(file, limit=MAX_CONFIG_BYTES, expected="a config.json", most=MAX_CONFIG_VALUES)
    except ConfigError as error:
        raise ConfigError(f"{error}; {MEND}") from None
    if not isinstance(value, dict):
        raise ConfigError(
            f"{file}: expected a JSON object, got {type(value).__name__}; fetch the model again"
        )
    return value


def stored_modules(directory: Path) -> tuple[str, ...]:
    """Kinds of the modules that a directory's modules.json (Sentence Transformers) names, in order."""
    modules = _companion(directory / "modules.json")
    if not isinstance(modules, list):
        return ()
    types = (module.get("type") for module in modules if isinstance(module, dict))
    return tuple(str(name).rpartition(".")[2] for name in types)


def companion_quantization(directory: Path) -> Mapping[str, Any] | None:
    """What tools say that write a file of their own beside config.json: ModelOpt and AutoGPTQ."""
    if (directory / "hf_quant_config.json").is_file():
        return {"quant_method": "modelopt"}
    if not (directory / "quantize_config.json").is_file():
        return None
    stored = _companion(directory / "quantize_config.json")
    return {**(stored if isinstance(stored, dict) else {}), "quant_method": "gptq"}


def _companion(file: Path) -> Any:
    if not file.exists():
        return None
    try:
        return read_json(file, limit=MAX_CONFIG_BYTES, most=MAX_CONFIG_VALUES)
    except ConfigError:
        return None
