"""The blast radius of an edit: real model architectures whose verdict it changes.

An architecture's facts are those of its model type as transformers' configuration class has them by default.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dodona.oracle.analysis.diagrams import FALSE
from dodona.oracle.analysis.regions import Kind, Regions
from dodona.oracle.decide.evaluate import evaluate
from dodona.oracle.language.conditions import comparisons
from dodona.oracle.language.facts import FactSpec, FactValue
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.own.facts import FACTS


@dataclass(frozen=True)
class Radius:
    """Which of the known architectures an edit affects."""

    known: int
    """How many architectures there are."""
    plain: Mapping[str, tuple[Kind, Kind]]
    """Those whose outcome differs in a plain configuration: before and after."""
    featured: tuple[str, ...]
    """Others, whose outcome differs with some configuration or on some machine."""


def blast_radius(before: Regions, after: Regions, outcome_differs: int) -> Radius:
    """The architectures whose outcome two books see differently; the regions are over one space."""
    space = before.space
    names = architectures(before.book, after.book)
    plain: dict[str, tuple[Kind, Kind]] = {}
    featured: list[str] = []
    read = set(before.book.reads) | set(after.book.reads)
    for name in names:
        of_model = {k: v for k, v in model_facts(name, before.book.system).items() if k in read}
        facts = {**space.baseline, **of_model}
        kinds = _kind(before.book, facts), _kind(after.book, facts)
        if kinds[0] != kinds[1]:
            plain[name] = kinds
        elif space.diagrams.all_of([outcome_differs, space.known, space.given(of_model)]) != FALSE:
            featured.append(name)
    return Radius(len(names), plain, tuple(featured))


def _kind(book: RuleBook, facts: Mapping[str, FactValue]) -> Kind:
    return evaluate(book, facts).outcome.kind


def architectures(*books: RuleBook) -> list[str]:
    """Known architectures of models with a head, and those that the books name."""
    from dodona.oracle.models.known_models import known_architectures

    named = {
        str(entry)
        for book in books
        for rule in book.rules
        for comparison in comparisons(rule.when)
        if comparison.fact in ("model_config.architectures", "model_config.architecture")
        and comparison.op != "is_set"
        for entry in (comparison.value if isinstance(comparison.value, tuple) else (comparison.value,))
    }
    return sorted(named | {name for name in known_architectures() if _HEAD.search(name)})


_HEAD = re.compile(r"(For[A-Z]\w+|LMHeadModel)$")
_HEAD_OR_NONE = re.compile(r"(For[A-Z]\w+|LMHeadModel|Model)$")


@functools.lru_cache(maxsize=4096)
def model_facts(architecture: str, system: str) -> Mapping[str, FactValue]:
    """The facts of config.json for an architecture, for the registry of `system`.

    Where no model type has the architecture's name, only the architecture itself is known of it.
    """
    from dodona.oracle.systems.registry import VLLM, facts_of

    registry = facts_of(system)
    model_type = model_type_of(architecture)
    if registry is FACTS and model_type is not None:
        return _own_facts(architecture, model_type)
    if system == VLLM and model_type is not None:
        return _vllm_facts(architecture, model_type, registry)
    named: dict[str, FactValue] = {
        "model_config.architectures": (architecture,),
        "model_config.architecture": architecture,
    }
    return {name: value for name, value in named.items() if name in registry}


def _own_facts(architecture: str, model_type: str) -> dict[str, FactValue]:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.language.facts import UNKNOWN
    from dodona.oracle.machine.environment import assumed_gpu
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.oracle.systems.own.facts import derive_facts

    model = ModelInfo.from_mapping(_config_json(architecture, model_type))
    names = [name for name, spec in FACTS.items() if spec.source == "model"]
    found = derive_facts(EngineConfig.from_flat("model"), model, assumed_gpu(), names=names)
    return {name: value for name, value in found.items() if value is not UNKNOWN}


def _vllm_facts(architecture: str, model_type: str, registry: Mapping[str, FactSpec]) -> dict[str, FactValue]:
    from dodona.oracle.language.facts import UNKNOWN
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.oracle.systems.vllm.facts import config_facts
    from dodona.oracle.systems.vllm.select import model_section

    section = model_section(ModelInfo.from_mapping(_config_json(architecture, model_type)))
    found = config_facts({"model_config": section})
    return {
        name: value
        for name, value in found.items()
        if registry[name].source == "model" and value is not UNKNOWN
    }


def _config_json(architecture: str, model_type: str) -> dict[str, object]:
    return {"architectures": [architecture], "model_type": model_type, "torch_dtype": "bfloat16"}


@functools.cache
def _model_types() -> Mapping[str, str]:
    from dodona.oracle.models.known_models import known_model_types

    return {name.replace("_", "").replace("-", ""): name for name in known_model_types()}


def model_type_of(architecture: str) -> str | None:
    """The model type that an architecture's name tells; None where none has its name."""
    stem = _HEAD_OR_NONE.sub("", architecture).replace("_", "").lower()
    types = _model_types()
    if architecture.endswith("ForCausalLM") and f"{stem}text" in types:
        return types[f"{stem}text"]
    return types.get(stem)
