"""The list of the sampler's stages."""

from __future__ import annotations

from typing import Any

from dodona.runners.device.sampling.allowed_token_ids import AllowedTokenIds
from dodona.runners.device.sampling.bad_words import BadWords
from dodona.runners.device.sampling.filters import Filters
from dodona.runners.device.sampling.grammar import Grammar
from dodona.runners.device.sampling.logit_bias import LogitBias
from dodona.runners.device.sampling.logprobs import Logprobs
from dodona.runners.device.sampling.min_tokens import MinTokens
from dodona.runners.device.sampling.penalties import Penalties
from dodona.runners.device.sampling.stage import Stage

STAGES: tuple[type[Stage], ...] = (
    AllowedTokenIds,
    Grammar,
    MinTokens,
    BadWords,
    LogitBias,
    Penalties,
    Filters,
    Logprobs,
)
"""All stages beyond the base draw, in the order in which `dodona.runners.sampling.reference` applies them.

To add one:

1. its kernel in `kernels/sampling/`, with a torch reference beside it;
2. a module here with its `Stage`: what asks for it, the tables that it keeps per row, its launches before or
   after the draw, and an example; and the class in this list, at its place in the order;
3. what it means, in `runners/sampling/reference.py`, which is V1's sampler.

The sampler, warm-up, rehearsal, `benchmarks/sampling_cases.py` and the sampler's tests iterate over this
list.
"""


def example_params(*, grammar: bool) -> dict[str, Any]:
    """Sampling parameters that ask for every stage at once, those by grammars only where `grammar`.

    Bad words are not among them: requests carry them as token ids.
    """
    stages = (stage for stage in STAGES if grammar or stage is not Grammar)
    return {name: value for stage in stages for name, value in stage.example.params.items()}
