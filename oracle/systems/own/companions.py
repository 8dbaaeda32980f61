"""What an engine reads beside a model's weights: a tokenizer, and defaults of sampling parameters."""

from __future__ import annotations

from pathlib import Path

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.generation_config import GenerationConfig, read_generation_config
from dodona.oracle.models.hub import found_directory
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.tokenizer_files import check_tokenizer, has_tokenizer


def companions_fault(config: EngineConfig, model: ModelInfo, environment: Environment) -> str | None:
    """Why no engine can start with the tokenizer and the defaults of sampling; None where nothing is wrong,
    or a tokenizer is on the hub and the question about another machine."""
    file = Path(model.file)
    directory = file.parent if file.is_file() else None
    name = config.model_config.tokenizer
    try:
        reads = name is not None and not config.model_config.skip_tokenizer_init
        if not reads or _found(name or "", here=environment.is_here):
            tokenizer_directory(config, directory)
        generation_config(config, directory)
    except ConfigError as error:
        return str(error)
    return None


def tokenizer_directory(config: EngineConfig, model_dir: Path | None) -> Path | None:
    """The directory of the tokenizer: as named, else the model's; None where none is to be read, or the model
    brings none. model_dir: None where no directory of the model is at hand.

    Raises ConfigError where what is named is no directory or has no tokenizer, and where files are damaged.
    """
    name = config.model_config.tokenizer
    if config.model_config.skip_tokenizer_init or (
        name is None and (model_dir is None or not has_tokenizer(model_dir))
    ):
        return None
    directory = model_dir if name is None else _found(name, here=True)
    assert directory is not None
    check_tokenizer(directory)
    return directory


def generation_config(config: EngineConfig, model_dir: Path | None) -> GenerationConfig | None:
    """The defaults of sampling: the model's, or those in the directory that `generation_config` names; None
    with "vllm", or where the model has none.

    Raises ConfigError where what is named doesn't exist, and for values that can't be.
    """
    setting = config.model_config.generation_config
    if setting == "vllm":
        return None
    directory = model_dir if setting == "auto" else Path(setting)
    if directory is None:
        return None
    file = directory / "generation_config.json"
    if not file.exists():
        if setting == "auto":
            return None
        raise ConfigError(f"generation_config: {file} doesn't exist; give its directory, 'auto' or 'vllm'")
    return read_generation_config(file)


def _found(name: str, *, here: bool) -> Path | None:
    try:
        return found_directory(name, here=here)
    except ConfigError as error:
        raise ConfigError(f"tokenizer: {error}") from None
