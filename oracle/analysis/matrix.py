"""Architectures against features: which runner a rule book gives to each pair.

Architectures are those that the book's rules name and one for each kind of model, with what their family's
default config.json says; features are one for each rule that configuration alone can make fire, taken from
the rule's own examples. All are asked for a machine with a Hopper GPU. Architectures that come out alike for
every feature share a column.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dodona.oracle.analysis.architectures import PLAIN_ARCHITECTURE, typical_model
from dodona.oracle.analysis.space import sections_of
from dodona.oracle.decide.evaluate import evaluate
from dodona.oracle.language.condition_text import describe
from dodona.oracle.language.conditions import Facts, comparisons
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.language.rule import Rule, RunnerName
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import plain_gpu
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.registry import system_of

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
class Note:
    """A consequence of the book, and where it is reported."""

    consequence: str
    severity: str
    runners: tuple[RunnerName, ...]
    feature: str
    where: str
    """The condition, as text."""


@dataclass(frozen=True)
class Matrix:
    """The whole table of one rule book."""

    rulebook: str
    system: str
    description: str
    features: tuple[Feature, ...]
    columns: tuple[Column, ...]
    runners: tuple[str, ...]
    """In the book's order of preference."""
    notes: tuple[Note, ...] = ()
    """The book's consequences."""

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
        notes = [dataclasses.asdict(note) for note in self.notes]
        return {"rulebook": self.rulebook, "features": features, "cells": rows, "consequences": notes}


def make_matrix(book: RuleBook) -> Matrix:
    """The matrix of a rule book, by the reference evaluator."""
    features = (Feature((), "nothing special", {}), *_features(book))
    alike: dict[tuple[Cell, ...], list[Model]] = {}
    for architecture, info in _architectures(book):
        facts = _plain_facts(book, info)
        cells = tuple(_cell(book, _asking(book, facts, feature.facts)) for feature in features)
        fired = tuple(firing.rule for firing in evaluate(book, facts).firings)
        alike.setdefault(cells, []).append(Model(architecture, _kind(info), fired))
    columns = tuple(Column(tuple(models), cells) for cells, models in alike.items())
    notes = tuple(
        Note(c.id, c.severity, c.runners, c.feature, describe(c.when, book.facts)) for c in book.consequences
    )
    return Matrix(book.rulebook, book.system, book.description, features, columns, book.runners, notes)


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
        yield architecture, typical_model(architecture, more)


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


def _plain_facts(book: RuleBook, info: ModelInfo) -> Facts:
    """What the book's rules see of a model where nothing special is asked for."""
    plain = {"model_config": {"model": "model"}}
    return system_of(book.system).deploy(plain, plain_gpu(), book, model=info).facts()


# --- features -----------------------------------------------------------------------------------------------


def _features(book: RuleBook) -> Iterator[Feature]:
    """One for each rule that configuration alone makes fire on a plain model."""
    plain = _plain_facts(book, typical_model(PLAIN_ARCHITECTURE))
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
    system = system_of(book.system)
    for example in rule.examples.fires:
        asked = {name: value for name, value in example.items() if plain.get(name) != value}
        # leaving a section out asks for nothing
        if all(value is None for value in asked.values()):
            continue
        if all(system.accepts(book.facts[name], value) for name, value in asked.items()):
            return asked
    return None


def _asking(book: RuleBook, facts: Facts, asked: Mapping[str, FactValue]) -> Facts:
    """A model's facts where a configuration also asks for something: its sections are then configured."""
    system, found = system_of(book.system), dict(facts)
    for name, value in asked.items():
        sections = [name] if book.facts[name].section else sections_of(name, book.facts)
        for section in sections if value is not None else ():
            if found.get(section) is None:
                found[section] = True
                found |= system.section_facts(section, book.assume)
    return {**found, **asked}
