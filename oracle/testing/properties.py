"""What should hold of every rule book, as hypothesis properties; a book that breaks one on purpose declares
it.

`dodona rules check` proves the same over all facts. These tests try them by the reference evaluator, one set
of facts after another, so that neither has to be believed.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dodona.oracle.analysis.baseline import baseline_of
from dodona.oracle.analysis.findings import show_facts
from dodona.oracle.analysis.space import sections_of
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.evaluate import evaluate, firings
from dodona.oracle.decide.outcome import Outcome, decide
from dodona.oracle.decide.verdict import Verdict, make_verdict
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.language.rule import Rule
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.books import load_rulebook
from dodona.oracle.systems.system import OVERRIDE
from dodona.oracle.testing.deployments import check_counterfactuals
from dodona.oracle.testing.strategies import FactMapping, candidate_values

Book = str | os.PathLike[str] | RuleBook
"""A book by name, by path (ending .yaml), or as it is."""


@dataclass(frozen=True)
class Property:
    """Something that should hold of every rule book."""

    name: str
    says: str
    check: Callable[[Subject, st.DataObject], None]
    """Draws facts and raises AssertionError where the property does not hold for them."""
    exception: str | None = None
    """The name by which a book may declare that it breaks this."""


class Subject:
    """A book with what the properties need of it."""

    def __init__(self, book: RuleBook) -> None:
        self.book = book
        self.plain: Mapping[str, FactValue] = baseline_of(book)
        sections = {section for name in book.reads for section in sections_of(name, book.facts)}
        names = sorted({*book.reads, *sections} | ({OVERRIDE} & set(book.facts)))
        self.values = {name: candidate_values(book.facts[name], book, unknown=False) for name in names}
        self._sections = {name: sections_of(name, book.facts) for name in names}
        plain = {name: self.plain[name] for name in names}
        # plain values first: hypothesis looks for the simplest facts, and takes the first for that
        every = st.fixed_dictionaries(
            {name: st.sampled_from([plain[name], *values]) for name, values in self.values.items()}
        )
        pairs = [(name, value) for name, values in self.values.items() for value in values]
        # a few features at a time, since where all are random some override nearly always decides
        few = st.lists(st.sampled_from(pairs), max_size=6).map(lambda changes: {**plain, **dict(changes)})
        self._known = st.one_of(few, few, every).map(self.possible)

    @functools.cached_property
    def content_hash_again(self) -> str:
        """The content hash of the book after a way through JSON."""
        data = json.loads(self.book.model_dump_json())
        return RuleBook.model_validate(data, context=self.book.facts).content_hash

    @property
    def preferred(self) -> str:
        """The runner that the book prefers."""
        return self.book.runners[0]

    def known_facts(self, data: st.DataObject) -> FactMapping:
        """All facts that the book reads, all of them known, and possible together."""
        return data.draw(self._known)

    def facts(self, data: st.DataObject) -> FactMapping:
        """The same, up to three of them unknown."""
        found = self.known_facts(data)
        for name in data.draw(st.lists(st.sampled_from(sorted(found)), max_size=3)):
            found[name] = UNKNOWN
        return found

    def possible(self, facts: FactMapping) -> FactMapping:
        """The facts, with those of sections that aren't configured null."""
        return {
            name: None if any(facts[section] is None for section in self._sections[name]) else value
            for name, value in facts.items()
        }

    def outcome(self, facts: Facts) -> Outcome:
        """What the book decides."""
        return decide(self.book, firings(self.book, facts))

    def against(self, facts: Facts, runner: str | None = None, *, startup: bool = True) -> set[str]:
        """Requires and vetoes that fire: on a runner, or on any. startup: also those that only count then."""
        rules = [self.book.by_id[firing.rule] for firing in firings(self.book, facts)]
        return {
            rule.id
            for rule in rules
            if rule.kind != "override"
            and (runner is None or runner in rule.runners)
            and (startup or rule.stage != "startup")
        }

    def shown(self, facts: Facts) -> str:
        """What of the facts differs from a plain configuration, for messages."""
        return show_facts({k: v for k, v in facts.items() if v != self.plain.get(k)})


def _total(subject: Subject, data: st.DataObject) -> None:
    facts = subject.facts(data)
    outcome, book = subject.outcome(facts), subject.book
    fired = {firing.rule for firing in firings(book, facts)}
    said = subject.shown(facts)
    if outcome.runner is None:
        assert outcome.forced, f"nobody forces a runner, and there is none: {said}"
        assert outcome.refusals, f"the choice is refused without a reason: {said}"
    else:
        assert outcome.runner in book.runners
    assert set(outcome.refusals) <= fired, f"a refusal by a rule that doesn't fire: {said}"
    assert outcome.forced is (outcome.decided_by in book.by_id), said


def _deterministic(subject: Subject, data: st.DataObject) -> None:
    facts = subject.facts(data)
    backwards = dict(reversed(facts.items()))
    assert subject.outcome(facts) == subject.outcome(backwards) == subject.outcome(facts)


def _order_free(subject: Subject, data: st.DataObject) -> None:
    facts, book = subject.facts(data), subject.book
    shuffled: tuple[Rule, ...] = tuple(data.draw(st.permutations(book.rules)))
    other = book.model_copy(update={"rules": shuffled})
    ours, theirs = subject.outcome(facts), decide(other, firings(other, facts))
    said = subject.shown(facts)
    assert (ours.runner, ours.forced, ours.decided_by) == (theirs.runner, theirs.forced, theirs.decided_by), (
        said
    )
    assert set(ours.refusals) == set(theirs.refusals), said


def _monotone(subject: Subject, data: st.DataObject) -> None:
    book, preferred = subject.book, subject.preferred
    against = [rule for rule in book.rules if rule.kind != "override" and preferred in rule.runners]
    if not against:
        return
    facts = subject.known_facts(data)
    if subject.outcome(facts).runner in (preferred, None):
        return
    before = subject.against(facts, preferred)
    rule = data.draw(st.sampled_from(against))
    for name in rule.reads:
        if book.facts[name].source != "config":
            continue
        for value in subject.values[name]:
            added = {**facts, name: value}
            after = subject.against(added, preferred)
            if subject.possible(added) == added and before < after:
                assert subject.outcome(added).runner != preferred, (
                    f"{name} = {value!r} turns another runner into {preferred}, which lacks "
                    f"{', '.join(sorted(after - before))}: {subject.shown(facts)}"
                )


def _user_decides(subject: Subject, data: st.DataObject) -> None:
    if OVERRIDE not in subject.book.reads:
        return
    facts = subject.facts(data)
    for runner in subject.book.runners:
        outcome = subject.outcome({**facts, OVERRIDE: runner})
        assert outcome.runner in (runner, None), (
            f"the user forces {runner} and gets {outcome.runner}: {subject.shown(facts)}"
        )


def _preferred_by_default(subject: Subject, data: st.DataObject) -> None:
    """A configuration, without the features for which rules fire, gets the preferred runner."""
    facts = subject.facts(data)
    if OVERRIDE in facts:
        facts[OVERRIDE] = None
    for _ in range(len(facts) + 1):
        blamed = {name for rule in subject.against(facts) for name in subject.book.by_id[rule].reads}
        if not blamed:
            break
        # what a feature's removal leaves may be of a section that goes with it
        facts = subject.possible({**facts, **{name: subject.plain[name] for name in blamed}})
    assert not blamed, f"something fires for a plain configuration too: {', '.join(sorted(blamed))}"
    assert subject.outcome(facts).kind == (subject.preferred, False), (
        f"nothing speaks against {subject.preferred}, and it isn't chosen: {subject.shown(facts)}"
    )


def _refused_with_every_reason(subject: Subject, data: st.DataObject) -> None:
    """Where a forced runner is refused, or the last one, all that speaks against it is named."""
    facts, book = subject.facts(data), subject.book
    outcome, said = subject.outcome(facts), subject.shown(facts)
    if outcome.runner is not None and not outcome.forced:
        assert subject.against(facts, outcome.runner, startup=False) <= set(outcome.refusals), said
    if outcome.forced and (chosen := book.by_id[outcome.decided_by].runners):
        at_choice = subject.against(facts, chosen[0], startup=False)
        if book.forced_refusal == "choice":
            assert (outcome.runner is None) is bool(at_choice), said
            assert set(outcome.refusals) == subject.against(facts, chosen[0]), said
        else:
            assert outcome.runner == chosen[0], said


def _unknown_counts_against(subject: Subject, data: st.DataObject) -> None:
    facts = subject.known_facts(data)
    name = data.draw(st.sampled_from(sorted(facts)))
    lost = subject.against(facts) - subject.against({**facts, name: UNKNOWN})
    assert not lost, f"not knowing {name} silences {', '.join(sorted(lost))}: {subject.shown(facts)}"


def _json_round_trip(subject: Subject, data: st.DataObject) -> None:
    book, facts = subject.book, subject.facts(data)
    verdict = make_verdict(
        book, EngineConfig.from_flat("model"), evaluate(book, facts), evaluated_by="reference"
    )
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    assert subject.content_hash_again == book.content_hash


_ALL = (
    Property("total", "every facts get a runner, or a refusal that is named", _total),
    Property("deterministic", "equal facts get equal outcomes", _deterministic),
    Property("order-free", "the order of rules changes no outcome", _order_free),
    Property(
        "monotone",
        "adding one feature that the preferred runner lacks never turns another runner into it",
        _monotone,
        "monotone",
    ),
    Property(
        "user-decides",
        "where the user forces a runner, that runner is chosen or the choice is refused",
        _user_decides,
        "user-decides",
    ),
    Property(
        "preferred-by-default",
        "without the features for which rules fire, the preferred runner is chosen",
        _preferred_by_default,
        "preferred-by-default",
    ),
    Property(
        "refused-with-every-reason",
        "a refusal names all that speaks against the runner",
        _refused_with_every_reason,
    ),
    Property(
        "unknown-counts-against",
        "not knowing a fact silences no require or veto",
        _unknown_counts_against,
    ),
    Property(
        "counterfactuals",
        "a set of changes that leads to a runner does so, and no subset of it does",
        lambda subject, data: check_counterfactuals(subject.book, data),
    ),
    Property("json-round-trip", "books and verdicts are equal after a way through JSON", _json_round_trip),
)

PROPERTIES: Final[Mapping[str, Property]] = MappingProxyType({item.name: item for item in _ALL})
"""What should hold of every rule book, by name."""


def check_property(book: Book, name: str, *, max_examples: int = 100) -> bool:
    """Try a property on random facts. Returns False, untried, where the book declares that it breaks it.

    Raises AssertionError, with the facts, where it does not hold; KeyError for an unknown name.
    """
    found, loaded = PROPERTIES[name], load_rulebook(book)
    if found.exception in {exception.property for exception in loaded.exceptions}:
        return False
    subject = Subject(loaded)

    @settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.data())
    def trial(data: st.DataObject) -> None:
        found.check(subject, data)

    trial()
    return True


def check_properties(book: Book, *, max_examples: int = 100) -> tuple[str, ...]:
    """Try every property. Returns the names of those tried: all but the book's declared exceptions."""
    loaded = load_rulebook(book)
    return tuple(name for name in PROPERTIES if check_property(loaded, name, max_examples=max_examples))


def _without(book: RuleBook, rule: str) -> RuleBook:
    """The book less one rule, and less those that refine it."""
    rules = tuple(r for r in book.rules if r.id != rule and rule not in r.refines)
    fields = {name: getattr(book, name) for name in RuleBook.model_fields}
    return RuleBook.model_validate({**fields, "rules": rules}, context=book.facts)


class RuleBookTests:
    """A class of tests for pytest to collect: subclass it as `Test…` and say which book.

    class TestMyBook(RuleBookTests):
        book = "rules/mine.yaml"
    """

    book: ClassVar[Any]
    """The book's path (ending .yaml) or name."""
    max_examples: ClassVar[int] = 100
    """Random facts for each property."""

    def test_examples_hold(self) -> None:
        """Every example of every rule comes out as it says."""
        from dodona.oracle.analysis.source import load_sourced
        from dodona.oracle.authoring.coverage import run_examples

        failed = [f for f in run_examples(load_sourced(str(self.book))).findings if f.level == "error"]
        assert not failed, "\n".join(map(str, failed))

    def test_proved(self) -> None:
        """What `dodona rules check` proves."""
        from dodona.oracle.analysis.check import check_book
        from dodona.oracle.analysis.source import load_sourced

        report = check_book(lambda: load_sourced(str(self.book)))
        assert not report.failed, "\n".join(map(str, report.findings))

    def test_formatted(self) -> None:
        """The book's file is in canonical form, and formatting it again changes neither text nor verdicts."""
        path = Path(self.book)
        if path.suffix not in (".yaml", ".yml"):
            return
        from dodona.oracle.authoring.formatting import format_file

        before, after = format_file(path, write=False)
        assert before == after, f"{path}: run `dodona rules fmt {path}`"

    def test_total(self) -> None:
        """See PROPERTIES."""
        check_property(self.book, "total", max_examples=self.max_examples)

    def test_deterministic(self) -> None:
        """See PROPERTIES."""
        check_property(self.book, "deterministic", max_examples=self.max_examples)

    def test_order_free(self) -> None:
        """See PROPERTIES."""
        check_property(self.book, "order-free", max_examples=self.max_examples)

    def test_monotone(self) -> None:
        """See PROPERTIES."""
        check_property(self.book, "monotone", max_examples=self.max_examples)

    def test_user_decides(self) -> None:
        """See PROPERTIES."""
        check_property(self.book, "user-decides", max_examples=self.max_examples)

    def test_preferred_by_default(self) -> None:
        """See PROPERTIES."""
        check_property(self.book, "preferred-by-default", max_examples=self.max_examples)

    def test_refused_with_every_reason(self) -> None:
        """See PROPERTIES."""
        check_property(self.book, "refused-with-every-reason", max_examples=self.max_examples)

    def test_unknown_counts_against(self) -> None:
        """See PROPERTIES."""
        check_property(self.book, "unknown-counts-against", max_examples=self.max_examples)

    def test_differences(self) -> None:
        """The book does not differ from itself, and what a rule's removal changes shows in each witness."""
        from dodona.oracle.analysis.diff import decision, diff_books, diff_variants
        from dodona.oracle.analysis.source import SourcedBook, load_sourced

        source = load_sourced(str(self.book))
        assert not diff_books(source, source)
        rules = source.book.rules
        without_each = [SourcedBook(_without(source.book, rule.id), source.resolved) for rule in rules]
        found_each = diff_variants(source, without_each)
        for rule, without, found in zip(rules, without_each, found_each, strict=True):
            assert found, f"{rule.id}: its removal changes nothing"
            witnesses = [c.witness for c in found.outcomes] + [c.witness for c in found.rules]
            for facts in (witness.all_facts for witness in witnesses):
                assert decision(source.book, facts) != decision(without.book, facts), show_facts(facts)

    def test_counterfactuals(self) -> None:
        """See PROPERTIES."""
        check_property(self.book, "counterfactuals", max_examples=self.max_examples)

    def test_json_round_trip(self) -> None:
        """See PROPERTIES."""
        check_property(self.book, "json-round-trip", max_examples=self.max_examples)
