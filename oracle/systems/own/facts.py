"""The facts that rules about this runtime read: one registry, which names, types, documents and derives each.

To add a fact, add an `OwnFact` to the group of `_SPECS` where it belongs; those of config.json are in
`model_facts`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, cast

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import COMPILATION_MODES, SECTIONS
from dodona.oracle.language.facts import MAX_INT, UNKNOWN, FactValue
from dodona.oracle.machine.environment import PLATFORMS, Environment
from dodona.oracle.machine.packages import PACKAGES
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.fact import registry
from dodona.oracle.systems.own.companions import companions_fault
from dodona.oracle.systems.own.config_values import config_values_fault
from dodona.oracle.systems.own.connectors import (
    has_active_connector,
    has_connector_module,
    resolved_connector,
)
from dodona.oracle.systems.own.fact_kinds import (
    Inputs,
    OwnFact,
    known,
    of_environment,
    of_field,
    of_package,
    of_section,
)
from dodona.oracle.systems.own.kv_transfer import kv_transfer_fault
from dodona.oracle.systems.own.lengths import sizes_fault
from dodona.oracle.systems.own.memory import memory_fault
from dodona.oracle.systems.own.model_facts import MODEL_SPECS
from dodona.oracle.systems.own.parallel import (
    MAX_CPU_RANKS,
    exceeds_devices,
    fills_stages,
    quantized_share_fault,
    uneven_size,
)
from dodona.oracle.systems.own.pooler import pooler_fault
from dodona.oracle.systems.own.pooling import has_unused_pooler
from dodona.oracle.systems.own.resolved import resolved_device, resolved_speculative_method
from dodona.oracle.systems.own.speculation import speculation_fault
from dodona.oracle.systems.own.weights import weights_fault


def _speculative_method(inputs: Inputs) -> FactValue:
    if inputs.config.speculative_config is None:
        return None
    return resolved_speculative_method(inputs.config) or UNKNOWN


def _fields(section: str) -> tuple[str, ...]:
    """The paths of a section's fields."""
    return tuple(f"{section}.{field.name}" for field in dataclasses.fields(cast(Any, SECTIONS[section])))


def _quantized_share_fault(inputs: Inputs) -> FactValue:
    if inputs.model is None:
        return None if inputs.config.parallel_config.tensor_parallel_size == 1 else UNKNOWN
    return quantized_share_fault(inputs.config, inputs.model)


_PARALLEL_SIZES = tuple(
    f"parallel_config.{name}_parallel_size" for name in ("tensor", "pipeline", "data", "prefill_context")
)

_ENGINE_SPECS = (
    of_field("cache_config.block_size", "int", "Tokens per KV block."),
    of_field("cache_config.cache_dtype", "str", "Type of stored keys and values; `auto` is the model's."),
    of_field("cache_config.enable_prefix_caching", "bool", "KV blocks of equal prefixes are shared."),
    of_field("parallel_config.tensor_parallel_size", "int", "Devices that split each layer."),
    of_field("parallel_config.pipeline_parallel_size", "int", "Devices that take consecutive layers."),
    of_field("parallel_config.data_parallel_size", "int", "Replicas that share the requests."),
    of_field(
        "parallel_config.data_parallel_backend",
        "str",
        "Where the replicas run: on this machine, or where Ray has room.",
        domain=("mp", "ray"),
    ),
    of_field(
        "parallel_config.data_parallel_rank",
        "int",
        "The replica's number, where each is started by itself; null where they are started together.",
        nullable=True,
        minimum=0,
    ),
    of_field(
        "parallel_config.data_parallel_external_lb", "bool", "Others share the requests among replicas."
    ),
    of_field("parallel_config.data_parallel_hybrid_lb", "bool", "Others share the requests among machines."),
    of_field("parallel_config.prefill_context_parallel_size", "int", "Devices that split a prompt."),
    of_field(
        "parallel_config.decode_context_parallel_size", "int", "Devices that split the KV of a sequence."
    ),
    of_field("parallel_config.enable_expert_parallel", "bool", "Experts are spread over devices."),
    of_field(
        "parallel_config.distributed_executor_backend",
        "str",
        "How workers run, as configured; null where it isn't.",
        domain=("mp", "ray", "uni", "external_launcher"),
        nullable=True,
    ),
    OwnFact(
        "parallel_config.uses_ray",
        "bool",
        "Workers are Ray's actors.",
        "config",
        derive=lambda i: i.config.parallel_config.uses_ray,
        reads=(
            "parallel_config.distributed_executor_backend",
            "parallel_config.data_parallel_backend",
        ),
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
        f"There are more ranks than CUDA devices, or than the {MAX_CPU_RANKS} that may share a processor; "
        "false where they run on a Ray cluster.",
        "environment",
        derive=lambda i: exceeds_devices(i.config, i.environment),
        reads=(
            *_PARALLEL_SIZES,
            "parallel_config.distributed_executor_backend",
            "parallel_config.data_parallel_backend",
            "device_config.device",
        ),
    ),
    OwnFact(
        "parallel_config.uneven_size",
        "str",
        "A size of attention heads or feed-forward layers (experts) that does not divide among "
        "`tensor_parallel_size` ranks; null where all that they split do.",
        "model",
        derive=lambda i: uneven_size(i.config, i.model),
        nullable=True,
        reads=(
            "parallel_config.tensor_parallel_size",
            "parallel_config.enable_expert_parallel",
            "model_config.quantization",
        ),
    ),
    OwnFact(
        "parallel_config.quantized_share_fault",
        "str",
        "Why `tensor_parallel_size` ranks can't have equal shares of quantized layers with whole groups, "
        "blocks and packed words; null where they can.",
        "model",
        derive=_quantized_share_fault,
        nullable=True,
        reads=(
            "parallel_config.tensor_parallel_size",
            "parallel_config.enable_expert_parallel",
            "model_config.quantization",
        ),
    ),
    OwnFact(
        "parallel_config.fills_stages",
        "bool",
        "Each pipeline stage gets a layer; layers that share keys and values are on one.",
        "model",
        derive=lambda i: known(fills_stages(i.config, i.model)),
        reads=("parallel_config.pipeline_parallel_size",),
    ),
    of_field("scheduler_config.enable_chunked_prefill", "bool", "A prompt may be computed in several steps."),
    of_field("scheduler_config.max_num_seqs", "int", "Most requests of one step."),
    of_field(
        "scheduler_config.max_num_batched_tokens",
        "int",
        "Most tokens of one step as configured; null where it isn't.",
        nullable=True,
    ),
    OwnFact(
        "model_config.fault",
        "str",
        "Which value of config.json transformers makes no model of; null where none is known to be so.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else config_values_fault(i.model),
        nullable=True,
    ),
    OwnFact(
        "model_config.companions_fault",
        "str",
        "Why no engine can start with the tokenizer and generation_config.json, the model's or those that "
        "`tokenizer` and `generation_config` name; null where nothing is wrong, or they are on the hub.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else companions_fault(i.config, i.model, i.environment),
        nullable=True,
        reads=(
            "model_config.tokenizer",
            "model_config.skip_tokenizer_init",
            "model_config.generation_config",
        ),
    ),
    OwnFact(
        "scheduler_config.fault",
        "str",
        "Why no engine can start with these lengths, sizes of a step, KV blocks or this type; null where "
        "nothing is wrong. Memory is not looked at.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else sizes_fault(i.config, i.model, i.environment),
        nullable=True,
        reads=(
            "model_config.max_model_len",
            "model_config.dtype",
            "model_config.runner",
            "model_config.convert",
            "scheduler_config.max_num_batched_tokens",
            "scheduler_config.enable_chunked_prefill",
            "cache_config.num_gpu_blocks_override",
            "cache_config.block_size",
            "cache_config.kv_offloading_size",
            "kv_transfer_config.kv_connector",
            "kv_transfer_config.kv_role",
            "device_config.device",
        ),
    ),
    OwnFact(
        "cache_config.fault",
        "str",
        "Why weights and a KV cache of one sequence do not fit into `kv_cache_memory_bytes`, or the memory "
        "of the machine (for all ranks; of a GPU for one), or no KV block into `kv_offloading_size`; null "
        "where they may, or its size isn't known.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else memory_fault(i.config, i.model, i.environment),
        nullable=True,
        reads=(
            "cache_config.kv_cache_memory_bytes",
            "cache_config.num_gpu_blocks_override",
            "cache_config.gpu_memory_utilization",
            "cache_config.block_size",
            "model_config.max_model_len",
            "model_config.dtype",
            "model_config.quantization",
            "model_config.runner",
            "load_config.load_format",
            "parallel_config.tensor_parallel_size",
            "parallel_config.pipeline_parallel_size",
            "parallel_config.prefill_context_parallel_size",
            "parallel_config.data_parallel_size",
            "device_config.device",
        ),
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
    of_field(
        "load_config.load_format",
        "str",
        "Where weights come from (`dummy`: random ones).",
        domain=("auto", "safetensors", "dummy"),
    ),
    OwnFact(
        "load_config.fault",
        "str",
        "Why no engine can load the weights: files are missing or damaged, or tensors of config.json's model "
        "are; null where nothing is wrong, or they are not looked at (random ones, those on the hub).",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else weights_fault(i.config, i.model, i.environment),
        nullable=True,
        reads=(
            "load_config.load_format",
            "model_config.quantization",
            "model_config.convert",
            "model_config.runner",
        ),
    ),
)

_FEATURE_SPECS = (
    of_section("lora_config", "LoRA adapters are configured."),
    of_field("lora_config.max_loras", "int", "Adapters of one step.", nullable=True),
    of_field("lora_config.max_lora_rank", "int", "Largest rank of an adapter.", nullable=True),
    of_section("speculative_config", "Speculative decoding is configured."),
    OwnFact(
        "speculative_config.method",
        "str",
        "How tokens are drafted: as configured, else as the draft model's name says, else unknown.",
        "config",
        derive=_speculative_method,
        nullable=True,
        reads=("speculative_config.method", "speculative_config.model"),
    ),
    of_field("speculative_config.num_speculative_tokens", "int", "Tokens drafted at a time.", nullable=True),
    of_field(
        "speculative_config.draft_tensor_parallel_size",
        "int",
        "Devices that the draft model is spread over; null: as the target's.",
        nullable=True,
    ),
    of_field(
        "speculative_config.parallel_drafting",
        "bool",
        "All tokens of a draft come from one pass.",
        nullable=True,
    ),
    OwnFact(
        "speculative_config.fault",
        "str",
        "Why no engine can start with the section: what is missing, contradicts or does not fit the target. "
        "A draft on the hub is downloaded without its weights; null where nothing is wrong.",
        "model",
        derive=lambda i: speculation_fault(i.config, i.model, i.environment),
        nullable=True,
        reads=(
            "model_config.max_model_len",
            "model_config.runner",
            "model_config.convert",
            "model_config.trust_remote_code",
            *_fields("speculative_config"),
        ),
    ),
    of_section("compilation_config", "Compilation is configured."),
    of_field(
        "compilation_config.mode",
        "str",
        "Level of compilation; null where it isn't configured.",
        domain=COMPILATION_MODES,
        nullable=True,
    ),
    of_section("pooler_config", "What becomes of a pooling model's output is configured."),
    OwnFact(
        "pooler_config.is_unused",
        "bool",
        "`pooler_config` or `convert` is set for a model that is not for pooling.",
        "model",
        derive=lambda i: known(has_unused_pooler(i.config, i.model)),
        reads=("model_config.convert", "model_config.runner"),
    ),
    OwnFact(
        "pooler_config.fault",
        "str",
        "Why no engine can pool so: the model's files contradict, or an embedding has fewer elements than "
        "`dimensions`; null where nothing is wrong.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else pooler_fault(i.config, i.model, i.environment),
        nullable=True,
        reads=(
            "pooler_config.pooling_type",
            "pooler_config.dimensions",
            "model_config.convert",
            "model_config.runner",
        ),
    ),
    of_section("kv_transfer_config", "A KV transfer section is there, be it empty."),
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
    OwnFact(
        "kv_transfer_config.fault",
        "str",
        "Why no engine can start with the connector's settings: what is missing, contradicts or is read by "
        "nobody; null where nothing is wrong, or there is no such connector.",
        "config",
        derive=lambda i: kv_transfer_fault(i.config),
        nullable=True,
        reads=(
            *_fields("kv_transfer_config"),
            "cache_config.kv_offloading_size",
            "cache_config.kv_offloading_backend",
        ),
    ),
    of_field(
        "kv_transfer_config.kv_role",
        "str",
        "The part that this instance takes in KV transfer.",
        domain=("kv_producer", "kv_consumer", "kv_both"),
        nullable=True,
    ),
)

_ENVIRONMENT_SPECS = (
    of_environment("has_triton", "bool", "Triton is installed and has a GPU driver to compile for."),
    of_environment("platform", "str", "Kind of device that the machine offers.", domain=PLATFORMS),
    of_environment(
        "override", "str", "The runner that the user forces, or null.", domain=("v1", "v2"), nullable=True
    ),
    of_environment(
        "compute_capability",
        "int",
        "Lowest CUDA compute capability of the visible devices, 8.0 being 80; null where there is no CUDA.",
        nullable=True,
        minimum=0,
    ),
    of_environment(
        "device_count",
        "int",
        "Visible CUDA devices; null where there is no CUDA.",
        nullable=True,
        minimum=1,
    ),
    of_environment("logitsproc_plugins", "bool", "An installed package offers logits processors."),
    *(of_package(name) for name in PACKAGES),
)

_SPECS = (*MODEL_SPECS, *_ENGINE_SPECS, *_FEATURE_SPECS, *_ENVIRONMENT_SPECS)

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
