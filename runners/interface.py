"""The interface between the engine and a runner: `Runner`, and the values that pass between them.

The scheduler makes a `SchedulerOutput`; the runner turns it into a `PendingOutput`, whose `result()` is a
`StepOutput`. A runner never sees a request object of the engine, and the engine never sees a tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.systems.own.lengths import most_blocks_of_window
from dodona.runners.current_config import CurrentConfig
from dodona.runners.rpc import call_worker
from dodona.runners.sampling.token_logprobs import TokenLogprobs

if TYPE_CHECKING:
    import os

    import numpy as np
    import numpy.typing as npt
    import torch

    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.oracle.systems.own.pooler import PoolingSettings
    from dodona.runners.limits import Limits
    from dodona.runners.lora.adapter import Adapter
    from dodona.runners.lora.target import LoRATarget
    from dodona.runners.pooling.params import PoolingInput
    from dodona.runners.sampling.params import SamplingParams

RESERVED_REQUEST_ID_PREFIX = "__dodona_"
"""Ids that begin with this belong to warm-up requests; admission refuses them from users."""

SLEEP_LEVELS = (1, 2)
SLEEP_TAGS = ("weights", "kv_cache")
"""What sleeps, and wakes up by itself or together."""


@dataclass(frozen=True, slots=True)
class LayerKVSpec:
    """KV of one attention layer: num_kv_heads * (head_size_k + head_size_v) elements per token."""

    num_kv_heads: int
    head_size_k: int
    head_size_v: int
    sliding_window: int | None = None
    """Most recent tokens that a query sees (itself included), or None for all."""


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers whose queries see equally far back, so that they can forget the same tokens."""

    window: int | None
    """Most recent tokens that a query sees (itself included), or None for all."""
    layers: tuple[int, ...]
    """Indices into `KVCacheSpec.layers`."""
    bytes_per_block: int


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """Layers, tokens and element size of a KV block, and the inner states that each row keeps beside it."""

    layers: tuple[LayerKVSpec, ...]
    block_size: int
    dtype_bytes: int
    state_bytes_per_row: int = 0
    """Bytes that a row takes beside its blocks, whatever its length: recurrent and convolutional states."""
    shares_prefixes: bool = True
    """Whether requests with equal beginnings can share blocks. Where a model can go on only from a row's last
    token, prefix caching is off."""
    windows_apart: bool = False
    """Whether layers that see less far back than others have blocks of their own: window blocks, which are
    attached to the blocks that such a layer's queries still see (`SchedulerOutput.window_blocks`)."""

    @property
    def groups(self) -> tuple[CacheGroup, ...]:
        """The layers that see farthest, which KV blocks are for; then those with window blocks, if any."""
        windows = [layer.sliding_window for layer in self.layers]
        kinds = sorted(set(windows), key=lambda window: (window is not None, -(window or 0)))
        if not self.windows_apart:
            members = {kind: tuple(range(len(windows))) for kind in kinds[:1]}
        else:
            members = {kind: tuple(i for i, w in enumerate(windows) if w == kind) for kind in kinds}
        return tuple(CacheGroup(kind, of, self._bytes_per_block(of)) for kind, of in members.items())

    @property
    def window_groups(self) -> tuple[CacheGroup, ...]:
        """The groups with window blocks."""
        return self.groups[1:]

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block over the layers of the first group: all, unless some have window blocks."""
        return self.groups[0].bytes_per_block if self.layers else 0

    def most_window_blocks(self, limits: Limits) -> tuple[int, ...]:
        """For each of `window_groups`, the most window blocks that a full batch uses: each request has its
        window, one step's tokens, and one block that was not dropped yet."""
        step = min(limits.max_num_batched_tokens, limits.max_model_len)
        return tuple(
            limits.max_num_seqs * most_blocks_of_window(group.window or 0, step, self.block_size)
            for group in self.window_groups
        )

    def most_blocks_per_row(self, limits: Limits) -> int:
        """KV blocks that suffice for a sequence of `max_model_len`, where blocks that no query sees any more
        are given back."""
        whole = -(-limits.max_model_len // self.block_size)
        window = self.groups[0].window if self.layers else None
        if window is None:
            return whole
        return min(whole, most_blocks_of_window(window, limits.max_num_batched_tokens, self.block_size))

    def most_useful_bytes(self, limits: Limits) -> int:
        """Bytes of the KV blocks of `max_num_seqs` sequences of `max_model_len`, window blocks among them."""
        return self.kv_bytes(limits.max_num_seqs * -(-limits.max_model_len // self.block_size), limits)

    def kv_bytes(self, num_blocks: int, limits: Limits) -> int:
        """Bytes of so many KV blocks and of the window blocks beside them."""
        counts = zip(self.num_window_blocks(num_blocks, limits), self.window_groups, strict=True)
        return num_blocks * self.bytes_per_block + sum(n * group.bytes_per_block for n, group in counts)

    def num_window_blocks(self, num_blocks: int, limits: Limits) -> tuple[int, ...]:
        """Window blocks of each of `window_groups` beside `num_blocks` blocks: as many as can be used."""
        return tuple(min(num_blocks, most) for most in self.most_window_blocks(limits))

    def _bytes_per_block(self, layers: Sequence[int]) -> int:
        specs = [self.layers[i] for i in layers]
        elements = sum(s.num_kv_heads * (s.head_size_k + s.head_size_v) for s in specs)
        return elements * self.block_size * self.dtype_bytes


@dataclass(frozen=True, slots=True)
class KVPart:
    """What a rank has of every KV block: some layers, and one of equal shares of the heads of each. Of a
    layer with fewer heads than shares, neighbouring ones have the same head."""

    layers: tuple[LayerKVSpec, ...]
    """All layers of the model, each with all its heads. Windows don't count."""
    first_layer: int
    num_layers: int
    """This rank's, from `first_layer` on."""
    head_share: int = 0
    head_shares: int = 1
    """Into how many shares the heads are divided."""
    is_writer: bool = True
    """Of the ranks that have the same part, the one that hands it to others."""

    @classmethod
    def whole(cls, layers: Sequence[LayerKVSpec]) -> KVPart:
        """All of a block, on the only rank."""
        return cls(tuple(layers), 0, len(layers))


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request that gets a state row: a new one, or one that resumes after preemption."""

    request_id: str
    row: int
    """State row in [0, max_num_seqs); the request keeps it until the row appears in `freed_rows`."""
    token_ids: Sequence[int]
    """The prompt, then the tokens generated before a preemption."""
    num_prompt_tokens: int
    num_computed_tokens: int
    """Leading tokens whose KV is in `block_ids` already, found in the prefix cache."""
    block_ids: Sequence[int]
    """Of a model whose layers all slide, blocks that no query sees any more are any ids."""
    sampling_params: SamplingParams
    seed: int
    """Random seed in [0, 2**63)."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the request: EOS unless ignored, and those it gave. Masked before `min_tokens`."""
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    adapter: Adapter | None = None
    """What changes the model's linear layers for this request. The requests that have a row have at most
    `lora_config.max_loras` different ones."""
    pooling: PoolingInput | None = None
    """What is asked of a pooling model; None where the request generates."""


@dataclass(frozen=True, slots=True)
class KVConnectorMetadata:
    """What the scheduler's side of a KV connector tells the worker's side with a step; connectors add to it.

    Requests are named by their transfer id (`runners.kv_transfer.connector.KVRequest`).
    """

    preempted_req_ids: Sequence[str] = ()
    """Requests that lost their blocks, which this step may write."""
    finished_req_ids: Sequence[str] = ()
    """Requests that ended."""
    is_idle: bool = False
    """Whether no request runs: the steps to come are those of requests that wait for KV."""


@dataclass(frozen=True, slots=True)
class KVConnectorOutput:
    """What the worker's side of a KV connector tells the scheduler's side with a step's result."""

    finished_sending: frozenset[str]
    """Finished requests whose blocks are not read any more."""
    finished_recving: frozenset[str]
    """Requests whose load has ended."""
    invalid_block_ids: frozenset[int]
    """Blocks of requests in `finished_recving` whose load failed."""


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step. A runner applies freed_rows, new_requests and new_blocks, in this order, then runs the
    forward pass.

    `rows`, `num_tokens`, `num_computed_tokens` and `samples` are parallel, in batch order: rows that decode
    (one token, and it samples) come first: they are a prefix of the batch. A decode's token was sampled in
    the row's previous step; a prompt's last chunk of one token is not a decode.

    A row with drafts verifies them: its tokens are the one that was sampled last, then its drafts, and it
    samples after each of these. It comes after the decodes.

    A row may read KV that an earlier row of the batch writes in the same step, where both share a prefix.
    A step may have no rows: then the runner only applies the changes, and the output is empty.
    """

    step: int
    freed_rows: Sequence[int]
    new_requests: Sequence[NewRequest]
    new_blocks: Sequence[tuple[int, Sequence[int]]]
    """(row, block ids to append to its table); not for rows of `new_requests`, which have `block_ids`."""
    rows: Sequence[int]
    num_tokens: Sequence[int]
    """Tokens of the row computed in this step, >= 1."""
    num_computed_tokens: Sequence[int]
    """Tokens of the row computed before this step: also the position of its first token in this step. The
    most that it may be, where the row's `draft_token_ids` are `DeviceDrafts`: earlier steps may be unread,
    and the state on the device decides."""
    samples: Sequence[bool]
    """Whether a token is sampled after the row's last token; False while its prompt is incomplete."""
    num_decodes: int
    """How many of `rows`, from the first on, decode: compute the one token that was sampled last. A prompt of
    one token, or a prompt's last one, is no decode."""
    draft_token_ids: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """By row, for rows that verify drafts: these, at least one. A beginning of what the runner proposed in
    the `StepOutput` before; with a grammar, one that it allows. They may be `DeviceDrafts`, where the runner
    has `num_device_drafts`."""
    window_blocks: Sequence[tuple[int, int, int]] = ()
    """(index into `KVCacheSpec.window_groups`, block id, window block id): the window block is attached to
    the block from here on, in place of one before. Applied in order, before everything else."""
    kv_connector_metadata: KVConnectorMetadata | None = None
    """For the worker's side of the KV connector; None where it has nothing to do."""

    @property
    def total_tokens(self) -> int:
        """Tokens over all rows."""
        return sum(self.num_tokens)


@dataclass(frozen=True, slots=True)
class GrammarOutput:
    """The next tokens that the grammars of a step's rows allow."""

    rows: Sequence[int]
    """The state rows that sample in the step and whose request has `structured_outputs`. A row with k drafts
    stands here 1 + k times in a row: for what may come after its tokens, then after each draft."""
    bitmask: npt.NDArray[np.int32]
    """[len(rows), ceil(vocab / 32)], C-contiguous: bit t % 32 of word t // 32 is set where token t is
    allowed."""


class FurtherTokens(NamedTuple):
    """What a row that verified drafts yields after its first token: one token for each accepted draft.

    The i-th draft is accepted where it and all before it equal the row's i-th token.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprobs] = ()
    """Parallel to `token_ids` where the request asks for log-probabilities, else empty."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The results of a step, on the host."""

    rows: Sequence[int]
    """The rows that sampled, in batch order (`SchedulerOutput.rows` where `samples`)."""
    token_ids: Sequence[int]
    """One token per entry of `rows`, none with `pooled`; see `further` for rows with drafts. -1 where none
    could be drawn, because all logits are NaN or -inf: the request ends with an error."""
    logprobs: Mapping[int, TokenLogprobs] = field(default_factory=dict)
    """By row, for rows with `SamplingParams.logprobs` or `logprob_token_ids`: those of `token_ids`."""
    prompt_logprobs: Mapping[int, Sequence[TokenLogprobs]] = field(default_factory=dict)
    """By row: for each prompt token whose log-probability this step computed, in order.

    A chunk over positions [a, b) gives entries for the tokens at a + 1 .. min(b, num_prompt_tokens - 1).
    """
    further: Mapping[int, FurtherTokens] = field(default_factory=dict)
    """By row, for rows of which a draft was accepted."""
    draft_token_ids: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """By row: at most `Runner.num_speculative_tokens` drafts of what follows the row's tokens."""
    kv_connector_output: KVConnectorOutput | None = None
    """What the worker's side of the KV connector reports; None where nothing ended."""
    pooled: Mapping[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    """By row: what a pooling model makes of the row's prompt, in place of a token."""


class PendingOutput(Protocol):
    """The results of a step that may still run on the device."""

    def result(self) -> StepOutput:
        """Wait for the step and return its results; raises what the device raised."""


@dataclass(frozen=True, slots=True)
class FinishedOutput:
    """The pending output of a step that has ended already."""

    output: StepOutput

    def result(self) -> StepOutput:
        """The output; never waits."""
        return self.output


class Runner(ABC):
    """Drives one model on one device. `runners.build.build_runner` makes it from a verdict.

    The calls in their order: `load_model`, `get_kv_cache_spec`, `determine_available_memory`,
    `initialize_kv_cache`, the warm-up's steps, `capture_graphs`, the steps, `shutdown`. Only the engine's
    thread calls a runner. A call before its time raises RuntimeError that names the call it needs.
    """

    name: str
    """The runner's name in the rule book, such as "v1"."""
    request_features: frozenset[str] = frozenset()
    """Optional features that requests may use: "structured-outputs", "logits-processors"."""

    num_speculative_tokens: int = 0
    """Most drafts that the runner proposes for a row after a step; known once the model is loaded."""

    num_device_drafts: int = 0
    """Drafts that the device has for each row after every step in which the row samples: so the next step can
    be scheduled before their number of tokens is read, with `DeviceDrafts`. 0 where only results tell of
    drafts. Known once the model is loaded."""

    pooling_settings: PoolingSettings | None = None
    """How the runner pools; None where it generates."""

    num_micro_batches: int = 1
    """Into how many steps the running requests are divided, so that so many are under way at a time. A
    request is in one of them, which is read before its next one."""

    samples_on_every_rank: bool = False
    """Whether each of several ranks samples, all the same tokens. Otherwise one does, and the others are told
    by `take_sampled_tokens`."""

    warm_up_params: Mapping[str, Any] = {}
    """Sampling parameters of a warm-up request, beyond log-probabilities: their stages would otherwise be
    compiled in a user's request."""

    def __init__(self, config: EngineConfig, model: ModelInfo, limits: Limits) -> None:
        self.current_config = CurrentConfig(config)
        self.model_info = model
        """config.json of the configuration's model."""
        self.limits = limits

    @property
    def config(self) -> EngineConfig:
        """The configuration, with all updates so far."""
        return self.current_config.value

    @property
    @abstractmethod
    def max_steps_in_flight(self) -> int:
        """Steps that the engine may submit before it must read the oldest one's result; known once the model
        is loaded."""

    @abstractmethod
    def load_model(self) -> None:
        """Read the weights onto the device. Raises UnsupportedConfiguration for what the runner lacks."""

    @abstractmethod
    def try_load(self, earlier: Runner | None = None) -> Runner:
        """Raise what `load_model` would, as far as that does not depend on the values of weights: nothing of
        them is read or kept. To be called inside `meta_device.on_meta`, in place of `load_model`.

        earlier: that of another pipeline stage, tried before: its files need not be looked at again.

        Returns this runner, of which `get_kv_cache_spec`, `get_kv_parts`, `most_available_memory` and
        `initialize_kv_cache` may be called then, there, and nothing else."""

    @abstractmethod
    def get_kv_cache_spec(self) -> KVCacheSpec:
        """What a KV block holds. Needs the loaded model."""

    def get_kv_part(self) -> KVPart:
        """What this rank has of each KV block; all ranks name the same `layers`. Needs the loaded model.

        A runner that can be one of several ranks says its part; others have the whole of `get_kv_cache_spec`.
        """
        return KVPart.whole(self.get_kv_cache_spec().layers)

    def get_kv_parts(self) -> Sequence[KVPart]:
        """What each rank has."""
        return (self.get_kv_part(),)

    @abstractmethod
    def determine_available_memory(self) -> int:
        """Measure, by running the largest step, how many bytes are left for inner states and KV blocks.

        Not asked where `limits.kv_cache_memory_bytes` or `num_gpu_blocks_override` says it.
        """

    @abstractmethod
    def most_available_memory(self) -> int:
        """No less than `determine_available_memory` would measure, without a step and without the device's
        help: what the largest step takes is not known."""

    @abstractmethod
    def initialize_kv_cache(self, num_blocks: int, max_model_len: int | None = None) -> None:
        """Allocate `num_blocks` KV blocks, in place of those allocated before; ids are 0 .. num_blocks-1.

        max_model_len: most tokens of a sequence from here on, at most `limits.max_model_len` (None: that);
        less where the blocks hold less. What the runner keeps per sequence is allocated to this length.
        """

    @abstractmethod
    def capture_graphs(self) -> None:
        """Capture device graphs, where the runner uses them."""

    @abstractmethod
    def execute_model(self, scheduler_output: SchedulerOutput) -> None:
        """Start the forward pass of one step. `sample_tokens` must follow before the next one."""

    @abstractmethod
    def sample_tokens(self, grammar_output: GrammarOutput | None = None) -> PendingOutput:
        """Sample for the rows of the last `execute_model` whose `samples` is true.

        `grammar_output` is given where the request of one of these rows has `structured_outputs`.
        """

    def take_sampled_tokens(self, output: StepOutput) -> None:
        """In place of `sample_tokens`, on a rank that doesn't sample: what another rank sampled.

        Raises RuntimeError where the runner has no other ranks.
        """
        raise RuntimeError(f"runner {self.name} works on one rank, and samples itself")

    def take_kv_connector_output(self) -> KVConnectorOutput | None:
        """On a rank that doesn't sample: what the KV connector reports after the last `execute_model`, which
        `StepOutput.kv_connector_output` has on the rank that does."""
        return None

    @abstractmethod
    def shutdown(self) -> None:
        """Release the model, the KV cache and device memory. Idempotent."""

    def get_lora_targets(self) -> Mapping[str, LoRATarget]:
        """The linear layers that adapters can change, by name. Needs the loaded model, and `lora_config`."""
        raise UnsupportedConfiguration.lacking(self.name, "lora")

    # --- While the engine runs, between two steps, with none under way

    def collective_rpc(
        self, method: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Call one of `rpc.RPC_METHODS` on every worker. Returns the results in the order of ranks.

        Raises the first exception, with a note of the worker's rank; InvalidRequestError for other methods
        and for arguments that the method does not take.
        """
        return [call_worker(self, method, args, kwargs, rank=0, num_workers=1)]

    def update_config(self, overrides: Mapping[str, Mapping[str, Any]]) -> None:
        """Change fields of the configuration, {section: {field: value}}; see `CurrentConfig.update`."""
        self.current_config.update(overrides)

    def reload_weights(self, path: str | os.PathLike[str] | None = None) -> None:
        """Read all weights again, in place, from `path` or (None) from where the configuration says.

        path: a directory with safetensors of the same model. Raises ConfigError that names the tensor which
        is missing or has another shape; the old weights then stay as they are. KV computed before belongs to
        the old weights; the engine forgets it.
        """
        raise UnsupportedConfiguration.lacking(self.name, "reload_weights")

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Overwrite the weights of the given tensors in place; the others stay.

        weights: (name as in a checkpoint, tensor of its shape); float values are cast. Raises
        InvalidRequestError that names the tensor, before anything is written.
        """
        raise UnsupportedConfiguration.lacking(self.name, "load_weights")

    def apply_sparse_weight_patches(self, patches: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Overwrite single elements in place: {name as in a checkpoint: (flat indices [n], values [n])}.

        The same as to patch the checkpoint and reload. Raises InvalidRequestError that names the tensor and
        what is wrong, before anything is written.
        """
        raise UnsupportedConfiguration.lacking(self.name, "apply_sparse_weight_patches")

    def missing_weights(self) -> list[str]:
        """Names of tensors that `sleep(level=2)` dropped, and that were not all loaded again."""
        return []

    def sleep(self, level: int = 1) -> None:
        """Give back the memory of weights, KV cache and graphs. No request may be running.

        level: 1 keeps the weights in host memory; 2 drops them, to be reloaded after `wake_up`. The KV cache
        is lost in both.
        """
        raise UnsupportedConfiguration.lacking(self.name, "sleep")

    def wake_up(self, tags: Collection[str] | None = None) -> None:
        """Take the memory again of "weights", "kv_cache" or (None) both, and capture graphs once all is
        here. Does nothing for what is awake."""
        raise UnsupportedConfiguration.lacking(self.name, "wake_up")
