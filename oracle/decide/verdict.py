"""The verdict: which runner serves a configuration, and every reason. Computed once; it travels with the
configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from dodona.oracle.config.engine_config import EngineConfig, JsonObject
from dodona.oracle.decide.choice_log import choice_log
from dodona.oracle.decide.evaluate import Firing
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.language.conditions import Facts, show_value
from dodona.oracle.language.facts import UNKNOWN, FactValue, Unknown
from dodona.oracle.language.rulebook import OWN_SYSTEM, RuleBook, RunnerName
from dodona.oracle.machine.environment import Environment

if TYPE_CHECKING:
    from dodona.oracle.explain.counterfactuals import Counterfactuals
    from dodona.runners.interface import Runner

Evaluator = Literal["durable_rules", "reference"]

KnownValue = bool | int | str | tuple[str, ...] | None
"""A fact's value that is known; null where the fact is unset."""

PREFERRED = "preferred"
FALLBACK = "fallback"


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
    """Facts that aren't known and for want of which the rule fired; empty where it fired surely."""
    remedy: str
    """What would have to hold for the rule not to fire."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a book decides about a set of firings: rule ids in place of reasons."""

    runner: RunnerName | None
    forced: bool
    decided_by: str
    refusals: tuple[str, ...]

    @property
    def kind(self) -> tuple[RunnerName | None, bool]:
        """The runner, and whether its startup is refused: what users feel of an outcome."""
        return self.runner, bool(self.refusals)


def decide(book: RuleBook, fired: Sequence[Firing]) -> Outcome:
    """Fold firings into an outcome. Their order doesn't matter, but that refusals are listed in it.

    The override of lowest precedence decides. Where a require or veto speaks against its runner, the book's
    `forced_refusal` says whether the choice is refused (runner None) or the runner doesn't start; an override
    without a runner refuses the choice itself. Without an override, the first runner by preference that no
    require or veto rules out; else the last, with its refusals.
    """
    rules = [book.by_id[firing.rule] for firing in fired]

    def against(runner: RunnerName, *stages: str) -> tuple[str, ...]:
        return tuple(
            r.id for r in rules if r.kind != "override" and runner in r.runners and r.stage in stages
        )

    overrides = [
        rule
        for rule in rules
        if rule.kind == "override"
        and not (rule.unless_vetoed is not None and against(rule.unless_vetoed, "choice", "both"))
    ]
    if overrides:
        override = min(overrides, key=lambda rule: rule.precedence or 0)
        if not override.runners:
            return Outcome(None, True, override.id, (override.id,))
        runner = override.runners[0]
        if book.forced_refusal == "startup":
            return Outcome(runner, True, override.id, against(runner, "startup", "both"))
        refused = bool(against(runner, "choice", "both"))
        return Outcome(
            None if refused else runner, True, override.id, against(runner, "choice", "startup", "both")
        )
    for runner in book.runners[:-1]:
        if not against(runner, "choice", "both"):
            by = PREFERRED if runner == book.runners[0] else FALLBACK
            return Outcome(runner, False, by, against(runner, "startup"))
    fallback = book.runners[-1]
    return Outcome(fallback, False, FALLBACK, against(fallback, "choice", "startup", "both"))


class Unsupported(BaseModel):
    """Features that each runner lacks for one configuration; `unsupported["v2"]` and `unsupported.v2` are the
    same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    v1: tuple[str, ...] = ()
    v2: tuple[str, ...] = ()

    def __getitem__(self, runner: RunnerName) -> tuple[str, ...]:
        return {"v1": self.v1, "v2": self.v2}[runner]


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
    """Every rule that fired, also those that an override made moot, in the book's order."""
    unsupported: Unsupported
    """Per runner, the features it lacks here."""
    refusals: tuple[Reason, ...]
    """Why the runner that was chosen, or forced, does not start; empty where it does."""
    assumptions: tuple[str, ...]
    """Values that the book put in for facts that aren't known, as text."""
    rulebook: RuleBookName
    evaluated_by: Evaluator
    log: str | None = None
    """What the described system itself logs about this choice; None where it says nothing."""

    @property
    def forced_runner(self) -> RunnerName | None:
        """The runner that an override asked for, also where that was refused; None where none decided, or
        where one refused the choice itself.
        """
        if not self.forced:
            return None
        decided = next(reason for reason in self.reasons if reason.rule == self.decided_by)
        return decided.runners[0] if decided.runners else None

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
        from dodona.oracle.explain.counterfactuals import counterfactuals
        from dodona.oracle.systems.deployment import deployment_of

        return counterfactuals(deployment_of(self, rulebook), runner)

    def build(self) -> Runner:
        """Make the runner. Raises UnsupportedConfiguration where there are refusals, or where the book
        describes another system.
        """
        if self.rulebook.system != OWN_SYSTEM:
            raise UnsupportedConfiguration(
                f"rule book {self.rulebook.name} describes {self.rulebook.system}, whose runners are not "
                "built here; select with rulebook='dodona'",
                verdict=self,
            )
        if self.refusals or self.runner is None:
            raise UnsupportedConfiguration.from_verdict(self)
        if self.runner == "v1":
            from dodona.runners.v1.runner import V1Runner

            return V1Runner(self)
        from dodona.oracle.models.hub import resolve_model
        from dodona.oracle.models.model_info import ModelInfo
        from dodona.runners.limits import resolve_limits
        from dodona.runners.v2.runner import V2Runner

        model_config = self.config.model_config
        model = ModelInfo.load(resolve_model(model_config.model, revision=model_config.revision))
        return V2Runner(self.config, model, resolve_limits(self.config, model))


def make_verdict(
    book: RuleBook,
    config: EngineConfig,
    facts: Facts,
    fired: Sequence[Firing],
    *,
    evaluated_by: Evaluator,
    assumptions: tuple[str, ...] = (),
    vllm_config: Mapping[str, Any] | None = None,
    environment: Environment | None = None,
) -> Verdict:
    """The verdict for firings of `book` on `facts`."""
    outcome = decide(book, fired)
    reasons = {firing.rule: _reason(book, facts, firing) for firing in fired}
    against = [reason for reason in reasons.values() if reason.kind != "override"]
    return Verdict(
        config=config,
        vllm_config=None if vllm_config is None else json.dumps(dict(vllm_config), sort_keys=True),
        environment=environment,
        runner=outcome.runner,
        forced=outcome.forced,
        decided_by=outcome.decided_by,
        reasons=tuple(reasons.values()),
        unsupported=Unsupported(
            v1=tuple(reason.feature for reason in against if "v1" in reason.runners),
            v2=tuple(reason.feature for reason in against if "v2" in reason.runners),
        ),
        refusals=tuple(reasons[rule] for rule in outcome.refusals),
        assumptions=assumptions,
        rulebook=RuleBookName(name=book.rulebook, system=book.system, content_hash=book.content_hash),
        evaluated_by=evaluated_by,
        log=choice_log(
            book,
            facts,
            [book.by_id[f.rule] for f in fired],
            forced_by=outcome.decided_by if outcome.forced else None,
        ),
    )


def _reason(book: RuleBook, facts: Facts, firing: Firing) -> Reason:
    rule = book.by_id[firing.rule]
    known: list[tuple[str, KnownValue]] = []
    unknown: list[str] = []
    for name in rule.reads:
        value = facts.get(name, UNKNOWN)
        if isinstance(value, Unknown):
            unknown.append(name)
        else:
            known.append((name, value))
    return Reason(
        rule=rule.id,
        kind=rule.kind,
        runners=rule.runners,
        feature=rule.show_feature(facts),
        because=rule.because,
        refs=rule.refs,
        refines=rule.refines,
        facts=tuple(known),
        unknown=() if firing.certain else tuple(unknown),
        remedy=rule.remedy(book.facts),
    )


def with_assumptions(book: RuleBook, facts: Facts) -> tuple[Facts, tuple[str, ...]]:
    """The facts with the book's assumptions in place of those unknown, and what was assumed, as text."""
    assumed: Mapping[str, FactValue] = {
        name: value
        for name, value in (book.assume or {}).items()
        if isinstance(facts.get(name, UNKNOWN), Unknown)
    }
    if not assumed:
        return facts, ()
    return {**facts, **assumed}, tuple(
        f"{name} = {show_value(value)} (not known)" for name, value in assumed.items()
    )
