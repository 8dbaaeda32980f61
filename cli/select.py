"""`dodona select`."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dodona.cli.common import (
    BAD_INPUT,
    FAILED,
    REFUSED,
    AsJson,
    ConfigFile,
    Model,
    RuleBookName,
    fail,
    print_verdict,
    reporting,
)
from dodona.cli.flags import engine_config, with_engine_flags
from dodona.cli.output import say
from dodona.cli.system_words import system_words
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.language.consequence import SEVERITIES

if TYPE_CHECKING:
    from dodona.cli.trial import TrialLoad
    from dodona.oracle.decide.verdict import Verdict
    from dodona.oracle.machine.environment import Environment


class FailOn(enum.Enum):
    """Severities of consequences, for `--fail-on`."""

    info = "info"
    warning = "warning"
    error = "error"


@with_engine_flags()
def select(
    engine: Mapping[str, Any],
    model: Model = None,
    config: ConfigFile = None,
    rulebook: RuleBookName = "dodona",
    assume_gpu: Annotated[
        bool, typer.Option("--assume-gpu", help="Decide for a machine with a Hopper GPU and Triton.")
    ] = False,
    assume: Annotated[
        str | None,
        typer.Option(
            "--assume",
            metavar="MACHINE,...",
            help="Decide for such a machine: h100, a100, b200, mi300x, cpu, wsl2, no-triton, ..., a .yaml "
            "file, a package's version (transformers==5.24.0) or its absence (no-ray).",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show every rule, whether it fired, and the facts it read.")
    ] = False,
    why_not: Annotated[
        str | None,
        typer.Option("--why-not", metavar="RUNNER", help="What would have to change for RUNNER to serve."),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option("--compare", metavar="BOOK,BOOK,...", help="Show several rule books side by side."),
    ] = None,
    fail_on: Annotated[
        FailOn | None,
        typer.Option("--fail-on", help="Exit with 1 if a consequence is this severe or more."),
    ] = None,
    trial_load: Annotated[
        bool,
        typer.Option(
            help="Load a permitted model without its weights, to see that it loads. Without: decide by the "
            "rules alone, in a fraction of the time.",
        ),
    ] = True,
    json_: AsJson = False,
) -> None:
    """Say which runner would serve a model, and why.

    With a rule book of vLLM (--rulebook vllm/0.25.1), vLLM's own flags or a `vllm serve ...` command line say
    what to serve.
    """
    with reporting():
        words = system_words()
        given = engine_config(model, engine, config) if words is None else words

        def environment(book: str) -> Environment | None:
            if assume is None and not assume_gpu:
                return None
            return _assumed(assume.split(",") if assume else [], book)

        if compare is not None:
            from dodona.cli.advice import run_comparison

            run_comparison(
                given, compare, environment, rulebook=rulebook, asked=explain or why_not, as_json=json_
            )
            return
        machine = environment(rulebook)
        verdict = _verdict(given, rulebook, machine)
        refused = bool(verdict.refusals) or verdict.runner is None
        found = _try_load(verdict) if trial_load and not refused and machine is None else None
        beside = {} if found is None else {"trial_load": found.to_mapping()}
        if explain or why_not:
            from dodona.cli.advice import print_advice

            print_advice(verdict, rulebook, explain=explain, why_not=why_not, as_json=json_, beside=beside)
        else:
            print_verdict(verdict, json_, beside=beside)
        if refused:
            raise typer.Exit(REFUSED)
        if found is not None and found.error is not None:
            fail(found.error, BAD_INPUT)
        if found is not None and not json_:
            say(str(found))
        if fail_on is not None and _worst(verdict) >= SEVERITIES.index(fail_on.value):
            raise typer.Exit(FAILED)


def _try_load(verdict: Verdict) -> TrialLoad | None:
    from dodona.cli.trial import trial_load

    return trial_load(verdict)


def _worst(verdict: Verdict) -> int:
    """The index in SEVERITIES of the verdict's most severe consequence; -1 where there is none."""
    return max((SEVERITIES.index(found.severity) for found in verdict.consequences), default=-1)


def _verdict(config: Any, rulebook: str, environment: Environment | None) -> Verdict:
    """The verdict, also where it is a refusal."""
    from dodona.oracle.decision_log import select_and_log

    try:
        return select_and_log(config, rulebook=rulebook, environment=environment)
    except UnsupportedConfiguration as refusal:
        if refusal.verdict is None:
            raise
        return refusal.verdict


def _assumed(names: Sequence[str], rulebook: str) -> Environment:
    """A machine of these names, and the runner that the book's environment variable forces here.

    Raises ConfigError, RuleFileError.
    """
    from dodona.oracle.machine.assumed import assumed_machine
    from dodona.oracle.machine.environment import forced_runner
    from dodona.oracle.systems.books import load_rulebook

    return assumed_machine(
        [name.strip() for name in names if name.strip()],
        override=forced_runner(load_rulebook(rulebook).environment),
    )
