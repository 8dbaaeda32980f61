"""What drafts cost and bring in vLLM, as `benchmarks.speculation` asks it of V2.

    PYTHONPATH=/path/to/unpacked/vllm:. python -m benchmarks.speculation_vllm --model qwen3-8b \\
        --forced-acceptance 0 2.5 --output vllm.json

vLLM has a switch of its own that forces acceptance: `rejection_sample_method: synthetic`. Model, head,
prompts and lengths are those of `benchmarks.speculation`; the first engine is without drafts, here too.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.engines.vllm import ENVIRONMENT
from benchmarks.environment import describe
from benchmarks.models import model_directory, read_config
from benchmarks.speculation import against_plain, head_directory, random_prompt, recorded, report


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="qwen3-8b", help="a name of benchmarks.models, or a directory")
    parser.add_argument("--num-speculative-tokens", type=int, default=4)
    parser.add_argument("--forced-acceptance", type=float, nargs="*", default=[0.0, 2.5])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.85)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    raw = read_config(arguments.model)
    with model_directory(arguments.model) as directory, head_directory(raw) as head:
        found = [
            measure(directory, head, raw, arguments, forced)
            for forced in (None, *arguments.forced_acceptance)
        ]
    records = [{**one, "against_plain": against_plain(one, found[0])} for one in found]
    import vllm

    return report(arguments, {**describe(), "vllm": vllm.__version__}, records)


def measure(
    directory: Path, head: Path, raw: dict[str, Any], arguments: argparse.Namespace, forced: float | None
) -> dict[str, Any]:
    """Seconds and tokens/s of one engine, by batch size; forced: how many drafts of a row each step accepts,
    None for no drafts."""
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from vllm import LLM, SamplingParams

    speculative = None
    if forced is not None:
        speculative = {
            "method": "eagle3",
            "model": str(head),
            "num_speculative_tokens": arguments.num_speculative_tokens,
            "rejection_sample_method": "synthetic",
            "synthetic_acceptance_length": 1 + forced,
        }
    llm = LLM(
        model=str(directory),
        load_format="dummy",
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        disable_log_stats=False,
        max_num_seqs=max(arguments.batch_sizes),
        max_model_len=arguments.prompt_tokens + arguments.output_tokens + 8,
        gpu_memory_utilization=arguments.gpu_memory_utilization,
        speculative_config=None if speculative is None else dict(speculative),  # vLLM adds objects to it
    )
    params = SamplingParams(
        temperature=0.0, max_tokens=arguments.output_tokens, ignore_eos=True, detokenize=False
    )
    result: dict[str, Any] = {
        "speculative_config": recorded(speculative),
        "forced_acceptance": forced,
        "note": "" if forced is None else "acceptance was forced, and outputs mean nothing",
        "mean_acceptance_length": None,
        "batches": {},
        "profile": None,
    }
    for batch in arguments.batch_sizes:
        prompts = [
            {"prompt_token_ids": random_prompt(raw, arguments.prompt_tokens, seed)} for seed in range(batch)
        ]
        seconds, steps = [], []
        for repetition in range(arguments.repetitions + 1):
            before = _accepted(llm)
            begin = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            elapsed = time.perf_counter() - begin
            if repetition:  # the first one warms up
                seconds.append(elapsed)
                tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
                steps.append((tokens - _accepted(llm)["accepted_tokens"] + before["accepted_tokens"]) / batch)
        taken = statistics.median(seconds)
        result["batches"][batch] = {
            "seconds": taken,
            "output_tokens_per_second": batch * arguments.output_tokens / taken,
            "steps": statistics.median(steps),
            "seconds_per_step": taken / statistics.median(steps),
        }
    if forced is not None:
        counts = _accepted(llm)
        result["mean_acceptance_length"] = 1 + counts["accepted_tokens"] / counts["drafts"]
    del llm
    gc.collect()
    return result


def _accepted(llm: Any) -> dict[str, int]:
    """vLLM's counters of the drafts that were verified and accepted since the engine's start."""
    names = {
        "vllm:spec_decode_num_drafts": "drafts",
        "vllm:spec_decode_num_accepted_tokens": "accepted_tokens",
    }
    counts = dict.fromkeys(names.values(), 0)
    for metric in llm.get_metrics():
        if metric.name in names:
            counts[names[metric.name]] += metric.value
    return counts


if __name__ == "__main__":
    main()
