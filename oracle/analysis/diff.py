"""`dodona rules diff`: how the verdicts of two rule books differ, whatever their text looks like."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dodona.oracle.analysis.baseline import baseline_of
from dodona.oracle.analysis.blast import Radius, blast_radius
from dodona.oracle.analysis.consequences import consequence_changes
from dodona.oracle.analysis.diagrams import FALSE
from dodona.oracle.analysis.regions import Kind, Outcomes, Regions, RuleRegion, kinds_differ
from dodona.oracle.analysis.source import Place, SourcedBook, books_of
from dodona.oracle.analysis.space import Space
from dodona.oracle.decide.evaluate import evaluate
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.conditions import Facts, comparisons
from dodona.oracle.language.facts import FactValue
from dodona.oracle.language.rule import Rule
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.language.yaml_source import DataPath
from dodona.oracle.systems.registry import facts_of

Status = Literal["added", "removed", "changed", "renamed"]
Effect = Literal["outcome", "refusals", "unsupported", "reasons"]


@dataclass(frozen=True)
class Decision:
    """What a book decides about some facts."""

    kind: Kind
    decided_by: str
    reasons: tuple[str, ...]
    """Ids of the rules that fire."""
    refusals: tuple[str, ...]
    """Ids of the rules for which the runner doesn't start, or the choice is refused."""
    unsupported: Mapping[str, tuple[str, ...]]
    """Per runner, the features it lacks."""


@dataclass(frozen=True)
class Witness:
    """Facts of which two books say different things."""

    facts: Mapping[str, FactValue]
    """As far as they differ from a plain configuration."""
    all_facts: Mapping[str, FactValue]
    """Every fact of the registry."""
    before: Decision
    after: Decision

    @property
    def effect(self) -> Effect:
        """The first thing that differs."""
        if self.before.kind != self.after.kind:
            return "outcome"
        if self.before.refusals != self.after.refusals:
            return "refusals"
        return "unsupported" if self.before.unsupported != self.after.unsupported else "reasons"


@dataclass(frozen=True)
class OutcomeChange:
    """Facts that have one outcome before and another after."""

    before: Kind
    after: Kind
    known: bool
    """False if the change only occurs with unknown facts."""
    witness: Witness


@dataclass(frozen=True)
class RuleChange:
    """One rule that says something else, or is new or gone."""

    rule: str
    status: Status
    what: tuple[str, ...]
    """How it differs, in words."""
    witness: Witness
    place: Place
    """In the second book; in the first where it is gone."""


@dataclass(frozen=True)
class Difference:
    """All that differs between the verdicts of two books."""

    before: str
    after: str
    outcomes: tuple[OutcomeChange, ...] = ()
    rules: tuple[RuleChange, ...] = ()
    settings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What differs in the text, but in no runner, refusal or unsupported feature."""
    radius: Radius | None = None

    def __bool__(self) -> bool:
        return bool(self.outcomes or self.rules or self.settings)


@dataclass(frozen=True)
class Differences:
    """What differs between two sources: of single books, or of folders."""

    books: tuple[Difference, ...]
    added: tuple[str, ...] = ()
    """Books of the second folder only."""
    removed: tuple[str, ...] = ()
    """Books of the first folder only."""

    def __bool__(self) -> bool:
        return bool(any(self.books) or self.added or self.removed)


def diff_sources(a: str, b: str) -> Differences:
    """How two books, or the books of two folders, differ; see `analysis.source` for what names them.

    Raises ConfigError, and RuleFileError for a malformed book.
    """
    before, after = books_of(a), books_of(b)
    if ("" in before) is not ("" in after):
        raise ConfigError(f"{a} and {b}: one is a folder and the other a book; name two of a kind")
    pairs = [(name, before[name](), after[name]()) for name in before if name in after]
    return Differences(
        tuple(
            diff_books(
                x,
                y,
                before=f"{a.rstrip('/')}/{name}" if name else a,
                after=f"{b.rstrip('/')}/{name}" if name else b,
            )
            for name, x, y in pairs
        ),
        tuple(sorted(set(after) - set(before))),
        tuple(sorted(set(before) - set(after))),
    )


def diff_books(a: SourcedBook, b: SourcedBook, *, before: str = "", after: str = "") -> Difference:
    """How the verdicts of `b` differ from those of `a`. Raises ConfigError for books of two systems.

    before, after: how to call the books; by default their own names.
    """
    if a.book.system != b.book.system:
        raise ConfigError(
            f"{a.book.rulebook} describes {a.book.system}, {b.book.rulebook} describes {b.book.system}: "
            "they read other facts, and can't be compared"
        )
    # The rules of two books that are far apart: some ten seconds.
    comparison = _Comparison(a, b, Regions(_space(a, b, bound=4), a.book))
    found = comparison.run(before or a.book.rulebook, after or b.book.rulebook)
    return dataclasses.replace(found, radius=comparison.radius()) if found else found


def diff_variants(source: SourcedBook, variants: Sequence[SourcedBook]) -> Iterator[Difference]:
    """How the verdicts of each variant differ from those of a book, without the radius. The variants make no
    comparisons that the book doesn't make.

    Many variants take little longer than one.
    """
    regions = Regions(_space(source, bound=4 + len(variants)), source.book)
    for variant in variants:
        yield _Comparison(source, variant, regions).run(source.book.rulebook, variant.book.rulebook)


def decision(book: RuleBook, facts: Facts) -> Decision:
    """What a book decides about facts, by the reference evaluator."""
    found = evaluate(book, facts)
    facts, outcome = found.facts, found.outcome
    fired = [book.by_id[firing.rule] for firing in found.firings]
    against = [rule for rule in fired if rule.kind != "override"]
    unsupported: dict[str, tuple[str, ...]] = {
        runner: tuple(sorted(rule.show_feature(facts) for rule in against if runner in rule.runners))
        for runner in sorted(book.runners)
    }
    return Decision(
        outcome.kind,
        outcome.decided_by,
        tuple(sorted(rule.id for rule in fired)),
        tuple(sorted(outcome.refusals)),
        unsupported,
    )


def _space(*sources: SourcedBook, bound: int) -> Space:
    """A space that tells apart what the books do, as the first has it by default."""
    books = [source.book for source in sources]
    compared = [c for book in books for rule in book.rules for c in comparisons(rule.when)]
    # a runner of any of the books may be forced
    runners = dict.fromkeys(runner for book in books for runner in book.runners)
    facts = facts_of(books[0].system, list(runners))
    return Space(facts, compared, baseline_of(books[0]), unknown=True, bound=bound)


class _Comparison:
    """Two books over one space."""

    def __init__(self, a: SourcedBook, b: SourcedBook, before: Regions) -> None:
        self.a, self.b, self.before, self.space = a, b, before, before.space
        self.after = Regions(self.space, b.book)
        self.outcome_differs = kinds_differ(self.space, self.before.outcomes.kinds, self.after.outcomes.kinds)
        self.refusals_differ = _refusals_differ(self.space, self.before.outcomes, self.after.outcomes)

    def run(self, before: str, after: str) -> Difference:
        rules, notes = self.rules()
        settings, more = self.settings()
        return Difference(
            before, after, tuple(self.outcomes()), tuple(rules), tuple(settings), tuple(notes + more)
        )

    def radius(self) -> Radius:
        return blast_radius(self.before, self.after, self.outcome_differs)

    # --- outcomes

    def outcomes(self) -> Iterator[OutcomeChange]:
        d = self.space.diagrams
        for before, was in self.before.outcomes.kinds.items():
            for after, now in self.after.outcomes.kinds.items():
                region = d.both(was, now)
                if before != after and region != FALSE:
                    known = d.both(region, self.space.known) != FALSE
                    yield OutcomeChange(before, after, known, self.witness(region))

    def witness(self, region: int, *preferred: int) -> Witness:
        """The plainest facts of a region, with known facts if there are such, and of the first of the
        preferred regions that it meets.
        """
        d = self.space.diagrams
        for known in (self.space.known, self.space.possible):
            for part in (*preferred, self.space.possible):
                found = self.space.witness(d.all_of([region, part, known]))
                if found is not None:
                    full = {**self.space.baseline, **found}
                    return Witness(
                        self.space.shown(found),
                        full,
                        decision(self.a.book, full),
                        decision(self.b.book, full),
                    )
        raise AssertionError("an empty region has no witness")

    # --- rules

    def rules(self) -> tuple[list[RuleChange], list[str]]:
        changes: list[RuleChange] = []
        notes: list[str] = []
        gone = [rule for rule in self.a.book.rules if rule.id not in self.b.book.by_id]
        new = [rule for rule in self.b.book.rules if rule.id not in self.a.book.by_id]
        for rule in self.b.book.rules:
            if rule in new:
                old = next((r for r in gone if self.same_but_for_id(r, rule)), None)
                if old is not None:
                    gone.remove(old)
                    changes += self.change(rule, "renamed", (f"was '{old.id}'",), FALSE)
                else:
                    changes += self.change(rule, "added", (_role(rule),), self.after.rules[rule.id].fires)
                continue
            what, region = self.compare(self.a.book.by_id[rule.id], rule, notes)
            if what:
                key = next(iter(what))
                changes += self.change(rule, "changed", tuple(what.values()), region, (key,))
        for rule in gone:
            changes += self.change(rule, "removed", (_role(rule),), self.before.rules[rule.id].fires)
        said = {change.rule for change in changes}
        notes += [
            f"rule {rule.id}: is in one book only, and fires nowhere"
            for rule in (*new, *gone)
            if rule.id not in said
        ]
        return changes, notes

    def change(
        self, rule: Rule, status: Status, what: tuple[str, ...], region: int, path: DataPath = ()
    ) -> list[RuleChange]:
        side = self.before if status == "removed" else self.after
        if status == "renamed":
            region = side.rules[rule.id].fires
        if region == FALSE:
            return []
        source = self.a if status == "removed" else self.b
        witness = self.witness(region, *self.own_effect(rule.id))
        return [RuleChange(rule.id, status, what, witness, source.rule_place(rule.id, path, key=bool(path)))]

    def own_effect(self, rule: str) -> tuple[int, int]:
        """Where outcomes, and refusals, of the two books differ, and this rule by itself makes such a
        difference in one of them.
        """
        d = self.space.diagrams
        outcome = refusals = FALSE
        for base, other in ((self.before, self.after), (self.after, self.before)):
            parts = [part for part in base.rules.values() if part.id != rule]
            if rule in other.rules:
                parts.append(other.rules[rule])
            tried = base.outcomes_of(parts)
            outcome = d.either(outcome, kinds_differ(self.space, base.outcomes.kinds, tried.kinds))
            refusals = d.either(refusals, _refusals_differ(self.space, base.outcomes, tried))
        return d.both(outcome, self.outcome_differs), d.both(refusals, self.refusals_differ)

    def same_but_for_id(self, old: Rule, new: Rule) -> bool:
        was, now = self.before.rules[old.id], self.after.rules[new.id]
        return (
            dataclasses.replace(was, id="", precedence=0) == dataclasses.replace(now, id="", precedence=0)
            and old.feature == new.feature
        )

    def compare(self, old: Rule, new: Rule, notes: list[str]) -> tuple[dict[str, str], int]:
        """How a rule differs, in words by its keys, and where that shows.

        What makes no difference goes to the notes.
        """
        d = self.space.diagrams
        was, now = self.before.rules[old.id], self.after.rules[new.id]
        what: dict[str, str] = {}
        region = d.differ(was.fires, now.fires)
        if region != FALSE:
            more, fewer = d.less(now.fires, was.fires), d.less(was.fires, now.fires)
            extent = "others" if more != FALSE and fewer != FALSE else "more" if more != FALSE else "fewer"
            known = d.both(region, self.space.known) != FALSE
            what["when"] = f"fires for {extent}" + ("" if known else ", where facts aren't known")
        elif old.when != new.when:
            notes.append(f"rule {new.id}: `when` is written otherwise, and means the same")
        acts = self.effect_of(was, now)
        for name, before, after in _attributes(old, new):
            if acts == FALSE:
                notes.append(f"rule {new.id}: {name} {before} → {after}, which changes nothing")
            else:
                what[name] = f"{name} {before} → {after}"
        region = d.either(region, acts)
        if old.feature != new.feature:
            what["feature"] = f"the feature is '{new.feature}', was '{old.feature}'"
            region = region if region != FALSE else d.both(was.fires, now.fires)
        words = [n for n in ("because", "refs", "since", "refines", "examples") if _of(old, n) != _of(new, n)]
        if words:
            notes.append(f"rule {new.id}: other {', '.join(words)}")
        return what, region

    def effect_of(self, was: RuleRegion, now: RuleRegion) -> int:
        """Where the first book would decide otherwise if the rule changed in all but its condition."""
        d = self.space.diagrams
        changed = dataclasses.replace(now, fires=was.fires)
        if changed == was:
            return FALSE
        parts = [changed if part.id == was.id else part for part in self.before.rules.values()]
        region = _outcomes_differ(self.space, self.before.outcomes, self.before.outcomes_of(parts))
        if was.kind != "override" and set(was.runners) != set(now.runners):
            region = d.either(region, was.fires)
        return region

    # --- the rest of the book

    def settings(self) -> tuple[list[str], list[str]]:
        a, b = self.a.book, self.b.book
        found: list[str] = []
        notes: list[str] = []
        if a.environment != b.environment:
            found.append("environment: the variable, or what its values mean")
        if (a.assume or {}) != (b.assume or {}):
            found.append(f"assume: {_assumed(a)} → {_assumed(b)}")
        for name in ("runners", "forced_refusal"):
            was, now = getattr(a, name), getattr(b, name)
            if was != now:
                acts = self.outcome_differs != FALSE or self.refusals_differ != FALSE
                (found if acts else notes).append(f"{name}: {_words(was)} → {_words(now)}")
        texts = ("rulebook", "description", "exceptions")
        notes += [f"{name} differs" for name in texts if getattr(a, name) != getattr(b, name)]
        seen, unseen = consequence_changes(a, b)
        return found + seen, notes + unseen


def _outcomes_differ(space: Space, a: Outcomes, b: Outcomes) -> int:
    d = space.diagrams
    return d.any_of(
        [
            kinds_differ(space, a.kinds, b.kinds),
            *(
                d.differ(a.decided.get(n, FALSE), b.decided.get(n, FALSE))
                for n in sorted({*a.decided, *b.decided})
            ),
            _refusals_differ(space, a, b),
        ]
    )


def _refusals_differ(space: Space, a: Outcomes, b: Outcomes) -> int:
    """Where some rule is among the refusals of one only."""
    d = space.diagrams
    rules = sorted({*a.refused, *b.refused})
    return d.any_of(d.differ(a.refused.get(rule, FALSE), b.refused.get(rule, FALSE)) for rule in rules)


def _attributes(old: Rule, new: Rule) -> list[tuple[str, str, str]]:
    names = ("kind", "runners", "stage", "precedence", "unless_vetoed")
    return [
        (name, _words(_of(old, name)), _words(_of(new, name)))
        for name in names
        if _of(old, name) != _of(new, name)
    ]


def _of(rule: Rule, name: str) -> object:
    value = getattr(rule, name)
    return tuple(sorted(value)) if name == "runners" else value


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _role(rule: Rule) -> str:
    if rule.kind == "override":
        return f"override, chooses {rule.runners[0]}" if rule.runners else "override, refuses the choice"
    return f"{rule.kind} on {', '.join(rule.runners)}"


def _assumed(book: RuleBook) -> str:
    from dodona.oracle.analysis.findings import show_facts

    return show_facts(book.assume) if book.assume else "nothing"
