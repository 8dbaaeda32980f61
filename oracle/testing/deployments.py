"""Random deployments for a rule book, and what should hold of its counterfactuals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from hypothesis import reject
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dodona.oracle.decide.evaluate import evaluate
from dodona.oracle.errors import ConfigError
from dodona.oracle.explain.counterfactuals import counterfactuals
from dodona.oracle.language.facts import FactSpec, FactValue
from dodona.oracle.language.rule import RunnerName
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment, assumed_gpu
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.deployment import Change, Deployment
from dodona.oracle.systems.registry import system_of
from dodona.oracle.testing.strategies import (
    candidate_values,
    engine_config_mappings,
    environments,
    model_configs,
)

_MOST_SUBSETS: Final = 32


Parts = tuple[dict[str, Any], dict[str, Any], Environment]
"""Sections of a configuration, a config.json, and a machine."""

_PLAIN: Final = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16"}


def deployments(book: RuleBook) -> SearchStrategy[Deployment]:
    """Configurations, models and machines, as a rule book's system sees them."""
    return _parts(book).map(lambda parts: _deployment(book, parts))


def _parts(book: RuleBook) -> SearchStrategy[Parts]:
    # most random models and machines rule a runner out by themselves
    models = st.one_of(st.just(dict(_PLAIN)), model_configs())
    machines = st.one_of(st.just(assumed_gpu()), environments(runners=book.runners))
    fields = system_of(book.system).free_fields(book)
    sections = _sections(fields, book) if fields else engine_config_mappings()
    return st.tuples(sections, models, machines)


def _deployment(book: RuleBook, parts: Parts) -> Deployment:
    sections, config_json, machine = parts
    model = ModelInfo.from_mapping(config_json)
    return system_of(book.system).deploy(sections, machine, book, model=model)


def _sections(fields: Mapping[str, FactSpec], book: RuleBook) -> SearchStrategy[dict[str, Any]]:
    """Some of the fields, with values around what the book compares their facts with."""
    values = {
        path: st.sampled_from(candidate_values(spec, book, unknown=False)).map(_field(spec))
        for path, spec in fields.items()
    }
    return st.fixed_dictionaries({}, optional=values).map(_nested)


def _field(spec: FactSpec) -> Callable[[FactValue], Any]:
    """From a fact's value to one that its field may have."""

    def value(fact: FactValue) -> Any:
        if spec.section:
            return None if fact is None else {}
        if spec.type == "bool" and spec.name != spec.reads[0]:
            # the fact is whether the field holds anything
            return ["one"] if fact else []
        return list(fact) if isinstance(fact, tuple) else fact

    return value


def _nested(fields: dict[str, Any]) -> dict[str, Any]:
    sections: dict[str, Any] = {"model_config": {"model": "model"}}
    # a section first, then its fields
    for path, value in sorted(fields.items()):
        *parents, last = path.split(".")
        place: Any = sections
        for part in parents:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        place[last] = value
    if not isinstance(sections["model_config"], dict) or "model" not in sections["model_config"]:
        sections["model_config"] = {"model": "model"}
    return sections


def check_counterfactuals(book: RuleBook, data: st.DataObject) -> None:
    """For a random deployment: each set of changes leads to its runner and no subset does; and random changes
    that lead there have one of the sets in them. Raises AssertionError.
    """
    # the parts are what a failure shows: a whole book would hide them
    try:
        deployment = _deployment(book, data.draw(_parts(book)))
    except ConfigError:
        reject()  # a flag contradicts config.json: there is no verdict to change
    changes = deployment.changes()
    tried = data.draw(st.lists(st.sampled_from(changes), unique=True)) if changes else []
    for runner in book.runners:
        found = counterfactuals(deployment, runner)
        assert found.sets or found.blocked_by, f"nothing leads to {runner}, and nothing blocks it"
        for least in found.sets[:4]:
            assert _serves(deployment, least, runner), f"{_show(least)} doesn't lead to {runner}"
            for smaller in itertools.islice(_proper_subsets(least), _MOST_SUBSETS):
                assert not _serves(deployment, smaller, runner), (
                    f"{_show(smaller)} leads to {runner} as {_show(least)} does"
                )
        clash = any(a.clashes(b) for a, b in itertools.combinations(tried, 2))
        if found.complete and not clash and _serves(deployment, tried, runner):
            assert any(set(least) <= set(tried) for least in found), (
                f"{_show(tried)} leads to {runner}, and no set of the counterfactuals is in it"
            )


def _serves(deployment: Deployment, changes: Iterable[Change], runner: RunnerName) -> bool:
    outcome = evaluate(deployment.book, deployment.facts(changes)).outcome
    return outcome.runner == runner and not outcome.refusals


def _proper_subsets(changes: tuple[Change, ...]) -> Iterable[tuple[Change, ...]]:
    """Largest first."""
    for size in range(len(changes) - 1, -1, -1):
        yield from itertools.combinations(changes, size)


def _show(changes: Iterable[Change]) -> str:
    return "; ".join(map(str, changes)) or "no change"
