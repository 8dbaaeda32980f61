"""What Dodona raises, and the nearest-name hint that its messages end with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from dodona.oracle.printable import printable, without_userinfo

if TYPE_CHECKING:
    from dodona.oracle.decide.verdict import Verdict


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint such as ``did you mean 'block_size'?`` for the known name nearest to `name`, else ``""``."""
    folded = {candidate.lower().replace("-", "_"): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return f"did you mean {folded[found[0]]!r}?" if found else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'?` for the closest known name, or an empty string where none is close."""
    candidates = list(known)
    found = did_you_mean(name, candidates)
    if not found:
        # the section is often forgotten or wrong: look for the same last part
        tail = name.rsplit(".", 1)[-1].lower()
        found = did_you_mean(tail, {c.rsplit(".", 1)[-1] for c in candidates})
        if found:
            last = found.split("'")[1]
            found = f"did you mean {next(c for c in candidates if c.rsplit('.', 1)[-1] == last)!r}?"
    return found[:1].upper() + found[1:]


class DodonaError(Exception):
    """Base of everything that Dodona raises on purpose. Its texts have no `user:password@` of URLs, and what
    would steer a terminal is an escape (`printable`)."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*(_text(arg) if isinstance(arg, str) else arg for arg in args))


LONGEST: Final = 20_000
"""Most characters of an error: what a file holds may be megabytes."""


def _text(given: str) -> str:
    text = without_userinfo(printable(given))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


class ConfigError(DodonaError, ValueError):
    """A configuration, a flag, an environment variable or a model's config.json is not as it must be."""


class UnreadableField(ConfigError):
    """A field of a model's config.json holds what it can't hold. `field` is its name."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class RuleFileError(DodonaError):
    """A rule file does not load.

    `str()` reads ``file:line:column: message (hint)``; lines and columns count from 1.
    """

    def __init__(self, file: str, line: int, column: int, message: str, hint: str = "") -> None:
        super().__init__(file, line, column, message, hint)
        self.file = file
        self.line = line
        self.column = column
        self.message = _text(message)
        self.hint = _text(hint)

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{printable(self.file)}:{self.line}:{self.column}: {self.message}{hint}"


class UnsupportedConfiguration(DodonaError):
    """A runner cannot serve a configuration.

    `verdict` is the decision that says so, or None where a runner found out by itself; `features` names what
    is lacking.
    """

    def __init__(self, message: str, *, verdict: Verdict | None = None, features: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.features = tuple(features)

    @classmethod
    def lacking(cls, runner: str, *features: str, why: str = "") -> UnsupportedConfiguration:
        """The error of a runner that lacks `features`; `why` is added where the names do not say enough."""
        message = f"runner {runner} does not support {', '.join(features)}"
        return cls(f"{message}: {why}" if why else message, features=features)

    @classmethod
    def from_verdict(cls, verdict: Verdict) -> UnsupportedConfiguration:
        """The error of a verdict with refusals; the message lists each of them."""
        lines = [f"  - {r.feature}: {r.because} [{r.rule}]" for r in verdict.refusals]
        runner = verdict.runner
        if verdict.forced_runner is not None:
            head = f"runner {verdict.forced_runner}, which was forced, cannot serve this configuration:"
        elif runner is None:
            head = f"the choice of a runner is refused ({verdict.decided_by}):"
        elif verdict.no_runner_can_serve:
            head = f"no runner can serve this configuration; {runner} ({verdict.decided_by}) lacks:"
        else:
            head = f"runner {runner} ({verdict.decided_by}) cannot start; it lacks:"
        return cls("\n".join([head, *lines]), verdict=verdict, features=[r.feature for r in verdict.refusals])

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_unsupported, (str(self), self.verdict, self.features)


def _restore_unsupported(
    message: str, verdict: Verdict | None, features: tuple[str, ...]
) -> UnsupportedConfiguration:
    # Exceptions with keyword-only arguments do not pickle by default, and these cross process boundaries.
    return UnsupportedConfiguration(message, verdict=verdict, features=features)
