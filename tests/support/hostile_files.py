"""What the hostile corpus is made of: values and contents that no file should have, and how one is tried."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
QWEN3 = ROOT / "checkpoints/qwen3"

HUGE = (0, -1, 2**31 + 1, 10**9, 10**30, 1.5, "many", True, [], {}, [1, "x"], None)
TEXTS = ("\x1b[2J\x1b[31m", "\u202eevil", "\ud800", "x" * 100_000, "\x00", "../../etc", "%s%n{0}", "")

CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"7",
    "cut off": b'{"a": [1, 2',
    "deep": b"[" * 50_000,
    "deep objects": b'{"a":' * 5_000,
    "not UTF-8": b"\xff\xfe\x00",
    "long number": b"9" * 50_000,
    "twice": b'{"a": 1, "a": 2}',
    "header that lies": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
    "weight map of numbers": b'{"weight_map": {"a": 1}}',
    "weight map outside": b'{"weight_map": {"a": "../x.safetensors"}}',
}

SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "directory": Path.mkdir,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path),
    "hole of a gigabyte": lambda path: (path.touch(), os.truncate(path, 1 << 30)),
}


def folder(path: Path, changes: dict[str, Any], source: Path = QWEN3) -> Path:
    """A small checkpoint by links, with changes of its config.json."""
    for file in source.iterdir():
        (path / file.name).symlink_to(file)
    config = {**json.loads((source / "config.json").read_text()), **changes}
    (path / "config.json").unlink()
    (path / "config.json").write_text(json.dumps(config))
    return path


def command(words: Sequence[str]) -> str:
    """What a command line prints. Raises ConfigError where it ends with an error that it says."""
    from typer.testing import CliRunner

    from dodona.cli.app import app
    from dodona.oracle.errors import ConfigError
    from dodona.oracle.printable import HIDDEN

    done = CliRunner().invoke(app, list(words))
    assert not HIDDEN.search(done.output), f"raw text: {HIDDEN.search(done.output)}"
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    if done.exit_code not in (0, 1, 2, 3):
        raise AssertionError(f"exit code {done.exit_code}")
    if done.exit_code > 1:
        raise ConfigError(done.output)
    return done.output
