"""How weights are quantized: what the checkpoint says, and what the configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.quantization import (
    LIBRARY_SCHEMES,
    ONLINE_METHODS,
    QuantizationConfig,
    online_quantization,
)
from dodona.oracle.models.quantized_experts import AT_LOAD_FROM, MXFP4, reads_quantized_experts
from dodona.oracle.systems.own.model_code import older_transformers
from dodona.oracle.systems.own.pooling import pooling_task

_SAME_METHOD = {"gptq_marlin": "gptq", "awq_marlin": "awq"}
"""vLLM's names for kernels that serve another method's weights."""


def quantization_of(config: EngineConfig, model: ModelInfo) -> QuantizationConfig | None:
    """How the weights are quantized when they are computed with; None where they are not.

    That is what config.json says of them; of an unquantized checkpoint, what the configuration asks for.
    """
    method, stored = _method_asked_for(config), model.quantization
    if stored is not None:
        if method in (None, stored.method):
            if stored.method == "mxfp4" and not model.is_moe and stored.unreadable is None:
                return replace(stored, unreadable="it quantizes experts, and the model has none")
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
    if found is None:
        return None
    # Of a classifier's last layer, config.json may say that it is quantized too; only its weights tell.
    is_stored = model.quantization is not None and found.unreadable is None
    classifies = pooling_task(config, model) in ("classify", "token_classify")
    if is_stored and classifies and found.scheme_of("score") is not None:
        return "mixed"
    return found.overall_scheme(model.num_hidden_layers or 0)


def quantization_fault(config: EngineConfig, model: ModelInfo) -> str | None:
    """Why no runner reads the weights; None where one may, or they are not quantized."""
    found = quantization_of(config, model)
    return None if found is None else found.unreadable


_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "torchao": ("torchao",),
}
"""What transformers needs to load a library's weights."""


def lacks_quantization_package(
    config: EngineConfig, model: ModelInfo, environment: Environment
) -> bool | None:
    """Whether a package that the weights are loaded through isn't installed; None: not known."""
    library = LIBRARY_SCHEMES.get(quantization_scheme(config, model) or "", "")
    found = [environment.version(package) for package in _PACKAGES.get(library, ())]
    if None in found:
        return True
    return None if UNKNOWN in found else False


def has_unread_experts(config: EngineConfig, model: ModelInfo, environment: Environment) -> bool | None:
    """Whether the model has experts that are quantized in a way in which V1 does not read its type's; None:
    the version of transformers decides, and isn't known."""
    found = quantization_of(config, model)
    if found is None or not model.is_moe or found.unreadable is not None:
        return False
    if found.method == "mxfp4":
        return model.model_type not in MXFP4
    last = (model.num_hidden_layers or 1) - 1
    if found.scheme_of(f"model.layers.{last}.mlp.experts.0.up_proj") is None:
        return False
    at_load = model.quantization is None
    if not reads_quantized_experts(model.model_type, at_load=at_load):
        return True
    since = AT_LOAD_FROM.get(model.model_type or "") if at_load else None
    return False if since is None else older_transformers(environment, since)


def check_quantization(config: EngineConfig, model: ModelInfo | None) -> None:
    """Raise ConfigError where the quantization asked for isn't the one of the stored weights."""
    if model is None or model.quantization is None:
        return
    if _method_asked_for(config) not in (None, model.quantization.method):
        raise ConfigError(_contradiction(config, model))


def _method_asked_for(config: EngineConfig) -> str | None:
    asked = config.model_config.quantization
    return None if asked is None else _SAME_METHOD.get(asked.lower(), asked.lower())


def _contradiction(config: EngineConfig, model: ModelInfo) -> str:
    stored = None if model.quantization is None else model.quantization.method
    return (
        f"model_config.quantization is {config.model_config.quantization!r}, but {model.file} says that the "
        f"weights are stored with {stored!r}; leave quantization out"
    )
