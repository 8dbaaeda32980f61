"""`dodona rules check` and `dodona rules diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dodona.cli.common import FAILED, AsJson, Books, Github, reporting
from dodona.cli.output import say, say_json
from dodona.oracle.errors import ConfigError

if TYPE_CHECKING:
    from dodona.oracle.analysis.check import Report

Strict = Annotated[bool, typer.Option("--strict", help="Warnings fail too.")]


def rules_check(
    books: Books = None,
    strict: Strict = False,
    github: Github = False,
    json_: AsJson = False,
) -> None:
    """Prove over all facts what should hold of rule books; exits with 1 where something does not."""
    with reporting():
        if github and json_:
            raise ConfigError("--github and --json: choose one of them")
        from dodona.oracle.analysis.check import check_book
        from dodona.oracle.analysis.source import books_of
        from dodona.oracle.systems.books import bundled_rulebooks

        loads = [load for name in books or bundled_rulebooks() for load in books_of(name).values()]
        reports = [check_book(load) for load in loads]
        findings = [finding for report in reports for finding in report.findings]
        if json_:
            say_json([_report_data(report) for report in reports])
        elif github:
            for finding in findings:
                say(finding.github())
        else:
            for report in reports:
                _print_report(report, outcomes=len(reports) == 1)
            if len(reports) > 1:
                errors = sum(finding.level == "error" for finding in findings)
                say(f"{len(reports)} books, {errors} errors, {len(findings) - errors} warnings")
        if any(report.failed for report in reports) or (strict and findings):
            raise typer.Exit(FAILED)


def _print_report(report: Report, *, outcomes: bool) -> None:
    from dodona.oracle.analysis.check import show_kind
    from dodona.oracle.analysis.findings import show_facts

    for finding in report.findings:
        say(str(finding))
    if not report.rules:
        return
    kept = ", ".join(report.exceptions)
    declared = f"; declared exceptions, confirmed: {kept}" if kept else ""
    verdict = "findings above" if report.failed else "nothing wrong"
    say(f"{report.book}: {report.rules} rules over {report.facts} facts: {verdict}{declared}")
    if not outcomes:
        return
    say("  Every configuration gets one of these outcomes, here with the plainest that does:")
    for kind, facts in report.outcomes:
        say(f"    {show_kind(kind)}: {show_facts(facts)}")
    if report.unserved:
        say("  Where nobody forces a runner, none can serve where the last one is refused by:")
        for rule, facts in report.unserved:
            say(f"    {rule}: {show_facts(facts)}")


def _report_data(report: Report) -> dict[str, Any]:
    from dodona.oracle.analysis.findings import facts_data

    return {
        "book": report.book,
        "rules": report.rules,
        "facts": report.facts,
        "findings": [finding.data() for finding in report.findings],
        "outcomes": [
            {"runner": runner, "refused": refused, "witness": facts_data(facts)}
            for (runner, refused), facts in report.outcomes
        ],
        "unserved": [{"rule": rule, "witness": facts_data(facts)} for rule, facts in report.unserved],
        "exceptions": list(report.exceptions),
    }


def rules_diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A name, a file, a folder, or REVISION:PATH of git.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same for what it becomes.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown for a pull request.")] = False,
    json_: AsJson = False,
) -> None:
    """Say how the verdicts of two rule books differ; exits with 0 where they don't, with 1 where they do."""
    with reporting():
        if markdown and json_:
            raise ConfigError("--markdown and --json: choose one of them")
        from dodona.oracle.analysis.diff import diff_sources
        from dodona.oracle.analysis.diff_text import as_data, as_markdown, as_text

        found = diff_sources(a, b)
        if json_:
            say_json(
                {
                    "books": [as_data(difference) for difference in found.books],
                    "added": list(found.added),
                    "removed": list(found.removed),
                }
            )
        else:
            write = as_markdown if markdown else as_text
            shown = [d for d in found.books if d or not markdown] or list(found.books[:1])
            lines = [line for difference in shown for line in (*write(difference), *[""] * markdown)]
            if len(shown) < len(found.books):
                lines.append(f"{len(found.books) - len(shown)} other books: no verdict changes.")
            lines += [f"{name}: only in {b}" for name in found.added]
            lines += [f"{name}: only in {a}" for name in found.removed]
            say("\n".join(lines))
        if found:
            raise typer.Exit(FAILED)
