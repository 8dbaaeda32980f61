"""A small scheduler for tests of a runner by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.interface import NewRequest, Runner, SchedulerOutput, StepOutput
from dodona.runners.limits import resolve_limits
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.token_logprobs import TokenLogprobs
from dodona.runners.v1.runner import V1Runner

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


def make_runner(path: Path, *, num_blocks: int = 64, load: bool = True, **flat: Any) -> V1Runner:
    """A V1 runner of the model directory on the CPU, loaded, with a KV cache."""
    settings = {"device": "cpu", "block_size": 4, "max_num_batched_tokens": 64, "max_num_seqs": 8, **flat}
    config, model = EngineConfig.from_flat(str(path), **settings), ModelInfo.load(path)
    runner = V1Runner(config, model, resolve_limits(config, model))
    if load:
        runner.load_model()
        runner.initialize_kv_cache(num_blocks)
    return runner


@dataclass
class Job:
    """One request as the driver sees it."""

    name: str
    prompt: list[int]
    max_tokens: int
    params: SamplingParams
    seed: int
    output: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    row: int = -1
    blocks: list[int] = field(default_factory=list)
    computed: int = 0

    @property
    def tokens(self) -> list[int]:
        """Prompt and output."""
        return self.prompt + self.output


class Driver:
    """Runs jobs on a runner, `budget` tokens a step.

    `preempt_every`: every that many steps the last running job loses its row and blocks and starts over
    later.
    `prefix_caching`: blocks that are full are kept and taken by jobs that begin with the same tokens.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        num_blocks: int = 64,
        budget: int = 64,
        max_rows: int = 8,
        preempt_every: int = 0,
        prefix_caching: bool = False,
    ) -> None:
        self.runner = runner
        spec = runner.get_kv_cache_spec()
        self.block_size = spec.block_size
        # A window block for every block, once and for all.
        self._attached = [(g, b, b) for g in range(len(spec.window_groups)) for b in range(num_blocks)]
        assert all(count == num_blocks for count in spec.num_window_blocks(num_blocks, runner.limits))
        self.budget = budget
        self.preempt_every = preempt_every
        self.prefix_caching = prefix_caching
        self.free_blocks = list(range(num_blocks))[::-1]
        self.free_rows = list(range(max_rows))
        self.step = 0
        self.preemptions = 0
        self.prefix_hits = 0
        self._freed: list[int] = []
        self._cached: dict[tuple[int, ...], int] = {}
        self._kept: set[int] = set()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int | Sequence[int],
        params: SamplingParams | Sequence[SamplingParams] = GREEDY,
        seeds: Sequence[int] | None = None,
    ) -> list[Job]:
        """Run all prompts to `max_tokens` tokens each."""
        count = len(prompts)
        lengths = [max_tokens] * count if isinstance(max_tokens, int) else list(max_tokens)
        each = [params] * count if isinstance(params, SamplingParams) else list(params)
        jobs = [
            Job(f"job-{i}", list(p), lengths[i], each[i], seeds[i] if seeds else i)
            for i, p in enumerate(prompts)
        ]
        waiting, running = list(jobs), []
        while waiting or running:
            self._step(waiting, running)
        # A step without rows tells the runner what was freed last.
        self._step(waiting, running)
        return jobs

    def _step(self, waiting: list[Job], running: list[Job]) -> None:
        self.step += 1
        if self.preempt_every and self.step % self.preempt_every == 0 and len(running) > 1:
            self._release(victim := running.pop())
            victim.computed, victim.blocks = 0, []
            waiting.insert(0, victim)
            self.preemptions += 1
        scheduled: list[tuple[Job, int]] = []
        budget = self.budget
        for job in running:
            count = min(budget, len(job.tokens) - job.computed)
            if count:
                scheduled.append((job, count))
                budget -= count
        new: list[Job] = []
        while waiting and budget and self.free_rows:
            job = waiting.pop(0)
            job.row = self.free_rows.pop(0)
            self._take_cached(job)
            count = min(budget, len(job.tokens) - job.computed)
            scheduled.append((job, count))
            budget -= count
            new.append(job)
            running.append(job)
        decodes = {
            id(job) for job, count in scheduled if count == 1 and 0 < job.computed == len(job.tokens) - 1
        }
        scheduled.sort(key=lambda item: id(item[0]) not in decodes)
        new_blocks = []
        for job, count in scheduled:
            missing = -(-(job.computed + count) // self.block_size) - len(job.blocks)
            added = [self.free_blocks.pop() for _ in range(missing)]
            job.blocks.extend(added)
            if added and job not in new:
                new_blocks.append((job.row, added))
        ends = [job.computed + count for job, count in scheduled]
        samples = [end == len(job.tokens) for (job, _), end in zip(scheduled, ends, strict=True)]
        step = SchedulerOutput(
            step=self.step,
            freed_rows=tuple(self._freed),
            new_requests=[self._request(job) for job in new],
            new_blocks=new_blocks,
            rows=[job.row for job, _ in scheduled],
            num_tokens=[count for _, count in scheduled],
            num_computed_tokens=[job.computed for job, _ in scheduled],
            samples=samples,
            num_decodes=len(decodes),
            window_blocks=self._attached,
        )
        self._freed = []
        self._attached = []
        self.runner.execute_model(step)
        self._apply(self.runner.sample_tokens().result(), scheduled, ends, running)

    def _apply(
        self, output: StepOutput, scheduled: list[tuple[Job, int]], ends: list[int], running: list[Job]
    ) -> None:
        by_row = {job.row: job for job, _ in scheduled}
        for (job, _), end in zip(scheduled, ends, strict=True):
            job.computed = end
            if self.prefix_caching:
                for n in range(self.block_size, end + 1, self.block_size):
                    block = job.blocks[n // self.block_size - 1]
                    if self._cached.setdefault(tuple(job.tokens[:n]), block) == block:
                        self._kept.add(block)
        for row, token in zip(output.rows, output.token_ids, strict=True):
            by_row[row].output.append(token)
        for row, entry in output.logprobs.items():
            by_row[row].logprobs.append(entry)
        for row, entries in output.prompt_logprobs.items():
            by_row[row].prompt_logprobs.extend(entries)
        for job in [job for job in running if len(job.output) >= job.max_tokens]:
            running.remove(job)
            self._release(job)

    def _take_cached(self, job: Job) -> None:
        job.blocks, job.computed = [], 0
        # The last token must be computed in any case: its logits are wanted.
        while self.prefix_caching and job.computed + self.block_size < len(job.tokens):
            block = self._cached.get(tuple(job.tokens[: job.computed + self.block_size]))
            if block is None:
                break
            job.blocks.append(block)
            job.computed += self.block_size
            self.prefix_hits += 1

    def _release(self, job: Job) -> None:
        self.free_blocks.extend(block for block in job.blocks if block not in self._kept)
        self._freed.append(job.row)
        self.free_rows.append(job.row)

    def _request(self, job: Job) -> NewRequest:
        return NewRequest(
            request_id=job.name,
            row=job.row,
            token_ids=job.tokens,
            num_prompt_tokens=len(job.prompt),
            num_computed_tokens=job.computed,
            block_ids=list(job.blocks),
            sampling_params=job.params,
            seed=job.seed,
        )
