"""A runner without a model that honours the whole interface, and trusts its caller in nothing.

Its KV cache holds, for each block and slot, which token at which position was written there, after which
prefix and with which weights. Before it samples, it reads a row's whole context through the row's block
table, and fails unless that is exactly the row's tokens. The next token is a hash of the context (and of
the seed, unless greedy), so each output can be compared with `solo_run`.

With `windows` it has groups of layers: each keeps tokens by itself, and reads what its window shows. Without,
there is one group, which sees everything.

With `num_speculative_tokens` it drafts: a random number of tokens, each of them right or wrong at random.
With `drafts_on_device` it is always that number, which the scheduler knows unread, and only the ids of rows
with a grammar are told.

With `lost_every` the logits after one in so many contexts are no numbers, and the token there is `NO_TOKEN`.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.language.rulebook import OWN_SYSTEM
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.build import RUNNERS
from dodona.runners.drafting.device_drafts import DeviceDrafts
from dodona.runners.interface import (
    FurtherTokens,
    GrammarOutput,
    KVCacheSpec,
    KVConnectorOutput,
    LayerKVSpec,
    NewRequest,
    PendingOutput,
    Runner,
    SchedulerOutput,
    StepOutput,
)
from dodona.runners.kv_transfer.connector import KVConnectorWorker
from dodona.runners.kv_transfer.worker_step import WithTransfers, after_forward, before_forward
from dodona.runners.limits import Limits, resolve_limits
from dodona.runners.lora.target import LoRATarget
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.reference import NO_TOKEN
from dodona.runners.sampling.token_logprobs import TokenLogprobs
from tests.support.counting_grammar import CountingGrammar

Guess = Callable[[Sequence[int]], int]
"""A row's tokens to the one that may follow."""

_MASK = (1 << 64) - 1


def mix(*values: int) -> int:
    """A 64-bit hash of integers."""
    result = 0x243F6A8885A308D3
    for value in values:
        result = ((result ^ (value + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9) & _MASK
        result ^= result >> 29
    return result


def adapted(weights: int, key: bytes) -> int:
    """The version of the weights that a request with an adapter sees."""
    return mix(weights, int.from_bytes(key[:8], "little"))


def context_hash(token_ids: Sequence[int]) -> int:
    """Hash of a context: what a model's last hidden state depends on."""
    result = 0
    for token_id in token_ids:
        result = mix(result, token_id)
    return result


def next_token(
    context: int, num_tokens: int, num_prompt_tokens: int, request: NewRequest, vocab_size: int, weights: int
) -> int:
    """The token after a context with this hash and length."""
    params = request.sampling_params
    seed = 0 if params.greedy else request.seed
    token = mix(context, weights, seed, num_tokens) % vocab_size
    if num_tokens - num_prompt_tokens < params.min_tokens:
        while token in request.stop_token_ids:
            token = (token + 1) % vocab_size
    return token


def is_lost(context: int, lost_every: int) -> bool:
    """Whether the logits after a context with this hash are no numbers; 0: they never are."""
    return bool(lost_every) and mix(context, 13) % lost_every == 0


def token_logprobs(context: int, token_id: int, top_n: int, vocab_size: int) -> TokenLogprobs:
    """Made-up log-probabilities of a token after a context."""
    top = [mix(context, i) % vocab_size for i in range(top_n)]
    ids = (token_id, *top)
    values = tuple(-(mix(context, i, 7) % 1000) / 100 for i in ids)
    return TokenLogprobs(ids, values, 1 + mix(context, token_id) % vocab_size)


def solo_run(
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    vocab_size: int,
    max_model_len: int,
    seed: int = 0,
    eos: frozenset[int] = frozenset(),
    weights: int = 0,
    grammar: CountingGrammar | None = None,
    lost_every: int = 0,
) -> tuple[list[int], str]:
    """Output tokens and finish reason of a request that has the runner to itself.

    grammar: at its beginning; it is moved on.
    """
    tokens = list(prompt)
    context = context_hash(tokens)
    stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos)
    request = NewRequest("solo", 0, (), len(prompt), 0, (), params, seed, tuple(sorted(stops)))
    most = max_model_len - len(prompt)
    if params.max_tokens is not None:
        most = min(most, params.max_tokens)
    reason = "length"
    for _ in range(most):
        if is_lost(context, lost_every):
            reason = "error"
            break
        token = next_token(context, len(tokens), len(prompt), request, vocab_size, weights)
        if grammar is not None:
            allowed = grammar.allowed()
            while token not in allowed:
                token = (token + 1) % vocab_size
            if not grammar.accept(token):
                reason = "error"
                break
        tokens.append(token)
        context = mix(context, token)
        is_end = grammar is not None and token in eos
        if token in stops and (is_end or len(tokens) - len(prompt) >= params.min_tokens):
            reason = "stop"
            break
    return tokens[len(prompt) :], reason


@dataclass
class _Row:
    request: NewRequest
    tokens: list[int]
    block_ids: list[int]
    num_computed: int
    sampled_last: bool = False


@dataclass
class _Sampled:
    """A row that samples: a context hash after its tokens and after each of its drafts."""

    row: int
    contexts: list[int]
    drafts: Sequence[int]


@dataclass
class _Executed:
    rows: list[_Sampled]
    prompt_logprobs: dict[int, list[TokenLogprobs]]


@dataclass
class _Pending:
    runner: FakeRunner
    output: StepOutput
    requests: list[NewRequest]
    read: bool = False

    def result(self) -> StepOutput:
        self.runner.read(self)
        return self.output


@dataclass(frozen=True)
class _Slot:
    token: int
    position: int
    context: int
    """Hash of all tokens up to this one."""
    weights: int


@dataclass
class Trace:
    """What a test may look at afterwards."""

    steps: list[SchedulerOutput] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)


class FakeRunner(Runner):
    """See the module. `on_step(number)` is called as each forward pass starts, and may raise or wait."""

    name: ClassVar[str] = "v1"
    max_steps_in_flight = 1

    def __init__(
        self,
        config: EngineConfig,
        model: ModelInfo,
        limits: Limits,
        *,
        vocab_size: int = 97,
        max_steps_in_flight: int = 1,
        available_bytes: int = 1 << 20,
        on_step: Callable[[int], None] | None = None,
        num_speculative_tokens: int = 0,
        drafts_on_device: bool = False,
        guess: Guess | None = None,
        windows: Sequence[int | None] = (None,),
        lost_every: int = 0,
    ) -> None:
        """windows: by group, the one that sees farthest first; at least 2, where it is the first one.
        guess: makes the drafts that are to be right for rows with a grammar, which it knows; for others, that
        is the token that will be sampled."""
        super().__init__(config, model, limits)
        self.max_steps_in_flight = max_steps_in_flight
        self.vocab_size = vocab_size
        self.available_bytes = available_bytes
        self.on_step = on_step
        self.num_speculative_tokens = num_speculative_tokens
        self.num_device_drafts = num_speculative_tokens if drafts_on_device else 0
        self.guess = guess
        self.windows = windows
        self.lost_every = lost_every
        self.gone: set[str] = set()
        """What a sleep gave back, and is not here again: "memory", "weights"."""
        self.window_blocks: dict[tuple[int, int], int] = {}
        """Window block by group, from 1 on, and block id."""
        self.proposed: dict[int, Sequence[int]] = {}
        """By row: what it proposed last."""
        self.block_size = limits.block_size
        self.num_blocks = 0
        self.max_model_len = 0
        self.weights = 0
        self.kv_connector: KVConnectorWorker = KVConnectorWorker()
        """A test may put another one in its place."""
        self.transfers: KVConnectorOutput | None = None
        self.rows: dict[int, _Row] = {}
        self.slots: dict[tuple[int, int, int], _Slot] = {}
        """By group, block (or window block) and offset."""
        self.executed: _Executed | None = None
        self.in_flight: deque[_Pending] = deque()
        self.trace = Trace()
        self.is_shut_down = False

    # --- Life

    def _note(self, call: str) -> None:
        self.trace.calls.append(call)
        self.trace.threads.add(threading.current_thread().name)

    def load_model(self) -> None:
        self._note("load_model")

    def try_load(self, earlier: Runner | None = None) -> Runner:
        self._note("try_load")
        return self

    def most_available_memory(self) -> int:
        return self.available_bytes

    def reload_weights(self, path: Any = None) -> None:
        self._note("reload_weights")
        self._change_weights()
        self.gone.discard("weights")

    def load_weights(self, weights: Any) -> None:
        self._note("load_weights")
        self._change_weights()
        self.gone.discard("weights")

    def apply_sparse_weight_patches(self, patches: Any) -> None:
        self._note("apply_sparse_weight_patches")
        self._change_weights()

    def sleep(self, level: int = 1) -> None:
        self._note(f"sleep {level}")
        assert not self.in_flight, "it sleeps under a step"
        self.gone.add("memory")
        if level == 2:
            self._change_weights()
            self.gone.add("weights")
        self.slots.clear()

    def wake_up(self, tags: Any = None) -> None:
        self._note(f"wake_up {tags}")
        self.gone.discard("memory")

    def _change_weights(self) -> None:
        assert not self.in_flight, "weights change under a step"
        self.weights += 1

    def get_lora_targets(self) -> dict[str, LoRATarget]:
        return {"model.linear": LoRATarget(8, 6)}

    def _version(self, request: NewRequest) -> int:
        """What the KV of a request depends on beside its tokens: the weights, and its adapter."""
        adapter = request.adapter
        return self.weights if adapter is None else adapted(self.weights, adapter.key)

    def get_kv_cache_spec(self) -> KVCacheSpec:
        layers = tuple(LayerKVSpec(1, 4, 4, window) for window in self.windows)
        return KVCacheSpec(layers, self.block_size, 4, windows_apart=True)

    def determine_available_memory(self) -> int:
        self._note("determine_available_memory")
        return self.available_bytes

    def initialize_kv_cache(self, num_blocks: int, max_model_len: int | None = None) -> None:
        self._note("initialize_kv_cache")
        self.num_blocks = num_blocks
        self.max_model_len = self.limits.max_model_len if max_model_len is None else max_model_len
        self.slots.clear()
        self.window_blocks.clear()
        assert 1 <= self.max_model_len <= self.limits.max_model_len

    def capture_graphs(self) -> None:
        self._note("capture_graphs")

    def shutdown(self) -> None:
        self._note("shutdown")
        self.is_shut_down = True
        self.rows.clear()
        self.slots.clear()

    # --- Steps

    def execute_model(self, scheduler_output: SchedulerOutput) -> None:
        step = scheduler_output
        assert not (self.gone and step.rows), f"a step without {self.gone}"
        assert self.executed is None, "execute_model twice without sample_tokens"
        assert len(self.in_flight) < self.max_steps_in_flight, "too many steps in flight"
        self.trace.threads.add(threading.current_thread().name)
        if self.on_step is not None:
            self.on_step(len(self.trace.steps))
        self.trace.steps.append(step)
        self._apply(step)
        self._check_batch(step)
        if step.kv_connector_metadata is not None:
            before_forward(self.kv_connector, step.kv_connector_metadata, num_layers=1)

        executed = _Executed([], {})
        for row, count, computed, samples in zip(
            step.rows, step.num_tokens, step.num_computed_tokens, step.samples, strict=True
        ):
            state = self.rows[row]
            drafts = self._drafts_to_verify(step, row)
            if row in step.draft_token_ids:
                computed = state.num_computed  # which `_check_batch` compared
            state.tokens.extend(drafts)
            self._write(state, computed, count)
            contexts = self._read_context(state, computed)
            del state.tokens[len(state.tokens) - len(drafts) :]
            params = state.request.sampling_params
            if params.prompt_logprobs is not None:
                end = min(computed + count, state.request.num_prompt_tokens - 1)
                if computed < end:
                    executed.prompt_logprobs[row] = [
                        token_logprobs(
                            contexts[i], state.tokens[i + 1], params.prompt_logprobs, self.vocab_size
                        )
                        for i in range(computed, end)
                    ]
            state.sampled_last = samples
            if samples:
                executed.rows.append(_Sampled(row, contexts[-1 - len(drafts) :], drafts))
        self.executed = executed
        self.transfers = None
        if step.kv_connector_metadata is not None:
            self.transfers = after_forward(self.kv_connector, step.kv_connector_metadata, num_layers=1)

    def sample_tokens(self, grammar_output: GrammarOutput | None = None) -> PendingOutput:
        executed, self.executed = self.executed, None
        assert executed is not None, "sample_tokens without execute_model"
        masks = self._masks(executed, grammar_output)
        rows: list[int] = []
        token_ids: list[int] = []
        logprobs: dict[int, TokenLogprobs] = {}
        further: dict[int, FurtherTokens] = {}
        proposed: dict[int, Sequence[int]] = {}
        for sampled in executed.rows:
            state = self.rows[sampled.row]
            found, entries = self._sample(state, sampled, masks.get(sampled.row, ()))
            state.num_computed += len(found) - 1 - len(sampled.drafts)
            rows.append(sampled.row)
            token_ids.append(found[0])
            if entries:
                logprobs[sampled.row] = entries[0]
            if len(found) > 1:
                further[sampled.row] = FurtherTokens(found[1:], entries[1:])
            if drafts := self._draft(state):
                self.proposed[sampled.row] = proposed[sampled.row] = drafts
                if self.num_device_drafts:
                    asks = state.request.sampling_params.structured_outputs is not None
                    ids = functools.partial(list, drafts) if asks else None
                    proposed[sampled.row] = DeviceDrafts(len(drafts), ids)
        output = StepOutput(rows, token_ids, logprobs, executed.prompt_logprobs, further, proposed)
        pending = _Pending(self, output, [self.rows[row].request for row in rows])
        self.in_flight.append(pending)
        return pending if self.transfers is None else WithTransfers(pending, self.transfers)

    def _drafts_to_verify(self, step: SchedulerOutput, row: int) -> Sequence[int]:
        drafts, proposed = step.draft_token_ids.get(row, ()), self.proposed.pop(row, ())
        if isinstance(drafts, DeviceDrafts):
            assert len(drafts) <= len(proposed) == self.num_device_drafts
            return proposed[: len(drafts)]
        assert list(drafts) == list(proposed)[: len(drafts)], "drafts nobody proposed"
        return drafts

    def _sample(
        self, state: _Row, sampled: _Sampled, masks: Sequence[Any]
    ) -> tuple[list[int], list[TokenLogprobs]]:
        """The row's tokens, appended to it, with log-probabilities if it wants them: one, and one more for
        each draft while that is what was sampled."""
        tokens: list[int] = []
        entries: list[TokenLogprobs] = []
        for index, context in enumerate(sampled.contexts):
            token = self._next_token(context, state)
            if masks and token != NO_TOKEN:
                while not (masks[index][token // 32] >> (token % 32)) & 1:
                    token = (token + 1) % self.vocab_size
            top_n = state.request.sampling_params.logprobs
            if top_n is not None:
                entries.append(token_logprobs(context, token, top_n, self.vocab_size))
            tokens.append(token)
            state.tokens.append(token)
            if [token] != list(sampled.drafts[index : index + 1]):
                break
        return tokens, entries

    def _next_token(self, context: int, state: _Row) -> int:
        if is_lost(context, self.lost_every):
            return NO_TOKEN
        request, length = state.request, len(state.tokens)
        version = self._version(request)
        return next_token(context, length, request.num_prompt_tokens, request, self.vocab_size, version)

    def _draft(self, state: _Row) -> Sequence[int]:
        tokens = list(state.tokens)
        known = len(tokens)
        context = context_hash(tokens)
        count = self.num_device_drafts
        if not count:
            if not self.num_speculative_tokens or tokens[-1] == NO_TOKEN:
                return ()
            count = mix(context, 3) % (self.num_speculative_tokens + 1)
        for _ in range(count):
            draft = mix(context, 5) % self.vocab_size
            if mix(context, 7) % 4:
                if state.request.sampling_params.structured_outputs is not None:
                    draft = draft if self.guess is None else self.guess(tokens)
                else:
                    request = state.request
                    draft = next_token(
                        context, len(tokens), request.num_prompt_tokens, request, self.vocab_size,
                        self._version(request),
                    )  # fmt: skip
            tokens.append(draft)
            context = mix(context, draft)
        return tokens[known:]

    def _masks(self, executed: _Executed, grammar_output: GrammarOutput | None) -> Mapping[int, list[Any]]:
        """By row with a grammar: the words of what it allows after its tokens and after each draft."""
        counts = {s.row: 1 + len(s.drafts) for s in executed.rows}
        asking = [r for r in counts if self.rows[r].request.sampling_params.structured_outputs]
        due = [row for row in asking for _ in range(counts[row])]
        assert due == ([] if grammar_output is None else list(grammar_output.rows))
        if grammar_output is None:
            return {}
        unread = {id(request) for pending in self.in_flight for request in pending.requests}
        requests = {id(self.rows[row].request) for row in asking}
        assert not unread & requests, "a grammar was asked before all its tokens were read"
        masks: dict[int, list[Any]] = {}
        for row, words in zip(due, grammar_output.bitmask, strict=True):
            masks.setdefault(row, []).append(words)
        return masks

    def read(self, pending: _Pending) -> None:
        assert not pending.read, "a result was read twice"
        assert self.in_flight.popleft() is pending, "results must be read in order"
        pending.read = True

    def _apply(self, step: SchedulerOutput) -> None:
        counts = self.get_kv_cache_spec().num_window_blocks(self.num_blocks, self.limits)
        for number, block, window_block in step.window_blocks:
            assert 0 <= window_block < counts[number]
            self.window_blocks[number + 1, block] = window_block
        for row in step.freed_rows:
            assert row in self.rows, f"row {row} is freed, but holds no request"
            del self.rows[row]
            self.proposed.pop(row, None)
        for request in step.new_requests:
            assert 0 <= request.row < self.limits.max_num_seqs
            assert request.row not in self.rows, f"row {request.row} is given twice"
            assert request.num_computed_tokens < len(request.token_ids)
            assert 0 <= request.seed < 2**63
            self.trace.request_ids.append(request.request_id)
            self.rows[request.row] = _Row(
                request, list(request.token_ids), list(request.block_ids), request.num_computed_tokens
            )
        for row, block_ids in step.new_blocks:
            assert row in step.rows, "blocks for a row that doesn't run"
            self.rows[row].block_ids.extend(block_ids)
        for state in self.rows.values():
            first = self._first_visible(0, state.num_computed) // self.block_size
            visible = state.block_ids[first:]
            assert len(set(visible)) == len(visible), "a block twice in one table"
            assert all(0 <= block < self.num_blocks for block in state.block_ids)

    def _check_batch(self, step: SchedulerOutput) -> None:
        assert len(set(step.rows)) == len(step.rows)
        assert step.total_tokens <= self.limits.max_num_batched_tokens
        assert set(step.draft_token_ids) <= set(step.rows)
        for index, row in enumerate(step.rows):
            state = self.rows[row]
            end = state.num_computed + step.num_tokens[index]
            assert step.num_tokens[index] >= 1
            computed, is_unread = step.num_computed_tokens[index], self._is_unread(state)
            if isinstance(step.draft_token_ids.get(row), DeviceDrafts) and is_unread:
                assert state.num_computed <= computed, "more computed tokens than the scheduler counts"
                assert state.request.sampling_params.structured_outputs is None
            else:
                assert computed == state.num_computed, "computed tokens out of step"
            length = len(state.tokens) + len(step.draft_token_ids.get(row, ()))
            assert end <= length, "a token that isn't there yet"
            assert length <= self.max_model_len, "a sequence beyond max_model_len"
            assert step.samples[index] == (end == length)
            verifies = row in step.draft_token_ids
            assert not verifies or step.num_tokens[index] == 1 + len(step.draft_token_ids[row]) > 1
            assert not verifies or state.sampled_last, "drafts for a row that doesn't decode"
            decodes = state.sampled_last and step.num_tokens[index] == 1 and step.samples[index]
            assert decodes == (index < step.num_decodes), "decodes are not the batch's prefix"

    def _is_unread(self, state: _Row) -> bool:
        """Whether a step in which the row sampled is still to be read."""
        return any(state.request is request for pending in self.in_flight for request in pending.requests)

    def _first_visible(self, group: int, position: int) -> int:
        window = self.windows[group]
        return 0 if window is None else max(0, position - window + 1)

    def _write(self, state: _Row, computed: int, count: int) -> None:
        context = self._slot(state, 0, computed - 1).context if computed else 0
        for position in range(computed, computed + count):
            token = state.tokens[position]
            context = mix(context, token)
            version = self._version(state.request)
            for group in range(len(self.windows)):
                key = self._key(state, group, position)
                self.slots[key] = _Slot(token, position, context, version)
        state.num_computed = computed + count

    def _key(self, state: _Row, group: int, position: int) -> tuple[int, int, int]:
        block = state.block_ids[position // self.block_size]
        place = self.window_blocks[group, block] if group else block
        return group, place, position % self.block_size

    def _slot(self, state: _Row, group: int, position: int) -> _Slot:
        return self.slots[self._key(state, group, position)]

    def _read_context(self, state: _Row, computed: int) -> list[int]:
        """Context hashes by position, from the KV that the queries from position `computed` on see."""
        contexts = []
        expected = 0
        for position in range(state.num_computed):
            token = state.tokens[position]
            expected = mix(expected, token)
            wanted = _Slot(token, position, expected, self._version(state.request))
            for group in range(len(self.windows)):
                if position >= self._first_visible(group, computed):
                    slot = self._slot(state, group, position)
                    assert slot == wanted, f"{state.request.request_id} reads {slot}, expected {wanted}"
            contexts.append(expected)
        return contexts


FAKE_MODEL = ModelInfo.from_mapping(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 97,
        "max_position_embeddings": 4096,
        "hidden_size": 8,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
    }
)


def fake_runner(flat: dict[str, Any], **settings: Any) -> FakeRunner:
    """A FakeRunner with these flat arguments of the configuration and these settings of its own."""
    config = EngineConfig.from_flat("fake", device="cpu", **flat)
    return FakeRunner(config, FAKE_MODEL, resolve_limits(config, FAKE_MODEL), **settings)


_numbers = itertools.count()


def fake_verdict(model: str = "fake", build: Callable[..., Runner] = FakeRunner, **flat: Any) -> Any:
    """Stands for a verdict that chose a runner of its own, which `build(config, model, limits)` makes."""
    name = f"fake-{next(_numbers)}"
    RUNNERS[name] = lambda: build
    return SimpleNamespace(
        config=EngineConfig.from_flat(model, **{"device": "cpu", **flat}),
        runner=name,
        refusals=(),
        rulebook=SimpleNamespace(name="fake", system=OWN_SYSTEM),
    )
