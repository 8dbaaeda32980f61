"""What `speculative_config` asks for, and why no engine can start with it."""

from __future__ import annotations

import contextlib
import filecmp
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from dodona.oracle.config.draft_method import method_by_name
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import SpeculativeConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.files import read_json
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.config_files import read_config_json
from dodona.oracle.models.expected_tensors import check_mtp_tensors
from dodona.oracle.models.head_config import HeadConfig, read_head_config
from dodona.oracle.models.hub import found_directory
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.row_by_row import UNSERVED
from dodona.oracle.systems.own.lengths import resolved_max_model_len
from dodona.oracle.systems.own.model_code import has_causal_lm, is_row_by_row, needs_newer_transformers
from dodona.oracle.systems.own.resolved import resolved_runner_type, resolved_speculative_method
from dodona.oracle.systems.own.weights import WeightsOnDisk, model_fault, tensors_of, weights_of

LOOKUP_METHODS: Final = ("ngram", "suffix")
"""Methods that draft from a request's own tokens."""

HEAD_METHODS: Final = ("eagle", "eagle3")
"""Methods that draft by a head over the target's hidden states."""

_METHODS: Final = (*LOOKUP_METHODS, *HEAD_METHODS, "draft_model", "mtp")

DEFAULT_PROMPT_LOOKUP = 5
"""`prompt_lookup_max` and `prompt_lookup_min` where neither is given; vLLM's."""

DEFAULT_SUFFIX_TREE_DEPTH = 24
DEFAULT_SUFFIX_CACHED_REQUESTS = 10_000
"""`suffix_decoding_*` where they are not given; vLLM's."""

_OWNERS: Final = {"prompt_lookup_": "ngram", "suffix_decoding_": "suffix"}
"""By the beginning of a field's name, the only method that reads it."""

_BY_TYPE: Final = {
    "eagle3": "eagle3",
    "peagle": "eagle3",
    "medusa": "medusa",
    "mlp_speculator": "mlp_speculator",
}
"""Methods by `speculators_model_type`, else `model_type`, of a draft's config.json."""

MAX_TOKENIZER_BYTES = 256 << 20
"""Largest tokenizer.json that is compared with another."""


def with_told_method(config: EngineConfig, environment: Environment) -> EngineConfig:
    """The configuration with the method that the draft's config.json tells, where `method` is not set.

    A head of speculators names its kind, which counts before the directory's name; P-EAGLE is EAGLE3 with
    `parallel_drafting`. Other drafts are models, as in vLLM. One that isn't here (see `found_directory`)
    tells nothing. Raises ConfigError where there is no config.json.
    """
    speculative = config.speculative_config
    if speculative is None or speculative.method is not None or speculative.model is None:
        return config
    named = method_by_name(speculative.model)
    if named in LOOKUP_METHODS:
        return config
    try:
        directory = found_directory(speculative.model, here=environment.is_here)
    except ConfigError:  # of which `check_speculation` speaks, if the method is known
        return config
    if directory is None:
        return config
    raw = read_config_json(directory / "config.json")
    told = _method_of(raw)
    if named is not None and "speculators_model_type" not in raw:
        told = named
    parallel = speculative.parallel_drafting or raw.get("speculators_model_type") == "peagle"
    return replace(config, speculative_config=replace(speculative, method=told, parallel_drafting=parallel))


def _method_of(draft: Mapping[str, Any]) -> str:
    kind, names = draft.get("speculators_model_type", draft.get("model_type")), draft.get("architectures")
    if isinstance(kind, str) and kind in _BY_TYPE:
        return _BY_TYPE[kind]
    listed = names if isinstance(names, list) else []
    return "eagle3" if any("eagle3" in str(name).lower() for name in listed) else "draft_model"


def speculation_fault(config: EngineConfig, model: ModelInfo | None, environment: Environment) -> str | None:
    """Why no engine can start with `speculative_config`; None where one can, or a method decides that no
    runner has.

    Of a draft its configuration and the headers of its weights are read. model: the target; None: whether a
    draft fits isn't known.
    """
    try:
        check_speculation(config, model, environment)
    except ConfigError as error:
        return str(error)
    return None


def check_speculation(config: EngineConfig, model: ModelInfo | None, environment: Environment) -> None:
    """Raise ConfigError that names the field or file which is missing or does not fit the target.

    Methods that no runner has are left to the rules.
    """
    speculative, method = config.speculative_config, resolved_speculative_method(config)
    if speculative is not None and method is None and speculative.model is not None:
        found_directory(speculative.model, here=environment.is_here)
    if speculative is None or method not in _METHODS:
        return
    _check_fields(speculative, method)
    if method == "ngram":
        prompt_lookup_sizes(speculative)
        num_speculative_tokens(speculative)
    elif method == "suffix":
        suffix_tree_depth(speculative)
    elif method == "mtp":
        num_speculative_tokens(speculative)
        if model is not None:
            _check_own_checkpoint(config, model, environment)
    else:
        if method == "draft_model":
            num_speculative_tokens(speculative)
        directory = found_directory(draft_name(speculative, method), here=environment.is_here)
        if model is not None and directory is not None:
            check_draft(config, model, environment, directory)


def draft_name(speculative: SpeculativeConfig, method: str) -> str:
    """Directory or hub id of the draft. Raises ConfigError where there is none."""
    if speculative.model is None:
        raise ConfigError(
            f"speculative_config.model is not set: method {method!r} needs a draft; give its directory"
        )
    return speculative.model


def num_speculative_tokens(speculative: SpeculativeConfig, default: int | None = None) -> int:
    """As configured, else `default`. Raises ConfigError where neither is there."""
    count = speculative.num_speculative_tokens or default
    if count is None:
        raise ConfigError("speculative_config.num_speculative_tokens is not set; give it, as in 4")
    return count


def prompt_lookup_sizes(speculative: SpeculativeConfig) -> tuple[int, int]:
    """Most and fewest last tokens that method "ngram" looks up. Raises ConfigError where they contradict."""
    largest, smallest = speculative.prompt_lookup_max, speculative.prompt_lookup_min
    largest = largest or smallest or DEFAULT_PROMPT_LOOKUP
    smallest = smallest or largest
    if smallest > largest:
        raise ConfigError(
            f"speculative_config.prompt_lookup_min={smallest} is over prompt_lookup_max={largest}; lower it"
        )
    return largest, smallest


def suffix_tree_depth(speculative: SpeculativeConfig) -> int:
    """Most tokens that method "suffix" looks for and drafts together. Raises ConfigError where drafts are to
    come from other requests."""
    cached = speculative.suffix_decoding_max_cached_requests
    if cached != 0:
        raise ConfigError(
            f"speculative_config.suffix_decoding_max_cached_requests="
            f"{DEFAULT_SUFFIX_CACHED_REQUESTS if cached is None else cached}: drafts are looked up in a "
            "request's own tokens, and answers to others are not kept; set it to 0"
        )
    return speculative.suffix_decoding_max_tree_depth or DEFAULT_SUFFIX_TREE_DEPTH


def check_draft(
    config: EngineConfig, target: ModelInfo, environment: Environment, directory: Path
) -> HeadConfig | None:
    """Read a draft's configuration: a head's is returned, of a draft model there is None.

    Raises ConfigError that names file and field where it does not fit the target, or is of a kind that no
    runner drafts with.
    """
    speculative, method = config.speculative_config, resolved_speculative_method(config)
    assert speculative is not None
    assert method is not None
    _check_tokenizer(directory, Path(target.file).parent)
    if method in HEAD_METHODS:
        head = read_head_config(
            directory, method=method, parallel=speculative.parallel_drafting, target=target
        )
        num_speculative_tokens(speculative, head.num_speculative_tokens)
        return head
    draft = ModelInfo.load(directory)
    _check_draft_model(config, draft, target, environment)
    weights = weights_of(config, draft_name(speculative, method), directory, environment)
    if weights is not None:
        fault = model_fault(weights, draft, quantization=None, has_lm_head=True, num_labels=None)
        if fault is not None:
            raise ConfigError(fault)
    return None


def draft_obstacles(config: EngineConfig, draft: ModelInfo, environment: Environment) -> tuple[str, ...]:
    """Why neither runner drafts with a model, by ids of rules where there is one."""
    alone = replace(config, speculative_config=None)
    found = {
        "draft-runner": resolved_runner_type(alone, draft) != "generate",
        "causal-lm": not has_causal_lm(alone, draft),
        "model-family": draft.model_type in UNSERVED,
        "transformers-version": needs_newer_transformers(alone, draft, environment) is True,
        "encoder-decoder": draft.is_encoder_decoder,
        "inner-states": draft.has_inner_state,
        "quantized-weights": draft.quant_method is not None,
        "speculative-row-by-row": is_row_by_row(alone, draft, environment) is True,
    }
    return tuple(name for name, is_so in found.items() if is_so)


def _check_fields(speculative: SpeculativeConfig, method: str) -> None:
    """Raise ConfigError where a field of another method is set, which nothing would read."""
    for field in fields(speculative):
        owner = next((owner for prefix, owner in _OWNERS.items() if field.name.startswith(prefix)), method)
        if owner != method and getattr(speculative, field.name) is not None:
            raise ConfigError(
                f"speculative_config.{field.name} is for method {owner!r}, and the method is {method!r}; "
                "leave it unset"
            )
    if method in LOOKUP_METHODS and speculative.model not in (None, method, f"[{method}]"):
        raise ConfigError(
            f"speculative_config.model={speculative.model!r}: method {method!r} drafts from a request's own "
            "tokens; leave it unset"
        )


def _check_own_checkpoint(config: EngineConfig, target: ModelInfo, environment: Environment) -> None:
    speculative, model = config.speculative_config, config.model_config.model
    given = None if speculative is None else speculative.model
    directory = Path(target.file).parent
    if given is not None and given != model and Path(given).resolve() != directory.resolve():
        raise ConfigError(
            f"speculative_config.model={given!r:.80}: method 'mtp' drafts with the MTP layer of the target's "
            "own checkpoint; leave it unset"
        )
    weights = weights_of(config, model, directory, environment)
    if weights is not None and target.num_hidden_layers is not None:
        fault = _mtp_fault(weights, target.num_hidden_layers)
        if fault is not None:
            raise ConfigError(fault)


@functools.lru_cache(maxsize=64)
def _mtp_fault(weights: WeightsOnDisk, num_layers: int) -> str | None:
    try:
        check_mtp_tensors(weights.directory, tensors_of(weights), num_layers)
    except ConfigError as error:
        return str(error)
    return None


def _check_draft_model(
    config: EngineConfig, draft: ModelInfo, target: ModelInfo, environment: Environment
) -> None:
    obstacles = draft_obstacles(config, draft, environment)
    if obstacles:
        raise ConfigError(f"{draft.file}: V1 and V2 can't run this draft model, for {', '.join(obstacles)}")
    if draft.vocab_size != target.vocab_size:
        raise ConfigError(
            f"{draft.file}: vocab_size={draft.vocab_size} does not fit the target, {target.file}, where it "
            f"is {target.vocab_size}; choose a draft model of the same family"
        )
    longest, needed = draft.max_position_embeddings, resolved_max_model_len(config, target)
    if longest is not None and longest < needed:
        raise ConfigError(
            f"{draft.file}: max_position_embeddings={longest} is less than max_model_len={needed}; lower "
            "max_model_len"
        )


def _check_tokenizer(draft: Path, target: Path) -> None:
    """Raise ConfigError where both directories have a tokenizer.json and their tokens differ."""
    mine, theirs = draft / "tokenizer.json", target / "tokenizer.json"
    if not mine.is_file() or not theirs.is_file():
        return
    with contextlib.suppress(OSError):  # of a file that can't be read, `read_json` says so
        if filecmp.cmp(mine, theirs, shallow=False):
            return
    if _tokens(mine) != _tokens(theirs):
        raise ConfigError(
            f"{mine}: other tokens than the target's, {theirs}; choose a draft with the same tokenizer"
        )


def _tokens(file: Path) -> str:
    status = file.stat()
    return _tokens_of(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=16)
def _tokens_of(file: Path, changed: int, size: int) -> str:
    """A digest of a tokenizer's vocabulary and added tokens; read once as long as the file doesn't change."""
    raw = read_json(file, limit=MAX_TOKENIZER_BYTES, expected="a tokenizer")
    if not isinstance(raw, dict) or not isinstance(raw.get("model"), dict):
        raise ConfigError(f"{file}: is no tokenizer of the tokenizers library")
    added = raw.get("added_tokens")
    listed = added if isinstance(added, list) else []
    tokens = [(token.get("id"), token.get("content")) for token in listed if isinstance(token, dict)]
    whole = json.dumps([raw["model"].get("vocab"), tokens], sort_keys=True)
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()
