"""The command line: every command by its name. Each command is a function of a module of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from dodona.cli.analysis import rules_check, rules_diff
from dodona.cli.authoring import rules_fmt, rules_new, rules_schema, rules_test
from dodona.cli.benchmark import bench
from dodona.cli.generation import generate
from dodona.cli.matrix import matrix
from dodona.cli.output import say
from dodona.cli.pooling import embed
from dodona.cli.replay import rules_replay
from dodona.cli.rules import rules_list
from dodona.cli.select import select
from dodona.cli.system_words import SelectCommand
from dodona.cli.upgrade import upgrade

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
rules_app = typer.Typer(help="The rules that decide.", no_args_is_help=True)


def _print_version(asked: bool) -> None:
    if asked:
        from dodona import __version__

        say(f"dodona {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Chooses an LLM engine's model runner by rules, says why, and runs it."""


app.command("select", cls=SelectCommand)(select)
app.command("generate")(generate)
app.command("embed")(embed)
app.command("bench")(bench)
app.command("matrix")(matrix)
app.command("upgrade")(upgrade)
app.add_typer(rules_app, name="rules")
rules_app.command("list")(rules_list)
rules_app.command("replay")(rules_replay)
rules_app.command("check")(rules_check)
rules_app.command("diff")(rules_diff)
rules_app.command("test")(rules_test)
rules_app.command("fmt")(rules_fmt)
rules_app.command("new")(rules_new)
rules_app.command("schema")(rules_schema)
