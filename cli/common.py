"""What the commands share: exit codes, options, and how results and errors are printed.

stdout holds a command's result only; everything else goes to stderr.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dodona.cli.output import say, say_json
from dodona.oracle.errors import ConfigError, DodonaError, RuleFileError, UnsupportedConfiguration

if TYPE_CHECKING:
    from dodona.oracle.decide.verdict import Verdict

FAILED: Final = 1
BAD_INPUT: Final = 2
REFUSED: Final = 3
"""Exit codes besides 0."""

Model = Annotated[str | None, typer.Argument(metavar="MODEL_DIR", help="A model directory or hub id.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="A vLLM YAML configuration file; flags win over it.", show_default=False),
]
Books = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[BOOK...]",
        help="Names, files, folders, or REVISION:PATH of git; every bundled book without any.",
        show_default=False,
    ),
]
Github = Annotated[bool, typer.Option("--github", help="Print findings as GitHub workflow commands.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RuleBookName = Annotated[
    str, typer.Option("--rulebook", help="A rule book's name, or the path of one (.yaml).")
]


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
        say_json(verdict.model_dump(mode="json"))
        return
    from dodona.oracle.explain.table import make_console, verdict_table

    make_console(stderr=stderr).print(verdict_table(verdict))


def _with_cause(error: BaseException) -> str:
    cause = error.__cause__
    return f"{error}: {type(cause).__name__}: {cause}" if cause is not None else str(error)


def _fail(message: str, code: int) -> None:
    say(f"dodona: {message}", err=True)
    raise typer.Exit(code)
