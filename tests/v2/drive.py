"""Runs requests on runner V2 through the real scheduler, without the rest of the engine."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.device.graphs import FixedSizes, FixedStep
from dodona.runners.device.step import StepRunner
from dodona.runners.device.step_drafts import StepDrafts
from dodona.runners.engine.request import Request
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.limits import resolve_limits
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v2.runner import V2Runner

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_runner(path: Path, *, num_blocks: int = 40, load: bool = True, **flat: Any) -> V2Runner:
    """A V2 runner of a model directory, loaded, with a KV cache and graphs.

    The oracle would refuse V2 on a CPU: there Triton's interpreter runs the kernels.
    """
    settings = {"device": DEVICE, "max_num_batched_tokens": 64, "max_num_seqs": 4, "max_model_len": 256}
    config, model = EngineConfig.from_flat(str(path), **{**settings, **flat}), ModelInfo.load(path)
    runner = V2Runner(config, model, resolve_limits(config, model))
    if load:
        runner.load_model()
        runner.initialize_kv_cache(num_blocks)
        runner.capture_graphs()
    return runner


def set_graphs(runner: V2Runner, graphs: EagerGraphs | None) -> None:
    """Let steps of fixed form run by `graphs`."""
    runner.steps.use_graphs(graphs)


class EagerGraphs:
    """In the place of captured graphs: the same padded steps, launch by launch."""

    def __init__(
        self,
        steps: StepRunner,
        *,
        decodes: Sequence[int],
        prompts: Sequence[int],
        drafts: Sequence[int] = (),
        step_drafts: StepDrafts | None = None,
    ) -> None:
        self.sizes = FixedSizes(decodes, prompts, drafts)
        self.replayed: list[FixedStep] = []
        self._steps = steps
        self._drafts = step_drafts

    def replay(self, step: FixedStep) -> None:
        self.replayed.append(step)
        self._steps.run(step)

    def replay_drafter(self, size: int) -> None:
        assert self._drafts is not None
        self._drafts.run(size)


@dataclass
class Run:
    """What came of `generate`."""

    requests: list[Request]
    scheduler: Scheduler
    steps: int
    most_unread: int
    """Most steps of one request that were under way at a time."""

    @property
    def outputs(self) -> list[list[int]]:
        """Generated tokens of each request."""
        return [request.token_ids[request.num_prompt_tokens :] for request in self.requests]


def generate(
    runner: V2Runner,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int | Sequence[int],
    params: SamplingParams | Sequence[SamplingParams] = GREEDY,
    num_blocks: int = 40,
    in_flight: int | None = None,
    enable_prefix_caching: bool = False,
    scheduler: Scheduler | None = None,
) -> Run:
    """Generate for all prompts, with up to `in_flight` steps (None: as many as the runner allows) launched
    before the oldest is read."""
    in_flight = in_flight or runner.max_steps_in_flight
    config = runner.config
    scheduler = scheduler or Scheduler(
        num_blocks=num_blocks,
        block_size=config.cache_config.block_size,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens or 64,
        enable_chunked_prefill=True,
        enable_prefix_caching=enable_prefix_caching,
        num_speculative_tokens=runner.num_speculative_tokens,
        num_device_drafts=runner.num_device_drafts,
        window=runner.get_kv_cache_spec().groups[0].window,
    )
    count = len(prompts)
    each = [params] * count if isinstance(params, SamplingParams) else list(params)
    lengths = [max_tokens] * count if isinstance(max_tokens, int) else list(max_tokens)
    requests = [
        Request(f"request-{i}", list(prompt), each[i], seed=each[i].seed or i, limit=len(prompt) + lengths[i])
        for i, prompt in enumerate(prompts)
    ]
    for request in requests:
        scheduler.add(request)
    under_way: deque[Any] = deque()
    steps = most_unread = 0
    while scheduler.num_unfinished:
        step = scheduler.schedule() if len(under_way) < in_flight else None
        if step is not None:
            runner.execute_model(step.output)
            under_way.append((step, runner.sample_tokens()))
            steps += 1
            unread = Counter(id(request) for scheduled, _ in under_way for request in scheduled.sampling)
            most_unread = max([most_unread, *unread.values()])
            continue
        assert under_way, "the scheduler has nothing to run, and nothing is under way"
        oldest, pending = under_way.popleft()
        scheduler.update(oldest, pending.result())
    while under_way:
        oldest, pending = under_way.popleft()
        scheduler.update(oldest, pending.result())
    return Run(requests, scheduler, steps, most_unread)
