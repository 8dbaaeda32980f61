"""What steps on the device need of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from dodona.runners.device.forward_inputs import ForwardInputs


class StepModel(Protocol):
    """A model whose forward pass reads a step's description from the device, and writes keys and values to
    caches that it is given.

    Nothing in it may wait for the device. Where steps are captured as graphs, it may allocate, but what it
    returns belongs to the graphs' pool.
    """

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the logits."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    @property
    def max_kv_heads(self) -> int:
        """Most KV heads of a layer."""

    @property
    def index_dtype(self) -> torch.dtype:
        """Type of token ids and positions that it takes: int32 or int64."""

    @property
    def embedding(self) -> torch.Tensor | None:
        """[vocab, hidden], contiguous, where a step of decodes is to have its tokens' embeddings looked up
        before the forward pass (`ForwardInputs.embedded`)."""

    @property
    def pads_prompts(self) -> bool:
        """Whether padding after a prompt does no harm, so that steps of one prompt can be captured."""

    def long_context(self, size: int, *, verifies: bool) -> int | None:
        """Tokens of the longest sequence from which on a step of `size` decodes, or entries that may be
        drafts where `verifies`, is faster launched in another way; None: there is one way."""

    def make_caches(self, num_blocks: int, block_size: int, num_rows: int) -> Sequence[torch.Tensor]:
        """New caches on the device: keys and values, one or more tensors whose first dimension is that of the
        blocks; and what else the model keeps, for `num_rows` state rows."""

    def forward(
        self,
        inputs: ForwardInputs,
        caches: Sequence[torch.Tensor],
        *,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states that `logits` takes, [tokens, hidden], or [n, hidden] at the packed indices `wanted`
        ([n]); a step of few decodes may return all regardless."""

    def logits(self, hidden: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """[n, vocab] for hidden states [n, hidden]; written into `out` where given."""

    def decode(
        self, inputs: ForwardInputs, caches: Sequence[torch.Tensor], *, out: torch.Tensor
    ) -> torch.Tensor:
        """`forward` and `logits` of a step of decodes alone: `out`, [tokens, vocab]."""
