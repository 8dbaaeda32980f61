"""The commands. stdout holds a command's result only; everything else goes to stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dodona.cli.flags import engine_config, with_engine_flags
from dodona.cli.vllm_words import SelectCommand, vllm_environment, vllm_words
from dodona.oracle.errors import ConfigError, DodonaError, RuleFileError, UnsupportedConfiguration

if TYPE_CHECKING:
    from dodona.oracle.decide.verdict import Verdict
    from dodona.oracle.machine.environment import Environment

FAILED, BAD_INPUT, REFUSED = 1, 2, 3
"""Exit codes besides 0."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
rules_app = typer.Typer(help="The rules that decide.", no_args_is_help=True)
app.add_typer(rules_app, name="rules")


def _print_version(asked: bool) -> None:
    if asked:
        from dodona import __version__

        typer.echo(f"dodona {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Chooses an LLM engine's model runner by rules, says why, and runs it."""


Model = Annotated[str | None, typer.Argument(metavar="MODEL_DIR", help="A model directory or hub id.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="A vLLM YAML configuration file; flags win over it.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RuleBookName = Annotated[
    str, typer.Option("--rulebook", help="A rule book's name, or the path of one (.yaml).")
]


@app.command(cls=SelectCommand)
@with_engine_flags()
def select(
    engine: Mapping[str, Any],
    model: Model = None,
    config: ConfigFile = None,
    rulebook: RuleBookName = "dodona",
    assume_gpu: Annotated[
        bool, typer.Option("--assume-gpu", help="Decide for a machine with a Hopper GPU and Triton.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show every rule, whether it fired, and the facts it read.")
    ] = False,
    why_not: Annotated[
        str | None,
        typer.Option("--why-not", metavar="RUNNER", help="What would have to change for v1 or v2 to serve."),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option("--compare", metavar="BOOK,BOOK,...", help="Show several rule books side by side."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Say which runner would serve a model, and why.

    With a rule book of vLLM (--rulebook vllm/0.25.1), vLLM's own flags or a `vllm serve ...` command line say
    what to serve.
    """
    with reporting():
        words = vllm_words()
        given = engine_config(model, engine, config) if words is None else words

        def environment(book: str) -> Environment | None:
            return _environment(assume_gpu) if words is None else vllm_environment(book, assume_gpu)

        if compare is not None:
            from dodona.cli.advice import run_comparison

            run_comparison(
                given, compare, environment, rulebook=rulebook, asked=explain or why_not, as_json=json_
            )
            return
        verdict = _verdict(given, rulebook, environment(rulebook))
        if explain or why_not:
            from dodona.cli.advice import print_advice

            print_advice(verdict, rulebook, explain=explain, why_not=why_not, as_json=json_)
        else:
            print_verdict(verdict, json_)
        if verdict.refusals or verdict.runner is None:
            raise typer.Exit(REFUSED)


@app.command()
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
        from dodona.cli.generation import run_generate, structured_outputs

        asked["structured_outputs"] = structured_outputs(json_schema, regex, grammar)
        failed = run_generate(engine_conf, prompt, asked, chat=chat, as_json=json_)
        if failed:
            raise typer.Exit(BAD_INPUT)


@app.command()
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
        from dodona.cli.benchmark import run_bench

        run_bench(engine_conf, num_prompts, input_len, output_len, as_json=json_)


@rules_app.command("list")
def rules_list(rulebook: RuleBookName = "dodona", json_: AsJson = False) -> None:
    """List the rules of a rule book."""
    with reporting():
        from dodona.cli.rules import print_rules

        print_rules(rulebook, as_json=json_)


@rules_app.command("replay")
def rules_replay(
    rulebook: Annotated[str, typer.Argument(metavar="BOOK", help="A rule book's name, or the path of one.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Recorded cases: .jsonl, .jsonl.gz.")
    ],
    show: Annotated[int, typer.Option(min=0, help="Most disagreements to print.")] = 10,
) -> None:
    """Compare a vLLM rule book with recorded answers of vLLM; exits with 1 where any differs."""
    with reporting():
        from dodona.cli.replay import print_replay

        if not print_replay(rulebook, files, show=show):
            raise typer.Exit(FAILED)


@contextmanager
def reporting() -> Iterator[None]:
    """Turns what users can cause into a message and an exit code; anything else is a fault and keeps its
    traceback."""
    try:
        yield
    except UnsupportedConfiguration as refusal:
        if refusal.verdict is not None:
            print_verdict(refusal.verdict, as_json=False, stderr=True)
            raise typer.Exit(REFUSED) from None
        _fail(str(refusal), REFUSED)
    except (ConfigError, RuleFileError) as error:
        _fail(str(error), BAD_INPUT)
    except DodonaError as error:
        _fail(_with_cause(error), BAD_INPUT if isinstance(error, ValueError) else FAILED)


def print_verdict(verdict: Verdict, as_json: bool, *, stderr: bool = False) -> None:
    """Print a verdict as a table, or as one line of JSON."""
    if as_json:
        typer.echo(verdict.model_dump_json())
        return
    from dodona.oracle.explain.table import make_console, verdict_table

    make_console(stderr=stderr).print(verdict_table(verdict))


def _verdict(config: Any, rulebook: str, environment: Environment | None) -> Verdict:
    """The verdict, also where it is a refusal."""
    from dodona.oracle.decision_log import select_and_log

    try:
        return select_and_log(config, rulebook=rulebook, environment=environment)
    except UnsupportedConfiguration as refusal:
        if refusal.verdict is None:
            raise
        return refusal.verdict


def _environment(assume_gpu: bool) -> Environment | None:
    if not assume_gpu:
        return None
    import os

    from dodona.oracle.machine.environment import OVERRIDE_VARIABLE, assumed_gpu, parse_override

    # The machine is assumed; what the user forces still holds.
    return assumed_gpu(parse_override(os.environ.get(OVERRIDE_VARIABLE)))


def _with_cause(error: BaseException) -> str:
    cause = error.__cause__
    return f"{error}: {type(cause).__name__}: {cause}" if cause is not None else str(error)


def _fail(message: str, code: int) -> None:
    typer.echo(f"dodona: {message}", err=True)
    raise typer.Exit(code)


def print_json(value: Any) -> None:
    """Print one JSON value on a line of stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


# each registers its commands on the apps above
from dodona.cli import analysis, authoring, matrix  # noqa: E402, F401
