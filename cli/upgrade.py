"""`dodona upgrade`."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dodona.cli.common import FAILED, reporting
from dodona.cli.output import say
from dodona.cli.select import FailOn
from dodona.oracle.errors import ConfigError

if TYPE_CHECKING:
    from dodona.oracle.upgrade.report import Report


class UpgradeFormat(enum.StrEnum):
    """How a report is written."""

    text = "text"
    markdown = "markdown"
    json = "json"
    sarif = "sarif"


def upgrade(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files and folders to look into.")],
    first: Annotated[str, typer.Option("--from", metavar="RELEASE", help="vllm/0.24.0: what runs today.")],
    last: Annotated[str, typer.Option("--to", metavar="RELEASE", help="vllm/0.33.0: what is to run.")],
    assume: Annotated[
        str, typer.Option("--assume", metavar="MACHINE,...", help="What they run on: see `select --assume`.")
    ] = "h100",
    format: Annotated[UpgradeFormat, typer.Option(help="How to write the report.")] = UpgradeFormat.text,
    json_: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="The file to write, in place of stdout.", show_default=False)
    ] = None,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="A new consequence this severe also exits with 1.")
    ] = FailOn.warning,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 also where something is not known.")
    ] = False,
) -> None:
    """Say what another release of vLLM changes for the deployments that files describe.

    Exits with 1 where a runner or a start changes, or a consequence of --fail-on is new; with 0 where not.
    """
    with reporting():
        from dodona.oracle.machine.assumed import assumed_machine
        from dodona.oracle.upgrade.sentinel import examine

        names = [name.strip() for name in assume.split(",") if name.strip()]
        report = examine(
            paths, first=first, last=last, machine=assumed_machine(names), machine_name=", ".join(names)
        )
        text = _written(report, UpgradeFormat.json if json_ else format)
        if output is None:
            say(text)
        else:
            try:
                output.write_text(text + "\n", encoding="utf-8", newline="\n")
            except OSError as error:
                raise ConfigError(f"--output {output}: {error.strerror}") from None
        if report.failing(fail_on.value) or (strict and (report.unknown or report.left_out)):
            raise typer.Exit(FAILED)


def _written(report: Report, format: UpgradeFormat) -> str:
    from dodona import __version__
    from dodona.oracle.upgrade.report import as_data, as_markdown, as_sarif, as_text

    if format is UpgradeFormat.json:
        return json.dumps(as_data(report), ensure_ascii=False)
    if format is UpgradeFormat.sarif:
        return json.dumps(as_sarif(report, __version__), ensure_ascii=False, indent=1)
    return (as_markdown(report) if format is UpgradeFormat.markdown else as_text(report)).rstrip("\n")
