"""A small model of the same tokenizer that drafts on the device: `ModelDrafting`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dodona.kernels.state.draft_state import following_tokens
from dodona.runners.device.drafting import StepEnds
from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.device.sampling.sampler import DeviceSampler
from dodona.runners.device.state import RequestState
from dodona.runners.drafting.kv_blocks import own_blocks
from dodona.runners.limits import Limits
from dodona.runners.v2.drafting.sequential import Places, SequentialDrafter
from dodona.runners.v2.loading.model import weight_views
from dodona.runners.v2.models.dense import DenseModel
from dodona.runners.weights.life import WeightViews


class ModelDrafting:
    """A draft model that is loaded. It computes positions up to `num_speculative_tokens` beyond the
    target's."""

    def __init__(self, model: DenseModel, num_speculative_tokens: int, *, block_size: int) -> None:
        self.num_speculative_tokens = num_speculative_tokens
        self.own_blocks = own_blocks(num_speculative_tokens, block_size)
        self.layers = model.spec.kv_cache_spec(block_size).layers
        self.model = model

    def weights(self) -> Mapping[str, Tensor]:
        """The draft model's, by the names of its checkpoint."""
        return self.weight_views().views

    def weight_views(self) -> WeightViews:
        """See `model.weight_views`."""
        return weight_views(self.model)

    def start(
        self, state: RequestState, sampler: DeviceSampler, limits: Limits, *, num_blocks: int
    ) -> ModelDrafter:
        """See `DeviceDrafting.start`."""
        total = num_blocks + self.own_blocks * limits.max_num_seqs
        caches = self.model.make_caches(total, limits.block_size, limits.max_num_seqs)
        return ModelDrafter(
            self.model,
            caches,
            state,
            sampler,
            num_speculative_tokens=self.num_speculative_tokens,
            block_size=limits.block_size,
        )


class ModelDrafter(SequentialDrafter):
    """Computes the tokens of each step with the draft model, then the one that the step drew; its outputs are
    logits."""

    def __init__(
        self,
        model: DenseModel,
        caches: Sequence[Tensor],
        state: RequestState,
        sampler: DeviceSampler,
        *,
        num_speculative_tokens: int,
        block_size: int,
    ) -> None:
        super().__init__(
            state,
            sampler,
            num_speculative_tokens=num_speculative_tokens,
            num_places=num_speculative_tokens,
            block_size=block_size,
            num_kv_heads=model.max_kv_heads,
        )
        shape, device = (state.token_ids.shape[0], model.vocab_size), model.device
        self._model = model
        self._caches = caches
        self._buffer = torch.zeros(shape, dtype=model.dtype, device=device)
        self._first = torch.zeros(1, dtype=torch.int32, device=device)

    def _compute(self, inputs: ForwardInputs, ends: StepEnds, places: Places) -> Tensor:
        # Of this pass, only keys and values count.
        self._model.forward(replace(inputs, embedded=None), self._caches, wanted=self._first)
        drawn = following_tokens(rows=ends.rows, positions=ends.positions, token_ids=self._token_ids)
        return self._decode(ends, places, 0, drawn)

    def _continue(
        self, ends: StepEnds, places: Places, ahead: int, drafts: Tensor, outputs: Tensor
    ) -> Tensor:
        return self._decode(ends, places, ahead, drafts)

    def _logits(self, outputs: Tensor) -> Tensor:
        return outputs

    def _decode(self, ends: StepEnds, places: Places, depth: int, token_ids: Tensor) -> Tensor:
        count = len(ends.rows)
        if not count:
            return self._buffer[:0]
        inputs = self._entries(ends, places, depth, token_ids)
        return self._model.decode(inputs, self._caches, out=self._buffer[:count])
