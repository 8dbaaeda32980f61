"""Loads a model's tokenizer, where there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import check_folder
from dodona.oracle.systems.own.companions import tokenizer_directory
from dodona.runners.third_party import naming

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig

MAX_TOKENIZER_BYTES = 256 << 20
"""Largest file of a tokenizer or a configuration."""

MAX_GROWTH = 10_000
"""Times as long as a text that a tokenizer's steps may make of it."""

MAX_POST_PROCESSOR = 16_384
"""Bytes of what adds special tokens to each prompt, as JSON: each use of a special token adds all its ids."""

_READ = (".json", ".model", ".txt", ".jinja", ".tiktoken")


def load_tokenizer(config: EngineConfig, model_dir: Path) -> Any | None:
    """transformers' tokenizer for the model; None with `skip_tokenizer_init`, or where the model brings none.

    Raises ConfigError where one is named and isn't there, or can't be read.
    """
    directory = tokenizer_directory(config, model_dir)
    if directory is None:
        return None
    check_folder(directory, suffixes=_READ, limit=MAX_TOKENIZER_BYTES)
    from transformers import AutoTokenizer

    trust = config.model_config.trust_remote_code
    mend = "mend it, or give token ids with skip_tokenizer_init=True"
    try:
        with naming(f"tokenizer: {directory} can't be read", mend):
            tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust)
    except ConfigError:
        _check_configuration(directory, trust)
        raise
    _check_growth(directory, tokenizer)
    return tokenizer


def _check_growth(directory: Path, tokenizer: Any) -> None:
    """Raise ConfigError where the steps around the vocabulary replace text by ever longer text: forty
    that double it make more of one character than there is memory."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    after = getattr(backend, "post_processor", None)
    if after is not None and type(after).__name__ != "PostProcessor":
        size = len(after.__getstate__())
        if size > MAX_POST_PROCESSOR:
            raise ConfigError(
                f"tokenizer: {directory} can't be used: its post_processor, which adds special tokens, has "
                f"{size} bytes, more than {MAX_POST_PROCESSOR}; mend it, or give token ids with "
                "skip_tokenizer_init=True"
            )
    for name in ("normalizer", "decoder"):
        step = getattr(backend, name, None)
        if step is None or type(step).__name__ in ("Normalizer", "Decoder"):  # Python's own
            continue
        growth = _growth(json.loads(step.__getstate__()))
        if growth > MAX_GROWTH:
            raise ConfigError(
                f"tokenizer: {directory} can't be used: its {name} may make a text more than {MAX_GROWTH} "
                "times as long; mend it, or give token ids with skip_tokenizer_init=True"
            )


def _growth(step: dict[str, Any]) -> float:
    """How many times as long the texts may become that are replaced; beyond `MAX_GROWTH` any number."""
    steps = step.get("normalizers") or step.get("decoders") or ()
    if step.get("type") == "Replace":
        replaced = step["pattern"].get("String")
        return max(1.0, len(step["content"]) / max(1, len(replaced or "")))
    total = 1.0
    for inner in steps:
        total = min(total * _growth(inner), 2.0 * MAX_GROWTH)
    return total


def _check_configuration(directory: Path, trust_remote_code: bool) -> None:
    """Raise ConfigError where a tokenizer can't be made because config.json is at fault."""
    from transformers import AutoConfig

    if (directory / "config.json").exists():
        with naming(f"{directory / 'config.json'}: transformers can't read this configuration"):
            AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
