"""What a vLLM release decides, straight from the recorded history of its checks: a reference that shares no
code with the rule books.

`tests/data/vllm_history.json` holds, per release, the order of the checks and their predicates as short
Python-like expressions over dotted configuration fields. They are parsed with `ast` and evaluated on a
recorded case's own nested configuration; nothing is turned into facts or rules.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HISTORY = Path(__file__).resolve().parent.parent / "data" / "vllm_history.json"

DEFAULTS: Mapping[str, Any] = {
    "model_config.runner_type": "generate",
    "parallel_config.tensor_parallel_size": 1,
    "parallel_config.pipeline_parallel_size": 1,
    "parallel_config.prefill_context_parallel_size": 1,
    "parallel_config.decode_context_parallel_size": 1,
}
"""Fields whose default isn't false, null or empty, as far as a predicate tells those apart."""


class _Raised(Exception):
    """The choice itself raises."""


@dataclass(frozen=True)
class Answer:
    """What a release answers: `use_v2` None where the choice raised; lists None where it has no such list."""

    use_v2: bool | None
    starts: bool
    unsupported_v2: frozenset[str] | None
    unsupported_v1: frozenset[str] | None
    warnings: tuple[str, ...]


@functools.cache
def history() -> Mapping[str, Mapping[str, Any]]:
    """The record of each release, oldest first."""
    return {record["release"]: record for record in json.loads(HISTORY.read_text())["releases"]}


@functools.cache
def _parse(predicate: str) -> ast.expr:
    return ast.parse(predicate, mode="eval").body


class _Case:
    """One recorded configuration, read null-safely."""

    def __init__(self, record: Mapping[str, Any], case: Mapping[str, Any]) -> None:
        self.record = record
        self.case = case
        text = case["env"]
        self.env = None if text is None else int(bool(int(text)))

    def read(self, dotted: str) -> Any:
        rules = self.record["arch_rules"]
        on_rocm = self.case["platform"] == "rocm"
        if dotted == "ARCHS":
            return [
                a
                for a in self.record["architectures"] or ()
                if not (on_rocm and a in rules.get("rocm_excluded", ()))
            ]
        if dotted == "ROCM_V1_ARCHS":
            return rules.get("rocm_v1", [])
        if dotted == "v1_unsupported":
            return self.needs_v2()
        if dotted == "env":
            return self.env
        if dotted in ("has_triton", "platform", "logitsproc_plugins"):
            return self.case[dotted]
        value: Any = self.case["config"]
        for part in dotted.split("."):
            if value is None:
                return None
            value = value[part] if part in value else DEFAULTS.get(dotted)
        return value

    def evaluate(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value):
                return value
            case ast.List(elts):
                return [self.evaluate(item) for item in elts]
            case ast.Name(name):
                return (
                    {"null": None, "true": True, "false": False}.get(name)
                    if name
                    in (
                        "null",
                        "true",
                        "false",
                    )
                    else self.read(name)
                )
            case ast.Attribute():
                return self.read(ast.unparse(node))
            case ast.BoolOp(ast.And(), values):
                return all(self.evaluate(value) for value in values)
            case ast.BoolOp(ast.Or(), values):
                return any(self.evaluate(value) for value in values)
            case ast.UnaryOp(ast.Not(), operand):
                return not self.evaluate(operand)
            case ast.Call(ast.Name("any_in"), [left, right]):
                return any(item in self.evaluate(right) for item in self.evaluate(left) or ())
            case ast.Call(ast.Name("mixed_sliding"), [layer_types]):
                sliding = [item == "sliding_attention" for item in self.evaluate(layer_types) or ()]
                return any(sliding) and not all(sliding)
            case ast.Compare(left, [operator], [right]):
                return self._compare(self.evaluate(left), operator, self.evaluate(right))
        raise AssertionError(f"a predicate with {ast.unparse(node)}")

    def _compare(self, left: Any, operator: ast.cmpop, right: Any) -> bool:
        match operator:
            case ast.Eq():
                return bool(left == right)
            case ast.NotEq():
                return bool(left != right)
            case ast.In():
                return left is not None and left in right
            case ast.NotIn():
                return left is None or left not in right
            case ast.Gt():
                return left is not None and bool(left > right)
        raise AssertionError(f"a predicate with the operator {operator}")

    def holds(self, check: Mapping[str, Any]) -> bool:
        return bool(self.evaluate(_parse(check["predicate"])))

    def shown(self, text: str) -> str:
        def value(found: re.Match[str]) -> str:
            read = self.read(found[1])
            return ", ".join(read) if isinstance(read, list) else str(read)

        return re.sub(r"\{([a-z_.0-9]+)\}", value, text)

    def checks(self, stage: str) -> list[Mapping[str, Any]]:
        return sorted((c for c in self.record["checks"] if stage in c["stage"]), key=lambda c: c["order"])

    def vetoes(self, stage: str) -> list[str]:
        return [
            self.shown(c["feature_name"]) for c in self.checks(stage) if c["kind"] == "veto" and self.holds(c)
        ]

    def needs_v2(self) -> list[str]:
        return [
            self.shown(c["feature_name"])
            for c in self.checks("startup_v1")
            if c["when"] == "needs_v2" and self.holds(c)
        ]

    def choice(self, log: list[str]) -> bool:
        def say(entry: Mapping[str, Any] | None, names: list[str] | None = None) -> None:
            if entry is not None:
                log.append(self.shown(entry["message"].replace("{names}", ", ".join(names or ()))))

        for check in self.checks("select"):
            if check["kind"] == "override" and self.holds(check):
                say(check["log"])
                result = check["result"]
                if result.startswith("raise"):
                    raise _Raised
                if result == "env":
                    return bool(self.env)
                if result != "continue":
                    return bool(result == "V2")
            elif check["kind"] == "require" and not self.holds(check):
                say(check["log"])
                assert check["result"] == "V1"
                return False
        names = self.vetoes("select")
        if names:
            say(self.record["veto_log"], names)
        return not names

    def starts(self, use_v2: bool) -> bool:
        if not use_v2:
            return not self.needs_v2()
        required = [
            c for c in (*self.checks("startup_v2"), *self.checks("worker_init")) if c["kind"] == "require"
        ]
        return all(self.holds(c) for c in required) and not self.vetoes("startup_v2")


def answer(release: str, case: Mapping[str, Any]) -> Answer:
    """What `release` answers to a case: `config`, `env`, `has_triton`, `platform`, `logitsproc_plugins`."""
    record = history()[release]
    try:
        read = _Case(record, case)
        warnings: list[str] = []
        use_v2 = read.choice(warnings)
    except (_Raised, ValueError):
        return Answer(None, True, None, None, ())
    lists_v1 = record["needs_v2_error"] is not None
    return Answer(
        use_v2,
        read.starts(use_v2),
        frozenset(read.vetoes("startup_v2")),
        frozenset(read.needs_v2()) if lists_v1 else None,
        tuple(warnings),
    )
