"""Times single steps of runner V2 at a model's shape with random weights: decode at some batch sizes, and a
prefill.

    PYTHONPATH=src python -m benchmarks.v2_step --context 1024 --batch 1 --batch 256

Prints one JSON line per measurement: milliseconds from launch to the step's result, and host milliseconds to
launch it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def make_runner(directory: Path, max_num_seqs: int, max_model_len: int) -> Any:
    from dodona.oracle.config import EngineConfig
    from dodona.runners.v2.runner import V2Runner

    (directory / "config.json").write_text(json.dumps(QWEN3_0_6B))
    config = EngineConfig.from_flat(
        str(directory), load_format="dummy", max_num_seqs=max_num_seqs, max_model_len=max_model_len
    )
    runner = V2Runner(SimpleNamespace(config=config))
    started = time.perf_counter()
    runner.load_model()
    loaded = time.perf_counter()
    available = runner.determine_available_memory()
    runner.initialize_kv_cache(available // runner.get_kv_cache_spec().bytes_per_block)
    profiled = time.perf_counter()
    runner.warm_up()
    warm = time.perf_counter()
    runner.capture_graphs()
    report(
        what="start",
        load_s=loaded - started,
        profile_s=profiled - loaded,
        warm_up_s=warm - profiled,
        capture_s=time.perf_counter() - warm,
        kv_gib=available / 2**30,
    )
    return runner


def report(**values: Any) -> None:
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}), flush=True)


class Bench:
    """Steps of requests that all have the same length."""

    def __init__(self, runner: Any, block_size: int = 16) -> None:
        from dodona.runners.sampling_params import SamplingParams

        self.runner = runner
        self.block_size = block_size
        self.params = SamplingParams(temperature=0.6, max_tokens=None)
        self.step = 0

    def prefill(self, rows: range, length: int, room: int) -> float:
        """Compute prompts of `length` tokens in `rows`, all in one step. Returns its seconds."""
        from dodona.runners.interface import NewRequest

        blocks = -(-(length + room) // self.block_size)
        new = [
            NewRequest(
                request_id=f"bench-{row}", row=row, token_ids=[7 + (row + i) % 1000 for i in range(length)],
                num_prompt_tokens=length, num_computed_tokens=0,
                block_ids=range(row * blocks, (row + 1) * blocks), sampling_params=self.params, seed=row,
            )
            for row in rows
        ]  # fmt: skip
        started = time.perf_counter()
        self._launch(new, list(rows), [length] * len(rows), [0] * len(rows), 0).result()
        return time.perf_counter() - started

    def decode(self, batch: int, start: int, steps: int) -> tuple[list[float], list[float]]:
        """Decode with two steps under way. Returns seconds between results, and host seconds per launch."""
        rows, pending = list(range(batch)), deque()
        between, launches = [], []
        last = time.perf_counter()
        for i in range(steps):
            begun = time.perf_counter()
            pending.append(self._launch([], rows, [1] * batch, [start + i] * batch, batch))
            launches.append(time.perf_counter() - begun)
            if len(pending) == self.runner.max_steps_in_flight:
                pending.popleft().result()
                now = time.perf_counter()
                between.append(now - last)
                last = now
        for step in pending:
            step.result()
        return between[2:], launches[2:]

    def _launch(self, new: Any, rows: list[int], tokens: list[int], computed: list[int], decodes: int) -> Any:
        from dodona.runners.interface import SchedulerOutput

        self.step += 1
        self.runner.execute_model(
            SchedulerOutput(
                step=self.step, freed_rows=(), new_requests=new, new_blocks=(), rows=rows, num_tokens=tokens,
                num_computed_tokens=computed, samples=[True] * len(rows), num_decodes=decodes,
            )
        )  # fmt: skip
        return self.runner.sample_tokens()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, action="append", default=None)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--profile", action="store_true", help="also print the GPU time of each kernel")
    arguments = parser.parse_args()
    import torch
    import triton

    if not torch.cuda.is_available():
        print("runner V2 needs an NVIDIA GPU; torch finds none", file=sys.stderr)
        return 2
    report(gpu=torch.cuda.get_device_name(), torch=torch.__version__, triton=triton.__version__)
    batches = arguments.batch or [1, 32, 256]
    with tempfile.TemporaryDirectory() as directory:
        runner = make_runner(Path(directory), max(batches), arguments.context + arguments.steps + 64)
        bench = Bench(runner)
        for length in (256, 2048, 8192):
            count = 8192 // length
            if count > max(batches) or length > arguments.context:
                continue
            times = [bench.prefill(range(count), length, 16) for _ in range(4)]
            report(what="prefill", prompts=count, tokens=8192, ms=min(times) * 1e3)
        for batch in batches:
            at_once = max(1, 8192 // arguments.context)
            for first in range(0, batch, at_once):
                bench.prefill(
                    range(first, min(batch, first + at_once)), arguments.context, arguments.steps + 16
                )
            between, launches = bench.decode(batch, arguments.context, arguments.steps)
            report(
                what="decode",
                batch=batch,
                context=arguments.context,
                ms=statistics.median(between) * 1e3,
                host_ms=statistics.median(launches) * 1e3,
                tokens_per_s=batch / statistics.median(between),
            )
            if arguments.profile:
                print_kernels(bench, batch, arguments.context + arguments.steps)
        runner.shutdown()
    return 0


def print_kernels(bench: Bench, batch: int, start: int) -> None:
    """GPU microseconds per decode step of each kernel, largest first."""
    from torch.profiler import ProfilerActivity, profile

    steps = 10
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        bench.decode(batch, start, steps)
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
    for event in events[:12]:
        report(
            batch=batch,
            kernel=event.key[:70],
            us_per_step=event.self_device_time_total / steps,
            launches_per_step=event.count / steps,
        )


if __name__ == "__main__":
    sys.exit(main())
