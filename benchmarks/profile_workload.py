"""Where the GPU's time goes over a whole workload, by kernel.

    python -m benchmarks.profile_workload --engine dodona-v2 --model qwen3-0.6b --workload nano256

Takes the arguments of `benchmarks.throughput`. Runs each workload `--repeat` times, then once more under
torch's profiler, which slows the host: the idle time is an upper bound. Only for Dodona's runners, which work
in this process.

A record has: engine, model, workload (its name), seconds (of the runs without the profiler), gpu (null
without one): busy_us and idle_us of the whole run, and kernels, each with name, us and launches, largest
first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import results
from benchmarks.engines import BenchmarkEngine, engine_class
from benchmarks.environment import describe
from benchmarks.models import model_directory, read_config
from benchmarks.profile_step import profile
from benchmarks.throughput import make_setup, make_workloads, parser, timed
from benchmarks.workloads import Workload

MOST_KERNELS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, profile, print, write."""
    options = parser().parse_args(arguments)
    if not options.engine.startswith("dodona"):
        raise ValueError(
            f"--engine {options.engine}: its kernels run in another process; expected dodona-v2 or dodona-v1"
        )
    config = read_config(options.model)
    workloads = make_workloads(options, config)
    records: list[dict[str, Any]] = []
    with model_directory(options.model) as directory:
        engine = engine_class(options.engine).load(make_setup(options, config, workloads, directory))
        where = describe()
        print(f"{options.engine} {options.model} | {where['gpu']}, torch {where['torch']}, {where['commit']}")
        try:
            for workload in workloads:
                records.append(
                    measure(engine, workload, options.repeat)
                    | {"engine": options.engine, "model": options.model}
                )
                print(text(records[-1]), flush=True)
                if options.json is not None:
                    results.write(options.json, results.WORKLOAD, records, environment=where)
        finally:
            engine.close()
    return 0


def measure(engine: BenchmarkEngine, workload: Workload, repeat: int) -> dict[str, Any]:
    """What a record says of a workload."""
    engine.generate(workload.warm_up().asks)
    seconds = [timed(engine, workload) for _ in range(repeat)]
    gpu = profile(lambda: engine.generate(workload.asks), 1)
    return {"workload": workload.name, "seconds": seconds, "gpu": gpu}


def text(record: Mapping[str, Any]) -> str:
    """A record in lines."""
    lines = [f"{record['workload']}: {', '.join(f'{seconds:.3f}' for seconds in record['seconds'])} s"]
    if record["gpu"] is not None:
        gpu = record["gpu"]
        lines.append(
            f"  GPU: busy {gpu['busy_us'] / 1e3:.1f} ms, idle {gpu['idle_us'] / 1e3:.1f} ms (profiled)"
        )
        lines += [
            f"  {us / 1e3:9.1f} ms {launches:8.0f}× {us / launches:8.1f} µs  {name[:90]}"
            for name, us, launches in (
                (kernel["name"], kernel["us"], kernel["launches"]) for kernel in gpu["kernels"][:MOST_KERNELS]
            )
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
