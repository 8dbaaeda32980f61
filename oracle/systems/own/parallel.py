"""Whether a model and a machine fit the parallel sizes of a configuration."""

from __future__ import annotations

from collections.abc import Mapping

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import ParallelConfig
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.config_fields import Size
from dodona.oracle.models.heads import WHOLE_ATTENTION
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.quantized_shares import dense_cuts, share_fault
from dodona.oracle.models.shared_kv import first_shared_layer
from dodona.oracle.models.widths import EXPERT_COUNTS
from dodona.oracle.systems.own.quantization import quantization_of, quantization_scheme
from dodona.oracle.systems.own.resolved import resolved_device

MAX_CPU_RANKS = 64
"""Most workers that may share a processor."""


def uses_workers(config: EngineConfig) -> bool:
    """Whether the runner works in processes of its own: several of them, or one that is asked for."""
    parallel = config.parallel_config
    return (
        parallel.world_size_across_dp > 1
        or parallel.distributed_executor_backend == "mp"
        or parallel.uses_ray
    )


def exceeds_devices(config: EngineConfig, environment: Environment) -> bool:
    """Whether there are more ranks than devices; a CPU takes `MAX_CPU_RANKS`. What the machines of a Ray
    cluster have, Ray says at the start."""
    if runs_on_cluster(config, environment):
        return False
    devices = MAX_CPU_RANKS
    if resolved_device(config, environment) == "cuda" and environment.device_count is not None:
        devices = environment.device_count
    return config.parallel_config.world_size_across_dp > devices


def runs_on_cluster(config: EngineConfig, environment: Environment) -> bool:
    """Whether workers may run on several machines, as Ray finds room for them."""
    return config.parallel_config.uses_ray and environment.ray_cluster


def lacks_executor(parallel: ParallelConfig) -> bool:
    """Whether workers are to run by a launcher of the user's, or several of them in one process."""
    backend = parallel.distributed_executor_backend
    return backend == "external_launcher" or (backend == "uni" and parallel.world_size_across_dp > 1)


def lacks_ray(config: EngineConfig, environment: Environment) -> bool:
    """Whether Ray is to start the workers, and is known not to be installed."""
    return config.parallel_config.uses_ray and environment.version("ray") is None


def splits_gpus_by_ray(config: EngineConfig, environment: Environment) -> bool:
    """Whether Ray is to start workers that share one replica's work on several GPUs."""
    parallel = config.parallel_config
    is_cuda = resolved_device(config, environment) == "cuda"
    return parallel.uses_ray and parallel.world_size > 1 and is_cuda


def deploys_replicas_otherwise(parallel: ParallelConfig) -> bool:
    """Whether replicas are not all this process's, to start and to share requests among, or Ray is to place
    replicas whose workers it does not start."""
    return (
        (parallel.data_parallel_backend == "ray" and not parallel.uses_ray)
        or parallel.data_parallel_rank is not None
        or parallel.data_parallel_external_lb
        or parallel.data_parallel_hybrid_lb
    )


def uneven_size(config: EngineConfig, model: ModelInfo | None) -> FactValue:
    """A size that does not divide among `tensor_parallel_size` ranks, as "field=number"; None where heads and
    feed-forward layers all do; UNKNOWN where the sizes are not known.

    Heads count where ranks split the attention layers. Fewer key/value heads than ranks divide, too, where
    neighbouring ranks can share them. Each expert's width
    divides, unless ranks have whole experts: with `enable_expert_parallel` and of quantized ones. Ranks cut
    other 4-bit weights between words of 8.
    """
    ranks = config.parallel_config.tensor_parallel_size
    if ranks == 1:
        return None
    if model is None:
        return UNKNOWN
    widths, scheme = model.feed_forward_widths, quantization_scheme(config, model)
    query_heads, kv_heads = model.query_heads, model.kv_heads
    if not (query_heads and kv_heads and (model.expert_widths if model.is_moe else widths)):
        return UNKNOWN
    if model.model_type in WHOLE_ATTENTION:
        query_heads = kv_heads = ()
    divided = [*query_heads, *widths]
    if config.parallel_config.enable_expert_parallel:
        divided.append(Size(_field_of_experts(model), model.num_experts))
    elif scheme is None:
        divided += model.expert_widths
    uneven = [size for size in divided if size.value % ranks]
    uneven += [heads for heads in kv_heads if heads.value % ranks and ranks % heads.value]
    if scheme == "w4a16":
        if model.head_size is None:
            return UNKNOWN
        inputs = [Size(f"{field} * head_dim", heads * model.head_size) for field, heads in query_heads]
        uneven += [size for size in (*inputs, *widths) if size.value % (8 * ranks)]
    if not uneven:
        return None
    # transformers' name of a field stands beside the file's own one.
    field, value = min(uneven, key=lambda size: not _is_in_file(model, size.field))
    return f"{field}={value}"


def _field_of_experts(model: ModelInfo) -> str:
    found = [field for field in EXPERT_COUNTS if model.text.get(field) == model.num_experts]
    return min(found, key=lambda field: not _is_in_file(model, field), default="num_experts")


def _is_in_file(model: ModelInfo, field: str) -> bool:
    return field in model.raw or any(
        field in nested for nested in model.raw.values() if isinstance(nested, Mapping)
    )


def quantized_share_fault(config: EngineConfig, model: ModelInfo) -> str | None:
    """Why V2's ranks can't have equal shares of quantized layers; None where nothing is quantized, where they
    can, and where sizes do not divide (`uneven_size`) or are not known."""
    ranks, quantization = config.parallel_config.tensor_parallel_size, quantization_of(config, model)
    if ranks == 1 or quantization is None or uneven_size(config, model) is not None:
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
