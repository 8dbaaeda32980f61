"""`WeightLife`: what both runners do to the weights of a running model in the same way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dodona.oracle.systems.own.quantization import quantization_of
from dodona.runners.errors import EngineAsleepError, InvalidRequestError
from dodona.runners.interface import SLEEP_LEVELS, SLEEP_TAGS, Runner
from dodona.runners.weights.sleeping import SleepingWeights, is_spoilt
from dodona.runners.weights.tensors import apply_sparse_patches, load_tensors

if TYPE_CHECKING:
    import torch

    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.runners.limits import Limits


@dataclass(frozen=True, slots=True)
class WeightViews:
    """A model's weights by the names that checkpoints use."""

    views: Mapping[str, torch.Tensor]
    """Name → the part of the weights that the tensor fills; of any strides."""
    tied: Mapping[str, str]
    """Name of a tensor that is only another name for one of `views` → that one's."""
    quantized: frozenset[str] = frozenset()
    """Names of layers whose tensors in memory are not the checkpoint's, and not among `views`."""


@dataclass(frozen=True, slots=True)
class _Asleep:
    """What was given back and is not here again."""

    weights: SleepingWeights | None
    kv_size: tuple[int, int | None] | None
    """Arguments of `initialize_kv_cache`."""


class WeightLife(Runner):
    """The parts of a runner that replace, patch and put to sleep its weights.

    Only the engine's thread calls it, while no step is under way.
    """

    def __init__(self, config: EngineConfig, model: ModelInfo, limits: Limits) -> None:
        super().__init__(config, model, limits)
        self._asleep: _Asleep | None = None
        self._dropped: Mapping[str, torch.Tensor] = {}
        """Tensors that a sleep of level 2 dropped, as far as they were not all seen to be loaded again."""

    # --- What a runner says of itself

    @abstractmethod
    def _weight_views(self) -> WeightViews:
        """The loaded model's weights."""

    @abstractmethod
    def _weights_to_release(self) -> Mapping[str, torch.Tensor]:
        """Tensors by name whose memory a sleeping runner gives back; a reload reads all of them again."""

    @abstractmethod
    def _release_kv_cache(self) -> tuple[int, int | None]:
        """Give back the KV cache, what steps work in, and graphs. Returns the arguments that
        `initialize_kv_cache` had."""

    # --- Weights

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Overwrite whole tensors in place; see `Runner.load_weights`."""
        self._require_weights("load_weights")
        self._require_own_layers("load_weights")
        found = self._weight_views()
        load_tensors(found.views, weights, tied=found.tied, quantized=found.quantized)

    def apply_sparse_weight_patches(self, patches: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Overwrite single elements in place; see `Runner.apply_sparse_weight_patches`."""
        self._require_weights("apply_sparse_weight_patches")
        self._require_own_layers("apply_sparse_weight_patches")
        found = self._weight_views()
        apply_sparse_patches(found.views, patches, tied=found.tied, quantized=found.quantized)

    def missing_weights(self) -> list[str]:
        """Names of tensors that a sleep dropped and nobody loaded again; see `Runner.missing_weights`."""
        missing = [name for name, tensor in self._dropped.items() if is_spoilt(tensor)]
        if not missing:
            self._dropped = {}
        return missing

    def _require_weights(self, call: str) -> None:
        if self._asleep is not None and self._asleep.weights is not None:
            raise EngineAsleepError(f"{call}: the weights are asleep; call wake_up(tags=['weights']) first")

    def _require_own_layers(self, call: str) -> None:
        """Raise InvalidRequestError where a quantization library has weights in a layout of its own."""
        found = quantization_of(self.config, self.model_info)
        if found is not None and found.library_scheme is not None:
            raise InvalidRequestError(
                f"{call}: the weights are in layers of {found.method}, which are not changed in place or put "
                "to sleep; make a new LLM"
            )

    # --- Sleep

    def sleep(self, level: int = 1) -> None:
        """Give back device memory; see `Runner.sleep`."""
        if type(level) is not int or level not in SLEEP_LEVELS:
            raise InvalidRequestError(f"sleep: level must be one of {SLEEP_LEVELS}, got {level!r:.40}")
        if self._asleep is not None:
            raise EngineAsleepError("sleep: asleep already; call wake_up first")
        self._require_own_layers("sleep")
        kv_size = self._release_kv_cache()
        weights = self._weights_to_release()
        self._asleep = _Asleep(SleepingWeights(weights.values(), keep=level == 1), kv_size)
        if level == 2:
            self._dropped = weights

    def wake_up(self, tags: Collection[str] | None = None) -> None:
        """Take the memory again; see `Runner.wake_up`."""
        wanted = wake_tags(tags)
        asleep = self._asleep
        if asleep is None:
            return
        weights, kv_size = asleep.weights, asleep.kv_size
        if "weights" in wanted and weights is not None:
            weights.wake()
            weights = None
            self._asleep = _Asleep(None, kv_size)
        if "kv_cache" in wanted and kv_size is not None:
            self.initialize_kv_cache(*kv_size)
            kv_size = None
            self._asleep = _Asleep(weights, None)
        if weights is None and kv_size is None:
            self._asleep = None
            self.capture_graphs()


def wake_tags(tags: object) -> frozenset[str]:
    """The tags of `wake_up` as a set; None: all. Raises InvalidRequestError for others."""
    if tags is None:
        return frozenset(SLEEP_TAGS)
    if (
        isinstance(tags, str)
        or not isinstance(tags, Collection)
        or not all(isinstance(tag, str) and tag in SLEEP_TAGS for tag in tags)
    ):
        raise InvalidRequestError(f"wake_up: tags must be a list out of {SLEEP_TAGS}, got {tags!r:.80}")
    return frozenset(tags)
