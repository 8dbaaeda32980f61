"""The JSON Schema of rule files, by which editors complete and check them: made from the models of the
language and from the registries of facts.

It checks what is visible in a single file. Unique ids, the targets of `refines` and inherited rules are
checked when a book is loaded (`dodona rules check`).
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dodona.oracle.language import consequence as consequence_module
from dodona.oracle.language import rule as rule_module
from dodona.oracle.language import rulebook
from dodona.oracle.language.condition_parser import MAX_TEXT
from dodona.oracle.language.conditions import OPERATORS
from dodona.oracle.language.consequence import Consequence
from dodona.oracle.language.extends import NAME_PATTERN
from dodona.oracle.language.facts import FactSpec
from dodona.oracle.language.rule import Examples, Rule
from dodona.oracle.language.rulebook import DeclaredException, RuleBook
from dodona.oracle.language.yaml_source import MAX_INTEGER
from dodona.oracle.systems.registry import registered_systems, system_of

Schema = dict[str, Any]

_ANY: Final = "any"
"""For books that extend another: their facts are those of the system of the book that they extend."""

_LISTS = ("in", "not_in", "any_in")
_PRINTABLE = r"^[^\u0000-\u001f\u007f]*$"
_BALANCED = r"^(?=.*\S)([^{}]|\{[^{}]+\})*$"
_FORMS = {
    "all": "Holds when every part holds.",
    "any": "Holds when at least one part holds.",
}


def rule_file_schema() -> Schema:
    """The schema (JSON Schema, draft 7, which editors know best) of a rule file, as JSON data."""
    shapes = _Shapes()
    definitions: dict[str, Schema] = {}
    for system in (*registered_systems(), _ANY):
        definitions |= _system_definitions(system, shapes)
    definitions |= shapes.definitions
    models = RuleBook.model_json_schema(ref_template="#/definitions/{model}")
    top = _documented(RuleBook, models["properties"])
    definitions["EnvironmentVariable"] = _closed(
        rulebook.EnvironmentVariable, models["$defs"]["EnvironmentVariable"]
    )
    top["runners"]["uniqueItems"] = True
    top |= {
        "extends": {
            "type": "string",
            "pattern": NAME_PATTERN,
            "description": "A book of this folder, without .yaml: this one is like it but for what it says.",
        },
        "remove": {
            "type": "array",
            "items": {"type": "string"},
            "uniqueItems": True,
            "description": "Ids of rules and consequences of the extended book that no longer hold.",
        },
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Dodona rule book",
        "description": "docs/rules.md is the reference of the language.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **top,
            "consequences": {"type": "array"},
            "rules": {"type": "array"},
            "assume": {},
            "exceptions": {"type": "array"},
        },
        "dependencies": {"remove": ["extends"]},
        "if": {"required": ["extends"]},
        "then": _book_of(_ANY),
        "else": {"required": models["required"], **_book_by_system()},
        "definitions": dict(sorted(definitions.items())),
    }


def schema_text() -> str:
    """The content of rules/schema.json."""
    return json.dumps(rule_file_schema(), indent=1, ensure_ascii=False) + "\n"


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _book_by_system() -> Schema:
    """By a book's `system`: what it may hold. A system that is not registered has the facts of Dodona's."""
    own, *others = registered_systems()
    found = _book_of(own)
    for system in others:
        named = {"properties": {"system": {"const": system}}, "required": ["system"]}
        found = {"if": named, "then": _book_of(system), "else": found}
    return found


def _book_of(system: str) -> Schema:
    rules: Schema = {"items": _ref(f"{system}.rule"), "maxItems": rulebook.MAX_RULES}
    if system != _ANY:
        rules["minItems"] = 1
    return {
        "properties": {
            "consequences": {"items": _ref(f"{system}.consequence"), "maxItems": rulebook.MAX_RULES},
            "rules": rules,
            "assume": {"anyOf": [_ref(f"{system}.facts"), {"type": "null"}]},
            "exceptions": {"items": _ref(f"{system}.exception")},
        }
    }


def _system_definitions(system: str, shapes: _Shapes) -> dict[str, Schema]:
    """What conditions, examples and rules of books of a system may hold."""
    models = RuleBook.model_json_schema(ref_template="#/definitions/{model}")["$defs"]
    facts, condition = _ref(f"{system}.facts"), _ref(f"{system}.condition")
    examples = _closed(Examples, models["Examples"])
    examples["properties"]["fires"]["items"] = facts
    examples["properties"]["passes"]["items"] = facts
    exception = _closed(DeclaredException, models["DeclaredException"])
    exception["properties"]["witness"] |= facts
    rule = _closed(Rule, models["Rule"])
    for name in ("runners", "refines", "refs"):
        rule["properties"][name]["uniqueItems"] = True
    rule["properties"]["feature"]["pattern"] = _BALANCED
    rule["properties"]["when"] |= condition
    rule["properties"]["examples"] = _ref(f"{system}.examples")
    rule["allOf"] = _by_kind(complete=system != _ANY)
    consequence = _closed(Consequence, models["Consequence"])
    for name in ("runners", "refs"):
        consequence["properties"][name]["uniqueItems"] = True
    consequence["properties"]["feature"]["pattern"] = _BALANCED
    consequence["properties"]["when"] |= condition
    consequence["properties"]["examples"] = _ref(f"{system}.examples")
    if system == _ANY:
        # of a rule that the extended book has, only what differs
        rule["required"] = consequence["required"] = ["id"]
    registries = [
        system_of(s).facts_for(None) for s in (registered_systems() if system == _ANY else (system,))
    ]
    names = sorted({name for registry in registries for name in registry})
    compared, valued = {}, {}
    for name in names:
        specs = [registry[name] for registry in registries if name in registry]
        doc = next((spec.doc for spec in specs if spec.doc), name)
        compared[name] = shapes.either("comparison", specs, _comparison) | {"description": doc}
        valued[name] = shapes.either("value", specs, _value) | {"description": doc}
    junctions = {
        word: {"type": "array", "minItems": 1, "items": condition, "description": text}
        for word, text in _FORMS.items()
    }
    negation = condition | {"description": "Holds when its part does not."}
    return {
        f"{system}.condition": {
            "description": "Exactly one key: a fact, `all`, `any` or `not`.",
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
            "properties": {**junctions, "not": negation, **compared},
        },
        f"{system}.facts": {
            "description": "Facts and their values; those left out are unknown.",
            "type": "object",
            "minProperties": 1,
            "additionalProperties": False,
            "properties": valued,
        },
        f"{system}.examples": examples,
        f"{system}.consequence": consequence,
        f"{system}.exception": exception,
        f"{system}.rule": rule,
    }


def _by_kind(*, complete: bool) -> list[Schema]:
    """What an override has and requires and vetoes have not, and the other way round."""

    def when(kind: Schema, then: Schema) -> Schema:
        return {"if": {"properties": {"kind": kind}, "required": ["kind"]}, "then": then}

    override: Schema = {
        "properties": {"runners": {"maxItems": 1}, "stage": {"const": "both"}, "refines": {"maxItems": 0}}
    }
    if complete:
        override["required"] = ["precedence"]
    against = {
        "properties": {
            "runners": {"minItems": 1},
            "precedence": {"type": "null"},
            "unless_vetoed": {"type": "null"},
        }
    }
    return [when({"const": "override"}, override), when({"enum": ["require", "veto"]}, against)]


# --- facts


def _scalar(spec: FactSpec) -> Schema:
    """A value of a fact, or an entry of a list."""
    if spec.type == "bool":
        return {"type": "boolean"}
    if spec.type == "int":
        low = -MAX_INTEGER if spec.minimum is None else spec.minimum
        high = MAX_INTEGER if spec.maximum is None else spec.maximum
        return {"type": "integer", "minimum": low, "maximum": high}
    if spec.domain is not None:
        return {"enum": list(spec.domain)}
    return {"type": "string", "maxLength": MAX_TEXT, "pattern": _PRINTABLE}


def _comparison(spec: FactSpec) -> Schema:
    """What a condition may compare a fact with."""
    scalar = _scalar(spec)
    operators: dict[str, Schema] = {}
    for name, operator in OPERATORS.items():
        if spec.type not in operator.types or (name == "is_set" and not spec.nullable):
            continue
        if name == "is_set":
            operators[name] = {"type": "boolean"}
        elif name in _LISTS:
            operators[name] = {"type": "array", "minItems": 1, "uniqueItems": True, "items": scalar}
        else:
            operators[name] = scalar
    compared = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "properties": operators,
    }
    return compared if spec.type == "list" else {"anyOf": [scalar, compared]}


def _value(spec: FactSpec) -> Schema:
    """What an example may give a fact."""
    value = {"type": "array", "items": _scalar(spec)} if spec.type == "list" else _scalar(spec)
    return {"anyOf": [value, {"type": "null"}]} if spec.nullable else value


class _Shapes:
    """What facts of one type and range have in common, each written once."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}

    def either(self, purpose: str, specs: Iterable[FactSpec], make: Callable[[FactSpec], Schema]) -> Schema:
        """A reference to the shape of a fact, or to each of those that it has in several registries."""
        refs: list[Schema] = []
        for spec in specs:
            ref = _ref(self._name(purpose, spec, make(spec)))
            if ref not in refs:
                refs.append(ref)
        return dict(refs[0]) if len(refs) == 1 else {"anyOf": refs}

    def _name(self, purpose: str, spec: FactSpec, shape: Schema) -> str:
        bounds = [f"from-{spec.minimum}" if spec.minimum is not None else ""]
        bounds += [f"to-{spec.maximum}" if spec.maximum is not None else ""]
        kind = spec.name if spec.domain is not None else "-".join(filter(None, [spec.type, *bounds]))
        name = f"{purpose}.{kind}{'.nullable' if spec.nullable else ''}"
        while self.definitions.setdefault(name, shape) != shape:
            name += ".other"
        return name


# --- models


def _closed(model: type, schema: Schema) -> Schema:
    """A model's schema with its fields' docstrings, and without titles."""
    return {
        "type": "object",
        "description": " ".join((model.__doc__ or "").split()),
        "additionalProperties": False,
        "properties": _documented(model, schema["properties"]),
        "required": schema["required"],
    }


def _documented(model: type, properties: Mapping[str, Schema]) -> dict[str, Schema]:
    found = {}
    for name, schema in properties.items():
        kept = _text_rules({key: value for key, value in schema.items() if key not in ("title", "default")})
        text = _field_docs().get((model.__name__, name))
        found[name] = kept | ({"description": text} if text else {})
    return found


def _text_rules(schema: Schema) -> Schema:
    """A line of text holds at least one word."""
    if schema.get("type") == "string" and "maxLength" in schema and "pattern" not in schema:
        return schema | {"pattern": r"\S"}
    found = dict(schema)
    if "items" in schema:
        found["items"] = _text_rules(schema["items"])
    if "anyOf" in schema:
        found["anyOf"] = [_text_rules(item) for item in schema["anyOf"]]
    return found


@functools.cache
def _field_docs() -> dict[tuple[str, str], str]:
    """(model, field) → the text below the field, which Python does not keep."""
    docs = {}
    sources = [
        ast.parse(inspect.getsource(module)).body for module in (rule_module, consequence_module, rulebook)
    ]
    for cls in itertools.chain(*sources):
        if isinstance(cls, ast.ClassDef):
            for statement, after in zip(cls.body, cls.body[1:], strict=False):
                if (
                    isinstance(statement, ast.AnnAssign)
                    and isinstance(statement.target, ast.Name)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                ):
                    docs[cls.name, statement.target.id] = " ".join(str(after.value.value).split())
    return docs
