"""The verdict: which runner serves a configuration, and every reason.

A verdict is a plain value. Its methods only call the functions that work on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import JsonObject
from dodona.oracle.decide.choice_log import choice_log
from dodona.oracle.decide.evaluate import Evaluation
from dodona.oracle.decide.outcome import Firing
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.consequence import Severity
from dodona.oracle.language.facts import UNKNOWN, Unknown
from dodona.oracle.language.rule import RunnerName
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment

if TYPE_CHECKING:
    from dodona.oracle.explain.counterfactuals import Counterfactuals
    from dodona.runners.interface import Runner

Evaluator = Literal["durable_rules", "reference"]

KnownValue = bool | int | str | tuple[str, ...] | None
"""A fact's value that is known; null where the fact is unset."""


class Reason(BaseModel):
    """One rule that fired."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    kind: Literal["override", "require", "veto"]
    runners: tuple[RunnerName, ...]
    """override: the runner it chooses; require, veto: the runners it rules out."""
    feature: str
    """The feature as people know it, with the facts it shows."""
    because: str
    refs: tuple[str, ...]
    refines: tuple[str, ...]
    """Broader rules of which this is a special case."""
    facts: tuple[tuple[str, KnownValue], ...]
    """The facts that the rule compares and their values, without unknown ones."""
    unknown: tuple[str, ...]
    """The unknown facts because of which the rule fired; empty where it fired surely."""
    remedy: str
    """What would have to hold for the rule not to fire."""


class ReportedConsequence(BaseModel):
    """What the chosen runner costs, changes or ignores here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    consequence: str
    """Its id in the book."""
    severity: Severity
    feature: str
    """What is affected, with the facts it shows."""
    because: str
    mend: str | None
    """What can be done about it."""
    refs: tuple[str, ...]
    facts: tuple[tuple[str, KnownValue], ...]
    """The facts that it compares and their values."""


class Unsupported(BaseModel):
    """The features that each runner lacks for one configuration, by the runner's name.

    Every runner of the book has an entry: `unsupported["v2"]`, or `unsupported.v2` for a name that is a plain
    word.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    __pydantic_extra__: dict[str, tuple[str, ...]] = Field(init=False)

    @property
    def runners(self) -> tuple[RunnerName, ...]:
        """The names of the runners."""
        return tuple(self.__pydantic_extra__)

    def __getitem__(self, runner: RunnerName) -> tuple[str, ...]:
        return self.__pydantic_extra__[runner]

    def __hash__(self) -> int:
        return hash(frozenset(self.__pydantic_extra__.items()))

    if TYPE_CHECKING:

        def __getattr__(self, runner: str) -> tuple[str, ...]: ...


class RuleBookName(BaseModel):
    """Which book decided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    system: str
    content_hash: str
    """SHA-256 of the book's content, whatever its layout."""


class Verdict(BaseModel):
    """The decision about one configuration: frozen, and equal after a round trip through JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: EngineConfig
    vllm_config: JsonObject | None = None
    """For a book of vLLM: its whole configuration as it was given; `config` then holds what this runtime's
    configuration has too.
    """
    environment: Environment | None = None
    """The machine that it was decided for, and the runner that was forced there."""
    runner: RunnerName | None
    """The runner that serves; None where a forced choice is refused."""
    forced: bool
    """An override decided."""
    decided_by: str
    """The id of the override that decided, or "preferred", or "fallback"."""
    reasons: tuple[Reason, ...]
    """Every rule that fired, in the book's order, including rules that have no effect because of an
    override."""
    unsupported: Unsupported
    """Per runner, the features it lacks here."""
    refusals: tuple[Reason, ...]
    """Why the runner that was chosen, or forced, does not start; empty where it does."""
    consequences: tuple[ReportedConsequence, ...] = ()
    """What the runner costs, changes or ignores here, in the book's order."""
    assumptions: tuple[str, ...]
    """The values that the book assumed for unknown facts, as text."""
    unread: tuple[str, ...] = ()
    """Arguments that could change this verdict and are not understood, each with the reason."""
    rulebook: RuleBookName
    evaluated_by: Evaluator
    log: str | None = None
    """The line that the described system logs about this choice; None where it logs nothing."""

    @property
    def forced_runner(self) -> RunnerName | None:
        """The runner that an override asked for, also where that was refused; None where none decided, or
        where one refused the choice itself.
        """
        if not self.forced:
            return None
        decided = next(reason for reason in self.reasons if reason.rule == self.decided_by)
        return decided.runners[0] if decided.runners else None

    @property
    def no_runner_can_serve(self) -> bool:
        """Every runner lacks a feature here."""
        return all(self.unsupported[runner] for runner in self.unsupported.runners)

    def explain(self) -> str:
        """Readable text: the runner, who decided, each reason with its feature and references, and what would
        change it.
        """
        from dodona.oracle.explain.text import explain

        return explain(self)

    def counterfactuals(self, runner: RunnerName, *, rulebook: RuleBook | None = None) -> Counterfactuals:
        """Every least set of changes to the configuration after which `runner` is chosen and would start.

        It is empty, and says what blocks, where there is none. Reads the model's config.json again. rulebook:
        the book that decided, where it isn't one that comes with Dodona. Raises ConfigError.
        """
        from dodona.oracle.explain.counterfactuals import counterfactuals_of

        return counterfactuals_of(self, runner, rulebook=rulebook)

    def build(self) -> Runner:
        """Make the runner. Raises UnsupportedConfiguration where there are refusals, or where the book
        describes another system.
        """
        from dodona.runners.build import build_runner

        return build_runner(self)


def make_verdict(
    book: RuleBook,
    config: EngineConfig,
    evaluation: Evaluation,
    *,
    evaluated_by: Evaluator,
    vllm_config: Mapping[str, Any] | None = None,
    environment: Environment | None = None,
    unread: tuple[str, ...] = (),
) -> Verdict:
    """The verdict for an evaluation of `book`.

    vllm_config: the whole configuration as it was given, for a book of vLLM. environment: the machine that
    the evaluation is about. unread: arguments that are not understood.
    """
    facts, outcome = evaluation.facts, evaluation.outcome
    reasons = {firing.rule: _reason(book, facts, firing) for firing in evaluation.firings}
    lacking: dict[str, list[str]] = {runner: [] for runner in sorted(book.runners)}
    for reason in reasons.values():
        if reason.kind != "override":
            for runner in reason.runners:
                lacking[runner].append(reason.feature)
    return Verdict(
        config=config,
        vllm_config=None if vllm_config is None else json.dumps(dict(vllm_config), sort_keys=True),
        environment=environment,
        runner=outcome.runner,
        forced=outcome.forced,
        decided_by=outcome.decided_by,
        reasons=tuple(reasons.values()),
        unsupported=Unsupported.model_validate(lacking),
        refusals=tuple(reasons[rule] for rule in outcome.refusals),
        consequences=_consequences(book, outcome.runner, facts) if book.consequences else (),
        assumptions=evaluation.assumptions,
        unread=unread,
        rulebook=RuleBookName(name=book.rulebook, system=book.system, content_hash=book.content_hash),
        evaluated_by=evaluated_by,
        log=choice_log(
            book,
            facts,
            [book.by_id[firing.rule] for firing in evaluation.firings],
            forced_by=outcome.decided_by if outcome.forced else None,
        ),
    )


def _consequences(book: RuleBook, runner: RunnerName | None, facts: Facts) -> tuple[ReportedConsequence, ...]:
    return tuple(
        ReportedConsequence(
            consequence=found.id,
            severity=found.severity,
            feature=found.show_feature(facts),
            because=found.because,
            mend=found.mend,
            refs=found.refs,
            facts=_known(found.reads, facts)[0],
        )
        for found in book.consequences
        if found.holds(runner, facts)
    )


def _known(reads: Sequence[str], facts: Facts) -> tuple[tuple[tuple[str, KnownValue], ...], tuple[str, ...]]:
    """The facts of these names that are known, with their values, and the names of the others."""
    known: list[tuple[str, KnownValue]] = []
    unknown: list[str] = []
    for name in reads:
        value = facts.get(name, UNKNOWN)
        if isinstance(value, Unknown):
            unknown.append(name)
        else:
            known.append((name, value))
    return tuple(known), tuple(unknown)


def _reason(book: RuleBook, facts: Facts, firing: Firing) -> Reason:
    rule = book.by_id[firing.rule]
    known, unknown = _known(rule.reads, facts)
    return Reason(
        rule=rule.id,
        kind=rule.kind,
        runners=rule.runners,
        feature=rule.show_feature(facts),
        because=rule.because,
        refs=rule.refs,
        refines=rule.refines,
        facts=known,
        unknown=() if firing.certain else unknown,
        remedy=rule.remedy(book.facts),
    )
