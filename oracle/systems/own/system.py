"""Dodona itself as a system: configurations are EngineConfigs.

Books of a system that is not registered are read with the same facts and configurations, under the system's
own name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.facts import FactSpec, FactValue
from dodona.oracle.language.rulebook import OWN_SYSTEM, RuleBook
from dodona.oracle.machine.environment import Environment, assumed_gpu, plain_gpu
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.deployment import OwnDeployment
from dodona.oracle.systems.own.facts import FACTS, derive_facts
from dodona.oracle.systems.own.quantization import check_quantization
from dodona.oracle.systems.own.speculation import with_told_method
from dodona.oracle.systems.system import System, load_model


@dataclass(frozen=True)
class OwnSystem(System):
    """Dodona, or an engine that is not registered."""

    name: str = OWN_SYSTEM

    @property
    def builds_runners(self) -> bool:
        """True for Dodona's own runners only."""
        return self.name == OWN_SYSTEM

    @property
    def reads_words(self) -> bool:
        """False: the command line has an option for each field."""
        return False

    @property
    def facts(self) -> Mapping[str, FactSpec]:
        """Every fact by its name."""
        return FACTS

    def plain_facts(self, model: ModelInfo) -> Facts:
        """The facts of a model that is served with nothing special asked for, on one NVIDIA GPU."""
        return derive_facts(EngineConfig.from_flat("model"), model, plain_gpu())

    def section_facts(self, section: str, assume: Mapping[str, FactValue] | None) -> Facts:
        """The facts below an optional section that is configured without any field."""
        below = [name for name in FACTS if name.startswith(f"{section}.")]
        config = EngineConfig.from_mapping({"model_config": {"model": "model"}, section: {}})
        return derive_facts(config, None, assumed_gpu(), names=below)

    def deploy(
        self, given: object, environment: Environment, book: RuleBook, *, model: ModelInfo | None = None
    ) -> OwnDeployment:
        """The deployment of an EngineConfig, a mapping of its sections, or a model directory or hub id.

        Raises ConfigError.
        """
        config = with_told_method(read_config(given), environment)
        found = _model_of(config) if model is None else model
        check_quantization(config, found)
        return OwnDeployment(config, found, environment, book)

    def deployment_of(self, verdict: Verdict, environment: Environment, book: RuleBook) -> OwnDeployment:
        """The deployment that a verdict is about; reads the model's config.json. Raises ConfigError."""
        return OwnDeployment(verdict.config, _model_of(verdict.config), environment, book)

    def accepts(self, fact: FactSpec, value: FactValue) -> bool:
        """Whether an EngineConfig can give a fact a value."""
        if fact.source == "config":
            return True
        if not fact.reads:
            return False
        section, _, field = fact.reads[0].partition(".")
        mapping: dict[str, dict[str, Any]] = {"model_config": {"model": "model"}}
        mapping.setdefault(section, {})[field] = value
        try:
            EngineConfig.from_mapping(mapping)
        except ConfigError:
            return False
        return True

    def free_fields(self, book: RuleBook) -> Mapping[str, FactSpec]:
        """Empty: configurations are EngineConfigs."""
        return {}


def read_config(given: object) -> EngineConfig:
    """An EngineConfig as it is, from a mapping of its sections, or from a model directory or hub id.

    Raises ConfigError.
    """
    if isinstance(given, EngineConfig):
        return given
    if isinstance(given, Mapping):
        return EngineConfig.from_mapping(given)
    if isinstance(given, (str, os.PathLike)):
        return EngineConfig.from_flat(os.fspath(given))
    raise ConfigError(
        f"expected an EngineConfig, a mapping, or a model directory, got {type(given).__name__}"
    )


def _model_of(config: EngineConfig) -> ModelInfo:
    return load_model(config.model_config.model, config.model_config.revision)
