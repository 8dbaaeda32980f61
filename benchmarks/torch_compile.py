"""V1 with `mode: STOCK_TORCH_COMPILE` beside V1 without it: tokens, recompilations and speed, in one run.

    python -m benchmarks.torch_compile --model qwen3-0.6b --dtype float32 bfloat16 --output compile.json

Weights are random. For each dtype the compiled engine starts, then the other; both stay. Each serves the
mixed workload: requests of many lengths, greedy and sampled, with masks and log-probabilities. Then batches
of one and of 32 greedy requests are timed, A B B A. `--timed-runs 0` leaves the times away.

A record has: model, dtype, environment, settings, start_seconds by engine, compilations (frames that torch
compiled: `at_start`, and `while_serving`, of which `recompilations` say why), tokens (requests of the mixed
workload, how many are `equal`; for each other its number, the place, and there the log-probabilities of the
plain engine's two best), and output_tokens_per_s by engine and batch, of each timed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.environment import describe
from benchmarks.models import model_directory, read_config

REQUESTS = 48
LENGTHS, OUTPUTS = (1, 3, 17, 64, 130, 400, 800), (1, 5, 16, 40)
SETTINGS = {
    "max_num_seqs": 32,
    "max_num_batched_tokens": 2048,
    "enable_prefix_caching": False,
    "num_gpu_blocks_override": 2048,
}
BATCHES = {"1": 128, "32": 64}
"""Requests of a timed batch, and the tokens of each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="qwen3-0.6b", help="a name of benchmarks.models, or a directory")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--timed-runs", type=int, default=2, help="pairs of runs of each engine and batch")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    os.environ["DODONA_USE_V2_MODEL_RUNNER"] = "0"
    records = []
    with model_directory(options.model) as directory:
        for dtype in options.dtype:
            records.append(measure(options, directory, dtype))
            print(json.dumps(records[-1]), flush=True)
    if options.output is not None:
        results.write(options.output, results.TORCH_COMPILE, records)
    return 0


def measure(options: argparse.Namespace, directory: Path, dtype: str) -> dict[str, Any]:
    """The record of a dtype."""
    from torch._dynamo.utils import counters, set_compilation_metrics_limit

    from dodona import LLM

    counters.clear()
    set_compilation_metrics_limit(10_000)
    config = read_config(options.model)
    length, vocab_size = min(1024, config["max_position_embeddings"]), config["vocab_size"]
    settings = {**SETTINGS, "max_model_len": length, "dtype": dtype, "device": options.device}
    engines, seconds = {}, {}
    with ExitStack() as stack:
        for name, mode in {"compiled": "STOCK_TORCH_COMPILE", "plain": "NONE"}.items():
            begin = time.perf_counter()
            llm = LLM(
                str(directory),
                load_format="dummy",
                skip_tokenizer_init=True,
                compilation_config={"mode": mode},
                **settings,
            )
            engines[name] = stack.enter_context(llm)
            seconds[name] = time.perf_counter() - begin
            _say(f"{dtype}: {name} started in {seconds[name]:.1f} s", **_frames())
        at_start, reasons = _frames(), len(_recompilations())
        outputs = {name: serve_mixed(llm, vocab_size, length) for name, llm in engines.items()}
        compilations = {
            "at_start": at_start,
            "while_serving": {key: count - at_start.get(key, 0) for key, count in _frames().items()},
            "recompilations": _recompilations()[reasons:],
        }
        tokens = compare(outputs["compiled"], outputs["plain"])
        _say(f"{dtype}: mixed", compilations=compilations, tokens=tokens)
        speeds = measure_speeds(engines, vocab_size, options.timed_runs)
        compilations["while_timed"] = {
            key: count - at_start.get(key, 0) - compilations["while_serving"].get(key, 0)
            for key, count in _frames().items()
        }
    return {
        "model": options.model,
        "dtype": dtype,
        "environment": describe(),
        "settings": settings,
        "start_seconds": seconds,
        "compilations": compilations,
        "tokens": tokens,
        "output_tokens_per_s": speeds,
    }


def serve_mixed(llm: Any, vocab_size: int, max_model_len: int) -> list[Any]:
    """The outputs of the mixed workload."""
    from dodona import SamplingParams

    rng = random.Random(5)
    lengths = [length for length in LENGTHS if length + max(OUTPUTS) <= max_model_len]
    prompts = [[rng.randrange(3, vocab_size) for _ in range(rng.choice(lengths))] for _ in range(REQUESTS)]
    masks = {"top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}
    params = [
        SamplingParams(
            max_tokens=rng.choice(OUTPUTS),
            ignore_eos=True,
            temperature=0.7 if i % 2 else 0.0,
            seed=i,
            logprobs=2,
            **(masks if i % 3 == 0 else {}),
        )
        for i in range(REQUESTS)
    ]
    outputs: list[Any] = llm.generate(prompts, params, use_tqdm=False)
    failed = [output.error for output in outputs if output.error]
    if failed:
        raise ValueError(f"{len(failed)} requests failed: {failed[0]}")
    return outputs


def compare(compiled: Sequence[Any], plain: Sequence[Any]) -> dict[str, Any]:
    """How many requests have the same tokens, and where the others part."""
    differing = []
    for number, pair in enumerate(zip(compiled, plain, strict=True)):
        ours, theirs = (list(output.outputs[0].token_ids) for output in pair)
        if ours == theirs:
            continue
        place = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(theirs) - 1
        )
        best = sorted((entry.logprob for entry in pair[1].outputs[0].logprobs[place].values()), reverse=True)
        differing.append({"request": number, "place": place, "logprobs": best[:2]})
    return {"requests": len(plain), "equal": len(plain) - len(differing), "differing": differing}


def measure_speeds(engines: dict[str, Any], vocab_size: int, runs: int) -> dict[str, dict[str, list[float]]]:
    """Output tokens per second of greedy batches: by engine and batch, of each run."""
    from dodona import SamplingParams

    rng = random.Random(6)
    found: dict[str, dict[str, list[float]]] = {name: {batch: [] for batch in BATCHES} for name in engines}
    first, second = engines
    for batch, count in BATCHES.items():
        prompts = [[rng.randrange(3, vocab_size) for _ in range(128)] for _ in range(int(batch))]
        for name in [first, second, second, first] * runs:
            params = SamplingParams(max_tokens=count, ignore_eos=True, temperature=0.0)
            begin = time.perf_counter()
            engines[name].generate(prompts, params, use_tqdm=False)
            found[name][batch].append(count * len(prompts) / (time.perf_counter() - begin))
            _say(f"{name} batch {batch}: {found[name][batch][-1]:.1f} tokens/s")
    return found


def _frames() -> dict[str, int]:
    """Frames that torch has compiled or tried to, by what came of it."""
    from torch._dynamo.utils import counters

    return dict(counters["frames"])


def _recompilations() -> list[str]:
    """Why frames were compiled again, one line each."""
    from torch._dynamo.utils import get_compilation_metrics

    found = (getattr(metrics, "recompile_reason", None) for metrics in get_compilation_metrics())
    return [" ".join(str(reason).split())[:200] for reason in found if reason]


def _say(what: str, **values: Any) -> None:
    print(what, json.dumps(values) if values else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
