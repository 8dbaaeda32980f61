"""Heads of the EAGLE family that draft on the device: `HeadDrafting`.

The entry of a head at position p has the features of the target at p and the token at p + 1, so that each
step of the target gives all entries of its tokens. Entries of drafts that were rejected are computed too, and
overwritten by the next step's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dodona.kernels.attention.arguments import AttentionShape
from dodona.kernels.state.copy_rows import copy_rows
from dodona.kernels.state.draft_state import following_tokens
from dodona.oracle.errors import ConfigError
from dodona.runners.device.caches import zero_caches
from dodona.runners.device.drafting import StepEnds
from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.device.sampling.sampler import DeviceSampler
from dodona.runners.device.state import RequestState
from dodona.runners.drafting.head import DraftHead
from dodona.runners.drafting.kv_blocks import own_blocks
from dodona.runners.drafting.weights import head_views
from dodona.runners.interface import LayerKVSpec
from dodona.runners.limits import Limits
from dodona.runners.v2.capabilities import HEAD_SIZES
from dodona.runners.v2.drafting.head_layers import HeadLayers
from dodona.runners.v2.drafting.sequential import Places, SequentialDrafter
from dodona.runners.v2.models.hidden_states import HiddenStates
from dodona.runners.weights.life import WeightViews


class HeadDrafting:
    """A head that is loaded, and what it sees of its target."""

    def __init__(
        self,
        head: DraftHead,
        seen: HiddenStates,
        num_speculative_tokens: int,
        *,
        directory: Path,
        limits: Limits,
    ) -> None:
        """Raises ConfigError where V2's kernels can't attend as the head does."""
        config = head.config
        heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        if size not in HEAD_SIZES or heads % kv_heads:
            raise ConfigError(
                f"{directory / 'config.json'}: head_dim={size} with num_attention_heads={heads} and "
                f"num_key_value_heads={kv_heads}: V2 attends with a head_dim of {HEAD_SIZES} and a whole "
                "number of query heads per KV head; force runner v1 for this head"
            )
        self.num_speculative_tokens = num_speculative_tokens
        self.own_blocks = own_blocks(num_speculative_tokens, limits.block_size)
        self.layers = (LayerKVSpec(kv_heads, size, size),) * head.head.num_layers
        self._head = head
        self._seen = seen
        self._shape = AttentionShape(heads, kv_heads, size, head.scaling)
        self._layers = HeadLayers(
            head,
            self._shape,
            # Drafts reach beyond the longest sequence.
            max_positions=limits.max_model_len + num_speculative_tokens + 1,
            dtype=seen.values.dtype,
        )

    def weights(self) -> Mapping[str, Tensor]:
        """See `DraftHead.own_tensors`."""
        return self._head.own_tensors()

    def weight_views(self) -> WeightViews:
        """See `head_views`."""
        return head_views(self._head)

    def start(
        self, state: RequestState, sampler: DeviceSampler, limits: Limits, *, num_blocks: int
    ) -> HeadDrafter:
        """See `DeviceDrafting.start`."""
        total = num_blocks + self.own_blocks * limits.max_num_seqs
        shape = (total, 2, self._shape.num_kv_heads, limits.block_size, self._shape.head_size)
        dtype, device = self._seen.values.dtype, state.token_ids.device
        caches = zero_caches([shape] * len(self.layers), dtype=dtype, device=device)
        kind = ParallelHeadDrafter if self._head.head.is_parallel else HeadDrafter
        return kind(
            self._head,
            self._layers,
            self._seen,
            caches,
            state,
            sampler,
            num_speculative_tokens=self.num_speculative_tokens,
            block_size=limits.block_size,
            num_kv_heads=self._shape.num_kv_heads,
        )


class HeadDrafter(SequentialDrafter):
    """Its outputs are those of the head's layers, which are the features of the next depth."""

    def __init__(
        self,
        head: DraftHead,
        layers: HeadLayers,
        seen: HiddenStates,
        caches: Sequence[Tensor],
        state: RequestState,
        sampler: DeviceSampler,
        *,
        num_speculative_tokens: int,
        block_size: int,
        num_kv_heads: int,
    ) -> None:
        super().__init__(
            state,
            sampler,
            num_speculative_tokens=num_speculative_tokens,
            num_places=num_speculative_tokens - 1,
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            vocabulary=layers.vocabulary,
        )
        self._head = head
        self._layers = layers
        self._seen = seen
        self._caches = caches
        self._num_computed = state.num_computed

    def _compute(self, inputs: ForwardInputs, ends: StepEnds, places: Places) -> Tensor:
        # Before the features: what comes after these begins to read while they are computed.
        following = self._following(inputs)
        output = self._layers.forward(inputs, following, self._features(inputs), self._caches)
        last = output.new_empty(len(ends.rows), output.shape[1])
        copy_rows(source=output, target=last, index=ends.last)
        return last

    def _continue(
        self, ends: StepEnds, places: Places, ahead: int, drafts: Tensor, outputs: Tensor
    ) -> Tensor:
        inputs = self._entries(ends, places, ahead - 1, drafts)
        features = self._layers.next_features(outputs)
        return self._layers.forward(inputs, inputs.input_ids, features, self._caches)

    def _logits(self, outputs: Tensor) -> Tensor:
        return self._layers.logits(outputs)

    def _following(self, inputs: ForwardInputs) -> Tensor:
        """[tokens]: the token after each token of the step."""
        return following_tokens(
            rows=token_rows(inputs), positions=inputs.positions, token_ids=self._token_ids
        )

    def _features(self, inputs: ForwardInputs) -> Tensor:
        """[tokens, size]: features of the target at each token of the step."""
        return self._layers.features(self._seen.values[: inputs.num_tokens])


class ParallelHeadDrafter(HeadDrafter):
    """All depths of a row in one pass: beside the entries of the step, those of the mask."""

    def _draft(self, inputs: ForwardInputs, ends: StepEnds) -> Tensor:
        head, depths = self._head, self._num_speculative_tokens
        rows = token_rows(inputs).clamp(min=0)
        # Entries of rejected drafts would lie in the places of those of the mask.
        is_kept = inputs.positions < self._num_computed[rows]
        step = replace(inputs, slots=torch.where(is_kept, inputs.slots, -1))
        num_rows, ahead = len(ends.rows), torch.arange(depths, dtype=torch.int32, device=rows.device)
        masked = StepEnds(
            ends.rows.repeat_interleave(depths - 1),
            ends.last.repeat_interleave(depths - 1),
            (ends.positions[:, None] + ahead[1:]).flatten(),
        )
        count = len(masked.rows)
        mask_ids = torch.full_like(masked.rows, head.head.mask_token_id or 0)
        whole = step
        if count:
            whole = _before(self._entries(masked, self._places(masked, 0, 1), 0, mask_ids), step)
        mask = self._layers.features(head.mask_hidden).expand(count, -1)
        output = self._layers.forward(
            whole,
            torch.cat([mask_ids, self._following(inputs)]),
            torch.cat([mask, self._features(inputs)]),
            self._caches,
        )
        first = torch.arange(num_rows, device=rows.device)[:, None] * (depths - 1)
        places = torch.cat([count + ends.last[:, None], first + ahead[: depths - 1]], dim=1).flatten()
        token_ids = self._draw(
            self._logits(output[places]),
            ends.rows.repeat_interleave(depths),
            (ends.positions[:, None] + 2 + ahead).flatten(),
        )
        return token_ids.view(num_rows, depths)


def _before(first: ForwardInputs, step: ForwardInputs) -> ForwardInputs:
    """A step with entries of one token before its own; rows may stand in both."""
    count = first.num_tokens
    return replace(
        step,
        input_ids=torch.cat([first.input_ids, step.input_ids]),
        positions=torch.cat([first.positions, step.positions]),
        slots=torch.cat([first.slots, step.slots]),
        rows=torch.cat([first.rows, step.rows]),
        query_start=torch.cat([first.query_start, count + step.query_start[1:]]),
        seq_lens=torch.cat([first.seq_lens, step.seq_lens]),
        num_decodes=count + step.num_decodes,
        chunks=[replace(chunk, start=chunk.start + count) for chunk in step.chunks],
        has_drafts=True,
        offsets=None,
        embedded=None,
    )


def token_rows(inputs: ForwardInputs) -> Tensor:
    """[tokens]: the state row of each token of a step; -1, or that of the only row, for padding."""
    count = inputs.num_tokens
    if inputs.rows.shape[0] == 1:
        return inputs.rows.expand(count)
    if not inputs.max_prefill_len:
        return inputs.rows
    lengths = inputs.query_start.diff()
    return torch.repeat_interleave(inputs.rows, lengths, output_size=count)
