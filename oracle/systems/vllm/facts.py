"""The facts that rule books of vLLM read: one registry, which names, types, documents and derives each.

A configuration is nested and named as vLLM's own (`parallel_config.enable_dbo`, …) and holds final field
values. A section that is null or absent is not configured, and every fact below it is null; an absent field
holds vLLM's default. Where a release has another default than the registry's, its rule book says so in
`assume`.

To add a fact, add a `VllmFact` to `_FACTS`: most are a field, read as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from dodona.oracle.config.sections import COMPILATION_MODES
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.facts import MAX_INT, UNKNOWN, FactType, FactValue, Source
from dodona.oracle.machine.environment import PLATFORMS, Environment
from dodona.oracle.systems.fact import Fact, registry

CUDAGRAPH_MODES = ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")


class Inputs(NamedTuple):
    """What facts are derived from."""

    config: Mapping[str, Any]
    """Nested; `UNKNOWN` in place of a value makes the facts that read it unknown."""
    environment: Environment
    assume: Mapping[str, FactValue]
    """A release's defaults, where they differ from the registry's."""


@dataclass(frozen=True)
class VllmFact(Fact[Inputs]):
    """A fact of vLLM, and how it is derived."""

    default: FactValue = field(default=UNKNOWN, kw_only=True)
    """Value of an absent field of a configured section; `UNKNOWN` where the fact is no field."""


def _bool(value: Any) -> FactValue:
    if isinstance(value, bool):
        return value
    raise ValueError("expected true or false")


def _int(value: Any) -> FactValue:
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-MAX_INT, min(MAX_INT, value))
    raise ValueError("expected a whole number")


def _str(value: Any) -> FactValue:
    if isinstance(value, str):
        return value
    raise ValueError("expected a text")


def _list(value: Any) -> tuple[str, ...]:
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise ValueError("expected a list of texts")


def _configured(value: Any) -> FactValue:
    return True


def _not_empty(value: Any) -> FactValue:
    if isinstance(value, (list, tuple)):
        return bool(value)
    raise ValueError("expected a list")


def _positive(value: Any) -> FactValue:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value > 0
    raise ValueError("expected a number")


def _mixed_sliding(layer_types: Any) -> FactValue:
    sliding = [item == "sliding_attention" for item in _list(layer_types)]
    return any(sliding) and not all(sliding)


_READERS: Mapping[FactType, Callable[[Any], FactValue]] = {
    "bool": _bool,
    "int": _int,
    "str": _str,
    "list": _list,
}


def _field(
    name: str,
    type: FactType,
    doc: str,
    default: FactValue,
    *,
    source: Source = "config",
    path: str = "",
    read: Callable[[Any], FactValue] | None = None,
    domain: tuple[str, ...] | None = None,
    minimum: int | None = None,
    section: bool = False,
) -> VllmFact:
    parts = (path or name).split(".")
    reader = read or _READERS[type]

    def derive(inputs: Inputs) -> FactValue:
        value: Any = inputs.config
        for i, part in enumerate(parts):
            if value is None or value is UNKNOWN:
                return value
            # most are plain dicts, and asking for the abstract class takes far longer
            if value.__class__ is not dict and not isinstance(value, Mapping):
                raise ConfigError(f"{'.'.join(parts[:i])}: expected a section, got {value!r}")
            if i > 0 and i == len(parts) - 1 and part not in value:
                return inputs.assume.get(name, default)
            value = value.get(part)
        if value is None or value is UNKNOWN:
            return value
        try:
            return reader(value)
        except ValueError as error:
            raise ConfigError(f"{'.'.join(parts)}: {error}, got {value!r}") from None

    return VllmFact(
        name,
        type,
        doc,
        source,
        derive=derive,
        domain=domain,
        # its section may be null
        nullable=True,
        minimum=minimum,
        reads=(path or name,),
        section=section,
        default=default,
    )


def _section(name: str, doc: str, path: str = "") -> VllmFact:
    """Whether something optional is configured: true, or null. An empty section is configured."""
    return _field(name, "bool", doc, None, path=path, read=_configured, section=True)


def _of_model(name: str, doc: str, default: FactValue = False) -> VllmFact:
    return _field(f"model_config.{name}", "bool", doc, default, source="model")


def _refusal(name: str, what: str) -> VllmFact:
    doc = (
        f"Why vLLM's configuration refuses {what}, in its own words; null where nothing is known against it."
    )
    return _field(name, "str", doc, None, source="model")


def _environment(name: str, type: FactType, doc: str, **more: Any) -> VllmFact:
    def derive(inputs: Inputs) -> FactValue:
        value: FactValue = getattr(inputs.environment, name)
        return value

    return VllmFact(f"environment.{name}", type, doc, "environment", derive=derive, **more)


_ARCHITECTURES = _field(
    "model_config.architectures", "list", "Model classes that config.json names.", (), source="model"
)
_ARCHITECTURE = _field(
    "model_config.architecture",
    "str",
    "The one of the model classes that vLLM serves.",
    None,
    source="model",
)
_ENABLE_DBO = _field(
    "parallel_config.enable_dbo",
    "bool",
    "Dual batch overlap: two halves of a batch hide each other's waits.",
    False,
)
_HEADS = _field(
    "model_config.total_num_attention_heads",
    "int",
    "Attention heads of a layer.",
    None,
    source="model",
    minimum=0,
)
_KV_HEADS = _field(
    "model_config.total_num_kv_heads", "int", "KV heads of a layer.", None, source="model", minimum=0
)
_USE_MLA = _of_model("use_mla", "Multi-head latent attention.")
_TENSOR_PARALLEL = _field(
    "parallel_config.tensor_parallel_size", "int", "Devices that split each layer.", 1, minimum=1
)
_DECODE_CONTEXT = _field(
    "parallel_config.decode_context_parallel_size",
    "int",
    "Devices that split the KV of a sequence.",
    1,
    minimum=1,
)
_UBATCH_SIZE = _field("parallel_config.ubatch_size", "int", "Micro-batches of one step.", 0, minimum=0)


def _served_architecture(inputs: Inputs) -> FactValue:
    """The one that is given, else the first: vLLM takes the first that it knows, and most models have one."""
    given = _ARCHITECTURE.derive(inputs)
    if given is not None:
        return given
    named = _ARCHITECTURES.derive(inputs)
    return named[0] if isinstance(named, tuple) and named else None


def _divides_heads(inputs: Inputs) -> FactValue:
    """null where either number isn't known."""
    heads, split = _HEADS.derive(inputs), _TENSOR_PARALLEL.derive(inputs)
    return heads % split == 0 if isinstance(heads, int) and isinstance(split, int) and split > 0 else None


def _fits_decode_context(inputs: Inputs) -> FactValue:
    """null where a number isn't known."""
    heads, kv_heads = _HEADS.derive(inputs), _KV_HEADS.derive(inputs)
    split, context = _TENSOR_PARALLEL.derive(inputs), _DECODE_CONTEXT.derive(inputs)
    if _USE_MLA.derive(inputs) is True or context == 1:
        return True
    if not (isinstance(heads, int) and isinstance(kv_heads, int)):
        return None
    if not (isinstance(split, int) and isinstance(context, int)):
        return None
    if kv_heads == 0:
        # vLLM divides by them
        return False
    return split > kv_heads and context <= split // kv_heads and (heads // kv_heads) % context == 0


def _use_ubatching(inputs: Inputs) -> FactValue:
    """True where one of the two fields turns it on, unknown where one is unknown, else false; null where both
    are null.
    """
    size = _UBATCH_SIZE.derive(inputs)
    values = (_ENABLE_DBO.derive(inputs), size > 1 if isinstance(size, int) else size)
    if True in values:
        return True
    if UNKNOWN in values:
        return UNKNOWN
    return None if all(value is None for value in values) else False


_FACTS = (
    _section("model_config", "A model is configured; a few tools of vLLM make configurations without one."),
    _ARCHITECTURES,
    dataclasses.replace(_ARCHITECTURE, derive=_served_architecture),
    _field(
        "model_config.runner_type",
        "str",
        "What the model is served for.",
        "generate",
        source="model",
        domain=("generate", "pooling", "draft"),
    ),
    _of_model("is_moe", "Feed-forward layers route to experts."),
    _of_model("is_quantized", "The weights are quantized."),
    _of_model("has_inner_state", "Some layer carries a recurrent or convolutional state."),
    _of_model("is_hybrid", "Attention layers and layers with an inner state together."),
    _of_model("is_attention_free", "No layer has attention with keys and values."),
    _of_model("is_diffusion", "The model generates by diffusion."),
    _of_model("is_encoder_decoder", "An encoder's output is attended to."),
    _of_model("is_multimodal_model", "The model takes images, sound or video too."),
    _USE_MLA,
    _HEADS,
    _KV_HEADS,
    _of_model("is_supported", "The release has a class for the model.", True),
    _refusal("model_config.quantization_refusal", "the quantization"),
    _refusal("model_config.dtype_refusal", "the type of the weights"),
    _refusal("model_config.length_refusal", "the length of a sequence"),
    _refusal("model_config.code_refusal", "a model that brings code of its own"),
    _refusal("model_config.weights_refusal", "the size of the weights"),
    _refusal("model_config.routed_experts_refusal", "to return routed experts"),
    _refusal("model_config.prompt_embeds_refusal", "embeddings as prompts"),
    _refusal("model_config.runner_refusal", "the runner or the conversion"),
    _of_model("is_lora_supported", "LoRA adapters can be added to the model's layers.", True),
    _of_model("is_pp_supported", "The model's layers can be split among pipeline stages.", True),
    _field(
        "model_config.enable_return_routed_experts",
        "bool",
        "The experts that each token went to are returned.",
        False,
    ),
    _field("model_config.enable_prompt_embeds", "bool", "Prompts may be embeddings.", False),
    _field(
        "model_config.logprobs_mode",
        "str",
        "Which numbers a request's log-probabilities are.",
        "raw_logprobs",
        domain=("raw_logits", "raw_logprobs", "processed_logits", "processed_logprobs"),
    ),
    _field(
        "model_config.has_logits_processors",
        "bool",
        "Custom logits processors are configured; an empty list of them is none.",
        False,
        path="model_config.logits_processors",
        read=_not_empty,
    ),
    _field(
        "model_config.multimodal_config.mm_encoder_only", "bool", "Only the multimodal encoder is run.", False
    ),
    _field("cache_config.enable_prefix_caching", "bool", "Prompts' KV is kept for later requests.", None),
    _field("cache_config.kv_sharing_fast_prefill", "bool", "Layers that share KV skip prompt tokens.", False),
    _field(
        "cache_config.mamba_cache_mode",
        "str",
        "Which states of Mamba layers the prefix cache keeps.",
        "none",
        domain=("none", "align", "all"),
    ),
    _TENSOR_PARALLEL,
    _field(
        "parallel_config.pipeline_parallel_size", "int", "Devices that take consecutive layers.", 1, minimum=1
    ),
    _field(
        "parallel_config.prefill_context_parallel_size", "int", "Devices that split a prompt.", 1, minimum=1
    ),
    _DECODE_CONTEXT,
    _field(
        "parallel_config.distributed_executor_backend",
        "str",
        "What starts and drives the workers: mp, ray, uni, external_launcher or a class; null: vLLM chooses.",
        None,
    ),
    _ENABLE_DBO,
    _UBATCH_SIZE,
    _field(
        "parallel_config.enable_elastic_ep",
        "bool",
        "The number of expert-parallel devices may change.",
        False,
    ),
    _field(
        "parallel_config.enable_batch_sharded_sampling",
        "bool",
        "Sampling is split over devices by rows.",
        None,
    ),
    _field("scheduler_config.enable_chunked_prefill", "bool", "Long prompts are split.", None),
    _field(
        "scheduler_config.async_scheduling",
        "bool",
        "A step is scheduled before the last one's tokens are read.",
        None,
    ),
    _refusal("parallel_config.refusal", "the parallelism"),
    _section("lora_config", "LoRA adapters are configured."),
    _section("ec_transfer_config", "Transfer of encoder outputs between instances is configured."),
    _section("reasoning_config", "Reasoning is configured; --reasoning-parser alone does that."),
    _field(
        "aux_output_config.enable_return_routed_experts",
        "bool",
        "The experts that each token went to are returned, since 0.31.",
        None,
    ),
    _section("watermark_config", "Watermarking of the generated text is configured."),
    _section("attention_config.hisparse_config", "HiSparse attention is configured."),
    _field(
        "compilation_config.mode",
        "str",
        "Level of compilation; null where it isn't decided.",
        None,
        domain=COMPILATION_MODES,
    ),
    _field(
        "compilation_config.cudagraph_mode",
        "str",
        "Which steps run as CUDA graphs; null where it isn't decided.",
        None,
        domain=CUDAGRAPH_MODES,
    ),
    _field("compilation_config.pass_config.enable_sp", "bool", "Sequence parallelism.", None),
    _field(
        "arguments.unrecognized",
        "str",
        "Arguments that the release's parser does not have; null: none.",
        None,
    ),
    _section("speculative_config", "Speculative decoding is configured."),
    _refusal("speculative_config.refusal", "the speculation"),
    _field("speculative_config.method", "str", "How tokens are drafted.", None),
    _field(
        "speculative_config.parallel_drafting", "bool", "All tokens of a draft come from one pass.", False
    ),
    _section(
        "speculative_config.num_speculative_tokens_per_batch_size",
        "The number of drafted tokens depends on the size of the batch (dynamic speculative decoding).",
    ),
    _field(
        "speculative_config.enable_adaptive_verification",
        "bool",
        "Unlikely drafts are dropped before they are checked.",
        False,
    ),
    _field(
        "speculative_config.use_heterogeneous_vocab", "bool", "The draft model has another vocabulary.", False
    ),
    _field(
        "speculative_config.draft_lm_head_quantization",
        "str",
        "Quantization of the draft model's output layer.",
        None,
        read=str,
    ),
    _field(
        "speculative_config.draft_model_config.architectures", "list", "Model classes of the draft model.", ()
    ),
    _field(
        "speculative_config.draft_model_config.has_mixed_sliding_layers",
        "bool",
        "The draft model has sliding-window layers and others.",
        False,
        path="speculative_config.draft_model_config.hf_config.layer_types",
        read=_mixed_sliding,
    ),
    _field(
        "parallel_config.all2all_backend", "str", "What moves tokens between the devices of experts.", None
    ),
    _field("parallel_config.enable_expert_parallel", "bool", "Devices take whole experts.", False),
    VllmFact(
        "parallel_config.divides_attention_heads",
        "bool",
        "The devices that split a layer divide its attention heads evenly.",
        "model",
        derive=_divides_heads,
        nullable=True,
        reads=("parallel_config.tensor_parallel_size",),
    ),
    VllmFact(
        "parallel_config.fits_decode_context",
        "bool",
        "The devices that split a sequence's KV are as many as copies of the KV heads; always so with latent "
        "attention.",
        "model",
        derive=_fits_decode_context,
        nullable=True,
        reads=("parallel_config.tensor_parallel_size", "parallel_config.decode_context_parallel_size"),
    ),
    VllmFact(
        "parallel_config.use_ubatching",
        "bool",
        "A batch is run as several micro-batches: by dual batch overlap or by a number of them.",
        derive=_use_ubatching,
        nullable=True,
        reads=("parallel_config.enable_dbo", "parallel_config.ubatch_size"),
    ),
    _environment("has_triton", "bool", "Triton is installed and finds exactly one driver."),
    _environment("platform", "str", "What vLLM runs on.", domain=PLATFORMS),
    _environment(
        "override",
        "str",
        "The runner that the environment variable forces; null where it is unset.",
        domain=("v1", "v2"),
        nullable=True,
    ),
    _environment("logitsproc_plugins", "bool", "An installed package registers logits processors."),
    _environment("wsl", "bool", "The machine is Linux inside Windows (WSL)."),
    _environment("wsl_pin_memory", "bool", "VLLM_WSL2_ENABLE_PIN_MEMORY asks for pinned memory on WSL."),
    _environment(
        "compute_capability",
        "int",
        "Lowest CUDA compute capability, 8.0 being 80; null where there is no CUDA.",
        minimum=0,
        nullable=True,
    ),
    _environment("variables", "list", "Names of vLLM's environment variables that are set."),
    # what only consequences read
    _field(
        "offload_config.cpu_offload",
        "bool",
        "Weights are to be kept in host memory (--cpu-offload-gb).",
        False,
        path="offload_config.cpu_offload_gb",
        read=_positive,
    ),
    _field("kv_transfer_config.kv_connector", "str", "The KV connector that is configured.", None),
    _field("model_config.disable_cascade_attn", "bool", "Cascade attention is off.", None),
    _field(
        "model_config.multimodal_config.skip_mm_profiling",
        "bool",
        "Memory is profiled without multimodal inputs.",
        False,
    ),
    _field(
        "observability_config.enable_layerwise_nvtx_tracing", "bool", "NVTX ranges for each layer.", False
    ),
    _field("observability_config.cudagraph_metrics", "bool", "Metrics of CUDA graphs.", False),
)

VLLM_FACTS: Final[Mapping[str, VllmFact]] = registry(_FACTS)
"""The registry of vLLM's rule books: every fact by its name."""


def derive_facts(
    config: Mapping[str, Any], environment: Environment, assume: Mapping[str, FactValue] | None = None
) -> dict[str, FactValue]:
    """The value of every fact, for a nested configuration of final field values.

    `UNKNOWN` in place of a field's value makes the facts that read it unknown. assume: the release's defaults
    where they differ from the registry's. Raises ConfigError that names the field.
    """
    inputs = Inputs(config, environment, assume or {})
    return {name: fact.derive(inputs) for name, fact in VLLM_FACTS.items()}


def default_of(name: str, assume: Mapping[str, FactValue] | None = None) -> FactValue:
    """What a fact is where it isn't known: the book's assumption, else vLLM's default."""
    if assume and name in assume:
        return assume[name]
    fact = VLLM_FACTS.get(name)
    return UNKNOWN if fact is None else fact.default
