"""Loads the Hugging Face model of a directory, from its safetensors or with random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.files import check_folder
from dodona.oracle.models.weight_files import weight_files
from dodona.runners.third_party import naming

MAX_FILE_BYTES = 256 << 20
"""Largest file of a model directory that is not weights."""


def load_model(
    path: Path,
    *,
    weights: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    trust_remote_code: bool,
) -> torch.nn.Module:
    """The causal LM that `path`/config.json describes, in evaluation mode on `device`.

    weights: the directory with its safetensors; None draws random weights from `seed` as the architecture
    initialises them (the same on every call; CPU and CUDA draw different ones).

    Raises ConfigError where weights are missing, damaged or do not fit, UnsupportedConfiguration where
    transformers has no causal LM for the configuration.
    """
    folders = {path, *([] if weights is None else [weights])}
    for folder in folders:
        check_folder(folder, suffixes=(".json", ".jinja", ".txt"), limit=MAX_FILE_BYTES)
    with naming(f"transformers can't make the model of {path / 'config.json'}"):
        return _load_model(path, weights, dtype, device, seed, trust_remote_code)


def _load_model(
    path: Path,
    weights: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    trust_remote_code: bool,
) -> torch.nn.Module:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError) as error:
        raise UnsupportedConfiguration.lacking(
            "v1", "architecture", why=f"{path / 'config.json'}: {error}"
        ) from error
    common: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": "eager",
        "trust_remote_code": trust_remote_code,
    }
    try:
        if weights is None:
            model = _random_model(config, device, seed, common)
        else:
            weight_files(weights)
            loader: Any = AutoModelForCausalLM
            with _no_progress_bar():
                model, info = loader.from_pretrained(
                    weights,
                    config=config,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # reported below, by name
                    **common,
                )
            _check_complete(weights, info)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        why = f"transformers has no causal LM for model_type {config.model_type!r} of {path / 'config.json'}"
        raise UnsupportedConfiguration.lacking("v1", "architecture", why=why) from error
    except OSError as error:
        raise ConfigError(f"{weights or path}: {error}") from error
    except SafetensorError as error:
        raise ConfigError(
            f"{weights}: a *.safetensors file is damaged or cut off: {error}; fetch the model again"
        ) from error
    model.requires_grad_(False)
    loaded: torch.nn.Module = model.eval().to(device)
    return loaded


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar on stderr, which is the caller's."""
    from transformers.utils import logging

    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _random_model(config: Any, device: torch.device, seed: int, common: Mapping[str, Any]) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    # On the target device: drawing billions of weights on a CPU takes minutes.
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        factory: Any = AutoModelForCausalLM
        model: torch.nn.Module = factory.from_config(config, **common)
        return model


def _check_complete(path: Path, info: Mapping[str, Any]) -> None:
    """Raise ConfigError for weights that transformers did not find, and so drew at random."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigError(
            f"{path}: the safetensors lack {len(missing)} weights of the model: {_first_names(missing)}"
        )
    mismatched = sorted(str(item[0] if isinstance(item, tuple) else item) for item in info["mismatched_keys"])
    if mismatched:
        raise ConfigError(
            f"{path}: {len(mismatched)} weights have other shapes than config.json says: "
            f"{_first_names(mismatched)}"
        )


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
