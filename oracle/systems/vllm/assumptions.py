"""What stands in for the part of a configuration that nobody gave: final field values, as vLLM fills them in.

Flags, config.json and the machine don't tell everything that vLLM knows when it chooses: its model classes
and its start-up fill in the rest. Such a fact takes vLLM's default, and the verdict lists it where a rule
depends on it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from dodona.oracle.config.draft_method import current_method, method_by_name
from dodona.oracle.config.sections import CompilationMode
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.conditions import Facts, evaluate
from dodona.oracle.language.facts import UNKNOWN, FactValue, Unknown, show_value
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.readable import load_readable
from dodona.oracle.systems.vllm.facts import default_of
from dodona.oracle.systems.vllm.model_facts import architectures_of, model_section

_NO_DRAFT: Final = ("ngram", "ngram_gpu", "suffix", "custom_class")
"""Speculative methods without a draft model."""

_METHOD_BY_TYPE: Final = ("medusa", "mlp_speculator", "eagle", "dspark", "extract_hidden_states")
"""Model types of draft models that are a method's name."""


def assumed_facts(facts: Facts, model: ModelInfo, book: RuleBook) -> dict[str, FactValue]:
    """Values for those of the facts that are unknown."""
    guesses: dict[str, FactValue] = {"speculative_config.method": "draft_model"}
    named = architectures_of(model)
    if named:
        guesses["model_config.architecture"] = named[0]
    return {
        fact: guesses[fact] if fact in guesses else default_of(fact, book.assume)
        for fact, value in facts.items()
        if isinstance(value, Unknown)
    }


def decisive_assumptions(facts: Facts, model: ModelInfo, book: RuleBook) -> tuple[str, ...]:
    """Those of the assumed values on which some rule depends, as text."""
    assumed = assumed_facts(facts, model, book)
    open_facts = {
        name
        for rule in book.rules
        if evaluate(rule.fires_when, facts) is None
        for name in rule.reads
        if name in assumed
    }
    return tuple(
        f"{fact} = {show_value(value)} (not known)" for fact, value in assumed.items() if fact in open_facts
    )


def completed_sections(
    sections: Mapping[str, Any], model: ModelInfo, release: str | None = None
) -> dict[str, Any]:
    """The sections with what config.json and vLLM's rules add, and UNKNOWN for what neither tells.

    release: whose model classes count; None: the newest one's.
    """
    given = {name: sections.get(name) or {} for name in ALWAYS_CONFIGURED}
    completed = {name: value for name, value in sections.items() if value is not None}
    told = model_section(given["model_config"], model, release)
    completed["model_config"] = {**told, **given["model_config"]}
    cache = dict(given["cache_config"])
    if told["has_inner_state"]:
        cache.setdefault("mamba_cache_mode", UNKNOWN)
    completed["cache_config"] = cache
    completed["parallel_config"] = given["parallel_config"]
    scheduler = dict(given["scheduler_config"])
    if scheduler.get("async_scheduling") is None:
        scheduler["async_scheduling"] = UNKNOWN
    completed["scheduler_config"] = scheduler
    completed["compilation_config"] = _compilation(
        given["compilation_config"],
        eager=bool(given["model_config"].get("enforce_eager")),
        split=given["parallel_config"].get("tensor_parallel_size") not in (None, 1),
    )
    attention = dict(given["attention_config"])
    if (sections.get("kv_transfer_config") or {}).get("kv_connector") == "HiSparseConnector":
        # the connector turns the attention on
        attention.setdefault("hisparse_config", {})
    completed["attention_config"] = attention
    if sections.get("speculative_config") is not None:
        completed["speculative_config"] = _speculative(sections["speculative_config"])
    return completed


ALWAYS_CONFIGURED: Final = (
    "model_config",
    "cache_config",
    "parallel_config",
    "scheduler_config",
    "compilation_config",
    "attention_config",
)
"""Sections that vLLM always has."""


def _compilation(given: Mapping[str, Any], *, eager: bool, split: bool) -> dict[str, Any]:
    completed = dict(given)
    mode = completed.get("mode")
    if isinstance(mode, (int, str)) and not isinstance(mode, bool):
        try:
            completed["mode"] = CompilationMode.of(mode).name
        except ValueError as error:
            raise ConfigError(f"compilation_config.mode: {error}, got {mode!r}") from None
    graphs = completed.get("cudagraph_mode")
    if isinstance(graphs, str):
        completed["cudagraph_mode"] = graphs.upper()
    elif graphs is None:
        completed["cudagraph_mode"] = "NONE" if eager else UNKNOWN
    passes = _section(completed, "pass_config", "compilation_config")
    if passes.get("enable_sp") is None and split:
        passes["enable_sp"] = UNKNOWN
    completed["pass_config"] = passes
    return completed


def _section(place: Mapping[str, Any], name: str, within: str) -> dict[str, Any]:
    value = place.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{within}.{name}: expected a section, got {value!r}")
    return dict(value or {})


def _speculative(given: Mapping[str, Any]) -> dict[str, Any]:
    completed = dict(given)
    name = given.get("model")
    draft = load_readable(name) if isinstance(name, str) and os.path.isdir(name) else None
    method = given.get("method")
    if isinstance(method, str):
        completed["method"] = current_method(method)
    else:
        completed["method"] = _method(name, draft)
    if completed["method"] in _NO_DRAFT or "draft_model_config" in given:
        return completed
    layer_types = None if draft is None else draft.raw.get("layer_types")
    completed["draft_model_config"] = {
        "architectures": UNKNOWN if draft is None else list(draft.architectures),
        "hf_config": {"layer_types": UNKNOWN if draft is None else layer_types},
    }
    return completed


def _method(name: object, draft: ModelInfo | None) -> FactValue:
    told = method_by_name(name) if isinstance(name, str) else None
    if told is not None:
        return told
    if draft is None:
        return UNKNOWN
    if draft.model_type.endswith("_mtp"):
        return "mtp"
    return draft.model_type if draft.model_type in _METHOD_BY_TYPE else "draft_model"
