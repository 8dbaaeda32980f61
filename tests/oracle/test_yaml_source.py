"""The strict YAML reader against ruamel's own, and against whatever bytes come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dodona.oracle.errors import RuleFileError
from dodona.oracle.language.yaml_source import Position, parse_yaml

TEXT = """\
name: book   # a comment
list: [1, -2, "3", 'no', true, null]
nested:
  - a: {b: text with spaces, "quoted key": 2026-01-31}
    c: |
      two
      lines
  - version 0.27.1
"""


def test_values_are_those_of_yaml() -> None:
    from ruamel.yaml import YAML

    quoted = TEXT.replace("2026-01-31", "'2026-01-31'")  # ruamel reads a date
    assert parse_yaml(TEXT).data == YAML(typ="safe", pure=True).load(quoted)


def test_positions() -> None:
    document = parse_yaml(TEXT)
    lines = TEXT.split("\n")
    assert document.position(()) == Position(1, 1)
    for path, word in {
        ("name",): "book",
        ("list", 2): '"3"',
        ("nested", 0, "a", "b"): "text with",
        ("nested", 1): "version",
    }.items():
        at = document.position(path)
        assert lines[at.line - 1][at.column - 1 :].startswith(word)
    key = document.position(("nested", 0, "c"), key=True)
    assert lines[key.line - 1][key.column - 1 :].startswith("c: |")
    assert document.position(("nested", 0, "a", "absent", 3)) == document.position(("nested", 0, "a"))


@pytest.mark.parametrize("word", ["yes", "No", "ON", "off", "y", "N", "True", "FALSE", "Null", "NULL"])
def test_what_readers_disagree_on_is_refused_unless_quoted(word: str) -> None:
    with pytest.raises(RuleFileError) as caught:
        parse_yaml(f"a: {word}")
    assert (caught.value.line, caught.value.column) == (1, 4)
    assert f"'{word}'" in caught.value.hint
    assert parse_yaml(f"a: '{word}'").data == {"a": word}


NUMBERS = [
    "012",
    "0o17",
    "0x1F",
    "0b1",
    "1_000",
    "1.5",
    ".5",
    "1.",
    "1e-5",
    "1E3",
    "12:30",
    ".inf",
    "-.inf",
    ".nan",
]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_are_not_plain_are_refused_unless_quoted(number: str) -> None:
    with pytest.raises(RuleFileError, match="plain decimal"):
        parse_yaml(f"a: {number}")
    assert parse_yaml(f"a: '{number}'").data == {"a": number}


@pytest.mark.parametrize(
    "text", ["0.27.1", "vllm#42955", "2026-01-31", "v1", "8B", "1-2", "e5", "nope", "on-off"]
)
def test_plain_text_stays_text(text: str) -> None:
    assert parse_yaml(f"a: {text}").data == {"a": text}


CHARACTERS = st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])
PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1), st.text(CHARACTERS, max_size=20)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(CHARACTERS, max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_json_reads_as_it_is(data: Any) -> None:
    import json

    # JSON is YAML, but for the surrogate pairs by which it escapes characters beyond 16 bits
    assert parse_yaml(json.dumps(data, ensure_ascii=True)).data == data


@given(
    st.one_of(st.binary(max_size=200), st.text(alphabet="ab:-?[]{},&*!|>'\"%@` \t\n#~0.xe\\u", max_size=60))
)
def test_any_bytes_give_a_document_or_a_named_error(source: Any) -> None:
    error = None
    try:
        document = parse_yaml(source, file="f.yaml")
    except RuleFileError as caught:
        error = caught
    if error is None:
        assert document.position(()).line >= 1
        return
    assert 1 <= error.line <= len(source) + 2
    assert error.column >= 1
    assert error.hint
    assert str(error).startswith("f.yaml:")
