"""`dodona generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from dodona.cli.common import BAD_INPUT, ConfigFile, Model, reporting
from dodona.cli.flags import engine_config, with_engine_flags
from dodona.cli.output import say, say_json
from dodona.cli.pooling import check_task
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.files import read_text
from dodona.oracle.printable import short

MAX_FILE_BYTES: Final = 8 << 20
"""Largest schema or grammar."""


@with_engine_flags(without=("seed",))
def generate(
    engine: Mapping[str, Any],
    model: Model = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be given several times.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put each prompt into the model's chat template.")
    ] = False,
    config: ConfigFile = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object per prompt.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 256,
    temperature: Annotated[float | None, typer.Option(help="0 takes the most probable token.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Share of the probability to sample from.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Number of tokens to sample from; 0 means all.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Least probability, as a share of the largest.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A stop string; may be given several times.")] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the end of sequence.")
    ] = False,
    json_schema: Annotated[
        str | None,
        typer.Option(help="A JSON schema that the output must conform to: a file, or JSON itself."),
    ] = None,
    regex: Annotated[str | None, typer.Option(help="An expression that the output must match.")] = None,
    grammar: Annotated[
        Path | None, typer.Option(help="A file with a grammar (Lark or GBNF) of the output.")
    ] = None,
) -> None:
    """Generate text with the runner that the rules choose."""
    asked: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "seed": seed,
        "stop": stop or None,
        "ignore_eos": ignore_eos or None,
    }
    with reporting():
        if not prompt:
            raise ConfigError("no prompt: give --prompt TEXT, once or several times")
        engine_conf = engine_config(model, engine, config)
        asked["structured_outputs"] = structured_outputs(json_schema, regex, grammar)
        failed = run_generate(engine_conf, prompt, asked, chat=chat, as_json=json_)
        if failed:
            raise typer.Exit(BAD_INPUT)


def run_generate(
    config: EngineConfig, prompts: Sequence[str], asked: Mapping[str, Any], *, chat: bool, as_json: bool
) -> bool:
    """Generate for each prompt and print the texts; returns whether some prompt was refused.

    asked: sampling parameters by name; None leaves the model's default.
    """
    from dodona.oracle.decision_log import select_and_log
    from dodona.runners.llm import LLM
    from dodona.runners.sampling.params import SamplingParams

    given = {name: value for name, value in asked.items() if value is not None}
    SamplingParams(**given)  # a parameter out of range is told before a model is loaded
    verdict = select_and_log(config)
    check_task(config, "generate")
    say(verdict.explain().splitlines()[0], err=True)
    with LLM.from_verdict(verdict) as llm:
        params = replace(llm.get_default_sampling_params(), **given)
        if chat:
            outputs = llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], params)
        else:
            outputs = llm.generate(list(prompts), params)
    failed = False
    for prompt, output in zip(prompts, outputs, strict=True):
        if output.error is not None:
            failed = True
            say(f"dodona: prompt {short(prompt)}: {output.error}", err=True)
        if as_json:
            say_json(_record(prompt, output))
        elif output.error is None:
            text = output.outputs[0].text
            say(text if len(prompts) == 1 else f"> {prompt}\n{text}\n")
    return failed


def structured_outputs(
    json_schema: str | None, regex: str | None, grammar: Path | None
) -> dict[str, str] | None:
    """The sampling parameter by what the flags say, or None. Raises ConfigError that names the flag."""
    flags = {"--json-schema": json_schema, "--regex": regex, "--grammar": grammar}
    given = [flag for flag, value in flags.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)} can't go together: the output has one form; give one of them"
        )
    if json_schema is not None:
        is_json = json_schema.lstrip().startswith("{")
        return {"json": json_schema if is_json else _read("--json-schema", Path(json_schema))}
    if regex is not None:
        return {"regex": regex}
    return None if grammar is None else {"grammar": _read("--grammar", grammar)}


def _read(flag: str, file: Path) -> str:
    try:
        return read_text(file, limit=MAX_FILE_BYTES, expected="a schema or a grammar")
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from error


def _record(prompt: str, output: Any) -> dict[str, Any]:
    first = output.outputs[0]
    return {
        "prompt": prompt,
        "text": first.text,
        "token_ids": list(first.token_ids),
        "finish_reason": first.finish_reason,
        "error": output.error,
    }
