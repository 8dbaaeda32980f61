"""Times every kernel against its roofline and against torch.

    python -m benchmarks.kernels --json kernels.json            # on a GPU: shapes of Qwen3-0.6B and 8B
    python -m benchmarks.kernels --tiny                         # anywhere: small shapes, checked, not timed

A kernel's least time is the larger of its bytes by the bandwidth and its operations by the rate; `share` is
that by what was measured. Each timing is the median of replays of a CUDA graph that calls the kernel over
sets of inputs that together exceed the L2 cache (up to a limit: very small kernels stay in it, as they would
in a step).

A record has: kernel, case, seconds, roofline_seconds, bound ("bytes" or "flops"), share, torch_seconds (the
equivalent in torch, eager kernels in a graph, or null).
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import results
from benchmarks.models import read_config
from benchmarks.roofline import Rates, Shape

if TYPE_CHECKING:
    from benchmarks.kernel_cases import Call, Case, Scene

L2_BYTES = 60 << 20
"""More than an H200's L2 cache."""
MOST_SETS = 32
LARGEST_CASE = 9 << 30
"""Bytes; larger inputs would only take time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases, or those that match; print a table; write."""
    options = _parser().parse_args(arguments)
    if options.tiny:
        # Counts only before Triton is imported.
        os.environ.setdefault("TRITON_INTERPRET", "1")
    import torch

    if not options.tiny and not torch.cuda.is_available():
        raise ValueError("kernels are timed on an NVIDIA GPU, and torch finds none; --tiny runs anywhere")
    from benchmarks.environment import describe
    from benchmarks.kernel_cases import Scene

    wanted = re.compile(options.only)
    if options.tiny:
        device = torch.device("cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda")
        cases = list(tiny_cases(Scene(device, torch.float32, 1)))
    else:
        device = torch.device("cuda")
        count = torch.cuda.get_device_properties(device).multi_processor_count
        cases = list(all_cases(Scene(device, torch.bfloat16, count), options.models))
    cases = [c for c in cases if wanted.search(f"{c.kernel} {c.name}") and c.num_bytes <= LARGEST_CASE]
    where = describe()
    rates = Rates.of(where["gpu"], bandwidth=options.bandwidth, flops=options.flops)
    print(f"{where['gpu']}, torch {where['torch']}, triton {where['triton']}, commit {where['commit']}")
    print(f"{'kernel':24} {'case':40} {'µs':>10} {'least':>10} {'share':>7} {'torch µs':>10} {'by own':>8}")
    records = []
    failed = 0
    begun = time.perf_counter()
    for case in cases:
        torch.manual_seed(0)
        try:
            if options.tiny:
                seconds, in_torch = check(case), None
            else:
                seconds, in_torch = measure(case, not options.no_torch)
        except Exception as error:  # the others are still worth their time
            print(f"{case.kernel:24} {case.name:40} failed: {type(error).__name__}: {error}", flush=True)
            failed += 1
            continue
        records.append(record(case, seconds, in_torch, rates))
        print(line(records[-1]), flush=True)
        if options.json is not None:
            results.write(options.json, results.KERNELS, records, environment=where)
    print(f"{len(cases)} cases, {failed} failed, in {time.perf_counter() - begun:.0f} s")
    return 1 if failed else 0


def all_cases(scene: Scene, models: Sequence[str]) -> Iterator[Case]:
    """The cases that are timed."""
    from benchmarks import kernel_cases as cases
    from benchmarks import part_cases, short_cases
    from benchmarks.sampling_cases import sampling_cases

    contexts, batches = (1024, 4096, 16384, 32768), (1, 32, 256)
    vocabularies = set()
    for model in models:
        config = read_config(model)
        if "mamba_d_state" in config:
            yield from part_cases.scan_cases(scene, model, config, (1, 64, 256), [(16, 512), (1, 8192)])
            continue
        shape = Shape.of(config, scene.dtype.itemsize)
        if shape.num_experts:
            yield from part_cases.expert_cases(scene, model, shape, (1, 2, 3, 4, 8, 16, 64, 256, 4096))
        grid = [(batch, context) for batch in batches for context in contexts]
        yield from cases.decode_attention_cases(scene, model, shape, grid)
        yield from cases.prefill_attention_cases(scene, model, shape, [(32, 256), (4, 2048), (1, 8192)])
        yield from short_cases.fresh_prefill_cases(scene, model, shape, [(32, 256), (4, 2048), (1, 8192)])
        yield from short_cases.small_batch_cases(scene, model, shape, (128, 1024, 8192))
        yield from cases.elementwise_cases(scene, model, shape, (1, 256, 8192))
        yield from cases.linear_cases(scene, model, shape, (1, 32, 256))
        vocabularies.add(shape.vocab_size)
    for vocab in sorted(vocabularies):
        yield from sampling_cases(scene, vocab, (1, 256))


def tiny_cases(scene: Scene) -> Iterator[Case]:
    """One small case of each kernel."""
    from dataclasses import replace

    from benchmarks import kernel_cases as cases
    from benchmarks import part_cases, short_cases
    from benchmarks.sampling_cases import sampling_cases

    shape = Shape.of(read_config("tiny"), scene.dtype.itemsize)
    yield from cases.decode_attention_cases(scene, "tiny", shape, [(2, 40)])
    yield from cases.prefill_attention_cases(scene, "tiny", shape, [(2, 20)])
    yield from short_cases.small_batch_cases(scene, "tiny", shape, (40,))
    yield from cases.elementwise_cases(scene, "tiny", shape, (3,))
    yield from cases.linear_cases(scene, "tiny", shape, (3,))
    yield from sampling_cases(scene, shape.vocab_size, (2,))
    sparse = replace(shape, num_experts=6, experts_per_token=2)
    yield from part_cases.expert_cases(scene, "tiny", sparse, (2, 5))
    mamba = {"mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_n_groups": 1}
    yield from part_cases.scan_cases(scene, "tiny", mamba, (2,), [(2, 3)])


def check(case: Case) -> float:
    """Run a case's kernel once against its reference; its seconds. AssertionError where they differ."""
    import torch

    inputs = case.make()
    started = time.perf_counter()
    pairs = inputs.verify() if inputs.verify is not None else []
    if inputs.verify is None:
        inputs.kernel()
    seconds = time.perf_counter() - started
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=f"{case.kernel} {case.name}")
    if inputs.torch is not None:
        inputs.torch()
    return seconds


def measure(case: Case, with_torch: bool) -> tuple[float, float | None]:
    """Median seconds of a call of the kernel, and of torch's equivalent."""
    import torch

    sets = [case.make() for _ in range(max(1, min(MOST_SETS, -(-L2_BYTES // max(1, case.num_bytes)))))]
    own = time_calls([inputs.kernel for inputs in sets])
    theirs = [inputs.torch for inputs in sets if inputs.torch is not None]
    in_torch = None
    if theirs and with_torch:
        try:
            in_torch = time_calls(theirs)
        except RuntimeError as error:  # torch may lack a kernel for these shapes
            print(f"torch's equivalent of {case.kernel} {case.name} failed: {error}", file=sys.stderr)
    del sets, theirs
    torch.cuda.empty_cache()
    return own, in_torch


def time_calls(calls: Sequence[Call], *, replays: int = 15, least_seconds: float = 2e-4) -> float:
    """Median seconds per call of a graph's replays; the graph goes through `calls` until it takes long
    enough to be timed."""
    import torch

    for call in calls:  # compile, and let libraries make their workspaces
        call()
    torch.cuda.synchronize()
    rounds = 1
    while True:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                for call in calls:
                    call()
        times = []
        for _ in range(replays):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        median = statistics.median(times[2:])
        if median >= least_seconds or rounds >= 64:
            return median / (rounds * len(calls))
        rounds = min(64, rounds * max(2, int(least_seconds / max(median, 1e-6)) + 1))


def record(case: Case, seconds: float, in_torch: float | None, rates: Rates) -> dict[str, Any]:
    """A record of "dodona.kernels/1"."""
    by_bytes, by_flops = case.num_bytes / rates.bandwidth, case.flops / rates.flops
    least = max(by_bytes, by_flops)
    return {
        "kernel": case.kernel,
        "case": case.name,
        "seconds": seconds,
        "roofline_seconds": least,
        "bound": "bytes" if by_bytes >= by_flops else "flops",
        "share": least / seconds,
        "torch_seconds": in_torch,
    }


def line(record: dict[str, Any]) -> str:
    """A record in one line of the table."""
    own, least, in_torch = record["seconds"], record["roofline_seconds"], record["torch_seconds"]
    figures = f"{1e6 * own:10.1f} {1e6 * least:10.1f} {100 * record['share']:6.1f}%"
    comparison = "" if in_torch is None else f" {1e6 * in_torch:10.1f} {in_torch / own:8.2f}"
    return f"{record['kernel']:24} {record['case']:40} {figures}{comparison}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--json", type=Path, help="write the records to this file")
    add("--only", default="", metavar="REGEX", help="only cases whose 'kernel case' matches")
    add("--models", nargs="+", default=["qwen3-0.6b", "qwen3-8b"], help="shapes to take")
    add("--tiny", action="store_true", help="small shapes against the references, in Triton's interpreter")
    add("--no-torch", action="store_true", help="don't time torch's equivalents")
    add("--bandwidth", type=float, help="bytes/s; default: as measured on such a GPU")
    add("--flops", type=float, help="operations/s; likewise")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
