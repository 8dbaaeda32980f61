"""How weights are quantized: what the checkpoint says, and what the configuration asks for."""

from __future__ import annotations

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.quantization import ONLINE_METHODS, QuantizationConfig, online_quantization

_SAME_METHOD = {"gptq_marlin": "gptq", "awq_marlin": "awq"}
"""vLLM's names for kernels that serve another method's weights."""


def quantization_of(config: EngineConfig, model: ModelInfo) -> QuantizationConfig | None:
    """How the weights are quantized when they are computed with; None where they are not.

    That is what config.json says of them; of an unquantized checkpoint, what the configuration asks for.
    """
    asked = config.model_config.quantization
    method = None if asked is None else _SAME_METHOD.get(asked.lower(), asked.lower())
    stored = model.quantization
    if stored is not None:
        if method in (None, stored.method):
            return stored
        return QuantizationConfig(stored.method, unreadable=_contradiction(config, model))
    if method is None:
        return None
    if method in ONLINE_METHODS:
        return online_quantization(method)
    return QuantizationConfig(
        method,
        unreadable=f"the checkpoint is not quantized, and {method!r} needs weights that are; an unquantized "
        f"checkpoint is quantized while it is read with one of: {', '.join(ONLINE_METHODS)}",
    )


def quantization_scheme(config: EngineConfig, model: ModelInfo) -> str | None:
    """The one of SCHEMES that describes the weights; None where they are not quantized."""
    found = quantization_of(config, model)
    return None if found is None else found.overall_scheme(model.num_hidden_layers or 0)


def check_quantization(config: EngineConfig, model: ModelInfo | None) -> None:
    """Raise ConfigError where the quantization asked for isn't the one of the stored weights."""
    if model is None or model.quantization is None or config.model_config.quantization is None:
        return
    found = quantization_of(config, model)
    if found is not model.quantization:
        raise ConfigError(_contradiction(config, model))


def _contradiction(config: EngineConfig, model: ModelInfo) -> str:
    stored = None if model.quantization is None else model.quantization.method
    return (
        f"model_config.quantization is {config.model_config.quantization!r}, but {model.file} says that the "
        f"weights are stored with {stored!r}; leave quantization out"
    )
