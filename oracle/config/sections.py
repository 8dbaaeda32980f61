"""The sections of an engine's configuration, under vLLM's names, as immutable values."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar, cast

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from dodona.oracle.errors import ConfigError, did_you_mean
from dodona.oracle.printable import short

T = TypeVar("T")

FROZEN = ConfigDict(extra="forbid")

Flag = Annotated[bool, Strict()]
MAX_COUNT: Final = 1 << 62
"""Largest number of bytes, tokens or anything else."""

Count = Annotated[int, Strict(), Field(ge=1, le=MAX_COUNT)]
Natural = Annotated[int, Strict(), Field(ge=0, le=MAX_COUNT)]
Text = Annotated[str, Field(min_length=1)]

MAX_SPECULATIVE_TOKENS: Final = 128
_MAX_LOOKUP: Final = 128
"""Most drafts of a step; vLLM's bound (`MAX_SPEC_LEN` of its rejection sampler)."""


class CompilationMode(enum.Enum):
    """vLLM's levels of compilation; the value is vLLM's integer."""

    NONE = 0
    STOCK_TORCH_COMPILE = 1
    DYNAMO_TRACE_ONCE = 2
    VLLM_COMPILE = 3

    @classmethod
    def of(cls, value: object) -> CompilationMode:
        """The mode of a name in either case, or of vLLM's integer, also as text. Raises ValueError."""
        if isinstance(value, CompilationMode):
            return value
        text = str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
        for mode in cls:
            if text.upper() == mode.name or (text.isdecimal() and int(text) == mode.value):
                return mode
        modes = ", ".join(f"{mode.name} ({mode.value})" for mode in cls)
        raise ValueError(f"expected one of {modes}")


COMPILATION_MODES = tuple(mode.name for mode in CompilationMode)


def _compilation_mode(value: object) -> str:
    return CompilationMode.of(value).name


def _json_object(value: object) -> str:
    # Kept as canonical JSON text: a dictionary inside a frozen value could still be changed, and has no hash.
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping):
        raise ValueError("expected a JSON object")
    return json.dumps(dict(value), sort_keys=True)


JsonObject = Annotated[
    str,
    BeforeValidator(_json_object),
    PlainSerializer(lambda text: json.loads(text), return_type=dict[str, Any]),
]
"""A JSON object: given as a mapping or JSON text, held as canonical JSON text, serialised as an object."""


def config_errors(prefix: str) -> Callable[[type[T]], type[T]]:
    """Makes constructing a pydantic dataclass raise ConfigError, naming `prefix` and the field, for what
    is wrong."""

    def decorate(cls: type[T]) -> type[T]:
        construct: Callable[..., None] = cls.__init__

        def __init__(self: T, *args: Any, **kwargs: Any) -> None:
            try:
                construct(self, *args, **kwargs)
            except ValidationError as error:
                raise ConfigError(_describe(error, cls, prefix)) from None

        __init__.__doc__ = construct.__doc__
        cast(Any, cls).__init__ = __init__
        return cls

    return decorate


def _describe(error: ValidationError, cls: type, prefix: str) -> str:
    lines = []
    for item in error.errors(include_url=False):
        path = [str(part) for part in item["loc"]]
        dotted = ".".join([prefix, *path] if prefix else path) or prefix or cls.__name__
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            section = cls if prefix or len(path) == 1 else SECTIONS[path[0]]
            known = [f.name for f in dataclasses.fields(cast(Any, section))]
            hint = did_you_mean(path[-1], known) or f"known: {', '.join(known)}"
            whole = not prefix and len(path) == 1
            owner = _owner(path[-1]) if whole else None
            hint = f"it is a field of {owner} (flat names: EngineConfig.from_flat)" if owner else hint
            lines.append(f"{dotted}: no such {'section' if whole else 'field'}; {hint}")
        elif item["type"] in ("missing", "missing_argument"):
            lines.append(f"{dotted}: required, but not given")
        elif item["type"] == "value_error":
            lines.append(f"{dotted}: {item['msg'].removeprefix('Value error, ')}, got {_shown(path, item)}")
        else:
            expected = item["msg"].replace("Input should be", "expected", 1)
            lines.append(f"{dotted}: {expected}, got {_shown(path, item)}")
    return "; ".join(dict.fromkeys(lines))


_SECRET = frozenset({"kv_connector_extra_config"})
"""Fields whose values may hold passwords and keys: messages give their type only."""


def _shown(path: Sequence[str], item: Mapping[str, Any]) -> str:
    """What was given, short, without secrets."""
    value = item["input"]
    if not _SECRET.isdisjoint(path) or isinstance(value, (dict, list)):
        return f"a value of type {type(value).__name__}"
    return short(value)


def _owner(field: str) -> str | None:
    """The section that has a field of this name."""
    for name, section in SECTIONS.items():
        if field in (f.name for f in dataclasses.fields(cast(Any, section))):
            return name
    return None


@config_errors("model_config")
@dataclass(frozen=True, config=FROZEN)
class ModelConfig:
    """What is served, and how its numbers are represented."""

    model: Text
    """A model directory in Hugging Face form, or a hub id."""
    tokenizer: Text | None = None
    """Directory or hub id of the tokenizer; None means the model's own."""
    skip_tokenizer_init: Flag = False
    """Do without a tokenizer: prompts are token ids, and outputs carry no text."""
    trust_remote_code: Flag = False
    """Whether transformers may run code that comes with the model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type to compute in; "auto" is config.json's, and float32 on a CPU."""
    seed: Annotated[int, Strict(), Field(ge=0, lt=1 << 63)] = 0
    """Requests without a seed of their own draw theirs from it."""
    max_model_len: Count | None = None
    """Longest prompt plus output in tokens; None means what config.json says."""
    runner: Literal["auto", "generate", "pooling", "draft"] = "auto"
    """What the model is served for; "auto" goes by its architecture."""
    convert: Literal["auto", "none", "embed", "classify"] = "auto"
    """What a pooling runner makes of the model: embeddings, or the logits of a classifier; "auto" goes by its
    architecture."""
    revision: Text | None = None
    """Branch, tag or commit on the hub."""
    quantization: Text | None = None
    """Quantization method; None means what config.json says."""
    enforce_eager: Flag = False
    """Never capture CUDA graphs."""
    max_logprobs: Natural = 20
    """Most log-probabilities a request may ask per position."""
    generation_config: Text = "auto"
    """Source of sampling defaults: "auto" (the model's generation_config.json), "vllm" (none), or a
    directory."""


@config_errors("cache_config")
@dataclass(frozen=True, config=FROZEN)
class CacheConfig:
    """The KV cache."""

    block_size: Count = 16
    """Tokens per KV block."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that the engine may take; on a CPU, of the memory that is left, for KV."""
    num_gpu_blocks_override: Count | None = None
    """Number of KV blocks, in place of what the memory profile gives."""
    kv_cache_memory_bytes: Count | None = None
    """Bytes for KV blocks, in place of what the memory profile gives."""
    enable_prefix_caching: Flag = True
    """Share the KV blocks of equal prefixes."""
    cache_dtype: Text = "auto"
    """Type of stored keys and values; "auto" means the model's."""
    kv_offloading_size: Annotated[float, Field(ge=0)] | None = None
    """GiB of host memory for offloaded KV blocks; a size above zero turns a KV connector on."""
    kv_offloading_backend: Literal["native", "lmcache"] = "native"
    """Which connector offloads."""


@config_errors("parallel_config")
@dataclass(frozen=True, config=FROZEN)
class ParallelConfig:
    """How many devices share the work, and which part each takes."""

    tensor_parallel_size: Count = 1
    """Devices that split each layer."""
    pipeline_parallel_size: Count = 1
    """Devices that take consecutive layers."""
    data_parallel_size: Count = 1
    """Replicas that share the requests."""
    data_parallel_backend: Literal["mp", "ray"] = "mp"
    """Where the replicas run: on this machine ("mp"), or where Ray has room for them."""
    data_parallel_rank: Natural | None = None
    """This replica's number, where each is started by itself behind a load balancer."""
    data_parallel_external_lb: Flag = False
    """A load balancer of the user's shares the requests among replicas."""
    data_parallel_hybrid_lb: Flag = False
    """Such a balancer among machines, and this process among the replicas of its own."""
    prefill_context_parallel_size: Count = 1
    """Devices that split a prompt."""
    decode_context_parallel_size: Count = 1
    """Devices that split the KV of a sequence."""
    enable_expert_parallel: Flag = False
    """Spread experts over the devices."""
    distributed_executor_backend: Literal["mp", "ray", "uni", "external_launcher"] | None = None
    """How workers run: in processes of this machine ("mp"), as Ray actors, or in the engine's process
    ("uni"). None means "ray" where `data_parallel_backend` is, else "mp" where there are several, else
    "uni"."""
    distributed_timeout_seconds: Count | None = None
    """Seconds that a step of several workers may take; None means 600."""

    @property
    def world_size(self) -> int:
        """Ranks of one replica."""
        split = self.tensor_parallel_size * self.pipeline_parallel_size
        return split * self.prefill_context_parallel_size

    @property
    def world_size_across_dp(self) -> int:
        """Ranks of all replicas together."""
        return self.world_size * self.data_parallel_size

    @property
    def uses_ray(self) -> bool:
        """Whether workers are Ray actors."""
        return (self.distributed_executor_backend or self.data_parallel_backend) == "ray"


@config_errors("scheduler_config")
@dataclass(frozen=True, config=FROZEN)
class SchedulerConfig:
    """What one step may hold."""

    max_num_batched_tokens: Count | None = None
    """Most tokens of one step; None means 16384 on CUDA and 2048 elsewhere."""
    max_num_seqs: Count = 256
    """Most requests of one step."""
    enable_chunked_prefill: Flag = True
    """Compute a prompt in several steps where it does not fit into one."""


@config_errors("device_config")
@dataclass(frozen=True, config=FROZEN)
class DeviceConfig:
    """Where the model runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The GPU where there is one, if "auto"."""


@config_errors("load_config")
@dataclass(frozen=True, config=FROZEN)
class LoadConfig:
    """Where weights come from."""

    load_format: Literal["auto", "safetensors", "dummy"] = "auto"
    """Files of the model ("auto", "safetensors") or random weights ("dummy")."""


@config_errors("lora_config")
@dataclass(frozen=True, config=FROZEN)
class LoRAConfig:
    """Adapters over the model's weights."""

    max_loras: Count = 1
    """Adapters of one step."""
    max_lora_rank: Count = 16
    """Largest rank of an adapter."""
    max_cpu_loras: Count | None = None
    """Adapters kept in host memory; None means `max_loras`."""


@config_errors("speculative_config")
@dataclass(frozen=True, config=FROZEN)
class SpeculativeConfig:
    """Drafting tokens that the model then checks."""

    method: Text | None = None
    """None means what the draft model's name or config.json says."""
    model: Text | None = None
    num_speculative_tokens: Annotated[int, Strict(), Field(ge=1, le=MAX_SPECULATIVE_TOKENS)] | None = None
    draft_tensor_parallel_size: Count | None = None
    prompt_lookup_max: Annotated[int, Strict(), Field(ge=1, le=_MAX_LOOKUP)] | None = None
    prompt_lookup_min: Annotated[int, Strict(), Field(ge=1, le=_MAX_LOOKUP)] | None = None
    suffix_decoding_max_tree_depth: Annotated[int, Strict(), Field(ge=2, le=_MAX_LOOKUP)] | None = None
    suffix_decoding_max_cached_requests: Natural | None = None
    suffix_decoding_max_spec_factor: (
        Annotated[float, Strict(), Field(ge=0, le=MAX_SPECULATIVE_TOKENS)] | None
    ) = None
    suffix_decoding_min_token_prob: Annotated[float, Strict(), Field(ge=0, le=1)] | None = None
    parallel_drafting: Flag = False


@config_errors("compilation_config")
@dataclass(frozen=True, config=FROZEN)
class CompilationConfig:
    """How the forward pass is compiled."""

    mode: Annotated[str, BeforeValidator(_compilation_mode)] | None = None
    """A `CompilationMode` by name in either case or by integer; held as the name in capitals."""


@config_errors("kv_transfer_config")
@dataclass(frozen=True, config=FROZEN)
class KVTransferConfig:
    """Moving KV blocks between instances or to other storage. Any connector name is accepted."""

    kv_connector: Text | None = None
    kv_role: Literal["kv_producer", "kv_consumer", "kv_both"] | None = None
    kv_connector_module_path: Text | None = None
    kv_connector_extra_config: JsonObject | None = None
    kv_buffer_device: Text | None = None
    kv_rank: Natural | None = None
    kv_parallel_size: Count | None = None
    kv_ip: Text | None = None
    kv_port: Annotated[int, Strict(), Field(ge=0, le=65535)] | None = None
    engine_id: Text | None = None


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


@config_errors("pooler_config")
@dataclass(frozen=True, config=FROZEN)
class PoolerConfig:
    """What becomes of a pooling model's output, over what the model's directory says."""

    pooling_type: (
        Annotated[
            Literal["CLS", "LAST", "MEAN", "MAX", "MEAN_SQRT_LEN", "WEIGHTED_MEAN"], BeforeValidator(_upper)
        ]
        | None
    ) = None
    """How a sequence's hidden states become its embedding. None means what the model's Sentence Transformers
    files say; without them, that of its last token, and of its first for encoders."""
    dimensions: Count | None = None
    """Keep this many leading elements of an embedding, before it is normalized."""
    use_activation: Flag | None = None
    """Normalize embeddings, and make probabilities of a classifier's logits, unless a request says otherwise.
    None means what the model's Sentence Transformers files say of embeddings, else true."""


SECTIONS: Mapping[str, type] = {
    "model_config": ModelConfig,
    "cache_config": CacheConfig,
    "parallel_config": ParallelConfig,
    "scheduler_config": SchedulerConfig,
    "device_config": DeviceConfig,
    "load_config": LoadConfig,
    "lora_config": LoRAConfig,
    "speculative_config": SpeculativeConfig,
    "compilation_config": CompilationConfig,
    "kv_transfer_config": KVTransferConfig,
    "pooler_config": PoolerConfig,
}
"""Section name → its class."""

OPTIONAL_SECTIONS = (
    "lora_config",
    "speculative_config",
    "compilation_config",
    "kv_transfer_config",
    "pooler_config",
)
"""Sections that are None where they are not configured."""
