"""vLLM's YAML form of a configuration: flat argument names, with dashes or underscores."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from dodona.oracle.errors import ConfigError

MAX_BYTES: Final = 1 << 20


def read_arguments(path: Path) -> dict[str, Any]:
    """The arguments of a file, by name with underscores. Raises ConfigError that names the file."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.events import AliasEvent

    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes; is it a configuration?")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        if any(isinstance(event, AliasEvent) for event in YAML(typ="safe", pure=True).parse(text)):
            raise ConfigError(f"{path}: aliases (*name) are not read; write the value out")
        data = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise ConfigError(f"{path}{place}: not valid YAML: {problem}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected `name: value` lines, got {type(data).__name__}")
    arguments: dict[str, Any] = {}
    for key, value in data.items():
        name = str(key).replace("-", "_")
        if name in arguments:
            raise ConfigError(f"{path}: {key}: given twice (dashes and underscores are the same)")
        arguments[name] = value
    return arguments
