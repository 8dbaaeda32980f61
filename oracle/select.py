"""`select_runner`: a configuration goes in, a verdict comes out. The one place where the decision is made."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide import evaluate as reference
from dodona.oracle.decide.durable import evaluation as durable
from dodona.oracle.decide.durable.engine import EngineUnavailable
from dodona.oracle.decide.evaluate import Evaluation
from dodona.oracle.decide.verdict import Evaluator, Verdict, make_verdict
from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.rulebook import OWN_SYSTEM, RuleBook
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.hub import resolve_model
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.books import load_rulebook
from dodona.oracle.systems.own.facts import derive_facts
from dodona.oracle.systems.registry import VLLM


def select_runner(
    config: EngineConfig | Mapping[str, Any] | str | os.PathLike[str] | Sequence[str],
    *,
    rulebook: str | os.PathLike[str] | RuleBook = "dodona",
    environment: Environment | None = None,
) -> Verdict:
    """Decide which runner serves `config`.

    config: an EngineConfig, a mapping of its sections, or a model directory (or hub id). With a book of vLLM
    also a `vllm serve …` command line, as one text or as a list of words.
    rulebook: the name of a bundled book, the path of a book (ending .yaml), or a RuleBook.
    environment: what to decide for, in place of what `Environment.detect()` finds.

    Raises ConfigError (configuration, config.json, environment variable), RuleFileError (a malformed book),
    and, with a book of this runtime's own runners, UnsupportedConfiguration with the verdict where no runner
    can serve. A book of another system gives its verdict also then.
    """
    book = load_rulebook(rulebook)
    if book.system == VLLM:
        return _vllm_verdict(config, book, environment, trusted=is_bundled(rulebook))
    engine_config = as_engine_config(config)
    if environment is None:
        environment = Environment.detect()
    name = engine_config.model_config.model
    model = ModelInfo.load(resolve_model(name, revision=engine_config.model_config.revision))
    verdict = verdict_for(engine_config, model, environment, book, trusted=is_bundled(rulebook))
    if book.system == OWN_SYSTEM and (verdict.refusals or verdict.runner is None):
        raise UnsupportedConfiguration.from_verdict(verdict)
    return verdict


def verdict_for(
    config: EngineConfig,
    model: ModelInfo | None,
    environment: Environment,
    book: RuleBook,
    *,
    trusted: bool = False,
) -> Verdict:
    """The verdict for what was already read; no input or output but a trial of a book that isn't `trusted`.

    `model` None means that nothing is known of the model. Never raises for a well-formed configuration.
    """
    found, evaluated_by = _evaluate(book, derive_facts(config, model, environment), trusted)
    return make_verdict(book, config, found, evaluated_by=evaluated_by, environment=environment)


def _vllm_verdict(
    config: object, book: RuleBook, environment: Environment | None, *, trusted: bool
) -> Verdict:
    from dodona.oracle.systems.vllm.select import describe, detected, read_config

    arguments = read_config(config)
    environment = detected(book) if environment is None else environment
    found = describe(arguments, book, environment)
    evaluation, evaluated_by = _evaluate(book, found.facts, trusted)
    # a vLLM deployment is described with assumptions of its own
    assumptions = (*found.assumptions, *evaluation.assumptions)
    return make_verdict(
        book,
        found.config,
        dataclasses.replace(evaluation, assumptions=assumptions),
        evaluated_by=evaluated_by,
        vllm_config=found.sections,
        environment=environment,
    )


def _evaluate(book: RuleBook, facts: Facts, trusted: bool) -> tuple[Evaluation, Evaluator]:
    try:
        return durable.evaluate(book, facts, trusted=trusted), "durable_rules"
    except EngineUnavailable:
        return reference.evaluate(book, facts), "reference"


def is_bundled(rulebook: str | os.PathLike[str] | RuleBook) -> bool:
    """Whether a book comes with Dodona: only then is the rule engine trusted with it untried."""
    return isinstance(rulebook, str) and not rulebook.endswith((".yaml", ".yml"))


def as_engine_config(config: object) -> EngineConfig:
    """An EngineConfig from what `select_runner` takes. Raises ConfigError."""
    if isinstance(config, EngineConfig):
        return config
    if isinstance(config, Mapping):
        return EngineConfig.from_mapping(config)
    if isinstance(config, (str, Path)) or hasattr(config, "__fspath__"):
        return EngineConfig.from_flat(os.fspath(config))
    raise ConfigError(
        f"expected an EngineConfig, a mapping, or a model directory, got {type(config).__name__}"
    )
