"""The directories that a configuration names beside the model's: a tokenizer's, and sampling defaults'."""

from __future__ import annotations

from pathlib import Path

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.hub import local_directory, locate_or_download

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "spiece.model",
)
"""A directory with none of these has no tokenizer."""


def companions_fault(config: EngineConfig) -> str | None:
    """Why no engine can start with the directories that are named; None where they have what they are named
    for, or are on the hub."""
    model = config.model_config
    try:
        if model.tokenizer is not None and not model.skip_tokenizer_init and _local(model.tokenizer):
            named_tokenizer(config)
        named_generation_config(config)
    except ConfigError as error:
        return str(error)
    return None


def named_tokenizer(config: EngineConfig) -> Path | None:
    """The directory of `tokenizer`; None where it is not set, or not to be read.

    Raises ConfigError where it is no directory, or has no tokenizer.
    """
    name = config.model_config.tokenizer
    if name is None or config.model_config.skip_tokenizer_init:
        return None
    directory = _local(name) or locate_or_download(name)
    if not has_tokenizer(directory):
        raise ConfigError(f"tokenizer: {directory} has no tokenizer files ({', '.join(TOKENIZER_FILES)})")
    return directory


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory has a tokenizer's files."""
    return any((directory / name).exists() for name in TOKENIZER_FILES)


def named_generation_config(config: EngineConfig) -> Path | None:
    """The file that `generation_config` names a directory of; None with "auto" and "vllm".

    Raises ConfigError where it doesn't exist.
    """
    setting = config.model_config.generation_config
    if setting in ("auto", "vllm"):
        return None
    file = Path(setting) / "generation_config.json"
    if not file.exists():
        raise ConfigError(f"generation_config: {file} doesn't exist; give its directory, 'auto' or 'vllm'")
    return file


def _local(name: str) -> Path | None:
    try:
        return local_directory(name)
    except ConfigError as error:
        raise ConfigError(f"tokenizer: {error}") from None
