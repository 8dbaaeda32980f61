"""Random JSON schemas of bounded size, whether a value conforms to one, and tokens as bytes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

LONGEST_STRING = 3


def _objects(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(["a", "b", "näme", "x y", '"quoted"', "日"])
    return st.dictionaries(names, children, min_size=1, max_size=3).map(
        lambda properties: {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    )


def _arrays(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(children, st.integers(0, 1), st.integers(1, 2)).map(
        lambda drawn: {"type": "array", "items": drawn[0], "minItems": drawn[1], "maxItems": drawn[2]}
    )


_LEAVES = st.one_of(
    st.tuples(st.integers(-50, 50), st.integers(0, 1000)).map(
        lambda drawn: {"type": "integer", "minimum": drawn[0], "maximum": drawn[0] + drawn[1]}
    ),
    st.just({"type": "string", "maxLength": LONGEST_STRING}),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(st.text(max_size=4), min_size=1, max_size=3, unique=True).map(lambda texts: {"enum": texts}),
    st.sampled_from([{"const": 7}, {"enum": [1, "1", None, "grün🙂"]}]),
)

SCHEMAS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    _LEAVES,
    lambda children: st.one_of(
        _objects(children),
        _arrays(children),
        st.lists(children, min_size=1, max_size=2).map(lambda options: {"anyOf": options}),
    ),
    max_leaves=4,
)
"""Schemas whose every value, without white space, is short."""


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """Whether `value` is valid by a schema of `SCHEMAS`."""
    if "anyOf" in schema:
        return any(conforms(value, option) for option in schema["anyOf"])
    if "const" in schema:
        return _same(value, schema["const"])
    if "enum" in schema:
        return any(_same(value, option) for option in schema["enum"])
    match schema["type"]:
        case "object":
            properties = schema["properties"]
            return (
                isinstance(value, dict)
                and value.keys() == properties.keys()
                and all(conforms(value[name], properties[name]) for name in properties)
            )
        case "array":
            return (
                isinstance(value, list)
                and schema["minItems"] <= len(value) <= schema["maxItems"]
                and all(conforms(item, schema["items"]) for item in value)
            )
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
    raise AssertionError(schema)


def _same(a: Any, b: Any) -> bool:
    return json.dumps(a) == json.dumps(b)


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """The bytes of each token of a byte-level tokenizer that stands for text."""
    # The byte-level alphabet: printable bytes are themselves, the others come after 255 in order.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(256 + i): byte for i, byte in enumerate(others)}
    special = set(tokenizer.added_tokens_decoder)
    vocabulary = tokenizer.get_vocab()
    return {
        token_id: bytes(alphabet[c] for c in token)
        for token, token_id in vocabulary.items()
        if token_id not in special
    }
