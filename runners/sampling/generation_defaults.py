"""Default sampling parameters and end-of-sequence tokens, from a model's generation_config.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import read_json
from dodona.runners.errors import InvalidRequestError
from dodona.runners.sampling.params import SamplingParams

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig

_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""generation_config.json's name → the sampling parameter's."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling parameters where a caller gives none, and the tokens that end a sequence."""

    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    eos_token_ids: frozenset[int] = frozenset()

    @classmethod
    def load(cls, config: EngineConfig, model_dir: Path, model_eos: Iterable[int]) -> GenerationDefaults:
        """Read generation_config.json as `generation_config` says: "auto" (the model's), "vllm" (none), a
        directory.

        `model_eos` are config.json's EOS tokens, which count too. Raises ConfigError that names file and
        field.
        """
        setting = config.model_config.generation_config
        if setting == "vllm":
            return cls(eos_token_ids=frozenset(model_eos))
        file = (model_dir if setting == "auto" else Path(setting)) / "generation_config.json"
        if not file.exists():
            if setting != "auto":
                raise ConfigError(
                    f"generation_config: {file} doesn't exist; give its directory, 'auto' or 'vllm'"
                )
            return cls(eos_token_ids=frozenset(model_eos))
        values = read_json(file)
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: expected an object, got {type(values).__name__}")
        given = {name: values[key] for key, name in _FIELDS.items() if values.get(key) is not None}
        try:
            params = SamplingParams(**given)
        except InvalidRequestError as error:
            raise ConfigError(
                f"{file}: {error}; mend it, or ignore it with generation_config='vllm'"
            ) from error
        return cls(params, frozenset(model_eos) | _eos(file, values.get("eos_token_id")))


def _eos(file: Path, value: Any) -> frozenset[int]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token_id, int) for token_id in ids):
        raise ConfigError(f"{file}: eos_token_id must be a token id or a list of them, got {value!r}")
    return frozenset(ids)
