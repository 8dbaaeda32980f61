"""Random small rule books over a few facts, for brute force: every combination of values, one by one.

Nothing here uses `dodona.oracle.analysis` but to read a book's text.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import strategies as st

from dodona.oracle.language.conditions import evaluate
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.language.rule import Rule
from dodona.oracle.language.rulebook import RuleBook

OVERRIDE = "environment.override"

VALUES: Mapping[str, tuple[FactValue, ...]] = {
    "parallel_config.tensor_parallel_size": (1, 2, 3, 4, 5, 6),
    "model_config.head_size": (None, 63, 64, 65, 128, 129),
    "model_config.is_moe": (False, True),
    "model_config.runner_type": ("generate", "pooling", "draft"),
    "model_config.hidden_act": (None, "silu", "gelu", "relu"),
    "model_config.architectures": tuple(
        chosen for n in range(4) for chosen in itertools.combinations(("A", "B", "Qwen3ForCausalLM"), n)
    ),
    "speculative_config": (None, True),
    "speculative_config.method": (None, "eagle", "mtp", "ngram"),
}
"""Values that reach every class of the constants below."""

CONSTANTS: Mapping[str, tuple[Any, ...]] = {
    "parallel_config.tensor_parallel_size": (1, 2, 4, 5),
    "model_config.head_size": (64, 128),
    "model_config.is_moe": (True, False),
    "model_config.runner_type": ("generate", "pooling", "draft"),
    "model_config.hidden_act": ("silu", "gelu"),
    "model_config.architectures": ("A", "B", "Qwen3ForCausalLM"),
    "speculative_config": (True,),
    "speculative_config.method": ("eagle", "mtp"),
}

_OPERATORS = {"bool": ["eq", "ne"], "str": ["eq", "ne", "in", "not_in"], "list": ["any_in"]}


def comparisons(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """One comparison of one of the facts, as data."""

    @st.composite
    def draw(pick: st.DrawFn) -> dict[str, Any]:
        name = pick(st.sampled_from(names))
        constants = CONSTANTS[name]
        kind = {bool: "bool", int: "int", str: "str"}[type(constants[0])]
        kind = "list" if name == "model_config.architectures" else kind
        operators = _OPERATORS.get(kind, ["eq", "ne", "lt", "le", "gt", "ge", "in", "not_in"])
        nullable = None in VALUES[name]
        op = pick(st.sampled_from([*operators, "is_set"] if nullable else operators))
        if op == "is_set":
            return {name: {op: pick(st.booleans())}}
        if op in ("in", "not_in", "any_in"):
            return {name: {op: pick(st.lists(st.sampled_from(constants), min_size=1, unique=True))}}
        return {name: {op: pick(st.sampled_from(constants))}}

    return draw()


def conditions(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """A condition of at most two levels, as data."""
    leaf = comparisons(names)
    several = st.lists(st.one_of(leaf, leaf.map(lambda c: {"not": c})), min_size=1, max_size=3)
    return st.one_of(
        leaf,
        leaf,
        several.map(lambda parts: {"all": parts}),
        several.map(lambda parts: {"any": parts}),
        several.map(lambda parts: {"not": {"all": parts}}),
    )


@st.composite
def rules(pick: st.DrawFn, names: tuple[str, ...], number: int, ids: list[str]) -> dict[str, Any]:
    """One rule as data; its examples say nothing."""
    kind = pick(st.sampled_from(["veto", "veto", "require", "override"]))
    rule: dict[str, Any] = {
        "id": f"r{number}",
        "kind": kind,
        "when": pick(conditions((*names, *names, OVERRIDE) if kind == "override" else names)),
        "feature": f"feature {number}",
        "because": "It is so.",
        "since": "2026-01-01",
        "examples": {"fires": [{OVERRIDE: None}], "passes": [{OVERRIDE: None}]},
    }
    if kind == "override":
        rule["runners"] = pick(st.sampled_from([["v1"], ["v2"], []]))
        rule["precedence"] = number + 1
        if pick(st.booleans()):
            rule["unless_vetoed"] = pick(st.sampled_from(["v1", "v2"]))
    else:
        rule["runners"] = pick(st.sampled_from([["v1"], ["v2"], ["v2"], ["v1", "v2"]]))
        rule["stage"] = pick(st.sampled_from(["choice", "startup", "both", "both"]))
    return rule


CONSTANTS = {**CONSTANTS, OVERRIDE: ("v1", "v2")}
VALUES = {**VALUES, OVERRIDE: (None, "v1", "v2")}


@st.composite
def book_data(pick: st.DrawFn) -> dict[str, Any]:
    """A book of up to five rules over up to three facts, as data."""
    names = tuple(
        pick(
            st.lists(
                st.sampled_from([n for n in VALUES if n != OVERRIDE]), min_size=1, max_size=3, unique=True
            )
        )
    )
    made = [pick(rules(names, i, [])) for i in range(pick(st.integers(1, 5)))]
    against = [rule for rule in made if rule["kind"] != "override"]
    for i, rule in enumerate(against):
        broader = [o["id"] for o in against[:i] if set(rule["runners"]) <= set(o["runners"])]
        if broader and pick(st.booleans()):
            rule["refines"] = [pick(st.sampled_from(broader))]
    return {
        "rulebook": "small",
        "description": "A small book.",
        "system": "dodona",
        "runners": pick(st.sampled_from([["v2", "v1"], ["v1", "v2"]])),
        "forced_refusal": pick(st.sampled_from(["choice", "startup"])),
        "rules": made,
    }


def text_of(data: Mapping[str, Any]) -> str:
    """The book's text: JSON is YAML."""
    return json.dumps(data)


def points(*books: RuleBook, unknown: bool = False) -> Iterator[dict[str, FactValue]]:
    """Every combination of values of the facts that the books read, and of the override and the sections."""
    names = sorted({OVERRIDE, *(name for book in books for name in book.reads)})
    if "speculative_config.method" in names and "speculative_config" not in names:
        names.append("speculative_config")
    values = [(*VALUES[name], UNKNOWN) if unknown else VALUES[name] for name in names]
    for chosen in itertools.product(*values):
        facts = dict(zip(names, chosen, strict=True))
        unset = facts.get("speculative_config", True) is None
        if not (unset and facts.get("speculative_config.method") is not None):
            yield facts


def fires(rule: Rule, facts: Mapping[str, FactValue]) -> bool:
    """Whether a rule fires for known facts."""
    return evaluate(rule.fires_when, facts) is True
