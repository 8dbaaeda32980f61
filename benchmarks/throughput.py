"""Tokens per second of an engine on a workload, end to end, against what the shapes allow.

    python -m benchmarks.throughput --engine dodona-v2 --model qwen3-0.6b --workload nano256 --json out.json

The time is that of the engine's plain call on token ids, scheduler and output handling included, after a
warm-up by the same batch with short outputs. Several workloads may be given; the engine is started once for
all. Every request's tokens are counted, and a request that is short of one is an error.

Weights are random (nothing is downloaded), prompts are random token ids, prefix caching is off. The roofline
and its formula are in `benchmarks.roofline`; the JSON is described in `benchmarks.results`.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.compilations import compilations
from benchmarks.compilations import summary as summary_of_compilations
from benchmarks.engines import ENGINES, BenchmarkEngine, Setup, engine_class
from benchmarks.environment import describe
from benchmarks.models import model_directory, read_config
from benchmarks.roofline import Rates, Shape, workload_roofline
from benchmarks.turns import wait_for_turn
from benchmarks.workloads import WORKLOADS, Workload, make_workload

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
ALWAYS_STREAMED = ("bs1",)
"""Workloads that are short enough to be streamed once more for their latencies without being asked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write."""
    options = parser().parse_args(arguments)
    if options.verbose:
        logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
        logging.getLogger("dodona").setLevel(logging.INFO)
    config = read_config(options.model)
    workloads = make_workloads(options, config)
    with model_directory(options.model) as directory:
        setup = make_setup(options, config, workloads, directory)
        started = time.perf_counter()
        engine = engine_class(options.engine).load(setup)
        start_seconds = time.perf_counter() - started
        try:
            head = {
                "engine": options.engine,
                "label": options.label,
                "model": options.model,
                "config": config,
                "dtype": resolve_dtype(options.dtype, config),
                "settings": engine.settings(),
                "versions": engine.versions(),
                "environment": describe(),
                "start_seconds": start_seconds,
            }
            print(headline(head), flush=True)
            records = []
            with _watched(options.engine):
                for workload in workloads:
                    record = head | measure(
                        engine,
                        workload,
                        head,
                        repeat=options.repeat,
                        streamed=is_streamed(options, workload.name),
                        turn=wait_for_turn if options.take_turns else None,
                        rates=Rates.of(
                            head["environment"]["gpu"], bandwidth=options.bandwidth, flops=options.flops
                        ),
                    )
                    print(summary(record), flush=True)
                    records.append(record)
                    if options.json is not None:  # after each, so that a later failure costs nothing
                        results.write(options.json, results.THROUGHPUT, records)
        finally:
            engine.close()
    return 0


@contextmanager
def _watched(engine: str) -> Iterator[None]:
    """Say which kernels are compiled inside, for an engine of this process."""
    if not engine.startswith("dodona"):
        yield
        return
    with compilations() as found:
        yield
    print(summary_of_compilations(found), flush=True)


def make_workloads(options: argparse.Namespace, config: Mapping[str, Any]) -> list[Workload]:
    """The workloads that were asked for."""
    return [
        make_workload(name, vocab_size=config["vocab_size"], seed=options.seed, rate=options.rate).smaller(
            options.requests, options.divide
        )
        for name in options.workload
    ]


def make_setup(
    options: argparse.Namespace, config: Mapping[str, Any], workloads: Sequence[Workload], directory: Path
) -> Setup:
    """One start that serves all the workloads: rows for all requests, up to 512."""
    needed = max(workload.max_model_len for workload in workloads)
    known = int(config.get("max_position_embeddings", needed))
    if needed > known:
        raise ValueError(
            f"a request has {needed} tokens, but config.json's max_position_embeddings is {known}; "
            "use --divide to make the lengths smaller"
        )
    most = max(len(workload.asks) for workload in workloads)
    return Setup(
        directory=directory,
        dtype=resolve_dtype(options.dtype, config),
        max_num_seqs=options.max_num_seqs or min(512, max(256, most)),
        max_model_len=min(known, max(needed, 4096)),
        max_num_batched_tokens=options.max_num_batched_tokens,
        gpu_memory_utilization=options.gpu_memory_utilization,
        enforce_eager=options.enforce_eager,
        arguments=dict(_setting(text) for text in options.set),
    )


def resolve_dtype(dtype: str, config: Mapping[str, Any]) -> str:
    """The name of a dtype; "auto" is config.json's."""
    found = config.get("dtype") or config.get("torch_dtype") or "bfloat16" if dtype == "auto" else dtype
    if found not in DTYPE_BYTES:
        raise ValueError(f"--dtype {found!r} is not known; expected auto or one of {', '.join(DTYPE_BYTES)}")
    return str(found)


def measure(
    engine: BenchmarkEngine,
    workload: Workload,
    head: Mapping[str, Any],
    *,
    repeat: int,
    streamed: bool,
    rates: Rates,
    turn: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Warm up, run `repeat` times, and give the fields of a record that depend on the workload.

    streamed: also take the latencies of a workload that isn't online, in one more run.
    turn: called before the warm-up and before each run.
    """
    turn = turn or _always
    turn()
    check_tokens(workload.warm_up(), engine.generate(workload.warm_up().asks))
    latency = None
    if workload.online:
        runs, latency = [], None
        for _ in range(repeat):
            turn()
            timelines = engine.serve(workload.asks)
            begun = timelines[0].arrival - workload.asks[0].arrival
            runs.append(max(t.token_times[-1] for t in timelines) - begun)
            latency = results.latency(timelines)
    else:
        runs = []
        for _ in range(repeat):
            turn()
            runs.append(timed(engine, workload))
        if streamed:
            turn()
            latency = results.latency(engine.serve(workload.asks))
    seconds = statistics.median(runs)
    return {
        "workload": {
            "name": workload.name,
            "seed": workload.seed,
            "requests": len(workload.asks),
            "input_tokens": workload.input_tokens,
            "output_tokens": workload.output_tokens,
            "fingerprint": workload.fingerprint,
            "online": workload.online,
        },
        "runs": [{"seconds": run} for run in runs],
        "seconds": seconds,
        "output_tokens_per_s": workload.output_tokens / seconds,
        "input_tokens_per_s": workload.input_tokens / seconds,
        "roofline": None if workload.online else roofline(workload, head, seconds, rates),
        "latency": latency,
    }


def is_streamed(options: argparse.Namespace, workload: str) -> bool:
    """Whether a workload that isn't online is streamed once more, for its latencies."""
    return workload != "poisson" and bool(
        options.latency or workload.removesuffix("-small") in ALWAYS_STREAMED
    )


def _always() -> None:
    """In place of waiting for a turn."""


def timed(engine: BenchmarkEngine, workload: Workload) -> float:
    """Seconds of one call for the whole workload, whose tokens are counted afterwards."""
    started = time.perf_counter()
    outputs = engine.generate(workload.asks)
    seconds = time.perf_counter() - started
    check_tokens(workload, outputs)
    return seconds


def check_tokens(workload: Workload, outputs: Sequence[Sequence[int]]) -> None:
    """Every request must have exactly its tokens; RuntimeError where one has not."""
    if len(outputs) != len(workload.asks):
        raise RuntimeError(f"{workload.name}: {len(outputs)} outputs for {len(workload.asks)} requests")
    for index, (ask, output) in enumerate(zip(workload.asks, outputs, strict=True)):
        if len(output) != ask.max_tokens:
            raise RuntimeError(
                f"{workload.name}: request {index} has {len(output)} tokens instead of {ask.max_tokens}"
            )


def roofline(
    workload: Workload, head: Mapping[str, Any], seconds: float, rates: Rates
) -> dict[str, Any] | None:
    """The record's "roofline"; None for a model of a build that it does not know."""
    try:
        shape = Shape.of(head["config"], DTYPE_BYTES[head["dtype"]])
    except ValueError:
        return None
    least = workload_roofline(
        shape,
        [(len(ask.prompt), ask.max_tokens) for ask in workload.asks],
        max_num_seqs=len(workload.asks),
        max_num_batched_tokens=8192,
        rates=rates,
    )
    return {
        "bandwidth": rates.bandwidth,
        "flops": rates.flops,
        "prefill_seconds": least.prefill_seconds,
        "decode_seconds": least.decode_seconds,
        "output_tokens_per_s": workload.output_tokens / least.seconds,
        "share": least.seconds / seconds,
    }


def headline(head: Mapping[str, Any]) -> str:
    """What runs, where, with what."""
    where = head["environment"]
    versions = " ".join(f"{name} {value}" for name, value in head["versions"].items())
    return (
        f"{head['engine']} ({versions}) | {head['model']} {head['dtype']} | {where['gpu']}, "
        f"torch {where['torch']}, triton {where['triton']}, Python {where['python']}, "
        f"commit {where['commit']} | ready after {head['start_seconds']:.1f} s"
    )


def summary(record: Mapping[str, Any]) -> str:
    """A record in a few lines."""
    workload, least, times = record["workload"], record["roofline"], record["latency"]
    runs = ", ".join(f"{run['seconds']:.3f}" for run in record["runs"])
    lines = [
        f"{workload['name']}: {record['output_tokens_per_s']:,.0f} tok/s out, "
        f"{record['input_tokens_per_s']:,.0f} tok/s in ({workload['requests']} requests, "
        f"{workload['input_tokens']:,} in, {workload['output_tokens']:,} out; {runs} s)"
    ]
    if least is not None:
        lines.append(
            f"  roofline {least['output_tokens_per_s']:,.0f} tok/s out "
            f"(prefill {least['prefill_seconds']:.3f} s, decode {least['decode_seconds']:.3f} s): "
            f"{100 * least['share']:.1f} %"
        )
    for name in ("ttft_s", "tpot_s"):
        if times is not None and times[name] is not None:
            values = "  ".join(f"{key} {1e3 * value:.2f}" for key, value in times[name].items())
            lines.append(f"  {name.removesuffix('_s').upper()} ms: {values}")
    return "\n".join(lines)


def _setting(text: str) -> tuple[str, Any]:
    """`name=value`, the value as a number, true, false, or text."""
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--set takes name=value, got {text!r}")
    if value in ("true", "false"):
        return name, value == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def parser() -> argparse.ArgumentParser:
    """The program's arguments; `benchmarks.profile_workload` has the same."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--engine", required=True, choices=ENGINES)
    add("--model", required=True, help="a known shape (qwen3-0.6b, …) or a directory with a config.json")
    add("--workload", required=True, action="append", choices=WORKLOADS, help="may be given several times")
    add("--json", type=Path, help="write the records to this file")
    add("--repeat", type=int, default=2, help="measured runs of each workload; their median counts")
    add("--dtype", default="auto", help="auto (config.json's), bfloat16, float16 or float32")
    add("--seed", type=int, default=0, help="of the workload")
    add("--rate", type=float, default=8.0, help="requests per second of poisson")
    add("--latency", action="store_true", help="one more, streamed run of each workload for TTFT and TPOT")
    add(
        "--verbose",
        action="store_true",
        help="the log at level INFO, with the seconds of each part of a start",
    )
    add("--take-turns", action="store_true", help="wait for a line on stdin before each run (side_by_side)")
    add("--label", default="", help="tells this run from others of the same engine")
    add("--max-num-seqs", type=int, help="default: all requests, at least 256 and at most 512")
    add("--max-num-batched-tokens", type=int, help="default: the engine's own")
    add("--gpu-memory-utilization", type=float, default=0.85)
    add("--enforce-eager", action="store_true", help="no CUDA graphs")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="an argument for the engine alone")
    add("--bandwidth", type=float, help="bytes/s of the roofline; default: as measured on such a GPU")
    add("--flops", type=float, help="operations/s of the roofline; likewise")
    add("--requests", type=int, help="only the first so many requests (for trying things out)")
    add("--divide", type=int, default=1, help="divide all lengths by this (for trying things out)")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
