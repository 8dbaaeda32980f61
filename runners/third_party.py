"""What other libraries raise about a model's files, as named errors with the cause kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dodona.oracle.errors import ConfigError, DodonaError
from dodona.oracle.printable import printable

_LONGEST = 300
"""Most characters of a library's message."""


@contextmanager
def naming(what: str, mend: str = "") -> Iterator[None]:
    """Turn what a library raises inside into ConfigError: `what`, the library's first line, and `mend`.

    Errors of Dodona, interrupts and the process's exit pass. The tokenizers library's panics are no
    Exception, and are turned too.
    """
    try:
        yield
    except BaseException as error:
        if not is_third_party(error):
            raise
        raise ConfigError(f"{what}: {first_line(error)}{f'; {mend}' if mend else ''}") from error


def is_third_party(error: BaseException) -> bool:
    """Whether a library says so about its input, with an exception or a panic of Rust code."""
    if isinstance(error, (DodonaError, MemoryError)):
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """An error's type and the first line of its message, printable and short."""
    lines = str(error).strip().splitlines()
    text = printable(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
