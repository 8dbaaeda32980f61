"""`PoolingRunner`: a runner for pooling models, but for how its model computes prompts.

A prompt is computed whole, in one step; one that is longer than a step, in chunks, of which the model keeps
what it needs from step to step.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

from dodona.oracle.systems.own.pooler import pooling_settings
from dodona.runners.interface import (
    FinishedOutput,
    GrammarOutput,
    KVCacheSpec,
    PendingOutput,
    SchedulerOutput,
    StepOutput,
)
from dodona.runners.pooling.params import PoolingInput, PoolingParams
from dodona.runners.pooling.pooler import Pooler, check_width, load_dense
from dodona.runners.pooling.sequence import TokenSequence
from dodona.runners.weights.life import WeightLife
from dodona.runners.weights.source import weights_directory

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.runners.interface import NewRequest
    from dodona.runners.limits import Limits
    from dodona.runners.lora.adapter import Adapter


class PoolingModel(Protocol):
    """A model that computes whole sequences."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""

    def forward(self, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
        """The output of each sequence, on the device: the last hidden states [tokens, size], the logits
        [classes] of a classifier of sequences, or those of one of tokens [tokens, classes]."""


M = TypeVar("M", bound=PoolingModel)


class PartialPrompt(Protocol):
    """A prompt of which some tokens are computed."""

    def add(self, chunk: TokenSequence, adapter: Adapter | None = None) -> None:
        """Compute the next tokens."""

    @property
    def output(self) -> torch.Tensor:
        """As `PoolingModel.forward` gives it of the whole prompt, once all tokens are computed."""


class PoolingRunner(WeightLife, Generic[M]):
    """Embeds and classifies, as `PoolingSettings` says."""

    max_steps_in_flight = 1

    def __init__(self, config: EngineConfig, model: ModelInfo, limits: Limits) -> None:
        super().__init__(config, model, limits)
        self._device = torch.device(limits.device)
        self._settings = pooling_settings(config, model)
        self.pooling_settings = self._settings
        self._loaded: tuple[M, Pooler] | None = None
        """The model, its weights on the device, and what becomes of its output."""
        self._num_blocks = 0
        self._partial: dict[int, tuple[NewRequest, PartialPrompt]] = {}
        """By row, requests whose prompts are computed in chunks."""
        self._result: StepOutput | None = None

    @abstractmethod
    def _load(self) -> M:
        """The model with its weights on the device; see `load_model`."""

    def load_model(self) -> None:
        """Read the weights.

        Raises UnsupportedConfiguration naming each feature that the runner lacks (nothing is loaded then), or
        why this model can't be trusted; ConfigError where weights or the files of pooling are not those of
        the model.
        """
        model = self._load()
        output = model.forward([TokenSequence([0])])[0]
        self._loaded = (model, self._read_pooler(output.shape[-1]))

    def reload_weights(self, path: str | os.PathLike[str] | None = None) -> None:
        """Read the weights again, in place, with those of Dense modules; see `Runner.reload_weights`."""
        self._require_weights("reload_weights")
        _, pooler = self._require_loaded()
        directory = weights_directory(self.config, self.model_info, path)
        if directory is None:
            self._replace_weights(None)
            return
        own = Path(self.model_info.file).parent
        modules = [
            replace(module, folder=directory / module.folder.relative_to(own))
            for module in self._settings.dense
        ]
        dense = load_dense(modules, self._device)
        self._replace_weights(directory)
        pooler.overwrite(dense)

    @abstractmethod
    def _replace_weights(self, directory: Path | None) -> None:
        """Read the model's own weights from a directory or (None) draw them at random, in place. Raises
        ConfigError, before the first write, where they do not fit."""

    def get_kv_cache_spec(self) -> KVCacheSpec:
        """A block counts a whole prompt and takes no bytes."""
        itemsize = self._model.dtype.itemsize
        return KVCacheSpec((), self.limits.max_model_len, itemsize, shares_prefixes=False)

    def determine_available_memory(self) -> int:
        """0: nothing is kept from step to step. On a GPU the largest step is computed once, so that too
        little memory is found now."""
        if self._device.type == "cuda":
            longest, left = self.limits.max_model_len, self.limits.max_num_batched_tokens
            lengths = [longest] * min(left // longest, self.limits.max_num_seqs)
            self._model.forward([TokenSequence([0] * length) for length in lengths])
            if self._computes_chunks:
                prompt = self._begin_chunks(self._model)
                for start in range(0, longest, left):
                    prompt.add(TokenSequence([0] * min(left, longest - start)))
                del prompt
            torch.cuda.empty_cache()
        return 0

    def most_available_memory(self) -> int:
        """0, likewise."""
        return 0

    def initialize_kv_cache(self, num_blocks: int, max_model_len: int | None = None) -> None:
        """There is no cache; the blocks only count prompts."""
        self._num_blocks = num_blocks

    def capture_graphs(self) -> None:
        """Nothing: steps have many shapes."""

    def shutdown(self) -> None:
        """Release the model. Idempotent."""
        self._loaded = None
        self._result = None
        self._partial = {}
        if self._device.type == "cuda" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()

    # --- Steps

    def execute_model(self, scheduler_output: SchedulerOutput) -> None:
        """Compute the prompts of one step, or chunks of them, and pool those that end in it.

        Raises ValueError for a chunk where the runner computes whole prompts only.
        """
        if self._result is not None:
            raise RuntimeError("execute_model twice without sample_tokens in between")
        (model, pooler), step = self._require_loaded(), scheduler_output
        for row in step.freed_rows:
            self._partial.pop(row, None)
        requests = {request.row: request for request in step.new_requests}
        whole: list[NewRequest] = []
        outputs: dict[int, torch.Tensor] = {}
        params: dict[int, PoolingParams] = {}
        for row, count, start in zip(step.rows, step.num_tokens, step.num_computed_tokens, strict=True):
            request = requests[row] if row in requests else self._partial[row][0]
            params[row] = _asked(request).params
            if count == request.num_prompt_tokens:
                whole.append(request)
                continue
            if row in requests:
                self._partial[row] = request, self._begin_chunks(model)
            prompt, end = self._partial[row][1], start + count
            prompt.add(_sequence(request, start, end), request.adapter)
            if end == request.num_prompt_tokens:
                outputs[row] = prompt.output
                del self._partial[row]
        computed = self._compute(
            model, [_sequence(r, 0, r.num_prompt_tokens) for r in whole], [r.adapter for r in whole]
        )
        outputs |= {request.row: output for request, output in zip(whole, computed, strict=True)}
        rows = [row for row in step.rows if row in outputs]
        with torch.inference_mode():
            pooled = {row: pooler(outputs[row], params[row]).cpu().numpy() for row in rows}
        self._result = StepOutput(rows, (), pooled=pooled)

    def sample_tokens(self, grammar_output: GrammarOutput | None = None) -> PendingOutput:
        """What the last `execute_model` pooled: nothing is sampled."""
        result, self._result = self._result, None
        if result is None:
            raise RuntimeError("sample_tokens without execute_model before it")
        return FinishedOutput(result)

    # --- Parts

    def _read_pooler(self, width: int) -> Pooler:
        """For outputs of `width` elements. Raises ConfigError where the files of pooling don't fit."""
        pooler = Pooler(self._settings, load_dense(self._settings.dense, self._device))
        check_width(pooler, width, self.model_info.file)
        return pooler

    def _compute(
        self, model: M, sequences: Sequence[TokenSequence], adapters: Sequence[Adapter | None]
    ) -> list[torch.Tensor]:
        """The model's output of each sequence. `adapters` are None where the runner has no LoRA."""
        return model.forward(sequences)

    @property
    def _computes_chunks(self) -> bool:
        """Whether prompts may be longer than a step."""
        return self.limits.max_num_batched_tokens < self.limits.max_model_len

    def _begin_chunks(self, model: M) -> PartialPrompt:
        """Room for a prompt that is computed in chunks. Raises ValueError where the runner computes whole
        prompts only."""
        raise ValueError("a pooling model computes a prompt whole, in its first step")

    @property
    def _model(self) -> M:
        return self._require_loaded()[0]

    def _require_loaded(self) -> tuple[M, Pooler]:
        if self._loaded is None:
            raise RuntimeError("the model is not loaded: call load_model first")
        return self._loaded

    def _release_kv_cache(self) -> tuple[int, int | None]:
        return self._num_blocks, None


def _asked(request: NewRequest) -> PoolingInput:
    return request.pooling or PoolingInput(PoolingParams())


def _sequence(request: NewRequest, start: int, end: int) -> TokenSequence:
    """The prompt's tokens [start, end)."""
    types = _asked(request).token_type_ids
    return TokenSequence(request.token_ids[start:end], None if types is None else types[start:end])
