"""What two engines must share so that one may read the other's KV."""

from __future__ import annotations

import dataclasses
import json
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.models.weight_files import weight_files

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.runners.interface import KVCacheSpec

_VERSION = 1
"""Another one where blocks are laid out or hashed in another way."""

_WITHOUT_INFLUENCE = frozenset(
    {
        "model", "revision", "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "max_logprobs",
        "generation_config", "enforce_eager", "seed",
    }
)  # fmt: skip
"""Fields of `model_config` that change no key and no value: with `seed`, unless weights are random."""

_HEAD_BYTES = 1 << 20


def model_fingerprint(config: EngineConfig, runner: str) -> str:
    """Hash of the model's configuration and of the identity of its weight files: their name, size, time of
    change and first MiB.

    A copy of the model with other times is another model, and its KV is computed again. Random weights depend
    on the runner that draws them. Raises ConfigError where the files can't be found.
    """
    model_config = config.model_config
    directory = locate_or_download(model_config.model, revision=model_config.revision)
    is_random = config.load_config.load_format == "dummy"
    fields = {
        name: value
        for name, value in dataclasses.asdict(model_config).items()
        if name not in _WITHOUT_INFLUENCE
    }
    parts: dict[str, object] = {
        "version": _VERSION,
        "model_config": fields,
        "load_config": dataclasses.asdict(config.load_config),
        "cache_dtype": config.cache_config.cache_dtype,
        "config.json": _digest(directory / "config.json"),
    }
    if is_random:
        parts["random"] = [model_config.seed, runner, config.device_config.device]
    else:
        parts["weights"] = [_identity(file) for file in weight_files(directory)]
    return blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def cache_fingerprint(spec: KVCacheSpec, dtype: str) -> str:
    """Text of what a block holds: two caches with the same text have the same canonical layout."""
    layers = [(s.num_kv_heads, s.head_size_k, s.head_size_v) for s in spec.layers]
    return f"{dtype} {spec.dtype_bytes} x {spec.block_size} {layers}"


def namespace(model: str, cache: str) -> str:
    """Name of the folder that holds the blocks of engines with these fingerprints."""
    return blake2b(f"{model} {cache}".encode(), digest_size=16).hexdigest()


def _identity(file: Path) -> list[object]:
    status = file.stat()
    return [file.name, status.st_size, status.st_mtime_ns, _digest(file)]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return blake2b(stream.read(_HEAD_BYTES), digest_size=16).hexdigest()
