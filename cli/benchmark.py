"""`dodona bench`: a small throughput report through the public API."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from dodona.cli.common import AsJson, ConfigFile, Model, reporting
from dodona.cli.flags import engine_config, with_engine_flags
from dodona.cli.output import say, say_json
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError

DEFAULT_INPUT_LEN = 128
DEFAULT_OUTPUT_LEN = 64
FIRST_TOKEN_RUNS = 5
"""Requests, one after the other, whose median gives the time to the first token."""


@with_engine_flags()
def bench(
    engine: Mapping[str, Any],
    model: Model = None,
    config: ConfigFile = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Requests.")] = 32,
    input_len: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt [default: up to 128].", show_default=False)
    ] = None,
    output_len: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens to generate for each [default: up to 64].", show_default=False),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Measure throughput on random prompts, and the time to the first token of a request by itself."""
    with reporting():
        engine_conf = engine_config(model, engine, config)
        run_bench(engine_conf, num_prompts, input_len, output_len, as_json=json_)


def run_bench(
    config: EngineConfig, num_prompts: int, input_len: int | None, output_len: int | None, *, as_json: bool
) -> None:
    """Measure and print. Prompts are random token ids, all different; every request runs to its full
    length."""
    from dodona.oracle.decision_log import select_and_log
    from dodona.oracle.systems.system import load_model
    from dodona.runners.llm import LLM
    from dodona.runners.sampling.params import SamplingParams

    verdict = select_and_log(config)
    say(verdict.explain().splitlines()[0], err=True)
    model = load_model(config.model_config.model, config.model_config.revision)
    if model.vocab_size is None:
        raise ConfigError(f"{model.file}: field 'vocab_size': required for random prompts, but not given")
    began = time.perf_counter()
    with LLM.from_verdict(verdict) as llm:
        started = time.perf_counter() - began
        longest = llm.max_model_len
        outputs_each = min(DEFAULT_OUTPUT_LEN, max(1, longest // 4)) if output_len is None else output_len
        inputs_each = min(DEFAULT_INPUT_LEN, max(1, longest // 2)) if input_len is None else input_len
        if inputs_each + outputs_each > longest:
            raise ConfigError(
                f"--input-len {inputs_each} and --output-len {outputs_each} make more than the {longest} "
                "tokens that the model takes; lower them"
            )
        draw = random.Random(config.model_config.seed)

        def prompt() -> list[int]:
            return [draw.randrange(model.vocab_size or 1) for _ in range(inputs_each)]

        params = SamplingParams(temperature=0.0, max_tokens=outputs_each, ignore_eos=True, detokenize=False)
        first = [_time_to_first_token(llm, prompt(), params) for _ in range(FIRST_TOKEN_RUNS)]
        prompts = [prompt() for _ in range(num_prompts)]
        began = time.perf_counter()
        outputs = llm.generate(prompts, params)
        elapsed = time.perf_counter() - began
    for output in outputs:
        if output.error is not None:
            raise ConfigError(f"a request of the benchmark was refused: {output.error}")
    generated = sum(len(output.outputs[0].token_ids) for output in outputs)
    report = {
        "model": config.model_config.model,
        "runner": verdict.runner,
        "num_prompts": num_prompts,
        "input_len": inputs_each,
        "output_len": outputs_each,
        "startup_s": round(started, 3),
        "elapsed_s": round(elapsed, 4),
        "prompts_per_s": round(num_prompts / elapsed, 2),
        "input_tokens_per_s": round(num_prompts * inputs_each / elapsed, 1),
        "output_tokens_per_s": round(generated / elapsed, 1),
        "time_to_first_token_s": round(statistics.median(first), 5),
    }
    if as_json:
        say_json(report)
    else:
        _print_table(report)


def _time_to_first_token(llm: Any, prompt: list[int], params: Any) -> float:
    """Seconds from submission to the first token, with nothing else under way."""
    began = time.perf_counter()
    with llm.stream(prompt, params) as stream:
        next(stream)
        return time.perf_counter() - began


def _print_table(report: dict[str, Any]) -> None:
    from rich.table import Table

    from dodona.oracle.explain.table import make_console

    labels = {
        "model": "Model",
        "runner": "Runner",
        "num_prompts": "Prompts",
        "input_len": "Tokens in, each",
        "output_len": "Tokens out, each",
        "startup_s": "Startup (s)",
        "elapsed_s": "Elapsed (s)",
        "prompts_per_s": "Prompts/s",
        "input_tokens_per_s": "Input tokens/s",
        "output_tokens_per_s": "Output tokens/s",
        "time_to_first_token_s": "Time to first token, alone (s)",
    }
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, label in labels.items():
        value = report[name]
        table.add_row(label, f"{value:,}" if isinstance(value, (int, float)) else str(value))
    make_console().print(table)
