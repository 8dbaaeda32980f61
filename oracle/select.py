"""`select_runner` decides which runner serves a configuration. No other code makes this decision.

configuration + environment → system → facts → rules → verdict
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide import evaluate as reference
from dodona.oracle.decide.durable import evaluation as durable
from dodona.oracle.decide.durable.engine import EngineUnavailable
from dodona.oracle.decide.evaluate import Evaluation
from dodona.oracle.decide.verdict import Evaluator, Verdict, make_verdict
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment, check_override
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.books import load_rulebook
from dodona.oracle.systems.deployment import Deployment
from dodona.oracle.systems.own.deployment import OwnDeployment
from dodona.oracle.systems.registry import system_of

Configuration = EngineConfig | Mapping[str, Any] | str | os.PathLike[str] | Sequence[str]
"""What `select_runner` decides for."""


def select_runner(
    config: Configuration,
    *,
    rulebook: str | os.PathLike[str] | RuleBook = "dodona",
    environment: Environment | None = None,
) -> Verdict:
    """Decide which runner serves `config`.

    config: an EngineConfig, a mapping of its sections, or a model directory (or hub id). With a book of vLLM
    also a command line that starts its server, as one text or as a list of words: `vllm serve …`, with
    variables, `python -m`, or `docker run` around it.
    rulebook: the name of a bundled book, the path of a book (ending .yaml), or a RuleBook.
    environment: what to decide for; None: this machine, and the runner that the book's environment variable
    forces.

    Raises ConfigError (configuration, config.json, environment variable), RuleFileError (a malformed book),
    and, with a book of this runtime's own runners, UnsupportedConfiguration with the verdict where no runner
    can serve. A book of another system gives its verdict also then.
    """
    book = load_rulebook(rulebook)
    system = system_of(book.system)
    if environment is None:
        environment = Environment.detect(book=book)
    verdict = verdict_of(system.deploy(config, environment, book), trusted=is_bundled(rulebook))
    if system.builds_runners and (verdict.refusals or verdict.runner is None):
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
    """The verdict for an EngineConfig whose model is known already.

    model: None: nothing is known of it. Raises as `verdict_of` does.
    """
    return verdict_of(OwnDeployment(config, model, environment, book), trusted=trusted)


def verdict_of(deployment: Deployment, *, trusted: bool = False) -> Verdict:
    """The verdict for a deployment: no input or output but the trial of a book that isn't `trusted`.

    Raises ConfigError where the environment forces a runner that the book doesn't have.
    """
    book = deployment.book
    check_override(deployment.environment, book)
    known = deployment.known_facts()
    facts = deployment.with_assumptions(known)
    evaluation, evaluated_by = _evaluate(book, facts, trusted)
    return make_verdict(
        book,
        deployment.engine_config(),
        dataclasses.replace(evaluation, assumptions=deployment.assumptions(known)),
        evaluated_by=evaluated_by,
        vllm_config=deployment.foreign_config(),
        environment=deployment.environment,
        unread=deployment.unread,
    )


def _evaluate(book: RuleBook, facts: Facts, trusted: bool) -> tuple[Evaluation, Evaluator]:
    try:
        return durable.evaluate(book, facts, trusted=trusted), "durable_rules"
    except EngineUnavailable:
        return reference.evaluate(book, facts), "reference"


def is_bundled(rulebook: str | os.PathLike[str] | RuleBook) -> bool:
    """Whether Dodona contains the book. Other books are tried in a child process before the rule engine
    evaluates them."""
    return isinstance(rulebook, str) and not rulebook.endswith((".yaml", ".yml"))
