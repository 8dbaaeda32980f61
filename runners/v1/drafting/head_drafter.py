"""Heads of the EAGLE family, and MTP layers, that draft: `HeadDrafting`.

The entry of a head at position p has the features of the target at p and the token at p + 1, so that each
step of the target gives all entries of its tokens. KV of an entry lies in the slot of position p. In a block
that another request left in the prefix cache, the last entry may have that request's next token; it changes
what is drafted by a little, and nothing of what is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dodona.runners.drafting.head import DraftHead
from dodona.runners.drafting.kv_blocks import extended
from dodona.runners.interface import KVCacheSpec
from dodona.runners.limits import Limits
from dodona.runners.v1.attention import ForwardState, forward_state, paged_attention
from dodona.runners.v1.drafting.drafter import DraftContext
from dodona.runners.v1.drafting.hidden_states import HiddenStates
from dodona.runners.v1.drafting.mtp_head import MtpHead
from dodona.runners.v1.drafting.pages import DraftPages, DraftPass
from dodona.runners.v1.drafting.sequential import Draft, SequentialDrafter, draw
from dodona.runners.v1.kv_cache import PagedKVCache
from dodona.runners.v1.patterns import CAUSAL
from dodona.runners.v1.step_layout import StepLayout, to_device
from dodona.runners.weights.life import WeightViews


class HeadDrafting:
    """A head that is loaded, and what it sees of its target."""

    def __init__(
        self,
        head: DraftHead | MtpHead,
        hidden: HiddenStates,
        num_speculative_tokens: int,
        *,
        kv_dtype: torch.dtype,
    ) -> None:
        self.num_speculative_tokens = num_speculative_tokens
        self._head = head
        self._hidden = hidden
        self._kv_dtype = kv_dtype
        self._layers = head.kv_layers

    def extend_spec(self, spec: KVCacheSpec) -> KVCacheSpec:
        """With the head's layers."""
        return extended(spec, self._layers, self.num_speculative_tokens)

    def run_largest_step(self, limits: Limits) -> None:
        """Compute as many entries as a step may have tokens."""
        longest, device = limits.max_model_len, self._head.device
        whole, rest = divmod(limits.max_num_batched_tokens, longest)
        counts = ([longest] * whole + [rest] * (rest > 0))[: limits.max_num_seqs]
        tables = np.zeros((len(counts), -(-longest // limits.block_size)), dtype=np.int64)
        layout = StepLayout(counts, [0] * len(counts), tables, limits.block_size, device)
        cache = PagedKVCache(self._layers, 1, limits.block_size, self._kv_dtype, device)
        ids = torch.zeros(layout.total_tokens, dtype=torch.int64, device=device)
        with torch.inference_mode():
            features = self._head.features(self._hidden.last()[:1]).expand(layout.total_tokens, -1)
            output = run_head(self._head, ids, features, layout, cache)
            self._head.logits(output[: limits.max_num_seqs])

    def start(self, num_blocks: int, limits: Limits) -> HeadDrafter:
        """A drafter with a KV cache."""
        pages = DraftPages(
            self._layers,
            num_blocks=num_blocks,
            num_rows=limits.max_num_seqs,
            block_size=limits.block_size,
            num_speculative_tokens=self.num_speculative_tokens,
            dtype=self._kv_dtype,
            device=self._head.device,
        )
        settings = (self._hidden, pages, self.num_speculative_tokens)
        head, most = self._head, limits.max_model_len
        if isinstance(head, DraftHead) and head.head.is_parallel:
            return ParallelHeadDrafter(head, *settings, max_model_len=most)
        return HeadDrafter(head, *settings, max_model_len=most)

    def weights(self) -> Mapping[str, Tensor]:
        """The head's tensors, by speculators' names, and the tokens that it drafts."""
        return self._head.own_tensors()

    def weight_views(self) -> WeightViews:
        """The same without the drafted tokens, which are part of what the head is."""
        return WeightViews({name: t for name, t in self.weights().items() if name != "targets"}, {})


class HeadDrafter(SequentialDrafter):
    """Its outputs are those of the head's layers, which are the features of the next depth."""

    def __init__(
        self,
        head: DraftHead | MtpHead,
        hidden: HiddenStates,
        pages: DraftPages,
        num_speculative_tokens: int,
        *,
        max_model_len: int,
    ) -> None:
        super().__init__(num_speculative_tokens=num_speculative_tokens, max_model_len=max_model_len)
        self._head = head
        self._hidden = hidden
        self._pages = pages

    def _compute(self, contexts: Sequence[DraftContext], drafts: Sequence[Draft]) -> Tensor:
        places = {context.row: i for i, context in enumerate(contexts)}
        passes = [DraftPass(context, context.start, context.end - context.start) for context in contexts]
        ends = np.cumsum([p.num_entries for p in passes])
        token_ids = [t for c in contexts for t in c.state.tokens(c.start + 1, c.end + 1)]
        output = self._forward(token_ids, self._step_features(contexts), passes)
        return output[[int(ends[places[draft.context.row]]) - 1 for draft in drafts]]

    def _continue(self, drafts: Sequence[Draft], outputs: Tensor, depth: int) -> Tensor:
        passes = [DraftPass(draft.context, draft.context.end - 1 + depth, 1) for draft in drafts]
        token_ids = [draft.token_ids[-1] for draft in drafts]
        return self._forward(token_ids, self._head.next_features(outputs), passes)

    def _logits(self, outputs: Tensor) -> Tensor:
        return self._head.logits(outputs)

    def _step_features(self, contexts: Sequence[DraftContext]) -> Tensor:
        """Features of the target at the kept tokens of the step, row after row."""
        kept = np.concatenate([np.arange(c.packed, c.packed + c.end - c.start) for c in contexts])
        hidden = self._hidden.last()
        return self._head.features(hidden[to_device(kept, hidden.device)])

    def _forward(self, token_ids: Sequence[int], features: Tensor, passes: Sequence[DraftPass]) -> Tensor:
        ids = to_device(np.asarray(token_ids, dtype=np.int64), features.device)
        return run_head(self._head, ids, features, self._pages.layout(passes), self._pages.cache)


class ParallelHeadDrafter(HeadDrafter):
    """All depths of a row in one pass: after its entries come those of the mask."""

    _head: DraftHead

    def _draw_all(self, contexts: Sequence[DraftContext], drafts: Sequence[Draft]) -> None:
        head = self._head
        most = {draft.context.row: draft.most for draft in drafts}
        mask_token_id = head.head.mask_token_id or 0
        token_ids: list[int] = []
        sources: list[int] = []
        passes: list[DraftPass] = []
        firsts: dict[int, int] = {}
        done = 0
        mask = sum(context.end - context.start for context in contexts)
        for context in contexts:
            count = context.end - context.start
            masked = max(0, most.get(context.row, 0) - 1)
            token_ids += [
                *context.state.tokens(context.start + 1, context.end + 1),
                *[mask_token_id] * masked,
            ]
            sources += [*range(done, done + count), *[mask] * masked]
            passes.append(DraftPass(context, context.start, count + masked))
            firsts[context.row] = len(token_ids) - masked - 1
            done += count
        features = torch.cat([self._step_features(contexts), head.features(head.mask_hidden)])
        index = to_device(np.asarray(sources, dtype=np.int64), features.device)
        output = self._forward(token_ids, features[index], passes)
        for depth in range(self.num_speculative_tokens):
            going = [draft for draft in drafts if draft.most > depth]
            if going:
                draw(head.logits(output[[firsts[d.context.row] + depth for d in going]]), going)


def run_head(
    head: DraftHead | MtpHead,
    token_ids: Tensor,
    features: Tensor,
    layout: StepLayout,
    cache: PagedKVCache,
) -> Tensor:
    """token_ids [T], features [T, size], packed as `layout` says -> the layers' output [T, size]."""

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # All heads scale so; an MTP layer calls its attention itself.
        found: Any = paged_attention(head, query, key, value, None, scaling=query.shape[-1] ** -0.5)
        attended: Tensor = found[0]
        return attended

    patterns = (CAUSAL,) * len(cache.keys)
    with forward_state(ForwardState(layout, cache, patterns)):
        output: Tensor = head(token_ids[None], features[None], layout.positions[None], attend)
    return output[0]
