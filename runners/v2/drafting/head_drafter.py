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
from dodona.kernels.attention.kv_write import kv_write
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
from dodona.runners.v2.attention import Attention
from dodona.runners.v2.capabilities import HEAD_SIZES
from dodona.runners.v2.drafting.sequential import SequentialDrafter
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
        block_size: int,
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
        self.own_blocks = own_blocks(num_speculative_tokens, block_size)
        self.layers = (LayerKVSpec(kv_heads, size, size),) * head.head.num_layers
        self._head = head
        self._seen = seen
        self._shape = AttentionShape(heads, kv_heads, size, head.scaling)

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
        attention = Attention(
            shape=self._shape,
            dtype=dtype,
            cos_sin=torch.empty((0, self._shape.head_size), device=device),  # the head rotates by itself
        )
        kind = ParallelHeadDrafter if self._head.head.is_parallel else HeadDrafter
        return kind(
            self._head,
            self._seen,
            attention,
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
        seen: HiddenStates,
        attention: Attention,
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
            block_size=block_size,
            num_kv_heads=num_kv_heads,
        )
        self._head = head
        self._seen = seen
        self._attention = attention
        self._caches = caches
        self._num_computed = state.num_computed

    def _compute(self, inputs: ForwardInputs, ends: StepEnds, last: Tensor) -> Tensor:
        return self._run([inputs], self._following(inputs), self._features(inputs))[ends.last]

    def _continue(self, rows: Tensor, last: Tensor, token_ids: Tensor, outputs: Tensor) -> Tensor:
        inputs = self._entries(rows, last, token_ids)
        return self._run([inputs], inputs.input_ids, self._head.next_features(outputs))

    def _logits(self, outputs: Tensor) -> Tensor:
        return self._head.logits(outputs)

    def _following(self, inputs: ForwardInputs) -> Tensor:
        """[tokens]: the token after each token of the step."""
        most = self._token_ids.shape[1] - 1
        rows = token_rows(inputs).clamp(min=0)  # padding
        return self._token_ids[rows, (inputs.positions + 1).clamp(max=most)].clamp(min=0)

    def _features(self, inputs: ForwardInputs) -> Tensor:
        """[tokens, size]: features of the target at each token of the step."""
        return self._head.features(self._seen.values[: inputs.num_tokens])

    def _run(self, parts: Sequence[ForwardInputs], token_ids: Tensor, features: Tensor) -> Tensor:
        """The layers' output [tokens, size] for entries of tokens [tokens] and features [tokens, size], part
        after part: keys and values of all are written before any attends."""
        plans = [self._attention.plan_pages(part) for part in parts]
        slots = torch.cat([part.slots for part in parts])
        positions = torch.cat([part.positions for part in parts])

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            cache = self._caches[layer]
            kv_write(
                key=key[0].transpose(0, 1),
                value=value[0].transpose(0, 1),
                slots=slots,
                k_cache=cache[:, 0],
                v_cache=cache[:, 1],
            )
            q = query[0].transpose(0, 1).contiguous()
            out, start = torch.empty_like(q), 0
            for part, plan in zip(parts, plans, strict=True):
                end = start + part.num_tokens
                plan.attend_pages(q=q[start:end], kv_cache=cache, out=out[start:end])
                start = end
            return out[None]

        output: Tensor = self._head(token_ids[None], features[None], positions[None], attend)
        return output[0]


class ParallelHeadDrafter(HeadDrafter):
    """All depths of a row in one pass: beside the entries of the step, those of the mask."""

    def propose(self, inputs: ForwardInputs, ends: StepEnds) -> Tensor:
        """See `DeviceDrafter.propose`."""
        head, depths = self._head, self._num_speculative_tokens
        rows = token_rows(inputs).clamp(min=0)
        # Entries of rejected drafts would lie in the places of those of the mask.
        is_kept = inputs.positions < self._num_computed[rows]
        step = replace(inputs, arrivals=self._arrivals, slots=torch.where(is_kept, inputs.slots, -1))
        last = inputs.positions[ends.last]
        num_rows, ahead = len(last), torch.arange(depths, dtype=last.dtype, device=last.device)
        masked_rows = ends.rows.repeat_interleave(depths - 1)
        masked_positions = (last[:, None] + ahead[1:]).flatten()
        mask_ids = torch.full_like(masked_rows, head.head.mask_token_id or 0)
        masked = self._entries(masked_rows, masked_positions, mask_ids)
        parts = [step, masked] if len(masked_rows) else [step]
        mask = head.features(head.mask_hidden).expand(len(masked_rows), -1)
        output = self._run(
            parts,
            torch.cat([self._following(inputs), masked.input_ids]),
            torch.cat([self._features(inputs), mask]),
        )
        if not num_rows:
            return masked_rows.view(0, depths)
        first = step.num_tokens + torch.arange(num_rows, device=last.device)[:, None] * (depths - 1)
        places = torch.cat([ends.last[:, None], first + ahead[: depths - 1]], dim=1).flatten()
        token_ids = self._sampler.base.sample(
            head.logits(output[places]),
            idx_mapping=ends.rows.repeat_interleave(depths),
            positions=(last[:, None] + 2 + ahead).flatten(),
        )
        return token_ids.view(num_rows, depths)


def token_rows(inputs: ForwardInputs) -> Tensor:
    """[tokens]: the state row of each token of a step; -1, or that of the only row, for padding."""
    count = inputs.num_tokens
    if inputs.rows.shape[0] == 1:
        return inputs.rows.expand(count)
    if not inputs.max_prefill_len:
        return inputs.rows
    lengths = inputs.query_start.diff()
    return torch.repeat_interleave(inputs.rows, lengths, output_size=count)
