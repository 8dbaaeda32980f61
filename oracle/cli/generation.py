"""`dodona generate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import typer

from dodona.oracle.config import EngineConfig
from dodona.oracle.decision_log import select_and_log


def run_generate(
    config: EngineConfig, prompts: Sequence[str], asked: Mapping[str, Any], *, chat: bool, as_json: bool
) -> bool:
    """Generate for each prompt and print the texts; returns whether some prompt was refused.

    asked: sampling parameters by name; None leaves the model's default.
    """
    from dodona import LLM, SamplingParams

    given = {name: value for name, value in asked.items() if value is not None}
    SamplingParams(**given)  # a parameter out of range is told before a model is loaded
    verdict = select_and_log(config)
    typer.echo(verdict.explain().splitlines()[0], err=True)
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
            typer.echo(f"dodona: prompt {prompt!r}: {output.error}", err=True)
        if as_json:
            typer.echo(json.dumps(_record(prompt, output), ensure_ascii=False))
        elif output.error is None:
            text = output.outputs[0].text
            typer.echo(text if len(prompts) == 1 else f"> {prompt}\n{text}\n")
    return failed


def _record(prompt: str, output: Any) -> dict[str, Any]:
    first = output.outputs[0]
    return {
        "prompt": prompt,
        "text": first.text,
        "token_ids": list(first.token_ids),
        "finish_reason": first.finish_reason,
        "error": output.error,
    }
