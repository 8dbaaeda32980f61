"""The facts that rules about this runtime read: one registry, which names, types, documents and derives each.

To add a fact, add an `OwnFact` to the group of `_SPECS` where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import COMPILATION_MODES
from dodona.oracle.language.facts import MAX_INT, UNKNOWN, FactType, FactValue
from dodona.oracle.machine.environment import PLATFORMS, Environment
from dodona.oracle.machine.packages import PACKAGES
from dodona.oracle.models.math_modifiers import MATH_MODIFIERS
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.quantization import SCHEMES
from dodona.oracle.systems.fact import Fact, registry
from dodona.oracle.systems.own.connectors import (
    has_active_connector,
    has_connector_module,
    resolved_connector,
)
from dodona.oracle.systems.own.model_code import (
    has_causal_lm,
    is_row_by_row,
    needs_newer_transformers,
    outgrows_rope,
)
from dodona.oracle.systems.own.parallel import MAX_CPU_RANKS, exceeds_devices, fills_stages, splits_evenly
from dodona.oracle.systems.own.pooling import (
    POOLING_TASKS,
    PROMPT_STEPS,
    has_pooling_model,
    has_unused_pooler,
    pooling_task,
    prompt_steps,
)
from dodona.oracle.systems.own.quantization import (
    has_unread_experts,
    lacks_quantization_package,
    quantization_scheme,
)
from dodona.oracle.systems.own.resolved import (
    DTYPES,
    resolved_device,
    resolved_dtype,
    resolved_quantization,
    resolved_runner_type,
    resolved_speculative_method,
)


class Inputs(NamedTuple):
    """What facts are derived from. `model` is None where no config.json is at hand."""

    config: EngineConfig
    model: ModelInfo | None
    environment: Environment


@dataclass(frozen=True)
class OwnFact(Fact[Inputs]):
    """A fact of this runtime, and how it is derived."""


def _known(value: bool | None) -> FactValue:
    return UNKNOWN if value is None else value


def _speculative_method(inputs: Inputs) -> FactValue:
    if inputs.config.speculative_config is None:
        return None
    return resolved_speculative_method(inputs.config) or UNKNOWN


def _dtype(inputs: Inputs) -> FactValue:
    found = resolved_dtype(inputs.config, inputs.model, resolved_device(inputs.config, inputs.environment))
    if found is None:
        return UNKNOWN
    return found if found in DTYPES else "other"


def _attention_pattern(model: ModelInfo) -> FactValue:
    kinds = set(model.layer_kinds)
    if model.is_attention_free:
        return "none"
    if kinds <= {"full_attention"}:
        return "full"
    if kinds == {"sliding_attention"}:
        return "sliding"
    return "mixed" if kinds <= {"full_attention", "sliding_attention"} else "other"


def _of_model(read: Callable[[ModelInfo], Any]) -> Callable[[Inputs], FactValue]:
    def derive(inputs: Inputs) -> FactValue:
        return UNKNOWN if inputs.model is None else read(inputs.model)

    return derive


def _model(
    name: str, type: FactType, doc: str, read: Callable[[ModelInfo], Any] | None = None, **more: Any
) -> OwnFact:
    """A fact of config.json, by default the attribute of ModelInfo that has its name."""
    return OwnFact(
        f"model_config.{name}", type, doc, "model", derive=_of_model(read or attrgetter(name)), **more
    )


def _model_size(name: str, doc: str) -> OwnFact:
    """A size that config.json may not tell; null where the model has no attention and so no such thing."""

    def read(model: ModelInfo) -> FactValue:
        value: int | None = getattr(model, name)
        if value is None:
            return None if model.is_attention_free else UNKNOWN
        return min(value, MAX_INT)

    return _model(name, "int", doc, read, nullable=True, minimum=0)


def _field(path: str, type: FactType, doc: str, **more: Any) -> OwnFact:
    """A fact that is one field of the configuration; null where its section is not configured."""
    section, field = path.split(".")

    def derive(inputs: Inputs) -> FactValue:
        found = getattr(inputs.config, section)
        value: FactValue = None if found is None else getattr(found, field)
        return min(value, MAX_INT) if type == "int" and isinstance(value, int) else value

    if type == "int":
        more.setdefault("minimum", 1)
    return OwnFact(path, type, doc, "config", derive=derive, reads=(path,), **more)


def _section(name: str, doc: str) -> OwnFact:
    """Whether an optional section is configured: true, or null. An empty section is configured."""

    def derive(inputs: Inputs) -> FactValue:
        return None if getattr(inputs.config, name) is None else True

    return OwnFact(name, "bool", doc, "config", derive=derive, nullable=True, section=True)


def _environment(name: str, type: FactType, doc: str, **more: Any) -> OwnFact:
    def derive(inputs: Inputs) -> FactValue:
        value: FactValue = getattr(inputs.environment, name)
        return value

    return OwnFact(f"environment.{name}", type, doc, "environment", derive=derive, **more)


def _package(name: str) -> OwnFact:
    return OwnFact(
        f"environment.{name}",
        "str",
        f"Installed version of {name}; null where it isn't installed.",
        "environment",
        derive=lambda inputs: inputs.environment.version(name),
        nullable=True,
    )


_MODEL_SPECS = (
    _model("architectures", "list", "Model classes that config.json names."),
    _model("model_type", "str", "config.json's model type (of the language model, in a wrapper)."),
    OwnFact(
        "model_config.runner_type",
        "str",
        "What the model is served for; `auto` goes by the model's architecture and pooling module.",
        "model",
        derive=lambda i: resolved_runner_type(i.config, i.model) or UNKNOWN,
        domain=("generate", "pooling", "draft"),
        reads=("model_config.runner", "model_config.convert"),
    ),
    _field(
        "model_config.convert",
        "str",
        "What a pooling runner is to make of the model, as configured.",
        domain=("auto", "none", "embed", "classify"),
    ),
    OwnFact(
        "model_config.pooling_task",
        "str",
        "What a pooling runner computes, by `convert`, modules.json and architectures; `reward` is a head of "
        "its own, `other` an unknown module; null where the model is not for pooling.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else pooling_task(i.config, i.model),
        domain=POOLING_TASKS,
        nullable=True,
        reads=("model_config.convert", "model_config.runner"),
    ),
    OwnFact(
        "model_config.has_pooling_model",
        "bool",
        "transformers has a class of text models of this type for the pooling task; null without a task.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else has_pooling_model(i.config, i.model),
        nullable=True,
        reads=("model_config.convert", "model_config.runner"),
    ),
    OwnFact(
        "model_config.prompt_steps",
        "str",
        "Steps that a pooling model's prompt may need: `several` if it can be longer than "
        "`max_num_batched_tokens`, `too_long` if the model then can't go on after a chunk; null without a "
        "task.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else prompt_steps(i.config, i.model),
        domain=PROMPT_STEPS,
        nullable=True,
        reads=(
            "scheduler_config.max_num_batched_tokens",
            "model_config.max_model_len",
            "model_config.convert",
            "model_config.runner",
        ),
    ),
    OwnFact(
        "model_config.has_causal_lm",
        "bool",
        "transformers has a causal language model of this type, or trusted code comes with the model.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else has_causal_lm(i.config, i.model),
    ),
    _model(
        "transformers_since",
        "str",
        "First version of transformers that has the model type; null where all supported ones have it, or "
        "none.",
        nullable=True,
    ),
    OwnFact(
        "model_config.needs_newer_transformers",
        "bool",
        "The installed transformers is older than `transformers_since`, and no trusted code comes with the "
        "model.",
        "model",
        derive=lambda i: (
            UNKNOWN if i.model is None else _known(needs_newer_transformers(i.config, i.model, i.environment))
        ),
        reads=("model_config.trust_remote_code",),
    ),
    OwnFact(
        "model_config.is_row_by_row",
        "bool",
        "V1 can't compute the model's requests together: by its type (docs/models.md; for pooling "
        "docs/pooling.md), or because it outgrows its RoPE, if that isn't `dynamic`.",
        "model",
        derive=lambda i: (
            UNKNOWN if i.model is None else _known(is_row_by_row(i.config, i.model, i.environment))
        ),
        reads=("model_config.convert", "model_config.runner"),
    ),
    OwnFact(
        "model_config.quantization",
        "str",
        "Quantization method of the weights: as configured, else config.json's; null where there is none.",
        "model",
        derive=lambda i: resolved_quantization(i.config, i.model),
        nullable=True,
        reads=("model_config.quantization",),
    ),
    OwnFact(
        "model_config.quantization_scheme",
        "str",
        "How weights and activations are quantized, and what of it matters to a runner; `other` is what no "
        "runner reads; null without quantization.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else quantization_scheme(i.config, i.model),
        nullable=True,
        domain=SCHEMES,
        reads=("model_config.quantization",),
    ),
    OwnFact(
        "model_config.lacks_quantization_package",
        "bool",
        "A package that the weights are loaded through (bitsandbytes, torchao) isn't installed.",
        "model",
        derive=lambda i: (
            UNKNOWN
            if i.model is None
            else _known(lacks_quantization_package(i.config, i.model, i.environment))
        ),
        reads=("model_config.quantization",),
    ),
    OwnFact(
        "model_config.has_unread_experts",
        "bool",
        "The model has experts that are quantized, or are to be, in a way in which V1 does not read those of "
        "its type.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else has_unread_experts(i.config, i.model),
        reads=("model_config.quantization",),
    ),
    OwnFact(
        "model_config.dtype",
        "str",
        "Type that the model is computed in; `auto` is config.json's, and float32 on a CPU.",
        "model",
        derive=_dtype,
        domain=(*DTYPES, "other"),
        reads=("model_config.dtype", "device_config.device"),
    ),
    _model("is_moe", "bool", "Feed-forward layers route to experts."),
    _model("num_experts", "int", "Routed experts of a layer; 0 in a dense model.", minimum=0),
    _model(
        "has_inner_state",
        "bool",
        "Some layer carries a recurrent or convolutional state (Mamba, linear attention).",
    ),
    _model("is_attention_free", "bool", "No layer has attention with keys and values."),
    _model(
        "is_hybrid",
        "bool",
        "Attention layers and layers with an inner state together.",
        lambda m: m.has_inner_state and not m.is_attention_free,
    ),
    _model("is_encoder_decoder", "bool", "An encoder's output is attended to (T5, Whisper, …)."),
    _model("is_multimodal", "bool", "The model takes images, sound or video too."),
    _model("use_mla", "bool", "Multi-head latent attention."),
    _model_size("head_size", "Elements of a query/key head; null without attention."),
    _model_size("hidden_size", "Elements of a token's hidden state."),
    _model_size("intermediate_size", "Elements between the two halves of a feed-forward layer."),
    _model_size("num_hidden_layers", "Layers."),
    _model_size("num_attention_heads", "Query heads; null without attention."),
    _model_size("num_key_value_heads", "Key/value heads; null without attention."),
    _model_size("vocab_size", "Tokens of the vocabulary."),
    _model(
        "num_queries_per_kv",
        "int",
        "Query heads that share a key/value head; null where their numbers don't divide.",
        nullable=True,
        minimum=1,
    ),
    _model(
        "rope_type",
        "str",
        "Rotary embedding: transformers' name, `mrope` (several positions), `mixed` (layers differ), `none`.",
    ),
    OwnFact(
        "model_config.outgrows_rope",
        "bool",
        "`max_model_len` is beyond `rope_fixed_length`.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else outgrows_rope(i.config, i.model),
    ),
    _model(
        "rope_fixed_length",
        "int",
        "Length up to which rotary frequencies are fixed; null where no length changes them.",
        nullable=True,
        minimum=0,
    ),
    _model(
        "has_partial_rotary",
        "bool",
        "Only a part of each head is rotated.",
        lambda m: m.rope is not None and m.rope.is_partial,
    ),
    _model(
        "hidden_act",
        "str",
        "Activation of the feed-forward layers; null where config.json has none.",
        nullable=True,
    ),
    _model("attention_bias", "bool", "config.json asks for a bias in attention projections."),
    _model("mlp_bias", "bool", "config.json asks for a bias in feed-forward projections."),
    _model("tie_word_embeddings", "bool", "The output layer uses the input embeddings."),
    _model(
        "attention_pattern",
        "str",
        "Attention layers: all full, all sliding, both mixed, others (chunked, linear, …) or none.",
        _attention_pattern,
        domain=("full", "sliding", "mixed", "other", "none"),
    ),
    _model(
        "layer_types",
        "list",
        "Kinds of layers that occur, under transformers' names.",
        attrgetter("layer_kinds"),
    ),
    _model(
        "sliding_window",
        "int",
        "Most recent tokens that a query of a sliding layer sees; null where no layer slides.",
        nullable=True,
        minimum=1,
    ),
    _model(
        "math_modifiers",
        "list",
        "config.json fields in effect that change a plain decoder's arithmetic; null where there are none.",
        lambda m: m.math_modifiers or None,
        domain=MATH_MODIFIERS,
        nullable=True,
    ),
    _model("has_remote_code", "bool", "The model wants code of its own to be run."),
    _field("model_config.trust_remote_code", "bool", "Code that comes with the model may be run."),
    _field("model_config.enforce_eager", "bool", "CUDA graphs are never captured."),
    _field(
        "model_config.max_model_len",
        "int",
        "Longest sequence as configured; null where it isn't.",
        nullable=True,
    ),
)

_PARALLEL_SIZES = tuple(
    f"parallel_config.{name}_parallel_size" for name in ("tensor", "pipeline", "data", "prefill_context")
)

_ENGINE_SPECS = (
    _field("cache_config.block_size", "int", "Tokens per KV block."),
    _field("cache_config.cache_dtype", "str", "Type of stored keys and values; `auto` is the model's."),
    _field("cache_config.enable_prefix_caching", "bool", "KV blocks of equal prefixes are shared."),
    _field("parallel_config.tensor_parallel_size", "int", "Devices that split each layer."),
    _field("parallel_config.pipeline_parallel_size", "int", "Devices that take consecutive layers."),
    _field("parallel_config.data_parallel_size", "int", "Replicas that share the requests."),
    _field(
        "parallel_config.data_parallel_backend",
        "str",
        "What starts the replicas: this process, or Ray.",
        domain=("mp", "ray"),
    ),
    _field(
        "parallel_config.data_parallel_rank",
        "int",
        "The replica's number, where each is started by itself; null where they are started together.",
        nullable=True,
        minimum=0,
    ),
    _field("parallel_config.data_parallel_external_lb", "bool", "Others share the requests among replicas."),
    _field("parallel_config.data_parallel_hybrid_lb", "bool", "Others share the requests among machines."),
    _field("parallel_config.prefill_context_parallel_size", "int", "Devices that split a prompt."),
    _field("parallel_config.decode_context_parallel_size", "int", "Devices that split the KV of a sequence."),
    _field("parallel_config.enable_expert_parallel", "bool", "Experts are spread over devices."),
    _field(
        "parallel_config.distributed_executor_backend",
        "str",
        "How workers run, as configured; null where it isn't.",
        domain=("mp", "ray", "uni", "external_launcher"),
        nullable=True,
    ),
    OwnFact(
        "parallel_config.world_size_across_dp",
        "int",
        "Ranks of all replicas together: the product of the sizes.",
        "config",
        derive=lambda i: min(i.config.parallel_config.world_size_across_dp, MAX_INT),
        reads=_PARALLEL_SIZES,
        minimum=1,
    ),
    OwnFact(
        "parallel_config.exceeds_devices",
        "bool",
        f"There are more ranks than CUDA devices, or than the {MAX_CPU_RANKS} that may share a processor.",
        "environment",
        derive=lambda i: exceeds_devices(i.config, i.environment),
        reads=(*_PARALLEL_SIZES, "device_config.device"),
    ),
    OwnFact(
        "parallel_config.splits_evenly",
        "bool",
        "Attention heads and feed-forward layers (experts) divide among `tensor_parallel_size` ranks.",
        "model",
        derive=lambda i: _known(splits_evenly(i.config, i.model)),
        reads=(
            "parallel_config.tensor_parallel_size",
            "parallel_config.enable_expert_parallel",
            "model_config.quantization",
        ),
    ),
    OwnFact(
        "parallel_config.fills_stages",
        "bool",
        "There are at least as many layers as pipeline stages.",
        "model",
        derive=lambda i: _known(fills_stages(i.config, i.model)),
        reads=("parallel_config.pipeline_parallel_size",),
    ),
    _field("scheduler_config.enable_chunked_prefill", "bool", "A prompt may be computed in several steps."),
    _field("scheduler_config.max_num_seqs", "int", "Most requests of one step."),
    _field(
        "scheduler_config.max_num_batched_tokens",
        "int",
        "Most tokens of one step as configured; null where it isn't.",
        nullable=True,
    ),
    OwnFact(
        "device_config.device",
        "str",
        "Platform that the model runs on; `auto` is the environment's.",
        "environment",
        derive=lambda i: resolved_device(i.config, i.environment),
        domain=PLATFORMS,
        reads=("device_config.device",),
    ),
    _field(
        "load_config.load_format",
        "str",
        "Where weights come from (`dummy`: random ones).",
        domain=("auto", "safetensors", "dummy"),
    ),
)

_FEATURE_SPECS = (
    _section("lora_config", "LoRA adapters are configured."),
    _field("lora_config.max_loras", "int", "Adapters of one step.", nullable=True),
    _field("lora_config.max_lora_rank", "int", "Largest rank of an adapter.", nullable=True),
    _section("speculative_config", "Speculative decoding is configured."),
    OwnFact(
        "speculative_config.method",
        "str",
        "How tokens are drafted: as configured, else as the draft model's name says, else unknown.",
        "config",
        derive=_speculative_method,
        nullable=True,
        reads=("speculative_config.method", "speculative_config.model"),
    ),
    _field("speculative_config.num_speculative_tokens", "int", "Tokens drafted at a time.", nullable=True),
    _field(
        "speculative_config.draft_tensor_parallel_size",
        "int",
        "Devices that the draft model is spread over; null: as the target's.",
        nullable=True,
    ),
    _field(
        "speculative_config.parallel_drafting",
        "bool",
        "All tokens of a draft come from one pass.",
        nullable=True,
    ),
    _section("compilation_config", "Compilation is configured."),
    _field(
        "compilation_config.mode",
        "str",
        "Level of compilation; null where it isn't configured.",
        domain=COMPILATION_MODES,
        nullable=True,
    ),
    _section("pooler_config", "What becomes of a pooling model's output is configured."),
    OwnFact(
        "pooler_config.is_unused",
        "bool",
        "`pooler_config` or `convert` is set for a model that is not for pooling.",
        "model",
        derive=lambda i: _known(has_unused_pooler(i.config, i.model)),
        reads=("model_config.convert", "model_config.runner"),
    ),
    _section("kv_transfer_config", "A KV transfer section is there, be it empty."),
    OwnFact(
        "kv_transfer_config.is_active",
        "bool",
        "KV blocks leave or enter: a connector is named and has a role, or KV offloading has a size.",
        "config",
        derive=lambda i: has_active_connector(i.config),
        reads=(
            "kv_transfer_config.kv_connector",
            "kv_transfer_config.kv_role",
            "cache_config.kv_offloading_size",
        ),
    ),
    OwnFact(
        "kv_transfer_config.kv_connector",
        "str",
        "The KV connector: as named, else the one that KV offloading turns on.",
        "config",
        derive=lambda i: resolved_connector(i.config),
        nullable=True,
        reads=(
            "kv_transfer_config.kv_connector",
            "kv_transfer_config.kv_role",
            "cache_config.kv_offloading_size",
            "cache_config.kv_offloading_backend",
        ),
    ),
    OwnFact(
        "kv_transfer_config.has_connector_module",
        "bool",
        "The connector that is active is to come from a module of the user's (kv_connector_module_path).",
        "config",
        derive=lambda i: has_connector_module(i.config),
        reads=(
            "kv_transfer_config.kv_connector_module_path",
            "kv_transfer_config.kv_connector",
            "kv_transfer_config.kv_role",
            "cache_config.kv_offloading_size",
        ),
    ),
    _field(
        "kv_transfer_config.kv_role",
        "str",
        "The part that this instance takes in KV transfer.",
        domain=("kv_producer", "kv_consumer", "kv_both"),
        nullable=True,
    ),
)

_ENVIRONMENT_SPECS = (
    _environment("has_triton", "bool", "Triton is installed and has a GPU driver to compile for."),
    _environment("platform", "str", "Kind of device that the machine offers.", domain=PLATFORMS),
    _environment(
        "override", "str", "The runner that the user forces, or null.", domain=("v1", "v2"), nullable=True
    ),
    _environment(
        "compute_capability",
        "int",
        "Lowest CUDA compute capability of the visible devices, 8.0 being 80; null where there is no CUDA.",
        nullable=True,
        minimum=0,
    ),
    _environment(
        "device_count",
        "int",
        "Visible CUDA devices; null where there is no CUDA.",
        nullable=True,
        minimum=1,
    ),
    _environment("logitsproc_plugins", "bool", "An installed package offers logits processors."),
    *(_package(name) for name in PACKAGES),
)

_SPECS = (*_MODEL_SPECS, *_ENGINE_SPECS, *_FEATURE_SPECS, *_ENVIRONMENT_SPECS)

FACTS: Mapping[str, OwnFact] = registry(_SPECS)
"""The registry: every fact by its name."""


def derive_facts(
    config: EngineConfig,
    model: ModelInfo | None,
    environment: Environment,
    *,
    names: Iterable[str] | None = None,
) -> dict[str, FactValue]:
    """The value of every fact (or of those in `names`). Facts of a model that is None are UNKNOWN."""
    inputs = Inputs(config, model, environment)
    specs = FACTS.values() if names is None else [FACTS[name] for name in names]
    return {spec.name: spec.derive(inputs) for spec in specs}
