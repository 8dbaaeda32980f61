"""What a pooling runner is to compute for a model."""

from __future__ import annotations

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.row_by_row import UNPOOLED
from dodona.oracle.systems.own.resolved import resolved_runner_type

_LATE_INTERACTION = ("ColBERT", "ColBert", "ColPali", "ColQwen", "ColModern", "ColLFM", "ColSmol")
"""In names of architectures whose outputs for single tokens are compared with one another."""

POOLING_TASKS = ("embed", "classify", "token_classify", "late_interaction", "reward", "other")
SERVED_MODULES = ("Transformer", "Pooling", "Normalize", "Dense")
"""Modules of Sentence Transformers that a pooling runner computes."""


def pooling_task(config: EngineConfig, model: ModelInfo) -> str | None:
    """What a pooling runner computes: one of `POOLING_TASKS`; None where the model is not for pooling.

    The architecture's name decides, unless `convert` does. "reward" is a head that transformers has no class
    for, "other" a module of Sentence Transformers beyond `SERVED_MODULES`.
    """
    if resolved_runner_type(config, model) != "pooling":
        return None
    names = model.architectures
    if any(part in name for name in names for part in _LATE_INTERACTION):
        return "late_interaction"
    if not set(model.modules) <= set(SERVED_MODULES):
        return "other"
    if config.model_config.convert in ("embed", "classify"):
        return config.model_config.convert
    if any(name.endswith("ForTokenClassification") for name in names):
        return "token_classify"
    if any(name.endswith("ForSequenceClassification") for name in names):
        return "classify"
    return "reward" if any("Reward" in name for name in names) else "embed"


def has_pooling_model(config: EngineConfig, model: ModelInfo) -> bool | None:
    """Whether transformers has a class of text models of this type for the pooling task; None where the model
    is not for pooling."""
    task = pooling_task(config, model)
    return None if task is None else task in model.pooling_tasks and model.model_type not in UNPOOLED


def has_unused_pooler(config: EngineConfig, model: ModelInfo | None) -> bool | None:
    """Whether `pooler_config` or `convert` is set for a model that is not for pooling; None: not known."""
    if config.pooler_config is None and config.model_config.convert in ("auto", "none"):
        return False
    runner_type = resolved_runner_type(config, model)
    return None if runner_type is None else runner_type != "pooling"
