"""Runner V2 for pooling models: dense Qwen3, Llama and Mistral."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from dodona.runners.interface import Runner
from dodona.runners.pooling_runner import PoolingRunner
from dodona.runners.v2.loading.loaded import load_pooling
from dodona.runners.v2.loading.model import read_weights, weight_views
from dodona.runners.v2.models.registry import checkpoint_views
from dodona.runners.v2.models.weights import quantized_tensors
from dodona.runners.v2.pooling.model import DensePoolingModel
from dodona.runners.weights.life import WeightViews


class V2PoolingRunner(PoolingRunner[DensePoolingModel]):
    """Embeds and classifies by V2's own modelling code and kernels."""

    name = "v2"

    def _load(self) -> DensePoolingModel:
        model = load_pooling(self.config, self.model_info, self.limits, self._settings)
        return DensePoolingModel(model, self.limits)

    def try_load(self, earlier: Runner | None = None) -> Runner:
        """The model, and the files of pooling."""
        model = self._load()
        spec = model.model.spec
        width = spec.hidden_size if spec.score is None else spec.score.num_labels
        self._loaded = (model, self._read_pooler(width))
        return self

    # --- Parts

    def _replace_weights(self, directory: Path | None) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        read_weights(self._model.model, directory, seed=self.config.model_config.seed)

    def _weight_views(self) -> WeightViews:
        return weight_views(self._model.model)

    def _weights_to_release(self) -> Mapping[str, torch.Tensor]:
        spec, weights = self._model.model.spec, self._model.model.weights
        return {**checkpoint_views(spec, weights), **quantized_tensors(weights)}
