"""adapter_config.json as PEFT writes it: what it says of the layers, and what can't be served."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import read_json
from dodona.oracle.models.patterns import matching_steps, pattern_fault

_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA scales the sum of weight and adapter",
    "modules_to_save": "whole layers of its own",
    "lora_bias": "biases of lora_B",
    "target_parameters": "adapters of parameters that belong to no linear layer",
    "trainable_token_indices": "embeddings of its own",
    "alora_invocation_tokens": "activated LoRA begins in the middle of a prompt",
    "layer_replication": "layers that the model does not have",
    "use_qalora": "QALoRA pools the inputs of lora_A",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "routing between adapters",
    "kasa_config": "KaSA adds a diagonal",
    "monteclora_config": "MonteCLoRA samples its weights",
    "velora_config": "VeLoRA",
}
"""Fields that, where they are set, ask for more than B A x; with the reason in words."""

_HARMLESS = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
        "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
        "lora_ga_config",
        "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout",
        "megatron_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r",
        "rank_pattern", "alpha_pattern", "revision", "runtime_config", "target_modules", "task_type",
        "use_rslora",
    }
)  # fmt: skip
"""Fields that are read here, or that concern training alone."""

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of initialisation that also change the weights of the model itself."""

_LAYER = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")
"""The first number among the parts of a module's name (PEFT's rule for layers_to_transform)."""

_MAX_JSON = 1 << 20
_MAX_NAMES = 10_000
_MAX_STEPS = 300_000
"""Of matching one module's name with all patterns of a field; see `matching_steps`."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What adapter_config.json says."""

    file: str
    r: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | None
    """Ends of module names; None where a regular expression, or "all-linear", says which."""
    exclude_modules: tuple[str, ...]
    """Ends of module names; empty where `exclude_pattern` is given."""
    exclude_pattern: str | None
    """A regular expression over whole module names."""
    layers_to_transform: frozenset[int] | None
    layers_pattern: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    """Ends or parts of names of modules that the adapter has in place of the model's."""

    @classmethod
    def load(cls, directory: Path, *, serves_heads: bool = False) -> PeftConfig:
        """Read a directory's adapter_config.json.

        serves_heads: whether last layers of the adapter's own can be served. Raises ConfigError that names
        the file and the field: for what is not as PEFT writes it, and for what can't be served.
        """
        path = directory / "adapter_config.json"
        raw = read_json(path, limit=_MAX_JSON)
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: expected a JSON object, got {type(raw).__name__}")
        fields = _Fields(str(path), raw)
        fields.check_served(except_for={"modules_to_save"} if serves_heads else set())
        targets, excluded = raw.get("target_modules"), raw.get("exclude_modules") or []
        pattern = fields.expression("exclude_modules", excluded) if isinstance(excluded, str) else None
        return cls(
            file=str(path),
            r=fields.rank("r", raw.get("r")),
            alpha=fields.number("lora_alpha", raw.get("lora_alpha", 8)),
            use_rslora=bool(raw.get("use_rslora")),
            rank_pattern={k: fields.rank(f"rank_pattern.{k}", v) for k, v in fields.pattern("rank_pattern")},
            alpha_pattern={
                k: fields.number(f"alpha_pattern.{k}", v) for k, v in fields.pattern("alpha_pattern")
            },
            target_modules=None if isinstance(targets, str) else fields.names("target_modules", targets),
            exclude_modules=() if pattern is not None else fields.names("exclude_modules", excluded),
            exclude_pattern=pattern,
            layers_to_transform=fields.layers(),
            layers_pattern=fields.names("layers_pattern", raw.get("layers_pattern") or []),
            modules_to_save=fields.names("modules_to_save", raw.get("modules_to_save") or []),
        )

    def rank(self, module: str) -> int:
        """The rank of a module's adapter."""
        return self.rank_pattern.get(_matching(self.rank_pattern, module), self.r)

    def scale(self, module: str) -> float:
        """The factor of B A x: alpha / r, or alpha / sqrt(r) with use_rslora."""
        alpha = self.alpha_pattern.get(_matching(self.alpha_pattern, module), self.alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool | None:
        """Whether a module of this name has an adapter; None where only a regular expression says so."""
        if _named(self.exclude_modules, module):
            return False
        if self.exclude_pattern is not None and re.fullmatch(self.exclude_pattern, module):
            return False
        if self.target_modules is None:
            return None
        if module in self.target_modules or not _named(self.target_modules, module):
            return module in self.target_modules
        if self.layers_to_transform is None:
            return True
        index = self._layer_index(module)
        return index is not None and index in self.layers_to_transform

    def saves(self, module: str) -> bool:
        """Whether the adapter has a module of this name in place of the model's."""
        return any(f".{name}." in f".{module}." for name in self.modules_to_save)

    def _layer_index(self, module: str) -> int | None:
        if not self.layers_pattern:
            found = _LAYER.match(module)
            return None if found is None else int(found["index"])
        parts = module.split(".")
        for part, following in itertools.pairwise(parts):
            if part in self.layers_pattern and following.isdecimal():
                return int(following)
        return None


@dataclass(frozen=True, slots=True)
class _Fields:
    """Reads fields with their types."""

    file: str
    raw: Mapping[str, Any]

    def check_served(self, *, except_for: Set[str]) -> None:
        """Raise ConfigError for an adapter of another kind, or with more than B A x and what the fields of
        `except_for` ask for."""
        raw = self.raw
        if raw.get("peft_type") != "LORA":
            raise self._error("peft_type", "'LORA'", raw.get("peft_type"))
        for name, reason in _REFUSED.items():
            if raw.get(name) and name not in except_for:
                raise ConfigError(f"{self.file}: field {name!r}: not supported: {reason}")
        if raw.get("bias", "none") != "none":
            raise ConfigError(f"{self.file}: field 'bias': not supported: biases of the model's own layers")
        start = raw.get("init_lora_weights", True)
        if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
            raise ConfigError(
                f"{self.file}: field 'init_lora_weights': not supported: {start!r:.80} changes the model's "
                "own weights, too; save the adapter with path_initial_model_for_weight_conversion"
            )
        for name in sorted(raw.keys() - _HARMLESS - _REFUSED.keys()):
            if raw[name]:
                raise ConfigError(
                    f"{self.file}: field {name!r}: not known, and it may change what the adapter computes"
                )

    def rank(self, name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 16:
            raise self._error(name, "a rank from 1", value)
        return value

    def number(self, name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
            raise self._error(name, "a number", value)
        return float(value)

    def names(self, name: str, value: object) -> tuple[str, ...]:
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
            raise self._error(name, "a list of module names", value)
        if len(listed) > _MAX_NAMES:
            raise self._error(name, f"at most {_MAX_NAMES} names", value)
        return tuple(listed)

    def layers(self) -> frozenset[int] | None:
        value = self.raw.get("layers_to_transform")
        listed = [value] if isinstance(value, int) else value
        if not listed:
            return None
        if not isinstance(listed, list) or not all(type(each) is int for each in listed):
            raise self._error("layers_to_transform", "numbers of layers", value)
        return frozenset(listed)

    def pattern(self, name: str) -> list[tuple[str, Any]]:
        value = self.raw.get(name) or {}
        if not isinstance(value, dict):
            raise self._error(name, "an object", value)
        found = [(self.expression(name, key), each) for key, each in value.items()]
        if matching_steps(f"re:{_whole(key)}" for key in value) > _MAX_STEPS:
            raise self._error(name, "fewer or shorter expressions, which take less time to match", value)
        return found

    def expression(self, name: str, value: str) -> str:
        fault = pattern_fault(value)
        if fault is not None:
            raise ConfigError(
                f"{self.file}: field {name!r}: the expression {value!r:.80}: {fault}; "
                "write the modules' names"
            )
        return value

    def _error(self, name: str, expected: str, value: Any) -> ConfigError:
        return ConfigError(f"{self.file}: field {name!r}: expected {expected}, got {value!r:.80}")


def _named(names: tuple[str, ...], module: str) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _matching(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that matches the module's name or its end (PEFT's `get_pattern_key`)."""
    for key in patterns:
        if _expression(key).match(module):
            return key
    return module


def _whole(key: str) -> str:
    return rf"(.*\.)?({key})$"


@functools.lru_cache(maxsize=4096)
def _expression(key: str) -> re.Pattern[str]:
    return re.compile(_whole(key))
