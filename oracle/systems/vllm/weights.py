"""Whether a checkpoint's weights fit into the memory that vLLM may use, as far as its files tell.

What a device holds is at least its share of the weights; activations, CUDA graphs and the KV cache come on
top. So the answer "no" is certain, and there is no answer "yes".
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.weight_files import INDEX_FILE, SINGLE_FILE, read_index_json

GIB: Final = 1 << 30
UTILIZATION: Final = 0.92
"""Share of a device's memory that vLLM uses where `--gpu-memory-utilization` isn't given (0.22 to 0.33)."""

_TOLERANCE: Final = 1.03
"""What is stored and not loaded, such as buffers, is taken to be less than this above what is loaded."""

_MOST: Final = 1 << 60
"""No checkpoint has so many bytes or parameters: a number that is not less is a mistake."""

_SIXTEEN_BITS: Final = ("bfloat16", "float16")


def weights_refusal(
    sections: Mapping[str, Mapping[str, Any]],
    told: Mapping[str, Any],
    model: ModelInfo,
    environment: Environment,
) -> str | None:
    """Why the devices can't hold the weights, in vLLM's words; None where they can or it isn't known.

    sections: the configuration as it was written. told: the model's facts. It isn't known without the index
    or the file of a checkpoint, and where vLLM loads less than is stored: of multimodal models, for pooling,
    with multi-token prediction, another quantization, offloading, or devices that share experts.
    """
    if environment.memory is None:
        return None
    asked = {name: sections.get(name) or {} for name in ("model_config", "cache_config", "parallel_config")}
    parallel, cache = asked["parallel_config"], asked["cache_config"]
    less = (
        told["is_multimodal_model"] is not False
        or told["runner_type"] != "generate"
        or model.text.get("num_nextn_predict_layers")
        or asked["model_config"].get("hf_overrides")
        or asked["model_config"].get("quantization") not in (None, model.quant_method)
        or (sections.get("offload_config") or {}).get("cpu_offload_gb")
        or any((parallel.get(f"{kind}_parallel_size") or 1) != 1 for kind in ("data", "prefill_context"))
    )
    stored = None if less else stored_bytes(os.path.dirname(model.file))
    if stored is None:
        return None
    size, parameters = stored
    if model.quant_method is None:
        sixteen = (model.raw.get("torch_dtype") or model.raw.get("dtype")) in _SIXTEEN_BITS
        size = min(size, 2 * parameters) if parameters else size if sixteen else size // 2
    vocabulary, width = model.text.get("vocab_size"), model.text.get("hidden_size")
    if model.tie_word_embeddings and isinstance(vocabulary, int) and isinstance(width, int):
        size -= 2 * vocabulary * width
    devices = (parallel.get("tensor_parallel_size") or 1) * (parallel.get("pipeline_parallel_size") or 1)
    share = cache.get("gpu_memory_utilization") or UTILIZATION
    allowed = environment.memory * GIB * (1.0 if cache.get("kv_cache_memory_bytes") else share)
    if size <= _TOLERANCE * allowed * devices:
        return None
    return (
        f"No available memory for the cache blocks: each of {devices} devices holds "
        f"{size / devices / GIB:.1f} GiB of weights and may use {allowed / GIB:.1f} GiB"
    )


def stored_bytes(folder: str) -> tuple[int, int | None] | None:
    """The bytes of a checkpoint's tensors, and the number of its parameters where its index says; None where
    neither an index nor a file of weights is there.
    """
    index, single = os.path.join(folder, INDEX_FILE), os.path.join(folder, SINGLE_FILE)
    for path in (index, single):
        try:
            changed = os.stat(path)
        except OSError:
            continue
        return _index(path, changed.st_mtime_ns) if path == index else (changed.st_size, None)
    return None


@functools.lru_cache(maxsize=64)
def _index(path: str, changed: int) -> tuple[int, int | None] | None:
    """Read once as long as the file doesn't change."""
    try:
        told = read_index_json(Path(path))["metadata"]
        size, parameters = _count(told["total_size"]), _count(told.get("total_parameters"))
    except (ConfigError, LookupError, TypeError, AttributeError):
        return None
    return None if size is None else (size, parameters)


def _count(told: object) -> int | None:
    """A number of bytes or of parameters, which some writers give as a float; None where it can't be one."""
    if isinstance(told, bool) or not isinstance(told, (int, float)) or not 0 < told < _MOST:
        return None
    return int(told)
