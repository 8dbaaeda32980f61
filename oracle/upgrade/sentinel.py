"""`examine`: from paths to a report."""

from __future__ import annotations

from collections.abc import Iterable

from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import Environment
from dodona.oracle.systems.vllm.releases import release_of
from dodona.oracle.upgrade.comparison import Finding, Unknown, books_between, compare
from dodona.oracle.upgrade.discovery import LeftOut, candidates
from dodona.oracle.upgrade.places import starts
from dodona.oracle.upgrade.report import Report, make_report


def examine(
    paths: Iterable[str], *, first: str, last: str, machine: Environment, machine_name: str
) -> Report:
    """Find the starts of vLLM's server in files and folders, and say what the upgrade changes for each.

    first, last: the releases, as `vllm/0.24.0` or `0.24.0`. machine: what they run on; machine_name: its
    name in the report. Nothing is executed or downloaded. Raises ConfigError for a path or a release that
    does not exist.
    """
    books = books_between(first, last)
    found: list[Finding | Unknown] = []
    left_out: list[LeftOut] = []
    files = 0
    for candidate in candidates(paths):
        if isinstance(candidate, LeftOut):
            left_out.append(candidate)
            continue
        files += 1
        try:
            found += [compare(start, books, machine) for start in starts(candidate)]
        except ConfigError as error:
            reason = str(error).removeprefix(candidate.path).lstrip(": ")
            left_out.append(LeftOut(candidate.path, reason))
    names = [release_of(book.rulebook) or book.rulebook for book in (books[0], books[-1])]
    return make_report(names[0], names[1], machine_name, found, left_out, files)
