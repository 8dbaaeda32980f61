"""vLLM as a system: configurations are nested sections of vLLM's own names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.facts import FactSpec, FactValue
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment, assumed_gpu
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.system import RecordedAnswer, System
from dodona.oracle.systems.vllm import cases, releases
from dodona.oracle.systems.vllm.assumptions import completed_sections
from dodona.oracle.systems.vllm.configuration import model_of, read_config, with_overrides
from dodona.oracle.systems.vllm.deployment import VllmDeployment, environment_of
from dodona.oracle.systems.vllm.facts import VLLM_FACTS, default_of, derive_facts


@dataclass(frozen=True)
class VllmSystem(System):
    """vLLM, whose releases have a book each."""

    @property
    def builds_runners(self) -> bool:
        """False: vLLM builds them."""
        return False

    @property
    def reads_words(self) -> bool:
        """True: `vllm serve …`."""
        return True

    @property
    def facts(self) -> Mapping[str, FactSpec]:
        """Every fact by its name."""
        return VLLM_FACTS

    def plain_facts(self, model: ModelInfo) -> Facts:
        """The facts of a model that is served with nothing special asked for, on one NVIDIA GPU."""
        plain: dict[str, Any] = {"model_config": {"multimodal_config": {}}}
        return derive_facts(completed_sections(plain, model, assumed_gpu()), assumed_gpu())

    def section_facts(self, section: str, assume: Mapping[str, FactValue] | None) -> Facts:
        """The facts below an optional section that is configured without any field."""
        return {name: default_of(name, assume) for name in VLLM_FACTS if name.startswith(f"{section}.")}

    def deploy(
        self, given: object, environment: Environment, book: RuleBook, *, model: ModelInfo | None = None
    ) -> VllmDeployment:
        """The deployment of an EngineConfig, a mapping of vLLM's sections, a model directory or hub id, or a
        command line that starts vLLM's server. Variables that the command line sets hold for its environment.

        Raises ConfigError.
        """
        arguments = read_config(given, releases.release_of(book.rulebook))
        sections = arguments.sections
        found = model_of(sections) if model is None else with_overrides(model, sections)
        return VllmDeployment(
            sections,
            found,
            environment_of(environment, arguments.environ, book),
            book,
            arguments.unread,
            arguments.release,
        )

    def deployment_of(self, verdict: Verdict, environment: Environment, book: RuleBook) -> VllmDeployment:
        """The deployment that a verdict is about; reads the model's config.json. Raises ConfigError."""
        whole = verdict.vllm_config
        sections = verdict.config.to_mapping() if whole is None else json.loads(whole)
        return VllmDeployment(sections, model_of(sections), environment, book)

    def accepts(self, fact: FactSpec, value: FactValue) -> bool:
        """Whether the fact is one of the configuration's."""
        return fact.source == "config"

    def free_fields(self, book: RuleBook) -> Mapping[str, FactSpec]:
        """Fields of a configuration on which the book depends, but for those of a draft model."""
        return {
            path: VLLM_FACTS.get(path, VLLM_FACTS[name])
            for name in book.reads
            if VLLM_FACTS[name].source == "config"
            for path in VLLM_FACTS[name].reads
            if "draft_model_config" not in path
        }

    def nearest_book(self, name: str, known: Iterable[str]) -> str:
        """A sentence that names the nearest release's book."""
        return releases.nearest_book(name, known)

    def recorded_facts(self, case: Mapping[str, Any], book: RuleBook) -> Facts:
        """The facts of a recorded case. Raises ConfigError that names the field."""
        return cases.case_facts(book, case)

    def recorded_answer(self, case: Mapping[str, Any]) -> RecordedAnswer:
        """What the release answered to a recorded case. Raises ConfigError that names the field."""
        return cases.recorded_answer(case)
