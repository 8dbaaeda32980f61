"""From `speculative_config` to what is to be loaded, checked before anything is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dodona.oracle.errors import ConfigError

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig

DEFAULT_PROMPT_LOOKUP = 5
"""`prompt_lookup_max` and `prompt_lookup_min` where neither is given; vLLM's."""


@dataclass(frozen=True, slots=True)
class NgramPlan:
    """Prompt lookup."""

    num_speculative_tokens: int
    prompt_lookup_max: int
    prompt_lookup_min: int


def plan_drafting(config: EngineConfig) -> NgramPlan | None:
    """What a configuration asks for; None without speculative_config.

    Raises ConfigError that names the field which is missing or does not fit.
    """
    speculative = config.speculative_config
    if speculative is None:
        return None
    count = speculative.num_speculative_tokens
    if count is None:
        raise ConfigError(
            "speculative_config.num_speculative_tokens is not set: method 'ngram' needs it; give it, as in 4"
        )
    largest, smallest = speculative.prompt_lookup_max, speculative.prompt_lookup_min
    largest = largest or smallest or DEFAULT_PROMPT_LOOKUP
    smallest = smallest or largest
    if smallest > largest:
        raise ConfigError(
            f"speculative_config.prompt_lookup_min={smallest} is over prompt_lookup_max={largest}; lower it"
        )
    return NgramPlan(count, largest, smallest)
