"""A small model of the same tokenizer that drafts: `ModelDrafting`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from dodona.runners.drafting.kv_blocks import extended
from dodona.runners.interface import KVCacheSpec
from dodona.runners.limits import Limits
from dodona.runners.v1 import model_weights
from dodona.runners.v1.drafting.drafter import DraftContext
from dodona.runners.v1.drafting.pages import DraftPages, DraftPass
from dodona.runners.v1.drafting.sequential import Draft, SequentialDrafter
from dodona.runners.v1.memory import run_largest_step
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.step_layout import to_device
from dodona.runners.weights.life import WeightViews


class ModelDrafting:
    """A draft model that is loaded and checked."""

    def __init__(self, model: PackedModel, num_speculative_tokens: int) -> None:
        self.num_speculative_tokens = num_speculative_tokens
        self._model = model

    def extend_spec(self, spec: KVCacheSpec) -> KVCacheSpec:
        """With the draft model's layers."""
        return extended(spec, self._model.layers, self.num_speculative_tokens)

    def run_largest_step(self, limits: Limits) -> None:
        """Compute as much as after the target's largest step."""
        run_largest_step(self._model, limits)

    def start(self, num_blocks: int, limits: Limits) -> ModelDrafter:
        """A drafter with a KV cache."""
        pages = DraftPages(
            self._model.layers,
            num_blocks=num_blocks,
            num_rows=limits.max_num_seqs,
            block_size=limits.block_size,
            num_speculative_tokens=self.num_speculative_tokens,
            dtype=self._model.kv_dtype,
            device=self._model.device,
        )
        return ModelDrafter(
            self._model, pages, self.num_speculative_tokens, max_model_len=limits.max_model_len
        )

    def weights(self) -> Mapping[str, Tensor]:
        """The draft model's parameters and persistent buffers; tied ones by each name."""
        state: dict[str, Tensor] = self._model.model.state_dict(keep_vars=True)
        return state

    def weight_views(self) -> WeightViews:
        """See `model_weights.views`."""
        return model_weights.views(self._model.model)


class ModelDrafter(SequentialDrafter):
    """Computes the tokens of each step with the draft model, those that a step yielded included; its outputs
    are logits."""

    def __init__(
        self, model: PackedModel, pages: DraftPages, num_speculative_tokens: int, *, max_model_len: int
    ) -> None:
        super().__init__(num_speculative_tokens=num_speculative_tokens, max_model_len=max_model_len)
        self._model = model
        self._pages = pages

    def _compute(self, contexts: Sequence[DraftContext], drafts: Sequence[Draft]) -> Tensor:
        drafting = {draft.context.row for draft in drafts}
        token_ids: list[int] = []
        passes: list[DraftPass] = []
        lasts: list[int] = []
        for context in contexts:
            # The token that was sampled last is computed with the rest, and once more after the next step.
            end = context.end + (context.row in drafting)
            token_ids += context.state.tokens(context.start, end)
            passes.append(DraftPass(context, context.start, end - context.start))
            if context.row in drafting:
                lasts.append(len(token_ids) - 1)
        return self._forward(token_ids, passes, lasts)

    def _continue(self, drafts: Sequence[Draft], outputs: Tensor, depth: int) -> Tensor:
        passes = [DraftPass(draft.context, draft.context.end + depth, 1) for draft in drafts]
        return self._forward([d.token_ids[-1] for d in drafts], passes, range(len(drafts)))

    def _logits(self, outputs: Tensor) -> Tensor:
        return outputs

    def _forward(self, token_ids: Sequence[int], passes: Sequence[DraftPass], lasts: Sequence[int]) -> Tensor:
        """Logits [len(lasts), vocab] after the tokens at the packed indices `lasts`."""
        device = self._model.device
        ids = to_device(np.asarray(token_ids, dtype=np.int64), device)
        # The head must be given a position.
        at = to_device(np.asarray(lasts or [0], dtype=np.int64), device)
        logits = self._model.forward(ids, self._pages.layout(passes), self._pages.cache, at)
        return logits[: len(lasts)]
