"""What the commands share: exit codes, options, and how results and errors are printed.

stdout holds a command's result only; everything else goes to stderr.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from dodona.cli.output import say, say_json
from dodona.oracle.errors import ConfigError, DodonaError, RuleFileError, UnsupportedConfiguration

if TYPE_CHECKING:
    from dodona.oracle.decide.verdict import Verdict

FAILED: Final = 1
BAD_INPUT: Final = 2
REFUSED: Final = 3
"""Exit codes besides 0."""

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

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
        fail(str(refusal), REFUSED)
    except (ConfigError, RuleFileError) as error:
        fail(str(error), BAD_INPUT)
    except DodonaError as error:
        fail(message_of(error), BAD_INPUT if isinstance(error, ValueError) else FAILED)


def print_verdict(
    verdict: Verdict, as_json: bool, *, stderr: bool = False, beside: Mapping[str, Any] = NOTHING
) -> None:
    """Print a verdict as a table, or as one line of JSON, with the fields of `beside` after its own."""
    if as_json:
        say_json({**verdict.model_dump(mode="json"), **beside})
        return
    from dodona.oracle.explain.table import make_console, verdict_table

    make_console(stderr=stderr).print(verdict_table(verdict))


def message_of(error: DodonaError) -> str:
    """What is said of an error: its own words, and the cause of one that does not name it itself."""
    if isinstance(error, (ConfigError, RuleFileError, UnsupportedConfiguration)):
        return str(error)
    cause = error.__cause__
    return f"{error}: {type(cause).__name__}: {cause}" if cause is not None else str(error)


def fail(message: str, code: int) -> NoReturn:
    """Say a message on stderr and exit with the code."""
    say(f"dodona: {message}", err=True)
    raise typer.Exit(code)
