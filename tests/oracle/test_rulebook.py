"""Rule books as values: loading, the content hash, templates, the environment variable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dodona.cli.rules import unknown_architectures
from dodona.oracle.errors import ConfigError, RuleFileError
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.language.rulebook import EnvironmentVariable, RuleBook
from dodona.oracle.language.yaml_source import parse_yaml
from dodona.oracle.machine.environment import Environment
from dodona.oracle.systems.books import bundled_rulebook, bundled_rulebooks, load_rulebook, parse_rulebook
from dodona.oracle.systems.own.facts import FACTS

SOURCE = Path(__file__).parents[2] / "rules" / "dodona.yaml"


def test_bundled_books_load() -> None:
    assert "dodona" in bundled_rulebooks()
    for name in bundled_rulebooks():
        assert bundled_rulebook(name).rulebook == name


def test_a_book_is_found_by_name_path_or_itself() -> None:
    book = load_rulebook("dodona")
    assert load_rulebook(SOURCE) == load_rulebook(str(SOURCE)) == book
    assert load_rulebook(book) is book
    assert load_rulebook("dodona") is book


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'dodna'\. Did you mean 'dodona'"):
        load_rulebook("dodna")
    with pytest.raises(ConfigError, match="no rule book is named"):
        load_rulebook("../../etc/passwd")


def test_layout_does_not_change_the_hash() -> None:
    text = SOURCE.read_text()
    data = parse_yaml(text).data

    def reversed_keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(value)}
        return [reversed_keys(item) for item in value] if isinstance(value, list) else value

    as_json = json.dumps(reversed_keys(data), indent=7)
    commented = "# a comment\n\n" + text.replace("  - id:", "  # a comment\n  - id:")
    for other in (as_json, commented):
        assert parse_rulebook(other).content_hash == bundled_rulebook("dodona").content_hash


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{ge: 80}", "{ge: 75}"),
        ("{gt: 1}", "{ge: 1}"),
        ("Neither runner splits the KV of a sequence.", "Neither runner splits a sequence."),
        ("[v1, v2]", "[v2]"),
        ('"1": v2', '"2": v2'),
    ],
)
def test_content_changes_the_hash(old: str, new: str) -> None:
    text = SOURCE.read_text().replace(old, new, 1)
    # rules that refine others must keep their runners within theirs
    assert parse_rulebook(text).content_hash != bundled_rulebook("dodona").content_hash


def test_a_book_reads_back_from_its_json() -> None:
    book = bundled_rulebook("dodona")
    again = RuleBook.model_validate_json(book.model_dump_json(), context=book.facts)
    assert again.content_hash == book.content_hash
    assert again.rules == book.rules


def test_a_book_is_immutable() -> None:
    book = bundled_rulebook("dodona")
    with pytest.raises(ValueError, match="frozen"):
        book.rules[0].kind = "veto"  # type: ignore[misc]


def test_every_rule_of_the_book_has_what_people_need() -> None:
    for rule in bundled_rulebook("dodona").rules:
        assert rule.feature
        assert rule.because.endswith(".")
        assert rule.examples.fires
        assert rule.examples.passes
        assert all(ref.startswith("https://") for ref in rule.refs)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"speculative_config.method": "eagle3"}, "speculative decoding (method 'eagle3')"),
        ({"speculative_config.method": None}, "speculative decoding (method 'unset')"),
        ({"speculative_config.method": UNKNOWN}, "speculative decoding (method 'unknown')"),
        ({}, "speculative decoding (method 'unknown')"),
        ({"speculative_config.method": "{lora_config}"}, "speculative decoding (method '{lora_config}')"),
    ],
)
def test_a_feature_shows_its_fact(values: dict[str, Any], text: str) -> None:
    rule = bundled_rulebook("dodona").by_id["speculative-decoding"]
    assert rule.show_feature(values) == text


def test_a_feature_shows_lists_and_booleans() -> None:
    rules = bundled_rulebook("dodona").by_id
    shown = rules["architecture"].show_feature({"model_config.architectures": ("A", "B")})
    assert shown == "architecture 'A, B'"


def test_the_variable_of_the_book_is_the_one_that_is_read() -> None:
    variable = bundled_rulebook("dodona").environment
    assert variable is not None
    for value, runner in ((None, None), ("0", "v1"), ("1", "v2")):
        environ = {} if value is None else {variable.variable: value}
        assert variable.parse(value) == Environment.detect(environ).override == runner
    for value in ("", "2", "true", " 1", "v2"):
        for parse in (variable.parse, lambda text: Environment.detect({variable.variable: text})):
            with pytest.raises(ConfigError, match=variable.variable) as caught:
                parse(value)
            assert all(word in str(caught.value).lower() for word in ("unset", '"0"', '"1"', "v1", "v2"))


@given(st.text(max_size=4))
def test_other_parsings_of_a_variable(value: str) -> None:
    two_state = EnvironmentVariable(variable="X", values={"0": "v1"}, otherwise="v2")
    lenient = EnvironmentVariable(variable="X", values={"1": "v2"}, otherwise="unset")
    assert two_state.parse(value) == ("v1" if value == "0" else "v2")
    assert lenient.parse(value) == ("v2" if value == "1" else None)


def test_every_fact_that_the_book_reads_exists() -> None:
    assert set(bundled_rulebook("dodona").reads) <= set(FACTS)


def test_a_book_keeps_the_registry_that_it_was_checked_against() -> None:
    book = bundled_rulebook("dodona")
    assert book.facts is FACTS
    registry = dict(FACTS)
    again = RuleBook.model_validate_json(book.model_dump_json(), context=registry)
    assert again.facts is registry
    assert again.model_copy(update={"description": "Another."}).facts is registry
    assert again.content_hash == book.content_hash


def test_a_book_is_not_checked_without_a_registry() -> None:
    with pytest.raises(TypeError, match="context=FACTS"):
        RuleBook.model_validate_json(bundled_rulebook("dodona").model_dump_json())


def test_a_book_does_not_bring_a_registry() -> None:
    text = SOURCE.read_text().replace("system: dodona", "system: dodona\nfacts: {}", 1)
    with pytest.raises(RuleFileError, match="unknown key 'facts'"):
        parse_rulebook(text)


def _book_of_architectures(names: list[str], *, examples: bool = True) -> str:
    shown = "examples: {fires: [{model_config.is_moe: true}], passes: [{model_config.is_moe: false}]}"
    return (
        "rulebook: x\ndescription: x\nsystem: dodona\nrunners: [v2, v1]\n"
        'environment: {variable: DODONA_USE_V2_MODEL_RUNNER, values: {"0": v1, "1": v2}, otherwise: error}\n'
        "rules:\n  - {id: a, kind: veto, runners: [v2], feature: f, because: b, since: 2026-11-29, "
        f"when: {{model_config.architectures: {{any_in: [{', '.join(names)}]}}}}"
        f"{', ' + shown if examples else ''}}}\n"
    )


def test_the_nearest_name_is_looked_for_a_few_times_only() -> None:
    book = parse_rulebook(_book_of_architectures([f"Qwen3ForCausalLM{n}" for n in range(1_500)]))
    warnings = unknown_architectures(book)
    assert len(warnings) == 1_500
    assert ["did you mean" in warning for warning in warnings] == [n < 20 for n in range(1_500)]


def test_a_rule_without_examples_is_told_so() -> None:
    with pytest.raises(RuleFileError, match="'examples' is missing"):
        parse_rulebook(_book_of_architectures(["A"], examples=False))
