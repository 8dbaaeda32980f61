"""`dodona rules test`, `fmt`, `new` and `schema`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dodona.cli.common import FAILED, AsJson, Books, Github, reporting
from dodona.cli.output import say, say_json
from dodona.oracle.errors import ConfigError

if TYPE_CHECKING:
    from dodona.oracle.authoring.coverage import Counts, RuleReport

Strict = Annotated[bool, typer.Option("--strict", help="Parts that no example reaches fail too.")]


class RuleKind(StrEnum):
    """Kinds of rules."""

    override = "override"
    require = "require"
    veto = "veto"


def rules_test(
    books: Books = None,
    strict: Strict = False,
    github: Github = False,
    json_: AsJson = False,
) -> None:
    """Run the examples of rule books, and say which parts of conditions none of them reaches."""
    with reporting():
        if github and json_:
            raise ConfigError("--github and --json: choose one of them")
        from dodona.oracle.analysis.source import books_of
        from dodona.oracle.authoring.coverage import distinct, run_examples, totals
        from dodona.oracle.systems.books import bundled_rulebooks

        loads = [load for name in books or bundled_rulebooks() for load in books_of(name).values()]
        rules = distinct([run_examples(load()) for load in loads])
        counts = totals(rules)
        findings = list(dict.fromkeys(finding for rule in rules for finding in rule.findings))
        if json_:
            say_json(_data(len(loads), rules, counts))
        else:
            for finding in findings:
                say(finding.github() if github else str(finding))
            if not github:
                say(_summary(len(loads), counts))
        if counts.failed or (strict and findings):
            raise typer.Exit(FAILED)


def _summary(books: int, counts: Counts) -> str:
    passed = counts.examples - counts.failed
    what = f"{_count(books, 'book')}, {_count(counts.rules, 'rule')}"
    text = f"{what}: {passed} of {counts.examples} examples hold"
    reached = []
    if counts.branches:
        reached.append(f"{counts.branches_reached} of {counts.branches} parts of `all` and `any`")
    if counts.values:
        reached.append(f"{counts.values_reached} of {counts.values} listed values")
    return text + (f"; they reach {' and '.join(reached)}" if reached else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _data(books: int, rules: Sequence[RuleReport], counts: Counts) -> dict[str, Any]:
    return {
        "books": books,
        "counts": {name: getattr(counts, name) for name in counts.__dataclass_fields__},
        "findings": [finding.data() for rule in rules for finding in rule.findings],
        "unreached_values": [
            {
                "rule": rule.rule,
                "file": rule.place.file,
                "line": rule.place.line,
                "values": rule.unreached_values,
            }
            for rule in rules
            if rule.unreached_values
        ],
    }


def rules_fmt(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE...]",
            help="Files, or folders of .yaml files; rules/ without any.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 where a file would change.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Print what changes, and write nothing.")] = False,
) -> None:
    """Put rule files into their one layout, with all comments, at once or not at all."""
    with reporting():
        import difflib

        from dodona.oracle.authoring.formatting import format_file

        changed = 0
        for path in _files(files or [Path("rules")]):
            before, after = format_file(path, write=not (check or diff))
            if before == after:
                continue
            changed += 1
            if diff:
                lines = difflib.unified_diff(
                    before.splitlines(), after.splitlines(), str(path), str(path), lineterm=""
                )
                say("\n".join(lines))
            else:
                say(f"{'would change' if check else 'formatted'} {path}")
        if check and changed:
            raise typer.Exit(FAILED)


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix in (".yaml", ".yml") and p.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise ConfigError(f"{path}: there is no such file or folder")
    return found


def rules_new(
    id: Annotated[str, typer.Argument(metavar="ID", help="Lower-case words joined by '-'.")],
    when: Annotated[
        str, typer.Option("--when", help="The condition, in YAML: 'FACT: VALUE', 'FACT: {gt: 1}', …")
    ],
    kind: Annotated[RuleKind, typer.Option("--kind", help="What kind of rule.")] = RuleKind.veto,
    runners: Annotated[
        list[str] | None,
        typer.Option(
            "--runner",
            help="A runner that it is about; may be given several times [default: the preferred one, v2].",
            show_default=False,
        ),
    ] = None,
    feature: Annotated[
        str | None,
        typer.Option(
            "--feature", help="The feature as people know it [default: from the id].", show_default=False
        ),
    ] = None,
    because: Annotated[
        str | None, typer.Option("--because", help="Why [default: from the kind].", show_default=False)
    ] = None,
    precedence: Annotated[
        int | None, typer.Option("--precedence", min=1, max=1000, help="Of an override.", show_default=False)
    ] = None,
    append: Annotated[
        Path | None,
        typer.Option("--append", help="Put it at the end of this book's file.", show_default=False),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="Whose facts it reads: dodona or vllm.", show_default=False)
    ] = None,
) -> None:
    """Print a new rule, whole, with examples made from its condition; or put it into a book."""
    with reporting():
        from dodona.oracle.authoring.template import (
            DEFAULT_RUNNERS,
            append_rule,
            checked_rule,
            free_precedence,
            new_rule,
        )
        from dodona.oracle.systems.books import load_rulebook
        from dodona.oracle.systems.registry import facts_of, registered_systems

        known = registered_systems()
        if append is not None and system is not None:
            raise ConfigError("--append and --system: a book says itself whose facts it reads")
        if system not in (None, *known):
            raise ConfigError(f"--system {system}: expected {' or '.join(known)}")
        if precedence is not None and kind is not RuleKind.override:
            raise ConfigError(f"--precedence: a {kind.value} has none")
        of = system or known[0]
        preferred, names = DEFAULT_RUNNERS[0], (*DEFAULT_RUNNERS, *(runners or ()))
        if append is not None:
            book = load_rulebook(append)
            of, preferred, names = book.system, book.runners[0], book.runners
            if kind is RuleKind.override and precedence is None:
                precedence = free_precedence(append)
        rule = new_rule(
            id,
            when,
            kind=kind.value,
            runners=runners or [preferred],
            feature=feature,
            because=because,
            precedence=precedence,
            registry=facts_of(of, list(dict.fromkeys(names))),
        )
        text = checked_rule(rule, of, list(dict.fromkeys((*names, *rule["runners"]))))
        if append is None:
            say(text, nl=False)
            return
        append_rule(append, rule)
        say(f"{append}: added {id}")


def rules_schema() -> None:
    """Print the JSON Schema of rule files, for editors."""
    from dodona.oracle.authoring.schema import schema_text

    say(schema_text(), nl=False)
