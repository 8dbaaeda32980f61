"""From `speculative_config` to what is to be loaded, checked before anything is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import MAX_SPECULATIVE_TOKENS, SpeculativeConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.head_config import HeadConfig
from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.resolved import resolved_speculative_method
from dodona.oracle.systems.own.speculation import (
    check_draft,
    check_speculation,
    draft_name,
    num_speculative_tokens,
    prompt_lookup_sizes,
    suffix_tree_depth,
)
from dodona.runners.drafting.load_head import has_embedding
from dodona.runners.drafting.prompt_lookup import PromptLookup
from dodona.runners.drafting.suffix_lookup import SuffixLookup

DEFAULT_SUFFIX_SPEC_FACTOR = 1.0
DEFAULT_SUFFIX_TOKEN_PROB = 0.1
"""`suffix_decoding_*` where they are not given; vLLM's."""

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
    config: EngineConfig,
    target: ModelInfo,
    machine: Environment,
    *,
    runner: str,
    lacks_of_draft: LacksOfDraft,
) -> DraftPlan | None:
    """What a configuration asks of `runner` on `machine`; None without speculative_config.

    Raises ConfigError that names the field or file which is missing or does not fit the target.
    """
    speculative, method = config.speculative_config, resolved_speculative_method(config)
    if speculative is None or method is None:
        return None
    check_speculation(config, target, machine)
    if method == "ngram":
        return LookupPlan(
            PromptLookup(num_speculative_tokens(speculative), *prompt_lookup_sizes(speculative))
        )
    if method == "suffix":
        return LookupPlan(_suffix_lookup(speculative))
    if method == "mtp":
        return MtpPlan(num_speculative_tokens(speculative), Path(target.file).parent)
    random = config.load_config.load_format == "dummy"
    directory = locate_or_download(draft_name(speculative, method), weights=not random)
    head = check_draft(config, target, machine, directory)
    if head is not None:
        count = num_speculative_tokens(speculative, head.num_speculative_tokens)
        return HeadPlan(count, directory, head, borrows_embedding=not random and not has_embedding(directory))
    draft = ModelInfo.load(directory)
    lacking = lacks_of_draft(replace(config, speculative_config=None), draft)
    if lacking:
        raise ConfigError(
            f"{draft.file}: {runner.upper()} can't run this draft model, for {', '.join(lacking)}"
        )
    return ModelPlan(num_speculative_tokens(speculative), directory)


def _suffix_lookup(speculative: SpeculativeConfig) -> SuffixLookup:
    depth = suffix_tree_depth(speculative)
    factor, least = speculative.suffix_decoding_max_spec_factor, speculative.suffix_decoding_min_token_prob
    return SuffixLookup(
        num_speculative_tokens(speculative, min(depth, MAX_SPECULATIVE_TOKENS)),
        depth,
        DEFAULT_SUFFIX_SPEC_FACTOR if factor is None else factor,
        DEFAULT_SUFFIX_TOKEN_PROB if least is None else least,
    )
