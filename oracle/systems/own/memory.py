"""Whether a model's weights and the smallest KV cache fit, as far as files and config.json tell.

Both are counted from below: what is counted is certainly needed. What a step needs beside them is measured
once the model is loaded (`runners.limits.size_kv_cache`).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.stored_tensors import BITS, FLOATS
from dodona.oracle.systems.own.connectors import has_active_connector
from dodona.oracle.systems.own.kv_transfer import OffloadingSettings, resolve_kv_transfer
from dodona.oracle.systems.own.lengths import (
    most_blocks_of_window,
    resolved_max_model_len,
    resolved_max_num_batched_tokens,
)
from dodona.oracle.systems.own.model_code import is_row_by_row
from dodona.oracle.systems.own.parallel import runs_on_cluster
from dodona.oracle.systems.own.resolved import (
    resolved_device,
    resolved_dtype,
    resolved_quantization,
    resolved_runner_type,
)
from dodona.oracle.systems.own.weights import WeightsOnDisk, tensors_of, weights_of

BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of an element, by the type that is computed in."""

_STORED: Final = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_UNREAD = re.compile(r"(^|\.|_)(mtp|vision|visual|audio|rotary_emb)(\.|_|$)")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.([0-9]{1,6})\.")
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class _Needs:
    """Bytes that are certainly needed."""

    weights: int
    """Of a rank."""
    kv: int
    """KV blocks of a rank."""
    offloaded: int
    """KV blocks in the host's memory, of all ranks of all replicas."""


@dataclass(frozen=True, slots=True)
class _Room:
    """The memory that weights and KV blocks are in: a GPU's, or the machine's."""

    is_gpu: bool
    gib: float
    ranks: int
    """Ranks that share it: one, or those of all replicas."""
    share: float
    """The part of a GPU's that may be used; of the machine's, that of what is left beside the weights which
    KV blocks may have unless their number or size is configured."""

    @property
    def usable_bytes(self) -> float:
        return self.gib * _GIB * (self.share if self.is_gpu else 1)


def memory_fault(config: EngineConfig, model: ModelInfo, environment: Environment) -> str | None:
    """Why weights and a KV cache of one sequence do not fit; None where they may, or it isn't known how much
    memory there is. On a CPU all ranks of all replicas share the machine's."""
    try:
        kv, given = least_kv_bytes(config, model, environment), _given_kv_bytes(config)
        if given is not None and given < kv:
            return (
                f"kv_cache_memory_bytes={given} is less than the {kv} bytes of KV "
                f"blocks that one sequence {_of_length(config)} takes; raise kv_cache_memory_bytes, or lower "
                "max_model_len"
            )
        weights = least_weight_bytes(config, model, environment)
        fault = _offloading_fault(config, model, environment)
        needs = _Needs(weights, max(kv, given or 0), offloaded_bytes(config))
    except ConfigError:
        return None  # of which other rules speak
    room = _room(config, environment)
    if fault is not None or room is None:
        return fault
    return _reading_fault(config, needs, room) or _holding_fault(config, needs, room)


def _given_kv_bytes(config: EngineConfig) -> int | None:
    """The configured size of the KV blocks; a configured number of them replaces it."""
    cache = config.cache_config
    return cache.kv_cache_memory_bytes if cache.num_gpu_blocks_override is None else None


def _room(config: EngineConfig, environment: Environment) -> _Room | None:
    """None where it isn't known how much there is."""
    is_gpu = resolved_device(config, environment) in ("cuda", "rocm")
    has = environment.memory if is_gpu else environment.host_memory
    if has is None:
        return None
    ranks = 1 if is_gpu else config.parallel_config.world_size_across_dp
    return _Room(is_gpu, has, ranks, config.cache_config.gpu_memory_utilization)


def _reading_fault(config: EngineConfig, needs: _Needs, room: _Room) -> str | None:
    """Why the ranks that share the machine's memory can't read the weights. Each reads the whole model: the
    last one to end has it beside what the others keep."""
    parallel = config.parallel_config
    if room.is_gpu or parallel.pipeline_parallel_size > 1:
        return None
    reading = (parallel.tensor_parallel_size + room.ranks - 1) * needs.weights
    if reading <= room.usable_bytes:
        return None
    return (
        f"to read the weights {room.ranks} ranks take {reading / _GIB:.4g} GiB, one of them the whole "
        f"model and the others their shares, and the machine has {room.gib:.4g} GiB; use fewer ranks, "
        "more memory or a smaller dtype"
    )


def _holding_fault(config: EngineConfig, needs: _Needs, room: _Room) -> str | None:
    """Why the memory does not hold weights and KV blocks together."""
    weights, kv = room.ranks * needs.weights, room.ranks * needs.kv
    offloaded = 0 if room.is_gpu else needs.offloaded
    need: float = weights + kv + offloaded
    is_sized = config.cache_config.num_gpu_blocks_override is not None or _given_kv_bytes(config) is not None
    if not room.is_gpu and not is_sized:
        need = max(need, weights + kv / room.share)
    if need <= room.usable_bytes:
        return None
    of_ranks = f" of {room.ranks} ranks" if room.ranks > 1 else ""
    beside = f", offloaded KV blocks {offloaded / _GIB:.4g} GiB" if offloaded else ""
    return (
        f"weights{of_ranks} take {weights / _GIB:.4g} GiB, KV blocks {kv / _GIB:.4g} GiB{beside}, and "
        f"{'a GPU' if room.is_gpu else 'the machine'} has {room.gib:.4g} GiB with "
        f"gpu_memory_utilization={room.share:g}; use more devices or memory, a smaller dtype or quantized "
        "weights, or lower max_model_len or kv_cache_memory_bytes"
    )


def offloaded_bytes(config: EngineConfig) -> int:
    """Bytes of the host's memory for the offloaded KV blocks of all ranks of all replicas. Raises
    ConfigError."""
    settings = resolve_kv_transfer(config)
    if not isinstance(settings, OffloadingSettings):
        return 0
    return settings.cpu_bytes * config.parallel_config.world_size_across_dp


def _offloading_fault(config: EngineConfig, model: ModelInfo, environment: Environment) -> str | None:
    """Why the host's memory for offloaded KV blocks holds none, or can't be had. Raises ConfigError."""
    settings = resolve_kv_transfer(config) if has_active_connector(config) else None
    if not isinstance(settings, OffloadingSettings):
        return None
    given, block = settings.cpu_bytes, least_block_bytes(config, model, environment)
    if given < block:
        return (
            f"kv_offloading_size is {given} bytes of the host's memory for each device, and a KV block takes "
            f"{block}; raise it"
        )
    total, has = offloaded_bytes(config) / _GIB, environment.host_memory
    if runs_on_cluster(config, environment) and resolved_device(config, environment) == "cuda":
        total = given / _GIB  # a machine has a rank at least
    if has is None or total <= has:
        return None
    return (
        f"kv_offloading_size takes {total:.4g} GiB of the host's memory, and the machine has {has:.4g} GiB; "
        "lower it"
    )


def least_weight_bytes(config: EngineConfig, model: ModelInfo, environment: Environment) -> int:
    """Bytes that weights certainly take on a device: 0 where nothing is known of them.

    On a CPU tensors that have the type which is computed in stay in their files, of which the system keeps in
    memory what fits. Raises ConfigError where files are damaged.
    """
    device = resolved_device(config, environment)
    dtype = resolved_dtype(config, model, device) or "float32"
    weights = weights_of(config, config.model_config.model, Path(model.file).parent, environment)
    if weights is None or model.is_multimodal or dtype not in BYTES:
        return 0
    quantized_at_load = model.quant_method is None and resolved_quantization(config, model) is not None
    whole = _weight_bytes(
        weights,
        model,
        dtype=dtype,
        in_files=device == "cpu",
        pools=resolved_runner_type(config, model) == "pooling",
        quantized_at_load=quantized_at_load,
    )
    parallel = config.parallel_config
    return whole // (parallel.tensor_parallel_size * parallel.pipeline_parallel_size)


@functools.lru_cache(maxsize=256)
def _weight_bytes(
    weights: WeightsOnDisk,
    model: ModelInfo,
    *,
    dtype: str,
    in_files: bool,
    pools: bool,
    quantized_at_load: bool,
) -> int:
    total = 0
    for name, tensor in tensors_of(weights).items():
        layer = _LAYER.search(name)
        beyond = layer is not None and int(layer[1]) >= (model.num_hidden_layers or 0)
        if beyond or _UNREAD.search(name) or (pools and name.startswith("lm_head.")):
            continue
        is_float = tensor.dtype in FLOATS
        if in_files and (not is_float or tensor.dtype == _STORED[dtype]):
            continue
        bits = BITS[tensor.dtype] if not is_float else 8 * BYTES[dtype]
        if is_float and quantized_at_load and len(tensor.shape) > 1:
            bits = 8
        total += tensor.num_elements * bits // 8
    return total


def least_kv_bytes(config: EngineConfig, model: ModelInfo, environment: Environment) -> int:
    """Bytes of KV blocks that one sequence certainly takes: of `max_model_len` where it is configured, else
    of two tokens, to which it may be lowered. 0 where config.json doesn't tell what layers keep.

    Raises ConfigError for a length beyond the model's.
    """
    if (
        resolved_runner_type(config, model) == "pooling"
        or is_row_by_row(config, model, environment) is not False
    ):
        return 0
    longest, device = resolved_max_model_len(config, model), resolved_device(config, environment)
    size = config.cache_config.block_size
    tokens = longest if config.model_config.max_model_len is not None else min(2, longest)
    blocks = -(-tokens // size)
    step = resolved_max_num_batched_tokens(config, model, device, longest)
    (full, sliding), behind = _kv_layers(model), blocks
    if model.sliding_window is not None and full:  # window blocks, for a full batch
        most = most_blocks_of_window(model.sliding_window, min(step, longest), size)
        behind = min(blocks, most * config.scheduler_config.max_num_seqs)
    elif model.sliding_window is not None:
        behind = min(blocks, most_blocks_of_window(model.sliding_window, step, size))
    kept = blocks * full + behind * sliding
    return kept * size * _bytes_per_token(config, model, device) // config.parallel_config.world_size


def least_block_bytes(config: EngineConfig, model: ModelInfo, environment: Environment) -> int:
    """Bytes that a KV block of all layers certainly takes on a device; 0 where config.json doesn't tell, or
    there are none."""
    if (
        resolved_runner_type(config, model) == "pooling"
        or is_row_by_row(config, model, environment) is not False
    ):
        return 0
    size, device = config.cache_config.block_size, resolved_device(config, environment)
    of_layers = sum(_kv_layers(model)) * size * _bytes_per_token(config, model, device)
    return of_layers // config.parallel_config.world_size


def _bytes_per_token(config: EngineConfig, model: ModelInfo, device: str) -> int:
    """Of keys and values of one layer."""
    elements = (model.num_key_value_heads or 0) * (model.head_size or 0) * 2
    return elements * BYTES.get(resolved_dtype(config, model, device) or "", 0)


def _kv_layers(model: ModelInfo) -> tuple[int, int]:
    """How many layers certainly keep keys and values of all tokens, and of those in a window."""
    if model.use_mla or model.is_encoder_decoder or model.is_attention_free or model.is_multimodal:
        return 0, 0
    if model.model_type not in PLAIN_KV:
        return 0, 0
    if model.layer_types is not None:
        listed = model.layer_types
        return listed.count("full_attention"), listed.count("sliding_attention")
    count = model.num_hidden_layers or 0
    kinds = set(model.layer_kinds)
    return (
        (count, 0)
        if kinds <= {"full_attention"}
        else (0, count)
        if kinds == {"sliding_attention"}
        else (0, 0)
    )


def _of_length(config: EngineConfig) -> str:
    longest = config.model_config.max_model_len
    return "of two tokens" if longest is None else f"of max_model_len={longest}"


PLAIN_KV: Final = (
    "afmoe", "apertus", "arcee", "aria_text", "biogpt", "bitnet", "cohere", "cohere2", "cohere2_moe", "ctrl",
    "cwm", "dbrx", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "flex_olmo", "gemma",
    "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox",
    "gpt_oss", "granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared", "helium",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2",
    "kolibri1", "lfm2", "llama", "mellum", "minimax_m2", "ministral", "ministral3", "mistral", "mixtral",
    "modernbert-decoder", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon",
    "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "seed_oss", "smollm3",
    "solar_open", "stablelm", "starcoder2", "vaultgemma",
)  # fmt: skip
"""Model types whose attention layers keep `num_key_value_heads` heads of `head_size` elements of each token,
each backed by a run (`python -m tests.support.family_files`)."""
