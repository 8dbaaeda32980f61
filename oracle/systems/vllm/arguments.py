"""vLLM's own ways to write a configuration (its flags, `vllm serve …`, its YAML file) as nested sections.

Only arguments that some release's choice between its runners depends on are sorted into sections. Other
arguments of vLLM are taken and left alone. What could change the choice and isn't understood is named, unless
it looks like a misspelt argument that matters: that is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from dodona.oracle.config.yaml_file import read_arguments
from dodona.oracle.errors import ConfigError, did_you_mean
from dodona.oracle.printable import short
from dodona.oracle.systems.vllm.flags import Flag, FlagTable, flag_table
from dodona.oracle.systems.vllm.invocation import Invocation, invocation_of, invocations
from dodona.oracle.systems.vllm.model_classes import registry_of
from dodona.oracle.systems.vllm.shell import UNRESOLVED, simple_commands, unresolved_part
from dodona.oracle.systems.vllm.startup_checks import refused_fields

Kind = Literal["bool", "int", "float", "str", "list", "section"]

ARGUMENTS: Final[Mapping[str, tuple[str, Kind]]] = MappingProxyType(
    {
        "model": ("model_config.model", "str"),
        "revision": ("model_config.revision", "str"),
        "hf_config_path": ("model_config.hf_config_path", "str"),
        "hf_overrides": ("model_config.hf_overrides", "section"),
        "runner": ("model_config.runner", "str"),
        "max_model_len": ("model_config.max_model_len", "str"),
        "trust_remote_code": ("model_config.trust_remote_code", "bool"),
        "convert": ("model_config.convert", "str"),
        "model_impl": ("model_config.model_impl", "str"),
        "dtype": ("model_config.dtype", "str"),
        "quantization": ("model_config.quantization", "str"),
        "enforce_eager": ("model_config.enforce_eager", "bool"),
        "enable_return_routed_experts": ("model_config.enable_return_routed_experts", "bool"),
        "enable_prompt_embeds": ("model_config.enable_prompt_embeds", "bool"),
        "logprobs_mode": ("model_config.logprobs_mode", "str"),
        "logits_processors": ("model_config.logits_processors", "list"),
        "mm_encoder_only": ("model_config.multimodal_config.mm_encoder_only", "bool"),
        "gpu_memory_utilization": ("cache_config.gpu_memory_utilization", "float"),
        "kv_cache_memory_bytes": ("cache_config.kv_cache_memory_bytes", "str"),
        "kv_sharing_fast_prefill": ("cache_config.kv_sharing_fast_prefill", "bool"),
        "enable_prefix_caching": ("cache_config.enable_prefix_caching", "bool"),
        "enable_chunked_prefill": ("scheduler_config.enable_chunked_prefill", "bool"),
        "mamba_cache_mode": ("cache_config.mamba_cache_mode", "str"),
        "data_parallel_size": ("parallel_config.data_parallel_size", "int"),
        "tensor_parallel_size": ("parallel_config.tensor_parallel_size", "int"),
        "pipeline_parallel_size": ("parallel_config.pipeline_parallel_size", "int"),
        "prefill_context_parallel_size": ("parallel_config.prefill_context_parallel_size", "int"),
        "decode_context_parallel_size": ("parallel_config.decode_context_parallel_size", "int"),
        "distributed_executor_backend": ("parallel_config.distributed_executor_backend", "str"),
        "enable_expert_parallel": ("parallel_config.enable_expert_parallel", "bool"),
        "all2all_backend": ("parallel_config.all2all_backend", "str"),
        "enable_eplb": ("parallel_config.enable_eplb", "bool"),
        "enable_dbo": ("parallel_config.enable_dbo", "bool"),
        "ubatch_size": ("parallel_config.ubatch_size", "int"),
        "enable_elastic_ep": ("parallel_config.enable_elastic_ep", "bool"),
        "enable_batch_sharded_sampling": ("parallel_config.enable_batch_sharded_sampling", "bool"),
        "async_scheduling": ("scheduler_config.async_scheduling", "bool"),
        "cpu_offload_gb": ("offload_config.cpu_offload_gb", "float"),
        "disable_cascade_attn": ("model_config.disable_cascade_attn", "bool"),
        "skip_mm_profiling": ("model_config.multimodal_config.skip_mm_profiling", "bool"),
        "enable_layerwise_nvtx_tracing": (
            "observability_config.enable_layerwise_nvtx_tracing",
            "bool",
        ),
        "cudagraph_metrics": ("observability_config.cudagraph_metrics", "bool"),
        "enable_lora": ("lora_config", "bool"),
        "reasoning_parser": ("reasoning_config.reasoning_parser", "str"),
        "reasoning_config": ("reasoning_config", "section"),
        "compilation_config": ("compilation_config", "section"),
        "speculative_config": ("speculative_config", "section"),
        "spec_method": ("speculative_config.method", "str"),
        "spec_model": ("speculative_config.model", "str"),
        "spec_tokens": ("speculative_config.num_speculative_tokens", "int"),
        "kv_transfer_config": ("kv_transfer_config", "section"),
        "ec_transfer_config": ("ec_transfer_config", "section"),
        "attention_config": ("attention_config", "section"),
        "aux_output_config": ("aux_output_config", "section"),
        "watermark_config": ("watermark_config", "section"),
    }
)
"""Flat argument → where it belongs, and how its text is read."""

MAX_WORDS: Final = 2000
"""Most words of a command line."""

_LEVELS: Final = ("0", "1", "2", "3")

COULD_DECIDE: Final = frozenset(
    {
        "config_format",
        "diffusion_config",
        "enable_trace_replay",
        "model_class_overrides",
        "quantization_config",
        "return_sampling_mask",
        "scheduler_cls",
        "swa_bounded_replay",
        "use_replayssm",
        "worker_cls",
    }
)
"""Arguments of vLLM that may change the choice or the start, in a way that no rule reads."""


@dataclass(frozen=True)
class Arguments:
    """A configuration as it was written: nested sections of what was given, and what was not understood."""

    sections: Mapping[str, Any]
    unread: tuple[str, ...] = ()
    """Arguments that could change a verdict and are not understood, each with the reason."""
    environ: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))
    """Environment variables that the command line sets; None: unset there."""
    release: str | None = None
    """The release that the command line names by the tag of its image."""


def from_flat(arguments: Mapping[str, Any], release: str | None = None) -> Arguments:
    """Sort flat arguments, given as values or as text, into sections.

    release: whose flags they are; None: the newest that is known. Raises ConfigError that names an argument.
    """
    table = flag_table(release)
    sections: dict[str, Any] = {}
    unread: list[str] = []
    unrecognized: list[str] = []
    parts: dict[str, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    for name, given in arguments.items():
        head, *inner = name.split(".")
        head = head.replace("-", "_")
        if release == table.release and head not in table.names:
            unrecognized.append(_flag(head))
        if head not in ARGUMENTS:
            unread += _left_alone(head, table)
        elif isinstance(given, str) and UNRESOLVED.search(given):
            unread.append(f"--{name.replace('_', '-')}: {unresolved_part(given)} is not known here")
        elif inner:
            path, kind = ARGUMENTS[head]
            if kind != "section":
                raise ConfigError(f"--{name}: {_flag(head)} has no parts")
            _put(parts.setdefault(path, {}), inner, _loose(given), name)
        else:
            whole[head] = given
    for path, value in parts.items():
        _put(sections, path.split("."), value, path)
    for head, given in whole.items():
        # as vLLM reads it: parts that are given one by one stand in place of a whole section
        if ARGUMENTS[head][1] != "section" or ARGUMENTS[head][0] not in parts:
            _take(sections, head, given)
    if release is not None:
        registry = registry_of(release)
        unrecognized += refused_fields(sections, registry)
        unrecognized += [
            f"{_flag(head)} {short(given, 40)}"
            for head, given in whole.items()
            if isinstance(given, str) and given not in registry.choices.get(head, (given,))
        ]
        level = whole.get("compilation_config")
        if registry.is_recorded and isinstance(level, (int, str)) and not str(level).lstrip().startswith("{"):
            # a bare level was taken by older releases
            unrecognized.append(f"--compilation-config {level}")
        optimization = str(arguments.get("optimization_level", "0"))
        if registry.is_recorded and optimization not in _LEVELS and not UNRESOLVED.search(optimization):
            unrecognized.append(f"--optimization-level {short(optimization, 40)}")
    if unrecognized:
        sections["arguments"] = {"unrecognized": ", ".join(sorted(unrecognized))}
    _apply_optimization_level(sections, arguments)
    return Arguments(sections, tuple(unread))


def _left_alone(head: str, table: FlagTable) -> list[str]:
    """What is to be said of an argument that no rule reads."""
    if head not in table.names:
        return [_unknown(head, table)]
    return [f"{_flag(head)}: what it does to the choice is not modelled"] if head in COULD_DECIDE else []


def _take(sections: dict[str, Any], head: str, given: Any) -> None:
    path, kind = ARGUMENTS[head]
    value = _read(head, kind, given)
    if head == "enable_lora":
        if value:
            sections.setdefault("lora_config", {})
    elif head == "reasoning_parser":
        if value:
            _put(sections, path.split("."), value, head)
    elif kind == "section":
        if value is not None:
            place, *inner = path.split(".")
            old = sections.get(place) or {}
            if inner:
                sections[place] = {**old, inner[0]: value}
            else:
                sections[place] = {**old, **value}
    else:
        _put(sections, path.split("."), value, head)


def _apply_optimization_level(sections: dict[str, Any], arguments: Mapping[str, Any]) -> None:
    """Level 0 compiles nothing and captures no graphs, where nothing else is asked for."""
    if str(arguments.get("optimization_level", "")) in ("0", "O0"):
        given = sections.get("compilation_config") or {}
        sections["compilation_config"] = {"mode": "NONE", "cudagraph_mode": "NONE", **given}


def from_command_line(command: str | Sequence[str], release: str | None = None) -> Arguments:
    """Read a command line that starts vLLM's server, as one text or as words: `vllm serve MODEL --flag …`,
    with variables, wrappers, `python -m`, `sh -c` or `docker run` around it, or only the arguments.

    release: whose flags they are; None: the newest that is known. Raises ConfigError that names the flag.
    """
    if isinstance(command, str):
        found = list(invocations(command))
        if len(found) > 1:
            raise ConfigError(f"expected one `vllm serve …`, got {len(found)} of them")
        if not found:
            found = [_bare(next((c.words for c in simple_commands(command)), ()))]
    else:
        found = [invocation_of(command) or _bare(command)]
    return from_invocation(found[0], release)


def _bare(words: Sequence[str]) -> Invocation:
    """Arguments of `vllm serve` without it."""
    if words and words[0].rsplit("/", 1)[-1] == "vllm":
        raise ConfigError(f"expected `vllm serve …`, got `vllm {' '.join(words[1:2])}`")
    return Invocation(tuple(words), {})


def from_invocation(invocation: Invocation, release: str | None = None) -> Arguments:
    """The configuration of a start of vLLM's server. Raises ConfigError that names the flag."""
    flat, more = _flat_arguments(invocation.arguments, flag_table(release))
    file = flat.pop("config", None)
    if file is not None:
        flat = {**read_arguments(Path(str(file))), **flat}
    read = from_flat(flat, release)
    return Arguments(
        read.sections, (*invocation.unread, *more, *read.unread), invocation.environ, invocation.release
    )


def _flat_arguments(words: Sequence[str], table: FlagTable) -> tuple[dict[str, Any], list[str]]:
    """Arguments by flat name, with text as it is written; and words that stand for more arguments."""
    if len(words) > MAX_WORDS:
        raise ConfigError(f"the command has more than {MAX_WORDS} words")
    flat: dict[str, Any] = {}
    free: list[str] = []
    unread: list[str] = []
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if word == "--":
            free += words[i:]
            break
        if not is_option(word):
            if UNRESOLVED.match(word) and (free or "model" in flat):
                unread.append(f"{unresolved_part(word)}: more arguments, which are not known here")
            else:
                free.append(word)
            continue
        option, has_value, value = word.partition("=")
        if option[:2] == "-O":
            if word == "-O":
                level = words[i] if i < len(words) else ""
                i += 1
            else:
                # as vLLM's parser does, which so takes `-O.mode=3` for a level and refuses it
                level = word[2:].removeprefix("=")
            flat["optimization_level"] = level
            continue
        head, dot, inner = option.partition(".")
        flag = table.find(head) or _of_another_release(head, table)
        if flag is None and not dot and not has_value and not (free or "model" in flat):
            _refuse_before_model(head, words[i : i + 1], table)
        following = 0
        while not has_value and i + following < len(words) and not is_option(words[i + following]):
            following += 1
        if dot:
            if not has_value:
                if not following:
                    raise ConfigError(f"{option}: a value is missing")
                value, i = words[i], i + 1
            name = flag.name if flag is not None else _plain_name(head)
            if inner.endswith("+"):
                inner, value = inner[:-1], json.dumps(value.split(","))
            flat[f"{name}.{inner}"] = value
            continue
        taken = 0 if has_value else _taken(flag, following)
        given = [value] if has_value else list(words[i : i + taken])
        i += taken
        if flag is None:
            flat[_plain_name(head)] = given[0] if given else True
        elif flag.values == "switch":
            if has_value and flag.negates:
                raise ConfigError(f"{option}: takes no value")
            flat[flag.name] = value if has_value else not flag.negates
        elif not given and flag.values != "optional":
            raise ConfigError(f"{head}: a value is missing")
        elif flag.name in ARGUMENTS and ARGUMENTS[flag.name][1] == "list":
            flat[flag.name] = [*flat.get(flag.name, []), *given]
        else:
            flat[flag.name] = given[0] if given else True
    if len(free) > 1:
        raise ConfigError(f"expected one model, got {', '.join(short(word, 60) for word in free[:5])}")
    if free:
        flat["model"] = free[0]
    return flat, unread


def is_option(word: str) -> bool:
    """Whether vLLM's parser takes a word for a flag, and not for a value."""
    return (
        word.startswith("-")
        and len(word) > 1
        and not word[1:2].isdigit()
        and " " not in word.partition("=")[0]
    )


def _of_another_release(head: str, table: FlagTable) -> Flag | None:
    """A flag that rules read and that this release does not have: it is read all the same."""
    name = _plain_name(head)
    if name in ARGUMENTS and name not in table.names and head.startswith("--"):
        return Flag(name, "switch" if ARGUMENTS[name][1] == "bool" else "one")
    return None


def _refuse_before_model(head: str, following: Sequence[str], table: FlagTable) -> None:
    if following and not is_option(following[0]):
        _unknown(_plain_name(head), table)
        raise ConfigError(
            f"{head}: not known here, so its value can't be told from the model; name the model first"
        )


def _plain_name(head: str) -> str:
    return head.lstrip("-").replace("-", "_")


def _taken(flag: Flag | None, following: int) -> int:
    """How many of the words after a flag are its values."""
    if flag is None or flag.values == "many":
        return following
    return 0 if flag.values == "switch" else min(1, following)


def _unknown(head: str, table: FlagTable) -> str:
    """What is said of a flag that the release does not have. Raises ConfigError where it looks misspelt."""
    hint = did_you_mean(head, ARGUMENTS)
    if hint and _close(head, hint.split("'")[1]):
        raise ConfigError(f"{_flag(head)}: no such argument; {hint}")
    return f"{_flag(head)}: no flag of vLLM {table.release} that is known here"


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
    if kind == "float":
        try:
            if isinstance(given, bool) or not math.isfinite(float(given)):
                raise ValueError
            return float(given)
        except (ValueError, TypeError, OverflowError):
            raise ConfigError(f"{flag}: expected a number, got {given!r}") from None
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
