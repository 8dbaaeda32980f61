"""The properties of every bundled rule book, and that each of them catches a book that breaks it."""

from __future__ import annotations

import functools

import pytest

from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.books import bundled_rulebook, bundled_rulebooks, parse_rulebook
from dodona.oracle.testing import PROPERTIES, RuleBookTests, check_properties, check_property


@functools.cache
def distinct_books() -> tuple[str, ...]:
    """Names of the bundled books, those with the same rules once."""
    found: dict[str, str] = {}
    for name in bundled_rulebooks():
        book = bundled_rulebook(name)
        found.setdefault(book.model_copy(update={"rulebook": "", "description": ""}).content_hash, name)
    return tuple(found.values())


def test_there_are_as_many_logics_as_known() -> None:
    assert distinct_books()[0] == "dodona"
    assert len(distinct_books()) == 15


@pytest.mark.parametrize("name", distinct_books())
def test_bundled_books(name: str) -> None:
    book = bundled_rulebook(name)
    declared = {exception.property for exception in book.exceptions}
    tried = check_properties(book, max_examples=60 if name == "dodona" else 15)
    assert set(PROPERTIES) - set(tried) == declared & set(PROPERTIES)


def test_dodona_declares_no_exception() -> None:
    assert bundled_rulebook("dodona").exceptions == ()


# --- each property finds what breaks it

BOOK = """\
rulebook: trial
description: A book for tests.
system: dodona
runners: [v2, v1]
environment:
  variable: TRIAL
  values: {"0": v1, "1": v2}
  otherwise: error
rules:
  - id: forced-v1
    kind: override
    runners: [v1]
    precedence: 1
    when: {environment.override: v1}
    feature: the variable
    because: It asks.
    since: 2026-01-31
    examples:
      fires: [{environment.override: v1}]
      passes: [{environment.override: v2}]
  - id: forced-v2
    kind: override
    runners: [v2]
    precedence: 2
    when: {environment.override: v2}
    feature: the variable
    because: It asks.
    since: 2026-01-31
    examples:
      fires: [{environment.override: v2}]
      passes: [{environment.override: v1}]
  - id: lora
    kind: veto
    runners: [v2]
    when: {lora_config: {is_set: true}}
    feature: LoRA
    because: Not yet.
    since: 2026-01-31
    examples:
      fires: [{lora_config: true}]
      passes: [{lora_config: null}]
  - id: tensor-parallelism
    kind: veto
    runners: [v2]
    when: {parallel_config.tensor_parallel_size: {gt: 1}}
    feature: tensor parallelism
    because: Not yet.
    since: 2026-01-31
    examples:
      fires: [{parallel_config.tensor_parallel_size: 2}]
      passes: [{parallel_config.tensor_parallel_size: 1}]
"""

FEATURE_OVERRIDE = """\
  - id: needs-v2
    kind: override
    runners: [v2]
    precedence: {precedence}
    when: {{parallel_config.tensor_parallel_size: {{gt: 1}}}}
    feature: tensor parallelism
    because: Only V2 begins to have it.
    since: 2026-01-31
    examples:
      fires: [{{parallel_config.tensor_parallel_size: 2}}]
      passes: [{{parallel_config.tensor_parallel_size: 1}}]
"""
QWEN_WANTED = """\
  - id: wanted
    kind: require
    runners: [v2]
    when: {model_config.architectures: {any_in: [LlamaForCausalLM]}}
    feature: architecture
    because: Only this one.
    since: 2026-01-31
    examples:
      fires: [{model_config.architectures: [A]}]
      passes: [{model_config.architectures: [LlamaForCausalLM]}]
"""
STARTUP = BOOK.replace("rules:\n", "forced_refusal: startup\nrules:\n")


def test_the_trial_book_has_all_properties() -> None:
    assert check_properties(parse_rulebook(BOOK)) == tuple(PROPERTIES)


BROKEN = {
    "monotone": (STARTUP + FEATURE_OVERRIDE.format(precedence=3), "tensor_parallel_size = .* turns another"),
    "user-decides": (
        STARTUP.replace("precedence: 1\n", "precedence: 7\n") + FEATURE_OVERRIDE.format(precedence=3),
        "the user forces v1 and gets",
    ),
    "preferred-by-default": (BOOK + QWEN_WANTED, "something fires for a plain configuration too"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_book_that_breaks_a_property_is_found(name: str) -> None:
    text, message = BROKEN[name]
    with pytest.raises(AssertionError, match=message):
        check_property(parse_rulebook(text), name, max_examples=300)


@pytest.mark.parametrize("name", BROKEN)
def test_a_declared_exception_is_not_tried(name: str) -> None:
    text, _ = BROKEN[name]
    declared = (
        f"exceptions: [{{property: {name}, because: So it is., witness: {{lora_config: true}}}}]\nrules:\n"
    )
    book = parse_rulebook(text.replace("rules:\n", declared))
    assert check_property(book, name) is False


@pytest.mark.parametrize("name", ["refused-with-every-reason", "order-free", "total"])
def test_a_faulty_evaluator_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the language itself promises can only be broken by the code: each such fault is caught."""
    from dodona.oracle.decide import outcome
    from dodona.oracle.testing import properties

    book = parse_rulebook(BOOK)
    real = outcome.decide

    def first_reason_only(of: RuleBook, fired: object) -> outcome.Outcome:
        found = real(of, fired)  # type: ignore[arg-type]
        return outcome.Outcome(found.runner, found.forced, found.decided_by, found.refusals[:1])

    def last_rule_decides(of: RuleBook, fired: object) -> outcome.Outcome:
        overrides = [f.rule for f in fired if of.by_id[f.rule].kind == "override"]  # type: ignore[attr-defined]
        found = real(of, fired)  # type: ignore[arg-type]
        last = [rule.id for rule in of.rules][-1]
        return outcome.Outcome("v1", bool(overrides), last, ()) if fired else found

    def unnamed(of: RuleBook, fired: object) -> outcome.Outcome:
        found = real(of, fired)  # type: ignore[arg-type]
        return outcome.Outcome(found.runner, found.forced, found.decided_by, ())

    faulty = {
        "refused-with-every-reason": first_reason_only,
        "order-free": last_rule_decides,
        "total": unnamed,
    }
    monkeypatch.setattr(properties, "decide", faulty[name])
    with pytest.raises(AssertionError):
        check_property(book, name, max_examples=300)


def test_an_unknown_property_is_named() -> None:
    with pytest.raises(KeyError, match="monotonous"):
        check_property("dodona", "monotonous")


@pytest.mark.parametrize("name", ["dodona", "vllm/0.33.0"])
def test_the_removal_of_a_rule_shows(name: str) -> None:
    class Tests(RuleBookTests):
        book = name

    Tests().test_differences()
