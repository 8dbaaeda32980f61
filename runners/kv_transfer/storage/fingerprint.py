"""What two engines must share so that one may read the other's KV."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.models.weight_files import weight_files

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.runners.interface import KVCacheSpec, LayerKVSpec

_VERSION = 2
"""Another one where blocks are laid out or hashed in another way."""

_WITHOUT_INFLUENCE = frozenset(
    {
        "model", "revision", "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "max_logprobs",
        "generation_config", "enforce_eager", "seed",
    }
)  # fmt: skip
"""Fields of `model_config` that change no key and no value: with `seed`, unless weights are random."""

_HEAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What decides a model's KV beside its weights, when the engine starts."""

    configuration: str
    """Hash of the fields that matter, and of config.json."""
    random: tuple[object, ...]
    """What random weights depend on: the seed, the runner and the device that draw them."""

    @classmethod
    def of(cls, config: EngineConfig, runner: str, directory: Path) -> ModelIdentity:
        """For a runner of this name, and the model in a directory."""
        model_config = config.model_config
        fields = {
            name: value
            for name, value in dataclasses.asdict(model_config).items()
            if name not in _WITHOUT_INFLUENCE
        }
        parts: dict[str, object] = {
            "version": _VERSION,
            "model_config": fields,
            "cache_dtype": config.cache_config.cache_dtype,
            "config.json": _digest(directory / "config.json"),
        }
        return cls(_hash(parts), (model_config.seed, runner, config.device_config.device))

    def fingerprint(self, weights: Path | None) -> str:
        """With the weights in a directory, of which the files count by name, size, time of change and first
        MiB; None: with random ones.

        A copy of the weights with other times is another model, and its KV is computed again. Raises
        ConfigError where the files can't be found.
        """
        found = self.random if weights is None else [_identity(file) for file in weight_files(weights)]
        return _hash({"configuration": self.configuration, "random": weights is None, "weights": found})


@dataclass(frozen=True, slots=True)
class SharedModel:
    """A model and its weights, as their files are at a time."""

    identity: ModelIdentity
    fingerprint: str

    @classmethod
    def of(cls, config: EngineConfig, runner: str) -> SharedModel:
        """The configuration's model, for a runner of this name. Raises ConfigError where its files can't be
        found."""
        model_config = config.model_config
        directory = locate_or_download(model_config.model, revision=model_config.revision)
        identity = ModelIdentity.of(config, runner, directory)
        is_random = config.load_config.load_format == "dummy"
        return cls(identity, identity.fingerprint(None if is_random else directory))


def cache_fingerprint(layers: Sequence[LayerKVSpec], spec: KVCacheSpec, dtype: str) -> str:
    """Text of what a block holds: two caches with the same text have the same canonical layout.

    layers: the model's, with all heads. What ranks share the block does not matter.
    """
    shapes = [(layer.num_kv_heads, layer.head_size_k, layer.head_size_v) for layer in layers]
    return f"{dtype} {spec.dtype_bytes} x {spec.block_size} {shapes}"


def namespace(model: str, cache: str) -> str:
    """Name of the folder that holds the blocks of engines with these fingerprints."""
    return blake2b(f"{model} {cache}".encode(), digest_size=16).hexdigest()


def _hash(parts: Mapping[str, object]) -> str:
    return blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _identity(file: Path) -> list[object]:
    status = file.stat()
    return [file.name, status.st_size, status.st_mtime_ns, _digest(file)]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return blake2b(stream.read(_HEAD_BYTES), digest_size=16).hexdigest()
