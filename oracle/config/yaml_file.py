"""vLLM's YAML form of a configuration: flat argument names, with dashes or underscores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import MAX_DEPTH, read_text

MAX_BYTES: Final = 1 << 20
MAX_VALUES: Final = 20_000


def read_arguments(path: Path) -> dict[str, Any]:
    """The arguments of a file, by name with underscores. Raises ConfigError that names the file."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    text = read_text(path, limit=MAX_BYTES, expected="a configuration")
    try:
        _check_size(path, YAML(typ="safe", pure=True).parse(text))
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


def _check_size(path: Path, events: Iterable[Any]) -> None:
    """Raise ConfigError for aliases, deep nesting and many values, before anything is built from them."""
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

    depth = 0
    for number, event in enumerate(events):
        where = f"{path}:{event.start_mark.line + 1}"
        if isinstance(event, AliasEvent):
            raise ConfigError(f"{where}: aliases (*name) are not read; write the value out")
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: nests deeper than {MAX_DEPTH} levels; is it a configuration?")
        if number > MAX_VALUES:
            raise ConfigError(f"{where}: has more than {MAX_VALUES} values; is it a configuration?")
