"""The files of a tokenizer, as far as their damage can be told without the tokenizer's library."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Final

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import check_regular, parse_json, read_json, read_prefix

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "spiece.model",
)
"""A directory with none of these has no tokenizer."""

MAX_PARSED_BYTES: Final = 1 << 20
"""Of a larger tokenizer.json only the beginning and the end are looked at."""

_CONFIGURATIONS: Final = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_VOCABULARIES: Final = (".model", ".txt", ".tiktoken", ".vocab", ".bpe", ".spm", ".v3", ".py", ".bin")
_NO_VOCABULARIES: Final = (
    "config.json",
    "index.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "modules.json",
)
_JSON: Final = ("tokenizer.json", *_CONFIGURATIONS)


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory has a tokenizer's files."""
    return any((directory / name).exists() for name in TOKENIZER_FILES)


def check_tokenizer(directory: Path) -> None:
    """Raise ConfigError where a directory has no tokenizer, or its JSON files are cut off or damaged."""
    if not has_tokenizer(directory):
        raise ConfigError(f"tokenizer: {directory} has no tokenizer files ({', '.join(TOKENIZER_FILES)})")
    fault = _fault(directory, tuple(_stamp(directory / name) for name in _JSON))
    if fault is not None:
        raise ConfigError(
            f"tokenizer: {directory} can't be read: {fault}; mend it, or give token ids with "
            "skip_tokenizer_init=True"
        )


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=256)
def _fault(directory: Path, stamps: tuple[object, ...]) -> str | None:
    """Read again only when a file has changed."""
    try:
        for name in _CONFIGURATIONS:
            if (directory / name).exists():
                _check_object(directory / name, read_json(directory / name))
        _check_tokenizer_json(directory / "tokenizer.json")
        if not _has_vocabulary(directory):
            raise ConfigError(
                f"{directory}: tokenizer_config.json names no tokenizer_class, and no file has a vocabulary"
            )
    except ConfigError as error:
        return str(error)
    return None


def _check_tokenizer_json(file: Path) -> None:
    if not file.exists():
        return
    begin = read_prefix(file, limit=MAX_PARSED_BYTES)
    if len(begin) <= MAX_PARSED_BYTES:
        value = parse_json(begin.decode("utf-8", "replace"), where=str(file))
        _check_object(file, value)
        if not isinstance(value.get("added_tokens"), list) or not isinstance(value.get("model"), dict):
            raise ConfigError(f"{file}: has no 'model' and 'added_tokens' of the tokenizers library")
        return
    check_regular(file, file.stat())
    with open(file, "rb") as stream:
        stream.seek(-64, 2)
        end = stream.read(64)
    if not begin.lstrip().startswith(b"{") or not end.rstrip().endswith(b"}"):
        raise ConfigError(f"{file}: is cut off, or no JSON object")


def _has_vocabulary(directory: Path) -> bool:
    """Whether some file may be a vocabulary, or the tokenizer's class needs none."""
    if any(entry.name.endswith(_VOCABULARIES) for entry in os.scandir(directory)):
        return True
    others = [
        name
        for entry in os.scandir(directory)
        if (name := entry.name).endswith(".json") and not name.endswith(_NO_VOCABULARIES)
    ]
    return bool(others) or "tokenizer_class" in read_json(directory / "tokenizer_config.json")


def _check_object(file: Path, value: object) -> None:
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: expected an object, got {type(value).__name__}")
