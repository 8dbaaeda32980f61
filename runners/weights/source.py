"""Which directory weights are read from again, and whether it holds the model that runs."""

from __future__ import annotations

import os
from pathlib import Path

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.models.model_info import ModelInfo

_IRRELEVANT = frozenset(
    {
        "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "bos_token_id",
        "eos_token_id", "pad_token_id", "initializer_range", "attention_dropout", "hidden_dropout",
        "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout_prob", "id2label", "label2id",
        "problem_type", "_attn_implementation_autoset", "output_attentions", "output_hidden_states",
        "return_dict", "chunk_size_feed_forward", "is_encoder_decoder",
    }
)  # fmt: skip
"""Fields of config.json that change nothing of what the weights compute."""


def weights_directory(
    config: EngineConfig, running: ModelInfo, path: str | os.PathLike[str] | None
) -> Path | None:
    """The directory to read weights from; None for random ones (`load_format` "dummy").

    path: what `reload_weights` was given; None: the configuration's model. Raises ConfigError where there is
    no such directory, or its config.json describes another model than the one that runs.
    """
    model_config, dummy = config.model_config, config.load_config.load_format == "dummy"
    if path is None:
        if dummy:
            return None
        return locate_or_download(model_config.model, revision=model_config.revision, weights=True)
    if not isinstance(path, (str, os.PathLike)) or isinstance(path, bytes):
        raise ConfigError(f"reload_weights: path must be a directory, got {path!r:.80}")
    directory = Path(path)
    if dummy:
        raise ConfigError(
            f"reload_weights: load_format is 'dummy', which reads no files such as {directory}; "
            "first update_config({'load_config': {'load_format': 'auto'}})"
        )
    if not directory.is_dir():
        raise ConfigError(f"reload_weights: {directory}: no such directory")
    if (directory / "config.json").is_file():
        _check_same_model(running, ModelInfo.load(directory))
    return directory


def _check_same_model(running: ModelInfo, other: ModelInfo) -> None:
    """Compare the fields that both have, with the defaults of their family."""
    for field in sorted((running.text.keys() & other.text.keys()) - _IRRELEVANT):
        here, there = running.text[field], other.text[field]
        if here != there:
            raise ConfigError(
                f"{other.file}: field {field!r} is {there!r:.80}, and the running model has {here!r:.80}; "
                "other weights need the same model"
            )
