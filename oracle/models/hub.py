"""Resolves the name of a model to a directory. A path is used directly; a hub id is looked up in the local
Hugging Face cache and downloaded if necessary."""

from __future__ import annotations

import functools
import re
import time
from pathlib import Path

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.weight_files import weight_files
from dodona.oracle.printable import short

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_CONFIG_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_WEIGHT_FILES = ["*.safetensors"]


def locate_or_download(model: str, *, revision: str | None = None, weights: bool = False) -> Path:
    """The directory of `model`: itself, or the snapshot of a hub id.

    A snapshot comes from the local cache if it is there with all that is asked for, else it is downloaded:
    the configuration and tokenizer files, and with `weights` the safetensors too. Raises ConfigError.
    """
    directory = local_directory(model)
    if directory is None:
        return _snapshot(model, revision, weights)
    if revision is not None:
        raise ConfigError(f"revision {revision!r}: {model} is a directory, and only hub ids have revisions")
    return directory


def local_directory(model: str) -> Path | None:
    """The directory that a name is the path of; None for a hub id. Raises ConfigError for other names."""
    try:
        path = Path(model).expanduser()
        is_directory, exists = path.is_dir(), path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, an unknown user's home
        raise ConfigError(f"model {short(model)}: no such directory: {error!s:.80}; check the path") from None
    if is_directory:
        return path
    if exists:
        raise ConfigError(f"model {model}: is a file; give the directory that holds config.json")
    if model.startswith(("/", "./", "../", "~")) or not _HUB_ID.fullmatch(model):
        raise ConfigError(f"model {model}: no such directory; check the path")
    return None


def found_directory(name: str, *, here: bool) -> Path | None:
    """Where a draft's or a tokenizer's configuration is: a directory, or the hub's cache, into which it is
    downloaded without weights. None: it is on the hub, and the question is about another machine (not
    `here`).

    Raises ConfigError for what can't be had.
    """
    directory = local_directory(name)
    if directory is not None or not here:
        return directory
    found = _downloaded(name, int(time.monotonic() // _ASKED_AGAIN_AFTER))
    if isinstance(found, str):
        raise ConfigError(found)
    return found


_ASKED_AGAIN_AFTER = 60
"""Seconds: a verdict's facts are derived many times."""


@functools.lru_cache(maxsize=64)
def _downloaded(name: str, minute: int) -> Path | str:
    try:
        return locate_or_download(name)
    except ConfigError as error:
        return str(error)


def is_to_be_downloaded(model: str, directory: Path) -> bool:
    """Whether `model` is a hub id whose snapshot in `directory` still lacks weights, and the hub may be
    asked."""
    if local_directory(model) is not None or _is_whole(directory, weights=True):
        return False
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return not HF_HUB_OFFLINE


def _snapshot(model: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    patterns = _CONFIG_FILES + (_WEIGHT_FILES if weights else [])
    try:
        local = Path(
            snapshot_download(model, revision=revision, allow_patterns=patterns, local_files_only=True)
        )
        if _is_whole(local, weights):
            return local
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    try:
        found = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"model {model}: no such directory, not in the local Hugging Face cache, and the download "
            f"fails: {reason}; check the name or give a directory"
        ) from error
    if _is_whole(found, weights):
        return found
    lacking = "all of its *.safetensors weights" if (found / "config.json").is_file() else "a config.json"
    raise ConfigError(
        f"model {model}: {found} does not have {lacking}; download the model again, or choose another"
    )


def _is_whole(directory: Path, weights: bool) -> bool:
    # The cache answers with a snapshot even if an earlier download took only some of its files.
    if not (directory / "config.json").is_file():
        return False
    if not weights:
        return True
    try:
        weight_files(directory)
    except ConfigError:
        return False
    return True
