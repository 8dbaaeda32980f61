"""Attention of a step: its kernels are chosen once per step, and launched once per layer.

`Attention` belongs to a model. Its `plan` looks at a step's inputs and returns a value of one of the classes
below. The value holds what the layers share; its `attend` takes what differs between them.

- `DecodeAttention`, for decodes alone: the kernel of `decode` or `stream`, whichever the decode plan names.
- `MixedAttention`, for steps with prompts or chunks of them, and steps that verify drafts: rotation and KV
  write; then decodes and drafts as above, prompts without context by `fresh`, and the rest by `prefill`.
- `SmallBatchAttention`, for one or two decodes, and for few entries of rows that verify drafts:
  `small_batch`. With long sequences the first two are faster.
- `SingleTokenAttention`, for one decode: `small_batch`, whose parts the output projection weighs.

The last two are `plan_small_batch`'s, for models that run small batches differently.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dodona.kernels.attention.arguments import AttentionShape, NewTokens, PagedSequences, QKNorm
from dodona.kernels.attention.attended_linear import LARGEST_ATTENDED
from dodona.kernels.attention.decode import decode_attention_from_qkv, paged_decode_attention
from dodona.kernels.attention.decode_plan import DecodePlan, plan_decode_attention
from dodona.kernels.attention.fresh import SHORTEST, fresh_prefill_attention, supports_fresh_prefill
from dodona.kernels.attention.prefill import paged_prefill_attention
from dodona.kernels.attention.rotary import qk_norm_rope_kv_write
from dodona.kernels.attention.small_batch import (
    LARGEST_GROUP,
    MAX_SMALL_BATCH,
    most_context,
    most_entries,
    small_batch_attention,
    small_batch_attention_parts,
)
from dodona.kernels.attention.splits import AttentionParts
from dodona.kernels.attention.stream import supports_streams
from dodona.kernels.devices import count_multiprocessors
from dodona.runners.device.forward_inputs import ForwardInputs


@dataclass(frozen=True, slots=True, eq=False)
class DecodeAttention:
    """Of a step with one token per sequence."""

    shape: AttentionShape
    tokens: NewTokens
    sequences: PagedSequences
    plan: DecodePlan
    arrivals: torch.Tensor

    def attend(self, *, qkv: torch.Tensor, norm: QKNorm | None, kv_cache: torch.Tensor) -> torch.Tensor:
        """Attend in one layer, and write the new keys and values to its cache.

        Args:
            qkv: [tokens, (num_q_heads + 2 * num_kv_heads) * head_size], the projection of the layer's input.
            norm: the layer's norm of queries and keys, where it has one.
            kv_cache: [num_blocks, 2, num_kv_heads, block_size, head_size], the layer's.

        Returns:
            [tokens, num_q_heads * head_size].
        """
        return decode_attention_from_qkv(
            qkv=qkv,
            tokens=self.tokens,
            norm=norm,
            kv_cache=kv_cache,
            sequences=self.sequences,
            shape=self.shape,
            plan=self.plan,
            arrivals=self.arrivals,
        ).view(qkv.shape[0], -1)


@dataclass(frozen=True, slots=True, eq=False)
class SmallBatchAttention:
    """Of a step with one token for each of very few sequences."""

    shape: AttentionShape
    tokens: NewTokens
    sequences: PagedSequences
    arrivals: torch.Tensor
    offsets: torch.Tensor | None
    max_offset: int

    def attend(self, *, qkv: torch.Tensor, norm: QKNorm | None, kv_cache: torch.Tensor) -> torch.Tensor:
        """See `DecodeAttention.attend`."""
        return small_batch_attention(
            qkv=qkv,
            tokens=self.tokens,
            norm=norm,
            kv_cache=kv_cache,
            sequences=self.sequences,
            shape=self.shape,
            arrivals=self.arrivals,
            offsets=self.offsets,
            max_offset=self.max_offset,
        ).view(qkv.shape[0], -1)


@dataclass(frozen=True, slots=True, eq=False)
class SingleTokenAttention:
    """Of a step with one token, whose output projection is `attended_linear`."""

    shape: AttentionShape
    tokens: NewTokens
    sequences: PagedSequences

    def attend(self, *, qkv: torch.Tensor, norm: QKNorm | None, kv_cache: torch.Tensor) -> AttentionParts:
        """See `DecodeAttention.attend`; returns the parts of the attended vector."""
        return small_batch_attention_parts(
            qkv=qkv,
            tokens=self.tokens,
            norm=norm,
            kv_cache=kv_cache,
            sequences=self.sequences,
            shape=self.shape,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Decodes:
    """The decodes of a step that has other sequences, too."""

    count: int
    sequences: PagedSequences
    plan: DecodePlan
    arrivals: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class MixedAttention:
    """Of a step with sequences of several tokens: prompts, or chunks of them, after decodes if there are any;
    or of a step whose decodes may be one row's token and its drafts.

    Keys and values of all tokens are written to the cache first. Fresh prompts (without tokens before the
    step) attend over the projection, all else over the cache.
    """

    shape: AttentionShape
    tokens: NewTokens
    decodes: Decodes | None
    sequences: PagedSequences
    """Those that are no decodes."""
    query_start: torch.Tensor
    """[their number + 1]: where the tokens of each start."""
    max_fresh_len: int
    """Longest prompt that attends over the projection; 0 where none does."""
    max_paged_len: int
    """Longest chunk that attends over the cache; 0 where none does."""
    keys_in_place: bool
    """Whether rotated keys go to the projection, too."""
    num_multiprocessors: int

    def attend(self, *, qkv: torch.Tensor, norm: QKNorm | None, kv_cache: torch.Tensor) -> torch.Tensor:
        """See `DecodeAttention.attend`; `qkv` is overwritten."""
        shape = self.shape
        q = qk_norm_rope_kv_write(
            qkv=qkv,
            tokens=self.tokens,
            norm=norm,
            kv_cache=kv_cache,
            shape=shape,
            keys_in_place=self.keys_in_place,
        )
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if self.max_fresh_len:
            fresh_prefill_attention(
                qkv=qkv,
                query_start=self.query_start,
                seq_lens=self.sequences.seq_lens,
                max_query_len=self.max_fresh_len,
                shape=shape,
                num_multiprocessors=self.num_multiprocessors,
                out=out,
            )
        self.attend_pages(q=q, kv_cache=kv_cache, out=out)
        return out.view(out.shape[0], -1)

    def attend_pages(self, *, q: torch.Tensor, kv_cache: torch.Tensor, out: torch.Tensor) -> None:
        """Attend over the cache alone, where the step's keys and values are already.

        Args:
            q: [tokens, num_q_heads, head_size], rotated; the last two dimensions are contiguous.
            kv_cache: see `DecodeAttention.attend`.
            out: as `q`, contiguous, written; but for fresh prompts that `attend` serves.
        """
        shape, sequences = self.shape, self.sequences
        if (decodes := self.decodes) is not None:
            paged_decode_attention(
                q=q[: decodes.count],
                kv_cache=kv_cache,
                sequences=decodes.sequences,
                shape=shape,
                plan=decodes.plan,
                arrivals=decodes.arrivals,
                out=out[: decodes.count],
            )
        if self.max_paged_len:
            paged_prefill_attention(
                q=q,
                kv_cache=kv_cache,
                sequences=sequences,
                query_start=self.query_start,
                max_query_len=self.max_paged_len,
                shape=shape,
                skip_fresh=self.max_fresh_len > 0,
                out=out,
            )


class Attention:
    """Attention of one model on one device."""

    def __init__(self, *, shape: AttentionShape, dtype: torch.dtype, cos_sin: torch.Tensor) -> None:
        """
        Args:
            shape: the model's.
            dtype: of queries, keys and values.
            cos_sin: [max positions, head_size], float32, on the device (see `NewTokens.cos_sin`).
        """
        device, head_size = cos_sin.device, shape.head_size
        self._shape = shape
        self._cos_sin = cos_sin
        self._row_bytes = head_size * dtype.itemsize
        self._most_entries = 0 if shape.group > LARGEST_GROUP else most_entries(shape.group, self._row_bytes)
        """Most entries of one row that `small_batch` serves."""
        self._has_fresh_prefill = supports_fresh_prefill(
            device=device, dtype=dtype, head_size=head_size, window=shape.window
        )
        self._can_stream = supports_streams(device=device, dtype=dtype, head_size=head_size)
        self._num_multiprocessors = count_multiprocessors(device)

    def plan(self, inputs: ForwardInputs) -> DecodeAttention | MixedAttention:
        """The attention of any step."""
        return self._mixed(inputs) if inputs.max_prefill_len or inputs.has_drafts else self._decode(inputs)

    def plan_pages(self, inputs: ForwardInputs) -> MixedAttention:
        """Attention over the cache alone, of any step, for `MixedAttention.attend_pages`."""
        return self._mixed(inputs, has_fresh=False)

    def plan_small_batch(
        self, inputs: ForwardInputs, *, leave_parts: bool
    ) -> SingleTokenAttention | SmallBatchAttention | DecodeAttention | MixedAttention:
        """The attention of a step of decodes alone, as fast as possible for one sequence or two.

        `leave_parts`: whether the output projection may weigh the parts of one sequence's attention.
        """
        shape, num_tokens = self._shape, inputs.num_tokens
        if inputs.has_drafts:
            if inputs.has_long or inputs.offsets is None or inputs.max_offset >= self._most_entries:
                return self._mixed(inputs)
            tokens, sequences = self._tokens(inputs), _sequences(inputs)
            return SmallBatchAttention(
                shape, tokens, sequences, inputs.arrivals, inputs.offsets, inputs.max_offset
            )
        if inputs.has_long or num_tokens > MAX_SMALL_BATCH or shape.group > LARGEST_GROUP:
            return self._decode(inputs)
        tokens, sequences = self._tokens(inputs), _sequences(inputs)
        if leave_parts and num_tokens == 1 and shape.num_q_heads * self._row_bytes <= LARGEST_ATTENDED:
            return SingleTokenAttention(shape, tokens, sequences)
        return SmallBatchAttention(shape, tokens, sequences, inputs.arrivals, None, 0)

    def long_context(self, num_tokens: int, *, has_drafts: bool) -> int | None:
        """Tokens of the longest sequence from which on `plan_small_batch` of so many decodes, or drafts among
        them, is faster with `ForwardInputs.has_long`; None where there is no other kernel, or no sequence
        with so many keys. Drafts of more entries than `small_batch` serves run alike in both ways."""
        shape = self._shape
        is_small = has_drafts or num_tokens <= MAX_SMALL_BATCH
        if not self._can_stream or not is_small or shape.group > LARGEST_GROUP:
            return None
        tokens = most_context(num_tokens, shape.group, has_drafts=has_drafts)
        return None if shape.window is not None and shape.window <= tokens else tokens

    def _decode(self, inputs: ForwardInputs) -> DecodeAttention:
        sequences = _sequences(inputs)
        plan = self._plan_decodes(sequences, includes_new_key=False)
        return DecodeAttention(self._shape, self._tokens(inputs), sequences, plan, inputs.arrivals)

    def _mixed(self, inputs: ForwardInputs, *, has_fresh: bool = True) -> MixedAttention:
        count = inputs.num_decodes
        decodes = None
        if count:
            sequences = PagedSequences(inputs.block_table, inputs.rows[:count], inputs.seq_lens[:count])
            plan = self._plan_decodes(sequences, includes_new_key=True)
            decodes = Decodes(count, sequences, plan, inputs.arrivals)
        has_fresh = has_fresh and self._has_fresh_prefill and inputs.max_fresh_len >= SHORTEST
        return MixedAttention(
            shape=self._shape,
            tokens=self._tokens(inputs),
            decodes=decodes,
            sequences=PagedSequences(inputs.block_table, inputs.rows[count:], inputs.seq_lens[count:]),
            query_start=inputs.query_start[count:],
            max_fresh_len=inputs.max_fresh_len if has_fresh else 0,
            max_paged_len=inputs.max_continued_len if has_fresh else inputs.max_prefill_len,
            keys_in_place=self._has_fresh_prefill,
            num_multiprocessors=self._num_multiprocessors,
        )

    def _plan_decodes(self, sequences: PagedSequences, *, includes_new_key: bool) -> DecodePlan:
        return plan_decode_attention(
            sequences=sequences,
            shape=self._shape,
            row_bytes=self._row_bytes,
            includes_new_key=includes_new_key,
            num_multiprocessors=self._num_multiprocessors,
            can_stream=self._can_stream,
        )

    def _tokens(self, inputs: ForwardInputs) -> NewTokens:
        return NewTokens(inputs.positions, inputs.slots, self._cos_sin)


def _sequences(inputs: ForwardInputs) -> PagedSequences:
    return PagedSequences(inputs.block_table, inputs.rows, inputs.seq_lens)
