"""Known model architectures, and the model that each of them usually is."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, Final

from dodona.oracle.models.known_models import known_model_types
from dodona.oracle.models.model_info import ModelInfo

PLAIN_ARCHITECTURE: Final = "Qwen3ForCausalLM"
"""The architecture of a plain model: dense and unquantized."""

_HEAD_OR_NONE = re.compile(r"(For[A-Z]\w+|LMHeadModel|Model)$")


@functools.cache
def _model_types() -> Mapping[str, str]:
    return {name.replace("_", "").replace("-", ""): name for name in known_model_types()}


def model_type_of(architecture: str) -> str | None:
    """The model type that an architecture's name tells; None where none has its name."""
    stem = _HEAD_OR_NONE.sub("", architecture).replace("_", "").lower()
    types = _model_types()
    if architecture.endswith("ForCausalLM") and f"{stem}text" in types:
        return types[f"{stem}text"]
    return types.get(stem)


def typical_model(architecture: str, more: Mapping[str, Any] | None = None) -> ModelInfo:
    """A model whose config.json leaves everything to its family's defaults. more: what else it says."""
    return ModelInfo.from_mapping(
        {
            "architectures": [architecture],
            "model_type": model_type_of(architecture) or architecture,
            "torch_dtype": "bfloat16",
            **(more or {}),
        }
    )
