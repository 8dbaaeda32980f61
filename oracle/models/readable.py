"""A model of which only some fields matter: what can't be read of config.json is unknown instead of an error.

vLLM's books read few fields, and a released config.json may hold what no rule looks at in a form of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dodona.oracle.errors import ConfigError, UnreadableField
from dodona.oracle.models.config_files import companion_quantization, read_config_json, stored_modules
from dodona.oracle.models.model_info import ModelInfo


def load_readable(path: str | os.PathLike[str]) -> ModelInfo:
    """Read a model directory; fields that can't be read are as if they weren't there, `architectures` may be
    missing. Raises ConfigError where there is no config.json, or it is no JSON object.
    """
    try:
        return ModelInfo.load(path)
    except UnreadableField:
        file = Path(path) / "config.json"
        return readable(read_config_json(file), file=str(file), modules=stored_modules(file.parent))


def readable(raw: Mapping[str, Any], *, file: str, modules: tuple[str, ...]) -> ModelInfo:
    """A model from the contents of a config.json, without those fields that can't be read.

    Raises ConfigError where what is left can't be read either.
    """
    companion = companion_quantization(Path(file).parent)
    while True:
        try:
            return ModelInfo.from_mapping(
                raw, file=file, modules=modules, quantization=companion, named=False
            )
        except UnreadableField as error:
            left = _without(raw, error.field)
            if left == raw:
                raise ConfigError(str(error)) from None
            raw = left


def _without(raw: Mapping[str, Any], field: str) -> dict[str, Any]:
    return {
        name: _without(value, field) if isinstance(value, Mapping) else value
        for name, value in raw.items()
        if name != field
    }
