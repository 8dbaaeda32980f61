"""The rule engine's evaluation against the reference, and its confinement."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given

from dodona.oracle.decide import evaluate as reference
from dodona.oracle.decide.durable import encoding, trial
from dodona.oracle.decide.durable import engine as durable_engine
from dodona.oracle.decide.durable import evaluation as durable
from dodona.oracle.decide.durable.compiling import CompiledBook, fnv1a
from dodona.oracle.decide.durable.engine import Engine, EngineFault, EngineUnavailable, Ruleset
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.language.normal_forms import disjunctive_normal_form
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.books import bundled_rulebook
from dodona.oracle.systems.own.facts import FACTS
from dodona.oracle.testing import RandomFacts, facts

durable_rules = pytest.mark.skipif(sys.version_info >= (3, 13), reason="durable-rules has no Python 3.13")
BOOK = bundled_rulebook("dodona")


def book_of(*conditions: Any, kind: str = "veto") -> RuleBook:
    """A book with one rule for each condition; examples are not looked at."""
    return RuleBook.model_validate(
        {
            "rulebook": "trial",
            "description": "For tests.",
            "system": "dodona",
            "runners": ["v2", "v1"],
            "rules": [
                {
                    "id": f"rule-{i}",
                    "kind": kind,
                    "runners": ["v2"],
                    "when": condition,
                    "feature": "a feature",
                    "because": "A test.",
                    "since": "2026-01-31",
                    "examples": {
                        "fires": [{"model_config.is_moe": True}],
                        "passes": [{"model_config.is_moe": False}],
                    },
                }
                for i, condition in enumerate(conditions)
            ],
        },
        context=FACTS,
    )


@durable_rules
def test_dodona_book_agrees_with_the_reference() -> None:
    draw = RandomFacts(BOOK, seed=20261121)
    for _ in range(3000):
        values = draw()
        assert durable.firings(BOOK, values, trusted=True) == reference.firings(BOOK, values), values


@durable_rules
@given(facts(BOOK))
def test_dodona_book_agrees_with_the_reference_on_strange_facts(values: dict[str, Any]) -> None:
    assert durable.firings(BOOK, values, trusted=True) == reference.firings(BOOK, values)


OPERATORS_BOOK = book_of(
    {"cache_config.block_size": 16},
    {"cache_config.block_size": {"ne": 16}},
    {"cache_config.block_size": {"lt": 16}},
    {"cache_config.block_size": {"le": 2**53 - 1}},
    {"cache_config.block_size": {"gt": 2**53 - 1}},
    {"model_config.num_queries_per_kv": {"ge": 2}},
    {"not": {"model_config.num_queries_per_kv": {"ge": 2}}},
    {"model_config.num_queries_per_kv": {"in": [1, 3]}},
    {"not": {"model_config.num_queries_per_kv": {"not_in": [1, 3]}}},
    {"speculative_config.method": {"ne": "eagle"}},
    {"not": {"speculative_config.method": {"in": ["eagle", "None", "UNKNOWN", 'a"b\\', "é✓"]}}},
    {"speculative_config.method": {"is_set": False}},
    {"not": {"speculative_config.method": {"is_set": False}}},
    {"model_config.architectures": {"any_in": ["A", "B"]}},
    {"not": {"model_config.architectures": {"any_in": ["B", "C"]}}},
    {"speculative_config.parallel_drafting": {"ne": True}},
    {"not": {"speculative_config.parallel_drafting": True}},
    {"all": [{"model_config.is_moe": True}, {"not": {"model_config.is_moe": True}}]},
    {"any": [{"model_config.is_moe": True}, {"not": {"model_config.is_moe": True}}]},
    {
        "not": {
            "any": [
                {"all": [{"lora_config": {"is_set": True}}, {"cache_config.block_size": {"ge": 8}}]},
                {"all": [{"environment.platform": "cuda"}, {"speculative_config.method": "eagle"}]},
            ]
        }
    },
)
"""Each operator, plain and negated, on each type; contradictions and tautologies of unknown facts."""


@durable_rules
def test_every_operator_agrees_with_the_reference() -> None:
    draw = RandomFacts(OPERATORS_BOOK, seed=7)
    for _ in range(1500):
        values = draw()
        expected = reference.firings(OPERATORS_BOOK, values)
        assert durable.firings(OPERATORS_BOOK, values, trusted=True) == expected, values


def test_requires_and_vetoes_of_one_condition_are_opposite() -> None:
    conditions = [rule.when for rule in OPERATORS_BOOK.rules]
    requires = book_of(*({"not": c} for c in map(_data, conditions)), kind="require")
    draw = RandomFacts(OPERATORS_BOOK, seed=11, unknown=False)
    for _ in range(100):
        values = draw()
        assert reference.firings(OPERATORS_BOOK, values) == reference.firings(requires, values)


def _data(condition: Any) -> dict[str, Any]:
    from dodona.oracle.language.condition_text import to_data

    return to_data(condition)


def test_every_ruleset_stays_inside_the_engine_limits() -> None:
    for book in (BOOK, OPERATORS_BOOK, book_of(*({"cache_config.block_size": i} for i in range(1, 200)))):
        for ruleset in CompiledBook(book).rulesets:
            assert len(ruleset.definition) <= 48
            assert len(ruleset.fields) <= 197
            for rule in ruleset.definition.values():
                (pattern,) = rule["all"]
                ((_, expression),) = pattern.items()
                for part in expression.get("$and", [expression]):
                    ((key, value),) = part.items()
                    if key.startswith("$"):
                        assert key in ("$neq", "$lt", "$lte", "$gt", "$gte")
                        ((_, value),) = value.items()
                    assert value == "cfg" or isinstance(value, (bool, int))
                    assert not isinstance(value, int) or abs(value) < 2**53


@durable_rules
def test_many_clauses_go_into_several_rulesets() -> None:
    book = book_of(*({"cache_config.block_size": i} for i in range(1, 121)))
    compiled = CompiledBook(book)
    assert [len(r.clauses) for r in compiled.certain] == [47, 47, 26]
    for size in (1, 47, 48, 120, 121):
        fired = durable.firings(book, {"cache_config.block_size": size}, trusted=True)
        assert [f.rule for f in fired] == ([f"rule-{size - 1}"] if size <= 120 else [])


@given(facts(OPERATORS_BOOK))
def test_facts_become_booleans_and_bounded_integers(values: dict[str, Any]) -> None:
    compiled = CompiledBook(OPERATORS_BOOK)
    for ruleset in compiled.rulesets:
        for name, value in compiled.fields(ruleset, values).items():
            assert name.replace("_", "").isalnum()
            assert isinstance(value, bool) or (isinstance(value, int) and abs(value) <= 2**53)


def test_field_names_that_the_engine_confuses_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fnv1a("liquid") == fnv1a("costarring")
    colliding = {"model_config.is_moe": "liquid", "cache_config.block_size": "costarring"}
    monkeypatch.setattr(encoding, "_field", colliding.get)
    with pytest.raises(EngineUnavailable, match="'liquid__state' and 'costarring__state'"):
        CompiledBook(book_of({"model_config.is_moe": True}, {"cache_config.block_size": 3}))


def test_the_hash_is_fnv1a() -> None:
    # published test vectors of 32-bit FNV-1a
    assert [fnv1a(text) for text in ("", "a", "foobar")] == [0x811C9DC5, 0xE40C292C, 0xBF9CF968]


# --- faults -----------------------------------------------------------------------------------------------


def _ruleset(*names: str) -> Ruleset:
    pattern = {"all": [{"m": {"kind": "cfg"}}]}
    return Ruleset(
        "trial", {name: name for name in names}, (), {**dict.fromkeys(names, pattern), "sentinel": pattern}
    )


class FakeHost:
    """A host that answers as it is told, in place of durable-rules."""

    def __init__(self, fires: list[str], state: dict[str, Any] | None) -> None:
        self.fires, self.state, self.deleted = fires, state, 0
        self.rules: dict[str, Any] = {}

    def register_rulesets(self, rulesets: dict[str, Any]) -> None:
        (self.rules,) = rulesets.values()

    def assert_fact(self, ruleset: str, fact: dict[str, Any]) -> dict[str, Any] | None:
        for name in self.fires:
            self.rules[name]["run"](None)
        return self.state

    def delete_state(self, ruleset: str, sid: str) -> None:
        self.deleted += 1


@pytest.mark.parametrize(
    ("fires", "state"),
    [
        (["a", "a", "sentinel"], {}),
        (["a"], {}),
        (["sentinel", "sentinel"], {}),
        (["a", "sentinel"], None),
        (["a", "sentinel"], {"exception": "caught exception"}),
    ],
    ids=["fired twice", "no sentinel", "sentinel twice", "no state", "exception in an action"],
)
def test_what_the_engine_must_not_do_is_a_fault(
    fires: list[str], state: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = FakeHost(fires, state), FakeHost(["a", "sentinel"], {})
    hosts = [good, bad]
    monkeypatch.setattr(durable_engine, "_import_host", lambda: hosts.pop)
    engine = Engine()
    with pytest.raises(EngineFault):
        engine.fire(_ruleset("a"), {})
    # the host that misbehaved is given up, whatever state it is in, and the next evaluation has another
    assert engine.fire(_ruleset("a"), {}) == ["a"]
    assert (bad.deleted, good.deleted) == (0, 1)


@durable_rules
def test_each_evaluation_deletes_its_state() -> None:
    # the engine crashes at the 1,025th state that is alive
    book = book_of({"model_config.is_moe": True})
    for i in range(2500):
        fired = durable.firings(book, {"model_config.is_moe": i % 2 == 0}, trusted=True)
        assert len(fired) == (i % 2 == 0)


@durable_rules
def test_threads_get_their_own_answers() -> None:
    book = book_of(*({"cache_config.block_size": i} for i in range(1, 9)))
    wrong: list[int] = []

    def work(size: int) -> None:
        for _ in range(150):
            fired = durable.firings(book, {"cache_config.block_size": size}, trusted=True)
            if [f.rule for f in fired] != [f"rule-{size - 1}"]:
                wrong.append(size)

    threads = [threading.Thread(target=work, args=(size,)) for size in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    alive = [t.name for t in threading.enumerate() if isinstance(t, threading.Timer)]
    assert not alive, "the engine's own threads race with evaluations and must not run"


@durable_rules
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_evaluates_too() -> None:
    durable.firings(BOOK, {}, trusted=True)
    values = dict.fromkeys(BOOK.reads, UNKNOWN)
    expected = reference.firings(BOOK, values)
    pid = os.fork()
    if pid == 0:
        same = durable.firings(BOOK, values, trusted=True) == expected
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_without_durable_rules_the_engine_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_durable(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "durable":
            raise ImportError("undefined symbol: PyEval_CallObject")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_durable)
    monkeypatch.setattr(durable, "_engine", Engine())
    monkeypatch.setattr(durable, "_books", {})
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="PyEval_CallObject"):
            durable.firings(BOOK, {}, trusted=True)


# --- the trial of books that aren't the project's own ------------------------------------------------------


@durable_rules
def test_a_foreign_book_is_tried_in_a_child_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[CompiledBook] = []
    monkeypatch.setattr(durable, "try_in_child", tried.append)
    book = book_of({"model_config.has_remote_code": True})
    for _ in range(3):
        durable.firings(book, {"model_config.has_remote_code": True}, trusted=False)
    assert len(tried) == 1
    durable.firings(book_of({"model_config.mlp_bias": True}), {}, trusted=True)
    assert len(tried) == 1


@durable_rules
def test_the_trial_passes_sound_books() -> None:
    trial.try_in_child(CompiledBook(OPERATORS_BOOK))


def test_a_crash_in_the_trial_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.run

    def crash(command: list[str], **kwargs: Any) -> Any:
        return real([sys.executable, "-c", "import os; os.abort()"], **kwargs)

    monkeypatch.setattr(subprocess, "run", crash)
    with pytest.raises(EngineUnavailable, match="exit status -6"):
        trial.try_in_child(CompiledBook(OPERATORS_BOOK))


def test_a_hang_in_the_trial_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.run

    def hang(command: list[str], **kwargs: Any) -> Any:
        return real([sys.executable, "-c", "while True: pass"], **kwargs)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(EngineUnavailable, match=r"more than 0\.5 s"):
        trial.try_in_child(CompiledBook(OPERATORS_BOOK), seconds=0.5)


def test_too_many_clauses_leave_the_book_to_the_reference() -> None:
    names = [name for name, spec in FACTS.items() if spec.type == "bool"][:15]
    condition = {"all": [{"any": [{name: True} for name in names[i::5]]} for i in range(5)]}
    book = book_of(condition)
    assert len(disjunctive_normal_form(book.rules[0].fires_when)) <= 256
    with pytest.raises(EngineUnavailable, match="too many clauses"):
        durable.firings(book, {}, trusted=True)
