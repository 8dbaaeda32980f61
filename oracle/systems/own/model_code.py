"""What transformers' code of a model can serve: alone or in batches, and up to which length."""

from __future__ import annotations

from collections.abc import Mapping

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.known_models import release
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.row_by_row import PACKED_FROM, POOLED_ALONE, ROW_BY_ROW, ROW_BY_ROW_WRAPPERS
from dodona.oracle.systems.own.pooling import pooling_task
from dodona.oracle.systems.own.resolved import resolved_runner_type


def outgrows_rope(config: EngineConfig, model: ModelInfo) -> bool:
    """Whether sequences may grow beyond the length up to which all rows share one set of rotary frequencies.

    transformers chooses the frequencies of "longrope" and "dynamic" by the longest sequence of a batch: up to
    the original length they are fixed, and beyond it one row's length changes what the others compute.
    """
    longest = config.model_config.max_model_len or model.max_position_embeddings
    fixed = model.rope_fixed_length
    return fixed is not None and (longest is None or longest > fixed)


def needs_newer_transformers(config: EngineConfig, model: ModelInfo, environment: Environment) -> bool | None:
    """Whether the installed transformers is older than the model's type; None: not known.

    A causal language model whose own code is trusted does not need the type.
    """
    since = model.transformers_since
    if since is None or _brings_causal_lm(config, model):
        return False
    return _older(environment, since)


def is_row_by_row(config: EngineConfig, model: ModelInfo, environment: Environment) -> bool | None:
    """Whether V1 computes the model's requests one by one: by its type, or since it outgrows its RoPE, whose
    frequencies don't follow each row's length. None: it depends on the version of transformers, which isn't
    known."""
    if resolved_runner_type(config, model) == "pooling":
        sees_padding = pooling_task(config, model) in POOLED_ALONE.get(model.model_type or "", ())
        return sees_padding or outgrows_rope(config, model)
    if model.model_type in PACKED_FROM:
        return _older(environment, PACKED_FROM[model.model_type])
    listed = model.model_type in ROW_BY_ROW or not set(ROW_BY_ROW_WRAPPERS).isdisjoint(model.architectures)
    return listed or (outgrows_rope(config, model) and model.rope_type != "dynamic")


def has_causal_lm(config: EngineConfig, model: ModelInfo) -> bool:
    """Whether transformers has a causal language model of this type, or trusted code comes with the model."""
    return model.is_causal_lm or _brings_causal_lm(config, model)


def _brings_causal_lm(config: EngineConfig, model: ModelInfo) -> bool:
    auto_map = model.raw.get("auto_map")
    brings_one = isinstance(auto_map, Mapping) and "AutoModelForCausalLM" in auto_map
    return brings_one and config.model_config.trust_remote_code


def _older(environment: Environment, since: str) -> bool | None:
    """Whether transformers is older than a version, or not there; None: not known."""
    installed = environment.version("transformers")
    if installed is UNKNOWN:
        return None
    return installed is None or release(str(installed)) < release(since)
