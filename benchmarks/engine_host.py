"""How long the host takes per decode step: schedule, update and outputs, without any model.

    python benchmarks/engine_host.py [--batch 256] [--steps 500] [--streaming]

A runner that returns at once stands for the device. Prints the mean microseconds of each part.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from queue import SimpleQueue

from dodona.runners.engine.request import Request
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.engine.step_batch import ScheduledStep
from dodona.runners.interface import StepOutput
from dodona.runners.sampling.params import SamplingParams


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--streaming", action="store_true")
    arguments = parser.parse_args()
    times = measure(arguments.batch, arguments.steps, arguments.prompt, streaming=arguments.streaming)
    for name, seconds in times.items():
        print(f"{name:10} {1e6 * seconds:8.1f} µs per step of {arguments.batch} requests")
    print(f"{'together':10} {1e6 * sum(times.values()):8.1f} µs")


def measure(batch: int, steps: int, prompt: int, *, streaming: bool) -> dict[str, float]:
    """Mean seconds per steady decode step, two steps in flight, by part."""
    params = SamplingParams(max_tokens=None, ignore_eos=True)
    blocks = batch * ((prompt + steps) // 16 + 4)
    scheduler = Scheduler(num_blocks=blocks, block_size=16, max_num_seqs=batch, max_num_batched_tokens=8192)
    for index in range(batch):
        scheduler.add(
            Request(
                str(index), [index, *range(prompt - 1)], params, seed=index, limit=prompt + steps + 100,
                sink=SimpleQueue().put, streaming=streaming,
            )
        )  # fmt: skip
    in_flight: deque[ScheduledStep] = deque()
    spent = {"schedule": 0.0, "update": 0.0, "outputs": 0.0}
    counted = 0
    while counted < steps:
        begin = time.perf_counter()
        step = scheduler.schedule()
        scheduled = time.perf_counter()
        assert step is not None
        steady = len(step.output.rows) == step.output.num_decodes == batch
        in_flight.append(step)
        if len(in_flight) < 2:
            continue
        oldest = in_flight.popleft()
        rows = [
            row for row, samples in zip(oldest.output.rows, oldest.output.samples, strict=True) if samples
        ]
        result = StepOutput(rows, [7] * len(rows))
        start = time.perf_counter()
        news = scheduler.update(oldest, result)
        updated = time.perf_counter()
        for request in news:
            request.sink(request.take_progress())
        end = time.perf_counter()
        if steady:
            counted += 1
            spent["schedule"] += scheduled - begin
            spent["update"] += updated - start
            spent["outputs"] += end - updated
    return {name: seconds / counted for name, seconds in spent.items()}


if __name__ == "__main__":
    main()
