"""Conditions: their meaning against an independent reading, normal forms, writing and reading back."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dodona.oracle.language.condition_parser import parse_condition
from dodona.oracle.language.condition_text import describe, to_data
from dodona.oracle.language.conditions import (
    AnyOf,
    Condition,
    ConditionError,
    Not,
    compare,
    comparisons,
    evaluate,
    facts_read,
)
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.language.normal_forms import disjunctive_normal_form, negation_normal_form
from dodona.oracle.systems.own.facts import FACTS

VALUES: Mapping[str, tuple[Any, ...]] = {
    "model_config.is_moe": (True, False, UNKNOWN),
    "cache_config.block_size": (1, 16, 17, 2**53, UNKNOWN),
    "speculative_config.method": ("eagle", "ngram", "", None, UNKNOWN),
    "model_config.num_queries_per_kv": (1, 2, None, UNKNOWN),
    "model_config.architectures": ((), ("A",), ("A", "B"), ("B", "C"), UNKNOWN),
    "speculative_config.parallel_drafting": (True, False, None, UNKNOWN),
}

LEAVES = st.sampled_from(
    [
        {"model_config.is_moe": True},
        {"model_config.is_moe": {"ne": True}},
        {"cache_config.block_size": 16},
        {"cache_config.block_size": {"lt": 17}},
        {"cache_config.block_size": {"ge": 17}},
        {"cache_config.block_size": {"not_in": [1, 17]}},
        {"speculative_config.method": "eagle"},
        {"speculative_config.method": {"ne": "eagle"}},
        {"speculative_config.method": {"in": ["eagle", ""]}},
        {"speculative_config.method": {"not_in": ["eagle"]}},
        {"speculative_config.method": {"is_set": True}},
        {"speculative_config.method": {"is_set": False}},
        {"model_config.num_queries_per_kv": {"gt": 1}},
        {"model_config.num_queries_per_kv": {"le": 1}},
        {"model_config.architectures": {"any_in": ["A", "C"]}},
        {"speculative_config.parallel_drafting": True},
        {"speculative_config.parallel_drafting": {"ne": True}},
    ]
)
DATA = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"all": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"any": parts}),
        inner.map(lambda part: {"not": part}),
    ),
    max_leaves=8,
)
CONDITIONS = DATA.map(lambda data: parse_condition(data, FACTS))
FACT_VALUES = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALUES.items()})


def read_naively(data: Any, facts: Mapping[str, Any]) -> bool:
    """The language for known facts, read from plain data without any of the code under test."""
    ((key, value),) = data.items()
    if key == "all":
        return all(read_naively(part, facts) for part in value)
    if key == "any":
        return any(read_naively(part, facts) for part in value)
    if key == "not":
        return not read_naively(value, facts)
    fact = facts[key]
    ((op, constant),) = (value if isinstance(value, dict) else {"eq": value}).items()
    if op == "is_set":
        return (fact is not None) == constant
    if op == "not_in":
        return fact not in constant
    if fact is None:
        return False
    return {
        "eq": lambda: fact == constant,
        "ne": lambda: fact != constant,
        "lt": lambda: fact < constant,
        "le": lambda: fact <= constant,
        "gt": lambda: fact > constant,
        "ge": lambda: fact >= constant,
        "in": lambda: fact in constant,
        "any_in": lambda: bool(set(fact) & set(constant)),
    }[op]()


@given(DATA, FACT_VALUES)
def test_known_facts_mean_what_the_text_says(data: Any, facts: dict[str, Any]) -> None:
    known = {name: VALUES[name][0] if value is UNKNOWN else value for name, value in facts.items()}
    assert evaluate(parse_condition(data, FACTS), known) is read_naively(data, known)


@given(DATA, FACT_VALUES)
def test_a_settled_answer_holds_for_every_value_of_the_unknown(data: Any, facts: dict[str, Any]) -> None:
    # Kleene's logic is sound: an answer in spite of unknown facts is the answer for whatever they are
    condition = parse_condition(data, FACTS)
    answer = evaluate(condition, facts)
    open_facts = [name for name in facts_read(condition) if facts[name] is UNKNOWN]
    if answer is None:
        assert open_facts
        return
    for values in itertools.product(*(VALUES[name][:-1] for name in open_facts)):
        assert read_naively(data, {**facts, **dict(zip(open_facts, values, strict=True))}) is answer


@given(CONDITIONS, FACT_VALUES)
def test_negation_normal_form_is_equal(condition: Condition, facts: dict[str, Any]) -> None:
    positive = negation_normal_form(condition)
    negative = negation_normal_form(condition, negate=True)
    assert evaluate(positive, facts) is evaluate(condition, facts)
    assert evaluate(negative, facts) is evaluate(Not(condition), facts)
    for form in (positive, negative):
        assert _negations_only_at_leaves(form)


def _negations_only_at_leaves(condition: Condition) -> bool:
    if isinstance(condition, Not):
        return not isinstance(condition.part, (Not, AnyOf)) and len(comparisons(condition)) == 1
    return all(_negations_only_at_leaves(part) for part in getattr(condition, "parts", ()))


@given(CONDITIONS, FACT_VALUES, st.booleans())
def test_disjunctive_normal_form_is_equal(condition: Condition, facts: dict[str, Any], negate: bool) -> None:
    def literal(item: Any) -> bool | None:
        value = compare(item.compare, facts[item.compare.fact])
        return value if value is None else value is not item.negated

    clauses = disjunctive_normal_form(condition, negate=negate)
    values = [[literal(item) for item in clause] for clause in clauses]
    each = [False if False in clause else None if None in clause else True for clause in values]
    expected = True if True in each else None if None in each else False
    assert evaluate(Not(condition) if negate else condition, facts) is expected


@given(CONDITIONS)
def test_data_reads_back_equal(condition: Condition) -> None:
    assert parse_condition(to_data(condition), FACTS) == condition
    assert hash(parse_condition(to_data(condition), FACTS)) == hash(condition)


@given(CONDITIONS)
def test_description_is_one_line_and_names_each_fact(condition: Condition) -> None:
    text = describe(condition, FACTS)
    assert "\n" not in text
    assert all(name in text for name in facts_read(condition))


def test_conditions_are_immutable() -> None:
    condition = parse_condition({"all": [{"model_config.is_moe": True}]}, FACTS)
    with pytest.raises(AttributeError):
        condition.parts = ()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"parallel_config.tensor_parallel_size": {"gt": 1}}, "parallel_config.tensor_parallel_size <= 1"),
        ({"model_config.is_moe": True}, "model_config.is_moe is false"),
        ({"speculative_config.method": "eagle"}, "speculative_config.method is not eagle (or is unset)"),
        ({"speculative_config.method": {"ne": "eagle"}}, "speculative_config.method is eagle (or is unset)"),
        ({"speculative_config.method": {"not_in": ["a", "b"]}}, "speculative_config.method is one of a, b"),
        ({"lora_config": {"is_set": True}}, "lora_config is unset"),
        (
            {
                "all": [
                    {"model_config.is_moe": True},
                    {"any": [{"lora_config": True}, {"lora_config": {"is_set": False}}]},
                ]
            },
            "model_config.is_moe is false or (lora_config is false (or is unset) and lora_config is set)",
        ),
    ],
)
def test_what_would_change_it(data: Any, text: str) -> None:
    assert describe(parse_condition(data, FACTS), FACTS, negate=True) == text


def test_depth_is_bounded_for_programs_too() -> None:
    data: Any = {"model_config.is_moe": True}
    for _ in range(5000):
        data = {"not": data}
    with pytest.raises(ConditionError, match="deeper"):
        parse_condition(data, FACTS)
