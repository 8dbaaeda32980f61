"""KV blocks that come back from the host against blocks that are computed, and copies against plain ones.

    python -m benchmarks.kv_offload --model qwen3-8b --runner v2 --output offload.json

Three measurements on one GPU, a record each:

- "ttft": seconds to the first token of a prompt whose KV is on the host, and of one that is computed, on the
  same engine. The cache is too small for two prompts, so that each run of another one displaces it. The
  tokens of both are compared, and those of the first with what a prefix in the GPU's cache gives: there the
  same kernels compute the prompt's last tokens.
- "copies": bytes/s of `OffloadingConnector`'s copies of the prompt's blocks, each way, and of a plain copy of
  as many bytes between pinned memory and the GPU; and what the host takes to begin copies of some blocks.
- "cost": seconds of a workload in which no prompt is found again, on an engine with the connector and one
  without it beside it, in turns. What the stores cost is in it.

`--only` names those that are wanted; each is written once it is made.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.environment import describe
from benchmarks.models import model_directory, read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="qwen3-8b", help="a name of benchmarks.models, or a directory")
    parser.add_argument("--runner", choices=("v1", "v2"), default="v2")
    parser.add_argument("--prompt-tokens", type=int, default=8192)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64, help="of the workload that finds nothing")
    parser.add_argument("--output-tokens", type=int, default=128, help="of each of its requests")
    parser.add_argument("--offloading-gib", type=float, default=16.0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--only", nargs="+", choices=("copies", "ttft", "cost"), default=["copies", "ttft", "cost"]
    )
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    os.environ["DODONA_USE_V2_MODEL_RUNNER"] = {"v1": "0", "v2": "1"}[arguments.runner]
    with model_directory(arguments.model) as directory:
        vocab_size = int(read_config(arguments.model)["vocab_size"])
        records: list[dict[str, Any]] = []
        head = {"environment": describe(), "arguments": {**vars(arguments), "output": arguments.output.name}}
        measurements = {
            "copies": lambda: _copies(arguments),
            "ttft": lambda: _ttft(directory, arguments, vocab_size),
            "cost": lambda: _cost(directory, arguments, vocab_size),
        }
        for name in arguments.only:
            records.append({"measurement": name, "values": measurements[name]()})
            results.write(arguments.output, results.KV_OFFLOAD, records, **head)
            print(json.dumps(records[-1], indent=1), flush=True)


def _llm(directory: Path, arguments: argparse.Namespace, **more: Any) -> Any:
    from dodona.runners.llm import LLM

    llm = LLM(directory, load_format="dummy", skip_tokenizer_init=True, dtype=arguments.dtype, **more)
    if llm.verdict.runner != arguments.runner:
        raise RuntimeError(f"asked for runner {arguments.runner}, but the verdict is {llm.verdict.runner}")
    return llm


def _prompt(length: int, vocab_size: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(vocab_size // 2, vocab_size) for _ in range(length)]


def _ttft(directory: Path, arguments: argparse.Namespace, vocab_size: int) -> dict[str, Any]:
    from dodona.runners.sampling.params import SamplingParams

    length, block_size = arguments.prompt_tokens, 16
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    blocks = -(-(length + 8) // block_size)
    with _llm(
        directory,
        arguments,
        block_size=block_size,
        max_model_len=length + 16,
        max_num_batched_tokens=max(length, 256),
        max_num_seqs=8,
        num_gpu_blocks_override=blocks + blocks // 2,
        kv_offloading_size=arguments.offloading_gib,
    ) as llm:

        def run(seed: int) -> tuple[float, int, list[int]]:
            prompt = _prompt(length, vocab_size, seed)
            begin, first, tokens, cached = time.perf_counter(), 0.0, [], 0
            for piece in llm.stream([prompt], params):
                if not tokens:
                    first = time.perf_counter() - begin
                tokens += piece.outputs[0].token_ids
                cached = piece.num_cached_tokens
            time.sleep(0.2)  # stores end
            return first, cached, tokens

        for seed in (5001, 5002, 5001, 5002):  # both kinds once before it counts
            run(seed)
        computed, loaded, equal, equal_to_cached = [], [], 0, 0
        for seed in range(arguments.repetitions):
            seconds, cached, tokens = run(seed)
            if cached:
                raise RuntimeError(f"{cached} tokens of a new prompt were found")
            computed.append(seconds)
            run(1000 + seed)  # displaces it
            seconds, cached, again = run(seed)
            if cached < length - block_size:
                raise RuntimeError(f"only {cached} tokens of {length} came from the host")
            loaded.append(seconds)
            equal += tokens == again
            _, _, cached_tokens = run(seed)  # what was loaded is in the cache
            equal_to_cached += again == cached_tokens
    _forget()
    return {
        "computed_s": computed,
        "loaded_s": loaded,
        "ratio": statistics.median(computed) / statistics.median(loaded),
        "equal_tokens": f"{equal} of {arguments.repetitions}",
        "equal_to_cached": f"{equal_to_cached} of {arguments.repetitions}",
    }


def _copies(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {}
    from dodona.runners.kv_transfer.block_layout import BlockLayout, LayerKV
    from dodona.runners.kv_transfer.offloading.host_memory import PinnedHostMemory

    config = read_config(arguments.model)
    layers, heads = int(config["num_hidden_layers"]), int(config["num_key_value_heads"])
    count, size = arguments.prompt_tokens // 16, int(config["head_dim"])
    caches = [
        torch.zeros(2 * count, 2, heads, 16, size, dtype=torch.bfloat16, device="cuda") for _ in range(layers)
    ]
    views = [LayerKV(cache[:, 0].transpose(1, 2), cache[:, 1].transpose(1, 2)) for cache in caches]
    layout = BlockLayout(views)
    memory = PinnedHostMemory(layout, 2 * count)
    block_ids = random.Random(0).sample(range(2 * count), count)
    slots = list(range(count))
    total = count * layout.bytes_per_block
    host = torch.empty(total, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(total, dtype=torch.uint8, device="cuda")
    found: dict[str, Any] = {
        "bytes": total,
        "store": _rate(total, lambda: memory.store(block_ids, slots)),
        "load": _rate(total, lambda: memory.load(block_ids, slots)),
        "plain_to_host": _rate(total, lambda: host.copy_(device, non_blocking=True)),
        "plain_to_gpu": _rate(total, lambda: device.copy_(host, non_blocking=True)),
    }
    found["host_seconds"] = {
        f"{name} {count}": _host_seconds(
            lambda copy=copy, count=count: copy(block_ids[:count], slots[:count])
        )
        for count in (2, len(slots))
        for name, copy in (("store", memory.store), ("load", memory.load))
    }
    memory.close()
    found["store_share"] = found["store"] / found["plain_to_host"]
    found["load_share"] = found["load"] / found["plain_to_gpu"]
    return found


def _host_seconds(copy: Callable[[], object]) -> float:
    """What the host takes to begin a copy, the median of five."""
    import torch

    seconds = []
    for _ in range(5):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        copy()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _rate(total: int, copy: Callable[[], object]) -> float:
    """Bytes/s, the median of seven after two."""
    import torch

    rates = []
    for _ in range(9):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        copy()
        torch.cuda.synchronize()
        rates.append(total / (time.perf_counter() - begin))
    return statistics.median(rates[2:])


def _cost(directory: Path, arguments: argparse.Namespace, vocab_size: int) -> dict[str, Any]:
    from dodona.runners.sampling.params import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=arguments.output_tokens, ignore_eos=True)
    length = min(1024, arguments.prompt_tokens)
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    sizes = {
        "max_model_len": length + arguments.output_tokens,
        "max_num_seqs": arguments.requests,
        "num_gpu_blocks_override": arguments.requests * -(-(length + arguments.output_tokens + 16) // 16),
    }
    with (
        _llm(directory, arguments, **sizes) as without,
        _llm(directory, arguments, **sizes, kv_offloading_size=arguments.offloading_gib) as offloading,
    ):
        for turn in range(arguments.repetitions + 1):
            for name, llm in (("without", without), ("with", offloading))[:: 1 if turn % 2 else -1]:
                first = 10_000 * (turn + 1)
                prompts = [_prompt(length, vocab_size, first + n) for n in range(arguments.requests)]
                begin = time.perf_counter()
                llm.generate(prompts, params, use_tqdm=False)
                if turn:  # the first one warms up
                    seconds[name].append(time.perf_counter() - begin)
    _forget()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": seconds,
        "requests": arguments.requests,
        "prompt_tokens": length,
        "output_tokens": arguments.output_tokens,
        "slower_by": medians["with"] / medians["without"] - 1,
    }


def _forget() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
