"""generation_config.json: defaults of sampling parameters, and the tokens that end a sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dodona.oracle.config.sampling_bounds import bounds_fault
from dodona.oracle.errors import ConfigError
from dodona.oracle.files import read_json
from dodona.oracle.printable import short


def _as_given(value: Any) -> Any:
    return value


def _whole(value: Any) -> Any:
    """A whole number that is written with a point, as transformers takes it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _share(value: Any) -> Any:
    """A share of the probability: at 0 transformers keeps the most probable token, as any tiny share does."""
    return 1e-6 if value == 0 and not isinstance(value, bool) else value


_FIELDS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "temperature": ("temperature", _as_given),
    "top_p": ("top_p", _share),
    "top_k": ("top_k", _whole),
    "min_p": ("min_p", _as_given),
    "repetition_penalty": ("repetition_penalty", _as_given),
    "max_new_tokens": ("max_tokens", _whole),
}
"""The file's name → the sampling parameter's, and how a value is taken."""


MAX_EOS = 1_024
"""Most ids that end a sequence."""


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What is read of a generation_config.json."""

    file: Path
    sampling: Mapping[str, Any]
    """Values of sampling parameters, by the parameter's name."""
    eos_token_ids: frozenset[int]
    raw: Mapping[str, Any]
    """The whole file."""


def read_generation_config(file: Path) -> GenerationConfig:
    """Raises ConfigError that names file and field."""
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected an object, got {type(raw).__name__}")
    sampling = {name: take(raw[key]) for key, (name, take) in _FIELDS.items() if raw.get(key) is not None}
    for name, value in sampling.items():
        fault = bounds_fault(name, value)
        if fault is not None:
            raise ConfigError(f"{file}: {fault}; mend it, or ignore it with generation_config='vllm'")
    return GenerationConfig(file, sampling, _eos(file, raw.get("eos_token_id")), raw)


def _eos(file: Path, value: Any) -> frozenset[int]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ConfigError(f"{file}: eos_token_id must be a token id or a list of them, got {short(value)}")
    if len(ids) > MAX_EOS:
        raise ConfigError(f"{file}: eos_token_id lists {len(ids)} ids, more than {MAX_EOS}; check the file")
    return frozenset(ids)
