"""GPU memory that an engine takes beside weights and KV blocks, at a fixed number of blocks.

    python -m benchmarks.memory --engine dodona-v1 --model qwen3-0.6b --json out.json

Starts the engine with KV blocks of `--kv-cache-memory-bytes`, then serves requests of all kinds of sampling
whose prompts fill steps of `max_num_batched_tokens`. A record has: engine, model, settings, environment,
weight_bytes (of the shape's parameters), kv_bytes, held_bytes (allocated beside these two when the engine
waits), serving_bytes (the most beside them while it serves), start_bytes (the most while it starts),
reserved_bytes (what torch's allocator held beside them at the end, graphs' memory included), and
process_bytes (what the device had less than before torch's context, beside them).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.engines import engine_class
from benchmarks.engines.base import Setup
from benchmarks.environment import describe
from benchmarks.models import model_directory, read_config
from benchmarks.throughput import DTYPE_BYTES, resolve_dtype
from benchmarks.workloads import MIXED, Ask

ENGINES = ("dodona-v1", "dodona-v2")
"""Those whose steps run in this process, where torch counts them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = _parser().parse_args(arguments)
    config = read_config(options.model)
    with model_directory(options.model) as directory:
        record = measure(options, config, directory)
    for name, value in record["values"].items():
        print(f"{options.engine} {name}: {value / 1e6:,.1f} MB")
    if options.json is not None:
        results.write(options.json, results.MEMORY, [record])
    return 0


def measure(options: argparse.Namespace, config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The record of one engine."""
    import torch

    free = torch.cuda.mem_get_info()[0]
    weight_bytes = parameter_count(directory) * DTYPE_BYTES[resolve_dtype("auto", config)]
    setup = Setup(
        directory=directory,
        dtype=resolve_dtype("auto", config),
        max_num_seqs=options.max_num_seqs,
        max_model_len=options.max_model_len,
        max_num_batched_tokens=options.max_num_batched_tokens,
        gpu_memory_utilization=0.85,
        enforce_eager=False,
        arguments={"kv_cache_memory_bytes": options.kv_cache_memory_bytes},
    )
    engine = engine_class(options.engine).load(setup)
    try:
        settings = engine.settings()
        layers, heads = config["num_hidden_layers"], config["num_key_value_heads"]
        size = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
        per_token = 2 * layers * heads * size * DTYPE_BYTES[setup.dtype]
        kv_bytes = settings["num_kv_blocks"] * settings["block_size"] * per_token
        known = weight_bytes + kv_bytes
        held, started = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        engine.generate(_asks(options, config["vocab_size"]))
        torch.cuda.synchronize()
        values = {
            "weight_bytes": weight_bytes,
            "kv_bytes": kv_bytes,
            "held_bytes": held - known,
            "start_bytes": started - known,
            "serving_bytes": torch.cuda.max_memory_allocated() - known,
            "reserved_bytes": torch.cuda.memory_reserved() - known,
            "process_bytes": free - torch.cuda.mem_get_info()[0] - known,
        }
    finally:
        engine.close()
    return {
        "engine": options.engine,
        "model": options.model,
        "settings": settings,
        "environment": describe(),
        "values": values,
    }


def parameter_count(directory: Path) -> int:
    """Parameters of the model that config.json describes, as transformers makes it; tied ones once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    return sum(parameter.numel() for parameter in model.parameters())


def _asks(options: argparse.Namespace, vocab_size: int) -> list[Ask]:
    """As many requests as there are rows, of all kinds of sampling in turn; their prompts together are three
    full steps."""
    rng = random.Random(0)
    length = max(1, 3 * options.max_num_batched_tokens // options.max_num_seqs)
    return [
        Ask(
            tuple(rng.randrange(vocab_size) for _ in range(length)), 32, _without_stops(MIXED[i % len(MIXED)])
        )
        for i in range(options.max_num_seqs)
    ]


def _without_stops(sampling: Any) -> dict[str, Any]:
    return {name: value for name, value in sampling.items() if name != "stop_token_ids"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--engine", required=True, choices=ENGINES)
    add("--model", required=True, help="a known shape (qwen3-0.6b, …) or a directory with a config.json")
    add("--json", type=Path, help="write the record to this file")
    add("--max-num-seqs", type=int, default=256)
    add("--max-model-len", type=int, default=4096)
    add("--max-num-batched-tokens", type=int, default=8192)
    add("--kv-cache-memory-bytes", type=int, default=16 << 30)
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
