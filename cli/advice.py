"""What `dodona select` adds to a verdict: the trace, what would have to change, and other books' answers."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dodona.cli.common import NOTHING, print_verdict
from dodona.cli.output import say, say_json
from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.explain.counterfactuals import Counterfactuals, counterfactuals
from dodona.oracle.explain.set_products import independent_choices
from dodona.oracle.explain.table import PLAIN_WIDTH
from dodona.oracle.explain.trace import Step, trace
from dodona.oracle.select import Configuration, select_runner
from dodona.oracle.systems.books import load_rulebook
from dodona.oracle.systems.verdict_deployment import deployment_of

if TYPE_CHECKING:
    from dodona.oracle.decide.verdict import Verdict
    from dodona.oracle.machine.environment import Environment


def print_advice(
    verdict: Verdict,
    rulebook: str,
    *,
    explain: bool,
    why_not: str | None,
    as_json: bool,
    beside: Mapping[str, Any] = NOTHING,
) -> None:
    """Print a verdict with its trace and its counterfactuals, or one JSON object of these and
    `beside`. Raises ConfigError for a runner that the book doesn't have.
    """
    book = load_rulebook(rulebook)
    runner = (
        None if why_not is None else next((name for name in book.runners if name == why_not.lower()), None)
    )
    if why_not is not None and runner is None:
        raise ConfigError(f"--why-not {why_not}: expected one of {', '.join(book.runners)}")
    deployment = deployment_of(verdict, book)
    steps = trace(deployment) if explain else ()
    found = None if runner is None else counterfactuals(deployment, runner)
    if as_json:
        data: dict[str, Any] = {"verdict": verdict.model_dump(mode="json")}
        if explain:
            data["trace"] = [step.to_mapping() for step in steps]
        if found is not None:
            data["counterfactuals"] = found.to_mapping()
        say_json({**data, **beside})
        return
    print_verdict(verdict, False)
    if explain:
        say()
        print_trace(steps)
    if found is not None:
        print_counterfactuals(found)


def print_trace(steps: Sequence[Step]) -> None:
    """A row for every rule: what it read, whether it fired, and what that did."""
    from rich.table import Table

    from dodona.oracle.explain.table import make_console, words

    table = Table(
        title="Every rule, in the book's order (* the outcome hangs on it)",
        title_justify="left",
        show_lines=False,
    )
    table.add_column("Rule", no_wrap=True)
    table.add_column("Fired", no_wrap=True)
    table.add_column("Effect", overflow="fold")
    table.add_column("Facts that it read", overflow="fold")
    for step in steps:
        style = "" if not step.fired else "bold red" if step.decisive else "red"
        effect = f"{step.effect}{' *' if step.decisive else ''}"
        table.add_row(
            words(step.rule.id, style=style),
            words(_fired(step), style=style),
            words(effect, style=style),
            words("\n".join(map(str, step.facts)), style="" if step.fired else "dim"),
        )
    make_console().print(table)


def _fired(step: Step) -> str:
    if step.certain:
        return "yes" if step.fired else "no"
    return "unknown: counts as yes" if step.fired else "unknown: counts as no"


def print_counterfactuals(found: Counterfactuals) -> None:
    """What would have to change, or what blocks; and what forcing would meet."""
    runner = found.runner
    if found.holds_already:
        say(f"\nWhy not {runner}? It is {runner}: nothing has to change.")
        return
    if found:
        say(f"\nFor {runner} to be chosen and to start:")
        for line in _sets(found.sets):
            say(line)
        if not found.complete:
            say("  … and there are more sets than were looked at.")
    else:
        say(f"\nNo change of the configuration leads to {runner}. In the way:")
        for blocker in found.blocked_by:
            say(f"  - {blocker.feature}  [{blocker.rule}; {_where(blocker.sources)}]")
            say(f"      {blocker.because}")
            if blocker.facts:
                say(f"      Here: {'; '.join(blocker.facts)}")
    for case in found.special_cases:
        broader = ", ".join(case.broader)
        options = " or ".join(" and ".join(map(str, least)) for least in case.sets) or "nothing helps"
        _say(f"Were {broader} lifted, {case.rule} would remain; against it: {options}.")
    for forcing in found.forcing:
        _say(f"By force: {forcing}.")


def _say(text: str) -> None:
    for line in textwrap.wrap(text, PLAIN_WIDTH, subsequent_indent="    ", break_on_hyphens=False):
        say(line)


def _sets(sets: Sequence[Sequence[Any]]) -> list[str]:
    """All sets of changes as independent choices."""
    blocks = independent_choices(sets)
    if len(blocks) == 1 and len(blocks[0]) > 1:
        return [
            f"  {'or ' if i else '   '}{', and '.join(map(str, option))}"
            for i, option in enumerate(blocks[0])
        ]
    lines: list[str] = []
    for options in blocks:
        shown = [" and ".join(map(str, option)) for option in options]
        lines.append(f"  - {shown[0]}" if len(shown) == 1 else f"  - one of: {', or '.join(shown)}")
    return lines


def _where(sources: Sequence[str]) -> str:
    words = {
        "model": "the model",
        "machine": "the machine",
        "override": "the environment variable",
        "configuration": "the configuration",
        "preference": "the order of preference",
    }
    return " and ".join(words[source] for source in sources)


# --- several books ------------------------------------------------------------------------------------------


def check_comparable(names: Sequence[str]) -> None:
    """Raises ConfigError where books don't compare: fewer than two, or of different systems."""
    if len(names) < 2:
        raise ConfigError("--compare: name at least two rule books, separated by commas")
    systems = {load_rulebook(name).system for name in names}
    if len(systems) > 1:
        raise ConfigError(
            f"--compare: books of {' and '.join(sorted(systems))} read configurations in different ways; "
            "compare books of one system"
        )


def run_comparison(
    config: Configuration,
    compared: str,
    environment: Callable[[str], Environment | None],
    *,
    rulebook: str,
    asked: object,
    as_json: bool,
) -> None:
    """Print the verdicts of several books side by side, or one JSON object of them by the books' names.

    environment: the machine to decide for, by the book's name. Raises ConfigError for a list of books that
    can't be compared, and for options that ask of one book only (rulebook other than "dodona", `asked`).
    """
    names = list(dict.fromkeys(name.strip() for name in compared.split(",") if name.strip()))
    if rulebook != "dodona" or asked:
        raise ConfigError("--compare goes without --rulebook, --explain and --why-not: they ask of one book")
    check_comparable(names)
    found: dict[str, Verdict] = {}
    for name in names:
        try:
            found[name] = select_runner(config, rulebook=name, environment=environment(name))
        except UnsupportedConfiguration as refusal:
            if refusal.verdict is None:
                raise
            found[name] = refusal.verdict
    if as_json:
        say_json({name: verdict.model_dump(mode="json") for name, verdict in found.items()})
    else:
        print_comparison(found)


def print_comparison(verdicts: Mapping[str, Verdict]) -> None:
    """One column for each book; a row for what each decides, and one for each feature that some runner
    lacks."""
    from rich.table import Table
    from rich.text import Text

    from dodona.oracle.explain.table import make_console, words

    first = next(iter(verdicts.values()))
    table = Table(
        title=words(f"What each rule book decides of {first.config.model_config.model}"), show_lines=True
    )
    table.add_column("", overflow="fold")
    for name in verdicts:
        table.add_column(name, overflow="fold")
    table.add_row(
        "Runner",
        *(words(v.runner or "none", style="bold red" if v.refusals else "bold") for v in verdicts.values()),
    )
    table.add_row("Starts", *("no" if v.refusals or v.runner is None else "yes" for v in verdicts.values()))
    table.add_row("Decided by", *(words(v.decided_by) for v in verdicts.values()))
    table.add_row("It logs", *(words(v.log or "–") for v in verdicts.values()))
    refused = {name: {r.rule for r in v.refusals} for name, v in verdicts.items()}
    for rule in dict.fromkeys(reason.rule for v in verdicts.values() for reason in v.reasons):
        cells: list[Text] = []
        for name, verdict in verdicts.items():
            reason = next((r for r in verdict.reasons if r.rule == rule), None)
            if reason is None:
                cells.append(words("–", style="dim"))
            else:
                verb = "chooses" if reason.kind == "override" else "against"
                stop = ", refused" if rule in refused[name] else ""
                cells.append(words(f"{verb} {', '.join(reason.runners) or 'any'}{stop}: {reason.feature}"))
        table.add_row(words(rule), *cells)
    for name_of in dict.fromkeys(c.consequence for v in verdicts.values() for c in v.consequences):
        cells = []
        for verdict in verdicts.values():
            found = next((c for c in verdict.consequences if c.consequence == name_of), None)
            cells.append(
                words("–", style="dim") if found is None else words(f"{found.severity}: {found.feature}")
            )
        table.add_row(words(name_of), *cells)
    if any(v.unread for v in verdicts.values()):
        table.add_row("Not understood", *(words("\n".join(v.unread) or "–") for v in verdicts.values()))
    assumed = [words("\n".join(v.assumptions) or "–") for v in verdicts.values()]
    if any(v.assumptions for v in verdicts.values()):
        table.add_row("Assumed", *assumed)
    make_console().print(table)
