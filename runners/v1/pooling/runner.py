"""Runner V1 for pooling models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.systems.own.model_code import outgrows_rope
from dodona.oracle.systems.own.quantization import quantization_of
from dodona.oracle.systems.own.weights import check_weights
from dodona.runners.interface import Runner
from dodona.runners.lora.adapter import Adapter
from dodona.runners.lora.target import LoRATarget
from dodona.runners.machine import torch_environment
from dodona.runners.pooling.sequence import TokenSequence
from dodona.runners.pooling_runner import PoolingRunner
from dodona.runners.v1 import capabilities, loading, model_weights
from dodona.runners.v1.lora import LoRALayers
from dodona.runners.v1.pooling.choice import choose, try_prompt
from dodona.runners.v1.pooling.chunks import ChunkedPrompt, check_chunks
from dodona.runners.v1.pooling.lora import layers_of_batches
from dodona.runners.v1.pooling.model import AUTO_CLASSES, TransformersPoolingModel
from dodona.runners.weights.life import WeightViews
from dodona.runners.weights.source import weights_directory


class V1PoolingRunner(PoolingRunner[TransformersPoolingModel]):
    """Embeds and classifies by transformers' own models."""

    name = "v1"

    def try_load(self, earlier: Runner | None = None) -> Runner:
        """The model, a pass over few tokens, and the files of pooling."""
        module = self._checked_model()
        output = try_prompt(module)
        model = TransformersPoolingModel(module, pads=False)
        self._loaded = (model, self._read_pooler(output.shape[-1]))
        if self.config.lora_config is not None:
            LoRALayers(module, self.config.lora_config, layers=layers_of_batches(model))
        return self

    def _load(self) -> TransformersPoolingModel:
        """Read the weights and choose how prompts are batched; see `choice.choose`."""
        outgrows = outgrows_rope(self.config, self.model_info)
        model = choose(
            self._checked_model(),
            max_model_len=self.limits.max_model_len,
            rope_changes_beyond=self.model_info.rope_fixed_length if outgrows else None,
        ).model
        if self._computes_chunks:
            check_chunks(model, self.limits.max_model_len)
        if self.config.lora_config is None:
            return model
        lora = LoRALayers(model.module, self.config.lora_config, layers=layers_of_batches(model))
        return TransformersPoolingModel(model.module, pads=model.pads, lora=lora)

    def get_lora_targets(self) -> Mapping[str, LoRATarget]:
        """The linear layers that see each token of a batch, or one of each row, by name."""
        lora = self._model.lora
        if lora is None:
            raise RuntimeError("lora_config is not set")
        return lora.targets

    # --- Parts

    def _checked_model(self) -> torch.nn.Module:
        """The model on the device, once nothing is known to be against it."""
        machine = torch_environment(self.limits.device)
        lacking = capabilities.check_supported(self.config, self.model_info, machine)
        if {*lacking} - {"weights"}:
            raise UnsupportedConfiguration.lacking(self.name, *lacking)
        check_weights(self.config, self.model_info, machine)
        return self._read_model(self._device, weights_directory(self.config, self.model_info, None))

    def _replace_weights(self, directory: Path | None) -> None:
        fresh = self._read_model(torch.device("cpu") if directory else self._device, directory)
        model_weights.replace(self._model.module, fresh)

    def _weight_views(self) -> WeightViews:
        return model_weights.views(self._model.module)

    def _weights_to_release(self) -> Mapping[str, torch.Tensor]:
        return model_weights.releasable(self._model.module)

    def _compute(
        self,
        model: TransformersPoolingModel,
        sequences: Sequence[TokenSequence],
        adapters: Sequence[Adapter | None],
    ) -> list[torch.Tensor]:
        return model.forward(sequences, adapters)

    def _begin_chunks(self, model: TransformersPoolingModel) -> ChunkedPrompt:
        return ChunkedPrompt(model)

    def _read_model(self, device: torch.device, directory: Path | None) -> torch.nn.Module:
        """The model on `device`, its weights read from a directory or (None) drawn at random."""
        model_config = self.config.model_config
        dtype: torch.dtype = getattr(torch, self.limits.dtype)
        return loading.load_model(
            locate_or_download(model_config.model, revision=model_config.revision),
            weights=directory,
            dtype=dtype,
            device=device,
            seed=model_config.seed,
            trust_remote_code=False,
            quantization=quantization_of(self.config, self.model_info),
            auto_class=AUTO_CLASSES[self._settings.task],
        )
