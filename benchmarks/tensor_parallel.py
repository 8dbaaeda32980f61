"""V2 on one, two and four GPUs of a machine, and vLLM on two, in one run: tokens per second and their ratios.

    python -m benchmarks.tensor_parallel --vllm /path/to/unpacked/vllm \
        --json-dir benchmarks/results/today -- --model qwen3-8b --workload bs1 --workload nano256

What follows `--` goes to `benchmarks.throughput` as it is. One process of each engine stays alive, and they
take turns, a workload at a time: each is warmed up, then the engines run in this order and back. Those on two
GPUs share a pair, the one on one GPU has the last; each has room for the KV of `--kv-tokens` tokens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import results, throughput
from benchmarks.models import read_config
from benchmarks.roofline import Shape
from benchmarks.side_by_side import streams
from benchmarks.turns import alternate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the processes, print the ratios."""
    options = _parser().parse_args(arguments)
    passed = options.throughput[1:] if options.throughput[:1] == ["--"] else options.throughput
    gpus = _visible_gpus()
    sizes = [size for size in options.sizes if size <= len(gpus)]
    asked = throughput.parser().parse_args(["--engine", "dodona-v2", *passed])
    config = read_config(asked.model)
    shape = Shape.of(config, throughput.DTYPE_BYTES[throughput.resolve_dtype(asked.dtype, config)])
    commands, environments = {}, {}

    def add(side: str, engine: str, size: int, path: Path | None) -> None:
        chosen = gpus[-1:] if size == 1 else gpus[:size]
        sets = {
            "tensor_parallel_size": size,
            "kv_cache_memory_bytes": options.kv_tokens * shape.kv_bytes_per_token // size,
        }
        commands[side] = [
            *(sys.executable, "-m", "benchmarks.throughput", "--engine", engine, *passed),
            *(part for name, value in sets.items() for part in ("--set", f"{name}={value}")),
            *("--repeat", "2", "--take-turns", "--json", str(options.json_dir / f"{side}.json")),
        ]
        paths = [str(path)] if path is not None else []
        known = os.environ.get("PYTHONPATH")
        environments[side] = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": ",".join(chosen),
            "PYTHONPATH": os.pathsep.join([*paths, *([known] if known else [])]),
        }

    for size in sizes:
        add(f"tp{size}", "dodona-v2", size, None)
    if options.vllm is not None:
        add("vllm-tp2", "vllm", 2, options.vllm)
    whole = alternate(commands, environments, streams(asked), patience=options.patience)
    print(table(options.json_dir, list(commands)))
    return 0 if whole else 1


def table(folder: Path, sides: Sequence[str]) -> str:
    """Markdown: by workload each side's tokens per second (mean of its runs, and they), and its ratios to one
    GPU and to vLLM."""
    found: dict[str, dict[str, list[float]]] = {}
    for side in sides:
        if not (folder / f"{side}.json").exists():
            continue
        for record in results.read(folder / f"{side}.json")["records"]:
            tokens = record["workload"]["output_tokens"]
            rates = [tokens / run["seconds"] for run in record["runs"]]
            found.setdefault(record["workload"]["name"], {})[side] = rates
    lines = ["| workload | engine | tok/s | runs | / one GPU | / vLLM on two |", "|---|---|---|---|---|---|"]
    for name, rates_of in found.items():
        for side, rates in rates_of.items():
            runs = ", ".join(f"{rate:,.0f}" for rate in rates)
            ratios = " | ".join(_ratio(rates_of, side, other) for other in ("tp1", "vllm-tp2"))
            lines.append(f"| {name} | {side} | {statistics.fmean(rates):,.0f} | {runs} | {ratios} |")
    return "\n".join(lines)


def _visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them, where it is set."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def _ratio(rates_of: Mapping[str, Sequence[float]], side: str, other: str) -> str:
    if other not in rates_of:
        return ""
    return f"{statistics.fmean(rates_of[side]) / statistics.fmean(rates_of[other]):.3f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tensor_parallel", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--vllm", type=Path, help="a folder with an unpacked vLLM, which runs on two GPUs")
    add("--sizes", type=int, nargs="+", default=[1, 2, 4], help="tensor_parallel_size of V2's engines")
    add("--kv-tokens", type=int, default=320_000, help="tokens that each engine has KV blocks for")
    add("--patience", type=float, help="seconds for the starts; what is late is left out")
    add("--json-dir", type=Path, required=True, help="a folder for the files of results")
    add("throughput", nargs=argparse.REMAINDER, help="-- and the arguments of benchmarks.throughput")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
