"""The one reader of files that people bring: configurations, model folders, rule books, recorded cases.

It reads regular files only, so that a pipe or a device never blocks or fills memory, and never more than a
limit. JSON must have one value for each key, and bounded depth.
"""

from __future__ import annotations

import gc
import gzip
import io
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from dodona.oracle.errors import ConfigError

MAX_JSON_BYTES: Final = 8 << 20
"""Largest JSON file, unless a caller says otherwise."""

MAX_DEPTH: Final = 64
"""Most levels of objects and lists inside one another."""

MAX_VALUES: Final = 3_000_000
"""Most values of a JSON text. Python takes some 200 bytes for a short one."""

Name = str | os.PathLike[str]


def read_bytes(path: Name, *, limit: int, expected: str = "this file") -> bytes:
    """The content of a regular file of at most `limit` bytes.

    expected: what the file should be, for the message. Raises ConfigError that names the file.
    """
    raw = read_prefix(path, limit=limit)
    if len(raw) > limit:
        raise ConfigError(f"{path}: is larger than {limit} bytes, too large for {expected}; check the path")
    return raw


def read_prefix(path: Name, *, limit: int) -> bytes:
    """The first `limit` + 1 bytes of a regular file: longer than `limit` where the file is.

    Raises ConfigError for what is missing, unreadable or not a regular file.
    """
    with open_regular(path) as stream:
        return stream.read(limit + 1)


@contextmanager
def open_regular(path: Name) -> Iterator[BinaryIO]:
    """A regular file, open for reading.

    Raises ConfigError for what is missing, unreadable or not a regular file, inside the block too.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as stream:
            check_regular(path, os.fstat(stream.fileno()))
            yield stream
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ConfigError:
        raise
    except ValueError:  # a null byte or a surrogate
        raise ConfigError(f"{path}: no file can have this name; check the path") from None


def _without_waiting(path: str, flags: int) -> int:
    # without O_NONBLOCK, opening a pipe waits for a writer
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)


def check_regular(path: Name, status: os.stat_result) -> None:
    """Raise ConfigError unless `status` is that of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        kind = next((word for test, word in _KINDS if test(status.st_mode)), "no regular file")
        raise ConfigError(f"{path}: is {kind}, not a regular file; check the path")


_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def read_text(path: Name, *, limit: int, expected: str = "this file") -> str:
    """A UTF-8 text file of at most `limit` bytes, without a byte order mark. Raises ConfigError."""
    raw = read_bytes(path, limit=limit, expected=expected)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text; save it as UTF-8") from None


def read_json(
    path: Name, *, limit: int = MAX_JSON_BYTES, expected: str = "a JSON file", most: int = MAX_VALUES
) -> Any:
    """The value of a JSON file, of at most `most` values. Raises ConfigError that names the file, and where
    it can, line and column."""
    return parse_json(read_text(path, limit=limit, expected=expected), where=str(path), most=most)


def parse_json(text: str, *, where: str, most: int = MAX_VALUES) -> Any:
    """The value of a JSON text. `where` is its file in messages.

    Raises ConfigError for what is no JSON, for a key that is given twice in one object, for more than
    `MAX_DEPTH` levels, and for more than `most` values.
    """
    if text.count(",") + text.count("[") + text.count("{") > most:
        raise ConfigError(f"{where}: has more than {most} values; check the file")
    try:
        with collector_paused():
            # To look at each object as it is made takes as long as to make it. Where there are as many keys
            # as colons, none is given twice; where there are fewer, one is, or texts have colons.
            value = json.loads(text)
            keys, is_too_deep = _keys_and_depth(value, MAX_DEPTH)
            if not is_too_deep and keys != text.count(":"):
                value = None  # the memory of one value at a time
                value = json.loads(text, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise ConfigError(_too_deep(where)) from None
    except ValueError as error:
        raise ConfigError(f"{where}: not valid JSON: {error}") from None
    if is_too_deep:
        raise ConfigError(_too_deep(where))
    return value


def _too_deep(where: str) -> str:
    return f"{where}: nests deeper than {MAX_DEPTH} levels"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:60]!r} is given twice in one object; keep one of them")
    return found


@contextmanager
def collector_paused() -> Iterator[None]:
    """Inside, Python does not look for cycles: where each of many objects lives on, to look through them
    again and again takes half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _keys_and_depth(value: Any, limit: int) -> tuple[int, bool]:
    """How many keys all objects have, and whether there are more than `limit` levels, which then are not
    counted."""
    keys = 0
    level = [value] if type(value) is dict or type(value) is list else []
    for _ in range(limit):
        if not level:
            return keys, False
        below: list[Any] = []
        for item in level:
            keys += len(item) if type(item) is dict else 0
            inside = item.values() if type(item) is dict else item
            below += [inner for inner in inside if type(inner) is dict or type(inner) is list]
        level = below
    return keys, bool(level)


def read_lines(path: Name, *, limit: int, longest: int) -> Iterator[str]:
    """The lines of a UTF-8 text file, which may be compressed (.gz).

    limit: most bytes, of the text if it is compressed. longest: most bytes of one line. Raises ConfigError.
    """
    compressed = str(path).endswith(".gz")
    raw = read_bytes(path, limit=limit, expected="a list of cases")
    stream: Any = gzip.GzipFile(fileobj=io.BytesIO(raw)) if compressed else io.BytesIO(raw)
    number = taken = 0
    try:
        while line := stream.readline(longest + 1):
            number += 1
            taken += len(line)
            if len(line) > longest:
                raise ConfigError(f"{path}:{number}: is a line of more than {longest} bytes")
            if taken > limit:
                raise ConfigError(f"{path}:{number}: is larger than {limit} bytes when it is unpacked")
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}:{number + 1}: is damaged: {error}") from None


def check_folder(folder: Path, *, suffixes: tuple[str, ...], limit: int) -> None:
    """Check the files of a folder before a library reads them.

    Files whose names end with one of `suffixes` must be regular files of at most `limit` bytes; links to such
    files are legitimate, as in a hub's cache. Raises ConfigError that names the file.
    """
    try:
        entries = [Path(entry.path) for entry in os.scandir(folder)]
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read: {error.strerror or error}") from None
    for file in sorted(entries):
        if not file.name.endswith(suffixes) or file.is_dir():
            continue
        try:
            status = file.stat()
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from None
        check_regular(file, status)
        if status.st_size > limit:
            raise ConfigError(f"{file}: is larger than {limit} bytes; check the file")
