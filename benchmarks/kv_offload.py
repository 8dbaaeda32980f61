"""KV blocks that come back from the host against blocks that are computed, and copies against plain ones.

    python -m benchmarks.kv_offload --model qwen3-8b --runner v2 --output offload.json

Three measurements on one GPU, a record each:

- "ttft": seconds to the first token of a prompt whose KV is on the host, and of one that is computed, on the
  same engine. The cache is too small for two prompts, so that each run of another one displaces it. The
  tokens of both are compared, and those of the first with what a prefix in the GPU's cache gives: there the
  same kernels compute the prompt's last tokens. For prompts whose tokens differ, "differences" says how
  much more probable each way's first other token was than the other way's (log-probabilities): a tie in the
  model's dtype is no more than its rounding.
- "copies": bytes/s of `OffloadingConnector`'s copies of the prompt's blocks, each way, and of a plain copy of
  as many bytes between pinned memory and the GPU; and what the host takes to begin copies of some blocks.
- "cost": seconds of a workload in which no prompt is found again, on an engine with the connector ("with")
  and one without it beside it, in turns. What the stores cost is in it. A third engine ("unstored") has the
  connector, and room for few blocks: almost nothing is copied, all else is done. "prefill_seconds" are those
  until each request has its first token, of further runs that are streamed.

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
from contextlib import ExitStack
from dataclasses import dataclass
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
    plain = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    explaining = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=5)
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

        def run(seed: int, params: SamplingParams = plain) -> _Run:
            prompt = _prompt(length, vocab_size, seed)
            begin, first, cached = time.perf_counter(), 0.0, 0
            tokens: list[int] = []
            logprobs: list[dict[int, float]] = []
            for piece in llm.stream([prompt], params):
                if not tokens:
                    first = time.perf_counter() - begin
                output = piece.outputs[0]
                tokens += output.token_ids
                logprobs += [{key: entry[key].logprob for key in entry} for entry in output.logprobs or ()]
                cached = piece.num_cached_tokens
            time.sleep(0.2)  # stores end
            return _Run(first, cached, tokens, logprobs)

        def run_each_way(number: int, params: SamplingParams) -> tuple[_Run, _Run, _Run]:
            """A new prompt computed, loaded from the host, and found in the GPU's cache."""
            computed = run(number, params)
            if computed.num_cached_tokens:
                raise RuntimeError(f"{computed.num_cached_tokens} tokens of a new prompt were found")
            run(100_000 + number)  # displaces it
            loaded = run(number, params)
            if loaded.num_cached_tokens < length - block_size:
                raise RuntimeError(f"only {loaded.num_cached_tokens} tokens of {length} came from the host")
            return computed, loaded, run(number, params)

        for seed in (5001, 5002, 5001, 5002):  # both kinds once before it counts
            run(seed)
        timed = [run_each_way(number, plain) for number in range(arguments.repetitions)]
        explained = [run_each_way(1000 + number, explaining) for number in range(arguments.repetitions)]
    _forget()
    computed, loaded = ([runs[way].first_token_s for runs in timed] for way in (0, 1))
    both = [*timed, *explained]
    return {
        "computed_s": computed,
        "loaded_s": loaded,
        "ratio": statistics.median(computed) / statistics.median(loaded),
        "equal_tokens": f"{sum(a.tokens == b.tokens for a, b, _ in both)} of {len(both)}",
        "equal_to_cached": f"{sum(b.tokens == c.tokens for _, b, c in both)} of {len(both)}",
        "differences": [_difference(a, b) for a, b, _ in explained if a.tokens != b.tokens],
    }


@dataclass(frozen=True, slots=True)
class _Run:
    first_token_s: float
    num_cached_tokens: int
    tokens: list[int]
    logprobs: list[dict[int, float]]
    """Per token, of the most probable ones, where they were asked for."""


def _difference(a: _Run, b: _Run) -> dict[str, Any]:
    """Where two runs of a prompt part: the place, and by how much each preferred its own token to the other's
    (None where the other's was not among the most probable)."""
    place = next(i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=True)) if x != y)
    found: list[float | None] = []
    for mine, other in ((a, b), (b, a)):
        values = mine.logprobs[place]
        theirs = values.get(other.tokens[place])
        found.append(None if theirs is None else values[mine.tokens[place]] - theirs)
    return {"place": place, "computed_prefers_by": found[0], "loaded_prefers_by": found[1]}


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
    sizes = {
        "max_model_len": length + arguments.output_tokens,
        "max_num_seqs": arguments.requests,
        "num_gpu_blocks_override": arguments.requests * -(-(length + arguments.output_tokens + 16) // 16),
    }
    offloading = {"without": None, "with": arguments.offloading_gib, "unstored": 16 * 2**-10}
    seconds: dict[str, list[float]] = {name: [] for name in offloading}
    prefill: dict[str, list[float]] = {name: [] for name in offloading}
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                _llm(directory, arguments, **sizes, **({} if gib is None else {"kv_offloading_size": gib}))
            )
            for name, gib in offloading.items()
        }
        for turn in range(arguments.repetitions + 1):
            for name in list(engines)[:: 1 if turn % 2 else -1]:
                first = 10_000 * (turn + 1)
                prompts = [_prompt(length, vocab_size, first + n) for n in range(arguments.requests)]
                begin = time.perf_counter()
                engines[name].generate(prompts, params, use_tqdm=False)
                if turn:  # the first one warms up
                    seconds[name].append(time.perf_counter() - begin)
        for turn in range(arguments.repetitions):
            for name in list(engines)[:: 1 if turn % 2 else -1]:
                first = 1_000_000 + 10_000 * turn
                prompts = [_prompt(length, vocab_size, first + n) for n in range(arguments.requests)]
                prefill[name].append(_prefill_seconds(engines[name], prompts, params))
    _forget()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": seconds,
        "prefill_seconds": prefill,
        "requests": arguments.requests,
        "prompt_tokens": length,
        "output_tokens": arguments.output_tokens,
        "slower_by": medians["with"] / medians["without"] - 1,
        "unstored_slower_by": medians["unstored"] / medians["without"] - 1,
        "prefill_slower_by": statistics.median(prefill["with"]) / statistics.median(prefill["without"]) - 1,
    }


def _prefill_seconds(llm: Any, prompts: list[list[int]], params: Any) -> float:
    """Until each request has a token."""
    begin, waiting, last = time.perf_counter(), len(prompts), 0.0
    seen: set[str] = set()
    for piece in llm.stream(prompts, params):
        if piece.request_id not in seen and piece.outputs[0].token_ids:
            seen.add(piece.request_id)
            waiting -= 1
            last = last if waiting else time.perf_counter() - begin
    return last


def _forget() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
