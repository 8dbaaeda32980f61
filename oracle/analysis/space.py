"""The space of all facts as a finite set. Values that no comparison separates form one class, so nothing is
lost.

Of a whole number that is what lies between the constants it is compared with, of a text each constant and
one other text, of a list which of its constants it has; null and unknown are values of their own. Every
combination of such values is in the space, but for what can't be: where a section is not configured (null),
its fields are null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dodona.oracle.analysis.diagrams import FALSE, MAX_NODES, MAX_WORK, Diagrams
from dodona.oracle.language.conditions import AnyOf, Compare, Condition, Facts, Not, compare
from dodona.oracle.language.facts import MAX_INT, UNKNOWN, FactSpec, FactValue, Unknown
from dodona.oracle.systems.system import OVERRIDE

ONE_FACT: Final = 10**6
"""Cost of a fact that is not as in the baseline: more than all preferences among values together."""

_SOURCE_COST = {"config": 0, "model": 20, "environment": 40}


@dataclass(frozen=True, slots=True)
class Truth:
    """Where a condition holds, and where it does not; with unknown facts there is a third part."""

    holds: int
    fails: int


@dataclass(frozen=True)
class _Scalar:
    """A fact with one variable; its values stand for classes of values."""

    spec: FactSpec
    variable: int
    compared: tuple[Compare, ...]
    values: tuple[FactValue, ...]
    index: Mapping[tuple[object, ...], int]

    @property
    def variables(self) -> range:
        return range(self.variable, self.variable + 1)


@dataclass(frozen=True)
class _List:
    """A list fact: a variable for what it is (one of `kinds`), and one for each group of entries that all
    comparisons treat alike: whether the list has one of them.
    """

    spec: FactSpec
    variable: int
    kinds: tuple[str, ...]
    baseline: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    fresh: tuple[str, ...]
    """A list that has none of the groups' entries."""

    @property
    def variables(self) -> range:
        return range(self.variable, self.variable + 1 + len(self.groups))

    def group(self, entry: str) -> int | None:
        return next((i for i, group in enumerate(self.groups) if entry in group), None)


class Space:
    """All facts that some comparisons tell apart, as assignments of a `Diagrams`.

    compared: every comparison that will be asked. baseline: plain values of facts, from which the distance of
    witnesses is measured. unknown: whether facts may be unknown. bound: how many times as much as `Diagrams`
    allows by default is looked at before the analysis ends with `TooEntangled`.
    """

    def __init__(
        self,
        registry: Mapping[str, FactSpec],
        compared: Iterable[Compare],
        baseline: Mapping[str, FactValue],
        *,
        unknown: bool = False,
        bound: int = 1,
    ) -> None:
        self.registry = registry
        self.baseline = baseline
        self.unknown = unknown
        by_fact: dict[str, list[Compare]] = {}
        for comparison in compared:
            for section in sections_of(comparison.fact, registry):
                by_fact.setdefault(section, [])
            by_fact.setdefault(comparison.fact, []).append(comparison)
        if OVERRIDE in registry:
            by_fact.setdefault(OVERRIDE, []).extend(
                Compare(OVERRIDE, "eq", value) for value in registry[OVERRIDE].domain or ()
            )
        self._facts: dict[str, _Scalar | _List] = {}
        sizes: list[int] = []
        for name, comparisons in by_fact.items():
            made: _Scalar | _List
            if registry[name].type == "list":
                made = self._list(registry[name], tuple(dict.fromkeys(comparisons)), len(sizes))
                sizes += [len(made.kinds), *[2] * len(made.groups)]
            else:
                made = self._scalar(registry[name], tuple(dict.fromkeys(comparisons)), len(sizes))
                sizes.append(len(made.values))
            self._facts[name] = made
        self.diagrams = Diagrams(sizes, max_nodes=bound * MAX_NODES, max_work=bound * MAX_WORK)
        self._costs = [row for fact in self._facts.values() for row in self._cost_rows(fact)]
        self.possible = self._possible()
        """The whole space."""
        self.known = self.diagrams.less(self.possible, self.diagrams.any_of(self._unknown_parts()))
        """The part of it without unknown facts."""

    @property
    def names(self) -> tuple[str, ...]:
        """The facts that are told apart."""
        return tuple(self._facts)

    # --- making it

    def _scalar(self, spec: FactSpec, compared: tuple[Compare, ...], variable: int) -> _Scalar:
        base = self.baseline.get(spec.name, UNKNOWN)
        chosen: dict[tuple[object, ...], FactValue] = {}
        for value in _candidates(spec, compared, base):
            chosen.setdefault(_signature(compared, value), value)
        if self.unknown:
            chosen[_signature(compared, UNKNOWN)] = UNKNOWN
        values = tuple(chosen.values())
        index = {signature: i for i, signature in enumerate(chosen)}
        return _Scalar(spec, variable, compared, values, index)

    def _list(self, spec: FactSpec, compared: tuple[Compare, ...], variable: int) -> _List:
        lists = [c.value for c in compared if c.op == "any_in" and isinstance(c.value, tuple)]
        by_use: dict[tuple[bool, ...], list[str]] = {}
        for entry in dict.fromkeys(str(entry) for value in lists for entry in value):
            by_use.setdefault(tuple(entry in value for value in lists), []).append(entry)
        groups = tuple(tuple(group) for group in by_use.values())
        constants = {entry for group in groups for entry in group}
        others = [v for v in spec.domain if v not in constants] if spec.domain is not None else None
        fresh = (_fresh(spec.name, constants),) if others is None else tuple(others[:1])
        base = self.baseline.get(spec.name, UNKNOWN)
        kinds = ["baseline"] if isinstance(base, tuple) else []
        kinds += ["null"] if spec.nullable else []
        kinds += ["some"]
        kinds += ["unknown"] if self.unknown else []
        return _List(spec, variable, tuple(kinds), base if isinstance(base, tuple) else (), groups, fresh)

    def _cost_rows(self, fact: _Scalar | _List) -> list[list[int]]:
        extra = ONE_FACT + _SOURCE_COST[fact.spec.source]
        base = self.baseline.get(fact.spec.name, UNKNOWN)
        if isinstance(fact, _List):
            usual = {"baseline": 0, "null": extra + 100, "some": extra, "unknown": extra + 200}
            row = [usual[kind] for kind in fact.kinds]
            if "baseline" not in fact.kinds:
                row[fact.kinds.index("null") if base is None and "null" in fact.kinds else 0] = 0
            return [row, *([0, 1] for _ in fact.groups)]
        row = [extra + rank + (200 if value is UNKNOWN else 0) for rank, value in enumerate(fact.values)]
        plain = fact.index.get(_signature(fact.compared, base), 0)
        row[plain] = 0
        return [row]

    def _possible(self) -> int:
        d = self.diagrams
        parts = []
        for name, fact in self._facts.items():
            if isinstance(fact, _List):
                some = d.values(fact.variable, [fact.kinds.index("some")])
                parts += [d.either(some, d.values(v, [0])) for v in fact.variables[1:]]
            for section in sections_of(name, self.registry):
                parts.append(d.either(d.negate(self._null(section)), self._null(name)))
        return d.all_of(parts)

    def _null(self, name: str) -> int:
        fact = self._facts[name]
        if isinstance(fact, _List):
            return self.diagrams.values(fact.variable, [fact.kinds.index("null")])
        return self.diagrams.values(fact.variable, [i for i, v in enumerate(fact.values) if v is None])

    def _unknown_parts(self) -> list[int]:
        d = self.diagrams
        parts = []
        for fact in self._facts.values():
            if isinstance(fact, _List):
                parts.append(d.values(fact.variable, [i for i, k in enumerate(fact.kinds) if k == "unknown"]))
            else:
                parts.append(d.values(fact.variable, [i for i, v in enumerate(fact.values) if v is UNKNOWN]))
        return parts

    # --- conditions

    def truth(self, condition: Condition, assume: Mapping[str, FactValue] | None = None) -> Truth:
        """Where a condition holds and where it fails; `assume` stands in for unknown facts."""
        d = self.diagrams
        if isinstance(condition, Compare):
            return self._compare(condition, assume or {})
        if isinstance(condition, Not):
            inner = self.truth(condition.part, assume)
            return Truth(inner.fails, inner.holds)
        parts = [self.truth(part, assume) for part in condition.parts]
        if isinstance(condition, AnyOf):
            return Truth(d.any_of(p.holds for p in parts), d.all_of(p.fails for p in parts))
        return Truth(d.all_of(p.holds for p in parts), d.any_of(p.fails for p in parts))

    def _compare(self, comparison: Compare, assume: Mapping[str, FactValue]) -> Truth:
        d = self.diagrams
        fact = self._facts[comparison.fact]
        stand_in = assume.get(comparison.fact, UNKNOWN)
        if isinstance(fact, _Scalar):
            results = [compare(comparison, stand_in if v is UNKNOWN else v) for v in fact.values]
            return Truth(*(d.values(fact.variable, _where(results, wanted)) for wanted in (True, False)))
        by_kind: Mapping[str, FactValue] = {
            "baseline": fact.baseline,
            "null": None,
            "unknown": stand_in,
            "some": fact.fresh,
        }
        results = [compare(comparison, by_kind[kind]) for kind in fact.kinds]
        holds, fails = (d.values(fact.variable, _where(results, wanted)) for wanted in (True, False))
        if comparison.op == "any_in" and isinstance(comparison.value, tuple):
            some = d.values(fact.variable, [fact.kinds.index("some")])
            has = d.any_of(
                d.values(fact.variable + 1 + i, [1])
                for i, group in enumerate(fact.groups)
                if group[0] in comparison.value
            )
            holds, fails = d.either(holds, d.both(some, has)), d.less(fails, d.both(some, has))
        return Truth(holds, fails)

    def where(self, name: str, values: Iterable[FactValue]) -> int:
        """Where a fact that is no list has one of the values (each told apart from all others)."""
        fact = self._facts[name]
        assert isinstance(fact, _Scalar)
        wanted = [_signature(fact.compared, value) for value in values]
        return self.diagrams.values(fact.variable, [i for s, i in fact.index.items() if s in wanted])

    def given(self, facts: Facts) -> int:
        """Where the facts given have the values given; the others are free. `FALSE` where that can't be."""
        d = self.diagrams
        parts = []
        for name, value in facts.items():
            fact = self._facts.get(name)
            if fact is None:
                continue
            chosen = self._encode(fact, value)
            if chosen is None:
                return FALSE
            if isinstance(fact, _List) and isinstance(value, tuple) and self._is_baseline(fact, value):
                # both ways to write the baseline's list
                parts.append(d.either(self._cube(fact, chosen), d.values(fact.variable, [0])))
            else:
                parts.append(self._cube(fact, chosen))
        return d.both(d.all_of(parts), self.possible)

    def _cube(self, fact: _Scalar | _List, chosen: Sequence[int]) -> int:
        return self.diagrams.all_of(
            self.diagrams.values(v, [value]) for v, value in zip(fact.variables, chosen, strict=True)
        )

    @staticmethod
    def _is_baseline(fact: _List, value: tuple[str, ...]) -> bool:
        if "baseline" not in fact.kinds:
            return False
        return {fact.group(e) for e in value} - {None} == {fact.group(e) for e in fact.baseline} - {None}

    # --- facts and assignments

    def _encode(self, fact: _Scalar | _List, value: FactValue) -> list[int] | None:
        if isinstance(fact, _Scalar):
            found = fact.index.get(_signature(fact.compared, value))
            return None if found is None else [found]
        kind = "null" if value is None else "unknown" if isinstance(value, Unknown) else "some"
        if kind not in fact.kinds:
            return None
        has = {fact.group(str(entry)) for entry in value} if isinstance(value, tuple) else set()
        return [fact.kinds.index(kind), *(int(i in has) for i in range(len(fact.groups)))]

    def assignment(self, facts: Facts) -> tuple[int, ...] | None:
        """The assignment of facts (those left out are unknown); None where the space has none."""
        found: list[int] = []
        for name, fact in self._facts.items():
            part = self._encode(fact, facts.get(name, UNKNOWN))
            if part is None:
                return None
            found += part
        return tuple(found)

    def contains(self, region: int, facts: Facts) -> bool:
        """Whether facts are in a region (and in the space)."""
        found = self.assignment(facts)
        return found is not None and self.diagrams.contains(self.diagrams.both(region, self.possible), found)

    def witness(self, region: int) -> dict[str, FactValue] | None:
        """The facts in a region that differ in the fewest facts from the baseline; None for an empty region.

        Holds all facts of the space.
        """
        found = self.diagrams.cheapest(self.diagrams.both(region, self.possible), self._costs)
        if found is None:
            return None
        facts: dict[str, FactValue] = {}
        for name, fact in self._facts.items():
            first = found[fact.variable]
            if isinstance(fact, _Scalar):
                facts[name] = fact.values[first]
                continue
            kind = fact.kinds[first]
            has = [g[0] for g, v in zip(fact.groups, fact.variables[1:], strict=True) if found[v]]
            entries = {"null": None, "unknown": UNKNOWN, "baseline": fact.baseline}
            facts[name] = entries[kind] if kind in entries else (tuple(has) or fact.fresh)
        return facts

    def shown(self, facts: Facts) -> dict[str, FactValue]:
        """The facts that differ from the baseline, less those that are null with their section."""
        missing = object()
        return {
            name: value
            for name, value in facts.items()
            if value != self.baseline.get(name, missing)
            and not (
                value is None and any(facts.get(s, missing) is None for s in sections_of(name, self.registry))
            )
        }

    def steps(self, name: str) -> list[tuple[int, int]]:
        """(variable, value) of each known class of a fact that is no list."""
        fact = self._facts[name]
        if isinstance(fact, _List):
            return []
        return [(fact.variable, i) for i, value in enumerate(fact.values) if value is not UNKNOWN]


def sections_of(name: str, registry: Mapping[str, FactSpec]) -> list[str]:
    """The sections that must be configured for a fact not to be null."""
    spec = registry[name]
    if not spec.nullable or not spec.reads:
        return []
    return [
        section
        for section, other in registry.items()
        if other.section and section != name and all(path.startswith(f"{section}.") for path in spec.reads)
    ]


def generic_baseline(registry: Mapping[str, FactSpec]) -> dict[str, FactValue]:
    """Plain values for a registry of which nothing else is known: null where that may be, else the least."""
    plain: dict[str, FactValue] = {}
    for name, spec in registry.items():
        if spec.nullable:
            plain[name] = None
        elif spec.type == "bool":
            plain[name] = False
        elif spec.type == "int":
            low, high = spec.minimum, spec.maximum
            plain[name] = low if low is not None else 0 if high is None else min(0, high)
        elif spec.type == "str":
            plain[name] = spec.domain[0] if spec.domain else "other"
        else:
            plain[name] = ()
    return plain


def _where(results: Sequence[bool | None], wanted: bool) -> list[int]:
    return [i for i, result in enumerate(results) if result is wanted]


def _signature(compared: Sequence[Compare], value: FactValue) -> tuple[object, ...]:
    return value is None, value is UNKNOWN, *(compare(c, value) for c in compared)


def _candidates(spec: FactSpec, compared: Sequence[Compare], base: FactValue) -> list[FactValue]:
    """Values that reach every class, plain ones first."""
    constants: list[bool | int | str] = []
    for comparison in compared:
        if comparison.op != "is_set":
            value = comparison.value
            constants += value if isinstance(value, tuple) else (value,)
    found: list[FactValue] = [] if base is UNKNOWN else [base]
    if spec.type == "bool":
        found += [True] if spec.section else [True, False]
    elif spec.type == "int":
        low = -MAX_INT if spec.minimum is None else spec.minimum
        high = MAX_INT if spec.maximum is None else spec.maximum
        numbers = {n for c in constants if isinstance(c, int) for n in (c - 1, c, c + 1)}
        middle: int = base if isinstance(base, int) else max(low, min(high, 1))
        allowed = sorted(n for n in numbers | {middle} if low <= n <= high)
        allowed.sort(key=lambda n: abs(n - middle))
        found += allowed
    else:
        texts = [str(c) for c in constants]
        if spec.domain is not None:
            found += spec.domain
        else:
            found += [*dict.fromkeys(texts), _fresh(spec.name, set(texts))]
    return [*found, None] if spec.nullable else found


def _fresh(name: str, taken: set[str]) -> str:
    """A text that is none of those taken."""
    text = "OtherForCausalLM" if name.rsplit(".", 1)[-1].startswith("architecture") else "other"
    while text in taken:
        text += "-too"
    return text
