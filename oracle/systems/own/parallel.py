"""Whether a model and a machine fit the parallel sizes of a configuration."""

from __future__ import annotations

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import ParallelConfig
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.quantized_shares import dense_cuts, share_fault
from dodona.oracle.models.shared_kv import first_shared_layer
from dodona.oracle.systems.own.quantization import quantization_of, quantization_scheme
from dodona.oracle.systems.own.resolved import resolved_device

MAX_CPU_RANKS = 64
"""Most workers that may share a processor."""


def uses_workers(config: EngineConfig) -> bool:
    """Whether the runner works in processes of its own: several of them, or one that is asked for."""
    parallel = config.parallel_config
    return parallel.world_size_across_dp > 1 or parallel.distributed_executor_backend in ("mp", "ray")


def exceeds_devices(config: EngineConfig, environment: Environment) -> bool:
    """Whether there are more ranks than devices; a CPU takes `MAX_CPU_RANKS`."""
    devices = MAX_CPU_RANKS
    if resolved_device(config, environment) == "cuda" and environment.device_count is not None:
        devices = environment.device_count
    return config.parallel_config.world_size_across_dp > devices


def lacks_executor(parallel: ParallelConfig) -> bool:
    """Whether workers are to run by a launcher of the user's, or several of them in one process."""
    backend = parallel.distributed_executor_backend
    return backend == "external_launcher" or (backend == "uni" and parallel.world_size_across_dp > 1)


def lacks_ray(config: EngineConfig, environment: Environment) -> bool:
    """Whether workers on a CPU are to run by Ray, which is known not to be installed."""
    return (
        config.parallel_config.distributed_executor_backend == "ray"
        and resolved_device(config, environment) != "cuda"
        and environment.version("ray") is None
    )


def deploys_replicas_otherwise(parallel: ParallelConfig) -> bool:
    """Whether replicas are not all this process's, to start and to share requests among."""
    return (
        parallel.data_parallel_backend != "mp"
        or parallel.data_parallel_rank is not None
        or parallel.data_parallel_external_lb
        or parallel.data_parallel_hybrid_lb
    )


def splits_evenly(config: EngineConfig, model: ModelInfo | None) -> bool | None:
    """Whether heads and feed-forward layers divide among `tensor_parallel_size` ranks; None: not known.

    Fewer key/value heads than ranks divide, too, where neighbouring ranks can share them. Each expert's width
    divides, unless ranks have whole experts: with `enable_expert_parallel` and of quantized ones. Ranks cut
    other 4-bit weights between words of 8.
    """
    ranks = config.parallel_config.tensor_parallel_size
    if ranks == 1:
        return True
    if model is None:
        return None
    heads, kv_heads, widths = model.num_attention_heads, model.num_key_value_heads, model.feed_forward_widths
    if heads is None or kv_heads is None or not (model.expert_widths if model.is_moe else widths):
        return None
    scheme = quantization_scheme(config, model)
    even = not heads % ranks and (kv_heads % ranks == 0 or ranks % kv_heads == 0)
    even = even and not any(width % ranks for width in widths)
    if config.parallel_config.enable_expert_parallel:
        even = even and model.num_experts % ranks == 0
    elif scheme is None:
        even = even and not any(width % ranks for width in model.expert_widths)
    if scheme == "w4a16":
        if model.head_size is None:
            return None
        even = even and not any(width % (8 * ranks) for width in (heads * model.head_size, *widths))
    return even


def quantized_share_fault(config: EngineConfig, model: ModelInfo) -> str | None:
    """Why V2's ranks can't have equal shares of quantized layers; None where nothing is quantized, where they
    can, and where `splits_evenly` is not True."""
    ranks, quantization = config.parallel_config.tensor_parallel_size, quantization_of(config, model)
    if ranks == 1 or quantization is None or splits_evenly(config, model) is not True:
        return None
    heads, kv_heads, head_size = model.num_attention_heads, model.num_key_value_heads, model.head_size
    width, layers = model.intermediate_size, model.num_hidden_layers
    if heads is None or kv_heads is None or head_size is None or width is None or layers is None:
        return None
    cuts = dense_cuts(
        q_size=heads * head_size,
        kv_size=kv_heads * head_size,
        width=width,
        ranks=ranks,
        kv_parts=min(ranks, kv_heads),
    )
    return share_fault(quantization, layers, cuts)


def fills_stages(config: EngineConfig, model: ModelInfo | None) -> bool | None:
    """Whether each pipeline stage gets a layer; None: not known. The last stage has all layers from the first
    one on whose keys and values others reuse."""
    stages = config.parallel_config.pipeline_parallel_size
    if stages == 1:
        return True
    layers = None if model is None else model.num_hidden_layers
    if model is None or layers is None:
        return None
    reusing = model.text.get("num_kv_shared_layers")
    reusing = reusing if isinstance(reusing, int) else 0
    return layers >= stages and first_shared_layer(model.layer_types, layers, reusing) >= stages - 1
