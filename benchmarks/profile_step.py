"""Where a decode step's time goes: on the host by part, on the GPU by kernel.

    python -m benchmarks.profile_step --engine dodona-v2 --model qwen3-0.6b --batch 1 --batch 256

Runs the engine's loop (the real scheduler and runner, steps under way as the runner allows) in this thread
over requests that all decode, and times its parts: schedule, execute_model, sample_tokens, result (the wait
for the oldest step), update, deliver (the callers' news). All but result are host time, which overlaps with
the GPU's. Then the same steps once more under torch's profiler.

A record has: engine, model, sampling, batch, context (tokens of each prompt), mean_context (tokens of a
request in the middle of the timed steps, on average), host_us (mean microseconds per step by part), step_us
(median, from one result to the next), tokens_per_s, and gpu (null without one): busy_us and idle_us per step,
and kernels, each with name, us and launches per step, largest first. The profiler slows the host, so that
idle_us is an upper bound.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks import results
from benchmarks.environment import describe
from benchmarks.models import model_directory, read_config
from benchmarks.workloads import MIXED

PARTS = ("schedule", "execute_model", "sample_tokens", "result", "update", "deliver")

SAMPLING: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "greedy": ({"temperature": 0.0},),
    "temperature": ({"temperature": 0.6},),
    "filters": ({"temperature": 0.6, "top_k": 50, "top_p": 0.9},),
    "penalties": (
        {"temperature": 0.6, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    ),
    "logprobs": ({"temperature": 0.6, "logprobs": 5},),
    "mixed": tuple({k: v for k, v in kind.items() if k != "stop_token_ids"} for kind in MIXED),
    "all": (
        {
            "temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1,
            "presence_penalty": 0.5, "frequency_penalty": 0.3, "logit_bias": {11: 2.0}, "logprobs": 5,
            "min_tokens": 1 << 20, "stop_token_ids": (3,),
        },
    ),
}  # fmt: skip
"""What the requests ask of the sampler, in turn."""


class Loop:
    """The engine's loop, stepped by hand, over a runner and a scheduler that are ready."""

    def __init__(self, runner: Any, scheduler: Any, vocab_size: int) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self._vocab_size = vocab_size
        self._in_flight: deque[tuple[Any, Any]] = deque()
        self._requests: list[Any] = []
        self._number = 0

    def add(self, batch: int, context: int, limit: int, sampling: Sequence[Mapping[str, Any]]) -> None:
        """Submit requests of `context` tokens each, and step until all of them decode."""
        from dodona.runners.engine.request import Request
        from dodona.runners.sampling.params import SamplingParams

        for index in range(batch):
            self._number += 1
            asked = dict(sampling[index % len(sampling)])
            stops = tuple(asked.pop("stop_token_ids", ()))
            params = SamplingParams(max_tokens=None, ignore_eos=True, stop_token_ids=stops, **asked)
            tokens = [(7 * self._number + 13 * i) % self._vocab_size for i in range(context)]
            request = Request(
                f"profile-{self._number}", tokens, params, seed=self._number, limit=limit,
                sink=SimpleQueue().put,
            )  # fmt: skip
            self._requests.append(request)
            self.scheduler.add(request)
        while any(request.num_tokens <= context for request in self._requests):
            self.step()
        for _ in range(4):
            self.step()

    @property
    def mean_context(self) -> float:
        """Tokens of a request, on average."""
        return statistics.fmean(request.num_tokens for request in self._requests)

    def clear(self) -> None:
        """End all requests and read what is under way."""
        for request in self._requests:
            self.scheduler.abort(request)
        while self._in_flight:
            step, pending = self._in_flight.popleft()
            self.scheduler.update(step, pending.result())
        self._requests = []

    def step(self) -> dict[str, float]:
        """One turn of the engine's loop. Returns seconds by part; empty where it was not a whole turn."""
        times = [time.perf_counter()]
        step = self.scheduler.schedule()
        if step is None:
            raise RuntimeError(
                "nothing can run: too few KV blocks for these requests, or they came to their end"
            )
        times.append(time.perf_counter())
        self.runner.execute_model(step.output)
        times.append(time.perf_counter())
        self._in_flight.append((step, self.runner.sample_tokens()))
        times.append(time.perf_counter())
        if len(self._in_flight) < self.runner.max_steps_in_flight:
            return {}
        oldest, pending = self._in_flight.popleft()
        output = pending.result()
        times.append(time.perf_counter())
        news = self.scheduler.update(oldest, output)
        times.append(time.perf_counter())
        for request in news:
            request.sink(request.take_progress())
        times.append(time.perf_counter())
        return {name: times[i + 1] - times[i] for i, name in enumerate(PARTS)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the runner, measure each batch and context, print, write."""
    options = _parser().parse_args(arguments)
    contexts, batches = options.context or [1024], options.batch or [1, 256]
    # The first requests decode while the last ones' prompts are computed.
    prefill_steps = max(batches) * max(contexts) // 4096 + max(batches)
    room = options.steps + options.profile_steps + prefill_steps + 32
    config = read_config(options.model)
    with model_directory(options.model) as directory:
        runner, scheduler = start_runner(options, directory, max(batches), max(contexts) + room)
        where = describe()
        print(f"{options.engine} {options.model} | {where['gpu']}, torch {where['torch']}, {where['commit']}")
        records = []
        try:
            for sampling in options.sampling or ["temperature"]:
                for batch in batches:
                    for context in contexts:
                        loop = Loop(runner, scheduler, config["vocab_size"])
                        record = measure(loop, options, batch, context, context + room, sampling)
                        print(text(record, options.top), flush=True)
                        records.append(record)
                        if options.json is not None:
                            results.write(options.json, results.STEP, records, environment=where)
        finally:
            runner.shutdown()
    return 0


def start_runner(
    options: argparse.Namespace, directory: Path, max_num_seqs: int, max_model_len: int
) -> tuple[Any, Any]:
    """A runner that is ready to step, and its scheduler."""
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.oracle.select import select_runner
    from dodona.runners.startup import start

    os.environ["DODONA_USE_V2_MODEL_RUNNER"] = {"dodona-v1": "0", "dodona-v2": "1"}[options.engine]
    config = EngineConfig.from_flat(
        str(directory),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        enable_prefix_caching=False,
        gpu_memory_utilization=options.gpu_memory_utilization,
    )
    runner, scheduler, _ = start(select_runner(config), ModelInfo.load(directory))
    return runner, scheduler


def measure(
    loop: Loop, options: argparse.Namespace, batch: int, context: int, limit: int, sampling: str
) -> dict[str, Any]:
    """A record of "dodona.step/1"."""
    loop.add(batch, context, limit, SAMPLING[sampling])
    parts = []
    ends = []
    mean_context = loop.mean_context + options.steps / 2
    for _ in range(options.steps):
        parts.append(loop.step())
        ends.append(time.perf_counter())
    between = [later - earlier for earlier, later in itertools.pairwise(ends)]
    gpu = profile(lambda: [loop.step() for _ in range(options.profile_steps)], options.profile_steps)
    loop.clear()
    whole = [part for part in parts if part]
    return {
        "engine": options.engine,
        "model": options.model,
        "sampling": sampling,
        "batch": batch,
        "context": context,
        "mean_context": mean_context,
        "host_us": {name: 1e6 * statistics.fmean(part[name] for part in whole) for name in PARTS},
        "step_us": 1e6 * statistics.median(between),
        "tokens_per_s": batch / statistics.median(between),
        "gpu": gpu,
    }


def profile(run: Callable[[], object], steps: int) -> dict[str, Any] | None:
    """The GPU's time by kernel per step of `run`, which runs `steps` of them; None without a GPU."""
    import torch

    return kernel_table(kernel_spans(run), steps) if torch.cuda.is_available() else None


def kernel_spans(run: Callable[[], object]) -> list[tuple[str, float, float]]:
    """(name, start, end) in microseconds of all that runs on the GPU during `run`."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    torch.cuda.synchronize()
    with torch_profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return [
        (event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]


def kernel_table(spans: Iterable[tuple[str, float, float]], steps: int) -> dict[str, Any]:
    """busy_us, idle_us and kernels per step, from (name, start, end) in microseconds in any order.

    Busy is the time when at least one kernel or copy runs; idle is the rest between the first and the last.

    >>> kernel_table([("a", 0, 4), ("b", 2, 6), ("a", 8, 10)], 2)["idle_us"]
    1.0
    """
    ordered = sorted(spans, key=lambda span: span[1])
    busy, reached = 0.0, float("-inf")
    totals: dict[str, list[float]] = {}
    for name, start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
        total = totals.setdefault(name, [0.0, 0])
        total[0] += end - start
        total[1] += 1
    whole = reached - ordered[0][1] if ordered else 0.0
    return {
        "busy_us": busy / steps,
        "idle_us": (whole - busy) / steps,
        "kernels": [
            {"name": name, "us": us / steps, "launches": count / steps}
            for name, (us, count) in sorted(totals.items(), key=lambda item: -item[1][0])
        ],
    }


def text(record: Mapping[str, Any], top: int) -> str:
    """A record for reading."""
    host = record["host_us"]
    own = sum(value for name, value in host.items() if name != "result")
    lines = [
        f"\nbatch {record['batch']} context {record['mean_context']:.0f} sampling {record['sampling']}: "
        f"step {record['step_us']:.0f} µs, {record['tokens_per_s']:,.0f} tok/s, host {own:.0f} µs",
        "  host: " + ", ".join(f"{name} {value:.0f}" for name, value in host.items()),
    ]
    if record["gpu"] is not None:
        gpu = record["gpu"]
        lines.append(f"  GPU: busy {gpu['busy_us']:.0f} µs, idle {gpu['idle_us']:.0f} µs (profiled)")
        lines += [
            f"  {kernel['us']:9.1f} µs {kernel['launches']:6.1f}× {kernel['name'][:80]}"
            for kernel in gpu["kernels"][:top]
        ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile_step", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--engine", default="dodona-v2", choices=("dodona-v2", "dodona-v1"))
    add("--model", default="qwen3-0.6b")
    add("--batch", type=int, action="append", help="may be given several times; default 1 and 256")
    add("--context", type=int, action="append", help="likewise; default 1024")
    add("--sampling", choices=tuple(SAMPLING), action="append", help="likewise; default temperature")
    add("--steps", type=int, default=100)
    add("--profile-steps", type=int, default=20)
    add("--top", type=int, default=15, help="kernels to print")
    add("--gpu-memory-utilization", type=float, default=0.85)
    add("--json", type=Path, help="write the records to this file")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
