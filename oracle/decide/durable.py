"""A rule book evaluated by durable-rules, inside the part of it that holds.

durable-rules is fast and, for conjunctions of comparisons over one flat fact, exact; elsewhere ordinary input
breaks it or crashes the process (docs/oracle.md). So a book is compiled to that part alone: each condition
becomes the clauses of its disjunctive normal form, one durable rule per clause; facts become booleans and
bounded integers, total and typed; membership tests are computed here and handed over as booleans; texts are
numbered. Null and unknown are a fact's state.

Sure firings and firings that unknown facts leave open are separate rulesets; the latter are asked only where
a fact is unknown. Each ruleset has a sentinel that always fires. Anything unexpected raises EngineFault.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dodona.oracle.decide.evaluate import Firing
from dodona.oracle.errors import DodonaError
from dodona.oracle.language.conditions import (
    Clause,
    Compare,
    Facts,
    Literal,
    compare,
    disjunctive_normal_form,
)
from dodona.oracle.language.facts import UNKNOWN, FactSpec, FactValue, Unknown
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.language.yaml_source import MAX_INTEGER

MAX_CLAUSES_PER_RULESET: Final = 47
"""One less than the engine's safe number of siblings: the sentinel is a sibling too."""
MAX_FIELDS: Final = 200
TRIAL_SECONDS: Final = 20.0

_NULL, _SET, _UNKNOWN = 0, 1, 2
_SENTINEL = "sentinel"
_RESERVED = ("sid", "id", "kind")

Field = bool | int
Definition = dict[str, dict[str, Any]]
"""Rules of one ruleset in the engine's JSON form, without `run`."""


class EngineFault(DodonaError):
    """The rule engine did something that no rule book explains; its answer was thrown away."""


class EngineUnavailable(DodonaError):
    """The rule engine can't be imported, or failed a book's trial; the reference evaluator serves instead."""


# --- encoding
# --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A clause as comparisons of fields: (field, durable operator or "" for equality, constant)."""

    tests: tuple[tuple[str, str, Field], ...]


@dataclass(frozen=True, slots=True)
class Ruleset:
    """One durable ruleset: its clauses by durable rule name → rule id, and the fields that it reads."""

    name: str
    clauses: Mapping[str, str]
    fields: tuple[str, ...]
    definition: Definition


class Encoder:
    """Turns facts into the flat, total, typed fields that a book's clauses compare."""

    def __init__(self, facts: Mapping[str, FactSpec]) -> None:
        self.specs = facts
        self.codes: dict[str, dict[str, int]] = {}
        self.makers: dict[str, Callable[[Facts], Field]] = {}

    def encode(self, literal: Literal, *, certain: bool) -> list[tuple[tuple[str, str, Field], ...]]:
        """Alternatives (each a conjunction) under which a literal surely holds, or under which it isn't
        surely false.
        """
        comparison = literal.compare
        state = self._state(comparison.fact)
        alternatives: list[tuple[tuple[str, str, Field], ...]] = []
        null_holds = bool(compare(comparison, None)) is not literal.negated
        if comparison.op == "is_set":
            set_holds = bool(comparison.value) is not literal.negated
            if set_holds:
                alternatives.append(((state, "", _SET),))
        else:
            alternatives.append(((state, "", _SET), self._test(comparison, literal.negated)))
        if null_holds:
            alternatives.append(((state, "", _NULL),))
        if not certain:
            alternatives.append(((state, "", _UNKNOWN),))
        return alternatives

    def _state(self, fact: str) -> str:
        field = f"{_field(fact)}__state"

        def make(facts: Facts) -> Field:
            value = facts.get(fact, UNKNOWN)
            return _UNKNOWN if isinstance(value, Unknown) else _NULL if value is None else _SET

        self.makers.setdefault(field, make)
        return field

    def _test(self, comparison: Compare, negated: bool) -> tuple[str, str, Field]:
        fact, op, constant = comparison.fact, comparison.op, comparison.value
        if op in ("in", "not_in", "any_in"):
            # the engine has no safe membership test: computed here, by the defining comparison
            field = f"{_field(fact)}__{op}_{_code(self.codes.setdefault(f'{fact} {op}', {}), repr(constant))}"
            self.makers.setdefault(
                field, lambda facts: _known(facts.get(fact)) and bool(compare(comparison, facts.get(fact)))
            )
            return field, "", not negated
        kind = self.specs[fact].type
        field = _field(fact)
        if kind == "bool":
            assert isinstance(constant, bool)
            self.makers.setdefault(field, lambda facts: facts.get(fact) is True)
            return field, "", constant if (op == "eq") is not negated else not constant
        if kind == "str":
            codes = self.codes.setdefault(fact, {})
            code = _code(codes, str(constant))
            self.makers.setdefault(field, lambda facts: codes.get(str(facts.get(fact)), 0))
            return field, "" if (op == "eq") is not negated else "$neq", code
        assert isinstance(constant, int)
        self.makers.setdefault(field, lambda facts: _bounded(facts.get(fact)))
        return field, (_NEGATED if negated else _PLAIN)[op], constant


_PLAIN = {"eq": "", "ne": "$neq", "lt": "$lt", "le": "$lte", "gt": "$gt", "ge": "$gte"}
_NEGATED = {"eq": "$neq", "ne": "", "lt": "$gte", "le": "$gt", "gt": "$lte", "ge": "$lt"}


def _field(fact: str) -> str:
    return fact.replace(".", "__")


def _code(codes: dict[str, int], text: str) -> int:
    return codes.setdefault(text, len(codes) + 1)


def _known(value: FactValue) -> bool:
    return value is not None and not isinstance(value, Unknown)


def _bounded(value: FactValue) -> int:
    """Beyond what the engine holds exactly, any number compares like the bound: constants stay below it."""
    if not isinstance(value, int):
        return 0
    return max(-MAX_INTEGER - 1, min(MAX_INTEGER + 1, value))


def fnv1a(text: str) -> int:
    """32-bit FNV-1a, by which alone the engine tells field names apart."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


# --- compiling
# -------------------------------------------------------------------------------------------------------


class CompiledBook:
    """A book's rulesets and the encoder of their facts; pure data until an engine registers it."""

    def __init__(self, book: RuleBook, facts: Mapping[str, FactSpec] | None = None) -> None:
        self.encoder = Encoder(book.facts if facts is None else facts)
        prefix = f"book_{book.content_hash}"
        self.certain = self._rulesets(book, f"{prefix}_sure", certain=True)
        self.possible = self._rulesets(book, f"{prefix}_open", certain=False)
        self._check_names()

    @property
    def rulesets(self) -> tuple[Ruleset, ...]:
        """All rulesets."""
        return (*self.certain, *self.possible)

    def fields(self, ruleset: Ruleset, facts: Facts) -> dict[str, Field]:
        """The fields that one ruleset compares, from facts."""
        makers = self.encoder.makers
        return {name: makers[name](facts) for name in ruleset.fields}

    def _rulesets(self, book: RuleBook, prefix: str, *, certain: bool) -> tuple[Ruleset, ...]:
        clauses: list[tuple[str, str, tuple[tuple[str, str, Field], ...]]] = []
        for number, rule in enumerate(book.rules):
            if not certain and rule.kind == "override":
                continue
            for tests in self._expand(disjunctive_normal_form(rule.fires_when), certain=certain):
                clauses.append((f"r{number}c{len(clauses)}", rule.id, tests))
        groups: list[list[tuple[str, str, tuple[tuple[str, str, Field], ...]]]] = []
        for clause in clauses:
            if not groups or not _fits(groups[-1], clause):
                groups.append([])
            groups[-1].append(clause)
        return tuple(_ruleset(f"{prefix}_{i}", group) for i, group in enumerate(groups))

    def _expand(
        self, clauses: Sequence[Clause], *, certain: bool
    ) -> list[tuple[tuple[str, str, Field], ...]]:
        expanded: dict[frozenset[tuple[str, str, Field]], None] = {}
        for clause in clauses:
            options = [self.encoder.encode(literal, certain=certain) for literal in clause]
            for choice in itertools.product(*options):
                tests = frozenset(test for part in choice for test in part)
                if not _contradicts(tests):
                    expanded[tests] = None
                if len(expanded) > 4096:
                    raise EngineUnavailable("a rule has too many clauses for the rule engine")
        # a clause that another implies would make a rule fire twice for one cause: harmless, but slower
        kept: list[frozenset[tuple[str, str, Field]]] = []
        for tests in sorted(expanded, key=len):
            if not any(other <= tests for other in kept):
                kept.append(tests)
        return [
            tuple(sorted(tests, key=lambda t: (t[0].removesuffix("__state"), len(t[0]) * -1, repr(t))))
            for tests in kept
        ]

    def _check_names(self) -> None:
        names = [*self.encoder.makers, *_RESERVED]
        seen: dict[int, str] = {}
        for name in names:
            other = seen.setdefault(fnv1a(name), name)
            if other != name:
                raise EngineUnavailable(f"the rule engine can't tell the fields '{other}' and '{name}' apart")


def _contradicts(tests: frozenset[tuple[str, str, Field]]) -> bool:
    states: dict[str, Field] = {}
    return any(
        states.setdefault(field, value) != value
        for field, op, value in tests
        if op == "" and field.endswith("__state")
    )


def _fits(
    group: list[tuple[str, str, tuple[tuple[str, str, Field], ...]]],
    clause: tuple[str, str, tuple[tuple[str, str, Field], ...]],
) -> bool:
    fields = {test[0] for _, _, tests in (*group, clause) for test in tests}
    return len(group) < MAX_CLAUSES_PER_RULESET and len(fields) <= MAX_FIELDS - len(_RESERVED)


def _ruleset(name: str, clauses: list[tuple[str, str, tuple[tuple[str, str, Field], ...]]]) -> Ruleset:
    definition: Definition = {}
    fields: dict[str, None] = {}
    for rule_name, _, tests in clauses:
        parts: list[dict[str, Any]] = [{"kind": "cfg"}]
        for field, op, value in tests:
            fields[field] = None
            parts.append({op: {field: value}} if op else {field: value})
        definition[rule_name] = {"all": [{"m": {"$and": parts}}]}
    definition[_SENTINEL] = {"all": [{"m": {"kind": "cfg"}}]}
    return Ruleset(name, {rule_name: rule for rule_name, rule, _ in clauses}, tuple(fields), definition)


# --- running
# ---------------------------------------------------------------------------------------------------------


class Engine:
    """The process's one durable-rules host. All calls hold its lock: the engine's own threads are never
    started.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._host: Any = None
        self._unavailable: str | None = None
        self._registered: set[str] = set()
        self._fired: list[str] = []
        self._sids = itertools.count()

    def register(self, rulesets: Sequence[Ruleset]) -> None:
        """Compile rulesets, each once. Raises EngineUnavailable where durable-rules can't be imported,
        EngineFault.
        """
        with self._lock:
            self._register(rulesets)

    def fire(self, ruleset: Ruleset, fields: Mapping[str, Field]) -> list[str]:
        """Names of the durable rules that fire for one fact, without the sentinel. Raises EngineFault."""
        with self._lock:
            self._register([ruleset])
            sid = f"s{next(self._sids)}"
            fired: list[str] = []
            self._fired = fired
            try:
                state = self._host.assert_fact(ruleset.name, {"sid": sid, "kind": "cfg", **fields})
                if state is None or "exception" in state:
                    raise EngineFault(f"no state: {(state or {}).get('exception')}")
                if fired.count(_SENTINEL) != 1 or len(set(fired)) != len(fired):
                    raise EngineFault(f"wrong number of firings: {fired}")
            except BaseException as error:
                # whatever state is left in this host, the next evaluation gets another one
                self._host = None
                self._registered.clear()
                if isinstance(error, Exception):
                    raise EngineFault(f"the rule engine failed on {ruleset.name}: {error}") from error
                raise
            finally:
                # without a firing there is no state, and deleting it would free an uninitialised pointer
                if self._host is not None:
                    self._host.delete_state(ruleset.name, sid)
        return [name for name in fired if name != _SENTINEL]

    def _register(self, rulesets: Sequence[Ruleset]) -> None:
        host = self._make_host()
        for ruleset in rulesets:
            if ruleset.name in self._registered:
                continue
            definition = {
                name: {**json.loads(json.dumps(rule)), "pri": i + 1, "run": self._action(name)}
                for i, (name, rule) in enumerate(ruleset.definition.items())
            }
            try:
                host.register_rulesets({ruleset.name: definition})
            except Exception as error:
                self._host = None
                self._registered.clear()
                raise EngineFault(f"the rule engine refused to compile {ruleset.name}: {error}") from error
            self._registered.add(ruleset.name)

    def _action(self, name: str) -> Callable[[Any], None]:
        # one positional parameter exactly: the engine inspects the signature
        def run(c: Any) -> None:
            self._fired.append(name)

        return run

    def _make_host(self) -> Any:
        if self._unavailable is not None:
            raise EngineUnavailable(self._unavailable)
        if self._host is None:
            try:
                self._host = _import_host()()
            except Exception as error:
                self._unavailable = f"durable-rules can't be imported: {error}"
                raise EngineUnavailable(self._unavailable) from error
        return self._host


def _import_host() -> type[Any]:
    """durable-rules' Host without its two dispatch threads, which race with assertions and lose firings."""
    from durable.engine import Host

    class QuietHost(Host):  # type: ignore[misc]
        def _run(self) -> None:
            pass

    return QuietHost


_engine = Engine()
_books: dict[str, CompiledBook | EngineUnavailable] = {}
_books_lock = threading.Lock()


def _forget_after_fork() -> None:
    # the parent's engine may have been in the middle of an evaluation
    global _engine, _books_lock
    _engine = Engine()
    _books_lock = threading.Lock()
    _books.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def firings(book: RuleBook, facts: Facts, *, trusted: bool) -> tuple[Firing, ...]:
    """The same firings as `reference.firings`, by durable-rules. `facts` values must fit their
    specifications.

    A book is compiled once per content and process; one that isn't `trusted` is first tried in a child
    process. Raises EngineUnavailable where durable-rules can't be imported or the trial failed, EngineFault
    where it misbehaves.
    """
    compiled = _compiled(book, trusted=trusted)
    sure = {
        ruleset.clauses[name]
        for ruleset in compiled.certain
        for name in _engine.fire(ruleset, compiled.fields(ruleset, facts))
    }
    possible: set[str] = set()
    if any(isinstance(facts.get(name, UNKNOWN), Unknown) for name in book.reads):
        for ruleset in compiled.possible:
            names = _engine.fire(ruleset, compiled.fields(ruleset, facts))
            possible.update(ruleset.clauses[name] for name in names)
    return tuple(Firing(r.id, certain=r.id in sure) for r in book.rules if r.id in sure or r.id in possible)


def _compiled(book: RuleBook, *, trusted: bool) -> CompiledBook:
    found = _books.get(book.content_hash)
    if found is None:
        with _books_lock:
            found = _books.get(book.content_hash)
            if found is None:
                found = _compile(book, trusted=trusted)
                _books[book.content_hash] = found
    if isinstance(found, EngineUnavailable):
        raise EngineUnavailable(str(found))
    return found


def _compile(book: RuleBook, *, trusted: bool) -> CompiledBook | EngineUnavailable:
    try:
        compiled = CompiledBook(book)
        if not trusted:
            try_in_child(compiled)
        _engine.register(compiled.rulesets)
    except EngineUnavailable as error:
        return error
    return compiled


# --- trial
# -----------------------------------------------------------------------------------------------------------


def try_in_child(compiled: CompiledBook, *, seconds: float = TRIAL_SECONDS) -> None:
    """Compile and run a book in a child process. Raises EngineUnavailable where that crashes, hangs or
    misbehaves.
    """
    job = {
        "path": sys.path,
        "rulesets": [[r.name, dict(r.clauses), list(r.fields), r.definition] for r in compiled.rulesets],
    }
    program = (
        "import json, sys; job = json.load(sys.stdin); sys.path[:] = job['path'];"
        "from dodona.oracle.decide.durable import run_trial; run_trial(job['rulesets'])"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineUnavailable(f"the rule engine took more than {seconds:g} s over this book") from None
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise EngineUnavailable(f"the rule engine failed on this book in a trial: {last[0]}")


def run_trial(rulesets: Sequence[tuple[str, dict[str, str], list[str], Definition]]) -> None:
    """The child's part of `try_in_child`: register every ruleset and run each on several facts."""
    engine = Engine()
    parsed = [Ruleset(name, clauses, tuple(fields), rules) for name, clauses, fields, rules in rulesets]
    engine.register(parsed)
    for ruleset in parsed:
        booleans = {
            field
            for rule in ruleset.definition.values()
            for part in rule["all"][0]["m"].get("$and", ())
            for field, value in part.items()
            if isinstance(value, bool)
        }
        for number in range(8):
            fields: dict[str, Field] = {
                field: bool(number % 2) if field in booleans else number for field in ruleset.fields
            }
            engine.fire(ruleset, fields)
