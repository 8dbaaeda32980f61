"""How commands print: everything goes through `printable`, and streams take whatever text there is."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any, Final

import typer

from dodona.oracle.printable import HIDDEN, printable

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EPIPE})


def say(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text, with control characters as escapes."""
    typer.echo(printable(text), err=err, nl=nl)


def say_json(value: Any) -> None:
    """Print one JSON value on a line of stdout, with control characters as JSON's escapes."""
    typer.echo(HIDDEN.sub(_json_escape, json.dumps(value, ensure_ascii=False)))


class _PrintableRecord(logging.LogRecord):
    """Libraries log what a model's files say."""

    def getMessage(self) -> str:
        return printable(super().getMessage())


class _Stderr(io.FileIO):
    """stderr, which drops what it can't take: the exit code still says what happened."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return len(data)


def _printable_warning(*args: Any, **named: Any) -> str:
    """Libraries warn of what a model's files say."""
    return printable(_format_warning(*args, **named))


_format_warning: Final = warnings.formatwarning


def _is_closed(stream: object) -> bool:
    return stream is None  # what the interpreter makes of a file descriptor that isn't open


def _json_escape(match: re.Match[str]) -> str:
    # only inside strings: JSON has none of these characters elsewhere
    return f"\\u{ord(match[0]):04x}"


def run(command: Callable[[], None]) -> None:
    """Run a command whose result goes to stdout.

    What a stream's encoding can't hold is written as an escape. Where stdout takes no more, for instance on a
    full disk, or is closed, a line on stderr says so, and the exit code is 1. What stderr can't take is
    dropped.
    """
    if _is_closed(sys.stderr):
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - to the end of the process
    elif (stderr := sys.__stderr__) is not None and sys.stderr is stderr:
        patient = io.BufferedWriter(_Stderr(stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(patient, stderr.encoding, line_buffering=True)
    if _is_closed(sys.stdout):
        typer.echo("dodona: stdout can't be written: it is closed", err=True)
        sys.exit(1)
    logging.setLogRecordFactory(_PrintableRecord)
    warnings.formatwarning = _printable_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in _FULL:
            raise
        typer.echo(f"dodona: stdout can't be written: {error.strerror}", err=True)
        # the interpreter flushes stdout once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
