"""A verdict as text for operators."""

from __future__ import annotations

import textwrap

from dodona.oracle.decide.outcome import FALLBACK, PREFERRED
from dodona.oracle.decide.verdict import Reason, ReportedConsequence, Verdict
from dodona.oracle.language.facts import show_value
from dodona.oracle.language.rulebook import OWN_SYSTEM
from dodona.oracle.printable import printable

_WIDTH = 100
_ITEM_WIDTH = 160


def explain(verdict: Verdict) -> str:
    """The runner, who decided, and each reason with its feature, references and remedy. Ends without a line
    break.
    """
    lines = [_headline(verdict), *_unread(verdict), ""]
    if verdict.refusals:
        lines.append(f"It is refused, for {_count(len(verdict.refusals), 'reason')}:")
        lines += _reasons(verdict.refusals)
    refused = {reason.rule for reason in verdict.refusals}
    others = [r for r in verdict.reasons if r.rule not in refused and r.kind != "override"]
    for runner in verdict.unsupported.runners:
        mine = [reason for reason in others if runner in reason.runners]
        if mine:
            moot = ", had it been the choice" if verdict.forced else ""
            lines.append(f"What {runner} can't do here{moot}:")
            lines += _reasons(mine)
            others = [reason for reason in others if reason not in mine]
    for override in (reason for reason in verdict.reasons if reason.kind == "override"):
        what = "decided" if override.rule == verdict.decided_by else "was outranked"
        lines.append(f"Override {what}:")
        lines += _reasons([override])
    if not verdict.reasons:
        lines += ["No rule fired.", ""]
    if verdict.consequences:
        lines.append(f"With {verdict.runner}:")
        lines += _consequences(verdict.consequences)
    if verdict.assumptions:
        lines.append("Assumed, since it isn't known:")
        lines += [f"  - {assumption}" for assumption in verdict.assumptions]
        lines.append("")
    if verdict.log is not None:
        lines += [f"{verdict.rulebook.system} logs: {verdict.log}", ""]
    elif verdict.rulebook.system != OWN_SYSTEM and verdict.decided_by == FALLBACK:
        lines += [f"{verdict.rulebook.system} logs nothing of this.", ""]
    book = verdict.rulebook
    engine = "durable-rules" if verdict.evaluated_by == "durable_rules" else "the reference evaluator"
    lines.append(f"Rule book {book.name} ({book.content_hash[:12]}), evaluated by {engine}.")
    return printable("\n".join(lines))


def _unread(verdict: Verdict) -> list[str]:
    if not verdict.unread:
        return []
    return ["Not understood, and it may be otherwise for that:", *(f"  - {text}" for text in verdict.unread)]


def _headline(verdict: Verdict) -> str:
    model = verdict.config.model_config.model
    if verdict.forced_runner is not None:
        if verdict.runner is None:
            forced = f"{verdict.forced_runner} was forced ({verdict.decided_by})"
            return f"No runner for {model}: {forced}, and can't serve it."
        start = ", and can't start" if verdict.refusals else ""
        return f"Runner {verdict.runner} for {model}: forced ({verdict.decided_by}){start}."
    if verdict.runner is None:
        return f"No runner for {model}: the choice itself is refused ({verdict.decided_by})."
    if verdict.refusals and verdict.decided_by == PREFERRED:
        return f"Runner {verdict.runner} for {model}: it is preferred, but can't start."
    if verdict.refusals and verdict.no_runner_can_serve:
        return f"No runner for {model}: the fallback {verdict.runner} can't serve it either."
    if verdict.refusals:
        return f"Runner {verdict.runner} for {model}: it is the fallback, but can't start."
    if verdict.decided_by == PREFERRED:
        return f"Runner {verdict.runner} for {model}: it is preferred, and nothing rules it out."
    return f"Runner {verdict.runner} for {model}: the fallback, since what is preferred is ruled out."


def _reasons(reasons: tuple[Reason, ...] | list[Reason]) -> list[str]:
    lines: list[str] = []
    for reason in reasons:
        special = f", a special case of {', '.join(reason.refines)}" if reason.refines else ""
        lines += textwrap.wrap(
            f"  - {reason.feature}  [{reason.rule}{special}]",
            _ITEM_WIDTH,
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        )
        lines += _wrapped(reason.because)
        if reason.unknown:
            lines += _wrapped(
                f"Not known: {', '.join(reason.unknown)}. Unknown facts count against the runner."
            )
        if reason.facts:
            lines += _wrapped(
                "Here: " + "; ".join(f"{name} = {show_value(value)}" for name, value in reason.facts)
            )
        lines += _wrapped(f"It would not hold if: {reason.remedy}")
        if reason.refs:
            lines += _wrapped(f"See: {', '.join(reason.refs)}")
    lines.append("")
    return lines


def _consequences(consequences: tuple[ReportedConsequence, ...]) -> list[str]:
    lines: list[str] = []
    for found in consequences:
        lines.append(f"  - {found.severity}: {found.feature}  [{found.consequence}]")
        lines += _wrapped(found.because)
        if found.mend is not None:
            lines += _wrapped(f"To mend it: {found.mend}")
        if found.refs:
            lines += _wrapped(f"See: {', '.join(found.refs)}")
    lines.append("")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent="      ",
        subsequent_indent="        ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
