"""Which files may describe deployments: by name, without following links, in bounds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import read_prefix

FileKind = Literal["shell", "dockerfile", "yaml", "systemd"]

MAX_BYTES: Final = 1 << 20
"""Larger files are left out, and said to be."""

MAX_FILES: Final = 20_000
"""Most files of a run."""

_SKIPPED: Final = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        "node_modules",
        ".venv",
        "venv",
        "__pycache__",
        ".tox",
        ".mypy_cache",
        "site-packages",
    }
)
_DOCKERFILE = re.compile(r"(^|[._-])(dockerfile|containerfile)([._-]|$)", re.IGNORECASE)
_SHEBANG = re.compile(rb"#!.*\b(ba|da|z|k|a)?sh\b")
_MENTIONS = re.compile(rb"vllm|huggingface|^model: ", re.IGNORECASE | re.MULTILINE)
"""Files without any of these hold no start of vLLM's server; the last is of files for `--config`."""


@dataclass(frozen=True)
class Candidate:
    """A file that may describe deployments, and its text."""

    path: str
    kind: FileKind
    text: str


@dataclass(frozen=True)
class LeftOut:
    """A file that could not be read, and why."""

    path: str
    reason: str


def kind_of(path: Path, head: bytes = b"") -> FileKind | None:
    """What a file's name (and its first line) says that it is; None for a file of another kind."""
    name, suffix = path.name, path.suffix.lower()
    if _DOCKERFILE.search(name):
        return "dockerfile"
    if suffix in (".sh", ".bash", ".zsh", ".sbatch", ".slurm"):
        return "shell"
    if suffix in (".yaml", ".yml", ".tpl"):
        return "yaml"
    if suffix == ".service":
        return "systemd"
    return "shell" if not suffix and _SHEBANG.match(head) else None


def candidates(paths: Iterable[str]) -> Iterator[Candidate | LeftOut]:
    """The files of some paths, which are files or folders, that mention vLLM.

    Raises ConfigError for a path that does not exist.
    """
    for count, (path, named) in enumerate(_files(paths)):
        if count >= MAX_FILES:
            raise ConfigError(f"there are more than {MAX_FILES} files; name fewer paths")
        if path.suffix and kind_of(path) is None and not named:
            continue
        try:
            raw = read_prefix(path, limit=MAX_BYTES)
        except ConfigError as error:
            yield LeftOut(str(path), str(error).removeprefix(f"{path}: "))
            continue
        kind = kind_of(path, raw[:200]) or ("shell" if named else None)
        if kind is None:
            continue
        if len(raw) > MAX_BYTES:  # whether it mentions vLLM or not: the rest was not read
            yield LeftOut(str(path), f"is larger than {MAX_BYTES} bytes")
            continue
        if not _MENTIONS.search(raw):
            continue
        try:
            yield Candidate(str(path), kind, raw.decode("utf-8-sig"))
        except UnicodeDecodeError:
            yield LeftOut(str(path), "is not UTF-8 text")


def _files(paths: Iterable[str]) -> Iterator[tuple[Path, bool]]:
    """Files in order, each once, and whether it was named itself."""
    seen: set[str] = set()
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise ConfigError(f"{name}: no such file or directory; check the path")
        if not path.is_dir():
            found = [(path, True)]
        else:
            found = [(file, False) for file in _below(path)]
        for file, named in found:
            key = os.path.abspath(file)
            if key not in seen:
                seen.add(key)
                yield file, named


def _below(folder: Path) -> Iterator[Path]:
    for base, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            path = Path(base, name)
            if not path.is_symlink():
                yield path
