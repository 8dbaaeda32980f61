"""vLLM's own ways to write a configuration (its flags, `vllm serve …`, its YAML file) as nested sections.

Only arguments that some release's choice between its runners depends on are sorted into sections. Other
arguments of vLLM are taken and left alone; one that isn't known here is left alone too, and noted, unless it
looks like a misspelt one that matters.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from dodona.oracle.config.yaml_file import read_arguments
from dodona.oracle.errors import ConfigError, did_you_mean

Kind = Literal["bool", "int", "str", "list", "section"]

ARGUMENTS: Final[Mapping[str, tuple[str, Kind]]] = MappingProxyType(
    {
        "model": ("model_config.model", "str"),
        "revision": ("model_config.revision", "str"),
        "runner": ("model_config.runner", "str"),
        "quantization": ("model_config.quantization", "str"),
        "enforce_eager": ("model_config.enforce_eager", "bool"),
        "enable_return_routed_experts": ("model_config.enable_return_routed_experts", "bool"),
        "enable_prompt_embeds": ("model_config.enable_prompt_embeds", "bool"),
        "logprobs_mode": ("model_config.logprobs_mode", "str"),
        "logits_processors": ("model_config.logits_processors", "list"),
        "mm_encoder_only": ("model_config.multimodal_config.mm_encoder_only", "bool"),
        "kv_sharing_fast_prefill": ("cache_config.kv_sharing_fast_prefill", "bool"),
        "mamba_cache_mode": ("cache_config.mamba_cache_mode", "str"),
        "tensor_parallel_size": ("parallel_config.tensor_parallel_size", "int"),
        "pipeline_parallel_size": ("parallel_config.pipeline_parallel_size", "int"),
        "prefill_context_parallel_size": ("parallel_config.prefill_context_parallel_size", "int"),
        "decode_context_parallel_size": ("parallel_config.decode_context_parallel_size", "int"),
        "distributed_executor_backend": ("parallel_config.distributed_executor_backend", "str"),
        "enable_dbo": ("parallel_config.enable_dbo", "bool"),
        "ubatch_size": ("parallel_config.ubatch_size", "int"),
        "enable_elastic_ep": ("parallel_config.enable_elastic_ep", "bool"),
        "enable_batch_sharded_sampling": ("parallel_config.enable_batch_sharded_sampling", "bool"),
        "async_scheduling": ("scheduler_config.async_scheduling", "bool"),
        "enable_lora": ("lora_config", "bool"),
        "reasoning_parser": ("reasoning_config.reasoning_parser", "str"),
        "reasoning_config": ("reasoning_config", "section"),
        "compilation_config": ("compilation_config", "section"),
        "speculative_config": ("speculative_config", "section"),
        "kv_transfer_config": ("kv_transfer_config", "section"),
        "ec_transfer_config": ("ec_transfer_config", "section"),
        "attention_config": ("attention_config", "section"),
        "watermark_config": ("watermark_config", "section"),
    }
)
"""Flat argument → where it belongs, and how its text is read."""

SHORT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tp": "tensor_parallel_size",
        "pp": "pipeline_parallel_size",
        "pcp": "prefill_context_parallel_size",
        "dcp": "decode_context_parallel_size",
        "q": "quantization",
        "cc": "compilation_config",
        "sc": "speculative_config",
    }
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WITH_VALUE: Final = _words(
    """
    host port uds api_key served_model_name tokenizer tokenizer_mode tokenizer_revision code_revision
    dtype max_model_len max_num_seqs max_num_batched_tokens max_logprobs seed gpu_memory_utilization
    kv_cache_dtype kv_cache_memory_bytes block_size num_gpu_blocks_override swap_space cpu_offload_gb
    load_format download_dir config_format generation_config override_generation_config hf_token
    hf_config_path model_impl convert task chat_template chat_template_content_format tool_call_parser
    tool_parser_plugin response_role limit_mm_per_prompt mm_processor_kwargs media_io_kwargs
    allowed_local_media_path data_parallel_size data_parallel_rank data_parallel_address
    data_parallel_rpc_port data_parallel_size_local data_parallel_backend max_loras max_lora_rank
    lora_dtype max_cpu_loras lora_modules scheduling_policy long_prefill_token_threshold
    max_num_partial_prefills kv_offloading_size kv_offloading_backend structured_outputs_config
    guided_decoding_backend ssl_keyfile ssl_certfile root_path middleware uvicorn_log_level
    allowed_origins allowed_methods allowed_headers otlp_traces_endpoint prefix_caching_hash_algo
    optimization_level O attention_backend mamba_cache_dtype mamba_ssm_cache_dtype additional_config
    stream_interval data_parallel_hybrid_lb_address eplb_config nnodes node_rank master_addr
    master_port numa_bind worker_cls all2all_backend api_server_count max_parallel_loading_workers
    dbo_decode_token_threshold
    """
)
"""Arguments of vLLM that no release's choice reads, and that take a value (or several)."""

SWITCHES: Final = _words(
    """
    trust_remote_code enable_prefix_caching enable_chunked_prefill enable_expert_parallel
    disable_log_requests disable_log_stats enable_log_requests enable_auto_tool_choice
    skip_tokenizer_init headless enable_eplb disable_custom_all_reduce enable_sleep_mode
    enable_request_id_headers disable_fastapi_docs enable_server_load_tracking
    enable_force_include_usage return_tokens_as_token_ids disable_frontend_multiprocessing
    allow_credentials calculate_kv_scales enable_lora_bias data_parallel_hybrid_lb
    data_parallel_external_lb use_tqdm_on_load disable_sliding_window disable_cascade_attn
    disable_hybrid_kv_cache_manager trust_request_chat_template
    """
)
"""Arguments of vLLM that no release's choice reads, and that take no value."""


@dataclass(frozen=True)
class Arguments:
    """A configuration as it was written: nested sections of what was given, and what was left alone."""

    sections: Mapping[str, Any]
    unknown: tuple[str, ...] = ()
    """Arguments that aren't known here."""


def from_flat(arguments: Mapping[str, Any]) -> Arguments:
    """Sort flat arguments, given as values or as text, into sections. Raises ConfigError that names one."""
    sections: dict[str, Any] = {}
    unknown: list[str] = []
    for name, given in arguments.items():
        head, *inner = name.split(".")
        head = head.replace("-", "_")
        if head not in ARGUMENTS:
            if head not in WITH_VALUE and head not in SWITCHES:
                unknown.append(_unknown(head))
            continue
        path, kind = ARGUMENTS[head]
        if inner:
            if kind != "section":
                raise ConfigError(f"--{name}: {_flag(head)} has no parts")
            _put(sections, [*path.split("."), *inner], _loose(given), name)
            continue
        value = _read(head, kind, given)
        if head == "enable_lora":
            if value:
                sections.setdefault("lora_config", {})
        elif head == "reasoning_parser":
            if value:
                _put(sections, path.split("."), value, name)
        elif kind == "section":
            if value is not None:
                sections[path] = {**(sections.get(path) or {}), **value}
        else:
            _put(sections, path.split("."), value, name)
    return Arguments(sections, tuple(unknown))


def from_command_line(command: str | Sequence[str]) -> Arguments:
    """Read `vllm serve MODEL --flag …`, as one text or as words; `vllm serve` itself may be left out.

    Raises ConfigError that names the flag.
    """
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise ConfigError(f"the command line can't be split into words: {error}") from None
    if words[:1] and words[0].rsplit("/", 1)[-1] == "vllm":
        if words[1:2] != ["serve"]:
            raise ConfigError(f"expected `vllm serve …`, got `vllm {' '.join(words[1:2])}`")
        words = words[2:]
    flat: dict[str, Any] = {}
    free: list[str] = []
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if not _is_flag(word):
            free.append(word)
            continue
        flag, has_value, value = word.partition("=")
        name = _name(flag)
        head = name.split(".")[0]
        if has_value:
            values = [value]
        else:
            last = i
            while last < len(words) and not _is_flag(words[last]):
                last += 1
            following = words[i:last]
            taken = _taken(name, head, len(following), bool(free or "model" in flat))
            values = following[:taken]
            i += taken
        if head.startswith("no_") and _is_switch(head[3:]):
            if has_value:
                raise ConfigError(f"{flag}: takes no value")
            flat[head[3:]] = False
        elif not values and (_is_switch(head) or head not in ARGUMENTS):
            flat[name] = True
        elif not values:
            raise ConfigError(f"{flag}: a value is missing")
        else:
            several = head in ARGUMENTS and ARGUMENTS[head][1] == "list"
            flat[name] = [*flat.get(name, []), *values] if several else values[0]
    if len(free) > 1:
        raise ConfigError(f"expected one model, got {', '.join(free)}")
    if free:
        flat["model"] = free[0]
    file = flat.pop("config", None)
    if file is not None:
        flat = {**read_arguments(Path(str(file))), **flat}
    return from_flat(flat)


def _is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not word[1:2].isdigit()


def _name(flag: str) -> str:
    head, dot, rest = flag.lstrip("-").partition(".")
    if not flag.startswith("--"):
        if head[:1] == "O":
            return "O"
        head = SHORT.get(head, head)
    return head.replace("-", "_") + dot + rest


def _is_switch(head: str) -> bool:
    return head in SWITCHES or (head in ARGUMENTS and ARGUMENTS[head][1] == "bool")


def _taken(name: str, head: str, following: int, has_model: bool) -> int:
    """How many of the words after a flag are its values."""
    if _is_switch(head) or (head.startswith("no_") and _is_switch(head[3:])) or name == "O":
        return 0
    if head in ARGUMENTS or head == "config":
        return following if head in ARGUMENTS and ARGUMENTS[head][1] == "list" else min(1, following)
    if head in WITH_VALUE:
        return following if has_model else min(1, following)
    if following and not has_model:
        raise ConfigError(
            f"--{name}: not known here, so its value can't be told from the model; name the model first"
        )
    return following


def _unknown(head: str) -> str:
    hint = did_you_mean(head, ARGUMENTS)
    if hint and _close(head, hint.split("'")[1]):
        raise ConfigError(f"{_flag(head)}: no such argument; {hint}")
    return _flag(head)


def _close(name: str, known: str) -> bool:
    import difflib

    return difflib.SequenceMatcher(None, name, known).ratio() > 0.86


def _flag(head: str) -> str:
    return "--" + head.replace("_", "-")


def _put(sections: dict[str, Any], path: Sequence[str], value: Any, name: str) -> None:
    place = sections
    for part in path[:-1]:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--{name}: {part} already has a value of its own")
    place[path[-1]] = value


def _loose(given: Any) -> Any:
    """A value inside a section: JSON where it is that, else text."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(given, given)


def _read(head: str, kind: Kind, given: Any) -> Any:
    flag = _flag(head)
    if given is None:
        return None
    if kind == "bool":
        lowered = given.lower() if isinstance(given, str) else given
        if lowered in (True, "true", "1"):
            return True
        if lowered in (False, "false", "0"):
            return False
        raise ConfigError(f"{flag}: expected true or false, got {given!r}")
    if kind == "int":
        try:
            if isinstance(given, (bool, float)):
                raise ValueError
            return int(given)
        except (ValueError, TypeError):
            raise ConfigError(f"{flag}: expected a whole number, got {given!r}") from None
    if kind == "list":
        return list(given) if isinstance(given, (list, tuple)) else [str(given)]
    if kind == "str":
        return str(given)
    return _section(head, given)


def _section(head: str, given: Any) -> dict[str, Any] | None:
    flag = _flag(head)
    value = given
    if isinstance(given, str):
        try:
            value = json.loads(given)
        except ValueError as error:
            if head == "compilation_config":
                value = given
            else:
                raise ConfigError(f"{flag}: not valid JSON: {error}") from None
    if head == "compilation_config" and isinstance(value, (int, str)) and not isinstance(value, bool):
        return {"mode": value}
    if value is None or isinstance(value, Mapping):
        return None if value is None else dict(value)
    raise ConfigError(f"{flag}: expected a JSON object, got {given!r}")
