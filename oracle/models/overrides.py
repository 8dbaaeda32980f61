"""A model whose config.json is changed by the user, as vLLM's `--hf-overrides` does."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.readable import readable


def overridden(model: ModelInfo, overrides: Mapping[str, Any]) -> ModelInfo:
    """The model with some fields of its config.json replaced; those of nested configurations (`text_config`,
    …) are replaced one by one.

    Raises ConfigError for a value that a field can't have.
    """
    return _overridden(model, json.dumps(overrides, sort_keys=True)) if overrides else model


@functools.lru_cache(maxsize=64)
def _overridden(model: ModelInfo, overrides: str) -> ModelInfo:
    # a ModelInfo is kept as long as its file does not change, and is compared by identity
    return readable(_patched(model.raw, json.loads(overrides)), file=model.file, modules=model.modules)


def _patched(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    patched = dict(raw)
    for name, value in overrides.items():
        old = patched.get(name)
        nested = name.endswith("_config") and name != "quantization_config"
        if nested and isinstance(old, Mapping) and isinstance(value, Mapping):
            patched[name] = _patched(old, value)
        else:
            patched[name] = value
    return patched
