"""How long sequences and steps may be, and what of a configuration's sizes no engine can start with."""

from __future__ import annotations

from pathlib import Path

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.sentence_transformers import read_sentence_transformers
from dodona.oracle.systems.own.connectors import has_active_connector
from dodona.oracle.systems.own.model_code import is_row_by_row, prompt_steps
from dodona.oracle.systems.own.resolved import DTYPES, resolved_device, resolved_dtype, resolved_runner_type

_GPUS = ("cuda", "rocm")
DEFAULT_MAX_MODEL_LEN = 2048
"""`max_model_len` where neither the configuration nor config.json gives one; vLLM's."""

DEFAULT_MAX_NUM_BATCHED_TOKENS = {"cuda": 16384, "cpu": 2048}
"""`max_num_batched_tokens` where the configuration leaves it unset: on a GPU, and elsewhere."""


def sizes_fault(config: EngineConfig, model: ModelInfo, environment: Environment) -> str | None:
    """Why no engine can start with these lengths, steps, KV blocks or this type; None where one can.

    Memory is not looked at.
    """
    device = resolved_device(config, environment)
    try:
        checked_dtype(config, model, device)
        longest = resolved_max_model_len(config, model)
        fault = step_fault(config, model, device, longest)
    except ConfigError as error:
        return str(error)
    return fault or _blocks_fault(config, model, environment, longest)


def checked_dtype(config: EngineConfig, model: ModelInfo, device: str) -> str:
    """The type to compute in, one of DTYPES. Raises ConfigError where it is another."""
    dtype = resolved_dtype(config, model, device)
    if dtype not in DTYPES:
        raise ConfigError(
            f"{model.file}: field 'dtype': no computing in {dtype!r}; set dtype to bfloat16 or float32"
        )
    return dtype


def resolved_max_model_len(config: EngineConfig, model: ModelInfo) -> int:
    """`max_model_len` as configured, else config.json's `max_position_embeddings`, else
    DEFAULT_MAX_MODEL_LEN; for pooling at most the `max_seq_length` of the model's Sentence Transformers
    files.

    Raises ConfigError where it is beyond the model's positions.
    """
    configured, possible = config.model_config.max_model_len, model.max_position_embeddings
    if configured is None:
        pools = resolved_runner_type(config, model) == "pooling"
        files = read_sentence_transformers(Path(model.file).parent) if pools else None
        if files is not None and files.max_seq_length is not None:
            return min(files.max_seq_length, possible or files.max_seq_length)
        return possible or DEFAULT_MAX_MODEL_LEN
    if possible is not None and configured > possible * model.rope_stretch:
        stretched = f" times {model.rope_stretch:g} (dynamic RoPE)" if model.rope_stretch > 1 else ""
        raise ConfigError(
            f"max_model_len={configured} is over the {possible} positions (max_position_embeddings)"
            f"{stretched} of {model.file}; give at most {int(possible * model.rope_stretch)}"
        )
    return configured


def resolved_max_num_batched_tokens(config: EngineConfig, model: ModelInfo, device: str, longest: int) -> int:
    """Most tokens of a step: as configured, else a default by the device; for pooling at least `longest`,
    the `max_model_len`, so that a prompt is computed in one step."""
    configured = config.scheduler_config.max_num_batched_tokens
    if configured is not None:
        return configured
    default = DEFAULT_MAX_NUM_BATCHED_TOKENS["cuda" if device in _GPUS else "cpu"]
    return max(default, longest) if resolved_runner_type(config, model) == "pooling" else default


def step_fault(config: EngineConfig, model: ModelInfo, device: str, longest: int) -> str | None:
    """Why a step is too small: it can't hold a prompt of `longest` tokens, and prompts may not be chunked."""
    most = resolved_max_num_batched_tokens(config, model, device, longest)
    chunks = config.scheduler_config.enable_chunked_prefill
    is_whole = prompt_steps(config, model) == "too_long" or not chunks
    if not is_whole or most >= longest:
        return None
    what, mend = "without chunked prefill", "lower the other, or set enable_chunked_prefill=True"
    if resolved_runner_type(config, model) == "pooling" and chunks:
        what, mend = "for a pooling model", "or lower the other"
    return (
        f"{what} a step must hold a whole prompt, but max_num_batched_tokens={most} is below "
        f"max_model_len={longest}; raise the one, {mend}"
    )


def most_blocks_of_window(window: int, num_tokens: int, block_size: int) -> int:
    """The most blocks that a request uses at once behind a sliding window, where a step computes at most
    `num_tokens` tokens of it; one of them was not given back yet."""
    return -(-(window - 1 + num_tokens) // block_size) + 2


def _blocks_fault(
    config: EngineConfig, model: ModelInfo, environment: Environment, longest: int
) -> str | None:
    """Why `num_gpu_blocks_override` blocks hold no sequence; None where they do, or only the loaded model
    tells."""
    cache = config.cache_config
    count = cache.num_gpu_blocks_override
    if count is None or resolved_runner_type(config, model) == "pooling" or model.is_attention_free:
        return None
    if is_row_by_row(config, model, environment) is not False:
        return None
    room, configured = count * cache.block_size, config.model_config.max_model_len
    if room >= longest or (configured is None and room >= 2):
        return None
    forgets = set(model.layer_kinds) == {"sliding_attention"} and not has_active_connector(config)
    if forgets and model.sliding_window is not None:
        device = resolved_device(config, environment)
        step = resolved_max_num_batched_tokens(config, model, device, longest)
        if count >= most_blocks_of_window(model.sliding_window, step, cache.block_size):
            return None
    return (
        f"num_gpu_blocks_override={count} blocks of block_size={cache.block_size} hold {room} tokens, less "
        f"than one sequence of max_model_len={longest}; raise num_gpu_blocks_override, or lower max_model_len"
    )
