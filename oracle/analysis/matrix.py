"""Architectures against features: which runner a rule book gives to each pair.

Architectures are those that the book's rules name and one for each kind of model, with what their family's
default config.json says; features are one for each rule that configuration alone can make fire, taken from
the rule's own examples. All are asked for a machine with a Hopper GPU. Architectures that come out alike for
every feature share a column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dodona.oracle.analysis.blast import model_type_of
from dodona.oracle.analysis.space import sections_of
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.evaluate import evaluate
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.conditions import Facts, comparisons
from dodona.oracle.language.facts import UNKNOWN, FactSpec, FactValue
from dodona.oracle.language.rule import Rule, RunnerName
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import assumed_gpu
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.deployment import Deployment, OwnDeployment
from dodona.oracle.systems.own.facts import FACTS, derive_facts
from dodona.oracle.systems.registry import VLLM

KINDS: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (
    ("Qwen3ForCausalLM", {}),
    ("Phi3ForCausalLM", {}),
    ("Gemma2ForCausalLM", {}),
    ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ("Qwen3ForCausalLM", {"quantization_config": {"quant_method": "fp8"}}),
    ("MixtralForCausalLM", {}),
    ("DeepseekV3ForCausalLM", {}),
    ("JambaForCausalLM", {}),
    ("MambaForCausalLM", {}),
    ("Qwen2_5_VLForConditionalGeneration", {"vision_config": {}}),
    ("T5ForConditionalGeneration", {}),
    ("WhisperForConditionalGeneration", {}),
    ("BertModel", {}),
)
"""One model of each kind that engines tell apart: an architecture, and what its config.json adds."""


@dataclass(frozen=True)
class Model:
    """An architecture with the structure that its family usually has."""

    architecture: str
    note: str
    """What kind of model it is."""
    rules: tuple[str, ...]
    """The rules that fire for it where nothing special is asked for."""

    @property
    def name(self) -> str:
        """The architecture and the kind."""
        return f"{self.architecture} ({self.note})"


@dataclass(frozen=True)
class Feature:
    """What a configuration asks for, and the rules with that example; none of them: nothing special."""

    rules: tuple[str, ...]
    label: str
    facts: Mapping[str, FactValue]


@dataclass(frozen=True)
class Cell:
    """What a book gives to a model with a feature."""

    runner: RunnerName | None
    starts: bool


@dataclass(frozen=True)
class Column:
    """Models that come out alike, and their cells by feature."""

    models: tuple[Model, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Matrix:
    """The whole table of one rule book."""

    rulebook: str
    system: str
    description: str
    features: tuple[Feature, ...]
    columns: tuple[Column, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values: for each model and feature the runner, whether it starts, and what fires."""
        rows = [
            {
                "architecture": model.architecture,
                "kind": model.note,
                "feature": feature.label,
                "runner": cell.runner,
                "starts": cell.starts,
            }
            for column in self.columns
            for model in column.models
            for feature, cell in zip(self.features, column.cells, strict=True)
        ]
        features = [{"rules": feature.rules, "label": feature.label} for feature in self.features]
        return {"rulebook": self.rulebook, "features": features, "cells": rows}


def make_matrix(book: RuleBook) -> Matrix:
    """The matrix of a rule book, by the reference evaluator."""
    features = (Feature((), "nothing special", {}), *_features(book))
    alike: dict[tuple[Cell, ...], list[Model]] = {}
    for architecture, info in _architectures(book):
        facts = _deployment(book, info).facts()
        cells = tuple(_cell(book, _asking(book, facts, feature.facts)) for feature in features)
        fired = tuple(firing.rule for firing in evaluate(book, facts).firings)
        alike.setdefault(cells, []).append(Model(architecture, _kind(info), fired))
    columns = tuple(Column(tuple(models), cells) for cells, models in alike.items())
    return Matrix(book.rulebook, book.system, book.description, features, columns)


def _cell(book: RuleBook, facts: Facts) -> Cell:
    outcome = evaluate(book, facts).outcome
    return Cell(outcome.runner, outcome.runner is not None and not outcome.refusals)


# --- architectures ------------------------------------------------------------------------------------------


def _architectures(book: RuleBook) -> Iterator[tuple[str, ModelInfo]]:
    """The architectures that the book names, and one of each kind."""
    named = {
        str(name): None
        for rule in book.rules
        for comparison in comparisons(rule.when)
        if comparison.fact in ("model_config.architectures", "model_config.architecture")
        and isinstance(comparison.value, tuple)
        for name in comparison.value
    }
    wanted: list[tuple[str, Mapping[str, Any]]] = [(name, {}) for name in named]
    wanted += [kind for kind in KINDS if kind not in wanted]
    for architecture, more in wanted:
        yield architecture, _typical(architecture, more)


def _typical(architecture: str, more: Mapping[str, Any]) -> ModelInfo:
    """What a config.json says that leaves everything to its family's defaults."""
    return ModelInfo.from_mapping(
        {
            "architectures": [architecture],
            "model_type": model_type_of(architecture) or architecture,
            "torch_dtype": "bfloat16",
            **more,
        }
    )


def _kind(info: ModelInfo) -> str:
    parts = [
        f"quantized: {info.quant_method}" if info.quant_method else "",
        "encoder-decoder" if info.is_encoder_decoder else "",
        "multimodal" if info.is_multimodal else "",
        "attention-free" if info.is_attention_free else "hybrid" if info.has_inner_state else "",
        "mixture of experts" if info.is_moe else "",
        "latent attention" if info.use_mla else "",
        "pooling" if info.default_runner == "pooling" else "",
        f"RoPE {info.rope_type}" if info.rope_type in ("yarn", "longrope", "dynamic", "linear") else "",
    ]
    return ", ".join(part for part in parts if part) or "dense"


def _deployment(book: RuleBook, info: ModelInfo) -> Deployment:
    if book.system == VLLM:
        from dodona.oracle.systems.vllm.deployment import VllmDeployment

        return VllmDeployment({"model_config": {"model": "model"}}, info, assumed_gpu(), book)
    return OwnDeployment(EngineConfig.from_flat("model"), info, assumed_gpu(), book)


# --- features -----------------------------------------------------------------------------------------------


def _features(book: RuleBook) -> Iterator[Feature]:
    """One for each rule that configuration alone makes fire on a plain model."""
    plain = _deployment(book, _typical("Qwen3ForCausalLM", {})).facts()
    alike: dict[tuple[tuple[str, FactValue], ...], Feature] = {}
    for rule in book.rules:
        asked = _askable(book, rule, plain)
        if asked is not None:
            key = tuple(sorted(asked.items(), key=lambda item: item[0]))
            same = alike.get(key)
            label = _label(rule, _asking(book, plain, asked)) if same is None else same.label
            alike[key] = Feature((*(same.rules if same else ()), rule.id), label, asked)
    yield from alike.values()


def _label(rule: Rule, facts: Facts) -> str:
    """The feature's name without what it would show of facts that are null or unknown."""
    bare = rule.feature
    for name in re.findall(r"\{([^{}]*)\}", bare):
        if facts.get(name) in (None, UNKNOWN):
            shown = re.escape(f"{{{name}}}")
            bare = re.sub(rf"\s*(\([^()]*{shown}[^()]*\)|'{shown}'|{shown})", "", bare)
    return rule.model_copy(update={"feature": bare}).show_feature(facts)


def _askable(book: RuleBook, rule: Rule, plain: Facts) -> Mapping[str, FactValue] | None:
    """The first example that fires the rule and asks only for what configuration can say."""
    for example in rule.examples.fires:
        asked = {name: value for name, value in example.items() if plain.get(name) != value}
        # leaving a section out asks for nothing
        if all(value is None for value in asked.values()):
            continue
        if all(_can_ask(book, book.facts[name], value) for name, value in asked.items()):
            return asked
    return None


def _can_ask(book: RuleBook, spec: FactSpec, value: FactValue) -> bool:
    if spec.source == "config":
        return True
    if book.system == VLLM or not spec.reads:
        return False
    section, _, field = spec.reads[0].partition(".")
    mapping: dict[str, dict[str, Any]] = {"model_config": {"model": "model"}}
    mapping.setdefault(section, {})[field] = value
    try:
        EngineConfig.from_mapping(mapping)
    except ConfigError:
        return False
    return True


def _asking(book: RuleBook, facts: Facts, asked: Mapping[str, FactValue]) -> Facts:
    """A model's facts where a configuration also asks for something: its sections are then configured."""
    found = dict(facts)
    for name, value in asked.items():
        sections = [name] if book.facts[name].section else sections_of(name, book.facts)
        for section in sections if value is not None else ():
            if found.get(section) is None:
                found[section] = True
                found |= _empty_section(book, section)
    return {**found, **asked}


def _empty_section(book: RuleBook, section: str) -> dict[str, FactValue]:
    """The facts of a section that is configured without any field."""
    below = [name for name in book.facts if name.startswith(f"{section}.")]
    if book.system == VLLM:
        from dodona.oracle.systems.vllm.facts import default_of

        return {name: default_of(name, book.assume) for name in below}
    if book.facts is not FACTS:
        return {}
    config = EngineConfig.from_mapping({"model_config": {"model": "model"}, section: {}})
    return dict(derive_facts(config, None, assumed_gpu(), names=below))
