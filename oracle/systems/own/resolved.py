"""What a configuration means where it says "auto", or says nothing: device, type, kind of runner, method."""

from __future__ import annotations

from dodona.oracle.config.draft_method import method_by_name
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo

DTYPES = ("float32", "bfloat16", "float16")


def resolved_device(config: EngineConfig, environment: Environment) -> str:
    """The platform that a configuration runs on: the device asked for, else the environment's."""
    device = config.device_config.device
    return environment.platform if device == "auto" else device


def resolved_dtype(config: EngineConfig, model: ModelInfo | None, device: str) -> str | None:
    """The type that a model is computed in on a platform; None where it isn't known.

    "auto" is config.json's type (float32 where it has none), but float32 on a CPU: most CPUs have no fast
    half-precision matrix products, and float32 holds every half-precision weight exactly.
    """
    if config.model_config.dtype != "auto":
        return config.model_config.dtype
    if device == "cpu":
        return "float32"
    return None if model is None else (model.dtype or "float32")


def resolved_runner_type(config: EngineConfig, model: ModelInfo | None) -> str | None:
    """generate, pooling or draft: as configured, else by the model; None where neither says."""
    if config.model_config.runner != "auto":
        return config.model_config.runner
    if config.model_config.convert in ("embed", "classify"):
        return "pooling"
    return None if model is None else model.default_runner


def resolved_quantization(config: EngineConfig, model: ModelInfo | None) -> FactValue:
    """The quantization method configured, else that of the stored weights; null where there is none."""
    if config.model_config.quantization is not None:
        return config.model_config.quantization.lower()
    return UNKNOWN if model is None else model.quant_method


def resolved_speculative_method(config: EngineConfig) -> str | None:
    """The method of drafting: as configured, else as the draft model's name says; None where neither says."""
    speculative = config.speculative_config
    if speculative is None:
        return None
    return speculative.method or method_by_name(speculative.model or "")
