"""Conditions at their edges: operators on all kinds of values, connectives, and the language's bounds."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from dodona.oracle.language.condition_parser import check_value, parse_condition
from dodona.oracle.language.condition_text import describe
from dodona.oracle.language.conditions import (
    OPERATORS,
    Compare,
    Condition,
    ConditionError,
    compare,
    evaluate,
    facts_read,
)
from dodona.oracle.language.facts import UNKNOWN, FactSpec, show_value
from dodona.oracle.language.normal_forms import disjunctive_normal_form
from tests.rules.test_conditions import VALUES, read_naively

FACTS = {
    spec.name: spec
    for spec in (
        FactSpec("a", "bool"),
        FactSpec("b", "bool"),
        FactSpec("c", "bool"),
        FactSpec("count", "int", minimum=1, maximum=9),
        FactSpec("any_count", "int", nullable=True),
        FactSpec("name", "str"),
        FactSpec("few", "str", domain=tuple(f"v{i:02}" for i in range(12))),
        FactSpec("many", "str", domain=tuple(f"v{i:02}" for i in range(13))),
        FactSpec("kinds", "list"),
        FactSpec("section.kind", "str", nullable=True),
    )
}
NULLABLE = (None, UNKNOWN)


def condition(data: Any) -> Condition:
    return parse_condition(data, FACTS)


def error(data: Any) -> ConditionError:
    with pytest.raises(ConditionError) as caught:
        condition(data)
    return caught.value


COMPARISONS = [
    ("name", "str", ("x", "y", *NULLABLE), ["x", {"eq": "y"}, {"ne": "x"}]),
    ("name", "str", ("x", "y", *NULLABLE), [{"in": ["x", "z"]}, {"not_in": ["x"]}]),
    ("any_count", "int", (1, 2, 3, *NULLABLE), [{op: 2} for op in ("eq", "ne", "lt", "le", "gt", "ge")]),
    ("any_count", "int", (1, 2, 3, *NULLABLE), [{"in": [1, 3]}, {"not_in": [1, 3]}]),
    ("section.kind", "str", ("x", "", *NULLABLE), [{"is_set": True}, {"is_set": False}, {"ne": "x"}]),
    ("kinds", "list", ((), ("x",), ("y", "x"), ("z",), *NULLABLE), [{"any_in": ["x", "w"]}]),
    ("a", "bool", (True, False, *NULLABLE), [True, False, {"ne": True}]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "values", "conditions"), COMPARISONS)
def test_every_operator_on_every_value(name: str, kind: str, values: Any, conditions: list[Any]) -> None:
    facts = {name: FactSpec(name, kind, nullable=True)}  # type: ignore[arg-type]
    for written, value in itertools.product(conditions, values):
        parsed = parse_condition({name: written}, facts)
        assert isinstance(parsed, Compare)
        expected = None if value is UNKNOWN else read_naively({name: written}, {name: value})
        assert compare(parsed, value) is expected, (written, value)
        assert evaluate(parsed, {name: value}) is expected
    assert evaluate(parsed, {}) is None


def test_an_operator_by_itself_says_what_a_comparison_says() -> None:
    for name, _, values, conditions in COMPARISONS:
        for written, value in itertools.product(conditions, values):
            ((op, constant),) = (written if isinstance(written, dict) else {"eq": written}).items()
            if value is None and (op, constant) != ("is_set", False):
                assert OPERATORS[op].on_null is compare(Compare(name, op, constant), None)
            elif value is not None and value is not UNKNOWN:
                assert OPERATORS[op].holds(value, constant) is compare(Compare(name, op, constant), value)


@pytest.mark.parametrize("values", list(itertools.product([True, False, UNKNOWN], repeat=3)))
def test_the_connectives(values: tuple[Any, ...]) -> None:
    facts = dict(zip("abc", values, strict=True))
    parts = [{"a": True}, {"b": True}, {"c": True}]
    everything = False if False in values else None if UNKNOWN in values else True
    something = True if True in values else None if UNKNOWN in values else False
    assert evaluate(condition({"all": parts}), facts) is everything
    assert evaluate(condition({"any": parts}), facts) is something
    negated = {True: False, False: True, None: None}
    assert evaluate(condition({"not": {"all": parts}}), facts) is negated[everything]
    assert evaluate(condition({"not": {"any": parts}}), facts) is negated[something]
    for form, expected in (({"all": parts}, everything), ({"any": parts}, something)):
        assert value_of(disjunctive_normal_form(condition(form)), facts) is expected
        inverse = disjunctive_normal_form(condition(form), negate=True)
        assert value_of(inverse, facts) is negated[expected]


def value_of(clauses: Any, facts: dict[str, Any]) -> bool | None:
    def literal(item: Any) -> bool | None:
        value = compare(item.compare, facts[item.compare.fact])
        return value if value is None else value is not item.negated

    each = []
    for clause in clauses:
        values = [literal(item) for item in clause]
        each.append(False if False in values else None if None in values else True)
    return True if True in each else None if None in each else False


def test_facts_are_named_once_in_order_of_appearance() -> None:
    data = {"all": [{"b": True}, {"not": {"any": [{"a": True}, {"b": False}]}}, {"c": True}]}
    assert facts_read(condition(data)) == ("b", "a", "c")


def clauses_of(data: Any, **more: bool) -> list[list[tuple[str, Any, bool]]]:
    found = disjunctive_normal_form(condition(data), **more)
    return [[(item.compare.fact, item.compare.value, item.negated) for item in clause] for clause in found]


def test_clauses_that_others_imply_are_left_out() -> None:
    data = {"any": [{"all": [{"b": True}, {"a": True}]}, {"a": True}, {"a": True}, {"c": True}]}
    assert clauses_of(data) == [[("a", True, False)], [("c", True, False)]]
    assert clauses_of({"all": [{"b": True}, {"a": True}]}) == [[("a", True, False), ("b", True, False)]]
    assert clauses_of({"not": {"a": True}}) == [[("a", True, True)]]
    assert clauses_of({"a": True}, negate=True) == [[("a", True, True)]]
    # A contradiction stays: with an unknown fact it is unknown.
    assert clauses_of({"all": [{"a": True}, {"not": {"a": True}}]}) == [
        [("a", True, False), ("a", True, True)]
    ]


def alternatives(*sizes: int) -> Any:
    """A conjunction of disjunctions of these sizes, all of different comparisons."""
    numbers = itertools.count(1)
    return {"all": [{"any": [{"any_count": next(numbers)} for _ in range(size)]} for size in sizes]}


def test_at_most_256_alternatives() -> None:
    assert len(disjunctive_normal_form(condition(alternatives(256)))) == 256
    assert len(disjunctive_normal_form(condition(alternatives(16, 16)))) == 256
    for sizes in ((257,), (16, 17), (2, 129)):
        with pytest.raises(ConditionError, match="more than 256 alternatives") as caught:
            disjunctive_normal_form(condition(alternatives(*sizes)))
        assert caught.value.path == ()
        assert not caught.value.key


def test_at_most_4096_alternatives_before_those_that_others_imply_are_left_out() -> None:
    def twice(size: int) -> Condition:
        (one_of_many,) = alternatives(size)["all"]
        return condition({"all": [one_of_many, one_of_many]})

    assert len(disjunctive_normal_form(twice(64))) == 64
    with pytest.raises(ConditionError, match="more than 256 alternatives"):
        disjunctive_normal_form(twice(65))


def nested(levels: int) -> Any:
    data: Any = {"a": True}
    for _ in range(levels):
        data = {"not": data}
    return data


@pytest.mark.parametrize("connective", ["all", "any", "not"])
def test_at_most_twelve_levels(connective: str) -> None:
    def inside(data: Any) -> Any:
        return {connective: data if connective == "not" else [data]}

    assert evaluate(condition(inside(nested(11))), {"a": True}) is (connective == "not")
    found = error(inside(nested(12)))
    assert "deeper than 12" in found.message
    assert len(found.path) >= 13


@pytest.mark.parametrize(
    ("data", "path", "key", "message"),
    [
        ({"all": [{"a": True}, {"nam": "x"}]}, ("all", 1, "nam"), True, "unknown fact 'nam'"),
        ({"not": {"name": {"equal": "x"}}}, ("not", "name", "equal"), True, "unknown operator 'equal'"),
        ({"name": {"lt": "x"}}, ("name", "lt"), True, "operator 'lt' doesn't fit 'name'"),
        ({"name": {"in": ["x", "y", "x"]}}, ("name", "in", 2), False, "'x' is listed twice"),
        ({"name": {"in": "x"}}, ("name", "in"), False, "'in' takes a list"),
        ({"name": {"not_in": []}}, ("name", "not_in"), False, "not an empty list"),
        ({"kinds": {"any_in": ["x", 3]}}, ("kinds", "any_in", 1), False, "a whole number (3), but is text"),
        ({"name": {"is_set": True}}, ("name", "is_set"), False, "'name' is always set"),
        ({"section.kind": {"is_set": "yes"}}, ("section.kind", "is_set"), False, "takes true or false"),
        ({"any": {}}, ("any",), False, "takes a list"),
        ({"any": []}, ("any",), False, "at least one condition, not an empty list"),
        ({"a": True, "b": True}, (), False, "exactly one key, not 2 ('a', 'b')"),
        ({}, (), False, "exactly one key, not 0"),
        ({"name": {}}, ("name",), False, "exactly one operator, not 0"),
        ({"name": {"in": ["x"], "ne": "y"}}, ("name",), False, "exactly one operator, not 2"),
        ({"name": None}, ("name",), False, "'name' is compared with null"),
        ({"name": {"in": ["x", None]}}, ("name", "in", 1), False, "'name' is compared with null"),
        ({"count": 0}, ("count",), False, "0 is outside the range"),
        ({"name": 0}, ("name",), False, "a whole number (0), but is text"),
        ({"count": ""}, ("count",), False, "text (''), but is a whole number"),
        ({"few": {"ne": "x"}}, ("few", "ne"), False, "'x' is outside the domain of 'few'"),
        ({"name": ["x"]}, ("name",), False, "compared with a list without an operator"),
        ({"kinds": "x"}, ("kinds",), False, "is a list and can't equal one value"),
        ("x", (), False, "a condition is a mapping, not text ('x')"),
    ],
)
def test_errors_lead_to_the_culprit(data: Any, path: tuple[Any, ...], key: bool, message: str) -> None:
    found = error(data)
    assert (found.path, found.key) == (path, key)
    assert message in found.message
    assert str(found) == found.message
    assert found.hint[0].isupper() or found.hint[0] == "'" or found.hint[0] == "`"


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ({"naem": "x"}, "Did you mean 'name'?"),
        ({"kind": "x"}, "Did you mean 'kinds'?"),
        ({"other.kind": "x"}, "Did you mean 'section.kind'?"),
        ({"not_a_fact_at_all": "x"}, "`dodona rules facts` and docs/rules.md list the facts."),
        ({"name": {"==": "x"}}, "Did you mean 'eq'?"),
        ({"name": {"ONE_OF": ["x"]}}, "Did you mean 'in'?"),
        ({"name": {"nott_in": ["x"]}}, "Did you mean 'not_in'?"),
        ({"name": {"zzz": ["x"]}}, "Operators are eq, ne, lt, le, gt, ge, in, not_in, any_in, is_set."),
        ({"name": {"ge": 1}}, "Use one of: eq, ne, in, not_in, is_set."),
        ({"count": {"any_in": [1]}}, "Use one of: eq, ne, lt, le, gt, ge, in, not_in, is_set."),
        ({"kinds": {"in": ["x"]}}, "Use one of: any_in, is_set."),
        ({"kinds": ["x"]}, "Write `kinds: {any_in: [...]}`."),
        ({"name": ["x"]}, "Write `name: {in: [...]}`."),
        ({"section.kind": None}, "Write `section.kind: {is_set: false}` for an unset fact."),
        ({"count": "3"}, "Write 3 without quotes."),
        ({"count": "-3"}, "Write -3 without quotes."),
        ({"count": "x"}, "'count' holds a whole number."),
        ({"count": True}, "'count' holds a whole number."),
        ({"a": 1}, "'a' holds true/false."),
        ({"name": 3}, "Write '3' in quotes."),
        ({"count": 0}, "It goes from 1 to 9."),
        ({"few": "v12"}, "It is one of: v00, v01, v02, v03, v04, v05, v06, v07, v08, v09, v10, v11."),
        ({"many": "v1"}, "Did you mean 'v1"),
        (
            {"many": "zzzzzz"},
            "Known values begin with: v00, v01, v02, v03, v04, v05, v06, v07, v08, v09, v10, v11.",
        ),
    ],
)  # fmt: skip
def test_how_to_mend_it(data: Any, hint: str) -> None:
    assert error(data).hint.startswith(hint)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("a", True, True),
        ("count", 9, 9),
        ("name", "x", "x"),
        ("kinds", [], ()),
        ("kinds", ["x", "y"], ("x", "y")),
        ("kinds", ("x",), ("x",)),
        ("section.kind", None, None),
        ("section.kind", "x", "x"),
    ],
)
def test_values_of_facts_as_data(name: str, given: Any, value: Any) -> None:
    assert check_value(FACTS[name], given) == value


@pytest.mark.parametrize(
    ("name", "given", "path", "message", "hint"),
    [
        ("a", None, (), "'a' is never null", "Give a value."),
        ("kinds", "x", (), "'kinds' is a list", "Write `[...]`."),
        ("kinds", ["x", 1], (1,), "'kinds' is compared with a whole number (1), but is text", "Write '1'"),
        ("count", 10, (), "10 is outside the range of 'count'", "It goes from 1 to 9."),
    ],
)
def test_values_that_a_fact_cannot_have(
    name: str, given: Any, path: tuple[int, ...], message: str, hint: str
) -> None:
    with pytest.raises(ConditionError) as caught:
        check_value(FACTS[name], given, ("facts", name))
    assert caught.value.path == ("facts", name, *path)
    assert (caught.value.message, caught.value.key) == (message, False)
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize("value", [1, 9])
def test_numbers_go_to_the_ends_of_their_range(value: int) -> None:
    assert condition({"count": value}) == Compare("count", "eq", value)
    beyond = 0 if value == 1 else 10
    assert "outside the range" in error({"count": beyond}).message


def test_numbers_without_a_range_go_to_the_largest_whole_numbers() -> None:
    largest = 2**53 - 1
    for value in (largest, -largest):
        assert condition({"any_count": value}) == Compare("any_count", "eq", value)
    for value in (largest + 1, -largest - 1):
        assert error({"any_count": value}).hint == f"It goes from {-largest} to {largest}."


def test_texts_have_at_most_200_characters() -> None:
    assert condition({"name": "x" * 200}) == Compare("name", "eq", "x" * 200)
    assert "longer than 200" in error({"name": "x" * 201}).message
    assert "control characters" in error({"name": "x\n"}).message


@pytest.mark.parametrize(
    ("data", "text", "negation"),
    [
        ({"a": True}, "a is true", "a is false"),
        ({"a": {"ne": True}}, "a is false", "a is true"),
        ({"count": {"ge": 3}}, "count >= 3", "count < 3"),
        ({"count": {"le": 3}}, "count <= 3", "count > 3"),
        ({"count": {"lt": 3}}, "count < 3", "count >= 3"),
        ({"any_count": {"gt": 3}}, "any_count > 3", "any_count <= 3 (or is unset)"),
        ({"name": {"in": ["x", "y"]}}, "name is one of x, y", "name is none of x, y"),
        ({"section.kind": "x"}, "section.kind is x", "section.kind is not x (or is unset)"),
        ({"section.kind": {"not_in": ["x"]}}, "section.kind is none of x (or is unset)",
         "section.kind is one of x"),
        ({"section.kind": {"is_set": True}}, "section.kind is set", "section.kind is unset"),
        ({"section.kind": {"is_set": False}}, "section.kind is unset", "section.kind is set"),
        ({"kinds": {"any_in": ["x", "y"]}}, "kinds has one of x, y", "kinds has none of x, y"),
        ({"all": [{"a": True}]}, "a is true", "a is false"),
        ({"all": [{"a": True}, {"b": True}]}, "a is true and b is true", "a is false or b is false"),
        ({"any": [{"a": True}, {"a": True}]}, "a is true", "a is false"),
        (
            {"any": [{"c": True}, {"all": [{"a": True}, {"b": True}]}]},
            "c is true or (a is true and b is true)",
            "c is false and (a is false or b is false)",
        ),
        ({"any": [{"c": True}, {"all": [{"a": True}]}]}, "c is true or a is true",
         "c is false and a is false"),
        (
            {"all": [{"any": [{"a": True}, {"b": True}]}]},
            "a is true or b is true",
            "a is false and b is false",
        ),
    ],
)  # fmt: skip
def test_the_text_of_conditions(data: Any, text: str, negation: str) -> None:
    assert describe(condition(data), FACTS) == text
    assert describe(condition(data), FACTS, negate=True) == negation


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unset"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        ("x", "x"),
        (("x",), "x"),
        (("x", "y"), "x, y"),
        ((1, 2), "1, 2"),
        ((), "none"),
    ],
)
def test_the_text_of_values(value: Any, text: str) -> None:
    assert show_value(value) == text


def test_the_unknown_value_is_written_as_its_name() -> None:
    assert repr(UNKNOWN) == "UNKNOWN"


def test_the_values_of_the_other_tests_are_many_enough() -> None:
    assert all(values[-1] is UNKNOWN and len(values) >= 3 for values in VALUES.values())
