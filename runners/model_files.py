"""What an engine reads of a model besides its weights: config.json, tokenizer and generation config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.config_values import check_config_values
from dodona.runners.sampling.generation_defaults import GenerationDefaults
from dodona.runners.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What was read."""

    model: ModelInfo
    tokenizer: Any | None
    """transformers' tokenizer; None where there is none."""
    defaults: GenerationDefaults
    vocab_size: int
    """Token ids are below this."""


def read_model_files(config: EngineConfig) -> ModelFiles:
    """Read them. Raises ConfigError that names the file which can't be read, or has a value that can't be
    served."""
    directory = locate_or_download(config.model_config.model, revision=config.model_config.revision)
    model = ModelInfo.load(directory)
    check_config_values(model)
    tokenizer = load_tokenizer(config, directory)
    defaults = GenerationDefaults.load(config, directory, _eos_token_ids(model, tokenizer))
    return ModelFiles(model, tokenizer, defaults, _vocab_size(model, tokenizer))


def _eos_token_ids(model: ModelInfo, tokenizer: Any) -> tuple[int, ...]:
    """config.json's end-of-sequence tokens, else the tokenizer's."""
    if model.eos_token_ids or tokenizer is None or tokenizer.eos_token_id is None:
        return model.eos_token_ids
    return (tokenizer.eos_token_id,)


def _vocab_size(model: ModelInfo, tokenizer: Any) -> int:
    if model.vocab_size is not None:
        return model.vocab_size
    if tokenizer is None:
        raise ConfigError("config.json has no vocab_size, and there is no tokenizer to count tokens of")
    return len(tokenizer)
