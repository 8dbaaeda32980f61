"""rules/schema.json: generated, accepts what loads, and refuses what it can see is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dodona.oracle.authoring.schema import rule_file_schema, schema_text
from dodona.oracle.errors import RuleFileError
from dodona.oracle.language.yaml_source import parse_yaml, read_yaml
from tests.rules.test_malformed_books import BOOK, CASES

RULES = Path(__file__).resolve().parents[2] / "rules"
FILES = sorted(RULES.rglob("*.yaml"))
SCHEMA = rule_file_schema()
VALIDATOR = jsonschema.Draft7Validator(SCHEMA, format_checker=jsonschema.FormatChecker())

LANGUAGE_ONLY = {
    # what takes the whole file, or arithmetic, to see; loading says it
    "too deep",
    "too many alternatives",
    "duplicate id",
    "unknown fact in template",
    "attribute in template",
    "refines unknown",
    "refines itself",
    "refines in a circle",
    "refines other runners",
    "precedence taken",
    # the names of runners are the book's
    "wrong runner",
    "wrong meaning",
    "value that means no runner",
    "runner that can't be passed over",
    "reserved runner",
}


def test_the_shipped_schema_is_up_to_date() -> None:
    shipped = (RULES / "schema.json").read_text(encoding="utf-8")
    assert shipped == schema_text(), "run `dodona rules schema > rules/schema.json`"


def test_it_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def test_every_reference_leads_somewhere_and_every_definition_is_used() -> None:
    text = json.dumps(SCHEMA)
    used = {part.split('"')[0] for part in text.split("#/definitions/")[1:]}
    assert used == set(SCHEMA["definitions"])


def test_everything_that_a_book_may_say_is_described() -> None:
    # a part without any schema would accept whatever is written there
    def empty(value: Any, path: str) -> list[str]:
        if isinstance(value, list):
            return [found for i, item in enumerate(value) for found in empty(item, f"{path}/{i}")]
        if not isinstance(value, dict):
            return []
        found = [
            f"{path}/{name}"
            for name, item in value.get("properties", {}).items()
            if isinstance(item, dict) and not set(item) - {"description"}
        ]
        return found + [f for name, item in value.items() for f in empty(item, f"{path}/{name}")]

    assert empty(SCHEMA, "") == ["/assume"], "only the top's `assume`, which depends on the system"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_bundled_books_are_valid(path: Path) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(read_yaml(path).data)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_first_line_leads_editors_to_the_schema(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    prefix = "# yaml-language-server: $schema="
    assert first.startswith(prefix)
    assert (path.parent / first.removeprefix(prefix)).resolve() == RULES / "schema.json"


@pytest.mark.parametrize("case", CASES)
def test_wrong_files(case: str) -> None:
    old, new, _, _ = CASES[case]
    head, _, tail = BOOK.rpartition(old)
    try:
        data = parse_yaml((head + new + tail).replace("¦", "")).data
    except RuleFileError:
        return  # no YAML, or not the subset of it: editors see that by themselves
    assert VALIDATOR.is_valid(data) is (case in LANGUAGE_ONLY)


def test_the_list_of_what_only_loading_sees_is_no_longer_than_it_must_be() -> None:
    assert set(CASES) >= LANGUAGE_ONLY
    assert VALIDATOR.is_valid(parse_yaml(BOOK).data)


CHILD = "rulebook: child\nextends: base\n"
VETO = """\
rules:
  - id: mine
    kind: veto
    runners: [v2]
    when: {WHEN}
    feature: mine
    because: So it is.
    since: 2026-01-31
    examples: {fires: [{FIRES}], passes: [{PASSES}]}
"""


def _vllm(when: str, system: str = "vllm") -> str:
    head = f"rulebook: x\ndescription: X.\nsystem: {system}\nrunners: [v2, v1]\n"
    values = {"WHEN": when, "FIRES": when, "PASSES": when}
    text = VETO
    for name, value in values.items():
        text = text.replace(name, value)
    return head + text


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (CHILD, True),
        (CHILD + "rules: []\n", True),
        (CHILD + "remove: [a, b]\n", True),
        (CHILD + "rules: [{id: a, because: Changed.}]\n", True),
        (CHILD + "rules: [{id: a, when: {parallel_config.enable_dbo: true}}]\n", True),
        (CHILD + "rules: [{id: a, when: {lora_config.max_loras: 3}}]\n", True),
        (CHILD + "rules: [{because: Changed.}]\n", False),
        (CHILD + "rules: [{id: a, becuase: Changed.}]\n", False),
        (CHILD + "rules: [{id: a, kind: veto, precedence: 3}]\n", False),
        (CHILD + "remove: [a, a]\n", False),
        (CHILD.replace("base", "../base"), False),
        (CHILD.replace("base", "/etc/passwd"), False),
        ("rulebook: x\nremove: [a]\n", False),
        (_vllm("parallel_config.enable_dbo: true"), True),
        (_vllm("parallel_config.enable_dbo: true", "dodona"), False),
        (_vllm("lora_config.max_loras: 3"), False),
        (_vllm("lora_config.max_loras: 3", "dodona"), True),
        (_vllm("lora_config.max_loras: 0", "dodona"), False),
        (_vllm("model_config.is_mow: true"), False),
    ],
)
def test_books_of_systems_and_books_that_extend(text: str, valid: bool) -> None:
    assert VALIDATOR.is_valid(parse_yaml(text).data) is valid
