"""Random deployments for a rule book, and what should hold of its counterfactuals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.evaluate import evaluate
from dodona.oracle.explain.counterfactuals import counterfactuals
from dodona.oracle.language.facts import FactSpec, FactValue
from dodona.oracle.language.rule import RunnerName
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment, assumed_gpu
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.deployment import Change, Deployment, OwnDeployment
from dodona.oracle.systems.registry import VLLM
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
    """Configurations, models and machines, as a rule book of this runtime or of vLLM sees them."""
    return _parts(book).map(lambda parts: _deployment(book, parts))


def _parts(book: RuleBook) -> SearchStrategy[Parts]:
    # most random models and machines rule a runner out by themselves
    models = st.one_of(st.just(dict(_PLAIN)), model_configs())
    machines = st.one_of(st.just(assumed_gpu()), environments())
    sections = _vllm_sections(book) if book.system == VLLM else engine_config_mappings()
    return st.tuples(sections, models, machines)


def _deployment(book: RuleBook, parts: Parts) -> Deployment:
    sections, config_json, machine = parts
    model = ModelInfo.from_mapping(config_json)
    if book.system == VLLM:
        from dodona.oracle.systems.vllm.deployment import VllmDeployment

        return VllmDeployment(sections, model, machine, book)
    return OwnDeployment(EngineConfig.from_mapping(sections), model, machine, book)


def _vllm_sections(book: RuleBook) -> SearchStrategy[dict[str, Any]]:
    fields: dict[str, SearchStrategy[Any]] = {}
    for name in book.reads:
        spec = book.facts[name]
        for path in spec.reads if spec.source == "config" else ():
            if "draft_model_config" not in path:
                of_field = book.facts.get(path, spec)
                values = candidate_values(of_field, book, unknown=False)
                fields[path] = st.sampled_from(values).map(_field(of_field))
    return st.fixed_dictionaries({}, optional=fields).map(_nested)


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
    deployment = _deployment(book, data.draw(_parts(book)))
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
