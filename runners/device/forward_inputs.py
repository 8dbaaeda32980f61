"""What a model's forward pass takes of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RowChunk:
    """A sequence of a step that is no decode, as the host knows it: the packed tokens [start, start +
    num_tokens) of a state row, after `num_computed` tokens before the step."""

    row: int
    start: int
    num_tokens: int
    num_computed: int


@dataclass(frozen=True, slots=True, eq=False)
class ForwardInputs:
    """One step's packed tokens and their sequences: first those with one token each (decodes), then the
    others (prompts and chunks of them). Tensors are on the device, and int32; ids and positions are
    as the model takes them."""

    input_ids: torch.Tensor
    """[tokens]."""
    positions: torch.Tensor
    """[tokens]: position in the sequence."""
    slots: torch.Tensor
    """[tokens]: KV slot, or -1 for padding."""
    rows: torch.Tensor
    """[batch]: state row of each sequence, or -1 for padding (among decodes only)."""
    query_start: torch.Tensor
    """[batch + 1]: where each sequence's tokens start."""
    seq_lens: torch.Tensor
    """[batch]: tokens of each sequence after this step."""
    block_table: torch.Tensor
    """[state rows, max blocks]."""
    arrivals: torch.Tensor
    """[batch * most KV heads of a layer, or more]: zeros, for decode attention to count in."""
    num_decodes: int
    """Leading sequences with one token each."""
    max_fresh_len: int
    """Longest chunk of the other sequences that begin in this step; 0 where there are none."""
    max_continued_len: int
    """Longest chunk of the other sequences that have tokens before it; 0 where there are none."""
    chunks: Sequence[RowChunk] = ()
    """The other sequences, where the step is not of fixed form."""
    has_drafts: bool = False
    """Whether some decodes follow one another in one row: a token, then its drafts. Keys and values of all
    must be in the cache before any attends."""
    offsets: torch.Tensor | None = None
    """[batch]: how many decodes of the same row come right before each; None where that is not known, or none
    do."""
    max_offset: int = 0
    """The most of these in any step."""
    has_long: bool = False
    """Whether a step of decodes alone is launched as is best with a long sequence: see
    `StepModel.long_context`. It changes no result but for rounding."""
    embedded: torch.Tensor | None = None
    """[tokens, hidden], the model's dtype: the tokens' embeddings, where they were looked up already."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the step, padding included."""
        return self.input_ids.shape[0]

    @property
    def max_prefill_len(self) -> int:
        """Longest chunk of the sequences after the decodes; 0 where there are none."""
        return max(self.max_fresh_len, self.max_continued_len)

    @property
    def may_be_padded_prompt(self) -> bool:
        """Whether padding may follow the tokens of the only sequence: a prompt in a step of fixed form."""
        return self.num_decodes == 0 and self.rows.shape[0] == 1 and self.max_fresh_len == self.num_tokens
