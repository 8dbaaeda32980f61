"""A runner that is several: it hands each call once to the workers of all ranks.

The engine sees one `Runner`. Each worker has a runner of its own, of the class that the verdict chose, which
knows its rank's place by a `Mesh`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

from dodona.oracle.systems.own.kv_transfer import SharedMemorySettings, resolve_kv_transfer
from dodona.runners.distributed.adapters import AdapterSender
from dodona.runners.distributed.imagined import first_of_stage, parts_of_stages
from dodona.runners.distributed.messages import Call, Execute, Read, Sample, Start, Transfers
from dodona.runners.distributed.process import worker_processes
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.distributed.ray_workers import ray_workers
from dodona.runners.distributed.workers import Launch, Workers
from dodona.runners.interface import (
    FurtherTokens,
    GrammarOutput,
    KVCacheSpec,
    KVPart,
    PendingOutput,
    Runner,
    SchedulerOutput,
    StepOutput,
)
from dodona.runners.kv_transfer.rank_outputs import RankOutputs
from dodona.runners.lora.target import LoRATarget
from dodona.runners.rpc import RPC_METHODS, rpc_method

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.runners.limits import Limits

DEFAULT_TIMEOUT = 600.0
"""Seconds that a step, or an exchange between ranks, may take where the configuration says nothing."""

START_TIMEOUT = 600.0
"""Least seconds that the workers may take until they have found each other: they import libraries first,
some faster than others."""

_UNLIMITED = frozenset({"load_model", "reload_weights", "sleep", "wake_up"})
"""Calls that take as long as storage does. Exchanges between ranks are limited in them, too."""

_AT_START = frozenset({"determine_available_memory", "capture_graphs"})
"""Calls that compile kernels."""

_NOTHING = StepOutput((), ())


@dataclass(frozen=True, slots=True)
class _Pending:
    """The output of a step that the sampling rank is still to answer with."""

    runner: DistributedRunner

    def result(self) -> StepOutput:
        """Wait for the answer."""
        return self.runner.read_output()


@dataclass(frozen=True, slots=True)
class _Step:
    """A step under way."""

    asked: Sequence[int]
    """The ranks that answer: the one that samples, and then those asked what the KV connector reports."""
    freed: set[int] = field(default_factory=set)
    """Rows that were freed since."""


class DistributedRunner(Runner):
    """Workers in processes, one per rank: of this machine, which this process starts, or Ray's actors.

    runner_class: the workers' runner, see `messages.Start`.
    replica: number among `data_parallel_size`; each takes the next devices.
    given_up: see `startup.start`.

    Memory is what the poorest rank has. Methods raise WorkerError where a worker died, hung or failed.
    """

    def __init__(
        self,
        runner_class: type[Runner],
        config: EngineConfig,
        model: ModelInfo,
        limits: Limits,
        *,
        replica: int = 0,
        given_up: Event | None = None,
    ) -> None:
        super().__init__(config, model, limits)
        self._runner_class = runner_class
        self.name = runner_class.name
        self.request_features = runner_class.request_features
        self.warm_up_params = runner_class.warm_up_params
        self._sizes = RankSizes.of(config.parallel_config)
        self._told = self._sizes.world > 1 and not runner_class.samples_on_every_rank
        """Whether ranks that don't sample have to be told what was."""
        self._replica = replica
        self._given_up = given_up
        self._timeout = float(config.parallel_config.distributed_timeout_seconds or DEFAULT_TIMEOUT)
        self._start_timeout = max(self._timeout, START_TIMEOUT)
        self._workers: Workers | None = None
        self._tried: Sequence[Runner] = ()
        """In place of workers, after `try_load`: the runner of each stage's first rank."""
        self.num_micro_batches = self._max_steps_in_flight = self._sizes.pipeline
        self._in_flight: deque[_Step] = deque()
        self._sampled = _NOTHING
        """What was read since the last step: the ranks that don't sample have to be told."""
        lora = config.lora_config
        self._max_adapters = 0 if lora is None else lora.max_loras
        self._adapters = AdapterSender(self._max_adapters) if self._max_adapters else None
        self._transfers = RankOutputs(self._sizes.world)

    @property
    def max_steps_in_flight(self) -> int:
        """One for each stage, so that none has to wait for another; where no rank has to be told of another's
        tokens, what their runners allow."""
        return self._max_steps_in_flight

    # --- Life

    def try_load(self, earlier: Runner | None = None) -> Runner:
        """Of one rank of each stage, in this process; no worker is started."""
        make: Callable[..., Runner] = self._runner_class
        given = (self.config, self.model_info, self.limits)
        tried: list[Runner] = []
        for stage in range(self._sizes.pipeline):
            place = () if self._sizes.world == 1 else (first_of_stage(self._sizes, stage),)
            tried.append(make(*given, *place).try_load(tried[-1] if tried else None))
        self._tried = tried
        return self

    def load_model(self) -> None:
        """Start the workers, and load the model in each. Raises what their runners raise, and WorkerError."""
        if self._workers is not None:
            raise RuntimeError("load_model twice")
        whose = f" of replica {self._replica}" if self.config.parallel_config.data_parallel_size > 1 else ""
        sharing = self.config.parallel_config.world_size_across_dp
        launch: Launch = worker_processes
        if self.config.parallel_config.uses_ray:
            launch = partial(
                ray_workers,
                sharing=sharing,
                gpus=self.limits.device == "cuda",
                here_only=isinstance(resolve_kv_transfer(self.config), SharedMemorySettings),
            )
        self._workers = workers = Workers(self._sizes.world, whose, launch, self._given_up)
        for rank, device in enumerate(workers.devices):
            start = Start(
                runner_class=self._runner_class,
                config=self.config,
                model=self.model_info,
                limits=self.limits,
                rank=rank,
                sizes=self._sizes,
                device_index=self._replica * self._sizes.world + rank if device is None else device,
                store=workers.store,
                timeout_s=self._timeout,
                start_timeout_s=self._start_timeout,
                sharing=sharing,
                max_adapters=self._max_adapters,
            )
            workers.tell(start, [rank])
        workers.answers(range(self._sizes.world), "start", self._start_timeout)
        self._call_all("load_model")
        self.num_speculative_tokens, *_ = self._read_all("num_speculative_tokens")
        if not self._told:
            self.num_device_drafts = min(self._read_all("num_device_drafts"))
            self._max_steps_in_flight = min(self._read_all("max_steps_in_flight"))

    def get_kv_cache_spec(self) -> KVCacheSpec:
        """The spec of the rank whose blocks take the most bytes, with the largest states of a row: sizes are
        per device. A draft takes its part on the rank that samples.

        Of several stages, no layer is said to slide: another stage may need what this one could forget. Inner
        states are those of the stage that has the most.
        """
        largest = _largest(self._call_all("get_kv_cache_spec"))
        if self._sizes.pipeline == 1:
            return largest
        return replace(largest, layers=tuple(replace(layer, sliding_window=None) for layer in largest.layers))

    def get_kv_part(self) -> KVPart:
        """The whole, which the ranks have together."""
        return KVPart.whole(self.get_kv_parts()[0].layers)

    def get_kv_parts(self) -> Sequence[KVPart]:
        """What each rank has."""
        found: list[KVPart] = self._call_all("get_kv_part")
        return parts_of_stages(found) if self._tried else found

    def determine_available_memory(self) -> int:
        """What as many blocks take as the poorest rank has room for, beside its rows' states; in the sizes
        of `get_kv_cache_spec`."""
        return self._memory_of_poorest(self._call_all("determine_available_memory"))

    def most_available_memory(self) -> int:
        """The same of what `most_available_memory` is on each rank."""
        return self._memory_of_poorest(self._call_all("most_available_memory"))

    def _memory_of_poorest(self, found: Sequence[int]) -> int:
        rows = self.limits.max_num_seqs
        specs: list[KVCacheSpec] = self._call_all("get_kv_cache_spec")
        left = [free - rows * spec.state_bytes_per_row for free, spec in zip(found, specs, strict=True)]
        largest = _largest(specs)
        states = rows * largest.state_bytes_per_row
        if min(left) < 0 or not largest.bytes_per_block:
            return states + min(left)
        blocks = min(
            free // spec.bytes_per_block
            for free, spec in zip(left, specs, strict=True)
            if spec.bytes_per_block
        )
        return states + blocks * largest.bytes_per_block

    def initialize_kv_cache(self, num_blocks: int, max_model_len: int | None = None) -> None:
        """Allocate the same number of blocks on every rank; what was sampled before is forgotten."""
        self._sampled = _NOTHING
        self._call_all("initialize_kv_cache", num_blocks, max_model_len)

    def capture_graphs(self) -> None:
        """Capture on every rank."""
        self._call_all("capture_graphs")

    def get_lora_targets(self) -> Mapping[str, LoRATarget]:
        """The linear layers of all ranks."""
        of_ranks: list[Mapping[str, LoRATarget]] = self._call_all("get_lora_targets")
        return {name: target for targets in of_ranks for name, target in targets.items()}

    def shutdown(self) -> None:
        """End the workers and release all that they hold. Idempotent."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.stop()

    # --- Steps

    def execute_model(self, scheduler_output: SchedulerOutput) -> None:
        """Send the step to every rank, with what was sampled and read since the step before."""
        for step in self._in_flight:
            step.freed.update(scheduler_output.freed_rows)
        sampled, self._sampled = self._sampled, _NOTHING
        if self._adapters is not None:
            scheduler_output = self._adapters.abridge(scheduler_output)
        workers, asked = self._require_workers(), [self._sizes.sampling_rank]
        workers.tell(Execute(scheduler_output, sampled if self._told else None))
        if scheduler_output.kv_connector_metadata is not None:
            others = [rank for rank in range(self._sizes.world) if rank not in asked]
            workers.tell(Transfers(), others)
            asked += others
        self._in_flight.append(_Step(asked))

    def sample_tokens(self, grammar_output: GrammarOutput | None = None) -> PendingOutput:
        """Ask the ranks that sample; the output of the one that answers is waited for by the pending
        output's `result`."""
        ranks = [self._sizes.sampling_rank] if self._told else None
        self._require_workers().tell(Sample(grammar_output), ranks)
        return _Pending(self)

    def take_sampled_tokens(self, output: StepOutput) -> None:
        """Raises RuntimeError: the workers' ranks are told by `execute_model`."""
        raise RuntimeError("the engine samples by sample_tokens")

    def read_output(self) -> StepOutput:
        """Wait for the sampling rank's answer to the first `sample_tokens` that was not read."""
        output: StepOutput
        step = self._in_flight.popleft()
        output, *others = self._require_workers().answers(step.asked, "execute_model", self._timeout)
        if self._told:
            self._sampled = _together(self._sampled, output, freed=step.freed)
        if others:
            transfers = self._transfers.add([output.kv_connector_output, *others])
            output = replace(output, kv_connector_output=transfers)
        return output

    # --- Parts

    def collective_rpc(
        self, method: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Call one of `rpc.RPC_METHODS` on every rank's runner; see `Runner.collective_rpc`.

        Where a change of weights fails on some ranks, or not alike on all, theirs may differ: all workers end
        with WorkerError.
        """
        if rpc_method(method).changes_weights:
            self._sampled = _NOTHING  # no request is left, and the rows may go with the KV cache
        results = self._call_all(method, *args, **(kwargs or {}))
        if method == "update_config":  # no worker refused it
            self.update_config(*args, **(kwargs or {}))
        return results

    def _call_all(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        if self._tried:
            return [getattr(runner, method)(*args, **kwargs) for runner in self._tried]
        workers = self._require_workers()
        workers.tell(Call(method, args, kwargs))
        limit = None if method in _UNLIMITED else self._timeout
        if method in _AT_START:
            limit = self._start_timeout
        changes_weights = method in RPC_METHODS and RPC_METHODS[method].changes_weights
        return workers.answers(range(self._sizes.world), method, limit, all_or_none=changes_weights)

    def _read_all(self, attribute: str) -> list[Any]:
        workers = self._require_workers()
        workers.tell(Read(attribute))
        return workers.answers(range(self._sizes.world), attribute, self._timeout)

    def _require_workers(self) -> Workers:
        if self._workers is None:
            raise RuntimeError("there are no workers: call load_model first")
        return self._workers


def _together(one: StepOutput, other: StepOutput, *, freed: Collection[int]) -> StepOutput:
    """The tokens of two steps of different rows; without those of rows that were freed since the second, and
    may belong to other requests."""
    kept = [pair for pair in zip(other.rows, other.token_ids, strict=True) if pair[0] not in freed]
    further = {row: FurtherTokens(m.token_ids) for row, m in other.further.items() if row not in freed}
    return StepOutput(
        [*one.rows, *(row for row, _ in kept)],
        [*one.token_ids, *(token_id for _, token_id in kept)],
        further={**one.further, **further},
    )


def _largest(specs: Sequence[KVCacheSpec]) -> KVCacheSpec:
    """The spec with the largest blocks and states of a row; prefixes are shared where all ranks can."""
    return replace(
        max(specs, key=lambda spec: spec.bytes_per_block),
        state_bytes_per_row=max(spec.state_bytes_per_row for spec in specs),
        shares_prefixes=all(spec.shares_prefixes for spec in specs),
    )
