"""`System`: an LLM engine whose choice between runners rule books describe."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.facts import FactSpec, FactValue
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.deployment import Deployment

OVERRIDE: Final = "environment.override"
"""The fact by which the user forces a runner; its values are the book's runners."""


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """What a release of a system answered to a recorded case."""

    runner: str | None
    """None where the choice itself raised; then nothing else is recorded."""
    starts: bool
    unsupported: Mapping[str, frozenset[str] | None]
    """Features that each runner lacks; None where the release has no such list."""
    why: tuple[str, ...]
    """The recorded messages."""


@dataclass(frozen=True)
class System(ABC):
    """How configurations of one engine are read, and what facts they have.

    A rule book names its system; everything that depends on it is a method here.
    """

    name: str
    """As rule books write it in `system`."""

    @property
    @abstractmethod
    def builds_runners(self) -> bool:
        """Whether its runners are built here: then a refused configuration is an error."""

    @property
    @abstractmethod
    def reads_words(self) -> bool:
        """Whether it has a command line of its own, whose words `deploy` takes as they are."""

    # --- facts

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, FactSpec]:
        """Every fact by its name."""

    def facts_for(self, runners: Sequence[str] | None) -> Mapping[str, FactSpec]:
        """The same for a book with these runners: they are the values of `environment.override`.

        runners: None: any text is a value.
        """
        domain = None if runners is None else tuple(sorted(runners))
        override = self.facts[OVERRIDE]
        if override.domain == domain:
            return self.facts
        return MappingProxyType({**self.facts, OVERRIDE: dataclasses.replace(override, domain=domain)})

    @abstractmethod
    def plain_facts(self, model: ModelInfo) -> Facts:
        """The facts of a model that is served with nothing special asked for, on one NVIDIA GPU."""

    @abstractmethod
    def section_facts(self, section: str, assume: Mapping[str, FactValue] | None) -> Facts:
        """The facts below an optional section that is configured without any field. assume: the book's."""

    # --- configurations

    @abstractmethod
    def deploy(
        self, given: object, environment: Environment, book: RuleBook, *, model: ModelInfo | None = None
    ) -> Deployment:
        """The deployment that a configuration describes.

        given: an EngineConfig, a mapping of sections, a model directory or hub id, and, where the system has
        a command line of its own, its words. model: what config.json says; None: it is read.

        Raises ConfigError.
        """

    @abstractmethod
    def deployment_of(self, verdict: Verdict, environment: Environment, book: RuleBook) -> Deployment:
        """The deployment that a verdict of a book of this system is about; reads the model's config.json.

        Raises ConfigError.
        """

    @abstractmethod
    def accepts(self, fact: FactSpec, value: FactValue) -> bool:
        """Whether a configuration can give a fact a value, whatever the model and the machine."""

    @abstractmethod
    def free_fields(self, book: RuleBook) -> Mapping[str, FactSpec]:
        """Fields of a configuration on which the book depends, by path, with the fact whose values they take.

        Empty where configurations are EngineConfigs, whose fields have types of their own.
        """

    # --- books and recorded cases

    def nearest_book(self, name: str, known: Iterable[str]) -> str:
        """A sentence that names the book nearest to `name`, of those known; "" where none is near."""
        return ""

    def recorded_facts(self, case: Mapping[str, Any], book: RuleBook) -> Facts:
        """The facts of a recorded case. Raises ConfigError that names the field, and for a system of which
        no cases are recorded.
        """
        raise self._nothing_recorded()

    def recorded_answer(self, case: Mapping[str, Any]) -> RecordedAnswer:
        """What the release answered to a recorded case. Raises ConfigError that names the field."""
        raise self._nothing_recorded()

    def _nothing_recorded(self) -> ConfigError:
        return ConfigError(
            f"the rule book describes {self.name}, of which no cases are recorded; replay vLLM's cases with "
            "a book of vLLM, for instance vllm/0.25.1"
        )


def load_model(name: str, revision: str | None = None) -> ModelInfo:
    """What the config.json of a model directory or hub id says. Raises ConfigError."""
    return ModelInfo.load(locate_or_download(name, revision=revision))
