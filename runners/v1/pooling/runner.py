"""Runner V1 for pooling models: each prompt is computed whole, in one step, without a KV cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.systems.own.model_code import outgrows_rope
from dodona.runners.interface import (
    FinishedOutput,
    GrammarOutput,
    KVCacheSpec,
    PendingOutput,
    SchedulerOutput,
    StepOutput,
)
from dodona.runners.machine import torch_environment
from dodona.runners.pooling.params import PoolingInput, PoolingParams
from dodona.runners.pooling.settings import pooling_settings
from dodona.runners.v1 import capabilities, loading, model_weights
from dodona.runners.v1.pooling.choice import CheckedPoolingModel, choose
from dodona.runners.v1.pooling.model import AUTO_CLASSES, TokenSequence
from dodona.runners.v1.pooling.pooler import Pooler, check_width, load_dense
from dodona.runners.weights.life import WeightLife, WeightViews
from dodona.runners.weights.source import weights_directory

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.runners.limits import Limits


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model whose weights are on the device, and what becomes of its output."""

    checked: CheckedPoolingModel
    pooler: Pooler


class V1PoolingRunner(WeightLife):
    """Embeds and classifies by transformers' own models, as `PoolingSettings` says."""

    name = "v1"
    max_steps_in_flight = 1

    def __init__(self, config: EngineConfig, model: ModelInfo, limits: Limits) -> None:
        super().__init__(config, model, limits)
        self._device = torch.device(limits.device)
        self._settings = pooling_settings(config, model)
        self.pooling_settings = self._settings
        self._loaded: Loaded | None = None
        self._num_blocks = 0
        self._result: StepOutput | None = None

    def load_model(self) -> None:
        """Read the weights and choose how prompts are batched; see `choice.choose`.

        Raises UnsupportedConfiguration naming each feature V1 lacks (nothing is loaded then), or why this
        model can't be trusted; ConfigError where weights or the files of pooling are not those of the model.
        """
        lacking = capabilities.check_supported(
            self.config, self.model_info, torch_environment(self.limits.device)
        )
        if lacking:
            raise UnsupportedConfiguration.lacking(self.name, *lacking)
        directory = weights_directory(self.config, self.model_info, None)
        outgrows = outgrows_rope(self.config, self.model_info)
        checked = choose(
            self._read_model(self._device, directory),
            max_model_len=self.limits.max_model_len,
            rope_changes_beyond=self.model_info.rope_fixed_length if outgrows else None,
        )
        pooler = Pooler(self._settings, load_dense(self._settings.dense, self._device))
        output = checked.model.compute([TokenSequence([0])])[0]
        check_width(pooler, output.shape[-1], self.model_info.file)
        self._loaded = Loaded(checked, pooler)

    def reload_weights(self, path: str | os.PathLike[str] | None = None) -> None:
        """Read the weights again, in place."""
        self._require_weights("reload_weights")
        directory = weights_directory(self.config, self.model_info, path)
        fresh = self._read_model(torch.device("cpu") if directory else self._device, directory)
        model_weights.replace(self._module, fresh)

    def get_kv_cache_spec(self) -> KVCacheSpec:
        """A block counts a whole prompt and takes no bytes."""
        return KVCacheSpec((), self.limits.max_model_len, self._require_loaded().checked.model.dtype.itemsize)

    def determine_available_memory(self) -> int:
        """0: nothing is kept from step to step. On a GPU the largest prompt is computed once, so that too
        little memory is found now."""
        model = self._require_loaded().checked.model
        if self._device.type == "cuda":
            model.forward([TokenSequence([0] * self.limits.max_model_len)])
            torch.cuda.empty_cache()
        return 0

    def initialize_kv_cache(self, num_blocks: int, max_model_len: int | None = None) -> None:
        """There is no cache; the blocks only count prompts."""
        self._num_blocks = num_blocks

    def capture_graphs(self) -> None:
        """Nothing: batches have many shapes."""

    def shutdown(self) -> None:
        """Release the model. Idempotent."""
        self._loaded = None
        self._result = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    # --- Steps

    def execute_model(self, scheduler_output: SchedulerOutput) -> None:
        """Compute the prompts of one step, and pool them.

        Raises ValueError for a row that does not begin and end in the step.
        """
        if self._result is not None:
            raise RuntimeError("execute_model twice without sample_tokens in between")
        loaded, step = self._require_loaded(), scheduler_output
        requests = {request.row: request for request in step.new_requests}
        sequences: list[TokenSequence] = []
        params: list[PoolingParams] = []
        for row, count in zip(step.rows, step.num_tokens, strict=True):
            request = requests.get(row)
            if request is None or count != request.num_prompt_tokens:
                raise ValueError(f"row {row}: a pooling model computes a prompt whole, in its first step")
            asked = request.pooling or PoolingInput(PoolingParams())
            sequences.append(TokenSequence(request.token_ids, asked.token_type_ids))
            params.append(asked.params)
        outputs = loaded.checked.model.forward(sequences)
        with torch.inference_mode():
            pooled = {
                row: loaded.pooler(output, asked).cpu().numpy()
                for row, output, asked in zip(step.rows, outputs, params, strict=True)
            }
        self._result = StepOutput(step.rows, (), pooled=pooled)

    def sample_tokens(self, grammar_output: GrammarOutput | None = None) -> PendingOutput:
        """What the last `execute_model` pooled: nothing is sampled."""
        result, self._result = self._result, None
        if result is None:
            raise RuntimeError("sample_tokens without execute_model before it")
        return FinishedOutput(result)

    # --- Parts

    @property
    def _module(self) -> torch.nn.Module:
        module: torch.nn.Module = self._require_loaded().checked.model.module
        return module

    def _require_loaded(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError("the model is not loaded: call load_model first")
        return self._loaded

    def _weight_views(self) -> WeightViews:
        return model_weights.views(self._module)

    def _weights_to_release(self) -> Mapping[str, torch.Tensor]:
        return model_weights.releasable(self._module)

    def _release_kv_cache(self) -> tuple[int, int | None]:
        return self._num_blocks, None

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
            auto_class=AUTO_CLASSES[self._settings.task],
        )
