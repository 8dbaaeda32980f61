"""What drafts cost and bring on V2, against decoding without them, in one run.

    python -m benchmarks.speculation --model qwen3-8b --forced-acceptance 0 2.5 --output speculation.json

Weights are random, so nothing that a draft says would be accepted. `--forced-acceptance N` makes each step
accept N drafts of each row, whatever the model says (with a fraction: sometimes one more). Outputs mean
nothing then; time does. It is a switch of this program alone, and the report says so, and it adds one small
launch to a step. N = 0 gives what drafts cost; so does `none`, which forces nothing, where the weights are
random.

The draft is an EAGLE3 head of one layer in the shape of the model, with a vocabulary of 32,000, or with
`--method ngram` a lookup in prompts that repeat themselves. Each engine runs every batch size; they come in
turns; the first is without drafts. `--profile-tokens N` adds where the time of a step goes, over N tokens of
one request: on the GPU until the step's tokens are in the state, then until its drafts are there, and the
wait for the next step.

`seconds_per_step` is all of the time by the number of steps, prompts and the first steps among them;
`median_step_seconds` is the median from the sampling of one step to that of the next. Each batch size goes to
standard error once it is measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.environment import describe
from benchmarks.models import model_directory, read_config
from benchmarks.profile_step import kernel_spans, kernel_table

DRAFT_VOCABULARY = 32_000


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="qwen3-8b", help="a name of benchmarks.models, or a directory")
    parser.add_argument("--method", choices=("eagle3", "ngram"), default="eagle3")
    parser.add_argument("--num-speculative-tokens", type=int, default=4)
    parser.add_argument(
        "--forced-acceptance", type=_forced, nargs="+", default=[0.0, 2.5], metavar="N",
        help="drafts that each step accepts, by force: benchmark only; 'none': what the model accepts",
    )  # fmt: skip
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--profile-tokens", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    most = arguments.num_speculative_tokens
    if any(n is not None and not 0 <= n <= most for n in arguments.forced_acceptance):
        parser.error(f"--forced-acceptance: expected numbers from 0 to --num-speculative-tokens, {most}")
    raw = read_config(arguments.model)
    with model_directory(arguments.model) as directory, head_directory(raw) as head:
        speculative = {"method": "ngram", "num_speculative_tokens": most}
        if arguments.method == "eagle3":
            speculative = {"method": "eagle3", "model": str(head), "num_speculative_tokens": most}
        plain = _measure(directory, raw, arguments, None, None)
        found = [
            _measure(directory, raw, arguments, speculative, forced) for forced in arguments.forced_acceptance
        ]
    records = [{**one, "against_plain": against_plain(one, plain)} for one in (plain, *found)]
    return report(arguments, describe(), records)


def report(
    arguments: argparse.Namespace, environment: dict[str, str], records: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write the records to `--output` where it is given, print them, and return what was printed."""
    head = {
        "environment": environment,
        "arguments": {**vars(arguments), "output": arguments.output and arguments.output.name},
    }
    if arguments.output is not None:
        results.write(arguments.output, results.SPECULATION, records, **head)
    printed = {**head, "records": records}
    print(json.dumps(printed, indent=1))
    return printed


def recorded(speculative: dict[str, Any] | None) -> dict[str, Any] | None:
    """A `speculative_config` for a record, with the name of the head's directory in place of its path."""
    if speculative is None or "model" not in speculative:
        return speculative
    return {**speculative, "model": Path(speculative["model"]).name}


def _forced(text: str) -> float | None:
    return None if text == "none" else float(text)


@contextmanager
def _sampling_times() -> Iterator[list[float]]:
    """The times at which engines that start inside sample a step, in seconds."""
    from dodona.runners.device.steps import DeviceSteps

    sample, times = DeviceSteps.sample, []

    def noted(self: DeviceSteps, *arguments: Any) -> Any:
        times.append(time.perf_counter())
        return sample(self, *arguments)

    DeviceSteps.sample = noted  # type: ignore[method-assign]
    try:
        yield times
    finally:
        DeviceSteps.sample = sample  # type: ignore[method-assign]


@contextmanager
def head_directory(target: dict[str, Any]) -> Iterator[Path]:
    """An EAGLE3 head in the shape of the model, by its config.json alone."""
    layers = int(target["num_hidden_layers"])
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
             "vocab_size", "rms_norm_eps", "rope_theta", "hidden_act", "max_position_embeddings")  # fmt: skip
    config = {
        **{name: target[name] for name in names if name in target},
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "draft_vocab_size": min(DRAFT_VOCABULARY, int(target["vocab_size"])),
        "eagle_aux_hidden_state_layer_ids": sorted({min(2, layers), layers // 2, max(layers - 3, 0)}),
    }
    with tempfile.TemporaryDirectory(prefix="benchmark-head-") as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config))
        yield Path(directory)


def _measure(
    directory: Path,
    raw: dict[str, Any],
    arguments: argparse.Namespace,
    speculative: dict[str, Any] | None,
    forced: float | None,
) -> dict[str, Any]:
    """Seconds and tokens/s of one engine, by batch size."""
    if forced is not None:
        # Kernels are made on import: with Triton's interpreter or without.
        from benchmarks.forced_drafts import forced_acceptance

        with forced_acceptance(forced):
            return _measure(directory, raw, arguments, speculative, None) | {
                "forced_acceptance": forced,
                "note": "acceptance was forced, and outputs mean nothing",
            }
    from dodona.runners.sampling.params import SamplingParams

    params = SamplingParams(
        temperature=0.0, max_tokens=arguments.output_tokens, ignore_eos=True, detokenize=False
    )
    result: dict[str, Any] = {
        "speculative_config": recorded(speculative),
        "forced_acceptance": None,
        "note": "",
        "mean_acceptance_length": None,
        "batches": {},
        "profile": None,
    }
    with _sampling_times() as times, _llm(directory, arguments, speculative) as llm:
        for batch in arguments.batch_sizes:
            prompts = [_prompt(arguments, raw, seed) for seed in range(batch)]
            seconds, steps, intervals = [], [], []
            for repetition in range(arguments.repetitions + 1):
                before = llm.draft_stats()
                times.clear()
                begin = time.perf_counter()
                outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
                elapsed = time.perf_counter() - begin
                after = llm.draft_stats()
                if repetition:  # the first one warms up
                    seconds.append(elapsed)
                    intervals += [end - start for start, end in itertools.pairwise(times)]
                    accepted = after.num_accepted_tokens - before.num_accepted_tokens
                    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
                    steps.append((tokens - accepted) / batch)
            taken = statistics.median(seconds)
            result["batches"][batch] = {
                "seconds": taken,
                "output_tokens_per_second": batch * arguments.output_tokens / taken,
                "steps": statistics.median(steps),
                "seconds_per_step": taken / statistics.median(steps),
                "median_step_seconds": statistics.median(intervals),
            }
            print(json.dumps({"batch": batch, **result["batches"][batch]}), file=sys.stderr, flush=True)
        if arguments.profile_tokens:
            params = replace(params, max_tokens=arguments.profile_tokens)
            prompt = {"prompt_token_ids": _prompt(arguments, raw, 0)}
            result["profile"] = step_parts(
                kernel_spans(lambda: llm.generate([prompt], params, use_tqdm=False))
            )
        if speculative is not None:
            result["mean_acceptance_length"] = llm.draft_stats().mean_acceptance_length
    return result


def step_parts(spans: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """Medians over steps in microseconds, and the GPU's time by kernel per step, from `kernel_spans`: of the
    target's part and the drafter's, from the first kernel to the end of the last, and how long kernels run in
    it (`busy`); and until the next step (`wait`)."""
    ordered = sorted(spans, key=lambda span: span[1])
    begins = [i for i, (name, _, _) in enumerate(ordered) if "_prepare_inputs_kernel" in name]
    found: dict[str, list[float]] = {}
    for begin, end in itertools.pairwise(begins):
        step = ordered[begin:end]
        split = next((i for i, span in enumerate(step) if "_update_state_kernel" in span[0]), len(step) - 1)
        parts = {"target": step[: split + 1], "drafter": step[split + 1 :]}
        for name, part in parts.items():
            if part:
                found.setdefault(f"{name}_us", []).append(part[-1][2] - part[0][1])
                busy = sum(stop - start for _, start, stop in part)
                found.setdefault(f"{name}_busy_us", []).append(busy)
        found.setdefault("wait_us", []).append(ordered[end][1] - step[-1][2])
    return {
        "steps": len(begins) - 1,
        **{name: statistics.median(values) for name, values in found.items()},
        "kernels": kernel_table(spans, len(begins))["kernels"][:40],
    }


def against_plain(found: dict[str, Any], plain: dict[str, Any]) -> dict[int, dict[str, float]]:
    """By batch size, tokens/s and the time of a step in multiples of the plain ones."""
    return {
        batch: {
            name: one[name] / plain["batches"][batch][name]
            for name in ("output_tokens_per_second", "seconds_per_step", "median_step_seconds")
            if name in one
        }
        for batch, one in found["batches"].items()
    }


def random_prompt(raw: dict[str, Any], length: int, seed: int) -> list[int]:
    """Token ids of a model with this config.json."""
    rng, vocab_size = random.Random(seed), int(raw["vocab_size"])
    return [rng.randrange(2, vocab_size) for _ in range(length)]


def _prompt(arguments: argparse.Namespace, raw: dict[str, Any], seed: int) -> list[int]:
    length = 8 if arguments.method == "ngram" else arguments.prompt_tokens
    phrase = random_prompt(raw, length, seed)
    return (phrase * -(-arguments.prompt_tokens // length))[: arguments.prompt_tokens]


def _llm(directory: Path, arguments: argparse.Namespace, speculative: dict[str, Any] | None) -> Any:
    import torch

    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.machine.environment import Environment, assumed_gpu
    from dodona.oracle.select import select_runner
    from dodona.runners.llm import LLM

    config = EngineConfig.from_flat(
        str(directory),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype=arguments.dtype,
        enable_prefix_caching=False,
        max_num_seqs=max(arguments.batch_sizes),
        max_model_len=arguments.prompt_tokens + arguments.output_tokens + 1,
        speculative_config=speculative,
    )
    # Without a GPU, Triton's interpreter runs the kernels: to try this program.
    machine = Environment.detect() if torch.cuda.is_available() else assumed_gpu()
    verdict = select_runner(config, environment=machine)
    if verdict.runner != "v2":
        raise RuntimeError(f"expected runner v2, and the verdict is {verdict.runner}: {verdict.explain()}")
    return LLM.from_verdict(verdict)


if __name__ == "__main__":
    main()
