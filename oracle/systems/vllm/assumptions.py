"""What stands in for the part of a configuration that nobody gave: final field values, as vLLM fills them in.

Flags, config.json and the machine don't tell everything that vLLM knows when it chooses: its model classes
and its start-up fill in the rest. Such a fact takes vLLM's default, and the verdict lists it where a rule
depends on it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dodona.oracle.config.draft_method import current_method, method_by_name
from dodona.oracle.config.sections import CompilationMode
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.conditions import Facts, evaluate
from dodona.oracle.language.facts import UNKNOWN, FactValue, show_value
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import ALLOW_LONG, Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.readable import load_readable
from dodona.oracle.systems.vllm.facts import default_of
from dodona.oracle.systems.vllm.model_classes import Registry, registry_of
from dodona.oracle.systems.vllm.model_facts import architectures_of, model_section
from dodona.oracle.systems.vllm.startup_checks import (
    AUXILIARY_OUTPUT,
    code_refusal,
    dtype_refusal,
    is_before,
    length_refusal,
    parallelism_refusal,
    prompt_embeds_refusal,
    quantization_refusal,
    routed_experts_refusal,
    speculation_refusal,
)
from dodona.oracle.systems.vllm.weights import weights_refusal

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
        if value is UNKNOWN
    }


def decisive_assumptions(facts: Facts, model: ModelInfo, book: RuleBook) -> tuple[str, ...]:
    """Those of the assumed values on which some rule depends, as text."""
    assumed = assumed_facts(facts, model, book)
    open_facts = {
        name
        for rule in book.rules
        if not assumed.keys().isdisjoint(rule.reads) and evaluate(rule.fires_when, facts) is None
        for name in rule.reads
        if name in assumed
    }
    return tuple(
        f"{fact} = {show_value(value)} (not known)" for fact, value in assumed.items() if fact in open_facts
    )


def completed_sections(
    sections: Mapping[str, Any], model: ModelInfo, environment: Environment, release: str | None = None
) -> dict[str, Any]:
    """The sections with what config.json and vLLM's rules add, and UNKNOWN for what neither tells.

    release: whose model classes count; None: the newest one's.
    """
    given = {name: sections.get(name) or {} for name in ALWAYS_CONFIGURED}
    completed = {name: value for name, value in sections.items() if value is not None}
    registry = registry_of(release)
    told = model_section(given["model_config"], model, registry)
    refused = {
        "quantization_refusal": quantization_refusal(given["model_config"], model, registry),
        "dtype_refusal": dtype_refusal(given["model_config"], model, registry, environment),
        "length_refusal": (
            None if ALLOW_LONG in environment.variables else length_refusal(given["model_config"], model)
        ),
        "prompt_embeds_refusal": prompt_embeds_refusal(given["model_config"], model),
        "code_refusal": code_refusal(given["model_config"], model, registry),
        "weights_refusal": weights_refusal(sections, told, model, environment),
    }
    completed["model_config"] = {**told, **refused, **given["model_config"]}
    if told["is_multimodal_model"] is False:
        # vLLM configures it for multimodal models alone
        completed["model_config"].pop("multimodal_config", None)
    experts = "enable_return_routed_experts"
    auxiliary = dict(sections.get("aux_output_config") or {})
    if auxiliary.get(experts) or given["model_config"].get(experts):
        completed["model_config"][experts] = True
        if not is_before(registry, AUXILIARY_OUTPUT):
            # the flag sets both
            completed["aux_output_config"] = {**auxiliary, experts: True}
    cache = dict(given["cache_config"])
    cache.setdefault("enable_prefix_caching", _prefix_caching(told, registry))
    if told["has_inner_state"] or told["is_hybrid"]:
        cache.setdefault("mamba_cache_mode", UNKNOWN)
    completed["cache_config"] = cache
    parallel = dict(given["parallel_config"])
    if parallel.get("distributed_executor_backend") is None:
        parallel["distributed_executor_backend"] = _executor(parallel)
    parallel.setdefault("all2all_backend", "allgather_reducescatter")
    parallel.setdefault("refusal", parallelism_refusal(parallel))
    completed["parallel_config"] = parallel
    scheduler = dict(given["scheduler_config"])
    if scheduler.get("async_scheduling") is None:
        scheduler["async_scheduling"] = UNKNOWN
    splits = told["runner_type"] == "generate" and not told["is_encoder_decoder"]
    scheduler.setdefault("enable_chunked_prefill", True if splits else UNKNOWN)
    completed["scheduler_config"] = scheduler
    completed["compilation_config"] = _compilation(
        given["compilation_config"],
        eager=bool(given["model_config"].get("enforce_eager")),
        split=parallel.get("tensor_parallel_size") or 1,
        hidden_size=model.text.get("hidden_size"),
        breakable=_breakable_graphs(told["architectures"], environment, registry),
    )
    attention = dict(given["attention_config"])
    if (sections.get("kv_transfer_config") or {}).get("kv_connector") == "HiSparseConnector":
        # the connector turns the attention on
        attention.setdefault("hisparse_config", {})
    completed["attention_config"] = attention
    completed["model_config"]["routed_experts_refusal"] = routed_experts_refusal(completed, registry)
    if sections.get("speculative_config") is not None:
        completed["speculative_config"] = _speculative(
            sections["speculative_config"], model, registry, parallel.get("pipeline_parallel_size") or 1
        )
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


_SEQUENCE_PARALLEL_WIDTH: Final = 8192
"""Smallest hidden size for which vLLM keeps sequence parallelism that no threshold is given for."""


_CACHES_PREFIXES_OF_HYBRIDS: Final = (0, 26, 0)
"""First release that does so where nothing is said."""


def _prefix_caching(told: Mapping[str, Any], registry: Registry) -> FactValue:
    """Whether prefixes of a generative model with inner states are cached where nothing is said."""
    if told["runner_type"] != "generate":
        return UNKNOWN
    if told["is_hybrid"] is True:
        return not is_before(registry, _CACHES_PREFIXES_OF_HYBRIDS)
    return False if told["is_attention_free"] is True else UNKNOWN


def _executor(parallel: Mapping[str, Any]) -> FactValue:
    """What starts the workers where nothing says so."""
    names = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    sizes = [parallel.get(name) or 1 for name in names]
    if parallel.get("prefill_context_parallel_size") not in (None, 1) or not all(
        isinstance(size, int) for size in sizes
    ):
        return UNKNOWN
    return "uni" if sizes == [1, 1, 1] else "mp"


def _breakable_graphs(
    architectures: Sequence[str], environment: Environment, registry: Registry
) -> bool | None:
    """Whether CUDA graphs take the place of compilation, whatever mode is asked for; None: not known."""
    if not registry.breakable_graphs or environment.platform != "cuda":
        return False
    if "VLLM_USE_BREAKABLE_CUDAGRAPH" in environment.variables:
        return None
    return not registry.breakable_graphs.isdisjoint(architectures)


def _compilation(
    given: Mapping[str, Any], *, eager: bool, split: int, hidden_size: object, breakable: bool | None
) -> dict[str, Any]:
    completed = dict(given)
    mode = completed.get("mode")
    if isinstance(mode, (int, str)) and not isinstance(mode, bool):
        try:
            completed["mode"] = CompilationMode.of(mode).name
        except ValueError as error:
            raise ConfigError(f"compilation_config.mode: {error}, got {mode!r}") from None
    if eager or breakable:
        # nothing is compiled, whatever else is asked for
        completed["mode"] = "NONE"
    elif breakable is None:
        completed["mode"] = UNKNOWN
    elif mode is None:
        completed["mode"] = "VLLM_COMPILE"
    graphs = completed.get("cudagraph_mode")
    if isinstance(graphs, str):
        completed["cudagraph_mode"] = graphs.upper()
    elif graphs is None:
        completed["cudagraph_mode"] = "NONE" if eager else UNKNOWN
    passes = _section(completed, "pass_config", "compilation_config")
    asked = bool(passes.get("enable_sp") or passes.get("fuse_gemm_comms"))
    wide = passes.get("sp_min_token_num") is not None or (
        isinstance(hidden_size, int) and hidden_size >= _SEQUENCE_PARALLEL_WIDTH
    )
    # vLLM switches it off before anything looks at it: on one device, and for small models
    passes["enable_sp"] = asked and split != 1 and wide
    completed["pass_config"] = passes
    return completed


def _section(place: Mapping[str, Any], name: str, within: str) -> dict[str, Any]:
    value = place.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{within}.{name}: expected a section, got {value!r}")
    return dict(value or {})


def _speculative(
    given: Mapping[str, Any], model: ModelInfo, registry: Registry, stages: object
) -> dict[str, Any]:
    completed = dict(given)
    name = given.get("model")
    draft = load_readable(name) if isinstance(name, str) and os.path.isdir(name) else None
    method = given.get("method")
    if isinstance(method, str):
        completed["method"] = current_method(method)
    else:
        completed["method"] = _method(name, draft)
    completed["refusal"] = speculation_refusal(given, completed["method"], model, draft, registry, stages)
    if completed["method"] == "dflash":
        completed["parallel_drafting"] = True
    if completed["method"] in ("ngram", "ngram_gpu", "suffix"):
        # the target stands in for it
        completed.setdefault("draft_model_config", {"architectures": list(architectures_of(model))})
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
