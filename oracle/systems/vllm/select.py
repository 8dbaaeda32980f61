"""What a vLLM release would decide about a deployment as operators write it: a model and vLLM's flags.

Flags, config.json and the machine don't tell everything that vLLM knows when it chooses: its model classes
and its start fill in the rest. Such a fact takes vLLM's default, and the verdict lists it where a rule hangs
on it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import SECTIONS, CompilationMode
from dodona.oracle.errors import ConfigError, did_you_mean
from dodona.oracle.language.conditions import evaluate
from dodona.oracle.language.facts import UNKNOWN, FactValue, Unknown, show_value
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import OVERRIDE_VARIABLE, Environment
from dodona.oracle.models.hub import resolve_model
from dodona.oracle.models.known_models import known_architectures
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.vllm.arguments import Arguments, from_command_line, from_flat
from dodona.oracle.systems.vllm.facts import VLLM_FACTS, config_facts, default_of

_NO_DRAFT: Final = ("ngram", "ngram_gpu", "suffix", "custom_class")
"""Speculative methods without a draft model."""

_METHOD_BY_NAME: Final = (
    ("eagle3", "eagle3"),
    ("eagle-", "eagle"),
    ("dflash", "dflash"),
    ("medusa", "medusa"),
)
"""Signs in a draft model's name → the method that vLLM reads off it; the first one counts."""

_METHOD_BY_TYPE: Final = ("medusa", "mlp_speculator", "eagle", "dspark", "extract_hidden_states")
"""Model types of draft models that are a method's name."""


@dataclasses.dataclass(frozen=True)
class Described:
    """A deployment of vLLM as far as it is known."""

    config: EngineConfig
    """The part of it that this runtime's configuration has too."""
    sections: Mapping[str, Any]
    """vLLM's configuration as it was written, nested."""
    facts: Mapping[str, FactValue]
    """Facts for the book, with a value for each."""
    assumptions: tuple[str, ...]


def read_config(config: object) -> Arguments:
    """Nested sections from an EngineConfig, a mapping of sections, a model directory (or hub id), or a
    `vllm serve …` command line (a text that begins so, or a list of words). Raises ConfigError.
    """
    if isinstance(config, EngineConfig):
        return Arguments(config.to_mapping())
    if isinstance(config, Mapping):
        return Arguments(_checked(config))
    if isinstance(config, str) and config.split(maxsplit=1)[:1] == ["vllm"] and not os.path.isdir(config):
        return from_command_line(config)
    if isinstance(config, (str, os.PathLike)):
        return from_flat({"model": os.fspath(config)})
    if isinstance(config, Sequence) and all(isinstance(word, str) for word in config):
        return from_command_line(config)
    raise ConfigError(
        "expected an EngineConfig, a mapping, a model directory or a `vllm serve` command line, "
        f"got {type(config).__name__}"
    )


def describe(arguments: Arguments, book: RuleBook, environment: Environment | None = None) -> Described:
    """Read the model's config.json and derive every fact of `book`. Raises ConfigError.

    environment: what to decide for; None: this machine, and the book's environment variable.
    """
    sections = arguments.sections
    model = model_of(sections)
    environment = detected(book) if environment is None else environment
    facts = known_facts(sections, model, environment, book)
    assumed = assumed_facts(facts, model, book)
    matters = _open(book, facts)
    notes = [f"{fact} = {show_value(assumed[fact])} (not known)" for fact in assumed if fact in matters]
    notes += [f"{flag} is not known here, and was left alone" for flag in arguments.unknown]
    return Described(_shared(sections), sections, {**facts, **assumed}, tuple(notes))


def model_of(sections: Mapping[str, Any]) -> ModelInfo:
    """What the config.json of a configuration's model says. Raises ConfigError."""
    given = sections.get("model_config") or {}
    name = given.get("model")
    if not isinstance(name, str) or not name:
        raise ConfigError("no model: name a model directory or a hub id")
    return ModelInfo.load(resolve_model(name, revision=given.get("revision")))


def known_facts(
    sections: Mapping[str, Any], model: ModelInfo, environment: Environment, book: RuleBook
) -> dict[str, FactValue]:
    """Every fact of the book, `UNKNOWN` where neither flags nor config.json nor machine tell it. Raises
    ConfigError.
    """
    return {
        **config_facts(_completed(sections, model), book.assume),
        "environment.override": environment.override,
        "environment.has_triton": environment.has_triton,
        "environment.platform": environment.platform,
        "environment.logitsproc_plugins": environment.logitsproc_plugins,
    }


def assumed_facts(facts: Mapping[str, FactValue], model: ModelInfo, book: RuleBook) -> dict[str, FactValue]:
    """What stands in for those of the facts that are unknown."""
    guesses: dict[str, FactValue] = {"speculative_config.method": "draft_model"}
    if model.architectures:
        guesses["model_config.architecture"] = model.architectures[0]
    return {
        fact: guesses[fact] if fact in guesses else default_of(fact, book.assume)
        for fact, value in facts.items()
        if isinstance(value, Unknown)
    }


def detected(book: RuleBook, *, machine: Environment | None = None) -> Environment:
    """This machine (or `machine`), and the runner that the book's environment variable asks for."""
    if machine is None:
        machine = Environment.detect({k: v for k, v in os.environ.items() if k != OVERRIDE_VARIABLE})
    variable = book.environment
    override = None if variable is None else variable.parse(os.environ.get(variable.variable))
    return dataclasses.replace(machine, override=override)  # type: ignore[arg-type]


def _open(book: RuleBook, facts: Mapping[str, FactValue]) -> set[str]:
    """The unknown facts on which some rule hangs."""
    return {
        name
        for rule in book.rules
        if evaluate(rule.fires_when, facts) is None
        for name in rule.reads
        if isinstance(facts[name], Unknown)
    }


# --- what flags and config.json say -------------------------------------------------------------------------


def _completed(sections: Mapping[str, Any], model: ModelInfo) -> dict[str, Any]:
    """The sections with what config.json and vLLM's rules add, and UNKNOWN for what neither tells."""
    given = {name: sections.get(name) or {} for name in ALWAYS_CONFIGURED}
    completed = {name: value for name, value in sections.items() if value is not None}
    completed["model_config"] = {**_model(given["model_config"], model), **given["model_config"]}
    cache = dict(given["cache_config"])
    if model.has_inner_state:
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


def _model(given: Mapping[str, Any], model: ModelInfo) -> dict[str, Any]:
    runner = given.get("runner")
    return {
        "architectures": list(model.architectures),
        "architecture": model.architectures[0] if len(model.architectures) == 1 else UNKNOWN,
        "runner_type": model.default_runner if runner in (None, "auto") else runner,
        "is_moe": model.is_moe,
        "is_quantized": bool(given.get("quantization") or model.quant_method),
        "has_inner_state": model.has_inner_state,
        "is_hybrid": model.has_inner_state and not model.is_attention_free,
        "is_attention_free": model.is_attention_free,
        "is_diffusion": False if any(map(_is_causal, model.architectures)) else UNKNOWN,
        "is_encoder_decoder": model.is_encoder_decoder,
        "is_multimodal_model": model.is_multimodal,
        "use_mla": model.use_mla,
    }


def model_section(model: ModelInfo) -> dict[str, Any]:
    """vLLM's `model_config` as far as config.json alone tells it, with UNKNOWN for what it doesn't."""
    return _model({}, model)


def _is_causal(architecture: str) -> bool:
    """Whether transformers has it as a causal language model, which no diffusion model is."""
    return architecture.endswith("ForCausalLM") and architecture in known_architectures()


def _compilation(given: Mapping[str, Any], *, eager: bool, split: bool) -> dict[str, Any]:
    completed = dict(given)
    mode = completed.get("mode")
    if isinstance(mode, (int, str)) and not isinstance(mode, bool):
        completed["mode"] = _mode(mode)
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


def _mode(mode: int | str) -> str:
    number = int(mode) if isinstance(mode, int) or mode.isdecimal() else None
    for known in CompilationMode:
        if known.value == number or known.name == str(mode).upper():
            return known.name
    modes = ", ".join(f"{m.name} ({m.value})" for m in CompilationMode)
    raise ConfigError(f"compilation_config.mode: expected one of {modes}, got {mode!r}")


def _speculative(given: Mapping[str, Any]) -> dict[str, Any]:
    completed = dict(given)
    name = given.get("model")
    draft = ModelInfo.load(name) if isinstance(name, str) and os.path.isdir(name) else None
    method = given.get("method")
    if isinstance(method, str):
        # vLLM's older names say which family's MTP; it renames them before anything reads them
        completed["method"] = "mtp" if method.endswith("_mtp") else method
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
    text = name.lower() if isinstance(name, str) else ""
    if text in ("ngram", "[ngram]"):
        return "ngram"
    for sign, method in _METHOD_BY_NAME:
        if sign in text:
            return method
    if draft is None:
        return UNKNOWN
    if draft.model_type.endswith("_mtp"):
        return "mtp"
    return draft.model_type if draft.model_type in _METHOD_BY_TYPE else "draft_model"


# --- mappings -----------------------------------------------------------------------------------------------


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of sections in which nothing that rules read looks misspelt. Raises ConfigError."""
    fields: dict[str, set[str]] = {
        section: {field.name for field in dataclasses.fields(cls)} for section, cls in SECTIONS.items()
    }
    for spec in VLLM_FACTS.values():
        for path in spec.reads:
            section, _, rest = path.partition(".")
            fields.setdefault(section, set()).update({rest.split(".")[0]} - {""})
    for section, value in config.items():
        if section not in fields:
            hint = did_you_mean(str(section), fields)
            if hint:
                raise ConfigError(f"{section}: no such section; {hint}")
        elif value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{section}: expected a section, got {value!r}")
        elif value is not None and section in _STRICT:
            for field in value:
                hint = "" if field in fields[section] else did_you_mean(str(field), fields[section])
                if hint:
                    raise ConfigError(f"{section}.{field}: no such field; {hint}")
    return dict(config)


_STRICT: Final = ("model_config", "parallel_config", "cache_config", "scheduler_config", "speculative_config")


def _shared(sections: Mapping[str, Any]) -> EngineConfig:
    shared = {
        section: {f.name: value[f.name] for f in dataclasses.fields(cls) if value.get(f.name) is not None}
        for section, cls in SECTIONS.items()
        if isinstance(value := sections.get(section), Mapping)
    }
    try:
        return EngineConfig.from_mapping(shared)
    except ConfigError:
        # vLLM's values may be ones that this runtime doesn't have
        return EngineConfig.from_flat(sections["model_config"]["model"])
