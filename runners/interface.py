"""What the engine needs of a runner, and the values that pass between them.

Data flows one way: the scheduler makes a `SchedulerOutput`, the runner turns it into a `PendingOutput`,
whose `result()` is a `StepOutput`. A runner never sees a request object of the engine, and the engine never
sees a tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dodona.oracle.errors import UnsupportedConfiguration

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.runners.limits import Limits
    from dodona.runners.sampling.params import SamplingParams

RESERVED_REQUEST_ID_PREFIX = "__dodona_"
"""Ids that begin with this belong to warm-up requests; admission refuses them from users."""


@dataclass(frozen=True, slots=True)
class LayerKVSpec:
    """One attention layer's share of a KV block: num_kv_heads * (head_size_k + head_size_v) per token."""

    num_kv_heads: int
    head_size_k: int
    head_size_v: int
    sliding_window: int | None = None
    """Number of most recent tokens that a query sees (itself included), or None for all."""


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """What one KV block (of `block_size` tokens, over all layers) holds."""

    layers: tuple[LayerKVSpec, ...]
    block_size: int
    dtype_bytes: int

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block over all layers."""
        elements = sum(s.num_kv_heads * (s.head_size_k + s.head_size_v) for s in self.layers)
        return elements * self.block_size * self.dtype_bytes


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request that gets a state row: a new one, or one that resumes after preemption.

    The latter's outputs so far are part of `token_ids`.
    """

    request_id: str
    row: int
    """Stable state row in [0, max_num_seqs); it stays the request's until it appears in `freed_rows`."""
    token_ids: Sequence[int]
    """All tokens known: the prompt, then what was generated before a preemption."""
    num_prompt_tokens: int
    num_computed_tokens: int
    """Leading tokens whose KV is in `block_ids` already (prefix cache hits)."""
    block_ids: Sequence[int]
    sampling_params: SamplingParams
    seed: int
    """The request's random seed in [0, 2**63), resolved: never None."""
    stop_token_ids: tuple[int, ...] = ()
    """All ids that end the request (EOS unless ignored, and its own); masked before `min_tokens`."""
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step. A runner applies freed_rows, new_requests, new_blocks in this order, then the forward pass.

    `rows`, `num_tokens`, `num_computed_tokens` and `samples` are parallel, in batch order: rows that decode
    (one token, and it samples) come first, so that the decode part of a batch is a prefix of it.
    A decode's token was sampled in the row's step before; a prompt's last chunk of one token is no decode.

    A row may read KV that a row before it in the batch writes in the same step: a prefix that both begin
    with. A step may have no rows: then it only applies the rest, and its output is empty.
    """

    step: int
    freed_rows: Sequence[int]
    new_requests: Sequence[NewRequest]
    new_blocks: Sequence[tuple[int, Sequence[int]]]
    """(row, block ids appended to its table); rows in `new_requests` carry their blocks themselves."""
    rows: Sequence[int]
    num_tokens: Sequence[int]
    """Tokens of the row computed in this step, >= 1."""
    num_computed_tokens: Sequence[int]
    """Tokens of the row computed before this step: the position of its first token in this step."""
    samples: Sequence[bool]
    """Whether the row's last token in this step yields a next token (False: its prompt goes on)."""
    num_decodes: int
    """Length of the decode prefix."""

    @property
    def total_tokens(self) -> int:
        """Tokens over all rows."""
        return sum(self.num_tokens)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, from the raw logits (before temperature, penalties and masks).

    `token_ids[0]` is the token itself (sampled, or of the prompt) and `rank` its 1-based rank; then come the
    top-n, most probable first, and last the tokens asked for by id, with their ranks in `given_ranks`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    rank: int
    given_ranks: tuple[int, ...] = ()
    """One per token of `SamplingParams.logprob_token_ids`."""


@dataclass(frozen=True, slots=True)
class GrammarOutput:
    """What the grammars of a step's rows allow, made by the host from all tokens that the rows have."""

    rows: Sequence[int]
    """State rows: of those that sample in the step, all whose request has `structured_outputs`."""
    bitmask: npt.NDArray[np.int32]
    """[len(rows), ceil(vocab / 32)], C-contiguous: bit t % 32 of word t // 32 says whether token t may come
    next."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step yields, on the host."""

    rows: Sequence[int]
    """The rows that sampled, in batch order (`SchedulerOutput.rows` where `samples`)."""
    token_ids: Sequence[int]
    """One token per entry of `rows`."""
    logprobs: Mapping[int, TokenLogprobs] = field(default_factory=dict)
    """By row, for rows whose sampling parameters ask."""
    prompt_logprobs: Mapping[int, Sequence[TokenLogprobs]] = field(default_factory=dict)
    """By row: for each prompt token whose log-probability this step computed, in order.

    A chunk over positions [a, b) gives entries for the tokens at a + 1 .. min(b, num_prompt_tokens - 1).
    """


class PendingOutput(Protocol):
    """A step under way on the device."""

    def result(self) -> StepOutput:
        """Wait for the step and return it; raises what the device raised."""


class Runner(ABC):
    """What the verdict builds. One instance drives one model on one device.

    Life: `load_model`, `get_kv_cache_spec`, `determine_available_memory`, `initialize_kv_cache`, `warm_up`
    (through the real step), `capture_graphs`, then steps, then `shutdown`. Only the engine's thread calls a
    runner.
    """

    name: ClassVar[str]
    """"v1" or "v2", as in the rule book."""
    max_steps_in_flight: ClassVar[int]
    """Steps the engine may submit before it must read the oldest one's result."""
    request_features: ClassVar[frozenset[str]] = frozenset()
    """What requests may ask beyond the common parameters: "structured-outputs", "logits-processors"."""

    warm_up_params: ClassVar[Mapping[str, Any]] = {}
    """Sampling parameters, beyond log-probabilities, that a request of warm-up asks for."""

    def __init__(self, config: EngineConfig, model: ModelInfo, limits: Limits) -> None:
        self.config = config
        self.model_info = model
        self.limits = limits

    @abstractmethod
    def load_model(self) -> None:
        """Read the weights onto the device. Raises UnsupportedConfiguration naming each feature it lacks."""

    @abstractmethod
    def reload_weights(self) -> None:
        """Read the weights again from the model directory, in place.

        KV computed before belongs to the old weights; the engine forgets it.
        """

    @abstractmethod
    def get_kv_cache_spec(self) -> KVCacheSpec:
        """What a KV block holds; known once the model is loaded."""

    @abstractmethod
    def determine_available_memory(self) -> int:
        """Bytes for KV blocks: measured by a profile run of the largest step."""

    @abstractmethod
    def initialize_kv_cache(self, num_blocks: int, max_model_len: int | None = None) -> None:
        """Allocate `num_blocks` KV blocks; their ids are 0 .. num_blocks-1.

        `max_model_len` is the longest sequence that the blocks hold; None: that of the limits.
        """

    @abstractmethod
    def capture_graphs(self) -> None:
        """Capture device graphs where the runner uses them; else nothing."""

    @abstractmethod
    def execute_model(self, scheduler_output: SchedulerOutput) -> None:
        """Start the forward pass of one step. `sample_tokens` must follow before the next one."""

    @abstractmethod
    def sample_tokens(self, grammar_output: GrammarOutput | None = None) -> PendingOutput:
        """Sample for the rows of the last `execute_model` whose `samples` is true.

        `grammar_output` is given where the request of one of these rows has `structured_outputs`.
        """

    @abstractmethod
    def shutdown(self) -> None:
        """Release the model, the KV cache and device memory. Idempotent."""

    def take_draft_tokens(self) -> Mapping[int, Sequence[int]]:
        """Draft tokens by row (speculative decoding)."""
        raise UnsupportedConfiguration.lacking(self.name, "speculative-decoding")

    def update_config(self, overrides: Mapping[str, Any]) -> None:
        """Change configuration sections of a running model."""
        raise UnsupportedConfiguration.lacking(self.name, "update-config")

    def apply_sparse_weight_patches(self, patches: Iterable[Any]) -> None:
        """Overwrite parts of weights in place."""
        raise UnsupportedConfiguration.lacking(self.name, "sparse-weight-patches")

    def embed(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Embeddings of prompts (pooling models)."""
        raise UnsupportedConfiguration.lacking(self.name, "pooling")

    def warm_up(self) -> None:
        """Run prefill, decode and clean-up through the real step, by reserved request ids; leave no state."""
        from dodona.runners.warm_up import warm_up

        warm_up(self)
