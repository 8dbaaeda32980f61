"""`dodona embed`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from dodona.cli.common import BAD_INPUT, ConfigFile, Model, reporting
from dodona.cli.flags import engine_config, with_engine_flags
from dodona.cli.output import say, say_json
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.pooling import pooling_task
from dodona.oracle.systems.own.resolved import resolved_runner_type


@with_engine_flags()
def embed(
    engine: Mapping[str, Any],
    model: Model = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A text; may be given several times.")
    ] = None,
    config: ConfigFile = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object per text.")] = False,
) -> None:
    """Embed texts with the runner that the rules choose."""
    with reporting():
        if not prompt:
            raise ConfigError("no text: give --prompt TEXT, once or several times")
        flags = engine if "runner" in engine else {"runner": "pooling", **engine}
        engine_conf = engine_config(model, flags, config)
        if run_embed(engine_conf, prompt, as_json=json_):
            raise typer.Exit(BAD_INPUT)


def check_task(config: EngineConfig, wanted: str) -> None:
    """Raise ConfigError, before anything loads, where the model is not for this: "generate" or "embed"."""
    name = config.model_config.model
    info = ModelInfo.load(locate_or_download(name, revision=config.model_config.revision))
    task = pooling_task(config, info)
    if wanted == "generate" and task is not None:
        raise ConfigError(
            f"{name}: the model is served for pooling task {task!r} and generates nothing; use `dodona "
            "embed` or LLM.classify, or give --runner generate"
        )
    if wanted == "embed" and task is None:
        kind = resolved_runner_type(config, info)
        raise ConfigError(f"{name}: runner type {kind!r} embeds nothing; give --runner pooling")
    if wanted == "embed" and task in ("classify", "token_classify"):
        raise ConfigError(
            f"{name}: the model is served for pooling task {task!r}; use LLM.classify or LLM.encode, or give "
            "--convert embed"
        )


def run_embed(config: EngineConfig, prompts: list[str], *, as_json: bool) -> bool:
    """Embed each text and print the vectors; returns whether some text was refused."""
    from dodona.oracle.decision_log import select_and_log
    from dodona.runners.llm import LLM

    verdict = select_and_log(config)
    check_task(config, "embed")
    say(verdict.explain().splitlines()[0], err=True)
    with LLM.from_verdict(verdict) as llm:
        outputs = llm.embed(list(prompts))
    failed = False
    for text, output in zip(prompts, outputs, strict=True):
        vector = [] if output.outputs is None else output.outputs.embedding
        if output.error is not None:
            failed = True
            say(f"dodona: text {text!r}: {output.error}", err=True)
        if as_json:
            say_json({"prompt": text, "embedding": vector, "error": output.error})
        elif output.error is None:
            say(" ".join(f"{value:.6g}" for value in vector))
    return failed
