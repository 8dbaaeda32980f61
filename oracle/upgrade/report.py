"""An upgrade's findings as text, Markdown, data and SARIF. Of files' values they hold models' names only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from dodona.oracle.language.consequence import Severity
from dodona.oracle.markdown import escaped, table
from dodona.oracle.upgrade.comparison import Finding, Step, Unknown
from dodona.oracle.upgrade.discovery import LeftOut


@dataclass(frozen=True)
class Report:
    """Everything that was found."""

    first: str
    """The release before, such as 0.24.0."""
    last: str
    machine: str
    findings: tuple[Finding, ...]
    unknown: tuple[Unknown, ...]
    left_out: tuple[LeftOut, ...]
    files: int
    """Files that mention vLLM and were read."""

    def changed(self) -> tuple[Finding, ...]:
        """Those for which anything changes."""
        return tuple(finding for finding in self.findings if finding.changes)

    def failing(self, fail_on: Severity) -> tuple[Finding, ...]:
        """Those whose runner or start changes, or with a new consequence that is this severe."""
        return tuple(finding for finding in self.findings if finding.matters(fail_on))


def _summary(report: Report) -> str:
    found, changed = len(report.findings) + len(report.unknown), len(report.changed())
    unknown = f", {len(report.unknown)} not known" if report.unknown else ""
    return (
        f"vLLM {report.first} → {report.last} on {report.machine}: "
        f"{_counted(found, 'start')} of the server in {_counted(report.files, 'file')}; "
        f"{changed} {'changes' if changed == 1 else 'change'}{unknown}."
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _where(finding: Finding | Unknown) -> str:
    name = f" {finding.name}" if finding.name else ""
    return f"{finding.path}:{finding.line} ({finding.place}{name})"


def _state(step: Step) -> str:
    if step.runner is None:
        return "the choice is refused"
    return f"{step.runner}{'' if step.starts else ', does not start'}"


def _lines(finding: Finding) -> list[str]:
    """What is said of a finding below its place."""
    before, after = finding.before, finding.after
    lines: list[str] = []
    if "runner" in finding.changes or "start" in finding.changes:
        lines.append(
            f"{_state(before)} → {_state(after)} (first in {finding.first_changed or after.release})"
        )
        lines += [f"{step.release}: {', '.join(step.why)}" for step in (before, after) if step.why]
    else:
        lines.append(f"stays {_state(after)}")
        if not after.starts and after.why:
            lines.append(f"{after.release}: {', '.join(after.why)}")
    for new in finding.new_consequences:
        mend = f" {new.mend}" if new.mend else ""
        lines.append(f"new {new.severity} [{new.consequence}] {new.feature}: {new.because}{mend}")
    if finding.gone_consequences:
        lines.append(f"no longer: {', '.join(finding.gone_consequences)}")
    if finding.keep is not None:
        lines.append(f"to keep {before.runner}: {finding.keep}")
    lines += finding.advice
    lines += [f"not understood: {text}" for text in finding.unread]
    lines += [f"assumed: {text}" for text in finding.assumed]
    if finding.image_release is not None and finding.image_release not in (before.release, after.release):
        lines.append(f"its image is {finding.image_release}")
    return lines


def as_text(report: Report) -> str:
    """For a terminal or a log."""
    lines = [_summary(report)]
    for finding in report.findings:
        lines += ["", f"{_where(finding)}: {finding.model}", *(f"  {line}" for line in _lines(finding))]
    for unknown in report.unknown:
        lines += ["", f"{_where(unknown)}: not known", f"  {unknown.reason}"]
    for left_out in report.left_out:
        lines += ["", f"{left_out.path}: left out: {left_out.reason}"]
    return "\n".join(lines)


def as_markdown(report: Report) -> str:
    """For a comment on a pull request."""
    lines = ["## vLLM upgrade", "", escaped(_summary(report)), ""]
    if report.findings:
        head = ("where", "model", report.first, report.last, "new", "to keep it")
        lines += table(head, map(_cells, report.findings))
    for finding in report.changed():
        lines += ["", f"**{escaped(_where(finding))}**", ""]
        lines += [f"- {escaped(line)}" for line in _lines(finding)]
    if report.unknown or report.left_out:
        lines += ["", "Not known:", ""]
        lines += [f"- {escaped(f'{_where(u)}: {u.reason}')}" for u in report.unknown]
        lines += [f"- {escaped(f'{left.path}: {left.reason}')}" for left in report.left_out]
    return "\n".join(lines) + "\n"


def _cells(finding: Finding) -> list[str]:
    """A finding's row of the table."""
    new = ", ".join(f"{c.severity}: `{c.consequence}`" for c in finding.new_consequences)
    return [
        escaped(_where(finding)),
        escaped(finding.model),
        _state(finding.before),
        _state(finding.after),
        new or "–",
        f"`{finding.keep}`" if finding.keep else "–",
    ]


def as_data(report: Report) -> dict[str, Any]:
    """Plain JSON values."""
    return {
        "from": report.first,
        "to": report.last,
        "machine": report.machine,
        "files": report.files,
        "findings": [_finding_data(finding) for finding in report.findings],
        "unknown": [dataclasses.asdict(unknown) for unknown in report.unknown],
        "left_out": [dataclasses.asdict(left) for left in report.left_out],
    }


def _finding_data(finding: Finding) -> dict[str, Any]:
    data = {
        field.name: getattr(finding, field.name)
        for field in dataclasses.fields(finding)
        if field.name not in ("before", "after", "new_consequences")
    }
    new = [c.model_dump(mode="json", exclude={"facts"}) for c in finding.new_consequences]
    return {
        **data,
        "before": dataclasses.asdict(finding.before),
        "after": dataclasses.asdict(finding.after),
        "new_consequences": new,
    }


_LEVELS: Final[Mapping[str, str]] = {"info": "note", "warning": "warning", "error": "error"}
_KINDS: Final[Mapping[str, str]] = {
    "runner-changes": "Another model runner serves after the upgrade.",
    "start-changes": "The server starts before the upgrade and not after it, or the other way round.",
    "not-known": "A start of the server, or a file, of which nothing can be said.",
}


def as_sarif(report: Report, version: str) -> dict[str, Any]:
    """SARIF 2.1.0, for code scanning. version: of this program."""
    rules: dict[str, str] = dict(_KINDS)
    results: list[dict[str, Any]] = []
    for finding in report.findings:
        said = " ".join(f"{line.rstrip('.')}." for line in _lines(finding))
        if "runner" in finding.changes:
            results.append(_result("runner-changes", "warning", said, finding.path, finding.line))
        if "start" in finding.changes:
            level = "note" if finding.after.starts else "error"
            results.append(_result("start-changes", level, said, finding.path, finding.line))
        for new in finding.new_consequences:
            rules.setdefault(new.consequence, new.feature)
            text = " ".join(filter(None, (f"{new.feature}: {new.because}", new.mend)))
            results.append(_result(new.consequence, _LEVELS[new.severity], text, finding.path, finding.line))
    results += [_result("not-known", "note", f"{one.reason}.", one.path, one.line) for one in report.unknown]
    results += [_result("not-known", "note", f"Left out: {one.reason}.", one.path) for one in report.left_out]
    driver = {
        "name": "dodona upgrade",
        "version": version,
        "rules": [{"id": name, "shortDescription": {"text": text}} for name, text in rules.items()],
    }
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }


def _result(rule: str, level: str, text: str, path: str, line: int = 1) -> dict[str, Any]:
    location = {
        "artifactLocation": {"uri": quote(path.replace("\\", "/"))},
        "region": {"startLine": max(1, line)},
    }
    return {
        "ruleId": rule,
        "level": level,
        "message": {"text": text},
        "locations": [{"physicalLocation": location}],
    }


def make_report(
    first: str,
    last: str,
    machine: str,
    found: Sequence[Finding | Unknown],
    left_out: Sequence[LeftOut],
    files: int,
) -> Report:
    """Sort what was found."""
    return Report(
        first,
        last,
        machine,
        tuple(one for one in found if isinstance(one, Finding)),
        tuple(one for one in found if isinstance(one, Unknown)),
        tuple(left_out),
        files,
    )
