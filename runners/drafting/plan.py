"""From `speculative_config` to what is to be loaded, checked before anything is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import MAX_SPECULATIVE_TOKENS, SpeculativeConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.files import read_json
from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.resolved import resolved_speculative_method
from dodona.runners.drafting.head_config import HeadConfig, read_head_config
from dodona.runners.drafting.load_head import has_embedding
from dodona.runners.drafting.prompt_lookup import PromptLookup
from dodona.runners.drafting.suffix_lookup import SuffixLookup
from dodona.runners.limits import Limits

DEFAULT_PROMPT_LOOKUP = 5
"""`prompt_lookup_max` and `prompt_lookup_min` where neither is given; vLLM's."""

DEFAULT_SUFFIX_TREE_DEPTH = 24
DEFAULT_SUFFIX_CACHED_REQUESTS = 10_000
DEFAULT_SUFFIX_SPEC_FACTOR = 1.0
DEFAULT_SUFFIX_TOKEN_PROB = 0.1
"""`suffix_decoding_*` where they are not given; vLLM's."""

_OWNERS = {"prompt_lookup_": "ngram", "suffix_decoding_": "suffix"}
"""By the beginning of a field's name, the only method that reads it."""

MAX_TOKENIZER_BYTES = 256 << 20


HostLookup = PromptLookup | SuffixLookup
"""Looks for drafts in a request's own tokens."""


@dataclass(frozen=True, slots=True)
class LookupPlan:
    """Lookup in a request's own tokens."""

    lookup: HostLookup

    @property
    def num_speculative_tokens(self) -> int:
        """Most drafts of a row in a step."""
        return self.lookup.num_speculative_tokens


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A draft model."""

    num_speculative_tokens: int
    directory: Path


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """A head of the EAGLE family."""

    num_speculative_tokens: int
    directory: Path
    head: HeadConfig
    borrows_embedding: bool
    """Whether it has none of its own, and is given the target's."""


@dataclass(frozen=True, slots=True)
class MtpPlan:
    """The MTP layer of the target's own checkpoint."""

    num_speculative_tokens: int
    directory: Path


DraftPlan = LookupPlan | ModelPlan | HeadPlan | MtpPlan


LacksOfDraft = Callable[[EngineConfig, ModelInfo], Sequence[str]]
"""Ids of rules: what a runner lacks for a draft model, in a configuration without speculative_config."""


def plan_drafting(
    config: EngineConfig, target: ModelInfo, limits: Limits, *, runner: str, lacks_of_draft: LacksOfDraft
) -> DraftPlan | None:
    """What a configuration asks of `runner`; None without speculative_config.

    Raises ConfigError that names the field or file which is missing or does not fit the target.
    """
    speculative = config.speculative_config
    if speculative is None:
        return None
    method = resolved_speculative_method(config)
    _check_fields(speculative, method)
    if method == "ngram":
        return _ngram(speculative)
    if method == "suffix":
        return _suffix(speculative)
    if method == "mtp":
        return MtpPlan(_count(speculative, None), _own_checkpoint(config, target))
    if speculative.model is None:
        raise ConfigError(
            f"speculative_config.model is not set: method {method!r} needs a draft; give its directory"
        )
    random = config.load_config.load_format == "dummy"
    directory = locate_or_download(speculative.model, weights=not random)
    _check_tokenizer(directory, Path(target.file).parent)
    if method == "draft_model":
        draft = ModelInfo.load(directory)
        lacking = lacks_of_draft(replace(config, speculative_config=None), draft)
        if lacking:
            raise ConfigError(
                f"{draft.file}: {runner.upper()} can't run this draft model, for {', '.join(lacking)}"
            )
        _check_draft_model(draft, target, limits)
        return ModelPlan(_count(speculative, None), directory)
    head = read_head_config(
        directory, method=method or "", parallel=speculative.parallel_drafting, target=target
    )
    count = _count(speculative, head.num_speculative_tokens)
    return HeadPlan(count, directory, head, borrows_embedding=not random and not has_embedding(directory))


def _check_fields(speculative: SpeculativeConfig, method: str | None) -> None:
    """Raise ConfigError where a field of another method is set, which nothing would read."""
    for field in fields(speculative):
        owner = next((owner for prefix, owner in _OWNERS.items() if field.name.startswith(prefix)), method)
        if owner != method and getattr(speculative, field.name) is not None:
            raise ConfigError(
                f"speculative_config.{field.name} is for method {owner!r}, and the method is {method!r}; "
                "leave it unset"
            )


def _own_checkpoint(config: EngineConfig, target: ModelInfo) -> Path:
    speculative, model = config.speculative_config, config.model_config.model
    given = None if speculative is None else speculative.model
    directory = Path(target.file).parent
    if given is not None and given != model and Path(given).resolve() != directory.resolve():
        raise ConfigError(
            f"speculative_config.model={given!r}: method 'mtp' drafts with the MTP layer of the target's own "
            "checkpoint; leave it unset"
        )
    return directory


def _count(speculative: SpeculativeConfig, default: int | None) -> int:
    count = speculative.num_speculative_tokens or default
    if count is None:
        raise ConfigError("speculative_config.num_speculative_tokens is not set; give it, as in 4")
    return count


def _ngram(speculative: SpeculativeConfig) -> LookupPlan:
    largest, smallest = speculative.prompt_lookup_max, speculative.prompt_lookup_min
    largest = largest or smallest or DEFAULT_PROMPT_LOOKUP
    smallest = smallest or largest
    if smallest > largest:
        raise ConfigError(
            f"speculative_config.prompt_lookup_min={smallest} is over prompt_lookup_max={largest}; lower it"
        )
    return LookupPlan(PromptLookup(_count(speculative, None), largest, smallest))


def _suffix(speculative: SpeculativeConfig) -> LookupPlan:
    cached = speculative.suffix_decoding_max_cached_requests
    if cached != 0:
        raise ConfigError(
            f"speculative_config.suffix_decoding_max_cached_requests="
            f"{DEFAULT_SUFFIX_CACHED_REQUESTS if cached is None else cached}: drafts are looked up in a "
            "request's own tokens, and answers to others are not kept; set it to 0"
        )
    depth = speculative.suffix_decoding_max_tree_depth or DEFAULT_SUFFIX_TREE_DEPTH
    factor, least = speculative.suffix_decoding_max_spec_factor, speculative.suffix_decoding_min_token_prob
    return LookupPlan(
        SuffixLookup(
            _count(speculative, min(depth, MAX_SPECULATIVE_TOKENS)),
            depth,
            DEFAULT_SUFFIX_SPEC_FACTOR if factor is None else factor,
            DEFAULT_SUFFIX_TOKEN_PROB if least is None else least,
        )
    )


def _check_draft_model(draft: ModelInfo, target: ModelInfo, limits: Limits) -> None:
    if draft.vocab_size != target.vocab_size:
        raise ConfigError(
            f"{draft.file}: vocab_size={draft.vocab_size} does not fit the target, {target.file}, where it "
            f"is {target.vocab_size}; choose a draft model of the same family"
        )
    longest = draft.max_position_embeddings
    if longest is not None and longest < limits.max_model_len:
        raise ConfigError(
            f"{draft.file}: max_position_embeddings={longest} is less than max_model_len="
            f"{limits.max_model_len}; lower max_model_len"
        )


def _check_tokenizer(draft: Path, target: Path) -> None:
    """Raise ConfigError where both directories have a tokenizer.json and their tokens differ."""
    mine, theirs = _tokens(draft / "tokenizer.json"), _tokens(target / "tokenizer.json")
    if mine is not None and theirs is not None and mine != theirs:
        raise ConfigError(
            f"{draft / 'tokenizer.json'}: other tokens than the target's, {target / 'tokenizer.json'}; "
            "choose a draft with the same tokenizer"
        )


def _tokens(file: Path) -> Any:
    """A tokenizer's vocabulary and added tokens."""
    if not file.is_file():
        return None
    raw = read_json(file, limit=MAX_TOKENIZER_BYTES, expected="a tokenizer")
    if not isinstance(raw, dict) or not isinstance(raw.get("model"), dict):
        raise ConfigError(f"{file}: is no tokenizer of the tokenizers library")
    added = raw.get("added_tokens")
    listed = added if isinstance(added, list) else []
    return raw["model"].get("vocab"), [(t.get("id"), t.get("content")) for t in listed if isinstance(t, dict)]
